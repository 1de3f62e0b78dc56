"""ppo_rnd_continuous.py: its numbers against independent computations, and its promises to the user."""

import collections
import dataclasses
import itertools
import math
import pathlib

import envpool
import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import (
    CPU,
    assert_same,
    call_main,
    cut_a_warm_up_short,
    float64,
    only_run,
    plain_filter,
    plain_moments,
    read_scalars,
    run_script,
    train_here,
)
from torch.distributions import Normal

import ppo_rnd_continuous as script

NAME = "ppo_rnd_continuous.py"
SMALL = ["--env-id", "InvertedPendulum", "--num-envs", 4, "--num-steps", 8, "--num-minibatches", 2]  # 32 steps


def small_args(**changes) -> script.Args:
    values = {"env_id": "InvertedPendulum-v5", "num_envs": 4, "num_steps": 8, "num_minibatches": 2, "update_epochs": 2}
    return script.Args(**(values | {"total_timesteps": 32, "checkpoint_interval": 1e6} | changes))


def make_envs(env_id: str, seeds: list[int], limit: int | None = None, backend: str = "envpool"):
    """The script's environments, with another time limit if asked for."""
    make = {"envpool": envpool.make, "gymnasium": gym.make}
    options = {"max_episode_steps": limit} if limit else {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envpool, "make", lambda *args, **kwargs: make["envpool"](*args, **kwargs, **options))
        patch.setattr(gym, "make", lambda *args, **kwargs: make["gymnasium"](*args, **kwargs, **options))
        return script.ContinuousEnvs(script.Args(env_id=env_id), seeds, backend)


# ----------------------------------------------------------------------------------------------- Environment


@pytest.mark.parametrize(
    ("name", "env_id"),
    [
        *((name, "HalfCheetah-v5") for name in ("HalfCheetah-v5", "halfcheetah", "half-cheetah", "HALFCHEETAH_V5")),
        ("HalfCheetah-v4", "HalfCheetah-v4"),
        ("cartpole-swingup_sparse", "CartpoleSwingupSparse-v1"),
        ("dm_control/cartpole-swingup_sparse", "CartpoleSwingupSparse-v1"),
        ("mountaincarcontinuous", "MountainCarContinuous-v0"),
        ("PointMaze_Medium_Diverse_GR", "PointMaze_Medium_Diverse_GR-v3"),
        ("pointmaze-medium-diverse-gr-v3", "PointMaze_Medium_Diverse_GR-v3"),
        ("MetaWorld/Reach-v3", "MetaWorld/Reach-v3"),
    ],
)
def test_every_spelling_of_an_id_means_the_same(name, env_id):
    assert script.resolve_env_id(name) == env_id


def test_parts_of_an_observation_stand_in_the_order_of_their_names():
    inner = {"z": np.array([[1.0], [2.0]]), "a": np.array([3.0, 4.0])}
    obs = {"velocity": np.zeros((2, 2, 2)), "position": inner}
    np.testing.assert_array_equal(script.flat(obs), [[3, 1, 0, 0, 0, 0], [4, 2, 0, 0, 0, 0]])
    assert script.flat(obs).dtype == np.float32


FAMILIES = [
    *("HalfCheetah-v5", "Hopper-v5", "CartpoleSwingupSparse-v1", "MountainCarContinuous-v0"),
    *("PointMaze_Medium_Diverse_GR-v3", "FingerSpin-v1", "Pendulum-v1", "InvertedPendulum-v5"),
]


@pytest.mark.parametrize("env_id", FAMILIES)
def test_a_cut_shows_the_last_observation_and_the_next_step_is_a_reset(env_id):
    """A copy that is not cut goes through the same observations; the reset ignores its action and pays nothing."""
    seeds, rng = [3, 77, 2**31 - 1], np.random.default_rng(0)
    cut, whole = make_envs(env_id, seeds, limit=5), make_envs(env_id, seeds)
    other = make_envs(env_id, seeds, limit=5)  # with other actions on the reset step
    np.testing.assert_array_equal(cut.obs, whole.obs)
    assert len({*map(tuple, cut.obs.tolist())}) == 3  # other seeds, other episodes
    for t in range(1, 9):
        actions = rng.uniform(-0.3, 0.3, (3, script.sizes(env_id)[1])).astype(np.float32)
        obs, rewards, done, truncated, valid = cut.step(actions)
        for a, b in zip((obs, rewards, done), other.step(actions if t != 6 else -actions), strict=False):
            np.testing.assert_array_equal(a, b)
        if t <= 5:
            same, paid, *_ = whole.step(actions)
            np.testing.assert_array_equal(obs, same)
            np.testing.assert_array_equal(rewards, paid)
            last = obs
        assert (done == (t == 5)).all() and (truncated == (t == 5)).all() and (valid == (t != 6)).all()
        assert obs.shape == (3, script.sizes(env_id)[0]) and obs.dtype == np.float32
        assert t != 6 or ((rewards == 0).all() and (obs != last).any(1).all())
    assert [length for _, length in cut.stats.episodes] == [5] * 3


@pytest.mark.parametrize("backend", ["envpool", "gymnasium"])
@pytest.mark.parametrize(("env_id", "limit"), [("InvertedPendulum-v5", 9), ("MountainCarContinuous-v0", 60)])
def test_episodes_are_counted_as_plain_bookkeeping_counts_them(backend, env_id, limit):
    if "Inverted" in env_id and backend == "gymnasium":
        pytest.importorskip("mujoco")
    envs = make_envs(env_id, [1, 2, 3, 4], limit, backend)
    step, said = envs.pool.step, []
    envs.pool.step = lambda actions: said.append(step(actions)) or said[-1]
    returns, lengths, episodes, before = np.zeros(4), np.zeros(4, int), [], np.zeros(4, bool)
    rng, ends = np.random.default_rng(0), collections.Counter()
    for _ in range(300):
        obs, rewards, done, truncated, valid = envs.step(rng.normal(0, 1, (4, 1)).astype(np.float32))
        raw, _, terminated, late, _ = said[-1]
        np.testing.assert_array_equal(obs, raw.astype(np.float32))
        np.testing.assert_array_equal(valid, ~before)
        np.testing.assert_array_equal(done, terminated | late)
        np.testing.assert_array_equal(truncated, late & ~terminated)
        assert (rewards[~valid] == 0).all() and not done[~valid].any()
        for i in np.flatnonzero(valid):
            returns[i], lengths[i] = returns[i] + rewards[i], lengths[i] + 1
            if done[i]:
                episodes.append((returns[i], lengths[i]))
                ends["cut" if truncated[i] else "end"] += 1
                assert truncated[i] == (lengths[i] == limit) or not truncated[i]
                returns[i], lengths[i] = 0, 0
        before = done
    assert ends["cut"] >= 3 and (ends["end"] >= 3 or "Car" in env_id), ends
    np.testing.assert_allclose(envs.stats.episodes, episodes, rtol=1e-6)
    scalars = envs.stats.scalars()
    names = ("charts/episodic_return", "charts/episodic_length", "charts/return_above_0")
    expected = [*np.mean(episodes, axis=0), np.mean([score > 0 for score, _ in episodes])]
    np.testing.assert_allclose([scalars[name] for name in names], expected, rtol=1e-6)
    assert envs.stats.episodes == [] and envs.stats.scalars().keys() <= {"charts/score"}


