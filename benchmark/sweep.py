"""Runs a script over seeds and settings, several runs side by side, into one CSV that benchmark/plot.py draws.

    python benchmark/sweep.py ppo_rnd_minigrid.py --out docs/results/name --seeds 0 1 2 --jobs 2 \\
        --settings "" "--int-coef 0" -- --env-id DoorKey-8x8 --total-timesteps 1e6
    python benchmark/plot.py docs/results/name.csv --scalars charts/episodic_return --out docs/results/name

What stands after -- is given to every run, a setting to its own; "" is the script as it is. Each run is a process of
its own. The same command again goes on where the last one was stopped, by Ctrl-C or otherwise: a run that is finished
is not repeated, one that was interrupted is resumed. OUT.csv gets what the finished runs have logged.
"""

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading

import plot

running: dict[pathlib.Path, subprocess.Popen] = {}
stopped = threading.Event()


def folder_of(runs_dir: pathlib.Path, script: pathlib.Path, flags: list[str], seed: int) -> pathlib.Path:
    """Where a run is kept: a name that can be read, and a digest, so that other flags have another folder."""
    words = re.sub(r"[^\w.]+", "_", " ".join(flags)).strip("_")[:60]
    digest = hashlib.sha256(repr(flags).encode()).hexdigest()[:6]
    return runs_dir / script.stem / f"{words}_{digest}" / f"seed_{seed}"


def run(script: pathlib.Path, flags: list[str], seed: int, folder: pathlib.Path) -> str:
    """Starts or resumes a run and waits for it. Returns the last line it printed; RuntimeError if it failed."""
    if stopped.is_set():
        raise InterruptedError
    done = folder / "finished.txt"
    if done.exists():
        return done.read_text().strip()
    folder.mkdir(parents=True, exist_ok=True)
    begun = [*folder.glob("*/latest.pt")]
    own = ["--resume", str(begun[0])] if begun else [*flags, "--seed", str(seed), "--runs-dir", str(folder)]
    with open(folder / "output.txt", "a") as output:
        # a session of its own, so that Ctrl-C reaches it once, through main()
        process = subprocess.Popen(
            [sys.executable, str(script), *own], stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        running[folder] = process
        status = process.wait()
        del running[folder]
    if stopped.is_set():
        raise InterruptedError
    lines = (folder / "output.txt").read_text().splitlines()
    line = next((line for line in reversed(lines) if re.search(r"\w", line)), "no output")
    if status and not (begun and "has all of its" in line):  # it had ended just before it could be noted
        raise RuntimeError(f"{line} ({folder / 'output.txt'})")
    done.write_text(line + "\n")
    return line


def collect(folder: pathlib.Path, setting: str, seed: int) -> plot.Run:
    """What a finished run has logged."""
    one = plot.from_folder(next(folder.glob("*/events.out.tfevents.*")).parent)
    one.setting, one.seed = setting or "default", seed
    return one


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("script", type=pathlib.Path, help="the script")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="path of the results, without its ending")
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
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // args.jobs)))

    for number in (signal.SIGINT, signal.SIGTERM):  # SIGINT too: what a shell starts with & ignores it
        signal.signal(number, signal.default_int_handler)
    todo = {}  # (setting, seed) -> flags, folder
    for seed in args.seeds:
        for setting in args.settings:
            flags = [*common, *shlex.split(setting)]
            todo[setting, seed] = flags, folder_of(args.runs_dir, args.script, flags, seed)
    failed = 0
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        jobs = {pool.submit(run, args.script, flags, key[1], folder): key for key, (flags, folder) in todo.items()}
        try:
            for k, job in enumerate(concurrent.futures.as_completed(jobs), 1):
                setting, seed = jobs[job]
                name = f"{k}/{len(todo)} {setting or 'default'}, seed {seed}"
                try:
                    print(f"{name}: {job.result()}", flush=True)
                except RuntimeError as error:
                    failed += 1
                    print(f"{name}: FAILED: {error}", flush=True)
        except KeyboardInterrupt:
            print("stopping: the runs under way are saved; the same command again goes on", flush=True)
            stopped.set()
            pool.shutdown(wait=False, cancel_futures=True)
            for process in [*running.values()]:
                process.send_signal(signal.SIGTERM)
    finished = {key: folder for key, (_, folder) in todo.items() if (folder / "finished.txt").exists()}
    if finished:
        runs = [collect(folder, *key) for key, folder in finished.items()]
        plot.write_csv(runs, args.out.with_suffix(".csv"), args.points)
        print(f"{args.out.with_suffix('.csv')}: {len(finished)} of {len(todo)} runs")
    return 130 if stopped.is_set() else int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
