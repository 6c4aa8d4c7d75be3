"""What measures a model: its quality, its cost, single images, and what the solver goes by."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import field_validator, model_validator

from core.specs.base import DataSpec, DType, Spec, spec_field
from core.specs.pruning import STRUCTURED_METHODS, PruneSpec


class SensitivitySpec(Spec):
    """Measure what pruning each site alone costs in quality, in one shot, on validation images."""

    operation: ClassVar[str] = "sensitivity"

    prune: PruneSpec = spec_field(
        PruneSpec(method="structured"), "How units are chosen and fitted, and where; its own rates are not used.", group="Pruning"
    )
    granularity: Literal["site", "stage"] = spec_field(
        "site", "Prune one site at a time, or the sites of one kind of a stage together.", group="Pruning"
    )
    rates: tuple[float, ...] = spec_field(
        (0.25, 0.5, 0.75), "Shares of the units to remove.", group="Pruning", min_length=1, max_length=20
    )
    data: DataSpec = spec_field(DataSpec(), "Images: their validation part.", group="Data")
    image_size: int = spec_field(
        128, "Side of the square that images are padded and resized to.", group="Data", ge=16, le=4096, unit="px"
    )
    num_images: int = spec_field(32, "Pinned images.", group="Data", ge=1, le=10_000)
    batch_size: int = spec_field(8, "Images at once; does not change the figures.", group="Data", ge=1, le=256, identity=False)

    @field_validator("rates")
    @classmethod
    def _rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.05 <= rate <= 0.9 for rate in value):
            raise ValueError(f"rates lie in 0.05 to 0.9, not {value}")
        return tuple(sorted(set(value)))

    @model_validator(mode="after")
    def _structured(self) -> Self:
        if self.prune.method not in STRUCTURED_METHODS:
            raise ValueError(f"sensitivity is of structured pruning ({', '.join(STRUCTURED_METHODS)}), not {self.prune.method}")
        for name in ("plan", "rate", "site_rates", "scope", "round_to", "apply"):
            if getattr(self.prune, name) != PruneSpec.model_fields[name].default:
                raise ValueError(f"prune.{name} would have no effect: the rates are those of `rates`")
        return self


class ProfileSpec(Spec):
    """Measure each block's latency over a grid of widths on this device, so that plans can be timed before they are made."""

    operation: ClassVar[str] = "profile"

    part: Literal["both", "encoder", "decoder"] = spec_field("both", "Which half of the autoencoder is measured.", group="Grid")
    streams: bool = spec_field(False, "Vary the residual streams too: the square of the measurements.", group="Grid")
    rates: tuple[float, ...] = spec_field(
        (0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.875), "Shares of the units that are left out, besides none.", group="Grid",
        min_length=1, max_length=20,
    )  # fmt: skip
    image_size: int = spec_field(128, "Side of the square images.", group="Protocol", ge=16, le=4096, unit="px")
    batch_size: int = spec_field(1, "Images at once.", group="Protocol", ge=1, le=1024)
    dtype: DType = spec_field("float32", "Precision.", group="Protocol")
    repeats: int = spec_field(9, "Timed repeats of each block.", group="Protocol", ge=3, le=1000)
    fit_models: int = spec_field(
        6, "Whole models that offset and scale are fitted on.", group="Protocol", ge=2, le=100, advanced=True
    )
    check_models: int = spec_field(
        12, "Further whole models, of other widths, that the prediction is checked on.", group="Protocol", ge=2, le=100,
        advanced=True,
    )  # fmt: skip
    seed: int = spec_field(0, "Seed of the widths of these models.", group="Protocol", ge=0, advanced=True)

    @field_validator("rates")
    @classmethod
    def _rates(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not all(0.0 < rate <= 0.95 for rate in value):
            raise ValueError(f"rates lie over 0 and up to 0.95, not {value}")
        return tuple(sorted(set(value)))


class EvaluateSpec(Spec):
    """Measure quality on pinned images."""

    operation: ClassVar[str] = "evaluate"

    data: DataSpec = spec_field(DataSpec(), "Images.", group="Data")
    split: Literal["test", "validation"] = spec_field("test", "Which part of the data.", group="Data")
    image_size: int = spec_field(
        128, "Side of the square that images are padded and resized to.", group="Data", ge=16, le=4096, unit="px"
    )
    num_images: int = spec_field(64, "Pinned images.", group="Data", ge=1, le=10_000)
    num_save_images: int = spec_field(8, "Reconstructions kept as pictures.", group="Data", ge=0, le=64)
    batch_size: int = spec_field(4, "Images at once; does not change the figures.", group="Basic", ge=1, le=256, identity=False)
    dtype: DType = spec_field("float32", "Precision.", group="Basic")


class BenchmarkSpec(Spec):
    """Measure cost. All models of one benchmark run interleaved, so their ratios are comparable."""

    operation: ClassVar[str] = "benchmark"

    models: tuple[str, ...] = spec_field((), "Further models that run interleaved with this one (ids).", group="Models")
    with_baseline: bool = spec_field(True, "Run the baseline of each model beside it.", group="Models")
    image_size: int = spec_field(128, "Side of the square images.", group="Sizes", ge=16, le=4096, unit="px")
    batch_size: int = spec_field(1, "Images at once.", group="Sizes", ge=1, le=1024)
    batch_sizes: tuple[int, ...] = spec_field(
        (), "Throughput over these batch sizes too, e.g. [1, 2, 4, 8]; empty: no sweep over them.", group="Sizes", max_length=12
    )
    image_sizes: tuple[int, ...] = spec_field(
        (), "Throughput over these image sizes too, e.g. [64, 128, 256]; empty: no sweep over them.", group="Sizes", max_length=12,
        unit="px",
    )  # fmt: skip
    repeats: int = spec_field(20, "Timed repeats of each model.", group="Protocol", ge=3, le=10_000)
    sweep_repeats: int = spec_field(5, "Timed repeats at each point of a sweep.", group="Protocol", ge=3, le=1000, advanced=True)
    warmup: int = spec_field(3, "Untimed runs of each model before.", group="Protocol", ge=1, le=1000, advanced=True)
    starts: int = spec_field(
        3, "Fresh processes that load each model and run it once: start-up and peak memory; 0: neither.", group="Protocol", ge=0,
        le=20, advanced=True,
    )  # fmt: skip
    dtype: DType = spec_field("float32", "Precision.", group="Protocol")
    sparse_kernels: bool = spec_field(
        False, "Run 1x1 convolutions whose weights are 2:4 on sparse tensor cores (NVIDIA, compute capability 8.0 and newer).",
        group="Protocol", advanced=True, when={"dtype": ["bfloat16"]},
    )  # fmt: skip

    @field_validator("batch_sizes")
    @classmethod
    def _batch_sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _swept(value, 1, 1024)

    @field_validator("image_sizes")
    @classmethod
    def _image_sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        return _swept(value, 16, 4096)

    @property
    def sweep(self) -> list[tuple[int, int]]:
        """(image size, batch size) of each point of the sweep; empty where none is asked for."""
        if not (self.batch_sizes or self.image_sizes):
            return []
        return [
            (size, batch) for size in self.image_sizes or (self.image_size,) for batch in self.batch_sizes or (self.batch_size,)
        ]

    @property
    def every_image_size(self) -> list[int]:
        """All sides that models are to run at."""
        return sorted({self.image_size, *self.image_sizes})


def _swept(value: tuple[int, ...], low: int, high: int) -> tuple[int, ...]:
    if not all(low <= one <= high for one in value):
        raise ValueError(f"each lies in {low} to {high}, not {value}")
    return tuple(sorted(set(value)))


class InspectSpec(Spec):
    """Look at every image of a part of a data set, one by one."""

    operation: ClassVar[str] = "inspect"

    data: DataSpec = spec_field(DataSpec(), "Images.", group="Data")
    image_size: int = spec_field(
        128, "Side of the square that images are padded and resized to.", group="Data", ge=16, le=4096, unit="px"
    )
    part: Literal["train", "validation", "test"] = spec_field("train", "Part of the data.", group="Data")
    max_images: int = spec_field(20_000, "At most so many.", group="Data", ge=1, le=1_000_000)
    batch_size: int = spec_field(8, "Images at once; does not change the figures.", group="Data", ge=1, le=256, identity=False)