@pytest.mark.parametrize("env_id", ["HalfCheetah-v5", "PointMaze_Medium_Diverse_GR-v3", "Pendulum-v1"])
def test_actions_are_clipped_to_the_action_space(env_id):
    envs = [make_envs(env_id, [1, 2]) for _ in range(2)]
    rng, low, high = np.random.default_rng(0), envs[0].low, envs[0].high
    for _ in range(20):
        actions = rng.normal(0, 3, (2, script.sizes(env_id)[1])).astype(np.float32)
        for a, b in zip(envs[0].step(actions), envs[1].step(np.clip(actions, low, high)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.filterwarnings("ignore:.*out of date")
def test_the_same_time_limit_and_spaces_in_both_packages():
    gym_ids = [x for x in envpool.list_all_envs() if x in gym.registry and "/" not in x]
    compared = collections.Counter()
    for env_id in gym_ids:
        spec = gym.spec(env_id)
        family = str(spec.entry_point).split(":")[0].split(".")[2:3]
        if family and family[0] in ("mujoco", "classic_control") and isinstance(spec.max_episode_steps, int):
            assert envpool.make_spec(env_id).config.max_episode_steps == spec.max_episode_steps, env_id
            compared[family[0]] += 1
    assert compared["mujoco"] >= 20 and compared["classic_control"] >= 4, compared


def put_there(env: gym.Env, env_id: str, obs: np.ndarray) -> None:
    """Puts gymnasium's environment into the state that EnvPool's first observation is of."""
    env = env.unwrapped
    if env_id.startswith("Mountain"):
        env.state = obs.copy()
        return
    nq, nv = env.model.nq, env.model.nv
    hidden = {"HalfCheetah-v5": 1, "Hopper-v5": 1, "Walker2d-v5": 1, "Ant-v5": 2, "Swimmer-v5": 2}.get(env_id, 0)
    position = np.concatenate([np.zeros(hidden), obs[: nq - hidden]])  # where it stands pays nothing
    velocity = obs[nq - hidden :][:nv]
    if env_id.startswith("InvertedDouble"):  # position of the cart, sines, cosines, velocities
        position, velocity = np.array([obs[0], *np.arctan2(obs[1:3], obs[3:5])]), obs[5:8]
    env.set_state(position, velocity)


@pytest.mark.parametrize(
    ("env_id", "steps"),
    [
        *(("HalfCheetah-v5", 40), ("Hopper-v5", 40), ("Walker2d-v5", 40), ("Swimmer-v5", 200), ("Ant-v5", 20)),
        *(("InvertedPendulum-v5", 40), ("InvertedDoublePendulum-v5", 40), ("MountainCarContinuous-v0", 300)),
    ],
)
def test_envpool_and_gymnasium_pay_the_same_for_the_same_actions(env_id, steps):
    """From the same state. It can be known only at the start of an episode, and contacts make tiny differences grow."""
    pytest.importorskip("mujoco")
    for seed in range(5):
        env = gym.make(env_id)
        env.reset(seed=seed)
        pool = envpool.make(env_id, env_type="gymnasium", num_envs=1, num_threads=1, seed=seed)
        obs, _ = pool.reset()
        put_there(env, env_id, obs[0])
        rng = np.random.default_rng(seed)
        for _ in range(steps):
            action = rng.uniform(-0.7, 0.7, pool.action_space.shape).astype(pool.action_space.dtype)
            obs, rewards, terminated, _, _ = pool.step(action[None])
            other, reward, other_terminated, _, _ = env.step(action)
            np.testing.assert_allclose(obs[0], other, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(rewards[0], reward, rtol=1e-5, atol=1e-5)
            assert terminated[0] == other_terminated
            if other_terminated:
                break


def test_envpool_s_maze_is_that_of_gymnasium_robotics():
    """Same goal, same start: the same way, and a reward exactly within 0.45 of the goal."""
    pytest.importorskip("mujoco")
    pytest.importorskip("gymnasium_robotics")
    env_id, paid = "PointMaze_Medium_Diverse_GR-v3", 0
    env = gym.make(env_id)
    pool = envpool.make(env_id, env_type="gymnasium", num_envs=1, num_threads=1, seed=0)
    for seed in range(3):
        env.reset(seed=seed)
        obs, _ = pool.reset()
        start, goal = obs["observation"][0], obs["desired_goal"][0]
        env.unwrapped.goal = goal.copy()
        env.unwrapped.update_target_site_pos()
        env.unwrapped.point_env.set_state(start[:2], start[2:])
        rng = np.random.default_rng(seed)
        for _ in range(150):
            action = rng.uniform(-1, 1, 2).astype(np.float32)
            obs, rewards, _, _, _ = pool.step(action[None])
            other, reward, *_ = env.step(action)
            np.testing.assert_allclose(obs["observation"][0], other["observation"], atol=1e-5)
            near = np.linalg.norm(other["achieved_goal"] - other["desired_goal"]) <= 0.45
            assert rewards[0] == reward == near
            paid += reward
        flat = script.flat({key: value[None] for key, value in other.items()})
        np.testing.assert_allclose(script.flat(obs), flat, atol=1e-5)  # names in the same order


# ------------------------------------------------------------------------- Networks, distribution and statistics


def linear(network: torch.nn.Module) -> list[torch.nn.Linear]:
    return [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear)]


@pytest.mark.parametrize("heads", [1, 2])
def test_networks_equal_their_description(heads):
    torch.manual_seed(0)
    agent, rnd = (
        script.Agent(small_args(single_head=heads == 1, value_gain=0.5), 17, 6, CPU),
        script.RND("deeper-predictor", 4, 17, CPU),
    )
    x = torch.randn(5, 3, 17)
    mean, values = agent(x)
    assert mean.shape == (5, 3, 6) and values.shape == (5, 3, heads)
    for network, out in ((agent.policy, mean), (agent.value, values)):
        one, two, three = linear(network)
        hidden = torch.tanh(torch.tanh(x @ one.weight.T + one.bias) @ two.weight.T + two.bias)
        torch.testing.assert_close(out, hidden @ three.weight.T + three.bias)
        assert [layer.out_features for layer in (one, two)] == [64, 64]
    assert (agent.log_std == 0).all() and agent.log_std.shape == (6,) and agent.log_std.requires_grad

    target, predictor = linear(rnd.target), linear(rnd.predictor)
    assert [y.weight.shape for y in target] == [y.weight.shape for y in predictor[: len(target)]]
    assert len(predictor) == len(target) + 2 and rnd.target(x).shape == rnd.predictor(x).shape
    assert not any(p.requires_grad for p in rnd.target.parameters())
    assert all(p.requires_grad for p in rnd.predictor.parameters())
    gains = {id(linear(agent.policy)[-1]): 0.01, id(linear(agent.value)[-1]): 0.5}
    for layer in linear(agent) + target + predictor:
        w, gain = layer.weight.detach(), gains.get(id(layer), 2**0.5)
        w = w if w.shape[0] <= w.shape[1] else w.T
        torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w)), rtol=1e-4, atol=1e-4)
        assert (layer.bias == 0).all()


