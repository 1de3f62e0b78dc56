"""a2c_rnd_doorkey.py: its numbers against independent computations, and its promises to the user."""

import copy
import dataclasses
import importlib.metadata
import itertools
import os
import pathlib
import resource
import signal
import subprocess
import sys

import envpool
import gymnasium as gym
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import ROOT, read_scalars, run_script
from minigrid.core.world_object import Door, Goal, Key
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import a2c_rnd_doorkey as script

CPU = torch.device("cpu")
SMALL = ["--env-id", "DoorKey-5x5", "--num-envs", 4, "--num-steps", 8, "--log-interval", 2]  # 32 steps a rollout


def small_args(**changes) -> script.Args:
    values = {"env_id": "DoorKey-5x5", "num_envs": 4, "num_steps": 8, "total_timesteps": 32, "log_interval": 1}
    return script.Args(**(values | {"checkpoint_interval": 1e6, "solved_score": None} | changes))


def train(args: script.Args, folder: pathlib.Path) -> pathlib.Path:
    """Trains in this process; the run's folder."""
    args.runs_dir = str(folder)
    torch.set_num_threads(1)
    env_id = script.resolve_env_id(args.env_id, args.backend)
    assert script.train(args, env_id, CPU, None, None) == 0
    (run_dir,) = folder.iterdir()
    return run_dir


# ----------------------------------------------------------------------------------------------------------------------
# Environment
# ----------------------------------------------------------------------------------------------------------------------


def layouts(size: int):
    """Every DoorKey of this size without its agent: (column of the wall, row of the door, cell of the key)."""
    for wall in range(2, size - 2):
        for door in range(1, size - 2):
            for key in itertools.product(range(1, wall), range(1, size - 1)):
                yield wall, door, key


def doorkey(size: int, layout: tuple, position: tuple[int, int], direction: int) -> gym.Env:
    """The minigrid package's environment with this very grid."""
    env = gym.make(f"MiniGrid-DoorKey-{size}x{size}-v0").unwrapped
    env.reset(seed=0)
    wall, door, key = layout
    env.grid = type(env.grid)(size, size)
    env.grid.wall_rect(0, 0, size, size)
    env.grid.vert_wall(wall, 0)
    env.grid.set(size - 2, size - 2, Goal())
    env.grid.set(wall, door, Door("yellow", is_locked=True))
    env.grid.set(*key, Key("yellow"))
    env.agent_pos, env.agent_dir, env.carrying, env.step_count = position, direction, None, 0
    return env


def play_both(size: int, actions: np.ndarray, seed: int) -> dict[str, int]:
    """Whole episodes in EnvPool, one copy; the minigrid package plays along on every grid that fits what was seen.

    Returns how often things were seen that must have been the same in both.
    """
    pool = envpool.make(f"MiniGrid-DoorKey-{size}x{size}-v0", env_type="gymnasium", num_envs=1, seed=seed)
    obs, info = pool.reset()
    seen = {"episodes": 0, "steps": 0, "steps on the one grid left": 0, "keys": 0, "goals": 0}
    fitting = None
    for action in actions:
        if fitting is None:  # an episode begins
            position = tuple(int(x) for x in info["agent_pos"][0])
            grids = [x for x in layouts(size) if x[2] != position and position[0] < x[0]]
            fitting = [doorkey(size, x, position, direction) for x in grids for direction in range(4)]
            fitting = [env for env in fitting if (env.gen_obs()["image"] == obs["image"][0]).all()]
            assert fitting, "no grid looks like what EnvPool shows"
        obs, reward, terminated, truncated, info = pool.step(np.array([action]))
        left = []
        for env in fitting:
            other, other_reward, other_terminated, other_truncated, _ = env.step(action)
            same = (other["image"] == obs["image"][0]).all() and abs(other_reward - reward[0]) < 1e-6
            # success on the very last step is called truncated by EnvPool, both by the package
            done = (other_terminated or other_truncated) == (terminated[0] or truncated[0])
            if same and done:
                left.append(env)
        assert left, f"no grid fits any more, after {fitting[0].step_count} steps"
        seen["steps"] += 1
        seen["steps on the one grid left"] += len(fitting) == 1
        seen["keys"] += any(env.carrying for env in left) and action == 3
        seen["goals"] += reward[0] > 0
        fitting = left
        if terminated[0] or truncated[0]:
            seen["episodes"] += 1
            fitting = None
            obs, reward, terminated, truncated, info = pool.step(np.array([action]))  # next-step auto-reset
            assert reward[0] == 0 and not terminated[0] and not truncated[0]
    return seen


@pytest.mark.parametrize(("size", "steps"), [(5, 4000), (8, 3000)])
def test_envpool_and_the_minigrid_package_show_the_same_on_the_same_grid(size, steps):
    actions = np.random.default_rng(size).choice(7, steps, p=[0.15, 0.15, 0.3, 0.15, 0.05, 0.15, 0.05])
    seen = play_both(size, actions, seed=3)
    assert seen["steps on the one grid left"] > 0.5 * steps  # there, every view was predicted before it was seen
    assert seen["episodes"] >= 4 and seen["keys"] > 0 and (size == 8 or seen["goals"] > 0), seen


