# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "ale-py==0.12.1", "envpool==1.2.5",
#   "opencv-python-headless==5.0.0.93", "imageio==2.38.1", "imageio-ffmpeg==0.8.1", "tyro==1.0.17",
#   "tensorboard==2.21.0", "tqdm==4.70.1", "filelock==4.3.1"
# ]
# ///
"""PPO with Random Network Distillation (RND) on Atari from the console's RAM: for one to four CPU cores.

The same algorithm as ppo_rnd_atari.py, which is the paper's (Burda et al. 2018, arXiv:1810.12894): read that first.

    r_int(t) = |g(o(t+1)) - f(o(t+1))|^2 / (256 s)  f: random target, g: predictor, o: the screen that RND sees,
                                                    s: std over the whole run of the discounted sum of bonuses
    A        = int_coef * A_int + ext_coef * A_ext  two value heads, two advantages, one policy (PPO)

What is different here, so that Montezuma's Revenge can be played on a laptop. The reasons are from trials of
one to five seeds (docs/results/ram_settings.md); which change holds the key, or what 5 and 6 do, is open.
  1. The policy reads the console's 128 bytes of RAM, the last two states as 2,048 bits, into a small network.
     Acting and learning then cost less than the emulator.
  2. RND sees a small screen: the newest frame, averaged to 21 x 20 grey pixels. Its networks are three layers
     of 256, the predictor's two more. On the RAM's bits, counters among them, a trial stayed at 400 points.
  3. Advantages are normalised over the rollout. The bonus soon is about as small as the entropy term, because
     s is of the whole run, the untrained predictor's large errors included. With `--int-coef 0` add
     `--no-norm-adv`: until something is paid it is noise that is normalised.
  4. There are 32 minibatches of random steps in place of 4 of whole environments: eight times as many gradient
     steps on the same samples, which bring the first keys early.
  5. Fewer environments and longer rollouts, 32 x 512 steps in place of 128 x 128, so that the policy changes a
     quarter as often within an episode.
  6. The norm of the gradient of policy and values is clipped at 0.5. Its median is 0.6; where a room is new,
     the values' errors are hundreds of times the usual ones.
  7. The budget is small: the learning rate is 2.5e-4 (paper: 1e-4), the warm-up 10 rollouts (reference: 50).
     The predictor learns from a quarter of the samples, as at the paper's 128 environments, in more steps.

Three commands, to train, to resume and to evaluate:
    python ppo_rnd_atari_ram.py --env-id MontezumaRevenge --bf16 --total-timesteps 8e6
    python ppo_rnd_atari_ram.py --resume runs/RUN
    python ppo_rnd_atari_ram.py --evaluate runs/RUN --eval-episodes 20 --capture-video

What to expect: with --bf16 some 1,500 steps (6,000 frames) a second on one core, 0.7 GB of memory. On
Montezuma's Revenge the first keys come at 0.2 to 0.3 million steps, on one of five seeds at 1.2. All of five
seeds that no setting was chosen on held the key from 1.3 to 2.8 million steps on, 17 to 35 minutes. At 8
million, an hour and a half, they had 2,450, 500, 2,033, 710 and 2,380 points. Three runs of 25 million, of
three to six hours, held the key from 4.1, 1.8 and 1.5 million on and have 3,182, 2,413 and 2,507 points.
"""

import collections
import contextlib
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


