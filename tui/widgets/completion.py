"""What can be completed while a prompt is written: which candidates fit, and the list of them above the composer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from rich.cells import cell_len
from textual.content import Content
from textual.geometry import Offset, Region
from textual.widgets import OptionList
from textual.widgets.option_list import Option

MOST_SHOWN = 50
_MOST_ROWS = 8


class Completion(NamedTuple):
    """A candidate: what is matched and shown, a word about it, and what it puts into the prompt."""

    label: str
    note: str
    insert: str


def matching(query: str, candidates: Iterable[Completion]) -> list[Completion]:
    """Those that fit, the best first: by the start of their last name, by any part, by letters in their order.

    Textual's own fuzzy search tries every way in which the letters may lie, far too slow for thousands of paths.
    """
    query = query.lower()
    ranked = []
    for place, candidate in enumerate(candidates):
        label = candidate.label.lower()
        name = label[label.rfind("/") + 1 :]
        if name.startswith(query):
            rank = 0
        elif query in name:
            rank = 1
        elif query in label:
            rank = 2
        elif _in_order(query, label):
            rank = 3
        else:
            continue
        ranked.append((rank, place, candidate))
    return [candidate for _, _, candidate in sorted(ranked)[:MOST_SHOWN]]


def _in_order(query: str, label: str) -> bool:
    letters = iter(label)
    return all(letter in letters for letter in query)


class CompletionList(OptionList, can_focus=False):
    """The candidates, over whatever is above the composer, which keeps the keyboard."""

    DEFAULT_CSS = """
    CompletionList {
        display: none;
        overlay: screen;
        constrain: inside inside;
        border: round $primary;
        border-title-color: $text-muted;
        padding: 0;
        background: $surface;
        text-wrap: nowrap;
        text-overflow: ellipsis;
        scrollbar-size-vertical: 1;
        scrollbar-background: $surface;
        & > .option-list--option-highlighted {
            background: $primary 30%;
            text-style: bold;
        }
        &:ansi > .option-list--option-highlighted, &:nocolor > .option-list--option-highlighted {
            background: transparent;
            text-style: bold underline; /* OptionList drops "reverse" */
        }
    }
    """

    def __init__(self, accept: Callable[[], None]) -> None:
        super().__init__()
        self._accept = accept
        self._items: Sequence[Completion] = ()

    @property
    def chosen(self) -> Completion | None:
        """The highlighted candidate while the list is open."""
        if not self.display or self.highlighted is None:
            return None
        return self._items[self.highlighted]

    def show(self, items: Sequence[Completion], title: str, composer: Region) -> None:
        """Open above the region with these candidates, the first chosen, or close if there are none."""
        self._items = items
        self.display = bool(items)
        if not items:
            return
        self.border_title = Content(title)
        # Notes in a column of their own, or at the right edge where the labels need the room.
        width = composer.width if composer.width < 90 else 76
        longest = min(max(cell_len(item.label) for item in items), width - 14)
        self.clear_options()
        self.add_options([Option(_row(item, longest)) for item in items])
        self.highlighted = 0
        self.styles.width = width
        self.place(composer)

    def place(self, composer: Region) -> None:
        """Stay on top of the composer, which has moved or grown."""
        rows = min(len(self._items), _MOST_ROWS, max(1, composer.y - 2))
        self.styles.height = rows + 2
        self.absolute_offset = Offset(composer.x, composer.y - rows - 2)

    def close(self) -> None:
        """Take the list away."""
        self.display = False

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """A click takes the candidate."""
        event.stop()
        self.highlighted = event.option_index
        self._accept()


def _row(item: Completion, longest: int) -> Content:
    label = item.label
    if item.note and cell_len(label) > longest:  # the end of a path tells more than its start
        label = "…" + label[1 - longest :]
    return Content.assemble(f" {label}", (f"{' ' * (longest - cell_len(label))}  {item.note} ", "dim"))
