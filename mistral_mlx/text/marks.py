"""Marks that stand for what people and models wrote while a template is rendered."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Place:
    """Where a mark stands in the rendered text, and the text that belongs there."""

    start: int
    end: int
    mark: str
    text: str


_PAD = "\u2003\u2002\u2003\u2002"  # em and en spaces

# Words that templates compare with, and that nobody's text is.
_SCHEMA = frozenset(
    {"type", "function", "name", "description", "parameters", "properties", "required", "items", "enum", "default"}
    | {"anyOf", "additionalProperties", "object", "string", "integer", "number", "boolean", "array", "null"}
)


class Marks:
    """Marks for what people and models wrote, which nobody can have written: they are drawn anew.

    Around a mark stand spaces, whose absence tells that a template trims what was said. In it stands a quotation mark:
    the backslashes that JSON puts before it tell how often the text must be written as JSON too.

    Attributes:
        needed: those that must appear once, and the message that each belongs to.
    """

    def __init__(self) -> None:
        self._nonce = nonce = secrets.token_hex(8)
        self.needed: dict[str, int] = {}
        self._form = f'{_PAD}\ue000{nonce}-%d"\ue001{_PAD}'
        self._pattern = re.compile(
            f'(?P<left>{_PAD})?\ue000{nonce}-(?P<index>[0-9]+)(?P<slashes>\\\\*)"\ue001(?P<right>{_PAD})?'
        )
        self._texts: list[str] = []
        self._known: dict[str, str] = {}
        self._marks: list[str] = []

    def of(self, text: str) -> str:
        """The mark for a text; the same for the same text."""
        if text not in self._known:
            self._known[text] = self._new(text)
        return self._known[text]

    def once(self, text: str, message: int) -> str:
        """A mark of its own, which must appear once, for a text of that message."""
        mark = self._new(text)
        self.needed[mark] = message
        return mark

    def alone(self, text: str) -> str:
        """A mark of its own, which templates may leave out or repeat."""
        return self._new(text)

    def _new(self, text: str) -> str:
        self._texts.append(text)
        self._marks.append(self._form % (len(self._texts) - 1))
        return self._marks[-1]

    def within(self, value: Any) -> Any:
        """The same structure with marks for its texts, but for the words of JSON schemas."""
        if isinstance(value, Mapping):
            return {self.within(key): self.within(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.within(item) for item in value]
        return self.of(value) if isinstance(value, str) and value not in _SCHEMA else value

    def find(self, text: str) -> Iterator[Place]:
        """Where they stand, in order."""
        for place in self._pattern.finditer(text):
            index = int(place["index"])
            said = self._texts[index]
            # JSON puts quotation marks around, so what is trimmed was trimmed before.
            said = said if place["left"] else said.lstrip()
            said = said if place["right"] else said.rstrip()
            for _ in range((len(place["slashes"]) + 1).bit_length() - 1):
                said = json.dumps(said, ensure_ascii=False)[1:-1]
            yield Place(place.start(), place.end(), self._marks[index], said)

    def left_in(self, text: str) -> bool:
        """Whether pieces of marks stand there, which are none any more."""
        rest = self._pattern.sub("", text)
        return self._nonce in rest or bool(set(rest) & {"\ue000", "\ue001", *_PAD})
