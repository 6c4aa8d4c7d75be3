"""A document as PDF (A4, landscape), with reportlab."""

from __future__ import annotations

import io
from html import escape
from itertools import takewhile
from typing import Any

from core.report.chart import HEIGHT as CHART_HEIGHT
from core.report.chart import drawing, reportlab
from core.report.document import Block, Chart, Code, Document, Grid, Heading, Items, Picture, Table, Text

MOST_COLUMNS = 5
"""A table of more models goes on in a further one, with its first column again."""
_FIRST_COLUMN = 110.0
_CODE_LINES = 40


def to_pdf(found: Document) -> bytes:
    """The whole file; the same document gives the same bytes.

    Characters that its typefaces (Helvetica, Courier) lack are drawn as boxes. Raises CoreError where reportlab is not installed.
    """
    reportlab()
    from reportlab.lib.pagesizes import A4, landscape
    from reportlab.platypus import CondPageBreak, Paragraph, SimpleDocTemplate, Spacer

    out, styles = io.BytesIO(), _styles()
    page = SimpleDocTemplate(
        out, pagesize=landscape(A4), leftMargin=42, rightMargin=42, topMargin=40, bottomMargin=40, invariant=1,
        title=found.title, author="Offshoot", initialFontSize=9,
    )  # fmt: skip
    flow: list[Any] = [Paragraph(_text(found.title), styles["h1"]), Paragraph(_text(found.date), styles["date"])]
    for number, block in enumerate(found.blocks):
        if isinstance(block, Heading):
            flow += [CondPageBreak(_needed(found.blocks[number + 1 :])), *_block(block, styles, page.width)]
        else:
            flow += [*_block(block, styles, page.width), Spacer(1, 5)]
    while flow and isinstance(flow[-1], Spacer):
        flow.pop()  # on a page that is full, the space after the last block would begin an empty one
    page.build(flow, onFirstPage=_footer, onLaterPages=_footer)
    return out.getvalue()


def _needed(following: tuple[Block, ...]) -> float:
    """Points that a heading wants below it, so that it does not stand alone at the foot of a page."""
    section = list(takewhile(lambda block: not isinstance(block, Heading), following))
    if any(isinstance(block, Chart) for block in section):
        return CHART_HEIGHT + 70
    return 220.0 if not section or any(isinstance(block, Grid) for block in section) else 90.0


def _styles() -> dict[str, Any]:
    from reportlab.lib.colors import HexColor
    from reportlab.lib.styles import ParagraphStyle

    ink = HexColor("#20262d")
    body = ParagraphStyle("body", fontName="Helvetica", fontSize=9, leading=12.5, textColor=ink)
    bold = ParagraphStyle("bold", body, fontName="Helvetica-Bold")
    cell = ParagraphStyle("cell", body, fontSize=7.5, leading=9.5, splitLongWords=True)
    return {
        "body": body,
        "h1": ParagraphStyle("h1", bold, fontSize=18, leading=22),
        "h2": ParagraphStyle("h2", bold, fontSize=13, leading=17, spaceBefore=10, keepWithNext=1),
        "h3": ParagraphStyle("h3", bold, fontSize=10.5, leading=14, spaceBefore=6, keepWithNext=1),
        "date": ParagraphStyle("date", body, textColor=HexColor("#66707a"), spaceAfter=6),
        "warning": ParagraphStyle("warning", body, backColor=HexColor("#fff6df"), borderPadding=4, spaceBefore=4, spaceAfter=4),
        "cell": cell,
        "head": ParagraphStyle("head", cell, fontName="Helvetica-Bold"),
        "better": ParagraphStyle("better", cell, textColor=HexColor("#1d7043")),
        "worse": ParagraphStyle("worse", cell, textColor=HexColor("#b8293d")),
        "code": ParagraphStyle("code", fontName="Courier", fontSize=7, leading=8.5, textColor=ink, backColor=HexColor("#f5f6f7")),
    }


def _footer(canvas: Any, page: Any) -> None:
    canvas.setFont("Helvetica", 7.5)
    canvas.drawRightString(page.pagesize[0] - 42, 22, str(canvas.getPageNumber()))


