"""A conversation with a model: its turns, the tools that it calls, and what of all that need not be read again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any
from weakref import ref

from mistral_mlx.completion import Chunk, Completion, ToolCall, ToolCallDelta, join_calls
from mistral_mlx.engine.decode import Progress
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.errors import InputError, RequestError
from mistral_mlx.text.messages import Message, read_messages
from mistral_mlx.text.reply import Reply
from mistral_mlx.text.tokenizer import checked_text
from mistral_mlx.text.tools import NOT_RUN, Tool, read_tools, run_call, runs_here

if TYPE_CHECKING:
    from mistral_mlx.llm import LLM

_MAX_ROUNDS = 8


@dataclass(frozen=True)
class _Options:
    """How to answer."""

    params: SamplingParams
    tools: tuple[Tool, ...]
    max_rounds: int
    cancel: Event | None
    progress: Progress | None


class Chat:
    """A conversation with a model. What was read or said before is not read again where it stands unchanged.

    (v2 and v3 put the system prompt into the last message of the user, and v2 to v11 the tools before it. There each
    turn is read anew from where they stood, unless the chat is `stable`.)

    Attributes:
        messages: the turns so far. An answer that was cancelled or left keeps what was said.
        tools: what the model may call.
    """

    def __init__(
        self,
        llm: LLM,
        system: str | Sequence[Mapping[str, Any]] | None = None,
        messages: Iterable[Message | Mapping[str, Any]] = (),
        tools: Iterable[Tool | Mapping[str, Any] | Callable[..., Any]] = (),
        *,
        stable: bool = False,
        reasoning_effort: str | None = None,
    ) -> None:
        before = [] if system is None else [{"role": "system", "content": system}]
        given = [*before, *messages]
        self.messages: list[Message] = read_messages(given) if given else []
        self.tools: tuple[Tool, ...] = read_tools(tools)
        self._llm = llm
        self._format = llm.chat_format
        self._stable = stable
        self._reasoning_effort = reasoning_effort
        self._cache = llm.model.make_cache()
        self._held: list[int] = []  # the ids that the cache stands after
        self._open: ref[Generator[Chunk]] | None = None

    def send(self, text: str, **options: Any) -> Completion:
        """Say something and wait for the answer; options and errors as for `stream`."""
        return Completion.join(self.stream(text, **options))

    def stream(self, text: str, **options: Any) -> Iterator[Chunk]:
        """Say something and get the answer piece by piece.

        A new message ends an answer that is still being read, and keeps what of it was said.

        Args:
            tools: what the model may call from now on, as for `LLM.chat`. Functions are run, and the model goes on with
                their results; of definitions the calls are in the answer, for `answer_calls`.
            max_rounds: how often tools are run before the answer ends with finish_reason "tool_rounds" (8).
            options: as for `LLM.stream`.

        Raises:
            RequestError: what the model's chat format cannot express.
            MistralError: as `LLM.stream`.
        """
        self._close()
        return self._reply(self.messages, [self._said(text)], options)

    def answer_calls(self, results: Mapping[str, str], **options: Any) -> Completion:
        """Give the results of the tools that the last answer calls, by the ids of the calls, and wait for what follows.

        Args:
            options: as for `stream`.

        Raises:
            RequestError: a call without its result, or a result without its call.
        """
        self._close()
        calls = self.messages[-1].tool_calls if self.messages else ()
        if {call.id for call in calls} != results.keys():
            pending = ", ".join(call.id for call in calls) or "none"
            raise RequestError(
                f"There are results of the calls {', '.join(map(str, results))}, and the last answer makes: {pending}.",
                "Give the result of each call by its id.",
            )
        turns = [Message("tool", checked_text(results[call.id]), tool_call_id=call.id) for call in calls]
        return Completion.join(self._reply(self.messages, turns, options))

    def reply(self, **options: Any) -> Completion:
        """Answer what stands in `messages`, or go on with an answer that is marked as a prefix.

        Args:
            options: as for `stream`.
        """
        return Completion.join(self.stream_reply(**options))

    def stream_reply(self, **options: Any) -> Iterator[Chunk]:
        """The same, piece by piece."""
        self._close()
        return self._reply(self.messages, [], options)

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

    def edit(self, index: int, text: str, **options: Any) -> Completion:
        """Say `text` in place of messages[index]; what came after it goes once the answer begins.

        Raises:
            InputError: messages[index] is not the user's.
        """
        self._close()
        if not isinstance(index, int) or not 0 <= index < len(self.messages) or self.messages[index].role != "user":
            raise InputError(f"messages[{index}] is not a message of the user.", "Give the index of one.")
        return Completion.join(self._reply(self.messages[:index], [self._said(text)], options))

    def _close(self) -> None:
        """End the answer that is being read, if there is one: two would write into one cache."""
        answer = self._open() if self._open else None
        if answer is not None:
            answer.close()

    @staticmethod
    def _said(text: str) -> Message:
        if not checked_text(text):
            raise InputError("The message is empty.", "Say something.")
        return Message("user", text)

    def _encode(self, messages: Sequence[Message], options: _Options) -> list[int]:
        """The prompt."""
        ids = self._format.encode(
            messages,
            tools=options.tools,
            stable=self._stable,
            reasoning_effort=self._reasoning_effort,
            json_schema=options.params.json_schema,
        )
        return self._llm.checked(ids)

    def _reply(self, before: Sequence[Message], new: Sequence[Message], given: Mapping[str, Any]) -> Iterator[Chunk]:
        """Check everything, then answer the messages."""
        sampling = dict(given)
        tools, max_rounds = sampling.pop("tools", None), sampling.pop("max_rounds", _MAX_ROUNDS)
        cancel, progress = sampling.pop("cancel", None), sampling.pop("progress", None)
        if isinstance(max_rounds, bool) or not isinstance(max_rounds, int) or max_rounds < 0:
            raise InputError(f"max_rounds is {max_rounds!r}.", "It must be a whole number from 0.")
        tools = self.tools if tools is None else read_tools(tools)
        options = _Options(self._llm.params(sampling), tools, max_rounds, cancel, progress)
        self._llm.constraint(options.params, chat=True, calls=bool(tools))  # so that a bad form is refused here
        messages = [*_settled(before, new), *new]
        ids = self._encode(messages, options)
        self._llm.check_room(len(ids), options.params.max_tokens)
        answer = self._answer(messages, ids, options)
        self._open = ref(answer)
        return answer

    def _answer(self, messages: list[Message], ids: list[int], options: _Options) -> Generator[Chunk]:
        """Answers, one after another, until one calls no tool that is run here."""
        self.tools = options.tools
        for rounds_left in range(options.max_rounds, -1, -1):
            calls = yield from self._one(messages, ids, options, last=not rounds_left)
            stopped = options.cancel is not None and options.cancel.is_set()
            if not calls or not runs_here(self.tools, calls) or not rounds_left or stopped:
                return
            results = [Message("tool", run_call(self.tools, call), tool_call_id=call.id) for call in calls]
            self.messages = messages = [*self.messages, *results]
            ids = self._encode(messages, options)
            self._llm.check_room(len(ids), options.params.max_tokens)

    def _one(
        self, messages: list[Message], ids: list[int], options: _Options, *, last: bool
    ) -> Generator[Chunk, None, list[ToolCall]]:
        """One answer; returns the calls of tools in it, if it came to its end."""
        params, begun = options.params, messages[-1] if messages[-1].prefix else None
        in_thought = begun is not None and bool(begun.thinking) and not begun.content
        form: dict[str, bool] = {"continues": begun is not None, "thinking": in_thought}
        reply = Reply(self._llm.tokenizer, **form)
        constraint = self._llm.constraint(params, chat=begun is None, calls=bool(options.tools))
        reused = self._take_up(ids)
        text, thinking, said = "", "", []
        deltas: list[ToolCallDelta] = []
        calls: list[ToolCall] = []
        try:
            for chunk in self._llm.run(
                ids, self._cache, reused, params, reply, constraint, cancel=options.cancel, progress=options.progress
            ):
                text += chunk.text
                thinking += chunk.thinking
                said += chunk.tokens
                deltas += chunk.tool_calls
                if chunk.finish_reason == "stop":
                    calls = join_calls(deltas)
                    if calls and runs_here(options.tools, calls) and last:
                        chunk = replace(chunk, finish_reason="tool_rounds")
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
                kept = None if reply.mended else self._shown(said, text, form, params)
                answer = Message("assistant", text, kept, thinking, tuple(calls))
                self.messages = [*messages, answer] if begun is None else self._joined(messages, ids, answer, options)
        return calls

    def _shown(
        self, said: list[int], text: str, form: Mapping[str, bool], params: SamplingParams
    ) -> tuple[int, ...] | None:
        """Of the ids that were sampled those that were shown; the text's own where a stop string cut one in two.

        Args:
            form: how the answer is taken apart, as for `Reply`.
        """

        def shown(ids: list[int]) -> str:
            reply = Reply(self._llm.tokenizer, **form)
            return "".join([*(reply.feed(i).text for i in ids), reply.flush().text])

        if said[-1] in self._llm.stop_ids:  # the chat format writes its own end of a turn
            return tuple(said[:-1])
        if not params.stop:
            return tuple(said)
        kept = list(said)
        while kept and len(shown(kept)) > len(text):
            kept.pop()
        if kept and shown(kept) == text:
            return tuple(kept)
        whole = shown(said) == self._llm.decode(said) and not form["thinking"]  # nothing but text
        inside = form["continues"]
        return tuple(self._llm.tokenizer.encode(text, follows=not inside, inside=inside)) if whole else None

    def _joined(self, messages: list[Message], ids: list[int], answer: Message, options: _Options) -> list[Message]:
        """The messages, the last of which is an answer that this one goes on with.

        Args:
            ids: the prompt.
        """
        *before, begun = messages
        start = self._encode(before, options)
        known = answer.ids is not None and ids[: len(start)] == start
        return [
            *before,
            replace(
                answer,
                content=begun.content + answer.content,
                thinking=begun.thinking + answer.thinking,
                ids=(*ids[len(start) :], *(answer.ids or ())) if known else None,
            ),
        ]

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


def _settled(before: Sequence[Message], new: Sequence[Message]) -> list[Message]:
    """The messages before, in which calls that nobody ran have a result that says so."""
    settled = list(before)
    if settled and new and new[0].role != "tool":
        settled += [Message("tool", NOT_RUN, tool_call_id=call.id) for call in settled[-1].tool_calls]
    return settled
