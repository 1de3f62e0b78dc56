"""Keeps of a checkpoint what plays, the policy and the flags, in a file small enough for a repository.

    python benchmark/pretrained.py runs/RUN pretrained/KeyCorridorS3R3.pt
    python ppo_rnd_minigrid.py --evaluate pretrained/KeyCorridorS3R3.pt

The script that made the run evaluates the file as it does a run. It cannot go on from it: the predictor and the state
of the optimizer are left out. Weights are kept in half precision with --half.
"""

import argparse
import pathlib

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="a run's folder, or a checkpoint")
    parser.add_argument("out", type=pathlib.Path, help="the file to write")
    parser.add_argument("--half", action="store_true", help="round the weights to float16")
    args = parser.parse_args()
    path = args.run / "latest.pt" if args.run.is_dir() else args.run
    if not path.is_file():
        parser.error(f"there is no checkpoint {path}")
    saved = torch.load(path, map_location="cpu", weights_only=True)
    kept = {key: saved[key] for key in ("agent", "args", "step", "seconds", "best_score") if key in saved}
    kept["args"]["runs_dir"] = "runs"  # where it was made is nobody's business
    if args.half:
        kept["agent"] = {name: x.half() for name, x in kept["agent"].items()}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(kept, args.out)
    print(f"{args.out}: {args.out.stat().st_size / 1e6:.2f} MB, step {saved['step']:,}")


if __name__ == "__main__":
    main()
