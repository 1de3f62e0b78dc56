# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "ale-py==0.12.1", "envpool==1.2.5",
#   "opencv-python-headless==5.0.0.93", "imageio==2.38.1", "imageio-ffmpeg==0.8.1", "tyro==1.0.17",
#   "tensorboard==2.21.0", "tqdm==4.70.1", "filelock==4.3.1"
# ]
# ///
"""PPO with Random Network Distillation (RND) on Atari, in one file.

Paper: Burda, Edwards, Storkey, Klimov (2018), Exploration by Random Network Distillation, arXiv:1810.12894.
Constants are the paper's, else those of its authors' code, the reference. Departures are named.

A random network f, the target, is never trained. A second network g, the predictor, learns to agree with it
on the frames that the agent sees. Where they still disagree, the agent has seldom been; that is rewarded:

    r_int(t) = |g(o(t+1)) - f(o(t+1))|^2 / 512      intrinsic reward of the step from o(t) to o(t+1)
    A        = int_coef * A_int + ext_coef * A_ext  two value heads, two advantages, one policy (PPO)

Four things make it work:
  1. The bonus has its own value head, discounts faster (0.99 against 0.999) and does not end with the episode:
     a death costs only the way back to where something is new, so the agent is not deterred by dying.
  2. Frames are whitened pixel by pixel with running statistics and clipped at 5 std. Without it a random target
     hardly tells one room from the next.
  3. The bonus is divided by the running std of its own discounted return, so one coefficient fits all games.
  4. The predictor learns from a quarter of each batch at 128 environments, so that with more of them it does
     not learn faster (A.4).

Three commands, to train, to resume and to evaluate:
    python ppo_rnd_atari.py --env-id MontezumaRevenge
    python ppo_rnd_atari.py --resume runs/RUN
    python ppo_rnd_atari.py --evaluate runs/RUN --eval-episodes 20 --capture-video

What to expect: the paper's recurrent agents score 8,152 on Montezuma's Revenge after 2 billion frames (1 step
= 4 frames). The policy here is the paper's other one, without memory (table 5), for which it gives no such
number. Nothing but zeros for the first tens of millions of frames is normal. At 128 environments it takes
about 2 GB of memory. On one CPU core `--preset small --bf16` had the key and the first door after three hours
(one seed of two). README.md has what this script has reached, docs/guide.md its speed.
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
import torch.distributed as dist
import torch.nn as nn
import tyro
from envpool.atari.registration import atari_game_list
from torch import Tensor
from torch.distributions import Categorical
from torch.optim import Adam
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

# torchrun starts several of these processes, the ranks. They are one learner: each has environments of its own;
# weights, gradients and statistics are common (docs/scaling.md). Without it there is one, rank 0.
RANK, RANKS = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
LOCAL_RANK, LOCAL_RANKS = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))


@dataclasses.dataclass
class Args:
    # Tables and sections are the paper's, "reference" is its authors' code. `--help` shows the comments.

    # experiment
    preset: Literal["paper", "small"] = "paper"  # a set of defaults, see PRESETS; --help shows the paper's
    seed: int = 1  # seed of the networks, the actions and the environments
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # auto: cuda or mps if there is one, else cpu
    bf16: bool = False  # bfloat16 in the policy and the predictor's training
    runs_dir: str = "runs"  # where the run's folder is made
    checkpoint_interval: float = 5.0  # minutes between checkpoints; 0: one after every rollout
    resume: str | None = None  # a run's folder or checkpoint: go on, with its flags except those given anew
    evaluate: str | None = None  # a run's folder or checkpoint: play with it, do not train
    eval_episodes: int = 20  # episodes to play with --evaluate
    capture_video: bool = False  # with --evaluate: an mp4 of every episode, in the run's folder
    track: bool = False  # send the logs to Weights & Biases too; WANDB_PROJECT, WANDB_MODE=offline work

    # environment
    env_id: str = "MontezumaRevenge"  # the game; ALE/MontezumaRevenge-v5 means the same
    num_envs: int = 128  # parallel environments, N (A.4); under torchrun, of each rank
    sticky_actions: float = 0.25  # probability that an emulator frame repeats the action before (table 2)
    max_episode_steps: int = 4500  # steps after which an episode is cut (table 2: 18,000 frames)

    # PPO
    total_timesteps: float = 491_520_000  # environment steps, 4 frames each (table 5: 30,000 rollouts)
    num_steps: int = 128  # steps of each environment in a rollout, T (table 5)
    num_minibatches: int = 4  # minibatches in an epoch, a divisor of N; with --shuffle of T * N (table 5)
    shuffle: bool = False  # minibatches of random steps, not of whole environments (reference: no)
    update_epochs: int = 4  # passes over a rollout (table 5)
    learning_rate: float = 1e-4  # Adam's step size (table 5)
    gamma: float = 0.999  # discount of the extrinsic stream (table 5)
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation, both streams (table 5)
    clip_coef: float = 0.1  # PPO's clip range (table 5)
    ent_coef: float = 0.001  # weight of the entropy bonus (table 5)
    vf_coef: float = 1.0  # weight of the value losses, 0.5 * squared error for each head (reference)
    norm_adv: bool = False  # normalise the advantages of a rollout; each rank its own (reference: no)
    max_grad_norm: float | None = None  # clip the norm of the gradient of policy and values (reference: no)

    # RND
    int_coef: float = 1.0  # weight of the intrinsic advantage (table 5); 0: PPO, and the bonus is only logged
    ext_coef: float = 2.0  # weight of the extrinsic advantage (table 5); 0: exploration alone
    int_gamma: float = 0.99  # discount of the intrinsic stream and of its filter (table 5)
    int_episodic: bool = False  # let the intrinsic stream end with the episode (section 2.3: no)
    single_head: bool = False  # one value, episodic, for int_coef * r_int + ext_coef * r_ext (section 2.3: no)
    int_clip: float | None = None  # clip the normalised intrinsic reward at this (reference: no)
    update_proportion: float | None = None  # share of samples for the predictor (A.4); None: 32 / all envs
    obs_norm: Literal["running", "frozen"] = "running"  # frozen: the statistics stay as after the warm-up
    warmup_rollouts: int = 50  # rollouts of a random agent that start the statistics (reference: 50)


PRESETS = {  # what each differs in from the defaults
    "paper": {},
    # As in ppo_rnd_atari_ram.py, but for the total: 128 gradient steps a rollout in place of 16.
    "small": {
        **{"total_timesteps": 3_500_000, "num_envs": 32, "num_steps": 512, "warmup_rollouts": 10, "norm_adv": True},
        **{"num_minibatches": 32, "shuffle": True, "learning_rate": 2.5e-4, "max_grad_norm": 0.5},
        "update_proportion": 0.25,
    },
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
            num_threads=min(args.num_envs, max(1, os.cpu_count() // LOCAL_RANKS)),
            seed=seeds,
            max_episode_steps=args.max_episode_steps,
            repeat_action_probability=args.sticky_actions,
            episodic_life=False,
            # paper: no no-op and 3 empty frames at the start, here: 1 no-op and 4 copies of the first frame,
            # because EnvPool has no less; reference: maximum of two frames in colour, here: in grey, because
            # EnvPool does so.
            noop_max=1,
            use_fire_reset=False,
        )
        self.num_actions = self.pool.action_space.n
        self.room_byte = ROOM_BYTE.get(args.env_id)
        self.done = np.zeros(args.num_envs, bool)  # (N,) the step before ended the episode
        self.stats = EpisodeStats(args.num_envs)

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
        # reference: a terminal step is rewarded for the first frame of the next episode, here: for the one
        # that EnvPool shows with it, which at a game over is mostly that of the step before. The time limit
        # counts as an end for the extrinsic stream, as in the reference.
        self.done = terminated | truncated
        rooms = None if self.room_byte is None else info["ram"][:, self.room_byte]
        self.stats.add(rewards, self.done, valid, rooms)
        return obs, np.sign(rewards), self.done, valid


# --------------------------------------------------------------------------------------------------- Networks
def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (reference: every layer of every network)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """Policy and values. The order of the value heads is intrinsic, extrinsic; or one head, for their sum.

    The reference's CNN policy: its third convolution is 4x4. Policy and values add a residual branch each, with a
    small gain, so both start from the same features.
    """

    def __init__(self, num_actions: int, num_heads: int):
        super().__init__()
        self.trunk = nn.Sequential(
            *(init_layer(nn.Conv2d(4, 32, 8, stride=4)), nn.ReLU(inplace=True)),
            *(init_layer(nn.Conv2d(32, 64, 4, stride=2)), nn.ReLU(inplace=True)),
            *(init_layer(nn.Conv2d(64, 64, 4, stride=1)), nn.ReLU(inplace=True), nn.Flatten()),
            *(init_layer(nn.Linear(64 * 6 * 6, 256)), nn.ReLU(inplace=True)),
            *(init_layer(nn.Linear(256, 448)), nn.ReLU(inplace=True)),
        )
        self.policy_branch = init_layer(nn.Linear(448, 448), gain=0.1)
        self.value_branch = init_layer(nn.Linear(448, 448), gain=0.1)
        self.policy_head = init_layer(nn.Linear(448, num_actions), gain=0.01)
        self.value_head = init_layer(nn.Linear(448, num_heads), gain=0.01)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, 4, 84, 84) uint8 -> logits (B, num_actions), values (B, num_heads), float32."""
        inputs = obs.to(memory_format=torch.channels_last).float().div_(255)
        hidden = self.trunk(inputs)  # (B, 448)
        policy = hidden + self.policy_branch(hidden).relu()
        value = hidden + self.value_branch(hidden).relu()
        with torch.autocast(obs.device.type, enabled=False):  # in bfloat16 numbers from 4 on are 0.03 apart
            return self.policy_head(policy.float()), self.value_head(value.float())


