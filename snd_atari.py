# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "ale-py==0.12.1", "envpool==1.2.5",
#   "opencv-python-headless==5.0.0.93", "imageio==2.38.1", "imageio-ffmpeg==0.8.1", "tyro==1.0.17",
#   "tensorboard==2.21.0", "tqdm==4.70.1", "matplotlib==3.11.2", "scikit-learn==1.9.1"
# ]
# ///
"""Self-supervised Network Distillation (SND) on Atari, in one file: PPO + RND whose target learns too.

Paper: Pechac, Chovanec, Farkas (2024), Self-supervised network distillation: an effective approach to exploration in
sparse reward environments, Neurocomputing, arXiv:2302.11563. Its scores of SND-V on Montezuma's Revenge are those of
runs of its second author ("the author's code" or "reference" below: michalnand/reinforcement_learning and _agents).
The constants of `--preset snd-v` are those of that run, not of the paper's own code; docs/implementation_details.md has
both, and every departure. Compare with ppo_rnd_atari.py line by line: what is the same there is the same text here.

RND's target is random. It tells two rooms apart because they look different, and hardly tells two places in one room
apart; its predictor soon agrees with it, and the bonus is gone. SND's target learns, without any reward or label, to
tell frames apart, and as it goes on learning the predictor goes on being wrong where there is something to be told:

    L_target = mean (l - |f(a) - f(b)|^2 / 512)^2       l = 0: a and b are one frame, each augmented; l = 1: two frames
    r_int(t) = clip(int_scale * |g(o(t)) - f(o(t))|^2 / 512, 0, 1)
    A        = int_coef * A_int + ext_coef * A_ext      two value heads, two advantages, one policy (PPO)

What is different from RND, and why:
  1. The target's loss, `--target-loss`: contrastive (above), vicreg (variance, invariance, covariance), stdim (which
     next frame belongs to this one, from global and local features), none: the random target. With `none` everything
     else stays as it is: the control.
  2. The bonus is not divided by its deviation but scaled by hand and clipped at 1; both streams end with the episode.
  3. The predictor learns from a quarter of the elements of each batch's feature matrix, not from a quarter of frames.
  4. Three optimisers, because target, predictor and policy have gradients of quite different sizes.

Four commands, to train, to resume, to evaluate and to look at what the target has learned:
    python snd_atari.py --env-id MontezumaRevenge
    python snd_atari.py --resume runs/<run>
    python snd_atari.py --evaluate runs/<run> --eval-episodes 20 --capture-video
    python snd_atari.py --embed runs/<run> runs/<another run>

What to expect: the four finished runs of this setting, 128 million steps (512 million frames) each, reached 33,172,
22,310, 9,212 and 5,998 at their best (a running mean of one environment's scores; the author's logs). r_int falls to
some 0.002 in the first million steps and comes back, 0.05 at 5 million: a run that looks dead at 1 million is normal.
Before 15 million steps scores do not tell SND from RND; rooms and features have to. With this script r_int, both losses
and the features' magnitude after 0.13 million steps are within a fifth of the author's log (docs/results); no more has
been run yet. A step costs 5.6 times one of ppo_rnd_atari.py, and takes 3 GB: this is for a GPU.
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


Preset = Literal["snd-v", "snd-v-plain", "snd-vic", "snd-std", "vicreg-aug", "seed-snd", "seed-rnd"]


@dataclasses.dataclass
class Args:
    # The defaults are `--preset snd-v`, other presets put others in their place. The comments are the help of `--help`.

    # experiment
    preset: Preset = "snd-v"  # snd-v: the paper's run on Montezuma, -plain: on other games; seed-*: the author's notes
    seed: Int = 1  # seed of the networks, the actions and the environments
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # auto: cuda, then mps, then cpu
    bf16: bool = False  # bfloat16 in the policy and the training of predictor and target
    compile: bool = False  # torch.compile the networks: a minute's wait, then faster; on a CPU it needs a C++ compiler
    runs_dir: str = "runs"  # where the run's folder is made
    checkpoint_interval: float = 5.0  # minutes between checkpoints; 0: one after every rollout
    resume: str | None = None  # a run's folder or a checkpoint: go on, with its flags except those given anew
    evaluate: str | None = None  # a run's folder or a checkpoint: play with it, do not train
    embed: tuple[str, ...] = ()  # runs: what their targets make of the frames of the first one's episodes
    eval_episodes: Int = 20  # episodes to play with --evaluate or --embed
    capture_video: bool = False  # with --evaluate: an mp4 of every episode, in the run's folder
    track: bool = False  # send the logs to Weights & Biases too (pip install wandb; WANDB_MODE=offline works)
    wandb_project: str = "rnd"  # project name for --track

    # environment
    env_id: str = "MontezumaRevenge"  # the game; MontezumaRevenge-v5 and ALE/MontezumaRevenge-v5 mean the same
    num_envs: Int = 128  # parallel environments, N; under torchrun, of each rank
    sticky_actions: float = 0.25  # probability that an emulator frame repeats the action before
    max_episode_steps: Int = 4500  # steps after which an episode is cut; 4 frames a step
    episodic_life: bool = False  # a lost life ends the episode, as far as learning is concerned
    rooms: Literal["ram", "image"] = "ram"  # image: count in environment 0 also what looks different, as the author did

    # PPO
    total_timesteps: Int = 128_000_000  # environment steps, 4 frames each
    num_steps: Int = 128  # steps of each environment in a rollout, T
    num_minibatches: Int = 32  # minibatches in an epoch
    update_epochs: Int = 4  # passes over a rollout
    learning_rate: float = 1e-4  # Adam's step size, policy, predictor and target
    anneal_lr: bool = False  # let the policy's learning rate fall to 0 in a straight line
    gamma: float = 0.998  # discount of the extrinsic stream
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation, all streams
    clip_coef: float = 0.1  # PPO's clip range
    ent_coef: float = 0.001  # weight of the entropy bonus
    vf_coef: float = 1.0  # weight of the value losses, 0.5 * squared error for each head
    norm_adv: bool = False  # normalise the advantages of each minibatch
    clip_vloss: bool = False  # clip the change of the values as PPO clips the policy's
    max_grad_norm: float | None = 0.5  # clip the norm of the policy's gradient; the other two are never clipped
    policy_net: Literal["A", "B", "C", "D"] = "C"  # policies of the author's diagrams; D has attention
    critic_init: float = 0.1  # gain of the values' hidden layer

    # bonus
    int_coef: float = 1.0  # weight of the intrinsic advantage; 0: PPO without the bonus
    ext_coef: float = 2.0  # weight of the extrinsic advantage; 0: exploration alone
    int_gamma: float = 0.99  # discount of the intrinsic stream
    int_episodic: bool = True  # let the intrinsic stream end with the episode (RND: no)
    int_scale: float = 0.5  # r_int = this * mean squared error of the 512 features
    int_clip: float | None = 1.0  # clip the intrinsic reward at this
    int_norm: bool = False  # divide the intrinsic reward by the running deviation of its return (RND: yes)
    reward_on: Literal["obs", "next_obs"] = "obs"  # the frame that is rewarded, before or after the step (RND: after)
    entropy_coef_episodic: float = 0.0  # weight of a third stream: the spread of the target's features in the episode
    entropy_memory: Int = 64  # how many frames of the episode that spread is over; the author's number is lost

    # target and predictor
    target_loss: Literal["contrastive", "vicreg", "stdim", "none"] = "contrastive"  # none: the target stays random
    pair: Literal["same", "next"] = "same"  # what belongs together: a frame and itself, or a frame and the next
    aug: Literal["none", "tile", "multi"] = "tile"  # tiles left out; or coarse pixels and pixels left out; and noise
    noise_prob: float = 1.0  # share of the frames that get noise, with --aug tile and multi
    target_batch: Int = 64  # pairs in an update of the target
    mag_limit: float | None = None  # a loss on features whose mean squares together come to more than this
    rnd_net: Literal["A", "B", "ST"] = "B"  # layers of target and predictor
    target_gain: float = 2**0.5  # gain of the target's first weights
    predictor_gain: float = 2**0.5  # gain of the predictor's first weights
    rnd_epochs: Int = 4  # in how many of the --update-epochs target and predictor learn too (the paper's code: 1)
    update_proportion: float | None = None  # share of a minibatch the predictor learns from (32 / num_envs, max 1)
    predictor_mask: Literal["element", "sample"] = "element"  # a share of the features, or of the frames (RND)
    obs_norm: Literal["none", "mean", "meanstd"] = "meanstd"  # less the mean; over the deviation, clip at 1
    warmup_rollouts: Int = 2  # rollouts of a random agent that start the moments of the frames


PAPER = {  # what SND-VIC and SND-STD have in common: the paper's own code
    **{"pair": "next", "aug": "none", "target_batch": 512, "rnd_epochs": 1, "rnd_net": "ST", "target_gain": 0.5},
    **{"update_proportion": 1.0, "obs_norm": "none"},
}
PRESETS = {  # what each differs in from the defaults
    "snd-v": {},
    "snd-v-plain": {"obs_norm": "none", "update_proportion": 1.0, "mag_limit": 200.0, "noise_prob": 0.5},
    "snd-vic": PAPER | {"target_loss": "vicreg", "int_scale": 0.25},
    # the paper's int_scale for PrivateEye and Solaris is 0.5, for Venture 0.25
    "snd-std": PAPER | {"target_loss": "stdim", "predictor_gain": 0.5, "int_scale": 1.0},
    "vicreg-aug": {"target_loss": "vicreg", "noise_prob": 0.5, "obs_norm": "none", "update_proportion": 1.0},
    # seed-snd is inferred: the author's one surviving setting of that name has 0.256 and meanstd, his notes the mean
    "seed-snd": {"aug": "multi", "rnd_net": "A", "int_scale": 0.256},
    "seed-rnd": {"target_loss": "none", "rnd_net": "A", "obs_norm": "mean", "int_scale": 256.0},  # half the sum of 512
}


def check_args(args: Args) -> None:
    """Raises UserError at the first flag whose value makes no sense, before anything is created."""

    def require(ok: bool, flag: str, rule: str) -> None:
        if not ok:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: must be {rule}")

    counts = ("num_envs", "num_steps", "num_minibatches", "update_epochs", "max_episode_steps", "eval_episodes")
    for flag in (*counts, "rnd_epochs", "target_batch", "entropy_memory"):
        require(getattr(args, flag) >= 1, flag, "at least 1")
    weights = ("ent_coef", "vf_coef", "int_coef", "ext_coef", "entropy_coef_episodic")
    for flag in ("warmup_rollouts", "seed", "checkpoint_interval", *weights):
        require(0 <= getattr(args, flag) < float("inf"), flag, "a number that is not negative")
    require(args.seed < 2**63, "seed", "below 2^63")
    for flag in ("gamma", "int_gamma", "gae_lambda", "sticky_actions", "noise_prob"):
        require(0 <= getattr(args, flag) <= 1, flag, "in [0, 1]")
    gains = ("critic_init", "target_gain", "predictor_gain", "int_scale")
    for flag in ("learning_rate", "clip_coef", "max_grad_norm", "int_clip", "mag_limit", *gains):
        value = getattr(args, flag)
        require(value is None or 0 < value < float("inf"), flag, "a positive number")
    require(args.max_episode_steps < 2**31, "max_episode_steps", "below 2^31")
    require(args.update_proportion is None or 0 < args.update_proportion <= 1, "update_proportion", "in (0, 1]")
    require(args.entropy_memory >= 2, "entropy_memory", "at least 2, because one frame has no spread")
    require(args.num_steps >= 2, "num_steps", "at least 2, because one step can be a reset everywhere")
    rollout = args.num_envs * args.num_steps
    require(rollout % args.num_minibatches == 0, "num_minibatches", f"a divisor of a rollout, {rollout} steps")
    least = rollout * RANKS  # one of each rank
    require(args.total_timesteps >= least, "total_timesteps", f"at least one rollout, {least} steps")
    require(args.rnd_epochs <= args.update_epochs, "rnd_epochs", f"at most --update-epochs {args.update_epochs}")
    targets = ("pair", "aug", "noise_prob", "target_batch", "mag_limit")
    for contradiction, reason, flags in (
        (args.target_loss == "none", "--target-loss none: the target does not learn", targets),
        (args.aug == "none", "--aug none: there is no noise", ("noise_prob",)),
        (args.entropy_coef_episodic == 0, "--entropy-coef-episodic 0: nothing is remembered", ("entropy_memory",)),
        (args.int_norm, "--int-norm: a scale falls out", ("int_scale",)),
        (args.update_proportion == 1, "--update-proportion 1: nothing is left out", ("predictor_mask",)),
        (args.obs_norm == "none", "--obs-norm none: there are no moments", ("warmup_rollouts",)),
    ):
        preset = Args(**PRESETS[args.preset])
        for flag in flags:
            if contradiction and getattr(args, flag) != getattr(preset, flag):
                raise UserError(f"--{flag.replace('_', '-')} contradicts {reason}")
    if args.target_loss in ("vicreg", "stdim") and args.pair == "same" and args.aug == "none":
        raise UserError(f"--target-loss {args.target_loss} with --pair same --aug none compares frames with themselves")
    if args.target_loss == "vicreg":
        require(args.target_batch >= 2, "target_batch", "at least 2, because vicreg wants a variance")
    if sum(map(bool, (args.resume, args.evaluate, args.embed))) > 1:
        raise UserError("--resume, --evaluate and --embed exclude each other")
    if (args.evaluate or args.embed) and RANKS > 1:
        raise UserError("--evaluate and --embed are for one process, without torchrun")
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
        images: with `--rooms image`, what copy 0 has seen that looks different; the author's and the notes' "rooms"
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
            img_height=96,
            img_width=96,
            # author: the frame stack is kept over resets, here: 4 copies of the first frame, because that is a mistake;
            # author: maximum of two frames in colour, here: in grey, because EnvPool does so.
            noop_max=30,
            use_fire_reset=False,
        )
        self.num_actions = self.pool.action_space.n
        self.room_byte = ROOM_BYTE.get(env_id)
        self.done = np.zeros(num_envs, bool)  # (N,) the step before ended the episode
        self.returns = np.zeros(num_envs)  # (N,) of the episodes under way, as the next two
        self.lengths = np.zeros(num_envs, int)
        self.rooms = np.zeros((num_envs, 256), bool)
        self.images: list[np.ndarray] | None = [] if args.rooms == "image" else None
        self.steps = 0
        self.clear_statistics()

    def clear_statistics(self) -> None:
        """Forgets what is said of past episodes."""
        self.episodes: list[tuple[float, int]] = []
        self.recent: collections.deque[float] = collections.deque(maxlen=100)
        self.visited: set[int] = set()
        self.rooms_best = 0

    def reset(self) -> np.ndarray:
        """First observations (N, 4, 96, 96) uint8, the newest frame last."""
        return self.pool.reset()[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Plays actions (N,) int.

        Returns: observations (N, 4, 96, 96) uint8; rewards (N,), 1 or 0; done (N,) bool, the episode ends here; valid
        (N,) bool, False where the step was a reset.
        """
        obs, rewards, terminated, truncated, info = self.pool.step(actions)
        valid = ~self.done
        self.done = terminated | truncated  # the time limit counts as an end, as in both codes
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
        # the author's count: every 32nd frame is a new room if its mean squared distance to all before is above 0.01
        if self.images is not None and self.steps % 32 == 0 and len(self.images) < 100:
            distances = [np.square((obs[0, 3] / 255.0) - image).mean() for image in self.images]
            if not distances or min(distances) > 0.01:
                self.images.append(obs[0, 3] / 255.0)
        self.steps += 1
        return obs, (rewards > 0).astype(np.float32), self.done, valid  # a loss of points counts as nothing


