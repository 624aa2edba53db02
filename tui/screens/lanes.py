"""Several answers to the same question, written together, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen

from tui.conversation import Turn
from tui.widgets.transcript import Entry, Transcript


class LanesScreen(ModalScreen[int | None]):
    """A column for each; gives the turn that the conversation goes on with. The others stay beside it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "stop, then close"),
        Binding("enter", "keep", "go on with this one", priority=True),
        *(Binding(str(i + 1), f"choose({i})", f"choose {i + 1}", show=False) for i in range(4)),
        Binding("left,h", "step(-1)", "left", show=False),
        Binding("right,l", "step(1)", "right", show=False),
    ]

    def __init__(self, turns: Sequence[Turn], ways: Sequence[Mapping[str, Any]]) -> None:
        """Args:
        turns: the answers, empty yet.
        ways: how each is sampled, as far as they differ.
        """
        super().__init__()
        self._turns, self._ways = list(turns), ways
        self._ends: Sequence[Entry] = ()
        self._drawn = False

    def compose(self) -> ComposeResult:
        """The columns."""
        with Vertical(classes="panel") as panel:
            panel.border_title = "Compare"
            panel.border_subtitle = "← → choose   Enter go on with it   Esc stop"
            with Horizontal(id="lanes"):
                for i, way in enumerate(self._ways):
                    with Vertical(classes="lane") as lane:
                        lane.border_title = f"{i + 1}  " + "  ".join(f"{name} {value}" for name, value in way.items())
                        yield Transcript(id=f"lane-{i}")

    def on_mount(self) -> None:
        """What was said already, if anything."""
        self._drawn = True
        for i, turn in enumerate(self._turns):
            self._lane(i).begin(Entry(turn.id, "assistant", "", turn.text, turn.thinking))
        self._lane(0).focus()
        if self._ends:
            self.end(self._ends)

    def _lane(self, index: int) -> Transcript:
        return self.query_one(f"#lane-{index}", Transcript)

    def feed(self, lane: int, text: str, thinking: str) -> None:
        """More of an answer has come."""
        if self._drawn and self.children:
            self._lane(lane).feed(text, thinking)

    def end(self, entries: Sequence[Entry]) -> None:
        """All are written."""
        self._ends = entries
        if not (self._drawn and self.children):
            return
        for i, entry in enumerate(entries):
            self._lane(i).end(entry)
        self.query_one(".panel").border_subtitle = "← → choose   Enter go on with it   Esc close"

    @property
    def _chosen(self) -> int:
        return next((i for i in range(len(self._turns)) if self._lane(i).has_focus), 0)

    def action_step(self, by: int) -> None:
        """To the lane beside."""
        self._lane((self._chosen + by) % len(self._turns)).focus()

    def action_choose(self, index: int) -> None:
        """By its number."""
        if index < len(self._turns):
            self._lane(index).focus()

    def action_keep(self) -> None:
        """Go on with this one; if it is still written it is stopped."""
        if not self._ends:
            self.app.session.stop()  # type: ignore[attr-defined]
        self.dismiss(self._turns[self._chosen].id)

    def action_leave(self) -> None:
        """Stop; once nothing is written, close."""
        if not self._ends:
            self.app.session.stop()  # type: ignore[attr-defined]
        else:
            self.dismiss(self._turns[0].id)
