"""The family tree from left to right: a tidy layout in O(n), drawn by native ECharts (scatter + lines)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from store import ModelRow
from store.forest import Leaf

LARGEST_SYMBOL = 26
COLOURS = {"baseline": "#5470c6", "pruned": "#ee6666", "retrained": "#4b9c68"}


def layout(models: Sequence[ModelRow | Leaf]) -> dict[str, tuple[float, int]]:
    """(row, depth) of each model: leaves one below the other, a parent beside the middle of its children."""
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


def tree_height(models: Sequence[ModelRow]) -> int:
    """Pixels that a tree takes: a row for each leaf, within reason."""
    leaves = max((row for row, _ in layout(models).values()), default=0.0) + 1
    return int(min(900, max(200, 90 + 56 * leaves)))


def tree_chart(models: Sequence[ModelRow], *, chosen: str | None, size_key: str = "parameters") -> dict[str, Any]:
    """ECharts options: colour = operation, size = a figure, the chosen model ringed."""
    place = {ref: (float(depth), row) for ref, (row, depth) in layout(models).items()}
    largest = max((m.facts.get(size_key, 0.0) for m in models), default=1.0) or 1.0
    lines = []
    for m in models:
        if m.parent_id in place and m.parent_id is not None:
            (x, y), (to_x, to_y) = place[m.parent_id], place[m.id]
            lines.append({"coords": [[x, y], [x + 0.5, y], [x + 0.5, to_y], [to_x, to_y]]})
    series: list[dict[str, Any]] = [
        {
            "type": "lines",
            "coordinateSystem": "cartesian2d",
            "polyline": True,
            "data": lines,
            "silent": True,
            "z": 1,
            "lineStyle": {"color": "#8aa394", "width": 1.5},
            "animation": False,
        }
    ]
    few = len(models) <= 40
    leaves = max((row for _, row in place.values()), default=0.0) + 1
    shrink = min(1.0, tree_height(models) / leaves / LARGEST_SYMBOL)
    for kind, colour in COLOURS.items():
        data = [
            {
                "value": list(place[m.id]),
                "name": m.name,
                "id": m.id,
                "symbolSize": max(3.0, shrink * (10 + 16 * (m.facts.get(size_key, 0.0) / largest) ** 0.5)),
                "itemStyle": {"borderColor": "#f5a623", "borderWidth": max(2.0, 4 * shrink)} if m.id == chosen else {},
                "label": {"show": few, "formatter": f"{m.name}  {m.facts['parameters'] / 1e6:.2f} M"},
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
                "itemStyle": {"opacity": 1},
                "label": {"position": "top", "fontSize": 11, "distance": 4},
                "labelLayout": {"hideOverlap": True},
            }
        )
    depth = max((x for x, _ in place.values()), default=0.0)
    last_row = max((y for _, y in place.values()), default=0.0)
    return {
        "legend": {"data": list(COLOURS), "top": 0},
        "tooltip": {"formatter": "{b}"},
        "grid": {"left": 10, "right": 10, "top": 40, "bottom": 10},
        "xAxis": {"type": "value", "show": False, "min": -0.5, "max": depth + 0.5},
        "yAxis": {"type": "value", "show": False, "inverse": True, "min": -0.8, "max": last_row + 0.6},
        "series": series,
    }
