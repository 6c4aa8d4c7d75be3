"""Sample sets: frames of real games, rendered by the Arcade Learning Environment, with the user's columns.

`mspacman` (the default), `mspacman_large` (six times as many other episodes of it, to train on) and `mixed` (nine games of
different looks) are written once as parquet, the same pixels for the same seed. The emulator and its games come with the package
`ale-py`; nothing is downloaded.

Decisions:
- The Atari draws some sprites on alternate frames only. Each stored frame is the pixel-wise maximum of two consecutive
  emulator frames (Mnih et al. 2015, "Human-level control through deep reinforcement learning"), so every sprite is there.
- A random player dies near the start. In Ms. Pac-Man the player prefers directions whose cells it has visited less (two bytes
  of RAM hold her position), so frames cover the maze, eaten and uneaten dots, blue ghosts and deaths. Elsewhere it holds a
  random action for a random time.
- Episodes start after a random number of emulator frames, and frames lie 8 to 24 emulator frames apart.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dcaecore.errors import DataError

SAMPLE_VERSION = 1
ACTIONS = ("LEFT", "RIGHT", "UP", "DOWN", "NO_ACTION")
_PLAYER_X, _PLAYER_Y = 10, 16
"""RAM bytes of Ms. Pac-Man's position (Anand et al. 2019, "Unsupervised State Representation Learning in Atari")."""


@dataclass(frozen=True)
class SampleSet:
    """What a sample set is made of: games, episodes of each, frames of an episode."""

    games: tuple[str, ...]
    episodes: int
    frames_per_episode: int
    seed: int = 0


SAMPLE_SETS: dict[str, SampleSet] = {
    "mspacman": SampleSet(("ms_pacman",), episodes=40, frames_per_episode=64),
    "mspacman_large": SampleSet(("ms_pacman",), episodes=240, frames_per_episode=64, seed=1),
    "mixed": SampleSet(
        (
            "ms_pacman",
            "breakout",
            "pong",
            "space_invaders",
            "seaquest",
            "enduro",
            "freeway",
            "qbert",
            "montezuma_revenge",
        ),
        episodes=6,
        frames_per_episode=40,
    ),
}


@dataclass(frozen=True)
class Frame:
    """One row: RGB uint8 `(210, 160, 3)` before and after an action of ACTIONS."""

    episode: int
    image: np.ndarray
    action: int
    next_image: np.ndarray
    done: bool


def _play(game: str, episode: int, frames: int, seed: int) -> Iterator[Frame]:
    import ale_py
    from ale_py import Action, ALEInterface, LoggerMode
    from ale_py.roms import get_rom_path

    del ale_py
    ALEInterface.setLoggerMode(LoggerMode.Error)
    ale = ALEInterface()
    ale.setInt("random_seed", seed)
    ale.setFloat("repeat_action_probability", 0.0)
    path = get_rom_path(game)
    if path is None:
        raise DataError(f"ale-py carries no game {game!r}.", given=game)
    ale.loadROM(path)
    ale.reset_game()
    rng = np.random.default_rng([seed, episode])
    moves = [Action.LEFT, Action.RIGHT, Action.UP, Action.DOWN, Action.NOOP]
    offsets = np.array([[-1, 0], [1, 0], [0, -1], [0, 1], [0, 0]])
    starts = [action for action in ale.getMinimalActionSet() if "FIRE" in action.name]
    visits = np.ones((64, 64))
    chosen, hold = 4, 0
    warmup = int(rng.integers(0, 600)) + (260 if game == "ms_pacman" else 20)
    made, wait = 0, warmup
    pending: tuple[np.ndarray, int] | None = None
    while made < frames:
        if hold == 0:
            if game == "ms_pacman":
                ram = ale.getRAM()
                cell = np.array([ram[_PLAYER_X], ram[_PLAYER_Y]]) // 8
                visits[tuple(cell)] += 1
                near = np.clip(cell + offsets[:4] * 2, 0, 63)
                weight = 1.0 / visits[near[:, 0], near[:, 1]] ** 2
                chosen = int(rng.choice(4, p=weight / weight.sum())) if rng.random() < 0.97 else 4
            else:
                chosen = int(rng.integers(5))
            hold = int(rng.integers(4, 14))
        action = moves[chosen]
        if starts and ale.getEpisodeFrameNumber() % 97 < 2:
            action = starts[0]
        hold -= 1
        # Reading the screen costs more than emulating a frame: only where a picture may be taken.
        before = ale.getScreenRGB() if wait <= 5 else None
        ale.act(action)
        over = bool(ale.game_over())
        seen = _shown(before, ale.getScreenRGB()) if wait <= 5 or over else None
        if pending is not None and seen is not None and (wait == 4 or over):
            yield Frame(episode, pending[0], pending[1], seen, over)
            pending = None
            made += 1
        wait -= 1
        if wait <= 0 and pending is None and seen is not None and made < frames and not over:
            pending = (seen, chosen)
            wait = 4 + int(rng.integers(4, 20))
        if pending is not None and wait < 4:
            wait = 4
        if over:
            ale.reset_game()
            wait = max(wait, 260 if game == "ms_pacman" else 20)


