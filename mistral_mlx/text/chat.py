"""Conversations to ids, as Mistral's models were trained to read them.

Ids are put together piece by piece: what the format adds may be control tokens, what people and models wrote never is.
mistral-common is the truth for every version; models that bring a template of their own are served by `template`.
"""

from __future__ import annotations

import logging
import secrets
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import Any, Protocol, Unpack

from mistral_mlx.errors import InputError, RequestError, TokenizerError
from mistral_mlx.text.messages import TOOL_NAME, Message, Thought, name_of_call, read_messages
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tekken import Tekken
from mistral_mlx.text.tokenizer import checked_text
from mistral_mlx.text.tools import Around

log = logging.getLogger("mistral_mlx")


class ChatFormat(Protocol):
    """How a family of models writes a conversation.

    Attributes:
        one_call: whether an answer can call one tool only.
    """

    one_call: bool

    def encode(self, messages: Iterable[Message | Mapping[str, Any]], **around: Unpack[Around]) -> list[int]:
        """The ids of a conversation up to where the assistant's next answer begins.

        Args:
            messages: or mappings as in OpenAI's API.

        Raises:
            RequestError: what the format cannot express; it names a message by its index.
        """
        ...

    def fill(self, prefix: str, suffix: str) -> list[int]:
        """The ids that ask for what belongs between two texts.

        Raises:
            RequestError: the model was not trained to.
        """
        ...


