# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "minigrid==3.2.0", "envpool==1.2.5",
#   "imageio==2.38.1", "tyro==1.0.17", "tensorboard==2.21.0", "tqdm==4.70.1", "filelock==4.3.1"
# ]
# ///
"""PPO with Random Network Distillation (RND) on MiniGrid, and what others have put in its place, in one file.

Papers: Burda, Edwards, Storkey, Klimov (2018), Exploration by Random Network Distillation, arXiv:1810.12894;
Andres, Villar-Rodriguez, Del Ser (2022), An evaluation study of intrinsic motivation techniques [...],
arXiv:2205.11184.

Rooms are laid out anew in each episode. The agent sees 7 x 7 tiles ahead and is paid once, at the goal. Keys,
doors and corridors lie before it that a random agent seldom passes. The bonus is a product:

    r_int(t) = novelty(o(t+1)) * episodic_term(o(t+1)) / std of its discounted sum
    A        = int_coef * A_int + ext_coef * A_ext  two value heads, two advantages, one policy (PPO)

How new a view is over the whole run, `--novelty`:
    rnd     |g(o) - f(o)|^2 / 256, the error of a predictor g that learns to agree with a random network f
    noveld  max(error(o(t+1)) - 0.5 * error(o(t)), 0), the border of what is known (Zhang et al. 2021)
    count   1 / sqrt(how often it has been seen), from a table: what RND stands in for
    none    1

and in its episode, `--episodic-bonus`; without it an agent can earn by going back and forth:
    first-visit  1 for the first time, then 0 (Zhang et al. 2021; Andres et al.)
    sqrt-count   1 / sqrt(how often it has been seen in the episode) (Raileanu and Rocktaschel 2020, RIDE)
    none         1: RND as it was published

Both look at the agent's own view. RIDE and NovelD count on the whole grid, which the agent does not see.

What it is made of (docs/results/minigrid.md has runs with each part changed):
  1. The mask on first visits: RND alone takes several times as long, or does not get there at all. The mask
     alone gets there on KeyCorridor and MultiRoom, but not on DoorKey-16x16 and ObstructedMaze-2Dlh.
  2. A goal that weighs ten times the bonus, not twice as in the paper. On MultiRoom-N7-S8 one run with twice
     took 1.92M steps, five with ten times 0.55M to 0.78M. On KeyCorridorS3R3 it makes no difference.
  3. Advantages as they are. With `--norm-adv` one of three runs did not solve DoorKey-16x16 in 2M steps.
     KeyCorridorS6R3 is the other way round: there the bonus falls below the entropy term, and `--norm-adv`
     finds the goal.
  4. A bonus with a value head of its own, discounted faster, divided by the std of its return, and not ending
     with the episode: a goal costs nothing, because the next episode is full of first visits.

Three commands, to train, to resume and to evaluate:
    python ppo_rnd_minigrid.py --env-id KeyCorridorS3R3 --solved-score 0.86
    python ppo_rnd_minigrid.py --resume runs/RUN
    python ppo_rnd_minigrid.py --evaluate runs/RUN --eval-episodes 20 --capture-video

What to expect, on one core of a CPU, in 0.6 to 0.9 GB: DoorKey-8x8 is solved (a mean return above 0.95)
within 0.26M to 0.35M steps, in half a minute, DoorKey-16x16 within 0.9M to 1.4M and KeyCorridorS3R3 (above
0.86) within 0.6M to 0.8M, in one to two minutes.
"""

