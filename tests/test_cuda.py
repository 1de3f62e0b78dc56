"""What only a machine with a CUDA GPU can show; elsewhere these are skipped. `pytest tests/test_cuda.py -n 4`"""

import copy
import importlib
import importlib.util

import pytest
import torch
from conftest import CPU, SCRIPTS, only_run, run_script
from test_faults import MAZE, SMALL

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
WORDS = {name: [] for name in SCRIPTS} | {"dqn_rnd_atari": ["--obs", "pixels"]}  # besides those of a small run
MUJOCO = importlib.util.find_spec("mujoco")


@needs_cuda
@pytest.mark.parametrize("extra", [[], ["--bf16"]], ids=["float32", "bf16"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_train_resume_and_evaluate(name, extra, tmp_path):
    fields = importlib.import_module(name).Args.__dataclass_fields__
    if any(flag[2:] not in fields for flag in extra):
        pytest.skip("the script has no such flag")
    if name == "ppo_rnd_continuous" and not MUJOCO:
        pytest.skip("needs mujoco")
    total, more = (["--total-episodes", 8], None) if name == MAZE else (["--total-timesteps", 64], 128)
    words = [*SMALL[name], *WORDS[name], *extra, "--device", "cuda", *total]
    done = run_script(f"{name}.py", *words, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    if more:
        done = run_script(f"{name}.py", "--resume", run, "--total-timesteps", more, cwd=tmp_path, timeout=300)
        assert done.returncode == 0, done.stderr
    done = run_script(f"{name}.py", "--evaluate", run, "--eval-episodes", 1, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    on_cpu = run_script(f"{name}.py", "--evaluate", run, "--eval-episodes", 1, "--device", "cpu", cwd=tmp_path)
    assert on_cpu.returncode == 0, on_cpu.stderr  # what was trained there plays here


@needs_cuda
@pytest.mark.parametrize("name", ["ppo_rnd_atari", "ppo_rnd_atari_ram"])
def test_an_iteration_computes_what_the_cpu_does(name):
    """Intrinsic rewards, advantages and gradients of the same rollout, in float32 and without TF32."""
    script = importlib.import_module(name)
    args = script.Args(num_envs=4, num_steps=16, num_minibatches=1, update_epochs=1, update_proportion=1.0)
    torch.manual_seed(0)
    agent, rnd = script.Agent(6, 2), script.RND(args.num_envs, CPU)
    rollout = script.empty_rollout(args.num_steps, args.num_envs, 2, CPU)
    for x in rollout:
        x.random_(2) if x.dtype in (torch.bool, torch.int64) else x.random_(256) if x.dtype == torch.uint8 else 0
    rollout.values.normal_()
    rollout.rewards.normal_()
    rollout.logprobs.uniform_(-2, -1.6)
    rnd.obs_rms.update(rollout.frames.flatten(0, 1), rollout.valid.flatten())
    results = []
    for device in (CPU, torch.device("cuda")):
        here, moments = copy.deepcopy(agent).to(device), copy.deepcopy(rnd).to(device)
        moved = script.Rollout(*(x.to(device) for x in rollout))
        parameters = [*here.parameters(), *moments.predictor.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=0.0)
        with torch.backends.cudnn.flags(allow_tf32=False):
            intrinsic = script.intrinsic_rewards(moments, moved, args)
            advantages, returns = script.advantages_and_returns(moved, intrinsic, args)
            scalars = script.update(here, moments, optimizer, moved, advantages, returns, args)
        results.append([intrinsic, advantages, returns, *scalars.values(), *(p.grad for p in parameters)])
    for ours, cuda in zip(*results, strict=True):
        # By the norm: a single ReLU that flips where its input is all but 0 moves an entry of a gradient by more.
        assert (cuda.cpu() - ours).norm() <= 5e-3 * ours.norm() + 1e-8
