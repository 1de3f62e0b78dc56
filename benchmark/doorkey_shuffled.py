"""a2c_rnd_doorkey.py whose bonus goes to random samples of the rollout: its sizes are right, its places are not.

A control for benchmark/doorkey.py. Same flags, --resume too.
"""

import pathlib
import sys

import torch
from torch import Tensor

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import a2c_rnd_doorkey

aligned = a2c_rnd_doorkey.intrinsic_rewards


def shuffled(
    rnd: a2c_rnd_doorkey.RND, rollout: a2c_rnd_doorkey.Rollout, args: a2c_rnd_doorkey.Args
) -> tuple[Tensor, Tensor]:
    """`intrinsic_rewards`, its r_int (T, N) in another order over the steps that are no resets."""
    intrinsic, loss = aligned(rnd, rollout, args)
    paid = intrinsic[rollout.valid]
    intrinsic[rollout.valid] = paid[torch.randperm(len(paid), device=paid.device)]
    return intrinsic, loss


a2c_rnd_doorkey.intrinsic_rewards = shuffled

if __name__ == "__main__":
    sys.exit(a2c_rnd_doorkey.main())