import collections
import contextlib
import dataclasses
import datetime
import difflib
import importlib.util
import io
import itertools
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
import tyro
from minigrid.wrappers import ImgObsWrapper
from torch import Tensor
from torch.optim import Adam
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclasses.dataclass
class Args:
    # "paper" is Burda et al. 2018, "reference" its authors' code for Atari. `--help` shows the comments.

    # experiment
    seed: int = 1  # seed of the networks, the actions and the environments
    device: Literal["auto", "cuda", "mps", "cpu"] = "cpu"  # auto: cuda or mps if there is one, else cpu
    runs_dir: str = "runs"  # where the run's folder is made
    checkpoint_interval: float = 1.0  # minutes between checkpoints; 0: one after every rollout
    resume: str | None = None  # a run's folder or checkpoint: go on, with its flags except those given anew
    evaluate: str | None = None  # a run's folder or checkpoint: play with it, do not train
    eval_episodes: int = 20  # episodes to play with --evaluate
    capture_video: bool = False  # with --evaluate: a film of every episode, in the run's folder
    track: bool = False  # send the logs to Weights & Biases too; WANDB_PROJECT, WANDB_MODE=offline work

    # environment
    env_id: str = "KeyCorridorS3R3"  # MiniGrid-KeyCorridorS3R3-v0 means the same
    backend: Literal["auto", "envpool", "gymnasium"] = "auto"  # auto: gymnasium for what EnvPool lacks or gets wrong
    num_envs: int = 64  # parallel environments, N (paper: 128)
    policy_obs: Literal["planes", "codes"] = "planes"  # what the policy sees: planes of 0 and 1, or the codes

    # PPO
    total_timesteps: float = 5_000_000  # environment steps, one frame each
    solved_score: float | None = None  # stop when the mean return of the last 100 episodes is higher
    num_steps: int = 128  # steps of each environment in a rollout, T
    num_minibatches: int = 4  # minibatches in an epoch, of num_envs / num_minibatches environments
    update_epochs: int = 4  # passes over a rollout
    learning_rate: float = 1e-3  # Adam's step size (paper: 1e-4, for networks ten times as large)
    gamma: float = 0.995  # discount of the extrinsic stream (paper: 0.999)
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation, both streams
    clip_coef: float = 0.2  # PPO's clip range (paper: 0.1)
    ent_coef: float = 0.003  # weight of the entropy bonus (paper: 0.001)
    vf_coef: float = 1.0  # weight of the value losses, 0.5 * squared error for each head
    norm_adv: bool = False  # normalise the advantages of each minibatch (reference: no)
    max_grad_norm: float | None = 0.5  # clip the norm of the gradient of policy and values (reference: no)
    bootstrap_truncated: bool = True  # extrinsic: value what the time limit cut off (reference: no)

    # the bonus, r_int = novelty over the whole run * a term of the episode alone
    novelty: Literal["rnd", "noveld", "count", "none"] = "rnd"  # the first factor
    episodic_bonus: Literal["first-visit", "sqrt-count", "none"] = "first-visit"  # the second factor
    int_coef: float = 1.0  # weight of the intrinsic advantage (paper: 1); 0: PPO without the bonus
    ext_coef: float = 10.0  # weight of the extrinsic advantage (paper: 2); 0: exploration alone
    int_gamma: float = 0.99  # discount of the intrinsic stream and of its filter (paper: 0.99)
    int_episodic: bool = False  # let the intrinsic stream end with the episode (paper: no; RIDE, NovelD: yes)
    single_head: bool = False  # one episodic value for int_coef * r_int + ext_coef * r_ext (paper: no)
    int_norm: bool = True  # divide the bonus by the running std of its discounted return (paper: yes)
    int_clip: float | None = None  # clip the bonus, normalised or not, at this (reference: no)
    update_proportion: float = 1.0  # share of samples the predictor learns from (paper: 32 / num_envs)
    rnd_obs: Literal["codes", "planes"] = "codes"  # what RND sees
    obs_norm: Literal["running", "frozen", "none"] = "running"  # RND's input; frozen: by a random agent's
    frozen_obs_norm_steps: int = 1500  # environment steps of that agent


# ------------------------------------------------------------------------------------------------ Environment

for rooms, size in ((7, 8), (10, 10)):  # MultiRoom of the literature, which no package registers
    gym.registry.pop(env_id := f"MiniGrid-MultiRoom-N{rooms}-S{size}-v0", None)  # or a second import warns
    kwargs = {"minNumRooms": rooms, "maxNumRooms": rooms, "maxRoomSize": size}
    gym.register(env_id, "minigrid.envs:MultiRoomEnv", kwargs=kwargs)


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

NUM_CODES = (11, 6, 4)  # codes of object, colour and state (open, closed, locked; the fourth never comes)
NUM_INPUTS = {"codes": 49 * len(NUM_CODES), "planes": 49 * sum(NUM_CODES)}  # D, the number of inputs of a network


def encode(views: Tensor, obs: str) -> Tensor:
    """Views (U, 7, 7, 3) uint8 -> (U, D) float32: codes as numbers, or a tile as 21 planes of 0 and 1."""
    if obs == "codes":
        return views.flatten(1).float()
    planes = zip(views.unbind(3), NUM_CODES, strict=True)
    return torch.cat([torch.eye(n, device=views.device)[x.int()] for x, n in planes], 3).flatten(1)


