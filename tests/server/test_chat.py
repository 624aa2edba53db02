"""Chat completions: whole and streamed, their calls of tools, forms, log-probabilities and costs."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.chat import ChatCompletionChunk

from mistral_mlx.completion import Chunk, ToolCallDelta
from mistral_mlx.server.answers import ChatAnswers, Served
from mistral_mlx.server.asked import Asked
from mistral_mlx.server.schema import Usage
from mistral_mlx.text.chat import MistralChat
from mistral_mlx.text.reply import Reply
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tokenizer import Tokenizer
from tests.chat_formats import DATA, SPM_FILES, tekken_of
from tests.server.conftest import HELLO, Running

WHERE = {
    "type": "object",
    "properties": {"where": {"enum": ["up", "down"]}},
    "required": ["where"],
    "additionalProperties": False,
}
LOOK = {"type": "function", "function": {"name": "look", "strict": True, "parameters": WHERE}}
FORM = {"type": "json_schema", "json_schema": {"name": "where", "schema": WHERE, "strict": True}}
# A model that talks nonsense would think for as long as it may.
NO_THOUGHTS = {"34": -100}


def joined(chunks: Iterable[ChatCompletionChunk]) -> dict[int, dict[str, Any]]:
    """What streamed choices say together."""
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            said = choices.setdefault(
                choice.index,
                {"content": "", "reasoning": "", "calls": {}, "logprobs": [], "finish": None, "role": None},
            )
            said["role"] = said.get("role") or choice.delta.role
            said["content"] += choice.delta.content or ""
            said["reasoning"] += getattr(choice.delta, "reasoning_content", None) or ""
            said["finish"] = choice.finish_reason
            said["logprobs"] += choice.logprobs.content or [] if choice.logprobs else []
            for call in choice.delta.tool_calls or []:
                before = said["calls"].setdefault(call.index, {"id": call.id, "name": "", "arguments": ""})
                assert call.function is not None
                before["name"] += call.function.name or ""
                before["arguments"] += call.function.arguments or ""
    return choices


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 3},
        {"logprobs": True, "top_logprobs": 2},
        {"temperature": 0, "stop": ["e", "t"]},
        {"tools": [LOOK], "tool_choice": "required", "logit_bias": NO_THOUGHTS},
        {"response_format": FORM},
    ],
    ids=str,
)
def test_a_streamed_answer_is_the_whole_one(fields: dict[str, Any], running: Running) -> None:
    fields = {"model": "tiny", "messages": HELLO, "seed": 11, "max_tokens": 40} | fields
    whole = running.client.chat.completions.create(**fields)
    chunks = list(running.client.chat.completions.create(**fields, stream=True, stream_options={"include_usage": True}))
    choices = joined(chunks)
    assert choices.keys() == {choice.index for choice in whole.choices}
    for choice in whole.choices:
        said = choices[choice.index]
        assert said["role"] == choice.message.role == "assistant"
        assert said["content"] == (choice.message.content or "")
        assert said["reasoning"] == (getattr(choice.message, "reasoning_content", None) or "")
        assert said["finish"] == choice.finish_reason
        told = choice.logprobs.content or [] if choice.logprobs else []
        assert [t.token for t in said["logprobs"]] == [t.token for t in told]
        assert [t.logprob for t in said["logprobs"]] == pytest.approx([t.logprob for t in told], abs=1e-4)
        calls = choice.message.tool_calls or []
        assert [(c["name"], c["arguments"]) for c in said["calls"].values()] == [
            (c.function.name, c.function.arguments)  # type: ignore[union-attr]
            for c in calls
        ]
    assert len({chunk.id for chunk in chunks}) == len({chunk.created for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert chunks[-1].choices == []
    assert whole.usage is not None
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert chunks[-1].system_fingerprint == whole.system_fingerprint


def test_what_an_answer_costs(running: Running) -> None:
    one = running.chat(seed=1, logprobs=True).json
    usage = one["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["completion_tokens"] == 8
    three = running.chat(seed=1, n=3).json["usage"]
    assert three["prompt_tokens"] == usage["prompt_tokens"]
    assert three["completion_tokens"] > usage["completion_tokens"]
    assert 0 < three["prompt_tokens_details"]["cached_tokens"] <= three["prompt_tokens"]


def test_a_streams_events_are_of_openais_form(running: Running) -> None:
    answer = running.chat(stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done = answer.events
    assert done == "[DONE]"
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all(event["object"] == "chat.completion.chunk" and "usage" not in event for event in events)
    assert all(event["choices"][0]["finish_reason"] is None for event in events[:-1])
    assert events[-1]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}


def test_the_same_seed_says_the_same(running: Running) -> None:
    said = [running.chat(seed=seed, temperature=1.5).json["choices"][0]["message"] for seed in (3, 3, 4)]
    assert said[0] == said[1] != said[2]
    first = [running.chat(**f).json["choices"][0]["message"] for f in ({"temperature": 0}, {"top_p": 0}, {"top_k": 1})]
    assert first[0] == first[1] == first[2]


def test_answers_differ_among_themselves(running: Running) -> None:
    choices = running.chat(n=3, seed=3, temperature=1.5).json["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in choices}) == 3
    assert choices[1]["message"] == running.chat(seed=4, temperature=1.5).json["choices"][0]["message"]


def test_a_stop_string_ends_an_answer_before_it(running: Running) -> None:
    said = running.chat(seed=5, max_tokens=60, logit_bias=NO_THOUGHTS).json["choices"][0]["message"]["content"]
    stop = said[len(said) // 2 : len(said) // 2 + 2]
    choice = running.chat(seed=5, max_tokens=60, logit_bias=NO_THOUGHTS, stop=stop).json["choices"][0]
    assert choice["message"]["content"] == said[: said.index(stop)]
    assert choice["finish_reason"] == "stop"


def test_a_bias_bans_and_forces(running: Running) -> None:
    token = running.engine.llm.tokenizer.encode("e")[0]
    said = running.chat(logit_bias={str(token): 100}).json["choices"][0]
    assert said["message"]["content"] == "e" * 8
    assert said["finish_reason"] == "length"


def test_logprobs_spell_the_answer(running: Running) -> None:
    choice = running.chat(seed=6, logprobs=True, top_logprobs=3, max_tokens=12).json["choices"][0]
    content = choice["logprobs"]["content"]
    assert b"".join(bytes(t["bytes"]) for t in content).decode("utf-8", "replace") == choice["message"]["content"]
    for told in content:
        assert len(told["top_logprobs"]) == 3
        assert told["top_logprobs"] == sorted(told["top_logprobs"], key=lambda t: -t["logprob"])
        assert told["logprob"] <= told["top_logprobs"][0]["logprob"] <= 0
    assert running.chat(logprobs=False).json["choices"][0]["logprobs"] is None


def test_a_tool_is_called_and_its_result_read(running: Running) -> None:
    client = running.client.chat.completions
    asked = {"model": "tiny", "tools": [LOOK], "logit_bias": NO_THOUGHTS, "seed": 1}
    first = client.create(**asked, messages=HELLO, tool_choice="required", max_tokens=90)
    choice = first.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert {c.function.name for c in choice.message.tool_calls} == {"look"}
    assert all(json.loads(c.function.arguments)["where"] in ("up", "down") for c in choice.message.tool_calls)
    results = [{"role": "tool", "tool_call_id": c.id, "content": "sky"} for c in choice.message.tool_calls]
    messages = [*HELLO, choice.message.model_dump(), *results]
    second = client.create(**asked, messages=messages, tool_choice="none", max_tokens=8)
    assert not second.choices[0].message.tool_calls
    assert second.usage.prompt_tokens > running.chat().json["usage"]["prompt_tokens"] + first.usage.completion_tokens


def test_one_call_where_several_are_not_wanted(running: Running) -> None:
    named = {"type": "function", "function": {"name": "look"}}
    fields = {"tools": [LOOK], "tool_choice": named, "parallel_tool_calls": False, "logit_bias": NO_THOUGHTS}
    for seed in range(3):
        answer = running.chat(**fields, seed=seed, max_tokens=60)
        assert len(answer.json["choices"][0]["message"]["tool_calls"]) == 1


def test_a_form_is_kept(running: Running) -> None:
    def said(**form: Any) -> str:
        answer = running.chat(**form, logit_bias=NO_THOUGHTS, seed=1, max_tokens=100)
        return str(answer.json["choices"][0]["message"]["content"])

    assert json.loads(said(response_format=FORM))["where"] in ("up", "down")
    assert len(said(regex="[ab]{4}")) == 4
    assert said(response_format={"type": "json_object"}).startswith("{")  # which may go on for longer


def test_a_prefix_is_gone_on_with(running: Running) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "Once", "prefix": True}]
    assert running.chat(messages=messages).json["choices"][0]["finish_reason"] in ("length", "stop")


# ---- what a tiny model does not say by itself ---------------------------------------------------------------------


def test_what_is_thought_is_told_apart(running: Running) -> None:
    llm = running.engine.llm
    control, said = llm.tokenizer.control, llm.tokenizer.encode("word")
    served = Served.of(llm, "tiny")
    ids = [control["[THINK]"], *said, control["[/THINK]"], *said]
    assert served.reasoned(ids) == 1 + len(said)
    answers = ChatAnswers(Asked([None], 1, 1), served, usage=False)  # type: ignore[list-item]
    (event,) = answers.events(0, Chunk("", thinking="hm"))
    assert event.choices[0].delta.model_dump(exclude_unset=True) == {"reasoning_content": "hm"}


def test_a_call_is_told_once_its_id_is_known(running: Running) -> None:
    """Some formats write it behind the arguments."""
    answers = ChatAnswers(Asked([None], 1, 1), Served.of(running.engine.llm, "tiny"), usage=False)  # type: ignore[list-item]
    late = [
        Chunk("", tool_calls=[ToolCallDelta(0, "look", '{"a"')]),
        Chunk("", tool_calls=[ToolCallDelta(0, None, ": 1}")]),
        Chunk("", tool_calls=[ToolCallDelta(0, id="abcdefghi"), ToolCallDelta(1, "find", "{", "123456789")]),
        Chunk("", tool_calls=[ToolCallDelta(1, None, "}")]),
        Chunk("", finish_reason="stop"),
    ]
    events = [
        event.choices[0].model_dump(exclude_unset=True, exclude_none=True)
        for chunk in late
        for event in answers.events(0, chunk)
    ]
    told = [call for event in events for call in event["delta"].get("tool_calls", [])]
    assert told == [
        {"index": 0, "id": "abcdefghi", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}},
        {"index": 1, "id": "123456789", "type": "function", "function": {"name": "find", "arguments": "{"}},
        {"index": 1, "function": {"arguments": "}"}},
    ]
    assert events[-1]["finish_reason"] == "tool_calls"


SNIPPETS = [
    *("look", " ", "abcdefghi", "{}", '{"a": 1}', '[{"name": "f"', ', "arguments": {"a": "b"}}]', "]"),
    *('[{"name": "", "arguments": {}}]', '[{"name": "f", "arguments": {"a": 1}, "id": "abcdefghi"}, {"name": " "}]'),
]


@pytest.mark.parametrize("name", ["v2", "v3", "v11-tekken", "v15-tekken"])
def test_streamed_or_whole_whatever_a_model_writes(name: str, tmp_path: Path) -> None:
    tokenizer: Tokenizer = (
        SentencePiece((DATA / SPM_FILES[name]).read_bytes())
        if name in SPM_FILES
        else tekken_of(name.partition("-")[0], tmp_path, size=1500)
    )
    markers = [
        i for mark, i in tokenizer.control.items() if mark.strip("[/]") in ("THINK", "TOOL_CALLS", "CALL_ID", "ARGS")
    ]
    llm: Any = SimpleNamespace(chat_format=MistralChat(tokenizer), stop_ids=frozenset())
    served, cost = Served(llm, name, None, "", 0), Usage.model_construct()  # type: ignore[arg-type]
    chance = random.Random(1)
    for _ in range(400):
        ids: list[int] = []
        for _ in range(chance.randint(1, 8)):
            ids += [chance.choice(markers)] if chance.random() < 0.5 else tokenizer.encode(chance.choice(SNIPPETS))
        reply = Reply(tokenizer)
        pieces = [*map(reply.feed, ids), reply.flush()]
        chunks = [Chunk(p.text, p.thinking, p.tool_calls) for p in pieces]
        chunks.append(Chunk("", finish_reason="stop", stats=SimpleNamespace()))  # type: ignore[arg-type]
        answers = ChatAnswers(Asked([None], 1, 1), served, usage=False)  # type: ignore[list-item]
        events = [e for chunk in chunks for e in answers.events(0, chunk)]
        streamed = joined(ChatCompletionChunk.model_validate(e.model_dump(exclude_unset=True)) for e in events)[0]
        (choice,) = answers.whole([chunks], cost).choices
        calls = [{"id": c.id, **c.function.model_dump()} for c in choice.message.tool_calls]
        assert list(streamed["calls"].values()) == calls, ids
        assert streamed["content"] == (choice.message.content or ""), ids
        assert streamed["reasoning"] == choice.message.reasoning_content, ids
        assert streamed["finish"] == choice.finish_reason, ids
        assert all(call["name"] for call in calls), ids
