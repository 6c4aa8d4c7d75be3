"""Our DC-AE against diffusers' AutoencoderDC: same weights, same output, for narrow models of each published shape."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from dcaecore import DCAE, VARIANTS, DCAEConfig
from dcaecore.checkpoint import build
from dcaecore.keys import from_format, to_format
from dcaecore.layout import Layout

SHAPES = ["dc-ae-f32c32-in", "dc-ae-f64c128-mix", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32"]


def narrow(name: str) -> DCAEConfig:
    """A variant with widths cut to at most 64 and at most two blocks a stage."""
    config = VARIANTS[name]

    def cut(coder):
        widths = tuple(32 if i < 3 else 64 for i in range(coder.num_stages))
        return replace(coder, widths=widths, depths=tuple(min(depth, 2) for depth in coder.depths))

    return DCAEConfig(cut(config.encoder), cut(config.decoder), latent_channels=32)


def diffusers_model(config: DCAEConfig):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers import AutoencoderDC

    kinds = {"resblock": "ResBlock", "evit": "EfficientViTBlock"}
    names = {"trms2d": "rms_norm", "bn2d": "batch_norm"}
    encoder, decoder = config.encoder, config.decoder
    return AutoencoderDC(
        in_channels=3,
        latent_channels=config.latent_channels,
        attention_head_dim=32,
        encoder_block_types=tuple(kinds[b] for b in encoder.blocks),
        decoder_block_types=tuple(kinds[b] for b in decoder.blocks),
        encoder_block_out_channels=encoder.widths,
        decoder_block_out_channels=decoder.widths,
        encoder_layers_per_block=encoder.depths,
        decoder_layers_per_block=decoder.depths,
        encoder_qkv_multiscales=encoder.scales,
        decoder_qkv_multiscales=decoder.scales,
        upsample_block_type="interpolate" if decoder.resample == "interpolate" else "pixel_shuffle",
        downsample_block_type="Conv" if encoder.resample == "conv" else "pixel_unshuffle",
        decoder_norm_types=tuple(names[n] for n in decoder.norms),
        decoder_act_fns=decoder.acts,
        **({"decoder_conv_act_fn": decoder.out_act} if decoder.out_act != "relu" else {}),
    )


@pytest.mark.parametrize("name", SHAPES)
def test_random_weights_of_diffusers_give_the_same_reconstruction(name):
    config = narrow(name)
    torch.manual_seed(0)
    theirs = diffusers_model(config).eval()
    with torch.no_grad():
        for value in theirs.state_dict().values():
            if value.is_floating_point() and value.ndim == 1:
                value.add_(torch.rand_like(value) * 0.2)
    state = theirs.state_dict()
    ours = build(config, Layout(), from_format(state, config, "diffusers"))
    side = config.spatial_compression
    for size in ((2 * side, 2 * side), (side, 3 * side)):
        x = torch.rand(2, 3, *size) * 2 - 1
        with torch.no_grad():
            assert torch.allclose(ours.encode(x), theirs.encode(x).latent, atol=1e-4)
            assert torch.allclose(ours(x), theirs(x).sample, atol=1e-4)
    back = to_format(ours.state_dict(), config, "diffusers")
    assert set(back) == set(state)
    assert all(torch.equal(back[key], state[key]) for key in state)


@pytest.mark.parametrize("name", SHAPES[:3])
def test_original_keys_agree_with_diffusers_own_conversion(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from diffusers.loaders.single_file_utils import convert_autoencoder_dc_checkpoint_to_diffusers

    config = narrow(name)
    model = DCAE(config)
    original = to_format(model.state_dict(), config, "original")
    converted = convert_autoencoder_dc_checkpoint_to_diffusers({k: v.clone() for k, v in original.items()})
    expected = to_format(model.state_dict(), config, "diffusers")
    assert set(converted) == set(expected)
    assert all(torch.equal(converted[key], expected[key]) for key in expected)
    back = from_format(original, config, "original")
    assert all(torch.equal(value, back[key]) for key, value in model.state_dict().items())
