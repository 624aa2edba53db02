"""What the model's thread does: a conversation is put to the library, and what comes is put in words for the screen."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mistral_mlx.errors import MistralError
from tui.receipt import Receipt, make

if TYPE_CHECKING:
    from mistral_mlx import LLM, Chat, Chunk, Message


@dataclass(frozen=True)
class Ask:
    """What is to be answered.

    Attributes:
        system: what the model is told before anything else; may be empty.
        messages: the conversation; the last is the user's, a tool's, or an answer's beginning (prefix=True).
        options: fields of SamplingParams.
        tools: functions that the model may call.
        context: the most tokens that conversation and answer may have; the oldest turns are left out for it. None for
            what the model can attend to, beyond which it refuses.
    """

    system: str
    messages: list[Message]
    options: dict[str, Any] = field(default_factory=dict)
    tools: tuple[Callable[..., Any], ...] = ()
    context: int | None = None


@dataclass(frozen=True)
class Loaded:
    """The model that is loaded.

    Attributes:
        quantization: how its files store the weights, in words.
        dtype: the precision that it computes in.
        window: tokens that each one sees; None for all; words where layers differ.
        context_length: the most tokens of a conversation; None without a limit.
        weights: their bytes in memory.
        memory_limit: bytes that this machine has for weights and cache.
        instruct: whether it was trained to chat; if not, it carries texts on.
        fingerprint, build: of its weights, and of what computes here, for receipts.
    """

    name: str
    path: Path | None
    quantization: str
    dtype: str
    window: int | str | None
    context_length: int | None
    weights: int
    memory_limit: int
    instruct: bool
    kv_bits: int | None
    fingerprint: str
    build: Mapping[str, str]

    @property
    def notice(self) -> str:
        """What the user should know before writing; empty for a model that chats."""
        if self.instruct:
            return ""
        return f"{self.name} is a base model: it carries your text on as it stands, rather than answering it."


@dataclass(frozen=True)
class Forecast:
    """What an answer would read.

    Attributes:
        left_out: messages that are left out for the context.
        problem: why it would be refused: too long for the model or the memory; empty if it fits.
    """

    prompt_tokens: int
    reused_tokens: int
    left_out: int = 0
    problem: str = ""

    @property
    def fits(self) -> bool:
        return not self.problem


class Alternative(NamedTuple):
    """A token that could come next."""

    id: int
    text: str
    probability: float


def describe(name: str, llm: LLM, options: Mapping[str, Any]) -> Loaded:
    config = llm.config
    memory = llm.memory(1)
    windows = set(config.windows)
    window: int | str | None = config.windows[0]
    if len(windows) > 1:
        least = min(w for w in windows if w)
        window = f"{least:,} in {config.windows.count(least)} of {len(config.windows)} layers"
    return Loaded(
        name=name,
        path=llm.path,
        quantization=llm.stored_as,
        dtype=llm.dtype,
        window=window,
        context_length=config.context_length,
        weights=memory.weights,
        memory_limit=memory.limit,
        instruct=llm.instruct,
        kv_bits=options.get("kv_bits"),
        fingerprint=llm.fingerprint,
        build=llm.build,
    )


def seeded(ask: Ask) -> Ask:
    """The same with a seed, which the receipt then knows."""
    if ask.options.get("seed") is not None:
        return ask
    return replace(ask, options={**ask.options, "seed": secrets.randbits(32)})


def chat_of(llm: LLM, ask: Ask) -> Chat:
    """The conversation as the library holds it."""
    return llm.chat(ask.system or None, ask.messages, tools=ask.tools)


def within_context(llm: LLM, ask: Ask) -> tuple[Ask, int]:
    """The ask without its oldest turns, as many as must go for it to fit its context, and how many messages these are.

    The last question stays, whatever its length.
    """
    if ask.context is None:
        return ask, 0
    room = ask.context - llm.params(ask.options).max_tokens
    questions = [i for i, message in enumerate(ask.messages) if message.role == "user"]
    for first in questions:
        shorter = replace(ask, messages=ask.messages[first:], context=None)
        if first == questions[-1] or len(prompt_of(llm, shorter)) <= room:
            return shorter, first
    return replace(ask, context=None), 0


def prompt_of(llm: LLM, ask: Ask) -> list[int]:
    """The ids that are read."""
    return chat_of(llm, ask).encode() if llm.instruct else plain_ids(llm, ask)


def begun_ids(ask: Ask) -> tuple[int, ...] | None:
    """The ids of the answer's beginning that is to be gone on with; None if the answer is a new one."""
    last = ask.messages[-1] if ask.messages else None
    return (last.ids or ()) if last and last.prefix else None


