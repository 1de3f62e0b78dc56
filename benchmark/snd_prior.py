"""snd_atari.py whose statistics of the frames start as in the author's run, slowly: a control for docs/results.

His start is a variance of 1 for frames between 0 and 1, with the weight of one step of 128 frames. Same flags,
--resume too.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import snd_atari

start = snd_atari.SND.__init__


def start_slowly(self: snd_atari.SND, *args: object) -> None:
    """`SND`, its frames' variance 255^2 grey values squared, that of 128 frames."""
    start(self, *args)
    self.obs_rms.var.fill_(255**2)
    self.obs_rms.count.fill_(128)


snd_atari.SND.__init__ = start_slowly

if __name__ == "__main__":
    sys.exit(snd_atari.main())
