"""A program in a real terminal of a given size: what it writes is kept, and drawn on a screen that a test can read."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

from rich.cells import cell_len

_SEQUENCE = re.compile(
    r"\x1b\[(?P<arguments>[0-?]*)[ -/]*(?P<final>[@-~])"  # CSI
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\)"  # strings: titles, the clipboard
    r"|\x1b[ -/]*[0-Z\\-~]",
    re.DOTALL,
)


class Screen:
    """The text that a terminal would show: cursor moves, line ends and erasing are followed, colours are not."""

    def __init__(self, columns: int, rows: int) -> None:
        self._x = self._y = 0
        self._rest = ""
        self.resize(columns, rows)

    def resize(self, columns: int, rows: int) -> None:
        """A blank screen of another size, as a terminal's alternate screen is until it is painted again."""
        self._columns, self._rows = columns, rows
        self._cells = [[" "] * columns for _ in range(rows)]

    def feed(self, text: str) -> None:
        """Draw what the program wrote; a sequence that is not whole waits for its rest."""
        text, at = self._rest + text, 0
        self._rest = ""
        while at < len(text):
            if text[at] != "\x1b":
                self._put(text[at])
                at += 1
            elif match := _SEQUENCE.match(text, at):
                self._obey(match["final"], match["arguments"] or "")
                at = match.end()
            elif len(text) - at > 1_000_000:
                at += 1
            else:
                self._rest = text[at:]
                return

    def _put(self, character: str) -> None:
        if character == "\n":
            self._y = min(self._y + 1, self._rows - 1)
        elif character == "\r":
            self._x = 0
        elif character >= " ":
            width = cell_len(character)
            if width and self._y < self._rows and self._x + width <= self._columns:
                self._cells[self._y][self._x : self._x + width] = [character, *[""] * (width - 1)]
            self._x += width

    def _obey(self, final: str | None, arguments: str) -> None:
        numbers = [int(number) if number.isdigit() else 0 for number in arguments.split(";")]
        first = numbers[0]
        if final in ("H", "f"):
            self._y, self._x = max(first, 1) - 1, max(numbers[1] if len(numbers) > 1 else 1, 1) - 1
        elif final in ("A", "B", "C", "D"):
            steps = max(first, 1)
            self._y = min(max(self._y + steps * {"A": -1, "B": 1}.get(final, 0), 0), self._rows - 1)
            self._x = max(self._x + steps * {"C": 1, "D": -1}.get(final, 0), 0)
        elif final == "J" and first in (2, 3):
            self._cells = [[" "] * self._columns for _ in range(self._rows)]
        elif final == "K" and self._y < self._rows:
            start, end = {0: (self._x, self._columns), 1: (0, self._x + 1)}.get(first, (0, self._columns))
            self._cells[self._y][start:end] = [" "] * (end - start)

    def __str__(self) -> str:
        return "\n".join("".join(row).rstrip() for row in self._cells)


class TerminalSession:
    """`command` in a pseudo-terminal that it owns, until `close` (or the end of a `with`).

    `wait_for` and `wait` fail with the last screen in their message when `timeout` seconds pass.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        columns: int = 120,
        rows: int = 40,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        timeout: float = 30.0,
    ) -> None:
        self.timeout = timeout
        self.screen = Screen(columns, rows)
        self._output = bytearray()
        self._news = threading.Condition()
        self._closing = False
        self._master, terminal = pty.openpty()
        self._set_size(columns, rows)
        unwanted = ("TMUX", "NO_COLOR", "COLUMNS", "LINES")
        inherited = {name: value for name, value in os.environ.items() if name not in unwanted}
        self.process = subprocess.Popen(
            command,
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            cwd=cwd,
            env={**inherited, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8", **(env or {})},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        while not self._closing:
            if not select.select([self._master], [], [], 0.1)[0]:
                continue
            try:
                data = os.read(self._master, 65536)
            except OSError:  # Linux's way to say that the program has ended
                return
            if not data:
                return
            with self._news:
                self._output += data
                self.screen.feed(decode(data))
                self._news.notify_all()

    @property
    def output(self) -> bytes:
        """All that the program has written so far."""
        with self._news:
            return bytes(self._output)

    @property
    def text(self) -> str:
        """What stands on the screen now, a line each row."""
        with self._news:
            return str(self.screen)

    def write(self, data: str | bytes) -> None:
        """Type `data`, as the terminal would send it (`\\r` is Enter, `\\x1b` is Escape)."""
        left = data.encode() if isinstance(data, str) else data
        while left:
            left = left[os.write(self._master, left) :]

    def resize(self, columns: int, rows: int) -> None:
        """Another size, of which the program is told by SIGWINCH."""
        with self._news:
            self.screen.resize(columns, rows)
        self._set_size(columns, rows)

    def _set_size(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def wait_for(self, wanted: str | bytes | Callable[[TerminalSession], bool], timeout: float | None = None) -> None:
        """Until a text stands on the screen, bytes are in the output, or a function of the session says yes."""
        until = time.monotonic() + (self.timeout if timeout is None else timeout)
        while not self._has(wanted):
            left = until - time.monotonic()
            if left <= 0 or not self._reader.is_alive():
                why = (
                    f"not seen in {self.timeout if timeout is None else timeout} s"
                    if left <= 0
                    else "the program ended"
                )
                raise AssertionError(
                    f"{wanted!r}: {why}; the screen:\n{self.text}\nlast output: {self.output[-400:]!r}"
                )
            with self._news:
                self._news.wait(min(left, 0.1))

    def _has(self, wanted: str | bytes | Callable[[TerminalSession], bool]) -> bool:
        if isinstance(wanted, str):
            return wanted in self.text
        return wanted in self.output if isinstance(wanted, bytes) else wanted(self)

    def wait(self, timeout: float | None = None) -> int:
        """The exit status, once the program has ended by itself and all it wrote is read."""
        try:
            status = self.process.wait(self.timeout if timeout is None else timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the program did not end; the screen:\n{self.text}") from None
        self._reader.join(5)
        return status

    def hang_up(self) -> None:
        """Take the terminal away from the program, as closing its window does."""
        if not self._closing:
            self._closing = True
            self._reader.join()
            os.close(self._master)

    def close(self) -> None:
        """End the program, if it has not ended, and the terminal with it."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.hang_up()

    def __enter__(self) -> TerminalSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()
