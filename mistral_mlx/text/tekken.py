"""Mistral's `tekken.json`: byte-level BPE by rank, run by mistral-common."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from mistral_mlx.errors import InputError, TokenizerError
from mistral_mlx.text.tokenizer import checked_text


class Tekken:
    """A tekken vocabulary: control tokens first, then the bytes, then longer pieces."""

    def __init__(self, path: Path) -> None:
        """Open a `tekken.json`; raises TokenizerError if it is none."""
        # Imported here: it takes a second, and other tokenizers do without.
        from mistral_common.tokens.tokenizers.tekken import Tekkenizer

        try:
            self.common = Tekkenizer.from_file(path)
            self.bos_id: int | None = self.common.bos_id
            self.stop_ids = frozenset({self.common.eos_id})
        except Exception as error:  # whatever a damaged file leads to
            if "Unknown version" in str(error):
                raise TokenizerError(f"{path}: {error}", "A newer mistral-common may know it: update it.") from error
            raise TokenizerError(f"{path} is not a tekken vocabulary: {error!r}.", "Fetch it again.") from error
        self.vocab_size = self.common.n_words
        self.pattern = str(self.common._model._pat_str)  # by which text is cut before pieces are joined

    @cached_property
    def control(self) -> Mapping[str, int]:
        return {self.common.id_to_piece(i): i for i in range(self.common.num_special_tokens)}

    @property
    def version(self) -> str:
        """The chat format that the file states, such as v3 or v7."""
        return str(self.common.version.value)

    def encode(self, text: str, *, follows: bool = False, inside: bool = False) -> list[int]:
        checked_text(text)
        try:
            return self.common.encode(text, bos=False, eos=False)
        except ValueError as error:  # what cuts it runs out of room
            raise InputError(
                "The text cannot be split into tokens.", "It may hold a very long run of blanks: shorten it."
            ) from error

    def token_bytes(self, token: int) -> bytes:
        return self.common.id_to_byte_piece(token) if token < self.vocab_size else b""

    first_bytes = token_bytes
