"""The forest from left to right in native ECharts: labelled around one model, or all of it as an overview; clickable.

10,000 models go to the browser as arrays of four numbers each, not as objects; colour and size by a figure are done there, by
`visualMap`. A click comes back as (series, index), so `Drawing` keeps which model each stands for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from core.compare import METRICS
from core.forest import Forest
from pages.ui.tree import COLOURS, layout
from store.forest import Leaf

OPERATION = "operation"
GRADIENT = ["#3b528b", "#21918c", "#5ec962", "#fde725"]
UNKNOWN = "#9aa5a0"
"""Of models that lack the figure."""
RING = "#f5a623"
FEW = 40
"""So many models have room for a label each, with their size."""


@dataclass(frozen=True)
class Drawing:
    """ECharts options, pixels of height, and the models of each series by their index."""

    options: dict[str, Any]
    height: int
    series: Mapping[int, Sequence[str]]

    def clicked(self, event: Any, before: set[tuple[int, int]] | None = None) -> str | None:
        """The model of a selection event, or None. Each series keeps a selection of its own: `before` are those of earlier clicks."""
        for number, index in sorted(picks(event) - (before or set())):
            refs = self.series.get(number, ())
            if index < len(refs):
                return refs[index]
        return None


def picks(event: Any) -> set[tuple[int, int]]:
    """(series, index) of all that is selected in a chart."""
    return {(group["series_index"], index) for group in event["selection"]["selected"] for index in group["data_indices"]}


def draw(
    forest: Forest, models: Sequence[Leaf], *, chosen: str, colour: str = OPERATION, size: str = "parameters",
    fits: set[str] | None = None,
) -> Drawing:  # fmt: skip
    """`models` with `chosen` ringed; those that are not in `fits` (None: all are) are pale."""
    place = layout(models)
    rows = max((row for row, _ in place.values()), default=0.0) + 1
    deepest = max((depth for _, depth in place.values()), default=0)
    height = int(min(900, max(200, 90 + 56 * rows)))
    smallest, largest = _symbols((height - 60) / rows, len(models))
    bounds = forest.range_of(size, (leaf.id for leaf in models))
    shades = None if colour == OPERATION else forest.range_of(colour, (leaf.id for leaf in models))
    series: list[dict[str, Any]] = [_edges(models, place)]
    shown: dict[int, list[str]] = {}
    for title, paint, members in _groups(models, forest, colour, fits):
        shown[len(series)] = [leaf.id for leaf in members]
        series.append(_nodes(title, paint, members, forest, place, colour, size, len(models), faint=title == "does not fit"))
    painted = [n for n, s in enumerate(series) if s["type"] == "scatter"]
    maps: list[dict[str, Any]] = []
    if bounds is not None:
        low, high = bounds
        sizes = [smallest, largest] if high > low else [(smallest + largest) / 2] * 2
        for number in painted:
            # A map that names no colour would paint by size, in the theme's gradient.
            paints = [series[number]["color"]] * 2
            maps.append({"type": "continuous", "show": False, "dimension": 2, "min": low, "max": high, "seriesIndex": [number],
                         "inRange": {"symbolSize": sizes, "color": paints},
                         "outOfRange": {"symbolSize": smallest, "color": paints}})  # fmt: skip
    metric = METRICS.get(colour)
    if shades is not None and metric is not None:
        low, high = shades
        coloured = [n for n in painted if series[n]["name"] == metric.title]
        maps.append({"type": "continuous", "dimension": 3, "min": low, "max": high, "seriesIndex": coloured, "right": 0, "top": 30,
                     "itemHeight": 110, "itemWidth": 12, "calculable": False, "inRange": {"color": GRADIENT},
                     "text": [metric.text(high), metric.text(low)]})  # fmt: skip
    if chosen in place:
        row, depth = place[chosen]
        series.append({"type": "scatter", "data": [[depth, row]], "symbol": "circle", "symbolSize": largest + 10, "silent": True,
                       "z": 3, "animation": False, "itemStyle": {"color": "transparent", "borderColor": RING, "borderWidth": 3},
                       "tooltip": {"show": False}})  # fmt: skip
    options = {
        "legend": {"data": [s["name"] for s in series if s.get("name")], "top": 0},
        "tooltip": {"formatter": "{b}"},
        "grid": {"left": 10, "right": 90 if shades is not None else 10, "top": 40, "bottom": 10},
        "xAxis": {"type": "value", "show": False, "min": -0.5, "max": deepest + 0.5},
        "yAxis": {"type": "value", "show": False, "inverse": True, "min": -0.8, "max": rows - 0.4},
        "dataZoom": [{"type": "inside", "yAxisIndex": 0, "filterMode": "none"}] if len(models) > FEW else [],
        "visualMap": maps,
        "series": series,
        "animation": False,
    }
    return Drawing(options, height, shown)


def _symbols(pixels_a_row: float, count: int) -> tuple[float, float]:
    """Pixels of the smallest and the largest symbol: they overlap a little in an overview, and never where there is room."""
    largest = min(26.0, max(6.0, pixels_a_row * 0.8)) if count <= 2000 else 6.0
    return max(3.0, largest * 0.4), largest


def _groups(
    models: Sequence[Leaf], forest: Forest, colour: str, fits: set[str] | None
) -> list[tuple[str, str, list[Leaf]]]:  # fmt: skip
    """(title, colour, models) of each series: one an operation, or those that have the figure and those that lack it."""
    inside = [leaf for leaf in models if fits is None or leaf.id in fits]
    if colour == OPERATION:
        kinds = [*COLOURS, *sorted({leaf.kind for leaf in inside} - set(COLOURS))]
        groups = [(kind, COLOURS.get(kind, UNKNOWN), [leaf for leaf in inside if leaf.kind == kind]) for kind in kinds]
    else:
        title = METRICS[colour].title
        has = [leaf for leaf in inside if forest.figures[leaf.id].get(colour) is not None]
        lacks = [leaf for leaf in inside if forest.figures[leaf.id].get(colour) is None]
        groups = [(title, GRADIENT[1], has), ("not measured", UNKNOWN, lacks)]
    if fits is not None:
        groups.append(("does not fit", UNKNOWN, [leaf for leaf in models if leaf.id not in fits]))
    return [group for group in groups if group[2]]


def _nodes(
    title: str, paint: str, members: list[Leaf], forest: Forest, place: Mapping[str, tuple[float, int]], colour: str, size: str,
    count: int, *, faint: bool,
) -> dict[str, Any]:  # fmt: skip
    """A scatter series. Few models are objects with a name and a label; many are plain numbers."""
    values = []
    for leaf in members:
        row, depth = place[leaf.id]
        own = forest.figures[leaf.id]
        values.append([depth, row, own.get(size), own.get(colour) if colour != OPERATION else None])
    data: list[Any] = values
    if count <= 300:
        data = [
            {
                "value": value,
                "name": leaf.name,
                "label": {"show": count <= FEW, "formatter": f"{leaf.name}  {_label(forest, leaf, size)}".strip()},
            }
            for leaf, value in zip(members, values, strict=True)
        ]
    return {
        "type": "scatter", "name": title, "selectedMode": "single", "data": data, "color": paint, "z": 2, "animation": False,
        "itemStyle": {"opacity": 0.25 if faint else 1.0}, "label": {"position": "top", "fontSize": 11, "distance": 4},
        "labelLayout": {"hideOverlap": True}, "symbolSize": 5,
        # Hundreds of strokes on a hover cost more than they tell.
        "emphasis": {"disabled": count > 2000},
    }  # fmt: skip


def _label(forest: Forest, leaf: Leaf, size: str) -> str:
    value = forest.figures[leaf.id].get(size)
    return "" if value is None else METRICS[size].text(value)


def _edges(models: Sequence[Leaf], place: Mapping[str, tuple[float, int]]) -> dict[str, Any]:
    """Parent to child as an elbow. All of them are one broken line: thousands of separate ones take seconds."""
    points: list[list[float | None]] = []
    for leaf in models:
        if leaf.parent_id is not None and leaf.parent_id in place:
            (y, x), (to_y, to_x) = place[leaf.parent_id], place[leaf.id]
            points += [[x, y], [x + 0.5, y], [x + 0.5, to_y], [to_x, to_y], [None, None]]
    return {"type": "line", "data": points, "symbol": "none", "silent": True, "z": 1, "connectNulls": False, "animation": False,
            "lineStyle": {"color": "#8aa394", "width": 1.5 if len(models) <= 2000 else 0.6}, "tooltip": {"show": False}}  # fmt: skip
