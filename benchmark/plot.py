"""From runs to a figure: the mean over seeds with its bootstrap 95 % interval, of any scalar, over steps or hours.

    python benchmark/plot.py runs/A runs/B --scalars charts/episodic_return rnd/rooms_visited --out docs/results/name
    python benchmark/plot.py docs/results/sweep.csv --scalars charts/episodic_return --x hours --out docs/results/name

Takes folders of runs, and CSV files that this program or benchmark/sweep.py has written. Runs that differ in the seed
alone make one curve, which is named after the flags in which it differs from the others. From folders it writes OUT.csv
too, with all their scalars, so that the figure can be drawn again.
"""

import argparse
import collections
import csv
import dataclasses
import pathlib
import re

import matplotlib
import numpy as np
from scipy.stats import bootstrap
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator

plt.rc("axes.spines", top=False, right=False)

COLUMNS = ["run", "setting", "seed", "step", "hours"]  # of a CSV, before its scalars
NOT_A_SETTING = {
    *("seed", "runs_dir", "resume", "evaluate", "device", "checkpoint_interval", "track", "plot"),
    *("capture_video", "eval_episodes", "commit", "python", "torch", "envpool", "gymnasium", "numpy", "minigrid"),
}
NAME = re.compile(r"(?P<env>.+)__(?P<script>.+)__(?P<seed>\d+)__(?P<time>[\d_-]{15,})")
NAMES = {  # scalar -> title and y axis of its panel
    "charts/episodic_return": ("return of an episode", "mean return"),
    "charts/episodic_length": ("length of an episode", "steps"),
    "charts/score": ("score", "mean return, last 100 episodes"),
    "charts/success_rate": ("success", "share of episodes"),
    "charts/SPS": ("speed", "environment steps per second"),
    "rnd/rooms_visited": ("rooms visited in the whole run", "rooms"),
    "rnd/rooms_best_episode": ("rooms visited in one episode, at most", "rooms"),
    "rnd/cells_visited": ("cells visited", "cells"),
    "rnd/intrinsic_reward": ("intrinsic reward", "mean of a step"),
    "rnd/intrinsic_return_std": ("what the intrinsic reward is divided by", "std of its return"),
    "losses/predictor_loss": ("loss of the predictor", "mean squared error"),
    "losses/target_loss": ("loss of the target", "loss"),
    "losses/magnitude": ("features of the target", "magnitude"),
    "losses/entropy": ("entropy of the policy", "nats"),
    "losses/approx_kl": ("change of the policy in an update", "KL divergence, nats"),
    "losses/clipfrac": ("clipped samples", "share"),
    "losses/explained_variance_int": ("variance explained by the intrinsic values", "share"),
    "losses/explained_variance_ext": ("variance explained by the extrinsic values", "share"),
    "losses/advantage_rms_int": ("intrinsic advantages", "root mean square"),
    "losses/advantage_rms_ext": ("extrinsic advantages", "root mean square"),
}  # of others the tag's words


@dataclasses.dataclass
class Run:
    """One run: what it is called, and the scalars that it logged.

    Attributes:
        setting: what it has in common with runs of other seeds
        flags: what it was started with, of runs read from their folders
        steps: (K,) environment steps at which anything was logged
        hours: (K,) time spent training by then, without pauses; NaN if the run does not say
        scalars: name -> (K,), NaN where there is no value
    """

    name: str
    setting: str
    seed: int
    steps: np.ndarray
    hours: np.ndarray
    scalars: dict[str, np.ndarray]
    flags: dict[str, str] = dataclasses.field(default_factory=dict)


def stem(path: str) -> pathlib.Path:
    """For argparse: a path without its ending; what follows a dot would be taken for one."""
    if pathlib.Path(path).suffix:
        raise argparse.ArgumentTypeError(f"{path}: without its ending, and without a dot in its name")
    return pathlib.Path(path)


