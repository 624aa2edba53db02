"""Every field of a request: what it changes where it is valid, at the edges of what is, and that a refusal names it."""

from __future__ import annotations

from typing import Any

import pytest
from openai import BadRequestError

import mistral_mlx as mm
from mistral_mlx.server.asked import Asked, read_chat, read_completion
from mistral_mlx.server.faults import Refusal
from mistral_mlx.server.recall import Recall
from mistral_mlx.server.schema import ChatRequest, CompletionRequest
from mistral_mlx.server.settings import Settings
from tests.server.conftest import HELLO, Running

SETTINGS = Settings(name="tiny")
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}


def read(llm: mm.LLM, kind: str, **fields: Any) -> Asked:
    if kind == "chat":
        body = ChatRequest(**{"model": "tiny", "messages": HELLO} | fields)
        return read_chat(body, llm, SETTINGS, Recall())
    return read_completion(CompletionRequest(**{"model": "tiny", "prompt": "Hello"} | fields), llm, SETTINGS)


# Fields, and what becomes of them for the engine.
SAMPLING: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"temperature": 1.0, "top_p": 1.0, "top_k": None, "stop": ()}),
    ({"temperature": 0}, {"temperature": 0}),
    ({"temperature": 2}, {"temperature": 2}),
    ({"temperature": None}, {"temperature": 1.0}),
    ({"top_p": 0.5}, {"top_p": 0.5, "temperature": 1.0}),
    ({"top_p": 1}, {"top_p": 1.0}),
    ({"top_p": 0}, {"top_p": 1.0, "temperature": 0}),
    ({"top_k": 1}, {"top_k": 1}),
    ({"top_k": 10**30}, {"top_k": 10**30}),
    ({"min_p": 0.25}, {"min_p": 0.25}),
    ({"presence_penalty": -2}, {"presence_penalty": -2}),
    ({"frequency_penalty": 2.0}, {"frequency_penalty": 2.0}),
    ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
    ({"logit_bias": {"7": -100, "8": 1.5}}, {"logit_bias": {7: -100, 8: 1.5}}),
    ({"logit_bias": {}}, {"logit_bias": {}}),
    ({"seed": 7}, {"seed": 7}),
    ({"seed": -1}, {"seed": 2**64 - 1}),
    ({"seed": -(2**63)}, {"seed": 2**63}),
    ({"stop": "end"}, {"stop": ("end",)}),
    ({"stop": ["a", "b"]}, {"stop": ["a", "b"]}),
    ({"regex": "[0-9]+"}, {"regex": "[0-9]+"}),
    ({"user": "u", "stream": True, "stream_options": {"include_usage": True}}, {}),
]
CHAT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"max_tokens": 2048 - 27, "logprobs": 0}),  # 4096, which is more than the model attends to
    ({"max_tokens": 3}, {"max_tokens": 3}),
    ({"max_completion_tokens": 3}, {"max_tokens": 3}),
    ({"max_completion_tokens": 3, "max_tokens": 3}, {"max_tokens": 3}),
    ({"logprobs": True}, {"logprobs": 0}),
    ({"logprobs": True, "top_logprobs": 20}, {"logprobs": 20}),
    ({"response_format": {"type": "text"}}, {"json_mode": False, "json_schema": None}),
    ({"response_format": {"type": "json_object"}}, {"json_mode": True}),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
        {"json_schema": SCHEMA},
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": True, "description": "d"}}},
        {"json_schema": {"type": "object", "description": "d"}},
    ),
    ({"store": False, "metadata": {}, "modalities": ["text"], "service_tier": "auto"}, {}),
    ({"safety_identifier": "a", "prompt_cache_key": "b", "audio": None, "functions": None, "verbosity": None}, {}),
]
TEXT: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"max_tokens": 16, "logprobs": 0}),
    ({"max_tokens": 5}, {"max_tokens": 5}),
    ({"logprobs": 0}, {"logprobs": 0}),
    ({"logprobs": 5}, {"logprobs": 5}),
]


