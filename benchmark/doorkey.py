"""DoorKey's table and figure: every size with and without the bonus, in the notebook's settings and in the tuned ones.

    python benchmark/doorkey.py --out docs/results/doorkey --jobs 2
    python benchmark/doorkey.py --out docs/results/doorkey --jobs 2 --control constant
    python benchmark/doorkey.py --out docs/results/doorkey --jobs 2 --control shuffled

Each run is `python a2c_rnd_doorkey.py` with the flags of its row, as a process of its own on one thread. Runs that are
already in the CSV are not repeated, so this can be stopped and started again; a run that was stopped goes on from its
checkpoint. Writes <out>.csv (a line for each run), the figure <out>_curves.png, and prints the table. In the controls
the bonus is 1 in place of the error (constant), or the error paid to random samples (shuffled).
"""

import pathlib
import sys

import matplotlib.pyplot as plt
import torch
from plot import curve, draw_curves, from_folder
from sweep import ROOT, Job, curve_cell, curves_of, evaluation, fill_table, spread, table_parser

SCRIPT = ROOT / "a2c_rnd_doorkey.py"
NO_BONUS, TUNED, TUNED_16 = "--int-coef 0", "--preset tuned", "--preset tuned-16x16"
ROWS = {  # name -> (flags, how many seeds)
    "5x5 notebook, RND": ("--env-id DoorKey-5x5 --total-timesteps 2e6", 5),
    "5x5 notebook, A2C": (f"--env-id DoorKey-5x5 --total-timesteps 2e6 {NO_BONUS} --ext-coef 1", 5),
    "8x8 notebook, RND": ("--env-id DoorKey-8x8 --total-timesteps 6e6", 5),
    "8x8 notebook, A2C": (f"--env-id DoorKey-8x8 --total-timesteps 6e6 {NO_BONUS} --ext-coef 1", 5),
    "5x5 tuned, RND": (f"--env-id DoorKey-5x5 {TUNED} --total-timesteps 2e6", 5),
    "5x5 tuned, A2C": (f"--env-id DoorKey-5x5 {TUNED} {NO_BONUS} --total-timesteps 2e6", 5),
    "8x8 tuned, RND": (f"--env-id DoorKey-8x8 {TUNED} --total-timesteps 3e6", 5),
    "16x16 tuned, RND": (f"--env-id DoorKey-16x16 {TUNED_16} --total-timesteps 6e6", 3),
    "16x16 tuned, A2C": (f"--env-id DoorKey-16x16 {TUNED_16} {NO_BONUS} --total-timesteps 20e6", 3),
    "8x8 tuned, A2C": (f"--env-id DoorKey-8x8 {TUNED} {NO_BONUS} --total-timesteps 3e6", 5),
    "8x8 tuned, RND at every visit": (f"--env-id DoorKey-8x8 {TUNED} --no-first-visit --total-timesteps 3e6", 5),
    "16x16 tuned, RND at every visit": (f"--env-id DoorKey-16x16 {TUNED_16} --no-first-visit --total-timesteps 6e6", 3),
    "16x16 notebook, RND": ("--env-id DoorKey-16x16 --preset notebook-16x16 --total-timesteps 30e6", 1),
    # the notebook's bonus taken away, and the goal weighed as it is with it
    "5x5 notebook, A2C, goal 100": (f"--env-id DoorKey-5x5 --total-timesteps 2e6 {NO_BONUS} --ext-coef 100", 5),
    "8x8 notebook, A2C, goal 100": (f"--env-id DoorKey-8x8 --total-timesteps 6e6 {NO_BONUS} --ext-coef 100", 5),
    "16x16 notebook, A2C, goal 100": (
        f"--env-id DoorKey-16x16 --preset notebook-16x16 --total-timesteps 30e6 {NO_BONUS} --ext-coef 100",
        1,
    ),
}
WITHOUT = [  # what each part of the tuned preset is worth
    *("--no-first-visit", "--no-one-hot", "--no-orthogonal", "--no-norm-adv", "--no-int-norm", "--no-same-obs"),
    *("--obs-norm", "--predictor-learning-rate 1e-4", "--ent-coef 0.01", "--no-int-episodic"),
]
ROWS |= {f"8x8 tuned, {x}": (f"--env-id DoorKey-8x8 {TUNED} {x} --total-timesteps 1.5e6", 3) for x in WITHOUT}
ROWS = {row: (flags.split(), seeds) for row, (flags, seeds) in ROWS.items()}
CONTROLS = {  # which -> its rows, run by doorkey_WHICH.py
    "constant": {f"{size} tuned, first visits alone": ROWS[f"{size} tuned, RND"] for size in ("8x8", "16x16")},
    "shuffled": {
        f"{row}, shuffled": ROWS[row] for row in ("5x5 notebook, RND", "8x8 notebook, RND", "16x16 tuned, RND")
    },
}