def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (reference: every layer of every network)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(*sizes: int) -> nn.Sequential:
    """Linear layers with ReLU in between: (U, the first size) -> (U, the last)."""
    layers = []
    for num_inputs, num_outputs in itertools.pairwise(sizes):
        layers += [init_layer(nn.Linear(num_inputs, num_outputs)), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class Agent(nn.Module):
    """Policy and values. The order of the value heads is intrinsic, extrinsic; or one head, for their sum."""

    def __init__(self, num_actions: int, num_heads: int, num_inputs: int):
        super().__init__()
        self.trunk = nn.Sequential(*mlp(num_inputs, 128, 256), nn.ReLU())
        self.policy_head = init_layer(nn.Linear(256, num_actions), gain=0.01)
        self.value_head = init_layer(nn.Linear(256, num_heads), gain=0.01)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the policy sees (U, D) -> logits (U, num_actions), values (U, num_heads)."""
        hidden = self.trunk(inputs)  # (U, 256)
        return self.policy_head(hidden), self.value_head(hidden)


class RND(nn.Module):
    """The target, the predictor, and the statistics that normalise what they see and what they pay."""

    def __init__(self, num_envs: int, num_inputs: int, device: torch.device):
        super().__init__()
        # The predictor is two layers deeper, so that it can represent the target. Then the error that is left
        # comes from what it has not seen (paper section 2.2.1).
        self.target = mlp(num_inputs, 128, 256).requires_grad_(False)
        self.predictor = mlp(num_inputs, 128, 256, 256, 256)
        self.obs_rms = RunningMoments((num_inputs,), device)
        self.return_rms = RunningMoments((), device)
        self.register_buffer("filtered", torch.zeros(num_envs))  # (N,) the state of `reward_filter`
        self.to(device)


class CountTable:
    """How often each view has been seen in the whole run, for `--novelty count`."""

    def __init__(self):
        self.counts: collections.Counter[bytes] = collections.Counter()

    def add(self, rollout: "Rollout") -> Tensor:
        """Counts the views that valid steps led to. Returns how often each was seen by then (T, N), at least 1."""
        views, counts = [view.tobytes() for view in rollout.views.cpu().numpy()], []
        for index, valid in zip(rollout.index[1:].tolist(), rollout.valid.tolist(), strict=True):  # (N,)
            self.counts.update(views[i] for i, ok in zip(index, valid, strict=True) if ok)
            counts.append([max(1, self.counts[views[i]]) for i in index])
        return torch.tensor(counts, device=rollout.index.device)

    def state_dict(self) -> dict[str, Tensor]:
        return {"views": to_tensor([*self.counts]), "counts": torch.tensor([*self.counts.values()])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        views = [view.tobytes() for view in state["views"].numpy()]
        self.counts = collections.Counter(dict(zip(views, state["counts"].tolist(), strict=True)))


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
    """What RND sees (U, D) -> the same, whitened entry by entry and clipped at 5 std."""
    return ((inputs - obs_rms.mean.float()) / obs_rms.var.sqrt().float()).clamp(-5, 5)


def rnd_inputs(rnd: RND, views: Tensor, args: Args) -> Tensor:
    """Views (U, 7, 7, 3) uint8 -> what target and predictor see (U, D)."""
    inputs = encode(views, args.rnd_obs)
    return inputs if args.obs_norm == "none" else whiten(inputs, rnd.obs_rms)


def lifelong_bonus(novelty: str, errors: Tensor, counts: Tensor) -> Tensor:
    """How new the view is that each step led to, over the whole run (T, N).

    Args: errors (T+1, N), before and after each step; counts (T, N), how often seen, this time included.
    """
    return {
        "rnd": errors[1:],
        # paper (Zhang et al.): norms, here: mean squares, because these are RND's errors
        "noveld": (errors[1:] - 0.5 * errors[:-1]).clamp(min=0),
        "count": counts.rsqrt(),
        "none": torch.ones_like(errors[1:]),
    }[novelty]


def episodic_term(episodic_bonus: str, visits: Tensor) -> Tensor:
    """How new a view is in its episode (T, N), from how often it was seen there, this time included (T, N)."""
    terms = {"first-visit": visits == 1, "sqrt-count": visits.rsqrt(), "none": torch.ones_like(visits)}
    return terms[episodic_bonus].float()


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
    """T steps of N environments. The last row of index and values is what follows the last step.

    Of the (T+1) * N views that are shown, U are different, a fifth to a half of them. The networks see each of
    these once, not once a step: the same numbers, twice as fast.
    """

    obs: Tensor  # ((T+1) * N, 7, 7, 3) uint8, of which the first U are in use
    index: Tensor  # (T+1, N) int64, which of them is shown
    actions: Tensor  # (T, N) int64
    logprobs: Tensor  # (T, N)
    values: Tensor  # (T+1, N, H) intrinsic, extrinsic; or one for both
    rewards: Tensor  # (T, N) extrinsic
    dones: Tensor  # (T, N) bool
    truncated: Tensor  # (T, N) bool, done because of the time limit
    visits: Tensor  # (T, N) int64, how often what the step led to was seen in its episode
    valid: Tensor  # (T, N) bool, False where the step was a reset

    @property
    def views(self) -> Tensor:
        """The different views (U, 7, 7, 3), in the order in which they came."""
        return self.obs[: self.index.max() + 1]


def empty_rollout(T: int, N: int, num_heads: int, device: torch.device) -> Rollout:
    """The storage of a rollout, written anew in every iteration."""
    with device:
        return Rollout(
            obs=torch.zeros(((T + 1) * N, 7, 7, 3), dtype=torch.uint8),
            index=torch.zeros((T + 1, N), dtype=torch.int64),
            actions=torch.zeros((T, N), dtype=torch.int64),
            logprobs=torch.zeros((T, N)),
            values=torch.zeros((T + 1, N, num_heads)),
            rewards=torch.zeros((T, N)),
            dones=torch.zeros((T, N), dtype=torch.bool),
            truncated=torch.zeros((T, N), dtype=torch.bool),
            visits=torch.zeros((T, N), dtype=torch.int64),
            valid=torch.zeros((T, N), dtype=torch.bool),
        )


def has_predictor(args: Args) -> bool:
    """Does the bonus come from target and predictor?"""
    return args.int_coef > 0 and args.novelty in ("rnd", "noveld")


def warm_up(envs: MiniGridEnvs, rnd: RND, args: Args, run: "Run") -> None:
    """For --obs-norm frozen: the statistics of what a random agent sees."""
    while rnd.obs_rms.count < args.frozen_obs_norm_steps and not run.signal:
        *_, valid = envs.step(torch.randint(envs.num_actions, (args.num_envs,)).numpy())
        inputs = encode(to_tensor(envs.views).to(rnd.filtered.device), args.rnd_obs)
        rnd.obs_rms.update(inputs, torch.from_numpy(valid).to(inputs.device))
    envs.stats.load_state_dict(envs.stats.state_dict())  # those that ended do not count, those under way go on


@torch.no_grad()
def collect(envs: MiniGridEnvs, agent: Agent, rollout: Rollout, args: Args) -> None:
    """Plays T steps with the policy and writes them into the rollout."""
    obs, index, actions, logprobs, values, rewards, dones, truncated, visits, valid = rollout
    numbers: dict[bytes, int] = {}  # the different views, numbered in the order in which they came
    logits = torch.zeros((len(obs), envs.num_actions), device=obs.device)  # of each different view
    view_values = torch.zeros((len(obs), values.shape[2]), device=obs.device)
    for t in range(args.num_steps + 1):
        first = len(numbers)
        index[t] = torch.tensor([numbers.setdefault(view, len(numbers)) for view in envs.views])
        if len(numbers) > first:
            new = slice(first, len(numbers))
            obs[new] = to_tensor([*numbers][new])
            logits[new], view_values[new] = agent(encode(obs[new], args.policy_obs))
        if t < args.num_steps:
            actions[t] = torch.multinomial(logits[index[t]].softmax(1), 1).squeeze(1)
            step = envs.step(actions[t].cpu().numpy())
            rewards[t], dones[t], truncated[t], visits[t], valid[t] = map(torch.from_numpy, step)
    logprobs[:] = logits.log_softmax(1)[index[:-1]].gather(2, actions[..., None]).squeeze(2)
    values[:] = view_values[index]


@torch.no_grad()
def intrinsic_rewards(rnd: RND, table: CountTable, rollout: Rollout, args: Args) -> Tensor:
    """r_int (T, N): novelty times episodic term, divided by the std of its return."""
    if args.int_coef == 0:
        return torch.zeros_like(rollout.rewards)
    errors = torch.zeros(len(rollout.views), device=rollout.index.device)  # (U,), of no use to count and none
    if has_predictor(args):
        if args.obs_norm == "running":
            # reference: 50 rollouts of a random agent first, here: the statistics take in each rollout before
            # it is rewarded, because then even the first is whitened
            times = torch.bincount(rollout.index[1:][rollout.valid], minlength=len(errors))  # without resets
            rnd.obs_rms.update(encode(rollout.views, args.rnd_obs), times)
        inputs = rnd_inputs(rnd, rollout.views, args)
        errors = (rnd.predictor(inputs) - rnd.target(inputs)).square().mean(1)
    counts = table.add(rollout) if args.novelty == "count" else rollout.visits  # which then nobody reads
    intrinsic = lifelong_bonus(args.novelty, errors[rollout.index], counts)
    intrinsic = intrinsic * episodic_term(args.episodic_bonus, rollout.visits)
    if args.int_norm:
        discounted, rnd.filtered = reward_filter(intrinsic, rollout.valid, args.int_gamma, rnd.filtered)
        rnd.return_rms.update(discounted.flatten(), rollout.valid.flatten())
        intrinsic = intrinsic / rnd.return_rms.var.sqrt().float()
    return intrinsic if args.int_clip is None else intrinsic.clamp(max=args.int_clip)


def advantages_and_returns(rollout: Rollout, intrinsic: Tensor, args: Args) -> tuple[Tensor, Tensor]:
    """A = int_coef * A_int + ext_coef * A_ext (T, N), and what each value head is to learn (T, N, H)."""
    rewards, dones, values = rollout.rewards, rollout.dones, rollout.values
    if args.single_head:
        streams = [(args.int_coef * intrinsic + args.ext_coef * rewards, dones, args.gamma, 1.0)]
    else:
        int_dones = dones if args.int_episodic else torch.zeros_like(dones)
        streams = [(intrinsic, int_dones, args.int_gamma, args.int_coef), (rewards, dones, args.gamma, args.ext_coef)]
    advantages, returns = torch.zeros_like(rewards), torch.zeros_like(values[:-1])
    for head, (r, ends, gamma, coef) in enumerate(streams):
        v = values[..., head]  # (T+1, N)
        if args.bootstrap_truncated and head == len(streams) - 1:  # the one with the goal
            r = r + gamma * v[1:] * rollout.truncated  # v[t+1] is of the episode's last view
        stream_advantages = gae(r, v, ends, rollout.valid, gamma, args.gae_lambda)
        returns[..., head] = stream_advantages + v[:-1]
        advantages += coef * stream_advantages
    return advantages, returns


def update(
    agent: Agent, rnd: RND, optimizer: Adam, rollout: Rollout, advantages: Tensor, returns: Tensor, args: Args
) -> dict[str, Tensor]:
    """Several passes over the rollout, one Adam step a minibatch for policy, values and predictor. Returns means."""
    N, M = args.num_envs, args.num_minibatches
    data = {key: getattr(rollout, key)[: args.num_steps] for key in ("index", "actions", "logprobs", "valid")}
    data |= {"next_index": rollout.index[1:], "advantages": advantages, "returns": returns}  # (T, N, ...)
    seen_by_policy = encode(rollout.views, args.policy_obs)  # (U, D)
    if has_predictor(args):
        seen_by_rnd = rnd_inputs(rnd, rollout.views, args)  # (U, D)
        targets = rnd.target(seen_by_rnd)  # (U, 256)
    totals: dict[str, Tensor] = collections.defaultdict(float)  # sums over the minibatches, for the log
    for _ in range(args.update_epochs):
        # reference: the same environments in every epoch, here: drawn anew, because most PPO codes do so
        for chosen in torch.randperm(N, device=advantages.device).chunk(M):
            batch = {key: x[:, chosen].flatten(0, 1) for key, x in data.items()}  # (T * N / M, ...)
            optimizer.zero_grad()
            if args.norm_adv:
                batch["advantages"] = normalise(batch["advantages"], batch["valid"])
            acted_on, row = batch["index"].unique(return_inverse=True)  # its views, each sample's row
            logits, values = agent(seen_by_policy[acted_on])
            loss, metrics = ppo_loss(logits[row], values[row], batch, args)
            loss.backward()
            grad_norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm or math.inf)
            metrics["grad_norm"] = grad_norm
            if has_predictor(args):
                kept = batch["valid"] & (torch.rand_like(batch["logprobs"]) < args.update_proportion)
                learned, times = batch["next_index"][kept].unique(return_counts=True)  # how often each
                errors = (rnd.predictor(seen_by_rnd[learned]) - targets[learned]).square().mean(1)
                metrics["predictor_loss"] = masked_mean(errors, times)  # mean over samples
                metrics["predictor_loss"].backward()
            optimizer.step()
            for key, value in metrics.items():
                totals[f"losses/{key}"] += value.detach()
    return {key: total / (args.update_epochs * M) for key, total in totals.items()}


# --------------------------------------------------------------------------------------------------- Training
def train(args: Args, device: torch.device, path: pathlib.Path | None, saved: dict | None) -> int:
    """Trains to the end, solved or a signal, on from what was `saved` in `path`. Returns the exit status."""
    T, N, H = args.num_steps, args.num_envs, 1 if args.single_head else 2
    per_iteration, step = T * N, saved["step"] if saved else 0  # environment steps
    torch.manual_seed(args.seed)
    torch.set_flush_denormal(True)  # numbers below 1e-38, which CPUs are slow with, are 0: Adam has many
    rollout = empty_rollout(T, N, H, device)
    seed = int(np.random.SeedSequence((args.seed, step)).generate_state(1)[0] >> 1)  # another after a resume
    envs = MiniGridEnvs(args, seed)
    agent = Agent(envs.num_actions, H, NUM_INPUTS[args.policy_obs]).to(device)
    rnd, table = RND(N, NUM_INPUTS[args.rnd_obs], device), CountTable()
    parameters = [*agent.parameters(), *rnd.predictor.parameters()]  # one Adam for both, as in the reference
    optimizer = Adam(parameters, lr=args.learning_rate, eps=1e-8, fused=True)
    # what a checkpoint holds: modules, or what has a state_dict of tensors and plain Python
    learner = {"agent": agent, "rnd": rnd, "table": table, "optimizer": optimizer, "stats": envs.stats}
    with contextlib.closing(Run(args, learner, rollout, path, saved)) as run:
        envs.reset()
        if args.obs_norm == "frozen" and has_predictor(args):
            warm_up(envs, rnd, args, run)
        run.bar, run.logged = run.stack.enter_context(Progress(args.total_timesteps, step)), time.monotonic()
        while step + per_iteration <= args.total_timesteps and not (run.signal or envs.stats.solved):
            collect(envs, agent, rollout, args)
            intrinsic = intrinsic_rewards(rnd, table, rollout, args)
            advantages, returns = advantages_and_returns(rollout, intrinsic, args)
            scalars = update(agent, rnd, optimizer, rollout, advantages, returns, args)
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
    counts = "num_envs num_steps num_minibatches update_epochs eval_episodes frozen_obs_norm_steps"
    for flags, holds, rule in (
        (counts, lambda x: 1 <= x < 2**31, "at least 1 and below 2^31"),
        ("seed checkpoint_interval", lambda x: 0 <= x < 2**63, "at least 0 and below 2^63"),
        ("ent_coef vf_coef int_coef ext_coef", lambda x: 0 <= x < math.inf, "at least 0 and finite"),
        ("gamma int_gamma gae_lambda", lambda x: 0 <= x <= 1, "in [0, 1]"),
        ("learning_rate clip_coef max_grad_norm int_clip", lambda x: 0 < x < math.inf, "a positive number"),
        ("update_proportion", lambda x: 0 < x <= 1, "in (0, 1]"),
        ("solved_score", lambda x: not math.isnan(x), "a number"),
        ("num_minibatches", lambda x: args.num_envs % x == 0, f"a divisor of --num-envs {args.num_envs}"),
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
        "losses/max_logit": agent(encode(rollout.obs[rollout.index[-1]], args.policy_obs))[0].abs().max(),
        "charts/unique_views": (rollout.index.max() + 1) / rollout.index.numel(),
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
    agent = Agent(env.action_space.n, 1 if args.single_head else 2, NUM_INPUTS[args.policy_obs]).to(device)
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
                logits, _ = agent(encode(torch.from_numpy(obs)[None].to(device), args.policy_obs))
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
    if (source := args.evaluate if args.resume is None else args.resume) is not None:
        path, saved = load_checkpoint(source)
        was = Args(**saved["args"])
        if args.resume is None:  # an evaluation needs nothing that only training needs
            was = dataclasses.replace(was, device="cpu", track=False)
        args = tyro.cli(Args, args=argv, default=was)
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
