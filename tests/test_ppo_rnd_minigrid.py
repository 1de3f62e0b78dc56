"""ppo_rnd_minigrid.py: its numbers against independent computations, and its promises to the user."""

import collections
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
from conftest import ROOT, read_scalars, run_script
from minigrid.core.world_object import Door, Goal, Key
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo_rnd_minigrid as script

CPU = torch.device("cpu")
SMALL = ["--env-id", "DoorKey-5x5", "--num-envs", 4, "--num-steps", 8, "--num-minibatches", 2]  # 32 steps a rollout
N7_S8 = "min_num_rooms=7,max_num_rooms=7,max_room_size=8,max_episode_steps=140"


def small_args(**changes) -> script.Args:
    values = {"env_id": "DoorKey-5x5", "num_envs": 4, "num_steps": 8, "num_minibatches": 2, "total_timesteps": 32}
    return script.Args(**(values | {"checkpoint_interval": 1e6} | changes))


def train(args: script.Args, folder: pathlib.Path) -> pathlib.Path:
    """Trains in this process; the run's folder."""
    args.runs_dir = str(folder)
    torch.set_num_threads(1)
    assert script.train(args, script.resolve_env_id(args.env_id, args.backend), CPU, None, None) == 0
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


@pytest.mark.parametrize("env_id", ["MiniGrid-ObstructedMaze-2Dlh-v0", "MiniGrid-ObstructedMaze-Full-v1"])
def test_boxes_are_grey_in_both_packages_and_blue_in_envpool_s_own_words(env_id):
    seen = {}
    for backend in ("envpool", "gymnasium"):
        envs = script.MiniGridEnvs(env_id, 16, 5, backend, {})
        step, raw, rng = envs.pool.step, set(), np.random.default_rng(0)

        def spy(actions, step=step, raw=raw, backend=backend):
            result = step(actions)
            image = result[0]["image"] if backend == "envpool" else result[0]
            raw.update(image[image[..., 0] == 7, 1].tolist())
            return result

        envs.pool.step = spy
        envs.reset()
        views = [envs.step(rng.integers(0, 7, 16))[0] for _ in range(100)]
        tiles = np.frombuffer(b"".join(v for row in views for v in row), np.uint8).reshape(-1, 3)
        seen[backend] = set(tiles[tiles[:, 0] == 7, 1].tolist()), raw
    assert seen == {"envpool": ({5}, {2}), "gymnasium": ({5}, {5})}


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_episodes_are_counted_as_a_dictionary_counts_them(backend):
    """Views, cells, returns and lengths of whole episodes, over resets and time limits, against plain bookkeeping."""
    envs = script.MiniGridEnvs("MiniGrid-Empty-Random-5x5-v0", 8, 1, backend, {"max_episode_steps": 40})
    looks = []
    step = envs.pool.step

    def spy(actions):
        looks.append(step(actions))
        return looks[-1]

    envs.pool.step = spy
    views = envs.reset()
    counts = [collections.Counter([view]) for view in views]
    cells: list[set | None] = [None] * 8  # unknown for the first episode: reset() does not return positions
    returns, lengths, episodes = np.zeros(8), np.zeros(8, int), []
    rng, before, ends = np.random.default_rng(1), np.zeros(8, bool), {"terminated": 0, "truncated": 0}
    for _ in range(700):
        views, visits, rewards, terminated, truncated, valid = envs.step(rng.integers(0, 7, 8))
        if backend == "envpool":
            image, position = looks[-1][0]["image"], looks[-1][4]["agent_pos"]
        else:
            image, position = looks[-1][0], [env.unwrapped.agent_pos for env in envs.pool.envs]
        np.testing.assert_array_equal(valid, ~before)
        assert (rewards[~valid] == 0).all() and not (terminated | truncated)[~valid].any()
        for i in range(8):
            assert views[i] == image[i].tobytes()
            if not valid[i]:
                counts[i], cells[i], returns[i], lengths[i] = collections.Counter(), set(), 0, 0
            else:
                lengths[i] += 1
                returns[i] += rewards[i]
            counts[i][views[i]] += 1
            assert visits[i] == counts[i][views[i]]
            if cells[i] is not None:
                cells[i].add(tuple(position[i]))
            if terminated[i] or truncated[i]:
                episodes.append((returns[i], lengths[i], cells[i] and len(cells[i])))
                ends["terminated"] += terminated[i]
                ends["truncated"] += truncated[i]
                assert lengths[i] == 40 or terminated[i]
        before = terminated | truncated
    assert min(ends.values()) >= 3 and len(envs.episodes) == len(episodes)
    for (episode_return, length, visited), expected in zip(envs.episodes, episodes, strict=True):
        assert (round(episode_return, 5), length) == (round(expected[0], 5), expected[1])
        assert expected[2] is None or visited == expected[2]
    assert list(envs.recent) == [episode_return for episode_return, *_ in envs.episodes][-100:]


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_a_goal_on_the_very_last_step_is_an_end_and_no_cut(backend):
    envs = script.MiniGridEnvs("MiniGrid-Empty-5x5-v0", 2, 1, backend, {})
    envs.reset()
    for action in [6] * 95 + [2, 2, 1, 2, 2]:  # wait; then two ahead, turn right, two ahead; the limit is 100 steps
        _, _, rewards, terminated, truncated, _ = envs.step(np.array([action, 6]))
    np.testing.assert_allclose(rewards, [0.1, 0], atol=1e-6)
    assert terminated.tolist() == [True, False] and truncated.tolist() == [False, True]


def test_the_table_counts_as_a_dictionary_does_and_survives_a_checkpoint():
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 11, (7, 7, 3)).astype(np.uint8).tobytes() for _ in range(12)]
    table, expected = script.CountTable(), collections.Counter()
    for _ in range(60):
        views, valid = [tiles[k] for k in rng.integers(0, 12, 5)], rng.random(5) < 0.7
        counts = table.add(views, valid)
        for i, view in enumerate(views):
            expected[view] += valid[i]
        for i, view in enumerate(views):
            assert counts[i] == max(1, expected[view])
    other = script.CountTable()
    other.load_state_dict(table.state_dict())
    assert other.counts == table.counts and sum(other.counts.values()) == expected.total()
    empty = script.CountTable()
    empty.load_state_dict(script.CountTable().state_dict())
    assert not empty.counts


