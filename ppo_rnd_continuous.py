# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "envpool==1.2.5", "mujoco==3.6.0",
#   "pygame-ce==2.5.8", "imageio==2.38.1", "imageio-ffmpeg==0.8.1", "tyro==1.0.17", "tensorboard==2.21.0",
#   "tqdm==4.70.1", "filelock==4.3.1"
# ]
# ///
"""PPO with Random Network Distillation (RND) in continuous control: MuJoCo, dm_control, mazes, the mountain car.

Papers: Schulman et al. (2017), Proximal Policy Optimization Algorithms, arXiv:1707.06347;
Burda et al. (2018), Exploration by Random Network Distillation, arXiv:1810.12894.

    pi(a | o) = Normal(mean(o), exp(log_std)^2)      log_std is free: it does not depend on o
    r_int(t)  = mean (g(o(t+1)) - f(o(t+1)))^2       f: random target, g: predictor, o whitened
    A         = int_coef * A_int + ext_coef * A_ext  two value heads, two advantages, one policy (PPO)

The target f is never trained. The predictor g learns to agree with it on what the agent sees; where they
still disagree, the agent has seldom been. That error, over the running std of its discounted sum, is the
bonus. Its value does not stop at episode ends.

With `--int-coef 0` this is CleanRL's ppo_continuous_action.py ("CleanRL" below) with three larger departures:
8 x 256 steps in place of 1 x 2048, with one set of statistics; a truncated episode is bootstrapped; the
values' last layer starts near 0. Without these: `--int-coef 0 --num-envs 1 --num-steps 2048
--no-bootstrap-truncated --value-gain 1`. The steps on which EnvPool resets are left out; they still count as
environment steps.
CleanRL's details for continuous control:
  1. Observations and rewards are normalised as they come, and clipped at 10.
  2. Policy and values are separate tanh networks; the policy's last layer starts near 0.
  3. Advantages are normalised in each minibatch, minibatches are small, the learning rate falls to 0.
  4. An action outside the action space is clipped for the environment only. The policy learns from it as it
     was drawn.
The predictor learns in the first epoch only, so once from each sample, in minibatches of 64. Burda et al.'s
learns in each of four epochs from a quarter of the samples.

`--preset seed-001` (docs/source_documents.md) is a simpler bonus, found in notes and blogs: target and
predictor have two outputs, what they see is whitened by the statistics of a random agent's 1,500 steps, and
the sum of the squared errors, clipped at 1, is added to the reward as it is.

Three commands, to train, to resume and to evaluate:
    python ppo_rnd_continuous.py --env-id MountainCarContinuous --total-timesteps 2e5
    python ppo_rnd_continuous.py --resume runs/RUN
    python ppo_rnd_continuous.py --evaluate runs/RUN --eval-episodes 20 --capture-video

What to expect: the first command takes 40 seconds and solves its task (a mean return above 90) within 50,000
steps, on 20 of 20 seeds; the settings were chosen on the first of them. With `--int-coef 0` 11 get there.
In PointMaze_Medium_Diverse_G five of five seeds come above 100 points of 600 within a million steps, none of
five without the bonus; in _GR, where the start varies too, three and none. Try `--no-reward-norm
--no-clip-vloss` in mazes. The sparse swing-ups are not solved. On HalfCheetah, Hopper, Walker2d and Ant, which
always pay, five to ten seeds show no loss (docs/results/continuous.md).
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
import warnings
import zipfile
from collections.abc import Iterator
from typing import Literal, NamedTuple

import envpool
import filelock
import gymnasium as gym
import imageio
import numpy as np
import torch
import torch.nn as nn
import tyro
from torch import Tensor
from torch.distributions import Normal
from torch.optim import Adam
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

warnings.filterwarnings("ignore", ".*precision lowered by casting")  # gymnasium's, of EnvPool's bounds


@dataclasses.dataclass
class Args:
    # "paper" is Burda et al. 2018, "reference" its authors' code. `--help` shows the comments. `--preset`
    # puts other defaults in the place of these; flags given beside it stand.

    # experiment
    preset: Literal["default", "seed-001"] = "default"  # a set of defaults
    seed: int = 1  # seed of the networks, the actions and the environments
    device: Literal["auto", "cuda", "mps", "cpu"] = "cpu"  # auto: cuda or mps if there is one, else cpu
    runs_dir: str = "runs"  # where the run's folder is made
    checkpoint_interval: float = 1.0  # minutes between checkpoints; 0: one after every rollout
    resume: str | None = None  # a run's folder or checkpoint: go on, with its flags except those given anew
    evaluate: str | None = None  # a run's folder or checkpoint: play with it, do not train
    eval_episodes: int = 20  # episodes to play with --evaluate
    deterministic: bool = False  # with --evaluate: play the policy's mean, as many tables of MuJoCo do
    capture_video: bool = False  # with --evaluate: an mp4 of every episode, in the run's folder
    track: bool = False  # send the logs to Weights & Biases too; WANDB_PROJECT, WANDB_MODE=offline work

    # environment
    env_id: str = "HalfCheetah-v5"  # of Gymnasium, dm_control or Gymnasium-Robotics, as EnvPool has it
    num_envs: int = 8  # parallel environments, N (CleanRL: 1)

    # PPO
    total_timesteps: float = 1_000_000  # environment steps
    solved_score: float | None = None  # stop when the mean return of the last 100 episodes is higher
    num_steps: int = 256  # steps of each environment in a rollout, T (CleanRL: 2,048)
    num_minibatches: int = 32  # minibatches in an epoch, of num_envs * num_steps / num_minibatches samples
    update_epochs: int = 10  # passes over a rollout
    learning_rate: float = 3e-4  # Adam's step size
    anneal_lr: bool = True  # let the step size fall to 0 over --total-timesteps; a resume with more raises it
    gamma: float = 0.99  # discount of the extrinsic stream
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation, both streams
    clip_coef: float = 0.2  # PPO's clip range
    clip_vloss: bool = True  # clip how far values move, too: V_int then follows slowly (reference: no)
    ent_coef: float = 0.0  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value losses, 0.5 * squared error for each head
    norm_adv: bool = True  # normalise the advantages of each minibatch (CleanRL: yes; reference: no)
    value_gain: float = 0.01  # gain of the values' last layer at the start (reference: 0.01; CleanRL: 1)
    max_grad_norm: float | None = 0.5  # clip the norm of the gradient of policy and values
    reward_norm: bool = True  # divide rewards by the running std of their discounted sum, clip at 10
    bootstrap_truncated: bool = True  # value what the time limit cut off (CleanRL: no); V_int goes on anyway

    # RND
    int_coef: float = 1.0  # weight of the intrinsic advantage (paper: 1); 0: PPO on ext_coef * A_ext
    ext_coef: float = 2.0  # weight of the extrinsic one (paper: 2); with --norm-adv and two heads only the ratio counts
    int_gamma: float = 0.99  # discount of the intrinsic stream and of its filter (paper: 0.99)
    int_episodic: bool = False  # let the intrinsic stream end with the episode (paper: no)
    single_head: bool = False  # one episodic value for int_coef * r_int + ext_coef * r_ext (paper: no)
    int_norm: bool = True  # divide the bonus by the running std of its discounted return (paper: yes)
    int_clip: float | None = None  # clip the bonus, normalised or not, at this (paper: no)
    predictor_learning_rate: float = 1e-4  # Adam's step size of the predictor, which stays (paper: 1e-4)
    rnd_net: Literal["deeper-predictor", "feature-net"] = "deeper-predictor"  # feature-net: 2 outputs, errors added
    obs_norm: Literal["running", "frozen"] = "running"  # statistics of what RND sees; frozen: a random agent's
    frozen_obs_norm_steps: int = 1500  # environment steps of that agent


PRESETS = {  # what each differs in from the defaults
    "default": {},
    "seed-001": {
        "rnd_net": "feature-net",
        "obs_norm": "frozen",
        "int_norm": False,
        "int_clip": 1.0,
        "single_head": True,
        "ext_coef": 1.0,
        "reward_norm": False,
        "clip_vloss": False,  # at rewards of 100 values could not follow
    },
}


# ------------------------------------------------------------------------------------------------ Environment
def flat(obs: np.ndarray | dict) -> np.ndarray:
    """Observations of N environments -> (N, D) float32. Parts of a dictionary stand in the order of their names."""
    if isinstance(obs, dict):
        return np.concatenate([flat(obs[name]) for name in sorted(obs)], 1)
    return obs.reshape(len(obs), -1).astype(np.float32)


def sizes(env_id: str) -> tuple[int, int]:
    """How many numbers an observation has, D, and how many an action, A."""
    spec = envpool.make_spec(env_id)
    return gym.spaces.flatdim(spec.observation_space), gym.spaces.flatdim(spec.action_space)


class ContinuousEnvs:
    """N copies of an environment. The one place where auto-reset is dealt with.

    EnvPool, which trains, and gymnasium, which evaluates, reset an environment on the step *after* the one
    that ended the episode: that step ignores its action, returns the first observation of the next episode and
    a reward of 0. It is not experience. `step` marks it with valid = False. The step before it returned the
    episode's last observation, whose value stands in for what the time limit cut off.
    """

    def __init__(self, args: Args, seeds: list[int], backend: str = "envpool"):
        self.backend, N = backend, len(seeds)
        if backend == "envpool":
            threads = min(N, torch.get_num_threads())  # 1, or OMP_NUM_THREADS: see main
            options = {"env_type": "gymnasium", "num_envs": N, "num_threads": threads, "seed": seeds}
            self.pool = envpool.make(args.env_id, **options)
        else:
            mode = "rgb_array" if args.capture_video else None
            self.pool = gym.vector.SyncVectorEnv([lambda: gym.make(args.env_id, render_mode=mode)] * N)
        space = self.pool.single_action_space
        self.low, self.high = space.low, space.high  # (A,)
        self.stats = EpisodeStats(N, args.solved_score)
        self.reset()

    def reset(self, seed: int | None = None) -> None:
        """Starts an episode in every copy; EnvPool is seeded at its creation. Sets `obs` (N, D)."""
        obs, _ = self.pool.reset(seed=seed if self.backend == "gymnasium" else None)
        self.obs, self.done = flat(obs), np.zeros(self.pool.num_envs, bool)  # (N,) ended by the step before

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Plays actions (N, A), clipped to the action space (CleanRL).

        Returns: observations (N, D) float32; rewards (N,); done (N,) bool, the episode ends here; truncated (N,)
        bool, it is cut by the time limit; valid (N,) bool, False where the step was a reset.
        """
        actions = actions.reshape(-1, *self.low.shape).clip(self.low, self.high).astype(self.low.dtype)
        obs, rewards, terminated, truncated, _ = self.pool.step(actions)
        valid = ~self.done  # of the step before
        self.obs, self.done = flat(obs), terminated | truncated
        self.stats.add(rewards, self.done, valid)
        # an end on the very last step: gymnasium says ended and cut, which is an end; EnvPool says only cut
        return self.obs, rewards, self.done, truncated & ~terminated, valid


