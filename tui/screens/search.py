"""Search everything that was ever said."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from mistral_mlx.errors import MistralError
from tui.sanitize import visible
from tui.store import Hit, Store
from tui.widgets.bars import cut
from tui.widgets.chats import age
from tui.words import MARKS

_MOST = 100
_WHO = {"user": "you", "assistant": "the assistant", "tool": "a tool", None: "its title"}


class SearchScreen(ModalScreen[Hit | None]):
    """An input and what was found; gives the place that was chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "close"),
        Binding("down", "list('down')", "down", show=False),
        Binding("up", "list('up')", "up", show=False),
    ]

    def __init__(self, store: Store, words: str = "") -> None:
        super().__init__()
        self._store = store
        self._words = words
        self._hits: list[Hit] = []

    def compose(self) -> ComposeResult:
        """The input above its results."""
        with Vertical(classes="panel") as panel:
            panel.border_title = "Search all conversations"
            panel.border_subtitle = "Enter open   ↑ ↓ choose   Esc close"
            yield Input(self._words, placeholder="words; the last may be a beginning", id="words", compact=True)
            yield Static("", id="found")
            yield OptionList(id="hits", markup=False)

    def on_mount(self) -> None:
        """What was asked for already is searched."""
        self.query_one("#hits").can_focus = False
        self.query_one(Input).focus()
        self._search(self._words)

    def on_input_changed(self, event: Input.Changed) -> None:
        """While it is typed."""
        self._search(event.value)

    def _search(self, words: str) -> None:
        hits, found = self.query_one(OptionList), self.query_one("#found", Static)
        try:
            self._hits = self._store.search(words, _MOST) if words.strip() else []
        except MistralError as error:
            self._hits = []
            found.update(Text(str(error)))
            return
        hits.clear_options()
        hits.add_options([Option(_line(hit, self.size.width), id=str(i)) for i, hit in enumerate(self._hits)])
        if self._hits:
            hits.highlighted = 0
            more = f"the newest {_MOST}" if len(self._hits) == _MOST else str(len(self._hits))
            found.update(Text(f"{more} found", "dim"))
        else:
            found.update(Text("Nothing was found." if words.strip() else "", "dim"))

    def action_list(self, way: str) -> None:
        """Choose without leaving the input."""
        hits = self.query_one(OptionList)
        hits.action_cursor_down() if way == "down" else hits.action_cursor_up()

    def on_input_submitted(self) -> None:
        """Open what is chosen."""
        chosen = self.query_one(OptionList).highlighted
        if chosen is not None:
            self.dismiss(self._hits[chosen])

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Open what was clicked."""
        self.dismiss(self._hits[event.option_index])


def _line(hit: Hit, width: int) -> Text:
    """Title, then the place with what was found in bold."""
    line = Text(cut(hit.title or "Untitled", max(16, width - 32)), "bold")
    line.append(f"  {_WHO[hit.role]}, {age(hit.created)}\n  ", "dim")
    before, after = MARKS
    for part in hit.snippet.split(before):
        found, marked, rest = part.partition(after)
        line.append(_blank(found), "bold reverse" if marked else "")
        line.append(_blank(rest))
    return line


def _blank(text: str) -> str:
    """Safe, on one line, with its blanks where it is cut."""
    return visible(text, keep="").replace("␊", " ")
