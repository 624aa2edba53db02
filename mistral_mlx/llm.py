"""What a script holds: a model that takes text and gives text.

Joins the rooms that do not know each other: weights to a model, text to ids, the engine's ids back to text. Everything
here runs on the thread that calls it, and a model is used from the thread that loaded it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from mistral_mlx.backend import peak_memory, reset_peak_memory
from mistral_mlx.config import ModelConfig
from mistral_mlx.engine.decode import PREFILL_CHUNK, Progress, decode, prefill
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.engine.score import score, whole_logits
from mistral_mlx.errors import ContextError, InputError, TokenizerError
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.models import resolve
from mistral_mlx.text.chat import ChatFormat, Message, MistralChat, gguf_chat
from mistral_mlx.text.decoder import StreamDecoder
from mistral_mlx.text.tokenizer import GgufBpe, SentencePiece, Tokenizer, find_tokenizer
from mistral_mlx.weights.checkpoint import Checkpoint, load_model, open_checkpoint

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True)
class Stats:
    """What a generation cost.

    Attributes:
        prompt_tokens: tokens of the whole prompt, those reused from an earlier turn among them.
        reused_tokens: of these, tokens that were not read again.
        completion_tokens: tokens generated, a stop token among them.
        ttft_s: seconds from the call to the first token.
        prompt_tps: prompt tokens read per second.
        decode_tps: tokens generated per second after the first; 0 if there was only one.
        cache_bytes: bytes of keys and values at the end.
        peak_memory_bytes: the most that MLX held meanwhile, weights included.
    """

    prompt_tokens: int
    reused_tokens: int
    completion_tokens: int
    ttft_s: float
    prompt_tps: float
    decode_tps: float
    cache_bytes: int
    peak_memory_bytes: int


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer as it comes. The last one has a finish reason and the stats.

    Attributes:
        text: new text; empty while a character is incomplete.
        tokens: new ids, with `logprobs`, the log-probability that the model gave each.
        finish_reason: "stop" (a stop token), "length" (max_tokens or the context is used up), "cancelled".
    """

    text: str
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    stats: Stats | None = None


@dataclass(frozen=True)
class Completion:
    """A whole answer: its text, the ids that were sampled (a stop token is the last), and their log-probabilities."""

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: str
    stats: Stats

    @classmethod
    def join(cls, chunks: Iterable[Chunk]) -> Completion:
        """A whole stream as one."""
        every = list(chunks)  # to the very end: a chat takes note of the answer there
        last = every[-1]
        assert last.finish_reason is not None
        assert last.stats is not None
        return cls(
            text="".join(c.text for c in every),
            tokens=[i for c in every for i in c.tokens],
            logprobs=[p for c in every for p in c.logprobs],
            finish_reason=last.finish_reason,
            stats=last.stats,
        )


