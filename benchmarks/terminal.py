"""Measure the terminal chat in a real terminal of 120x40, and hold it against its budgets.

uv run python -m benchmarks.terminal [--quick] [--only NAME] [--demo] [--json FILE]

The app runs as a program of its own under a model with a script: 4,000 tokens of three characters at 200 a second.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any

from benchmarks.paired import describe_machine
from benchmarks.terminal_app import QUESTION, Case
from benchmarks.transcript import TOKENS, document
from tui.conversation import Conversation, Turn, new_id
from tui.store import Store

ROOT = Path(__file__).parents[1]
RATE = 200
KEYS_PER_S = 3
# Letters that are in none of the documents; each press another, so that an echo is that of its press.
LETTERS = [chr(code) for code in range(0x0410, 0x0450)]
ESC_KEY = "\x1b[27u"  # as terminals with the kitty protocol send it; others send a lone ESC, which is ambiguous
READY, LONG_CHAT, LAST_WORDS = b"iB of ", "longchat", b"last-words-of-the-chat"


@dataclass(frozen=True)
class Row:
    """What was found, and what it may be at most."""

    what: str
    found: float
    unit: str
    budget: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is within the budget, where there is one."""
        return None if self.budget is None else self.found <= self.budget


class Terminal:
    """The app in a pseudo-terminal; everything here also takes in what the app writes, which it would wait for."""

    def __init__(self, home: Path, case: Case, cwd: Path = ROOT) -> None:
        self.output = bytearray()
        self.facts: list[dict[str, Any]] = []
        self._half = b""
        self._pipe, facts = os.pipe()
        self._master, terminal = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))
        folders = {f"XDG_{name}_HOME": str(home / name.lower()) for name in ("CONFIG", "DATA", "STATE")}
        inherited = {k: v for k, v in os.environ.items() if k not in ("TMUX", "NO_COLOR", "COLUMNS", "LINES")}
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.terminal_app", replace(case, pipe=facts).to_json()],
            stdin=terminal, stdout=terminal, stderr=terminal, pass_fds=(facts,), cwd=cwd, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            env={
                **inherited, **folders, "TERM": "xterm-256color", "COLORTERM": "truecolor", "LANG": "C.UTF-8",
                "PYTHONPATH": str(ROOT),
            },
        )  # fmt: skip
        os.close(terminal)
        os.close(facts)

    def read(self, seconds: float) -> bool:
        """Take in what comes next within that time; False if nothing did."""
        ready = select.select([self._master, self._pipe], [], [], max(0.0, seconds))[0]
        if self._pipe in ready:
            *lines, self._half = (self._half + os.read(self._pipe, 1 << 16)).split(b"\n")
            self.facts += map(json.loads, lines)
        if self._master in ready:
            try:
                self.output += os.read(self._master, 1 << 16)
            except OSError:  # how Linux tells that the app has ended
                if not self.fact("end"):
                    raise SystemExit(f"The app ended: {self.output[-2000:].decode(errors='replace')}") from None
                time.sleep(0.01)
        return bool(ready)

    def rest(self, seconds: float) -> None:
        """Let time pass."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            self.read(left)

    def until(self, seen: Callable[[], bool], what: object, timeout: float = 120.0) -> float:
        """Wait; returns the time when it came."""
        give_up = time.monotonic() + timeout
        while not seen():
            if time.monotonic() > give_up:
                raise SystemExit(f"{what!r} did not come: {self.output[-2000:].decode(errors='replace')}")
            self.read(0.1)
        return time.monotonic()

    def shown(self, *wanted: bytes, since: int = 0, timeout: float = 120.0) -> float:
        """Wait until one of these is written, after so many bytes."""
        at = since
        longest = max(map(len, wanted))

        def seen() -> bool:
            nonlocal at
            here = any(self.output.find(one, at) >= 0 for one in wanted)
            at = max(at, len(self.output) - longest)
            return here

        return self.until(seen, wanted, timeout)

    def fact(self, what: str, nth: int = 0) -> dict[str, Any]:
        """The nth fact of a name; empty while there is none."""
        found = [fact for fact in self.facts if fact["what"] == what]
        return found[nth] if len(found) > nth else {}

    def told(self, what: str, nth: int = 0, timeout: float = 120.0) -> dict[str, Any]:
        """Wait for it."""
        self.until(lambda: bool(self.fact(what, nth)), what, timeout)
        return self.fact(what, nth)

    def type(self, keys: str) -> float:
        """Press keys; returns when."""
        at = time.monotonic()
        os.write(self._master, keys.encode())
        return at

    def ask(self) -> None:
        """Once the model is there, ask."""
        self.shown(READY)
        self.rest(0.5)
        self.type(QUESTION)
        self.rest(0.5)
        self.type("\r")

    def echo(self, letter: str) -> float:
        """Seconds from a press to its letter on the screen, which is then taken away again."""
        since = len(self.output)
        pressed = self.type(letter)
        seen = self.shown(letter.encode(), since=since)
        self.type("\x7f")
        return seen - pressed

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)
        os.close(self._pipe)


class Bench:
    """All that is measured, each by a method that gives its rows."""

    def __init__(self, folder: Path, quick: bool) -> None:
        self._folder, self._quick = folder, quick
        self._tokens = 1000 if quick else TOKENS
        self._homes = 0

    def _home(self) -> Path:
        self._homes += 1
        home = self._folder / str(self._homes)
        home.mkdir()
        return home

    def _answer(self, text: str) -> str:
        path = self._folder / "answer.md"
        path.write_text(text, encoding="utf-8")
        return str(path)

    @contextmanager
    def _app(self, case: Case, home: Path | None = None, cwd: Path = ROOT) -> Iterator[Terminal]:
        with Terminal(home or self._home(), case, cwd) as terminal:
            yield terminal

    def streaming(self) -> Iterator[Row]:
        """What a token costs the screen, and how long a key waits, while an answer of each kind is written."""
        for kind in ("mixed", "fence", "list", "table"):
            text = document(kind)[: self._tokens * 3]
            with self._app(Case(0, self._answer(text), tokens_per_s=RATE)) as terminal:
                terminal.ask()
                terminal.told("asked")
                waits, letters = [], cycle(LETTERS)
                while not terminal.fact("end"):
                    waits.append(terminal.echo(next(letters)))
                    terminal.rest(1 / KEYS_PER_S)
                fed = terminal.told("end")["fed"]
            yield from self._costs(kind, fed)
            yield Row(f"{kind}: a key is answered, median", 1e3 * median(waits), "ms")
            yield Row(f"{kind}: a key is answered, 95 of 100", 1e3 * quantiles(waits, n=20)[-1], "ms", 50.0)

    @staticmethod
    def _costs(kind: str, fed: list[tuple[int, float, float]]) -> Iterator[Row]:
        def cost(part: list[tuple[int, float, float]], of: int = 1) -> float:
            return 1e3 * (part[-1][of] - part[0][of]) / (part[-1][0] - part[0][0])

        tokens = fed[-1][0]
        first = [mark for mark in fed if mark[0] <= tokens / 4]
        last = [mark for mark in fed[:-1] if mark[0] >= 3 * tokens / 4]
        yield Row(f"{kind}: the screen's processor time a token", cost(fed), "ms", 3.0)
        yield Row(f"{kind}: the same with all other threads", cost(fed, 2), "ms")
        yield Row(f"{kind}: in the last quarter over the first", cost(last) / cost(first), "times", 1.5,
                  f"{cost(first):.2f} and {cost(last):.2f} ms")  # fmt: skip

    def decode(self) -> Iterator[Row]:
        """How much slower the model's loop is with the screen than without, steps as long as a real one's."""
        from mistral_mlx.backend import preload_blas

        preload_blas()  # before anything imports MLX
        from benchmarks.cases.graph import build_ms

        build = min(build_ms() for _ in range(5)) / 1e3  # the least: what else the machine does is not in it
        step = max(1 / RATE, build + 0.001)
        tokens, rounds = (400, 3) if self._quick else (1000, 7)
        case = Case(0, self._answer(document("mixed")), build_s=build, compute_s=step - build, max_tokens=tokens)
        slowed, rates = self._pairs(case, rounds)
        yield Row("the building of a step (32 layers)", 1e3 * build, "ms", note="keeps the interpreter locked")
        yield Row("the model alone", rates[0], "tokens/s")
        yield Row("the model is slowed by the screen by", 100 * slowed, "%", 5.0)

    def _pairs(self, case: Case, rounds: int) -> tuple[float, list[float]]:
        """By what share the screen slows the model, the median over the rounds; and both rates."""
        pairs = []
        for _ in range(rounds):
            with self._app(replace(case, screen=False)) as terminal:
                alone = terminal.told("end", timeout=300)["tokens_per_s"]
            with self._app(case) as terminal:
                terminal.ask()
                pairs.append((alone, terminal.told("end", timeout=300)["tokens_per_s"]))
        return median(1 - b / a for a, b in pairs), [median(side) for side in zip(*pairs, strict=True)]

    def demo(self) -> Iterator[Row]:
        """The same with the demo model."""
        slowed, rates = self._pairs(Case(0, model="demo", max_tokens=64 if self._quick else 128), 3)
        yield Row("demo model alone", rates[0], "tokens/s")
        yield Row("demo model with the screen", rates[1], "tokens/s")
        yield Row("demo model is slowed by the screen by", 100 * slowed, "%", 5.0)

    def stop(self) -> Iterator[Row]:
        """From Esc to what says so on the screen."""
        for name, key, budget in (("Esc", ESC_KEY, 34.0), ("a lone ESC byte", "\x1b", None)):
            waits, steps = [], []
            with self._app(Case(0, self._answer(document("mixed")), tokens_per_s=RATE)) as terminal:
                terminal.shown(READY)
                for nth in range(3 if self._quick else 9):
                    terminal.rest(0.6)
                    terminal.type("Again.")
                    terminal.rest(0.3)
                    terminal.type("\r")
                    terminal.told("asked", nth)
                    terminal.rest(1.5 + 0.11 * nth)
                    since = len(terminal.output)
                    pressed = terminal.type(key)
                    waits.append(terminal.shown("stopping…".encode(), b"stopped", since=since) - pressed)
                    steps.append(terminal.told("stop", nth)["steps_after"])
            yield Row(f"{name}: the stop is shown, median", 1e3 * median(waits), "ms", budget)
            yield Row(f"{name}: steps begun after it, most", max(steps), "steps", 1)

    def opening(self) -> Iterator[Row]:
        """A chat of 100 long messages: from the command, and from a key in the running app; then nothing is done."""
        home = self._home()
        fill(home / "data" / "mistral-mlx" / "conversations.db")
        case = Case(0)
        waits = []
        for _ in range(3):
            with self._app(replace(case, resume=LONG_CHAT), home) as terminal:
                waits.append(terminal.shown(LAST_WORDS) - terminal.began)
        yield Row("100 long messages open from the command", median(waits), "s", 1.5)
        with self._app(case, home) as terminal:
            terminal.shown(READY)
            terminal.rest(1)
            waits = []
            for _ in range(3):
                terminal.type("\x0e")  # ^N
                terminal.rest(1)
                terminal.type("\x0c")  # ^L puts the keyboard on the list
                terminal.rest(0.7)
                terminal.type("\x1b[B")
                terminal.rest(0.5)
                since = len(terminal.output)
                pressed = terminal.type("\r")
                waits.append(terminal.shown(LAST_WORDS, since=since) - pressed)
                terminal.rest(1)
            yield Row("100 long messages open from a key", median(waits), "s", 1.5)
            terminal.rest(4)
            yield Row("idle, processor time", 100 * self._idle(terminal), "% of a core", 1.0)

    @staticmethod
    def _idle(terminal: Terminal) -> float:
        before = len([fact for fact in terminal.facts if fact["what"] == "cpu"])
        os.kill(terminal.process.pid, signal.SIGUSR1)
        first = terminal.told("cpu", before)
        terminal.rest(5)
        os.kill(terminal.process.pid, signal.SIGUSR1)
        second = terminal.told("cpu", before + 1)
        return float((second["seconds"] - first["seconds"]) / (second["at"] - first["at"]))

    def hostile(self) -> Iterator[Row]:
        """Content that would command the terminal: in an answer, a question, titles, names of files, a paste."""
        home = self._home()
        path = home / "data" / "mistral-mlx" / "conversations.db"
        fill(path, words=f"before {HOSTILE} {LAST_WORDS.decode()}", title=f"title {HOSTILE}", messages=4)
        folder = home / "files"
        folder.mkdir()
        (folder / f"name{HOSTILE.translate({0: None, 47: None})}.txt").write_text("x", encoding="utf-8")
        (folder / "name-plain.txt").write_text("x", encoding="utf-8")
        case = Case(0, self._answer(f"{HOSTILE}\n\n" * 20 + "end-of-answer"), tokens_per_s=RATE, resume=LONG_CHAT)
        with self._app(case, home, folder) as terminal:
            terminal.shown(READY)
            terminal.shown(LAST_WORDS)
            terminal.rest(1)
            terminal.type("@name")
            terminal.shown(b"name-plain.txt")
            terminal.rest(1)
            terminal.type("\x1b")
            terminal.rest(0.5)
            terminal.type("\x15")  # the line is empty again
            terminal.rest(1)
            pasted = f"pasted\x1b[27u\r\n{HOSTILE}\r\n\x1b\r end of paste"
            terminal.type(f"\x1b[200~{pasted}\x1b[201~")
            terminal.shown(b"end of paste")
            terminal.rest(1)
            sent = float(bool(terminal.fact("asked")))
            terminal.type("\r")
            asked = terminal.told("asked")["text"]
            terminal.shown(b"end-of-answer")
            terminal.told("end")
            terminal.rest(1)
            terminal.type("\x0e")
            terminal.rest(1)
            leaks = commands(bytes(terminal.output))
        yield Row("commands to the terminal that are not the app's", len(leaks), "", 0, ", ".join(sorted(leaks)))
        yield Row("pastes that sent themselves", sent, "", 0)
        whole = asked.replace("\n", "").endswith("end of paste") and asked.startswith("pasted")
        yield Row("pastes that were not sent whole", float(not whole), "", 0)


HOSTILE = (
    "a\x1b]0;owned\x07b\x1b]52;c;b3duZWQ=\x1b\\c\x1b[2Jd\x1b[?1049le\x9b2Jf\x9d0;owned\x9cg\x1bch\x1b[6ni\x1bP+q\x1b\\j"
    "\u202ek\u2066l\x08\x08m\x0en\x7fo\x85p\u2028q\x1b[4:3mr\x1b[?25hs\x1b[10;10Ht\x00u\x05v"
)
# What Textual writes: cursor, colours, modes of the mouse, focus, paste, alternate screen, synchronized output, keys,
# the pointer's shape.
_OWN = re.compile(
    r"\x1b\[(?:\d+;\d+H|[\d;]*m|\?(?:1000|1002|1003|1004|1006|1015|1016|1049|2004|2026|2048|25|7)[hl]"
    r"|\?(?:2026|2048)\$p|>\d+u|<u|[?]?\d*[JKh]|=\d+;\d+u)"
    r"|\x1b\]22;[a-z]+\x07"
)


def commands(output: bytes) -> set[str]:
    """What in the output a terminal takes as a command, and the app does not write by itself."""
    text = output.decode(errors="replace")
    text = _OWN.sub(lambda own: own[0] if own[0] in _THEIRS else "", text).replace("\r\n", "").replace("\n", "")
    found = re.findall("\x1b.{0,8}|[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]", text)
    return {ascii(one) for one in found}


# Of the app's own kinds, those that the hostile text has in exactly this form.
_THEIRS = {"\x1b[2J", "\x1b[10;10H"}


def fill(path: Path, *, words: str = "", title: str = "A long chat", messages: int = 100) -> None:
    """A conversation of long messages, the last with words to look for."""
    text, last = document("mixed"), words or LAST_WORDS.decode()
    made = Conversation(LONG_CHAT, title, named=True, model="fake")
    for n in range(messages):
        said = text[n * 90 : n * 90 + 1200]
        made.add(Turn(new_id(), made.tip, "assistant" if n % 2 else "user", said, finish="stop" if n % 2 else None))
    turn = made.turns[made.tip or 0]
    turn.text += f"\n```\n\n{last}"
    store = Store(path)
    store.save(made, made.turns.values())
    store.close()


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 1 if a budget was missed."""
    names = ("streaming", "decode", "stop", "opening", "hostile")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.terminal", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the tokens and fewer rounds")
    parser.add_argument("--only", choices=names, help="one part")
    parser.add_argument("--demo", action="store_true", help="the demo model with the screen and without, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there")
    arguments = parser.parse_args(argv)
    wanted = [arguments.only] if arguments.only else [] if arguments.demo and arguments.quick else list(names)
    rows = []
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), arguments.quick)
        for name in [*wanted, *(["demo"] if arguments.demo else [])]:
            for row in getattr(bench, name)():
                rows.append(row)
                budget = "" if row.budget is None else f"{'met' if row.met else 'MISSED'}, {row.budget:g} at most"
                print(f"{row.what:<52}{row.found:>9.2f} {row.unit:<12}{budget}  {row.note}".rstrip(), flush=True)
    if arguments.json:
        stored = {"machine": describe_machine(), "rows": [asdict(row) for row in rows]}
        arguments.json.write_text(json.dumps(stored, indent=1) + "\n", encoding="utf-8")
    return 1 if any(row.met is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
