# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "minigrid==3.2.0", "envpool==1.2.5", "imageio==2.38.1",
#   "imageio-ffmpeg==0.8.1", "tyro==1.0.17", "tensorboard==2.21.0", "tqdm==4.70.1"
# ]
# ///
"""A2C with and without Random Network Distillation (RND) on MiniGrid's DoorKey, in one file.

Papers: Mnih et al. (2016), Asynchronous methods for deep reinforcement learning, arXiv:1602.01783; Burda, Edwards,
Storkey, Klimov (2018), Exploration by Random Network Distillation, arXiv:1810.12894. The task, the networks and the
constants of `--preset notebook`, which are the defaults, are those of a course's notebook, "Exploration and Curiosity"
(alessiodm/drl-zh, 2025), which shows one run of each.

DoorKey: the agent is in a room with a key; a locked door leads to a room with the goal. It sees 7 x 7 tiles ahead and
is paid once, at the goal: 1 - 0.9 * steps / limit. Acting at random it gets there in 2.3 % of episodes of the 8x8 grid
and in 0.5 % of the 16x16 one. A2C plays T steps in N copies and takes one gradient step on all of them:

    A(t) = sum over k of (gamma * lambda)^k * delta(t+k),   delta(t) = r(t) + gamma * V(t+1) - V(t)
    R(t) = A(t) + V(t), the return that V is to learn
    loss = mean over steps of -log pi(a(t) | o(t)) * A(t) + vf_coef * (R(t) - V(t))^2 - ent_coef * entropy

Random Network Distillation adds a reward for what is new. A random network f, the target, is never trained; a second
one g, the predictor, learns to agree with it on what the agent sees. Where they disagree, the agent has seldom been:

    r_int(t) = |g(o(t+1)) - f(o(t+1))|^2 / 256      intrinsic reward of the step from o(t) to o(t+1)
    A        = int_coef * A_int + ext_coef * A_ext  two value heads, two advantages, one policy

The notebook leaves out some of what makes RND work, and says so; `--preset tuned` and `--preset tuned-16x16` put it
back, still with A2C and the same layers. What they change, a flag each:
  1. A bonus for the first visit of an episode only (`--first-visit`): going back and forth earns nothing.
  2. The bonus is divided by the deviation of its return (`--int-norm`), so that one coefficient fits all sizes.
  3. Codes as planes of 0 and 1 (`--one-hot`): the code of a door is 4, but it is not four times an empty tile.
  4. Orthogonal weights (`--orthogonal`), with which a random target tells views apart.
  5. A predictor that learns on what it rewarded (`--same-obs`), with all of its units (`--dropout 0`), and fast.
  6. Up to 8x8, advantages divided by their deviation (`--norm-adv`), so that a small bonus teaches as well. Not so at
     16x16, where the goal is rare and has to count; but there observations are whitened (`--obs-norm`), so that what
     is seldom seen, as an open door, has the larger error.

Three commands, to train, to resume and to evaluate:
    python a2c_rnd_doorkey.py --env-id DoorKey-8x8 --preset tuned
    python a2c_rnd_doorkey.py --resume runs/<run>
    python a2c_rnd_doorkey.py --evaluate runs/<run> --eval-episodes 20 --capture-video

What to expect, on one core of a CPU, in 0.6 to 0.9 GB: `--preset tuned` solves 5x5 (a mean return above 0.95) within
0.2M steps, in seconds, and 8x8 within 0.6M to 0.8M, in 1 to 3 minutes; `--preset tuned-16x16` solves 16x16 within 1.6M
to 3.7M, in 3 to 9 minutes. The notebook's settings solve 8x8 within 1.8M to 5.2M steps; at 16x16 the notebook itself
took 81M. docs/results/README.md has all seeds, with and without the bonus.
"""

import collections
import ctypes
import dataclasses
import datetime
import difflib
import importlib.metadata
import importlib.util
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

import envpool
import gymnasium as gym
import imageio
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from minigrid.wrappers import ImgObsWrapper
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

if platform.libc_ver()[0] == "glibc":
    # By default glibc gives each activation back to the kernel and asks for it anew, page by page. Keeping the memory
    # makes updates on a CPU much faster. The codes are M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD.
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20)):
        ctypes.CDLL("libc.so.6").mallopt(option, value)


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


Preset = Literal["notebook", "notebook-16x16", "tuned", "tuned-16x16"]