class LLM:
    """A loaded model.

    Attributes:
        config: the architecture.
        model: the transformer, for whoever wants arrays.
        instruct: whether it says that it was trained to chat: it brings a chat template.
    """

    def __init__(
        self, model: Transformer, tokenizer: Tokenizer | TokenizerError, chat_format: ChatFormat | None, instruct: bool
    ) -> None:
        """Put together what `load` found; an error in place of the tokenizer is raised once text is asked for."""
        self.model = model
        self.config: ModelConfig = model.config
        self.instruct = instruct
        self._tokenizer = tokenizer
        self._chat_format = chat_format

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; raises TokenizerError if the model came without one."""
        if isinstance(self._tokenizer, TokenizerError):
            raise self._tokenizer
        return self._tokenizer

    @property
    def chat_format(self) -> ChatFormat:
        """How this model writes conversations; raises TokenizerError if it does not say."""
        if self._chat_format is None:
            self.tokenizer  # noqa: B018  says more precisely what is missing
            raise TokenizerError("This model brings no chat template.", "Generate from plain text: generate, or --raw.")
        return self._chat_format

    def encode(self, text: str) -> list[int]:
        """The ids of a plain text as the model expects it to begin, with BOS where it has one."""
        bos = self.tokenizer.bos_id
        return ([] if bos is None else [bos]) + self.tokenizer.encode(text)

    def logits(self, ids: Sequence[int]) -> mx.array:
        """One whole forward pass without a cache.

        Returns:
            (T, vocab) float32: row t predicts what follows ids[t].

        Raises:
            InputError: no ids, or one outside the vocabulary.
        """
        return whole_logits(self.model, self._checked(ids))

    def score(self, ids: Sequence[int], chunk: int | None = None) -> mx.array:
        """How likely the model finds a text, read through the cache as a prompt is.

        Args:
            chunk: tokens read at a time; the scores do not depend on it.

        Returns:
            (T - 1,) float32: the log-probability of each of ids[1:] after those before it.

        Raises:
            InputError: fewer than two ids, or one outside the vocabulary.
            ContextError: more than the model can attend to.
        """
        ids = self._checked(ids)
        if len(ids) < 2:
            raise InputError("A score needs at least two tokens.", "Give a longer text.")
        if chunk is not None and chunk < 1:
            raise InputError(f"chunk is {chunk!r}.", "It must be a whole number from 1.")
        return score(self.model, ids, self._make_cache(len(ids), 0), chunk=chunk or PREFILL_CHUNK)

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Completion:
        """Carry on a text.

        Args:
            prompt: plain text, which gets a BOS where the model has one, or token ids, which are used as they are.
            options: as for `stream`.

        Raises:
            MistralError: as `stream`.
        """
        return Completion.join(self.stream(prompt, **options))

    def stream(
        self,
        prompt: str | Sequence[int],
        *,
        cancel: Event | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Iterator[Chunk]:
        """Carry on a text, piece by piece as it comes.

        Args:
            prompt: plain text, which gets a BOS where the model has one, or token ids, which are used as they are.
            cancel: once set, generation ends at the next step with finish_reason "cancelled".
            progress: told (tokens read, all tokens) while the prompt is read.
            sampling: fields of SamplingParams.

        Raises:
            InputError: an option that does not exist or is out of range, an empty prompt, an id outside the vocabulary.
            ContextError: the prompt is longer than the model can attend to.
            TokenizerError: text, and the model came without a tokenizer.
        """
        params = _params(sampling)
        ids = self._checked(self.encode(prompt) if isinstance(prompt, str) else prompt)
        cache = self._make_cache(len(ids), params.max_tokens)
        return self._run(ids, cache, 0, params, continues=True, cancel=cancel, progress=progress)

    def chat(self, system: str | None = None) -> Chat:
        """Begin a conversation.

        Raises:
            TokenizerError: the model has no chat format.
        """
        return Chat(self, system)

    def _checked(self, ids: Iterable[int]) -> list[int]:
        """The ids as Python's own integers, each of them in the vocabulary."""
        checked, size = list(ids), self.config.vocab_size
        if not checked:
            raise InputError("The prompt is empty.", "Give at least one token.")
        for i in checked:
            if isinstance(i, bool) or not isinstance(i, Integral) or not 0 <= i < size:
                raise InputError(
                    f"{i!r} is not a token id of this model.", f"Ids are whole numbers from 0 to {size - 1}."
                )
        return [int(i) for i in checked]

    def _make_cache(self, prompt: int, max_tokens: int) -> Cache:
        """A cache for a prompt and what may follow."""
        self._check_length(prompt)
        return self.model.make_cache(prompt + max_tokens)

    def _check_length(self, prompt: int) -> None:
        limit = self.config.context_length
        if limit is not None and prompt > limit:
            raise ContextError(
                f"The prompt has {prompt} tokens; this model attends to at most {limit}.",
                f"Shorten it by {prompt - limit} tokens or more.",
            )

    def _run(
        self,
        ids: list[int],
        cache: Cache,
        reused: int,
        params: SamplingParams,
        *,
        continues: bool,
        cancel: Event | None,
        progress: Progress | None,
    ) -> Iterator[Chunk]:
        """Read ids[reused:] into a cache that holds ids[:reused], then generate."""
        start = first = time.perf_counter()
        reset_peak_memory()
        cancelled: Callable[[], bool] | None = cancel.is_set if cancel else None
        # Without a tokenizer there are still ids.
        decoder = (
            None if isinstance(self._tokenizer, TokenizerError) else StreamDecoder(self._tokenizer, continues=continues)
        )
        stops = set(self.config.eos_token_ids) | (decoder.stop_ids if decoder else frozenset())
        if (limit := self.config.context_length) is not None:
            params = replace(params, max_tokens=max(1, min(params.max_tokens, limit - len(ids) + 1)))

        finish, count = "cancelled", 0
        logits = prefill(self.model, ids[reused:], cache, progress=progress, cancelled=cancelled)
        if logits is not None:
            for token in decode(self.model, logits, cache, params, cancelled=cancelled):
                if count == 0:
                    first = time.perf_counter()
                count += 1
                stopped = token.id in stops
                yield Chunk("" if stopped or not decoder else decoder.feed(token.id), [token.id], [token.logprob])
                if stopped:
                    finish = "stop"
                    break
                if count == params.max_tokens:
                    finish = "length"
        end = time.perf_counter()
        stats = Stats(
            prompt_tokens=len(ids),
            reused_tokens=reused,
            completion_tokens=count,
            ttft_s=first - start,
            prompt_tps=(len(ids) - reused) / (first - start) if first > start else 0.0,
            decode_tps=(count - 1) / (end - first) if count > 1 else 0.0,
            cache_bytes=cache.nbytes,
            peak_memory_bytes=peak_memory(),
        )
        yield Chunk(decoder.flush() if decoder else "", finish_reason=finish, stats=stats)


