"""What passes between the app and the terminal, made safe: pastes, mouse reports, the keyboard, native output.

`SafeTerminal` is mixed into the app. A paste reaches the app as one `Paste` event whatever it holds, so nothing that
was pasted ever becomes keys (an Enter in it would send half a prompt). That holds for terminals that mark their
pastes (bracketed paste, which all of today's do): an unmarked paste cannot be told apart from typing.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import sys
from codecs import getincrementaldecoder
from collections.abc import Iterable, Iterator
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any

from textual import constants, events
from textual._xterm_parser import BRACKETED_PASTE_END as END
from textual._xterm_parser import BRACKETED_PASTE_START as START
from textual._xterm_parser import XTermParser
from textual.driver import Driver
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

from mistral_mlx.errors import InputError

ESC = "\x1b"
# Some terminals report a mouse outside of them as `CSI < 32 ; NaN ; NaN M`, which would be typed into the prompt.
_JUNK_MOUSE = re.compile(r"\x1b\[<(?![-0-9;]*[Mm])[-0-9;.Na]{0,40}[Mm]")
# What may be the start of a paste's marker or of a mouse report whose rest comes with the next read.
_UNFINISHED = re.compile(r"\x1b(?:\[(?:2(?:00?)?|<[-0-9;.Na]{0,40})?)?\Z")
_PATIENCE = 1.0  # seconds to wait for that rest
# Seconds after which a lone ESC is the pressed key. Terminals write a sequence at once, and one that was torn apart on
# its way is mended below if it begins a paste.
_ESC_PATIENCE = 0.03


class SafeParser(XTermParser):
    """Textual's parser of what the terminal sends, which never sees an escape character that was pasted.

    Textual takes an ESC inside a paste for a key and what follows it for typing. Here it becomes `␛`, pasted.
    """

    def __init__(self, debug: bool = False) -> None:
        self._pasting = False
        self._held = ""
        self._held_since = 0.0
        self._escape_given = False
        super().__init__(debug)

    def feed(self, data: str) -> Iterable[Message]:
        """The events of `data`, what one read brought; "" ends the stream."""
        if not data:
            yield from super().feed("")
            return
        if self._escape_given and data.startswith(START[1:]):
            # The marker's ESC came so long before its rest that it went out as a key. This is a paste all the same.
            data = ESC + data
        self._escape_given = False
        if passed := "".join(self._passed(self._held + data)):
            yield from super().feed(passed)

    def tick(self) -> Iterable[Message]:
        """What is due because nothing followed in time: called by the driver ten times a second, or as `waits` says."""
        yield from super().tick()
        waited = monotonic() - self._held_since
        if not self._held or self._pasting or waited < (_ESC_PATIENCE if self._held == ESC else _PATIENCE):
            return
        # A marker or a report that is never finished is nobody's typing: it is dropped.
        self._escape_given, self._held = self._held == ESC, ""
        if self._escape_given:
            yield events.Key("escape", ESC)

    @property
    def waits(self) -> float:
        """Seconds within which `tick` has to be called."""
        return _ESC_PATIENCE / 2 if self._held == ESC else 0.1

    def _passed(self, data: str) -> Iterator[str]:
        """What Textual may see of `data`; an end that only the next read can explain is held back."""
        self._held, self._held_since = "", monotonic()
        while data:
            marker = END if self._pasting else START
            at = data.find(marker)
            if self._pasting and at >= 0:
                # The last end before another start: an end that was smuggled into the pasted text is text.
                following = data.find(START, at)
                at = data.rfind(END, at, following if following >= 0 else len(data))
            before, found, data = (data[:at], marker, data[at + len(marker) :]) if at >= 0 else (data, "", "")
            if not found:
                self._held = _overlap(before, END) if self._pasting else _unfinished(before)
                before = before[: len(before) - len(self._held)]
            if self._pasting:
                yield before.replace(ESC, "␛")
            else:
                # Alt+Enter of terminals without the kitty protocol, in its words: Textual would take it for Enter.
                alt_enter = ESC + "\r" if constants.DISABLE_KITTY_KEY else "\x1b[13;3u"
                yield _JUNK_MOUSE.sub("", before).replace(ESC + "\r", alt_enter)
            yield found
            self._pasting ^= bool(found)


def _unfinished(data: str) -> str:
    match = _UNFINISHED.search(data)
    return match.group() if match else ""


def _overlap(data: str, marker: str) -> str:
    """The longest end of `data` that begins `marker`."""
    return next((marker[:n] for n in range(len(marker) - 1, 0, -1) if data.endswith(marker[:n])), "")


class SafeDriver(LinuxDriver):
    """Textual's driver for Linux and macOS, reading by `SafeParser`.

    Bytes that are not UTF-8 are shown as `�` and a terminal that went away ends the app; Textual's own reader takes
    the app down with the first, and spins with the second.
    """

    def run_input_thread(self) -> None:
        """Hand the terminal's events to the app until the app stops."""
        parser = SafeParser(self._debug)
        decode = getincrementaldecoder("utf-8")("replace").decode
        with selectors.SelectSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                if selector.select(parser.waits):
                    try:
                        data = os.read(self.fileno, 4096)
                    except OSError:  # how Linux tells that the terminal is gone
                        data = b""
                    if not data:
                        self._app.call_later(self._app.exit)
                        return
                    if text := decode(data):
                        self._hand_over(parser.feed(text))
                self._hand_over(parser.tick())

    def _hand_over(self, messages: Iterable[Message]) -> None:
        for message in messages:
            self.process_message(message)


