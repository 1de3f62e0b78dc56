"""ppo_rnd_minigrid.py: its numbers against independent computations, and its promises to the user."""

import collections
import dataclasses
import functools
import itertools
import os
import pathlib
import signal
import sys
import types

import envpool
import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import (
    CPU,
    ROOT,
    PlainAdam,
    assert_same,
    call_main,
    cut_a_warm_up_short,
    only_run,
    plain_moments,
    play_both,
    read_scalars,
    run_script,
    train_here,
)
from minigrid.minigrid_env import MiniGridEnv

import ppo_rnd_minigrid as script

sys.path.insert(0, str(ROOT / "benchmark"))
import heatmap

SMALL = ["--env-id", "DoorKey-5x5", "--num-envs", 4, "--num-steps", 8, "--num-minibatches", 2]  # 32 steps a rollout
SIZES = {"planes": 1029, "codes": 147}


def small_args(**changes) -> script.Args:
    values = {"env_id": "MiniGrid-DoorKey-5x5-v0", "num_envs": 4, "num_steps": 8, "num_minibatches": 2}
    return script.Args(**(values | {"total_timesteps": 32, "checkpoint_interval": 1e6} | changes))


def make_envs(env_id: str, num_envs: int, backend: str, seed: int = 1, limit: int | None = None) -> script.MiniGridEnvs:
    """The script's environments, with another time limit if asked for."""
    with pytest.MonkeyPatch.context() as patch:
        if limit:
            patch.setattr(envpool, "make", functools.partial(envpool.make, max_episode_steps=limit))
            patch.setattr(gym, "make_vec", functools.partial(gym.make_vec, max_steps=limit))
        return script.MiniGridEnvs(script.Args(env_id=env_id, num_envs=num_envs, backend=backend), seed)


# ----------------------------------------------------------------------------------------------- Environment


@pytest.mark.parametrize(("size", "steps"), [(5, 4000), (8, 1500)])
def test_envpool_and_the_minigrid_package_show_the_same_on_the_same_grid(size, steps):
    actions = np.random.default_rng(size).choice(7, steps, p=[0.15, 0.15, 0.3, 0.15, 0.05, 0.15, 0.05])
    seen = play_both(size, actions, seed=3)
    assert seen["steps on the one grid left"] > 0.5 * steps  # there, every view was predicted before it was seen
    assert seen["episodes"] >= (4 if size == 5 else 2) and seen["keys"] > 0 and (size == 8 or seen["goals"] > 0), seen


@pytest.mark.parametrize("env_id", ["MiniGrid-ObstructedMaze-2Dlh-v0", "MiniGrid-ObstructedMaze-Full-v1"])
def test_boxes_are_grey_in_both_packages_and_blue_in_envpool_s_own_words(env_id):
    seen = {}
    for backend in ("envpool", "gymnasium"):
        envs = make_envs(env_id, 16, backend, seed=5)
        look, raw, shown, rng = envs.look, set(), set(), np.random.default_rng(0)

        def spy(obs, info, look=look, raw=raw, shown=shown, backend=backend, envs=envs):
            image = obs["image"] if backend == "envpool" else obs
            raw.update(image[image[..., 0] == 7, 1].tolist())
            position = look(obs, info)
            tiles = np.frombuffer(b"".join(envs.views), np.uint8).reshape(-1, 3)
            shown.update(tiles[tiles[:, 0] == 7, 1].tolist())
            return position

        envs.look = spy
        envs.reset()
        for _ in range(100):
            envs.step(rng.integers(0, 7, 16))
        seen[backend] = shown, raw
    assert seen == {"envpool": ({5}, {2}), "gymnasium": ({5}, {5})}


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_episodes_are_counted_as_a_dictionary_counts_them(backend):
    """Views, cells, returns and lengths of whole episodes, over resets and time limits, against plain bookkeeping."""
    envs = make_envs("MiniGrid-Empty-Random-5x5-v0", 8, backend, limit=40)
    seen, look, step = {}, envs.look, envs.pool.step
    envs.look = lambda obs, info: seen.setdefault("position", look(obs, info))
    envs.pool.step = lambda actions: seen.setdefault("step", step(actions))
    envs.reset()
    counts = [collections.Counter([view]) for view in envs.views]
    cells = [{tuple(place)} for place in seen["position"]]
    assert envs.stats.cells == cells
    returns, lengths, episodes = np.zeros(8), np.zeros(8, int), []
    rng, before, ends = np.random.default_rng(1), np.zeros(8, bool), {"terminated": 0, "truncated": 0}
    for _ in range(700):
        seen.clear()
        rewards, dones, truncated, visits, valid = envs.step(rng.integers(0, 7, 8))
        obs, _, terminated, _, info = seen["step"]
        image = obs["image"] if backend == "envpool" else obs
        places = [e.unwrapped.agent_pos for e in envs.pool.envs] if backend == "gymnasium" else info["agent_pos"]
        np.testing.assert_array_equal(valid, ~before)
        assert (rewards[~valid] == 0).all() and not dones[~valid].any()
        for i in range(8):
            assert envs.views[i] == image[i].tobytes()
            if not valid[i]:
                counts[i], cells[i], returns[i], lengths[i] = collections.Counter(), set(), 0, 0
            else:
                lengths[i] += 1
                returns[i] += rewards[i]
            counts[i][envs.views[i]] += 1
            assert visits[i] == counts[i][envs.views[i]]
            cells[i].add(tuple(places[i]))
            if dones[i]:
                episodes.append((returns[i], lengths[i], len(cells[i]), returns[i] > 0))
                ends["truncated" if truncated[i] else "terminated"] += 1
                assert truncated[i] == (lengths[i] == 40 and rewards[i] == 0) and (truncated[i] or rewards[i] > 0)
                assert terminated[i] or lengths[i] == 40
        before = dones
    assert min(ends.values()) >= 3
    np.testing.assert_allclose(envs.stats.episodes, episodes, rtol=1e-6)
    expected = np.mean(episodes, axis=0)
    scalars = envs.stats.scalars()
    names = ("charts/episodic_return", "charts/episodic_length", "rnd/cells_visited", "charts/success_rate")
    np.testing.assert_allclose([scalars[name] for name in names], expected, rtol=1e-6)
    assert scalars["charts/score"] == pytest.approx(np.mean([score for score, *_ in episodes[-100:]]))
    assert len(episodes) > 100 and envs.stats.episodes == [] and len(envs.stats.recent) == 100
    assert envs.stats.scalars().keys() == {"charts/score"}  # nothing has ended since


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
def test_a_goal_on_the_very_last_step_is_an_end_and_no_cut(backend):
    envs = make_envs("MiniGrid-Empty-5x5-v0", 2, backend)
    envs.reset()
    for action in [6] * 95 + [2, 2, 1, 2, 2]:  # wait; then two ahead, turn right, two ahead; the limit is 100 steps
        rewards, dones, truncated, _, _ = envs.step(np.array([action, 6]))
    np.testing.assert_allclose(rewards, [0.1, 0], atol=1e-6)
    assert dones.all() and truncated.tolist() == [False, True]