@pytest.mark.parametrize(
    ("kind", "fields", "params"),
    [
        *(("chat", *row) for row in [*SAMPLING, *CHAT]),
        *(("text", *row) for row in [*SAMPLING, *TEXT]),
    ],
    ids=str,
)
def test_a_valid_field_reaches_the_engine(
    kind: str, fields: dict[str, Any], params: dict[str, Any], llm: mm.LLM
) -> None:
    asked = read(llm, kind, **fields)
    assert len(asked.requests) == 1
    found = {name: getattr(asked.requests[0].params, name) for name in params}
    assert found == params


def test_each_answer_has_a_seed_of_its_own(llm: mm.LLM) -> None:
    for kind in ("chat", "text"):
        asked = read(llm, kind, n=3, seed=-2)
        assert [r.params.seed for r in asked.requests] == [2**64 - 2, 2**64 - 1, 0]
    several = read(llm, "text", prompt=["a", "b"], n=2, seed=5)
    assert [r.params.seed for r in several.requests] == [5, 6, 5, 6]


def test_several_answers_are_asked_for_once(llm: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, made = mm.LLM.constraint, []
    monkeypatch.setattr(mm.LLM, "constraint", lambda *given, **options: made.append(0) or whole(*given, **options))
    prefix = {"role": "assistant", "content": "[", "prefix": True}
    options: dict[str, Any] = {
        "regex": "\\[[ab]{9}",
        "max_tokens": 15,
        "temperature": 1.5,
        "messages": [*HELLO, prefix],
    }
    together = read(llm, "chat", n=3, seed=5, **options).requests
    assert len(made) == 1
    said = [""] * 3
    for index, chunk in llm.run_together(together):
        said[index] += chunk.text
    apart = [read(llm, "chat", seed=5 + i, **options).requests[0] for i in range(3)]
    assert said == ["".join(chunk.text for chunk in llm.run(each)) for each in apart]
    assert len(set(said)) > 1


def test_tools_and_what_is_chosen_of_them_change_the_prompt_and_the_form(llm: mm.LLM) -> None:
    bare, offered = read(llm, "chat").requests[0], read(llm, "chat", tools=[TOOL]).requests[0]
    assert len(offered.ids) > len(bare.ids)
    assert offered.constraint is None
    assert read(llm, "chat", tools=[TOOL], tool_choice="none").requests[0].ids == bare.ids
    for choice in ("required", {"type": "function", "function": {"name": "look"}}):
        assert read(llm, "chat", tools=[TOOL], tool_choice=choice).requests[0].constraint is not None
    assert read(llm, "chat", tools=[TOOL], parallel_tool_calls=False).requests[0].constraint is not None
    assert read(llm, "chat", tools=[], tool_choice="auto").requests[0].ids == bare.ids


def test_how_much_to_think_is_told_to_the_model(llm: mm.LLM) -> None:
    low, high = (read(llm, "chat", reasoning_effort=effort).requests[0].ids for effort in ("none", "high"))
    assert low != high


def test_the_developer_is_the_system(llm: mm.LLM) -> None:
    ids = [
        read(llm, "chat", messages=[{"role": role, "content": "Be brief."}, *HELLO]).requests[0].ids
        for role in ("system", "developer")
    ]
    assert ids[0] == ids[1]


def test_parts_of_a_message_and_what_clients_send_back(llm: mm.LLM) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]
    assert read(llm, "chat", messages=parts).requests[0].ids == read(llm, "chat").requests[0].ids
    back = {"role": "assistant", "content": "Hi", "refusal": None, "annotations": [], "audio": None, "tool_calls": None}
    plain = {"role": "assistant", "content": "Hi"}
    first, second = (read(llm, "chat", messages=[*HELLO, m, *HELLO]).requests[0].ids for m in (back, plain))
    assert first == second


def test_max_tokens_0_only_reads(llm: mm.LLM) -> None:
    assert read(llm, "text", max_tokens=0).requests[0].only_read
    assert not read(llm, "text", max_tokens=1).requests[0].only_read


