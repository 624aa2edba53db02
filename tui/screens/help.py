"""All keys and commands, and which of them do something now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from rich.table import Table
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from tui.commands import help_rows


class HelpScreen(ModalScreen[None]):
    """The table of keys, with what was said at its head: what is active where the keyboard was."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,f1,question_mark,q", "dismiss", "close")]

    def __init__(self, active: str, where: str) -> None:
        """Args:
        active: one line on what goes on.
        where: the part of the table whose keys work now, beside those that work anywhere.
        """
        super().__init__()
        self._active, self._where = active, where

    def compose(self) -> ComposeResult:
        """A filter and the table."""
        with VerticalScroll(classes="panel") as panel:
            panel.border_title = "Help"
            panel.border_subtitle = "type to filter   Esc close"
            yield Static(Text(self._active), id="active")
            yield Input(placeholder="filter", id="filter", compact=True)
            yield Static(id="rows")

    def on_mount(self) -> None:
        """Everything is shown at first."""
        self._show("")
        self.query_one(Input).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Only what has these letters."""
        self._show(event.value)

    def _show(self, wanted: str) -> None:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=self.app.size.width >= 80)
        table.add_column()
        heading = ""
        for where, keys, what in self._rows(wanted.lower()):
            if where != heading:
                after = "" if where in ("Anywhere", self._where) else "  after Tab"
                title = Text.assemble("\n" if heading else "", (where, "bold underline"), (after, "dim"))
                table.add_row(title, "")
                heading = where
            works = where in ("Anywhere", self._where)
            table.add_row(Text(keys, "bold" if works else "dim"), Text(what, "" if works else "dim"))
        self.query_one("#rows", Static).update(table if heading else Text("Nothing is called so."))

    def _rows(self, wanted: str) -> Iterator[tuple[str, str, str]]:
        rows = [row for row in help_rows() if wanted in " ".join(row).lower()]
        order = ["Message", "Conversation"]
        order.insert(order.index(self._where) + 1, "Anywhere")
        yield from sorted(rows, key=lambda row: order.index(row[0]))
