# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "tyro==1.0.17", "tensorboard==2.21.0", "tqdm==4.70.1",
#   "matplotlib==3.11.2"
# ]
# ///
"""REINFORCE with Random Network Distillation (RND) in a maze, in one file. A tutorial: start here.

Papers: Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement learning;
Burda, Edwards, Storkey, Klimov (2018), Exploration by Random Network Distillation, arXiv:1810.12894.

A maze of six rooms pays 1 at the goal and nothing anywhere else. REINFORCE plays episodes, and makes each action more
likely by as much as what came after it was better than expected:

    G(t) = r(t) + gamma * G(t+1)                        return: what came after step t, discounted
    loss = -mean over steps of log pi(a(t) | o(t)) * (G(t) - V(o(t)))

Where no episode finds the goal all returns are 0, and so is the gradient: nothing is ever learned. At `--goal 9-9` a
random walk arrives in one episode out of 530. So the agent is paid for seeing what it does not know yet. RND measures
that with two networks. The target f is random and never trained. The predictor g learns to agree with it, on what the
agent sees. Where they still disagree, the agent has seldom been:

    r_int(t) = |g(o(t+1)) - f(o(t+1))|^2                intrinsic reward, the bonus
    A(t)     = int_coef * (G_int - V_int) + ext_coef * (G - V)      takes the place of G - V in the loss

Five things make it work:
  1. The bonus must fall as a place becomes familiar, at a pace that the policy can follow
     (`--predictor-learning-rate`).
  2. It is divided by the running deviation of its own discounted return, and that deviation forgets nothing: one that
     forgets would blow up the last noise to full size when everything is known.
  3. The bonus does not end with the episode: after the goal there is a next episode, with novelties of its own. If it
     ended (`--int-episodic`), the goal would cost all the novelty that could still have been seen.
  4. A baseline V, subtracted from the return, for each stream (`--baseline`). Without one, all returns are
     positive and every action taken becomes likelier.
  5. Bonus and entropy term fade to nothing (`--anneal`), so that the goal's reward has the last word.

Three commands, to train, to resume and to evaluate:
    python reinforce_rnd_maze.py --goal 9-9 --plot
    python reinforce_rnd_maze.py --resume runs/<run>
    python reinforce_rnd_maze.py --evaluate runs/<run>

What to expect: half a minute on one core of a CPU, 0.5 GB. At `--goal 9-9` the goal is found after some 300 episodes
and reached by 95 of 100 after some 1,100, in the end by a shortest path: so it was for 10 seeds of 10. With
`--int-coef 0`, which is REINFORCE alone, it is found too, by luck, and never learned: 0 of 10. docs/results/README.md
has all seeds. The maze, its rewards and the policy's layers are those of notes by "bison" (2025), where the far goal
stays unsolved; what went wrong there can be tried with `--bonus seed` and `--return-norm`.
"""

import collections
import dataclasses
import datetime
import importlib.metadata
import io
import os
import pathlib
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
from typing import Annotated, Literal

import gymnasium as gym
import matplotlib
import numpy as np
import torch
import torch.nn as nn
import tyro
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# ----------------------------------------------------------------------------------------------------------------------
# Arguments
# ----------------------------------------------------------------------------------------------------------------------


class UserError(Exception):
    """Something that the user can put right: printed as one line, exit status 2."""


class RunError(Exception):
    """Something that went wrong during a run (NaN, full disk): printed as one line, exit status 1."""


def parse_int(text: str) -> int:
    """An integer, also when written `1e6` or `1_000_000`; ValueError for `1.5`."""
    number = float(text)
    if not number.is_integer():
        raise ValueError(f"{text} is not a whole number")
    return int(text) if text.lstrip("+-").replace("_", "").isdigit() else int(number)


Int = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        1, "INT", lambda words: parse_int(words[0]), lambda value: isinstance(value, int), lambda value: [str(value)]
    ),
]


@dataclasses.dataclass
class Args:
    # "Notes" are the source of the maze, "paper" is that of RND, "reference" its authors' code. The comments are the
    # help of `--help`.

    # experiment
    seed: Int = 1  # seed of the networks and the actions
    device: Literal["auto", "cuda", "mps", "cpu"] = "cpu"  # auto: cuda, then mps, then cpu; for nets this small, cpu
    runs_dir: str = "runs"  # where the run's folder is made
    checkpoint_interval: float = 0.5  # minutes between checkpoints; 0: one after every batch of episodes
    resume: str | None = None  # a run's folder or a checkpoint: go on, with its flags except those given anew
    evaluate: str | None = None  # a run's folder or a checkpoint: play with it, do not train
    eval_episodes: Int = 100  # episodes to play with --evaluate
    plot: bool = False  # at the end, or with --evaluate: draw maze, policy and learning curve into the run's folder

    # environment
    goal: str = "9-1"  # row-column of the goal, from 0: 9-1 is 14 steps away (notes), 9-6 23, 9-9 50
    max_episode_steps: Int = 500  # steps after which an episode is cut (notes)
    demo_curriculum: bool = False  # start near the goal, on a known path, and move back when 20 % of episodes succeed

    # REINFORCE
    total_episodes: Int = 3000  # episodes to play, over which things fade (notes: 5,000)
    num_envs: Int = 4  # episodes played side by side, N; one gradient step for them all (notes: 1)
    learning_rate: float = 1e-3  # Adam's step size for the policy (notes: 1e-4, for 5,000 gradient steps, not 750)
    baseline_learning_rate: float = 4e-3  # the same for the baseline, which has to keep up with a moving bonus
    gamma: float = 0.98  # discount of the extrinsic stream (notes)
    ent_coef: float = 0.01  # weight of the entropy term at the start (notes: 0.1, without a baseline)
    max_grad_norm: float = 0.5  # clip the norm of the policy's gradient (notes)
    baseline: bool = True  # subtract a learned value from the returns (notes: no)
    anneal: bool = True  # let bonus, entropy term and learning rate fade to 0 in a straight line (notes: no)
    return_norm: bool = False  # standardise advantages within each episode; with --no-baseline the notes' mistake

    # RND
    int_coef: float = 1.0  # weight of the intrinsic advantage at the start (paper); 0: REINFORCE without the bonus
    ext_coef: float = 2.0  # weight of the extrinsic advantage (paper)
    int_gamma: float = 0.99  # discount of the intrinsic stream (paper)
    int_episodic: bool = False  # let the intrinsic stream end with the episode (paper: no; without a baseline it does)
    bonus: str = "rnd"  # rnd, or seed: that of the notes, the error standardised within itself
    predictor_learning_rate: float = 0.25  # the predictor's step size, plain gradient descent


