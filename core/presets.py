"""Presets: named chains of prune, retrain, evaluate and benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from core.errors import CoreError
from core.specs import BenchmarkSpec, DataSpec, EvaluateSpec, PruneSpec, RetrainSpec
from dcaecore.layout import INTERNAL_KINDS


class Preset(BaseModel):
    """A named chain: prune, retrain, evaluate, benchmark."""

    model_config = ConfigDict(frozen=True)

    title: str
    help: str
    prune: PruneSpec
    retrain: RetrainSpec
    evaluate: EvaluateSpec = EvaluateSpec()
    benchmark: BenchmarkSpec = BenchmarkSpec()


def _preset(title: str, help: str, *, inner: float, hidden: float, fine: float = 0.0, deep: float = 0.0, epochs: int) -> Preset:
    # The decoder is what a world model waits for. The encoder is held, so latents stay what they were, and each image is encoded once.
    # GLUs lose most, for they are widest; streams cost time in the finer half of the stages, parameters in the deeper.
    streams = {"decoder.fine.stream": fine, "decoder.deep.stream": deep} if fine else {}
    return Preset(
        title=title,
        help=help,
        prune=PruneSpec.model_validate({
            "method": "structured", "score": "obs", "part": "decoder", "rate": inner, "site_rates": {"decoder.hidden": hidden, **streams},
            "kinds": (*INTERNAL_KINDS, *(("stream",) if streams else ())),
        }),
        retrain=RetrainSpec(
            batch_size=8, n_epochs=epochs, steps_per_epoch=50, warmup_epochs=1, init_lr=2e-3, optimizer_name="muon", betas=(0.9, 0.99),
            weight_decay=0.0, ema_decay=0.995, foreground_weight=12.0, reconstruction_loss="l1+mse", frozen_part="encoder",
            val_steps=32, eval_interval=2, best_metric="foreground_psnr_db",
        ),
    )  # fmt: skip


PRESETS: dict[str, Preset] = {
    "light": _preset(
        "Light", "Half of the decoder's inner units go, three quarters of its GLUs'; a short retraining.",
        inner=0.5, hidden=0.75, epochs=4,
    ),
    "medium": _preset(
        "Medium", "As light, and half of the finer stages' streams; a longer retraining.",
        inner=0.5, hidden=0.75, fine=0.5, epochs=20,
    ),
    "aggressive": _preset(
        "Aggressive", "A quarter of the decoder's inner units stays, an eighth of its GLUs', half of all its streams; a long retraining.",
        inner=0.75, hidden=0.875, fine=0.5, deep=0.5, epochs=100,
    ),
}  # fmt: skip


def preset_on(name: str, data: DataSpec | Mapping[str, Any] | None, image_size: int | None) -> Preset:
    """A preset with all its steps on the same images at one size; None: as in the preset."""
    if name not in PRESETS:
        raise CoreError(f"There is no preset {name!r}.", code="preset", given=name, legal=sorted(PRESETS))
    chosen = PRESETS[name]
    source = None if data is None else DataSpec.model_validate(data)

    def on(spec: Any, data_field: str, size_field: str) -> Any:
        given = {data_field: source, size_field: image_size}
        return spec.model_copy(update={key: value for key, value in given.items() if value is not None and hasattr(spec, key)})

    return chosen.model_copy(
        update={
            "prune": on(chosen.prune, "calibration_data", "calibration_size"),
            "retrain": on(chosen.retrain, "data", "image_size"),
            "evaluate": on(chosen.evaluate, "data", "image_size"),
            "benchmark": on(chosen.benchmark, "data", "image_size"),
        }
    )
