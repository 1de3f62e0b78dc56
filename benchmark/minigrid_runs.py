"""MiniGrid's tables and figures: every environment with the default bonus, with RND alone, and with none.

    python benchmark/minigrid_runs.py --out docs/results/minigrid --jobs 2
    python benchmark/minigrid_runs.py --out docs/results/minigrid_ablations --set ablations --jobs 2
    python benchmark/minigrid_runs.py --out docs/results/minigrid_novelty --set novelty --jobs 2
    python benchmark/minigrid_runs.py --out docs/results/minigrid_ends --set ends --jobs 2
    python benchmark/minigrid_runs.py --out docs/results/minigrid_ends --set divisor      minigrid_divisor.py's

Each run is `python ppo_rnd_minigrid.py` with the flags of its row, as a process of its own on one thread; it stops when
the mean return of its last 100 episodes is above the row's score. Runs that are already in the CSV are not repeated, so
this can be stopped and started again; a run that was stopped goes on from its checkpoint. Writes <out>.csv (a line for
each run), the figure <out>_curves.png or, of the ablations, <out>.png, and prints the table; of
the ablations also how surely a change differs from the default.
"""

import pathlib
import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from plot import curve, draw_curves, from_folder, grid, number_of
from scipy.stats import PermutationMethod, mannwhitneyu
from sweep import ROOT, Job, curve_cell, curves_of, evaluation, fill_table, read_table, spread, table_parser

SCRIPT = ROOT / "ppo_rnd_minigrid.py"
ENVIRONMENTS = {  # name -> (flags, score, frames with the bonus, seeds, frames without it and with RND alone)
    "DoorKey-8x8": ("--env-id DoorKey-8x8", 0.95, 2e6, 5, 2e6),
    "DoorKey-16x16": ("--env-id DoorKey-16x16", 0.95, 3e6, 5, 3e6),
    "KeyCorridorS3R3": ("--env-id KeyCorridorS3R3", 0.86, 2e6, 5, 2e6),
    "KeyCorridorS4R3": ("--env-id KeyCorridorS4R3", 0.85, 10e6, 5, 5e6),
    "MultiRoom-N7-S8": ("--env-id MultiRoom-N7-S8", 0.65, 3e6, 5, 2e6),
    "MultiRoom-N10-S10": ("--env-id MultiRoom-N10-S10", 0.55, 3e6, 5, 0),
    "ObstructedMaze-2Dlh": ("--env-id ObstructedMaze-2Dlh", 0.90, 15e6, 3, 0),
    "KeyCorridorS5R3": ("--env-id KeyCorridorS5R3", 0.85, 20e6, 1, 0),
    "KeyCorridorS6R3": ("--env-id KeyCorridorS6R3", 0.85, 20e6, 3, 0),
    "ObstructedMaze-Full": ("--env-id ObstructedMaze-Full-v1", 0.90, 20e6, 1, 0),
}
VARIANTS = {"default": "", "RND alone": "--episodic-bonus none", "PPO": "--int-coef 0"}


def flags_of(name: str, frames: float, more: str) -> list[str]:
    """The flags of a run in an environment, for so many frames."""
    env_id, score, *_ = ENVIRONMENTS[name]
    return f"{env_id} --solved-score {score} --total-timesteps {frames:.0f} {more}".split()


