"""a2c_rnd_doorkey.py: its numbers against independent computations, and its promises to the user."""

import copy
import dataclasses
import importlib.metadata
import itertools
import os
import pathlib
import shutil
import signal

import envpool
import imageio
import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import CPU, assert_same, call_main, doorkey, read_scalars, run_script
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import a2c_rnd_doorkey as script

SMALL = {  # 32 steps a rollout
    **{"env_id": "DoorKey-5x5", "num_envs": 4, "num_steps": 8, "total_timesteps": 32, "log_interval": 1},
    **{"checkpoint_interval": 1e6, "solved_score": None},
}


def argv(**flags) -> list[str]:
    """Flags as a user writes them."""
    words = []
    for name, value in flags.items():
        name = name.replace("_", "-")
        words += [f"--{'' if value else 'no-'}{name}"] if isinstance(value, bool) else [f"--{name}", str(value)]
    return words


def train(folder: pathlib.Path, **flags) -> pathlib.Path:
    """Trains in this process, from flags; the run's folder."""
    assert script.main(argv(**SMALL | flags | {"runs_dir": folder})) == 0
    (run_dir,) = folder.iterdir()
    return run_dir


def load(run_dir: pathlib.Path, name: str = "latest.pt") -> dict:
    return torch.load(run_dir / name, weights_only=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> pathlib.Path:
    """A run of 100 rollouts with both statistics in use. Tests only read it; those that go on take a copy."""
    folder = tmp_path_factory.mktemp("finished") / "runs"
    return train(folder, total_timesteps=3200, log_interval=2, int_norm=True, obs_norm=True)


@pytest.fixture
def run(finished, tmp_path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(finished, tmp_path / finished.name))


# ----------------------------------------------------------------------------------------------------------------------
# Environment
# ----------------------------------------------------------------------------------------------------------------------


def make_envs(env_id: str, num_envs: int, seed: int, backend: str) -> script.MiniGridEnvs:
    return script.MiniGridEnvs(script.Args(env_id=env_id, num_envs=num_envs, backend=backend), seed)


def test_both_backends_give_the_same_statistics():
    """A random agent's successes, lengths and returns over 400 episodes: layouts differ, their law does not."""
    results = {}
    for backend in ("envpool", "gymnasium"):
        envs = make_envs("MiniGrid-DoorKey-5x5-v0", 32, 5, backend)
        envs.reset()
        rng = np.random.default_rng(0)
        while len(envs.stats.episodes) < 400:
            envs.step(rng.integers(0, 7, 32))
        returns, lengths, cells, paid = np.array(envs.stats.episodes[:400]).T
        assert lengths.max() == 250 and (returns[lengths == 250] == 0).mean() > 0.9
        assert cells.min() >= 1 and cells.max() <= 7  # 3 x 3 cells, a wall of 3 with a door
        won = returns > 0
        np.testing.assert_array_equal(won, paid)
        np.testing.assert_allclose(returns[won], 1 - 0.9 * lengths[won] / 250, atol=1e-5)
        results[backend] = won.mean()
    # 9.2 % of episodes succeed; two samples of 400 differ by less than four standard errors of the difference
    assert all(0.03 < p < 0.16 for p in results.values()), results
    assert abs(results["envpool"] - results["gymnasium"]) < 4 * (2 * 0.092 * 0.908 / 400) ** 0.5, results


def test_the_key_is_seen_in_the_agent_s_own_tile():
    """The notebook says that the agent cannot know whether it has the key. Tile [3, 6] shows what it carries."""
    env = doorkey(5, (2, 1, (1, 2)), (1, 1), 1)  # it faces the key
    assert env.gen_obs()["image"][3, 6].tolist() == [1, 0, 0]
    assert env.step(3)[0]["image"][3, 6].tolist() == [5, 4, 0]  # picked up: a yellow key


def test_every_minigrid_id_of_envpool_fits_the_networks():
    ids = [x for x in envpool.list_all_envs() if x.startswith("MiniGrid-")]
    assert len(ids) > 70
    for env_id in ids:
        assert script.resolve_env_id(env_id, "envpool") == env_id
        envs = make_envs(env_id, 2, 0, "envpool")
        envs.reset()
        views = set(envs.views)
        for _ in range(5):
            envs.step(np.random.default_rng(0).integers(0, envs.num_actions, 2))
            views |= set(envs.views)
        one_hot = script.encode(script.to_tensor([*views]), True)
        assert one_hot.shape[1:] == (21, 7, 7) and (one_hot.sum(1) == 3).all()


# ----------------------------------------------------------------------------------------------------------------------
# Networks
# ----------------------------------------------------------------------------------------------------------------------


def test_encode():
    rng = np.random.default_rng(0)
    views = np.stack([rng.integers(0, n, (9, 7, 7)) for n in script.NUM_CODES], -1).astype(np.uint8)
    raw, one_hot = (script.encode(torch.from_numpy(views), flag) for flag in (False, True))
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
    values = torch.tensor([0.0] * 6 + [9])[:, None]
    advantages = script.gae(rewards, values, dones, torch.ones(6, 1, dtype=torch.bool), 0.99, 0.98)
    np.testing.assert_allclose(advantages[:, 0], [(0.99 * 0.98) ** (5 - t) for t in range(6)], rtol=1e-6)


def test_a2c_loss_equals_a_loop_over_samples():
    rng = np.random.default_rng(0)
    B, A = 12, 5
    logits, values, returns = rng.normal(size=(B, A)), rng.normal(size=(B, 2)), rng.normal(size=(B, 2))
    actions, advantages, valid = rng.integers(0, A, B), rng.normal(size=B), rng.random(B) < 0.7
    args = script.Args(ent_coef=0.03, vf_coef=0.7, ext_coef=100.0)
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
        visits = np.where(self.rng.random(self.N) < 0.6, 1, 2)
        self.done = terminated | truncated
        self.steps.append((actions.copy(), visits == 1, rewards, self.done, truncated, valid))
        self.reset()
        return rewards, self.done, truncated, visits, valid


@pytest.fixture
def fake_envs(monkeypatch):
    monkeypatch.setattr(script, "MiniGridEnvs", FakeEnvs)


def test_a_rollout_holds_each_view_once_in_the_order_in_which_they_came(fake_envs):
    args = script.Args(num_envs=6, num_steps=40)
    envs, rollout = FakeEnvs(args, 0), script.empty_rollout(40, 6, CPU)
    envs.reset()
    agent = script.Agent(7, 3)
    for r in range(2):
        script.collect(envs, agent, rollout, args)
        shown = np.stack(envs.shown[40 * r : 40 * (r + 1) + 1])  # the last row is the next rollout's first
        first = list(dict.fromkeys(shown.flatten().tolist()))
        np.testing.assert_array_equal(rollout.views, envs.tiles[first])
        np.testing.assert_array_equal(rollout.views[rollout.index], envs.tiles[shown])
        _, values = agent(script.encode(torch.from_numpy(envs.tiles[shown.flatten()]), False))
        torch.testing.assert_close(rollout.values, values.detach().unflatten(0, (41, 6)))
        for name, column in zip(("rewards", "dones", "valid"), (2, 3, 5), strict=True):
            expected = np.stack([step[column] for step in envs.steps[40 * r : 40 * (r + 1)]])
            np.testing.assert_array_equal(getattr(rollout, name), expected)


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
    num_planes = 21 if args.one_hot else 3
    agent, rnd = script.Agent(7, num_planes), script.RND(N, num_planes, args.dropout, CPU)
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
    seen_by_rnd, filtered, every_filtered = [], np.zeros(N), []
    for r in range(rollouts):
        shown = np.stack(envs.shown[r * T : (r + 1) * T + 1])
        columns = zip(*envs.steps[r * T : (r + 1) * T], strict=True)
        actions, new, rewards, dones, _, valid = map(np.stack, columns)
        x = script.encode(torch.from_numpy(envs.tiles[shown.flatten()]), args.one_hot)  # ((T+1)N, C, 7, 7)
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
        for head, (reward, gamma, coef) in enumerate(
            ((intrinsic, args.int_gamma, args.int_coef), (rewards, args.gamma, args.ext_coef))
        ):
            for n in range(N):
                steps = [t for t in range(T) if valid[t, n]]
                for i, first in enumerate(steps):
                    advantage, weight = 0.0, 1.0
                    for j in range(i, len(steps)):
                        t = steps[j]
                        following = values[steps[j + 1], n, head] if j + 1 < len(steps) else values[T, n, head]
                        end = dones[t, n] and (head == 1 or args.int_episodic)
                        following = 0.0 if end else following
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
    {"int_coef": 0.0, "norm_adv": True},
    {"int_norm": True},
    {"obs_norm": True},
    {"same_obs": True},
    {"int_episodic": False},
    {"first_visit": True, "one_hot": True},
    {"dropout": 0.0, "orthogonal": True, "predictor_max_grad_norm": None},
    {"ext_coef": 2.0, "gamma": 0.9, "gae_lambda": 0.5, "int_gamma": 0.8, "vf_coef": 1.0, "ent_coef": 0.1},
    {
        **{"one_hot": True, "orthogonal": True, "first_visit": True, "same_obs": True, "int_norm": True},
        **{"norm_adv": True, "obs_norm": True, "dropout": 0.0, "ext_coef": 1.0, "int_coef": 0.1},
    },
]


