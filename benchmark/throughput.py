"""What a training iteration costs, step by step of the loop, and what the peer or another checkout costs beside it.

    python benchmark/throughput.py                                        ppo_rnd_atari.py, fp32 and bf16
    python benchmark/throughput.py --peer PATH/cleanrl/ppo_rnd_envpool.py the same, with CleanRL's script in between
    python benchmark/throughput.py --num-steps 128 --iterations 3         full-size rollouts, for memory
    python benchmark/throughput.py --snd | --minigrid | --doorkey | --maze          another script's settings instead
    python benchmark/throughput.py --dqn --peer PATH/cleanrl/dqn_atari.py           and CleanRL's script for the same
    python benchmark/throughput.py --continuous --peer PATH/cleanrl/ppo_continuous_action.py
    python benchmark/throughput.py --script my_bonus.py -- --num-envs 64  any script and flags
    python benchmark/throughput.py --compare OTHER/CHECKOUT --script ppo_rnd_minigrid.py -- --num-envs 32

Costs are CPU time per environment step (user + system time of the process), because a shared machine's clock says
little; with CUDA the device is waited for at the border of each part. Each line is a process of its own that runs the
real script, its functions `collect`, `intrinsic_rewards`, `advantages_and_returns` and `update` measured; the first
iteration is not counted. "emulator alone" is the script's environments with random actions. The peer's file is run as
it is: the adapters below only give it the interfaces of `gym`, of gymnasium 0.29 and of the older EnvPool that it was
written for.

`--compare` runs the script of both checkouts as anybody would, in turn and with the same flags, each once for a short
and once for a longer time, and prints by how much they differ: CPU-seconds of the steps in between, and peak memory.
"""

import argparse
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
from collections.abc import Callable

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
ATARI, SND = ROOT / "ppo_rnd_atari.py", ROOT / "snd_atari.py"
MINIGRID, DOORKEY, MAZE = (ROOT / f"{x}.py" for x in ("ppo_rnd_minigrid", "a2c_rnd_doorkey", "reinforce_rnd_maze"))
DQN, CONTINUOUS = ROOT / "dqn_rnd_atari.py", ROOT / "ppo_rnd_continuous.py"
STEPS = ("collect", "intrinsic_rewards", "advantages_and_returns", "update")  # of the loop in `train`
COLUMNS = ("environments", *STEPS, "the rest")

# ------------------------------------------------------------------------- inside the measured process


class Parts:
    """CPU and wall seconds spent in named parts of a program; time inside an inner part counts for that one."""

    def __init__(self):
        import torch

        self.wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
        self.inside = ["the rest"]
        self.spent = {part: np.zeros(2) for part in COLUMNS}  # CPU and wall seconds
        self.last = self.now()

    def now(self) -> np.ndarray:
        self.wait()
        return np.array([cpu_seconds(), time.perf_counter()])

    def tick(self) -> None:
        """Adds the time since the last tick to the part that was going on."""
        now = self.now()
        self.spent[self.inside[-1]] = self.spent[self.inside[-1]] + now - self.last
        self.last = now

    def wrap(self, holder: object, function: str, part: str) -> None:
        """Lets every call of holder.function count as that part. There must be such a function."""
        inner = getattr(holder, function, None)
        if inner is None:
            sys.exit(f"{holder.__name__} has no {function}: there is nothing to measure")

        def measured(*args, **kwargs):
            self.tick()
            self.inside.append(part)
            try:
                return inner(*args, **kwargs)
            finally:
                self.tick()
                self.inside.pop()

        setattr(holder, function, measured)


