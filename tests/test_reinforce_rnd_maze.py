"""reinforce_rnd_maze.py: its maze, its numbers and its promises to the user."""

import collections
import itertools
import pathlib
import re
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import ROOT, read_scalars, run_script
from hypothesis import given, settings
from hypothesis import strategies as st

import reinforce_rnd_maze as script

CPU = torch.device("cpu")
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


def only_run(folder: pathlib.Path) -> pathlib.Path:
    """The one run in `folder`/runs."""
    (run_dir,) = (folder / "runs").iterdir()
    return run_dir


def run_main(monkeypatch, *flags: object) -> int:
    """The script's main(), in this process."""
    monkeypatch.setattr(sys, "argv", ["reinforce_rnd_maze.py", *map(str, flags)])
    return script.main()


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


@pytest.mark.parametrize("goal", [(9, 1), (2, 0), (0, 1)])
def test_environment_equals_a_plain_simulator(goal):
    rng = np.random.default_rng(0)
    envs = script.MazeEnvs(6, goal, max_episode_steps=200)
    ends = collections.Counter()
    for _ in range(30):
        obs, infos = envs.reset()
        mazes, over = [PlainMaze(goal) for _ in range(6)], [False] * 6
        for step in range(1, 201):
            actions = rng.integers(0, 4, 6)
            obs, rewards, terminated, truncated, infos = envs.step(actions)
            for k, maze in enumerate(mazes):
                if over[k]:  # it stands at the goal, for nothing, and does not end again
                    assert (rewards[k], terminated[k], truncated[k]) == (0, False, False)
                else:
                    assert (rewards[k], terminated[k]) == maze.step(actions[k])
                    assert truncated[k] == (step == 200 and not terminated[k])
                    over[k] = terminated[k] or truncated[k]
                    ends[bool(terminated[k]), bool(truncated[k])] += 1
                np.testing.assert_array_equal(obs[k, 0], maze.plane())
                np.testing.assert_array_equal(obs[k], envs.observations[infos["state"][k]])
                assert tuple(envs.cells[infos["state"][k]]) == maze.at
    assert ends[True, False] > 10 and (ends[False, True] > 10 or goal != (9, 1))


def test_it_is_a_gymnasium_vector_environment():
    envs = script.MazeEnvs(3, (9, 9), max_episode_steps=2)
    assert isinstance(envs, gym.vector.VectorEnv)
    assert envs.metadata["autoreset_mode"] is gym.vector.AutoresetMode.DISABLED
    obs, _ = envs.reset(seed=1)
    assert obs in envs.observation_space
    for _ in range(2):
        obs, rewards, terminated, truncated, _ = envs.step(envs.action_space.sample())
        assert obs in envs.observation_space and obs.dtype == np.float32
        assert rewards.shape == terminated.shape == truncated.shape == (3,)
    assert truncated.all() and not terminated.any()
    with pytest.raises(gym.error.ResetNeeded):
        envs.step(envs.action_space.sample())
    obs, _ = envs.reset()
    assert (obs[:, 0, 0, 0] == 4).all()


@pytest.mark.parametrize(("goal", "length"), [((9, 1), 14), ((9, 6), 23), ((9, 9), 50)])
def test_shortest_paths(goal, length):
    envs = script.MazeEnvs(1, goal, 500)
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


@pytest.mark.parametrize(("goal", "chance"), [((9, 1), 0.601), ((9, 6), 0.215), ((9, 9), 0.0019)])
def test_what_a_random_walk_finds(goal, chance):
    """Why 9-9 needs exploration: the chance to arrive within 500 steps, from powers of the transition matrix."""
    envs = script.MazeEnvs(1, goal, 500)
    transition = np.zeros((67, 67))
    for state in range(67):
        for action in range(4):
            transition[state, envs.next_state[state, action]] += 0.25
    exact = np.linalg.matrix_power(transition, 500)[0, envs.goal]
    assert exact == pytest.approx(chance, rel=0.03)
    torch.manual_seed(0)
    played = script.play(script.MazeEnvs(4000, goal, 500), torch.full((67, 4), 0.25))
    assert played["rewards"].sum(0).mean() == pytest.approx(exact, abs=4 * (exact * (1 - exact) / 4000) ** 0.5)


