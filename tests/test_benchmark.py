"""What the programs in benchmark/ draw, the tables they write, the runs they restart, and what they measure."""

import argparse
import csv
import importlib
import itertools
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from torch.utils.tensorboard import SummaryWriter

sys.path.insert(0, str(ROOT / "benchmark"))
import aggregate
import continuous
import corridor
import doorkey
import dqn
import maze
import minigrid_runs
import plot
import ram
import states
import sweep
import throughput

SWEEP = [sys.executable, str(ROOT / "benchmark" / "sweep.py")]


def make_run(folder, values, flags=(), rate=10.0):
    """A run's folder with charts/score at steps 100, 200, ... and its flags, as a script logs them."""
    writer = SummaryWriter(str(folder))
    for k, value in enumerate(values, 1):
        writer.add_scalar("charts/score", value, 100 * k)
        writer.add_scalar("charts/SPS", rate, 100 * k)
        if k % 2 == 0:
            writer.add_scalar("charts/episodic_return", k, 100 * k)
    table = {"name": "value", "-": "-", **dict(flags)}
    writer.add_text("hyperparameters", "\n".join(f"|{key}|{value}|" for key, value in table.items()), 0)
    writer.close()
    return folder


def test_interval_equals_every_resample_of_three_runs():
    """Of three runs there are 27 resamples: the interval is that of their means, to the sampling error of 2,000."""
    x = np.array([0.0, 1.0])
    curves = [(x, np.array([a, a])) for a in (1.0, 2.0, 6.0)]
    grid, mean, low, high = plot.mean_and_interval(curves, points=3)
    assert grid.tolist() == [0.0, 0.5, 1.0] and mean.tolist() == [3.0] * 3
    means = sorted(np.mean(draw) for draw in itertools.product((1.0, 2.0, 6.0), repeat=3))
    for bound, share in ((low, 0.025), (high, 0.975)):  # 1 of 27 is more than 2.5 %, so the bounds are the extremes
        assert np.allclose(bound, np.quantile(means, share, method="inverted_cdf"))


def test_curves_of_different_lengths_meet_on_one_grid():
    """A run that was stopped when it had solved its task keeps its score; between points a straight line."""
    short, long = (np.array([1.0, 2.0]), np.array([0.0, 1.0])), (np.array([0.0, 4.0]), np.array([0.0, 0.4]))
    grid, mean, low, high = plot.mean_and_interval([short, long], points=5)
    assert grid.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_allclose(mean, [(0 + 0) / 2, (0 + 0.1) / 2, (1 + 0.2) / 2, (1 + 0.3) / 2, (1 + 0.4) / 2])
    assert (low <= mean).all() and (mean <= high).all()
    one = plot.mean_and_interval([short], points=2)
    assert [v.tolist() for v in one] == [[1, 2], [0, 1], [0, 1], [0, 1]]


def test_aggregates_over_tasks_equal_loops():
    """Two tasks with 3 and 2 seeds: interquartile mean, profile, probability of improvement; resamples within tasks."""
    rng = np.random.default_rng(0)
    ours, theirs = ([rng.integers(0, 4, (n, 2)) / 4 for n in sizes] for sizes in ((3, 2), (4, 2)))
    ends = sorted(x for task in ours for x in task[:, 1])  # 5 runs: one is cut off at each end
    assert aggregate.interquartile_mean(ours)[1] == pytest.approx(np.mean(ends[1:-1]))
    levels = np.array([0.0, 0.3, 0.6])
    assert aggregate.profile(ours, levels).tolist() == [np.mean([x > level for x in ends]) for level in levels]
    shares = []
    for a, b in zip(ours, theirs, strict=True):
        shares.append(np.mean([(x > y) + 0.5 * (x == y) for x in a[:, 1] for y in b[:, 1]]))
    assert aggregate.improvement(ours, theirs) == pytest.approx(np.mean(shares))
    for task, drawn in zip(ours, aggregate.resample(ours, rng), strict=True):
        assert drawn.shape == task.shape and {*map(tuple, drawn)} <= {*map(tuple, task)}


