"""Distillation: each term against its formula, streams of different widths, and what it does to a training."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from dcaecore import DCAE, VARIANTS, ConfigError, Distillation, DistillWeights, Layout
from dcaecore.layout import Site, sites

CONFIG = VARIANTS["tiny"]


def made(seed: int, layout: Layout | None = None) -> DCAE:
    torch.manual_seed(seed)
    return DCAE(CONFIG, layout or Layout()).eval()


def images(seed: int = 0) -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def narrowed(*names: str) -> Layout:
    """Every second unit of the named sites is gone."""
    known: dict[str, Site] = dict(sites(CONFIG))
    return Layout({name: tuple(range(0, known[name].total, 2)) for name in names})


def test_a_model_learns_nothing_from_itself():
    model = made(0)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        y, total, parts = Distillation(twin, model, DistillWeights(1.0, 2.0, 3.0))(images())
    assert torch.equal(y, model(images())) and float(total) == 0.0
    assert set(parts) == {"distill_output", "distill_latent", "distill_features"}


def test_output_and_latent_follow_their_formulas():
    teacher, student, x = made(0), made(1), images()
    with torch.no_grad():
        _y, total, parts = Distillation(copy.deepcopy(teacher), student, DistillWeights(output=0.5, latent=4.0))(x)
        z, target = student.encode(x).double().numpy(), teacher.encode(x).double().numpy()
        y, wanted = student(x).double().numpy(), teacher(x).double().numpy()
    by_hand = {
        "distill_output": 0.5 * np.abs(y - wanted).mean(),
        "distill_latent": 4.0 * ((z - target) ** 2).mean() / (target**2).mean(),
    }
    assert {name: float(value) for name, value in parts.items()} == pytest.approx(by_hand, rel=1e-5)
    assert float(total) == pytest.approx(sum(by_hand.values()), rel=1e-5)


def test_features_compare_the_channels_that_both_have():
    cut = ("encoder.stages.1.stream", "decoder.stages.2.stream", "decoder.stages.1.stream")
    teacher, student, x = made(0), made(1, narrowed(*cut)), images()
    seen: dict[tuple[str, str], torch.Tensor] = {}
    for role, model in (("teacher", teacher), ("student", student)):
        for name, module in model.named_modules():
            if name.count(".") == 2 and ".stages." in name:
                module.register_forward_hook(lambda _m, _i, out, role=role, name=name: seen.__setitem__((role, name), out))
    with torch.no_grad():
        _y, total, _parts = Distillation(teacher, student, DistillWeights(features=1.0))(x)
    errors = []
    for name in sorted({name for _role, name in seen}):
        coder, _, stage = name.split(".")
        if int(stage) < CONFIG.coder(coder).first_stage:
            continue  # it has no blocks, so no stream of its own
        target, found = seen["teacher", name].numpy(), seen["student", name].numpy()
        # An encoder's stage ends with its resampling layer: what it puts out is the stream of the next one.
        of = min(int(stage) + 1, CONFIG.encoder.num_stages - 1) if coder == "encoder" else int(stage)
        channels = list(student.layout.stream(CONFIG, coder, of))
        assert found.shape[1] == len(channels)
        errors.append(((found - target[:, channels]) ** 2).mean() / (target[:, channels] ** 2).mean())
    assert any(seen["student", name].shape != seen["teacher", name].shape for _role, name in seen)
    assert float(total) == pytest.approx(np.mean(errors), rel=1e-5)


def test_gradients_reach_the_student_alone():
    teacher, student = made(0), made(1, narrowed("decoder.stages.2.stream"))
    Distillation(teacher, student, DistillWeights(1.0, 1.0, 1.0))(images())[1].backward()
    assert all(parameter.grad is not None for parameter in student.parameters())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in teacher.parameters())


def test_latents_and_stages_that_cannot_be_compared_are_refused():
    student = made(0)
    other = DCAE(replace(CONFIG, latent_channels=CONFIG.latent_channels * 2))
    with pytest.raises(ConfigError, match="latents"):
        Distillation(other, student, DistillWeights(latent=1.0))
    wide = replace(CONFIG.decoder, widths=tuple(2 * width for width in CONFIG.decoder.widths))
    with pytest.raises(ConfigError, match="other widths"):
        Distillation(DCAE(replace(CONFIG, decoder=wide)), student, DistillWeights(features=1.0))
    Distillation(DCAE(replace(CONFIG, decoder=wide)), student, DistillWeights(output=1.0))