def test_lava_on_the_very_last_step_is_a_death_and_no_cut():
    """The minigrid package calls it terminated and truncated, and pays nothing."""
    envs = make_envs("MiniGrid-LavaGapS5-v0", 16, "gymnasium", limit=6)
    step, said, rng, ends = envs.pool.step, [], np.random.default_rng(0), collections.Counter()
    envs.pool.step = lambda actions: said.append(step(actions)) or said[-1]
    envs.reset()
    for _ in range(400):
        rewards, dones, truncated, _, _ = envs.step(rng.integers(0, 3, 16))
        _, _, dead, late, _ = said[-1]
        np.testing.assert_array_equal(dones, dead | late)
        np.testing.assert_array_equal(truncated, late & ~dead)
        ends.update(zip(dead.tolist(), late.tolist(), (rewards > 0).tolist(), strict=True))
    assert ends[True, True, False] >= 3 and ends[False, True, False] >= 3 and ends[True, False, False] >= 3, ends


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


@pytest.mark.parametrize(("rooms", "size"), [(7, 8), (10, 10)])
def test_the_literature_s_multiroom(rooms, size):
    """So many rooms of at most that size, 20 steps a room."""
    env_id = script.resolve_env_id(f"MultiRoom-N{rooms}-S{size}", "auto")
    envs = make_envs(env_id, 4, "auto")
    for _ in range(3):
        envs.reset()
        envs.options = {}
        for env in envs.pool.envs:
            assert len(env.unwrapped.rooms) == rooms and env.unwrapped.max_steps == 20 * rooms
            assert max(max(room.size) for room in env.unwrapped.rooms) <= size
    for _ in range(20 * rooms):
        envs.step(np.full(4, 6))
    assert [length for _, length, *_ in envs.stats.episodes] == [20 * rooms] * 4
    with pytest.raises(script.UserError, match=f"no such environment; --backend gymnasium has {env_id}"):
        script.resolve_env_id(env_id, "envpool")


