"""Speculative decoding (arXiv 2211.17192): a guess at the next tokens is checked by one step of the model.

A step over a few tokens takes hardly longer than one over a single token, for reading the weights is what costs. What
comes is what `decode` gives: each token is chosen from the model's own logits with the noise of its position, and a
draft only decides how many of them one step yields. No form is known here: what may come next would have to be too.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, MutableMapping, Sequence
from time import perf_counter
from typing import Protocol

import mlx.core as mx

from mistral_mlx.engine.choice import Chosen, Row, Token, choose, read
from mistral_mlx.engine.decode import steps
from mistral_mlx.engine.reading import Cancelled, prefill
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.errors import InputError
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.transformer import Transformer

# Tokens that a draft model reads at a time: it must not take much beside the model that it helps.
_READ = 128
# Tokens that a step may feed: few lengths, because each is a function to compile.
LENGTHS = (1, 2, 4, 8)

# Queries that share a key/value head where Metal attends in one kernel (mlx, scaled_dot_product_attention.cpp).
_FUSED_QUERIES = 32

# Plain steps: to learn what one takes, every so many rounds; and the first and longest stretch once drafts do not pay.
_MEASURED, _EVERY, _STRETCH, _LONGEST = 4, 64, 16, 256


class Drafter(Protocol):
    """What guesses how a sequence goes on."""

    def draft(self, ids: Sequence[int], count: int, row: Row, cancelled: Cancelled | None = None) -> list[int]:
        """Up to `count` tokens, at least one asked for, that may follow `ids`; none if it has no idea.

        Args:
            ids: the sequence so far, the same object each time, which only grows.
            row: how the next token will be chosen; it stays as it is.
            cancelled: once it says yes, the draft is not needed.
        """
        ...


class NgramDrafter:
    """Prompt lookup (github.com/apoorvumang/prompt-lookup-decoding): what followed when the text last ended like this.

    It remembers where each n-gram of one sequence last ended, so a token costs the same however long that becomes.
    """

    def __init__(self, longest: int = 4, shortest: int = 2) -> None:
        """Look for the last `longest` tokens, then for fewer, down to `shortest`."""
        self._sizes = range(longest, shortest - 1, -1)
        self._ends: dict[tuple[int, ...], int] = {}  # an n-gram, and the place of what followed it last
        self._read = 0

    def draft(self, ids: Sequence[int], count: int, row: Row, cancelled: Cancelled | None = None) -> list[int]:
        """What followed; where that reaches the end of the sequence, over and over, as a loop would go on."""
        for end in range(self._read, len(ids)):
            for size in self._sizes:
                if size <= end:
                    self._ends[tuple(ids[end - size : end])] = end
        self._read = len(ids)
        for size in self._sizes:
            if (end := self._ends.get(tuple(ids[-size:]), 0)) > 0:
                return [ids[end + i % (len(ids) - end)] for i in range(count)]
        return []


class ModelDrafter:
    """A smaller model with the same vocabulary, which draws with the noise that the larger one will draw with.

    It keeps its cache from one sequence to the next, and reads only what is new in it.
    """

    def __init__(self, model: Transformer, vocab_size: int) -> None:
        """Draft for a model of that vocabulary; raises InputError if it is not this one's."""
        if model.config.vocab_size != vocab_size:
            raise InputError(
                f"The draft model knows {model.config.vocab_size:,} tokens, and the model {vocab_size:,}.",
                "Draft with a smaller model of the same family, or with ngram.",
            )
        self._model = model
        self._cache = model.make_cache()
        self._held: list[int] = []  # the ids that the cache stands after
        self._ids: Sequence[int] = ()  # the sequence that was drafted for
        self._same = 0  # how many ids begin both, at least

    def draft(self, ids: Sequence[int], count: int, row: Row, cancelled: Cancelled | None = None) -> list[int]:
        """What the smaller model would say; nothing once the sequence is longer than it can attend to."""
        limit = self._model.config.context_length
        if limit is not None and len(ids) + count - 1 > limit:
            return []
        try:
            return self._draft(ids, count, row.copy(), cancelled)
        except BaseException:
            self._forget()  # a step was broken off: its layers may stand apart
            raise

    def _draft(self, ids: Sequence[int], count: int, row: Row, cancelled: Cancelled | None) -> list[int]:
        self._take_up(ids)
        cache = self._cache
        new = ids[cache.position :]
        if cache.position and len(new) <= min(2, cache.step_room):  # two where all was accepted, else one
            logits = self._feed(mx.array([new]))
        else:
            last = prefill(self._model, new, cache, chunk=_READ, cancelled=cancelled)
            if last is None:
                del self._held[cache.position :]
                return []
            logits = last[None]
        drafts = []
        for left in range(count, 0, -1):
            tokens = choose(logits, [row]).tokens
            mx.async_eval(tokens, cache.arrays())
            drafts.append(tokens)
            if left > 1:
                logits = self._feed(tokens[:, None])
        found: list[int] = mx.concatenate(drafts).tolist()  # type: ignore[assignment]
        self._held += found[:-1]
        return found

    def _feed(self, tokens: mx.array) -> mx.array:
        """Read tokens (1, T); the logits (1, vocab) after the last."""
        step = self._model.step(tokens, self._cache)
        self._cache.advance(step.rings, tokens.shape[1])
        return step.logits[:, -1]

    def _take_up(self, ids: Sequence[int]) -> None:
        """Bring the cache to the longest beginning of `ids` that it can stand after; one at least is left to read."""
        if ids is not self._ids:  # another sequence, though it may begin alike
            self._ids, self._same = ids, 0
        end = min(len(self._held), len(ids) - 1)
        same = min(self._same, end)
        while same < end and self._held[same] == ids[same]:
            same += 1
        if len(self._held) - same > self._cache.rewindable:
            self._forget()
            same = 0
        else:
            self._cache.rewind(len(self._held) - same)
        self._held[same:] = ids[same:]
        self._same = len(ids)

    def _forget(self) -> None:
        self._cache, self._held, self._same = self._model.make_cache(), [], 0