def rnd_layers() -> list[nn.Module]:
    """Whitened frame (B, 1, 84, 84) -> features (B, 512): layers of the target, and the predictor's first."""
    return [
        *(init_layer(nn.Conv2d(1, 32, 8, stride=4)), nn.LeakyReLU(0.2)),
        *(init_layer(nn.Conv2d(32, 64, 4, stride=2)), nn.LeakyReLU(0.2)),
        *(init_layer(nn.Conv2d(64, 64, 3, stride=1)), nn.LeakyReLU(0.2), nn.Flatten()),
        init_layer(nn.Linear(64 * 7 * 7, 512)),
    ]


class RND(nn.Module):
    """The target, the predictor, and the statistics that normalise what they see and what they pay."""

    def __init__(self, num_envs: int, device: torch.device):
        super().__init__()
        # The predictor is two layers deeper, so that it can represent the target. Then the error that is left
        # comes from what it has not seen (paper section 2.2.1).
        self.target = nn.Sequential(*rnd_layers()).requires_grad_(False)
        self.predictor = nn.Sequential(
            *rnd_layers(), nn.ReLU(), init_layer(nn.Linear(512, 512)), nn.ReLU(), init_layer(nn.Linear(512, 512))
        )
        self.obs_rms = RunningMoments((84, 84), device)
        self.return_rms = RunningMoments((), device)
        self.register_buffer("filtered", torch.zeros(num_envs))  # (N,) the state of `reward_filter`
        self.to(device)


