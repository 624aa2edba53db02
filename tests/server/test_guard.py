"""Who may ask, and what bodies are taken."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from openai import AuthenticationError, OpenAI

from tests.server.conftest import HELLO, Running

Start = Callable[..., Running]


# ---- keys and names ---------------------------------------------------------------------------------------------


def test_without_its_key_nothing_is_served(start: Start) -> None:
    running = start(keys=("secret", "other"))
    for path in ("/v1/models", "/v1/models/tiny", "/metrics", "/nowhere"):
        refused = running.ask("GET", path)
        assert (refused.status, refused.error["code"]) == (401, "invalid_api_key")
        assert refused.headers["www-authenticate"] == "Bearer"
    for key in ("secret", "other"):
        assert running.ask("GET", "/v1/models", authorization=f"Bearer {key}").status == 200
    for given in ("Bearer secre", "Bearer secret2", "Bearer", "Basic secret", "secret", "Bearer \xe9"):
        assert running.ask("GET", "/v1/models", authorization=given).status == 401
    for path in ("/health", "/docs", "/openapi.json"):
        assert running.ask("GET", path).status == 200
    url = f"http://127.0.0.1:{running.port}/v1"
    assert OpenAI(base_url=url, api_key="secret").models.list().data[0].id == "tiny"
    with pytest.raises(AuthenticationError) as caught:
        OpenAI(base_url=url, api_key="wrong").models.list()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:80",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:9999",
        "127.0.0.2:80",
        "[::1]",
        "[::1]:8080",
        "[0:0:0:0:0:0:0:1]:80",
    ],
)
def test_names_of_this_machine_are_answered_to(host: str, running: Running) -> None:
    assert running.ask("GET", "/v1/models", Host=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8080", "localhost.evil.example", "", "127.0.0.1.nip.io", "[::2]", "::1:80:80"],
)
def test_other_names_are_not(host: str, running: Running, start: Start) -> None:
    refused = running.ask("GET", "/v1/models", Host=host)
    assert (refused.status, refused.error["code"]) == (403, "host_not_allowed")
    if host:
        assert start(keys=("k",)).ask("GET", "/v1/models", Host=host, authorization="Bearer k").status == 200


def test_pages_of_other_sites_may_not_read_unless_they_are_let(running: Running, start: Start) -> None:
    ask = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in running.ask("OPTIONS", "/v1/models", **ask).headers
    assert "access-control-allow-origin" not in running.ask("GET", "/v1/models", **ask).headers
    let = start(origins=("https://app.example",), keys=("k",))
    before = let.ask("OPTIONS", "/v1/chat/completions", **ask)  # a browser asks without the key
    assert before.status == 200
    assert before.headers["access-control-allow-origin"] == "https://app.example"
    assert let.ask("GET", "/v1/models", **ask).headers["access-control-allow-origin"] == "https://app.example"
    assert "access-control-allow-origin" not in let.ask("GET", "/v1/models", Origin="https://evil.example").headers


# ---- bodies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", None),
        (b"{", "invalid_json"),
        (b"[]", None),
        (b"null", None),
        (b'"text"', None),
        (b'{"model": "tiny", "prompt": "a", "temperature": NaN}', "invalid_json"),
        (b'{"model": "tiny", "prompt": "a", "temperature": Infinity}', "invalid_json"),
        (b'{"model": "tiny", "prompt": "a", "temperature": 1e999}', "invalid_value"),
        (b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 5000 + b"}", "invalid_json"),
        (b'{"model": "tiny", "prompt": "a", "seed": ' + b"9" * 400 + b"}", "invalid_value"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "invalid_json"),
        (b'{"model": "tiny", "prompt": "\xff"}', "invalid_json"),
        (b"[" * 100_000, "invalid_json"),
        (b'{"model": "tiny", "prompt": ' + b"[" * 150 + b"]" * 150 + b"}", "invalid_value"),
        (b'{"model": "\\ud83d\\ude00\\u0000", "prompt": "a"}', "model_not_found"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_broken_bodies_are_refused(body: bytes, code: str | None, running: Running) -> None:
    answer = running.ask("POST", "/v1/completions", body)
    assert answer.status == (404 if code == "model_not_found" else 400), answer.body
    assert answer.error["code"] == code


def test_numbers_without_bounds_in_a_schema(running: Running) -> None:
    schema = b'{"type": "object", "properties": {"a": {"type": "number", "maximum": 1e999}}}'
    form = b'{"type": "json_schema", "json_schema": {"name": "a", "schema": ' + schema + b"}}"
    body = b'{"model": "tiny", "messages": ' + json.dumps(HELLO).encode() + b', "response_format": ' + form + b"}"
    answer = running.ask("POST", "/v1/chat/completions", body)
    assert (answer.status, answer.error["param"]) == (400, "response_format")


def test_a_body_that_is_not_marked_as_json(running: Running) -> None:
    """So that no page of another site can ask without the browser asking first."""
    body = json.dumps({"model": "tiny", "prompt": "a", "max_tokens": 1}).encode()
    for kind in (None, "", "text/plain", "application/x-www-form-urlencoded", "text/plain; application/json"):
        answer = running.ask("POST", "/v1/completions", body, content_type=kind)
        assert answer.status == 415
        assert "application/json" in answer.error["message"]
    assert running.ask("POST", "/v1/completions", body, content_type="application/json; charset=utf-8").status == 200


def test_bodies_are_limited(start: Start) -> None:
    running = start(max_body=1000)
    fits = {"model": "tiny", "prompt": "a" * 900, "max_tokens": 1}
    assert running.ask("POST", "/v1/completions", fits).status == 200
    for size in (2000, 1_000_000):
        answer = running.ask("POST", "/v1/completions", fits | {"prompt": "a" * size})
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")


@pytest.mark.parametrize("fields", [{"prompt": [{}] * 1_000_000}, {"x" * 4_000_000: 1}, {"user": "x" * 4_000_000}])
def test_a_large_body_that_is_wrong_holds_up_nobody(
    fields: dict[str, Any], running: Running, capsys: pytest.CaptureFixture[str]
) -> None:
    body, waits, done = json.dumps({"model": "tiny", "prompt": "a"} | fields).encode(), [0.0], threading.Event()

    def poll() -> None:
        while not done.is_set():
            began = time.monotonic()
            running.ask("GET", "/health")
            waits.append(time.monotonic() - began)

    others = threading.Thread(target=poll)
    others.start()
    began = time.monotonic()
    answer = running.ask("POST", "/v1/completions", body)
    seconds = time.monotonic() - began
    done.set()
    others.join()
    assert answer.status == 400
    assert max(seconds, *waits) < 2
    assert len(answer.body) < 1000
    assert len(capsys.readouterr().err) < 500 * (len(waits) + 1)


def test_a_body_in_pieces_is_limited_too(start: Start) -> None:
    with start(max_body=1000).connect() as line:
        line.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(3):
            line.sendall(b"200\r\n" + b"x" * 512 + b"\r\n")
        line.sendall(b"0\r\n\r\n")
        assert received(line).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come(start: Start) -> None:
    with start(body_s=0.2).connect() as line:
        line.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        assert received(line).startswith(b"HTTP/1.1 408 ")


# ---- routes and ids ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models/tiny", 405),
        ("PUT", "/v1/completions", 405),
        ("GET", "/v1/chat/completions/../../../etc/passwd", 404),
        ("GET", "/%00%ff", 404),
    ],
)
def test_other_routes_say_so(method: str, path: str, status: int, running: Running) -> None:
    answer = running.ask(method, path)
    assert answer.status == status
    assert answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("given", "kept"), [("abc-1.2_3", True), ("", False), ("a b", False), ("x" * 200, False), ("<script>", False)]
)
def test_a_request_has_an_id(given: str, kept: bool, running: Running) -> None:
    answer = running.ask("GET", "/health", X_Request_Id=given)
    assert (answer.headers["x-request-id"] == given) is kept
    assert len(answer.headers["x-request-id"]) > 5


def test_what_fails_inside_is_told_by_its_id_only(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("the secret inside")

    monkeypatch.setattr("mistral_mlx.server.calls.read_completion", broken)
    answer = running.complete()
    assert (answer.status, answer.error["type"]) == (500, "server_error")
    assert b"secret" not in answer.body
    assert answer.headers["x-request-id"] in answer.error["message"]
    assert "the secret inside" in caplog.text
    assert running.chat().status == 200


def test_the_log_has_a_line_for_each_request(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    running = start()
    running.chat(user="ada", n=2, stream=True)
    running.chat(temperature=3)
    running.ask("GET", "/health")
    secret = {"role": "user", "content": {"a": "Hello"}}
    running.chat(messages=[secret])
    talks = start(log_prompts=True)
    talks.chat(messages=[secret])
    talks.chat()
    running.settle()
    talks.settle()
    lines = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    first, second, third, fourth, fifth, last = lines
    assert (first["status"], first["choices"], first["user"]) == (200, 2, {"user": "ada"})
    assert first["completion_tokens"] > 0
    assert first["ttft_s"] > 0
    assert "Hello" not in str(lines[:4])
    assert fourth["error"] == "invalid_value, messages[0].content"
    assert "Hello" in fifth["error"]
    assert (second["status"], second["path"]) == (400, "/v1/chat/completions")
    assert "temperature" in second["error"]
    assert third["method"] == "GET"
    assert last["prompt"] == HELLO


def test_metrics_count(start: Start) -> None:
    running = start()
    usage = running.chat(seed=1, n=4).json["usage"]
    running.chat(temperature=3)
    page = running.ask("GET", "/metrics").body.decode()
    assert 'mistral_mlx_requests_total{endpoint="/v1/chat/completions",status="200"} 1.0' in page
    assert 'mistral_mlx_requests_total{endpoint="/v1/chat/completions",status="400"} 1.0' in page
    assert f"mistral_mlx_prompt_tokens_total {usage['prompt_tokens']}.0" in page
    assert f"mistral_mlx_completion_tokens_total {usage['completion_tokens']}.0" in page
    assert "mistral_mlx_time_to_first_token_seconds_count 4.0" in page
    assert "mistral_mlx_queue_length 0.0" in page


def received(line: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    line.settimeout(20)
    data = b""
    while piece := line.recv(65536):
        data += piece
    return data
