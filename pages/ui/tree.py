"""The family tree: a tidy layout in O(n), drawn by native ECharts (scatter + lines), clickable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from store import ModelRow

COLOURS = {"baseline": "#5470c6", "pruned": "#ee6666", "retrained": "#4b9c68"}


def layout(models: Sequence[ModelRow]) -> dict[str, tuple[float, int]]:
    """(x, depth) of each model: leaves side by side, a parent over the middle of its children."""
    known = {model.id for model in models}
    children: dict[str, list[str]] = {}
    roots = []
    for model in reversed(models):
        if model.parent_id in known and model.parent_id is not None:
            children.setdefault(model.parent_id, []).append(model.id)
        else:
            roots.append(model.id)
    place: dict[str, tuple[float, int]] = {}
    next_leaf = 0.0
    stack: list[tuple[str, int, bool]] = [(root, 0, False) for root in reversed(roots)]
    while stack:
        ref, depth, seen = stack.pop()
        own = children.get(ref, [])
        if not own:
            place[ref] = (next_leaf, depth)
            next_leaf += 1.0
        elif seen:
            place[ref] = ((place[own[0]][0] + place[own[-1]][0]) / 2, depth)
        else:
            stack.append((ref, depth, True))
            stack += [(child, depth + 1, False) for child in reversed(own)]
    return place


def tree_chart(models: Sequence[ModelRow], *, chosen: str | None, size_key: str = "parameters") -> dict[str, Any]:
    """ECharts options: colour = operation, size = a figure, the chosen model ringed."""
    place = layout(models)
    largest = max((m.facts.get(size_key, 0.0) for m in models), default=1.0) or 1.0
    lines = [
        {"coords": [list(place[m.parent_id]), list(place[m.id])]}
        for m in models
        if m.parent_id is not None and m.parent_id in place
    ]
    series: list[dict[str, Any]] = [
        {
            "type": "lines",
            "coordinateSystem": "cartesian2d",
            "data": lines,
            "silent": True,
            "z": 1,
            "lineStyle": {"color": "#8aa394", "width": 1.5, "opacity": 0.8},
            "animation": False,
        }  # fmt: skip
    ]
    few = len(models) <= 40
    for kind, colour in COLOURS.items():
        data = [
            {
                "value": list(place[m.id]),
                "name": m.name,
                "id": m.id,
                "symbolSize": 14 + 22 * (m.facts.get(size_key, 0.0) / largest) ** 0.5,
                "itemStyle": {"borderColor": "#f5a623", "borderWidth": 4} if m.id == chosen else {},
                "label": {"show": few, "formatter": f"{m.name}\n{m.facts['parameters'] / 1e6:.2f} M"},
            }
            for m in models
            if m.kind == kind
        ]
        series.append(
            {
                "type": "scatter",
                "name": kind,
                "selectedMode": "single",
                "data": data,
                "color": colour,
                "z": 2,
                "animation": False,
                "label": {"position": "bottom", "fontSize": 10, "lineHeight": 13, "distance": 6},
            }  # fmt: skip
        )
    depth = max((d for _, d in place.values()), default=0)
    width = max((x for x, _ in place.values()), default=0.0)
    return {
        "legend": {"data": list(COLOURS), "top": 0},
        "tooltip": {"formatter": "{b}"},
        "grid": {"left": 30, "right": 30, "top": 40, "bottom": 50},
        "xAxis": {"type": "value", "show": False, "min": -0.8, "max": width + 0.8},
        "yAxis": {"type": "value", "show": False, "inverse": True, "min": -0.4, "max": depth + 0.6},
        "series": series,
    }


def clicked_model(event: Any, models: Sequence[ModelRow]) -> str | None:
    """The model of a chart's selection event, or None."""
    kinds = list(COLOURS)
    for group in event["selection"]["selected"]:
        # Series 0 holds the lines; then one series for each kind.
        own = [m.id for m in models if m.kind == kinds[group["series_index"] - 1]]
        for index in group["data_indices"]:
            if index < len(own):
                return own[index]
    return None