def check_args(args: Args) -> None:
    """Raises UserError at the first flag whose value makes no sense, before anything is created."""

    def require(ok: bool, flag: str, rule: str) -> None:
        if not ok:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: must be {rule}")

    for flag in ("num_envs", "max_episode_steps", "total_episodes", "eval_episodes"):
        require(getattr(args, flag) >= 1, flag, "at least 1")
    for flag in ("seed", "checkpoint_interval", "ent_coef", "int_coef", "ext_coef"):
        require(0 <= getattr(args, flag) < float("inf"), flag, "a number that is not negative")
    for flag in ("learning_rate", "baseline_learning_rate", "predictor_learning_rate", "max_grad_norm"):
        require(0 < getattr(args, flag) < float("inf"), flag, "a positive number")
    require(args.seed < 2**63, "seed", "below 2^63")
    for flag in ("gamma", "int_gamma"):
        require(0 <= getattr(args, flag) <= 1, flag, "in [0, 1]")
    require(args.bonus in ("rnd", "seed"), "bonus", "rnd or seed")
    for contradiction, reason, flags in (
        (args.int_coef == 0, "--int-coef 0: there is no bonus", ("int_gamma", "int_episodic")),
        (not args.baseline, "--no-baseline: there is none", ("baseline_learning_rate",)),
        (not args.baseline, "--no-baseline: then the intrinsic stream always ends", ("int_episodic",)),
    ):
        for flag in flags:
            if contradiction and getattr(args, flag) != getattr(Args(), flag):
                raise UserError(f"--{flag.replace('_', '-')} contradicts {reason}")
    if args.resume and args.evaluate:
        raise UserError("--resume and --evaluate exclude each other")


def resolve_device(name: str) -> torch.device:
    """The device of `--device`; UserError if it is not there."""
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(device for device, available in there.items() if available)
    if not there[name]:
        raise UserError(f"--device {name}: this machine or this build of PyTorch has none")
    return torch.device(name)


# ----------------------------------------------------------------------------------------------------------------------
# Environment
# ----------------------------------------------------------------------------------------------------------------------

MAZE = """
. . . # . . . . . .
. . . # . . . # . .
. . . # . . . # . .
# # . # . . . # . .
. . . # . # # # . #
. . . # . . . # . .
. # # # # # . # # .
. # . . . # . # . .
. # . # . # . # . #
. . . # . . . # . .
"""  # six rooms, joined by single gaps
WALLS = np.array([[mark == "#" for mark in line.split()] for line in MAZE.split("\n")[1:-1]])  # (10, 10) bool
SIZE = len(WALLS)
GOAL_CODE, WALL_CODE, AGENT_CODE = 2, 3, 4  # in an observation; a free cell is 0
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (rows, columns) of the actions up, down, left, right
ARROWS = "↑↓←→"


def resolve_goal(name: str) -> tuple[int, int]:
    """Row and column of `--goal`; UserError if there is no such cell, or it is a wall or the start."""
    parts = name.split("-")
    if len(parts) != 2 or not all(part.isdecimal() for part in parts):
        raise UserError(f"--goal {name}: must be a row and a column, as in 9-9")
    row, column = map(int, parts)
    if row >= SIZE or column >= SIZE:
        raise UserError(f"--goal {name}: outside the maze, whose rows and columns go from 0 to {SIZE - 1}")
    if WALLS[row, column] or (row, column) == (0, 0):
        raise UserError(f"--goal {name}: that cell is {'a wall' if WALLS[row, column] else 'the start'}")
    return row, column


