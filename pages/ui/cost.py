"""What the models compared cost: the benchmark run shown, its table, throughput over sizes, and a run of one's own."""

from __future__ import annotations

from typing import Any

import pandas as pd
import streamlit as st

from core.compare import Comparison
from core.cost import PARTS, SweepPoint, conditions_text, cost_lines, sweep_points
from core.model_manager import ModelManager
from core.specs import BenchmarkSpec
from pages.ui.boot import guarded
from pages.ui.chain import PALETTE
from pages.ui.figures import column_widths
from pages.ui.forms import spec_form

NEWEST = "the newest run with most of the models"


def chosen_run(manager: ModelManager, refs: list[str]) -> int | None:
    """The benchmark run that costs are of: the newest of those with most of the models, or one of the others. It stands in the URL."""
    runs = manager.benchmark_runs(refs)
    if len(runs) < 2:
        return None
    titles = {"": NEWEST, **{str(number): title for number, title in runs.items()}}
    asked = st.query_params.get("run", "")
    chosen = st.selectbox(
        "Costs are of", list(titles), index=list(titles).index(asked) if asked in titles else 0, format_func=titles.__getitem__,
        help="Costs, front and ranking of this page are of one benchmark run: figures of two devices, sizes or runs never mix.",
    )  # fmt: skip
    if not chosen:
        st.query_params.pop("run", None)
        return None
    st.query_params["run"] = chosen
    return int(chosen)


def cost_section(manager: ModelManager, comparison: Comparison) -> None:
    """The table with the tail of each latency, and throughput over sizes where it was measured."""
    st.subheader("Cost")
    lines = cost_lines(comparison)
    titles = comparison.titles
    table = [{"": line.title, **{titles[ref]: text for ref, text in line.cells.items()}} for line in lines if not line.reason]
    st.dataframe(pd.DataFrame(table), hide_index=True, height="content", column_config=column_widths(table))
    if comparison.measurement is None:
        st.caption("Not benchmarked yet: *Benchmark them together*, above, measures latency, memory and start-up.")
    else:
        st.caption(conditions_text(comparison.measurement))
        st.caption("  \n".join(f"{line.title}: {line.reason}." for line in lines if line.reason))
    points = sweep_points(comparison)
    if points:
        _sweep(comparison)
    title = "Benchmark with other settings, or over batch and image sizes"
    with st.expander(title, icon=":material/speed:", on_change="rerun", key="benchmark-open") as box:
        if not box.open:
            return
        start = {"image_size": manager.evaluation_for(comparison.models[-1].id)["image_size"], "batch_sizes": [1, 2, 4, 8]}
        found = spec_form(BenchmarkSpec, key="benchmark", values=start, skip=("models",))
        if st.button("Benchmark so", type="primary", key="benchmark-run"):
            with guarded():
                manager.benchmark_models([model.id for model in comparison.models], found)
                st.toast("The benchmark is queued; figures appear here when it is done.")
                st.rerun()


def _sweep(comparison: Comparison) -> None:
    """Images a second against batch or image size, a line a model."""
    places = st.columns([3, 2, 2])
    part = places[0].segmented_control(
        "Of", list(PARTS), default="decode", required=True, format_func=PARTS.__getitem__, key="sweep-part"
    )
    points = sweep_points(comparison, part or "decode")
    sizes, batches = sorted({p.image_size for p in points}), sorted({p.batch_size for p in points})
    over = "batch size" if len(batches) > 1 else "image size"
    if len(sizes) > 1 and len(batches) > 1:
        over = places[1].segmented_control("Over", ["batch size", "image size"], default=over, required=True, key="sweep-over")
    along_batches = over == "batch size"
    others = sizes if along_batches else batches
    kept = others[-1]
    if len(others) > 1:
        unit = "{} px" if along_batches else "batch {}"
        kept = places[2].select_slider("At", others, value=others[0], format_func=unit.format, key="sweep-at")
    shown = [p for p in points if (p.image_size if along_batches else p.batch_size) == kept]
    st.echarts_chart(_chart(comparison, shown, along_batches), height=300, key="sweep-chart")
    at = f"{kept} px" if along_batches else f"batch {kept}"
    dtype, device = (comparison.measurement or {}).get("dtype", ""), (comparison.measurement or {}).get("device", "")
    st.caption(f"{PARTS[part or 'decode']} at {at}, {dtype}, {device.replace('cpu', 'CPU')}, medians. More is better.")
    names = {model.id: model.name for model in comparison.models}
    for p in shown:
        if p.images_per_s is None:
            st.caption(f"{names[p.model_id]}, {p.image_size} px, batch {p.batch_size}: not measured, {p.why}.")


def _chart(comparison: Comparison, points: list[SweepPoint], along_batches: bool) -> dict[str, Any]:
    """ECharts options: a line a model, with a gap where a size was not measured."""
    sizes = sorted({p.batch_size if along_batches else p.image_size for p in points})
    found = {(p.model_id, p.batch_size if along_batches else p.image_size): p.images_per_s for p in points}
    series = [
        {
            "type": "line", "name": name, "animation": False, "symbolSize": 8,
            "data": [None if (value := found.get((ref, size))) is None else round(value, 2) for size in sizes],
        }
        for ref, name in comparison.titles.items()
    ]  # fmt: skip
    return {
        "color": PALETTE,
        "legend": {"top": 0},
        "tooltip": {"trigger": "axis"},
        "grid": {"left": 60, "right": 20, "top": 36, "bottom": 44},
        "xAxis": {
            "type": "category", "data": [str(size) for size in sizes], "nameLocation": "middle", "nameGap": 28,
            "name": "batch size" if along_batches else "image size (px)",
        },
        "yAxis": {"type": "value", "name": "images a second", "min": 0},
        "series": series,
    }  # fmt: skip
