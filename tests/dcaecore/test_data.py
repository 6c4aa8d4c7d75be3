"""Images: the same pixels for the same seed, no episode in two parts, pinned images with a hash, broken rows named."""

from __future__ import annotations

import io
import json

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from dcaecore import BatchStream, DataError, DataSource, ImageCache, median_scores, open_frames, pin, split_rows
from dcaecore.images import content_box, to_square
from dcaecore.sample_data import write_sample_set


@pytest.fixture(scope="module")
def frames(data_dir):
    return open_frames(DataSource(), cache_folder=data_dir)


def test_same_seed_same_pixels(tmp_path):
    digests = []
    for name in ("a", "b"):
        path = write_sample_set("mspacman", tmp_path / name, episodes=1, frames_per_episode=3)
        digests.append(json.loads(path.with_suffix(".json").read_text())["pixels_sha256"])
    assert digests[0] == digests[1]
    other = write_sample_set("mspacman", tmp_path / "c", episodes=1, frames_per_episode=3, seed=1)
    assert json.loads(other.with_suffix(".json").read_text())["pixels_sha256"] != digests[0]


def test_mixed_has_many_games(tmp_path):
    path = write_sample_set("mixed", tmp_path, episodes=1, frames_per_episode=2)
    facts = json.loads(path.with_suffix(".json").read_text())
    assert len(facts["games"]) >= 8 and facts["frames"] == 2 * len(facts["games"])
    table = pq.read_table(path)
    assert table.column_names == ["episode", "frame_image", "action", "next_frame_image", "done"]
    assert set(table["action"].to_pylist()) <= set(range(5))


def test_parts_share_no_episode(frames):
    parts = split_rows(frames, seed=0)
    episodes = [set(frames.episodes[part]) for part in (parts.train, parts.validation, parts.test)]
    assert all(episodes) and not (episodes[0] & episodes[1] or episodes[0] & episodes[2] or episodes[1] & episodes[2])
    assert sum(len(part) for part in (parts.train, parts.validation, parts.test)) == len(frames)
    fewer = split_rows(frames, seed=0, deny=[frames.row_ids[int(parts.train[0])]])
    assert parts.train[0] not in fewer.train
    with pytest.raises(DataError, match="deny-list"):
        split_rows(frames, deny=["nothing"])


def test_pinned_images_are_the_same_every_time_and_know_their_foreground(frames):
    rows = split_rows(frames).test
    first, second = (pin(ImageCache(frames, 64), rows, 20) for _ in range(2))
    assert first.digest == second.digest and first.row_ids == second.row_ids
    assert first.foreground is not None and 0.001 < first.foreground_share < 0.2
    assert not (first.foreground & ~first.content).any()
    floor = median_scores(first)
    assert floor["foreground_psnr_db"] < floor["psnr_db"]
    few = pin(ImageCache(frames, 64), rows, 8)
    assert few.foreground is None and "median needs" in few.foreground_reason


def test_batches_are_a_function_of_seed_and_step_whatever_the_workers(frames):
    rows = split_rows(frames).train
    plain = BatchStream(ImageCache(frames, 32), rows, batch_size=4, seed=3)
    threaded = BatchStream(ImageCache(frames, 32), rows, batch_size=4, seed=3, num_workers=2)
    batches, again = plain.iterate(5), threaded.iterate(5)
    for _ in range(4):
        a, b = next(batches), next(again)
        assert a.row_ids == b.row_ids and a.images_BCHW.equal(b.images_BCHW) and a.foreground_B1HW.equal(b.foreground_B1HW)
        assert float(a.images_BCHW.min()) >= -1.0 and float(a.images_BCHW.max()) <= 1.0
        assert float(a.images_BCHW.min()) < -0.5
    again.close()
    halves = [BatchStream(plain.cache, rows, batch_size=4, seed=3, rank=r, world_size=2).rows_of(7) for r in (0, 1)]
    assert halves[0] + halves[1] == plain.rows_of(7)
    one_epoch = [row for step in range(len(rows)) for row in BatchStream(plain.cache, rows, batch_size=1, seed=0).rows_of(step)]
    assert sorted(one_epoch) == sorted(rows)


def test_loader_threads_bring_no_pools_of_their_own(frames):
    """A torch operation in one would: two spinning threads more for each loader, beside the training's."""
    stream = BatchStream(ImageCache(frames, 128), range(8), batch_size=8, seed=0, num_workers=2)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        torch.ones(1 << 20).add_(1.0)
        threads = psutil.Process().num_threads()
        batches = stream.iterate()
        for _ in range(6):
            next(batches)
        assert psutil.Process().num_threads() <= threads + 2
        batches.close()
    finally:
        torch.set_num_threads(before)


def test_padding_is_centred_and_known():
    image = Image.new("RGB", (200, 100), "white")
    pixels, box = to_square(image, 64)
    assert pixels.shape == (64, 64, 3) and box == (16, 48, 0, 64)
    assert pixels[0].max() == 0 and pixels[32].min() == 255
    assert content_box(160, 210, 128) == (0, 128, 16, 112)


def parquet(path, cells, episodes=None):
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    columns = {"frame_image": pa.array([{"bytes": c, "path": None} for c in cells], image)}
    if episodes is not None:
        columns["episode"] = pa.array(episodes, pa.int64())
    pq.write_table(pa.table(columns), path)
    return str(path)


def png(colour):
    buffer = io.BytesIO()
    Image.new("RGB", (20, 10), colour).save(buffer, "PNG")
    return buffer.getvalue()


