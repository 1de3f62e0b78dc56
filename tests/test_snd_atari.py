"""snd_atari.py: its numbers against independent computations, and its promises to the user."""

import collections
import dataclasses
import inspect
import itertools
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, read_scalars, run_script

import ppo_rnd_atari
import snd_atari as script

CPU = torch.device("cpu")
SMALL = ["--num-envs", 4, "--num-steps", 16, "--num-minibatches", 4, "--warmup-rollouts", 1, "--target-batch", 8]


def small_args(**changes) -> script.Args:
    values = {"num_envs": 4, "num_steps": 16, "total_timesteps": 64, "warmup_rollouts": 1, "checkpoint_interval": 1e6}
    return script.Args(
        **(values | {"num_minibatches": 4, "target_batch": 8, "update_epochs": 2, "rnd_epochs": 2} | changes)
    )


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def same_with_gradients(ours: torch.Tensor, theirs: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    """Two computations of a loss, and what they say of the inputs' gradients."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-10)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


# ----------------------------------------------------------------------------------------------------------------------
# What is the same as in ppo_rnd_atari.py
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("UserError", "RunError", "parse_int", "resolve_device", "resolve_env_id", "init_layer", "RunningMoments"),
        *("reward_filter", "gae", "masked_mean", "normalise", "explained_variance", "save_checkpoint"),
        *("load_checkpoint", "load_state", "open_run", "Progress", "StopSignal", "evaluate"),
        *("join_ranks", "leave_ranks", "all_objects", "all_tensors", "average_gradients"),
    ],
)
def test_blocks_that_do_the_same_are_the_same_text(name):
    """So that the tests of these blocks in tests/test_ppo_rnd_atari.py hold here too."""
    ours, theirs = (inspect.getsource(getattr(module, name)) for module in (script, ppo_rnd_atari))
    if name == "evaluate":  # but for the policy's arguments
        pattern = r"    agent = Agent\(.*\n"
        ours, theirs = (re.subn(pattern, "", x) for x in (ours, theirs))
        assert ours[1] == theirs[1] == 1
    assert ours == theirs


# ----------------------------------------------------------------------------------------------------------------------
# Losses
# ----------------------------------------------------------------------------------------------------------------------


def test_contrastive_loss_equals_a_loop():
    first, second = double(9, 6), double(9, 6, seed=1)
    labels = torch.tensor([0, 1, 1, 0, 0, 1, 0, 1, 1.0], dtype=torch.float64)
    expected = 0.0
    for a, b, label in zip(first, second, labels, strict=True):
        distance = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)) / 6
        expected = expected + (label - distance) ** 2 / 9
    same_with_gradients(script.contrastive_loss(first, second, labels), expected, [first, second])


def test_vicreg_terms_equal_loops():
    first, second = double(7, 5), double(7, 5, seed=1)
    expected = {"invariance": sum((first[i, j] - second[i, j]) ** 2 for i in range(7) for j in range(5)) / 35}
    expected |= {"variance": 0, "covariance": 0}
    for z in (first, second):
        mean = [sum(z[i, j] for i in range(7)) / 7 for j in range(5)]
        cov = [
            [sum((z[i, j] - mean[j]) * (z[i, k] - mean[k]) for i in range(7)) / 6 for k in range(5)] for j in range(5)
        ]
        expected["variance"] += sum((1 - (cov[j][j] + 1e-4) ** 0.5).clamp(min=0) for j in range(5)) / 5
        expected["covariance"] += sum(cov[j][k] ** 2 for j in range(5) for k in range(5) if j != k) / 5 / 25
    ours = script.vicreg_terms(first, second)
    assert ours.keys() == expected.keys()
    for name, term in ours.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-6, atol=1e-10)
    same_with_gradients(sum(ours.values()), sum(expected.values()), [first, second])


def test_stdim_terms_equal_loops():
    class Heads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.global_to_local, self.local_to_local = torch.nn.Linear(6, 4).double(), torch.nn.Linear(4, 4).double()

    torch.manual_seed(0)
    heads, B, side = Heads(), 5, 3
    first, second, local_first, local_second = (
        double(B, 6),
        double(B, 6, seed=1),
        double(B, 4, 3, 3, seed=2),
        double(B, 4, 3, 3, seed=3),
    )
    expected = {"spread": -1e-4 * sum(((z - z.mean()) ** 2).sum().div(5).sqrt() for z in first) / B}
    expected |= {"logits": 0, "global": 0, "local": 0}
    for kind in ("global", "local"):
        for x, y in itertools.product(range(side), range(side)):
            scores = torch.zeros(B, B, dtype=torch.float64)
            for i, j in itertools.product(range(B), range(B)):
                query = (
                    heads.global_to_local(second[i])
                    if kind == "global"
                    else heads.local_to_local(local_second[i, :, x, y])
                )
                scores[i, j] = (query * local_first[j, :, x, y]).sum()
            for i in range(B):
                expected[kind] += (torch.logsumexp(scores[i], 0) - scores[i, i]) / B / side**2
            expected["logits"] += 1e-4 * scores.square().sum().sqrt() / side**2
    ours = script.stdim_terms(first, second, local_first, local_second, heads)
    assert ours.keys() == expected.keys()
    for name, term in ours.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-6, atol=1e-10)
    inputs = [first, second, local_first, local_second, *heads.parameters()]
    same_with_gradients(sum(ours.values()), sum(expected.values()), inputs)


def test_the_target_s_loss_takes_in_all_its_parts(monkeypatch):
    damage: list[tuple] = []
    monkeypatch.setattr(script, "augment", lambda inputs, *how: damage.append(how) or inputs)
    first, second = torch.rand(6, 1, 96, 96), torch.rand(6, 1, 96, 96)
    labels = torch.tensor([0, 1, 1, 0, 1, 0.0])
    for kind, net in (("contrastive", "A"), ("contrastive", "B"), ("vicreg", "ST"), ("stdim", "ST"), ("stdim", "B")):
        args = small_args(target_loss=kind, rnd_net=net, mag_limit=0.01, aug="multi", noise_prob=0.3)
        torch.manual_seed(0)
        snd = script.SND(4, args, CPU)
        z = [snd.target(x) for x in (first, second)]
        maps = [torch.nn.Sequential(*[*snd.target][:6])(x) for x in (first, second)]
        assert maps[0].shape == (6, 64, 12, 12)
        magnitude = z[0].square().mean() + z[1].square().mean()
        if kind == "contrastive":
            expected = {"contrastive": script.contrastive_loss(*z, labels)}
        else:
            expected = script.vicreg_terms(*z) if kind == "vicreg" else script.stdim_terms(*z, *maps, snd)
        terms, logged = script.target_terms(snd, first, second, labels, args)
        torch.testing.assert_close(terms, expected | {"limit": (magnitude - 0.01).clamp(min=0)})
        torch.testing.assert_close(logged, magnitude)
        sum(terms.values()).backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in snd.target_parameters())
        assert all(p.grad is None for p in snd.predictor.parameters())
        args.mag_limit = float(magnitude.detach()) + 1
        terms, _ = script.target_terms(snd, first, second, labels, args)
        torch.testing.assert_close(terms, expected | {"limit": torch.tensor(0.0)})
    assert damage == [("multi", 0.3)] * 20  # five times two losses of two frames


def test_predictor_loss_keeps_its_share():
    torch.manual_seed(0)
    predicted, targets = double(400, 512), double(400, 512, seed=1).detach()
    for mask, share in itertools.product(("element", "sample"), (0.25, 1.0)):
        loss = script.predictor_loss(predicted, targets, share, mask)
        (gradient,) = torch.autograd.grad(loss, predicted)
        kept = gradient != 0
        size = 400 * 512 if mask == "element" else 400
        rows = kept.any(1)
        there = kept.sum().item() if mask == "element" else rows.sum().item()
        assert abs(there - share * size) <= 4 * (size * share * (1 - share)) ** 0.5  # four deviations
        if mask == "sample":
            assert (kept.all(1) == rows).all()  # a frame is kept whole or not at all
        expected = ((predicted - targets) ** 2)[kept].mean()
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(gradient[kept], (2 * (predicted - targets) / kept.sum())[kept], rtol=1e-9, atol=0)


# ----------------------------------------------------------------------------------------------------------------------
# Pairs and augmentations
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pair", ["same", "next"])
@pytest.mark.parametrize("with_others", [True, False])
def test_pairs_have_the_stated_distribution(pair, with_others):
    torch.manual_seed(0)
    T, N, size = 6, 5, 200_000
    valid = torch.rand(T, N) < 0.7
    experience = torch.tensor([t * N + n for t in range(T) for n in range(N) if valid[t, n]])
    first, second, labels = script.draw_pairs(experience, N, size, pair, with_others)
    steps = [t * N + n for t in range(T) for n in range(N) if valid[t, n]]
    assert first.unique().tolist() == steps
    counts = torch.bincount(first, minlength=T * N)[steps].float()
    assert ((counts / size - 1 / len(steps)).abs() < 5 * (1 / len(steps) / size) ** 0.5).all()
    together = labels == 0
    assert set(labels.tolist()) <= {0.0, 1.0}
    assert abs((~together).float().mean() - 0.5 * with_others) < 0.01
    shift = N if pair == "next" else 0  # the next frame of the same environment
    assert (second[together] == first[together] + shift).all()
    others = second[~together]
    if with_others:
        assert others.unique().tolist() == steps
        joint = torch.zeros(T * N, T * N).index_put_((first[~together], others), torch.tensor(1.0), accumulate=True)
        joint = joint[steps][:, steps] / len(others)
        assert ((joint - 1 / len(steps) ** 2).abs() < 6 / (len(steps) * len(others) ** 0.5)).all()  # independent


def test_augmentations_keep_the_shape_and_lose_what_they_say():
    torch.manual_seed(0)
    frames = torch.ones(200, 1, 96, 96)
    assert torch.equal(script.augment(frames, "none", 1.0), frames)

    # noise alone changes what is not dropped, by less than 0.2, uniformly; the share of frames that get it
    for share in (1.0, 0.5):
        torch.manual_seed(1)
        out = script.augment(frames, "tile", share)
        assert out.shape == (200, 1, 96, 96) and out.min() > -0.2 - 1e-6 and out.max() < 1.2 + 1e-6
        noisy = (out != out.round()).flatten(1).any(1).float().mean()
        assert abs(noisy - share) < 0.1 + 1e-6 and (share < 1 or noisy == 1)
        noise = (out - out.round())[out != out.round()]
        assert abs(noise.mean()) < 1e-3 and abs(noise.std() - 0.4 / 12**0.5) < 1e-3

    # tiles, without noise: half of the frames, a tenth of the tiles, of one side in a call, all sides over the calls
    sides = set()
    for _ in range(60):
        out = script.augment(frames, "tile", 0.0)
        damaged = (out == 0).flatten(1).any(1)
        dropped = (out == 0)[damaged].float().mean()
        blocks = {s: out[damaged][0, 0].unfold(0, s, s).unfold(1, s, s).flatten(2) for s in (1, 2, 4, 8, 12, 16)}
        side = max(s for s, block in blocks.items() if torch.equal(block.amin(2), block.amax(2)))
        sides.add(side)
        whole = 1 - 0.9 ** (96 / side) ** 2  # a chosen frame loses something
        assert abs(damaged.float().mean() - 0.5 * whole) < 0.12 and abs(dropped - 0.1) < 0.02
    assert sides == {1, 2, 4, 8, 12, 16}

    # coarse pixels and dropped pixels
    torch.manual_seed(2)
    frames = torch.rand(1500, 1, 96, 96) + 1
    out = script.augment(frames, "multi", 0.0)
    by = {s: torch.nn.functional.avg_pool2d(frames, s).repeat_interleave(s, 2).repeat_interleave(s, 3) for s in (2, 4)}
    kept = out != 0
    dropped = (~kept).flatten(1).any(1)
    alike = {
        s: torch.tensor([torch.allclose(o[k], c[k]) for o, c, k in zip(out, by[s], kept, strict=True)]) for s in by
    }
    unchanged = torch.tensor([torch.equal(o[k], f[k]) for o, f, k in zip(out, frames, kept, strict=True)])
    for event, share in ((alike[4], 0.25), (alike[2], 0.75 * 0.5), (unchanged, 0.75 * 0.5), (dropped, 0.125)):
        assert abs(event.float().mean() - share) < 0.05  # four deviations
    assert (alike[4].int() + alike[2].int() + unchanged.int() == 1).all()
    assert abs((~kept)[dropped].float().mean() - 0.1) < 0.005


# ----------------------------------------------------------------------------------------------------------------------
# Frames, features, reward
# ----------------------------------------------------------------------------------------------------------------------


def test_whitening_equals_its_formula():
    rng = np.random.default_rng(0)
    data, frames = rng.integers(0, 256, (50, 96, 96)), rng.integers(0, 256, (3, 96, 96))
    moments = script.RunningMoments((96, 96), CPU)
    moments.update(torch.from_numpy(data), torch.ones(50, dtype=torch.bool))
    mean, std = data.mean(0), data.std(0)
    for obs_norm, expected in {
        "none": frames / 255,
        "mean": (frames - mean) / 255,
        "meanstd": np.clip((frames - mean) / std, -1, 1),
    }.items():
        white = script.whiten(torch.from_numpy(frames.astype(np.uint8)), moments, obs_norm)
        assert white.shape == (3, 1, 96, 96) and white.dtype == torch.float32
        np.testing.assert_allclose(white[:, 0], expected, rtol=1e-4, atol=1e-3)


def test_novelty_is_the_mean_squared_error_in_pieces_of_any_size():
    torch.manual_seed(0)
    args = small_args()
    snd = script.SND(600, args, CPU)
    frames = torch.randint(0, 256, (3, 600, 96, 96), dtype=torch.uint8)
    white = script.whiten(frames.flatten(0, 1), snd.obs_rms, "meanstd")
    with torch.no_grad():
        expected = (snd.predictor(white) - snd.target(white)).square().mean(1)
    ours = script.novelty(snd, frames, "meanstd")
    assert ours.shape == (3, 600)
    torch.testing.assert_close(ours.flatten(), expected, rtol=1e-4, atol=1e-6)


def test_spread_equals_a_dictionary_of_lists():
    rng = np.random.default_rng(0)
    T, N, K, D = 40, 3, 4, 6
    features, starts = rng.normal(size=(T, N, D)), rng.random((T, N)) < 0.1
    starts[0] = True
    memory, position = torch.zeros(N, K, D, dtype=torch.float64), torch.zeros(N, dtype=torch.int64)
    halves = [  # the memory goes on from rollout to rollout
        script.episodic_spread(torch.from_numpy(features[a:b]), torch.from_numpy(starts[a:b]), memory, position)
        for a, b in ((0, 17), (17, T))
    ]
    expected = np.zeros((T, N))
    for n in range(N):
        for t in range(T):
            if starts[t, n]:
                seen = [features[t, n]] * (K - 1)  # full of the first frame
            seen = [*seen, features[t, n]][-K:]
            expected[t, n] = np.std(seen, axis=0).mean()
    np.testing.assert_allclose(torch.cat(halves), expected, rtol=1e-9)


def test_separability_equals_loops():
    rng = np.random.default_rng(0)
    rooms, episodes = rng.integers(0, 3, 40), np.repeat(np.arange(4), 10)
    rooms[7] = 9  # a room that is in one episode only
    z = rng.normal(size=(40, 5)) + rooms[:, None] * np.array([1, 0.5, 0, 0, 0])
    hits = []
    for i in range(40):
        others = [j for j in range(40) if episodes[j] != episodes[i]]
        if rooms[i] in rooms[others]:
            nearest = min(others, key=lambda j: ((z[i] - z[j]) ** 2).sum())
            hits.append(rooms[nearest] == rooms[i])
    total = sum(((x - z.mean(0)) ** 2).sum() for x in z)
    between = sum(((z[rooms == r].mean(0) - z.mean(0)) ** 2).sum() for r in rooms)
    eigenvalues = np.linalg.eigvalsh(np.cov(z.T))
    ours = script.separability(z, rooms, episodes)
    assert len(hits) == 39 and ours["nearest"] == np.mean(hits)
    np.testing.assert_allclose(ours["between"], between / total, rtol=1e-9)
    np.testing.assert_allclose(ours["dimensions"], eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rtol=1e-9)


# ----------------------------------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------------------------------


def convolve(x: torch.Tensor, layer: torch.nn.Conv2d, size: int, stride: int, padding: int) -> torch.Tensor:
    assert layer.weight.shape[2:] == (size, size)
    return F.conv2d(x, layer.weight, layer.bias, stride, padding)


@pytest.mark.parametrize("net", ["A", "B", "ST"])
def test_target_and_predictor_equal_their_description(net):
    torch.manual_seed(0)
    snd = script.SND(2, small_args(rnd_net=net, target_gain=0.5, predictor_gain=1.25), CPU)
    shapes = {
        "A": ((32, 8, 4, 2), (64, 3, 2, 1), (64, 3, 1, 1)),
        "B": ((16, 3, 2, 1), (32, 3, 2, 1), (64, 3, 2, 1), (64, 3, 1, 1)),
        "ST": ((32, 3, 2, 1), (64, 3, 2, 1), (64, 3, 2, 1), (128, 3, 1, 1)),
    }[net]
    for network, gain, extra in ((snd.target, 0.5, 0), (snd.predictor, 1.25, 2)):
        layers = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
        x = inputs = torch.rand(3, 1, 96, 96)
        activation = F.relu if net == "ST" else F.elu
        for layer, (channels, *shape) in zip(layers, shapes, strict=False):
            x = activation(convolve(x, layer, *shape))
            assert x.shape[1] == channels
        for k, layer in enumerate(layers[len(shapes) :]):
            x = F.linear(F.elu(x) if k else x.flatten(1), layer.weight, layer.bias)
        assert len(layers) == len(shapes) + 1 + extra and x.shape == (3, 512)
        torch.testing.assert_close(network(inputs), x, rtol=1e-4, atol=1e-5)
        for layer in layers:
            w = layer.weight.flatten(1).double()
            w = w if len(w) <= w.shape[1] else w.T
            torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w), dtype=torch.float64), atol=1e-4, rtol=0)
            assert (layer.bias == 0).all()


@pytest.mark.parametrize("net", ["A", "B", "C", "D"])
def test_policies_equal_their_description(net):
    torch.manual_seed(0)
    agent = script.Agent(7, script.Args(policy_net=net))
    shapes = {
        "A": ((32, 8, 4, 2), (64, 3, 2, 1), (64, 3, 1, 1)),
        "B": ((64, 8, 4, 2), (64, 3, 2, 1), (128, 3, 1, 1)),
        "C": ((32, 3, 2, 1), (64, 3, 2, 1), (64, 3, 2, 1), (128, 3, 1, 1)),
        "D": ((128, 8, 8, 0),),
    }[net]
    widths = {"A": (448, 448), "B": (800,), "C": (512,), "D": (512,)}[net]
    obs = torch.randint(0, 256, (3, 4, 96, 96), dtype=torch.uint8)
    x, modules = obs.float() / 255, iter(agent.trunk)

    def following(kind: type) -> torch.nn.Module:
        return next(m for m in modules if isinstance(m, kind))

    with torch.no_grad():
        for channels, *shape in shapes:
            x = convolve(x, following(torch.nn.Conv2d), *shape).relu()
            assert x.shape[1] == channels
        for _ in range(2 * (net == "D")):
            block = following(script.Attention)
            tokens = x.flatten(2).transpose(1, 2)
            q, k, v = F.linear(tokens, block.attention.in_proj_weight, block.attention.in_proj_bias).chunk(3, -1)
            weights = (q @ k.transpose(1, 2) / 128**0.5).softmax(-1)
            out = block.attention.out_proj
            x = F.linear(weights @ v, out.weight, out.bias).transpose(1, 2).reshape(x.shape)
            x = x + convolve(x, block.mix, 1, 1, 0).relu()
        x = x.flatten(1)
        for width in widths:
            layer = following(torch.nn.Linear)
            x = F.linear(x, layer.weight, layer.bias).relu()
            assert x.shape[1] == width
        policy = F.linear(x, agent.policy_branch.weight, agent.policy_branch.bias).relu()
        value = F.linear(x, agent.value_branch.weight, agent.value_branch.bias).relu()
        value = value + x if net == "A" else value
        logits, values = agent(obs)
    torch.testing.assert_close(logits, F.linear(policy, agent.policy_head.weight), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(values, F.linear(value, agent.value_head.weight), rtol=1e-4, atol=1e-6)
    for layer, gain in ((agent.policy_branch, 0.01), (agent.value_branch, 0.1), (agent.value_head, 0.01)):
        w = layer.weight.double()
        torch.testing.assert_close(w @ w.T, gain**2 * torch.eye(len(w), dtype=torch.float64), atol=1e-5, rtol=0)


# ----------------------------------------------------------------------------------------------------------------------
# Environment
# ----------------------------------------------------------------------------------------------------------------------


def test_constants_read_back_from_envpool():
    envs = script.AtariEnvs("MontezumaRevenge-v5", 2, [1, 2], script.Args(max_episode_steps=123))
    config = envs.pool.spec.config._asdict()
    for name, value in {
        "img_height": 96,
        "img_width": 96,
        "stack_num": 4,
        "gray_scale": True,
        "frame_skip": 4,
        "noop_max": 30,
        "repeat_action_probability": 0.25,
        "episodic_life": False,
        "use_fire_reset": False,
        "full_action_space": False,
        "max_episode_steps": 123,
    }.items():
        assert config[name] == value, name
    assert envs.num_actions == 18
    assert envs.reset().shape == (2, 4, 96, 96)


def test_ale_py_shows_what_envpool_shows(monkeypatch):
    """With one no-op at the start in both; how many there are is otherwise drawn by each for itself."""
    make, preprocess = script.envpool.make, script.gym.wrappers.AtariPreprocessing
    monkeypatch.setattr(script.envpool, "make", lambda *a, **k: make(*a, **k | {"noop_max": 1}))
    monkeypatch.setattr(
        script.gym.wrappers, "AtariPreprocessing", lambda *a, **k: preprocess(*a, **k | {"noop_max": 1})
    )
    args = script.Args(sticky_actions=0.0)
    envs = script.AtariEnvs("MontezumaRevenge-v5", 1, [3], args)
    env = script.make_evaluation_env("MontezumaRevenge-v5", args)
    ours, (theirs, _) = envs.reset(), env.reset(seed=0)
    rng = np.random.default_rng(0)
    for step in range(150):
        np.testing.assert_array_equal(ours[0], theirs, err_msg=f"step {step}")
        action = int(rng.integers(18))
        ours, *_ = envs.step(np.array([action]))
        theirs, _, terminated, _, _ = env.step(action)
        if terminated:
            break
    assert step > 50


class FakePool:
    """EnvPool's interface with scripted episodes. Each frame carries a number of its own in its first four pixels.

    Environment i plays episodes of length 5 + i; every second one is truncated. Rewards are 3 on each 4th step, -2 on
    each 5th.
    """

    def __init__(self, num_envs: int):
        self.num_envs = num_envs
        self.action_space = type("Space", (), {"n": 6})()
        self.time, self.episode, self.shown = np.zeros(num_envs, int), np.zeros(num_envs, int), 0
        self.done = np.zeros(num_envs, bool)

    def frames(self) -> np.ndarray:
        obs = np.random.default_rng(self.shown).integers(0, 256, (self.num_envs, 4, 96, 96)).astype(np.uint8)
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
        rewards = np.where(self.time % 4 == 0, 3.0, np.where(self.time % 5 == 0, -2.0, 0.0)) * ~reset
        ram = np.zeros((n, 128), np.uint8)
        ram[:, 3] = np.where(reset, 99, 1 + self.time // 3)  # 99: a room that only a reset step shows
        self.done = ends
        info = {"ram": ram, "terminated": (ends & ~truncated).astype(np.int32)}
        return self.frames(), rewards.astype(np.float32), ends & ~truncated, truncated, info


@pytest.fixture
def fake_pool(monkeypatch):
    monkeypatch.setattr(script.envpool, "make", lambda env_id, num_envs, **_: FakePool(num_envs))


def test_rewards_rooms_and_episodes(fake_pool):
    envs = script.AtariEnvs("MontezumaRevenge-v5", 2, [0, 1], script.Args())
    envs.reset()
    rewards = np.stack([envs.step(np.zeros(2, int))[1] for _ in range(14)])
    assert set(rewards.flatten().tolist()) == {0.0, 1.0} and rewards.dtype == np.float32  # a loss counts as nothing
    assert sorted(envs.episodes) == [(1.0, 5), (1.0, 5), (1.0, 6), (1.0, 6)]  # 3 - 2, as the game has it
    assert envs.visited == {1, 2, 3} and envs.rooms_best == 3


def test_rooms_by_image_equal_a_plain_count(fake_pool, monkeypatch):
    envs = script.AtariEnvs("MontezumaRevenge-v5", 2, [0, 1], script.Args(rooms="image"))
    pictures = np.random.default_rng(0).integers(0, 256, (9, 96, 96)).astype(np.uint8)
    order = [0, 0, 1, 2, 1, 3, 0, 4]
    shown = []

    def frames():
        k = len(shown)
        picture = pictures[order[k // 32]] if k % 32 == 0 else pictures[8]  # in between nobody looks
        shown.append(k)
        obs = np.zeros((2, 4, 96, 96), np.uint8)
        obs[0, 3], obs[1, 3] = np.clip(picture.astype(int) + k % 3, 0, 255), k  # hardly another; and environment 1
        return obs

    monkeypatch.setattr(envs.pool, "frames", frames)
    for _ in range(32 * len(order)):
        envs.step(np.zeros(2, int))
    assert len(envs.images) == len(set(order))


@pytest.mark.parametrize(("grey", "rooms"), [(24, 1), (27, 2)])
def test_a_room_by_image_is_another_from_a_mean_square_of_a_hundredth_on(fake_pool, monkeypatch, grey, rooms):
    """(24 / 255)^2 = 0.0089, (27 / 255)^2 = 0.0112."""
    envs = script.AtariEnvs("MontezumaRevenge-v5", 1, [0], script.Args(rooms="image"))
    pictures = iter([np.zeros((1, 4, 96, 96), np.uint8)] * 32 + [np.full((1, 4, 96, 96), grey, np.uint8)] * 32)
    monkeypatch.setattr(envs.pool, "frames", lambda: next(pictures))
    for _ in range(64):
        envs.step(np.zeros(1, int))
    assert len(envs.images) == rooms


def test_rooms_by_image_are_a_hundred_at_most(fake_pool, monkeypatch):
    envs = script.AtariEnvs("MontezumaRevenge-v5", 1, [0], script.Args(rooms="image"))
    rng = np.random.default_rng(0)
    monkeypatch.setattr(envs.pool, "frames", lambda: rng.integers(0, 256, (1, 4, 96, 96)).astype(np.uint8))
    for _ in range(32 * 130):
        envs.step(np.zeros(1, int))
    assert len(envs.images) == 100


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


def train(args: script.Args, tmp_path: pathlib.Path, path=None, saved=None) -> pathlib.Path:
    """Trains in this process; returns the run's folder."""
    args.runs_dir = str(tmp_path)
    assert script.train(args, "MontezumaRevenge-v5", CPU, path, saved) == 0
    return next(tmp_path.glob("*/latest.pt")).parent


def numbers(frames: torch.Tensor | np.ndarray) -> list[int]:
    frames = np.ascontiguousarray(np.asarray(frames)[..., 0, :4])
    return frames.view(np.uint32).ravel().tolist()


class PlainAdam:
    """Kingma and Ba (2015), algorithm 1."""

    def __init__(self, parameters):
        self.parameters = [*parameters]
        self.moments, self.steps = [[torch.zeros_like(p), torch.zeros_like(p)] for p in self.parameters], 0

    @torch.no_grad()
    def step(self, gradients, learning_rate=1e-4):
        self.steps += 1
        for p, m, g in zip(self.parameters, self.moments, gradients, strict=True):
            m[0], m[1] = 0.9 * m[0] + 0.1 * g, 0.999 * m[1] + 0.001 * g**2
            p -= learning_rate * (m[0] / (1 - 0.9**self.steps)) / ((m[1] / (1 - 0.999**self.steps)).sqrt() + 1e-8)


SETTINGS = [
    {},
    {"anneal_lr": True, "norm_adv": True, "clip_vloss": True},
    {"obs_norm": "mean", "int_scale": 30.0, "int_norm": True, "int_clip": 0.7},
    {"reward_on": "next_obs", "int_episodic": False, "target_loss": "vicreg", "pair": "next", "rnd_net": "ST"},
    {
        "target_loss": "stdim",
        "pair": "next",
        "rnd_net": "ST",
        "rnd_epochs": 1,
        "obs_norm": "none",
        "max_grad_norm": None,
    },
    {
        **{"target_loss": "none", "policy_net": "A", "entropy_coef_episodic": 0.5, "entropy_memory": 3, "vf_coef": 0.7},
        "target_gain": 3.0,  # some spreads are above 1
    },
]


@pytest.mark.parametrize("changes", SETTINGS, ids=lambda changes: "-".join(changes) or "default")
def test_two_rollouts_equal_a_plain_transcription(fake_pool, tmp_path, monkeypatch, changes):
    T, N, M = 8, 4, 2
    args = small_args(num_steps=T, num_minibatches=M, total_timesteps=2 * T * N, update_proportion=1.0, **changes)
    batches, pairs, acted, played = [], [], [], []
    ppo_loss, draw_pairs, step, forward = (
        script.ppo_loss,
        script.draw_pairs,
        script.AtariEnvs.step,
        script.Agent.forward,
    )

    def spy_loss(logits, values, batch, args):
        batches.append({key: x.clone() for key, x in batch.items()})
        return ppo_loss(logits, values, batch, args)

    def spy_pairs(*given):
        pairs.append(draw_pairs(*given))
        return pairs[-1]

    def spy_step(self, actions):
        played.append((actions.copy(), *step(self, actions)))
        return played[-1][1:]

    def spy_forward(self, obs):
        if len(obs) == N:
            acted.append(obs.clone())
        return forward(self, obs)

    monkeypatch.setattr(script, "augment", lambda inputs, aug, noise_prob: inputs)
    monkeypatch.setattr(script, "ppo_loss", spy_loss)
    monkeypatch.setattr(script, "draw_pairs", spy_pairs)
    monkeypatch.setattr(script.AtariEnvs, "step", spy_step)
    monkeypatch.setattr(script.Agent, "forward", spy_forward)
    run_dir = train(args, tmp_path)
    state, scalars = torch.load(run_dir / "latest.pt", weights_only=True), read_scalars(run_dir)
    monkeypatch.undo()
    assert len(acted) == 2 * (T + 1) and len(played) == 3 * T and len(batches) == 2 * 2 * M

    torch.manual_seed(args.seed)
    heads = 3 if args.entropy_coef_episodic else 2
    agent, snd = script.Agent(6, args), script.SND(N, args, CPU)
    start = {f"agent.{k}": v.clone() for k, v in agent.state_dict().items()}
    start |= {f"snd.{k}": v.clone() for k, v in snd.state_dict().items()}
    learned = {"agent": [*agent.parameters()], "predictor": [*snd.predictor.parameters()]}
    if args.target_loss != "none":
        learned["target"] = snd.target_parameters()
    adam = {key: PlainAdam(parameters) for key, parameters in learned.items()}

    seen = [obs[ok][:, 3] for _, obs, _, _, ok in played[:T]]  # frames that the moments have taken in: of the warm-up
    filtered, every_filtered = np.zeros(N), []
    memory: list[list] = [[] for _ in range(N)]
    first_step = [True] * N  # the next frame is an episode's first
    moments = pair = 0

    def white(frames) -> torch.Tensor:
        x = np.asarray(frames).astype(np.float64)
        if moments is not None and args.obs_norm != "none":
            x = x - moments[0]
        x = np.clip(x / moments[1], -1, 1) if args.obs_norm == "meanstd" else x / 255
        return torch.from_numpy(x).float()[:, None]

    def take_in() -> tuple[np.ndarray, np.ndarray]:
        data = np.concatenate(seen).astype(np.float64)
        count = len(data) + 1e-4
        mean = data.sum(0) / count
        return mean, np.sqrt(((data**2).sum(0) + 1e-4) / count - mean**2)

    for r in range(2):
        obs = torch.stack(acted[r * (T + 1) : (r + 1) * (T + 1)])  # (T+1, N, 4, 96, 96)
        actions, _, rewards, dones, valid = map(np.stack, zip(*played[T * (r + 1) : T * (r + 2)], strict=True))
        assert (~valid).any() and dones.any() and (rewards == 1).any()
        frames = obs[1:, :, 3] if args.reward_on == "next_obs" else obs[:T, :, 3]
        moments = take_in()
        with torch.no_grad():
            logits, values = (torch.stack(x) for x in zip(*(agent(o) for o in obs), strict=True))
            errors = np.stack([(snd.predictor(white(f)) - snd.target(white(f))).square().mean(1) for f in frames])
            spreads = np.stack([snd.target(white(o[:, 3])).numpy() for o in obs[:T]])
        intrinsic = args.int_scale * errors
        if args.int_norm:
            for t, n in itertools.product(range(T), range(N)):
                if valid[t, n]:
                    filtered[n] = 0.99 * filtered[n] + intrinsic[t, n]
                    every_filtered.append(filtered[n])
            f, count = np.array(every_filtered), len(every_filtered) + 1e-4
            intrinsic = intrinsic / np.sqrt(((f**2).sum() + 1e-4) / count - (f.sum() / count) ** 2)
        intrinsic = np.minimum(intrinsic, args.int_clip)
        streams = [(intrinsic, dones & args.int_episodic, 0.99, 1.0), (rewards, dones, 0.998, 2.0)]
        if heads == 3:
            spread = np.zeros((T, N))
            for t, n in itertools.product(range(T), range(N)):
                if first_step[n]:
                    memory[n] = [spreads[t, n]] * args.entropy_memory
                memory[n] = [*memory[n], spreads[t, n]][-args.entropy_memory :]
                spread[t, n] = min(1, np.std(memory[n], axis=0).mean())
                first_step[n] = not valid[t, n]
            assert (spread[valid] == 1).any() and (spread[valid] < 1).any()
            streams.append((spread, dones, 0.99, 0.5))
            np.testing.assert_allclose(scalars["rnd/spread"][r][1], spread[valid].mean(), rtol=1e-3)
        np.testing.assert_allclose(scalars["rnd/error"][r][1], errors[valid].mean(), rtol=1e-3)
        np.testing.assert_allclose(scalars["rnd/intrinsic_reward"][r][1], intrinsic[valid].mean(), rtol=1e-3)
        advantages, returns = np.zeros((T, N)), np.zeros((T, N, heads))
        for head, (reward, ends, gamma, coef) in enumerate(streams):
            v = values[..., head].numpy().astype(float)
            for n in range(N):
                steps = [t for t in range(T) if valid[t, n]]
                for t in steps:  # the sum itself, from every step
                    total, weight, after = 0.0, 1.0, [u for u in steps if u >= t]
                    for k, u in enumerate(after):
                        follows = v[after[k + 1], n] if k + 1 < len(after) else v[T, n]
                        total += weight * (reward[u, n] + gamma * follows * (not ends[u, n]) - v[u, n])
                        if ends[u, n]:
                            break
                        weight *= gamma * 0.95
                    advantages[t, n] += coef * total
                    returns[t, n, head] = total + v[t, n]
        where = {number: (k // N, k % N) for k, number in enumerate(numbers(obs[:T, :, 3].flatten(0, 1)))}
        seen += [frames[t][valid[t]].numpy() for t in range(T)]
        moments = take_in()
        logged = collections.defaultdict(list)

        for update in range(2 * M):
            batch = batches[r * 2 * M + update]
            drawn = [where[number] for number in numbers(batch["obs"][:, 3])]
            assert len(drawn) == T * N // M and all(valid[t, n] for t, n in drawn)
            ts, ns = (torch.tensor(x) for x in zip(*drawn, strict=True))
            if update < args.rnd_epochs * M:
                if args.target_loss != "none":
                    first, second, labels = pairs[pair]
                    pair += 1
                    assert args.target_loss == "contrastive" or not labels.any()  # only that loss wants others
                    assert (second == first + N * (args.pair == "next"))[labels == 0].all()
                    newest = obs[:, :, 3].flatten(0, 1)
                    x = [white(newest[index]) for index in (first, second)]
                    z, maps = [snd.target(y) for y in x], [snd.target[:6](y) for y in x]
                    if args.target_loss == "contrastive":
                        loss = (labels - (z[0] - z[1]).square().mean(1)).square().mean()
                    elif args.target_loss == "vicreg":
                        terms = script.vicreg_terms(*z)
                        logged["target_covariance"].append(float(terms["covariance"].detach()))
                        loss = sum(terms.values())
                    else:
                        terms = script.stdim_terms(*z, *maps, snd)
                        logged["target_local"].append(float(terms["local"].detach()))
                        loss = sum(terms.values())
                    logged["target_loss"].append(float(loss.detach()))
                    logged["magnitude"].append(float((z[0].square().mean() + z[1].square().mean()).detach()))
                    adam["target"].step(torch.autograd.grad(loss, learned["target"]))
                inputs = white(frames[ts, ns])
                loss = (snd.predictor(inputs) - snd.target(inputs).detach()).square().mean()
                logged["predictor_loss"].append(float(loss.detach()))
                adam["predictor"].step(torch.autograd.grad(loss, learned["predictor"]))
            new_logits, new_values = agent(obs[ts, ns])
            log_p = new_logits.log_softmax(-1)
            old = logits[ts, ns].log_softmax(-1)
            chosen = torch.from_numpy(actions[ts.numpy(), ns.numpy()])[:, None]
            ratio = (log_p.gather(1, chosen) - old.gather(1, chosen))[:, 0].exp()
            a = torch.from_numpy(advantages[ts.numpy(), ns.numpy()]).float()
            if args.norm_adv:
                a = (a - a.mean()) / (a.std(correction=0) + 1e-8)
            goal = torch.from_numpy(returns[ts.numpy(), ns.numpy()]).float()
            loss = (
                torch.max(-a * ratio, -a * ratio.clamp(0.9, 1.1)).mean() + 0.001 * (log_p.exp() * log_p).sum(-1).mean()
            )
            square = (new_values - goal).square()
            if args.clip_vloss:
                near = values[ts, ns] + (new_values - values[ts, ns]).clamp(-0.1, 0.1)
                square = torch.max(square, (near - goal).square())
            loss = loss + args.vf_coef * 0.5 * square.mean(0).sum()
            gradients = torch.autograd.grad(loss, learned["agent"])
            norm = torch.stack([g.norm() for g in gradients]).norm()
            if args.max_grad_norm is not None and norm > args.max_grad_norm:
                gradients = [g * args.max_grad_norm / norm for g in gradients]
            adam["agent"].step(gradients, 1e-4 * (1 - r / 2 * args.anneal_lr))
        assert {"predictor_loss", "magnitude"} <= logged.keys() or args.target_loss == "none"
        for name, means in logged.items():
            np.testing.assert_allclose(scalars[f"losses/{name}"][r][1], np.mean(means), rtol=2e-3, err_msg=name)
    assert pair == len(pairs)

    ours = {f"agent.{k}": v for k, v in state["agent"].items()} | {f"snd.{k}": v for k, v in state["snd"].items()}
    theirs = {f"agent.{k}": v for k, v in agent.state_dict().items()} | {
        f"snd.{k}": v for k, v in snd.state_dict().items()
    }
    for key, value in theirs.items():
        if "rms" in key or "filtered" in key:
            continue
        way = (value - start[key]).norm()
        last_bias = key == f"snd.target.{len(snd.target) - 1}.bias"  # of no consequence for what is a difference
        if last_bias and args.target_loss in ("contrastive", "vicreg"):
            assert (ours[key] - start[key]).abs().max() < 1e-3
            continue
        moves = args.target_loss != "none" or "target" not in key
        assert (way > 1e-4) == moves, f"{key}: {way}"
        error = (ours[key] - value).norm() / way if moves else (ours[key] != value).sum()
        assert error < 0.02, f"{key}: off by {error:.3f} of its way"
    if args.obs_norm != "none":
        np.testing.assert_allclose(state["snd"]["obs_rms.mean"], moments[0], rtol=1e-9)


@pytest.mark.parametrize("off", ["int_coef", "ext_coef", "entropy_coef_episodic"])
def test_a_stream_that_is_off_does_not_shape_the_network(off):
    args = small_args(**{"entropy_coef_episodic": 0.5} | {off: 0.0})
    values, batch = torch.zeros(5, 3, requires_grad=True), {key: torch.ones(5) for key in ("advantages", "logprobs")}
    batch |= {"returns": torch.ones(5, 3), "values": torch.zeros(5, 3), "valid": torch.ones(5, dtype=torch.bool)}
    loss, _ = script.ppo_loss(torch.zeros(5, 6), values, batch | {"actions": torch.zeros(5, dtype=torch.int64)}, args)
    loss.backward()
    shaped = (values.grad != 0).all(0).tolist()
    assert shaped == [name != off for name in ("int_coef", "ext_coef", "entropy_coef_episodic")]


@pytest.mark.parametrize(
    ("changes", "share"), [({"update_proportion": 0.3, "predictor_mask": "sample"}, 0.3), ({"num_envs": 64}, 0.5)]
)
def test_the_predictor_gets_the_share_that_was_asked_for(fake_pool, tmp_path, monkeypatch, changes, share):
    asked = []
    loss = script.predictor_loss
    monkeypatch.setattr(script, "predictor_loss", lambda *x: asked.append(x[2:]) or loss(*x))
    train(small_args(num_steps=1, total_timesteps=changes.get("num_envs", 4), num_minibatches=1, **changes), tmp_path)
    assert asked == [(share, changes.get("predictor_mask", "element"))] * 2


def test_same_seed_same_scalars_and_another_seed_others(tmp_path):
    runs = [train(small_args(seed=s, total_timesteps=128), tmp_path / f"{k}") for k, s in enumerate((1, 1, 2))]
    scalars = [{k: v for k, v in read_scalars(run).items() if k != "charts/SPS"} for run in runs]
    assert repr(scalars[0]) == repr(scalars[1]) and repr(scalars[0]) != repr(scalars[2])  # repr: NaN equals NaN


@pytest.mark.parametrize("preset", [*script.PRESETS])
def test_every_preset_trains_and_resumes_bit_for_bit(fake_pool, tmp_path, monkeypatch, preset):
    values = script.PRESETS[preset] | {"rnd_epochs": 1, "target_batch": 64 if preset == "seed-rnd" else 8}
    run_dir = train(small_args(preset=preset, update_epochs=1, rooms="image", **values), tmp_path)
    path, before = script.load_checkpoint("--resume", str(run_dir))
    expected = {"agent", "snd", "agent_optimizer", "predictor_optimizer", "args", "identity"}
    expected |= {"target_optimizer"} if preset != "seed-rnd" else set()
    assert {key for key, x in before.items() if isinstance(x, dict)} == expected
    monkeypatch.setattr(script, "StopSignal", lambda: type("Stopped", (), {"agreed": lambda self: 15})())
    args = script.Args(**before["args"] | {"total_timesteps": 128})
    torch.manual_seed(123)
    assert script.train(args, "MontezumaRevenge-v5", CPU, path, before) == 143
    after = torch.load(run_dir / "latest.pt", weights_only=True)
    assert before.keys() == after.keys()
    for key in before.keys() - {"seconds", "args"}:
        assert same(before[key], after[key]), key


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


# ----------------------------------------------------------------------------------------------------------------------
# What the user was promised
# ----------------------------------------------------------------------------------------------------------------------


def call_main(monkeypatch, capsys, *flags: object) -> tuple[int, str]:
    """main() with these flags: exit status and what it wrote to stderr."""
    monkeypatch.setattr(sys, "argv", ["snd_atari.py", *map(str, flags)])
    try:
        status = script.main()
    except SystemExit as stop:
        status = stop.code
    return status, capsys.readouterr().err


@pytest.mark.parametrize("preset", [*script.PRESETS])
def test_a_preset_is_its_flags_read_back(monkeypatch, preset):
    """The table of presets, and that a flag given beside one stands."""
    sqrt2 = 2**0.5
    table = {  # loss, pair, aug, noise, net, gains, obs_norm, scale, keep, batch, passes, limit
        "snd-v": ("contrastive", "same", "tile", 1.0, "B", sqrt2, sqrt2, "meanstd", 0.5, None, 64, 4, None),
        "snd-v-plain": ("contrastive", "same", "tile", 0.5, "B", sqrt2, sqrt2, "none", 0.5, 1.0, 64, 4, 200.0),
        "snd-vic": ("vicreg", "next", "none", 1.0, "ST", 0.5, sqrt2, "none", 0.25, 1.0, 512, 1, None),
        "snd-std": ("stdim", "next", "none", 1.0, "ST", 0.5, 0.5, "none", 1.0, 1.0, 512, 1, None),
        "vicreg-aug": ("vicreg", "same", "tile", 0.5, "B", sqrt2, sqrt2, "none", 0.5, 1.0, 64, 4, None),
        "seed-snd": ("contrastive", "same", "multi", 1.0, "A", sqrt2, sqrt2, "meanstd", 0.256, None, 64, 4, None),
        "seed-rnd": ("none", "same", "tile", 1.0, "A", sqrt2, sqrt2, "mean", 256.0, None, 64, 4, None),
    }
    got = []
    monkeypatch.setattr(script, "train", lambda args, *_: got.append(args) or 0)
    monkeypatch.setattr(sys, "argv", ["snd_atari.py", "--preset", preset, "--gamma", "0.9"])
    assert script.main() == 0
    (args,) = got
    names = ["target_loss", "pair", "aug", "noise_prob", "rnd_net", "target_gain", "predictor_gain", "obs_norm"]
    names += ["int_scale", "update_proportion"]
    names += ["target_batch", "rnd_epochs", "mag_limit"]
    assert tuple(getattr(args, name) for name in names) == table[preset]
    assert args.gamma == 0.9 and args.preset == preset
    default = vars(script.Args())
    others = default.keys() - {*names, "preset", "gamma"}
    assert {key: getattr(args, key) for key in others} == {key: default[key] for key in others}
    assert (args.policy_net, args.critic_init, args.max_grad_norm, default["gamma"]) == ("C", 0.1, 0.5, 0.998)
    assert (args.learning_rate, args.warmup_rollouts, args.total_timesteps) == (1e-4, 2, 128_000_000)
    common = (args.num_envs, args.num_steps, args.num_minibatches, args.update_epochs, args.int_gamma, args.int_clip)
    assert common == (128, 128, 32, 4, 0.99, 1.0) and args.int_episodic and args.reward_on == "obs"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env-id", "MontezumasRevenge"], "did you mean MontezumaRevenge-v5"),
        (["--num-envs", 0], "--num-envs 0: must be at least 1"),
        (["--seed", "1e20"], "--seed 100000000000000000000: must be below 2^63"),
        (["--num-steps", 1], "--num-steps 1: must be at least 2"),
        (["--entropy-coef-episodic", 1, "--entropy-memory", 1], "--entropy-memory 1: must be at least 2"),
        (["--int-norm", "--int-scale", 2], "--int-scale contradicts --int-norm"),
        (["--preset", "snd-vic", "--predictor-mask", "sample"], "--predictor-mask contradicts --update-proportion 1"),
        (["--preset", "snd-vic", "--warmup-rollouts", 3], "--warmup-rollouts contradicts --obs-norm none"),
        (
            ["--target-loss", "stdim", "--aug", "none"],
            "--target-loss stdim with --pair same --aug none compares frames",
        ),
        (["--num-minibatches", 3], "--num-minibatches 3: must be a divisor of a rollout, 16384 steps"),
        (["--target-batch", 0], "--target-batch 0: must be at least 1"),
        (["--target-loss", "vicreg", "--target-batch", 1], "--target-batch 1: must be at least 2"),
        (["--rnd-epochs", 5], "--rnd-epochs 5: must be at most --update-epochs 4"),
        (["--noise-prob", 1.5], "--noise-prob 1.5: must be in [0, 1]"),
        (["--int-scale", 0], "--int-scale 0.0: must be a positive number"),
        (["--mag-limit", -1], "--mag-limit -1.0: must be a positive number"),
        (["--entropy-coef-episodic", -1], "--entropy-coef-episodic -1.0: must be a number that is not negative"),
        (["--target-loss", "none", "--pair", "next"], "--pair contradicts --target-loss none"),
        (["--aug", "none", "--noise-prob", 0.5], "--noise-prob contradicts --aug none"),
        (["--entropy-memory", 8], "--entropy-memory contradicts --entropy-coef-episodic 0"),
        (["--target-loss", "vicreg", "--aug", "none"], "compares frames with themselves"),
        (["--total-timesteps", "1e4"], "--total-timesteps 10000: must be at least one rollout"),
        (["--resume", "nowhere"], "--resume nowhere: there is no checkpoint nowhere"),
        (["--embed", "nowhere"], "--embed nowhere: there is no checkpoint nowhere"),
        (["--resume", "foreign.pt"], "was written by ppo_rnd_atari, not by this script"),
        (["--capture-video"], "--capture-video needs --evaluate"),
        (["--runs-dir", "/dev/null/runs"], "cannot write into /dev/null/runs"),
    ],
    ids=lambda value: "_".join(map(str, value)).replace("/", ".") if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_leaves_nothing(fake_pool, monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    torch.save({"script": "ppo_rnd_atari"}, "foreign.pt")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    status, errors = call_main(monkeypatch, capsys, *flags)
    assert status == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_checkpoints_that_do_not_fit(fake_pool, monkeypatch, capsys, tmp_path):
    run_dir = train(small_args(), tmp_path)
    before = (run_dir / "latest.pt").read_bytes()
    for flags, message in [
        (["--env-id", "Pitfall"], "is of a run with env_id MontezumaRevenge-v5, not Pitfall-v5"),
        (["--preset", "snd-vic", "--total-timesteps", 640], "is of a run with preset snd-v, not snd-vic"),
        (
            ["--target-loss", "none", "--target-batch", 64, "--total-timesteps", 640],
            "with target_loss contrastive, not none",
        ),
        (["--rnd-net", "A", "--total-timesteps", 640], "holds another architecture"),
        (["--policy-net", "A", "--total-timesteps", 640], "holds another architecture"),
        (["--total-timesteps", 64], "has all of its 64 steps"),
    ]:
        status, errors = call_main(monkeypatch, capsys, "--resume", run_dir, *flags)
        assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors, errors
    status, errors = call_main(monkeypatch, capsys, "--resume", run_dir, "--evaluate", run_dir)
    assert status == 2 and errors == "error: --resume, --evaluate and --embed exclude each other\n"
    assert (run_dir / "latest.pt").read_bytes() == before


def test_every_flag_is_read():
    """And not only looked at by check_args."""
    source = (ROOT / "snd_atari.py").read_text().replace(inspect.getsource(script.check_args), "")
    for field in dataclasses.fields(script.Args):
        assert re.search(rf"\b(args|own)\.{field.name}\b", source), f"nothing reads --{field.name}"


def test_a_run_as_a_user_sees_it(tmp_path):
    """Trains, resumes, evaluates and embeds in processes of their own."""
    out = run_script("snd_atari.py", *SMALL, "--total-timesteps", 128, "--rooms", "image", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert run_dir.name.startswith("MontezumaRevenge-v5__snd_atari__1__")
    lines = out.stdout.splitlines()
    for word in ("device", "environment  MontezumaRevenge-v5 x 4", "parameters", "preset", "memory", "steps", "folder"):
        assert any(line.startswith(word) for line in lines), word
    assert lines[-1].startswith("score none yet, steps 128, time 0:00:") and str(run_dir.name) in lines[-1]
    scalars = read_scalars(run_dir)
    losses = "policy_loss value_loss value_loss_int value_loss_ext entropy approx_kl clipfrac predictor_loss grad_norm"
    expected = {f"losses/{name}" for name in f"{losses} target_loss magnitude".split()}
    expected |= {f"losses/explained_variance{suffix}" for suffix in ("_int", "_ext")}
    expected |= {
        f"rnd/{n}" for n in ("intrinsic_reward", "error", "rooms_visited", "rooms_best_episode", "rooms_by_image")
    }
    assert set(scalars) == expected | {"charts/SPS", "charts/learning_rate"}

    more = run_script("snd_atari.py", "--resume", run_dir, "--total-timesteps", 192, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    assert [step for step, _ in read_scalars(run_dir)["losses/entropy"]] == [64, 128, 192]

    flags = ["--eval-episodes", 2, "--max-episode-steps", 60]
    played = run_script("snd_atari.py", "--evaluate", run_dir, *flags, "--capture-video", cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    assert "return 0.0 +- 0.0 (mean, standard error), best 0, rooms 1.0" in played.stdout.splitlines()[-1]
    assert len([*(run_dir / "videos").iterdir()]) == 2

    shown = run_script("snd_atari.py", "--embed", run_dir, run_dir, *flags, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    names = [line.split(":")[0] for line in lines[-4:-1]]
    assert names == ["snd-v, contrastive, seed 1", "snd-v, contrastive, seed 1 (2)", "random target"]
    assert lines[-4].split(": ")[1] == lines[-3].split(": ")[1]
    assert lines[-1].startswith("picture ") and (tmp_path / lines[-1].split()[1]).read_bytes()[:4] == b"\x89PNG"


def test_a_signal_saves_and_says_how_to_go_on(tmp_path):
    command = [sys.executable, str(ROOT / "snd_atari.py"), *map(str, SMALL), "--checkpoint-interval", "1000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("room 1"):
            break
    time.sleep(4)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in err
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert f"--resume runs/{run_dir.name}" in out.splitlines()[-1]
    assert torch.load(run_dir / "latest.pt", weights_only=True)["rollouts"] >= 1


def test_embed_shows_every_model_the_same_frames(fake_pool, tmp_path, monkeypatch):
    features, agent = script.features, script.Agent
    run_dir = train(small_args(), tmp_path / "a")
    other = train(
        small_args(seed=2, preset="seed-rnd", **script.PRESETS["seed-rnd"] | {"target_batch": 64}), tmp_path / "b"
    )
    seen = {}
    monkeypatch.setattr(script, "plot_embeddings", lambda models, rooms, *rest: seen.update(models, rooms=rooms) or {})
    monkeypatch.setattr(
        script,
        "features",
        lambda net, frames, *rest: seen.setdefault("f", []).append(frames) or features(net, frames, *rest),
    )
    path, saved = script.load_checkpoint("--embed", str(run_dir))
    args = script.Args(
        **saved["args"] | {"embed": (str(run_dir), str(other)), "eval_episodes": 2, "max_episode_steps": 20}
    )
    monkeypatch.setattr(script, "Agent", lambda actions, *rest: agent(6, *rest))
    monkeypatch.setattr(script.torch.distributions.Categorical, "sample", lambda self: torch.tensor(0))
    script.embed(args, "MontezumaRevenge-v5", CPU, path, saved)
    assert [*seen][:1] == ["f"] and len(seen["f"]) == 3 and all(torch.equal(x, seen["f"][0]) for x in seen["f"])
    assert seen["f"][0].shape == (40, 1, 96, 96) and set(seen["rooms"].tolist()) == {1}
    torch.manual_seed(1)
    for run, name in ((run_dir, "snd-v, contrastive, seed 1"), (other, "seed-rnd, none, seed 2")):
        state = script.load_checkpoint("--embed", str(run))[1]
        own = script.Args(**state["args"])
        learned = script.SND(4, own, CPU)
        learned.load_state_dict(state["snd"])
        expected = features(learned.target, seen["f"][0], learned.obs_rms, own.obs_norm).squeeze(1)
        torch.testing.assert_close(torch.from_numpy(seen[name]).float(), expected)
    torch.manual_seed(1)
    start = script.SND(4, small_args(), CPU)
    start.obs_rms.load_state_dict({k.removeprefix("obs_rms."): v for k, v in saved["snd"].items() if "obs_rms" in k})
    expected = features(start.target, seen["f"][0], start.obs_rms, "meanstd").squeeze(1)
    torch.testing.assert_close(torch.from_numpy(seen["random target"]).float(), expected)
    models = [seen[name] for name in ("snd-v, contrastive, seed 1", "seed-rnd, none, seed 2", "random target")]
    assert not np.allclose(models[0], models[2]) and not np.allclose(models[0], models[1])


def test_embed_wants_runs_of_one_game_and_more_than_a_frame_or_two(fake_pool, tmp_path):
    run_dir = train(small_args(), tmp_path / "a")
    path, saved = script.load_checkpoint("--embed", str(run_dir))
    args = script.Args(**saved["args"] | {"embed": (str(run_dir),), "eval_episodes": 1, "max_episode_steps": 2})
    real = script.Agent(18, args).state_dict()
    with pytest.raises(script.UserError, match="too few frames"):
        script.embed(args, "MontezumaRevenge-v5", CPU, path, saved | {"agent": real})
    args.max_episode_steps = 5
    saved["identity"]["env_id"] = "Pitfall-v5"
    torch.save(saved, path)
    with pytest.raises(script.UserError, match=r"is of a run with env_id Pitfall-v5, not MontezumaRevenge-v5"):
        script.embed(args, "MontezumaRevenge-v5", CPU, path, saved | {"agent": real})


def test_a_third_stream_another_policy_and_bf16_go_all_the_way(tmp_path):
    """Trained, resumed, evaluated and embedded."""
    flags = ["--policy-net", "A", "--entropy-coef-episodic", 0.5, "--bf16", "--total-timesteps", 64]
    out = run_script("snd_atari.py", *SMALL, *flags, cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    more = run_script("snd_atari.py", "--resume", run_dir, "--total-timesteps", 128, cwd=tmp_path)
    assert more.returncode == 0, more.stderr
    scalars = read_scalars(run_dir)
    for name in ("losses/value_loss_spread", "losses/explained_variance_spread", "rnd/spread"):
        assert [step for step, _ in scalars[name]] == [64, 128], name
    for flag in ("--evaluate", "--embed"):
        done = run_script("snd_atari.py", flag, run_dir, "--eval-episodes", 1, "--max-episode-steps", 30, cwd=tmp_path)
        assert done.returncode == 0, done.stderr


def test_a_resume_takes_the_learning_rate_that_is_asked_for(fake_pool, tmp_path):
    run_dir = train(small_args(), tmp_path)
    path, saved = script.load_checkpoint("--resume", str(run_dir))
    args = script.Args(**saved["args"] | {"total_timesteps": 128, "learning_rate": 3e-4})
    assert script.train(args, "MontezumaRevenge-v5", CPU, path, saved) == 0
    rates = [rate for _, rate in read_scalars(run_dir)["charts/learning_rate"]]
    np.testing.assert_allclose(rates, [1e-4, 3e-4], rtol=1e-6)
    state = torch.load(path, weights_only=True)
    for name in ("agent", "predictor", "target"):
        assert state[f"{name}_optimizer"]["param_groups"][0]["lr"] == 3e-4
