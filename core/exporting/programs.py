"""What was written, loaded again by its own runtime: arrays in, arrays out. The check and the timing go through here alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dcaecore import DCAE, DCAEConfig, from_pretrained, load_model

Call = Callable[[np.ndarray], np.ndarray]


def onnx_call(path: Path, threads: int) -> Call:
    """An ONNX file in onnxruntime on the CPU; float inputs are cast to the graph's dtype."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    dtype = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}[given.type]

    def call(x: np.ndarray) -> np.ndarray:
        made: np.ndarray = session.run(None, {given.name: x.astype(dtype, copy=False)})[0]
        return made

    return call


def openvino_call(path: Path, threads: int) -> Call:
    """An OpenVINO model on the CPU, in float32 arithmetic (on some processors its own choice is bfloat16); inputs are cast as ONNX's."""
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", hints)
    dtype = compiled.input(0).element_type.to_dtype()

    def call(x: np.ndarray) -> np.ndarray:
        made: np.ndarray = compiled(x.astype(dtype, copy=False))[0]
        return made.copy()  # the next call writes to the same memory

    return call


def torch_call(path: Path) -> Call:
    """A `.pt2` file of torch.export."""
    module = torch.export.load(str(path)).module()
    wanted = next(tensor.dtype for tensor in module.state_dict().values() if tensor.is_floating_point())
    return _as_arrays(module, wanted)


def module_calls(model: DCAE, dtype: torch.dtype) -> dict[str, Call]:
    """Both halves of a model in memory."""
    return {"encoder": _as_arrays(model.encoder, dtype), "decoder": _as_arrays(model.decoder, dtype)}


def weights_calls(path: Path, form: str, dtype: torch.dtype, config: DCAEConfig) -> dict[str, Call]:
    """A weight file read back: ours as any store does, the published formats as any import does (diffusers' by its config.json)."""
    if form == "offshoot":
        return module_calls(load_model(path, dtype=dtype).model.eval(), dtype)
    found = from_pretrained(path.parent) if form == "diffusers" else from_pretrained(path, config=config)
    return module_calls(found.model.to(dtype).eval(), dtype)


def _as_arrays(module: Any, dtype: torch.dtype) -> Call:
    @torch.inference_mode()
    def call(x: np.ndarray) -> np.ndarray:
        tensor = torch.from_numpy(np.ascontiguousarray(x))
        made = module(tensor.to(dtype) if tensor.is_floating_point() else tensor)
        found: np.ndarray = (made.float() if made.is_floating_point() else made).numpy()
        return found

    return call