def test_the_seed_s_feature_net():
    """Three hidden layers of 256, two outputs, the same for both; PyTorch's own first weights."""
    torch.manual_seed(0)
    rnd = script.RND("feature-net", 4, 17, CPU)
    for network in (rnd.target, rnd.predictor):
        assert [tuple(y.weight.shape) for y in linear(network)] == [(256, 17), (256, 256), (256, 256), (2, 256)]
        kinds = [type(layer).__name__ for layer in network]
        assert kinds == ["Linear", "ReLU"] * 3 + ["Linear"]
        assert all(0 < y.bias.abs().max() <= y.in_features**-0.5 for y in linear(network))
    assert not any(p.requires_grad for p in rnd.target.parameters())
    seen = torch.randn(7, 5, 17)
    for net, share in (("feature-net", 1.0), ("deeper-predictor", 0.5)):  # the sum, or the mean
        error = script.novelty(rnd, seen, script.Args(rnd_net=net))
        torch.testing.assert_close(error, share * ((rnd.predictor(seen) - rnd.target(seen)) ** 2).sum(-1))


def log_density(x: torch.Tensor, mean: torch.Tensor, std: torch.Tensor) -> torch.Tensor:
    """Log of the Gaussian's density at actions x (..., A) -> (...), by its formula."""
    return (-(((x - mean) / std) ** 2) / 2 - std.log() - math.log(2 * math.pi) / 2).sum(-1)


def test_ratio_and_entropy_are_those_of_the_gaussian():
    """The KL that is logged, ratio - 1 - log ratio, and the entropy, against formulas and an integral."""
    torch.manual_seed(0)
    mean, std, actions = torch.randn(7, 3), torch.rand(3) + 0.5, torch.randn(7, 3)
    batch = {"actions": actions, "logprobs": torch.randn(7), "advantages": torch.randn(7)}
    batch |= {"values": torch.zeros(7, 2), "returns": torch.zeros(7, 2)}
    _, metrics = script.ppo_loss(Normal(mean, std), torch.zeros(7, 2), batch, script.Args())
    logratio = log_density(actions, mean, std) - batch["logprobs"]
    torch.testing.assert_close(metrics["approx_kl"], (logratio.exp() - 1 - logratio).mean())
    torch.testing.assert_close(metrics["clipfrac"], ((logratio.exp() - 1).abs() > 0.2).float().mean())
    x = torch.linspace(-30, 30, 60001, dtype=torch.float64)[:, None]
    logp = [log_density(x, torch.zeros(1), s[None].double()) for s in std]
    entropy = sum(torch.trapezoid(-p.exp() * p, x[:, 0]) for p in logp)
    torch.testing.assert_close(metrics["entropy"], entropy.float())


class Recorded(gym.Env):
    """Plays back observations and rewards of one environment, resets left out, as gymnasium's wrappers want them."""

    def __init__(self, obs, rewards, terminated, truncated, valid):
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, obs[0].shape, np.float64)
        self.action_space = gym.spaces.Box(-1, 1, (1,))
        self.data, self.t = (obs, rewards, terminated, truncated, valid), -1

    def reset(self, *, seed=None, options=None):
        self.t += 1
        assert self.t == 0 or not self.data[4][self.t - 1]
        return self.data[0][self.t], {}

    def step(self, action):
        self.t += 1
        _, rewards, terminated, truncated, valid = (x[self.t - 1] for x in self.data)
        assert valid
        return self.data[0][self.t], float(rewards), bool(terminated), bool(truncated), {}


def test_normalisers_equal_gymnasium_s_wrappers():
    """One environment, 200 steps, ends and cuts: to the last digit what CleanRL's chain of wrappers gives."""
    rng = np.random.default_rng(0)
    obs, rewards = rng.normal(3, 2, (201, 3)), rng.normal(1, 2, 200)
    obs[:, 2] = 5  # never changes
    terminated, truncated, valid = np.zeros((3, 200), bool)
    for t in range(200):
        valid[t] = t == 0 or not (terminated[t - 1] or truncated[t - 1])
        terminated[t] = valid[t] and rng.random() < 0.05
        truncated[t] = valid[t] and not terminated[t] and rng.random() < 0.05
    rewards[~valid] = 1e6
    env = gym.wrappers.NormalizeReward(
        gym.wrappers.NormalizeObservation(Recorded(obs, rewards, terminated, truncated, valid)), gamma=0.9
    )
    with float64():
        agent = script.Agent(small_args(num_envs=1), 3, 1, CPU)
        seen, paid, expected_paid = [], [], []
        expected = [env.reset()[0]]
        for t in range(200):
            if valid[t]:
                o, r, *_ = env.step(np.zeros(1))
            else:
                o, _ = env.reset()
            expected.append(o)
            expected_paid.append(r if valid[t] else None)
        for o in torch.from_numpy(obs)[:, None]:
            agent.obs_rms.update(o, torch.ones(1))
            seen.append(script.normalise_obs(o, agent.obs_rms)[0].numpy())
        for part in (slice(0, 77), slice(77, 200)):  # two rollouts
            columns = (torch.from_numpy(x[part])[:, None] for x in (rewards, terminated, valid))
            paid += script.normalise_rewards(agent, *columns, 0.9)[:, 0].tolist()
    np.testing.assert_allclose(seen, np.clip(expected, -10, 10), rtol=1e-6, atol=1e-9)
    for ours, theirs in zip(paid, expected_paid, strict=True):
        assert theirs is None or ours == pytest.approx(np.clip(theirs, -10, 10), rel=1e-6)
    assert valid.sum() < 190 and abs(np.array(paid)[valid]).max() == 10


