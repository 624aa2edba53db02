"""Clients that go away, and engines that fail or are full."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

import mistral_mlx as mm
from mistral_mlx.server import calls
from tests.server.conftest import Running

Start = Callable[..., Running]
LONG = {"model": "tiny", "prompt": "Hello", "max_tokens": 1900, "temperature": 0, "logit_bias": {"1200": 100}}


def post(line: socket.socket, body: Any) -> None:
    data = json.dumps(body).encode()
    head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
    line.sendall(head.encode() + str(len(data)).encode() + b"\r\n\r\n" + data)


def busy(running: Running) -> int:
    state = running.engine.state
    return state.waiting + state.reading + state.decoding


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 5
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_what_nobody_waits_for_is_cancelled(stream: bool, start: Start) -> None:
    running = start()
    line = running.connect()
    post(line, LONG | {"stream": stream, "n": 2})
    until(lambda: busy(running) > 0)
    if stream:
        assert b"200 OK" in line.recv(1000)
    began = time.monotonic()
    line.close()
    until(lambda: busy(running) == 0)
    assert time.monotonic() - began < 1
    assert running.complete().status == 200


def test_a_client_that_leaves_is_in_the_log(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    running = start()
    with running.connect() as line:
        post(line, LONG)
        until(lambda: running.engine.state.decoding > 0)
        time.sleep(0.05)
    with running.connect() as line:
        post(line, LONG | {"stream": True})
        line.recv(1000)
    until(lambda: busy(running) == 0)
    running.settle()
    whole, streamed = [json.loads(row) for row in capsys.readouterr().err.splitlines() if row.startswith("{")]
    assert whole["status"] == 499
    assert streamed["error"] == "the client left"
    page = running.ask("GET", "/metrics").body.decode()
    prompt = len(running.engine.llm.encode("Hello"))
    assert f"mistral_mlx_prompt_tokens_total {2 * prompt}.0" in page  # whoever leaves, it was computed
    assert "mistral_mlx_completion_tokens_total 0.0" not in page


def test_of_who_leaves_nothing_more_is_read(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, read, go = calls.read_completion, [], threading.Event()

    def slow(*given: Any) -> Any:
        read.append(given)
        go.wait(10)
        return whole(*given)

    monkeypatch.setattr(calls, "read_completion", slow)
    lines = [running.connect() for _ in range(20)]
    for line in lines:
        post(line, LONG)
    until(lambda: len(read) > 0)
    for line in lines:
        line.close()
    time.sleep(0.1)
    go.set()
    assert running.complete().status == 200
    assert len(read) < 10
    until(lambda: busy(running) == 0)


def test_a_full_queue_says_when_to_come_again(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise mm.BusyError("There are 256 waiting.", "Ask again later.", 2.5)

    monkeypatch.setattr(running.engine, "submit", full)
    for stream in (False, True):
        answer = running.chat(stream=stream)
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert answer.headers["retry-after"] == "3"


def test_of_several_answers_none_is_left_behind(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    submit, taken = running.engine.submit, []

    def nearly_full(*arguments: Any) -> None:
        if len(taken) == 2:
            raise mm.BusyError("There are 256 waiting.")
        taken.append(arguments[0])
        submit(*arguments)

    monkeypatch.setattr(running.engine, "submit", nearly_full)
    assert running.ask("POST", "/v1/completions", LONG | {"n": 3}).status == 503
    until(lambda: busy(running) == 0)


def test_a_request_that_fails_fails_alone(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = running.engine.submit

    def broken(request: Any, deliver: Callable[[Exception], None]) -> None:
        deliver(RuntimeError("the secret inside"))

    monkeypatch.setattr(running.engine, "submit", broken)
    for stream in (False, True):
        answer = running.chat(stream=stream)
        assert answer.status == 500
        assert b"secret" not in answer.body
    monkeypatch.setattr(running.engine, "submit", submit)
    assert running.chat().status == 200


def test_an_error_in_mid_stream_is_an_event(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    submit = running.engine.submit

    def breaking(request: Any, deliver: Callable[[Any], None]) -> None:
        def once(chunk: Any) -> None:
            deliver(chunk)
            deliver(mm.OutOfMemoryError("There is no room.", ""))

        submit(request, once)

    monkeypatch.setattr(running.engine, "submit", breaking)
    *_, last = running.complete(stream=True).events
    assert last["error"]["code"] == "out_of_memory"
    monkeypatch.setattr(running.engine, "submit", submit)
    until(lambda: busy(running) == 0)


def test_a_server_whose_engine_died_says_so(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    dead = replace(running.engine.state, alive=False)
    monkeypatch.setattr(type(running.engine), "state", property(lambda _: dead))
    answer = running.ask("GET", "/health")
    assert (answer.status, answer.json) == (503, {"status": "failed"})