# --------------------------------------------------------------------------------------------------- Networks
def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (reference: every layer of every network)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(obs_size: int, num_outputs: int, gain: float) -> nn.Sequential:
    """Observations (..., D) -> outputs (..., num_outputs): two layers of 64 with tanh (CleanRL)."""
    hidden = [init_layer(nn.Linear(obs_size, 64)), nn.Tanh(), init_layer(nn.Linear(64, 64)), nn.Tanh()]
    return nn.Sequential(*hidden, init_layer(nn.Linear(64, num_outputs), gain))


class Agent(nn.Module):
    """Policy and values, and the statistics that normalise what the agent sees and is paid.

    The order of the value heads is intrinsic, extrinsic; or one head, for their sum.
    """

    def __init__(self, args: Args, obs_size: int, num_actions: int, device: torch.device):
        super().__init__()
        self.policy = mlp(obs_size, num_actions, gain=0.01)
        self.value = mlp(obs_size, 1 if args.single_head else 2, args.value_gain)
        self.log_std = nn.Parameter(torch.zeros(num_actions))
        self.obs_rms = RunningMoments((obs_size,), device)
        self.return_rms = RunningMoments((), device)
        self.register_buffer("filtered", torch.zeros(args.num_envs))  # (N,) discounted sums of rewards
        self.to(device)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the agent sees (..., D) -> mean of the actions (..., A), values (..., H)."""
        return self.policy(inputs), self.value(inputs)


def rnd_layers(obs_size: int) -> list[nn.Module]:
    """What RND sees (B, D) -> features (B, 128): layers of the target, and the predictor's first."""
    return [init_layer(nn.Linear(obs_size, 128)), nn.ReLU(), init_layer(nn.Linear(128, 128))]


