"""Speculation gives what plain decoding gives, whatever is drafted and wherever it is left, only in fewer steps."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mistral_mlx.engine.choice import Row, Token
from mistral_mlx.engine.decode import decode
from mistral_mlx.engine.reading import Cancelled, prefill
from mistral_mlx.engine.sampling import SamplingParams, gumbel, keep_min_p, keep_top
from mistral_mlx.engine.score import whole_logits
from mistral_mlx.engine.speculative import (
    LENGTHS,
    Drafter,
    ModelDrafter,
    NgramDrafter,
    Pace,
    decode_speculatively,
)
from mistral_mlx.errors import InputError, WeightsError
from mistral_mlx.model import ring as ring_module
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.step import Step
from mistral_mlx.model.transformer import Transformer
from tests.conftest import TINY, make_model

WINDOWS = {"window": 8, "full": None, "mix": (None, 8)}
COMPILED = {name: make_model(sliding_window=window) for name, window in WINDOWS.items()}
MODELS = {name: make_model(sliding_window=window) for name, window in WINDOWS.items()}
SMALL = make_model(7, hidden_size=16, num_hidden_layers=1, sliding_window=8)
SHORT = make_model(8, num_hidden_layers=1, sliding_window=None, max_position_embeddings=24)  # soon at its end
for each in (*MODELS.values(), SMALL, SHORT):
    each.step = Step(each, compiled=False)  # the buckets below are too many shapes to compile
PROMPT = [3, 14, 15, 9, 26, 5, 35, 8, 9, 7, 9]
NEAR = 1e-5  # scores closer than that may swap between one shape and another
WAYS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.8},
    {"temperature": 1.5, "top_p": 0.9, "top_k": 20},
    {"temperature": 1.0, "min_p": 0.1, "logprobs": 3},
    {"repetition_penalty": 1.3, "logit_bias": {9: 2.0}},
    {"presence_penalty": 0.8, "frequency_penalty": 0.5, "temperature": 0.9, "logprobs": 1},
]


@pytest.fixture(autouse=True)
def _small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of 4, 8, 16, … so that short sequences cross many."""
    monkeypatch.setattr(ring_module, "SMALLEST_CAPACITY", 4)


