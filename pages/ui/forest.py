"""The forest from left to right in native ECharts: labelled around one model, or all of it as an overview; clickable.

Hundreds of models are objects with names; colour and size by a figure are done in the browser, by `visualMap`. Thousands are two
numbers and a name each in series of one colour and one size, which ECharts draws as one shape (`large`): ten thousand shapes take
seconds.
A click comes back as (series, index), so `Drawing` keeps which model each stands for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from core.compare import METRICS, Metric
from core.forest import Forest
from pages.ui.boot import settle
from pages.ui.tree import COLOURS, FEW, chart_height, layout, short_label, symbol_room
from store.forest import Leaf

OPERATION = "operation"
GRADIENT = ["#3b528b", "#21918c", "#5ec962", "#fde725"]
UNKNOWN = "#9aa5a0"
"""Of models that lack the figure."""
RING = "#f5a623"
OTHER_EDGES = ("#d08a00", "#9a7bd0")
"""Of teachers, and of plans."""
LINE = "path://M0 5H20V7H0z"
LARGE = 1000
"""More models than this are drawn as one shape a colour and size."""
ACROSS, DOWN = 2, 10
"""Coordinates are whole numbers, half columns and tenths of a row: a third of the time to write and to read."""
SIZES, SHADES = 4, 12
"""Steps of size and of colour there."""


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
    if models is forest.models:
        drawing, place, largest = _whole(forest, colour, size, None if fits is None else frozenset(fits))
    else:
        drawing, place, largest = _drawn(forest, models, colour, size, fits)
    if chosen not in place:
        return drawing
    ring = {"type": "scatter", "data": [place[chosen]], "symbol": "circle", "silent": True,
            "symbolSize": largest + 10 if len(models) > FEW else _own_symbol(forest, models, chosen, size, largest) + 8,
            "z": 3, "animation": False, "itemStyle": {"color": "transparent", "borderColor": RING, "borderWidth": 3},
            "tooltip": {"show": False}}  # fmt: skip
    options = {**drawing.options, "series": [*drawing.options["series"], ring]}
    return Drawing(options, drawing.height, drawing.series)


def _own_symbol(forest: Forest, models: Sequence[Leaf], chosen: str, size: str, largest: float) -> float:
    """Pixels of one model's symbol: a ring around it that were as large as the largest would lie on its label."""
    smallest = _smallest(largest)
    bounds, value = forest.range_of(size, (leaf.id for leaf in models)), forest.figures[chosen].get(size)
    if bounds is None or value is None:
        return smallest
    low, high = bounds
    return smallest + (largest - smallest) * ((value - low) / (high - low) if high > low else 0.5)


def _smallest(largest: float) -> float:
    return max(3.0, largest * 0.4)


Place = Mapping[str, tuple[int, int]]
"""Where each model is drawn, as (x, y)."""


@lru_cache(maxsize=4)
def _whole(forest: Forest, colour: str, size: str, fits: frozenset[str] | None) -> tuple[Drawing, Place, float]:
    """The drawing of all models, kept: a click moves the ring only, and a forest is the same object until the store changes."""
    found = _drawn(forest, forest.models, colour, size, fits)
    settle()
    return found


def _drawn(
    forest: Forest, models: Sequence[Leaf], colour: str, size: str, fits: AbstractSet[str] | None
) -> tuple[Drawing, Place, float]:
    """All but the ring, the place of each model, and pixels of the largest symbol."""
    found = layout(models)
    rows = max((row for row, _ in found.values()), default=0.0) + 1
    deepest = max((depth for _, depth in found.values()), default=0)
    place = {ref: (ACROSS * depth, round(DOWN * row)) for ref, (row, depth) in found.items()}
    height = chart_height(rows, len(models))
    smallest, largest = _symbols((height - 60) / rows, len(models))
    bounds = forest.range_of(size, (leaf.id for leaf in models))
    shades = None if colour == OPERATION else forest.range_of(colour, (leaf.id for leaf in models))
    series: list[dict[str, Any]] = [_edges(models, place), *_other_edges(models, place)]
    shown: dict[int, list[str]] = {}
    many = len(models) > LARGE
    for title, paint, members in _groups(models, forest, colour, fits):
        faint = title == "does not fit"
        if not many:
            shown[len(series)] = [leaf.id for leaf in members]
            series.append(_nodes(title, paint, members, forest, place, colour, size, len(models), faint=faint))
            continue
        painted = colour != OPERATION and title == METRICS[colour].title
        for part, pixels, tone in _steps(
            members, forest, (size, bounds, smallest, largest), (colour, shades) if painted else None
        ):
            shown[len(series)] = [leaf.id for leaf in part]
            series.append(_shape(title, tone or paint, part, place, pixels, faint=faint))
    maps = [] if many else _size_maps(series, bounds, smallest, largest)
    if shades is not None:
        maps.append(_scale(series, METRICS[colour], shades, within=not many))
    options = {
        "legend": {"data": _legend(series), "top": 0},
        "tooltip": {"formatter": "{b}"},
        "grid": {"left": 10, "right": 90 if shades is not None else 10, "top": 40, "bottom": 10},
        "xAxis": {"type": "value", "show": False, "min": -1, "max": ACROSS * deepest + 1},
        "yAxis": {"type": "value", "show": False, "inverse": True, "min": -8, "max": round(DOWN * rows) - 4},
        "dataZoom": [{"type": "inside", "yAxisIndex": 0, "filterMode": "none"}] if len(models) > FEW else [],
        "visualMap": maps,
        "series": series,
        "animation": False,
    }
    return Drawing(options, height, shown), place, largest


