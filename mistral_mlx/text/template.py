"""Conversations to ids by a model's own Jinja template, run in a sandbox.

What was said travels through the template as a mark and is encoded apart, so it cannot forge the control tokens that
the template writes.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn, Unpack

from mistral_mlx.errors import RequestError, TokenizerError
from mistral_mlx.text.marks import Marks, Place
from mistral_mlx.text.messages import Message, Thought, is_call_id, name_of_call, read_messages
from mistral_mlx.text.tokenizer import Tokenizer, checked_text
from mistral_mlx.text.tools import Around, Tool


class TemplateChat:
    """A model's own template."""

    def __init__(self, template: str, tokenizer: Tokenizer, bos: str = "", eos: str = "") -> None:
        """Raises TokenizerError if the template is not valid Jinja."""
        from jinja2 import TemplateError
        from jinja2.meta import find_undeclared_variables
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        self.one_call = False
        self._tokenizer = tokenizer
        self._given: dict[str, Any] = {
            "tools": None,
            "documents": None,
            "bos_token": bos,
            "eos_token": eos,
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.now().astimezone().strftime(form),
        }
        self._thinks_in_parts = "[THINK]" in template
        try:
            # The settings that transformers renders templates with.
            environment = ImmutableSandboxedEnvironment(
                trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
            )
            environment.filters["tojson"] = _to_json
            template = _TRAINED_ON.sub(lambda tag: f"{tag[1]}{'endif' if tag[2] else 'if true'}{tag[3]}", template)
            self._template = environment.from_string(template)
            self._reads = find_undeclared_variables(environment.parse(template))
        except TemplateError as error:
            raise TokenizerError(
                f"The model's chat template is broken: {error}.", "Generate from plain text: LLM.generate, or --raw."
            ) from error

    def encode(self, messages: Iterable[Message | Mapping[str, Any]], **around: Unpack[Around]) -> list[int]:
        """As in `text.chat.ChatFormat`; where things stand is the template's to decide."""
        turns = read_messages(messages, unanswered=True)
        tools, effort = around.get("tools", ()), around.get("reasoning_effort")
        if around.get("stable"):
            raise RequestError("A model's own chat template decides where things stand.", "Leave out stable.")
        if tools and ("tools" not in self._reads or "[TOOL_CALLS]" not in self._tokenizer.control):
            raise RequestError("This model's chat template has no tools.", "Leave them out, or use another model.")
        given: dict[str, Any] = {}
        if effort is not None:
            if "reasoning_effort" not in self._reads:
                raise RequestError("This model's chat template has no reasoning effort.", "Leave out reasoning_effort.")
            if not isinstance(effort, str) or not _WORD.fullmatch(effort):  # no mark, so that templates can compare it
                raise RequestError(f"reasoning_effort is {effort!r}.", "Give a word, such as high.")
            given["reasoning_effort"] = effort
        marks = Marks()
        named = {tool.name: marks.alone(tool.name) for tool in tools}
        if tools:
            given["tools"] = [_described(tool, named[tool.name], marks) for tool in tools]
        said = [self._turn(turns, index, marks) for index in range(len(turns))]
        text = self._render(said, add_generation_prompt=not turns[-1].prefix, **given)
        found = list(marks.find(text))
        if turns[-1].prefix and found:
            # What the template writes after an answer comes when it is whole.
            text = text[: self._stop(text, found[-1].end) if turns[-1].tool_calls else found[-1].end]
        self._check_complete(turns, text, found, marks)
        if missing := [name for name, mark in named.items() if not any(place.mark == mark for place in found)]:
            raise RequestError(f"The model's chat template leaves out the tools {', '.join(missing)}.")
        sampled = {
            written["content"]: turn.ids
            for turn, written in zip(turns, said, strict=True)
            if turn.ids is not None and not _more_than_text(turn)
        }
        spans: list[_Span] = list(self._sampled(said, turns, given, text, found))
        for place in found:
            if not any(start <= place.start < end for start, end, _ in spans):
                ids = sampled.get(place.mark)
                spans.append((place.start, place.end, place.text if ids is None else list(ids)))
        return self._encode(text, sorted(spans, key=lambda span: span[0]))

    def fill(self, prefix: str, suffix: str) -> list[int]:
        control, tokenizer = self._tokenizer.control, self._tokenizer
        if not {"[PREFIX]", "[SUFFIX]"} <= control.keys() or tokenizer.bos_id is None:
            raise RequestError("This model cannot fill in the middle.", "Use one that can, such as Codestral.")
        after = tokenizer.encode(checked_text(suffix), inside=True)
        before = tokenizer.encode(checked_text(prefix), follows=True)
        return [tokenizer.bos_id, control["[SUFFIX]"], *after, control["[PREFIX]"], *before]

    def _turn(self, turns: Sequence[Message], index: int, marks: Marks) -> dict[str, Any]:
        """A message as templates take it."""
        turn = turns[index]
        stands = (turn.content and not turn.parts) or (
            (turn.ids is not None or turn.prefix) and not _more_than_text(turn)
        )
        content: Any = marks.once(turn.content, index) if stands else ""  # templates ask whether there is any
        given: dict[str, Any] = {"role": turn.role, "content": content}
        if turn.parts:
            if not self._thinks_in_parts:
                raise RequestError("This model's chat template has no thoughts.", "Leave them out.")
            kinds = ["thinking" if isinstance(part, Thought) else "text" for part in turn.parts]
            given["content"] = [
                {"type": kind, kind: marks.once(part, index)} for kind, part in zip(kinds, turn.parts, strict=True)
            ]
        if turn.thinking:
            thought = marks.alone(turn.thinking)
            if self._thinks_in_parts:
                parts = [{"type": "thinking", "thinking": thought, "closed": True}]
                given["content"] = parts + ([{"type": "text", "text": content}] if turn.content else [])
            else:
                given["reasoning_content"] = given["thinking"] = thought
        if turn.tool_calls:
            given["tool_calls"] = [
                {
                    "type": "function",
                    "id": call.id if is_call_id(call.id) else marks.of(call.id),
                    "function": {
                        "name": marks.once(call.name, index),
                        "arguments": marks.within(_parsed(call.arguments)),
                    },
                }
                for call in turn.tool_calls
            ]
        if turn.tool_call_id is not None:
            given["tool_call_id"] = turn.tool_call_id if is_call_id(turn.tool_call_id) else marks.of(turn.tool_call_id)
            given["name"] = marks.of(name_of_call(turns, index))
        return given

    def _render(self, turns: list[dict[str, Any]], **around: Any) -> str:
        try:
            return self._template.render({**self._given, **around, "messages": turns})
        except Exception as error:  # a template can fail in any way that a program can
            raise RequestError(f"The model's chat template refuses this conversation: {error}.") from error

    def _check_complete(self, turns: Sequence[Message], text: str, found: Sequence[Place], marks: Marks) -> None:
        times = Counter(place.mark for place in found)
        lost = next((owner for mark, owner in marks.needed.items() if times[mark] != 1), None)
        if lost is not None or marks.left_in(text):
            what = "parts of this conversation" if lost is None else f"messages[{lost}], of the role {turns[lost].role}"
            raise RequestError(
                f"The model's chat template leaves out, repeats or cuts {what}.",
                "It may not know that role, or tools: put the text into a message of the user.",
            )

    def _sampled(
        self,
        given: list[dict[str, Any]],
        turns: Sequence[Message],
        around: dict[str, Any],
        text: str,
        found: Sequence[Place],
    ) -> Iterator[_Span]:
        """Where whole answers stand that were sampled as more than text: from where they were asked for to their end.

        An answer that the template writes elsewhere, or without its thoughts, is encoded from its text.
        """
        for index, turn in enumerate(turns):
            if turn.ids is None or not _more_than_text(turn):
                continue
            try:
                asked = self._render(given[:index], add_generation_prompt=True, **around)
            except RequestError:  # the template knows no conversation that asks for this answer
                continue
            own = _own_marks(given[index])
            places = {place.mark: place for place in found if place.start >= len(asked) and place.mark in own}
            if len(places) < len(own) or not text.startswith(asked):
                continue
            after = max(place.end for place in places.values())
            stop = len(text) if turn.prefix else self._stop(text, after)
            if stop is not None:
                yield len(asked), stop, list(turn.ids)

    def _stop(self, text: str, after: int) -> int | None:
        """Where the template next writes a token that ends answers."""
        names = [name for name, i in self._tokenizer.control.items() if i in self._tokenizer.stop_ids and name]
        return min((at for name in names if (at := text.find(name, after)) >= 0), default=None)

    def _encode(self, text: str, spans: Iterable[_Span]) -> list[int]:
        """The template's text with its spans in place of what stands there."""
        # Text stands together up to the next control token or sampled answer, as it would in the rendered whole.
        runs: list[str | list[int]] = []
        end = 0
        for start, stop, run in spans:
            runs += [*self._written(text[end:start]), run]
            end = stop
        runs += self._written(text[end:])
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

    def _written(self, text: str) -> list[str | list[int]]:
        """The template's own text, in which names of control tokens mean the tokens."""
        control = self._tokenizer.control
        return [[control[part]] if part in control else part for part in self._control_names.split(text)]

    @cached_property
    def _control_names(self) -> re.Pattern[str]:
        longest_first = sorted(filter(None, self._tokenizer.control), key=len, reverse=True)
        return re.compile("(" + "|".join(map(re.escape, longest_first)) + ")" if longest_first else r"(?!)")


