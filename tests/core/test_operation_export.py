"""Exports: every format and precision against the model, dense and pruned; what cannot be is refused, what is far off is not good."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from core.errors import CoreError
from core.exporting import tools
from core.operations import export as operation
from core.operations.models import load
from core.specs import ExportSpec
from dcaecore import VARIANTS, ConfigError

ROOT = Path(__file__).resolve().parents[2]
FIELDS = {"image_size": 32, "num_images": 4, "repeats": 3}


@pytest.fixture(scope="module")
def subjects(bench):
    """A dense model, one whose streams, heads and channels were cut, so that its shortcuts are gathers, and one that diffusers knows."""
    dense, tiny = bench.add().id, VARIANTS["tiny"]
    four = replace(tiny, encoder=replace(tiny.encoder, expand=4), decoder=replace(tiny.decoder, expand=4))
    kinds = ["mid", "hidden", "heads", "stream"]
    cut = bench.run("prune", dense, method="structured", score="l2", compensate=False, rate=0.5, kinds=kinds).model_id
    return {"dense": dense, "cut": cut, "diffusers": bench.add(four, name="four").id}


MADE: dict[str, str] = {}
"""Exports by what was asked for: tests look at one and the same."""


def exported(bench, service, ref, **fields):
    key = json.dumps([ref, ExportSpec.model_validate({**FIELDS, **fields}).model_dump(mode="json")], sort_keys=True)
    if key not in MADE:
        MADE[key] = bench.run("export", ref, **{**FIELDS, **fields}).id
    return service.export(MADE[key])


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(
    ("which", "form", "dtype", "dynamic"),
    [
        ("dense", "onnx", "float32", True),
        ("cut", "onnx", "float32", True),
        ("cut", "onnx", "float16", False),
        ("cut", "openvino", "float32", True),
        ("dense", "openvino", "float16", False),
        ("dense", "torch_export", "float32", True),
        ("cut", "torch_export", "bfloat16", False),
    ],
)
def test_graphs_compute_what_the_model_computes(bench, service, subjects, which, form, dtype, dynamic):
    found = exported(bench, service, subjects[which], format=form, dtype=dtype, dynamic=dynamic)
    assert found.good, found.reasons
    endings = {"onnx": ["onnx"], "openvino": ["xml", "bin"], "torch_export": ["pt2"]}[form]
    assert [file["name"] for file in found.files] == [f"{part}.{ending}" for part in ("encoder", "decoder") for ending in endings]
    check = found.check
    assert check["psnr_to_model_db"] >= operation.LEAST_PSNR_DB[dtype] and check["num_images"] == 4
    if dynamic:
        assert check["other_size_psnr_to_model_db"] >= operation.LEAST_PSNR_DB[dtype], (
            "another batch and size than it was made for"
        )
    if dtype == "float32":
        assert check["max_image_error"] < 1e-4 and check["max_latent_error_ratio"] < 1e-4
        assert check["psnr_db"] == pytest.approx(check["model_psnr_db"], abs=1e-3)
    assert found.benchmark["export_decode_ms"] > 0 and found.benchmark["model_encode_ms"] > 0
    assert all(bench.store.blobs.exists(file["digest"]) for file in found.files)


@pytest.mark.usefixtures("untraced")
def test_an_exported_graph_is_the_model_on_images_of_its_own(bench, service, subjects, tmp_path):
    """Without the operation's own check: onnxruntime on the stored bytes, another size, a batch of three."""
    import onnxruntime

    found = exported(bench, service, subjects["cut"], format="onnx")
    service.save_export(found.job_id, tmp_path / "out")
    x = torch.rand(3, 3, 64, 48 + 16, generator=torch.Generator().manual_seed(1)) * 2 - 1
    model = load(bench.store, subjects["cut"]).model.eval()
    z = onnxruntime.InferenceSession(str(tmp_path / "out/encoder.onnx")).run(None, {"image": x.numpy()})[0]
    y = onnxruntime.InferenceSession(str(tmp_path / "out/decoder.onnx")).run(None, {"latent": z})[0]
    with torch.no_grad():
        assert np.abs(z - model.encode(x).numpy()).max() < 1e-4
        assert np.abs(y - model(x).numpy()).max() < 1e-3
    with pytest.raises(CoreError, match="there already"):
        service.save_export(found.job_id, tmp_path / "out")


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("form", ["onnx", "torch_export"])
def test_one_size_8_bit_images_and_the_snippet(bench, service, subjects, tmp_path, form):
    found = exported(bench, service, subjects["dense"], format=form, processing=True, dynamic=False, batch_size=2)
    assert found.good and "other_size_psnr_to_model_db" not in found.check
    assert reconstructed(service, found, tmp_path).size == (32, 32)


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_half_alone(bench, service, subjects, part):
    found = exported(bench, service, subjects["dense"], format="onnx", part=part, dynamic=False)
    assert [file["name"] for file in found.files] == [f"{part}.onnx"] and found.good
    own, other = ("encode", "decode") if part == "encoder" else ("decode", "encode")
    assert f"export_{own}_ms" in found.benchmark and f"export_{other}_ms" not in found.benchmark