def test_envpool_s_multiroom_can_often_not_be_solved_and_auto_avoids_it():
    """Two rooms of 4 x 4 and 2,000 steps: a random agent gets through the door unless it leads into a corner."""
    for backend, num_envs, episodes, low, high in (("envpool", 64, 300, 0.6, 0.85), ("gymnasium", 8, 24, 1, 1)):
        envs = make_envs("MiniGrid-MultiRoom-N2-S4-v0", num_envs, backend, seed=0, limit=2000)
        envs.reset()
        rng = np.random.default_rng(0)
        while len(envs.stats.episodes) < episodes:
            envs.step(rng.integers(0, 6, num_envs))
        success = np.mean([paid for *_, paid in envs.stats.episodes])
        assert low <= success <= high, f"{backend}: {success}"
    for env_id, backend in (("MultiRoom-N6", "gymnasium"), ("KeyCorridorS3R3", "envpool")):
        assert make_envs(f"MiniGrid-{env_id}-v0", 1, "auto").backend == backend
    assert make_envs("MiniGrid-MultiRoom-N6-v0", 1, "envpool").backend == "envpool"


def test_an_environment_of_the_reader_s_own_is_played_in_gymnasium():
    """However large it is."""
    gym.register("MiniGrid-Mine-v0", "minigrid.envs:EmptyEnv", kwargs={"size": 100, "agent_start_pos": (80, 90)})
    try:
        envs = make_envs(script.resolve_env_id("mine", "auto"), 1, "auto")
        envs.reset()
        assert envs.backend == "gymnasium" and envs.stats.cells == [{(80, 90)}]
    finally:
        del gym.registry["MiniGrid-Mine-v0"]


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        *((name, "DoorKey-8x8-v0") for name in ("DoorKey-8x8", "doorkey-8x8", "MiniGrid-DoorKey-8x8-v0")),
        ("ObstructedMaze-Full", "ObstructedMaze-Full-v1"),  # the newest
        ("ObstructedMaze-Full-v0", "ObstructedMaze-Full-v0"),
        ("DoorKey-8x8-v0", "DoorKey-8x8-v0"),
        ("multiroom-n7-s8", "MultiRoom-N7-S8-v0"),
    ],
)
def test_every_spelling_of_an_id_means_the_same(name, env_id):
    assert script.resolve_env_id(name, "auto") == f"MiniGrid-{env_id}"


def test_every_minigrid_id_of_envpool_fits_the_networks():
    ids = [x for x in envpool.list_all_envs() if x.startswith("MiniGrid-")]
    assert len(ids) > 70
    for env_id in ids:
        assert script.resolve_env_id(env_id, "envpool") == env_id
        envs = make_envs(env_id, 2, "envpool")
        envs.reset()
        views = [*envs.views]
        for _ in range(5):
            envs.step(np.random.default_rng(0).integers(0, envs.num_actions, 2))
            views += envs.views
        one_hot = script.encode(script.to_tensor(views), "planes")
        assert one_hot.shape == (12, 1029) and (one_hot.sum(1) == 3 * 49).all()


# -------------------------------------------------------------------------------- Networks, bonus and statistics


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


def test_whitening_equals_its_formula():
    rng = np.random.default_rng(0)
    inputs = rng.normal(3, 2, (50, 3, 7, 7)).astype(np.float32)
    moments = script.RunningMoments((3, 7, 7), CPU)
    moments.update(torch.from_numpy(inputs), torch.ones(50, dtype=torch.bool))
    inputs[0, 0, 0, 0] = 1e6
    expected = np.clip((inputs - moments.mean.numpy()) / np.sqrt(moments.var.numpy()), -5, 5)
    np.testing.assert_allclose(script.whiten(torch.from_numpy(inputs), moments), expected, rtol=1e-4, atol=1e-5)
    assert expected[0, 0, 0, 0] == 5


def test_moments_take_each_row_as_often_as_they_are_told():
    rng = np.random.default_rng(0)
    moments, rows = script.RunningMoments((3,), CPU), [np.zeros((0, 3))]
    for size in (5, 40):
        batch, times = rng.normal(2, 3, (size, 3)), rng.integers(0, 4, size)
        moments.update(torch.from_numpy(batch), torch.from_numpy(times))
        rows.append(np.repeat(batch, times, axis=0))
    mean, var, count = plain_moments(rows)
    for ours, expected in ((moments.mean, mean), (moments.var, var), (moments.count, count)):
        np.testing.assert_allclose(ours, expected, rtol=1e-9)


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


def test_the_table_counts_as_a_dictionary_does_and_survives_a_checkpoint():
    rng = np.random.default_rng(0)
    tiles = torch.from_numpy(rng.integers(0, 11, (12, 7, 7, 3)).astype(np.uint8))
    table, expected = script.CountTable(), collections.Counter()
    for _ in range(6):
        order, index, valid = rng.permutation(12), rng.integers(0, 12, (11, 5)), rng.random((10, 5)) < 0.7
        rollout = types.SimpleNamespace(
            views=tiles[order], index=torch.from_numpy(index), valid=torch.from_numpy(valid)
        )
        counts = table.add(rollout)
        for t in range(10):
            expected.update(order[index[t + 1, n]] for n in range(5) if valid[t, n])
            for n in range(5):
                assert counts[t, n] == max(1, expected[order[index[t + 1, n]]])
    other = script.CountTable()
    other.load_state_dict(table.state_dict())
    assert other.counts == table.counts == {tiles[k].numpy().tobytes(): v for k, v in expected.items()}
    empty = script.CountTable()
    empty.load_state_dict(script.CountTable().state_dict())
    assert not empty.counts