class MazeEnvs(gym.vector.VectorEnv):
    """N copies of the maze. The agent starts in state `start`, which is (0, 0) unless set otherwise; a bump leaves it
    where it is; only the goal pays, 1.

    An observation is the maze as one plane of codes, (1, 10, 10): 0 free, 2 the goal, 3 walls, 4 the agent. As nothing
    but the agent moves there are only S = 67 of them, one for each free cell; `infos["state"]` (N,) says which, and
    `observations` (S, 1, 10, 10) holds them all. State 0 is the start.

    Auto-reset is disabled, which suits REINFORCE: it needs whole episodes. A copy that has reached the goal stays
    there, for nothing, until `reset` starts the next episode in all copies; whoever steps masks what comes after.
    """

    def __init__(self, num_envs: int, goal: tuple[int, int], max_episode_steps: int):
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}
        self.num_envs, self.max_episode_steps = num_envs, max_episode_steps
        self.single_observation_space = gym.spaces.Box(0, AGENT_CODE, (1, SIZE, SIZE), np.float32)
        self.single_action_space = gym.spaces.Discrete(len(MOVES))
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

        self.cells = np.argwhere(~WALLS)  # (S, 2) row and column of each state
        number = {tuple(cell): state for state, cell in enumerate(self.cells.tolist())}
        self.start, self.goal = 0, number[goal]
        self.observations = np.zeros((len(self.cells), 1, SIZE, SIZE), np.float32)  # (S, 1, 10, 10)
        self.observations[:, 0, WALLS] = WALL_CODE
        self.observations[:, 0, *goal] = GOAL_CODE
        self.next_state = np.zeros((len(self.cells), len(MOVES)), np.int64)  # (S, 4)
        for state, (row, column) in enumerate(self.cells.tolist()):
            self.observations[state, 0, row, column] = AGENT_CODE
            for action, (down, right) in enumerate(MOVES):
                self.next_state[state, action] = number.get((row + down, column + right), state)
        self.next_state[self.goal] = self.goal

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Starts an episode in every copy. Returns observations (N, 1, 10, 10) and infos. Nothing here is random."""
        super().reset(seed=seed)
        self.state = np.full(self.num_envs, self.start)
        self.arrived = np.zeros(self.num_envs, bool)
        self.steps = 0
        return self.observations[self.state], {"state": self.state}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict]:
        """Actions (N,) -> observations (N, 1, 10, 10), rewards, terminated and truncated (N,), infos.

        Raises gymnasium's ResetNeeded when the time is up.
        """
        if self.steps == self.max_episode_steps:
            raise gym.error.ResetNeeded("the episodes are over: call reset")
        self.steps += 1
        self.state = self.next_state[self.state, actions]
        arrived, before = self.state == self.goal, self.arrived
        self.arrived = arrived
        terminated = arrived & ~before
        truncated = ~arrived if self.steps == self.max_episode_steps else np.zeros(self.num_envs, bool)
        return (
            self.observations[self.state],
            terminated.astype(np.float32),
            terminated,
            truncated,
            {"state": self.state},
        )


def shortest_path(envs: MazeEnvs) -> list[int]:
    """A shortest path from state 0 to the goal, both included, by breadth-first search."""
    before, queue = {0: None}, collections.deque([0])
    while envs.goal not in before:
        state = queue.popleft()
        for after in envs.next_state[state].tolist():
            if after not in before:
                before[after] = state
                queue.append(after)
    path = [envs.goal]
    while before[path[-1]] is not None:
        path.append(before[path[-1]])
    return path[::-1]


# ----------------------------------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------------------------------


def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (reference: every layer of every network)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """Policy and baseline. The order of the baseline's values is intrinsic, extrinsic.

    The baseline has a network of its own: in a common one its gradient, in a trial 250 times as large, would push the
    policy's aside.
    """

    def __init__(self, num_actions: int):
        super().__init__()
        self.policy = nn.Sequential(  # the layers of the notes
            init_layer(nn.Conv2d(1, 32, 3, padding=1)),
            nn.ReLU(),
            init_layer(nn.Conv2d(32, 64, 3, padding=1)),
            nn.ReLU(),
            nn.Flatten(),
            init_layer(nn.Linear(64 * SIZE * SIZE, 128)),
            nn.ReLU(),
            init_layer(nn.Linear(128, num_actions), gain=0.01),
        )
        self.baseline = nn.Sequential(
            nn.Flatten(),
            init_layer(nn.Linear(SIZE * SIZE, 128)),
            nn.ReLU(),
            init_layer(nn.Linear(128, 128)),
            nn.ReLU(),
            init_layer(nn.Linear(128, 2), gain=0.01),
        )

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, 1, 10, 10) -> logits (B, 4), values (B, 2)."""
        return self.policy(obs), self.baseline(agent_plane(obs))


def agent_plane(obs: Tensor) -> Tensor:
    """Observations (B, 1, 10, 10) -> the same, but 1 where the agent is and 0 elsewhere."""
    return (obs == AGENT_CODE).float()


def rnd_layers() -> list[nn.Module]:
    """Where the agent is (B, 1, 10, 10) -> features (B, 128): what target and predictor have in common."""
    return [nn.Flatten(), init_layer(nn.Linear(SIZE * SIZE, 128)), nn.ReLU(), init_layer(nn.Linear(128, 128))]


class RND(nn.Module):
    """The target, the predictor and the normaliser that decide what is new."""

    def __init__(self, num_envs: int, device: torch.device):
        super().__init__()
        # The predictor is one layer deeper, so that it can represent the target; hence what error there is comes from
        # what it has not seen (paper section 2.2.1).
        self.target = nn.Sequential(*rnd_layers()).requires_grad_(False)
        self.predictor = nn.Sequential(*rnd_layers(), nn.ReLU(), init_layer(nn.Linear(128, 128)))
        self.return_rms = RunningMoments((), device)
        self.register_buffer("filtered", torch.zeros(num_envs))  # (N,) the reward filter's state
        self.to(device)

    def errors(self, obs: Tensor) -> Tensor:
        """Observations (B, 1, 10, 10) -> squared error of each feature (B, 128)."""
        # paper: observations are whitened first, here: not, because a position is 0s and a single 1 as it is
        position = agent_plane(obs)
        return (self.predictor(position) - self.target(position)).square()


# ----------------------------------------------------------------------------------------------------------------------
# Normalisers and returns
# ----------------------------------------------------------------------------------------------------------------------