class Wandering(Pace):
    """Feeds as much as chance wants."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._random = random.Random(seed)

    def choose(self, room: int) -> tuple[int, int]:
        return self._random.choice([n for n in LENGTHS if n <= room]), self._random.choice([1, 1, 1, 3])


class Eager(Pace):
    """Feeds as much as it may."""

    def choose(self, room: int) -> tuple[int, int]:
        return max(n for n in LENGTHS if n <= room), 1


class Prophet:
    """Knows what comes, but lies about each token with some probability; it counts how often it was asked."""

    def __init__(self, ids: Sequence[int], lies: float = 0.0, seed: int = 0) -> None:
        self._ids, self._lies, self._random = list(ids), lies, random.Random(seed)
        self.asked = 0

    def draft(self, ids: Sequence[int], count: int, row: Row, cancelled: Cancelled | None = None) -> list[int]:
        self.asked += 1
        coming = self._ids[len(ids) :][:count]
        return [(i + 1) % TINY.vocab_size if self._random.random() < self._lies else i for i in coming]


def drafters(model: Transformer, ids: Sequence[int], seed: int) -> dict[str, Drafter]:
    return {
        "ngram": NgramDrafter(),
        "short ngrams": NgramDrafter(2, 1),
        "another model": ModelDrafter(SMALL, TINY.vocab_size),
        "a short model": ModelDrafter(SHORT, TINY.vocab_size),
        "itself": ModelDrafter(model, TINY.vocab_size),
        "prophet": Prophet(ids),
        "liar": Prophet(ids, 1.0),
        "gossip": Prophet(ids, 0.3, seed),
    }


KINDS = list(drafters(SMALL, [], 0))


def read(model: Transformer, prompt: Sequence[int], length: int, slack: int = 128) -> tuple[mx.array, Cache]:
    """A cache that has read the prompt, with room for `length` more tokens."""
    cache = Cache(model.config, mx.float32, max_tokens=len(prompt) + length, slack=slack)
    logits = prefill(model, prompt, cache)
    assert logits is not None
    return logits, cache


def plain(model: Transformer, prompt: Sequence[int], **options: Any) -> list[Token]:
    params = SamplingParams(**options)
    logits, cache = read(model, prompt, params.max_tokens)
    return list(decode(model, logits, cache, params, prompt))


@cache
def told(name: str, options: tuple[tuple[str, Any], ...]) -> list[Token]:
    return plain(COMPILED[name], PROMPT, **dict(options))


def ids_of(tokens: Sequence[Token]) -> list[int]:
    return [token.id for token in tokens]


def gap(model: Transformer, prompt: Sequence[int], said: Sequence[int], params: SamplingParams) -> float:
    """How far apart the two best scores are that the token after `said` is chosen by."""
    row = Row(params, prompt, TINY.vocab_size, len(prompt))
    for token in said:
        row.follow(mx.array(token))
    scores = row.scores(whole_logits(model, [*prompt, *said])[-1])
    if params.temperature:
        scaled = (scores - scores.max()) / params.temperature
        kept = keep_min_p(keep_top(scaled, params.top_k, params.top_p), params.min_p)
        scores = kept + gumbel(mx.array(row.key, mx.uint32), TINY.vocab_size)
    best = np.sort(np.array(scores))[-2:]
    return float(best[1] - best[0])


@dataclass
class Case:
    """One generation, and where it is left."""

    model: str
    kind: str
    way: int
    seed: int
    slack: int
    prompt: list[int]
    length: int
    leave: int
    back: int


cases = st.builds(
    Case,
    st.sampled_from(list(MODELS)),
    st.sampled_from(KINDS),
    st.integers(0, len(WAYS) - 1),
    st.integers(0, 2**32),
    st.sampled_from([0, 1, 5, 20, 128]),
    st.lists(st.integers(0, 7), min_size=1, max_size=30),  # of few tokens, so that n-grams return
    st.integers(1, 50),
    st.integers(1, 60),
    st.integers(0, 6),
)


def check(case: Case) -> bool:
    """Hold speculation against plain decoding; returns whether the two parted at a near tie."""
    model = MODELS[case.model]
    params = SamplingParams(**WAYS[case.way], max_tokens=case.length, seed=case.seed)
    logits, cache = read(model, case.prompt, case.length, case.slack)
    expected = list(decode(model, logits, cache, params, case.prompt))
    logits, cache = read(model, case.prompt, case.length, case.slack)
    drafter = drafters(model, case.prompt + ids_of(expected), case.seed)[case.kind]
    pace = Wandering(case.seed)
    stream = decode_speculatively(model, logits, cache, params, case.prompt, drafter, pace=pace)
    got: list[Token] = []
    for token in stream:
        got.append(token)
        assert cache.position == len(case.prompt) + len(got) - 1
        if len(got) == case.leave:
            break
    stream.close()
    assert cache.position == len(case.prompt) + len(got) - 1
    assert cache.nbytes <= cache.max_bytes
    assert len(got) == min(case.leave, case.length)
    for i, (ours, theirs) in enumerate(zip(got, expected, strict=False)):
        if ours.id != theirs.id:
            distance = gap(model, case.prompt, ids_of(expected[:i]), params)
            assert distance < NEAR, f"{case} at {i}: {distance}"
            return True
        assert ours.logprob == pytest.approx(theirs.logprob, abs=5e-5)
        np.testing.assert_allclose(list(ours.top.values()), list(theirs.top.values()), atol=5e-5)
    # Taken back by some and carried on plainly, it goes on as if nothing had been guessed.
    ways = WAYS[case.way]
    if len(got) < case.length and not ways.keys() & {"presence_penalty", "repetition_penalty"}:
        back = min(case.back, cache.rewindable, len(got) - 1)
        cache.rewind(back)
        said = ids_of(got[: len(got) - back])
        logits = model(mx.array([said[-1:]]), cache)[0, -1]
        rest = SamplingParams(**ways, max_tokens=case.length - len(said), seed=case.seed)
        more = ids_of(list(decode(model, logits, cache, rest, case.prompt + said)))
        for i, (ours, theirs) in enumerate(zip(more, ids_of(expected)[len(said) :], strict=True)):
            if ours != theirs:
                distance = gap(model, case.prompt, ids_of(expected[: len(said) + i]), params)
                assert distance < NEAR, f"{case} carried on: {distance}"
                return True
    return False


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(cases)
def test_speculation_gives_what_plain_decoding_gives(case: Case) -> None:
    check(case)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_speculation_gives_what_plain_decoding_gives_thousands_of_times() -> None:
    near, count = 0, 0

    @settings(max_examples=1000, suppress_health_check=list(HealthCheck), database=None)
    @given(cases)
    def run(case: Case) -> None:
        nonlocal near, count
        near, count = near + check(case), count + 1

    run()
    print(f"{count} cases, of which {near} parted at a gap below {NEAR}")
    assert near <= count / 100


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_far_beyond_the_wrap(name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """20 windows, several turns of the ring, in the compiled steps that everyone uses."""
    monkeypatch.setattr(ring_module, "SMALLEST_CAPACITY", 256)
    model, length = COMPILED[name], 160
    options: dict[str, Any] = {"temperature": 0.7, "seed": 5, "max_tokens": length}
    expected = told(name, tuple(options.items()))
    logits, cache = read(model, PROMPT, length, slack=20)
    drafter = drafters(model, PROMPT + ids_of(expected), 1)[kind]
    pace = Eager()
    params = SamplingParams(**options)
    got = list(decode_speculatively(model, logits, cache, params, PROMPT, drafter, pace=pace))
    assert ids_of(got) == ids_of(expected)
    assert cache.position == len(PROMPT) + length - 1
    assert 0 <= pace.accepted <= pace.drafted
    if kind in ("itself", "prophet"):
        assert pace.accepted == pace.drafted
        assert pace.drafted > length * 3 / 4


# ---- one round ----------------------------------------------------------------------------------------------------


def rounds(**options: Any) -> tuple[Iterator[Token], Cache, list[int], Prophet, Pace]:
    """A prophet's rounds of 8 tokens after a first one."""
    model = MODELS["window"]
    expected = ids_of(told("window", (("max_tokens", 30),)))
    logits, cache = read(model, PROMPT, 40)
    prophet, pace = Prophet(PROMPT + expected), Eager()
    cancelled = options.pop("cancelled", None)
    params = SamplingParams(**options)
    stream = decode_speculatively(model, logits, cache, params, PROMPT, prophet, pace=pace, cancelled=cancelled)
    return stream, cache, expected, prophet, pace


