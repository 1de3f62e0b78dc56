# /// script
# requires-python = ">=3.11"
# dependencies = [
#   "torch==2.13.0", "numpy==2.4.6", "tyro==1.0.17", "tensorboard==2.21.0", "tqdm==4.70.1", "matplotlib==3.11.2"
# ]
# ///
"""REINFORCE with Random Network Distillation (RND) in a maze, in one file. A tutorial: start here.

Papers: Williams (1992), Simple statistical gradient-following algorithms for connectionist reinforcement
learning; Burda, Edwards, Storkey, Klimov (2018), Exploration by Random Network Distillation,
arXiv:1810.12894.

A maze of six rooms pays 1 at the goal and nothing anywhere else. REINFORCE plays episodes. An action becomes
likelier if more reward came after it than expected, in proportion to the difference:

    G(t) = r(t) + gamma * G(t+1)                        return: what came after step t, discounted
    loss = -mean(log pi(a(t) | o(t)) * (G(t) - V(o(t)))) - ent_coef * entropy

V(o), the baseline, is what was expected: a network that learns G by least squares. The entropy term favours
a random policy.
While no episode finds the goal, all returns are 0: there is nothing to learn from. With `--goal 9-9` a
random walk arrives in one episode out of 530. So the agent is also paid for what is new to it.
RND measures that with two networks. The target f is random and never trained. The predictor g learns to agree
with it on what the agent sees. Where they still disagree, the agent has seldom been:

    r_int(t) = |g(o(t+1)) - f(o(t+1))|^2                intrinsic reward, the bonus
    A(t)     = int_coef * (G_int - V_int) + ext_coef * (G - V)      advantage, in place of G - V in the loss

Two streams of reward, then, extrinsic and intrinsic, each with a return and a baseline of its own.
Five things help. With all of them 10 of 10 seeds solve `--goal 9-9`; in brackets: how many without this one.
  1. The bonus falls as a place becomes familiar, at a pace that the policy can follow
     (`--predictor-learning-rate`). (not run)
  2. It is divided by the std of its own discounted return over the whole run so far. A std that forgets
     would, we think, blow up the last noise to full size when everything is known. (not run)
  3. Its return goes on after an episode, into the next one. If it did not (`--int-episodic`), reaching the
     goal would cost all the novelty that could still have been seen. (8)
  4. A baseline for each stream. Without (`--no-baseline`) all returns are positive, and every action taken
     becomes likelier. (0; the bonus's return then ends with the episode, too)
  5. Bonus, entropy term and the policy's learning rate fade to nothing (`--anneal`), so that in the end only
     the goal counts. (9)

Three commands, to train, to train without the bonus and to evaluate:
    python reinforce_rnd_maze.py --goal 9-9 --plot
    python reinforce_rnd_maze.py --goal 9-9 --int-coef 0
    python reinforce_rnd_maze.py --evaluate runs/RUN

What to expect: half a minute on one core, 0.5 GB. With `--goal 9-9` the goal is found after some 300 episodes
and reached by 95 of 100 after some 1,100, in the end by a shortest path, with 10 seeds of 10. REINFORCE alone
finds it too, by luck, and never learns it: 0 of 10 (docs/results/maze.md). The maze, its rewards and the
policy's layers are from notes by "bison" (2025). There, and here with `--bonus notes`, 9-9 stays unsolved.
"""

import collections
import contextlib
import dataclasses
import datetime
import io
import math
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import time
import zipfile
from typing import Literal, NamedTuple

import numpy as np
import torch
import torch.nn as nn
import tyro
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim import SGD, Adam
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm


@dataclasses.dataclass
class Args:
    # "Notes" are the source of the maze, "paper" is that of RND, "reference" its authors' code. `--help` shows
    # the comments.

    # experiment
    seed: int = 1  # seed of the networks and the actions
    device: Literal["auto", "cuda", "mps", "cpu"] = "cpu"  # auto: cuda or mps if there is one; cpu is faster here
    runs_dir: str = "runs"  # where the run's folder is made
    evaluate: str | None = None  # a run's folder or checkpoint: play with it, do not train
    eval_episodes: int = 100  # episodes to play with --evaluate
    plot: bool = False  # at the end: pictures of exploration, policy and learning curve, in the run's folder

    # environment
    goal: str = "9-1"  # row-column of the goal, from 0: 9-1 is 14 steps away (notes), 9-6 23, 9-9 50
    max_episode_steps: int = 500  # steps after which an episode is cut (notes)
    demo_curriculum: bool = False  # start near the goal, on a shortest path; move back when 20 % of episodes succeed

    # REINFORCE
    total_episodes: float = 3000  # episodes to play, over which things fade (notes: 5,000)
    num_envs: int = 4  # episodes played side by side, N; one gradient step for them all (notes: 1)
    learning_rate: float = 1e-3  # Adam's step size for the policy (notes: 1e-4, for 5,000 gradient steps, not 750)
    baseline_learning_rate: float = 4e-3  # the same for the baseline, which has to keep up with a moving bonus
    gamma: float = 0.98  # discount of the extrinsic stream (notes)
    ent_coef: float = 0.01  # weight of the entropy term at the start (notes: 0.1, without a baseline)
    max_grad_norm: float = 0.5  # clip the norm of the policy's gradient (notes)
    baseline: bool = True  # subtract a learned value from the returns (notes: no)
    anneal: bool = True  # let bonus, entropy term and the policy's learning rate fade to 0 (notes: no)
    return_norm: bool = False  # standardise advantages within each episode (notes: tried, without a baseline)

    # RND
    int_coef: float = 1.0  # weight of the intrinsic advantage at the start (paper); 0: REINFORCE without the bonus
    ext_coef: float = 2.0  # weight of the extrinsic advantage (paper)
    int_gamma: float = 0.99  # discount of the intrinsic stream (paper)
    int_episodic: bool = False  # end the bonus's return with the episode (paper: no), as --no-baseline does
    bonus: Literal["rnd", "notes"] = "rnd"  # rnd: the predictor's error; notes: that error, standardised
    predictor_learning_rate: float = 0.25  # the predictor's step size, plain gradient descent