class RunningMoments(nn.Module):
    """Mean and variance of everything seen so far, merged batch by batch (Chan et al. 1979), in float64.

    They are cumulative: nothing is forgotten. The variance has no epsilon.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device):
        super().__init__()
        dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.register_buffer("mean", torch.zeros(shape, dtype=dtype))
        self.register_buffer("var", torch.ones(shape, dtype=dtype))
        self.register_buffer("count", torch.tensor(1e-4, dtype=dtype))

    @torch.no_grad()
    def update(self, batch: Tensor, valid: Tensor) -> None:
        """Takes in batch (B, *shape), each row as often as valid (B,) says: once if True, or that many times."""
        batch, weight = batch.to(self.mean.dtype), valid.to(self.mean.dtype)
        count = weight.sum()
        share = weight / count.clamp(min=1)
        mean = torch.tensordot(share, batch, 1)
        var = torch.tensordot(share, (batch - mean).square_(), 1)
        total = self.count + count
        delta = mean - self.mean
        m2 = self.var * self.count + var * count + delta.square() * self.count * count / total
        self.mean += delta * count / total
        self.var.copy_(m2 / total)
        self.count.copy_(total)


def novelty(errors: Tensor, bonus: str) -> Tensor:
    """Raw intrinsic reward: squared error of each feature (B, F) -> (B,).

    `rnd`: their sum, |g - f|^2, which goes to 0 as the predictor learns.
    `seed`: the errors are standardised within the sample, then mean(tanh(|z|)). Multiply all errors by any number and
    nothing changes, so this reward does not know how well the predictor does. Trained on itself, as in the notes, it
    falls everywhere alike, seen or not. It is kept to show that.
    """
    if bonus == "rnd":
        return errors.sum(1)
    z = (errors - errors.mean(1, keepdim=True)) / (errors.std(1, keepdim=True) + 1e-12)
    return z.abs().tanh().mean(1)


def reward_filter(rewards: Tensor, valid: Tensor, gamma: float, state: Tensor) -> tuple[Tensor, Tensor]:
    """Discounted sum of past rewards: F(t) = gamma * F(t-1) + r(t), over time, for each environment by itself.

    It runs forward in time, over episode ends and from rollout to rollout (`state` (N,) is carried on); a reset step
    leaves it as it is. The deviation of F stands for that of the return.

    Returns: F (T, N), the new state (N,).
    """
    filtered = []
    for reward, ok in zip(rewards, valid, strict=True):  # (N,), (N,)
        state = torch.where(ok, gamma * state + reward, state)
        filtered.append(state)
    return torch.stack(filtered), state


def discounted_returns(rewards: Tensor, valid: Tensor, gamma: float, last: Tensor | float) -> Tensor:
    """G(t) = r(t) + gamma * G(t+1), back from the last valid step of each column, after which it is `last`.

    Args: rewards (T, N); valid (T, N), False after the end of a column's episode; last, a number or (N,).
    Returns: G (T, N), 0 where not valid.
    """
    returns = torch.zeros_like(rewards)
    g = torch.zeros_like(rewards[0]) + last  # (N,)
    for t in reversed(range(len(rewards))):
        g = torch.where(valid[t], rewards[t] + gamma * g, g)
        returns[t] = g * valid[t]
    return returns


def standardise(advantages: Tensor, valid: Tensor) -> Tensor:
    """Advantages (T, N) with mean 0 and deviation 1 over the valid steps of each column, that is of each episode.

    Without a baseline they are the returns. In an episode that is paid at its end these grow with every step. So this
    calls the first steps bad and the last ones good, whatever was done, and the first room is learned badly.
    """
    count = valid.sum(0)
    mean = (advantages * valid).sum(0) / count  # (N,)
    std = ((advantages - mean).square() * valid).sum(0).div((count - 1).clamp(min=1)).sqrt()
    return (advantages - mean) / (std + 1e-9) * valid


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean of x (B,) over the entries with valid (B,) True; 0 if there is none."""
    return (x * valid).sum() / valid.sum().clamp(min=1)


def explained_variance(values: Tensor, returns: Tensor, valid: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over valid entries; all (T, N). NaN if the returns are constant."""
    values, returns = values[valid], returns[valid]
    return 1 - (returns - values).var() / returns.var()


# ----------------------------------------------------------------------------------------------------------------------
# Checkpoints, logs and signals
# ----------------------------------------------------------------------------------------------------------------------

SCRIPT = pathlib.Path(__file__).stem


def save_checkpoint(path: pathlib.Path, state: dict) -> None:
    """Writes `state` so that `path` is at any moment a whole checkpoint, the old or the new one, or raises RunError."""
    buffer, temporary = io.BytesIO(), path.with_suffix(".tmp")
    torch.save(state, buffer)
    try:
        with open(temporary, "wb") as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise RunError(f"cannot write {path} ({error.strerror})") from None


def load_checkpoint(flag: str, source: str) -> tuple[pathlib.Path, dict]:
    """The checkpoint in a run's folder, or that file: path and state. UserError if it is not one of this script's."""
    path = pathlib.Path(source)
    path = path / "latest.pt" if path.is_dir() else path
    if not path.is_file():
        raise UserError(f"{flag} {source}: there is no checkpoint {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError):
        raise UserError(f"{flag} {source}: {path} is damaged or is no checkpoint") from None
    script = state.get("script") if isinstance(state, dict) else None
    if script != SCRIPT:
        raise UserError(f"{flag} {source}: {path} was written by {script or 'something else'}, not by this script")
    if state["args"].keys() != vars(Args()).keys():
        raise UserError(f"{flag} {source}: {path} was written by another version of this script")
    return path, state


def load_state(part: nn.Module | torch.optim.Optimizer, state: dict, path: pathlib.Path) -> None:
    """part.load_state_dict; UserError if the checkpoint is of another architecture."""
    try:
        part.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise UserError(f"{path} holds another architecture than these flags ask for: {reason}") from None


def open_run(args: Args, env_id: str, path: pathlib.Path | None, step: int) -> tuple[pathlib.Path, SummaryWriter]:
    """Makes the run's folder, or takes that of checkpoint `path`, and opens its logs."""
    name = f"{env_id}__{SCRIPT}__{args.seed}__{time.strftime('%Y-%m-%d_%H-%M-%S')}"
    run_dir = path.parent if path else pathlib.Path(args.runs_dir) / name
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        threading.excepthook = lambda _: None  # TensorBoard's thread: its errors reach this one at the next scalar
        writer = SummaryWriter(str(run_dir), purge_step=step + 1 if path else None)
    except OSError as error:
        raise UserError(f"cannot write into {run_dir}: {error.strerror or error}") from None
    try:
        describe = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"]
        commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:  # no git
        commit = "unknown"
    facts = {name: importlib.metadata.version(name) for name in ("torch", "gymnasium", "numpy")}
    facts |= {"python": platform.python_version(), "commit": commit, **vars(args)}
    table = "\n".join(f"|{key}|{value}|" for key, value in {"name": "value", "-": "-", **facts}.items())
    writer.add_text("hyperparameters", table, step)
    return run_dir, writer


class Progress(tqdm):
    """A bar on a terminal, elsewhere a line every 10 seconds: percent, steps, time taken and left, rate, status."""

    monitor_interval = 0  # no thread that prints the same line again

    def __init__(self, total: int, initial: int, desc: str | None = None, unit: str = "steps"):
        self.terminal = sys.stderr.isatty()
        plain = {"bar_format": "{l_bar} {r_bar}", "mininterval": 10, "file": io.StringIO()}
        style = {"unit": f" {unit}", "unit_scale": True, "miniters": 1, "smoothing": 0.02}
        style |= {} if self.terminal else plain
        super().__init__(total=total, initial=initial, desc=desc, **style)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if self.terminal:
            super().display(msg, pos)
        elif msg is None:
            print(str(self).replace("|", ""), flush=True)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(line) if self.terminal else print(line, flush=True)


class StopSignal:
    """Ctrl-C and SIGTERM ask the training loop to stop (`number` becomes the signal's); a second one stops at once."""

    def __init__(self):
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.receive)

    def receive(self, number: int, _frame: object) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)
        print("\nstopping when the learner can be saved; once more: at once", flush=True)


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


