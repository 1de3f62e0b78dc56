"""Atari from RAM: Montezuma's Revenge and six other games that want exploration, with the bonus and without.

    python benchmark/ram.py --out docs/results/ram --jobs 2

Each run is `python ppo_rnd_atari_ram.py` with the flags of its row, as a process of its own on one thread. Runs that
are already in the CSV are not repeated, so this can be stopped and started again; a run that was stopped goes on from
its checkpoint. Writes <out>.csv (a line for each run), the figure <out>.png, and prints the table. A level is reached
at the first iteration after which the mean return of the last 100 episodes is at least that.
"""

import math
import pathlib
import sys

from plot import curve, from_folder, grid
from sweep import ROOT, Job, curve_cell, curves_of, evaluation, fill_table, spread, table_parser

SCRIPT = ROOT / "ppo_rnd_atari_ram.py"
LEVELS = {"key": 100, "door": 400, "1,000": 1000, "2,500": 2500}  # Montezuma's Revenge
STEPS = {"MontezumaRevenge": "3.5e6"}
STEPS |= dict.fromkeys(("Venture", "PrivateEye", "Gravitar", "Solaris", "Freeway", "Pitfall"), "5e6")
VARIANTS = {"with the bonus": "", "without": "--int-coef 0"}
ROWS = {
    f"{game}, {variant}": (
        f"--env-id {game} --bf16 --total-timesteps {steps} {extra}".split(),
        13 if game == "MontezumaRevenge" else 2,
    )
    for game, steps in STEPS.items()
    for variant, extra in VARIANTS.items()
}
LONGER = {"MontezumaRevenge, on to 8M": "8e6", "MontezumaRevenge, to 25M": "25e6"}  # with the bonus, more steps
ROWS |= {
    row: (["--env-id", "MontezumaRevenge", "--bf16", "--total-timesteps", steps], 13) for row, steps in LONGER.items()
}
# "without" divides the advantages by their std, also while there is no reward and they are noise
RAW = "no bonus, advantages as they are"
ROWS[f"MontezumaRevenge, {RAW}"] = ([*ROWS["MontezumaRevenge, without"][0], "--no-norm-adv"], 13)


def measure(job: Job, folder: pathlib.Path) -> dict:
    """The columns of the CSV for a finished run, after those that all tables have."""
    run = from_folder(folder)
    steps, scores = curve(run, "charts/score", "steps")
    rooms = curve(run, "rnd/rooms_visited", "steps")[1]
    returns, error = evaluation(SCRIPT, folder)
    levels = LEVELS if job.row.startswith("MontezumaRevenge") else dict.fromkeys(LEVELS, math.inf)
    reached = {name: next(iter(steps[scores >= level]), "") for name, level in levels.items()}
    return reached | {
        "steps": int(steps[-1]),
        "score": f"{scores[-1]:.1f}",
        "rooms": int(rooms[-1]) if len(rooms) else "",
        "evaluation": returns,
        "error": error,
        "curve": curve_cell(steps, scores, 1),
    }


def draw(runs: list[dict], path: pathlib.Path) -> None:
    """Score against steps, a line for each seed of each row, a panel for each game."""
    games = [game for game in STEPS if any(r["row"].startswith(f"{game},") for r in runs)]
    figure, panels = grid(len(games), 3, 4, 3)
    for panel, game in zip(panels.flat, games, strict=False):
        for k, variant in enumerate([*VARIANTS, RAW]):
            curves = curves_of(runs, f"{game}, {variant}", 1e6)
            for longer in LONGER if (game, k) == ("MontezumaRevenge", 0) else ():
                curves += curves_of(runs, longer, 1e6)
            for n, (x, y) in enumerate(curves):
                panel.plot(x, y, f"C{k}", linewidth=1, label=None if n else variant)
        panel.set(title=game, xlabel="million steps")
    for panel in panels[:, 0]:
        panel.set_ylabel("mean return, last 100 episodes")
    panels[0, 0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def print_table(runs: list[dict]) -> None:
    """A line for each row, cells lowest / median / highest; and one for each run."""
    names = [name for name in LEVELS if any(r[name] for r in runs)]
    print("| row | seeds |", "".join(f" {name}, million steps |" for name in names), "score | rooms | evaluation |")
    print("|---|---|" + "---|" * (len(names) + 3))
    for row in ROWS:
        if not (of := [r for r in runs if r["row"] == row]):
            continue
        levels = "".join(f" {spread([r[name] for r in of], '.2f', 1e6, 'never')} |" for name in names)
        rest = " | ".join(spread([r[name] for r in of], "z.0f") for name in ("score", "rooms", "evaluation"))
        print(f"| {row} | {len(of)} |{levels} {rest} |")
    print()
    print("| row | seed |", "".join(f" {name} |" for name in names), "played | score | rooms | evaluation |")
    print("|---|---|" + "---|" * (len(names) + 4))
    for r in sorted(runs, key=lambda r: (r["row"], int(r["seed"]))):
        levels = "".join(f" {spread([r[name]], '.2f', 1e6, 'never')} |" for name in names)
        played = f"{int(r['steps']) / 1e6:.2f}"
        print(
            f"| {r['row']} | {r['seed']} |{levels} {played} | {r['score']} | {r['rooms']} |"
            f" {float(r['evaluation']):,.1f} +- {r['error']} |"
        )


def main() -> int:
    args = table_parser(__doc__, "runs/ram").parse_args()
    runs, status = fill_table(
        SCRIPT, ROWS, args, measure, lambda line: f"{line['score']} after {int(line['steps']):,} steps"
    )
    if runs:
        draw(runs, args.out.with_suffix(".png"))
        print_table(runs)
    return status


if __name__ == "__main__":
    sys.exit(main())
