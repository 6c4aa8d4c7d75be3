"""Identity is content: what must not matter does not, what must matter does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from store import StoreError, canonical_bytes, model_identity
from store.identity import identity_of, new_job_id

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
mappings = st.dictionaries(st.text(), json_values, max_size=5)


def reordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: reordered(value[key]) for key in reversed(list(value))}
    if isinstance(value, list):
        return tuple(reordered(inner) for inner in value)
    return value


@given(mappings)
def test_canonical_bytes_ignore_order_and_survive_a_round_trip(value: dict[str, Any]) -> None:
    stored = canonical_bytes(value)
    assert canonical_bytes(reordered(value)) == stored
    assert canonical_bytes(json.loads(stored)) == stored


@given(mappings, mappings)
def test_different_specs_are_different_models(one: dict[str, Any], other: dict[str, Any]) -> None:
    first, second = (model_identity("pruned", "dcae", spec, [], "w", None) for spec in (one, other))
    assert (first.id == second.id) == (canonical_bytes(one) == canonical_bytes(other))


@given(mappings, st.lists(st.sampled_from(["m_1", "m_2", "m_3"]), unique=True))
def test_identity_is_derived_from_its_bytes_and_ignores_the_order_of_parents(spec: dict[str, Any], parents: list[str]) -> None:
    pairs = [("parent", parent) for parent in parents]
    made = model_identity("pruned", "dcae", spec, pairs, "w", {"source": "x"})
    assert model_identity("pruned", "dcae", reordered(spec), pairs[::-1], "w", {"source": "x"}) == made
    assert identity_of(made.canonical) == made
    assert made.id == "m_" + made.digest[:16]


def test_identity_is_golden() -> None:
    """Frozen: ids in existing stores must be derived the same way by every later version."""
    made = model_identity("pruned", "dcae", {"rate": 0.5}, [("parent", "m_0")], "ab", {"rows": "cd"})
    assert made.canonical == (
        b'{"dataset":{"rows":"cd"},"family":"dcae","kind":"pruned","parents":[["parent","m_0"]],'
        b'"spec":{"rate":0.5},"spec_version":1,"weights":"ab"}'
    )
    assert made.id == "m_5c6780ad06d7e164"


@pytest.mark.parametrize("change", [{"kind": "x"}, {"family": "x"}, {"weights_digest": "x"}, {"dataset_identity": {"a": 1}}])
def test_each_part_counts(change: dict[str, Any]) -> None:
    parts: dict[str, Any] = {
        "kind": "pruned",
        "family": "dcae",
        "spec": {},
        "parents": [],
        "weights_digest": "w",
        "dataset_identity": None,
    }
    assert model_identity(**parts).id != model_identity(**{**parts, **change}).id


@pytest.mark.parametrize("value", [{"a": float("nan")}, {"a": [float("inf")]}, {1: 2}, {"a": {2: 3}}, {"a": object()}])
def test_values_without_a_json_form_are_refused(value: dict[Any, Any]) -> None:
    with pytest.raises(StoreError) as caught:
        canonical_bytes(value)
    assert caught.value.legal


def test_job_ids_sort_by_time() -> None:
    ids = [new_job_id() for _ in range(500)]
    assert sorted(ids) == ids
    assert len(set(ids)) == 500