@pytest.mark.parametrize("changes", FLAGS, ids=lambda changes: "-".join(changes) or "notebook")
def test_a_run_equals_a_plain_transcription(fake_envs, tmp_path, monkeypatch, changes):
    # dropout's masks are random; a fixed loss of half of what comes in shows where it acts and where not
    monkeypatch.setattr(F, "dropout", lambda x, p, training, inplace: x * 0.5 if training and p else x)
    state = load(train(tmp_path, total_timesteps=3 * 4 * 16, num_steps=16, **changes))
    assert state["step"] == 3 * 4 * 16
    args = script.Args(**SMALL | {"num_steps": 16} | changes)
    expected = transcription(args, FakeEnvs.last, rollouts=3)
    torch.manual_seed(args.seed)
    start = script.Agent(7, 21 if args.one_hot else 3).state_dict()
    for key, value in expected.items():
        part, name = key.split(".", 1)
        torch.testing.assert_close(state[part][name], value, rtol=2e-3, atol=2e-5, msg=lambda m, key=key: f"{key}: {m}")
        if name.endswith("weight") and part == "agent" and not args.orthogonal and (args.int_coef or "int" not in name):
            assert (state[part][name] - start[name]).abs().max() > 1e-4, f"{name} has not moved"


def test_target_never_changes_and_everything_else_does(finished, tmp_path):
    early, late = load(train(tmp_path, int_norm=True, obs_norm=True)), load(finished)
    for part in ("agent", "rnd"):
        for key, value in early[part].items():
            assert torch.equal(value, late[part][key]) == key.startswith("target"), key


