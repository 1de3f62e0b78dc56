"""The maze's table and figures: every goal with and without the bonus, and what each part of the script is worth.

    python benchmark/maze.py --out docs/results/maze --jobs 2
    python benchmark/maze.py --speed

Each run is `python reinforce_rnd_maze.py` with the flags of its row, as a process of its own on one thread. Runs that
are already in the CSV are not repeated, so this can be stopped and started again. Writes <out>.csv (a line for each
run), the figures <out>_curves.png, <out>_parts.png and <out>_return_norm.png, and prints the table and how surely each
part makes a difference. `--speed` measures rollouts alone.
"""

import argparse
import concurrent.futures
import csv
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import matplotlib
import numpy as np
import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
import reinforce_rnd_maze as maze  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from plot import draw_curves  # noqa: E402
from scipy.stats import mannwhitneyu  # noqa: E402

PLAIN = ["--int-coef", "0", "--no-baseline", "--no-anneal"]
NOTES = [*PLAIN, "--num-envs", "1", "--learning-rate", "1e-4", "--ent-coef", "0.1", "--ext-coef", "1"]
ROWS = {  # name -> (goal, flags)
    "9-9, with RND": ("9-9", []),
    "9-9, without": ("9-9", ["--int-coef", "0"]),
    "9-6, with RND": ("9-6", []),
    "9-6, without": ("9-6", ["--int-coef", "0"]),
    "9-1, with RND": ("9-1", []),
    "9-1, without": ("9-1", ["--int-coef", "0"]),
    "9-9, demonstration": ("9-9", ["--int-coef", "0", "--demo-curriculum"]),
    "9-9, seed's bonus": ("9-9", ["--bonus", "seed"]),
    "9-9, bonus ends with the episode": ("9-9", ["--int-episodic"]),
    "9-9, nothing fades": ("9-9", ["--no-anneal"]),
    "9-9, no baseline": ("9-9", ["--no-baseline"]),
    "9-1, plain REINFORCE": ("9-1", PLAIN),
    "9-1, plain, returns standardised": ("9-1", [*PLAIN, "--return-norm"]),
    "9-1, the notes' REINFORCE": ("9-1", NOTES),
    "9-1, the notes', returns standardised": ("9-1", [*NOTES, "--return-norm"]),
}
COLUMNS = [
    *("row", "seed", "first_hit_episode", "first_hit_step", "solved_episode", "solved_step", "optimal_episode"),
    *("success", "path", "steps", "seconds", "first_room_right", "other_rooms_right", "curve"),
]


def right_actions(policy: dict, goal: str) -> tuple[float, float]:
    """Share of cells whose likeliest action leads nearer to the goal: in the first room, and in all others."""
    envs = maze.MazeEnvs(1, maze.resolve_goal(goal), 500)
    distance = np.full(len(envs.cells), np.inf)
    distance[envs.goal] = 0
    for _ in distance:
        distance = np.minimum(distance, distance[envs.next_state].min(1) + 1)
        distance[envs.goal] = 0
    agent = maze.Agent(4)
    agent.load_state_dict(policy)
    with torch.no_grad():
        actions = agent(torch.from_numpy(envs.observations))[0].argmax(1).numpy()
    states = np.arange(len(distance))
    right = distance[envs.next_state[states, actions]] < distance
    first = (envs.cells < (3, 3)).all(1)
    rest = ~first & (states != envs.goal)
    return float(right[first].mean()), float(right[rest].mean())