class MistralChat:
    """Mistral's instruct formats v1 to v15, by mistral-common; the tokenizer's own version decides."""

    def __init__(self, tokenizer: SentencePiece | Tekken) -> None:
        self._tokenizer = tokenizer
        self.one_call = tokenizer.version == "v2"
        self._warned: set[str] = set()
        self._lock = Lock()

    def encode(self, messages: Iterable[Message | Mapping[str, Any]], **around: Unpack[Around]) -> list[int]:
        """As in `ChatFormat`.

        v2 to v11 put the tools before the last message of the user, and v2 and v3 the system prompt into it, so they
        move with every turn and what stood after them is read again. `stable` puts them into the first message, as v1
        does. It costs a place that the model was not trained on: in long conversations it may heed them less.
        """
        version = self._tokenizer.version
        turns = read_messages(messages, join=self._normalizer._chunk_join_str, unanswered=True)
        if version == "v1":
            self._warn_of_forged_turns(turns)
            if around.get("tools") or any(m.tool_calls or m.role == "tool" for m in turns):
                raise RequestError("This model's chat format (v1) has no tools.", "Use a later model: v0.3 and up.")
        if (effort := around.get("reasoning_effort")) is not None:
            self._check_effort(effort)
        given = _Given(turns, around)
        _ = self._instruct  # a tokenizer that lacks its version's tokens is nobody's message's fault
        try:
            return self._encode(given, self._validators[0])
        except self._faults as error:
            where, reason = self._first_fault(given, error)
            raise RequestError(
                f"{where} cannot be expressed in this model's chat format ({version}): {reason}",
                "Check the roles, their order, and what each message holds.",
            ) from error

    def fill(self, prefix: str, suffix: str) -> list[int]:
        from mistral_common.protocol.fim.request import FIMRequest

        if "[SUFFIX]" not in self._tokenizer.control:
            raise RequestError(
                f"This model's format ({self._tokenizer.version}) cannot fill in the middle.",
                "Use one that can, such as Codestral or Mathstral.",
            )
        request = FIMRequest(prompt=checked_text(prefix), suffix=checked_text(suffix))
        return list(self._instruct.encode_fim(request).tokens)

    def _encode(self, given: _Given, validator: Any) -> list[int]:
        request = given.request(self._tokenizer.version, self._takes_schema)
        given_to = self._normalizer.from_chat_completion_request(validator(request))
        with self._lock:  # front ends count tokens while a model's thread encodes
            self._instruct.answers, self._instruct.stable = given.answers, given.around.get("stable", False)
            ids = list(self._instruct.encode_instruct(given_to).tokens)
        if given.answers:
            raise InputError("it joins or drops some of the answers.")
        return ids

    def _first_fault(self, given: _Given, error: Exception) -> tuple[str, str]:
        """The first message that cannot follow those before it, and why; mistral-common does not name it."""

        def fault(count: int) -> Exception | None:
            try:
                self._encode(given.up_to(count), self._validators[1])
            except self._faults as fault:
                return fault
            return None

        last = len(given.turns)
        count = bisect_left(range(1, last + 1), 1, key=lambda count: fault(count) is not None) + 1
        return f"messages[{min(count, last) - 1}]", _reason((fault(count) if count <= last else None) or error)

    def _check_effort(self, effort: str) -> None:
        known = self._settings.reasoning_effort if self._settings is not None else None
        if known is None:
            raise RequestError(
                f"This model's chat format ({self._tokenizer.version}) has no reasoning effort.",
                "Leave out reasoning_effort.",
            )
        if effort not in list(known.values):
            raise RequestError(f"reasoning_effort is {effort!r}.", f"This model's: {', '.join(known.values)}.")

    def _warn_of_forged_turns(self, turns: Sequence[Message]) -> None:
        """In v1 the marks of a turn are ordinary text, which anybody can write."""
        for i, turn in enumerate(turns):
            if turn.ids is None and turn.content not in self._warned and "[INST]" in turn.content.replace("[/", "["):
                self._warned.add(turn.content)
                log.warning(
                    "messages[%d] contains [INST] or [/INST], which this model's chat format (v1) cannot tell from the "
                    "beginning and the end of a turn.",
                    i,
                )

    # ---- mistral-common, imported on first use: it takes a second ---------------------------------------------------

    @cached_property
    def _faults(self) -> tuple[type[Exception], ...]:
        from mistral_common.exceptions import MistralCommonException

        # What its validators, its models (pydantic), its assertions and its gaps raise.
        return MistralCommonException, ValueError, AssertionError, NotImplementedError

    @cached_property
    def _validators(self) -> tuple[Any, Any]:
        """What checks whole conversations, and beginnings of them, which may end anywhere."""
        from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
        from mistral_common.tokens.tokenizers.base import TokenizerVersion

        version = TokenizerVersion(self._tokenizer.version)
        modes = ValidationMode.test, ValidationMode.agnostic
        whole, beginning = (get_validator(version, mode).validate_request for mode in modes)
        return whole, beginning

    @cached_property
    def _normalizer(self) -> Any:
        from mistral_common.protocol.instruct.normalize import get_normalizer
        from mistral_common.tokens.tokenizers.base import TokenizerVersion

        return get_normalizer(TokenizerVersion(self._tokenizer.version), self._settings)

    @property
    def _settings(self) -> Any:
        """What a tekken file says about the model's settings (v15)."""
        return self._tokenizer.common.model_settings_builder if isinstance(self._tokenizer, Tekken) else None

    @property
    def _takes_schema(self) -> bool:
        return self._settings is not None and self._settings.json_schema is not None

    @cached_property
    def _instruct(self) -> Any:
        """mistral-common's encoder for this version, which also takes answers as the ids that were sampled."""
        from mistral_common.tokens.tokenizers import instruct
        from mistral_common.tokens.tokenizers.base import TokenizerVersion
        from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

        tokenizer: Any
        if isinstance(self._tokenizer, Tekken):
            tokenizer = self._tokenizer.common
        else:
            with TemporaryDirectory() as folder:  # it only opens files, and ours may have come out of a GGUF
                file = Path(folder) / "tokenizer.model"
                file.write_bytes(self._tokenizer.proto)
                tokenizer = SentencePieceTokenizer(file, TokenizerVersion(self._tokenizer.version))
            ours = self._tokenizer
            tokenizer.encode = lambda text, bos, eos: ours.encode(text)  # which keeps [REF] in text apart
        kind: Any = getattr(instruct, f"InstructTokenizer{self._tokenizer.version.upper()}")

        class Encoder(kind):  # type: ignore[misc]
            """Two changes to mistral-common's: answers that were sampled, and the stable placement."""

            answers: dict[str, list[int]]
            stable: bool

            def encode_assistant_message(self, message: Any, is_before_last_user_message: bool) -> list[int]:
                """Ids for a marked message, unless the format drops it; with the end that the format gives it."""
                before = is_before_last_user_message and not self.stable
                written: list[int] = super().encode_assistant_message(message, before)
                mark = message.tool_calls[0].function.name if message.tool_calls else message.content
                answer = self.answers.pop(mark, None) if isinstance(mark, str) else None
                if answer is None or not written:
                    return written
                return answer if message.prefix else [*answer, self.tokenizer.eos_id]

            def encode_user_message(self, message: Any, tools: Any, is_last: bool, is_first: bool, **rest: Any) -> Any:
                return super().encode_user_message(
                    message, tools, is_first if self.stable else is_last, is_first, **rest
                )

            def encode_tool_message(self, message: Any, is_before_last_user_message: bool) -> Any:
                return super().encode_tool_message(message, is_before_last_user_message and not self.stable)

            def decode(self, *_: Any, **__: Any) -> str:
                return ""  # for the sake of nobody here, and ids past the vocabulary break it

        try:
            return Encoder(tokenizer)
        except Exception as error:  # whatever a file that lacks its version's tokens leads to
            raise TokenizerError(
                f"The tokenizer states version {self._tokenizer.version} and lacks its tokens: {error!r}.",
                "Fetch it again.",
            ) from error


