"""A server in a thread of its own over a tiny model, and what talks to it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

import pytest
from openai import OpenAI

import mistral_mlx as mm
from mistral_mlx.server.engine import Engine
from mistral_mlx.server.run import Server, bind
from mistral_mlx.server.settings import Settings
from mistral_mlx.text.chat import MistralChat
from mistral_mlx.text.files import Text
from tests.chat_formats import tekken_of
from tests.conftest import make_model

HELLO = [{"role": "user", "content": "Hello"}]
SERVERS: list[Running] = []  # that run now


@dataclass(frozen=True)
class Answer:
    """What came back over HTTP."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]

    @property
    def events(self) -> list[Any]:
        """The data of server-sent events; the last is "[DONE]" if the stream ended well."""
        told = [line.removeprefix("data: ") for line in self.body.decode().split("\n\n") if line]
        return [line if line == "[DONE]" else json.loads(line) for line in told]


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    engine: Engine
    server: Server
    port: int

    @property
    def client(self) -> OpenAI:
        return OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="none", max_retries=0)

    def ask(self, method: str, path: str, body: Any = None, **headers: str | None) -> Answer:
        """One request; a body that is no bytes is sent as JSON. A header that is None is left out."""
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
        given = {"content-type": "application/json"} | {n.replace("_", "-"): v for n, v in headers.items()}
        sent = {name: value for name, value in given.items() if value is not None}
        connection = HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Answer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def chat(self, **fields: Any) -> Answer:
        return self.ask("POST", "/v1/chat/completions", {"model": "tiny", "messages": HELLO, "max_tokens": 8} | fields)

    def complete(self, **fields: Any) -> Answer:
        return self.ask("POST", "/v1/completions", {"model": "tiny", "prompt": "Hello", "max_tokens": 8} | fields)

    def settle(self) -> None:
        """Wait until all is answered that was asked: only then the log has its line."""
        end = time.monotonic() + 10
        while self.server.server_state.tasks:
            assert time.monotonic() < end
            time.sleep(0.001)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Text:
    """Mistral's latest format, over a small vocabulary."""
    tokenizer = tekken_of("v15", tmp_path_factory.mktemp("v15"), size=1500)
    return Text(tokenizer, MistralChat(tokenizer), True)


def make_llm(text: Text, **changes: Any) -> mm.LLM:
    """A tiny model that talks nonsense, the same each time."""
    shape = {"vocab_size": 1500, "sliding_window": None, "max_position_embeddings": 2048}
    return mm.LLM(make_model(**shape | changes), text)


@pytest.fixture(scope="session")
def llm(text: Text) -> mm.LLM:
    """The model for tests without a server, whose own lives on a thread."""
    return make_llm(text)


@contextmanager
def serving(text: Text, llm: Callable[[], mm.LLM] | None = None, **changes: Any) -> Iterator[Running]:
    """A server with other settings than the usual ones, or with another model."""
    settings = Settings(**{"name": "tiny", "drain_s": 5.0} | changes)
    engine, started = Engine(lambda job: llm() if llm else make_llm(text)), threading.Event()
    bound = bind("127.0.0.1", 0)
    server = Server(engine, settings, started.set)
    thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
    thread.start()
    running = Running(engine, server, bound.getsockname()[1])
    SERVERS.append(running)
    try:
        assert started.wait(10)
        yield running
    finally:
        SERVERS.remove(running)
        server.should_exit = True
        thread.join(20)
        engine.close()


@pytest.fixture(autouse=True)
def own_lines() -> Iterator[None]:
    """No line of the log comes after the test that asked."""
    yield
    for running in SERVERS:
        running.settle()


@pytest.fixture(scope="session")
def running(text: Text) -> Iterator[Running]:
    """The server that most tests share."""
    with serving(text) as it:
        yield it


@pytest.fixture
def start(text: Text) -> Iterator[Callable[..., Running]]:
    """Starts servers with settings of their own."""
    with ExitStack() as stack:
        yield lambda **changes: stack.enter_context(serving(text, **changes))
