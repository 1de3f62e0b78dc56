"""snd_atari.py: its numbers against independent computations, and its promises to the user.

What all scripts promise alike (signals, the console, checkpoints that are damaged) is in test_faults.py.
"""

import collections
import difflib
import inspect
import itertools
import signal

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
    frame_numbers,
    only_run,
    plain_filter,
    plain_moments,
    read_scalars,
    run_script,
    spy,
    train_here,
)

import ppo_rnd_atari_ram
import snd_atari as script
from benchmark import embed

MONTEZUMA = "MontezumaRevenge-v5"


def small_args(**changes) -> script.Args:
    """Four minibatches, two passes over each rollout of 64 steps; the smallest policy."""
    values = {"env_id": MONTEZUMA, "num_envs": 4, "num_steps": 16, "num_minibatches": 4, "policy_net": "A"}
    values |= {"update_epochs": 2, "rnd_epochs": 2, "target_batch": 8, "warmup_rollouts": 1}
    return script.Args(**values | {"total_timesteps": 64, "checkpoint_interval": 1e6} | changes)


def double(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


def same_with_gradients(ours: torch.Tensor, theirs: torch.Tensor, inputs: list[torch.Tensor]) -> None:
    """Two computations of a loss, and what they say of the inputs' gradients."""
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-10)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-12)


# --------------------------------------------------------------------- What is the same as in other scripts


ALIKE = {
    "main": 10,
    "ppo_loss": 3,
    "warm_up": 8,
    "Run": 7,
    "evaluate": 2,
    "restore": 7,
}  # lines that only one of the two has


@pytest.mark.parametrize("name", ALIKE)
def test_blocks_that_do_the_same_are_the_same_text(name):
    """So that the tests of these blocks in tests/test_ppo_rnd_atari_ram.py hold here too."""
    ours, theirs = (inspect.getsource(getattr(module, name)).splitlines() for module in (script, ppo_rnd_atari_ram))
    assert sum(line.startswith(("+ ", "- ")) for line in difflib.ndiff(theirs, ours)) == ALIKE[name]


# ------------------------------------------------------------------------------------------------------ Losses


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
    ours = script.stdim_terms(first, second, [local_first, local_second], heads)
    assert ours.keys() == expected.keys()
    for name, term in ours.items():
        torch.testing.assert_close(term, expected[name], rtol=1e-6, atol=1e-10)
    inputs = [first, second, local_first, local_second, *heads.parameters()]
    same_with_gradients(sum(ours.values()), sum(expected.values()), inputs)


def test_the_target_s_loss_takes_in_all_its_parts(monkeypatch):
    damage: list[tuple] = []
    monkeypatch.setattr(script, "augment", lambda inputs, *how: damage.append(how) or inputs)
    frames = torch.randint(0, 256, (12, 96, 96), dtype=torch.uint8)
    labels = torch.tensor([0, 1, 1, 0, 1, 0.0])
    monkeypatch.setattr(script, "draw_pairs", lambda *_: (torch.arange(6), torch.arange(6, 12), labels))
    first, second = (frames[:, None] / 255).split(6)
    for kind, net in (("contrastive", "A"), ("contrastive", "B"), ("vicreg", "ST"), ("stdim", "ST"), ("stdim", "B")):
        args = small_args(target_loss=kind, rnd_net=net, mag_limit=0.01, obs_norm="none")
        args.aug, args.noise_prob = "multi", 0.3
        torch.manual_seed(0)
        snd = script.SND(args, CPU)
        z = [snd.target(x) for x in (first, second)]
        maps = [torch.nn.Sequential(*[*snd.target][:6])(x) for x in (first, second)]
        assert maps[0].shape == (6, 64, 12, 12)
        magnitude = z[0].square().mean() + z[1].square().mean()
        if kind == "contrastive":
            expected = {"contrastive": script.contrastive_loss(*z, labels)}
        else:
            expected = script.vicreg_terms(*z) if kind == "vicreg" else script.stdim_terms(*z, maps, snd)
        whole, expected = sum(expected.values()), {f"target_{name}": term for name, term in expected.items()}
        limit = (magnitude - 0.01).clamp(min=0)
        loss, logged = script.target_loss(snd, frames, torch.arange(12), args)
        expected |= {"target_loss": whole + limit, "target_limit": limit, "magnitude": magnitude}
        torch.testing.assert_close(logged, expected)
        assert loss is logged["target_loss"]
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in snd.target_parameters())
        assert all(p.grad is None for p in snd.predictor.parameters())
        args.mag_limit = float(magnitude.detach()) + 1
        _, logged = script.target_loss(snd, frames, torch.arange(12), args)
        expected |= {"target_loss": whole, "target_limit": torch.tensor(0.0)}
        torch.testing.assert_close(logged, expected)
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
        assert abs(there - share * size) <= 4 * (size * share * (1 - share)) ** 0.5  # four std
        if mask == "sample":
            assert (kept.all(1) == rows).all()  # a frame is kept whole or not at all
        expected = ((predicted - targets) ** 2)[kept].mean()
        torch.testing.assert_close(loss, expected, rtol=1e-9, atol=0)
        torch.testing.assert_close(gradient[kept], (2 * (predicted - targets) / kept.sum())[kept], rtol=1e-9, atol=0)