def _text(text: str) -> str:
    return escape(text, quote=False).replace("\n", "<br/>")


def _block(block: Block, styles: dict[str, Any], width: float) -> list[Any]:
    from reportlab.platypus import Paragraph, Preformatted

    match block:
        case Heading():
            return [Paragraph(_text(block.text), styles[f"h{block.level}"])]
        case Text():
            return [Paragraph(_text(block.text), styles["warning" if block.warning else "body"])]
        case Items():
            indents = block.indents or (0,) * len(block.texts)
            return [
                Paragraph(f"• {_text(text)}", _indented(styles["body"], depth))
                for depth, text in zip(indents, block.texts, strict=True)
            ]
        case Table():
            return _tables(block, styles, width)
        case Grid():
            return _grid(block, styles, width)
        case Chart():
            return [drawing(block)]
        case Code():
            # A frame is no taller than a page: a longer text goes on in a further one.
            lines = block.text.splitlines()
            starts = range(0, len(lines), _CODE_LINES)
            return [Preformatted("\n".join(lines[at : at + _CODE_LINES]), styles["code"], maxLineLength=150) for at in starts]


def _indented(style: Any, depth: int) -> Any:
    from reportlab.lib.styles import ParagraphStyle

    return ParagraphStyle(f"depth{depth}", style, leftIndent=10 + 14 * depth, firstLineIndent=-8)


def _columns(count: int) -> list[range]:
    """Which columns besides the first stand in each table."""
    return [range(at, min(at + MOST_COLUMNS, count)) for at in range(1, count, MOST_COLUMNS)]


def _tables(table: Table, styles: dict[str, Any], width: float) -> list[Any]:
    from reportlab.lib.colors import HexColor
    from reportlab.platypus import Paragraph, Spacer
    from reportlab.platypus import Table as Drawn

    made: list[Any] = []
    for columns in _columns(len(table.header)):
        shown = [0, *columns]
        rows = [[Paragraph(_text(table.header[c]), styles["head"]) for c in shown]] if any(table.header) else []
        for number, row in enumerate(table.rows):
            rows.append([Paragraph(_text(row[c]), styles[table.tones.get((number, c), "cell")]) for c in shown])
        one = (width - _FIRST_COLUMN) / max(2, len(columns))
        drawn = Drawn(rows, colWidths=[_FIRST_COLUMN, *[one] * len(columns)], repeatRows=1 if any(table.header) else 0)
        drawn.hAlign = "LEFT"
        drawn.setStyle(
            [
                ("LINEBELOW", (0, 0), (-1, -1), 0.4, HexColor("#d9dde2")),
                ("VALIGN", (0, 0), (-1, -1), "TOP"),
                ("LEFTPADDING", (0, 0), (-1, -1), 2),
                ("TOPPADDING", (0, 0), (-1, -1), 2),
                ("BOTTOMPADDING", (0, 0), (-1, -1), 2),
            ]
        )
        made += [drawn, Spacer(1, 6)]
    return made


def _grid(grid: Grid, styles: dict[str, Any], width: float) -> list[Any]:
    from reportlab.platypus import Table as Drawn

    made = []
    for columns in _columns(len(grid.rows[0])):
        shown = [0, *columns]
        side = min(130.0, width / (1 + MOST_COLUMNS) - 8)
        rows = [[_picture(row[c], styles, side) for c in shown] for row in grid.rows]
        drawn = Drawn(rows, colWidths=[side + 8] * len(shown))
        drawn.hAlign = "LEFT"
        drawn.setStyle([("VALIGN", (0, 0), (-1, -1), "TOP"), ("LEFTPADDING", (0, 0), (-1, -1), 0)])
        made.append(drawn)
    return made


def _picture(picture: Picture, styles: dict[str, Any], side: float) -> list[Any]:
    from reportlab.platypus import Image, Paragraph

    caption = Paragraph(_text(picture.caption), styles["cell"])
    if picture.png is None:
        return [caption]
    return [Image(io.BytesIO(picture.png), width=side, height=side, kind="proportional"), caption]
