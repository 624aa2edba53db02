"""How sure the model was of each token of an answer, what it would have said otherwise, and a fork there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import ModalScreen
from textual.timer import Timer
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from tui.conversation import Turn
from tui.model import Alternative
from tui.sanitize import visible
from tui.widgets.tokens import TokenView

# Asks what might have come at an index; hands the alternatives over, or why there are none.
AskFor = Callable[[int, Callable[[list[Alternative]], None], Callable[[BaseException], None]], None]


@dataclass(frozen=True)
class Fork:
    """Where an answer is to go another way."""

    index: int
    alternative: Alternative


class TokensScreen(ModalScreen[Fork | None]):
    """The answer at the left, what might have come at the cursor at the right."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,p,q", "dismiss", "close"),
        Binding("enter", "alternatives", "alternatives"),
    ]

    def __init__(self, turn: Turn, ask_for: AskFor | None) -> None:
        """Args:
        ask_for: None where the model cannot be asked now.
        """
        super().__init__()
        self._turn, self._ask_for = turn, ask_for
        self._alternatives: list[Alternative] = []
        self._at = -1
        self._wait: Timer | None = None

    def compose(self) -> ComposeResult:
        """The tokens, a line on the one under the cursor, and the alternatives."""
        turn = self._turn
        said = turn.thinking + turn.text
        pieces = [turn.tokens.piece(i, said) for i in range(len(turn.tokens))]
        with Vertical(classes="panel") as panel:
            panel.border_title = "Tokens"
            panel.border_subtitle = "← → token   n next unsure   Enter then ↑ ↓ Enter: fork   Esc close"
            legend = "plain: 90 % and more   coloured: 50 %   underlined: 10 %   bold underlined: less"
            yield Static(Text(legend, "dim"), id="legend")
            with Horizontal():
                yield TokenView(pieces, turn.tokens.logprobs, id="tokens")
                with Vertical(id="side"):
                    yield Static("", id="token")
                    yield OptionList(id="alternatives", markup=False)

    def on_mount(self) -> None:
        """Begin at the first token."""
        self.query_one(TokenView).focus()
        self._show(0)

    def on_token_view_moved(self, event: TokenView.Moved) -> None:
        """Say what is under the cursor, and ask for the rest once it rests there."""
        self._show(event.index)

    def _show(self, index: int) -> None:
        tokens = self._turn.tokens
        if not len(tokens):
            return
        said = self._turn.thinking + self._turn.text
        probability = math.exp(tokens.logprobs[index])
        about = Text.assemble(
            (_shown(tokens.piece(index, said)), "bold"), f"\n{probability:.1%}\n",
            (f"token {index + 1} of {len(tokens)}, id {tokens.ids[index]}", "dim"),
        )  # fmt: skip
        self.query_one("#token", Static).update(about)
        self.query_one(OptionList).clear_options()
        self._alternatives, self._at = [], index
        if self._wait:
            self._wait.stop()
        if self._ask_for:
            self._wait = self.set_timer(0.2, self._ask)

    def _ask(self) -> None:
        index = self._at
        if self._ask_for:
            self._ask_for(index, lambda found: self._found(index, found), self._failed)

    def _found(self, index: int, alternatives: list[Alternative]) -> None:
        if index != self._at or not self.children:
            return
        self._alternatives = alternatives
        options = self.query_one(OptionList)
        options.clear_options()
        taken = self._turn.tokens.ids[index]
        for one in alternatives:
            mark = "● " if one.id == taken else "  "
            options.add_option(Option(Text(f"{mark}{one.probability:6.1%}  {_shown(one.text)}")))

    def _failed(self, error: BaseException) -> None:
        if self.children:
            self.query_one("#token", Static).update(Text(visible(str(error))))

    def action_alternatives(self) -> None:
        """Choose among the alternatives."""
        if self._alternatives:
            options = self.query_one(OptionList)
            options.focus()
            taken = self._turn.tokens.ids[self._at]
            others = [i for i, one in enumerate(self._alternatives) if one.id != taken]
            options.highlighted = others[0] if others else 0

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Go on from there with another token."""
        one = self._alternatives[event.option_index]
        if one.id != self._turn.tokens.ids[self._at]:
            self.dismiss(Fork(self._at, one))


def _shown(piece: str) -> str:
    """A token so that its blanks are seen."""
    return visible(piece).replace("\n", "⏎").replace(" ", "␣").replace("\t", "⇥") or "·"