def test_an_interquartile_mean_and_its_interval():
    values = np.array([0.0, 10.0, 20.0, 30.0, 1000.0, 20.0, 20.0, 20.0])
    mean, low, high = continuous.interval(values)
    assert mean == 20.0 + (0 + 0 + 0 + 0) / 4  # the two lowest and the two highest are left out
    assert low < mean < high
    assert continuous.interval(np.array([3.0])) == (3.0, 3.0, 3.0)


TABLES = [(module, module.ROWS) for module in (continuous, doorkey, dqn, maze, ram)]
TABLES += [(minigrid_runs, rows) for rows in minigrid_runs.ROWS.values()]


@pytest.mark.parametrize(("module", "rows"), TABLES, ids=lambda x: getattr(x, "__name__", ""))
def test_the_flags_of_every_row_are_flags_of_its_script(module, rows):
    script = importlib.import_module(module.SCRIPT.stem)
    for flags, seeds in rows.values():
        script.parse([*flags, "--seed", "1"])  # raises at what makes no sense
        assert seeds > 0


def test_the_controls_of_doorkey_change_the_bonus_and_nothing_else(monkeypatch):
    """First visits pay the same; a bonus on random samples is the same sum, and is not paid at resets."""
    script = importlib.import_module("a2c_rnd_doorkey")
    own = script.novelty, script.intrinsic_rewards
    try:
        args, *_ = script.parse(["--preset", "tuned", "--num-envs", "3", "--num-steps", "40", "--no-int-norm"])
        rnd = script.RND(3, sum(script.NUM_CODES), args.dropout, torch.device("cpu"))
        rollout = script.empty_rollout(40, 3, torch.device("cpu"))
        rollout.obs.random_(3)
        rollout.index.random_(30)
        rollout.visits.random_(1, 3)
        rollout.valid.copy_(torch.rand(40, 3) < 0.8)
        with torch.no_grad():
            aligned, loss = script.intrinsic_rewards(rnd, rollout, args)
            importlib.import_module("doorkey_shuffled")
            shuffled, same_loss = script.intrinsic_rewards(rnd, rollout, args)
            valid = rollout.valid
            assert torch.equal(shuffled[valid].sort()[0], aligned[valid].sort()[0]) and loss == same_loss
            assert torch.equal(shuffled[~valid], aligned[~valid]) and not torch.equal(shuffled, aligned)
            script.intrinsic_rewards = own[1]
            importlib.import_module("doorkey_constant")
            assert torch.equal(script.intrinsic_rewards(rnd, rollout, args)[0], (rollout.visits == 1).float())
    finally:
        script.novelty, script.intrinsic_rewards = own


