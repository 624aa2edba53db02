"""What is typed into the plain chat: messages of one line or several."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from types import ModuleType

from tui.sanitize import visible
from tui.speech import write


def read_message(prompt: str, draft: str = "") -> str:
    """A message from the keyboard: a line, lines that end in a backslash and the next, or all in three quotes."""
    lines = [_line(prompt, draft)]
    if lines[0].lstrip().startswith('"""'):
        lines[0] = lines[0].lstrip()[3:]
        with suppress(EOFError):  # the next line tells it again
            while not lines[-1].rstrip().endswith('"""'):
                lines.append(_line("more: "))
        return "\n".join(lines).rstrip().removesuffix('"""').strip("\n")
    with suppress(EOFError):
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(_line("more: "))
    return "\n".join(lines)


def _line(prompt: str, draft: str = "") -> str:
    readline = line_editor()
    if readline and draft:
        readline.set_startup_hook(lambda: readline.insert_text(draft))
    try:
        line = input(prompt)
    finally:
        if readline:
            readline.set_startup_hook()
    if not sys.stdin.isatty():
        write(f"{visible(line)}\n")  # no terminal shows what comes from a pipe
    return line


def line_editor() -> ModuleType | None:
    """What edits the line that is typed, and remembers those before; None without a terminal."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    try:
        import readline
    except ImportError:
        return None
    if os.environ.get("TERM") != "dumb" and "libedit" not in (readline.__doc__ or ""):
        readline.parse_and_bind("set enable-bracketed-paste on")  # or each pasted line would be a message
        readline.parse_and_bind("set enable-active-region off")  # which colours what was pasted
    return readline


def typed_so_far() -> str:
    """What stood in the line when Ctrl-C was pressed."""
    readline = line_editor()
    return readline.get_line_buffer() if readline else ""
