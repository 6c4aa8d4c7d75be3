"""Exports of every published shape (narrow): to ONNX, and where diffusers has the model to diffusers' own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.operations.models import load
from dcaecore import VARIANTS, DCAEConfig

FIELDS = {"num_images": 2, "repeats": 3}
SHAPES = {
    "dc-ae-f32c32-in": 64, "dc-ae-f32c32-sana-1.0": 64, "dc-ae-lite-f32c32": 64, "demo-f32c32": 64, "dc-ae-f64c128-in": 64,
    "dc-ae-f128c512-in": 128,
}  # fmt: skip
"""Image sizes by variant; `tiny` is exported whole, and pruned, in `test_operation_export`."""
QUICK = {"dc-ae-f32c32-in": False, "dc-ae-f32c32-sana-1.0": True}
"""Between them every kind of block, norm, activation, shortcut and resampling (for any size: True; `tiny`'s convolutions are so too). The
others differ in numbers of stages and channels alone, and an export with sizes as symbols takes half a minute or more."""
CASES = [
    *QUICK.items(),
    *(pytest.param(name, True, marks=pytest.mark.slow) for name in SHAPES if not QUICK.get(name)),
]


def narrowed(config: DCAEConfig) -> DCAEConfig:
    """The shape with few channels and at most one block a stage."""

    def narrow(coder):
        last = max(64, config.latent_channels)
        widths = (*(32 if i < 3 else 64 for i in range(coder.num_stages - 2)), max(64, last // 4), last)
        return replace(coder, widths=widths, depths=tuple(min(depth, 1) for depth in coder.depths))

    return replace(config, encoder=narrow(config.encoder), decoder=narrow(config.decoder))


def test_every_variant_has_a_shape_that_is_exported():
    exported = [replace(narrowed(VARIANTS[name]), scaling_factor=1.0) for name in (*SHAPES, "tiny")]
    for name, config in VARIANTS.items():
        assert replace(narrowed(config), scaling_factor=1.0) in exported, name


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize(("name", "dynamic"), CASES)
def test_published_shapes_export_to_onnx(bench, service, name, dynamic):
    row = bench.add(narrowed(VARIANTS[name]), name=name)
    found = service.export(bench.run("export", row.id, **FIELDS, image_size=SHAPES[name], format="onnx", dynamic=dynamic).id)
    assert found.good, found.reasons
    assert ("other_size_psnr_to_model_db" in found.check) is dynamic
    assert found.check["max_image_error"] < 1e-4 and found.check["max_latent_error_ratio"] < 1e-4


@pytest.mark.parametrize("name", ["dc-ae-f32c32-in", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32"])
def test_published_shapes_export_to_diffusers_own_model(bench, service, name, tmp_path):
    row = bench.add(narrowed(VARIANTS[name]), name=name)
    found = service.export(bench.run("export", row.id, **FIELDS, image_size=64, format="diffusers").id)
    assert found.good, found.reasons
    service.save_export(found.job_id, tmp_path / "out")
    from diffusers import AutoencoderDC

    theirs = AutoencoderDC.from_pretrained(str(tmp_path / "out")).eval()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        ours, own = load(bench.store, row.id).model.eval()(x), theirs(x).sample
    assert torch.allclose(own, ours, atol=1e-4)
