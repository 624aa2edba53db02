"""A conversation with a model: its turns, the tools that it calls, and what of all that need not be read again."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event
from typing import TYPE_CHECKING, Any
from weakref import ref

from mistral_mlx.batching import check_lanes
from mistral_mlx.completion import Chunk, Completion, Forecast, ToolCall, join_calls
from mistral_mlx.engine.reading import Progress
from mistral_mlx.engine.sampling import SamplingParams
from mistral_mlx.errors import ContextError, InputError, OutOfMemoryError, RequestError
from mistral_mlx.request import Request
from mistral_mlx.text.messages import Message, listed, open_calls, read_messages
from mistral_mlx.text.reply import Piece, Reply
from mistral_mlx.text.tokenizer import checked_text
from mistral_mlx.text.tools import (
    AUTO,
    NOT_RUN,
    TOO_LONG,
    Around,
    Tool,
    ToolChoice,
    as_text,
    read_tools,
    run_call,
    runs_here,
)

if TYPE_CHECKING:
    from mistral_mlx.llm import LLM

_MAX_ROUNDS = 8


@dataclass(frozen=True)
class _Options:
    """How to answer."""

    params: SamplingParams
    tools: tuple[Tool, ...]
    choice: ToolChoice = AUTO
    max_rounds: int = 0
    cancel: Event | None = None
    progress: Progress | None = None

    @property
    def stopped(self) -> bool:
        return self.cancel is not None and self.cancel.is_set()


@dataclass(frozen=True)
class Asked:
    """What a model is to answer, checked.

    Attributes:
        messages: but for a beginning of the answer.
        request: what is read and how it is answered.
    """

    messages: list[Message]
    request: Request
    _llm: LLM
    _begun: Piece  # what stands of the answer already
    _begun_ids: list[int] | None  # its ids; None if they cannot be told from the prompt's

    def calls(self, chunks: Sequence[Chunk]) -> list[ToolCall]:
        """The tools that an answer calls, if it came to its end."""
        if not chunks or chunks[-1].finish_reason != "stop":
            return []
        calls = join_calls([*self._begun.tool_calls, *(delta for c in chunks for delta in c.tool_calls)])
        return calls[: 1 if self._llm.chat_format.one_call else None]

    def turn(self, chunks: Sequence[Chunk]) -> Message:
        """The answer as it is kept: what was said, with the ids that were sampled for it."""
        text = self._begun.text + "".join(c.text for c in chunks)
        thinking = self._begun.thinking + "".join(c.thinking for c in chunks)
        ids = self._kept(text, [i for c in chunks for i in c.tokens])
        return Message("assistant", text, ids, thinking, tuple(self.calls(chunks)))

    def _kept(self, text: str, tokens: list[int]) -> tuple[int, ...] | None:
        """The ids that an answer is kept as: those that were sampled and shown; None to encode it from its text."""
        if self._begun_ids is None:
            return None
        tokenizer, ids = self._llm.tokenizer, [*self._begun_ids, *tokens]
        if ids[-1] in self._llm.stop_ids:  # the chat format writes its own end of a turn
            return tuple(ids[:-1])
        if not self.request.params.stop:
            return tuple(ids)

        def shown(ids: list[int]) -> str:
            reply = Reply(tokenizer)
            return "".join([*(reply.feed(i).text for i in ids), reply.flush().text])

        kept = list(ids)
        while len(shown(kept)) > len(text):
            kept.pop()
        if shown(kept) == text:
            return tuple(kept)
        nothing_else = shown(ids) == self._llm.decode(ids)  # but text, which a stop string cut within an id
        return tuple(tokenizer.encode(text, follows=True)) if nothing_else else None


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
            tool_choice: "auto"; "none" for an answer without calls; "required" for one that calls a tool, or the name
                of the tool that it calls. Once tools have been run it is "auto".
            parallel_tool_calls: whether it may call several at once.
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
        requests = [self.ask(**lane).request for lane in lanes]
        answers = self._llm.run_together(requests, cancel=cancel, progress=progress)
        self._open = ref(answers)
        return answers

    def ask(self, *, tool_choice: str = "auto", parallel_tool_calls: bool = True, **sampling: Any) -> Asked:
        """What answering what stands in `messages` takes, for whoever decodes many answers together; arguments and
        errors as for `stream`.
        """
        choice = ToolChoice.of(tool_choice, parallel_tool_calls, self.tools)
        return self._ask([*self._so_far()], _Options(self._llm.params(sampling), self.tools, choice))

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
        return self._encode([*before, *new], self._options({}))

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
        options = self._options(given)
        answer = self._answers(self._ask([*before, *new], options), options)
        self._open = ref(answer)
        return answer

    def _options(self, given: Mapping[str, Any]) -> _Options:
        """All options, checked."""
        sampling = dict(given)
        tools, max_rounds = sampling.pop("tools", None), sampling.pop("max_rounds", _MAX_ROUNDS)
        choice, parallel = sampling.pop("tool_choice", "auto"), sampling.pop("parallel_tool_calls", True)
        cancel, progress = sampling.pop("cancel", None), sampling.pop("progress", None)
        if isinstance(max_rounds, bool) or not isinstance(max_rounds, int) or max_rounds < 0:
            raise InputError(f"max_rounds is {max_rounds!r}.", "It must be a whole number from 0.")
        tools = self.tools if tools is None else read_tools(tools)
        choice = ToolChoice.of(choice, parallel, tools)
        return _Options(self._llm.params(sampling), tools, choice, max_rounds, cancel, progress)

    def _ask(self, messages: list[Message], options: _Options) -> Asked:
        """The prompt, and what reads its answer."""
        llm, params = self._llm, options.params
        ids = self._encode(messages, options)
        begun = messages[-1] if messages[-1].prefix else None
        before = messages[:-1] if begun else messages
        if options.choice.never:
            params = llm.without_calls(params)
        constraint = llm.constraint(params, chat=True, tools=options.tools, choice=options.choice)
        start = None if begun is None else self._start_of_answer(before, ids, options)
        if begun and start is None:
            if constraint:
                raise RequestError("An answer that was begun so cannot be held to a form.", "Leave out the form.")
            request = llm.request(ids, params, Reply(llm.tokenizer, continues=True), None, begun.content)
            return Asked(before, request, llm, Piece(begun.content, begun.thinking), None)
        begun_ids = [] if start is None else ids[start:]
        reply, said = Reply(llm.tokenizer), Piece()
        for token in begun_ids:
            said += reply.feed(token)
            if constraint:
                constraint.accept(token)
        request = llm.request(ids, params, reply, constraint, said.text, len(begun_ids))
        return Asked(before, request, llm, said, begun_ids)

    def _start_of_answer(self, before: Sequence[Message], ids: Sequence[int], options: _Options) -> int | None:
        """Where in the ids an answer that was begun begins; None if the format joins it with what is before it."""
        try:
            start = self._encode([*before, Message("assistant", ids=(), prefix=True)], options)
        except RequestError:
            return None
        return len(start) if start != ids and ids[: len(start)] == start else None

    def _encode(self, messages: Sequence[Message], options: _Options) -> list[int]:
        tools = () if options.choice.never else options.tools
        around: Around = {**self._around, "tools": tools, "json_schema": options.params.json_schema}
        return self._llm.checked(self._format.encode(messages, **around))

    def _answers(self, asked: Asked, options: _Options) -> Generator[Chunk]:
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
            options = replace(options, choice=AUTO)
            try:
                asked = self._ask(self.messages, options)
            except (ContextError, OutOfMemoryError):
                self.messages = [*said, *(replace(result, content=TOO_LONG) for result in results)]
                asked = self._ask(self.messages, options)

    def _answer(self, asked: Asked, options: _Options, *, last: bool) -> Generator[Chunk, None, list[ToolCall]]:
        """One answer; returns the calls of tools in it, if it came to its end."""
        chunks: list[Chunk] = []
        run = self._llm.run(asked.request, cancel=options.cancel, progress=options.progress)
        try:
            for chunk in run:
                chunks.append(chunk)
                if last and runs_here(options.tools, asked.calls(chunks)):
                    chunk = replace(chunk, finish_reason="tool_rounds")
                yield chunk
        finally:  # also when the reader stopped listening: what was said stays said
            run.close()
            if any(chunk.tokens for chunk in chunks):
                self.messages = [*asked.messages, asked.turn(chunks)]
        return asked.calls(chunks)
