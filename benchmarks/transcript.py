"""What the transcript costs: `python -m benchmarks.transcript [KIND …]`.

Feeds an answer of 4,000 tokens, offered at 200 tokens/s, through the governor into the transcript of a 120x40 screen,
for each kind of document, and times opening, resizing and another theme for a chat of 100 messages of 400 tokens. A
token is three characters. The processor time is that of the screen's thread, with the making of the escape codes.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import io
import random
import time
from collections import deque
from itertools import pairwise

from textual.app import App, ComposeResult
from textual.widgets import Static

from tui.pace import Governor
from tui.widgets.transcript import Entry, Transcript

TOKENS, RATE, CHARACTERS = 4000, 200, 3
LOOK = 0.01  # seconds between two looks at whether the event loop is held up
WORDS = [
    "the",
    "cache",
    "keeps",
    "last",
    "positions",
    "of",
    "window",
    "and",
    "each",
    "layer",
    "reads",
    "older",
    "tokens",
]


def sentence(source: random.Random, words: int = 14) -> str:
    """Some words, a few of them marked."""
    said = [source.choice(WORDS) for _ in range(words)]
    said[3], said[8] = f"**{said[3]}**", f"`{said[8]}`"
    return " ".join(said).capitalize() + ". "


def code(source: random.Random, lines: int) -> str:
    """Lines of Python."""
    shown = []
    for number in range(lines):
        if number % 9 == 0:
            shown.append(f"\ndef {source.choice(WORDS)}_{number}(cache, key, value, window=4096):")
        else:
            shown.append(
                f'    {source.choice(WORDS)} = cache[{number} % window] + "{source.choice(WORDS)}"  # note {number}'
            )
    return "\n".join(shown)


def document(kind: str) -> str:
    """4,000 tokens of one kind."""
    source, size, text = random.Random(7), TOKENS * CHARACTERS, ""
    if kind == "fence":
        text = "```python\n" + code(source, 400)
    elif kind == "short lines":
        text = "```json\n" + "\n".join(f'  "{n}",' for n in range(2000))
    elif kind == "table":
        text = "| n | name | what it does |\n|---:|---|---|\n"
    while len(text) < size:
        n = text.count("\n")
        if kind == "list":
            text += f"- {sentence(source, 10)}\n" + "".join(f"  - {sentence(source, 10)}\n" for _ in range(n % 3))
        elif kind == "table":
            text += f"| {n} | {source.choice(WORDS)} | {sentence(source, 10)[: 10 + n // 8]} |\n"
        elif kind in ("paragraph", "thinking"):
            text += sentence(source) + ("\n\n" if kind == "thinking" and source.random() < 0.2 else "")
        else:
            text += f"## {sentence(source, 9)}\n\n{sentence(source) * 4}\n\n"
            text += "".join(f"{i}. {sentence(source, 10)}\n" for i in range(1, 6))
            text += f"\n```python\n{code(source, 12)}\n```\n\n| a | b |\n|---|---|\n" + "| one | two |\n" * 5 + "\n"
    return text[:size]


KINDS = ("mixed", "fence", "short lines", "list", "table", "paragraph", "thinking", "thinking open")


class Bench(App[None]):
    """A screen as the chat has it: a transcript above a line of figures."""

    ENABLE_COMMAND_PALETTE = False

    def compose(self) -> ComposeResult:
        yield Transcript()
        yield Static("status")

    def _display(self, screen: object, renderable: object) -> None:  # also where there is no terminal, count its bytes
        super()._display(screen, renderable)  # type: ignore[arg-type]
        if renderable is not None and hasattr(renderable, "render_segments"):
            io.StringIO().write(renderable.render_segments(self.console))


async def stream(app: Bench, kind: str) -> None:
    """Feed one document and print what that cost."""
    view, governor = app.query_one(Transcript), Governor()
    text = document(kind.removesuffix(" open"))
    view.show([])
    view.add(Entry(1, "user", "You", "Please explain."))
    view.begin(Entry(2, "assistant", "Assistant", folded=False if kind.endswith("open") else None))
    queue: deque[str] = deque()
    produced = 0
    start = time.perf_counter()
    marks = [(0, time.thread_time())]
    stall = flushed = flush_longest = 0.0
    flushes = 0
    gc.collect()
    gc.freeze()  # as the chat does: a full collection would else stop the screen for some 50 ms
    last = start
    done = asyncio.Event()

    def drain() -> None:
        nonlocal produced, flush_longest, flushes, flushed
        due = min(TOKENS, int((time.perf_counter() - start) * RATE))
        queue.extend(text[i * CHARACTERS : (i + 1) * CHARACTERS] for i in range(produced, due))
        produced = due
        governor.beat()
        began = time.thread_time()
        piece = "".join(queue)
        queue.clear()
        view.feed(**{"thinking" if kind.startswith("thinking") else "text": piece})
        flush_longest = max(flush_longest, time.thread_time() - began)
        flushes += 1
        if produced >= TOKENS * len(marks) / 4:
            marks.append((produced, time.thread_time()))
        if produced < TOKENS:
            app.set_timer(governor.interval, drain)
        else:
            done.set()

    drain()
    while not done.is_set():
        await asyncio.sleep(LOOK)
        now = time.perf_counter()
        stall, last = max(stall, now - last - LOOK), now
    wall = time.perf_counter() - start
    each = [1e3 * (b[1] - a[1]) / max(1, b[0] - a[0]) for a, b in pairwise(marks)]
    total = 1e3 * (marks[-1][1] - marks[0][1]) / TOKENS
    print(
        f"{kind:<14} {total:.2f} ms/token (first quarter {each[0]:.2f}, last {each[-1]:.2f}), "
        f"{total * RATE / 10:.1f} % of a core, {flushes / wall:.0f} flushes/s, "
        f"longest flush {1e3 * flush_longest:.1f} ms, longest stall {1e3 * stall:.1f} ms",
        flush=True,
    )
    began = time.perf_counter()
    entry = Entry(2, "assistant", "Assistant", footer="4,000 tokens")
    setattr(entry, "thinking" if kind.startswith("thinking") else "text", text)
    view.end(entry)
    print(f"{'':<14} end {1e3 * (time.perf_counter() - began):.1f} ms")


async def opening(app: Bench) -> None:
    """Time what happens to a long chat at once."""
    view = app.query_one(Transcript)
    text = document("mixed")
    pieces = [text[i * 120 : i * 120 + 1200] for i in range(90)]
    entries = [Entry(n, "assistant" if n % 2 else "user", "x", pieces[n % 90]) for n in range(100)]
    view.show([])
    await asyncio.sleep(0.3)

    async def timed(name: str, act: object) -> None:
        painted = asyncio.Event()
        began = time.perf_counter()
        act()  # type: ignore[operator]
        acted = time.perf_counter()
        app.screen.call_after_refresh(painted.set)
        await painted.wait()
        print(f"{name:<14} {1e3 * (acted - began):.1f} ms, painted after {1e3 * (time.perf_counter() - began):.1f} ms")
        used, last, stall = time.thread_time(), time.perf_counter(), 0.0
        for _ in range(200):
            await asyncio.sleep(LOOK)
            now = time.perf_counter()
            stall, last = max(stall, now - last - LOOK), now
        print(f"{'':<14} afterwards {1e3 * (time.thread_time() - used):.0f} ms, longest stall {1e3 * stall:.1f} ms")

    await timed("show", lambda: view.show(entries))
    await timed("to the top", view.action_scroll_home)

    def themed() -> None:
        app.theme = "textual-light"

    await timed("another theme", themed)


async def measure(kinds: list[str]) -> None:
    """Run all of it on a screen of 120x40."""
    app = Bench()
    async with app.run_test(size=(120, 40)) as pilot:
        for kind in kinds:
            await stream(app, kind)
        await opening(app)
        began = time.thread_time()
        await pilot.resize_terminal(90, 40)
        print(f"{'resize':<14} {1e3 * (time.thread_time() - began):.1f} ms of processor, some of it for reading ahead")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("kinds", nargs="*", metavar="KIND", help=", ".join(KINDS))
    asyncio.run(measure(parser.parse_args().kinds or list(KINDS)))
