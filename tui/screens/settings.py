"""System prompt, sampling and colours: of this conversation, and of those to come."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label, Select, Static, TextArea

from mistral_mlx.errors import InputError
from tui.session import CONTEXT

_LEAST_CONTEXT = 256
_ESCAPED = {"n": "\n", "t": "\t", "\\": "\\"}
_ESCAPE = re.compile(r"\\([nt\\])")
# The sampling options that have a field here; every other one is set by /set.
FIELDS = {
    "temperature": "0 takes the likeliest token each time",
    "top_p": "the likeliest tokens that together reach this",
    "top_k": "that many of the likeliest tokens",
    "min_p": "drops tokens less than that times as likely as the best",
    "repetition_penalty": "1 for none",
    "max_tokens": "the most tokens of an answer",
    "context": "the most tokens of it all; older turns are left out",
    "seed": "the same seed, the same answer; empty: drawn anew",
}


def read_option(name: str, text: str) -> Any:
    """A sampling option as it was typed; None for an empty one.

    Raises:
        InputError: there is no such option, or it cannot be that.
    """
    from mistral_mlx import SamplingParams

    text = text.strip()
    names = [CONTEXT, *SamplingParams.names()]
    if name not in names:
        raise InputError(f"There is no option {name}.", f"Options: {', '.join(names)}.")
    if not text or text.lower() == "none":
        return None
    if name == CONTEXT:
        if not text.isdigit() or int(text) < _LEAST_CONTEXT:
            raise InputError(f"context is {text!r}.", f"It must be a whole number from {_LEAST_CONTEXT}.")
        return int(text)
    value: Any = text
    for kind in (int, float):
        try:
            value = kind(text)
            break
        except ValueError:
            continue
    if name == "stop":
        value = [_ESCAPE.sub(lambda match: _ESCAPED[match[1]], text)]
    SamplingParams.of({name: value})
    return value


@dataclass(frozen=True)
class Chosen:
    """What was set.

    Attributes:
        changed: the options that are other than they were; None for one that was emptied.
        theme: None where it is what it was.
        lasting: for the conversations to come too.
    """

    system: str
    changed: dict[str, Any]
    theme: str | None
    lasting: bool


class SettingsScreen(ModalScreen[Chosen | None]):
    """A form; what cannot be is told beside it while it is typed."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "close"), Binding("ctrl+s", "keep", "keep")]

    def __init__(self, system: str, options: Mapping[str, Any], theme: str, themes: list[str]) -> None:
        super().__init__()
        self._system, self._options = system, dict(options)
        self._theme, self._themes = theme, themes

    def compose(self) -> ComposeResult:
        """The form."""
        with VerticalScroll(classes="panel") as panel:
            panel.border_title = "Settings"
            panel.border_subtitle = "Tab next   ^S keep   Esc leave as it was"
            yield Label("System prompt")
            yield TextArea(self._system, id="system", compact=True, show_line_numbers=False)
            for name, what in FIELDS.items():
                value = self._options.get(name)
                with Horizontal(classes="field"):
                    yield Label(name, classes="name")
                    yield Input("" if value is None else str(value), id=name, compact=True)
                    yield Label(what, classes="what")
            with Horizontal(classes="field"):
                yield Label("theme", classes="name")
                names = [(name, name) for name in self._themes]
                yield Select(names, value=self._theme, allow_blank=False, id="theme", compact=True)
            yield Static("", id="fault")
            with Horizontal(id="buttons"):
                yield Button("For this conversation", id="here", variant="primary", compact=True)
                yield Button("And for new ones", id="lasting", compact=True)
                yield Button("Leave", id="leave", compact=True)

    def on_mount(self) -> None:
        """The first field that is changed most."""
        self.query_one("#temperature").focus()

    def on_select_changed(self, event: Select.Changed) -> None:
        """The colours are seen at once."""
        self.app.theme = str(event.value)

    def on_input_changed(self) -> None:
        """Say what cannot be."""
        self._read()

    def _read(self) -> dict[str, Any] | None:
        fault = self.query_one("#fault", Static)
        options = {}
        for name in FIELDS:
            try:
                options[name] = read_option(name, self.query_one(f"#{name}", Input).value)
            except InputError as error:
                fault.update(Text(str(error), "bold"))
                return None
        fault.update("")
        return {name: value for name, value in options.items() if value != self._options.get(name)}

    def action_keep(self) -> None:
        """For this conversation."""
        self._keep(lasting=False)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        """Keep or leave."""
        if event.button.id == "leave":
            self.action_dismiss_unchanged()
        else:
            self._keep(lasting=event.button.id == "lasting")

    def _keep(self, *, lasting: bool) -> None:
        changed = self._read()
        if changed is not None:
            value = str(self.query_one("#theme", Select).value)
            theme = value if value != self._theme else None
            self.dismiss(Chosen(self.query_one("#system", TextArea).text, changed, theme, lasting))

    def action_dismiss_unchanged(self) -> None:
        """As it was, the colours too."""
        self.app.theme = self._theme
        self.dismiss(None)

    async def action_dismiss(self, result: Chosen | None = None) -> None:
        """Esc."""
        self.action_dismiss_unchanged()
