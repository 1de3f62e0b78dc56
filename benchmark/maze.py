"""The maze's table and figures: every goal with and without the bonus, and what each part of the script is worth.

    python benchmark/maze.py --out docs/results/maze --jobs 2
    python benchmark/maze.py --speed

Each run is `python reinforce_rnd_maze.py` with the flags of its row, as a process of its own on one thread. Runs that
are already in the CSV are not repeated, so this can be stopped and started again. Writes <out>.csv (a line for each
run), the figures <out>_curves.png, <out>_parts.png and <out>_return_norm.png, and prints the table and how surely each
part makes a difference. `--speed` measures rollouts alone.
"""

import pathlib
import sys
import time

import numpy as np
import torch
from plot import draw_curves, number_of
from scipy.stats import PermutationMethod, mannwhitneyu
from sweep import ROOT, Job, curve_cell, curves_of, fill_table, spread, table_parser

sys.path.insert(0, str(ROOT))
import matplotlib.pyplot as plt

import reinforce_rnd_maze as maze

SCRIPT = ROOT / "reinforce_rnd_maze.py"
PLAIN = "--int-coef 0 --no-baseline --no-anneal"
NOTES = f"{PLAIN} --num-envs 1 --learning-rate 1e-4 --ent-coef 0.1 --ext-coef 1"
ROWS = {  # name, which begins with the goal -> flags
    "9-9, with RND": "",
    "9-9, without": "--int-coef 0",
    "9-6, with RND": "",
    "9-6, without": "--int-coef 0",
    "9-1, with RND": "",
    "9-1, without": "--int-coef 0",
    "9-9, demonstration": "--int-coef 0 --demo-curriculum",
    "9-9, the notes' bonus": "--bonus notes",
    "9-9, bonus ends with the episode": "--int-episodic",
    "9-9, nothing fades": "--no-anneal",
    "9-9, no baseline": "--no-baseline",
    "9-1, plain REINFORCE": PLAIN,
    "9-1, plain, returns standardised": f"{PLAIN} --return-norm",
    "9-1, the notes' REINFORCE": NOTES,
    "9-1, the notes', returns standardised": f"{NOTES} --return-norm",
}
ROWS = {row: (["--goal", row.split(",")[0], *flags.split()], 10) for row, flags in ROWS.items()}  # 10: seeds


def shortest(row: str) -> int:
    """Steps to the goal of a row."""
    return len(maze.MazeEnvs(1, maze.GOALS[row.split(",")[0]]).path) - 1


def right_actions(policy: dict, goal: str) -> tuple[float, float]:
    """Share of cells whose likeliest action leads nearer to the goal: in the first room, and in all others."""
    envs = maze.MazeEnvs(1, maze.GOALS[goal])
    distance = np.full(len(envs.cells), np.inf)
    distance[envs.goal] = 0
    for _ in distance:
        distance = np.minimum(distance, distance[envs.next_state].min(1) + 1)
        distance[envs.goal] = 0
    agent = maze.Agent(4)
    agent.load_state_dict(policy)
    with torch.no_grad():
        actions = agent(envs.observations)[0].argmax(1).numpy()
    states = np.arange(len(distance))
    right = distance[envs.next_state[states, actions]] < distance
    first = (envs.cells < (3, 3)).all(1)
    rest = ~first & (states != envs.goal)
    return float(right[first].mean()), float(right[rest].mean())


def measure(job: Job, folder: pathlib.Path) -> dict:
    """The columns of the CSV for a finished run, after those that all tables have."""
    state = torch.load(folder / "latest.pt", weights_only=True)
    steps, episodes, success, lengths = zip(*state["curve"], strict=True)
    optimal = ""  # from which episode on is the path of likeliest actions the shortest, to the end of the run?
    for episode, length in zip(reversed(episodes), reversed(lengths), strict=True):
        if length != shortest(job.row):
            break
        optimal = episode
    first_room, other_rooms = right_actions(state["agent"], job.row.split(",")[0])
    first_hit, solved = state["first_hit"] or ["", ""], state["solved"] or ["", ""]
    return {
        "first_hit_episode": first_hit[0],
        "first_hit_step": first_hit[1],
        "solved_episode": solved[0],
        "solved_step": solved[1],
        "optimal_episode": optimal,
        "success": success[-1],
        "path": lengths[-1] or "",
        "steps": steps[-1],
        "seconds": round(state["seconds"], 1),
        "first_room_right": round(first_room, 3),
        "other_rooms_right": round(other_rooms, 3),
        "curve": curve_cell(episodes, success, 2, np.searchsorted(episodes, np.linspace(0, episodes[-1], 61)[1:])),
    }