def play(envs: MazeEnvs, policy: Tensor) -> dict[str, np.ndarray]:
    """One episode in every copy of the maze, until the last one is over; actions are drawn from `policy` (S, 4).

    REINFORCE does not change the policy while it plays, and there are only S observations. So instead of a network
    at every step we need one line of a table: the same actions, some thirty times as fast.

    Returns: states, actions, next_states, rewards, valid (T, N); valid is False after the end of an episode.
    """
    thresholds = policy.cpu().numpy().cumsum(1)[:, :-1]  # (S, 3) a draw between two of them is an action
    draws = torch.rand((envs.max_episode_steps, envs.num_envs, 1)).numpy()
    steps = []
    _, infos = envs.reset()
    ongoing = np.ones(envs.num_envs, bool)
    for uniform in draws:  # (N, 1)
        state = infos["state"]
        action = (uniform >= thresholds[state]).sum(1)
        _, reward, terminated, truncated, infos = envs.step(action)
        steps.append((state, action, infos["state"], reward, ongoing))
        ongoing = ongoing & ~(terminated | truncated)
        if not ongoing.any():
            break
    columns = map(np.stack, zip(*steps, strict=True))
    return dict(zip(("states", "actions", "next_states", "rewards", "valid"), columns, strict=True))


def train(args: Args, env_id: str, device: torch.device, path: pathlib.Path | None, saved: dict | None) -> int:
    """Trains to the end, until a signal, or on from the checkpoint `saved` of file `path`. Returns the exit status."""
    N = args.num_envs
    if saved and saved["progress"]["episode"] >= args.total_episodes:
        raise UserError(f"{path} has all of its {args.total_episodes:,} episodes; ask for more with --total-episodes")
    stop = StopSignal()

    # environments, networks, optimisers
    torch.manual_seed(args.seed)
    envs = MazeEnvs(N, resolve_goal(args.goal), args.max_episode_steps)
    observations = torch.from_numpy(envs.observations).to(device)  # (S, 1, 10, 10)
    S = len(observations)
    agent, rnd = Agent(len(MOVES)).to(device), RND(N, device)
    groups = [
        {"params": [*agent.policy.parameters()], "lr": args.learning_rate},
        {"params": [*agent.baseline.parameters()], "lr": args.baseline_learning_rate},
    ]
    # Adam's usual 0.999 would remember the first, large bonuses for a thousand gradient steps, and take small ones; its
    # usual 1e-8 would blow up what gradient is left when the maze is solved
    optimizer = torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-6)
    # paper: Adam for the predictor too, here: plain gradient descent, because with Adam's rescaled steps the bonus of
    # cells that are seldom seen falls sooner, and in trials the goal was not learned
    predictor_optimizer = torch.optim.SGD(rnd.predictor.parameters(), lr=args.predictor_learning_rate)
    learner = {"agent": agent, "rnd": rnd, "optimizer": optimizer, "predictor_optimizer": predictor_optimizer}
    progress = {"step": 0, "episode": 0, "iteration": 0, "first_hit": None, "solved": None, "seconds": 0.0}
    recent = collections.deque(maxlen=100)  # did the last episodes from the true start find the goal?
    visits = torch.zeros(S, dtype=torch.int64)  # how often each state was entered
    snapshots = []  # at each eighth of the run: [step, visits (S,) so far, bonus (S,)]
    curve = []  # after every batch: [step, episode, success rate, length of the path of likeliest actions]
    demo = shortest_path(envs)[:-1] if args.demo_curriculum else [0]  # episodes start at its last state
    if saved:
        for name, part in learner.items():
            load_state(part, saved[name], path)
        # the checkpoint's step sizes, unless others are asked for; the policy's is set in each iteration
        optimizer.param_groups[1]["lr"] = args.baseline_learning_rate
        predictor_optimizer.param_groups[0]["lr"] = args.predictor_learning_rate
        torch.set_rng_state(saved["rng_cpu"])
        progress, visits, snapshots = saved["progress"], saved["visits"], saved["snapshots"]
        curve, demo = saved["curve"], saved["demo"]
        recent.extend(saved["recent"])
    run_dir, writer = open_run(args, env_id, path, progress["step"])

    # what is about to happen
    networks = {"policy": agent.policy, "baseline": agent.baseline, "predictor": rnd.predictor, "target": rnd.target}
    bonus = f"{args.bonus} x {args.int_coef:g}" if args.int_coef else "none"
    print(f"device       {device}{f', threads: {torch.get_num_threads()}' * (device.type == 'cpu')}")
    print(f"environment  {env_id} x {N}, shortest path {len(shortest_path(envs)) - 1} steps, bonus {bonus}")
    print(f"parameters   {', '.join(f'{k} {sum(p.numel() for p in m.parameters()):,}' for k, m in networks.items())}")
    print("memory       about 0.5 GB, most of it libraries")
    print(f"episodes     {args.total_episodes:,}, {N} at a time, of {args.max_episode_steps} steps at most")
    print(f"folder       {run_dir}", flush=True)

    def save() -> None:
        """Writes latest.pt: everything that the run depends on, so that it goes on as if nothing had happened."""
        state = {name: part.state_dict() for name, part in learner.items()} | {
            "script": SCRIPT,
            "args": {**vars(args), "resume": None},
            "identity": {"goal": args.goal, "num_envs": N, "demo_curriculum": args.demo_curriculum},
            "progress": {**progress, "seconds": progress["seconds"] + time.time() - start_time},
            "rng_cpu": torch.get_rng_state(),
            "recent": list(recent),
            "visits": visits,
            "snapshots": snapshots,
            "curve": curve,
            "demo": demo,
        }
        save_checkpoint(run_dir / "latest.pt", state)

    _, _, success, path_length = curve[-1] if curve else (0, 0, 0.0, None)
    start_time = last_save = time.time()
    bar = Progress(args.total_episodes, progress["episode"], unit="episodes")
    while progress["episode"] < args.total_episodes and not stop.number:
        iteration_start = time.time()
        fade = 1 - progress["episode"] / args.total_episodes if args.anneal else 1.0

        # play N episodes; the policy and the values of all states are computed once, and differentiated further down
        envs.start = demo[-1]
        logits, values = agent(observations)  # (S, 4), (S, 2)
        logprobs = logits.log_softmax(1)  # (S, 4)
        with torch.no_grad():
            raw_bonus = novelty(rnd.errors(observations), args.bonus)  # (S,)
        batch = {key: torch.from_numpy(x).to(device) for key, x in play(envs, logprobs.detach().exp()).items()}
        states, actions, next_states, rewards, valid = batch.values()  # (T, N)
        num_steps = int(valid.sum())

        # intrinsic reward
        intrinsic = raw_bonus[next_states]  # (T, N)
        filtered, rnd.filtered = reward_filter(intrinsic, valid, args.int_gamma, rnd.filtered)
        rnd.return_rms.update(filtered.flatten(), valid.flatten())
        intrinsic = intrinsic / rnd.return_rms.var.sqrt().float()

        # returns and advantages
        v = values.detach()[states] * args.baseline  # (T, N, 2)
        next_episode = 0.0 if args.int_episodic or not args.baseline else values.detach()[envs.start, 0]
        int_returns = discounted_returns(intrinsic, valid, args.int_gamma, next_episode)
        ext_returns = discounted_returns(rewards, valid, args.gamma, 0.0)
        int_advantages, ext_advantages = int_returns - v[..., 0], ext_returns - v[..., 1]
        advantages = fade * args.int_coef * int_advantages + args.ext_coef * ext_advantages
        if args.return_norm:
            advantages = standardise(advantages, valid)

        # update the policy and the baseline
        chosen = logprobs[states, actions]  # (T, N)
        policy_loss = masked_mean(-chosen * advantages, valid)
        entropy = masked_mean(-(logprobs.exp() * logprobs).sum(1)[states], valid)
        value_loss_int = 0.5 * masked_mean((values[states, 0] - int_returns).square(), valid)
        value_loss_ext = 0.5 * masked_mean((values[states, 1] - ext_returns).square(), valid)
        value_loss = (args.int_coef > 0) * value_loss_int + (args.ext_coef > 0) * value_loss_ext
        loss = policy_loss - fade * args.ent_coef * entropy + args.baseline * value_loss
        optimizer.param_groups[0]["lr"] = fade * args.learning_rate
        optimizer.zero_grad()
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(agent.policy.parameters(), args.max_grad_norm)
        optimizer.step()

        # update the predictor, on the observations that were rewarded, each as often as it was seen
        seen = torch.bincount(next_states[valid], minlength=S)  # (S,)
        predictor_loss = (novelty(rnd.errors(observations), args.bonus) * seen).sum() / num_steps
        predictor_optimizer.zero_grad()
        predictor_loss.backward()
        predictor_optimizer.step()

        # count
        hits = rewards.sum(0).tolist()  # (N,) 1 or 0
        if args.demo_curriculum and len(demo) > 1:
            recent.extend(hits)
            if len(recent) >= 10 and np.mean(recent) >= 0.2:
                demo.pop()
                recent.clear()
        else:
            recent.extend(hits)
            if any(hits) and progress["first_hit"] is None:
                progress["first_hit"] = [progress["episode"] + N, progress["step"] + num_steps]
            if len(recent) == 100 and np.mean(recent) >= 0.95 and progress["solved"] is None:
                progress["solved"] = [progress["episode"] + N, progress["step"] + num_steps]
        progress["step"] += num_steps
        progress["episode"] += N
        progress["iteration"] += 1
        success = float(np.mean(recent)) if len(demo) == 1 and recent else 0.0
        visits += seen.cpu()
        policy_path = greedy_path(envs, logits.argmax(1))
        path_length = len(policy_path) - 1 if policy_path[-1] == envs.goal else None
        curve.append([progress["step"], progress["episode"], success, path_length])

        # log
        scalars = {
            "charts/episodic_return": rewards.sum(0).mean(),
            "charts/episodic_length": num_steps / N,
            "charts/success_rate": success,
            "charts/episodes": progress["episode"],
            "charts/moved": masked_mean((states != next_states).float(), valid),
            "charts/SPS": num_steps / (time.time() - iteration_start),
            "charts/learning_rate": optimizer.param_groups[0]["lr"],
            "losses/policy_loss": policy_loss,
            "losses/value_loss": value_loss,
            "losses/value_loss_int": value_loss_int,
            "losses/value_loss_ext": value_loss_ext,
            "losses/entropy": entropy,
            "losses/explained_variance_int": explained_variance(v[..., 0], int_returns, valid),
            "losses/explained_variance_ext": explained_variance(v[..., 1], ext_returns, valid),
            "losses/predictor_loss": predictor_loss,
            "losses/grad_norm": grad_norm,
            "rnd/intrinsic_reward": masked_mean(intrinsic, valid),
            "rnd/intrinsic_return_std": rnd.return_rms.var.sqrt(),
            "rnd/cells_visited": (visits > 0).sum(),
        }
        if args.demo_curriculum:
            scalars["charts/start_distance"] = len(demo) - 1
        if path_length:
            scalars["charts/greedy_path"] = path_length
        if progress["iteration"] % 50 == 1:
            for name, parameter in [*agent.named_parameters(), *rnd.predictor.named_parameters("predictor")]:
                scalars[f"gradients/{name}"] = parameter.grad.abs().mean()
        scalars = {key: float(torch.as_tensor(value).detach()) for key, value in scalars.items()}
        for key, value in scalars.items():
            if not np.isfinite(value) and "explained_variance" not in key:  # which is NaN while all returns are equal
                good = run_dir / "latest.pt"
                where = f"the last good checkpoint is {good}" if good.exists() else "there is no checkpoint yet"
                raise RunError(f"{key} is {value} at step {progress['step']:,}: stopped; {where}")
            writer.add_scalar(key, value, progress["step"])

        # show
        bar.set_postfix_str(
            f"success {success:.2f}, r_int {scalars['rnd/intrinsic_reward']:.4f}, cells {(visits > 0).sum()}",
            refresh=False,
        )
        bar.update(min(progress["episode"], args.total_episodes) - bar.n)
        part = args.total_episodes / 8
        if progress["episode"] // part > (progress["episode"] - N) // part:
            snapshots.append([progress["step"], visits.clone(), raw_bonus.cpu()])
            trajectory = [*states[valid[:, 0], 0].tolist(), int(next_states[-1, 0])]
            bar.say(f"episode {progress['episode']:,}: likeliest actions, and where the last episode went")
            bar.say(draw(envs, logits.argmax(1), trajectory))

        # save
        if time.time() - last_save >= 60 * args.checkpoint_interval:
            save()
            last_save = time.time()

    save()
    bar.close()
    writer.close()
    for name, text in (("first_hit", "goal first reached"), ("solved", "95 of 100 episodes reach it")):
        when = "after {:,} episodes, {:,} steps".format(*progress[name]) if progress[name] else "never"
        print(f"{text:28s} {when}")
    print(f"{'path of likeliest actions':28s} {path_length or 'none'}; the shortest is {len(shortest_path(envs)) - 1}")
    took = datetime.timedelta(seconds=round(progress["seconds"] + time.time() - start_time))
    score = (
        f"{success:.2f} over the last {len(recent)} episodes" if len(demo) == 1 else "none yet, start not moved back"
    )
    print(f"score {score}, steps {progress['step']:,}, time {took}, folder {run_dir}")
    if stop.number:
        print(f"resume with: python {sys.argv[0]} --resume {run_dir}")
        return 128 + stop.number
    if args.plot:
        plot(run_dir / "latest.pt")
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation and pictures
# ----------------------------------------------------------------------------------------------------------------------


