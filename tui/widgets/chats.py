"""The list of conversations."""

from __future__ import annotations

import time
from datetime import datetime
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from mistral_mlx.errors import MistralError
from tui.store import Store, Summary
from tui.widgets.bars import cut

# Rows that are laid out at a time: more come when the cursor nears the end.
PAGE = 200


class Chats(OptionList):
    """The conversations, the pinned ones first, then by when something was said in them."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d,delete", "ask('delete')", "delete", show=False),
        Binding("p", "ask('pin')", "pin", show=False),
        Binding("u", "ask('undo')", "undo", show=False),
        Binding("j", "cursor_down", "down", show=False),
        Binding("k", "cursor_up", "up", show=False),
        Binding("slash", "ask('search')", "search", show=False),
    ]

    class Chosen(Message):
        """A conversation is to be shown."""

        def __init__(self, id: str) -> None:
            super().__init__()
            self.id = id

    class Asked(Message):
        """Something is to be done with a conversation: delete, pin, undo, search."""

        def __init__(self, what: str, id: str | None) -> None:
            super().__init__()
            self.what, self.id = what, id

    class Failed(Message):
        """The list cannot be read now."""

        def __init__(self, error: MistralError) -> None:
            super().__init__()
            self.error = error

    def __init__(self, store: Store, id: str | None = None) -> None:
        super().__init__(id=id, markup=False)
        self._store = store
        self._rows: list[Summary] = []
        self._current = ""

    def show(self, current: str) -> None:
        """List what there is now, with the current one marked."""
        at = self.highlighted
        self._current = current
        self._rows = self._listed(max(PAGE, len(self._rows)))
        self.clear_options()
        self.add_options([Option(self._line(row)) for row in self._rows])
        index = next((i for i, row in enumerate(self._rows) if row.id == current), None)
        if self.has_focus and at is not None and self._rows:
            self.highlighted = min(at, len(self._rows) - 1)
        else:
            self.highlighted = index

    def _listed(self, limit: int, offset: int = 0) -> list[Summary]:
        try:
            return self._store.listing(limit, offset)
        except MistralError as error:
            self.post_message(self.Failed(error))
            return []

    def _line(self, row: Summary) -> Text:
        mark = "●" if row.id == self._current else "▸" if row.pinned else " "
        ago = age(row.updated)
        room = max(8, self.scrollable_content_region.width - len(ago) - 4)
        title = cut(row.title or ("Untitled" if row.turns else "Draft"), room)
        line = Text.assemble(f"{mark} ", (title, "bold" if row.id == self._current else ""))
        line.pad_right(max(1, room + 3 - line.cell_len))
        return Text.assemble(line, (ago, "dim"), no_wrap=True)

    def on_resize(self) -> None:
        """Titles are cut to the width."""
        if self._rows:
            self.show(self._current)

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        """More rows before the last is reached."""
        if event.option_index >= len(self._rows) - 5 and len(self._rows) >= PAGE:
            more = self._listed(PAGE, len(self._rows))
            self._rows += more
            self.add_options([Option(self._line(row)) for row in more])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Show it."""
        event.stop()
        self.post_message(self.Chosen(self._rows[event.option_index].id))

    def action_ask(self, what: str) -> None:
        """Have something done with the one under the cursor."""
        row = None if self.highlighted is None or not self._rows else self._rows[self.highlighted]
        self.post_message(self.Asked(what, row.id if row else None))


def age(then: float) -> str:
    """How long ago, in little room."""
    seconds = time.time() - then
    if seconds < 3600:
        return f"{max(0, int(seconds // 60))}m"
    if seconds < 86_400:
        return f"{int(seconds // 3600)}h"
    if seconds < 7 * 86_400:
        return f"{int(seconds // 86_400)}d"
    when = datetime.fromtimestamp(then)
    return f"{when:%d %b}" if seconds < 300 * 86_400 else f"{when:%b %Y}"