# Failure 10: a broken image silently became a black frame.
def test_broken_images_are_named_or_skipped_and_counted(tmp_path):
    cells = [png((i, i, i)) for i in range(12)]
    cells[4] = b"broken"
    path = parquet(tmp_path / "x.parquet", cells, [i // 3 for i in range(12)])
    frames = open_frames(DataSource("parquet", path), cache_folder=tmp_path)
    with pytest.raises(DataError, match="00000004") as caught:
        frames.image(4)
    assert caught.value.code == "broken_image"
    stream = BatchStream(ImageCache(frames, 32), np.arange(12), batch_size=12, seed=0, skip_broken=True)
    for step in range(3):
        stream.batch(step)
    assert stream.skipped == {"00000004"}
    with pytest.raises(DataError, match="00000004"):
        BatchStream(ImageCache(frames, 32), np.arange(12), batch_size=12, seed=0).batch(0)
    assert pin(ImageCache(frames, 32), np.arange(12), 12, skip_broken=True).skipped == ("00000004",)


def test_other_sources_and_their_errors(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(9):
        (folder / f"{i}.png").write_bytes(png((i * 20, 0, 0)))
    frames = open_frames(DataSource("folder", str(folder)), cache_folder=tmp_path)
    parts = split_rows(frames)
    assert len(frames) == 9 and len(parts.test) >= 1 and frames.image(0).size == (20, 10)
    assert pin(ImageCache(frames, 32), parts.test, 4).foreground is None
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"nothing")
    other = parquet(tmp_path / "good.parquet", [png("red")] * 3)
    for source, message in (
        (DataSource("folder", str(tmp_path / "none")), "no folder"),
        (DataSource("parquet", str(tmp_path / "none*.parquet")), "No parquet"),
        (DataSource("parquet", str(bad)), "no readable parquet"),
        (DataSource("parquet", other, column="image"), "no column"),
        (DataSource("sample", "tetris"), "no sample set"),
    ):
        with pytest.raises(DataError, match=message):
            open_frames(source, cache_folder=tmp_path)
    with pytest.raises(DataError, match="too few"):
        split_rows(open_frames(DataSource("parquet", other), cache_folder=tmp_path))


def test_a_hub_set_is_cached_and_survives_a_drop(tmp_path, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda _s: None)
    calls = []

    def stream(_source):
        calls.append(1)
        for i in range(30):
            if len(calls) == 1 and i == 17:
                raise ConnectionError("the hub dropped")
            yield {"frame_image": {"bytes": png((i, 0, 0)), "path": None}, "episode": i // 5, "action": 0}

    source = DataSource("hub", "someone/frames", max_rows=25)
    frames = open_frames(source, cache_folder=tmp_path, stream=stream)
    assert len(frames) == 25 and len(calls) == 2 and list(frames.episodes[:6]) == [0, 0, 0, 0, 0, 1]
    open_frames(source, cache_folder=tmp_path, stream=stream)
    assert len(calls) == 2

    def down(_source):
        raise ConnectionError("no network")

    with pytest.raises(DataError, match="could not be read"):
        open_frames(DataSource("hub", "someone/else"), cache_folder=tmp_path, stream=down)


def test_a_hub_set_without_rows_or_without_the_column_says_so_and_each_column_has_its_cache(tmp_path):
    def stream(source):
        return ({"frame_image": png((i, 0, 0)), "next_frame_image": png((0, i, 0)), "episode": i} for i in range(9))

    for _ in range(2):  # what failed is not remembered as complete
        with pytest.raises(DataError, match="is empty"):
            open_frames(DataSource("hub", "someone/none"), cache_folder=tmp_path, stream=lambda _source: [])
        with pytest.raises(DataError, match="no column 'picture'") as caught:
            open_frames(DataSource("hub", "someone/frames", column="picture"), cache_folder=tmp_path, stream=stream)
    assert "frame_image" in caught.value.legal
    for column, shade in (("frame_image", (8, 0, 0)), ("next_frame_image", (0, 8, 0))):
        frames = open_frames(DataSource("hub", "someone/frames", column=column), cache_folder=tmp_path, stream=stream)
        assert frames.image(8).getpixel((0, 0)) == shade


def test_a_full_disk_is_no_fault_of_the_data(tmp_path, monkeypatch):
    import datasets

    full = OSError(28, "No space left on device")

    def load(*_args, **_kwargs):
        raise datasets.exceptions.DatasetGenerationError("An error occurred while generating the dataset") from full

    def stream(_source):
        raise full

    with pytest.raises(OSError, match="No space left"):
        open_frames(DataSource("hub", "someone/frames"), cache_folder=tmp_path, stream=stream)
    monkeypatch.setattr(datasets, "load_dataset", load)
    path = parquet(tmp_path / "x.parquet", [png("red")] * 3)
    with pytest.raises(OSError, match="No space left"):
        open_frames(DataSource("parquet", path), cache_folder=tmp_path)


@pytest.mark.parametrize("episodes", [["a", "b", "c"], [5.0, 7.0, None]])
def test_episodes_may_be_names_or_have_gaps(tmp_path, episodes):
    cells = [png((i, i, i)) for i in range(9)]
    cells[2] = None  # an empty cell hinders no split
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = pa.array([cell and {"bytes": cell, "path": None} for cell in cells], image)
    pq.write_table(pa.table({"frame_image": images, "episode": [episodes[i // 3] for i in range(9)]}), tmp_path / "x.parquet")
    source = DataSource("parquet", str(tmp_path / "x.parquet"))
    parts = split_rows(open_frames(source, cache_folder=tmp_path))
    assert sorted(map(list, (parts.train, parts.validation, parts.test))) == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    pq.write_table(pa.table({"frame_image": images}), tmp_path / "y.parquet")
    plain = open_frames(DataSource("parquet", str(tmp_path / "y.parquet")), cache_folder=tmp_path)
    parts = split_rows(plain)
    assert sorted([*parts.train, *parts.validation, *parts.test]) == list(range(9))