# ---------------------------------------------------------------------------- Normalisers, returns and losses
def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of x over the ranks, written into x itself; without torchrun x as it is."""
    if RANKS > 1:
        dist.all_reduce(x)
    return x


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
        """Takes in the rows of batch (B, *shape) that have valid (B,) True (Chan et al. 1979)."""
        delta, weight = batch.to(self.mean.dtype) - self.mean, valid.to(self.mean.dtype)
        first, second = torch.tensordot(weight, delta, 1), torch.tensordot(weight, delta.square_(), 1)
        count, first, second = sum_over_ranks(torch.stack([weight.sum().expand_as(first), first, second]))
        total = self.count + count
        self.mean += first / total
        self.var.copy_((self.var * self.count + second - first.square() / total) / total)
        self.count += count.flatten()[0]


def whiten(frames: Tensor, obs_rms: RunningMoments) -> Tensor:
    """Frames (B, 84, 84) uint8 -> (B, 1, 84, 84) float32, whitened pixel by pixel and clipped at 5 std.

    A pixel that never changed under the random agent has a std of nearly 0. Any change of it, as in a new room,
    saturates the clip.
    """
    mean, std = obs_rms.mean.float(), obs_rms.var.sqrt().float()
    return frames.float().sub_(mean).div_(std).clamp_(-5, 5).unsqueeze(1)


@torch.no_grad()
def features(network: nn.Module, frames: Tensor, obs_rms: RunningMoments) -> Tensor:
    """Frames (T, N, 84, 84) uint8 -> features (T, N, 512) of target or predictor, 1,024 or so at a time."""
    chunks = frames.split(max(1, 1024 // frames.shape[1]))
    return torch.cat([network(whiten(c.flatten(0, 1), obs_rms)).unflatten(0, c.shape[:2]) for c in chunks])


def novelty(rnd: RND, frames: Tensor) -> Tensor:
    """Raw intrinsic reward: frames (T, N, 84, 84) uint8 -> mean squared error of the predictor (T, N)."""
    error = features(rnd.predictor, frames, rnd.obs_rms) - features(rnd.target, frames, rnd.obs_rms)
    return error.square().mean(-1)


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


def normalise(x: Tensor, valid: Tensor) -> Tensor:
    """x with mean 0 and std 1 over its valid entries."""
    centred = x - masked_mean(x, valid)
    return centred / (masked_mean(centred.square(), valid).sqrt() + 1e-8)


def predictor_subset(valid: Tensor, size: int) -> Tensor:
    """Indices (size,) of a random subset of the entries with valid (B,) True; others only for want of these."""
    return (torch.rand(len(valid), device=valid.device) + ~valid).argsort()[:size]


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

    value_losses = {}
    coefs = {"": 1.0} if args.single_head else {"_int": args.int_coef, "_ext": args.ext_coef}
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

    obs: Tensor  # (T+1, N, 4, 84, 84) uint8
    actions: Tensor  # (T, N) int64
    logprobs: Tensor  # (T, N)
    values: Tensor  # (T+1, N, H) intrinsic, extrinsic; or one for both
    rewards: Tensor  # (T, N) extrinsic
    dones: Tensor  # (T, N) bool
    valid: Tensor  # (T, N) bool, False where the step was a reset

    @property
    def frames(self) -> Tensor:
        """What RND sees of each step (T, N, 84, 84): the newest frame of the next observation."""
        return self.obs[1:, :, 3]


def empty_rollout(T: int, N: int, num_heads: int, device: torch.device) -> Rollout:
    """The storage of a rollout, written anew in every iteration."""
    with device:
        return Rollout(
            obs=torch.zeros((T + 1, N, 4, 84, 84), dtype=torch.uint8),
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


def warm_up(envs: AtariEnvs, rnd: RND, rollout: Rollout, args: Args, run: "Run") -> None:
    """A random agent gives the statistics of the frames something to start from."""
    steps = math.ceil(args.warmup_rollouts * args.num_steps / RANKS) * args.num_envs * RANKS  # of all ranks
    with Progress(steps, desc="random agent") as bar:
        while steps > 0 and not run.stopped():
            obs, _, _, valid = envs.step(torch.randint(envs.num_actions, (args.num_envs,)).numpy())
            rollout.obs[-1] = torch.from_numpy(obs)
            rnd.obs_rms.update(rollout.obs[-1, :, 3], torch.from_numpy(valid).to(rollout.obs.device))
            steps -= args.num_envs * RANKS
            bar.update(args.num_envs * RANKS)
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


def intrinsic_rewards(rnd: RND, rollout: Rollout, args: Args) -> Tensor:
    """r_int (T, N), with the statistics of the frames as they were. Then these take in the new frames."""
    intrinsic = novelty(rnd, rollout.frames)  # never in bfloat16: its rounding could pass for novelty
    discounted, rnd.filtered = reward_filter(intrinsic, rollout.valid, args.int_gamma, rnd.filtered)
    rnd.return_rms.update(discounted.flatten(), rollout.valid.flatten())
    intrinsic = intrinsic / rnd.return_rms.var.sqrt().float()
    if args.obs_norm == "running":
        # reference: o(0) to o(T-1), here: o(1) to o(T) less the resets, because these are what RND sees
        for frames, valid in zip(rollout.frames, rollout.valid, strict=True):
            rnd.obs_rms.update(frames, valid)
    return intrinsic if args.int_clip is None else intrinsic.clamp(max=args.int_clip)


def advantages_and_returns(rollout: Rollout, intrinsic: Tensor, args: Args) -> tuple[Tensor, Tensor]:
    """A = int_coef * A_int + ext_coef * A_ext (T, N), and what each value head is to learn (T, N, H)."""
    rewards, dones, values = rollout.rewards, rollout.dones, rollout.values
    if args.single_head:
        streams = [(args.int_coef * intrinsic + args.ext_coef * rewards, dones, args.gamma, 1.0)]
    else:
        streams = [(intrinsic, dones & args.int_episodic, args.int_gamma, args.int_coef)]
        streams += [(rewards, dones, args.gamma, args.ext_coef)]
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(values[:-1])
    for head, (r, ends, gamma, coef) in enumerate(streams):
        v = values[..., head]  # (T+1, N)
        stream_advantages = gae(r, v, ends, rollout.valid, gamma, args.gae_lambda)
        returns[..., head] = stream_advantages + v[:-1]
        advantages += coef * stream_advantages
    return advantages, returns


def update(
    agent: Agent, rnd: RND, optimizer: Adam, rollout: Rollout, advantages: Tensor, returns: Tensor, args: Args
) -> dict[str, Tensor]:
    """Several passes over the rollout, one Adam step a minibatch for all networks. Returns means to log."""
    T, N, M, B = args.num_steps, args.num_envs, args.num_minibatches, args.num_envs * args.num_steps
    if args.norm_adv:
        advantages = normalise(advantages, rollout.valid)
    data = {key: getattr(rollout, key)[:T] for key in ("obs", "actions", "logprobs", "valid", "frames")}
    data |= {"advantages": advantages, "returns": returns}
    data["targets"] = features(rnd.target, rollout.frames, rnd.obs_rms)  # with the new statistics (reference)
    data = {key: x.flatten(0, 1) for key, x in data.items()}  # each (B, ...)
    update_proportion = args.update_proportion or min(1.0, 32 / (N * RANKS))
    piece_size = 1024 if advantages.device.type == "cpu" else B // M
    totals: dict[str, Tensor] = collections.defaultdict(float)  # sums over the minibatches, for the log
    for _ in range(args.update_epochs):
        if args.shuffle:
            steps = torch.randperm(B, device=advantages.device)
        else:  # the rollouts of N/M environments, in the same order in every epoch (reference)
            steps = torch.arange(B, device=advantages.device).view(T, M, N // M).transpose(0, 1).flatten()
        for chosen in steps.split(B // M):
            batch = {key: x.index_select(0, chosen) for key, x in data.items()}  # (B/M, ...); x[chosen] is slower
            optimizer.zero_grad()

            # paper: each sample is kept with probability p, here: a random share of exactly p, because then
            # the rest is not even computed and the device need not be asked how many there are
            kept = predictor_subset(batch["valid"], max(1, round(update_proportion * B / M)))
            predicted = forward(rnd.predictor, whiten(batch["frames"][kept], rnd.obs_rms), args).float()
            errors = (predicted - batch["targets"][kept]).square().mean(1)
            predictor_loss = masked_mean(errors, batch["valid"][kept])
            predictor_loss.backward()

            # a piece weighs by its valid samples, so that, averaged over ranks, all samples count alike
            num_valid = (sum_over_ranks(batch["valid"].sum()) / RANKS).clamp(min=1)
            for start in range(0, B // M, piece_size):  # on a CPU in pieces, to take less memory
                piece = {key: x[start : start + piece_size] for key, x in batch.items()}
                loss, metrics = ppo_loss(*forward(agent, piece["obs"], args), piece, args)
                share = piece["valid"].sum() / num_valid
                (share * loss).backward()
                for key, value in metrics.items():
                    totals[f"losses/{key}"] += share * value.detach()

            for parameter in optimizer.param_groups[0]["params"]:
                sum_over_ranks(parameter.grad).div_(RANKS)
            totals["losses/grad_norm"] += nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm or math.inf)
            totals["losses/predictor_loss"] += predictor_loss.detach()
            optimizer.step()
    return {key: total / (args.update_epochs * M) for key, total in totals.items()}


# --------------------------------------------------------------------------------------------------- Training
def train(args: Args, device: torch.device, path: pathlib.Path | None, saved: dict | None) -> int:
    """Trains to the end or until a signal, on from what was `saved` in file `path`. Returns the exit status."""
    T, N, H = args.num_steps, args.num_envs, 1 if args.single_head else 2
    per_iteration, step = T * N * RANKS, saved["step"] if saved else 0  # environment steps, of all ranks
    torch.manual_seed(args.seed)  # the same first weights on all ranks
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    rollout = empty_rollout(T, N, H, device)
    seeds = np.random.SeedSequence((args.seed, step)).generate_state(N * RANKS) >> 1  # others after a resume
    envs = AtariEnvs(args, seeds[N * RANK : N * (RANK + 1)].tolist())
    agent = Agent(envs.num_actions, H).to(device, memory_format=torch.channels_last)
    rnd = RND(N, device).to(memory_format=torch.channels_last)
    parameters = [*agent.parameters(), *rnd.predictor.parameters()]  # one Adam for both, as in the reference
    optimizer = Adam(parameters, lr=args.learning_rate, eps=1e-8, fused=True)
    # what a checkpoint holds: modules, or what has a state_dict of tensors and plain Python
    learner = {"agent": agent, "rnd": rnd, "optimizer": optimizer, "stats": envs.stats}
    if RANKS > 1:  # other actions on each rank
        torch.manual_seed(int(np.random.SeedSequence((args.seed, step, RANK)).generate_state(1)[0]))
    with contextlib.closing(Run(args, learner, rollout, path, saved)) as run:
        rollout.obs[-1] = torch.from_numpy(envs.reset())
        if not saved:
            warm_up(envs, rnd, rollout, args, run)
        run.bar, run.logged = run.stack.enter_context(Progress(args.total_timesteps, step)), time.monotonic()
        while step + per_iteration <= args.total_timesteps and not run.stopped():
            collect(envs, agent, rollout, args)
            intrinsic = intrinsic_rewards(rnd, rollout, args)
            advantages, returns = advantages_and_returns(rollout, intrinsic, args)
            scalars = update(agent, rnd, optimizer, rollout, advantages, returns, args)
            step += per_iteration
            run.log(step, scalars | diagnostics(agent, rnd, rollout, intrinsic, returns))
            run.save()
        return run.finish()


# ----------------------------------------------- Machinery (alike in all scripts; skip it on a first reading)
class UserError(Exception):
    """Something that the user can put right: printed as one line, exit status 2."""


def check_args(args: Args) -> None:
    """Raises UserError at the first flag whose value makes no sense, before anything is created."""
    rollout = args.num_envs * args.num_steps * RANKS
    whole = args.num_envs * (args.num_steps if args.shuffle else 1)  # what is divided into minibatches
    counts = "num_envs num_steps num_minibatches update_epochs max_episode_steps eval_episodes"
    for flags, holds, rule in (
        (counts, lambda x: 1 <= x < 2**31, "at least 1 and below 2^31"),
        ("seed warmup_rollouts checkpoint_interval", lambda x: 0 <= x < 2**63, "at least 0 and below 2^63"),
        ("ent_coef vf_coef int_coef ext_coef", lambda x: 0 <= x < math.inf, "at least 0 and finite"),
        ("gamma int_gamma gae_lambda sticky_actions", lambda x: 0 <= x <= 1, "in [0, 1]"),
        ("learning_rate clip_coef max_grad_norm int_clip", lambda x: 0 < x < math.inf, "a positive number"),
        ("update_proportion", lambda x: 0 < x <= 1, "in (0, 1]"),
        ("num_minibatches", lambda x: whole % x == 0, f"a divisor of {whole} (N, or with --shuffle T * N)"),
        ("total_timesteps", lambda x: rollout <= x < 2**63, f"at least one rollout, {rollout} steps, and below 2^63"),
        ("ext_coef", lambda x: x + args.int_coef > 0, "above 0 with --int-coef 0, or nothing is learned"),
        ("warmup_rollouts", lambda x: x > 0 or args.obs_norm == "running", "at least 1 with --obs-norm frozen"),
        ("evaluate", lambda _: args.resume is None and RANKS == 1, "without --resume and torchrun"),
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


def join_ranks(device: torch.device) -> torch.device:
    """Connects this rank to the others. Returns the device that is its own."""
    if device.type == "mps" or (device.type == "cuda" and torch.cuda.device_count() < LOCAL_RANKS):
        raise UserError(f"torchrun with {LOCAL_RANKS} ranks on a machine needs as many CUDA GPUs, or --device cpu")
    if device.type == "cuda":
        device = torch.device("cuda", LOCAL_RANK)
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def all_ranks(own: object) -> list:
    """What each rank has, in the order of the ranks; the same list on all of them."""
    objects = [own] * RANKS
    if RANKS > 1:
        dist.all_gather_object(objects, own)
    return objects


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
        """What to log of the episodes since the last call, on all ranks. Says which rooms are new."""
        own = self.episodes, self.waiting.any(), self.visited, self.rooms_best
        of_ranks, waiting, visited, best = zip(*all_ranks(own), strict=True)
        episodes, self.episodes = [episode for own in of_ranks for episode in own], []
        if not any(waiting):  # before that, only the short ones have ended
            self.recent.extend(score for score, _ in episodes)
        self.visited, self.rooms_best = set().union(*visited), max(best)
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


@torch.no_grad()
def diagnostics(agent: Agent, rnd: RND, rollout: Rollout, intrinsic: Tensor, returns: Tensor) -> dict[str, Tensor]:
    """What to log beside the means of the update. The largest logit shows a policy that has diverged."""
    scalars = {
        "rnd/intrinsic_reward": masked_mean(intrinsic, rollout.valid),
        "rnd/intrinsic_reward_last": masked_mean(intrinsic, rollout.dones),  # of episodes' last steps
        "rnd/intrinsic_return_std": rnd.return_rms.var.sqrt().float(),
        "losses/max_logit": agent(rollout.obs[-1])[0].abs().max(),
    }
    for head, suffix in enumerate(("_int", "_ext") if returns.shape[2] == 2 else ("",)):
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
        style = {"unit": " steps", "unit_scale": True, "smoothing": 0.02, "miniters": 1, "disable": RANK > 0}
        if not sys.stderr.isatty():
            style |= {"bar_format": "{l_bar} {r_bar}", "mininterval": 10, "file": io.StringIO()}
            self.display = lambda **_: print(str(self).replace("|", ""))  # what tqdm calls to show itself
        super().__init__(total=total, initial=initial, desc=desc, **style)


class Run:
    """What goes on around the loop: the run's folder, logs, checkpoints, signals, progress. Rank 0 speaks."""

    def __init__(self, args: Args, learner: dict, rollout: Rollout, path: pathlib.Path | None, saved: dict | None):
        self.args, self.learner, self.stats = args, learner, learner["stats"]
        self.step, self.best_score, self.seconds, self.folder = 0, -math.inf, 0.0, pathlib.Path()
        if saved:
            restore(learner, path, saved)
            self.step, self.best_score, self.seconds = saved["step"], saved["best_score"], saved["seconds"]
        self.stack = contextlib.ExitStack()  # what to undo at the end
        if RANK == 0:
            # from a copy, from best.pt or with another environment it goes on in a new folder
            same = saved and path.name == "latest.pt" and saved["args"]["env_id"] == args.env_id
            self.open_folder(path.parent if same else None)
            self.introduce(rollout)
        self.folder = all_ranks(self.folder)[0]
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
        networks = {"agent": self.learner["agent"], **dict(self.learner["rnd"].named_children())}
        sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        print(f"device       {device} ({name})")
        print(f"environment  {args.env_id} x {args.num_envs}{f' on each of {RANKS} ranks' if RANKS > 1 else ''}")
        print(f"parameters   {', '.join(f'{name} {size:,}' for name, size in sizes.items() if size)}")
        hint = " (for a CPU there is --preset small)" if device.type == "cpu" and args.preset == "paper" else ""
        print(f"preset       {args.preset}{hint}")
        print(f"rollout      {sum(x.nbytes for x in rollout) / 1e6:,.1f} MB")
        print(f"folder       {self.folder}")

    def receive(self, number: int, _frame: object) -> None:
        """Takes note of a signal. A second Ctrl-C ends the process at once (but torchrun sends each twice)."""
        if not self.signal:
            print(f"\nstopping after this iteration; {'Ctrl-C again: at once' if RANKS == 1 else 'torchrun waits 30s'}")
        if number == signal.SIGINT and RANKS == 1:
            signal.signal(number, signal.SIG_DFL)
        self.signal = self.signal or number

    def stopped(self) -> bool:
        """Has any rank got a signal? The same answer on all of them."""
        agreed = max(all_ranks(self.signal))
        self.signal = agreed or self.signal  # one that has come meanwhile is not forgotten
        return agreed > 0

    def log(self, step: int, scalars: dict[str, Tensor]) -> None:
        """Logs means over the ranks, in one transfer from the device, and moves the bar. Raises at a NaN."""
        means = sum_over_ranks(torch.stack([*scalars.values()])) / RANKS
        scalars = dict(zip(scalars, means.tolist(), strict=True))
        now = time.monotonic()
        scalars |= self.stats.scalars(step) | {"charts/SPS": (step - self.step) / (now - self.logged)}
        scalars["charts/learning_rate"] = self.learner["optimizer"].param_groups[0]["lr"]
        for key, value in scalars.items():
            if not math.isfinite(value) and "explained_variance" not in key:  # NaN if all are equal
                last = self.folder / "latest.pt"
                where = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
                raise FloatingPointError(f"{key} is {value} at step {step:,}: stopped; {where}")
            if RANK == 0:
                self.writer.add_scalar(key, value, step)
        self.bar.set_postfix_str(f"{self.stats}, r_int {scalars['rnd/intrinsic_reward']:.4f}", refresh=False)
        self.bar.update(step - self.step)
        self.step, self.logged = step, now

    def save(self, now: bool = False) -> None:
        """If it is time (rank 0's clock) or now: writes latest.pt, and best.pt if it is the best yet."""
        if not all_ranks(now or time.monotonic() - self.saved >= 60 * self.args.checkpoint_interval)[0]:
            return
        state = {name: part.state_dict() for name, part in self.learner.items()}
        rng = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        state["ranks"] = all_ranks((*rng, state["rnd"]["filtered"].cpu()))  # what each rank has of its own
        self.saved, names, recent = time.monotonic(), ["latest.pt"], self.stats.recent
        if len(recent) == recent.maxlen and np.mean(recent) > self.best_score:
            names, self.best_score = ["latest.pt", "best.pt"], float(np.mean(recent))
        state |= {"args": vars(self.args) | {"resume": None}, "step": self.step, "best_score": self.best_score}
        state["seconds"] = self.seconds + self.saved - self.started
        torch.save(state, buffer := io.BytesIO())
        for name in names if RANK == 0 else ():
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
            start = ["torchrun", "--nproc-per-node", str(LOCAL_RANKS)] if RANKS > 1 else ["python"]
            print(f"resume with: {shlex.join([*start, sys.argv[0], '--resume', str(self.folder)])}")
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
        filtered = torch.cat([own[2] for own in saved["ranks"]])  # one for each environment of all ranks
        N = len(learner["rnd"].filtered)
        saved["rnd"]["filtered"] = filtered[torch.arange(N * RANK, N * (RANK + 1)) % len(filtered)]
        saved["optimizer"]["param_groups"] = learner["optimizer"].state_dict()["param_groups"]  # as the flags
        for name, part in learner.items():
            part.load_state_dict(saved[name])
        if len(saved["ranks"]) > RANK:
            torch.set_rng_state(saved["ranks"][RANK][0])
            if torch.cuda.is_initialized() and saved["ranks"][RANK][1] is not None:
                torch.cuda.set_rng_state(saved["ranks"][RANK][1])


