"""The tree of a conversation: branches, what the model reads of them, tokens, titles, ids."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mistral_mlx as mm
from mistral_mlx.text.messages import read_messages
from tui.conversation import Conversation, Role, Tokens, Turn, make_title, new_conversation_id, new_id, well_formed


def say(conversation: Conversation, role: Role, text: str = "", **facts: Any) -> Turn:
    """Add a turn where the conversation is."""
    finish = facts.pop("finish", "stop" if role == "assistant" else None)
    return conversation.add(Turn(new_id(), facts.pop("parent", conversation.tip), role, text, finish=finish, **facts))


def texts(conversation: Conversation) -> list[str]:
    return [turn.text for turn in conversation.path()]


def forked() -> tuple[Conversation, list[Turn]]:
    """hello -> hi -> (a -> A, b -> (B1, B2))"""
    c = Conversation()
    hello, hi = say(c, "user", "hello"), say(c, "assistant", "hi")
    a, a_said = say(c, "user", "a"), say(c, "assistant", "A")
    b, b_said = say(c, "user", "b", parent=hi.id), say(c, "assistant", "B1")
    return c, [hello, hi, a, a_said, b, b_said, say(c, "assistant", "B2", parent=b.id)]


def test_adding_goes_on_from_the_tip() -> None:
    c = Conversation()
    assert c.path() == []
    say(c, "user", "hello")
    say(c, "assistant", "hi")
    assert texts(c) == ["hello", "hi"]


def test_an_edit_is_a_branch_beside() -> None:
    c, (_, hi, a, _, b, b1, b2) = forked()
    assert texts(c) == ["hello", "hi", "b", "B2"]
    assert c.siblings(a) == [a, b]
    assert c.children(b.id) == [b1, b2]
    assert c.children(hi.id) == c.siblings(b)
    assert [turn.text for turn in c.path(b1.id)] == ["hello", "hi", "b", "B1"]
    assert len(c.turns) == 7


def test_choosing_a_sibling_goes_back_to_where_one_was_there() -> None:
    c, (_, _, a, _, b, b1, _) = forked()
    c.choose(b1.id)
    c.choose(a.id)
    assert texts(c) == ["hello", "hi", "a", "A"]
    c.choose(b.id)
    assert texts(c) == ["hello", "hi", "b", "B1"]


def test_a_branch_where_nobody_was_is_entered_at_its_newest() -> None:
    c, (hello, *_) = forked()
    loaded = Conversation(tip=None, turns=c.turns)
    loaded.choose(hello.id)
    assert texts(loaded) == ["hello", "hi", "b", "B2"]


def test_the_first_message_can_have_versions() -> None:
    c, (hello, *_) = forked()
    other = say(c, "user", "good morning", parent=None)
    assert texts(c) == ["good morning"]
    assert c.siblings(hello) == [hello, other] == c.children(None)


def test_a_conversation_can_be_5000_turns_deep() -> None:
    turns = {i: Turn(i, i - 1 or None, "user" if i % 2 else "assistant", str(i), finish="stop") for i in range(1, 5001)}
    c = Conversation(tip=5000, turns=turns)
    c.choose(1)
    assert c.tip == 5000
    assert len(c.path()) == len(c.messages()) == 5000


def test_the_model_reads_the_ids_that_it_sampled() -> None:
    c = Conversation()
    say(c, "user", "hello")
    answer = say(c, "assistant", "hi", thinking="hm", kept=(5, 6))
    say(c, "user", "and?")
    hello, hi = mm.Message("user", "hello"), mm.Message("assistant", "hi", (5, 6), "hm")
    assert c.messages() == [hello, hi, mm.Message("user", "and?")]
    assert c.messages(answer.id) == [hello, hi]
    assert read_messages(c.messages()) == c.messages()


def test_another_model_reads_the_text_alone() -> None:
    c = Conversation()
    say(c, "user", "hello")
    say(c, "assistant", "hi", thinking="hm", kept=(5, 6))
    say(c, "assistant", thinking="hm, he", kept=(5,), finish="cancelled")
    assert c.messages(own=lambda turn: False) == [mm.Message("user", "hello"), mm.Message("assistant", "hi")]


@pytest.mark.parametrize("finish", [None, "failed", "cancelled", "interrupted"])
def test_an_answer_of_which_nothing_was_said_is_left_out(finish: str | None) -> None:
    c = Conversation()
    say(c, "user", "hello")
    say(c, "assistant", finish=finish, error="The model is gone.")
    say(c, "user", "hello?")
    assert c.messages() == [mm.Message("user", "hello"), mm.Message("user", "hello?")]
    assert read_messages(c.messages(), unanswered=True)


def test_an_answer_that_was_only_its_end_is_read() -> None:
    c = Conversation()
    say(c, "user", "hello")
    say(c, "assistant", kept=())
    assert c.messages()[1] == mm.Message("assistant", ids=())


def test_calls_that_were_not_run_get_a_result() -> None:
    calls = tuple(mm.ToolCall(f"call0000{i}", "weather", "{}") for i in range(3))
    c = Conversation()
    say(c, "user", "Rome?")
    say(c, "assistant", tool_calls=calls)
    assert [m.role for m in c.messages()] == ["user", "assistant"]  # they may yet be run
    say(c, "tool", "sunny", tool_call_id="call00001")
    say(c, "user", "never mind")
    messages = c.messages()
    assert [m.tool_call_id for m in messages] == [None, None, "call00001", "call00000", "call00002", None]
    assert "not run" in messages[3].content
    assert read_messages(messages) == messages


def test_a_call_that_was_cut_is_in_the_ids_only() -> None:
    c = Conversation()
    say(c, "user", "Rome?")
    say(c, "assistant", tool_calls=(mm.ToolCall("", "wea", ""),), kept=(7,), finish="cancelled")
    assert c.messages()[1] == mm.Message("assistant", ids=(7,))


def test_half_a_surrogate_pair_can_be_read() -> None:
    c = Conversation()
    say(c, "user", "a\ud800b")
    assert c.messages()[0].content == "a\ufffdb"
    assert well_formed("\ud83d\ude80 é 東") == "🚀 é 東"


def test_ids_are_unique_and_grow() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert ids == sorted(set(ids))
    assert 0 < ids[-1] < 2**63  # SQLite's integers
    assert new_conversation_id().isalnum()
    assert len({new_conversation_id() for _ in range(100)}) == 100


def test_tokens_know_what_they_said() -> None:
    tokens = Tokens()
    tokens.add([1], [-0.5], 3)
    tokens.add([2, 3], [-0.25, -1.0], 5)  # a character of two tokens
    tokens.add([], [], 6)  # the flush at the end
    assert [tokens.piece(i, "Hi 🚀!.") for i in range(3)] == ["Hi ", "", "🚀!."[:3]]
    assert len(tokens) == 3
    with pytest.raises(ValueError, match="shorter"):
        tokens.add([4], [], 9)


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.floats(width=32, allow_nan=False), st.integers(0, 10**6))))
def test_tokens_survive_as_bytes(rows: list[tuple[int, float, int]]) -> None:
    tokens = Tokens()
    for token, logprob, end in rows:
        tokens.add([token], [logprob], end)
    assert Tokens.from_bytes(tokens.to_bytes()) == tokens
    assert len(tokens.to_bytes()) == 12 * len(rows)


@pytest.mark.parametrize("size", [1, 3, 11, 13, 15])
def test_other_bytes_are_no_tokens(size: int) -> None:
    with pytest.raises(ValueError, match="byte"):
        Tokens.from_bytes(b"x" * size)


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("Hello", "Hello"),
        ("  What   is\tthis?\nmore", "What is this?"),
        ("```\n\nprint(1)\n```", "print(1)"),
        ("???", "???"),
        ("", ""),
        (" \n ", ""),
        ("one two three four five six seven eight nine ten eleven", "one two three four five six seven eight nine…"),
        ("x" * 60, "x" * 47 + "…"),
        ("x" * 48, "x" * 48),
        ("東京" * 30, "東京" * 23 + "東…"),
    ],
)
def test_titles(text: str, title: str) -> None:
    assert make_title(text) == title


@given(st.text())
def test_a_title_is_one_short_line(text: str) -> None:
    title = make_title(text)
    assert len(title) <= 48
    assert len(title.splitlines()) <= 1
