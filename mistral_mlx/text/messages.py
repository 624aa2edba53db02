"""What a conversation is made of, and which conversations make sense in any format."""

from __future__ import annotations

import json
import re
import secrets
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any, Literal, TypeGuard, get_args

from mistral_mlx.completion import ToolCall
from mistral_mlx.errors import InputError, RequestError
from mistral_mlx.text.tokenizer import checked_text

Role = Literal["system", "user", "assistant", "tool"]


class Thought(str):
    """A part of a system prompt that shows the model how to think: it stands between [THINK] and [/THINK]."""


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        ids: the ids that were sampled, but for a stop token, for a turn that a model wrote here. They are used as they
            are: encoding the text anew often gives others, and then nothing that was computed can be used again. Where
            the text is changed, they have to be left out.
        thinking: what the model reasoned before it answered.
        tool_calls: the tools that an assistant's turn asks for; those of an answer that was cut are in its ids only.
        tool_call_id: the call that a tool's turn is the result of.
        prefix: the beginning of an answer, which the model goes on with; only the last message can be one.
        parts: the content of a system prompt that has Thoughts in it, piece by piece.
    """

    role: Role
    content: str = ""
    ids: tuple[int, ...] | None = None
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    prefix: bool = False
    parts: tuple[str, ...] = ()


_CALL_ID = re.compile(r"[a-zA-Z0-9]{9}")
TOOL_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


def is_call_id(text: object) -> TypeGuard[str]:
    """Whether Mistral's formats can carry it as the id of a call."""
    return isinstance(text, str) and _CALL_ID.fullmatch(text) is not None


def new_call_id() -> str:
    """A call's id that nobody used."""
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))


