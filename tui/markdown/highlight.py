"""Colours of source code: Pygments reads it, and a few of our styles name what it found."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tui.markdown.inline import Names, Span, join

_NAMES = {
    "Token.Keyword": "keyword",
    "Token.Operator.Word": "keyword",
    "Token.Literal.String": "string",
    "Token.Literal.Number": "number",
    "Token.Comment": "comment",
    "Token.Name.Function": "function",
    "Token.Name.Class": "function",
    "Token.Name.Decorator": "function",
    "Token.Name.Tag": "keyword",
    "Token.Name.Builtin": "builtin",
    "Token.Name.Attribute": "builtin",
    "Token.Generic.Deleted": "deleted",
    "Token.Generic.Inserted": "string",
    "Token.Generic.Heading": "keyword",
    "Token.Generic.Subheading": "keyword",
}


@lru_cache(64)
def _lexer(language: str) -> Any:
    """The reader of a language, or None for one that Pygments does not know."""
    from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
    from pygments.util import ClassNotFound  # type: ignore[import-untyped]

    try:
        return get_lexer_by_name(language, stripnl=False, ensurenl=False)
    except ClassNotFound:
        return None


@lru_cache(512)
def _name(token: str) -> str:
    while token and token not in _NAMES:
        token = token.rpartition(".")[0]
    return _NAMES.get(token, "")


def highlight(lines: list[str], language: str) -> list[list[Span]]:
    """The spans of each line of code."""
    lexer = _lexer(language.lower()) if language else None
    if lexer is None:
        return [[(line, ())] for line in lines]
    found: list[list[Span]] = [[]]
    for token, value in lexer.get_tokens("\n".join(lines)):
        name = _name(str(token))
        names: Names = (name,) if name else ()
        for index, text in enumerate(value.split("\n")):
            if index:
                found.append([])
            if text:
                join(found[-1], text, names)
    return (found + [[] for _ in lines])[: len(lines)]


def warm() -> None:
    """Load what highlighting needs, a tenth of a second's work, so that the first code block of an answer need not."""
    highlight(["pass"], "python")