def reconstructed(service, found, folder: Path) -> Image.Image:
    """What the bundle's own `run.py` makes of an image."""
    with zipfile.ZipFile(io.BytesIO(service.export_bundle(found.job_id))) as archive:
        archive.extractall(folder)
    assert json.loads((folder / "export.json").read_text())["check"] == found.check
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / "in.png")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "run.py", "in.png"], cwd=folder, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with Image.open(folder / "reconstruction.png") as made:
        return made.copy()


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("form", ["onnx", "openvino", "torch_export", "offshoot", "diffusers", "original"])
def test_every_snippet_runs(bench, service, subjects, tmp_path, form):
    ref = subjects.get(form, subjects["dense"])
    found = exported(bench, service, ref, format=form)
    assert found.good, found.reasons
    made = np.asarray(reconstructed(service, found, tmp_path))
    given = np.asarray(Image.open(tmp_path / "in.png").convert("RGB").resize((32, 32), Image.Resampling.LANCZOS))
    x = torch.from_numpy(given.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    with torch.no_grad():
        y = load(bench.store, ref).model.eval()(x)
    expected = ((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)[0].permute(1, 2, 0).numpy()
    assert np.abs(made.astype(int) - expected.astype(int)).max() <= 1


def test_half_precision_weights_read_back(bench, service, subjects):
    found = exported(bench, service, subjects["cut"], format="offshoot", dtype="bfloat16")
    full = exported(bench, service, subjects["cut"], format="offshoot")
    assert found.good and full.check["psnr_to_model_db"] == 100.0 and found.bytes < 0.6 * full.bytes


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_int8_is_calibrated_smaller_and_says_what_it_costs(bench, service, subjects, form):
    plain = exported(bench, service, subjects["dense"], format="onnx")
    small = exported(bench, service, subjects["dense"], format=form, quantize="int8", calibration_images=4, dynamic=False)
    assert small.check["psnr_to_model_db"] < plain.check["psnr_to_model_db"] and small.check["psnr_to_model_db"] > 15
    assert {"psnr_db", "model_psnr_db"} <= set(small.check)
    if form == "openvino":
        assert b"FakeQuantize" in bench.store.blobs.read(small.files[2]["digest"])
        return
    import onnx

    graph = onnx.load_from_string(bench.store.blobs.read(small.files[1]["digest"])).graph
    assert any(node.op_type == "QuantizeLinear" for node in graph.node)


@pytest.mark.usefixtures("untraced")
def test_an_export_that_is_far_off_is_not_good(bench, service, subjects, monkeypatch):
    plain = operation.onnx_call

    def noisy(path, threads):
        call = plain(path, threads)
        return lambda x: call(x) + np.float32(0.05)

    monkeypatch.setattr(operation, "onnx_call", noisy)
    found = service.export(bench.run("export", subjects["dense"], **FIELDS, format="onnx", part="decoder", dynamic=False).id)
    assert not found.good and any("dB from the model" in reason for reason in found.reasons)
    assert service.exports(subjects["dense"])[0].job_id == found.job_id, "it is in the history, with its reasons"


def test_what_cannot_be_is_refused_before_anything_is_made(service, subjects, monkeypatch):
    for fields, words in (
        ({"format": "diffusers"}, "whole stages"),
        ({"format": "onnx", "dtype": "bfloat16"}, "bfloat16"),
        ({"format": "openvino", "dtype": "bfloat16"}, "bfloat16"),
        ({"format": "torch_export", "quantize": "int8"}, "no effect"),
        ({"format": "offshoot", "dynamic": False}, "no effect"),
        ({"format": "tflite"}, "onnx"),
    ):
        with pytest.raises(CoreError) as caught:
            service.export_model(subjects["cut"], {**FIELDS, **fields})
        assert words in caught.value.message + str(caught.value.legal)
    with pytest.raises(ConfigError):
        service.export_model(subjects["dense"], {**FIELDS, "image_size": 36})
    monkeypatch.setattr(tools, "find_spec", lambda name: None)
    with pytest.raises(CoreError) as caught:
        service.export_model(subjects["dense"], FIELDS)
    assert caught.value.next == "pip install onnx onnxscript onnxruntime" and "torch_export" in caught.value.legal
    assert all("not installed" in one.text for one in tools.ELSEWHERE)
    assert not service.jobs(states=("queued", "running")), "nothing was submitted"


def test_the_cleaned_away_and_the_unknown_are_named(bench, service, subjects):
    lost = bench.add(seed=5, name="lost")
    bench.store.blobs.remove(lost.blob_digest)
    with pytest.raises(CoreError, match="not in the store any more"):
        service.export_model(lost.id, FIELDS)
    job = bench.run("evaluate", subjects["dense"], image_size=32, num_images=4)
    with pytest.raises(CoreError, match="no finished export"):
        service.export_bundle(job.id)