def test_filters_and_moments_leave_resets_out():
    rng = np.random.default_rng(0)
    rewards, valid = rng.normal(0, 1, (30, 4)), rng.random((30, 4)) < 0.8
    terminated = (rng.random((30, 4)) < 0.2) & valid
    rewards[~valid] = np.nan  # or it would be seen
    with float64():
        moments = script.RunningMoments((), CPU)
        filtered, state = script.reward_filter(*map(torch.from_numpy, (rewards, valid)), 0.9, torch.zeros(4))
        expected = plain_filter(rewards, valid, 0.9, np.zeros(4))
        np.testing.assert_allclose(filtered, expected)
        np.testing.assert_allclose(state, expected[-1])
        moments.update(filtered.flatten(), torch.from_numpy(valid.flatten()))
        np.testing.assert_allclose([moments.mean, moments.var, moments.count], plain_moments([expected[valid]]))

        agent = script.Agent(small_args(), 2, 1, CPU)
        columns = map(torch.from_numpy, (np.where(valid, rewards, 1e9), terminated, valid))
        script.normalise_rewards(agent, *columns, 0.9)
        state, rows = np.zeros(4), []
        for t, n in itertools.product(range(30), range(4)):
            if valid[t, n]:
                state[n] = rewards[t, n] + (0 if terminated[t, n] else 0.9 * state[n])
                rows.append(state[n])
        np.testing.assert_allclose(agent.filtered, state)
        rms = agent.return_rms
        np.testing.assert_allclose([rms.mean, rms.var, rms.count], plain_moments([np.array(rows)]), rtol=1e-9)


# --------------------------------------------------------------------------------------------------- Training


FAKE = "PointMassEasy-v1"  # the sizes of its observations and actions, 4 and 2


class FakeEnvs:
    """Observations, rewards and ends at random, resets that hold garbage; remembers what happened."""

    def __init__(self, args: script.Args, seeds: list[int], backend: str = "envpool"):
        self.N, (self.D, A), self.rng = args.num_envs, script.sizes(args.env_id), np.random.default_rng(7)
        self.low, self.high = -np.ones(A), np.ones(A)
        self.shown, self.steps, self.done = [], [], np.zeros(self.N, bool)
        self.stats = script.EpisodeStats(self.N, args.solved_score)
        self.show()
        FakeEnvs.last = self

    def show(self) -> None:
        self.obs = self.rng.normal(2, 3, (self.N, self.D))
        self.shown.append(self.obs)

    def reset(self) -> None:
        self.done[:] = False
        self.steps.append(None)
        self.show()

    def step(self, actions):
        valid = ~self.done
        rewards = self.rng.normal(0.5, 1, self.N)
        rewards[~valid] = 1e6
        terminated, truncated = (self.rng.random((2, self.N)) < 0.12) & valid
        truncated &= ~terminated
        self.done = terminated | truncated
        self.steps.append((actions.copy(), rewards, self.done, truncated, valid))
        self.show()
        return self.obs, rewards, self.done, truncated, valid


@pytest.fixture
def fake_envs(monkeypatch):
    monkeypatch.setattr(script, "ContinuousEnvs", FakeEnvs)


@pytest.fixture
def draws(monkeypatch):
    """The orders in which training went through its samples."""
    seen, randperm = [], torch.randperm
    monkeypatch.setattr(torch, "randperm", lambda *args, **kwargs: seen.append(randperm(*args, **kwargs)) or seen[-1])
    return seen