@dataclasses.dataclass
class Args:
    # The defaults are the notebook's, `--preset` puts others in their place; "paper" is RND's, "reference" its authors'
    # code. The comments are the help of `--help`.

    # experiment
    preset: Preset = "notebook"  # a set of defaults; flags beside it stand
    seed: Int = 1  # seed of the networks, the actions and the environments
    device: Literal["auto", "cuda", "mps", "cpu"] = "cpu"  # auto: cuda, then mps, then cpu; for nets this small, cpu
    runs_dir: str = "runs"  # where the run's folder is made
    checkpoint_interval: float = 1.0  # minutes between checkpoints; 0: one at every line of the log
    log_interval: Int = 100  # rollouts between two lines of the log; then it is also seen whether the task is solved
    resume: str | None = None  # a run's folder or a checkpoint: go on, with its flags except those given anew
    evaluate: str | None = None  # a run's folder or a checkpoint: play with it, do not train
    eval_episodes: Int = 20  # episodes to play with --evaluate
    capture_video: bool = False  # with --evaluate: a film of every episode, in the run's folder
    video_format: Literal["gif", "mp4"] = "gif"  # what kind of film
    track: bool = False  # send the logs to Weights & Biases too (pip install wandb; WANDB_MODE=offline works)
    wandb_project: str = "rnd"  # project name for --track

    # environment
    env_id: str = "DoorKey-8x8"  # any of MiniGrid's; DoorKey-8x8 and MiniGrid-DoorKey-8x8-v0 mean the same
    backend: Literal["envpool", "gymnasium"] = "envpool"  # gymnasium: the minigrid package, slower
    num_envs: Int = 32  # parallel environments, N

    # A2C
    total_timesteps: Int = 20_000_000  # environment steps, of which each is one frame
    solved_score: float | None = 0.95  # stop when the mean return of the last 100 episodes is higher; None: do not
    num_steps: Int = 16  # steps of each environment in a rollout, T
    learning_rate: float = 1e-4  # RMSprop's step size for policy and values
    gamma: float = 0.99  # discount of the extrinsic stream
    gae_lambda: float = 0.98  # lambda of generalised advantage estimation, both streams
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value losses, squared error for each head
    max_grad_norm: float = 0.5  # clip the norm of the gradient of policy and values
    norm_adv: bool = False  # divide the advantages of a rollout by their deviation
    bootstrap_truncated: bool = False  # value what the time limit cut off, extrinsic stream only (notebook: no)
    orthogonal: bool = False  # orthogonal initial weights for all networks (notebook: PyTorch's own)
    one_hot: bool = False  # object, colour and state of a tile as planes of 0 and 1 (notebook: the codes as numbers)

    # RND
    int_coef: float = 10.0  # weight of the intrinsic advantage; 0: A2C without the bonus
    ext_coef: float | None = None  # weight of the extrinsic advantage (notebook: 100, without the bonus 1)
    int_gamma: float = 0.99  # discount of the intrinsic stream
    int_episodic: bool = True  # let the intrinsic stream end with the episode (paper: no)
    int_norm: bool = False  # divide the bonus by the running deviation of its discounted return (paper: yes)
    obs_norm: bool = False  # whiten what RND sees with running moments and clip it at 5 deviations (paper: yes)
    same_obs: bool = False  # train the predictor on the observations that it rewards (paper: yes; notebook: one before)
    first_visit: bool = False  # pay the bonus only for views that are new in this episode
    dropout: float = 0.25  # share of the predictor's hidden units left out in training (paper: none)
    predictor_learning_rate: float = 1e-4  # RMSprop's step size for the predictor
    predictor_max_grad_norm: float | None = 0.01  # clip the norm of the predictor's gradient


PRESETS = {  # what each differs in from the defaults
    "notebook": {},
    "notebook-16x16": {"num_envs": 128, "num_steps": 48, "gamma": 0.995, "log_interval": 35},
    "tuned": {
        "num_envs": 64,
        "log_interval": 50,  # 51,200 steps, as in the notebook
        "learning_rate": 1e-3,
        "predictor_learning_rate": 1e-3,  # the bonus has to fall while the policy looks on
        "predictor_max_grad_norm": None,
        "dropout": 0.0,
        "gamma": 0.995,
        "gae_lambda": 0.95,
        "ent_coef": 0.03,  # the key wants an action that is of no use anywhere else
        "norm_adv": True,  # a small bonus teaches as much as a large one
        "int_norm": True,  # one coefficient for all sizes
        "int_coef": 0.1,  # over an episode all bonuses together come to less than the goal
        "ext_coef": 1.0,
        "first_visit": True,  # nothing for going back and forth
        "one_hot": True,  # a door is not more than a wall
        "orthogonal": True,  # with PyTorch's own weights a random target hardly tells two views apart
        "same_obs": True,
    },
}
PRESETS["tuned-16x16"] = PRESETS["tuned"] | {
    "ent_coef": 0.02,
    "norm_adv": False,  # the goal is rare here, and when it comes it has to count for more than the noise between
    "int_coef": 20.0,  # what is new in a rollout comes to an advantage of about 1
    "ext_coef": 40.0,
    "obs_norm": True,  # what is seldom seen, as an open door, is far from the mean: a larger error, a larger bonus
}


