# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "ale-py==0.12.1", "envpool==1.2.5",
#   "opencv-python-headless==5.0.0.93", "imageio==2.38.1", "imageio-ffmpeg==0.8.1", "tyro==1.0.17",
#   "tensorboard==2.21.0", "tqdm==4.70.1", "filelock==4.3.1"
# ]
# ///
"""Deep Q-learning on Atari, with and without Random Network Distillation (RND), in one file.

Papers: Mnih et al. (2015), DQN; van Hasselt et al. (2016), Double DQN, arXiv:1509.06461; Dabney et al.
(2018), IQN, arXiv:1806.06923; Song et al. (2019), the softmax operator, arXiv:1812.00456; Haarnoja et al.
(2017), soft Q-learning, arXiv:1702.08165; Vieillard et al. (2020), Munchausen RL, arXiv:2007.14430; Burda et
al. (2018), RND, arXiv:1810.12894. "Dopamine" is the code of Castro et al. (2018), arXiv:1812.06110;
"reference" is that of Burda et al.

    Q(s, a) <- r + gamma * V(s')       for steps drawn from a memory; V by a target network, an older copy
      --backup max         V = max Q
               double      V = Q(a), a the best action by the network that is being trained
               softmax     V = E_pi[Q], pi = softmax(Q / alpha)
               soft        V = E_pi[Q] + alpha * H(pi), H: the entropy
               munchausen  as soft, and 0.9 * clip(alpha * log pi(a | s), -1, 0) is added to r
    r_int = mean (g(o') - f(o'))^2 / std    RND. o': the frame that a step led to; f is random and fixed, g
                                       learns to agree on what was seen; std: of the errors' discounted sum
    int_coef * Q_int + ext_coef * Q_ext    what is acted upon: one value head for each stream of rewards

What is different from RND with PPO (ppo_rnd_atari.py):
  1. A step is learned from again and again, and a bonus stored with it grows stale: the predictor knows the
     frame by then. `--bonus-from replay` computes it anew whenever the step is drawn, `collection` keeps it.
  2. A game over ends the extrinsic stream; the intrinsic one goes on from the next episode's first frame. At
     a cut by the time limit both go on from the episode's last frame. With PPO a cut is like a game over.
  3. The random agent's steps stay in the memory. Its frames count for whitening from the first on; the
     predictor (with `--predictor-from collection`) and the std of the bonus start half-way.
     `--bonus-from collection` pays nothing for these steps, `replay` pays for them too.

Three commands, to train, to resume and to evaluate:
    python dqn_rnd_atari.py --preset rnd --env-id MontezumaRevenge
    python dqn_rnd_atari.py --resume runs/RUN
    python dqn_rnd_atari.py --evaluate runs/RUN --eval-episodes 20 --capture-video

What to expect: `--preset dqn --env-id Boxing --obs ram --total-timesteps 2.5e6` scores 78 of 100 in an
hour on one CPU core (one seed). `--preset rnd` walks a corridor in three minutes, with flags of its own,
`--epsilon-final 0.1` among them, and without RND it does not. At Freeway, from RAM, it has 28 points after a
million steps, without RND 22.5 (one seed each; docs/results/dqn.md). `--preset dqn` and `iqn` have Dopamine's
settings, for games without the need to explore. `--obs ram` reads 128 bytes; IQN's 64 quantiles want a GPU.
"""

import collections
import contextlib
import copy
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
import torch.nn.functional as F
import tyro
from envpool.atari.registration import atari_game_list
from torch import Tensor
from torch.optim import Adam
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclasses.dataclass
class Args:
    # The defaults are those of `--preset rnd`; another preset changes some. `--help` shows the comments.

    # experiment
    preset: Literal["rnd", "dqn", "iqn", "seed-003", "seed-001"] = "rnd"  # a set of defaults, see PRESETS
    seed: int = 1  # seed of the networks, the actions and the environments
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"  # auto: cuda or mps if there is one, else cpu
    bf16: bool = False  # bfloat16 in the value network
    runs_dir: str = "runs"  # where the run's folder is made
    checkpoint_interval: float = 5.0  # minutes between checkpoints; 0: one after every iteration
    save_replay: bool = False  # save the memory too (pixels: 7 GB); or a resumed run fills it anew
    log_interval: int = 2000  # environment steps between logs
    resume: str | None = None  # a run's folder or checkpoint: go on, with its flags except those given anew
    evaluate: str | None = None  # a run's folder or checkpoint: play with it, do not train
    eval_episodes: int = 20  # episodes to play with --evaluate
    eval_epsilon: float = 0.001  # epsilon-greedy: share of random actions with --evaluate (Dopamine)
    capture_video: bool = False  # with --evaluate: an mp4 of every episode, in the run's folder
    track: bool = False  # send the logs to Weights & Biases too; WANDB_PROJECT, WANDB_MODE=offline work

    # environment
    env_id: str = "MontezumaRevenge"  # the game; ALE/MontezumaRevenge-v5 means the same
    obs: Literal["pixels", "ram"] = "pixels"  # what the agent sees: 84 x 84 frames, or 128 bytes of RAM
    frame_stack: int = 4  # newest frames that it sees, S
    num_envs: int = 8  # parallel environments, N
    num_steps: int = 2  # steps of each environment, T; then the updates
    sticky_actions: float = 0.25  # probability that an emulator frame repeats the action before
    max_episode_steps: int = 4500  # steps after which an episode is cut; 4 frames a step
    clip_rewards: bool = True  # learn from the sign of the reward

    # value
    value: Literal["dqn", "iqn"] = "dqn"  # iqn: quantiles of the return instead of its mean
    backup: Literal["max", "double", "softmax", "soft", "munchausen"] = "double"  # V(s'): see the top
    gamma: float = 0.99  # discount of the extrinsic stream
    n_step: int = 3  # steps of reward before V (Dopamine: DQN 1, IQN 3)
    loss: Literal["mse", "huber"] = "mse"  # of DQN; IQN has its own
    num_quantiles: int = 64  # IQN: quantiles of the agent, and of the target network, in an update
    num_acting_quantiles: int = 32  # IQN: others; their mean chooses actions, when playing and in V
    quantile_mean: bool = False  # IQN: mean over the learned quantiles, not their sum (Dopamine: sum)

    # policy
    policy: Literal["epsilon-greedy", "boltzmann"] = "epsilon-greedy"  # boltzmann: softmax(Q / temperature)
    epsilon: float = 1.0  # epsilon-greedy: share of random actions when learning starts; before that all are
    epsilon_final: float = 0.01  # and in the end
    epsilon_steps: int = 250_000  # environment steps from one to the other, from --learning-starts on
    temperature: float = 0.03  # alpha of softmax(Q / alpha) at the start, of policy and backup
    temperature_final: float | None = None  # and in the end; none: as at the start
    temperature_steps: int = 10_000_000  # environment steps from one to the other, from the first on

    # learning
    total_timesteps: float = 10_000_000  # environment steps, 4 frames each
    buffer_size: int = 1_000_000  # steps in the memory
    learning_starts: int = 20_000  # steps in the memory before values are learned; random, but for a resumed run
    batch_size: int = 32  # steps in an update, B
    update_every: int = 4  # environment steps for each update
    learning_rate: float = 6.25e-5  # Adam's step size at the start
    learning_rate_final: float | None = None  # and after --total-timesteps; none: as at the start
    adam_eps: float = 1e-8  # Adam's epsilon (Burda et al.: 1e-8; Dopamine: 1.5e-4)
    max_grad_norm: float | None = None  # clip the norm of the value network's gradient
    target_every: int = 8000  # environment steps between copies to the target network
    tau: float | None = None  # instead of copies: after each update target += tau * (agent - target) (Polyak)

    # RND
    int_coef: float = 1.0  # weight of the intrinsic value; 0: no bonus, not even computed
    ext_coef: float = 1.0  # weight of the extrinsic value; 0: exploration alone
    int_gamma: float = 0.99  # discount of the intrinsic stream, and of the sum whose std divides the bonus
    int_episodic: bool = False  # let the intrinsic stream end with the episode
    single_head: bool = False  # one value of int_coef * r_int + ext_coef * r_ext: gamma, ends with episodes
    bonus_from: Literal["collection", "replay"] = "replay"  # when the bonus is computed: once, or when drawn
    bonus_norm: Literal["return", "released", "none"] = "return"  # return: by the std of its discounted sum
    int_clip: float | None = None  # clip the normalised intrinsic reward at this
    predictor_from: Literal["collection", "replay"] = "collection"  # frames it learns from: newest, or drawn
    predictor_learning_rate: float = 1e-4  # Adam's step size of the predictor
    obs_norm: Literal["running", "frozen"] = "running"  # frozen: the statistics stay as when learning started


