"""What a script holds: a model that takes text and gives text.

Joins the rooms that do not know each other: weights to a model, text to ids, the engine's ids back to text. Everything
here runs on the thread that calls it, and a model is used from the thread that loaded it.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib.metadata import version
from math import inf
from numbers import Integral
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Literal

from mistral_mlx import __version__
from mistral_mlx.answer import Answer, stats
from mistral_mlx.backend import machine, reset_peak_memory, wire_memory
from mistral_mlx.batching import check_lanes, run_together
from mistral_mlx.chat import Chat
from mistral_mlx.completion import Chunk, Completion
from mistral_mlx.config import ModelConfig
from mistral_mlx.engine.choice import Token
from mistral_mlx.engine.decode import decode
from mistral_mlx.engine.prefix import Prefixes, fingerprint
from mistral_mlx.engine.reading import PREFILL_CHUNK, Progress, Reading, ReadingPace, prefill
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.engine.score import score, whole_logits
from mistral_mlx.engine.speculative import Drafter, ModelDrafter, NgramDrafter, Pace, decode_speculatively
from mistral_mlx.errors import ContextError, InputError, OutOfMemoryError, TokenizerError
from mistral_mlx.memory import Memory
from mistral_mlx.model.cache import Cache
from mistral_mlx.model.fusion import fuse
from mistral_mlx.model.packing import Packing
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.models import Window, change_window, consequence, resolve
from mistral_mlx.request import Request
from mistral_mlx.scheduling import Scheduler
from mistral_mlx.text.chat import ChatFormat
from mistral_mlx.text.files import Text, open_text
from mistral_mlx.text.grammar import Form, FormMatcher, Vocabulary
from mistral_mlx.text.messages import Message
from mistral_mlx.text.reply import Reply
from mistral_mlx.text.tokenizer import Tokenizer, decode_whole
from mistral_mlx.text.tools import AUTO, Tool, ToolChoice
from mistral_mlx.weights.checkpoint import open_checkpoint
from mistral_mlx.weights.loading import load_model, plan_loading

if TYPE_CHECKING:
    import mlx.core as mx

log = logging.getLogger("mistral_mlx")

# What a model must have room for to be loaded at all.
_LEAST_TOKENS = 256
# What a pass over a prompt may take where somebody may cancel it.
_PIECE_S = 0.15


class LLM:
    """A loaded model.

    Attributes:
        config: the architecture.
        model: the transformer, for whoever wants arrays.
        instruct: whether it says that it was trained to chat: it brings a chat template.
        prefixes: what was read and said before, and need not be read again.
        pace: how fast prompts are read, as far as is known.
        path: where it was loaded from; None if it was not.
        stored_as: how most of the weights are stored there, as in `models.ModelInfo`.
    """

    path: Path | None = None
    stored_as: str = ""

    def __init__(self, model: Transformer, text: Text) -> None:
        """Put together what `load` found; an error in place of something is raised once that is asked for."""
        self.model = model
        self.config: ModelConfig = model.config
        self.instruct = text.instruct
        self.prefixes = Prefixes(model)
        self.pace = ReadingPace()
        self._tokenizer = text.tokenizer
        self._chat_format = text.chat_format
        self.draft = None

    @property
    def draft(self) -> Literal["ngram"] | LLM | None:
        """What guesses the next tokens, several of which then come at once; the same ones as without it.

        "ngram" guesses what followed when the text last ended as it does now: for answers that repeat what was said.
        A smaller model with the same vocabulary guesses everywhere. Answers that are held to a form come without.
        """
        return self._draft

    @draft.setter
    def draft(self, draft: Literal["ngram"] | LLM | None) -> None:
        if not (draft is None or isinstance(draft, LLM) or (isinstance(draft, str) and draft == "ngram")):
            given = repr(draft) if isinstance(draft, str) else f"of type {type(draft).__name__}"
            raise InputError(f"draft is {given}.", 'It must be "ngram", a loaded model, or None.')
        drafter = ModelDrafter(draft.model, self.config.vocab_size) if isinstance(draft, LLM) else None
        self._draft, self._drafter = draft, drafter
        self._seconds: dict[int, float] = {}  # what rounds took, by their length

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the configuration, the precision and all weights, which are read once for it."""
        return fingerprint(self.model)

    @property
    def dtype(self) -> str:
        """The precision that it computes in."""
        return str(self.model.dtype).removeprefix("mlx.core.")

    @cached_property
    def build(self) -> dict[str, str]:
        """What computes here: the versions and the machine on which a seed gives the same text again."""
        return {"mistral_mlx": __version__, "mlx": version("mlx"), "machine": machine()}

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
                prompt is read before its next piece, which takes about 0.15 s if cancel is given.
            progress: told (tokens read, all tokens) while the prompt is read; those known before count as read.
            sampling: fields of SamplingParams.

        Raises:
            InputError: an option that does not exist or is out of range, an empty prompt, an id outside the vocabulary.
            ContextError: the prompt is longer than the model can attend to.
            OutOfMemoryError: keys and values of prompt and answer would not fit beside the weights.
            TokenizerError: text or a stop string, and the model came without a tokenizer.
        """
        return self.run(self.ask(prompt, **sampling), cancel=cancel, progress=progress)

    def stream_lanes(
        self,
        prompt: str | Sequence[int],
        lanes: Sequence[Mapping[str, Any]],
        *,
        cancel: Event | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Chunk]]:
        """Carry on one text in several ways at once; arguments and result as for `Chat.stream_lanes`."""
        check_lanes(lanes)
        requests = [self.ask(prompt, **lane) for lane in lanes]
        return self.run_together(requests, cancel=cancel, progress=progress)

    def ask(self, prompt: str | Sequence[int], **sampling: Any) -> Request:
        """What carrying on a text takes, for whoever decodes many answers together; arguments and errors as for
        `stream`.
        """
        params = self.params(sampling)
        ids = self.checked(self.encode(prompt) if isinstance(prompt, str) else prompt)
        bare = isinstance(self._tokenizer, TokenizerError)
        reply = None if bare else Reply(self.tokenizer, continues=True, plain=True)
        return self.request(ids, params, reply, self.constraint(params, chat=False))

    def ask_fill(self, prefix: str, suffix: str, **sampling: Any) -> Request:
        """The same for what belongs between two texts; arguments and errors as for `fill`."""
        if not prefix and not suffix:
            raise InputError("There is nothing to fill between.", "Give a prefix or a suffix.")
        return self.ask(self.chat_format.fill(prefix, suffix), **sampling)

    def batch(
        self,
        prompts: Iterable[str | Sequence[int]],
        *,
        cancel: Event | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> list[Completion]:
        """Carry on several texts together, which takes far less time than one after another.

        Each says what `generate` would say with the same seed (in float32, where no two tokens are as good as equally
        likely). As many are decoded at a time as there is memory for, at most 32; where one ends, the next begins. They
        come without drafts: a batch has no time to spare for them.

        Args:
            cancel: once set, what has been said is returned, with finish_reason "cancelled".
            progress: told (answers done, all answers).
            sampling: fields of SamplingParams, for all; without a seed each gets its own.

        Raises:
            MistralError: as `stream`; nothing is begun before all prompts are checked.
        """
        if isinstance(prompts, (str, bytes, bytearray)):
            raise InputError("batch takes several prompts.", "Give a list of them, or use generate.")
        if not isinstance(prompts, Iterable) or isinstance(prompts, Mapping):
            raise InputError(f"batch takes several prompts, not {type(prompts).__name__}.", "Give a list of them.")
        requests = [self.ask(prompt, **sampling) for prompt in prompts]
        chunks: list[list[Chunk]] = [[] for _ in requests]
        for index, chunk in self.run_together(requests, cancel=cancel):
            chunks[index].append(chunk)
            if progress and chunk.stats:
                progress(sum(bool(c and c[-1].stats) for c in chunks), len(chunks))
        return [Completion.join(each) for each in chunks]

    def fill(self, prefix: str, suffix: str, **options: Any) -> Completion:
        """Write what belongs between two texts, with a model that was trained to: Codestral, Mathstral.

        Args:
            options: as for `stream`.

        Raises:
            RequestError: the model was not trained to.
            MistralError: as `stream`.
        """
        return Completion.join(self.stream_fill(prefix, suffix, **options))

    def stream_fill(
        self,
        prefix: str,
        suffix: str,
        *,
        cancel: Event | None = None,
        progress: Progress | None = None,
        **sampling: Any,
    ) -> Iterator[Chunk]:
        """The same, piece by piece."""
        return self.run(self.ask_fill(prefix, suffix, **sampling), cancel=cancel, progress=progress)

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

    def constraint(
        self, params: SamplingParams, *, chat: bool, tools: Sequence[Tool] = (), choice: ToolChoice = AUTO
    ) -> FormMatcher | None:
        """What holds a new answer to the form that was asked for, if one was, and calls to what was asked of them.

        Args:
            chat: it begins an answer, rather than carrying on a text; the model may reason first.
            tools: what it may call instead; calls of strict ones are held to their schemas.
            choice: what it may or must call of them.

        Raises:
            RequestError: a form that cannot be followed.
            TokenizerError: the model came without a tokenizer.
        """
        tools = () if choice.never else tools
        held = any(tool.strict for tool in tools) or choice.must or not choice.several
        if not params.forms and not (tools and held):
            return None
        schema = {"type": "object"} if params.json_mode else params.json_schema
        form = Form(schema, params.regex, tools, choice)
        form.check()
        return form.begin(self._vocabulary, continues=not chat, thinks=chat)

    def without_calls(self, params: SamplingParams) -> SamplingParams:
        """The same, for an answer that calls no tool."""
        mark = self.tokenizer.control.get("[TOOL_CALLS]")
        return params if mark is None else replace(params, logit_bias={**params.logit_bias, mark: -1e30})

    @cached_property
    def _vocabulary(self) -> Vocabulary:
        return Vocabulary(self.tokenizer, self.config.vocab_size, self.stop_ids)

    @property
    def stop_ids(self) -> frozenset[int]:
        """The ids that end an answer: the configuration's and the tokenizer's."""
        own = frozenset() if isinstance(self._tokenizer, TokenizerError) else self._tokenizer.stop_ids
        return own | set(self.config.eos_token_ids)

    def check_room(self, prompt: int, max_tokens: int) -> Memory:
        """Refuse what the model cannot attend to, or this machine cannot hold, before anything is allocated.

        Returns:
            What prompt and answer will take.

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
        return memory

    def forget(self) -> None:
        """Let go of what was read and said before: the next prompt is read whole."""
        self.prefixes.clear()
        self.draft = self._draft  # which has read it too

    def save_cache(self, path: str | Path) -> int:
        """Write to a file what was read and said last, so that another day it need not be read again.

        The file is bound to these weights; it is written whole or not at all.

        Returns:
            The tokens in it.

        Raises:
            InputError: nothing has been read yet, or the file cannot be written.
        """
        return self.prefixes.save(_file(path))

    def load_cache(self, path: str | Path) -> int:
        """Take up what `save_cache` wrote. A file that cannot be used is left aside, with a note: it is only for speed.

        Returns:
            The tokens that a prompt which begins with them need not read; 0 if there are none.
        """
        path = _file(path)
        try:
            return self.prefixes.restore(path)
        except InputError as error:
            log.warning(error.message)
            return 0

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
        draft = _memory_of_draft(self.draft, tokens, prompt)
        return Memory.predict(self.config, model.nbytes, tokens, model.dtype.size, prompt, model.packing, draft)

    def run(
        self, request: Request, *, cancel: Event | None = None, progress: Progress | None = None
    ) -> Generator[Chunk]:
        """Read a prompt, as far as it has not been read before, then generate."""
        start = first = time.perf_counter()
        reset_peak_memory()
        cancelled: Callable[[], bool] | None = cancel.is_set if cancel else None
        ids, answer, memory = request.ids, request.answer, request.memory
        cache, reused = self.prefixes.take(ids)
        self.prefixes.make_room(memory.limit - memory.total - cache.log_bytes)
        said, pace, reading = list(ids), Pace(self._seconds), Reading(progress, reused)
        try:
            logits = prefill(
                self.model, ids[reused:], cache, chunk=memory.chunk,
                pace=self.pace, seconds=_PIECE_S if cancel else inf, progress=reading, cancelled=cancelled,
            )  # fmt: skip
            if logits is not None:
                tokens = self._tokens(logits, cache, request, pace, cancelled)
                for token in tokens:
                    if answer.count == 0:
                        first = time.perf_counter()
                    said.append(token.id)
                    yield answer.feed(token)
                    if answer.finish:
                        break
                tokens.close()  # it holds a step that will not be made
        except GeneratorExit:  # the reader left between two steps: the cache is whole
            self.prefixes.put(said, cache)
            raise
        # A step that was broken off comes not here: its layers may stand apart, and it is let go.
        self.prefixes.put(said, cache)
        cost = stats(len(ids), reused, answer.count, (start, first), cache.nbytes, reading.pieces)
        yield answer.end(replace(cost, drafted_tokens=pace.drafted, accepted_tokens=pace.accepted))

    def _tokens(
        self, logits: mx.array, cache: Cache, request: Request, pace: Pace, cancelled: Callable[[], bool] | None
    ) -> Generator[Token]:
        """The tokens of an answer, drafted if that was asked for; what a form allows is known one token at a time."""
        ids, params, begun, constraint = request.ids, request.params, request.begun, request.constraint
        if self.draft is None or constraint:
            return decode(
                self.model, logits, cache, params, ids, begun=begun, constraint=constraint, cancelled=cancelled
            )
        drafter: Drafter = self._drafter or NgramDrafter()
        return decode_speculatively(
            self.model, logits, cache, params, ids, drafter, begun=begun, pace=pace, cancelled=cancelled
        )

    def request(
        self,
        ids: list[int],
        params: SamplingParams,
        reply: Reply | None,
        constraint: FormMatcher | None,
        said: str = "",
        begun: int = 0,
    ) -> Request:
        """What is to be read and answered.

        Args:
            ids, params: checked.
            reply: what takes the answer apart; without a tokenizer there are only ids.
            constraint: what holds it to a form.
            said, begun: text of the answer that the prompt ends with, and how many of the ids are known to be that.

        Raises:
            ContextError, OutOfMemoryError: as `check_room`.
        """
        memory = self.check_room(len(ids), params.max_tokens)
        params = self._within_context(params, len(ids))
        answer = Answer(params, self.stop_ids, reply, constraint, said)
        return Request(ids, params, answer, memory, constraint, begun)

    def run_together(
        self, requests: Sequence[Request], *, cancel: Event | None = None, progress: Progress | None = None
    ) -> Generator[tuple[int, Chunk]]:
        """Chunks of several answers as they come, each with the index of its request: as many answers at a time as
        there is memory for, and without drafts. All of it has been checked.

        Args:
            progress: told of each prompt that is read alone.
        """
        reset_peak_memory()
        seconds = _PIECE_S if cancel else inf
        scheduler = Scheduler(self.model, self.prefixes, self.pace, seconds=seconds, progress=progress)
        yield from run_together(scheduler, requests, cancel.is_set if cancel else None)

    def _within_context(self, params: SamplingParams, prompt: int) -> SamplingParams:
        """The same, for no more tokens than the model can attend to after a prompt of that length."""
        if (limit := self.config.context_length) is None:
            return params
        return replace(params, max_tokens=max(1, min(params.max_tokens, limit - prompt + 1)))


