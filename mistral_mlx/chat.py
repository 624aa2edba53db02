"""A conversation with a model: its turns, the tools that it calls, and what of all that need not be read again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from threading import Event
from typing import TYPE_CHECKING, Any
from weakref import ref

from mistral_mlx.batching import check_lanes
from mistral_mlx.completion import Chunk, Completion, Forecast, ToolCall, ToolCallDelta, join_calls
from mistral_mlx.engine.decode import Progress
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.errors import ContextError, InputError, OutOfMemoryError, RequestError
from mistral_mlx.text.grammar import FormMatcher
from mistral_mlx.text.messages import Message, listed, open_calls, read_messages
from mistral_mlx.text.reply import Piece, Reply
from mistral_mlx.text.tokenizer import checked_text
from mistral_mlx.text.tools import NOT_RUN, TOO_LONG, Around, Tool, as_text, read_tools, run_call, runs_here

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

    @property
    def stopped(self) -> bool:
        return self.cancel is not None and self.cancel.is_set()


@dataclass
class _Asked:
    """What a model is to answer, checked.

    Attributes:
        messages: but for a beginning of the answer.
        ids: the prompt, and that beginning.
        begun_ids: that beginning's; None if they cannot be told from the prompt's.
        answer: what stands of the answer already.
        reply: what takes the answer apart.
        constraint: what holds it to a form.
    """

    messages: list[Message]
    ids: list[int]
    begun_ids: list[int] | None
    answer: _Answer
    reply: Reply
    constraint: FormMatcher | None

    @property
    def begun_tokens(self) -> int:
        """How many of the ids are known to be the beginning of the answer."""
        return len(self.begun_ids or ())


@dataclass
class _Answer:
    """What has been said.

    Attributes:
        tokens: the ids that were sampled for it.
    """

    text: str = ""
    thinking: str = ""
    tokens: list[int] = field(default_factory=list)
    deltas: list[ToolCallDelta] = field(default_factory=list)

    def add(self, piece: Piece | Chunk) -> None:
        self.text += piece.text
        self.thinking += piece.thinking
        self.deltas += piece.tool_calls


class Chat:
    """A conversation with a model. What was read or said before is not read again where it stands unchanged.

    (v2 and v3 put the system prompt into the last message of the user, and v2 to v11 the tools before it. There each
    turn is read anew from where they stood, unless the chat is `stable`.)

    Attributes:
        messages: the turns so far. An answer that was cancelled or left keeps what was said; a message whose answer did
            not begin is not kept. They may be changed between turns.
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
        if not isinstance(stable, bool):
            raise InputError(f"stable is {stable!r}.", "It must be true or false.")
        given = [*([] if system is None else [{"role": "system", "content": system}]), *listed(messages)]
        self.messages: list[Message] = read_messages(given) if given else []
        self.tools = tools
        self._llm = llm
        self._format = llm.chat_format
        self._around: Around = {"stable": stable, "reasoning_effort": reasoning_effort}
        if self.tools or stable or reasoning_effort is not None:  # what the format has no place for is refused at once
            around: Around = {**self._around, "tools": self.tools}
            self._format.encode([Message("user", "?")], **around)
        self._open: ref[Generator[Any]] | None = None

    @property
    def tools(self) -> tuple[Tool, ...]:
        """What the model may call."""
        return self._tools

    @tools.setter
    def tools(self, tools: Iterable[Tool | Mapping[str, Any] | Callable[..., Any]]) -> None:
        self._tools = read_tools(tools)

    def send(self, text: str, **options: Any) -> Completion:
        """Say something and wait for the answer; options and errors as for `stream`."""
        return Completion.join(self.stream(text, **options))

    def stream(self, text: str, **options: Any) -> Iterator[Chunk]:
        """Say something and get the answer piece by piece.

        A new message ends an answer that is still being read, and keeps what of it was said. Calls of tools in it that
        were not run get a result that says so.

        Args:
            tools: what the model may call from now on, as for `LLM.chat`. Functions are run, and the model goes on with
                their results; of definitions the calls are in the answer, for `answer_calls`.
            max_rounds: how often tools are run before the answer ends with finish_reason "tool_rounds" (8).
            options: as for `LLM.stream`.

        Raises:
            RequestError: what the model's chat format cannot express.
            MistralError: as `LLM.stream`.
        """
        before = self._so_far()
        return self._reply(before, [*self._not_run(before), self._said(text)], options)

    def answer_calls(self, results: Mapping[str, Any], **options: Any) -> Completion:
        """Give the results of the tools that the last answer calls, by the ids of the calls, and wait for what follows.

        Args:
            results: text, or what becomes JSON.
            options: as for `stream`.

        Raises:
            RequestError: a call without its result, or a result without its call.
        """
        before = self._so_far()
        calls = open_calls(before)
        if not isinstance(results, Mapping) or not calls or {call.id for call in calls} != results.keys():
            given = ", ".join(map(str, results)) if isinstance(results, Mapping) and results else "none"
            raise RequestError(
                f"The calls are: {', '.join(call.id for call in calls) or 'none'}. There are results of: {given}.",
                "Give the result of each call by its id.",
            )
        turns = [Message("tool", as_text(results[call.id]), tool_call_id=call.id) for call in calls]
        return Completion.join(self._reply(before, turns, options))

    def reply(self, **options: Any) -> Completion:
        """Answer what stands in `messages`, or go on with an answer that is marked as a prefix.

        Args:
            options: as for `stream`.
        """
        return Completion.join(self.stream_reply(**options))

    def stream_reply(self, **options: Any) -> Iterator[Chunk]:
        """The same, piece by piece."""
        return self._reply(self._so_far(), [], options)

    def regenerate(self, **options: Any) -> Completion:
        """Answer the last message anew; the former answer stays until the new one begins.

        Raises:
            InputError: nothing has been said yet.
        """
        before = self._so_far()
        last = max((i for i, m in enumerate(before) if m.role == "user"), default=None)
        if last is None:
            raise InputError("There is no answer to replace.", "Send a message first.")
        return self.edit(last, before[last].content, **options)

    def edit(self, index: int, text: str, **options: Any) -> Completion:
        """Say `text` in place of messages[index]; what came after it goes once the answer begins.

        Raises:
            InputError: messages[index] is not the user's.
        """
        before = self._so_far()
        if not isinstance(index, int) or not 0 <= index < len(before) or before[index].role != "user":
            raise InputError(f"messages[{index}] is not a message of the user.", "Give the index of one.")
        return Completion.join(self._reply(before[:index], [self._said(text)], options))

    def stream_lanes(
        self,
        lanes: Sequence[Mapping[str, Any]],
        *,
        cancel: Event | None = None,
        progress: Progress | None = None,
    ) -> Iterator[tuple[int, Chunk]]:
        """Answer what stands in `messages` in several ways at once, to compare them and keep one.

        The conversation is read once, and the answers are decoded together, each saying what `reply` would say with its
        options (as for `LLM.batch`, and without drafts too). Tools that they call are not run, and `messages` stays as
        it is: the answer to be kept is for the caller to add.

        Args:
            lanes: options of each answer, fields of SamplingParams; without a seed each gets its own.
            cancel, progress: as for `LLM.stream`, for all of them.

        Returns:
            Chunks as they come, each with the index of its lane.

        Raises:
            MistralError: as `stream_reply`; nothing is begun before all lanes are checked.
        """
        check_lanes(lanes)
        messages, requests = self._so_far(), []
        for lane in lanes:
            options = _Options(self._llm.params(lane), self.tools, 0, cancel, progress)
            asked = self._ask([*messages], options)
            requests.append(
                self._llm.request(
                    asked.ids, options.params, asked.reply, asked.constraint, asked.answer.text, asked.begun_tokens
                )
            )
        answers = self._llm.run_together(requests, cancel=cancel, progress=progress)
        self._open = ref(answers)
        return answers

    def forecast(self, text: str | None = None) -> Forecast:
        """What answering `text`, or without it what stands in `messages`, would read; nothing is read or changed.

        Raises:
            RequestError: what the model's chat format cannot express.
            InputError: the text is empty.
        """
        ids = self.encode(text)
        return Forecast(len(ids), self._llm.prefixes.reach(ids))

    def encode(self, text: str | None = None) -> list[int]:
        """The ids that answering `text`, or without it what stands in `messages`, would read; errors as `forecast`."""
        before = read_messages(self.messages) if self.messages else []
        new = [] if text is None else [*self._not_run(before), self._said(text)]
        return self._encode([*before, *new], _Options(self._llm.params({}), self.tools, 0, None, None))

    def _so_far(self) -> list[Message]:
        """The messages, checked; an answer that is still being read is ended, for two would write into one cache."""
        answer = self._open() if self._open else None
        if answer is not None:
            answer.close()
        self.messages = read_messages(self.messages) if self.messages else []
        return self.messages

    @staticmethod
    def _said(text: str) -> Message:
        if not checked_text(text):
            raise InputError("The message is empty.", "Say something.")
        return Message("user", text)

    @staticmethod
    def _not_run(before: Sequence[Message]) -> list[Message]:
        return [Message("tool", NOT_RUN, tool_call_id=call.id) for call in open_calls(before)]

    def _reply(self, before: Sequence[Message], new: Sequence[Message], given: Mapping[str, Any]) -> Iterator[Chunk]:
        """Check everything, then answer the messages."""
        sampling = dict(given)
        tools, max_rounds = sampling.pop("tools", None), sampling.pop("max_rounds", _MAX_ROUNDS)
        cancel, progress = sampling.pop("cancel", None), sampling.pop("progress", None)
        if isinstance(max_rounds, bool) or not isinstance(max_rounds, int) or max_rounds < 0:
            raise InputError(f"max_rounds is {max_rounds!r}.", "It must be a whole number from 0.")
        tools = self.tools if tools is None else read_tools(tools)
        options = _Options(self._llm.params(sampling), tools, max_rounds, cancel, progress)
        answer = self._answers(self._ask([*before, *new], options), options)
        self._open = ref(answer)
        return answer

    def _ask(self, messages: list[Message], options: _Options) -> _Asked:
        """The prompt, and what reads its answer."""
        llm, tools = self._llm, options.tools
        ids = self._encode(messages, options)
        llm.check_room(len(ids), options.params.max_tokens)
        begun = messages[-1] if messages[-1].prefix else None
        constraint = llm.constraint(options.params, chat=True, tools=tools)
        if begun is None:
            return _Asked(messages, ids, [], _Answer(), Reply(llm.tokenizer), constraint)
        try:
            start = self._encode([*messages[:-1], Message("assistant", ids=(), prefix=True)], options)
        except RequestError:  # the format joins it with the answer before it
            start = ids
        before = messages[:-1]
        if ids[: len(start)] != start or start == ids:
            if constraint:
                raise RequestError("An answer that was begun so cannot be held to a form.", "Leave out the form.")
            answer = _Answer(begun.content, begun.thinking)
            return _Asked(before, ids, None, answer, Reply(llm.tokenizer, continues=True), None)
        asked = _Asked(before, ids, ids[len(start) :], _Answer(), Reply(llm.tokenizer), constraint)
        for token in ids[len(start) :]:
            asked.answer.add(asked.reply.feed(token))
            if constraint:
                constraint.accept(token)
        return asked

    def _encode(self, messages: Sequence[Message], options: _Options) -> list[int]:
        around: Around = {**self._around, "tools": options.tools, "json_schema": options.params.json_schema}
        return self._llm.checked(self._format.encode(messages, **around))

    def _answers(self, asked: _Asked, options: _Options) -> Generator[Chunk]:
        """Answers, one after another, until one calls no tool that is run here."""
        self._tools = options.tools
        for rounds_left in range(options.max_rounds, -1, -1):
            calls = yield from self._answer(asked, options, last=not rounds_left)
            if not calls or not runs_here(self.tools, calls) or not rounds_left or options.stopped:
                return
            said, results = self.messages, []
            try:
                for call in calls:
                    if options.stopped:
                        return
                    results.append(Message("tool", run_call(self.tools, call), tool_call_id=call.id))
            finally:  # what was run stays run
                self.messages = [*said, *results]
            try:
                asked = self._ask(self.messages, options)
            except (ContextError, OutOfMemoryError):
                self.messages = [*said, *(replace(result, content=TOO_LONG) for result in results)]
                asked = self._ask(self.messages, options)

    def _answer(self, asked: _Asked, options: _Options, *, last: bool) -> Generator[Chunk, None, list[ToolCall]]:
        """One answer; returns the calls of tools in it, if it came to its end."""
        llm, params, cancel, progress = self._llm, options.params, options.cancel, options.progress
        answer = asked.answer
        calls: list[ToolCall] = []
        run = llm.run(
            asked.ids, params, asked.reply, asked.constraint,
            begun=answer.text, begun_tokens=asked.begun_tokens, cancel=cancel, progress=progress,
        )  # fmt: skip
        try:
            for chunk in run:
                answer.add(chunk)
                answer.tokens += chunk.tokens
                if chunk.finish_reason == "stop":
                    calls = join_calls(answer.deltas)[: 1 if self._format.one_call else None]
                    if calls and last and runs_here(options.tools, calls):
                        chunk = replace(chunk, finish_reason="tool_rounds")
                yield chunk
        finally:  # also when the reader stopped listening: what was said stays said
            run.close()
            if answer.tokens:
                kept = self._kept(asked, params)
                turn = Message("assistant", answer.text, kept, answer.thinking, tuple(calls))
                self.messages = [*asked.messages, turn]
        return calls

    def _kept(self, asked: _Asked, params: SamplingParams) -> tuple[int, ...] | None:
        """The ids that an answer is kept as: those that were sampled and shown; None to encode it from its text."""
        if asked.begun_ids is None:
            return None
        answer = asked.answer
        ids = [*asked.begun_ids, *answer.tokens]
        if ids[-1] in self._llm.stop_ids:  # the chat format writes its own end of a turn
            return tuple(ids[:-1])
        if not params.stop:
            return tuple(ids)

        def shown(ids: list[int]) -> str:
            reply = Reply(self._llm.tokenizer)
            return "".join([*(reply.feed(i).text for i in ids), reply.flush().text])

        kept = list(ids)
        while len(shown(kept)) > len(answer.text):
            kept.pop()
        if shown(kept) == answer.text:
            return tuple(kept)
        nothing_else = shown(ids) == self._llm.decode(ids)  # but text, which a stop string cut within an id
        return tuple(self._llm.tokenizer.encode(answer.text, follows=True)) if nothing_else else None
