"""What goes on behind the screen: the conversation that is shown, the answer that is being written, what is saved.

Knows no widget: it tells a View what happened.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from mistral_mlx.completion import Chunk, ToolCall
from mistral_mlx.errors import InputError, MistralError
from tui import receipt, transfer
from tui.conversation import Conversation, Turn, make_title, new_id
from tui.engine import Engine
from tui.journal import Journal
from tui.model import Alternative, Ask
from tui.recording import Recording
from tui.store import Store

if TYPE_CHECKING:
    from mistral_mlx import Message
    from mistral_mlx.worker import Job

MOST_ALTERNATIVES = 10
_PATIENCE_S = 3.0
# The one setting of a conversation that is not about sampling: how many tokens it may have, its answer included.
CONTEXT = "context"


class View(Protocol):
    """What a session tells the screen; all of it on the screen's thread."""

    def show_conversation(self) -> None:
        """Another conversation or another branch is on; the list of them is shown anew too."""

    def show_turn(self, turn: Turn) -> None:
        """A turn was added at the end, or has changed."""

    def begin_answer(self, turn: Turn) -> None:
        """This answer, which stands at the end, is being written from now on."""

    def end_turn(self, turn: Turn, results: Sequence[Turn]) -> None:
        """It called tools, and these are their results; another answer follows."""

    def feed_answer(self, text: str, thinking: str, calls: Sequence[ToolCall]) -> None:
        """More of it has come; the calls are all of its calls so far."""

    def show_state(self) -> None:
        """Something that the bars show has changed."""

    def end_answer(self, answer: Answer) -> None:
        """It is whole: stopped, failed or done."""

    def feed_lanes(self, chunks: Sequence[tuple[int, Chunk]]) -> None:
        """More of several answers that are written together has come."""

    def show_listing(self) -> None:
        """The list of conversations has changed."""

    def tell(self, text: str, *, fault: bool = False) -> None:
        """Say a sentence."""


@dataclass
class Answer:
    """One that is being written, or several at once.

    Attributes:
        lanes: what is taken down of each; one, unless several are compared.
        known, read, to_read: tokens of the prompt: those known before, these and those read so far, all.
        first: when its first token came; 0 before.
        count: tokens so far.
    """

    conversation: Conversation
    lanes: list[Recording]
    job: Job | None = None
    stopping: bool = False
    known: int = 0
    read: int = 0
    to_read: int = 0
    start: float = field(default_factory=time.monotonic)
    first: float = 0.0
    count: int = 0

    @property
    def compares(self) -> bool:
        """Whether there are several."""
        return len(self.lanes) > 1

    @property
    def at(self) -> int:
        """The tokens of the conversation so far."""
        return self.to_read + self.count // len(self.lanes)

    @property
    def turn(self) -> Turn:
        """The turn that is being written."""
        return self.lanes[0].turn

    @property
    def turns(self) -> list[Turn]:
        """All turns of all of them."""
        return [turn for lane in self.lanes for turn in lane.turns]

    def take(self, chunk: Chunk, lane: int = 0) -> bool:
        """Take down the next chunk; returns whether it begins another turn."""
        if chunk.tokens and not self.first:
            self.first = time.monotonic()
        self.count += len(chunk.tokens)
        return self.lanes[lane].take(chunk)

    @property
    def tps(self) -> float:
        """Tokens a second since the first."""
        seconds = time.monotonic() - self.first
        return (self.count - 1) / seconds if self.first and self.count > 1 and seconds > 0 else 0.0

    @property
    def seconds_to_read(self) -> float | None:
        """How long the rest of the prompt will take; None while nothing is known."""
        new, seconds = self.read - self.known, time.monotonic() - self.start
        return (self.to_read - self.read) * seconds / new if new and not self.first else None


@dataclass
class Replay:
    """An answer that is being made again: how many of its tokens have come."""

    job: Job
    total: int
    done: int = 0


