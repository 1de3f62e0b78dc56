"""Can a script solve in minutes, on a CPU, what it cannot solve without the bonus? A measurement and a figure.

    python benchmark/corridor.py --seeds 1 2 3 4 5 --out docs/results/corridor
    python benchmark/corridor.py --script dqn_rnd_atari.py --mixed --out docs/results/corridor_dqn
    python benchmark/corridor.py --script my_bonus.py --out runs/my_bonus --rows "with the bonus" -- --obs-norm frozen

The first line does so with ppo_rnd_atari.py, the last with a changed copy of it; what stands after `--` are flags of
that script.

The script itself plays a corridor instead of an Atari game: five rooms of six cells, each room with a
pattern of its own, shown as pictures through EnvPool's interface. Of six actions one goes right and one left. The
only reward, 1, is at the right end, 29 steps away; an episode is cut after 100 steps. A random agent gets there in one
episode of 1,328,721. The console's memory, for scripts that read it, has a byte for each cell. With --mixed it differs
from cell to cell which action goes right: an agent that prefers one of them everywhere, by chance, gets nowhere.
Runs that are in the CSV are not repeated. OUT.csv gets the numbers, OUT.png the figure.
"""

import argparse
import collections
import functools
import importlib
import pathlib
import sys
import tempfile
import types

import cv2
import matplotlib.pyplot as plt
import numpy as np
from dqn import BONUSES
from plot import curve, draw_curves, from_folder, number_of, stem
from sweep import ROOT, read_table, spread, write_table

ROOMS, CELLS, LIMIT = 5, 6, 100
WITHOUT = {"without": "--int-coef 0"}
SMALL = "--num-envs 16 --num-steps 64 --learning-rate 3e-4"
PPO = f"{SMALL} --warmup-rollouts 5 --update-proportion 0.25 --total-timesteps 30720"
DQN = "--obs ram --learning-rate 3e-4 --learning-starts 2000 --epsilon-steps 10000 --epsilon-final 0.1"
DQN += " --target-every 1000 --total-timesteps 100000"
SND = f"{SMALL} --num-minibatches 4 --bf16 --total-timesteps 46080"
SETTINGS = {  # script -> flags of all its runs, and of each row; a copy under another name has those of the first
    "ppo_rnd_atari": (PPO, {"with the bonus": ""} | WITHOUT),
    "ppo_rnd_atari_ram": (f"{PPO} --num-minibatches 4", {"with the bonus": ""} | WITHOUT),
    "dqn_rnd_atari": (DQN, BONUSES | {"recomputed, Adam's epsilon 1.5e-4": "--adam-eps 1.5e-4"}),
    "snd_atari": (SND, {"SND": "", "a random target": "--target-loss none"} | WITHOUT),
}