def test_both_backends_give_the_same_statistics():
    """A random agent's successes, lengths and returns over 400 episodes: layouts differ, their law does not."""
    results = {}
    for backend in ("envpool", "gymnasium"):
        envs = script.MiniGridEnvs("MiniGrid-DoorKey-5x5-v0", 32, 5, backend)
        envs.reset()
        rng = np.random.default_rng(0)
        while len(envs.episodes) < 400:
            envs.step(rng.integers(0, 7, 32))
        returns, lengths = np.array(envs.episodes[:400]).T
        assert lengths.max() == 250 and (returns[lengths == 250] == 0).mean() > 0.9
        won = returns > 0
        np.testing.assert_allclose(returns[won], 1 - 0.9 * lengths[won] / 250, atol=1e-5)
        results[backend] = won.mean()
    # 9.2 % of episodes succeed; two samples of 400 differ by less than four standard errors of the difference
    assert all(0.03 < p < 0.16 for p in results.values()), results
    assert abs(results["envpool"] - results["gymnasium"]) < 4 * (2 * 0.092 * 0.908 / 400) ** 0.5, results


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_the_step_after_an_end_is_no_experience(backend):
    envs = script.MiniGridEnvs("MiniGrid-DoorKey-5x5-v0", 8, 1, backend)
    views = envs.reset()
    seen = [{view} for view in views]
    returns, lengths, episodes = np.zeros(8), np.zeros(8, int), []
    rng, before, ends = np.random.default_rng(1), np.zeros(8, bool), 0
    for _ in range(700):
        views, new, rewards, terminated, truncated, valid = envs.step(rng.integers(0, 7, 8))
        np.testing.assert_array_equal(valid, ~before)
        assert (rewards[~valid] == 0).all() and not (terminated | truncated)[~valid].any()
        for i in range(8):
            if not valid[i]:
                seen[i], returns[i], lengths[i] = set(), 0, 0
            else:
                lengths[i] += 1
                returns[i] += rewards[i]
            assert new[i] == (views[i] not in seen[i])
            seen[i].add(views[i])
            if terminated[i] or truncated[i]:
                episodes.append((returns[i], lengths[i]))
                assert lengths[i] == 250 or terminated[i]
        before = terminated | truncated
        ends += before.sum()
    assert ends >= 16 and len(envs.episodes) == ends
    np.testing.assert_allclose(np.array(envs.episodes), np.array(episodes), atol=1e-6)
    assert list(envs.recent) == [episode_return for episode_return, _ in envs.episodes][-100:]


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_a_goal_on_the_very_last_step_is_an_end_and_no_cut(backend):
    envs = script.MiniGridEnvs("MiniGrid-Empty-5x5-v0", 2, 1, backend)
    envs.reset()
    for action in [6] * 95 + [2, 2, 1, 2, 2]:  # wait; then two ahead, turn right, two ahead; the limit is 100 steps
        _, _, rewards, terminated, truncated, _ = envs.step(np.array([action, 6]))
    np.testing.assert_allclose(rewards, [0.1, 0], atol=1e-6)
    assert terminated.tolist() == [True, False] and truncated.tolist() == [False, True]


def test_the_key_is_seen_in_the_agent_s_own_tile():
    """The notebook says that the agent cannot know whether it has the key. Tile [3, 6] shows what it carries."""
    env = doorkey(5, (2, 1, (1, 2)), (1, 1), 1)  # it faces the key
    assert env.gen_obs()["image"][3, 6].tolist() == [1, 0, 0]
    assert env.step(3)[0]["image"][3, 6].tolist() == [5, 4, 0]  # picked up: a yellow key


@pytest.mark.parametrize("name", ["DoorKey-8x8", "doorkey-8x8", "MiniGrid-DoorKey-8x8-v0", "DoorKey-8x8-v0"])
def test_every_spelling_of_an_id_means_the_same(name):
    assert script.resolve_env_id(name, "envpool") == "MiniGrid-DoorKey-8x8-v0"


def test_a_name_without_a_version_is_the_newest():
    assert script.resolve_env_id("ObstructedMaze-2Dlhb", "envpool") == "MiniGrid-ObstructedMaze-2Dlhb-v1"
    assert script.resolve_env_id("ObstructedMaze-2Dlhb-v0", "envpool") == "MiniGrid-ObstructedMaze-2Dlhb-v0"
    assert script.resolve_env_id("MultiRoom-N4-S5", "gymnasium") == "MiniGrid-MultiRoom-N4-S5-v1"
    with pytest.raises(script.UserError, match="EnvPool does not have MiniGrid-MultiRoom-N4-S5-v1; --backend"):
        script.resolve_env_id("MultiRoom-N4-S5", "envpool")


def test_every_minigrid_id_of_envpool_fits_the_networks():
    ids = [x for x in envpool.list_all_envs() if x.startswith("MiniGrid-")]
    assert len(ids) > 70
    for env_id in ids:
        assert script.resolve_env_id(env_id, "envpool") == env_id
        envs = script.MiniGridEnvs(env_id, 2, 0, "envpool")
        views = script.Views()
        views.add(envs.reset())
        for _ in range(5):
            views.add(envs.step(np.random.default_rng(0).integers(0, envs.num_actions, 2))[0])
        one_hot = script.planes(views.tensor(), True)
        assert one_hot.shape[1:] == (21, 7, 7) and (one_hot.sum(1) == 3).all()


def test_views_are_numbered_in_the_order_in_which_they_came():
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 11, (5, 7, 7, 3)).astype(np.uint8)
    views, shown = script.Views(), rng.integers(0, 5, (40, 6))
    numbers = torch.stack([views.add([tiles[k].tobytes() for k in row]) for row in shown])
    first = list(dict.fromkeys(shown.flatten().tolist()))
    assert len(views) == 5
    np.testing.assert_array_equal(views.tensor(), tiles[first])
    np.testing.assert_array_equal(views.tensor(2), tiles[first[2:]])
    np.testing.assert_array_equal(views.tensor()[numbers], tiles[shown])


# ----------------------------------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------------------------------


def test_planes():
    rng = np.random.default_rng(0)
    views = np.stack([rng.integers(0, n, (9, 7, 7)) for n in script.NUM_CODES], -1).astype(np.uint8)
    raw, one_hot = (script.planes(torch.from_numpy(views), flag) for flag in (False, True))
    np.testing.assert_array_equal(raw, views.transpose(0, 3, 1, 2))
    assert one_hot.shape == (9, 21, 7, 7)
    for b, x, y in itertools.product(range(9), range(7), range(7)):
        expected = np.zeros(21)
        expected[[views[b, x, y, 0], 11 + views[b, x, y, 1], 17 + views[b, x, y, 2]]] = 1
        np.testing.assert_array_equal(one_hot[b, :, x, y], expected)