@pytest.mark.parametrize("mixed", [False, True])
def test_the_end_of_the_corridor_is_29_right_actions_away(mixed):
    pool = corridor.Corridor("", num_envs=2, img_height=21, img_width=20, stack_num=1, mixed=mixed)
    obs, info = pool.reset()
    assert obs.shape == (2, 1, 21, 20) and info["ram"].shape == (2, 128)
    assert (len({*pool.right}) > 1) == mixed and (pool.right != pool.left).all()
    seen = [obs[0]]
    for step in range(1, 30):  # the second one goes left instead, and stays where it is
        actions = np.array([pool.right[pool.cell[0]], pool.left[0]])
        obs, rewards, terminated, truncated, info = pool.step(actions)
        seen.append(obs[0])
        assert (
            rewards.tolist() == [step == 29, 0] and terminated.tolist() == [step == 29, False] and not truncated.any()
        )
        assert info["ram"][:, 3].tolist() == [step // 6, 0]
    assert len({x.tobytes() for x in seen}) == 30 and (obs[1] == seen[0]).all()
    obs, rewards, *_ = pool.step(np.array([pool.right[0], 0]))  # the reset ignores its action
    assert (obs[0] == seen[0]).all() and rewards[0] == 0
    for step in range(31, 101):
        *_, truncated, _ = pool.step(np.zeros(2, int) + pool.left[0])
        assert truncated.tolist() == [False, step == 100]


@pytest.mark.parametrize("name", corridor.SETTINGS)
def test_every_row_of_the_corridor_is_played_by_its_script(name, monkeypatch):
    script = importlib.import_module(name)
    monkeypatch.setattr(script.envpool, "make", script.envpool.make)  # put back afterwards
    small = "--num-envs 4 --num-steps 8 --total-timesteps 64 --num-minibatches 2 --warmup-rollouts 1"
    if name == "dqn_rnd_atari":
        small = "--num-envs 4 --num-steps 4 --total-timesteps 64 --learning-starts 16 --log-interval 16"
    if name == "snd_atari":
        small += " --target-batch 4"
    flags, rows = corridor.SETTINGS[name]
    for row in rows.values():
        scalars = corridor.train(ROOT / f"{name}.py", 1, f"{flags} {row} {small}".split())
        steps, rooms = zip(*scalars["rnd/rooms_visited"], strict=True)
        assert steps[-1] == 64 and 1 <= rooms[-1] <= 3


def test_the_control_of_dqn_turns_the_entropy_round(monkeypatch):
    """V = E_pi[Q] - alpha * H(pi), by a sum over the actions."""
    script = importlib.import_module("dqn_rnd_atari")
    monkeypatch.setattr(script, "next_value", script.next_value)  # puts it back
    importlib.import_module("dqn_reversed")
    q = torch.randn(5, 4, dtype=torch.float64)
    pi = (q / 0.3).softmax(1)
    args = script.Args(backup="soft", single_head=True)
    found = script.next_value(q[:, None, None], q, 0.3, args)[:, 0, 0]
    torch.testing.assert_close(found, (pi * q).sum(1) + 0.3 * (pi * pi.log()).sum(1))


def test_the_control_of_snd_starts_as_the_author(monkeypatch):
    """A pixel that never changes has a std of 15.9 grey values if black, 22.5 if white, after a warm-up of 32,768."""
    script = importlib.import_module("snd_atari")
    monkeypatch.setattr(script.SND, "__init__", script.SND.__init__)  # puts it back
    importlib.import_module("snd_prior")
    moments = script.SND(script.Args(num_envs=2), torch.device("cpu")).obs_rms
    frame = torch.zeros(1, 96, 96, dtype=torch.uint8)
    frame[0, 0] = 255
    moments.update(frame, torch.tensor([32768.0]))  # so many at once
    assert moments.var[0, 0].sqrt().item() == pytest.approx(22.5, abs=0.05)
    assert moments.var[1, 0].sqrt().item() == pytest.approx(15.9, abs=0.05)


def test_the_control_of_minigrid_forgets_the_divisor_once(monkeypatch):
    """At the first rollout after a million steps the moments begin anew, and at no other."""
    script = importlib.import_module("ppo_rnd_minigrid")
    monkeypatch.setattr(script, "intrinsic_rewards", script.intrinsic_rewards)  # puts it back
    control = importlib.import_module("minigrid_divisor")
    seen = []
    monkeypatch.setattr(control, "intrinsic_rewards", lambda rnd: seen.append(float(rnd.return_rms.count)))
    rnd = SimpleNamespace(return_rms=script.RunningMoments((), torch.device("cpu")))
    for _ in range(2):
        for count in (9e5, 1e6):
            rnd.return_rms.var.fill_(3.0)
            rnd.return_rms.count.fill_(count)
            script.intrinsic_rewards(rnd)
    assert seen == [9e5, 1e-4, 9e5, 1e6]


def test_rows_of_the_dqn_table(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(dqn, "evaluation", lambda *a: asked.append(a[2:]) or ("390.0", "7.5"))
    folder = make_run(tmp_path / "M__s__1__x", [100.0, 200.0, 300.0, 350.0])  # episodes of 2 and 4 at steps 200, 400
    (folder / "replay.pt").touch()
    line = dqn.measure(sweep.Job("Pong, RAM, DQN", ["--obs", "ram"], 1), folder)
    assert line["score"] == "350.00"
    assert line["before_1m"] == "" and line["before_end"] == "3.00" and line["rooms"] == ""
    assert asked == [(30, "--policy", "epsilon-greedy")] and not (folder / "replay.pt").exists()


def test_table_of_runs_and_back(tmp_path):
    folder = make_run(tmp_path / "Game-v5__ppo_rnd_atari__7__20260102-030405-123456", [0.5, 1.5, 2.5, 3.5])
    run = plot.from_folder(folder)
    assert (run.setting, run.seed, run.steps.tolist()) == ("Game-v5, ppo_rnd_atari", 7, [100, 200, 300, 400])
    np.testing.assert_allclose(run.hours * 3600, [10, 20, 30, 40])
    plot.write_csv([run], tmp_path / "all.csv")
    (again,) = plot.from_csv(tmp_path / "all.csv")
    for a, b in (
        (run.steps, again.steps),
        (run.hours, again.hours),
        *((run.scalars[k], again.scalars[k]) for k in run.scalars),
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4)
    assert (again.name, again.setting, again.seed) == (run.name, run.setting, 7)
    x, y = plot.curve(again, "charts/episodic_return", "steps")
    assert x.tolist() == [200, 400] and y.tolist() == [2, 4]  # only where there are values
    plot.write_csv([run], tmp_path / "short.csv", points=2)
    (short,) = plot.from_csv(tmp_path / "short.csv")
    assert short.steps.tolist() == [200, 400] and short.scalars["charts/score"].tolist() == [1.0, 3.0]
    assert short.scalars["charts/episodic_return"].tolist() == [2, 4]


def test_settings_are_named_after_the_flags_that_differ(tmp_path):
    stamp = "2026-01-02_03-04-0"  # as old runs have it
    flags = [{"seed": 1, "lr": 0.1, "commit": "a"}, {"seed": 2, "lr": 0.1, "commit": "b"}, {"seed": 1, "lr": 0.2}]
    runs = [
        plot.from_folder(make_run(tmp_path / f"M__s__{f['seed']}__{stamp}{k}", [1], f)) for k, f in enumerate(flags)
    ]
    plot.name_settings(runs)
    assert [run.setting for run in runs] == ["M, s, lr 0.1", "M, s, lr 0.1", "M, s, lr 0.2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["nowhere"], "No such file or directory: 'nowhere'"),
        (["empty"], "empty holds no TensorBoard scalars"),
        (["noise.csv"], "noise.csv is no table of runs"),
        (["run", "--scalars", "charts/nothing"], "no run has charts/nothing; there are charts/SPS"),
        (["timeless.csv", "--scalars", "a", "--x", "hours"], "--x hours: some of the runs do not say how long"),
    ],
)
def test_bad_sources_are_one_line_and_leave_nothing(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "noise.csv").write_bytes(bytes(range(256)))
    (tmp_path / "timeless.csv").write_text("run,step,a\nx,1,2\n")
    make_run(tmp_path / "run", [1, 2])
    monkeypatch.setattr(sys, "argv", ["plot.py", *flags, "--out", "figure"])
    with pytest.raises(SystemExit) as stop:
        plot.main()
    assert stop.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]
    assert not [*tmp_path.glob("figure*")]


