"""Conversations as files: to Markdown for people, to JSON and back for programs."""

from __future__ import annotations

import json
import math
import re
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from mistral_mlx.completion import Stats, ToolCall
from mistral_mlx.errors import InputError
from tui import receipt
from tui.conversation import Conversation, Role, Tokens, Turn, make_title, new_id, well_formed
from tui.settings import SAMPLING

# ---- Markdown --------------------------------------------------------------------------------------------------------

_NAMES: Mapping[Role, str] = {"user": "You", "assistant": "Assistant", "tool": "Tool"}
_ENDS = {
    None: "This answer is not finished.",
    "cancelled": "Stopped before its end.",
    "interrupted": "Interrupted: the program ended before the answer did.",
    "length": "Cut: the limit of tokens was reached.",
}
# What a terminal or a printer would obey, as a picture of it: files are shown with `cat`, too.
_HARMLESS = (
    {code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: "\u2421"}
    | dict.fromkeys(range(0x80, 0xA0), "\ufffd")
)
# Code in a line, or an escaped character, or what begins a tag.
_TAG = re.compile(r"(?s)(?<!`)(`+)(?!`).+?(?<!`)\1(?!`)|\\.|(?P<tag><(?=[a-zA-Z/!?]))")
_MARKDOWN = re.compile(r"([\\`*_\[\]<>#|~&!])")


def to_markdown(conversation: Conversation, path_only: bool = True, *, figures: bool = False) -> str:
    """A conversation to read, in CommonMark.

    Args:
        path_only: the branch that is read now; else every turn by its number, with the number of the one it follows.
        figures: what each answer cost, in a comment that is not shown.
    """
    turns = conversation.path() if path_only else sorted(conversation.turns.values(), key=lambda turn: turn.id)
    numbers = {turn.id: number for number, turn in enumerate(turns, 1)}
    day = f"{datetime.fromtimestamp(conversation.created, UTC):%Y-%m-%d}"
    blocks = [f"# {_inline(conversation.title) or 'Conversation'}"]
    blocks.append(" · ".join(filter(None, (_inline(conversation.model), day))))
    if conversation.system:
        blocks += ["## System prompt", _prose(conversation.system)]
    for turn in turns:
        heading = _NAMES[turn.role]
        if not path_only:
            after = f", after {numbers[turn.parent]}" if turn.parent is not None else ""
            heading = f"{numbers[turn.id]}. {heading}{after}"
        blocks += [f"## {heading}", *_said(turn)]
        if figures and (stats := turn.stats):
            cost = f"{stats.completion_tokens} tokens, {stats.decode_tps:.1f}/s, the first after {stats.ttft_s:.2f} s"
            blocks.append(f"<!-- {cost}; prompt {stats.prompt_tokens}, {stats.reused_tokens} of it reused -->")
    return "\n\n".join(filter(None, blocks)) + "\n"


def _said(turn: Turn) -> list[str]:
    """The blocks of a turn."""
    blocks = []
    if turn.thinking:
        blocks.append(f"<details><summary>Thinking</summary>\n\n{_prose(turn.thinking)}\n\n</details>")
    blocks.append(_fenced(turn.text) if turn.role == "tool" else _prose(turn.text))
    for call in turn.tool_calls:
        blocks += [f"Calls the tool {_inline(call.name)}:", _fenced(call.arguments, "json")]
    if turn.finish == "failed":
        blocks.append(f"> Failed: {_inline(turn.error)}")
    elif turn.role == "assistant" and turn.finish in _ENDS:
        blocks.append(f"> {_ENDS[turn.finish]}")
    return blocks


def _visible(text: str) -> str:
    """The text without what a terminal would obey."""
    return re.sub("\r\n?|\x85", "\n", well_formed(text)).translate(_HARMLESS)


def _inline(text: str) -> str:
    """Text for the middle of a line, where it means nothing to Markdown."""
    return _MARKDOWN.sub(r"\\\1", " ".join(_visible(text).split()))