def cpu_seconds() -> float:
    """User and system time of this process so far, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure(path: pathlib.Path, flags: list[str]) -> None:
    """Runs a training script in this process and prints one line of JSON: what its iterations cost, less the first."""
    import torch
    from torch.utils.tensorboard import SummaryWriter

    parts, marks = Parts(), []
    add_scalar = SummaryWriter.add_scalar

    def note(self, tag, value, step=None, *args, **kwargs):
        add_scalar(self, tag, value, step, *args, **kwargs)
        if tag == "charts/SPS":  # all scripts log it once a line of the log, and the peer
            parts.tick()
            marks.append((step, dict(parts.spent)))

    SummaryWriter.add_scalar = note
    every_step = "--every-step" in flags
    flags = [flag for flag in flags if flag != "--every-step"]
    sys.argv, alone = [str(path), *flags], None
    sys.path.insert(0, str(path.parent))
    source = path.read_text()
    if "docs.cleanrl.dev" in source[:200]:  # the peer
        sys.path.insert(0, str(path.parent.parent))
        stand_in_for_gym() if "\nimport gym\n" in source else stand_in_for_older_gymnasium()
        runpy.run_path(str(path), run_name="__main__")
    else:
        script, made = importlib.import_module(path.stem), []
        steps = [x for x in STEPS if path.stem != DQN.stem or x != "advantages_and_returns"]
        environments = next((x for name, x in vars(script).items() if name.endswith("Envs")), script)
        if every_step:
            see_every_step_anew(environments)
        for step in steps:
            parts.wrap(script, step, step)
        parts.wrap(environments, "reset", "environments")
        parts.wrap(environments, "step", "environments")
        collect = script.collect
        script.collect = lambda envs, *rest: (made or made.append(envs), collect(envs, *rest))[1]
        if status := script.main():
            sys.exit(status)
        if silent := [name for name in ("environments", *steps) if not parts.spent[name][0]]:
            sys.exit(f"{path.stem} never called {', '.join(silent)}: what is measured is not what runs")
        alone = emulator_alone(made[0])
    if len(marks) < 2:
        sys.exit("there were not two lines of the log: more steps are needed")
    marks = marks[:: max(1, len(marks) // 20)]  # of the maze's many iterations, a dozen each time
    costs = [sum(b[1].values()) - sum(a[1].values()) for a, b in itertools.pairwise(marks)]  # (CPU, wall) each
    costs = [cost / (b[0] - a[0]) for cost, (a, b) in zip(costs, itertools.pairwise(marks), strict=True)]
    (first, before), (last, after) = marks[0], marks[-1]
    result = {
        "cpu": [cost[0] for cost in costs],  # seconds a step
        "wall": [cost[1] for cost in costs],
        "parts": {part: ((after[part] - before[part]) / (last - first)).tolist() for part in COLUMNS},
        "alone": alone,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
        "gpu": torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0,
    }
    print("RESULT " + json.dumps(result))


def emulator_alone(envs: object) -> float:
    """CPU-seconds of a step of one environment with random actions."""
    num_envs, rng = len(envs.done), np.random.default_rng(0)
    if hasattr(envs, "low"):  # continuous actions
        actions = rng.uniform(envs.low, envs.high, size=(1000, num_envs, *envs.low.shape))
    else:
        actions = rng.integers(getattr(envs, "num_actions", 4), size=(1000, num_envs))
    auto_reset = hasattr(envs, "low") or hasattr(envs, "num_actions")  # the maze has none
    start, steps = cpu_seconds(), 0
    while cpu_seconds() < start + 2:
        if not auto_reset and steps % 500 == 0:
            envs.reset()
        envs.step(actions[steps % len(actions)])
        steps += 1
    return (cpu_seconds() - start) / steps / num_envs


def see_every_step_anew(environments: type) -> None:
    """No view passes for one that was seen before, so the networks run at every step."""

    class View(bytes):
        __hash__, __eq__ = object.__hash__, object.__eq__

    look = environments.look

    def look_anew(self, *args):
        result = look(self, *args)
        self.views = [View(view) for view in self.views]
        return result

    environments.look = look_anew


def stand_in_for_gym() -> None:
    """Lets a program written for gym 0.23 and EnvPool 0.6 run on today's EnvPool: 4-value steps, settable fields."""
    import envpool
    import gymnasium

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


def stand_in_for_older_gymnasium() -> None:
    """Lets a program written for gymnasium 0.29 run on today's: wrappers by their old names and arguments."""
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    wrappers = gymnasium.wrappers
    wrappers.GrayScaleObservation, wrappers.FrameStack = wrappers.GrayscaleObservation, wrappers.FrameStackObservation
    transform = wrappers.TransformObservation
    wrappers.TransformObservation = lambda env, function: transform(env, function, env.observation_space)


# ------------------------------------------------------------------------------------- what is measured

Program = tuple[pathlib.Path, int, list]  # script, threads, flags


