# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "ale-py==0.12.1", "envpool==1.2.5",
#   "opencv-python-headless==5.0.0.93", "imageio==2.38.1", "imageio-ffmpeg==0.8.1", "tyro==1.0.17",
#   "tensorboard==2.21.0", "tqdm==4.70.1"
# ]
# ///
"""PPO with Random Network Distillation (RND) on Atari, in one file.

Paper: Burda, Edwards, Storkey, Klimov (2018), Exploration by Random Network Distillation, arXiv:1810.12894.
The reference for every constant is the authors' code; each departure is marked `# paper: ..., here: ..., because ...`.

A random network f, the target, is never trained. A second network g, the predictor, learns to agree with it on the
frames that the agent sees. Where they still disagree, the agent has seldom been, and that is worth a reward:

    r_int(t) = |g(o(t+1)) - f(o(t+1))|^2 / 512      intrinsic reward of the step from o(t) to o(t+1)
    A        = int_coef * A_int + ext_coef * A_ext  two value heads, two advantages, one policy (PPO)

Four things make it work:
  1. The bonus has its own value head, discounts faster (0.99 against 0.999) and does not end with the episode: a
     death costs only the way back to where something is new, so the agent dares to die.
  2. Frames are whitened pixel by pixel with running moments and clipped at 5 deviations. Without it a random target
     hardly tells one room from the next.
  3. The bonus is divided by the running deviation of its own discounted return, so one coefficient fits all games.
  4. The predictor learns from a quarter of each batch at 128 environments. Were it to learn faster, the bonus would
     be gone before the policy could act upon it.

Three commands, to train, to resume and to evaluate:
    python ppo_rnd_atari.py --env-id MontezumaRevenge
    python ppo_rnd_atari.py --resume runs/<run>
    python ppo_rnd_atari.py --evaluate runs/<run> --eval-episodes 20 --capture-video

What to expect: the paper's recurrent agents score 8,152 on Montezuma's Revenge after 2 billion frames (1 step = 4
frames). The policy here is the paper's other one, without memory (table 5), for which it gives no such number. Nothing
but zeros for the first tens of millions of frames is normal. At 128 environments it takes about 2 GB of memory.
README.md has what this script has reached, and its speed.
"""

import collections
import ctypes
import dataclasses
import datetime
import difflib
import importlib.metadata
import importlib.util
import io
import math
import os
import pathlib
import pickle
import platform
import signal
import subprocess
import sys
import threading
import time
import traceback
from typing import Annotated, Literal

import ale_py
import envpool
import gymnasium as gym
import imageio
import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import tyro
from envpool.atari.registration import atari_game_list
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

if platform.libc_ver()[0] == "glibc":
    # By default glibc gives each activation back to the kernel and asks for it anew, page by page. Keeping the memory
    # makes updates on a CPU much faster. The codes are M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD.
    for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20)):
        ctypes.CDLL("libc.so.6").mallopt(option, value)

# torchrun starts several of these processes, the ranks, on one machine or on several; without it there is one, rank 0.
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK, LOCAL_RANKS = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


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
    # Tables and sections are the paper's; "reference" is its authors' code. The comments are the help of `--help`.

    # experiment
    seed: Int = 1  # seed of the networks, the actions and the environments
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # auto: cuda, then mps, then cpu
    bf16: bool = False  # bfloat16 in the policy and the predictor's training; for GPUs and CPUs that have it
    compile: bool = False  # torch.compile the networks: a minute's wait, then faster; on a CPU it needs a C++ compiler
    runs_dir: str = "runs"  # where the run's folder is made
    checkpoint_interval: float = 5.0  # minutes between checkpoints; 0: one after every rollout
    resume: str | None = None  # a run's folder or a checkpoint: go on, with its flags except those given anew
    evaluate: str | None = None  # a run's folder or a checkpoint: play with it, do not train
    eval_episodes: Int = 20  # episodes to play with --evaluate
    capture_video: bool = False  # with --evaluate: an mp4 of every episode, in the run's folder
    track: bool = False  # send the logs to Weights & Biases too (pip install wandb; WANDB_MODE=offline works)
    wandb_project: str = "rnd"  # project name for --track

    # environment
    env_id: str = "MontezumaRevenge"  # the game; MontezumaRevenge-v5 and ALE/MontezumaRevenge-v5 mean the same
    num_envs: Int = 128  # parallel environments, N (A.4); under torchrun, of each rank
    sticky_actions: float = 0.25  # probability that an emulator frame repeats the action before (table 2)
    max_episode_steps: Int = 4500  # steps after which an episode is cut; 4 frames a step (table 2: 18,000 frames)
    episodic_life: bool = False  # a lost life ends the episode, as far as learning is concerned (table 2: no)

    # PPO
    total_timesteps: Int = 491_520_000  # environment steps, 4 frames each (table 5: 30,000 rollouts)
    num_steps: Int = 128  # steps of each environment in a rollout, T (table 5)
    num_minibatches: Int = 4  # minibatches in an epoch, each of num_envs / num_minibatches environments (table 5)
    update_epochs: Int = 4  # passes over a rollout (table 5)
    learning_rate: float = 1e-4  # Adam's step size (table 5)
    anneal_lr: bool = False  # let the learning rate fall to 0 in a straight line (reference: constant)
    gamma: float = 0.999  # discount of the extrinsic stream (table 5)
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation, both streams (table 5)
    clip_coef: float = 0.1  # PPO's clip range (table 5)
    ent_coef: float = 0.001  # weight of the entropy bonus (table 5)
    vf_coef: float = 1.0  # weight of the value losses, 0.5 * squared error for each head (reference)
    norm_adv: bool = False  # normalise the advantages of each minibatch (reference: no)
    clip_vloss: bool = False  # clip the change of the values as PPO clips the policy's (reference: no)
    max_grad_norm: float | None = None  # clip the gradient's norm, policy and predictor together (reference: no)

    # RND
    int_coef: float = 1.0  # weight of the intrinsic advantage (table 5); 0: PPO, RND is but logged
    ext_coef: float = 2.0  # weight of the extrinsic advantage (table 5); 0: exploration alone
    int_gamma: float = 0.99  # discount of the intrinsic stream (table 5)
    int_episodic: bool = False  # let the intrinsic stream end with the episode (section 2.3: no)
    single_head: bool = False  # one value for int_coef * r_int + ext_coef * r_ext, episodic, --gamma (section 2.3: no)
    int_clip: float | None = None  # clip the normalised intrinsic reward at this (reference: no)
    update_proportion: float | None = None  # share of a minibatch the predictor learns from (A.4: 32 / num_envs, max 1)
    obs_norm: Literal["running", "frozen"] = "running"  # frozen: the moments stay as the warm-up left them
    warmup_rollouts: Int = 50  # rollouts of a random agent that start the moments of the frames (reference: 50)


