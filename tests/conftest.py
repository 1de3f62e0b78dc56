"""What the tests of all scripts have in common."""

import pathlib
import signal
import subprocess
import sys

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def leave_no_trace():
    """Signal handlers and the thread count that a test has changed are put back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run_script(script: str, *flags: object, cwd: pathlib.Path, **kwargs) -> subprocess.CompletedProcess:
    """Runs a script of this project as a user does, in folder `cwd`."""
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, **kwargs)


def read_scalars(run_dir: pathlib.Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars in a run's folder: name -> [(step, value)]."""
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
