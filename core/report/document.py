"""What a report consists of: blocks that every format can draw."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Heading:
    """A heading; level 1 is the document's title."""

    text: str
    level: int = 2


@dataclass(frozen=True)
class Text:
    """A paragraph of plain text; a `warning` stands out."""

    text: str
    warning: bool = False


@dataclass(frozen=True)
class Items:
    """A list; `indents` are the depths of a tree's lines."""

    texts: tuple[str, ...]
    indents: tuple[int, ...] = ()


@dataclass(frozen=True)
class Table:
    """Cells of plain text; the first column names the row. `tones` holds (row, column): better or worse."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    tones: dict[tuple[int, int], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Picture:
    """A PNG with its caption; None where there is none to show."""

    caption: str
    png: bytes | None


@dataclass(frozen=True)
class Grid:
    """Rows of pictures, alike in number."""

    rows: tuple[tuple[Picture, ...], ...]


@dataclass(frozen=True)
class Point:
    """A model in a chart."""

    label: str
    x: float
    y: float
    best: bool


@dataclass(frozen=True)
class Chart:
    """Points over two axes, those of the Pareto front joined."""

    x_title: str
    y_title: str
    points: tuple[Point, ...]


@dataclass(frozen=True)
class Code:
    """Preformatted text."""

    text: str


Block = Heading | Text | Items | Table | Grid | Chart | Code


@dataclass(frozen=True)
class Document:
    """A whole report. `date` stands in it once, as a line of its own under the title."""

    title: str
    date: str
    blocks: tuple[Block, ...]