# ----------------------------------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------------------------------


def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (reference: every layer of every network)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


# channels, size and stride of each convolution; all end at 12 x 12 places
POLICY_NETS = {  # the author's diagrams
    "A": ((32, 8, 4), (64, 3, 2), (64, 3, 1)),
    "B": ((64, 8, 4), (64, 3, 2), (128, 3, 1)),
    "C": ((32, 3, 2), (64, 3, 2), (64, 3, 2), (128, 3, 1)),
    "D": ((128, 8, 8),),
}
RND_NETS = {  # A, B: the author's; ST: the paper's, for its variants STD and VIC
    "A": ((32, 8, 4), (64, 3, 2), (64, 3, 1)),
    "B": ((16, 3, 2), (32, 3, 2), (64, 3, 2), (64, 3, 1)),
    "ST": ((32, 3, 2), (64, 3, 2), (64, 3, 2), (128, 3, 1)),
}


def conv(channels_in: int, channels: int, size: int, stride: int, gain: float = 2**0.5) -> nn.Module:
    """A convolution that makes the picture smaller by its stride: 96 x 96 -> 48 x 48 for stride 2."""
    return init_layer(nn.Conv2d(channels_in, channels, size, stride, padding=(size - stride + 1) // 2), gain)


def convolutions(
    channels: int, shapes: tuple[tuple[int, int, int], ...], activation: type[nn.Module], gain: float = 2**0.5
) -> list[nn.Module]:
    """(B, channels, 96, 96) -> (B, C, 12, 12): convolutions of these shapes, each with its activation."""
    modules = []
    for out, size, stride in shapes:
        modules += [conv(channels, out, size, stride, gain), activation()]
        channels = out
    return modules


class Attention(nn.Module):
    """Self-attention over the tiles of a picture, then a residual 1 x 1 convolution (policy D)."""

    def __init__(self, channels: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, num_heads=1, batch_first=True)
        self.mix = conv(channels, channels, 1, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        tokens = inputs.flatten(2).transpose(1, 2)  # (B, H * W, C)
        attended = self.attention(tokens, tokens, tokens, need_weights=False)[0].transpose(1, 2).reshape(inputs.shape)
        return attended + self.mix(attended).relu()


def policy_layers(policy_net: str) -> tuple[list[nn.Module], int]:
    """Four frames (B, 4, 96, 96) -> features (B, width): the layers and the width."""
    shapes, width = POLICY_NETS[policy_net], {"A": 448, "B": 800, "C": 512, "D": 512}[policy_net]
    modules = convolutions(4, shapes, nn.ReLU)
    if policy_net == "D":
        modules += [Attention(128), Attention(128)]
    modules += [nn.Flatten(), init_layer(nn.Linear(shapes[-1][0] * 12 * 12, width)), nn.ReLU()]
    if policy_net == "A":
        modules += [init_layer(nn.Linear(width, width)), nn.ReLU()]
    return modules, width


class Agent(nn.Module):
    """Policy and values, each with a hidden layer of its own. The order of the value heads is intrinsic, extrinsic,
    and the episode's spread if there is that stream.
    """

    def __init__(self, num_actions: int, args: Args):
        super().__init__()
        num_heads = 3 if args.entropy_coef_episodic else 2
        layers, width = policy_layers(args.policy_net)
        self.trunk = nn.Sequential(*layers)
        self.residual = args.policy_net == "A"
        self.policy_branch = init_layer(nn.Linear(width, width), gain=0.01)
        self.value_branch = init_layer(nn.Linear(width, width), gain=args.critic_init)
        self.policy_head = init_layer(nn.Linear(width, num_actions), gain=0.01)
        self.value_head = init_layer(nn.Linear(width, num_heads), gain=0.01)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, 4, 96, 96) uint8 -> logits (B, num_actions), values (B, num_heads), float32."""
        inputs = obs.to(memory_format=torch.channels_last).float().div_(255)
        hidden = self.trunk(inputs)  # (B, width)
        logits = self.policy_head(self.policy_branch(hidden).relu())
        values = self.value_head(self.residual * hidden + self.value_branch(hidden).relu())
        return logits.float(), values.float()


def rnd_layers(rnd_net: str, gain: float) -> list[nn.Module]:
    """One frame (B, 1, 96, 96) -> features (B, 512): what target and predictor have in common.

    ELU, because with ReLU features are too small to tell anything (the author); the paper's ST has ReLU all the same.
    """
    shapes = RND_NETS[rnd_net]
    modules = convolutions(1, shapes, nn.ReLU if rnd_net == "ST" else nn.ELU, gain)
    return [*modules, nn.Flatten(), init_layer(nn.Linear(shapes[-1][0] * 12 * 12, 512), gain)]


class SND(nn.Module):
    """The target, the predictor and the normalisers that decide what is new."""

    def __init__(self, num_envs: int, args: Args, device: torch.device):
        super().__init__()
        gain = args.predictor_gain
        self.target = nn.Sequential(*rnd_layers(args.rnd_net, args.target_gain))
        self.target.requires_grad_(args.target_loss != "none")
        self.predictor = nn.Sequential(
            *rnd_layers(args.rnd_net, gain),
            *(nn.ELU(), init_layer(nn.Linear(512, 512), gain)),
            *(nn.ELU(), init_layer(nn.Linear(512, 512), gain)),
        )
        if args.target_loss == "stdim":  # what compares a frame's features with the places of the frame before
            self.global_to_local = init_layer(nn.Linear(512, 64), args.target_gain)
            self.local_to_local = init_layer(nn.Linear(64, 64), args.target_gain)
        self.obs_rms = RunningMoments((96, 96), device)
        self.return_rms = RunningMoments((), device)
        self.register_buffer("filtered", torch.zeros(num_envs))  # (N,) the reward filter's state
        self.to(device)

    def target_parameters(self) -> list[nn.Parameter]:
        """What learns by the target's loss."""
        return [p for name, p in self.named_parameters() if not name.startswith("predictor") and p.requires_grad]


# ----------------------------------------------------------------------------------------------------------------------
# Normalisers and returns
# ----------------------------------------------------------------------------------------------------------------------

STREAMS = ("_int", "_ext", "_spread")  # the value heads, in their order; the third only with --entropy-coef-episodic


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


def whiten(frames: Tensor, obs_rms: RunningMoments, obs_norm: str) -> Tensor:
    """Frames (B, 96, 96) uint8 -> (B, 1, 96, 96) float32, by `--obs-norm`; meanstd is clipped at 1 deviation."""
    inputs = frames.float()
    if obs_norm == "meanstd":
        inputs = inputs.sub_(obs_rms.mean.float()).div_(obs_rms.var.sqrt().float()).clamp_(-1, 1)
    elif obs_norm == "mean":
        inputs = inputs.sub_(obs_rms.mean.float()).div_(255)
    else:
        inputs = inputs.div_(255)
    return inputs.unsqueeze(1)


@torch.no_grad()
def features(network: nn.Module, frames: Tensor, obs_rms: RunningMoments, obs_norm: str) -> Tensor:
    """Frames (T, N, 96, 96) uint8 -> features (T, N, 512) of target or predictor, about 1,024 frames at a time."""
    chunks = frames.split(max(1, 1024 // frames.shape[1]))
    return torch.cat([network(whiten(c.flatten(0, 1), obs_rms, obs_norm)).unflatten(0, c.shape[:2]) for c in chunks])


def augment(inputs: Tensor, aug: str, noise_prob: float) -> Tensor:
    """Frames as a network sees them (B, 1, 96, 96) -> the same, each damaged in its own way (the author's code).

    tile   for half of the frames a tenth of all tiles is 0; their side is drawn once for the batch
    multi  half in pixels of 2 x 2, a quarter in pixels of 4 x 4, an eighth with a tenth of its pixels 0
    Both add noise between -0.2 and 0.2 to a share of the frames.
    """

    def chosen(share: float) -> Tensor:
        return torch.rand(len(inputs), 1, 1, 1, device=inputs.device) < share

    def without(side: int) -> Tensor:
        size = (len(inputs), 1, inputs.shape[2] // side, inputs.shape[3] // side)
        tiles = (torch.rand(size, device=inputs.device) >= 0.1).float()
        return inputs * nn.functional.interpolate(tiles, scale_factor=float(side))

    if aug == "none":
        return inputs
    if aug == "tile":
        side = (1, 2, 4, 8, 12, 16)[int(torch.randint(6, ()))]
        inputs = torch.where(chosen(0.5), without(side), inputs)
    else:
        for scale, share in ((2, 0.5), (4, 0.25)):
            coarse = nn.functional.interpolate(nn.functional.avg_pool2d(inputs, scale), scale_factor=float(scale))
            inputs = torch.where(chosen(share), coarse, inputs)
        inputs = torch.where(chosen(0.125), without(1), inputs)
    return inputs + 0.4 * (torch.rand_like(inputs) - 0.5) * chosen(noise_prob)


def draw_pairs(
    experience: Tensor, num_envs: int, size: int, pair: str, with_others: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of frames of a rollout o(0) to o(T): indices into its T * N + N frames.

    A pair belongs together (label 0): a frame and itself, or a frame and the next of the same episode. With others,
    half of the pairs are any two frames (label 1).

    Args: experience (E,), the steps that are no resets, which lead from one episode to another.
    Returns: the first frames (size,), the second frames (size,), labels (size,).
    """

    def draw() -> Tensor:
        return experience[torch.randint(len(experience), (size,), device=experience.device)]

    first = draw()
    together = first + num_envs if pair == "next" else first
    labels = (torch.rand(size, device=experience.device) < 0.5 * with_others).float()
    return first, torch.where(labels > 0, draw(), together), labels


def contrastive_loss(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """Features (B, D), labels (B,): the squared distance, a mean over D, is to be the label (the author's code)."""
    return (labels - (first - second).square().mean(1)).square().mean()


def vicreg_terms(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """Features (B, D) of what belongs together are to be the same, each of them to vary, no two of them alike.

    Bardes et al. 2022 with the paper's weights: 1 invariance, 1 variance, 1/25 covariance. Returns: what adds up to
    the loss.
    """
    terms = {"invariance": (first - second).square().mean(), "variance": 0, "covariance": 0}
    for z in (first, second):
        terms["variance"] += (1 - (z.var(0) + 1e-4).sqrt()).relu().mean()
        centred = z - z.mean(0)
        covariance = centred.T @ centred / (len(z) - 1)  # (D, D)
        terms["covariance"] += (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1] / 25
    return terms


def stdim_terms(
    first: Tensor, second: Tensor, local_first: Tensor, local_second: Tensor, snd: SND
) -> dict[str, Tensor]:
    """Which frame is it that comes next? Told by all of the next frame's features, and by those of each place.

    Anand et al. 2019 with the paper's two terms that keep the logits small and the features apart. At each of the P
    places the right one of B frames is to be found, from a score for each pair of frames, (P, B, B).

    Args: features (B, D) of a frame and the next; local_first, local_second (B, C, H, W), of places in them.
    Returns: what adds up to the loss.
    """
    places = local_first.flatten(2).permute(2, 0, 1)  # (P, B, C), as the next
    next_places = local_second.flatten(2).permute(2, 0, 1)
    right = torch.arange(len(first), device=first.device).expand(len(places), -1)  # (P, B)
    terms = {"spread": -1e-4 * first.std(1).mean(), "logits": 0}
    queries = {"global": snd.global_to_local(second).expand(len(places), -1, -1)}
    queries["local"] = snd.local_to_local(next_places)
    for name, query in queries.items():
        scores = query @ places.transpose(1, 2)  # (P, B, B)
        terms[name] = nn.functional.cross_entropy(scores.flatten(0, 1), right.flatten())
        terms["logits"] += 1e-4 * torch.linalg.matrix_norm(scores).mean()
    return terms


def target_terms(
    snd: SND, first: Tensor, second: Tensor, labels: Tensor, args: Args
) -> tuple[dict[str, Tensor], Tensor]:
    """The loss of one update of the target from pairs of frames (B, 1, 96, 96), whitened, and their labels (B,).

    Returns: what adds up to the loss; the magnitude, the mean squares of the features of both frames together.
    """
    first, second = (augment(x, args.aug, args.noise_prob) for x in (first, second))
    with torch.autocast(first.device.type, torch.bfloat16, enabled=args.bf16):  # the networks, not the losses
        if args.target_loss == "stdim":  # which looks at the third layer's features of places too
            places = [snd.target[:6](x) for x in (first, second)]  # (B, 64, 12, 12) each
            first, second = (snd.target[6:](x).float() for x in places)  # (B, 512)
        else:
            first, second = (snd.target(x).float() for x in (first, second))  # (B, 512)
    if args.target_loss == "contrastive":
        terms = {"contrastive": contrastive_loss(first, second, labels)}
    elif args.target_loss == "vicreg":
        terms = vicreg_terms(first, second)
    else:
        terms = stdim_terms(first, second, *(x.float() for x in places), snd)
    magnitude = first.square().mean() + second.square().mean()
    if args.mag_limit is not None:
        terms["limit"] = (magnitude - args.mag_limit).relu()
    return terms, magnitude


def predictor_loss(predicted: Tensor, targets: Tensor, share: float, mask: str) -> Tensor:
    """Mean squared error (B, 512) over a random share of the elements, or of the samples."""
    size = predicted.shape if mask == "element" else (len(predicted), 1)
    kept = (torch.rand(size, device=predicted.device) < share).expand_as(predicted)
    return masked_mean((predicted - targets).square(), kept)


def novelty(snd: SND, frames: Tensor, obs_norm: str) -> Tensor:
    """The predictor's mean squared error: frames (T, N, 96, 96) uint8 -> (T, N)."""
    predicted, targets = (features(x, frames, snd.obs_rms, obs_norm) for x in (snd.predictor, snd.target))
    return (predicted - targets).square().mean(-1)


def episodic_spread(seen: Tensor, starts: Tensor, memory: Tensor, position: Tensor) -> Tensor:
    """How far apart the target's features of the last K frames of the episode lie: the reward of the third stream.

    The mean over D of the deviations over a memory of K frames, which is full of the first frame when an episode
    starts (the author's code of February 2022).

    Args: seen (T, N, D), the features; starts (T, N), the frame is an episode's first; memory (N, K, D) and position
    (N,) int64, which are changed. Returns: (T, N).
    """
    spread = []
    everyone = torch.arange(len(memory), device=memory.device)
    for z, start in zip(seen, starts, strict=True):
        memory[start] = z[start][:, None]
        memory[everyone, position] = z
        position.copy_((position + 1) % memory.shape[1])
        spread.append(memory.std(1, correction=0).mean(1))
    return torch.stack(spread)


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
    # a stream that is turned off does not shape the features either
    coefs = (args.int_coef, args.ext_coef, args.entropy_coef_episodic)
    value_losses = [loss * (coef > 0) for loss, coef in zip(value_losses, coefs, strict=False)]
    loss = policy_loss + args.vf_coef * sum(value_losses) - args.ent_coef * entropy

    metrics = {
        "policy_loss": policy_loss,
        "value_loss": sum(value_losses),
        "entropy": entropy,
        "approx_kl": masked_mean(ratio - 1 - logratio, valid),
        "clipfrac": masked_mean(((ratio - 1).abs() > args.clip_coef).float(), valid),
    }
    return loss, metrics | {f"value_loss{suffix}": x for suffix, x in zip(STREAMS, value_losses, strict=False)}


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
    stop = StopSignal()

    # environments, networks, optimiser
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    seeds = np.random.SeedSequence((args.seed, iteration)).generate_state(N * RANKS) >> 1  # others after a resume
    envs = AtariEnvs(env_id, N, seeds[N * RANK : N * (RANK + 1)].tolist(), args)
    agent = Agent(envs.num_actions, args)
    agent.to(device, memory_format=torch.channels_last)
    snd = SND(N, args, device).to(memory_format=torch.channels_last)
    # three optimisers: the target's gradients, those of features of magnitude 100, would drown the policy's
    trained = {"agent": agent.parameters(), "predictor": snd.predictor.parameters()}
    if args.target_loss != "none":
        trained["target"] = snd.target_parameters()
    optimizers = {
        key: torch.optim.Adam([*part], lr=args.learning_rate, eps=1e-8, fused=True) for key, part in trained.items()
    }
    learner = {"agent": agent, "snd": snd} | {f"{key}_optimizer": x for key, x in optimizers.items()}
    best_score, seconds_before = float("-inf"), 0.0
    if RANKS > 1:  # the same weights, the target's too; other actions
        for x in (*agent.state_dict().values(), *snd.state_dict().values()):
            dist.broadcast(x, 0)
        torch.manual_seed(int(np.random.SeedSequence((args.seed, iteration, RANK)).generate_state(1)[0]))
    if saved:
        filtered = saved["snd"]["filtered"]  # (N,) of each rank that there was
        saved["snd"]["filtered"] = filtered[torch.arange(N * RANK, N * (RANK + 1)) % len(filtered)]
        for name, part in learner.items():
            load_state(part, saved[name], path)
        if len(saved["rng_cpu"]) > RANK:  # a rank that there was
            torch.set_rng_state(saved["rng_cpu"][RANK])
            if device.type == "cuda" and saved["rng_device"][RANK] is not None:
                torch.cuda.set_rng_state(saved["rng_device"][RANK])
        envs.recent.extend(saved["recent"])
        envs.visited, envs.rooms_best = set(saved["visited"]), saved["rooms_best"]
        if envs.images is not None and saved["images"] is not None:
            envs.images = [*saved["images"].numpy()]
        best_score, seconds_before = saved["best_score"], saved["seconds"]
    if args.compile:
        for network in (agent, snd.predictor, snd.target):
            network.compile()
    run_dir, writer = open_run(args, env_id, path, iteration * S) if RANK == 0 else (None, None)
    run_dir = all_objects(run_dir)[0]

    # what is about to happen
    networks = {"agent": agent, "predictor": snd.predictor, "target": snd.target}
    memory = 1.0e9 + 1.05 * (T + 1) * N * 4 * 96 * 96 + B * 8000 + B / M * 900e3 + args.target_batch * 900e3
    memory += 28 * sum(p.numel() for network in networks.values() for p in network.parameters())  # with Adam's, saved
    memory += (args.target_loss == "stdim") * 8 * 144 * 4 * args.target_batch**2  # logits of all pairs at all places
    device_name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    print(f"device       {device} ({device_name}){', bf16' * args.bf16}{', compiled' * args.compile}")
    ranks = f" on each of {RANKS} ranks" if RANKS > 1 else ""
    print(f"environment  {env_id} x {N}{ranks}, sticky actions {args.sticky_actions}, {envs.num_actions} actions")
    print(f"parameters   {', '.join(f'{k} {sum(p.numel() for p in m.parameters()):,}' for k, m in networks.items())}")
    print(f"preset       {args.preset}, target loss {args.target_loss}")
    print(f"memory       about {memory / 1e9:.1f} GB{ranks}")
    print(f"steps        {num_iterations * S:,} in {num_iterations:,} rollouts of {T} x {N * RANKS}; 4 frames a step")
    print(f"folder       {run_dir}", flush=True)

    # storage of one rollout
    obs = torch.zeros((T + 1, N, 4, 96, 96), dtype=torch.uint8, device=device)  # row T: what follows the last step
    frames = obs[1:, :, 3] if args.reward_on == "next_obs" else obs[:T, :, 3]  # (T, N, 96, 96) what SND sees of a step
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
            snd.obs_rms.update(obs[T, :, 3], torch.from_numpy(ok).to(device))
            bar.update(N * RANKS)
            if stopped := stop.agreed():
                bar.close()
                print("stopped before training began: there is nothing to save")
                return 128 + stopped
        bar.close()
        envs.clear_statistics()
    announced = set(envs.visited)

    # the memory of the third stream
    starts = torch.ones((T + 1, N), dtype=torch.bool, device=device)  # the frame is an episode's first
    remembered = torch.zeros((N, args.entropy_memory, 512), device=device)
    position = torch.zeros(N, dtype=torch.int64, device=device)

    def save() -> None:
        """Writes latest.pt, and best.pt too if the mean return of the last 100 episodes has never been as high."""
        nonlocal best_score
        rng = torch.get_rng_state(), torch.cuda.get_rng_state() if device.type == "cuda" else None
        of_ranks = all_objects((*rng, snd.filtered.cpu()))
        if RANK:
            return
        score = float(np.mean(envs.recent)) if len(envs.recent) == 100 else float("-inf")
        is_best, best_score = score > best_score, max(score, best_score)
        state = {name: part.state_dict() for name, part in learner.items()} | {
            "script": SCRIPT,
            "args": {**vars(args), "resume": None},
            "identity": {
                **{"env_id": env_id, "num_envs": N, "num_steps": T},
                **{"preset": args.preset, "target_loss": args.target_loss},
            },
            "rollouts": iteration * RANKS,
            "rng_cpu": [own[0] for own in of_ranks],
            "rng_device": [own[1] for own in of_ranks],
            "recent": list(envs.recent),
            "visited": sorted(envs.visited),
            "rooms_best": envs.rooms_best,
            "images": None if envs.images is None else torch.tensor(np.array(envs.images)),
            "best_score": best_score,
            "seconds": seconds_before + time.time() - start_time,
        }
        state["snd"]["filtered"] = torch.cat([own[2] for own in of_ranks])
        save_checkpoint(run_dir / "latest.pt", state)
        if is_best:
            save_checkpoint(run_dir / "best.pt", state)

    start_time = last_save = time.time()
    bar = Progress(num_iterations * S, iteration * S)
    stopped = 0
    while iteration < num_iterations and not (stopped := stop.agreed()):
        iteration_start = time.time()
        left = 1 - iteration / num_iterations if args.anneal_lr else 1.0
        for name, optimizer in optimizers.items():  # each time, because a resume may ask for another
            optimizer.param_groups[0]["lr"] = args.learning_rate * (left if name == "agent" else 1.0)

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
        # float32 always: bfloat16's rounding could pass for novelty
        errors = novelty(snd, frames, args.obs_norm)  # (T, N)
        intrinsic = args.int_scale * errors
        if args.int_norm:
            filtered, snd.filtered = reward_filter(intrinsic, valid, args.int_gamma, snd.filtered)
            snd.return_rms.update(filtered.flatten(), valid.flatten())
            intrinsic = intrinsic / snd.return_rms.var.sqrt().float()
        if args.int_clip is not None:
            intrinsic = intrinsic.clamp(max=args.int_clip)

        # advantages
        int_dones = dones if args.int_episodic else torch.zeros_like(dones)
        streams = [(intrinsic, int_dones, args.int_gamma, args.int_coef), (rewards, dones, args.gamma, args.ext_coef)]
        if args.entropy_coef_episodic:
            starts[0] = starts[T]
            starts[1:] = ~valid
            seen = features(snd.target, obs[:T, :, 3], snd.obs_rms, args.obs_norm)  # (T, N, 512)
            spread = episodic_spread(seen, starts[:T], remembered, position).clamp(max=1)
            streams.append((spread, dones, args.int_gamma, args.entropy_coef_episodic))
        advantages = torch.zeros((T, N), device=device)
        returns = torch.zeros_like(values[:T])  # (T, N, H)
        for head, (r, ends, gamma, coef) in enumerate(streams):
            v = values[..., head]
            stream_advantages = gae(r, v[:T], v[T], ends, valid, gamma, args.gae_lambda)
            returns[..., head] = stream_advantages + v[:T]
            advantages += coef * stream_advantages
        if args.obs_norm != "none":
            for t in range(T):
                snd.obs_rms.update(frames[t], valid[t])

        # update
        rollout = {
            "obs": obs[:T],
            "actions": actions,
            "logprobs": logprobs,
            "values": values[:T],
            "advantages": advantages,
            "returns": returns,
            "valid": valid,
        }
        rollout = {key: x.flatten(0, 1) for key, x in rollout.items()}  # each (B, ...)
        newest = obs[:, :, 3].flatten(0, 1)  # (B + N, 96, 96)
        shift = N if args.reward_on == "next_obs" else 0  # from a step to the frame that is rewarded
        experience = valid.flatten().nonzero().squeeze(1)  # steps that were no resets
        totals: dict[str, Tensor] = collections.defaultdict(float)  # sums over the minibatches, for the log
        for update in range(args.update_epochs * M):
            # drawn with replacement, as in the author's code
            drawn = experience[torch.randint(len(experience), (B // M,), device=device)]
            batch = {key: x[drawn] for key, x in rollout.items()}  # (B/M, ...)

            if update < args.rnd_epochs * M:
                # the target
                if args.target_loss != "none":
                    with_others = args.target_loss == "contrastive"
                    *pairs, labels = draw_pairs(experience, N, args.target_batch, args.pair, with_others)
                    first, second = (whiten(newest[x], snd.obs_rms, args.obs_norm) for x in pairs)
                    terms, magnitude = target_terms(snd, first, second, labels, args)
                    loss = sum(terms.values())
                    optimizers["target"].zero_grad()
                    loss.backward()
                    average_gradients([*snd.target_parameters()])
                    optimizers["target"].step()
                    parts = {f"target_{name}": term for name, term in terms.items()} if len(terms) > 1 else {}
                    for name, value in {"target_loss": loss, "magnitude": magnitude, **parts}.items():
                        totals[name] += value.detach() / args.rnd_epochs

                # the predictor
                inputs = whiten(newest[drawn + shift], snd.obs_rms, args.obs_norm)
                with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                    with torch.no_grad():
                        targets = snd.target(inputs).float()  # (B/M, 512)
                    predicted = snd.predictor(inputs).float()
                loss = predictor_loss(predicted, targets, update_proportion, args.predictor_mask)
                optimizers["predictor"].zero_grad()
                loss.backward()
                average_gradients([*snd.predictor.parameters()])
                optimizers["predictor"].step()
                totals["predictor_loss"] += loss.detach() / args.rnd_epochs

            # the policy
            if args.norm_adv:
                batch["advantages"] = normalise(batch["advantages"], batch["valid"])
            with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
                logits, new_values = agent(batch["obs"])
            loss, metrics = ppo_loss(logits, new_values, batch, args)
            optimizers["agent"].zero_grad()
            loss.backward()
            average_gradients([*agent.parameters()])
            metrics["grad_norm"] = nn.utils.get_total_norm([p.grad for p in agent.parameters()])
            if args.max_grad_norm is not None:
                nn.utils.clip_grads_with_norm_(agent.parameters(), args.max_grad_norm, metrics["grad_norm"])
            optimizers["agent"].step()
            for key, value in metrics.items():
                totals[key] += value.detach() / args.update_epochs
            bar.update(S * update // (args.update_epochs * M) + iteration * S - bar.n)
        iteration += 1

        # log: means over the whole update, in one transfer from the device
        scalars = {f"losses/{key}": total / M for key, total in totals.items()}
        for head, suffix in enumerate(STREAMS[: values.shape[2]]):
            explained = explained_variance(values[:T, :, head], returns[..., head], valid)
            scalars[f"losses/explained_variance{suffix}"] = explained
        scalars["rnd/intrinsic_reward"] = masked_mean(intrinsic, valid)
        scalars["rnd/error"] = masked_mean(errors, valid)
        if args.int_norm:
            scalars["rnd/intrinsic_return_std"] = snd.return_rms.var.sqrt().float()
        if args.entropy_coef_episodic:
            scalars["rnd/spread"] = masked_mean(spread, valid)
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
        if envs.images is not None:
            scalars["rnd/rooms_by_image"] = len(envs.images)
        scalars["charts/SPS"] = S / (time.time() - iteration_start)
        scalars["charts/learning_rate"] = optimizers["agent"].param_groups[0]["lr"]
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
    env = gym.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=96)
    return gym.wrappers.FrameStackObservation(env, 4)


def evaluate(args: Args, env_id: str, device: torch.device, path: pathlib.Path, saved: dict) -> None:
    """Plays whole games with the policy of a checkpoint, actions drawn as in training, and prints unclipped returns."""
    torch.manual_seed(args.seed)
    env = make_evaluation_env(env_id, args)
    agent = Agent(env.action_space.n, args).to(device)
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


def separability(z: np.ndarray, rooms: np.ndarray, episodes: np.ndarray) -> dict[str, float]:
    """How well features (K, D) tell the rooms (K,) of frames from several episodes (K,) apart.

    Returns: nearest, the share of frames whose nearest neighbour in another episode is in the same room, among those
    whose room is in another episode at all; between, the share of the variance that is between the rooms' means;
    dimensions, (sum of the covariance's eigenvalues)^2 / sum of their squares.
    """
    other = episodes[:, None] != episodes[None]  # (K, K)
    same = rooms[:, None] == rooms[None]
    squares = np.square(z).sum(1)
    distances = np.where(other, squares[:, None] + squares[None] - 2 * z @ z.T, np.inf)
    known = (same & other).any(1)
    hits = rooms[distances.argmin(1)] == rooms
    centred = z - z.mean(0)
    within = sum(np.square(z[rooms == room] - z[rooms == room].mean(0)).sum() for room in np.unique(rooms))
    eigenvalues = np.linalg.svd(centred, compute_uv=False) ** 2
    return {
        "nearest": float(hits[known].mean()) if known.any() else float("nan"),
        "between": float(1 - within / np.square(centred).sum()),
        "dimensions": float(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum()),
    }


def plot_embeddings(
    models: dict[str, np.ndarray], rooms: np.ndarray, episodes: np.ndarray, seed: int, path: pathlib.Path
) -> dict[str, dict[str, float]]:
    """A column for each model's features (K, D) of the same frames: t-SNE, PCA, spectrum. Returns their numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    figure = Figure(figsize=(4 * len(models) + 0.8, 10), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, len(models), squeeze=False)
    numbers = {}
    for column, (name, z) in zip(panels.T, models.items(), strict=True):
        numbers[name] = separability(z, rooms, episodes)
        flat = TSNE(random_state=seed, perplexity=min(30, (len(z) - 1) / 3)).fit_transform(z)
        for panel, points, title in ((column[0], flat, "t-SNE"), (column[1], PCA(2).fit_transform(z), "PCA")):
            for k, room in enumerate(np.unique(rooms)):
                here = points[rooms == room]
                panel.scatter(*here.T, s=5, color=f"C{k % 10}", marker="o^s"[k // 10 % 3], label=f"{room}")
            panel.set(xticks=[], yticks=[], title=f"{name}, {title}")
        spectrum = PCA().fit(z).explained_variance_ratio_
        column[2].semilogy(np.arange(1, len(spectrum) + 1), spectrum.clip(1e-12), ".-", markersize=3)
        column[2].set(xlabel="component", title="share of the variance", xlim=(0, 100), ylim=(1e-6, 1))
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", title="room", markerscale=3)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    return numbers


def embed(args: Args, env_id: str, device: torch.device, path: pathlib.Path, saved: dict) -> None:
    """What the targets of several runs make of the frames of the first one's episodes: a picture and numbers."""
    if env_id not in ROOM_BYTE:
        raise UserError(f"--embed: where {env_id} keeps its room is not known; only for {', '.join(ROOM_BYTE)}")
    if importlib.util.find_spec("sklearn") is None:
        raise UserError("--embed needs scikit-learn: pip install scikit-learn")
    checkpoints = [load_checkpoint("--embed", source) for source in args.embed]
    torch.manual_seed(args.seed)
    env = make_evaluation_env(env_id, args)
    agent = Agent(env.action_space.n, args).to(device)
    load_state(agent, saved["agent"], path)
    frames, rooms, episodes = [], [], []
    for episode in tqdm(range(args.eval_episodes), unit="episode", disable=not sys.stderr.isatty()):
        obs, _ = env.reset(seed=args.seed + episode)
        for _ in range(args.max_episode_steps):
            frames.append(obs[3])
            rooms.append(int(env.unwrapped.ale.getRAM()[ROOM_BYTE[env_id]]))
            episodes.append(episode)
            with torch.no_grad():
                logits, _ = agent(torch.from_numpy(obs)[None].to(device))
            obs, _, terminated, _, _ = env.step(int(torch.distributions.Categorical(logits=logits).sample()))
            if terminated:
                break
    if len(frames) < 3:
        raise UserError("--embed: too few frames; more --eval-episodes or --max-episode-steps")
    chosen = np.linspace(0, len(frames) - 1, min(2000, len(frames))).astype(int)
    some = torch.from_numpy(np.stack([frames[k] for k in chosen]))[:, None].to(device)  # (K, 1, 96, 96)
    rooms, episodes = np.array(rooms)[chosen], np.array(episodes)[chosen]

    models = {}
    for run, state in [*checkpoints, (None, checkpoints[0][1])]:
        game = state["identity"]["env_id"]
        if game != env_id:
            raise UserError(f"--embed: {run} is of a run with env_id {game}, not {env_id}")
        own = Args(**state["args"])
        torch.manual_seed(own.seed)
        snd = SND(len(state["snd"]["filtered"]), own, device)
        random_target = {key: value.clone() for key, value in snd.target.state_dict().items()}
        load_state(snd, state["snd"], run or path)
        if run is None:  # one like the first run's that has not learned
            snd.target.load_state_dict(random_target)
        name = f"{own.preset}, {own.target_loss}, seed {own.seed}" if run else "random target"
        name += f" ({sum(x.startswith(name) for x in models) + 1})" if name in models else ""
        z = features(snd.target, some, snd.obs_rms, own.obs_norm).squeeze(1)
        models[name] = z.cpu().numpy().astype(np.float64)
    picture = path.parent / "plots" / f"{env_id}_{path.stem}_embed.png"
    numbers = plot_embeddings(models, rooms, episodes, args.seed, picture)
    print(f"{len(chosen)} of {len(frames)} frames, rooms {sorted(set(rooms.tolist()))}, {args.eval_episodes} episodes")
    for name, values in numbers.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    print(f"picture {picture}")


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
        if source := args.resume or args.evaluate or next(iter(args.embed), None):
            flag = "--resume" if args.resume else "--evaluate" if args.evaluate else "--embed"
            path, saved = load_checkpoint(flag, source)
            args = tyro.cli(Args, default=Args(**saved["args"]))  # flags given anew stand, all others are the run's
        else:
            args = tyro.cli(Args, default=Args(preset=args.preset, **PRESETS[args.preset]))
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
        if args.embed:
            embed(args, env_id, device, path, saved)
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