class Session:
    """Conversations, one of them shown.

    Attributes:
        conversation: the one that is shown.
        answer: what is being written, in this conversation or another; None if nothing is.
        waiting: what is sent as soon as it can be, and in which conversation.
        replaying: an answer that is being made again.
        journal: what is not on disk yet.
        defaults: sampling options where a conversation has none of its own.
        system, asked: the system prompt and the options of new conversations.
    """

    def __init__(
        self,
        store: Store,
        engine: Engine,
        view: View,
        defaults: Mapping[str, Any],
        system: str,
        options: Mapping[str, Any],
        tools: Sequence[Callable[..., Any]] = (),
    ) -> None:
        self.store, self.engine, self.view = store, engine, view
        self.defaults, self.system, self.asked = dict(defaults), system, dict(options)
        self.answer: Answer | None = None
        self.waiting: tuple[Conversation, str] | None = None
        self.replaying: Replay | None = None
        self.journal = Journal(store)
        self.deleted: list[str] = []
        self.tools: tuple[Callable[..., Any], ...] = tuple(tools)
        self.conversation = self._blank()

    # ---- conversations --------------------------------------------------------------------------------------------

    def _blank(self) -> Conversation:
        return Conversation(system=self.system, options=dict(self.asked))

    def begin(self) -> None:
        """A new conversation; nothing of it is saved before something is written."""
        self.show(self._blank())

    def open(self, id: str, turn: int | None = None) -> None:
        """Show a conversation, and the branch of it that leads through a turn; an answer in another goes on there.

        Raises:
            InputError: there is none any more.
        """
        known = turn is None or turn in self.conversation.turns
        if id != self.conversation.id:
            self.show(self._of(id))
        elif not known and not self.answer:  # another window has added it
            self.show(self.store.load(id))
        self.choose(turn)

    def show(self, conversation: Conversation) -> None:
        """Show a conversation that was read already."""
        left, self.conversation = self.conversation, conversation
        if left is not conversation and not left.turns and not left.draft.strip() and self.journal.known(left):
            self.store.delete(left.id)  # a draft that was taken back
        self.view.show_conversation()

    def choose(self, turn: int | None) -> None:
        """Go to the branch that leads through a turn."""
        if turn in self.conversation.turns:
            self.conversation.choose(turn)
            self.journal.mark(self.conversation)
            self.save()
            self.view.show_conversation()

    def adopt(self, conversation: Conversation) -> None:
        """Take up a conversation from outside, and show it."""
        self.journal.mark(conversation, *conversation.turns.values())
        self.save()
        self.show(conversation)

    def rename(self, title: str, id: str | None = None) -> None:
        """Give a conversation a title of the user's."""
        self._change(id, title=title, named=True)

    def pin(self, id: str | None = None) -> None:
        """Keep a conversation at the top of the list, or let it go from there."""
        conversation = self._of(id)
        self._change(id, pinned=not conversation.pinned)

    def delete(self, id: str | None = None) -> str:
        """Delete a conversation so that `undelete` brings it back; returns its title."""
        conversation = self._of(id)
        if not conversation.turns and not conversation.draft:
            raise InputError("There is nothing to delete.", "")
        if self.answer and self.answer.conversation.id == conversation.id:
            self.stop()
        if self.waiting and self.waiting[0].id == conversation.id:
            self.waiting = None
        self.save()
        self.store.delete(conversation.id)
        self.deleted.append(conversation.id)
        if conversation.id == self.conversation.id:
            self.begin()
        else:
            self.view.show_listing()
        return conversation.title or "a draft"

    def undelete(self) -> None:
        """Bring back what was deleted last.

        Raises:
            InputError: nothing was, since the start.
        """
        if not self.deleted:
            raise InputError("Nothing was deleted since the start.", "")
        id = self.deleted.pop()
        self.store.undelete(id)
        self.open(id)

    def change(self, **changes: Any) -> None:
        """Change system prompt, options or model of the conversation."""
        self._change(None, **changes)

    def _of(self, id: str | None) -> Conversation:
        if id is None or id == self.conversation.id:
            return self.conversation
        if self.answer and self.answer.conversation.id == id:
            return self.answer.conversation
        return self.journal.held(id) or self.store.load(id)

    def _change(self, id: str | None, **changes: Any) -> None:
        conversation = self._of(id)
        for name, value in changes.items():
            setattr(conversation, name, value)
        if conversation.turns:
            self.journal.mark(conversation)
            self.save()
            self.view.show_listing()
        self.view.show_state()

    # ---- saving ---------------------------------------------------------------------------------------------------

    def save(self) -> bool:
        """Write what has changed; what cannot be written is told once, and stays to be written later."""
        before = self.journal.trouble
        saved = self.journal.save()
        if self.journal.trouble != before:
            self.view.tell(
                f"Not saved yet: {self.journal.trouble}" if not saved else "Everything is saved.", fault=not saved
            )
            self.view.show_state()
        return saved

    def save_draft(self, text: str) -> None:
        """Keep what is being written."""
        conversation = self.conversation
        if text != conversation.draft:
            conversation.draft = text
            if conversation.turns or text.strip() or self.journal.known(conversation):
                self.journal.mark(conversation)
                self.save()

    def finish(self) -> None:
        """The program ends: what was said of an answer is kept, what waits is a draft, and everything saved."""
        if self.waiting:
            conversation, text = self.waiting
            conversation.draft = f"{text}\n\n{conversation.draft}".strip()
            self.journal.mark(conversation)
        if self.answer:
            if self.answer.job:
                self.answer.job.cancel()
            for lane in self.answer.lanes:
                lane.end("cancelled")
            self.journal.mark(self.answer.conversation, *self.answer.turns)
        self.save()

    def rescue(self, folder: Path) -> list[Path]:
        """At the end: try for a while to save what is not yet; what still cannot be is written to files of its own."""
        give_up = time.monotonic() + _PATIENCE_S
        while not self.journal.save() and time.monotonic() < give_up:
            time.sleep(0.1)
        return [transfer.export(c, str(folder / f"unsaved-{c.id}-{new_id()}.json")) for c in self.journal.unsaved]

    def tick(self) -> None:
        """Called twice a second: what has come is saved, and what waits is sent."""
        if self.journal.trouble or self.answer:
            self.save()
        self.send_waiting()

    # ---- asking ---------------------------------------------------------------------------------------------------

    @property
    def options(self) -> dict[str, Any]:
        """The sampling options that hold here."""
        return {name: value for name, value in self.settings.items() if name != CONTEXT}

    @property
    def settings(self) -> dict[str, Any]:
        """The same, and the most tokens of the context, if that is limited."""
        return self._settings_of(self.conversation)

    def _settings_of(self, conversation: Conversation) -> dict[str, Any]:
        settings = self.defaults | conversation.options
        return {name: value for name, value in settings.items() if value is not None}

    def _put(self, conversation: Conversation, messages: list[Message], options: Mapping[str, Any]) -> Ask:
        """These messages as they are to be answered."""
        sampling = {name: value for name, value in options.items() if name != CONTEXT}
        return Ask(conversation.system, messages, sampling, self.tools, self._settings_of(conversation).get(CONTEXT))

    @property
    def ready(self) -> bool:
        """Whether something can be asked now."""
        return self.engine.model is not None and self.answer is None and not self.engine.busy

    def ask_for(self, text: str) -> Ask:
        """What would be asked if this was said now."""
        from mistral_mlx import Message

        messages = [*self.conversation.messages(own=self.own), Message("user", text)]
        return self._put(self.conversation, messages, self.options)

    def send(self, text: str) -> None:
        """Say something; it waits if the model is not ready."""
        if not text.strip():
            return
        conversation = self.conversation
        conversation.draft = ""
        if self.ready:
            self._say(conversation, Turn(new_id(), conversation.tip, "user", text))
            return
        if self.waiting:
            where, before = self.waiting
            if where is conversation:
                text = f"{before}\n\n{text}"
            else:  # one waits at a time
                where.draft = before
                self.journal.mark(where)
        self.waiting = (conversation, text)
        self.view.show_state()

    def send_waiting(self) -> None:
        """Send what waits, if it can be sent."""
        if self.waiting and self.ready:
            (conversation, text), self.waiting = self.waiting, None
            self._say(conversation, Turn(new_id(), conversation.tip, "user", text))

    def take_waiting(self) -> str:
        """What waits in this conversation, which is not sent then; empty if nothing does."""
        if not self.waiting or self.waiting[0] is not self.conversation:
            return ""
        (_, text), self.waiting = self.waiting, None
        self.view.show_state()
        return text

    def edit(self, turn: Turn, text: str) -> None:
        """Say something in place of a message of the user's; the former branch stays."""
        self._need_ready()
        self._say(self.conversation, Turn(new_id(), turn.parent, "user", text))

    def _say(self, conversation: Conversation, turn: Turn) -> None:
        first = not conversation.turns
        conversation.add(turn)
        conversation.title = conversation.title or make_title(turn.text)
        self.journal.mark(conversation, turn)
        self.save()  # before the model is asked
        if conversation is self.conversation:
            if len(conversation.siblings(turn)) > 1:
                self.view.show_conversation()
            else:
                self.view.show_turn(turn)
        if first:
            self.view.show_listing()
        self._answer(conversation, turn.id)

    def regenerate(self, turn: Turn, **options: Any) -> None:
        """Answer again, beside the former answer.

        Raises:
            InputError: at temperature 0 nothing would change.
        """
        self._need_ready()
        before = self._question(turn)
        now = self.options | options
        same = [t for t in self.conversation.children(before.id) if t.finish in ("stop", "length") and self.own(t)]
        if not now.get("temperature", 0) and same and not options:
            raise InputError("At temperature 0 the answer would be the same.", "Try /regenerate temperature=0.8.")
        if "seed" not in options:
            options["seed"] = secrets.randbits(32)  # the conversation's own gives what is there already
        self._answer(self.conversation, before.id, options)

    def _question(self, turn: Turn) -> Turn:
        """What an answer answers; a question itself."""
        turns = self.conversation.turns
        while turn.role != "user":
            if turn.parent is None:
                raise InputError("There is nothing to answer.", "Say something first.")
            turn = turns[turn.parent]
        return turn

    def proceed(self, turn: Turn) -> None:
        """Go on with an answer that was stopped, cut or interrupted.

        Raises:
            InputError: it came to its own end, or is no answer.
        """
        self._need_ready()
        if turn.role != "assistant" or turn.finish in ("stop", "tool_rounds", "cut"):
            raise InputError("This answer came to its end.", "Only one that was stopped or cut can be gone on with.")
        model = self.engine.model
        interrupted = turn.receipt is None and model is not None and self.conversation.model == model.name
        if len(turn.tokens) and not (self.own(turn) or interrupted):
            raise InputError("This answer was begun by another model.", "Load that one, or answer again: /regenerate.")
        sampling = dict((turn.receipt or {}).get("sampling", {})) | {"max_tokens": self.options["max_tokens"]}
        if self.conversation.children(turn.id):  # what followed stays as it is
            turn = replace(turn, id=new_id(), tokens=turn.tokens.copy())
            self.conversation.add(turn)
        self._answer(self.conversation, turn.parent, sampling, begun=turn if len(turn.tokens) else None)

    def fork(self, turn: Turn, index: int, other: Alternative) -> None:
        """Begin an answer anew with its first tokens and another one after them.

        Args:
            index: how many of its tokens stay.
        """
        self._need_ready()
        new = Turn(new_id(), turn.parent, "assistant")
        end = turn.tokens.ends[index - 1] if index else 0
        thinks = end < len(turn.thinking)
        new.thinking, new.text = turn.said[: min(end, len(turn.thinking))], turn.said[len(turn.thinking) : end]
        new.tokens = turn.tokens.copy(index)
        if thinks:
            new.thinking += other.text
        else:
            new.text += other.text
        new.tokens.add([other.id], [math.log(max(other.probability, 1e-30))], len(new.said))
        self.conversation.add(new)
        self.journal.mark(self.conversation, new)
        self._answer(self.conversation, turn.parent, {"seed": secrets.randbits(32)}, begun=new)

    def _need_ready(self) -> None:
        if self.engine.model is None and self.engine.busy:
            raise InputError("The model is still being loaded.", "Wait a moment.")
        if self.engine.model is None:
            raise InputError("No model is loaded.", "Choose one: /models.")
        if self.answer is not None:
            raise InputError("An answer is being written.", "Stop it first: Esc.")
        if self.engine.busy:
            raise InputError("The model is busy.", "Wait, or stop that: Esc.")

    def _answer(
        self,
        conversation: Conversation,
        parent: int | None,
        options: Mapping[str, Any] | None = None,
        begun: Turn | None = None,
    ) -> None:
        from mistral_mlx import Message

        sampling = self._settings_of(conversation) | dict(options or {})
        sampling.setdefault("seed", secrets.randbits(32))
        messages = conversation.messages(parent, own=self.own)
        turn = begun or Turn(new_id(), parent, "assistant")
        recording = Recording(conversation, turn)
        if begun is None:
            conversation.add(turn)
        else:
            messages = [*messages, Message("assistant", ids=tuple(turn.tokens.ids), prefix=True)]
        if self.engine.model:
            conversation.model = self.engine.model.name
        self.answer = Answer(conversation, [recording])
        self.journal.mark(conversation, turn)
        self.save()
        if conversation is self.conversation:
            if begun or len(conversation.siblings(turn)) > 1:
                self.view.show_conversation()
            else:
                self.view.begin_answer(turn)
        self.answer.job = self.engine.answer(
            self._put(conversation, messages, sampling),
            on_chunks=self._on_chunks,
            on_kept=self._on_kept,
            on_progress=self._on_progress,
            on_done=self._on_done,
            on_error=self._on_error,
            on_cancelled=self._on_cancelled,
        )
        self.view.show_state()

    def compare(self, lanes: Sequence[Mapping[str, Any]], turn: Turn | None = None) -> Answer:
        """Several answers to the last question, or to that of `turn`, written together, each with its options."""
        self._need_ready()
        conversation = self.conversation
        path = conversation.path()
        if turn is None and not path:
            raise InputError("There is nothing to answer.", "Say something first.")
        question = self._question(turn or path[-1])
        each = [self.options | {"seed": secrets.randbits(32)} | dict(lane) for lane in lanes]
        messages = conversation.messages(question.id, own=self.own)
        turns = [Turn(new_id(), question.id, "assistant") for _ in each]
        for one in turns:
            conversation.add(one)
        conversation.choose(turns[0].id)
        self.answer = answer = Answer(conversation, [Recording(conversation, one) for one in turns])
        self.journal.mark(conversation, *turns)
        self.save()
        answer.job = self.engine.compare(
            self._put(conversation, messages, self.options),
            each,
            on_chunks=self._on_lane_chunks,
            on_progress=self._on_progress,
            on_done=self._on_lanes_done,
            on_error=self._on_error,
            on_cancelled=self._on_cancelled,
        )
        self.view.show_state()
        return answer

    def stop(self) -> bool:
        """Stop the answer at the next step and keep what was said, or a replay; returns whether there was one."""
        if self.answer:
            self.answer.stopping = True
            if self.answer.job:
                self.answer.job.cancel()
        elif self.replaying:
            self.replaying.job.cancel()
        else:
            return False
        self.view.show_state()
        return True

    # ---- what comes back ------------------------------------------------------------------------------------------

    def shows(self, answer: Answer | None) -> bool:
        """Whether an answer is on the screen while it is written: in this conversation, and on this branch of it."""
        if answer is None or answer.conversation is not self.conversation:
            return False
        return any(self.conversation.tip == lane.turns[-1].id for lane in answer.lanes)

    def _on_progress(self, done: int, total: int) -> None:
        if self.answer:
            if not self.answer.to_read:
                self.answer.known = done
            self.answer.read, self.answer.to_read = done, total
            self.view.show_state()

    def _on_chunks(self, chunks: Sequence[Chunk]) -> None:
        answer = self.answer
        if answer is None:
            return
        text, thinking, calls, began = "", "", False, not answer.first
        for chunk in chunks:
            if answer.take(chunk) and self.shows(answer):  # tools were run, and this is the answer to their results
                self.view.begin_answer(answer.turn)
                text, thinking = "", ""
            text += chunk.text
            thinking += chunk.thinking
            calls = calls or bool(chunk.tool_calls)
        self.journal.mark(answer.conversation, answer.turn)
        if self.shows(answer):
            self.view.feed_answer(text, thinking, answer.turn.tool_calls if calls else ())
        if began:  # later, now and then is enough: drawing the bars with each token would cost more than the text
            self.view.show_state()

    def _on_kept(self, messages: Sequence[Message], made: receipt.Receipt) -> None:
        """What the history keeps of an answer, and of the tools that it called."""
        if self.answer:
            recording = self.answer.lanes[0]
            recording.certify(made)
            results = recording.keep(messages)
            self.journal.mark(self.answer.conversation, recording.turn, *results)
            if results and self.shows(self.answer):
                self.view.end_turn(recording.turn, results)

    def _on_lane_chunks(self, chunks: Sequence[tuple[int, Chunk]]) -> None:
        answer = self.answer
        if answer is None:
            return
        began = not answer.first
        for lane, chunk in chunks:
            answer.take(chunk, lane)
        self.journal.mark(answer.conversation, *answer.turns)
        self.view.feed_lanes(chunks)
        if began:
            self.view.show_state()

    def _on_done(self, _: receipt.Receipt) -> None:
        self._end("cancelled")

    def _on_lanes_done(self, made: Sequence[receipt.Receipt]) -> None:
        if self.answer:
            for lane, one in zip(self.answer.lanes, made, strict=False):
                lane.certify(one)
                lane.turn.kept = receipt.kept(lane.turn.tokens.ids, lane.turn.finish, one["sampling"])
            self._end("cancelled")

    def _on_cancelled(self) -> None:
        self._end("cancelled")

    def _on_error(self, error: BaseException) -> None:
        self._end("failed", say(error))

    def _end(self, otherwise: str, error: str = "") -> None:
        """An answer has ended; one that did not say how ended so."""
        answer, self.answer = self.answer, None
        if answer is None:
            return
        for lane in answer.lanes:
            lane.end(otherwise, error)
        answer.conversation.updated = time.time()
        self.journal.mark(answer.conversation, *answer.turns)
        self.save()
        if error:
            self.view.tell(error, fault=True)
        self.view.end_answer(answer)
        self.view.show_state()
        self.send_waiting()

    # ---- asking about an answer -----------------------------------------------------------------------------------

    def alternatives(
        self, turn: Turn, index: int, found: Callable[[list[Alternative]], object], failed: Callable[..., object]
    ) -> None:
        """What might have come as the token at `index` of an answer."""
        ask = self._as_before(turn, index)
        self.engine.alternatives(ask, MOST_ALTERNATIVES, on_done=found, on_error=failed)

    def replay(self, turn: Turn) -> None:
        """Make an answer again, and tell what the comparison says.

        Raises:
            InputError: it has no receipt.
        """
        self._need_ready()
        if not turn.receipt:
            raise InputError("This answer has no receipt.", "Answers that were written here have one.")
        begun = turn.receipt.get("begun", 0)
        ask = self._as_before(turn, begun)
        job = self.engine.replay(
            ask,
            turn.receipt,
            turn.tokens.ids[begun:],
            on_progress=self._on_replayed,
            on_done=lambda verdict: self._replayed(f"Replay: {verdict}."),
            on_error=lambda error: self._replayed(say(error), fault=True),
            on_cancelled=lambda: self._replayed("The replay was stopped."),
        )
        self.replaying = Replay(job, len(turn.tokens) - begun)
        self.view.show_state()

    def _on_replayed(self, done: int, total: int) -> None:
        if self.replaying:
            self.replaying.done = done
            self.view.show_state()

    def _replayed(self, said: str, *, fault: bool = False) -> None:
        self.replaying = None
        self.view.tell(said, fault=fault)
        self.view.show_state()

    def _as_before(self, turn: Turn, begun: int) -> Ask:
        """What an answer was an answer to, with the first of its tokens."""
        from mistral_mlx import Message

        left_out = (turn.receipt or {}).get("left_out", 0)
        messages = self.conversation.messages(turn.parent, own=self.own)[left_out:]
        if begun:
            messages.append(Message("assistant", ids=tuple(turn.tokens.ids[:begun]), prefix=True))
        return Ask(self.conversation.system, messages, {}, self.tools)

    def own(self, turn: Turn) -> bool:
        """Whether the model that is loaded gave an answer itself, so that its ids mean the same here."""
        return self.engine.model is not None and receipt.is_from(turn.receipt, self.engine.model)


def say(error: BaseException) -> str:
    """An error in words for people."""
    if isinstance(error, MistralError):
        return f"{error.message} {error.hint}".strip()
    return f"{type(error).__name__}: {error}"
