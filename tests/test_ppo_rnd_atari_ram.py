"""ppo_rnd_atari_ram.py: what is not the same text as in ppo_rnd_atari.py, whose tests hold for the rest."""

import dataclasses
import importlib
import pathlib
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    CPU,
    ROOT,
    AtariPool,
    assert_equals_transcription,
    assert_same,
    frame_numbers,
    only_run,
    read_scalars,
    run_script,
    spy,
    train_here,
    watch,
)
from test_house import blocks

import ppo_rnd_atari_ram as script

T, N = 16, 4
MONTEZUMA = "MontezumaRevenge-v5"
DIFFERENT = ["Agent", "Args", "AtariEnvs", "RND", "Rollout", "Run", "check_args", "collect", "empty_rollout"]
DIFFERENT += ["make_evaluation_env", "novelty", "parse", "rnd_layers", "train", "update", "warm_up", "whiten"]
RANKS = {"all_ranks", "join_ranks", "sum_over_ranks"}
WITHOUT_RANKS = {"EpisodeStats", "Progress", "RunningMoments", "main", "restore"}  # as in the scripts that have none


def small_args(**changes) -> script.Args:
    """Two minibatches and one pass over each rollout of 64 steps."""
    values = {"env_id": MONTEZUMA, "num_envs": N, "num_steps": T, "num_minibatches": 2, "update_epochs": 1}
    return script.Args(**values | {"warmup_rollouts": 1, "total_timesteps": 64, "checkpoint_interval": 1e6} | changes)


def test_only_ram_screen_networks_and_defaults_differ_from_the_pixels_script():
    """And that one has ranks, and presets: these defaults are its `--preset small`."""
    ours, theirs = (blocks(ROOT / f"{name}.py") for name in ("ppo_rnd_atari_ram", "ppo_rnd_atari"))
    assert ours.keys() == theirs.keys() - RANKS - {"features"}  # which takes large frames in pieces
    assert {name for name in ours if ours[name] != theirs[name]} == {*DIFFERENT} | WITHOUT_RANKS
    pixels_script = importlib.import_module("ppo_rnd_atari")
    pixels = {field.name for field in dataclasses.fields(pixels_script.Args)}
    assert {field.name for field in dataclasses.fields(script.Args)} == pixels - {"preset"}
    theirs = dataclasses.asdict(pixels_script.Args(**pixels_script.PRESETS["small"])) | {"total_timesteps": 25_000_000}
    del theirs["preset"]
    assert dataclasses.asdict(script.Args()) == theirs


# ------------------------------------------------------------------------------------------------ Environment


def grey(env) -> np.ndarray:
    """The console's screen as ale-py draws it in grey (210, 160) uint8."""
    screen = np.empty((210, 160), np.uint8)
    env.unwrapped.ale.getScreenGrayscale(screen)
    return screen


def blocks_of_pixels(screen: np.ndarray) -> np.ndarray:
    """Means over 10 x 8 pixels (21, 20), before rounding."""
    return screen.reshape(21, 10, 20, 8).astype(float).mean((1, 3))


