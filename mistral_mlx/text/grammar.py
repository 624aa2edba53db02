"""Answers held to a form: any JSON, a JSON schema, a regular expression.

Which tokens may come next is llguidance's work. It sees the bytes of tokens, as the reader of the answer does, so it
works with every tokenizer here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper, regex_to_lark

from mistral_mlx.errors import RequestError, TokenizerError
from mistral_mlx.text.tokenizer import UNKNOWN_TEXT, Tokenizer
from mistral_mlx.text.tools import check_schema

# Between JSON's parts: nothing, a space, or a line break and an indent. Without a bound a model may never stop.
_JSON_STYLE = {"whitespace_flexible": True, "whitespace_pattern": r"( |\n {0,16})?"}

_JSON_OBJECT = {"type": "object"}  # what OpenAI's JSON mode promises


class Vocabulary:
    """A tokenizer's vocabulary as llguidance takes it. Making one takes up to a second; it serves many answers."""

    def __init__(self, tokenizer: Tokenizer, size: int, stop_ids: Iterable[int]) -> None:
        """Take it over.

        Args:
            size: the model's vocabulary, which may be larger than the tokenizer's.
            stop_ids: what may end an answer once its form is complete.

        Raises:
            TokenizerError: nothing does.
        """
        self.control = tokenizer.control
        self.size = size
        said = [tokenizer.token_bytes(i) for i in range(size)]
        # Tokens that lose the space before them at the beginning of an answer.
        self.loses_space = np.array([tokenizer.first_bytes(i) != data for i, data in enumerate(said)])
        stops = sorted(stop_ids)
        if not stops:
            raise TokenizerError("This model has no token that ends an answer.", "Leave out the form of the answer.")
        self.wrapped = LLTokenizer(TokenizerWrapper(_Tokens(tokenizer, said, stops[0])), n_vocab=size, eos_token=stops)


@dataclass(frozen=True)
class Form:
    """What an answer must look like.

    Attributes:
        json_schema: it is JSON that this schema allows.
        regex: the whole of it matches this, in the syntax of Rust's regex crate.
    """

    json_schema: Mapping[str, Any] | None = None
    regex: str | None = None

    def check(self) -> None:
        """Raises RequestError for a schema that is none; what llguidance cannot follow shows in `begin`."""
        if self.json_schema is not None:
            check_schema(self.json_schema, "json_schema")

    def begin(
        self, vocabulary: Vocabulary, *, continues: bool = False, thinks: bool = False, calls: bool = False
    ) -> FormMatcher:
        """Hold a new answer to it.

        Args:
            continues: the answer carries on a text, so its first token keeps its space.
            thinks: the model may reason first.
            calls: it may call tools instead.

        Raises:
            RequestError: a schema or an expression that llguidance cannot follow.
        """
        control = vocabulary.control
        if self.regex is not None:
            answer = f"/{regex_to_lark(self.regex)}/"
        else:
            answer = f"%json {json.dumps({**(self.json_schema or _JSON_OBJECT), 'x-guidance': _JSON_STYLE})}"
        rules = [f"answer: {answer}", "text: /(.|\\n)+/"]
        start = "answer"
        if thinks and {"[THINK]", "[/THINK]"} <= control.keys():
            rules.append(f"thinking: <[{control['[THINK]']}]> text? <[{control['[/THINK]']}]>")
            start = "thinking? answer"
        if calls:
            marks = " | ".join(f"<[{control[m]}]>" for m in ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]") if m in control)
            rules.append(f"calls: <[{control['[TOOL_CALLS]']}]> ({marks} | text)*")
            start = f"{start} | {'thinking? ' if 'thinking' in start else ''}calls"
        grammar = "\n".join(rules)
        plain = _matcher(vocabulary, f"start: {start}\n{grammar}", self)
        if continues or not vocabulary.loses_space.any():
            return FormMatcher(plain, None, vocabulary)
        return FormMatcher(plain, _matcher(vocabulary, f'start: " " ({start})\n{grammar}', self), vocabulary)


class FormMatcher:
    """Follows one answer.

    Attributes:
        over: whether the answer is complete and nothing can follow.
    """

    def __init__(self, plain: LLMatcher, spaced: LLMatcher | None, vocabulary: Vocabulary) -> None:
        """Begin.

        Args:
            spaced: the same after a space, for a first token that loses one.
        """
        self.over = False
        self._matcher = plain
        self._spaced = spaced
        self._vocabulary = vocabulary

    def allowed(self) -> np.ndarray:
        """Which tokens may come next: (vocab,) bool."""
        plain = self._mask(self._matcher)
        if self._spaced is None:
            return plain
        return np.where(self._vocabulary.loses_space, self._mask(self._spaced), plain)

    def accept(self, token: int) -> None:
        """Take note of the token that came; it was allowed."""
        if self._spaced is not None and self._vocabulary.loses_space[token]:
            self._matcher = self._spaced
        self._spaced = None
        self._matcher.consume_token(token)
        self._check(self._matcher)
        self.over = self._matcher.is_stopped()

    def _mask(self, matcher: LLMatcher) -> np.ndarray:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        self._check(matcher)
        return np.unpackbits(bits, bitorder="little")[: self._vocabulary.size].astype(bool)

    @staticmethod
    def _check(matcher: LLMatcher) -> None:
        if matcher.is_error():
            raise RequestError(
                f"The form of the answer cannot be followed further: {_reason(matcher)}.", "Make it simpler."
            )


class _Tokens:
    """A tokenizer as llguidance's TokenizerWrapper takes it."""

    def __init__(self, tokenizer: Tokenizer, said: Sequence[bytes], stop: int) -> None:
        self._tokenizer = tokenizer
        self.bos_token_id = tokenizer.bos_id
        self.eos_token_id = stop
        # What stands for no text of its own is nothing that a form can ask for, but by its id.
        control = set(tokenizer.control.values())
        self.special_token_ids = [i for i, data in enumerate(said) if not data or data == UNKNOWN_TEXT or i in control]
        special = set(self.special_token_ids)
        self.tokens = [f"<{i}>".encode() if i in special else data for i, data in enumerate(said)]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, inside=True)


def _matcher(vocabulary: Vocabulary, grammar: str, form: Form) -> LLMatcher:
    matcher = LLMatcher(vocabulary.wrapped, LLMatcher.grammar_from_lark(grammar), log_level=0)
    if matcher.is_error():
        what = f"regex {form.regex!r}" if form.regex is not None else "json_schema"
        raise RequestError(f"The {what} cannot be followed: {_reason(matcher)}.", "Use simpler means.")
    return matcher


def _reason(matcher: LLMatcher) -> str:
    """What of llguidance's message says why."""
    lines = [line.strip() for line in matcher.get_error().splitlines() if line.strip()] or ["unknown"]
    told = next((line for line in lines if line.startswith("error: ")), lines[0])
    return re.sub(r"^(at [0-9]+\([0-9]+\): |error: |failed to compile JSON schema: )+", "", told)
