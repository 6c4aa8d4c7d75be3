"""The model itself: shapes, dtypes, the forms of attention and norm, and layouts that narrow it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from dcaecore import DCAE, VARIANTS, DCAEConfig, Layout, sites
from dcaecore.blocks import LiteMLA, RMSNorm2d, _attend

TINY = VARIANTS["tiny"]

# Parameters in M (encoder, decoder), as published.
TABLE = {
    "dc-ae-f32c32-in": (123.17, 200.18),
    "dc-ae-f32c32-mix": (123.17, 200.18),
    "dc-ae-f64c128-in": (264.55, 412.35),
    "dc-ae-f64c128-mix": (264.55, 412.35),
    "dc-ae-f128c512-in": (415.66, 705.02),
    "dc-ae-f128c512-mix": (415.66, 705.02),
    "dc-ae-f32c32-sana-1.0": (153.03, 159.22),
    "dc-ae-f32c32-sana-1.1": (153.03, 159.22),
    "dc-ae-lite-f32c32": (153.03, 268.15),
}


def narrow(name: str) -> DCAEConfig:
    """A published variant at an eighth of its widths, with heads of 8 channels and a block a stage at most."""
    config = VARIANTS[name]
    coders = (
        replace(
            coder,
            widths=tuple(width // 8 for width in coder.widths),
            depths=tuple(min(depth, 1) for depth in coder.depths),
            head_dim=8,
        )
        for coder in (config.encoder, config.decoder)
    )
    return DCAEConfig(*coders, latent_channels=config.latent_channels)


def thinned(config: DCAEConfig) -> Layout:
    """Every third unit of each site, one at least: odd widths."""
    return Layout({name: tuple(range(0, site.total, 3)) for name, site in sites(config).items()})


@pytest.mark.parametrize("name", TABLE)
def test_parameter_counts_of_the_full_shapes(name):
    with torch.device("meta"):
        model = DCAE(VARIANTS[name])
    found = (sum(p.numel() for p in half.parameters()) / 1e6 for half in (model.encoder, model.decoder))
    assert tuple(round(count, 2) for count in found) == TABLE[name]


@pytest.mark.parametrize("name", [name for name in VARIANTS if not name.endswith(("-mix", "-1.1"))])
def test_shapes_on_the_meta_device(name):
    config = VARIANTS[name]
    side = config.spatial_compression
    with torch.device("meta"):
        model = DCAE(config)
    z_BCHW = model.encode(torch.empty(2, 3, 2 * side, 3 * side, device="meta"))
    assert z_BCHW.shape == (2, config.latent_channels, 2, 3)
    assert model.decode(z_BCHW).shape == (2, 3, 2 * side, 3 * side)


def test_small_variants_keep_their_promises():
    tiny, demo = DCAE(TINY), VARIANTS["demo-f32c32"]
    assert sum(p.numel() for p in tiny.parameters()) < 0.3e6
    assert TINY.spatial_compression == 8
    assert {site.kind for site in sites(TINY).values()} == {"mid", "heads", "hidden", "stream"}
    assert min(site.total for site in sites(TINY).values() if site.kind == "heads") >= 2
    assert demo.spatial_compression == 32 and demo.latent_channels == 32
    with torch.device("meta"):
        assert sum(p.numel() for p in DCAE(demo).parameters()) * 2 < 16e6  # bytes in bfloat16


@pytest.mark.parametrize("name", ["dc-ae-f32c32-in", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_agree_for_dense_and_thinned_models(name, dtype):
    config = narrow(name)
    for layout in (Layout(), thinned(config)):
        torch.manual_seed(0)
        model = DCAE(config, layout).eval().bfloat16().float()  # weights that every dtype holds exactly
        x_BCHW = (torch.rand(1, 3, 128, 64) * 2 - 1).bfloat16()
        with torch.no_grad():
            expected = model(x_BCHW.float())
            found = model.to(dtype)(x_BCHW.to(dtype))
        assert found.dtype == dtype and found.shape == x_BCHW.shape
        # About forty layers of random weights; diffusers' own model is as far off in bfloat16.
        off = (found.double() - expected).abs().mean() / expected.abs().mean()
        assert off < (1e-5 if dtype == torch.float64 else 0.06)


def test_a_layout_narrows_exactly_its_sites():
    kept = {
        "encoder.stages.1.blocks.0.mid": (0, 2, 7),
        "decoder.stages.3.blocks.0.heads": (1,),
        "decoder.stages.3.blocks.0.hidden": (3, 4, 5, 90, 127),
    }
    dense, thin = DCAE(TINY).state_dict(), DCAE(TINY, Layout(kept)).state_dict()
    assert list(dense) == list(thin)
    changed = {key: tuple(thin[key].shape) for key in dense if dense[key].shape != thin[key].shape}
    glu, attn = "decoder.stages.3.blocks.0.glu", "decoder.stages.3.blocks.0.attn"
    assert changed == {
        "encoder.stages.1.blocks.0.conv1.weight": (3, 16, 3, 3),
        "encoder.stages.1.blocks.0.conv1.bias": (3,),
        "encoder.stages.1.blocks.0.conv2.weight": (16, 3, 3, 3),
        f"{attn}.qkv.weight": (96, 64, 1, 1),
        f"{attn}.proj.weight": (64, 32, 1, 1),
        f"{glu}.inverted.weight": (10, 64, 1, 1),
        f"{glu}.inverted.bias": (10,),
        f"{glu}.depthwise.weight": (10, 1, 3, 3),
        f"{glu}.depthwise.bias": (10,),
        f"{glu}.pointwise.weight": (64, 5, 1, 1),
    }


def test_both_forms_of_attention_are_the_written_sum():
    torch.manual_seed(0)
    for tokens in (6, 16, 40):  # quadratic, quadratic at the border, linear
        q, k, v = (torch.rand(2, 3, 16, tokens, dtype=torch.float64) for _ in range(3))
        weights = torch.einsum("bgdn,bgdm->bgnm", k, q)
        expected = torch.einsum("bgdn,bgnm->bgdm", v, weights / weights.sum(2, keepdim=True))
        assert torch.allclose(_attend(q, k, v), expected, rtol=1e-12)


def test_attention_survives_rows_of_zeros_and_autocast():
    attention = LiteMLA(32, 2, head_dim=16, scales=(5,), norm="trms2d")
    with torch.no_grad():
        attention.qkv.weight.zero_()
    x_BCHW = torch.randn(1, 32, 8, 8)
    for width in (8, 2):
        assert attention(x_BCHW[..., :width]).isfinite().all()
    attention = LiteMLA(32, 2, head_dim=16, scales=(), norm="trms2d")
    x_BCHW = 1e3 * torch.randn(1, 32, 32, 32)
    with torch.no_grad():
        expected = attention(x_BCHW)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = attention(x_BCHW)
    assert (found - expected).abs().mean() / expected.abs().mean() < 0.02


def test_the_norm_is_rms_over_channels():
    norm = RMSNorm2d(7).double()
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2)
        norm.bias.uniform_(-1, 1)
    x_BCHW = torch.randn(2, 7, 3, 5, dtype=torch.float64)
    x_BHWC = F.rms_norm(x_BCHW.movedim(1, -1), (7,), norm.weight, eps=1e-5) + norm.bias
    assert torch.allclose(norm(x_BCHW), x_BHWC.movedim(-1, 1), rtol=1e-12)
    assert torch.autograd.gradcheck(norm, x_BCHW.requires_grad_())
    halves_BCHW = (300 * torch.randn(2, 7, 3, 5)).bfloat16()
    exact = RMSNorm2d(7)(halves_BCHW.float())
    assert torch.equal(RMSNorm2d(7).bfloat16()(halves_BCHW), exact.bfloat16())


def test_gradients_reach_every_parameter():
    for name in ("dc-ae-f32c32-in", "dc-ae-f32c32-sana-1.0"):
        config = narrow(name)
        model = DCAE(config, thinned(config))
        model(torch.rand(2, 3, 256, 256)).square().mean().backward()
        idle = [key for key, value in model.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
        assert not idle