def _shown(before: np.ndarray | None, after: np.ndarray) -> np.ndarray:
    return after if before is None else np.maximum(before, after)


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="PNG", optimize=False, compress_level=4)
    return buffer.getvalue()


def write_sample_set(
    name: str,
    folder: Path,
    *,
    episodes: int | None = None,
    frames_per_episode: int | None = None,
    seed: int | None = None,
) -> Path:
    """Writes `folder/<name>.parquet` and, beside it, `<name>.json` with the digest of the decoded pixels; returns the former.

    `episodes` counts the episodes of each game. Same arguments, same pixels. Raises DataError for an unknown name.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if name not in SAMPLE_SETS:
        raise DataError(f"There is no sample set {name!r}.", given=name, legal=sorted(SAMPLE_SETS))
    recipe = SAMPLE_SETS[name]
    episodes = recipe.episodes if episodes is None else episodes
    frames = recipe.frames_per_episode if frames_per_episode is None else frames_per_episode
    seed = recipe.seed if seed is None else seed
    image_type = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {
        "episode": pa.int64(),
        "frame_image": image_type,
        "action": pa.int64(),
        "next_frame_image": image_type,
        "done": pa.bool_(),
    }
    features = {
        "episode": {"dtype": "int64", "_type": "Value"},
        "frame_image": {"_type": "Image"},
        "action": {"dtype": "int64", "_type": "Value"},
        "next_frame_image": {"_type": "Image"},
        "done": {"dtype": "bool", "_type": "Value"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    schema = pa.schema(list(columns.items()), metadata=metadata)
    pixels = hashlib.sha256()
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.parquet"
    partial = folder / f"{name}.parquet.partial-{os.getpid()}"
    count = 0
    with pq.ParquetWriter(partial, schema, compression="zstd") as writer:
        for index in range(episodes * len(recipe.games)):
            game = recipe.games[index % len(recipe.games)]
            rows: list[dict[str, Any]] = []
            for frame in _play(game, index, frames, seed * 100_003 + index):
                pixels.update(frame.image.tobytes())
                pixels.update(frame.next_image.tobytes())
                rows.append(
                    {
                        "episode": frame.episode,
                        "frame_image": {"bytes": _png(frame.image), "path": f"{game}-{index}-{len(rows)}.png"},
                        "action": frame.action,
                        "next_frame_image": {
                            "bytes": _png(frame.next_image),
                            "path": f"{game}-{index}-{len(rows)}n.png",
                        },
                        "done": frame.done,
                    }
                )
            count += len(rows)
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
    facts = {
        "version": SAMPLE_VERSION,
        "name": name,
        "games": recipe.games,
        "episodes": episodes * len(recipe.games),
        "frames": count,
        "seed": seed,
        "pixels_sha256": pixels.hexdigest(),
    }
    (folder / f"{name}.json").write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n")
    os.replace(partial, target)
    return target


def ensure_sample_set(name: str, folder: Path) -> Path:
    """The parquet file of a sample set, written first where it is absent or of an older version.

    That takes under a minute, some minutes for the large set.
    """
    target = folder / f"{name}.parquet"
    facts = folder / f"{name}.json"
    if target.exists() and facts.exists() and json.loads(facts.read_text()).get("version") == SAMPLE_VERSION:
        return target
    return write_sample_set(name, folder)


def main(arguments: list[str] | None = None) -> Path:
    """`python -m dcaecore.sample_data mspacman --out DIR`."""
    parser = argparse.ArgumentParser(description="Render a sample set of game frames as parquet.")
    parser.add_argument("name", choices=sorted(SAMPLE_SETS))
    parser.add_argument("--out", type=Path, default=Path("sample-data"))
    parser.add_argument("--seed", type=int, default=None)
    given = parser.parse_args(arguments)
    return write_sample_set(given.name, given.out, seed=given.seed)


if __name__ == "__main__":
    main()