# --------------------------------------------------------------------------------------------------- Training


class FakeEnvs:
    """Views from a small set, rewards and ends at random, resets that hold garbage; remembers what happened."""

    def __init__(self, args: script.Args, seed: int):
        self.N, self.num_actions, self.rng = args.num_envs, 7, np.random.default_rng(7)
        self.tiles = np.stack([self.rng.integers(0, n, (30, 7, 7)) for n in script.NUM_CODES], -1).astype(np.uint8)
        self.shown, self.steps, self.done = [], [], np.zeros(self.N, bool)
        self.stats = script.EpisodeStats(self.N, args.solved_score)
        FakeEnvs.last = self

    def reset(self) -> None:
        self.shown.append(self.rng.integers(0, len(self.tiles), self.N))
        self.views = [self.tiles[k].tobytes() for k in self.shown[-1]]

    def step(self, actions):
        valid = ~self.done
        rewards = np.where(self.rng.random(self.N) < 0.3, self.rng.random(self.N), 0).astype(np.float32)
        rewards[~valid] = 1e6
        terminated, truncated = (self.rng.random((2, self.N)) < 0.12) & valid
        truncated &= ~terminated
        visits = self.rng.integers(1, 4, self.N)
        self.done = terminated | truncated
        self.steps.append((actions.copy(), visits, rewards, self.done, truncated, valid))
        self.reset()
        return rewards, self.done, truncated, visits, valid


@pytest.fixture
def fake_envs(monkeypatch):
    monkeypatch.setattr(script, "MiniGridEnvs", FakeEnvs)


def test_a_rollout_holds_what_happened():
    """Each different view once, in the order in which they came; what the agent says of it wherever it is shown."""
    torch.manual_seed(0)
    args = small_args()
    envs, agent = FakeEnvs(args, 0), script.Agent(7, 2, 1029)
    torch.nn.init.normal_(agent.policy_head.weight)
    rollout = script.empty_rollout(8, 4, 2, CPU)
    envs.reset()
    for k in (0, 8):
        script.collect(envs, agent, rollout, args)
        shown = np.stack(envs.shown[k : k + 9])
        assert rollout.views.numpy().tolist() == envs.tiles[list(dict.fromkeys(shown.flatten().tolist()))].tolist()
        assert (rollout.views[rollout.index].numpy() == envs.tiles[shown]).all()
        x = script.encode(torch.from_numpy(envs.tiles[shown.flatten()]), "planes")
        logits, values = (y.detach().unflatten(0, (9, 4)) for y in agent(x))
        actions, visits, rewards, dones, truncated, valid = map(np.stack, zip(*envs.steps[k : k + 8], strict=True))
        torch.testing.assert_close(rollout.values, values)
        logprobs = logits[:8].log_softmax(2).gather(2, torch.from_numpy(actions)[..., None]).squeeze(2)
        torch.testing.assert_close(rollout.logprobs, logprobs)
        for name in ("actions", "visits", "rewards", "dones", "truncated", "valid"):
            np.testing.assert_array_equal(getattr(rollout, name), locals()[name], name)


@pytest.fixture
def draws(monkeypatch):
    """What training drew at random in its updates: the environments of each minibatch, a number for each sample."""
    seen = {"envs": [], "numbers": []}
    randperm, rand_like = torch.randperm, torch.rand_like

    def spy_randperm(*args, **kwargs):
        seen["envs"].append(randperm(*args, **kwargs))
        return seen["envs"][-1]

    def spy_rand_like(x):
        seen["numbers"].append(rand_like(x))
        return seen["numbers"][-1]

    monkeypatch.setattr(torch, "randperm", spy_randperm)
    monkeypatch.setattr(torch, "rand_like", spy_rand_like)
    return seen