class Chat:
    """A conversation with a model. What was read or said before is not read again where it stands unchanged.

    Attributes:
        messages: the turns so far. A turn that was cancelled keeps what was said.
    """

    def __init__(self, llm: LLM, system: str | None = None) -> None:
        self.messages: list[Message] = [] if system is None else [Message("system", system)]
        self._llm = llm
        self._format = llm.chat_format
        self._cache = llm.model.make_cache()
        self._held: list[int] = []  # the ids that the cache stands after

    def send(self, text: str, **options: Any) -> Completion:
        """Say something and wait for the answer; options as for `LLM.stream`."""
        return Completion.join(self.stream(text, **options))

    def stream(
        self, text: str, *, cancel: Event | None = None, progress: Progress | None = None, **sampling: Any
    ) -> Iterator[Chunk]:
        """Say something and get the answer piece by piece; options and errors as for `LLM.stream`."""
        return self._reply(self.messages, text, cancel, progress, sampling)

    def regenerate(self, **options: Any) -> Completion:
        """Answer the last message anew; the former answer stays until the new one begins.

        Raises:
            InputError: nothing has been said yet.
        """
        last = max((i for i, m in enumerate(self.messages) if m.role == "user"), default=None)
        if last is None:
            raise InputError("There is no answer to replace.", "Send a message first.")
        return self.edit(last, self.messages[last].content, **options)

    def edit(
        self, index: int, text: str, *, cancel: Event | None = None, progress: Progress | None = None, **sampling: Any
    ) -> Completion:
        """Say `text` in place of messages[index]; what came after it goes once the answer begins.

        Raises:
            InputError: messages[index] is not the user's.
        """
        if not 0 <= index < len(self.messages) or self.messages[index].role != "user":
            raise InputError(f"messages[{index}] is not a message of the user.", "Give the index of one.")
        return Completion.join(self._reply(self.messages[:index], text, cancel, progress, sampling))

    def _reply(
        self,
        before: list[Message],
        text: str,
        cancel: Event | None,
        progress: Progress | None,
        sampling: dict[str, Any],
    ) -> Iterator[Chunk]:
        """Check everything, then answer `text` after the messages `before`."""
        params = _params(sampling)
        if not text:
            raise InputError("The message is empty.", "Say something.")
        messages = [*before, Message("user", text)]
        ids = self._format.encode(messages)
        self._llm._check_length(len(ids))
        return self._answer(messages, ids, params, cancel, progress)

    def _answer(
        self,
        messages: list[Message],
        ids: list[int],
        params: SamplingParams,
        cancel: Event | None,
        progress: Progress | None,
    ) -> Iterator[Chunk]:
        reused = self._take_up(ids)
        text, said = "", []
        try:
            for chunk in self._llm._run(
                ids, self._cache, reused, params, continues=False, cancel=cancel, progress=progress
            ):
                text += chunk.text
                said += chunk.tokens
                yield chunk
        except GeneratorExit:
            raise
        except BaseException:
            self._cache = self._llm.model.make_cache()  # a step was broken off: its layers may stand apart
            raise
        finally:
            # Also when the reader stopped listening: what was said stays said.
            self._held = (ids + said)[: self._cache.position]
            if said:
                self.messages = [*messages, Message("assistant", text, tuple(said))]

    def _take_up(self, ids: list[int]) -> int:
        """Bring the cache to the longest beginning of `ids` that it can stand after, and return its length."""
        same = 0
        for ours, theirs in zip(self._held, ids[:-1], strict=False):  # one id at least must be read, for its logits
            if ours != theirs:
                break
            same += 1
        if self._cache.position - same > self._cache.rewindable:
            self._cache, same = self._llm.model.make_cache(), 0
        else:
            self._cache.rewind(self._cache.position - same)
        self._held = ids[:same]
        return same