def _fenced(text: str, language: str = "") -> str:
    """Text as it is, in a fence that is longer than any in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{_visible(text)}\n{fence}"


def _prose(text: str) -> str:
    """Markdown that somebody wrote, so that it ends where it ends: tags are text, and an open fence is closed."""
    from markdown_it import MarkdownIt

    lines = _visible(text).strip("\n").split("\n")
    blocks = MarkdownIt("commonmark", {"html": False}).disable("inline").parse("\n".join([*lines, "", "end"]))
    rest = set(range(len(lines)))
    for block in blocks:
        if block.map and block.type in ("inline", "fence", "code_block"):
            start, end = block.map
            rest -= set(range(start, end))
            if block.type == "inline":
                lines[start:end] = _escape_tags("\n".join(lines[start:end])).split("\n")
    for number in rest:
        lines[number] = _escape_tags(lines[number])
    if blocks[-1].type == "fence" and blocks[-1].level == 0:
        lines.append(blocks[-1].markup)
    return "\n".join(lines).strip("\n")


def _escape_tags(text: str) -> str:
    def escape(found: re.Match[str]) -> str:  # a tag that begins a line ends even the code around it
        return "\\<" if found["tag"] else re.sub(r"(\n[ \t>]*)<", r"\1\\<", found[0])

    return _TAG.sub(escape, text)


# ---- JSON ------------------------------------------------------------------------------------------------------------

_FORMAT, _VERSION = "mistral-mlx conversation", 1
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


def to_json(conversation: Conversation) -> str:
    """The whole tree with everything that is known of it, one turn on a line; `from_json` reads it."""
    c = conversation
    parents_first = c.children(None)
    for turn in parents_first:
        parents_first += c.children(turn.id)
    numbers = {turn.id: number for number, turn in enumerate(parents_first)}
    facts = {"format": _FORMAT, "version": _VERSION, "title": c.title, "named": c.named, "pinned": c.pinned}
    facts |= {"model": c.model, "system": c.system, "options": c.options, "draft": c.draft}
    facts |= {"created": c.created, "updated": c.updated, "tip": None if c.tip is None else numbers[c.tip]}
    head = json.dumps(facts, ensure_ascii=False, indent=2).removesuffix("\n}")
    turns = [json.dumps(_facts(turn, numbers), ensure_ascii=False) for turn in parents_first]
    return well_formed(f'{head},\n  "turns": [\n    ' + ",\n    ".join(turns) + "\n  ]\n}\n")


def _facts(turn: Turn, numbers: Mapping[int, int]) -> dict[str, Any]:
    tokens = turn.tokens
    facts: dict[str, Any] = {
        "parent": None if turn.parent is None else numbers[turn.parent],
        "role": turn.role,
        "text": turn.text,
        "thinking": turn.thinking,
        "tool_calls": [asdict(call) for call in turn.tool_calls],
        "tool_call_id": turn.tool_call_id,
        "finish": turn.finish,
        "error": turn.error,
        "stats": asdict(turn.stats) if turn.stats else None,
        "receipt": turn.receipt,
        "kept": None if turn.kept is None else list(turn.kept),
        "tokens": {
            "ids": list(tokens.ids),
            "logprobs": [float(f"{p:.9g}") if math.isfinite(p) else None for p in tokens.logprobs],  # exact in 32 bits
            "ends": list(tokens.ends),
        }
        if tokens
        else None,
        "created": turn.created,
    }
    return {k: v for k, v in facts.items() if (v not in (None, "") and (v != [] or k == "kept")) or k == "parent"}


def from_json(text: str) -> Conversation:
    """A conversation that `to_json` wrote, with ids of its own; or a list of messages as in OpenAI's API.

    Raises:
        InputError: it is neither; it names the place.
    """
    try:
        data = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"This is no JSON: {error}.", "Choose a file that was exported as JSON.") from error
    if isinstance(data, list):
        return _of_messages(data)
    file = _Place("file", data)
    if "messages" in data:
        return _of_messages(file.get("messages", list, []))
    if file.get("format", str) != _FORMAT:
        raise InputError(
            "This JSON is no conversation.", 'Give one that was exported here, or a list of {"role", "content"}.'
        )
    if file.get("version", int, 1) > _VERSION:
        raise InputError("This conversation was exported by a newer version of this program.", "Update it.")
    turns: list[Turn] = []
    for i, given in enumerate(file.get("turns", list, [])):
        turns.append(_turn(_Place(f"turns[{i}]", given), turns))
    tip = file.get("tip", int, None if "tip" in file.data or not turns else len(turns) - 1)
    if tip is not None and not 0 <= tip < len(turns):
        raise InputError(f"file.tip is {tip}, and the file has {len(turns)} turns.", "They are counted from 0.")
    return Conversation(
        title=file.get("title", str, ""),
        named=file.get("named", bool, False),
        pinned=file.get("pinned", bool, False),
        model=file.get("model", str, ""),
        system=file.get("system", str, ""),
        options=_options(_Place("file.options", file.get("options", dict, {}))),
        tip=None if tip is None else turns[tip].id,
        draft=file.get("draft", str, ""),
        created=file.time("created"),
        updated=file.time("updated"),
        turns={turn.id: turn for turn in turns},
    )


class _Place:
    """An object in the file, and what to call it."""

    def __init__(self, name: str, data: Any) -> None:
        if not isinstance(data, Mapping):
            raise InputError(f"{name} is {_short(data)}, not an object.", "Choose a file that was exported as JSON.")
        self.name, self.data = name, data

    def get(self, key: str, kind: type, default: Any = None) -> Any:
        """A value of a kind; missing or null, the default."""
        value = self.data.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.wrong(key, f"not {_KINDS[kind]}")
        return value

    def number(self, key: str, least: float = 0, most: float = math.inf) -> float:
        """A number in a range; raises InputError if there is none."""
        value = self.data.get(key)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value < most:
            raise self.wrong(key, "not a number that it can be")
        return value

    def time(self, key: str) -> float:
        """Seconds since 1970; now if there are none."""
        return time.time() if self.data.get(key) is None else self.number(key, most=_LATEST)

    def ids(self, key: str) -> array[int]:
        """Whole numbers of 32 bits."""
        try:
            return array("I", self.get(key, list, []))
        except (TypeError, OverflowError):
            raise self.wrong(key, "not a list of token ids") from None

    def wrong(self, key: str, why: str) -> InputError:
        """What to raise for a value."""
        return InputError(f"{self.name}.{key} is {_short(self.data.get(key))}, {why}.", "Correct it, or export anew.")


_KINDS: Mapping[type, str] = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    list: "a list",
    dict: "an object",
}


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:39] + "…"


def _turn(place: _Place, before: Sequence[Turn]) -> Turn:
    role = place.get("role", str)
    if role not in get_args(Role):
        raise place.wrong("role", f"and not one of {', '.join(get_args(Role))}")
    parent = place.get("parent", int)
    if parent is not None and not 0 <= parent < len(before):
        raise place.wrong("parent", "and no turn before it")
    finish = place.get("finish", str)
    stats = place.get("stats", dict)
    return Turn(
        new_id(),
        None if parent is None else before[parent].id,
        role,
        place.get("text", str, ""),
        place.get("thinking", str, ""),
        tuple(
            _call(_Place(f"{place.name}.tool_calls[{i}]", call))
            for i, call in enumerate(place.get("tool_calls", list, []))
        ),
        place.get("tool_call_id", str, "" if role == "tool" else None),
        _tokens(_Place(f"{place.name}.tokens", place.get("tokens", dict, {}))),
        tuple(place.ids("kept")) if place.data.get("kept") is not None else None,
        "interrupted" if role == "assistant" and finish is None else finish,
        place.get("error", str, ""),
        None if stats is None else _stats(_Place(f"{place.name}.stats", stats)),
        given if (given := place.get("receipt", dict)) and receipt.is_whole(given) else None,
        place.time("created"),
    )


def _options(place: _Place) -> dict[str, Any]:
    """How a conversation is sampled, as far as it is known here."""
    kinds = {**SAMPLING, "context": int, "stop": list}
    options: dict[str, Any] = {}
    for name in kinds.keys() & place.data.keys():
        if kinds[name] is float and place.data[name] is not None:
            options[name] = place.number(name, -math.inf)
        else:
            options[name] = place.get(name, kinds[name])
    return options


def _call(place: _Place) -> ToolCall:
    return ToolCall(*(place.get(key, str, "") for key in ("id", "name", "arguments")))


def _stats(place: _Place) -> Stats:
    given = [field.name for field in fields(Stats) if field.name in place.data or field.default is MISSING]
    numbers = {name: place.number(name) for name in given if name != "reading"}
    return Stats(**numbers, reading=tuple(place.ids("reading")) if "reading" in given else ())  # type: ignore[arg-type]


def _tokens(place: _Place) -> Tokens:
    ids, ends, logprobs = place.ids("ids"), place.ids("ends"), place.get("logprobs", list, [])
    if not len(ids) == len(ends) == len(logprobs):
        raise place.wrong("ends", "not as long as ids and logprobs")
    try:
        return Tokens(ids, array("f", (math.nan if p is None else p for p in logprobs)), ends)
    except (TypeError, OverflowError):
        raise place.wrong("logprobs", "not a list of numbers") from None


def _of_messages(data: Sequence[Any]) -> Conversation:
    """A list of messages as in OpenAI's API, one after another."""
    turns: list[Turn] = []
    system: list[str] = []
    for i, given in enumerate(data):
        place = _Place(f"messages[{i}]", given)
        role, text = place.get("role", str), _content(place)
        if role in ("system", "developer") and not turns:
            system.append(text)
            continue
        calls = place.get("tool_calls", list, [])
        facts = {
            "parent": len(turns) - 1 if turns else None,
            "role": role,
            "text": text,
            "thinking": place.get("reasoning_content", str) or place.get("thinking", str),
            "tool_calls": [_openai_call(_Place(f"{place.name}.tool_calls[{n}]", call)) for n, call in enumerate(calls)],
            "tool_call_id": place.get("tool_call_id", str),
            "finish": "stop" if role == "assistant" else None,
        }
        turns.append(_turn(_Place(place.name, facts), turns))
    title = next((make_title(turn.text) for turn in turns if turn.role == "user"), "")
    by_id = {turn.id: turn for turn in turns}
    return Conversation(title=title, system="\n\n".join(system), tip=max(by_id, default=None), turns=by_id)


