"""Choosing a model, and fetching one from a stand-in for the hub, over HTTP."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_server import Hub, point_to
from tests.tui.chatting import chatting
from tui.screens.models import ModelsScreen

FILES = {"config.json": b"{}", "model.safetensors": bytes(6 << 20), "tokenizer.json": b"{}"}


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    from mistral_mlx import models

    server.repos = {"someone/Tiny": dict(FILES)}
    point_to(server, tmp_path / "hub", monkeypatch)
    monkeypatch.setattr(models, "ALIASES", {"tiny": "someone/Tiny"})
    return server


async def test_a_download_is_seen_stopped_and_gone_on_with(hub: Hub, tmp_path: Path) -> None:
    hub.pause = 0.3
    async with chatting(tmp_path) as chat:
        await chat.pilot.press("ctrl+o")
        await chat.until_shown("fetch, 6 MiB")
        screen = chat.app.screen
        assert isinstance(screen, ModelsScreen)
        await chat.pilot.press("end", "enter")
        await chat.until_shown("x stops")
        await chat.pilot.press("x")
        await chat.until_shown("Stopped. Enter goes on where it was.")
        hub.pause = 0.0
        await chat.pilot.press("enter")
        await chat.until_shown("tiny is here. Enter loads it.")
        await chat.until_shown("is not run here")  # its configuration says nothing: the list has been read anew
        assert "tiny is here. Enter loads it." in chat.screen_text
        await chat.pilot.press("enter")
        await chat.until(lambda: chat.app.engine.model and chat.app.engine.model.name == "someone/Tiny", "the model")
        assert (await chat.ask("Hello")).finish == "stop"


async def test_without_a_network_what_is_here_is_offered_and_why_the_rest_cannot_be_had(
    hub: Hub, tmp_path: Path
) -> None:
    hub.down = True
    async with chatting(tmp_path) as chat:
        await chat.pilot.press("ctrl+o")
        await chat.until_shown("tiny")
        await chat.pilot.press("end", "enter")
        await chat.until(lambda: "network" in chat.screen_text or "reach" in chat.screen_text, "why it cannot")
        await chat.pilot.press("escape")
        assert (await chat.ask("Hello")).finish == "stop"


async def test_a_name_that_is_no_model_is_told(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.pilot.press("ctrl+o")
        await chat.until_shown("another:")
        chat.app.screen.query_one("#name").focus()
        await chat.pilot.press(*"missing")
        await chat.pilot.press("enter")
        await chat.until(lambda: any("There is no model 'missing'" in told for told in chat.told), "the fault")
        assert (await chat.ask("Hello")).finish == "stop"
