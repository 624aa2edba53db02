"""How many bytes a model takes, told before it takes them."""

from __future__ import annotations

from dataclasses import dataclass

from mistral_mlx.backend import memory_limit
from mistral_mlx.config import ModelConfig
from mistral_mlx.engine.reading import fitting_chunk, prefill_bytes
from mistral_mlx.model.cache import cache_bytes
from mistral_mlx.model.packing import Packing


@dataclass(frozen=True)
class Memory:
    """What a model takes in bytes, with a text of some length, and what there is.

    Attributes:
        tokens: the length of the text, prompt and answer together.
        weights: all parameters, in the form in which they stand in memory.
        cache: keys and values of that many tokens.
        prefill: the most that reading a prompt takes beside these, and gives back.
        limit: what this machine has for all of it.
        chunk: tokens of the prompt that are read at a time: fewer where memory is short.
    """

    tokens: int
    weights: int
    cache: int
    prefill: int
    limit: int
    chunk: int

    @classmethod
    def predict(
        cls,
        config: ModelConfig,
        weights: int,
        tokens: int,
        itemsize: int,
        prompt: int | None = None,
        packing: Packing | None = None,
        beside: Memory | None = None,
    ) -> Memory:
        """Work it out from the architecture.

        Args:
            weights: their bytes.
            prompt: how many of the tokens are read at the beginning; all of them, if it is not said.
            itemsize: bytes of a number in activations, keys and values.
            packing: how keys and values are stored; as they are if None.
            beside: another model that is in memory too, and never reads at the same time.
        """
        prompt, limit = prompt or tokens, memory_limit()
        cache = cache_bytes(config, tokens, itemsize, packing=packing)
        others = beside.prefill if beside else 0
        if beside:
            weights, cache = weights + beside.weights, cache + beside.cache
        chunk = fitting_chunk(config, prompt, itemsize, limit - weights - cache)
        prefill = max(others, prefill_bytes(config, prompt, itemsize, chunk))
        return cls(tokens, weights, cache, prefill, limit, chunk)

    @property
    def total(self) -> int:
        """The most that is taken at once."""
        return self.weights + self.cache + self.prefill

    @property
    def fits(self) -> bool:
        """Whether this machine has it."""
        return self.total <= self.limit

    def __str__(self) -> str:
        parts = f"{_gib(self.weights)} of weights, {_gib(self.cache)} of keys and values, {_gib(self.prefill)} to read"
        return f"{self.tokens:,} tokens take {_gib(self.total)} ({parts}); this machine has {_gib(self.limit)}"


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB"