def test_plot_draws_runs_and_their_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs = [make_run(tmp_path / f"M__s__{seed}__2026-01-02_03-04-05", [seed, 2, 3]) for seed in (1, 2)]
    flags = ["--scalars", "charts/score", "charts/episodic_return", "other", "--out", "new/folder/a"]
    writer = SummaryWriter(str(runs[0]))
    writer.add_scalar("other", 2.5, 100)
    writer.close()
    panels = []
    monkeypatch.setattr(sys, "argv", ["plot.py", *map(str, runs), *flags])
    monkeypatch.setattr(plot, "draw", lambda panel, *a, draw=plot.draw: (draw(panel, *a), panels.append(panel)))
    plot.main()
    named = [(panel.get_title(), panel.get_ylabel()) for panel in panels]
    assert named == [plot.NAMES["charts/score"], plot.NAMES["charts/episodic_return"], ("other", "other")]
    assert all(tick % 1 == 0 for tick in panels[1].get_yticks())  # its values are whole numbers
    monkeypatch.setattr(
        sys, "argv", ["plot.py", "new/folder/a.csv", "--scalars", "charts/score", "--x", "hours", "--out", "b"]
    )
    plot.main()
    assert all((tmp_path / name).read_bytes()[:4] == b"\x89PNG" for name in ("new/folder/a.png", "b.png"))
    assert not (tmp_path / "b.csv").exists()


