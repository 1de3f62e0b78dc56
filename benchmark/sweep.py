"""Runs a script over seeds and settings, several runs side by side, into one CSV that benchmark/plot.py draws.

    python benchmark/sweep.py ppo_rnd_minigrid.py --out docs/results/name --seeds 0 1 2 --jobs 2 \\
        --settings "" "--int-coef 0" -- --env-id DoorKey-8x8 --total-timesteps 1e6
    python benchmark/plot.py docs/results/name.csv --scalars charts/episodic_return --out docs/results/name

What stands after -- is given to every run, a setting to its own; "" is the script as it is. Each run is a process of
its own. The same command again goes on where the last one was stopped, by Ctrl-C or otherwise: a run that is finished
is not repeated, one that was interrupted is resumed (or starts anew, if its script has no --resume). OUT.csv gets what
the finished runs have logged.

maze.py, doorkey.py, minigrid_runs.py, ram.py, dqn.py and continuous.py fill their tables with the functions below.
"""

import argparse
import concurrent.futures
import csv
import hashlib
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import plot

ROOT = pathlib.Path(__file__).resolve().parents[1]

# ---------------------------------------------------------------------------------------------------- running


class Job(NamedTuple):
    row: str  # what the run is called, whatever its seed
    flags: list[str]
    seed: int


running: set[subprocess.Popen] = set()
stopped = threading.Event()


def folder_of(runs_dir: pathlib.Path, script: pathlib.Path, flags: list[str], seed: int) -> pathlib.Path:
    """Where a run is kept: a name that can be read, and a digest, so that other flags have another folder."""
    words = re.sub(r"[^\w.]+", "_", " ".join(flags)).strip("_")[:60]
    digest = hashlib.sha256(repr(flags).encode()).hexdigest()[:6]
    return runs_dir / script.stem / f"{words}_{digest}" / f"seed_{seed}"


