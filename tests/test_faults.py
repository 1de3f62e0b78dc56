"""What every script does when something goes wrong: signals, consoles, clocks, other processes, damaged checkpoints.

Most of it is tried in this process, with Atari's emulators replaced (conftest.AtariPool); what only an operating
system can do to a run is tried on processes of their own. The maze's runs last half a minute: they are not resumed.
"""

import contextlib
import importlib
import importlib.util
import math
import os
import pathlib
import pty
import random
import resource
import shlex
import shutil
import signal
import sys
import termios
import threading
import time
from collections.abc import Iterator

import gymnasium as gym
import numpy as np
import pytest
import torch
from conftest import (
    ROOT,
    SCRIPTS,
    AtariPool,
    assert_same,
    call_main,
    only_run,
    read_scalars,
    run_script,
    start_script,
    wait_for,
)

MAZE, FAST = "reinforce_rnd_maze", "ppo_rnd_minigrid"
HEAVY = "snd_atari"  # its networks are large, and what it does here is the same text (test_house.py): some tests
LIGHT = [name for name in SCRIPTS if name != HEAVY]
RESUMABLE = [name for name in LIGHT if name != MAZE]  # light, and can be resumed
GRID = ["--env-id", "DoorKey-5x5", "--num-envs", 4, "--num-steps", 8]
ATARI = ["--num-envs", 4, "--num-steps", 8, "--num-minibatches", 1, "--update-epochs", 1, "--warmup-rollouts", 0]
SMALL = {  # 32 steps a rollout
    "a2c_rnd_doorkey": [*GRID, "--log-interval", 1],
    "dqn_rnd_atari": [
        *("--obs", "ram", "--num-envs", 4, "--num-steps", 8, "--learning-starts", 8, "--buffer-size", 400),
        *("--batch-size", 8, "--log-interval", 1),
    ],
    "ppo_rnd_atari": ATARI,
    "ppo_rnd_atari_ram": ATARI,
    "ppo_rnd_continuous": ["--env-id", "InvertedPendulum", "--num-envs", 4, "--num-steps", 8, "--num-minibatches", 2],
    "ppo_rnd_minigrid": [*GRID, "--num-minibatches", 2],
    "reinforce_rnd_maze": ["--goal", "2-2", "--max-episode-steps", 20],
    "snd_atari": [*ATARI, "--target-batch", 8, "--rnd-epochs", 1],
}


def flags(name: str, rollouts: int) -> list:
    """Those of a small run of so many rollouts."""
    total = ["--total-episodes", 4 * rollouts] if name == MAZE else ["--total-timesteps", 32 * rollouts]
    return [*SMALL[name], "--device", "cpu", *total]


def more(name: str, rollouts: int) -> list:
    """The flags that let it go on after a resume, until it has had so many."""
    return ["--total-timesteps", 32 * rollouts]


@pytest.fixture
def script(request, monkeypatch, tmp_path):
    """The script's module; the test is in an empty folder."""
    monkeypatch.chdir(tmp_path)
    if "atari" in request.param:
        request.getfixturevalue("atari_pool")
        monkeypatch.setattr(AtariPool, "num_actions", 18)
    return importlib.import_module(request.param)


def of(names: list[str]):
    return pytest.mark.parametrize("script", names, indirect=True)


@pytest.fixture
def run_dir(script, tmp_path) -> pathlib.Path:
    """A finished run of two rollouts in tmp_path/runs."""
    assert script.main([*map(str, flags(script.__name__, 2))]) == 0
    return only_run(tmp_path)


@pytest.fixture
def call(script, capsys):
    """main() of the script with these flags: exit status, stdout, stderr."""
    return lambda *flags: call_main(script, capsys, *flags)


def load(path: pathlib.Path) -> dict:
    return torch.load(path, weights_only=True)


