"""A Markdown table whose rows come one after another: its cells, and how wide its columns are."""

from __future__ import annotations

import re
from typing import Literal

from tui.markdown.inline import cell_width, spans

Align = Literal["left", "center", "right"]

SEPARATOR = " │ "
_DELIMITER = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$")
_PIPE = re.compile(r"(?<!\\)\|")
_PLAIN = re.compile(r"[^*_`~\[<&\\!:]*$")


def is_delimiter(line: str) -> bool:
    """Whether this is the line under a table's head."""
    return _DELIMITER.match(line) is not None


def cells(line: str) -> list[str]:
    """The cells of a row, without the pipes around them."""
    parts = _PIPE.split(line.strip().removeprefix("|"))
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()
    return [part.strip().replace("\\|", "|") for part in parts]


class Table:
    """What the rows of a table share. Columns only ever grow while rows come."""

    def __init__(self, header: str, delimiter: str) -> None:
        self.header = header
        self.aligns: list[Align] = []
        for mark in cells(delimiter):
            right, left = mark.endswith(":"), mark.startswith(":")
            self.aligns.append("center" if left and right else "right" if right else "left")
        self._natural = [1] * len(self.aligns)
        self._columns: tuple[int, tuple[int, ...]] | None = None
        self.measure(header)

    def measure(self, line: str) -> None:
        """Let the columns grow to what a row's cells need."""
        for index, cell in enumerate(cells(line)[: len(self._natural)]):
            width = cell_width(cell) if _PLAIN.match(cell) else sum(cell_width(text) for text, _ in spans(cell))
            if width > self._natural[index]:
                self._natural[index] = width
                self._columns = None

    def columns(self, width: int) -> tuple[int, ...]:
        """How many cells wide each column is in a table that may take `width`; the widest give way first."""
        if self._columns is None or self._columns[0] != width:
            room = width - len(SEPARATOR) * (len(self._natural) - 1)
            most = max(self._natural)
            if sum(self._natural) > room:
                low, high = 1, most
                while low < high:
                    middle = (low + high + 1) // 2
                    if sum(min(n, middle) for n in self._natural) <= room:
                        low = middle
                    else:
                        high = middle - 1
                most = low
            fitted = [min(n, most) for n in self._natural]
            spare = max(0, room - sum(fitted))
            for index, natural in enumerate(self._natural):
                more = min(spare, natural - fitted[index])
                fitted[index] += more
                spare -= more
            self._columns = (width, tuple(fitted))
        return self._columns[1]
