"""What the ranks of a distributed run spend on each other: transfers, and waiting for the slowest.

    torchrun --nproc-per-node 2 benchmark/ranks.py --device cpu --warmup-rollouts 1

Runs ppo_rnd_atari.py with its own flags for two iterations, of which the first is not counted. Before each collective
operation the ranks meet, so that waiting and transfer can be told apart; rank 0 prints both as shares of the iteration.
"""

import pathlib
import sys
import tempfile
import time

import torch.distributed as dist
from torch.utils.tensorboard import SummaryWriter

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import ppo_rnd_atari as script

KINDS = {"all_reduce": "gradients, statistics, averages", "all_gather_object": "episodes, signals, checkpoints"}


def main() -> int:
    flags = sys.argv[1:]
    args, *_ = script.parse(flags)
    seconds: dict[str, float] = {"waiting": 0.0} | dict.fromkeys(KINDS.values(), 0.0)
    calls = dict.fromkeys(KINDS.values(), 0)
    marks = []
    barrier = dist.barrier

    def measured(function, kind):
        def call(*a, **k):
            start = time.perf_counter()
            barrier()
            met = time.perf_counter()
            function(*a, **k)
            seconds["waiting"] += met - start
            seconds[kind] += time.perf_counter() - met
            calls[kind] += 1

        return call

    for name, kind in KINDS.items():
        setattr(dist, name, measured(getattr(dist, name), kind))
    add_scalar = SummaryWriter.add_scalar

    def note(self, tag, *a, **k):
        add_scalar(self, tag, *a, **k)
        if tag == "charts/SPS":  # once an iteration, on rank 0
            marks.append((time.perf_counter(), dict(seconds), dict(calls)))

    SummaryWriter.add_scalar = note
    steps = 2 * args.num_envs * args.num_steps * script.RANKS
    with tempfile.TemporaryDirectory() as folder:
        status = script.main([*flags, "--total-timesteps", str(steps), "--runs-dir", folder])
    if script.RANK == 0 and not status:
        (first, before, calls_before), (last, after, calls_after) = marks
        total = last - first
        print(f"an iteration of {args.num_steps} x {args.num_envs} on each of {script.RANKS} ranks: {total:.2f} s")
        for kind, value in after.items():
            spent = value - before[kind]
            times = f", {calls_after[kind] - calls_before[kind]} calls" if kind in calls else ""
            print(f"  {kind}: {spent:.3f} s, {100 * spent / total:.2f} %{times}")
    return status


if __name__ == "__main__":
    sys.exit(main())
