"""What a job is asked to do: one pydantic model per operation.

Forms (pages) and terminal options (`python -m core`) are derived from these classes: bounds, defaults, groups, help and the
condition under which a field applies stand here and nowhere else. A spec is part of a model's identity, so it is stored in
full, defaults included; what does not change the result (names, notes, device, worker counts, logging) is left out of the
identity by `identity_spec`.

Each field's `json_schema_extra` may hold: `group` (form section), `advanced` (hidden until asked for), `unit`,
`identity=False` (does not change the result) or `identity="set"` (came later: at its default it is left out of the identity, which
stays what it was), `when` ({other field: allowed values}, or several of these: elsewhere the field does not apply, forms leave it out,
and a value other than its default is refused).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

SPEC_VERSION = 1
DType = Literal["float32", "bfloat16"]


def spec_field(default: Any, description: str, *, group: str, **options: Any) -> Any:
    """A pydantic field whose form hints (`group`, `advanced`, `unit`, `identity`, `when`) travel in its JSON schema."""
    hints: dict[str, Any] = {
        name: options.pop(name) for name in ("advanced", "unit", "identity", "when", "step") if name in options
    }
    return Field(default, description=description, json_schema_extra={"group": group, **hints}, **options)


class Spec(BaseModel):
    """Base of all specs: unknown fields are refused, numbers are finite, and values cannot change once set."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    operation: ClassVar[str]

    @classmethod
    def condition(cls, name: str) -> list[dict[str, list[Any]]]:
        """Where a field applies: in any of these cases, each of which is {other field: allowed values}; empty: always."""
        hints = cls.model_fields[name].json_schema_extra
        when = hints.get("when", []) if isinstance(hints, dict) else []
        return [when] if isinstance(when, dict) else list(when)  # type: ignore[list-item, arg-type]

    @classmethod
    def applies(cls, name: str, values: Mapping[str, Any]) -> bool:
        """Whether a field has an effect beside these values."""
        cases = cls.condition(name)
        return not cases or any(all(values.get(other) in allowed for other, allowed in case.items()) for case in cases)

    @model_validator(mode="after")
    def _nothing_idle(self) -> Self:
        values = {name: getattr(self, name) for name in type(self).model_fields}
        for name, field in type(self).model_fields.items():
            if values[name] != field.default and not self.applies(name, values):
                cases = [
                    " and ".join(f"{other} is {' or '.join(map(str, allowed))}" for other, allowed in case.items())
                    for case in self.condition(name)
                ]
                raise ValueError(f"{name} would have no effect: it applies where {', or '.join(cases)}")
        return self

    def identity_spec(self) -> dict[str, Any]:
        """The fields that determine the result, as JSON-able values: what a model's id is hashed over."""
        fields = type(self).model_fields
        kept = self.model_dump(mode="json")
        for name, field in fields.items():
            hints = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
            if hints.get("identity") is False or (hints.get("identity") == "set" and getattr(self, name) == field.default):
                kept.pop(name)
        return {"operation": self.operation, **kept}


class DataSpec(BaseModel):
    """Where images come from. `train`, `validation` and `test` parts never share an episode."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["sample", "hub", "parquet", "folder"] = Field(
        "sample",
        description="A bundled sample set, a Hugging Face data set id, local parquet files, or a folder of images.",
    )
    location: str = Field(
        "mspacman",
        min_length=1,
        description="Name of the sample set (mspacman, mspacman_large, mixed), hub id (Tahahah/PacmanDataset_3), or a path (glob allowed).",
    )
    column: str = Field("frame_image", min_length=1, description="Column that holds the image.")
    revision: str | None = Field(None, description="Revision of a hub data set: a commit, tag or branch.")
    validation_location: str | None = Field(
        None,
        description="A second location of the same kind for validation (Tahahah/PacmanDataset_2); else a part of this.",
    )
    max_rows: int = Field(20_000, ge=16, le=5_000_000, description="At most this many rows of a streamed set are used.")
    split_seed: int = Field(0, ge=0, description="Seed of the split into train, validation and test by episode.")
    skip_broken: bool = Field(False, description="Skip images that cannot be read (counted and shown) instead of stopping.")
    deny_rows: tuple[str, ...] = Field((), description="Row ids that are never used.")