def test_play_draws_from_the_policy_and_marks_what_is_over():
    torch.manual_seed(0)
    policy = torch.rand(67, 4).add(0.05)
    policy /= policy.sum(1, keepdim=True)
    envs = script.MazeEnvs(500, (9, 1), 300)
    played = script.play(envs, policy)
    states, valid = played["states"], played["valid"]
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
    agent, envs = script.Agent(4), script.MazeEnvs(8, (9, 6), 50)
    logits, values = agent(torch.from_numpy(envs.observations))
    obs, infos = envs.reset()
    for _ in range(50):
        step_logits, step_values = agent(torch.from_numpy(obs))
        torch.testing.assert_close(step_logits, logits[infos["state"]])
        torch.testing.assert_close(step_values, values[infos["state"]])
        obs, _, _, _, infos = envs.step(envs.action_space.sample())


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


def test_reward_filter_equals_a_double_loop():
    rewards, valid = random_episodes(3)
    state = np.random.default_rng(4).normal(size=5)
    expected, carried = np.zeros_like(rewards), state.copy()
    for n in range(5):  # each environment by itself, over time
        for t in range(len(rewards)):
            if valid[t, n]:
                carried[n] = 0.9 * carried[n] + rewards[t, n]
            expected[t, n] = carried[n]
    tensors = torch.from_numpy(rewards), torch.from_numpy(valid)
    filtered, last = script.reward_filter(*tensors, 0.9, torch.from_numpy(state))
    np.testing.assert_allclose(filtered, expected, rtol=1e-9)
    np.testing.assert_allclose(last, carried, rtol=1e-9)


def test_running_moments_equal_numpy_and_forget_nothing():
    rng = np.random.default_rng(0)
    moments, kept = script.RunningMoments((), CPU), []
    for k in range(40):
        batch, valid = rng.normal(10 * k, 1 + k, 7), rng.random(7) < 0.7
        moments.update(torch.from_numpy(batch), torch.from_numpy(valid))
        kept.append(batch[valid])
    data = np.concatenate([[0.0], *kept])  # the start counts as 1e-4 samples of mean 0 and variance 1
    weight = np.full(len(data), 1.0)
    weight[0] = 1e-4
    mean = np.average(data, weights=weight)
    var = np.average((data - mean) ** 2, weights=weight) + 1e-4 / weight.sum()
    np.testing.assert_allclose([moments.mean, moments.var], [mean, var], rtol=1e-9)