class Corridor:
    """N corridors with the interface and the next-step reset of EnvPool's Atari games."""

    def __init__(
        self,
        env_id: str,
        num_envs: int,
        img_height: int = 84,
        img_width: int = 84,
        stack_num: int = 4,
        mixed: bool = False,
        **_,
    ):
        self.right, self.left = np.full(ROOMS * CELLS, 2), np.full(ROOMS * CELLS, 3)  # which action, in each cell
        if mixed:
            actions = np.tile(np.arange(6), (ROOMS * CELLS, 1))
            self.right, self.left = np.random.default_rng(0).permuted(actions, axis=1)[:, :2].T
        patterns = np.random.default_rng(0).integers(0, 160, (ROOMS, 12, 12)).astype(np.uint8)
        self.pictures = np.zeros((ROOMS * CELLS, img_height, img_width), np.uint8)  # one for each cell
        for cell in range(ROOMS * CELLS):
            picture = patterns[cell // CELLS].repeat(7, axis=0).repeat(7, axis=1)
            left = 14 * (cell % CELLS)
            picture[35:49, left : left + 14] = 255
            self.pictures[cell] = cv2.resize(picture, (img_width, img_height), interpolation=cv2.INTER_AREA)
        self.action_space = type("Space", (), {"n": 6})()
        self.cell, self.time = np.zeros(num_envs, int), np.zeros(num_envs, int)
        self.done = np.zeros(num_envs, bool)
        self.obs = np.zeros((num_envs, stack_num, img_height, img_width), np.uint8)

    def memory(self) -> dict:
        """The console's memory (N, 128), as far as scripts look at it."""
        ram = np.zeros((len(self.cell), 128), np.uint8)
        ram[:, 3] = self.cell // CELLS
        ram[np.arange(len(ram)), 64 + self.cell] = 255
        return {"ram": ram}

    def reset(self):
        self.obs[:] = self.pictures[0]
        return self.obs.copy(), self.memory()

    def step(self, actions):
        reset = self.done
        move = (actions == self.right[self.cell]).astype(int) - (actions == self.left[self.cell])
        self.cell = np.where(reset, 0, np.clip(self.cell + move, 0, ROOMS * CELLS - 1))
        self.time = np.where(reset, 0, self.time + 1)
        won = self.cell == ROOMS * CELLS - 1
        truncated = ~won & (self.time >= LIMIT)
        self.done = won | truncated
        self.obs[:, :-1] = self.obs[:, 1:]
        self.obs[:, -1] = self.pictures[self.cell]
        self.obs[reset] = self.pictures[0]
        return self.obs.copy(), won.astype(np.float32), won, truncated, self.memory()


def train(path: pathlib.Path, seed: int, flags: list[str], mixed: bool = False) -> dict[str, list[tuple[int, float]]]:
    """Runs the script at `path` on corridors; returns its TensorBoard scalars."""
    sys.path.insert(0, str(path.resolve().parent))
    script: types.ModuleType = importlib.import_module(path.stem)
    script.envpool.make = functools.partial(Corridor, mixed=mixed)
    # as if it were Montezuma's Revenge, whose memory has the room in the same place
    flags = ["--env-id", "MontezumaRevenge", "--device", "cpu", "--checkpoint-interval", "1e6", *flags]
    with tempfile.TemporaryDirectory() as folder:
        if status := script.main([*flags, "--seed", str(seed), "--runs-dir", folder]):
            sys.exit(status)
        run = from_folder(next(pathlib.Path(folder).iterdir()))
        return {tag: list(zip(*curve(run, tag, "steps"), strict=True)) for tag in run.scalars}


def print_table(lines: list[dict]) -> None:
    """For docs/results, in Markdown: each row's seeds, lowest / median / highest."""
    print(
        "| row | seeds | end first reached, thousand steps | success in the last tenth | rooms |\n|---|---|---|---|---|"
    )
    for row in dict.fromkeys(line["row"] for line in lines):
        found = collections.defaultdict(lambda: collections.defaultdict(list))  # scalar -> seed -> [(step, value)]
        for line in lines:
            if line["row"] == row:
                found[line["scalar"]][line["seed"]].append((float(line["step"]), float(line["value"])))
        returns = [np.array(points) for points in found["charts/episodic_return"].values()]  # (K, 2) each
        reached = [x[x[:, 1] > 0][0, 0] for x in returns if (x[:, 1] > 0).any()]
        success = [x[x[:, 0] > 0.9 * x[-1, 0], 1].mean() for x in returns]
        rooms = [points[-1][1] for points in found["rnd/rooms_visited"].values()]
        cells = [f"{len(reached)} of {len(returns)}: {spread(reached, '.0f', 1e3, 'never')}", spread(success, ".2f")]
        print(f"| {row} | {len(returns)} | {' | '.join(cells)} | {spread(rooms, '.0f')} |")


def draw(lines: list[dict], path: pathlib.Path) -> None:
    """Three scalars over steps, a colour for each row: means over seeds and their 95 % intervals."""
    panels_of = {
        "charts/episodic_return": ("success", "share that reaches the end"),
        "rnd/rooms_visited": ("exploration", f"rooms visited, of {ROOMS}"),
        "rnd/intrinsic_reward": ("intrinsic reward", "mean of a step, as paid"),
    }
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    rows = dict.fromkeys(line["row"] for line in lines)
    for panel, (tag, (title, label)) in zip(panels, panels_of.items(), strict=True):
        for k, row in enumerate(rows):
            curves = collections.defaultdict(list)
            for line in lines:
                if line["scalar"] == tag and line["row"] == row:
                    curves[line["seed"]].append((float(line["step"]) / 1e3, float(line["value"])))
            color = "C7" if WITHOUT.keys() & {row} or row == "no bonus" else f"C{k}"
            label_of = f"{row} ({number_of(len(curves), 'seed')})"
            draw_curves(panel, [np.array(points).T for points in curves.values()], color, label_of)
        for interval in panel.collections if len(rows) > 3 else ():
            interval.set_alpha(0.06)  # or many of them hide each other
        panel.set(title=title, ylabel=label, xlabel="thousand steps")
    panels[1].set_yticks(range(1, ROOMS + 1))
    panels[2].set_yscale("log")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=4, frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=stem, help="path of the results, without its ending")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--rows", nargs="+", help="which rows to run; otherwise all")
    parser.add_argument(
        "--script", type=pathlib.Path, default=ROOT / "ppo_rnd_atari.py", help="or a changed copy of it"
    )
    parser.add_argument("--mixed", action="store_true", help="which action goes right differs from cell to cell")
    parser.add_argument("--redraw", action="store_true", help="run nothing; figure and table from the CSV as it is")
    parser.add_argument("flags", nargs="*", help="after --: flags of the script")
    args = parser.parse_args()
    flags, rows = SETTINGS.get(args.script.stem, SETTINGS["ppo_rnd_atari"])
    if unknown := set(args.rows or ()) - rows.keys():
        parser.error(f"--rows {', '.join(unknown)}: {args.script.name} has {', '.join(rows)}")
    table = args.out.with_suffix(".csv")
    lines = read_table(table)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    for row in () if args.redraw else args.rows or rows:
        for seed in args.seeds:
            if any(line["row"] == row and line["seed"] == str(seed) for line in lines):
                continue
            scalars = train(args.script, seed, [*f"{flags} {rows[row]}".split(), *args.flags], args.mixed)
            final = np.mean([value for _, value in scalars["charts/episodic_return"][-10:]])
            rooms = scalars["rnd/rooms_visited"][-1][1]
            print(f"{row}, seed {seed}: success {final:.2f} in the end, {rooms:.0f} of {ROOMS} rooms")
            for tag in ("charts/episodic_return", "rnd/rooms_visited", "rnd/intrinsic_reward"):
                for step, value in scalars[tag]:
                    line = {"row": row, "seed": str(seed), "scalar": tag, "step": step, "value": f"{value:.6g}"}
                    lines.append(line)
            write_table(table, lines)
    print_table(lines)
    draw(lines, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