ROWS = {}  # set -> row -> (flags, seeds)
ROWS["main"] = {
    f"{name}, {variant}": (flags_of(name, frames, extra), seeds)
    for variant, extra in VARIANTS.items()
    for name, (_, _, own, seeds, other) in ENVIRONMENTS.items()
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
    *("--obs-norm frozen --int-clip 1", "--norm-adv", "--no-bootstrap-truncated", "--ent-coef 0.0005"),
]
CHANGES_ELSEWHERE = {  # where another environment says more
    "DoorKey-16x16": ("--norm-adv", "--ent-coef 0.01", "--policy-obs codes", "--ent-coef 0.0005"),
    "MultiRoom-N7-S8": ("--ext-coef 2", "--ent-coef 0.0005"),
}
ROWS["ablations"] = {
    f"{name}, {change}": (flags_of(name, 2e6, change), 5 if change in CLAIMS and name == "KeyCorridorS3R3" else 3)
    for name, changes in ({"KeyCorridorS3R3": CHANGES} | CHANGES_ELSEWHERE).items()
    for change in changes
}
NOVELTY = {  # what is paid at a first visit instead of RND -> flag, seeds
    "the mask alone": ("--novelty none", 5),
    "counts": ("--novelty count", 5),
    "NovelD": ("--novelty noveld", 3),
}
ALLOWED = {
    "DoorKey-16x16": 3e6,
    "KeyCorridorS4R3": 5e6,
    "KeyCorridorS3R3": 2e6,
    "MultiRoom-N7-S8": 3e6,
    "DoorKey-8x8": 2e6,
}
ROWS["novelty"] = {
    f"{name}, {paid}": (flags_of(name, frames, flag), seeds)
    for paid, (flag, seeds) in NOVELTY.items()
    for name, frames in ALLOWED.items()
}
ROWS["novelty"]["ObstructedMaze-2Dlh, the mask alone"] = flags_of("ObstructedMaze-2Dlh", 15e6, "--novelty none"), 3
ENDS = {  # what could keep the exploration alive that dies in the largest two
    "the mask alone": "--novelty none",
    "counts": "--novelty count",
    "a smaller entropy term": "--ent-coef 0.0005",
    "normalised advantages": "--norm-adv",
}
ROWS["ends"] = {
    f"{name}, {what}": (flags_of(name, 20e6, flag), 3)
    for what, flag in ENDS.items()
    for name in ("KeyCorridorS6R3", "ObstructedMaze-Full")
}
ROWS["divisor"] = {"KeyCorridorS6R3, a divisor begun anew at 1M": (ROWS["main"]["KeyCorridorS6R3, default"][0], 3)}


def measure(job: Job, folder: pathlib.Path) -> dict:
    """The columns of the CSV for a finished run, after those that all tables have."""
    steps, scores = curve(from_folder(folder), "charts/score", "steps")
    level = float(job.flags[job.flags.index("--solved-score") + 1])
    solved_at = next(iter(steps[scores > level]), "")
    state = torch.load(folder / "latest.pt", weights_only=True)
    recent = np.array(state["stats"]["recent"])
    returns, error = evaluation(SCRIPT, folder) if solved_at else ("", "")
    return {
        "solved_at": solved_at,
        "frames": state["step"],
        "score": f"{recent.mean():.4f}" if len(recent) else "",
        "evaluation": returns,
        "error": error,
        "seconds": round(state["seconds"]),
        "curve": curve_cell(steps, scores, 3),
    }


