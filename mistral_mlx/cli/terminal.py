"""What the commands share: how sizes read, how Ctrl-C is taken, what a terminal may be sent."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event

INTERRUPTED = 130

_CLEAR = "\r\x1b[K"  # to the beginning of the line, and take away what stands there

# What a terminal would take as a command is shown instead of sent: C0 but newline and tab, DEL, and C1.
VISIBLE = (
    {c: 0x2400 + c for c in range(0x20) if chr(c) not in "\n\t"}
    | {0x7F: 0x2421}
    | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)
)


def size(count: int) -> str:
    """Bytes in binary units, as memory is counted."""
    if count < 2**20:
        return f"{count / 2**10:,.1f} KiB"
    return f"{count / 2**30:,.2f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"


def clear_line() -> None:
    """Take a status line off the screen before something else is said."""
    if sys.stderr.isatty():
        print(_CLEAR, end="", file=sys.stderr)


def status_line(describe: Callable[[int, int], str]) -> Callable[[int, int], None] | None:
    """A line on a terminal's stderr that is written anew as something goes on, and cleared once it is done.

    Args:
        describe: from (done, total) to what the line says.
    """
    if not sys.stderr.isatty():
        return None

    def show(done: int, total: int) -> None:
        line = describe(done, total) if done < total else ""
        print(f"{_CLEAR}{line}", end="", file=sys.stderr, flush=True)

    return show


@contextmanager
def stop_on_interrupt() -> Iterator[Event]:
    """The first Ctrl-C sets the event, so that what was written stays; a second one ends the program."""
    stop = Event()

    def interrupt(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
