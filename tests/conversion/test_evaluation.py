"""What a conversion costs in the model's own terms, counted anew; and recipes side by side."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mistral_mlx as mm
from mistral_mlx import cli
from mistral_mlx.conversion import compare, convert, evaluation
from mistral_mlx.conversion.evaluation import evaluate
from mistral_mlx.errors import InputError, MistralError, OutOfMemoryError
from tests.conftest import GOLDEN

STRETCH = 32  # in these tests
PNG = b"\x89PNG\r\n\x1a\n"
TEXT = "The lighthouse keeper climbed the stairs twice a day.\n\ndef f(x):\n    return x + 1\n" * 3


def log_probabilities(llm: mm.LLM, ids: list[int]) -> np.ndarray:
    logits = np.array(llm.logits(ids), np.float64)[:-1]
    logits -= logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


@pytest.fixture(autouse=True)
def short_stretches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "STRETCH", STRETCH)


@pytest.fixture
def out(demo: mm.LLM, tmp_path: Path) -> Path:
    out = tmp_path / "out"
    convert("demo", out, 4, text=TEXT)
    return out


@pytest.mark.slow
def test_the_receipts_divergence_is_the_textbooks(demo: mm.LLM, out: Path) -> None:
    found = json.loads((out / "conversion.json").read_text())["evaluation"]
    copy = mm.load(out)
    ids = demo.encode(TEXT)
    assert len(ids) > STRETCH + 2
    kl, nll, nll_source, same = [], [], [], []
    for start in range(0, len(ids), STRETCH):
        stretch = ids[start : start + STRETCH]
        p, q = log_probabilities(demo, stretch), log_probabilities(copy, stretch)
        kl += list((np.exp(p) * (p - q)).sum(-1))
        same += list(p.argmax(-1) == q.argmax(-1))
        rows = np.arange(len(stretch) - 1)
        nll += list(-q[rows, stretch[1:]])
        nll_source += list(-p[rows, stretch[1:]])
    assert found["tokens"] == len(kl) == len(ids) - -(-len(ids) // STRETCH)
    assert found["kl"] == pytest.approx(np.mean(kl), rel=1e-3)
    assert found["kl"] > 1e-3
    assert found["kl_99"] == pytest.approx(sorted(kl)[math.ceil(0.99 * len(kl)) - 1], rel=1e-2)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(nll)), rel=1e-3)
    assert found["perplexity_source"] == pytest.approx(np.exp(np.mean(nll_source)), rel=1e-3)
    assert found["same_top"] == pytest.approx(np.mean(same))


def test_a_model_does_not_diverge_from_itself(demo: mm.LLM) -> None:
    found = evaluate(demo, demo, TEXT)
    assert (found.kl, found.kl_99, found.same_top) == (0, 0, 1)
    assert found.perplexity == found.perplexity_source


@pytest.mark.parametrize("text", ["", "a"])
def test_a_text_without_two_tokens_is_refused(text: str, demo: mm.LLM) -> None:
    with pytest.raises(InputError, match="less than two tokens") as caught:
        evaluate(demo, demo, text)
    assert caught.value.hint


@pytest.mark.slow
def test_more_bits_cost_more_and_lose_less(demo: mm.LLM) -> None:
    stages: list[str] = []
    found = compare("demo", [2, 8], TEXT[:120], progress=lambda stage, done, total: stages.append(stage))
    small, large = found.rows
    assert small.nbytes < large.nbytes
    assert small.evaluation.kl > 10 * large.evaluation.kl > 0
    assert list(dict.fromkeys(stages)) == ["converting 2", "evaluating 2", "converting 8", "evaluating 8"]


@pytest.mark.slow
def test_the_command_draws_and_tabulates(demo: mm.LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "sizes.png"
    (tmp_path / "text.txt").write_text(TEXT)
    command = [
        "convert",
        "demo",
        "-o",
        str(picture),
        "--compare",
        "3",
        "4",
        "8",
        "--evaluate",
        str(tmp_path / "text.txt"),
    ]
    assert cli.main(command) == 0
    printed = capsys.readouterr().out
    assert picture.read_bytes().startswith(PNG)
    recipes = [line.split()[0] for line in printed.splitlines() if "%" in line and not line.startswith("recipe")]
    assert recipes == ["original", "3", "4", "8"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sizes.png", "text.txt"]
    assert cli.main(command) == 2
    assert cli.main([*command, "--force", "--json"]) == 0
    assert [row["recipe"] for row in json.loads(capsys.readouterr().out)["rows"]] == ["3", "4", "8"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["-o", "x.jpg", "--compare", "4"], "x.jpg is no name for a picture"),
        (["-o", "nowhere/x.png", "--compare", "4"], "There is no folder"),
        (["-o", "x.png", "--compare", "4", "-q", "4"], "--quantize means nothing with --compare"),
        (["-o", "x.png", "--compare", "4", "7"], "no recipe '7'"),
        (["-o", "out", "-q", "4", "--evaluate", "nowhere.txt"], "nowhere.txt cannot be read"),
        (["-o", "out", "-q", "4", "--learn", "gptq"], "learns from a text"),
        (["-o", "out", "--dtype", "float8"], "dtype 'float8'"),
    ],
    ids=str,
)
def test_the_command_refuses_what_means_nothing(
    arguments: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["convert", "demo", *arguments]) == 2
    assert word in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


def test_a_conversion_whose_evaluation_fails_is_kept(
    demo: mm.LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OutOfMemoryError("Too large.", "Buy more.")

    monkeypatch.setattr("mistral_mlx.conversion.pipeline.load_quietly", refuse)
    receipt = convert("demo", tmp_path / "out", text=TEXT)
    assert receipt.evaluation is None
    assert "It was not evaluated. Too large. Buy more." in receipt.notes
    assert (tmp_path / "out/model.safetensors").exists()


@pytest.mark.parametrize(("source", "word"), [("demo", "less than two tokens"), (GOLDEN / "window", "no tokenizer")])
def test_what_cannot_be_evaluated_is_said_before_anything_is_written(
    source: Any, word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mistral_mlx.conversion.pipeline.write_weights", lambda *_: pytest.fail("too late"))
    with pytest.raises(MistralError, match=word):
        convert(source, tmp_path / "out", text="a")
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_recipes_for_a_quantized_folder_are_compared_if_asked(demo: mm.LLM, tmp_path: Path) -> None:
    convert("demo", tmp_path / "q4", 4)
    found = compare(tmp_path / "q4", [4, "mxfp8"], TEXT[:100], requantize=True)
    assert [row.recipe for row in found.rows] == ["4", "mxfp8"]
    assert any("quantized already" in note for note in found.notes)


def test_comparing_refuses_what_converting_does(tmp_path: Path) -> None:
    convert(GOLDEN / "window", tmp_path / "out", 4, group_size=32)
    with pytest.raises(InputError, match="quantized already"):
        compare(tmp_path / "out", [3], TEXT)


def test_a_plot_without_matplotlib_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mistral_mlx.conversion import comparison

    monkeypatch.setattr(comparison, "find_spec", lambda name: None)
    with pytest.raises(MistralError, match="matplotlib") as caught:
        comparison.check_plot(tmp_path / "x.png", force=False)
    assert "pip install" in caught.value.hint
