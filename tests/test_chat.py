"""Conversations with a model: tools that are run, answers that are gone on with, prompts that begin the next."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from threading import Event
from typing import Any

import mlx.core as mx
import pytest
from jsonschema import Draft202012Validator
from pydantic import BaseModel, Field

import mistral_mlx as mm
from mistral_mlx.engine.decode import Token
from mistral_mlx.text.chat import MistralChat
from mistral_mlx.text.files import Text
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tekken import Tekken
from tests.chat_formats import FORMATS, quick
from tests.conftest import make_model

Tokenizers = dict[str, SentencePiece | Tekken]
Talkers = Callable[[str], mm.LLM]


@pytest.fixture(scope="module")
def talkers(tokenizers: Tokenizers) -> Talkers:
    """Tiny windowed models that talk nonsense in any of Mistral's formats."""
    made: dict[str, mm.LLM] = {}

    def talker(name: str) -> mm.LLM:
        if name not in made:
            model = make_model(vocab_size=tokenizers[name].vocab_size, sliding_window=(8, None), num_hidden_layers=2)
            made[name] = mm.LLM(model, Text(tokenizers[name], MistralChat(tokenizers[name]), True))
        return made[name]

    return talker


class Script:
    """Puts words into a model's mouth: each answer is the next of some lists of ids. The model reads them as its."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answers: list[list[int]]) -> None:
        self.prompts: list[list[int]] = []
        self._answers = iter(answers)
        monkeypatch.setattr("mistral_mlx.llm.decode", self._decode)

    def _decode(self, model: Any, logits: Any, cache: Any, params: Any, prompt: Any, **_: Any) -> Iterator[Token]:
        self.prompts.append(list(prompt))
        before = None
        for token in next(self._answers):
            if before is not None:
                mx.eval(model(mx.array([[before]]), cache))
            before = token
            yield Token(token, 0.0, {})


def calling(tokenizer: SentencePiece | Tekken, *calls: tuple[str, str, str]) -> list[int]:
    """The ids with which a model calls tools: (id, name, arguments)."""
    control, ids = tokenizer.control, []
    if tokenizer.version in ("v11", "v13", "v15"):
        for ident, name, arguments in calls:
            ids += [control["[TOOL_CALLS]"], *tokenizer.encode(name)]
            ids += [control["[CALL_ID]"], *tokenizer.encode(ident)] if tokenizer.version == "v11" else []
            ids += [control["[ARGS]"], *tokenizer.encode(arguments)]
        return [*ids, 2]
    array = [{"name": name, "arguments": json.loads(arguments), "id": ident} for ident, name, arguments in calls]
    return [control["[TOOL_CALLS]"], *tokenizer.encode(json.dumps(array)), 2]


# ---- prompts that begin the next --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quick("v3"))
def test_fifty_sampled_turns_each_begin_the_next(name: str, talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """At temperature 1, whatever a random model says, control tokens and broken characters among it."""
    llm = talkers(name)
    chat = llm.chat("Be brief.", stable=True)
    prompts: list[list[int]] = []
    run = llm.run
    monkeypatch.setattr(llm, "run", lambda request, **k: prompts.append(request.ids) or run(request, **k))
    known: list[int] = []
    for turn in range(50):
        answer = chat.send(f"turn {turn} 🦙", max_tokens=6, temperature=1.0, seed=turn)
        assert prompts[-1][: len(known)] == known
        if turn:
            assert answer.stats.reused_tokens >= len(known) - 2
        said = answer.tokens[:-1] if answer.finish_reason == "stop" else answer.tokens
        known = [*prompts[-1], *said]
    assert len(prompts) == 50


# ---- tools ------------------------------------------------------------------------------------------------------


def weather(city: str, days: int = 1) -> dict[str, Any]:
    """The weather.

    Args:
        city: where
    """
    return {"city": city, "days": days, "sky": "clear"}


THEIRS = {"type": "function", "function": {"name": "lookup", "parameters": {"type": "object", "properties": {}}}}


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "v1"])
def test_tools_are_run_and_their_results_read(name: str, talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers(name)
    tokenizer = llm.tokenizer
    called = calling(tokenizer, ("abcDE1234", "weather", '{"city": "Rome"}'))
    script = Script(monkeypatch, [called, [*tokenizer.encode("It is clear."), 2]])
    chat = llm.chat("Be brief.")
    chunks = list(chat.stream("How is Rome?", tools=[weather]))
    answer = mm.Completion.join(chunks)
    assert (answer.text, answer.finish_reason, answer.tool_calls) == ("It is clear.", "stop", [])
    assert [m.role for m in chat.messages] == ["system", "user", "assistant", "tool", "assistant"]
    call = chat.messages[2].tool_calls[0]
    assert (call.name, json.loads(call.arguments)) == ("weather", {"city": "Rome"})
    assert chat.messages[3].tool_call_id == call.id
    assert json.loads(chat.messages[3].content) == {"city": "Rome", "days": 1, "sky": "clear"}
    assert [c.finish_reason for c in chunks if c.finish_reason] == ["stop", "stop"]
    assert "".join(d.arguments for c in chunks for d in c.tool_calls) == call.arguments
    # The second prompt goes on where the first and the call ended, and only the result is read.
    assert script.prompts[1][: len(script.prompts[0]) + len(called)] == [*script.prompts[0], *called]
    assert answer.stats.reused_tokens >= len(script.prompts[0]) + len(called) - 1
    assert chat.tools[0].name == "weather"


@pytest.mark.parametrize("name", ["v3", "v7-tekken", "v11-tekken", "v13-tekken"])
def test_several_calls_in_one_answer_are_all_run(name: str, talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers(name)
    calls = [(f"abcDE123{n}", "weather", f'{{"city": "City {n}"}}') for n in range(3)]
    Script(monkeypatch, [calling(llm.tokenizer, *calls), [*llm.tokenizer.encode("ok"), 2]])
    chat = llm.chat(tools=[weather])
    assert chat.send("All three?").text == "ok"
    results = [m for m in chat.messages if m.role == "tool"]
    assert [json.loads(m.content)["city"] for m in results] == ["City 0", "City 1", "City 2"]
    assert [m.tool_call_id for m in results] == [c.id for c in chat.messages[1].tool_calls]


def test_the_rounds_are_bounded_and_the_end_says_so(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers("v3")
    count = 0

    def again() -> int:
        nonlocal count
        count += 1
        return count

    Script(monkeypatch, [calling(llm.tokenizer, (f"abcDE12{n:02}", "again", "{}")) for n in range(20)])
    chat = llm.chat(tools=[again])
    answer = chat.send("go", max_rounds=3)
    assert (count, answer.finish_reason) == (3, "tool_rounds")
    assert [c.name for c in answer.tool_calls] == ["again"]
    answer = chat.send("go on", max_rounds=0)
    assert (count, answer.finish_reason) == (3, "tool_rounds")
    unrun = [m for m in chat.messages if m.role == "tool" and "not run" in m.content]
    assert len(unrun) == 1  # the call that the first answer ended with; the second's still waits
    with pytest.raises(mm.InputError, match="max_rounds is -1"):
        chat.send("x", max_rounds=-1)


def test_what_a_tool_cannot_do_is_told_to_the_model(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers("v11-tekken")
    made = [("abcDE1230", "weather", '{"days": "x"}'), ("abcDE1231", "unknown", "{}"), ("abcDE1232", "weather", '{"ci')]
    Script(monkeypatch, [calling(llm.tokenizer, *made), [*llm.tokenizer.encode("sorry"), 2]])
    chat = llm.chat(tools=[weather])
    assert chat.send("?").text == "sorry"
    errors = [json.loads(m.content)["error"] for m in chat.messages if m.role == "tool"]
    assert "city" in errors[0]
    assert "no tool 'unknown'" in errors[1]
    assert "JSONDecodeError" in errors[2]


def test_the_callers_own_tools_are_answered_by_the_caller(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers("v7-tekken")
    made = [("abcDE1230", "lookup", "{}"), ("abcDE1231", "weather", '{"city": "Rome"}')]
    Script(monkeypatch, [calling(llm.tokenizer, *made), [*llm.tokenizer.encode("done"), 2]])
    chat = llm.chat(tools=[THEIRS, weather])
    answer = chat.send("?")
    assert [(c.id, c.name) for c in answer.tool_calls] == [("abcDE1230", "lookup"), ("abcDE1231", "weather")]
    assert answer.finish_reason == "stop"
    with pytest.raises(mm.RequestError, match="are: abcDE1230, abcDE1231"):
        chat.answer_calls({"abcDE1230": "5"})
    assert chat.answer_calls({"abcDE1231": "sun", "abcDE1230": "5"}).text == "done"
    assert [m.content for m in chat.messages if m.role == "tool"] == ["5", "sun"]
    for odd in ({}, ["abcDE1230"], None):
        with pytest.raises(mm.RequestError, match="There are results of: none"):
            chat.answer_calls(odd)  # type: ignore[arg-type]
    with pytest.raises(mm.RequestError, match="The calls are: none"):
        chat.answer_calls({"abcDE1230": "5"})


@pytest.mark.parametrize("name", ["v3", "v11-tekken"])
def test_whatever_a_model_calls_the_chat_goes_on(name: str, talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """An id that the format does not carry, a name that is none, the same id again: what was sampled stays."""
    llm = talkers(name)
    made = [("bad", "weather", '{"city": "a"}'), ("abcDE1234", "get weather", "{}"), ("abcDE1234", "weather", "{}")]
    ok = [*llm.tokenizer.encode("ok"), 2]
    Script(monkeypatch, [calling(llm.tokenizer, *made), ok, ok])
    chat = llm.chat(tools=[weather])
    assert chat.send("?").text == "ok"
    assert chat.messages[1].ids == tuple(calling(llm.tokenizer, *made)[:-1])
    assert len({call.id for call in chat.messages[1].tool_calls}) == 3
    assert all(re.fullmatch("[a-zA-Z0-9]{9}", call.id) for call in chat.messages[1].tool_calls)
    assert chat.send("and?").text == "ok"


def test_calls_of_a_strict_tool_always_have_its_arguments(talkers: Talkers) -> None:
    """Of a random model that is made to call, its letters drawn at temperature 1."""
    llm, ran = talkers("v3"), []
    schema = {
        "type": "object",
        "properties": {"size": {"enum": ["S", "M"]}, "count": {"type": "integer", "minimum": 1, "maximum": 5}},
        "required": ["size", "count"],
        "additionalProperties": False,
    }

    def order(size: str, count: int) -> None:
        ran.append({"size": size, "count": count})

    tool = mm.Tool("order", "Order shirts.", schema, order, strict=True)
    bias = {llm.tokenizer.control["[TOOL_CALLS]"]: 1000.0, llm.tokenizer.encode("]", inside=True)[0]: 1000.0}
    options = {"temperature": 1.0, "seed": 5, "logit_bias": bias, "max_rounds": 3, "max_tokens": 200}
    answer = llm.chat(tools=[tool]).send("Go.", **options)
    assert answer.finish_reason == "tool_rounds"
    assert len(ran) >= 3
    for arguments in ran:
        Draft202012Validator(schema).validate(arguments)


ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {"size": {"enum": ["S", "M"]}},
    "required": ["size"],
    "additionalProperties": False,
}
THEIR_TOOLS = [mm.Tool(name, "", ORDER, strict=True) for name in ("order", "cancel")]


@pytest.mark.parametrize("name", quick("v3"))
@pytest.mark.parametrize("choice", ["required", "cancel"])
def test_an_answer_calls_a_tool_where_it_must(name: str, choice: str, talkers: Talkers) -> None:
    """A random model, whose letters are drawn at temperature 1."""
    if name == "v1":
        pytest.skip("it has no tools")
    control = talkers(name).tokenizer.control
    options: dict[str, Any] = {"temperature": 1.0, "max_tokens": 300, "parallel_tool_calls": False}
    options["logit_bias"] = {control[mark]: -1e4 for mark in ("[THINK]",) if mark in control}  # it might never end
    called = []
    for seed in range(6):
        chat = talkers(name).chat(tools=THEIR_TOOLS)
        answer = chat.send("Go.", tool_choice=choice, seed=seed, **options)
        assert (answer.finish_reason, answer.text, len(answer.tool_calls)) == ("stop", "", 1)
        called.append(answer.tool_calls[0].name)
        assert json.loads(answer.tool_calls[0].arguments)["size"] in ("S", "M")
    assert set(called) <= ({"cancel"} if choice == "cancel" else {"order", "cancel"})


@pytest.mark.parametrize("name", quick("v3", "v7-tekken"))
def test_an_answer_calls_no_tool_where_it_may_not(name: str, talkers: Talkers) -> None:
    llm = talkers(name)
    if "[TOOL_CALLS]" not in llm.tokenizer.control:
        pytest.skip("it has no tools")
    mark = llm.tokenizer.control["[TOOL_CALLS]"]
    options: dict[str, Any] = {"logit_bias": {mark: 1e4}, "max_tokens": 12, "seed": 1, "temperature": 1.0}
    assert mark in llm.chat(tools=THEIR_TOOLS).send("Go.", **options).tokens
    chat = llm.chat(tools=THEIR_TOOLS)
    answer = chat.send("Go.", tool_choice="none", **options)
    assert mark not in answer.tokens
    assert answer.stats.prompt_tokens == llm.chat().send("Go.", max_tokens=1).stats.prompt_tokens


def test_a_choice_of_tools_that_is_none_is_refused(talkers: Talkers) -> None:
    chat = talkers("v3").chat(tools=THEIR_TOOLS)
    for wrong in ({"tool_choice": "nothing"}, {"tool_choice": 1}, {"parallel_tool_calls": "no"}):
        with pytest.raises(mm.RequestError, match=next(iter(wrong))):
            chat.send("Go.", **wrong)
    with pytest.raises(mm.RequestError, match="there are no tools"):
        chat.send("Go.", tools=[], tool_choice="required")


def test_once_tools_have_been_run_the_model_chooses(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers("v3")
    called = calling(llm.tokenizer, ("abcDE1234", "weather", '{"city": "Rome"}'))
    Script(monkeypatch, [called, [*llm.tokenizer.encode("It is clear."), 2]])
    answer = llm.chat(tools=[weather]).send("?", tool_choice="required")
    assert (answer.text, answer.finish_reason) == ("It is clear.", "stop")


def test_an_answer_that_is_cut_within_a_call_runs_nothing(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers("v7-tekken")
    called = calling(llm.tokenizer, ("abcDE1234", "weather", '{"city": "Rome"}'))
    Script(monkeypatch, [called[:-4], [*llm.tokenizer.encode("ok"), 2]])
    chat = llm.chat(tools=[weather])
    answer = chat.send("?", max_tokens=len(called) - 4)
    assert answer.finish_reason == "length"
    assert [c.name for c in answer.tool_calls] == ["weather"]
    assert chat.messages[-1].ids == tuple(called[:-4])
    assert chat.send("and?").text == "ok"
    assert [m.role for m in chat.messages] == ["user", "assistant", "user", "assistant"]


def quick_tool() -> int:
    return 1


def test_a_tool_that_is_interrupted_leaves_a_chat_that_goes_on(
    talkers: Talkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And keeps the result of the one that was run before it."""
    llm = talkers("v3")

    def slow() -> None:
        raise KeyboardInterrupt

    made = [("abcDE1233", "quick_tool", "{}"), ("abcDE1234", "slow", "{}"), ("abcDE1235", "quick_tool", "{}")]
    Script(monkeypatch, [calling(llm.tokenizer, *made), [*llm.tokenizer.encode("ok"), 2]])
    chat = llm.chat(tools=[quick_tool, slow])
    with pytest.raises(KeyboardInterrupt):
        chat.send("?")
    assert chat.send("never mind").text == "ok"
    assert [m.role for m in chat.messages] == ["user", "assistant", "tool", "tool", "tool", "user", "assistant"]
    assert [m.content == "1" for m in chat.messages[2:5]] == [True, False, False]
    assert "not run" in chat.messages[3].content


