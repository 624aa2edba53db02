"""A conversation with a model: its turns, and what of them need not be read again."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from threading import Event
from typing import TYPE_CHECKING, Any
from weakref import ref

from mistral_mlx.completion import Chunk, Completion
from mistral_mlx.engine.decode import Progress
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.errors import InputError
from mistral_mlx.text.chat import Message
from mistral_mlx.text.tokenizer import checked_text

if TYPE_CHECKING:
    from mistral_mlx.llm import LLM


class Chat:
    """A conversation with a model. What was read or said before is not read again where it stands unchanged.

    (With a system prompt the formats v2 and v3 change every turn: they put it into the last message. There each turn
    is read anew.)

    Attributes:
        messages: the turns so far. An answer that was cancelled or left keeps what was said.
    """

    def __init__(self, llm: LLM, system: str | None = None) -> None:
        self.messages: list[Message] = [] if system is None else [Message("system", checked_text(system))]
        self._llm = llm
        self._format = llm.chat_format
        self._cache = llm.model.make_cache()
        self._held: list[int] = []  # the ids that the cache stands after
        self._open: ref[Generator[Chunk]] | None = None

    def send(self, text: str, **options: Any) -> Completion:
        """Say something and wait for the answer; options and errors as for `LLM.stream`."""
        return Completion.join(self.stream(text, **options))

    def stream(
        self, text: str, *, cancel: Event | None = None, progress: Progress | None = None, **sampling: Any
    ) -> Iterator[Chunk]:
        """Say something and get the answer piece by piece; options and errors as for `LLM.stream`.

        A new message ends an answer that is still being read, and keeps what of it was said.
        """
        self._close()
        return self._reply(self.messages, text, cancel, progress, sampling)

    def regenerate(self, **options: Any) -> Completion:
        """Answer the last message anew; the former answer stays until the new one begins.

        Raises:
            InputError: nothing has been said yet.
        """
        self._close()
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
        self._close()
        if not isinstance(index, int) or not 0 <= index < len(self.messages) or self.messages[index].role != "user":
            raise InputError(f"messages[{index}] is not a message of the user.", "Give the index of one.")
        return Completion.join(self._reply(self.messages[:index], text, cancel, progress, sampling))

    def _close(self) -> None:
        """End the answer that is being read, if there is one: two would write into one cache."""
        answer = self._open() if self._open else None
        if answer is not None:
            answer.close()

    def _reply(
        self,
        before: list[Message],
        text: str,
        cancel: Event | None,
        progress: Progress | None,
        sampling: dict[str, Any],
    ) -> Iterator[Chunk]:
        """Check everything, then answer `text` after the messages `before`."""
        params = self._llm.params(sampling)
        if not checked_text(text):
            raise InputError("The message is empty.", "Say something.")
        messages = [*before, Message("user", text)]
        ids = self._llm.checked(self._format.encode(messages))
        self._llm.check_room(len(ids), params.max_tokens)
        answer = self._answer(messages, ids, params, cancel, progress)
        self._open = ref(answer)
        return answer

    def _answer(
        self,
        messages: list[Message],
        ids: list[int],
        params: SamplingParams,
        cancel: Event | None,
        progress: Progress | None,
    ) -> Generator[Chunk]:
        reused = self._take_up(ids)
        text, said = "", []
        try:
            for chunk in self._llm.run(
                ids, self._cache, reused, params, continues=False, cancel=cancel, progress=progress
            ):
                text += chunk.text
                said += chunk.tokens
                yield chunk
        except GeneratorExit:  # the reader left between two steps: the cache is whole
            raise
        except BaseException:
            self._cache = self._llm.model.make_cache()  # a step was broken off: its layers may stand apart
            raise
        finally:
            # Also when the reader stopped listening: what was said stays said.
            self._held = (ids + said)[: self._cache.position]
            if said:
                self.messages = [*messages, Message("assistant", text, tuple(self._shown(said, text, params)))]

    def _shown(self, said: list[int], text: str, params: SamplingParams) -> list[int]:
        """Of the ids that were sampled those that became text; the text's own where a stop string cut one in two."""
        if said[-1] in self._llm.stop_ids:  # the chat format writes its own end of a turn
            return said[:-1]
        if not params.stop:
            return said
        kept = list(said)
        while kept and len(self._llm.decode(kept)) > len(text):
            kept.pop()
        return kept if kept and self._llm.decode(kept) == text else self._llm.tokenizer.encode(text, follows=True)

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