def notebook_s_heads(agent: script.Agent) -> nn.ModuleList:
    """Three heads of their own, 1024-64-n as in the notebook, with the weights of `agent`."""
    wide = agent.features[7]
    heads = nn.ModuleList()
    for k, last in enumerate((agent.policy_head, agent.int_value_head, agent.ext_value_head)):
        head = nn.Sequential(nn.Linear(1024, 64), nn.Tanh(), copy.deepcopy(last))
        head[0].weight.data, head[0].bias.data = wide.weight.data[64 * k :][:64], wide.bias.data[64 * k :][:64]
        heads.append(head)
    return heads


def test_networks_are_the_notebook_s():
    torch.manual_seed(0)
    agent, rnd = script.Agent(7, 3), script.RND(4, 3, 0.25, CPU)
    x = torch.randint(0, 11, (5, 3, 7, 7)).float()
    convs = [m for m in agent.features if isinstance(m, nn.Conv2d)]
    assert [(m.in_channels, m.out_channels, m.kernel_size) for m in convs] == [
        (3, 16, (2, 2)),
        (16, 32, (2, 2)),
        (32, 64, (2, 2)),
    ]
    hidden = x
    for conv in convs:
        hidden = F.conv2d(hidden, conv.weight, conv.bias).relu()
    hidden = hidden.flatten(1)
    policy, int_value, ext_value = (head(hidden) for head in notebook_s_heads(agent))
    logits, values = agent(x)
    torch.testing.assert_close(logits, policy)
    torch.testing.assert_close(values, torch.cat([int_value, ext_value], 1))

    assert [type(m).__name__ for m in rnd.predictor_head] == ["Dropout", "ReLU", "Linear"] * 2
    assert [m.p for m in rnd.predictor_head if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    assert rnd.target(x).shape == rnd.predictor_trunk(x).shape == (5, 256)
    assert [p.shape for p in rnd.target.parameters()] == [p.shape for p in rnd.predictor_trunk.parameters()]
    assert not any(p.requires_grad for p in rnd.target.parameters())
    assert all(p.requires_grad for p in [*rnd.predictor_trunk.parameters(), *rnd.predictor_head.parameters()])
    size = sum(p.numel() for p in [*rnd.predictor_trunk.parameters(), *rnd.predictor_head.parameters()])
    assert size == 208 + 2080 + 8256 + 1024 * 256 + 256 + 2 * (256 * 256 + 256)


def test_orthogonal_weights():
    torch.manual_seed(0)
    agent = script.Agent(7, 21)
    script.init_orthogonal(agent)
    for name, parameter in agent.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all()
            continue
        w = parameter.detach().flatten(1)
        w = w if w.shape[0] <= w.shape[1] else w.T
        gain = 0.01 if "head" in name else 2**0.5
        torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w)), rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------------------
# Normalisers and returns; what is the same text in other scripts is tested with those
# ----------------------------------------------------------------------------------------------------------------------


def test_whitening_equals_its_formula():
    rng = np.random.default_rng(0)
    inputs = rng.normal(3, 2, (50, 3, 7, 7)).astype(np.float32)
    moments = script.RunningMoments((3, 7, 7), CPU)
    moments.update(torch.from_numpy(inputs), torch.ones(50, dtype=torch.bool))
    inputs[0, 0, 0, 0] = 1e6
    expected = np.clip((inputs - moments.mean.numpy()) / np.sqrt(moments.var.numpy()), -5, 5)
    np.testing.assert_allclose(script.whiten(torch.from_numpy(inputs), moments), expected, rtol=1e-4, atol=1e-5)
    assert expected[0, 0, 0, 0] == 5


def test_the_terminal_reward_flows_back():
    """One reward at the end and no values: GAE is (gamma lambda)^k, k steps before. The notebook's gives 0 there."""
    rewards = torch.tensor([0.0, 0, 0, 0, 0, 1])[:, None]
    dones = torch.tensor([False] * 5 + [True])[:, None]
    advantages = script.gae(
        rewards, torch.zeros(6, 1), torch.tensor([9.0]), dones, torch.ones(6, 1, dtype=torch.bool), 0.99, 0.98
    )
    np.testing.assert_allclose(advantages[:, 0], [(0.99 * 0.98) ** (5 - t) for t in range(6)], rtol=1e-6)


def test_a2c_loss_equals_a_loop_over_samples():
    rng = np.random.default_rng(0)
    B, A = 12, 5
    logits, values, returns = rng.normal(size=(B, A)), rng.normal(size=(B, 2)), rng.normal(size=(B, 2))
    actions, advantages, valid = rng.integers(0, A, B), rng.normal(size=B), rng.random(B) < 0.7
    args = script.Args(ent_coef=0.03, vf_coef=0.7)
    policy = entropy = 0.0
    squares = np.zeros(2)
    for b in np.flatnonzero(valid):
        p = np.exp(logits[b]) / np.exp(logits[b]).sum()
        policy -= np.log(p[actions[b]]) * advantages[b]
        entropy -= (p * np.log(p)).sum()
        squares += (values[b] - returns[b]) ** 2
    n = valid.sum()
    batch = {"actions": actions, "advantages": advantages, "returns": returns, "valid": valid}
    batch = {key: torch.from_numpy(x) for key, x in batch.items()}
    loss, metrics = script.a2c_loss(torch.from_numpy(logits), torch.from_numpy(values), batch, args)
    np.testing.assert_allclose(loss, (policy + 0.7 * squares.sum() - 0.03 * entropy) / n, rtol=1e-10)
    expected = {"policy_loss": policy, "value_loss_int": squares[0], "value_loss_ext": squares[1], "entropy": entropy}
    for key, value in (expected | {"value_loss": squares.sum()}).items():
        np.testing.assert_allclose(metrics[key], value / n, rtol=1e-10)
    loss, _ = script.a2c_loss(
        torch.from_numpy(logits), torch.from_numpy(values), batch, dataclasses.replace(args, int_coef=0)
    )
    np.testing.assert_allclose(loss, (policy + 0.7 * squares[1] - 0.03 * entropy) / n, rtol=1e-10)


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


