"""What the plain chat says: answers in whole sentences, for half of one is read out badly, or twice."""
# ruff: noqa: RUF001 (quotes and full stops as people write them)

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

from tui.conversation import Turn
from tui.sanitize import Sanitizer

_PROGRESS_S = 5.0
_ENDS = {
    "stop": "done",
    "cut": "done",
    "length": "cut off: max_tokens or the context is used up",
    "cancelled": "stopped",
    "tool_rounds": "stopped: it went on calling tools",
}
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
# After a word of two letters, so that neither "1." nor "e.g." ends one; quotes and brackets may close around the mark.
_END = re.compile(r"""[^\W\d_]{2}["'”’)\]*_`]*[.!?…]+["'”’)\]*_`]*\s+|[。！？]["”」』）]*""")
_LONGEST = 400  # characters that are held back, where no sentence ends


class Sentences:
    """Holds text back until a sentence or a line of it is complete. All pieces together are the text, unchanged."""

    def __init__(self) -> None:
        self._rest = ""
        self._begun = False  # the beginning of the line has been given
        self._fence = ""  # what opened the block of code that is being written

    def feed(self, text: str) -> str:
        """Take more text; returns what of it, and of what was held back, is complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._pass(line)
            self._begun = False
        whole = "".join(f"{line}\n" for line in lines)
        end = max((m.end() for m in _END.finditer(self._rest)), default=0) if not self._fence else 0
        if not end and len(self._rest) > _LONGEST:
            end = self._rest.rfind(" ") + 1 or len(self._rest)
        self._begun = self._begun or end > 0
        whole, self._rest = whole + self._rest[:end], self._rest[end:]
        return whole

    def flush(self) -> str:
        """What is left, at the end of the text."""
        rest, self._rest, self._begun, self._fence = self._rest, "", False, ""
        return rest

    def _pass(self, line: str) -> None:
        """Take note of a block of code that begins or ends in a line."""
        mark = None if self._begun else _FENCE.match(line)
        if not self._fence:
            self._fence = mark[1] if mark else ""
        elif mark and mark[1].startswith(self._fence) and not line[mark.end() :].strip():
            self._fence = ""


class Speech:
    """Writes an answer in whole sentences, and makes it safe for a terminal."""

    def __init__(self) -> None:
        self._sanitizer, self._sentences = Sanitizer(), Sentences()
        self._thinking = False
        self._open = False  # a line that has no end yet

    def say(self, text: str, *, thinking: bool) -> None:
        if thinking and not self._thinking:
            write("Thinking.\n")
        self._thinking = thinking or (self._thinking and not text)
        self._put(self._sentences.feed(self._sanitizer.feed(text)))

    def end(self) -> None:
        """What is left of the answer; another may follow."""
        self._put(self._sentences.feed(self._sanitizer.flush()) + self._sentences.flush())
        if self._open:
            self._put("\n")

    def _put(self, text: str) -> None:
        if text:
            write(text)
            self._open = not text.endswith("\n")


def figures(turn: Turn) -> str:
    """What an answer cost, and how it ended."""
    stats = turn.stats
    end = _ENDS.get(turn.finish or "", turn.finish)
    if stats is None or not stats.completion_tokens:
        return f"{end} before the first token"
    speed = f"{stats.decode_tps:.0f} per second, " if stats.decode_tps else ""
    tokens = "1 token" if stats.completion_tokens == 1 else f"{stats.completion_tokens:,} tokens"
    return f"{tokens}, {speed}first after {stats.ttft_s:.2f} seconds, {end}"


def percent(what: str) -> Callable[[int, int], None]:
    """Says how far something has come, every five seconds at most."""
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if done < total and time.monotonic() - told >= _PROGRESS_S:
            told = time.monotonic()
            write(f"{what}: {100 * done // total} percent.\n")

    return progress


def write(text: str) -> None:
    """Write to the terminal at once."""
    sys.stdout.write(text)
    sys.stdout.flush()