def feature_net(obs_size: int) -> nn.Sequential:
    """What RND sees (B, D) -> features (B, 2): target and predictor of --preset seed-001, PyTorch's own weights."""
    first, second, third = nn.Linear(obs_size, 256), nn.Linear(256, 256), nn.Linear(256, 256)
    return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), nn.Linear(256, 2))


class RND(nn.Module):
    """The target, the predictor, and the statistics that normalise what they see and what they pay."""

    def __init__(self, net: str, num_envs: int, obs_size: int, device: torch.device):
        super().__init__()
        if net == "feature-net":
            self.target, self.predictor = feature_net(obs_size), feature_net(obs_size)
        else:
            # The predictor is two layers deeper, so that it can represent the target. Then the error that is left
            # comes from what it has not seen (paper section 2.2.1).
            self.target = nn.Sequential(*rnd_layers(obs_size))
            deeper = [nn.ReLU(), init_layer(nn.Linear(128, 128)), nn.ReLU(), init_layer(nn.Linear(128, 128))]
            self.predictor = nn.Sequential(*rnd_layers(obs_size), *deeper)
        self.target.requires_grad_(False)
        self.obs_rms = RunningMoments((obs_size,), device)
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


def normalise_obs(obs: Tensor, obs_rms: RunningMoments) -> Tensor:
    """Observations (N, D) -> what the agent sees (N, D) (gymnasium's NormalizeObservation), clipped at 10."""
    return ((obs - obs_rms.mean) / (obs_rms.var + 1e-8).sqrt()).float().clamp(-10, 10)


