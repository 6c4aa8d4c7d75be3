"""What a pruning is asked to do, at once or in rounds."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

from pydantic import field_validator, model_validator

from core.specs.base import DataSpec, Spec, spec_field

PruneMethod = Literal["l1_unstructured", "global_magnitude", "two_four", "l2_structured", "structured"]
UnitScore = Literal["l2", "l1", "lamp", "fpgm", "random", "taylor", "wanda", "qr", "obs"]
UNSTRUCTURED_METHODS: tuple[str, ...] = ("l1_unstructured", "global_magnitude")
STRUCTURED_METHODS: tuple[str, ...] = ("l2_structured", "structured")
RATED_METHODS = (*UNSTRUCTURED_METHODS, *STRUCTURED_METHODS)
"""Methods that remove as much as is asked for; 2:4 always removes two of four."""
CALIBRATED_SCORES: tuple[str, ...] = ("taylor", "wanda", "qr", "obs")
"""Scores that look at activations or gradients on calibration images."""
LEAST_RATE, MOST_RATE = 0.1, 0.9
MOST_ROUNDS = 20
_LOOKS_AT_IMAGES = [
    {"method": ["structured"], "compensate": [True]},
    {"method": ["structured"], "score": list(CALIBRATED_SCORES), "plan": [None]},
]
_CHOOSES_UNITS = {"method": list(STRUCTURED_METHODS), "plan": [None]}
METHOD_TITLES: dict[str, str] = {
    "l2_structured": "L2 structured (channels, hidden units, heads: smaller and faster)",
    "structured": "Structured by any score, with what the removed units did folded into the kept ones",
    "l1_unstructured": "L1 unstructured (single weights, the same share of each layer)",
    "global_magnitude": "Global magnitude (single weights, one ranking over all layers)",
    "two_four": "2:4 semi-structured (two of each four weights: what sparse tensor cores take)",
}


class PruneSpec(Spec):
    """Make a smaller or sparser model from a parent. The rate is always relative to the parent."""

    operation: ClassVar[str] = "prune"

    method: PruneMethod = spec_field("l2_structured", "What is removed, and by which score.", group="Method")
    plan: str | None = spec_field(
        None,
        "Keep the units that another pruning kept: the model that it made, or its plan (p_...). It must have been made for a model of "
        "this shape and family; empty: units are chosen anew.",
        group="Method",
        advanced=True,
        identity="set",
        when={"method": list(STRUCTURED_METHODS)},
    )
    rate: float | None = spec_field(
        0.5,
        "Share to remove: of the parent's non-zero weights (unstructured), or of each site's units (structured).",
        group="Method",
        ge=LEAST_RATE,
        le=MOST_RATE,
        step=0.05,
        when={"method": list(RATED_METHODS), "plan": [None]},
    )
    threshold: float | None = spec_field(
        None,
        "Instead of a rate: zero every prunable weight whose magnitude is below this value.",
        group="Method",
        gt=0.0,
        advanced=True,
        when={"method": list(UNSTRUCTURED_METHODS)},
    )
    skip_unfit: bool = spec_field(
        False,
        "Leave layers whole whose input channels do not divide by four (depthwise, RGB); else they are named and refused.",
        group="Method",
        when={"method": ["two_four"]},
    )
    apply: Literal["cut", "mask"] = spec_field(
        "cut",
        "Cut: units go. Mask: they are zeroed and held at zero by masks through retraining, shapes stay; a later pruning cuts them.",
        group="Method",
        advanced=True,
        when={"method": list(STRUCTURED_METHODS)},
    )
    score: UnitScore = spec_field(
        "obs",
        "Which units matter: magnitude (l2, l1, lamp, fpgm), the loss's pull (taylor), activations (wanda, qr), the best "
        "least-squares replacement (obs), or chance (random, the control).",
        group="Method",
        when={"method": ["structured"], "plan": [None]},
    )
    scope: Literal["local", "kind", "global"] = spec_field(
        "local",
        "The same share of each site, or one ranking over all sites (of a kind): shares then differ, the overall one holds.",
        group="Method",
        advanced=True,
        when={"method": ["structured"], "plan": [None]},
    )
    compensate: bool = spec_field(
        True,
        "Fit what removed units did from the kept ones on calibration images, and fold it into the next layer.",
        group="Calibration",
        when={"method": ["structured"]},
    )
    calibration_images: int | None = spec_field(
        None,
        "Training images that scores and fits look at; empty: as many as twice the unknowns of the largest fit need.",
        group="Calibration",
        ge=1,
        le=4096,
        when=_LOOKS_AT_IMAGES,
    )
    calibration_size: int = spec_field(128, "Their side.", group="Calibration", ge=16, le=4096, unit="px", when=_LOOKS_AT_IMAGES)
    calibration_foreground_weight: float = spec_field(
        21.0, "Weight of pixels that move in scores and fits; 1 treats all alike.", group="Calibration", ge=1.0, le=1000.0,
        when=_LOOKS_AT_IMAGES,
    )  # fmt: skip
    calibration_data: DataSpec = spec_field(
        DataSpec(), "Where calibration images come from: their training part.", group="Calibration", advanced=True,
        when=_LOOKS_AT_IMAGES,
    )  # fmt: skip
    seed: int = spec_field(
        0, "Seed of the choice of calibration images and of random scores.", group="Calibration", ge=0, advanced=True,
        when=[*_LOOKS_AT_IMAGES, {"method": ["structured"], "score": ["random"], "plan": [None]}],
    )  # fmt: skip
    part: Literal["both", "encoder", "decoder"] = spec_field(
        "both", "Which half of the autoencoder is pruned.", group="Where", when={"plan": [None]}
    )
    round_to: int = spec_field(
        1,
        "Kept hidden and mid channels are a multiple of this where the site allows (8 suits GPUs); heads are never rounded.",
        group="Where",
        ge=1,
        le=64,
        advanced=True,
        when=_CHOOSES_UNITS,
    )
    kinds: tuple[Literal["mid", "hidden", "heads", "stream"], ...] = spec_field(
        ("mid", "hidden", "heads"),
        "Site kinds to prune: ResBlock mid channels, GLU hidden pairs, attention heads, and the residual stream of each stage.",
        group="Where",
        advanced=True,
        when=_CHOOSES_UNITS,
    )
    stream_norms: Literal["plain", "exact"] = spec_field(
        "plain",
        "RMS norms over a cut stream: norm what is left, or go on as if the removed channels were there and zero.",
        group="Where",
        advanced=True,
        when={"method": list(STRUCTURED_METHODS)},
    )
    site_rates: dict[str, float] = spec_field(
        {},
        "Rates that override `rate` for a kind of site, in a coder or in its finer or deeper half, for a stage or one site, the most "
        "particular first, such as {'hidden': 0.7, 'decoder.fine.stream': 0.5, 'decoder.stages.2': 0.3}; stage -1 is the deepest; "
        "0 leaves it whole.",
        group="Where",
        advanced=True,
        when=_CHOOSES_UNITS,
    )

    @field_validator("rate", "threshold", mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"must be a finite number, not {value}")
        return value

    @field_validator("site_rates")
    @classmethod
    def _site_rates(cls, value: dict[str, float]) -> dict[str, float]:
        for name, rate in value.items():
            if not 0.0 <= rate <= 0.9:
                raise ValueError(f"rate of {name} is {rate}; legal is 0 (locked) to 0.9")
        return value

    @model_validator(mode="after")
    def _rate_or_threshold(self) -> PruneSpec:
        if self.stream_norms != "plain" and "stream" not in self.kinds and self.plan is None:
            raise ValueError("stream_norms would have no effect: it applies where kinds has stream")
        if self.apply == "mask" and "stream" in self.kinds and self.stream_norms == "plain":
            raise ValueError(
                "a masked residual stream needs stream_norms exact: with plain norms the later cut would change what the model computes"
            )
        if self.threshold is None and self.rate is None:
            raise ValueError("give a rate (0.1 to 0.9) or, for the unstructured methods, a threshold")
        if self.threshold is not None and self.rate is not None:
            raise ValueError("give a rate or a threshold, not both (set rate to null to use a threshold)")
        return self

    @property
    def needs_calibration(self) -> bool:
        """Whether images are looked at."""
        looks = self.compensate or (self.score in CALIBRATED_SCORES and self.plan is None)
        return self.method == "structured" and looks


class ScheduleSpec(Spec):
    """How a pruning is spread over rounds."""

    operation: ClassVar[str] = "schedule"

    schedule: Literal["cubic", "linear", "iterative", "one-shot"] = spec_field(
        "cubic",
        "Cubic: most early; linear: alike. Both hold units at zero by masks and cut them in the last round. Iterative: the same share "
        "of what is left, cut in each round. One-shot: prune once, then retrain.",
        group="In rounds",
    )
    rounds: int = spec_field(
        4,
        "Rounds, each a pruning and a part of the retraining; every one is a model.",
        group="In rounds",
        ge=2,
        le=MOST_ROUNDS,
        when={"schedule": ["cubic", "linear", "iterative"]},
    )
