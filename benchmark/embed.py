"""What do the targets of snd_atari.py's runs make of the same frames? A picture, and three numbers for each.

    python benchmark/embed.py runs/RUN runs/OTHER --out picture.png

The agent of the first run plays; targets of all runs, and one with the first run's random first weights, see up to
2,000 frames of it. For each the picture has t-SNE and principal components, coloured by the room in the RAM, and the
spectrum. The numbers are those of `separability`.
"""

import argparse
import pathlib
import sys

import numpy as np
import torch
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import snd_atari as script


def separability(z: np.ndarray, rooms: np.ndarray, episodes: np.ndarray) -> dict[str, float]:
    """How well features (K, D) tell the rooms (K,) of frames from several episodes (K,) apart.

    Returns: nearest, the share of frames whose nearest neighbour in another episode is in the same room, among those
    whose room is in another episode at all; between, the share of the variance that is between the rooms' means;
    dimensions, (sum of the covariance's eigenvalues)^2 / sum of their squares.
    """
    other = episodes[:, None] != episodes[None]  # (K, K)
    same = rooms[:, None] == rooms[None]
    squares = np.square(z).sum(1)
    distances = np.where(other, squares[:, None] + squares[None] - 2 * z @ z.T, np.inf)
    known = (same & other).any(1)
    hits = rooms[distances.argmin(1)] == rooms
    centred = z - z.mean(0)
    within = sum(np.square(z[rooms == room] - z[rooms == room].mean(0)).sum() for room in np.unique(rooms))
    eigenvalues = np.linalg.svd(centred, compute_uv=False) ** 2
    return {
        "nearest": float(hits[known].mean()) if known.any() else float("nan"),
        "between": float(1 - within / np.square(centred).sum()),
        "dimensions": float(eigenvalues.sum() ** 2 / np.square(eigenvalues).sum()),
    }


def plot_embeddings(
    models: dict[str, np.ndarray], rooms: np.ndarray, episodes: np.ndarray, seed: int, path: pathlib.Path
) -> dict[str, dict[str, float]]:
    """A column for each model's features (K, D) of the same frames: t-SNE, PCA, spectrum. Returns their numbers."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    figure = Figure(figsize=(4 * len(models) + 0.8, 10), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(3, len(models), squeeze=False)
    numbers = {}
    for column, (name, z) in zip(panels.T, models.items(), strict=True):
        numbers[name] = separability(z, rooms, episodes)
        flat = TSNE(random_state=seed, perplexity=min(30, (len(z) - 1) / 3)).fit_transform(z)
        for panel, points, title in ((column[0], flat, "t-SNE"), (column[1], PCA(2).fit_transform(z), "PCA")):
            for k, room in enumerate(np.unique(rooms)):
                here = points[rooms == room]
                panel.scatter(*here.T, s=5, color=f"C{k % 10}", marker="o^s"[k // 10 % 3], label=f"{room}")
            panel.set(xticks=[], yticks=[], title=f"{name}, {title}")
        spectrum = PCA().fit(z).explained_variance_ratio_
        column[2].semilogy(np.arange(1, len(spectrum) + 1), spectrum.clip(1e-12), ".-", markersize=3)
        column[2].set(xlabel="component", title="share of the variance", xlim=(0, 100), ylim=(1e-6, 1))
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside right upper", title="room", markerscale=3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    return numbers


def play(args: script.Args, device: torch.device, state: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Episodes with the policy of a checkpoint: newest frames (K, 96, 96), their rooms (K,) and episodes (K,)."""
    torch.manual_seed(args.seed)
    env = script.make_evaluation_env(args)
    agent = script.Agent(env.action_space.n, args).to(device)
    agent.load_state_dict(state)
    frames, rooms, episodes = [], [], []
    for episode in tqdm(range(args.eval_episodes), unit="episode", disable=not sys.stderr.isatty()):
        obs, _ = env.reset(seed=args.seed + episode)
        for _ in range(args.max_episode_steps):
            frames.append(obs[3])
            rooms.append(int(env.unwrapped.ale.getRAM()[script.ROOM_BYTE[args.env_id]]))
            episodes.append(episode)
            with torch.no_grad():
                logits, _ = agent(torch.from_numpy(obs)[None].to(device))
            obs, _, terminated, _, _ = env.step(int(script.Categorical(logits=logits).sample()))
            if terminated:
                break
    return np.stack(frames), np.array(rooms), np.array(episodes)


def embed(runs: list[str], out: pathlib.Path, device: torch.device, **flags: int) -> None:
    """Makes the picture and prints the numbers; flags stand in place of the first run's."""
    checkpoints = [script.load_checkpoint(run) for run in runs]
    path, first = checkpoints[0]
    args = script.Args(**first["args"] | flags)
    if args.env_id not in script.ROOM_BYTE:
        raise script.UserError(
            f"where {args.env_id} keeps its room is not known; only for {', '.join(script.ROOM_BYTE)}"
        )
    for run, state in checkpoints:
        if state["args"]["env_id"] != args.env_id:
            raise script.UserError(f"{run} is of a run with env_id {state['args']['env_id']}, not {args.env_id}")
    with script.reading(path):
        frames, rooms, episodes = play(args, device, first["agent"])
    if len(frames) < 3:
        raise script.UserError("too few frames; more --eval-episodes or --max-episode-steps")
    total, chosen = len(frames), np.linspace(0, len(frames) - 1, min(2000, len(frames))).astype(int)
    frames, rooms, episodes = torch.from_numpy(frames[chosen])[:, None].to(device), rooms[chosen], episodes[chosen]

    models = {}
    for run, state in [*checkpoints, (None, first)]:
        own = script.Args(**state["args"])
        torch.manual_seed(own.seed)
        snd = script.SND(own, device)
        random_target = {key: value.clone() for key, value in snd.target.state_dict().items()}
        with script.reading(run or path):
            snd.load_state_dict(state["snd"])
        if run is None:  # one like the first run's that has not learned
            snd.target.load_state_dict(random_target)
        name = f"{own.preset}, {own.target_loss}, seed {own.seed}" if run else "random target"
        name += f" ({sum(x.startswith(name) for x in models) + 1})" if name in models else ""
        z = script.features(snd.target, frames, snd.obs_rms, own.obs_norm).squeeze(1)
        models[name] = z.cpu().numpy().astype(np.float64)
    numbers = plot_embeddings(models, rooms, episodes, args.seed, out)
    print(f"{len(chosen)} of {total} frames, rooms {sorted(set(rooms.tolist()))}, {args.eval_episodes} episodes")
    for name, values in numbers.items():
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in values.items()))
    print(f"picture {out}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "runs", nargs="+", help="folders or checkpoints of runs of one game; the first one's agent plays"
    )
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the picture, a .png")
    parser.add_argument("--eval-episodes", type=int, default=20, help="episodes to play")
    parser.add_argument("--max-episode-steps", type=int, help="steps of an episode, at most (as in the first run)")
    parser.add_argument("--seed", type=int, help="of the games, the actions and t-SNE (as in the first run)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or mps")
    args = parser.parse_args()
    flags = {"eval_episodes": args.eval_episodes, "max_episode_steps": args.max_episode_steps, "seed": args.seed}
    try:
        embed(args.runs, args.out, torch.device(args.device), **{k: v for k, v in flags.items() if v is not None})
    except script.UserError as error:
        parser.exit(2, f"error: {error}\n")


if __name__ == "__main__":
    main()