def check_args(args: Args) -> None:
    """Raises UserError at the first flag whose value makes no sense, before anything is created."""

    def require(ok: bool, flag: str, rule: str) -> None:
        if not ok:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: must be {rule}")

    for flag in ("num_envs", "num_steps", "num_minibatches", "update_epochs", "max_episode_steps", "eval_episodes"):
        require(getattr(args, flag) >= 1, flag, "at least 1")
    for flag in ("warmup_rollouts", "seed", "checkpoint_interval", "ent_coef", "vf_coef", "int_coef", "ext_coef"):
        require(0 <= getattr(args, flag) < float("inf"), flag, "a number that is not negative")
    require(args.seed < 2**63, "seed", "below 2^63")
    for flag in ("gamma", "int_gamma", "gae_lambda", "sticky_actions"):
        require(0 <= getattr(args, flag) <= 1, flag, "in [0, 1]")
    for flag in ("learning_rate", "clip_coef", "max_grad_norm", "int_clip"):
        value = getattr(args, flag)
        require(value is None or 0 < value < float("inf"), flag, "a positive number")
    require(args.max_episode_steps < 2**31, "max_episode_steps", "below 2^31")
    require(args.update_proportion is None or 0 < args.update_proportion <= 1, "update_proportion", "in (0, 1]")
    require(args.num_envs % args.num_minibatches == 0, "num_minibatches", f"a divisor of --num-envs {args.num_envs}")
    rollout = args.num_envs * args.num_steps
    least = rollout * RANKS  # one of each rank
    require(args.total_timesteps >= least, "total_timesteps", f"at least one rollout, {least} steps")
    for contradiction, reason, flags in (
        (args.int_coef == 0, "--int-coef 0: there is no bonus", ("int_gamma", "int_episodic", "int_clip")),
        (args.single_head, "--single-head: there is no stream of the bonus alone", ("int_episodic",)),
    ):
        for flag in flags:
            if contradiction and getattr(args, flag) != getattr(Args(), flag):
                raise UserError(f"--{flag.replace('_', '-')} contradicts {reason}")
    if args.obs_norm == "frozen":
        require(args.warmup_rollouts >= 1, "warmup_rollouts", "at least 1 with --obs-norm frozen")
    if args.resume and args.evaluate:
        raise UserError("--resume and --evaluate exclude each other")
    if args.evaluate and RANKS > 1:
        raise UserError("--evaluate is for one process, without torchrun")
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
# Ranks
# ----------------------------------------------------------------------------------------------------------------------
# Each rank runs this whole script, with environments of its own. In common, so that N environments on each of R ranks
# learn as R * N on one (but for --norm-adv, which knows its own minibatch only): the first weights, the gradients, all
# moments, and the decision to stop.


