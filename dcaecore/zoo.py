"""The known shapes of DC-AE by name, and where their published weights lie. Free of torch.

Widths, depths and kinds follow the published configs (efficientvit `ae_model_zoo.py`; diffusers `config.json` of each
id; DC-AE-Lite of DC-Gen). `demo-f32c32` is the small model that this project trains and ships; `tiny` is for tests.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dcaecore.config import ActName, BlockName, CoderConfig, DCAEConfig, NormName

DEMO_VARIANT = "demo-f32c32"
DEMO_FILE = Path(__file__).parent / "demo" / "demo-f32c32.safetensors"

_RMS: tuple[NormName, ...] = ("trms2d",)
_BATCH: tuple[NormName, ...] = ("bn2d",)
_SILU: tuple[ActName, ...] = ("silu",)
_RELU: tuple[ActName, ...] = ("relu",)
_WIDTHS = (128, 256, 512, 512, 1024, 1024, 2048, 2048)


def _kinds(count: int, resblocks: int = 3) -> tuple[BlockName, ...]:
    kinds: list[BlockName] = ["resblock"] * resblocks
    return (*kinds, *(["evit"] * (count - resblocks)))  # type: ignore[arg-type]


def _imagenet(stages: int, latent: int, scaling: float) -> DCAEConfig:
    """The `in` and `mix` shapes: first three stages ResBlock; the decoder's use BatchNorm and ReLU."""
    widths = _WIDTHS[:stages]
    encoder = CoderConfig(
        widths=widths,
        depths=((0, 4, 8) + (2,) * 5)[:stages],
        blocks=_kinds(stages),
        scales=((),) * stages,
        norms=_RMS * stages,
        acts=_SILU * stages,
        resample="unshuffle",
    )
    decoder = CoderConfig(
        widths=widths,
        depths=((0, 5, 10) + (2,) * 5)[:stages],
        blocks=_kinds(stages),
        scales=((),) * stages,
        norms=_BATCH * 3 + _RMS * (stages - 3),
        acts=_RELU * 3 + _SILU * (stages - 3),
        resample="shuffle",
    )
    return DCAEConfig(encoder, decoder, latent_channels=latent, scaling_factor=scaling)


def _sana() -> DCAEConfig:
    scales = ((), (), (), (5,), (5,), (5,))
    encoder = CoderConfig(
        widths=_WIDTHS[:6],
        depths=(2, 2, 2, 3, 3, 3),
        blocks=_kinds(6),
        scales=scales,
        norms=_RMS * 6,
        acts=_SILU * 6,
        resample="conv",
    )
    decoder = replace(encoder, depths=(3,) * 6, resample="interpolate")
    return DCAEConfig(encoder, decoder, latent_channels=32, scaling_factor=0.41407)


def _lite() -> DCAEConfig:
    """DC-AE-Lite: sana's encoder, a decoder of ResBlocks alone."""
    decoder = CoderConfig(
        widths=_WIDTHS[:6],
        depths=(0, 3, 5, 4, 4, 4),
        blocks=("resblock",) * 6,
        scales=((),) * 6,
        norms=_RMS * 6,
        acts=_SILU * 6,
        resample="shuffle",
        out_act="silu",
    )
    return DCAEConfig(_sana().encoder, decoder, latent_channels=32, scaling_factor=0.41407)


def _demo() -> DCAEConfig:
    """f32c32's shape with a 64th of its weights: for 128 px frames on two CPU cores."""
    encoder = CoderConfig(
        widths=(32, 32, 64, 128, 128, 256),
        depths=(0, 1, 1, 2, 1, 1),
        blocks=_kinds(6),
        scales=((),) * 6,
        norms=_RMS * 6,
        acts=_SILU * 6,
        resample="unshuffle",
    )
    decoder = replace(encoder, depths=(0, 1, 2, 2, 1, 1), resample="shuffle")
    return DCAEConfig(encoder, decoder, latent_channels=32)


def _tiny() -> DCAEConfig:
    """8x compression with a ResBlock and an EfficientViT stage, under 0.3 M weights."""
    encoder = CoderConfig(
        widths=(16, 16, 32, 64),
        depths=(0, 1, 1, 1),
        blocks=("resblock", "resblock", "resblock", "evit"),
        scales=((),) * 4,
        norms=_RMS * 4,
        acts=_SILU * 4,
        resample="unshuffle",
        expand=2,
    )
    return DCAEConfig(encoder, replace(encoder, resample="shuffle"), latent_channels=16)


VARIANTS: dict[str, DCAEConfig] = {
    "dc-ae-f32c32-in": _imagenet(6, 32, 0.3189),
    "dc-ae-f32c32-mix": _imagenet(6, 32, 0.4552),
    "dc-ae-f64c128-in": _imagenet(7, 128, 0.2889),
    "dc-ae-f64c128-mix": _imagenet(7, 128, 0.4538),
    "dc-ae-f128c512-in": _imagenet(8, 512, 0.4883),
    "dc-ae-f128c512-mix": _imagenet(8, 512, 0.3620),
    "dc-ae-f32c32-sana-1.0": _sana(),
    "dc-ae-f32c32-sana-1.1": _sana(),
    "dc-ae-lite-f32c32": _lite(),
    DEMO_VARIANT: _demo(),
    "tiny": _tiny(),
}

PUBLISHED = tuple(name for name in VARIANTS if name.startswith("dc-ae-") and "lite" not in name)


def _published_name(variant: str) -> str:
    """The release name on the hub: `in` and `mix` carry a version that our names leave out."""
    return variant if variant.endswith(("-1.0", "-1.1")) else f"{variant}-1.0"


HUB_IDS: dict[str, tuple[str, str]] = {
    name: (release, f"{release}-diffusers")
    for name, release in ((name, f"mit-han-lab/{_published_name(name)}") for name in PUBLISHED)
}
"""Variant -> Hugging Face ids of its weights with the original keys and with diffusers' keys."""


def variant_of_release(name: str) -> str | None:
    """The variant of a hub id or of the `model_name` that the original releases' config.json holds, or None."""
    short = name.rsplit("/", 1)[-1].removesuffix("-diffusers")
    return next((variant for variant in PUBLISHED if _published_name(variant) == short), None)


def find_variant(config: DCAEConfig) -> str | None:
    """The name of a config, or None. The scaling factor tells `in` from `mix`; where it tells nothing, the first shape's."""
    exact = next((name for name, known in VARIANTS.items() if known == config), None)
    if exact is not None:
        return exact
    for name, known in VARIANTS.items():
        if replace(known, scaling_factor=config.scaling_factor) == config:
            return name
    return None