def measure(job: Job, folder: pathlib.Path) -> dict:
    """The columns of the CSV for a finished run, after those that all tables have."""
    steps, scores = curve(from_folder(folder), "charts/score", "steps")
    first = {level: next(iter(steps[scores > level]), "") for level in (0.91, 0.95)}
    returns, error = evaluation(SCRIPT, folder) if first[0.95] else ("", "")
    return {
        "frames_91": first[0.91],
        "frames_95": first[0.95],
        "frames": steps[-1],
        "score": round(scores[-1], 4),
        "evaluation": returns,
        "error": error,
        "seconds": round(torch.load(folder / "latest.pt", weights_only=True)["seconds"]),
        "curve": curve_cell(steps, scores, 3),
    }


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
            draw_curves(panel, curves_of(runs, f"{size} {name}", 1e6), color, name)
        for name, color in (("RND", "C0"), ("A2C", "C1")):
            if points := NOTEBOOK.get((size, name)):
                panel.plot(*zip(*points, strict=True), "--", color=color, label=f"the notebook's run, {name}")
        panel.axhline(0.95, color="0.8", linewidth=0.8, zorder=0, label="0.95")
        seeds = sorted({n for x in colors if (n := len(curves_of(runs, f"{size} {x}")))})
        panel.set(
            title=f"DoorKey-{size}, {' or '.join(map(str, seeds))} seeds a curve",
            xlabel="million frames",
            ylim=(-0.03, 1.03),
        )
        handles |= dict(zip(*panel.get_legend_handles_labels()[::-1], strict=True))
    # before 0.4M frames few episodes have ended there, those that were short
    panels[2].set(xscale="log", xlim=(0.4, 100), xticks=[1, 10, 100], xticklabels=["1", "10", "100"])
    figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=7, fontsize=8, frameon=False)
    panels[0].set_ylabel("mean return, last 100 episodes")
    figure.savefig(path, dpi=120)


def print_table(runs: list[dict]) -> None:
    """The table of docs/results, in Markdown: lowest / median / highest."""
    print("| row | flags | > 0.91, million frames | > 0.95, million frames | score in the end | evaluation |")
    print("|---|---|---|---|---|---|")
    for row, (flags, _) in (ROWS | CONTROLS["constant"] | CONTROLS["shuffled"]).items():
        if mine := [r for r in runs if r["row"] == row]:
            cells = [spread([r[x] for r in mine], ".2f", 1e6, "never") for x in ("frames_91", "frames_95")]
            cells += [spread([r[x] for r in mine], ".3f") for x in ("score", "evaluation")]
            print(f"| {row} ({len(mine)}) | `{' '.join(flags)}` | {' | '.join(cells)} |")


def main() -> int:
    parser = table_parser(__doc__, "runs/doorkey")
    parser.add_argument("--control", choices=CONTROLS, help="the rows of this control in place of the script's own")
    args = parser.parse_args()
    script = SCRIPT if args.control is None else ROOT / f"benchmark/doorkey_{args.control}.py"
    runs, status = fill_table(
        *(script, CONTROLS.get(args.control, ROWS), args, measure),
        tell=lambda line: f"0.95 at {line['frames_95'] or 'never'}, score {line['score']}",
    )
    draw(runs, args.out.with_name(args.out.name + "_curves.png"))
    print_table(runs)
    return status


if __name__ == "__main__":
    sys.exit(main())
