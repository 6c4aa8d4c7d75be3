"""Where images come from: one provider over `datasets` for hub ids, local parquet, folders of images and sample sets.

Rows keep their stored bytes until they are asked for, so opening is quick and a broken image is found at its row. A streamed hub
set is cached as local parquet first (retried where the hub drops), so training can address rows at random and resume exactly:
`datasets` loses its shuffle buffer when a stream resumes.

Splits are by (source, episode), so train, validation and test never share an episode; pictures without episodes split by the
hash of their bytes.
"""

from __future__ import annotations

import errno
import glob
import hashlib
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from dcaecore.errors import DataError
from dcaecore.sample_data import SAMPLE_SETS, ensure_sample_set

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
EPISODE_COLUMN = "episode"
LEGAL_PARQUET = "whole parquet files with the same columns"
HUB_ATTEMPTS = 5


@dataclass(frozen=True)
class DataSource:
    """A place of images. `location` is a sample set's name, a hub id, or a path (a glob is allowed)."""

    kind: Literal["sample", "hub", "parquet", "folder"] = "sample"
    location: str = "mspacman"
    column: str = "frame_image"
    split: str = "train"
    revision: str | None = None
    max_rows: int = 20_000


@dataclass
class Frames:
    """Rows of images, opened. `image(i)` decodes row i; ids and episodes are known without decoding."""

    source: DataSource
    rows: Any
    """A `datasets.Dataset` whose image column is not decoded."""
    row_ids: list[str]
    episodes: np.ndarray | None
    """`(N,)` int64, or None where the source has no episodes."""
    pixels_digest: str | None = None
    broken: dict[str, str] = field(default_factory=dict)
    """Row id -> what was wrong with it, of the rows found broken so far."""

    def __len__(self) -> int:
        return len(self.row_ids)

    def image(self, index: int) -> Image.Image:
        """Row `index` as RGB. Raises DataError that names the row where its bytes are no image."""
        cell = self.rows[int(index)][self.source.column]
        try:
            with Image.open(io.BytesIO(_stored_bytes(cell))) as opened:
                return opened.convert("RGB")
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
            self.broken[self.row_ids[index]] = str(error)
            raise DataError(
                f"Row {self.row_ids[index]} is no readable image: {error}",
                code="broken_image",
                given=self.row_ids[index],
                next="Repair the row, put it on the deny-list, or set skip_broken.",
            ) from error

    def identity(self, rows: Sequence[int] | np.ndarray | None = None) -> dict[str, Any]:
        """What the images are, for a model's identity: source, revision and a digest of the row ids in use."""
        used = range(len(self)) if rows is None else rows
        digest = hashlib.sha256("\n".join(self.row_ids[int(i)] for i in used).encode()).hexdigest()
        found: dict[str, Any] = {**asdict(self.source), "rows": len(used), "rows_sha256": digest}
        if self.source.kind in ("parquet", "folder"):
            found["location"] = Path(self.source.location).name
        if self.pixels_digest:
            found["pixels_sha256"] = self.pixels_digest
        return found


def _stored_bytes(cell: Any) -> bytes:
    """What an image cell holds; raises ValueError where that is nothing, OSError where its file is gone."""
    if cell is None or (cell.get("bytes") is None and not cell.get("path")):
        raise ValueError("the cell is empty")
    return bytes(cell["bytes"]) if cell.get("bytes") is not None else Path(cell["path"]).read_bytes()