@pytest.mark.filterwarnings("ignore:.*out of date")
def test_the_same_time_limit_in_both_packages():
    """Rewards depend on it. For every id that both have, EnvPool's limit is the package's."""
    compared = 0
    for env_id in envpool.list_all_envs():
        if env_id.startswith("MiniGrid-") and env_id in gym.registry and "WFC" not in env_id:
            limit = gym.make(env_id).unwrapped.max_steps
            assert envpool.make_spec(env_id).config.max_episode_steps == limit, env_id
            compared += 1
    assert compared > 60


def test_arguments_give_the_literature_s_multiroom():
    """Seven rooms of at most 8 x 8, 140 steps, in both; rewards in EnvPool are those of that limit."""
    env_id = "MiniGrid-MultiRoom-N6-v0"
    kwargs = script.parse_env_kwargs(env_id, N7_S8, "envpool")
    assert kwargs == {"min_num_rooms": 7, "max_num_rooms": 7, "max_room_size": 8, "max_episode_steps": 140}
    env = script.make_evaluation_env(env_id, kwargs)
    for seed in range(5):
        env.reset(seed=seed)
        rooms = env.unwrapped.rooms
        assert len(rooms) == 7 and max(max(room.size) for room in rooms) <= 8 and env.unwrapped.max_steps == 140
    for backend in ("envpool", "gymnasium"):
        envs = script.MiniGridEnvs(env_id, 8, 0, backend, kwargs)
        envs.reset()
        while len(envs.episodes) < 8:
            envs.step(np.full(8, 6))
        assert [length for _, length, _ in envs.episodes] == [140] * 8
    two = {"max_num_rooms": 7, "max_episode_steps": 140}  # the package's default: 20 steps a room
    assert script.parse_env_kwargs(env_id, "max_num_rooms = 7", "envpool") == two
    assert script.parse_env_kwargs(env_id, "", "envpool") == {}


def test_envpool_s_multiroom_can_often_not_be_solved_and_auto_avoids_it():
    """Two rooms of 4 x 4 and 2,000 steps: a random agent gets through the door unless it leads into a corner."""
    for backend, num_envs, episodes, low, high in (("envpool", 64, 400, 0.6, 0.85), ("gymnasium", 16, 40, 1, 1)):
        envs = script.MiniGridEnvs("MiniGrid-MultiRoom-N2-S4-v0", num_envs, 0, backend, {"max_episode_steps": 2000})
        envs.reset()
        rng = np.random.default_rng(0)
        while len(envs.episodes) < episodes:
            envs.step(rng.integers(0, 6, num_envs))
        success = np.mean([episode_return > 0 for episode_return, *_ in envs.episodes])
        assert low <= success <= high, f"{backend}: {success}"
    assert script.resolve_backend("auto", "MiniGrid-MultiRoom-N6-v0") == "gymnasium"
    assert script.resolve_backend("auto", "MiniGrid-KeyCorridorS3R3-v0") == "envpool"
    assert script.resolve_backend("envpool", "MiniGrid-MultiRoom-N6-v0") == "envpool"


def test_rewards_go_by_the_limit_that_was_asked_for():
    envs = script.MiniGridEnvs("MiniGrid-Empty-5x5-v0", 16, 0, "envpool", {"max_episode_steps": 40})
    envs.reset()
    rng = np.random.default_rng(0)
    while len(envs.episodes) < 100:
        envs.step(rng.integers(0, 3, 16))
    won = [(episode_return, length) for episode_return, length, _ in envs.episodes if episode_return > 0]
    assert len(won) > 10
    for episode_return, length in won:
        assert episode_return == pytest.approx(1 - 0.9 * length / 40, abs=1e-5)


@pytest.mark.parametrize("name", ["DoorKey-8x8", "doorkey-8x8", "MiniGrid-DoorKey-8x8-v0", "DoorKey-8x8-v0"])
def test_every_spelling_of_an_id_means_the_same(name):
    assert script.resolve_env_id(name, "auto") == "MiniGrid-DoorKey-8x8-v0"


def test_a_name_without_a_version_is_the_newest():
    assert script.resolve_env_id("ObstructedMaze-Full", "auto") == "MiniGrid-ObstructedMaze-Full-v1"
    assert script.resolve_env_id("ObstructedMaze-Full-v0", "auto") == "MiniGrid-ObstructedMaze-Full-v0"


def test_every_minigrid_id_of_envpool_fits_the_networks():
    ids = [x for x in envpool.list_all_envs() if x.startswith("MiniGrid-")]
    assert len(ids) > 70
    for env_id in ids:
        assert script.resolve_env_id(env_id, "envpool") == env_id
        envs = script.MiniGridEnvs(env_id, 2, 0, "envpool", {})
        views = script.Views()
        views.add(envs.reset())
        for _ in range(5):
            views.add(envs.step(np.random.default_rng(0).integers(0, envs.num_actions, 2))[0])
        one_hot = script.encode(views.tensor(), "planes")
        assert one_hot.shape[1:] == (1029,) and (one_hot.sum(1) == 3 * 49).all()


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


def test_codes_and_planes():
    rng = np.random.default_rng(0)
    views = np.stack([rng.integers(0, n, (9, 7, 7)) for n in script.NUM_CODES], -1).astype(np.uint8)
    raw, one_hot = (script.encode(torch.from_numpy(views), obs) for obs in ("codes", "planes"))
    np.testing.assert_array_equal(raw, views.reshape(9, -1))
    assert raw.shape == (9, 147) == (9, script.NUM_INPUTS["codes"]) and script.NUM_INPUTS["planes"] == 49 * 21
    assert one_hot.shape == (9, 49 * 21) and one_hot.dtype == raw.dtype == torch.float32
    for b, x, y in itertools.product(range(9), range(7), range(7)):
        expected = np.zeros(21)
        expected[[views[b, x, y, 0], 11 + views[b, x, y, 1], 17 + views[b, x, y, 2]]] = 1
        np.testing.assert_array_equal(one_hot[b].reshape(7, 7, 21)[x, y], expected)


