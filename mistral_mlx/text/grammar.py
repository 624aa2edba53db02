"""Answers held to a form: any JSON, a JSON schema, a regular expression; and calls of tools to the tools' schemas.

Which tokens may come next is llguidance's work. It sees the bytes of tokens, as the reader of the answer does, so it
works with every tokenizer here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper, regex_to_lark

from mistral_mlx.errors import RequestError, TokenizerError
from mistral_mlx.text.tokenizer import UNKNOWN_TEXT, Tokenizer, checked_text
from mistral_mlx.text.tools import AUTO, Tool, ToolChoice, check_schema

# As Python writes it, and Mistral's formats: with free whitespace a model may never stop. Letters are not escaped, or a
# key that the schema knows could be written as another.
_JSON_STYLE = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
    "json_allowed_escapes": '"\\bfnrt',
}
_OBJECT = {"type": "object"}


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
        self.encode = partial(tokenizer.encode, inside=True)
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
        json_schema: it is JSON that this schema allows; {"type": "object"} for any object.
        regex: the whole of it matches this, in the syntax of Rust's regex crate. With neither it is any text.
        tools: what it may call instead, with arguments as they have them.
        choice: whether it must, and how many.
    """

    json_schema: Mapping[str, Any] | None = None
    regex: str | None = None
    tools: Sequence[Tool] = ()
    choice: ToolChoice = AUTO

    def check(self) -> None:
        """Raises RequestError for a schema that is none, or what llguidance cannot follow."""
        if self.regex is not None:
            checked_text(self.regex)
            _check(self._answer(), f"The regex {self.regex}")
        if self.json_schema is not None:
            if isinstance(self.json_schema.get("schema"), Mapping) and "type" not in self.json_schema:
                raise RequestError("json_schema is a wrapping of OpenAI's API.", "Give what stands under its schema.")
            check_schema(self.json_schema, "json_schema")
            _check(self._answer(), "The json_schema")
        for tool in self.tools:
            _check(_json(_arguments(tool)), f"The schema of the tool {tool.name}")

    def begin(self, vocabulary: Vocabulary, *, continues: bool = False, thinks: bool = False) -> FormMatcher:
        """Hold a new answer to it. The form has been checked.

        Args:
            continues: the answer carries on a text, so its first token keeps its space.
            thinks: the model may reason first.
        """
        control = vocabulary.control
        rules = [f"answer: {self._answer()}", "text: /(.|\\n)+/"]
        start = "answer"
        if self.tools:
            tools = [tool for tool in self.tools if self.choice.only in (None, tool.name)]
            rules.append(f"calls: {_calls(tools, control, several=self.choice.several)}")
            start = "(answer | calls)" if self.regex is not None or self.json_schema is not None else "(text? calls?)"
            start = "calls" if self.choice.must else start
        if thinks and {"[THINK]", "[/THINK]"} <= control.keys():
            rules.append(f"thinking: <[{control['[THINK]']}]> text? <[{control['[/THINK]']}]>")
            start = f"thinking? {start}"
        grammar = "\n".join(rules)
        plain = _matcher(vocabulary, f"start: {start}\n{grammar}")
        if continues or not vocabulary.loses_space.any():
            return FormMatcher(plain, None, vocabulary)
        return FormMatcher(plain, _matcher(vocabulary, f'start: " " {start}\n{grammar}'), vocabulary)

    def _answer(self) -> str:
        """In llguidance's language."""
        if self.regex is not None:
            return f"/{regex_to_lark(self.regex)}/"
        return "text" if self.json_schema is None else _json(self.json_schema)


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
        self._begun = plain.deep_copy()
        self._matcher = plain
        self._spaced = spaced
        self._vocabulary = vocabulary

    def copy(self) -> FormMatcher:
        """The same, for another answer that goes on from here."""
        other = copy(self)
        other._matcher = self._matcher.deep_copy()
        other._spaced = self._spaced and self._spaced.deep_copy()
        return other

    def allowed(self) -> np.ndarray:
        """Which tokens may come next: (vocab,) bool."""
        plain = self._mask(self._matcher)
        if self._spaced is None:
            return plain
        return np.where(self._vocabulary.loses_space, self._mask(self._spaced), plain)

    def accept(self, token: int) -> None:
        """Take note of the token that came.

        Raises:
            RequestError: it was not allowed.
        """
        if self._spaced is not None and self._vocabulary.loses_space[token]:
            self._matcher = self._spaced
        self._spaced = None
        self._matcher.consume_token(token)
        self.check(self._matcher)
        self.over = self._matcher.is_stopped()

    def accepts(self, text: str) -> bool:
        """Whether a text, as it was shown, has the form."""
        whole = self._begun.deep_copy()
        ids = self._vocabulary.encode(text)
        return (not ids or whole.consume_tokens(ids)) and whole.is_accepting()

    def _mask(self, matcher: LLMatcher) -> np.ndarray:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        self.check(matcher)
        return np.unpackbits(bits, bitorder="little")[: self._vocabulary.size].astype(bool)

    @staticmethod
    def check(matcher: LLMatcher) -> None:
        """Raises RequestError if llguidance gave up."""
        if matcher.is_error():
            reason = _reason(matcher.get_error())
            raise RequestError(f"The form of the answer cannot be followed: {reason}.", "Use simpler means.")


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


