"""ppo_rnd_minigrid.py whose divisor of the bonus begins anew after a million frames.

By then the predictor has learned, and the large errors of its first rollouts, which keep the divisor high, are
forgotten. A control for benchmark/minigrid_runs.py. Same flags. It cannot go on from a checkpoint: the sweep starts
it anew.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import ppo_rnd_minigrid

BEGINS_AT = 1e6
intrinsic_rewards = ppo_rnd_minigrid.intrinsic_rewards
waiting = True


def with_a_later_divisor(rnd: ppo_rnd_minigrid.RND, *args: object) -> ppo_rnd_minigrid.Tensor:
    """r_int (T, N). Once, when the moments have seen a million steps, they forget them."""
    global waiting
    if waiting and rnd.return_rms.count >= BEGINS_AT:
        rnd.return_rms.mean.fill_(0)
        rnd.return_rms.var.fill_(1)
        rnd.return_rms.count.fill_(1e-4)
        waiting = False
    return intrinsic_rewards(rnd, *args)


ppo_rnd_minigrid.intrinsic_rewards = with_a_later_divisor

if __name__ == "__main__":
    sys.exit(ppo_rnd_minigrid.main())