def transcription(args: script.Args, envs: FakeEnvs, orders: list, rollouts: int) -> dict[str, torch.Tensor]:
    """The same run in plain loops over steps and samples. Returns the weights."""
    T, N, M, H = args.num_steps, args.num_envs, args.num_minibatches, 1 if args.single_head else 2
    sums = args.rnd_net == "feature-net"
    torch.manual_seed(args.seed)
    agent, rnd = script.Agent(args, 4, 2, CPU), script.RND(args.rnd_net, N, 4, CPU)
    adams = [torch.optim.Adam(x.parameters(), args.learning_rate, eps=1e-5) for x in (agent, rnd.predictor)]
    orders, offset, rnd_rows = iter(orders), 0, [np.zeros((0, 4))]
    if args.obs_norm == "frozen" and args.int_coef:
        while sum(map(len, rnd_rows)) < args.frozen_obs_norm_steps:  # these steps were a random agent's
            rnd_rows.append(envs.shown[offset + 1][envs.steps[offset][4]])
            offset += 1
        offset += 1  # the reset

    def seen_by_agent() -> torch.Tensor:
        mean, var, _ = plain_moments(agent_rows)
        return torch.from_numpy(np.clip((agent_rows[-1] - mean) / np.sqrt(var + 1e-8), -10, 10))

    agent_rows = [envs.shown[offset]]
    inputs = [seen_by_agent()]  # (N, 4) each
    f_ext, f_int, rows_ext, rows_int = np.zeros(N), np.zeros(N), [], []
    for r in range(rollouts):
        begin = offset + r * T
        shown = np.stack(envs.shown[begin : begin + T + 1])
        actions, rewards, dones, truncated, valid = map(np.stack, zip(*envs.steps[begin : begin + T], strict=True))
        inputs = inputs[-1:]
        paid = rewards.copy()
        for t in range(T):
            agent_rows.append(shown[t + 1])
            inputs.append(seen_by_agent())
            for n in np.flatnonzero(valid[t]):
                end = dones[t, n] and not truncated[t, n]
                f_ext[n] = rewards[t, n] + args.gamma * f_ext[n] * (not end)
                rows_ext.append(f_ext[n])
            if args.reward_norm:
                _, var, _ = plain_moments([np.array(rows_ext)])
                paid[t] = np.clip(rewards[t] / np.sqrt(var + 1e-8), -10, 10)
        x = torch.stack(inputs)  # (T+1, N, 4)
        with torch.no_grad():
            mean, values = agent(x)
            std = agent.log_std.exp()
            old = log_density(torch.from_numpy(actions), mean[:-1], std)  # (T, N)

        intrinsic, y = np.zeros((T, N)), torch.zeros(T, N, 4)
        if args.int_coef:
            if args.obs_norm == "running":
                rnd_rows.append(shown[1:][valid])
            m, var, _ = plain_moments(rnd_rows)
            y = torch.from_numpy(np.clip((shown[1:] - m) / np.sqrt(var), -5, 5))
            with torch.no_grad():
                squares = (rnd.predictor(y) - rnd.target(y)) ** 2
            intrinsic = (squares.sum(-1) if sums else squares.mean(-1)).numpy().copy()
            if args.int_norm:
                for t, n in itertools.product(range(T), range(N)):
                    if valid[t, n]:
                        f_int[n] = args.int_gamma * f_int[n] + intrinsic[t, n]
                        rows_int.append(f_int[n])
                intrinsic /= np.sqrt(plain_moments([np.array(rows_int)])[1])
            if args.int_clip:
                intrinsic = np.minimum(intrinsic, args.int_clip)

        streams = [(intrinsic, args.int_gamma, args.int_coef), (paid, args.gamma, args.ext_coef)]
        if H == 1:
            streams = [(args.int_coef * intrinsic + args.ext_coef * paid, args.gamma, 1.0)]
        total, returns = np.zeros((T, N)), np.zeros((T, N, H))
        for head, (reward, gamma, coef) in enumerate(streams):
            v, extrinsic = values[..., head].numpy(), head == H - 1
            for n in range(N):
                steps = [t for t in range(T) if valid[t, n]]
                for i, first in enumerate(steps):
                    advantage, weight = 0.0, 1.0
                    for j, t in enumerate(steps[i:], i):
                        end = dones[t, n] and (extrinsic or args.int_episodic)
                        following = v[steps[j + 1] if j + 1 < len(steps) else T, n]
                        if end:  # worth nothing, or what the last observation of the episode promises
                            following = v[t + 1, n] * (extrinsic and args.bootstrap_truncated and truncated[t, n])
                        advantage += weight * (reward[t, n] + gamma * following - v[t, n])
                        weight *= gamma * args.gae_lambda
                        if end:
                            break
                    returns[first, n, head] = advantage + v[first, n]
                    total[first, n] += coef * advantage

        samples = [(t, n) for t in range(T) for n in range(N) if valid[t, n]]
        rate = args.learning_rate * (1 - r * T * N / args.total_timesteps)
        adams[0].param_groups[0]["lr"] = rate if args.anneal_lr else args.learning_rate
        adams[1].param_groups[0]["lr"] = args.predictor_learning_rate
        for epoch in range(args.update_epochs):
            order = next(orders).tolist()
            assert sorted(order) == list(range(len(samples)))
            bounds = np.cumsum([0] + [len(order) // M + (k < len(order) % M) for k in range(M)])
            for a, b in itertools.pairwise(bounds):
                batch = [samples[k] for k in order[a:b]]
                advantages = np.array([total[at] for at in batch])
                if args.norm_adv:
                    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
                loss, predictor_loss = 0.0, 0.0
                for (t, n), advantage in zip(batch, advantages, strict=True):
                    mean, new = agent(x[t, n])
                    ratio = (log_density(torch.from_numpy(actions[t, n]), mean, agent.log_std.exp()) - old[t, n]).exp()
                    bounded = ratio.clamp(1 - args.clip_coef, 1 + args.clip_coef)
                    loss = loss - torch.minimum(ratio * advantage, bounded * advantage)
                    loss = loss - args.ent_coef * (agent.log_std + 0.5 * math.log(2 * math.pi * math.e)).sum()
                    for head in range(H):
                        if H == 1 or (args.int_coef, args.ext_coef)[head] > 0:
                            error, was = (new[head] - returns[t, n, head]) ** 2, values[t, n, head]
                            if args.clip_vloss:
                                near = was + (new[head] - was).clamp(-args.clip_coef, args.clip_coef)
                                error = torch.maximum(error, (near - returns[t, n, head]) ** 2)
                            loss = loss + args.vf_coef * 0.5 * error
                for t, n in batch:
                    squares = (rnd.predictor(y[t, n]) - rnd.target(y[t, n])) ** 2
                    predictor_loss = predictor_loss + (squares.sum() if sums else squares.mean())
                gradients = torch.autograd.grad(loss / len(batch), [*agent.parameters()])
                if args.max_grad_norm is not None:
                    norm = torch.sqrt(sum((g**2).sum() for g in gradients))
                    gradients = [g * min(1.0, args.max_grad_norm / (norm + 1e-6)) for g in gradients]
                for p, g in zip(agent.parameters(), gradients, strict=True):
                    p.grad = g
                adams[0].step()
                if args.int_coef and epoch == 0:
                    adams[1].zero_grad()
                    (predictor_loss / len(batch)).backward()
                    adams[1].step()
    result = {f"agent.{k}": v.detach() for k, v in agent.named_parameters()}
    return result | {f"rnd.{k}": v for k, v in rnd.state_dict().items() if k.startswith("predictor")}


SEED_001 = script.PRESETS["seed-001"]
FLAGS = [
    {},
    {"int_coef": 0.0},
    {"ext_coef": 0.0, "reward_norm": False},
    {**SEED_001, "frozen_obs_norm_steps": 30, "int_clip": 0.01},
    {"int_episodic": True, "predictor_learning_rate": 1e-3, "bootstrap_truncated": False, "value_gain": 1.0},
    {"single_head": True, "clip_vloss": False},
    {"norm_adv": False, "max_grad_norm": None, "anneal_lr": False},
    {"obs_norm": "frozen", "frozen_obs_norm_steps": 30, "int_norm": False, "rnd_net": "feature-net"},
    {
        "gamma": 0.9,
        "gae_lambda": 0.5,
        "int_gamma": 0.8,
        "vf_coef": 0.7,
        "clip_coef": 0.02,
        "ent_coef": 0.1,
        "int_clip": 0.2,
    },
    {"num_envs": 1, "num_steps": 48, "num_minibatches": 5},
]


@pytest.mark.parametrize("changes", FLAGS, ids=lambda changes: "-".join(changes) or "default")
def test_a_run_equals_a_plain_transcription(fake_envs, draws, tmp_path, changes):
    """Three rollouts in float64."""
    sizes = {"total_timesteps": 3 * 4 * 12, "num_steps": 12}
    args = small_args(**sizes | {"env_id": FAKE, "ent_coef": 0.01} | changes)
    with float64():
        state = torch.load(train_here(script, args, tmp_path) / "latest.pt", weights_only=True)
        assert state["step"] == args.total_timesteps
        expected = transcription(args, FakeEnvs.last, draws, rollouts=3)
        torch.manual_seed(args.seed)
        parts = {"agent": script.Agent(args, 4, 2, CPU), "rnd": script.RND(args.rnd_net, args.num_envs, 4, CPU)}
    for key, value in expected.items():
        part, name = key.split(".", 1)
        way = (value - parts[part].state_dict()[name]).norm()
        assert (way > 0.1 * args.learning_rate) == (part == "agent" or args.int_coef > 0), key
        # Adam makes a large step of a gradient that rounding alone keeps from zero
        assert (state[part][name] - value).norm() <= 1e-4 * way, key


def test_a_rollout_holds_what_happened(fake_envs):
    torch.manual_seed(0)
    args = small_args(env_id=FAKE, reward_norm=False)
    envs, agent = FakeEnvs(args, []), script.Agent(args, 4, 2, CPU)
    torch.nn.init.normal_(agent.log_std)
    rollout = script.empty_rollout(8, 4, 4, 2, 2, CPU)
    rollout.obs[-1] = torch.from_numpy(envs.obs)
    for k in (0, 8):
        script.collect(envs, agent, rollout, args)
        np.testing.assert_allclose(rollout.obs, np.stack(envs.shown[k : k + 9]), rtol=1e-6)
        actions, rewards, dones, truncated, valid = map(np.stack, zip(*envs.steps[k : k + 8], strict=True))
        for name in ("actions", "rewards", "dones", "truncated", "valid"):
            np.testing.assert_allclose(getattr(rollout, name), locals()[name], rtol=1e-6, err_msg=name)
        mean, values = agent(rollout.inputs)
        torch.testing.assert_close(rollout.values, values.detach())
        logprobs = log_density(rollout.actions, mean[:-1], agent.log_std.exp())
        torch.testing.assert_close(rollout.logprobs, logprobs.detach())
    mean, var, count = plain_moments(envs.shown[1:])  # the very first is train's to count
    np.testing.assert_allclose(agent.obs_rms.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(agent.obs_rms.var, var, rtol=1e-5)


def test_actions_have_the_policy_s_mean_and_std(fake_envs):
    torch.manual_seed(0)
    args = small_args(env_id=FAKE, num_envs=50, num_steps=200)
    envs, agent = FakeEnvs(args, []), script.Agent(args, 4, 2, CPU)
    agent.log_std.data = torch.tensor([-1.0, 0.5])
    rollout = script.empty_rollout(200, 50, 4, 2, 2, CPU)
    script.collect(envs, agent, rollout, args)
    deviations = (rollout.actions - agent(rollout.inputs)[0][:-1]).flatten(0, 1)
    np.testing.assert_allclose(deviations.mean(0).detach(), 0, atol=0.06)
    np.testing.assert_allclose(deviations.std(0).detach(), agent.log_std.exp().detach(), rtol=0.03)


def test_same_seed_same_scalars_and_another_seed_others_and_the_target_stays(tmp_path):
    runs = [
        train_here(script, small_args(seed=s, total_timesteps=320), tmp_path / f"{k}") for k, s in enumerate((1, 1, 2))
    ]
    scalars = [{k: v for k, v in read_scalars(run).items() if k != "charts/SPS"} for run in runs]
    assert_same(scalars[0], scalars[1])
    assert scalars[0]["losses/entropy"] != scalars[2]["losses/entropy"]
    torch.manual_seed(1)
    agent, rnd = script.Agent(small_args(), 4, 1, CPU), script.RND("deeper-predictor", 4, 4, CPU)
    state = torch.load(runs[0] / "latest.pt", weights_only=True)
    for part, network in (("agent", agent), ("rnd", rnd)):
        for key, value in network.state_dict().items():
            assert torch.equal(value, state[part][key]) == key.startswith("target"), key


def test_without_the_bonus_it_is_ppo(fake_envs, tmp_path):
    """What RND would see, or how the intrinsic stream is set, makes no difference to policy and extrinsic value."""
    states = []
    for k, changes in enumerate(({}, {"int_gamma": 0.5, "obs_norm": "frozen", "predictor_learning_rate": 0.1})):
        args = small_args(int_coef=0.0, total_timesteps=320, **changes)
        states.append(torch.load(train_here(script, args, tmp_path / f"{k}") / "latest.pt", weights_only=True))
    assert_same(states[0]["agent"], states[1]["agent"])
    assert not any(name.startswith("losses/predictor") for name in read_scalars(tmp_path / "0"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run of 100 rollouts. Nobody changes it."""
    return train_here(script, small_args(total_timesteps=3200, update_epochs=1), tmp_path_factory.mktemp("base"))


@pytest.fixture
def copy_of_base(base, tmp_path):
    """A copy of that run, which a test may change: the checkpoint's path, what it holds, flags of 32 steps more."""
    folder = tmp_path / "copy" / base.name
    folder.mkdir(parents=True)
    (folder / "latest.pt").write_bytes((base / "latest.pt").read_bytes())
    path, saved = script.load_checkpoint(str(folder))
    return path, saved, script.Args(**saved["args"] | {"total_timesteps": 3232})


@pytest.mark.parametrize("changes", [{}, {"preset": "seed-001", **SEED_001, "max_grad_norm": None}], ids=str)
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
    # an episode of each environment begins, and the agent has seen its first observation
    assert after["agent"]["obs_rms.count"] == before["agent"]["obs_rms.count"] + 4
    assert_same(before, after, but=("seconds", "args", "lr", "obs_rms.mean", "obs_rms.var", "obs_rms.count"))
    for name in ("mean", "var", "count"):
        assert_same(before["rnd"][f"obs_rms.{name}"], after["rnd"][f"obs_rms.{name}"])
    assert changes or len(before["stats"]["recent"]) == 100


def test_the_learning_rate_falls_and_a_resume_takes_the_one_that_is_asked_for(copy_of_base, tmp_path):
    path, saved, args = copy_of_base
    run_dir = train_here(script, dataclasses.replace(args, learning_rate=1e-2), path.parents[1], path, saved)
    assert read_scalars(run_dir)["charts/learning_rate"] == [(3232, pytest.approx(1e-2 * (1 - 3200 / 3232)))]
    run_dir = train_here(script, small_args(total_timesteps=96), tmp_path / "other")
    rates = [value for _, value in read_scalars(run_dir)["charts/learning_rate"]]
    np.testing.assert_allclose(rates, [3e-4, 2e-4, 1e-4], rtol=1e-5)


def test_a_nan_stops_the_run_and_names_itself(copy_of_base, fake_envs, tmp_path, monkeypatch):
    path, saved, args = copy_of_base
    before = path.read_bytes()
    with pytest.raises(FloatingPointError, match="at step 32: stopped; there is no checkpoint yet"):
        train_here(script, small_args(learning_rate=1e30), tmp_path / "first")
    monkeypatch.setattr(FakeEnvs, "show", lambda self: setattr(self, "obs", np.full((self.N, self.D), np.nan)))
    said = r"\w+/\w+ is nan at step 3,232: stopped; the last good checkpoint is .*/latest.pt"
    with pytest.raises(FloatingPointError, match=said):
        train_here(script, args, path.parents[1], path, saved)
    assert path.read_bytes() == before and not [*path.parent.glob("*.tmp")]


class Winning(FakeEnvs):
    """An episode with a return of 92 ends at each step, 8 in a rollout."""

    def step(self, actions):
        self.stats.waiting[:] = False
        self.stats.episodes.append((92.0, 9))
        return super().step(actions)


def test_it_stops_when_solved_and_the_random_agent_is_not_scored(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "ContinuousEnvs", Winning)
    train_here(script, small_args(total_timesteps=3200, solved_score=91.0), tmp_path / "solved")
    assert "\nsolved: return 92.0, above 0: 100%, 416 steps in " in capsys.readouterr().out
    args = small_args(obs_norm="frozen", frozen_obs_norm_steps=100)
    run_dir = train_here(script, args, tmp_path / "warm")
    assert torch.load(run_dir / "latest.pt", weights_only=True)["stats"]["recent"] == [92.0] * 8
    played = np.stack([step[0] for step in FakeEnvs.last.steps[:20]])
    assert played.min() < -0.9 and played.max() > 0.9 and abs(played.mean()) < 0.3 and abs(played).max() <= 1


def test_a_warm_up_that_was_cut_short_goes_on_with_the_next_resume(tmp_path, monkeypatch, capsys):
    cut_a_warm_up_short(script, script.ContinuousEnvs, SMALL, tmp_path, monkeypatch, capsys)


# ------------------------------------------------------------------------------------ What the user was promised


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env-id", "HalfCheeta"], "did you mean HalfCheetah-v5"),
        (["--env-id", "HalfCheetah-v2"], "did you mean HalfCheetah-v5"),
        (["--env-id", "CartpoleSwingupSpars"], "CartpoleSwingupSparse-v1"),
        (["--env-id", "CartPole-v1"], "CartPole-v1 has no continuous actions"),
        (["--env-id", "CarRacing"], "CarRacing-v3 has no continuous actions, or shows pictures"),
        (["--env-id", "qwertyuiop"], "no such environment; EnvPool does not have it"),
        (["--num-envs", 0], "--num-envs 0: must be at least 1"),
        (["--seed", 10**20], "--seed 100000000000000000000: must be at least 0 and below 2^63"),
        (["--num-steps", 0], "--num-steps 0: must be at least 1"),
        (["--num-minibatches", 0], "--num-minibatches 0: must be at least 1"),
        (["--num-minibatches", 1025], "--num-minibatches 1025: must be at most 1024, half of the steps"),
        (["--num-envs", 1, "--num-steps", 1], "must be at most 0, half of the steps in a rollout"),
        (["--update-epochs", 0], "--update-epochs 0: must be at least 1"),
        (["--frozen-obs-norm-steps", 0], "--frozen-obs-norm-steps 0: must be at least 1"),
        (["--gamma", 1.5], "--gamma 1.5: must be in [0, 1]"),
        (["--int-gamma", -0.1], "--int-gamma -0.1: must be in [0, 1]"),
        (["--gae-lambda", "nan"], "--gae-lambda nan: must be in [0, 1]"),
        (["--predictor-learning-rate", 0], "--predictor-learning-rate 0.0: must be a positive number"),
        (["--learning-rate", 0], "--learning-rate 0.0: must be a positive number"),
        (["--int-clip", 0], "--int-clip 0.0: must be a positive number"),
        (["--ext-coef", -1], "--ext-coef -1.0: must be at least 0"),
        (["--solved-score", "nan"], "--solved-score nan: must be a number"),
        (["--total-timesteps", 0], "--total-timesteps 0.0: must be at least one rollout, 2048 steps"),
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


def test_a_preset_puts_other_defaults_and_flags_beside_it_stand(copy_of_base, capsys):
    args, *_ = script.parse(["--preset", "seed-001", "--int-clip", "0.5"])
    changed = {key: value for key, value in vars(args).items() if value != getattr(script.Args(), key)}
    assert changed == {**SEED_001, "preset": "seed-001", "int_clip": 0.5}
    path = copy_of_base[0]
    status, _, errors = call_main(script, capsys, "--resume", path, "--preset", "seed-001")
    assert status == 2 and errors.count("\n") == 1 and "is of a run with --preset default" in errors


def test_resuming_with_other_flags(copy_of_base, capsys, tmp_path):
    """Another architecture, a damaged file, nothing left to do: one line. Other flags: they are named."""
    path, _, _ = copy_of_base
    before = path.read_bytes()
    for flags, message in [
        (["--rnd-net", "feature-net", "--total-timesteps", 3264], "does not fit script and flags (size mismatch for "),
        (["--single-head", "--total-timesteps", 3264], "does not fit script and flags (size mismatch for value.4.bias"),
        (["--env-id", "Hopper", "--total-timesteps", 3264], "does not fit script and flags (size mismatch for "),
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
    flags = ["--num-envs", 6, "--env-id", "InvertedPendulum-v4", "--total-timesteps", 3248]
    flags += ["--runs-dir", tmp_path / "runs"]
    status, out, errors = call_main(script, capsys, "--resume", path, *flags)
    assert status == 0 and "changed      --num-envs from 4 to 6\n" in out, errors
    assert "changed      --env-id from InvertedPendulum-v5 to InvertedPendulum-v4\n" in out
    assert torch.load(only_run(tmp_path) / "latest.pt", weights_only=True)["step"] == 3248
    assert path.read_bytes() == before


@pytest.mark.parametrize("env_id", ["InvertedPendulum", "MountainCarContinuous"])
def test_a_run_as_a_user_sees_it(tmp_path, capsys, monkeypatch, env_id):
    """Trains in a process of its own; then, in this one, resumes and evaluates."""
    out = run_script(NAME, *SMALL, "--env-id", env_id, "--total-timesteps", 1280, cwd=tmp_path)
    assert out.returncode == 0 and out.stderr == "", out.stderr
    run_dir, full = only_run(tmp_path), script.resolve_env_id(env_id)
    assert run_dir.name.startswith(f"{full}__ppo_rnd_continuous__1__")
    names = {p.name.split(".")[0] for p in run_dir.iterdir()}
    assert names <= {"events", "latest", "best", "lock", "ppo_rnd_continuous"}
    lines = out.stdout.splitlines()
    for word in ("device", f"environment  {full} x 4", "parameters", "rollout", "folder"):
        assert any(line.startswith(word) for line in lines), word
    assert lines[-1].startswith("return ") and ", 1,280 steps in 00:" in lines[-1] and lines[-1].endswith(run_dir.name)

    scalars = read_scalars(run_dir)
    losses = "policy_loss value_loss value_loss_int value_loss_ext entropy approx_kl clipfrac predictor_loss grad_norm"
    expected = {f"losses/{name}" for name in losses.split()} | {"charts/SPS", "charts/learning_rate"}
    expected |= {f"losses/{x}{suffix}" for x in ("explained_variance", "advantage_rms") for suffix in ("_int", "_ext")}
    expected |= {"charts/action_std"}
    expected |= {"rnd/intrinsic_reward", "rnd/intrinsic_return_std"}
    episodes = {f"charts/{name}" for name in ("episodic_return", "episodic_length", "return_above_0")}
    if env_id == "InvertedPendulum" or episodes & set(scalars):  # of the car, perhaps no episode has ended
        expected |= episodes
    assert set(scalars) - {"charts/score"} == expected
    assert [step for step, _ in scalars["losses/entropy"]] == list(range(32, 1281, 32))

    monkeypatch.chdir(tmp_path)
    status, out, errors = call_main(script, capsys, "--resume", run_dir, "--total-timesteps", "1.6e3")
    assert status == 0 and ", 1,600 steps in 00:" in out.splitlines()[-1], errors
    assert [step for step, _ in read_scalars(run_dir)["losses/entropy"]] == list(range(32, 1601, 32))
    status, out, errors = call_main(script, capsys, "--evaluate", run_dir, "--eval-episodes", 3)
    assert status == 0 and errors == ""
    first, last = out.splitlines()
    assert f": 3 episodes of {full} in " in first
    assert last.startswith("return ") and "(mean, standard error), above 0: " in last and ", length " in last


def test_where_gymnasium_has_nothing_envpool_evaluates_and_there_is_no_film(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_dir = train_here(script, small_args(env_id="CartpoleSwingupSparse-v1"), tmp_path / "runs")
    status, out, _ = call_main(script, capsys, "--evaluate", run_dir, "--eval-episodes", 2)
    assert status == 0 and "in envpool\n" in out and ", length 1000.0" in out
    status, _, errors = call_main(script, capsys, "--evaluate", run_dir, "--capture-video")
    assert status == 2 and "no film: gymnasium does not have CartpoleSwingupSparse-v1" in errors


def test_a_film_has_a_picture_a_step(tmp_path, capsys):
    """As many pictures as steps. Skipped where nothing draws."""
    pytest.importorskip("mujoco")
    run_dir = train_here(script, small_args(), tmp_path / "runs")
    status, out, errors = call_main(script, capsys, "--evaluate", run_dir, "--eval-episodes", 1, "--capture-video")
    if status == 2 and "no film: nothing draws here" in errors:
        pytest.skip(errors)
    assert status == 0, errors
    (video,) = (run_dir / "videos").iterdir()
    import imageio

    frames = imageio.mimread(video, memtest=False)
    assert len(frames) == int(out.splitlines()[1].split(", ")[1].split()[0]) and frames[0].shape[2] == 3


def test_the_mean_is_played_if_that_is_asked_for(base, capsys, monkeypatch):
    """Then no action is drawn; without the flag one is at every step."""
    draws, normal = [], torch.normal
    monkeypatch.setattr(torch, "normal", lambda *args: draws.append(args) or normal(*args))
    for flags, drawn in (["--deterministic"], False), ([], True):
        assert call_main(script, capsys, "--evaluate", base, "--eval-episodes", 1, *flags)[0] == 0
        assert bool(draws) == drawn
    std = torch.load(base / "latest.pt", weights_only=True)["agent"]["log_std"].exp()
    assert all(torch.equal(given, std) for _, given in draws)


def test_a_saved_agent_plays_as_it_did_in_training(base, capsys, monkeypatch):
    """What it sees in an evaluation is normalised with the statistics of the checkpoint."""
    seen, normalise = [], script.normalise_obs
    monkeypatch.setattr(script, "normalise_obs", lambda obs, rms: seen.append((obs, rms)) or normalise(obs, rms))
    assert call_main(script, capsys, "--evaluate", base, "--eval-episodes", 1)[0] == 0
    state = torch.load(base / "latest.pt", weights_only=True)["agent"]
    for _, rms in seen:
        assert_same(dict(rms.state_dict()), {key: state[f"obs_rms.{key}"] for key in ("mean", "var", "count")})


@pytest.mark.learning
def test_it_balances_a_pole(tmp_path):
    """In about a minute; then it does so in gymnasium too."""
    flags = ["--env-id", "InvertedPendulum", "--total-timesteps", "3e5", "--solved-score", "900", "--int-coef", 0]
    out = run_script(NAME, *flags, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1].startswith("solved: return 9")
    played = run_script(NAME, "--evaluate", only_run(tmp_path), "--eval-episodes", 20, cwd=tmp_path)
    assert float(played.stdout.splitlines()[-1].split()[1]) > 800