@pytest.mark.parametrize("scale", [1e-4, 0.1, 100.0])
def test_the_seed_s_bonus_does_not_know_the_size_of_the_error(scale):
    torch.manual_seed(0)
    errors = torch.rand(9, 128, dtype=torch.float64).square()
    torch.testing.assert_close(
        script.novelty(scale * errors, "seed"), script.novelty(errors, "seed"), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(script.novelty(scale * errors, "rnd"), scale * script.novelty(errors, "rnd"))
    z = (errors.numpy() - errors.numpy().mean(1, keepdims=True)) / errors.numpy().std(1, ddof=1, keepdims=True)
    np.testing.assert_allclose(script.novelty(errors, "seed"), np.tanh(np.abs(z)).mean(1), rtol=1e-6)
    np.testing.assert_allclose(script.novelty(errors, "rnd"), errors.numpy().sum(1), rtol=1e-9)


def test_the_bonus_falls_with_visits_and_the_seed_s_does_not():
    """States seen 100, 10, 1 and 0 times in each of 300 updates: what is left of the bonus?"""
    envs = script.MazeEnvs(1, (9, 9), 500)
    observations = torch.from_numpy(envs.observations)
    seen = torch.zeros(67)
    seen[:20], seen[20:40], seen[40:60] = 100, 10, 1
    fall = {}
    for bonus in ("rnd", "seed"):
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
    assert min(fall["seed"]) > 5 * often and max(fall["seed"]) < 1.1 * min(fall["seed"])


# ----------------------------------------------------------------------------------------------------------------------
# Training
# ----------------------------------------------------------------------------------------------------------------------


def plain_batches(args: script.Args, batches: int) -> tuple[dict, dict]:
    """The first batches of a run, transcribed with loops over single steps: parameters and what was measured."""
    torch.manual_seed(args.seed)
    row, column = map(int, args.goal.split("-"))
    envs = script.MazeEnvs(args.num_envs, (row, column), args.max_episode_steps)
    obs = torch.from_numpy(envs.observations)
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
            if args.bonus == "seed":
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
        count = len(all_filtered) + 1e-4
        mean = sum(all_filtered) / count
        deviation = ((sum(x * x for x in all_filtered) + 1e-4) / count - mean**2) ** 0.5

        # every step's terms, backwards through each episode
        terms, value_terms = [], []
        for steps in played:
            episode = []
            _, start_values = agent(obs[start : start + 1])
            goes_on = args.baseline and not args.int_episodic
            g_int, g_ext = (start_values[0, 0].item() if goes_on else 0.0), 0.0
            for state, action, after in reversed(steps):
                g_int = bonus[after] / deviation + args.int_gamma * g_int
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
        "rnd/intrinsic_return_std": deviation,
        "rnd/intrinsic_reward": np.mean([bonus[after] / deviation for after in seen]),
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
        {"bonus": "seed"},
        {"anneal": False, "ent_coef": 0.1},
        {"demo_curriculum": True, "num_envs": 5},
    ],
    ids=str,
)
def test_batches_equal_a_plain_transcription(tmp_path, changes):
    values = {"goal": "2-0", "max_episode_steps": 20, "num_envs": 3, "runs_dir": str(tmp_path), "gamma": 0.9}
    args = script.Args(**(values | changes))
    batches = 4 if args.demo_curriculum else 2
    args.total_episodes = batches * args.num_envs
    assert script.train(args, "Maze-2-0", CPU, None, None) == 0
    (run_dir,) = tmp_path.iterdir()
    saved = torch.load(run_dir / "latest.pt", weights_only=True)
    expected, measured = plain_batches(args, batches)
    scalars = read_scalars(run_dir)
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
        starts = [script.shortest_path(script.MazeEnvs(1, (2, 0), 9)).index(start) for start in expected["starts"]]
        assert [value for _, value in scalars["charts/start_distance"]][:-1] == starts[1:] and starts[-1] < starts[0]


def test_the_start_moves_back_when_twenty_percent_succeed(tmp_path, monkeypatch):
    hits = iter([1, 2, 1, 9, 1, 3, 2])  # of ten episodes each
    distances, path = [], script.shortest_path(script.MazeEnvs(10, (2, 0), 9))

    def play(envs, _):
        distances.append(len(path) - 1 - path.index(envs.start))
        rewards = (np.arange(10) < next(hits)).astype(np.float32)[None]
        steps = {"states": np.zeros((1, 10), np.int64), "actions": np.zeros((1, 10), np.int64)}
        steps["next_states"] = np.where(rewards > 0, envs.goal, 0)
        return steps | {"rewards": rewards, "valid": np.ones((1, 10), bool)}

    monkeypatch.setattr(script, "play", play)
    values = {"goal": "2-0", "num_envs": 10, "total_episodes": 70, "demo_curriculum": True}
    script.train(script.Args(**values, runs_dir=str(tmp_path)), "Maze-2-0", CPU, None, None)
    # 10 %, then 3 of 20: stay; 4 of 30: stay; 13 of 40: back, to the true start, which is two steps away
    assert distances == [1, 1, 1, 1, 2, 2, 2]


def test_target_never_changes(tmp_path):
    args = script.Args(total_episodes=8, runs_dir=str(tmp_path), max_episode_steps=50)
    torch.manual_seed(args.seed)
    script.Agent(4)
    before = script.RND(4, CPU).target.state_dict()
    script.train(args, "Maze-9-1", CPU, None, None)
    (run_dir,) = tmp_path.iterdir()
    saved = torch.load(run_dir / "latest.pt", weights_only=True)["rnd"]
    for name, tensor in before.items():
        torch.testing.assert_close(saved[f"target.{name}"], tensor, rtol=0, atol=0)