def transcription(args: script.Args, envs: FakeEnvs, draws: dict, rollouts: int) -> dict[str, torch.Tensor]:
    """The same run in plain loops: every network at every step, every sum over samples. Returns the weights."""
    T, N, M, H = args.num_steps, args.num_envs, args.num_minibatches, 1 if args.single_head else 2
    torch.manual_seed(args.seed)
    agent, rnd = (script.Agent(7, H, SIZES[args.policy_obs]), script.RND(N, SIZES[args.rnd_obs], CPU))
    optimiser, predictor_optimiser = (PlainAdam(x.parameters(), args.learning_rate) for x in (agent, rnd.predictor))
    seen_by_rnd, filtered, every_filtered, table = [], np.zeros(N), [], collections.Counter()
    skip, offset, numbers, permutations = 0, 0, iter(draws["numbers"]), iter(draws["envs"])
    if args.obs_norm == "frozen" and args.int_coef and args.novelty in ("rnd", "noveld"):
        while skip < args.frozen_obs_norm_steps:  # these steps were a random agent's
            valid = envs.steps[offset][5]
            offset += 1
            y = script.encode(torch.from_numpy(envs.tiles[envs.shown[offset]]), args.rnd_obs)
            seen_by_rnd += [y[n].numpy().astype(float) for n in range(N) if valid[n]]
            skip += valid.sum()
    for r in range(rollouts):
        shown = np.stack(envs.shown[offset + r * T : offset + (r + 1) * T + 1])
        columns = zip(*envs.steps[offset + r * T : offset + (r + 1) * T], strict=True)
        actions, visits, rewards, dones, truncated, valid = map(np.stack, columns)
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
                        extrinsic = head == H - 1
                        end = dones[t, n] and (extrinsic or args.int_episodic)
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
                        loss = loss + args.vf_coef * 0.5 * (new_values[t, n, head] - target) ** 2
                gradients = torch.autograd.grad(loss / len(good), [*agent.parameters()])
                if args.max_grad_norm is not None:
                    norm = float(torch.sqrt(sum((g**2).sum() for g in gradients)))
                    gradients = [g * min(1.0, args.max_grad_norm / (norm + 1e-6)) for g in gradients]
                if args.int_coef and args.novelty in ("rnd", "noveld"):
                    predicted = rnd.predictor(y).unflatten(0, (T + 1, N))
                    with torch.no_grad():
                        targets = rnd.target(y).unflatten(0, (T + 1, N))
                    shares = dict(zip(samples, next(numbers).tolist(), strict=True))  # uniform in [0, 1)
                    kept = [place for place in good if shares[place] < args.update_proportion]
                    loss = sum((predicted[t + 1, n] - targets[t + 1, n]).square().mean() for t, n in kept) / len(kept)
                    predictor_gradients = torch.autograd.grad(loss, [*rnd.predictor.parameters()])
                    predictor_optimiser.step(predictor_gradients)
                optimiser.step(gradients)
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
    {"obs_norm": "none", "gamma": 0.9, "gae_lambda": 0.5, "int_gamma": 0.8, "vf_coef": 0.7, "clip_coef": 0.02},
]


@pytest.mark.parametrize("changes", FLAGS, ids=lambda changes: "-".join(changes) or "default")
def test_a_run_equals_a_plain_transcription(fake_envs, draws, tmp_path, changes):
    args = small_args(**{"total_timesteps": 3 * 4 * 12, "num_steps": 12, "update_epochs": 2, "int_coef": 0.5} | changes)
    state = torch.load(train_here(script, args, tmp_path) / "latest.pt", weights_only=True)
    assert state["step"] == args.total_timesteps
    expected = transcription(args, FakeEnvs.last, draws, rollouts=3)
    torch.manual_seed(args.seed)
    agent = script.Agent(7, 1 if args.single_head else 2, SIZES[args.policy_obs])
    parts = {"agent": agent, "rnd": script.RND(4, SIZES[args.rnd_obs], CPU)}
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


def test_same_seed_same_scalars_and_another_seed_others_and_the_target_stays(tmp_path):
    runs = [
        train_here(script, small_args(seed=s, total_timesteps=320), tmp_path / f"{k}") for k, s in enumerate((1, 1, 2))
    ]
    scalars = [{k: v for k, v in read_scalars(run).items() if k != "charts/SPS"} for run in runs]
    assert_same(scalars[0], scalars[1])
    assert scalars[0]["losses/entropy"] != scalars[2]["losses/entropy"]
    torch.manual_seed(1)
    agent, rnd = script.Agent(7, 2, 1029), script.RND(4, 147, CPU)
    state = torch.load(runs[0] / "latest.pt", weights_only=True)
    for part, network in (("agent", agent), ("rnd", rnd)):
        for key, value in network.state_dict().items():
            assert torch.equal(value, state[part][key]) == key.startswith("target"), key


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of 100 rollouts, its table of counts and a hundred returns included. Nobody changes it."""
    folder = tmp_path_factory.mktemp("base")
    args = small_args(env_id="MiniGrid-LavaGapS5-v0", novelty="count", total_timesteps=3200)
    return train_here(script, args, folder)


@pytest.fixture
def copy_of_base(base, tmp_path):
    """A copy of that run, which a test may change: the checkpoint's path, what it holds, flags of 32 steps more."""
    folder = tmp_path / "copy" / base.name
    folder.mkdir(parents=True)
    (folder / "latest.pt").write_bytes((base / "latest.pt").read_bytes())
    path, saved = script.load_checkpoint(str(folder))
    return path, saved, script.Args(**saved["args"] | {"total_timesteps": 3232})