def test_echo_with_logprobs_scores_the_prompt(llm: mm.LLM) -> None:
    assert read(llm, "text", echo=True, logprobs=2).requests[0].score_prompt == 2
    assert read(llm, "text", echo=True, logprobs=0).requests[0].score_prompt == 0
    assert read(llm, "text", echo=True).requests[0].score_prompt is None
    assert read(llm, "text", logprobs=2).requests[0].score_prompt is None


# ---- what is refused --------------------------------------------------------------------------------------------

BOTH: list[tuple[dict[str, Any], str]] = [
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": [1]}, "temperature"),
    ({"top_p": 1.1}, "top_p"),
    ({"top_p": -0.1}, "top_p"),
    ({"top_k": 0}, "top_k"),
    ({"min_p": 2}, "min_p"),
    ({"max_tokens": 32_769}, "max_tokens"),
    ({"logit_bias": {str(k): 0 for k in range(10_001)}}, "logit_bias"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": 10**300}, "n"),
    ({"stop": ""}, "stop"),
    ({"stop": [""]}, "stop[0]"),
    ({"stop": ["x"] * 17}, "stop"),
    ({"stop": 5}, "stop"),
    ({"stream": "yes"}, "stream"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"stream": True, "stream_options": {"other": True}}, "stream_options.other"),
    ({"seed": 2**64}, "seed"),
    ({"seed": -(2**63) - 1}, "seed"),
    ({"seed": 1.5}, "seed"),
    ({"presence_penalty": 2.01}, "presence_penalty"),
    ({"frequency_penalty": -2.01}, "frequency_penalty"),
    ({"repetition_penalty": 0}, "repetition_penalty"),
    ({"logit_bias": {"1": 101}}, "logit_bias.1"),
    ({"logit_bias": {"a": 1}}, "logit_bias.a"),
    ({"logit_bias": {"-1": 1}}, "logit_bias.-1"),
    ({"logit_bias": {"1500": 1}}, "logit_bias"),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"regex": "("}, "regex"),
    ({"regex": 1}, "regex"),
    ({"user": 5}, "user"),
    ({"nonsense": 1}, "nonsense"),
    ({"nonsense": None}, "nonsense"),
    ({"model": 5}, "model"),
    ({"model": None}, "model"),
]
REFUSED_CHAT: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "Hello"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages[0]"),
    ({"messages": [{"content": "Hello"}]}, "messages[0].role"),
    ({"messages": [{"role": "nobody", "content": "Hello"}]}, "messages[0].role"),
    ({"messages": [*HELLO, {"role": "assistant", "content": "Hi"}]}, "messages[1]"),
    ({"messages": [*HELLO, {"role": "tool", "content": "Hi", "tool_call_id": "none"}]}, "messages[1]"),
    ({"messages": [{"role": "user", "content": "Hello", "name": "me"}]}, "messages[0]"),
    ({"messages": [{"role": "user", "content": "Hello", "other": 1}]}, "messages[0]"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0]",
    ),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0]"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_completion_tokens": 0}, "max_completion_tokens"),
    ({"max_completion_tokens": 3, "max_tokens": 4}, "max_tokens"),
    ({"logprobs": 5}, "logprobs"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"response_format": {"type": "xml"}}, "response_format"),
    ({"response_format": {}}, "response_format"),
    ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nothing"}}}},
        "response_format",
    ),
    ({"response_format": {"type": "json_object"}, "regex": "a"}, "regex"),
    ({"tools": [{"type": "custom", "custom": {"name": "a"}}]}, "tools[0].type"),
    ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]"),
    (
        {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "list"}}}]},
        "tools[0].parameters",
    ),
    ({"tools": [TOOL, TOOL]}, "tools[1]"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": "some"}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "other"}}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.type"),
    ({"parallel_tool_calls": 1}, "parallel_tool_calls"),
    ({"reasoning_effort": "sideways"}, "reasoning_effort"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"store": True}, "store"),
    ({"metadata": {"a": "b"}}, "metadata"),
    ({"modalities": ["text", "audio"]}, "modalities"),
    ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"web_search_options": {}}, "web_search_options"),
    ({"functions": []}, "functions"),
    ({"function_call": "auto"}, "function_call"),
    ({"verbosity": "low"}, "verbosity"),
    ({"moderation": {"model": "omni-moderation-latest"}}, "moderation"),
    ({"prompt_cache_options": {}}, "prompt_cache_options"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    ({"best_of": 2}, "best_of"),
]
REFUSED_TEXT: list[tuple[dict[str, Any], str]] = [
    ({"prompt": None}, "prompt"),
    ({"prompt": []}, "prompt"),
    ({"prompt": [[]]}, "prompt[0]"),
    ({"prompt": [1500]}, "prompt"),
    ({"prompt": [-1]}, "prompt[0]"),
    ({"prompt": ["a", 1]}, "prompt[1]"),
    ({"prompt": {"a": 1}}, "prompt"),
    ({"prompt": ["a"] * 300}, "prompt"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"logprobs": 21}, "logprobs"),
    ({"logprobs": True}, "logprobs"),
    ({"best_of": 0}, "best_of"),
    ({"best_of": 17}, "best_of"),
    ({"best_of": 2, "n": 3}, "best_of"),
    ({"best_of": 2, "stream": True}, "best_of"),
    ({"suffix": "x", "echo": True}, "suffix"),
    ({"suffix": "x", "prompt": [5]}, "suffix"),
    ({"echo": "yes"}, "echo"),
    ({"messages": HELLO}, "messages"),
]


