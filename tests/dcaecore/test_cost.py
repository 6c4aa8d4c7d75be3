"""Parameters and MACs by arithmetic equal the published table and the built model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dcaecore import DCAE, VARIANTS, ConfigError, DCAEConfig, Layout, estimate, find_variant, sites

TABLE = {
    "dc-ae-f32c32-in": (323.36, 260.6, 346.1),
    "dc-ae-f64c128-in": (676.90, 263.0, 349.5),
    "dc-ae-f128c512-in": (1120.68, 263.7, 350.6),
    "dc-ae-f32c32-sana-1.0": (312.25, 161.5, 261.2),
    "dc-ae-lite-f32c32": (421.18, 161.5, 234.8),
}


@pytest.mark.parametrize("name", TABLE)
def test_the_published_table(name):
    cost = estimate(VARIANTS[name], image_size=256)
    found = round(cost.parameters / 1e6, 2), round(cost.encode_macs / 1e9, 1), round(cost.decode_macs / 1e9, 1)
    assert found == TABLE[name]


@pytest.mark.parametrize("name", ["tiny", "demo-f32c32", "dc-ae-f32c32-sana-1.0"])
def test_equals_the_built_model(name):
    config = VARIANTS[name]
    kept = {n: tuple(range(max(1, s.total // 2))) for n, s in sites(config).items()}
    for layout in (Layout(), Layout(kept)):
        with torch.device("meta"):
            model = DCAE(config, layout)
        macs = []

        def count(module, _inputs, output, macs=macs):
            weight = module.weight
            macs.append(weight.numel() * output.shape[-1] * output.shape[-2])

        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(count)
        model(torch.zeros(1, 3, 64, 64, device="meta"))
        cost = estimate(config, layout, image_size=64)
        assert cost.parameters == sum(p.numel() for p in model.parameters())
        assert cost.macs == sum(macs)


def test_configs_survive_json_and_say_what_is_wrong():
    for name, config in VARIANTS.items():
        assert DCAEConfig.from_json(config.to_json()) == config
        assert find_variant(config) is not None, name
    data = VARIANTS["tiny"].to_json()
    with pytest.raises(ConfigError, match="head_dim"):
        DCAEConfig.from_json({**data, "encoder": {**data["encoder"], "widths": [16, 16, 32, 40]}})
    with pytest.raises(ConfigError, match="depths has 2 entries"):
        DCAEConfig.from_json({**data, "encoder": {**data["encoder"], "depths": [1, 1]}})
    with pytest.raises(ConfigError, match="Unknown field"):
        DCAEConfig.from_json({**data, "encoder": {**data["encoder"], "width": 1}})
    with pytest.raises(ConfigError, match="Try 64"):
        VARIANTS["demo-f32c32"].check_image_size(70, 70)
    with pytest.raises(ConfigError, match="another version"):
        Layout.from_json({"version": 3, "kept": {}})
    with pytest.raises(ConfigError, match="ascending"):
        Layout({"encoder.stages.1.blocks.0.mid": (3, 1)}).validate(VARIANTS["tiny"])