def linear(network: torch.nn.Module) -> list[torch.nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]


@pytest.mark.parametrize("heads", [1, 2])
def test_networks_equal_their_description(heads):
    torch.manual_seed(0)
    agent, rnd = script.Agent(7, heads, 1029), script.RND(4, 1029, CPU)
    x = torch.randint(0, 2, (5, 1029)).float()
    first, second = linear(agent.trunk)
    hidden = x @ first.weight.T + first.bias
    hidden = (hidden.clamp(min=0) @ second.weight.T + second.bias).clamp(min=0)
    logits, values = agent(x)
    torch.testing.assert_close(logits, hidden @ agent.policy_head.weight.T + agent.policy_head.bias)
    torch.testing.assert_close(values, hidden @ agent.value_head.weight.T + agent.value_head.bias)
    assert values.shape == (5, heads)

    assert [layer.weight.shape for layer in linear(rnd.target)] == [
        layer.weight.shape for layer in linear(rnd.predictor)[: len(linear(rnd.target))]
    ]
    assert len(linear(rnd.predictor)) == len(linear(rnd.target)) + 2
    assert rnd.target(x).shape == rnd.predictor(x).shape
    assert not any(p.requires_grad for p in rnd.target.parameters())
    assert all(p.requires_grad for p in rnd.predictor.parameters())
    for name, parameter in [*agent.named_parameters(), *rnd.named_parameters()]:
        if name.endswith("bias"):
            assert (parameter == 0).all()
            continue
        w = parameter.detach()
        w = w if w.shape[0] <= w.shape[1] else w.T
        gain = 0.01 if "head" in name else 2**0.5
        torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w)), rtol=1e-4, atol=1e-4)


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


