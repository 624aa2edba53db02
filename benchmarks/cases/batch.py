"""Several prompts answered together: beside one after another, and beside mlx_lm.batch_generate."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

from mlx_lm import batch_generate

from benchmarks.paired import OURS, Result, Row, interleave
from benchmarks.sides import CHUNKS, demo, prompt, synthetic
from mistral_mlx.llm import LLM

NEW_TOKENS = 32
ROWS = (1, 2, 4, 16, 32)
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village at the end of a long valley, there lived",
    "def fibonacci(n):\n",
    "Water boils at a hundred degrees because",
    "Dear Sir or Madam,\n\nI am writing to you about the bill of last month, in which I found several lines that",
    "The three laws of robotics are",
    "A recipe for bread. You need flour, water, salt, yeast, and an oven that becomes really hot. First",
    "In 1969",
)


def measure(rounds: int) -> Result:
    """Seconds for all answers."""
    sides, llm = demo()
    prompts = [llm.encode(text) for text in PROMPTS]
    together, theirs = partial(_ours, llm, prompts), partial(_theirs, sides.theirs, sorted(llm.stop_ids), prompts)
    together(), theirs()  # compiled by then
    ours, apart, peer = interleave(rounds, together, partial(_in_sequence, llm, prompts), theirs)
    rows = [
        Row.of("demo, 8 prompts, together", "s", ours, apart, 3.0, f"{OURS} one after another"),
        Row.of("demo, 8 prompts, together", "s", ours, peer, 1.0),
    ]
    small = synthetic("chat")
    for count in ROWS:
        prompts = [prompt(64, small.config, seed) for seed in range(count)]
        once: list[Callable[[], float]] = [
            partial(_ours, small.llm, prompts),
            partial(_theirs, small.theirs, [], prompts),
        ]
        interleave(1, *once)
        rows.append(Row.of(f"chat, {count} rows", "s", *interleave(rounds, *once), target=1.0))
    return Result(
        "batch", rows, CHUNKS, {"new_tokens": NEW_TOKENS, "prompt_tokens": [len(llm.encode(t)) for t in PROMPTS]}
    )


def _ours(llm: LLM, prompts: list[list[int]]) -> float:
    llm.forget()
    start = time.perf_counter()
    llm.batch(prompts, max_tokens=NEW_TOKENS, temperature=0.0)
    return time.perf_counter() - start


def _in_sequence(llm: LLM, prompts: list[list[int]]) -> float:
    llm.forget()
    start = time.perf_counter()
    for ids in prompts:
        llm.generate(ids, max_tokens=NEW_TOKENS, temperature=0.0)
    return time.perf_counter() - start


def _theirs(model: object, stop_ids: list[int], prompts: list[list[int]]) -> float:
    tokenizer = SimpleNamespace(eos_token_ids=stop_ids, decode=str)  # ours writes text too, but neither's is the point
    start = time.perf_counter()
    batch_generate(model, tokenizer, prompts, max_tokens=NEW_TOKENS)
    return time.perf_counter() - start