# ------------------------------------------------------------------------------------------------ Environment

MAZE = """
. . . # . . . . . .
. . . # . . . # . .
. . . # . . . # . .
# # . # . . . # . .
. . . # . # # # . #
. . . # . . . # . .
. # # # # # . # # .
. # . . . # . # . .
. # . # . # . # . #
. . . # . . . # . .
"""  # six rooms, joined by single gaps
WALLS = np.array([line.split() for line in MAZE.split("\n")[1:-1]]) == "#"  # (10, 10) bool
SIZE = len(WALLS)
# what --goal may be: every free cell but the first, the start
GOALS = {f"{row}-{column}": (row, column) for row, column in np.argwhere(~WALLS)[1:].tolist()}
GOAL_CODE, WALL_CODE, AGENT_CODE = 2, 3, 4  # in an observation; a free cell is 0
MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))  # (rows, columns) of the actions up, down, left, right


class MazeEnvs:
    """N copies of the maze. A bump leaves the agent where it is; only the goal pays, 1.

    An observation is the maze as one plane of codes, (1, 10, 10). As only the agent moves, there are S = 67 of
    them, one for each free cell. So states are numbers, and `observations` (S, 1, 10, 10) has them all.

    There is no auto-reset: REINFORCE needs whole episodes. An agent at the goal stays there until `reset`.
    `step` marks that with valid = False, and everything that learns or counts leaves it out.
    """

    def __init__(self, num_envs: int, goal: tuple[int, int], device: torch.device | str = "cpu"):
        self.num_envs = num_envs
        self.recent = collections.deque(maxlen=100)  # did the last episodes reach the goal?
        self.cells = np.argwhere(~WALLS)  # (S, 2) row and column of each state
        number = {tuple(cell): state for state, cell in enumerate(self.cells.tolist())}
        self.start, self.goal = 0, number[goal]
        observations = np.zeros((len(self.cells), 1, SIZE, SIZE), np.float32)  # (S, 1, 10, 10)
        observations[:, 0, WALLS] = WALL_CODE
        observations[:, 0, *goal] = GOAL_CODE
        self.next_state = np.zeros((len(self.cells), len(MOVES)), np.int64)  # (S, 4)
        for (row, column), state in number.items():
            observations[state, 0, row, column] = AGENT_CODE
            for action, (down, right) in enumerate(MOVES):
                self.next_state[state, action] = number.get((row + down, column + right), state)
        self.next_state[self.goal] = self.goal  # who is there stays there
        self.observations = torch.from_numpy(observations).to(device)
        self.path = shortest_path(self)  # states from the start to the goal

    def reset(self) -> np.ndarray:
        """Starts an episode in every copy. Returns states (N,)."""
        self.states = np.full(self.num_envs, self.start)
        self.done = np.zeros(self.num_envs, bool)  # (N,) the episode is over
        return self.states

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Plays actions (N,). Returns states, rewards and valid (N,), which is False after an episode's end."""
        valid = ~self.done
        self.states = self.next_state[self.states, actions]
        self.done = self.states == self.goal
        return self.states, (self.done & valid).astype(np.float32), valid


def shortest_path(envs: MazeEnvs) -> list[int]:
    """A shortest path from state 0 to the goal, both included, by breadth-first search."""
    paths, seen = collections.deque([[0]]), {0}
    while paths[0][-1] != envs.goal:
        path = paths.popleft()
        for state in envs.next_state[path[-1]].tolist():
            if state not in seen:
                seen.add(state)
                paths.append([*path, state])
    return paths[0]


# --------------------------------------------------------------------------------------------------- Networks
def init_layer(layer: nn.Module, gain: float = 2**0.5) -> nn.Module:
    """Orthogonal weights, zero biases (reference: every layer of every network)."""
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