@pytest.mark.parametrize("game", ["MontezumaRevenge-v5", "Pitfall-v5", "Venture-v5"])
def test_ale_py_has_the_ram_and_the_screen_that_envpool_gives(game):
    """Equal actions, equal RAM, before and after each step; the frame is the mean of the last two raw ones' maximum."""
    args = script.Args(env_id=game, num_envs=1, sticky_actions=0.0)
    envs, env = script.AtariEnvs(args, [3]), script.make_evaluation_env(args)
    raw = script.make_evaluation_env(args).unwrapped  # the same game, frame by frame
    ours, (theirs, _) = envs.reset(), env.reset(seed=0)
    raw.reset(seed=0)
    raw.ale.act(0)  # the no-op at the start
    assert ours.shape == (1, 2, 128) and ours.dtype == theirs.dtype == np.uint8
    np.testing.assert_array_equal(ours[0], theirs)
    np.testing.assert_array_equal(ours[0, 0], ours[0, 1])
    rng = np.random.default_rng(0)
    for step in range(200):
        action = int(rng.integers(envs.num_actions))
        before = ours
        ours, frames, reward, done, valid = envs.step(np.array([action]))
        theirs, plain_reward, terminated, _, _ = env.step(action)
        assert done[0] == terminated and reward[0] == np.sign(plain_reward) and valid[0]
        if done[0]:
            break
        np.testing.assert_array_equal(ours[0], theirs, err_msg=f"step {step}")
        np.testing.assert_array_equal(ours[0, 0], before[0, 1])
        shown = []
        for _ in range(4):
            raw.ale.act(raw._action_set[action])
            shown.append(grey(raw))
        np.testing.assert_array_equal(raw.ale.getRAM(), ours[0, 1])
        assert frames.shape == (1, 21, 20) and frames.dtype == np.uint8
        expected = blocks_of_pixels(np.maximum(shown[2], shown[3]))
        assert np.abs(frames[0] - expected).max() <= 1
    assert step > 50


def test_after_a_reset_nothing_is_left_of_the_episode_before(atari_pool):
    envs = script.AtariEnvs(small_args(num_envs=2), [0, 1])
    before = envs.reset()
    for _ in range(14):
        obs, frames, rewards, done, valid = envs.step(np.zeros(2, int))
        shown = envs.pool.log[-1]
        np.testing.assert_array_equal(obs[:, 1], shown["ram"])
        np.testing.assert_array_equal(frames, shown["frame"])
        np.testing.assert_array_equal(valid, shown["valid"])
        np.testing.assert_array_equal(rewards, np.sign(shown["reward"]))
        np.testing.assert_array_equal(done, shown["done"])
        for i in range(2):
            np.testing.assert_array_equal(obs[i, 0], before[i, 1] if valid[i] else shown["ram"][i])
        before = obs
    assert not all(step["valid"].all() for step in envs.pool.log)


def test_constants_read_back_from_envpool():
    envs = script.AtariEnvs(small_args(num_envs=2), [1, 2])
    config = envs.pool.spec.config
    expected = {"stack_num": 1, "frame_skip": 4, "max_episode_steps": 4500, "repeat_action_probability": 0.25}
    expected |= {"episodic_life": False, "use_fire_reset": False, "noop_max": 1, "reward_clip": False}
    expected |= {"img_height": 21, "img_width": 20, "gray_scale": True, "use_inter_area_resize": True}
    expected |= {"full_action_space": False}
    found = {name: getattr(config, name) for name in expected}
    found["repeat_action_probability"] = round(found["repeat_action_probability"], 6)
    assert found == expected


# --------------------------------------------------------------------------------------------------- Networks


def plain_bits(obs: np.ndarray) -> np.ndarray:
    """RAM (B, 2, 128) uint8 -> its bits (B, 2048), the lowest of each byte first."""
    return np.unpackbits(obs, axis=-1, bitorder="little").reshape(len(obs), -1)