def draw(runs: list[dict], path: pathlib.Path) -> None:
    """Score against frames, mean and 95 % interval over seeds, a panel for each environment."""
    names = [name for name in ENVIRONMENTS if any(r["row"].startswith(f"{name},") for r in runs)]
    figure, panels = grid(len(names), 5, 3.1, 2.8, sharey=True)
    handles: dict[str, plt.Artist] = {}
    for panel, name in zip(panels.flat, names, strict=False):
        for k, variant in enumerate(VARIANTS):
            style = "--" if variant == "PPO" else "-"  # it often lies on RND alone
            draw_curves(panel, curves_of(runs, f"{name}, {variant}", 1e6), f"C{k}", variant, style=style)
        panel.axhline(ENVIRONMENTS[name][1], color="0.8", linewidth=0.8, zorder=0, label="counts as solved")
        seeds = number_of(len(curves_of(runs, f"{name}, default", 1e6)), "seed")
        panel.set(xlabel="million frames", ylim=(-0.03, 1.03))
        panel.set_title(f"{name} ({seeds})", fontsize=10)
        panel.set_xlim(left=0)
        handles |= dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))
    for panel in panels[:, 0]:
        panel.set_ylabel("mean return, last 100 episodes")
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=8, fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def draw_changes(runs: list[dict], path: pathlib.Path) -> None:
    """Frames to the score for each change, a dot for every seed, their number in brackets; a cross: not by then.

    The first row of an environment is its default, to which the others are compared.
    """
    there = list(dict.fromkeys(r["row"] for r in runs))
    names = [x for x in ENVIRONMENTS if len([row for row in there if row.startswith(f"{x},")]) > 1]
    rows = [[x for x in there if x.startswith(f"{name},")] for name in names]
    figure, panels = plt.subplots(
        *(len(names), 1), figsize=(8, 0.9 + 0.27 * sum(map(len, rows)) + 0.6 * len(names)), squeeze=False,
        gridspec_kw={"height_ratios": [len(x) + 1 for x in rows]},
    )  # fmt: skip
    for panel, name, mine in zip(panels[:, 0], names, rows, strict=True):
        labels = []
        for k, row in enumerate(mine):
            of = [r for r in runs if r["row"] == row]
            for n, r in enumerate(of):  # one above the other, so that equal ones are all seen
                marker, at = "o" if r["solved_at"] else "x", float(r["solved_at"] or r["frames"]) / 1e6
                panel.plot(at, k + 0.13 * (n - (len(of) - 1) / 2), marker, color=f"C{int(k > 0)}", markersize=4)
            labels.append(f"{row.split(', ', 1)[1]} ({len(of)})")
        default = [float(r["solved_at"] or "inf") / 1e6 for r in runs if r["row"] == mine[0]]
        panel.axvline(np.median(default), color="C0", linewidth=0.8, linestyle=":")
        panel.set_yticks(range(len(mine)), labels, fontsize=8)
        panel.set(ylim=(len(mine) - 0.4, -0.6), title=f"{name}, score {ENVIRONMENTS[name][1]}")
        panel.set_xlim(left=0)
        panel.grid(axis="x", color="0.9")
    panels[-1, 0].set_xlabel(
        "million frames to the score\na mark for each seed (how many); x: not by then; dotted: the first row's median"
    )
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def print_table(runs: list[dict], rows: dict) -> None:
    """The table of docs/results, in Markdown: lowest / median / highest."""
    columns = ("environment, variant", "flags", "solved", "million frames to it", "million frames played")
    columns += ("score in the end", "evaluation", "minutes")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row, (flags, _) in rows.items():
        if mine := [r for r in runs if r["row"] == row]:
            solved = [r for r in mine if r["solved_at"]]
            cells = [f"{len(solved)} of {len(mine)}", spread([r["solved_at"] for r in solved], ".2f", 1e6, "never")]
            cells.append(spread([r["frames"] for r in mine], ".2f", 1e6))
            cells.append(spread([r["score"] for r in mine], ".3f"))
            cells.append(spread([r["evaluation"] for r in solved], ".3f"))
            cells.append(spread([r["seconds"] for r in mine], ".1f", 60))
            print(f"| {row} | `{' '.join(flags)}` | {' | '.join(cells)} |")


def print_tests(runs: list[dict]) -> None:
    """Mann-Whitney's test of frames to the score, each change with five seeds against the default; never: last."""

    def frames(row: str) -> list[float]:
        return [float(r["solved_at"] or "inf") for r in runs if r["row"] == row]

    for row in dict.fromkeys(r["row"] for r in runs):
        name, change = row.split(", ", 1)
        ours, theirs = frames(row), frames(f"{name}, default")
        if change != "default" and len(ours) >= 5 and len(theirs) >= 5:
            p = mannwhitneyu(ours, theirs, method=PermutationMethod()).pvalue  # all 252 ways: there are ties
            print(f"{row}: p = {p:.3f}")


def main() -> int:
    parser = table_parser(__doc__, "runs/minigrid")
    parser.add_argument("--set", choices=ROWS, default="main", help="which table")
    args = parser.parse_args()
    script = ROOT / "benchmark/minigrid_divisor.py" if args.set == "divisor" else SCRIPT
    runs, status = fill_table(
        *(script, ROWS[args.set], args, measure),
        tell=lambda line: f"solved at {line['solved_at'] or 'never'}, score {line['score']}",
    )
    print_table(runs, ROWS["ends"] | ROWS["divisor"] if args.set in ("ends", "divisor") else ROWS[args.set])
    if args.set == "main":
        draw(runs, args.out.with_name(args.out.name + "_curves.png"))
    else:
        own = [r for r in read_table(ROOT / "docs/results/minigrid.csv") if r["row"].endswith(", default")]
        draw_changes([*own, *runs], args.out.with_suffix(".png"))
        print_tests([*own, *runs])
    return status


if __name__ == "__main__":
    sys.exit(main())