# Around answers, in templates that transformers trains with.
_TRAINED_ON = re.compile(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})")
_WORD = re.compile("[A-Za-z0-9_-]+")
_Span = tuple[int, int, str | list[int]]  # from where to where in the rendered text something else stands


def _more_than_text(turn: Message) -> bool:
    return bool(turn.tool_calls or turn.thinking)


def _own_marks(given: Mapping[str, Any]) -> set[str]:
    """The marks of an answer that stand nowhere else: of its thoughts, its text, and the names of its calls."""
    content = given["content"]
    texts = [part[part["type"]] for part in content] if isinstance(content, list) else [content]
    names = [call["function"]["name"] for call in given.get("tool_calls", [])]
    return set(filter(None, [given.get("thinking"), *texts, *names]))


def _described(tool: Tool, name: str, marks: Marks) -> dict[str, Any]:
    """A tool as templates take it, under a mark for its name."""
    given = marks.within(tool.definition())
    return {**given, "function": {**given["function"], "name": name}}


def _parsed(arguments: str) -> Any:
    """Arguments as templates like them, if they are a JSON object."""
    try:
        parsed = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return parsed if isinstance(parsed, dict) else arguments


def _to_json(value: Any, indent: int | None = None, separators: tuple[str, str] | None = None, **_: Any) -> str:
    """As transformers writes it: without the escapes that Jinja's own adds for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent, separators=separators)


def _refuse(reason: str) -> NoReturn:
    """What templates call to say that they cannot express a conversation."""
    raise ValueError(reason)