def lean_agent(p: dict, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two layers on the bits, a residual branch and a head each for policy and values."""
    x = torch.from_numpy(plain_bits(obs.numpy())).float()
    for name in ("trunk.0", "trunk.2"):
        x = F.relu(x @ p[f"{name}.weight"].T + p[f"{name}.bias"])
    policy = x + F.relu(x @ p["policy_branch.weight"].T + p["policy_branch.bias"])
    value = x + F.relu(x @ p["value_branch.weight"].T + p["value_branch.bias"])
    heads = [(policy, "policy_head"), (value, "value_head")]
    return tuple(h @ p[f"{name}.weight"].T + p[f"{name}.bias"] for h, name in heads)


def lean_rnd(p: dict, name: str, x: torch.Tensor) -> torch.Tensor:
    """Target or predictor."""
    for layer in (0, 2, 4):
        x = x @ p[f"{name}.{layer}.weight"].T + p[f"{name}.{layer}.bias"]
        x = torch.where(x > 0, x, 0.2 * x) if layer < 4 else x
    if name == "predictor":
        for layer in (6, 8):
            x = x.clamp(min=0) @ p[f"{name}.{layer}.weight"].T + p[f"{name}.{layer}.bias"]
    return x


def test_networks_equal_their_description():
    torch.manual_seed(0)
    agent, rnd = script.Agent(18, 2), script.RND(4, CPU)
    obs = torch.randint(256, (3, 2, 128), dtype=torch.uint8)
    with torch.no_grad():
        for ours, plain in zip(agent(obs), lean_agent(agent.state_dict(), obs), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-6)
        x = torch.randn(3, 420)
        for name in ("target", "predictor"):
            plain = lean_rnd(rnd.state_dict(), name, x)
            assert plain.shape == (3, 256)
            torch.testing.assert_close(getattr(rnd, name)(x), plain, rtol=1e-4, atol=1e-5)


def test_weights_are_orthogonal_with_the_reference_s_gains():
    agent, rnd = script.Agent(18, 2), script.RND(4, CPU)
    gains = {agent.policy_branch: 0.1, agent.value_branch: 0.1, agent.policy_head: 0.01, agent.value_head: 0.01}
    layers = [m for part in (agent, rnd) for m in part.modules() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 6 + 3 + 5
    for layer in layers:
        w = layer.weight.detach()
        w = w if w.shape[0] <= w.shape[1] else w.T
        expected = gains.get(layer, 2**0.5) ** 2 * torch.eye(len(w))
        torch.testing.assert_close(w @ w.T, expected, rtol=1e-4, atol=1e-4 * expected.max().item())
        assert (layer.bias == 0).all()


def test_novelty_is_the_mean_squared_error_of_whitened_screens():
    torch.manual_seed(0)
    rnd = script.RND(3, CPU)
    frames = torch.randint(256, (400, 3, 21, 20), dtype=torch.uint8)[::50]  # (8, 3), not contiguous
    rnd.obs_rms.update(frames.flatten(0, 1), torch.ones(24, dtype=torch.bool))
    deviation = frames.flatten(0, 1).double() - rnd.obs_rms.mean
    x = (deviation / rnd.obs_rms.var.sqrt()).clamp(-5, 5).float().flatten(1)
    weights = rnd.state_dict()
    with torch.no_grad():
        expected = (lean_rnd(weights, "predictor", x) - lean_rnd(weights, "target", x)).square().mean(1).view(8, 3)
    torch.testing.assert_close(script.novelty(rnd, frames), expected, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------------- The steps of the algorithm


@pytest.fixture(scope="module", params=[True, False], ids=["shuffle", "no-shuffle"])
def watched(request, tmp_path_factory):
    args = small_args(shuffle=request.param, update_epochs=3, update_proportion=1.0, total_timesteps=2 * T * N)
    return watch(script, args, tmp_path_factory.mktemp("watched"))


def test_the_policy_acts_on_the_ram_that_the_environments_had_last(watched):
    shown, expected = [step[2] for step in watched.steps], []
    for k in (1, 2):  # 16 steps each, after 16 of warm-up
        expected += shown[T * k - 1 : T * (k + 1)]
        expected += shown[T * (k + 1) - 1 :][:1]  # once more for the largest logit
    assert len(watched.acted) == len(expected) == 2 * (T + 2)
    assert all(np.array_equal(a, b) for a, b in zip(watched.acted, expected, strict=True))


def plain_white(frames: np.ndarray, mean: np.ndarray, var: np.ndarray, _count: float) -> torch.Tensor:
    return torch.from_numpy(np.clip((frames - mean) / np.sqrt(var), -5, 5)).flatten(1)


def test_the_predictor_learns_from_its_share(atari_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "predictor_subset", spy(script.predictor_subset, calls := []))
    run = train_here(script, small_args(update_proportion=0.25), tmp_path)
    assert [size for (_, size), _ in calls] == [8, 8]
    ends = sum(step["done"].sum() for step in AtariPool.log[T:])
    assert len(torch.load(run / "latest.pt", weights_only=True)["stats"]["recent"]) == ends


def test_one_iteration_equals_a_plain_transcription(watched):
    """With this script's defaults: random minibatches, normalised advantages, 2.5e-4, the agent's gradient clipped."""
    args, (norm, _) = watched.args, watched.scalars["losses/grad_norm"]
    assert args.norm_adv and args.learning_rate == 2.5e-4
    assert norm[1] > args.max_grad_norm == 0.5  # so that the clip is tested
    assert_equals_transcription(script, watched, lean_agent, lean_rnd, plain_white)


def test_rnd_sees_the_frame_after_the_step_and_never_a_reset(atari_pool, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "novelty", spy(script.novelty, rewarded := []))
    monkeypatch.setattr(script.RunningMoments, "update", spy(script.RunningMoments.update, moments := []))
    train_here(script, small_args(total_timesteps=2 * T * N), tmp_path)
    log = AtariPool.log
    seen = [frame_numbers(frames[t]) for (_, frames), _ in rewarded for t in range(T)]
    assert seen == [frame_numbers(step["frame"]) for step in log[T:]]
    counted = [frame_numbers(batch[valid]) for (_, batch, valid), _ in moments if batch.ndim == 3]
    assert counted == [frame_numbers(step["frame"][step["valid"]]) for step in log]
    assert not all(step["valid"].all() for step in log)


# ---------------------------------------------------------------------------------------- Training, evaluation


def weights(run_dir: pathlib.Path) -> dict:
    return torch.load(run_dir / "latest.pt", weights_only=True)


def test_same_seed_same_run_and_another_seed_another(tmp_path):
    """With EnvPool's own game."""
    states = [weights(train_here(script, small_args(seed=s), tmp_path / f"{k}")) for k, s in enumerate((1, 1, 2))]
    for name in ("agent", "rnd", "rng"):
        assert_same(states[0][name], states[1][name])
    assert not torch.equal(*(state["agent"]["trunk.2.weight"] for state in states[1:]))


def test_resume_restores_the_learner_bit_for_bit(atari_pool, tmp_path, monkeypatch):
    path = train_here(script, small_args(total_timesteps=128), tmp_path) / "latest.pt"
    before = torch.load(path, weights_only=True)
    reset = script.AtariEnvs.reset
    monkeypatch.setattr(script.AtariEnvs, "reset", lambda envs: signal.raise_signal(signal.SIGTERM) or reset(envs))
    torch.manual_seed(123)
    args = small_args(total_timesteps=192)
    train_here(script, args, path.parents[1], *script.load_checkpoint(str(path)), status=143)
    assert_same(before, torch.load(path, weights_only=True), but=("seconds", "args"))
    assert before["optimizer"]["state"][0]["step"] == 2 * 2 and before["step"] == 128


def test_a_run_as_a_user_sees_it(tmp_path):
    """Trains and evaluates in processes of their own."""
    small = ["--num-envs", 4, "--num-steps", 16, "--num-minibatches", 2, "--warmup-rollouts", 1]  # 64 steps a rollout
    out = run_script("ppo_rnd_atari_ram.py", *small, "--total-timesteps", 128, cwd=tmp_path)
    assert out.returncode == 0 and out.stderr == "", out.stderr
    run_dir = only_run(tmp_path)
    assert run_dir.name.startswith("MontezumaRevenge-v5__ppo_rnd_atari_ram__1__")
    assert [step for step, _ in read_scalars(run_dir)["losses/entropy"]] == [64, 128]
    flags = ["--evaluate", run_dir, "--eval-episodes", 2, "--capture-video", "--max-episode-steps", 40]
    played = run_script("ppo_rnd_atari_ram.py", *flags, cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    last = played.stdout.splitlines()[-1]
    assert last == "return 0.0 +- 0.0 (mean, standard error), best 0, rooms 1.0, most 1"
    assert len([*(run_dir / "videos").iterdir()]) == 2
