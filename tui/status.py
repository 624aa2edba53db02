"""What the lines above and below the conversation say: which model, what it does, where the window is."""

from __future__ import annotations

from typing import NamedTuple

from rich.text import Text

from tui import entries
from tui.model import Forecast
from tui.sanitize import one_line
from tui.session import Answer, Session
from tui.widgets.bars import count, gauge, size

# The cells at the left and at the right, the most important first.
Sides = tuple[list[str | Text], list[str | Text]]

_PHASES = {"": "opening", "fetch": "fetching", "load": "loading"}


class Loading(NamedTuple):
    """A model that is being loaded, and how far that is: "fetch" or "load", and bytes."""

    name: str
    phase: str = ""
    done: int = 0
    total: int = 0


def top(session: Session, loading: Loading | None) -> Sides:
    """The model, and what is talked about."""
    model = session.engine.model
    left: list[str | Text]
    if loading:
        share = f" {loading.done / loading.total:.0%}" if loading.total else ""
        left = [Text(f"{_PHASES[loading.phase]} {one_line(loading.name)}{share}", "bold")]
    elif model:
        left = [Text(one_line(model.name), "bold"), one_line(model.quantization), size(model.weights)]
    else:
        left = [Text("no model: ^O", "bold")]
    options = session.options
    title = Text(one_line(session.conversation.title) or "New conversation")
    temperature = f"t {options['temperature']:g}" if "temperature" in options else ""
    return left, [title, temperature, f"seed {options['seed']}" if "seed" in options else ""]


def bottom(session: Session, *, narrow: bool) -> Sides:
    """What the model does, or did last, and what that takes."""
    answer = session.answer
    unsaved = Text("not saved", "bold reverse") if session.journal.trouble else ""
    right: list[str | Text] = [unsaved, Text("F1" if narrow else "F1 help", "dim")]
    if answer and answer.stopping:
        return [Text("stopping…", "bold")], right
    if answer and not answer.first:
        return _reading(answer), right
    if again := session.replaying:
        return [Text("making it again", "bold"), gauge(again.done / max(1, again.total), 16), "Esc stops"], right
    model, path = session.engine.model, session.conversation.path()
    stats = entries.last_stats(path)
    live = answer if session.shows(answer) else None
    at = live.at if live else entries.position(path)
    cells: list[str | Text] = []
    if answer:
        cells.append(Text(f"{answer.tps:.0f} tokens/s", "bold"))
    elif stats:
        cells.append(f"{stats.decode_tps:.0f} tokens/s")
    if isinstance(window := model and model.window, int):
        inside = min(at, window)
        meter = Text.assemble(
            "window ", gauge(inside / window, 4 if narrow else 10), f" {count(inside)}/{count(window)}"
        )
        cells.append(meter.append(f", {count(at - window)} behind it") if at > window else meter)
    if model and model.context_length:
        cells.append(f"context {count(at)}/{count(model.context_length)}")
    elif at:
        cells.append(f"{count(at)} tokens")
    if stats:
        cells.append(f"cache {size(stats.cache_bytes)}")
    if model:
        used = model.weights + (stats.cache_bytes if stats else 0)
        cells.append(f"memory {size(used)} of {size(model.memory_limit)}")
    if stats and stats.reused_tokens:
        cells.append(f"reused {stats.reused_tokens / stats.prompt_tokens:.0%}")
    return cells, right


def _reading(answer: Answer) -> list[str | Text]:
    """How far a prompt has been read."""
    if not answer.to_read:
        return [Text("reading the prompt", "bold")]
    left = answer.seconds_to_read
    bar = Text.assemble(("reading ", "bold"), gauge(answer.read / answer.to_read, 16))
    figures = f"{count(answer.read)}/{count(answer.to_read)} tokens {answer.read / answer.to_read:.0%}"
    return [bar, figures, f"{entries.seconds(left)} left" if left is not None else "", "Esc stops"]


def ahead(session: Session, forecast: Forecast, read_tps: float) -> str:
    """What sending the draft would take.

    Args:
        read_tps: how many tokens of a prompt were read a second, the last time; 0 if that is not known.
    """
    if forecast.problem:
        return forecast.problem
    new = forecast.prompt_tokens - forecast.reused_tokens
    window = session.engine.model and session.engine.model.window
    parts = [f"{new:,} tokens to read"]
    if isinstance(window, int) and forecast.prompt_tokens > window and session.conversation.system:
        parts.insert(0, "the system prompt leaves the window")
    if read_tps:
        parts.append(f"first token in about {entries.seconds(new / read_tps)}")
    if forecast.left_out:
        parts.append(f"{forecast.left_out} older messages are left out")
    if forecast.reused_tokens:
        parts.append(f"{forecast.reused_tokens / forecast.prompt_tokens:.0%} known")
    return ", ".join(parts)