def check_args(args: Args) -> None:
    """Raises UserError at the first flag whose value makes no sense, before anything is created."""

    def require(ok: bool, flag: str, rule: str) -> None:
        if not ok:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: must be {rule}")

    for flag in ("num_envs", "num_steps", "log_interval", "eval_episodes"):
        require(getattr(args, flag) >= 1, flag, "at least 1")
    for flag in ("seed", "checkpoint_interval", "ent_coef", "vf_coef", "int_coef", "ext_coef"):
        value = getattr(args, flag)
        require(value is None or 0 <= value < float("inf"), flag, "a number that is not negative")
    require(args.seed < 2**63, "seed", "below 2^63")
    for flag in ("gamma", "int_gamma", "gae_lambda"):
        require(0 <= getattr(args, flag) <= 1, flag, "in [0, 1]")
    for flag in ("learning_rate", "max_grad_norm", "predictor_learning_rate", "predictor_max_grad_norm"):
        value = getattr(args, flag)
        require(value is None or 0 < value < float("inf"), flag, "a positive number")
    require(0 <= args.dropout < 1, "dropout", "in [0, 1)")
    require(args.solved_score is None or args.solved_score == args.solved_score, "solved_score", "a number or None")
    rollout = args.num_envs * args.num_steps
    require(args.total_timesteps >= rollout, "total_timesteps", f"at least one rollout, {rollout} steps")
    if args.int_coef == 0:
        preset = Args(**PRESETS[args.preset])
        bonus = ("int_gamma", "int_episodic", "int_norm", "obs_norm", "same_obs", "first_visit", "dropout")
        for flag in (*bonus, "predictor_learning_rate", "predictor_max_grad_norm"):
            if getattr(args, flag) != getattr(preset, flag):
                raise UserError(
                    f"--{flag.replace('_', '-')} contradicts --int-coef 0: there is no bonus for it to change"
                )
    if args.resume and args.evaluate:
        raise UserError("--resume and --evaluate exclude each other")
    if args.capture_video and not args.evaluate:
        raise UserError("--capture-video needs --evaluate")
    if args.track and importlib.util.find_spec("wandb") is None:
        raise UserError("--track needs Weights & Biases: pip install wandb")


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


def resolve_env_id(name: str, backend: str) -> str:
    """The full id for any spelling of it, e.g. `MiniGrid-DoorKey-8x8-v0` for `DoorKey-8x8`; without -v the newest."""
    known = sorted(x for x in gym.registry if x.startswith("MiniGrid-"))
    ids = {x.lower().removeprefix("minigrid-"): x for x in known}
    ids |= {key.rsplit("-v", 1)[0]: x for key, x in ids.items()}  # sorted, so that the newest version is the last
    key = name.lower().removeprefix("minigrid-")
    if key not in ids:
        close = list(dict.fromkeys(ids[match] for match in difflib.get_close_matches(key, ids, n=3, cutoff=0.6)))
        hint = f"did you mean {' or '.join(close)}?" if close else "this script plays MiniGrid's"
        raise UserError(f"--env-id {name}: no such environment; {hint}")
    if backend == "envpool" and ids[key] not in envpool.list_all_envs():
        raise UserError(f"--env-id {name}: EnvPool does not have {ids[key]}; --backend gymnasium has")
    return ids[key]