def run(script: pathlib.Path, job: Job, runs_dir: pathlib.Path, threads: int) -> tuple[pathlib.Path, str]:
    """Starts or resumes a run and waits for its end; what is finished is not repeated.

    Returns: the folder that the script made, and the last line that it printed. RuntimeError if it failed.
    """
    if stopped.is_set():
        raise InterruptedError
    folder = folder_of(runs_dir, script, job.flags, job.seed)
    done = folder / "finished.txt"
    if not done.exists():
        begun = [*folder.glob("*/latest.pt")] if "--resume" in script.read_text() else []
        if begun:
            words = ["--resume", str(begun[0])]
        else:  # what an earlier start has left is worth nothing without a checkpoint
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            words = [*job.flags, "--seed", str(job.seed), "--runs-dir", str(folder)]
        with open(folder / "output.txt", "a") as output:
            # a session of its own, so that Ctrl-C reaches it once, through run_all()
            process = subprocess.Popen(
                [sys.executable, str(script), *words],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
        running.add(process)
        if stopped.is_set():
            process.terminate()
        status = process.wait()
        running.remove(process)
        if stopped.is_set():
            raise InterruptedError
        lines = [x for x in (folder / "output.txt").read_text().splitlines() if re.search(r"\w", x)]
        line = next((x for x in reversed(lines) if not re.match("(evaluate|resume) with: ", x)), "no output")
        if status and not (begun and "has all of its" in line):  # it had ended just before it could be noted
            raise RuntimeError(f"{line} ({folder / 'output.txt'})")
        done.write_text(line + "\n")
    (made,) = folder.glob("*/")
    return made, done.read_text().strip()


def run_all(
    script: pathlib.Path,
    jobs: list[Job],
    runs_dir: pathlib.Path,
    side_by_side: int,
    threads: int,
    measure: Callable[[Job, pathlib.Path, str], object],
    note: Callable[[Job, object], str],
) -> int:
    """Runs jobs side by side, each with so many threads. At Ctrl-C or SIGTERM all of them save and stop.

    Args:
        measure: makes something of a finished run, its folder and last line; called beside the other runs
        note: takes that in, one run after the other, and says what to print
    Returns: the exit status: 0, 1 if a run failed, 130 if they were stopped.
    """
    # SIGINT too: what a shell starts with & ignores it
    before = {x: signal.signal(x, signal.default_int_handler) for x in (signal.SIGINT, signal.SIGTERM)}
    stopped.clear()
    failed = 0

    def finish(job: Job) -> object:
        return measure(job, *run(script, job, runs_dir, threads))

    with concurrent.futures.ThreadPoolExecutor(side_by_side) as pool:
        futures = {pool.submit(finish, job): job for job in jobs}
        try:
            for k, future in enumerate(concurrent.futures.as_completed(futures), 1):
                job = futures[future]
                try:
                    text = note(job, future.result())
                except Exception as error:  # one run's fault is no other's
                    failed += 1
                    text = f"FAILED: {str(error) or repr(error)}"
                print(f"{k}/{len(jobs)} {job.row}, seed {job.seed}: {text}", flush=True)
        except KeyboardInterrupt:
            stopped.set()
            print("stopping: the runs under way are saved; the same command again goes on", flush=True)
            pool.shutdown(wait=False, cancel_futures=True)
            for process in [*running]:
                process.terminate()
    for number, handler in before.items():
        signal.signal(number, handler)
    return 130 if stopped.is_set() else int(failed > 0)


# ----------------------------------------------------------------------- tables with a line for each run


def table_parser(doc: str, runs_dir: str) -> argparse.ArgumentParser:
    """The flags of a program that fills a table."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=plot.stem, required=True, help="path of the results, without its ending")
    parser.add_argument("--runs-dir", type=pathlib.Path, default=runs_dir, help="where the runs are kept")
    parser.add_argument("--rows", nargs="+", default=[""], help="which rows to run: names, or how they begin")
    parser.add_argument("--seeds", type=int, nargs="+", help="which seeds to run; otherwise all")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each")
    parser.add_argument("--redraw", action="store_true", help="run nothing; figure and table from the CSV as it is")
    return parser


def read_table(path: pathlib.Path) -> list[dict[str, str]]:
    """The lines of a CSV, if there is one."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def write_table(path: pathlib.Path, lines: list[dict]) -> None:
    """Lines to a CSV, which is there whole or not at all; some may have more columns than others."""
    part = path.with_suffix(".part")
    with open(part, "w", newline="") as file:
        writer = csv.DictWriter(file, dict.fromkeys(key for line in lines for key in line))
        writer.writeheader()
        writer.writerows(lines)
    part.replace(path)


def fill_table(
    script: pathlib.Path,
    rows: dict[str, tuple[list[str], int]],
    args: argparse.Namespace,
    measure: Callable[[Job, pathlib.Path], dict],
    tell: Callable[[dict], str],
) -> tuple[list[dict[str, str]], int]:
    """Runs what OUT.csv has no line of; each run adds its line, its measures, when it ends.

    Args:
        rows: name -> (flags, how many seeds)
        args: those of `table_parser`
        measure: the columns of a finished run, after row, seed, flags and commit
        tell: says of a new line what to print
    Returns: all lines, and the exit status, 0 or 1. If the runs were stopped, it leaves the program.
    """
    path = args.out.with_suffix(".csv")
    if args.redraw:
        return read_table(path), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = read_table(path)
    for line in lines:  # a row's flags may have been changed since; of lines that do not note them nothing is known
        if line["row"] in rows and line.get("flags") not in (None, "", " ".join(rows[line["row"]][0])):
            sys.exit(f"{path}: {line['row']}, seed {line['seed']}, was run with other flags; take its line out")
    done = {(line["row"], int(line["seed"])) for line in lines}
    jobs = [Job(row, flags, seed) for row, (flags, seeds) in rows.items() for seed in range(1, seeds + 1)]
    jobs.sort(key=lambda job: job.seed)  # first one seed of every row
    beginnings = tuple(name for name in args.rows if name not in rows)
    jobs = [job for job in jobs if job.row in args.rows or job.row.startswith(beginnings)]
    jobs = [job for job in jobs if job.seed in (args.seeds or [job.seed])]
    if not jobs:
        sys.exit(f"no such rows and seeds; the rows are: {'; '.join(rows)}")

    def note(job: Job, line: dict) -> str:
        write_table(path, [*read_table(path), line])
        return tell(line)

    def line_of(job: Job, folder: pathlib.Path, _: str) -> dict:
        commit = plot.from_folder(folder).flags.get("commit", "")
        line = {"row": job.row, "seed": job.seed, "flags": " ".join(job.flags), "commit": commit}
        return line | measure(job, folder)

    status = run_all(
        script,
        [job for job in jobs if (job.row, job.seed) not in done],
        args.runs_dir,
        args.jobs,
        threads=1,
        measure=line_of,
        note=note,
    )
    if status == 130:
        sys.exit(status)
    return read_table(path), status


def evaluation(script: pathlib.Path, folder: pathlib.Path, episodes: int = 100, *more: str) -> tuple[str, str]:
    """Mean return and standard error of a run's last agent in fresh episodes. more: further flags."""
    flags = ["--evaluate", str(folder), "--eval-episodes", str(episodes), "--seed", "1000", *more]
    done = subprocess.run(
        [sys.executable, str(script), *flags], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    if done.returncode:
        raise RuntimeError(f"{folder} cannot be evaluated: {done.stderr}")
    return re.search(r"return (\S+) \+- (\S+)", done.stdout).groups()


def curve_cell(x: np.ndarray, y: np.ndarray, decimals: int, marks: np.ndarray | None = None) -> str:
    """A curve (K,), (K,) as a cell of a table, at some of its points: those numbered, or 100 spread evenly."""
    marks = sorted({round(k) for k in np.linspace(0, len(x) - 1, 100)}) if marks is None else marks
    return " ".join(f"{x[k]}:{y[k]:.{decimals}f}" for k in marks) if len(x) else ""


def curves_of(lines: list[dict[str, str]], row: str, unit: float = 1.0) -> list[tuple[np.ndarray, np.ndarray]]:
    """The curves of a row's seeds, x in these units."""
    cells = [line["curve"].split() for line in lines if line["row"] == row and line["curve"]]
    curves = [np.array([point.split(":") for point in cell], float).T for cell in cells]
    return [(x / unit, y) for x, y in curves]


def spread(cells: list[str], form: str, unit: float = 1.0, none: str = "") -> str:
    """Lowest / median / highest of the cells that are not empty; if some are, how many are not."""
    values = [float(cell) / unit for cell in cells if cell != ""]
    if not values:
        return none
    shown = [min(values), float(np.median(values)), max(values)] if len(values) > 1 else values
    text = " / ".join(format(x, form) for x in shown)
    return text if len(values) == len(cells) else f"{text} ({len(values)} of {len(cells)})"


# ------------------------------------------------------------------------------------------ the program


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=pathlib.Path, help="the script")
    parser.add_argument("--out", type=plot.stem, required=True, help="path of the results, without its ending")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--settings", nargs="+", default=[""], help="flags of one setting each, in quotes")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side; each gets its share of the cores")
    parser.add_argument("--runs-dir", type=pathlib.Path, default="runs/sweep", help="where the runs are kept")
    parser.add_argument("--points", type=int, default=200, help="lines of the CSV for each run, at most")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args, common = parser.parse_args(words[:cut]), words[cut + 1 :]
    if not args.script.is_file():
        parser.error(f"there is no {args.script}")
    if args.jobs < 1 or args.points < 1:
        parser.error("--jobs and --points must be at least 1")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    threads = int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // args.jobs)))

    settings = dict.fromkeys(args.settings)
    jobs = [
        Job(x or "default", [*common, *shlex.split(x)], seed) for seed in dict.fromkeys(args.seeds) for x in settings
    ]
    status = run_all(
        *(args.script, jobs, args.runs_dir, args.jobs, threads),
        measure=lambda job, folder, line: line,
        note=lambda job, line: line,
    )
    runs = []
    for job in jobs:
        folder = folder_of(args.runs_dir, args.script, job.flags, job.seed)
        if (folder / "finished.txt").exists():
            runs.append(plot.from_folder(next(folder.glob("*/"))))
            runs[-1].setting, runs[-1].seed = job.row, job.seed
    if len(commits := {run.flags.get("commit", "unknown") for run in runs}) > 1:
        print(f"note: these runs are of commits {', '.join(sorted(commits))}")
    if runs:
        plot.write_csv(runs, args.out.with_suffix(".csv"), args.points)
        print(f"{args.out.with_suffix('.csv')}: {len(runs)} of {len(jobs)} runs")
    return status


if __name__ == "__main__":
    sys.exit(main())