@dataclass(frozen=True)
class Splits:
    """Row indices of each part, ascending; no episode is in two parts."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def part(self, name: str) -> np.ndarray:
        """`train`, `validation` or `test`."""
        return {"train": self.train, "validation": self.validation, "test": self.test}[name]


def check_location(source: DataSource) -> None:
    """Raises DataError for a sample set, files or a folder that are not there; opens nothing, and asks no hub."""
    if source.kind == "sample" and source.location not in SAMPLE_SETS:
        raise DataError(f"There is no sample set {source.location!r}.", given=source.location, legal=sorted(SAMPLE_SETS))
    if source.kind == "parquet":
        _matches(source.location, "*.parquet")
    if source.kind == "folder" and not Path(source.location).expanduser().is_dir():
        raise DataError(
            f"There is no folder {source.location!r}.", code="no_data", given=source.location, legal="a folder of pictures"
        )


def open_frames(
    source: DataSource,
    *,
    cache_folder: Path,
    stream: Callable[[DataSource], Iterable[dict[str, Any]]] | None = None,
) -> Frames:
    """Opens a source. `cache_folder` holds written sample sets and cached hub rows.

    `stream` yields a hub set's rows (default: `datasets.load_dataset(..., streaming=True)`). Raises DataError for a source that
    is missing, empty or lacks the column, with the columns that it has.
    """
    check_location(source)
    pixels = None
    if source.kind == "sample":
        path = ensure_sample_set(source.location, cache_folder / "samples")
        import json

        pixels = json.loads(path.with_suffix(".json").read_text())["pixels_sha256"]
        rows = _read_parquet([str(path)], cache_folder)
    elif source.kind == "parquet":
        rows = _read_parquet(_matches(source.location, "*.parquet"), cache_folder)
    elif source.kind == "folder":
        return _open_folder(source)
    else:
        rows = _read_parquet([str(p) for p in _cache_hub(source, cache_folder, stream or _hub_stream)], cache_folder)
    return _wrap(source, rows, pixels)


def _matches(location: str, pattern: str) -> list[str]:
    path = Path(location).expanduser()
    found = sorted(str(p) for p in path.glob(pattern)) if path.is_dir() else sorted(glob.glob(str(path)))
    if not found:
        raise DataError(
            f"No parquet file at {location!r}.",
            code="no_data",
            given=location,
            legal="a .parquet file, a glob or a folder of them",
        )
    return found


def _read_parquet(files: list[str], cache_folder: Path) -> Any:
    import datasets

    num_rows = 0
    for file in files:
        try:
            num_rows += _num_rows(Path(file))
        except Exception as error:  # pyarrow raises several kinds; all mean that the file is not readable parquet
            raise DataError(
                f"{Path(file).name} is no readable parquet file: {error}", code="no_data", given=file, legal=LEGAL_PARQUET
            ) from error
    if num_rows == 0:
        raise _empty(files)
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache_folder / "datasets"))
    except datasets.exceptions.DatasetGenerationError as error:
        cause = error.__cause__ or error
        if _disk_is_full(cause):
            raise cause from error
        raise DataError(
            f"The parquet files could not be read: {' '.join(str(cause).split())}",
            code="no_data",
            given=files[:3],
            legal=LEGAL_PARQUET,
        ) from error


def _disk_is_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def _empty(given: Any) -> DataError:
    return DataError("The data set is empty.", code="no_data", given=given, next="Choose one with at least 3 images.")


def _wrap(source: DataSource, rows: Any, pixels: str | None) -> Frames:
    import datasets
    import pyarrow as pa

    if source.column not in rows.column_names:
        raise DataError(
            f"The data has no column {source.column!r}.", code="no_column", given=source.column, legal=rows.column_names
        )
    try:
        rows = rows.cast_column(source.column, datasets.Image(decode=False))
    except (pa.ArrowException, TypeError, ValueError) as error:  # arrow's cast, or datasets' own refusal before it
        raise DataError(
            f"Column {source.column!r} holds no images: {error}", code="no_column", given=source.column, legal=rows.column_names
        ) from error
    episodes = None
    if EPISODE_COLUMN in rows.column_names:
        episodes = np.asarray(rows.with_format("numpy")[EPISODE_COLUMN][:])
        if episodes.dtype.kind not in "iu":  # names of episodes, or numbers with gaps
            episodes = np.unique(episodes.astype(str), return_inverse=True)[1]
        episodes = episodes.astype(np.int64)
    keep = [name for name in (source.column,) if name in rows.column_names]
    slim = rows.select_columns(keep)
    if source.max_rows < len(slim) and source.kind == "hub":
        slim = slim.select(range(source.max_rows))
        episodes = None if episodes is None else episodes[: source.max_rows]
    ids = [f"{index:08d}" for index in range(len(slim))]
    return Frames(source, slim, ids, episodes, pixels)


def _open_folder(source: DataSource) -> Frames:
    import datasets

    root = Path(source.location).expanduser()
    files = sorted(p for p in root.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    if not files:
        raise DataError(f"No pictures in {source.location!r}.", code="no_data", given=source.location, legal=PICTURE_SUFFIXES)
    rows = datasets.Dataset.from_dict({source.column: [str(p) for p in files]}).cast_column(
        source.column, datasets.Image(decode=False)
    )
    return Frames(source, rows, [p.relative_to(root).as_posix() for p in files], None)


def _hub_stream(source: DataSource) -> Iterable[dict[str, Any]]:
    import datasets

    rows = datasets.load_dataset(
        source.location,
        split=source.split,
        revision=source.revision,
        streaming=True,
        verification_mode="no_checks",
    )
    if source.column not in (rows.column_names or [source.column]):
        raise DataError(f"The data has no column {source.column!r}.", code="no_column", legal=rows.column_names)
    return rows.cast_column(source.column, datasets.Image(decode=False))


def _cache_hub(
    source: DataSource,
    cache_folder: Path,
    stream: Callable[[DataSource], Iterable[dict[str, Any]]],
    shard_rows: int = 1000,
) -> list[Path]:
    """Streams a hub set into parquet shards once; goes on after the last whole shard when the hub drops or the job is killed."""
    import datasets

    name = f"{source.location}@{source.revision or 'main'}:{source.split}:{source.column}".replace("/", "--")
    folder = cache_folder / "hub" / name
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "complete"
    columns = (source.column, EPISODE_COLUMN)
    for attempt in range(1, HUB_ATTEMPTS + 1):
        shards = sorted(folder.glob("*.parquet"))
        have = sum(_num_rows(p) for p in shards)
        if have >= source.max_rows or done.exists():
            return shards
        try:
            for shard in _chunks(_skip(stream(source), have), shard_rows, source.max_rows - have):
                if source.column not in shard[0]:
                    raise DataError(
                        f"The data has no column {source.column!r}.",
                        code="no_column",
                        given=source.column,
                        legal=sorted(shard[0]),
                    )
                slim = [{key: row[key] for key in columns if key in row} for row in shard]
                table = datasets.Dataset.from_list(slim).cast_column(source.column, datasets.Image(decode=False))
                partial = folder / f"partial-{os.getpid()}"
                table.to_parquet(str(partial))
                os.replace(partial, folder / f"{len(sorted(folder.glob('*.parquet'))):06d}.parquet")
            total = sum(_num_rows(p) for p in folder.glob("*.parquet"))
            if total == 0:
                raise _empty(source.location)
            if total < source.max_rows:
                done.touch()
        except DataError:
            raise
        except Exception as error:  # the hub client raises many kinds for one cause: it cannot be reached
            if _disk_is_full(error):
                raise
            if attempt == HUB_ATTEMPTS:
                raise DataError(
                    f"The hub set {source.location!r} could not be read: {error}",
                    code="hub",
                    given=source.location,
                    next="Check the id and the network, or use local parquet files.",
                ) from error
            time.sleep(min(8.0, 0.5 * 2**attempt))
    return sorted(folder.glob("*.parquet"))


def _num_rows(path: Path) -> int:
    import pyarrow.parquet as pq

    return int(pq.ParquetFile(path).metadata.num_rows)


def _skip(rows: Iterable[dict[str, Any]], count: int) -> Iterator[dict[str, Any]]:
    if count and hasattr(rows, "skip"):
        rows = rows.skip(count)
        count = 0
    for index, row in enumerate(rows):
        if index >= count:
            yield row


def _chunks(rows: Iterator[dict[str, Any]], size: int, limit: int) -> Iterator[list[dict[str, Any]]]:
    chunk: list[dict[str, Any]] = []
    for index, row in enumerate(rows):
        if index >= limit:
            break
        chunk.append(row)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def split_rows(frames: Frames, *, seed: int = 0, deny: Sequence[str] = ()) -> Splits:
    """About 80 / 10 / 10 % by episode, or by content where there are none; every part holds at least one row.

    `deny` names row ids that no part holds. Raises DataError where there are fewer than three episodes or images.
    """
    denied = set(deny)
    unknown = denied - set(frames.row_ids)
    if unknown:
        raise DataError(f"The deny-list names a row that is not there: {sorted(unknown)[0]}", given=sorted(unknown)[:5])
    # Denied rows are left out after the split, so that no image changes its part when another is denied.
    rows = np.arange(len(frames), dtype=np.int64)
    groups = frames.episodes if frames.episodes is not None else _content_groups(frames, rows)
    if frames.episodes is not None and len(np.unique(groups)) < 3:
        groups = _content_groups(frames, rows)
    names = np.unique(groups)
    if len(names) < 3:
        raise DataError(
            f"{len(names)} different images are too few to split into train, validation and test.",
            code="no_data",
            given=len(names),
            legal="at least 3 episodes or 3 different images",
        )
    order = np.random.default_rng(seed).permutation(len(names))
    held = max(1, round(len(names) * 0.1))
    test, validation = set(names[order[:held]]), set(names[order[held : 2 * held]])
    in_test = np.array([name in test for name in groups])
    in_validation = np.array([name in validation for name in groups])
    used = np.array([name not in denied for name in frames.row_ids])
    found = Splits(rows[~in_test & ~in_validation & used], rows[in_validation & used], rows[in_test & used])
    for part in ("train", "validation", "test"):
        if len(found.part(part)) == 0:
            raise DataError(
                f"The deny-list leaves no image for {part}.", code="no_data", given=len(denied), next="Deny fewer rows."
            )
    return found


def _content_groups(frames: Frames, rows: np.ndarray) -> np.ndarray:
    groups = []
    for index in rows:
        try:
            raw = _stored_bytes(frames.rows[int(index)][frames.source.column])
        except (OSError, ValueError):  # a broken row is told when its image is asked for
            raw = frames.row_ids[int(index)].encode()
        groups.append(hashlib.sha256(raw).hexdigest())
    return np.array(groups)
