"""Evaluate: pinned images, per image and mean, the same figures every time."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import store as st
from core.errors import CoreError
from core.operations.context import Context
from core.operations.models import load
from dcaecore import VARIANTS, ConfigError, latent_drift

FIELDS = {"image_size": 32, "num_images": 20, "num_save_images": 3}


@pytest.fixture(scope="module")
def subject(bench):
    return bench.add().id


# Failure 11: validation images drawn at random. Failure 6: PSNR accumulated over evaluations. Failure 8: figures as strings.
def test_two_evaluations_measure_the_same_images_and_give_the_same_figures(bench, subject):
    records = []
    for batch_size in (4, 4, 7):
        bench.run("evaluate", subject, **FIELDS, batch_size=batch_size)
        records.append((st.scores.scores(bench.store, subject), st.scores.image_scores(bench.store, subject)))
    (first, one), (second, two), (other, _) = records
    assert one.protocol_id == two.protocol_id and one.row_ids == two.row_ids and one.values == two.values
    assert dict(first) == dict(second)
    for name, value in first.items():
        assert other[name] == pytest.approx(value, rel=1e-4), name
    assert all(type(value) is float for value in first.values())
    assert {"psnr_db", "foreground_psnr_db", "ssim", "accuracy", "loss", "l1", "mse"} <= set(first)


def test_per_image_figures_have_those_means_and_pictures_are_stored(bench, subject):
    job = bench.run("evaluate", subject, **FIELDS)
    means = st.scores.scores(bench.store, subject)
    per_image = st.scores.image_scores(bench.store, subject)
    assert len(per_image.row_ids) == 20
    for name, values in per_image.values.items():
        assert np.nanmean(values) == pytest.approx(means[name]), name
    pictures = st.scores.images(bench.store, subject)
    assert sorted((p.kind, p.index) for p in pictures) == [
        (kind, index) for kind in ("original", "reconstruction") for index in range(3)
    ]
    for picture in pictures:
        with Image.open(io.BytesIO(bench.store.blobs.read(picture.digest))) as opened:
            assert opened.size == (32, 32) and opened.mode == "RGB"
    assert 0 < job.result["foreground_share"] < 0.3
    assert job.result["median_frame_psnr_db"] > job.result["median_frame_foreground_psnr_db"] > 0


def test_loss_is_the_l1_of_the_training(bench, subject):
    bench.run("evaluate", subject, **FIELDS)
    means = st.scores.scores(bench.store, subject)
    # `l1` is of 8-bit values that are clamped to the range, `loss` of the raw output.
    assert 0 < means["l1"] <= means["loss"] + 0.01


def test_other_settings_are_other_protocols(bench, subject):
    protocols = []
    for changes in ({}, {"num_images": 18}, {"image_size": 64}, {"dtype": "bfloat16"}, {"split": "validation"}):
        bench.run("evaluate", subject, **{**FIELDS, **changes})
        split = changes.get("split", "test")
        protocols.append(st.scores.image_scores(bench.store, subject, split).protocol_id)
    assert len(set(protocols)) == 5
    bench.run("evaluate", subject, **FIELDS)
    assert st.scores.image_scores(bench.store, subject).protocol_id == protocols[0]


def test_a_foreground_that_cannot_be_measured_is_absent_with_the_reason(bench):
    fresh = bench.add(seed=9, name="few").id
    job = bench.run("evaluate", fresh, **{**FIELDS, "num_images": 8})
    assert "foreground_psnr_db" not in {k for k, v in st.scores.scores(bench.store, fresh).items() if v is not None}
    assert job.result["foreground_share"] is None and "median needs" in job.result["foreground_reason"]


def test_a_cancel_is_answered_between_batches(bench, subject):
    job = bench.submit("evaluate", subject, **FIELDS, batch_size=1)
    claimed = bench.claim()
    polls = []

    class Counting(Context):
        def poll(self):
            polls.append(1)
            if len(polls) == 6:
                st.jobs.request(self.store, job.id, "cancel")
            return super().poll()

    ended = bench.perform(claimed, Counting)
    assert ended.state == "cancelled" and 6 <= len(polls) <= 8


def test_what_cannot_be_is_refused(bench, subject):
    with pytest.raises(CoreError, match="needs a model"):
        bench.run("evaluate", **FIELDS)
    with pytest.raises(ConfigError) as caught:
        bench.run("evaluate", subject, **{**FIELDS, "image_size": 36})
    assert caught.value.given and caught.value.legal


def test_batchnorm_models_are_measured_with_their_statistics(bench):
    decoder = replace(VARIANTS["tiny"].decoder, norms=("bn2d",) * 4, acts=("relu",) * 4)
    row = bench.add(replace(VARIANTS["tiny"], decoder=decoder), name="batchnorm")
    figures = []
    for batch_size in (1, 5):
        bench.run("evaluate", row.id, **FIELDS, batch_size=batch_size)
        figures.append(st.scores.scores(bench.store, row.id)["psnr_db"])
    assert figures[0] == pytest.approx(figures[1], abs=1e-3)
    assert torch.is_grad_enabled()


def drift(bench, ref) -> tuple[float | None, list[float]]:
    bench.run("evaluate", ref, **FIELDS)
    found = st.scores.image_scores(bench.store, ref)
    assert found is not None
    return st.scores.scores(bench.store, ref).get("latent_drift"), found.values.get("latent_drift", [])


def test_latents_drift_where_the_encoder_changed_and_only_there(bench):
    base = bench.add(seed=21, name="drifting").id
    assert drift(bench, base) == (None, [])
    decoder = bench.run("prune", base, rate=0.5, part="decoder").model_id
    assert drift(bench, decoder)[0] == 0.0
    encoder = bench.run("prune", base, rate=0.5, part="encoder").model_id
    mean, each = drift(bench, encoder)
    assert mean > 0.01 and np.mean(each) == pytest.approx(mean) and len(each) == FIELDS["num_images"]
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        z, z0 = (load(bench.store, ref).model.encode(x) for ref in (encoder, base))
    assert float(latent_drift(z, z0)) == pytest.approx(float((z - z0).norm() / z0.norm()))
    assert float(latent_drift(z0, z0)) == 0.0 and latent_drift(torch.cat([z, z0]), torch.cat([z0, z0])).shape == (2,)
    st.delete_model(bench.store, base, keep_descendants=True)
    assert drift(bench, bench.run("prune", encoder, rate=0.2, part="encoder").model_id) == (None, []), "nothing to compare with"
