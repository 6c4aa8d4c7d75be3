from __future__ import annotations

import math
from pathlib import Path

import pytest

from store import NewScores, Store, StoreError, checkpoints, mirrored, scores, set_mirrored
from store.references import sweep
from tests.store.builders import PROTOCOL, model, running_job


def put(store: Store, model_id: str, psnr_db: float, **options: object) -> str:
    with store.write() as session:
        return scores.put_scores(
            session,
            model_id,
            options.get("protocol", PROTOCOL),  # type: ignore[arg-type]
            str(options.get("split", "test")),
            {"psnr_db": psnr_db, "foreground_psnr_db": None, "lpips": math.nan},
            {"psnr_db": [psnr_db - 1, psnr_db + 1]},
            ["row 1", "row 2"],
        )


def test_scores_stand_under_a_protocol(store: Store) -> None:
    base = model(store, "base")
    first = put(store, base.id, 30.0)
    assert scores.scores(store, base.id) == {"psnr_db": 30.0, "foreground_psnr_db": None, "lpips": None}
    assert scores.scores(store, base.id, "validation") == {}
    other = put(store, base.id, 35.0, protocol={**PROTOCOL, "dtype": "bfloat16"})
    assert first != other
    assert scores.scores(store, base.id)["psnr_db"] == 35.0
    rows = scores.score_rows(store, [base.id, "m_none"], protocol_id=first)
    assert rows[base.id].means["psnr_db"] == 30.0
    assert rows[base.id].protocol == PROTOCOL
    found = scores.image_scores(store, base.id, protocol_id=first)
    assert found is not None
    assert (found.row_ids, found.values) == (["row 1", "row 2"], {"psnr_db": [29.0, 31.0]})
    put(store, base.id, 31.0)  # the same protocol again: the old figures go
    assert scores.scores(store, base.id)["psnr_db"] == 31.0
    assert store.rows("SELECT count(*) FROM score_set") == [(2,)]
    assert scores.image_scores(store, "m_none") is None


def test_figures_must_fit_their_images(store: Store) -> None:
    base = model(store, "base")
    with pytest.raises(StoreError, match="2 images"), store.write() as session:
        scores.put_scores(session, base.id, PROTOCOL, "test", {}, {"psnr_db": [1.0]}, ["a", "b"])
    with pytest.raises(StoreError):
        put(store, base.id, 1.0, split="exam")
    with pytest.raises(StoreError, match="no model"), store.write() as session:
        scores.put_new_scores(store, session, NewScores(PROTOCOL, "test", {}), [], model_id=None, job_id=None)
    assert store.rows("SELECT count(*) FROM protocol") == [(0,)]


def test_pictures_are_blobs_that_go_with_the_model(store: Store) -> None:
    base = model(store, "base")
    protocol = put(store, base.id, 30.0)
    scores.put_image(store, base.id, protocol, 0, b"the original", "original")
    old = scores.put_image(store, base.id, protocol, 0, b"first try")
    new = scores.put_image(store, base.id, protocol, 0, b"second try")
    assert [(row.kind, row.index) for row in scores.images(store, base.id)] == [("original", 0), ("reconstruction", 0)]
    (shown,) = scores.images(store, base.id, protocol_id=protocol, kind="reconstruction")
    assert store.blobs.read(shown.digest) == b"second try"
    sweep(store)
    assert store.blobs.exists(new) and not store.blobs.exists(old)
    assert scores.images(store, "m_none") == []
    with pytest.raises(StoreError):
        scores.put_image(store, base.id, protocol, 0, b"", "sketch")


def test_a_measurement_holds_several_models(store: Store) -> None:
    base, half = model(store, "base"), model(store, "half")
    rows = [
        {"model_id": base.id, "decode_median_ms": 10.0, "repeats": 30},
        {"model_id": half.id, "decode_median_ms": 5.0, "repeats": 30},
    ]
    number = scores.put_measurement(
        store, {"device": "cpu", "dtype": "float32", "num_threads": 2, "batch_size": 1, "models": rows}
    )
    for model_id in (base.id, half.id):
        (found,) = scores.measurements(store, model_id)
        assert found.id == number
        assert (found.device, found.dtype, found.settings) == ("cpu", "float32", {"num_threads": 2, "batch_size": 1})
        assert found.models[half.id] == {"decode_median_ms": 5.0, "repeats": 30}
    scores.put_measurement(store, {"device": "cpu", "dtype": "float32", "models": rows[:1]})
    assert len(scores.measurements(store, base.id)) == 2
    assert len(scores.measurements(store, base.id, limit=1)) == 1
    with pytest.raises(StoreError):
        scores.put_measurement(store, {"device": "cpu", "dtype": "float32", "models": []})


def test_checkpoints_of_a_job(store: Store, tmp_path: Path) -> None:
    job = running_job(store)
    assert checkpoints.latest(store, job) is None
    folders = [store.job_folder(job.id) / f"step_{step}" for step in (10, 20)]
    for step, folder in zip((10, 20), folders, strict=True):
        folder.mkdir()
        checkpoints.record(store, job.id, step, folder, "time", {"psnr_db": 20.0 + step})
    newest = checkpoints.latest(store, job)
    assert newest is not None
    assert (newest.step, newest.folder, newest.figures) == (20, folders[1], {"psnr_db": 40.0})
    assert [row.step for row in checkpoints.list(store, job.id)] == [20, 10]
    again = checkpoints.record(store, job, 21, folders[1], "pause")
    assert (again.step, again.why) == (21, "pause")
    assert len(checkpoints.list(store, job.id)) == 2
    folders[1].rmdir()  # whose folder has gone cannot be resumed from
    left = checkpoints.latest(store, job)
    assert left is not None and left.step == 10
    checkpoints.forget(store, left.id)
    assert checkpoints.latest(store, job) is None
    with pytest.raises(StoreError, match="outside"):
        checkpoints.record(store, job, 1, tmp_path, "time")
    with pytest.raises(StoreError) as caught:
        checkpoints.record(store, "j_none", 1, folders[0], "time")
    assert caught.value.code == "unknown_job"


def test_the_mirror_remembers_what_it_sent(store: Store) -> None:
    set_mirrored(store, "wandb", "j_1", "run-abc", {"step": 10})
    set_mirrored(store, "wandb", "j_1", "run-abc", {"step": 20})
    set_mirrored(store, "elsewhere", "j_1", "x", {})
    assert [(row.remote, row.progress) for row in mirrored(store, "wandb").values()] == [("run-abc", {"step": 20})]