def atari_programs(args: argparse.Namespace) -> dict[str, Program]:
    """ppo_rnd_atari.py, or the same and snd_atari.py, or the same and the peer."""
    steps = args.num_envs * args.num_steps
    common = ["--num-envs", args.num_envs, "--num-steps", args.num_steps, "--total-timesteps", args.iterations * steps]
    ours = ["--env-id", "MontezumaRevenge", *common, "--warmup-rollouts", 1, "--checkpoint-interval", 1e6]
    flags = {"fp32": (ATARI, ours), "bf16": (ATARI, [*ours, "--bf16"])}
    if args.snd:  # minibatches of 512, as in a rollout of full size
        snd = [*ours, "--num-minibatches", max(1, steps // 512)]
        flags |= {"snd-v": (SND, snd), "snd-v bf16": (SND, [*snd, "--bf16"])}
        flags |= {"its control": (SND, [*snd, "--target-loss", "none"])}
        flags |= {preset: (SND, [*snd, "--preset", preset]) for preset in ("snd-vic", "snd-std")}
    programs = {name: (script, args.threads, words) for name, (script, words) in flags.items()}
    old = ["--env-id", "MontezumaRevenge-v5", *common, "--num-iterations-obs-norm-init", 1]
    return peer_program(args, old) | programs


def peer_program(args: argparse.Namespace, flags: list) -> dict[str, Program]:
    """The peer with these flags, if there is one."""
    return {"peer": (args.peer.resolve(), args.threads, flags)} if args.peer else {}


def doorkey_programs(_: argparse.Namespace) -> dict[str, Program]:
    """a2c_rnd_doorkey.py at 8x8."""
    every, wide = ["--every-step"], ["--num-envs", 128]
    rows = [  # name, threads, flags, environments
        ("notebook", 1, [], 32),
        ("notebook", 2, [], 32),
        ("notebook, networks at every step", 1, every, 32),
        ("notebook, the minigrid package", 1, ["--backend", "gymnasium"], 32),
        ("notebook", 1, wide, 128),
        ("notebook", 2, wide, 128),
        ("notebook, networks at every step", 1, [*wide, *every], 128),
        ("notebook, no bonus", 1, [*wide, "--int-coef", 0], 128),
        ("tuned", 1, ["--preset", "tuned", "--num-steps", 16], 64),
    ]
    programs = {}
    for name, threads, flags, num_envs in rows:
        rollouts = 25600 // (16 * num_envs)  # in a line of the log
        common = ["--log-interval", rollouts, "--total-timesteps", 4 * rollouts * 16 * num_envs]
        words = ["--env-id", "DoorKey-8x8", "--solved-score", "None", *common, *flags]
        programs[f"{name}, {num_envs} environments, threads: {threads}"] = (DOORKEY, threads, words)
    return programs


def minigrid_programs(_: argparse.Namespace) -> dict[str, Program]:
    """ppo_rnd_minigrid.py."""
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
    size = ["--total-timesteps", 20 * 8192, "--num-envs", 64, "--num-steps", 128]
    return {
        f"{env_id}, {name}, threads: {threads}": (MINIGRID, threads, ["--env-id", env_id, *size, *flags])
        for env_id in ("DoorKey-8x8", "KeyCorridorS3R3")
        for name, threads, flags in rows
    }


def dqn_programs(args: argparse.Namespace) -> dict[str, Program]:
    """dqn_rnd_atari.py without a bonus, batches of 32 every 4 steps."""
    common = ["--learning-starts", 1000, "--buffer-size", 20_000, "--total-timesteps", 2000 * (1 + args.iterations)]
    ours = ["--env-id", "Breakout", "--preset", "dqn", *common, "--checkpoint-interval", 1e6]
    flags = {"pixels": [], "pixels, bf16": ["--bf16"], "RAM": ["--obs", "ram"], "RAM, bf16": ["--obs", "ram", "--bf16"]}
    programs = {name: (DQN, args.threads, [*ours, *words]) for name, words in flags.items()}
    return peer_program(args, ["--env-id", "BreakoutNoFrameskip-v4", *common]) | programs


def continuous_programs(args: argparse.Namespace) -> dict[str, Program]:
    """ppo_rnd_continuous.py on HalfCheetah."""
    size = ["--total-timesteps", 2048 * (1 + args.iterations)]
    ours = ["--env-id", "HalfCheetah-v4", *size, "--checkpoint-interval", 1e6]
    flags = {"PPO": ["--int-coef", 0], "PPO + RND": []}
    flags["PPO, one environment"] = ["--int-coef", 0, "--num-envs", 1, "--num-steps", 2048]
    programs = {name: (CONTINUOUS, args.threads, [*ours, *words]) for name, words in flags.items()}
    return peer_program(args, ["--env-id", "HalfCheetah-v4", *size]) | programs


def maze_programs(_: argparse.Namespace) -> dict[str, Program]:
    """reinforce_rnd_maze.py, a third of its episodes."""
    common = ["--total-episodes", 1000]
    return {f"goal {goal}": (MAZE, 1, ["--goal", goal, *common]) for goal in ("9-1", "9-6", "9-9")}


def run(name: str, program: Program) -> dict:
    """Measures a program in a process of its own."""
    script, threads, flags = program
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [str(word) for word in (sys.executable, __file__, "--measure", script, *flags)],
            cwd=folder,
            capture_output=True,
            text=True,
            env=os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {}),
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    if done.returncode or not lines:
        sys.exit(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")
    return json.loads(lines[-1][7:])


def print_tables(results: dict[str, list[dict]]) -> None:
    """Medians of all iterations: what they cost, and where the time goes."""
    costs = {name: [x for one in runs for x in one["cpu"]] for name, runs in results.items()}
    medians = {name: statistics.median(values) for name, values in costs.items()}
    unit, scale = ("ms", 1e3) if max(medians.values()) > 5e-4 else ("us", 1e6)
    print(f"\n| program | CPU-{unit} a step | least to most | steps/s | peak memory GB | GPU memory GB |")
    print("|-|-|-|-|-|-|")
    for name, runs in results.items():
        rate = 1 / statistics.median([x for one in runs for x in one["wall"]])
        memory = f"{max(one['memory'] for one in runs):.2f} | {max(one['gpu'] for one in runs):.2f}"
        least, most = min(costs[name]) * scale, max(costs[name]) * scale
        print(f"| {name} | {medians[name] * scale:.2f} | {least:.2f} to {most:.2f} | {rate:,.0f} | {memory} |")
    for name in medians:
        if "peer" in medians and name != "peer":
            print(f"{name}: the peer costs {medians['peer'] / medians[name]:.2f} times as much")
    kinds = ["CPU", "wall"] if any(one["gpu"] for runs in results.values() for one in runs) else ["CPU"]
    for index, kind in enumerate(kinds):
        head = [f"{kind}-{unit} a step, and its share", "collect: environments", "collect: policy", *COLUMNS[2:]]
        print(f"\n| {' | '.join(head)} | emulator alone, CPU |\n{'|-' * (len(head) + 1)}|")
        for name, runs in results.items():
            if runs[0]["alone"]:
                parts = [statistics.median([one["parts"][part][index] for one in runs]) * scale for part in COLUMNS]
                cells = [f"{x:.3f}, {100 * x / sum(parts):.1f} %" for x in parts]
                alone = statistics.median([one["alone"] for one in runs]) * scale
                print(f"| {name} | {' | '.join(cells)} | {alone:.3f} |")


# ---------------------------------------------------------------------------------------- two checkouts


def cost_of_run(script: pathlib.Path, flags: list[str]) -> tuple[float, float]:
    """Runs a script. Returns CPU-seconds and peak memory in MB of its process and that process's children."""
    with tempfile.TemporaryDirectory() as folder, open(f"{folder}/output", "w+") as output:
        words = [sys.executable, str(script), *flags, "--runs-dir", folder]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with subprocess.Popen(words, cwd=folder, stdout=output, stderr=subprocess.STDOUT) as process:
            _, status, usage = os.wait4(process.pid, 0)  # RUSAGE_CHILDREN has the peak of all children so far
            process.returncode = os.waitstatus_to_exitcode(status)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if process.returncode:
            output.seek(0)
            sys.exit(f"{' '.join(words)} failed:\n{output.read()[-2000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, usage.ru_maxrss * 1024 / 1e6


def compare(args: argparse.Namespace, flags: list[str]) -> None:
    """Prints what a step costs here and in the other checkout, round by round, and the ratios."""
    scripts = {"other": args.compare.resolve() / args.script.name, "this": ROOT / args.script.name}
    unit = args.num_envs * args.num_steps
    counts = [unit, (1 + args.iterations) * unit]  # the start costs the same in both and drops out
    size = ["--num-envs", str(args.num_envs), "--num-steps", str(args.num_steps)]
    length, what = "--total-timesteps", "step"
    if args.script.stem == MAZE.stem:
        counts, size, length, what = [100, 100 + 100 * args.iterations], [], "--total-episodes", "episode"
    os.environ["OMP_NUM_THREADS"] = str(args.threads or os.cpu_count())
    flags = [*size, *flags]
    print(f"{args.script.name} {' '.join(flags)}: {counts[0]} and {counts[1]} {what}s, {args.threads} threads")
    costs = {name: [] for name in scripts}  # CPU-ms a step
    memory = {name: [] for name in scripts}  # MB
    for k in range(args.rounds):
        for name in [*scripts][:: 1 if k % 2 else -1]:  # who goes first changes
            short, long = (cost_of_run(scripts[name], [*flags, length, str(count)]) for count in counts)
            costs[name].append((long[0] - short[0]) / (counts[1] - counts[0]) * 1e3)
            memory[name].append(long[1])
        ratios = " and ".join(f"{x['this'][-1] / x['other'][-1]:.3f}" for x in (costs, memory))
        here, there = costs["this"][-1], costs["other"][-1]
        print(f"  round {k + 1}: {here:.4f} CPU-ms a {what} here, {there:.4f} there; ratios {ratios}", flush=True)
    print("\n| median | this checkout | the other | ratio | of the rounds |\n|-|-|-|-|-|")
    for row, both in ((f"CPU-ms a {what}", costs), ("peak memory, MB", memory)):
        ratios = [a / b for a, b in zip(both["this"], both["other"], strict=True)]
        here, there = statistics.median(both["this"]), statistics.median(both["other"])
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        print(f"| {row} | {here:.4g} | {there:.4g} | {statistics.median(ratios):.3f} | {spread} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=pathlib.Path, help="CleanRL's script for the same, to run in between")
    parser.add_argument(
        "--compare", type=pathlib.Path, help="another checkout, to run its script in turn with this one's"
    )
    parser.add_argument("--script", type=pathlib.Path, help="with flags after --: the script to measure")
    parser.add_argument("--num-envs", type=int, default=128, help="on Atari, and with --compare")
    parser.add_argument("--num-steps", type=int, default=16, help="on Atari, and with --compare")
    parser.add_argument("--iterations", type=int, default=4, help="per process; on Atari the first is not counted")
    parser.add_argument("--rounds", type=int, default=2, help="times that each line is measured, in turn")
    parser.add_argument("--threads", type=int, default=1, help="of PyTorch; 0: as PyTorch has it")
    parser.add_argument("--only", nargs="+", help="the lines of these names alone")
    groups: dict[str, Callable] = {"doorkey": doorkey_programs, "minigrid": minigrid_programs, "maze": maze_programs}
    groups |= {"dqn": dqn_programs, "continuous": continuous_programs}
    for group, programs in groups.items():
        parser.add_argument(f"--{group}", action="store_true", help=programs.__doc__)
    parser.add_argument("--snd", action="store_true", help="snd_atari.py's presets too")
    words = sys.argv[1:]
    if words[:1] == ["--measure"]:
        return measure(pathlib.Path(words[1]), words[2:])
    cut = words.index("--") if "--" in words else len(words)
    args, flags = parser.parse_args(words[:cut]), words[cut + 1 :]
    if args.compare:
        args.script = args.script or ATARI
        return compare(args, flags)
    if args.script:
        programs = {args.script.name: (args.script.resolve(), args.threads, flags)}
    else:
        group = next((group for group in groups if vars(args)[group]), None)
        programs = (groups[group] if group else atari_programs)(args)
    if unknown := set(args.only or ()) - programs.keys():
        parser.error(f"--only: there is no {', '.join(unknown)}; there are {'; '.join(programs)}")
    results: dict[str, list[dict]] = {name: [] for name in programs if name in (args.only or programs)}
    for _ in range(args.rounds):
        for name, found in results.items():
            found.append(run(name, programs[name]))
            cost, wall = (statistics.median(found[-1][key]) for key in ("cpu", "wall"))
            print(f"  {name}: {cost * 1e3:.4g} CPU-ms a step, {1 / wall:,.0f} steps/s", flush=True)
    print_tables(results)


if __name__ == "__main__":
    main()