# ------------------------------------------------------------------------------------- Pairs and augmentations


@pytest.mark.parametrize("pair", ["same", "next"])
@pytest.mark.parametrize("with_others", [True, False])
def test_pairs_have_the_stated_distribution(pair, with_others):
    torch.manual_seed(0)
    T, N, size = 6, 5, 200_000
    valid = torch.rand(T, N) < 0.7
    experience = torch.tensor([t * N + n for t in range(T) for n in range(N) if valid[t, n]])
    loss = "contrastive" if with_others else "vicreg"
    args = small_args(num_envs=N, target_batch=size, pair=pair, target_loss=loss)
    first, second, labels = script.draw_pairs(experience, args)
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
        assert abs(event.float().mean() - share) < 0.05  # four std
    assert (alike[4].int() + alike[2].int() + unchanged.int() == 1).all()
    assert abs((~kept)[dropped].float().mean() - 0.1) < 0.005


# ------------------------------------------------------------------------------------ Frames, features, reward


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


def test_features_are_the_network_s_in_pieces_of_any_size():
    torch.manual_seed(0)
    snd = script.SND(small_args(rnd_net="A"), CPU)
    frames = torch.randint(0, 256, (3, 400, 96, 96), dtype=torch.uint8)
    white = script.whiten(frames.flatten(0, 1), snd.obs_rms, "meanstd")
    ours = script.features(snd.predictor, frames, snd.obs_rms, "meanstd")
    assert ours.shape == (3, 400, 512) and not ours.requires_grad
    torch.testing.assert_close(ours.flatten(0, 1), snd.predictor(white).detach(), rtol=1e-4, atol=1e-5)


def test_spread_equals_a_dictionary_of_lists():
    rng = np.random.default_rng(0)
    T, N, K, D = 40, 3, 4, 6
    features, starts = rng.normal(size=(T, N, D)), rng.random((T, N)) < 0.1
    starts[0] = True
    memory = torch.zeros(N, K, D, dtype=torch.float64)
    halves = []
    for a, b in ((0, 17), (17, T)):  # the memory goes on from rollout to rollout
        half, memory = script.episodic_spread(torch.from_numpy(features[a:b]), torch.from_numpy(starts[a:b]), memory)
        halves.append(half)
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
    ours = embed.separability(z, rooms, episodes)
    assert len(hits) == 39 and ours["nearest"] == np.mean(hits)
    np.testing.assert_allclose(ours["between"], between / total, rtol=1e-9)
    np.testing.assert_allclose(ours["dimensions"], eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rtol=1e-9)


# ---------------------------------------------------------------------------------------------------- Networks


def convolve(x: torch.Tensor, layer: torch.nn.Conv2d, size: int, stride: int, padding: int) -> torch.Tensor:
    assert layer.weight.shape[2:] == (size, size)
    return F.conv2d(x, layer.weight, layer.bias, stride, padding)


@pytest.mark.parametrize("net", ["A", "B", "ST"])
def test_target_and_predictor_equal_their_description(net):
    torch.manual_seed(0)
    snd = script.SND(small_args(rnd_net=net, target_gain=0.5, predictor_gain=1.25), CPU)
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


# ------------------------------------------------------------------------------------------------- Environment


def test_constants_read_back_from_envpool():
    envs = script.AtariEnvs(small_args(num_envs=2, max_episode_steps=123), [1, 2])
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
    args = small_args(num_envs=1, sticky_actions=0.0)
    envs, env = script.AtariEnvs(args, [3]), script.make_evaluation_env(args)
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


