"""Answers taken apart: text, thoughts and calls by control tokens, while they come, with nothing lost."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mistral_mlx import Message, ToolCall
from mistral_mlx.completion import join_calls
from mistral_mlx.text.chat import MistralChat
from mistral_mlx.text.reply import Reply
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tekken import Tekken
from tests.chat_formats import FORMATS, quick

Tokenizers = dict[str, SentencePiece | Tekken]
CALLING = [name for name in FORMATS if name != "v1"]
NESTED = json.dumps({"a": {"b": [1, "}", '"', "\\"]}, "é": "🦙\n"}, ensure_ascii=False)


def read(tokenizer: SentencePiece | Tekken, ids: list[int], **options: Any) -> tuple[str, str, list[ToolCall]]:
    """An answer as a whole: text, thoughts, calls."""
    reply = Reply(tokenizer, **options)
    pieces = [*(reply.feed(i) for i in ids), reply.flush()]
    calls = join_calls(d for p in pieces for d in p.tool_calls)
    return "".join(p.text for p in pieces), "".join(p.thinking for p in pieces), calls


def answer_ids(chat: MistralChat, answer: Message) -> list[int]:
    """The ids of an answer as mistral-common writes it, without what ends it."""
    asked = [Message("user", "?")]
    before = chat.encode(asked)
    results = [Message("tool", "ok", tool_call_id=call.id) for call in answer.tool_calls]
    ids = chat.encode([*asked, answer, *(results or [Message("user", "!")])])[len(before) :]
    return ids[: ids.index(2)]


@pytest.mark.parametrize("name", CALLING)
@pytest.mark.parametrize("count", [1, 3])
def test_calls_as_mistral_common_writes_them_are_read_back(
    name: str, count: int, tokenizers: Tokenizers, formats: dict[str, MistralChat]
) -> None:
    if name == "v2":
        count = 1
    calls = tuple(ToolCall(f"abcDE123{n}", f"tool_{n}", NESTED if n else "{}") for n in range(count))
    ids = answer_ids(formats[name], Message("assistant", tool_calls=calls))
    text, thinking, found = read(tokenizers[name], ids)
    assert (text, thinking) == ("", "")
    assert [(c.name, json.loads(c.arguments)) for c in found] == [(c.name, json.loads(c.arguments)) for c in calls]
    assert len({c.id for c in found}) == count
    if name in ("v3", "v7", "v3-tekken", "v7-tekken", "v11-tekken"):  # where the format writes them
        assert [c.id for c in found] == [c.id for c in calls]
    assert all(len(c.id) == 9 and c.id.isalnum() for c in found)


@pytest.mark.parametrize("name", CALLING)
def test_arguments_come_while_they_are_written(
    name: str, tokenizers: Tokenizers, formats: dict[str, MistralChat]
) -> None:
    call = ToolCall("abcDE1234", "save", json.dumps({"text": "word " * 40}))
    reply, shown, named_after = Reply(tokenizers[name]), [], 0
    ids = answer_ids(formats[name], Message("assistant", tool_calls=(call,)))
    for at, i in enumerate(ids):
        for delta in reply.feed(i).tool_calls:
            assert delta.index == 0
            named_after = named_after or at
            assert (delta.name == "save") == (not shown)
            shown.append(delta.arguments)
            assert call.arguments.startswith("".join(shown))
    assert "".join(shown) == call.arguments
    assert len([s for s in shown if s]) > 30
    assert named_after < len(ids) // 3


@pytest.mark.parametrize("name", ["v7", "v7-tekken", "v11-tekken", "v13-tekken", "v15-tekken"])
def test_text_before_calls_is_text(name: str, tokenizers: Tokenizers, formats: dict[str, MistralChat]) -> None:
    call = ToolCall("abcDE1234", "save", '{"n": 1}')
    ids = answer_ids(formats[name], Message("assistant", "I'll look. ", tool_calls=(call,)))
    text, _, calls = read(tokenizers[name], ids)
    assert text.rstrip() == "I'll look."
    assert [c.name for c in calls] == ["save"]


@pytest.mark.parametrize("name", ["v13-tekken", "v15-tekken"])
def test_thoughts_are_split_from_the_answer(name: str, tokenizers: Tokenizers, formats: dict[str, MistralChat]) -> None:
    said = Message("assistant", "It is 4.", thinking="2 + 2 🦙", tool_calls=(ToolCall("abcDE1234", "f", "{}"),))
    ids = answer_ids(formats[name], said)
    assert read(tokenizers[name], ids)[:2] == ("It is 4.", "2 + 2 🦙")
    assert [c.name for c in read(tokenizers[name], ids)[2]] == ["f"]
    plain = read(tokenizers[name], ids, plain=True)
    assert plain[0] == "2 + 2 🦙It is 4.f{}"
    assert plain[1:] == ("", [])


@pytest.mark.parametrize(
    ("written", "text", "calls"),
    [
        ("no call at all", "no call at all", []),
        ("[1, 2]", "1, 2]", []),
        ('[{"arguments": {}}]', '{"arguments": {}}]', []),
        ('[{"name": 5, "arguments": {}}]', '{"name": 5, "arguments": {}}]', []),
        ('[{"name": "f"}]', "", [("f", "{}")]),
        ('{"name": "f", "arguments": {"a": 1}}', "", [("f", '{"a": 1}')]),
        ('[{"arguments": {"a": 1}, "name": "f"}]', "", [("f", '{"a": 1}')]),
        ('[{"name": "f", "arguments": "{\\"a\\": 1}"}]', "", [("f", '{"a": 1}')]),
        ('[{"name": "f", "arguments": {"a": 1}}, {"name": "g"', '{"name": "g"', [("f", '{"a": 1}')]),
        ('[{"name": "f", "arguments": {"a": "cut o', "", [("f", '{"a": "cut o')]),
        ('[{"name": "f", "arguments": {"a": 1}, "name": 5}]', "", [("f", '{"a": 1}')]),
        ('[{"name": "f", "arguments": {}}] and so on', "and so on", [("f", "{}")]),
        ("[", "", []),
        ("", "", []),
        ("[" * 5000, "", []),
        ('[{"name": "f", "arguments": ' + '{"a":' * 5000, "", [("f", '{"a":' * 5000)]),
    ],
)
def test_what_a_model_writes_in_place_of_calls_is_not_lost(
    written: str, text: str, calls: list[tuple[str, str]], tokenizers: Tokenizers
) -> None:
    for name in ("v3", "v7-tekken"):
        tokenizer = tokenizers[name]
        ids = [tokenizer.control["[TOOL_CALLS]"], *tokenizer.encode(written)]
        found = read(tokenizer, ids)
        assert found[0] == text
        assert [(c.name, c.arguments) for c in found[2]] == calls
        assert all(c.id for c in found[2])


def test_a_call_that_another_marker_cuts_off_has_an_id(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["v13-tekken"]
    calls, think = tokenizer.control["[TOOL_CALLS]"], tokenizer.control["[THINK]"]
    cut = [calls, *tokenizer.encode('[{"name": "f", "arguments": {"a')]
    for marker in (calls, think):
        [call] = read(tokenizer, [*cut, marker])[2]
        assert (call.name, call.arguments) == ("f", '{"a')
        assert len(call.id) == 9


def test_a_broken_call_by_name_is_told_as_far_as_it_goes(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["v11-tekken"]
    calls, ident, args = (tokenizer.control[m] for m in ("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"))
    word = tokenizer.encode
    assert read(tokenizer, [calls, *word("look")])[0] == "look"
    assert read(tokenizer, [calls, *word("look"), ident, *word("abc")])[0] == "lookabc"
    [call] = read(tokenizer, [calls, *word("look"), args, *word('{"a": ')])[2]
    assert (call.name, call.arguments) == ("look", '{"a": ')
    [call] = read(tokenizer, [calls, *word("look"), args])[2]
    assert (call.name, call.arguments) == ("look", "")


@pytest.mark.parametrize("written", ["short", "with-dash", "twelve012345"])
def test_an_id_that_cannot_be_used_is_replaced(written: str, tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["v3"]
    text = json.dumps([{"name": "f", "arguments": {}, "id": written}])
    _, _, [call] = read(tokenizer, [tokenizer.control["[TOOL_CALLS]"], *tokenizer.encode(text)])
    assert call.id != written
    assert len(call.id) == 9
    twice = json.dumps([{"name": "f", "arguments": {}, "id": "abcDE1234"}] * 2)
    _, _, calls = read(tokenizer, [tokenizer.control["[TOOL_CALLS]"], *tokenizer.encode(twice)])
    assert calls[0].id == "abcDE1234" != calls[1].id


json_objects = st.dictionaries(
    st.text(max_size=6),
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=8), st.lists),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(json_objects, min_size=1, max_size=3), st.booleans(), st.sampled_from([None, 1]))
def test_any_arguments_are_read_letter_for_letter(
    tokenizers: Tokenizers, objects: list[dict[str, Any]], ascii_only: bool, indent: int | None
) -> None:
    tokenizer = tokenizers["v7-tekken"]
    calls = [{"name": f"t{n}", "arguments": o, "id": f"abcDE123{n}"} for n, o in enumerate(objects)]
    text = json.dumps(calls, ensure_ascii=ascii_only, indent=indent)
    rest, _, found = read(tokenizer, [tokenizer.control["[TOOL_CALLS]"], *tokenizer.encode(text)])
    assert rest == ""
    assert [json.loads(c.arguments) for c in found] == objects
    assert all(c.arguments in text for c in found)


@pytest.mark.parametrize("name", quick("v3", "v13-tekken"))
def test_random_ids_are_taken_apart_without_an_error(name: str, tokenizers: Tokenizers) -> None:
    """Markers anywhere, in any order; with text between them."""
    tokenizer = tokenizers[name]
    rng = np.random.default_rng(0)
    markers = [
        i for m, i in tokenizer.control.items() if m in ("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[CALL_ID]", "[ARGS]")
    ]
    bits = [tokenizer.encode(t) for t in ("a", "[{", '"name": "f", ', '"arguments": {', "}", "}]", ",", "é", "🦙"[:1])]
    for _ in range(300):
        ids: list[int] = []
        for _ in range(rng.integers(0, 20)):
            ids += [int(rng.choice(markers))] if markers and rng.random() < 0.3 else bits[rng.integers(len(bits))]
        _, _, calls = read(tokenizer, ids)
        assert all(call.id for call in calls)
        assert len({call.id for call in calls}) == len(calls)
