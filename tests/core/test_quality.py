"""Intervals and paired differences of stored evaluations, the front and the ranking through the service."""

from __future__ import annotations

import json

import numpy as np
import pytest

import store as st
from core.compare import METRICS, Figure
from core.errors import CoreError
from core.model_manager import ModelManager
from core.quality import NO_DIFFERENCE, difference_text, interval_text, verdict
from core.settings import Settings
from core.statistics import Difference, holm, sign_flip_p
from tests.core.in_process import InProcess

PROTOCOL = {"version": 1, "images_sha256": "a" * 64, "num_images": 24, "image_size": 64, "dtype": "float32", "source": "test"}
RNG = np.random.default_rng(5)
BASE = RNG.normal(36.0, 2.0, 24)


@pytest.fixture(scope="module")
def many(tmp_path_factory, data_dir):
    """A baseline and four others, evaluated on the same 24 images: alike, a little worse, better, on other images."""
    bench = InProcess(Settings(home=tmp_path_factory.mktemp("home"), data_dir=data_dir, device="cpu"))
    rows = {
        name: bench.add(seed=seed, name=name).id for seed, name in enumerate(("base", "alike", "worse", "better", "elsewhere"))
    }
    values = {
        "base": BASE, "alike": BASE + np.tile([0.1, -0.1], 12), "worse": BASE - 0.5 + RNG.normal(0, 0.2, 24),
        "better": BASE + 0.3 + RNG.normal(0, 0.2, 24),
    }  # fmt: skip
    ids = [f"row{i}" for i in range(24)]
    with bench.store.write() as session:
        for name, psnr in values.items():
            order = list(range(24)) if name != "worse" else list(range(23, -1, -1))  # pairs go by id, whatever the order
            st.scores.put_scores(
                session, rows[name], PROTOCOL, "test", {"psnr_db": float(psnr.mean()), "l1": 0.1},
                {"psnr_db": [float(psnr[i]) for i in order], "l1": [0.1] * 24}, [ids[i] for i in order],
            )  # fmt: skip
        other = {**PROTOCOL, "images_sha256": "b" * 64, "num_images": 4}
        st.scores.put_scores(session, rows["elsewhere"], other, "test", {"psnr_db": 50.0}, {"psnr_db": [50.0] * 4}, ids[:4])
        figures = {"base": 30.0, "alike": 25.0, "worse": 10.0, "better": 40.0}
        models = [{"model_id": rows[name], "decode_ms": ms, "encode_ms": ms} for name, ms in figures.items()]
        st.scores.put_measurement_in(session, {"device": "cpu", "dtype": "float32", "repeats": 3, "models": models})
    manager = ModelManager(settings=bench.settings)
    yield manager, rows, values
    manager.store.close()
    bench.store.close()


def test_differences_are_paired_by_image_and_corrected_together(many):
    manager, rows, values = many
    found = manager.quality([rows[name] for name in ("base", "alike", "worse", "better")])
    assert found.reference == rows["base"]
    raw = {name: sign_flip_p(values[name] - BASE) for name in ("alike", "worse", "better")}
    for name, p in holm(raw).items():
        own = found.differences[rows[name]]["psnr_db"]
        assert own.p_value == pytest.approx(p) and own.mean == pytest.approx((values[name] - BASE).mean())
    said = {name: verdict(METRICS["psnr_db"], found.differences[rows[name]]["psnr_db"]) for name in raw}
    assert said == {"alike": NO_DIFFERENCE, "worse": "worse", "better": "better"}
    assert verdict(METRICS["l1"], found.differences[rows["worse"]]["l1"]) == NO_DIFFERENCE
    own = found.intervals[rows["base"]]["psnr_db"]
    assert own.low < own.mean < own.high and own.mean == pytest.approx(BASE.mean()) and not found.notes
    turned = manager.quality([rows["base"], rows["worse"]], rows["worse"])
    assert turned.differences[rows["base"]]["psnr_db"].mean > 0.3
    assert json.dumps(found.to_json())


def test_what_has_no_pairs_says_so(many):
    manager, rows, _ = many
    found = manager.quality([rows["base"], rows["worse"], rows["elsewhere"]])
    first = manager.quality([rows["elsewhere"], rows["base"], rows["worse"]])
    assert first.reference == rows["base"] and rows["worse"] in first.differences, "who was not evaluated is no reference"
    assert rows["elsewhere"] not in found.intervals, "another protocol's 50 dB is not shown beside these"
    alone = manager.quality([rows["elsewhere"]])
    assert alone.intervals[rows["elsewhere"]]["psnr_db"].low is None and "4 of the 8" in alone.notes[0]
    missing = manager.quality([rows["base"], rows["worse"], rows["elsewhere"]], rows["elsewhere"])
    assert not missing.differences and "not evaluated on these images" in missing.notes[0]
    with pytest.raises(CoreError, match="one of the models"):
        manager.quality([rows["base"]], rows["worse"])


def test_the_words_of_a_difference(many):
    psnr, loss, accuracy = METRICS["psnr_db"], METRICS["loss"], METRICS["accuracy"]
    worse = Difference(-0.5, -0.6, -0.4, 0.0002, -2.0, 24)
    assert difference_text(psnr, worse) == "-0.50 dB [-0.60, -0.40], d -2.00, p < 0.001: worse"
    assert verdict(loss, worse) == "better" and verdict(METRICS["sparsity"], worse) == "different"
    assert difference_text(accuracy, Difference(0.02, -0.01, 0.05, 0.21, 0.1, 24)).endswith("p 0.210: no difference shown")
    assert difference_text(accuracy, Difference(0.02, None, None, None, None, 3)) == "+2.00 points (too few images: 3 of 8)"
    manager, rows, _ = many
    text = interval_text(psnr, manager.quality([rows["base"]]).intervals[rows["base"]]["psnr_db"])
    assert text.startswith("3") and " dB [3" in text


def test_front_and_ranking_are_of_one_benchmark_run_and_one_protocol(many):
    manager, rows, _ = many
    refs = list(rows.values())
    front = manager.pareto(refs)
    # 10 ms at -0.5 dB, 25 ms alike, 40 ms at +0.3 dB; the baseline's 30 ms lose to alike where that is not below it.
    assert front.left_out == (rows["elsewhere"],) and {rows["worse"], rows["better"]} <= set(front.best)
    ranked = manager.rank(refs, {"decode_ms": 1.0})
    assert [one.id for one in ranked.ranked] == [rows[name] for name in ("worse", "alike", "base", "better")]
    assert ranked.left_out == {rows["elsewhere"]: ("decode_ms",)}
    for axes in (("sparsity", "psnr_db"), ("decode_ms", "beauty")):
        with pytest.raises(CoreError) as caught:
            manager.pareto(refs, *axes)
        assert "decode_ms" in caught.value.legal


def test_a_figure_that_fell_to_zero_has_a_change():
    assert Figure(METRICS["accuracy"], 0.0, -1.0, -1.0).change_text(-1.0) == "-100.0%"
    assert Figure(METRICS["accuracy"], 0.5).change_text(-0.5) == "-50.0% (-50.00 points)"
