"""What all scripts have in common: their sections, what they say they need, and what the documents say of them."""

import ast
import collections
import dataclasses
import importlib
import importlib.metadata
import importlib.util
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
import torch
from conftest import ROOT

SCRIPTS = sorted(ROOT.glob("*.py"))
TITLES = [
    *("Environment", "Networks", "Normalisers, returns and losses", "The steps of the algorithm", "Training"),
    "Machinery (alike in all scripts; skip it on a first reading)",
    *("Evaluation", "Entry point"),
]
SAME = [
    *("Console", "MiniGridEnvs", "UserError", "forward", "gae", "init_layer"),
    *("load_checkpoint", "masked_mean", "normalise", "predictor_subset", "reading", "reward_filter", "to_tensor"),
]
SAME_WITHOUT_RANKS = ["Progress", "RunningMoments", "main"]
SAME_IN_A_GAME = ["resolve_env_id"]  # of Atari, and of MiniGrid; so is EpisodeStats


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
    # for imageio's mp4, gymnasium's AtariPreprocessing, gymnasium's MuJoCo and mountain car
    unseen = {"imageio-ffmpeg", "opencv-python-headless", "mujoco", "pygame-ce"}
    assert named - unseen == needs(source)
    assert (".mp4" in path.read_text()) == ("imageio-ffmpeg" in named)
    assert ("ale-py" in named) == ("opencv-python-headless" in named)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_sections_have_the_same_titles_in_the_same_order(path):
    assert re.findall(r"(?m)^# -{4,} (.+)$", path.read_text()) == TITLES


