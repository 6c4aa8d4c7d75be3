"""The chart of a report, drawn once with reportlab's shapes: as SVG for Markdown and HTML, as shapes for a PDF."""

from __future__ import annotations

import math
from typing import Any

from core.errors import CoreError
from core.report.document import Chart

WIDTH, HEIGHT = 520.0, 300.0
_LEFT, _RIGHT, _BOTTOM, _TOP = 62.0, 20.0, 44.0, 24.0


def reportlab() -> Any:
    """The package, or what to install."""
    try:
        import reportlab as found
    except ImportError as error:
        raise CoreError(
            "Reports with charts need reportlab, which is not installed.", code="no_reportlab", next="pip install reportlab"
        ) from error
    return found


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) in [low, high]."""
    span = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / most))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= most)
    first = math.ceil(low / step - 1e-9)
    return [round(number * step, 12) for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _bounds(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = (high - low or abs(high) or 1.0) * 0.12
    return low - margin, high + margin


def drawing(chart: Chart) -> Any:
    """A reportlab Drawing."""
    reportlab()
    from reportlab.graphics.shapes import Circle, Drawing, Line, PolyLine, Rect, String
    from reportlab.lib import colors

    made = Drawing(WIDTH, HEIGHT)
    bounds = _bounds([p.x for p in chart.points]), _bounds([p.y for p in chart.points])

    def place(x: float, y: float) -> tuple[float, float]:
        (x0, x1), (y0, y1) = bounds
        across, up = (x - x0) / (x1 - x0), (y - y0) / (y1 - y0)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), _BOTTOM + up * (HEIGHT - _BOTTOM - _TOP)

    grey, ink, accent = colors.HexColor("#d9dde2"), colors.HexColor("#333a42"), colors.HexColor("#1d7043")
    right, top = WIDTH - _RIGHT, HEIGHT - _TOP
    for value in ticks(*bounds[0]):
        x, _ = place(value, bounds[1][0])
        made.add(Line(x, _BOTTOM, x, top, strokeColor=grey, strokeWidth=0.5))
        made.add(String(x, _BOTTOM - 13, f"{value:g}", fontSize=8, textAnchor="middle", fillColor=ink))
    for value in ticks(*bounds[1]):
        _, y = place(bounds[0][0], value)
        made.add(Line(_LEFT, y, right, y, strokeColor=grey, strokeWidth=0.5))
        made.add(String(_LEFT - 6, y - 3, f"{value:g}", fontSize=8, textAnchor="end", fillColor=ink))
    made.add(Rect(_LEFT, _BOTTOM, right - _LEFT, top - _BOTTOM, fillColor=None, strokeColor=ink, strokeWidth=0.6))
    made.add(String((_LEFT + right) / 2, 12, chart.x_title, fontSize=9, textAnchor="middle", fillColor=ink))
    made.add(String(_LEFT, HEIGHT - 12, chart.y_title, fontSize=9, fillColor=ink))
    best = sorted((p.x, p.y) for p in chart.points if p.best)
    if len(best) > 1:
        line = [number for x, y in best for number in place(x, y)]
        made.add(PolyLine(line, strokeColor=accent, strokeWidth=1, strokeDashArray=[3, 3]))
    for point in chart.points:
        x, y = place(point.x, point.y)
        made.add(Circle(x, y, 5 if point.best else 4, fillColor=accent if point.best else colors.white, strokeColor=accent))
        anchor = "end" if x > (_LEFT + right) * 0.55 else "start"
        offset = -8 if anchor == "end" else 8
        made.add(String(x + offset, y + 5, point.label, fontSize=8, textAnchor=anchor, fillColor=ink))
    return made


def svg(chart: Chart) -> str:
    """The chart as an `<svg>` element."""
    from reportlab.graphics import renderSVG

    text = renderSVG.drawToString(drawing(chart))
    return str(text)[str(text).index("<svg") :]
