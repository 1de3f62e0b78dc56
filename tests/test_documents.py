"""The tables of README.md and docs/results, compared with the CSVs that they come from."""

import re
import statistics
import sys

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "benchmark"))
import continuous
import corridor
import doorkey
import dqn
import endurance
import maze
import minigrid_runs
import ram
import sweep

RESULTS = ROOT / "docs" / "results"
README = {  # row of README's table -> CSV, row with the bonus, row without, column of the frames to the score
    "maze, far goal, 95 %": ("maze", "9-9, with RND", "9-9, without", "solved_step"),
    "DoorKey-8x8, A2C, 0.95": ("doorkey", "8x8 tuned, RND", "8x8 tuned, A2C", "frames_95"),
    "DoorKey-16x16, A2C, 0.95": ("doorkey", "16x16 tuned, RND", "16x16 tuned, A2C", "frames_95"),
    "DoorKey-16x16, PPO, 0.95": ("minigrid", "DoorKey-16x16, default", "DoorKey-16x16, PPO", "solved_at"),
    "KeyCorridorS3R3, PPO, 0.86": ("minigrid", "KeyCorridorS3R3, default", "KeyCorridorS3R3, PPO", "solved_at"),
    "KeyCorridorS4R3, PPO, 0.85": ("minigrid", "KeyCorridorS4R3, default", "KeyCorridorS4R3, PPO", "solved_at"),
    "ObstructedMaze-2Dlh, PPO, 0.9": ("minigrid", "ObstructedMaze-2Dlh, default", None, "solved_at"),
    "MountainCarContinuous, PPO, 90": (
        *("continuous", "MountainCarContinuous, PPO + RND", "MountainCarContinuous, PPO", "solved_at"),
    ),
    "PointMaze_Medium_Diverse_G, PPO, 100": (
        *("continuous", "PointMaze_Medium_Diverse_G, PPO + RND", "PointMaze_Medium_Diverse_G, PPO", "solved_at"),
    ),
    "Montezuma's Revenge from RAM, the key": (
        *("ram", "MontezumaRevenge, with the bonus", "MontezumaRevenge, without", "key"),
    ),
}
README["Montezuma's Revenge from RAM, 1,000"] = ("ram", "MontezumaRevenge, on to 8M", None, "1,000")
FRAMES = {"ram": 4}  # frames in one of the table's steps, if not 1


def tables(path):
    """First cell -> the other cells, of all tables in a Markdown file."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in ([x.strip() for x in line.strip("|").split("|")] for line in lines)}


def lines_of(name, row):
    lines = [line for line in sweep.read_table(RESULTS / f"{name}.csv") if line["row"] == row]
    assert lines, f"{name}.csv has no {row}"
    return lines


def frames_to(name, row, column):
    """Frames that each seed of a row took, in millions; only of those that got there. And the number of all seeds."""
    lines = lines_of(name, row)
    return [FRAMES.get(name, 1) * float(line[column]) / 1e6 for line in lines if line[column]], len(lines)


@pytest.mark.parametrize("label", README)
def test_a_row_of_the_readme_is_what_the_csv_says(label):
    name, row, other, column = README[label]
    with_bonus, mask, alone, without, frames, _ = tables(ROOT / "README.md")[label]
    took, seeds = frames_to(name, row, column)
    assert with_bonus == f"{len(took)} of {seeds}"
    assert frames == f"{statistics.median(took):.2f}M ({min(took):.2f}M to {max(took):.2f}M)"
    compared = [(name, without, other)]
    if name == "doorkey":
        compared += [(name, mask, row.replace("RND", "first visits alone"))]
        compared += [(name, alone, row.replace("RND", "RND at every visit"))]
    else:
        compared += [("minigrid_novelty", mask, row.replace("default", "the mask alone"))]
        compared += [(name, alone, row.replace("default", "RND alone"))]
    for name, cell, other_row in compared:
        rows = {line["row"] for line in sweep.read_table(RESULTS / f"{name}.csv")}
        if other_row not in rows - {row}:
            assert cell in ("", "not run")
            continue
        reached, seeds = frames_to(name, other_row, column)
        (words,) = re.findall(r"^(\d+ of \d+)(?:, ([\d.]+)M)?(?: in ([\d.]+)M)?$", cell)
        assert words[0] == f"{len(reached)} of {seeds}"
        if words[1]:
            assert words[1] == f"{statistics.median(reached):.2f}"
        if words[2]:  # the frames that were allowed
            played = next(x for x in ("frames", "steps") if x in lines_of(name, other_row)[0])
            allowed = FRAMES.get(name, 1) * max(float(line[played]) for line in lines_of(name, other_row))
            assert 0.9 * float(words[2]) < allowed / 1e6 <= float(words[2])


def test_every_row_of_the_readme_has_its_numbers_checked():
    """All but Montezuma's row from pixels, of runs that are not lines of a table, stand above."""
    (table,) = re.findall(r"(?s)\| task, score \|.*?\n\n", (ROOT / "README.md").read_text())
    labels = [line.split("|")[1].strip() for line in table.strip().splitlines()[2:]]
    assert {x for x in labels if not x.endswith("from pixels, the key")} == set(README)


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("pretrained/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_page_leads_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        goal = page.parent / target if target else page
        assert goal.exists(), target
        headings = re.findall(r"(?m)^#+ (.*)$", goal.read_text()) if anchor else ()
        assert not anchor or anchor in [re.sub(r"[^\w\- ]", "", x.lower()).replace(" ", "-") for x in headings]


def test_every_test_that_a_page_names_is_there():
    files = [*ROOT.glob("tests/test_*.py")]
    there = {name for path in files for name in re.findall(r"(?m)^def (test_\w+)", path.read_text())}
    named = {name for page in PAGES for name in re.findall(r"\btest_\w+", page.read_text())}
    assert len(named) > 50 and not named - there - {path.stem for path in files}


@pytest.mark.parametrize(
    ("name", "program", "rows"),
    [
        ("maze", maze, ()),
        ("doorkey", doorkey, ()),
        ("dqn", dqn, ()),
        ("corridor", corridor, ()),
        ("corridor_dqn", corridor, ()),
        ("corridor_snd", corridor, ()),
        ("minigrid", minigrid_runs, (minigrid_runs.ROWS["main"],)),
        ("continuous", continuous, ()),
        ("ram", ram, ()),
        ("ram_before", ram, ()),
        ("games", ram, ()),
        ("endurance", endurance, ()),
        ("minigrid_ablations", minigrid_runs, (minigrid_runs.ROWS["ablations"],)),
        ("minigrid_novelty", minigrid_runs, (minigrid_runs.ROWS["novelty"],)),
        ("minigrid_ends", minigrid_runs, (minigrid_runs.ROWS["ends"] | minigrid_runs.ROWS["divisor"],)),
    ],
)
def test_a_table_of_the_results_is_the_one_that_its_program_prints(name, program, rows, capsys):
    """Made anew from the CSV; each line stands in a page of docs/results."""
    program.print_table(sweep.read_table(RESULTS / f"{name}.csv"), *rows)
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    written = [line for page in RESULTS.glob("*.md") for line in page.read_text().splitlines()]
    assert len(printed) > 2 and not [line for line in printed if line not in written]
