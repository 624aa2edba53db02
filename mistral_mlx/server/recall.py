"""What answers were sampled as. Clients send a conversation back as text; with the ids that it was made of, what was
computed for them can be used again (`text.messages.Message.ids`).
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import accumulate
from threading import Lock

from mistral_mlx.text.messages import Message

# About 40 MB. An answer takes as much as so many ids beside its own, and a thought of four letters as much as one.
_MOST_IDS = 1_000_000
_BESIDE = 32


class Recall:
    """The ids of the answers that were given last, by the conversation before them and what they say."""

    def __init__(self, most: int = _MOST_IDS) -> None:
        """Remember nothing yet, and later what takes no more memory than so many ids."""
        self._most = most
        self._held = 0
        self._answers: OrderedDict[bytes, tuple[str, tuple[int, ...]]] = OrderedDict()
        self._lock = Lock()

    def keep(self, conversation: bytes, answer: Message) -> None:
        """Remember what was answered to a conversation, given by what `key` says of it."""
        if answer.ids is None:
            return
        key = _key(conversation, answer)
        with self._lock:
            if key in self._answers:
                self._held -= _weight(*self._answers.pop(key))
            self._answers[key] = answer.thinking, answer.ids
            self._held += _weight(answer.thinking, answer.ids)
            while self._held > self._most:
                self._held -= _weight(*self._answers.popitem(last=False)[1])

    def restore(self, messages: Sequence[Message]) -> list[Message]:
        """The same conversation, with the ids of the answers that were given here."""
        keys = list(accumulate(messages, _key, initial=b""))[1:]
        return [self._restored(turn, key) for turn, key in zip(messages, keys, strict=True)]

    def _restored(self, turn: Message, key: bytes) -> Message:
        if turn.role != "assistant" or turn.prefix:
            return turn
        with self._lock:
            thinking, ids = self._answers.get(key, ("", None))
            if ids is None or turn.thinking not in ("", thinking):
                return turn
            self._answers.move_to_end(key)
        return replace(turn, ids=ids)


def _weight(thinking: str, ids: Sequence[int]) -> int:
    return len(ids) + len(thinking) // 4 + _BESIDE


def key(messages: Iterable[Message]) -> bytes:
    """What stands for a conversation: its text and its calls, not what was thought."""
    return reduce(_key, messages, b"")


def _key(before: bytes, m: Message) -> bytes:
    calls = [(call.id, call.name, call.arguments) for call in m.tool_calls]
    said = json.dumps([m.role, m.content, m.parts, calls, m.tool_call_id])
    return hashlib.sha256(before + said.encode()).digest()