def from_folder(folder: pathlib.Path) -> Run:
    """A run from its folder; its setting is the environment and the script. ValueError if there is nothing in it."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    points = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    if not points:
        raise ValueError(f"{folder} holds no TensorBoard scalars")
    steps = np.array(sorted({step for values in points.values() for step in values}))
    scalars = {tag: np.array([values.get(int(s), np.nan) for s in steps]) for tag, values in points.items()}
    hours = np.full(len(steps), np.nan)
    if "charts/SPS" in scalars:  # the clock would count pauses between a stop and a resume
        hours = np.cumsum(np.diff(steps, prepend=0) / scalars["charts/SPS"]) / 3600
    flags = {}
    if "hyperparameters/text_summary" in events.Tags()["tensors"]:
        texts = [x.tensor_proto.string_val[0].decode() for x in events.Tensors("hyperparameters/text_summary")]
        starts = [dict(line[1:-1].split("|", 1) for line in text.splitlines()[2:]) for text in texts]
        commits = dict.fromkeys(start.get("commit", "") for start in starts)  # of all its pieces
        flags = starts[0] | {"commit": " ".join(commits)}
    match = NAME.fullmatch(folder.name)
    setting, seed = (f"{match['env']}, {match['script']}", int(match["seed"])) if match else (folder.name, 0)
    return Run(folder.name, setting, seed, steps, hours, scalars, flags)


def name_settings(runs: list[Run]) -> None:
    """Adds to each run's setting the flags in which runs of the same environment and script differ."""
    for setting in {run.setting for run in runs}:
        alike = [run for run in runs if run.setting == setting]
        values = {key: {run.flags.get(key) for run in alike} for run in alike for key in run.flags}
        for run in alike:
            for key in values:
                if len(values[key]) > 1 and key not in NOT_A_SETTING:
                    run.setting += f", {key} {run.flags.get(key)}"


def from_csv(path: pathlib.Path) -> list[Run]:
    """The runs in a CSV. ValueError if it is not one of ours."""
    try:
        with open(path, newline="") as file:
            lines = list(csv.DictReader(file))
    except UnicodeDecodeError:
        lines = []
    if not lines or not {"run", "step"} <= lines[0].keys():
        raise ValueError(f"{path} is no table of runs: it has no columns run and step")
    by_run = collections.defaultdict(list)
    for line in lines:
        by_run[line["run"], line.get("setting"), line.get("seed")].append(line)
    runs = []
    for (name, *_), rows in by_run.items():
        columns = {key: np.array([float(row[key] or "nan") for row in rows]) for key in rows[0] if key not in COLUMNS}
        match = NAME.fullmatch(name.split("/")[-1])
        setting = rows[0].get("setting") or (f"{match['env']}, {match['script']}" if match else name)
        hours = np.array([float(row.get("hours") or "nan") for row in rows])
        seed = int(rows[0].get("seed") or (match["seed"] if match else 0))
        runs.append(Run(name, setting, seed, np.array([int(row["step"]) for row in rows]), hours, columns))
    return runs


def write_csv(runs: list[Run], path: pathlib.Path, points: int | None = None) -> None:
    """All scalars of all runs; with `points`, the means over that many equal parts of each run at most."""
    tags = sorted({tag for run in runs for tag in run.scalars})
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *tags])
        for run in runs:
            parts = np.array_split(np.arange(len(run.steps)), min(points or len(run.steps), len(run.steps)))
            for part in parts:
                cells = []
                for tag in tags:
                    values = run.scalars.get(tag, np.full(len(run.steps), np.nan))[part]
                    values = values[~np.isnan(values)]
                    cells.append(f"{values.mean():.6g}" if len(values) else "")
                hours = run.hours[part[-1]]
                hours = "" if np.isnan(hours) else f"{hours:.5g}"
                writer.writerow([run.name, run.setting, run.seed, run.steps[part[-1]], hours, *cells])


def curve(run: Run, tag: str, x: str) -> tuple[np.ndarray, np.ndarray]:
    """Where the scalar has values, (K,), and the values, (K,); x is steps or hours."""
    values = run.scalars.get(tag, np.full(len(run.steps), np.nan))
    there = ~np.isnan(values)
    return {"steps": run.steps, "hours": run.hours}[x][there], values[there]


def mean_and_interval(curves: list[tuple[np.ndarray, np.ndarray]], points: int = 200) -> tuple[np.ndarray, ...]:
    """Mean over runs and its bootstrap 95 % interval (percentiles of 2,000 resamples of the runs) on a common grid.

    A run that ended before the longest one, because it had solved its task, keeps its last value; before its first
    value a run counts as that.

    Returns: x, mean, low, high, each (points,); low and high equal the mean where there is one run.
    """
    grid = np.linspace(min(x[0] for x, _ in curves), max(x[-1] for x, _ in curves), points)
    values = np.stack([np.interp(grid, x, y) for x, y in curves])  # (runs, points)
    mean = values.mean(0)
    if len(curves) < 2:
        return grid, mean, mean, mean
    interval = bootstrap(
        (values,), np.mean, axis=0, vectorized=True, n_resamples=2000, method="percentile", rng=np.random.default_rng(0)
    ).confidence_interval
    return grid, mean, interval.low, interval.high


def number_of(n: int, noun: str) -> str:
    """1 seed, 2 seeds."""
    return f"{n} {noun}{'s' * (n != 1)}"


