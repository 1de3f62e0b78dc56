"""reinforce_rnd_maze.py: its maze, its numbers and its promises to the user."""

import contextlib
import io
import itertools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import CPU, ROOT, read_scalars, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

import reinforce_rnd_maze as script

# the map as the notes give it: 3 is an obstacle; what stands at the start and the goal is of no account here
NOTES_MAP = np.array(
    [
        [1, 0, 0, 3, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 3, 0, 0, 0, 3, 0, 0],
        [0, 0, 0, 3, 0, 0, 0, 3, 0, 0],
        [3, 3, 0, 3, 0, 0, 0, 3, 0, 0],
        [0, 0, 0, 3, 0, 3, 3, 3, 0, 3],
        [0, 0, 0, 3, 0, 0, 0, 3, 0, 0],
        [0, 3, 3, 3, 3, 3, 0, 3, 3, 0],
        [0, 3, 0, 0, 0, 3, 0, 3, 0, 0],
        [0, 3, 0, 3, 0, 3, 0, 3, 0, 3],
        [0, 2, 0, 3, 0, 0, 0, 3, 0, 0],
    ]
)
STEPS = {0: (-1, 0), 1: (1, 0), 2: (0, -1), 3: (0, 1)}  # up, down, left, right as (rows, columns)


def train_here(args: script.Args, folder: pathlib.Path) -> tuple[dict, dict]:
    """Trains in this process: the checkpoint and the scalars of the one run in `folder`."""
    args.runs_dir = str(folder)
    assert script.train(args, CPU) == 0
    (path,) = folder.glob("*/latest.pt")
    return torch.load(path, weights_only=True), read_scalars(path.parent)


def call(capsys, *flags: object) -> tuple[int, str, str]:
    """main(): exit status, stdout, stderr."""
    capsys.readouterr()
    try:
        status = script.main([*map(str, flags)])
    except SystemExit as stop:  # by the parser of flags
        status = stop.code
    return status, *capsys.readouterr()


# ----------------------------------------------------------------------------------------------------------------------
# Environment
# ----------------------------------------------------------------------------------------------------------------------


class PlainMaze:
    """One agent in the notes' map, step by step, as the notes describe it."""

    def __init__(self, goal):
        self.goal, self.at, self.steps = goal, (0, 0), 0

    def plane(self):
        plane = np.where(NOTES_MAP == 3, 3, 0)
        plane[self.goal] = 2
        plane[self.at] = 4
        return plane

    def step(self, action):
        self.steps += 1
        row, column = self.at[0] + STEPS[action][0], self.at[1] + STEPS[action][1]
        if 0 <= row < 10 and 0 <= column < 10 and NOTES_MAP[row, column] != 3:
            self.at = (row, column)
        return float(self.at == self.goal), self.at == self.goal


@pytest.mark.parametrize("goal", [(9, 1), (2, 0)])
def test_environment_equals_a_plain_simulator(goal):
    rng = np.random.default_rng(0)
    envs, ends = script.MazeEnvs(6, goal), 0
    for _ in range(8):
        states = envs.reset()
        mazes, over = [PlainMaze(goal) for _ in range(6)], [False] * 6
        assert (envs.observations[states, 0, 0, 0] == 4).all() and not envs.done.any()
        for _ in range(200):
            actions = rng.integers(0, 4, 6)
            states, rewards, valid = envs.step(actions)
            for k, maze in enumerate(mazes):
                assert valid[k] != over[k]
                if over[k]:  # it stands at the goal, for nothing
                    assert rewards[k] == 0
                else:
                    assert (rewards[k], envs.done[k]) == maze.step(actions[k])
                    over[k] = envs.done[k]
                    ends += over[k]
                np.testing.assert_array_equal(envs.observations[states[k], 0], maze.plane())
                assert tuple(envs.cells[states[k]]) == maze.at
    assert 4 < ends <= 48 and (ends < 44 or goal != (9, 1))


@pytest.mark.parametrize(("goal", "length"), [((9, 1), 14), ((9, 6), 23), ((9, 9), 50)])
def test_shortest_paths(goal, length):
    envs = script.MazeEnvs(1, goal)
    assert len(envs.cells) == 67 == (NOTES_MAP != 3).sum()
    # all distances by relaxation over the notes' map, until nothing changes
    distance = np.full((12, 12), np.inf)
    free = np.pad(NOTES_MAP != 3, 1)
    distance[goal[0] + 1, goal[1] + 1] = 0
    for _ in range(100):
        around = np.min([np.roll(distance, shift, axis) for axis in (0, 1) for shift in (1, -1)], axis=0)
        distance = np.where(free, np.minimum(distance, around + 1), np.inf)
    assert np.isfinite(distance[free]).all()  # every free cell is reachable
    assert distance[1, 1] == length
    path = script.shortest_path(envs)
    assert (path[0], path[-1], len(path)) == (0, envs.goal, length + 1)
    assert all(after in envs.next_state[state] for state, after in itertools.pairwise(path))