def contents(folder: pathlib.Path) -> dict[str, bytes]:
    """Of all files there."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_one_line(errors: str) -> bool:
    return errors.startswith("error: ") and errors.count("\n") == 1 and len(errors) < 500


# --------------------------------------------------------------------------- Signals, consoles, clocks, in this process


def after_log(script, monkeypatch, act) -> None:
    """Lets act(run) happen once, when a run has logged its first rollout."""
    log, done = script.Run.log, []

    def wrapped(self, *args):
        log(self, *args)
        if not done:
            done.append(1)
            act(self)

    monkeypatch.setattr(script.Run, "log", wrapped)


@of(["dqn_rnd_atari", "ppo_rnd_atari_ram", "ppo_rnd_continuous", "ppo_rnd_minigrid"])
def test_numbers_that_a_cpu_is_slow_with_are_0_in_training(script, call, monkeypatch):
    if not torch.set_flush_denormal(False):
        pytest.skip("this CPU cannot")
    tiny, seen = torch.tensor(1.2e-38), []
    assert tiny / 2 > 0
    after_log(script, monkeypatch, lambda run: seen.append(tiny.item() > 0 and tiny / 2 == 0))
    status, _, errors = call(*flags(script.__name__, 2))
    assert (status, errors, seen) == (0, "", [True])


@of(SCRIPTS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_says_how_to_go_on_and_leaves_no_trace(script, call, monkeypatch, tmp_path, number):
    name = script.__name__
    if name == MAZE and number != signal.SIGINT:
        pytest.skip("short runs have Python's own handlers")
    after_log(script, monkeypatch, lambda run: os.kill(os.getpid(), number))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    threads = 1 if name in ("ppo_rnd_atari", "snd_atari") else 2  # these two keep them, and on busy cores two are slow
    torch.set_num_threads(threads)
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    traces = before, threads, sys.stdout, sys.stderr
    status, out, errors = call(*flags(name, 1000), "--runs-dir", "sp ace")
    assert status == 128 + number and errors == ""
    now = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    assert (now, torch.get_num_threads(), sys.stdout, sys.stderr) == traces
    (folder,) = pathlib.Path("sp ace").iterdir()
    state = load(folder / "latest.pt")
    assert 0 < state["step"] < 1000
    _, command = out.splitlines()[-1].split(": ", 1)
    start = ["python", sys.argv[0], "--evaluate" if name == MAZE else "--resume", str(folder)]
    assert shlex.split(command) == start
    if name != MAZE and number == signal.SIGINT:
        status, out, _ = call("--resume", folder, *more(name, 8))
        assert status == 0 and load(folder / "latest.pt")["step"] == 256


@of(RESUMABLE)
def test_a_nohup_d_run_stays_when_the_terminal_goes(script, call, monkeypatch):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    after_log(script, monkeypatch, lambda run: os.kill(os.getpid(), signal.SIGHUP))
    assert call(*flags(script.__name__, 2))[0] == 0
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN


class Broken:
    """A stream whose reader has gone after a line."""

    encoding, lines = "ascii", 0

    def write(self, text: str) -> int:
        self.lines += text.count("\n")
        if self.lines > 1:
            raise BrokenPipeError(32, "Broken pipe")
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise ValueError


@of(LIGHT)
@pytest.mark.parametrize("stream", ["broken", "shut", "full"])
def test_the_console_is_never_worth_a_run(script, monkeypatch, tmp_path, stream):
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        for name in ("stdout", "stderr"):
            patch.setattr(sys, name, {"broken": Broken(), "shut": None, "full": full}[stream])
        status = script.main([*map(str, flags(script.__name__, 2))])
    assert status == 0 and (only_run(tmp_path) / "latest.pt").exists()


@of(LIGHT)
def test_durations_do_not_go_by_the_wall_clock(script, call, monkeypatch, tmp_path):
    clock = time.time

    def set_back(run) -> None:
        monkeypatch.setattr(time, "time", lambda: clock() - 3600)

    after_log(script, monkeypatch, set_back)
    interval = [] if script.__name__ == MAZE else ["--checkpoint-interval", 1e-9]
    status, out, _ = call(*flags(script.__name__, 3), *interval)
    assert status == 0 and "-1 day" not in out and " in 00:" in out
    assert 0 < load(only_run(tmp_path) / "latest.pt")["seconds"] < 60
    assert all(value > 0 for _, value in read_scalars(only_run(tmp_path))["charts/SPS"])


@of(LIGHT)
def test_in_a_notebook_in_a_thread_and_without_a_file(script, monkeypatch, tmp_path):
    argv, name = [*map(str, flags(script.__name__, 1))], script.__name__
    namespace, statuses = {"__name__": "notebook"}, []
    monkeypatch.setitem(sys.modules, "notebook", type(sys)("notebook"))  # a dataclass looks for its module
    exec(compile((ROOT / f"{name}.py").read_text(), "<cell>", "exec"), namespace)
    thread = threading.Thread(target=lambda: statuses.append(namespace["main"](argv)))
    thread.start()
    thread.join()
    assert statuses == [0]
    assert "__notebook__" in only_run(tmp_path).name


@of(LIGHT)
def test_home_is_meant_by_a_tilde(script, call, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert call(*flags(script.__name__, 1), "--runs-dir=~/x")[0] == 0
    (folder,) = (tmp_path / "home" / "x").iterdir()
    assert [p.name for p in tmp_path.iterdir()] == ["home"]
    assert call("--evaluate", f"~/x/{folder.name}", *few(script))[0] == 0


def few(script) -> list:
    """Flags of a short evaluation."""
    return ["--eval-episodes", 2, *(["--max-episode-steps", 9] if hasattr(script.Args, "max_episode_steps") else [])]


@of(LIGHT)
def test_a_variable_that_is_not_set_starts_no_run(script, call, tmp_path):
    for flag in ["--evaluate"] if script.__name__ == MAZE else ["--evaluate", "--resume"]:
        status, _, errors = call(flag, "")
        assert status == 2 and is_one_line(errors) and not [*tmp_path.iterdir()]


@of(SCRIPTS)
def test_what_goes_to_infinity_is_one_line_and_is_not_saved(script, call, tmp_path):
    status, _, errors = call(*flags(script.__name__, 9), "--learning-rate", 1e30)
    assert status == 1 and is_one_line(errors) and "stopped" in errors
    assert not [*tmp_path.rglob("*.pt*")]


@of(SCRIPTS)
def test_what_does_not_fit_the_memory_is_one_line(script, call, tmp_path):
    total = ["--total-episodes", 2**31 - 1] if script.__name__ == MAZE else ["--total-timesteps", 1e15]
    huge = [*flags(script.__name__, 1)[:-2], *total, "--num-envs", 2**31 - 4]
    status, _, errors = call(*huge)
    assert status in (1, 2) and is_one_line(errors) and not [*tmp_path.iterdir()]


@of(SCRIPTS)
def test_nothing_to_learn_from_and_torchrun_where_there_are_no_ranks(script, call, monkeypatch, tmp_path):
    status, _, errors = call(*flags(script.__name__, 1), "--int-coef", 0, "--ext-coef", 0)
    assert status == 2 and is_one_line(errors)
    if not hasattr(script, "RANKS"):
        monkeypatch.setenv("WORLD_SIZE", "2")
        status, _, errors = call(*flags(script.__name__, 1))
        assert status == 2 and is_one_line(errors) and "torchrun" in errors
    assert not [*tmp_path.iterdir()]


# ------------------------------------------------------------------------------------------ Folders and checkpoints


@of(LIGHT)
def test_two_runs_have_two_folders_and_temporary_files_bear_the_process(script, call, monkeypatch, tmp_path):
    replaced, replace = [], pathlib.Path.replace
    monkeypatch.setattr(pathlib.Path, "replace", lambda self, to: replaced.append(self.name) or replace(self, to))
    for _ in range(2):
        assert call(*flags(script.__name__, 1))[0] == 0
    assert len([*pathlib.Path("runs").iterdir()]) == 2
    assert replaced == [f"latest.pt.{os.getpid()}.tmp"] * 2
    names = {p.name.split(".")[0] for p in tmp_path.rglob("*") if p.is_file()}
    assert script.__name__ in names
    assert names <= {"latest", "events", "lock", script.__name__}


@of(LIGHT)
def test_a_full_disk_is_one_line_and_leaves_no_half_file(script, call, monkeypatch, tmp_path):
    def full(_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    status, _, errors = call(*flags(script.__name__, 1))
    assert status == 1 and is_one_line(errors) and "No space left on device" in errors
    assert not [*tmp_path.rglob("*.pt*")]


@of(SCRIPTS)
def test_evaluation_needs_nothing_that_only_training_needs(script, run_dir, call, monkeypatch):
    state = load(run_dir / "latest.pt")
    only = {"device": "cuda", "track": True, "plot": True}
    state["args"] |= {flag: value for flag, value in only.items() if flag in state["args"]}
    torch.save(state, "from_a_gpu.pt")
    before = {p: p.stat().st_mtime_ns for p in run_dir.iterdir()}
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("PATH", "")
    status, out, errors = call("--evaluate", "from_a_gpu.pt", *few(script))
    assert status == 0 and "Traceback" not in errors and ("+-" in out or script.__name__ == MAZE)
    assert {p: p.stat().st_mtime_ns for p in run_dir.iterdir()} == before


@of(RESUMABLE)
def test_neighbouring_seeds_are_evaluated_on_other_episodes(script, run_dir, call, monkeypatch):
    seeds, make = [], gym.make

    class Short(gym.Wrapper):
        def reset(self, *, seed=None, options=None):
            seeds.extend([] if seed is None else [seed])
            return super().reset(seed=seed, options=options)

        def step(self, action):
            obs, reward, _, _, info = super().step(action)
            return obs, reward, True, False, info

    monkeypatch.setattr(gym, "make", lambda *args, **kwargs: Short(make(*args, **kwargs)))
    for seed in (1, 2):
        assert call("--evaluate", run_dir, "--eval-episodes", 5, "--seed", seed)[0] == 0
    assert len(set(seeds)) == 10


WANDB = """
def init(**flags):
    print({key: flags[key] for key in ("id", "resume", "name")})


