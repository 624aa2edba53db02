"""What a script holds: a model that takes text and gives text.

Joins the rooms that do not know each other: weights to a model, text to ids, the engine's ids back to text. Everything
here runs on the thread that calls it, and a model is used from the thread that loaded it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

from mistral_mlx.backend import memory_limit, peak_memory, reset_peak_memory
from mistral_mlx.chat import Chat
from mistral_mlx.completion import Chunk, Completion, Stats
from mistral_mlx.config import ModelConfig
from mistral_mlx.engine.decode import PREFILL_CHUNK, Progress, decode, prefill
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.engine.score import score, whole_logits
from mistral_mlx.errors import ContextError, InputError, OutOfMemoryError, TokenizerError
from mistral_mlx.model.cache import Cache, cache_bytes
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.models import resolve
from mistral_mlx.text.chat import ChatFormat
from mistral_mlx.text.decoder import StopStrings, StreamDecoder
from mistral_mlx.text.files import Text, open_text
from mistral_mlx.text.tokenizer import Tokenizer, decode_whole
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.loading import load_model

if TYPE_CHECKING:
    import mlx.core as mx


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
        return decode_whole(self.tokenizer, self.checked(ids))

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
        return self.run(ids, cache, 0, params, continues=True, cancel=cancel, progress=progress)

    def chat(self, system: str | None = None) -> Chat:
        """Begin a conversation.

        Raises:
            TokenizerError: the model has no chat format.
        """
        return Chat(self, system)

    def checked(self, ids: Iterable[int]) -> list[int]:
        """The ids as Python's own integers, each of them in the vocabulary.

        Raises:
            InputError: none at all, or something that is no id of this model.
        """
        size = self.config.vocab_size
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
        cache, room = cache_bytes(self.config, tokens, self.model.dtype.size), memory_limit()
        if self.model.nbytes + cache > room:
            raise OutOfMemoryError(
                f"{tokens} tokens need {cache / 2**30:.2f} GiB of keys and values beside "
                f"{self.model.nbytes / 2**30:.2f} GiB of weights; this machine has {room / 2**30:.2f} GiB for both.",
                "Shorten the prompt or lower max_tokens.",
            )

    def run(
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
        """Read ids[reused:] into a cache that holds ids[:reused], then generate. All of it has been checked."""
        start = first = time.perf_counter()
        reset_peak_memory()
        cancelled: Callable[[], bool] | None = cancel.is_set if cancel else None
        # Without a tokenizer there are still ids.
        decoder = (
            None if isinstance(self._tokenizer, TokenizerError) else StreamDecoder(self._tokenizer, continues=continues)
        )
        stop_ids, stops = self.stop_ids, StopStrings(params.stop)
        if (limit := self.config.context_length) is not None:
            params = replace(params, max_tokens=max(1, min(params.max_tokens, limit - len(ids) + 1)))

        finish, count = "cancelled", 0
        logits = prefill(self.model, ids[reused:], cache, progress=progress, cancelled=cancelled)
        if logits is not None:
            for token in decode(self.model, logits, cache, params, ids, cancelled=cancelled):
                if count == 0:
                    first = time.perf_counter()
                count += 1
                stopped = token.id in stop_ids
                text = "" if stopped or not decoder else stops.feed(decoder.feed(token.id))
                top = [token.top] if params.logprobs else []
                yield Chunk(text, [token.id], [token.logprob], top)
                if stopped or stops.found:
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
        rest = stops.feed(decoder.flush()) if decoder and not stops.found else ""
        if stops.found:
            finish = "stop"
        rest += stops.flush()
        yield Chunk(rest, finish_reason=finish, stats=stats)


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
    text = open_text(checkpoint.path, checkpoint.metadata, checkpoint.config.vocab_size)
    return LLM(load_model(checkpoint, dtype), text)