def draw_curves(
    panel: plt.Axes,
    curves: list[tuple[np.ndarray, np.ndarray]],
    color: str,
    label: str,
    every_seed: bool = False,
    style: str = "-",
) -> None:
    """Curves (K,), (K,) of runs that differ in the seed: their mean and its interval; or each of them."""
    if every_seed or len(curves) == 1:
        for k, (xs, ys) in enumerate(curves):
            panel.plot(xs, ys, style, color=color, linewidth=0.9, label=None if k else label)
    elif curves:
        grid, mean, low, high = mean_and_interval(curves)
        panel.plot(grid, mean, style, color=color, linewidth=1.3, label=label)
        panel.fill_between(grid, low, high, color=color, alpha=0.2, linewidth=0)


def grid(n: int, columns: int, width: float, height: float, **how) -> tuple[plt.Figure, np.ndarray]:
    """A figure of n panels, at most so many in a row, each so many inches; places that are left over are hidden."""
    columns = min(columns, n)
    rows = -(-n // columns)
    size = (columns * width, rows * height)
    figure, panels = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", **how)
    for panel in panels.flat[n:]:
        panel.set_visible(False)
    return figure, panels


def draw(panel: plt.Axes, runs: list[Run], tag: str, x: str, every_seed: bool) -> None:
    """A curve for each setting."""
    unit, whole = 1 if x == "hours" else 1e6, True
    for k, setting in enumerate(dict.fromkeys(run.setting for run in runs)):
        alike = [run for run in runs if run.setting == setting and len(curve(run, tag, x)[0])]
        if not alike:
            continue
        label = number_of(len({run.seed for run in alike}), "seed")
        if len(alike) > len({run.seed for run in alike}):
            label = f"{number_of(len(alike), 'run')} of {label}"
        curves = [(xs / unit, ys) for xs, ys in (curve(run, tag, x) for run in alike)]
        whole &= all((ys % 1 == 0).all() for _, ys in curves)
        if every_seed:
            for n, (run, (xs, ys)) in enumerate(zip(alike, curves, strict=True)):
                tint = [c + 0.6 * (1 - c) * n / max(1, len(alike) - 1) for c in to_rgb(f"C{k}")]
                panel.plot(xs, ys, color=tint, linewidth=0.9, label=f"{setting}, seed {run.seed}")
                panel.plot(xs[-1:], ys[-1:], ".", color=tint, markersize=5)  # where the run ends
        else:
            draw_curves(panel, curves, f"C{k}", f"{setting} ({label})")
    words = tag.split("/")[-1].replace("_", " ")
    title, label = NAMES.get(tag, (words, words))
    panel.set(title=title, ylabel=label, xlabel=x if unit == 1 else f"million {x}")
    if "explained_variance" in tag:  # clipped at -1 by the scripts, but not by early ones
        panel.set_ylim(bottom=max(panel.get_ylim()[0], -1.05))
    if whole:
        panel.yaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="+", type=pathlib.Path, help="folders of runs, or CSV files")
    parser.add_argument("--scalars", nargs="+", default=["charts/episodic_return"], help="one panel each")
    parser.add_argument("--x", choices=["steps", "hours"], default="steps", help="what to draw over")
    parser.add_argument("--every-seed", action="store_true", help="a line for each run in place of mean and interval")
    parser.add_argument("--out", required=True, type=stem, help="path of the results, without its ending")
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    runs = []
    for source in args.sources:
        try:
            runs += [from_folder(source)] if source.is_dir() else from_csv(source)
        except (OSError, ValueError) as error:
            parser.error(str(error))
    there = {tag for run in runs for tag in run.scalars}
    for tag in args.scalars:
        if tag not in there:
            parser.error(f"no run has {tag}; there are {', '.join(sorted(there))}")
    if args.x == "hours" and any(np.isnan(run.hours).all() for run in runs):
        parser.error("--x hours: some of the runs do not say how long they took")
    name_settings([run for run in runs if run.flags])
    if any(source.is_dir() for source in args.sources):
        write_csv(runs, args.out.with_suffix(".csv"))

    figure, panels = grid(len(args.scalars), 3, 4.4, 3.1)
    for panel, tag in zip(panels.flat, args.scalars, strict=False):
        draw(panel, runs, tag, args.x, args.every_seed)
    handles = {}
    for panel in panels.flat:
        handles |= dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))
    figure.legend(handles.values(), handles.keys(), loc="outside upper left", fontsize=7, frameon=False, ncols=3)
    figure.savefig(args.out.with_suffix(".png"), dpi=120)
    print(args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
