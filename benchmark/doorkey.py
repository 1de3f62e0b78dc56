"""DoorKey's table and figure: every size with and without the bonus, in the notebook's settings and in the tuned ones.

    python benchmark/doorkey.py --out docs/results/doorkey --jobs 2

Each run is `python a2c_rnd_doorkey.py` with the flags of its row, as a process of its own on one thread. Runs that are
already in the CSV are not repeated, so this can be stopped and started again; a run that was stopped goes on from its
checkpoint. Writes <out>.csv (a line for each run), the figure <out>_curves.png, and prints the table.
"""

import argparse
import concurrent.futures
import csv
import os
import pathlib
import re
import subprocess
import sys

import matplotlib
import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = pathlib.Path(__file__).resolve().parents[1]

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from plot import draw_curves  # noqa: E402

NO_BONUS, TUNED, TUNED_16 = ["--int-coef", "0"], ["--preset", "tuned"], ["--preset", "tuned-16x16"]
ROWS = {  # name -> (flags, how many seeds)
    "5x5 notebook, RND": (["--env-id", "DoorKey-5x5", "--total-timesteps", "2e6"], 5),
    "5x5 notebook, A2C": (["--env-id", "DoorKey-5x5", "--total-timesteps", "2e6", *NO_BONUS], 5),
    "8x8 notebook, RND": (["--env-id", "DoorKey-8x8", "--total-timesteps", "6e6"], 5),
    "8x8 notebook, A2C": (["--env-id", "DoorKey-8x8", "--total-timesteps", "6e6", *NO_BONUS], 5),
    "5x5 tuned, RND": (["--env-id", "DoorKey-5x5", *TUNED, "--total-timesteps", "2e6"], 5),
    "5x5 tuned, A2C": (["--env-id", "DoorKey-5x5", *TUNED, *NO_BONUS, "--total-timesteps", "2e6"], 5),
    "8x8 tuned, RND": (["--env-id", "DoorKey-8x8", *TUNED, "--total-timesteps", "3e6"], 5),
    "16x16 tuned, RND": (["--env-id", "DoorKey-16x16", *TUNED_16, "--total-timesteps", "6e6"], 3),
    "16x16 tuned, A2C": (["--env-id", "DoorKey-16x16", *TUNED_16, *NO_BONUS, "--total-timesteps", "20e6"], 3),
    "8x8 tuned, A2C": (["--env-id", "DoorKey-8x8", *TUNED, *NO_BONUS, "--total-timesteps", "3e6"], 5),
    "16x16 notebook, RND": (
        ["--env-id", "DoorKey-16x16", "--preset", "notebook-16x16", "--total-timesteps", "30e6"],
        1,
    ),
}
WITHOUT = [  # what each part of the tuned preset is worth
    *("--no-first-visit", "--no-one-hot", "--no-orthogonal", "--no-norm-adv", "--no-int-norm", "--no-same-obs"),
    *("--obs-norm", "--predictor-learning-rate 1e-4", "--ent-coef 0.01", "--no-int-episodic"),
]
ROWS |= {
    f"8x8 tuned, {flag}": (["--env-id", "DoorKey-8x8", *TUNED, *flag.split(), "--total-timesteps", "1.5e6"], 3)
    for flag in WITHOUT
}
COLUMNS = ["row", "seed", "frames_91", "frames_95", "frames", "score", "evaluation", "error", "seconds", "curve"]


def run(row: str, seed: int, runs_dir: pathlib.Path) -> dict:
    """One run, to its line of the CSV."""
    flags, _ = ROWS[row]
    folder = runs_dir / f"{row} {seed}".replace(",", "").replace(" ", "_")
    script, environment = [sys.executable, str(ROOT / "a2c_rnd_doorkey.py")], os.environ | {"OMP_NUM_THREADS": "1"}
    begun = [*folder.glob("*/latest.pt")]
    recent = torch.load(begun[0], weights_only=True)["recent"] if begun else []
    if len(recent) < 100 or np.mean(recent) <= 0.95:  # not solved yet
        command = ["--resume", str(begun[0])] if begun else [*flags, "--seed", str(seed), "--runs-dir", str(folder)]
        done = subprocess.run([*script, *command], capture_output=True, text=True, env=environment)
        if done.returncode and "has all of its" not in done.stderr:
            raise RuntimeError(f"{row}, seed {seed}: {done.stderr}")
    return collect(row, seed, folder)


def collect(row: str, seed: int, folder: pathlib.Path) -> dict:
    """The line of the CSV for the run in a folder, as far as it is."""
    script, environment = [sys.executable, str(ROOT / "a2c_rnd_doorkey.py")], os.environ | {"OMP_NUM_THREADS": "1"}
    (path,) = folder.glob("*/latest.pt")
    state = torch.load(path, weights_only=True)
    events = EventAccumulator(str(path.parent), size_guidance={"scalars": 0})
    events.Reload()
    curve = [(e.step, e.value) for e in events.Scalars("charts/score")]
    first = {level: next((step for step, score in curve if score > level), "") for level in (0.91, 0.95)}
    evaluation = ["", ""]
    if first[0.95]:  # the last agent, 100 fresh episodes in the minigrid package
        command = [*script, "--evaluate", str(path), "--eval-episodes", "100", "--seed", "1000"]
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        evaluation = re.search(r"return (\S+) \+- (\S+)", output).groups()
    marks = sorted({round(k) for k in np.linspace(0, len(curve) - 1, 100)})
    return {
        "row": row,
        "seed": seed,
        "frames_91": first[0.91],
        "frames_95": first[0.95],
        "frames": curve[-1][0],
        "score": round(curve[-1][1], 4),
        "evaluation": evaluation[0],
        "error": evaluation[1],
        "seconds": round(state["seconds"]),
        "curve": " ".join(f"{curve[k][0]}:{curve[k][1]:.3f}" for k in marks),
    }