def table_agent(policy: torch.Tensor):
    """An agent that knows nothing but its policy (S, 4)."""
    return lambda observations: (policy.log(), torch.zeros(len(policy), 2))


@pytest.mark.parametrize(("goal", "chance"), [((9, 1), 0.601), ((9, 6), 0.215), ((9, 9), 0.0019)])
def test_what_a_random_walk_finds(goal, chance):
    """Why 9-9 needs exploration: the chance to arrive within 500 steps, from powers of the transition matrix."""
    envs = script.MazeEnvs(1, goal)
    transition = np.zeros((67, 67))
    for state in range(67):
        for action in range(4):
            transition[state, envs.next_state[state, action]] += 0.25
    exact = np.linalg.matrix_power(transition, 500)[0, envs.goal]
    assert exact == pytest.approx(chance, rel=0.03)
    torch.manual_seed(0)
    rollout = script.collect(script.MazeEnvs(4000, goal), table_agent(torch.ones(67, 4)), script.Args())
    assert rollout.rewards.sum(0).mean().item() == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 4000) ** 0.5)


def test_collect_draws_from_the_policy_and_marks_what_is_over():
    torch.manual_seed(0)
    policy = torch.rand(67, 4).add(0.05)
    policy /= policy.sum(1, keepdim=True)
    envs = script.MazeEnvs(500, (9, 1))
    rollout = script.collect(envs, table_agent(policy), script.Args(max_episode_steps=300))
    played = {key: x.numpy() for key, x in rollout._asdict().items()}
    states, valid = played["states"], played["valid"]
    seen = [(played["next_states"][valid] == state).sum() for state in range(67)]
    np.testing.assert_array_equal(rollout.visits, seen)
    assert list(envs.recent) == played["rewards"].sum(0)[-100:].tolist()
    T = len(states)
    np.testing.assert_array_equal(played["next_states"], envs.next_state[states, played["actions"]])
    np.testing.assert_array_equal(states[1:], played["next_states"][:-1])
    assert (states[0] == 0).all() and valid[0].all()
    for k in range(500):
        hits = np.flatnonzero(played["next_states"][:, k] == envs.goal)
        length = hits[0] + 1 if len(hits) else T
        np.testing.assert_array_equal(valid[:, k], np.arange(T) < length)
        expected = np.zeros(T)
        expected[hits[:1]] = 1
        np.testing.assert_array_equal(played["rewards"][:, k], expected)
    for state in range(67):
        taken = played["actions"][(states == state) & valid]
        error = 4.5 * (policy[state] * (1 - policy[state]) / max(1, len(taken))).sqrt()
        share = torch.from_numpy(np.bincount(taken, minlength=4) / max(1, len(taken)))
        assert len(taken) < 100 or (share - policy[state]).abs().le(error).all()


def test_the_table_is_what_the_network_says_at_every_step():
    torch.manual_seed(0)
    agent, envs = script.Agent(4), script.MazeEnvs(8, (9, 6))
    rollout = script.collect(envs, agent, script.Args(max_episode_steps=50))
    for states in rollout.states:
        logits, values = agent(envs.observations[states])
        torch.testing.assert_close(logits.log_softmax(1), rollout.logprobs[states])
        torch.testing.assert_close(values, rollout.values[states])


def test_networks_have_the_notes_layers():
    shapes = [tuple(p.shape) for p in script.Agent(4).policy.parameters() if p.ndim > 1]
    assert shapes == [(32, 1, 3, 3), (64, 32, 3, 3), (128, 6400), (4, 128)]


# ----------------------------------------------------------------------------------------------------------------------
# Normalisers and returns
# ----------------------------------------------------------------------------------------------------------------------


