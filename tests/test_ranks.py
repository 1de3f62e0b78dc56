"""ppo_rnd_atari.py under torchrun: two ranks on this machine's CPU are one learner."""

import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT, only_run, read_scalars, run_script, wait_for

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
WORKER = ROOT / "tests" / "ranks_worker.py"
SMALL = ["--num-steps", "16", "--warmup-rollouts", "1", "--num-envs", "4"]
NAME = "ppo_rnd_atari"


def work(folder: pathlib.Path, jobs: dict[str, dict]) -> tuple[dict[str, list], str]:
    """Of each job what its ranks have learned, or the status that main() returned if it is not 0; what was said."""
    jobs = {key: {"out": str(folder / key), "ranks": 2} | job for key, job in jobs.items()}
    command = [sys.executable, str(WORKER), NAME, json.dumps([*jobs.values()])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)

    def result(job: dict, k: int) -> dict | int:
        path = pathlib.Path(job["out"], f"rank{k}.pt")
        return torch.load(path, weights_only=True) if path.exists() else int((path.parent / f"status{k}").read_text())

    return {key: [result(job, k) for k in range(job["ranks"])] for key, job in jobs.items()}, done.stderr


def test_two_ranks_learn_as_one_with_both_halves(tmp_path):
    """One update with a whole rollout as its minibatch; resets in different numbers on the two ranks (RND).

    Then an iteration or two with resets, random minibatches and subsets: bit for bit the same on both. And what goes
    wrong on one rank is told, what all are told wrongly only once.
    """
    once = ["--num-steps", "16", "--warmup-rollouts", "0", "--total-timesteps", "128", "--update-epochs", "1"]
    once += ["--num-minibatches", "1", "--update-proportion", "1"]
    more = [*SMALL, "--total-timesteps", "256", "--num-minibatches", "4", "--update-epochs", "2"]
    jobs = {
        "two": {"flags": [*once, "--num-envs", "4"], "plain": True},
        "one": {"flags": [*once, "--num-envs", "8"], "plain": True, "ranks": 1},
        "more": {"flags": more},
        "lost": {"flags": more, "fail": "OSError('no more emulators')"},
        "mistake": {"flags": more, "fail": "ValueError('a mistake')"},
        "wrong": {"flags": [*SMALL, "--total-timesteps", "64"]},
    }
    results, said = work(tmp_path, jobs)
    both, (one,) = results["two"], results["one"]
    assert isinstance(one, dict), said
    for key in ("gradients", "agent", "bonus"):
        for part, value in one[key].items():
            own = [rank[key][part] for rank in both]
            if part == "filtered":  # of each rank's environments
                torch.testing.assert_close(torch.cat(own), value, rtol=1e-9, atol=0)
                continue
            assert torch.equal(own[0], own[1]), part
            atol = 1e-9 * float(value.abs().max())
            torch.testing.assert_close(own[0], value, rtol=1e-9, atol=atol, msg=lambda x, part=part: f"{part}: {x}")
    first, second = results["more"]
    for key in ("agent", "bonus"):
        for part, value in first[key].items():
            if part != "filtered":
                assert torch.equal(value, second[key][part]), part
    assert not torch.equal(first["bonus"]["filtered"], second["bonus"]["filtered"])
    assert "error: rank 1 of 2: no more emulators\n" in said and "ValueError: a mistake" in said
    assert 0 not in results["lost"] + results["mistake"] and results["wrong"] == [2, 2]
    assert said.count("error: --total-timesteps 64.0: must be at least one rollout, 128 steps, and below 2^63\n") == 1


def torchrun(*flags: object, cwd: pathlib.Path, **kwargs) -> subprocess.Popen:
    command = [*TORCHRUN, str(ROOT / "ppo_rnd_atari.py"), *map(str, flags)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=cwd, **pipes | kwargs)


def children(pid: int) -> list[int]:
    """Processes that this one has started, in the order of the ranks."""
    return [int(p) for p in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs Linux")
def test_a_run_is_killed_goes_on_with_any_number_of_ranks_and_stops_at_ctrl_c(tmp_path):
    small = [*SMALL, "--device", "cpu", "--update-epochs", 1, "--checkpoint-interval", 0]
    process = torchrun(*small, "--total-timesteps", "1e6", cwd=tmp_path)
    path = wait_for(lambda: [*tmp_path.glob("runs/*/latest.pt")], 120)[0]
    ranks = [p for p in children(process.pid) if b"ppo_rnd_atari" in pathlib.Path(f"/proc/{p}/cmdline").read_bytes()]
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0 and ("SIGKILL" in errors or "error: rank 0 of 2: " in errors)
    assert not any(pathlib.Path(f"/proc/{p}").exists() for p in ranks)

    before = torch.load(path, weights_only=True)
    step = before["step"]
    assert step >= 128 and step % 128 == 0 and len(before["ranks"]) == 2
    alone = run_script("ppo_rnd_atari.py", "--resume", path.parent, "--total-timesteps", step + 128, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    state = torch.load(path, weights_only=True)
    assert state["step"] == step + 128 and len(state["rnd"]["filtered"]) == 4 and len(state["ranks"]) == 1
    stamp = path.stat().st_mtime_ns
    process = torchrun("--resume", path.parent, "--total-timesteps", "1e6", cwd=tmp_path)
    wait_for(lambda: path.stat().st_mtime_ns > stamp, 120)
    process.send_signal(signal.SIGINT)  # torchrun passes it on
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    command = f"torchrun --nproc-per-node 2 {ROOT / 'ppo_rnd_atari.py'} --resume {path.parent}"
    assert f"resume with: {command}\n" in output
    assert output.count("stopping after this iteration; torchrun waits 30s\n") == 1
    state = torch.load(path, weights_only=True)
    assert state["step"] > step + 128 and len(state["ranks"]) == 2
    assert not torch.equal(state["ranks"][0][2], state["ranks"][1][2])
    steps = [step for step, _ in read_scalars(only_run(tmp_path))["losses/entropy"]]
    assert steps[-1] == state["step"] and steps == sorted(set(steps))


def test_a_signal_that_comes_during_the_exchange_is_not_forgotten(monkeypatch):
    script = importlib.import_module(NAME)
    run = object.__new__(script.Run)
    run.signal = 0

    def exchange(own: int) -> list[int]:
        run.receive(signal.SIGTERM, None)
        return [own, own]

    monkeypatch.setattr(script, "all_ranks", exchange)
    assert not run.stopped()  # the others do not know of it yet
    monkeypatch.setattr(script, "all_ranks", lambda own: [own, 0])
    assert run.stopped() and run.signal == signal.SIGTERM
