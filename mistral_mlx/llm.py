"""What a script holds: a model that takes text and gives text.

Joins the rooms that do not know each other: weights to a model, text to ids, the engine's ids back to text. Everything
here runs on the thread that calls it, and a model is used from the thread that loaded it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from numbers import Integral
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from mistral_mlx.backend import peak_memory, reset_peak_memory, wire_memory
from mistral_mlx.chat import Chat
from mistral_mlx.completion import Chunk, Completion, Stats
from mistral_mlx.config import ModelConfig
from mistral_mlx.engine.decode import PREFILL_CHUNK, Progress, decode, prefill
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.engine.score import score, whole_logits
from mistral_mlx.errors import ContextError, InputError, OutOfMemoryError, TokenizerError
from mistral_mlx.memory import Memory
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.fusion import fuse
from mistral_mlx.model.packing import Packing
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.models import Window, change_window, consequence, resolve
from mistral_mlx.text.chat import ChatFormat
from mistral_mlx.text.decoder import StopStrings
from mistral_mlx.text.files import Text, open_text
from mistral_mlx.text.grammar import Form, FormMatcher, Vocabulary
from mistral_mlx.text.messages import Message
from mistral_mlx.text.reply import Piece, Reply
from mistral_mlx.text.tokenizer import Tokenizer, decode_whole
from mistral_mlx.text.tools import Tool
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.loading import load_model, plan_loading

if TYPE_CHECKING:
    import mlx.core as mx

log = logging.getLogger("mistral_mlx")

# What a model must have room for to be loaded at all.
_LEAST_TOKENS = 256


class LLM:
    """A loaded model.

    Attributes:
        config: the architecture.
        model: the transformer, for whoever wants arrays.
        instruct: whether it says that it was trained to chat: it brings a chat template.
    """

    def __init__(self, model: Transformer, text: Text) -> None:
        """Put together what `load` found; an error in place of something is raised once that is asked for."""
        self.model = model
        self.config: ModelConfig = model.config
        self.instruct = text.instruct
        self._tokenizer = text.tokenizer
        self._chat_format = text.chat_format

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer; raises TokenizerError if the model came without one."""
        if isinstance(self._tokenizer, TokenizerError):
            raise self._tokenizer
        return self._tokenizer

    @property
    def chat_format(self) -> ChatFormat:
        """How this model writes conversations; raises TokenizerError if it does not say."""
        if isinstance(self._chat_format, TokenizerError):
            raise self._chat_format
        return self._chat_format

    def encode(self, text: str) -> list[int]:
        """The ids of a plain text as the model expects it to begin, with BOS where it has one."""
        bos = self.tokenizer.bos_id
        return ([] if bos is None else [bos]) + self.tokenizer.encode(text)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of a whole sequence of ids; control tokens stand for nothing."""
        return "" if isinstance(ids, Sequence) and not ids else decode_whole(self.tokenizer, self.checked(ids))

    def logits(self, ids: Sequence[int]) -> mx.array:
        """One whole forward pass without a cache.

        Returns:
            (T, vocab) float32: row t predicts what follows ids[t].

        Raises:
            InputError: no ids, or one outside the vocabulary.
        """
        return whole_logits(self.model, self.checked(ids))

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
        ids = self.checked(ids)
        if len(ids) < 2:
            raise InputError("A score needs at least two tokens.", "Give a longer text.")
        if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 1):
            raise InputError(f"chunk is {chunk!r}.", "It must be a whole number from 1.")
        self.check_room(len(ids), 0)
        return score(self.model, ids, self.model.make_cache(len(ids)), chunk=chunk or PREFILL_CHUNK)

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
            cancel: once set, generation ends with finish_reason "cancelled": before the next token, or while the
                prompt is read before its next 512.
            progress: told (tokens read, all tokens) while the prompt is read.
            sampling: fields of SamplingParams.

        Raises:
            InputError: an option that does not exist or is out of range, an empty prompt, an id outside the vocabulary.
            ContextError: the prompt is longer than the model can attend to.
            OutOfMemoryError: keys and values of prompt and answer would not fit beside the weights.
            TokenizerError: text or a stop string, and the model came without a tokenizer.
        """
        params = self.params(sampling)
        ids = self.checked(self.encode(prompt) if isinstance(prompt, str) else prompt)
        self.check_room(len(ids), params.max_tokens)
        cache = self.model.make_cache(len(ids) + params.max_tokens)
        reply = (
            None if isinstance(self._tokenizer, TokenizerError) else Reply(self._tokenizer, continues=True, plain=True)
        )
        constraint = self.constraint(params, chat=False)
        return self.run(ids, cache, 0, params, reply, constraint, cancel=cancel, progress=progress)

    def fill(self, prefix: str, suffix: str, **options: Any) -> Completion:
        """Write what belongs between two texts, with a model that was trained to: Codestral, Mathstral.

        Args:
            options: as for `stream`.

        Raises:
            RequestError: the model was not trained to.
            MistralError: as `stream`.
        """
        return Completion.join(self.stream_fill(prefix, suffix, **options))

    def stream_fill(self, prefix: str, suffix: str, **options: Any) -> Iterator[Chunk]:
        """The same, piece by piece."""
        if not prefix and not suffix:
            raise InputError("There is nothing to fill between.", "Give a prefix or a suffix.")
        return self.stream(self.chat_format.fill(prefix, suffix), **options)

    def chat(
        self,
        system: str | Sequence[Mapping[str, Any]] | None = None,
        messages: Iterable[Message | Mapping[str, Any]] = (),
        *,
        tools: Iterable[Tool | Mapping[str, Any] | Callable[..., Any]] = (),
        stable: bool = False,
        reasoning_effort: str | None = None,
    ) -> Chat:
        """Begin a conversation, or go on with one.

        Args:
            system: what the model is told before anything else; in parts, as in OpenAI's API, where it shows how to
                think: {"type": "text", "text": …} and {"type": "thinking", "thinking": …}.
            messages: what was said before; mappings as in OpenAI's API do as well.
            tools: what the model may call: functions with type hints, or definitions in OpenAI's form.
            stable: put the system prompt and the tools into the first message of the user, where they stay, instead of
                into the last, as v2 to v11 do for tools and v2 and v3 for the system prompt. Then each turn reads only
                what is new. The model was trained on the other place, and in long conversations may heed them less.
            reasoning_effort: how much a model is to think that can be told so.

        Raises:
            TokenizerError: the model has no chat format.
            RequestError: a message or a tool that no format can express.
        """
        return Chat(self, system, messages, tools, stable=stable, reasoning_effort=reasoning_effort)

    def checked(self, ids: Iterable[int]) -> list[int]:
        """The ids as Python's own integers, each of them in the vocabulary.

        Raises:
            InputError: none at all, or something that is no id of this model.
        """
        size = self.config.vocab_size
        if isinstance(ids, (str, bytes, bytearray)):
            raise InputError(f"{ids!r} is no list of token ids.", "Text becomes one by LLM.encode.")
        try:
            checked: list[Any] = list(ids.tolist() if hasattr(ids, "tolist") else ids)  # NumPy's and MLX's arrays
        except TypeError:
            raise InputError(f"{ids!r} is no prompt.", "Give text, or a list of token ids.") from None
        if not checked:
            raise InputError("The prompt is empty.", "Give at least one token.")
        for i in checked:
            if isinstance(i, bool) or not isinstance(i, Integral) or not 0 <= int(i) < size:
                raise InputError(
                    f"{i!r} is not a token id of this model.", f"Ids are whole numbers from 0 to {size - 1}."
                )
        return [int(i) for i in checked]

    def params(self, options: Mapping[str, Any]) -> SamplingParams:
        """Sampling options as parameters that fit this model.

        Raises:
            InputError: an option that does not exist or is out of range, or a bias of an id that does not exist.
            TokenizerError: a stop string, and the model came without a tokenizer.
        """
        params = SamplingParams.of(options)
        if params.logit_bias:
            self.checked(params.logit_bias)
        if params.stop:
            _ = self.tokenizer
        return params

    def constraint(self, params: SamplingParams, *, chat: bool, tools: Sequence[Tool] = ()) -> FormMatcher | None:
        """What holds a new answer to the form that was asked for, if one was, and calls to the schemas of strict tools.

        Args:
            chat: it begins an answer, rather than carrying on a text; the model may reason first.
            tools: what it may call instead.

        Raises:
            RequestError: a form that cannot be followed.
            TokenizerError: the model came without a tokenizer.
        """
        if not params.forms and not any(tool.strict for tool in tools):
            return None
        schema = {"type": "object"} if params.json_mode else params.json_schema
        form = Form(schema, params.regex, tools)
        form.check()
        return form.begin(self._vocabulary, continues=not chat, thinks=chat)

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self.config.vocab_size, self.stop_ids)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer: the configuration's and the tokenizer's."""
        own = frozenset() if isinstance(self._tokenizer, TokenizerError) else self._tokenizer.stop_ids
        return own | set(self.config.eos_token_ids)

    def check_room(self, prompt: int, max_tokens: int) -> None:
        """Refuse what the model cannot attend to, or this machine cannot hold, before anything is allocated.

        Raises:
            ContextError, OutOfMemoryError
        """
        limit = self.config.context_length
        if limit is not None and prompt > limit:
            raise ContextError(
                f"The prompt has {prompt} tokens; this model attends to at most {limit}.",
                f"Shorten it by {prompt - limit} tokens or more.",
            )
        tokens = prompt + max_tokens if limit is None else min(prompt + max_tokens, limit)
        memory = self.memory(tokens, prompt)
        if not memory.fits:
            raise OutOfMemoryError(f"{memory}.", "Shorten the prompt or lower max_tokens.")

    def memory(self, tokens: int = 4096, prompt: int | None = None) -> Memory:
        """The bytes that this model takes at most while it reads and writes `tokens` tokens.

        Args:
            prompt: how many of them are read at the beginning; all of them, if it is not said.

        Raises:
            InputError: a length that is no whole number from 1.
            ContextError: more tokens than the model can attend to.
        """
        for name, value in (("tokens", tokens), ("prompt", tokens if prompt is None else prompt)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InputError(f"{name} is {value!r}.", "It must be a whole number from 1.")
        limit = self.config.context_length
        if limit is not None and tokens > limit:
            raise ContextError(f"This model attends to at most {limit:,} tokens, not {tokens:,}.", "Ask for fewer.")
        model = self.model
        return Memory.predict(self.config, model.nbytes, tokens, model.dtype.size, prompt, model.packing)

    def run(
        self,
        ids: list[int],
        cache: Cache,
        reused: int,
        params: SamplingParams,
        reply: Reply | None,
        constraint: FormMatcher | None,
        *,
        begun: str = "",
        cancel: Event | None,
        progress: Progress | None,
    ) -> Iterator[Chunk]:
        """Read ids[reused:] into a cache that holds ids[:reused], then generate. All of it has been checked.

        Args:
            reply: what takes the answer apart; without a tokenizer there are only ids.
            begun: text of the answer that the prompt ends with.
        """
        start = first = time.perf_counter()
        reset_peak_memory()
        cancelled: Callable[[], bool] | None = cancel.is_set if cancel else None
        stop_ids, stops = self.stop_ids, StopStrings(params.stop or ())
        if (limit := self.config.context_length) is not None:
            params = replace(params, max_tokens=max(1, min(params.max_tokens, limit - len(ids) + 1)))

        finish, count, text = "cancelled", 0, begun
        logits = prefill(self.model, ids[reused:], cache, progress=progress, cancelled=cancelled)
        if logits is not None:
            for token in decode(self.model, logits, cache, params, ids, constraint=constraint, cancelled=cancelled):
                if count == 0:
                    first = time.perf_counter()
                count += 1
                stopped = token.id in stop_ids
                piece = Piece() if stopped or not reply else reply.feed(token.id)
                top = [token.top] if params.logprobs else []
                said = stops.feed(piece.text)
                if piece.tool_calls or piece.thinking:
                    said += stops.flush()  # no stop string goes on behind them
                text += said
                yield Chunk(said, piece.thinking, piece.tool_calls, [token.id], [token.logprob], top)
                if stopped or stops.found or (constraint and constraint.over):
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
        piece = reply.flush() if reply and not stops.found else Piece()
        rest = stops.feed(piece.text)
        finish = "stop" if stops.found else finish
        rest += stops.flush()
        if stops.found and constraint and not constraint.accepts(text + rest):
            finish = "cut"
        yield Chunk(rest, piece.thinking, piece.tool_calls, finish_reason=finish, stats=stats)


def load(
    model: str | Path,
    *,
    dtype: str | None = None,
    window: Window = "config",
    kv_bits: int | None = None,
    wired: bool = False,
    progress: Progress | None = None,
) -> LLM:
    """Load a model, fetching it first if it is on the hub and not yet here.

    Args:
        model: an alias such as "demo" or "7b" (`models.ALIASES`), a folder, a `.gguf` file, or a name on the hub:
            "owner/name", or "owner/name:Q4_K_M" for one GGUF file of several.
        dtype: float32, float16 or bfloat16 to compute in that precision; "keep" to leave quantized weights packed on
            the CPU backend, where they are expanded by default. On a GPU they always stay packed.
        window: instead of the model's own: tokens that each one sees, itself included; None for full attention; or a
            list of these that repeats over the layers. It says what that changes.
        kv_bits: 8 or 4 to keep keys and values quantized, in about a half or a quarter of bfloat16's bytes. `logits`,
            which needs no cache, stays as it is.
        wired: keep the model's memory resident for as long as the process lives. macOS 15 and newer; it can be faster
            for models nearly as large as the memory, and less memory is left to everything else.
        progress: told (bytes there, all bytes) while the model is fetched, instead of bars on stderr.

    Raises:
        MistralError: with what to do about it, if the model cannot be found, fetched, read, or run exactly.
    """
    checkpoint = open_checkpoint(resolve(model, progress=progress))
    if window != "config":
        config = change_window(checkpoint.config, window)
        if meaning := consequence(checkpoint.config, config):
            log.warning(meaning)
        checkpoint = replace(checkpoint, config=config)
    packing = Packing.of(kv_bits, checkpoint.config.head_dim)
    plan = plan_loading(checkpoint, dtype)
    memory = Memory.predict(checkpoint.config, plan.nbytes, _LEAST_TOKENS, plan.dtype.size, packing=packing)
    if not memory.fits:
        raise OutOfMemoryError(f"{checkpoint.path} does not fit: {memory}.", "Use a smaller or a quantized model.")
    if wired and not wire_memory():
        raise InputError("Memory can only be wired on a Mac with Metal.", "Leave out wired.")
    text = open_text(checkpoint.path, checkpoint.metadata, checkpoint.config.vocab_size)
    transformer = load_model(checkpoint, dtype)
    fuse(transformer)
    transformer.packing = packing
    return LLM(transformer, text)