def test_same_seed_same_scalars_and_another_seed_others(tmp_path):
    curves = []
    for k, seed in enumerate((1, 1, 2)):
        args = script.Args(total_episodes=20, seed=seed, runs_dir=str(tmp_path / str(k)), max_episode_steps=100)
        script.train(args, "Maze-9-1", CPU, None, None)
        scalars = read_scalars(next((tmp_path / str(k)).iterdir()))
        scalars.pop("charts/SPS")
        curves.append({tag: np.array(points) for tag, points in scalars.items()})
    np.testing.assert_equal(curves[0], curves[1])
    assert (curves[0]["losses/entropy"] != curves[2]["losses/entropy"]).any()


def assert_same(a: object, b: object, where: str = "") -> None:
    """Equal bit for bit, all the way down, except for the time taken and the flags that name folders."""
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a.keys() - {"seconds", "runs_dir", "args"}:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{k}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


@pytest.mark.parametrize("changes", [{}, {"demo_curriculum": True, "int_coef": 0.0}], ids=str)
def test_interrupted_and_resumed_equals_uninterrupted_bit_for_bit(tmp_path, monkeypatch, changes):
    values = {"goal": "2-2", "total_episodes": 80, "max_episode_steps": 60} | changes
    assert script.train(script.Args(**values, runs_dir=str(tmp_path / "whole")), "Maze-2-2", CPU, None, None) == 0
    whole = next((tmp_path / "whole").iterdir())

    class StopLater(script.StopSignal):
        """A signal that comes in the seventh batch."""

        looks = 0
        number = property(lambda self: signal.SIGINT if self.count() > 7 else 0, lambda self, value: None)

        def count(self):
            self.looks += 1
            return self.looks

    args = script.Args(**values, runs_dir=str(tmp_path / "parts"))
    with monkeypatch.context() as patch:
        patch.setattr(script, "StopSignal", StopLater)
        assert script.train(args, "Maze-2-2", CPU, None, None) == 130
    part = next((tmp_path / "parts").iterdir())
    path, saved = script.load_checkpoint("--resume", str(part))
    assert 0 < saved["progress"]["episode"] < 80
    torch.manual_seed(999)  # whatever went on in between
    assert script.train(args, "Maze-2-2", CPU, path, saved) == 0
    states = [torch.load(folder / "latest.pt", weights_only=True) for folder in (whole, part)]
    assert_same(*states)
    curves = [read_scalars(folder) for folder in (whole, part)]
    for curve in curves:
        curve.pop("charts/SPS")
    np.testing.assert_equal(*curves)


