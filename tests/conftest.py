"""What the tests of several scripts have in common.

Running a script:      run_script, start_script, wait_for; call_main, train_here (in this process)
Reading what it left:  only_run, read_scalars, assert_same
Playing along:         spy, float64, AtariPool, frame_numbers, PlainAdam, plain_moments, plain_filter, play_both,
                       advantages_by_definition; watch, assert_equals_transcription (Atari)
"""

import contextlib
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = pathlib.Path(__file__).resolve().parents[1]
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
CPU = torch.device("cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of the scripts that tests start: pytest itself has a process a core
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def leave_no_trace():
    """What a test has changed is put back: signal handlers, the thread count, what PyTorch does with tiny numbers.

    A test begins with Python's own handlers, also where pytest was started with nohup or in the background.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    for number in handlers:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)
    for number, handler in handlers.items():
        signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------ Running a script


def run_script(script: str, *flags: object, cwd: pathlib.Path, **kwargs) -> subprocess.CompletedProcess:
    """Runs a script of this project as a user does, in folder `cwd`."""
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    return subprocess.run(command, **{"cwd": cwd, "capture_output": True, "text": True, "timeout": 300} | kwargs)


@contextlib.contextmanager
def start_script(script: str, *flags: object, cwd: pathlib.Path, **kwargs):
    """The same, going on while the test does something. It is in a process group of its own, and killed at the end."""
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen(command, **{"cwd": cwd} | pipes | kwargs) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(condition: Callable, seconds: float = 60) -> object:
    """What condition() returns as soon as that is something; an error after so many seconds."""
    limit = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < limit, f"nothing within {seconds} s"
        time.sleep(0.02)
    return found


def call_main(script, capsys, *flags: object) -> tuple[int, str, str]:
    """main() of a script that has been imported: exit status, what it wrote to stdout, what to stderr."""
    capsys.readouterr()
    try:
        status = script.main([*map(str, flags)])
    except SystemExit as stop:  # by the parser of flags
        status = stop.code
    return status, *capsys.readouterr()


def train_here(script, args, folder: pathlib.Path, path=None, saved=None, status: int = 0) -> pathlib.Path:
    """Trains in this process, on the CPU; the run's folder, which is the only one in `folder`."""
    args.runs_dir = str(folder)
    assert script.train(args, CPU, path, saved) == status
    (run_dir,) = folder.iterdir()
    return run_dir


# ------------------------------------------------------------------------------------------ Reading what it left


def only_run(cwd: pathlib.Path) -> pathlib.Path:
    """The one run in `cwd`/runs."""
    (run_dir,) = (cwd / "runs").iterdir()
    return run_dir


def read_scalars(run_dir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars in a run's folder: name -> [(step, value)]."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def assert_same(a: object, b: object, but: Iterable[str] = (), where: str = "") -> None:
    """Equal bit for bit, all the way down, except for what keys in `but` lead to; NaN equals NaN."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - set(but):
            assert_same(a[key], b[key], but, f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, but, f"{where}/{k}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and a.shape == b.shape, where
        assert ((a == b) | ((a != a) & (b != b))).all(), where
    else:
        assert a == b or (a != a and b != b), f"{where}: {a} and {b}"


# ------------------------------------------------------------------------------------------------ Playing along


def spy(function: Callable, calls: list) -> Callable:
    """`function`, with (arguments, result) of every call appended to `calls`; arrays among the arguments as copies."""
    copies = {torch.Tensor: torch.clone, np.ndarray: np.copy}

    def wrapped(*args, **kwargs):
        kept = [copies.get(type(x), lambda x: x)(x) for x in args]
        calls.append((kept, function(*args, **kwargs)))
        return calls[-1][1]

    return wrapped


@contextlib.contextmanager
def float64():
    """Inside, a script computes in float64: two ways to the same number then differ by 1e-12 and not by 1e-5."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "float", torch.Tensor.double)
        torch.set_default_dtype(torch.float64)
        try:
            yield
        finally:
            torch.set_default_dtype(torch.float32)


class AtariPool:
    """EnvPool's interface with scripted episodes. Each frame carries a number of its own in its first four pixels.

    The RAM is made up too, but for the room. Environment i plays episodes of length 5 + i; every second one is
    truncated. Rewards are 3 on each 4th step and -2 on each 5th. AtariPool.log is of the one made last.
    """

    num_actions = 6

    def __init__(
        self, env_id: str, num_envs: int, img_height: int = 84, img_width: int | None = None, stack_num: int = 4, **_
    ):
        self.num_envs, self.shape = num_envs, (num_envs, stack_num, img_height, img_width or img_height)
        self.action_space = SimpleNamespace(n=self.num_actions)
        self.time, self.episode, self.shown = np.zeros(num_envs, int), np.zeros(num_envs, int), 0
        self.done = np.zeros(num_envs, bool)
        self.log = AtariPool.log = []  # of each step: frame (N, height, width), ram (N, 128), valid, reward, done (N,)

    def frames(self) -> np.ndarray:
        obs = np.random.default_rng(self.shown).integers(0, 256, self.shape, np.uint8)
        obs[:, -1, 0, :4] = np.arange(self.shown, self.shown + self.num_envs, dtype=np.uint32)[:, None].view(np.uint8)
        self.shown += self.num_envs
        return obs

    def reset(self):
        return self.frames(), {"ram": self.ram(1)}

    def ram(self, room: np.ndarray | int) -> np.ndarray:
        ram = np.random.default_rng(self.shown).integers(0, 256, (self.num_envs, 128), np.uint8)
        ram[:, 3] = room
        return ram

    def step(self, actions):
        n, reset = self.num_envs, self.done.copy()
        self.time = np.where(reset, 0, self.time + 1)
        self.episode += reset
        ends = ~reset & (self.time == 5 + np.arange(n))
        truncated = ends & (self.episode % 2 == 1)
        rewards = np.where(self.time % 4 == 0, 3.0, np.where(self.time % 5 == 0, -2.0, 0.0)) * ~reset
        ram = self.ram(np.where(reset, 99, 1 + self.time // 3))  # 99: a room that only a reset step shows
        self.done = ends
        obs = self.frames()
        info = {"ram": ram, "terminated": (ends & ~truncated).astype(np.int32)}
        self.log.append(
            {
                "frame": obs[:, -1].copy(),
                "ram": ram.copy(),
                "valid": ~reset,
                "reward": rewards,
                "done": ends,
                "over": ends & ~truncated,
            }
        )
        return obs, rewards.astype(np.float32), ends & ~truncated, truncated, info


@pytest.fixture
def atari_pool(monkeypatch):
    """Lets a script that is imported build these instead of EnvPool's games."""
    import envpool

    monkeypatch.setattr(envpool, "make", AtariPool)


def frame_numbers(frames: torch.Tensor | np.ndarray) -> list[int]:
    """The numbers of AtariPool's frames (..., size, size)."""
    return np.ascontiguousarray(np.asarray(frames)[..., 0, :4]).view(np.uint32).ravel().tolist()


class PlainAdam:
    """Adam (Kingma and Ba 2015, algorithm 1)."""

    def __init__(self, parameters: Iterable[torch.Tensor], lr: float = 1e-4):
        self.parameters, self.lr, self.steps = [*parameters], lr, 0
        self.first, self.second = ([torch.zeros_like(p) for p in self.parameters] for _ in range(2))

    @torch.no_grad()
    def step(self, gradients: Iterable[torch.Tensor]) -> None:
        self.steps += 1
        for p, m, v, gradient in zip(self.parameters, self.first, self.second, gradients, strict=True):
            m.copy_(0.9 * m + 0.1 * gradient)
            v.copy_(0.999 * v + 0.001 * gradient**2)
            p -= self.lr * (m / (1 - 0.9**self.steps)) / ((v / (1 - 0.999**self.steps)).sqrt() + 1e-8)


def plain_moments(rows: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean, variance and count of `rows`, each (B, *shape); the start counts as 1e-4 rows of mean 0 and variance 1."""
    data = np.concatenate([*rows]).astype(np.float64)
    count = len(data) + 1e-4
    mean = data.sum(0) / count
    return mean, ((data**2).sum(0) + 1e-4) / count - mean**2, count


def plain_filter(rewards: np.ndarray, valid: np.ndarray, gamma: float, state: np.ndarray) -> np.ndarray:
    """F(t) = gamma * F(t-1) + r(t) (T, N), each environment by itself, over its valid steps."""
    filtered = np.zeros(rewards.shape)
    for env in range(rewards.shape[1]):
        f = float(state[env])
        for t in range(len(rewards)):
            if valid[t, env]:
                f = gamma * f + float(rewards[t, env])
            filtered[t, env] = f
    return filtered


def watch(script, args, folder: pathlib.Path) -> SimpleNamespace:
    """Trains an Atari script for two iterations on AtariPool in float64, and keeps what went through its functions.

    Returns: args; states: all weights after each iteration; scalars; steps: of each step actions, frames that RND
    sees, observations, rewards, done, valid; acted: the observations that the policy has acted on; orders: those in
    which the updates went through a rollout's samples, if they were drawn.
    """
    with pytest.MonkeyPatch.context() as patch, float64():
        patch.setattr(script.envpool, "make", AtariPool)
        patch.setattr(script.AtariEnvs, "step", spy(script.AtariEnvs.step, calls := []))
        patch.setattr(script.Agent, "forward", spy(script.Agent.forward, forwards := []))
        patch.setattr(torch, "randperm", spy(torch.randperm, orders := []))
        states, log = [], script.Run.log

        def spy_log(run, *args):
            parts = {name: run.learner[name].state_dict() for name in ("agent", "rnd")}
            states.append({f"{name}.{k}": x.clone() for name, part in parts.items() for k, x in part.items()})
            log(run, *args)

        patch.setattr(script.Run, "log", spy_log)
        run_dir = train_here(script, args, folder)
    acted = [call[0][1] for call in forwards if len(call[0][1]) == args.num_envs]  # updates have larger batches
    frames = [result[1] if len(result) == 5 else result[0][:, 3] for _, result in calls]
    steps = [(call[0][1], x, call[1][0], *call[1][-3:]) for call, x in zip(calls, frames, strict=True)]
    return SimpleNamespace(
        args=args,
        states=states,
        scalars=read_scalars(run_dir),
        steps=steps,
        acted=acted,
        orders=[order for _, order in orders],
    )


def advantages_by_definition(rewards, values, last_value, dones, valid, gamma, lam):
    """Sum over k of (gamma * lambda)^k delta(t+k) along the valid steps of each environment, up to its first done."""
    T, N = rewards.shape
    result = np.zeros((T, N))
    for env in range(N):
        steps = [t for t in range(T) if valid[t, env]]
        v = [values[t, env] for t in steps] + [last_value[env]]
        for i in range(len(steps)):
            weight = 1.0
            for k in range(i, len(steps)):
                done = dones[steps[k], env]
                delta = rewards[steps[k], env] + gamma * v[k + 1] * (not done) - v[k]
                result[steps[i], env] += weight * delta
                if done:
                    break
                weight *= gamma * lam
    return result


@float64()
def assert_equals_transcription(script, watched: SimpleNamespace, lean_agent, lean_rnd, white) -> None:
    """Both iterations again: every network at every step, every sum over samples, Adam by its paper."""
    args, T, N = watched.args, watched.args.num_steps, watched.args.num_envs
    torch.manual_seed(args.seed)
    agent, rnd = script.Agent(6, 2), script.RND(N, CPU)
    p = {f"agent.{k}": v.detach().clone().requires_grad_() for k, v in agent.named_parameters()}
    p |= {f"rnd.{k}": v.detach().clone().requires_grad_() for k, v in rnd.named_parameters() if "predictor" in k}
    target = {k: v for k, v in rnd.state_dict().items() if "target" in k}
    sub = lambda prefix: {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}  # noqa: E731
    adam = PlainAdam(p.values(), lr=args.learning_rate)
    frames_seen = [frames[valid] for _, frames, _, _, _, valid in watched.steps[:T]]  # of the warm-up
    returns_seen, f = [], np.zeros(N)

    for k in (0, 1):
        scalars = {tag: values[k][1] for tag, values in watched.scalars.items() if len(values) == 2}
        rollout = watched.steps[T * (k + 1) : T * (k + 2)]
        obs = torch.stack(watched.acted[(T + 2) * k :][: T + 1])  # (T+1, N, ...)
        actions, frames, _, rewards, dones, valid = (np.stack(x) for x in zip(*rollout, strict=True))
        actions = torch.from_numpy(actions)
        assert (~valid).any() and dones.any() and {-1, 1} <= set(rewards.flatten())

        old = plain_moments(frames_seen)
        frames_seen += [x[v] for x, v in zip(frames, valid, strict=True)]
        new = plain_moments(frames_seen)
        with torch.no_grad():
            raw = []  # (T, N)
            for x in (white(x, *old) for x in frames):
                error = lean_rnd(sub("rnd."), "predictor", x) - lean_rnd(target, "target", x)
                raw.append(error.square().mean(1).numpy())
            logits, values = zip(*(lean_agent(sub("agent."), obs[t]) for t in range(T + 1)), strict=True)
            features = [lean_rnd(target, "target", white(x, *new)) for x in frames]
        filtered = plain_filter(np.stack(raw), valid, 0.99, f)
        f = filtered[-1]
        returns_seen.append(filtered[valid])
        deviation = np.sqrt(plain_moments(returns_seen)[1])
        intrinsic = np.stack(raw) / deviation
        values = torch.stack(values).numpy()  # (T+1, N, 2)
        no_end = np.zeros_like(dones)
        adv_int = advantages_by_definition(intrinsic, values[:T, :, 0], values[T, :, 0], no_end, valid, 0.99, 0.95)
        adv_ext = advantages_by_definition(rewards, values[:T, :, 1], values[T, :, 1], dones, valid, 0.999, 0.95)
        advantages = torch.from_numpy(adv_int + 2 * adv_ext)
        if args.norm_adv:
            of_all = advantages[torch.from_numpy(valid)]
            advantages = (advantages - of_all.mean()) / (of_all.std(correction=0) + 1e-8)
        returns = torch.from_numpy(np.stack([adv_int, adv_ext], -1) + values[:T])
        logprobs = torch.stack(logits)[:T].log_softmax(-1).gather(-1, actions[..., None])[..., 0]

        losses = []
        if args.shuffle:  # two minibatches, three epochs
            assert len(watched.orders) == 6 and all(set(x.tolist()) == set(range(T * N)) for x in watched.orders)
            blocks = [x for order in watched.orders[3 * k : 3 * k + 3] for x in np.split(order.numpy(), 2)]
            blocks = [[divmod(i, N) for i in block] for block in blocks]
        else:
            assert not watched.orders
            blocks = [[(t, env) for t in range(T) for env in half] for half in np.split(np.arange(N), 2)] * 3
        for block in blocks:
            entries = [(t, env) for t, env in block if valid[t, env]]
            ts, es = (torch.tensor(x) for x in zip(*entries, strict=True))
            new_logits, new_values = lean_agent(sub("agent."), obs[ts, es])
            log_p = new_logits.log_softmax(-1)
            ratio = (log_p.gather(1, actions[ts, es][:, None])[:, 0] - logprobs[ts, es]).exp()
            a = advantages[ts, es]
            policy_loss = torch.max(-a * ratio, -a * ratio.clamp(0.9, 1.1)).mean()
            value_loss = sum(0.5 * (new_values[:, h] - returns[ts, es, h]).square().mean() for h in (0, 1))
            entropy = -(log_p.exp() * log_p).sum(-1).mean()
            x = white(np.stack([frames[t][env] for t, env in entries]), *new)
            goal = torch.stack([features[t][env] for t, env in entries])
            distill = (lean_rnd(sub("rnd."), "predictor", x) - goal).square().mean(1).mean()
            loss = policy_loss + value_loss - 0.001 * entropy + distill
            gradients = torch.autograd.grad(loss, [*p.values()])
            own = [name.startswith("agent.") for name in p]  # the clip leaves the predictor's alone
            norm = torch.cat([x.flatten() for x, yes in zip(gradients, own, strict=True) if yes]).norm()
            if args.max_grad_norm is not None and norm > args.max_grad_norm:
                factors = [args.max_grad_norm / (norm + 1e-6) if yes else 1.0 for yes in own]
                gradients = [x * factor for x, factor in zip(gradients, factors, strict=True)]
            adam.step(gradients)
            losses.append([x.item() for x in (policy_loss, value_loss, entropy, distill, norm)])

        np.testing.assert_allclose(scalars["rnd/intrinsic_reward"], intrinsic[valid].mean(), rtol=1e-6)
        np.testing.assert_allclose(scalars["rnd/intrinsic_reward_last"], intrinsic[dones].mean(), rtol=1e-6)
        np.testing.assert_allclose(scalars["rnd/intrinsic_return_std"], deviation, rtol=1e-6)
        names = ("policy_loss", "value_loss", "entropy", "predictor_loss", "grad_norm")
        for name, expected in zip(names, np.mean(losses, axis=0), strict=True):
            np.testing.assert_allclose(scalars[f"losses/{name}"], expected, rtol=1e-6, atol=1e-7, err_msg=name)

        ours = watched.states[k]
        np.testing.assert_allclose(ours["rnd.filtered"], f, rtol=1e-9)
        for name, w in p.items():  # a step of Adam is about 1e-4
            torch.testing.assert_close(ours[name], w.detach(), rtol=1e-9, atol=1e-10)


def layouts(size: int):
    """Every DoorKey of this size without its agent: (column of the wall, row of the door, cell of the key)."""
    for wall in range(2, size - 2):
        for door in range(1, size - 2):
            for key in itertools.product(range(1, wall), range(1, size - 1)):
                yield wall, door, key


def doorkey(size: int, layout: tuple, position: tuple[int, int], direction: int):
    """The minigrid package's environment with this very grid."""
    import gymnasium as gym
    from minigrid.core.world_object import Door, Goal, Key

    env = gym.make(f"MiniGrid-DoorKey-{size}x{size}-v0").unwrapped
    env.reset(seed=0)
    wall, door, key = layout
    env.grid = type(env.grid)(size, size)
    env.grid.wall_rect(0, 0, size, size)
    env.grid.vert_wall(wall, 0)
    env.grid.set(size - 2, size - 2, Goal())
    env.grid.set(wall, door, Door("yellow", is_locked=True))
    env.grid.set(*key, Key("yellow"))
    env.agent_pos, env.agent_dir, env.carrying, env.step_count = position, direction, None, 0
    return env


def play_both(size: int, actions: np.ndarray, seed: int) -> dict[str, int]:
    """Whole DoorKey episodes in EnvPool, one copy; the minigrid package plays along on every grid that fits.

    Returns how often things were seen that must have been the same in both.
    """
    import envpool

    pool = envpool.make(f"MiniGrid-DoorKey-{size}x{size}-v0", env_type="gymnasium", num_envs=1, seed=seed)
    obs, info = pool.reset()
    seen = {"episodes": 0, "steps": 0, "steps on the one grid left": 0, "keys": 0, "goals": 0}
    fitting = None
    for action in actions:
        if fitting is None:  # an episode begins
            position = tuple(int(x) for x in info["agent_pos"][0])
            grids = [x for x in layouts(size) if x[2] != position and position[0] < x[0]]
            fitting = [doorkey(size, x, position, direction) for x in grids for direction in range(4)]
            fitting = [env for env in fitting if (env.gen_obs()["image"] == obs["image"][0]).all()]
            assert fitting, "no grid looks like what EnvPool shows"
        obs, reward, terminated, truncated, info = pool.step(np.array([action]))
        left = []
        for env in fitting:
            other, other_reward, other_terminated, other_truncated, _ = env.step(action)
            same = (other["image"] == obs["image"][0]).all() and abs(other_reward - reward[0]) < 1e-6
            # success on the very last step is called truncated by EnvPool, both by the package
            done = (other_terminated or other_truncated) == (terminated[0] or truncated[0])
            if same and done:
                left.append(env)
        assert left, f"no grid fits any more, after {fitting[0].step_count} steps"
        seen["steps"] += 1
        seen["steps on the one grid left"] += len(fitting) == 1
        seen["keys"] += any(env.carrying for env in left) and action == 3
        seen["goals"] += reward[0] > 0
        fitting = left
        if terminated[0] or truncated[0]:
            seen["episodes"] += 1
            fitting = None
            obs, reward, terminated, truncated, info = pool.step(np.array([action]))  # next-step auto-reset
            assert reward[0] == 0 and not terminated[0] and not truncated[0]
    return seen


def cut_a_warm_up_short(script, envs, small, tmp_path, monkeypatch, capsys) -> None:
    """A signal in it saves what there is, if the run had steps before: that is not all of the statistics."""
    monkeypatch.chdir(tmp_path)
    flags = ["--obs-norm", "frozen", "--frozen-obs-norm-steps", 40, "--total-timesteps"]
    assert call_main(script, capsys, *small, *flags, 64, "--int-coef", 0)[0] == 0
    again = ["--resume", only_run(tmp_path), "--int-coef", 1, "--total-timesteps", 128]
    step, seen = envs.step, []
    with monkeypatch.context() as patch:
        patch.setattr(envs, "step", lambda *x: signal.raise_signal(signal.SIGTERM) or step(*x))
        assert call_main(script, capsys, *again)[0] == 143
        seen.append(torch.load(only_run(tmp_path) / "latest.pt", weights_only=True)["rnd"]["obs_rms.count"])
    assert call_main(script, capsys, *again)[0] == 0
    seen.append(torch.load(only_run(tmp_path) / "latest.pt", weights_only=True)["rnd"]["obs_rms.count"])
    assert seen[0] < 5 and 40 <= seen[1] < 45
