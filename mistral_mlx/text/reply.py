"""An answer's ids as text, thinking and calls of tools, while they come.

Where one ends and the next begins is told by control tokens, which no text can imitate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

from mistral_mlx.completion import ToolCallDelta
from mistral_mlx.text.decoder import StreamDecoder
from mistral_mlx.text.messages import is_call_id, new_call_id
from mistral_mlx.text.tokenizer import Tokenizer

_MARKERS = ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")


@dataclass
class Piece:
    """What one id adds to an answer."""

    text: str = ""
    thinking: str = ""
    tool_calls: list[ToolCallDelta] = field(default_factory=list)

    def __add__(self, other: Piece) -> Piece:
        return Piece(self.text + other.text, self.thinking + other.thinking, self.tool_calls + other.tool_calls)


class Reply:
    """Takes an answer apart as it comes. A call that cannot be read as one comes out as text: nothing is lost."""

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False, plain: bool = False) -> None:
        """Start an answer.

        Args:
            continues: the ids carry on a text, whose next word brings its own space, rather than begin one.
            plain: all of it is text.
        """
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer, continues=continues)
        self._markers = {} if plain else {tokenizer.control[m]: m for m in _MARKERS if m in tokenizer.control}
        self._within = "text"
        self._array: _CallArray | None = None
        self._held = ""  # of a call: what came before it was clear what it is
        self._name: str | None = None
        self._calls = 0
        self._ids: set[str] = set()

    def copy(self) -> Reply:
        """The same, to go on another way."""
        return deepcopy(self, {id(self._tokenizer): self._tokenizer})

    def feed(self, token: int) -> Piece:
        """What this id adds; often a word, sometimes nothing."""
        marker = self._markers.get(token)
        if marker is None:
            return self._said(self._decoder.feed(token))
        piece = self._said(self._decoder.flush())
        self._decoder = StreamDecoder(self._tokenizer)
        if marker in ("[THINK]", "[/THINK]"):
            self._give_up(piece)
            self._within = "thinking" if marker == "[THINK]" else "text"
        elif marker == "[TOOL_CALLS]":
            self._give_up(piece)
            self._within, self._name = "call", None
        elif self._within == "call" and self._array is None:  # name[ARGS]{…}, or name[CALL_ID]id[ARGS]{…}
            if marker == "[CALL_ID]" and self._name is None:
                self._name, self._held = self._held.strip(), ""
            elif marker == "[ARGS]":
                written = self._held.strip()
                name, given = (written, None) if self._name is None else (self._name, written)
                if not name:
                    self._give_up(piece)
                    self._within = "text"
                    return piece
                self._held = ""
                piece.tool_calls.append(ToolCallDelta(self._calls, name, "", self._checked(given)))
                self._calls += 1
                self._within = "arguments"
        return piece

    def flush(self) -> Piece:
        """What is left at the end."""
        piece = self._said(self._decoder.flush())
        self._give_up(piece)
        return piece

    def _checked(self, written: str | None) -> str:
        """An id for a call: the one that the model wrote, if it did and it can be used."""
        chosen = written if is_call_id(written) and written not in self._ids else new_call_id()
        self._ids.add(chosen)
        return chosen

    def _said(self, text: str) -> Piece:
        if self._within == "thinking":
            return Piece(thinking=text)
        if self._within == "arguments":
            return Piece(tool_calls=[ToolCallDelta(self._calls - 1, arguments=text)] if text else [])
        if self._within == "text":
            return Piece(text)
        if self._array is None:
            self._held += text
            if not self._held.lstrip().startswith(("[", "{")):
                return Piece()
            self._array, text, self._held = _CallArray(self._calls), self._held, ""
        calls, rest = self._array.feed(text)
        if rest:
            self._within, self._array = "text", None
        return Piece(rest, tool_calls=list(self._with_ids(calls)))

    def _with_ids(self, calls: Iterable[tuple[ToolCallDelta, bool]]) -> Iterable[ToolCallDelta]:
        for call, complete in calls:
            self._calls = max(self._calls, call.index + 1)
            yield ToolCallDelta(call.index, call.name, call.arguments, self._checked(call.id)) if complete else call

    def _give_up(self, piece: Piece) -> None:
        """Add what looked like the beginning of a call and was none; a call that was cut off before its id gets one."""
        if self._array is not None:
            piece.text += self._array.unread
            if self._array.is_open:
                piece.tool_calls.append(ToolCallDelta(self._calls - 1, id=self._checked(None)))
            self._array = None
        elif self._within == "call":
            piece.text += (self._name or "") + self._held
        self._held = ""


class _CallArray:
    """Reads `[{"name": "f", "arguments": {…}, "id": "…"}, …]` as it comes.

    Arguments are told while they come where the name stands before them, as it does in Mistral's formats.
    """

    _HEAD = re.compile(r'\{\s*"name"\s*:\s*"(?P<name>[^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')
    _BETWEEN = " \n\r\t,[]"

    def __init__(self, index: int) -> None:
        self._index = index
        self._text = ""  # of the call that is being read
        self._told: int | None = None  # letters of its arguments; None before its name

    @property
    def is_open(self) -> bool:
        """Whether a call has begun and not ended."""
        return self._told is not None

    @property
    def unread(self) -> str:
        """What has come of a call of which nothing was told yet."""
        return "" if self.is_open else self._text

    def feed(self, text: str) -> tuple[list[tuple[ToolCallDelta, bool]], str]:
        """The pieces of calls that the text completes, each with whether it is a call's last; and what is no call."""
        found: list[tuple[ToolCallDelta, bool]] = []
        self._text += text
        while True:
            if not self.is_open:
                self._text = self._text.lstrip(self._BETWEEN)
            if not self._text:
                break
            if not self._text.startswith("{"):
                return found, self._text
            whole = _value_at(self._text, 0) if "}" in text else None
            if whole is None:
                self._tell(found)
                break
            call, end = whole
            if not self.is_open and not (call.get("name") and isinstance(call["name"], str)):
                return found, self._text
            self._finish(found, call, self._text[:end])
            self._text = self._text[end:]
        return found, ""

    def _tell(self, found: list[tuple[ToolCallDelta, bool]]) -> None:
        """The beginning of a call, as far as it has come."""
        name, arguments = self._begun(self._text)
        if arguments is not None and len(arguments) > (self._told or 0):
            delta = ToolCallDelta(self._index, None if self.is_open else name, arguments[self._told or 0 :])
            found.append((delta, False))
            self._told = len(arguments)

    def _finish(self, found: list[tuple[ToolCallDelta, bool]], call: dict[str, Any], text: str) -> None:
        """The rest of a call that is complete."""
        _, arguments = self._begun(text)
        if arguments is None:
            value = call.get("arguments", {})
            arguments = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        name = None if self.is_open else call["name"]
        given = None if call.get("id") is None else str(call["id"])
        found.append((ToolCallDelta(self._index, name, arguments[self._told or 0 :], given), True))
        self._index, self._told = self._index + 1, None

    def _begun(self, text: str) -> tuple[str, str] | tuple[None, None]:
        """Name and arguments as the model wrote them, as far as they have come, if they are where they belong."""
        head = self._HEAD.match(text)
        if head is None:
            return None, None
        whole = _value_at(text, head.end())
        return head["name"], text[head.end() : whole[1] if whole else None]


def _value_at(text: str, start: int) -> tuple[dict[str, Any], int] | None:
    """The JSON object that begins there, and where it ends; None if it does not end yet."""
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError):
        return None
    return value, end
