"""dqn_rnd_atari.py: backups, losses, the memory, the bonus, one update by a plain transcription, whole runs."""

import dataclasses
import itertools
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CPU,
    AtariPool,
    PlainAdam,
    assert_same,
    call_main,
    float64,
    frame_numbers,
    only_run,
    read_scalars,
    run_script,
    spy,
    train_here,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import dqn_rnd_atari as script

N = 4
SMALL = {"env_id": "MontezumaRevenge-v5", "obs": "ram", "num_envs": N, "num_steps": 4, "batch_size": 8}
SMALL |= {"buffer_size": 160, "learning_starts": 32, "total_timesteps": 96, "log_interval": 16, "target_every": 16}
SMALL |= {"num_quantiles": 3, "num_acting_quantiles": 2, "checkpoint_interval": 1e6}
BACKUPS = ["max", "double", "softmax", "soft", "munchausen"]


def small_args(**changes) -> script.Args:
    """A run of six iterations on RAM; learning starts after two."""
    return script.Args(**SMALL | changes)


# ------------------------------------------------------------------------------------- Backups on the toy chain


def fixed_point(backup: str, length: int, alpha: float = 0.05, sweeps: int = 5000, coef: float = 0.9) -> torch.Tensor:
    """Values (length, 6) where the backup leaves a chain as it is.

    Action 0 goes on, the others stay. Going on from the last state is paid 1 and ends the episode; gamma is 0.99.
    """
    q = torch.zeros((length, 6), dtype=torch.float64)
    args = script.Args(backup=backup, single_head=True)
    for _ in range(sweeps):
        v = script.next_value(q[:, None, None], q, alpha, args)[:, 0, 0]
        new = (0.99 * v)[:, None].repeat(1, 6)
        new[:, 0] = torch.cat([0.99 * v[1:], torch.ones(1, dtype=torch.float64)])
        if backup == "munchausen":
            for a in range(6):
                new[:, a] += script.munchausen_bonus(q, torch.full((length,), a), alpha, coef, floor=-1e9)
        q = new
    return q


def steps_needed(q: torch.Tensor, alpha: float) -> float:
    """How many steps the softmax policy takes to the end, on average."""
    return float((1 / (q / alpha).softmax(1)[:, 0]).sum())


@pytest.mark.parametrize("backup", ["max", "double"])
def test_greedy_backups_give_the_discounted_way_to_the_end(backup):
    q = fixed_point(backup, 20)
    torch.testing.assert_close(q.max(1).values, 0.99 ** torch.arange(19, -1, -1, dtype=torch.float64))
    assert (q.argmax(1) == 0).all()


@pytest.mark.parametrize(("length", "steps"), [(5, 18), (20, 78), (60, 283)])
def test_softmax_backup_gets_to_the_end(length, steps):
    """Expected steps of the softmax policy; an entropy of reversed sign would need 8, 33 and 471."""
    assert abs(steps_needed(fixed_point("softmax", length), 0.05) - steps) < 1


def test_soft_backup_is_paid_for_entropy_and_so_stays():
    """The sign of the entropy: plus. At alpha = 0.05 it is worth more than the reward, and the agent never ends."""
    q = fixed_point("soft", 5)
    v = 0.05 * (q / 0.05).logsumexp(1)
    assert 0.05 * np.log(5) / 0.01 < v.max() < 0.05 * np.log(6) / 0.01  # about 8 to 9: that of staying for ever
    assert steps_needed(q, 0.05) > 1e6
    small = fixed_point("soft", 5, alpha=0.001)
    assert steps_needed(small, 0.001) < 7


def test_munchausen_backup_is_soft_with_a_smaller_temperature():
    """Without the clip its V is that of soft Q-learning with (1 - coef) * alpha (Vieillard et al. 2020, theorem 1)."""
    q, soft = fixed_point("munchausen", 8, 0.05, coef=0.8), fixed_point("soft", 8, 0.01)
    torch.testing.assert_close(0.05 * (q / 0.05).logsumexp(1), 0.01 * (soft / 0.01).logsumexp(1))
    torch.testing.assert_close((q / 0.05).softmax(1), (soft / 0.01).softmax(1))


def test_backups_of_quantiles_equal_loops():
    torch.manual_seed(0)
    z, q = torch.randn(5, 3, 2, 4), torch.randn(5, 4)
    for name, b, k, h in itertools.product(BACKUPS, range(5), range(3), range(2)):
        pi = np.exp(q[b].numpy() / 0.5) / np.exp(q[b].numpy() / 0.5).sum()
        mean = float((pi * z[b, k, h].numpy()).sum())
        bonus = -0.5 * float((pi * np.log(pi)).sum()) * (h == 1)
        expected = dict.fromkeys(("max", "double"), z[b, k, h, q[b].argmax()]) | {"softmax": mean}
        found = script.next_value(z, q, 0.5, script.Args(backup=name))[b, k, h]
        assert abs(float(found) - float(expected.get(name, mean + bonus))) < 1e-6


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 2.0), (0.3, 0.5)])
def test_soft_value_of_two_streams_is_that_of_their_sum(weights):
    """Whatever they weigh: int_coef V_int + ext_coef V_ext = alpha logsumexp of the total value / alpha."""
    torch.manual_seed(0)
    args = script.Args(backup="soft", int_coef=weights[0], ext_coef=weights[1])
    z = torch.randn(5, 1, 2, 4)
    q = script.total_value(z, args)
    v = script.next_value(z, q, 0.3, args)[:, 0]
    torch.testing.assert_close(v @ torch.tensor(weights), 0.3 * (q / 0.3).logsumexp(1))


# ------------------------------------------------------------------------------------------ Policies, schedules


def test_boltzmann_and_greedy_probabilities():
    q = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, -1000.0]])
    weights = np.exp([1 / 0.5, 2 / 0.5, 4 / 0.5])
    soft = script.action_probabilities(q, 0.0, 0.5)
    np.testing.assert_allclose(soft[0], weights / weights.sum(), rtol=1e-6)
    np.testing.assert_allclose(soft[1], [0.5, 0.5, 0])
    np.testing.assert_allclose(script.action_probabilities(q, 0.3, None)[0], [0.1, 0.1, 0.8], rtol=1e-6)
    np.testing.assert_allclose(script.action_probabilities(q, 1.0, 0.5), np.full((2, 3), 1 / 3), rtol=1e-6)


