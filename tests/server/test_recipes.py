"""What the README says of the server: its requests are answered, and its limits are those that hold."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

import pytest

from mistral_mlx import cli
from mistral_mlx.server.settings import Settings
from tests.server.conftest import Running

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
(SECTION,) = re.findall(r"^## Serve\n(.*?)^## ", README, re.DOTALL | re.MULTILINE)
CURLS = re.findall(r"http://127\.0\.0\.1:8080(/\S+) .*?-d '(.*?)'", SECTION.replace("\\\n", ""))


def options(*given: str) -> argparse.Namespace:
    return cli._parser().parse_args(["serve", "-m", "7b", *given])


def test_both_ways_to_ask_are_shown() -> None:
    assert [path for path, _ in CURLS] == ["/v1/chat/completions", "/v1/completions"]


@pytest.mark.parametrize(("path", "body"), CURLS)
def test_what_curl_sends_is_answered(running: Running, path: str, body: str) -> None:
    answer = running.ask("POST", path, json.loads(body) | {"model": "tiny", "max_tokens": 4})
    assert answer.status == 200, answer.body


def test_the_script_prints_the_answer(running: Running, capsys: pytest.CaptureFixture[str]) -> None:
    (script,) = re.findall(r"```python\n(.*?)```", SECTION, re.DOTALL)
    script = script.replace(":8080/", f":{running.port}/").replace('model="7b"', 'model="tiny", max_tokens=4')
    exec(script, {})
    question = [{"role": "user", "content": "What is the capital of France?"}]
    answer = running.chat(messages=question, temperature=0, max_tokens=4).json["choices"][0]["message"]["content"]
    assert capsys.readouterr().out == answer


def test_the_numbers_are_those_that_hold_without_options() -> None:
    said = re.findall(r"`(--[a-z-]+) (\d+)`", SECTION)
    assert len(said) >= 4
    usual = vars(options())
    for option in said:
        for name, value in vars(options(*option)).items():
            assert value == usual[name] or value == getattr(Settings, name), option


def test_every_option_exists(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        options("--help")
    there = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert set(re.findall(r"`(--[a-z-]+)", SECTION)) <= there
