"""The estimate of what training keeps in memory equals what autograd saves; buffers and bytes equal the state dict's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dcaecore import DCAE, VARIANTS, ConfigError, DCAEConfig, Layout, estimate, sites


def narrow(name: str) -> DCAEConfig:
    """A published variant at a 16th of its widths, with heads of 8 channels."""
    config = VARIANTS[name]
    coders = (
        replace(coder, widths=tuple(width // 8 for width in coder.widths), head_dim=8)
        for coder in (config.encoder, config.decoder)
    )
    return DCAEConfig(*coders, latent_channels=config.latent_channels)


def half(config: DCAEConfig) -> Layout:
    return Layout({name: tuple(range(max(1, site.total // 2))) for name, site in sites(config).items()})


def saved_values(model: DCAE, x_BCHW: torch.Tensor) -> int:
    """Distinct values that a forward pass leaves to autograd, parameters and buffers aside."""
    own = {value.untyped_storage().data_ptr() for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(value: torch.Tensor) -> torch.Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        model(x_BCHW).sum()
    return sum(storage.nbytes() for storage in kept.values()) // 4


@pytest.mark.parametrize("name", ["tiny", "dc-ae-f32c32-in", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32"])
def test_activations_are_what_autograd_keeps(name):
    config = VARIANTS[name] if name == "tiny" else narrow(name)
    for layout in (Layout(), half(config)):
        model = DCAE(config, layout).train()
        found = saved_values(model, torch.rand(1, 3, 256, 256))
        cost = estimate(config, layout, image_size=256)
        assert sum(row.saved for row in cost.modules) == pytest.approx(found, rel=0.06)
        doubled = estimate(config, layout, image_size=256, batch_size=2)
        assert doubled.training_bytes - cost.training_bytes == 4 * sum(row.saved for row in cost.modules)


@pytest.mark.parametrize("name", ["dc-ae-f32c32-in", "dc-ae-f64c128-mix", "dc-ae-f32c32-sana-1.0", "dc-ae-lite-f32c32"])
def test_buffers_and_bytes_are_the_state_dicts(name):
    config = VARIANTS[name]
    with torch.device("meta"):
        model = DCAE(config)
    cost = estimate(config, dtype="bfloat16")
    assert cost.buffers == sum(value.numel() for value in model.buffers())
    halves = sum(value.nbytes for value in model.to(torch.bfloat16).state_dict().values())
    assert cost.weight_bytes == pytest.approx(halves, rel=1e-5)


@pytest.mark.parametrize("name", ["tiny", "dc-ae-f32c32-in", "dc-ae-f32c32-sana-1.0"])
def test_rows_are_the_models_modules(name):
    config = VARIANTS[name]
    with torch.device("meta"):
        model = DCAE(config)
    for row in estimate(config, image_size=64 if name != "dc-ae-f32c32-sana-1.0" else 128).modules:
        assert row.parameters == sum(p.numel() for p in model.get_submodule(row.name).parameters()), row.name


def test_what_cannot_be_estimated_says_so():
    with pytest.raises(ConfigError, match="do not divide") as caught:
        estimate(VARIANTS["tiny"], image_size=100)
    assert caught.value.code == "image_size" and "Try 96" in str(caught.value)
    with pytest.raises(ConfigError, match="float8"):
        estimate(VARIANTS["tiny"], dtype="float8")
    with pytest.raises(ConfigError, match="batch_size"):
        estimate(VARIANTS["tiny"], batch_size=0)
    with pytest.raises(ConfigError, match="no site"):
        estimate(VARIANTS["tiny"], Layout({"encoder.stages.9.blocks.0.mid": (0,)}))
