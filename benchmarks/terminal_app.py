"""The terminal chat as `benchmarks.terminal` runs it in a terminal of its own: the real app, a model with a script.

Takes one argument, a Case as JSON, and writes what it measures to the pipe that the Case names, a line of JSON each.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event
from typing import Any

from mistral_mlx.completion import ToolCall
from mistral_mlx.worker import Job
from tests.tui.fake_llm import FakeLLM, loader
from tui import app as chat
from tui.engine import Ask, Engine
from tui.session import Answer
from tui.start import Start


@dataclass(frozen=True)
class Case:
    """What the app is to do.

    Attributes:
        pipe: the descriptor that facts are written to.
        answer: a file with what the model says to everything.
        tokens_per_s: how fast it says it; 0 where the next two say so.
        build_s: processor time that each step takes with the interpreter locked.
        compute_s: seconds that each step then takes without it.
        model: "fake", or one with weights.
        screen: False for the model alone, asked at once.
        resume: the id of the conversation to show.
    """

    pipe: int
    answer: str = ""
    tokens_per_s: float = 0.0
    build_s: float = 0.0
    compute_s: float = 0.0
    model: str = "fake"
    max_tokens: int = 8192
    screen: bool = True
    resume: str | None = None

    def to_json(self) -> str:
        """For the command line."""
        return json.dumps(asdict(self))

    def tell(self, what: str, **facts: Any) -> None:
        """Write a fact, with when it was."""
        line = json.dumps({"what": what, "at": time.monotonic(), **facts}) + "\n"
        os.write(self.pipe, line.encode())


@dataclass
class Steps(FakeLLM):
    """A scripted model whose steps cost what a real one's do."""

    build_s: float = 0.0
    compute_s: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.begun: list[float] = []

    @property
    def rate(self) -> float:
        """Steps a second, from the first to the last."""
        seconds = self.begun[-1] - self.begun[0] if len(self.begun) > 1 else 0.0
        return (len(self.begun) - 1) / seconds if seconds else 0.0

    def _pace(self, first: float, count: int, cancel: Event | None) -> None:
        self.begun.append(time.monotonic())
        if self.tokens_per_s:
            super()._pace(first, count, cancel)
            return
        # By the thread's own clock: what others take of the interpreter meanwhile makes the step longer.
        until = time.thread_time() + self.build_s
        while time.thread_time() < until:
            pass
        time.sleep(self.compute_s)


class MeasuredChat(chat.ChatApp):
    """The chat, which tells what it did and what that cost."""

    CSS_PATH = Path(chat.__file__).with_name("app.tcss")
    case: Case
    llm: Steps

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if self.case.model == "fake":
            options["engine"] = lambda wake: Engine(wake, load=loader(self.llm))
        super().__init__(*arguments, **options)
        self._fed: list[tuple[int, float, float]] = []  # tokens, the screen's thread, the whole process

    def on_mount(self) -> None:
        """Tell the processor time whenever it is asked for."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, lambda: self.case.tell("cpu", seconds=time.process_time()))

    def feed_answer(self, text: str, thinking: str, calls: Sequence[ToolCall]) -> None:
        """Note what has been used so far."""
        if self.session.answer:
            self._fed.append((self.session.answer.count, time.thread_time(), time.process_time()))
        super().feed_answer(text, thinking, calls)

    def end_answer(self, answer: Answer) -> None:
        """Tell what the answer cost, its last drawing included."""
        super().end_answer(answer)
        self.call_after_refresh(self._tell_end, answer)

    def _tell_end(self, answer: Answer) -> None:
        self._fed.append((answer.count, time.thread_time(), time.process_time()))
        stats = answer.turn.stats
        rate = self.llm.rate or (stats.decode_tps if stats else 0.0)
        self.case.tell("end", fed=self._fed, tokens_per_s=rate, text=answer.turn.text[:200])
        self._fed = []

    def action_stop(self) -> None:
        """Tell when the key had come, and how many steps are begun after it."""
        at = time.monotonic()
        super().action_stop()
        cancelled = time.monotonic()

        def tell() -> None:
            self.case.tell("stop", came=at, steps_after=sum(begun > cancelled for begun in self.llm.begun))

        self.set_timer(0.5, tell)


def without_screen(case: Case, llm: Steps) -> None:
    """The model alone, in the same engine, asked once."""
    sys.setswitchinterval(chat.SWITCH_S)
    engine = Engine(lambda: None, load=None if case.model != "fake" else loader(llm))
    from mistral_mlx import Message

    def wait(job: Job, done: list[Any]) -> None:
        while not done:
            time.sleep(0.1)
            engine.drain()

    loaded: list[Any] = []
    wait(engine.load(case.model, on_done=loaded.append, on_error=loaded.append), loaded)
    ended: list[Any] = []
    stats: list[Any] = []
    ask = Ask("", [Message("user", QUESTION)], {"max_tokens": case.max_tokens, "temperature": 0.0, "seed": 1})
    job = engine.answer(
        ask,
        on_chunks=lambda chunks: stats.extend(chunk.stats for chunk in chunks if chunk.stats),
        on_done=ended.append,
        on_error=ended.append,
    )
    wait(job, ended)
    case.tell("end", tokens_per_s=llm.rate or stats[-1].decode_tps)
    engine.close()


# What is asked, with a screen or without.
QUESTION = "Tell me a long story about the sea."


def main() -> int:
    """Do what the case says."""
    case = Case(**json.loads(sys.argv[1]))
    said = Path(case.answer).read_text(encoding="utf-8") if case.answer else "Nothing."
    llm = Steps(
        script=lambda _: said, tokens_per_s=case.tokens_per_s, build_s=case.build_s, compute_s=case.compute_s,
        context_length=1_000_000,
    )  # fmt: skip
    answer = llm.script

    def asked(text: str) -> str:
        case.tell("asked", text=text)
        return answer(text)

    llm.script = asked
    if not case.screen:
        without_screen(case, llm)
        return 0
    MeasuredChat.case, MeasuredChat.llm = case, llm
    chat.ChatApp = MeasuredChat  # type: ignore[misc]
    options = {"max_tokens": case.max_tokens, "temperature": 0.0, "seed": 1}
    return chat.run(Start(model=case.model, options=options, resume=case.resume))


if __name__ == "__main__":
    sys.exit(main())
