"""Can ppo_rnd_atari.py solve in minutes, on a CPU, what it cannot solve without the bonus? A measurement and a figure.

    python benchmark/corridor.py --seeds 1 2 3 4 5 --out docs/results/corridor
    python benchmark/corridor.py --script my_bonus.py --out runs/my_bonus --int-coefs 1 -- --obs-norm frozen

The second line does so with a changed copy of the script; what stands after `--` are flags of that script.

The script itself plays a corridor instead of an Atari game: five rooms of six cells, each room with a
pattern of its own, shown as 84 x 84 frames through EnvPool's interface. Of six actions one goes right and one left. The
only reward, 1, is at the right end, 29 steps away; an episode is cut after 100 steps. A random agent gets there in one
episode of 1,328,721. With `--int-coef 0` the same script is plain PPO. OUT.csv gets the numbers, OUT.png the figure.
"""

import argparse
import collections
import importlib
import pathlib
import sys
import tempfile
import types

import matplotlib.pyplot as plt
import numpy as np
from plot import curve, draw_curves, from_folder, number_of
from sweep import read_table, write_table

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "ppo_rnd_atari.py"
ROOMS, CELLS, LIMIT = 5, 6, 100


class Corridor:
    """N corridors with the interface and the next-step reset of EnvPool's Atari games."""

    def __init__(self, num_envs: int):
        patterns = np.random.default_rng(0).integers(0, 160, (ROOMS, 12, 12)).astype(np.uint8)
        self.pictures = np.zeros((ROOMS * CELLS, 84, 84), np.uint8)  # one for each cell
        for cell in range(ROOMS * CELLS):
            self.pictures[cell] = patterns[cell // CELLS].repeat(7, axis=0).repeat(7, axis=1)
            left = 14 * (cell % CELLS)
            self.pictures[cell, 35:49, left : left + 14] = 255
        self.action_space = type("Space", (), {"n": 6})()
        self.cell, self.time = np.zeros(num_envs, int), np.zeros(num_envs, int)
        self.done = np.zeros(num_envs, bool)
        self.obs = np.zeros((num_envs, 4, 84, 84), np.uint8)

    def reset(self):
        self.obs[:] = self.pictures[0]
        return self.obs.copy(), {}

    def step(self, actions):
        reset = self.done
        move = (actions == 2).astype(int) - (actions == 3)
        self.cell = np.where(reset, 0, np.clip(self.cell + move, 0, ROOMS * CELLS - 1))
        self.time = np.where(reset, 0, self.time + 1)
        won = self.cell == ROOMS * CELLS - 1
        truncated = ~won & (self.time >= LIMIT)
        self.done = won | truncated
        self.obs[:, :3] = self.obs[:, 1:]
        self.obs[:, 3] = self.pictures[self.cell]
        self.obs[reset] = self.pictures[0]
        ram = np.zeros((len(self.cell), 128), np.uint8)
        ram[:, 3] = self.cell // CELLS
        return self.obs.copy(), won.astype(np.float32), won, truncated, {"ram": ram}


def train(
    seed: int, int_coef: float, steps: int, path: pathlib.Path = SCRIPT, flags: tuple[str, ...] = ()
) -> dict[str, list[tuple[int, float]]]:
    """Runs the script at `path` on corridors; returns its TensorBoard scalars."""
    sys.path.insert(0, str(path.resolve().parent))
    script: types.ModuleType = importlib.import_module(path.stem)
    script.envpool.make = lambda env_id, num_envs, **_: Corridor(num_envs)
    with tempfile.TemporaryDirectory() as folder:
        small = "--num-envs 16 --num-steps 64 --warmup-rollouts 5 --learning-rate 3e-4 --update-proportion 0.25"
        small += f" --seed {seed} --int-coef {int_coef} --total-timesteps {steps} --checkpoint-interval 1e6"
        if status := script.main([*small.split(), "--device", "cpu", "--runs-dir", folder, *flags]):
            sys.exit(status)
        run = from_folder(next(pathlib.Path(folder).iterdir()))
        return {tag: list(zip(*curve(run, tag, "steps"), strict=True)) for tag in run.scalars}


def draw(lines: list[dict], path: pathlib.Path) -> None:
    """The three scalars over steps, with the bonus and without: means over seeds and their 95 % intervals."""
    panels_of = {
        "charts/episodic_return": ("success", "share that reaches the end"),
        "rnd/rooms_visited": ("exploration", f"rooms visited, of {ROOMS}"),
        "rnd/intrinsic_reward": ("intrinsic reward", "mean of a step, normalised"),
    }
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for panel, (tag, (title, label)) in zip(panels, panels_of.items(), strict=True):
        for int_coef in dict.fromkeys(float(line["int_coef"]) for line in lines):
            curves = collections.defaultdict(list)
            for line in lines:
                if line["scalar"] == tag and float(line["int_coef"]) == int_coef:
                    curves[line["seed"]].append((float(line["step"]) / 1e3, float(line["value"])))
            color, name = ("C0", "with the bonus") if int_coef else ("C7", "without")
            label_of = f"{name} ({number_of(len(curves), 'seed')})"
            draw_curves(panel, [np.array(points).T for points in curves.values()], color, label_of)
        panel.set(title=title, ylabel=label, xlabel="thousand steps")
    panels[1].set_yticks(range(1, ROOMS + 1))
    panels[2].set_yscale("log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="path of the results, without its ending")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--steps", type=int, default=30_720)
    parser.add_argument("--int-coefs", type=float, nargs="+", default=[1.0, 0.0], help="0: without the bonus")
    parser.add_argument("--script", type=pathlib.Path, default=SCRIPT, help="ppo_rnd_atari.py or a changed copy of it")
    parser.add_argument("--redraw", action="store_true", help="run nothing; the figure from the CSV as it is")
    parser.add_argument("flags", nargs="*", help="after --: flags of the script")
    args = parser.parse_args()
    if args.redraw:
        draw(read_table(args.out.with_suffix(".csv")), args.out.with_suffix(".png"))
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    lines = []
    for int_coef in args.int_coefs:
        for seed in args.seeds:
            scalars = train(seed, int_coef, args.steps, args.script, args.flags)
            final = np.mean([value for _, value in scalars["charts/episodic_return"][-10:]])
            rooms = scalars["rnd/rooms_visited"][-1][1]
            print(f"int_coef {int_coef:g}, seed {seed}: success {final:.2f} in the end, {rooms:.0f} of {ROOMS} rooms")
            for tag in ("charts/episodic_return", "rnd/rooms_visited", "rnd/intrinsic_reward"):
                for step, value in scalars[tag]:
                    row = {"int_coef": int_coef, "seed": seed, "scalar": tag, "step": step, "value": f"{value:.6g}"}
                    lines.append(row)
    write_table(args.out.with_suffix(".csv"), lines)
    draw(lines, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
