"""Started by test_ranks.py: imports a script once and forks the ranks of one job after the other.

ranks_worker.py SCRIPT JOBS   JOBS: JSON, a list of {"out": folder, "ranks": 1 or 2, "flags": [...]} and, if wanted,
"plain": true (float64, every sample drawn once) or "fail": what rank 1 raises in its first step.
Folder `out` gets rank0.pt, rank1.pt: gradients, networks, statistics, and status0, status1, or what main() returned.
"""

import importlib
import json
import os
import pathlib
import socket
import sys
import traceback

import numpy as np
import torch

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))


class Pool:
    """EnvPool's interface: what an environment shows depends on its seed and on time, not on actions."""

    def __init__(self, env_id, num_envs, seed, img_height=84, **_):
        self.action_space = type("Space", (), {"n": 6})()
        self.seeds, self.size, self.shown = seed, img_height, 0
        # SND draws its samples: without resets they can be all, once each
        self.lengths = np.array([5 + s % 7 for s in seed]) if NAME == "ppo_rnd_atari" else np.full(num_envs, 10**6)
        self.time, self.done = np.zeros(num_envs, int), np.zeros(num_envs, bool)

    def frames(self):
        self.shown += 1
        shape = (4, self.size, self.size)
        return np.stack([np.random.default_rng((s, self.shown)).integers(0, 256, shape, np.uint8) for s in self.seeds])

    def reset(self):
        return self.frames(), {}

    def step(self, actions):
        self.time = np.where(self.done, 0, self.time + 1)
        rewards = np.array([(s + t) % 3 == 0 for s, t in zip(self.seeds, self.time, strict=True)]) * (1.0 - self.done)
        ended = ~self.done & (self.time == self.lengths)
        self.done = ended
        info = {"ram": np.ones((len(ended), 128), np.uint8), "terminated": ended.astype(np.int32)}
        return self.frames(), rewards.astype(np.float32), ended, np.zeros(len(ended), bool), info


def rank(script, k: int, job: dict) -> int:
    """One rank's part of a job, in a process of its own. Returns its exit status."""
    script.RANK = script.LOCAL_RANK = k
    script.RANKS = script.LOCAL_RANKS = job["ranks"]
    kept = {"gradients": {}}
    script.envpool.make = Pool
    torch.set_num_threads(1)
    if job.get("plain"):  # so that no ReLU's input is 1e-9 on one rank and -1e-9 on two
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double
        draw = torch.randint  # SND's minibatch is drawn: all samples, once each
        torch.randint = lambda high, size, **k: torch.arange(high) if size == (high,) else draw(high, size, **k)
    if job.get("fail"):
        step = script.AtariEnvs.step

        def fail(self, actions):
            if k == 1:
                raise eval(job["fail"])
            return step(self, actions)

        script.AtariEnvs.step = fail
    torch.distributions.Categorical.sample = lambda self: self.logits.argmax(-1)
    for part in (script.Agent, getattr(script, "RND", None) or script.SND):
        inner = part.__init__

        def keep(self, *a, inner=inner, key="agent" if part is script.Agent else "bonus", **k):
            inner(self, *a, **k)
            kept[key] = self

        part.__init__ = keep
    step_of_adam = torch.optim.Adam.step

    def keep_gradients(self, *a):
        grads = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        kept["gradients"].setdefault(str(len(grads)), torch.nn.ParameterList(grads))  # of the first step
        return step_of_adam(self, *a)

    torch.optim.Adam.step = keep_gradients
    status = script.main([*job["flags"], "--device", "cpu", "--runs-dir", f"{job['out']}/runs"])
    if not status:
        kept["gradients"] = torch.nn.ModuleDict(kept["gradients"])
        torch.save({key: part.state_dict() for key, part in kept.items()}, f"{job['out']}/rank{k}.pt")
    return status


if __name__ == "__main__":
    NAME, jobs = sys.argv[1], json.loads(sys.argv[2])
    script = importlib.import_module(NAME)
    for job in jobs:
        os.makedirs(job["out"])
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        pids = []
        for k in range(job["ranks"]):
            os.environ |= {"RANK": str(k), "WORLD_SIZE": str(job["ranks"])}
            pids.append(os.fork())
            if pids[-1] == 0:
                status = 70
                try:
                    status = rank(script, k, job)
                except Exception:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    pathlib.Path(job["out"], f"status{k}").write_text(str(status))
                    os._exit(0)
        for pid in pids:
            os.waitpid(pid, 0)
