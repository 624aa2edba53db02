"""A conversation as a tree: an edit or a new answer is a branch beside the old one, and nothing is overwritten."""

from __future__ import annotations

import secrets
import string
import time
from array import array
from bisect import insort
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mistral_mlx.completion import Stats, ToolCall

if TYPE_CHECKING:
    from mistral_mlx import Message

Role = Literal["user", "assistant", "tool"]

_TITLE = 48
_NOT_RUN = '{"error": "This tool was not run."}'
_last_id = 0


def new_id() -> int:
    """An id for a turn, greater than any that this process gave before: milliseconds, and 20 bits of chance."""
    global _last_id
    _last_id = max(_last_id + 1, time.time_ns() // 1_000_000 << 20 | secrets.randbits(20))
    return _last_id


def new_conversation_id() -> str:
    """Eight letters and digits."""
    return "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(8))


def well_formed(text: str) -> str:
    """The text as UTF-8 can carry it: half a surrogate pair, which is no character, becomes U+FFFD."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def make_title(text: str) -> str:
    """A title out of the first message: its first line that says something, at most 48 characters, cut at a word."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    line = next((line for line in lines if any(map(str.isalnum, line))), " ".join(text.split()))
    if len(line) <= _TITLE:
        return line
    cut = line[: _TITLE - 1]
    word_end = cut.rfind(" ") if line[_TITLE - 1] != " " else len(cut)
    return cut[: word_end if word_end > _TITLE // 2 else len(cut)].rstrip() + "…"


@dataclass
class Tokens:
    """The tokens of an answer, as parallel arrays; empty for other turns.

    Attributes:
        logprobs: the log-probability that the model gave each.
        ends: how many characters of the answer (thinking, then text) were there after each.
    """

    ids: array[int] = field(default_factory=lambda: array("I"))
    logprobs: array[float] = field(default_factory=lambda: array("f"))
    ends: array[int] = field(default_factory=lambda: array("I"))

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Iterable[int], logprobs: Iterable[float], end: int) -> None:
        """Take down what came with one piece of the answer, which now has `end` characters.

        Of several tokens the last counts as what brought the text, for the text waited for it.
        """
        before = self.ends[-1] if self.ends else 0
        for token, logprob in zip(ids, logprobs, strict=True):
            self.ids.append(token)
            self.logprobs.append(logprob)
            self.ends.append(before)
        if self.ends:
            self.ends[-1] = end

    def piece(self, index: int, said: str) -> str:
        """The text that a token brought to `said` (`Turn.said`); empty where a character was not complete."""
        return said[self.ends[index - 1] if index > 0 else 0 : self.ends[index]]

    def copy(self, count: int | None = None) -> Tokens:
        """The same, or the first `count` of them, to grow by themselves."""
        return Tokens(self.ids[:count], self.logprobs[:count], self.ends[:count])

    def to_bytes(self) -> bytes:
        """All three arrays, twelve bytes a token."""
        return self.ids.tobytes() + self.logprobs.tobytes() + self.ends.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Tokens:
        """What `to_bytes` gave; raises ValueError for anything else."""
        third, rest = divmod(len(data), 3)
        if rest:
            raise ValueError(f"{len(data)} bytes are no tokens")
        tokens = cls()
        tokens.ids.frombytes(data[:third])
        tokens.logprobs.frombytes(data[third : 2 * third])
        tokens.ends.frombytes(data[2 * third :])
        return tokens


@dataclass
class Turn:
    """What was said once, by one side. All text is raw: whoever shows it has to make it safe for a terminal.

    Attributes:
        parent: the turn that it follows; None at the beginning.
        kept: the ids that stand for an answer in what the model reads next, as `Chat` keeps them: those that were
            sampled, but for a stop token. None to encode the text.
        finish: how an answer ended: a `Chunk.finish_reason`, "failed" or "interrupted" (the program ended before it).
            None while it is being written.
        error: why it failed.
        receipt: what is needed to compute it again, as plain JSON.
        created: seconds since 1970.
    """

    id: int
    parent: int | None
    role: Role
    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    tokens: Tokens = field(default_factory=Tokens)
    kept: tuple[int, ...] | None = None
    finish: str | None = None
    error: str = ""
    stats: Stats | None = None
    receipt: dict[str, Any] | None = None
    created: float = field(default_factory=time.time)

    @property
    def said(self) -> str:
        """The thinking and the text, to which `Tokens.ends` refers."""
        return self.thinking + self.text

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The tools that it wants run: none where the answer was cut, as a call may be half written."""
        return self.tool_calls if self.finish in ("stop", "tool_rounds") else ()


@dataclass
class Conversation:
    """A tree of turns, and the branch of it that is read now.

    Attributes:
        id: eight letters and digits.
        named: the user chose the title.
        options: how answers are sampled, as fields of `SamplingParams`.
        tip: the last turn of the branch that is read; None before the first.
        draft: what the user has typed and not sent.
        created, updated, deleted: seconds since 1970; `deleted` is None for one that is not.
        turns: all of them by id. Add to them by `add` only.
    """

    id: str = field(default_factory=new_conversation_id)
    title: str = ""
    named: bool = False
    pinned: bool = False
    model: str = ""
    system: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    tip: int | None = None
    draft: str = ""
    created: float = field(default_factory=time.time)
    updated: float = field(default_factory=time.time)
    deleted: float | None = None
    turns: dict[int, Turn] = field(default_factory=dict)
    _children: dict[int | None, list[int]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _visited: dict[int | None, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for turn in sorted(self.turns):
            self._children.setdefault(self.turns[turn].parent, []).append(turn)
        self._visit()

    def add(self, turn: Turn) -> Turn:
        """Append a turn under its parent and go there; returns it."""
        self.turns[turn.id] = turn
        insort(self._children.setdefault(turn.parent, []), turn.id)
        self.tip = turn.id
        self.updated = time.time()
        self._visit()
        return turn

    def path(self, tip: int | None = None) -> list[Turn]:
        """The turns from the beginning to `tip`, or to where the conversation is now."""
        turns = []
        at = self.tip if tip is None else tip
        while at is not None:
            turns.append(self.turns[at])
            at = turns[-1].parent
        return turns[::-1]

    def children(self, turn: int | None) -> list[Turn]:
        """What follows a turn, or what begins the conversation (None): the oldest first."""
        return [self.turns[child] for child in self._children.get(turn, ())]

    def siblings(self, turn: Turn) -> list[Turn]:
        """The versions of a turn, itself among them: the oldest first."""
        return self.children(turn.parent)

    def choose(self, turn: int) -> None:
        """Go to the branch that leads through a turn, to its end: where it forks, the way that was taken last."""
        self.tip = turn
        while following := self._children.get(self.tip):
            self.tip = self._visited.get(self.tip, following[-1])
        self._visit()

    def messages(self, until: int | None = None, *, own: Callable[[Turn], bool] | None = None) -> list[Message]:
        """What the model reads: the turns up to `until` (itself included), or to where the conversation is now.

        Left out are answers of which nothing was said; tools that were called and not run get a result that says so.

        Args:
            own: whether the model that is asked gave an answer itself. What another model answered goes by its text
                alone: its ids mean something else here, and a format may have no place for its thinking. All are the
                model's own by default.
        """
        from mistral_mlx import Message

        messages: list[Message] = []
        open_calls: dict[str | None, None] = {}
        for turn in self.path(until):
            text = well_formed(turn.text)
            if turn.role == "tool":
                open_calls.pop(turn.tool_call_id, None)
                messages.append(Message("tool", text, tool_call_id=turn.tool_call_id))
                continue
            messages += [Message("tool", _NOT_RUN, tool_call_id=call) for call in open_calls]
            open_calls.clear()
            if turn.role == "user":
                messages.append(Message("user", text))
                continue
            mine = own is None or own(turn)
            kept, thinking = (turn.kept, well_formed(turn.thinking)) if mine else (None, "")
            if kept is not None or text or thinking or turn.calls:
                messages.append(Message("assistant", text, kept, thinking, turn.calls))
                open_calls = dict.fromkeys(call.id for call in turn.calls)
        return messages

    def _visit(self) -> None:
        """Remember the way to the tip."""
        self._visited |= {turn.parent: turn.id for turn in self.path()}