def normalise_rewards(agent: Agent, rewards: Tensor, terminated: Tensor, valid: Tensor, gamma: float) -> Tensor:
    """Rewards, terminated, valid (T, N) -> rewards divided by the std of F (T, N), clipped at 10.

        F(t) = gamma * F(t-1) * (1 - terminated(t)) + r(t)    (gymnasium's NormalizeReward)

    As there, a terminal step drops the sum before it and hands its own reward on to the next episode; a cut
    drops nothing. F enters the statistics before its reward is divided. A reset step leaves both as they are.
    """
    normalised = []
    for reward, end, ok in zip(rewards, terminated, valid, strict=True):  # (N,) each
        agent.filtered = torch.where(ok, gamma * agent.filtered * ~end + reward, agent.filtered)
        agent.return_rms.update(agent.filtered, ok)
        normalised.append(reward / (agent.return_rms.var + 1e-8).sqrt().float())
    return torch.stack(normalised).clamp(-10, 10)


def whiten(obs: Tensor, obs_rms: RunningMoments) -> Tensor:
    """Observations (..., D) -> what RND sees (..., D), whitened entry by entry and clipped at 5 std.

    Not what the agent sees: these statistics change once a rollout, so that reward and predictor see the same.
    """
    return ((obs - obs_rms.mean.float()) / obs_rms.var.sqrt().float()).clamp(-5, 5)


def novelty(rnd: RND, seen: Tensor, args: Args) -> Tensor:
    """Raw intrinsic reward, and the predictor's loss: what RND sees (..., D) -> squared error of the features (...)."""
    squares = (rnd.predictor(seen) - rnd.target(seen)).square()  # (..., F)
    return squares.sum(-1) if args.rnd_net == "feature-net" else squares.mean(-1)


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


