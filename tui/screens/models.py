"""Which model to talk to: what is here, what can be fetched, and what this machine has room for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

from rich.cells import cell_len
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, Static
from textual.widgets.option_list import Option

from mistral_mlx.worker import Job
from tui.catalogue import ModelEntry
from tui.engine import Engine
from tui.sanitize import one_line, visible
from tui.widgets.bars import cut, gauge, size

WELCOME = (
    "Welcome. The demo is here already: small, for trying things out. "
    "Mistral 7B is what this is for: fetch it once, 4 GB."
)


class ModelsScreen(ModalScreen[str | None]):
    """A list of models; gives the name of the one that is to be loaded.

    A download goes on while the screen is open, can be stopped, and goes on where it stopped another time.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "close"),
        Binding("x", "stop_fetching", "stop the download"),
    ]

    def __init__(self, engine: Engine, current: str = "", said: str = "") -> None:
        """Args:
        current: the name of the one that is loaded.
        said: why one has to be chosen.
        """
        super().__init__()
        self._engine, self._current, self._said = engine, current, said
        self._rows: list[ModelEntry] = []
        self._fetching: tuple[str, Job] | None = None

    def compose(self) -> ComposeResult:
        """What it is about, the list, a line on what goes on, and a name that is not in the list."""
        with Vertical(classes="panel") as panel:
            panel.border_title = "Choose a model" if self._said else "Models"
            panel.border_subtitle = "Enter load or fetch   Esc close"
            if self._said:
                yield Static(Text(visible(self._said)), id="welcome")
            yield OptionList(id="models", markup=False)
            yield Static("Looking what is here…", id="state")
            yield Input(placeholder="another: owner/name on the hub, a folder, a .gguf file", id="name", compact=True)

    def on_mount(self) -> None:
        """Look what there is."""
        self.query_one(OptionList).focus()
        self._look()

    def _look(self, said: str = "") -> None:
        """Look what there is, and leave standing what was said."""
        self._engine.models(on_models=partial(self._list, said), on_error=self._failed)

    def _list(self, said: str, rows: Sequence[ModelEntry]) -> None:
        if not self.children:  # closed meanwhile
            return
        options = self.query_one(OptionList)
        at = options.highlighted or 0
        self._rows = list(rows)
        options.clear_options()
        options.add_options([Option(self._line(row)) for row in self._rows])
        if self._rows:
            options.highlighted = min(at, len(self._rows) - 1)
        if not self._fetching:
            self._say(said if self._rows else "No model is here, and none can be asked for without a network.")

    def _line(self, row: ModelEntry) -> Text:
        """A row in columns as wide as their widest, but the name gives way."""
        short = max(len(other.alias or "") for other in self._rows)
        longest = max(cell_len(_about(other)) for other in self._rows)
        room = min(100, int(self.app.size.width * 0.9) - 8) - short - longest - 6
        wide = min(max(cell_len(one_line(other.name)) for other in self._rows), max(16, room))
        name = Text(cut(row.name, wide), "bold" if row.complete else "")
        name.pad_right(wide - name.cell_len)
        mark = "● " if row.name == self._current else "  "
        return Text.assemble(mark, (row.alias or "").ljust(short + 1), name, "  ", (_about(row), "dim"), no_wrap=True)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Load it; fetch it first if it is not here."""
        row = self._rows[event.option_index]
        if row.complete:
            self.action_stop_fetching()
            self.dismiss(row.name)
        else:
            self._fetch(row.alias or row.name)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """A name that is not in the list: what it stands for is found out by loading it."""
        if event.value.strip():
            self.action_stop_fetching()
            self.dismiss(event.value.strip())

    def _fetch(self, name: str) -> None:
        if self._fetching:
            self._say(f"{self._fetching[0]} is being fetched. x stops that.")
            return
        self._say(f"Asking for {name}…")
        job = self._engine.fetch(
            name, on_progress=self._progress, on_done=self._fetched, on_error=self._failed, on_cancelled=self._stopped
        )
        self._fetching = (name, job)

    def _progress(self, done: int, total: int) -> None:
        if self._fetching and self.children and total:
            bar = gauge(done / total, 20)
            name = self._fetching[0]
            self._say(Text.assemble(f"{name}  ", bar, f"  {size(done)} of {size(total)}  {done / total:.0%}   x stops"))

    def _fetched(self, _: object) -> None:
        name = self._fetching[0] if self._fetching else ""
        self._over(f"{name} is here. Enter loads it.")

    def _stopped(self) -> None:
        self._over("Stopped. Enter goes on where it was.")

    def _over(self, said: str) -> None:
        """Nothing is fetched any more, and there may be more to load."""
        self._fetching = None
        if self.children:
            self._say(said)
            self._look(said)

    def _failed(self, error: BaseException) -> None:
        self._fetching = None
        if self.children:
            self._say(visible(str(error)))

    def _say(self, text: str | Text) -> None:
        self.query_one("#state", Static).update(text if isinstance(text, Text) else Text(text))

    def action_stop_fetching(self) -> None:
        """What was fetched stays."""
        if self._fetching:
            self._fetching[1].cancel()
            self._say("Stopping…")

    def action_leave(self) -> None:
        """Close; a download is stopped, and goes on another time."""
        self.action_stop_fetching()
        self.dismiss(None)


def _about(row: ModelEntry) -> str:
    """What is known of a model, in few words."""
    if row.complete:
        state = size(row.nbytes)
    else:
        state = f"{'goes on' if row.nbytes else 'fetch'}{f', {size(row.download)}' if row.download else ''}"
    fits = {True: "fits", False: "too large", None: ""}[row.fits]
    return "  ".join(part for part in (row.stored_as, state, one_line(row.problem) or fits) if part)
