"""An answer token by token, each as sure as the model was of it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

from tui.sanitize import visible

# From which probability on a token is drawn so; sure ones are plain.
LEVELS = ((0.9, "sure"), (0.5, "likely"), (0.1, "unsure"), (0.0, "guess"))


class TokenView(ScrollView, can_focus=True):
    """The tokens in lines, one of them under the cursor.

    Attributes:
        cursor: its index.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {
        "tokens--sure",
        "tokens--likely",
        "tokens--unsure",
        "tokens--guess",
        "tokens--cursor",
    }
    DEFAULT_CSS = """
    TokenView { height: 1fr; }
    TokenView .tokens--likely { color: $warning; text-style: none; }
    TokenView .tokens--unsure { color: $warning; text-style: underline; }
    TokenView .tokens--guess { color: $error; text-style: bold underline; }
    TokenView .tokens--cursor { text-style: reverse; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,h", "move(-1)", "back", show=False),
        Binding("right,l", "move(1)", "on", show=False),
        Binding("up,k", "line(-1)", "up", show=False),
        Binding("down,j", "line(1)", "down", show=False),
        Binding("home,g", "move(-1000000)", "first", show=False),
        Binding("end,G", "move(1000000)", "last", show=False),
        Binding("n", "next_unsure", "next unsure", show=False),
    ]

    cursor: reactive[int] = reactive(0)

    class Moved(Message):
        """The cursor is on another token."""

        def __init__(self, index: int) -> None:
            super().__init__()
            self.index = index

    def __init__(self, pieces: Sequence[str], logprobs: Sequence[float], id: str | None = None) -> None:
        """Args:
        pieces: the text that each token brought; some bring none.
        logprobs: how likely each was.
        """
        super().__init__(id=id)
        self._pieces = [visible(piece) for piece in pieces]
        self._logprobs = logprobs
        self._lines: list[list[tuple[int, str]]] = []
        self._first: list[int] = []  # the first token of each line

    def on_mount(self) -> None:
        """Lay out for the width there is."""
        self._lay_out()

    def on_resize(self, event: events.Resize) -> None:
        """Lay out anew."""
        self._lay_out()

    def _lay_out(self) -> None:
        width = max(8, self.scrollable_content_region.width)
        lines: list[list[tuple[int, str]]] = [[]]
        used = 0
        for index, piece in enumerate(self._pieces):
            parts = (piece or "·").split("\n")
            for i, part in enumerate(parts):
                shown = part + ("⏎" if i < len(parts) - 1 else "")
                if used and used + cell_len(shown) > width:
                    lines.append([])
                    used = 0
                for start in range(0, max(len(shown), 1), width):  # a token that is wider than a line
                    lines[-1].append((index, shown[start : start + width]))
                used += cell_len(shown)
                if i < len(parts) - 1:
                    lines.append([])
                    used = 0
        self._lines = lines
        self._first = [next((index for index, _ in line), len(self._pieces)) for line in lines]
        for i in range(len(lines) - 2, -1, -1):
            self._first[i] = min(self._first[i], self._first[i + 1])
        self.virtual_size = Size(width, len(lines))
        self.refresh()

    def render_line(self, y: int) -> Strip:
        """One line of tokens."""
        at = y + self.scroll_offset.y
        if at >= len(self._lines):
            return Strip.blank(self.size.width, self.rich_style)
        segments = []
        for index, text in self._lines[at]:
            style = self.get_component_rich_style(f"tokens--{level(self._logprobs[index])}", partial=True)
            if index == self.cursor:
                style += self.get_component_rich_style("tokens--cursor", partial=True)
            segments.append(Segment(text, style + Style(meta={"token": index})))
        return Strip(segments).extend_cell_length(self.size.width).apply_style(self.rich_style)

    def validate_cursor(self, cursor: int) -> int:
        """There is a token there."""
        return max(0, min(len(self._pieces) - 1, cursor))

    def watch_cursor(self, cursor: int) -> None:
        """Keep it in sight, and tell."""
        if self._first:
            line = self._line_of(cursor)
            if not self.scroll_offset.y <= line < self.scroll_offset.y + self.size.height:
                self.scroll_to(y=max(0, line - self.size.height // 2), animate=False)
        self.refresh()
        self.post_message(self.Moved(cursor))

    def _line_of(self, index: int) -> int:
        return max(0, bisect_right(self._first, index) - 1)

    def action_move(self, by: int) -> None:
        """By tokens."""
        self.cursor += by

    def action_line(self, by: int) -> None:
        """By lines, to about the same place."""
        line = self._line_of(self.cursor)
        to = max(0, min(len(self._lines) - 1, line + by))
        tokens = [index for index, _ in self._lines[to]]
        if tokens:
            self.cursor = tokens[min(len(tokens) - 1, self.cursor - self._first[line])]

    def action_next_unsure(self) -> None:
        """To the next token that the model was not sure of."""
        for index in range(self.cursor + 1, len(self._pieces)):
            if math.exp(self._logprobs[index]) < 0.5:
                self.cursor = index
                return

    def on_click(self, event: events.Click) -> None:
        """To the token that was clicked."""
        index = event.style.meta.get("token")
        if index is not None:
            self.cursor = index


def level(logprob: float) -> str:
    """How sure the model was, in a word."""
    probability = math.exp(min(0.0, logprob))
    return next(name for least, name in LEVELS if probability >= least)
