"""Started by test_ranks.py, under torchrun or alone: trains on made-up frames and writes down what the ranks learned.

ranks_worker.py SCRIPT OUT FLAGS...   OUT gets rank0.pt, rank1.pt, ...
"""

import importlib
import pathlib
import sys

import numpy as np
import torch
import tyro

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))


class Pool:
    """EnvPool's interface: what an environment shows depends on its seed and on time, not on actions."""

    def __init__(self, env_id, num_envs, seed, img_height=84, **_):
        self.action_space = type("Space", (), {"n": 6})()
        self.seeds, self.size, self.shown = seed, img_height, 0
        self.lengths = np.array([5 + s % 7 for s in seed]) if ENDS else np.full(num_envs, 10**6)
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


if __name__ == "__main__":
    name, out, *flags = sys.argv[1:]
    ENDS = name == "ppo_rnd_atari"  # SND draws its samples: without resets they can be all, once each
    script, kept = importlib.import_module(name), {}
    script.envpool.make = Pool
    if "--one-update" in flags:  # so that no ReLU's input is 1e-9 on one rank and -1e-9 on two
        flags.remove("--one-update")
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double
        draw = torch.randint  # SND's minibatch is drawn: all samples, once each
        torch.randint = lambda high, size, **k: torch.arange(high) if size == (high,) else draw(high, size, **k)
    torch.distributions.Categorical.sample = lambda self: self.logits.argmax(-1)
    for part in (script.Agent, getattr(script, "RND", None) or script.SND):
        inner = part.__init__

        def keep(self, *a, inner=inner, key="agent" if part is script.Agent else "bonus", **k):
            inner(self, *a, **k)
            kept[key] = self

        part.__init__ = keep
    step = torch.optim.Adam.step

    def keep_gradients(self, *a):
        grads = [p.grad.clone() for group in self.param_groups for p in group["params"]]
        kept.setdefault("gradients", {}).setdefault(str(len(grads)), torch.nn.ParameterList(grads))
        return step(self, *a)

    torch.optim.Adam.step = keep_gradients
    args = tyro.cli(script.Args, args=flags)
    status = script.train(args, "MontezumaRevenge-v5", script.join_ranks(torch.device("cpu")), None, None)
    kept["gradients"] = torch.nn.ModuleDict(kept["gradients"])
    torch.save({key: part.state_dict() for key, part in kept.items()}, pathlib.Path(out) / f"rank{script.RANK}.pt")
    sys.exit(status)