def test_same_seed_same_scalars_and_another_seed_others(tmp_path):
    runs = [train(tmp_path / f"{k}", seed=s, total_timesteps=320) for k, s in enumerate((1, 1, 2))]
    scalars = [{k: v for k, v in read_scalars(run).items() if k != "charts/SPS"} for run in runs]
    assert repr(scalars[0]) == repr(scalars[1]) and repr(scalars[0]) != repr(scalars[2])  # repr: NaN equals NaN


def test_resume_restores_the_learner_bit_for_bit(run, monkeypatch):
    before = load(run)
    assert before["stats"]["recent"]
    reset = script.MiniGridEnvs.reset
    monkeypatch.setattr(script.MiniGridEnvs, "reset", lambda envs: reset(envs) or signal.raise_signal(signal.SIGTERM))
    torch.manual_seed(123)
    assert script.main(["--resume", str(run), "--total-timesteps", "6400"]) == 143
    assert_same(before, load(run), but={"seconds", "args"})


def test_a_resume_goes_on_with_the_flags_given_anew(run, capsys):
    flags = {"total_timesteps": "3.264e3", "learning_rate": 3e-4, "predictor_learning_rate": 5e-4, "num_envs": 8}
    assert script.main(["--resume", str(run), *argv(**flags)]) == 0
    after = load(run)
    assert after["step"] == 3264 and after["rnd"]["filtered"].shape == (8,)
    assert [group["lr"] for group in after["optimizer"]["param_groups"]] == [3e-4, 5e-4]
    assert after["args"]["int_norm"] and after["args"]["resume"] is None
    assert "changed      --learning-rate from 0.0001 to 0.0003" in capsys.readouterr().out
    assert [step for step, _ in read_scalars(run)["losses/entropy"]] == [*range(64, 3201, 64), 3264]


def test_it_stops_when_solved(fake_envs, tmp_path, monkeypatch, capsys):
    """At the first line of the log at which there are 100 episodes and their mean is above --solved-score."""

    class Winning(FakeEnvs):
        def step(self, actions):
            self.stats.waiting[:] = False
            self.stats.episodes.append((0.92, 9, 5, True))  # 32 episodes from one line of the log to the next
            return super().step(actions)

    monkeypatch.setattr(script, "MiniGridEnvs", Winning)
    train(tmp_path / "solved", total_timesteps=3200, solved_score=0.91, log_interval=4)
    assert "\nsolved: return 0.920, success 1.00, cells 5, 512 steps in " in capsys.readouterr().out
    train(tmp_path / "not", total_timesteps=3200, solved_score=0.925, log_interval=4)
    assert "\nreturn 0.920, success 1.00, cells 5, 3,200 steps in " in capsys.readouterr().out


