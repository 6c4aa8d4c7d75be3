"""From a retrain spec to what the training loop takes: the same names."""

from __future__ import annotations

import dataclasses

from core.specs import RetrainSpec
from dcaecore import TrainSettings

SETTINGS = {field.name for field in dataclasses.fields(TrainSettings)}


def train_settings(spec: RetrainSpec) -> TrainSettings:
    """The spec's training part."""
    values = {name: value for name, value in spec.model_dump().items() if name in SETTINGS}
    return TrainSettings(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
