# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "ale-py==0.12.1", "envpool==1.2.5",
#   "opencv-python-headless==5.0.0.93", "imageio==2.38.1", "imageio-ffmpeg==0.8.1", "tyro==1.0.17",
#   "tensorboard==2.21.0", "tqdm==4.70.1", "filelock==4.3.1"
# ]
# ///
"""Self-supervised Network Distillation (SND) on Atari, in one file: PPO + RND whose target learns too.

Paper: Pechac, Chovanec, Farkas (2024), Self-supervised network distillation, arXiv:2302.11563. "Author" is
the second of them (github.com/michalnand/reinforcement_learning): what the paper has for SND-V on Montezuma's
Revenge are his runs, and `--preset snd-v` has their constants. "The paper's code" is the first one's,
Iskandor/SND; "reference" is the code of RND's authors. docs/implementation_details.md has the departures.
Functions that do the same as in ppo_rnd_atari.py have its text, but for ranks.

RND's target is random, and the bonus shrinks as the predictor learns it. SND's target learns too, without
reward or label, to give different frames different features. This is meant to leave the predictor something
to learn, even within one room:

    L_target = mean (l - |f(a) - f(b)|^2 / 512)^2   a, b: augmented frames; l: 0 if they are one frame, else 1
    r_int(t) = clip(int_scale * |g(o(t)) - f(o(t))|^2 / 512, 0, 1)
    A        = int_coef * A_int + ext_coef * A_ext  two value heads, two advantages, one policy (PPO)

What is different from RND, and why:
  1. The target's loss, `--target-loss`: contrastive (above), vicreg (variance, invariance, covariance), stdim
     (which frame came before this one, from global and local features), or none: the target stays random
     and everything else as it is, which is the control.
  2. The bonus is that of the frame before the step (RND: after). It is scaled by hand and clipped at 1, not
     divided by the std of its return. Both streams end with the episode.
  3. The predictor learns from a quarter of the elements of a batch's features, not from a quarter of frames.
  4. Three optimisers that step in turn. Only the policy's gradient is clipped, by its own norm.

Three commands, to train, to resume and to evaluate (benchmark/embed.py shows what a target has learned):
    python snd_atari.py --env-id MontezumaRevenge
    python snd_atari.py --resume runs/RUN
    python snd_atari.py --evaluate runs/RUN --eval-episodes 20 --capture-video

What to expect: the author's four finished runs, 128 million steps (512 million frames) each, reached
33,172, 22,310, 9,212 and 5,998 at their best (a running mean of one environment's scores). In one of them
r_int falls to some 0.002 in the first million steps and comes back, 0.05 at 5 million: a run that looks
dead at 1 million is normal. Before 15 million steps scores do not tell SND from RND; rooms and features
have to. On a CPU a step costs 5.6 times one of ppo_rnd_atari.py, and a run takes 3 GB: this is for a GPU.
Nothing has been trained to a score with it yet; docs/results/snd.md has what was measured.
"""

import collections
import contextlib
import ctypes
import dataclasses
import datetime
import difflib
import importlib.util
import io
import math
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from typing import Literal, NamedTuple

import ale_py
import envpool
import filelock
import gymnasium as gym
import imageio
import numpy as np
import torch
import torch.nn as nn
import tyro
from envpool.atari.registration import atari_game_list
from torch import Tensor
from torch.distributions import Categorical
from torch.optim import Adam
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

Preset = Literal["snd-v", "snd-v-plain", "snd-vic", "snd-std", "seed-snd", "seed-rnd"]


@dataclasses.dataclass
class Args:
    # The defaults are those of `--preset snd-v`; another preset changes some. `--help` shows the comments.

    # experiment
    preset: Preset = "snd-v"  # snd-*: the paper's, snd-v-plain: SND-V's for other games; seed-*: author's
    seed: int = 1  # seed of the networks, the actions and the environments
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # auto: cuda or mps if there is one, else cpu
    bf16: bool = False  # bfloat16 in the policy and in the training of predictor and target
    runs_dir: str = "runs"  # where the run's folder is made
    checkpoint_interval: float = 5.0  # minutes between checkpoints; 0: one after every rollout
    resume: str | None = None  # a run's folder or checkpoint: go on, with its flags except those given anew
    evaluate: str | None = None  # a run's folder or checkpoint: play with it, do not train
    eval_episodes: int = 20  # episodes to play with --evaluate
    capture_video: bool = False  # with --evaluate: an mp4 of every episode, in the run's folder
    track: bool = False  # send the logs to Weights & Biases too; WANDB_PROJECT, WANDB_MODE=offline work

    # environment
    env_id: str = "MontezumaRevenge"  # the game; ALE/MontezumaRevenge-v5 means the same
    num_envs: int = 128  # parallel environments, N
    sticky_actions: float = 0.25  # probability that an emulator frame repeats the action before
    max_episode_steps: int = 4500  # steps after which an episode is cut; 4 frames a step
    rooms: Literal["ram", "image"] = "ram"  # image: also count what looks different, as the author did

    # PPO
    total_timesteps: float = 128_000_000  # environment steps, 4 frames each
    num_steps: int = 128  # steps of each environment in a rollout, T
    num_minibatches: int = 32  # minibatches in an epoch, each drawn with replacement
    update_epochs: int = 4  # epochs: num_minibatches * this updates a rollout
    learning_rate: float = 1e-4  # Adam's step size, policy, predictor and target
    gamma: float = 0.998  # discount of the extrinsic stream
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation, all streams
    clip_coef: float = 0.1  # PPO's clip range
    ent_coef: float = 0.001  # weight of the entropy bonus
    vf_coef: float = 1.0  # weight of the value losses, 0.5 * squared error for each head
    max_grad_norm: float | None = 0.5  # clip the norm of the policy's gradient; not of the other two
    policy_net: Literal["A", "B", "C", "D"] = "C"  # policies of the author's diagrams; D has attention
    critic_init: float = 0.1  # gain of the values' hidden layer

    # bonus
    int_coef: float = 1.0  # weight of the intrinsic advantage; 0: PPO, and the bonus is only logged
    ext_coef: float = 2.0  # weight of the extrinsic advantage; 0: exploration alone
    int_gamma: float = 0.99  # discount of the intrinsic and the third stream; of the filter of --int-norm
    int_episodic: bool = True  # let the intrinsic stream end with the episode (RND: no)
    int_scale: float = 0.5  # r_int = this * mean squared error of the 512 features
    int_clip: float | None = 1.0  # clip the intrinsic reward at this
    int_norm: bool = False  # divide it by the running std of its return (RND: yes); --int-scale then cancels
    entropy_coef_episodic: float = 0.0  # weight of a third stream: how far an episode's features spread
    entropy_memory: int = 64  # so many last frames of the episode are compared; the author's number is lost

    # target and predictor
    target_loss: Literal["contrastive", "vicreg", "stdim", "none"] = "contrastive"  # none: it stays random
    pair: Literal["same", "next"] = "same"  # what belongs together: a frame and itself, or and the next
    aug: Literal["none", "tile", "multi"] = "tile"  # tile: tiles left out; multi: coarse pixels, or pixels left out
    noise_prob: float = 1.0  # share of the frames that get noise, with --aug tile and multi
    target_batch: int = 64  # pairs in an update of the target
    mag_limit: float | None = None  # add to the target's loss what the features' magnitude has above this
    rnd_net: Literal["A", "B", "ST"] = "B"  # layers of target and predictor
    target_gain: float = 2**0.5  # gain of the target's initial weights
    predictor_gain: float = 2**0.5  # gain of the predictor's initial weights
    rnd_epochs: int = 4  # in how many of the --update-epochs target and predictor learn (paper: 1)
    update_proportion: float | None = None  # share the predictor learns from; None: 32 / num_envs, at most 1
    predictor_mask: Literal["element", "sample"] = "element"  # a share of the features, or of frames (RND)
    obs_norm: Literal["none", "mean", "meanstd"] = "meanstd"  # mean: x - mean; meanstd: (x - mean) / std, clip 1
    warmup_rollouts: int = 2  # rollouts of a random agent before training; they start the frames' statistics