def test_the_log_holds_means_over_all_updates_since_the_line_before(tmp_path):
    every = read_scalars(train(tmp_path / "1", total_timesteps=352))
    fifth = read_scalars(train(tmp_path / "5", total_timesteps=352, log_interval=5))
    for key in ("losses/policy_loss", "losses/entropy", "losses/grad_norm", "rnd/intrinsic_reward"):
        values = [value for _, value in every[key]]
        assert [step for step, _ in fifth[key]] == [160, 320, 352]  # and one at the end
        means = [np.mean(values[:5]), np.mean(values[5:10]), values[10]]
        np.testing.assert_allclose([v for _, v in fifth[key]], means, rtol=1e-4)


def test_presets_read_back(monkeypatch):
    notebook = script.Args()
    expected = {
        **{"num_envs": 32, "num_steps": 16, "learning_rate": 1e-4, "gamma": 0.99, "gae_lambda": 0.98, "vf_coef": 0.5},
        **{"ent_coef": 0.01, "max_grad_norm": 0.5, "norm_adv": False, "one_hot": False, "orthogonal": False},
        **{"int_coef": 10, "ext_coef": 100, "int_gamma": 0.99, "int_episodic": True, "int_norm": False},
        **{"obs_norm": False, "same_obs": False, "first_visit": False, "dropout": 0.25, "log_interval": 100},
        **{"predictor_learning_rate": 1e-4, "predictor_max_grad_norm": 0.01},
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
        ["--int-coef", "0"],
    ):
        assert script.main(flags) == 0
    seen = [dataclasses.replace(args, env_id=notebook.env_id) for args in seen]
    assert seen[0] == notebook
    assert seen[1] == script.Args(preset="notebook-16x16", **large)
    assert seen[2] == script.Args(preset="tuned", **script.PRESETS["tuned"])
    assert seen[3] == dataclasses.replace(seen[2], gamma=0.9)  # a flag beside a preset stands
    assert seen[4] == script.Args(preset="tuned-16x16", **script.PRESETS["tuned-16x16"])
    assert seen[4].first_visit and not seen[4].norm_adv
    assert seen[5] == dataclasses.replace(notebook, int_coef=0)


