"""Measure how long the terminal chat's store takes with many conversations in it.

uv run python -m benchmarks.conversations [--conversations N] [--messages N] [--rounds N]
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from mistral_mlx.completion import Stats
from tui.conversation import Conversation, Turn, new_id
from tui.store import Store

BUDGET_MS = 200.0  # of a list, and of a search
_SYLLABLES = [consonant + vowel for consonant in "bcdfglmn" for vowel in "aeio"]
_STATS = Stats(900, 800, 150, 0.2, 900.0, 60.0, 10**8, 5 * 10**9)


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns 1 if a list or a search took longer than the budget."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.conversations", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--conversations", type=int, default=2_000, metavar="N", help="how many (2000)")
    parser.add_argument("--messages", type=int, default=100_000, metavar="N", help="in all of them (100000)")
    parser.add_argument("--rounds", type=int, default=20, metavar="N", help="how often each is measured (20)")
    arguments = parser.parse_args(argv)
    if min(vars(arguments).values()) < 1:
        parser.error("all numbers must be at least 1")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "chats.db"
        began = time.perf_counter()
        fill(path, arguments.conversations, arguments.messages)
        size, seconds = path.stat().st_size / 1e6, time.perf_counter() - began
        print(f"{arguments.conversations} conversations, {arguments.messages} messages: {size:.0f} MB, {seconds:.0f} s")
        print(f"{'ms':<40}{'median':>10}{'worst':>10}")
        late = [name for name, worst in measure(path, arguments.rounds) if worst > BUDGET_MS]
    if late:
        print(f"Over the budget of {BUDGET_MS:.0f} ms: {', '.join(late)}.", file=sys.stderr)
    return 1 if late else 0


class Writer:
    """Makes up conversations of words that are as common or rare as those of a language."""

    def __init__(self) -> None:
        self._chance = random.Random(0)
        words = {"".join(self._chance.choices(_SYLLABLES, k=self._chance.randint(1, 5))) for _ in range(30_000)}
        self._words = sorted(words, key=lambda word: (len(word), word))  # the short ones are common
        self._weights = list(accumulate(1 / rank for rank in range(1, len(words) + 1)))

    def conversation(self, messages: int) -> Conversation:
        """Questions of about 200 characters and answers of about 1,000, with their tokens."""
        made = Conversation(title=self._said(6), pinned=self._chance.random() < 0.01, model="mistral-7b")
        for i in range(messages):
            if i % 2 == 0:
                made.add(Turn(new_id(), made.tip, "user", self._said(30)))
                continue
            turn = made.add(Turn(new_id(), made.tip, "assistant", self._said(150), finish="stop", stats=_STATS))
            turn.tokens.add(range(150), [-0.5] * 150, len(turn.text))
            turn.kept = tuple(turn.tokens.ids)
        return made

    def _said(self, words: int) -> str:
        rare = ["needle"] if self._chance.random() < 0.0005 else []
        return " ".join(self._chance.choices(self._words, cum_weights=self._weights, k=words) + rare)


def fill(path: Path, conversations: int, messages: int) -> None:
    """Write them, and one of 100 messages."""
    writer, store = Writer(), Store(path)
    for number in range(conversations):
        conversation = writer.conversation(messages // conversations + (number < messages % conversations))
        store.save(conversation, conversation.turns.values())
    conversation = writer.conversation(100)
    conversation.id = "ahundred"
    store.save(conversation, conversation.turns.values())
    store.close()


def measure(path: Path, rounds: int) -> list[tuple[str, float]]:
    """Print the median and the worst of each in milliseconds; returns the worst of what has a budget."""
    store = Store(path)
    conversation = store.load("ahundred")
    answer = conversation.add(Turn(new_id(), conversation.tip, "assistant"))

    def save_more() -> None:
        answer.text += "and so on, " * 90
        answer.tokens.add(range(250), [-0.5] * 250, len(answer.text))
        store.save(conversation, [answer])

    def finish() -> None:
        turn = Turn(new_id(), conversation.tip, "assistant", answer.text, finish="stop", tokens=answer.tokens)
        store.save(conversation, [turn])

    budgeted: dict[str, Callable[[], object]] = {
        "list, the first 100": store.listing,
        "list, all": lambda: store.listing(limit=1_000_000),
        "search, a word in most messages": lambda: store.search("ba "),
        "search, a rare word": lambda: store.search("needle"),
        "search, three common words": lambda: store.search("be ca di"),
        "search, a word that is nowhere": lambda: store.search("haystack"),
        "search, one letter as a beginning": lambda: store.search("b"),
        "search, a beginning": lambda: store.search("babe"),
        "search, a phrase of rare beginnings": lambda: store.search("needle ba"),
    }
    others: dict[str, Callable[[], object]] = {
        "opening the store": lambda: Store(path).close(),
        "opening a conversation of 100 messages": lambda: store.load("ahundred"),
        "saving a growing answer, up to 20 KB": save_more,
        "saving a finished answer of 20 KB": finish,
    }
    worst = {name: _print_times(name, do, rounds) for name, do in (budgeted | others).items()}
    return [(name, worst[name]) for name in budgeted]


def _print_times(name: str, do: Callable[[], object], rounds: int) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        do()
        times.append((time.perf_counter() - start) * 1e3)
    print(f"{name:<40}{median(times):>10.2f}{max(times):>10.2f}", flush=True)
    return max(times)


if __name__ == "__main__":
    sys.exit(main())
