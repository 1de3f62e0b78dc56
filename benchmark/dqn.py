"""Value-based agents: DQN and IQN from RAM and pixels, the backups, and RND off-policy.

    python benchmark/dqn.py --out docs/results/dqn --jobs 2
    python benchmark/dqn.py --out docs/results/dqn --jobs 2 --control reversed

Each run is `python dqn_rnd_atari.py` with the flags of its row, as a process of its own on one thread. Runs that are
already in the CSV are not repeated, so this can be stopped and started again; a run that was stopped goes on from its
checkpoint, from RAM with its memory. Writes <out>.csv (a line for each run), the figure <out>.png, and prints the
table: lowest / median / highest over the seeds. Returns are of the training episodes that ended in 250,000 steps, as
Dopamine reports them, here means over the lines of the log, one for each 2,000 steps; "evaluation" is the mean of 30
fresh episodes, one action in a thousand random and the others of the highest value, whatever the policy was.
"""

import pathlib
import sys

from plot import curve, from_folder, grid
from sweep import ROOT, Job, curve_cell, curves_of, evaluation, fill_table, spread, table_parser

SCRIPT = ROOT / "dqn_rnd_atari.py"
RAM = "--obs ram --save-replay --checkpoint-interval 20"  # a run that is interrupted goes on with its memory
# 64 quantiles are for a GPU. Adam's epsilon is Dopamine's, which belongs to a sum over 64, divided by 8.
IQN = "--preset iqn --num-quantiles 8 --num-acting-quantiles 8 --adam-eps 3.9e-5"
AGENTS = {
    "DQN": "--preset dqn",  # --backup max
    "DQN, n = 3": "--preset dqn --n-step 3",  # as IQN
    "IQN": IQN,
    "DQN, Boltzmann": "--preset dqn --policy boltzmann",
}
AGENTS |= {x: f"--preset dqn --backup {x}" for x in ("double", "softmax", "soft", "munchausen")}
AGENTS |= {
    # 0.003 is Munchausen's temperature in effect, 0.1 * 0.03
    "soft, 0.003": "--preset dqn --backup soft --temperature 0.003",
    "softmax, Boltzmann": "--preset dqn --backup softmax --policy boltzmann",
    "soft, Boltzmann": "--preset dqn --backup soft --policy boltzmann",
}
ONE = "--bonus-from collection --single-head"
BONUSES = {
    "no bonus": "--int-coef 0",
    "stored": "--bonus-from collection",
    "recomputed": "--bonus-from replay",
    "stored, episodic": "--bonus-from collection --int-episodic",
    "stored, one head": ONE,
    "released normaliser": f"{ONE} --bonus-norm released --int-coef 5e-5",
    # the coefficient at which a new screen is paid as much as with the std of the return
    "released normaliser, 0.125": f"{ONE} --bonus-norm released --int-coef 0.125",
}
ROWS = {  # row, which begins with the game -> (flags, seeds)
    f"{game}, RAM, {name}": (f"--env-id {game} {RAM} --total-timesteps 2.5e6 {flags}", 3)
    for game in ("Boxing", "Pong")
    for name, flags in AGENTS.items()
}
# two of the course report's four games, which it does not name, stayed at the minimum: this may be one
ROWS |= {
    f"Breakout, RAM, {name}": (f"--env-id Breakout {RAM} --total-timesteps 2.5e6 {AGENTS[name]}", 3)
    for name in ("DQN", "softmax", "soft", "soft, 0.003")
}
ROWS |= {
    f"{game}, pixels, DQN": (f"--env-id {game} --total-timesteps 1e6 --preset dqn", 1) for game in ("Boxing", "Pong")
}
ROWS |= {
    f"{game}, RAM, {name}": (f"--env-id {game} {RAM} --total-timesteps 5e6 {flags}", 2)
    for game in ("MontezumaRevenge", "Venture", "Gravitar")
    for name, flags in BONUSES.items()
}
ROWS |= {  # the hard game that takes least
    f"Freeway, RAM, {name}": (f"--env-id Freeway {RAM} --total-timesteps 1e6 {BONUSES[name]}", 3)
    for name in ("no bonus", "recomputed")
}
ROWS = {row: (flags.split(), seeds) for row, (flags, seeds) in ROWS.items()}
CONTROLS = {  # which -> its rows, run by dqn_WHICH.py
    "reversed": {
        f"{game}, RAM, {name}, reversed": ROWS[f"{game}, RAM, {name}"]
        for game in ("Boxing", "Pong", "Breakout")
        for name in ("soft", "soft, 0.003")
    }
}


