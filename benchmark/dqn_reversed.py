"""dqn_rnd_atari.py with the sign of the entropy in `--backup soft` turned round: V = E_pi[Q] - alpha * H(pi).

So it stands in the code of a course report (docs/source_documents.md). A control for benchmark/dqn.py. Same flags,
--resume too.
"""

import dataclasses
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import dqn_rnd_atari
from dqn_rnd_atari import Args, Tensor, next_value


def reversed_value(z: Tensor, q: Tensor, alpha: float, args: Args) -> Tensor:
    """As much below E_pi[Q] as the right value is above it, (B, K, H)."""
    expected = next_value(z, q, alpha, dataclasses.replace(args, backup="softmax"))
    return 2 * expected - next_value(z, q, alpha, args)


dqn_rnd_atari.next_value = reversed_value

if __name__ == "__main__":
    sys.exit(dqn_rnd_atari.main())