def join_ranks(device: torch.device) -> torch.device:
    """Gives this rank its share of the machine's cores and its GPU, and meets the others. Returns the device."""
    if RANKS == 1:
        return device
    if device.type == "mps" or (device.type == "cuda" and torch.cuda.device_count() < LOCAL_RANKS):
        raise UserError(f"torchrun with {LOCAL_RANKS} ranks on a machine needs as many CUDA GPUs, or --device cpu")
    if device.type == "cuda":
        device = torch.device("cuda", LOCAL_RANK)
        torch.cuda.set_device(device)
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        share = max(1, len(cores) // LOCAL_RANKS)
        first = LOCAL_RANK * share % len(cores)
        os.sched_setaffinity(0, cores[first : first + share])
        torch.set_num_threads(share)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def leave_ranks() -> None:
    """Waits until no rank needs anything of another any more."""
    if RANKS > 1:
        dist.barrier()
        dist.destroy_process_group()


def all_objects(own: object) -> list:
    """What each rank has, in the order of the ranks; the same list on all of them."""
    objects = [own] * RANKS
    if RANKS > 1:
        dist.all_gather_object(objects, own)
    return objects


def all_tensors(*own: Tensor) -> list[tuple[Tensor, ...]]:
    """The same for a few tensors of one type, whose shapes are the same on all ranks."""
    if RANKS == 1:
        return [own]
    flat = torch.cat([x.flatten() for x in own])
    rows = [torch.empty_like(flat) for _ in range(RANKS)]
    dist.all_gather(rows, flat)
    sizes = [x.numel() for x in own]
    return [tuple(part.view_as(x) for part, x in zip(row.split(sizes), own, strict=True)) for row in rows]


def average_gradients(parameters: list[nn.Parameter]) -> None:
    """Puts the mean over the ranks in place of each gradient; one message for all of them."""
    if RANKS > 1:
        flat = torch.cat([p.grad.flatten() for p in parameters])
        dist.all_reduce(flat)
        for p, part in zip(parameters, flat.div_(RANKS).split([p.numel() for p in parameters]), strict=True):
            p.grad.copy_(part.view_as(p))


# ----------------------------------------------------------------------------------------------------------------------
# Environment
# ----------------------------------------------------------------------------------------------------------------------

ROOM_BYTE = {"MontezumaRevenge-v5": 3, "Pitfall-v5": 1}  # where the game keeps the number of the room in its RAM


def resolve_env_id(name: str) -> str:
    """EnvPool's id for any spelling of a game, e.g. `MontezumaRevenge-v5` for `ALE/MontezumaRevenge-v5`."""
    games = {game.replace("_", ""): "".join(map(str.capitalize, game.split("_"))) + "-v5" for game in atari_game_list}
    key = name.lower().removeprefix("ale/").removesuffix("-v5").replace("_", "")
    if key in games:
        return games[key]
    close = difflib.get_close_matches(key, games, n=3, cutoff=0.6)
    hint = f"did you mean {' or '.join(games[match] for match in close)}?" if close else "this script plays Atari games"
    raise UserError(f"--env-id {name}: no such game; {hint}")


class AtariEnvs:
    """N copies of a game. The one place where auto-reset is dealt with.

    EnvPool resets a game on the step *after* the one that ended it: that step ignores its action, returns the first
    frames of the next episode and a reward of 0. It is not experience. `step` marks it with valid = False, and
    everything that learns or counts leaves it out.

    Attributes:
        episodes: (unclipped return, length) of every episode that has ended since the list was last emptied
        recent: returns of the last 100 episodes
        visited: numbers of all the rooms that any copy has been in
        rooms_best: the most rooms in one episode
    """

    def __init__(self, env_id: str, num_envs: int, seeds: list[int], args: Args):
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.pool = envpool.make(
            env_id,
            env_type="gymnasium",
            num_envs=num_envs,
            num_threads=min(num_envs, threads),
            seed=seeds,
            max_episode_steps=args.max_episode_steps,
            repeat_action_probability=args.sticky_actions,
            episodic_life=args.episodic_life,
            # paper: no no-op and 3 empty frames at the start, here: 1 no-op and 4 copies of the first frame, because
            # EnvPool has no less; paper: maximum of two frames in colour, here: in grey, because EnvPool does so.
            noop_max=1,
            use_fire_reset=False,
        )
        self.num_actions = self.pool.action_space.n
        self.room_byte = ROOM_BYTE.get(env_id)
        self.done = np.zeros(num_envs, bool)  # (N,) the step before ended the episode
        self.returns = np.zeros(num_envs)  # (N,) of the episodes under way, as the next two
        self.lengths = np.zeros(num_envs, int)
        self.rooms = np.zeros((num_envs, 256), bool)
        self.clear_statistics()

    def clear_statistics(self) -> None:
        """Forgets what is said of past episodes."""
        self.episodes: list[tuple[float, int]] = []
        self.recent: collections.deque[float] = collections.deque(maxlen=100)
        self.visited: set[int] = set()
        self.rooms_best = 0

    def reset(self) -> np.ndarray:
        """First observations (N, 4, 84, 84) uint8, the newest frame last."""
        return self.pool.reset()[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Plays actions (N,) int.

        Returns: observations (N, 4, 84, 84) uint8; rewards (N,) clipped to their sign; done (N,) bool, the episode
        ends here; valid (N,) bool, False where the step was a reset.
        """
        obs, rewards, terminated, truncated, info = self.pool.step(actions)
        valid = ~self.done
        # paper: a terminal step is rewarded for the first frame of the next episode, here: for its own last frame,
        # because EnvPool shows it. The time limit counts as an end for the extrinsic stream, as in the reference.
        self.done = terminated | truncated
        self.returns += rewards * valid
        self.lengths += valid
        if self.room_byte is not None:
            room = info["ram"][:, self.room_byte]
            self.rooms[valid, room[valid]] = True
            self.visited.update(room[valid].tolist())
            self.rooms_best = max(self.rooms_best, int(self.rooms.sum(1).max()))
        # With --episodic-life `terminated` is also a lost life; the game is over only where info says so.
        for i in np.flatnonzero(valid & ((info["terminated"] == 1) | truncated)):
            self.episodes.append((float(self.returns[i]), int(self.lengths[i])))
            self.recent.append(float(self.returns[i]))
            self.returns[i], self.lengths[i], self.rooms[i] = 0, 0, False
        return obs, np.sign(rewards), self.done, valid


# ----------------------------------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------------------------------


def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (reference: every layer of every network)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """Policy and values. The order of the value heads is intrinsic, extrinsic; or one head, for their sum.

    The reference's CNN policy: third convolution 4x4, then two residual branches with small gains, so that policy and
    values start from the same features and a gradient that is not vanishing.
    """

    def __init__(self, num_actions: int, num_heads: int):
        super().__init__()
        self.trunk = nn.Sequential(
            init_layer(nn.Conv2d(4, 32, 8, stride=4)),
            nn.ReLU(inplace=True),
            init_layer(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(inplace=True),
            init_layer(nn.Conv2d(64, 64, 4, stride=1)),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            init_layer(nn.Linear(64 * 6 * 6, 256)),
            nn.ReLU(inplace=True),
            init_layer(nn.Linear(256, 448)),
            nn.ReLU(inplace=True),
        )
        self.policy_branch = init_layer(nn.Linear(448, 448), gain=0.1)
        self.value_branch = init_layer(nn.Linear(448, 448), gain=0.1)
        self.policy_head = init_layer(nn.Linear(448, num_actions), gain=0.01)
        self.value_head = init_layer(nn.Linear(448, num_heads), gain=0.01)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, 4, 84, 84) uint8 -> logits (B, num_actions), values (B, num_heads), float32."""
        inputs = obs.to(memory_format=torch.channels_last).float().div_(255)
        hidden = self.trunk(inputs)  # (B, 448)
        logits = self.policy_head(hidden + self.policy_branch(hidden).relu())
        values = self.value_head(hidden + self.value_branch(hidden).relu())
        return logits.float(), values.float()


def rnd_layers() -> list[nn.Module]:
    """One whitened frame (B, 1, 84, 84) -> features (B, 512): what target and predictor have in common."""
    return [
        init_layer(nn.Conv2d(1, 32, 8, stride=4)),
        nn.LeakyReLU(0.2),
        init_layer(nn.Conv2d(32, 64, 4, stride=2)),
        nn.LeakyReLU(0.2),
        init_layer(nn.Conv2d(64, 64, 3, stride=1)),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        init_layer(nn.Linear(64 * 7 * 7, 512)),
    ]


class RND(nn.Module):
    """The target, the predictor and the normalisers that decide what is new."""

    def __init__(self, num_envs: int, device: torch.device):
        super().__init__()
        # The predictor is two layers deeper, so that it can represent the target; hence what error there is comes
        # from what it has not seen (paper section 2.2.1).
        self.target = nn.Sequential(*rnd_layers()).requires_grad_(False)
        self.predictor = nn.Sequential(
            *rnd_layers(), nn.ReLU(), init_layer(nn.Linear(512, 512)), nn.ReLU(), init_layer(nn.Linear(512, 512))
        )
        self.obs_rms = RunningMoments((84, 84), device)
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
        """Takes in batch (B, *shape) of each rank, of which only the rows with valid (B,) True count."""
        batch, weight = batch.to(self.mean.dtype), valid.to(self.mean.dtype)
        count = weight.sum()
        share = weight / count.clamp(min=1)
        mean = torch.tensordot(share, batch, 1)
        own = mean, torch.tensordot(share, (batch - mean).square_(), 1), count
        for mean, var, count in all_tensors(*own):  # in the same order on all ranks: the same bits
            total = self.count + count
            delta = mean - self.mean
            m2 = self.var * self.count + var * count + delta.square() * self.count * count / total
            self.mean += delta * count / total
            self.var.copy_(m2 / total)
            self.count.copy_(total)


def whiten(frames: Tensor, obs_rms: RunningMoments) -> Tensor:
    """Frames (B, 84, 84) uint8 -> (B, 1, 84, 84) float32, whitened pixel by pixel and clipped at 5 deviations.

    A pixel that never changed under the random agent has a deviation of 1e-3 or less, so that any change of it, as in
    a new room, saturates the clip.
    """
    mean, std = obs_rms.mean.float(), obs_rms.var.sqrt().float()
    return frames.float().sub_(mean).div_(std).clamp_(-5, 5).unsqueeze(1)


@torch.no_grad()
def features(network: nn.Module, frames: Tensor, obs_rms: RunningMoments) -> Tensor:
    """Frames (T, N, 84, 84) uint8 -> features (T, N, 512) of target or predictor, about 1,024 frames at a time."""
    chunks = frames.split(max(1, 1024 // frames.shape[1]))
    return torch.cat([network(whiten(c.flatten(0, 1), obs_rms)).unflatten(0, c.shape[:2]) for c in chunks])


def novelty(rnd: RND, frames: Tensor) -> Tensor:
    """Raw intrinsic reward: frames (T, N, 84, 84) uint8 -> mean squared error of the predictor (T, N)."""
    error = features(rnd.predictor, frames, rnd.obs_rms) - features(rnd.target, frames, rnd.obs_rms)
    return error.square().mean(-1)


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


def normalise(x: Tensor, valid: Tensor) -> Tensor:
    """x (B,) with mean 0 and deviation 1 over its valid entries."""
    centred = x - masked_mean(x, valid)
    return centred / (masked_mean(centred.square(), valid).sqrt() + 1e-8)


def ppo_loss(logits: Tensor, values: Tensor, batch: dict[str, Tensor], args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, value losses and entropy of one minibatch (Schulman et al. 2017, eq. 7 and 9).

    Args: logits (B, A) and values (B, H) of the network being trained; batch: actions, logprobs, advantages, valid
    (B,), values and returns (B, H) as of the rollout.
    Returns: the loss, and what to log.
    """
    valid, advantages = batch["valid"], batch["advantages"]
    all_logprobs = logits.log_softmax(1)  # (B, A)
    logratio = all_logprobs.gather(1, batch["actions"][:, None]).squeeze(1) - batch["logprobs"]
    ratio = logratio.exp()
    clipped_ratio = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    policy_loss = masked_mean(-torch.minimum(advantages * ratio, advantages * clipped_ratio), valid)
    entropy = masked_mean(-(all_logprobs.exp() * all_logprobs).sum(1), valid)

    errors = (values - batch["returns"]).square()  # (B, H)
    if args.clip_vloss:
        clipped = batch["values"] + (values - batch["values"]).clamp(-args.clip_coef, args.clip_coef)
        errors = torch.maximum(errors, (clipped - batch["returns"]).square())
    value_losses = [0.5 * masked_mean(error, valid) for error in errors.unbind(1)]
    if not args.single_head:  # a stream that is turned off does not shape the features either
        coefs = (args.int_coef, args.ext_coef)
        value_losses = [loss * (coef > 0) for loss, coef in zip(value_losses, coefs, strict=True)]
    loss = policy_loss + args.vf_coef * sum(value_losses) - args.ent_coef * entropy

    metrics = {
        "policy_loss": policy_loss,
        "value_loss": sum(value_losses),
        "entropy": entropy,
        "approx_kl": masked_mean(ratio - 1 - logratio, valid),
        "clipfrac": masked_mean(((ratio - 1).abs() > args.clip_coef).float(), valid),
    }
    if not args.single_head:
        metrics |= {"value_loss_int": value_losses[0], "value_loss_ext": value_losses[1]}
    return loss, metrics


def predictor_subset(valid: Tensor, size: int) -> Tensor:
    """Indices (size,) of a random subset of the entries with valid (B,) True; others only if there are too few."""
    return (torch.rand(len(valid), device=valid.device) + ~valid).argsort()[:size]


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
    facts = {name: importlib.metadata.version(name) for name in ("torch", "envpool", "gymnasium", "numpy")}
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
    """Ctrl-C and SIGTERM ask the training loop to stop (`number` becomes the signal's); a second one stops at once.

    But not under torchrun, which passes on what its workers have got already, and kills them itself after 30 seconds.
    """

    def __init__(self):
        self.number = 0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.receive)

    def receive(self, number: int, _frame: object) -> None:
        if RANKS == 1:
            signal.signal(number, signal.SIG_DFL)
        if not self.number:
            print(f"\nstopping when the learner can be saved{'; once more: at once' * (RANKS == 1)}", flush=True)
        self.number = number

    def agreed(self) -> int:
        """The number, if any rank has got a signal; the same on all ranks."""
        return max(int(number) for (number,) in all_tensors(torch.tensor([self.number])))


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


def train(args: Args, env_id: str, device: torch.device, path: pathlib.Path | None, saved: dict | None) -> int:
    """Trains to the end, until a signal, or on from the checkpoint `saved` of file `path`. Returns the exit status."""
    T, N, M = args.num_steps, args.num_envs, args.num_minibatches
    B = T * N  # environment steps in a rollout
    S = B * RANKS  # environment steps in an iteration, of all ranks
    num_iterations = args.total_timesteps // S
    iteration = saved["rollouts"] // RANKS if saved else 0
    if iteration >= num_iterations:
        raise UserError(f"{path} has all of its {iteration * S:,} steps; ask for more with --total-timesteps")
    update_proportion = args.update_proportion or min(1.0, 32 / (N * RANKS))
    piece_size = 1024 if device.type == "cpu" else B // M  # samples in one backward pass of the policy
    stop = StopSignal()

    # environments, networks, optimiser
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    seeds = np.random.SeedSequence((args.seed, iteration)).generate_state(N * RANKS) >> 1  # others after a resume
    envs = AtariEnvs(env_id, N, seeds[N * RANK : N * (RANK + 1)].tolist(), args)
    agent = Agent(envs.num_actions, num_heads=1 if args.single_head else 2)
    agent.to(device, memory_format=torch.channels_last)
    rnd = RND(N, device).to(memory_format=torch.channels_last)
    parameters = [*agent.parameters(), *rnd.predictor.parameters()]  # one Adam for both, as in the reference
    optimizer = torch.optim.Adam(parameters, lr=args.learning_rate, eps=1e-8, fused=True)
    learner = {"agent": agent, "rnd": rnd, "optimizer": optimizer}
    best_score, seconds_before = float("-inf"), 0.0
    if RANKS > 1:  # the same weights, the target's too; other actions
        for x in (*agent.state_dict().values(), *rnd.state_dict().values()):
            dist.broadcast(x, 0)
        torch.manual_seed(int(np.random.SeedSequence((args.seed, iteration, RANK)).generate_state(1)[0]))
    if saved:
        filtered = saved["rnd"]["filtered"]  # (N,) of each rank that there was
        saved["rnd"]["filtered"] = filtered[torch.arange(N * RANK, N * (RANK + 1)) % len(filtered)]
        for name, part in learner.items():
            load_state(part, saved[name], path)
        if len(saved["rng_cpu"]) > RANK:  # a rank that there was
            torch.set_rng_state(saved["rng_cpu"][RANK])
            if device.type == "cuda" and saved["rng_device"][RANK] is not None:
                torch.cuda.set_rng_state(saved["rng_device"][RANK])
        envs.recent.extend(saved["recent"])
        envs.visited, envs.rooms_best = set(saved["visited"]), saved["rooms_best"]
        best_score, seconds_before = saved["best_score"], saved["seconds"]
    if args.compile:
        for network in (agent, rnd.predictor, rnd.target):
            network.compile()
    run_dir, writer = open_run(args, env_id, path, iteration * S) if RANK == 0 else (None, None)
    run_dir = all_objects(run_dir)[0]

    # what is about to happen
    memory = 1.0e9 + 1.05 * (T + 1) * N * 4 * 84 * 84  # libraries and emulators; observations
    memory += B * 2400 + B / M * 40e3 + min(piece_size, B / M) * 400e3  # features; a minibatch; one backward pass
    networks = {"agent": agent, "predictor": rnd.predictor, "target": rnd.target}
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"device       {device} ({device_name}){', bf16' * args.bf16}{', compiled' * args.compile}")
    ranks = f" on each of {RANKS} ranks" if RANKS > 1 else ""
    print(f"environment  {env_id} x {N}{ranks}, sticky actions {args.sticky_actions}, {envs.num_actions} actions")
    print(f"parameters   {', '.join(f'{k} {sum(p.numel() for p in m.parameters()):,}' for k, m in networks.items())}")
    print(f"memory       about {memory / 1e9:.1f} GB{ranks}")
    print(f"steps        {num_iterations * S:,} in {num_iterations:,} rollouts of {T} x {N * RANKS}; 4 frames a step")
    print(f"folder       {run_dir}", flush=True)

    # storage of one rollout
    obs = torch.zeros((T + 1, N, 4, 84, 84), dtype=torch.uint8, device=device)  # row T: what follows the last step
    next_frames = obs[1:, :, 3]  # (T, N, 84, 84) what RND sees of a step: the newest frame of the next observation
    actions = torch.zeros((T, N), dtype=torch.int64, device=device)
    logprobs = torch.zeros((T, N), device=device)
    values = torch.zeros((T + 1, N, agent.value_head.out_features), device=device)  # (T+1, N, H)
    host_rewards = np.zeros((T, N), np.float32)
    host_dones, host_valid = np.zeros((T, N), bool), np.zeros((T, N), bool)
    obs[T].copy_(torch.from_numpy(envs.reset()))

    # warm up: a random agent gives the moments of the frames something to start from
    if not saved:
        warmup_steps = math.ceil(args.warmup_rollouts * T / RANKS)  # of each environment; the ranks share them
        bar = Progress(warmup_steps * N * RANKS, 0, "random agent")
        for _ in range(warmup_steps):
            next_obs, _, _, ok = envs.step(torch.randint(envs.num_actions, (N,)).numpy())
            obs[T].copy_(torch.from_numpy(next_obs))
            rnd.obs_rms.update(obs[T, :, 3], torch.from_numpy(ok).to(device))
            bar.update(N * RANKS)
            if stopped := stop.agreed():
                bar.close()
                print("stopped before training began: there is nothing to save")
                return 128 + stopped
        bar.close()
        envs.clear_statistics()
    announced = set(envs.visited)

    def save() -> None:
        """Writes latest.pt, and best.pt too if the mean return of the last 100 episodes has never been as high."""
        nonlocal best_score
        rng = torch.get_rng_state(), torch.cuda.get_rng_state() if device.type == "cuda" else None
        of_ranks = all_objects((*rng, rnd.filtered.cpu()))
        if RANK:
            return
        score = float(np.mean(envs.recent)) if len(envs.recent) == 100 else float("-inf")
        is_best, best_score = score > best_score, max(score, best_score)
        state = {name: part.state_dict() for name, part in learner.items()} | {
            "script": SCRIPT,
            "args": {**vars(args), "resume": None},
            "identity": {"env_id": env_id, "num_envs": N, "num_steps": T, "single_head": args.single_head},
            "rollouts": iteration * RANKS,
            "rng_cpu": [own[0] for own in of_ranks],
            "rng_device": [own[1] for own in of_ranks],
            "recent": list(envs.recent),
            "visited": sorted(envs.visited),
            "rooms_best": envs.rooms_best,
            "best_score": best_score,
            "seconds": seconds_before + time.time() - start_time,
        }
        state["rnd"]["filtered"] = torch.cat([own[2] for own in of_ranks])
        save_checkpoint(run_dir / "latest.pt", state)
        if is_best:
            save_checkpoint(run_dir / "best.pt", state)

    start_time = last_save = time.time()
    bar = Progress(num_iterations * S, iteration * S)
    stopped = 0
    while iteration < num_iterations and not (stopped := stop.agreed()):
        iteration_start = time.time()
        left = 1 - iteration / num_iterations if args.anneal_lr else 1.0
        optimizer.param_groups[0]["lr"] = left * args.learning_rate  # each time, because a resume may ask for another

        # collect a rollout
        obs[0].copy_(obs[T])
        for t in range(T):
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                logits, values[t] = agent(obs[t])
            policy = torch.distributions.Categorical(logits=logits, validate_args=False)
            actions[t] = policy.sample()
            logprobs[t] = policy.log_prob(actions[t])
            next_obs, host_rewards[t], host_dones[t], host_valid[t] = envs.step(actions[t].cpu().numpy())
            obs[t + 1].copy_(torch.from_numpy(next_obs))
            for room in sorted(envs.visited - announced):
                bar.say(f"room {room} seen for the first time, at step {iteration * S + (t + 1) * N * RANKS:,}")
                announced.add(room)
            if stopped := stop.agreed():
                break
        if stopped:  # what there is of the rollout is dropped; the learner stands where the last one left it
            break
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
            values[T] = agent(obs[T])[1]
        rewards = torch.from_numpy(host_rewards).to(device)  # (T, N)
        dones, valid = torch.from_numpy(host_dones).to(device), torch.from_numpy(host_valid).to(device)  # (T, N)

        # intrinsic reward, with the moments of the frames as they were; then the moments take in the new frames
        intrinsic = novelty(rnd, next_frames)  # (T, N), float32 always: bfloat16's rounding could pass for novelty
        filtered, rnd.filtered = reward_filter(intrinsic, valid, args.int_gamma, rnd.filtered)
        rnd.return_rms.update(filtered.flatten(), valid.flatten())
        intrinsic = intrinsic / rnd.return_rms.var.sqrt().float()
        if args.int_clip is not None:
            intrinsic = intrinsic.clamp(max=args.int_clip)
        if args.obs_norm == "running":
            # paper: o(0) to o(T-1), here: o(1) to o(T) less the resets, because these are the frames that RND sees
            for t in range(T):
                rnd.obs_rms.update(next_frames[t], valid[t])

        # advantages
        if args.single_head:
            streams = [(args.int_coef * intrinsic + args.ext_coef * rewards, dones, args.gamma, 1.0)]
        else:
            int_dones = dones if args.int_episodic else torch.zeros_like(dones)
            streams = [
                (intrinsic, int_dones, args.int_gamma, args.int_coef),
                (rewards, dones, args.gamma, args.ext_coef),
            ]
        advantages = torch.zeros((T, N), device=device)
        returns = torch.zeros_like(values[:T])  # (T, N, H)
        for head, (r, ends, gamma, coef) in enumerate(streams):
            v = values[..., head]
            stream_advantages = gae(r, v[:T], v[T], ends, valid, gamma, args.gae_lambda)
            returns[..., head] = stream_advantages + v[:T]
            advantages += coef * stream_advantages

        # update
        rollout = {
            "obs": obs[:T],
            "actions": actions,
            "logprobs": logprobs,
            "values": values[:T],
            "advantages": advantages,
            "returns": returns,
            "valid": valid,
            "next_frames": next_frames,
            "targets": features(rnd.target, next_frames, rnd.obs_rms),  # with the new moments, as in the reference
        }  # each (T, N, ...)
        usable = valid.unflatten(1, (M, -1)).sum((0, 2)).float()  # (M,) samples of each minibatch that are no resets
        usable = sum(own for (own,) in all_tensors(usable)) / RANKS  # a mean, because so are the gradients
        totals: dict[str, Tensor] = collections.defaultdict(float)  # sums over the minibatches, for the log
        for epoch in range(args.update_epochs):
            for m in range(M):
                first = m * N // M
                # a minibatch is the rollout of N/M environments, in the same order in every epoch, as in the reference
                batch = {key: x[:, first : first + N // M].flatten(0, 1) for key, x in rollout.items()}  # (B/M, ...)
                optimizer.zero_grad()

                # paper: each sample is kept with probability p, here: a random share of exactly p, because then the
                # rest is not even computed and the device need not be asked how many there are
                kept = predictor_subset(batch["valid"], max(1, round(update_proportion * B / M)))
                with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                    predicted = rnd.predictor(whiten(batch["next_frames"][kept], rnd.obs_rms))
                errors = (predicted.float() - batch["targets"][kept]).square().mean(1)
                predictor_loss = masked_mean(errors, batch["valid"][kept])
                predictor_loss.backward()

                # the policy's gradient, summed over pieces: on a CPU a large one costs a quarter more, and memory
                if args.norm_adv:
                    batch["advantages"] = normalise(batch["advantages"], batch["valid"])
                for start in range(0, B // M, piece_size):
                    piece = {key: x[start : start + piece_size] for key, x in batch.items()}
                    with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                        logits, new_values = agent(piece["obs"])
                    loss, metrics = ppo_loss(logits, new_values, piece, args)
                    share = piece["valid"].sum() / usable[m].clamp(min=1)
                    (share * loss).backward()
                    for key, value in metrics.items():
                        totals[key] += share * value.detach()

                average_gradients(parameters)
                grad_norm = nn.utils.get_total_norm([p.grad for p in parameters])
                if args.max_grad_norm is not None:
                    nn.utils.clip_grads_with_norm_(parameters, args.max_grad_norm, grad_norm)
                optimizer.step()
                totals["predictor_loss"] += predictor_loss.detach()
                totals["grad_norm"] += grad_norm
                bar.update(S * (epoch * M + m) // (args.update_epochs * M) + iteration * S - bar.n)
        iteration += 1

        # log: means over the whole update, in one transfer from the device
        scalars = {f"losses/{key}": total / (args.update_epochs * M) for key, total in totals.items()}
        for head, suffix in enumerate([""] if args.single_head else ["_int", "_ext"]):
            explained = explained_variance(values[:T, :, head], returns[..., head], valid)
            scalars[f"losses/explained_variance{suffix}"] = explained
        scalars["rnd/intrinsic_reward"] = masked_mean(intrinsic, valid)
        scalars["rnd/intrinsic_return_std"] = rnd.return_rms.var.sqrt().float()
        means = sum(own for (own,) in all_tensors(torch.stack([*scalars.values()]))) / RANKS
        scalars = dict(zip(scalars, means.tolist(), strict=True))
        for key, value in scalars.items():
            if not np.isfinite(value) and "explained_variance" not in key:  # which is NaN while all returns are equal
                good = run_dir / "latest.pt"
                where = f"the last good checkpoint is {good}" if good.exists() else "there is no checkpoint yet"
                raise RunError(f"{key} is {value} at step {iteration * S:,}: stopped; {where}")
        due = time.time() - last_save >= 60 * args.checkpoint_interval
        of_ranks = all_objects((envs.episodes, envs.visited, envs.rooms_best, due))
        ranks_episodes, ranks_visited, ranks_best, ranks_due = zip(*of_ranks, strict=True)
        episodes = [episode for own in ranks_episodes for episode in own]
        envs.recent.extend(score for own in ranks_episodes[1:] for score, _ in own)  # rank 0's own are in it already
        envs.visited, envs.rooms_best = set().union(*ranks_visited), max(ranks_best)
        if episodes:
            scalars["charts/episodic_return"], scalars["charts/episodic_length"] = np.mean(episodes, axis=0)
            envs.episodes.clear()
        if envs.room_byte is not None:
            scalars["rnd/rooms_visited"], scalars["rnd/rooms_best_episode"] = len(envs.visited), envs.rooms_best
        scalars["charts/SPS"] = S / (time.time() - iteration_start)
        scalars["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
        for key, value in scalars.items():
            if RANK == 0:
                writer.add_scalar(key, value, iteration * S)
        score = f"{np.mean(envs.recent):.1f}" if envs.recent else "none yet"
        rooms = f", rooms {len(envs.visited)} (best episode {envs.rooms_best})" if envs.room_byte is not None else ""
        bar.set_postfix_str(f"return {score}, r_int {scalars['rnd/intrinsic_reward']:.4f}{rooms}", refresh=False)
        bar.update(iteration * S - bar.n)

        # save
        if ranks_due[0]:  # by rank 0's clock
            save()
            last_save = time.time()

    save()
    bar.close()
    if RANK == 0:
        writer.close()
    score = f"{np.mean(envs.recent):.1f} over the last {len(envs.recent)} episodes" if envs.recent else "none yet"
    took = datetime.timedelta(seconds=round(seconds_before + time.time() - start_time))
    print(f"score {score}, steps {iteration * S:,}, time {took}, folder {run_dir}")
    if stopped:
        start = f"torchrun --nproc-per-node {LOCAL_RANKS}" if RANKS > 1 else "python"
        print(f"resume with: {start} {sys.argv[0]} --resume {run_dir}")
        return 128 + stopped
    return 0


# ----------------------------------------------------------------------------------------------------------------------
# Evaluation and video
# ----------------------------------------------------------------------------------------------------------------------


def make_evaluation_env(env_id: str, args: Args) -> gym.Env:
    """The game in ale-py, one copy: the same frames and RAM as EnvPool's, and it can be drawn in colour."""
    gym.register_envs(ale_py)
    ale_id = next(name for name in gym.registry if name.lower() == f"ale/{env_id}".lower())
    env = gym.make(
        ale_id,
        frameskip=1,
        repeat_action_probability=args.sticky_actions,
        max_episode_steps=None,
        render_mode="rgb_array",
    )
    env = gym.wrappers.AtariPreprocessing(env, noop_max=1, frame_skip=4)
    return gym.wrappers.FrameStackObservation(env, 4)


def evaluate(args: Args, env_id: str, device: torch.device, path: pathlib.Path, saved: dict) -> None:
    """Plays whole games with the policy of a checkpoint, actions drawn as in training, and prints unclipped returns."""
    torch.manual_seed(args.seed)
    env = make_evaluation_env(env_id, args)
    agent = Agent(env.action_space.n, num_heads=1 if args.single_head else 2).to(device)
    load_state(agent, saved["agent"], path)
    print(f"{path}, step {saved['rollouts'] * args.num_envs * args.num_steps:,}: {args.eval_episodes} episodes")
    returns, rooms = [], []
    for episode in tqdm(range(args.eval_episodes), unit="episode", disable=not sys.stderr.isatty()):
        video = path.parent / "videos" / f"{env_id}_{path.stem}_episode{episode}.mp4"
        if args.capture_video:
            video.parent.mkdir(exist_ok=True)
            writer = imageio.get_writer(video, fps=15, macro_block_size=2)  # 60 frames a second, 4 of them a step
        obs, _ = env.reset(seed=args.seed + episode)
        episode_return, episode_rooms = 0.0, set()
        for _ in range(args.max_episode_steps):
            with torch.no_grad():
                logits, _ = agent(torch.from_numpy(obs)[None].to(device))
            action = torch.distributions.Categorical(logits=logits).sample()
            obs, reward, terminated, _, _ = env.step(int(action))
            episode_return += float(reward)
            if env_id in ROOM_BYTE:
                episode_rooms.add(int(env.unwrapped.ale.getRAM()[ROOM_BYTE[env_id]]))
            if args.capture_video:
                writer.append_data(env.render().repeat(3, axis=0).repeat(3, axis=1))  # (630, 480, 3) uint8
            if terminated:
                break
        returns.append(episode_return)
        rooms.append(len(episode_rooms))
        line = f"episode {episode}: return {episode_return:g}"
        line += f", rooms {sorted(episode_rooms)}" if episode_rooms else ""
        if args.capture_video:
            writer.close()
            line += f", {video}"
        tqdm.write(line)
    error = np.std(returns, ddof=1) / len(returns) ** 0.5 if len(returns) > 1 else float("nan")
    line = f"return {np.mean(returns):.1f} +- {error:.1f} (mean, standard error), best {max(returns):g}"
    print(line + (f", rooms {np.mean(rooms):.1f}, most {max(rooms)}" if env_id in ROOM_BYTE else ""))


# ----------------------------------------------------------------------------------------------------------------------
# Entry point
# ----------------------------------------------------------------------------------------------------------------------


def main() -> int:
    """Reads the flags, trains or evaluates. Returns the exit status: 0, 1 failed, 2 wrong use, 130 and 143 signals."""
    if RANK:  # what all ranks would say alike is said by the first; what is this one's alone goes to sys.__stderr__
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        sys.excepthook = lambda *error: traceback.print_exception(*error, file=sys.__stderr__)
    args = tyro.cli(Args, description=__doc__)
    try:
        path, saved = None, None
        if source := args.resume or args.evaluate:
            path, saved = load_checkpoint("--resume" if args.resume else "--evaluate", source)
            args = tyro.cli(Args, default=Args(**saved["args"]))  # flags given anew stand, all others are the run's
        check_args(args)
        env_id = resolve_env_id(args.env_id)
        device = resolve_device(args.device)
        if saved:
            for name, value in saved["identity"].items():
                wanted = env_id if name == "env_id" else getattr(args, name)
                if value != wanted:
                    raise UserError(f"{path} is of a run with {name} {value}, not {wanted}")
        if args.evaluate:
            evaluate(args, env_id, device, path, saved)
            return 0
        status = train(args, env_id, join_ranks(device), path, saved)
        leave_ranks()
        return status
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        time.sleep(2 * (RANK > 0))  # torchrun ends all ranks when one has ended: let the first have its say
        return 2
    except KeyboardInterrupt:
        return 130
    except RunError as error:
        print(f"error: {error}; what was saved before is whole", file=sys.stderr)
        return 1
    except (OSError, RuntimeError) as error:
        lost = not isinstance(error, (OSError, torch.OutOfMemoryError))  # it is of a collective operation
        if lost and RANKS == 1:
            raise
        who = f"rank {RANK} of {RANKS}{' has lost the others' * lost}: " if RANKS > 1 else ""
        line = f"error: {who}{str(error).splitlines()[0]}; what was saved before is whole"
        print(line, file=sys.__stderr__)
        return 1


if __name__ == "__main__":
    sys.exit(main())
