"""Where ppo_rnd_continuous.py goes while it learns, without the bonus and with it: a picture.

    python benchmark/states.py --seed 4 --out docs/results/continuous_states.png -- --total-timesteps 2e5

Trains once with --int-coef 0 and once with the script's default, and counts the observations of the first --steps
steps, in whole rollouts, in a grid of 60 x 60 over the range of both runs, of two of their entries (of the mountain car
position and velocity). What stands after -- are flags of the script, for both: with a run's own --total-timesteps its
steps are those of the run.
"""

import argparse
import contextlib
import pathlib
import sys
import tempfile

import matplotlib
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import ppo_rnd_continuous as script

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm

ENTRIES = {  # task -> the two entries of an observation that are shown, and their names
    "MountainCar": {0: "position", 1: "velocity"},
    "PointMaze": {0: "x", 1: "y"},
    "CartpoleSwingup": {0: "position of the cart", 1: "cosine of the pole's angle"},
    "AcrobotSwingup": {2: "upper arm, 1 is up", 3: "lower arm, 1 is up"},  # cosines
}


class EnoughSeen(Exception):
    """Ends a training run before its time."""


def visited(flags: list[str], steps: int) -> np.ndarray:
    """The observations (K, D) of a training run with these flags, at its first steps, resets left out."""
    seen, collect = [], script.collect

    def watch(envs, agent, rollout, args) -> None:
        if len(seen) * rollout.valid.numel() >= steps:
            raise EnoughSeen
        collect(envs, agent, rollout, args)
        seen.append(rollout.obs[1:][rollout.valid].cpu().numpy())

    script.collect = watch
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.suppress(EnoughSeen):
            if status := script.main([*flags, "--runs-dir", folder]):
                sys.exit(status)
    finally:
        script.collect = collect
    return np.concatenate(seen)


def draw(clouds: dict[str, np.ndarray], names: list[str], path: pathlib.Path) -> None:
    """A panel for each cloud of points (K, 2), on the same axes and the same logarithmic colours."""
    both = np.concatenate([*clouds.values()])
    ranges = [(x.min(), x.max()) for x in both.T]
    counts = {title: np.histogram2d(*points.T, bins=60, range=ranges)[0] for title, points in clouds.items()}
    norm = LogNorm(1, max(x.max() for x in counts.values()))
    figure, panels = plt.subplots(1, len(clouds), figsize=(4 * len(clouds) + 1, 3.4), sharey=True, layout="constrained")
    for panel, (title, x) in zip(panels, counts.items(), strict=True):
        shown = panel.imshow(x.T, norm=norm, origin="lower", aspect="auto", extent=(*ranges[0], *ranges[1]))
        covered = f"{title}: {(x > 0).mean():.0%} of the cells"
        print(covered)
        panel.set(title=covered, xlabel=names[0])
    panels[0].set_ylabel(names[1])
    figure.colorbar(shown, ax=panels, label="steps in a cell")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="MountainCarContinuous")
    parser.add_argument("--steps", type=int, default=30000, help="how many environment steps of each run")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--entries", nargs=2, type=int, help="which two of an observation")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="path of the picture")
    parser.add_argument("flags", nargs="*", help="after --: flags of the script")
    args = parser.parse_args()
    common = ["--env-id", args.env_id, "--seed", args.seed, *args.flags]
    variants = {"without the bonus": ["--int-coef", "0"], "with it": []}
    named = next((entries for task, entries in ENTRIES.items() if args.env_id.startswith(task)), {})
    entries = args.entries or list(named) or [0, 1]
    clouds = {title: visited([*common, *flags], args.steps)[:, entries] for title, flags in variants.items()}
    draw(clouds, [named.get(k, f"entry {k}") for k in entries], args.out)
    print(args.out)


if __name__ == "__main__":
    main()
