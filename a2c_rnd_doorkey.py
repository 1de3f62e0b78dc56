# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "minigrid==3.2.0", "envpool==1.2.5",
#   "imageio==2.38.1", "tyro==1.0.17", "tensorboard==2.21.0", "tqdm==4.70.1", "filelock==4.3.1"
# ]
# ///
"""A2C with and without Random Network Distillation (RND) on MiniGrid's DoorKey, in one file.

Papers: Mnih et al. (2016), Asynchronous Methods for Deep Reinforcement Learning, arXiv:1602.01783; Burda,
Edwards, Storkey, Klimov (2018), Exploration by Random Network Distillation, arXiv:1810.12894. Task, networks
and default constants are those of a course's notebook, "Exploration and Curiosity" (alessiodm/drl-zh, 2025).

DoorKey: the agent is in a room with a key. A locked door leads to a room with the goal. It sees 7 x 7 tiles
ahead and is paid once, at the goal: 1 - 0.9 * steps / limit. A random agent gets there in 2.3 % of the episodes
on 8x8 and in 0.5 % on 16x16. A2C plays T steps in N copies, then takes one gradient step on all of them:

    A(t) = sum over k of (gamma * lambda)^k * delta(t+k),   delta(t) = r(t) + gamma * V(t+1) - V(t)
    R(t) = A(t) + V(t), the return that V is to learn
    loss = mean over steps of -log pi(a(t) | o(t)) * A(t) + vf_coef * (R(t) - V(t))^2 - ent_coef * entropy

RND adds a reward for what is new. A random network f, the target, is never trained. A second network g, the
predictor, learns to agree with it on what the agent sees. Where they disagree, the agent has seldom been:

    r_int(t) = |g(o(t+1)) - f(o(t+1))|^2 / 256      intrinsic reward of the step from o(t) to o(t+1)
    A        = int_coef * A_int + ext_coef * A_ext  two value heads, two advantages, one policy

The notebook simplifies RND, and says so. `--preset tuned` and `--preset tuned-16x16` put part of it
back and add to it, still with A2C and the same layers. Rates, weights, discounts, lambda and `--num-envs`
differ, the predictor's gradient is not clipped, and:
  1. A bonus for the first visit of an episode only (`--first-visit`): going back and forth earns nothing.
  2. The bonus is divided by the std of its return (`--int-norm`), whatever the networks' first weights make it.
  3. Codes as planes of 0 and 1 (`--one-hot`). As a number a door, 4, would be four times an empty tile, 1.
  4. Orthogonal weights (`--orthogonal`), with which a random target tells views apart.
  5. A predictor that learns on what it rewarded (`--same-obs`), with all its units (`--dropout 0`).
  6. Up to 8x8, advantages divided by their std (`--norm-adv`), so that a small bonus teaches as well. Not at
     16x16, where the goal is rare and has to count. There what RND sees is whitened (`--obs-norm`): what is
     seldom seen, such as an open door, then has the larger error.

Three commands, to train, to resume and to evaluate:
    python a2c_rnd_doorkey.py --env-id DoorKey-8x8 --preset tuned
    python a2c_rnd_doorkey.py --resume runs/RUN
    python a2c_rnd_doorkey.py --evaluate runs/RUN --eval-episodes 20 --capture-video

What to expect, on one core of a CPU, in 0.6 to 0.9 GB: `--preset tuned` solves 5x5 (a mean return above 0.95)
within 0.3M steps, in seconds, with or without the bonus, and 8x8 after 0.6M to 0.8M, in 1 to 3 minutes.
`--preset tuned-16x16` solves 16x16 after 1.6M to 3.7M, in 3 to 9 minutes. The notebook's settings solve 8x8
after 1.8M to 5.2M, and with `--int-coef 0` as fast. At 16x16 the notebook itself took 81M.
docs/results/doorkey.md has all seeds, with and without the bonus.
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

import envpool
import filelock
import gymnasium as gym
import imageio
import minigrid
import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
import tyro
from minigrid.wrappers import ImgObsWrapper
from torch import Tensor
from torch.optim import RMSprop
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclasses.dataclass
class Args:
    # The defaults are the notebook's. `--preset` puts others in their place; flags given beside it stand.
    # "paper" is RND's. `--help` shows the comments.

    # experiment
    preset: Literal["notebook", "notebook-16x16", "tuned", "tuned-16x16"] = "notebook"  # see PRESETS; here: notebook's
    seed: int = 1  # seed of the networks, the actions and the environments
    device: Literal["auto", "cuda", "mps", "cpu"] = "cpu"  # auto: cuda or mps if there is one, else cpu
    runs_dir: str = "runs"  # where the run's folder is made
    log_interval: int = 100  # rollouts between two lines of the log; a solved run stops at one
    checkpoint_interval: float = 1.0  # minutes between checkpoints; 0: one after every rollout
    resume: str | None = None  # a run's folder or checkpoint: go on, with its flags except those given anew
    evaluate: str | None = None  # a run's folder or checkpoint: play with it, do not train
    eval_episodes: int = 20  # episodes to play with --evaluate
    capture_video: bool = False  # with --evaluate: a film of every episode, in the run's folder
    track: bool = False  # send the logs to Weights & Biases too; WANDB_PROJECT, WANDB_MODE=offline work

    # environment
    env_id: str = "DoorKey-8x8"  # any of MiniGrid's; MiniGrid-DoorKey-8x8-v0 means the same
    backend: Literal["auto", "envpool", "gymnasium"] = "auto"  # auto: gymnasium for what EnvPool lacks or gets wrong
    num_envs: int = 32  # parallel environments, N

    # A2C
    total_timesteps: float = 20_000_000  # environment steps, one frame each
    solved_score: float | None = 0.95  # stop when the mean return of the last 100 episodes is higher; None: never
    num_steps: int = 16  # steps of each environment in a rollout, T
    learning_rate: float = 1e-4  # RMSprop's step size for policy and values
    gamma: float = 0.99  # discount of the extrinsic stream
    gae_lambda: float = 0.98  # lambda of generalised advantage estimation, both streams
    ent_coef: float = 0.01  # weight of the entropy bonus
    vf_coef: float = 0.5  # weight of the value losses, squared error for each head
    max_grad_norm: float = 0.5  # clip the norm of the gradient of policy and values
    norm_adv: bool = False  # divide the advantages of a rollout by their std
    orthogonal: bool = False  # orthogonal initial weights for all networks (notebook: PyTorch's own)
    one_hot: bool = False  # codes of a tile as planes of 0 and 1 (notebook: as numbers)

    # RND
    int_coef: float = 10.0  # weight of the intrinsic advantage; 0: A2C without the bonus
    ext_coef: float = 100.0  # weight of the extrinsic advantage (notebook: 100, without the bonus 1)
    int_gamma: float = 0.99  # discount of the intrinsic stream
    int_episodic: bool = True  # let the intrinsic stream end with the episode (paper: no)
    int_norm: bool = False  # divide the bonus by the running std of its discounted return (paper: yes)
    obs_norm: bool = False  # whiten what RND sees with running statistics and clip it at 5 std (paper: yes)
    same_obs: bool = False  # train the predictor on the views that it rewards (notebook: one before)
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
        "predictor_learning_rate": 1e-3,
        "predictor_max_grad_norm": None,
        "dropout": 0.0,
        "gamma": 0.995,
        "gae_lambda": 0.95,
        "ent_coef": 0.03,  # the key wants an action that is of no use anywhere else
        "norm_adv": True,  # a small bonus teaches as much as a large one
        "int_norm": True,
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
    "norm_adv": False,  # the goal is rare here, and when it comes it has to outweigh the noise in between
    "int_coef": 20.0,  # what is new in a rollout comes to an advantage of about 1
    "ext_coef": 40.0,
    "obs_norm": True,  # what is seldom seen, such as an open door, is far from the mean: a larger bonus
}


# ------------------------------------------------------------------------------------------------ Environment
def to_tensor(views: list[bytes]) -> Tensor:
    """U views as bytes -> (U, 7, 7, 3) uint8."""
    return torch.from_numpy(np.frombuffer(bytearray(b"".join(views)), np.uint8).reshape(-1, 7, 7, 3))


class MiniGridEnvs:
    """N copies of an environment. The one place where auto-reset is dealt with.

    A view is what the agent sees: 7 x 7 tiles, for each the codes of object, colour and state, (7, 7, 3) uint8.
    The agent stands at tile [3, 6] and looks to smaller second indices. What it carries lies in its own tile.
    `views` has the N views of the moment as bytes.

    Both packages reset an environment on the step *after* the one that ended the episode: that step ignores its
    action, returns the first view of the next episode and a reward of 0. It is not experience. `step` marks it
    with valid = False, and all but the count of steps leaves it out.
    """

    def __init__(self, args: Args, seed: int):
        # EnvPool 1.2.5 lacks some environments, and puts doors of MultiRoom into corners, where they lead nowhere:
        # 28 % of N2-S4 cannot be solved.
        known = args.env_id in envpool.list_all_envs()
        auto = "envpool" if known and "MultiRoom" not in args.env_id else "gymnasium"
        self.backend = auto if args.backend == "auto" else args.backend
        self.grey_boxes = self.backend == "envpool" and "ObstructedMaze" in args.env_id  # EnvPool 1.2.5's are blue
        if self.backend == "envpool":
            options = {"env_type": "gymnasium", "num_envs": args.num_envs, "num_threads": 1, "seed": seed}
            self.pool, self.options = envpool.make(args.env_id, **options), {}
        else:
            options = {"vectorization_mode": "sync", "wrappers": [ImgObsWrapper]}
            self.pool, self.options = gym.make_vec(args.env_id, args.num_envs, **options), {"seed": seed}
        self.num_actions = int(self.pool.single_action_space.n)
        self.done = np.zeros(args.num_envs, bool)  # (N,) the step before ended the episode
        self.seen = [collections.Counter() for _ in self.done]  # how often each view was seen in its episode
        self.stats = EpisodeStats(args.num_envs, args.solved_score)

    def look(self, obs: dict | np.ndarray, info: dict) -> np.ndarray:
        """Takes in the views that a package returns. Returns where the agents stand (N, 2)."""
        if self.backend == "envpool":
            obs, position = obs["image"], info["agent_pos"]
            if self.grey_boxes:
                obs[obs[..., 0] == 7, 1] = 5  # 7: a box; 5: grey, as in the minigrid package
        else:
            position = np.array([env.unwrapped.agent_pos for env in self.pool.envs])
        self.views = [view.tobytes() for view in obs]
        for view, seen in zip(self.views, self.seen, strict=True):
            seen[view] += 1
        return position

    def reset(self) -> None:
        """Starts an episode in every copy."""
        position = self.look(*self.pool.reset(**self.options))
        self.stats.add(np.zeros(len(self.done)), self.done, self.done, position)  # no step yet, only a place

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, ...]:
        """Plays actions (N,) int.

        Returns: rewards (N,); done (N,) bool, the episode ends here; truncated (N,) bool, it is cut by the time
        limit; visits (N,) int, how often the view was seen in its episode, this time included; valid (N,) bool,
        False where the step was a reset.
        """
        obs, rewards, terminated, truncated, info = self.pool.step(actions)
        valid = ~self.done
        for i in np.flatnonzero(self.done):
            self.seen[i].clear()
        position = self.look(obs, info)
        self.done = terminated | truncated
        # A goal or lava on the very last step is an end, not a cut. The minigrid package then says both, EnvPool
        # only that it was cut (so there lava, which pays nothing, cannot be told from a cut).
        truncated = truncated & ~terminated & (rewards == 0)
        self.stats.add(rewards, self.done, valid, position)
        visits = np.array([seen[view] for view, seen in zip(self.views, self.seen, strict=True)])
        return rewards, self.done, truncated, visits, valid


# --------------------------------------------------------------------------------------------------- Networks

NUM_CODES = (11, 6, 4)  # how many codes there are for object, colour and state


def encode(views: Tensor, one_hot: bool) -> Tensor:
    """Views (U, 7, 7, 3) uint8 -> (U, C, 7, 7) float32: codes as numbers, or 21 planes of 0 and 1."""
    if not one_hot:
        return views.permute(0, 3, 1, 2).float()
    codes = [F.one_hot(x, n) for x, n in zip(views.long().unbind(3), NUM_CODES, strict=True)]
    return torch.cat(codes, 3).permute(0, 3, 1, 2).float()


def conv_layers(num_planes: int) -> list[nn.Module]:
    """What a network sees (U, C, 7, 7) -> (U, 1024). All networks here start with these layers."""
    return [
        *(nn.Conv2d(num_planes, 16, 2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 2), nn.ReLU()),
        *(nn.Conv2d(32, 64, 2), nn.ReLU(), nn.Flatten()),
    ]


def init_orthogonal(network: nn.Module) -> None:
    """Orthogonal weights of gain sqrt(2), of the policy's and the values' last layers 0.01; zero biases."""
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.orthogonal_(layer.weight, 0.01 if name.endswith("_head") else 2**0.5)
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
        """What the agent sees (U, C, 7, 7) -> logits (U, num_actions), values (U, 2)."""
        hidden = self.features(inputs).split(64, 1)  # 3 x (U, 64)
        values = torch.cat([self.int_value_head(hidden[1]), self.ext_value_head(hidden[2])], 1)
        return self.policy_head(hidden[0]), values


class RND(nn.Module):
    """The target, the predictor, and the statistics that normalise what they see and what they pay."""

    def __init__(self, num_envs: int, num_planes: int, dropout: float, device: torch.device):
        super().__init__()
        # The predictor is two layers deeper, so that it can represent the target. Then the error that is left
        # comes from what it has not seen (paper section 2.2.1).
        self.target = nn.Sequential(*conv_layers(num_planes), nn.Linear(1024, 256)).requires_grad_(False)
        # In two parts. The trunk runs once for each view. The head begins with dropout: on when it learns, with
        # other units at each step, off when it rewards.
        self.predictor_trunk = nn.Sequential(*conv_layers(num_planes), nn.Linear(1024, 256))
        self.predictor_head = nn.Sequential(
            *(nn.Dropout(dropout), nn.ReLU(), nn.Linear(256, 256)),
            *(nn.Dropout(dropout), nn.ReLU(), nn.Linear(256, 256)),
        )
        self.obs_rms = RunningMoments((num_planes, 7, 7), device)
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


def whiten(inputs: Tensor, obs_rms: RunningMoments) -> Tensor:
    """What RND sees (U, C, 7, 7) -> the same, whitened entry by entry and clipped at 5 std."""
    return ((inputs - obs_rms.mean.float()) / obs_rms.var.sqrt().float()).clamp(-5, 5)


@torch.no_grad()
def novelty(rnd: RND, hidden: Tensor, targets: Tensor) -> Tensor:
    """Raw intrinsic reward: mean squared error of the predictor (U,), without dropout.

    Args: hidden (U, 256), what the predictor's trunk makes of the views; targets (U, 256).
    """
    rnd.eval()
    errors = (rnd.predictor_head(hidden) - targets).square().mean(1)
    rnd.train()
    return errors


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


def a2c_loss(logits: Tensor, values: Tensor, batch: dict[str, Tensor], args: Args) -> tuple[Tensor, dict[str, Tensor]]:
    """Policy gradient, value losses and entropy of one rollout (Mnih et al. 2016, section 4).

    Args: logits (B, A) and values (B, 2) of the network being trained; batch: actions, advantages, valid (B,)
    and returns (B, 2) of the rollout.
    Returns: the loss, and what to log.
    """
    valid = batch["valid"]
    logprobs = logits.log_softmax(1)  # (B, A)
    chosen = logprobs.gather(1, batch["actions"][:, None]).squeeze(1)  # (B,)
    policy_loss = masked_mean(-chosen * batch["advantages"], valid)
    entropy = masked_mean(-(logprobs.exp() * logprobs).sum(1), valid)

    value_losses = {}
    coefs = {"_int": args.int_coef, "_ext": args.ext_coef}
    for error, (stream, coef) in zip((values - batch["returns"]).square().unbind(1), coefs.items(), strict=True):
        # a stream that is turned off does not shape the features either
        value_losses[f"value_loss{stream}"] = masked_mean(error, valid) * (coef > 0)
    value_loss = sum(value_losses.values())
    loss = policy_loss + args.vf_coef * value_loss - args.ent_coef * entropy
    return loss, value_losses | {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}


# --------------------------------------------------------------------------------- The steps of the algorithm
class Rollout(NamedTuple):
    """T steps of N environments. The last row of index and values is what follows the last step.

    Of the (T+1) * N views that are shown, U are different, a fifth to a half of them. The networks see each of
    these once, not once a step: the same numbers, twice as fast.
    """

    obs: Tensor  # ((T+1) * N, 7, 7, 3) uint8, of which the first U are in use
    index: Tensor  # (T+1, N) int64, which of them is shown
    actions: Tensor  # (T, N) int64
    values: Tensor  # (T+1, N, 2) intrinsic, extrinsic
    rewards: Tensor  # (T, N) extrinsic
    dones: Tensor  # (T, N) bool
    visits: Tensor  # (T, N) int64, how often what the step led to was seen in its episode
    valid: Tensor  # (T, N) bool, False where the step was a reset

    @property
    def views(self) -> Tensor:
        """The different views (U, 7, 7, 3), in the order in which they came."""
        return self.obs[: self.index.max() + 1]


def empty_rollout(T: int, N: int, device: torch.device) -> Rollout:
    """The storage of a rollout, written anew in every iteration."""
    with device:
        return Rollout(
            obs=torch.zeros(((T + 1) * N, 7, 7, 3), dtype=torch.uint8),
            index=torch.zeros((T + 1, N), dtype=torch.int64),
            actions=torch.zeros((T, N), dtype=torch.int64),
            values=torch.zeros((T + 1, N, 2)),
            rewards=torch.zeros((T, N)),
            dones=torch.zeros((T, N), dtype=torch.bool),
            visits=torch.zeros((T, N), dtype=torch.int64),
            valid=torch.zeros((T, N), dtype=torch.bool),
        )


@torch.no_grad()
def collect(envs: MiniGridEnvs, agent: Agent, rollout: Rollout, args: Args) -> None:
    """Plays T steps with the policy and writes them into the rollout."""
    obs, index, actions, values, rewards, dones, visits, valid = rollout
    numbers: dict[bytes, int] = {}  # the different views, numbered in the order in which they came
    logits = torch.zeros((len(obs), envs.num_actions), device=obs.device)  # of each different view
    view_values = torch.zeros((len(obs), 2), device=obs.device)
    for t in range(args.num_steps + 1):
        first = len(numbers)
        index[t] = torch.tensor([numbers.setdefault(view, len(numbers)) for view in envs.views])
        if len(numbers) > first:
            new = slice(first, len(numbers))
            obs[new] = to_tensor([*numbers][new])
            logits[new], view_values[new] = agent(encode(obs[new], args.one_hot))
        if t < args.num_steps:
            actions[t] = torch.multinomial(logits[index[t]].softmax(1), 1).squeeze(1)
            step = envs.step(actions[t].cpu().numpy())
            rewards[t], dones[t], _, visits[t], valid[t] = map(torch.from_numpy, step)
    values[:] = view_values[index]


def intrinsic_rewards(rnd: RND, rollout: Rollout, args: Args) -> tuple[Tensor, Tensor]:
    """r_int (T, N), and the loss of the predictor on this rollout, from the same pass through its trunk."""
    index, valid = rollout.index, rollout.valid
    if args.int_coef == 0:
        return torch.zeros_like(rollout.rewards), rollout.rewards.new_zeros(())
    inputs = encode(rollout.views, args.one_hot)  # (U, C, 7, 7)
    if args.obs_norm:
        # reference: 50 rollouts of a random agent first, here: the statistics take in each rollout before it
        # is rewarded, because then the first is whitened by itself
        times = torch.bincount(index[1:][valid], minlength=len(inputs))  # (U,) excluding resets
        rnd.obs_rms.update(inputs, times)
        inputs = whiten(inputs, rnd.obs_rms)
    targets, hidden = rnd.target(inputs), rnd.predictor_trunk(inputs)  # (U, 256) each
    intrinsic = novelty(rnd, hidden, targets)[index[1:]]  # (T, N)
    if args.first_visit:
        intrinsic = intrinsic * (rollout.visits == 1)
    if args.int_norm:
        discounted, rnd.filtered = reward_filter(intrinsic, valid, args.int_gamma, rnd.filtered)
        rnd.return_rms.update(discounted.flatten(), valid.flatten())
        intrinsic = intrinsic / rnd.return_rms.var.sqrt().float()

    learned = (index[1:] if args.same_obs else index[:-1]).flatten()  # (B,)
    # dropout must differ from step to step, so with it the head runs for each; without, once a view
    predicted = rnd.predictor_head(hidden[learned]) if args.dropout else rnd.predictor_head(hidden)[learned]
    return intrinsic, masked_mean((predicted - targets[learned]).square().mean(1), valid.flatten())


def advantages_and_returns(rollout: Rollout, intrinsic: Tensor, args: Args) -> tuple[Tensor, Tensor]:
    """A = int_coef * A_int + ext_coef * A_ext (T, N), and what each value head is to learn (T, N, 2)."""
    rewards, dones, values = rollout.rewards, rollout.dones, rollout.values
    # a cut by the time limit is an end here (ppo_rnd_minigrid.py has --bootstrap-truncated)
    int_dones = dones if args.int_episodic else torch.zeros_like(dones)
    streams = [(intrinsic, int_dones, args.int_gamma, args.int_coef), (rewards, dones, args.gamma, args.ext_coef)]
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(values[:-1])
    for head, (r, ends, gamma, coef) in enumerate(streams):
        v = values[..., head]  # (T+1, N)
        stream_advantages = gae(r, v, ends, rollout.valid, gamma, args.gae_lambda)
        returns[..., head] = stream_advantages + v[:-1]
        advantages += coef * stream_advantages
    if args.norm_adv:
        advantages = advantages / (advantages[rollout.valid].std() + 1e-8)
    return advantages, returns


def update(
    agent: Agent,
    optimizer: RMSprop,
    rollout: Rollout,
    advantages: Tensor,
    returns: Tensor,
    predictor_loss: Tensor,
    args: Args,
) -> dict[str, Tensor]:
    """One RMSprop step on the whole rollout for policy, values and predictor. Returns what to log."""
    logits, values = agent(encode(rollout.views, args.one_hot))  # (U, A), (U, 2)
    acted_on = rollout.index[:-1].flatten()  # (B,)
    batch = {"actions": rollout.actions, "valid": rollout.valid, "advantages": advantages, "returns": returns}
    batch = {key: x.flatten(0, 1) for key, x in batch.items()}  # (B, ...)
    loss, metrics = a2c_loss(logits[acted_on], values[acted_on], batch, args)
    optimizer.zero_grad()
    (loss + predictor_loss).backward()
    parameters, predictor_parameters = (group["params"] for group in optimizer.param_groups)
    metrics["grad_norm"] = nn.utils.clip_grad_norm_(parameters, args.max_grad_norm)
    nn.utils.clip_grad_norm_(predictor_parameters, args.predictor_max_grad_norm or math.inf)
    optimizer.step()
    metrics["predictor_loss"] = predictor_loss
    return {f"losses/{key}": value.detach() for key, value in metrics.items()}


# --------------------------------------------------------------------------------------------------- Training
def train(args: Args, device: torch.device, path: pathlib.Path | None, saved: dict | None) -> int:
    """Trains to the end, solved or a signal, on from what was `saved` in `path`. Returns the exit status."""
    T, N = args.num_steps, args.num_envs
    per_iteration, step = T * N, saved["step"] if saved else 0  # environment steps
    torch.manual_seed(args.seed)
    rollout = empty_rollout(T, N, device)
    seed = int(np.random.SeedSequence((args.seed, step)).generate_state(1)[0] >> 1)  # another after a resume
    envs = MiniGridEnvs(args, seed)
    num_planes = sum(NUM_CODES) if args.one_hot else 3
    agent = Agent(envs.num_actions, num_planes).to(device)
    rnd = RND(N, num_planes, args.dropout, device)
    if args.orthogonal:
        init_orthogonal(agent)
        init_orthogonal(rnd)
    agent_group = {"params": agent.parameters(), "lr": args.learning_rate}
    predictor = [p for p in rnd.parameters() if p.requires_grad]
    optimizer = RMSprop([agent_group, {"params": predictor, "lr": args.predictor_learning_rate}])
    # what a checkpoint holds: modules, or what has a state_dict of tensors and plain Python
    learner = {"agent": agent, "rnd": rnd, "optimizer": optimizer, "stats": envs.stats}
    with contextlib.closing(Run(args, learner, rollout, path, saved)) as run:
        envs.reset()
        run.bar = run.stack.enter_context(Progress(args.total_timesteps, step))
        while step + per_iteration <= args.total_timesteps and not (run.signal or envs.stats.solved):
            collect(envs, agent, rollout, args)
            intrinsic, predictor_loss = intrinsic_rewards(rnd, rollout, args)
            advantages, returns = advantages_and_returns(rollout, intrinsic, args)
            scalars = update(agent, optimizer, rollout, advantages, returns, predictor_loss, args)
            step += per_iteration
            run.log(step, scalars | diagnostics(agent, rnd, rollout, intrinsic, returns, args))
            run.save()
        return run.finish()


# ----------------------------------------------- Machinery (alike in all scripts; skip it on a first reading)
class UserError(Exception):
    """Something that the user can put right: printed as one line, exit status 2."""


def check_args(args: Args) -> None:
    """Raises UserError at the first flag whose value makes no sense, before anything is created."""
    rollout = args.num_envs * args.num_steps
    counts = "num_envs num_steps log_interval eval_episodes"
    rates = "learning_rate predictor_learning_rate max_grad_norm predictor_max_grad_norm"
    for flags, holds, rule in (
        (counts, lambda x: 1 <= x < 2**31, "at least 1 and below 2^31"),
        ("seed checkpoint_interval", lambda x: 0 <= x < 2**63, "at least 0 and below 2^63"),
        ("ent_coef vf_coef int_coef ext_coef", lambda x: 0 <= x < math.inf, "at least 0 and finite"),
        ("gamma int_gamma gae_lambda", lambda x: 0 <= x <= 1, "in [0, 1]"),
        ("dropout", lambda x: 0 <= x < 1, "in [0, 1)"),
        (rates, lambda x: 0 < x < math.inf, "a positive number"),
        ("solved_score", lambda x: not math.isnan(x), "a number"),
        ("total_timesteps", lambda x: rollout <= x < 2**63, f"at least one rollout, {rollout} steps, and below 2^63"),
        ("ext_coef", lambda x: x + args.int_coef > 0, "above 0 with --int-coef 0, or nothing is learned"),
        ("evaluate", lambda _: args.resume is None, "without --resume"),
        ("device", lambda x: x == "auto" or getattr(torch, x).is_available(), "on this machine, and in this PyTorch"),
        ("track", lambda x: not x or importlib.util.find_spec("wandb"), "with wandb: pip install wandb"),
        ("num_envs", lambda _: os.environ.get("WORLD_SIZE") in (None, "1"), "run without torchrun"),
    ):
        for flag in flags.split():
            if (value := getattr(args, flag)) is not None and not holds(value):
                raise UserError(f"--{flag.replace('_', '-')} {value}: must be {rule}")


def resolve_env_id(name: str, backend: str) -> str:
    """The full id for any spelling of it, e.g. `MiniGrid-DoorKey-8x8-v0` for `DoorKey-8x8`; without -v the newest."""
    ids = {x.lower().removeprefix("minigrid-"): x for x in sorted(gym.registry) if x.startswith("MiniGrid-")}
    ids |= {key.rsplit("-v", 1)[0]: x for key, x in ids.items()}  # sorted, so that the newest version is the last
    key = name.lower().removeprefix("minigrid-")
    if key in ids and (backend != "envpool" or ids[key] in envpool.list_all_envs()):
        return ids[key]
    hints = dict.fromkeys(ids[match] for match in difflib.get_close_matches(key, ids))
    hint = f"did you mean {' or '.join(hints)}?" if hints else "this script plays MiniGrid"
    hint = f"--backend gymnasium has {ids[key]}" if key in ids else hint
    raise UserError(f"--env-id {name}: no such environment; {hint}")


class EpisodeStats:
    """Returns, lengths and cells visited of episodes."""

    def __init__(self, num_envs: int, solved_score: float | None):
        self.returns, self.lengths = np.zeros(num_envs), np.zeros(num_envs, int)  # (N,) of the episodes under way
        self.cells = [set() for _ in range(num_envs)]  # likewise: where the agent has been
        self.solved_score = math.inf if solved_score is None else solved_score
        self.load_state_dict({"recent": []})

    def load_state_dict(self, state: dict) -> None:
        """Takes over what a checkpoint says of past episodes, and forgets all others."""
        self.episodes: list[tuple[float, int, int, bool]] = []  # (return, length, cells, paid) since the last log
        self.means: dict[str, float] = {}  # of what was logged last
        self.recent = collections.deque(state["recent"], maxlen=100)  # the last returns
        self.waiting = np.ones(len(self.returns), bool)  # (N,) has ended no episode yet

    def state_dict(self) -> dict:
        return {"recent": [*self.recent]}

    def add(self, rewards: np.ndarray, done: np.ndarray, valid: np.ndarray, position: np.ndarray) -> None:
        """Takes in a step of all environments, arguments (N,) and position (N, 2)."""
        self.returns += rewards * valid
        self.lengths += valid
        for cells, place in zip(self.cells, position.tolist(), strict=True):
            cells.add(tuple(place))  # after a reset step: where the next episode begins
        for i in np.flatnonzero(done & valid):
            score = float(self.returns[i])
            self.episodes.append((score, int(self.lengths[i]), len(self.cells[i]), score > 0))
            self.returns[i], self.lengths[i], self.cells[i], self.waiting[i] = 0, 0, set(), False

    def scalars(self) -> dict[str, float]:
        """What to log of the episodes since the last call."""
        if not self.waiting.any():  # before each has ended one, those that ended are the short ones
            self.recent.extend(score for score, *_ in self.episodes)
        if self.episodes:
            names = "charts/episodic_return", "charts/episodic_length", "rnd/cells_visited", "charts/success_rate"
            self.means = dict(zip(names, np.mean(self.episodes, axis=0), strict=True))
        scalars, self.episodes = self.means if self.episodes else {}, []
        if len(self.recent) == self.recent.maxlen:
            scalars = scalars | {"charts/score": np.mean(self.recent)}
        return scalars

    @property
    def solved(self) -> bool:
        """Is the mean of the last 100 returns above --solved-score?"""
        return len(self.recent) == self.recent.maxlen and bool(np.mean(self.recent) > self.solved_score)

    def __str__(self) -> str:
        if not self.recent:
            return "return -"
        success = f"success {np.mean(np.array(self.recent) > 0):.2f}"
        cells = f", cells {self.means['rnd/cells_visited']:.0f}" if self.means else ""
        return f"{'solved: ' if self.solved else ''}return {np.mean(self.recent):.3f}, {success}{cells}"


@torch.no_grad()
def diagnostics(
    agent: Agent, rnd: RND, rollout: Rollout, intrinsic: Tensor, returns: Tensor, args: Args
) -> dict[str, Tensor]:
    """What to log beside the means of the update. The largest logit shows a policy that has diverged."""
    scalars = {
        "rnd/intrinsic_reward": masked_mean(intrinsic, rollout.valid),
        "rnd/intrinsic_return_std": rnd.return_rms.var.sqrt().float(),
        "losses/max_logit": agent(encode(rollout.obs[rollout.index[-1]], args.one_hot))[0].abs().max(),
        "charts/unique_views": (rollout.index.max() + 1) / rollout.index.numel(),
    }
    for head, suffix in enumerate(("_int", "_ext")):
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
        self.past: list[dict[str, float]] = []  # scalars of the rollouts since the last line of the log
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
        facts = {x.__name__: x.__version__ for x in (torch, envpool, minigrid, gym, np)}
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
        """Every --log-interval rollouts logs the means over these and moves the bar. Raises at a NaN."""
        scalars = dict(zip(scalars, torch.stack([*scalars.values()]).tolist(), strict=True))
        for key, value in scalars.items():
            if not math.isfinite(value) and "explained_variance" not in key:  # NaN if all are equal
                last = self.folder / "latest.pt"
                where = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
                raise FloatingPointError(f"{key} is {value} at step {step:,}: stopped; {where}")
        self.past.append(scalars)
        B, self.step = step - self.step, step
        if step // B % self.args.log_interval and step + B <= self.args.total_timesteps and not self.signal:
            return
        for key in scalars:
            if "explained" not in key:  # may be NaN: the last rollout's
                scalars[key] = np.mean([past[key] for past in self.past])
        now, steps, self.past = time.monotonic(), B * len(self.past), []
        scalars |= self.stats.scalars() | {"charts/SPS": steps / (now - self.logged)}
        scalars["charts/learning_rate"] = self.learner["optimizer"].param_groups[0]["lr"]
        for key, value in scalars.items():
            self.writer.add_scalar(key, value, step)
        self.bar.set_postfix_str(f"{self.stats}, r_int {scalars['rnd/intrinsic_reward']:.4f}", refresh=False)
        self.bar.update(steps)
        self.logged = now

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
@torch.no_grad()
def evaluate(args: Args, device: torch.device, path: pathlib.Path, saved: dict) -> None:
    """Plays episodes in the minigrid package with the policy of a checkpoint, drawn as in training."""
    env = ImgObsWrapper(gym.make(args.env_id, render_mode="rgb_array"))
    agent = Agent(env.action_space.n, sum(NUM_CODES) if args.one_hot else 3).to(device)
    with reading(path):
        agent.load_state_dict(saved["agent"])
    print(f"{path}, step {saved['step']:,}: {args.eval_episodes} episodes")
    torch.manual_seed(args.seed)
    seeds = np.random.SeedSequence(args.seed, spawn_key=(1,)).generate_state(args.eval_episodes) >> 1
    episodes = []  # (return, length, cells)
    for episode, seed in enumerate(seeds.tolist()):
        video = path.parent / "videos" / f"{args.env_id}_{path.stem}_episode{episode}.gif"
        film = contextlib.nullcontext()
        if args.capture_video:
            video.parent.mkdir(exist_ok=True)
            film = imageio.get_writer(video, duration=125, loop=0)  # 8 pictures a second
        with film as writer:
            (obs, _), score, visited, done = env.reset(seed=seed), 0.0, [env.unwrapped.agent_pos], False
            while not done:
                logits, _ = agent(encode(torch.from_numpy(obs)[None].to(device), args.one_hot))
                obs, reward, terminated, truncated, _ = env.step(int(torch.multinomial(logits.softmax(1), 1)))
                score, done = score + float(reward), terminated or truncated
                visited.append(env.unwrapped.agent_pos)
                if writer:
                    writer.append_data(env.render())  # (32 * height, 32 * width, 3)
        episodes.append((score, len(visited) - 1, len({tuple(position) for position in visited})))
        if args.capture_video:
            print(f"episode {episode}: return {score:.3f}, {len(visited) - 1} steps, {video}")
    returns, lengths, cells = np.array(episodes).T
    error = f" +- {returns.std(ddof=1) / len(returns) ** 0.5:.3f}" if len(returns) > 1 else ""
    print(f"return {returns.mean():.3f}{error} (mean, standard error)", end="")
    print(f", success {(returns > 0).mean():.2f}, length {lengths.mean():.1f}, cells {cells.mean():.1f}")


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
    args.env_id, args.runs_dir = resolve_env_id(args.env_id, args.backend), os.path.expanduser(args.runs_dir)
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
