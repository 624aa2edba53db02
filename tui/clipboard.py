"""Copying to the clipboard, and saying no more than is known of it."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

from textual.app import App

# Terminals drop longer ones; some print what they drop.
_LARGEST_SEQUENCE = 100_000  # bytes of UTF-8
_TIMEOUT = 2.0  # seconds for each command


class _Tool(NamedTuple):
    copy: list[str]
    paste: list[str]


async def copy(app: App[Any], text: str) -> str:
    """Copy `text`, by the terminal and by the machine's own clipboard, and return what can be told of it.

    The commands run beside the app: nothing waits for them but the answer.
    """
    # What Ctrl+V in the app inserts, kept for texts too long for the terminal, too.
    app._clipboard = text
    sent = len(text.encode()) <= _LARGEST_SEQUENCE and _send(app, text)
    return await asyncio.to_thread(_copy_natively, text, sent)


def _send(app: App[Any], text: str) -> bool:
    """Ask the terminal to copy (OSC 52), which it neither confirms nor refuses."""
    app.copy_to_clipboard(text)
    if os.environ.get("TMUX") and app._driver is not None:
        # tmux takes the plain sequence only by one of its settings, and hands the terminal this one by another.
        sequence = f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\a"
        app._driver.write("\x1bPtmux;" + sequence.replace("\x1b", "\x1b\x1b") + "\x1b\\")
    return app._driver is not None


def _copy_natively(text: str, sent: bool) -> str:
    count = f"{len(text):,} character{'s' * (len(text) != 1)}"
    for tool in _tools(os.environ):
        if shutil.which(tool.copy[0]) and _run(tool.copy, text) is not None:
            if not shutil.which(tool.paste[0]):
                return f"Copied {count} with {tool.copy[0]}."
            if _run(tool.paste) == text:
                return f"Copied {count}."
    if sent:
        return f"Sent {count} to the terminal, which does not say whether it took them."
    return f"Not copied: {count} are too many for the terminal. {_ADVICE[sys.platform == 'darwin']}"


_ADVICE = ("Install wl-clipboard (Wayland) or xclip (X11), or copy a part.", "Copy a part.")


def _tools(env: Mapping[str, str]) -> list[_Tool]:
    """The commands whose clipboard is that of the person at the keyboard."""
    tools = []
    # Over SSH the clipboard of this machine is not theirs, and the terminal's is; X11 reaches theirs when forwarded.
    if sys.platform == "darwin" and not env.get("SSH_CONNECTION"):
        tools.append(_Tool(["pbcopy"], ["pbpaste"]))
    if env.get("WAYLAND_DISPLAY") and not env.get("SSH_CONNECTION"):
        tools.append(_Tool(["wl-copy"], ["wl-paste", "--no-newline"]))
    if env.get("DISPLAY"):
        tools.append(_Tool(["xclip", "-selection", "clipboard"], ["xclip", "-selection", "clipboard", "-o"]))
        tools.append(_Tool(["xsel", "--clipboard", "--input"], ["xsel", "--clipboard", "--output"]))
    return tools


def _run(command: list[str], text: str | None = None) -> str | None:
    """What the command printed, or with a text to take, ""; None when it failed."""
    try:
        done = subprocess.run(
            command,
            input=None if text is None else text.encode(),
            stdin=subprocess.DEVNULL if text is None else None,
            # xclip and wl-copy stay behind to serve the clipboard, and would hold a pipe open for as long.
            stdout=subprocess.PIPE if text is None else subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            check=True,
            env={**os.environ, "LC_CTYPE": "UTF-8"},  # pbcopy garbles accents without it
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return (done.stdout or b"").decode(errors="replace")
