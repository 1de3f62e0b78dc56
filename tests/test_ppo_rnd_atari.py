"""ppo_rnd_atari.py: its numbers against independent computations, and its promises to the user.

What all scripts promise alike (signals, the console, checkpoints that are damaged) is in test_faults.py.
"""

import dataclasses
import importlib.metadata
import os
import pathlib
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CPU,
    ROOT,
    AtariPool,
    advantages_by_definition,
    assert_equals_transcription,
    assert_same,
    call_main,
    float64,
    frame_numbers,
    only_run,
    plain_filter,
    plain_moments,
    read_scalars,
    run_script,
    spy,
    train_here,
    watch,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo_rnd_atari as script

T, N = 16, 4  # of most runs here
MONTEZUMA = "MontezumaRevenge-v5"


def small_args(**changes) -> script.Args:
    """Two minibatches and one pass over each rollout of 64 steps."""
    values = {"env_id": MONTEZUMA, "num_envs": N, "num_steps": T, "num_minibatches": 2, "update_epochs": 1}
    return script.Args(**values | {"warmup_rollouts": 1, "total_timesteps": 64, "checkpoint_interval": 1e6} | changes)


# ---------------------------------------------------------------------------- Normalisers, returns and losses


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("shape", [(), (3, 5)])
def test_running_moments_equal_numpy(batch_size, shape):
    rng = np.random.default_rng(0)
    moments, kept = script.RunningMoments(shape, CPU), []
    for k in range(40):
        batch = rng.normal(100 * k, 1 + k, (batch_size, *shape))
        valid = rng.random(batch_size) < 0.7
        if k == 3:
            valid[:] = False  # a step on which every environment was reset
        moments.update(torch.from_numpy(batch), torch.from_numpy(valid))
        kept.append(batch[valid])
    mean, var, count = plain_moments(kept)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-9)
    np.testing.assert_allclose(moments.var, var, rtol=1e-9)
    np.testing.assert_allclose(moments.count, count, rtol=1e-12)


def test_a_pixel_that_never_changed_saturates_when_it_does():
    moments = script.RunningMoments((84, 84), CPU)
    frames = torch.full((128, 84, 84), 57, dtype=torch.uint8)
    for _ in range(50):
        moments.update(frames, torch.ones(128, dtype=torch.bool))
    expected = 1e-4 * (1 + 57**2) / (50 * 128)  # what the start leaves behind, and no epsilon
    np.testing.assert_allclose(moments.var, expected, rtol=1e-6)
    frames[0, 10, 10], frames[1, 10, 10] = 58, 56
    white = script.whiten(frames, moments)
    assert white.shape == (128, 1, 84, 84) and white.dtype == torch.float32
    assert white[0, 0, 10, 10] == 5 and white[1, 0, 10, 10] == -5
    assert white[2:].abs().max() < 1e-2


def test_whitening_equals_its_formula():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (9, 84, 84)).astype(np.uint8)
    moments = script.RunningMoments((84, 84), CPU)
    moments.update(torch.from_numpy(frames), torch.ones(9, dtype=torch.bool))
    x = rng.integers(0, 256, (5, 84, 84)).astype(np.uint8)
    expected = np.clip((x - moments.mean.numpy()) / np.sqrt(moments.var.numpy()), -5, 5)[:, None]
    np.testing.assert_allclose(script.whiten(torch.from_numpy(x), moments), expected, rtol=1e-4, atol=1e-5)
    moments.mean.fill_(57 - 1e-3)
    moments.var.fill_(1e-6)
    grey = torch.full((1, 84, 84), 57, dtype=torch.uint8)
    np.testing.assert_allclose(script.whiten(grey, moments), 1, rtol=1e-2)  # no epsilon: one deviation stays one


def random_rollout(T, N, seed):
    """Rewards, values, dones and valid (T, N) as EnvPool gives them: the step after a done one is a reset."""
    rng = np.random.default_rng(seed)
    dones, valid = np.zeros((T, N), bool), np.ones((T, N), bool)
    before = rng.random(N) < 0.3
    for t in range(T):
        valid[t] = ~before
        dones[t] = valid[t] & (rng.random(N) < 0.25)
        before = dones[t]
    rewards, values = rng.normal(size=(2, T, N)).astype(np.float32)
    return rewards, values, rng.normal(size=N).astype(np.float32), dones, valid


def test_reward_filter_equals_a_double_loop():
    rewards, _, state, _, valid = random_rollout(23, 5, 0)
    expected = plain_filter(rewards, valid, 0.9, state)
    state, tensors = torch.from_numpy(state), [torch.from_numpy(x) for x in (rewards, valid)]
    filtered, last = script.reward_filter(*tensors, 0.9, state)
    np.testing.assert_allclose(filtered, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, expected[-1], rtol=1e-5, atol=1e-6)
    # in two rollouts, the state carried on, it is the same
    first, between = script.reward_filter(tensors[0][:10], tensors[1][:10], 0.9, state)
    second, _ = script.reward_filter(tensors[0][10:], tensors[1][10:], 0.9, between)
    torch.testing.assert_close(torch.cat([first, second]), filtered)