class Agent(nn.Module):
    """Policy and baseline. The order of the baseline's values is intrinsic, extrinsic.

    The baseline has a network of its own. In a shared one its gradient, 250 times as large in a trial, would
    push the policy's aside.
    """

    def __init__(self, num_actions: int):
        super().__init__()
        # a star unpacks a line; small last layers: at first all actions are equally likely, all values near 0
        self.policy = nn.Sequential(  # the layers of the notes
            *(init_layer(nn.Conv2d(1, 32, 3, padding=1)), nn.ReLU()),
            *(init_layer(nn.Conv2d(32, 64, 3, padding=1)), nn.ReLU(), nn.Flatten()),
            *(init_layer(nn.Linear(64 * SIZE * SIZE, 128)), nn.ReLU()),
            init_layer(nn.Linear(128, num_actions), gain=0.01),
        )
        self.baseline = nn.Sequential(
            *(nn.Flatten(), init_layer(nn.Linear(SIZE * SIZE, 128)), nn.ReLU()),
            *(init_layer(nn.Linear(128, 128)), nn.ReLU()),
            init_layer(nn.Linear(128, 2), gain=0.01),
        )

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, 1, 10, 10) -> logits (B, 4), values (B, 2)."""
        return self.policy(obs), self.baseline(agent_plane(obs))


def agent_plane(obs: Tensor) -> Tensor:
    """Observations (B, 1, 10, 10) -> the same, but 1 where the agent is and 0 elsewhere."""
    return (obs == AGENT_CODE).float()


def rnd_layers() -> list[nn.Module]:
    """Where the agent is (B, 1, 10, 10) -> features (B, 128): the target, and the predictor's beginning."""
    return [nn.Flatten(), init_layer(nn.Linear(SIZE * SIZE, 128)), nn.ReLU(), init_layer(nn.Linear(128, 128))]


class RND(nn.Module):
    """The target, the predictor, and the statistics that normalise what they pay."""

    def __init__(self, num_envs: int, device: torch.device):
        super().__init__()
        # The predictor is one layer deeper, so that it can represent the target. Then the error that is left
        # comes from what it has not seen (paper section 2.2.1).
        self.target = nn.Sequential(*rnd_layers()).requires_grad_(False)
        self.predictor = nn.Sequential(*rnd_layers(), nn.ReLU(), init_layer(nn.Linear(128, 128)))
        self.return_sums = torch.zeros(3, dtype=torch.float64)  # of the bonus's returns: count, sum, squares
        self.return_std = torch.ones(())
        self.filtered = torch.zeros(num_envs, device=device)  # (N,) the state of `reward_filter`
        self.to(device)

    def errors(self, obs: Tensor) -> Tensor:
        """Observations (B, 1, 10, 10) -> squared error of each feature (B, 128)."""
        # paper: observations are whitened first, here: not, because a position is 0s and a single 1 as it is
        position = agent_plane(obs)
        return (self.predictor(position) - self.target(position)).square()


# ---------------------------------------------------------------------------- Normalisers, returns and losses
def novelty(errors: Tensor, bonus: str) -> Tensor:
    """Raw intrinsic reward: squared error of each feature (B, F) -> (B,).

    `rnd`: their sum, |g - f|^2, which goes to 0 as the predictor learns.
    `notes`: the errors are standardised within each observation, then mean(tanh(|z|)). Multiply all by a number
    and nothing changes, so this reward does not know how well the predictor does. Trained on itself, as in the
    notes, it falls everywhere alike, seen or not. It is kept to show that.
    """
    if bonus == "rnd":
        return errors.sum(1)
    z = (errors - errors.mean(1, keepdim=True)) / (errors.std(1, keepdim=True) + 1e-12)
    return z.abs().tanh().mean(1)


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


def discounted_returns(rewards: Tensor, valid: Tensor, gamma: float, last: Tensor | float) -> Tensor:
    """G(t) = r(t) + gamma * G(t+1), back from the last valid step of each column, after which it is `last`.

    Args: rewards (T, N); valid (T, N), False after the end of a column's episode; last, a number or (N,).
    Returns: G (T, N), 0 where not valid.
    """
    returns, g = torch.zeros_like(rewards), last
    for t in reversed(range(len(rewards))):
        g = torch.where(valid[t], rewards[t] + gamma * g, g)  # (N,)
        returns[t] = g * valid[t]
    return returns


def standardise(advantages: Tensor, valid: Tensor) -> Tensor:
    """Advantages (T, N) with mean 0 and std 1 over the valid steps of each column, that is of each episode.

    Without a baseline they are the returns. In an episode that is paid at its end these grow with every step. So
    this calls the first steps bad and the last ones good, whatever was done, and the first room is learned badly.
    """
    count = valid.sum(0)
    mean = (advantages * valid).sum(0) / count  # (N,)
    std = ((advantages - mean).square() * valid).sum(0).div((count - 1).clamp(min=1)).sqrt()
    return (advantages - mean) / (std + 1e-9) * valid


# --------------------------------------------------------------------------------- The steps of the algorithm
class Rollout(NamedTuple):
    """An episode in each of N mazes, T steps (the longest one's), and what the agent says of all S states."""

    observations: Tensor  # (S, 1, 10, 10) of every state, entered or not
    logprobs: Tensor  # (S, 4) log pi, through which the policy's gradient flows
    values: Tensor  # (S, 2) the baselines, intrinsic and extrinsic, with their gradient
    states: Tensor  # (T, N) int64, numbers from 0 to S - 1
    actions: Tensor  # (T, N) int64
    next_states: Tensor  # (T, N) int64
    rewards: Tensor  # (T, N) extrinsic
    valid: Tensor  # (T, N) bool, False after the end of an episode

    @property
    def visits(self) -> Tensor:
        """How often each state was entered (S,)."""
        return torch.bincount(self.next_states[self.valid], minlength=len(self.values))

    def baselines(self, args: Args) -> Tensor:
        """What is subtracted from the returns (T, N, 2)."""
        values = self.values.detach() if args.baseline else torch.zeros_like(self.values)
        return values[self.states]


