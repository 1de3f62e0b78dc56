"""ppo_rnd_atari.py and snd_atari.py under torchrun: two ranks on this machine's CPU are one learner."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, read_scalars, run_script

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WORKER = ROOT / "tests" / "ranks_worker.py"
SMALL = ["--num-steps", "16", "--warmup-rollouts", "1", "--device", "cpu"]
SCRIPTS = {
    "ppo_rnd_atari": ["--num-minibatches", "1", "--update-proportion", "1"],
    "snd_atari": [
        "--num-minibatches",
        "1",
        "--update-proportion",
        "1",
        "--target-loss",
        "none",
        "--int-norm",
        "--rnd-epochs",
        "1",
    ],
}


def work(name: str, ranks: int, out: pathlib.Path, *flags: str) -> list[dict]:
    """What each rank's networks and moments are after a few iterations."""
    out.mkdir()
    start = TORCHRUN if ranks == 2 else [sys.executable]
    command = [*start, str(WORKER), name, str(out), *SMALL, "--runs-dir", str(out / "runs"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [torch.load(out / f"rank{k}.pt", weights_only=True) for k in range(ranks)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_two_ranks_learn_as_one_with_both_halves(name, tmp_path):
    """One update with a whole rollout as its minibatch; resets in different numbers on the two ranks (RND)."""
    flags = [
        "--total-timesteps",
        "128",
        "--warmup-rollouts",
        "0",
        "--update-epochs",
        "1",
        "--one-update",
        *SCRIPTS[name],
    ]
    both = work(name, 2, tmp_path / "two", "--num-envs", "4", *flags)
    (one,) = work(name, 1, tmp_path / "one", "--num-envs", "8", *flags)
    for key in ("gradients", "agent", "bonus"):
        for part, value in one[key].items():
            own = [rank[key][part] for rank in both]
            if part == "filtered":  # of each rank's environments
                torch.testing.assert_close(torch.cat(own), value, rtol=1e-9, atol=0)
                continue
            assert torch.equal(own[0], own[1]), part
            atol = 1e-9 * float(value.abs().max())
            torch.testing.assert_close(
                own[0], value, rtol=1e-9, atol=atol, msg=lambda text, part=part: f"{part}: {text}"
            )


@pytest.mark.parametrize("name", SCRIPTS)
def test_ranks_stay_equal_bit_for_bit(name, tmp_path):
    """Four iterations of the defaults, with resets, random minibatches and subsets; the filter's states differ."""
    flags = ["--num-envs", "4", "--total-timesteps", "512", "--num-minibatches", "4"]
    first, second = work(name, 2, tmp_path / "out", *flags)
    for key in ("agent", "bonus"):
        for part, value in first[key].items():
            if part != "filtered":
                assert torch.equal(value, second[key][part]), part
    assert name == "snd_atari" or not torch.equal(first["bonus"]["filtered"], second["bonus"]["filtered"])


MOMENTS = """
import sys, torch
sys.path.insert(0, {root!r})
import {name} as script
CPU = torch.device("cpu")
if script.RANKS > 1:
    script.dist.init_process_group("gloo")
moments = script.RunningMoments((3, 2), CPU)
for k in range(5):
    for rank in range(2):
        rng = torch.Generator().manual_seed(10 * k + rank)
        batch, valid = torch.rand(7, 3, 2, generator=rng) * 10**k, torch.rand(7, generator=rng) < 0.6 + rank / 5
        if script.RANKS == 1 or script.RANK == rank:
            moments.update(batch, valid)
torch.save(moments.state_dict(), {out!r} + str(script.RANK))
if script.RANKS > 1:  # none leaves before all have what they need
    script.dist.barrier()
    script.dist.destroy_process_group()
"""


@pytest.mark.parametrize("name", SCRIPTS)
def test_moments_are_the_same_bits_on_both_ranks_and_on_one_with_the_same_data(name, tmp_path):
    results = {}
    for ranks, start in ((1, [sys.executable]), (2, TORCHRUN)):
        program = tmp_path / f"moments{ranks}.py"
        program.write_text(MOMENTS.format(root=str(ROOT), name=name, out=str(tmp_path / f"{ranks}_")))
        done = subprocess.run([*start, str(program)], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        results[ranks] = [torch.load(tmp_path / f"{ranks}_{k}", weights_only=True) for k in range(ranks)]
    for key, value in results[1][0].items():
        assert torch.equal(value, results[2][0][key]) and torch.equal(value, results[2][1][key]), key


def start_run(cwd: pathlib.Path, *flags: str) -> subprocess.Popen:
    """A run on two ranks that goes on for hours and saves after every iteration."""
    flags = (*SMALL, "--num-envs", "4", "--total-timesteps", "1e6", "--checkpoint-interval", "0", *flags)
    command = [*TORCHRUN, str(ROOT / "ppo_rnd_atari.py"), *flags]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(cwd: pathlib.Path) -> pathlib.Path:
    limit = time.time() + 120
    while not (found := list(cwd.glob("runs/*/latest.pt"))):
        assert time.time() < limit
        time.sleep(0.2)
    return found[0]


def children(pid: int) -> list[int]:
    """Processes that this one has started, in the order of the ranks."""
    return [int(p) for p in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux")
def test_a_rank_that_is_killed_ends_the_run_which_goes_on_with_any_number_of_ranks(tmp_path):
    process = start_run(tmp_path)
    path = wait_for_checkpoint(tmp_path)
    ranks = [p for p in children(process.pid) if b"ppo_rnd_atari" in pathlib.Path(f"/proc/{p}/cmdline").read_bytes()]
    assert len(ranks) == 2
    killed = time.time()
    os.kill(ranks[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert time.time() - killed < 60 and process.returncode != 0
    assert "SIGKILL" in errors or "error: rank 0 of 2 has lost the others" in errors
    assert not any(pathlib.Path(f"/proc/{p}").exists() for p in ranks)

    rollouts = torch.load(path, weights_only=True)["rollouts"]
    assert rollouts >= 2 and rollouts % 2 == 0
    flags = ["--resume", str(path.parent), "--total-timesteps", str((rollouts + 2) * 64)]
    again = subprocess.run(
        [*TORCHRUN, str(ROOT / "ppo_rnd_atari.py"), *flags], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert again.returncode == 0, again.stderr
    state = torch.load(path, weights_only=True)
    assert state["rollouts"] == rollouts + 2 and len(state["rnd"]["filtered"]) == 8 and len(state["rng_cpu"]) == 2
    alone = run_script("ppo_rnd_atari.py", *flags[:2], "--total-timesteps", (rollouts + 4) * 64, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    state = torch.load(path, weights_only=True)
    assert state["rollouts"] == rollouts + 4 and len(state["rnd"]["filtered"]) == 4 and len(state["rng_cpu"]) == 1
    flags[-1] = str((rollouts + 6) * 64)
    more = subprocess.run(
        [*TORCHRUN, str(ROOT / "ppo_rnd_atari.py"), *flags], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert more.returncode == 0, more.stderr
    state = torch.load(path, weights_only=True)
    assert state["rollouts"] == rollouts + 6 and len(state["rnd"]["filtered"]) == 8 and len(state["rng_cpu"]) == 2
    steps = [step for step, _ in read_scalars(path.parent)["losses/entropy"]]
    assert steps[-1] == (rollouts + 6) * 64 and steps == sorted(set(steps))


def test_ctrl_c_stops_all_ranks_and_saves(tmp_path):
    process = start_run(tmp_path)
    path = wait_for_checkpoint(tmp_path)
    process.send_signal(signal.SIGINT)  # torchrun passes it on
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    command = f"torchrun --nproc-per-node 2 {ROOT / 'ppo_rnd_atari.py'} --resume {path.parent.relative_to(tmp_path)}"
    assert f"resume with: {command}" in output
    assert output.count("stopping when the learner can be saved\n") == 1
    torch.load(path, weights_only=True)


FAULT = """
import sys
sys.path.insert(0, {root!r})
import {name} as script
step = script.AtariEnvs.step
def fail(self, actions):
    if script.RANK == 1:
        raise {error}
    return step(self, actions)
script.AtariEnvs.step = fail
sys.exit(script.main())
"""


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize(
    ("error", "message"),
    [
        ("OSError('no more emulators')", "error: rank 1 of 2: no more emulators; what was saved before is whole"),
        ("ValueError('a mistake')", "ValueError: a mistake"),
    ],
    ids=["OSError", "ValueError"],
)
def test_an_error_of_one_rank_is_told(name, error, message, tmp_path):
    program = tmp_path / "fault.py"
    program.write_text(FAULT.format(root=str(ROOT), name=name, error=error))
    command = [*TORCHRUN, str(program), *SMALL, *SCRIPTS[name], "--num-envs", "4", "--total-timesteps", "128"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0 and message in done.stderr, done.stderr


def test_ctrl_c_in_the_warm_up_ends_all_ranks(tmp_path):
    process = start_run(tmp_path, "--warmup-rollouts", "100000")
    for line in process.stdout:
        if line.startswith("random agent"):
            break
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=60)
    assert "stopped before training began: there is nothing to save" in output
    assert "has lost the others" not in errors
    assert not list(tmp_path.glob("runs/*/*.pt"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--gamma", "2"], "--gamma 2.0: must be in [0, 1]"),
        (["--total-timesteps", "16384"], "--total-timesteps 16384: must be at least one rollout, 32768 steps"),
        (["--evaluate", "run"], "--evaluate is for one process, without torchrun"),
    ],
    ids=["gamma", "total-timesteps", "evaluate"],
)
def test_what_torchrun_cannot_do_is_one_line(flags, message, tmp_path):
    """Wrong flags are said once, not once for each rank."""
    if "--evaluate" in flags:
        run = run_script("ppo_rnd_atari.py", *SMALL, "--num-envs", 4, "--total-timesteps", 128, cwd=tmp_path)
        assert run.returncode == 0
        (tmp_path / "runs").rename(tmp_path / "kept")
        flags = ["--evaluate", str(next((tmp_path / "kept").iterdir()))]
    before = sorted(tmp_path.rglob("*"))
    command = [*TORCHRUN, str(ROOT / "ppo_rnd_atari.py"), "--device", "cpu", *flags]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0 and done.stderr.count(f"error: {message}") == 1, done.stderr
    assert sorted(tmp_path.rglob("*")) == before