def random_episodes(seed: int, T: int = 17, N: int = 5) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and valid (T, N), episodes of different lengths, at least 2."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, T + 1, N)
    return rng.normal(size=(T, N)), np.arange(T)[:, None] < lengths


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.floats(0, 1), st.booleans())
def test_returns_equal_a_double_loop(seed, gamma, goes_on):
    rewards, valid = random_episodes(seed)
    last = np.random.default_rng(seed + 1).normal(size=5) if goes_on else np.zeros(5)
    expected = np.zeros_like(rewards)
    for n in range(5):
        length = valid[:, n].sum()
        for t in range(length):
            expected[t, n] = sum(gamma ** (k - t) * rewards[k, n] for k in range(t, length))
            expected[t, n] += gamma ** (length - t) * last[n]
    tensors = torch.from_numpy(rewards), torch.from_numpy(valid)
    actual = script.discounted_returns(*tensors, gamma, torch.from_numpy(last) if goes_on else 0.0)
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_standardised_returns_call_early_steps_bad_and_late_ones_good():
    rewards, valid = random_episodes(0)
    actual = script.standardise(torch.from_numpy(rewards), torch.from_numpy(valid)).numpy()
    for n in range(5):
        r = rewards[valid[:, n], n]
        np.testing.assert_allclose(actual[valid[:, n], n], (r - r.mean()) / r.std(ddof=1), rtol=1e-6)
    assert (actual[~valid] == 0).all()
    # an episode that is paid at its end: the sign tells when an action was taken, not whether it was any good
    rewards, valid = torch.zeros(60, 1), torch.ones(60, 1, dtype=torch.bool)
    rewards[-1] = 1
    z = script.standardise(script.discounted_returns(rewards, valid, 0.98, 0.0), valid)
    assert (z[:25] < 0).all() and (z[40:] > 0).all() and (z.diff(dim=0) > 0).all()


def test_the_std_of_the_return_is_that_of_all_so_far():
    torch.manual_seed(0)
    envs, args = script.MazeEnvs(3, (9, 1)), script.Args(max_episode_steps=30)
    agent, rnd, state, kept = script.Agent(4), script.RND(3, CPU), torch.zeros(3), []
    for _ in range(5):
        rollout = script.collect(envs, agent, args)
        raw = script.novelty(rnd.errors(rollout.observations), "rnd").detach()[rollout.next_states]
        past, state = script.reward_filter(raw, rollout.valid, args.int_gamma, state)
        kept += past[rollout.valid].tolist()
        torch.testing.assert_close(script.intrinsic_rewards(rnd, rollout, args), raw / np.std(kept))
        assert rnd.return_std.item() == pytest.approx(np.std(kept))