def _arguments(tool: Tool) -> Mapping[str, Any]:
    return (tool.parameters or _OBJECT) if tool.strict else _OBJECT


def _calls(tools: Sequence[Tool], control: Mapping[str, int], *, several: bool) -> str:
    """Calls as Mistral's formats write them: name[ARGS]{…} each, or an array of them all."""
    begin = f"<[{control['[TOOL_CALLS]']}]>"
    if "[ARGS]" in control:
        ident = f"(<[{control['[CALL_ID]']}]> /[a-zA-Z0-9]{{9}}/)?" if "[CALL_ID]" in control else ""
        each = [f'{begin} "{tool.name}" {ident} <[{control["[ARGS]"]}]> {_json(_arguments(tool))}' for tool in tools]
        return f"({' | '.join(each)}){'+' if several else ''}"
    written = {"id": {"type": "string", "pattern": "^[a-zA-Z0-9]{9}$"}} if "[PREFIX]" in control else {}  # from v3 on
    items = [
        {
            "type": "object",
            "properties": {"name": {"const": tool.name}, "arguments": dict(_arguments(tool)), **written},
            "required": ["name", "arguments", *written],
            "additionalProperties": False,
        }
        for tool in tools
    ]
    array: dict[str, Any] = {"type": "array", "items": {"anyOf": items}, "minItems": 1}
    return f'{begin} " "? {_json(array if several else array | {"maxItems": 1})}'


def _json(schema: Mapping[str, Any]) -> str:
    return f"%json {json.dumps({**schema, 'x-guidance': _JSON_STYLE})}"


def _check(answer: str, what: str) -> None:
    grammar = LLMatcher.grammar_from_lark(f"start: {answer}\ntext: /(.|\\n)+/")
    if fault := LLMatcher.validate_grammar(grammar):
        raise RequestError(f"{what} cannot be followed: {_reason(fault)}.", "Mend it, or use simpler means.")


def _matcher(vocabulary: Vocabulary, grammar: str) -> LLMatcher:
    matcher = LLMatcher(vocabulary.wrapped, LLMatcher.grammar_from_lark(grammar), log_level=0)
    FormMatcher.check(matcher)
    return matcher


def _reason(fault: str) -> str:
    """What of llguidance's message says why."""
    lines = [line.strip() for line in fault.splitlines() if line.strip()] or ["unknown"]
    told = next((line for line in lines if line.startswith("error: ")), lines[0])
    told = re.sub(r"^(at [0-9]+\([0-9]+\): |error: |failed to compile JSON schema: )+", "", told)
    return re.sub(r"\. Enable '.*", "", told)  # an option that is not here