class FakeEnvs:
    """Views from a small set, rewards and ends at random, resets that hold garbage; remembers what happened."""

    def __init__(self, env_id: str, num_envs: int, seed: int, backend: str):
        self.N, self.num_actions, self.rng = num_envs, 7, np.random.default_rng(7)
        self.tiles = np.stack([self.rng.integers(0, n, (30, 7, 7)) for n in script.NUM_CODES], -1).astype(np.uint8)
        self.shown, self.steps, self.done = [], [], np.zeros(num_envs, bool)
        self.episodes, self.recent = [], []
        FakeEnvs.last = self

    def views(self) -> list[bytes]:
        self.shown.append(self.rng.integers(0, len(self.tiles), self.N))
        return [self.tiles[k].tobytes() for k in self.shown[-1]]

    def reset(self) -> list[bytes]:
        return self.views()

    def step(self, actions):
        valid = ~self.done
        rewards = np.where(self.rng.random(self.N) < 0.3, self.rng.random(self.N), 0).astype(np.float32)
        rewards[~valid] = 1e6
        terminated, truncated = (self.rng.random((2, self.N)) < 0.12) & valid
        new = self.rng.random(self.N) < 0.6
        self.done = terminated | truncated
        self.steps.append((actions.copy(), new, rewards, terminated, truncated, valid))
        return self.views(), new, rewards, terminated, truncated, valid


@pytest.fixture
def fake_envs(monkeypatch):
    monkeypatch.setattr(script, "MiniGridEnvs", FakeEnvs)


def plain_rmsprop(parameters, gradients, squares, lr):
    for parameter, gradient, square in zip(parameters, gradients, squares, strict=True):
        square.mul_(0.99).add_(0.01 * gradient**2)
        parameter.data -= lr * gradient / (square.sqrt() + 1e-8)


def clipped(gradients, limit):
    norm = torch.sqrt(sum((g**2).sum() for g in gradients))
    return [g * min(1.0, limit / (float(norm) + 1e-6)) for g in gradients]


def transcription(args: script.Args, envs: FakeEnvs, rollouts: int) -> dict[str, torch.Tensor]:
    """The same run in plain loops: every network at every step, every sum over samples. Returns the weights."""
    T, N = args.num_steps, args.num_envs
    torch.manual_seed(args.seed)
    planes = 21 if args.one_hot else 3
    agent, rnd = script.Agent(7, planes), script.RND(N, planes, args.dropout, CPU)
    if args.orthogonal:
        script.init_orthogonal(agent)
        script.init_orthogonal(rnd)
    heads = notebook_s_heads(agent)
    convs = agent.features[:7]
    predictor = nn.Sequential(*rnd.predictor_trunk, *rnd.predictor_head)
    ac = [*convs.parameters(), *heads.parameters()]
    for part in (convs, heads):
        part.requires_grad_()
    pred = [*predictor.parameters()]
    squares = [torch.zeros_like(p) for p in ac + pred]
    ext_coef = args.ext_coef if args.ext_coef is not None else (100 if args.int_coef else 1)
    seen_by_rnd, filtered, every_filtered = [], np.zeros(N), []
    for r in range(rollouts):
        shown = np.stack(envs.shown[r * T : (r + 1) * T + 1])
        columns = zip(*envs.steps[r * T : (r + 1) * T], strict=True)
        actions, new, rewards, terminated, truncated, valid = map(np.stack, columns)
        x = script.planes(torch.from_numpy(envs.tiles[shown.flatten()]), args.one_hot)  # ((T+1)N, C, 7, 7)
        hidden = convs(x)
        logits, v_int, v_ext = (head(hidden).unflatten(0, (T + 1, N)) for head in heads)
        values = torch.stack([v_int[..., 0], v_ext[..., 0]], -1).detach().numpy().astype(float)

        y = x
        if args.obs_norm:
            for t, n in zip(*np.nonzero(valid), strict=True):
                seen_by_rnd.append(x.unflatten(0, (T + 1, N))[t + 1, n].numpy().astype(float))
            data = np.stack(seen_by_rnd)
            count = len(data) + 1e-4
            mean = data.sum(0) / count
            var = ((data**2).sum(0) + 1e-4) / count - mean**2
            y = ((x - torch.from_numpy(mean).float()) / torch.from_numpy(var).sqrt().float()).clamp(-5, 5)
        with torch.no_grad():
            predictor.eval()
            errors = (predictor(y) - rnd.target(y)).square().mean(1).unflatten(0, (T + 1, N)).numpy().astype(float)
        intrinsic = errors[1:].copy()
        if args.first_visit:
            intrinsic *= new
        if args.int_norm:
            for t in range(T):
                for n in range(N):
                    if valid[t, n]:
                        filtered[n] = args.int_gamma * filtered[n] + intrinsic[t, n]
                        every_filtered.append(filtered[n])
                    elif t == 0 and r == 0:
                        raise AssertionError("the first step is no reset")
            f, count = np.array(every_filtered), len(every_filtered) + 1e-4
            intrinsic /= np.sqrt(((f**2).sum() + 1e-4) / count - (f.sum() / count) ** 2)

        total, returns = np.zeros((T, N)), np.zeros((T, N, 2))
        dones = terminated | truncated
        for head, (reward, gamma, coef) in enumerate(
            ((intrinsic, args.int_gamma, args.int_coef), (rewards, args.gamma, ext_coef))
        ):
            for n in range(N):
                steps = [t for t in range(T) if valid[t, n]]
                for i, first in enumerate(steps):
                    advantage, weight = 0.0, 1.0
                    for j in range(i, len(steps)):
                        t = steps[j]
                        following = values[steps[j + 1], n, head] if j + 1 < len(steps) else values[T, n, head]
                        end = dones[t, n] and (head == 1 or args.int_episodic)
                        if end:
                            following = 0.0
                            if head == 1 and args.bootstrap_truncated and truncated[t, n]:
                                following = values[t + 1, n, head]  # of the episode's last view
                        advantage += weight * (reward[t, n] + gamma * following - values[t, n, head])
                        weight *= gamma * args.gae_lambda
                        if end:
                            break
                    returns[first, n, head] = advantage + values[first, n, head]
                    total[first, n] += coef * advantage
        if args.norm_adv:
            total /= total[valid].std(ddof=1) + 1e-8

        loss, predictor_loss, count = 0.0, 0.0, valid.sum()
        predictor.train()
        predicted = predictor(y).unflatten(0, (T + 1, N))
        with torch.no_grad():
            targets = rnd.target(y).unflatten(0, (T + 1, N))
        for t, n in zip(*np.nonzero(valid), strict=True):
            logp = logits[t, n].log_softmax(0)
            value_loss = (v_ext[t, n, 0] - returns[t, n, 1]) ** 2
            if args.int_coef:
                value_loss = value_loss + (v_int[t, n, 0] - returns[t, n, 0]) ** 2
            loss = loss - logp[actions[t, n]] * total[t, n] + args.vf_coef * value_loss
            loss = loss + args.ent_coef * (logp.exp() * logp).sum()
            at = t + 1 if args.same_obs else t
            predictor_loss = predictor_loss + (predicted[at, n] - targets[at, n]).square().mean()
        used = [p for p in ac if args.int_coef or not any(p is q for q in heads[1].parameters())]
        gradients = clipped(torch.autograd.grad(loss / count, used), args.max_grad_norm)
        plain_rmsprop(
            used, gradients, [squares[k] for k, p in enumerate(ac) if any(p is q for q in used)], args.learning_rate
        )
        if args.int_coef:
            gradients = torch.autograd.grad(predictor_loss / count, pred)
            if args.predictor_max_grad_norm is not None:
                gradients = clipped(gradients, args.predictor_max_grad_norm)
            plain_rmsprop(pred, gradients, squares[len(ac) :], args.predictor_learning_rate)
    wide = [torch.cat([getattr(head[0], name).data for head in heads]) for name in ("weight", "bias")]
    result = {f"agent.{k}": v for k, v in agent.state_dict().items()}
    result |= {"agent.features.7.weight": wide[0], "agent.features.7.bias": wide[1]}
    for name, head in zip(("policy", "int_value", "ext_value"), heads, strict=True):
        result |= {f"agent.{name}_head.weight": head[2].weight.data, f"agent.{name}_head.bias": head[2].bias.data}
    return result | {f"rnd.{k}": v for k, v in rnd.state_dict().items() if k.startswith("predictor")}


