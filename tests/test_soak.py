"""A chat that goes on and on: each answer is a fresh one's, and memory stays where it is."""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator

import mlx.core as mx
import pytest

import mistral_mlx as mm
from mistral_mlx.model.cache import DEFAULT_SLACK
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.text.chat import MistralChat
from mistral_mlx.text.files import Text
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tekken import Tekken
from tests.conftest import make_model

TURNS, WINDOW = 200, 64


@pytest.fixture
def exact_sizes() -> Iterator[None]:
    """MLX gives arrays what they ask for: a buffer that is used again may be larger."""
    before = mx.set_cache_limit(0)
    mx.clear_cache()
    yield
    mx.set_cache_limit(before)


def held(*models: Transformer) -> int:
    """Bytes that arrays take, compiled steps left out."""
    for model in models:
        model.step._functions.clear()
    gc.collect()
    return mx.get_active_memory()


@pytest.mark.slow
@pytest.mark.usefixtures("exact_sizes")
def test_two_hundred_turns_in_constant_memory(tokenizers: dict[str, SentencePiece | Tekken]) -> None:
    """Sent, edited and answered anew at random, drafted in the middle; memory is as counted, to 100 bytes."""
    tokenizer, chance = tokenizers["v3"], random.Random(5)
    text = Text(tokenizer, MistralChat(tokenizer), True)
    model, helper = (make_model(seed, vocab_size=tokenizer.vocab_size, sliding_window=WINDOW) for seed in (0, 0))
    llm, plain, draft = mm.LLM(model, text), mm.LLM(model, text), mm.LLM(helper, text)
    weights, largest = held(model, helper), model.make_cache().max_bytes
    chat = llm.chat("Be brief.", stable=True)
    memory: list[int] = []
    full = reused = longest = drafted = accepted = 0
    for turn in range(TURNS):
        if full and turn == full + 50:
            llm.draft = draft
        if turn == TURNS - 80:
            llm.draft = None
        options = {"max_tokens": chance.randint(1, 12), "temperature": chance.choice([0.0, 0.8]), "seed": turn}
        users = [i for i, message in enumerate(chat.messages) if message.role == "user"]
        way = chance.choice(["send"] * 5 + ["edit", "regenerate"]) if users else "send"
        if way == "send":
            answer = chat.send(f"Turn {turn}: go on, go on.", **options)
        elif way == "edit":
            answer = chat.edit(chance.choice(users[-3:]), f"Instead, in turn {turn}, this.", **options)
        else:
            answer = chat.regenerate(**options)
        kept = llm.prefixes
        if llm.draft is None:
            memory.append(held(model, helper) - weights)
            assert abs(memory[-1] - kept.cache_bytes - kept.reuse_bytes) <= 100, f"turn {turn}"
            assert kept.cache_bytes <= largest
            assert kept.reuse_bytes <= kept.max_reuse_bytes
        stats = answer.stats
        reused += stats.reused_tokens > 0
        drafted, accepted = drafted + stats.drafted_tokens, accepted + stats.accepted_tokens
        longest = max(longest, stats.prompt_tokens)
        if not full and longest > WINDOW + DEFAULT_SLACK:  # the ring has turned
            full = turn + 1
        fresh = plain.chat(messages=chat.messages[:-1], stable=True).reply(**options)
        plain.forget()
        assert fresh.stats.reused_tokens == 0
        assert (fresh.tokens, fresh.text) == (answer.tokens, answer.text), f"turn {turn}, {way}"
    print(f"{TURNS} turns, {longest:,} tokens, {reused} reused, {accepted} of {drafted} drafted; full after {full}"
          f"; {weights:,} bytes and {min(memory[full:]):,} to {max(memory[full:]):,}")  # fmt: skip
    assert longest > 10 * WINDOW
    assert full + 50 < TURNS - 80
    assert reused > 0.9 * TURNS
    assert accepted > 0