@pytest.mark.parametrize("scale", [1e-4, 0.1, 100.0])
def test_the_notes_bonus_does_not_know_the_size_of_the_error(scale):
    torch.manual_seed(0)
    errors = torch.rand(9, 128, dtype=torch.float64).square()
    torch.testing.assert_close(
        script.novelty(scale * errors, "notes"), script.novelty(errors, "notes"), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(script.novelty(scale * errors, "rnd"), scale * script.novelty(errors, "rnd"))
    z = (errors.numpy() - errors.numpy().mean(1, keepdims=True)) / errors.numpy().std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(script.novelty(errors, "notes"), np.tanh(np.abs(z)).mean(1), rtol=1e-6)
    np.testing.assert_allclose(script.novelty(errors, "rnd"), errors.numpy().sum(1), rtol=1e-9)


def test_the_bonus_falls_with_visits_and_the_notes_does_not():
    """States seen 100, 10, 1 and 0 times in each of 300 updates: what is left of the bonus?"""
    observations = script.MazeEnvs(1, (9, 9)).observations
    seen = torch.zeros(67)
    seen[:20], seen[20:40], seen[40:60] = 100, 10, 1
    fall = {}
    for bonus in ("rnd", "notes"):
        torch.manual_seed(0)
        rnd = script.RND(1, CPU)
        optimizer = torch.optim.SGD(rnd.predictor.parameters(), lr=script.Args().predictor_learning_rate)
        groups = []
        for _ in range(301):
            reward = script.novelty(rnd.errors(observations), bonus)
            groups.append([reward[k : k + 20].mean().item() for k in (0, 20, 40, 60)])
            optimizer.zero_grad()
            ((reward * seen).sum() / seen.sum()).backward()
            optimizer.step()
        fall[bonus] = [after / before for before, after in zip(groups[0], groups[-1], strict=True)]
    often, sometimes, seldom, never = fall["rnd"]
    assert often < 0.02 and often < 0.2 * sometimes and sometimes < 0.8 * seldom and seldom < never
    # trained on itself the seed's falls too, but everywhere alike, seen or not
    assert min(fall["notes"]) > 5 * often and max(fall["notes"]) < 1.1 * min(fall["notes"])


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


def plain_batches(args: script.Args, batches: int) -> tuple[dict, dict]:
    """The first batches of a run, transcribed with loops over single steps: parameters and what was measured."""
    torch.manual_seed(args.seed)
    row, column = map(int, args.goal.split("-"))
    envs = script.MazeEnvs(args.num_envs, (row, column))
    obs = envs.observations
    agent, rnd = script.Agent(4), script.RND(args.num_envs, CPU)
    policy_adam = torch.optim.Adam(agent.policy.parameters(), args.learning_rate, betas=(0.9, 0.99), eps=1e-6)
    baseline_adam = torch.optim.Adam(
        agent.baseline.parameters(), args.baseline_learning_rate, betas=(0.9, 0.99), eps=1e-6
    )
    sgd = torch.optim.SGD(rnd.predictor.parameters(), args.predictor_learning_rate)
    path, starts = script.shortest_path(envs), []
    start = path[-2] if args.demo_curriculum else 0
    filtered, all_filtered, recent, episodes = np.zeros(args.num_envs), [], [], 0
    for _ in range(batches):
        starts.append(start)
        fade = 1 - episodes / args.total_episodes if args.anneal else 1
        draws = torch.rand(args.max_episode_steps, args.num_envs)

        def bonus_of(state):
            position = torch.zeros(1, 1, 10, 10)
            position[0, 0, envs.cells[state][0], envs.cells[state][1]] = 1
            error = (rnd.predictor(position) - rnd.target(position)).square()[0]
            if args.bonus == "notes":
                return torch.tanh(((error - error.mean()) / error.std()).abs()).mean()
            return error.sum()

        # play, one episode after the other
        played = []
        for n in range(args.num_envs):
            state, steps = start, []
            for t in range(args.max_episode_steps):
                chances = agent(obs[state : state + 1])[0].softmax(1)[0].tolist()
                action = sum(draws[t, n].item() >= sum(chances[: k + 1]) for k in range(3))
                after = int(envs.next_state[state, action])
                steps.append((state, action, after))
                state = after
                if state == envs.goal:
                    break
            played.append(steps)
        bonus = {}
        for steps in played:
            for _, _, after in steps:
                if after not in bonus:
                    bonus[after] = bonus_of(after).item()
        for n, steps in enumerate(played):
            for _, _, after in steps:
                filtered[n] = args.int_gamma * filtered[n] + bonus[after]
                all_filtered.append(filtered[n])
        std = np.std(all_filtered)

        # every step's terms, backwards through each episode
        terms, value_terms = [], []
        for steps in played:
            episode = []
            _, start_values = agent(obs[start : start + 1])
            goes_on = args.baseline and not args.int_episodic
            g_int, g_ext = (start_values[0, 0].item() if goes_on else 0.0), 0.0
            for state, action, after in reversed(steps):
                g_int = bonus[after] / std + args.int_gamma * g_int
                g_ext = float(after == envs.goal) + args.gamma * g_ext
                logits, values = agent(obs[state : state + 1])
                v_int, v_ext = values[0].tolist() if args.baseline else (0.0, 0.0)
                advantage = fade * args.int_coef * (g_int - v_int) + args.ext_coef * (g_ext - v_ext)
                episode.append((logits[0].log_softmax(0), action, advantage))
                errors = (values[0, 0] - g_int) ** 2 * (args.int_coef > 0), (values[0, 1] - g_ext) ** 2
                value_terms.append(0.5 * sum(errors))
            if args.return_norm:
                x = np.array([advantage for _, _, advantage in episode])
                x = (x - x.mean()) / (x.std(ddof=1) + 1e-9)
                episode = [(logp, action, z) for (logp, action, _), z in zip(episode, x, strict=True)]
            terms += episode
        policy_loss = sum(-logp[action] * advantage for logp, action, advantage in terms) / len(terms)
        entropy = sum(-(logp.exp() * logp).sum() for logp, _, _ in terms) / len(terms)
        policy_adam.param_groups[0]["lr"] = fade * args.learning_rate
        policy_adam.zero_grad()
        (policy_loss - fade * args.ent_coef * entropy).backward()
        nn_norm = torch.cat([p.grad.flatten() for p in agent.policy.parameters()]).norm()
        if nn_norm > args.max_grad_norm:
            for p in agent.policy.parameters():
                p.grad *= args.max_grad_norm / (nn_norm + 1e-6)
        policy_adam.step()
        if args.baseline:
            baseline_adam.zero_grad()
            (sum(value_terms) / len(value_terms)).backward()
            baseline_adam.step()
        sgd.zero_grad()
        seen = [after for steps in played for _, _, after in steps]
        (sum(bonus_of(after) * seen.count(after) for after in set(seen)) / len(seen)).backward()
        sgd.step()

        episodes += args.num_envs
        recent += [float(steps[-1][2] == envs.goal) for steps in played]
        if args.demo_curriculum and start != 0 and len(recent) >= 10 and np.mean(recent[-100:]) >= 0.2:
            start = path[path.index(start) - 1]
            recent = []
    measured = {
        "losses/policy_loss": policy_loss.item(),
        "losses/entropy": entropy.item(),
        "losses/grad_norm": nn_norm.item(),
        "rnd/intrinsic_return_std": std,
        "rnd/intrinsic_reward": np.mean([bonus[after] / std for after in seen]),
    }
    return {"agent": agent.state_dict(), "rnd": rnd.predictor.state_dict(), "starts": starts}, measured


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"int_episodic": True},
        {"int_coef": 0.0},
        {"baseline": False},
        {"baseline": False, "int_coef": 0.0, "return_norm": True},
        {"bonus": "notes"},
        {"anneal": False, "ent_coef": 0.1},
        {"demo_curriculum": True, "num_envs": 5},
    ],
    ids=str,
)
def test_batches_equal_a_plain_transcription(tmp_path, changes):
    values = {"goal": "2-0", "max_episode_steps": 20, "num_envs": 3, "gamma": 0.9}
    args = script.Args(**(values | changes))
    batches = 4 if args.demo_curriculum else 2
    args.total_episodes = batches * args.num_envs
    saved, scalars = train_here(args, tmp_path)
    expected, measured = plain_batches(args, batches)
    for key, value in measured.items():
        assert scalars[key][-1][1] == pytest.approx(value, rel=1e-4, abs=1e-6), key
    # Adam's step is the sign of the gradient at first: where that is rounding noise, it may go either way
    for name, tensor in expected["agent"].items():
        difference = (saved["agent"][name] - tensor).abs()
        assert (difference > 1e-5).float().mean() < 2e-3, name
        if name.startswith("baseline") and not args.baseline:
            torch.testing.assert_close(saved["agent"][name], tensor, rtol=0, atol=0)
    for name, tensor in expected["rnd"].items():
        torch.testing.assert_close(saved["rnd"][f"predictor.{name}"], tensor, rtol=1e-4, atol=1e-6)
    if args.demo_curriculum:
        starts = [script.shortest_path(script.MazeEnvs(1, (2, 0))).index(start) for start in expected["starts"]]
        assert [value for _, value in scalars["charts/start_distance"]][:-1] == starts[1:] and starts[-1] < starts[0]


