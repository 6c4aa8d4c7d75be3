"""Inside the models compared: two of them unit by unit, or one layer by layer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from core.compare import Comparison
from core.layers import MOST_CELLS, Activation, Layer
from core.model_manager import ModelManager
from core.specs import ActivationsSpec
from core.unit_diff import ModelDiff, SiteDiff, ranges
from pages.ui.boot import guarded, job_bar, show_error
from pages.ui.forms import spec_form
from store.jobs import ACTIVE

UNITS, LAYERS = "Two models, unit by unit", "One model, layer by layer"
STEPS = 100
"""Columns of the overview: a site's units, from the most changed on, resampled to so many."""
CHANGE_SCALE = [[0.0, "#2f6f9f"], [0.25, "#5fa9a0"], [0.5, "#e9d66b"], [0.75, "#e08a2e"], [1.0, "#b8293d"]]
ONLY_FIRST, ONLY_SECOND = "#8a8f98", "#9a7bd0"


@st.fragment
def inside_section(_manager: ModelManager, comparison: Comparison) -> None:
    """Drawn once it is asked for: it reads whole weight files."""
    st.subheader("Inside")
    names = {model.id: model.name for model in comparison.models}
    modes = [*([UNITS] if len(names) > 1 else []), LAYERS]
    mode = st.segmented_control("Show", modes, default=None, key="inside-mode", label_visibility="collapsed")
    if mode is None:
        st.caption("How far the weights of each unit moved between two models, or widths, zeros and histograms of each layer.")
        return
    with guarded():
        if mode == UNITS:
            _units(_manager, names)
        else:
            _layers(_manager, names)


def _units(manager: ModelManager, names: dict[str, str]) -> None:
    places = st.columns(2)
    refs = list(names)
    first = places[0].selectbox("First", refs, index=0, format_func=names.__getitem__, key="diff-first")
    second = places[1].selectbox("Second", refs, index=len(refs) - 1, format_func=names.__getitem__, key="diff-second")
    found = manager.unit_diff(first, second)
    both, only_first, only_second = found.counts
    st.markdown(
        f"**{both:,}** units are in both, **{only_first:,}** only in {names[first]}, **{only_second:,}** only in {names[second]}."
    )
    for note in found.notes:
        st.warning(note)
    if found.identical:
        st.caption("Every weight is the same.")
        return
    by_change = st.toggle("Most changed first", value=True, key="diff-sorted", help="Else in the order in which data flows.")
    shown = found.by_change if by_change else list(found.sites)
    st.plotly_chart(_overview(found, shown), key="diff-overview")
    st.caption(
        "A row is a site, its units from the most to the least changed. Change: distance of a unit's weights over the larger norm; 0 is "
        "none, 1 lies between a unit and nothing. Units are paired by their place in the unpruned model."
    )
    titles = {one.site: f"{one.site} · {len(one.units)} of {one.total} units · mean change {one.mean:.3f}" for one in shown}
    site = st.selectbox("Site", list(titles), format_func=titles.__getitem__, key="diff-site")
    _site(found, next(one for one in shown if one.site == site))


