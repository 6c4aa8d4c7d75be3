"""Configs as data: JSON round trips, and one named field in each refusal."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dcaecore import DCAE, VARIANTS, ConfigError, DCAEConfig, DcaeError, find_variant
from dcaecore.errors import CheckpointError, DataError, TrainingError

TINY = VARIANTS["tiny"]


@pytest.mark.parametrize("name", VARIANTS)
def test_json_text_round_trip_and_name(name):
    config = VARIANTS[name]
    again = DCAEConfig.from_json(json.loads(json.dumps(config.to_json())))
    assert again == config and hash(again) == hash(config)
    assert find_variant(again) == {"dc-ae-f32c32-sana-1.1": "dc-ae-f32c32-sana-1.0"}.get(name, name)


def test_spatial_compression_and_the_name_of_another_scaling():
    sides = [VARIANTS[name].spatial_compression for name in ("tiny", "demo-f32c32", "dc-ae-f64c128-in", "dc-ae-f128c512-mix")]
    assert sides == [8, 32, 64, 128]
    assert find_variant(replace(VARIANTS["dc-ae-f32c32-mix"], scaling_factor=9.0)) == "dc-ae-f32c32-in"
    assert find_variant(replace(TINY, latent_channels=8)) is None


@pytest.mark.parametrize(
    ("half", "change", "words"),
    [
        ("encoder", {"widths": (16,)}, "encoder.widths needs at least two"),
        ("encoder", {"depths": (0, 1, 1)}, "encoder.depths has 3 entries for 4"),
        ("decoder", {"norms": ("trms2d",) * 5}, "decoder.norms has 5"),
        ("decoder", {"norms": ("trms2d", "layer", "trms2d", "trms2d")}, "decoder.norms holds 'layer'"),
        ("decoder", {"acts": ("gelu",) * 4}, "decoder.acts holds 'gelu'"),
        ("decoder", {"blocks": ("conv",) * 4}, "decoder.blocks holds 'conv'"),
        ("decoder", {"out_act": "tanh"}, "decoder.out_act holds 'tanh'"),
        ("decoder", {"out_norm": "none"}, "decoder.out_norm holds 'none'"),
        ("encoder", {"resample": "shuffle"}, "encoder.resample is not legal"),
        ("decoder", {"resample": "conv"}, "decoder.resample is not legal"),
        ("encoder", {"widths": (16, 16, 32, 48)}, r"encoder.widths\[3\] must be a multiple of head_dim"),
        ("encoder", {"widths": (16, 16, 12, 64)}, "encoder.widths 16 and 12|encoder.widths 12 and 64"),
        ("encoder", {"widths": (16, 16, 32.0, 64)}, "whole numbers"),
        ("encoder", {"depths": (0, 1, True, 1)}, "whole numbers"),
        ("encoder", {"depths": (0, 1, -1, 1)}, "encoder.depths at least 0"),
        ("encoder", {"scales": ((), (), (), (4,))}, "encoder.scales holds 4"),
        ("encoder", {"head_dim": 0}, "encoder.head_dim"),
        ("encoder", {"expand": 0}, "encoder.expand"),
    ],
)
def test_a_config_that_cannot_be_names_its_field(half, change, words):
    with pytest.raises(ConfigError, match=words):
        replace(TINY, **{half: replace(getattr(TINY, half), **change)})


def test_a_whole_that_cannot_be_names_its_field():
    decoder = replace(VARIANTS["demo-f32c32"].decoder)
    with pytest.raises(ConfigError, match="decoder.widths differ in length"):
        replace(TINY, decoder=decoder)
    with pytest.raises(ConfigError, match="multiple of latent_channels"):
        replace(TINY, latent_channels=24)
    with pytest.raises(ConfigError, match="at least 1"):
        replace(TINY, latent_channels=0)
    for broken in ({}, {"encoder": {}}, {**TINY.to_json(), "decodr": 1}):
        with pytest.raises(ConfigError, match="not the config of a DC-AE"):
            DCAEConfig.from_json(broken)
    data = TINY.to_json()
    del data["encoder"]["widths"]
    with pytest.raises(ConfigError, match="lacks a field.*widths"):
        DCAEConfig.from_json(data)


def test_image_sizes():
    TINY.check_image_size(64, 8)
    for size in ((60, 64), (64, 60), (0, 0), (4, 4)):
        with pytest.raises(ConfigError) as caught:
            TINY.check_image_size(*size)
        assert caught.value.code == "image_size" and caught.value.legal == "multiples of 8"
    with pytest.raises(ConfigError, match="Try 96"):
        DCAE(TINY).encode(torch.zeros(1, 3, 100, 100))


def test_errors_share_their_fields():
    for kind in (ConfigError, CheckpointError, DataError, TrainingError):
        error = kind("What was wrong.", code="why", given=1, legal="2 to 3", next="Take 2.")
        assert isinstance(error, DcaeError)
        assert (error.message, error.code, error.given, error.legal, error.next) == (
            "What was wrong.",
            "why",
            1,
            "2 to 3",
            "Take 2.",
        )
        assert str(error) == "What was wrong. Legal: 2 to 3. Take 2."


def test_the_light_half_loads_no_torch():
    code = (
        "import sys, dcaecore\n"
        "from dcaecore import Layout, estimate, find_variant, learning_rate, read_header, sites, VARIANTS\n"
        "estimate(VARIANTS['dc-ae-f32c32-in'], Layout()); sites(VARIANTS['tiny'])\n"
        "sys.exit(len({'torch', 'numpy', 'safetensors'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_public_name_resolves():
    import dcaecore

    assert dir(dcaecore) == dcaecore.__all__
    for name in dcaecore.__all__:
        assert getattr(dcaecore, name) is not None
    with pytest.raises(AttributeError, match="has no 'Nothing'"):
        dcaecore.Nothing  # noqa: B018