def test_no_tool_is_run_after_the_cancel(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, cancel, ran = talkers("v3"), Event(), []

    def stop(n: int) -> None:
        ran.append(n)
        cancel.set()

    made = [("abcDE1233", "stop", '{"n": 1}'), ("abcDE1234", "stop", '{"n": 2}')]
    Script(monkeypatch, [calling(llm.tokenizer, *made)])
    llm.chat(tools=[stop]).send("?", cancel=cancel)
    assert ran == [1]


def test_a_result_that_is_too_long_is_told_as_such(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers("v3")

    def book() -> str:
        return "word " * 3000

    check = llm.check_room

    def narrow(prompt: int, max_tokens: int) -> Any:
        if prompt > 1000:
            raise mm.ContextError("too long")
        return check(prompt, max_tokens)

    monkeypatch.setattr(llm, "check_room", narrow)
    Script(monkeypatch, [calling(llm.tokenizer, ("abcDE1234", "book", "{}")), [*llm.tokenizer.encode("ok"), 2]])
    chat = llm.chat(tools=[book])
    assert chat.send("?").text == "ok"
    assert "too long to be read" in chat.messages[2].content


def test_v2_runs_the_one_call_that_it_can_tell(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers("v2")
    made = [(f"abcDE123{n}", "weather", f'{{"city": "{n}"}}') for n in range(2)]
    Script(monkeypatch, [calling(llm.tokenizer, *made), [*llm.tokenizer.encode("ok"), 2]])
    chat = llm.chat(tools=[weather])
    assert chat.send("?").text == "ok"
    assert [m.role for m in chat.messages] == ["user", "assistant", "tool", "assistant"]


def test_a_cancelled_answer_runs_no_tool(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm, cancel = talkers("v3"), Event()

    def never() -> None:
        raise AssertionError

    Script(monkeypatch, [calling(llm.tokenizer, ("abcDE1234", "never", "{}"))])
    chat = llm.chat(tools=[never])
    for chunk in chat.stream("?", cancel=cancel):
        if chunk.finish_reason is None:
            cancel.set()
    assert [m.role for m in chat.messages] == ["user", "assistant"]


def test_a_model_that_calls_unasked_runs_nothing(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers("v3")
    Script(monkeypatch, [calling(llm.tokenizer, ("abcDE1234", "rm", "{}")), [*llm.tokenizer.encode("ok"), 2]])
    chat = llm.chat()
    answer = chat.send("?")
    assert (answer.finish_reason, [c.name for c in answer.tool_calls]) == ("stop", ["rm"])
    assert chat.send("no").text == "ok"


def test_a_bad_tool_leaves_the_chat_as_it_was(talkers: Talkers) -> None:
    chat = talkers("v3").chat(tools=[weather])
    with pytest.raises(mm.RequestError, match=r"tools\[0\]"):
        chat.send("?", tools=[5])
    with pytest.raises(mm.RequestError, match=r"messages\[0\]"):
        talkers("v3").chat(messages=[{"role": "robot"}])
    assert (chat.messages, [t.name for t in chat.tools]) == ([], ["weather"])


# ---- thoughts, beginnings, gaps ---------------------------------------------------------------------------------


def test_thoughts_come_apart_and_stay_in_the_history(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers("v13-tekken")
    word, control = llm.tokenizer.encode, llm.tokenizer.control
    said = [control["[THINK]"], *word("2 + 2"), control["[/THINK]"], *word("It is 4."), 2]
    script = Script(monkeypatch, [said, [*word("yes"), 2]])
    chat = llm.chat()
    answer = chat.send("?", stop="never")
    assert (answer.thinking, answer.text) == ("2 + 2", "It is 4.")
    assert (chat.messages[-1].thinking, chat.messages[-1].ids) == ("2 + 2", tuple(said[:-1]))
    chat.send("sure?")
    assert script.prompts[1][: len(script.prompts[0]) + len(said)] == [*script.prompts[0], *said]


def test_a_stop_string_heeds_the_answer_and_not_the_thoughts(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers("v13-tekken")
    word, control = llm.tokenizer.encode, llm.tokenizer.control
    said = [control["[THINK]"], *word("a STOP b"), control["[/THINK]"], *word("one two STOP three"), 2]
    Script(monkeypatch, [said, [*word("ok"), 2]])
    chat = llm.chat()
    answer = chat.send("?", stop="STOP")
    assert (answer.thinking, answer.text, answer.finish_reason) == ("a STOP b", "one two ", "stop")
    kept = chat.messages[-1].ids
    assert kept is None or tuple(said[: len(kept)]) == kept
    assert chat.send("and?").text == "ok"


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_that_was_begun_is_gone_on_with(name: str, talkers: Talkers) -> None:
    """As if it had never been cut."""
    llm = talkers(name)
    options = {"temperature": 1.0, "seed": 11}
    whole = llm.chat().send("Hello", max_tokens=12, **options)
    chat = llm.chat()
    chat.send("Hello", max_tokens=5, **options)
    chat.messages[-1] = mm.Message("assistant", chat.messages[-1].content, chat.messages[-1].ids, prefix=True)
    rest = chat.reply(max_tokens=7, **options)
    assert chat.messages[-1].ids == tuple(whole.tokens)
    assert [*whole.tokens[:5], *rest.tokens] == whole.tokens
    begun = llm.chat(
        messages=[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi", "prefix": True}]
    )
    answer = begun.reply(max_tokens=4, **options)
    assert begun.messages[-1].content == f"Hi{answer.text}"
    assert begun.messages[-1].ids is not None
    assert begun.messages[-1].ids[-len(answer.tokens) :] == tuple(answer.tokens)
    begun.send("and?", max_tokens=2)


def test_an_answer_that_was_cut_anywhere_is_gone_on_with(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thought, after one, within a character, within a call's arguments."""
    llm = talkers("v11-tekken")
    thinker = talkers("v13-tekken")
    word, control = llm.tokenizer.encode, thinker.tokenizer.control
    thought = [control["[THINK]"], *word("deep 🦙"), control["[/THINK]"], *word("It is 🦙."), 2]
    called = calling(llm.tokenizer, ("abcDE1234", "weather", '{"city": "Rome"}'))
    for who, whole in ((thinker, thought), (llm, called)):
        for cut in range(1, len(whole)):
            Script(monkeypatch, [whole[:cut], whole[cut:], [*word("ok"), 2], [*word("ok"), 2]])
            chat = who.chat(tools=[weather])
            chat.send("?", max_tokens=cut)
            chat.messages[-1] = replace(chat.messages[-1], prefix=True)
            chat.reply()
            assert chat.messages[1].ids == tuple(whole[:-1])
            if who is thinker:
                assert (chat.messages[1].thinking, chat.messages[1].content) == ("deep 🦙", "It is 🦙.")
            else:
                assert [(c.id, c.arguments) for c in chat.messages[1].tool_calls] == [("abcDE1234", '{"city": "Rome"}')]
                assert chat.messages[-1].content == "ok"


@pytest.mark.parametrize("name", FORMATS)
def test_an_answer_that_follows_another_is_gone_on_with(name: str, talkers: Talkers) -> None:
    chat = talkers(name).chat(
        messages=[mm.Message("user", "x"), mm.Message("assistant", "y"), mm.Message("assistant", "Hi", prefix=True)]
    )
    before = len(chat.messages)
    answer = chat.reply(max_tokens=3, temperature=1.0, seed=1)
    assert len(chat.messages) == before
    assert chat.messages[-1].content.endswith(answer.text)
    chat.send("and?", max_tokens=2)


def test_a_history_is_gone_on_with(talkers: Talkers) -> None:
    llm = talkers("v3")
    chat = llm.chat()
    chat.send("one", max_tokens=6, temperature=1.0, seed=1)
    expected = chat.send("two", max_tokens=6, seed=2).tokens
    other = llm.chat(messages=chat.messages[:2])
    assert other.send("two", max_tokens=6, seed=2).tokens == expected
    same = llm.chat(messages=chat.messages[:3])
    assert same.reply(max_tokens=6, seed=2).tokens == expected
    with pytest.raises(mm.RequestError, match="conversation is empty"):
        llm.chat().reply()


def test_what_belongs_between_two_texts(talkers: Talkers) -> None:
    llm = talkers("v3")
    options = {"max_tokens": 9, "temperature": 1.0, "seed": 3}
    answer = llm.fill("def f(", "return a", **options)
    assert answer.tokens == llm.generate([1, 13, 1575, 1032, 11, 1569, 1053, 29500], **options).tokens
    with pytest.raises(mm.RequestError, match=r"\(v1\) cannot fill"):
        talkers("v1").fill("a", "b")
    with pytest.raises(mm.InputError, match="nothing to fill"):
        llm.fill("", "")


# ---- lanes and forecasts ------------------------------------------------------------------------------------------


def lanes_of(chat: mm.Chat, options: list[dict[str, Any]], **rest: Any) -> list[mm.Completion]:
    chunks: list[list[mm.Chunk]] = [[] for _ in options]
    for index, chunk in chat.stream_lanes(options, **rest):
        chunks[index].append(chunk)
    return [mm.Completion.join(each) for each in chunks]


LANES: list[dict[str, Any]] = [
    {"temperature": 0.0},
    {"temperature": 1.0, "seed": 3},
    {"temperature": 1.0, "seed": 4, "top_k": 5, "max_tokens": 4},
    {"temperature": 0.7, "seed": 5, "presence_penalty": 0.5, "stop": "e", "logprobs": 2},
]


@pytest.mark.slow
def test_lanes_say_what_each_says_alone(talkers: Talkers, demo: mm.LLM) -> None:
    history = [mm.Message("user", "Name a fruit. " * 20)]
    begun = [*history, mm.Message("assistant", "An app", prefix=True)]
    for llm in (talkers("v3"), talkers("v13-tekken"), demo):
        for messages in (history, begun):
            options = [{"max_tokens": 12, **lane} for lane in LANES]
            llm.forget()
            chat, told = llm.chat("Be brief.", messages), list[tuple[int, int]]()
            before = list(chat.messages)
            together = lanes_of(chat, options, progress=lambda *each, told=told: told.append(each))
            assert chat.messages == before
            prompt = together[0].stats.prompt_tokens
            assert told[-1] == (prompt, prompt)  # read once
            assert len(told) < 5
            for lane, done in zip(options, together, strict=True):
                alone = llm.chat("Be brief.", messages).reply(**lane)
                assert (done.text, done.tokens, done.finish_reason) == (alone.text, alone.tokens, alone.finish_reason)
                assert done.logprobs == pytest.approx(alone.logprobs, abs=1e-4)
                assert [list(top) for top in done.top_logprobs] == [list(top) for top in alone.top_logprobs]
            assert max(done.stats.batch for done in together) == 4


def test_lanes_are_checked_before_they_begin_and_cancelled_together(talkers: Talkers) -> None:
    chat = talkers("v3").chat(messages=[mm.Message("user", "Hello")])
    for wrong in ([{}, {"temperature": -1}], [{"nothing": 1}], {"temperature": 1}, ["warm"], [{}, {"max_rounds": 1}]):
        with pytest.raises(mm.InputError):
            chat.stream_lanes(wrong)  # type: ignore[arg-type]
    with pytest.raises(mm.RequestError, match="empty"):
        talkers("v3").chat().stream_lanes([{}])
    assert list(chat.stream_lanes([])) == []
    cancel = Event()
    last: dict[int, mm.Chunk] = {}
    for index, chunk in chat.stream_lanes([{"max_tokens": 500}] * 2, cancel=cancel):
        last[index] = chunk
        cancel.set()
    assert [chunk.finish_reason for chunk in last.values()] == ["cancelled"] * 2
    lanes = chat.stream_lanes([{"max_tokens": 500}] * 2)
    next(lanes)
    chat.send("and?", max_tokens=1)  # ends them
    assert list(lanes) == []


def test_lanes_keep_to_forms_and_show_calls(talkers: Talkers, monkeypatch: pytest.MonkeyPatch) -> None:
    llm = talkers("v3")
    chat = llm.chat(messages=[mm.Message("user", "Go.")])
    options = {"temperature": 1.0, "max_tokens": 20}
    for done in lanes_of(chat, [{"regex": "[0-9]{3}", **options}, {"regex": "[a-z]{2}", **options}]):
        assert done.finish_reason == "stop"
        assert re.fullmatch("[0-9]{3}|[a-z]{2}", done.text)
    ran: list[str] = []
    called = calling(llm.tokenizer, ("abcDE1234", "note", '{"text": "x"}'))
    words = iter(called)
    monkeypatch.setattr(
        "mistral_mlx.engine.batch.read_each", lambda chosen, rows: [Token(next(words), 0.0, {}) for _ in rows]
    )

    def note(text: str) -> str:
        """Note a text."""
        ran.append(text)
        return "noted"

    (done,) = lanes_of(llm.chat(messages=[mm.Message("user", "Go.")], tools=[note]), [{"max_tokens": 50}])
    assert [(call.name, call.arguments) for call in done.tool_calls] == [("note", '{"text": "x"}')]
    assert (done.finish_reason, ran) == ("stop", [])


def test_a_forecast_is_what_the_answer_then_reads(talkers: Talkers) -> None:
    for name in ("v1", "v3", "v13-tekken"):
        llm = talkers(name)
        llm.forget()
        chat = llm.chat()
        for turn in range(4):
            said = f"turn {turn}, which says something"
            before, known = list(chat.messages), llm.prefixes.cache_bytes
            told = chat.forecast(said)
            assert (chat.messages, llm.prefixes.cache_bytes) == (before, known)
            cost = chat.send(said, max_tokens=6, temperature=1.0, seed=turn).stats
            assert (told.prompt_tokens, told.reused_tokens) == (cost.prompt_tokens, cost.reused_tokens)
        last = llm.chat(messages=[*chat.messages, mm.Message("user", "and?")])
        told = last.forecast()
        cost = last.reply(max_tokens=1).stats
        assert (told.prompt_tokens, told.reused_tokens) == (cost.prompt_tokens, cost.reused_tokens)
        with pytest.raises(mm.InputError, match="empty"):
            chat.forecast("")


def test_a_forecast_does_not_end_an_answer(talkers: Talkers) -> None:
    chat = talkers("v3").chat()
    answer = chat.stream("Hello", max_tokens=5)
    first = next(answer)
    assert chat.forecast("and?").prompt_tokens > 0
    assert len([first, *answer]) >= 5


@pytest.mark.slow
def test_an_answer_goes_on_from_any_of_its_tokens(talkers: Talkers, demo: mm.LLM) -> None:
    """From ids alone, with the seed and the penalties it had, reading what is new: the fork of an answer."""
    for llm in (talkers("v1"), talkers("v3"), demo):
        options = {"temperature": 0.9, "seed": 7, "frequency_penalty": 0.4, "presence_penalty": 0.2}
        asked = [mm.Message("user", "Tell me of the sea.")]
        whole = llm.chat(messages=asked).reply(max_tokens=16, **options)
        for cut in (1, 7, 15):
            begun = mm.Message("assistant", ids=tuple(whole.tokens[:cut]), prefix=True)
            chat = llm.chat(messages=[*asked, begun])
            (token,) = chat.reply(max_tokens=1, temperature=0, logprobs=5).top_logprobs
            assert len(token) == 5
            assert token.get(whole.tokens[cut], whole.logprobs[cut]) == pytest.approx(whole.logprobs[cut], abs=1e-4)
            chat = llm.chat(messages=[*asked, begun])
            forecast = chat.forecast()
            assert forecast.reused_tokens == forecast.prompt_tokens - 1
            rest = chat.reply(max_tokens=16 - cut, **options)
            assert [*whole.tokens[:cut], *rest.tokens] == whole.tokens
            assert chat.messages[-1].content == llm.chat(messages=asked).reply(max_tokens=16, **options).text


# ---- forms of answers -------------------------------------------------------------------------------------------


class Person(BaseModel):
    name: str = Field(max_length=10)
    age: int = Field(ge=0, le=150)
    tags: list[str] = Field(max_length=3)


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 10},
        "size": {"enum": ["S", "M", "L"]},
        "counts": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 3},
    },
    "required": ["name", "size", "counts"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=pytest.mark.slow)])
def test_answers_of_a_schema_validate(count: int, talkers: Talkers) -> None:
    """A random model, half of them at temperature 1.5, some with a stop string, penalties and filters."""
    stopped = 0
    for n in range(count):
        llm = talkers(["v1", "v3"][n % 2])
        options: dict[str, Any] = {"temperature": [1.0, 1.5][n // 2 % 2], "seed": n, "max_tokens": 120}
        options |= {"stop": "\n\n"} if n % 5 == 0 else {"top_p": 0.9, "repetition_penalty": 1.1} if n % 5 == 1 else {}
        answer = llm.chat().send("Go.", json_schema=SCHEMA, **options)
        if answer.finish_reason == "stop":
            stopped += 1
            Draft202012Validator(SCHEMA).validate(json.loads(answer.text))
    assert stopped >= 0.95 * count


@pytest.mark.parametrize("name", quick("v1", "v7", "v13-tekken"))
def test_a_form_holds_with_every_tokenizer(name: str, talkers: Talkers) -> None:
    llm, options = talkers(name), {"temperature": 1.0, "seed": 5}
    answer = llm.chat().send("Go.", json_schema=Person, max_tokens=100, **options)
    if answer.finish_reason == "stop":
        Person.model_validate_json(answer.text)
    assert re.fullmatch("(yes|no)!", llm.chat().send("Go.", regex="(yes|no)!", **options).text)
    assert re.fullmatch(r" ?\d{4}", llm.generate("It was in", regex=r" ?\d{4}", **options).text)
    assert llm.chat().send("Go.", json_mode=True, max_tokens=3, **options).text.startswith("{")


def test_a_form_changes_nothing_where_the_model_agrees_with_it(talkers: Talkers) -> None:
    llm, options = talkers("v3"), {"max_tokens": 8, "temperature": 1.0, "seed": 4}
    free = llm.chat().send("Go.", **options)
    assert llm.chat().send("Go.", regex="(?s).*", **options).tokens == free.tokens


def test_a_form_ends_the_answer_without_a_step_too_many(talkers: Talkers) -> None:
    llm = talkers("v3")
    chat = llm.chat()
    answer = chat.send("Go.", regex="abc", temperature=1.0, seed=1)
    assert (answer.text, answer.finish_reason) == ("abc", "stop")
    assert chat.messages[-1].ids == tuple(answer.tokens)
    assert 2 not in answer.tokens
    following = chat.send("And?", max_tokens=4, seed=2).tokens
    assert following == llm.generate(llm.chat_format.encode(chat.messages[:-1]), max_tokens=4, seed=2).tokens


def test_a_stop_string_that_cuts_a_form_says_so(talkers: Talkers) -> None:
    llm, options = talkers("v3"), {"temperature": 1.0, "seed": 3}
    cut = llm.chat().send("Go.", json_schema=SCHEMA, stop='"', **options)
    assert (cut.text, cut.finish_reason) == ("{", "cut")
    whole = llm.chat().send("Go.", regex="abc( def)?x*", stop=[" ", "x"], **options)
    assert (whole.text, whole.finish_reason) == ("abc", "stop")


def test_a_form_holds_for_the_whole_of_an_answer_that_was_begun(talkers: Talkers) -> None:
    llm, options = talkers("v3"), {"temperature": 1.0, "seed": 3, "json_schema": SCHEMA}
    chat = llm.chat()
    assert chat.send("Go.", max_tokens=5, **options).finish_reason == "length"
    chat.messages[-1] = replace(chat.messages[-1], prefix=True)
    assert chat.reply(max_tokens=150, **options).finish_reason == "stop"
    Draft202012Validator(SCHEMA).validate(json.loads(chat.messages[-1].content))
    begun = llm.chat(messages=[mm.Message("user", "Go."), mm.Message("assistant", '{"name": "Al', prefix=True)])
    begun.reply(max_tokens=150, **options)
    assert json.loads(begun.messages[-1].content)["name"].startswith("Al")
    wrong = llm.chat(messages=[mm.Message("user", "Go."), mm.Message("assistant", "Well", prefix=True)])
    with pytest.raises(mm.RequestError, match="form of the answer cannot be followed"):
        wrong.reply(**options)


def test_a_key_cannot_be_written_as_another(talkers: Talkers) -> None:
    """With an escape, past what the schema says of it."""

    class Count(BaseModel):
        a: int

    llm = talkers("v3")
    ids = llm.tokenizer.encode('{"a": 1, "\\u0061": "x"}', inside=True)
    bias = dict.fromkeys(ids, 50.0)
    for seed in range(10):
        options = {"logit_bias": bias, "temperature": 1.0, "seed": seed, "max_tokens": 60}
        answer = llm.chat().send("Go.", json_schema=Count, **options)
        if answer.finish_reason == "stop":
            Count.model_validate_json(answer.text)
        assert "\\u" not in answer.text


def test_messages_and_tools_may_be_changed_between_turns(talkers: Talkers) -> None:
    llm = talkers("v3")
    chat = llm.chat()
    chat.messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "1"}]  # type: ignore[list-item]
    chat.tools = [weather]
    done = chat.send("two", max_tokens=4, seed=1)
    same = llm.chat(messages=chat.messages[:2], tools=[weather])
    assert same.send("two", max_tokens=4, seed=1).tokens == done.tokens
    chat.messages.append({"role": "robot", "content": "x"})  # type: ignore[arg-type]
    with pytest.raises(mm.RequestError, match=r"messages\[4\] has the role 'robot'"):
        chat.send("three")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"messages": 5}, "5 is no conversation"),
        ({"messages": "hi"}, "'hi' is no conversation"),
        ({"stable": "no"}, "stable is 'no'"),
        ({"reasoning_effort": "high"}, "no reasoning effort"),
        ({"tools": [5]}, r"tools\[0\]"),
        ({"system": 5}, r"messages\[0\].content holds 5"),
    ],
)
def test_a_chat_that_cannot_be_is_refused_at_once(options: dict[str, Any], reason: str, talkers: Talkers) -> None:
    with pytest.raises(mm.InputError, match=reason):
        talkers("v3").chat(**options)


