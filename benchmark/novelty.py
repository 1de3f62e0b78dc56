"""Does the bonus fall on what is seen often, and stay high on what is not? A measurement, and a figure.

    python benchmark/novelty.py --out docs/results/novelty_montezuma

A random agent plays Montezuma's Revenge; it stays in room 1. The predictor of ppo_rnd_atari.py learns from its frames
as in training, with the script's own functions. Meanwhile the raw intrinsic reward is measured on frames that never
train it: others of room 1, of rooms that the agent has not been in (reached by writing the room's number into the RAM),
and of other games. OUT.csv gets the numbers, OUT.png the figure.
"""

import argparse
import pathlib
import sys

import matplotlib.pyplot as plt
import numpy as np
import torch
from sweep import read_table, write_table
from tqdm import tqdm

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import ppo_rnd_atari as script

ROOMS = (0, 2, 5, 10, 15, 20)
GAMES = ("Venture-v5", "Gravitar-v5", "Pitfall-v5", "PrivateEye-v5")


def random_frames(env_id: str, num_envs: int, steps: int, seed: int) -> torch.Tensor:
    """Frames (steps, num_envs, 84, 84) uint8 of a random agent."""
    envs = script.AtariEnvs(script.Args(env_id=env_id, num_envs=num_envs), [seed + i for i in range(num_envs)])
    envs.reset()
    rng = np.random.default_rng(seed)
    frames = [envs.step(rng.integers(envs.num_actions, size=num_envs))[0][:, 3] for _ in range(steps)]
    return torch.from_numpy(np.stack(frames))


def room_frames(room: int, steps: int) -> torch.Tensor:
    """Frames (steps - 4, 1, 84, 84) uint8 of a room of Montezuma's Revenge in which a random agent is put down."""
    env = script.make_evaluation_env(script.Args(env_id="MontezumaRevenge-v5"))
    rng = np.random.default_rng(room)
    env.reset(seed=room)
    frames = []
    while len(frames) < steps:
        env.unwrapped.ale.setRAM(3, room)
        obs, _, terminated, _, _ = env.step(int(rng.integers(env.action_space.n)))
        if terminated:
            env.reset()
        elif env.unwrapped.ale.getRAM()[3] == room:
            frames.append(np.array(obs)[3])
    return torch.from_numpy(np.stack(frames[4:]))[:, None]  # the first frames still show the room before


def draw(rows: list[dict], path: pathlib.Path) -> None:
    """The raw bonus of each set of frames over the steps learned from."""
    figure, axes = plt.subplots(figsize=(8, 4.5))
    for name in [*rows[0]][1:]:
        known = "held out" in name
        style = {"color": "black", "linewidth": 2.5} if known else {"linestyle": "-" if "room" in name else "--"}
        axes.plot([float(row["steps"]) / 1e3 for row in rows], [float(row[name]) for row in rows], label=name, **style)
    axes.set(yscale="log", xlabel="thousand steps of a random agent in room 1", ylabel="raw intrinsic reward")
    axes.set_title("Where the agent has been the bonus falls most")
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=pathlib.Path, help="path of the results, without its ending")
    parser.add_argument("--redraw", action="store_true", help="run nothing; the figure from the CSV as it is")
    args = parser.parse_args()
    if args.redraw:
        draw(read_table(args.out.with_suffix(".csv")), args.out.with_suffix(".png"))
        return
    args.out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(1)
    device, rng = torch.device("cpu"), np.random.default_rng(1)
    T, N = 32, 32

    held_out = {"Montezuma room 1 (held out)": random_frames("MontezumaRevenge-v5", 4, 200, seed=10_000)[::4]}
    held_out |= {f"Montezuma room {room}": room_frames(room, 104)[::2] for room in ROOMS}
    held_out |= {game.removesuffix("-v5"): random_frames(game, 4, 200, seed=20_000)[::4] for game in GAMES}

    envs = script.AtariEnvs(script.Args(env_id="MontezumaRevenge-v5", num_envs=N), list(range(N)))
    envs.reset()
    rnd = script.RND(N, device)
    optimizer = torch.optim.Adam(rnd.predictor.parameters(), lr=1e-4, eps=1e-8)
    rows = []
    for rollout in tqdm(range(300 + 20)):  # 20 of them for the statistics alone, as the script's warm-up
        steps = [envs.step(rng.integers(envs.num_actions, size=N)) for _ in range(T)]
        frames = torch.from_numpy(np.stack([obs[:, 3] for obs, _, _, _ in steps]))  # (T, N, 84, 84)
        valid = torch.from_numpy(np.stack([ok for _, _, _, ok in steps]))  # (T, N)
        if rollout >= 20 and (rollout - 20) % 10 == 0:
            values = {name: script.novelty(rnd, x).mean().item() for name, x in held_out.items()}
            rows.append({"steps": (rollout - 20) * T * N, **values})
        for t in range(T):
            rnd.obs_rms.update(frames[t], valid[t])
        if rollout < 20:
            continue
        features = script.features(rnd.target, frames, rnd.obs_rms).flatten(0, 1)
        flat = frames.flatten(0, 1)
        for _ in range(4):
            kept = script.predictor_subset(valid.flatten(), T * N // 4)
            predicted = rnd.predictor(script.whiten(flat[kept], rnd.obs_rms))
            loss = (predicted - features[kept]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    if envs.stats.visited != {1}:
        print(f"the random agent has been in rooms {sorted(envs.stats.visited)}")

    write_table(args.out.with_suffix(".csv"), rows)
    draw(rows, args.out.with_suffix(".png"))
    last = rows[-1]
    known = last["Montezuma room 1 (held out)"]
    print(f"after {last['steps']:,} steps, as multiples of the reward in room 1 ({known:.4g}):")
    for name in held_out:
        print(f"  {name}: {last[name] / known:.1f}")


if __name__ == "__main__":
    main()
