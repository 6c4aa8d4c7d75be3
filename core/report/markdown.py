"""A document as Markdown, with its pictures and charts as files beside it."""

from __future__ import annotations

from core.report.chart import svg
from core.report.document import Block, Chart, Code, Document, Grid, Heading, Items, Picture, Table, Text

PICTURES = "pictures"


def to_markdown(found: Document) -> dict[str, bytes]:
    """Files by name: `report.md` and what it shows."""
    files: dict[str, bytes] = {}
    parts = [f"# {_plain(found.title)}", f"*{found.date}*"]
    parts += [_block(block, files) for block in found.blocks]
    return {"report.md": ("\n\n".join(part for part in parts if part) + "\n").encode(), **files}


def _block(block: Block, files: dict[str, bytes]) -> str:
    match block:
        case Heading():
            return f"{'#' * block.level} {_plain(block.text)}"
        case Text():
            return f"> {_plain(block.text)}" if block.warning else _plain(block.text)
        case Items():
            indents = block.indents or (0,) * len(block.texts)
            return "\n".join(f"{'  ' * depth}- {_plain(text)}" for depth, text in zip(indents, block.texts, strict=True))
        case Table():
            return _table(block.header, [tuple(_plain(cell) for cell in row) for row in block.rows])
        case Grid():
            rows = [tuple(_picture(p, files) for p in row) for row in block.rows]
            return _table(("",) * len(rows[0]), rows)
        case Chart():
            name = f"{PICTURES}/chart-{len(files) + 1}.svg"
            files[name] = svg(block).encode()
            return f"![{_plain(block.y_title)} over {_plain(block.x_title)}]({name})"
        case Code():
            return f"```\n{block.text}\n```"


def _picture(picture: Picture, files: dict[str, bytes]) -> str:
    caption = _plain(picture.caption)
    if picture.png is None:
        return caption
    name = f"{PICTURES}/{len(files) + 1:03d}.png"
    files[name] = picture.png
    return f"![]({name})<br>{caption}"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(_plain(cell) for cell in header)} |", f"|{' --- |' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is."""
    for mark in ("\\", "|", "*", "_", "`", "[", "]", "#"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("\n", "<br>")
