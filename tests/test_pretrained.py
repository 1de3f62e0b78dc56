"""The agents in pretrained/: the table says what there is, and each plays."""

import re

import pytest
import torch
from conftest import ROOT, run_script

FOLDER = ROOT / "pretrained"
TABLE = (FOLDER / "README.md").read_text()
AGENTS = dict(re.findall(r"(?m)^\| `([\w.-]+\.pt)`[^|]*\| `(\w+\.py) ", TABLE))  # file -> script


def test_the_table_lists_what_there_is():
    assert {*AGENTS} == {path.name for path in FOLDER.glob("*.pt")}
    for name in AGENTS:
        (line,) = [line for line in TABLE.splitlines() if line.startswith(f"| `{name}`")]
        saved = torch.load(FOLDER / name, weights_only=True)
        assert f" {saved['step']:,} |" in line and f"| {saved['args']['seed']} |" in line
        assert "rnd" not in saved and ("half" in line) == (next(iter(saved["agent"].values())).dtype == torch.float16)
        assert (FOLDER / name).stat().st_size < (2e6 if "half" in line else 1e6)


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_plays_as_its_script_opens_it(name, tmp_path):
    """A mean of some episodes that a random agent does not get."""
    done = run_script(
        AGENTS[name],
        "--evaluate",
        FOLDER / name,
        "--eval-episodes",
        2 if "Montezuma" in name else 10,
        "--seed",
        1000,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    (score,) = re.findall(r"(?m)^(?:return|success) (\d+\.\d+) \+-", done.stdout)
    assert float(score) > (50 if "Montezuma" in name else 0.5)
    assert not [*tmp_path.iterdir()]