def finish():
    print("finished")
"""


@of(RESUMABLE)
def test_a_resumed_run_goes_on_in_the_same_run_of_weights_and_biases(script, call, monkeypatch, tmp_path):
    (tmp_path / "stand_in").mkdir()
    (tmp_path / "stand_in" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "stand_in")
    monkeypatch.setitem(sys.modules, "wandb", None)  # so that afterwards it is as it was, also if it was not there
    del sys.modules["wandb"]
    outputs = [call(*flags(script.__name__, 1), "--track")[1]]
    folder = only_run(tmp_path)
    outputs.append(call("--resume", folder, *more(script.__name__, 2))[1])
    for out in outputs:
        assert str({"id": folder.name, "resume": "allow", "name": folder.name}) in out and "\nfinished\n" in out


@of(LIGHT)
def test_a_copy_of_the_script_opens_the_original_s_runs(script, run_dir, capsys, tmp_path):
    shutil.copy(ROOT / f"{script.__name__}.py", tmp_path / "my_copy.py")
    spec = importlib.util.spec_from_file_location("my_copy", tmp_path / "my_copy.py")
    mine = importlib.util.module_from_spec(spec)
    sys.modules["my_copy"] = mine
    spec.loader.exec_module(mine)
    assert call_main(mine, capsys, "--evaluate", run_dir, *few(script))[0] == 0
    if script.__name__ != MAZE:
        assert call_main(mine, capsys, "--resume", run_dir, *more(script.__name__, 3))[0] == 0
        assert load(run_dir / "latest.pt")["step"] == 96


@of(LIGHT)
def test_flags_of_other_versions_are_named(script, run_dir, call):
    state = load(run_dir / "latest.pt")
    del state["args"]["int_coef"]
    state["args"]["colour"] = "red"
    torch.save(state, "other.pt")
    status, out, _ = call("--evaluate", "other.pt", *few(script))
    assert status == 0
    if script.__name__ != MAZE:  # which needs only the goal and the time limit
        assert "differs in the flags colour, int_coef\n" in out


@of(RESUMABLE)
def test_a_resume_of_another_than_the_latest_goes_on_in_a_folder_of_its_own(script, run_dir, call):
    latest, best = run_dir / "latest.pt", run_dir / "best.pt"
    torch.save(load(latest) | {"step": 32}, best)
    before, folders = contents(run_dir), set(run_dir.parent.iterdir())
    status, _, _ = call("--resume", best, *more(script.__name__, 2))
    (folder,) = set(run_dir.parent.iterdir()) - folders
    assert status == 0 and load(folder / "latest.pt")["step"] == 64 and contents(run_dir) == before
    assert [step for step, _ in read_scalars(folder)["losses/entropy"]] == [64]


@of(RESUMABLE)
def test_changed_flags_are_said_and_a_whole_run_is_not_resumed(script, run_dir, call):
    status, _, errors = call("--resume", run_dir)
    assert status == 2 and is_one_line(errors) and "ask for more with --total-timesteps" in errors
    status, out, _ = call("--resume", run_dir, *more(script.__name__, 3), "--gamma", 0.5)
    assert status == 0 and "--gamma from " in out and "--total-timesteps from 64 to 96" in out


def damaged(state: dict) -> Iterator[tuple[str, dict]]:
    """Checkpoints in which a part is missing or something else."""
    for key in state.keys() & {"args", "agent", "rnd", "snd", "optimizer"}:
        yield f"without {key}", {k: v for k, v in state.items() if k != key}
        yield f"{key} a number", state | {key: 3}


@of(LIGHT)
def test_a_checkpoint_in_which_a_part_is_wrong_is_one_line(script, run_dir, call):
    action = ["--evaluate"] if script.__name__ == MAZE else [*more(script.__name__, 3), "--resume"]
    path, wrong = run_dir / "altered.pt", []
    for what, state in damaged(load(run_dir / "latest.pt")):
        torch.save(state, path)
        try:
            status, _, errors = call(*action, path)
        except Exception as error:
            status, errors = 1, repr(error)
        fine = status == 0 and script.__name__ == MAZE  # it does not read all
        if not fine and (status != 2 or not is_one_line(errors)):
            wrong.append(f"{what}: {status} {errors[:150]}")
    assert not wrong, "\n".join(wrong)


@of(RESUMABLE)
def test_a_resume_has_the_best_score_the_flags_given_anew_and_other_seeds(script, run_dir, call, monkeypatch):
    path = run_dir / "latest.pt"
    torch.save(load(path) | {"best_score": 7.0}, path)
    drawn, sequence = [], np.random.SeedSequence
    monkeypatch.setattr(np.random, "SeedSequence", lambda *a, **k: drawn.append(a) or sequence(*a, **k))
    both = hasattr(script.Args, "predictor_learning_rate")
    rate = ["--predictor-learning-rate" if both else "--learning-rate", 3e-3]
    status, _, errors = call("--resume", run_dir, *more(script.__name__, 4), "--num-envs", 8, *rate)
    assert status == 0, errors
    state = load(path)
    assert state["best_score"] == 7.0 and len(state["rnd"]["filtered"]) == 8
    assert state["optimizer"]["param_groups"][-1]["lr"] == 3e-3
    assert drawn[0] == ((1, 64),)


@of(RESUMABLE)
def test_the_best_checkpoint_wants_a_hundred_episodes(script, call, monkeypatch, tmp_path):
    scores = iter([[0.0] * 99, [5.0], [-1.0] * 50])
    monkeypatch.setattr(script.EpisodeStats, "scalars", lambda self, *_: self.recent.extend(next(scores)) or {})
    seen, run_save = [], script.Run.save

    def save(self, now=False):
        run_save(self, now)
        best = self.folder / "best.pt"
        seen.append(load(best)["step"] if best.exists() else None)

    monkeypatch.setattr(script.Run, "save", save)
    assert call(*flags(script.__name__, 3), "--checkpoint-interval", 0)[0] == 0
    assert seen == [None, 64, 64, 64] and load(only_run(tmp_path) / "latest.pt")["best_score"] == 0.05


@of(LIGHT)
def test_a_flipped_bit_and_a_cut_are_noticed(script, run_dir, call):
    path, rng = run_dir / "latest.pt", random.Random(0)
    whole, state = path.read_bytes(), load(path)
    size = len(whole)
    places = [rng.randrange(size) for _ in range(6)]
    places += [rng.randrange(2000) for _ in range(12)] + [size - 1 - rng.randrange(2000) for _ in range(12)]
    read = script.load_agent if script.__name__ == MAZE else script.load_checkpoint
    for place in places:
        other = bytearray(whole)
        other[place] ^= 1 << rng.randrange(8)
        path.write_bytes(other)
        try:
            read(str(path))
        except script.UserError as error:
            assert "\n" not in str(error)
        else:
            assert_same(load(path), state)  # a date in the archive, say
    for keep in (0, 1, size // 2, size - 1):
        path.write_bytes(whole[:keep])
        with pytest.raises(script.UserError):
            read(str(path))
    path.write_bytes(whole[: size // 2] + b"\xff" * 64 + whole[size // 2 + 64 :])
    status, _, errors = call("--evaluate", path)
    assert status == 2 and is_one_line(errors)


# ------------------------------------------------------------------------------------------ Processes of their own


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_run_goes_on_when_its_reader_has_gone_and_stops_at_ctrl_c(name, tmp_path):
    """`| head -3`, then Ctrl-C; on a console that knows only ASCII. A live run cannot be resumed."""
    ascii_only = {**os.environ, "PYTHONIOENCODING": "ascii"}
    often = [] if name == MAZE else ["--checkpoint-interval", 0]
    with start_script(f"{name}.py", *flags(name, 10**5), *often, cwd=tmp_path, stderr=-2, env=ascii_only) as process:
        for _ in range(3):
            assert process.stdout.readline()
        process.stdout.close()
        files = lambda: [*tmp_path.glob("runs/*/*tfevents*" if name == MAZE else "runs/*/latest.pt")]  # noqa: E731
        (path,) = wait_for(files, 150)
        time.sleep(0.5)
        stamp = path.stat()
        wait_for(lambda: (path.stat().st_mtime_ns, path.stat().st_size) != (stamp.st_mtime_ns, stamp.st_size), 150)
        if name == FAST:
            process.send_signal(signal.SIGSTOP)
            again = run_script(f"{name}.py", "--resume", path.parent, cwd=tmp_path)
            process.send_signal(signal.SIGCONT)
            assert again.returncode == 2 and is_one_line(again.stderr) and "a run that is going on" in again.stderr
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(60) == 130
    latest = path.parent / "latest.pt"
    state = load(latest)
    assert state["step"] > 0 and not [*path.parent.glob("*.tmp")]


def test_a_terminal_that_is_closed_saves_the_run(tmp_path):
    command = [sys.executable, str(ROOT / f"{FAST}.py"), *map(str, flags(FAST, 10**5)), "--checkpoint-interval", "0"]
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        os.chdir(tmp_path)
        os.execv(command[0], command)
    try:
        termios.tcsetwinsize(terminal, (24, 80))
        os.set_blocking(terminal, False)
        shown = []

        def saved() -> list[pathlib.Path]:
            with contextlib.suppress(BlockingIOError):
                shown.append(os.read(terminal, 10**6))
            return [*tmp_path.glob("runs/*/latest.pt")]

        (path,) = wait_for(saved)
        assert b"%|" in b"".join(shown)  # the bar
        os.close(terminal)  # the kernel sends SIGHUP
        _, status = wait_for(lambda: (ended := os.waitpid(pid, os.WNOHANG)) != (0, 0) and ended)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(status) == 129
    state = load(path)
    assert state["step"] > 0 and state["args"]["num_envs"] == 4


def test_a_run_without_stdout_and_stderr(tmp_path):
    def shut() -> None:
        os.close(1)
        os.close(2)

    pipes = {"capture_output": False, "preexec_fn": shut}
    assert run_script(f"{FAST}.py", *flags(FAST, 2), cwd=tmp_path, **pipes).returncode == 0
    assert load(only_run(tmp_path) / "latest.pt")["step"] == 64


def kill_and_resume(tmp_path: pathlib.Path, times: int) -> None:
    """A run that saves after every rollout is killed at random moments; it always goes on from a whole checkpoint."""
    rng, before = random.Random(0), 0
    now = [*flags(FAST, 10**5), "--checkpoint-interval", 0]
    for _ in range(times):
        with start_script(f"{FAST}.py", *now, cwd=tmp_path) as process:
            saved = lambda: [p for p in tmp_path.glob("runs/*/latest.pt") if load(p)["step"] > before]  # noqa: E731, B023
            (path,) = wait_for(saved, 120)
            time.sleep(rng.uniform(0, 1))
            process.kill()
        step = load(path)["step"]
        assert step > before
        before, now = step, ["--resume", path.parent]
    steps = [step for step, _ in read_scalars(path.parent)["losses/entropy"]]
    assert steps == sorted(set(steps)) and steps[-1] >= before and np.diff(steps).max() == 32


def test_killed_it_goes_on(tmp_path):
    kill_and_resume(tmp_path, times=2)


@pytest.mark.slow
def test_killed_twenty_times_it_goes_on(tmp_path):
    kill_and_resume(tmp_path, times=20)


@of([FAST])
def test_a_full_disk_leaves_the_last_checkpoint_whole(script, run_dir):
    before = (run_dir / "latest.pt").read_bytes()

    def small_disk() -> None:  # bytes that a file may have: less than a checkpoint
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    out = run_script(f"{FAST}.py", "--resume", run_dir, *more(FAST, 4), cwd=run_dir, preexec_fn=small_disk)
    assert out.returncode == 1 and is_one_line(out.stderr) and "error: cannot write " in out.stderr
    assert (run_dir / "latest.pt").read_bytes() == before and not [*run_dir.glob("*.tmp")]


@of(["ppo_rnd_continuous", "ppo_rnd_minigrid"])
def test_a_bonus_that_begins_with_a_resume_has_its_frozen_statistics(script, call):
    """A run without it has seen no random agent; to whiten by nothing would let every observation through as it is."""
    name = script.__name__
    assert call(*flags(name, 2), "--obs-norm", "frozen", "--frozen-obs-norm-steps", 40, "--int-coef", 0)[0] == 0
    (folder,) = pathlib.Path("runs").iterdir()
    assert load(folder / "latest.pt")["rnd"]["obs_rms.count"] < 1
    assert call("--resume", folder, *more(name, 4), "--int-coef", 1)[0] == 0
    assert 40 <= load(folder / "latest.pt")["rnd"]["obs_rms.count"] < 48
    assert call("--resume", folder, *more(name, 6))[0] == 0  # which keeps them
    assert load(folder / "latest.pt")["rnd"]["obs_rms.count"] < 48


@of([name for name in SCRIPTS if name != MAZE])
def test_the_first_episodes_of_all_environments_do_not_count(script):
    """Nor a new one's. The first episodes to end are the short ones: on MiniGrid those that reach the goal."""
    atari, walker = "atari" in script.__name__, script.__name__ == "ppo_rnd_continuous"
    goal, step = ([], [1]) if atari else ([0.5], [])
    seen = [None] if atari else [] if walker else [np.zeros((3, 2), int)]  # rooms, nothing, positions
    stats, fresh = script.EpisodeStats(3, *goal), script.EpisodeStats(3, *goal)

    def play(*done: bool) -> None:
        done = np.array(done)
        stats.add(done.astype(float), done, np.ones(3, bool), *seen)

    stats.load_state_dict(fresh.state_dict() | {"recent": [0.0] * 100})
    for _ in range(200):
        play(True, False, False)
    assert stats.scalars(*step)["charts/episodic_return"] == 1 and sum(stats.recent) == 0
    play(False, True, True)
    assert stats.scalars(*step)["charts/score"] == 0.02  # all have ended one: from now on they count
    play(True, False, False)
    assert stats.scalars(*step)["charts/score"] == 0.03
    stats.load_state_dict(None if atari else fresh.state_dict())  # as after the warm-up of an Atari script
    play(False, True, True)
    assert not atari or [length for _, length in stats.episodes] == [1, 1]  # the steps before are not counted


