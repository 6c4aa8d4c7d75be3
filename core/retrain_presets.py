"""Starting points for a retraining: how long, and what trains. A form or a terminal changes what it likes of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.checks import changed
from core.errors import CoreError
from core.schedules import divided
from core.specs import RetrainSpec
from dcaecore.config import DCAEConfig
from dcaecore.freezing import phase_parts

PHASES = 3
_TUNED: dict[str, Any] = {
    "init_lr": 1e-3, "weight_decay": 0.0, "betas": (0.9, 0.99), "ema_decay": 0.995, "foreground_weight": 21.0,
    "reconstruction_loss": "l1+mse", "best_metric": "foreground_psnr_db", "warmup_epochs": 1,
}  # fmt: skip
"""As the presets of a whole compression train (`core.presets`)."""


@dataclass(frozen=True)
class RetrainPreset:
    """Fields of a `RetrainSpec` that differ from its defaults, and what for."""

    title: str
    help: str
    values: Mapping[str, Any] = field(default_factory=dict)


RETRAIN_PRESETS: dict[str, RetrainPreset] = {
    "smoke": RetrainPreset(
        "Smoke", "20 steps of batch 2: does everything work on these images?",
        {"batch_size": 2, "n_epochs": 2, "steps_per_epoch": 10, "val_steps": 16, **_TUNED},
    ),
    "quick": RetrainPreset(
        "Quick", "200 steps of batch 8: is this pruning worth a long training?",
        {"batch_size": 8, "n_epochs": 8, "steps_per_epoch": 25, "val_steps": 32, "eval_interval": 2, **_TUNED},
    ),
    "full": RetrainPreset(
        "Full", "1,200 steps of batch 8; ends early where 8 validations gain nothing.",
        {
            "batch_size": 8, "n_epochs": 48, "steps_per_epoch": 25, "val_steps": 32, "eval_interval": 2, "patience": 8, **_TUNED,
        },
    ),
}  # fmt: skip


def preset_values(name: str) -> dict[str, Any]:
    """The fields that a preset sets; raises CoreError for a name that there is not."""
    if name not in RETRAIN_PRESETS:
        raise CoreError(f"There is no preset {name!r}.", code="preset", given=name, legal=sorted(RETRAIN_PRESETS))
    return dict(RETRAIN_PRESETS[name].values)


def phases(config: DCAEConfig, spec: RetrainSpec, high_size: int | None = None) -> list[RetrainSpec]:
    """The paper's three phases (`dcaecore.freezing.phase_parts`) as three trainings that share the steps of `spec`.

    The second is at `high_size` px, twice the size of the others where it is not given. Raises CoreError where `spec` itself holds
    parts, which the phases decide, or has too few steps.
    """
    if spec.frozen_part != "none" or spec.frozen_stages:
        raise CoreError(
            "The three phases say themselves what is held.", code="part", given=[spec.frozen_part, *spec.frozen_stages],
            legal="frozen_part none and no frozen_stages",
        )  # fmt: skip
    sizes = (spec.image_size, high_size or 2 * spec.image_size, spec.image_size)
    return [
        changed(one, frozen_stages=phase_parts(config, number), image_size=size)
        for number, (one, size) in enumerate(zip(divided(spec, PHASES), sizes, strict=True), start=1)
    ]