def test_rewards_rooms_and_episodes(atari_pool):
    envs = script.AtariEnvs(small_args(num_envs=2), [0, 1])
    envs.reset()
    rewards = np.stack([envs.step(np.zeros(2, int))[1] for _ in range(14)])
    assert set(rewards.flatten().tolist()) == {0.0, 1.0} and rewards.dtype == np.float32  # a loss counts as nothing
    assert sorted(envs.stats.episodes) == [(1.0, 5), (1.0, 5), (1.0, 6), (1.0, 6)]  # 3 - 2, as the game has it
    assert envs.stats.visited == {1, 2, 3} and envs.stats.rooms_best == 3 and envs.pictures.known == []
    envs.stats.add(np.zeros(2), np.zeros(2, bool), np.ones(2, bool), np.array([7, 7]))
    assert envs.stats.rooms_best == 3


def test_rooms_by_image_equal_a_plain_count(atari_pool, monkeypatch):
    envs = script.AtariEnvs(small_args(num_envs=2, rooms="image"), [0, 1])
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
    assert len(envs.pictures.known) == len(set(order))


@pytest.mark.parametrize(("grey", "rooms"), [(24, 1), (27, 2)])
def test_a_room_by_image_is_another_from_a_mean_square_of_a_hundredth_on(grey, rooms):
    """(24 / 255)^2 = 0.0089, (27 / 255)^2 = 0.0112."""
    pictures = script.Pictures(True)
    for k in range(64):
        pictures.add(np.full((96, 96), grey * (k >= 32), np.uint8))
    assert len(pictures.known) == rooms


def test_rooms_by_image_are_a_hundred_at_most_and_are_kept():
    pictures, rng = script.Pictures(True), np.random.default_rng(0)
    for _ in range(32 * 110):
        pictures.add(rng.integers(0, 256, (96, 96), np.uint8))
    again = script.Pictures(True)
    again.load_state_dict(pictures.state_dict())
    assert len(pictures.known) == 100 and np.array_equal(again.known, pictures.known)


# ---------------------------------------------------------------------------------------------------- Training


SETTINGS = [
    {"update_epochs": 2, "rnd_epochs": 2},
    {"obs_norm": "mean", "int_scale": 30.0, "int_norm": True, "int_clip": 0.7},
    {"int_episodic": False, "target_loss": "vicreg", "pair": "next", "rnd_net": "ST"},
    {
        "target_loss": "stdim",
        "pair": "next",
        "rnd_net": "ST",
        "update_epochs": 2,
        "obs_norm": "none",
        "max_grad_norm": None,
    },
    {
        **{"target_loss": "none", "entropy_coef_episodic": 0.5, "entropy_memory": 3, "vf_coef": 0.7},
        "target_gain": 3.0,  # some spreads are above 1
    },
]


