"""Value-based agents: DQN and IQN from RAM and pixels, the backups, and RND off-policy.

    python benchmark/dqn.py --out docs/results/dqn --jobs 2

Each run is `python dqn_rnd_atari.py` with the flags of its row, as a process of its own on one thread. Runs that are
already in the CSV are not repeated, so this can be stopped and started again; a run that was stopped goes on from its
checkpoint, and fills its memory anew first. Writes <out>.csv (a line for each run), the figure <out>.png, and prints
the table: lowest / median / highest over the seeds. "Score" is the mean of the last 100 training episodes,
"evaluation" that of 100 fresh ones.
"""

import pathlib
import sys

import matplotlib
from plot import curve, from_folder
from sweep import ROOT, Job, curve_cell, curves_of, evaluation, fill_table, spread, table_parser

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SCRIPT = ROOT / "dqn_rnd_atari.py"
IQN = "--preset iqn --num-quantiles 8 --num-acting-quantiles 8"  # 64 are for a GPU
AGENTS = {"DQN": "--preset dqn", "IQN": IQN}
POLICIES = {"": "", ", Boltzmann": " --policy boltzmann"}
BACKUPS = {x: f"--preset dqn --backup {x}" for x in ("double", "softmax", "soft", "munchausen")}
BONUSES = {
    "no bonus": "--int-coef 0",
    "stored": "--bonus-from collection",
    "recomputed": "--bonus-from replay",
    "recomputed, one head": "--bonus-from replay --single-head",
    "released normaliser": "--bonus-from collection --bonus-norm released --single-head --int-coef 5e-5",
}
ROWS = {  # row, which begins with the game -> (flags, seeds)
    f"{game}, RAM, {name}{extra}": (f"--env-id {game} --obs ram --total-timesteps 2.5e6 {flags}{more}", 3)
    for game in ("Boxing", "Pong")
    for agents, policies in ((AGENTS, {"": ""}), (BACKUPS, POLICIES))
    for name, flags in agents.items()
    for extra, more in policies.items()
}
ROWS |= {
    f"{game}, pixels, DQN": (f"--env-id {game} --total-timesteps 1e6 --preset dqn", 1) for game in ("Boxing", "Pong")
}
ROWS |= {
    f"{game}, RAM, {name}": (f"--env-id {game} --obs ram --total-timesteps 5e6 {flags}", 2)
    for game in ("MontezumaRevenge", "Venture", "Gravitar")
    for name, flags in BONUSES.items()
}
ROWS = {row: (flags.split(), seeds) for row, (flags, seeds) in ROWS.items()}


def measure(job: Job, folder: pathlib.Path) -> dict:
    """The columns of the CSV for a finished run, after row and seed."""
    run = from_folder(folder)
    steps, scores = curve(run, "charts/score", "steps")
    rooms = curve(run, "rnd/rooms_visited", "steps")[1] if "rnd/rooms_visited" in run.scalars else []
    returns, error = evaluation(SCRIPT, folder)
    return {
        "steps": run.steps[-1],
        "score": f"{scores[-1]:.2f}" if len(scores) else "",
        "rooms": int(rooms[-1]) if len(rooms) else "",
        "evaluation": returns,
        "error": error,
        "minutes": f"{60 * run.hours[-1]:.0f}",
        "curve": curve_cell(steps, scores, 2),
    }


def print_table(runs: list[dict]) -> None:
    """The table of docs/results, in Markdown."""
    print("| row | flags | seeds | score | rooms | evaluation | minutes |\n|---|---|---|---|---|---|---|")
    for row, (flags, _) in ROWS.items():
        if mine := [r for r in runs if r["row"] == row]:
            forms = {"score": ".1f", "rooms": ".0f", "evaluation": ".1f", "minutes": ".0f"}
            cells = [spread([r[column] for r in mine], form) for column, form in forms.items()]
            print(f"| {row} | `{' '.join(flags)}` | {len(mine)} | {' | '.join(cells)} |")


def draw(runs: list[dict], path: pathlib.Path) -> None:
    """Score against steps, a line for each seed, a panel for each game."""
    rows = list(dict.fromkeys(r["row"] for r in runs))
    games = list(dict.fromkeys(row.split(",")[0] for row in rows))
    figure, panels = plt.subplots(
        1, len(games), figsize=(1.5 + 3.6 * len(games), 3.4), squeeze=False, layout="constrained"
    )
    for panel, game in zip(panels.flat, games, strict=True):
        for k, row in enumerate(x for x in rows if x.startswith(f"{game},")):
            for n, (x, y) in enumerate(curves_of(runs, row, 1e6)):
                panel.plot(x, y, f"C{k}", linewidth=1, label=None if n else row.split(", ", 1)[1])
        panel.set(title=game, xlabel="million steps")
        panel.legend(frameon=False, fontsize=7)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0, 0].set_ylabel("mean return, last 100 episodes")
    figure.savefig(path, dpi=110)


def main() -> int:
    args = table_parser(__doc__, "runs/dqn").parse_args()
    runs, status = fill_table(
        SCRIPT, ROWS, args, measure, lambda line: f"score {line['score']} after {int(line['steps']):,} steps"
    )
    if runs:
        draw(runs, args.out.with_suffix(".png"))
        print_table(runs)
    return status


if __name__ == "__main__":
    sys.exit(main())