@dataclasses.dataclass
class Args:
    # Tables and sections are the paper's, "reference" is its authors' code. `--help` shows the comments.

    # experiment
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
    num_envs: int = 32  # parallel environments, N (A.4: 128)
    sticky_actions: float = 0.25  # probability that an emulator frame repeats the action before (table 2)
    max_episode_steps: int = 4500  # steps after which an episode is cut (table 2: 18,000 frames)

    # PPO
    total_timesteps: float = 25_000_000  # environment steps, 4 frames each
    num_steps: int = 512  # steps of each environment in a rollout, T (table 5: 128)
    num_minibatches: int = 32  # minibatches in an epoch, a divisor of T * N; with --no-shuffle of N (table 5: 4)
    shuffle: bool = True  # minibatches of random steps, not of whole environments (reference: no)
    update_epochs: int = 4  # passes over a rollout (table 5)
    learning_rate: float = 2.5e-4  # Adam's step size (table 5: 1e-4)
    gamma: float = 0.999  # discount of the extrinsic stream (table 5)
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation, both streams (table 5)
    clip_coef: float = 0.1  # PPO's clip range (table 5)
    ent_coef: float = 0.001  # weight of the entropy bonus (table 5)
    vf_coef: float = 1.0  # weight of the value losses, 0.5 * squared error for each head (reference)
    norm_adv: bool = True  # normalise the advantages of a rollout (reference: no)
    max_grad_norm: float | None = 0.5  # clip the norm of the gradient of policy and values (reference: no)

    # RND
    int_coef: float = 1.0  # weight of the intrinsic advantage (table 5); 0: PPO, and the bonus is only logged
    ext_coef: float = 2.0  # weight of the extrinsic advantage (table 5); 0: exploration alone
    int_gamma: float = 0.99  # discount of the intrinsic stream and of its filter (table 5)
    int_episodic: bool = False  # let the intrinsic stream end with the episode (section 2.3: no)
    single_head: bool = False  # one value, episodic, for int_coef * r_int + ext_coef * r_ext (section 2.3: no)
    int_clip: float | None = None  # clip the normalised intrinsic reward at this (reference: no)
    update_proportion: float | None = 0.25  # share of samples the predictor learns from (A.4); None: 32 / N
    obs_norm: Literal["running", "frozen"] = "running"  # frozen: the statistics stay as after the warm-up
    warmup_rollouts: int = 10  # rollouts of a random agent that start the statistics (reference: 50)


# ------------------------------------------------------------------------------------------------ Environment

ROOM_BYTE = {"MontezumaRevenge-v5": 3, "Pitfall-v5": 1}  # where the RAM has the room's number
FRAME = (21, 20)  # what RND sees: means of exactly 10 x 8 of the console's 210 x 160; whole ratios are quick


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
            # paper: no no-op at the start, here: 1, because EnvPool has no less; reference: maximum of two
            # frames in colour, here: in grey, because EnvPool does so.
            noop_max=1,
            use_fire_reset=False,
            img_height=FRAME[0],
            img_width=FRAME[1],
            stack_num=1,
        )
        self.num_actions = self.pool.action_space.n
        self.room_byte = ROOM_BYTE.get(args.env_id)
        self.done = np.zeros(args.num_envs, bool)  # (N,) the step before ended the episode
        self.stats = EpisodeStats(args.num_envs)

    def reset(self) -> np.ndarray:
        """First observations (N, 2, 128) uint8: the RAM, twice."""
        _, info = self.pool.reset()
        self.ram = info["ram"].copy()  # (N, 128) which the next step finds as the RAM before it
        return np.stack([self.ram, self.ram], 1)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Plays actions (N,) int.

        Returns: observations (N, 2, 128) uint8, the RAM before and after the step; frames (N, 21, 20) uint8, the screen
        after it; rewards (N,) clipped to their sign; done (N,) bool, the episode ends here; valid (N,) bool, False
        where the step was a reset.
        """
        frames, rewards, terminated, truncated, info = self.pool.step(actions)
        valid = ~self.done
        # reference: a terminal step is rewarded for the first frame of the next episode, here: for the one
        # that EnvPool shows with it, which at a game over is mostly that of the step before. The time limit
        # counts as an end for the extrinsic stream, as in the reference.
        self.done = terminated | truncated
        rooms = None if self.room_byte is None else info["ram"][:, self.room_byte]
        self.stats.add(rewards, self.done, valid, rooms)
        before = np.where(valid[:, None], self.ram, info["ram"])  # on a reset step: the new RAM twice
        self.ram = info["ram"].copy()
        return np.stack([before, self.ram], 1), frames[:, 0], np.sign(rewards), self.done, valid


# --------------------------------------------------------------------------------------------------- Networks
def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (reference: every layer of every network)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """Policy and values. The order of the value heads is intrinsic, extrinsic; or one head, for their sum.

    Policy and values add a residual branch each, with a small gain, so both start from the same features (reference).
    """

    def __init__(self, num_actions: int, num_heads: int):
        super().__init__()
        self.trunk = nn.Sequential(
            *(init_layer(nn.Linear(2 * 128 * 8, 256)), nn.ReLU(inplace=True)),
            *(init_layer(nn.Linear(256, 256)), nn.ReLU(inplace=True)),
        )
        self.policy_branch = init_layer(nn.Linear(256, 256), gain=0.1)
        self.value_branch = init_layer(nn.Linear(256, 256), gain=0.1)
        self.policy_head = init_layer(nn.Linear(256, num_actions), gain=0.01)
        self.value_head = init_layer(nn.Linear(256, num_heads), gain=0.01)
        self.register_buffer("shifts", torch.arange(8, dtype=torch.uint8), persistent=False)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, 2, 128) uint8 -> logits (B, num_actions), values (B, num_heads), float32."""
        bits = ((obs.unsqueeze(-1) >> self.shifts) & 1).flatten(1).float()  # (B, 2048)
        hidden = self.trunk(bits)  # (B, 256)
        policy = hidden + self.policy_branch(hidden).relu()
        value = hidden + self.value_branch(hidden).relu()
        with torch.autocast(obs.device.type, enabled=False):  # in bfloat16 numbers from 4 on are 0.03 apart
            return self.policy_head(policy.float()), self.value_head(value.float())


