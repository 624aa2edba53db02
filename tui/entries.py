"""How turns look in the transcript: their titles, figures and calls in words, and where the window begins."""

from __future__ import annotations

import json
from collections.abc import Sequence

from mistral_mlx.completion import Stats, ToolCall
from tui.conversation import Conversation, Turn
from tui.widgets.bars import count
from tui.widgets.transcript import Entry

_TITLES = {"user": "You", "assistant": "Assistant", "tool": "Tool"}
_ENDS = {
    "stop": "",
    "length": "cut at max_tokens, /continue goes on",
    "cancelled": "stopped, /continue goes on",
    "interrupted": "interrupted, /continue goes on",
    "tool_rounds": "still calls tools",
    "cut": "cut by a stop string",
}


def entry_of(conversation: Conversation, turn: Turn, *, writing: bool = False) -> Entry:
    """A turn as it is drawn."""
    beside = conversation.siblings(turn)
    place = next((i for i, other in enumerate(beside) if other.id == turn.id), 0)
    return Entry(
        key=turn.id,
        role=turn.role,
        title=_TITLES[turn.role],
        text=turn.text if writing else turn.text.rstrip(),
        thinking=turn.thinking,
        badge=f"{place + 1}/{len(beside)}" if len(beside) > 1 else "",
        footer="" if writing else figures(turn),
        thinking_title=thought(turn),
        calls=tuple(map(call_line, turn.tool_calls)),
    )


def figures(turn: Turn) -> str:
    """What an answer cost and how it ended, on one line."""
    if turn.role != "assistant":
        return ""
    if turn.finish == "failed":
        return f"failed: {turn.error}"
    parts = []
    if stats := turn.stats:
        if stats.completion_tokens:
            count_of = max(len(turn.tokens), stats.completion_tokens)  # more where it was gone on with
            parts = [f"{count_of:,} tokens", f"{stats.decode_tps:.0f}/s", f"first {seconds(stats.ttft_s)}"]
        if stats.reused_tokens:
            share = stats.reused_tokens / stats.prompt_tokens
            parts.append(f"reused {count(stats.reused_tokens)} of {count(stats.prompt_tokens)} ({share:.0%})")
        if stats.accepted_tokens:
            parts.append(f"{stats.accepted_tokens:,} drafted right")
    temperature = (turn.receipt or {}).get("sampling", {}).get("temperature")
    if temperature:
        parts.append(f"t {temperature:g}")
    if left_out := (turn.receipt or {}).get("left_out"):
        parts.append(f"{left_out} older messages left out")
    parts.append(_ENDS.get(turn.finish or "", turn.finish or ""))
    return " · ".join(part for part in parts if part)


def thought(turn: Turn) -> str:
    """The head of what the model thought."""
    if not turn.thinking:
        return ""
    tokens = sum(1 for end in turn.tokens.ends if end <= len(turn.thinking))
    return f"thought, {tokens:,} tokens" if tokens else "thought"


def call_line(call: ToolCall) -> str:
    """A call of a tool as Python would write it."""
    try:
        arguments = json.loads(call.arguments)
        given = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
    except (ValueError, AttributeError):
        given = call.arguments
    return f"{call.name}({given})"


def seconds(number: float) -> str:
    """A time in as few digits as say something."""
    return f"{number * 1000:.0f} ms" if number < 0.1 else f"{number:.2f} s" if number < 10 else f"{number:.0f} s"


def position(path: Sequence[Turn]) -> int:
    """How many tokens the conversation has, as far as that is known from its last answer."""
    stats = last_stats(path)
    return stats.prompt_tokens + stats.completion_tokens if stats else 0


def last_stats(path: Sequence[Turn]) -> Stats | None:
    """Those of the last answer."""
    return next((turn.stats for turn in reversed(path) if turn.stats), None)


def first_in_window(path: Sequence[Turn], window: int) -> Turn | None:
    """The first turn that the next token attends to whole and directly; None if nothing has left the window."""
    boundary = position(path) - window
    if boundary <= 0:
        return None
    end = 0
    for turn in path:
        start = turn.stats.prompt_tokens if turn.stats else end
        if start >= boundary:
            return turn
        if turn.stats:
            end = start + turn.stats.completion_tokens
    return None