def load(model: str | Path, *, dtype: str | None = None) -> LLM:
    """Load a model.

    Args:
        model: "demo", a folder in Hugging Face's layout, or a `.gguf` file.
        dtype: float32, float16 or bfloat16 to compute in that precision; "keep" to leave quantized weights packed on
            the CPU backend, where they are expanded by default. On a GPU they always stay packed.

    Raises:
        MistralError: with what to do about it, if the model cannot be found, read, or run exactly.
    """
    checkpoint = open_checkpoint(resolve(model))
    tokenizer, chat_format, instruct = _read_text(checkpoint)
    return LLM(load_model(checkpoint, dtype), tokenizer, chat_format, instruct)


def _read_text(checkpoint: Checkpoint) -> tuple[Tokenizer | TokenizerError, ChatFormat | None, bool]:
    """The tokenizer or why there is none, the chat format, and whether the model was trained to follow it."""
    try:
        if checkpoint.metadata:
            bpe = GgufBpe(checkpoint.metadata)
            template = gguf_chat(checkpoint.metadata, bpe)
            return bpe, template, template is not None
        tokenizer = find_tokenizer(checkpoint.path)
    except TokenizerError as error:
        return error, None, False
    if tokenizer.vocab_size > checkpoint.config.vocab_size:
        problem = f"The tokenizer has {tokenizer.vocab_size} ids, the model {checkpoint.config.vocab_size}."
        return TokenizerError(problem, "The tokenizer is another model's."), None, False
    format_ = MistralChat(tokenizer) if isinstance(tokenizer, SentencePiece) else None
    return tokenizer, format_, checkpoint.states_chat_template


def _params(sampling: dict[str, Any]) -> SamplingParams:
    unknown = sampling.keys() - set(SamplingParams.names())
    if unknown:
        raise InputError(
            f"There is no option {', '.join(sorted(unknown))}.", f"Options: {', '.join(SamplingParams.names())}."
        )
    return SamplingParams(**sampling)
