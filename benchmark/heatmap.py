"""Where the agent of a MiniGrid run goes in one layout, and how new each of its cells is to it: a picture.

    python benchmark/heatmap.py runs/RUN --episodes 100 --seed 2 --out docs/results/minigrid_keycorridor.png

All episodes are in the layout of --seed. The picture has the layout, how often each cell was visited, and the novelty
that training would pay there (--novelty of the run, raw, without the episodic term), mean over the visits.
"""

import argparse
import pathlib
import sys

import gymnasium as gym
import matplotlib
import numpy as np
import torch
from minigrid.wrappers import ImgObsWrapper

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import ppo_rnd_minigrid as script

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.colors import LogNorm


@torch.no_grad()
def episode_bonus(views: np.ndarray, args: script.Args, rnd: script.RND, table: script.CountTable) -> np.ndarray:
    """The lifelong part of the bonus of each step of an episode: views (L+1, 7, 7, 3) uint8 -> (L,)."""
    if not args.int_coef:
        return np.zeros(len(views) - 1)
    inputs = script.rnd_inputs(rnd, torch.from_numpy(views), args)
    errors = (rnd.predictor(inputs) - rnd.target(inputs)).square().mean(1)  # (L+1,)
    counts = torch.tensor([table.counts[view.tobytes()] + 1 for view in views[1:]])
    return script.lifelong_bonus(args.novelty, errors, counts).numpy()


@torch.no_grad()
def play(env: gym.Env, agent: script.Agent, args: script.Args, seed: int) -> tuple[list, np.ndarray, float]:
    """One episode: where the agent stands and what it sees at first and after each step, and its return."""
    (obs, _), score, done = env.reset(seed=seed), 0.0, False
    positions, views = [tuple(env.unwrapped.agent_pos)], [obs]
    while not done:
        logits, _ = agent(script.encode(torch.from_numpy(obs)[None], args.policy_obs))
        obs, reward, terminated, truncated, _ = env.step(int(torch.multinomial(logits.softmax(1), 1)))
        score, done = score + float(reward), terminated or truncated
        positions.append(tuple(env.unwrapped.agent_pos))
        views.append(obs)
    return positions, np.stack(views), score


def draw(picture: np.ndarray, visits: np.ndarray, bonus: np.ndarray, title: str, path: pathlib.Path) -> None:
    """The three panels. Args: picture (32 H, 32 W, 3) uint8; visits and bonus (W, H), NaN where the agent never was."""
    columns, rows = visits.shape
    width, height = 3 * 3.4 * max(1.0, columns / rows) + 1.5, 3.4 * max(1.0, rows / columns) + 0.6
    figure, panels = plt.subplots(1, 3, figsize=(width, height), layout="constrained")
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    panels[0].imshow(picture, extent=extent)
    panels[0].set_title(title, fontsize=10)
    maps = ((visits, "visits", LogNorm(vmin=1)), (bonus, "novelty, mean over visits", None))
    for panel, (cells, label, norm) in zip(panels[1:], maps, strict=True):
        panel.imshow(picture // 4, extent=extent)
        shown = panel.imshow(cells.T, norm=norm, cmap="viridis")
        panel.set_title(label, fontsize=10)
        figure.colorbar(shown, ax=panel, shrink=0.8)
    for panel in panels:
        panel.set(xticks=[], yticks=[])
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="the run's folder, or a checkpoint of it")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the picture")
    parser.add_argument("--episodes", type=int, default=20, help="how many to play")
    parser.add_argument("--seed", type=int, default=1, help="of the layout and the actions")
    options = parser.parse_args()
    try:
        path, saved = script.load_checkpoint(options.run)
    except script.UserError as error:
        sys.exit(f"error: {error}")
    args, table = script.Args(**saved["args"]), script.CountTable()
    env = ImgObsWrapper(gym.make(args.env_id, render_mode="rgb_array"))
    num_heads = 1 if args.single_head else 2
    agent = script.Agent(int(env.action_space.n), num_heads, script.NUM_INPUTS[args.policy_obs])
    rnd = script.RND(args.num_envs, script.NUM_INPUTS[args.rnd_obs], torch.device("cpu"))
    for name, part in (("agent", agent), ("rnd", rnd), ("table", table)):
        part.load_state_dict(saved[name])

    env.reset(seed=options.seed)
    grid = env.unwrapped
    picture = grid.get_frame(highlight=False)
    visits, bonus = np.zeros((2, grid.width, grid.height))
    torch.manual_seed(options.seed)
    scores = []
    for _ in range(options.episodes):
        positions, views, score = play(env, agent, args, options.seed)
        cells = tuple(np.array(positions[1:]).T)
        np.add.at(visits, cells, 1)
        np.add.at(bonus, cells, episode_bonus(views, args, rnd, table))
        scores.append(score)
    visits[visits == 0] = np.nan  # left blank
    draw(picture, visits, bonus / visits, f"{args.env_id}, seed {options.seed}", options.out)
    print(f"{options.out}: {options.episodes} episodes in one layout, return {np.mean(scores):.3f}, {path}")


if __name__ == "__main__":
    main()
