"""Continuous control: PPO alone and with RND, on tasks that always pay and on tasks that seldom do.

    python benchmark/continuous.py --out docs/results/continuous --jobs 2

Each run is `python ppo_rnd_continuous.py` with the flags of its row, as a process of its own on one thread. Runs that
are already in the CSV are not repeated, so this can be stopped and started again; a run that was stopped goes on from
its checkpoint. Writes <out>.csv (a line for each run), the figure <out>.png, and prints the table: the interquartile
mean over the seeds with its bootstrap 95 % interval. "Score" is the mean of the last 100 training episodes,
"evaluation" that of 100 fresh ones; behind the score stands mean +- std over the seeds, as in published tables.
"Reached" counts the seeds whose score was once above the one in SPARSE, and says after how many million steps, lowest
/ median / highest.
"""

import pathlib
import sys

import numpy as np
from plot import curve, draw_curves, from_folder, grid, number_of
from scipy.stats import bootstrap, trim_mean
from sweep import ROOT, Job, curve_cell, curves_of, evaluation, fill_table, spread, table_parser

SCRIPT = ROOT / "ppo_rnd_continuous.py"
DENSE = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5")
SPARSE = {  # steps; a score that says that the task is solved, or that the agent is on the way
    "MountainCarContinuous": ("2e5", 90),
    "CartpoleSwingupSparse": ("1e6", 100),
    "AcrobotSwingupSparse": ("1e6", 10),
    # 1 for each of 600 steps near the goal. GR: start and goal are two of four places; G: the start is always the same
    "PointMaze_Medium_Diverse_GR": ("1e6", 100),
    "PointMaze_Medium_Diverse_G": ("1e6", 100),
}
VARIANTS = {"PPO": "--int-coef 0", "PPO + RND": ""}
SEEDS = {  # of each variant, where it is not five
    **dict.fromkeys(("HalfCheetah-v5", "Hopper-v5", "Ant-v5"), (10, 5)),
    **{"Walker2d-v5": (10, 10), "MountainCarContinuous": (20, 20)},
    **dict.fromkeys(("CartpoleSwingupSparse", "AcrobotSwingupSparse"), (1, 1)),  # not learned with our defaults
}
ROWS = {  # row -> (flags, seeds)
    f"{task}, {variant}": (
        f"--env-id {task} --total-timesteps {SPARSE.get(task, ['1e6'])[0]} {flags}".split(),
        SEEDS.get(task, (5, 5))[k],
    )
    for task in (*DENSE, *SPARSE)
    for k, (variant, flags) in enumerate(VARIANTS.items())
}
# Burda et al. neither normalise the game's rewards nor clip the values, and gamma is 0.999.
BURDA = "--no-reward-norm --no-clip-vloss"
AS_BURDA = {  # task, ending of the row's name -> steps, flags
    ("CartpoleSwingupSparse", ""): ("1e6", f"{BURDA} --gamma 0.999"),
    ("CartpoleSwingupSparse", ", 3M steps"): ("3e6", f"{BURDA} --gamma 0.999"),
    ("AcrobotSwingupSparse", ""): ("1e6", f"{BURDA} --gamma 0.999"),
    ("PointMaze_Medium_Diverse_G", ""): ("1e6", BURDA),  # there 0.999 was worse on two seeds of 11 to 13
}
ROWS |= {
    f"{task}, {variant}, as Burda et al.{ending}": (
        f"--env-id {task} --total-timesteps {steps} {flags} {more}".split(),
        5,
    )
    for (task, ending), (steps, more) in AS_BURDA.items()
    for variant, flags in VARIANTS.items()
}
SEED_001 = "--env-id MountainCarContinuous --total-timesteps 2e5 --preset seed-001"  # of docs/source_documents.md
ROWS["MountainCarContinuous, PPO + RND, as document 001"] = (SEED_001.split(), 5)
# CleanRL's settings on its environment. Its table has 1,443 +- 46 (3 seeds, docs/benchmark/ppo_continuous_action.md at
# fe8d8a0).
CLEANRL = "--int-coef 0 --num-envs 1 --num-steps 2048 --no-bootstrap-truncated --value-gain 1"
ROWS["HalfCheetah-v4, as CleanRL"] = (f"--env-id HalfCheetah-v4 --total-timesteps 1e6 {CLEANRL}".split(), 3)