@pytest.mark.parametrize("novelty", ["rnd", "noveld", "count", "none"])
@pytest.mark.parametrize("episodic_bonus", ["first-visit", "sqrt-count", "none"])
def test_bonus_equals_a_loop_over_steps(novelty, episodic_bonus):
    rng = np.random.default_rng(0)
    errors = rng.random((8, 5)).astype(np.float32)
    counts, visits = rng.integers(1, 20, (2, 7, 5))
    bonus = script.lifelong_bonus(novelty, torch.from_numpy(errors), torch.from_numpy(counts))
    bonus = bonus * script.episodic_term(episodic_bonus, torch.from_numpy(visits))
    assert bonus.dtype == torch.float32
    for t, n in itertools.product(range(7), range(5)):
        lifelong = {
            "rnd": errors[t + 1, n],
            "noveld": max(errors[t + 1, n] - 0.5 * errors[t, n], 0),
            "count": 1 / np.sqrt(counts[t, n]),
            "none": 1,
        }[novelty]
        episodic = {"first-visit": visits[t, n] == 1, "sqrt-count": 1 / np.sqrt(visits[t, n]), "none": 1}
        np.testing.assert_allclose(bonus[t, n], lifelong * episodic[episodic_bonus], rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


class FakeEnvs:
    """Views from a small set, rewards and ends at random, resets that hold garbage; remembers what happened."""

    def __init__(self, env_id: str, num_envs: int, seed: int, backend: str, env_kwargs: dict):
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
        visits = self.rng.integers(1, 4, self.N)
        self.done = terminated | truncated
        self.steps.append((actions.copy(), visits, rewards, terminated, truncated, valid))
        return self.views(), visits, rewards, terminated, truncated, valid


@pytest.fixture
def fake_envs(monkeypatch):
    monkeypatch.setattr(script, "MiniGridEnvs", FakeEnvs)


@pytest.fixture
def draws(monkeypatch):
    """What training drew at random in its updates: the environments of each minibatch, the predictor's subsets."""
    seen = {"envs": [], "kept": []}
    randperm, subset = torch.randperm, script.predictor_subset

    def spy_randperm(*args, **kwargs):
        seen["envs"].append(randperm(*args, **kwargs))
        return seen["envs"][-1]

    def spy_subset(*args):
        seen["kept"].append(subset(*args))
        return seen["kept"][-1]

    monkeypatch.setattr(torch, "randperm", spy_randperm)
    monkeypatch.setattr(script, "predictor_subset", spy_subset)
    return seen


class PlainAdam:
    """Adam (Kingma and Ba 2015, algorithm 1) for one tensor."""

    def __init__(self, parameter: torch.Tensor, lr: float):
        self.parameter, self.lr, self.steps = parameter, lr, 0
        self.first, self.second = torch.zeros_like(parameter), torch.zeros_like(parameter)

    def step(self, gradient: torch.Tensor) -> None:
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * gradient
        self.second = 0.999 * self.second + 0.001 * gradient**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        self.parameter.data -= self.lr * first / (second.sqrt() + 1e-8)


def transcription(args: script.Args, envs: FakeEnvs, draws: dict, rollouts: int) -> dict[str, torch.Tensor]:
    """The same run in plain loops: every network at every step, every sum over samples. Returns the weights."""
    T, N, M, H = args.num_steps, args.num_envs, args.num_minibatches, 1 if args.single_head else 2
    torch.manual_seed(args.seed)
    agent, rnd = (
        script.Agent(7, H, {"planes": 1029, "codes": 147}[args.policy_obs]),
        script.RND(N, {"planes": 1029, "codes": 147}[args.rnd_obs], CPU),
    )
    optimisers = [PlainAdam(p, args.learning_rate) for p in agent.parameters()]
    predictor_optimisers = [PlainAdam(p, args.predictor_learning_rate) for p in rnd.predictor.parameters()]
    seen_by_rnd, filtered, every_filtered, table = [], np.zeros(N), [], collections.Counter()
    skip, offset, subsets, permutations = 0, 0, iter(draws["kept"]), iter(draws["envs"])
    if args.obs_norm == "frozen" and args.int_coef and args.novelty in ("rnd", "noveld"):
        while skip < args.frozen_obs_norm_steps:  # these steps were a random agent's
            valid = envs.steps[offset][5]
            offset += 1
            y = script.encode(torch.from_numpy(envs.tiles[envs.shown[offset]]), args.rnd_obs)
            seen_by_rnd += [y[n].numpy().astype(float) for n in range(N) if valid[n]]
            skip += valid.sum()
    for r in range(rollouts):
        if args.anneal_lr:
            for optimiser in optimisers:
                optimiser.lr = args.learning_rate * (1 - r / rollouts)
        shown = np.stack(envs.shown[offset + r * T : offset + (r + 1) * T + 1])
        columns = zip(*envs.steps[offset + r * T : offset + (r + 1) * T], strict=True)
        actions, visits, rewards, terminated, truncated, valid = map(np.stack, columns)
        x = script.encode(torch.from_numpy(envs.tiles[shown.flatten()]), args.policy_obs)  # ((T+1)N, D)
        with torch.no_grad():
            logits, values = agent(x)
        old = logits.log_softmax(1).unflatten(0, (T + 1, N))
        values = values.unflatten(0, (T + 1, N)).numpy().astype(float)

        y = script.encode(torch.from_numpy(envs.tiles[shown.flatten()]), args.rnd_obs)
        if args.obs_norm != "none":
            if args.obs_norm == "running":
                for t, n in zip(*np.nonzero(valid), strict=True):
                    seen_by_rnd.append(y.unflatten(0, (T + 1, N))[t + 1, n].numpy().astype(float))
            if seen_by_rnd:
                data = np.stack(seen_by_rnd)
                count = len(data) + 1e-4
                mean = data.sum(0) / count
                var = ((data**2).sum(0) + 1e-4) / count - mean**2
                y = ((y - torch.from_numpy(mean).float()) / torch.from_numpy(var).sqrt().float()).clamp(-5, 5)
        with torch.no_grad():
            errors = (rnd.predictor(y) - rnd.target(y)).square().mean(1).unflatten(0, (T + 1, N)).numpy().astype(float)
        intrinsic = np.zeros((T, N))
        for t in range(T):
            for n in range(N):
                table[shown[t + 1, n]] += int(valid[t, n])
            for n in range(N):
                lifelong = {
                    "rnd": errors[t + 1, n],
                    "noveld": max(0, errors[t + 1, n] - 0.5 * errors[t, n]),
                    "count": max(1, table[shown[t + 1, n]]) ** -0.5,
                    "none": 1,
                }[args.novelty]
                episodic = {"first-visit": visits[t, n] == 1, "sqrt-count": visits[t, n] ** -0.5, "none": 1}
                intrinsic[t, n] = lifelong * episodic[args.episodic_bonus]
        if args.int_norm:
            for t, n in itertools.product(range(T), range(N)):
                if valid[t, n]:
                    filtered[n] = args.int_gamma * filtered[n] + intrinsic[t, n]
                    every_filtered.append(filtered[n])
            f, count = np.array(every_filtered), len(every_filtered) + 1e-4
            intrinsic /= np.sqrt(((f**2).sum() + 1e-4) / count - (f.sum() / count) ** 2)
        if args.int_clip is not None:
            intrinsic = np.clip(intrinsic, -args.int_clip, args.int_clip)

        total, returns = np.zeros((T, N)), np.zeros((T, N, H))
        streams = [(intrinsic, args.int_gamma, args.int_coef), (rewards, args.gamma, args.ext_coef)]
        for head in range(H):
            for n in range(N):
                steps = [t for t in range(T) if valid[t, n]]
                for i, first in enumerate(steps):
                    advantage, weight = 0.0, 1.0
                    for j in range(i, len(steps)):
                        t = steps[j]
                        following = values[steps[j + 1], n, head] if j + 1 < len(steps) else values[T, n, head]
                        end = terminated[t, n] or truncated[t, n]
                        extrinsic = head == H - 1
                        end = end and (extrinsic or args.int_episodic)
                        reward, gamma, coef = streams[head]
                        reward = reward[t, n]
                        if H == 1:
                            gamma, coef = args.gamma, 1
                            reward = args.int_coef * intrinsic[t, n] + args.ext_coef * rewards[t, n]
                        bootstrap = 0.0
                        if extrinsic and args.bootstrap_truncated and truncated[t, n]:
                            bootstrap = gamma * values[t + 1, n, head]  # of the episode's last view
                        if end:
                            following = 0.0
                        delta = reward + bootstrap + gamma * following - values[t, n, head]
                        advantage += weight * delta
                        weight *= gamma * args.gae_lambda
                        if end:
                            break
                    returns[first, n, head] = advantage + values[first, n, head]
                    total[first, n] += coef * advantage

        for _ in range(args.update_epochs):
            for chosen in next(permutations).chunk(M):
                samples = [(t, int(n)) for t in range(T) for n in chosen]
                good = [(t, n) for t, n in samples if valid[t, n]]
                advantages = {at: total[at] for at in good}
                if args.norm_adv:
                    data = np.array(list(advantages.values()))
                    advantages = {at: (a - data.mean()) / (data.std() + 1e-8) for at, a in advantages.items()}
                logits, new_values = agent(x)
                logp = logits.log_softmax(1).unflatten(0, (T + 1, N))
                new_values = new_values.unflatten(0, (T + 1, N))
                loss = 0.0
                for t, n in good:
                    ratio = (logp[t, n, actions[t, n]] - old[t, n, actions[t, n]]).exp()
                    a = advantages[t, n]
                    loss = loss - torch.minimum(ratio * a, ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef) * a)
                    loss = loss + args.ent_coef * (logp[t, n].exp() * logp[t, n]).sum()
                    for head in range(H):
                        if H == 2 and (args.int_coef, args.ext_coef)[head] == 0:
                            continue
                        target = returns[t, n, head]
                        error = (new_values[t, n, head] - target) ** 2
                        if args.clip_vloss:
                            base = values[t, n, head]
                            clipped = base + (new_values[t, n, head] - base).clamp(-args.clip_coef, args.clip_coef)
                            error = torch.maximum(error, (clipped - target) ** 2)
                        loss = loss + args.vf_coef * 0.5 * error
                gradients = torch.autograd.grad(loss / len(good), [*agent.parameters()])
                if args.max_grad_norm is not None:
                    norm = float(torch.sqrt(sum((g**2).sum() for g in gradients)))
                    gradients = [g * min(1.0, args.max_grad_norm / (norm + 1e-6)) for g in gradients]
                if args.int_coef and args.novelty in ("rnd", "noveld"):
                    predicted = rnd.predictor(y).unflatten(0, (T + 1, N))
                    with torch.no_grad():
                        targets = rnd.target(y).unflatten(0, (T + 1, N))
                    kept = [samples[k] for k in next(subsets)]
                    kept = [(t, n) for t, n in kept if valid[t, n]]
                    assert len(kept) == min(len(good), round(args.update_proportion * len(samples)))
                    loss = sum((predicted[t + 1, n] - targets[t + 1, n]).square().mean() for t, n in kept) / len(kept)
                    predictor_gradients = torch.autograd.grad(loss, [*rnd.predictor.parameters()])
                    for optimiser, gradient in zip(predictor_optimisers, predictor_gradients, strict=True):
                        optimiser.step(gradient)
                for optimiser, gradient in zip(optimisers, gradients, strict=True):
                    optimiser.step(gradient)
    result = {f"agent.{k}": v for k, v in agent.state_dict().items()}
    return result | {f"rnd.{k}": v for k, v in rnd.state_dict().items() if k.startswith("predictor")}


