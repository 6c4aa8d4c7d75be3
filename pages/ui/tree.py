"""The family tree from left to right: a tidy layout in O(n), drawn by native ECharts (scatter + lines)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from store import ModelRow
from store.forest import Leaf

LARGEST_SYMBOL, SMALLEST_SYMBOL = 26.0, 6.0
LABEL_PIXELS = 18
"""What a label above a symbol takes, with its distance."""
FEW = 40
"""So many models have room for a label each."""
WIDTH = 1000
"""Pixels that a chart has in a window of usual width, or a little more."""
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


def chart_height(rows: float, count: int) -> int:
    """Pixels that a drawing of `count` models takes: a row for each leaf, within reason; labels need more."""
    return int(min(1200 if count <= FEW else 900, max(200, 90 + 56 * rows)))


def symbol_room(pixels_a_row: float, count: int) -> float:
    """Pixels of the largest symbol: where there are labels, a symbol with its label stays within its row."""
    room = pixels_a_row - LABEL_PIXELS if count <= FEW else pixels_a_row * 0.8
    return min(LARGEST_SYMBOL, max(SMALLEST_SYMBOL, room))


def short_label(name: str, value: str, columns: int) -> str:
    """A label that fits its column: the name loses its middle, the value never anything. A hover shows the whole name."""
    room = max(8, int(WIDTH / max(1, columns) / 6.2) - len(value) - 3)  # a letter of 11 pixels is some 6 wide
    if len(name) > room:
        name = f"{name[: (room + 1) // 2]}…{name[len(name) - room // 2 + 1 :]}"
    return f"{name}  {value}".strip()


def tree_height(models: Sequence[ModelRow]) -> int:
    """Pixels that `tree_chart` takes."""
    return chart_height(max((row for row, _ in layout(models).values()), default=0.0) + 1, len(models))


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
    few = len(models) <= FEW
    rows = max((row for _, row in place.values()), default=0.0) + 1
    columns = int(max((x for x, _ in place.values()), default=0.0)) + 1
    shrink = symbol_room((tree_height(models) - 60) / rows, len(models)) / LARGEST_SYMBOL
    for kind, colour in COLOURS.items():
        data = [
            {
                "value": list(place[m.id]),
                "name": m.name,
                "id": m.id,
                "symbolSize": max(3.0, shrink * (10 + 16 * (m.facts.get(size_key, 0.0) / largest) ** 0.5)),
                "itemStyle": {"borderColor": "#f5a623", "borderWidth": max(2.0, 4 * shrink)} if m.id == chosen else {},
                "label": {"show": few, "formatter": short_label(m.name, f"{m.facts['parameters'] / 1e6:.2f} M", columns)},
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