def _content(place: _Place) -> str:
    """A message's text, which may come in parts."""
    content = place.data.get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content or ""}]
    texts = [part.get("text") for part in parts if isinstance(part, Mapping) and part.get("type") == "text"]
    good = [text for text in texts if isinstance(text, str)]
    if len(good) < len(parts):
        raise place.wrong("content", "not only text")
    return "\n\n".join(good)


def _openai_call(place: _Place) -> dict[str, Any]:
    function = _Place(f"{place.name}.function", place.get("function", dict, {}))
    arguments = function.data.get("arguments")
    if isinstance(arguments, Mapping):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {"id": place.get("id", str), "name": function.get("name", str), "arguments": arguments}


def export(conversation: Conversation, name: str) -> Path:
    """Write a conversation to a new file: all branches as JSON if its name ends so, else this one as Markdown.

    Raises:
        InputError: there is such a file, or it cannot be written.
    """
    path = _path(name)
    content = (to_json if path.suffix.lower() == ".json" else to_markdown)(conversation)
    try:
        with path.open("x", encoding="utf-8", errors="replace") as file:
            file.write(content)
    except FileExistsError:
        raise InputError(f"{path} is there already.", "Give the name of a new file.") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be written: {_why(error)}.", "Give another name.") from error
    return path.absolute()


def read(name: str) -> Conversation:
    """A conversation from a file that was exported as JSON.

    Raises:
        InputError: it cannot be read, or is none; it names the place.
    """
    path = _path(name)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text in UTF-8.", "Give a file that was exported as JSON.") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {_why(error)}.", "Check the path.") from error
    return from_json(text)


def _path(name: str) -> Path:
    if not name.strip():
        raise InputError("The name of the file is missing.", "Write it after the command.")
    try:
        return Path(name).expanduser()
    except RuntimeError as error:
        raise InputError(f"{name} is no path: {error}", "Give another.") from error


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