@of(["ppo_rnd_atari", "ppo_rnd_atari_ram", "dqn_rnd_atari"])
def test_scores_and_rooms_of_another_game_are_forgotten(script, call, run_dir):
    """Or there would never be a best.pt of the new game."""
    state = load(run_dir / "latest.pt")
    state["stats"] |= {"recent": [1.0] * 100, "visited": [200], "rooms_best": 1}
    state["best_score"] = 1000.0
    torch.save(state, run_dir / "latest.pt")
    assert call("--resume", run_dir, *more(script.__name__, 3), "--env-id", "ALE/MontezumaRevenge-v5")[0] == 0
    state = load(run_dir / "latest.pt")
    assert state["best_score"] == 1000 and len(state["stats"]["recent"]) == 100 and 200 in state["stats"]["visited"]
    before = contents(run_dir)
    assert call("--resume", run_dir, *more(script.__name__, 4), "--env-id", "Pitfall")[0] == 0
    assert contents(run_dir) == before
    (other,) = run_dir.parent.glob("Pitfall-v5*")
    state = load(other / "latest.pt")
    assert state["best_score"] == -math.inf and len(state["stats"]["recent"]) < 100
    assert 200 not in state["stats"]["visited"]


@of(["a2c_rnd_doorkey", "ppo_rnd_minigrid"])
def test_scores_of_another_environment_are_forgotten(script, call, run_dir):
    """Or a run that has solved a small one would not begin with a larger one."""
    state = load(run_dir / "latest.pt")
    state["stats"], state["best_score"] = {"recent": [1.0] * 100}, 1.0
    torch.save(state, run_dir / "latest.pt")
    again = ["--resume", run_dir, *more(script.__name__, 4), "--solved-score", 0.9]
    assert call(*again)[0] == 0 and load(run_dir / "latest.pt")["step"] == 64  # solved at once
    before = contents(run_dir)
    assert call(*again, "--env-id", "DoorKey-6x6")[0] == 0
    assert contents(run_dir) == before
    (other,) = run_dir.parent.glob("*6x6*")
    state = load(other / "latest.pt")
    assert state["step"] == 128 and len(state["stats"]["recent"]) < 100 and state["best_score"] == -math.inf