def test_the_start_moves_back_when_twenty_percent_succeed():
    envs = script.MazeEnvs(10, (2, 0))
    path = script.shortest_path(envs)
    envs.start, distances = path[-2], []
    for hits in (1, 2, 1, 5, 1, 3, 2):  # of ten episodes each
        distances.append(len(path) - 1 - path.index(envs.start))
        envs.recent.extend([1.0] * hits + [0.0] * (10 - hits))
        script.move_start(envs)
    # 10 %, then 3 of 20: stay; 4 of 30: stay; 9 of 40: back, to the true start, which is two steps away
    assert distances == [1, 1, 1, 1, 2, 2, 2]
    assert len(envs.recent) == 30  # forgotten when the start has moved, and not any more at the true one


def test_what_fades():
    args = script.Args(total_episodes=40, int_coef=2.0, ent_coef=0.1, learning_rate=0.01)
    now = script.annealed(args, 30)
    assert (now.int_coef, now.ent_coef, now.learning_rate) == pytest.approx((0.5, 0.025, 0.0025))
    rest = ("int_coef", "ent_coef", "learning_rate")
    assert [x for flag, x in vars(now).items() if flag not in rest] == [
        x for flag, x in vars(args).items() if flag not in rest
    ]
    args.anneal = False
    assert script.annealed(args, 30) == args


