"""Exports of the published shapes (narrow): to ONNX, and to diffusers' own model."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from core.model_manager import ModelManager
from core.operations.models import load
from dcaecore import VARIANTS

FIELDS = {"image_size": 64, "num_images": 2, "repeats": 3}


@pytest.mark.usefixtures("untraced")
@pytest.mark.parametrize("name", ["dc-ae-f32c32-in", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32"])
def test_published_shapes_export_to_onnx_and_to_diffusers_own_model(bench, name, tmp_path):
    service = ModelManager(settings=bench.settings)
    config = VARIANTS[name]

    def narrow(coder):
        widths = tuple(32 if i < 3 else 64 for i in range(coder.num_stages))
        return replace(coder, widths=widths, depths=tuple(min(depth, 1) for depth in coder.depths))

    config = replace(config, encoder=narrow(config.encoder), decoder=narrow(config.decoder))
    row = bench.add(config, name=name)
    assert service.export(bench.run("export", row.id, **FIELDS, format="onnx").id).good
    found = service.export(bench.run("export", row.id, **FIELDS, format="diffusers").id)
    assert found.good, found.reasons
    service.save_export(found.job_id, tmp_path / "out")
    from diffusers import AutoencoderDC

    theirs = AutoencoderDC.from_pretrained(str(tmp_path / "out")).eval()
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        ours, own = load(bench.store, row.id).model.eval()(x), theirs(x).sample
    assert torch.allclose(own, ours, atol=1e-4)
    service.store.close()
