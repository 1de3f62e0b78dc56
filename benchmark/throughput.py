"""What a training iteration costs, part by part, and what the peer costs beside it.

    python benchmark/throughput.py                                        fp32 and bf16, parts and whole
    python benchmark/throughput.py --peer PATH/cleanrl/ppo_rnd_envpool.py the same, with CleanRL's script in between
    python benchmark/throughput.py --num-steps 128 --iterations 3         full-size rollouts, for memory
    python benchmark/throughput.py --doorkey                              a2c_rnd_doorkey.py instead, frames a second
    python benchmark/throughput.py --minigrid                             ppo_rnd_minigrid.py instead, frames a second
    python benchmark/throughput.py --snd --num-steps 16                   snd_atari.py, by preset, too

Costs are CPU-milliseconds per environment step (user + system time of the process), because a shared machine's clock
says little; with CUDA, wall milliseconds per iteration as well, the device waited for at the border of each part. Each
line is a process of its own that runs the real script; the first iteration is not counted. The peer's file is run as it
is: the adapter below only gives it the interfaces of `gym` and of the older EnvPool that it was written for.
"""

import argparse
import contextlib
import importlib
import itertools
import json
import os
import pathlib
import resource
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
import types

SCRIPT = pathlib.Path(__file__).resolve().parents[1] / "ppo_rnd_atari.py"
SND = SCRIPT.with_name("snd_atari.py")
DOORKEY, MINIGRID = SCRIPT.with_name("a2c_rnd_doorkey.py"), SCRIPT.with_name("ppo_rnd_minigrid.py")


def cpu_seconds() -> float:
    """User and system time of this process so far, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


class Parts:
    """CPU and wall seconds spent in named parts of a program; a part inside another counts for the inner one."""

    def __init__(self):
        import torch

        self.wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        self.cpu: dict[str, float] = {}
        self.wall: dict[str, float] = {}
        self.active = False

    @contextlib.contextmanager
    def part(self, name: str):
        if self.active:
            yield
            return
        self.active = True
        self.wait()
        cpu, wall = cpu_seconds(), time.perf_counter()
        try:
            yield
        finally:
            self.wait()
            self.cpu[name] = self.cpu.get(name, 0) + cpu_seconds() - cpu
            self.wall[name] = self.wall.get(name, 0) + time.perf_counter() - wall
            self.active = False

    def wrap(self, holder: object, attribute: str, name: str) -> None:
        """Lets every call of holder.attribute count as part `name`."""
        function = getattr(holder, attribute)

        def measured(*args, **kwargs):
            with self.part(name):
                return function(*args, **kwargs)

        setattr(holder, attribute, measured)


def stand_in_for_gym() -> None:
    """Lets a program written for gym 0.23 and EnvPool 0.6 run on today's EnvPool: 4-value steps, settable fields."""
    import envpool
    import gymnasium
    import numpy as np

    class Wrapper:
        def __init__(self, env):
            self.env = env

        def __getattr__(self, name):
            return getattr(self.env, name)

        def reset(self, **kwargs):
            return self.env.reset(**kwargs)

        def step(self, action):
            return self.env.step(action)

    class RunningMeanStd:
        def __init__(self, epsilon=1e-4, shape=()):
            self.mean, self.var, self.count = np.zeros(shape), np.ones(shape), epsilon

        def update(self, x):
            self.update_from_moments(np.mean(x, axis=0), np.var(x, axis=0), len(x))

        def update_from_moments(self, mean, var, count):
            delta, total = mean - self.mean, self.count + count
            m2 = self.var * self.count + var * count + delta**2 * self.count * count / total
            self.mean, self.var, self.count = self.mean + delta * count / total, m2 / total, total

    class OldPool:
        def __init__(self, pool):
            self.pool = pool
            self.action_space, self.observation_space = pool.action_space, pool.observation_space

        def reset(self):
            return self.pool.reset()[0]

        def step(self, action):
            obs, reward, terminated, truncated, info = self.pool.step(action)
            return obs, reward, terminated | truncated, info

        def close(self):
            self.pool.close()

    new_make = envpool.make

    def make(task, env_type, num_envs, **kwargs):
        threads = min(num_envs, len(os.sched_getaffinity(0)))
        return OldPool(new_make(task, env_type="gymnasium", num_envs=num_envs, num_threads=threads, **kwargs))

    envpool.make = make
    gym, wrappers, normalize = (types.ModuleType(n) for n in ("gym", "gym.wrappers", "gym.wrappers.normalize"))
    gym.Wrapper, gym.spaces, gym.wrappers = Wrapper, gymnasium.spaces, wrappers
    wrappers.normalize, normalize.RunningMeanStd = normalize, RunningMeanStd
    sys.modules |= {"gym": gym, "gym.wrappers": wrappers, "gym.wrappers.normalize": normalize}


