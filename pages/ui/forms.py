"""Forms from specs: a widget for each field by its type and bounds, in groups; fields that do not apply are not there."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

import streamlit as st

from core.specs import DataSpec, Spec
from dcaecore.sample_data import SAMPLE_SETS


def spec_form(
    spec: type[Spec],
    *,
    key: str,
    values: dict[str, Any] | None = None,
    per_row: int = 3,
    choices: dict[str, tuple[str, ...]] | None = None,
    skip: tuple[str, ...] = (),
) -> dict[str, Any]:
    """Draws the fields of a spec and returns what they say (not yet checked).

    `values` are the start values, `choices` what may be picked for fields that hold several names; fields of `skip` keep their start.
    """
    start = {**spec().model_dump(), **(values or {})}
    advanced = any(_is_advanced(spec, name) for name in spec.model_fields) and st.toggle(
        "Advanced settings", key=f"{key}-advanced", help="Shows every field; all are used, shown or not."
    )
    groups: dict[str, list[str]] = {}
    for name, field in spec.model_fields.items():
        hints = field.json_schema_extra
        assert isinstance(hints, dict)
        groups.setdefault(str(hints["group"]), []).append(name)
    found = dict(start)
    for group, names in groups.items():
        columns: list[Any] = []
        box, place = None, 0
        for name in (name for name in names if name not in skip):
            # One after the other: whether a field applies may hang on one just drawn, of its own group.
            if not spec.applies(name, found):
                found[name] = spec.model_fields[name].default
                continue
            if not advanced and _is_advanced(spec, name):
                continue
            if box is None:
                box = st.container(border=True)
                box.markdown(f"**{group}**")
            with box:
                if spec.model_fields[name].annotation is DataSpec:
                    found[name] = data_form(start[name], f"{key}-{name}", per_row=per_row)
                    continue
                if spec.model_fields[name].annotation == tuple[DataSpec, ...]:
                    found[name] = _data_forms(start[name], f"{key}-{name}", spec.model_fields[name].description, per_row=per_row)
                    continue
                columns = columns or st.columns(per_row)
            with columns[place % per_row]:
                if choices and name in choices:
                    picked = [choice for choice in start[name] if choice in choices[name]]
                    text = spec.model_fields[name].description
                    found[name] = st.multiselect(
                        name.replace("_", " "), choices[name], default=picked, help=text, key=f"{key}-{name}"
                    )
                else:
                    found[name] = _widget(spec, name, start[name], f"{key}-{name}")
            place += 1
    return found


def _is_advanced(spec: type[Spec], name: str) -> bool:
    hints = spec.model_fields[name].json_schema_extra
    return isinstance(hints, dict) and bool(hints.get("advanced"))


def _bounds(field: Any) -> tuple[Any, Any]:
    low = high = None
    for rule in field.metadata:
        low = getattr(rule, "ge", getattr(rule, "gt", low))
        high = getattr(rule, "le", getattr(rule, "lt", high))
    return low, high


def _widget(spec: type[Spec], name: str, value: Any, key: str) -> Any:
    field = spec.model_fields[name]
    hints = field.json_schema_extra
    assert isinstance(hints, dict)
    unit = f" ({hints['unit']})" if "unit" in hints else ""
    label, text = name.replace("_", " ") + unit, field.description
    kind = field.annotation
    options = [arg for arg in get_args(kind) if arg is not type(None)]
    if get_origin(kind) is Literal:
        choices = list(get_args(kind))
        return st.selectbox(label, choices, index=choices.index(value), help=text, key=key)
    if get_origin(kind) is tuple and get_origin(get_args(kind)[0]) is Literal:
        return st.multiselect(label, list(get_args(get_args(kind)[0])), default=list(value), help=text, key=key)
    if kind is bool:
        return st.checkbox(label, value, help=text, key=key)
    low, high = _bounds(field)
    plain = options[0] if len(options) == 1 else kind
    if hints.get("step") and low is not None and high is not None and value is not None:
        return st.slider(label, float(low), float(high), float(value), float(str(hints["step"])), help=text, key=key)
    if plain is int:
        return st.number_input(
            label, min_value=low, max_value=high, value=value, step=1, placeholder="not set", help=text, key=key
        )
    if plain is float:
        start = None if value is None else float(value)
        return st.number_input(
            label, min_value=None if low is None else float(low), max_value=None if high is None else float(high),
            value=start, format="%.6g", step=None if start is None else max(abs(start) / 10, 1e-7),
            placeholder="not set", help=text, key=key,
        )  # fmt: skip
    if kind is str or plain is str:
        return st.text_input(label, value or "", help=text, key=key) or None
    written = st.text_input(label, json.dumps(value), help=f"{text} (JSON)", key=key)
    try:
        return json.loads(written)
    except ValueError:
        st.caption(f":red[{label}: not valid JSON]")
        return written  # which the spec refuses, by its name


def _data_forms(values: Sequence[dict[str, Any]], key: str, text: str | None, *, per_row: int) -> tuple[dict[str, Any], ...]:
    """As many further data sets as asked for."""
    count = st.number_input("further data sets", 0, 15, len(values), help=text, key=f"{key}-count", width=200)
    starts = [*values, *[DataSpec().model_dump()] * 15]
    return tuple(data_form(starts[place], f"{key}-{place}", per_row=per_row) for place in range(int(count)))


def data_form(value: dict[str, Any], key: str, *, per_row: int = 3) -> dict[str, Any]:
    """Where images come from, over the full width."""
    kinds = ["sample", "hub", "parquet", "folder"]
    titles = {"sample": "Sample set", "hub": "Hugging Face data set", "parquet": "Parquet files", "folder": "Folder of images"}
    columns = st.columns(per_row)
    kind = columns[0].selectbox(
        "images from", kinds, index=kinds.index(value["kind"]), format_func=titles.__getitem__, key=f"{key}-kind"
    )
    if kind == "sample":
        sets = list(SAMPLE_SETS)
        index = sets.index(value["location"]) if value["location"] in sets else 0
        location = columns[1].selectbox("sample set", sets, index=index, key=f"{key}-sample")
        same = value["kind"] == kind and value["location"] == location
        kept = {"deny_rows": value["deny_rows"], "split_seed": value["split_seed"]} if same else {}
        return {**DataSpec().model_dump(), **kept, "kind": kind, "location": location}
    suggested = {"hub": "Tahahah/PacmanDataset_3", "parquet": "", "folder": ""}[kind]
    start = value["location"] if value["kind"] == kind else suggested
    other = value["validation_location"] if value["kind"] == kind else "Tahahah/PacmanDataset_2" if kind == "hub" else None
    label = {"hub": "id", "parquet": "path (* allowed)", "folder": "path"}[kind]
    location = columns[1].text_input(label, start, key=f"{key}-{kind}-location") or "-"
    other = columns[2 % per_row].text_input(
        "validation set", other or "", key=f"{key}-{kind}-other", help="Another of the same kind; empty: a part of the first."
    )
    column = value["column"]
    if kind != "folder":
        column = columns[3 % per_row].text_input("image column", column, key=f"{key}-column")
    skip = columns[4 % per_row].checkbox(
        "skip broken images", value["skip_broken"], key=f"{key}-skip", help="They are counted and named."
    )
    return {
        **value,
        "kind": kind,
        "location": location,
        "column": column,
        "validation_location": other or None,
        "skip_broken": skip,
    }
