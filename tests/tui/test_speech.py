"""What the plain chat says comes in whole sentences and lines, unchanged and harmless."""
# ruff: noqa: RUF001

from __future__ import annotations

import pytest

from mistral_mlx.completion import Stats
from tui import speech
from tui.conversation import Turn
from tui.speech import Sentences, Speech, figures, percent


def pieces(text: str, step: int = 3) -> list[str]:
    """What is said at a time, if the text comes by a few characters."""
    sentences = Sentences()
    said = [sentences.feed(text[i : i + step]) for i in range(0, len(text), step)]
    return [piece for piece in [*said, sentences.flush()] if piece]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One two. Three four! Five", ["One two. ", "Three four! ", "Five"]),
        ("It costs 3.50 in Rome, e.g. 1. Next", ["It costs 3.50 in Rome, e.g. 1. Next"]),
        ('He said "well done." Then left.\n', ['He said "well done." ', "Then left.\n"]),
        ("- first item\n- second item\n", ["- first item\n", "- second item\n"]),
        ("你好。再见！好", ["你好。", "再见！", "好"]),
        (
            "Look here:\n```python\nx = 1. \nprint(x). # now then. y\n```\nDone now. Bye",
            ["Look here:\n", "```python\n", "x = 1. \n", "print(x). # now then. y\n", "```\n", "Done now. ", "Bye"],
        ),
        ("Look at it. ```\nNot code at all. Really", ["Look at it. ", "```\n", "Not code at all. ", "Really"]),
    ],
)
def test_sentences_and_lines_are_said_whole(text: str, expected: list[str]) -> None:
    assert pieces(text) == expected


def test_text_without_an_end_is_not_held_back_for_ever() -> None:
    text = "word " * 400
    assert len(pieces(text)) > 3
    assert "".join(pieces(text)) == text
    assert "".join(pieces("x" * 2000)) == "x" * 2000


def test_an_answer_is_harmless_and_ends_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    answer = Speech()
    answer.say("", thinking=True)
    answer.say("", thinking=True)
    answer.say("Hi \x1b]0;title\x07 there", thinking=False)
    answer.end()
    answer.end()
    assert capsys.readouterr().out == "Thinking.\nHi ␛]0;title␇ there\n"


def test_figures_are_a_sentence() -> None:
    turn = Turn(1, None, "assistant", finish="stop", stats=Stats(9, 0, 1312, 0.21, 90.0, 61.3, 1, 1))
    assert figures(turn) == "1,312 tokens, 61 per second, first after 0.21 seconds, done"
    turn.finish = "length"
    assert figures(turn).endswith("cut off: max_tokens or the context is used up")
    turn.stats, turn.finish = Stats(9, 0, 0, 0.0, 0.0, 0.0, 1, 1), "cancelled"
    assert figures(turn) == "stopped before the first token"


def test_progress_is_said_every_five_seconds_at_most(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(speech.time, "monotonic", lambda: now)
    progress = percent("Reading the prompt")
    for now in (100.1, 104.9, 105.1, 107.0, 110.2, 120.0):
        progress(int(now - 100), 20)
    assert capsys.readouterr().out == "Reading the prompt: 25 percent.\nReading the prompt: 50 percent.\n"