def collect(envs: MazeEnvs, agent: Agent, args: Args) -> Rollout:
    """Plays one episode in every copy of the maze, until the last one is over.

    REINFORCE does not change the policy while it plays, and there are only S observations. So the agent is
    asked once for all of them, and every step looks up its row: the same actions, some thirty times as fast.
    """
    logits, values = agent(envs.observations)
    logprobs = logits.log_softmax(1)
    # the action is the number of thresholds (cumulative probabilities) that a uniform number reaches
    thresholds = logprobs.detach().exp().cpu().numpy().cumsum(1)[:, :-1]  # (S, 3)
    draws = torch.rand((args.max_episode_steps, envs.num_envs, 1)).numpy()
    states, steps = envs.reset(), []
    for draw in draws:  # (N, 1)
        actions = (draw >= thresholds[states]).sum(1)
        next_states, rewards, valid = envs.step(actions)
        steps.append((states, actions, next_states, rewards, valid))
        states = next_states
        if envs.done.all():
            break
    columns = (torch.from_numpy(np.stack(column)).to(values.device) for column in zip(*steps, strict=True))
    rollout = Rollout(envs.observations, logprobs, values, *columns)
    envs.recent.extend(rollout.rewards.sum(0).tolist())
    return rollout


@torch.no_grad()
def intrinsic_rewards(rnd: RND, rollout: Rollout, args: Args) -> Tensor:
    """r_int (T, N), divided by the std of all its returns so far."""
    intrinsic = novelty(rnd.errors(rollout.observations), args.bonus)[rollout.next_states]
    discounted, rnd.filtered = reward_filter(intrinsic, rollout.valid, args.int_gamma, rnd.filtered)
    past = discounted[rollout.valid].cpu().double()  # (B,)
    rnd.return_sums += torch.stack([torch.ones_like(past), past, past.square()], 1).sum(0)
    mean, mean_square = rnd.return_sums[1:] / rnd.return_sums[0]
    variance = mean_square - mean.square()
    if variance > 1e-9 * mean_square:  # the first returns may all be the same
        rnd.return_std = variance.sqrt().float()
    return intrinsic / rnd.return_std


def advantages_and_returns(rollout: Rollout, intrinsic: Tensor, args: Args) -> tuple[Tensor, Tensor]:
    """A = int_coef * A_int + ext_coef * A_ext (T, N), and what the two baselines are to learn (T, N, 2)."""
    baselines = rollout.baselines(args)
    # what follows an episode is the next one, which is worth the value of its start
    next_episode = 0.0 if args.int_episodic else baselines[0, :, 0]
    int_returns = discounted_returns(intrinsic, rollout.valid, args.int_gamma, next_episode)
    ext_returns = discounted_returns(rollout.rewards, rollout.valid, args.gamma, 0.0)  # nothing follows a cut either
    returns = torch.stack([int_returns, ext_returns], 2)
    int_advantages, ext_advantages = (returns - baselines).unbind(2)
    advantages = args.int_coef * int_advantages + args.ext_coef * ext_advantages
    if args.return_norm:
        advantages = standardise(advantages, rollout.valid)
    return advantages, returns


def update(
    agent: Agent, rnd: RND, optimizer: Adam, rollout: Rollout, advantages: Tensor, returns: Tensor, args: Args
) -> dict[str, Tensor]:
    """One gradient step for policy and baseline, and one for the predictor. Returns what to log."""
    observations, logprobs, values, states, actions, _, _, valid = rollout
    policy_loss = -(logprobs[states, actions] * advantages)[valid].mean()
    entropy = -(logprobs.exp() * logprobs).sum(1)[states[valid]].mean()
    value_loss_int, value_loss_ext = 0.5 * (values[states] - returns)[valid].square().mean(0)
    # a stream that is turned off does not shape the baseline's features either
    value_loss = value_loss_int * (args.int_coef > 0) + value_loss_ext * (args.ext_coef > 0)
    loss = policy_loss - args.ent_coef * entropy + args.baseline * value_loss
    optimizer.param_groups[0]["lr"] = args.learning_rate  # the policy's, as it has faded
    optimizer.zero_grad()
    loss.backward()
    grad_norm = nn.utils.clip_grad_norm_(agent.policy.parameters(), args.max_grad_norm)
    optimizer.step()

    # the predictor learns from the observations that were paid for, each as often as it was seen
    bonus = novelty(rnd.errors(observations), args.bonus)  # (S,)
    predictor_loss = (bonus * rollout.visits).sum() / valid.sum()
    # paper: Adam, here: plain gradient descent, because with Adam's rescaled steps the bonus of cells that
    # are seldom seen falls sooner, and in trials the goal was not learned
    rnd.predictor.zero_grad()
    predictor_loss.backward()
    SGD(rnd.predictor.parameters(), args.predictor_learning_rate).step()
    return {
        "charts/learning_rate": args.learning_rate,
        "losses/policy_loss": policy_loss,
        "losses/value_loss": value_loss,
        "losses/value_loss_int": value_loss_int,
        "losses/value_loss_ext": value_loss_ext,
        "losses/entropy": entropy,
        "losses/predictor_loss": predictor_loss,
        "losses/grad_norm": grad_norm,
    }


