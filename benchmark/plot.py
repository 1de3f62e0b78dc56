"""From runs to a CSV of their scalars and a figure of their curves, one line a run.

    python benchmark/plot.py runs/A runs/B --scalars charts/episodic_return rnd/rooms_visited --out docs/results/name

The x axis is emulator frames, 4 to a step. Every run is shown; nothing is averaged or left out.
"""

import argparse
import csv
import pathlib

import matplotlib
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read_scalars(run_dir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars in a run's folder: name -> [(step, value)]."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path, help="folders of runs")
    parser.add_argument("--scalars", nargs="+", default=["charts/episodic_return"], help="one panel each")
    parser.add_argument("--out", required=True, type=pathlib.Path, help="path of the results, without its ending")
    args = parser.parse_args()
    data = {run.name: read_scalars(run) for run in args.runs}
    for run, scalars in data.items():
        if not scalars:
            parser.error(f"{run} holds no TensorBoard scalars")

    tags = sorted({tag for scalars in data.values() for tag in scalars})
    with open(args.out.with_suffix(".csv"), "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["run", "step", *tags])
        for run, scalars in data.items():
            columns = {tag: dict(scalars.get(tag, [])) for tag in tags}
            for step in sorted({step for column in columns.values() for step in column}):
                cells = (columns[tag].get(step) for tag in tags)
                writer.writerow([run, step, *("" if x is None else f"{x:.6g}" for x in cells)])

    columns = min(3, len(args.scalars))
    rows = -(-len(args.scalars) // columns)
    figure, panels = plt.subplots(rows, columns, figsize=(4.2 * columns, 2.9 * rows), squeeze=False)
    for panel in panels.flat[len(args.scalars) :]:
        panel.set_visible(False)
    for panel, tag in zip(panels.flat, args.scalars, strict=False):
        for run, scalars in data.items():
            points = scalars.get(tag, [])
            panel.plot([4 * step / 1e6 for step, _ in points], [value for _, value in points], label=run, linewidth=1)
        panel.set(title=tag, xlabel="million frames")
        panel.spines[["top", "right"]].set_visible(False)
    if len(data) > 1:
        panels.flat[0].legend(fontsize=6)
    figure.tight_layout()
    figure.savefig(args.out.with_suffix(".png"), dpi=120)
    print(f"{args.out.with_suffix('.csv')}, {args.out.with_suffix('.png')}")


if __name__ == "__main__":
    main()
