"""Graphs of encoder and decoder: torch.export programs, ONNX files made of them, in float or with 8-bit convolutions, OpenVINO of those.

Axes: B batch, C channels, H height, W width. A graph takes and gives `(B, 3, H, W)` in [-1, 1] and latents `(B, C, h, w)`; with processing
inside, 8-bit `(B, H, W, 3)` images instead. Latents are in the graph's dtype.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx.experimental import _config as shape_settings

from dcaecore import DCAE

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
INPUTS = {"encoder": "image", "decoder": "latent"}
OUTPUTS = {"encoder": "latent", "decoder": "image"}


class EncoderGraph(nn.Module):
    """Images to latents."""

    def __init__(self, model: DCAE, dtype: torch.dtype, processing: bool) -> None:
        super().__init__()
        self.encoder, self.dtype, self.processing = model.encoder, dtype, processing

    def forward(self, image: Tensor) -> Tensor:
        if self.processing:
            image = image.permute(0, 3, 1, 2).to(self.dtype) / 127.5 - 1.0
        return self.encoder(image)  # type: ignore[no-any-return]


class DecoderGraph(nn.Module):
    """Latents to images."""

    def __init__(self, model: DCAE, processing: bool) -> None:
        super().__init__()
        self.decoder, self.processing = model.decoder, processing

    def forward(self, latent: Tensor) -> Tensor:
        image: Tensor = self.decoder(latent)
        if not self.processing:
            return image
        scaled = (image.float().clamp(-1.0, 1.0) + 1.0) * 127.5
        return scaled.round().to(torch.uint8).permute(0, 2, 3, 1)


def program(model: DCAE, part: str, *, dtype: torch.dtype, processing: bool, dynamic: bool, batch: int, side: int) -> Any:
    """The torch.export program of a part. `model` must be in `dtype` and in eval mode.

    Dynamic: any batch, and any height and width that the model divides; else `batch` images of `side` x `side`.
    """
    step = model.config.spatial_compression
    # An axis of length 1 would be taken for a constant.
    count, length = (2, max(side, 2 * step)) if dynamic else (batch, side)
    height, width = torch.export.Dim("height", min=1), torch.export.Dim("width", min=1)
    images = torch.export.Dim("batch", min=1)
    if part == "encoder":
        made: nn.Module = EncoderGraph(model, dtype, processing)
        x = torch.zeros(count, 3, length, length, dtype=dtype)
        axes = (2, 3)
        if processing:
            x, axes = torch.zeros(count, length, length, 3, dtype=torch.uint8), (1, 2)
        shapes = {0: images, axes[0]: step * height, axes[1]: step * width}
    else:
        made = DecoderGraph(model, processing)
        x = torch.zeros(count, model.config.latent_channels, length // step, length // step, dtype=dtype)
        shapes = {0: images, 2: height, 3: width}
    # As torch's ONNX exporter sets it: a view's strides are not sought by proving how symbolic sizes divide, which took two thirds of
    # an encoder's export.
    with torch.no_grad(), _quiet(), shape_settings.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        return torch.export.export(made.eval(), (x,), dynamic_shapes=(shapes,) if dynamic else None)


def to_onnx(exported: Any, part: str, path: Path, opset: int) -> None:
    """Writes a program as one ONNX file and has its structure checked."""
    import onnx

    with torch.no_grad(), _quiet():
        made = torch.onnx.export(
            exported, dynamo=True, opset_version=opset, input_names=[INPUTS[part]], output_names=[OUTPUTS[part]], verbose=False
        )
        assert made is not None
        made.save(str(path), external_data=False)
    onnx.checker.check_model(str(path))


def to_openvino(path: Path, target: Path) -> list[Path]:
    """Writes an ONNX file as OpenVINO's pair, `.xml` and `.bin`, weights as they are. Its own reader, which reports to nobody."""
    import openvino

    openvino.save_model(openvino.Core().read_model(str(path)), str(target), compress_to_fp16=False)
    return [target, target.with_suffix(".bin")]


def quantize(path: Path, target: Path, batches: list[np.ndarray]) -> None:
    """Static int8 convolutions (weights by channel), ranges from `batches` of the graph's input; the rest stays float32."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self, name: str) -> None:
            self.batches = iter({name: batch} for batch in batches)

        def get_next(self) -> Any:
            return next(self.batches, None)

    import onnx

    name = onnx.load(str(path), load_external_data=False).graph.input[0].name
    with _quiet():
        quantize_static(
            str(path), str(target), Reader(name), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"], per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
        )  # fmt: skip


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters warn about their own insides, which nobody here can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
