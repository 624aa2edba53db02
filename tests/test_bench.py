"""The figures of `mistral-mlx bench` are those that were asked for, and nonsense is refused before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

import mistral_mlx as mm
from mistral_mlx.bench import bench
from tests.conftest import GOLDEN


@pytest.mark.parametrize("name", ["window", "full"])
def test_a_report_has_what_was_asked_for(name: str) -> None:
    llm, told = mm.load(GOLDEN / name), []
    report = bench(llm, contexts=(20, 5), rows=(1, 3), tokens=4, progress=lambda *done: told.append(done))
    assert report.reading[0].end == 5
    assert [w.context for w in report.writing] == [r.end for r in report.reading]
    assert [t.rows for t in report.together] == [1, 3]
    assert all(f.tokens_per_second > 0 for f in (*report.reading, *report.writing, *report.together))
    assert report.first_token_s > 0 < report.again_s
    assert told == [(i, 7) for i in range(8)]
    assert llm.prefixes.cache_bytes == 0


def test_a_step_takes_far_less_than_the_cache() -> None:
    """Nothing holds a ring twice: else a step would take a copy of it."""
    llm = mm.load(GOLDEN / "window", window=4096)
    (writing,) = bench(llm, contexts=(5000,), rows=(1,), tokens=6).writing
    assert writing.step_bytes < 0.05 * writing.cache_bytes


@pytest.mark.parametrize(
    "options",
    [{"contexts": ()}, {"contexts": (0,)}, {"rows": (1, -1)}, {"tokens": 0}, {"tokens": 1.5}, {"rows": (True,)}],
)
def test_nonsense_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(mm.InputError, match=next(iter(options))):
        bench(mm.load(GOLDEN / "window"), **options)


def test_more_than_the_model_attends_to_is_refused() -> None:
    with pytest.raises(mm.ContextError, match="attends to at most 256"):
        bench(mm.load(GOLDEN / "full"), contexts=(300,))


def test_the_command_prints_a_table_or_a_record() -> None:
    command = [
        sys.executable,
        "-m",
        "mistral_mlx",
        "bench",
        "-m",
        str(GOLDEN / "window"),
        "--contexts",
        "9",
        "--rows",
        "2",
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "9 tokens" in said.stdout
    assert "Warning" not in said.stderr
    record = json.loads(subprocess.run([*command, "--json"], capture_output=True, text=True, check=True).stdout)
    assert record["together"][0]["rows"] == 2
