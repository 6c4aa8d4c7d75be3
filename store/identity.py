"""What a model is called and why: canonical bytes, content-addressed ids, time-sortable job ids.

A model's id hashes sorted compact JSON of {spec_version, kind, family, spec, parents with roles, weights digest,
data-set identity}. Names, notes, devices and times stay out. The bytes are stored as they were hashed, so that a field
added to this recipe later breaks no `verify`.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from store.errors import StoreError

IDENTITY_VERSION = 1
ID_DIGITS = 16
MIN_PREFIX_DIGITS = 6


def _check(value: Any, where: str) -> None:
    """Refuse what JSON would silently turn into something else (non-string keys, NaN, foreign objects)."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise StoreError(f"Keys must be text in {where}.", given=repr(key), legal="text keys")
            _check(inner, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            _check(inner, f"{where}[{number}]")
    elif isinstance(value, float):
        if value != value or value in (float("inf"), float("-inf")):
            raise StoreError(f"{where} is {value}, which has no JSON form.", given=str(value), legal="finite numbers")
    elif value is not None and not isinstance(value, str | int | bool):
        raise StoreError(
            f"{where} holds a {type(value).__name__}.",
            given=type(value).__name__,
            legal="text, numbers, true/false, null, lists and mappings",
        )


def canonical_bytes(value: Mapping[str, Any]) -> bytes:
    """Sorted compact UTF-8 JSON; equal mappings give equal bytes whatever their order. Raises StoreError(bad_value)."""
    _check(value, "value")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode(
        "utf-8", "surrogatepass"
    )


def digest_of(value: Mapping[str, Any]) -> str:
    """sha256 hex of the canonical bytes."""
    return hashlib.sha256(canonical_bytes(value)).hexdigest()


@dataclass(frozen=True)
class Identity:
    """A model's id (`m_` + 16 hex digits), the full sha256 and the bytes that were hashed."""

    id: str
    digest: str
    canonical: bytes


def model_identity(
    kind: str,
    family: str,
    spec: Mapping[str, Any],
    parents: Sequence[tuple[str, str]],
    weights_digest: str,
    dataset_identity: Mapping[str, Any] | None,
    *,
    spec_version: int = IDENTITY_VERSION,
) -> Identity:
    """The identity of a model; `parents` are (role, id), and their order does not matter."""
    canonical = canonical_bytes(
        {
            "spec_version": spec_version,
            "kind": kind,
            "family": family,
            "spec": dict(spec),
            "parents": [list(pair) for pair in sorted((str(role), str(parent)) for role, parent in parents)],
            "weights": weights_digest,
            "dataset": None if dataset_identity is None else dict(dataset_identity),
        }
    )
    return identity_of(canonical)


def identity_of(canonical: bytes) -> Identity:
    """The identity that stored bytes stand for: what `verify` re-derives."""
    digest = hashlib.sha256(canonical).hexdigest()
    return Identity(id=f"m_{digest[:ID_DIGITS]}", digest=digest, canonical=canonical)


def now() -> str:
    """The time as stored: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


_clock_lock = threading.Lock()
_last_us = 0


def new_job_id() -> str:
    """`j_` + 14 hex digits of microseconds (rising within a process) + 6 random ones: sorting ids sorts by time."""
    global _last_us
    with _clock_lock:
        _last_us = max(_last_us + 1, time.time_ns() // 1000)
        return f"j_{_last_us:014x}{secrets.token_hex(3)}"