@pytest.mark.parametrize(
    ("seeds", "label"),
    [([1], "1 seed"), ([1, 2], "2 seeds"), ([1, 1], "2 runs of 1 seed"), ([1, 1, 2], "3 runs of 2 seeds")],
)
def test_a_legend_tells_runs_from_seeds(seeds, label):
    x = np.array([0, 1])
    runs = [plot.Run(f"run {k}", "A", seed, x, x / 1.0, {"a": x / 1.0}) for k, seed in enumerate(seeds)]
    panel = plot.plt.figure().subplots()
    plot.draw(panel, runs, "a", "steps", every_seed=False)
    assert panel.get_legend_handles_labels()[1] == [f"A ({label})"]
    plot.plt.close()


# a script that logs four points, waits at the third until it is told to go on, and stops at a signal as ours do
STUB = """
import argparse, pathlib, signal, sys, time
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter
p = argparse.ArgumentParser()
for f in ("--seed", "--runs-dir", "--resume", "--add", "--break"): p.add_argument(f)
a = p.parse_args()
if getattr(a, "break"): sys.exit("error: broken on purpose")
folder = pathlib.Path(a.resume).parent if a.resume else pathlib.Path(a.runs_dir) / f"M__s__{a.seed}__x"
state = pathlib.Path(a.resume).read_text().split() if a.resume else [a.seed, a.add or 0, 0]
seed, add, step = map(int, state)
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
writer = EventFileWriter(str(folder))
while step < 4 and not stop:
    if step == 2 and not pathlib.Path("go").exists(): time.sleep(0.05); continue
    step += 1
    value = Summary.Value(tag="charts/score", simple_value=seed + add + step)
    writer.add_event(Event(wall_time=time.time(), step=step, summary=Summary(value=[value])))
writer.close()
(folder / "latest.pt").write_text(f"{seed} {add} {step}")
print(f"score {seed + add + step}, steps {step}")
sys.exit(143 if stop else 0)
"""