@pytest.mark.parametrize("changes", [{}, {"novelty": "rnd", "obs_norm": "frozen", "max_grad_norm": None}], ids=str)
def test_resume_restores_the_learner_bit_for_bit(copy_of_base, tmp_path, changes):
    path, saved, _ = copy_of_base
    if changes:
        path = train_here(script, small_args(total_timesteps=640, **changes), tmp_path / "other") / "latest.pt"
        path, saved = script.load_checkpoint(str(path))
    before = torch.load(path, weights_only=True)
    torch.manual_seed(123)
    train_here(script, script.Args(**saved["args"]), path.parents[1], path, saved)  # it has all of its steps: it saves
    after = torch.load(path, weights_only=True)
    assert after["seconds"] > before["seconds"]
    assert_same(before, after, but=("seconds", "args"))
    assert bool(len(before["table"]["counts"])) == (before["args"]["novelty"] == "count")
    assert changes or len(before["stats"]["recent"]) == 100


def test_a_resume_takes_the_learning_rate_that_is_asked_for(copy_of_base):
    path, saved, args = copy_of_base
    run_dir = train_here(script, dataclasses.replace(args, learning_rate=3e-4), path.parents[1], path, saved)
    assert read_scalars(run_dir)["charts/learning_rate"] == [(3232, pytest.approx(3e-4))]
    assert torch.load(path, weights_only=True)["optimizer"]["param_groups"][0]["lr"] == 3e-4


def test_a_nan_stops_the_run_and_names_itself(copy_of_base, fake_envs, tmp_path, monkeypatch):
    path, saved, args = copy_of_base
    before = path.read_bytes()
    with pytest.raises(FloatingPointError, match="at step 32: stopped; there is no checkpoint yet"):
        train_here(script, small_args(learning_rate=1e30), tmp_path / "first")
    step = FakeEnvs.step
    monkeypatch.setattr(
        FakeEnvs, "step", lambda self, actions: (step(self, actions)[0] * np.nan, *step(self, actions)[1:])
    )
    said = r"losses/\w+ is nan at step 3,232: stopped; the last good checkpoint is .*/latest.pt"
    with pytest.raises(FloatingPointError, match=said):
        train_here(script, args, path.parents[1], path, saved)
    assert path.read_bytes() == before and not [*path.parent.glob("*.tmp")]


def test_a_warm_up_that_was_cut_short_goes_on_with_the_next_resume(tmp_path, monkeypatch, capsys):
    cut_a_warm_up_short(script, script.MiniGridEnvs, SMALL, tmp_path, monkeypatch, capsys)


class Winning(FakeEnvs):
    """An episode with a return of 0.92 ends at each step, 8 in a rollout."""

    def step(self, actions):
        self.stats.waiting[:] = False
        self.stats.episodes.append((0.92, 9, 3, True))
        return super().step(actions)


def test_it_stops_when_solved(tmp_path, monkeypatch, capsys):
    """After the first rollout at whose end there are 100 episodes and their mean is above --solved-score."""
    monkeypatch.setattr(script, "MiniGridEnvs", Winning)
    run_dir = train_here(script, small_args(total_timesteps=3200, solved_score=0.91), tmp_path / "solved")
    assert "\nsolved: return 0.920, success 1.00, cells 3, 416 steps in " in capsys.readouterr().out
    assert [step for step, _ in read_scalars(run_dir)["charts/score"]] == [416]
    train_here(script, small_args(total_timesteps=640, solved_score=0.925), tmp_path / "not")
    assert "\nreturn 0.920, success 1.00, cells 3, 640 steps in " in capsys.readouterr().out


def test_the_random_agent_s_episodes_are_not_scored(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "MiniGridEnvs", Winning)
    run_dir = train_here(script, small_args(obs_norm="frozen", frozen_obs_norm_steps=100), tmp_path)
    assert torch.load(run_dir / "latest.pt", weights_only=True)["stats"]["recent"] == [0.92] * 8