def load(
    model: str | Path,
    *,
    dtype: str | None = None,
    window: Window = "config",
    kv_bits: int | None = None,
    wired: bool = False,
    draft: str | Path | None = None,
    progress: Progress | None = None,
    loading: Progress | None = None,
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
        draft: "ngram", or a smaller model with the same vocabulary, named as `model` is: what guesses the next tokens,
            for answers that come faster and stay the same; `LLM.draft` is the result.
        progress: told (bytes there, all bytes) while a model is fetched, instead of bars on stderr.
        loading: told (bytes read, all bytes) while its weights are read; those of a draft come before.

    `progress` and `loading` may end it by an exception of your own, which comes out here: nothing of the model stays in
    memory, and what was fetched stays on disk for the next time.

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
    helper = None if draft in (None, "ngram") else load(draft, dtype=dtype, progress=progress, loading=loading)
    beside = _memory_of_draft(helper, _LEAST_TOKENS, None)
    memory = Memory.predict(checkpoint.config, plan.nbytes, _LEAST_TOKENS, plan.dtype.size, None, packing, beside)
    if not memory.fits:
        raise OutOfMemoryError(f"{checkpoint.path} does not fit: {memory}.", "Use a smaller or a quantized model.")
    if wired and not wire_memory():
        raise InputError("Memory can only be wired on a Mac with Metal.", "Leave out wired.")
    text = open_text(checkpoint.path, checkpoint.metadata, checkpoint.config.vocab_size)
    transformer = load_model(checkpoint, dtype, loading)
    fuse(transformer)
    transformer.packing = packing
    llm = LLM(transformer, text)
    llm.path, llm.stored_as = checkpoint.path, checkpoint.stored_as
    llm.draft = helper or ("ngram" if draft else None)
    return llm


def _memory_of_draft(draft: object, tokens: int, prompt: int | None) -> Memory | None:
    """What a draft model takes, if there is one: it stops at its own context's end."""
    if not isinstance(draft, LLM):
        return None
    longest, model = draft.config.context_length or tokens, draft.model
    tokens, reads = min(tokens, longest), min(prompt or tokens, longest)
    return Memory.predict(draft.config, model.nbytes, tokens, model.dtype.size, reads, model.packing)


def _file(path: str | Path) -> Path:
    """The path of a file as the system takes it; raises InputError for what can be none."""
    try:
        file = Path(path).expanduser()
        name = len(os.fsencode(file.name))
        if not name or name > 200 or "\0" in str(file) or file.is_dir():
            raise ValueError
    except (TypeError, ValueError, RuntimeError, OSError):
        raise InputError(f"{path!r} is no name of a file.", "Give the path of one.") from None
    return file
