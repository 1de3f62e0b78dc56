"""ppo_rnd_atari.py: its numbers against independent computations, and its promises to the user."""

import dataclasses
import importlib.metadata
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import time
from itertools import chain

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, read_scalars, run_script
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import ppo_rnd_atari as script

CPU = torch.device("cpu")
SMALL = ["--num-envs", 4, "--num-steps", 16, "--warmup-rollouts", 1]  # 64 steps a rollout


def small_args(**changes) -> script.Args:
    values = {"num_envs": 4, "num_steps": 16, "total_timesteps": 64, "warmup_rollouts": 1, "checkpoint_interval": 1e6}
    return script.Args(**(values | changes))


# ----------------------------------------------------------------------------------------------------------------------
# Normalisers and returns
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("shape", [(), (3, 5)])
def test_running_moments_equal_numpy(batch_size, shape):
    rng = np.random.default_rng(0)
    moments = script.RunningMoments(shape, CPU)
    kept = []
    for k in range(40):
        batch = rng.normal(100 * k, 1 + k, (batch_size, *shape))
        valid = rng.random(batch_size) < 0.7
        if k == 3:
            valid[:] = False  # a step on which every environment was reset
        moments.update(torch.from_numpy(batch), torch.from_numpy(valid))
        kept.append(batch[valid])
    data = np.concatenate(kept)
    # the start counts as 1e-4 samples of mean 0 and variance 1
    count = len(data) + 1e-4
    mean = data.sum(0) / count
    var = ((data**2).sum(0) + 1e-4) / count - mean**2
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
    T, N, gamma = 23, 5, 0.9
    rewards, _, state, _, valid = random_rollout(T, N, 0)
    expected = np.zeros((T, N))
    for env in range(N):  # each environment by itself, over time
        f = state[env]
        for t in range(T):
            if valid[t, env]:
                f = gamma * f + rewards[t, env]
            expected[t, env] = f
    tensors = [torch.from_numpy(x) for x in (rewards, valid)]
    filtered, last = script.reward_filter(*tensors, gamma, torch.from_numpy(state))
    np.testing.assert_allclose(filtered, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(last, expected[-1], rtol=1e-5, atol=1e-6)
    # in two rollouts, the state carried on, it is the same
    first, between = script.reward_filter(tensors[0][:10], tensors[1][:10], gamma, torch.from_numpy(state))
    second, _ = script.reward_filter(tensors[0][10:], tensors[1][10:], gamma, between)
    torch.testing.assert_close(torch.cat([first, second]), filtered)


def advantages_by_definition(rewards, values, last_value, dones, valid, gamma, lam):
    """Sum over k of (gamma * lambda)^k delta(t+k) along the valid steps of each environment, up to its first done."""
    T, N = rewards.shape
    result = np.zeros((T, N))
    for env in range(N):
        steps = [t for t in range(T) if valid[t, env]]
        v = [values[t, env] for t in steps] + [last_value[env]]
        for i in range(len(steps)):
            weight = 1.0
            for k in range(i, len(steps)):
                done = dones[steps[k], env]
                delta = rewards[steps[k], env] + gamma * v[k + 1] * (not done) - v[k]
                result[steps[i], env] += weight * delta
                if done:
                    break
                weight *= gamma * lam
    return result


@pytest.mark.parametrize("episodic", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_gae_equals_its_definition(episodic, seed):
    rewards, values, last_value, dones, valid = random_rollout(31, 6, seed)
    ends = dones if episodic else np.zeros_like(dones)
    expected = advantages_by_definition(rewards, values, last_value, ends, valid, 0.97, 0.9)
    tensors = [torch.from_numpy(x) for x in (rewards, values, last_value, ends, valid)]
    np.testing.assert_allclose(script.gae(*tensors, 0.97, 0.9), expected, rtol=1e-4, atol=1e-5)


def test_a_reset_step_changes_nothing_whatever_it_holds():
    rewards, values, last_value, dones, valid = random_rollout(31, 6, 1)
    assert (~valid).any()
    for ends in (dones, np.zeros_like(dones)):
        tensors = [torch.from_numpy(x) for x in (rewards, values, last_value, ends, valid)]
        before = script.gae(*tensors, 0.97, 0.9)
        tensors[0][~tensors[4]], tensors[1][~tensors[4]] = 1e3, -1e3
        torch.testing.assert_close(script.gae(*tensors, 0.97, 0.9), before)
        assert (before[~tensors[4]] == 0).all()


@pytest.mark.parametrize("clip_vloss", [False, True])
def test_ppo_loss_equals_a_loop_over_samples(clip_vloss):
    rng = np.random.default_rng(0)
    B, A = 50, 6
    logits, values = rng.normal(size=(B, A)), rng.normal(size=(B, 2))
    actions, valid = rng.integers(A, size=B), rng.random(B) < 0.8
    old_logprobs, advantages = rng.normal(-1.8, 0.2, B), rng.normal(size=B)
    old_values, returns = values + rng.normal(0, 0.2, (B, 2)), rng.normal(size=(B, 2))
    args = script.Args(clip_vloss=clip_vloss)
    policy, entropy, value, kl, clipped = [], [], [[], []], [], []
    for i in np.flatnonzero(valid):
        p = np.exp(logits[i]) / np.exp(logits[i]).sum()
        ratio = p[actions[i]] / np.exp(old_logprobs[i])
        policy.append(-min(ratio * advantages[i], np.clip(ratio, 0.9, 1.1) * advantages[i]))
        entropy.append(-(p * np.log(p)).sum())
        kl.append(ratio - 1 - np.log(ratio))
        clipped.append(abs(ratio - 1) > 0.1)
        for head in range(2):
            error = (values[i, head] - returns[i, head]) ** 2
            if clip_vloss:
                near = old_values[i, head] + np.clip(values[i, head] - old_values[i, head], -0.1, 0.1)
                error = max(error, (near - returns[i, head]) ** 2)
            value[head].append(0.5 * error)
    batch = {"actions": actions, "logprobs": old_logprobs, "advantages": advantages, "valid": valid}
    batch |= {"values": old_values, "returns": returns}
    batch = {key: torch.from_numpy(x) for key, x in batch.items()}
    loss, metrics = script.ppo_loss(torch.from_numpy(logits), torch.from_numpy(values), batch, args)
    value_loss = np.mean(value[0]) + np.mean(value[1])
    np.testing.assert_allclose(loss, np.mean(policy) + value_loss - 0.001 * np.mean(entropy), rtol=1e-6)
    expected = {"policy_loss": np.mean(policy), "value_loss": value_loss, "entropy": np.mean(entropy)}
    expected |= {"approx_kl": np.mean(kl), "clipfrac": np.mean(clipped)}
    expected |= {"value_loss_int": np.mean(value[0]), "value_loss_ext": np.mean(value[1])}
    assert metrics.keys() == expected.keys()
    for key, x in expected.items():
        np.testing.assert_allclose(metrics[key], x, rtol=1e-6, err_msg=key)


def test_a_stream_that_is_turned_off_trains_no_value_head():
    batch = {key: torch.rand(9) for key in ("logprobs", "advantages")}
    batch |= {"actions": torch.zeros(9, dtype=torch.int64), "valid": torch.ones(9, dtype=torch.bool)}
    batch |= {"values": torch.rand(9, 2), "returns": torch.rand(9, 2)}
    values = torch.rand(9, 2, requires_grad=True)
    script.ppo_loss(torch.rand(9, 3), values, batch, script.Args(int_coef=0))[0].backward()
    assert (values.grad[:, 0] == 0).all() and (values.grad[:, 1] != 0).all()


def test_small_statistics():
    x, valid = torch.tensor([1.0, 2.0, 6.0, 100.0]), torch.tensor([True, True, True, False])
    assert script.masked_mean(x, valid) == 3
    assert script.masked_mean(x, torch.zeros(4, dtype=torch.bool)) == 0
    np.testing.assert_allclose(script.normalise(x, valid)[:3], (x[:3] - 3) / np.std([1, 2, 6]), rtol=1e-6)
    returns = torch.tensor([[0.0, 1.0, 2.0, 50.0]])
    values = torch.tensor([[0.5, 1.0, 1.5, -9.0]])
    expected = 1 - np.var([-0.5, 0, 0.5]) / np.var([0, 1, 2])
    np.testing.assert_allclose(script.explained_variance(values, returns, valid[None]), expected, rtol=1e-6)


# ----------------------------------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------------------------------


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


def test_subset_equals_the_masked_loss():
    torch.manual_seed(0)
    rnd = script.RND(4, CPU)
    frames = torch.randint(256, (40, 84, 84), dtype=torch.uint8)
    rnd.obs_rms.update(frames, torch.ones(40, dtype=torch.bool))
    valid = torch.rand(40) < 0.8
    features = script.features(rnd.target, frames[None], rnd.obs_rms)[0]
    kept = script.predictor_subset(valid, 10)
    assert len(set(kept.tolist())) == 10 and valid[kept].all()

    errors = (rnd.predictor(script.whiten(frames[kept], rnd.obs_rms)) - features[kept]).square().mean(1)
    loss = script.masked_mean(errors, valid[kept])
    loss.backward()
    fast = {name: p.grad.clone() for name, p in rnd.predictor.named_parameters()}
    rnd.predictor.zero_grad()
    mask = torch.zeros(40)
    mask[kept] = 1  # the reference: every sample computed, the loss masked
    errors = (rnd.predictor(script.whiten(frames, rnd.obs_rms)) - features).square().mean(1)
    masked = (errors * mask).sum() / mask.sum().clamp(min=1)
    masked.backward()
    torch.testing.assert_close(loss, masked, rtol=1e-5, atol=0)
    for name, p in rnd.predictor.named_parameters():
        torch.testing.assert_close(fast[name], p.grad, rtol=1e-4, atol=1e-5 * p.grad.abs().max().item(), msg=name)


def test_subset_takes_reset_steps_only_if_it_must():
    valid = torch.tensor([True, False] * 10)
    assert set(script.predictor_subset(valid, 10).tolist()) == set(range(0, 20, 2))
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


# ----------------------------------------------------------------------------------------------------------------------
# Environment
# ----------------------------------------------------------------------------------------------------------------------


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
        ("", "this script plays Atari games"),
    ],
)
def test_a_wrong_name_gets_a_hint(name, hint):
    with pytest.raises(script.UserError, match=hint):
        script.resolve_env_id(name)