def test_a_nan_stops_the_run_and_names_itself(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(script, "novelty", lambda errors, bonus: errors.sum(1) * float("nan"))
    assert run_main(monkeypatch, "--total-episodes", 8) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and " is nan at step" in error and "there is no checkpoint yet" in error


# ----------------------------------------------------------------------------------------------------------------------
# What the user sees
# ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--goal", "0-3"], "--goal 0-3: that cell is a wall"),
        (["--goal", "10-1"], "--goal 10-1: outside the maze, whose rows and columns go from 0 to 9"),
        (["--goal", "0-0"], "--goal 0-0: that cell is the start"),
        (["--goal", "9,9"], "--goal 9,9: must be a row and a column, as in 9-9"),
        (["--goal", "9"], "must be a row and a column"),
        (["--goal", "²-1"], "must be a row and a column"),
        (["--bonus", "icm"], "--bonus icm: must be rnd or seed"),
        (["--num-envs", "0"], "--num-envs 0: must be at least 1"),
        (["--total-episodes", "-5"], "--total-episodes -5: must be at least 1"),
        (["--max-episode-steps", "0"], "must be at least 1"),
        (["--eval-episodes", "0"], "must be at least 1"),
        (["--learning-rate", "0"], "--learning-rate 0.0: must be a positive number"),
        (["--baseline-learning-rate", "-1"], "must be a positive number"),
        (["--predictor-learning-rate", "nan"], "must be a positive number"),
        (["--max-grad-norm", "0"], "must be a positive number"),
        (["--int-coef", "-1"], "must be a number that is not negative"),
        (["--ent-coef", "inf"], "must be a number that is not negative"),
        (["--int-coef", 0, "--int-gamma", 0.5], "--int-gamma contradicts --int-coef 0: there is no bonus"),
        (["--no-baseline", "--baseline-learning-rate", 0.1], "--baseline-learning-rate contradicts --no-baseline"),
        (["--no-baseline", "--int-episodic"], "--int-episodic contradicts --no-baseline"),
        (["--seed", "-1"], "must be a number that is not negative"),
        (["--seed", "1e20"], "--seed 100000000000000000000: must be below 2^63"),
        (["--gamma", "1.1"], "--gamma 1.1: must be in [0, 1]"),
        (["--resume", "nowhere"], "--resume nowhere: there is no checkpoint nowhere"),
        (["--evaluate", "nowhere"], "--evaluate nowhere: there is no checkpoint nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(monkeypatch, capsys, tmp_path, flags, message):
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [["--num-envs", "1.5"], ["--num-env", "4"], ["--device", "tpu"], ["--gamma", "x"]])
def test_what_the_parser_refuses(monkeypatch, capsys, flags):
    with pytest.raises(SystemExit, match="2"):
        run_main(monkeypatch, *flags)


def test_checkpoints_that_do_not_fit(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert run_main(monkeypatch, "--total-episodes", 8, "--max-episode-steps", 20) == 0
    run_dir = only_run(tmp_path)
    good = (run_dir / "latest.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(good[:5000])
    torch.save({"script": "another", "args": {}}, tmp_path / "foreign.pt")
    capsys.readouterr()
    for flags, message in [
        (["--resume", run_dir], "has all of its 8 episodes; ask for more with --total-episodes"),
        (["--resume", run_dir, "--goal", "9-9"], "is of a run with goal 9-1, not 9-9"),
        (["--resume", run_dir, "--demo-curriculum"], "is of a run with demo_curriculum False, not True"),
        (["--resume", run_dir, "--num-envs", 2, "--total-episodes", 16], "is of a run with num_envs 4, not 2"),
        (["--resume", "cut.pt"], "cut.pt is damaged or is no checkpoint"),
        (["--resume", "foreign.pt"], "was written by another, not by this script"),
        (["--resume", run_dir, "--evaluate", run_dir], "exclude each other"),
    ]:
        assert run_main(monkeypatch, *flags) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error
    assert (run_dir / "latest.pt").read_bytes() == good
    assert run_main(monkeypatch, "--resume", run_dir, "--total-episodes", 12) == 0
    assert torch.load(run_dir / "latest.pt", weights_only=True)["progress"]["episode"] == 12
    capsys.readouterr()
    assert run_main(monkeypatch, "--resume", run_dir, "--total-episodes", 48) == 0  # an eighth is 6 episodes
    assert capsys.readouterr().out.count("likeliest actions, and where") == 6
    monkeypatch.chdir(run_dir)
    assert run_main(monkeypatch, "--evaluate", ".", "--plot") == 0
    monkeypatch.chdir(tmp_path)
    rates = {"--learning-rate": 0.01, "--baseline-learning-rate": 0.02, "--predictor-learning-rate": 0.03}
    flags = ["--total-episodes", 60, "--no-anneal", *(x for pair in rates.items() for x in pair)]
    assert run_main(monkeypatch, "--resume", run_dir, *flags) == 0
    state = torch.load(run_dir / "latest.pt", weights_only=True)
    groups = [*state["optimizer"]["param_groups"], *state["predictor_optimizer"]["param_groups"]]
    assert [group["lr"] for group in groups] == [*rates.values()]


def test_a_run_as_a_user_sees_it(tmp_path):
    done = run_script("reinforce_rnd_maze.py", "--total-episodes", 160, "--plot", "--seed", 3, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    for words in ("device       cpu", "Maze-9-1 x 4, shortest path 14 steps, bonus rnd x 1", "folder       runs/"):
        assert words in done.stdout
    run_dir = only_run(tmp_path)
    assert re.fullmatch(r"Maze-9-1__reinforce_rnd_maze__3__\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", run_dir.name)
    # eight times the policy as arrows and the last trajectory, 10 lines each, and the last line repeats the score
    assert done.stdout.count("likeliest actions, and where the last episode went") == 8
    assert len(re.findall(r"^([↑↓←→■X] ){10}    ([o·■X]( |$)){10}$", done.stdout, re.M)) == 80
    assert re.search(r"goal first reached +after [\d,]+ episodes, [\d,]+ steps\n", done.stdout)
    assert re.search(
        r"score [01]\.\d\d over the last 100 episodes, steps [\d,]+, time 0:\d\d:\d\d, folder", done.stdout
    )
    for name in ("exploration.png", "policy.png", "learning_curve.png"):
        assert (run_dir / name).read_bytes().startswith(b"\x89PNG"), name
    scalars = read_scalars(run_dir)
    assert {
        *("charts/episodic_return", "charts/episodic_length", "charts/success_rate", "charts/SPS", "charts/moved"),
        *("losses/policy_loss", "losses/entropy", "losses/predictor_loss", "losses/grad_norm", "charts/episodes"),
        *("losses/value_loss_int", "losses/value_loss_ext", "rnd/intrinsic_reward", "rnd/cells_visited"),
        *("losses/explained_variance_int", "losses/explained_variance_ext", "rnd/intrinsic_return_std"),
        *("gradients/policy.0.weight", "gradients/baseline.1.weight", "gradients/predictor.1.weight"),
    } <= scalars.keys()
    steps = [step for step, _ in scalars["charts/episodic_return"]]
    assert len(steps) == 40 and steps[-1] > steps[0] > 0
    lengths = [4 * value for _, value in scalars["charts/episodic_length"]]
    np.testing.assert_allclose(np.cumsum(lengths), steps)

    done = run_script("reinforce_rnd_maze.py", "--evaluate", run_dir, "--eval-episodes", 50, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"success [01]\.\d\d \+- 0\.\d\d \(mean, standard error\), length \d+\.\d", done.stdout)
    assert "the shortest is 14" in done.stdout


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, status):
    command = [sys.executable, "-u", str(ROOT / "reinforce_rnd_maze.py"), "--total-episodes", "400"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("episode "):
            break
    process.send_signal(number)
    rest, error = process.communicate(timeout=60)
    assert process.returncode == status and not error
    run_dir = only_run(tmp_path).relative_to(tmp_path)
    assert f"--resume {run_dir}" in rest.splitlines()[-1]
    episode = torch.load(tmp_path / run_dir / "latest.pt", weights_only=True)["progress"]["episode"]
    assert 50 <= episode < 400
    done = run_script("reinforce_rnd_maze.py", "--resume", run_dir, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    state = torch.load(tmp_path / run_dir / "latest.pt", weights_only=True)
    assert state["progress"]["episode"] == 400 == state["curve"][-1][1]


def test_help_names_every_flag():
    done = run_script("reinforce_rnd_maze.py", "--help", cwd=ROOT)
    source = (ROOT / "reinforce_rnd_maze.py").read_text()
    for name in vars(script.Args()):
        assert f"--{name.replace('_', '-')}" in done.stdout
        assert f"args.{name}" in source or f'"{name}"' in source


@pytest.mark.learning
def test_the_bonus_finds_and_keeps_the_far_goal(tmp_path):
    start = time.process_time()
    args = script.Args(goal="9-9", runs_dir=str(tmp_path))
    torch.set_num_threads(1)
    assert script.train(args, "Maze-9-9", CPU, None, None) == 0
    state = torch.load(next(tmp_path.iterdir()) / "latest.pt", weights_only=True)
    step, _, success, path_length = state["curve"][-1]
    assert success >= 0.95 and path_length == 50 and step <= 5e6
    assert time.process_time() - start < 60
