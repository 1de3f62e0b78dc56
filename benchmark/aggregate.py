"""One figure over all tasks and seeds: which variant is better, and how sure is that (Agarwal et al. 2021).

    python benchmark/aggregate.py docs/results/minigrid.csv --out docs/results/minigrid_aggregate.png

Takes the tasks that all three variants have been run on. A run's score is the mean return of its last 100 episodes
divided by the return at which its task counts as solved, at most 1. A run that stopped because it was solved keeps it.
Three panels, each with 95 % intervals of a bootstrap that draws seeds within each task:
the interquartile mean of the scores against the share of the frames allowed; the share of runs whose score in the end
is above a level; and the probability that a run of one variant has a better score in the end than one of another on
the same task, ties counting half.
"""

import argparse
import pathlib

import matplotlib.pyplot as plt
import numpy as np
from minigrid_runs import ENVIRONMENTS, ROWS, VARIANTS
from scipy.stats import trim_mean
from sweep import curves_of, read_table

GRID = np.linspace(0, 1, 101)  # share of the frames
RESAMPLES = 2000


def scores_of(lines: list[dict[str, str]], task: str, variant: str) -> np.ndarray:
    """(seeds, 101) normalised scores of a row over GRID, of the frames that runs without the mask were allowed."""
    frames, level = ENVIRONMENTS[task][4], ENVIRONMENTS[task][1]
    rows = []
    for x, y in curves_of(lines, f"{task}, {variant}"):
        rows.append(np.interp(GRID * frames, x, y, left=0.0).clip(0, level) / level)
    return np.array(rows)


def resample(scores: list[np.ndarray], rng: np.random.Generator) -> list[np.ndarray]:
    """Seeds drawn with replacement, within each task."""
    return [x[rng.integers(len(x), size=len(x))] for x in scores]


def interquartile_mean(scores: list[np.ndarray]) -> np.ndarray:
    """Of all runs of all tasks, at each point (K,)."""
    return trim_mean(np.concatenate(scores), 0.25, axis=0)


def profile(scores: list[np.ndarray], levels: np.ndarray) -> np.ndarray:
    """Share of all runs whose score in the end is above each level (L,)."""
    return (np.concatenate(scores)[:, -1, None] > levels).mean(0)


def improvement(ours: list[np.ndarray], theirs: list[np.ndarray]) -> float:
    """Mean over tasks of P(a score of ours in the end > one of theirs) + half of P(equal)."""
    signs = [np.sign(x[:, -1, None] - y[:, -1]).mean() for x, y in zip(ours, theirs, strict=True)]
    return float(np.mean(signs) + 1) / 2


def interval(draws: list) -> tuple[np.ndarray, np.ndarray]:
    """Where 95 % of the resamples lie."""
    return np.quantile(draws, 0.025, axis=0), np.quantile(draws, 0.975, axis=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", type=pathlib.Path, help="the CSV of benchmark/minigrid_runs.py")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the picture to write")
    args = parser.parse_args()
    lines, rng = read_table(args.table), np.random.default_rng(0)
    tasks = [task for task in ENVIRONMENTS if all(f"{task}, {variant}" in ROWS["main"] for variant in VARIANTS)]
    tasks = [task for task in tasks if all(curves_of(lines, f"{task}, {variant}") for variant in VARIANTS)]
    if not tasks:
        parser.error(f"{args.table} has no task with all of {', '.join(VARIANTS)}")
    scores = {variant: [scores_of(lines, task, variant) for task in tasks] for variant in VARIANTS}
    drawn = {variant: [resample(x, rng) for _ in range(RESAMPLES)] for variant, x in scores.items()}
    levels = np.linspace(0, 1, 101)[:-1]

    figure, panels = plt.subplots(1, 3, figsize=(12, 3.2), layout="constrained")
    for k, (variant, x) in enumerate(scores.items()):
        for panel, at, statistic in (
            (panels[0], GRID, interquartile_mean),
            (panels[1], levels, lambda x: profile(x, levels)),
        ):
            panel.plot(at, statistic(x), color=f"C{k}", label=f"{variant} ({sum(map(len, x))} runs)")
            panel.fill_between(
                at, *interval([statistic(y) for y in drawn[variant]]), color=f"C{k}", alpha=0.2, linewidth=0
            )
        low, high = interval([interquartile_mean(y)[-1] for y in drawn[variant]])
        print(f"{variant}: interquartile mean in the end {interquartile_mean(x)[-1]:.3f} ({low:.3f} to {high:.3f})")
    pairs = [("default", "RND alone"), ("default", "PPO"), ("RND alone", "PPO")]
    for k, (a, b) in enumerate(pairs):
        low, high = interval([improvement(x, y) for x, y in zip(drawn[a], drawn[b], strict=True)])
        p = improvement(scores[a], scores[b])
        panels[2].errorbar(p, k, xerr=[[p - low], [high - p]], fmt="o", color="0.2", capsize=3)
        print(f"probability that {a} is better than {b}: {p:.2f} ({low:.2f} to {high:.2f})")
    panels[0].set(xlabel="share of the frames that PPO had", ylabel="score; 1: solved", title="interquartile mean")
    panels[1].set(xlabel="score in the end; 1: solved", ylabel="share of runs above it", title="profile")
    panels[1].set_ylim(-0.03, 1.03)
    panels[2].set_yticks(range(len(pairs)), [f"{a} over {b}" for a, b in pairs])
    panels[2].set(xlim=(0, 1.03), ylim=(len(pairs) - 0.5, -0.5), title="better in the end")
    panels[2].set(xlabel="probability; 0.5: no difference")
    panels[2].axvline(0.5, color="0.8", linewidth=0.8)
    panels[0].legend(frameon=False, fontsize=8)
    figure.savefig(args.out, dpi=110)
    print(f"{args.out}: {len(tasks)} tasks, {', '.join(tasks)}")


if __name__ == "__main__":
    main()
