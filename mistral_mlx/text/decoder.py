"""Ids to text while they come: no half characters, no lost spaces."""

from __future__ import annotations

import codecs

from mistral_mlx.text.tokenizer import Tokenizer


class StreamDecoder:
    """Turns one id at a time into text.

    Bytes of a character that is not yet complete are held back. Bytes that can never become one come out as U+FFFD,
    as in a decoding of the whole.

    Attributes:
        stop_ids: the tokenizer's; they are not fed.
    """

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        """Start a text.

        Args:
            continues: the ids carry on a text, whose next word brings its own space, rather than begin one.
        """
        self.stop_ids = tokenizer.stop_ids
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