def test_schedules():
    args = script.Args(learning_starts=100, epsilon_steps=1000, epsilon=1.0, epsilon_final=0.1)
    found = [script.exploration(step, args)[0] for step in (0, 99, 100, 600, 1100, 10**7)]
    np.testing.assert_allclose(found, [1, 1, 1, 0.55, 0.1, 0.1])
    args = dataclasses.replace(args, policy="boltzmann", temperature_final=0.01, temperature_steps=200)
    found = [script.exploration(step, args) for step in (0, 99, 100, 200)]
    np.testing.assert_allclose(found, [(1, 0.03), (1, 0.0201), (0, 0.02), (0, 0.01)])
    assert script.linear(7, 3.0, 1.0, 0) == 1.0 and script.linear(7, 3.0, None, 10) == 3.0


# ------------------------------------------------------------------------------------------------------- Losses


@pytest.mark.parametrize("mean", [True, False])
def test_quantile_huber_loss_with_both_means(mean):
    rng = np.random.default_rng(0)
    z, targets, taus = 2 * rng.standard_normal((3, 4)), 2 * rng.standard_normal((3, 5)), rng.random((3, 4))
    expected = np.zeros(3)
    for b, i, j in itertools.product(range(3), range(4), range(5)):
        u = targets[b, j] - z[b, i]
        huber = 0.5 * u**2 if abs(u) <= 1 else abs(u) - 0.5
        expected[b] += abs(taus[b, i] - (u < 0)) * huber / 5 / (4 if mean else 1)
    args = script.Args(value="iqn", quantile_mean=mean)
    np.testing.assert_allclose(script.value_loss(*map(torch.from_numpy, (z, targets, taus)), args), expected)


def test_dqn_losses():
    z, targets = torch.tensor([[0.0], [0.0]]), torch.tensor([[0.5], [3.0]])
    assert script.value_loss(z, targets, z, script.Args(loss="mse")).tolist() == [0.25, 9.0]
    assert script.value_loss(z, targets, z, script.Args(loss="huber")).tolist() == [0.125, 2.5]


# ----------------------------------------------------------------------------------------------------- The memory


class Player:
    """Writes made-up episodes into a memory as `collect` does, and into plain lists."""

    def __init__(self, rows: int, num_envs: int, frame_stack: int, obs: str = "ram"):
        args = script.Args(obs=obs, num_envs=num_envs, frame_stack=frame_stack, buffer_size=rows * num_envs)
        self.replay, self.N, self.frames = script.Replay(args, CPU), num_envs, 0
        self.episodes = [[] for _ in range(num_envs)]  # of each: frames, steps (action, reward, bonus), how it ended
        self.places = [{} for _ in range(num_envs)]  # row -> (episode, step)
        self.begin()

    def new_frames(self) -> tuple[torch.Tensor, torch.Tensor]:
        ids = np.arange(self.frames, self.frames + self.N, dtype=np.uint32)
        self.frames += self.N
        obs, screens = torch.zeros((self.N, 128), dtype=torch.uint8), torch.zeros((self.N, 21, 20), dtype=torch.uint8)
        obs[:, :4] = screens[:, 0, :4] = torch.from_numpy(ids[:, None].view(np.uint8))
        return obs, screens

    def begin(self) -> None:
        obs, screens = self.new_frames()
        for env, episodes in enumerate(self.episodes):
            if episodes and episodes[-1]["end"] is None:
                episodes[-1]["end"] = "cut"
            episodes.append({"frames": [int(number(obs[env]))], "steps": [], "end": None})
        self.replay.begin(obs, screens)
        self.reset = np.zeros(self.N, bool)

    def step(self, ends: list[str | None], rng: np.random.Generator) -> None:
        obs, screens = self.new_frames()
        actions, rewards, bonus = rng.integers(0, 6, self.N), rng.normal(size=self.N), rng.random(self.N)
        valid, row = ~self.reset, self.replay.count
        ends = [end if ok else None for end, ok in zip(ends, valid, strict=True)]
        for env, episodes in enumerate(self.episodes):
            frame = int(number(obs[env]))
            if not valid[env]:
                episodes.append({"frames": [frame], "steps": [], "end": None})
                continue
            self.places[env][row] = (episodes[-1], len(episodes[-1]["steps"]))
            episodes[-1]["steps"].append((actions[env], rewards[env], bonus[env]))
            episodes[-1]["frames"].append(frame)
            episodes[-1]["end"] = ends[env]
        over, done = np.array([e == "over" for e in ends]), np.array([e is not None for e in ends])
        flags = {"terminated": over, "valid": valid, "actions": actions, "rewards": rewards, "bonus": bonus}
        self.replay.write(**{name: torch.from_numpy(x) for name, x in flags.items()})
        self.replay.count += 1
        self.replay.write(obs=obs, screens=screens)
        self.reset = done


