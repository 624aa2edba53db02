"""A block drawn as lines of cells, in styles that the theme gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rich.cells import chop_cells
from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip

from tui.markdown.blocks import Block
from tui.markdown.highlight import highlight
from tui.markdown.inline import Names, Span, cell_width, spans, wrap
from tui.markdown.table import SEPARATOR, cells
from tui.sanitize import visible

NARROWEST = 12  # cells that text has at least, however deep it stands in quotes and lists
COPY = "copy"


class Line(NamedTuple):
    """A drawn line. Its text from character `start` to `end` is content, the rest is frame and margin.

    `joint` is what stands between this line's content and the next one's in the source; a line that is all frame has no
    content, and `start` is -1.
    """

    strip: Strip
    start: int = -1
    end: int = -1
    joint: str = "\n"


class Palette:
    """Rich styles by name, and mixed: later names are drawn over earlier ones, all over "text"."""

    def __init__(self, styles: Mapping[str, Style]) -> None:
        self.styles = dict(styles)
        self._mixed: dict[Names, Style] = {}

    def mix(self, names: Names) -> Style:
        """The style of text that is all of these."""
        if (style := self._mixed.get(names)) is None:
            style = self.styles.get("text", Style.null())
            for name in names:
                style += self.styles.get(name, Style.null())
            self._mixed[names] = style
        return style

    def strip(self, content: Iterable[Span], base: Names = ()) -> Strip:
        """One line of spans."""
        return Strip([Segment(text, self.mix((*base, *names))) for text, names in content if text])


def line(palette: Palette, lead: Sequence[Span], content: Sequence[Span], base: Names = (), joint: str = "\n") -> Line:
    """A line of content after its lead, which is no part of it."""
    start = sum(len(text) for text, _ in lead)
    framed = [(text, (*base, *names)) for text, names in content]
    return Line(palette.strip([*lead, *framed]), start, start + sum(len(text) for text, _ in content), joint)


def chrome(palette: Palette, content: Sequence[Span]) -> Line:
    """A line that is all frame."""
    return Line(palette.strip(content))


def shape(block: Block, width: int) -> tuple[int, ...]:
    """What a block is drawn by besides its own source: the columns of its table."""
    return block.table.columns(_leads(block, width, ())[2]) if block.table is not None else ()


def height(block: Block, width: int) -> int:
    """About how many lines a block takes, without drawing it."""
    inner = max(NARROWEST, width - 2 * len(block.frames) - (4 if block.kind == "code" else 0))
    rows = len(block.lines) if block.kind == "table" else sum(1 + len(text) // inner for text in block.lines)
    framed = 0 if block.kind not in ("code", "table") else block.first * (1 + (block.kind == "table")) + block.last
    return max(1, rows + framed + block.gap)


def draw(block: Block, width: int, palette: Palette, margin: Sequence[Span] = (), base: Names = ()) -> list[Line]:
    """Draw a block in `width` cells after the margin.

    Args:
        margin: drawn before every line.
        base: names of the styles that all of it is drawn in.
    """
    lead, follow, room = _leads(block, width, margin)
    drawn: list[Line] = []
    if block.gap:
        shared = block.frames[: block.fresh]
        bars: list[Span] = [("│ " if not frame.marker else " " * _indent(frame.marker), ("quote",)) for frame in shared]
        drawn.append(Line(palette.strip([*margin, *bars]), 0, 0))
    if block.kind == "code":
        drawn += _code(block, room, palette, lead, follow)
    elif block.kind == "table":
        drawn += _table(block, room, palette, lead, follow, base)
    elif block.kind == "rule":
        drawn.append(chrome(palette, [*lead, ("─" * room, ("frame",))]))
    elif block.kind == "plain":
        for source in block.lines:
            drawn += _rows(((source, ()),), room, palette, follow, follow, base)
    else:
        style: Names = (f"h{min(block.level, 3)}",) if block.kind == "heading" else ()
        if any(not frame.marker for frame in block.frames):
            style = (*style, "quoted")
        source = "\n".join(block.lines)
        drawn += _rows(spans(source, growing=block.growing), room, palette, lead, follow, (*base, *style))
    return drawn


def wrapped(palette: Palette, content: Iterable[Span], width: int, margin: Sequence[Span] = ()) -> list[Line]:
    """Lines that are all frame, as many as the content needs."""
    return [chrome(palette, [*margin, *row]) for row, _ in wrap(content, width)]


def _rows(
    content: Iterable[Span], room: int, palette: Palette, lead: list[Span], follow: list[Span], base: Names
) -> list[Line]:
    rows = wrap(content, room)
    marker = lead[-1] if lead != follow and lead else None
    drawn = []
    for index, (row, joint) in enumerate(rows):
        drawn.append(line(palette, follow if index else lead, row, base, joint))
    if marker is not None:  # an item's marker is part of what is copied
        first = drawn[0]
        drawn[0] = first._replace(start=first.start - len(marker[0]))
    return drawn


def _leads(block: Block, width: int, margin: Sequence[Span]) -> tuple[list[Span], list[Span], int]:
    """What stands before the first and the other lines of a block, and the cells that are left for it."""
    lead, follow = list(margin), list(margin)
    room = width
    for depth, frame in enumerate(block.frames):
        size = _indent(frame.marker) if frame.marker else 2
        if room - size < NARROWEST:
            break
        room -= size
        if frame.marker:
            begins = depth >= block.fresh
            marker = f"{frame.marker} " if frame.marker[-1] in ".)" else "- "
            lead.append((marker, ("marker",)) if begins else (" " * size, ()))
            follow.append((" " * size, ()))
        else:
            lead.append(("│ ", ("quote",)))
            follow.append(("│ ", ("quote",)))
    return lead, follow, room


def _indent(marker: str) -> int:
    return len(marker) + 1


def _code(block: Block, room: int, palette: Palette, lead: list[Span], follow: list[Span]) -> list[Line]:
    drawn: list[Line] = []
    inner = max(1, room - 4)
    if block.first:
        label = visible(block.label)[: max(0, room - 12)]
        label = f" {label} " if label else ""
        rule = "─" * max(0, room - 4 - cell_width(label) - len(COPY) - 2)
        top: list[Span] = [("┌─", ("frame",)), (label, ("label",)), (rule, ("frame",)), (f" {COPY} ", ("label",))]
        drawn.append(chrome(palette, [*lead, *top, ("─┐", ("frame",))]))
        lead = follow
    left: list[Span] = [*follow, ("│ ", ("frame",))]
    for source in highlight([text.expandtabs(4) for text in block.lines], block.label):
        rows = _chop(source, inner)
        for index, row in enumerate(rows):
            used = sum(cell_width(text) for text, _ in row)
            drawn_line = line(palette, left, row, ("block",), "" if index < len(rows) - 1 else "\n")
            right: list[Span] = [(" " * (inner - used), ("block",)), (" │", ("frame",))]
            drawn.append(drawn_line._replace(strip=Strip.join([drawn_line.strip, palette.strip(right)])))
    if block.last:
        drawn.append(chrome(palette, [*follow, ("└" + "─" * max(0, room - 2) + "┘", ("frame",))]))
    return drawn


def _chop(content: Sequence[Span], width: int) -> list[list[Span]]:
    """Rows of exactly as many cells as fit: code is broken anywhere, and keeps its spaces."""
    rows: list[list[Span]] = [[]]
    used = 0
    for text, names in content:
        size = cell_width(text)
        while used + size > width:
            head = (chop_cells(text, max(1, width - used)) or [""])[0]
            if used and cell_width(head) > width - used:
                head = ""
            elif not head or head == text:
                break
            if head:
                rows[-1].append((head, names))
            rows.append([])
            text = text[len(head) :]
            used, size = 0, cell_width(text)
        if text:
            rows[-1].append((text, names))
            used += size
    return rows


def _table(block: Block, room: int, palette: Palette, lead: list[Span], follow: list[Span], base: Names) -> list[Line]:
    assert block.table is not None
    widths = block.table.columns(room)
    drawn: list[Line] = []
    if block.first:
        drawn += _table_row(block, cells(block.table.header), widths, palette, lead, (*base, "head"))
        rule = "─┼─".join("─" * width for width in widths)
        drawn.append(chrome(palette, [*follow, (rule, ("frame",))]))
    for source in block.lines:
        drawn += _table_row(block, cells(source), widths, palette, follow, base)
    return drawn


def _table_row(
    block: Block, row: list[str], widths: tuple[int, ...], palette: Palette, lead: list[Span], base: Names
) -> list[Line]:
    assert block.table is not None
    columns = [wrap(spans(row[i] if i < len(row) else ""), width) for i, width in enumerate(widths)]
    drawn = []
    for y in range(max(len(column) for column in columns)):
        content: list[Span] = []
        for i, (column, width) in enumerate(zip(columns, widths, strict=True)):
            if i:
                content.append((SEPARATOR, ("frame",)))
            cell = column[y][0] if y < len(column) else []
            spare = max(0, width - sum(cell_width(text) for text, _ in cell))
            align = block.table.aligns[i]
            before = spare if align == "right" else spare // 2 if align == "center" else 0
            content += [(" " * before, ()), *cell, (" " * (spare - before), ())]
        drawn.append(line(palette, lead, content, base))
    return drawn
