"""What brings a model into the store."""

from __future__ import annotations

from typing import ClassVar

from core.specs.base import Spec, spec_field


class ImportSpec(Spec):
    """Bring a model into the store as a baseline."""

    operation: ClassVar[str] = "import"

    source: str = spec_field(
        "demo", "`demo`, a zoo name, a Hugging Face id, a folder, or a .safetensors/.pt/.pth file.", group="Model"
    )
    revision: str | None = spec_field(None, "Revision of a Hugging Face model.", group="Model", advanced=True)
    random_seed: int | None = spec_field(
        None, "For a zoo name only: build it with random weights from this seed.", group="Model", advanced=True, ge=0
    )