@pytest.mark.parametrize(
    ("kind", "fields", "param"),
    [
        *(("chat", *row) for row in [*BOTH, *REFUSED_CHAT]),
        *(("text", *row) for row in [*BOTH, *REFUSED_TEXT]),
    ],
    ids=lambda value: str(value)[:60],
)
def test_an_invalid_field_is_refused_by_its_name(
    kind: str, fields: dict[str, Any], param: str, running: Running
) -> None:
    answer = (running.chat if kind == "chat" else running.complete)(**fields)
    assert answer.status == 400, answer.body
    assert answer.error["param"] == param, answer.error
    assert answer.error["type"] == "invalid_request_error"
    assert answer.error["message"]
    assert answer.headers["content-type"] == "application/json"


def test_openais_client_raises_what_it_raises_for_openai(running: Running) -> None:
    with pytest.raises(BadRequestError) as caught:
        running.client.chat.completions.create(model="tiny", messages=HELLO, temperature=3)
    assert caught.value.param == "temperature"
    assert "temperature is 3" in caught.value.message


def test_another_model_is_not_found(running: Running) -> None:
    for answer in (running.chat(model="gpt-4"), running.complete(model="gpt-4"), running.ask("GET", "/v1/models/no")):
        assert answer.status == 404
        assert answer.error["code"] == "model_not_found"
        assert "'tiny'" in answer.error["message"]


def test_a_prompt_longer_than_the_model_attends_to(running: Running) -> None:
    answer = running.complete(prompt=[5] * 2049)
    assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")


def test_what_does_not_fit_this_machine(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise mm.OutOfMemoryError("It needs 9 GiB, and there are 8.", "Shorten the prompt.")

    monkeypatch.setattr(running.engine.llm, "check_room", full)
    answer = running.complete()
    assert (answer.status, answer.error["code"]) == (413, "out_of_memory")
    assert answer.error["message"] == "It needs 9 GiB, and there are 8. Shorten the prompt."


def test_a_refusal_of_the_library_keeps_the_place_that_it_names(llm: mm.LLM) -> None:
    with pytest.raises(Refusal) as caught:
        read(
            llm,
            "chat",
            messages=[*HELLO, *HELLO, {"role": "system", "content": "a"}, {"role": "system", "content": "b"}],
        )
    assert caught.value.param == "messages[3]"