def rnd_layers() -> list[nn.Module]:
    """One whitened frame (B, 420) -> features (B, 256): layers of the target, and the predictor's first."""
    return [
        *(init_layer(nn.Linear(math.prod(FRAME), 256)), nn.LeakyReLU(0.2)),
        *(init_layer(nn.Linear(256, 256)), nn.LeakyReLU(0.2)),
        init_layer(nn.Linear(256, 256)),
    ]


class RND(nn.Module):
    """The target, the predictor, and the statistics that normalise what they see and what they pay."""

    def __init__(self, num_envs: int, device: torch.device):
        super().__init__()
        # The predictor is two layers deeper, so that it can represent the target. Then the error that is left
        # comes from what it has not seen (paper section 2.2.1).
        self.target = nn.Sequential(*rnd_layers()).requires_grad_(False)
        self.predictor = nn.Sequential(
            *rnd_layers(), nn.ReLU(), init_layer(nn.Linear(256, 256)), nn.ReLU(), init_layer(nn.Linear(256, 256))
        )
        self.obs_rms = RunningMoments(FRAME, device)
        self.return_rms = RunningMoments((), device)
        self.register_buffer("filtered", torch.zeros(num_envs))  # (N,) the state of `reward_filter`
        self.to(device)


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


def whiten(frames: Tensor, obs_rms: RunningMoments) -> Tensor:
    """Frames (..., 21, 20) uint8 -> (..., 420) float32, whitened pixel by pixel and clipped at 5 std.

    A pixel that never changed under the random agent has a std of nearly 0. Any change of it, as in a new room,
    saturates the clip.
    """
    mean, std = obs_rms.mean.float(), obs_rms.var.sqrt().float()
    return frames.float().sub_(mean).div_(std).clamp_(-5, 5).flatten(-2)


