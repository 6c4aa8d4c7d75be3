"""A document as one HTML file: pictures inside it, no script, nothing fetched."""

from __future__ import annotations

import base64
from html import escape

from core.report.chart import svg
from core.report.document import Block, Chart, Code, Document, Grid, Heading, Items, Picture, Table, Text

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #20262d; max-width: 76rem; margin: 2.5rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; margin-bottom: 0.2rem; } h2 { margin-top: 2.4rem; border-bottom: 1px solid #d9dde2; padding-bottom: 0.2rem; }
h3 { margin-top: 1.6rem; } .date { color: #66707a; margin-top: 0; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.9rem; }
th, td { border-bottom: 1px solid #e6e9ec; padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; vertical-align: top;
  overflow-wrap: anywhere; }
tbody th { font-weight: 500; color: #4a545e; white-space: nowrap; } td { white-space: pre-line; min-width: 9rem; }
.better { color: #1d7043; } .worse { color: #b8293d; }
.warning { background: #fff6df; border-left: 4px solid #d99a00; padding: 0.5rem 0.8rem; }
.grid img { width: 100%; min-width: 8rem; image-rendering: pixelated; display: block; border-radius: 4px; }
.grid { table-layout: fixed; }
.grid td { width: 12rem; min-width: 8rem; max-width: 12rem; padding-right: 0.8rem; font-size: 0.8rem; color: #4a545e; }
pre { background: #f5f6f7; padding: 0.8rem; overflow-x: auto; font-size: 0.8rem; border-radius: 4px; }
svg { max-width: 100%; height: auto; }
@media print { body { margin: 0; max-width: none; } tr, pre { break-inside: avoid; } }
"""


def to_html(found: Document) -> bytes:
    """The whole file, UTF-8."""
    body = "\n".join(_block(block) for block in found.blocks)
    title = escape(found.title)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta name="viewport" content="width=device-width">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        f'<p class="date">{escape(found.date)}</p>\n{body}\n</body>\n</html>\n'
    ).encode()


def _block(block: Block) -> str:
    match block:
        case Heading():
            return f"<h{block.level}>{escape(block.text)}</h{block.level}>"
        case Text():
            kind = ' class="warning"' if block.warning else ""
            return f"<p{kind}>{escape(block.text)}</p>"
        case Items():
            indents = block.indents or (0,) * len(block.texts)
            lines = zip(indents, block.texts, strict=True)
            return "<ul>" + "".join(f'<li style="margin-left:{2 * depth}rem">{escape(t)}</li>' for depth, t in lines) + "</ul>"
        case Table():
            return _table(block)
        case Grid():
            rows = ("<tr>" + "".join(f"<td>{_picture(p)}</td>" for p in row) + "</tr>" for row in block.rows)
            return f'<div class="scroll"><table class="grid">{"".join(rows)}</table></div>'
        case Chart():
            return svg(block)
        case Code():
            return f"<pre>{escape(block.text)}</pre>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = []
    for number, (first, *cells) in enumerate(table.rows):
        made = [f"<th>{escape(first)}</th>"]
        for column, cell in enumerate(cells, 1):
            tone = table.tones.get((number, column))
            kind = f' class="{tone}"' if tone else ""
            made.append(f"<td{kind}>{escape(cell)}</td>")
        rows.append(f"<tr>{''.join(made)}</tr>")
    shown = f"<thead><tr>{head}</tr></thead>" if any(table.header) else ""
    return f'<div class="scroll"><table>{shown}<tbody>{"".join(rows)}</tbody></table></div>'


def _picture(picture: Picture) -> str:
    caption = escape(picture.caption).replace("\n", "<br>")
    if picture.png is None:
        return caption
    return f'<img alt="{escape(picture.caption)}" src="data:image/png;base64,{base64.b64encode(picture.png).decode()}">{caption}'
