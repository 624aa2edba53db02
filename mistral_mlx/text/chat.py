"""Conversations to ids, as each model was trained to read them.

Ids are put together piece by piece: what the format adds may be control tokens, what people and models wrote never is.
mistral-common is the truth for Mistral's formats; a Jinja template serves models that bring their own.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NoReturn, Protocol

from mistral_mlx.errors import InputError, TokenizerError
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tekken import Tekken
from mistral_mlx.text.tokenizer import Tokenizer, checked_text

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        ids: the ids that were sampled, but for a stop token, for a turn that a model wrote here. They are used as they
            are: encoding the text anew often gives others, and then nothing that was computed can be used again.
    """

    role: Role
    content: str
    ids: tuple[int, ...] | None = None


class ChatFormat(Protocol):
    """How a family of models writes a conversation."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The ids of a conversation up to where the assistant's next answer begins.

        Raises:
            InputError: roles in an order that the format cannot express, or text that it cannot carry.
        """
        ...


class MistralChat:
    """Mistral's instruct formats, by mistral-common."""

    def __init__(self, tokenizer: SentencePiece | Tekken) -> None:
        self._tokenizer = tokenizer
        self._answers: dict[str, list[int]] = {}  # ids that were sampled, by the placeholder that stands for them

    def encode(self, messages: Sequence[Message]) -> list[int]:
        from mistral_common.exceptions import MistralCommonException
        from mistral_common.protocol.instruct.messages import AssistantMessage, SystemMessage, UserMessage
        from mistral_common.protocol.instruct.request import ChatCompletionRequest

        answers, mark = self._answers, _Mark()
        answers.clear()
        turns: list[Any] = []
        for index, message in enumerate(messages):
            checked_text(message.content)
            if message.role == "system":
                turns.append(SystemMessage(content=message.content))
            elif message.role == "user":
                turns.append(UserMessage(content=message.content))
            elif message.ids is None:
                turns.append(AssistantMessage(content=message.content))
            else:
                answers[mark.of(index)] = list(message.ids)
                turns.append(AssistantMessage(content=mark.of(index)))
        try:
            ids = list(self._common.encode_chat_completion(ChatCompletionRequest(messages=turns)).tokens)
        except MistralCommonException as error:
            raise InputError(
                f"This conversation cannot be encoded: {error}", "Check the roles and their order."
            ) from error
        if answers:
            raise InputError(
                "This conversation cannot be encoded: its format joins or drops some of the answers.",
                "Put a message of the user between two answers.",
            )
        return ids

    @cached_property
    def _common(self) -> Any:
        """mistral-common's tokenizer for this version. Imported on first use: it takes a second."""
        from mistral_common.protocol.instruct.normalize import get_normalizer
        from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
        from mistral_common.tokens.tokenizers import instruct
        from mistral_common.tokens.tokenizers.base import TokenizerVersion
        from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
        from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

        version, settings = TokenizerVersion(self._tokenizer.version), None
        tokenizer: Any
        if isinstance(self._tokenizer, Tekken):
            tokenizer, settings = copy(self._tokenizer.common), self._tokenizer.common.model_settings_builder
        else:
            with TemporaryDirectory() as folder:  # it only opens files, and ours may have come out of a GGUF
                file = Path(folder) / "tokenizer.model"
                file.write_bytes(self._tokenizer.proto)
                tokenizer = SentencePieceTokenizer(file, version)
        plain = tokenizer.encode

        def encode(text: str, bos: bool, eos: bool) -> list[int]:
            answer = self._answers.pop(text, None)
            return list(plain(text, bos, eos)) if answer is None else answer

        tokenizer.encode = encode
        kind = getattr(instruct, f"InstructTokenizer{version.value.upper()}")
        return MistralTokenizer(
            kind(tokenizer), get_validator(version, ValidationMode.test), get_normalizer(version, settings)
        )


