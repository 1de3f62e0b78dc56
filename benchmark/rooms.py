"""Does a target that has learned tell rooms apart better than a random one? A measurement, and pictures.

    python benchmark/rooms.py --out docs/results/snd_rooms --seeds 1 2 3

A random agent is put down in rooms of Montezuma's Revenge, by writing the room's number into the RAM, several times in
each. From most of these visits the targets of snd_atari.py learn, with the script's own functions and without being
told which room is which; on the others it is measured how well they tell the rooms apart, beside the same networks
with their first, random weights. OUT.csv gets the numbers, OUT.png their course, OUT_embed.png what the targets of the
first seed make of the same frames. What a target has come to is kept in --work-dir, so that the same command again goes
on where it was stopped.
"""

import argparse
import json
import pathlib
import sys

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import matplotlib.pyplot as plt
from embed import plot_embeddings, separability
from plot import draw_curves
from sweep import write_table

import snd_atari as script

ROOMS = (0, 1, 2, 3, 5, 7, 8, 9, 10, 11, 14, 18)  # of those that are not dark, one of each look
CPU = torch.device("cpu")


def visit(room: int, seed: int, steps: int) -> np.ndarray:
    """Frames (steps, 96, 96) uint8 of a random agent in a room, wherever the game puts it."""
    env = script.make_evaluation_env(script.Args(env_id="MontezumaRevenge-v5"))
    rng, frames = np.random.default_rng((seed, room)), []
    env.reset(seed=int(rng.integers(2**31)))
    for _ in range(int(rng.integers(30))):  # another moment of everything that moves
        env.step(int(rng.integers(env.action_space.n)))
    while len(frames) < steps + 4:
        env.unwrapped.ale.setRAM(script.ROOM_BYTE["MontezumaRevenge-v5"], room)
        obs, _, terminated, _, _ = env.step(int(rng.integers(env.action_space.n)))
        if terminated:
            env.reset()
        elif env.unwrapped.ale.getRAM()[3] == room:
            frames.append(np.array(obs)[3])
    return np.stack(frames[4:])  # the first frames still show the room before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="path of the results, without its ending")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1], help="of the networks, pairs and augmentations")
    parser.add_argument("--presets", nargs="+", default=["snd-v", "snd-vic", "snd-std"], help="presets of snd_atari.py")
    parser.add_argument("--updates", type=int, default=1000, help="updates of each target")
    parser.add_argument("--batch", type=int, default=64, help="pairs in an update, for all presets the same")
    parser.add_argument("--steps", type=int, default=64, help="frames of a visit")
    parser.add_argument("--work-dir", type=pathlib.Path, default="runs/rooms", help="where finished targets are kept")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)

    # the same frames for all: 4 visits to learn from and 3 to measure on
    visits = [[visit(room, seed, args.steps) for room in ROOMS] for seed in tqdm(range(7), desc="visits")]
    learn = torch.from_numpy(np.stack([v for one in visits[:4] for v in one], 1))  # (T, N, 96, 96), N = 4 * rooms
    measure = torch.from_numpy(np.stack([v[:: args.steps // 8] for one in visits[4:] for v in one], 1))
    rooms = np.tile(ROOMS, 3)[None].repeat(len(measure), 0).flatten()
    episodes = np.repeat(np.arange(3), len(ROOMS))[None].repeat(len(measure), 0).flatten()
    num_visits = learn.shape[1]
    experience = torch.arange((len(learn) - 1) * num_visits)  # all steps but the last of each visit

    def learn_rooms(preset: str, seed: int) -> tuple[list[dict], np.ndarray, np.ndarray]:
        """The numbers over the updates, and the features of the frames to measure on, first and last, (K, 512)."""
        changes = {"target_batch": args.batch, "num_envs": num_visits}
        flags = script.Args(preset=preset, **script.PRESETS[preset] | changes)
        torch.manual_seed(seed)
        snd = script.SND(flags, CPU)
        for frames in learn:
            snd.obs_rms.update(frames, torch.ones(len(frames), dtype=torch.bool))
        optimizer = torch.optim.Adam(snd.target_parameters(), lr=flags.learning_rate)
        flat, lines, kept = learn.flatten(0, 1), [], []
        for update in tqdm(range(args.updates + 1), desc=f"{preset}, seed {seed}"):
            if update % max(1, args.updates // 10) == 0:
                z = script.features(snd.target, measure, snd.obs_rms, flags.obs_norm).flatten(0, 1).double().numpy()
                lines.append({"preset": preset, "seed": seed, "updates": update})
                lines[-1] |= separability(z, rooms, episodes)
                kept.append(z)
            loss, _ = script.target_loss(snd, flat, experience, flags)
            script.descend(loss, optimizer)
        return lines, kept[0], kept[-1]

    lines, shown = [], {}
    args.work_dir.mkdir(parents=True, exist_ok=True)
    for seed in args.seeds:
        for preset in args.presets:
            path = args.work_dir / f"{preset}_seed{seed}_{args.updates}x{args.batch}_{args.steps}.npz"
            if not path.exists():
                mine, first, last = learn_rooms(preset, seed)
                np.savez_compressed(path.with_suffix(".tmp.npz"), lines=json.dumps(mine), first=first, last=last)
                path.with_suffix(".tmp.npz").rename(path)
            with np.load(path) as saved:
                lines += json.loads(str(saved["lines"]))
                if seed == args.seeds[0]:
                    shown |= {f"{preset}, random": saved["first"], f"{preset}, {args.updates} updates": saved["last"]}
            print(", ".join(f"{k} {v:.3f}" if isinstance(v, float) else f"{k} {v}" for k, v in lines[-1].items()))

    rounded = [{k: f"{v:.4f}" if isinstance(v, float) else v for k, v in line.items()} for line in lines]
    write_table(args.out.with_suffix(".csv"), rounded)
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.4), layout="constrained")
    titles = {
        "nearest": "nearest frame of another visit\nis of the same room",
        "between": "share of the variance\nbetween rooms",
        "dimensions": "dimensions of the features\n(participation ratio)",
    }
    for panel, (key, title) in zip(panels, titles.items(), strict=True):
        for k, preset in enumerate(args.presets):
            mine = [[line for line in lines if line["preset"] == preset and line["seed"] == s] for s in args.seeds]
            curves = [(np.array([x["updates"] for x in one]), np.array([x[key] for x in one])) for one in mine]
            draw_curves(panel, curves, f"C{k}", f"{preset} ({len(curves)} seeds)", every_seed=True)
        panel.set(title=title, xlabel="updates of the target (0: random)")
    panels[0].legend(frameon=False)
    figure.savefig(args.out.with_suffix(".png"), dpi=110)
    plot_embeddings(shown, rooms, episodes, args.seeds[0], args.out.with_name(args.out.name + "_embed.png"))


if __name__ == "__main__":
    main()