DOPAMINE = {"backup": "max", "n_step": 1, "single_head": True, "int_coef": 0.0}
DOPAMINE |= {"max_episode_steps": 27_000, "adam_eps": 1.5e-4}
PRESETS = {  # what each differs in from the defaults
    "rnd": {},
    "dqn": DOPAMINE,  # Dopamine's settings of DQN with Adam and the squared error
    "iqn": DOPAMINE | {"value": "iqn", "n_step": 3, "learning_rate": 5e-5, "adam_eps": 3.125e-4},
    # A course report: soft Q-learning, an update of 1,024 for each step of 16 environments. Other than there:
    # the entropy's sign is plus, so that staying alive is worth 14 points, 6 after 4 million steps; pi is the
    # target network's, not the online one's; a cut is no end.
    "seed-003": {
        **DOPAMINE,
        **{"env_id": "Boxing", "seed": 42, "num_envs": 16, "num_steps": 1, "clip_rewards": False, "bf16": True},
        **{"backup": "soft", "loss": "huber", "policy": "boltzmann", "temperature": 0.05, "temperature_final": 0.02},
        **{"temperature_steps": 4_000_000, "buffer_size": 600_000, "learning_starts": 50_000, "batch_size": 1024},
        **{"update_every": 16, "learning_rate": 5e-5, "learning_rate_final": 1e-5, "adam_eps": 1e-8},
        **{"max_grad_norm": 10.0, "tau": 0.003},
    },
    # An article's bonus, mended: r + r_int in one value, frame statistics of a random agent's 1,500 steps. It
    # does not say what learns from it; networks and the mean over features (not their sum) are this script's.
    "seed-001": {
        **{"single_head": True, "n_step": 1, "bonus_norm": "none", "int_clip": 1.0, "bonus_from": "collection"},
        **{"predictor_from": "replay", "obs_norm": "frozen", "learning_starts": 1500},
    },
}


# ------------------------------------------------------------------------------------------------ Environment

ROOM_BYTE = {"MontezumaRevenge-v5": 3, "Pitfall-v5": 1}  # where the RAM has the room's number
OBS_SHAPE = {"pixels": (84, 84), "ram": (128,)}  # of what the agent sees; S of these
SCREEN_SHAPE = {"pixels": (84, 84), "ram": (21, 20)}  # of what RND sees: no RAM, whose counters are always new


class AtariEnvs:
    """N copies of a game. The one place where auto-reset is dealt with.

    EnvPool resets a game on the step *after* the one that ended it: that step ignores its action, returns the
    first frames of the next episode and a reward of 0. It is not experience. `step` marks it with valid =
    False, and all but the count of steps leaves it out.
    """

    def __init__(self, args: Args, seeds: list[int]):
        height, width = SCREEN_SHAPE[args.obs]
        self.pool = envpool.make(
            args.env_id,
            env_type="gymnasium",
            num_envs=args.num_envs,
            num_threads=min(args.num_envs, os.cpu_count() or 1),
            seed=seeds,
            max_episode_steps=args.max_episode_steps,
            repeat_action_probability=args.sticky_actions,
            episodic_life=False,
            noop_max=1,  # EnvPool has no less (Dopamine: none)
            use_fire_reset=False,
            img_height=height,  # with --obs ram means of 10 x 8 pixels
            img_width=width,
            stack_num=1,  # `Replay.stack` puts frames together
        )
        self.pixels, self.clip_rewards = args.obs == "pixels", args.clip_rewards
        self.num_actions = self.pool.action_space.n
        self.room_byte = ROOM_BYTE.get(args.env_id)
        self.done = np.zeros(args.num_envs, bool)  # (N,) the step before ended the episode
        self.stats = EpisodeStats(args.num_envs)

    def look(self, frames: np.ndarray, info: dict) -> tuple[Tensor, Tensor]:
        """What the agent sees (N, 84, 84) or (N, 128), what RND sees (N, 84, 84) or (N, 21, 20), uint8."""
        screens = torch.from_numpy(frames[:, 0])
        return screens if self.pixels else torch.from_numpy(info["ram"]), screens

    def reset(self) -> tuple[Tensor, Tensor]:
        """The first observations and screens."""
        return self.look(*self.pool.reset())

    def step(self, actions: np.ndarray) -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
        """Plays actions (N,) int.

        Returns: observations and screens; and of the step, each (N,): rewards, clipped to their sign or not;
        terminated, the game is over (a cut is not in it); valid, False where it was reset.
        """
        frames, rewards, terminated, truncated, info = self.pool.step(actions)
        valid = ~self.done
        self.done = terminated | truncated
        rooms = None if self.room_byte is None else info["ram"][:, self.room_byte]
        self.stats.add(rewards, self.done, valid, rooms)
        rewards = np.sign(rewards) if self.clip_rewards else rewards
        step = {"rewards": rewards, "terminated": terminated, "valid": valid}
        return self.look(frames, info), {name: torch.from_numpy(x) for name, x in step.items()}