@pytest.mark.parametrize("changes", SETTINGS, ids=lambda changes: "-".join(changes) or "default")
def test_two_rollouts_equal_a_plain_transcription(atari_pool, tmp_path, monkeypatch, changes):
    T, N, M = 8, 4, 2
    args = small_args(
        num_steps=T,
        num_minibatches=M,
        total_timesteps=2 * T * N,
        update_proportion=1.0,
        **{"update_epochs": 1, "rnd_epochs": 1} | changes,
    )
    with monkeypatch.context() as patch:
        patch.setattr(script, "augment", lambda inputs, aug, noise_prob: inputs)
        patch.setattr(script, "ppo_loss", spy(script.ppo_loss, losses := []))
        patch.setattr(script, "draw_pairs", spy(script.draw_pairs, drawn_pairs := []))
        patch.setattr(script.AtariEnvs, "step", spy(script.AtariEnvs.step, steps := []))
        patch.setattr(script.Agent, "forward", spy(script.Agent.forward, forwards := []))
        run_dir = train_here(script, args, tmp_path)
    batches, pairs = [given[2] for given, _ in losses], [result for _, result in drawn_pairs]
    played = [(given[1], *result) for given, result in steps]
    acted = [given[1] for given, _ in forwards if len(given[1]) == N]  # (N, 4, 96, 96); updates have larger batches
    acted = acted[: T + 1] + acted[T + 2 : -1]  # without those for the largest logit
    state, scalars = torch.load(run_dir / "latest.pt", weights_only=True), read_scalars(run_dir)
    assert len(acted) == 2 * (T + 1) and len(played) == 3 * T and len(batches) == 2 * args.update_epochs * M

    torch.manual_seed(args.seed)
    heads = 3 if args.entropy_coef_episodic else 2
    agent, snd = script.Agent(6, args), script.SND(args, CPU)
    start = {f"agent.{k}": v.clone() for k, v in agent.state_dict().items()}
    start |= {f"snd.{k}": v.clone() for k, v in snd.state_dict().items()}
    learned = {"agent": [*agent.parameters()], "predictor": [*snd.predictor.parameters()]}
    if args.target_loss != "none":
        learned["target"] = snd.target_parameters()
    adam = {key: PlainAdam(parameters) for key, parameters in learned.items()}

    seen = [obs[ok][:, 3] for _, obs, _, _, ok in played[:T]]  # frames that the moments have taken in: of the warm-up
    filtered, every_filtered = np.zeros(N), []  # where the reward filter stands, and what it gave at valid steps
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
        mean, var, _ = plain_moments(seen)
        return mean, np.sqrt(var)

    for r in range(2):
        obs = torch.stack(acted[r * (T + 1) : (r + 1) * (T + 1)])  # (T+1, N, 4, 96, 96)
        actions, _, rewards, dones, valid = map(np.stack, zip(*played[T * (r + 1) : T * (r + 2)], strict=True))
        assert (~valid).any() and dones.any() and (rewards == 1).any()
        frames = obs[:T, :, 3]
        moments = take_in()
        with torch.no_grad():
            logits, values = (torch.stack(x) for x in zip(*(agent(o) for o in obs), strict=True))
            errors = np.stack([(snd.predictor(white(f)) - snd.target(white(f))).square().mean(1) for f in frames])
            spreads = np.stack([snd.target(white(o[:, 3])).numpy() for o in obs[:T]])
        intrinsic = args.int_scale * errors
        if args.int_norm:
            f = plain_filter(intrinsic, valid, 0.99, filtered)
            filtered = f[-1]
            every_filtered.append(f[valid])
            intrinsic = intrinsic / np.sqrt(plain_moments(every_filtered)[1])
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
        where = {number: (k // N, k % N) for k, number in enumerate(frame_numbers(obs[:T, :, 3].flatten(0, 1)))}
        seen += [frames[t][valid[t]].numpy() for t in range(T)]
        moments = take_in()
        logged = collections.defaultdict(list)

        for update in range(args.update_epochs * M):
            batch = batches[r * args.update_epochs * M + update]
            drawn = [where[number] for number in frame_numbers(batch["obs"][:, 3])]
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
                        terms = script.stdim_terms(*z, maps, snd)
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
            goal = torch.from_numpy(returns[ts.numpy(), ns.numpy()]).float()
            loss = (
                torch.max(-a * ratio, -a * ratio.clamp(0.9, 1.1)).mean() + 0.001 * (log_p.exp() * log_p).sum(-1).mean()
            )
            square = (new_values - goal).square()
            loss = loss + args.vf_coef * 0.5 * square.mean(0).sum()
            gradients = torch.autograd.grad(loss, learned["agent"])
            norm = torch.stack([g.norm() for g in gradients]).norm()
            if args.max_grad_norm is not None and norm > args.max_grad_norm:
                gradients = [g * args.max_grad_norm / norm for g in gradients]
            adam["agent"].step(gradients)
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
    np.testing.assert_allclose(state["snd"]["filtered"], filtered, rtol=1e-4)


@pytest.mark.parametrize("off", [{"int_coef": 0.0}, {"ext_coef": 0.0}, {"entropy_coef_episodic": 0.0}], ids="-".join)
def test_a_stream_that_is_off_does_not_shape_the_network(off):
    args = small_args(**{"entropy_coef_episodic": 0.5} | off)
    streams = ["int_coef", "ext_coef"] + ["entropy_coef_episodic"] * (args.entropy_coef_episodic > 0)
    heads = script.Agent(6, args).value_head.out_features
    assert [f"_{name.split('_')[0]}" for name in streams][:2] == [*script.stream_coefs(args)][:2] and heads == len(
        streams
    )
    values, batch = torch.zeros(5, heads, requires_grad=True), {k: torch.ones(5) for k in ("advantages", "logprobs")}
    batch |= {"returns": torch.ones(5, heads), "valid": torch.ones(5, dtype=torch.bool)}
    loss, _ = script.ppo_loss(torch.zeros(5, 6), values, batch | {"actions": torch.zeros(5, dtype=torch.int64)}, args)
    loss.backward()
    assert (values.grad != 0).all(0).tolist() == [name not in off for name in streams]


@pytest.mark.parametrize(
    ("changes", "share"), [({"update_proportion": 0.3, "predictor_mask": "sample"}, 0.3), ({"num_envs": 64}, 0.5)]
)
def test_the_predictor_gets_the_share_that_was_asked_for(atari_pool, tmp_path, monkeypatch, changes, share):
    monkeypatch.setattr(script, "predictor_loss", spy(script.predictor_loss, calls := []))
    args = small_args(num_steps=1, total_timesteps=changes.get("num_envs", 4), num_minibatches=1, **changes)
    train_here(script, args, tmp_path)
    assert [given[2:] for given, _ in calls] == [[share, changes.get("predictor_mask", "element")]] * 2


def test_same_seed_same_scalars_and_another_seed_others(tmp_path):
    runs = [
        train_here(script, small_args(seed=s, num_minibatches=1), tmp_path / f"{k}") for k, s in enumerate((1, 1, 2))
    ]
    scalars = [{k: v for k, v in read_scalars(run).items() if k != "charts/SPS"} for run in runs]
    assert_same(scalars[0], scalars[1])
    assert scalars[0]["rnd/intrinsic_reward"] != scalars[2]["rnd/intrinsic_reward"]


@pytest.mark.parametrize("preset", [*script.PRESETS])
def test_every_preset_trains_and_resumes_bit_for_bit(atari_pool, tmp_path, monkeypatch, preset):
    values = script.PRESETS[preset] | {"rnd_epochs": 1, "target_batch": 8, "update_epochs": 1, "num_minibatches": 1}
    run_dir = train_here(script, small_args(preset=preset, rooms="image", **values), tmp_path)
    path, before = script.load_checkpoint(str(run_dir))
    parts = {"agent", "snd", "agent_optimizer", "predictor_optimizer", "stats", "pictures", "args"}
    parts |= {"target_optimizer"} if preset != "seed-rnd" else set()
    assert {key for key, x in before.items() if isinstance(x, dict)} == parts
    assert len(before["pictures"]["known"]) > 0 and before["predictor_optimizer"]["state"][0]["step"] == 1
    reset = script.AtariEnvs.reset
    monkeypatch.setattr(script.AtariEnvs, "reset", lambda envs: signal.raise_signal(signal.SIGTERM) or reset(envs))
    torch.manual_seed(123)
    args = script.Args(**before["args"] | {"total_timesteps": 128, "learning_rate": 3e-4})
    train_here(script, args, tmp_path, *script.load_checkpoint(str(run_dir)), status=143)
    after = torch.load(path, weights_only=True)
    for name in parts:
        if name.endswith("optimizer"):  # the learning rate that was asked for
            assert [state[name]["param_groups"][0].pop("lr") for state in (before, after)] == [1e-4, 3e-4]
    assert_same(before, after, but=("seconds", "args"))


# ---------------------------------------------------------------------------------- What the user was promised


@pytest.mark.parametrize("preset", [*script.PRESETS])
def test_a_preset_is_its_flags_read_back(monkeypatch, capsys, preset):
    """The table of presets, and that a flag given beside one stands."""
    sqrt2 = 2**0.5
    table = {  # loss, pair, aug, noise, net, gains, obs_norm, scale, keep, batch, passes, limit
        "snd-v": ("contrastive", "same", "tile", 1.0, "B", sqrt2, sqrt2, "meanstd", 0.5, None, 64, 4, None),
        "snd-v-plain": ("contrastive", "same", "tile", 0.5, "B", sqrt2, sqrt2, "none", 0.5, 1.0, 64, 4, 200.0),
        "snd-vic": ("vicreg", "next", "none", 1.0, "ST", 0.5, sqrt2, "none", 0.25, 1.0, 512, 1, None),
        "snd-std": ("stdim", "next", "none", 1.0, "ST", 0.5, 0.5, "none", 1.0, 1.0, 512, 1, None),
        "seed-snd": ("contrastive", "same", "multi", 1.0, "A", sqrt2, sqrt2, "meanstd", 0.256, None, 64, 4, None),
        "seed-rnd": ("none", "same", "tile", 1.0, "A", sqrt2, sqrt2, "mean", 256.0, None, 64, 4, None),
    }
    got = []
    monkeypatch.setattr(script, "train", lambda args, *_: got.append(args) or 0)
    assert call_main(script, capsys, "--preset", preset, "--gamma", 0.9)[0] == 0
    (args,) = got
    names = ["target_loss", "pair", "aug", "noise_prob", "rnd_net", "target_gain", "predictor_gain", "obs_norm"]
    names += ["int_scale", "update_proportion", "target_batch", "rnd_epochs", "mag_limit"]
    assert tuple(getattr(args, name) for name in names) == table[preset]
    assert args.gamma == 0.9 and args.preset == preset and args.env_id == MONTEZUMA
    default = vars(script.Args(env_id=MONTEZUMA))
    others = default.keys() - {*names, "preset", "gamma"}
    assert {key: getattr(args, key) for key in others} == {key: default[key] for key in others}
    assert (args.policy_net, args.critic_init, args.max_grad_norm, default["gamma"]) == ("C", 0.1, 0.5, 0.998)
    assert (args.learning_rate, args.warmup_rollouts, args.total_timesteps) == (1e-4, 2, 128_000_000)
    common = (args.num_envs, args.num_steps, args.num_minibatches, args.update_epochs, args.int_gamma, args.int_clip)
    assert common == (128, 128, 32, 4, 0.99, 1.0) and args.int_episodic


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env-id", "MontezumasRevenge"], "did you mean MontezumaRevenge-v5"),
        (["--num-envs", 0], "--num-envs 0: must be at least 1"),
        (["--seed", 10**20], "--seed 100000000000000000000: must be at least 0 and below 2^63"),
        (["--num-steps", 1], "--num-steps 1: must be at least 2"),
        (["--entropy-memory", 1], "--entropy-memory 1: must be at least 2"),
        (["--target-loss", "stdim", "--aug", "none"], "--pair same: must be next with --aug none"),
        (["--target-loss", "vicreg", "--aug", "none"], "--pair same: must be next with --aug none"),
        (["--num-minibatches", 3], "--num-minibatches 3: must be a divisor of a rollout, 16384 steps"),
        (["--target-batch", 0], "--target-batch 0: must be at least 1"),
        (["--target-batch", 10**9], "--target-batch 1000000000: must be at most a rollout, 16384 steps"),
        (
            ["--target-batch", 65, "--num-envs", 4, "--num-steps", 16],
            "--target-batch 65: must be at most a rollout, 64",
        ),
        (
            ["--target-loss", "vicreg", "--target-batch", 1],
            "--target-batch 1: must be at least 2 for vicreg's variance",
        ),
        (["--rnd-epochs", 5], "--rnd-epochs 5: must be at most --update-epochs 4"),
        (["--noise-prob", 1.5], "--noise-prob 1.5: must be in [0, 1]"),
        (["--int-scale", 0], "--int-scale 0.0: must be a positive number"),
        (["--mag-limit", -1], "--mag-limit -1.0: must be a positive number"),
        (["--entropy-coef-episodic", -1], "--entropy-coef-episodic -1.0: must be at least 0"),
        (["--int-coef", 0, "--ext-coef", 0], "--ext-coef 0.0: must be above 0 with --int-coef 0"),
        (["--total-timesteps", "1e4"], "--total-timesteps 10000.0: must be at least one rollout, 16384 steps"),
        (["--resume", "nowhere"], "there is no checkpoint nowhere"),
        (["--resume", ""], "there is no checkpoint latest.pt"),
        (["--evaluate", "foreign.pt"], "foreign.pt is damaged or does not fit script and flags (KeyError: 'args')"),
        (["--runs-dir", "/dev/null/runs"], "cannot write into /dev/null/runs"),
    ],
    ids=lambda value: "_".join(map(str, value)).replace("/", ".") if isinstance(value, list) else None,
)
def test_bad_input_is_one_line_and_leaves_nothing(atari_pool, monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    torch.save({"script": "ppo_rnd_atari"}, "foreign.pt")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    status, _, errors = call_main(script, capsys, "--device", "cpu", *flags)
    assert status == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """Folders of two runs on AtariPool that have learned a little: snd-v, seed 1; seed-rnd, seed 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(script.envpool, "make", AtariPool)
        other = script.PRESETS["seed-rnd"] | {"seed": 2, "preset": "seed-rnd"}
        folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
        return [train_here(script, small_args(**x), folders[k]) for k, x in enumerate(({}, other))]


def test_checkpoints_that_do_not_fit(two_runs, atari_pool, capsys):
    path = two_runs[0] / "latest.pt"
    before = path.read_bytes()
    for flags, message in [
        (["--total-timesteps", 64], "has all of its 64 steps"),
        (["--preset", "snd-vic", "--total-timesteps", 640], "is of a run with --preset snd-v; another preset"),
        (["--target-loss", "stdim", "--total-timesteps", 640], "does not fit script and flags (Missing key"),
        (["--policy-net", "B", "--total-timesteps", 640], "does not fit script and flags (size mismatch for"),
    ]:
        status, _, errors = call_main(script, capsys, "--resume", path, *flags)
        assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors, errors
    status, _, errors = call_main(script, capsys, "--resume", path, "--evaluate", path)
    assert status == 2 and "must be without --resume" in errors
    assert path.read_bytes() == before


def test_a_run_as_a_user_sees_it(tmp_path, monkeypatch, capsys):
    """Trains in a process of its own, is resumed, evaluated and embedded."""
    small = ["--num-envs", 4, "--num-steps", 16, "--num-minibatches", 2, "--warmup-rollouts", 1, "--target-batch", 8]
    small += ["--update-epochs", 1, "--rnd-epochs", 1, "--policy-net", "A", "--device", "cpu"]
    out = run_script("snd_atari.py", *small, "--total-timesteps", 128, "--rooms", "image", cwd=tmp_path)
    assert out.returncode == 0, out.stderr
    run_dir = only_run(tmp_path)
    assert run_dir.name.startswith("MontezumaRevenge-v5__snd_atari__1__") and out.stderr == ""
    lines = out.stdout.splitlines()
    for word in ("device", "environment  MontezumaRevenge-v5 x 4", "parameters", "preset       snd-v, target loss c"):
        assert any(line.startswith(word) for line in lines), word
    assert lines[-1].startswith("return -, rooms 1 (best 1), 128 steps in 00:") and lines[-1].endswith(run_dir.name)
    scalars = read_scalars(run_dir)
    losses = "policy_loss value_loss value_loss_int value_loss_ext entropy approx_kl clipfrac predictor_loss grad_norm"
    expected = {f"losses/{name}" for name in f"{losses} target_loss magnitude max_logit".split()}
    expected |= {f"losses/{x}{suffix}" for x in ("explained_variance", "advantage_rms") for suffix in ("_int", "_ext")}
    names = ("intrinsic_reward", "error", "rooms_visited", "rooms_best_episode", "rooms_by_image")
    expected |= {f"rnd/{name}" for name in names}
    assert set(scalars) == expected | {"charts/SPS", "charts/learning_rate"}
    assert [value for _, value in scalars["rnd/rooms_by_image"]] == [1, 1]

    assert call_main(script, capsys, "--resume", run_dir, "--total-timesteps", 192)[0] == 0
    assert [step for step, _ in read_scalars(run_dir)["losses/entropy"]] == [64, 128, 192]
    *_, saved = script.parse(["--resume", str(run_dir), "--env-id", "Pitfall", "--total-timesteps", "256"])
    assert len(saved["pictures"]["known"]) == 0  # another game's

    flags = ["--eval-episodes", 2, "--max-episode-steps", 60]
    status, played, _ = call_main(script, capsys, "--evaluate", run_dir, *flags, "--capture-video")
    last = played.splitlines()[-1]
    assert status == 0 and last == "return 0.0 +- 0.0 (mean, standard error), best 0, rooms 1.0, most 1"
    assert len([*(run_dir / "videos").iterdir()]) == 2

    picture = tmp_path / "picture.png"
    monkeypatch.setattr(embed.sys, "argv", ["embed.py", *map(str, [run_dir, run_dir, *flags, "--out", picture])])
    embed.main()
    lines = capsys.readouterr().out.splitlines()
    names = [line.split(":")[0] for line in lines[-4:-1]]
    assert names == ["snd-v, contrastive, seed 1", "snd-v, contrastive, seed 1 (2)", "random target"]
    assert lines[-4].split(": ")[1] == lines[-3].split(": ")[1]
    assert lines[-1] == f"picture {picture}" and picture.read_bytes()[:4] == b"\x89PNG"


def test_embed_shows_every_model_the_same_frames(two_runs, tmp_path, monkeypatch):
    features, agent, models = script.features, script.Agent, {}
    monkeypatch.setattr(embed, "plot_embeddings", lambda *given: models.update(given[0], rooms=given[1]) or {})
    monkeypatch.setattr(script, "features", spy(features, calls := []))
    monkeypatch.setattr(script, "Agent", lambda actions, *rest: agent(6, *rest))
    monkeypatch.setattr(script.Categorical, "sample", lambda self: torch.tensor(0))
    flags = {"eval_episodes": 2, "max_episode_steps": 20}
    embed.embed([str(run) for run in two_runs], tmp_path / "p.png", CPU, **flags)
    seen = [given[1] for given, _ in calls]
    assert len(seen) == 3 and all(torch.equal(x, seen[0]) for x in seen)
    assert seen[0].shape == (40, 1, 96, 96) and set(models["rooms"].tolist()) == {1}
    saved = [script.load_checkpoint(str(run))[1] for run in two_runs]
    for state, name in zip(saved, ("snd-v, contrastive, seed 1", "seed-rnd, none, seed 2"), strict=True):
        learned = script.SND(own := script.Args(**state["args"]), CPU)
        learned.load_state_dict(state["snd"])
        expected = features(learned.target, seen[0], learned.obs_rms, own.obs_norm).squeeze(1)
        torch.testing.assert_close(torch.from_numpy(models[name]).float(), expected)
    torch.manual_seed(1)
    start = script.SND(small_args(), CPU)
    start.obs_rms.load_state_dict({k.removeprefix("obs_rms."): v for k, v in saved[0]["snd"].items() if "obs_rms" in k})
    expected = features(start.target, seen[0], start.obs_rms, "meanstd").squeeze(1)
    torch.testing.assert_close(torch.from_numpy(models["random target"]).float(), expected)
    first, second, random, _ = models.values()
    assert not np.allclose(first, random) and not np.allclose(first, second)


def test_embed_wants_runs_of_one_game_and_more_than_a_frame_or_two(two_runs, tmp_path, monkeypatch):
    path, saved = script.load_checkpoint(str(two_runs[0]))
    flags = {"out": tmp_path / "p.png", "device": CPU, "eval_episodes": 1}
    saved["agent"] = script.Agent(18, small_args()).state_dict()
    torch.save(saved, tmp_path / "real.pt")
    with pytest.raises(script.UserError, match="too few frames"):
        embed.embed([str(tmp_path / "real.pt")], max_episode_steps=2, **flags)
    saved["args"]["env_id"] = "Pitfall-v5"
    torch.save(saved, tmp_path / "other.pt")
    with pytest.raises(script.UserError, match=r"is of a run with env_id Pitfall-v5, not MontezumaRevenge-v5"):
        embed.embed([str(path), str(tmp_path / "other.pt")], max_episode_steps=2, **flags)


def test_a_third_stream_and_bf16_go_all_the_way(atari_pool, tmp_path, capsys):
    """Trained, resumed and evaluated."""
    args = small_args(entropy_coef_episodic=0.5, bf16=True, update_epochs=1, rnd_epochs=1, num_minibatches=1)
    run_dir = train_here(script, args, tmp_path)
    assert call_main(script, capsys, "--resume", run_dir, "--total-timesteps", 128)[0] == 0
    scalars = read_scalars(run_dir)
    for name in ("losses/value_loss_spread", "losses/advantage_rms_spread", "rnd/spread"):
        assert [step for step, _ in scalars[name]] == [64, 128], name
    path, saved = script.load_checkpoint(str(run_dir))
    saved["agent"] = script.Agent(18, args).state_dict()  # of a real game
    args.eval_episodes, args.max_episode_steps = 1, 30
    script.evaluate(args, CPU, path, saved)
    assert capsys.readouterr().out.splitlines()[-1] == "return 0.0 (mean, standard error), best 0, rooms 1.0, most 1"