# ----------------------------------------------------------------------------------------------------------------------
# What the user was promised
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--env-id DoorKey-8x9", "did you mean MiniGrid-DoorKey-8x8-v0"),
        ("--env-id CartPole-v1", "no such environment"),
        ("--env-id MontezumaRevenge", "no such environment; this script plays MiniGrid"),
        ("--backend envpool --env-id MultiRoom-N4-S5-v1", "--backend gymnasium has MiniGrid-MultiRoom-N4-S5-v1"),
        ("--num-envs 0", "--num-envs 0: must be at least 1"),
        ("--num-steps 0", "--num-steps 0: must be at least 1"),
        ("--log-interval 0", "--log-interval 0: must be at least 1"),
        ("--seed 100000000000000000000", "--seed 100000000000000000000: must be at least 0 and below 2^63"),
        ("--gamma 1.5", "--gamma 1.5: must be in [0, 1]"),
        ("--int-gamma -0.1", "--int-gamma -0.1: must be in [0, 1]"),
        ("--gae-lambda nan", "--gae-lambda nan: must be in [0, 1]"),
        ("--dropout 1", "--dropout 1.0: must be in [0, 1)"),
        ("--learning-rate 0", "--learning-rate 0.0: must be a positive number"),
        ("--predictor-max-grad-norm inf", "--predictor-max-grad-norm inf: must be a positive number"),
        ("--ext-coef -1", "--ext-coef -1.0: must be at least 0"),
        ("--int-coef 0 --ext-coef 0", "--ext-coef 0.0: must be above 0 with --int-coef 0"),
        ("--solved-score nan", "--solved-score nan: must be a number"),
        ("--total-timesteps 0", "must be at least one rollout, 512 steps"),
        ("--resume nowhere", "there is no checkpoint nowhere"),
        ("--resume=", "there is no checkpoint latest.pt"),
        ("--evaluate empty", "there is no checkpoint empty/latest.pt"),
        ("--resume garbage.pt", "garbage.pt is damaged or does not fit script and flags"),
        ("--resume other.pt", "other.pt is damaged or does not fit script and flags"),
        ("--runs-dir file", "cannot write into file/"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("empty").mkdir()
    pathlib.Path("garbage.pt").write_bytes(b"PK\x03\x04 this is no checkpoint")
    pathlib.Path("file").write_text("a file, not a folder")
    torch.save([1, 2], "other.pt")
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    status, _, errors = call_main(script, capsys, *flags.split())
    assert status == 2
    assert errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_checkpoints_that_do_not_fit(capsys, finished):
    before = (finished / "latest.pt").read_bytes()
    for flags, message in [
        ("--preset tuned", "is of a run with --preset notebook; another preset is for a new run"),
        ("--one-hot --total-timesteps 6400", "is damaged or does not fit script and flags"),
        ("--total-timesteps 3200", "has all of its 3,200 steps"),
        ("--evaluate .", "must be without --resume"),
    ]:
        status, _, errors = call_main(script, capsys, "--resume", finished, *flags.split())
        assert status == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and message in errors
    assert (finished / "latest.pt").read_bytes() == before


def test_a_run_leaves_what_was_promised(finished):
    assert finished.name.startswith("MiniGrid-DoorKey-5x5-v0__a2c_rnd_doorkey__1__")
    names = {p.name.split(".")[0] for p in finished.iterdir()}
    assert names - {"best"} == {"a2c_rnd_doorkey", "events", "latest", "lock"}
    scalars = read_scalars(finished)
    losses = "policy_loss value_loss value_loss_int value_loss_ext entropy predictor_loss grad_norm max_logit"
    expected = {f"losses/{name}" for name in losses.split()}
    expected |= {f"rnd/{name}" for name in ("intrinsic_reward", "intrinsic_return_std", "cells_visited")}
    expected |= {f"losses/{x}{suffix}" for x in ("explained_variance", "advantage_rms") for suffix in ("_int", "_ext")}
    charts = "SPS learning_rate unique_views episodic_return episodic_length success_rate"
    assert set(scalars) == expected | {f"charts/{name}" for name in charts.split()}
    assert [step for step, _ in scalars["losses/entropy"]] == list(range(64, 3201, 64))
    events = EventAccumulator(str(finished))
    events.Reload()
    (text,) = events.Tensors("hyperparameters/text_summary")
    rows = dict(row.split("|")[1:3] for row in text.tensor_proto.string_val[0].decode().splitlines())
    assert rows["seed"] == "1" and rows["torch"] == importlib.metadata.version("torch") and rows["int_coef"] == "10.0"


def test_evaluation_and_films(finished, tmp_path, capsys):
    run_dir = shutil.copytree(finished, tmp_path / "run")
    printed = []
    for seed in (1, 1, 2):
        assert script.main(["--evaluate", str(run_dir), "--eval-episodes", "3", "--seed", str(seed)]) == 0
        printed.append(capsys.readouterr().out.splitlines()[-1])
    assert printed[0] == printed[1] != printed[2]
    assert printed[0].startswith("return 0.") and " +- " in printed[0]
    assert "(mean, standard error), success 0." in printed[0] and ", length " in printed[0]
    assert script.main(["--evaluate", str(run_dir), "--eval-episodes", "1", "--capture-video"]) == 0
    *_, episode, last = capsys.readouterr().out.splitlines()
    assert episode.startswith("episode 0: return ") and " +- " not in last
    (video,) = (run_dir / "videos").glob("*.gif")
    frames = imageio.mimread(video, memtest=False)  # a GIF keeps no two frames that are alike
    assert 1 < len(frames) <= int(episode.split(",")[1].split()[0]) and frames[0].shape[:2] == (160, 160)


def test_a_run_as_a_user_sees_it(tmp_path):
    """In a process of its own, in the minigrid package."""
    flags = argv(**SMALL | {"backend": "gymnasium", "total_timesteps": 320})
    out = run_script("a2c_rnd_doorkey.py", *flags, cwd=tmp_path)
    assert out.returncode == 0 and "Traceback" not in out.stderr, out.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    lines = out.stdout.splitlines()
    for word in ("device", "environment  MiniGrid-DoorKey-5x5-v0 x 4", "parameters", "rollout", "folder"):
        assert any(line.startswith(word) for line in lines), word
    assert lines[-1].startswith("return ") and "320 steps in 00:" in lines[-1] and run_dir.name in lines[-1]


@pytest.mark.learning
def test_it_solves_the_smallest_grid(tmp_path):
    """In under two minutes; then the agent opens doors in the minigrid package too."""
    flags = ["--env-id", "DoorKey-5x5", "--preset", "tuned", "--total-timesteps", "1e6"]
    out = run_script("a2c_rnd_doorkey.py", *flags, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert out.returncode == 0, out.stderr
    assert out.stdout.splitlines()[-1].startswith("solved: return 0.9")
    (run_dir,) = (tmp_path / "runs").iterdir()
    played = run_script("a2c_rnd_doorkey.py", "--evaluate", run_dir, "--eval-episodes", 100, cwd=tmp_path)
    assert float(played.stdout.splitlines()[-1].split()[1]) > 0.93