def annealed(args: Args, episode: int) -> Args:
    """The flags with what is left of bonus, entropy term and learning rate after so many episodes."""
    fade = 1 - episode / args.total_episodes if args.anneal else 1.0
    faded = {flag: fade * getattr(args, flag) for flag in ("int_coef", "ent_coef", "learning_rate")}
    return dataclasses.replace(args, **faded)


def move_start(envs: MazeEnvs) -> None:
    """Curriculum: when 20 % of at least 10 episodes succeed, start one step further from the goal."""
    if envs.start != envs.path[0] and len(envs.recent) >= 10 and np.mean(envs.recent) >= 0.2:
        envs.start = envs.path[envs.path.index(envs.start) - 1]
        envs.recent.clear()


# --------------------------------------------------------------------------------------------------- Training
def train(args: Args, device: torch.device) -> int:
    """Trains to the end, or until Ctrl-C. Returns the exit status."""
    torch.manual_seed(args.seed)
    envs = MazeEnvs(args.num_envs, GOALS[args.goal], device)
    agent, rnd = Agent(len(MOVES)).to(device), RND(args.num_envs, device)
    # With Adam's usual 0.999 the first, large bonuses would keep steps small for a thousand updates. Its usual
    # 1e-8 would blow up what gradient is left when the maze is solved.
    optimizer = Adam(agent.policy.parameters(), args.learning_rate, betas=(0.9, 0.99), eps=1e-6)
    optimizer.add_param_group({"params": agent.baseline.parameters(), "lr": args.baseline_learning_rate})
    if args.demo_curriculum:
        envs.start = envs.path[-2]
    episode, status = 0, 0
    with contextlib.closing(Run(args, envs, agent, rnd)) as run:
        try:
            while episode < args.total_episodes:
                faded = annealed(args, episode)
                rollout = collect(envs, agent, faded)
                intrinsic = intrinsic_rewards(rnd, rollout, faded)
                advantages, returns = advantages_and_returns(rollout, intrinsic, faded)
                scalars = update(agent, rnd, optimizer, rollout, advantages, returns, faded)
                episode += args.num_envs
                move_start(envs)
                run.log(episode, rollout, intrinsic, returns, scalars)
        except KeyboardInterrupt:
            status = 130
        if run.curve:
            run.finish()
        if args.plot and not status:
            plot(run)
    return status


# ----------------------------------------------- Machinery (alike in all scripts; skip it on a first reading)
class UserError(Exception):
    """Something that the user can put right: printed as one line, exit status 2."""


def check_args(args: Args) -> None:
    """Raises UserError at the first flag whose value makes no sense, before anything is created."""
    counts = "num_envs max_episode_steps total_episodes eval_episodes"
    for flags, holds, rule in (
        (counts, lambda x: 1 <= x < 2**31, "at least 1 and below 2^31"),
        ("num_envs eval_episodes", lambda x: x * args.max_episode_steps <= 1e8, "less: too many steps for the memory"),
        ("seed", lambda x: 0 <= x < 2**63, "at least 0 and below 2^63"),
        ("ent_coef int_coef ext_coef", lambda x: 0 <= x < math.inf, "at least 0"),
        ("gamma int_gamma", lambda x: 0 <= x <= 1, "in [0, 1]"),
        ("learning_rate baseline_learning_rate", lambda x: 0 < x < math.inf, "a positive number"),
        ("predictor_learning_rate max_grad_norm", lambda x: 0 < x < math.inf, "a positive number"),
        ("ext_coef", lambda x: x + args.int_coef > 0, "above 0 with --int-coef 0, or nothing is learned"),
        ("device", lambda x: x == "auto" or getattr(torch, x).is_available(), "on this machine, and in this PyTorch"),
        ("num_envs", lambda _: os.environ.get("WORLD_SIZE") in (None, "1"), "run without torchrun"),
        ("goal", lambda x: x in GOALS, "row-column, each from 0 to 9, of a free cell other than the start"),
    ):
        for flag in flags.split():
            if not holds(value := getattr(args, flag)):
                raise UserError(f"--{flag.replace('_', '-')} {value}: must be {rule}")


