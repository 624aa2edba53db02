"""What Prometheus reads: how much is asked, how fast answers come, what they hold of the memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from mistral_mlx.completion import Stats
from mistral_mlx.server.engine import State

_PREFIX = "mistral_mlx_"
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
_BETWEEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Stated(Protocol):
    """What can say how it stands."""

    @property
    def state(self) -> State: ...


class Metrics:
    """The figures of one server."""

    def __init__(self, engine: Stated) -> None:
        self.registry = registry = CollectorRegistry()
        registry.register(_Standing(engine))
        self._requests = Counter(f"{_PREFIX}requests", "Requests.", ["endpoint", "status"], registry=registry)
        self._prompt = Counter(f"{_PREFIX}prompt_tokens", "Tokens of prompts.", registry=registry)
        self._reused = Counter(
            f"{_PREFIX}reused_tokens", "Of these, tokens that were not read again.", registry=registry
        )
        self._completion = Counter(f"{_PREFIX}completion_tokens", "Tokens of answers.", registry=registry)

        def histogram(name: str, about: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{_PREFIX}{name}", about, buckets=buckets, registry=registry)

        self._seconds = histogram("request_seconds", "From a request to the end of its answer.", _SECONDS)
        self._first = histogram(
            "time_to_first_token_seconds", "From a request to the first token of an answer.", _SECONDS
        )
        self._between = histogram("inter_token_seconds", "Between two tokens of an answer.", _BETWEEN)
        self._rows = histogram("batch_size", "The most answers that were decoded together with one.", _ROWS)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """A request has been answered, or refused."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.observe(seconds)

    def read(self, tokens: int) -> None:
        """A prompt was read."""
        self._prompt.inc(tokens)

    def said(self, tokens: int, seconds: float, *, first: bool) -> None:
        """Tokens came, so long after those before them, or after the request."""
        self._completion.inc(tokens)
        (self._first if first else self._between).observe(seconds)

    def ended(self, stats: Stats, *, first: bool) -> None:
        """The model has ended an answer, the first to its prompt or another."""
        if first:
            self._reused.inc(stats.reused_tokens)
        if stats.completion_tokens:
            self._rows.observe(stats.batch)

    def page(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self.registry)


class _Standing(Collector):
    """What the engine holds at the moment it is asked."""

    def __init__(self, engine: Stated) -> None:
        self._engine = engine

    def collect(self) -> Iterator[Metric]:
        state = self._engine.state
        yield GaugeMetricFamily(f"{_PREFIX}queue_length", "Answers that wait to be begun.", state.waiting)
        yield GaugeMetricFamily(f"{_PREFIX}reading", "Answers whose prompts are read.", state.reading)
        yield GaugeMetricFamily(f"{_PREFIX}decoding", "Answers that are written.", state.decoding)
        yield GaugeMetricFamily(f"{_PREFIX}cache_bytes", "Bytes of keys and values in use.", state.cache_bytes)
        yield GaugeMetricFamily(f"{_PREFIX}reuse_bytes", "Bytes kept of earlier prompts.", state.reuse_bytes)
        yield GaugeMetricFamily(
            f"{_PREFIX}memory_bytes", "Bytes of all arrays, the weights among them.", state.memory_bytes
        )
