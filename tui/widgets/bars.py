"""The lines above and below: what the model is, what it does, where the window is. They never lay anything out anew."""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len
from rich.text import Text
from textual.app import RenderResult
from textual.widget import Widget

from tui.sanitize import one_line


class Bar(Widget):
    """One line of cells, of which the least important go first where it is narrow."""

    DEFAULT_CSS = """
    Bar { height: 1; width: 1fr; padding: 0 1; }
    """

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self._left: list[Text] = []
        self._right: list[Text] = []
        self._looks: list[tuple[str, str]] = []

    def show(self, left: Sequence[str | Text], right: Sequence[str | Text] = ()) -> None:
        """Show these cells, on each side the most important first; empty ones are left out."""
        new = [[cell if isinstance(cell, Text) else Text(cell) for cell in side if cell] for side in (left, right)]
        looks = [(cell.markup, str(cell.style)) for side in new for cell in side]
        if looks != self._looks:
            (self._left, self._right), self._looks = new, looks
            self.refresh()

    def render(self) -> RenderResult:
        """As many cells as there is room for."""
        width = self.content_size.width
        left, right = list(self._left), list(self._right)
        while left or right:
            line, end = Text("  ").join(left), Text("  ").join(right)
            gap = width - line.cell_len - end.cell_len
            if gap >= (2 if right else 0):
                return Text.assemble(line, " " * gap, end, no_wrap=True)
            # From the left cells all but the first go, then those on the right, then the first is cut.
            if len(left) > 1 and len(left) >= len(right):
                left.pop()
            elif right:
                right.pop()
            else:
                line.truncate(width, overflow="ellipsis")
                return line
        return Text("")


def gauge(share: float, width: int) -> Text:
    """A bar that is filled to a share from 0 to 1; read without colour too."""
    full = round(max(0.0, min(1.0, share)) * width)
    return Text("█" * full + "░" * (width - full))


def count(number: float) -> str:
    """A number of tokens in little room: 812, 2.7k, 32k."""
    if number < 1000:
        return f"{number:.0f}"
    return f"{number / 1000:.1f}k" if number < 10_000 else f"{number / 1000:.0f}k"


def size(nbytes: float) -> str:
    """Bytes in little room, in binary units: 512 MiB, 3.9 GiB."""
    return f"{nbytes / 2**20:.0f} MiB" if nbytes < 2**30 else f"{nbytes / 2**30:.1f} GiB"


def cut(text: str, width: int) -> str:
    """One line of at most so many cells."""
    line = one_line(text)
    if cell_len(line) <= width:
        return line
    shown = Text(line)
    shown.truncate(width, overflow="ellipsis")
    return shown.plain
