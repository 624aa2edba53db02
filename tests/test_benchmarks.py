"""The benchmarks without measuring: what the command says, and that the README's tables are the stored results."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.cases import CASES
from benchmarks.paired import CannotMeasure, Result, Row, describe_machine, interleave
from benchmarks.plots import draw
from benchmarks.tables import README, cells, fill_readme, in_markdown, marked, on_terminal

ROW = Row.of("7b, 128 tokens", "ms", [2.0, 4.0, 1.0], [4.0, 4.0, 3.0], target=1.5)


def test_the_list_names_every_case(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(CASES)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["decoding"], "there is no case decoding; there are decode, cache"),
        (["decode", "--rounds", "0"], "at least 1"),
        ([], "name a case, or --all"),
    ],
)
def test_what_cannot_be_is_refused(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_every_case_has_a_module() -> None:
    for case in CASES.values():
        assert callable(case.measure), case


def test_a_case_that_cannot_run_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(rounds: int) -> Result:
        raise CannotMeasure("The two are not alike.")

    monkeypatch.setattr("benchmarks.cases.graph.measure", refuse)
    assert main(["graph", "--results", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "graph: The two are not alike.\n"
    assert not list(tmp_path.iterdir())


def test_sides_take_turns() -> None:
    order: list[str] = []
    interleave(2, lambda: order.append("A") or 0.0, lambda: order.append("B") or 0.0)
    assert order == ["A", "B", "A", "B"]


def test_a_row_has_the_ratio_of_each_round() -> None:
    assert (ROW.ours, ROW.theirs, ROW.ratio, ROW.low, ROW.high, ROW.rounds) == (2.0, 4.0, 2.0, 1.0, 3.0, 3)
    assert ROW.met
    assert cells(ROW) == ["7b, 128 tokens", "2.00 ms", "4.00 ms", "2.00", "1.00 to 3.00", "✓ 1.50"]
    assert cells(replace(ROW, target=2.5, peer="another"))[::5] == ["7b, 128 tokens, beside another", "✗ 2.50"]


def test_results_come_back_as_they_were_stored(tmp_path: Path) -> None:
    result = Result("decode", [ROW], {"ours": 512, "theirs": 2048}, {"timed": 24})
    result.save(tmp_path)
    assert Result.load("decode", tmp_path) == result
    assert Result.load("batch", tmp_path) is None
    assert "512 and 2048" in on_terminal(result)


def test_a_result_does_not_tell_whose_machine_it_was() -> None:
    assert set(describe_machine()) == {"cpu", "cores", "memory_gib", "os", "python"}


def test_drawings_are_small_and_the_same_each_time(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    curve = {"tokens": [128, 1024], "ours": [2.0, 2.5], "theirs": [2.0, 4.0]}
    Result("decode", [ROW], details={"curves": {"7b": curve}}).save(tmp_path)
    Result("cache", [ROW], details={"curve": curve}).save(tmp_path)
    Result("serve", [ROW], details={"curve": {"clients": [1, 8], "ours": [14.0, 60.0], "theirs": [12.0, 50.0]}}).save(
        tmp_path
    )
    first = {path: path.read_bytes() for path in draw(tmp_path)}
    assert sorted(path.name for path in first) == ["cache.svg", "decode-7b.svg", "serve.svg"]
    assert {path: path.read_bytes() for path in draw(tmp_path)} == first
    assert max(map(len, first.values())) < 30_000


@pytest.mark.parametrize("name", CASES)
def test_the_table_in_the_readme_is_the_stored_result(name: str) -> None:
    written, result = marked(README.read_text(encoding="utf-8")), Result.load(name)
    assert written[name] == in_markdown(result)
    if result:
        assert result.case == name
        assert result.rows
        assert set(result.sides) == {"ours", "theirs"}
        assert set(result.versions) == {"mlx", "mlx-lm", "mistral-mlx"}
        assert result.machine["cores"]
        assert result.date


def test_the_readme_is_what_would_be_written() -> None:
    text = README.read_text(encoding="utf-8")
    assert set(marked(text)) == {*CASES, "plots"}
    assert fill_readme(text) == text


def test_filling_the_readme_touches_only_what_is_between_markers() -> None:
    text = "above\n<!-- benchmarks:decode -->\nold\n<!-- /benchmarks:decode -->\nbelow\n"
    result = Result("decode", [ROW])
    filled = fill_readme(text, lambda name: result)
    assert filled.startswith("above\n<!-- benchmarks:decode -->\n| Time for a token")
    assert filled.endswith("<!-- /benchmarks:decode -->\nbelow\n")
    assert fill_readme(filled, lambda name: result) == filled
    assert fill_readme(filled, lambda name: None) == text.replace("old\n", "")


def test_both_sides_have_the_same_weights_and_go_on_from_filled_caches() -> None:
    from benchmarks.sides import check_filled, synthetic

    sides = synthetic("tiny32")  # compares their logits
    for tokens in (100, 9000):
        check_filled(sides, tokens)


def test_other_weights_are_refused() -> None:
    from benchmarks.sides import _checked, synthetic

    sides, other = synthetic("tiny32"), synthetic("tiny32", seed=1)
    with pytest.raises(CannotMeasure, match="not the same weights"):
        _checked(replace(sides, theirs=other.theirs))


def test_primitives_are_counted_without_views_and_for_each_call() -> None:
    import mlx.core as mx

    from benchmarks.cases.graph import primitives

    twice = mx.compile(lambda x: mx.exp(x) * 2)
    x = mx.ones((2, 3))
    mx.eval(x)
    counted = primitives(twice(twice(x)).T.reshape(6) @ mx.zeros(6))
    assert sum(count for name, count in counted.items() if name.startswith("Compiled")) == 2
    assert not counted.keys() & {"Reshape", "Transpose"}
