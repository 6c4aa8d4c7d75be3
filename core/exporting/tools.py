"""Which tools an export needs, and what to install where they are missing. Looked up, never imported: a page may ask."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

from core.errors import CoreError

FORMATS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "onnxruntime", "openvino"),
    "torch_export": (),
    "offshoot": (),
    "diffusers": (),
    "original": (),
}
"""The packages that a format needs besides torch."""
PUBLISHED = ("diffusers", "original")
"""They know whole stages only."""
TITLES: dict[str, str] = {
    "onnx": "ONNX",
    "openvino": "OpenVINO",
    "torch_export": "torch.export",
    "offshoot": "safetensors (Offshoot)",
    "diffusers": "safetensors (diffusers)",
    "original": "safetensors (original release)",
}


@dataclass(frozen=True)
class Elsewhere:
    """A runtime that an ONNX export is made for by a tool of its own."""

    name: str
    package: str
    how: str

    @property
    def is_installed(self) -> bool:
        return find_spec(self.package) is not None

    @property
    def text(self) -> str:
        """What can be done here, or what to install."""
        return f"{self.name}: {self.how}" if self.is_installed else f"{self.name}: not installed (pip install {self.package})."


ELSEWHERE = (
    Elsewhere(
        "TensorRT",
        "tensorrt",
        "installed; `trtexec --onnx=decoder.onnx --saveEngine=decoder.plan` builds an engine from the ONNX.",
    ),
    Elsewhere("Core ML", "coremltools", "installed; `coremltools.convert` takes the torch.export file."),
)


def missing(form: str) -> tuple[str, ...]:
    """Packages that a format lacks here."""
    return tuple(package for package in FORMATS[form] if find_spec(package) is None)


def check_tools(form: str) -> None:
    """Raises CoreError that says what to install."""
    lacking = missing(form)
    if lacking:
        raise CoreError(
            f"Exporting to {TITLES[form]} needs {', '.join(lacking)}, not installed here.", code="no_tool", given=form,
            legal=[name for name in FORMATS if not missing(name)], next=f"pip install {' '.join(lacking)}",
        )  # fmt: skip