PAPER = {  # what SND-VIC and SND-STD share: the paper's own code
    **{"pair": "next", "aug": "none", "target_batch": 512, "rnd_epochs": 1, "rnd_net": "ST"},
    **{"target_gain": 0.5, "update_proportion": 1.0, "obs_norm": "none"},
}
PRESETS = {  # what each differs in from the defaults
    "snd-v": {},
    "snd-v-plain": {"obs_norm": "none", "update_proportion": 1.0, "mag_limit": 200.0, "noise_prob": 0.5},
    "snd-vic": PAPER | {"target_loss": "vicreg", "int_scale": 0.25},
    # the paper's int_scale for PrivateEye and Solaris is 0.5, for Venture 0.25
    "snd-std": PAPER | {"target_loss": "stdim", "predictor_gain": 0.5, "int_scale": 1.0},
    # inferred: the author's one surviving SND setting has 0.256 and meanstd; his notes say the mean alone
    "seed-snd": {"aug": "multi", "rnd_net": "A", "int_scale": 0.256},
    # 256 * the mean of 512 squares is half their sum, the author's formula
    "seed-rnd": {"target_loss": "none", "rnd_net": "A", "obs_norm": "mean", "int_scale": 256.0},
}


# ------------------------------------------------------------------------------------------------ Environment

ROOM_BYTE = {"MontezumaRevenge-v5": 3, "Pitfall-v5": 1}  # where the RAM has the room's number


class AtariEnvs:
    """N copies of a game. The one place where auto-reset is dealt with.

    EnvPool resets a game on the step *after* the one that ended it: that step ignores its action, returns the
    first frames of the next episode and a reward of 0. It is not experience. `step` marks it with valid =
    False, and all but the count of steps leaves it out.
    """

    def __init__(self, args: Args, seeds: list[int]):
        self.pool = envpool.make(
            args.env_id,
            env_type="gymnasium",
            num_envs=args.num_envs,
            num_threads=min(args.num_envs, os.cpu_count() or 1),
            seed=seeds,
            max_episode_steps=args.max_episode_steps,
            repeat_action_probability=args.sticky_actions,
            episodic_life=False,
            img_height=96,
            img_width=96,
            # author: the frame stack is kept over resets, which is a mistake, here: 4 copies of the first frame;
            # author: maximum of two frames in colour, here: in grey, because EnvPool does so.
            noop_max=30,
            use_fire_reset=False,
        )
        self.num_actions = self.pool.action_space.n
        self.room_byte = ROOM_BYTE.get(args.env_id)
        self.done = np.zeros(args.num_envs, bool)  # (N,) the step before ended the episode
        self.stats = EpisodeStats(args.num_envs)
        self.pictures = Pictures(args.rooms == "image")

    def reset(self) -> np.ndarray:
        """First observations (N, 4, 96, 96) uint8, the newest frame last."""
        return self.pool.reset()[0]

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Plays actions (N,) int.

        Returns: observations (N, 4, 96, 96) uint8; rewards (N,), 1 or 0; done (N,) bool, the episode ends
        here; valid (N,) bool, False where the step was a reset.
        """
        obs, rewards, terminated, truncated, info = self.pool.step(actions)
        valid = ~self.done
        self.done = terminated | truncated  # the time limit counts as an end, as in the author's and the paper's code
        rooms = None if self.room_byte is None else info["ram"][:, self.room_byte]
        self.stats.add(rewards, self.done, valid, rooms)
        self.pictures.add(obs[0, 3])
        return obs, (rewards > 0).astype(np.float32), self.done, valid  # a loss of points counts as nothing


# --------------------------------------------------------------------------------------------------- Networks
def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (reference: every layer of every network)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


# channels, size and stride of each convolution; all end at 12 x 12 places
POLICY_NETS = {  # the author's diagrams, with the width of the layers that follow
    "A": (448, ((32, 8, 4), (64, 3, 2), (64, 3, 1))),
    "B": (800, ((64, 8, 4), (64, 3, 2), (128, 3, 1))),
    "C": (512, ((32, 3, 2), (64, 3, 2), (64, 3, 2), (128, 3, 1))),
    "D": (512, ((128, 8, 8),)),
}
RND_NETS = {  # A, B: the author's, who found features of ReLU too small; ST: the paper's, for STD and VIC
    "A": (nn.ELU, ((32, 8, 4), (64, 3, 2), (64, 3, 1))),
    "B": (nn.ELU, ((16, 3, 2), (32, 3, 2), (64, 3, 2), (64, 3, 1))),
    "ST": (nn.ReLU, ((32, 3, 2), (64, 3, 2), (64, 3, 2), (128, 3, 1))),
}


def convolutions(channels: int, shapes: tuple, activation: type, gain: float = 2**0.5) -> list[nn.Module]:
    """(B, channels, 96, 96) -> (B, C, 12, 12): convolutions of these shapes, each with its activation."""
    modules = []
    for out, size, stride in shapes:  # padded so that a stride of 2 makes 48 x 48 of 96 x 96
        layer = nn.Conv2d(channels, out, size, stride, padding=(size - stride + 1) // 2)
        modules += [init_layer(layer, gain), activation()]
        channels = out
    return modules


class Attention(nn.Module):
    """Self-attention over the tiles of a picture, then a residual 1 x 1 convolution (policy D)."""

    def __init__(self, channels: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, num_heads=1, batch_first=True)
        self.mix = init_layer(nn.Conv2d(channels, channels, 1))

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> the same."""
        tokens = inputs.flatten(2).transpose(1, 2)  # (B, H * W, C)
        attended = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        attended = attended.transpose(1, 2).reshape(inputs.shape)
        return attended + self.mix(attended).relu()


class Agent(nn.Module):
    """Policy and values, each with a hidden layer of its own. One value head a stream: `stream_coefs`."""

    def __init__(self, num_actions: int, args: Args):
        super().__init__()
        width, shapes = POLICY_NETS[args.policy_net]
        self.residual = args.policy_net == "A"
        layers = convolutions(4, shapes, nn.ReLU)
        if args.policy_net == "D":
            layers += [Attention(128), Attention(128)]
        layers += [nn.Flatten(), init_layer(nn.Linear(shapes[-1][0] * 12 * 12, width)), nn.ReLU()]
        if args.policy_net == "A":
            layers += [init_layer(nn.Linear(width, width)), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.policy_branch = init_layer(nn.Linear(width, width), gain=0.01)
        self.value_branch = init_layer(nn.Linear(width, width), gain=args.critic_init)
        self.policy_head = init_layer(nn.Linear(width, num_actions), gain=0.01)
        self.value_head = init_layer(nn.Linear(width, len(stream_coefs(args))), gain=0.01)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, 4, 96, 96) uint8 -> logits (B, num_actions), values (B, num_heads), float32."""
        inputs = obs.to(memory_format=torch.channels_last).float().div_(255)
        hidden = self.trunk(inputs)  # (B, width)
        policy = self.policy_branch(hidden).relu()
        value = self.value_branch(hidden).relu() + (hidden if self.residual else 0)
        with torch.autocast(obs.device.type, enabled=False):  # in bfloat16 numbers from 4 on are 0.03 apart
            return self.policy_head(policy.float()), self.value_head(value.float())


def rnd_layers(rnd_net: str, gain: float) -> list[nn.Module]:
    """One frame (B, 1, 96, 96) -> features (B, 512): layers of the target, and the predictor's first."""
    activation, shapes = RND_NETS[rnd_net]
    modules = convolutions(1, shapes, activation, gain)
    return [*modules, nn.Flatten(), init_layer(nn.Linear(shapes[-1][0] * 12 * 12, 512), gain)]