@torch.no_grad()
def novelty(rnd: RND, frames: Tensor) -> Tensor:
    """Raw intrinsic reward: frames (T, N, 21, 20) uint8 -> mean squared error of the predictor (T, N)."""
    seen = whiten(frames, rnd.obs_rms)  # (T, N, 420)
    return (rnd.predictor(seen) - rnd.target(seen)).square().mean(-1)


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

    obs: Tensor  # (T+1, N, 2, 128) uint8
    frames: Tensor  # (T, N, 21, 20) uint8, what RND sees of each step: the screen after it
    actions: Tensor  # (T, N) int64
    logprobs: Tensor  # (T, N)
    values: Tensor  # (T+1, N, H) intrinsic, extrinsic; or one for both
    rewards: Tensor  # (T, N) extrinsic
    dones: Tensor  # (T, N) bool
    valid: Tensor  # (T, N) bool, False where the step was a reset


def empty_rollout(T: int, N: int, num_heads: int, device: torch.device) -> Rollout:
    """The storage of a rollout, written anew in every iteration."""
    with device:
        return Rollout(
            obs=torch.zeros((T + 1, N, 2, 128), dtype=torch.uint8),
            frames=torch.zeros((T, N, *FRAME), dtype=torch.uint8),
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
    steps = args.warmup_rollouts * args.num_steps * args.num_envs
    with Progress(steps, desc="random agent") as bar:
        while steps > 0 and not run.signal:
            obs, frames, _, _, valid = envs.step(torch.randint(envs.num_actions, (args.num_envs,)).numpy())
            rollout.obs[-1], rollout.frames[-1] = torch.from_numpy(obs), torch.from_numpy(frames)
            rnd.obs_rms.update(rollout.frames[-1], torch.from_numpy(valid).to(rollout.obs.device))
            steps -= args.num_envs
            bar.update(args.num_envs)
    envs.stats.load_state_dict(None)  # not counted; reference: all games begin anew, here: they go on


@torch.no_grad()
def collect(envs: AtariEnvs, agent: Agent, rollout: Rollout, args: Args) -> None:
    """Plays T steps with the policy and writes them into the rollout."""
    obs, frames, actions, logprobs, values, rewards, dones, valid = rollout
    obs[0] = obs[-1]
    for t in range(args.num_steps):
        logits, values[t] = forward(agent, obs[t], args)
        policy = Categorical(logits=logits, validate_args=False)
        actions[t] = policy.sample()
        logprobs[t] = policy.log_prob(actions[t])
        step = envs.step(actions[t].cpu().numpy())
        obs[t + 1], frames[t], rewards[t], dones[t], valid[t] = map(torch.from_numpy, step)
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
    data["targets"] = rnd.target(whiten(rollout.frames, rnd.obs_rms))  # with the new statistics (reference)
    data = {key: x.flatten(0, 1) for key, x in data.items()}  # each (B, ...)
    update_proportion = args.update_proportion or min(1.0, 32 / N)
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

            loss, metrics = ppo_loss(*forward(agent, batch["obs"], args), batch, args)
            (loss + predictor_loss).backward()  # of networks that share nothing
            grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm or math.inf)
            metrics |= {"grad_norm": grad_norm, "predictor_loss": predictor_loss}
            for key, value in metrics.items():
                totals[f"losses/{key}"] += value.detach()
            optimizer.step()
    return {key: total / (args.update_epochs * M) for key, total in totals.items()}