def measure(job: Job, folder: pathlib.Path) -> dict:
    """The columns of the CSV for a finished run, after those that all tables have."""
    run = from_folder(folder)
    steps, scores = curve(run, "charts/score", "steps")
    at, returns = curve(run, "charts/episodic_return", "steps")
    rooms = curve(run, "rnd/rooms_visited", "steps")[1]
    windows = {"before_1m": 1e6, "before_end": run.steps[-1]}  # each of 250,000 steps, Dopamine's iteration
    means = {x: returns[(at > end - 250_000) & (at <= end)] for x, end in windows.items()}
    fresh, error = evaluation(SCRIPT, folder, 30, "--policy", "epsilon-greedy")
    (folder / "replay.pt").unlink(missing_ok=True)  # it is large, and the run is over
    return {
        "steps": run.steps[-1],
        "score": f"{scores[-1]:.2f}" if len(scores) else "",
        **{x: f"{mean.mean():.2f}" if len(mean) else "" for x, mean in means.items()},
        "rooms": int(rooms[-1]) if len(rooms) else "",
        "evaluation": fresh,
        "error": error,
        "minutes": f"{60 * run.hours[-1]:.0f}",
        "curve": curve_cell(steps, scores, 2),
    }


def print_table(runs: list[dict]) -> None:
    """The table of docs/results, in Markdown."""
    print("| row | flags | seeds | 0.75M to 1M | last 0.25M | rooms | evaluation | minutes |")
    print("|---|---|---|---|---|---|---|---|")
    for row, (flags, _) in (ROWS | CONTROLS["reversed"]).items():
        if mine := [r for r in runs if r["row"] == row]:
            forms = {"before_1m": ".1f", "before_end": ".1f", "rooms": ".0f", "evaluation": ".1f", "minutes": ".0f"}
            cells = [spread([r[column] for r in mine], form) for column, form in forms.items()]
            print(f"| {row} | `{' '.join(flags)}` | {len(mine)} | {' | '.join(cells)} |")


def draw(runs: list[dict], path: pathlib.Path) -> None:
    """Score against steps, a line for each seed, a panel for each game."""
    rows = list(dict.fromkeys(r["row"] for r in runs))
    games = list(dict.fromkeys(row.split(",")[0] for row in rows))
    figure, panels = grid(len(games), 3, 4.4, 3.4)
    for panel, game in zip(panels.flat, games, strict=False):
        for k, row in enumerate(x for x in rows if x.startswith(f"{game},")):
            style = {"color": f"C{k % 10}", "linestyle": "--" if k >= 10 else "-", "linewidth": 1}
            for n, (x, y) in enumerate(curves_of(runs, row, 1e6)):
                panel.plot(x, y, **style, label=None if n else row.split(", ", 1)[1])
        panel.set(title=game, xlabel="million steps")
        panel.legend(frameon=False, fontsize=7)
    panels[0, 0].set_ylabel("mean return, last 100 episodes")
    figure.savefig(path, dpi=110)


def main() -> int:
    parser = table_parser(__doc__, "runs/dqn")
    parser.add_argument("--control", choices=CONTROLS, help="the rows of this control in place of the script's own")
    args = parser.parse_args()
    script = SCRIPT if args.control is None else ROOT / f"benchmark/dqn_{args.control}.py"
    runs, status = fill_table(
        *(script, CONTROLS.get(args.control, ROWS), args, measure),
        tell=lambda line: f"score {line['score']} after {int(line['steps']):,} steps",
    )
    if runs:
        draw(runs, args.out.with_suffix(".png"))
        print_table(runs)
    return status


if __name__ == "__main__":
    sys.exit(main())