if TYPE_CHECKING:
    from textual.app import App

    _App = App[Any]
else:
    _App = object


class SafeTerminal(_App):
    """A mixin for the app, before `App` in its bases: what is pasted stays a paste."""

    def get_driver_class(self) -> type[Driver]:
        """The safe driver where Textual would use its own for a terminal; headless and web drivers stay."""
        found = super().get_driver_class()
        return SafeDriver if found is LinuxDriver else found


@contextlib.contextmanager
def quiet_stderr(path: Path) -> Iterator[None]:
    """Keep what native code writes to standard error off the screen, in the file at `path`, which begins anew.

    Run the app inside: Textual paints on standard error, and anything else that lands there corrupts the picture.
    Python's own `sys.stderr` still reaches the terminal. A program started meanwhile that shows itself there (an
    editor) is to be given `stderr=sys.__stderr__`.
    """
    sys.stderr.flush()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    except OSError:  # a full or read-only disk is no reason not to chat
        log = os.open(os.devnull, os.O_WRONLY)
    before = sys.stderr, sys.__stderr__
    native = os.dup(2)
    screen = os.fdopen(os.dup(2), "w", encoding="utf-8", errors="backslashreplace")
    os.dup2(log, 2)
    os.close(log)
    sys.stderr = sys.__stderr__ = screen  # type: ignore[misc]
    try:
        yield
    finally:
        sys.stderr, sys.__stderr__ = before  # type: ignore[misc]
        screen.close()
        os.dup2(native, 2)
        os.close(native)


def keyboard_from_tty() -> str:
    """What was piped into the program, read to its end, after which its input is the keyboard; "" if nothing was piped.

    Raises InputError when what was piped is not text, or there is no terminal to take keys from.
    """
    if os.isatty(0):
        return ""
    piped = sys.stdin.buffer.read()
    try:
        # The terminal's own name before /dev/tty, on which macOS cannot wait for keys.
        name = next((os.ttyname(fd) for fd in (2, 1) if os.isatty(fd)), "/dev/tty")
        terminal = os.open(name, os.O_RDWR)
    except OSError as error:
        raise InputError(
            "There is no terminal to read your keys from.", "Use `mistral-mlx generate` in a pipe or a script."
        ) from error
    os.dup2(terminal, 0)
    os.close(terminal)
    try:
        text = piped.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError("What was piped in is not text.", "Pipe in text in UTF-8.")
    return text
