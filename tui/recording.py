"""An answer taken down as it comes: chunks become turns of the conversation."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from mistral_mlx.completion import Chunk, ToolCallDelta, join_calls
from tui import receipt
from tui.conversation import Conversation, Turn, new_id

if TYPE_CHECKING:
    from mistral_mlx import Message


class Recording:
    """Follows one answer. Where tools are run it has several turns, their results among them.

    Attributes:
        turn: the answer that is being given; its `finish` is None until it has ended.
        turns: all turns so far.
    """

    def __init__(self, conversation: Conversation, turn: Turn) -> None:
        """Begin with a turn of the conversation; one that has text is gone on with."""
        self.conversation = conversation
        self.turn = turn
        self.turns = [turn]
        self._begun = len(turn.tokens)
        self._deltas: list[ToolCallDelta] = []
        if self._begun:
            _unflush(turn)
        turn.finish, turn.error = None, ""

    def take(self, chunk: Chunk) -> bool:
        """Take down the next chunk; returns whether it begins another turn, as it does after tools were run."""
        another = self.turn.finish is not None
        if another:
            self.turn = self._add(Turn(new_id(), self.turns[-1].id, "assistant"))
            self._deltas, self._begun = [], 0
        turn = self.turn
        turn.thinking += chunk.thinking
        turn.text += chunk.text
        turn.tokens.add(chunk.tokens, chunk.logprobs, len(turn.said))
        if chunk.tool_calls:
            self._deltas += chunk.tool_calls
            turn.tool_calls = tuple(join_calls(self._deltas))
        if chunk.finish_reason is not None:
            turn.finish, turn.stats = chunk.finish_reason, chunk.stats
        return another

    def keep(self, messages: Iterable[Message]) -> list[Turn]:
        """Take over what the history keeps of the answer; returns the results of its tools, which come with it."""
        results = []
        for message in messages:
            if message.role == "assistant":
                self.turn.kept = message.ids
                self.turn.tool_calls = message.tool_calls or self.turn.tool_calls
            else:
                result = Turn(new_id(), self.turns[-1].id, "tool", message.content, tool_call_id=message.tool_call_id)
                results.append(self._add(result))
        return results

    def certify(self, made: Mapping[str, Any]) -> None:
        """Take its receipt."""
        turn = self.turn
        turn.receipt = receipt.joined(turn.receipt, dict(made), self._begun, turn.tokens.ids)

    def end(self, otherwise: str, error: str = "") -> None:
        """Nothing more comes.

        Args:
            otherwise: how an answer ended that did not say so itself.
            error: why it failed.
        """
        if self.turn.finish is None:
            self.turn.finish, self.turn.error = otherwise, error

    def _add(self, turn: Turn) -> Turn:
        """Add it after the last one, without taking a reader along who has gone to another branch."""
        reader, last = self.conversation.tip, self.turns[-1]
        self.conversation.add(turn)
        if reader != last.id and reader is not None:
            self.conversation.choose(reader)
        self.turns.append(turn)
        return turn


def _unflush(turn: Turn) -> None:
    """Take back the signs that stand for a character which was cut: it comes whole now."""
    for name in ("thinking", "text"):
        setattr(turn, name, getattr(turn, name).rstrip("\ufffd"))
    turn.tokens.ends = array("I", (min(end, len(turn.said)) for end in turn.tokens.ends))
