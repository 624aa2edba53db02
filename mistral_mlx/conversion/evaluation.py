"""How two models read the same text: what a conversion costs, in the model's own terms."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from mistral_mlx.errors import InputError, TokenizerError
from mistral_mlx.llm import LLM, load
from mistral_mlx.models import Window
from mistral_mlx.text.files import open_text
from mistral_mlx.weights.checkpoint import Checkpoint

STRETCH = 512  # tokens that are read at a time, each stretch by itself

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """Two models' predictions of each token of a text, of stretches of 512 tokens read by themselves.

    Attributes:
        tokens: how many were predicted.
        perplexity_source, perplexity: exp of the mean negative log-likelihood, of the original and of its copy.
        kl: mean Kullback-Leibler divergence of the copy's predictions from the original's, in nats.
        kl_99: the divergence that 99 of 100 predictions stay below.
        same_top: the share of predictions in which both find the same token likeliest.
    """

    tokens: int
    perplexity_source: float
    perplexity: float
    kl: float
    kl_99: float
    same_top: float


def evaluate(source: LLM, copy: LLM, text: str, progress: Progress = lambda done, total: None) -> Evaluation:
    """Read a text with both.

    Args:
        progress: told (tokens read, all tokens).

    Raises:
        InputError: less than two tokens of text, or predictions that are not finite.
        TokenizerError: the model came without a tokenizer.
    """
    ids = source.encode(text)
    stretches = [ids[i : i + STRETCH] for i in range(0, len(ids), STRETCH) if len(ids) - i > 1]
    if not stretches:
        raise InputError("The text to evaluate on has less than two tokens.", "Give a longer one.")
    divergences: list[float] = []
    lost, lost_source, same, done = 0.0, 0.0, 0, 0
    progress(0, len(ids))
    for stretch in stretches:
        targets = mx.array(stretch[1:])[:, None]
        p, q = (_log_probabilities(model, stretch) for model in (source, copy))
        kl = (mx.exp(p) * (p - q)).sum(-1)
        nll, nll_source = (-mx.take_along_axis(log, targets, -1).sum() for log in (q, p))
        agree = (p.argmax(-1) == q.argmax(-1)).sum()
        mx.eval(kl, nll, nll_source, agree)
        divergences += kl.tolist()  # type: ignore[arg-type]  # of one axis, so it is a list
        lost, lost_source = lost + float(nll), lost_source + float(nll_source)
        same += int(agree)
        done += len(stretch)
        progress(done, len(ids))
    count = len(divergences)
    if not lost_source + lost + sum(divergences) < 700 * count:  # nor NaN: what exp can take
        raise InputError("The predictions are beyond all numbers.", "Weights are damaged, or have too few bits.")
    return Evaluation(
        tokens=count,
        perplexity_source=math.exp(lost_source / count),
        perplexity=math.exp(lost / count),
        kl=math.fsum(divergences) / count,
        kl_99=sorted(divergences)[math.ceil(0.99 * count) - 1],
        same_top=same / count,
    )


def text_ids(checkpoint: Checkpoint, text: str) -> list[int]:
    """A text in a model's tokens, before it is loaded.

    Raises:
        TokenizerError: the model came without a tokenizer.
        InputError: less than two tokens.
    """
    tokenizer = open_text(checkpoint.path, checkpoint.metadata, checkpoint.config.vocab_size).tokenizer
    if isinstance(tokenizer, TokenizerError):
        raise tokenizer
    ids = tokenizer.encode(text)
    if len(ids) < 2:
        raise InputError("The text has less than two tokens.", "Give a longer one.")
    return ids


def load_quietly(path: Path, window: Window = "config") -> LLM:
    """A model to read a text with; what is said of loading it does not concern who converts it."""
    log = logging.getLogger("mistral_mlx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return load(path, window=window)
    finally:
        log.setLevel(level)


def _log_probabilities(model: LLM, ids: list[int]) -> mx.array:
    """(T - 1, vocab) float32: of every token that could follow each but the last."""
    logits = model.logits(ids)[:-1]
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)