# ------------------------------------------------------------------------------------------------- Evaluation
def make_evaluation_env(args: Args) -> gym.Env:
    """The game in ale-py, one copy: the same frames and RAM as EnvPool's, and it can be drawn in colour."""
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale_id = next(name for name in gym.registry if name.lower() == f"ale/{args.env_id}".lower())
    options = {"frameskip": 1, "repeat_action_probability": args.sticky_actions, "render_mode": "rgb_array"}
    env = gym.make(ale_id, max_num_frames_per_episode=None, **options)  # the time limit is evaluate's
    return gym.wrappers.FrameStackObservation(gym.wrappers.AtariPreprocessing(env, noop_max=1, frame_skip=4), 4)


@torch.no_grad()
def evaluate(args: Args, device: torch.device, path: pathlib.Path, saved: dict) -> None:
    """Plays whole games with a checkpoint's policy, actions drawn as in training. Prints unclipped returns."""
    env = make_evaluation_env(args)
    agent = Agent(env.action_space.n, num_heads=1 if args.single_head else 2).to(device)
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
    if args.resume and saved["step"] + args.num_envs * args.num_steps * RANKS > args.total_timesteps:
        raise UserError(f"{path} has all of its {saved['step']:,} steps; ask for more with --total-timesteps")
    return args, path, saved


