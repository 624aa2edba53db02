"""Connections that are slow, idle or too many."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.server.conftest import Running
from tests.server.test_guard import received

Start = Callable[..., Running]
GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


def answered(line: socket.socket) -> bytes:
    """One answer of /health, to its end."""
    line.settimeout(20)
    data = b""
    while not data.endswith(b"}"):
        data += (piece := line.recv(65536))
        if not piece:
            break
    return data


def test_a_head_that_does_not_come_ends_the_connection(start: Start) -> None:
    running = start(header_s=0.3)
    for sent in (b"", b"GET /health HT", b"GET /health HTTP/1.1\r\nHost: "):
        with running.connect() as line:
            began = time.monotonic()
            line.sendall(sent)
            assert received(line) == b""
            assert 0.2 < time.monotonic() - began < 5


def test_a_head_in_drips_is_no_faster(start: Start) -> None:
    with start(header_s=0.4).connect() as line:
        began = time.monotonic()
        try:
            for byte in GET * 3:
                line.sendall(bytes([byte]) if byte != 10 else b"x")
                time.sleep(0.05)
        except OSError:
            pass
        assert time.monotonic() - began < 3


def test_an_idle_connection_is_closed(start: Start) -> None:
    with start(idle_s=0.3).connect() as line:
        line.sendall(GET)
        assert answered(line).startswith(b"HTTP/1.1 200")
        assert received(line) == b""


def test_a_connection_answers_again_and_again(start: Start) -> None:
    with start(header_s=0.3, idle_s=5).connect() as line:
        for _ in range(3):
            line.sendall(GET)
            assert answered(line).startswith(b"HTTP/1.1 200")
            time.sleep(0.4)  # longer than a head may take


def test_the_rest_of_a_refused_body_is_not_waited_for(start: Start) -> None:
    with start(header_s=0.3, keys=("k",)).connect() as line:
        line.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n")
        assert received(line).startswith(b"HTTP/1.1 401")


def test_the_longest_idle_connection_makes_room(start: Start) -> None:
    running = start(max_connections=2)
    with running.connect() as first, running.connect() as second:
        for line in (first, second):
            line.sendall(GET)
            assert answered(line).startswith(b"HTTP/1.1 200")
        third = running.connect()
        third.sendall(GET)
        assert answered(third).startswith(b"HTTP/1.1 200")
        assert received(first) == b""
        second.sendall(GET)
        assert answered(second).startswith(b"HTTP/1.1 200")


def test_where_none_is_idle_a_new_one_is_told_so(start: Start) -> None:
    running = start(max_connections=1)
    with running.connect() as busy, running.connect() as late:
        busy.sendall(GET[:10])
        time.sleep(0.1)
        late.sendall(GET)
        told = received(late)
        assert told.startswith(b"HTTP/1.1 503")
        assert b"retry-after: 1" in told
        busy.sendall(GET[10:])
        assert answered(busy).startswith(b"HTTP/1.1 200")


def test_who_reads_nothing_makes_room(start: Start) -> None:
    running = start(max_connections=2, write_s=0.3)
    lines = [socket.socket() for _ in range(2)]
    for line in lines:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", running.port))
        line.setblocking(False)
        with suppress(BlockingIOError):
            for _ in range(20):
                line.send(GET.replace(b"health", b"openapi.json") * 500)
    end = time.monotonic() + 10
    while (status := running.ask("GET", "/health").status) != 200:
        assert time.monotonic() < end, status
        time.sleep(0.1)
    for line in lines:
        line.close()


def test_what_is_no_http_is_refused(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    with running.connect() as line:
        line.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n")
        head, _, body = received(line).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]["code"] == "invalid_http"
    told = json.loads(capsys.readouterr().err)
    assert told["request_id"].encode() in head
    assert told["status"] == 400


def test_what_is_wanted_may_be_named_with_the_host(running: Running) -> None:
    with running.connect() as line:
        line.sendall(GET.replace(b"/health", b"http://localhost/health"))
        assert answered(line).startswith(b"HTTP/1.1 200")
