"""A model without a model: it says what a script tells it to, as fast as it is told to, by the methods of LLM and Chat
that the terminal chat uses. No MLX.
"""

from __future__ import annotations

import hashlib
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

from mistral_mlx.completion import Chunk, Completion, Forecast, Stats, ToolCall, ToolCallDelta
from mistral_mlx.config import ModelConfig
from mistral_mlx.errors import ContextError, InputError
from mistral_mlx.text.decoder import StopStrings
from mistral_mlx.text.messages import Message, read_messages

EOS, BOS = 2, 1
_PIECE = 3  # characters of a token
_OPTIONS = {
    "max_tokens", "temperature", "seed", "top_k", "top_p", "min_p", "stop", "logprobs", "repetition_penalty",
    "presence_penalty", "frequency_penalty", "logit_bias", "json_mode", "json_schema", "regex",
}  # fmt: skip

Progress = Callable[[int, int], None]


@dataclass
class FakeLLM:
    """A scripted model; each answer begins with the seed if `varies`, so that lanes and seeds differ.

    Attributes:
        script: from the user's last text to the answer.
        tokens_per_s: how fast it writes; 0 for as fast as it can.
        hold_s: how long each step keeps the interpreter to itself, as building a real step does.
        fail_after: tokens after which a step fails with `failure`.
        window: tokens that each one sees; None for all, of which there are at most `context_length`.
        pause_after: tokens after which it waits until it is stopped.
        thinks: what it thinks before each answer.
        calls: the tools that it calls before it answers, where it has any.
        prefill_pieces: in how many pieces a prompt is read, each of which takes `prefill_s`.
    """

    script: Callable[[str], str] = lambda text: f"You said: {text}"
    tokens_per_s: float = 0.0
    hold_s: float = 0.0
    fail_after: int | None = None
    pause_after: int | None = None
    thinks: str = ""
    calls: tuple[ToolCall, ...] = ()
    failure: Exception = field(default_factory=lambda: RuntimeError("the fake model broke"))
    prefill_pieces: int = 4
    prefill_s: float = 0.0
    varies: bool = False
    instruct: bool = True
    context_length: int = 32_768
    window: int | None = 4096
    name: str = "fake"
    dtype: str = "float32"
    stored_as: str = "4 bits / 64"
    path: Path | None = None

    def __post_init__(self) -> None:
        self.config = ModelConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, vocab_size=100_000, rms_norm_eps=1e-5, rope_theta=1e4, sliding_window=self.window,
            tie_word_embeddings=False, eos_token_ids=(EOS,), max_position_embeddings=self.context_length,
        )  # fmt: skip
        self.tokenizer = _Tokenizer()
        self.prefixes = _Known()
        self.stop_ids = frozenset({EOS})
        self.fingerprint = hashlib.sha256(self.name.encode()).hexdigest()
        self.build = {"mistral_mlx": "0", "mlx": "0", "machine": "a fake"}

    def chat(
        self,
        system: str | None = None,
        messages: Sequence[Message] = (),
        *,
        tools: Sequence[Callable[..., Any]] = (),
    ) -> FakeChat:
        return FakeChat(self, system, messages, tools)

    def encode(self, text: str) -> list[int]:
        return [BOS, *self.tokenizer.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids)

    def memory(self, tokens: int = 4096, prompt: int | None = None) -> SimpleNamespace:
        return SimpleNamespace(weights=4 * 10**9, cache=1000 * tokens, limit=16 * 10**9, fits=True)

    def params(self, options: Mapping[str, Any]) -> SimpleNamespace:
        if unknown := options.keys() - _OPTIONS:
            raise InputError(f"There is no option {', '.join(sorted(unknown))}.")
        stop = options.get("stop") or ()
        return SimpleNamespace(
            max_tokens=options.get("max_tokens", 512),
            temperature=options.get("temperature", 0.0),
            seed=options.get("seed"),
            logprobs=options.get("logprobs", 0),
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )

    def check_room(self, prompt: int, max_tokens: int) -> None:
        limit = self.config.context_length
        if limit is not None and prompt > limit:
            raise ContextError(
                f"The prompt has {prompt} tokens; this model attends to at most {limit}.",
                f"Shorten it by {prompt - limit} tokens or more.",
            )

    def forget(self) -> None:
        self.prefixes.ids = []

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        cancel: Event | None = None,
        progress: Progress | None = None,
        **options: Any,
    ) -> Iterator[Chunk]:
        ids = self.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self.run(ids, self.decode(ids), [], self.params(options), cancel, progress)

    def stream_lanes(
        self,
        prompt: str | Sequence[int],
        lanes: Sequence[Mapping[str, Any]],
        *,
        cancel: Event | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Chunk]]:
        return together([self.stream(prompt, cancel=cancel, progress=progress, **lane) for lane in lanes])

    def run(
        self,
        ids: list[int],
        asked: str,
        begun: list[int],
        params: SimpleNamespace,
        cancel: Event | None,
        progress: Progress | None,
    ) -> Iterator[Chunk]:
        """Read the ids, then say the answer to `asked`, of which the `begun` ids are there."""
        self.check_room(len(ids), params.max_tokens)
        thoughts = len(self._thoughts) - len(begun)
        return self._run(ids, self._answer(asked, begun, params), thoughts, params, cancel, progress)

    def _answer(self, asked: str, begun: list[int], params: SimpleNamespace) -> list[int]:
        """The ids that are still to come, the one that ends it among them."""
        text = self.script(asked)
        if self.varies and params.temperature:
            text = f"[{params.seed}] {text}"
        return [*self._thoughts, *self.tokenizer.encode(text), EOS][len(begun) :]

    @property
    def _thoughts(self) -> list[int]:
        return self.tokenizer.encode(self.thinks)

    def _run(
        self,
        ids: list[int],
        answer: list[int],
        thoughts: int,
        params: SimpleNamespace,
        cancel: Event | None,
        progress: Progress | None,
    ) -> Iterator[Chunk]:
        reused = self.prefixes.reach(ids)
        cuts = self._cuts(len(ids) - reused)
        read: list[int] = []
        finish = "cancelled"
        stops, said, count = StopStrings(params.stop), list(ids), 0
        for piece in [0, *cuts]:
            if cancel and cancel.is_set():
                break
            if piece:
                time.sleep(self.prefill_s)
                read.append(piece)
            if progress:
                progress(reused + sum(read), len(ids))
        else:
            first = time.perf_counter()
            for token in answer:
                if cancel and cancel.is_set():
                    break
                if count == self.fail_after:
                    raise self.failure
                if count == self.pause_after and cancel and cancel.wait():
                    break
                self._pace(first, count, cancel)
                count += 1
                said.append(token)
                piece = "" if token == EOS else self.decode([token])
                thinking = piece if count <= thoughts else ""
                text = stops.feed("" if thinking else piece)
                if token == EOS or stops.found:
                    finish = "stop"
                elif count == params.max_tokens:
                    finish = "length"
                top = [self.likeliest(token, params.logprobs)] if params.logprobs else []
                yield Chunk(text, thinking, tokens=[token], logprobs=[self.logprob(token)], top_logprobs=top)
                if finish != "cancelled":
                    break
        self.prefixes.ids = said[:-1] if count else said[: reused + sum(read)]
        yield Chunk(
            "" if stops.found else stops.flush(),
            finish_reason=finish,
            stats=Stats(
                len(ids), reused, count, ttft_s=0.21, prompt_tps=900.0, decode_tps=61.0,
                cache_bytes=131_072 * len(said), peak_memory_bytes=4 * 10**9, reading=tuple(read),
            ),
        )  # fmt: skip

    def _cuts(self, tokens: int) -> list[int]:
        each = -(-tokens // self.prefill_pieces)
        return [min(each, tokens - i) for i in range(0, tokens, each)]

    def _pace(self, first: float, count: int, cancel: Event | None) -> None:
        """Wait for the token's turn, and keep the interpreter for as long as a step does."""
        if self.tokens_per_s and (left := first + count / self.tokens_per_s - time.perf_counter()) > 0:
            time.sleep(left)
        held = time.perf_counter() + self.hold_s
        while time.perf_counter() < held:
            pass

    def logprob(self, token: int) -> float:
        return -0.05 * (1 + zlib.crc32(str(token).encode()) % 20)

    def likeliest(self, token: int, count: int) -> dict[int, float]:
        """The token, and after it as many others as are wanted."""
        others = self.tokenizer.encode("".join(f"{letter}{self.decode([token])[1:]:_<2}"[:3] for letter in "abcdefgh"))
        found = {token: self.logprob(token)}
        for other in others:
            if len(found) < count:
                found.setdefault(other, self.logprob(token) - len(found))
        return found


class FakeChat:
    """A conversation with a FakeLLM."""

    def __init__(
        self, llm: FakeLLM, system: str | None, messages: Sequence[Message], tools: Sequence[Callable[..., Any]] = ()
    ) -> None:
        before = [] if system is None else [Message("system", system)]
        self.messages: list[Message] = read_messages([*before, *messages]) if before or messages else []
        self._llm = llm
        self._tools = {tool.__name__: tool for tool in tools}

    def encode(self, text: str | None = None) -> list[int]:
        new = [] if text is None else [Message("user", text)]
        ids = [BOS]
        for message in read_messages([*self.messages, *new], unanswered=True):
            end = [] if message.prefix else [EOS]
            ids += (message.ids or self._llm.tokenizer.encode(message.content)) if message.role == "assistant" else (
                self._llm.tokenizer.encode(f"<{message.role}>{message.content}")
            )  # fmt: skip
            ids += end
        return ids

    def forecast(self, text: str | None = None) -> Forecast:
        ids = self.encode(text)
        return Forecast(len(ids), self._llm.prefixes.reach(ids))

    def send(self, text: str, **options: Any) -> Completion:
        return Completion.join(self.stream(text, **options))

    def stream(self, text: str, **options: Any) -> Iterator[Chunk]:
        return self._reply([*self.messages, Message("user", text)], options)

    def reply(self, **options: Any) -> Completion:
        return Completion.join(self.stream_reply(**options))

    def stream_reply(self, **options: Any) -> Iterator[Chunk]:
        if self._tools and self._llm.calls and self.messages[-1].role == "user":
            yield from self._call()
        yield from self._reply(self.messages, options)

    def _call(self) -> Iterator[Chunk]:
        """Call the tools; what they give is in the history."""
        calls = self._llm.calls
        ids = self._llm.tokenizer.encode(repr(calls))
        said = Message("assistant", ids=tuple(ids), tool_calls=calls)
        for index, call in enumerate(calls):
            delta = ToolCallDelta(index, call.name, call.arguments, call.id)
            yield Chunk(
                "", tool_calls=[delta], tokens=ids if not index else [], logprobs=[-0.1] * (0 if index else len(ids))
            )
        cost = Stats(len(self.encode()), 0, len(ids), 0.21, 900.0, 61.0, 0, 0)
        yield Chunk("", finish_reason="stop", stats=cost)
        results = [
            Message("tool", str(self._tools[c.name](**json.loads(c.arguments))), tool_call_id=c.id) for c in calls
        ]
        self.messages = [*self.messages, said, *results]

    def stream_lanes(
        self, lanes: Sequence[Mapping[str, Any]], *, cancel: Event | None = None, progress: Progress | None = None
    ) -> Iterator[tuple[int, Chunk]]:
        given = {"cancel": cancel, "progress": progress}
        return together(
            [FakeChat(self._llm, None, self.messages)._reply(self.messages, {**lane, **given}) for lane in lanes]
        )

    def _reply(self, messages: list[Message], given: Mapping[str, Any]) -> Iterator[Chunk]:
        options = dict(given)
        cancel, progress = options.pop("cancel", None), options.pop("progress", None)
        params = self._llm.params(options)
        ids = FakeChat(self._llm, None, messages).encode()
        last = messages[-1]
        begun = list(last.ids or self._llm.tokenizer.encode(last.content)) if last.prefix else []
        asked = next((m.content for m in reversed(messages) if m.role == "user"), "")
        chunks = self._llm.run(ids, asked, begun, params, cancel, progress)
        return self._kept(messages[:-1] if last.prefix else messages, begun, chunks)

    def _kept(self, before: list[Message], begun: list[int], chunks: Iterator[Chunk]) -> Iterator[Chunk]:
        text, ids, sampled = self._llm.decode(begun), list(begun), False
        try:
            for chunk in chunks:
                text += chunk.text
                ids += [token for token in chunk.tokens if token != EOS]
                sampled = sampled or bool(chunk.tokens)
                yield chunk
        finally:
            if sampled:
                self.messages = [*before, Message("assistant", text, tuple(ids))]


def together(lanes: Sequence[Iterator[Chunk]]) -> Iterator[tuple[int, Chunk]]:
    """A chunk of each lane in turn, until all have ended."""
    live = dict(enumerate(lanes))
    while live:
        for index, lane in list(live.items()):
            if (chunk := next(lane, None)) is None:
                del live[index]
            else:
                yield index, chunk


class _Tokenizer:
    """Three characters are a token; ids are given out as pieces are met."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._pieces: dict[int, str] = {}

    def encode(self, text: str, **_: bool) -> list[int]:
        return [self._id(text[i : i + _PIECE]) for i in range(0, len(text), _PIECE)]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._pieces.get(i, "") for i in ids)

    def _id(self, piece: str) -> int:
        if piece not in self._ids:
            self._ids[piece] = len(self._ids) + 3
            self._pieces[self._ids[piece]] = piece
        return self._ids[piece]


class _Known:
    """What was read last."""

    def __init__(self) -> None:
        self.ids: list[int] = []

    def reach(self, ids: Sequence[int]) -> int:
        same = 0
        for ours, theirs in zip(self.ids, ids[:-1], strict=False):
            if ours != theirs:
                break
            same += 1
        return same


def loader(*models: FakeLLM, weights: int = 4000, steps: int = 4) -> Callable[..., FakeLLM]:
    """What an Engine takes as `load`: it knows the models by their names, and tells its progress."""
    known = {model.name: model for model in models}

    def load(
        name: str, *, progress: Progress | None = None, loading: Progress | None = None, **options: Any
    ) -> FakeLLM:
        if name not in known:
            raise InputError(f"There is no model {name!r} on this machine.", f"Give one of: {', '.join(known)}.")
        for i in range(steps + 1):
            if loading:
                loading(weights * i // steps, weights)
        return known[name]

    return load