def read(path: pathlib.Path) -> list[dict]:
    """The lines of the CSV, if there is one."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


NOTEBOOK = {  # the notebook's own runs, one each: frames in millions and scores, from the outputs in its repository
    ("5x5", "RND"): [(0.051, 0.16), (0.154, 0.47), (0.205, 0.73), (0.307, 0.89), (0.358, 0.923)],
    ("5x5", "A2C"): [(0.051, 0.05), (0.154, 0.18), (0.256, 0.59), (0.358, 0.82), (0.461, 0.88), (0.563, 0.910)],
    ("8x8", "RND"): [(0.5, 0.08), (1.2, 0.20), (1.3, 0.34), (1.5, 0.57), (1.7, 0.82), (2.0, 0.92), (2.15, 0.954)],
    ("8x8", "A2C"): [(1.2, 0.02), (2.2, 0.04), (3.1, 0.09), (3.4, 0.19), (3.8, 0.62), (4.0, 0.91), (4.1, 0.917)],
    ("16x16", "RND"): [(75, 0.08), (75.9, 0.16), (77.4, 0.54), (78.5, 0.77), (80.0, 0.92), (81.07, 0.954)],
}


def draw(runs: list[dict], path: pathlib.Path) -> None:
    """Score against frames, mean and 95 % interval, a panel for each size; dashed, the notebook's own runs."""
    colors = {"notebook, RND": "C0", "notebook, A2C": "C1", "tuned, RND": "C2", "tuned, A2C": "C3"}
    handles: dict[str, plt.Artist] = {}
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.6), sharey=True, layout="constrained")
    for panel, size in zip(panels, ("5x5", "8x8", "16x16"), strict=True):
        for name, color in colors.items():
            mine = [r["curve"].split() for r in runs if r["row"] == f"{size} {name}"]
            curves = [np.array([[float(x) for x in point.split(":")] for point in points]).T for points in mine]
            draw_curves(panel, [(steps / 1e6, scores) for steps, scores in curves], color, name)
        for name, color in (("RND", "C0"), ("A2C", "C1")):
            if points := NOTEBOOK.get((size, name)):
                panel.plot(*zip(*points, strict=True), "--", color=color, label=f"the notebook's run, {name}")
        panel.axhline(0.95, color="0.8", linewidth=0.8, zorder=0)
        panel.set(title=f"DoorKey-{size}", xlabel="million frames", ylim=(-0.03, 1.03))
        panel.spines[["top", "right"]].set_visible(False)
        handles |= dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))
    panels[2].set(xscale="log", xlim=(0.2, 100))  # before that, there are few episodes, those that were short
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=6, fontsize=8, frameon=False)
    panels[0].set_ylabel("mean return, last 100 episodes")
    figure.savefig(path, dpi=120)


def print_table(runs: list[dict]) -> None:
    """The table of docs/results, in Markdown: lowest / median / highest."""

    def spread(column: str, form: str) -> str:
        values = [float(r[column]) for r in mine if r[column] != ""]
        if not values:
            return "never" if column.startswith("frames") else ""
        values = [
            min(values),
            *([np.median(values)] if len(values) > 1 else []),
            *([max(values)] if len(values) > 1 else []),
        ]
        text = " / ".join(format(x, form) for x in values)
        known = sum(r[column] != "" for r in mine)
        return text if known == len(mine) else f"{text} ({known} of {len(mine)})"

    print("| row | flags | > 0.91, million frames | > 0.95, million frames | score in the end | evaluation |")
    print("|---|---|---|---|---|---|")
    for row, (flags, _) in ROWS.items():
        mine = [dict(r) for r in runs if r["row"] == row]
        for r in mine:
            for column in ("frames_91", "frames_95"):
                r[column] = float(r[column]) / 1e6 if r[column] else ""
        if mine:
            cells = [spread("frames_91", ".2f"), spread("frames_95", ".2f"), spread("score", ".3f")]
            cells.append(spread("evaluation", ".3f"))
            print(f"| {row} ({len(mine)}) | `{' '.join(flags)}` | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="path of the results, without its ending")
    parser.add_argument("--runs-dir", type=pathlib.Path, default="runs/doorkey", help="where the runs are kept")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="which rows to run")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    path = args.out.with_suffix(".csv")
    runs = read(path)
    done = {(r["row"], int(r["seed"])) for r in runs}
    todo = [(row, seed) for row in args.rows for seed in range(1, ROWS[row][1] + 1) if (row, seed) not in done]
    with open(path, "a", newline="") as file, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        writer = csv.DictWriter(file, COLUMNS)
        if not runs:
            writer.writeheader()
        jobs = [pool.submit(run, *job, args.runs_dir) for job in todo]
        for k, future in enumerate(concurrent.futures.as_completed(jobs), 1):
            line = future.result()
            writer.writerow(line)
            file.flush()
            solved = line["frames_95"] or "never"
            print(
                f"{k}/{len(todo)} {line['row']}, seed {line['seed']}: 0.95 at {solved}, score {line['score']}",
                flush=True,
            )
    draw(read(path), path.with_name(path.stem + "_curves.png"))
    print_table(read(path))


if __name__ == "__main__":
    main()