class SND(nn.Module):
    """The target, the predictor, and the statistics that normalise what they see and what they pay."""

    def __init__(self, args: Args, device: torch.device):
        super().__init__()
        N, gain = args.num_envs, args.predictor_gain
        self.target = nn.Sequential(*rnd_layers(args.rnd_net, args.target_gain))
        self.target.requires_grad_(args.target_loss != "none")
        self.predictor = nn.Sequential(
            *rnd_layers(args.rnd_net, gain),
            *(nn.ELU(), init_layer(nn.Linear(512, 512), gain)),
            *(nn.ELU(), init_layer(nn.Linear(512, 512), gain)),
        )
        if args.target_loss == "stdim":  # what compares a frame with places in the frame before
            self.global_to_local = init_layer(nn.Linear(512, 64), args.target_gain)
            self.local_to_local = init_layer(nn.Linear(64, 64), args.target_gain)
        self.obs_rms = RunningMoments((96, 96), device)
        self.return_rms = RunningMoments((), device)
        self.register_buffer("filtered", torch.zeros(N))  # (N,) the state of `reward_filter`
        if args.entropy_coef_episodic:  # where `episodic_spread` stands; a resume starts new episodes
            self.register_buffer("memory", torch.zeros(N, args.entropy_memory, 512), persistent=False)
            # (N,) the next frame is an episode's first
            self.register_buffer("starts", torch.ones(N, dtype=torch.bool), persistent=False)
        self.to(device)

    def target_parameters(self) -> list[nn.Parameter]:
        """What learns by the target's loss."""
        return [p for name, p in self.named_parameters() if not name.startswith("predictor")]


# ---------------------------------------------------------------------------- Normalisers, returns and losses
class RunningMoments(nn.Module):
    """Mean and variance of everything seen so far, in float64. Nothing is forgotten. No epsilon is added."""

    def __init__(self, shape: tuple[int, ...], device: torch.device):
        super().__init__()
        dtype = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        self.register_buffer("mean", torch.zeros(shape, dtype=dtype))
        self.register_buffer("var", torch.ones(shape, dtype=dtype))
        self.register_buffer("count", torch.tensor(1e-4, dtype=dtype))

    @torch.no_grad()
    def update(self, batch: Tensor, valid: Tensor) -> None:
        """Takes in batch (B, *shape), each row as often as valid (B,) says, a bool or a number (Chan et al. 1979)."""
        delta, weight = batch.to(self.mean.dtype) - self.mean, valid.to(self.mean.dtype)
        first, second = torch.tensordot(weight, delta, 1), torch.tensordot(weight, delta.square_(), 1)
        count = weight.sum()
        total = self.count + count
        self.mean += first / total
        self.var.copy_((self.var * self.count + second - first.square() / total) / total)
        self.count += count


def whiten(frames: Tensor, obs_rms: RunningMoments, obs_norm: str) -> Tensor:
    """Frames (B, 96, 96) uint8 -> (B, 1, 96, 96) float32, by `--obs-norm`; meanstd is clipped at 1 std."""
    inputs = frames.float()
    if obs_norm != "none":
        inputs = inputs.sub_(obs_rms.mean.float())
    if obs_norm == "meanstd":
        return inputs.div_(obs_rms.var.sqrt().float()).clamp_(-1, 1).unsqueeze(1)
    return inputs.div_(255).unsqueeze(1)