def number(frames: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(frames.numpy()[..., :4]).view(np.uint32)[..., 0]


def padded(frames: list[int], last: int, S: int) -> list[int]:
    """The S frames up to number `last` of an episode, the first one repeated before its start."""
    return [frames[max(0, k)] for k in range(last - S + 1, last + 1)]


def check_all(player: Player, n: int) -> int:
    """Every step that can be drawn against the lists. Returns how many there are."""
    replay, S = player.replay, player.replay.S
    low, high = max(0, replay.count - replay.L + S), replay.count - n
    if low >= high:
        return 0
    t, env = (x.flatten() for x in torch.meshgrid(torch.arange(low, high), torch.arange(player.N), indexing="ij"))
    batch = replay.batch(t, env, n)
    screens = [number(replay.screens_after(t + k, env)[:, 0]) for k in range(n)]
    checked = 0
    for i, (row, e) in enumerate(zip(t.tolist(), env.tolist(), strict=True)):
        assert bool(batch.alive[0, i]) == (row in player.places[e])
        if not batch.alive[0, i]:
            continue
        episode, k = player.places[e][row]
        steps = episode["steps"][k : k + n]
        last = k + len(steps)
        over = episode["end"] == "over" and last == len(episode["steps"])
        assert number(batch.obs[i]).tolist() == padded(episode["frames"], k, S)
        assert batch.alive[:, i].tolist() == [True] * len(steps) + [False] * (n - len(steps))
        assert int(batch.actions[i]) == steps[0][0] and bool(batch.over[i]) == over
        np.testing.assert_allclose(batch.rewards[: len(steps), i], [x[1] for x in steps], rtol=1e-6)
        np.testing.assert_allclose(batch.bonus[: len(steps), i], [x[2] for x in steps], rtol=1e-6)
        assert [screens[j][i] for j in range(len(steps))] == episode["frames"][k + 1 : last + 1]
        if over:  # what the intrinsic stream looks ahead to: the next episode's first frame
            following = player.episodes[e][[x is episode for x in player.episodes[e]].index(True) + 1]
            assert number(batch.next_obs[i]).tolist() == [following["frames"][0]] * S
        else:
            assert number(batch.next_obs[i]).tolist() == padded(episode["frames"], last, S)
        checked += 1
    return checked


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_memory_equals_plain_lists_of_episodes(data):
    """Ends, cuts, reset steps, wrap-around, and a resume in the middle."""
    rows, num_envs, S, n = (data.draw(st.integers(a, b)) for a, b in ((12, 24), (1, 3), (1, 4), (1, 4)))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    player = Player(rows, num_envs, S)
    for _ in range(data.draw(st.integers(0, 60))):
        ends = [rng.choice([None, "over", "cut"], p=[0.7, 0.15, 0.15]) for _ in range(num_envs)]
        player.step(ends, rng)
        if rng.random() < 0.03:
            player.begin()
    check_all(player, n)


def test_the_memory_is_checked_over_many_rounds_of_the_ring():
    rng, player, checked = np.random.default_rng(1), Player(16, 2, 4), 0
    for _ in range(100):
        player.step([rng.choice([None, "over", "cut"], p=[0.8, 0.1, 0.1]) for _ in range(2)], rng)
        checked += check_all(player, 3)
    assert checked > 1000


def test_draws_cover_what_is_there_and_nothing_else():
    rng, player = np.random.default_rng(1), Player(16, 2, 4)
    for length in range(1, 50):
        player.step([None, None], rng)
        if length > 3:
            t, env = player.replay.draw(500, 3)
            assert set(env.tolist()) == {0, 1}
            assert set(t.tolist()) == set(range(max(0, length - 16 + 4), length - 3))


def test_where_the_newest_steps_are():
    rng, player = np.random.default_rng(1), Player(16, 2, 4)
    for _ in range(21):
        player.step([None, None], rng)
    count = player.replay.count
    replay, t = player.replay, torch.arange(count - 3, count)[:, None]
    shown = number(replay.screens_after(t, replay.envs)[:, :, 0]).flatten().tolist()
    assert shown == [*range(player.frames - 6, player.frames)]
    now = number(replay.stack(torch.full_like(replay.envs, count), replay.envs))
    assert now[:, -1].tolist() == [player.frames - 2, player.frames - 1] and now.shape == (2, 4)


def test_a_memory_that_was_saved_is_the_same(tmp_path):
    for steps in (7, 40):
        rng, player, other = np.random.default_rng(1), Player(16, 2, 4), Player(16, 2, 4)
        for _ in range(steps):
            player.step([rng.choice([None, "over"], p=[0.8, 0.2]) for _ in range(2)], rng)
        torch.save(player.replay.state_dict(), tmp_path / "replay.pt")
        other.replay.load_state_dict(torch.load(tmp_path / "replay.pt", weights_only=True))
        player.replay = other.replay
        assert check_all(player, 3) > 0
    with pytest.raises(ValueError, match="does not fit"):
        Player(17, 2, 4).replay.load_state_dict(player.replay.state_dict())
    without = player.replay.state_dict()
    del without["obs"]
    with pytest.raises(ValueError, match="obs does not fit"):  # as the screens of a run from RAM without the bonus
        player.replay.load_state_dict(without)


def test_size_of_the_memory():
    sizes = {}
    for obs, int_coef in (("pixels", 1.0), ("ram", 0.0), ("ram", 1.0)):
        args = script.Args(obs=obs, int_coef=int_coef, buffer_size=1000, num_envs=8)
        sizes[obs, int_coef] = script.Replay(args, CPU).nbytes / 1000
    assert sizes == {("pixels", 1.0): 84 * 84 + 18, ("ram", 0.0): 128 + 18, ("ram", 1.0): 128 + 420 + 18}


def test_n_step_return():
    rewards = torch.tensor([[1.0, 1, 1], [2, 2, 2], [4, 4, 4]])
    alive = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    returns, discount = script.n_step_return(rewards, alive, 0.5)
    assert returns.tolist() == [3.0, 2.0, 1.0] and discount.tolist() == [0.125, 0.25, 0.5]


# ------------------------------------------------------------------------------------------------- Environment


def test_the_memory_has_what_envpool_showed(atari_pool, tmp_path, monkeypatch):
    """Through a whole run, reset steps included: frames, signs of rewards, ends, cuts."""
    kept = []
    monkeypatch.setattr(script.Run, "finish", lambda run: kept.append(run.replay) or 0)
    for obs in ("pixels", "ram"):
        train_here(script, small_args(obs=obs, buffer_size=400), tmp_path / obs)
        replay, log = kept.pop(), AtariPool.log
        assert replay.count == len(log) == 24
        for t, step in enumerate(log):
            env = torch.arange(N)
            assert frame_numbers(replay.screens_after(torch.full((N,), t), env)) == frame_numbers(step["frame"])
            np.testing.assert_array_equal(
                replay.at("obs", torch.tensor(t + 1), env), step["frame" if obs == "pixels" else "ram"]
            )
            np.testing.assert_array_equal(replay.data["valid"][t], step["valid"])
            np.testing.assert_array_equal(replay.data["rewards"][t], np.sign(step["reward"]))
            np.testing.assert_array_equal(replay.data["terminated"][t], step["over"])
        done, over = np.array([step["done"] for step in log]), replay.data["terminated"][:24].numpy()
        assert over.any() and (over != done).any()  # some are cut


@pytest.mark.parametrize("obs", ["pixels", "ram"])
def test_evaluation_sees_what_training_sees(obs):
    args = script.Args(env_id="MontezumaRevenge-v5", obs=obs, num_envs=1, sticky_actions=0.0, buffer_size=100)
    envs, env, replay = script.AtariEnvs(args, [3]), script.make_evaluation_env(args), script.Replay(args, CPU)
    replay.begin(*envs.reset())
    theirs, _ = env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(60):
        np.testing.assert_array_equal(replay.stack(torch.tensor([replay.count]), replay.envs)[0], theirs)
        action = int(rng.integers(envs.num_actions))
        (ours, screens), results = envs.step(np.array([action]))
        replay.write(**results)
        replay.count += 1
        replay.write(obs=ours, screens=screens)
        theirs, reward, terminated, _, _ = env.step(action)
        assert results["rewards"][0] == np.sign(reward) and results["terminated"][0] == terminated


def test_constants_read_back_from_envpool():
    for obs, size in (("pixels", (84, 84)), ("ram", (21, 20))):
        config = script.AtariEnvs(script.Args(env_id="Boxing-v5", obs=obs, num_envs=2), [1, 2]).pool.spec.config
        expected = {"stack_num": 1, "frame_skip": 4, "max_episode_steps": 4500, "repeat_action_probability": 0.25}
        expected |= {"episodic_life": False, "use_fire_reset": False, "noop_max": 1, "reward_clip": False}
        expected |= {"img_height": size[0], "img_width": size[1], "gray_scale": True, "use_inter_area_resize": True}
        found = {name: getattr(config, name) for name in expected}
        found["repeat_action_probability"] = round(found["repeat_action_probability"], 6)
        assert found == expected


# ----------------------------------------------------------------------------------------------------- Networks


def lean_agent(p: dict, obs: torch.Tensor, taus: torch.Tensor | None, heads: int) -> torch.Tensor:
    """Values (B, K, H, A) by the weights p; no taus: DQN."""
    linear = lambda x, name: x @ p[f"{name}.weight"].T + p[f"{name}.bias"]  # noqa: E731
    x = obs.double() / 255
    if obs.shape[2:] == (84, 84):
        for layer, stride in ((0, 4), (2, 2), (4, 1)):
            x = F.relu(F.conv2d(x, p[f"trunk.{layer}.weight"], p[f"trunk.{layer}.bias"], stride))
        x = x.flatten(1)
    else:
        x = F.relu(linear(x.flatten(1), "trunk.1"))
    if taus is None:
        x = F.relu(linear(x, "hidden.0"))[:, None]
    else:
        cosines = torch.stack([torch.cos(np.pi * i * taus) for i in range(1, 65)], -1)
        phi = F.relu(linear(cosines, "embedding"))
        x = F.relu(linear(x[:, None] * phi, "hidden.0"))
    return linear(x, "head").unflatten(2, (heads, -1))


@float64()
@pytest.mark.parametrize("obs", ["pixels", "ram"])
@pytest.mark.parametrize("value", ["dqn", "iqn"])
def test_networks_equal_their_description(obs, value):
    agent = script.Agent(5, 2, script.Args(obs=obs, value=value))
    seen = torch.randint(256, (3, 4, *script.OBS_SHAPE[obs]), dtype=torch.uint8)
    z, taus = agent(seen, 7)
    assert z.shape == (3, 7 if value == "iqn" else 1, 2, 5) and taus.shape == z.shape[:2]
    expected = lean_agent(agent.state_dict(), seen, taus if value == "iqn" else None, 2)
    torch.testing.assert_close(z, expected)


# ---------------------------------------------------------------------------------------------------------- RND


def test_the_released_normaliser_equals_its_formulas():
    """Batch of 1, moments of normalised frames, the variance in place of the std, a bonus less its mean.

    One departure: the released mean moves by delta / n where that of n + 1 numbers does by delta / (n + 1).
    """
    with float64():
        torch.manual_seed(0)
        args = script.Args(obs="ram", bonus_norm="released", num_envs=1, learning_starts=0)
        rnd = script.RND(1, args, CPU)
        frames = torch.randint(0, 256, (60, 21, 20), dtype=torch.uint8)
        mean, var = np.zeros((21, 20)), np.ones((21, 20))
        reward_mean, reward_var = 0.0, 1.0
        for k, frame in enumerate(frames):
            seen = np.clip((frame.double().numpy() - mean) / var, -5, 5)
            x = torch.from_numpy(seen)[None]
            loss = (rnd.predictor(x) - rnd.target(x)).square().mean().item()
            n = k + 1
            delta = seen - mean
            mean, var = mean + delta / (n + 1), (var * n + delta**2 * n / (n + 1)) / (n + 1)
            delta = loss - reward_mean
            reward_mean, reward_var = reward_mean + delta / (n + 1), (reward_var * n + delta**2 * n / (n + 1)) / (n + 1)
            with torch.no_grad():
                bonus = script.intrinsic_rewards(rnd, frame[None], torch.ones(1, dtype=torch.bool), 5, args)
            np.testing.assert_allclose(bonus, (loss - reward_mean) / reward_var, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(rnd.obs_rms.var, var, rtol=1e-9)


@torch.no_grad()
def test_the_bonus_is_divided_by_the_std_of_its_return_and_the_random_agent_gets_none():
    torch.manual_seed(0)
    args = script.Args(obs="ram", num_envs=2, learning_starts=40)
    rnd = script.RND(2, args, CPU)
    f, returns, frames_seen = np.zeros(2), [], []
    for step in range(0, 100, 2):
        frames = torch.randint(0, 256, (2, 21, 20), dtype=torch.uint8)
        valid = torch.rand(2) < 0.8
        raw = script.novelty(rnd, frames, "return").numpy()
        bonus = script.intrinsic_rewards(rnd, frames, valid, step, args)
        frames_seen += [x.double() for x in frames[valid]]
        if step >= 20:
            f = np.where(valid, 0.99 * f + raw, f)
            returns += f[valid.numpy()].tolist()
        if step < 40:
            assert (bonus == 0).all()
        else:
            np.testing.assert_allclose(bonus, raw / np.std(returns), rtol=1e-3)
    torch.testing.assert_close(rnd.obs_rms.mean, torch.stack(frames_seen).mean(0), rtol=1e-5, atol=1e-3)
    args.obs_norm, before = "frozen", rnd.obs_rms.mean.clone()
    script.intrinsic_rewards(rnd, frames, valid, 100, args)
    assert torch.equal(before, rnd.obs_rms.mean)
    script.intrinsic_rewards(rnd, frames, valid, 38, args)
    assert not torch.equal(before, rnd.obs_rms.mean)


@pytest.mark.parametrize("obs", ["pixels", "ram"])
def test_target_and_predictor_equal_their_description(obs):
    torch.manual_seed(0)
    rnd, x, layers = script.RND(2, script.Args(obs=obs), CPU), torch.randn(3, *script.SCREEN_SHAPE[obs]), []
    for network in (rnd.target, rnd.predictor):
        weights = [*network.parameters()]
        pairs = [*zip(weights[::2], weights[1::2], strict=True)]
        depth = 4 if obs == "pixels" else 3  # of the target
        h = x[:, None] if obs == "pixels" else x.flatten(1)
        for (w, b), stride in zip(pairs[: depth - 1], (4, 2, 1), strict=False):
            h = F.conv2d(h, w, b, stride) if obs == "pixels" else h @ w.T + b
            h = torch.where(h > 0, h, 0.2 * h)
        h = h.flatten(1) @ pairs[depth - 1][0].T + pairs[depth - 1][1]
        for w, b in pairs[depth:]:
            h = h.clamp(min=0) @ w.T + b
        torch.testing.assert_close(network(x), h, rtol=1e-4, atol=1e-5)
        layers.append(len(pairs))
    assert layers == [depth, depth + 2]


def test_other_scales_of_the_bonus():
    rms = SimpleNamespace(mean=torch.tensor(2.0), var=torch.tensor(4.0))
    raw = torch.tensor([1.0, 10.0])
    for norm, clip, expected in (
        ("return", None, [0.5, 5]),
        ("return", 2.0, [0.5, 2]),
        ("released", None, [-0.25, 2]),
        ("none", 1.0, [1, 1]),
    ):
        assert script.scale_bonus(raw, rms, script.Args(bonus_norm=norm, int_clip=clip)).tolist() == expected


# ---------------------------------------------------------------------------------------------------- One update


def plain_targets(
    p: dict, slow: dict, batch: script.Batch, bonus: torch.Tensor, taus: list, args, alpha: float
) -> torch.Tensor:
    """What `td_targets` must be, step by step and in loops. taus: what each forward drew, in its order."""
    H, iqn, K, alpha = (1 if args.single_head else 2), args.value == "iqn", args.num_quantiles, alpha

    def look(weights, obs):
        drawn = taus.pop(0)
        return lean_agent(weights, obs, drawn if iqn else None, H).detach()

    def weigh(z):  # (K, H, A) -> (A,)
        mean = z.mean(0)
        return mean[0] if H == 1 else args.int_coef * mean[0] + args.ext_coef * mean[1]

    z = look(slow, batch.next_obs)
    online = look(p, batch.next_obs) if args.backup == "double" else None
    here = look(slow, batch.obs) if args.backup == "munchausen" else None
    targets = torch.zeros((len(z), K if iqn else 1, H))
    for b in range(len(z)):
        judged = weigh(z[b, K:] if iqn else z[b])
        pi = (judged / alpha).softmax(0)
        if args.backup in ("max", "double"):
            pi = torch.zeros_like(judged)
            pi[(judged if online is None else weigh(online[b])).argmax()] = 1
        steps = int(batch.alive[:, b].sum())
        for head in range(H):
            intrinsic = H == 2 and head == 0
            for k in range(targets.shape[1]):
                v = (pi * z[b, k, head]).sum()
                if args.backup in ("soft", "munchausen") and head == H - 1:
                    v = v - alpha * (pi * pi.log()).sum() / (1 if H == 1 else args.ext_coef)
                gamma, total = args.int_gamma if intrinsic else args.gamma, 0.0
                for i in range(steps):
                    r = batch.rewards[i, b].double()
                    own = bonus[i, b].double()
                    r = args.int_coef * own + args.ext_coef * r if H == 1 else own if intrinsic else r
                    if here is not None and i == 0 and not intrinsic:
                        log_p = (weigh(here[b]) / alpha).log_softmax(0)[batch.actions[b]]
                        more = 0.9 * (alpha * log_p).clamp(-1, 0)
                        r = r + more / (1 if H == 1 else args.ext_coef)
                    total = total + gamma**i * r
                goes_on = not batch.over[b] or (intrinsic and not args.int_episodic)
                targets[b, k, head] = total + (gamma**steps * v if goes_on else 0)
    return targets


CASES = [
    {"backup": b, "value": v, "n_step": 1 if b in ("soft", "munchausen") else 3}
    for b in BACKUPS
    for v in ("dqn", "iqn")
]
CASES += [{"backup": "munchausen", "n_step": 1, "ext_coef": 2.0, "int_coef": 0.5, "single_head": one} for one in (0, 1)]
CASES += [{"backup": "softmax", "ext_coef": 0.0, "temperature_final": 0.1, "temperature_steps": 200}]
CASES += [{"loss": "huber", "n_step": 1}, {"single_head": True}, {"int_episodic": True}, {"tau": 0.1}]
CASES += [{"value": "iqn", "quantile_mean": True, "bonus_from": "collection", "max_grad_norm": 0.01}]


@float64()
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_updates_equal_a_plain_transcription(case, atari_pool, monkeypatch):
    """Four updates on a memory with ends, cuts and resets; the target network moves after the second."""
    args = small_args(adam_eps=1e-8, temperature=0.3, target_every=8, learning_rate=1e-3, gamma=0.9, **case)
    torch.manual_seed(1)
    envs, replay, H = script.AtariEnvs(args, [0]), script.Replay(args, CPU), 1 if args.single_head else 2
    agent, slow, rnd = script.Agent(6, H, args), script.Agent(6, H, args), script.RND(N, args, CPU)
    groups = [{"params": [*agent.parameters()], "eps": 1e-8}, {"params": [*rnd.predictor.parameters()]}]
    optimizer = script.Adam(groups, lr=1e-3)
    replay.begin(*envs.reset())
    for step in range(0, 128, 16):
        script.collect(envs, agent, rnd, replay, step, args)
    p, q = ({k: v.detach().clone() for k, v in net.state_dict().items()} for net in (agent, slow))
    names = [name for name, _ in agent.named_parameters()]
    for name in names:
        p[name].requires_grad_()

    draw, over = replay.draw, replay.data["terminated"][: replay.count - args.n_step - 1].nonzero()[0]

    def draw_an_end(B, n):
        """And the reset after it, beside what is drawn."""
        t, env = draw(B, n)
        t[:2], env[:2] = over[0] + torch.arange(2), over[1]
        return t, env

    monkeypatch.setattr(replay, "draw", draw_an_end)
    drawn, batches, rand, make = [], [], torch.rand, replay.batch
    monkeypatch.setattr(torch, "rand", lambda *a, **k: drawn.append(rand(*a, **k)) or drawn[-1])
    monkeypatch.setattr(replay, "batch", lambda *a: batches.append((a, make(*a))) or batches[-1][1])
    monkeypatch.setattr(script, "scale_bonus", lambda raw, *_: 2 * raw)  # its own tests are above
    scalars = script.update(agent, slow, rnd, optimizer, replay, 128 - 16, args)

    adam, logged = PlainAdam([p[name] for name in names], lr=1e-3), []
    assert len(batches) == 4 and all(batch.over[0] and not batch.alive[0, 1] for _, batch in batches)
    for k, ((t, env, n), batch) in enumerate(batches):
        bonus = batch.bonus
        if args.bonus_from == "replay":
            with torch.no_grad():
                bonus = 2 * torch.stack(
                    [script.novelty(rnd, replay.screens_after(t + i, env), "return") for i in range(n)]
                )
        targets = plain_targets(p, q, batch, bonus, drawn, args, script.exploration(116 + 4 * k, args)[1])
        taus = drawn.pop(0)
        z = lean_agent(p, batch.obs, taus if args.value == "iqn" else None, H)
        losses = []
        for head in range(H):
            total = 0.0
            for b in torch.nonzero(batch.alive[0])[:, 0].tolist():
                own = 0.0
                for i, j in itertools.product(range(z.shape[1]), range(targets.shape[1])):
                    u = targets[b, j, head] - z[b, i, head, batch.actions[b]]
                    huber = 0.5 * u**2 if u.abs() <= 1 else u.abs() - 0.5
                    if args.value == "iqn":
                        own = own + (taus[b, i] - float(u < 0)).abs() * huber / targets.shape[1]
                    else:
                        own = huber if args.loss == "huber" else u**2
                total = total + (own / z.shape[1] if args.quantile_mean else own)
            losses.append(total / batch.alive[0].sum())
        gradients = torch.autograd.grad(
            sum(x for x, w in zip(losses, script.heads(args).values(), strict=True) if w), adam.parameters
        )
        norm = torch.cat([x.flatten() for x in gradients]).norm()
        logged.append([*(x.item() for x in losses), norm.item()])
        if args.max_grad_norm:
            gradients = [x * min(1.0, args.max_grad_norm / (norm + 1e-6)) for x in gradients]
        adam.step(gradients)
        for name in names:
            if args.tau:
                q[name] = 0.9 * q[name] + 0.1 * p[name].detach()
            elif k % 2 == 1:  # 120 and 128 steps
                q[name] = p[name].detach().clone()
    assert not drawn
    keys = [f"losses/value_loss{x}" for x in ([""] if H == 1 else ["_int", "_ext"])] + ["losses/grad_norm"]
    np.testing.assert_allclose([float(scalars[key]) for key in keys], np.mean(logged, 0), rtol=1e-7)
    for name in names:
        torch.testing.assert_close(agent.state_dict()[name], p[name].detach(), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(slow.state_dict()[name], q[name], rtol=1e-7, atol=1e-9)


def test_with_the_released_normaliser_the_predictor_learns_from_the_first_frame_on(atari_pool, tmp_path):
    """Its moments of the bonus begin there, and would for ever remember errors of before."""
    for norm, first in (("return", 32), ("released", 16)):
        args = small_args(bonus_norm=norm, bonus_from="collection", log_interval=1)
        logged = read_scalars(train_here(script, args, tmp_path / norm))["losses/predictor_loss"]
        assert [step for step, _ in logged] == [*range(first, 97, 16)]


@pytest.mark.parametrize("where", ["collection", "replay"])
def test_the_predictor_learns_from_the_newest_frames_or_from_those_drawn(where, atari_pool, tmp_path, monkeypatch):
    seen, learn = [], script.learn_predictor
    monkeypatch.setattr(script, "learn_predictor", lambda *a: seen.append((a[2].clone(), a[3].clone())) or learn(*a))
    drawn, draw = [], script.Replay.draw
    monkeypatch.setattr(script.Replay, "draw", lambda *a: drawn.append(draw(*a)) or drawn[-1])
    train_here(script, small_args(predictor_from=where, buffer_size=400), tmp_path)
    if where == "collection":
        rows = AtariPool.log[4:]  # from 16 steps of 4 environments on, half of those before learning starts
        assert [n for frames, _ in seen for n in frame_numbers(frames)] == [
            n for step in rows for n in frame_numbers(step["frame"])
        ]
        assert torch.cat([valid for _, valid in seen]).tolist() == [x for step in rows for x in step["valid"]]
    else:
        assert len(seen) == 5 * 4
        for (frames, valid), (t, env) in zip(seen, drawn, strict=True):
            steps = [(AtariPool.log[k], n) for k, n in zip(t.tolist(), env.tolist(), strict=True)]
            assert frame_numbers(frames) == [frame_numbers(step["frame"][n])[0] for step, n in steps]
            assert valid.tolist() == [step["valid"][n] for step, n in steps]


@pytest.mark.parametrize("policy", ["epsilon-greedy", "boltzmann"])
def test_collect_acts_on_the_newest_frames_and_writes_what_it_played(atari_pool, monkeypatch, policy):
    args = small_args(policy=policy, learning_starts=8, epsilon_steps=40, num_steps=12, buffer_size=400)
    torch.manual_seed(0)
    envs, replay = script.AtariEnvs(args, [0]), script.Replay(args, CPU)
    agent, rnd = script.Agent(6, 2, args), script.RND(N, args, CPU)
    seen = {}
    for name in ("q_values", "action_probabilities", "intrinsic_rewards"):
        seen[name] = []
        monkeypatch.setattr(script, name, spy(getattr(script, name), seen[name]))
    monkeypatch.setattr(envs, "step", spy(envs.step, played := []))
    obs, screens = envs.reset()
    replay.begin(obs, screens)
    script.collect(envs, agent, rnd, replay, 0, args)
    rams = [obs.numpy(), *(step["ram"] for step in AtariPool.log)]
    for k in range(12):
        (_, acted, _), q = seen["q_values"][k]
        np.testing.assert_array_equal(acted[:, -1], rams[k])
        epsilon, temperature = script.exploration(4 * k, args)
        given, _ = seen["action_probabilities"][k]
        assert torch.equal(given[0], q) and given[1:] == [epsilon, temperature if policy == "boltzmann" else None]
        np.testing.assert_array_equal(replay.data["actions"][k], played[k][0][0])
        assert torch.equal(replay.data["bonus"][k], seen["intrinsic_rewards"][k][1])


def test_rewards_as_they_are(atari_pool):
    envs = script.AtariEnvs(small_args(clip_rewards=False), [0])
    envs.reset()
    assert {-2.0, 3.0} <= {x for _ in range(6) for x in envs.step(np.zeros(N, int))[1]["rewards"].tolist()}


@float64()
def test_a_step_of_the_predictor_is_that_of_the_valid_screens():
    torch.manual_seed(0)
    args, valid = small_args(), torch.tensor([True, False, True, True])
    rnd, screens = script.RND(N, args, CPU), torch.randint(0, 256, (4, 21, 20), dtype=torch.uint8)
    parameters = [*rnd.predictor.parameters()]
    gradients = torch.autograd.grad(script.novelty(rnd, screens, "return")[valid].mean(), parameters)
    expected = [p.detach() - 0.1 * g for p, g in zip(parameters, gradients, strict=True)]
    script.learn_predictor(rnd, torch.optim.SGD(parameters, lr=0.1), screens, valid, args)
    for p, x in zip(parameters, expected, strict=True):
        torch.testing.assert_close(p.detach(), x)


def test_both_optimisers(atari_pool, tmp_path):
    args = small_args(learning_rate_final=1e-5, predictor_learning_rate=2e-4, adam_eps=1.5e-4)
    path = train_here(script, args, tmp_path) / "latest.pt"
    groups = torch.load(path, weights_only=True)["optimizer"]["param_groups"]
    found = [x for group in groups for x in (group["lr"], group["eps"])]
    np.testing.assert_allclose(found, [1e-5, 1.5e-4, 2e-4, 1e-8])


# ------------------------------------------------------------------------------------------ Training, evaluation


def weights(run_dir: pathlib.Path) -> dict:
    return torch.load(run_dir / "latest.pt", weights_only=True)


@pytest.mark.parametrize("preset", list(script.PRESETS))
def test_presets_make_sense(preset):
    script.check_args(script.Args(preset=preset, **script.PRESETS[preset]))


def test_presets_have_dopamine_s_numbers():
    """Of its JAX agents' configurations dqn.gin and implicit_quantile.gin."""
    both = {"gamma": 0.99, "learning_starts": 20_000, "update_every": 4, "target_every": 8000, "batch_size": 32}
    both |= {"buffer_size": 1_000_000, "epsilon_final": 0.01, "epsilon_steps": 250_000, "eval_epsilon": 0.001}
    both |= {"sticky_actions": 0.25, "max_episode_steps": 27_000, "frame_stack": 4, "backup": "max", "int_coef": 0}
    dqn = {"n_step": 1, "learning_rate": 6.25e-5, "adam_eps": 1.5e-4, "loss": "mse", "value": "dqn"}
    iqn = {"n_step": 3, "learning_rate": 5e-5, "adam_eps": 3.125e-4, "num_quantiles": 64, "num_acting_quantiles": 32}
    for preset, own in ("dqn", dqn), ("iqn", iqn | {"value": "iqn"}):
        found = vars(script.Args(**script.PRESETS[preset]))
        assert {name: found[name] for name in both | own} == both | own


@pytest.mark.parametrize("changes", [{}, {"value": "iqn", "policy": "boltzmann", "learning_rate_final": 1e-6}])
def test_same_seed_same_run_and_another_seed_another(changes, tmp_path):
    """With EnvPool's own game."""
    runs = [train_here(script, small_args(seed=s, **changes), tmp_path / f"{k}") for k, s in enumerate((1, 1, 2))]
    states = [weights(run) for run in runs]
    for name in ("agent", "target_agent", "rnd", "rng", "optimizer"):
        assert_same(states[0][name], states[1][name])
    assert not torch.equal(*(state["agent"]["trunk.1.weight"] for state in states[1:]))
    scalars = [read_scalars(run) for run in runs[:2]]
    for tag in scalars[0].keys() - {"charts/SPS"}:
        assert scalars[0][tag] == scalars[1][tag]


@pytest.mark.parametrize("save_replay", [False, True])
def test_resume_restores_the_learner_bit_for_bit(save_replay, atari_pool, tmp_path, monkeypatch, capsys):
    path = train_here(script, small_args(save_replay=save_replay), tmp_path) / "latest.pt"
    before = torch.load(path, weights_only=True)
    memories = [torch.load(path.with_name("replay.pt"), weights_only=True)] if save_replay else []
    torch.manual_seed(123)
    init, restored = script.Run.__init__, []
    monkeypatch.setattr(script.Run, "__init__", lambda run, *a: init(run, *a) or restored.append(run))
    monkeypatch.setattr(script.Replay, "begin", lambda replay, *_: None)
    args = small_args(save_replay=save_replay)  # the run has all of its steps: nothing is added
    train_here(script, args, path.parents[1], *script.load_checkpoint(str(path)))
    assert_same(before, torch.load(path, weights_only=True), but=("seconds", "args"))
    assert before["optimizer"]["state"][0]["step"] == 5 * 4 and before["step"] == 96
    assert ("fill the memory anew" in capsys.readouterr().out) == (not save_replay)
    assert restored[0].replay.count == (24 if save_replay else 0)
    if save_replay:
        assert_same(memories[0], torch.load(path.with_name("replay.pt"), weights_only=True))


def test_a_resumed_run_learns_only_when_the_memory_is_full_again(atari_pool, tmp_path):
    path = train_here(script, small_args(), tmp_path) / "latest.pt"
    train_here(script, small_args(total_timesteps=192), tmp_path, *script.load_checkpoint(str(path)))
    scalars = read_scalars(path.parent)
    learned = [step for step, _ in scalars["losses/grad_norm"]]
    assert learned == [32, 48, 64, 80, 96, 128, 144, 160, 176, 192]
    epsilon = dict(scalars["charts/epsilon"])
    assert epsilon[16] == 1 and epsilon[112] < 1  # it fills it with its policy


def test_a_memory_of_another_step_is_not_taken(atari_pool, tmp_path, capsys):
    path = train_here(script, small_args(save_replay=True), tmp_path) / "latest.pt"
    memory = path.with_name("replay.pt")
    torch.save(torch.load(memory, weights_only=True) | {"step": 80}, memory)
    args = small_args(save_replay=True, total_timesteps=128)
    train_here(script, args, tmp_path, *script.load_checkpoint(str(path)))
    assert "fill the memory anew" in capsys.readouterr().out
    torch.save({"step": 128}, memory)
    args.total_timesteps = 160
    with pytest.raises(script.UserError, match="damaged or does not fit"):
        train_here(script, args, tmp_path, *script.load_checkpoint(str(path)))


def test_a_memory_of_another_game_is_not_taken(atari_pool, tmp_path, capsys):
    path = train_here(script, small_args(save_replay=True), tmp_path) / "latest.pt"
    args = small_args(save_replay=True, total_timesteps=128, env_id="Pitfall-v5")
    train_here(script, args, tmp_path / "other", *script.load_checkpoint(str(path)))
    assert "fill the memory anew" in capsys.readouterr().out


def test_without_the_bonus_rnd_is_not_computed(atari_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "novelty", None)
    scalars = read_scalars(train_here(script, small_args(int_coef=0.0), tmp_path))
    assert {value for _, value in scalars["rnd/intrinsic_reward"]} == {0.0}
    assert "losses/predictor_loss" not in scalars and len(scalars["losses/value_loss_ext"]) == 5


def test_a_run_as_a_user_sees_it(tmp_path):
    """Trains, resumes and evaluates in processes of their own."""
    small = ["--preset", "iqn", "--obs", "ram", "--num-envs", 4, "--num-steps", 4, "--buffer-size", 200]
    small += ["--learning-starts", 32, "--num-quantiles", 4, "--log-interval", 16, "--device", "cpu", "--save-replay"]
    out = run_script("dqn_rnd_atari.py", *small, "--total-timesteps", 96, cwd=tmp_path)
    assert out.returncode == 0 and out.stderr == "", out.stderr
    assert "memory       200 steps, 0.0 MB on cpu" in out.stdout
    run_dir = only_run(tmp_path)
    assert run_dir.name.startswith("MontezumaRevenge-v5__dqn_rnd_atari__1__")
    more = run_script("dqn_rnd_atari.py", "--resume", run_dir, "--total-timesteps", 128, cwd=tmp_path)
    assert more.returncode == 0 and ", 128 steps in 00:" in more.stdout.splitlines()[-1]
    assert "anew" not in more.stdout
    assert [step for step, _ in read_scalars(run_dir)["losses/grad_norm"]] == [32, 48, 64, 80, 96, 112, 128]
    flags = ["--evaluate", run_dir, "--eval-episodes", 2, "--capture-video", "--max-episode-steps", 40]
    played = run_script("dqn_rnd_atari.py", *flags, cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    last = played.stdout.splitlines()[-1]
    assert last == "return 0.0 +- 0.0 (mean, standard error), best 0, rooms 1.0, most 1"
    assert len([*(run_dir / "videos").iterdir()]) == 2


def test_the_log_holds_means_since_the_line_before(atari_pool, tmp_path):
    every = read_scalars(train_here(script, small_args(log_interval=16), tmp_path / "1"))
    third = read_scalars(train_here(script, small_args(log_interval=48), tmp_path / "3"))
    for key in ("losses/entropy", "rnd/intrinsic_reward"):
        values = [value for _, value in every[key]]
        assert len(values) == 6 and [step for step, _ in third[key]] == [48, 96]
        means = [np.mean(values[:3]), np.mean(values[3:])]
        np.testing.assert_allclose([value for _, value in third[key]], means, rtol=1e-5)


@pytest.mark.parametrize("policy", ["epsilon-greedy", "boltzmann"])
def test_evaluation_has_an_epsilon_of_its_own_or_the_temperature_of_the_end(
    atari_pool, tmp_path, monkeypatch, capsys, policy
):
    monkeypatch.setattr(AtariPool, "num_actions", 18)  # as many as the game has
    args = small_args(policy=policy, temperature_final=0.01, temperature_steps=192)
    run_dir, given = train_here(script, args, tmp_path), []
    monkeypatch.setattr(script, "action_probabilities", spy(script.action_probabilities, given))
    flags = ["--eval-episodes", 1, "--max-episode-steps", 20, "--eval-epsilon", 0.25]
    assert call_main(script, capsys, "--evaluate", run_dir, *flags)[0] == 0
    expected = (0.25, None) if policy == "epsilon-greedy" else (0.0, pytest.approx(0.02))  # half-way from 0.03
    assert len(given) == 20 and all((epsilon, alpha) == expected for (_, epsilon, alpha), _ in given)


class Corridor:
    """EnvPool's interface: ten cells in RAM byte 0; action 1 goes on, others stay; 1 at the end, cut after 60 steps."""

    def __init__(self, env_id: str, num_envs: int, **_):
        self.n, self.action_space = num_envs, SimpleNamespace(n=6)
        self.cell, self.time, self.done = (np.zeros(num_envs, int) for _ in range(3))

    def reset(self):
        ram = np.zeros((self.n, 128), np.uint8)
        ram[:, 0] = 25 * self.cell
        return np.zeros((self.n, 1, 21, 20), np.uint8), {"ram": ram}

    def step(self, actions):
        fresh = self.done.astype(bool)
        self.cell = np.where(fresh, 0, self.cell + (actions == 1))
        self.time = np.where(fresh, 0, self.time + 1)
        terminated = self.cell == 10
        truncated = ~terminated & (self.time == 60)
        self.done = terminated | truncated
        obs, info = self.reset()
        return obs, terminated.astype(np.float32), terminated, truncated, info


@pytest.mark.learning
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"value": "iqn", "num_quantiles": 4, "num_acting_quantiles": 4},
        {"policy": "boltzmann", "backup": "softmax", "temperature": 0.01},
    ],
)
def test_it_learns_to_walk_along_a_corridor(changes, tmp_path, monkeypatch):
    """The random agent needs 46 of the 60 steps on average; the shortest way is 10."""
    monkeypatch.setattr(script.envpool, "make", Corridor)
    flags = {"int_coef": 0.0, "single_head": True, "n_step": 1, "total_timesteps": 10_000, "learning_starts": 1000}
    flags |= {"epsilon_steps": 4000, "learning_rate": 3e-4, "adam_eps": 1e-8, "target_every": 400, "frame_stack": 1}
    flags |= {"batch_size": 32, "buffer_size": 10_000, "log_interval": 1000, "gamma": 0.9}
    run_dir = train_here(script, small_args(**flags | changes), tmp_path)
    assert read_scalars(run_dir)["charts/episodic_length"][-1][1] < 12