def _size_maps(
    series: Sequence[dict[str, Any]], bounds: tuple[float, float] | None, smallest: float, largest: float
) -> list[dict[str, Any]]:
    """Size by the third number of each point."""
    if bounds is None:
        return []
    low, high = bounds
    sizes = [smallest, largest] if high > low else [(smallest + largest) / 2] * 2
    maps: list[dict[str, Any]] = []
    for number, one in enumerate(series):
        if one["type"] == "scatter":
            # A map that names no colour would paint by size, in the theme's gradient.
            paints = [one["color"]] * 2
            maps.append({"type": "continuous", "show": False, "dimension": 2, "min": low, "max": high, "seriesIndex": [number],
                         "inRange": {"symbolSize": sizes, "color": paints},
                         "outOfRange": {"symbolSize": smallest, "color": paints}})  # fmt: skip
    return maps


def _scale(series: Sequence[dict[str, Any]], metric: Metric, shades: tuple[float, float], *, within: bool) -> dict[str, Any]:
    """The bar that says which colour is which value; `within`: it paints too, by the fourth number of each point."""
    low, high = shades
    coloured = [n for n, s in enumerate(series) if s.get("name") == metric.title] if within else []
    return {"type": "continuous", "dimension": 3, "min": low, "max": high, "seriesIndex": coloured, "right": 0, "top": 30,
            "itemHeight": 110, "itemWidth": 12, "calculable": False, "inRange": {"color": GRADIENT},
            "text": [metric.text(high), metric.text(low)]}  # fmt: skip


def _level(value: float | None, bounds: tuple[float, float] | None, count: int) -> int:
    """Which of `count` equal steps between the bounds a value lies in; 0 where it is not known."""
    if value is None or bounds is None or bounds[1] <= bounds[0]:
        return 0
    return min(count - 1, int((value - bounds[0]) / (bounds[1] - bounds[0]) * count))