def test_same_seed_same_run_another_seed_another_and_the_target_never_changes(tmp_path):
    runs = []
    for k, seed in enumerate((1, 1, 2)):
        args = script.Args(total_episodes=20, seed=seed, max_episode_steps=100)
        saved, scalars = train_here(args, tmp_path / str(k))
        scalars.pop("charts/SPS")
        runs.append((saved, {tag: np.array(points) for tag, points in scalars.items()}))
    np.testing.assert_equal(runs[0][1], runs[1][1])
    for part in ("agent", "rnd"):
        for name, tensor in runs[0][0][part].items():
            assert torch.equal(tensor, runs[1][0][part][name]), name
    assert (runs[0][1]["losses/entropy"] != runs[2][1]["losses/entropy"]).any()
    torch.manual_seed(1)
    script.Agent(4)
    for name, tensor in script.RND(4, CPU).target.state_dict().items():
        assert torch.equal(runs[0][0]["rnd"][f"target.{name}"], tensor)


@pytest.mark.parametrize(
    ("patch", "flags", "words"),
    [
        ("novelty", [], "rnd/intrinsic_return_std is nan|losses/policy_loss is nan"),
        (None, ["--learning-rate", "1e30"], "is not finite|is nan|is inf"),
    ],
)
def test_a_nan_stops_the_run_names_itself_and_is_not_saved(tmp_path, monkeypatch, capsys, patch, flags, words):
    monkeypatch.chdir(tmp_path)
    if patch:
        monkeypatch.setattr(script, patch, lambda errors, bonus: errors.sum(1) * float("nan"))
    status, _, error = call(capsys, "--total-episodes", 8, "--max-episode-steps", 50, *flags)
    assert status == 1 and error.count("\n") == 1 and re.search(words, error) and " at step " in error
    assert "nothing is saved" in error and not list(tmp_path.rglob("*.pt*"))


# ----------------------------------------------------------------------------------------------------------------------
# What the user sees
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        *(
            (["--goal", goal], f"--goal {goal}: must be row-column")
            for goal in ("0-3", "10-1", "0-0", "9,9", "9", "²-1")
        ),
        (["--num-envs", 0], "--num-envs 0: must be at least 1"),
        (["--total-episodes", -5], "--total-episodes -5.0: must be at least 1"),
        (["--max-episode-steps", 0], "must be at least 1"),
        (["--eval-episodes", 0], "must be at least 1"),
        (["--num-envs", 10**9], "--num-envs 1000000000: must be less"),
        (["--learning-rate", 0], "--learning-rate 0.0: must be a positive number"),
        (["--baseline-learning-rate", -1], "must be a positive number"),
        (["--predictor-learning-rate", "nan"], "must be a positive number"),
        (["--max-grad-norm", 0], "must be a positive number"),
        (["--int-coef", -1], "must be at least 0"),
        (["--ent-coef", "inf"], "must be at least 0"),
        (["--int-coef", 0, "--ext-coef", 0], "must be above 0 with --int-coef 0"),
        (["--seed", -1], "must be at least 0"),
        (["--seed", 10**20], "and below 2^63"),
        (["--gamma", 1.1], "--gamma 1.1: must be in [0, 1]"),
        (["--evaluate", "nowhere"], "there is no checkpoint nowhere"),
        (["--evaluate", ""], "there is no checkpoint"),
    ],
    ids=str,
)
def test_bad_input_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    status, out, error = call(capsys, *flags)
    assert status == 2 and not out
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())