FLAGS = [
    {},
    {"int_coef": 0.0},
    {"ext_coef": 0.0, "int_coef": 1.0},
    {"novelty": "noveld", "episodic_bonus": "sqrt-count", "bootstrap_truncated": False},
    {"novelty": "count", "int_norm": False},
    {"novelty": "none", "episodic_bonus": "sqrt-count"},
    {"episodic_bonus": "none", "int_episodic": True, "update_proportion": 0.25},
    {"single_head": True},
    {"policy_obs": "codes", "norm_adv": True, "max_grad_norm": None},
    {"rnd_obs": "planes"},
    {"obs_norm": "frozen", "frozen_obs_norm_steps": 30, "int_clip": 0.05},
    {"obs_norm": "none", "clip_vloss": True, "anneal_lr": True, "predictor_learning_rate": 1e-3},
    {"gamma": 0.9, "gae_lambda": 0.5, "int_gamma": 0.8, "vf_coef": 0.7, "ent_coef": 0.1, "clip_coef": 0.02},
]


@pytest.mark.parametrize("changes", FLAGS, ids=lambda changes: "-".join(changes) or "default")
def test_a_run_equals_a_plain_transcription(fake_envs, draws, tmp_path, changes):
    args = small_args(**{"total_timesteps": 3 * 4 * 16, "num_steps": 16, "update_epochs": 2, "int_coef": 0.5} | changes)
    state = torch.load(train(args, tmp_path) / "latest.pt", weights_only=True)
    assert state["iteration"] == 3
    expected = transcription(args, FakeEnvs.last, draws, rollouts=3)
    torch.manual_seed(args.seed)
    sizes = {"planes": 1029, "codes": 147}
    agent = script.Agent(7, 1 if args.single_head else 2, sizes[args.policy_obs])
    parts = {"agent": agent, "rnd": script.RND(4, sizes[args.rnd_obs], CPU)}
    start = {part: network.state_dict() for part, network in parts.items()}
    for key, value in expected.items():
        part, name = key.split(".", 1)
        way = (value - start[part][name]).norm()
        if part == "rnd" and (args.int_coef == 0 or args.novelty in ("count", "none")):
            assert way == 0 and torch.equal(state[part][name], value), f"{key} has moved"
            continue
        assert way > args.learning_rate, f"{key} has not moved"
        # a share of the way that it went: Adam makes a large step of a gradient that rounding alone keeps from zero
        error = (state[part][name] - value).norm() / way
        assert error < 0.01, f"{key}: off by {error:.3f} of its way"


def test_target_never_changes_and_everything_else_does(fake_envs, tmp_path):
    states = []
    for k, steps in enumerate((32, 320)):
        run_dir = train(small_args(total_timesteps=steps), tmp_path / str(k))
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


@pytest.mark.parametrize("changes", [{}, {"novelty": "count"}, {"obs_norm": "frozen"}], ids=str)
def test_resume_restores_the_learner_bit_for_bit(tmp_path, monkeypatch, changes):
    run_dir = train(small_args(total_timesteps=3200, **changes), tmp_path)
    path, before = script.load_checkpoint("--resume", str(run_dir))
    assert before["recent"] and bool(len(before["table"]["counts"])) == (changes == {"novelty": "count"})
    monkeypatch.setattr(script, "StopSignal", lambda: type("Stopped", (), {"number": 15})())
    args = script.Args(**before["args"] | {"total_timesteps": 6400})
    torch.manual_seed(123)
    assert script.train(args, "MiniGrid-DoorKey-5x5-v0", CPU, path, before) == 143
    after = torch.load(run_dir / "latest.pt", weights_only=True)
    assert before.keys() == after.keys()
    for key in before.keys() - {"seconds", "args"}:
        assert same(before[key], after[key]), key