def stream(llm: LLM, ask: Ask, **given: Any) -> Iterator[Chunk]:
    """The answer; `given` is as for `LLM.stream`."""
    return (chunk for chunk, _ in answers(llm, ask, **given))


def answers(llm: LLM, ask: Ask, **given: Any) -> Iterator[tuple[Chunk, list[Message]]]:
    """Chunks; with the last of each answer what the history keeps of it, and the results of tools that it called."""
    from mistral_mlx import Message

    begun = begun_ids(ask)
    if not llm.instruct:
        ids = list(begun or ())
        for piece in llm.stream(plain_ids(llm, ask), **given, **ask.options):
            ids += piece.tokens
            if piece.stats and ids and ids[-1] in llm.stop_ids:
                ids.pop()
            yield piece, [Message("assistant", llm.decode(ids), tuple(ids))] if piece.stats and ids else []
        return
    chat = chat_of(llm, ask)
    known = len(ask.messages) - (begun is not None) + bool(ask.system)
    chunks = chat.stream_reply(**given, **ask.options)
    chunk: Chunk | None = next(chunks, None)
    while chunk:
        if not chunk.stats:
            yield chunk, []
            chunk = next(chunks, None)
            continue
        try:
            following = next(chunks, None)  # only now does the chat keep the answer
        except BaseException:
            yield chunk, chat.messages[known:]  # which is whole, whatever became of what follows
            raise
        kept = chat.messages[known:]
        known += len(kept)
        yield chunk, kept
        chunk = following


def plain_ids(llm: LLM, ask: Ask) -> list[int]:
    """A conversation for a model that only carries texts on: an answer stands right behind what it carries on, and what
    the user says next begins a new line.
    """
    ids: list[int] = []
    for role, text, sampled in [("system", ask.system, None), *((m.role, m.content, m.ids) for m in ask.messages)]:
        if sampled:
            ids += sampled
        elif text and ids:
            ids += llm.tokenizer.encode(text if role == "assistant" else f"\n{text}", follows=True)
        elif text:
            ids += llm.encode(text)
    return ids


def receipt_of(llm: LLM, loaded: Loaded, ask: Ask, tokens: Sequence[int], chunk: Chunk) -> Receipt | None:
    """The receipt, once the last chunk is there."""
    if chunk.stats is None or chunk.finish_reason is None:
        return None
    return make(loaded, ask.options, prompt_of(llm, ask), tokens, chunk.finish_reason, chunk.stats)


class Said(NamedTuple):
    """A piece of an answer; with the last one what is to be kept of it.

    Attributes:
        kept: what the history has of it, with the ids that stand for it, and the results of the tools that it called.
    """

    chunk: Chunk
    kept: list[Message]
    receipt: Receipt | None


def recorded(llm: LLM, loaded: Loaded, ask: Ask, **given: Any) -> Iterator[Said]:
    """The answer with what is kept of it; where tools are run, the one to their results follows."""
    tokens: list[int] = []
    ask, left_out = within_context(llm, ask)
    for chunk, kept in answers(llm, ask, **given):
        tokens += chunk.tokens
        made = receipt_of(llm, loaded, ask, tokens, chunk)
        yield Said(chunk, kept, made and {**made, "left_out": left_out})
        if chunk.stats:
            before = ask.messages[:-1] if begun_ids(ask) is not None else ask.messages
            ask, tokens = replace(ask, messages=[*before, *kept]), []


def alternatives(llm: LLM, ask: Ask, **given: Any) -> list[Alternative] | None:
    """The likeliest next tokens, as many as the option `logprobs` says; None if it was cancelled."""
    ask, _ = within_context(llm, ask)
    begun = begun_ids(ask) or ()
    before = len(llm.decode(begun))
    for chunk in stream(llm, ask, **given):
        for top in chunk.top_logprobs:
            return [
                Alternative(i, llm.decode([*begun, i])[before:], math.exp(p))
                for i, p in top.items()
                if i not in llm.stop_ids  # with which nothing could be gone on with
            ]
    return None


def forecast(llm: LLM, ask: Ask) -> Forecast:
    """What answering would read, and whether it could."""
    ask, left_out = within_context(llm, ask)
    ids = prompt_of(llm, ask)
    prompt, reused = len(ids), llm.prefixes.reach(ids)
    try:
        llm.check_room(prompt, llm.params(ask.options).max_tokens)
    except MistralError as error:
        return Forecast(prompt, reused, left_out, error.message)
    return Forecast(prompt, reused, left_out)