def _overview(found: ModelDiff, shown: list[SiteDiff]) -> go.Figure:
    """A heat map: sites by the shares of their units."""
    change, first_only, second_only, told = [], [], [], []
    for one in shown:
        total = len(one.units) + len(one.only_first) + len(one.only_second)
        place = np.arange(STEPS) * total // STEPS
        ordered = one.change[one.order]
        change.append([float(ordered[at]) if at < len(ordered) else None for at in place])
        border = len(ordered) + len(one.only_first)
        first_only.append([1.0 if len(ordered) <= at < border else None for at in place])
        second_only.append([1.0 if at >= border else None for at in place])
        gone = f"{len(one.only_first)} only in the first, {len(one.only_second)} only in the second"
        told.append([f"{one.site}<br>{len(one.units)} units in both, mean change {one.mean:.3f}<br>{gone}"] * STEPS)
    rows = [one.site for one in shown]
    columns = [(step + 0.5) * 100 / STEPS for step in range(STEPS)]
    # Of what changed little as of what changed much the differences must be seen: the scale ends at the largest change.
    top = max([0.01, *(float(one.change.max()) for one in shown if len(one.change))])
    chart = go.Figure()
    for values, colour in ((first_only, ONLY_FIRST), (second_only, ONLY_SECOND)):
        chart.add_heatmap(
            z=values, x=columns, y=rows, colorscale=[[0, colour], [1, colour]], zmin=0, zmax=1, showscale=False,
            customdata=told, hovertemplate="%{customdata}<extra></extra>", hoverongaps=False, ygap=1,
        )  # fmt: skip
    chart.add_heatmap(
        z=change, x=columns, y=rows, colorscale=CHANGE_SCALE, zmin=0, zmax=top, ygap=1, colorbar={"title": "change", "thickness": 12},
        customdata=told, hovertemplate="%{customdata}<br>here %{z:.3f}<extra></extra>", hoverongaps=False,
    )  # fmt: skip
    for name, colour in ((f"only in {found.first.name}", ONLY_FIRST), (f"only in {found.second.name}", ONLY_SECOND)):
        chart.add_scatter(x=[None], y=[None], mode="markers", marker={"size": 11, "symbol": "square", "color": colour}, name=name)
    chart.update_layout(
        height=120 + 18 * len(rows), margin={"t": 10, "b": 10, "l": 10}, xaxis_title="units of the site (%)",
        xaxis={"range": [0, 100]}, yaxis={"autorange": "reversed", "tickfont": {"size": 11}, "dtick": 1},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    return chart


def _site(found: ModelDiff, one: SiteDiff) -> None:
    """Each unit of a site: where its weights moved, how strong they are, and who is alone."""
    for row, units in ((found.first, one.only_first), (found.second, one.only_second)):
        if units:
            st.caption(f"Only in {row.name}: {ranges(units)}")
    if not len(one.units):
        st.caption("No unit of this site is in both.")
        return
    order = one.order
    stem = one.site.rpartition(".")[0] + "."
    parts = [part.removeprefix(stem).replace("[0]", " (rows)").replace("[1]", " (columns)") for part in one.parts]
    chart = go.Figure(
        go.Heatmap(
            z=one.part_change[order].T, x=[str(unit) for unit in one.units[order]], y=parts, colorscale=CHANGE_SCALE, zmin=0,
            zmax=max(0.01, float(one.part_change.max())), colorbar={"title": "change", "thickness": 12},
            hovertemplate="unit %{x}<br>%{y}<br>change %{z:.3f}<extra></extra>",
        )
    )  # fmt: skip
    chart.update_layout(
        height=130 + 26 * len(parts), margin={"t": 10, "b": 10, "l": 10}, yaxis={"autorange": "reversed"},
        xaxis={"type": "category", "title": "unit (its place in the unpruned model), the most changed first", "nticks": 24},
    )  # fmt: skip
    st.plotly_chart(chart, key="diff-units")
    table = pd.DataFrame(
        {
            "unit": one.units[order], "change": one.change[order], f"norm in {found.first.name}": one.norms[order, 0],
            f"norm in {found.second.name}": one.norms[order, 1],
        }
    )  # fmt: skip
    bar = st.column_config.ProgressColumn(min_value=0.0, max_value=max(0.01, float(one.change.max())), format="%.3f")
    st.dataframe(table, hide_index=True, height=min(300, 38 + 35 * len(table)), column_config={"change": bar})


def _layers(manager: ModelManager, names: dict[str, str]) -> None:
    refs = list(names)
    ref = st.selectbox("Model", refs, index=len(refs) - 1, format_func=names.__getitem__, key="layers-model", width=420)
    layers, active = manager.layers(ref), manager.activations(ref)
    _measure(manager, ref, active is not None)
    if active is not None:
        st.caption(f"Activations: {active.title}.")
    table = []
    for layer in layers:
        line = {
            "layer": layer.name, "outputs": _width(layer, 0), "inputs": _width(layer, 1), "zero": layer.sparsity, "RMS": layer.rms,
        }  # fmt: skip
        own = None if active is None else active.layers.get(layer.name)
        if active is not None:
            line["dead"] = None if own is None else own.dead
        line["of weights"] = list(layer.histogram)
        if active is not None:
            line["of activations"] = None if own is None else list(own.histogram)
        table.append(line)
    event = st.dataframe(
        pd.DataFrame(table), hide_index=True, height=420, on_select="rerun", selection_mode="single-row", key=f"layers-{ref}",
        column_config={
            "layer": st.column_config.Column(pinned=True),
            "zero": st.column_config.NumberColumn(format="percent"),
            "RMS": st.column_config.NumberColumn(format="%.3g"),
            "dead": st.column_config.NumberColumn(help="Channels that are zero on every image."),
            "of weights": st.column_config.BarChartColumn("weights", help="From the least to the largest; exact zeros left out."),
            "of activations": st.column_config.BarChartColumn("activations", help="What comes out of the layer over all images."),
        },
    )  # fmt: skip
    chosen = event.selection.rows  # type: ignore[attr-defined]
    layer = layers[chosen[0] if chosen else 0]
    if not chosen:
        st.caption("Click a layer to see it closer; this is the first.")
    _closer(manager, ref, layer, None if active is None else active.layers.get(layer.name))


def _width(layer: Layer, dim: int) -> str:
    before, after = layer.before[dim], layer.after[dim]
    return str(after) if before == after else f"{before} → {after}"


def _measure(manager: ModelManager, ref: str, measured: bool) -> None:
    """The job behind the activations: its form, or how far it is."""
    asked = [job for job in manager.jobs(limit=50) if job.operation == "activations" and job.parent_model_id == ref]
    if asked and asked[0].state in ACTIVE:
        _watch(manager, asked[0].id)
        return
    if asked and asked[0].state == "failed" and asked[0].error:
        show_error(asked[0].error)
    with st.expander("Measure activations again" if measured else "Measure activations", icon=":material/graphic_eq:"):
        start = manager.evaluation_for(ref)
        values = {key: start[key] for key in ("data", "image_size") if key in start}
        found = spec_form(ActivationsSpec, key="activations", values=values)
        if st.button("Measure", type="primary", key="activations-run"):
            with guarded():
                manager.measure_activations(ref, found)
                st.rerun()


@st.fragment(run_every=1.0)
def _watch(_manager: ModelManager, ref: str) -> None:
    """Progress; redraws the page at the end."""
    job = _manager.job(ref)
    if job.state not in ACTIVE:
        st.rerun(scope="app")
    job_bar(_manager, job, key="activations")


def _closer(manager: ModelManager, ref: str, layer: Layer, active: Activation | None) -> None:
    """One layer: both histograms with their axes, and where its zeros are."""
    st.markdown(f"**{layer.name}** · {' x '.join(map(str, layer.after))}")
    places = st.columns(2)
    places[0].plotly_chart(_bars(layer.edges, layer.histogram, "weight", "#4b9c68"), key="layer-weights")
    if active is not None:
        places[1].plotly_chart(
            _bars((active.least, active.largest), active.histogram, "activation", "#5b8def"), key="layer-activations"
        )
        places[1].caption(
            f"Mean {active.mean:.3g}, standard deviation {active.std:.3g}; {active.zeros:.1%} exactly zero; {active.dead} of "
            f"{active.channels} channels dead."
        )
    else:
        places[1].caption("Activations were not measured yet.")
    if layer.zeros == 0:
        st.caption("No weight of this layer is exactly zero.")
        return
    chart = go.Figure(
        go.Heatmap(
            z=manager.sparsity_map(ref, layer.name), colorscale=[[0, "#2f6f9f"], [1, "#f2efe6"]], zmin=0, zmax=1,
            colorbar={"title": "zero", "tickformat": ".0%", "thickness": 12},
            hovertemplate="output %{y}, input %{x}<br>%{z:.0%} zero<extra></extra>",
        )
    )  # fmt: skip
    chart.update_layout(
        height=380, margin={"t": 10, "b": 10, "l": 10}, yaxis={"autorange": "reversed", "title": "output channels"},
        xaxis_title="input channels",
    )  # fmt: skip
    st.plotly_chart(chart, key="layer-zeros")
    st.caption(
        f"Sparsity map: {layer.zeros:,} of {layer.num_weights:,} weights are zero. Large layers are drawn in {MOST_CELLS} steps a side."
    )


def _bars(edges: tuple[float, float], counts: tuple[int, ...], title: str, colour: str) -> go.Figure:
    width = (edges[1] - edges[0]) / len(counts) or 1.0
    middles = [edges[0] + (step + 0.5) * width for step in range(len(counts))]
    chart = go.Figure(go.Bar(x=middles, y=counts, width=width, marker_color=colour))
    chart.update_layout(
        height=260, margin={"t": 10, "b": 10, "l": 10}, xaxis_title=title, yaxis_title="count", yaxis_type="log", bargap=0
    )
    return chart
