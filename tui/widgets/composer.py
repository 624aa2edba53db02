"""Where the prompt is written: many lines, pastes folded to chips, files by `@`, commands by `/`, earlier prompts."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import ClassVar, NamedTuple

from rich.text import Text
from textual import events, on, work
from textual.actions import SkipAction
from textual.app import SuspendNotSupported
from textual.binding import Binding, BindingType
from textual.document._document import EditResult, Location
from textual.document._edit import Edit
from textual.geometry import Size
from textual.message import Message
from textual.timer import Timer
from textual.widgets import TextArea

from mistral_mlx.errors import InputError
from tui.attachments import Attached, Expanded, expand, list_files, mention
from tui.sanitize import BIDI, one_line, visible
from tui.widgets.completion import Completion, CompletionList, matching

_LONGEST_PASTE = 2_000  # bytes of a paste that is shown as it is
_MOST_LINES = 20
_LONGEST_SHOWN = 50_000  # characters of a draft; beyond, every key would be slow
_MOST_ROWS = 10
_SMALL_SCREEN = 20  # rows; below, the composer keeps to one
_DOUBLE = 0.6  # seconds between two presses of Esc that mean one thing
_SETTLE = 0.25  # seconds without a key after which a draft is worth counting
_FILES_KEPT = 5.0  # seconds

_CHIP = re.compile(r"\[paste \d+ · [\d,]+ (?:lines|characters)\]")
_COMMAND = re.compile(r"/\S*")
_MENTION = re.compile(r"""(?<![^\s(\[{"'])@(?:"(?P<quoted>[^"]*)|(?P<plain>[^\s"@]*))$""")
_TURNS = re.compile("([" + "".join(map(chr, BIDI)) + "])")
# As wide as the marks themselves, so that the cursor stays where the text is.
_INVISIBLE = dict.fromkeys(BIDI, "\u200b")


class _Typed(NamedTuple):
    """The beginning of something that can be completed: what kind, from where to the cursor, and its letters."""

    kind: str
    start: Location
    query: str


class Composer(TextArea):
    """The prompt. Enter sends it; Ctrl+J, Shift+Enter, Alt+Enter, or a backslash before Enter begin a new line.

    Attributes:
        commands: names with their slash, and what each does, offered after `/`.
        prompts: earlier prompts, newest last, walked by the arrow keys and searched by Ctrl+R.
        folder: where the paths after `@` start from.
    """

    DEFAULT_CSS = """
    Composer {
        height: auto;
        border: round $border-blurred;
        padding: 0 1;
        background: $background;
        scrollbar-size-vertical: 1;
        scrollbar-background: $background;
        border-title-color: $text-muted;
        border-subtitle-color: $text-muted;
        &:focus {
            border: round $primary;
        }
        & .composer--chip {
            color: $primary;
            background: $primary 15%;
        }
        &:ansi .composer--chip, &:nocolor .composer--chip {
            background: transparent;
            text-style: underline;
        }
    }
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {"composer--chip"}

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("ctrl+j,shift+enter,alt+enter", "newline", "New line", show=False, id="composer.newline"),
        Binding("ctrl+r", "search", "Search earlier prompts", show=False, id="composer.search"),
        Binding("ctrl+g", "edit_outside", "Write in your editor", show=False, id="composer.editor"),
        Binding("ctrl+t", "unfold", "Unfold the paste at the cursor", show=False, id="composer.unfold"),
    ]

    @dataclass
    class Submitted(Message):
        """A prompt to send, with pastes and files written out. The composer is empty again; `undo` would refill it."""

        text: str
        attached: list[Attached]

    @dataclass
    class DraftChanged(Message):
        """The draft, once no key has changed it for a quarter of a second."""

        text: str

    @dataclass
    class Refused(Message):
        """Something could not be done, and the draft is as it was: to be told, with its hint."""

        error: InputError

    @dataclass
    class Copied(Message):
        """Text to put into the clipboard."""

        text: str

    class EditPrevious(Message):
        """Esc was pressed twice on an empty draft."""

    @dataclass
    class _Listed(Message, bubble=False):
        files: list[Completion]

    def __init__(self, *, folder: Path | None = None, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(placeholder="Message…", highlight_cursor_line=False, id=id, classes=classes)
        self.cursor_blink = False  # an idle chat draws nothing
        self.match_cursor_bracket = False
        self.folder = folder or Path.cwd()
        self.commands: Sequence[tuple[str, str]] = ()
        self.prompts: list[str] = []
        self._framed = ("", "")
        self._pastes: dict[str, str] = {}
        self._chosen: set[str] = set()
        self._at: int | None = None  # which of the earlier prompts is shown
        self._unfinished = ""  # the draft from before the arrows or the search were used
        self._searching = False
        self._set_by_us: str | None = None
        self._dismissed: _Typed | None = None
        self._files: list[Completion] = []
        self._files_from = -_FILES_KEPT
        self._escaped = -_DOUBLE
        self._settling: Timer | None = None
        self._list = CompletionList(self._accept)

    def on_mount(self) -> None:
        """The list of completions lies over the screen, outside of the text."""
        self.screen.mount(self._list)

    # The draft

    @property
    def draft(self) -> str:
        """What is written, pastes in full: what to keep when the app ends."""
        return self._unfolded(self._unfinished if self._searching else self.text)

    def expanded(self) -> Expanded:
        """What Enter would send: pastes and files written out. Raises InputError for a file that cannot be sent."""
        # Pastes after files, since what a paste says after an @ names no file of the reader's.
        prompt = expand(self.text.rstrip().lstrip("\n"), self.folder, self._chosen)
        return prompt._replace(text=self._unfolded(prompt.text))

    def load(self, text: str) -> None:
        """Show another draft, with the cursor at its end; there is nothing to undo."""
        self._end_search()
        self._at = None
        shown = self._folded(text, _LONGEST_SHOWN)
        self._set_by_us = shown
        self.load_text(shown)
        self.move_cursor(self.document.end)

    def frame(self, title: str, subtitle: str) -> None:
        """What its border says; the composer is drawn anew only if that is something else than before."""
        if (title, subtitle) != self._framed:
            self._framed = (title, subtitle)
            self.border_title, self.border_subtitle = title, subtitle

    def clear(self) -> EditResult:
        """Empty the draft, which `undo` brings back."""
        self._end_search()
        self._at = None
        return super().clear()

    def insert_paste(self, text: str) -> None:
        """Insert text in place of the selection; a long one as a chip that stands for it."""
        text = _typed(text)
        lines = text.count("\n") + 1 - text.endswith("\n")
        if not self._searching and (len(text.encode()) > _LONGEST_PASTE or lines > _MOST_LINES):
            text = self._chip(text)
        self._replace_via_keyboard(text, *self.selection)

    def edit(self, edit: Edit) -> EditResult:
        """Every change of the text: what a terminal would obey is made visible, and a chip changes as a whole."""
        edit.text = _typed(edit.text)
        top, bottom = self._chip_around(edit.top), self._chip_around(edit.bottom)
        if edit.top == edit.bottom:
            edit.from_location = edit.to_location = top[1]
        else:
            edit.from_location, edit.to_location = top[0], bottom[1]
        return super().edit(edit)

    def load_text(self, text: str) -> None:
        """Show the text, made visible."""
        super().load_text(_typed(text))

    def _recompute_cursor_offset(self) -> None:
        # While Textual undoes a long insertion the cursor still stands below the end, and a scrollbar that goes
        # away then asks where that is.
        self._cursor_offset = self.wrapped_document.location_to_offset(self.clamp_visitable(self.cursor_location))

    def _submit(self) -> None:
        if not self.text.strip():
            return
        try:
            prompt = self.expanded()
        except InputError as error:
            self.post_message(self.Refused(error))
            return
        # Now, not when the app has taken it: a second Enter must not send it twice.
        self.clear()
        self.post_message(self.Submitted(prompt.text, prompt.attached))

    # Chips

    def _chip(self, text: str) -> str:
        """The short text that stands for a long one."""
        lines = text.count("\n") + 1 - text.endswith("\n")
        size = f"{lines:,} lines" if lines > 1 else f"{len(text):,} characters"
        number = 1
        while f"[paste {number} · " in self.text or self._pastes.get(f"[paste {number} · {size}]", text) != text:
            number += 1
        chip = f"[paste {number} · {size}]"
        self._pastes[chip] = text
        return chip

    def _folded(self, text: str, longest: int) -> str:
        return self._chip(_typed(text)) if len(text) > longest else _typed(text)

    def _unfolded(self, text: str) -> str:
        return _CHIP.sub(lambda match: self._pastes.get(match.group(), match.group()), text)

    def _chip_around(self, location: Location, *, edges: bool = False) -> tuple[Location, Location]:
        """Where the chip that the location is inside of begins and ends; the location itself if there is none."""
        row, column = location
        # Textual deletes the last line by a range that ends below it.
        line = self.document.get_line(row) if row < self.document.line_count else ""
        for match in _CHIP.finditer(line):
            start, end = match.span()
            if match.group() in self._pastes and start - edges < column < end + edges:
                return (row, start), (row, end)
        return location, location

    def action_unfold(self) -> None:
        """Put the whole paste where its chip is."""
        start, end = self._chip_around(self.cursor_location, edges=True)
        if start == end:
            raise SkipAction
        self.replace(self._pastes[self.get_text_range(start, end)], start, end, maintain_selection_offset=False)

    def on_click(self, event: events.Click) -> None:
        """A double click unfolds a chip."""
        if event.chain == 2:
            with contextlib.suppress(SkipAction):
                self.action_unfold()

    def get_line(self, line_index: int) -> Text:
        """A line as it is drawn: chips marked, no sign that turns the direction of the terminal's writing."""
        line = super().get_line(line_index)
        line.plain = line.plain.translate(_INVISIBLE)
        style = self.get_component_rich_style("composer--chip")
        for match in _CHIP.finditer(line.plain):
            if match.group() in self._pastes:
                line.stylize(style, *match.span())
        return line

    # Keys

    async def _on_key(self, event: events.Key) -> None:
        match event.key:
            case "enter":
                done = self._enter()
            case "escape":
                done = self._escape()
            case "tab":
                done = self._list.chosen is not None
                self._accept()
            case "up" | "down":
                done = self._vertical(-1 if event.key == "up" else 1)
            case "shift+\r":  # Shift+Enter, as xterm and tmux send it
                done = True
                self.action_newline()
            case _:
                done = not event.is_printable and await self._act(event.key)
        if done:
            event.stop()
            event.prevent_default()

    async def _act(self, key: str) -> bool:
        """Do what the key is bound to here, now: by Textual's way over the app it would be done only after the
        letters that were typed behind it."""
        bound = self.screen.active_bindings.get(key)
        return bound is not None and bound.node is self and await self.app.run_action(bound.binding.action, self)

    def _enter(self) -> bool:
        chosen, typed = self._list.chosen, self._typed_so_far()
        if chosen is not None and (self._searching or (typed is not None and _meant(typed.query, chosen.label))):
            self._accept()
        elif self._searching:
            pass
        elif self.get_text_range((self.cursor_location[0], 0), self.cursor_location).endswith("\\"):
            self.action_delete_left()
            self.action_newline()
        else:
            self._list.close()
            self._submit()
        return True

    def _escape(self) -> bool:
        if self._searching:
            self._end_search()
        elif self._list.chosen is not None:
            self._dismissed = self._typed_so_far()
            self._list.close()
        elif self.text:
            return False
        elif monotonic() - self._escaped < _DOUBLE:
            self._escaped = -_DOUBLE
            self.post_message(self.EditPrevious())
        else:
            self._escaped = monotonic()
            return False  # the app's: it stops an answer
        return True

    def _vertical(self, step: int) -> bool:
        if self._list.chosen is not None:
            self._list.action_cursor_up() if step < 0 else self._list.action_cursor_down()
            return True
        _, row = self.wrapped_document.location_to_offset(self.cursor_location)
        at_edge = row == (0 if step < 0 else self.wrapped_document.height - 1)
        return at_edge and self.selection.is_empty and not self._searching and self._walk(step)

    def _walk(self, step: int) -> bool:
        """Show the prompt before or after; the unfinished draft comes after the newest."""
        if self._at is not None and (self._at >= len(self.prompts) or self.text != self._set_by_us):
            self._at = None  # it was changed, so it is the draft now
        to = (len(self.prompts) if self._at is None else self._at) + step
        if not 0 <= to <= len(self.prompts):
            return False
        if self._at is None:
            self._unfinished = self.text
        self._at = to if to < len(self.prompts) else None
        self._show(self._unfinished if self._at is None else self._folded(self.prompts[to], _LONGEST_SHOWN))
        if step < 0:  # where the next ↑ goes on to the prompt before
            self.move_cursor((0, len(self.document.get_line(0))))
        return True

    def _show(self, text: str) -> None:
        self.replace(text, (0, 0), self.document.end, maintain_selection_offset=False)
        self._set_by_us = self.text

    def action_newline(self) -> None:
        """Begin a new line."""
        self._replace_via_keyboard("\n", *self.selection)

    def action_copy(self) -> None:
        """Copy the selection, pastes in full; without one the key is the app's."""
        if self.selection.is_empty:
            raise SkipAction
        self.post_message(self.Copied(self._unfolded(self.selected_text)))

    def action_cut(self) -> None:
        """Copy the selection and take it out; without one the key is the app's."""
        self.action_copy()
        self._delete_via_keyboard(*self.selection)

    def action_paste(self) -> None:
        """Insert what was last copied in the app."""
        self.insert_paste(self.app.clipboard)

    def action_cursor_page_up(self) -> None:
        """Left to the transcript, as is the key below."""
        raise SkipAction

    def action_cursor_page_down(self) -> None:
        """Left to the transcript."""
        raise SkipAction

    def action_cursor_up(self, select: bool = False) -> None:
        """Up a line; with Shift on an empty draft, the transcript's."""
        self._leave_if_empty(select)
        super().action_cursor_up(select)

    def action_cursor_down(self, select: bool = False) -> None:
        """Down a line; with Shift on an empty draft, the transcript's."""
        self._leave_if_empty(select)
        super().action_cursor_down(select)

    def action_cursor_line_start(self, select: bool = False) -> None:
        """To the start of the line; on an empty draft, the transcript's."""
        self._leave_if_empty()
        super().action_cursor_line_start(select)

    def action_cursor_line_end(self, select: bool = False) -> None:
        """To the end of the line; on an empty draft, the transcript's."""
        self._leave_if_empty()
        super().action_cursor_line_end(select)

    def action_delete_right(self) -> None:
        """Delete what follows; on an empty draft, the app's (Ctrl+D leaves)."""
        self._leave_if_empty()
        super().action_delete_right()

    def _leave_if_empty(self, condition: bool = True) -> None:
        if condition and not self.text:
            raise SkipAction

    async def _on_paste(self, event: events.Paste) -> None:
        event.stop()
        event.prevent_default()
        self.insert_paste(event.text)
        self.focus()

    # Completion

    @on(TextArea.Changed)
    def _edited(self, event: TextArea.Changed) -> None:
        event.stop()
        if self.text != self._set_by_us:
            self._set_by_us = None
            self._suggest()
        else:
            self._list.close()
        if not self._searching:
            if self._settling is not None:
                self._settling.stop()
            self._settling = self.set_timer(_SETTLE, lambda: self.post_message(self.DraftChanged(self.draft)))

    @on(TextArea.SelectionChanged)
    def _moved(self) -> None:
        if self._list.display and not self._searching and self._typed_so_far() is None:
            self._list.close()

    def _typed_so_far(self) -> _Typed | None:
        row, column = self.cursor_location
        before = self.document.get_line(row)[:column]
        if row == 0 and _COMMAND.fullmatch(before):
            return _Typed("command", (0, 0), before[1:])
        if match := _MENTION.search(before):
            return _Typed("file", (row, match.start()), match["quoted"] or match["plain"] or "")
        return None

    def _suggest(self) -> None:
        """Offer what fits the beginning before the cursor, unless Esc has closed that offer."""
        typed = self._typed_so_far()
        if self._searching:
            said = self.text.lower().split()
            found = [prompt for prompt in reversed(self.prompts) if all(word in prompt.lower() for word in said)]
            items = [Completion(one_line(prompt)[:200], "", prompt) for prompt in dict.fromkeys(found[:50])]
            title = "Earlier prompts" if items else ""
        elif typed is None or (self._dismissed is not None and typed[:2] == self._dismissed[:2]):
            items, title = [], ""
        elif typed.kind == "command":
            items, title = (
                matching(typed.query, [Completion(name, what, name) for name, what in self.commands]),
                "Commands",
            )
        else:
            if monotonic() - self._files_from > _FILES_KEPT:
                self._files_from = monotonic()
                self._look_for_files()
            items, title = matching(typed.query, self._files), "Files"
        if typed is None:
            self._dismissed = None
        self._list.show(items, title, self.region)

    @work(thread=True, exclusive=True, group="files")
    def _look_for_files(self) -> None:
        files = [Completion(str(path), _size(size), str(path)) for path, size in list_files(self.folder)]
        self.post_message(self._Listed(files))

    def on_composer__listed(self, event: _Listed) -> None:
        """The files are known."""
        if event.files != self._files:
            self._files = event.files
            self._suggest()

    def _accept(self) -> None:
        """Put the chosen completion where its beginning was typed."""
        chosen, typed = self._list.chosen, self._typed_so_far()
        if chosen is None:
            return
        self._list.close()
        if self._searching:
            self._end_search(chosen.insert)
        elif typed is not None:
            if typed.kind == "file":
                self._chosen.add(chosen.insert)
            text = mention(chosen.insert) if typed.kind == "file" else chosen.insert
            self.replace(f"{text} ", typed.start, self.cursor_location, maintain_selection_offset=False)

    def action_search(self) -> None:
        """Search the earlier prompts by their words; the draft is put aside for it."""
        if self._searching or not self.prompts:
            raise SkipAction
        self._unfinished = self.text
        self._searching, self._set_by_us = True, None
        self.placeholder = "Words of an earlier prompt…"
        super().clear()
        self._suggest()

    def _end_search(self, found: str | None = None) -> None:
        """Back to writing, on the prompt that was found or else the draft that was put aside."""
        if self._searching:
            self._searching = False
            self.placeholder = "Message…"
            self._show(self._unfinished if found is None else self._folded(found, _LONGEST_SHOWN))
        self._list.close()

    def on_blur(self) -> None:
        """Nothing is completed while the keyboard is elsewhere."""
        self._end_search()

    # The size

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        """As high as the text, within limits that leave the transcript its room."""
        return min(self.wrapped_document.height, 1 if viewport.height < _SMALL_SCREEN else _MOST_ROWS) or 1

    def on_resize(self) -> None:
        """The list of completions stays above."""
        if self._list.display:
            self._list.place(self.region)

    # The editor

    def action_edit_outside(self) -> None:
        """Write the draft in $VISUAL or $EDITOR, while the app waits."""
        editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
        try:
            self._show(self._folded(self._write_in(shlex.split(editor)), _LONGEST_SHOWN))
        except SuspendNotSupported:
            error = InputError("An editor cannot be opened from here.", "Write in the field itself.")
            self.post_message(self.Refused(error))
        except (OSError, ValueError) as cause:
            error = InputError(f"The editor could not be used: {cause}.", "Set EDITOR to the one to use, such as nano.")
            self.post_message(self.Refused(error))

    def _write_in(self, command: list[str]) -> str:
        """What the editor made of the draft; raises OSError or ValueError when that is not to be had."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "prompt.md")
            path.write_text(self.draft)
            with self.app.suspend():
                # Where the app itself paints; the process's own standard error may lead to a log.
                done = subprocess.run([*command, str(path)], stderr=sys.__stderr__, check=False)
            if done.returncode:
                raise ValueError(f"{command[0]} ended with status {done.returncode}")
            return path.read_text().removesuffix("\n")


def _typed(text: str) -> str:
    """Text as the composer holds it: what a terminal would obey is made visible. What turns the direction of writing
    stays, since some languages need it; it is only not drawn."""
    return "".join(part if _TURNS.match(part) else visible(part) for part in _TURNS.split(text))


def _meant(query: str, label: str) -> bool:
    """Whether Enter takes the completion: not when it is written out already, nor when its letters only happen to
    come in that order, as they may for a decorator or a path."""
    return query.lower() in label.lower() and label.removeprefix("/") != query


def _size(count: int) -> str:
    """A length to stand in a column of them."""
    scale, unit = (1e6, "MB") if count >= 1e6 else (1e3, "KB")
    return (f"{count} B" if count < 1e3 else f"{count / scale:,.1f} {unit}").rjust(9)
