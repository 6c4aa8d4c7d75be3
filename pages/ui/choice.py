"""What helps to choose among the models compared: is a difference real, who is on the Pareto front, who ranks first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import streamlit as st

from core.choice import Front, Ranking
from core.compare import METRICS, Comparison
from core.cost import under
from core.model_manager import ModelManager
from core.quality import difference_text, interval_text, shown_metrics
from pages.ui.chain import PALETTE
from pages.ui.figures import column_widths

START_WEIGHTS = {"psnr_db": 1.0, "foreground_psnr_db": 1.0, "decode_ms": 1.0, "parameters": 0.5}
"""Where the sliders stand at first; every other figure is at 0."""
MOST_ON_RADAR = 6
STAR = "path://M12 1l3.2 7.6 8.2.7-6.2 5.4 1.9 8L12 18.4 4.9 22.7l1.9-8L.6 9.3l8.2-.7z"


def quality_section(manager: ModelManager, comparison: Comparison) -> None:
    """Means with intervals, and differences to a reference paired by image."""
    refs, names = [m.id for m in comparison.models], {m.id: m.name for m in comparison.models}
    first = manager.quality(comparison)
    if not first.intervals:
        return
    st.subheader("Is the difference real?")
    reference = first.reference
    if len(refs) > 1:
        reference = st.selectbox(
            "Against", refs, index=refs.index(first.reference), format_func=lambda ref: names[ref], width=420
        )
    found = first if reference == first.reference else manager.quality(comparison, reference)
    titles = comparison.titles
    table: list[dict[str, str]] = []
    for key in shown_metrics(found, refs):
        metric = METRICS[key]
        own = {ref: found.intervals.get(ref, {}).get(key) for ref in refs}
        away = {ref: found.differences.get(ref, {}).get(key) for ref in refs}
        means = {ref: "–" if (one := own[ref]) is None else interval_text(metric, one) for ref in refs}
        table.append({"": metric.title, **{titles[ref]: text for ref, text in means.items()}})
        if any(one is not None for one in away.values()):
            told = {ref: "" if (one := away[ref]) is None else difference_text(metric, one) for ref in refs}
            table.append({"": "   difference", **{titles[ref]: text for ref, text in told.items()}})
    st.dataframe(pd.DataFrame(table), hide_index=True, height="content", column_config=column_widths(table))
    st.caption(
        "Mean [95 % bootstrap interval]; below it the difference, paired by image, with its interval, Cohen's d and p (sign-flip test, "
        "Holm-corrected over the models). Frames of one episode are alike, so over new episodes the intervals would be wider."
    )
    off = manager.figures_off()
    if off:
        st.caption(f"Off here: {', '.join(off)}.", help="\n\n".join(off.values()))
    for note in found.notes:
        st.warning(note)


def front_section(manager: ModelManager, comparison: Comparison) -> None:
    """Any figure against any other, with the Pareto front marked."""
    st.subheader("Quality against cost")
    values = {key: [comparison.figures[m.id][key].value for m in comparison.models] for key in METRICS}
    known = [
        key for key, found in values.items() if METRICS[key].higher_is_better is not None and any(v is not None for v in found)
    ]
    if not any(METRICS[key].source == "scores" for key in known):
        st.caption("No model shown has quality figures yet: *Validate*, below, measures them.")
        return
    a, b = st.columns(2)
    x_key, y_key = (
        place.selectbox(
            label, known, index=known.index(wanted) if wanted in known else at,
            format_func=lambda k: METRICS[k].title, help="Any figure; which direction is better is known.", key=f"front-{label}",
        )
        for place, label, wanted, at in ((a, "Across", "decode_ms", 0), (b, "Up", "psnr_db", len(known) - 1))
    )  # fmt: skip
    front = manager.pareto(comparison, x_key, y_key)
    names = {m.id: m.name for m in comparison.models}
    x, y = (
        {m.id: None if (v := comparison.figures[m.id][key].value) is None else v * METRICS[key].scale for m in comparison.models}
        for key in (x_key, y_key)
    )
    titles = [
        f"{METRICS[key].title} ({METRICS[key].unit})" if METRICS[key].unit else METRICS[key].title for key in (x_key, y_key)
    ]
    st.echarts_chart(_front_chart(comparison, front, x, y, titles), height=380, key="front-chart")
    said = f"★ On the Pareto front: {', '.join(names[ref] for ref in front.best)}." if front.best else ""
    if front.left_out:
        said += f" Not drawn, as one of the two figures is missing: {', '.join(names[ref] for ref in front.left_out)}."
    st.caption(f"{said} {_under(comparison, (x_key, y_key))}")


def _under(comparison: Comparison, keys: Sequence[str]) -> str:
    told = under(comparison, keys)
    return f"{told} Nothing else is drawn or ranked beside it." if told else ""


def _front_chart(
    comparison: Comparison, front: Front, x: Mapping[str, float | None], y: Mapping[str, float | None], titles: Sequence[str]
) -> dict[str, Any]:
    """ECharts options; plotly's program is four times as large, and would be half of the time in which the page opens."""
    names = comparison.titles
    series: list[dict[str, Any]] = []
    if len(front.best) > 1:
        series.append({
            "type": "line", "data": [[x[ref], y[ref]] for ref in front.best], "symbol": "none", "silent": True, "animation": False,
            "lineStyle": {"type": "dotted", "color": "gray"}, "tooltip": {"show": False},
        })  # fmt: skip
    for number, (ref, name) in enumerate(names.items()):
        if ref in front.left_out:
            continue
        best = ref in front.best
        said = "on the Pareto front" if best else f"beaten in both by {names.get(front.beaten_by[ref], '')}"
        series.append({
            "type": "scatter", "name": name, "data": [[x[ref], y[ref]]], "animation": False,
            "symbol": STAR if best else "circle", "symbolSize": 18 if best else 11,
            "itemStyle": {"color": PALETTE[number % len(PALETTE)], "opacity": 1.0 if best else 0.6},
            "label": {"show": True, "position": "top", "formatter": "{a}", "color": "inherit"},
            "labelLayout": {"moveOverlap": "shiftY"},
            "tooltip": {"formatter": f"{{a}}: {escape(said)}<br/>{{c}}"},
        })  # fmt: skip
    axis = {"type": "value", "scale": True, "nameLocation": "middle"}
    return {
        "grid": {"left": 70, "right": 40, "top": 30, "bottom": 50},
        "tooltip": {"trigger": "item"},
        "xAxis": {**axis, "name": titles[0], "nameGap": 28, "boundaryGap": ["10%", "10%"]},
        "yAxis": {**axis, "name": titles[1], "nameGap": 48, "boundaryGap": ["5%", "12%"]},
        "series": series,
    }