# --------------------------------------------------------------------------------------------------- Networks
def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (reference: every layer of every network)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """Values of all actions. The order of the heads is intrinsic, extrinsic; or one head, for their sum.

    DQN has their means. IQN has quantiles: a share tau of the possible returns lies below its output for tau
    (Dabney et al. 2018; the quantile is embedded as in Dopamine, in 64 cosines). First weights are PyTorch's.
    """

    def __init__(self, num_actions: int, num_heads: int, args: Args):
        super().__init__()
        self.num_heads, self.bf16 = num_heads, args.bf16
        if args.obs == "pixels":
            size, layers = 64 * 7 * 7, [nn.Conv2d(args.frame_stack, 32, 8, stride=4), nn.ReLU()]
            layers += [nn.Conv2d(32, 64, 4, stride=2), nn.ReLU()]
            layers += [nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(), nn.Flatten()]
        else:
            size, layers = 512, [nn.Flatten(), nn.Linear(args.frame_stack * 128, 512), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.hidden = nn.Sequential(nn.Linear(size, 512), nn.ReLU())
        self.head = nn.Linear(512, num_heads * num_actions)
        self.embedding = nn.Linear(64, size) if args.value == "iqn" else None
        self.register_buffer("frequencies", math.pi * torch.arange(1, 65), persistent=False)

    def forward(self, obs: Tensor, num_quantiles: int) -> tuple[Tensor, Tensor]:
        """Observations (B, S, ...) uint8 -> quantiles (B, K, H, A) float32, their taus (B, K). DQN: K = 1."""
        with torch.autocast(obs.device.type, torch.bfloat16, enabled=self.bf16):
            inputs = obs.to(memory_format=torch.channels_last) if obs.ndim == 4 else obs
            x = self.trunk(inputs.float().div_(255)).unsqueeze(1)  # (B, 1, D)
            taus = torch.rand((len(obs), num_quantiles if self.embedding else 1), device=obs.device)
            if self.embedding is not None:
                cosines = (taus.unsqueeze(2) * self.frequencies).cos()  # (B, K, 64)
                x = x * self.embedding(cosines).relu()  # (B, K, D)
            x = self.hidden(x)
        # not in bfloat16: its numbers near 16 are 0.125 apart, more than a temperature
        return self.head(x.float()).unflatten(2, (self.num_heads, -1)), taus


def rnd_layers(obs: str) -> list[nn.Module]:
    """Whitened screen (B, h, w) -> features (B, 512 or 256): the target's layers, and the predictor's first."""
    if obs == "pixels":
        layers = [nn.Unflatten(1, (1, 84))]
        for shape in ((1, 32, 8, 4), (32, 64, 4, 2), (64, 64, 3, 1)):  # channels in and out, size, stride
            layers += [init_layer(nn.Conv2d(*shape)), nn.LeakyReLU(0.2)]
        return [*layers, nn.Flatten(), init_layer(nn.Linear(64 * 7 * 7, 512))]
    layers = [nn.Flatten()]
    for size in (21 * 20, 256):
        layers += [init_layer(nn.Linear(size, 256)), nn.LeakyReLU(0.2)]
    return [*layers, init_layer(nn.Linear(256, 256))]


class RND(nn.Module):
    """The target, the predictor, and the statistics that normalise what they see and what they pay."""

    def __init__(self, num_envs: int, args: Args, device: torch.device):
        super().__init__()
        size = 512 if args.obs == "pixels" else 256
        # The predictor is two layers deeper, so that it can represent the target. Then the error that is left
        # comes from what it has not seen (Burda et al., section 2.2.1).
        self.target = nn.Sequential(*rnd_layers(args.obs)).requires_grad_(False)
        deeper = [nn.ReLU(), init_layer(nn.Linear(size, size)), nn.ReLU(), init_layer(nn.Linear(size, size))]
        self.predictor = nn.Sequential(*rnd_layers(args.obs), *deeper)
        self.obs_rms = RunningMoments(SCREEN_SHAPE[args.obs], device)
        self.return_rms = RunningMoments((), device)  # of the bonus itself with --bonus-norm released
        if args.bonus_norm == "released":  # its variances start at 1, with the weight of one frame
            self.obs_rms.count.fill_(1)
            self.return_rms.count.fill_(1)
        self.register_buffer("filtered", torch.zeros(num_envs))  # (N,) discounted sum of past bonuses
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


def whiten(frames: Tensor, obs_rms: RunningMoments, norm: str) -> Tensor:
    """Screens (B, h, w) uint8 -> the same in float32, whitened pixel by pixel and clipped at 5 std.

    A pixel that never changed under the random agent has a std of nearly 0. Any change of it, as in a new
    room, saturates the clip. With norm "released" the variance stands where the std should.
    """
    mean, var = obs_rms.mean.float(), obs_rms.var.float()
    return frames.float().sub_(mean).div_(var if norm == "released" else var.sqrt()).clamp_(-5, 5)


def novelty(rnd: RND, frames: Tensor, norm: str) -> Tensor:
    """Raw intrinsic reward, and the predictor's loss: screens (B, h, w) uint8 -> mean squared error (B,)."""
    inputs = whiten(frames, rnd.obs_rms, norm)
    return (rnd.predictor(inputs) - rnd.target(inputs)).square().mean(1)


def scale_bonus(raw: Tensor, return_rms: RunningMoments, args: Args) -> Tensor:
    """The intrinsic reward from the predictor's error, of the same shape.

    return    divided by the std of its discounted return (Burda et al.)
    released  less its mean, divided by its variance, as in the code released with Taiga et al. (2020). That code
              normalises frames by moments of normalised frames.
    none      as it is
    """
    if args.bonus_norm == "return":
        raw = raw / return_rms.var.sqrt().float()
    elif args.bonus_norm == "released":
        raw = (raw - return_rms.mean.float()) / return_rms.var.float()
    return raw if args.int_clip is None else raw.clamp(max=args.int_clip)


def masked_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean of x over the entries with valid True, of the same shape; 0 if there is none."""
    return (x * valid).sum() / valid.sum().clamp(min=1)


def linear(step: int, start: float, final: float | None, duration: int) -> float:
    """From start at step 0 to final at step `duration` and after; None: start throughout."""
    return float(np.interp(step, (0, duration), (start, start if final is None else final)))


def exploration(step: int, args: Args) -> tuple[float, float]:
    """Epsilon and temperature at an environment step. Before learning starts the agent is random."""
    temperature = linear(step, args.temperature, args.temperature_final, args.temperature_steps)
    if step < args.learning_starts:
        return 1.0, temperature
    if args.policy == "boltzmann":
        return 0.0, temperature
    since = step - args.learning_starts
    return linear(since, args.epsilon, args.epsilon_final, args.epsilon_steps), temperature


def action_probabilities(q: Tensor, epsilon: float, temperature: float | None) -> Tensor:
    """Values (B, A) -> (B, A): softmax(q / temperature), None: greedy; a share epsilon is random."""
    chosen = F.one_hot(q.argmax(1), q.shape[1]) if temperature is None else (q / temperature).softmax(1)
    return (1 - epsilon) * chosen + epsilon / q.shape[1]


def heads(args: Args) -> dict[str, float]:
    """The heads in their order: suffix in the logs -> weight in the total value."""
    return {"": 1.0} if args.single_head else {"_int": args.int_coef, "_ext": args.ext_coef}


def total_value(z: Tensor, args: Args) -> Tensor:
    """What the agent acts upon (B, A): the weighted sum of the heads of z (B, K, H, A), mean over its quantiles."""
    return sum(weight * q for weight, q in zip(heads(args).values(), z.mean(1).unbind(1), strict=True))


def q_values(agent: Agent, obs: Tensor, args: Args) -> Tensor:
    """Total value of all actions (B, A) at observations (B, S, ...)."""
    return total_value(agent(obs, args.num_acting_quantiles)[0], args)


def next_value(z: Tensor, q: Tensor, alpha: float, args: Args) -> Tensor:
    """What the next state is worth, V (B, K, H), as the table at the top has it for one Q.

    Args: z (B, K, H, A), the target network's quantiles (DQN: K = 1); q (B, A), the total value that pi comes
    from, the online network's for "double", else the target's. For max and double pi is greedy.

    softmax: Song et al. (2019), eq. 2; soft: Haarnoja et al. (2017), eq. 5, alpha * logsumexp(q / alpha) for DQN.
    Entropy is a reward, so its sign is plus. The extrinsic head carries it, divided by its weight (a single
    head's is 1), so that the total value gains alpha * H(pi). n must be 1, or each step's entropy would be
    needed. Entropy alone makes staying alive worth alpha * log(A) / (1 - gamma), 8.7 with 18 actions and
    alpha = 0.03: "soft" wants a smaller alpha. Munchausen's is (1 - 0.9) * alpha in effect.
    """
    pi = action_probabilities(q, 0.0, None if args.backup in ("max", "double") else alpha)  # (B, A)
    values = (z * pi[:, None, None]).sum(3)
    if args.backup in ("soft", "munchausen"):
        values[..., -1] += alpha * torch.special.entr(pi).sum(1, keepdim=True) / heads(args).get("_ext", 1.0)
    return values


def munchausen_bonus(q: Tensor, actions: Tensor, alpha: float, coef: float = 0.9, floor: float = -1.0) -> Tensor:
    """What Munchausen adds to the total reward (B,): coef * clip(alpha * log pi(a), floor, 0) (Vieillard et al. 2020).

    Args: q (B, A), total value of the state by the target network; actions (B,), what was done there.
    """
    logprobs = (q / alpha).log_softmax(1).gather(1, actions[:, None]).squeeze(1)
    return coef * (alpha * logprobs).clamp(floor, 0)


def n_step_return(rewards: Tensor, alive: Tensor, gamma: float) -> tuple[Tensor, Tensor]:
    """Discounted sum (B,) of rewards (n, B) up to the episode's end or cut; and the discount (B,) of what follows.

    alive (n, B): the step belongs to the episode of the first one.
    """
    discounts = gamma ** torch.arange(len(rewards), device=rewards.device)[:, None]
    return (discounts * rewards * alive).sum(0), gamma ** alive.sum(0)


def value_loss(z: Tensor, targets: Tensor, taus: Tensor, args: Args) -> Tensor:
    """Loss (B,) of one head: z (B, K), its quantiles, and their taus; targets (B, K'), samples of the return.

    IQN's is the quantile Huber loss, kappa = 1, the mean over the targets (Dabney et al. 2018, eq. 1 and 3).
    """
    if args.value == "dqn":
        loss = F.huber_loss if args.loss == "huber" else F.mse_loss
        return loss(z, targets, reduction="none").squeeze(1)
    errors = targets[:, None] - z[:, :, None]  # (B, K, K')
    huber = F.huber_loss(errors, torch.zeros_like(errors), reduction="none")
    losses = ((taus[:, :, None] - (errors < 0).float()).abs() * huber).mean(2)  # (B, K)
    return losses.mean(1) if args.quantile_mean else losses.sum(1)


# --------------------------------------------------------------------------------- The steps of the algorithm
class Batch(NamedTuple):
    """B steps from the memory, and the n - 1 that followed each."""

    obs: Tensor  # (B, S, ...) uint8
    actions: Tensor  # (B,) int64
    rewards: Tensor  # (n, B) extrinsic
    bonus: Tensor  # (n, B) intrinsic, as it was at collection, or as it is now
    alive: Tensor  # (n, B) bool, the step belongs to the episode of the first one; the first is no reset
    over: Tensor  # (B,) bool, one of the alive steps ended the game; a cut by the time limit does not count
    next_obs: Tensor  # (B, S, ...) uint8, after the last alive one; after a game over the next episode's first


class Replay:
    """The last L steps of N environments, a ring. Row t has what was shown before step t, and the step.

    Each frame is there once; `stack` puts the last S together. What a step led to is in the next row. An
    episode's last step is followed by a reset step (valid = False), whose row has the episode's last frame; the
    row after has the next episode's first. So `valid` says where episodes begin and end. `count` steps have been
    written; row `count` has the frame to be acted upon.
    """

    def __init__(self, args: Args, device: torch.device):
        L, N = args.buffer_size // args.num_envs, args.num_envs
        self.L, self.N, self.S, self.count = L, N, args.frame_stack, 0
        fields = {"obs": (torch.uint8, OBS_SHAPE[args.obs]), "actions": (torch.int64, ())}
        fields |= dict.fromkeys(("rewards", "bonus"), (torch.float32, ()))
        fields |= dict.fromkeys(("terminated", "valid"), (torch.bool, ()))
        if args.obs == "ram" and args.int_coef > 0:  # from pixels RND sees what the agent sees
            fields["screens"] = torch.uint8, SCREEN_SHAPE["ram"]
        self.nbytes = L * N * sum(dtype.itemsize * math.prod(shape) for dtype, shape in fields.values())
        fits = device.type == "cuda" and self.nbytes < 0.75 * torch.cuda.mem_get_info(device)[0]
        self.device = device if fits else torch.device("cpu")
        with self.device:
            self.data = {name: torch.empty((L, N, *shape), dtype=dtype) for name, (dtype, shape) in fields.items()}
            self.envs = torch.arange(N)  # all of them, for `at` and what is made of it
        self.data["valid"].zero_()  # so that row 0 is the first of an episode

    def write(self, **step: Tensor | float) -> None:
        """Writes into row `count`, each argument (N, ...) or one number for all."""
        for name, x in step.items():
            if name != "screens" or name in self.data:  # from pixels they are the obs
                self.data[name][self.count % self.L] = x

    def begin(self, obs: Tensor, screens: Tensor) -> None:
        """All environments have been reset: what they were at, if anything, is cut here."""
        if self.count > 0:
            self.write(actions=0, rewards=0, bonus=0, terminated=False, valid=False)
            self.count += 1
        self.write(obs=obs, screens=screens)

    def at(self, name: str, t: Tensor, env: Tensor) -> Tensor:
        """A field in rows t of environments env, whose shapes broadcast."""
        places = t % self.L * self.N + env
        found = self.data[name].flatten(0, 1).index_select(0, places.flatten())  # [places] is slower
        return found.unflatten(0, places.shape)

    def screens_after(self, t: Tensor, env: Tensor) -> Tensor:
        """What RND sees of steps t: the screens that they led to."""
        return self.at("screens" if "screens" in self.data else "obs", t + 1, env)

    def stack(self, t: Tensor, env: Tensor) -> Tensor:
        """What the agent sees at t (B,): frames (B, S, ...), the newest last; an episode's first repeated."""
        shown = [t]
        for _ in range(self.S - 1):
            shown.append(shown[-1] - self.at("valid", shown[-1] - 1, env).long())
        return self.at("obs", torch.stack(shown[::-1], 1), env[:, None])

    def draw(self, B: int, n: int) -> tuple[Tensor, Tensor]:
        """Random steps, rows (B,) and environments (B,), each with S frames up to it and n + 1 rows after."""
        # row `count` has the place of row count - L: the oldest whole stack of S frames ends at count - L + S
        t = torch.randint(max(0, self.count - self.L + self.S), self.count - n, (B,), device=self.device)
        return t, torch.randint(self.N, (B,), device=self.device)

    def batch(self, t: Tensor, env: Tensor, n: int) -> Batch:
        """The steps there, with n steps of reward."""
        steps = t + torch.arange(n, device=self.device)[:, None]  # (n, B)
        alive = self.at("valid", steps, env).cumprod(0).bool()  # (n, B): up to the episode's end
        over = (self.at("terminated", steps, env) & alive).any(0)
        after = t + alive.sum(0) + over  # after a game over: past the reset row, which has the last frame
        return Batch(
            obs=self.stack(t, env),
            actions=self.at("actions", t, env),
            rewards=self.at("rewards", steps, env),
            bonus=self.at("bonus", steps, env),
            alive=alive,
            over=over,
            next_obs=self.stack(after, env),
        )

    def state_dict(self) -> dict:
        return {"count": self.count} | self.data

    def load_state_dict(self, state: dict) -> None:
        for name, x in self.data.items():
            if name not in state or state[name].shape != x.shape:
                raise ValueError(f"{name} does not fit --buffer-size, --num-envs, --obs or --int-coef")
            x.copy_(state[name])
        self.count = state["count"]


@torch.no_grad()
def collect(envs: AtariEnvs, agent: Agent, rnd: RND, replay: Replay, step: int, args: Args) -> dict[str, Tensor]:
    """Plays T steps with the policy and writes them into the memory. Returns means to log."""
    totals, device = collections.defaultdict(float), rnd.filtered.device
    for now in range(step, step + args.num_steps * args.num_envs, args.num_envs):
        epsilon, temperature = exploration(now, args)
        obs = replay.stack(torch.full_like(replay.envs, replay.count), replay.envs).to(device)  # (N, S, ...)
        q = q_values(agent, obs, args).nan_to_num(0, 0, 0)  # (N, A); a NaN stops the run at the next update
        policy = action_probabilities(q, epsilon, temperature if args.policy == "boltzmann" else None)
        actions = torch.multinomial(policy, 1).squeeze(1)
        (obs, screens), results = envs.step(actions.cpu().numpy())
        valid = results["valid"].to(device)
        bonus = intrinsic_rewards(rnd, screens.to(device), valid, now, args)
        replay.write(actions=actions, bonus=bonus, **results)
        replay.count += 1
        replay.write(obs=obs, screens=screens)
        totals["losses/entropy"] += masked_mean(torch.special.entr(policy).sum(1), valid) / args.num_steps
        totals["rnd/intrinsic_reward"] += masked_mean(bonus, valid) / args.num_steps
    return totals


def intrinsic_rewards(rnd: RND, screens: Tensor, valid: Tensor, step: int, args: Args) -> Tensor:
    """r_int (N,) of the screens that a step led to, by frame statistics from before it and a std that includes it."""
    if args.int_coef == 0:
        return torch.zeros(len(valid), device=valid.device)
    random_agent = step < args.learning_starts
    raw = novelty(rnd, screens, args.bonus_norm)  # (N,)
    if args.bonus_norm == "released":
        rnd.obs_rms.update(whiten(screens, rnd.obs_rms, "released"), valid)
        rnd.return_rms.update(raw, valid)
    else:
        if step >= args.learning_starts / 2:
            filtered = args.int_gamma * rnd.filtered + raw  # over episode ends too
            rnd.filtered = torch.where(valid, filtered, rnd.filtered)
            rnd.return_rms.update(rnd.filtered, valid)
        if args.obs_norm == "running" or random_agent:
            rnd.obs_rms.update(screens, valid)
    # with --bonus-from collection the random agent is not paid
    return torch.zeros_like(raw) if random_agent else scale_bonus(raw, rnd.return_rms, args)


@torch.no_grad()
def bonus_now(rnd: RND, replay: Replay, t: Tensor, env: Tensor, args: Args) -> Tensor:
    """r_int (n, B) of steps t (B,) and the n - 1 after each: today's error, over the std at collection."""
    steps = t + torch.arange(args.n_step, device=t.device)[:, None]
    screens = replay.screens_after(steps, env).flatten(0, 1).to(rnd.filtered.device)  # (n * B, h, w)
    return scale_bonus(novelty(rnd, screens, args.bonus_norm), rnd.return_rms, args).unflatten(0, steps.shape)


@torch.no_grad()
def td_targets(agent: Agent, target_agent: Agent, batch: Batch, temperature: float, args: Args) -> Tensor:
    """What the values of a batch are to be: samples of the return (B, K', H); one, its mean, for DQN.

        target = r(t) + ... + gamma^(n-1) r(t+n-1) + gamma^n V(o(t+n)), for each stream with its own gamma

    n is smaller at an episode's end. After a game over V counts for the intrinsic stream only, and with
    --int-episodic or --single-head not at all.
    """
    K, acting, double = args.num_quantiles, args.num_acting_quantiles, args.backup == "double"
    z, _ = target_agent(batch.next_obs, K if double else K + acting)  # (B, K or more, H, A); DQN: (B, 1, H, A)
    # who chooses the next action: the online network, or the target's other quantiles (DQN: the same one)
    q = q_values(agent, batch.next_obs, args) if double else total_value(z[:, -acting:], args)  # (B, A)
    values = next_value(z[:, :K], q, temperature, args)  # (B, K', H)
    rewards = args.int_coef * batch.bonus + args.ext_coef * batch.rewards if args.single_head else batch.rewards
    if args.backup == "munchausen":
        q_now = q_values(target_agent, batch.obs, args)
        munchausen = munchausen_bonus(q_now, batch.actions, temperature) / heads(args).get("_ext", 1.0)
        rewards = rewards + munchausen  # (1, B)
    streams = [(rewards, batch.over, args.gamma)]  # the extrinsic one, or the only one
    if not args.single_head:
        streams = [(batch.bonus, batch.over & args.int_episodic, args.int_gamma), *streams]  # as in `heads`
    targets = []
    for head, (r, over, gamma) in enumerate(streams):
        returns, discount = n_step_return(r, batch.alive, gamma)
        targets.append(returns[:, None] + (discount * ~over)[:, None] * values[..., head])
    return torch.stack(targets, 2)


def learn_predictor(rnd: RND, optimizer: Adam, screens: Tensor, valid: Tensor, args: Args) -> Tensor:
    """One step of Adam on the predictor's error of these screens. Returns the loss."""
    optimizer.zero_grad()
    loss = masked_mean(novelty(rnd, screens, args.bonus_norm), valid)
    loss.backward()
    optimizer.step()
    return loss.detach()


def update(
    agent: Agent, target_agent: Agent, rnd: RND, optimizer: Adam, replay: Replay, step: int, args: Args
) -> dict[str, Tensor]:
    """One update for each --update-every steps of those just collected. Returns means to log."""
    device, updates = rnd.filtered.device, args.num_envs * args.num_steps // args.update_every
    totals: dict[str, Tensor] = collections.defaultdict(float)
    # not before half of the random agent's steps have gone into the frames' statistics (released code: at once)
    begun = step >= args.learning_starts / 2 or args.bonus_norm == "released"
    if args.int_coef > 0 and args.predictor_from == "collection" and begun:
        t = torch.arange(replay.count - args.num_steps, replay.count, device=replay.device)[:, None]  # (T, 1)
        screens = replay.screens_after(t, replay.envs).flatten(0, 1).to(device)  # (T * N, h, w)
        valid = replay.at("valid", t, replay.envs).flatten().to(device)
        totals["losses/predictor_loss"] = learn_predictor(rnd, optimizer, screens, valid, args)
    if replay.count * args.num_envs < args.learning_starts or replay.count <= args.n_step:
        return totals  # the memory is being filled
    for k in range(updates):
        now = step + (k + 1) * args.update_every
        rate = linear(now, args.learning_rate, args.learning_rate_final, args.total_timesteps)
        optimizer.param_groups[0]["lr"] = rate
        t, env = replay.draw(args.batch_size, args.n_step)
        batch = Batch(*(x.to(device) for x in replay.batch(t, env, args.n_step)))
        valid = batch.alive[0]  # (B,) resets are drawn too, and left out here
        if args.int_coef > 0 and args.bonus_from == "replay":
            batch = batch._replace(bonus=bonus_now(rnd, replay, t, env, args))
        totals["rnd/intrinsic_reward_learned"] += masked_mean(batch.bonus[0], valid) / updates

        _, temperature = exploration(now, args)
        targets = td_targets(agent, target_agent, batch, temperature, args)  # (B, K', H)
        z, taus = agent(batch.obs, args.num_quantiles)  # (B, K, H, A)
        z = z.take_along_dim(batch.actions[:, None, None, None], 3).squeeze(3)  # (B, K, H)
        loss = 0.0
        for head, (suffix, weight) in enumerate(heads(args).items()):
            head_loss = masked_mean(value_loss(z[..., head], targets[..., head], taus, args), valid)
            loss = loss + head_loss * (weight > 0)  # a stream that is turned off does not shape the features either
            totals[f"losses/value_loss{suffix}"] += head_loss.detach() / updates
            totals[f"losses/q{suffix}"] += masked_mean(z[..., head].detach().mean(1), valid) / updates
        optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm or math.inf)
        totals["losses/grad_norm"] += norm / updates
        optimizer.step()
        if args.int_coef > 0 and args.predictor_from == "replay":
            screens = replay.screens_after(t, env).to(device)
            totals["losses/predictor_loss"] += learn_predictor(rnd, optimizer, screens, valid, args) / updates
        update_target_network(target_agent, agent, now, args)
    return totals


@torch.no_grad()
def update_target_network(target_agent: Agent, agent: Agent, step: int, args: Args) -> None:
    """Moves the target network a little, or copies the agent into it when it is time."""
    if args.tau is not None:
        for slow, new in zip(target_agent.parameters(), agent.parameters(), strict=True):
            slow.lerp_(new, args.tau)
    elif step % args.target_every < args.update_every:  # a multiple was passed since the last update
        target_agent.load_state_dict(agent.state_dict())


# --------------------------------------------------------------------------------------------------- Training
def train(args: Args, device: torch.device, path: pathlib.Path | None, saved: dict | None) -> int:
    """Trains to the end or until a signal, on from what was `saved` in file `path`. Returns the exit status."""
    T, N, H = args.num_steps, args.num_envs, len(heads(args))
    per_iteration, step = T * N, saved["step"] if saved else 0  # environment steps
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")  # TF32 on GPUs that have it
    torch.set_flush_denormal(True)  # numbers below 1e-38, which CPUs are slow with, are 0: Adam has many
    replay = Replay(args, device)
    seeds = np.random.SeedSequence((args.seed, step)).generate_state(N) >> 1  # others after a resume
    envs = AtariEnvs(args, seeds.tolist())
    agent = Agent(envs.num_actions, H, args).to(device, memory_format=torch.channels_last)
    target_agent = copy.deepcopy(agent).requires_grad_(False)
    rnd = RND(N, args, device).to(memory_format=torch.channels_last)
    agent_group = {"params": agent.parameters(), "lr": args.learning_rate, "eps": args.adam_eps}
    rnd_group = {"params": rnd.predictor.parameters(), "lr": args.predictor_learning_rate}
    optimizer = Adam([agent_group, rnd_group], fused=True)
    # what a checkpoint holds: modules, or what has a state_dict of tensors and plain Python
    learner = {"agent": agent, "target_agent": target_agent, "rnd": rnd, "optimizer": optimizer}
    learner["stats"] = envs.stats
    with contextlib.closing(Run(args, learner, replay, path, saved)) as run:
        replay.begin(*envs.reset())
        run.bar = run.stack.enter_context(Progress(args.total_timesteps, step))
        while step + per_iteration <= args.total_timesteps and not run.signal:
            scalars = collect(envs, agent, rnd, replay, step, args)
            scalars |= update(agent, target_agent, rnd, optimizer, replay, step, args)
            step += per_iteration
            run.log(step, scalars)
            run.save()
        return run.finish()


# ----------------------------------------------- Machinery (alike in all scripts; skip it on a first reading)
class UserError(Exception):
    """Something that the user can put right: printed as one line, exit status 2."""


def check_args(args: Args) -> None:
    """Raises UserError at the first flag whose value makes no sense, before anything is created."""
    iteration = args.num_envs * args.num_steps
    rows = args.frame_stack + args.n_step + args.num_steps + 1  # of all environments, the least to draw from
    soft = args.backup in ("soft", "munchausen")
    counts = "num_envs num_steps frame_stack max_episode_steps eval_episodes log_interval n_step batch_size"
    counts += " num_quantiles num_acting_quantiles buffer_size learning_starts update_every target_every"
    weights = "checkpoint_interval int_coef ext_coef"
    shares = "gamma int_gamma sticky_actions epsilon epsilon_final eval_epsilon"
    rates = "learning_rate learning_rate_final predictor_learning_rate adam_eps temperature temperature_final"
    rates += " max_grad_norm int_clip"
    for flags, holds, rule in (
        (counts, lambda x: 1 <= x < 2**31, "at least 1 and below 2^31"),
        ("seed epsilon_steps temperature_steps", lambda x: 0 <= x < 2**63, "at least 0 and below 2^63"),
        (weights, lambda x: 0 <= x < math.inf, "at least 0 and finite"),
        (shares, lambda x: 0 <= x <= 1, "in [0, 1]"),
        (rates, lambda x: 0 < x < math.inf, "a positive number"),
        ("tau", lambda x: 0 < x <= 1, "in (0, 1]"),
        ("update_every", lambda x: iteration % x == 0, f"a divisor of num_envs * num_steps, {iteration}"),
        ("buffer_size", lambda x: x >= args.num_envs * rows, f"at least {rows} steps of each environment"),
        ("learning_starts", lambda x: x <= args.buffer_size, f"at most --buffer-size {args.buffer_size}"),
        ("n_step", lambda x: x == 1 or not soft, "1 with --backup soft or munchausen"),
        ("ext_coef", lambda x: x > 0 or args.single_head or not soft, "above 0: it gets the entropy"),
        ("total_timesteps", lambda x: iteration <= x < 2**63, f"at least {iteration} and below 2^63"),
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

    def __init__(self, args: Args, learner: dict, replay: Replay, path: pathlib.Path | None, saved: dict | None):
        self.args, self.learner, self.replay, self.stats = args, learner, replay, learner["stats"]
        self.past: dict[str, list[float]] = collections.defaultdict(list)  # what is to be logged
        self.step, self.best_score, self.seconds, self.folder = 0, -math.inf, 0.0, pathlib.Path()
        if saved:
            restore(learner, replay, args, path, saved)
            self.step, self.best_score, self.seconds = saved["step"], saved["best_score"], saved["seconds"]
        self.stack = contextlib.ExitStack()  # what to undo at the end
        # from a copy, from best.pt or with another environment it goes on in a new folder
        same = saved and path.name == "latest.pt" and saved["args"]["env_id"] == args.env_id
        self.open_folder(path.parent if same else None)
        self.introduce(replay)
        self.signal = 0
        for number in {signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup stays nohup
                with contextlib.suppress(ValueError):  # in a thread, which gets no signals
                    self.stack.callback(signal.signal, number, signal.signal(number, self.receive))
        self.close = self.stack.close  # puts everything back as it was before the run
        self.started = self.logged = self.saved = time.monotonic()
        self.logged_step = self.step

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

    def introduce(self, replay: Replay) -> None:
        """Says what is about to happen, and puts flags, versions and commit into the logs."""
        args, device = self.args, self.learner["rnd"].filtered.device
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
        print(f"memory       {replay.L * replay.N:,} steps, {replay.nbytes / 1e6:,.1f} MB on {replay.device}")
        print(f"folder       {self.folder}")
        if self.step and not replay.count:
            print(f"note: {args.learning_starts:,} steps fill the memory anew before learning goes on")

    def receive(self, number: int, _frame: object) -> None:
        """Takes note of a signal. A second Ctrl-C ends the process at once."""
        if not self.signal:
            print("\nstopping after this iteration; Ctrl-C again: at once")
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)
        self.signal = self.signal or number

    def log(self, step: int, scalars: dict[str, Tensor]) -> None:
        """Every --log-interval steps logs means since the last time and moves the bar. Raises at a NaN."""
        scalars = dict(zip(scalars, torch.stack([*scalars.values()]).tolist(), strict=True))
        for key, value in scalars.items():
            if not math.isfinite(value):
                last = self.folder / "latest.pt"
                where = f"the last good checkpoint is {last}" if last.exists() else "there is no checkpoint yet"
                raise FloatingPointError(f"{key} is {value} at step {step:,}: stopped; {where}")
            self.past[key].append(value)
        before, self.step = self.step, step
        interval, more = self.args.log_interval, step + (step - before) <= self.args.total_timesteps
        if step // interval == before // interval and more:
            return
        scalars = {key: np.mean(values) for key, values in self.past.items()}
        now, steps, self.logged_step = time.monotonic(), step - self.logged_step, step
        scalars |= self.stats.scalars(step) | {"charts/SPS": steps / (now - self.logged)}
        scalars["charts/learning_rate"] = self.learner["optimizer"].param_groups[0]["lr"]
        scalars["charts/epsilon"], scalars["charts/temperature"] = exploration(step, self.args)
        scalars["rnd/intrinsic_return_std"] = self.learner["rnd"].return_rms.var.sqrt().item()
        for key, value in scalars.items():
            self.writer.add_scalar(key, value, step)
        self.bar.set_postfix_str(f"{self.stats}, r_int {scalars['rnd/intrinsic_reward']:.4f}", refresh=False)
        self.bar.update(steps)
        self.logged = now
        self.past.clear()

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
        files = dict.fromkeys(names, state)
        if self.args.save_replay:  # in a file of its own, before the other: `restore` compares their steps
            files = {"replay.pt": {"step": self.step, **self.replay.state_dict()}, **files}
        for name, content in files.items():
            temporary = self.folder / f"{name}.{os.getpid()}.tmp"
            try:  # at any moment there is a whole file, the old one or the new one
                with open(temporary, "wb") as file:
                    torch.save(content, file)  # without a copy: it may be large
                    file.flush()
                    os.fsync(file.fileno())
                temporary.replace(self.folder / name)
            except (OSError, RuntimeError) as error:  # PyTorch's own when the disk is full
                temporary.unlink(missing_ok=True)
                reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
                raise OSError(f"cannot write {self.folder / name} ({reason})") from None

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


def restore(learner: dict, replay: Replay, args: Args, path: pathlib.Path, saved: dict) -> None:
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
    memory = path.with_name("replay.pt")
    if args.save_replay and memory.exists() and saved["args"]["env_id"] == args.env_id:
        with reading(memory):
            state = torch.load(memory, map_location="cpu", weights_only=True, mmap=True)
            if state["step"] == saved["step"]:
                replay.load_state_dict(state)


# ------------------------------------------------------------------------------------------------- Evaluation
def make_evaluation_env(args: Args) -> gym.Env:
    """The game in ale-py, one copy: the same frames and RAM as EnvPool's, and it can be drawn in colour."""
    gym.register_envs(ale_py)
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Error)
    ale_id = next(name for name in gym.registry if name.lower() == f"ale/{args.env_id}".lower())
    options = {"frameskip": 1, "repeat_action_probability": args.sticky_actions, "render_mode": "rgb_array"}
    env = gym.make(ale_id, max_num_frames_per_episode=None, **options)  # the time limit is evaluate's
    env = gym.wrappers.AtariPreprocessing(env, noop_max=1, frame_skip=4)
    if args.obs == "ram":
        bytes_of_ram = gym.spaces.Box(0, 255, (128,), np.uint8)
        env = gym.wrappers.TransformObservation(env, lambda _: env.unwrapped.ale.getRAM(), bytes_of_ram)
    return gym.wrappers.FrameStackObservation(env, args.frame_stack)


@torch.no_grad()
def evaluate(args: Args, device: torch.device, path: pathlib.Path, saved: dict) -> None:
    """Plays whole games with a checkpoint's policy, epsilon aside as in training. Prints unclipped returns."""
    env = make_evaluation_env(args)
    agent = Agent(env.action_space.n, len(heads(args)), args).to(device)
    _, temperature = exploration(saved["step"], args)
    epsilon, temperature = (0.0, temperature) if args.policy == "boltzmann" else (args.eval_epsilon, None)
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
                q = q_values(agent, torch.from_numpy(obs)[None].to(device), args)
                policy = action_probabilities(q, epsilon, temperature)
                obs, reward, terminated, _, _ = env.step(int(torch.multinomial(policy, 1)))
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
