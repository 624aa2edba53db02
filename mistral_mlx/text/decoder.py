"""Ids to text while they come: no half characters, no lost spaces, nothing of a stop string."""

from __future__ import annotations

import codecs
from collections.abc import Sequence

from mistral_mlx.text.tokenizer import Tokenizer


class StreamDecoder:
    """Turns one id at a time into text.

    Bytes of a character that is not yet complete are held back. Bytes that can never become one come out as U+FFFD,
    as in a decoding of the whole.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        """Start a text.

        Args:
            continues: the ids carry on a text, whose next word brings its own space, rather than begin one.
        """
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._begins = not continues

    def feed(self, token: int) -> str:
        """The text that this id completes; often a word, sometimes nothing."""
        data = self._tokenizer.token_bytes(token)
        if data and self._begins:
            data = self._tokenizer.first_bytes(token)
            self._begins = False
        return self._utf8.decode(data)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for an unfinished character, else nothing."""
        return self._utf8.decode(b"", final=True)


class StopStrings:
    """Ends a text before that of some strings which is complete first, and holds back what may be the beginning of one.

    So the end does not depend on the pieces in which the text comes.

    Attributes:
        found: whether one has come; from then on nothing is let through.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.found = False
        self._strings = strings
        self._held = ""

    def feed(self, text: str) -> str:
        """What of the text so far is certain now."""
        if self.found:
            return ""
        self._held += text
        places = [(at + len(s), at) for s in self._strings if (at := self._held.find(s)) >= 0]
        self.found = bool(places)
        end = min(places)[1] if places else self._certain()
        certain, self._held = self._held[:end], "" if self.found else self._held[end:]
        return certain

    def flush(self) -> str:
        """What is left at the end, once nothing can follow."""
        held, self._held = self._held, ""
        return held

    def _certain(self) -> int:
        """Where the longest end begins that is a beginning of one of the strings."""
        longest = max(map(len, self._strings), default=1) - 1
        start = max(0, len(self._held) - longest)
        ends = (at for at in range(start, len(self._held)) if any(s.startswith(self._held[at:]) for s in self._strings))
        return next(ends, len(self._held))