def ppo_loss(policy: Normal, values: Tensor, batch: dict[str, Tensor], args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate, value losses and entropy of one minibatch (Schulman et al. 2017, eq. 7 and 9).

    Args: policy (B, A) and values (B, H) of the network being trained; batch: actions (B, A), logprobs, advantages
    (B,), values and returns (B, H) of the rollout.
    Returns: the loss, and what to log.
    """
    advantages = batch["advantages"]
    if args.norm_adv:
        advantages = (advantages - advantages.mean()) / (advantages.std(correction=0) + 1e-8)
    logratio = policy.log_prob(batch["actions"]).sum(1) - batch["logprobs"]
    ratio = logratio.exp()
    clipped_ratio = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
    policy_loss = -torch.minimum(advantages * ratio, advantages * clipped_ratio).mean()

    errors = (values - batch["returns"]).square()  # (B, H)
    if args.clip_vloss:
        clipped = batch["values"] + (values - batch["values"]).clamp(-args.clip_coef, args.clip_coef)
        errors = torch.maximum(errors, (clipped - batch["returns"]).square())
    value_losses = {}
    coefs = {"": 1.0} if args.single_head else {"_int": args.int_coef, "_ext": args.ext_coef}
    for error, (stream, coef) in zip(errors.mean(0), coefs.items(), strict=True):
        # a stream that is turned off does not shape the value network either, which both share
        value_losses[f"value_loss{stream}"] = 0.5 * error * (coef > 0)
    value_loss = sum(value_losses.values())
    entropy = policy.entropy().sum(1).mean()
    loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy
    return loss, value_losses | {
        "policy_loss": policy_loss,
        "value_loss": value_loss,
        "entropy": entropy,
        "approx_kl": (ratio - 1 - logratio).mean(),
        "clipfrac": ((ratio - 1).abs() > args.clip_coef).float().mean(),
    }


# --------------------------------------------------------------------------------- The steps of the algorithm
class Rollout(NamedTuple):
    """T steps of N environments. The last row of obs, inputs and values is what follows the last step."""

    obs: Tensor  # (T+1, N, D) as the environments show them
    inputs: Tensor  # (T+1, N, D) the same, normalised: what the agent sees
    actions: Tensor  # (T, N, A) as drawn, not clipped
    logprobs: Tensor  # (T, N)
    values: Tensor  # (T+1, N, H) intrinsic, extrinsic; or one for both
    rewards: Tensor  # (T, N) extrinsic, with --reward-norm normalised
    dones: Tensor  # (T, N) bool
    truncated: Tensor  # (T, N) bool, done because of the time limit
    valid: Tensor  # (T, N) bool, False where the step was a reset


def empty_rollout(T: int, N: int, D: int, A: int, num_heads: int, device: torch.device) -> Rollout:
    """The storage of a rollout, written anew in every iteration."""
    with device:
        return Rollout(
            obs=torch.zeros((T + 1, N, D)),
            inputs=torch.zeros((T + 1, N, D)),
            actions=torch.zeros((T, N, A)),
            logprobs=torch.zeros((T, N)),
            values=torch.zeros((T + 1, N, num_heads)),
            rewards=torch.zeros((T, N)),
            dones=torch.zeros((T, N), dtype=torch.bool),
            truncated=torch.zeros((T, N), dtype=torch.bool),
            valid=torch.zeros((T, N), dtype=torch.bool),
        )


def warm_up(envs: ContinuousEnvs, rnd: RND, args: Args, run: "Run") -> None:
    """A random agent fills the statistics that --obs-norm frozen keeps. Then all episodes begin anew."""
    low, high = torch.from_numpy(envs.low).float(), torch.from_numpy(envs.high).float()
    while rnd.obs_rms.count < args.frozen_obs_norm_steps and not run.signal:
        actions = low + (high - low) * torch.rand(args.num_envs, *low.shape)
        obs, *_, valid = envs.step(actions.numpy())
        rnd.obs_rms.update(*(torch.from_numpy(x).to(rnd.filtered.device) for x in (obs, valid)))
    envs.stats.load_state_dict(envs.stats.state_dict())  # these episodes do not count
    envs.reset()


@torch.no_grad()
def collect(envs: ContinuousEnvs, agent: Agent, rollout: Rollout, args: Args) -> None:
    """Plays T steps with the policy and writes them into the rollout."""
    obs, inputs, actions, logprobs, values, rewards, dones, truncated, valid = rollout
    std, every_row = agent.log_std.exp(), torch.ones_like(valid[0])
    obs[0], inputs[0] = obs[-1], inputs[-1]
    for t in range(args.num_steps):
        actions[t] = torch.normal(agent.policy(inputs[t]), std)
        step = envs.step(actions[t].cpu().numpy())
        obs[t + 1], rewards[t], dones[t], truncated[t], valid[t] = map(torch.from_numpy, step)
        agent.obs_rms.update(obs[t + 1], every_row)  # resets too: the agent acts on what they show
        inputs[t + 1] = normalise_obs(obs[t + 1], agent.obs_rms)
    mean, values[:] = agent(inputs)  # all at once: the agent has not changed
    logprobs[:] = Normal(mean[:-1], std, validate_args=False).log_prob(actions).sum(-1)
    if args.reward_norm:
        rewards[:] = normalise_rewards(agent, rewards, dones & ~truncated, valid, args.gamma)


@torch.no_grad()
def intrinsic_rewards(rnd: RND, rollout: Rollout, args: Args) -> Tensor:
    """r_int (T, N): the predictor's error at what the step led to, divided by the std of its `reward_filter`."""
    if args.int_coef == 0:
        return torch.zeros_like(rollout.rewards)
    obs, valid = rollout.obs[1:], rollout.valid
    if args.obs_norm == "running":
        # reference: 50 rollouts of a random agent first, here: none, because each rollout enters the
        # statistics before it is rewarded
        rnd.obs_rms.update(obs.flatten(0, 1), valid.flatten())
    intrinsic = novelty(rnd, whiten(obs, rnd.obs_rms), args)
    if args.int_norm:
        discounted, rnd.filtered = reward_filter(intrinsic, valid, args.int_gamma, rnd.filtered)
        rnd.return_rms.update(discounted.flatten(), valid.flatten())
        intrinsic = intrinsic / rnd.return_rms.var.sqrt().float()
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
        if args.bootstrap_truncated and head == len(streams) - 1:  # the one with the rewards
            r = r + gamma * v[1:] * rollout.truncated  # v[t+1] is of the episode's last observation
        stream_advantages = gae(r, v, ends, rollout.valid, gamma, args.gae_lambda)
        returns[..., head] = stream_advantages + v[:-1]
        advantages += coef * stream_advantages
    return advantages, returns


def update(
    agent: Agent, rnd: RND, optimizer: Adam, rollout: Rollout, advantages: Tensor, returns: Tensor, args: Args
) -> dict[str, Tensor]:
    """Several passes over the rollout for policy and values, the first for the predictor too. Returns means to log."""
    data = {key: getattr(rollout, key)[: args.num_steps] for key in ("inputs", "actions", "logprobs", "values")}
    data |= {"advantages": advantages, "returns": returns}  # each (T, N, ...)
    data = {key: x[rollout.valid] for key, x in data.items()}  # (V, ...): without the resets
    seen = whiten(rollout.obs[1:][rollout.valid], rnd.obs_rms)  # (V, D)
    logged: dict[str, list[Tensor]] = collections.defaultdict(list)
    for epoch in range(args.update_epochs):
        order = torch.randperm(len(data["advantages"]), device=advantages.device)
        for chosen in order.tensor_split(args.num_minibatches):
            batch = {key: x.index_select(0, chosen) for key, x in data.items()}  # (V/M, ...)
            optimizer.zero_grad()  # to None, so that Adam leaves the predictor alone after the first epoch
            if args.int_coef > 0 and epoch == 0:
                predictor_loss = novelty(rnd, seen[chosen], args).mean()  # a bonus of your own: its loss
                predictor_loss.backward()
                logged["losses/predictor_loss"].append(predictor_loss.detach())
            mean, values = agent(batch["inputs"])
            policy = Normal(mean, agent.log_std.exp(), validate_args=False)
            loss, metrics = ppo_loss(policy, values, batch, args)
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm or math.inf)
            for key, value in (metrics | {"grad_norm": grad_norm}).items():
                logged[f"losses/{key}"].append(value.detach())
            optimizer.step()
    return {key: torch.stack(values).mean() for key, values in logged.items()}


