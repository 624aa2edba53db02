"""Many clients at once: none lost, none mixed up, nothing left behind, whatever some of them do."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import pytest

import mistral_mlx as mm
from mistral_mlx.backend import active_memory
from mistral_mlx.text.files import Text
from tests.server.conftest import Running, make_llm, serving

WINDOWS: dict[str, Any] = {"window": 16, "full": None, "mix": (None, 16)}
WORDS = ["the", "a", "of", "to", "and", "in", "is", "it", "you", "that", "he", "was", "for", "on", "are", "with"]


@dataclass
class Outcome:
    """What a client saw.

    Attributes:
        left: it went away before the end.
    """

    status: int = 0
    text: str = ""
    left: bool = False
    done: bool = False
    body: bytes = field(default=b"", repr=False)


def some(count: int, seed: int) -> list[dict[str, Any]]:
    """Requests of random length, past the window and not; some are chats, some are streamed."""
    chance = random.Random(seed)
    asked = []
    for k in range(count):
        words = " ".join(chance.choices(WORDS, k=chance.choice([1, 5, 20, 80, 250])))
        body: dict[str, Any] = {"model": "tiny", "max_tokens": chance.randint(1, 40), "seed": k}
        body["temperature"] = chance.choice([0, 0.7, 1])
        body["stream"] = chance.random() < 0.5
        body |= {"prompt": words} if chance.random() < 0.5 else {"messages": [{"role": "user", "content": words}]}
        asked.append(body)
    return asked


async def post(port: int, body: dict[str, Any], leave_after: float | None) -> Outcome:
    path, data, seen = "chat/completions" if "messages" in body else "completions", json.dumps(body).encode(), Outcome()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + f"Content-Length: {len(data)}\r\n\r\n".encode() + data)
    try:
        raw = await asyncio.wait_for(reader.read(), leave_after)
    except TimeoutError:
        seen.left = True
        return seen
    finally:
        writer.close()
    first, _, rest = raw.partition(b"\r\n\r\n")
    seen.status = int(first.split()[1])
    seen.body = b"".join(rest.split(b"\r\n")[1::2]) if b"chunked" in first else rest
    if seen.status == 200:
        seen.text, seen.done = read_text(seen.body, stream=body["stream"])
    return seen


def read_text(body: bytes, *, stream: bool) -> tuple[str, bool]:
    """An answer's text, thoughts included, and whether it came to its end."""
    events = [line[6:] for line in body.decode().split("\n\n") if line] if stream else [body.decode()]
    text = ""
    for event in events:
        if event != "[DONE]":
            for choice in json.loads(event)["choices"]:
                said = choice.get("delta") or choice.get("message") or choice
                text += (said.get("reasoning_content") or "") + (said.get("content") or said.get("text") or "")
    return text, not stream or events[-1] == "[DONE]"


def alone(llm: mm.LLM, body: dict[str, Any]) -> str:
    """What a request is answered with where nothing else is."""
    options = {name: body[name] for name in ("max_tokens", "seed", "temperature")}
    llm.forget()
    if "prompt" in body:
        return llm.generate(body["prompt"], **options).text
    answer = llm.chat(messages=body["messages"]).reply(**options)
    return answer.thinking + answer.text


async def load(port: int, bodies: list[dict[str, Any]], clients: int, seed: int) -> list[Outcome]:
    chance, turn = random.Random(seed), asyncio.Semaphore(clients)
    leave = [chance.random() * 0.5 if chance.random() < 0.2 else None for _ in bodies]

    async def one(body: dict[str, Any], leave_after: float | None) -> Outcome:
        async with turn:
            return await post(port, body, leave_after)

    return list(await asyncio.gather(*map(one, bodies, leave)))


def spoil(body: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    wrong: list[dict[str, Any]] = [{"temperature": 9}, {"nothing": 1}, {"max_tokens": -1}, {"model": "other"}]
    return body | chance.choice(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("window", WINDOWS)
def test_under_load_each_answer_is_its_own(window: str, text: Text) -> None:
    """64 clients, 500 requests; a fifth of the clients leave, and one request of twenty is wrong."""
    chance = random.Random(3)
    bodies = some(500, seed=1)
    wrong = {k for k in range(500) if chance.random() < 0.05}
    asked = [spoil(body, chance) if k in wrong else body for k, body in enumerate(bodies)]
    make: Callable[[], mm.LLM] = lambda: make_llm(text, sliding_window=WINDOWS[window])  # noqa: E731
    with serving(text, llm=make) as running:
        asyncio.run(load(running.port, some(60, seed=2), 16, seed=2))
        settled = held(running)
        outcomes = asyncio.run(asyncio.wait_for(load(running.port, asked, 64, seed=1), 240))
        assert held(running) == pytest.approx(settled, rel=0.02)
        assert running.complete().status == 200
        held(running)
        assert b"mistral_mlx_decoding 0.0" in running.ask("GET", "/metrics").body
    llm, apart = make(), []
    for k, (body, outcome) in enumerate(zip(bodies, outcomes, strict=True)):
        if outcome.left:
            continue
        if k in wrong:
            assert outcome.status in (400, 404)
            continue
        assert (outcome.status, outcome.done) == (200, True), outcome.body
        if outcome.text != alone(llm, body):
            apart.append(k)
    assert len(apart) <= 1, apart  # two tokens as likely as each other, read in other pieces
    assert sum(outcome.left for outcome in outcomes) > 20
    assert sum(outcome.status == 200 for outcome in outcomes) > 300


def held(running: Running) -> int:
    """Bytes that MLX holds once all is quiet, and what is kept of earlier prompts and shapes has been let go of."""
    gc.collect()  # models of other tests
    engine, end = running.engine, time.monotonic() + 20
    while (state := engine.state).waiting + state.reading + state.decoding:
        assert time.monotonic() < end
        time.sleep(0.01)
    found: SimpleQueue[int] = SimpleQueue()

    def count() -> None:
        engine.llm.forget()
        engine.llm.model.step._functions.clear()
        gc.collect()
        found.put(active_memory())

    engine._inbox.put(count)
    return found.get(timeout=20)
