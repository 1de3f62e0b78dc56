"""MiniGrid's tables and figures: every environment with the default bonus, with RND alone, and with none.

    python benchmark/minigrid_runs.py --out docs/results/minigrid --jobs 2
    python benchmark/minigrid_runs.py --out docs/results/minigrid_ablations --set ablations --jobs 2

Each run is `python ppo_rnd_minigrid.py` with the flags of its row, as a process of its own on one thread; it stops when
the mean return of its last 100 episodes is above the row's score. Runs that are already in the CSV are not repeated, so
this can be stopped and started again; a run that was stopped goes on from its checkpoint. Writes <out>.csv (a line for
each run), the figure <out>_curves.png or, of the ablations, <out>.png, and prints the table; of
the ablations also how surely a change differs from the default.
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
SCRIPT = ROOT / "ppo_rnd_minigrid.py"

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from plot import draw_curves  # noqa: E402
from scipy.stats import mannwhitneyu  # noqa: E402


def multiroom(rooms: int, size: int) -> str:
    """Flags of the literature's MultiRoom-N<rooms>-S<size>: 20 steps a room."""
    kwargs = f"min_num_rooms={rooms},max_num_rooms={rooms},max_room_size={size},max_episode_steps={20 * rooms}"
    return f"--env-id MultiRoom-N6 --env-kwargs {kwargs}"


ENVIRONMENTS = {  # name -> (flags, score, frames with the bonus, seeds, frames without it and with RND alone)
    "DoorKey-8x8": ("--env-id DoorKey-8x8", 0.95, 2e6, 5, 2e6),
    "DoorKey-16x16": ("--env-id DoorKey-16x16", 0.95, 3e6, 5, 3e6),
    "KeyCorridorS3R3": ("--env-id KeyCorridorS3R3", 0.86, 2e6, 5, 2e6),
    "KeyCorridorS4R3": ("--env-id KeyCorridorS4R3", 0.85, 10e6, 5, 5e6),
    "MultiRoom-N7-S8": (multiroom(7, 8), 0.65, 3e6, 5, 2e6),
    "MultiRoom-N10-S10": (multiroom(10, 10), 0.55, 3e6, 5, 0),
    "ObstructedMaze-2Dlh": ("--env-id ObstructedMaze-2Dlh", 0.90, 15e6, 3, 0),
    "KeyCorridorS5R3": ("--env-id KeyCorridorS5R3", 0.85, 20e6, 1, 0),
    "KeyCorridorS6R3": ("--env-id KeyCorridorS6R3", 0.85, 20e6, 1, 0),
    "ObstructedMaze-Full": ("--env-id ObstructedMaze-Full-v1", 0.90, 20e6, 1, 0),
}
VARIANTS = {"default": "", "RND alone": "--episodic-bonus none", "PPO": "--int-coef 0"}
ROWS = {}  # set -> row -> (flags, seeds)
ROWS["main"] = {
    f"{name}, {variant}": (f"{flags} --solved-score {score} --total-timesteps {frames:.0f} {extra}".split(), seeds)
    for variant, extra in VARIANTS.items()
    for name, (flags, score, own, seeds, other) in ENVIRONMENTS.items()
    if (frames := own if variant == "default" else other)
}
CLAIMS = [  # what the paper and the documents that this grew from say of these: five seeds
    *("--int-episodic", "--single-head", "--no-int-norm", "--update-proportion 0.25", "--int-gamma 0.999"),
    *("--gamma 0.99", "--gamma 0.999"),
]
CHANGES = [  # what each part is worth
    *("--novelty count", "--novelty noveld", "--novelty none", "--episodic-bonus sqrt-count", "--int-episodic"),
    *("--no-int-norm", "--single-head", "--obs-norm none", "--update-proportion 0.25", "--int-gamma 0.999"),
    *("--gamma 0.99", "--gamma 0.999", "--rnd-obs planes", "--policy-obs codes", "--ext-coef 2", "--ent-coef 0.01"),
    *("--obs-norm frozen --int-clip 1", "--norm-adv", "--no-bootstrap-truncated"),
]
CHANGES_ELSEWHERE = {  # where another environment says more
    "DoorKey-16x16": ("--norm-adv", "--ent-coef 0.01", "--policy-obs codes"),
    "MultiRoom-N7-S8": ("--ext-coef 2",),
}
ROWS["ablations"] = {
    f"{name}, {change}": (
        f"{ENVIRONMENTS[name][0]} --solved-score {ENVIRONMENTS[name][1]} --total-timesteps 2000000 {change}".split(),
        5 if change in CLAIMS and name == "KeyCorridorS3R3" else 3,
    )
    for name, changes in ({"KeyCorridorS3R3": CHANGES} | CHANGES_ELSEWHERE).items()
    for change in changes
}
COLUMNS = ["row", "seed", "solved_at", "frames", "score", "success", "evaluation", "error", "seconds", "curve"]