# --------------------------------------------------------------------------------------------------- Training
def train(args: Args, device: torch.device, path: pathlib.Path | None, saved: dict | None) -> int:
    """Trains to the end, solved or a signal, on from what was `saved` in `path`. Returns the exit status."""
    T, N, H = args.num_steps, args.num_envs, 1 if args.single_head else 2
    per_iteration, step = T * N, saved["step"] if saved else 0  # environment steps
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # numbers below 1e-38, which CPUs are slow with, are 0: Adam has many
    D, A = sizes(args.env_id)
    rollout = empty_rollout(T, N, D, A, H, device)  # first, to find out whether there is the memory for N
    seeds = np.random.SeedSequence((args.seed, step)).generate_state(N) >> 1  # others after a resume
    envs = ContinuousEnvs(args, seeds.tolist())
    agent, rnd = Agent(args, D, A, device), RND(args.rnd_net, N, D, device)
    groups = [{"params": [*agent.parameters()], "lr": args.learning_rate}]
    groups += [{"params": [*rnd.predictor.parameters()], "lr": args.predictor_learning_rate}]
    optimizer = Adam(groups, eps=1e-5, fused=True)  # eps: CleanRL's, for the predictor too (reference: 1e-8)
    # what a checkpoint holds: modules, or what has a state_dict of tensors and plain Python
    learner = {"agent": agent, "rnd": rnd, "optimizer": optimizer, "stats": envs.stats}
    with contextlib.closing(Run(args, learner, rollout, path, saved)) as run:
        if args.obs_norm == "frozen" and args.int_coef > 0 and rnd.obs_rms.count < args.frozen_obs_norm_steps:
            warm_up(envs, rnd, args, run)
        rollout.obs[-1] = torch.from_numpy(envs.obs)
        agent.obs_rms.update(rollout.obs[-1], torch.ones(N, device=device))
        rollout.inputs[-1] = normalise_obs(rollout.obs[-1], agent.obs_rms)
        run.bar, run.logged = run.stack.enter_context(Progress(args.total_timesteps, step)), time.monotonic()
        while step + per_iteration <= args.total_timesteps and not (run.signal or envs.stats.solved):
            if args.anneal_lr:  # the agent's; the predictor's stays
                optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - step / args.total_timesteps)
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
    rollout, most = args.num_envs * args.num_steps, args.num_envs * (args.num_steps // 2)
    counts = "num_envs num_steps num_minibatches update_epochs eval_episodes frozen_obs_norm_steps"
    for flags, holds, rule in (
        (counts, lambda x: 1 <= x < 2**31, "at least 1 and below 2^31"),
        ("seed checkpoint_interval", lambda x: 0 <= x < 2**63, "at least 0 and below 2^63"),
        ("ent_coef vf_coef int_coef ext_coef", lambda x: 0 <= x < math.inf, "at least 0 and finite"),
        ("gamma int_gamma gae_lambda", lambda x: 0 <= x <= 1, "in [0, 1]"),
        ("learning_rate predictor_learning_rate clip_coef value_gain", lambda x: 0 < x < math.inf, "a positive number"),
        ("max_grad_norm int_clip", lambda x: 0 < x < math.inf, "a positive number"),
        ("solved_score", lambda x: not math.isnan(x), "a number"),
        # every second step may be a reset, and no minibatch may be empty
        ("num_minibatches", lambda x: x <= most, f"at most {most}, half of the steps in a rollout"),
        ("total_timesteps", lambda x: rollout <= x < 2**63, f"at least one rollout, {rollout} steps, and below 2^63"),
        ("ext_coef", lambda x: x + args.int_coef > 0, "above 0 with --int-coef 0, or nothing is learned"),
        ("evaluate", lambda _: args.resume is None, "without --resume"),
        ("num_envs", lambda _: os.environ.get("WORLD_SIZE") in (None, "1"), "run without torchrun"),
        ("device", lambda x: x == "auto" or getattr(torch, x).is_available(), "on this machine, and in this PyTorch"),
        ("track", lambda x: not x or importlib.util.find_spec("wandb"), "with wandb: pip install wandb"),
    ):
        for flag in flags.split():
            if (value := getattr(args, flag)) is not None and not holds(value):
                raise UserError(f"--{flag.replace('_', '-')} {value}: must be {rule}")


def resolve_env_id(name: str) -> str:
    """The id: `HalfCheetah-v5` for `halfcheetah`, `CartpoleSwingup-v1` for `dm_control/cartpole_swingup`."""

    def letters(name: str) -> str:
        return re.sub("[^a-z0-9]", "", name.lower())

    ids = {letters(x): x for x in sorted(envpool.list_all_envs())}
    ids |= {letters(x.rsplit("-v", 1)[0]): x for x in ids.values()}  # sorted, so that the newest version is the last
    key = letters(name) if letters(name) in ids else letters(name.rsplit("/", 1)[-1])
    if key in ids:
        with contextlib.suppress(ImportError, RuntimeError):  # of Procgen, which shows pictures
            spec = envpool.make_spec(ids[key])
            if spec.action_space.dtype.kind == "f" and "uint8" not in repr(spec.observation_space):
                return ids[key]
        raise UserError(f"--env-id {name}: {ids[key]} has no continuous actions, or shows pictures")
    hints = dict.fromkeys(ids[match] for match in difflib.get_close_matches(key, ids))
    hint = f"did you mean {' or '.join(hints)}?" if hints else "EnvPool does not have it"
    raise UserError(f"--env-id {name}: no such environment; {hint}")


class EpisodeStats:
    """Returns and lengths of episodes."""

    def __init__(self, num_envs: int, solved_score: float | None):
        self.returns, self.lengths = np.zeros(num_envs), np.zeros(num_envs, int)  # (N,) of the episodes under way
        self.solved_score = math.inf if solved_score is None else solved_score
        self.load_state_dict({"recent": []})

    def load_state_dict(self, state: dict) -> None:
        """Takes over what a checkpoint says of past episodes, and forgets all others, those under way too."""
        self.returns[:], self.lengths[:] = 0, 0
        self.episodes: list[tuple[float, int]] = []  # (return, length) since the last log
        self.recent = collections.deque(state["recent"], maxlen=100)  # the last returns
        self.waiting = np.ones(len(self.returns), bool)  # (N,) has ended no episode yet

    def state_dict(self) -> dict:
        return {"recent": [*self.recent]}

    def add(self, rewards: np.ndarray, done: np.ndarray, valid: np.ndarray) -> None:
        """Takes in a step of all environments, arguments (N,)."""
        self.returns += rewards * valid
        self.lengths += valid
        for i in np.flatnonzero(done & valid):
            self.episodes.append((float(self.returns[i]), int(self.lengths[i])))
            self.returns[i], self.lengths[i], self.waiting[i] = 0, 0, False

    def scalars(self) -> dict[str, float]:
        """What to log of the episodes since the last call."""
        episodes, self.episodes = self.episodes, []
        if not self.waiting.any():  # before that, only the short ones have ended
            self.recent.extend(score for score, _ in episodes)
        scalars = {}
        if episodes:
            scalars["charts/episodic_return"], scalars["charts/episodic_length"] = np.mean(episodes, axis=0)
            scalars["charts/return_above_0"] = np.mean([score > 0 for score, _ in episodes])
        if len(self.recent) == self.recent.maxlen:
            scalars["charts/score"] = np.mean(self.recent)
        return scalars

    @property
    def solved(self) -> bool:
        """Is the mean of the last 100 returns above --solved-score?"""
        return len(self.recent) == self.recent.maxlen and bool(np.mean(self.recent) > self.solved_score)

    def __str__(self) -> str:
        if not self.recent:
            return "return -"
        paid = np.mean(np.array(self.recent) > 0)
        return f"{'solved: ' if self.solved else ''}return {np.mean(self.recent):.1f}, above 0: {paid:.0%}"


@torch.no_grad()
def diagnostics(agent: Agent, rnd: RND, rollout: Rollout, intrinsic: Tensor, returns: Tensor) -> dict[str, Tensor]:
    """What to log beside the means of the update."""
    scalars = {
        "rnd/intrinsic_reward": intrinsic[rollout.valid].mean(),
        "rnd/intrinsic_return_std": rnd.return_rms.var.sqrt().float(),
        "charts/action_std": agent.log_std.exp().mean(),
    }
    for head, suffix in enumerate(("_int", "_ext") if returns.shape[2] == 2 else ("",)):
        targets, valid = returns[..., head], rollout.valid
        errors = targets - rollout.values[:-1, :, head]  # the stream's advantages
        unexplained = errors[valid].var(correction=0) / targets[valid].var(correction=0)  # NaN: 0 / 0
        scalars[f"losses/explained_variance{suffix}"] = (1 - unexplained).clamp(min=-1)
        scalars[f"losses/advantage_rms{suffix}"] = errors[valid].square().mean().sqrt()
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
        scalars |= self.stats.scalars() | {"charts/SPS": (step - self.step) / (now - self.logged)}
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
        for part in ("agent", "rnd"):  # --num-envs may be another
            filtered, N = saved[part]["filtered"], len(learner[part].filtered)
            saved[part]["filtered"] = filtered[torch.arange(N) % len(filtered)]
        saved["optimizer"]["param_groups"] = learner["optimizer"].state_dict()["param_groups"]  # as the flags
        for name, part in learner.items():
            part.load_state_dict(saved[name])
        torch.set_rng_state(saved["rng"][0])
        if torch.cuda.is_initialized() and saved["rng"][1] is not None:
            torch.cuda.set_rng_state(saved["rng"][1])


# ------------------------------------------------------------------------------------------------- Evaluation
def evaluation_backend(args: Args) -> str:
    """gymnasium where it, or Gymnasium-Robotics, has the environment and what that needs; else EnvPool."""
    if args.capture_video and sys.platform == "linux" and "DISPLAY" not in os.environ:
        os.environ.setdefault("MUJOCO_GL", "egl")  # draw without a screen
    try:
        if args.env_id not in gym.registry:
            importlib.import_module("gymnasium_robotics")  # registers mazes, arms and hands
        env = gym.make(args.env_id, render_mode="rgb_array" if args.capture_video else None)
    except (gym.error.Error, ImportError):
        if args.capture_video:
            hint = "; mazes, hands and kitchens need gymnasium-robotics"
            raise UserError(f"no film: gymnasium does not have {args.env_id}{hint}") from None
        return "envpool"
    if args.capture_video:
        try:
            env.reset()
            env.render()
        except Exception as error:  # of drivers, which raise anything
            raise UserError(f"no film: nothing draws here ({error!r})") from None
    env.close()
    return "gymnasium"


@torch.no_grad()
def evaluate(args: Args, device: torch.device, path: pathlib.Path, saved: dict) -> None:
    """Plays episodes with the policy of a checkpoint, actions drawn as in training. Prints returns as they are."""
    seeds = np.random.SeedSequence(args.seed, spawn_key=(1,)).generate_state(args.eval_episodes) >> 1
    envs = ContinuousEnvs(args, seeds[:1].tolist(), evaluation_backend(args))
    with reading(path):
        args.num_envs = len(saved["agent"]["filtered"])  # the size of a buffer that is not used here
        agent = Agent(args, envs.obs.shape[1], envs.low.size, device)
        agent.load_state_dict(saved["agent"])
    print(f"{path}, step {saved['step']:,}: {args.eval_episodes} episodes of {args.env_id} in {envs.backend}")
    torch.manual_seed(args.seed)
    for episode, seed in enumerate(seeds.tolist()):
        video = path.parent / "videos" / f"{args.env_id}_{path.stem}_episode{episode}.mp4"
        film = contextlib.nullcontext()
        if args.capture_video:
            video.parent.mkdir(exist_ok=True)
            film = imageio.get_writer(video, fps=25, macro_block_size=2)
        with film as writer:
            envs.reset(seed)
            while not envs.done:
                mean = agent.policy(normalise_obs(torch.from_numpy(envs.obs).to(device), agent.obs_rms))
                actions = mean if args.deterministic else torch.normal(mean, agent.log_std.exp())
                envs.step(actions.cpu().numpy())
                if writer:
                    writer.append_data(envs.pool.render()[0])  # (H, W, 3)
        if args.capture_video:
            score, length = envs.stats.episodes[-1]
            print(f"episode {episode}: return {score:.1f}, {length} steps, {video}")
    envs.pool.close()
    returns, lengths = np.array(envs.stats.episodes).T
    error = f" +- {returns.std(ddof=1) / len(returns) ** 0.5:.1f}" if len(returns) > 1 else ""
    print(f"return {returns.mean():.1f}{error} (mean, standard error), ", end="")
    print(f"above 0: {(returns > 0).mean():.0%}, length {lengths.mean():.1f}")


# ------------------------------------------------------------------------------------------------ Entry point
def parse(argv: list[str] | None) -> tuple[Args, pathlib.Path | None, dict | None]:
    """The flags, with --resume or --evaluate the run's where none is given anew; and its checkpoint."""
    args, path, saved = tyro.cli(Args, args=argv, description=__doc__), None, None
    was = Args(preset=args.preset, **PRESETS[args.preset])
    if (source := args.evaluate if args.resume is None else args.resume) is not None:
        path, saved = load_checkpoint(source)
        was = Args(**saved["args"])
        if args.resume is None:  # an evaluation needs nothing that only training needs
            was = dataclasses.replace(was, device="cpu", track=False)
    args = tyro.cli(Args, args=argv, default=was)
    if saved and args.preset != was.preset:
        raise UserError(f"{path} is of a run with --preset {was.preset}; another preset is for a new run")
    check_args(args)
    args.env_id, args.runs_dir = resolve_env_id(args.env_id), os.path.expanduser(args.runs_dir)
    args.total_timesteps = int(args.total_timesteps)
    for flag, value in vars(args).items() if args.resume else ():
        if value != getattr(was, flag) and flag != "resume":
            print(f"changed      --{flag.replace('_', '-')} from {getattr(was, flag)} to {value}")
    if args.resume and args.env_id != was.env_id:  # scores of another environment say nothing
        saved["stats"], saved["best_score"] = {"recent": []}, -math.inf
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
