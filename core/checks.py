"""A spec from whatever a caller gave, and a model's weights where they are still there; or one clear error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from core.errors import CoreError
from core.specs import Spec
from store import ModelRow, Store

SpecLike = Spec | Mapping[str, Any] | None
Wanted = TypeVar("Wanted", bound=Spec)
_SHOULD = "Input should be "
"""How pydantic begins what it says of a value out of bounds or of another type."""


def checked(kind: type[Wanted], spec: SpecLike) -> Wanted:
    """A spec of a kind from values; raises CoreError that names the field, the value and the legal range."""
    if isinstance(spec, Spec):
        if not isinstance(spec, kind):
            raise CoreError(
                f"This is a spec to {spec.operation}, not to {kind.operation}.", given=spec.operation, legal=kind.operation
            )
        return spec
    try:
        return kind.model_validate(dict(spec or {}))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or kind.operation
        said, legal = first["msg"], _legal(kind, first["loc"])
        if first["type"] == "value_error":
            message = said.removeprefix("Value error, ")
        elif first["type"] in ("model_type", "dict_type"):
            message, legal = f"{first.get('input')!r} cannot be", 'an object of named values, as {"name": value}'
        elif said.startswith(_SHOULD):
            message, legal = f"{first.get('input')!r} cannot be", legal or said.removeprefix(_SHOULD)
        else:
            message = said
        raise CoreError(f"{where}: {message}", code="bad_spec", given=first.get("input"), legal=legal) from error


def changed(spec: Wanted, **values: Any) -> Wanted:
    """The spec with some values changed, checked anew; raises as `checked` does."""
    return checked(type(spec), {**spec.model_dump(), **values})


def fields_of(spec: Mapping[str, Any]) -> dict[str, Any]:
    """A model's recorded spec without its operation."""
    return {key: value for key, value in spec.items() if key != "operation"}


def weights_path(store: Store, row: ModelRow, *, whole: bool = False) -> Path:
    """A model's weights file; raises CoreError where it was cleaned away, and with `whole` StoreError where its bytes were altered."""
    if row.blob_digest is None or not store.blobs.exists(row.blob_digest):
        raise CoreError(
            f"The weights of {row.name} are not in the store any more.",
            code="no_weights",
            given=row.id,
            next="Its figures and pictures still stand; `reproduce` makes such a model again from its ancestors.",
        )
    return store.blobs.whole(row.blob_digest) if whole else store.blobs.path(row.blob_digest)


def _legal(kind: type[Spec], place: tuple[Any, ...]) -> Any:
    """The bounds or choices of a field, from its schema."""
    if not place:
        return None
    schema = kind.model_json_schema()["properties"].get(str(place[0]))
    if schema is None:
        return sorted(kind.model_fields)
    parts = [schema, *schema.get("anyOf", [])]
    for part in parts:
        if "enum" in part:
            return part["enum"]
        low = part.get("minimum", part.get("exclusiveMinimum"))
        high = part.get("maximum", part.get("exclusiveMaximum"))
        if low is not None or high is not None:
            bounds = f"{low if low is not None else '-inf'} to {high if high is not None else 'inf'}"
            open_ends = [str(part[end]) for end in ("exclusiveMinimum", "exclusiveMaximum") if end in part]
            return f"{bounds}, without {' and '.join(open_ends)} itself" if open_ends else bounds
    return None