def greedy_path(envs: MazeEnvs, actions: Tensor) -> list[int]:
    """The states that follow from state 0 when actions (S,) are taken: to the goal, or until one comes back."""
    actions, path = actions.tolist(), [0]
    while path[-1] != envs.goal and len(path) <= len(actions):
        path.append(int(envs.next_state[path[-1], actions[path[-1]]]))
    return path


def draw(envs: MazeEnvs, actions: Tensor, trajectory: list[int]) -> str:
    """The maze as text, twice: the action (S,) of each cell as an arrow, and the cells of a trajectory as `o`."""
    left, right = np.where(WALLS, "■", " "), np.where(WALLS, "■", "·")  # (10, 10)
    for state, (row, column) in enumerate(envs.cells):
        left[row, column] = ARROWS[int(actions[state])]
    for row, column in envs.cells[trajectory]:
        right[row, column] = "o"
    for grid in (left, right):
        grid[*envs.cells[envs.goal]] = "X"
    return "\n".join(f"{' '.join(a)}     {' '.join(b)}" for a, b in zip(left, right, strict=True)) + "\n"


def evaluate(args: Args, path: pathlib.Path, saved: dict) -> None:
    """Plays episodes with the policy of a checkpoint, actions drawn as in training, and says how many find the goal."""
    torch.manual_seed(args.seed)
    envs = MazeEnvs(args.eval_episodes, resolve_goal(args.goal), args.max_episode_steps)
    agent = Agent(len(MOVES))
    load_state(agent, saved["agent"], path)
    with torch.no_grad():
        policy = agent(torch.from_numpy(envs.observations))[0].softmax(1)  # (S, 4)
    episodes = play(envs, policy)
    hits, lengths = episodes["rewards"].sum(0), episodes["valid"].sum(0)  # (N,)
    policy_path = greedy_path(envs, policy.argmax(1))
    print(f"{path}, step {saved['progress']['step']:,}: {args.eval_episodes} episodes")
    print("likeliest actions, and the way they go")
    print(draw(envs, policy.argmax(1), policy_path))
    length = len(policy_path) - 1 if policy_path[-1] == envs.goal else "none"
    print(f"path of likeliest actions {length}; the shortest is {len(shortest_path(envs)) - 1}")
    error = np.std(hits, ddof=1) / len(hits) ** 0.5 if len(hits) > 1 else float("nan")
    print(f"success {hits.mean():.2f} +- {error:.2f} (mean, standard error), length {lengths.mean():.1f}")


