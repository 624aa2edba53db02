"""LLM.batch: each text as alone, whatever the others are, and bad requests refused before anything begins."""

from __future__ import annotations

from threading import Event
from typing import Any

import pytest

import mistral_mlx as mm
from mistral_mlx.errors import TokenizerError
from mistral_mlx.model import ring as ring_module
from mistral_mlx.text.files import Text
from tests.conftest import GOLDEN, make_model

NO_TEXT = Text(TokenizerError("none", ""), TokenizerError("none", ""), False)
PROMPTS = [[1, *range(3, 3 + n)] for n in (1, 7, 3, 60, 25, 2)] + [[1, *range(3, 60), *range(5, 60), *range(4, 50)]]


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_module, "SMALLEST_CAPACITY", 4)


def bare(**changes: Any) -> mm.LLM:
    return mm.LLM(make_model(**changes), NO_TEXT)


@pytest.mark.parametrize("window", [8, None, (None, 8)], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_each_says_what_it_says_alone(window: Any, temperature: float) -> None:
    llm = bare(sliding_window=window)
    options: dict[str, Any] = {"max_tokens": 20, "temperature": temperature, "seed": 4, "repetition_penalty": 1.1}
    together = llm.batch(PROMPTS, **options)
    for prompt, done in zip(PROMPTS, together, strict=True):
        llm.forget()
        alone = llm.generate(prompt, **options)
        assert (done.tokens, done.finish_reason) == (alone.tokens, alone.finish_reason)
        assert done.logprobs == pytest.approx(alone.logprobs, abs=2e-5)
        assert done.stats.prompt_tokens == len(prompt)


def test_more_texts_than_rows_wait_for_their_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = bare()
    alone = [llm.generate(prompt, max_tokens=9).tokens for prompt in PROMPTS]
    memory = llm.memory(200)
    monkeypatch.setattr("mistral_mlx.memory.memory_limit", lambda: memory.total + 3 * memory.cache)
    assert [done.tokens for done in llm.batch(PROMPTS, max_tokens=9)] == alone


def test_an_answer_may_reach_the_end_of_the_context() -> None:
    llm = bare(sliding_window=None, max_position_embeddings=64)
    prompts = [[1, 3, 4], [1, 5, 6, 7]]
    alone = [llm.generate(prompt, max_tokens=1000) for prompt in prompts]
    together = llm.batch(prompts, max_tokens=1000)
    assert [d.tokens for d in together] == [d.tokens for d in alone]
    assert len(together[0].tokens) == 62


def test_without_a_seed_each_has_its_own() -> None:
    first, second = bare().batch([[1, 5, 9]] * 2, temperature=3.0, max_tokens=30)
    assert first.tokens != second.tokens


def test_an_old_conversation_does_not_swell_a_batch() -> None:
    """Prompts that share one token with it bring a cache of their own size, not its."""
    llm = bare(sliding_window=2048)
    llm.generate([1, *[5] * 1900], max_tokens=2)
    done = llm.batch([[1, 6 + k, *[9] * 150] for k in range(5)], max_tokens=4)
    assert max(d.stats.cache_bytes for d in done) <= llm.memory(256).cache


def test_cancelled_before_it_begins_all_are_told() -> None:
    cancel, told = Event(), []
    cancel.set()
    done = bare().batch([[1, 2], [3]], cancel=cancel, progress=lambda *made: told.append(made))
    assert [(d.finish_reason, d.tokens) for d in done] == [("cancelled", [])] * 2
    assert told == [(1, 2), (2, 2)]


def test_a_cancelled_prompt_does_not_lose_what_was_read() -> None:
    llm = bare()
    llm.generate([1, *[5] * 300], max_tokens=2)

    class Late(Event):
        def is_set(self) -> bool:
            self.asked = getattr(self, "asked", 0) + 1
            return self.asked > 1

    llm.batch([[1, *[5] * 300, 7, 8]], cancel=Late(), max_tokens=2)
    assert llm.generate([1, *[5] * 300, 9], max_tokens=1).stats.reused_tokens == 301


@pytest.mark.parametrize("prompts", [None, 5, {}, {1: 2}, "text", b"text", [[1], []], [[1], [99]], [[1], "text"], [5]])
def test_nonsense_is_refused_and_nothing_begins(prompts: Any) -> None:
    llm = bare()
    with pytest.raises(mm.MistralError):
        llm.batch(prompts, max_tokens=2)
    assert llm.prefixes.cache_bytes == 0
    assert llm.batch([]) == []


def test_forms_and_stop_strings_hold_for_each(demo: mm.LLM) -> None:
    prompts = ["The year is ", "Her age is "]
    done = demo.batch(prompts, regex="[0-9]{2,4}", max_tokens=8, temperature=1.0, seed=1)
    assert all(d.text.isdigit() and 2 <= len(d.text) <= 4 for d in done)
    stopped = demo.batch(["One, two, three, four,", "A, B, C, D,"], stop=",", max_tokens=8)
    assert all("," not in d.text and d.finish_reason == "stop" for d in stopped)


def test_texts_that_begin_alike_are_read_once() -> None:
    llm = mm.load(GOLDEN / "window")
    shared = [1, *[5, 6, 7] * 100]
    done = llm.batch([[*shared, 8], [*shared, 9], [*shared, 10]], max_tokens=3)
    assert sorted(d.stats.reused_tokens for d in done) == [0, 301, 301]


def test_texts_that_are_the_same_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, read = bare(), []
    reading = type(llm.model).__call__
    monkeypatch.setattr(
        type(llm.model), "__call__", lambda self, ids, *a, **k: read.append(ids.size) or reading(self, ids, *a, **k)
    )
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 1.0}
    done = llm.batch([PROMPTS[3]] * 3, **options)
    assert [tokens for tokens in read if tokens > 3] == [len(PROMPTS[3])]  # steps of the batch have three
    assert [(d.stats.reading, d.stats.reused_tokens) for d in done] == [((len(PROMPTS[3]),), 0)] * 3
    assert len({tuple(d.tokens) for d in done}) == 3


def test_one_text_is_carried_on_in_several_ways() -> None:
    llm = bare()
    lanes: list[dict[str, Any]] = [{"temperature": 1.0, "seed": k, "max_tokens": 9} for k in (3, 4)]
    said: list[list[int]] = [[], []]
    for index, chunk in llm.stream_lanes(PROMPTS[3], lanes):
        said[index] += chunk.tokens
    assert said == [llm.generate(PROMPTS[3], **lane).tokens for lane in lanes]
    with pytest.raises(mm.InputError, match="lanes is"):
        llm.stream_lanes([1], {"seed": 1})  # type: ignore[arg-type]


def test_stats_tell_how_many_were_decoded_together() -> None:
    llm = bare()
    assert llm.generate([1, 5, 9], max_tokens=3).stats.batch == 1
    assert [d.stats.batch for d in llm.batch([[1, 5, 9], [1, 5], [7]], max_tokens=3)] == [3, 3, 3]
    llm.forget()
    assert [d.stats.reading for d in llm.batch([[1, 5, 9], [1, 5]], max_tokens=3)] == [(3,), (2,)]