def test_sweep_goes_on_where_it_was_stopped_and_repeats_nothing(tmp_path):
    (tmp_path / "stub.py").write_text(STUB)
    command = [*SWEEP, "stub.py", "--out", "new/out", "--seeds", "1", "2", "--jobs", "2", "--settings", "", "--add 10"]
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]  # as a shell does with what it starts with &
    first = subprocess.Popen([*ignoring, *command], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    while len([*tmp_path.rglob("events.*")]) < 2:  # the first two runs are waiting in the middle
        time.sleep(0.1)
    time.sleep(1)
    first.send_signal(signal.SIGINT)
    out, _ = first.communicate(timeout=60)
    assert (
        first.returncode == 130 and "the same command again goes on" in out and not (tmp_path / "new/out.csv").exists()
    )
    assert sorted(p.read_text() for p in tmp_path.rglob("latest.pt")) == ["1 0 2", "1 10 2"]

    (tmp_path / "go").touch()
    second = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert second.returncode == 0 and "out.csv: 4 of 4 runs" in second.stdout
    runs = {(run.setting, run.seed): run for run in plot.from_csv(tmp_path / "new/out.csv")}
    assert runs.keys() == {(s, seed) for s in ("default", "--add 10") for seed in (1, 2)}
    for (setting, seed), run in runs.items():
        assert run.scalars["charts/score"].tolist() == [seed + 10 * (setting != "default") + k for k in (1, 2, 3, 4)]

    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("events.*")}
    third = subprocess.run([*command, "--points", "2"], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert third.returncode == 0 and {p: p.stat().st_mtime_ns for p in tmp_path.rglob("events.*")} == times
    assert len([*csv.reader((tmp_path / "new/out.csv").open())]) == 1 + 4 * 2


def test_sweep_reports_what_failed_and_runs_the_rest(tmp_path):
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "go").touch()
    settings = ["--settings", "--break 1", "--add 1"]
    command = [*SWEEP, "stub.py", "--out", "out", "--seeds", "3", *settings, "--", "--seed", "0"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "FAILED: error: broken on purpose" in done.stdout
    assert [run.setting for run in plot.from_csv(tmp_path / "out.csv")] == ["--add 1"]
    wrong = subprocess.run([*SWEEP, "none.py", "--out", "x"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert wrong.returncode == 2 and "there is no none.py" in wrong.stderr


def test_sweep_starts_anew_what_cannot_be_resumed(tmp_path, monkeypatch):
    """The maze has no --resume. What an interrupted run has left does not get into the results."""
    script = tmp_path / "stub.py"
    script.write_text(STUB.replace('"--resume", ', "").replace("a.resume", "None"))
    (tmp_path / "go").touch()
    monkeypatch.chdir(tmp_path)
    job = sweep.Job("default", [], 1)
    folder = sweep.folder_of(tmp_path / "runs", script, job.flags, job.seed)
    make_run(folder / "M__s__1__y", [100.0])
    (folder / "M__s__1__y" / "latest.pt").write_text("1 0 2")
    found = []
    assert not sweep.run_all(
        *(script, [job], tmp_path / "runs", 1, 1),
        measure=lambda job, folder, line: plot.from_folder(folder).scalars["charts/score"].tolist(),
        note=lambda job, scores: found.append(scores),
    )
    assert found == [[2, 3, 4, 5]]


def test_table_gets_a_line_for_each_run_and_repeats_none(tmp_path, monkeypatch):
    script = tmp_path / "stub.py"
    script.write_text(STUB)
    (tmp_path / "go").touch()
    rows = {"first": ([], 2), "second, +10": (["--add", "10"], 1), "broken": (["--break", "1"], 1)}
    args = argparse.Namespace(
        out=tmp_path / "new/t", runs_dir=tmp_path / "runs", rows=["first", "sec"], seeds=None, jobs=2, redraw=True
    )
    (tmp_path / "new").mkdir()
    (tmp_path / "new/t.csv").write_text("row,seed,score,curve\nfirst,1,0.5,100:0.25 200:0.5\n")
    monkeypatch.chdir(tmp_path)
    lines, status = sweep.fill_table(script, rows, args, measure=None, tell=None)  # runs nothing
    assert not status and lines == [{"row": "first", "seed": "1", "score": "0.5", "curve": "100:0.25 200:0.5"}]
    args.redraw = False

    def measure(job, folder):
        steps, scores = plot.curve(plot.from_folder(folder), "charts/score", "steps")
        return {"score": scores[-1], "curve": sweep.curve_cell(steps, scores, 1)}

    lines, status = sweep.fill_table(script, rows, args, measure, tell=lambda line: f"score {line['score']}")
    assert not status and {(line["row"], line["seed"], line["score"]) for line in lines} == {
        *(("first", "1", "0.5"), ("first", "2", "6.0"), ("second, +10", "1", "15.0"))
    }
    (_, (x, y)) = sweep.curves_of(lines, "first", unit=2)
    assert x.tolist() == [0.5, 1, 1.5, 2] and y.tolist() == [3, 4, 5, 6]
    args.rows = [""]
    monkeypatch.setattr(sweep, "folder_of", lambda *a, of=sweep.folder_of: of(tmp_path / "other", *a[1:]))
    again, status = sweep.fill_table(script, rows, args, measure, tell=str)
    assert (
        status == 1 and again == lines and len([*(tmp_path / "other").rglob("output.txt")]) == 1
    )  # the broken one alone
    args.out.with_suffix(".csv").write_text("row,seed,flags\nfirst,1,\n")
    args.rows = ["first"]
    two = {"first": ([], 2), "first and more": (["--break", "1"], 1)}  # a whole name is that row alone
    lines, status = sweep.fill_table(script, two, args, measure, tell=str)  # columns that are new
    assert not status and lines[0] == dict.fromkeys(lines[1], "") | {"row": "first", "seed": "1"}
    assert len(lines) == 2 and (lines[1]["seed"], lines[1]["flags"], lines[1]["score"]) == ("2", "", "6.0")
    args.out.with_suffix(".csv").write_text("row,seed,flags\nfirst,1,--add 1\n")
    with pytest.raises(SystemExit, match="first, seed 1, was run with other flags"):
        sweep.fill_table(script, {"first": (["--add", "2"], 1)}, args, measure, tell=str)


def test_rows_of_the_ram_table(tmp_path, monkeypatch):
    """The script takes each row's flags; levels are reached where the score first is at least that."""
    import ppo_rnd_atari_ram as script

    for flags, _ in ram.ROWS.values():
        args, *_ = script.parse(flags)
        assert args.total_timesteps in (3_500_000, 5_000_000, 8_000_000, 25_000_000) and args.int_coef in (0, 1)
    monkeypatch.setattr(ram, "evaluation", lambda *_: ("390.0", "7.5"))
    folder = make_run(tmp_path / "run", [0, 99, 100, 80, 400, 350])
    line = ram.measure(sweep.Job("MontezumaRevenge, without", [], 4), folder)
    assert {name: line[name] for name in ram.LEVELS} == {"key": 300, "door": 500, "1,000": "", "2,500": ""}
    assert (line["steps"], line["score"], line["rooms"], line["evaluation"]) == (600, "350.0", "", "390.0")
    ram.draw([{"row": row, "curve": line["curve"]} for row in ram.ROWS], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_states_that_a_run_has_visited(tmp_path):
    """All steps that are no resets, of the very run that the script makes with these flags."""
    import ppo_rnd_continuous as script

    collect = script.collect
    flags = "--env-id Pendulum-v1 --num-envs 2 --num-steps 250 --num-minibatches 1 --total-timesteps 1000"
    seen = states.visited(flags.split(), 1000)
    first = states.visited(flags.split(), 400)  # ends with the rollout that has the 400th step
    assert script.collect is collect and np.array_equal(first, seen[: len(first)]) and len(first) == 500 - 2
    assert seen.shape == (1000 - 2 * 2, 3)  # an episode has 200 steps: both environments are reset at steps 201 and 402
    np.testing.assert_allclose(np.hypot(seen[:, 0], seen[:, 1]), 1, rtol=1e-4)  # cosine and sine
    states.draw({"one": seen[:, :2], "two": seen[:9, :2]}, ("cosine", "sine"), tmp_path / "states.png")
    assert (tmp_path / "states.png").stat().st_size > 5_000


TOY = """
import pathlib, signal, sys, time

signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
run = pathlib.Path(sys.argv[2])
started = len([*run.glob("events.*")])
(run / f"events.{started}").write_text(" ".join(sys.argv[3:]))
(run / f"{started}.pt").replace(run / "latest.pt")
time.sleep(600)
"""


def test_endurance_kills_resumes_and_ends_a_run(tmp_path):
    """A line for each piece, the second with more steps; the flags reach the script; the status is 0."""
    run, script, out = tmp_path / "run", tmp_path / "toy.py", tmp_path / "out.csv"
    run.mkdir()
    script.write_text(TOY)
    for name, step in {"latest": 10, "0": 20, "1": 30}.items():
        torch.save({"step": step}, run / f"{name}.pt")
    command = [sys.executable, str(ROOT / "benchmark" / "endurance.py"), str(run), "--script", str(script)]
    command += ["--out", str(out), "--minutes", "0.1", "--kill", "0.05", "--", "--some-flag", "7"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, second = sweep.read_table(out)
    assert first["process"] != second["process"] and (first["step"], second["step"]) == ("20", "30")
    assert all(float(line["memory_mb"]) > 1 for line in (first, second))
    assert [path.read_text() for path in run.glob("events.*")] == ["--some-flag 7"] * 2
    assert done.stdout.count(f"| run | {first['process']} |") == 1


def test_endurance_wants_a_run(tmp_path):
    command = [sys.executable, str(ROOT / "benchmark" / "endurance.py"), str(tmp_path), "--minutes", "1"]
    done = subprocess.run([*command, "--out", str(tmp_path / "out.csv")], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.endswith(f"there is no checkpoint {tmp_path / 'latest.pt'}\n")
    assert not (tmp_path / "out.csv").exists()


def test_spread_of_a_column():
    assert sweep.spread(["3e6", "1e6", "2e6"], ".1f", 1e6) == "1.0 / 2.0 / 3.0"
    assert sweep.spread(["5", ""], ",.0f") == "5 (1 of 2)"
    assert sweep.spread(["", ""], ".1f", none="never") == "never" and sweep.spread([], ".1f") == ""


def test_throughput_counts_the_inner_part_and_knows_its_names():
    parts = throughput.Parts()

    class Script:
        def outer():
            work()
            Script.inner()

        def inner():
            work()

    def work():
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    parts.wrap(Script, "outer", "collect")
    parts.wrap(Script, "inner", "environments")
    Script.outer()
    cpu = {part: spent[0] for part, spent in parts.spent.items()}
    assert 0.04 < cpu["collect"] < 0.09 and 0.04 < cpu["environments"] < 0.09 and cpu["update"] == 0
    with pytest.raises(SystemExit, match="Script has no intrinsic_rewards"):
        parts.wrap(Script, "intrinsic_rewards", "intrinsic_rewards")


def test_throughput_measures_every_step_of_a_real_loop(tmp_path, monkeypatch):
    """The shares of a script's loop add up to what an iteration costs; a script without such a loop is refused."""
    (one,) = throughput.maze_programs(None).keys() & {"goal 9-1"}
    script, threads, _ = throughput.maze_programs(None)[one]
    result = throughput.run(one, (script, threads, ["--total-episodes", 200]))
    total = sum(cost for cost, _ in result["parts"].values())
    assert all(cost > 0 for cost, _ in result["parts"].values()) and 0 < result["alone"] < total
    assert min(result["cpu"]) <= total <= max(result["cpu"]) and 0.1 < result["memory"] < 4
    (tmp_path / "stub.py").write_text("def collect(): pass\nclass MyEnvs: pass\n")
    with pytest.raises(SystemExit, match="stub has no intrinsic_rewards"):
        throughput.run("stub", (tmp_path / "stub.py", 1, []))


def test_throughput_compares_two_checkouts(tmp_path):
    """A script that costs twice as much and takes 200 MB more; what both cost at the start drops out."""
    work = "import sys, time\nn = int(sys.argv[sys.argv.index('--total-timesteps') + 1])\n"
    work += "held = bytearray(b'x') * int({} * 2**20)\nend = time.process_time() + 0.1 + n * {}\n"
    work += "while time.process_time() < end: pass\n"
    for name, cost in (("this", (200, 0.3)), ("other", (0, 0.15))):  # seconds that no start-up hides
        (tmp_path / name / "benchmark").mkdir(parents=True)
        (tmp_path / name / "s.py").write_text(work.format(*cost))
    program = shutil.copy(throughput.__file__, tmp_path / "this" / "benchmark")
    flags = ["--num-envs", "2", "--num-steps", "1", "--iterations", "4", "--rounds", "2", "--threads", "1"]
    flags += ["--script", "s.py", "--compare", str(tmp_path / "other")]
    words = [sys.executable, program, *flags, "--", "--seed", "1"]
    out = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True).stdout
    cost, memory = (line.split(" | ") for line in out.splitlines()[-2:])
    assert "s.py --num-envs 2 --num-steps 1 --seed 1: 2 and 10 steps" in out
    assert 1.8 < float(cost[3]) < 2.2 and 140 < float(memory[1]) - float(memory[2]) < 210
