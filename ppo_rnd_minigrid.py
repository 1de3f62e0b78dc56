# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "gymnasium==1.4.0", "minigrid==3.2.0", "envpool==1.2.5", "imageio==2.38.1",
#   "imageio-ffmpeg==0.8.1", "tyro==1.0.17", "tensorboard==2.21.0", "tqdm==4.70.1", "matplotlib==3.11.2"
# ]
# ///
"""PPO with Random Network Distillation (RND) on MiniGrid, in one file, and what others have put in its place.

Papers: Burda, Edwards, Storkey, Klimov (2018), Exploration by Random Network Distillation, arXiv:1810.12894; Andres,
Villar-Rodriguez, Del Ser (2022), An evaluation study of intrinsic motivation techniques [...], arXiv:2205.11184.

MiniGrid's rooms are laid out anew in each episode. The agent sees 7 x 7 tiles ahead and is paid once, at the goal:
`1 - 0.9 * steps / limit`. Getting there takes keys, doors and corridors that a random agent seldom passes. The policy
is PPO's (Schulman et al. 2017), without memory. The bonus for exploring is a product of two terms:

    r_int(t) = novelty(o(t+1)) * episodic_term(o(t+1))
    A        = int_coef * A_int + ext_coef * A_ext      two value heads, two advantages, one policy (PPO)

The first says how new a view is over the whole run, `--novelty`:
    rnd     |g(o) - f(o)|^2 / 256: the error of a predictor g that learns to agree with a random network f
    noveld  max(error(o(t+1)) - 0.5 * error(o(t)), 0): the border of what is known (Zhang et al. 2021, NovelD)
    count   1 / sqrt(how often the view has been seen), from a table: what RND stands in for
    none    1

The second how new it is in this episode, `--episodic-bonus`; without it an agent can earn by going back and forth:
    first-visit  1 for the first time, then 0 (NovelD; Andres et al.)
    sqrt-count   1 / sqrt(how often the view has been seen in this episode) (Raileanu and Rocktaschel 2020, RIDE)
    none         1: RND as it was published

Both look at the agent's own view. RIDE and NovelD count on the whole grid, which the agent does not see.

What makes it work (docs/results/README.md has runs with each part changed):
  1. The mask on first visits: RND alone takes several times as long, or does not get there at all.
  2. A goal that weighs ten times the bonus, not twice as in the paper. Otherwise the score on MultiRoom swings once
     the goal has been found, because what is new elsewhere calls the agent away.
  3. Advantages as they are, as in the reference: in a large grid whole rollouts hold nothing new and no goal, and their
     noise, divided by its deviation (`--norm-adv`), would count as much as a goal does.
  4. A bonus with a value head of its own, discounted faster and divided by the deviation of its return: without any
     one of these KeyCorridorS3R3 takes 15 to 50 % longer (`--single-head`, `--int-gamma 0.999`, `--no-int-norm`).
  5. The stream of the bonus does not end with the episode (`--int-episodic` lets it, as MiniGrid codes do): reaching
     the goal then costs nothing, because the next episode is full of first visits.
What makes no difference there: whether what RND sees is whitened, and what share of it the predictor learns from. RND
sees codes as numbers, the policy planes of 0 and 1 (`--policy-obs codes`: better on one grid, worse on another).

Three commands, to train, to resume and to evaluate:
    python ppo_rnd_minigrid.py --env-id KeyCorridorS3R3
    python ppo_rnd_minigrid.py --resume runs/<run>
    python ppo_rnd_minigrid.py --evaluate runs/<run> --eval-episodes 20 --capture-video

What to expect, on one core of a CPU, in 0.6 to 0.9 GB, with these defaults: DoorKey-8x8 is solved (a mean return above
0.95) within 0.26M to 0.35M steps, in half a minute, DoorKey-16x16 within 0.9M to 1.4M and KeyCorridorS3R3 (0.86) within
0.6M to 0.8M, in one to two minutes. docs/results/README.md has all seeds, more environments, PPO and RND alone.
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


@dataclasses.dataclass
class Args:
    # "paper" is Burda et al. 2018, "reference" its authors' code for Atari. The comments are the help of `--help`.

    # experiment
    seed: Int = 1  # seed of the networks, the actions and the environments
    device: Literal["auto", "cuda", "mps", "cpu"] = "cpu"  # auto: cuda, then mps, then cpu; for nets this small, cpu
    runs_dir: str = "runs"  # where the run's folder is made
    checkpoint_interval: float = 1.0  # minutes between checkpoints; 0: one after every rollout
    resume: str | None = None  # a run's folder or a checkpoint: go on, with its flags except those given anew
    evaluate: str | None = None  # a run's folder or a checkpoint: play with it, do not train
    eval_episodes: Int = 20  # episodes to play with --evaluate
    capture_video: bool = False  # with --evaluate: a film of every episode, in the run's folder
    video_format: Literal["gif", "mp4"] = "gif"  # what kind of film
    plot: bool = False  # with --evaluate: all episodes in one layout, that of --seed, and a picture of visits and bonus
    track: bool = False  # send the logs to Weights & Biases too (pip install wandb; WANDB_MODE=offline works)
    wandb_project: str = "rnd"  # project name for --track

    # environment
    env_id: str = "KeyCorridorS3R3"  # any of MiniGrid's; KeyCorridorS3R3 and MiniGrid-KeyCorridorS3R3-v0 mean the same
    env_kwargs: str = ""  # its arguments, e.g. "min_num_rooms=7,max_num_rooms=7,max_room_size=8,max_episode_steps=140"
    backend: Literal["auto", "envpool", "gymnasium"] = "auto"  # gymnasium: the minigrid package; auto: it for MultiRoom
    num_envs: Int = 64  # parallel environments, N (paper: 128)
    policy_obs: Literal["planes", "codes"] = "planes"  # what the policy sees: planes of 0 and 1 for each code, or codes

    # PPO
    total_timesteps: Int = 5_000_000  # environment steps, of which each is one frame
    solved_score: float | None = None  # stop when the mean return of the last 100 episodes is higher
    num_steps: Int = 128  # steps of each environment in a rollout, T
    num_minibatches: Int = 4  # minibatches in an epoch, each of num_envs / num_minibatches environments
    update_epochs: Int = 4  # passes over a rollout
    learning_rate: float = 1e-3  # Adam's step size for policy and values (paper: 1e-4, for networks ten times as large)
    anneal_lr: bool = False  # let the learning rate of policy and values fall to 0 in a straight line
    gamma: float = 0.995  # discount of the extrinsic stream (paper: 0.999)
    gae_lambda: float = 0.95  # lambda of generalised advantage estimation, both streams
    clip_coef: float = 0.2  # PPO's clip range (paper: 0.1)
    ent_coef: float = 0.003  # weight of the entropy bonus (paper: 0.001)
    vf_coef: float = 1.0  # weight of the value losses, 0.5 * squared error for each head
    norm_adv: bool = False  # normalise the advantages of each minibatch (reference: no)
    clip_vloss: bool = False  # clip the change of the values as PPO clips the policy's
    max_grad_norm: float | None = 0.5  # clip the norm of the gradient of policy and values (reference: no)
    bootstrap_truncated: bool = True  # value what the time limit cut off, extrinsic stream only (reference: no)

    # exploration: r_int = novelty over the whole run * a term of the episode alone
    novelty: Literal["rnd", "noveld", "count", "none"] = "rnd"  # the first factor
    episodic_bonus: Literal["first-visit", "sqrt-count", "none"] = "first-visit"  # the second factor
    int_coef: float = 1.0  # weight of the intrinsic advantage (paper: 1); 0: PPO without the bonus
    ext_coef: float = 10.0  # weight of the extrinsic advantage (paper: 2); 0: exploration alone
    int_gamma: float = 0.99  # discount of the intrinsic stream (paper: 0.99)
    int_episodic: bool = False  # let the intrinsic stream end with the episode (paper: no; MiniGrid codes: yes)
    single_head: bool = False  # one value for int_coef * r_int + ext_coef * r_ext, episodic, --gamma (paper: no)
    int_norm: bool = True  # divide the bonus by the running deviation of its discounted return (paper: yes)
    int_clip: float | None = None  # clip the bonus, normalised or not, at this (reference: no)
    update_proportion: float = 1.0  # share of a minibatch the predictor learns from (paper: 32 / num_envs)
    predictor_learning_rate: float = 1e-3  # Adam's step size for the predictor
    rnd_obs: Literal["codes", "planes"] = "codes"  # what RND sees: the three codes of each tile, or planes of 0 and 1
    obs_norm: Literal["none", "running", "frozen"] = "running"  # whiten what RND sees, with moments that go on or not
    frozen_obs_norm_steps: Int = 1500  # environment steps of a random agent, for --obs-norm frozen


def check_args(args: Args) -> None:
    """Raises UserError at the first flag whose value makes no sense, before anything is created."""

    def require(ok: bool, flag: str, rule: str) -> None:
        if not ok:
            raise UserError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: must be {rule}")

    counts = ("num_envs", "num_steps", "num_minibatches", "update_epochs", "eval_episodes", "frozen_obs_norm_steps")
    for flag in counts:
        require(getattr(args, flag) >= 1, flag, "at least 1")
    for flag in ("seed", "checkpoint_interval", "ent_coef", "vf_coef", "int_coef", "ext_coef"):
        require(0 <= getattr(args, flag) < float("inf"), flag, "a number that is not negative")
    require(args.seed < 2**63, "seed", "below 2^63")
    for flag in ("gamma", "int_gamma", "gae_lambda"):
        require(0 <= getattr(args, flag) <= 1, flag, "in [0, 1]")
    for flag in ("learning_rate", "clip_coef", "max_grad_norm", "int_clip", "predictor_learning_rate"):
        value = getattr(args, flag)
        require(value is None or 0 < value < float("inf"), flag, "a positive number")
    require(0 < args.update_proportion <= 1, "update_proportion", "in (0, 1]")
    require(args.solved_score is None or args.solved_score == args.solved_score, "solved_score", "a number or None")
    require(args.num_envs % args.num_minibatches == 0, "num_minibatches", f"a divisor of --num-envs {args.num_envs}")
    rollout = args.num_envs * args.num_steps
    require(args.total_timesteps >= rollout, "total_timesteps", f"at least one rollout, {rollout} steps")
    if args.novelty == args.episodic_bonus == "none" and args.int_coef:
        raise UserError("--novelty none --episodic-bonus none leaves no bonus; to play without one, --int-coef 0")
    predictor = ("update_proportion", "predictor_learning_rate", "rnd_obs", "obs_norm")
    bonus = ("novelty", "episodic_bonus", "int_gamma", "int_episodic", "int_norm", "int_clip", *predictor)
    for contradiction, reason, flags in (
        (args.int_coef == 0, "--int-coef 0: there is no bonus", bonus),
        (args.novelty in ("count", "none"), f"--novelty {args.novelty}: there is no predictor", predictor),
        (args.obs_norm != "frozen", f"--obs-norm {args.obs_norm}: nothing is frozen", ("frozen_obs_norm_steps",)),
        (args.single_head, "--single-head: there is no stream of the bonus alone", ("int_episodic",)),
        (args.single_head and not args.int_norm, "--single-head --no-int-norm", ("int_gamma",)),
    ):
        for flag in flags:
            if contradiction and getattr(args, flag) != getattr(Args(), flag):
                raise UserError(f"--{flag.replace('_', '-')} contradicts {reason}")
    if args.resume and args.evaluate:
        raise UserError("--resume and --evaluate exclude each other")
    for flag in ("capture_video", "plot"):
        if getattr(args, flag) and not args.evaluate:
            raise UserError(f"--{flag.replace('_', '-')} needs --evaluate")
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

ENV_KWARGS = {  # arguments of environments, EnvPool's name -> the minigrid package's
    "max_episode_steps": "max_steps",
    "min_num_rooms": "minNumRooms",
    "max_num_rooms": "maxNumRooms",
    "max_room_size": "maxRoomSize",
    "num_objs": "numObjs",
    **{name: name for name in ("size", "room_size", "num_rows", "num_crossings", "n_obstacles")},
}


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


def resolve_backend(name: str, env_id: str) -> str:
    """The package that `--backend` means. EnvPool 1.2.5 puts doors of MultiRoom into corners, where they lead nowhere:
    it draws a room's place from one value more than the minigrid package does, and 28 % of N2-S4 cannot be solved.
    """
    if name != "auto":
        return name
    return "gymnasium" if "MultiRoom" in env_id else "envpool"


def parse_env_kwargs(env_id: str, text: str, backend: str) -> dict[str, int]:
    """`--env-kwargs` in EnvPool's words; UserError if it is not of the form a=1,b=2 or a package refuses it."""
    kwargs = {}
    for part in filter(None, text.split(",")):
        name, _, value = (x.strip() for x in part.partition("="))
        if name not in ENV_KWARGS:
            raise UserError(f"--env-kwargs {text}: {name} is none of {', '.join(ENV_KWARGS)}")
        try:
            kwargs[name] = parse_int(value)
        except ValueError:
            raise UserError(f"--env-kwargs {text}: {name} must be a whole number") from None
        if kwargs[name] < 1:
            raise UserError(f"--env-kwargs {text}: {name} must be at least 1")
    if not kwargs:
        return {}
    # What EnvPool does not like ends the process, what the package does not like may never end; so the first to try is
    # another process. It also says the package's time limit, which is to hold in EnvPool too.
    names = {ENV_KWARGS[name]: value for name, value in kwargs.items()}
    trial = f"import gymnasium, minigrid, envpool; env = gymnasium.make({env_id!r}, **{names}); env.reset(); "
    trial += "limit = env.unwrapped.max_steps; print(limit)"
    if backend == "envpool":
        options = {"task_id": env_id, "env_type": "gymnasium", "num_envs": 64, **kwargs}
        trial += f"; envpool.make(**{options} | {{'max_episode_steps': limit}}).reset()"
    try:
        done = subprocess.run([sys.executable, "-c", trial], capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        raise UserError(f"--env-kwargs {text}: {env_id} finds no such layout") from None
    if done.returncode:
        reasons = [line for line in done.stderr.splitlines() if "Error: " in line or "Check failed: " in line]
        reason = reasons[-1] if reasons else ""
        reason = reason.split(" was raised from")[0].split("Error: ")[-1].split("Check failed: ")[-1]
        raise UserError(f"--env-kwargs {text}: {env_id} refuses it{reason and ': ' + reason}")
    return kwargs | {"max_episode_steps": int(done.stdout.split()[-1])}


class MiniGridEnvs:
    """N copies of an environment. The one place where auto-reset is dealt with.

    An observation, called a view here, is what the agent sees of the grid: 7 x 7 tiles, for each the codes of object,
    colour and state, (7, 7, 3) uint8. The agent stands at tile [3, 6] and looks to smaller second indices; what it
    carries lies in its own tile, so it does know whether it has the key.

    Both backends reset an environment on the step *after* the one that ended the episode: that step ignores its
    action, returns the first view of the next episode and a reward of 0. It is not experience. `step` marks it with
    valid = False, and everything that learns or counts leaves it out.

    Attributes:
        episodes: (return, length, cells visited) of every episode that has ended since the list was last emptied
        recent: returns of the last 100 episodes
    """

    def __init__(self, env_id: str, num_envs: int, seed: int, backend: str, env_kwargs: dict[str, int]):
        self.seed, self.backend = seed, backend
        self.grey_boxes = backend == "envpool" and "ObstructedMaze" in env_id  # EnvPool 1.2.5's are blue
        if backend == "envpool":
            options = {"env_type": "gymnasium", "num_envs": num_envs, "num_threads": 1, "seed": seed}
            self.pool = envpool.make(env_id, **options, **env_kwargs)
            self.num_actions = int(self.pool.action_space.n)
        else:
            kwargs = {ENV_KWARGS[name]: value for name, value in env_kwargs.items()}
            self.pool = gym.make_vec(env_id, num_envs, vectorization_mode="sync", wrappers=[ImgObsWrapper], **kwargs)
            self.num_actions = int(self.pool.single_action_space.n)
        self.done = np.zeros(num_envs, bool)  # (N,) the step before ended the episode
        self.returns = np.zeros(num_envs)  # (N,) of the episodes under way, as the next three
        self.lengths = np.zeros(num_envs, int)
        self.cells = np.zeros((num_envs, 256, 256), bool)
        self.visits: list[dict[bytes, int]] = [{} for _ in range(num_envs)]
        self.episodes: list[tuple[float, int, int]] = []
        self.recent: collections.deque[float] = collections.deque(maxlen=100)

    def look(self, obs: dict | np.ndarray, info: dict) -> tuple[list[bytes], np.ndarray]:
        """What a backend returns -> the N views as bytes, and how often each was seen in its episode (N,) int."""
        if self.backend == "envpool":
            obs, positions = obs["image"], info["agent_pos"]
            if self.grey_boxes:
                obs[obs[..., 0] == 7, 1] = 5  # 7: a box; 5: grey, as in the minigrid package
        else:
            positions = np.array([env.unwrapped.agent_pos for env in self.pool.envs])
        views = [view.tobytes() for view in obs]
        for view, visits in zip(views, self.visits, strict=True):
            visits[view] = visits.get(view, 0) + 1
        self.cells[np.arange(len(views)), *positions.T] = True
        return views, np.array([visits[view] for view, visits in zip(views, self.visits, strict=True)])

    def reset(self) -> list[bytes]:
        """Starts an episode in every copy. Returns the N views."""
        return self.look(*self.pool.reset(**({} if self.backend == "envpool" else {"seed": self.seed})))[0]

    def step(self, actions: np.ndarray) -> tuple[list[bytes], *tuple[np.ndarray, ...]]:
        """Plays actions (N,) int.

        Returns: the N views; how often each was seen in its episode, this time included (N,) int; rewards (N,) float32;
        terminated and truncated (N,) bool, the episode ends here; valid (N,) bool, False where the step was a reset.
        """
        obs, rewards, terminated, truncated, info = self.pool.step(actions)
        # a goal on the very last step is an end; the minigrid package says both of it, EnvPool that it was cut
        terminated, truncated = terminated | (truncated & (rewards != 0)), truncated & (rewards == 0)
        valid = ~self.done
        for i in np.flatnonzero(self.done):
            self.visits[i].clear()
            self.cells[i] = False
        views, visits = self.look(obs, info)
        self.done = terminated | truncated
        self.returns += rewards * valid
        self.lengths += valid
        for i in np.flatnonzero(self.done):
            self.episodes.append((float(self.returns[i]), int(self.lengths[i]), int(self.cells[i].sum())))
            self.recent.append(float(self.returns[i]))
            self.returns[i], self.lengths[i] = 0, 0
        return views, visits, rewards.astype(np.float32), terminated, truncated, valid


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
NUM_INPUTS = {"codes": 49 * len(NUM_CODES), "planes": 49 * sum(NUM_CODES)}  # D


def encode(views: Tensor, obs: str) -> Tensor:
    """Views (U, 7, 7, 3) uint8 -> (U, D) float32: the codes as numbers, or 21 planes of 0 and 1 for those of a tile."""
    codes = views.flatten(1, 2)  # (U, 49, 3)
    if obs == "codes":
        return codes.flatten(1).float()
    rows = [torch.eye(n, device=views.device)[x.int()] for x, n in zip(codes.unbind(2), NUM_CODES, strict=True)]
    return torch.cat(rows, 2).flatten(1)


def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (reference: every layer of every network)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp_layers(num_inputs: int) -> list[nn.Module]:
    """What a network sees (U, D) -> features (U, 256). All networks of this script start with these layers."""
    return [init_layer(nn.Linear(num_inputs, 128)), nn.ReLU(), init_layer(nn.Linear(128, 256))]


class Agent(nn.Module):
    """Policy and values. The order of the value heads is intrinsic, extrinsic; or one head, for their sum."""

    def __init__(self, num_actions: int, num_heads: int, num_inputs: int):
        super().__init__()
        self.trunk = nn.Sequential(*mlp_layers(num_inputs), nn.ReLU())
        self.policy_head = init_layer(nn.Linear(256, num_actions), gain=0.01)
        self.value_head = init_layer(nn.Linear(256, num_heads), gain=0.01)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """What the policy sees (U, D) -> logits (U, num_actions), values (U, num_heads)."""
        hidden = self.trunk(inputs)  # (U, 256)
        return self.policy_head(hidden), self.value_head(hidden)


class RND(nn.Module):
    """The target, the predictor and the normalisers that decide what is new."""

    def __init__(self, num_envs: int, num_inputs: int, device: torch.device):
        super().__init__()
        # The predictor is two layers deeper, so that it can represent the target; hence what error there is comes
        # from what it has not seen (paper section 2.2.1).
        self.target = nn.Sequential(*mlp_layers(num_inputs)).requires_grad_(False)
        self.predictor = nn.Sequential(
            *mlp_layers(num_inputs),
            *(nn.ReLU(), init_layer(nn.Linear(256, 256))),
            *(nn.ReLU(), init_layer(nn.Linear(256, 256))),
        )
        self.obs_rms = RunningMoments((num_inputs,), device)
        self.return_rms = RunningMoments((), device)
        self.register_buffer("filtered", torch.zeros(num_envs))  # (N,) the reward filter's state
        self.to(device)


class CountTable:
    """How often each view has been seen in the whole run, for `--novelty count`."""

    def __init__(self):
        self.counts: collections.Counter[bytes] = collections.Counter()

    def add(self, views: list[bytes], valid: np.ndarray) -> np.ndarray:
        """Takes in N views, of which those with valid (N,) False do not count. Returns the counts (N,), at least 1."""
        for view, ok in zip(views, valid, strict=True):
            self.counts[view] += int(ok)
        return np.array([max(1, self.counts[view]) for view in views])

    def state_dict(self) -> dict[str, Tensor]:
        """The table as tensors: views (K, 7, 7, 3) uint8, counts (K,)."""
        views = torch.frombuffer(bytearray(b"".join(self.counts)), dtype=torch.uint8) if self.counts else torch.empty(0)
        return {"views": views.reshape(-1, 7, 7, 3), "counts": torch.tensor([*self.counts.values()])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes over what `state_dict` gave."""
        keys = [view.tobytes() for view in state["views"].numpy()]
        self.counts = collections.Counter(dict(zip(keys, state["counts"].tolist(), strict=True)))


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
    """What RND sees (U, D) -> the same, whitened entry by entry and clipped at 5 deviations."""
    return ((inputs - obs_rms.mean.float()) / obs_rms.var.sqrt().float()).clamp(-5, 5)


def lifelong_bonus(novelty: str, errors: Tensor, counts: Tensor) -> Tensor:
    """How new what a step led to is, over the whole run (T, N).

    Args: errors (T+1, N), the predictor's before and after each step; counts (T, N), how often what the step led to
    has been seen, this time included.
    """
    if novelty == "rnd":
        return errors[1:]
    if novelty == "noveld":  # Zhang et al. 2021; paper: norms, here: mean squares, because these are RND's errors
        return (errors[1:] - 0.5 * errors[:-1]).clamp(min=0)
    return counts.rsqrt() if novelty == "count" else torch.ones_like(errors[1:])


def episodic_term(episodic_bonus: str, visits: Tensor) -> Tensor:
    """The term of the episode alone (T, N), from how often the view has been seen in it, this time included (T, N)."""
    if episodic_bonus == "first-visit":
        return (visits == 1).float()
    return visits.float().rsqrt() if episodic_bonus == "sqrt-count" else torch.ones_like(visits, dtype=torch.float)


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
    T, N, M = args.num_steps, args.num_envs, args.num_minibatches
    B = T * N  # environment steps in a rollout
    num_iterations = args.total_timesteps // B
    iteration = saved["iteration"] if saved else 0
    if iteration >= num_iterations:
        raise UserError(f"{path} has all of its {iteration * B:,} steps; ask for more with --total-timesteps")
    backend = resolve_backend(args.backend, env_id)
    env_kwargs = parse_env_kwargs(env_id, args.env_kwargs, backend)
    uses_predictor = args.int_coef > 0 and args.novelty in ("rnd", "noveld")
    stop = StopSignal()

    # environments, networks, optimiser
    torch.manual_seed(args.seed)
    seed = int(np.random.SeedSequence((args.seed, iteration)).generate_state(1)[0] >> 1)  # others after a resume
    envs = MiniGridEnvs(env_id, N, seed, backend, env_kwargs)
    agent = Agent(envs.num_actions, 1 if args.single_head else 2, NUM_INPUTS[args.policy_obs]).to(device)
    rnd = RND(N, NUM_INPUTS[args.rnd_obs], device)
    table = CountTable()
    groups = [
        {"params": [*agent.parameters()], "lr": args.learning_rate},
        {"params": [*rnd.predictor.parameters()], "lr": args.predictor_learning_rate},
    ]
    optimizer = torch.optim.Adam(groups, eps=1e-8, fused=True)
    learner = {"agent": agent, "rnd": rnd, "table": table, "optimizer": optimizer}
    best_score, seconds_before = float("-inf"), 0.0
    if saved:
        for name, part in learner.items():
            load_state(part, saved[name], path)
        torch.set_rng_state(saved["rng_cpu"])
        if device.type == "cuda" and saved["rng_device"] is not None:
            torch.cuda.set_rng_state(saved["rng_device"])
        envs.recent.extend(saved["recent"])
        best_score, seconds_before = saved["best_score"], saved["seconds"]
    run_dir, writer = open_run(args, env_id, path, iteration * B)

    # what is about to happen
    arguments = f", {args.env_kwargs}" if args.env_kwargs else ""
    bonus_name = f"{args.int_coef:g} * {args.novelty} * {args.episodic_bonus}" if args.int_coef else "none"
    networks = {"agent": agent, "predictor": rnd.predictor, "target": rnd.target}
    print(f"device       {device}{f', threads: {torch.get_num_threads()}' * (device.type == 'cpu')}")
    print(f"environment  {env_id} x {N} ({backend}), {envs.num_actions} actions{arguments}")
    print(f"parameters   {', '.join(f'{k} {sum(p.numel() for p in m.parameters()):,}' for k, m in networks.items())}")
    print(f"bonus        {bonus_name}")
    print("memory       0.6 to 0.9 GB, most of it libraries")
    print(f"steps        {num_iterations * B:,} at most, in {num_iterations:,} rollouts of {T} x {N}; 1 frame a step")
    print(f"folder       {run_dir}", flush=True)

    # storage of one rollout
    actions = torch.zeros((T, N), dtype=torch.int64, device=device)
    index = torch.zeros((T + 1, N), dtype=torch.int64, device=device)  # the views' numbers; row T: after the last step
    host_rewards = np.zeros((T, N), np.float32)
    host_visits, host_counts = np.ones((2, T, N), int)
    host_terminated, host_truncated, host_valid = np.zeros((3, T, N), bool)
    current = envs.reset()

    # the moments of a random agent's views, if nothing more is to be added to them
    if args.obs_norm == "frozen" and uses_predictor and not saved:
        seen = 0
        while seen < args.frozen_obs_norm_steps:
            current, *_, ok = envs.step(torch.randint(envs.num_actions, (N,)).numpy())
            views = Views()
            rows = views.add(current)
            rnd.obs_rms.update(encode(views.tensor().to(device), args.rnd_obs)[rows], torch.from_numpy(ok).to(device))
            seen += ok.sum()
        envs.episodes.clear()
        envs.recent.clear()

    def save() -> None:
        """Writes latest.pt, and best.pt too if the mean return of the last 100 episodes has never been as high."""
        nonlocal best_score
        score = float(np.mean(envs.recent)) if len(envs.recent) == 100 else float("-inf")  # before: only short ones
        is_best, best_score = score > best_score, max(score, best_score)
        state = {name: part.state_dict() for name, part in learner.items()} | {
            "script": SCRIPT,
            "args": {**vars(args), "resume": None},
            "identity": {"env_id": env_id, "env_kwargs": args.env_kwargs, "num_envs": N, "num_steps": T},
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

    start_time = last_save = time.time()
    solved, cells = False, ""
    bar = Progress(num_iterations * B, iteration * B)
    while iteration < num_iterations and not stop.number and not solved:
        iteration_start = time.time()
        left = 1 - iteration / num_iterations if args.anneal_lr else 1.0
        optimizer.param_groups[0]["lr"] = left * args.learning_rate  # each time, because a resume may ask for another
        optimizer.param_groups[1]["lr"] = args.predictor_learning_rate

        # collect a rollout; logits and values are computed once for each view
        views, followed = Views(), []
        logits = torch.empty(0, envs.num_actions, device=device)
        values = torch.empty(0, agent.value_head.out_features, device=device)
        for t in range(T + 1):
            known = len(views)
            index[t] = views.add(current)
            if len(views) > known:
                with torch.no_grad():
                    new_logits, new_values = agent(encode(views.tensor(known).to(device), args.policy_obs))
                logits, values = torch.cat([logits, new_logits]), torch.cat([values, new_values])  # (U, A), (U, H)
            if t == T:
                break
            actions[t] = torch.multinomial(logits[index[t]].softmax(1), 1).squeeze(1)
            current, *rest = envs.step(actions[t].cpu().numpy())
            host_visits[t], host_rewards[t], host_terminated[t], host_truncated[t], host_valid[t] = rest
            followed.append(current)
            if stop.number:
                break
        if stop.number:  # what there is of the rollout is dropped; the learner stands where the last one left it
            break
        if args.novelty == "count":
            host_counts = np.array([table.add(x, ok) for x, ok in zip(followed, host_valid, strict=True)])
        rewards = torch.from_numpy(host_rewards).to(device)  # (T, N)
        terminated = torch.from_numpy(host_terminated).to(device)  # (T, N), as the next five
        truncated = torch.from_numpy(host_truncated).to(device)
        dones = terminated | truncated
        valid = torch.from_numpy(host_valid).to(device)
        visits, counts = torch.from_numpy(host_visits).to(device), torch.from_numpy(host_counts).to(device)
        logprobs = logits.log_softmax(1)[index[:T]].gather(2, actions[..., None]).squeeze(2)  # (T, N)
        values = values[index]  # (T+1, N, H)
        inputs = encode(views.tensor().to(device), args.policy_obs)  # (U, D)

        # intrinsic reward
        intrinsic = torch.zeros_like(rewards)
        if args.int_coef:
            errors = torch.zeros(len(views), device=device)
            if uses_predictor:
                rnd_inputs = encode(views.tensor().to(device), args.rnd_obs)  # (U, D)
                if args.obs_norm == "running":
                    # paper: 50 rollouts of a random agent first, here: the moments take in each rollout before it is
                    # rewarded, because then the first is whitened by itself
                    times = torch.bincount(index[1:][valid], minlength=len(views))  # (U,) resets left out
                    rnd.obs_rms.update(rnd_inputs, times)
                rnd_inputs = whiten(rnd_inputs, rnd.obs_rms) if args.obs_norm != "none" else rnd_inputs
                with torch.no_grad():
                    targets = rnd.target(rnd_inputs)  # (U, 256)
                    errors = (rnd.predictor(rnd_inputs) - targets).square().mean(1)  # (U,)
            intrinsic = lifelong_bonus(args.novelty, errors[index], counts)
            intrinsic = intrinsic * episodic_term(args.episodic_bonus, visits)  # (T, N)
            if args.int_norm:
                filtered, rnd.filtered = reward_filter(intrinsic, valid, args.int_gamma, rnd.filtered)
                rnd.return_rms.update(filtered.flatten(), valid.flatten())
                intrinsic = intrinsic / rnd.return_rms.var.sqrt().float()
            if args.int_clip is not None:
                intrinsic = intrinsic.clamp(max=args.int_clip)

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
            if args.bootstrap_truncated and head == len(streams) - 1:
                r = r + gamma * v[1:] * truncated  # the view after a step that was cut is the episode's last
            stream_advantages = gae(r, v[:T], v[T], ends, valid, gamma, args.gae_lambda)
            returns[..., head] = stream_advantages + v[:T]
            advantages += coef * stream_advantages

        # update
        rollout = {
            "index": index[:T],
            "next_index": index[1:],
            "actions": actions,
            "logprobs": logprobs,
            "values": values[:T],
            "advantages": advantages,
            "returns": returns,
            "valid": valid,
        }  # each (T, N, ...)
        totals: dict[str, Tensor] = collections.defaultdict(float)  # sums over the minibatches, for the log
        for _ in range(args.update_epochs):
            # reference: the same environments in every epoch, here: drawn anew, because most PPO codes do so
            for envs_of_batch in torch.randperm(N, device=device).chunk(M):
                batch = {key: x[:, envs_of_batch].flatten(0, 1) for key, x in rollout.items()}  # (B/M, ...)
                optimizer.zero_grad()
                if args.norm_adv:
                    batch["advantages"] = normalise(batch["advantages"], batch["valid"])
                acted_on, position = batch["index"].unique(return_inverse=True)  # each view once
                new_logits, new_values = agent(inputs[acted_on])
                loss, metrics = ppo_loss(new_logits[position], new_values[position], batch, args)
                loss.backward()
                metrics["grad_norm"] = nn.utils.get_total_norm([p.grad for p in agent.parameters()])
                if args.max_grad_norm is not None:
                    nn.utils.clip_grads_with_norm_(agent.parameters(), args.max_grad_norm, metrics["grad_norm"])
                if uses_predictor:
                    kept = predictor_subset(batch["valid"], max(1, round(args.update_proportion * B / M)))
                    learned, weight = batch["next_index"][kept][batch["valid"][kept]].unique(return_counts=True)
                    new_errors = (rnd.predictor(rnd_inputs[learned]) - targets[learned]).square().mean(1)
                    metrics["predictor_loss"] = (new_errors * weight).sum() / weight.sum().clamp(min=1)
                    metrics["predictor_loss"].backward()
                optimizer.step()
                for key, value in metrics.items():
                    totals[key] += value.detach()
        iteration += 1

        # log: means over the whole update, in one transfer from the device
        scalars = {f"losses/{key}": total / (args.update_epochs * M) for key, total in totals.items()}
        for head, suffix in enumerate([""] if args.single_head else ["_int", "_ext"]):
            explained = explained_variance(values[:T, :, head], returns[..., head], valid)
            scalars[f"losses/explained_variance{suffix}"] = explained
        if args.int_coef:
            scalars["rnd/intrinsic_reward"] = masked_mean(intrinsic, valid)
            if args.int_norm:
                scalars["rnd/intrinsic_return_std"] = rnd.return_rms.var.sqrt().float()
        scalars = dict(zip(scalars, torch.stack([*scalars.values()]).tolist(), strict=True))
        for key, value in scalars.items():
            if not np.isfinite(value) and "explained_variance" not in key:  # which is NaN while all returns are equal
                good = run_dir / "latest.pt"
                where = f"the last good checkpoint is {good}" if good.exists() else "there is no checkpoint yet"
                raise RunError(f"{key} is {value} at step {iteration * B:,}: stopped; {where}")
        if envs.episodes:
            columns = np.mean(envs.episodes, axis=0)
            scalars["charts/episodic_return"], scalars["charts/episodic_length"], scalars["rnd/cells_visited"] = columns
            scalars["charts/success_rate"] = np.mean([episode_return > 0 for episode_return, *_ in envs.episodes])
            cells = f", cells {columns[2]:.0f}"
            envs.episodes.clear()
        if len(envs.recent) == 100:  # before that only the short ones have ended
            scalars["charts/score"] = np.mean(envs.recent)
        scalars["charts/unique_views"] = len(views) / (B + N)
        scalars["charts/SPS"] = B / (time.time() - iteration_start)
        scalars["charts/learning_rate"] = optimizer.param_groups[0]["lr"]
        for key, value in scalars.items():
            writer.add_scalar(key, value, iteration * B)
        score = f"{np.mean(envs.recent):.3f}" if envs.recent else "none yet"
        success = f", success {np.mean(np.array(envs.recent) > 0):.2f}" if envs.recent else ""
        bonus = f", r_int {scalars['rnd/intrinsic_reward']:.2g}" if args.int_coef else ""
        bar.set_postfix_str(f"return {score}{success}{cells}{bonus}", refresh=False)
        bar.update(B)
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


def make_evaluation_env(env_id: str, env_kwargs: dict[str, int]) -> gym.Env:
    """The environment in the minigrid package, one copy: the same views as EnvPool's, and it can be drawn."""
    kwargs = {ENV_KWARGS[name]: value for name, value in env_kwargs.items()}
    return ImgObsWrapper(gym.make(env_id, render_mode="rgb_array", **kwargs))


@torch.no_grad()
def episode_bonus(views: np.ndarray, args: Args, rnd: RND, table: CountTable, device: torch.device) -> np.ndarray:
    """The lifelong part of the bonus of each step of an episode: views (L+1, 7, 7, 3) uint8 -> (L,)."""
    if not args.int_coef:
        return np.zeros(len(views) - 1)
    inputs = encode(torch.from_numpy(views).to(device), args.rnd_obs)
    inputs = whiten(inputs, rnd.obs_rms) if args.obs_norm != "none" else inputs
    errors = (rnd.predictor(inputs) - rnd.target(inputs)).square().mean(1)  # (L+1,)
    counts = torch.tensor([table.counts[view.tobytes()] + 1 for view in views[1:]], device=device)
    return lifelong_bonus(args.novelty, errors, counts).cpu().numpy()


def plot_layout(
    picture: np.ndarray, size: tuple[int, int], steps: list[tuple[int, int, float]], title: str, path: pathlib.Path
) -> None:
    """One layout, how often each of its cells was visited, and the mean bonus there.

    Args: picture (32 H, 32 W, 3) uint8; size (W, H) in cells; steps: (x, y, bonus) of each step.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    visits, bonus = np.zeros((2, *size))
    for x, y, value in steps:
        visits[x, y] += 1
        bonus[x, y] += value
    with np.errstate(invalid="ignore"):
        bonus = bonus / visits  # NaN, which is left blank, where the agent never was
    width = 3.4 * max(1.0, size[0] / size[1])
    figure = Figure(figsize=(3 * width + 1.5, 3.4 * max(1.0, size[1] / size[0]) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 3)
    extent = (-0.5, size[0] - 0.5, size[1] - 0.5, -0.5)
    panels[0].imshow(picture, extent=extent)
    panels[0].set_title(title, fontsize=10)
    maps = ((np.where(visits, visits, np.nan), "visits", LogNorm(vmin=1)), (bonus, "novelty, mean over visits", None))
    for panel, (cells, label, norm) in zip(panels[1:], maps, strict=True):
        panel.imshow(picture // 4, extent=extent)
        shown = panel.imshow(cells.T, norm=norm, cmap="viridis")
        panel.set_title(label, fontsize=10)
        figure.colorbar(shown, ax=panel, shrink=0.8)
    for panel in panels:
        panel.set(xticks=[], yticks=[])
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=120)


def evaluate(args: Args, env_id: str, device: torch.device, path: pathlib.Path, saved: dict) -> None:
    """Plays episodes in the minigrid package with the policy of a checkpoint, actions drawn as in training."""
    torch.manual_seed(args.seed)
    env = make_evaluation_env(env_id, parse_env_kwargs(env_id, args.env_kwargs, "gymnasium"))
    agent = Agent(int(env.action_space.n), 1 if args.single_head else 2, NUM_INPUTS[args.policy_obs]).to(device)
    load_state(agent, saved["agent"], path)
    print(f"{path}, step {saved['iteration'] * args.num_envs * args.num_steps:,}: {args.eval_episodes} episodes")
    rnd, table = RND(args.num_envs, NUM_INPUTS[args.rnd_obs], device), CountTable()
    load_state(rnd, saved["rnd"], path)
    load_state(table, saved["table"], path)
    returns, lengths, cells, steps = [], [], [], []
    for episode in tqdm(range(args.eval_episodes), unit="episode", disable=not sys.stderr.isatty()):
        video = path.parent / "videos" / f"{env_id}_{path.stem}_episode{episode}.{args.video_format}"
        if args.capture_video:
            video.parent.mkdir(exist_ok=True)
            pace = {"duration": 125, "loop": 0} if args.video_format == "gif" else {"fps": 8, "macro_block_size": 2}
            writer = imageio.get_writer(video, **pace)  # 8 steps a second
        obs, _ = env.reset(seed=args.seed + (0 if args.plot else episode))
        grid = env.unwrapped
        if args.plot and episode == 0:
            picture = grid.get_frame(highlight=False)
        rewards, positions, views, done = [], [tuple(grid.agent_pos)], [obs], False
        while not done:
            if args.capture_video:
                writer.append_data(env.render())  # (32 * height, 32 * width, 3) uint8, what the agent sees is lit up
            with torch.no_grad():
                logits, _ = agent(encode(torch.from_numpy(obs)[None].to(device), args.policy_obs))
            obs, reward, terminated, truncated, _ = env.step(int(torch.multinomial(logits.softmax(1), 1)))
            rewards.append(float(reward))
            positions.append(tuple(grid.agent_pos))
            views.append(obs)
            done = terminated or truncated
        returns.append(sum(rewards))
        lengths.append(len(rewards))
        cells.append(len(set(positions)))
        if args.plot:
            bonus = episode_bonus(np.stack(views), args, rnd, table, device)
            steps += [(*position, value) for position, value in zip(positions[1:], bonus, strict=True)]
        if args.capture_video:
            writer.append_data(env.render())
            writer.close()
            tqdm.write(f"episode {episode}: return {returns[-1]:.3f}, {lengths[-1]} steps, {video}")
    error = np.std(returns, ddof=1) / len(returns) ** 0.5 if len(returns) > 1 else float("nan")
    line = f"return {np.mean(returns):.3f} +- {error:.3f} (mean, standard error)"
    line += f", success {np.mean(np.array(returns) > 0):.2f}, length {np.mean(lengths):.1f}"
    print(f"{line}, cells {np.mean(cells):.1f}{', all in one layout' * args.plot}")
    if args.plot:
        plot = path.parent / "plots" / f"{env_id}_{path.stem}_seed{args.seed}.png"
        plot_layout(picture, (grid.width, grid.height), steps, f"{env_id}, seed {args.seed}", plot)
        print(f"heat map {plot}")


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
        check_args(args)
        env_id = resolve_env_id(args.env_id, args.backend)
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