FLAGS = [
    {},
    {"int_coef": 0.0},
    {"int_coef": 0.0, "bootstrap_truncated": True, "norm_adv": True},
    {"int_norm": True},
    {"obs_norm": True},
    {"same_obs": True},
    {"int_episodic": False},
    {"first_visit": True, "one_hot": True},
    {"dropout": 0.0, "orthogonal": True, "predictor_max_grad_norm": None},
    {"ext_coef": 2.0, "gamma": 0.9, "gae_lambda": 0.5, "int_gamma": 0.8, "vf_coef": 1.0, "ent_coef": 0.1},
    {
        **{"one_hot": True, "orthogonal": True, "first_visit": True, "same_obs": True, "int_norm": True},
        **{
            "norm_adv": True,
            "obs_norm": True,
            "dropout": 0.0,
            "ext_coef": 1.0,
            "int_coef": 0.1,
            "bootstrap_truncated": True,
        },
    },
]


@pytest.mark.parametrize("changes", FLAGS, ids=lambda changes: "-".join(changes) or "notebook")
def test_a_run_equals_a_plain_transcription(fake_envs, tmp_path, monkeypatch, changes):
    # dropout's masks are random; a fixed loss of half of what comes in shows where it acts and where not
    monkeypatch.setattr(F, "dropout", lambda x, p, training, inplace: x * 0.5 if training and p else x)
    args = small_args(total_timesteps=3 * 4 * 16, num_steps=16, **changes)
    run_dir = train(args, tmp_path)
    state = torch.load(run_dir / "latest.pt", weights_only=True)
    assert state["iteration"] == 3
    expected = transcription(args, FakeEnvs.last, rollouts=3)
    torch.manual_seed(args.seed)
    start = script.Agent(7, 21 if args.one_hot else 3).state_dict()
    for key, value in expected.items():
        part, name = key.split(".", 1)
        torch.testing.assert_close(state[part][name], value, rtol=2e-3, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
        if name.endswith("weight") and part == "agent" and not args.orthogonal and (args.int_coef or "int" not in name):
            assert (state[part][name] - start[name]).abs().max() > 1e-4, f"{name} has not moved"


def test_target_never_changes_and_everything_else_does(fake_envs, tmp_path):
    states = []
    for k, steps in enumerate((32, 320)):
        run_dir = train(small_args(total_timesteps=steps, int_norm=True, obs_norm=True), tmp_path / str(k))
        states.append(torch.load(run_dir / "latest.pt", weights_only=True))
    for part in ("agent", "rnd"):
        for key, value in states[0][part].items():
            assert torch.equal(value, states[1][part][key]) == key.startswith("target"), key


def test_same_seed_same_scalars_and_another_seed_others(tmp_path):
    runs = [train(small_args(seed=s, total_timesteps=320), tmp_path / f"{k}") for k, s in enumerate((1, 1, 2))]
    scalars = [{k: v for k, v in read_scalars(run).items() if k != "charts/SPS"} for run in runs]
    assert repr(scalars[0]) == repr(scalars[1]) and repr(scalars[0]) != repr(scalars[2])  # repr: NaN equals NaN


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_resume_takes_the_learning_rates_that_are_asked_for(tmp_path):
    run_dir = train(small_args(), tmp_path)
    path, saved = script.load_checkpoint("--resume", str(run_dir))
    flags = {"total_timesteps": 64, "learning_rate": 3e-4, "predictor_learning_rate": 5e-4}
    args = script.Args(**saved["args"] | flags)
    assert script.train(args, "MiniGrid-DoorKey-5x5-v0", CPU, path, saved) == 0
    groups = torch.load(path, weights_only=True)["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [3e-4, 5e-4]


def test_the_best_checkpoint_wants_a_hundred_episodes(tmp_path, monkeypatch):
    """The first episodes to end are the short ones, which a random agent can have solved by luck."""
    for count, there in ((99, False), (100, True)):
        init = script.MiniGridEnvs.__init__

        def start(self, *args, init=init, count=count):
            init(self, *args)
            self.recent.extend([0.8] * count)

        with monkeypatch.context() as patch:
            patch.setattr(script.MiniGridEnvs, "__init__", start)
            run_dir = train(small_args(), tmp_path / str(count))
        assert (run_dir / "best.pt").exists() == there


def test_resume_restores_the_learner_bit_for_bit(tmp_path, monkeypatch):
    run_dir = train(small_args(total_timesteps=3200, int_norm=True, obs_norm=True), tmp_path)
    path, before = script.load_checkpoint("--resume", str(run_dir))
    assert before["recent"]
    monkeypatch.setattr(script, "StopSignal", lambda: type("Stopped", (), {"number": 15})())
    args = script.Args(**before["args"] | {"total_timesteps": 6400})
    torch.manual_seed(123)
    assert script.train(args, "MiniGrid-DoorKey-5x5-v0", CPU, path, before) == 143
    after = torch.load(run_dir / "latest.pt", weights_only=True)
    assert before.keys() == after.keys()
    for key in before.keys() - {"seconds", "args"}:
        assert same(before[key], after[key]), key


def test_a_nan_stops_the_run_and_names_itself(tmp_path):
    run_dir = train(small_args(), tmp_path)
    path, saved = script.load_checkpoint("--resume", str(run_dir))
    before = path.read_bytes()
    saved["agent"]["ext_value_head.weight"][0] = float("nan")
    args = script.Args(**saved["args"] | {"total_timesteps": 512})
    with pytest.raises(
        script.RunError, match=r"losses/policy_loss is nan at step 64: stopped; the last good checkpoint is"
    ):
        script.train(args, "MiniGrid-DoorKey-5x5-v0", CPU, path, saved)
    assert path.read_bytes() == before


def test_it_stops_when_solved(fake_envs, tmp_path, monkeypatch, capsys):
    """At the first line of the log at which there are 100 episodes and their mean is above --solved-score."""

    class Winning(FakeEnvs):
        def step(self, actions):
            self.recent.append(0.92)  # 32 episodes from one line of the log to the next
            self.recent = self.recent[-100:]
            return super().step(actions)

    monkeypatch.setattr(script, "MiniGridEnvs", Winning)
    train(small_args(total_timesteps=3200, solved_score=0.91, log_interval=4), tmp_path / "solved")
    assert "solved: score 0.920 over the last 100 episodes, steps 512," in capsys.readouterr().out
    train(small_args(total_timesteps=3200, solved_score=0.925, log_interval=4), tmp_path / "not")
    assert "\nscore 0.920 over the last 100 episodes, steps 3,200," in capsys.readouterr().out


def test_the_log_holds_means_over_all_updates_since_the_line_before(tmp_path):
    every = read_scalars(train(small_args(total_timesteps=320), tmp_path / "1"))
    fifth = read_scalars(train(small_args(total_timesteps=320, log_interval=5), tmp_path / "5"))
    for key in ("losses/policy_loss", "losses/entropy", "losses/grad_norm", "rnd/intrinsic_reward"):
        values = [value for _, value in every[key]]
        assert [step for step, _ in fifth[key]] == [160, 320]
        np.testing.assert_allclose([v for _, v in fifth[key]], [np.mean(values[:5]), np.mean(values[5:])], rtol=1e-4)


def test_presets_read_back(monkeypatch):
    notebook = script.Args()
    expected = {
        **{"num_envs": 32, "num_steps": 16, "learning_rate": 1e-4, "gamma": 0.99, "gae_lambda": 0.98, "vf_coef": 0.5},
        **{"ent_coef": 0.01, "max_grad_norm": 0.5, "norm_adv": False, "one_hot": False, "orthogonal": False},
        **{"int_coef": 10, "ext_coef": None, "int_gamma": 0.99, "int_episodic": True, "int_norm": False},
        **{"obs_norm": False, "same_obs": False, "first_visit": False, "dropout": 0.25, "log_interval": 100},
        **{"predictor_learning_rate": 1e-4, "predictor_max_grad_norm": 0.01, "bootstrap_truncated": False},
    }
    assert {key: getattr(notebook, key) for key in expected} == expected
    large = {"num_envs": 128, "num_steps": 48, "gamma": 0.995, "log_interval": 35}
    seen = []
    monkeypatch.setattr(script, "train", lambda args, *rest: seen.append(args) or 0)
    for flags in (
        [],
        ["--preset", "notebook-16x16"],
        ["--preset", "tuned"],
        ["--preset", "tuned", "--gamma", "0.9"],
        ["--preset", "tuned-16x16"],
    ):
        monkeypatch.setattr(sys, "argv", ["a2c_rnd_doorkey.py", *flags])
        assert script.main() == 0
    assert seen[0] == notebook
    assert seen[1] == script.Args(preset="notebook-16x16", **large)
    assert seen[2] == script.Args(preset="tuned", **script.PRESETS["tuned"])
    assert seen[3] == dataclasses.replace(seen[2], gamma=0.9)  # a flag beside a preset stands
    assert seen[4] == script.Args(preset="tuned-16x16", **script.PRESETS["tuned-16x16"])
    assert seen[4].first_visit and not seen[4].norm_adv


# ----------------------------------------------------------------------------------------------------------------------
# What the user was promised
# ----------------------------------------------------------------------------------------------------------------------


def call_main(monkeypatch, capsys, *flags: object) -> tuple[int, str]:
    """main() with these flags: exit status and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["a2c_rnd_doorkey.py", *map(str, flags)])
    try:
        status = script.main()
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env-id", "DoorKey-8x9"], "did you mean MiniGrid-DoorKey-8x8-v0"),
        (["--env-id", "CartPole-v1"], "no such environment"),
        (["--env-id", "MontezumaRevenge"], "no such environment; this script plays MiniGrid's"),
        (["--env-id", "MultiRoom-N4-S5-v1"], "EnvPool does not have MiniGrid-MultiRoom-N4-S5-v1"),
        (["--env-id", "MultiRoom-N6"], "EnvPool 1.2.5 plays another game by that name; --backend gymnasium"),
        (["--env-id", "ObstructedMaze-2Dlh"], "EnvPool 1.2.5 plays another game by that name; --backend gymnasium"),
        (["--int-coef", 0, "--predictor-learning-rate", 1e-3], "--predictor-learning-rate contradicts --int-coef 0"),
        (["--num-envs", 0], "--num-envs 0: must be at least 1"),
        (["--seed", "1e20"], "--seed 100000000000000000000: must be below 2^63"),
        (["--num-envs", -4], "--num-envs -4: must be at least 1"),
        (["--num-steps", 0], "--num-steps 0: must be at least 1"),
        (["--log-interval", 0], "--log-interval 0: must be at least 1"),
        (["--gamma", 1.5], "--gamma 1.5: must be in [0, 1]"),
        (["--int-gamma", -0.1], "--int-gamma -0.1: must be in [0, 1]"),
        (["--gae-lambda", "nan"], "--gae-lambda nan: must be in [0, 1]"),
        (["--dropout", 1], "--dropout 1.0: must be in [0, 1)"),
        (["--learning-rate", 0], "--learning-rate 0.0: must be a positive number"),
        (["--learning-rate", "inf"], "--learning-rate inf: must be a positive number"),
        (["--ext-coef", -1], "--ext-coef -1.0: must be a number that is not negative"),
        (["--solved-score", "nan"], "--solved-score nan: must be a number or None"),
        (["--total-timesteps", 0], "--total-timesteps 0: must be at least one rollout, 512 steps"),
        (
            ["--int-coef", 0, "--first-visit"],
            "--first-visit contradicts --int-coef 0: there is no bonus for it to change",
        ),
        (["--preset", "tuned", "--int-coef", 0, "--dropout", 0.5], "--dropout contradicts --int-coef 0"),
        (["--resume", "nowhere"], "--resume nowhere: there is no checkpoint nowhere"),
        (["--evaluate", "empty"], "--evaluate empty: there is no checkpoint empty/latest.pt"),
        (["--resume", "a", "--evaluate", "b"], "there is no checkpoint"),
        (["--resume", "garbage.pt"], "is damaged or is no checkpoint"),
        (["--resume", "foreign.pt"], "was written by ppo_rnd_atari, not by this script"),
        (["--resume", "other.pt"], "was written by something else"),
        (["--capture-video"], "--capture-video needs --evaluate"),
        (["--runs-dir", "file"], "cannot write into file/"),
        (["--runs-dir", "/dev/null/runs"], "cannot write into /dev/null/runs"),
    ],
    ids=lambda value: "_".join(map(str, value)).replace("/", ".") if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("empty").mkdir()
    pathlib.Path("garbage.pt").write_bytes(b"PK\x03\x04 this is no checkpoint")
    pathlib.Path("file").write_text("a file, not a folder")
    torch.save({"script": "ppo_rnd_atari"}, "foreign.pt")
    torch.save([1, 2], "other.pt")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    status, errors = call_main(monkeypatch, capsys, *flags)
    assert status == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    "flags", [["--num-envs", "1.5"], ["--num-env", "4"], ["--device", "tpu"], ["--gamma", "x"], ["--preset", "best"]]
)
def test_what_the_parser_refuses(monkeypatch, capsys, flags):
    status, errors = call_main(monkeypatch, capsys, *flags)
    assert status == 2 and "Traceback" not in errors


def test_checkpoints_that_do_not_fit(monkeypatch, capsys, tmp_path):
    run_dir = train(small_args(), tmp_path)
    before = (run_dir / "latest.pt").read_bytes()
    for flags, message in [
        (["--env-id", "DoorKey-8x8"], "is of a run with env_id MiniGrid-DoorKey-5x5-v0, not MiniGrid-DoorKey-8x8-v0"),
        (["--num-envs", 8, "--total-timesteps", 640], "is of a run with num_envs 4, not 8"),
        (["--preset", "tuned"], "is of a run with preset notebook, not tuned"),
        (["--one-hot", "--total-timesteps", 640], "holds another architecture"),
        (["--total-timesteps", 32], "has all of its 32 steps"),
    ]:
        status, errors = call_main(monkeypatch, capsys, "--resume", run_dir, *flags)
        assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    (tmp_path / "half.pt").write_bytes(before[: len(before) // 2])
    status, errors = call_main(monkeypatch, capsys, "--resume", tmp_path / "half.pt")
    assert status == 2 and errors.count("\n") == 1 and "is damaged or is no checkpoint" in errors
    assert (run_dir / "latest.pt").read_bytes() == before


def test_help_names_every_flag_and_only_those_that_are_read():
    source = (ROOT / "a2c_rnd_doorkey.py").read_text()
    for field in dataclasses.fields(script.Args):
        uses = source.count(f"args.{field.name}") + source.count(f'"{field.name}"')
        assert uses >= 1, f"nothing reads --{field.name}"


def test_a_run_as_a_user_sees_it(tmp_path):
    """Trains, resumes, evaluates and films in processes of their own."""
    out = run_script("a2c_rnd_doorkey.py", *SMALL, "--total-timesteps", 1280, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("MiniGrid-DoorKey-5x5-v0__a2c_rnd_doorkey__1__")
    assert {p.name.split(".")[0] for p in run_dir.iterdir()} - {"best"} == {"events", "latest"}  # no temporary file
    lines = out.stdout.splitlines()
    for word in (
        "device",
        "environment  MiniGrid-DoorKey-5x5-v0 x 4",
        "preset",
        "parameters",
        "memory",
        "steps",
        "folder",
    ):
        assert any(line.startswith(word) for line in lines), word
    assert lines[-1].startswith("score ") and "steps 1,280, time 0:00:" in lines[-1] and str(run_dir.name) in lines[-1]
    assert "Traceback" not in out.stderr

    scalars = read_scalars(run_dir)
    losses = "policy_loss value_loss value_loss_int value_loss_ext entropy predictor_loss grad_norm"
    expected = {f"losses/{name}" for name in losses.split()} | {"rnd/intrinsic_reward"}
    expected |= {f"losses/explained_variance{suffix}" for suffix in ("_int", "_ext")}
    charts = "SPS learning_rate unique_views episodic_return episodic_length success_rate"
    assert set(scalars) == expected | {f"charts/{name}" for name in charts.split()}
    assert [step for step, _ in scalars["losses/entropy"]] == list(range(64, 1281, 64))
    events = EventAccumulator(str(run_dir))
    events.Reload()
    (text,) = events.Tensors("hyperparameters/text_summary")
    rows = dict(row.split("|")[1:3] for row in text.tensor_proto.string_val[0].decode().splitlines())
    assert rows["seed"] == "1" and rows["torch"] == importlib.metadata.version("torch") and rows["int_coef"] == "10.0"

    more = run_script("a2c_rnd_doorkey.py", "--resume", run_dir, "--total-timesteps", "2.56e3", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "steps 2,560" in more.stdout.splitlines()[-1]
    assert [step for step, _ in read_scalars(run_dir)["losses/entropy"]] == list(range(64, 2561, 64))

    import imageio

    for kind in ("gif", "mp4"):
        flags = ["--evaluate", run_dir, "--eval-episodes", 2, "--capture-video", "--video-format", kind]
        played = run_script("a2c_rnd_doorkey.py", *flags, cwd=tmp_path)
        assert played.returncode == 0, played.stderr
        *_, first, second, last = played.stdout.splitlines()
        assert first.startswith("episode 0: return ") and second.startswith("episode 1: return ")
        assert last.startswith("return ") and "(mean, standard error), success " in last
        videos = sorted((run_dir / "videos").glob(f"*.{kind}"))
        assert len(videos) == 2
        if kind == "mp4":  # a GIF keeps no two frames that are alike
            frames = imageio.mimread(videos[0], memtest=False)
            assert len(frames) == int(first.split(",")[1].split()[0]) + 1 and frames[0].shape == (160, 160, 3)


def test_the_gymnasium_backend_trains_too(tmp_path):
    out = run_script("a2c_rnd_doorkey.py", *SMALL, "--backend", "gymnasium", "--total-timesteps", 320, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert "environment  MiniGrid-DoorKey-5x5-v0 x 4 (gymnasium), 7 actions" in out.stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, status):
    command = [sys.executable, str(ROOT / "a2c_rnd_doorkey.py"), *map(str, SMALL), "--checkpoint-interval", "1000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if "steps/s" in line:  # the first line of progress
            break
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in err
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert f"--resume runs/{run_dir.name}" in out.splitlines()[-1]
    iteration = torch.load(run_dir / "latest.pt", weights_only=True)["iteration"]
    flags = ["--resume", run_dir, "--total-timesteps", (iteration + 2) * 32]
    more = run_script("a2c_rnd_doorkey.py", *flags, cwd=tmp_path)
    assert more.returncode == 0, more.stderr


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    out = run_script("a2c_rnd_doorkey.py", *SMALL, "--total-timesteps", 128, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    before = (run_dir / "latest.pt").read_bytes()
    limit = 2**20  # bytes a file may have: less than a checkpoint

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    flags = ["--resume", run_dir, "--total-timesteps", 256]
    out = run_script("a2c_rnd_doorkey.py", *flags, cwd=tmp_path, preexec_fn=small_disk)
    assert out.returncode == 1
    errors = [line for line in out.stderr.splitlines() if line]
    assert len(errors) == 1 and errors[0].startswith("error: cannot write "), out.stderr
    assert "(File too large); what was saved before is whole" in errors[0]
    assert (run_dir / "latest.pt").read_bytes() == before
    assert not list(run_dir.glob("*.tmp"))


def test_tracking_without_a_network(tmp_path):
    pytest.importorskip("wandb")
    flags = [*SMALL, "--total-timesteps", 128, "--track"]
    out = run_script("a2c_rnd_doorkey.py", *flags, cwd=tmp_path, env={**os.environ, "WANDB_MODE": "offline"})
    assert out.returncode == 0, out.stderr
    assert list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.learning
def test_it_solves_the_smallest_grid(tmp_path):
    """In under two minutes; then the agent opens doors in the minigrid package too."""
    flags = ["--env-id", "DoorKey-5x5", "--preset", "tuned", "--total-timesteps", "1e6"]
    out = run_script("a2c_rnd_doorkey.py", *flags, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1].startswith("solved: score 0.9")
    (run_dir,) = (tmp_path / "runs").iterdir()
    played = run_script("a2c_rnd_doorkey.py", "--evaluate", run_dir, "--eval-episodes", 100, cwd=tmp_path)
    assert float(played.stdout.splitlines()[-1].split()[1]) > 0.93
