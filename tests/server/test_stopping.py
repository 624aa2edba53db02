"""How a server begins and ends: real processes of `mistral-mlx serve`."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mistral_mlx.cli import main
from mistral_mlx.cli.serve import _keys
from mistral_mlx.server.run import bind
from tests.chat_formats import tekken_of
from tests.conftest import GOLDEN
from tests.server.conftest import Running


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model on disk: one of the golden ones, with a vocabulary of text."""
    folder = tmp_path_factory.mktemp("model")
    tekken_of("v15", folder, size=1500)
    config = json.loads((GOLDEN / "window" / "config.json").read_text())
    config |= {"vocab_size": 1500, "sliding_window": 64, "max_position_embeddings": 100_000}
    (folder / "config.json").write_text(json.dumps(config))
    weights: dict[str, mx.array] = mx.load(str(GOLDEN / "window" / "model.safetensors"))  # type: ignore[assignment]
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        weights[name] = mx.random.normal((1500, config["hidden_size"])).astype(weights[name].dtype)
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    return folder


@contextmanager
def process(folder: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server's process, and its port."""
    with subprocess.Popen(
        [sys.executable, "-m", "mistral_mlx", "serve", "-m", str(folder), "--name", "m", "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            line = running.stdout.readline()
            assert line.startswith("listening on http://127.0.0.1:"), running.stderr and running.stderr.read()
            yield running, int(re.findall(r":(\d+) as model m;", line)[0])
        finally:
            running.kill()


def stream(port: int, max_tokens: int) -> tuple[HTTPConnection, Any]:
    """A streamed answer whose first event has come."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    body = {"model": "m", "prompt": [3, 4], "max_tokens": max_tokens, "temperature": 0, "stream": True}
    body["logit_bias"] = {"2": -100}  # so that it does not end by itself
    connection.request("POST", "/v1/completions", json.dumps(body), {"content-type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    assert (response.readline()[:5], response.readline()) == (b"data:", b"\n")
    return connection, response


def test_a_running_answer_is_finished(folder: Path) -> None:
    with process(folder) as (running, port), socket.create_connection(("127.0.0.1", port)):  # one that is idle
        _, response = stream(port, 300)
        running.send_signal(signal.SIGTERM)
        assert response.read().endswith(b"data: [DONE]\n\n")
        assert running.wait(20) == 0
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=5)


@pytest.mark.slow
def test_an_answer_that_takes_too_long_is_told_so(folder: Path) -> None:
    with process(folder, "--drain", "0.3") as (running, port):
        _, response = stream(port, 30_000)
        running.send_signal(signal.SIGTERM)
        began = time.monotonic()
        last = response.read().split(b"\n\n")[-2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "stopping"
        assert running.wait(20) == 0
        assert time.monotonic() - began < 5


def test_a_second_interrupt_ends_at_once(folder: Path) -> None:
    with process(folder) as (running, port):
        _, response = stream(port, 30_000)
        running.send_signal(signal.SIGINT)
        assert running.stderr is not None
        said = json.loads(running.stderr.readline())
        assert (said["event"], said["answers"]) == ("stopping", 1)
        running.send_signal(signal.SIGINT)
        last = response.read().split(b"\n\n")[-2]
        assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "stopping"
        assert running.wait(10) == 130
        *lines, end = running.stderr.read().splitlines()
        assert end == "mistral-mlx: stopped."
        assert all(json.loads(line) for line in lines)  # nothing but the log


@pytest.mark.slow
def test_an_interrupt_ends_loading() -> None:
    code = """
import signal, time
from mistral_mlx import llm
from mistral_mlx.cli import main
def load(model, *, loading, **options):
    print("loading", flush=True)
    for done in range(1000):
        loading(done, 1000)
        time.sleep(0.02)
llm.load = load
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have started the tests without it
raise SystemExit(main(["serve", "-m", "m", "--port", "0"]))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "loading\n"
        running.send_signal(signal.SIGINT)
        assert running.wait(10) == 130


def test_nothing_more_is_taken_while_it_stops(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running.engine, "draining", True)
    assert running.ask("GET", "/health").json == {"status": "stopping"}
    answer = running.chat()
    assert (answer.status, answer.error["code"]) == (503, "stopping")
    assert "retry-after" in answer.headers


# ---- what is refused before a model is loaded -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "anybody could use the model"),
        (["--host", "::"], "anybody could use the model"),
        (["--host", "nowhere.invalid", "--api-keys", "KEYS"], "cannot be used"),
        (["--host", "no..where", "--api-keys", "KEYS"], "no name of a host"),
        (["--host", "x" * 70, "--api-keys", "KEYS"], "no name of a host"),
        (["--cors", "*"], "Any website could use the model"),
        (["--max-tokens", "40000"], "Give --max-answer 40000 too"),
        (["--api-keys", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["--api-keys", os.devnull], "has no key"),
        ([], "no/such/model"),
    ],
)
def test_what_cannot_be_served_is_refused_first(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text("# mine\nsecret\n")
    given = [str(keys) if argument == "KEYS" else argument for argument in arguments]
    assert main(["serve", "-m", "no/such/model", "--port", "0", *given]) == 2
    told = capsys.readouterr().err
    assert words in told
    assert ("no/such/model" in told) is (not arguments)
    assert len(told.splitlines()) <= 2


def test_a_port_that_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    with bind("127.0.0.1", 0) as taken:  # by another server, which may still be loading
        assert main(["serve", "-m", "no/such/model", "--port", str(taken.getsockname()[1])]) == 2
    told = capsys.readouterr().err
    assert "cannot be used: Address already in use" in told
    assert "--port" in told


@pytest.mark.parametrize(
    "wrong",
    [
        ["--port", "70000"],
        ["--port", "x"],
        ["--max-n", "0"],
        ["--drain", "-1"],
        ["--reuse", "nan"],
        ["--temperature", "3"],
        ["--cors", "example.org"],
        ["--cors", "https://example.org/"],
    ],
)
def test_what_an_option_does_not_take(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["serve", "-m", "no/such/model", *wrong])
    assert caught.value.code == 2
    assert f"argument {wrong[0]}" in capsys.readouterr().err


def test_keys_come_from_a_file_and_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours\nabc\n\n  def \n")
    monkeypatch.setenv("MISTRAL_MLX_API_KEYS", "ghi, abc")
    assert _keys(file) == ("ghi", "abc", "def")
    monkeypatch.setenv("MISTRAL_MLX_API_KEYS", "")
    assert _keys(None) == ()


def test_what_the_server_is_made_of_may_be_missing() -> None:
    code = (
        "import sys\nsys.modules['fastapi'] = None\nfrom mistral_mlx.cli import main\n"
        "sys.exit(main(['serve', '-m', 'no/such/model']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert 'pip install "mistral-mlx[server]"' in done.stderr
    assert "fastapi" in done.stderr


def test_help_needs_no_server() -> None:
    code = "import sys\nfrom mistral_mlx.cli import main\ntry: main(['serve', '--help'])\nexcept SystemExit: pass\n"
    code += "print('loaded:', *[m for m in ('mlx', 'fastapi', 'uvicorn', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "loaded:"