class _Given:
    """A conversation and what stands around it.

    Attributes:
        answers: ids that were sampled, by the mark that stands for them in the request.
    """

    def __init__(self, turns: Sequence[Message], around: Around) -> None:
        self.turns = turns
        self.around = around
        self.answers: dict[str, list[int]] = {}
        self._nonce = secrets.token_hex(8)  # so that nobody can have written the marks

    def up_to(self, count: int) -> _Given:
        """The beginning of the same."""
        return _Given(self.turns[:count], self.around)

    def request(self, version: str, takes_schema: bool) -> Any:
        """As mistral-common takes it."""
        from mistral_common.protocol.instruct import request as common
        from mistral_common.protocol.instruct import tool_calls

        effort, schema = self.around.get("reasoning_effort"), self.around.get("json_schema")
        tools = [tool_calls.Tool.from_openai(tool.definition()) for tool in self.around.get("tools", ())]
        form = common.ResponseFormat()
        if takes_schema and schema is not None:
            held = common.JsonSchema(name="answer", schema=dict(schema))
            form = common.ResponseFormat(type=common.ResponseFormats.json_schema, json_schema=held)
        return common.ChatCompletionRequest(
            messages=[self._turn(i, turn, version) for i, turn in enumerate(self.turns)],
            tools=tools or None,
            reasoning_effort=None if effort is None else common.ReasoningEffort(effort),
            response_format=form,
        )

    def _turn(self, index: int, turn: Message, version: str) -> Any:
        from mistral_common.protocol.instruct import chunk, messages, tool_calls

        if turn.role == "system":
            parts: Any = [
                chunk.ThinkChunk(thinking=part) if isinstance(part, Thought) else chunk.TextChunk(text=part)
                for part in turn.parts
            ]
            return messages.SystemMessage(content=parts or turn.content)
        if turn.role == "user":
            return messages.UserMessage(content=turn.content)
        if turn.role == "tool":
            name = name_of_call(self.turns, index)
            named = name if version == "v2" and TOOL_NAME.fullmatch(name) else None  # later formats go by the id
            return messages.ToolMessage(content=turn.content, tool_call_id=turn.tool_call_id, name=named)
        mark = f"kept-{self._nonce}-{index}"
        content: Any = turn.content
        if turn.ids is not None:
            self.answers[mark] = list(turn.ids)
            content = None if turn.tool_calls else mark
        elif turn.thinking:
            closed = bool(turn.content or turn.tool_calls or not turn.prefix)
            content = [chunk.ThinkChunk(thinking=turn.thinking, closed=closed)]
            content += [chunk.TextChunk(text=turn.content)] if turn.content else []
        calls = [
            tool_calls.ToolCall(
                id=call.id,
                function=tool_calls.FunctionCall(
                    name=call.name if turn.ids is None else mark, arguments=call.arguments if turn.ids is None else "{}"
                ),
            )
            for call in turn.tool_calls
        ]
        return messages.AssistantMessage(content=content or None, tool_calls=calls or None, prefix=turn.prefix)


def _reason(error: Exception) -> str:
    """What mistral-common says, on one line."""
    return " ".join((error.message if isinstance(error, InputError) else str(error)).split()) or repr(error)