def test_what_else_is_refused(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    bad = ["--num-envs", "1.5"], ["--num-env", "4"], ["--device", "tpu"], ["--gamma", "x"], ["--bonus", "icm"]
    for flags in bad:
        assert call(capsys, *flags)[0] == 2
    monkeypatch.setenv("WORLD_SIZE", "2")
    status, _, error = call(capsys)
    assert status == 2 and "without torchrun" in error
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run as a user starts it: its folder and what was printed."""
    cwd = tmp_path_factory.mktemp("finished")
    flags = ["--total-episodes", 104, "--max-episode-steps", 200, "--plot", "--seed", 3, "--runs-dir", "sp ace"]
    done = run_script("reinforce_rnd_maze.py", *flags, cwd=cwd)
    assert done.returncode == 0, done.stderr
    (folder,) = (cwd / "sp ace").iterdir()
    return folder, done


def test_a_run_as_a_user_sees_it(finished):
    folder, done = finished
    assert not done.stderr
    for words in ("device       cpu (1 thread)", "Maze-9-1 x 4, shortest path 14 steps", "folder       sp ace/"):
        assert words in done.stdout
    assert re.fullmatch(r"Maze-9-1__reinforce_rnd_maze__3__\d{8}-\d{6}-\d{6}", folder.name)
    # eight times the policy as arrows and the last trajectory, 10 lines each, and the last lines repeat the score
    assert done.stdout.count("likeliest actions; cells that one episode entered") == 8
    assert len(re.findall(r"^([↑↓←→■X] ){10}    ([o·■X]( |$)){10}$", done.stdout, re.M)) == 80
    assert re.search(r"goal first reached +after [\d,]+ episodes, [\d,]+ steps\n", done.stdout)
    assert re.search(r"success [01]\.\d\d, 104 episodes, [\d,]+ steps in \d\d:\d\d, folder", done.stdout)
    assert f"evaluate with: python {ROOT / 'reinforce_rnd_maze.py'} --evaluate 'sp ace/{folder.name}'" in done.stdout
    names = {path.name for path in folder.iterdir() if "tfevents" not in path.name}
    assert names == {"latest.pt", "reinforce_rnd_maze.py", "exploration.png", "policy.png", "learning_curve.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    scalars = read_scalars(folder)
    assert {
        *("charts/episodic_return", "charts/episodic_length", "charts/success_rate", "charts/SPS"),
        *("losses/policy_loss", "losses/entropy", "losses/predictor_loss", "losses/grad_norm"),
        *("losses/value_loss_int", "losses/value_loss_ext", "rnd/intrinsic_reward", "rnd/cells_visited"),
        *("losses/explained_variance_int", "losses/explained_variance_ext", "rnd/intrinsic_return_std"),
        *("charts/learning_rate", "losses/value_loss"),
    } <= scalars.keys()
    steps = [step for step, _ in scalars["charts/episodic_return"]]
    assert len(steps) == 26 and steps[-1] > steps[0] > 0
    lengths = [4 * value for _, value in scalars["charts/episodic_length"]]
    np.testing.assert_allclose(np.cumsum(lengths), steps)


def test_evaluation(finished, capsys, monkeypatch):
    """Fresh draws, the run's flags, nothing in its folder touched; a damaged or odd file is one line."""
    folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    drawn = []
    monkeypatch.setattr(script, "collect", lambda *args: drawn.append(torch.initial_seed()) or collect(*args))
    monkeypatch.chdir(folder)
    assert [call(capsys, "--evaluate", ".", "--seed", seed)[0] for seed in (1, 2)] == [0, 0]
    assert len({1, 2, *drawn}) == 4
    status, out, error = call(capsys, "--evaluate", folder / "latest.pt", "--eval-episodes", 50)
    assert status == 0 and not error and "the shortest is 14" in out
    assert re.search(r"success [01]\.\d\d \+- 0\.\d\d \(mean, standard error\), length \d+\.\d", out)
    assert float(re.search(r"length (.*)", out)[1]) <= 200  # the run's --max-episode-steps
    status, out, _ = call(capsys, "--evaluate", folder, "--eval-episodes", 1, "--goal", "9-6")
    assert status == 0 and "nan" not in out and "the shortest is 23" in out
    assert before == {path: path.stat().st_mtime_ns for path in folder.iterdir()}


collect = script.collect


def test_files_that_are_damaged_or_odd(finished, capsys, tmp_path):
    good = (finished[0] / "latest.pt").read_bytes()
    state = torch.load(io.BytesIO(good), weights_only=True)
    files = {"cut": good[:5000], "empty": b"", "text": b"hello"}
    for k in range(1, 5):  # one bit, in several places
        place = len(good) * k // 5
        files[f"flip{k}"] = good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :]
    first, *_ = state["agent"]
    odd = {"no_agent": {**state, "agent": {}}, "no_args": {**state, "args": {}}, "list": [1, 2], "foreign": {"a": 1}}
    odd["step"] = state | {"step": "many"}
    odd["shape"] = state | {"agent": state["agent"] | {first: torch.zeros(3)}}
    for name, content in odd.items():
        torch.save(content, buffer := io.BytesIO())
        files[name] = buffer.getvalue()
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        status, _, error = call(capsys, "--evaluate", tmp_path / name)
        assert status == 2 and error.count("\n") == 1, name
        assert f"{name} is damaged or does not fit script and flags" in error, name


