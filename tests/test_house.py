"""What all scripts have in common: their sections, and what they say they need."""

import ast
import importlib.metadata
import re
import sys
import tomllib

import pytest
from conftest import ROOT

SCRIPTS = sorted(ROOT.glob("*.py"))
TITLES = [
    *("Arguments", "Environment", "Networks", "Normalisers and returns", "Checkpoints, logs and signals", "Training"),
    *("Evaluation and video", "Entry point"),
]


def needs(source: str) -> set[str]:
    """Distributions that a script imports, at the top or inside a function, but for what is optional."""
    imports = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {name.name for node in imports if isinstance(node, ast.Import) for name in node.names}
    modules |= {node.module for node in imports if isinstance(node, ast.ImportFrom)}
    modules = {"tensorboard" if m == "torch.utils.tensorboard" else m.split(".")[0] for m in modules}
    packages = importlib.metadata.packages_distributions()
    return {packages[m][0].lower() for m in modules - sys.stdlib_module_names - {"wandb"}}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_header_says_what_the_script_needs_as_requirements_do(path):
    """The PEP 723 header, for `uv run` and its like: the same versions as in requirements.txt, nothing left out."""
    source = path.read_text()
    (block,) = re.findall(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", source)
    header = tomllib.loads("".join(line.removeprefix("#").strip() + "\n" for line in block.splitlines()))
    pinned = set((ROOT / "requirements.txt").read_text().split())
    assert header["requires-python"] == ">=3.11"
    assert set(header["dependencies"]) <= pinned
    named = {re.split("==", line)[0] for line in header["dependencies"]}
    unseen = {"imageio-ffmpeg", "opencv-python-headless"}  # imageio's mp4, gymnasium's AtariPreprocessing
    assert named - unseen == needs(source)
    assert ("imageio" in named) == ("imageio-ffmpeg" in named)
    assert ("ale-py" in named) == ("opencv-python-headless" in named)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_sections_have_the_same_titles_in_the_same_order(path):
    rule = "# " + "-" * 118
    lines = path.read_text().splitlines()
    titles = [lines[k + 1].removeprefix("# ") for k in range(len(lines) - 2) if lines[k] == lines[k + 2] == rule]
    assert [title.replace("pictures", "video") for title in titles] == TITLES  # the maze makes pictures, no videos
