"""Text within a block: emphasis, code and links as spans, and spans wrapped into rows of cells."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import lru_cache

from markdown_it import MarkdownIt
from rich.cells import cell_len, chop_cells

from tui.sanitize import visible

Names = tuple[str, ...]
Span = tuple[str, Names]  # text, and the names of the styles it is drawn in

_MARKDOWN = MarkdownIt("commonmark", {"html": False}).enable("strikethrough").disable("html_inline")
_STYLES = {"strong": "strong", "em": "em", "s": "strike", "link": "link"}
_MARKED = re.compile(r"[*_`~\[<&\\!]")
_WIDE = "\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe4f\uff01-\uff60\uffe0-\uffe6"
# Closing marks that do not begin a row: comma, full stop, exclamation and question mark, colon, brackets.
_CLOSING = "\u3001\u3002\uff0c\uff0e\uff01\uff1f\uff1a\uff1b\uff09\u300d\u300f\u3011\u3009\u300b"
_WORD = re.compile(rf"\n|[^\S\n]+|[{_WIDE}][{_CLOSING}]*|[^\s{_WIDE}]+")
_BREAKABLE = re.compile(f"[{_WIDE}]")


def cell_width(text: str) -> int:
    """How many cells of the terminal a text takes."""
    return len(text) if text.isascii() else cell_len(text)


@lru_cache(512)
def _parsed(source: str) -> tuple[Span, ...]:
    found: list[Span] = []
    names: list[str] = []
    targets: list[tuple[str, int]] = []
    for token in _MARKDOWN.parseInline(source)[0].children or ():
        kind = token.type
        if kind.endswith("_open"):
            names.append(_STYLES.get(kind[:-5], "text"))
            if kind == "link_open":
                targets.append((str(token.attrs.get("href", "")), len(found)))
        elif kind.endswith("_close"):
            names.pop()
            if kind == "link_close":
                url, start = targets.pop()
                # The target is always in plain sight: a link can then not lead elsewhere than it says.
                if url and url.removeprefix("mailto:") != "".join(text for text, _ in found[start:]):
                    found.append((f" ({url})", (*names, "url")))
        elif kind in ("softbreak", "hardbreak"):
            found.append(("\n", ()))
        elif kind == "image":
            found.append((token.content or "image", (*names, "link")))
            found.append((f" ({token.attrs.get('src', '')})", (*names, "url")))
        elif token.content:
            found.append((token.content, (*names, "code") if kind == "code_inline" else tuple(names)))
    return tuple(found)


def spans(source: str, *, growing: bool = False) -> tuple[Span, ...]:
    """The spans of a text in Markdown; line breaks are kept, as the newlines of spans.

    Args:
        growing: the text is still being written: emphasis and code that are open are drawn as if they were closed.
    """
    if not _MARKED.search(source):
        return ((source, ()),)
    if growing:
        source = _closed(source)
    # An entity such as &#27; is decoded here, so what comes out is made safe as what came in.
    return tuple((visible(text), names) for text, names in _parsed(source))


def _closed(source: str) -> str:
    if source.count("`") % 2:
        return source + "`"
    bare = source.rstrip("*")
    if bare.count("**") % 2 and bare and not bare.endswith((" ", "\n")):
        return bare + "**" if not bare.endswith("**") else bare[:-2]
    return source


def join(row: list[Span], text: str, names: Names) -> None:
    """Append to spans; text in the same style joins the last: few long spans cost least to paint."""
    if row and row[-1][1] == names:
        row[-1] = (row[-1][0] + text, names)
    else:
        row.append((text, names))


def wrap(content: Iterable[Span], width: int) -> list[tuple[list[Span], str]]:
    """Rows of spans that are at most `width` cells wide, each with what joins it to the next in the source.

    Words are kept whole where they fit; lines of wide characters break anywhere but before a closing mark.
    """
    content = list(content)
    measure: Callable[[str], int] = len if all(text.isascii() for text, _ in content) else cell_width
    rows: list[tuple[list[Span], str]] = []
    row: list[Span] = []
    used = 0
    space: Span | None = None
    word: list[Span] = []
    size = 0

    def put(text: str, names: Names) -> None:
        nonlocal used
        join(row, text, names)
        used += measure(text)

    def end_row(joint: str) -> None:
        nonlocal row, used, space
        rows.append((row, joint))
        row, used, space = [], 0, None

    def place() -> None:
        nonlocal space, word, size
        if not word:
            return
        if used and used + (measure(space[0]) if space else 0) + size > width:
            end_row(" " if space else "")
        if space:
            put(*space)
        for text, names in word:
            while used + measure(text) > width:
                head = (chop_cells(text, max(1, width - used)) or [text])[0]
                if used and measure(head) > width - used:
                    head = ""
                elif not head or head == text:
                    break
                if head:
                    put(head, names)
                end_row("")
                text = text[len(head) :]
            put(text, names)
        space, word, size = None, [], 0

    for text, names in content:
        for match in _WORD.finditer(text):
            part = match[0]
            if part == "\n":
                place()
                end_row("\n")
            elif part.isspace():
                place()
                blank = " " * measure(part.expandtabs(4))
                if used or not rows or rows[-1][1] == "\n":  # not at the start of a row that only goes on
                    space = (blank[: max(0, width - 1)], names)
            else:
                if word and _BREAKABLE.match(part):
                    place()
                word.append((part, names))
                size += measure(part)
                if _BREAKABLE.match(part):
                    place()
    place()
    if row or not rows:
        rows.append((row, "\n"))
    return rows