@torch.no_grad()
def features(network: nn.Module, frames: Tensor, obs_rms: RunningMoments, obs_norm: str) -> Tensor:
    """Frames (T, N, 96, 96) uint8 -> features (T, N, 512) of a network, some 1,024 frames at a time."""
    chunks = frames.split(max(1, 1024 // frames.shape[1]))
    return torch.cat([network(whiten(c.flatten(0, 1), obs_rms, obs_norm)).unflatten(0, c.shape[:2]) for c in chunks])


def episodic_spread(seen: Tensor, starts: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Reward of the third stream: how far apart the target's features of the episode's last K frames lie.

    The mean over D of the std over K. At an episode's start all K are its first, as in the author's code of 2022.
    Frames of rollouts before keep the features that the target gave them then.

    Args: seen (T, N, D), the features; starts (T, N), the frame is an episode's first; memory (N, K, D), those
    before. Returns: (T, N), the new memory.
    """
    spread = []
    for z, start in zip(seen.unsqueeze(2), starts[..., None, None], strict=True):  # (N, 1, D), (N, 1, 1)
        memory = torch.where(start, z, torch.cat([memory[:, 1:], z], 1))
        spread.append(memory.std(1, correction=0).mean(1))
    return torch.stack(spread), memory


def reward_filter(rewards: Tensor, valid: Tensor, gamma: float, state: Tensor) -> tuple[Tensor, Tensor]:
    """The return of past rewards, as future ones are unknown: F(t) = gamma * F(t-1) + r(t), per environment.

    It goes on over episode ends and from rollout to rollout (`state` (N,) is carried on). A step that is not
    valid leaves it as it is. The std of F stands for that of the return. Returns: F (T, N), the new state (N,).
    """
    filtered = []
    for reward, ok in zip(rewards, valid, strict=True):  # (N,), (N,)
        state = torch.where(ok, gamma * state + reward, state)
        filtered.append(state)
    return torch.stack(filtered), state


def gae(rewards: Tensor, values: Tensor, dones: Tensor, valid: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, eq. 16) for one stream.

        delta(t) = r(t) + gamma * V(t+1) * (1 - done(t)) - V(t)
        A(t)     = delta(t) + gamma * lambda * (1 - done(t)) * A(t+1)

    A reset step is passed over: what follows t is the next step that is valid. For a stream that does not
    stop at episode ends `dones` is all False. (If a rollout ends on a done step, such a stream looks ahead to
    the value of that episode's last frame, since the next episode's first is not there yet.)

    Args: rewards, dones, valid (T, N); values (T+1, N), the last row of what follows the last step.
    Returns: advantages (T, N), 0 at reset steps.
    """
    advantages = torch.zeros_like(rewards)
    advantage, next_value = torch.zeros_like(values[-1]), values[-1]
    for t in reversed(range(len(rewards))):
        not_done = (~dones[t]).float()
        delta = rewards[t] + gamma * next_value * not_done - values[t]
        advantage = torch.where(valid[t], delta + gamma * lam * not_done * advantage, advantage)
        next_value = torch.where(valid[t], values[t], next_value)
        advantages[t] = advantage * valid[t]
    return advantages


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean of x over the entries with valid True, of the same shape; 0 if there is none."""
    return (x * valid).sum() / valid.sum().clamp(min=1)


def augment(inputs: Tensor, aug: str, noise_prob: float) -> Tensor:
    """Frames as a network sees them (B, 1, 96, 96) -> the same, each damaged in its own way (author).

    tile   for half of the frames a tenth of all tiles is 0; their side is drawn once for the batch
    multi  half in pixels of 2 x 2, a quarter in pixels of 4 x 4, an eighth with a tenth of its pixels 0
    Both add noise between -0.2 and 0.2 to a share of the frames.
    """

    def chosen(share: float) -> Tensor:
        return torch.rand(len(inputs), 1, 1, 1, device=inputs.device) < share

    def without(side: int) -> Tensor:
        tiles = torch.rand(len(inputs), 1, 96 // side, 96 // side, device=inputs.device) >= 0.1
        return inputs * nn.functional.interpolate(tiles.float(), 96)

    if aug == "none":
        return inputs
    if aug == "tile":
        side = (1, 2, 4, 8, 12, 16)[int(torch.randint(6, ()))]
        inputs = torch.where(chosen(0.5), without(side), inputs)
    else:
        for scale, share in ((2, 0.5), (4, 0.25)):
            coarse = nn.functional.interpolate(nn.functional.avg_pool2d(inputs, scale), 96)
            inputs = torch.where(chosen(share), coarse, inputs)
        inputs = torch.where(chosen(0.125), without(1), inputs)
    return inputs + 0.4 * (torch.rand_like(inputs) - 0.5) * chosen(noise_prob)


def draw_pairs(experience: Tensor, args: Args) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of frames of a rollout o(0) to o(T): indices into its T * N + N frames.

    A pair belongs together (label 0): a frame and itself, or a frame and the next of the same episode. For
    the contrastive loss half of the pairs are any two frames (label 1).

    Args: experience (E,), indices of the steps that are no resets (a reset leads from one episode to the next).
    Returns: the first frames, the second frames, labels, each (target_batch,).
    """
    size, with_others = (args.target_batch,), args.target_loss == "contrastive"

    def draw() -> Tensor:
        return experience[torch.randint(len(experience), size, device=experience.device)]

    first = draw()
    together = first + args.num_envs if args.pair == "next" else first
    labels = (torch.rand(size, device=experience.device) < 0.5 * with_others).float()
    return first, torch.where(labels > 0, draw(), together), labels


def contrastive_loss(first: Tensor, second: Tensor, labels: Tensor) -> Tensor:
    """Features (B, D), labels (B,): the squared distance, a mean over D, is to be the label (author)."""
    return (labels - (first - second).square().mean(1)).square().mean()


def vicreg_terms(first: Tensor, second: Tensor) -> dict[str, Tensor]:
    """The features (B, D) of a pair are to agree; each is to vary over the batch, no two are to be correlated.

    Bardes et al. 2022 with the paper's weights, 1, 1 and 1/25. Returns: what adds up to the loss.
    """
    terms = {"invariance": (first - second).square().mean(), "variance": 0, "covariance": 0}
    for z in (first, second):
        terms["variance"] += (1 - (z.var(0) + 1e-4).sqrt()).relu().mean()
        covariance = z.T.cov()  # (D, D)
        off_diagonal = covariance.square().sum() - covariance.diagonal().square().sum()
        terms["covariance"] += off_diagonal / z.shape[1] / 25
    return terms


def stdim_terms(first: Tensor, second: Tensor, local: list[Tensor], snd: SND) -> dict[str, Tensor]:
    """Which frame came before? To be told from this frame's features, and from its features of each place.

    At each of P places the scores (P, B, B) rate, for each of B next frames, the B frames before; the right
    one is on the diagonal (Anand et al. 2019). Two more terms, the paper's, keep the scores small and the 512
    features of a frame spread out.

    Args: features (B, D) of a frame and the next; local, (B, C, H, W) of the places in each.
    Returns: what adds up to the loss.
    """
    places, next_places = (x.flatten(2).permute(2, 0, 1) for x in local)  # (P, B, C)
    right = torch.arange(len(first), device=first.device).repeat(len(places))  # (P * B,)
    terms = {"spread": -1e-4 * first.std(1).mean(), "logits": 0}
    queries = {"global": snd.global_to_local(second).expand(len(places), -1, -1)}  # (P, B, C)
    queries["local"] = snd.local_to_local(next_places)
    for name, query in queries.items():
        scores = query @ places.transpose(1, 2)  # (P, B, B)
        terms[name] = nn.functional.cross_entropy(scores.flatten(0, 1), right)
        terms["logits"] += 1e-4 * torch.linalg.matrix_norm(scores).mean()
    return terms


def target_loss(snd: SND, frames: Tensor, experience: Tensor, args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """The target's loss on pairs of the frames (T * N + N, 96, 96) uint8. Experience: see `draw_pairs`.

    Returns: the loss, and what to log. The magnitude is the sum of the mean squares of both frames' features.
    """
    *pairs, labels = draw_pairs(experience, args)
    pairs = [whiten(frames.index_select(0, x), snd.obs_rms, args.obs_norm) for x in pairs]
    pairs = [augment(x, args.aug, args.noise_prob) for x in pairs]  # (B, 1, 96, 96) each
    with torch.autocast(labels.device.type, torch.bfloat16, enabled=args.bf16):  # networks, not losses
        places = [snd.target[:6](x) for x in pairs]  # (B, 64, 12, 12) each, of 3 convolutions, for stdim
        first, second = (snd.target[6:](x).float() for x in places)  # (B, 512)
    if args.target_loss == "contrastive":
        terms = {"contrastive": contrastive_loss(first, second, labels)}
    elif args.target_loss == "vicreg":
        terms = vicreg_terms(first, second)
    else:
        terms = stdim_terms(first, second, [x.float() for x in places], snd)
    magnitude = first.square().mean() + second.square().mean()
    if args.mag_limit is not None:
        terms["limit"] = (magnitude - args.mag_limit).relu()
    loss = sum(terms.values())
    parts = {f"target_{name}": term for name, term in terms.items()} if len(terms) > 1 else {}
    return loss, {"target_loss": loss, "magnitude": magnitude, **parts}


def predictor_loss(predicted: Tensor, targets: Tensor, share: float, mask: str) -> Tensor:
    """Mean squared error (B, 512) over a random share of the elements, or of the samples."""
    size = predicted.shape if mask == "element" else (len(predicted), 1)
    kept = (torch.rand(size, device=predicted.device) < share).expand_as(predicted)
    return masked_mean((predicted - targets).square(), kept)


def stream_coefs(args: Args) -> dict[str, float]:
    """The streams of rewards, in the order of the value heads, and the weights of their advantages."""
    coefs = {"_int": args.int_coef, "_ext": args.ext_coef}
    return coefs | ({"_spread": args.entropy_coef_episodic} if args.entropy_coef_episodic else {})


def ppo_loss(logits: Tensor, values: Tensor, batch: dict[str, Tensor], args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, value losses and entropy of one minibatch (Schulman et al. 2017, eq. 7 and 9).

    Args: logits (B, A) and values (B, H) of the network being trained; batch: actions, logprobs, advantages, valid
    (B,) and returns (B, H) of the rollout.
    Returns: the loss, and what to log.
    """
    valid, advantages = batch["valid"], batch["advantages"]
    all_logprobs = logits.log_softmax(1)  # (B, A)
    logratio = all_logprobs.gather(1, batch["actions"][:, None]).squeeze(1) - batch["logprobs"]
    ratio = logratio.exp()
    clipped_ratio = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    policy_loss = masked_mean(-torch.minimum(advantages * ratio, advantages * clipped_ratio), valid)
    entropy = masked_mean(-(all_logprobs.exp() * all_logprobs).sum(1), valid)

    value_losses, coefs = {}, stream_coefs(args)
    for error, (stream, coef) in zip((values - batch["returns"]).square().unbind(1), coefs.items(), strict=True):
        # a stream that is turned off does not shape the features either
        value_losses[f"value_loss{stream}"] = 0.5 * masked_mean(error, valid) * (coef > 0)
    value_loss = sum(value_losses.values())
    loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy
    return loss, value_losses | {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": masked_mean(ratio - 1 - logratio, valid),
        "clipfrac": masked_mean(((ratio - 1).abs() > args.clip_coef).float(), valid),
    }


# --------------------------------------------------------------------------------- The steps of the algorithm
class Rollout(NamedTuple):
    """T steps of N environments. The last row of obs and values is what follows the last step."""

    obs: Tensor  # (T+1, N, 4, 96, 96) uint8
    actions: Tensor  # (T, N) int64
    logprobs: Tensor  # (T, N)
    values: Tensor  # (T+1, N, H) intrinsic, extrinsic, and the third stream's if it is on
    rewards: Tensor  # (T, N) extrinsic
    dones: Tensor  # (T, N) bool
    valid: Tensor  # (T, N) bool, False where the step was a reset


def empty_rollout(T: int, N: int, num_heads: int, device: torch.device) -> Rollout:
    """The storage of a rollout, written anew in every iteration."""
    with device:
        return Rollout(
            obs=torch.zeros((T + 1, N, 4, 96, 96), dtype=torch.uint8),
            actions=torch.zeros((T, N), dtype=torch.int64),
            logprobs=torch.zeros((T, N)),
            values=torch.zeros((T + 1, N, num_heads)),
            rewards=torch.zeros((T, N)),
            dones=torch.zeros((T, N), dtype=torch.bool),
            valid=torch.zeros((T, N), dtype=torch.bool),
        )


def forward(network: nn.Module, inputs: Tensor, args: Args) -> Tensor | tuple[Tensor, Tensor]:
    """The network's outputs, computed in bfloat16 with --bf16."""
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=args.bf16):
        return network(inputs)


def warm_up(envs: AtariEnvs, snd: SND, rollout: Rollout, args: Args, run: "Run") -> None:
    """A random agent gives the statistics of the frames something to start from."""
    steps = args.warmup_rollouts * args.num_steps * args.num_envs
    with Progress(steps, desc="random agent") as bar:
        while steps > 0 and not run.signal:
            obs, _, _, valid = envs.step(torch.randint(envs.num_actions, (args.num_envs,)).numpy())
            rollout.obs[-1] = torch.from_numpy(obs)
            snd.obs_rms.update(rollout.obs[-1, :, 3], torch.from_numpy(valid).to(rollout.obs.device))
            steps -= args.num_envs
            bar.update(args.num_envs)
    envs.stats.load_state_dict(None)  # not counted; reference: all games begin anew, here: they go on


@torch.no_grad()
def collect(envs: AtariEnvs, agent: Agent, rollout: Rollout, args: Args) -> None:
    """Plays T steps with the policy and writes them into the rollout."""
    obs, actions, logprobs, values, rewards, dones, valid = rollout
    obs[0] = obs[-1]
    for t in range(args.num_steps):
        logits, values[t] = forward(agent, obs[t], args)
        policy = Categorical(logits=logits, validate_args=False)
        actions[t] = policy.sample()
        logprobs[t] = policy.log_prob(actions[t])
        step = envs.step(actions[t].cpu().numpy())
        obs[t + 1], rewards[t], dones[t], valid[t] = map(torch.from_numpy, step)
    values[-1] = forward(agent, obs[-1], args)[1]


def intrinsic_rewards(snd: SND, rollout: Rollout, args: Args) -> dict[str, Tensor]:
    """The predictor's error, r_int and, if there is one, the third stream's spread, each (T, N).

    All with the statistics of the frames as they were. Then these take in the new frames.
    """
    frames = rollout.obs[:-1, :, 3]  # (T, N, 96, 96) before the step, as in the author's code (RND: after it)
    # never in bfloat16: its rounding could pass for novelty
    predicted = features(snd.predictor, frames, snd.obs_rms, args.obs_norm)  # (T, N, 512)
    targets = features(snd.target, frames, snd.obs_rms, args.obs_norm)
    error = (predicted - targets).square().mean(-1)
    intrinsic = args.int_scale * error
    if args.int_norm:
        discounted, snd.filtered = reward_filter(intrinsic, rollout.valid, args.int_gamma, snd.filtered)
        snd.return_rms.update(discounted.flatten(), rollout.valid.flatten())
        intrinsic = intrinsic / snd.return_rms.var.sqrt().float()
    bonus = {"error": error, "intrinsic_reward": intrinsic.clamp(max=args.int_clip or math.inf)}
    if args.entropy_coef_episodic:
        starts = torch.cat([snd.starts[None], ~rollout.valid[:-1]])  # (T, N) a reset shows a first frame
        snd.starts = ~rollout.valid[-1]
        spread, snd.memory = episodic_spread(targets, starts, snd.memory)
        bonus["spread"] = spread.clamp(max=1)
    if args.obs_norm != "none":
        for frame, valid in zip(frames, rollout.valid, strict=True):
            snd.obs_rms.update(frame, valid)
    return bonus


def advantages_and_returns(rollout: Rollout, bonus: dict[str, Tensor], args: Args) -> tuple[Tensor, Tensor]:
    """A = int_coef * A_int + ext_coef * A_ext (T, N), and what each value head is to learn (T, N, H)."""
    rewards, dones, values = rollout.rewards, rollout.dones, rollout.values
    int_dones = dones if args.int_episodic else torch.zeros_like(dones)
    streams = [(bonus["intrinsic_reward"], int_dones, args.int_gamma), (rewards, dones, args.gamma)]
    if "spread" in bonus:
        streams.append((bonus["spread"], dones, args.int_gamma))
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(values[:-1])
    for head, ((r, ends, gamma), coef) in enumerate(zip(streams, stream_coefs(args).values(), strict=True)):
        v = values[..., head]  # (T+1, N)
        stream_advantages = gae(r, v, ends, rollout.valid, gamma, args.gae_lambda)
        returns[..., head] = stream_advantages + v[:-1]
        advantages += coef * stream_advantages
    return advantages, returns


def descend(loss: Tensor, optimizer: Adam, max_grad_norm: float | None = None) -> Tensor:
    """One step of Adam. Returns the norm of the gradient, before the clip."""
    optimizer.zero_grad()
    loss.backward()
    norm = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], max_grad_norm or math.inf)
    optimizer.step()
    return norm


def update(
    agent: Agent, snd: SND, optimizers: dict, rollout: Rollout, advantages: Tensor, returns: Tensor, args: Args
) -> dict[str, Tensor]:
    """On minibatches, drawn with replacement (author), all three networks learn in turn. Returns means."""
    N, M, B = args.num_envs, args.num_minibatches, args.num_envs * args.num_steps
    data = {key: getattr(rollout, key)[: args.num_steps] for key in ("obs", "actions", "logprobs", "valid")}
    data |= {"advantages": advantages, "returns": returns}
    data = {key: x.flatten(0, 1) for key, x in data.items()}  # each (B, ...)
    newest = rollout.obs[:, :, 3].flatten(0, 1)  # (B + N, 96, 96), for the target's pairs
    experience = data["valid"].nonzero().squeeze(1)  # (E,) steps that were no resets
    share = args.update_proportion or min(1.0, 32 / N)
    logged: dict[str, list[Tensor]] = collections.defaultdict(list)
    for k in range(args.update_epochs * M):
        drawn = experience[torch.randint(len(experience), (B // M,), device=newest.device)]
        batch = {key: x.index_select(0, drawn) for key, x in data.items()}  # (B/M, ...); x[drawn] is slower
        loss, metrics = ppo_loss(*forward(agent, batch["obs"], args), batch, args)
        metrics["grad_norm"] = descend(loss, optimizers["agent"], args.max_grad_norm)
        if k < args.rnd_epochs * M:
            if args.target_loss != "none":
                loss, parts = target_loss(snd, newest, experience, args)
                descend(loss, optimizers["target"])
                metrics |= parts
            inputs = whiten(batch["obs"][:, 3], snd.obs_rms, args.obs_norm)
            with torch.no_grad():
                targets = forward(snd.target, inputs, args).float()  # (B/M, 512)
            predicted = forward(snd.predictor, inputs, args).float()
            metrics["predictor_loss"] = predictor_loss(predicted, targets, share, args.predictor_mask)
            descend(metrics["predictor_loss"], optimizers["predictor"])
        for key, value in metrics.items():
            logged[f"losses/{key}"].append(value.detach())
    return {key: sum(values) / len(values) for key, values in logged.items()}


# --------------------------------------------------------------------------------------------------- Training
def train(args: Args, device: torch.device, path: pathlib.Path | None, saved: dict | None) -> int:
    """Trains to the end or until a signal, on from what was `saved` in file `path`. Returns the exit status."""
    T, N, H = args.num_steps, args.num_envs, len(stream_coefs(args))
    per_iteration, step = T * N, saved["step"] if saved else 0  # environment steps
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    rollout = empty_rollout(T, N, H, device)
    seeds = np.random.SeedSequence((args.seed, step)).generate_state(N) >> 1  # others after a resume
    envs = AtariEnvs(args, seeds.tolist())
    agent = Agent(envs.num_actions, args).to(device, memory_format=torch.channels_last)
    snd = SND(args, device).to(memory_format=torch.channels_last)
    parameters = {"agent": agent.parameters(), "predictor": snd.predictor.parameters()}
    parameters |= {"target": snd.target_parameters()} if args.target_loss != "none" else {}
    optimizers = {key: Adam(x, lr=args.learning_rate, eps=1e-8, fused=True) for key, x in parameters.items()}
    # what a checkpoint holds: modules, or what has a state_dict of tensors and plain Python
    learner = {"agent": agent, "snd": snd, "stats": envs.stats, "pictures": envs.pictures}
    learner |= {f"{key}_optimizer": optimizer for key, optimizer in optimizers.items()}
    with contextlib.closing(Run(args, learner, rollout, path, saved)) as run:
        rollout.obs[-1] = torch.from_numpy(envs.reset())
        if not saved:
            warm_up(envs, snd, rollout, args, run)
        run.bar, run.logged = run.stack.enter_context(Progress(args.total_timesteps, step)), time.monotonic()
        while step + per_iteration <= args.total_timesteps and not run.signal:
            collect(envs, agent, rollout, args)
            bonus = intrinsic_rewards(snd, rollout, args)
            advantages, returns = advantages_and_returns(rollout, bonus, args)
            scalars = update(agent, snd, optimizers, rollout, advantages, returns, args)
            step += per_iteration
            run.log(step, scalars | diagnostics(agent, snd, rollout, bonus, returns, args))
            run.save()
        return run.finish()


# ----------------------------------------------- Machinery (alike in all scripts; skip it on a first reading)
class UserError(Exception):
    """Something that the user can put right: printed as one line, exit status 2."""


def check_args(args: Args) -> None:
    """Raises UserError at the first flag whose value makes no sense, before anything is created."""
    rollout = args.num_envs * args.num_steps
    counts = "num_envs num_minibatches update_epochs rnd_epochs target_batch max_episode_steps eval_episodes"
    weights = "ent_coef vf_coef int_coef ext_coef entropy_coef_episodic"
    gains = "critic_init target_gain predictor_gain int_scale"
    learns, alike = args.target_loss != "none", args.target_loss in ("vicreg", "stdim") and args.aug == "none"
    for flags, holds, rule in (
        (counts, lambda x: 1 <= x < 2**31, "at least 1 and below 2^31"),
        ("num_steps entropy_memory", lambda x: 2 <= x < 2**31, "at least 2 and below 2^31"),
        ("seed warmup_rollouts checkpoint_interval", lambda x: 0 <= x < 2**63, "at least 0 and below 2^63"),
        (weights, lambda x: 0 <= x < math.inf, "at least 0 and finite"),
        ("gamma int_gamma gae_lambda sticky_actions noise_prob", lambda x: 0 <= x <= 1, "in [0, 1]"),
        (f"learning_rate clip_coef {gains}", lambda x: 0 < x < math.inf, "a positive number"),
        ("max_grad_norm int_clip mag_limit", lambda x: 0 < x < math.inf, "a positive number"),
        ("update_proportion", lambda x: 0 < x <= 1, "in (0, 1]"),
        ("num_minibatches", lambda x: rollout % x == 0, f"a divisor of a rollout, {rollout} steps"),
        ("total_timesteps", lambda x: rollout <= x < 2**63, f"at least one rollout, {rollout} steps, and below 2^63"),
        ("rnd_epochs", lambda x: x <= args.update_epochs, f"at most --update-epochs {args.update_epochs}"),
        ("target_batch", lambda x: x <= rollout or not learns, f"at most a rollout, {rollout} steps"),
        ("target_batch", lambda x: x > 1 or args.target_loss != "vicreg", "at least 2 for vicreg's variance"),
        ("pair", lambda x: x == "next" or not alike, "next with --aug none: a frame would be compared with itself"),
        ("ext_coef", lambda x: x or args.int_coef or args.entropy_coef_episodic, "above 0 with --int-coef 0"),
        ("evaluate", lambda _: args.resume is None, "without --resume"),
        ("num_envs", lambda _: os.environ.get("WORLD_SIZE") in (None, "1"), "run without torchrun"),
        ("device", lambda x: x == "auto" or getattr(torch, x).is_available(), "on this machine, and in this PyTorch"),
        ("track", lambda x: not x or importlib.util.find_spec("wandb"), "with wandb: pip install wandb"),
    ):
        for flag in flags.split():
            if (value := getattr(args, flag)) is not None and not holds(value):
                raise UserError(f"--{flag.replace('_', '-')} {value}: must be {rule}")


def resolve_env_id(name: str) -> str:
    """EnvPool's id for any spelling of a game, e.g. `MontezumaRevenge-v5` for `ALE/MontezumaRevenge-v5`."""
    games = {x.replace("_", ""): "".join(map(str.capitalize, x.split("_"))) + "-v5" for x in atari_game_list}
    key = name.lower().removeprefix("ale/").removesuffix("-v5").replace("_", "")
    if key in games:
        return games[key]
    stem = re.sub(r"(-ram)?(noframeskip|deterministic)?(-v\d+)?$", "", key)  # without what other versions add
    hints = [games[match] for match in difflib.get_close_matches(stem, games, n=1 if stem in games else 3)]
    hint = f"did you mean {' or '.join(hints)}?" if hints else "this script plays Atari games"
    raise UserError(f"--env-id {name}: no such game; {hint}")


class EpisodeStats:
    """Returns and lengths of episodes, and the rooms they came to in the games that tell their rooms."""

    def __init__(self, num_envs: int):
        self.returns, self.lengths = np.zeros(num_envs), np.zeros(num_envs, int)  # (N,) of the episodes under way
        self.rooms = np.zeros((num_envs, 256), bool)  # (N, 256) likewise
        self.load_state_dict(None)

    def load_state_dict(self, state: dict | None) -> None:
        """Takes over what a checkpoint says of past episodes; None forgets them."""
        self.returns[:], self.lengths[:], self.rooms[:] = 0, 0, False
        state = state or {"recent": [], "visited": [], "rooms_best": 0}
        self.episodes: list[tuple[float, int]] = []  # (unclipped return, length) since the last log
        self.recent = collections.deque(state["recent"], maxlen=100)  # the last returns
        self.waiting = np.ones(len(self.returns), bool)  # (N,) has ended no episode yet
        self.visited = set(state["visited"])  # the rooms that any environment has been in
        self.announced = set(self.visited)
        self.rooms_best = state["rooms_best"]  # the most rooms in one episode

    def state_dict(self) -> dict:
        return {"recent": [*self.recent], "visited": [*self.visited], "rooms_best": self.rooms_best}

    def add(self, rewards: np.ndarray, done: np.ndarray, valid: np.ndarray, room: np.ndarray | None) -> None:
        """Takes in a step of all environments, each argument (N,)."""
        self.returns += rewards * valid
        self.lengths += valid
        if room is not None:
            self.rooms[valid, room[valid]] = True
            self.visited.update(room[valid].tolist())
            self.rooms_best = max(self.rooms_best, int(self.rooms.sum(1).max()))
        for i in np.flatnonzero(done & valid):
            self.episodes.append((float(self.returns[i]), int(self.lengths[i])))
            self.returns[i], self.lengths[i], self.rooms[i], self.waiting[i] = 0, 0, False, False

    def scalars(self, step: int) -> dict[str, float]:
        """What to log of the episodes since the last call. Says which rooms are new."""
        episodes, self.episodes = self.episodes, []
        if not self.waiting.any():  # before that, only the short ones have ended
            self.recent.extend(score for score, _ in episodes)
        for room in sorted(self.visited - self.announced):
            tqdm.write(f"room {room} seen for the first time, by step {step:,}")
        self.announced = set(self.visited)
        rooms = {"rnd/rooms_visited": len(self.visited), "rnd/rooms_best_episode": self.rooms_best}
        scalars = rooms if self.visited else {}
        if episodes:
            scalars["charts/episodic_return"], scalars["charts/episodic_length"] = np.mean(episodes, axis=0)
        if len(self.recent) == self.recent.maxlen:
            scalars["charts/score"] = np.mean(self.recent)
        return scalars

    def __str__(self) -> str:
        rooms = f", rooms {len(self.visited)} (best {self.rooms_best})" if self.visited else ""
        return f"return {np.mean(self.recent):.1f}{rooms}" if self.recent else f"return -{rooms}"


class Pictures:
    """The author's count of rooms, for --rooms image: pictures that differ, of environment 0, the warm-up's too."""

    def __init__(self, on: bool):
        self.on, self.steps, self.known = on, 0, []  # known: at most 100 frames (96, 96) uint8

    def load_state_dict(self, state: dict) -> None:
        self.known = [*state["known"].numpy()]

    def state_dict(self) -> dict:
        return {"known": torch.from_numpy(np.array(self.known, np.uint8))}

    def add(self, frame: np.ndarray) -> None:
        """Every 32nd frame (96, 96) is a new room if its mean squared distance to all others is above 0.01."""
        if self.on and self.steps % 32 == 0 and len(self.known) < 100:
            distances = (np.square(frame / 255.0 - other / 255.0).mean() for other in self.known)
            if all(distance > 0.01 for distance in distances):
                self.known.append(frame.copy())
        self.steps += 1


@torch.no_grad()
def diagnostics(
    agent: Agent, snd: SND, rollout: Rollout, bonus: dict[str, Tensor], returns: Tensor, args: Args
) -> dict[str, Tensor]:
    """What to log beside the means of the update. The largest logit shows a policy that has diverged."""
    scalars = {f"rnd/{name}": masked_mean(x, rollout.valid) for name, x in bonus.items()}
    scalars["losses/max_logit"] = agent(rollout.obs[-1])[0].abs().max()
    if args.int_norm:
        scalars["rnd/intrinsic_return_std"] = snd.return_rms.var.sqrt().float()
    for head, suffix in enumerate(stream_coefs(args)):
        targets, valid = returns[..., head], rollout.valid
        errors = targets - rollout.values[:-1, :, head]  # the stream's advantages
        unexplained = errors[valid].var(correction=0) / targets[valid].var(correction=0)  # NaN: 0 / 0
        scalars[f"losses/explained_variance{suffix}"] = (1 - unexplained).clamp(min=-1)
        scalars[f"losses/advantage_rms{suffix}"] = masked_mean(errors.square(), valid).sqrt()
    return scalars


class Console:
    """A stream that cannot fail: a closed pipe, a dead terminal or a poor code page is never worth a run."""

    def __init__(self, stream: io.TextIOBase | None):
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115  (None: it was closed before the start)
        with contextlib.suppress(AttributeError, ValueError):  # a notebook's, one that is closed
            self.stream.reconfigure(errors="replace")

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError, RuntimeError):  # the last: a signal's line inside another one
            try:
                print(text, end="", file=self.stream, flush=True)
            except OSError:  # nobody reads it: from now on, nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())

    def __getattr__(self, name: str) -> object:
        return getattr(self.stream, name)


class Progress(tqdm):
    """A bar on a terminal, elsewhere a line every 10 seconds: percent, steps, time, rate, status."""

    def __init__(self, total: int, initial: int = 0, desc: str | None = None):
        style = {"unit": " steps", "unit_scale": True, "smoothing": 0.02, "miniters": 1}
        if not sys.stderr.isatty():
            style |= {"bar_format": "{l_bar} {r_bar}", "mininterval": 10, "file": io.StringIO()}
            self.display = lambda **_: print(str(self).replace("|", ""))  # what tqdm calls to show itself
        super().__init__(total=total, initial=initial, desc=desc, **style)


class Run:
    """What goes on around the loop: the run's folder, logs, checkpoints, signals, progress."""

    def __init__(self, args: Args, learner: dict, rollout: Rollout, path: pathlib.Path | None, saved: dict | None):
        self.args, self.learner, self.stats = args, learner, learner["stats"]
        self.step, self.best_score, self.seconds, self.folder = 0, -math.inf, 0.0, pathlib.Path()
        if saved:
            restore(learner, path, saved)
            self.step, self.best_score, self.seconds = saved["step"], saved["best_score"], saved["seconds"]
        self.stack = contextlib.ExitStack()  # what to undo at the end
        # from a copy, from best.pt or with another environment it goes on in a new folder
        same = saved and path.name == "latest.pt" and saved["args"]["env_id"] == args.env_id
        self.open_folder(path.parent if same else None)
        self.introduce(rollout)
        self.signal = 0
        for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
                with contextlib.suppress(ValueError):  # in a thread, which gets no signals
                    self.stack.callback(signal.signal, number, signal.signal(number, self.receive))
        self.close = self.stack.close  # puts everything back as it was before the run
        self.started = self.logged = self.saved = time.monotonic()

    def open_folder(self, folder: pathlib.Path | None) -> None:
        """Makes the run's folder, or takes `folder`, of a run that goes on. No other process may write into it."""
        args, now = self.args, datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        script = pathlib.Path(globals().get("__file__", "notebook")).stem
        self.folder = folder or pathlib.Path(args.runs_dir) / f"{args.env_id}__{script}__{args.seed}__{now}"
        try:
            self.folder.mkdir(parents=True, exist_ok=folder is not None)
            self.stack.enter_context(filelock.FileLock(self.folder / "lock", timeout=0))
            if args.track:
                import wandb

                name = self.folder.resolve().name
                wandb.init(id=name, name=name, resume="allow", config=vars(args), sync_tensorboard=True)
                self.stack.callback(wandb.finish)
            self.stack.enter_context(contextlib.suppress(OSError))  # a disk that is full at the end
            self.writer = self.stack.enter_context(SummaryWriter(str(self.folder), purge_step=self.step + 1))
        except filelock.Timeout:
            raise UserError(f"{self.folder} belongs to a run that is going on") from None
        except OSError as error:
            raise UserError(f"cannot write into {self.folder}: {error.strerror or error}") from None

    def introduce(self, rollout: Rollout) -> None:
        """Says what is about to happen, and puts flags, versions and commit into the logs."""
        args, device = self.args, rollout.obs.device
        facts = {x.__name__: x.__version__ for x in (torch, envpool, gym, np)}
        facts |= {"python": sys.version.split()[0], "commit": "unknown", **vars(args)}
        with contextlib.suppress(OSError, subprocess.CalledProcessError, NameError):  # no git, no file
            shutil.copy(__file__, self.folder)  # a copy that was changed is in no commit
            describe = ["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty"]
            facts["commit"] = subprocess.check_output(describe, text=True, stderr=subprocess.DEVNULL).strip()
        table = "\n".join(f"|{key}|{value}|" for key, value in {"name": "value", "-": "-", **facts}.items())
        self.writer.add_text("hyperparameters", table, self.step)
        networks = {"agent": self.learner["agent"], **dict(self.learner["snd"].named_children())}
        sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        print(f"device       {device} ({name})")
        print(f"environment  {args.env_id} x {args.num_envs}")
        print(f"parameters   {', '.join(f'{name} {size:,}' for name, size in sizes.items() if size)}")
        print(f"preset       {args.preset}, target loss {args.target_loss}")
        print(f"rollout      {sum(x.nbytes for x in rollout) / 1e6:,.1f} MB")
        print(f"folder       {self.folder}")

    def receive(self, number: int, _frame: object) -> None:
        """Takes note of a signal. A second Ctrl-C ends the process at once."""
        if not self.signal:
            print("\nstopping after this iteration; Ctrl-C again: at once")
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        self.signal = self.signal or number

    def log(self, step: int, scalars: dict[str, Tensor]) -> None:
        """Logs, in one transfer from the device, and moves the bar. Raises at a NaN."""
        scalars = dict(zip(scalars, torch.stack([*scalars.values()]).tolist(), strict=True))
        now = time.monotonic()
        scalars |= self.stats.scalars(step) | {"charts/SPS": (step - self.step) / (now - self.logged)}
        if self.args.rooms == "image":
            scalars["rnd/rooms_by_image"] = len(self.learner["pictures"].known)
        scalars["charts/learning_rate"] = self.learner["agent_optimizer"].param_groups[0]["lr"]
        for key, value in scalars.items():
            if not math.isfinite(value) and "explained_variance" not in key:  # NaN if all are equal
                last = self.folder / "latest.pt"
                where = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
                raise FloatingPointError(f"{key} is {value} at step {step:,}: stopped; {where}")
            self.writer.add_scalar(key, value, step)
        self.bar.set_postfix_str(f"{self.stats}, r_int {scalars['rnd/intrinsic_reward']:.4f}", refresh=False)
        self.bar.update(step - self.step)
        self.step, self.logged = step, now

    def save(self, now: bool = False) -> None:
        """If it is time, or now: writes latest.pt, and best.pt if the last returns are the best yet."""
        if not (now or time.monotonic() - self.saved >= 60 * self.args.checkpoint_interval):
            return
        state = {name: part.state_dict() for name, part in self.learner.items()}
        state["rng"] = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self.saved, names, recent = time.monotonic(), ["latest.pt"], self.stats.recent
        if len(recent) == recent.maxlen and np.mean(recent) > self.best_score:
            names, self.best_score = ["latest.pt", "best.pt"], float(np.mean(recent))
        state |= {"args": vars(self.args) | {"resume": None}, "step": self.step, "best_score": self.best_score}
        state["seconds"] = self.seconds + self.saved - self.started
        torch.save(state, buffer := io.BytesIO())
        for name in names:
            temporary = self.folder / f"{name}.{os.getpid()}.tmp"
            try:  # at any moment there is a whole file, the old one or the new one
                with open(temporary, "wb") as file:
                    file.write(buffer.getbuffer())
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.folder / name)
            except OSError as error:
                temporary.unlink(missing_ok=True)
                raise OSError(f"cannot write {self.folder / name} ({error.strerror})") from None

    def finish(self) -> int:
        """Saves and says what there is. Returns the exit status."""
        if self.step:
            self.save(now=True)
        self.bar.close()
        took = tqdm.format_interval(self.seconds + time.monotonic() - self.started)
        print(f"{self.stats}, {self.step:,} steps in {took}, folder {self.folder}")
        if self.signal and self.step:
            print(f"resume with: {shlex.join(['python', sys.argv[0], '--resume', str(self.folder)])}")
        return 128 + self.signal if self.signal else 0


@contextlib.contextmanager
def reading(path: pathlib.Path) -> Iterator[None]:
    """Whatever goes wrong inside is the fault of the checkpoint."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[-1].strip()
        raise UserError(f"{path} is damaged or does not fit script and flags ({reason})") from None


def load_checkpoint(source: str) -> tuple[pathlib.Path, dict]:
    """The checkpoint in a run's folder, or that file: its path and what it holds."""
    path = pathlib.Path(os.path.expanduser(source))
    path = path / "latest.pt" if path.is_dir() else path
    if not (source and path.is_file()):
        raise UserError(f"there is no checkpoint {path}")
    with reading(path):
        if zipfile.ZipFile(path).testzip():
            raise ValueError("a checksum is wrong")
        saved = torch.load(path, map_location="cpu", weights_only=True)
        defaults = vars(Args())
        if others := sorted(saved["args"].keys() ^ defaults.keys()):
            print(f"note: {path} is of another version, which differs in the flags {', '.join(others)}")
        saved["args"] = {flag: saved["args"].get(flag, default) for flag, default in defaults.items()}
    return path, saved


def restore(learner: dict, path: pathlib.Path, saved: dict) -> None:
    """Puts everything where it was when the checkpoint was written."""
    with reading(path):
        filtered, N = saved["snd"]["filtered"], len(learner["snd"].filtered)
        saved["snd"]["filtered"] = filtered[torch.arange(N) % len(filtered)]  # --num-envs may be another
        for name, part in learner.items():
            if isinstance(part, Adam):
                saved[name]["param_groups"] = part.state_dict()["param_groups"]  # as the flags
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"][0])
        if torch.cuda.is_initialized() and saved["rng"][1] is not None:
            torch.cuda.set_rng_state(saved["rng"][1])


# ------------------------------------------------------------------------------------------------- Evaluation
def make_evaluation_env(args: Args) -> gym.Env:
    """The game in ale-py, one copy: the same frames and RAM as EnvPool's, and it can be drawn in colour."""
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale_id = next(name for name in gym.registry if name.lower() == f"ale/{args.env_id}".lower())
    options = {"frameskip": 1, "repeat_action_probability": args.sticky_actions, "render_mode": "rgb_array"}
    env = gym.make(ale_id, max_num_frames_per_episode=None, **options)  # the time limit is evaluate's
    env = gym.wrappers.AtariPreprocessing(env, noop_max=30, frame_skip=4, screen_size=96)
    return gym.wrappers.FrameStackObservation(env, 4)


@torch.no_grad()
def evaluate(args: Args, device: torch.device, path: pathlib.Path, saved: dict) -> None:
    """Plays whole games with a checkpoint's policy, actions drawn as in training. Prints unclipped returns."""
    env = make_evaluation_env(args)
    agent = Agent(env.action_space.n, args).to(device)
    with reading(path):
        agent.load_state_dict(saved["agent"])
    print(f"{path}, step {saved['step']:,}: {args.eval_episodes} episodes")
    torch.manual_seed(args.seed)
    seeds = np.random.SeedSequence(args.seed, spawn_key=(1,)).generate_state(args.eval_episodes) >> 1
    returns, rooms = [], []
    for episode, seed in enumerate(seeds.tolist()):
        video = path.parent / "videos" / f"{args.env_id}_{path.stem}_episode{episode}.mp4"
        film = contextlib.nullcontext()
        if args.capture_video:
            video.parent.mkdir(exist_ok=True)
            film = imageio.get_writer(video, fps=15, macro_block_size=2)
        with film as writer:
            (obs, _), score, visited = env.reset(seed=seed), 0.0, set()
            for _ in range(args.max_episode_steps):
                logits, _ = agent(torch.from_numpy(obs)[None].to(device))
                obs, reward, terminated, _, _ = env.step(int(Categorical(logits=logits).sample()))
                score += float(reward)
                if args.env_id in ROOM_BYTE:
                    visited.add(int(env.unwrapped.ale.getRAM()[ROOM_BYTE[args.env_id]]))
                if writer:
                    writer.append_data(env.render().repeat(3, axis=0).repeat(3, axis=1))  # (630, 480, 3)
                if terminated:
                    break
        returns.append(score)
        rooms.append(len(visited))
        print(f"episode {episode}: return {score:g}{f', rooms {sorted(visited)}' if visited else ''}")
    error = f" +- {np.std(returns, ddof=1) / len(returns) ** 0.5:.1f}" if len(returns) > 1 else ""
    print(f"return {np.mean(returns):.1f}{error} (mean, standard error), best {max(returns):g}", end="")
    print(f", rooms {np.mean(rooms):.1f}, most {max(rooms)}" if any(rooms) else "")


# ------------------------------------------------------------------------------------------------ Entry point
def parse(argv: list[str] | None) -> tuple[Args, pathlib.Path | None, dict | None]:
    """The flags, with --resume or --evaluate the run's where none is given anew; and its checkpoint."""
    args, path, saved = tyro.cli(Args, args=argv, description=__doc__), None, None
    was = Args(preset=args.preset, **PRESETS[args.preset])
    if (source := args.evaluate if args.resume is None else args.resume) is not None:
        path, saved = load_checkpoint(source)
        was = Args(**saved["args"])
        if args.resume is None:  # an evaluation needs nothing that only training needs
            was = dataclasses.replace(was, device="auto", track=False)
    args = tyro.cli(Args, args=argv, default=was)
    if saved and args.preset != was.preset:
        raise UserError(f"{path} is of a run with --preset {was.preset}; another preset is for a new run")
    check_args(args)
    args.env_id, args.runs_dir = resolve_env_id(args.env_id), os.path.expanduser(args.runs_dir)
    args.total_timesteps = int(args.total_timesteps)
    for flag, value in vars(args).items() if args.resume else ():
        if value != getattr(was, flag) and flag != "resume":
            print(f"changed      --{flag.replace('_', '-')} from {getattr(was, flag)} to {value}")
    if args.resume and args.env_id != was.env_id:  # scores of another game say nothing
        saved["stats"], saved["best_score"] = None, -math.inf
        saved["pictures"] = {"known": torch.empty(0, 96, 96, dtype=torch.uint8)}
    if args.resume and saved["step"] + args.num_envs * args.num_steps > args.total_timesteps:
        raise UserError(f"{path} has all of its {saved['step']:,} steps; ask for more with --total-timesteps")
    return args, path, saved


def main(argv: list[str] | None = None) -> int:
    """Trains or evaluates. Returns the exit status: 0, 1 failed, 2 wrong use, 128 + a signal's number."""
    if sys.platform == "linux":
        # Keep freed memory, or glibc asks the kernel for each activation anew, page by page, and updates on a
        # CPU take much longer. The codes are M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD.
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20)):
            ctypes.CDLL(None).mallopt(option, value)
    with contextlib.redirect_stdout(Console(sys.stdout)), contextlib.redirect_stderr(Console(sys.stderr)):
        try:
            args, path, saved = parse(argv)
            auto = torch.accelerator.current_accelerator(check_available=True) or "cpu"
            device = torch.device(auto if args.device == "auto" else args.device)
            if args.evaluate is not None:
                evaluate(args, device, path, saved)
                return 0
            return train(args, device, path, saved)
        except KeyboardInterrupt:
            return 130
        except (UserError, FloatingPointError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not re.search("alloc|of memory|calculation", str(error)):
                raise  # a mistake in this script: show where
            print(f"error: {(str(error) or repr(error)).splitlines()[0]}", file=sys.stderr)
            return 2 if isinstance(error, UserError) else 1


if __name__ == "__main__":
    sys.exit(main())