@pytest.mark.parametrize("episodic", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_gae_equals_its_definition(episodic, seed):
    rewards, values, last_value, dones, valid = random_rollout(31, 6, seed)
    ends = dones if episodic else np.zeros_like(dones)
    expected = advantages_by_definition(rewards, values, last_value, ends, valid, 0.97, 0.9)
    tensors = [torch.from_numpy(x) for x in (rewards, np.vstack([values, last_value]), ends, valid)]
    np.testing.assert_allclose(script.gae(*tensors, 0.97, 0.9), expected, rtol=1e-4, atol=1e-5)


def test_a_reset_step_changes_nothing_whatever_it_holds():
    rewards, values, last_value, dones, valid = random_rollout(31, 6, 1)
    assert (~valid).any()
    for ends in (dones, np.zeros_like(dones)):
        tensors = [torch.from_numpy(x) for x in (rewards, np.vstack([values, last_value]), ends, valid)]
        before = script.gae(*tensors, 0.97, 0.9)
        tensors[0][~valid], tensors[1][:-1][~valid] = 1e3, -1e3
        torch.testing.assert_close(script.gae(*tensors, 0.97, 0.9), before)
        assert (before[~valid] == 0).all()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"int_episodic": True},
        {"single_head": True},
        {"int_coef": 0.0},
        {"ext_coef": 0.0},
        {"int_coef": 0.3, "ext_coef": 0.7, "gamma": 0.8, "int_gamma": 0.6, "gae_lambda": 0.5},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_advantages_and_returns_equal_their_definition(changes):
    args = small_args(**changes)
    H = 1 if args.single_head else 2
    r_ext, v_int, last_int, dones, valid = random_rollout(T, N, 3)
    r_int, v_ext, last_ext, _, _ = random_rollout(T, N, 4)
    values = np.stack([np.vstack([v_int, [last_int]]), np.vstack([v_ext, [last_ext]])][-H:], -1)  # (T+1, N, H)
    rollout = script.empty_rollout(T, N, H, CPU)
    tensors = {"values": values, "rewards": r_ext, "dones": dones, "valid": valid}
    rollout = rollout._replace(**{key: torch.from_numpy(x) for key, x in tensors.items()})
    advantages, returns = script.advantages_and_returns(rollout, torch.from_numpy(r_int), args)
    if args.single_head:
        streams = [(args.int_coef * r_int + args.ext_coef * r_ext, dones, args.gamma, 1)]
    else:
        ends = dones if args.int_episodic else np.zeros_like(dones)
        streams = [(r_int, ends, args.int_gamma, args.int_coef), (r_ext, dones, args.gamma, args.ext_coef)]
    total = np.zeros((T, N))
    for head, (r, ends, gamma, coef) in enumerate(streams):
        v = values[..., head]
        a = advantages_by_definition(r, v[:-1], v[-1], ends, valid, gamma, args.gae_lambda)
        np.testing.assert_allclose(returns[..., head], a + v[:-1], rtol=1e-4, atol=1e-5)
        total += coef * a
    np.testing.assert_allclose(advantages, total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("H", [1, 2])
def test_ppo_loss_equals_a_loop_over_samples(H):
    rng = np.random.default_rng(0)
    B, A = 50, 6
    logits, values = rng.normal(size=(B, A)), rng.normal(size=(B, H))
    actions, valid = rng.integers(A, size=B), rng.random(B) < 0.8
    old_logprobs, advantages = rng.normal(-1.8, 0.2, B), rng.normal(size=B)
    returns = rng.normal(size=(B, H))
    args = script.Args(single_head=H == 1, vf_coef=0.7, clip_coef=0.15, ent_coef=0.02)
    policy, entropy, value, kl, clipped = [], [], [[] for _ in range(H)], [], []
    for i in np.flatnonzero(valid):
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        ratio = p[actions[i]] / np.exp(old_logprobs[i])
        policy.append(-min(ratio * advantages[i], np.clip(ratio, 0.85, 1.15) * advantages[i]))
        entropy.append(-(p * np.log(p)).sum())
        kl.append(ratio - 1 - np.log(ratio))
        clipped.append(abs(ratio - 1) > 0.15)
        for head in range(H):
            value[head].append(0.5 * (values[i, head] - returns[i, head]) ** 2)
    batch = {"actions": actions, "logprobs": old_logprobs, "advantages": advantages, "valid": valid}
    batch["returns"] = returns
    batch = {key: torch.from_numpy(x) for key, x in batch.items()}
    loss, metrics = script.ppo_loss(torch.from_numpy(logits), torch.from_numpy(values), batch, args)
    value_loss = sum(np.mean(head) for head in value)
    np.testing.assert_allclose(loss, np.mean(policy) + 0.7 * value_loss - 0.02 * np.mean(entropy), rtol=1e-6)
    expected = {"policy_loss": np.mean(policy), "value_loss": value_loss, "entropy": np.mean(entropy)}
    expected |= {"approx_kl": np.mean(kl), "clipfrac": np.mean(clipped)}
    if H == 2:
        expected |= {"value_loss_int": np.mean(value[0]), "value_loss_ext": np.mean(value[1])}
    assert metrics.keys() == expected.keys()
    for key, x in expected.items():
        np.testing.assert_allclose(metrics[key], x, rtol=1e-6, err_msg=key)


def test_a_stream_that_is_turned_off_trains_no_value_head():
    batch = {key: torch.rand(9) for key in ("logprobs", "advantages")}
    batch |= {"actions": torch.zeros(9, dtype=torch.int64), "valid": torch.ones(9, dtype=torch.bool)}
    batch["returns"] = torch.rand(9, 2)
    values = torch.rand(9, 2, requires_grad=True)
    script.ppo_loss(torch.rand(9, 3), values, batch, script.Args(int_coef=0))[0].backward()
    assert (values.grad[:, 0] == 0).all() and (values.grad[:, 1] != 0).all()


def test_small_statistics():
    x, valid = torch.tensor([1.0, 2.0, 6.0, 100.0]), torch.tensor([True, True, True, False])
    assert script.masked_mean(x, valid) == 3
    assert script.masked_mean(x, torch.zeros(4, dtype=torch.bool)) == 0
    np.testing.assert_allclose(script.normalise(x, valid)[:3], (x[:3] - 3) / np.std([1, 2, 6]), rtol=1e-6)


def test_how_loud_each_stream_is_and_how_well_known():
    """The root mean square of its advantages, the share of the returns' variance that the values have; no resets."""
    torch.manual_seed(0)
    values, returns, valid = torch.randn(6, 3, 2), torch.randn(5, 3, 2), torch.rand(5, 3) < 0.7
    values[:-1, :, 0] = returns[..., 0] + 0.5 * values[:-1, :, 0]  # the other head knows nothing
    rollout = SimpleNamespace(values=values, valid=valid, dones=valid, obs=torch.zeros(6, 3))
    rnd = SimpleNamespace(return_rms=SimpleNamespace(var=torch.ones(())))
    found = script.diagnostics(lambda obs: (obs, None), rnd, rollout, torch.zeros(5, 3), returns)
    for head, suffix in enumerate(("_int", "_ext")):
        of = [(returns[t, n, head] - values[t, n, head]).item() for t in range(5) for n in range(3) if valid[t, n]]
        assert np.isclose(found[f"losses/advantage_rms{suffix}"], np.mean(np.square(of)) ** 0.5)
        share = 1 - np.var(of) / np.var(returns[..., head][valid].numpy())
        assert np.isclose(found[f"losses/explained_variance{suffix}"], max(share, -1), rtol=1e-5)
    assert found["losses/explained_variance_int"] > 0 and found["losses/explained_variance_ext"] == -1


# --------------------------------------------------------------------------------------------------- Networks


def lean_agent(p: dict, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's CNN policy, written from its description."""
    x = obs.float() / 255
    for name, stride in (("trunk.0", 4), ("trunk.2", 2), ("trunk.4", 1)):
        x = F.relu(F.conv2d(x, p[f"{name}.weight"], p[f"{name}.bias"], stride))
    x = x.reshape(len(x), -1)
    for name in ("trunk.7", "trunk.9"):
        x = F.relu(x @ p[f"{name}.weight"].T + p[f"{name}.bias"])
    policy = x + F.relu(x @ p["policy_branch.weight"].T + p["policy_branch.bias"])
    value = x + F.relu(x @ p["value_branch.weight"].T + p["value_branch.bias"])
    heads = [(policy, "policy_head"), (value, "value_head")]
    return tuple(h @ p[f"{name}.weight"].T + p[f"{name}.bias"] for h, name in heads)


def lean_rnd(p: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    """Target or predictor, written from the reference's description."""
    for layer, stride in ((0, 4), (2, 2), (4, 1)):
        x = F.conv2d(x, p[f"{name}.{layer}.weight"], p[f"{name}.{layer}.bias"], stride)
        x = torch.where(x > 0, x, 0.2 * x)
    x = x.reshape(len(x), -1) @ p[f"{name}.7.weight"].T + p[f"{name}.7.bias"]
    if name == "predictor":
        for layer in (9, 11):
            x = x.clamp(min=0) @ p[f"{name}.{layer}.weight"].T + p[f"{name}.{layer}.bias"]
    return x


def test_networks_equal_the_reference_s_description():
    torch.manual_seed(0)
    agent, rnd = script.Agent(18, 2), script.RND(4, CPU)
    obs = torch.randint(256, (3, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        for ours, plain in zip(agent(obs), lean_agent(agent.state_dict(), obs), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
        x = torch.randn(3, 1, 84, 84)
        for name in ("target", "predictor"):
            plain = lean_rnd(rnd.state_dict(), name, x)
            assert plain.shape == (3, 512)
            torch.testing.assert_close(getattr(rnd, name)(x), plain, rtol=1e-4, atol=1e-5)
    shapes = {name: tuple(x.shape) for name, x in agent.state_dict().items()}
    assert shapes["trunk.4.weight"] == (64, 64, 4, 4) and shapes["trunk.7.weight"] == (256, 2304)
    assert shapes["trunk.9.weight"] == (448, 256) and shapes["value_head.weight"] == (2, 448)
    assert tuple(rnd.target[4].weight.shape) == (64, 64, 3, 3)


def test_weights_are_orthogonal_with_the_reference_s_gains():
    agent, rnd = script.Agent(18, 2), script.RND(4, CPU)
    gains = {agent.policy_branch: 0.1, agent.value_branch: 0.1, agent.policy_head: 0.01, agent.value_head: 0.01}
    layers = [m for part in (agent, rnd) for m in part.modules() if isinstance(m, torch.nn.Linear | torch.nn.Conv2d)]
    assert len(layers) == 9 + 4 + 6
    for layer in layers:
        w = layer.weight.detach().flatten(1)
        w = w if w.shape[0] <= w.shape[1] else w.T
        expected = gains.get(layer, 2**0.5) ** 2 * torch.eye(len(w))
        torch.testing.assert_close(w @ w.T, expected, rtol=1e-4, atol=1e-4 * expected.max().item())
        assert (layer.bias == 0).all()


def test_subset_takes_reset_steps_only_if_it_must():
    valid = torch.tensor([True, False] * 10)
    assert set(script.predictor_subset(valid, 10).tolist()) == set(range(0, 20, 2))
    assert len(set(script.predictor_subset(valid, 7).tolist())) == 7
    assert len(script.predictor_subset(valid, 15)) == 15
    counts = np.zeros(20)
    for _ in range(2000):
        counts[script.predictor_subset(valid, 5)] += 1
    assert (counts[1::2] == 0).all()
    np.testing.assert_allclose(counts[::2], 1000, atol=5 * (2000 * 0.25) ** 0.5)


def test_novelty_is_the_mean_squared_error_in_pieces_of_any_size():
    torch.manual_seed(0)
    rnd = script.RND(3, CPU)
    frames = torch.randint(256, (400, 3, 84, 84), dtype=torch.uint8)[::50]  # (8, 3), not contiguous
    rnd.obs_rms.update(frames.flatten(0, 1), torch.ones(24, dtype=torch.bool))
    x = script.whiten(frames.flatten(0, 1), rnd.obs_rms)
    weights = rnd.state_dict()
    with torch.no_grad():
        expected = (lean_rnd(weights, "predictor", x) - lean_rnd(weights, "target", x)).square().mean(1).view(8, 3)
    torch.testing.assert_close(script.novelty(rnd, frames), expected, rtol=1e-4, atol=1e-6)
    wide = torch.randint(256, (2, 1500, 84, 84), dtype=torch.uint8)
    assert script.novelty(rnd, wide).shape == (2, 1500)


# ------------------------------------------------------------------------------------------------ Environment


@settings(max_examples=200, deadline=None)
@given(
    game=st.sampled_from(sorted(script.atari_game_list)),
    prefix=st.sampled_from(["", "ALE/", "ale/"]),
    suffix=st.sampled_from(["", "-v5", "-V5"]),
    style=st.sampled_from(["camel", "snake", "lower", "upper"]),
)
def test_every_spelling_of_a_game_means_the_same(game, prefix, suffix, style):
    camel = "".join(word.capitalize() for word in game.split("_"))
    spelling = {"camel": camel, "snake": game, "lower": camel.lower(), "upper": camel.upper()}[style]
    assert script.resolve_env_id(prefix + spelling + suffix) == camel + "-v5"


def test_every_game_of_the_resolver_is_one_of_envpool_s():
    import envpool

    names = {script.resolve_env_id(game) for game in script.atari_game_list}
    assert len(names) == len(script.atari_game_list) and names <= set(envpool.list_all_envs())


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("MontezumasRevenge", "did you mean MontezumaRevenge-v5"),
        ("Ventur", "did you mean Venture-v5"),
        ("MiniGrid-DoorKey-8x8-v0", "this script plays Atari games"),
        ("MontezumaRevengeNoFrameskip-v4", "did you mean MontezumaRevenge-v5"),
        ("PongNoFrameskip-v4", "did you mean Pong-v5"),
        ("ALE/Pong-ram-v5", "did you mean Pong-v5"),
        ("", "this script plays Atari games"),
    ],
)
def test_a_wrong_name_gets_a_hint(name, hint):
    with pytest.raises(script.UserError, match=hint):
        script.resolve_env_id(name)


def test_constants_read_back_from_envpool():
    envs = script.AtariEnvs(small_args(num_envs=2), [1, 2])
    config = envs.pool.spec.config
    expected = {"stack_num": 4, "frame_skip": 4, "max_episode_steps": 4500, "repeat_action_probability": 0.25}
    expected |= {"episodic_life": False, "use_fire_reset": False, "noop_max": 1, "reward_clip": False}
    expected |= {"img_height": 84, "img_width": 84, "gray_scale": True, "use_inter_area_resize": True}
    expected |= {"full_action_space": False}
    found = {name: getattr(config, name) for name in expected}
    found["repeat_action_probability"] = round(found["repeat_action_probability"], 6)
    assert found == expected
    assert envs.num_actions == 18 and envs.reset().shape == (2, 4, 84, 84)


def test_an_episode_ends_at_the_step_limit_and_the_step_after_is_no_experience():
    envs = script.AtariEnvs(small_args(num_envs=2, max_episode_steps=10), [1, 2])
    envs.reset()
    flags = [envs.step(np.zeros(2, int))[2:] for _ in range(23)]
    dones, valid = (np.array([step[i][0] for step in flags]) for i in (0, 1))
    assert np.flatnonzero(dones).tolist() == [9, 20]
    assert np.flatnonzero(~valid).tolist() == [10, 21]
    assert envs.stats.episodes == [(0.0, 10)] * 4  # two environments, two episodes each, the reset steps not counted


@pytest.mark.parametrize("game", ["MontezumaRevenge-v5", "Pitfall-v5", "Venture-v5"])
def test_ale_py_shows_what_envpool_shows(game):
    args = script.Args(env_id=game, num_envs=1, sticky_actions=0.0)
    envs, env = script.AtariEnvs(args, [3]), script.make_evaluation_env(args)
    ours, (theirs, _) = envs.reset(), env.reset(seed=0)
    np.testing.assert_array_equal(ours[0], theirs)
    rng = np.random.default_rng(0)
    for step in range(200):
        action = int(rng.integers(envs.num_actions))
        obs, reward, terminated, _, info = envs.pool.step(np.array([action]))
        frame, plain_reward, plain_terminated, _, _ = env.step(action)
        assert terminated[0] == plain_terminated and reward[0] == plain_reward
        if terminated[0]:
            break
        np.testing.assert_array_equal(obs[0], frame, err_msg=f"step {step}")
        np.testing.assert_array_equal(info["ram"][0], env.unwrapped.ale.getRAM())
    assert step > 50
    assert env.render().shape == (210, 160, 3)


def test_statistics_and_rooms_leave_reset_steps_out(atari_pool):
    envs = script.AtariEnvs(small_args(num_envs=2), [0, 1])
    envs.reset()
    rewards = [envs.step(np.zeros(2, int))[1] for _ in range(14)]
    assert set(np.concatenate(rewards).tolist()) == {-1.0, 0.0, 1.0}  # signs
    # environment 0: episodes of 5 steps, ended, then truncated; environment 1: of 6 steps; unclipped: 3 - 2
    stats = envs.stats
    assert sorted(stats.episodes) == [(1.0, 5), (1.0, 5), (1.0, 6), (1.0, 6)]
    assert stats.visited == {1, 2, 3} and 99 not in stats.visited and stats.rooms_best == 3
    scalars = stats.scalars(14)
    assert scalars == {
        "rnd/rooms_visited": 3,
        "rnd/rooms_best_episode": 3,
        "charts/episodic_return": 1.0,
        "charts/episodic_length": 5.5,
    }
    assert list(stats.recent) == [1.0] * 4 and stats.episodes == []
    stats.recent.extend([0.0] * 95)
    assert "charts/score" not in stats.scalars(14)
    stats.recent.append(3.0)
    assert stats.scalars(14)["charts/score"] == 0.07  # of a hundred: 4 * 1 + 3
    stats.recent = type(stats.recent)([1.0] * 4, 100)
    other = script.EpisodeStats(2)
    other.load_state_dict(stats.state_dict())
    assert other.state_dict() == stats.state_dict() and str(other) == str(stats) == "return 1.0, rooms 3 (best 3)"
    assert "charts/episodic_return" not in stats.scalars(15)
    stats.add(np.zeros(2), np.zeros(2, bool), np.ones(2, bool), np.array([7, 7]))
    assert stats.rooms_best == 3  # of new episodes, which have been in one or two


def test_scores_wait_for_the_environments_of_all_ranks(monkeypatch):
    stats, elsewhere = script.EpisodeStats(1), [True]
    monkeypatch.setattr(script, "all_ranks", lambda own: [own, ([(5.0, 1)], elsewhere[0], {7}, 1)])
    for _ in range(2):
        stats.add(np.ones(1), np.ones(1, bool), np.ones(1, bool), None)
        stats.scalars(1)
        elsewhere[0] = False
    assert list(stats.recent) == [1, 5] and stats.visited == {7}  # of the second time


# --------------------------------------------------------------------------------- The steps of the algorithm


@pytest.fixture(scope="module")
def watched(tmp_path_factory):
    args = small_args(update_epochs=3, update_proportion=1.0, total_timesteps=2 * T * N)
    return watch(script, args, tmp_path_factory.mktemp("watched"))


def test_the_policy_acts_on_what_the_environments_showed_last(watched):
    shown, expected = [step[2] for step in watched.steps], []
    for k in (1, 2):  # 16 steps each, after 16 of warm-up
        expected += shown[T * k - 1 : T * (k + 1)]
        expected += shown[T * (k + 1) - 1 :][:1] * 1  # once more for the largest logit
    assert len(watched.acted) == len(expected) == 2 * (T + 2)
    assert all(np.array_equal(a, b) for a, b in zip(watched.acted, expected, strict=True))


def test_target_never_changes_and_everything_else_does(watched):
    torch.manual_seed(watched.args.seed)
    with float64():
        agent, rnd = script.Agent(6, 2), script.RND(N, CPU)
    for key, part in (("agent", agent), ("rnd", rnd)):
        for name, before in part.state_dict().items():
            assert torch.equal(before, watched.states[-1][f"{key}.{name}"]) == name.startswith("target"), name


def plain_white(frames: np.ndarray, mean: np.ndarray, var: np.ndarray, _count: float) -> torch.Tensor:
    return torch.from_numpy(np.clip((frames - mean) / np.sqrt(var), -5, 5))[:, None]


def test_one_iteration_equals_a_plain_transcription_of_the_reference(watched):
    assert_equals_transcription(script, watched, lean_agent, lean_rnd, plain_white)


def test_predictor_learns_from_exactly_what_was_rewarded_and_nothing_else_counts(atari_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "novelty", spy(script.novelty, rewarded := []))
    monkeypatch.setattr(script.RunningMoments, "update", spy(script.RunningMoments.update, moments := []))
    learned, busy = [], []  # whiten is also called inside features

    def spy_features(*args, function=script.features):
        busy.append(1)
        result = function(*args)
        busy.pop()
        return result

    def spy_whiten(frames, obs_rms, function=script.whiten):
        learned.extend([] if busy else frame_numbers(frames))
        return function(frames, obs_rms)

    monkeypatch.setattr(script, "features", spy_features)
    monkeypatch.setattr(script, "whiten", spy_whiten)
    args = small_args(update_proportion=0.5, update_epochs=6, total_timesteps=2 * T * N)
    state = torch.load(train_here(script, args, tmp_path) / "latest.pt", weights_only=True)["rnd"]

    log = AtariPool.log
    warmup, training = log[:T], log[T:]
    assert len(warmup) == T and len(training) == 2 * T
    numbers = [frame_numbers(step["frame"][step["valid"]]) for step in log]
    counted = [frame_numbers(batch[valid]) for (_, batch, valid), _ in moments if batch.ndim == 3]
    assert [*chain(*counted)] == [*chain(*numbers)]  # each frame once, in warm-up and training, none of a reset step
    valid_numbers = set(chain(*numbers[T:]))
    reset_numbers = set(chain(*(frame_numbers(step["frame"][~step["valid"]]) for step in training)))
    assert reset_numbers
    seen = [frame_numbers(frames[t]) for (_, frames), _ in rewarded for t in range(T)]
    assert seen == [frame_numbers(step["frame"]) for step in training]
    assert not set(learned) & reset_numbers
    assert set(learned) <= valid_numbers and len(set(learned)) > 0.9 * len(valid_numbers)
    assert len(learned) == 2 * 6 * T * N // 2

    # the statistics of the frames as numpy has them, and those of the filtered return over valid steps alone
    mean, _, count = plain_moments(step["frame"][step["valid"]] for step in log)
    np.testing.assert_allclose(state["obs_rms.mean"], mean, rtol=1e-9)
    np.testing.assert_allclose(state["obs_rms.count"], count)
    np.testing.assert_allclose(state["return_rms.count"], sum(step["valid"].sum() for step in training) + 1e-4)


def random_update(**changes) -> tuple[list, dict, script.Rollout, torch.Tensor, torch.Tensor, script.Agent]:
    """`update` of one minibatch on made-up data: gradients, scalars, and what went in."""
    args = small_args(num_minibatches=1, **changes)
    torch.manual_seed(0)
    agent, rnd = script.Agent(6, 2), script.RND(args.num_envs, CPU)
    before = [p.detach().clone() for p in agent.parameters()]
    rollout = script.empty_rollout(args.num_steps, args.num_envs, 2, CPU)
    rollout.obs.random_(256)
    rollout.actions.random_(6)
    rollout.logprobs.uniform_(-2, -1.6)
    rollout.valid.copy_(torch.rand(rollout.valid.shape) < torch.linspace(0.3, 1, args.num_steps)[:, None])
    rnd.obs_rms.update(rollout.frames.flatten(0, 1), rollout.valid.flatten())
    advantages, returns = torch.randn(rollout.valid.shape), torch.randn(*rollout.valid.shape, 2)
    optimizer = script.Adam([*agent.parameters(), *rnd.predictor.parameters()], lr=0.0)
    scalars = script.update(agent, rnd, optimizer, rollout, advantages, returns, args)
    assert all(torch.equal(a, b) for a, b in zip(before, agent.parameters(), strict=True))  # the rate is 0
    return [p.grad for p in agent.parameters()], scalars, rollout, advantages, returns, agent


def whole_loss(rollout, advantages, returns, agent) -> torch.Tensor:
    data = {"actions": rollout.actions, "logprobs": rollout.logprobs, "valid": rollout.valid}
    batch = {k: x.flatten(0, 1) for k, x in (data | {"advantages": advantages, "returns": returns}).items()}
    return script.ppo_loss(*agent(rollout.obs[:-1].flatten(0, 1)), batch, script.Args())[0]


def test_a_backward_pass_in_pieces_is_that_of_the_whole():
    gradients, scalars, *data, agent = random_update(num_envs=2, num_steps=530, update_proportion=0.01)  # 1,060 samples
    loss = whole_loss(*data, agent)
    expected = torch.autograd.grad(loss, [*agent.parameters()])
    for ours, plain in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-3, atol=1e-5 * float(plain.abs().max()))
    value = scalars["losses/policy_loss"] + scalars["losses/value_loss"] - 0.001 * scalars["losses/entropy"]
    torch.testing.assert_close(value, loss.detach())


def test_norm_adv_and_max_grad_norm():
    plain, scalars, rollout, advantages, returns, agent = random_update()
    clipped, same_scalars, *_ = random_update(max_grad_norm=0.01)
    normed, *_ = random_update(norm_adv=True)
    norm = float(scalars["losses/grad_norm"])
    assert norm == float(same_scalars["losses/grad_norm"]) > 0.01  # the norm before it was clipped, of the agent
    for a, b in zip(plain, clipped, strict=True):
        torch.testing.assert_close(a * 0.01 / norm, b, rtol=1e-4, atol=1e-12)
    valid = rollout.valid
    normal = (advantages - advantages[valid].mean()) / advantages[valid].std(correction=0)
    expected = torch.autograd.grad(whole_loss(rollout, normal, returns, agent), [*agent.parameters()])
    for a, b in zip(normed, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5 * float(b.abs().max()))


# --------------------------------------------------------------------------------------------------- Training


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Two iterations with the flags of small_args: the run's folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.envpool, "make", AtariPool)
        return train_here(script, small_args(total_timesteps=128), tmp_path_factory.mktemp("base"))


def weights(run_dir: pathlib.Path) -> dict:
    return torch.load(run_dir / "latest.pt", weights_only=True)


@pytest.mark.parametrize(
    "changes",
    [
        {"obs_norm": "frozen"},
        {"int_clip": 0.1},
        {"int_coef": 0.0},
        {"single_head": True},
        {"bf16": True},
        {"num_envs": 1, "num_minibatches": 1, "num_steps": 64},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_flags_train_and_matter(base, atari_pool, tmp_path, changes):
    other = train_here(script, small_args(total_timesteps=128, **changes), tmp_path)
    states, scalars = (weights(base), weights(other)), read_scalars(other)
    heads = [state["agent"]["policy_head.weight"] for state in states]
    assert heads[1].isfinite().all() and not torch.equal(*heads)
    assert len(scalars["losses/policy_loss"]) == 2
    if "obs_norm" in changes:
        assert states[1]["rnd"]["obs_rms.count"] < states[0]["rnd"]["obs_rms.count"] / 2
    if "int_clip" in changes:
        assert max(value for _, value in scalars["rnd/intrinsic_reward"]) <= 0.1
    if "single_head" in changes:
        assert "losses/value_loss" in scalars and "losses/value_loss_int" not in scalars


def test_without_the_bonus_nothing_else_changes(atari_pool, tmp_path):
    """--int-coef 0: the same actions, frames and bonus in the first iteration, and the same predictor after it."""
    folders = [train_here(script, small_args(int_coef=c), tmp_path / f"{c}") for c in (0.0, 1.0)]
    states = [weights(folder) for folder in folders]
    assert_same(states[0]["rnd"], states[1]["rnd"])
    assert_same(states[0]["ranks"], states[1]["ranks"])
    assert not torch.equal(*(state["agent"]["trunk.0.weight"] for state in states))
    scalars = [read_scalars(folder) for folder in folders]
    for tag in ("rnd/intrinsic_reward", "losses/predictor_loss", "charts/episodic_return"):
        assert scalars[0][tag] == scalars[1][tag]


def test_same_seed_same_scalars_and_another_seed_others(tmp_path):
    runs = [
        train_here(script, small_args(seed=s, total_timesteps=128), tmp_path / f"{k}") for k, s in enumerate((1, 1, 2))
    ]
    scalars = [{k: v for k, v in read_scalars(run).items() if k != "charts/SPS"} for run in runs]
    assert_same(scalars[0], scalars[1])
    assert scalars[0]["losses/entropy"] != scalars[2]["losses/entropy"]


@pytest.fixture
def copy_of_base(base, tmp_path):
    """A copy of that run, which a test may change: the checkpoint's path, what it holds, flags of 64 steps more."""
    folder = tmp_path / "copy" / base.name
    folder.mkdir(parents=True)
    (folder / "latest.pt").write_bytes((base / "latest.pt").read_bytes())
    path, saved = script.load_checkpoint(str(folder))
    return path, saved, script.Args(**saved["args"] | {"total_timesteps": 192})


def test_resume_restores_the_learner_bit_for_bit(copy_of_base, atari_pool, monkeypatch):
    path, _, args = copy_of_base
    before = torch.load(path, weights_only=True)
    monkeypatch.setattr(script.Run, "stopped", lambda self: True)
    torch.manual_seed(123)
    train_here(script, args, path.parents[1], *script.load_checkpoint(str(path)))
    after = torch.load(path, weights_only=True)
    assert after["seconds"] > before["seconds"]
    assert_same(before, after, but=("seconds", "args"))
    assert before["optimizer"]["state"][0]["step"] == 2 * 2 and before["step"] == 128
    assert len(before["stats"]["recent"]) > 10 and before["stats"]["rooms_best"] == 3


def test_a_resume_takes_the_learning_rate_that_is_asked_for(copy_of_base, atari_pool):
    path, saved, args = copy_of_base
    run_dir = train_here(script, dataclasses.replace(args, learning_rate=3e-4), path.parents[1], path, saved)
    scalars = read_scalars(run_dir)
    assert scalars["charts/learning_rate"] == [(192, pytest.approx(3e-4))]
    assert torch.load(path, weights_only=True)["optimizer"]["param_groups"][0]["lr"] == 3e-4


def test_a_nan_stops_the_run_and_names_itself(copy_of_base, atari_pool, tmp_path):
    path, saved, args = copy_of_base
    before = path.read_bytes()
    said = r"(losses|rnd)/\w+ is (nan|inf) at step 192: stopped; the last good checkpoint is .*/latest.pt"
    args = dataclasses.replace(args, learning_rate=1e30, checkpoint_interval=0)
    with pytest.raises(FloatingPointError, match=said):
        train_here(script, args, path.parents[1], path, saved)
    assert path.read_bytes() == before and not [*path.parent.glob("*.tmp")]
    with pytest.raises(FloatingPointError, match="at step 64: stopped; there is no checkpoint yet"):
        train_here(script, small_args(learning_rate=1e30), tmp_path / "first")


# ------------------------------------------------------------------------------------ What the user was promised


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env-id", "MontezumasRevenge"], "did you mean MontezumaRevenge-v5"),
        (["--env-id", "MiniGrid-DoorKey-8x8-v0"], "this script plays Atari games"),
        (["--seed", -1], "--seed -1: must be at least 0"),
        (["--max-episode-steps", 10**10], "--max-episode-steps 10000000000: must be at least 1 and below 2^31"),
        (["--num-envs", 0], "--num-envs 0: must be at least 1"),
        (["--num-envs", -4], "--num-envs -4: must be at least 1"),
        (["--num-steps", 0], "--num-steps 0: must be at least 1"),
        (["--num-minibatches", 0], "--num-minibatches 0: must be at least 1"),
        (["--num-minibatches", 3], "--num-minibatches 3: must be a divisor of 128 (N, or with --shuffle T * N)"),
        (
            ["--num-minibatches", 3, "--shuffle"],
            "--num-minibatches 3: must be a divisor of 16384 (N, or with --shuffle T * N)",
        ),
        (["--gamma", 1.5], "--gamma 1.5: must be in [0, 1]"),
        (["--int-gamma", -0.1], "--int-gamma -0.1: must be in [0, 1]"),
        (["--gae-lambda", "nan"], "--gae-lambda nan: must be in [0, 1]"),
        (["--update-proportion", 0], "--update-proportion 0.0: must be in (0, 1]"),
        (["--update-proportion", 1.1], "--update-proportion 1.1: must be in (0, 1]"),
        (["--learning-rate", 0], "--learning-rate 0.0: must be a positive number"),
        (["--learning-rate", "inf"], "--learning-rate inf: must be a positive number"),
        (["--sticky-actions", 2], "--sticky-actions 2.0: must be in [0, 1]"),
        (["--total-timesteps", 0], "--total-timesteps 0.0: must be at least one rollout, 16384 steps"),
        (["--total-timesteps", "1e4"], "--total-timesteps 10000.0: must be at least one rollout"),
        (["--total-timesteps", "nan"], "--total-timesteps nan: must be at least one rollout"),
        (["--obs-norm", "frozen", "--warmup-rollouts", 0], "--warmup-rollouts 0: must be at least 1"),
        (["--int-coef", 0, "--ext-coef", 0], "--ext-coef 0.0: must be above 0 with --int-coef 0"),
        (["--resume", "nowhere"], "there is no checkpoint nowhere"),
        (["--resume", "~nobody-of-that-name/run"], "there is no checkpoint ~nobody-of-that-name/run"),
        (["--evaluate", "empty"], "there is no checkpoint empty/latest.pt"),
        (["--resume", "a", "--evaluate", "b"], "there is no checkpoint a"),
        (["--resume", "garbage.pt"], "garbage.pt is damaged or does not fit script and flags"),
        (["--resume", "foreign.pt"], "foreign.pt is damaged or does not fit script and flags (KeyError: 'args')"),
        (["--resume", "other.pt"], "other.pt is damaged or does not fit script and flags"),
        (["--runs-dir", "file"], "cannot write into file/"),
        (["--runs-dir", "/dev/null/runs"], "cannot write into /dev/null/runs"),
    ],
    ids=lambda value: "_".join(map(str, value)).replace("/", ".") if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_leaves_nothing(atari_pool, monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("empty").mkdir()
    pathlib.Path("garbage.pt").write_bytes(b"PK\x03\x04 this is no checkpoint")
    pathlib.Path("file").write_text("a file, not a folder")
    torch.save({"script": "snd_atari"}, "foreign.pt")
    torch.save([1, 2], "other.pt")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    status, _, errors = call_main(script, capsys, "--device", "cpu", *flags)
    assert status == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("flags", [["--num-envs", "1.5"], ["--num-env", "4"], ["--device", "tpu"], ["--gamma", "x"]])
def test_what_the_parser_refuses(capsys, flags):
    status, _, errors = call_main(script, capsys, *flags)
    assert status == 2 and "Traceback" not in errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is CUDA")
def test_cuda_without_cuda(capsys):
    status, _, errors = call_main(script, capsys, "--device", "cuda")
    assert (
        status == 2 and errors.startswith("error: --device cuda: must be on this machine") and errors.count("\n") == 1
    )


def test_track_without_wandb(monkeypatch, capsys):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    status, _, errors = call_main(script, capsys, "--track")
    assert status == 2 and errors == "error: --track True: must be with wandb: pip install wandb\n"


def test_versions_and_commit_are_logged_with_git_or_without(base, atari_pool, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(script.Run, "stopped", lambda self: True)
    for folder in (base, train_here(script, small_args(seed=7), tmp_path)):
        events = EventAccumulator(str(folder))
        events.Reload()
        (text,) = events.Tensors("hyperparameters/text_summary")
        rows = dict(row.split("|")[1:3] for row in text.tensor_proto.string_val[0].decode().splitlines())
        assert rows["torch"] == importlib.metadata.version("torch") and rows["gamma"] == "0.999"
        assert (rows["commit"] == "unknown") == (folder != base or not (ROOT / ".git").exists())
    assert rows["seed"] == "7"


def test_resuming_with_other_flags(copy_of_base, atari_pool, capsys, monkeypatch):
    """What differs is named; another architecture is refused; another number of environments is none."""
    path, _, _ = copy_of_base
    before = path.read_bytes()
    for flags, message in [
        (
            ["--single-head", "--total-timesteps", 192],
            "does not fit script and flags (size mismatch for value_head.bias",
        ),
        (["--total-timesteps", 128], "has all of its 128 steps; ask for more with --total-timesteps"),
    ]:
        status, out, errors = call_main(script, capsys, "--resume", path, *flags)
        assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
        assert path.read_bytes() == before
    assert "changed      --single-head" not in out
    flags = ["--num-envs", 6, "--obs-norm", "frozen", "--total-timesteps", 224]
    status, out, errors = call_main(script, capsys, "--resume", path, *flags)
    assert status == 0 and "changed      --num-envs from 4 to 6\n" in out
    assert "changed      --obs-norm from running to frozen\n" in out
    state = torch.load(path, weights_only=True)
    assert state["step"] == 224 and len(state["rnd"]["filtered"]) == 6


def test_the_preset_for_a_cpu(copy_of_base, monkeypatch, capsys):
    """Its flags read back; a flag given beside it stands; a run goes on with its own preset."""
    got = []
    monkeypatch.setattr(script, "train", lambda args, *_: got.append(args) or 0)
    assert call_main(script, capsys, "--preset", "small", "--num-envs", 64)[0] == 0
    shape = {"total_timesteps": 3_500_000, "num_envs": 64, "num_steps": 512, "num_minibatches": 32, "shuffle": True}
    shape |= {"warmup_rollouts": 10, "norm_adv": True, "learning_rate": 2.5e-4, "max_grad_norm": 0.5}
    shape |= {"update_proportion": 0.25, "preset": "small", "env_id": MONTEZUMA}
    assert vars(got[0]) == vars(script.Args()) | shape
    status, _, errors = call_main(script, capsys, "--resume", copy_of_base[0], "--preset", "small")
    assert status == 2 and "is of a run with --preset paper; another preset" in errors and len(got) == 1


def test_a_run_as_a_user_sees_it(tmp_path):
    """Trains, resumes and evaluates in processes of their own."""
    small = ["--num-envs", 4, "--num-steps", 16, "--warmup-rollouts", 1, "--update-epochs", 1]  # 64 steps a rollout
    out = run_script("ppo_rnd_atari.py", *small, "--total-timesteps", 128, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    run_dir = only_run(tmp_path)
    assert run_dir.name.startswith("MontezumaRevenge-v5__ppo_rnd_atari__1__")
    promised = {"events", "latest", "lock", "ppo_rnd_atari"}
    assert {p.name.split(".")[0] for p in run_dir.iterdir()} <= promised  # and no temporary file
    assert (run_dir / "ppo_rnd_atari.py").read_text() == (ROOT / "ppo_rnd_atari.py").read_text()
    lines = out.stdout.splitlines()
    for word in (
        "device",
        "environment  MontezumaRevenge-v5 x 4",
        "parameters",
        "preset       paper (for a",
        "rollout",
        "folder",
    ):
        assert any(line.startswith(word) for line in lines), word
    assert "room 1 seen for the first time, by step 64" in lines
    assert lines[-1].startswith("return -, rooms 1 (best 1), 128 steps in 00:") and lines[-1].endswith(run_dir.name)
    assert out.stderr == ""

    scalars = read_scalars(run_dir)
    losses = "policy_loss value_loss value_loss_int value_loss_ext entropy approx_kl clipfrac predictor_loss grad_norm"
    expected = {f"losses/{name}" for name in (losses + " max_logit").split()}
    expected |= {f"losses/{x}{suffix}" for x in ("explained_variance", "advantage_rms") for suffix in ("_int", "_ext")}
    expected |= {
        f"rnd/{x}"
        for x in (
            *("intrinsic_reward", "intrinsic_reward_last", "intrinsic_return_std"),
            *("rooms_visited", "rooms_best_episode"),
        )
    }
    expected |= {"charts/SPS", "charts/learning_rate"}
    assert set(scalars) == expected
    assert [step for step, _ in scalars["losses/entropy"]] == [64, 128]
    assert abs(scalars["losses/entropy"][0][1] - np.log(18)) < 0.01

    more = run_script("ppo_rnd_atari.py", "--resume", run_dir, "--total-timesteps", "1.92e2", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert ", 192 steps in 00:" in more.stdout.splitlines()[-1]
    assert [step for step, _ in read_scalars(run_dir)["losses/entropy"]] == [64, 128, 192]

    flags = ["--evaluate", run_dir, "--eval-episodes", 2, "--capture-video", "--max-episode-steps", 40]
    played = run_script("ppo_rnd_atari.py", *flags, cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    last = played.stdout.splitlines()[-1]
    assert last == "return 0.0 +- 0.0 (mean, standard error), best 0, rooms 1.0, most 1"
    videos = sorted((run_dir / "videos").iterdir())
    assert len(videos) == 2
    import imageio

    frames = imageio.mimread(videos[0], memtest=False)
    assert len(frames) == 40 and frames[0].shape == (630, 480, 3)
    assert np.ptp(frames[20].astype(int), axis=2).max() > 100  # colours, not grey


def test_tracking_without_a_network(tmp_path):
    pytest.importorskip("wandb")
    flags = ["--num-envs", 2, "--num-steps", 8, "--num-minibatches", 1, "--warmup-rollouts", 0, "--track"]
    out = run_script(
        "ppo_rnd_atari.py", *flags, "--total-timesteps", 32, cwd=tmp_path, env={**os.environ, "WANDB_MODE": "offline"}
    )
    assert out.returncode == 0, out.stderr
    assert list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.learning
def test_the_bonus_solves_a_corridor_that_ppo_alone_does_not(monkeypatch):
    """About five minutes on one core; benchmark/corridor.py shows the same on five seeds."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmark"))
    import corridor

    monkeypatch.setattr(script.envpool, "make", script.envpool.make)  # put back afterwards
    flags, rows = corridor.SETTINGS["ppo_rnd_atari"]
    for row, solved in (("with the bonus", True), ("without", False)):
        words = f"{flags} {rows[row]} --total-timesteps 24576".split()
        returns = corridor.train(ROOT / "ppo_rnd_atari.py", 1, words)["charts/episodic_return"]
        last = np.mean([value for _, value in returns[-5:]])
        assert last > 0.9 if solved else last == 0