def explained_variance(values: Tensor, returns: Tensor, valid: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) of valid entries (T, N), at least -1. NaN if none varies."""
    values, returns = values[valid], returns[valid]
    return (1 - (returns - values).var(correction=0) / returns.var(correction=0)).clamp(min=-1)


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


class Run:
    """What goes on around the loop: the run's folder, logs, progress, and what is kept for the end."""

    def __init__(self, args: Args, envs: MazeEnvs, agent: Agent, rnd: RND):
        self.args, self.envs, self.agent, self.rnd = args, envs, agent, rnd
        self.step, self.first_hit, self.solved = 0, None, None  # the last two: [episode, step]
        self.curve = []  # after every batch: [step, episode, success rate, length of the likeliest path]
        self.visits = torch.zeros(len(envs.cells), dtype=torch.int64)  # (S,) how often each state was entered
        self.snapshots = []  # at each eighth of the run: (episode, visits (S,) so far, bonus (S,))
        now = datetime.datetime.now().strftime("%Y%m%d-%H%M%S-%f")
        script = pathlib.Path(globals().get("__file__", "notebook")).stem
        self.folder = pathlib.Path(args.runs_dir) / f"Maze-{args.goal}__{script}__{args.seed}__{now}"
        try:
            self.folder.mkdir(parents=True)
            self.writer = SummaryWriter(str(self.folder))
        except OSError as error:
            raise UserError(f"cannot write into {self.folder}: {error.strerror or error}") from None
        self.stack = contextlib.ExitStack()  # what to undo at the end
        self.stack.enter_context(contextlib.suppress(OSError))  # a disk that is full at the end
        self.stack.callback(self.writer.close)
        self.introduce()
        lines = {} if sys.stderr.isatty() else {"file": io.StringIO(), "bar_format": "{l_bar} {r_bar}"}  # see `log`
        self.bar = tqdm(total=args.total_episodes, unit=" ep", smoothing=0.02, miniters=1, **lines)
        self.stack.callback(self.bar.close)
        self.close = self.stack.close
        self.started = self.logged = time.monotonic()

    def introduce(self) -> None:
        """Says what is about to happen, and puts flags, versions and commit into the logs."""
        args, device = self.args, self.envs.observations.device
        facts = {x.__name__: x.__version__ for x in (torch, np)}
        facts |= {"python": sys.version.split()[0], "commit": "unknown", **vars(args)}
        with contextlib.suppress(OSError, subprocess.CalledProcessError, NameError):  # no git, no file
            shutil.copy(__file__, self.folder)  # a copy that was changed is in no commit
            describe = ["git", "-C", os.path.dirname(__file__), "describe", "--always", "--dirty"]
            facts["commit"] = subprocess.check_output(describe, text=True, stderr=subprocess.DEVNULL).strip()
        table = "\n".join(f"|{key}|{value}|" for key, value in {"name": "value", "-": "-", **facts}.items())
        self.writer.add_text("hyperparameters", table, self.step)
        networks = [*self.agent.named_children(), *self.rnd.named_children()]
        sizes = [f"{name} {sum(p.numel() for p in network.parameters()):,}" for name, network in networks]
        name = torch.cuda.get_device_name() if device.type == "cuda" else "1 thread"
        print(f"device       {device} ({name})")
        shortest = len(self.envs.path) - 1
        print(f"environment  Maze-{args.goal} x {args.num_envs}, shortest path {shortest} steps")
        print(f"parameters   {', '.join(sizes)}")
        print(f"folder       {self.folder}")

    @torch.no_grad()
    def log(self, episode: int, rollout: Rollout, intrinsic: Tensor, returns: Tensor, scalars: dict) -> None:
        """Logs a batch of episodes and moves the bar. Draws the maze eight times in a run. Raises at a NaN."""
        args, envs, valid, hits = self.args, self.envs, rollout.valid, rollout.rewards.sum(0)
        num_steps, now = int(valid.sum()), time.monotonic()
        self.step += num_steps
        from_start = bool(rollout.states[0, 0] == 0)  # and not near the goal, by --demo-curriculum
        success = float(np.mean(envs.recent)) if from_start else 0.0
        if from_start and hits.any():
            self.first_hit = self.first_hit or [episode, self.step]
        if len(envs.recent) == 100 and success >= 0.95:
            self.solved = self.solved or [episode, self.step]
        actions = rollout.logprobs.argmax(1)
        _, length = greedy_path(envs, actions)
        self.visits += rollout.visits.cpu()
        scalars |= {
            "charts/episodic_return": hits.mean(),
            "charts/episodic_length": num_steps / args.num_envs,
            "charts/success_rate": success,
            "charts/SPS": num_steps / (now - self.logged),
            "rnd/intrinsic_reward": intrinsic[valid].mean(),
            "rnd/intrinsic_return_std": self.rnd.return_std,
            "rnd/cells_visited": (self.visits > 0).sum(),
        }
        for stream, values, G in zip(("int", "ext"), rollout.baselines(args).unbind(2), returns.unbind(2), strict=True):
            scalars[f"losses/explained_variance_{stream}"] = explained_variance(values, G, valid)
        if args.demo_curriculum:
            scalars["charts/start_distance"] = envs.path.index(envs.start)  # from the true start
        for key, value in scalars.items():
            if not math.isfinite(value) and "explained_variance" not in key:  # NaN if all are equal
                raise FloatingPointError(f"{key} is {value} at step {self.step:,}: stopped, nothing is saved")
            self.writer.add_scalar(key, value, self.step)
        status = f"success {success:.2f}, r_int {scalars['rnd/intrinsic_reward']:.4f}"
        self.bar.set_postfix_str(f"{status}, cells {scalars['rnd/cells_visited']}", refresh=False)
        self.bar.update(min(episode, args.total_episodes) - self.bar.n)
        if 8 * episode // args.total_episodes > 8 * (episode - args.num_envs) // args.total_episodes:
            bonus = novelty(self.rnd.errors(envs.observations), args.bonus)
            self.snapshots.append((episode, self.visits.clone(), bonus.cpu()))
            maze = draw(envs, actions, rollout.next_states[:, 0].tolist())
            tqdm.write(f"episode {episode:,}: likeliest actions; cells that one episode entered\n{maze}")
            if not sys.stderr.isatty():
                print(str(self.bar).replace("|", ""))
        self.curve.append([self.step, episode, success, length])
        self.logged = now

    def finish(self) -> None:
        """Saves the agent and says what was reached."""
        self.bar.close()
        step, episode, success, length = self.curve[-1]
        seconds, path = time.monotonic() - self.started, self.folder / "latest.pt"
        state = {"agent": self.agent.state_dict(), "rnd": self.rnd.state_dict()}
        if not all(x.isfinite().all() for x in state["agent"].values()):
            raise FloatingPointError(f"a weight is not finite at step {step:,}: nothing is saved")
        state |= {"args": vars(self.args), "step": step, "seconds": seconds, "curve": self.curve}
        torch.save(state | {"first_hit": self.first_hit, "solved": self.solved}, buffer := io.BytesIO())
        temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
        try:  # there is a whole file or none
            with open(temporary, "wb") as file:
                file.write(buffer.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        for text, when in (("goal first reached", self.first_hit), ("95 of 100 episodes reach it", self.solved)):
            print(f"{text:28s} {'after {:,} episodes, {:,} steps'.format(*when) if when else 'never'}")
        print(f"path of likeliest actions    {length or 'none'}; the shortest is {len(self.envs.path) - 1}")
        took = tqdm.format_interval(seconds)
        print(f"success {success:.2f}, {episode:,} episodes, {step:,} steps in {took}, folder {self.folder}")
        print(f"evaluate with: {shlex.join(['python', sys.argv[0], '--evaluate', str(self.folder)])}")


def load_agent(source: str) -> tuple[Agent, dict]:
    """The agent in a run's folder, or in that file; and the flags that say what it was trained for."""
    path = pathlib.Path(os.path.expanduser(source))
    path = path / "latest.pt" if path.is_dir() else path
    if not (source and path.is_file()):
        raise UserError(f"there is no checkpoint {path}")
    try:
        if zipfile.ZipFile(path).testzip():
            raise ValueError("a checksum is wrong")
        saved, agent = torch.load(path, map_location="cpu", weights_only=True), Agent(len(MOVES))
        agent.load_state_dict(saved["agent"])
        print(f"{path}, step {int(saved['step']):,}")
        return agent, {"goal": str(saved["args"]["goal"]), "max_episode_steps": int(saved["args"]["max_episode_steps"])}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".strip().splitlines()[-1].strip()
        raise UserError(f"{path} is damaged or does not fit script and flags ({reason})") from None


# ------------------------------------------------------------------------------------------------- Evaluation
def greedy_path(envs: MazeEnvs, actions: Tensor) -> tuple[list[int], int | None]:
    """The states from 0 on when actions (S,) are taken; and the number of steps, None if they miss the goal."""
    actions, path = actions.tolist(), [0]
    while path[-1] != envs.goal and len(path) <= len(actions):
        path.append(int(envs.next_state[path[-1], actions[path[-1]]]))
    return path, len(path) - 1 if path[-1] == envs.goal else None


def draw(envs: MazeEnvs, actions: Tensor, trajectory: list[int]) -> str:
    """The maze as text, twice: the action (S,) of each cell as an arrow, and the cells of a trajectory as `o`."""
    left, right = np.where(WALLS, "■", " "), np.where(WALLS, "■", "·")  # (10, 10)
    left[*envs.cells.T] = np.array(list("↑↓←→"))[actions.cpu()]
    right[*envs.cells[trajectory].T] = "o"
    for grid in (left, right):
        grid[*envs.cells[envs.goal]] = "X"
    text = "".join(f"{' '.join(a)}     {' '.join(b)}\n" for a, b in zip(left, right, strict=True))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # the console has no such marks
        text = text.translate(str.maketrans("↑↓←→■·", "^v<>#."))
    return text


def show(envs: MazeEnvs, panel: Axes, values: np.ndarray | Tensor, **scale: object) -> None:
    """Draws one value for each state (S,) as a map. White: NaN, or 0 on a logarithmic scale."""
    grid, size = np.full(WALLS.shape, np.nan), 3 * panel.figure.get_figheight()
    grid[*envs.cells.T] = values
    panel.imshow(WALLS, cmap="gray_r", vmax=4 / 3)  # dark, and white where nothing is drawn over it
    panel.imshow(grid, **scale)
    panel.plot(0, 0, "ko", markersize=size, markerfacecolor="none")
    panel.plot(*envs.cells[envs.goal][::-1], "k*", markersize=size, markerfacecolor="gold")
    panel.set(xticks=[], yticks=[])


@torch.no_grad()
def plot(run: Run) -> None:
    """Draws exploration.png, policy.png and learning_curve.png."""
    envs, figures = run.envs, {}

    # where the agent went, and what the bonus was, in eight parts of the run
    episodes, visits, bonuses = zip(*run.snapshots, strict=True)
    visits, bonuses = np.diff(np.stack(visits), axis=0, prepend=0), np.stack(bonuses)  # (8, S), (8, S)
    figures["exploration"] = figure = Figure(figsize=(2 * len(episodes) + 0.5, 4.5), layout="constrained")
    rows = figure.subplots(2, len(episodes), squeeze=False)
    bonus = "bonus after" if run.args.int_coef else "unpaid bonus after"
    for row, label, parts in ((rows[0], "entered until", visits), (rows[1], bonus, bonuses)):
        low = parts[parts > 0].min()
        for panel, values, episode in zip(row, parts, episodes, strict=True):
            show(envs, panel, values, norm="log", vmin=low, vmax=max(2 * low, parts.max()))
            panel.set_title(f"{label} episode {episode:,}", fontsize=8)
        figure.colorbar(panel.images[-1], ax=panel)
    caption = "entered: in this eighth of the run, first cells not counted; white: 0; colours: logarithmic"
    figure.supxlabel(caption, fontsize=9)

    # the likeliest actions, how likely they are, and where they lead
    likelihood, actions = run.agent(envs.observations)[0].softmax(1).max(1)  # (S,), (S,)
    path, length = greedy_path(envs, actions)
    moves = np.array(MOVES, float)[actions.cpu()]  # (S, 2)
    likelihood[envs.goal] = moves[envs.goal] = np.nan  # nobody acts there
    figures["policy"] = figure = Figure(figsize=(5, 4.2), layout="constrained")
    panel = figure.subplots()
    colors = LinearSegmentedColormap.from_list("", ["white", "mediumseagreen"])
    show(envs, panel, likelihood.cpu(), cmap=colors, vmin=0.25, vmax=1)
    figure.colorbar(panel.images[-1], ax=panel, label="probability of the likeliest action")
    panel.plot(*envs.cells[path].T[::-1], "tab:orange", linewidth=6, alpha=0.5, zorder=1)
    panel.quiver(*envs.cells.T[::-1], moves[:, 1], -moves[:, 0], scale=16, width=0.008, pivot="mid")
    end = f"{length} steps to the goal" if length else "the goal is missed"
    panel.set(title=f"likeliest actions: {end}", xlabel="circle: start, star: goal")

    figures["learning_curve"] = figure = Figure(figsize=(6, 3.4), layout="constrained")
    panel = figure.subplots()
    steps, _, success, _ = zip(*run.curve, strict=True)
    panel.plot(steps, success)
    panel.set(xlabel="environment steps", ylabel="success, last 100 episodes", ylim=(-0.03, 1.03))
    panel.set_title(f"goal {run.args.goal}")
    for name, figure in figures.items():
        figure.savefig(run.folder / f"{name}.png", dpi=110)
    print(f"pictures: {', '.join(f'{name}.png' for name in figures)}")


@torch.no_grad()
def evaluate(args: Args, device: torch.device, agent: Agent) -> None:
    """Plays episodes with a saved policy, actions drawn as in training. Prints how many find the goal."""
    envs = MazeEnvs(args.eval_episodes, GOALS[args.goal], device)
    torch.manual_seed(int(np.random.SeedSequence(args.seed, spawn_key=(1,)).generate_state(1)[0]))
    rollout = collect(envs, agent.to(device), args)
    actions = rollout.logprobs.argmax(1)
    way, length = greedy_path(envs, actions)
    print(f"{args.eval_episodes} episodes; likeliest actions, and the way they go\n{draw(envs, actions, way)}")
    print(f"path of likeliest actions {length or 'none'}; the shortest is {len(envs.path) - 1}")
    hits, lengths = rollout.rewards.sum(0).tolist(), rollout.valid.sum(0).tolist()
    error = f" +- {np.std(hits, ddof=1) / len(hits) ** 0.5:.2f}" if len(hits) > 1 else ""
    print(f"success {np.mean(hits):.2f}{error} (mean, standard error), length {np.mean(lengths):.1f}")


# ------------------------------------------------------------------------------------------------ Entry point
def parse(argv: list[str] | None) -> tuple[Args, Agent | None]:
    """The flags; with --evaluate the goal and the time limit are the run's where they are not given anew."""
    args, agent = tyro.cli(Args, args=argv, description=__doc__), None
    if args.evaluate is not None:
        agent, was = load_agent(args.evaluate)
        args = tyro.cli(Args, args=argv, default=Args(**was))
    check_args(args)
    args.total_episodes = int(args.total_episodes)
    args.runs_dir = os.path.expanduser(args.runs_dir)
    return args, agent


def main(argv: list[str] | None = None) -> int:
    """Trains or evaluates. Returns the exit status: 0, 1 failed, 2 wrong use, 130 Ctrl-C."""
    threads = torch.get_num_threads()
    with contextlib.redirect_stdout(Console(sys.stdout)), contextlib.redirect_stderr(Console(sys.stderr)):
        try:
            args, agent = parse(argv)
            auto = torch.accelerator.current_accelerator(check_available=True) or "cpu"
            device = torch.device(auto if args.device == "auto" else args.device)
            torch.set_num_threads(1)  # nets this small gain little from more; other cores can run other seeds
            if args.evaluate is not None:
                evaluate(args, device, agent)
                return 0
            return train(args, device)
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
