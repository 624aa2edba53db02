"""Answers on their way from the engine's thread to the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import suppress
from functools import partial
from typing import TypeVar

from starlette.requests import Request as HttpRequest

from mistral_mlx.completion import Chunk
from mistral_mlx.request import Request
from mistral_mlx.server.engine import Engine
from mistral_mlx.server.faults import stopping

T = TypeVar("T")


class ClientLeft(Exception):
    """Whoever asked is gone, so nothing need be answered."""


async def run(engine: Engine, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Chunk]]:
    """Chunks of all answers as they come, each with the index of its request. When it is closed they are cancelled.

    Raises:
        BusyError: the engine takes no more.
        Refusal: the server stops before they have ended.
        Exception: what one of them failed with; the others end with it.
    """
    loop = asyncio.get_running_loop()
    came: asyncio.Queue[tuple[int, Chunk | Exception]] = asyncio.Queue()

    def deliver(index: int, what: Chunk | Exception) -> None:
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(came.put_nowait, (index, what))

    running: set[int] = set()
    try:
        for index, request in enumerate(requests):
            engine.submit(request, partial(deliver, index))
            running.add(index)
        while running:
            index, what = await came.get()
            if isinstance(what, Exception):
                running.remove(index)
                raise what
            if what.stats:
                running.remove(index)
            if what.finish_reason == "cancelled":
                raise stopping("The server stopped before the answer was complete.")
            yield index, what
    finally:
        for index in running:
            engine.cancel(requests[index])


async def unless_gone(http: HttpRequest, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled when the client goes away.

    Raises:
        ClientLeft: it did.
    """
    done, gone = asyncio.ensure_future(work), asyncio.ensure_future(_disconnect(http))
    try:
        await asyncio.wait({done, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            raise ClientLeft
        return done.result()
    finally:
        for task in (done, gone):
            task.cancel()
        await asyncio.gather(done, gone, return_exceptions=True)


async def _disconnect(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