def plot(path: pathlib.Path) -> None:
    """Draws a checkpoint into its run's folder: exploration.png, policy.png, learning_curve.png."""
    _, saved = load_checkpoint("--plot", str(path))
    args, run_dir = Args(**saved["args"]), path.parent
    goal = resolve_goal(args.goal)
    envs = MazeEnvs(1, goal, args.max_episode_steps)
    agent = Agent(len(MOVES))
    load_state(agent, saved["agent"], path)

    def show(panel: plt.Axes, values: Tensor, norm: matplotlib.colors.Normalize) -> None:
        """One value for each state (S,) as a heat map of the maze."""
        grid = np.full(WALLS.shape, np.nan)  # (10, 10)
        grid[*envs.cells.T] = values.clamp(min=norm.vmin)
        panel.imshow(grid, norm=norm)
        panel.plot(*goal[::-1], "rx", markersize=5)
        panel.set(xticks=[], yticks=[], facecolor="0.25")

    # where the agent went, and what the bonus was, in eight parts of the run
    if saved["snapshots"]:
        steps, visits, bonuses = zip(*saved["snapshots"], strict=True)
        before = [torch.zeros_like(visits[0]), *visits]
        most, strongest = max(2, int(visits[-1].max())), float(max(bonus.max() for bonus in bonuses))
        figure, panels = plt.subplots(2, len(steps), figsize=(2 * len(steps) + 0.5, 4.3), layout="constrained")
        panels = panels.reshape(2, -1)
        for k, (above, below) in enumerate(panels.T):
            show(above, visits[k] - before[k], matplotlib.colors.LogNorm(1, most))
            show(below, bonuses[k], matplotlib.colors.LogNorm(strongest / 1e4, strongest))
            above.set_title(f"to step {steps[k]:,}", fontsize=9)
        paid = f"bonus ({args.bonus})" if args.int_coef else "bonus, not paid"
        for row, label in zip(panels, ("visits", paid), strict=True):
            row[0].set_ylabel(label)
            figure.colorbar(row[-1].images[0], ax=row[-1])
        figure.savefig(run_dir / "exploration.png", dpi=110)
        plt.close(figure)

    # the policy: its likeliest actions, how likely they are, and where they lead
    with torch.no_grad():
        likelihood, actions = agent(torch.from_numpy(envs.observations))[0].softmax(1).max(1)  # (S,), (S,)
    rows, columns = envs.cells.T
    down, right = np.array(MOVES)[actions].T
    policy_path = greedy_path(envs, actions)
    length = f"{len(policy_path) - 1} steps" if policy_path[-1] == envs.goal else "which misses the goal"
    figure, panel = plt.subplots(figsize=(4.8, 4.2), layout="constrained")
    show(panel, likelihood, matplotlib.colors.Normalize(0.25, 1))
    figure.colorbar(panel.images[0], ax=panel, label="probability of the likeliest action")
    panel.plot(*envs.cells[policy_path].T[::-1], "r", linewidth=5, alpha=0.4)
    panel.quiver(columns, rows, right, -down, scale=16, width=0.008, pivot="mid", color="k")
    panel.set_title(f"likeliest actions and their path, {length}", fontsize=10)
    figure.savefig(run_dir / "policy.png", dpi=110)
    plt.close(figure)

    # the learning curve, beside those of all other runs to the same goal in the same folder
    figure, panel = plt.subplots(figsize=(6, 3.4), layout="constrained")
    labels, runs_dir = set(), run_dir.resolve().parent
    for other in sorted(runs_dir.glob("*/latest.pt")):
        try:
            _, run = load_checkpoint("--plot", str(other))
        except UserError:  # another script's
            continue
        if run["args"]["goal"] == args.goal and run["curve"]:
            with_bonus = run["args"]["int_coef"] > 0
            label = f"bonus {run['args']['bonus']}" if with_bonus else "no bonus"
            color = {"bonus rnd": "C0", "no bonus": "C1", "bonus seed": "C2"}[label]
            steps, _, success, _ = zip(*run["curve"], strict=True)
            width = 2.5 if other == path.resolve() else 0.8
            panel.plot(steps, success, color=color, linewidth=width, label="_" * (label in labels) + label)
            labels.add(label)
    panel.set(xlabel="environment steps", ylabel="success, last 100 episodes", ylim=(-0.03, 1.03))
    panel.set_title(f"goal {args.goal}, this run (thick) and all others in {runs_dir.name}/", fontsize=10)
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8)
    figure.savefig(run_dir / "learning_curve.png", dpi=110)
    plt.close(figure)
    print(f"pictures: {run_dir}/exploration.png, policy.png, learning_curve.png")