def measure(path: str, steps: int, threads: int, flags: list[str]) -> None:
    """Runs a training script in this process, prints one line of JSON: cost of its iterations but for the first."""
    import torch
    from torch.utils.tensorboard import SummaryWriter

    if threads:
        torch.set_num_threads(threads)
    parts, marks = Parts(), []
    add_scalar = SummaryWriter.add_scalar

    def note(self, tag, *args, **kwargs):
        add_scalar(self, tag, *args, **kwargs)
        if tag == "charts/SPS":  # both scripts log it once an iteration
            parts.wait()
            marks.append((cpu_seconds(), time.perf_counter(), dict(parts.cpu), dict(parts.wall)))

    SummaryWriter.add_scalar = note
    sys.argv = [path, *flags]
    if pathlib.Path(path).resolve() in (SCRIPT, SND):
        sys.path.insert(0, str(SCRIPT.parent))
        script = importlib.import_module(pathlib.Path(path).stem)
        parts.wrap(script.AtariEnvs, "step", "environments")
        for name in ("features", "reward_filter"):
            parts.wrap(script, name, "RND pass")
        parts.wrap(script.RunningMoments, "update", "RND pass")
        parts.wrap(script, "gae", "advantages")
        parts.wrap(torch.Tensor, "backward", "update")
        if hasattr(script, "target_loss"):
            parts.wrap(script, "target_loss", "target forward")
        parts.wrap(script, "ppo_loss", "update")
        parts.wrap(script.torch.optim.Adam, "step", "update")
        forward = script.Agent.forward

        def measured_forward(self, obs):
            with parts.part("update" if torch.is_grad_enabled() else "acting"):
                return forward(self, obs)

        script.Agent.forward = measured_forward
        status = script.main()
        if status:
            sys.exit(status)
    elif pathlib.Path(path).resolve() in (DOORKEY, MINIGRID):
        measure_on_views(pathlib.Path(path).stem, parts)
    else:
        stand_in_for_gym()
        runpy.run_path(path, run_name="__main__")
    result = {"cpu_ms": [], "wall_ms": [], "parts_cpu_ms": {}, "parts_wall_ms": {}}
    for before, after in itertools.pairwise(marks):
        result["cpu_ms"].append((after[0] - before[0]) / steps * 1e3)
        result["wall_ms"].append((after[1] - before[1]) * 1e3)
    for key, index in (("parts_cpu_ms", 2), ("parts_wall_ms", 3)):
        scale = 1e3 / (len(marks) - 1) / (steps if index == 2 else 1)
        result[key] = {name: (marks[-1][index][name] - marks[0][index].get(name, 0)) * scale for name in parts.cpu}
    result["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    result["gpu_gb"] = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
    print("RESULT " + json.dumps(result))


def measure_on_views(name: str, parts: Parts) -> None:
    """Runs a script for MiniGrid with the flags in sys.argv, its parts measured."""
    import torch

    sys.path.insert(0, str(SCRIPT.parent))
    script = importlib.import_module(name)
    if "--every-step" in sys.argv:  # no view is taken for one that was seen before: networks run at every step
        sys.argv.remove("--every-step")

        class Views(script.Views):
            def add(self, views):
                first = len(self.numbers)
                self.numbers |= {(first + k, view): first + k for k, view in enumerate(views)}
                return torch.arange(first, len(self.numbers))

            def tensor(self, first=0):
                data = bytearray(b"".join(view for _, view in list(self.numbers)[first:]))
                return torch.frombuffer(data, dtype=torch.uint8).reshape(-1, 7, 7, 3)

        script.Views = Views
    parts.wrap(script.MiniGridEnvs, "step", "environments")
    parts.wrap(script, "gae", "advantages")
    parts.wrap(torch.Tensor, "backward", "backward")
    for optimiser in (torch.optim.RMSprop, torch.optim.Adam):
        parts.wrap(optimiser, "step", "optimiser")
    forward, call = script.Agent.forward, torch.nn.Sequential.forward

    def measured_forward(self, inputs):
        with parts.part("forward, to learn" if torch.is_grad_enabled() else "acting"):
            return forward(self, inputs)

    def measured_call(self, inputs):
        with parts.part("RND forward"):  # the agent's own are inside of the part above, and count there
            return call(self, inputs)

    script.Agent.forward, torch.nn.Sequential.forward = measured_forward, measured_call
    status = script.main()
    if status:
        sys.exit(status)


def doorkey_table(rounds: int) -> None:
    """Frames a second of a2c_rnd_doorkey.py's whole training loop at 8x8, and where the time goes."""
    every, wide = ["--every-step"], ["--num-envs", "128"]
    rows = [  # name, threads, flags, environments
        ("notebook", 1, [], 32),
        ("notebook", 2, [], 32),
        ("notebook, networks at every step", 1, every, 32),
        ("notebook, the minigrid package", 1, ["--backend", "gymnasium"], 32),
        ("notebook", 1, wide, 128),
        ("notebook", 2, wide, 128),
        ("notebook, networks at every step", 1, [*wide, *every], 128),
        ("notebook, no bonus", 1, [*wide, "--int-coef", "0"], 128),
        ("tuned", 1, ["--preset", "tuned", "--num-steps", "16"], 64),
    ]
    programs = []
    for name, threads, flags, num_envs in rows:
        rollouts = 25600 // (16 * num_envs)  # in a line of the log
        common = ["--log-interval", rollouts, "--total-timesteps", 4 * rollouts * 16 * num_envs]
        command = [DOORKEY, "--env-id", "DoorKey-8x8", "--solved-score", "None", *common, *flags]
        programs.append((f"{name} | {num_envs}", threads, 25600, command))
    frames_table(programs, rounds)


def minigrid_table(rounds: int) -> None:
    """Frames a second of ppo_rnd_minigrid.py's whole training loop, and where the time goes."""
    rows = [  # name, threads, flags
        ("default", 1, []),
        ("default", 2, []),
        ("networks at every step", 1, ["--every-step"]),
        ("--update-proportion 0.25", 1, ["--update-proportion", 0.25]),
        ("--policy-obs codes", 1, ["--policy-obs", "codes"]),
        ("--policy-obs codes", 2, ["--policy-obs", "codes"]),
        ("--rnd-obs planes", 1, ["--rnd-obs", "planes"]),
        ("--novelty count", 1, ["--novelty", "count"]),
        ("--int-coef 0", 1, ["--int-coef", 0]),
        ("--int-coef 0", 2, ["--int-coef", 0]),
    ]
    programs = []
    for env_id in ("DoorKey-8x8", "KeyCorridorS3R3"):
        for name, threads, flags in rows:
            command = [
                MINIGRID,
                "--env-id",
                env_id,
                "--total-timesteps",
                20 * 8192,
                "--num-envs",
                64,
                "--num-steps",
                128,
            ]
            programs.append((f"{env_id}, {name} | 64", threads, 8192, [*command, *flags]))
    frames_table(programs, rounds)


def frames_table(programs: list[tuple[str, int, int, list]], rounds: int) -> None:
    """Measures programs (name | environments, threads, frames between two lines of the log, command): a table."""
    results: list[list[dict]] = [[] for _ in programs]
    for _ in range(rounds):
        for (name, threads, frames, program), found in zip(programs, results, strict=True):
            front = ["--num-envs", 1, "--num-steps", frames, "--threads", threads, "--measure"]
            with tempfile.TemporaryDirectory() as folder:
                environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
                words = [str(word) for word in (sys.executable, __file__, *front, *program)]
                run = subprocess.run(words, cwd=folder, capture_output=True, text=True, env=environment)
            lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                sys.exit(f"{name} failed:\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}")
            found.append(json.loads(lines[-1][7:]))
            rate = 1e3 * frames / statistics.median(found[-1]["wall_ms"])
            print(f"  {name}, {threads} threads: {rate:,.0f} frames/s", flush=True)
    print("\n| settings | environments | threads | frames/s | CPU-us a frame | of these |\n|-|-|-|-|-|-|")
    for (name, threads, frames, _), found in zip(programs, results, strict=True):
        rate = 1e3 * frames / statistics.median([wall for run in found for wall in run["wall_ms"]])
        cost = statistics.median([cost for run in found for cost in run["cpu_ms"]]) * 1e3
        parts = {
            part: statistics.median([run["parts_cpu_ms"][part] for run in found]) for part in found[0]["parts_cpu_ms"]
        }
        text = ", ".join(f"{part} {1e3 * value:.1f}" for part, value in parts.items())
        print(f"| {name} | {threads} | {rate:,.0f} | {cost:.1f} | {text} |")


def environments_alone(num_envs: int, steps: int) -> dict:
    """A random agent in EnvPool: CPU-milliseconds per step, steps per second of wall time."""
    import numpy as np

    sys.path.insert(0, str(SCRIPT.parent))
    import ppo_rnd_atari as script

    envs = script.AtariEnvs("MontezumaRevenge-v5", num_envs, list(range(num_envs)), script.Args())
    envs.reset()
    actions = np.random.default_rng(0).integers(envs.num_actions, size=(steps, num_envs))
    for row in actions[:20]:
        envs.step(row)
    cpu, wall = cpu_seconds(), time.perf_counter()
    for row in actions:
        envs.step(row)
    cpu, wall = cpu_seconds() - cpu, time.perf_counter() - wall
    return {"cpu_ms": cpu / actions.size * 1e3, "steps_per_second": actions.size / wall}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="CleanRL's ppo_rnd_envpool.py, to run in between")
    parser.add_argument("--num-envs", type=int, default=128)
    parser.add_argument("--num-steps", type=int, default=16)
    parser.add_argument("--iterations", type=int, default=4, help="per process; the first is not counted")
    parser.add_argument("--rounds", type=int, default=2, help="times that each line is measured, in turn")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; 0: as PyTorch has it")
    parser.add_argument("--only", choices=["peer", "fp32", "bf16", "fp32 compiled", "bf16 compiled"], nargs="+")
    parser.add_argument("--doorkey", action="store_true", help="a2c_rnd_doorkey.py instead, at 8x8")
    parser.add_argument("--minigrid", action="store_true", help="ppo_rnd_minigrid.py instead")
    parser.add_argument("--snd", action="store_true", help="snd_atari.py's presets too")
    parser.add_argument("--measure", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    args = parser.parse_args()
    steps = args.num_envs * args.num_steps
    if args.measure:
        return measure(args.measure[0], steps, args.threads, args.measure[1:])

    if args.doorkey:
        return doorkey_table(args.rounds)
    if args.minigrid:
        return minigrid_table(args.rounds)
    alone = environments_alone(args.num_envs, 200)
    print(f"environments alone: {alone['cpu_ms']:.3f} CPU-ms a step, {alone['steps_per_second']:,.0f} steps/s")
    common = ["--num-envs", args.num_envs, "--num-steps", args.num_steps, "--total-timesteps", args.iterations * steps]
    ours = [SCRIPT, "--env-id", "MontezumaRevenge", *common, "--warmup-rollouts", 1, "--checkpoint-interval", 1e6]
    peers = [args.peer, "--env-id", "MontezumaRevenge-v5", *common, "--num-iterations-obs-norm-init", 1]
    programs = {"peer": peers} if args.peer else {}
    programs |= {"fp32": ours, "bf16": [*ours, "--bf16"]}
    if args.snd:  # minibatches of 512, as in a rollout of full size
        snd = [SND, *ours[1:], "--num-minibatches", max(1, steps // 512)]
        programs |= {"snd-v": snd, "snd-v bf16": [*snd, "--bf16"], "its control": [*snd, "--target-loss", "none"]}
        programs |= {preset: [*snd, "--preset", preset] for preset in ("snd-vic", "snd-std")}
    if args.only:
        programs |= {"fp32 compiled": [*ours, "--compile"], "bf16 compiled": [*ours, "--bf16", "--compile"]}
        programs = {name: programs[name] for name in args.only}
    results: dict[str, list[dict]] = {name: [] for name in programs}
    for _ in range(args.rounds):
        for name, command in programs.items():
            front = [sys.executable, __file__, "--num-envs", args.num_envs, "--num-steps", args.num_steps]
            front += ["--threads", args.threads, "--measure"]
            with tempfile.TemporaryDirectory() as folder:
                words = [
                    str(pathlib.Path(w).resolve() if w in (SCRIPT, SND, args.peer) else w) for w in front + command
                ]
                run = subprocess.run(words, cwd=folder, capture_output=True, text=True)
            lines = [line for line in run.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                sys.exit(f"{name} failed:\n{run.stdout[-2000:]}\n{run.stderr[-2000:]}")
            results[name].append(json.loads(lines[-1][7:]))
            cost, wall = (statistics.median(results[name][-1][key]) for key in ("cpu_ms", "wall_ms"))
            peak = results[name][-1]["peak_gb"]
            print(f"  {name}: {cost:.2f} CPU-ms a step, {steps / wall * 1e3:,.0f} steps/s, {peak:.2f} GB", flush=True)

    print(f"\n{args.num_envs} environments x {args.num_steps} steps, {args.threads} threads, medians of all iterations")
    print("| program | CPU-ms a step | least to most | steps/s | peak memory GB | GPU memory GB |\n|-|-|-|-|-|-|")
    medians = {}
    for name, runs in results.items():
        costs = [cost for run in runs for cost in run["cpu_ms"]]
        rate = steps / statistics.median([wall for run in runs for wall in run["wall_ms"]]) * 1e3
        medians[name] = statistics.median(costs)
        memory = f"{max(run['peak_gb'] for run in runs):.2f} | {max(run['gpu_gb'] for run in runs):.2f}"
        print(f"| {name} | {medians[name]:.2f} | {min(costs):.2f} to {max(costs):.2f} | {rate:,.0f} | {memory} |")
    for name in medians:
        if "peer" in medians and name != "peer":
            print(f"{name}: the peer costs {medians['peer'] / medians[name]:.2f} times as much")
    for name, runs in results.items():
        for key, unit in (("parts_cpu_ms", "CPU-ms a step"), ("parts_wall_ms", "wall ms an iteration")):
            if runs[-1][key]:
                parts = {part: statistics.median([run[key][part] for run in runs]) for part in runs[-1][key]}
                print(f"{name}, {unit}: " + ", ".join(f"{part} {value:.3f}" for part, value in parts.items()))


if __name__ == "__main__":
    main()
