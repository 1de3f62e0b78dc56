"""a2c_rnd_doorkey.py with 1 in place of the predictor's error.

With --first-visit every view then pays the same, once an episode.
A control for benchmark/doorkey.py. Same flags, --resume too.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import a2c_rnd_doorkey

a2c_rnd_doorkey.novelty = lambda rnd, hidden, targets: hidden.new_ones(len(hidden))

if __name__ == "__main__":
    sys.exit(a2c_rnd_doorkey.main())