# ----------------------------------------------------------------------------------------------------------------------
# Entry point
# ----------------------------------------------------------------------------------------------------------------------


def main() -> int:
    """Reads the flags, trains or evaluates. Returns the exit status: 0, 1 failed, 2 wrong use, 130 and 143 signals."""
    args = tyro.cli(Args, description=__doc__)
    try:
        path, saved = None, None
        if source := args.resume or args.evaluate:
            path, saved = load_checkpoint("--resume" if args.resume else "--evaluate", source)
            args = tyro.cli(Args, default=Args(**saved["args"]))  # flags given anew stand, all others are the run's
        check_args(args)
        row, column = resolve_goal(args.goal)
        device = resolve_device(args.device)
        if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # nets this small gain little from more; other cores can run other seeds
        if saved:
            for name, value in saved["identity"].items():
                if value != getattr(args, name):
                    raise UserError(f"{path} is of a run with {name} {value}, not {getattr(args, name)}")
        if args.evaluate:
            evaluate(args, path, saved)
            if args.plot:
                plot(path)
            return 0
        return train(args, f"Maze-{row}-{column}", device, path, saved)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except (RunError, OSError, torch.OutOfMemoryError) as error:
        print(f"error: {str(error).splitlines()[0]}; what was saved before is whole", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
