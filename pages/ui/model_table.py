"""Every model of the store in one table: figures as numbers, so that a click on a column sorts by it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import streamlit as st

from core.compare import MAIN_METRICS
from core.forest import Forest
from core.model_manager import ModelManager
from store.forest import Leaf

EXAMPLE = "Words, or psnr_db > 30 and decode_ms < 5, tag = small, kind = pruned, method = structured"
CHOSEN, ALL = "chosen models", "all models"
MOST_COMPARED = 40
"""More columns than that nobody reads; pages and reports take as long as they have models."""


def models_table(forest: Forest, shown: Sequence[Leaf], *, mode: Literal["single-row", "multi-row"], key: str) -> list[Leaf]:
    """Draws the models and returns those that are selected; `mode` is `single-row` or `multi-row`."""
    figures = {key: [forest.figures[leaf.id].get(key) for leaf in shown] for key in MAIN_METRICS}
    known = {key: values for key, values in figures.items() if any(value is not None for value in values)}
    columns: dict[str, list[object]] = {
        "name": [leaf.name for leaf in shown],
        "kind": [leaf.kind for leaf in shown],
        **{key: [None if value is None else value * MAIN_METRICS[key].scale for value in known[key]] for key in known},
        "created (UTC)": [leaf.created[:19].replace("T", " ") for leaf in shown],
        "tags": [", ".join(leaf.tags) for leaf in shown],
        "id": [leaf.id for leaf in shown],
    }
    config: dict[str, Any] = {
        key: st.column_config.NumberColumn(
            f"{MAIN_METRICS[key].title} ({MAIN_METRICS[key].unit})" if MAIN_METRICS[key].unit else MAIN_METRICS[key].title,
            format=f"%.{MAIN_METRICS[key].decimals}f",
        )
        for key in known
    }
    config["name"] = st.column_config.Column(pinned=True)
    picked = st.dataframe(
        pd.DataFrame(columns), hide_index=True, on_select="rerun", selection_mode=mode, key=key, column_config=config,
        height=min(560, 40 + 35 * len(shown)),
    )  # fmt: skip
    return [shown[row] for row in picked["selection"]["rows"]]  # type: ignore[index]


def left_out_text(forest: Forest) -> str:
    """Whose figures the table leaves empty, as they do not compare with the others'."""
    told = []
    if forest.left_out:
        told.append(f"{forest.left_out} models were last evaluated on other images: their quality is not shown here.")
    if forest.cost_left_out:
        told.append(
            f"{forest.cost_left_out} models were benchmarked on another device or at other sizes only: their cost is not shown here."
        )
    return " ".join(told)


def view_control() -> bool:
    """Whether the table of all models is asked for; stands in the URL."""
    return st.segmented_control(
        "Show", [CHOSEN, ALL], default=CHOSEN, required=True, key="view", bind="query-params", label_visibility="collapsed"
    ) == ALL  # fmt: skip


def _compare(refs: list[str]) -> None:
    st.session_state["view"] = CHOSEN
    st.query_params["models"] = ",".join(refs)


def choose_section(manager: ModelManager) -> None:
    """All models, a search, and a button that compares those selected."""
    forest = manager.forest()
    text = st.text_input("Search", placeholder=EXAMPLE, key="search", bind="query-params", help=EXAMPLE) or ""
    shown = forest.find(text)
    if not shown:
        st.info("No model fits the search.")
        return
    selected = models_table(forest, shown, mode="multi-row", key="all-models")
    st.caption(f"{len(shown)} of {len(forest.models)} models. {left_out_text(forest)}".strip())
    st.caption("Costs are of several benchmark runs under alike conditions: compare models side by side for their ratios.")
    too_many = len(selected) > MOST_COMPARED
    with st.container(horizontal=True, vertical_alignment="center"):
        title = f"Compare the {len(selected)} selected" if selected else "Compare the selected"
        st.button(
            title, type="primary", disabled=not selected or too_many, on_click=_compare, args=([leaf.id for leaf in selected],)
        )
        if too_many:
            st.caption(f"{MOST_COMPARED} at most are compared side by side.")
        elif not selected:
            st.caption("Rows are selected at their left edge.")