# ------------------------------------------------------------------------------------ What the user was promised


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env-id", "DoorKey-8x9"], "did you mean MiniGrid-DoorKey-8x8-v0"),
        (["--env-id", "KeyCoridorS3R3"], "did you mean MiniGrid-KeyCorridorS3R3-v0"),
        (["--env-id", "MultiRoom-N7S8"], "MiniGrid-MultiRoom-N7-S8-v0"),
        (["--env-id", "CartPole-v1"], "no such environment"),
        (["--env-id", "MontezumaRevenge"], "no such environment; this script plays MiniGrid"),
        (["--num-envs", 0], "--num-envs 0: must be at least 1"),
        (["--seed", 10**20], "--seed 100000000000000000000: must be at least 0 and below 2^63"),
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
        (["--int-clip", 0], "--int-clip 0.0: must be a positive number"),
        (["--ext-coef", -1], "--ext-coef -1.0: must be at least 0"),
        (["--solved-score", "nan"], "--solved-score nan: must be a number"),
        (["--total-timesteps", 0], "--total-timesteps 0.0: must be at least one rollout, 8192 steps"),
        (["--int-coef", 0, "--ext-coef", 0], "--ext-coef 0.0: must be above 0 with --int-coef 0"),
        (["--resume", ""], "there is no checkpoint latest.pt"),
        (["--resume", "nowhere"], "there is no checkpoint nowhere"),
        (["--evaluate", "empty"], "there is no checkpoint empty/latest.pt"),
        (["--resume", "garbage.pt"], "garbage.pt is damaged or does not fit script and flags"),
        (["--resume", "foreign.pt"], "foreign.pt is damaged or does not fit script and flags (KeyError: 'args')"),
        (["--runs-dir", "file"], "cannot write into file/"),
    ],
    ids=lambda value: "_".join(map(str, value)).replace("/", ".") if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("empty").mkdir()
    pathlib.Path("garbage.pt").write_bytes(b"PK\x03\x04 this is no checkpoint")
    pathlib.Path("file").write_text("a file, not a folder")
    torch.save({"script": "ppo_rnd_atari"}, "foreign.pt")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    status, _, errors = call_main(script, capsys, *flags)
    assert status == 2, errors
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors, errors
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_resuming_with_other_flags(copy_of_base, capsys, tmp_path):
    """Another architecture, a damaged file, nothing left to do: one line. Other flags: they are named."""
    path, _, _ = copy_of_base
    before = path.read_bytes()
    for flags, message in [
        (
            ["--policy-obs", "codes", "--total-timesteps", 3264],
            "does not fit script and flags (size mismatch for trunk.0.weight",
        ),
        (["--rnd-obs", "planes", "--total-timesteps", 3264], "does not fit script and flags (size mismatch for "),
        (
            ["--single-head", "--total-timesteps", 3264],
            "does not fit script and flags (size mismatch for value_head.bias",
        ),
        (["--total-timesteps", 3200], "has all of its 3,200 steps"),
    ]:
        status, _, errors = call_main(script, capsys, "--resume", path, *flags)
        assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors, errors
        assert path.read_bytes() == before
    for damaged in (before[: len(before) // 2], before[:9999] + bytes([before[9999] ^ 1]) + before[10000:]):
        path.write_bytes(damaged)
        status, _, errors = call_main(script, capsys, "--resume", path)
        assert status == 2 and errors.count("\n") == 1 and "is damaged or does not fit" in errors, errors
    path.write_bytes(before)
    flags = ["--num-envs", 6, "--env-id", "DoorKey-5x5", "--total-timesteps", 3248]
    flags += ["--runs-dir", tmp_path / "runs"]
    status, out, errors = call_main(script, capsys, "--resume", path, *flags)
    assert status == 0 and "changed      --num-envs from 4 to 6\n" in out, errors
    assert "changed      --env-id from MiniGrid-LavaGapS5-v0 to MiniGrid-DoorKey-5x5-v0\n" in out
    assert torch.load(only_run(tmp_path) / "latest.pt", weights_only=True)["step"] == 3248
    assert path.read_bytes() == before


def test_a_run_as_a_user_sees_it(tmp_path, capsys, monkeypatch):
    """Trains in a process of its own; then, in this one, resumes, evaluates, films and draws."""
    out = run_script("ppo_rnd_minigrid.py", *SMALL, "--total-timesteps", 1280, cwd=tmp_path)
    assert out.returncode == 0 and out.stderr == "", out.stderr
    run_dir = only_run(tmp_path)
    assert run_dir.name.startswith("MiniGrid-DoorKey-5x5-v0__ppo_rnd_minigrid__1__")
    assert {p.name.split(".")[0] for p in run_dir.iterdir()} <= {"events", "latest", "best", "lock", "ppo_rnd_minigrid"}
    lines = out.stdout.splitlines()
    for word in ("device", "environment  MiniGrid-DoorKey-5x5-v0 x 4", "parameters", "rollout", "folder"):
        assert any(line.startswith(word) for line in lines), word
    assert lines[-1].startswith("return ") and ", 1,280 steps in 00:" in lines[-1] and lines[-1].endswith(run_dir.name)

    scalars = read_scalars(run_dir)
    losses = "policy_loss value_loss value_loss_int value_loss_ext entropy approx_kl clipfrac predictor_loss grad_norm"
    expected = {f"losses/{name}" for name in (losses + " max_logit").split()}
    expected |= {f"losses/{x}{suffix}" for x in ("explained_variance", "advantage_rms") for suffix in ("_int", "_ext")}
    expected |= {"rnd/intrinsic_reward", "rnd/intrinsic_return_std", "rnd/cells_visited"}
    charts = "SPS learning_rate unique_views episodic_return episodic_length success_rate"
    assert set(scalars) == expected | {f"charts/{name}" for name in charts.split()}
    assert [step for step, _ in scalars["losses/entropy"]] == list(range(32, 1281, 32))

    monkeypatch.chdir(tmp_path)
    status, out, errors = call_main(script, capsys, "--resume", run_dir, "--total-timesteps", "1.6e3")
    assert status == 0 and ", 1,600 steps in 00:" in out.splitlines()[-1], errors
    assert [step for step, _ in read_scalars(run_dir)["losses/entropy"]] == list(range(32, 1601, 32))

    import imageio

    status, out, errors = call_main(script, capsys, "--evaluate", run_dir, "--eval-episodes", 2, "--capture-video")
    assert status == 0 and errors == ""
    *_, first, second, last = out.splitlines()
    assert first.startswith("episode 0: return ") and second.startswith("episode 1: return ")
    assert last.startswith("return ") and "(mean, standard error), success " in last and ", cells " in last
    videos = sorted((run_dir / "videos").glob("*.gif"))
    frames = imageio.mimread(videos[0], memtest=False)  # a GIF keeps no two frames that are alike
    assert len(videos) == 2 and frames[0].shape[:2] == (160, 160)
    assert 1 < len(frames) <= int(first.split(",")[1].split()[0])
    monkeypatch.setattr(sys, "argv", ["heatmap.py", str(run_dir), "--episodes", "2", "--out", "maps/map.png"])
    heatmap.main()
    assert "2 episodes in one layout" in capsys.readouterr().out
    assert pathlib.Path("maps/map.png").read_bytes()[:4] == b"\x89PNG"


def test_layouts_of_evaluation_are_its_own(copy_of_base, capsys, monkeypatch):
    """Other seeds share no layout, and the same seed plays the same again."""
    seeds, reset = [], MiniGridEnv.reset

    def spy(env, *, seed=None, options=None):
        seeds.append(seed)
        return reset(env, seed=seed, options=options)

    monkeypatch.setattr(MiniGridEnv, "reset", spy)
    flags = ["--evaluate", copy_of_base[0], "--eval-episodes", 8]
    said = [call_main(script, capsys, *flags, "--seed", seed)[1] for seed in (1, 1, 2)]
    assert said[0] == said[1] and said[0].startswith(f"{copy_of_base[0]}, step 3,200: 8 episodes\nreturn ")
    seeds = [seed for seed in seeds if seed is not None]
    assert seeds[:8] == seeds[8:16] and len({*seeds}) == 16


def test_the_heat_map_s_bonus_is_what_training_would_pay():
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    views = np.stack([rng.integers(0, n, (9, 7, 7)) for n in script.NUM_CODES], -1).astype(np.uint8)
    rnd, table = script.RND(4, 147, CPU), script.CountTable()
    rnd.obs_rms.update(torch.rand(50, 147), torch.ones(50, dtype=torch.bool))
    table.counts.update(view.tobytes() for view in views[[1, 1, 3]])
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
        np.testing.assert_allclose(heatmap.episode_bonus(views, args, rnd, table), bonus, rtol=1e-5)


def test_a_signal_within_a_rollout(tmp_path, monkeypatch, capsys):
    """The iteration under way is finished; what is printed resumes the run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "MiniGridEnvs", FakeEnvs)
    step, calls = FakeEnvs.step, itertools.count()

    def step_or_signal(self, actions):
        if next(calls) == 12:  # in the second rollout of 8 steps
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, actions)

    monkeypatch.setattr(FakeEnvs, "step", step_or_signal)
    before = signal.getsignal(signal.SIGTERM)
    code, out, errors = call_main(script, capsys, *SMALL, "--runs-dir", "sp ace")
    assert code == 143 and errors == "" and signal.getsignal(signal.SIGTERM) is before
    (run_dir,) = pathlib.Path("sp ace").iterdir()
    assert torch.load(run_dir / "latest.pt", weights_only=True)["step"] == 64
    assert out.splitlines()[-1].endswith(f"--resume '{run_dir}'")
    assert call_main(script, capsys, "--resume", run_dir, "--total-timesteps", 96)[0] == 0


@pytest.mark.learning
def test_it_solves_the_smallest_doorkey(tmp_path):
    """In under a minute; then the agent opens doors in the minigrid package too."""
    flags = ["--env-id", "DoorKey-5x5", "--total-timesteps", "3e5", "--solved-score", "0.95"]
    out = run_script("ppo_rnd_minigrid.py", *flags, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1].startswith("solved: return 0.9")
    played = run_script("ppo_rnd_minigrid.py", "--evaluate", only_run(tmp_path), "--eval-episodes", 100, cwd=tmp_path)
    assert float(played.stdout.splitlines()[-1].split()[1]) > 0.93