def _tone(level: int) -> str:
    """The colour in the middle of one of `SHADES` steps of the gradient."""
    at = (level + 0.5) / SHADES * (len(GRADIENT) - 1)
    first, share = int(at), at - int(at)
    pairs = [(int(GRADIENT[first][n : n + 2], 16), int(GRADIENT[first + 1][n : n + 2], 16)) for n in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _steps(
    members: Sequence[Leaf], forest: Forest, sized: tuple[str, tuple[float, float] | None, float, float],
    shaded: tuple[str, tuple[float, float] | None] | None,
) -> list[tuple[list[Leaf], float, str | None]]:  # fmt: skip
    """(models, pixels, colour or None) of each step of size and colour."""
    size, bounds, smallest, largest = sized
    steps: dict[tuple[int, int], list[Leaf]] = defaultdict(list)
    for leaf in members:
        own = forest.figures[leaf.id]
        shade = _level(own.get(shaded[0]), shaded[1], SHADES) if shaded is not None else -1
        steps[_level(own.get(size), bounds, SIZES), shade].append(leaf)
    return [
        (part, smallest + (largest - smallest) * level / (SIZES - 1), _tone(shade) if shaded is not None else None)
        for (level, shade), part in sorted(steps.items(), key=lambda found: found[0])
    ]


def _shape(title: str, paint: str, members: Sequence[Leaf], place: Place, pixels: float, *, faint: bool) -> dict[str, Any]:
    """A scatter series that is drawn as one shape."""
    return {
        "type": "scatter", "name": title, "selectedMode": "single", "large": True, "largeThreshold": 1, "symbolSize": round(pixels, 2),
        "data": [[*place[leaf.id], leaf.name] for leaf in members], "color": paint, "z": 2,
        "animation": False, "itemStyle": {"opacity": 0.25 if faint else 1.0}, "emphasis": {"disabled": True}, **_named(2),
    }  # fmt: skip


def _symbols(pixels_a_row: float, count: int) -> tuple[float, float]:
    """Pixels of the smallest and the largest symbol: they overlap a little in an overview, and never where there is room.

    Of thousands all are under 4 pixels: ECharts fills those as plain squares, and only larger ones as paths.
    """
    if count > LARGE:
        return 2.0, 3.9
    largest = symbol_room(pixels_a_row, count)
    return _smallest(largest), largest


def _groups(
    models: Sequence[Leaf], forest: Forest, colour: str, fits: AbstractSet[str] | None
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
    title: str, paint: str, members: list[Leaf], forest: Forest, place: Place, colour: str, size: str,
    count: int, *, faint: bool,
) -> dict[str, Any]:  # fmt: skip
    """A scatter series. Few models are objects with a name and a label; more are plain numbers with a name to hover."""
    columns = max(x for x, _ in place.values()) // ACROSS + 1
    values = []
    for leaf in members:
        own = forest.figures[leaf.id]
        values.append([*place[leaf.id], own.get(size), own.get(colour) if colour != OPERATION else None])
    data: list[Any] = [[*value, leaf.name] for value, leaf in zip(values, members, strict=True)]
    if count <= 300:
        data = [
            {
                "value": value,
                "name": leaf.name,
                "label": {"show": count <= FEW, "formatter": short_label(leaf.name, _label(forest, leaf, size), columns)},
            }
            for leaf, value in zip(members, values, strict=True)
        ]
    return {
        "type": "scatter", "name": title, "selectedMode": "single", "data": data, "color": paint, "z": 2, "animation": False,
        "itemStyle": {"opacity": 0.25 if faint else 1.0}, "label": {"position": "top", "fontSize": 11, "distance": 6},
        "labelLayout": {"hideOverlap": True}, "symbolSize": 5, **(_named(4) if count > 300 else {}),
    }  # fmt: skip


def _named(at: int) -> dict[str, Any]:
    """Says that a number of each point is its name, for `{b}` of the tooltip."""
    dimensions: list[Any] = [f"value {number}" for number in range(at)]
    return {"dimensions": [*dimensions, {"name": "name", "type": "ordinal"}], "encode": {"x": 0, "y": 1, "itemName": at}}


def _label(forest: Forest, leaf: Leaf, size: str) -> str:
    value = forest.figures[leaf.id].get(size)
    return "" if value is None else METRICS[size].text(value)


def _edges(models: Sequence[Leaf], place: Place) -> dict[str, Any]:
    """Parent to child as an elbow. All are one shape of flat numbers (how many points, x, y, x, y, ...): objects take seconds.

    A parent has one stem and one bracket around its first and last child, which is less to send than an elbow a child.
    """
    ends: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for leaf in models:
        if leaf.parent_id is not None and leaf.parent_id in place:
            x, y = place[leaf.id]
            ends[leaf.parent_id].append((y, x))
    flat: list[int] = []
    for parent, below in ends.items():
        x, y = place[parent]
        middle = x + ACROSS // 2
        (first_y, first_x), (last_y, last_x) = min(below), max(below)
        if len(below) == 1:
            flat += [4, x, y, middle, y, middle, last_y, last_x, last_y]
            continue
        flat += [2, x, y, middle, y]
        flat += [4, first_x, first_y, middle, first_y, middle, last_y, last_x, last_y]
        for to_y, to_x in below:
            if (to_y, to_x) not in ((first_y, first_x), (last_y, last_x)):
                flat += [2, middle, to_y, to_x, to_y]
    return _lines(flat, "#8aa394", 1.5 if len(models) <= 2000 else 0.6)


def _other_edges(models: Sequence[Leaf], place: Place) -> list[dict[str, Any]]:
    """Straight lines to whom a model learnt from, and to whose units it keeps, where that is not its parent; each with its name."""
    roles = {"learnt from": [leaf.teacher_id for leaf in models], "keeps the units of": [leaf.plan_id for leaf in models]}
    found = []
    for (title, others), paint in zip(roles.items(), OTHER_EDGES, strict=True):
        flat: list[int] = []
        for leaf, other in zip(models, others, strict=True):
            if other is not None and other in place and other != leaf.parent_id:
                flat += [2, *place[other], *place[leaf.id]]
        if flat:
            found.append({"name": title, "itemStyle": {"color": paint}, **_lines(flat, paint, 1.0)})
    return found


def _legend(series: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """Each name once, lines with a line before them."""
    kinds = {s["name"]: s["type"] for s in series if s.get("name")}
    return [{"name": name, **({"icon": LINE} if kind == "lines" else {})} for name, kind in kinds.items()]


def _lines(flat: list[int], colour: str, width: float) -> dict[str, Any]:
    return {"type": "lines", "coordinateSystem": "cartesian2d", "polyline": True, "large": True, "largeThreshold": 1, "progressive": 0,
            "data": flat, "silent": True, "z": 1, "animation": False, "tooltip": {"show": False},
            "lineStyle": {"color": colour, "opacity": 1, "width": width}}  # fmt: skip