class TemplateChat:
    """A model's own Jinja template, run in a sandbox.

    What was said travels through the template as a placeholder and is encoded apart, so it cannot forge the control
    tokens that the template writes.
    """

    def __init__(self, template: str, tokenizer: Tokenizer, bos: str = "", eos: str = "") -> None:
        """Raises TokenizerError if the template is not valid Jinja."""
        from jinja2 import TemplateError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self._tokenizer = tokenizer
        self._given = {
            "bos_token": bos,
            "eos_token": eos,
            "add_generation_prompt": True,
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.now().astimezone().strftime(form),
        }
        try:
            # The settings that transformers renders templates with.
            environment = ImmutableSandboxedEnvironment(
                trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
            )
            self._template = environment.from_string(template)
        except TemplateError as error:
            raise TokenizerError(
                f"The model's chat template is broken: {error}.", "Generate from plain text: LLM.generate, or --raw."
            ) from error

    def encode(self, messages: Sequence[Message]) -> list[int]:
        mark = _Mark()
        text = self._render([{"role": m.role, "content": mark.padded(i)} for i, m in enumerate(messages)])
        # Text stands together up to the next control token or sampled answer, as it would in the rendered whole.
        runs: list[str | list[int]] = []
        found: list[int] = []
        end = 0
        for place in mark.pattern.finditer(text):
            runs += self._written(text[end : place.start()])
            found.append(int(place["index"]))
            runs.append(self._said(messages[found[-1]], trim_left=not place["left"], trim_right=not place["right"]))
            end = place.end()
        runs += self._written(text[end:])
        pieces_of_marks = set(mark.pattern.sub("", text)) & set(mark.padded(0)[:5])
        if sorted(found) != list(range(len(messages))) or pieces_of_marks:
            raise InputError(
                "The model's chat template leaves out or repeats parts of this conversation.",
                "It may not know the system role: put that text into the first message, or use --raw.",
            )
        ids: list[int] = []
        said = ""
        for run in [*runs, []]:
            if isinstance(run, str):
                said += run
                continue
            if said:
                ids += self._tokenizer.encode(said, follows=bool(ids))
                said = ""
            ids += run
        return ids

    def _render(self, turns: list[dict[str, str]]) -> str:
        try:
            return self._template.render(messages=turns, **self._given)
        except Exception as error:  # a template can fail in any way that a program can
            raise InputError(f"The model's chat template refuses this conversation: {error}.") from error

    def _said(self, message: Message, *, trim_left: bool, trim_right: bool) -> str | list[int]:
        if message.ids is None:
            content = message.content.lstrip() if trim_left else message.content
            return content.rstrip() if trim_right else content
        return list(message.ids)

    def _written(self, text: str) -> list[str | list[int]]:
        """The template's own text, in which names of control tokens mean the tokens."""
        control = self._tokenizer.control
        return [[control[part]] if part in control else part for part in self._control_names.split(text)]

    @cached_property
    def _control_names(self) -> re.Pattern[str]:
        longest_first = sorted(filter(None, self._tokenizer.control), key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else r"(?!)")


_PAD = "\u2003\u2002\u2003\u2002"  # em and en spaces


class _Mark:
    """Placeholders for the messages of one conversation, which nobody can have written: they are drawn anew."""

    def __init__(self) -> None:
        self._nonce = secrets.token_hex(8)
        self.pattern = re.compile(f"(?P<left>{_PAD})?\ue000{self._nonce}-(?P<index>[0-9]+)\ue001(?P<right>{_PAD})?")

    def of(self, index: int) -> str:
        return f"\ue000{self._nonce}-{index}\ue001"

    def padded(self, index: int) -> str:
        """With spaces around it whose absence tells that a template trims what was said."""
        return f"{_PAD}{self.of(index)}{_PAD}"


def _refuse(reason: str) -> NoReturn:
    """What templates call to say that they cannot express a conversation."""
    raise ValueError(reason)