@pytest.mark.parametrize("length", range(1, 19))
def test_max_tokens_ends_a_round(length: int) -> None:
    stream, cache, expected, prophet, pace = rounds(max_tokens=length)
    assert ids_of(list(stream)) == expected[:length]
    assert cache.position == len(PROMPT) + length - 1
    assert pace.accepted == pace.drafted < length
    assert prophet.asked <= 2 + 3


@pytest.mark.parametrize("leave", range(1, 19))
def test_left_within_a_round_the_cache_stands_before_the_last_token(leave: int) -> None:
    stream, cache, expected, prophet, _ = rounds(max_tokens=30)
    assert ids_of(list(itertools.islice(stream, leave))) == expected[:leave]
    stream.close()  # type: ignore[attr-defined]
    assert cache.position == len(PROMPT) + leave - 1
    assert prophet.asked == -(-(leave - 1) // 8)  # what was not asked for has not been computed
    logits = MODELS["window"](mx.array([expected[leave - 1 : leave]]), cache)[0, -1]
    rest = decode(MODELS["window"], logits, cache, SamplingParams(max_tokens=30 - leave), PROMPT)
    assert ids_of(list(rest)) == expected[leave:]


def test_what_a_rejected_draft_overwrote_cannot_be_taken_back() -> None:
    """A round of 8 pushes 8 tokens out of the ring, though 1 comes of it."""
    logits, cache = read(MODELS["window"], PROMPT * 3, 40, slack=10)
    liar = Prophet([*PROMPT * 3, *ids_of(plain(MODELS["window"], PROMPT * 3, max_tokens=20))], 1.0)
    params = SamplingParams(max_tokens=20)
    stream = decode_speculatively(MODELS["window"], logits, cache, params, PROMPT * 3, liar, pace=Eager())
    next(stream)
    assert (cache.rewindable, cache.step_room) == (11, 3)
    for left in (10, 10, 11, 4):  # rounds of 2 and 2, a plain step, and a round of 8 where the ring has turned
        next(stream)
        assert cache.rewindable == left


@pytest.mark.parametrize("after", [0, 1, 4, 9, 10])
def test_cancelling_stops_before_the_next_token(after: int) -> None:
    seen: list[int] = []
    stream, cache, expected, _, _ = rounds(max_tokens=30, cancelled=lambda: len(seen) == after)
    for token in stream:
        seen.append(token.id)
    assert seen == expected[:after]
    assert cache.position == max(len(PROMPT), len(PROMPT) + after - 1)


def test_cancelling_while_the_draft_model_reads_the_prompt() -> None:
    model, answers = MODELS["window"], itertools.chain([False, False], itertools.repeat(True))
    logits, cache = read(model, PROMPT, 20)
    drafter = ModelDrafter(SMALL, TINY.vocab_size)
    params = SamplingParams(max_tokens=20)
    stream = decode_speculatively(
        model, logits, cache, params, PROMPT, drafter, pace=Eager(), cancelled=lambda: next(answers)
    )
    assert len(list(stream)) == 1
    assert cache.position == len(PROMPT)
    row = Row(params, PROMPT, TINY.vocab_size, len(PROMPT))
    assert len(drafter.draft(PROMPT, 3, row)) == 3  # and drafts on when it is asked again


def test_weights_that_give_no_numbers_are_an_error() -> None:
    model = make_model()
    logits, cache = read(model, PROMPT, 20)
    stream = decode_speculatively(
        model, logits, cache, SamplingParams(max_tokens=20), PROMPT, Prophet([0] * 99), pace=Eager()
    )
    next(stream)
    model.model.norm.weight = model.model.norm.weight * mx.nan
    with pytest.raises(WeightsError, match=f"position {len(PROMPT) + 1} is not a number"):
        next(stream)


def test_no_more_queries_share_a_head_than_metal_takes_at_once() -> None:
    """Four query heads on one key/value head: 8 tokens; sixteen on one: 2."""
    for kv_heads, heads, most in ((1, 4, 8), (1, 16, 2), (1, 8, 4), (1, 64, 2)):
        model = make_model(num_attention_heads=heads, num_key_value_heads=kv_heads)
        logits, cache = read(model, PROMPT, 40)
        pace = Eager()
        prophet = Prophet(PROMPT + ids_of(plain(model, PROMPT, max_tokens=20)))
        lengths: list[int] = []
        pace.took = lambda length, seconds, seen=lengths: seen.append(length)  # type: ignore[method-assign,misc]
        list(decode_speculatively(model, logits, cache, SamplingParams(max_tokens=20), PROMPT, prophet, pace=pace))
        assert max(lengths) == most


def test_memory_of_a_long_generation_is_constant() -> None:
    """Neither cache is ever held twice, and nothing grows."""
    model = make_model(sliding_window=8)
    logits, cache = read(model, PROMPT, 200)
    drafter = ModelDrafter(make_model(sliding_window=8), TINY.vocab_size)
    active: list[int] = []
    for _ in decode_speculatively(
        model, logits, cache, SamplingParams(max_tokens=200), PROMPT, drafter, pace=Wandering(1)
    ):
        active.append(mx.get_active_memory())
    assert cache.nbytes == cache.max_bytes == 34_816
    assert max(active[100:]) - mx.get_active_memory() <= 8192  # logits of one round or another


# ---- drafters -----------------------------------------------------------------------------------------------------


def row_at(position: int, **options: Any) -> Row:
    return Row(SamplingParams(**options), [], TINY.vocab_size, position)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=60), st.lists(st.integers(1, 5), max_size=20))