def test_a_renamed_copy_evaluates_in_the_console_s_own_marks(finished, tmp_path):
    """And without its standard error, where the console has no arrows."""
    copy = tmp_path / "my_maze.py"
    copy.write_text((ROOT / "reinforce_rnd_maze.py").read_text())
    command = ["sh", "-c", '"$@" 2>&-', "sh", sys.executable, str(copy), "--evaluate", str(finished[0])]
    done = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONIOENCODING": "cp1252"})
    assert done.returncode == 0
    assert len(re.findall(rb"(?m)^([\^v<>#X] ){10}    ([o.#X]( |\r?$)){10}$", done.stdout)) == 10


@pytest.mark.parametrize(("encoding", "marks"), [("ascii", "^#."), ("cp437", "^#."), ("utf-8", "↑■·")])
def test_the_maze_is_drawn_in_marks_that_the_console_has(monkeypatch, encoding, marks):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    text = script.draw(script.MazeEnvs(1, (9, 9)), torch.zeros(67, dtype=torch.int64), [0, 1])
    with contextlib.suppress(UnicodeEncodeError):
        text.encode(encoding)
        assert set(marks) <= set(text)
        return
    pytest.fail(encoding)


@pytest.mark.parametrize("reader", ["there", "gone", "goes with Ctrl-C"])
def test_ctrl_c_saves_and_says_how_to_evaluate(tmp_path, reader):
    """Also where the program behind the pipe ends by the same Ctrl-C, or has ended long before."""
    command = [sys.executable, "-u", str(ROOT / "reinforce_rnd_maze.py"), "--total-episodes", "4000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    for line in iter(process.stdout.readline, b""):
        if reader == "gone" and line.startswith(b"folder"):
            process.stdout.close()
            break
        if line.startswith(b"episode "):
            break
    if reader == "gone":
        (folder,) = (tmp_path / "runs").iterdir()
        limit = time.monotonic() + 60
        while time.monotonic() < limit:  # it goes on
            with contextlib.suppress(KeyError):
                if len(read_scalars(folder)["charts/SPS"]) > 20:
                    break
            time.sleep(0.2)
    elif reader == "goes with Ctrl-C":
        process.stdout.close()
    process.send_signal(signal.SIGINT)
    rest = process.stdout.read().decode() if reader == "there" else ""
    error = process.stderr.read().decode()
    assert process.wait(60) == 130 and not error
    (path,) = (tmp_path / "runs").glob("*/latest.pt")
    if reader == "there":
        assert f"--evaluate runs/{path.parent.name}" in rest.splitlines()[-1]
    saved = torch.load(path, weights_only=True)
    assert 20 <= saved["curve"][-1][1] < 4000 and saved["curve"][-1][0] == saved["step"]
    assert not list(path.parent.glob("*.tmp"))


def test_two_runs_in_one_second_and_main_in_a_notebook(tmp_path, monkeypatch):
    """Two folders; handlers, hooks and threads are as before."""

    monkeypatch.chdir(tmp_path)
    torch.set_num_threads(2)
    before = signal.getsignal(signal.SIGINT), torch.get_num_threads(), sys.stdout
    flags = ["--total-episodes", "4e0", "--max-episode-steps", "5", "--runs-dir", "~/here"]
    monkeypatch.setenv("HOME", str(tmp_path))
    assert script.main(flags) == script.main(flags) == 0
    assert len(list((tmp_path / "here").iterdir())) == 2
    assert before == (signal.getsignal(signal.SIGINT), torch.get_num_threads(), sys.stdout)


def test_help_names_every_flag(capsys):
    status, out, _ = call(capsys, "--help")
    source = (ROOT / "reinforce_rnd_maze.py").read_text()
    assert status == 0
    for name in vars(script.Args()):
        assert f"--{name.replace('_', '-')}" in out
        assert f"args.{name}" in source or f'"{name}"' in source


@pytest.mark.learning
def test_the_bonus_finds_and_keeps_the_far_goal(tmp_path):
    start = time.process_time()
    torch.set_num_threads(1)
    saved, _ = train_here(script.Args(goal="9-9"), tmp_path)
    step, _, success, length = saved["curve"][-1]
    assert success >= 0.95 and length == 50 and step <= 5e6
    assert time.process_time() - start < 60


def test_a_closed_stdout_costs_nothing_but_the_lines(tmp_path):
    """Not None, as with >&- in a shell, but a stream that has been closed, as in some notebooks."""
    words = ["--goal", "9-1", "--total-episodes", "8", "--runs-dir", str(tmp_path)]
    code = f"import sys, reinforce_rnd_maze as m; sys.stdout.close(); sys.exit(m.main({words}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert len([*tmp_path.glob("*/latest.pt")]) == 1