def listed(messages: Iterable[Message | Mapping[str, Any]]) -> list[Message | Mapping[str, Any]]:
    """A conversation as a list; raises RequestError if it is none."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Iterable):
        raise RequestError(f"{messages!r} is no conversation.", "Give a list of messages.")
    return list(messages)


def text_at(text: str, where: str) -> str:
    """The same text; raises RequestError naming its place if it is none, or UTF-8 cannot carry it."""
    try:
        return checked_text(text)
    except InputError as error:
        raise RequestError(f"{where}: {error.message}", error.hint) from error


def read_messages(
    messages: Iterable[Message | Mapping[str, Any]], *, join: str = "\n\n", unanswered: bool = False
) -> list[Message]:
    """Check a conversation; messages may also be mappings as in OpenAI's API.

    Args:
        join: what stands between several parts of a message's text.
        unanswered: an answer is to follow.

    Raises:
        RequestError: what no format can express; it names the message by its index.
    """
    turns = [
        _checked(m if isinstance(m, Message) else _of_mapping(m, f"messages[{i}]", join), f"messages[{i}]")
        for i, m in enumerate(listed(messages))
    ]
    if not turns:
        raise RequestError("The conversation is empty.", "Give at least one message.")
    if unanswered and turns[-1].role == "assistant" and not turns[-1].prefix:
        raise RequestError(
            f"messages[{len(turns) - 1}] is the assistant's, and nothing follows it to be answered.",
            "Add a message of the user, or mark it as a prefix to go on with it.",
        )
    called: set[str | None] = set()
    for i, turn in enumerate(turns):
        if turn.role == "system" and any(before.role == "system" for before in turns[:i]):
            raise RequestError(f"messages[{i}] is a second system prompt.", "Join it with the first.")
        if turn.role == "tool":
            if turn.tool_call_id not in called:
                raise RequestError(
                    f"messages[{i}] is the result of the call {turn.tool_call_id!r}, which no message before it makes.",
                    "Put the assistant's message with its tool_calls before it.",
                )
            called.remove(turn.tool_call_id)
        for call in turn.tool_calls:
            if call.id in called:
                raise RequestError(f"messages[{i}] has a second call {call.id}.", "Give each call an id of its own.")
            called.add(call.id)
        if turn.prefix and i < len(turns) - 1:
            raise RequestError(f"messages[{i}] is a prefix, and not the last message.", "Only the last can be one.")
    return turns


def name_of_call(turns: Sequence[Message], index: int) -> str:
    """The name of the tool that the result in turns[index] is from."""
    calls = (call for turn in reversed(turns[:index]) for call in turn.tool_calls)
    return next(call.name for call in calls if call.id == turns[index].tool_call_id)


def open_calls(turns: Iterable[Message]) -> list[ToolCall]:
    """The calls that have no result yet."""
    called: dict[str, ToolCall] = {}
    for turn in turns:
        called |= {call.id: call for call in turn.tool_calls}
        called.pop(str(turn.tool_call_id), None)
    return list(called.values())


def _checked(turn: Message, where: str) -> Message:
    for name, kind in _KINDS.items():
        if not isinstance(getattr(turn, name), kind):
            raise RequestError(f"{where}.{name} is {getattr(turn, name)!r}.", "See Message for what it can be.")
    if not all(isinstance(call, ToolCall) for call in turn.tool_calls):
        raise RequestError(f"{where}.tool_calls holds something that is no ToolCall.", "Give ToolCalls.")
    if turn.role not in get_args(Role):
        raise RequestError(
            f"{where} has the role {turn.role!r}.",
            f"Roles: {', '.join(get_args(Role))}; a developer's is the system's.",
        )
    for text in (turn.content, turn.thinking, *(t for c in turn.tool_calls for t in (c.name, c.arguments))):
        text_at(text, where)
    if turn.parts and (turn.role != "system" or "".join(turn.parts) != turn.content):
        raise RequestError(f"{where} has parts that are not its content.", "Only a system prompt has parts.")
    for name in ("thinking", "tool_calls", "prefix", "ids"):
        if turn.role != "assistant" and getattr(turn, name):
            raise RequestError(f"{where} is the {turn.role}'s and has {name}.", "Only the assistant's messages can.")
    if (turn.role == "tool") != (turn.tool_call_id is not None):
        raise RequestError(
            f"{where} is the {turn.role}'s and has {'no' if turn.role == 'tool' else 'a'} tool_call_id.",
            "A tool's result names the call that it is the result of, and nothing else does.",
        )
    for call in turn.tool_calls:
        if not isinstance(call.id, str) or not call.id:
            raise RequestError(
                f"{where} has a call with the id {call.id!r}.", "Give it one of nine letters and digits."
            )
        if turn.ids is None and not TOOL_NAME.fullmatch(call.name):  # a model writes what it likes
            raise RequestError(
                f"{where} calls {call.name!r}, which is no tool's name.",
                "Names are letters, digits, _ and -, up to 64.",
            )
    return turn


_KINDS: dict[str, Any] = {
    "content": str,
    "ids": (tuple, list, NoneType),
    "thinking": str,
    "tool_calls": tuple,
    "tool_call_id": (str, NoneType),
    "prefix": bool,
    "parts": tuple,
}
_KEYS = {"role", "content", "thinking", "reasoning_content", "tool_calls", "tool_call_id", "prefix", "name"}


def _of_mapping(data: Any, where: str, join: str) -> Message:
    if not isinstance(data, Mapping):
        raise RequestError(f"{where} is {data!r}.", "Give a Message, or a mapping with a role and a content.")
    given = {key: value for key, value in data.items() if not (value is None or value is False or value in ("", []))}
    # The name of a tool is found by its call.
    if unknown := given.keys() - _KEYS | ({"name"} & given.keys() if data.get("role") != "tool" else set()):
        raise RequestError(
            f"{where} has {', '.join(map(repr, sorted(map(str, unknown))))}, which no format carries.", "Leave it out."
        )
    if "role" not in given:
        raise RequestError(f"{where} has no role.", f"Roles: {', '.join(get_args(Role))}.")
    parts = _parts(given.get("content", ""), f"{where}.content")
    texts = [part for part in parts if not isinstance(part, Thought)]
    thoughts = [part for part in parts if isinstance(part, Thought)]
    content, thinking = join.join(filter(None, texts)), given.get("thinking", given.get("reasoning_content", ""))
    if {"thinking", "reasoning_content"} <= given.keys():
        raise RequestError(f"{where} has thinking and reasoning_content.", "They are the same: give one.")
    if thoughts and given["role"] == "assistant" and parts[: len(thoughts)] == thoughts and not thinking:
        thinking, thoughts = join.join(thoughts), []
    if thoughts and given["role"] != "system":
        raise RequestError(f"{where}.content has a thought.", "They stand in system prompts and before answers.")
    if given["role"] != "assistant" and data.get("content") is None:
        raise RequestError(f"{where} has no content.", "Give it a text.")
    return Message(
        role=given["role"],
        content="".join(parts) if thoughts else content,
        thinking=thinking,
        tool_calls=tuple(
            _call(c, f"{where}.tool_calls[{n}]") for n, c in enumerate(_list(given.get("tool_calls", []), where))
        ),
        tool_call_id=given.get("tool_call_id"),
        prefix=given.get("prefix", False),
        parts=tuple(parts) if thoughts else (),
    )


def _parts(content: Any, where: str) -> list[str]:
    """A message's text, which may come in parts, thoughts among them."""
    if isinstance(content, str):
        return [content]
    parts: list[str] = []
    for n, part in enumerate(_list(content, where)):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind == "thinking":
            parts.append(Thought("".join(_parts(part.get("thinking"), f"{where}[{n}].thinking"))))
        elif kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        else:
            what = kind.removesuffix("_url").replace("_", " ") if isinstance(kind, str) else repr(part)
            raise RequestError(f"{where}[{n}] is no text but {what}.", "This library reads text only: leave it out.")
    return parts


def _call(data: Any, where: str) -> ToolCall:
    function = data.get("function") if isinstance(data, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where} is {data!r}.", "Give an id, and a function with its name and arguments.")
    arguments = function.get("arguments", {})
    if not isinstance(arguments, (str, Mapping, NoneType)):
        raise RequestError(f"{where}.function.arguments is {arguments!r}.", "Give a JSON object, or its text.")
    if not isinstance(arguments, str):
        try:
            arguments = json.dumps(arguments or {}, ensure_ascii=False)
        except (TypeError, ValueError) as error:
            raise RequestError(f"{where}.function.arguments is no JSON: {error}.", "Give a JSON object.") from error
    return ToolCall(data.get("id"), function["name"], arguments)


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise RequestError(f"{where} holds {value!r}.", "Give a text or a list, as in OpenAI's API.")
    return list(value)