def test_constants_read_back_from_envpool():
    envs = script.AtariEnvs("MontezumaRevenge-v5", 2, [1, 2], script.Args())
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
    envs = script.AtariEnvs("MontezumaRevenge-v5", 2, [1, 2], small_args(max_episode_steps=10))
    envs.reset()
    flags = [envs.step(np.zeros(2, int))[2:] for _ in range(23)]
    dones, valid = (np.array([step[i][0] for step in flags]) for i in (0, 1))
    assert np.flatnonzero(dones).tolist() == [9, 20]
    assert np.flatnonzero(~valid).tolist() == [10, 21]
    assert envs.episodes == [(0.0, 10)] * 4  # two environments, two episodes each, the reset steps not counted


@pytest.mark.parametrize("game", ["MontezumaRevenge-v5", "Pitfall-v5", "Venture-v5"])
def test_ale_py_shows_what_envpool_shows(game):
    args = script.Args(sticky_actions=0.0)
    envs = script.AtariEnvs(game, 1, [3], args)
    env = script.make_evaluation_env(game, args)
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


class FakePool:
    """EnvPool's interface with scripted episodes. Each frame carries a number of its own in its first four pixels.

    Environment i plays episodes of length 5 + i; every second one is truncated. Rewards are 3 on each 4th step.
    """

    def __init__(self, num_envs: int, lost_lives: bool = False):
        self.num_envs, self.lost_lives = num_envs, lost_lives
        self.action_space = type("Space", (), {"n": 6})()
        self.time, self.episode, self.shown = np.zeros(num_envs, int), np.zeros(num_envs, int), 0
        self.done = np.zeros(num_envs, bool)
        self.log: list[dict] = []

    def frames(self) -> np.ndarray:
        obs = np.random.default_rng(self.shown).integers(0, 256, (self.num_envs, 4, 84, 84)).astype(np.uint8)
        for i in range(self.num_envs):
            obs[i, 3, 0, :4] = np.array([self.shown + i], np.uint32).view(np.uint8)
        self.shown += self.num_envs
        return obs

    def reset(self):
        return self.frames(), {}

    def step(self, actions):
        n, reset = self.num_envs, self.done.copy()
        self.time = np.where(reset, 0, self.time + 1)
        self.episode += reset
        ends = ~reset & (self.time == 5 + np.arange(n))
        truncated = ends & (self.episode % 2 == 1)
        lost = self.lost_lives & ends & (self.episode % 3 == 0)
        rewards = np.where(~reset & (self.time % 4 == 0), 3.0, 0.0).astype(np.float32)
        ram = np.zeros((n, 128), np.uint8)
        ram[:, 3] = np.where(reset, 99, 1 + self.time // 3)  # 99: a room that only a reset step shows
        self.done = ends
        obs = self.frames()
        info = {"ram": ram, "terminated": (ends & ~truncated & ~lost).astype(np.int32)}
        self.log.append({"frame": obs[:, 3].copy(), "valid": ~reset, "reward": rewards, "done": ends})
        return obs, rewards, ends & ~truncated, truncated, info


@pytest.fixture
def fake_pool(monkeypatch):
    """Lets the script build fake environments; returns the list of those built."""
    built = []

    def make(env_id, num_envs, **_):
        built.append(FakePool(num_envs))
        return built[-1]

    monkeypatch.setattr(script.envpool, "make", make)
    return built


def test_statistics_and_rooms_leave_reset_steps_out(fake_pool):
    envs = script.AtariEnvs("MontezumaRevenge-v5", 2, [0, 1], script.Args())
    envs.reset()
    rewards = [envs.step(np.zeros(2, int))[1] for _ in range(14)]
    assert set(np.concatenate(rewards).tolist()) == {0.0, 1.0}  # signs
    # environment 0: episodes of 5 steps, ended, then truncated; environment 1: of 6 steps; unclipped rewards of 3
    assert sorted(envs.episodes) == [(3.0, 5), (3.0, 5), (3.0, 6), (3.0, 6)]
    assert envs.visited == {1, 2, 3} and 99 not in envs.visited
    assert envs.rooms_best == 3
    assert list(envs.recent) == [3.0] * 4


def test_a_lost_life_ends_the_stream_but_not_the_score(fake_pool):
    envs = script.AtariEnvs("MontezumaRevenge-v5", 1, [0], script.Args(episodic_life=True))
    envs.pool.lost_lives = True
    envs.reset()
    dones = [envs.step(np.zeros(1, int))[2][0] for _ in range(12)]
    assert np.flatnonzero(dones).tolist() == [4, 10]
    assert envs.episodes == [(6.0, 10)]  # both lives, without the reset step between them


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


def train(args: script.Args, tmp_path: pathlib.Path, path=None, saved=None) -> pathlib.Path:
    """Trains in this process; returns the run's folder."""
    args.runs_dir = str(tmp_path)
    assert script.train(args, "MontezumaRevenge-v5", CPU, path, saved) == 0
    return next(tmp_path.glob("*/latest.pt")).parent


def frame_numbers(frames: torch.Tensor | np.ndarray) -> list[int]:
    frames = np.ascontiguousarray(np.asarray(frames)[:, 0, :4])
    return frames.view(np.uint32).ravel().tolist()


def test_predictor_learns_from_exactly_what_was_rewarded_and_nothing_else_counts(fake_pool, tmp_path, monkeypatch):
    rewarded, raw, learned, moments = [], [], [], []
    novelty, whiten, update = script.novelty, script.whiten, script.RunningMoments.update
    busy = []  # whiten is also called inside features

    def spy_novelty(rnd, frames):
        rewarded.append(frames.clone())
        raw.append(novelty(rnd, frames))
        return raw[-1]

    def spy_features(*args, function=script.features):
        busy.append(1)
        result = function(*args)
        busy.pop()
        return result

    def spy_whiten(frames, obs_rms):
        if not busy:
            learned.extend(frame_numbers(frames))
        return whiten(frames, obs_rms)

    def spy_update(self, batch, valid):
        if self.mean.ndim == 2:
            moments.extend(frame_numbers(batch[valid]))
        return update(self, batch, valid)

    monkeypatch.setattr(script, "novelty", spy_novelty)
    monkeypatch.setattr(script, "features", spy_features)
    monkeypatch.setattr(script, "whiten", spy_whiten)
    monkeypatch.setattr(script.RunningMoments, "update", spy_update)
    T, N = 16, 4
    args = small_args(update_proportion=0.5, update_epochs=6, total_timesteps=3 * T * N)
    run_dir = train(args, tmp_path)

    log = fake_pool[0].log
    warmup, training = log[:T], log[T:]
    assert len(training) == 3 * T
    numbers = [frame_numbers(step["frame"][step["valid"]]) for step in log]
    assert moments == list(chain(*numbers))  # warm-up and training: each frame once, none of a reset step
    valid_numbers = set(chain(*numbers[T:]))
    reset_numbers = set(chain(*(frame_numbers(step["frame"][~step["valid"]]) for step in training)))
    assert reset_numbers
    seen = [frame_numbers(frames[t]) for frames in rewarded for t in range(T)]
    assert seen == [frame_numbers(step["frame"]) for step in training]
    assert not set(learned) & reset_numbers
    assert set(learned) <= valid_numbers and len(set(learned)) > 0.9 * len(valid_numbers)
    assert len(learned) == 3 * 6 * T * N // 2

    # the moments of the frames as numpy has them, and those of the filtered return over valid steps alone
    state = torch.load(run_dir / "latest.pt", weights_only=True)["rnd"]
    data = np.concatenate([step["frame"][step["valid"]] for step in log]).astype(float)
    np.testing.assert_allclose(state["obs_rms.mean"], data.sum(0) / (len(data) + 1e-4), rtol=1e-9)
    np.testing.assert_allclose(state["obs_rms.count"], len(data) + 1e-4)
    np.testing.assert_allclose(state["return_rms.count"], sum(step["valid"].sum() for step in training) + 1e-4)
    assert len(warmup) == T

    # the filter's state: over all three rollouts, for each environment by itself, whatever episodes ended
    expected = np.zeros(N)
    for rewards, step in zip(torch.cat(raw).numpy(), training, strict=True):
        expected = np.where(step["valid"], 0.99 * expected + rewards, expected)
    np.testing.assert_allclose(state["filtered"], expected, rtol=1e-5)


def test_the_policy_acts_on_what_the_environments_showed_last(fake_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(script.Agent, "forward", spy(script.Agent.forward, forwards := []))
    monkeypatch.setattr(script.AtariEnvs, "step", spy(script.AtariEnvs.step, steps := []))
    train(small_args(total_timesteps=3 * 64, update_epochs=1), tmp_path)
    acted = [call[0][1] for call in forwards if len(call[0][1]) == 4]  # (N, 4, 84, 84); updates have larger batches
    shown = [call[1][0] for call in steps]
    expected = []
    for rollout in range(3):  # 16 steps each, after 16 of warm-up, and once more for the value of what follows
        expected += shown[16 * (rollout + 1) - 1 : 16 * (rollout + 2)]
    assert len(acted) == len(expected) == 3 * 17
    assert all(np.array_equal(a, b) for a, b in zip(acted, expected, strict=True))


def test_one_iteration_equals_a_plain_transcription_of_the_reference(fake_pool, tmp_path, monkeypatch):
    T, N, M, epochs = 16, 4, 2, 3
    args = small_args(num_minibatches=M, update_epochs=epochs, update_proportion=1.0)
    probabilities = []
    monkeypatch.setattr(script, "reward_filter", spy(script.reward_filter, probabilities))
    monkeypatch.setattr(script.AtariEnvs, "step", spy(script.AtariEnvs.step, steps := []))
    monkeypatch.setattr(script.Agent, "forward", spy(script.Agent.forward, forwards := []))
    run_dir = train(args, tmp_path)
    state = torch.load(run_dir / "latest.pt", weights_only=True)
    scalars = {tag: values[0][1] for tag, values in read_scalars(run_dir).items()}

    # the same weights, the same rollout
    torch.manual_seed(args.seed)
    agent, rnd = script.Agent(6, 2), script.RND(N, CPU)
    p = {f"agent.{k}": v.detach().clone().requires_grad_() for k, v in agent.named_parameters()}
    p |= {f"rnd.{k}": v.detach().clone().requires_grad_() for k, v in rnd.named_parameters() if "predictor" in k}
    target = {k: v for k, v in rnd.state_dict().items() if "target" in k}
    sub = lambda prefix: {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}  # noqa: E731
    warmup, rollout = steps[:T], steps[T:]
    obs = torch.stack([call[0][1] for call in forwards[: T + 1]])  # (T+1, N, 4, 84, 84)
    actions = torch.from_numpy(np.stack([call[0][1] for call in rollout]))
    rewards, dones, valid = (np.stack([call[1][i] for call in rollout]) for i in (1, 2, 3))
    assert (~valid).any() and dones.any() and (rewards == 1).any()

    # moments: over the warm-up, then over the rollout
    def moments_of(frames):
        data = np.concatenate(frames).astype(np.float64)
        count = len(data) + 1e-4
        mean = data.sum(0) / count
        return mean, np.sqrt(((data**2).sum(0) + 1e-4) / count - mean**2)

    def white(frames, mean, std):
        return torch.from_numpy(np.clip((frames - mean.astype(np.float32)) / std.astype(np.float32), -5, 5))[:, None]

    old_frames = [call[1][0][call[1][3]][:, 3] for call in warmup]
    new_frames = [call[1][0][:, 3] for call in rollout]
    old, new = moments_of(old_frames), moments_of(old_frames + [f[v] for f, v in zip(new_frames, valid, strict=True)])
    with torch.no_grad():
        error = [
            (lean_rnd(sub("rnd."), "predictor", x) - lean_rnd(target, "target", x)).square().mean(1).numpy()
            for x in (white(frames.astype(np.float32), *old) for frames in new_frames)
        ]
        logits, values = zip(*(lean_agent(sub("agent."), obs[t]) for t in range(T + 1)), strict=True)
    raw = np.stack(error)  # (T, N)
    f, filtered = np.zeros(N), []
    for t in range(T):
        for env in range(N):
            if valid[t, env]:
                f[env] = 0.99 * f[env] + raw[t, env]
                filtered.append(f[env])
    filtered = np.array(filtered)
    count = len(filtered) + 1e-4
    mean = filtered.sum() / count
    deviation = np.sqrt(((filtered**2).sum() + 1e-4) / count - mean**2)
    intrinsic = raw / deviation
    values = torch.stack(values).numpy()  # (T+1, N, 2)
    no_end = np.zeros_like(dones)
    adv_int = advantages_by_definition(intrinsic, values[:T, :, 0], values[T, :, 0], no_end, valid, 0.99, 0.95)
    adv_ext = advantages_by_definition(rewards, values[:T, :, 1], values[T, :, 1], dones, valid, 0.999, 0.95)
    advantages = torch.from_numpy(adv_int + 2 * adv_ext).float()
    returns = torch.from_numpy(np.stack([adv_int, adv_ext], -1) + values[:T]).float()
    logprobs = torch.stack(logits)[:T].log_softmax(-1).gather(-1, actions[..., None])[..., 0]
    with torch.no_grad():
        features = [lean_rnd(target, "target", white(x.astype(np.float32), *new)) for x in new_frames]

    m, v, losses = {k: torch.zeros_like(x) for k, x in p.items()}, {k: torch.zeros_like(x) for k, x in p.items()}, []
    step = 0
    for _ in range(epochs):
        for block in np.split(np.arange(N), M):
            entries = [(t, env) for t in range(T) for env in block if valid[t, env]]
            ts, es = (torch.tensor(x) for x in zip(*entries, strict=True))
            new_logits, new_values = lean_agent(sub("agent."), obs[ts, es])
            log_p = new_logits.log_softmax(-1)
            ratio = (log_p.gather(1, actions[ts, es][:, None])[:, 0] - logprobs[ts, es]).exp()
            a = advantages[ts, es]
            policy_loss = torch.max(-a * ratio, -a * ratio.clamp(0.9, 1.1)).mean()
            value_loss = sum(0.5 * (new_values[:, h] - returns[ts, es, h]).square().mean() for h in (0, 1))
            entropy = -(log_p.exp() * log_p).sum(-1).mean()
            x = white(np.stack([new_frames[t][env] for t, env in entries]).astype(np.float32), *new)
            goal = torch.stack([features[t][env] for t, env in entries])
            distill = (lean_rnd(sub("rnd."), "predictor", x) - goal).square().mean(1).mean()
            (policy_loss + value_loss - 0.001 * entropy + distill).backward()
            losses.append([x.item() for x in (policy_loss, value_loss, entropy, distill)])
            step += 1
            with torch.no_grad():
                for k, w in p.items():  # Adam, Kingma and Ba (2015), algorithm 1
                    m[k] = 0.9 * m[k] + 0.1 * w.grad
                    v[k] = 0.999 * v[k] + 0.001 * w.grad**2
                    w -= 1e-4 * (m[k] / (1 - 0.9**step)) / ((v[k] / (1 - 0.999**step)).sqrt() + 1e-8)
                    w.grad = None

    np.testing.assert_allclose(scalars["rnd/intrinsic_reward"], intrinsic[valid].mean(), rtol=1e-5)
    np.testing.assert_allclose(scalars["rnd/intrinsic_return_std"], deviation, rtol=1e-5)
    names = ("policy_loss", "value_loss", "entropy", "predictor_loss")
    for name, expected in zip(names, np.mean(losses, axis=0), strict=True):
        np.testing.assert_allclose(scalars[f"losses/{name}"], expected, rtol=2e-5, atol=1e-7, err_msg=name)
    ours = {f"agent.{k}": x for k, x in state["agent"].items()} | {f"rnd.{k}": x for k, x in state["rnd"].items()}
    for k, w in p.items():
        distance = (ours[k] - w.detach()).norm() / w.detach().norm()
        assert distance < 1e-5 or (ours[k] - w.detach()).abs().max() < 1e-6, (k, float(distance))


def spy(function, calls: list):
    """`function`, with (arguments, result) of every call appended to `calls`."""

    def wrapped(*args, **kwargs):
        kept = [x.clone() if isinstance(x, torch.Tensor) else x for x in args]
        result = function(*args, **kwargs)
        calls.append((kept, result))
        return result

    return wrapped


def test_target_never_changes_and_everything_else_does(fake_pool, tmp_path):
    args = small_args(total_timesteps=128)
    run_dir = train(args, tmp_path)
    state = torch.load(run_dir / "latest.pt", weights_only=True)
    torch.manual_seed(args.seed)
    agent, rnd = script.Agent(6, 2), script.RND(4, CPU)
    for name, before in [*agent.state_dict().items(), *rnd.state_dict().items()]:
        after = state["agent"][name] if name in state["agent"] else state["rnd"][name]
        assert torch.equal(before, after) == name.startswith("target"), name


@pytest.mark.parametrize(
    "changes",
    [
        {"int_episodic": True},
        {"single_head": True},
        {"norm_adv": True},
        {"clip_vloss": True},
        {"max_grad_norm": 0.5},
        {"anneal_lr": True},
        {"obs_norm": "frozen"},
        {"int_clip": 0.1},
        {"int_coef": 0.0},
        {"ext_coef": 0.0},
        {"bf16": True},
        {"num_minibatches": 1},
        {"num_envs": 1, "num_minibatches": 1, "num_steps": 64},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_every_flag_trains_and_matters(fake_pool, tmp_path, changes):
    base = train(small_args(total_timesteps=256), tmp_path / "base")
    other = train(small_args(total_timesteps=256, **changes), tmp_path / "other")
    weights = [torch.load(d / "latest.pt", weights_only=True)["agent"]["policy_head.weight"] for d in (base, other)]
    assert weights[1].isfinite().all() and not torch.equal(*weights)
    scalars = read_scalars(other)
    assert len(scalars["losses/policy_loss"]) == 4
    if "anneal_lr" in changes:
        rates = [value for _, value in scalars["charts/learning_rate"]]
        np.testing.assert_allclose(rates, [1e-4, 0.75e-4, 0.5e-4, 0.25e-4], rtol=1e-5)
    if "obs_norm" in changes:
        counts = [torch.load(d / "latest.pt", weights_only=True)["rnd"]["obs_rms.count"] for d in (base, other)]
        assert counts[1] < counts[0] / 2
    if "int_clip" in changes:
        assert max(value for _, value in scalars["rnd/intrinsic_reward"]) <= 0.1
    if "single_head" in changes:
        assert "losses/value_loss" in scalars and "losses/value_loss_int" not in scalars


def test_same_seed_same_scalars_and_another_seed_others(tmp_path):
    runs = [train(small_args(seed=s, total_timesteps=256), tmp_path / f"{k}") for k, s in enumerate((1, 1, 2))]
    scalars = [{k: v for k, v in read_scalars(run).items() if k != "charts/SPS"} for run in runs]
    assert repr(scalars[0]) == repr(scalars[1]) and repr(scalars[0]) != repr(scalars[2])  # repr: NaN equals NaN


def test_a_resume_takes_the_learning_rate_that_is_asked_for(fake_pool, tmp_path):
    run_dir = train(small_args(anneal_lr=True), tmp_path)
    path, saved = script.load_checkpoint("--resume", str(run_dir))
    args = script.Args(**saved["args"] | {"total_timesteps": 128, "learning_rate": 3e-4, "anneal_lr": False})
    assert script.train(args, "MontezumaRevenge-v5", CPU, path, saved) == 0
    rates = [rate for _, rate in read_scalars(run_dir)["charts/learning_rate"]]
    np.testing.assert_allclose(rates, [1e-4, 3e-4], rtol=1e-6)
    assert torch.load(path, weights_only=True)["optimizer"]["param_groups"][0]["lr"] == 3e-4


def test_resume_restores_the_learner_bit_for_bit(fake_pool, tmp_path, monkeypatch):
    run_dir = train(small_args(total_timesteps=256), tmp_path)
    path, before = script.load_checkpoint("--resume", str(run_dir))
    monkeypatch.setattr(script, "StopSignal", lambda: type("Stopped", (), {"agreed": lambda self: 15})())
    args = script.Args(**before["args"] | {"total_timesteps": 512})
    torch.manual_seed(123)
    assert script.train(args, "MontezumaRevenge-v5", CPU, path, before) == 143
    after = torch.load(run_dir / "latest.pt", weights_only=True)
    assert before.keys() == after.keys()
    for key in before.keys() - {"seconds", "args"}:
        assert same(before[key], after[key]), key
    assert before["optimizer"]["state"][0]["step"] == 4 * 4 * 4


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_nan_stops_the_run_and_names_itself(fake_pool, tmp_path):
    run_dir = train(small_args(), tmp_path)
    path, saved = script.load_checkpoint("--resume", str(run_dir))
    before = path.read_bytes()
    saved["agent"]["value_head.weight"][0] = float("nan")
    args = script.Args(**saved["args"] | {"total_timesteps": 512})
    with pytest.raises(
        script.RunError, match=r"losses/policy_loss is nan at step 128: stopped; the last good checkpoint is"
    ):
        script.train(args, "MontezumaRevenge-v5", CPU, path, saved)
    assert path.read_bytes() == before


# ----------------------------------------------------------------------------------------------------------------------
# What the user was promised
# ----------------------------------------------------------------------------------------------------------------------


def call_main(monkeypatch, capsys, *flags: object) -> tuple[int, str]:
    """main() with these flags: exit status and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["ppo_rnd_atari.py", *map(str, flags)])
    try:
        status = script.main()
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env-id", "MontezumasRevenge"], "did you mean MontezumaRevenge-v5"),
        (["--env-id", "MiniGrid-DoorKey-8x8-v0"], "this script plays Atari games"),
        (["--num-envs", 0], "--num-envs 0: must be at least 1"),
        (["--seed", "1e20"], "--seed 100000000000000000000: must be below 2^63"),
        (["--max-episode-steps", "1e10"], "--max-episode-steps 10000000000: must be below 2^31"),
        (["--int-coef", 0, "--int-gamma", 0.5], "--int-gamma contradicts --int-coef 0: there is no bonus"),
        (["--single-head", "--int-episodic"], "--int-episodic contradicts --single-head: there is no stream of the"),
        (["--num-envs", -4], "--num-envs -4: must be at least 1"),
        (["--num-steps", 0], "--num-steps 0: must be at least 1"),
        (["--num-minibatches", 0], "--num-minibatches 0: must be at least 1"),
        (["--num-minibatches", 3], "--num-minibatches 3: must be a divisor of --num-envs 128"),
        (["--gamma", 1.5], "--gamma 1.5: must be in [0, 1]"),
        (["--int-gamma", -0.1], "--int-gamma -0.1: must be in [0, 1]"),
        (["--gae-lambda", "nan"], "--gae-lambda nan: must be in [0, 1]"),
        (["--update-proportion", 0], "--update-proportion 0.0: must be in (0, 1]"),
        (["--update-proportion", 1.1], "--update-proportion 1.1: must be in (0, 1]"),
        (["--learning-rate", 0], "--learning-rate 0.0: must be a positive number"),
        (["--learning-rate", "inf"], "--learning-rate inf: must be a positive number"),
        (["--sticky-actions", 2], "--sticky-actions 2.0: must be in [0, 1]"),
        (["--total-timesteps", 0], "--total-timesteps 0: must be at least one rollout, 16384 steps"),
        (["--total-timesteps", "1e4"], "--total-timesteps 10000: must be at least one rollout"),
        (["--obs-norm", "frozen", "--warmup-rollouts", 0], "--warmup-rollouts 0: must be at least 1"),
        (["--resume", "nowhere"], "--resume nowhere: there is no checkpoint nowhere"),
        (["--evaluate", "empty"], "--evaluate empty: there is no checkpoint empty/latest.pt"),
        (["--resume", "a", "--evaluate", "b"], "there is no checkpoint"),
        (["--resume", "garbage.pt"], "is damaged or is no checkpoint"),
        (["--resume", "foreign.pt"], "was written by snd_atari, not by this script"),
        (["--resume", "other.pt"], "was written by something else"),
        (["--capture-video"], "--capture-video needs --evaluate"),
        (["--runs-dir", "file"], "cannot write into file/"),
        (["--runs-dir", "/dev/null/runs"], "cannot write into /dev/null/runs"),
    ],
    ids=lambda value: "_".join(map(str, value)).replace("/", ".") if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_leaves_nothing(fake_pool, monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("empty").mkdir()
    pathlib.Path("garbage.pt").write_bytes(b"PK\x03\x04 this is no checkpoint")
    pathlib.Path("file").write_text("a file, not a folder")
    torch.save({"script": "snd_atari"}, "foreign.pt")
    torch.save([1, 2], "other.pt")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    status, errors = call_main(monkeypatch, capsys, *flags)
    assert status == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_versions_and_commit_are_logged_with_git_or_without(fake_pool, tmp_path, monkeypatch):
    for folder, path in (("with", os.environ["PATH"]), ("without", "")):
        monkeypatch.setenv("PATH", path)
        run_dir = train(small_args(seed=7), tmp_path / folder)
        events = EventAccumulator(str(run_dir))
        events.Reload()
        (text,) = events.Tensors("hyperparameters/text_summary")
        rows = dict(row.split("|")[1:3] for row in text.tensor_proto.string_val[0].decode().splitlines())
        assert rows["seed"] == "7" and rows["torch"] == importlib.metadata.version("torch") and rows["gamma"] == "0.999"
        assert (rows["commit"] == "unknown") == (folder == "without" or not (ROOT / ".git").exists())


@pytest.mark.parametrize("flags", [["--num-envs", "1.5"], ["--num-env", "4"], ["--device", "tpu"], ["--gamma", "x"]])
def test_what_the_parser_refuses(monkeypatch, capsys, flags):
    status, errors = call_main(monkeypatch, capsys, *flags)
    assert status == 2 and "Traceback" not in errors


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is CUDA")
def test_cuda_without_cuda(monkeypatch, capsys):
    status, errors = call_main(monkeypatch, capsys, "--device", "cuda")
    assert status == 2 and errors.startswith("error: --device cuda: this machine") and errors.count("\n") == 1


def test_track_without_wandb(monkeypatch, capsys):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: None)
    status, errors = call_main(monkeypatch, capsys, "--track")
    assert status == 2 and errors == "error: --track needs Weights & Biases: pip install wandb\n"


@settings(max_examples=100, deadline=None)
@given(number=st.integers(0, 10**12))
def test_integers_are_read_in_every_notation(number):
    assert script.parse_int(str(number)) == script.parse_int(f"{number:_}") == number
    assert script.parse_int("1e6") == 1_000_000 and script.parse_int("2.5e3") == 2500
    for wrong in ("1.5", "x", "", "nan", "inf"):
        with pytest.raises((ValueError, OverflowError)):
            script.parse_int(wrong)


def test_resuming_another_game_size_or_architecture(fake_pool, monkeypatch, capsys, tmp_path):
    run_dir = train(small_args(), tmp_path)
    before = (run_dir / "latest.pt").read_bytes()
    for flags, message in [
        (["--env-id", "Pitfall"], "is of a run with env_id MontezumaRevenge-v5, not Pitfall-v5"),
        (["--num-envs", 8, "--total-timesteps", 640], "is of a run with num_envs 4, not 8"),
        (["--single-head"], "is of a run with single_head False, not True"),
        (["--total-timesteps", 64], "has all of its 64 steps"),
    ]:
        status, errors = call_main(monkeypatch, capsys, "--resume", run_dir, *flags)
        assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    state = torch.load(run_dir / "latest.pt", weights_only=True)
    state["agent"]["trunk.0.weight"] = torch.zeros(16, 4, 8, 8)
    torch.save(state, tmp_path / "wide.pt")
    status, errors = call_main(monkeypatch, capsys, "--resume", tmp_path / "wide.pt", "--total-timesteps", 640)
    assert status == 2 and errors.count("\n") == 1 and "holds another architecture" in errors
    half = before[: len(before) // 2]
    (tmp_path / "half.pt").write_bytes(half)
    status, errors = call_main(monkeypatch, capsys, "--resume", tmp_path / "half.pt")
    assert status == 2 and errors.count("\n") == 1 and "is damaged or is no checkpoint" in errors
    assert (run_dir / "latest.pt").read_bytes() == before


def test_help_names_every_flag_and_only_those_that_are_read():
    source = (ROOT / "ppo_rnd_atari.py").read_text()
    for field in dataclasses.fields(script.Args):
        uses = source.count(f"args.{field.name}") + source.count(f'"{field.name}"')
        assert uses >= 1, f"nothing reads --{field.name}"


def test_a_run_as_a_user_sees_it(tmp_path):
    """Trains, resumes and evaluates in processes of their own."""
    out = run_script("ppo_rnd_atari.py", *SMALL, "--total-timesteps", 256, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("MontezumaRevenge-v5__ppo_rnd_atari__1__")
    assert {p.name.split(".")[0] for p in run_dir.iterdir()} == {"events", "latest"}  # and no temporary file
    lines = out.stdout.splitlines()
    for word in ("device", "environment  MontezumaRevenge-v5 x 4", "parameters", "memory", "steps", "folder"):
        assert any(line.startswith(word) for line in lines), word
    assert "room 1 seen for the first time, at step 4" in lines
    assert lines[-1].startswith("score none yet, steps 256, time 0:00:") and str(run_dir.name) in lines[-1]
    assert "Traceback" not in out.stderr

    scalars = read_scalars(run_dir)
    losses = "policy_loss value_loss value_loss_int value_loss_ext entropy approx_kl clipfrac predictor_loss grad_norm"
    expected = {f"losses/{name}" for name in losses.split()}
    expected |= {f"losses/explained_variance{suffix}" for suffix in ("_int", "_ext")}
    expected |= {
        f"rnd/{n}" for n in ("intrinsic_reward", "intrinsic_return_std", "rooms_visited", "rooms_best_episode")
    }
    expected |= {"charts/SPS", "charts/learning_rate"}
    assert set(scalars) == expected
    assert [step for step, _ in scalars["losses/entropy"]] == [64, 128, 192, 256]
    assert abs(scalars["losses/entropy"][0][1] - np.log(18)) < 0.01

    more = run_script("ppo_rnd_atari.py", "--resume", run_dir, "--total-timesteps", "5.12e2", cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert "steps 512" in more.stdout.splitlines()[-1]
    assert [step for step, _ in read_scalars(run_dir)["losses/entropy"]] == list(range(64, 513, 64))

    flags = ["--evaluate", run_dir, "--eval-episodes", 2, "--capture-video", "--max-episode-steps", 60]
    played = run_script("ppo_rnd_atari.py", *flags, cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    assert played.stdout.splitlines()[-1].startswith(
        "return 0.0 +- 0.0 (mean, standard error), best 0, rooms 1.0, most 1"
    )
    videos = sorted((run_dir / "videos").iterdir())
    assert len(videos) == 2
    import imageio

    frames = imageio.mimread(videos[0], memtest=False)
    assert len(frames) == 60 and frames[0].shape == (630, 480, 3)
    assert np.ptp(frames[30].astype(int), axis=2).max() > 100  # colours, not grey


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, status):
    command = [sys.executable, str(ROOT / "ppo_rnd_atari.py"), *map(str, SMALL), "--checkpoint-interval", "1000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("room 1"):
            break
    time.sleep(2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == status and "Traceback" not in err
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert f"--resume runs/{run_dir.name}" in out.splitlines()[-1]
    iteration = torch.load(run_dir / "latest.pt", weights_only=True)["rollouts"]
    assert iteration >= 1
    more = run_script("ppo_rnd_atari.py", "--resume", run_dir, "--total-timesteps", (iteration + 2) * 64, cwd=tmp_path)
    assert more.returncode == 0, more.stderr


def kill_and_resume(tmp_path: pathlib.Path, times: int) -> None:
    """A run that saves after every rollout is killed at random moments; it always goes on from a whole checkpoint."""
    rng, before = random.Random(0), 0
    flags = [*SMALL, "--total-timesteps", "1e6", "--checkpoint-interval", 0]
    for _ in range(times):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "ppo_rnd_atari.py"), *map(str, flags)], cwd=tmp_path, stdout=subprocess.DEVNULL
        )
        limit = time.time() + 60
        saved = list(tmp_path.glob("runs/*/latest.pt"))
        start = saved[0].stat().st_mtime_ns if saved else 0
        while time.time() < limit:  # until it has saved at least once in this life
            saved = list(tmp_path.glob("runs/*/latest.pt"))
            if saved and saved[0].stat().st_mtime_ns > start:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 2))
        process.kill()
        process.wait()
        (path,) = tmp_path.glob("runs/*/latest.pt")
        iteration = script.load_checkpoint("--resume", str(path))[1]["rollouts"]
        assert iteration > before
        before = iteration
        flags = ["--resume", path.parent]


def test_killed_it_goes_on(tmp_path):
    kill_and_resume(tmp_path, times=3)


@pytest.mark.slow
def test_killed_twenty_times_it_goes_on(tmp_path):
    kill_and_resume(tmp_path, times=20)


def test_a_full_disk_leaves_the_last_checkpoint_whole(tmp_path):
    out = run_script("ppo_rnd_atari.py", *SMALL, "--total-timesteps", 128, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    before = (run_dir / "latest.pt").read_bytes()
    flags = ["--resume", run_dir, "--total-timesteps", 256]
    limit = 10 * 2**20  # bytes a file may have: less than a checkpoint

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    out = run_script("ppo_rnd_atari.py", *flags, cwd=tmp_path, preexec_fn=small_disk)
    assert out.returncode == 1
    errors = [line for line in out.stderr.splitlines() if line]
    assert len(errors) == 1 and errors[0].startswith("error: cannot write "), out.stderr
    assert "(File too large); what was saved before is whole" in errors[0]
    assert (run_dir / "latest.pt").read_bytes() == before
    assert not list(run_dir.glob("*.tmp"))


def test_tracking_without_a_network(tmp_path):
    pytest.importorskip("wandb")
    flags = [*SMALL, "--total-timesteps", 128, "--track"]
    out = run_script("ppo_rnd_atari.py", *flags, cwd=tmp_path, env={**os.environ, "WANDB_MODE": "offline"})
    assert out.returncode == 0, out.stderr
    assert list(tmp_path.glob("wandb/offline-run-*"))


@pytest.mark.learning
def test_the_bonus_solves_a_corridor_that_ppo_alone_does_not(monkeypatch):
    """About five minutes on one core; benchmark/corridor.py shows the same on five seeds."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmark"))
    import corridor

    monkeypatch.setattr(script.envpool, "make", script.envpool.make)  # put back afterwards
    for int_coef, solved in ((1.0, True), (0.0, False)):
        returns = corridor.train(seed=1, int_coef=int_coef, steps=24 * 1024)["charts/episodic_return"]
        last = np.mean([value for _, value in returns[-5:]])
        assert last > 0.9 if solved else last == 0