def run(row: str, flags: list[str], seed: int, runs_dir: pathlib.Path) -> dict:
    """One run, to its line of the CSV."""
    folder = runs_dir / re.sub(r"[^\w.-]+", "_", f"{row} {seed}")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    begun = [*folder.glob("*/latest.pt")]
    level = float(flags[flags.index("--solved-score") + 1])
    recent = torch.load(begun[0], weights_only=True)["recent"] if begun else []
    if len(recent) < 100 or np.mean(recent) <= level:  # not solved yet
        command = ["--resume", str(begun[0])] if begun else [*flags, "--seed", str(seed), "--runs-dir", str(folder)]
        words = [sys.executable, str(SCRIPT), *command]
        done = subprocess.run(words, capture_output=True, text=True, env=environment)
        if done.returncode and "has all of its" not in done.stderr:
            raise RuntimeError(f"{row}, seed {seed}: {done.stderr}")
    return collect(row, level, seed, folder)


def collect(row: str, level: float, seed: int, folder: pathlib.Path) -> dict:
    """The line of the CSV for the run in a folder, as far as it is."""
    (path,) = folder.glob("*/latest.pt")
    state = torch.load(path, weights_only=True)
    events = EventAccumulator(str(path.parent), size_guidance={"scalars": 0})
    events.Reload()
    tags = events.Tags()["scalars"]
    curve = [(e.step, e.value) for e in events.Scalars("charts/score")] if "charts/score" in tags else []
    solved_at = next((step for step, score in curve if score > level), "")
    recent, evaluation = np.array(state["recent"]), ["", ""]
    if solved_at:  # the last agent, 100 fresh episodes in the minigrid package
        command = [sys.executable, str(SCRIPT), "--evaluate", str(path), "--eval-episodes", "100", "--seed", "1000"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout
        evaluation = re.search(r"return (\S+) \+- (\S+)", output).groups()
    marks = sorted({round(k) for k in np.linspace(0, len(curve) - 1, 100)}) if curve else []
    return {
        "row": row,
        "seed": seed,
        "solved_at": solved_at,
        "frames": state["iteration"] * state["args"]["num_envs"] * state["args"]["num_steps"],
        "score": f"{recent.mean():.4f}" if len(recent) else "",
        "success": f"{(recent > 0).mean():.2f}" if len(recent) else "",
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


def draw(runs: list[dict], path: pathlib.Path) -> None:
    """Score against frames, mean and 95 % interval over seeds, a panel for each environment."""
    names = [name for name in ENVIRONMENTS if any(r["row"].startswith(f"{name},") for r in runs)]
    columns = min(5, len(names))
    rows = -(-len(names) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(3.1 * columns, 2.7 * rows), squeeze=False, sharey=True)
    for panel in panels.flat[len(names) :]:
        panel.set_visible(False)
    handles: dict[str, plt.Artist] = {}
    variants = list(dict.fromkeys([*VARIANTS, *(r["row"].split(", ", 1)[1] for r in runs)]))
    for panel, name in zip(panels.flat, names, strict=False):
        mine = [r for r in runs if r["row"].startswith(f"{name},")]
        for k, variant in enumerate(variants):
            points = [r["curve"].split() for r in mine if r["row"] == f"{name}, {variant}" and r["curve"]]
            curves = [np.array([[float(x) for x in point.split(":")] for point in one]).T for one in points]
            draw_curves(panel, [(steps / 1e6, scores) for steps, scores in curves], f"C{k}", variant)
        panel.axhline(ENVIRONMENTS[name][1], color="0.8", linewidth=0.8, zorder=0)
        panel.set(title=name, xlabel="million frames", ylim=(-0.03, 1.03))
        panel.set_xlim(left=0)
        panel.spines[["top", "right"]].set_visible(False)
        handles |= dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))
    for panel in panels[:, 0]:
        panel.set_ylabel("mean return, last 100 episodes")
    figure.tight_layout(rect=(0, 0, 1, 0.94))
    figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=8, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def draw_changes(runs: list[dict], path: pathlib.Path) -> None:
    """Frames to the score for each change, a dot for every seed, their number in brackets; a cross: not by then."""
    names = [name for name in ENVIRONMENTS if any(r["row"].startswith(f"{name}, --") for r in runs)]
    rows = [list(dict.fromkeys(r["row"] for r in runs if r["row"].startswith(f"{name}, "))) for name in names]
    figure, panels = plt.subplots(
        *(len(names), 1), figsize=(8, 0.9 + 0.27 * sum(map(len, rows)) + 0.6 * len(names)), squeeze=False,
        gridspec_kw={"height_ratios": [len(x) + 1 for x in rows]},
    )  # fmt: skip
    for panel, name, mine in zip(panels[:, 0], names, rows, strict=True):
        mine.sort(key=lambda row: not row.endswith(", default"))  # the default first
        for k, row in enumerate(mine):
            for r in (r for r in runs if r["row"] == row):
                marker = "o" if r["solved_at"] else "x"
                panel.plot(float(r["solved_at"] or r["frames"]) / 1e6, k, marker, color=f"C{int(k > 0)}", alpha=0.8)
        seeds = [sum(r["row"] == row for r in runs) for row in mine]
        labels = [f"{row.split(', ', 1)[1]} ({n})" for row, n in zip(mine, seeds, strict=True)]
        panel.set_yticks(range(len(mine)), labels, fontsize=8)
        panel.set(
            ylim=(len(mine) - 0.4, -0.6), title=f"{name}: million frames to {ENVIRONMENTS[name][1]}; x: not by then"
        )
        panel.set_xlim(left=0)
        panel.grid(axis="x", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def print_table(runs: list[dict], rows: dict) -> None:
    """The table of docs/results, in Markdown: lowest / median / highest."""

    def spread(values: list[float], form: str) -> str:
        if len(values) < 2:
            return format(values[0], form) if values else ""
        return " / ".join(format(x, form) for x in (min(values), float(np.median(values)), max(values)))

    print(
        "| environment, variant | flags | solved | million frames to it | million frames played | score in the end |",
        end="",
    )
    print(" evaluation | minutes |\n|---|---|---|---|---|---|---|---|")
    for row, (flags, _) in rows.items():
        mine = [r for r in runs if r["row"] == row]
        if mine:
            solved = [float(r["solved_at"]) / 1e6 for r in mine if r["solved_at"]]
            cells = [f"{len(solved)} of {len(mine)}", spread(solved, ".2f") or "never"]
            cells.append(spread([float(r["frames"]) / 1e6 for r in mine], ".2f"))
            cells.append(spread([float(r["score"] or "nan") for r in mine], ".3f"))
            cells.append(spread([float(r["evaluation"]) for r in mine if r["evaluation"]], ".3f"))
            cells.append(spread([float(r["seconds"]) / 60 for r in mine], ".1f"))
            print(f"| {row} | `{' '.join(flags)}` | {' | '.join(cells)} |")


def print_tests(runs: list[dict], default: list[dict]) -> None:
    """Mann-Whitney's test of frames to the score, each change with five seeds against the default's; never: last."""

    def frames(lines: list[dict], row: str) -> list[float]:
        return [float(r["solved_at"] or "inf") for r in lines if r["row"] == row]

    for row in dict.fromkeys(r["row"] for r in runs):
        ours, theirs = frames(runs, row), frames(default, f"{row.split(', ')[0]}, default")
        if len(ours) >= 5:
            print(f"{row}: p = {mannwhitneyu(ours, theirs).pvalue:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, required=True, help="path of the results, without its ending")
    parser.add_argument("--set", choices=ROWS, default="main", help="which table")
    parser.add_argument("--runs-dir", type=pathlib.Path, default="runs/minigrid", help="where the runs are kept")
    parser.add_argument("--rows", nargs="+", help="which rows to run, by the beginning of their names; otherwise all")
    parser.add_argument("--seeds", type=int, nargs="+", help="which seeds to run; otherwise all")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    rows, path = ROWS[args.set], args.out.with_suffix(".csv")
    done = {(r["row"], int(r["seed"])) for r in read(path)}
    todo = [(row, seed) for row, (_, seeds) in rows.items() for seed in range(1, seeds + 1) if (row, seed) not in done]
    todo = [(row, seed) for row, seed in todo if not args.rows or any(row.startswith(x) for x in args.rows)]
    todo = [(row, seed) for row, seed in todo if not args.seeds or seed in args.seeds]
    with open(path, "a", newline="") as file, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        jobs = [pool.submit(run, row, rows[row][0], seed, args.runs_dir) for row, seed in todo]
        for k, future in enumerate(concurrent.futures.as_completed(jobs), 1):
            line = future.result()
            writer.writerow(line)
            file.flush()
            solved = f"{int(line['solved_at']):,}" if line["solved_at"] else "never"
            print(
                f"{k}/{len(todo)} {line['row']}, seed {line['seed']}: solved at {solved}, score {line['score']}",
                flush=True,
            )
    runs = read(path)
    if args.set == "main":
        draw(runs, path.with_name(path.stem + "_curves.png"))
    else:  # beside the default, from the main table
        default = [r for r in read(path.with_name("minigrid.csv")) if r["row"].endswith(", default")]
        draw_changes(default + runs, path.with_name(path.stem + ".png"))
    print_table(runs, rows)
    if args.set == "ablations":
        print_tests(runs, default)


if __name__ == "__main__":
    main()
