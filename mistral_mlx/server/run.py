"""From an address to a running server, and to its end."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from types import FrameType

import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from mistral_mlx.errors import InputError
from mistral_mlx.server.app import create_app
from mistral_mlx.server.connections import protocol
from mistral_mlx.server.engine import Engine
from mistral_mlx.server.journal import write_line
from mistral_mlx.server.settings import Settings

# What answers get to tell that they were ended.
_LAST_WORDS_S = 5


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens at an address, so that a model that takes minutes to load is not loaded in vain; who
    connects before it is loaded waits.

    Raises:
        InputError: there is no such address here, or it is taken.
    """
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, number)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen()  # only then nobody else can have it
        except OSError:
            bound.close()
            raise
    except UnicodeError as error:
        raise InputError(f"{host} cannot be used: it is no name of a host.", "Give another --host.") from error
    except OSError as error:
        hint = "Give another --port, or 0 for any that is free." if port else "Give another --host."
        raise InputError(f"{host} port {port} cannot be used: {error.strerror}.", hint) from error
    return bound


def serve(engine: Engine, settings: Settings, bound: socket.socket, started: Callable[[], None]) -> None:
    """Answer requests until the process is told to stop, and then until those that run are answered.

    Args:
        started: called once requests are answered.

    Raises:
        KeyboardInterrupt: it was told to stop at once.
    """
    server = Server(engine, settings, started)
    server.run([bound])
    if server.hurried:
        raise KeyboardInterrupt


class Server(uvicorn.Server):
    """uvicorn's, which ends in peace: SIGTERM and Ctrl-C let running answers finish, a second Ctrl-C does not.

    Attributes:
        hurried: it was told to stop at once.
    """

    hurried = False

    def __init__(self, engine: Engine, settings: Settings, started: Callable[[], None]) -> None:
        self._engine = engine
        self._settings = settings
        self._started = started
        self.app: FastAPI = create_app(engine, settings)
        super().__init__(
            uvicorn.Config(
                self.app,
                loop="asyncio",
                http=protocol(settings),
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="error",
                access_log=False,
                server_header=False,
                timeout_keep_alive=settings.idle_s,  # type: ignore[arg-type]  # it takes any number
                timeout_graceful_shutdown=int(settings.drain_s) + _LAST_WORDS_S,
            )
        )

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop; at a second Ctrl-C without waiting for answers, at a third without a word."""
        if self.should_exit and sig == signal.SIGINT:
            if self.hurried:
                raise KeyboardInterrupt
            self.hurried = True
            self._loop.call_soon_threadsafe(self._hurry.set)
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop, self._hurry = asyncio.get_running_loop(), asyncio.Event()
        await super().startup(sockets)
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._engine.drain()
        state = self._engine.state
        if running := state.waiting + state.reading + state.decoding:
            write_line(event="stopping", answers=running, drain_s=self._settings.drain_s, hint="Ctrl-C ends them now")
        late = asyncio.create_task(self._end_late_answers())
        await super().shutdown(sockets)
        late.cancel()

    async def _end_late_answers(self) -> None:
        """They say so to whoever waits for them."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), self._settings.drain_s)
        await run_in_threadpool(self._engine.close)