def run(row: str, seed: int) -> dict:
    """One run, to its line of the CSV."""
    goal, flags = ROWS[row]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "reinforce_rnd_maze.py"), "--goal", goal, "--seed", str(seed)]
        command += ["--runs-dir", folder, *flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
        (path,) = pathlib.Path(folder).glob("*/latest.pt")
        state = torch.load(path, weights_only=True)
    progress, shortest = state["progress"], len(maze.shortest_path(maze.MazeEnvs(1, maze.resolve_goal(goal), 1))) - 1
    steps, episodes, success, lengths = zip(*state["curve"], strict=True)
    optimal = None  # from which episode on is the path of likeliest actions the shortest, to the end of the run?
    for episode, length in zip(reversed(episodes), reversed(lengths), strict=True):
        if length != shortest:
            break
        optimal = episode
    first_room, other_rooms = right_actions(state["agent"], goal)
    first_hit, solved = progress["first_hit"] or ["", ""], progress["solved"] or ["", ""]
    marks = np.searchsorted(episodes, np.linspace(0, episodes[-1], 61)[1:])
    return {
        "row": row,
        "seed": seed,
        "first_hit_episode": first_hit[0],
        "first_hit_step": first_hit[1],
        "solved_episode": solved[0],
        "solved_step": solved[1],
        "optimal_episode": optimal or "",
        "success": success[-1],
        "path": lengths[-1] or "",
        "steps": steps[-1],
        "seconds": round(progress["seconds"], 1),
        "first_room_right": round(first_room, 3),
        "other_rooms_right": round(other_rooms, 3),
        "curve": " ".join(f"{episodes[k]}:{success[k]:.2f}" for k in marks),
    }


def read(path: pathlib.Path) -> list[dict]:
    """The lines of the CSV, if there is one."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def spread(runs: list[dict], column: str) -> str:
    """Lowest, median and highest of a column over the runs that have it."""
    values = [float(r[column]) for r in runs if r[column] != ""]
    if not values:
        return "never"
    text = " / ".join(f"{x:,.0f}" for x in (min(values), np.median(values), max(values)))
    return text if len(values) == len(runs) else f"{text} ({len(values)} of {len(runs)})"


def print_table(runs: list[dict]) -> None:
    """The table of docs/results, in Markdown."""
    print(
        "| row | flags | solved | first hit, episode | 95 %, episode | 95 %, step | shortest path, from episode | s |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for row, (goal, flags) in ROWS.items():
        mine = [r for r in runs if r["row"] == row]
        if mine:
            shortest = len(maze.shortest_path(maze.MazeEnvs(1, maze.resolve_goal(goal), 1))) - 1
            good = [float(r["success"]) >= 0.95 and r["path"] == str(shortest) for r in mine]
            cells = [spread(mine, c) for c in ("first_hit_episode", "solved_episode", "solved_step", "optimal_episode")]
            seconds = np.mean([float(r["seconds"]) for r in mine])
            command = " ".join(["--goal", goal, *flags])
            print(f"| {row} | `{command}` | {sum(good)} of {len(mine)} | {' | '.join(cells)} | {seconds:.0f} |")
    episodes = {row: [float(r["solved_episode"] or "inf") for r in runs if r["row"] == row] for row in ROWS}
    for row, ours in episodes.items():
        if row.startswith("9-9, ") and row != "9-9, with RND" and ours and episodes["9-9, with RND"]:
            p = mannwhitneyu(ours, episodes["9-9, with RND"]).pvalue
            print(f"{row}: episodes to 95 % against those with RND, Mann-Whitney's test, p = {p:.4f}")


def draw(runs: list[dict], out: pathlib.Path) -> None:
    """Learning curves for the three goals and of what each part is worth, mean and 95 % interval; what standardised
    returns do to the first room.
    """
    figure, panels = plt.subplots(1, 3, figsize=(11, 3), sharey=True, layout="constrained")
    for panel, (goal, shortest) in zip(panels, (("9-1", 14), ("9-6", 23), ("9-9", 50)), strict=True):
        for name, color in (("with RND", "C0"), ("without", "C1")):
            mine = [r["curve"].split() for r in runs if r["row"] == f"{goal}, {name}"]
            curves = [np.array([[float(x) for x in point.split(":")] for point in points]).T for points in mine]
            draw_curves(panel, curves, color, f"{name} ({len(curves)} seeds)")
        panel.set(title=f"goal {goal}, {shortest} steps away", xlabel="episodes", ylim=(-0.03, 1.03))
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel("success, last 100 episodes")
    panels[0].legend(fontsize=8, loc="lower right")
    figure.savefig(out.parent / f"{out.name}_curves.png", dpi=120)

    figure, panel = plt.subplots(figsize=(7, 3.2), layout="constrained")
    parts = ("with RND", "bonus ends with the episode", "nothing fades", "seed's bonus", "no baseline", "demonstration")
    for k, name in enumerate(parts):
        mine = [r["curve"].split() for r in runs if r["row"] == f"9-9, {name}"]
        curves = [np.array([[float(x) for x in point.split(":")] for point in points]).T for points in mine]
        draw_curves(panel, curves, f"C{k}", f"{name} ({len(curves)} seeds)")
    panel.set(title="goal 9-9", xlabel="episodes", ylabel="success, last 100 episodes", ylim=(-0.03, 1.03))
    panel.spines[["top", "right"]].set_visible(False)
    figure.legend(fontsize=8, loc="outside right center", frameon=False)
    figure.savefig(out.parent / f"{out.name}_parts.png", dpi=120)

    figure, panel = plt.subplots(figsize=(6, 2.6), layout="constrained")
    names = {
        "9-1, the notes' REINFORCE": "returns as they are",
        "9-1, the notes', returns standardised": "returns standardised",
    }
    for offset, (row, label) in zip((-0.15, 0.15), names.items(), strict=True):
        mine = [r for r in runs if r["row"] == row]
        for place, column in enumerate(("first_room_right", "other_rooms_right")):
            values = [100 * float(r[column]) for r in mine]
            x = place + offset + np.linspace(-0.08, 0.08, len(values))
            color = "C0" if offset < 0 else "C3"
            panel.plot(x, values, "o", color=color, markersize=4, label=label if place == 0 else None)
            panel.plot(x[[0, -1]], 2 * [np.mean(values)], color=color)
    panel.set_xticks([0, 1], ["first room", "all other rooms"])
    panel.set(ylabel="% of cells with a\nright likeliest action", ylim=(0, 103), xlim=(-0.5, 1.5))
    panel.spines[["top", "right"]].set_visible(False)
    panel.legend(fontsize=8, loc="lower left")
    figure.savefig(out.parent / f"{out.name}_return_norm.png", dpi=120)


def print_speed() -> None:
    """Steps of a random policy in a CPU-second of one thread, for several numbers of episodes side by side."""
    torch.set_num_threads(1)
    policy = torch.full((67, 4), 0.25)
    for num_envs in (1, 4, 16, 64, 1024):
        envs = maze.MazeEnvs(num_envs, (9, 9), 500)
        start, steps = time.process_time(), 0
        while time.process_time() < start + 2:
            steps += int(maze.play(envs, policy)["valid"].sum())
        print(f"{num_envs:5d} episodes at a time: {steps / (time.process_time() - start):12,.0f} steps/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, help="path of the results, without its ending")
    parser.add_argument("--speed", action="store_true", help="measure the speed of rollouts, and nothing else")
    parser.add_argument("--seeds", nargs="+", type=int, default=range(1, 11))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="which rows to run")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side, one core each")
    args = parser.parse_args()
    if args.speed:
        print_speed()
        return
    if not args.out:
        parser.error("--out or --speed")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    path = args.out.with_suffix(".csv")
    runs = read(path)
    done = {(r["row"], int(r["seed"])) for r in runs}
    todo = [(row, seed) for row in args.rows for seed in args.seeds if (row, seed) not in done]
    with open(path, "a", newline="") as file, concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        writer = csv.DictWriter(file, COLUMNS)
        if not runs:
            writer.writeheader()
        for k, future in enumerate(concurrent.futures.as_completed([pool.submit(run, *job) for job in todo]), 1):
            line = future.result()
            writer.writerow(line)
            file.flush()
            hit, solved = line["first_hit_episode"] or "never", line["solved_episode"] or "never"
            print(f"{k}/{len(todo)} {line['row']}, seed {line['seed']}: first hit {hit}, 95 % {solved}", flush=True)
    runs = read(path)
    print_table(runs)
    draw(runs, args.out)


if __name__ == "__main__":
    main()
