"""Nothing that comes from a model, a file or a person can command the terminal."""

from __future__ import annotations

import random
import unicodedata

import pytest

from tui.sanitize import BIDI, Sanitizer, one_line, visible

HOSTILE = "".join(map(chr, [*range(0x20), *range(0x7F, 0xA0), *BIDI, 0x2028, 0x2029, 0xD800, 0xDFFF]))


def dangerous(text: str) -> set[str]:
    return {c for c in text if c not in "\n\t" and (unicodedata.category(c) in ("Cc", "Cs") or ord(c) in BIDI)}


def test_no_control_character_is_left() -> None:
    assert dangerous(HOSTILE)
    assert not dangerous(visible(HOSTILE))
    visible(HOSTILE).encode()  # a lone surrogate would fail here


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain\n\ttext é 日本 🎉", "plain\n\ttext é 日本 🎉"),
        ("\x1b]0;title\x07", "␛]0;title␇"),
        ("\x9b2J", "�2J"),
        ("a\r\nb\rc\u2028d\x0ce\x85f", "a\nb\nc\nd\ne\nf"),
        ("\u202eevil", "<U+202E>evil"),
        ("\x7f", "␡"),
    ],
)
def test_what_is_shown_instead(raw: str, shown: str) -> None:
    assert visible(raw) == shown


def test_a_newline_may_become_a_picture_too() -> None:
    assert visible("a\nb\tc", keep="\t") == "a␊b\tc"
    assert one_line(" a\n\x1b[31mb\t ") == "a ␛[31mb"


def test_pieces_give_what_the_whole_gives() -> None:
    text = ("ab\r\n\r\r\n" + HOSTILE) * 20
    for seed in range(20):
        source, cleaner, pieces, at = random.Random(seed), Sanitizer(), [], 0
        while at < len(text):
            size = source.randint(0, 5)
            pieces.append(cleaner.feed(text[at : at + size]))
            at += size
        assert "".join(pieces) + cleaner.flush() == visible(text)
