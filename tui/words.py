"""The words of conversations: as they are indexed, as they are searched for, and as they are shown when found."""

from __future__ import annotations

import re
from unicodedata import combining, normalize

from tui.conversation import well_formed

# A found word stands between these in a snippet, which holds them nowhere else.
MARKS = ("\x02", "\x03")

# Letters of scripts that put no spaces between words, and pictures: each is a word of its own to the index, so that any
# part of such a text is found.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2190-\u2bff\u3005-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff"
    "\U0001f000-\U0001faff\U00020000-\U0003ffff"
)
_ALONE = re.compile(f"([{_UNSPACED}])")
_LETTER = r"[^\W_]"
_GAP = "\u200b"
_NEVER = str.maketrans({"\0": " ", MARKS[0]: " ", MARKS[1]: " "})
_MOST_WORDS = 20
_BEFORE, _SNIPPET = 40, 160


def spaced(text: str) -> str:
    """The text as it is indexed."""
    return _ALONE.sub(rf"{_GAP}\1{_GAP}", text.translate(_NEVER))


def query(text: str) -> str:
    """A search as FTS5 takes it: quoted words, all of them wanted, the last one as a beginning."""
    words = spaced(well_formed(text)).replace('"', " ").split()[:_MOST_WORDS]
    return " ".join(f'"{word}"' for word in words) + "*" if words else ""


def snippet(text: str, search: str) -> str:
    """About 160 characters around the first word of a text that was searched for, each one between MARKS.

    FTS5 has a function for this, whose time grows with the square of how often a word is in a text.
    """
    text = text.translate(_NEVER)
    folded = _fold(text)
    if not _ALONE.search(search):  # a word ends where such a letter begins
        folded = _ALONE.sub(" ", folded)
    wanted = _pattern(search)
    first = wanted.search(folded)
    at = first.start() if first else 0
    start = max(0, at - _BEFORE)
    if start:
        start = text.find(" ", start, at) + 1 or start
    end = min(len(text), start + _SNIPPET)
    if end < len(text):
        last = text.rfind(" ", at, end)
        end = last if last > start + _SNIPPET // 2 else end
    pieces, done = ["…" if start else ""], start
    for found in wanted.finditer(folded, start, end):
        pieces += [text[done : found.start()], MARKS[0], text[found.start() : found.end()], MARKS[1]]
        done = found.end()
    pieces += [text[done:end], "…" if end < len(text) else ""]
    return " ".join("".join(pieces).split())


def _pattern(search: str) -> re.Pattern[str]:
    """What finds the same words in a folded text as the index does."""
    words = [_parts(word) for word in search.replace('"', " ").split()[:_MOST_WORDS]]
    patterns = []
    for i, parts in enumerate(words):
        if not parts:
            continue
        before = "" if _ALONE.match(parts[0]) else f"(?<!{_LETTER})"
        after = "" if _ALONE.match(parts[-1]) else f"{_LETTER}*" if i == len(words) - 1 else f"(?!{_LETTER})"
        patterns.append(before + r"[\W_]*".join(map(re.escape, parts)) + after)
    return re.compile("|".join(patterns) or "(?!)")


def _parts(word: str) -> list[str]:
    """What the index makes of a word: `sliding_window` is two."""
    pieces = _ALONE.sub(r" \1 ", _fold(word)).split()
    return [part for p in pieces for part in ([p] if _ALONE.match(p) else re.findall(f"{_LETTER}+", p))]


class _Folded(dict[int, str]):
    """Each character without its case and its accents, and still one character."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        parts = normalize("NFD", char)
        folded = (parts[0] if all(map(combining, parts[1:])) else char).lower()
        self[code] = folded if len(folded) == 1 else char
        return self[code]


_FOLDED = _Folded()


def _fold(text: str) -> str:
    return text.lower() if text.isascii() else text.translate(_FOLDED)
