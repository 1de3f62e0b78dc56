"""A long run, watched: memory, logs and checkpoints, and one kill -9 in the middle.

    python benchmark/endurance.py runs/RUN --minutes 120 --kill 60 --out docs/results/endurance.csv -- \\
        --total-timesteps 25e6

Resumes the run with the flags after --. Every minute a line is added to the CSV: the process's resident memory, the
size of the TensorBoard files, and the step of latest.pt, which is read whole. After --kill minutes the process gets
SIGKILL and the run is resumed; after --minutes it gets SIGTERM and saves. The same command again adds another piece.
"""

import argparse
import csv
import datetime
import math
import pathlib
import re
import signal
import subprocess
import sys
import time

import torch
from sweep import ROOT, read_table


def memory(process: subprocess.Popen) -> float:
    """Resident memory in MB (Linux)."""
    return int(re.search(r"VmRSS:\s+(\d+) kB", pathlib.Path(f"/proc/{process.pid}/status").read_text())[1]) / 1e3


def sample(run: pathlib.Path, process: subprocess.Popen, began: float) -> dict[str, str]:
    """A line of the CSV. Fails if latest.pt cannot be read."""
    logs = sum(path.stat().st_size for path in run.glob("events.*"))
    return {
        "run": run.name,
        "time": datetime.datetime.now().isoformat(timespec="seconds"),
        "process": str(process.pid),
        "minutes": f"{(time.monotonic() - began) / 60:.1f}",
        "memory_mb": f"{memory(process):.1f}",
        "logs_mb": f"{logs / 1e6:.2f}",
        "step": str(torch.load(run / "latest.pt", map_location="cpu", weights_only=True)["step"]),
    }


def watch(run: pathlib.Path, command: list[str], minutes: float, how: signal.Signals, out: pathlib.Path) -> int:
    """Runs the command, ends it after so many minutes if it has not ended by itself. Returns its exit status."""
    began = time.monotonic()
    process = subprocess.Popen(command)
    while time.monotonic() < began + 60 * minutes:
        try:
            return process.wait(min(60, max(0, began + 60 * minutes - time.monotonic())))
        except subprocess.TimeoutExpired:
            line = sample(run, process, began)
            with open(out, "a", newline="") as file:
                writer = csv.DictWriter(file, line)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(line)
    process.send_signal(how)
    return process.wait()


def print_table(lines: list[dict[str, str]]) -> None:
    """A line for each process. Memory is compared with its tenth minute, when everything has been used once."""
    print("| run | process | minutes | memory in MB at 10, at most after | growth | logs, MB | step of latest.pt |")
    print("|---|---|---|---|---|---|---|")
    for key in dict.fromkeys((line["run"], line["process"]) for line in lines):
        of = [line for line in lines if (line["run"], line["process"]) == key]
        later = [float(line["memory_mb"]) for line in of if float(line["minutes"]) >= 10]
        start, most = (later[0], max(later)) if later else (math.nan, math.nan)
        print(f"| {key[0]} | {key[1]} | {of[-1]['minutes']} | {start:,.0f}, {most:,.0f}", end=" | ")
        print(f"{100 * (most / start - 1):.1f} % | {of[-1]['logs_mb']}", end=" | ")
        print(f"{int(of[0]['step']):,} to {int(of[-1]['step']):,} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="the run's folder")
    parser.add_argument("--script", default="ppo_rnd_atari_ram.py", help="the script that made it")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the CSV")
    parser.add_argument("--minutes", type=float, required=True, help="how long, in all")
    parser.add_argument("--kill", type=float, help="after how many minutes to kill it")
    words = sys.argv[1:]
    cut = words.index("--") if "--" in words else len(words)
    args, flags = parser.parse_args(words[:cut]), words[cut + 1 :]
    if not (args.run / "latest.pt").is_file():
        parser.error(f"there is no checkpoint {args.run / 'latest.pt'}")
    command = [sys.executable, str(ROOT / args.script), "--resume", str(args.run), *flags]
    left, status = args.minutes, -signal.SIGKILL
    try:
        if args.kill is not None:
            status = watch(args.run, command, args.kill, signal.SIGKILL, args.out)
            left -= args.kill
        if status == -signal.SIGKILL:
            status = watch(args.run, command, left, signal.SIGTERM, args.out)
    except KeyboardInterrupt:  # the script has got it too, and saves
        return 130
    print_table(read_table(args.out))
    return 0 if status in (0, 128 + signal.SIGTERM) else 1


if __name__ == "__main__":
    sys.exit(main())