def main(argv: list[str] | None = None) -> int:
    """Trains or evaluates. Returns the exit status: 0, 1 failed, 2 wrong use, 128 + a signal's number."""
    if sys.platform == "linux":
        # Keep freed memory, or glibc asks the kernel for each activation anew, page by page, and updates on a
        # CPU take much longer. The codes are M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD.
        for option, value in ((-4, 0), (-1, 2**31 - 1), (-2, 256 << 20)):
            ctypes.CDLL(None).mallopt(option, value)
    out, err = (Console(stream if RANK == 0 else None) for stream in (sys.stdout, sys.stderr))
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            args, path, saved = parse(argv)
            auto = torch.accelerator.current_accelerator(check_available=True) or "cpu"
            device = torch.device(auto if args.device == "auto" else args.device)
            if args.evaluate is not None:
                evaluate(args, device, path, saved)
                return 0
            status = train(args, join_ranks(device) if RANKS > 1 else device, path, saved)
            if RANKS > 1:
                dist.barrier()  # no rank leaves while another needs it
                dist.destroy_process_group()
            return status
        except KeyboardInterrupt:
            return 130
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            time.sleep(2 * (RANK > 0))  # torchrun ends all ranks with the first one: let rank 0 speak
            return 2
        except (FloatingPointError, OSError, MemoryError, RuntimeError) as error:
            known = not isinstance(error, RuntimeError) or re.search("alloc|of memory|calculation", str(error))
            if not known and RANKS == 1:
                raise  # a mistake in this script: show where
            who = f"rank {RANK} of {RANKS}: " if RANKS > 1 else ""
            stream = Console(sys.__stderr__) if RANK else sys.stderr
            print(f"error: {who}{(str(error) or repr(error)).splitlines()[0]}", file=stream)
            return 1


if __name__ == "__main__":
    sys.exit(main())
