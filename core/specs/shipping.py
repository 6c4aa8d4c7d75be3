"""What leaves the store or checks it: exports, one picture through several models, a chain run again."""

from __future__ import annotations

from typing import ClassVar, Literal, Self

from pydantic import model_validator

from core.specs.base import DataSpec, Spec, spec_field

_ONNX = ["onnx", "openvino"]
_GRAPHS = {"format": [*_ONNX, "torch_export"]}


class ExportSpec(Spec):
    """Write a model for use elsewhere, check it against the model on pinned images, and time it beside the model."""

    operation: ClassVar[str] = "export"

    format: Literal["onnx", "openvino", "torch_export", "offshoot", "diffusers", "original"] = spec_field(
        "onnx",
        "ONNX, OpenVINO (made of the ONNX) or torch.export graphs of encoder and decoder; or safetensors with a config: ours, or "
        "(unpruned shapes only) the keys of diffusers or of the original release.",
        group="Export",
    )
    part: Literal["both", "encoder", "decoder"] = spec_field("both", "Which half is written.", group="Export", when=_GRAPHS)
    dtype: Literal["float32", "float16", "bfloat16"] = spec_field(
        "float32", "Precision of the weights, and of a graph's arithmetic.", group="Export"
    )
    quantize: Literal["none", "int8"] = spec_field(
        "none", "Static 8-bit convolutions, calibrated on validation images.", group="Export",
        when={"format": _ONNX, "dtype": ["float32"]},
    )  # fmt: skip
    dynamic: bool = spec_field(True, "One graph for any batch and any size; else for these alone.", group="Graph", when=_GRAPHS)
    processing: bool = spec_field(
        False,
        "The graphs take and give 8-bit images (B, H, W, 3) instead of (B, 3, H, W) in [-1, 1].",
        group="Graph",
        when=_GRAPHS,
    )
    opset: int = spec_field(20, "ONNX operator set.", group="Graph", ge=18, le=23, advanced=True, when={"format": _ONNX})
    calibration_images: int = spec_field(
        32, "Validation images that ranges are taken from.", group="Graph", ge=1, le=1000, when={"quantize": ["int8"]}
    )

    data: DataSpec = spec_field(
        DataSpec(), "Images: the check takes test images, the calibration validation images.", group="Check"
    )
    image_size: int = spec_field(
        128, "Side of the images that the export is checked and timed on.", group="Check", ge=16, le=4096, unit="px"
    )
    num_images: int = spec_field(16, "Pinned images of the check.", group="Check", ge=1, le=1000)
    batch_size: int = spec_field(
        1, "Images at once; a graph that is not dynamic takes no other number.", group="Check", ge=1, le=256
    )
    repeats: int = spec_field(20, "Timed repeats of export and model, interleaved.", group="Check", ge=3, le=1000)

    @model_validator(mode="after")
    def _runs_here(self) -> Self:
        if self.format in _ONNX and self.dtype == "bfloat16":
            raise ValueError(
                "onnxruntime has no bfloat16 convolutions on a CPU, so the export could not be checked; take float16"
            )
        return self


MOST_RECONSTRUCTING = 4


class ReconstructSpec(Spec):
    """Put one picture through some models, to look at what they make of it."""

    operation: ClassVar[str] = "reconstruct"

    image_digest: str = spec_field("", "The picture's blob (SHA-256), an 8-bit RGB PNG.", group="Picture")
    image_size: int = spec_field(
        128, "Side of the square that the picture is padded and resized to.", group="Picture", ge=16, le=4096, unit="px"
    )
    models: tuple[str, ...] = spec_field(
        (), "Further models beside the first (ids).", group="Models", max_length=MOST_RECONSTRUCTING - 1
    )


class ReproduceSpec(Spec):
    """Run the chain that made a model again and compare; all settings are those on record."""

    operation: ClassVar[str] = "reproduce"
