"""The README tells the truth: its figures come from the program, its files exist."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from mistral_mlx import cli
from tests.conftest import GOLDEN
from tui.commands import help_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_cache_bytes_is_the_one_that_models_info_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "info", "-m", str(GOLDEN / "configs/mistral-7b-v0.1"), "--dtype", "bfloat16"]) == 0
    printed = re.findall(r"^ +([\d,]+) +([\d.,]+ \wiB) +([\d.,]+ \wiB)$", capsys.readouterr().out, re.MULTILINE)
    written = re.findall(r"^\| ([\d,]+) \| ([\d.,]+ \wiB) \| ([\d.,]+ \wiB) \|$", README, re.MULTILINE)
    assert len(written) == 5
    assert written == printed


def test_the_quantized_cache_takes_the_bytes_that_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["models", "info", "-m", str(GOLDEN / "configs/mistral-7b-v0.1"), "--dtype", "bfloat16", "--kv-bits", "4"]
    assert cli.main(argv) == 0
    rows = dict(re.findall(r"^ +([\d,]+) +([\d.]+ \wiB) ", capsys.readouterr().out, re.MULTILINE))
    said = re.search(r"quantized: ([\d.]+ MiB) for 1,024 tokens and ([\d.]+ MiB) from 8,192 on", README)
    assert said
    assert said.groups() == (rows["1,024"], rows["8,192"])
    assert rows["8,192"] == rows["131,072"]


def test_the_keys_are_those_of_the_chat() -> None:
    rows = {where: [] for where in ("Message", "Anywhere", "Conversation")}  # type: dict[str, list[str]]
    for where, keys, what in help_rows():
        if not keys.startswith("/"):
            key, _, command = keys.partition("  ")
            rows[where].append(f"| {key.replace('|', chr(92) + '|')} | {what}{f' (`{command}`)' if command else ''} |")
    table = [row for where, of in rows.items() for row in (f"| **{where}** | |", *of)]
    (written,) = re.findall(r"<!-- keys -->\n(.*?)\n<!-- /keys -->", README, re.DOTALL)
    assert written.splitlines() == ["| Key | |", "|---|---|", *table]


def test_every_linked_file_is_there() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", README)
    assert links
    for link in links:
        assert (ROOT / link).exists(), link


def test_the_commands_shown_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in set(re.findall(r"(?:^|`|uv run |\| )mistral-mlx ((?:models )?[a-z]+)", README, re.MULTILINE)):
        with pytest.raises(SystemExit) as stop:
            cli.main([*command.split(), "--help"])
        assert stop.value.code == 0


def test_the_types_that_stay_packed_are_those_that_do() -> None:
    from mistral_mlx.weights.ggml import PACKED

    (said,) = re.findall(r"stored in\. (.*?) stay packed", README)
    assert set(re.split(r", | and ", said)) == set(PACKED)


@pytest.mark.skipif(sys.platform == "win32", reason="a shell is needed")
def test_ci_calls_the_test_command_of_the_readme() -> None:
    assert "uv run pytest\n" in (ROOT / ".ci/run").read_text()
    assert "pip install uv && uv run pytest\n" in README