def test_a_resume_takes_the_learning_rates_that_are_asked_for(tmp_path):
    run_dir = train(small_args(), tmp_path)
    path, saved = script.load_checkpoint("--resume", str(run_dir))
    flags = {"total_timesteps": 64, "learning_rate": 3e-4, "predictor_learning_rate": 5e-4}
    args = script.Args(**saved["args"] | flags)
    assert script.train(args, "MiniGrid-DoorKey-5x5-v0", CPU, path, saved) == 0
    groups = torch.load(path, weights_only=True)["optimizer"]["param_groups"]
    assert [group["lr"] for group in groups] == [3e-4, 5e-4]


def test_a_rollout_that_was_cut_short_is_not_counted(tmp_path, monkeypatch):
    """The learner stands where the last whole rollout left it, the table of counts too."""
    signals = []

    class Stop:
        number = property(lambda self: 15 if len(signals) > 12 else 0)  # within the second rollout of 8 steps

    step = script.MiniGridEnvs.step
    monkeypatch.setattr(script, "StopSignal", Stop)
    monkeypatch.setattr(script.MiniGridEnvs, "step", lambda self, actions: signals.append(1) or step(self, actions))
    args = small_args(novelty="count", total_timesteps=320, runs_dir=str(tmp_path))
    assert script.train(args, "MiniGrid-DoorKey-5x5-v0", CPU, None, None) == 143
    (run_dir,) = tmp_path.iterdir()
    state = torch.load(run_dir / "latest.pt", weights_only=True)
    assert len(signals) == 13 and state["iteration"] == 1 and state["table"]["counts"].sum() == 4 * 8  # no resets yet


def test_a_nan_stops_the_run_and_names_itself(tmp_path):
    run_dir = train(small_args(), tmp_path)
    path, saved = script.load_checkpoint("--resume", str(run_dir))
    before = path.read_bytes()
    saved["agent"]["value_head.weight"][1] = float("nan")
    args = script.Args(**saved["args"] | {"total_timesteps": 512})
    with pytest.raises(
        script.RunError, match=r"losses/policy_loss is nan at step 64: stopped; the last good checkpoint is"
    ):
        script.train(args, "MiniGrid-DoorKey-5x5-v0", CPU, path, saved)
    assert path.read_bytes() == before


class Winning(FakeEnvs):
    """An episode with a return of 0.92 ends at each step, 8 in a rollout."""

    def step(self, actions):
        self.recent.append(0.92)
        del self.recent[:-100]
        return super().step(actions)


def test_it_stops_when_solved(tmp_path, monkeypatch, capsys):
    """After the first rollout at whose end there are 100 episodes and their mean is above --solved-score."""
    monkeypatch.setattr(script, "MiniGridEnvs", Winning)
    train(small_args(total_timesteps=3200, solved_score=0.91), tmp_path / "solved")
    assert "solved: score 0.920 over the last 100 episodes, steps 416," in capsys.readouterr().out
    train(small_args(total_timesteps=640, solved_score=0.925), tmp_path / "not")
    assert "\nscore 0.920 over the last 100 episodes, steps 640," in capsys.readouterr().out


def test_the_random_agent_s_episodes_are_not_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "MiniGridEnvs", Winning)
    train(small_args(obs_norm="frozen", frozen_obs_norm_steps=100), tmp_path)
    assert "score 0.920 over the last 8 episodes, steps 32," in capsys.readouterr().out


# ----------------------------------------------------------------------------------------------------------------------
# What the user was promised
# ----------------------------------------------------------------------------------------------------------------------


