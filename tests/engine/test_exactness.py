"""Whatever is combined, the tokens are those of a model that reads the whole sequence anew for each of them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mistral_mlx as mm
from mistral_mlx.engine.reading import prefill
from mistral_mlx.engine.sampling import Noise, gumbel
from mistral_mlx.engine.score import whole_logits
from mistral_mlx.engine.speculative import LENGTHS, Pace
from mistral_mlx.model import ring as ring_module
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.fusion import fuse
from mistral_mlx.model.step import Step
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.text.files import Text
from tests.conftest import TINY, make_model

WINDOWS: dict[str, Any] = {"window": 8, "full": None, "mix": (None, 8), "two windows": (8, 13)}
NEAR = 1e-5  # scores closer than that may swap between one shape and another
LONGEST = 8


def bare(model: Transformer) -> mm.LLM:
    """A model that came without a tokenizer."""
    return mm.LLM(model, Text(mm.TokenizerError("none"), mm.TokenizerError("none"), False))


def made(window: Any, compiled: bool, fused: bool) -> mm.LLM:
    model = make_model(sliding_window=window)
    model.step = Step(model, compiled=compiled)
    if fused:
        fuse(model)
    return bare(model)


REFERENCES = {name: make_model(sliding_window=window) for name, window in WINDOWS.items()}
MODELS = {
    (name, compiled, fused): made(window, compiled, fused)
    for name, window in WINDOWS.items() for compiled in (False, True) for fused in (False, True)
}  # fmt: skip
OTHER = bare(make_model(7, hidden_size=16, num_hidden_layers=1))
OTHER.model.step = Step(OTHER.model, compiled=False)


class Wandering(Pace):
    """Feeds as much as chance wants."""

    def __init__(self, chance: random.Random, *_: Any) -> None:
        super().__init__()
        self._chance = chance

    def choose(self, room: int) -> tuple[int, int]:
        return self._chance.choice([n for n in LENGTHS if n <= room]), self._chance.choice([1, 1, 1, 3])


@dataclass
class Case:
    """Some prompts, and how they are answered.

    Attributes:
        before: (tokens that it shares with the first prompt, what follows them) of a prompt that is answered before.
        others: what is answered with it in a batch; None where it is answered alone.
    """

    window: str
    compiled: bool
    fused: bool
    draft: str | None
    prompt: list[int]
    before: tuple[int, list[int]] | None
    others: list[list[int]] | None
    chunk: int
    slack: int
    temperature: float
    length: int
    seed: int


# Of few tokens, so that n-grams return.
prompts = st.integers(0, 2**32).map(random.Random).map(lambda r: r.choices(range(3, 11), k=r.randint(1, 40)))
cases = st.builds(
    Case,
    st.sampled_from(list(WINDOWS)),
    st.booleans(),
    st.booleans(),
    st.sampled_from([None, "ngram", "itself", "other"]),
    prompts,
    st.none() | st.tuples(st.integers(1, 40), prompts),
    st.none() | st.lists(prompts, max_size=2),
    st.integers(1, 45),
    st.sampled_from([0, 3, 20, 128]),
    st.sampled_from([0.0, 0.8]),
    st.integers(1, LONGEST),
    st.integers(0, 2**32),
)


def answers(case: Case) -> list[tuple[list[int], mm.Completion]]:
    """Prompts and what the library says to them."""
    llm = MODELS[case.window, case.compiled, case.fused]
    options: dict[str, Any] = {"temperature": case.temperature, "max_tokens": case.length, "seed": case.seed}

    def read(*args: Any, **given: Any) -> mx.array | None:
        return prefill(*args, **{**given, "chunk": case.chunk})

    def make_cache(model: Transformer, max_tokens: int | None = None, *, log: int = 0) -> Cache:
        return Cache(model.config, model.dtype, max_tokens=max_tokens, slack=case.slack, log=log)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ring_module, "SMALLEST_CAPACITY", 4)
        patch.setattr("mistral_mlx.llm.prefill", read)
        patch.setattr("mistral_mlx.scheduling._Prompt.chunk", case.chunk)
        patch.setattr("mistral_mlx.llm.Pace", partial(Wandering, random.Random(case.seed)))
        patch.setattr(Transformer, "make_cache", make_cache)
        llm.forget()
        drafts: dict[str | None, Any] = {"itself": llm, "other": OTHER}
        llm.draft = drafts.get(case.draft, case.draft)
        said = []
        if case.before is not None:
            shared, rest = case.before
            before = case.prompt[:shared] + rest
            said.append((before, llm.generate(before, **options)))
        if case.others is None:
            return [*said, (case.prompt, llm.generate(case.prompt, **options))]
        together = [case.prompt, *case.others]
        return [*said, *zip(together, llm.batch(together, **options), strict=True)]


def gap(scores: mx.array) -> tuple[int, float]:
    """The best token, and how far above the next it is."""
    values = np.array(scores)
    best, second = np.argsort(-values)[:2]
    return int(best), float(values[best] - values[second])


def check(case: Case, counts: Counter[str]) -> None:
    """Hold every token against a whole pass over all before it, until one is as good as another."""
    counts["cases"] += 1
    for prompt, answer in answers(case):
        ids, said = prompt, answer.tokens
        counts["reused"] += answer.stats.reused_tokens
        counts["accepted"] += answer.stats.accepted_tokens
        assert len(said) == case.length or said[-1] in TINY.eos_token_ids
        for token in said:
            scores = whole_logits(REFERENCES[case.window], ids)[-1]
            if case.temperature:
                noise = gumbel(mx.array(Noise(case.seed).key(len(ids)), mx.uint32), TINY.vocab_size)
                scores = (scores - scores.max()) / case.temperature + noise
            best, distance = gap(scores)
            if distance <= NEAR:
                counts["near-ties"] += 1
                return
            assert token == best, f"{case}: {said} after {prompt}, at {len(ids)} {best} by {distance}"
            counts["tokens"] += 1
            ids = [*ids, token]


@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(cases)
def test_every_token_is_that_of_a_fresh_pass(case: Case) -> None:
    check(case, Counter())


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_every_token_is_that_of_a_fresh_pass_thousands_of_times() -> None:
    counts: Counter[str] = Counter()

    @settings(max_examples=3000, suppress_health_check=list(HealthCheck), database=None)
    @given(cases)
    def run(case: Case) -> None:
        check(case, counts)

    run()
    print(", ".join(f"{counts[what]:,} {what}" for what in ("cases", "tokens", "accepted", "reused", "near-ties")))
    assert min(counts["accepted"], counts["reused"]) > counts["cases"] / 50
    assert counts["near-ties"] <= counts["cases"] / 100