class Pace:
    """How many tokens to feed at once: what has given the most tokens a second. It changes the speed, never a token.

    A round of n tokens gives 1 + h + … + h^(n-1) of them, where a draft's token is right with probability h. That is
    held against the seconds that rounds of each length took; where plain steps win, drafts are tried again later.

    Attributes:
        drafted, accepted: tokens that were drafted and checked, and those of them that came out.
    """

    def __init__(self, seconds: MutableMapping[int, float] | None = None) -> None:
        """For one sequence, with the seconds by length that were learnt before; they are kept up to date."""
        self.drafted = self.accepted = 0
        self._seconds = {} if seconds is None else seconds
        self._hit, self._stretch, self._rounds = 1.0, _STRETCH, 0  # it hopes for the best

    def choose(self, room: int) -> tuple[int, int]:
        """How many tokens to feed next, at most `room`; if it is one, also for how many steps."""
        lengths = [n for n in LENGTHS if n <= room]
        if lengths == [1]:
            return 1, 1
        self._rounds += 1
        if self._rounds % _EVERY == 0:
            for n in self._seconds:  # what lost for a moment's reason gets another chance
                self._seconds[n] *= 0.9
        if self._rounds % _EVERY == 0 or 1 not in self._seconds:
            return 1, _MEASURED
        best = max(lengths, key=lambda n: sum(self._hit**i for i in range(n)) / self._expected(n))
        if best > 1:
            return best, 1
        stretch, self._stretch, self._hit = self._stretch, min(2 * self._stretch, _LONGEST), 1.0
        return 1, stretch

    def took(self, length: int, seconds: float) -> None:
        """Take note of a round; one that compiled something, or was held up, does not count for all that it took."""
        expected = self._expected(length) or seconds
        self._seconds[length] = 0.7 * expected + 0.3 * min(seconds, 3 * expected)

    def checked(self, drafted: int, accepted: int) -> None:
        """Take note of how much of a draft was right."""
        self.drafted += drafted
        for right in [True] * accepted + [False] * (accepted < drafted):
            self._hit += 0.2 * (right - self._hit)
        if accepted == drafted:
            self._stretch = max(_STRETCH, self._stretch // 2)

    def watch(self, tokens: Iterator[Token]) -> Generator[Token]:
        """Pass on what plain steps give, and take note of each but the first, which could not be prepared."""
        for i in itertools.count():
            began = perf_counter()
            if (token := next(tokens, None)) is None:
                return
            if i:
                self.took(1, perf_counter() - began)
            yield token

    def _expected(self, length: int) -> float:
        """Seconds of a round; one that was never tried is hoped to take no longer than a shorter one. 0: no idea."""
        return self._seconds.get(max((n for n in self._seconds if n <= length), default=0), 0.0)


def decode_speculatively(
    model: Transformer,
    logits: mx.array,
    cache: Cache,
    params: SamplingParams,
    prompt: Sequence[int],
    drafter: Drafter,
    *,
    begun: int = 0,
    pace: Pace | None = None,
    cancelled: Cancelled | None = None,
) -> Generator[Token]:
    """Generate what `decode` generates, up to `max_tokens` tokens, with the help of drafts.

    Whoever stops at a token finds the cache standing before it here too, wherever in a round that is: what the step
    stored after it is taken back before the token comes, and taken up again when the next one is asked for.

    Args:
        logits: (vocab,), of the first token to generate.
        prompt: the ids that came before.
        begun: how many of these, the last, count as generated.
        drafter: what guesses; it may be wrong.
        pace: what decides how much to guess, and counts it.
        cancelled: asked before each token; once it says yes, no more come.

    Raises:
        WeightsError: the logits are not numbers.
    """
    pace = pace or Pace()
    group = model.config.num_attention_heads // model.config.num_key_value_heads
    longest = max(2, _FUSED_QUERIES // group)
    row = Row(params, prompt, logits.shape[-1], cache.position, begun=begun)
    ids, end = list(prompt), len(prompt) + params.max_tokens
    tokens = steps(model, logits[None], cache, row, 1, cancelled=cancelled)
    while True:
        for token in tokens:
            ids.append(token.id)
            yield token
        if len(ids) == end or (cancelled and cancelled()):
            return
        began = perf_counter()
        length, count = pace.choose(min(end - len(ids), cache.step_room, longest))
        drafts = drafter.draft(ids, length - 1, row, cancelled) if length > 1 else []
        drafts = drafts[: max(n for n in LENGTHS if n <= len(drafts) + 1) - 1]
        if drafts:
            found, row = _check(model, cache, row, ids[-1], drafts)
            pace.took(1 + len(drafts), perf_counter() - began)
            pace.checked(len(drafts), len(found) - 1)
            tokens = _give(found, cache, pace, cancelled)
        else:
            step = model.step(mx.array([ids[-1:]]), cache)
            plain = steps(model, step, cache, row, min(count, end - len(ids)), cancelled=cancelled)
            del step
            tokens = pace.watch(plain)


def _check(model: Transformer, cache: Cache, row: Row, last: int, drafts: Sequence[int]) -> tuple[list[Token], Row]:
    """Feed the last token and the drafts.

    Returns:
        The tokens that come: the drafts as far as they are right, and one more; and the row after them. The cache
        stands before the first of them, and holds what the step stored of the others.
    """
    rows = row.assuming(drafts)
    step = model.step(mx.array([[last, *drafts]]), cache)
    cache.advance(step.rings, len(rows))
    cache.rewind(len(drafts))
    chosen = choose(step.logits[0], rows)
    mx.async_eval(chosen, cache.arrays())
    tokens: list[int] = chosen.tokens.tolist()  # type: ignore[assignment]
    right = next((i for i, draft in enumerate(drafts) if tokens[i] != draft), len(drafts))
    found = read(Chosen(*(each[: right + 1] for each in chosen)), rows[: right + 1])
    return found, rows[right]


def _give(found: Sequence[Token], cache: Cache, pace: Pace, cancelled: Cancelled | None) -> Generator[Token]:
    """The tokens of a round, and before each but the first the cache goes on by the one before, which it holds."""
    for i, token in enumerate(found):
        if i > 0:
            if cancelled and cancelled():
                return
            cache.advance(cache.arrays(), 1)
        pace.accepted += i + 1 < len(found)
        yield token