def call_main(monkeypatch, capsys, *flags: object) -> tuple[int, str]:
    """main() with these flags: exit status and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["ppo_rnd_minigrid.py", *map(str, flags)])
    try:
        status = script.main()
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env-id", "DoorKey-8x9"], "did you mean MiniGrid-DoorKey-8x8-v0"),
        (["--env-id", "KeyCoridorS3R3"], "did you mean MiniGrid-KeyCorridorS3R3-v0"),
        (["--env-id", "CartPole-v1"], "no such environment"),
        (["--env-id", "MontezumaRevenge"], "no such environment; this script plays MiniGrid's"),
        (["--env-id", "ALE/Venture-v5"], "no such environment"),
        (["--env-kwargs", "rooms=7"], "--env-kwargs rooms=7: rooms is none of max_episode_steps, min_num_rooms"),
        (["--env-kwargs", "num_envs=7"], "num_envs is none of"),
        (["--env-kwargs", "size"], "size must be a whole number"),
        (["--env-kwargs", "size=big"], "size must be a whole number"),
        (
            ["--env-kwargs", "size=9"],
            "MiniGrid-KeyCorridorS3R3-v0 refuses it: MiniGridEnv.__init__() got an unexpected",
        ),
        (["--env-id", "MultiRoom-N6", "--env-kwargs", "max_room_size=2"], "MiniGrid-MultiRoom-N6-v0 refuses it"),
        (["--env-id", "MultiRoom-N6", "--env-kwargs", "max_num_rooms=3"], "MiniGrid-MultiRoom-N6-v0 refuses it"),
        (["--env-id", "DoorKey-8x8", "--env-kwargs", "size=2"], "refuses it"),
        (["--env-kwargs", "max_episode_steps=0"], "max_episode_steps must be at least 1"),
        (["--num-envs", 0], "--num-envs 0: must be at least 1"),
        (["--seed", "1e20"], "--seed 100000000000000000000: must be below 2^63"),
        (["--num-envs", -4], "--num-envs -4: must be at least 1"),
        (["--num-envs", 63], "--num-minibatches 4: must be a divisor of --num-envs 63"),
        (["--num-steps", 0], "--num-steps 0: must be at least 1"),
        (["--num-minibatches", 0], "--num-minibatches 0: must be at least 1"),
        (["--update-epochs", 0], "--update-epochs 0: must be at least 1"),
        (["--frozen-obs-norm-steps", 0], "--frozen-obs-norm-steps 0: must be at least 1"),
        (["--gamma", 1.5], "--gamma 1.5: must be in [0, 1]"),
        (["--int-gamma", -0.1], "--int-gamma -0.1: must be in [0, 1]"),
        (["--gae-lambda", "nan"], "--gae-lambda nan: must be in [0, 1]"),
        (["--update-proportion", 0], "--update-proportion 0.0: must be in (0, 1]"),
        (["--learning-rate", 0], "--learning-rate 0.0: must be a positive number"),
        (["--predictor-learning-rate", "inf"], "--predictor-learning-rate inf: must be a positive number"),
        (["--int-clip", 0], "--int-clip 0.0: must be a positive number"),
        (["--ext-coef", -1], "--ext-coef -1.0: must be a number that is not negative"),
        (["--solved-score", "nan"], "--solved-score nan: must be a number or None"),
        (["--total-timesteps", 0], "--total-timesteps 0: must be at least one rollout"),
        (["--novelty", "none", "--episodic-bonus", "none"], "leaves no bonus; to play without one, --int-coef 0"),
        (["--int-coef", 0, "--novelty", "count"], "--novelty contradicts --int-coef 0: there is no bonus"),
        (["--novelty", "count", "--obs-norm", "frozen"], "--obs-norm contradicts --novelty count"),
        (["--frozen-obs-norm-steps", 100], "--frozen-obs-norm-steps contradicts --obs-norm running"),
        (["--single-head", "--int-episodic"], "--int-episodic contradicts --single-head"),
        (["--single-head", "--no-int-norm", "--int-gamma", 0.5], "--int-gamma contradicts --single-head --no-int-norm"),
        (["--resume", "nowhere"], "--resume nowhere: there is no checkpoint nowhere"),
        (["--evaluate", "empty"], "--evaluate empty: there is no checkpoint empty/latest.pt"),
        (["--resume", "garbage.pt"], "is damaged or is no checkpoint"),
        (["--resume", "foreign.pt"], "was written by ppo_rnd_atari, not by this script"),
        (["--resume", "other.pt"], "was written by something else"),
        (["--capture-video"], "--capture-video needs --evaluate"),
        (["--plot"], "--plot needs --evaluate"),
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
    assert status == 2, errors
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors, errors
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_arguments_that_end_the_process_of_envpool_or_never_end(monkeypatch):
    """EnvPool checks with aborts, not with exceptions; the package looks for a layout until there is one."""
    monkeypatch.setitem(script.ENV_KWARGS, "max_room_size", "max_steps")  # so that only EnvPool minds
    with pytest.raises(script.UserError, match=r"MiniGrid-MultiRoom-N6-v0 refuses it: low < high \(4 vs. 3\)"):
        script.parse_env_kwargs("MiniGrid-MultiRoom-N6-v0", "max_room_size=2", "envpool")
    run = subprocess.run
    monkeypatch.setattr(subprocess, "run", lambda command, **kwargs: run(command, **kwargs | {"timeout": 8}))
    with pytest.raises(script.UserError, match="MiniGrid-MultiRoom-N6-v0 finds no such layout"):
        script.parse_env_kwargs("MiniGrid-MultiRoom-N6-v0", "min_num_rooms=99,max_num_rooms=99", "gymnasium")


@pytest.mark.parametrize(
    "flags", [["--num-envs", "1.5"], ["--num-env", "4"], ["--device", "tpu"], ["--gamma", "x"], ["--novelty", "icm"]]
)
def test_what_the_parser_refuses(monkeypatch, capsys, flags):
    status, errors = call_main(monkeypatch, capsys, *flags)
    assert status == 2 and "Traceback" not in errors


def test_checkpoints_that_do_not_fit(monkeypatch, capsys, tmp_path):
    run_dir = train(small_args(), tmp_path)
    before = (run_dir / "latest.pt").read_bytes()
    for flags, message in [
        (["--env-id", "DoorKey-8x8"], "is of a run with env_id MiniGrid-DoorKey-5x5-v0, not MiniGrid-DoorKey-8x8-v0"),
        (["--env-kwargs", "size=6"], "is of a run with env_kwargs , not size=6"),
        (["--num-envs", 8, "--total-timesteps", 640], "is of a run with num_envs 4, not 8"),
        (["--policy-obs", "codes", "--total-timesteps", 640], "holds another architecture"),
        (["--rnd-obs", "planes", "--total-timesteps", 640], "holds another architecture"),
        (["--single-head", "--total-timesteps", 640], "holds another architecture"),
        (["--total-timesteps", 32], "has all of its 32 steps"),
    ]:
        status, errors = call_main(monkeypatch, capsys, "--resume", run_dir, *flags)
        assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors, errors
    (tmp_path / "half.pt").write_bytes(before[: len(before) // 2])
    status, errors = call_main(monkeypatch, capsys, "--resume", tmp_path / "half.pt")
    assert status == 2 and errors.count("\n") == 1 and "is damaged or is no checkpoint" in errors
    assert (run_dir / "latest.pt").read_bytes() == before


def test_help_names_every_flag_and_only_those_that_are_read():
    source = (ROOT / "ppo_rnd_minigrid.py").read_text()
    for field in dataclasses.fields(script.Args):
        uses = source.count(f"args.{field.name}") + source.count(f'"{field.name}"')
        assert uses >= 1, f"nothing reads --{field.name}"


def test_a_run_as_a_user_sees_it(tmp_path):
    """Trains, resumes, evaluates, films and plots in processes of their own."""
    out = run_script("ppo_rnd_minigrid.py", *SMALL, "--total-timesteps", 1280, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("MiniGrid-DoorKey-5x5-v0__ppo_rnd_minigrid__1__")
    assert {p.name.split(".")[0] for p in run_dir.iterdir()} - {"best"} == {"events", "latest"}  # no temporary file
    lines = out.stdout.splitlines()
    for word in ("device", "environment  MiniGrid-DoorKey-5x5-v0 x 4", "bonus", "parameters", "memory", "steps"):
        assert any(line.startswith(word) for line in lines), word
    assert lines[-1].startswith("score ") and "steps 1,280, time 0:00:" in lines[-1] and str(run_dir.name) in lines[-1]
    assert "Traceback" not in out.stderr

    scalars = read_scalars(run_dir)
    losses = "policy_loss value_loss value_loss_int value_loss_ext entropy approx_kl clipfrac predictor_loss grad_norm"
    expected = {f"losses/{name}" for name in losses.split()} | {"rnd/intrinsic_reward", "rnd/intrinsic_return_std"}
    expected |= {f"losses/explained_variance{suffix}" for suffix in ("_int", "_ext")} | {"rnd/cells_visited"}
    charts = "SPS learning_rate unique_views episodic_return episodic_length success_rate"
    assert set(scalars) == expected | {f"charts/{name}" for name in charts.split()}
    assert [step for step, _ in scalars["losses/entropy"]] == list(range(32, 1281, 32))
    events = EventAccumulator(str(run_dir))
    events.Reload()
    (text,) = events.Tensors("hyperparameters/text_summary")
    rows = dict(row.split("|")[1:3] for row in text.tensor_proto.string_val[0].decode().splitlines())
    assert rows["seed"] == "1" and rows["torch"] == importlib.metadata.version("torch") and rows["novelty"] == "rnd"

    more = run_script("ppo_rnd_minigrid.py", "--resume", run_dir, "--total-timesteps", "2.56e3", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "steps 2,560" in more.stdout.splitlines()[-1]
    assert [step for step, _ in read_scalars(run_dir)["losses/entropy"]] == list(range(32, 2561, 32))

    import imageio

    for kind in ("gif", "mp4"):
        flags = ["--evaluate", run_dir, "--eval-episodes", 2, "--capture-video", "--video-format", kind]
        played = run_script("ppo_rnd_minigrid.py", *flags, cwd=tmp_path)
        assert played.returncode == 0, played.stderr
        *_, first, second, last = played.stdout.splitlines()
        assert first.startswith("episode 0: return ") and second.startswith("episode 1: return ")
        assert last.startswith("return ") and "(mean, standard error), success " in last and ", cells " in last
        videos = sorted((run_dir / "videos").glob(f"*.{kind}"))
        assert len(videos) == 2
        if kind == "mp4":  # a GIF keeps no two frames that are alike
            frames = imageio.mimread(videos[0], memtest=False)
            assert len(frames) == int(first.split(",")[1].split()[0]) + 1 and frames[0].shape == (160, 160, 3)
    drawn = run_script("ppo_rnd_minigrid.py", "--evaluate", run_dir, "--eval-episodes", 2, "--plot", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert "all in one layout" in drawn.stdout and drawn.stdout.splitlines()[-1].startswith("heat map ")
    (picture,) = (run_dir / "plots").iterdir()
    assert picture.name == "MiniGrid-DoorKey-5x5-v0_latest_seed1.png" and picture.read_bytes()[:4] == b"\x89PNG"


def test_the_heat_map_s_bonus_is_what_training_would_pay():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    views = np.stack([rng.integers(0, n, (9, 7, 7)) for n in script.NUM_CODES], -1).astype(np.uint8)
    rnd, table = script.RND(4, 147, CPU), script.CountTable()
    rnd.obs_rms.update(torch.rand(50, 147), torch.ones(50, dtype=torch.bool))
    table.add([view.tobytes() for view in views[[1, 1, 3]]], np.ones(3, bool))
    y = script.whiten(script.encode(torch.from_numpy(views), "codes"), rnd.obs_rms)
    errors = (rnd.predictor(y) - rnd.target(y)).square().mean(1).detach().numpy()
    expected = {
        "rnd": errors[1:],
        "noveld": np.maximum(errors[1:] - 0.5 * errors[:-1], 0),
        "count": [3**-0.5, 1, 2**-0.5, 1, 1, 1, 1, 1],
        "none": np.ones(8),
    }
    for novelty, bonus in expected.items():
        args = script.Args(novelty=novelty, obs_norm="running")
        np.testing.assert_allclose(script.episode_bonus(views, args, rnd, table, CPU), bonus, rtol=1e-5)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, status):
    command = [sys.executable, str(ROOT / "ppo_rnd_minigrid.py"), *map(str, SMALL), "--checkpoint-interval", "1000"]
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
    more = run_script("ppo_rnd_minigrid.py", *flags, cwd=tmp_path)
    assert more.returncode == 0, more.stderr


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    out = run_script("ppo_rnd_minigrid.py", *SMALL, "--total-timesteps", 128, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    before = (run_dir / "latest.pt").read_bytes()
    limit = 2**20  # bytes a file may have: less than a checkpoint

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    flags = ["--resume", run_dir, "--total-timesteps", 256]
    out = run_script("ppo_rnd_minigrid.py", *flags, cwd=tmp_path, preexec_fn=small_disk)
    assert out.returncode == 1
    errors = [line for line in out.stderr.splitlines() if line]
    assert len(errors) == 1 and errors[0].startswith("error: cannot write "), out.stderr
    assert "(File too large); what was saved before is whole" in errors[0]
    assert (run_dir / "latest.pt").read_bytes() == before
    assert not list(run_dir.glob("*.tmp"))


def test_tracking_without_a_network(tmp_path):
    pytest.importorskip("wandb")
    flags = [*SMALL, "--total-timesteps", 128, "--track"]
    out = run_script("ppo_rnd_minigrid.py", *flags, cwd=tmp_path, env={**os.environ, "WANDB_MODE": "offline"})
    assert out.returncode == 0, out.stderr
    assert list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.learning
def test_it_solves_the_smallest_doorkey(tmp_path):
    """In under a minute; then the agent opens doors in the minigrid package too."""
    flags = ["--env-id", "DoorKey-5x5", "--total-timesteps", "3e5", "--solved-score", "0.95"]
    out = run_script("ppo_rnd_minigrid.py", *flags, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1].startswith("solved: score 0.9")
    (run_dir,) = (tmp_path / "runs").iterdir()
    played = run_script("ppo_rnd_minigrid.py", "--evaluate", run_dir, "--eval-episodes", 100, cwd=tmp_path)
    assert float(played.stdout.splitlines()[-1].split()[1]) > 0.93