def print_table(runs: list[dict]) -> None:
    """The table of docs/results, in Markdown: lowest / median / highest."""
    columns = ("row", "flags", "solved", "first hit, episode", "95 %, episode", "95 %, step")
    columns += ("shortest path, from episode", "s")
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    for row, (flags, _) in ROWS.items():
        if mine := [r for r in runs if r["row"] == row]:
            good = sum(float(r["success"]) >= 0.95 and r["path"] == str(shortest(row)) for r in mine)
            names = ("first_hit_episode", "solved_episode", "solved_step", "optimal_episode")
            cells = [spread([r[name] for r in mine], ",.0f", none="never") for name in names]
            seconds = np.mean([float(r["seconds"]) for r in mine])
            print(f"| {row} | `{' '.join(flags)}` | {good} of {len(mine)} | {' | '.join(cells)} | {seconds:.0f} |")
    episodes = {row: [float(r["solved_episode"] or "inf") for r in runs if r["row"] == row] for row in ROWS}
    for row, ours in episodes.items():
        if row.startswith("9-9, ") and row != "9-9, with RND" and ours and episodes["9-9, with RND"]:
            every_way = PermutationMethod(n_resamples=200_000, batch=10_000)  # all 184,756: there are ties
            p = mannwhitneyu(ours, episodes["9-9, with RND"], method=every_way).pvalue
            print(f"{row}: episodes to 95 % against those with RND, Mann-Whitney's test, p = {p:.4f}")


def draw(runs: list[dict], out: pathlib.Path) -> None:
    """Learning curves for the three goals and of what each part is worth, mean and 95 % interval; what standardised
    returns do to the first room.
    """
    figure, panels = plt.subplots(1, 3, figsize=(11, 3), sharey=True, layout="constrained")
    for panel, goal in zip(panels, ("9-1", "9-6", "9-9"), strict=True):
        for name, color in (("with RND", "C0"), ("without", "C1")):
            curves = curves_of(runs, f"{goal}, {name}")
            draw_curves(panel, curves, color, f"{name} ({number_of(len(curves), 'seed')})")
        panel.set(title=f"goal {goal}, {shortest(goal)} steps away", xlabel="episodes", ylim=(-0.03, 1.03))
    panels[0].set_ylabel("success, last 100 episodes")
    panels[0].legend(fontsize=8, loc="lower right")
    figure.savefig(out.parent / f"{out.name}_curves.png", dpi=120)

    figure, panel = plt.subplots(figsize=(7, 3.2), layout="constrained")
    parts = ["with RND", "bonus ends with the episode", "nothing fades"]
    parts += ["the notes' bonus", "no baseline", "demonstration"]
    for k, name in enumerate(parts):
        curves = curves_of(runs, f"9-9, {name}")
        label = "demonstration, no bonus" if name == "demonstration" else name
        draw_curves(panel, curves, f"C{k}", f"{label} ({number_of(len(curves), 'seed')})")
    panel.set(title="goal 9-9", xlabel="episodes", ylabel="success, last 100 episodes", ylim=(-0.03, 1.03))
    figure.legend(fontsize=8, loc="outside right center", frameon=False)
    figure.savefig(out.parent / f"{out.name}_parts.png", dpi=120)

    figure, panel = plt.subplots(figsize=(6, 2.6), layout="constrained")
    names = {
        "9-1, the notes' REINFORCE": "returns as they are",
        "9-1, the notes', returns standardised": "returns standardised",
    }
    for offset, (row, label) in zip((-0.15, 0.15), names.items(), strict=True):
        mine = [r for r in runs if r["row"] == row]
        if not mine:
            continue
        for place, column in enumerate(("first_room_right", "other_rooms_right")):
            values = [100 * float(r[column]) for r in mine]
            x = place + offset + np.linspace(-0.08, 0.08, len(values))
            color = "C0" if offset < 0 else "C3"
            panel.plot(x, values, "o", color=color, markersize=4, label=label if place == 0 else None)
            panel.plot(x[[0, -1]], 2 * [np.mean(values)], color=color)
    panel.set_xticks([0, 1], ["first room", "all other rooms"])
    panel.set(ylabel="% of cells with a right\nlikeliest action; bar: mean", ylim=(0, 103), xlim=(-0.5, 1.5))
    panel.legend(fontsize=8, loc="lower left")
    figure.savefig(out.parent / f"{out.name}_return_norm.png", dpi=120)


def print_speed() -> None:
    """Steps of a random policy in a CPU-second of one thread, for several numbers of episodes side by side."""
    torch.set_num_threads(1)
    args = maze.Args()

    def policy(obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(obs), 4), torch.zeros(len(obs), 2)

    for num_envs in (1, 4, 16, 64, 1024):
        envs = maze.MazeEnvs(num_envs, (9, 9))
        start, steps = time.process_time(), 0
        while time.process_time() < start + 2:
            steps += int(maze.collect(envs, policy, args).valid.sum())
        print(f"{num_envs:5d} episodes at a time: {steps / (time.process_time() - start):12,.0f} steps/s")


def main() -> int:
    parser = table_parser(__doc__, "runs/maze")
    parser.add_argument("--speed", action="store_true", help="measure the speed of rollouts, and nothing else")
    if "--speed" in sys.argv:
        print_speed()
        return 0
    args = parser.parse_args()
    runs, status = fill_table(
        *(SCRIPT, ROWS, args, measure),
        tell=lambda x: f"first hit {x['first_hit_episode'] or 'never'}, 95 % {x['solved_episode'] or 'never'}",
    )
    print_table(runs)
    draw(runs, args.out)
    return status


if __name__ == "__main__":
    sys.exit(main())