def test_an_ngram_is_found_where_it_last_stood(ids: list[int], cuts: list[int]) -> None:
    """However it was told of the text, as reading all of it would find."""
    drafter, so_far = NgramDrafter(), ids[:1]
    for cut in [*cuts, len(ids)]:
        so_far += ids[len(so_far) :][:cut]
        expected: list[int] = []
        for size, end in itertools.product((4, 3, 2), range(len(so_far) - 1, 0, -1)):
            if size <= end and so_far[end - size : end] == so_far[-size:]:
                expected = list(itertools.islice(itertools.cycle(so_far[end:]), 7))
                break
        assert drafter.draft(so_far, 7, row_at(len(so_far))) == expected


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_draft_model_says_what_it_would_have_said_alone(data: st.DataObject) -> None:
    """Through whatever sequences it is led, rewound or begun anew, before and after its ring has turned."""
    drafter = ModelDrafter(SMALL, TINY.vocab_size)
    tokens = st.integers(0, TINY.vocab_size - 1)
    ids = data.draw(st.lists(tokens, min_size=1, max_size=40))
    for _ in range(4):
        if data.draw(st.booleans()):
            ids = [*ids[: data.draw(st.integers(1, len(ids)))], *data.draw(st.lists(tokens, max_size=200))]
        options = {"temperature": data.draw(st.sampled_from([0.0, 1.0])), "seed": 4}
        count = data.draw(st.integers(1, 7))
        draft = drafter.draft(ids, count, row_at(len(ids), **options))
        assert draft == ids_of(plain(SMALL, ids, **options, max_tokens=count))
        ids += [*draft[: data.draw(st.integers(0, count))], data.draw(tokens)]


