"""Completions: prompts of all kinds, echoes and scores, the best of several."""

from __future__ import annotations

from typing import Any

import pytest

import mistral_mlx as mm
from tests.server.conftest import Running


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"n": 2, "prompt": ["Hello", "Bye"]},
        {"echo": True, "logprobs": 2},
        {"echo": True, "max_tokens": 0},
        {"echo": True, "max_tokens": 0, "logprobs": 1},
        {"logprobs": 3, "stop": ["a"]},
        {"suffix": "end"},
        {"max_tokens": 0},
    ],
    ids=str,
)
def test_a_streamed_text_is_the_whole_one(fields: dict[str, Any], running: Running) -> None:
    fields = {"seed": 3, "max_tokens": 12} | fields
    whole = running.complete(**fields).json
    *events, end, done = running.complete(**fields, stream=True, stream_options={"include_usage": True}).events
    assert done == "[DONE]"
    assert all(event["usage"] is None for event in events)
    assert end["choices"] == []
    assert end["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    for choice in whole["choices"]:
        pieces = [c for event in events for c in event["choices"] if c["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert pieces[-1]["finish_reason"] == choice["finish_reason"]
        if choice["logprobs"] is None:
            assert all(piece["logprobs"] is None for piece in pieces)
            continue
        for name, value in choice["logprobs"].items():
            assert [x for piece in pieces for x in piece["logprobs"][name]] == pytest.approx(value, nan_ok=True) or [
                x for piece in pieces for x in piece["logprobs"][name]
            ] == value


def test_prompts_of_every_kind(running: Running) -> None:
    llm = running.engine.llm
    ids = llm.encode("Hello")
    kinds = ["Hello", ["Hello"], ids, [ids]]
    texts = {running.complete(prompt=prompt, seed=1).json["choices"][0]["text"] for prompt in kinds}
    assert len(texts) == 1
    several = running.complete(prompt=["Hello", "Bye", "Hello"], seed=1).json
    assert [choice["index"] for choice in several["choices"]] == [0, 1, 2]
    assert several["choices"][0]["text"] == several["choices"][2]["text"] == texts.pop()
    assert several["usage"]["prompt_tokens"] == 2 * len(ids) + len(llm.encode("Bye"))


def test_an_empty_prompt_begins_with_nothing_but_the_beginning(running: Running) -> None:
    assert running.complete(prompt="").json["usage"]["prompt_tokens"] == 1


def test_an_echo_comes_before_the_answer(running: Running) -> None:
    plain = running.complete(seed=2).json["choices"][0]["text"]
    assert running.complete(seed=2, echo=True).json["choices"][0]["text"] == "Hello" + plain
    ids = running.engine.llm.encode("Hello")
    assert running.complete(seed=2, echo=True, prompt=ids).json["choices"][0]["text"] == "Hello" + plain


def test_the_scores_of_a_prompt_are_the_models(running: Running, llm: mm.LLM) -> None:
    """As evaluations ask for them: the prompt scored, and one token more that they drop."""
    ids = llm.encode("Hello there, world")
    choice = running.complete(prompt=ids, echo=True, logprobs=1, max_tokens=1, temperature=0).json["choices"][0]
    told = choice["logprobs"]
    assert len(told["tokens"]) == len(told["token_logprobs"]) == len(told["top_logprobs"]) == len(ids) + 1
    assert told["token_logprobs"][0] is None
    assert told["top_logprobs"][0] is None
    assert told["token_logprobs"][1:-1] == pytest.approx(llm.score(ids).tolist(), abs=1e-4)
    assert all(
        max(top.values()) >= p for p, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True)
    )
    assert told["text_offset"][0] == 0
    for start, end, name in zip(told["text_offset"][1:], told["text_offset"][2:], told["tokens"][1:], strict=False):
        assert choice["text"][start:end] == name
    only = running.complete(prompt=ids, echo=True, logprobs=1, max_tokens=0).json
    assert only["choices"][0]["text"] == "Hello there, world"
    assert only["choices"][0]["logprobs"]["token_logprobs"] == pytest.approx(told["token_logprobs"][:-1], nan_ok=True)
    assert only["usage"]["completion_tokens"] == 0


def test_the_best_of_several_are_given(running: Running) -> None:
    every = running.complete(n=4, seed=9, logprobs=0, temperature=1.5).json["choices"]

    def mean(choice: Any) -> float:
        scores = choice["logprobs"]["token_logprobs"]
        return float(sum(scores) / len(scores))

    best = running.complete(best_of=4, n=2, seed=9, logprobs=0, temperature=1.5).json
    assert [choice["index"] for choice in best["choices"]] == [0, 1]
    wanted = sorted(every, key=mean, reverse=True)[:2]
    assert [choice["text"] for choice in best["choices"]] == [choice["text"] for choice in wanted]
    assert best["usage"]["completion_tokens"] == sum(len(c["logprobs"]["tokens"]) for c in every)


def test_a_suffix_is_filled_before(running: Running) -> None:
    plain = running.complete(seed=1).json["usage"]["prompt_tokens"]
    assert running.complete(seed=1, suffix="the end").json["usage"]["prompt_tokens"] > plain