def ranking_section(manager: ModelManager, comparison: Comparison) -> None:
    """Weights on sliders, the models in their order, and a radar where it is asked for."""
    if len(comparison.models) < 2:
        return
    st.subheader("Ranking")
    values = {key: [comparison.figures[m.id][key].value for m in comparison.models] for key in METRICS}
    known = [
        key
        for key, found in values.items()
        if METRICS[key].higher_is_better is not None and sum(value is not None for value in found) > 1
    ]
    start = [key for key in START_WEIGHTS if key in known] or known[:2]
    shown = st.multiselect("What counts", known, default=start, format_func=lambda key: METRICS[key].title)
    weights = {}
    for number, key in enumerate(shown):
        if number % 4 == 0:
            places = st.columns(4)
        direction = "more is better" if METRICS[key].higher_is_better else "less is better"
        weights[key] = places[number % 4].slider(
            METRICS[key].title, 0.0, 1.0, START_WEIGHTS.get(key, 0.5), 0.05, help=f"Weight; {direction}.", key=f"weight-{key}"
        )
    if not any(weights.values()):
        st.caption("Give at least one figure a weight.")
        return
    found = manager.rank(comparison, weights)
    names = {m.id: m.name for m in comparison.models}
    used = [key for key, weight in weights.items() if weight > 0]
    table = [
        {"": one.place, "model": names[one.id], "score": one.score, **{METRICS[key].title: one.parts[key] for key in used}}
        for one in found.ranked
    ]
    bars = {
        title: st.column_config.ProgressColumn(min_value=0.0, max_value=1.0, format="%.2f")
        for title in ("score", *(METRICS[key].title for key in used))
    }
    st.dataframe(pd.DataFrame(table), hide_index=True, height="content", column_config=bars)
    st.caption(
        "Each figure from 0, the worst of those ranked, to 1, the best; the score is their weighted mean. "
        + _under(comparison, used)
    )
    for ref, lacking in found.left_out.items():
        st.caption(
            f"Not ranked: {names[ref]} has no {', '.join(METRICS[key].title for key in lacking)} under this protocol and run."
        )
    if len(used) > 2 and found.ranked and st.toggle("Radar", help="The same normalised figures as a shape; areas mean nothing."):
        _radar(found, used, names)


def _radar(found: Ranking, used: list[str], names: dict[str, str]) -> None:
    chart = go.Figure()
    axes = [METRICS[key].title for key in used]
    for number, one in enumerate(found.ranked[:MOST_ON_RADAR]):
        parts = [one.parts[key] for key in used]
        chart.add_scatterpolar(
            r=[*parts, parts[0]], theta=[*axes, axes[0]], name=names[one.id], line={"color": PALETTE[number % len(PALETTE)]}
        )
    chart.update_layout(height=420, margin={"t": 40, "b": 40}, polar={"radialaxis": {"range": [0, 1], "showticklabels": False}})
    st.plotly_chart(chart)