def test_v1_has_no_tools_also_under_a_form(talkers: Talkers) -> None:
    with pytest.raises(mm.RequestError, match="has no tools"):
        talkers("v1").chat().send("x", tools=[weather], json_mode=True)


def test_an_answer_that_was_ended_cannot_be_joined(talkers: Talkers) -> None:
    chat = talkers("v3").chat()
    unread = chat.stream("x", max_tokens=2)
    chat.send("y", max_tokens=2)
    with pytest.raises(mm.InputError, match="ended before it was read"):
        mm.Completion.join(unread)


def test_a_form_that_cannot_be_is_refused_before_anything_is_said(talkers: Talkers) -> None:
    chat = talkers("v3").chat()
    for options, reason in [
        ({"regex": "("}, "unclosed group"),
        ({"json_schema": {"type": "nope"}}, "no JSON schema"),
        ({"json_schema": {"not": {}}}, "Unimplemented"),
        ({"json_schema": [1]}, "json_schema is"),
        ({"json_mode": "yes"}, "json_mode is"),
        ({"regex": 5}, "regex is 5"),
        ({"json_mode": True, "regex": "a"}, "json_mode and regex"),
    ]:
        with pytest.raises(mm.InputError, match=reason):
            chat.stream("x", **options)
    assert chat.messages == []
    tiny = mm.LLM(make_model(), Text(mm.TokenizerError("none"), mm.TokenizerError("none"), False))
    with pytest.raises(mm.TokenizerError):
        tiny.generate([1], json_mode=True)


def test_ids_past_the_tokenizers_vocabulary_are_never_allowed_by_a_form(tokenizers: Tokenizers) -> None:
    tokenizer = tokenizers["v1"]
    model = make_model(vocab_size=tokenizer.vocab_size + 64)
    llm = mm.LLM(model, Text(tokenizer, MistralChat(tokenizer), True))
    bias = {tokenizer.vocab_size + n: 1e9 for n in range(64)}
    assert llm.chat().send("Go.", regex="[a-f]{3}", logit_bias=bias).text.isalpha()
    assert max(llm.chat().send("Go.", logit_bias=bias, max_tokens=3).tokens) >= tokenizer.vocab_size


@pytest.mark.slow
def test_the_demo_writes_json_of_a_schema(demo: mm.LLM) -> None:
    validator, stopped = Draft202012Validator(SCHEMA), 0
    for n in range(10):
        options = {"temperature": [0.0, 1.5][n % 2], "seed": n, "max_tokens": 150}
        answer = demo.chat().send(f"Describe item {n} as JSON.", json_schema=SCHEMA, **options)
        if answer.finish_reason == "stop":
            stopped += 1
            validator.validate(json.loads(answer.text))
    assert stopped >= 10 * 0.95
