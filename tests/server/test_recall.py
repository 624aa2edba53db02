"""Conversations that come back as text are read as the ids that they were made of."""

from __future__ import annotations

from mistral_mlx.completion import ToolCall
from mistral_mlx.server.recall import Recall, key
from mistral_mlx.text.messages import Message
from tests.server.conftest import HELLO, Running

ASKED = Message("user", "Hello")
CALL = ToolCall("abcdefghi", "look", "{}")


def said(content: str, *ids: int, thinking: str = "", calls: tuple[ToolCall, ...] = ()) -> Message:
    return Message("assistant", content, ids or None, thinking, calls)


def test_an_answer_is_known_again_after_the_same_conversation() -> None:
    recall = Recall()
    recall.keep(key([ASKED]), said("Hi", 5, 6, thinking="hm"))
    recall.keep(key([ASKED]), said("", 7, calls=(CALL,)))
    again = [ASKED, said("Hi"), ASKED]
    assert [m.ids for m in recall.restore(again)] == [None, (5, 6), None]
    assert recall.restore([ASKED, said("Hi", thinking="hm")])[1].ids == (5, 6)
    assert recall.restore([ASKED, said("", calls=(CALL,))])[1].ids == (7,)
    for other in (
        [ASKED, said("Ho")],
        [ASKED, said("Hi", thinking="other")],
        [Message("user", "Bye"), said("Hi")],
        [Message("system", "Be brief."), ASKED, said("Hi")],
        [ASKED, said("", calls=(ToolCall("abcdefghi", "look", '{"a": 1}'),))],
    ):
        assert recall.restore(other) == other


def test_the_oldest_are_forgotten() -> None:
    recall = Recall(most=70)  # two short answers
    for name in ("a", "b", "c"):
        recall.keep(key([Message("user", name)]), said(name, 1, 2))
    known = [recall.restore([Message("user", name), said(name)])[1].ids for name in ("a", "b", "c")]
    assert known == [None, (1, 2), (1, 2)]
    recall.restore([Message("user", "b"), said("b")])  # which makes c the oldest
    recall.keep(key([Message("user", "b")]), said("b", 1, 2))
    recall.keep(key([Message("user", "d")]), said("d", 1, 2))
    assert recall.restore([Message("user", "c"), said("c")])[1].ids is None
    for large in (said("e", *range(70)), said("e", 1, thinking="hm" * 100)):
        recall.keep(key([Message("user", "e")]), large)
        assert recall.restore([Message("user", "e"), said("e")])[1].ids is None


def test_answers_of_nothing_are_forgotten_too() -> None:
    recall = Recall(most=1000)
    for k in range(1000):
        recall.keep(key([Message("user", str(k))]), Message("assistant", "", ()))
    assert len(recall._answers) < 50


def test_a_second_turn_reads_only_what_is_new(running: Running) -> None:
    """Whatever was sampled, control tokens and broken characters among it."""
    for seed in range(3):
        first = running.chat(seed=seed, max_tokens=20, temperature=1.5).json
        answer = first["choices"][0]["message"]
        if answer.get("tool_calls"):
            continue
        second = running.chat(messages=[*HELLO, answer, {"role": "user", "content": "More"}]).json["usage"]
        known = first["usage"]["prompt_tokens"] + first["usage"]["completion_tokens"]
        assert second["prompt_tokens_details"]["cached_tokens"] >= known - 2
