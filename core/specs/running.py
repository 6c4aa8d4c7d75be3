"""A model on images that it is not judged by: test runs, whole folders, and what goes on inside."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from core.specs.base import DataSpec, DType, Spec, spec_field


class DataRunSpec(Spec):
    """A test run: a model's quality on any data set, stored as a protocol of its own, beside the pinned figures."""

    operation: ClassVar[str] = "testrun"

    data: DataSpec = spec_field(DataSpec(), "Images.", group="Data")
    part: Literal["all", "train", "validation", "test"] = spec_field(
        "all", "All of the data, or one part as retraining would split it.", group="Data"
    )
    image_size: int = spec_field(
        128, "Side of the square that images are padded and resized to.", group="Data", ge=16, le=4096, unit="px"
    )
    num_images: int = spec_field(256, "At most so many, evenly spread.", group="Data", ge=1, le=10_000)
    num_save_images: int = spec_field(8, "Reconstructions kept as pictures.", group="Data", ge=0, le=64)
    batch_size: int = spec_field(4, "Images at once; does not change the figures.", group="Basic", ge=1, le=256, identity=False)
    dtype: DType = spec_field("float32", "Precision.", group="Basic")

    @model_validator(mode="after")
    def _one_location(self) -> Self:
        if self.part == "all" and self.data.validation_location is not None:
            raise ValueError(
                "all of the data is read from one place: name the second set as the location, or take part validation"
            )
        return self


class InferSpec(Spec):
    """Reconstruct every image of a data set into a folder, with a table of figures."""

    operation: ClassVar[str] = "infer"

    data: DataSpec = spec_field(DataSpec(), "Images: all of them.", group="Data")
    max_images: int = spec_field(1_000_000, "At most so many, the first ones.", group="Data", ge=1, le=1_000_000)
    image_size: int = spec_field(
        128, "Side of the square that images are padded and resized to.", group="Data", ge=16, le=4096, unit="px"
    )
    batch_size: int = spec_field(4, "Images at once; does not change the result.", group="Basic", ge=1, le=256, identity=False)
    dtype: DType = spec_field("float32", "Precision.", group="Basic")
    out: str | None = spec_field(
        None, "Folder for the results, made by the job and not there before; empty: one in the store.", group="Results",
        identity=False,
    )  # fmt: skip
    size: Literal["original", "square"] = spec_field(
        "original", "Pictures without padding and as large as they came, or as the model makes them.", group="Results"
    )
    save_latents: bool = spec_field(False, "Latents too, as .npy files (C, H, W) of float32.", group="Results")


class ActivationsSpec(Spec):
    """Measure what comes out of each layer over some images."""

    operation: ClassVar[str] = "activations"

    data: DataSpec = spec_field(DataSpec(), "Images.", group="Data")
    part: Literal["train", "validation", "test"] = spec_field("validation", "Part of the data.", group="Data")
    image_size: int = spec_field(
        128, "Side of the square that images are padded and resized to.", group="Data", ge=16, le=4096, unit="px"
    )
    num_images: int = spec_field(16, "Pinned images.", group="Data", ge=1, le=10_000)
    batch_size: int = spec_field(4, "Images at once; does not change the figures.", group="Basic", ge=1, le=256, identity=False)
    dtype: DType = spec_field("float32", "Precision.", group="Basic")