def test_a_draft_model_reads_only_what_is_new(monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[int] = []
    step = SMALL.step
    monkeypatch.setattr(SMALL, "step", lambda tokens, cache: fed.append(tokens.shape[1]) or step(tokens, cache))
    drafter, ids = ModelDrafter(SMALL, TINY.vocab_size), list(range(30))
    first = drafter.draft(ids, 4, row_at(30))
    assert fed == [1, 1, 1]
    fed.clear()
    ids += [*first, 1]  # all of it was right
    drafter.draft(ids, 4, row_at(35))
    assert fed == [2, 1, 1, 1]
    fed.clear()
    ids += [(drafter._held[35] + 1) % TINY.vocab_size]  # none of it was
    drafter.draft(ids, 4, row_at(36))
    assert fed == [1, 1, 1, 1]


def test_a_draft_model_that_was_interrupted_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter, ids, step = ModelDrafter(SMALL, TINY.vocab_size), list(range(30)), SMALL.step

    def interrupted(tokens: mx.array, cache: Cache) -> None:
        raise KeyboardInterrupt

    drafter.draft(ids, 4, row_at(30))
    monkeypatch.setattr(SMALL, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        drafter.draft([*ids, 5], 4, row_at(31))
    monkeypatch.setattr(SMALL, "step", step)
    ids += [6, 7]
    assert drafter.draft(ids, 4, row_at(32)) == ids_of(plain(SMALL, ids, max_tokens=4))


def test_a_draft_model_drafts_nothing_beyond_its_own_context() -> None:
    drafter = ModelDrafter(SHORT, TINY.vocab_size)
    assert len(drafter.draft([1] * 21, 4, row_at(21))) == 4
    assert drafter.draft([1] * 22, 4, row_at(22)) == []
    assert len(drafter.draft([1] * 24, 1, row_at(24))) == 1


def test_a_draft_model_with_another_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="The draft model knows 64 tokens, and the model 32,000"):
        ModelDrafter(SMALL, 32000)


# ---- distribution -------------------------------------------------------------------------------------------------


def spread(count: int) -> tuple[float, int]:
    """Chi-square of `count` samples of three tokens against the model's own probabilities, and degrees of freedom."""
    size = 4
    model = make_model(3, vocab_size=size, sliding_window=8)
    other = make_model(4, vocab_size=size, num_hidden_layers=1, sliding_window=8)
    prompt, temperature = [1, 2, 3, 0, 1, 1, 2], 1.3
    logits, cache = read(model, prompt, 3)
    drafter, pace = ModelDrafter(other, size), Eager()
    seen = np.zeros((size,) * 3)
    for seed in range(count):
        params = SamplingParams(temperature=temperature, seed=seed, max_tokens=3)
        seen[tuple(ids_of(list(decode_speculatively(model, logits, cache, params, prompt, drafter, pace=pace))))] += 1
        cache.rewind(cache.position - len(prompt))
    assert 0 < pace.accepted < pace.drafted
    expected = np.zeros_like(seen)
    for said in np.ndindex(seen.shape):
        rows = np.array(whole_logits(model, [*prompt, *said]))[len(prompt) - 1 : -1] / temperature
        chances = np.exp(rows - rows.max(-1, keepdims=True))
        expected[said] = count * np.prod((chances / chances.sum(-1, keepdims=True))[np.arange(3), list(said)])
    rare = expected < 5
    sums = [(seen[~rare], expected[~rare]), (seen[rare].sum(keepdims=True), expected[rare].sum(keepdims=True))]
    return sum(float(((s - e) ** 2 / e).sum()) for s, e in sums if e.size), int((~rare).sum())


@pytest.mark.parametrize("count", [250, pytest.param(5000, marks=pytest.mark.slow)])
def test_samples_follow_the_distribution_of_the_model(count: int) -> None:
    statistic, freedom = spread(count)
    assert freedom > 10
    assert statistic < freedom + 3.1 * (2 * freedom) ** 0.5  # p about 0.001


# ---- pace ---------------------------------------------------------------------------------------------------------


def paced(costs: dict[int, float], right: float, rounds: int = 1000, seed: int = 0) -> tuple[float, Pace]:
    """Tokens a second with drafts that are right so often, against plain steps', in a simulated time."""
    pace, chance = Pace(), random.Random(seed)
    tokens, seconds = 0, 0.0
    for _ in range(rounds):
        length, count = pace.choose(8)
        if length == 1:
            for i in range(count):
                if i:
                    pace.took(1, costs[1])
            tokens, seconds = tokens + count, seconds + count * costs[1]
            continue
        hits = next((i for i in range(length - 1) if chance.random() >= right), length - 1)
        pace.took(length, costs[length])
        pace.checked(length - 1, hits)
        tokens, seconds = tokens + hits + 1, seconds + costs[length]
    return tokens / seconds * costs[1], pace


FLAT = {1: 1.0, 2: 1.05, 4: 1.1, 8: 1.3}
STEEP = {1: 1.0, 2: 2.2, 4: 4.4, 8: 9.0}


def test_drafts_that_are_right_make_it_feed_more() -> None:
    assert paced(FLAT, 1.0)[0] > 0.9 * 8 / 1.3
    assert paced(FLAT, 0.8)[0] > 2.5
    assert paced(FLAT, 0.3)[0] > 1.1


@pytest.mark.parametrize(("costs", "right"), [(FLAT, 0.0), (STEEP, 0.0), (STEEP, 0.5), (STEEP, 1.0)])
def test_where_drafts_lose_it_falls_back_to_plain_steps(costs: dict[int, float], right: float) -> None:
    assert paced(costs, right)[0] > 0.93


def test_it_tries_again_later() -> None:
    _, pace = paced(FLAT, 0.0, 300)
    asked = 0
    for _ in range(60):  # the text changes: now everything is right
        length, count = pace.choose(8)
        asked += length > 1
        if length == 1:
            for _ in range(count - 1):
                pace.took(1, FLAT[1])
        else:
            pace.took(length, FLAT[length])
            pace.checked(length - 1, length - 1)
    assert asked > 50


def test_a_round_that_was_held_up_is_forgotten() -> None:
    _, pace = paced(FLAT, 1.0, 100)
    for _ in range(3):
        pace.took(8, 1000.0)
    lengths = []
    for _ in range(700):
        length, count = pace.choose(8)
        lengths.append(length)
        for _ in range(count):
            pace.took(length, FLAT[length])
        if length > 1:
            pace.checked(length - 1, length - 1)
    assert lengths[-10:].count(8) >= 9