def measure(job: Job, folder: pathlib.Path) -> dict:
    """The columns of the CSV for a finished run, after those that all tables have."""
    run = from_folder(folder)
    steps, scores = curve(run, "charts/score", "steps")
    level = SPARSE.get(job.row.split(",")[0], ("", np.inf))[1]
    returns, error = evaluation(SCRIPT, folder)
    at, paid = curve(run, "charts/return_above_0", "steps")
    return {
        "first_paid": next(iter(at[paid > 0]), ""),
        "solved_at": next(iter(steps[scores > level]), ""),
        "steps": run.steps[-1],
        "score": f"{scores[-1]:.2f}" if len(scores) else "",
        "evaluation": returns,
        "error": error,
        "minutes": f"{60 * run.hours[-1]:.1f}",
        "curve": curve_cell(steps, scores, 2),
    }


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Interquartile mean of the seeds' values (K,) and its bootstrap 95 % interval (percentiles)."""
    mean = float(trim_mean(values, 0.25))
    if len(values) == 1:
        return mean, mean, mean
    options = {"n_resamples": 2000, "method": "percentile", "rng": 0, "vectorized": True}
    drawn = bootstrap((values,), lambda x, axis: trim_mean(x, 0.25, axis), **options)
    return mean, *map(float, drawn.confidence_interval)


def print_table(runs: list[dict]) -> None:
    """The table of docs/results, in Markdown."""
    print("| task, variant | flags | seeds | score | evaluation | reached | minutes |\n|---|---|---|---|---|---|---|")
    for row, (flags, _) in ROWS.items():
        if mine := [r for r in runs if r["row"] == row]:
            cells = [str(len(mine))]
            for column in ("score", "evaluation"):
                values = [float(r[column]) for r in mine]
                mean, low, high = interval(np.array(values))
                form = ",.0f" if abs(mean) >= 100 else ".2f"
                cells.append(f"{mean:{form}}")
                if len(values) > 1:
                    cells[-1] += f" ({low:{form}} to {high:{form}})"
                if len(values) > 1 and column == "score":
                    cells[-1] += f"; {np.mean(values):{form}} +- {np.std(values, ddof=1):{form}}"
            solved = [r["solved_at"] for r in mine if r["solved_at"]]
            at = spread(solved, ".3f", 1e6, "never")
            cells.append(f"{len(solved)} of {len(mine)}: {at}" if row.split(",")[0] in SPARSE else "")
            cells.append(f"{np.median([float(r['minutes']) for r in mine]):.1f}")
            print(f"| {row} | `{' '.join(flags)}` | {' | '.join(cells)} |")


def draw(runs: list[dict], path: pathlib.Path) -> None:
    """Score against steps, a panel for each task: each seed where rewards are sparse, else mean and 95 % interval."""
    there = {r["row"] for r in runs}
    tasks = [(task, "") for task in (*DENSE, *SPARSE)] + [(task, f", as Burda et al.{x}") for task, x in AS_BURDA]
    tasks = [(task, how) for task, how in tasks if there & {f"{task}, {variant}{how}" for variant in VARIANTS}]
    figure, panels = grid(len(tasks), 4, 3.1, 2.7)
    for panel, (task, how) in zip(panels.flat, tasks, strict=False):
        for variant, color in zip(VARIANTS, ("C1", "C0"), strict=True):  # blue: with the bonus, as in other figures
            curves = curves_of(runs, f"{task}, {variant}{how}", 1e6)
            label = f"{variant} ({number_of(len(curves), 'seed')})"
            draw_curves(panel, curves, color, label, task in SPARSE, "--" if variant == "PPO" else "-")
        panel.set(xlabel="million steps")
        panel.set_title(f"{task}{how}".replace(", ", "\n"), fontsize=10)
        panel.set_xlim(left=0)
        panel.legend(frameon=False, fontsize=7)
    for panel in panels[:, 0]:
        panel.set_ylabel("mean return, last 100 episodes")
    figure.savefig(path, dpi=110)


def main() -> int:
    args = table_parser(__doc__, "runs/continuous").parse_args()
    runs, status = fill_table(
        *(SCRIPT, ROWS, args, measure),
        tell=lambda line: f"score {line['score']}, evaluation {line['evaluation']}, {line['minutes']} minutes",
    )
    if runs:
        draw(runs, args.out.with_suffix(".png"))
        print_table(runs)
    return status


if __name__ == "__main__":
    sys.exit(main())