def blocks(path: pathlib.Path) -> dict[str, str]:
    """The text of every function and class at the top of a script, with its decorators and comments."""
    source = path.read_text()
    tops = [node for node in ast.parse(source).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    first = [min([node.lineno, *(d.lineno for d in node.decorator_list)]) for node in tops]
    lines = source.splitlines()
    return {node.name: "\n".join(lines[k - 1 : node.end_lineno]) for node, k in zip(tops, first, strict=True)}


def test_what_does_the_same_is_the_same_text():
    """Machinery and mathematics that scripts share; some of it knows ranks in ppo_rnd_atari.py."""
    all_blocks = {path.stem: blocks(path) for path in SCRIPTS}
    ranks = {name: "sum_over_ranks" in found for name, found in all_blocks.items()}
    for block in SAME:
        texts = {name: found[block] for name, found in all_blocks.items() if block in found}
        assert len(texts) > 1 and len({*texts.values()}) == 1, f"{block} differs in {', '.join(texts)}"

    def assert_same(block: str, names: list[str]) -> None:
        assert len(names) > 1
        assert len({all_blocks[name][block] for name in names}) == 1, f"{block} differs in {', '.join(names)}"

    for block in SAME_WITHOUT_RANKS:
        alone = [x for x in all_blocks if not ranks[x] and x != "reinforce_rnd_maze"]
        # the networks of snd_atari.py are large: it leaves PyTorch all threads
        assert_same(block, [x for x in alone if block != "main" or x != "snd_atari"])
    atari = [name for name in all_blocks if "atari" in name]
    minigrid = [name for name, found in all_blocks.items() if "MiniGridEnvs" in found]
    for block in SAME_IN_A_GAME:
        assert_same(block, atari)
        assert_same(block, minigrid)
    for names in ([x for x in atari if not ranks[x]], minigrid):
        assert_same("EpisodeStats", names)
    assert_same("restore", ["a2c_rnd_doorkey", "ppo_rnd_atari_ram", "ppo_rnd_minigrid"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_train_fits_on_a_screen_and_lines_are_short(path):
    assert blocks(path)["train"].count("\n") + 1 <= 60
    assert sum(len(line) > 110 for line in path.read_text().splitlines()) <= 40


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_flag_is_read(path):
    """And not only looked at by check_args."""
    source = path.read_text().replace(blocks(path)["check_args"], "")
    for field in dataclasses.fields(importlib.import_module(path.stem).Args):
        assert re.search(rf"\bargs\.{field.name}\b", source), f"nothing reads --{field.name}"


def test_the_readme_s_bonus_of_one_s_own(tmp_path):
    """The change that the README shows applies to the script, counts as a dictionary does, trains and resumes."""
    (change,) = re.findall(r"(?s)```diff\n(.*?)```", (ROOT / "README.md").read_text())
    path = tmp_path / "my_bonus.py"
    path.write_text((ROOT / "ppo_rnd_atari.py").read_text())
    subprocess.run(["git", "apply", "-"], input=change, text=True, cwd=tmp_path, check=True)
    spec = importlib.util.spec_from_file_location("my_bonus", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)

    torch.manual_seed(0)
    rnd, seen = script.RND(3, torch.device("cpu")), collections.Counter()
    pictures = torch.randint(0, 256, (6, 84, 84), dtype=torch.uint8)
    rnd.obs_rms.update(pictures, torch.ones(6, dtype=torch.bool))
    for _ in range(3):  # rollouts
        chosen, valid = torch.randint(0, 6, (5, 3)), torch.rand(5, 3) < 0.8
        codes = script.features(rnd.target, pictures[chosen], rnd.obs_rms)[..., :16]
        keys = [[tuple((code > 0).tolist()) for code in row] for row in codes]
        seen.update(keys[t][n] for t, n in valid.nonzero().tolist())
        bonus = script.novelty(rnd, pictures[chosen], valid)
        torch.testing.assert_close(bonus, torch.tensor([[max(1, seen[key]) ** -0.5 for key in row] for row in keys]))
    assert 1 < len(seen) <= 6

    small = ["--num-envs", "4", "--num-steps", "16", "--warmup-rollouts", "1", "--obs-norm", "frozen"]
    small += ["--update-epochs", "1"]
    runs = tmp_path / "runs"
    for begin, total in ((lambda: small, "128"), (lambda: ["--resume", str(next(runs.iterdir()))], "192")):
        command = [sys.executable, str(path), *begin(), "--total-timesteps", total]
        out = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert out.returncode == 0, out.stderr
    state = torch.load(next(runs.rglob("latest.pt")), weights_only=True)
    assert 150 < state["rnd"]["counts"].sum() <= 192


def test_tests_that_the_documents_name_exist():
    """What guards what: a test that is named in a document is there."""
    there = set(re.findall(r"(?m)^def (test_\w+)", "".join(p.read_text() for p in (ROOT / "tests").glob("*.py"))))
    for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md")):
        assert set(re.findall(r"`(test_\w+)`", path.read_text())) <= there, path


BF16 = {
    "ppo_rnd_atari": (4, 84, 84),
    "ppo_rnd_atari_ram": (2, 128),
    "snd_atari": (4, 96, 96),
    "dqn_rnd_atari": (4, 84, 84),
}


@pytest.mark.parametrize("name", BF16)
def test_bf16_leaves_the_last_layers_in_float32(name):
    """Logits and values in bfloat16 would be multiples of 0.03 near 4: they are none, but near what float32 gives."""
    script = importlib.import_module(name)
    obs = torch.randint(0, 256, (8, *BF16[name]), dtype=torch.uint8)

    def outputs(bf16: bool) -> tuple[torch.Tensor, ...]:
        torch.manual_seed(1)
        args = script.Args(bf16=bf16)
        if name == "dqn_rnd_atari":
            return (script.Agent(18, 2, args)(obs, 1)[0],)
        agent = script.Agent(18, args) if name == "snd_atari" else script.Agent(18, 2)
        return script.forward(agent, obs, args)

    for low, full in zip(outputs(True), outputs(False), strict=True):
        assert low.dtype == torch.float32 and not torch.equal(low, full)
        assert (low != low.bfloat16().float()).float().mean() > 0.9
        torch.testing.assert_close(low, full, rtol=0, atol=0.05 * full.abs().max().item())
