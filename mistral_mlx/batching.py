"""Several answers at once, for scripts: all of them are known from the beginning."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from mistral_mlx.completion import Chunk
from mistral_mlx.errors import InputError
from mistral_mlx.request import Request
from mistral_mlx.scheduling import Scheduler


def check_lanes(lanes: Sequence[Mapping[str, Any]]) -> None:
    """Refuse what is no list of options; what is in them is checked one by one."""
    if not isinstance(lanes, (list, tuple)) or not all(isinstance(lane, Mapping) for lane in lanes):
        raise InputError(f"lanes is {lanes!r}.", "Give a list with the options of each answer.")


def run_together(
    scheduler: Scheduler, requests: Sequence[Request], cancelled: Callable[[], bool] | None = None
) -> Generator[tuple[int, Chunk]]:
    """Chunks of all answers as they come, each with the index of its request. Prompts that are the same are read once.

    Args:
        cancelled: asked before each step; once it says yes, every answer ends as it stands.
    """
    places = {request: index for index, request in enumerate(requests)}
    # Alike in length, so that prompts that are read together waste little.
    for request in sorted(requests, key=lambda request: len(request.ids)):
        scheduler.add(request)
    while not scheduler.idle:
        if cancelled and cancelled():
            scheduler.cancel()
        for request, chunk in scheduler.step():
            if isinstance(chunk, Exception):
                raise chunk
            yield places[request], chunk