# --------------------------------------------------------------------------------------------------- Training
def train(args: Args, device: torch.device, path: pathlib.Path | None, saved: dict | None) -> int:
    """Trains to the end or until a signal, on from what was `saved` in file `path`. Returns the exit status."""
    T, N, H = args.num_steps, args.num_envs, 1 if args.single_head else 2
    per_iteration, step = T * N, saved["step"] if saved else 0  # environment steps
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    torch.set_flush_denormal(True)  # numbers below 1e-38, which CPUs are slow with, are 0: Adam has many
    rollout = empty_rollout(T, N, H, device)
    seeds = np.random.SeedSequence((args.seed, step)).generate_state(N) >> 1  # others after a resume
    envs = AtariEnvs(args, seeds.tolist())
    agent = Agent(envs.num_actions, H).to(device)
    rnd = RND(N, device)
    parameters = [*agent.parameters(), *rnd.predictor.parameters()]  # one Adam for both, as in the reference
    optimizer = Adam(parameters, lr=args.learning_rate, eps=1e-8, fused=True)
    # what a checkpoint holds: modules, or what has a state_dict of tensors and plain Python
    learner = {"agent": agent, "rnd": rnd, "optimizer": optimizer, "stats": envs.stats}
    with contextlib.closing(Run(args, learner, rollout, path, saved)) as run:
        rollout.obs[-1] = torch.from_numpy(envs.reset())
        if not saved:
            warm_up(envs, rnd, rollout, args, run)
        run.bar, run.logged = run.stack.enter_context(Progress(args.total_timesteps, step)), time.monotonic()
        while step + per_iteration <= args.total_timesteps and not run.signal:
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
    rollout = args.num_envs * args.num_steps
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
        networks = {"agent": self.learner["agent"], **dict(self.learner["rnd"].named_children())}
        sizes = {name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()}
        name = torch.cuda.get_device_name() if device.type == "cuda" else f"{torch.get_num_threads()} threads"
        print(f"device       {device} ({name})")
        print(f"environment  {args.env_id} x {args.num_envs}")
        print(f"parameters   {', '.join(f'{name} {size:,}' for name, size in sizes.items() if size)}")
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
        scalars["charts/learning_rate"] = self.learner["optimizer"].param_groups[0]["lr"]
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
        filtered, N = saved["rnd"]["filtered"], len(learner["rnd"].filtered)
        saved["rnd"]["filtered"] = filtered[torch.arange(N) % len(filtered)]  # --num-envs may be another
        saved["optimizer"]["param_groups"] = learner["optimizer"].state_dict()["param_groups"]  # as the flags
        for name, part in learner.items():
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
    env = gym.wrappers.AtariPreprocessing(env, noop_max=1, frame_skip=4)
    bytes_of_ram = gym.spaces.Box(0, 255, (128,), np.uint8)
    env = gym.wrappers.TransformObservation(env, lambda _: env.unwrapped.ale.getRAM(), bytes_of_ram)
    return gym.wrappers.FrameStackObservation(env, 2)


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
    if (source := args.evaluate if args.resume is None else args.resume) is not None:
        path, saved = load_checkpoint(source)
        was = Args(**saved["args"])
        if args.resume is None:  # an evaluation needs nothing that only training needs
            was = dataclasses.replace(was, device="auto", track=False)
        args = tyro.cli(Args, args=argv, default=was)
    check_args(args)
    args.env_id, args.runs_dir = resolve_env_id(args.env_id), os.path.expanduser(args.runs_dir)
    args.total_timesteps = int(args.total_timesteps)
    for flag, value in vars(args).items() if args.resume else ():
        if value != getattr(was, flag) and flag != "resume":
            print(f"changed      --{flag.replace('_', '-')} from {getattr(was, flag)} to {value}")
    if args.resume and args.env_id != was.env_id:  # scores of another game say nothing
        saved["stats"], saved["best_score"] = None, -math.inf
    if args.resume and saved["step"] + args.num_envs * args.num_steps > args.total_timesteps:
        raise UserError(f"{path} has all of its {saved['step']:,} steps; ask for more with --total-timesteps")
    return args, path, saved


def main(argv: list[str] | None = None) -> int:
    """Trains or evaluates. Returns the exit status: 0, 1 failed, 2 wrong use, 128 + a signal's number."""
    threads = torch.get_num_threads()
    with contextlib.redirect_stdout(Console(sys.stdout)), contextlib.redirect_stderr(Console(sys.stderr)):
        try:
            args, path, saved = parse(argv)
            auto = torch.accelerator.current_accelerator(check_available=True) or "cpu"
            device = torch.device(auto if args.device == "auto" else args.device)
            if "OMP_NUM_THREADS" not in os.environ:
                torch.set_num_threads(1)  # networks this small gain little from more; other cores can run other seeds
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
        finally:
            torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