class MiniGridEnvs:
    """N copies of an environment. The one place where auto-reset is dealt with.

    An observation, called a view here, is what the agent sees of the grid: 7 x 7 tiles, for each the codes of object,
    colour and state, (7, 7, 3) uint8. The agent stands at tile [3, 6] and looks to smaller second indices; what it
    carries lies in its own tile, so it does know whether it has the key.

    Both backends reset an environment on the step *after* the one that ended the episode: that step ignores its
    action, returns the first view of the next episode and a reward of 0. It is not experience. `step` marks it with
    valid = False, and everything that learns or counts leaves it out.

    Attributes:
        episodes: (return, length) of every episode that has ended since the list was last emptied
        recent: returns of the last 100 episodes
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, backend: str):
        self.seed, self.backend = seed, backend
        if backend == "envpool":
            self.pool = envpool.make(env_id, env_type="gymnasium", num_envs=num_envs, num_threads=1, seed=seed)
            self.num_actions = int(self.pool.action_space.n)
        else:
            self.pool = gym.make_vec(env_id, num_envs, vectorization_mode="sync", wrappers=[ImgObsWrapper])
            self.num_actions = int(self.pool.single_action_space.n)
        self.done = np.zeros(num_envs, bool)  # (N,) the step before ended the episode
        self.returns = np.zeros(num_envs)  # (N,) of the episodes under way, as the next two
        self.lengths = np.zeros(num_envs, int)
        self.seen: list[set[bytes]] = [set() for _ in range(num_envs)]
        self.episodes: list[tuple[float, int]] = []
        self.recent: collections.deque[float] = collections.deque(maxlen=100)

    def look(self, obs: dict | np.ndarray) -> tuple[list[bytes], np.ndarray]:
        """What a backend returns -> the N views as bytes, and whether each is new in its episode (N,) bool."""
        views = [view.tobytes() for view in (obs["image"] if self.backend == "envpool" else obs)]
        new = np.array([view not in seen for view, seen in zip(views, self.seen, strict=True)])
        for view, seen in zip(views, self.seen, strict=True):
            seen.add(view)
        return views, new

    def reset(self) -> list[bytes]:
        """Starts an episode in every copy. Returns the N views."""
        return self.look(self.pool.reset(**({} if self.backend == "envpool" else {"seed": self.seed}))[0])[0]

    def step(self, actions: np.ndarray) -> tuple[list[bytes], *tuple[np.ndarray, ...]]:
        """Plays actions (N,) int.

        Returns: the N views; whether each is new in its episode (N,) bool; rewards (N,) float32; terminated and
        truncated (N,) bool, the episode ends here; valid (N,) bool, False where the step was a reset.
        """
        obs, rewards, terminated, truncated, _ = self.pool.step(actions)
        # a goal on the very last step is an end; the minigrid package says both of it, EnvPool that it was cut
        terminated, truncated = terminated | (truncated & (rewards != 0)), truncated & (rewards == 0)
        valid = ~self.done
        for i in np.flatnonzero(self.done):
            self.seen[i].clear()
        views, new = self.look(obs)
        self.done = terminated | truncated
        self.returns += rewards * valid
        self.lengths += valid
        for i in np.flatnonzero(self.done):
            self.episodes.append((float(self.returns[i]), int(self.lengths[i])))
            self.recent.append(float(self.returns[i]))
            self.returns[i], self.lengths[i] = 0, 0
        return views, new, rewards.astype(np.float32), terminated, truncated, valid


class Views:
    """The different views of a rollout, numbered in the order in which they came.

    There are far fewer of them than steps (`charts/unique_views` is the share). Each network is evaluated once for each
    view, not once for each step: the same numbers, more than twice as fast.
    """

    def __init__(self):
        self.numbers: dict[bytes, int] = {}

    def __len__(self) -> int:
        return len(self.numbers)

    def add(self, views: list[bytes]) -> Tensor:
        """The numbers of views (N,) int64."""
        return torch.tensor([self.numbers.setdefault(view, len(self.numbers)) for view in views])

    def tensor(self, first: int = 0) -> Tensor:
        """Views number `first` and up (U, 7, 7, 3) uint8."""
        keys = list(self.numbers)[first:]
        return torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(-1, 7, 7, 3)


# ----------------------------------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------------------------------

NUM_CODES = (11, 6, 4)  # how many codes there are for object, colour and state


def planes(views: Tensor, one_hot: bool) -> Tensor:
    """Views (U, 7, 7, 3) uint8 -> (U, 3, 7, 7) float32, the codes as numbers, or (U, 21, 7, 7), a plane for each."""
    if not one_hot:
        return views.permute(0, 3, 1, 2).float()
    codes = [F.one_hot(x, n) for x, n in zip(views.long().unbind(3), NUM_CODES, strict=True)]
    return torch.cat(codes, 3).permute(0, 3, 1, 2).float()


def conv_layers(num_planes: int) -> list[nn.Module]:
    """Planes (U, C, 7, 7) -> (U, 1024). All networks of this script start with these layers."""
    return [
        nn.Conv2d(num_planes, 16, 2),
        nn.ReLU(),
        nn.Conv2d(16, 32, 2),
        nn.ReLU(),
        nn.Conv2d(32, 64, 2),
        nn.ReLU(),
        nn.Flatten(),
    ]


def init_orthogonal(network: nn.Module) -> None:
    """Orthogonal weights of gain sqrt(2), of the policy's and the values' last layers 0.01; zero biases (as RND's)."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            last = name in ("policy_head", "int_value_head", "ext_value_head")
            nn.init.orthogonal_(layer.weight, 0.01 if last else 2**0.5)
            nn.init.zeros_(layer.bias)


class Agent(nn.Module):
    """Policy and values. The order of the value heads is intrinsic, extrinsic."""

    def __init__(self, num_actions: int, num_planes: int):
        super().__init__()
        # 64 hidden units for each of the three heads, in one layer because that is faster
        self.features = nn.Sequential(*conv_layers(num_planes), nn.Linear(1024, 3 * 64), nn.Tanh())
        self.policy_head = nn.Linear(64, num_actions)
        self.int_value_head = nn.Linear(64, 1)
        self.ext_value_head = nn.Linear(64, 1)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Planes (U, C, 7, 7) -> logits (U, num_actions), values (U, 2)."""
        hidden = self.features(inputs).split(64, 1)  # 3 x (U, 64)
        values = torch.cat([self.int_value_head(hidden[1]), self.ext_value_head(hidden[2])], 1)
        return self.policy_head(hidden[0]), values


class RND(nn.Module):
    """The target, the predictor and the normalisers that decide what is new."""

    def __init__(self, num_envs: int, num_planes: int, dropout: float, device: torch.device):
        super().__init__()
        # The predictor is two layers deeper, so that it can represent the target; hence what error there is comes
        # from what it has not seen (paper section 2.2.1). Its dropout acts in training only, not when it rewards.
        self.target = nn.Sequential(*conv_layers(num_planes), nn.Linear(1024, 256)).requires_grad_(False)
        # In two parts: the trunk runs once for each view, the head, which starts with the dropout, once for each step.
        self.predictor_trunk = nn.Sequential(*conv_layers(num_planes), nn.Linear(1024, 256))
        self.predictor_head = nn.Sequential(
            *(nn.Dropout(dropout), nn.ReLU(), nn.Linear(256, 256)),
            *(nn.Dropout(dropout), nn.ReLU(), nn.Linear(256, 256)),
        )
        self.obs_rms = RunningMoments((num_planes, 7, 7), device)
        self.return_rms = RunningMoments((), device)
        self.register_buffer("filtered", torch.zeros(num_envs))  # (N,) the reward filter's state
        self.to(device)


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


def whiten(inputs: Tensor, obs_rms: RunningMoments) -> Tensor:
    """Planes (U, C, 7, 7) -> the same, whitened entry by entry and clipped at 5 deviations."""
    return ((inputs - obs_rms.mean.float()) / obs_rms.var.sqrt().float()).clamp(-5, 5)


@torch.no_grad()
def novelty(rnd: RND, hidden: Tensor, targets: Tensor) -> Tensor:
    """Raw intrinsic reward: mean squared error of the predictor (U,), with dropout off.

    Args: hidden (U, 256), the predictor's as far as its head; targets (U, 256).
    """
    rnd.eval()
    errors = (rnd.predictor_head(hidden) - targets).square().mean(1)
    rnd.train()
    return errors


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


def gae(
    rewards: Tensor, values: Tensor, last_value: Tensor, dones: Tensor, valid: Tensor, gamma: float, gae_lambda: float
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) for one stream.

        delta(t) = r(t) + gamma * V(t+1) * (1 - done(t)) - V(t)
        A(t)     = delta(t) + gamma * lambda * (1 - done(t)) * A(t+1)

    A reset step is passed over: what follows t is the next step that is valid. For a stream that does not stop at
    episode ends `dones` is all False. (If a rollout ends on a done step, such a stream looks ahead to the value of
    that episode's last frame, since the next episode's first is not there yet.)

    Args: rewards, values, dones, valid (T, N); last_value (N,), the value of what follows the last step.
    Returns: advantages (T, N), 0 at reset steps.
    """
    advantages = torch.zeros_like(rewards)
    advantage, next_value = torch.zeros_like(last_value), last_value
    for t in reversed(range(len(rewards))):
        go_on = (~dones[t]).float()
        delta = rewards[t] + gamma * next_value * go_on - values[t]
        advantage = torch.where(valid[t], delta + gamma * gae_lambda * go_on * advantage, advantage)
        next_value = torch.where(valid[t], values[t], next_value)
        advantages[t] = advantage * valid[t]
    return advantages


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean of x (B,) over the entries with valid (B,) True; 0 if there is none."""
    return (x * valid).sum() / valid.sum().clamp(min=1)


def a2c_loss(logits: Tensor, values: Tensor, batch: dict[str, Tensor], args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy gradient, value losses and entropy of one rollout (Mnih et al. 2016, section 4).

    Args: logits (B, A) and values (B, 2) of the network being trained; batch: actions, advantages, valid (B,),
    returns (B, 2).
    Returns: the loss, and what to log.
    """
    valid = batch["valid"]
    logprobs = logits.log_softmax(1)  # (B, A)
    chosen = logprobs.gather(1, batch["actions"][:, None]).squeeze(1)  # (B,)
    policy_loss = masked_mean(-chosen * batch["advantages"], valid)
    entropy = masked_mean(-(logprobs.exp() * logprobs).sum(1), valid)
    value_losses = [masked_mean(error, valid) for error in (values - batch["returns"]).square().unbind(1)]
    coefs = (args.int_coef, args.ext_coef)  # a stream that is turned off does not shape the features either
    value_losses = [loss * (coef != 0) for loss, coef in zip(value_losses, coefs, strict=True)]
    loss = policy_loss + args.vf_coef * sum(value_losses) - args.ent_coef * entropy
    return loss, {
        "policy_loss": policy_loss,
        "value_loss": sum(value_losses),
        "value_loss_int": value_losses[0],
        "value_loss_ext": value_losses[1],
        "entropy": entropy,
    }


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
        if args.track:
            import wandb

            wandb.init(project=args.wandb_project, name=run_dir.name, config=vars(args), sync_tensorboard=True)
        threading.excepthook = lambda _: None  # TensorBoard's thread: its errors reach this one at the next scalar
        writer = SummaryWriter(str(run_dir), purge_step=step + 1 if path else None)
    except OSError as error:
        raise UserError(f"cannot write into {run_dir}: {error.strerror or error}") from None
    try:
        describe = ["git", "-C", str(pathlib.Path(__file__).parent), "describe", "--always", "--dirty"]
        commit = subprocess.run(describe, capture_output=True, text=True).stdout.strip() or "unknown"
    except OSError:  # no git
        commit = "unknown"
    facts = {name: importlib.metadata.version(name) for name in ("torch", "envpool", "minigrid", "gymnasium", "numpy")}
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


def train(args: Args, env_id: str, device: torch.device, path: pathlib.Path | None, saved: dict | None) -> int:
    """Trains until solved, the end or a signal; or on from `saved`, the checkpoint `path`. Returns the exit status."""
    T, N = args.num_steps, args.num_envs
    B = T * N  # environment steps in a rollout
    num_iterations = args.total_timesteps // B
    iteration = saved["iteration"] if saved else 0
    if iteration >= num_iterations:
        raise UserError(f"{path} has all of its {iteration * B:,} steps; ask for more with --total-timesteps")
    ext_coef = args.ext_coef if args.ext_coef is not None else (100.0 if args.int_coef else 1.0)
    stop = StopSignal()

    # environments, networks, optimiser
    torch.manual_seed(args.seed)
    seed = int(np.random.SeedSequence((args.seed, iteration)).generate_state(1)[0] >> 1)  # others after a resume
    envs = MiniGridEnvs(env_id, N, seed, args.backend)
    num_planes = sum(NUM_CODES) if args.one_hot else 3
    agent = Agent(envs.num_actions, num_planes).to(device)
    rnd = RND(N, num_planes, args.dropout, device)
    predictor_parameters = [*rnd.predictor_trunk.parameters(), *rnd.predictor_head.parameters()]
    groups = [
        {"params": [*agent.parameters()], "lr": args.learning_rate},
        {"params": predictor_parameters, "lr": args.predictor_learning_rate},
    ]
    if args.orthogonal:
        init_orthogonal(agent)
        init_orthogonal(rnd)
    optimizer = torch.optim.RMSprop(groups)
    learner = {"agent": agent, "rnd": rnd, "optimizer": optimizer}
    best_score, seconds_before = float("-inf"), 0.0
    if saved:
        for name, part in learner.items():
            load_state(part, saved[name], path)
        for group, asked in zip(optimizer.param_groups, groups, strict=True):
            group["lr"] = asked["lr"]  # those of the checkpoint, unless others are asked for
        torch.set_rng_state(saved["rng_cpu"])
        if device.type == "cuda" and saved["rng_device"] is not None:
            torch.cuda.set_rng_state(saved["rng_device"])
        envs.recent.extend(saved["recent"])
        best_score, seconds_before = saved["best_score"], saved["seconds"]
    run_dir, writer = open_run(args, env_id, path, iteration * B)

    # what is about to happen
    networks = {
        "agent": agent,
        "predictor": nn.ModuleList([rnd.predictor_trunk, rnd.predictor_head]),
        "target": rnd.target,
    }
    print(f"device       {device}{f', threads: {torch.get_num_threads()}' * (device.type == 'cpu')}")
    print(f"environment  {env_id} x {N} ({args.backend}), {envs.num_actions} actions")
    print(f"preset       {args.preset}, {'bonus ' + format(args.int_coef, 'g') if args.int_coef else 'no bonus'}")
    print(f"parameters   {', '.join(f'{k} {sum(p.numel() for p in m.parameters()):,}' for k, m in networks.items())}")
    print("memory       0.6 to 0.9 GB, most of it libraries")
    print(f"steps        {num_iterations * B:,} at most, in {num_iterations:,} rollouts of {T} x {N}; 1 frame a step")
    print(f"folder       {run_dir}", flush=True)

    def save() -> None:
        """Writes latest.pt, and best.pt too if the mean return of the last 100 episodes has never been as high."""
        nonlocal best_score
        score = float(np.mean(envs.recent)) if len(envs.recent) == 100 else float("-inf")  # before: only short ones
        is_best, best_score = score > best_score, max(score, best_score)
        state = {name: part.state_dict() for name, part in learner.items()} | {
            "script": SCRIPT,
            "args": {**vars(args), "resume": None},
            "identity": {"env_id": env_id, "preset": args.preset, "num_envs": N, "num_steps": T},
            "iteration": iteration,
            "rng_cpu": torch.get_rng_state(),
            "rng_device": torch.cuda.get_rng_state() if device.type == "cuda" else None,
            "recent": list(envs.recent),
            "best_score": best_score,
            "seconds": seconds_before + time.time() - start_time,
        }
        save_checkpoint(run_dir / "latest.pt", state)
        if is_best:
            save_checkpoint(run_dir / "best.pt", state)

    # storage of one rollout
    actions = torch.zeros((T, N), dtype=torch.int64, device=device)
    index = torch.zeros((T + 1, N), dtype=torch.int64, device=device)  # the views' numbers; row T: after the last step
    host_rewards = np.zeros((T, N), np.float32)
    host_new, host_terminated, host_truncated, host_valid = np.zeros((4, T, N), bool)
    current = envs.reset()

    start_time = last_save = time.time()
    totals: dict[str, float] = collections.defaultdict(float)  # sums since the last line of the log
    logged, logged_at, solved = iteration, start_time, False
    bar = Progress(num_iterations * B, iteration * B)
    while iteration < num_iterations and not stop.number and not solved:
        # collect a rollout; logits and values are computed once for each view, and again, to be differentiated, below
        views = Views()
        logits, values = torch.empty(0, envs.num_actions, device=device), torch.empty(0, 2, device=device)
        for t in range(T + 1):
            known = len(views)
            index[t] = views.add(current)
            if len(views) > known:
                with torch.no_grad():
                    new_logits, new_values = agent(planes(views.tensor(known).to(device), args.one_hot))
                logits, values = torch.cat([logits, new_logits]), torch.cat([values, new_values])  # (U, A), (U, 2)
            if t == T:
                break
            actions[t] = torch.multinomial(logits[index[t]].softmax(1), 1).squeeze(1)
            current, *rest = envs.step(actions[t].cpu().numpy())
            host_new[t], host_rewards[t], host_terminated[t], host_truncated[t], host_valid[t] = rest
            if stop.number:
                break
        if stop.number:  # what there is of the rollout is dropped; the learner stands where the last one left it
            break
        rewards = torch.from_numpy(host_rewards).to(device)  # (T, N)
        terminated = torch.from_numpy(host_terminated).to(device)  # (T, N), as the next four
        truncated = torch.from_numpy(host_truncated).to(device)
        dones = terminated | truncated
        new, valid = torch.from_numpy(host_new).to(device), torch.from_numpy(host_valid).to(device)
        values = values[index]  # (T+1, N, 2)
        inputs = planes(views.tensor().to(device), args.one_hot)  # (U, C, 7, 7)

        # intrinsic reward, with the predictor as it was when the rollout began
        intrinsic = torch.zeros_like(rewards)
        if args.int_coef:
            if args.obs_norm:
                # paper: 50 rollouts of a random agent first, here: the moments take in each rollout before it is
                # rewarded, because then the first is whitened by itself
                times = torch.bincount(index[1:][valid], minlength=len(views))  # (U,) resets left out
                rnd.obs_rms.update(inputs, times)
            rnd_inputs = whiten(inputs, rnd.obs_rms) if args.obs_norm else inputs
            targets, predictor_hidden = rnd.target(rnd_inputs), rnd.predictor_trunk(rnd_inputs)  # (U, 256) each
            intrinsic = novelty(rnd, predictor_hidden, targets)[index[1:]]  # (T, N)
            if args.first_visit:
                intrinsic = intrinsic * new
            if args.int_norm:
                filtered, rnd.filtered = reward_filter(intrinsic, valid, args.int_gamma, rnd.filtered)
                rnd.return_rms.update(filtered.flatten(), valid.flatten())
                intrinsic = intrinsic / rnd.return_rms.var.sqrt().float()

        # advantages
        int_dones = dones if args.int_episodic else torch.zeros_like(dones)
        ext_rewards = rewards
        if args.bootstrap_truncated:  # the view after a step that was cut is the episode's last
            ext_rewards = rewards + args.gamma * values[1:, :, 1] * truncated
        streams = [(intrinsic, int_dones, args.int_gamma, args.int_coef), (ext_rewards, dones, args.gamma, ext_coef)]
        advantages = torch.zeros((T, N), device=device)
        returns = torch.zeros_like(values[:T])  # (T, N, 2)
        for head, (r, ends, gamma, coef) in enumerate(streams):
            v = values[..., head]
            stream_advantages = gae(r, v[:T], v[T], ends, valid, gamma, args.gae_lambda)
            returns[..., head] = stream_advantages + v[:T]
            advantages += coef * stream_advantages
        if args.norm_adv:
            advantages = advantages / (advantages[valid].std() + 1e-8)

        # update, all of the rollout in one gradient step
        batch = {"actions": actions, "advantages": advantages, "returns": returns, "valid": valid}  # each (T, N, ...)
        batch = {key: x.flatten(0, 1) for key, x in batch.items()}  # (B, ...)
        new_logits, new_values = agent(inputs)  # (U, A), (U, 2)
        acted_on = index[:T].flatten()  # (B,)
        loss, metrics = a2c_loss(new_logits[acted_on], new_values[acted_on], batch, args)
        optimizer.zero_grad()
        loss.backward()
        metrics["grad_norm"] = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
        if args.int_coef:
            learned = (index[1:] if args.same_obs else index[:T]).flatten()  # (B,)
            if args.dropout:  # other units at each step
                predicted = rnd.predictor_head(predictor_hidden[learned])  # (B, 256)
            else:
                predicted = rnd.predictor_head(predictor_hidden)[learned]
            predictor_loss = masked_mean((predicted - targets[learned]).square().mean(1), batch["valid"])
            predictor_loss.backward()
            if args.predictor_max_grad_norm is not None:
                nn.utils.clip_grad_norm_(predictor_parameters, args.predictor_max_grad_norm)
            metrics["predictor_loss"] = predictor_loss
        optimizer.step()
        iteration += 1

        # log: means over all updates since the last line, in one transfer an update from the device
        scalars = {f"losses/{key}": value.detach() for key, value in metrics.items()}
        if args.int_coef:
            scalars["rnd/intrinsic_reward"] = masked_mean(intrinsic, valid)
            if args.int_norm:
                scalars["rnd/intrinsic_return_std"] = rnd.return_rms.var.sqrt().float()
        scalars = dict(zip(scalars, torch.stack([*scalars.values()]).tolist(), strict=True))
        for key, value in scalars.items():
            if not np.isfinite(value):
                good = run_dir / "latest.pt"
                where = f"the last good checkpoint is {good}" if good.exists() else "there is no checkpoint yet"
                raise RunError(f"{key} is {value} at step {iteration * B:,}: stopped; {where}")
            totals[key] += value
        if iteration % args.log_interval and iteration < num_iterations:
            continue
        scalars = {key: total / (iteration - logged) for key, total in totals.items()}
        for head, suffix in enumerate(("_int", "_ext")):  # these, and unique_views, of the last rollout alone
            if head == 0 and args.int_coef == 0:
                continue
            explained = explained_variance(values[:T, :, head], returns[..., head], valid)
            scalars[f"losses/explained_variance{suffix}"] = float(explained)
        if envs.episodes:
            scalars["charts/episodic_return"], scalars["charts/episodic_length"] = np.mean(envs.episodes, axis=0)
            scalars["charts/success_rate"] = np.mean([episode_return > 0 for episode_return, _ in envs.episodes])
            envs.episodes.clear()
        if len(envs.recent) == 100:  # before that only the short ones have ended
            scalars["charts/score"] = np.mean(envs.recent)
        scalars["charts/unique_views"] = len(views) / (B + N)
        scalars["charts/SPS"] = (iteration - logged) * B / (time.time() - logged_at)
        scalars["charts/learning_rate"] = args.learning_rate
        for key, value in scalars.items():
            writer.add_scalar(key, value, iteration * B)
        totals.clear()
        logged, logged_at = iteration, time.time()
        score = f"{np.mean(envs.recent):.3f}" if envs.recent else "none yet"
        bonus = f", r_int {scalars['rnd/intrinsic_reward']:.2g}" if args.int_coef else ""
        bar.set_postfix_str(f"return {score}{bonus}", refresh=False)
        bar.update(iteration * B - bar.n)
        if args.solved_score is not None and len(envs.recent) == 100:
            solved = bool(np.mean(envs.recent) > args.solved_score)

        # save
        if time.time() - last_save >= 60 * args.checkpoint_interval:
            save()
            last_save = time.time()

    save()
    bar.close()
    writer.close()
    score = f"{np.mean(envs.recent):.3f} over the last {len(envs.recent)} episodes" if envs.recent else "none yet"
    took = datetime.timedelta(seconds=round(seconds_before + time.time() - start_time))
    print(f"{'solved: ' * solved}score {score}, steps {iteration * B:,}, time {took}, folder {run_dir}")
    if stop.number:
        print(f"resume with: python {sys.argv[0]} --resume {run_dir}")
        return 128 + stop.number
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation and video
# ----------------------------------------------------------------------------------------------------------------------


def evaluate(args: Args, env_id: str, device: torch.device, path: pathlib.Path, saved: dict) -> None:
    """Plays episodes in the minigrid package with the policy of a checkpoint, actions drawn as in training."""
    torch.manual_seed(args.seed)
    env = ImgObsWrapper(gym.make(env_id, render_mode="rgb_array"))
    agent = Agent(int(env.action_space.n), sum(NUM_CODES) if args.one_hot else 3).to(device)
    load_state(agent, saved["agent"], path)
    print(f"{path}, step {saved['iteration'] * args.num_envs * args.num_steps:,}: {args.eval_episodes} episodes")
    returns, lengths = [], []
    for episode in tqdm(range(args.eval_episodes), unit="episode", disable=not sys.stderr.isatty()):
        video = path.parent / "videos" / f"{env_id}_{path.stem}_episode{episode}.{args.video_format}"
        if args.capture_video:
            video.parent.mkdir(exist_ok=True)
            pace = {"duration": 125, "loop": 0} if args.video_format == "gif" else {"fps": 8, "macro_block_size": 2}
            writer = imageio.get_writer(video, **pace)  # 8 steps a second
        obs, _ = env.reset(seed=args.seed + episode)
        rewards, done = [], False
        while not done:
            if args.capture_video:
                writer.append_data(env.render())  # (32 * height, 32 * width, 3) uint8, what the agent sees is lit up
            with torch.no_grad():
                logits, _ = agent(planes(torch.from_numpy(obs)[None].to(device), args.one_hot))
            obs, reward, terminated, truncated, _ = env.step(int(torch.multinomial(logits.softmax(1), 1)))
            rewards.append(float(reward))
            done = terminated or truncated
        returns.append(sum(rewards))
        lengths.append(len(rewards))
        if args.capture_video:
            writer.append_data(env.render())
            writer.close()
            tqdm.write(f"episode {episode}: return {returns[-1]:.3f}, {lengths[-1]} steps, {video}")
    error = np.std(returns, ddof=1) / len(returns) ** 0.5 if len(returns) > 1 else float("nan")
    line = f"return {np.mean(returns):.3f} +- {error:.3f} (mean, standard error)"
    print(f"{line}, success {np.mean(np.array(returns) > 0):.2f}, length {np.mean(lengths):.1f}")


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
        else:
            args = tyro.cli(Args, default=Args(preset=args.preset, **PRESETS[args.preset]))
        check_args(args)
        env_id = resolve_env_id(args.env_id, args.backend)
        if args.backend == "envpool" and ("MultiRoom" in env_id or "ObstructedMaze" in env_id):
            raise UserError(f"--env-id {env_id}: EnvPool 1.2.5 plays another game by that name; --backend gymnasium")
        device = resolve_device(args.device)
        if device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)  # nets this small gain little from more; other cores can run other seeds
        if saved:
            for name, value in saved["identity"].items():
                wanted = env_id if name == "env_id" else getattr(args, name)
                if value != wanted:
                    raise UserError(f"{path} is of a run with {name} {value}, not {wanted}")
        if args.evaluate:
            evaluate(args, env_id, device, path, saved)
            return 0
        return train(args, env_id, device, path, saved)
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
