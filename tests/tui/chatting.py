"""The chat as tests use it: a fake model behind the real engine, a database of its own, and waiting for what comes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from textual.pilot import Pilot

from mistral_mlx.errors import InputError
from tests.tui.fake_llm import FakeLLM
from tui.app import ChatApp
from tui.conversation import Turn
from tui.engine import Engine
from tui.settings import Settings
from tui.start import Start, begin
from tui.store import Store

THEME = "mistral-dark"


class Chatting:
    """A chat that runs, with what a test looks at."""

    def __init__(self, app: ChatApp, pilot: Pilot[None]) -> None:
        self.app, self.pilot = app, pilot

    @property
    def path(self) -> list[Turn]:
        """The turns on the screen."""
        return self.app.session.conversation.path()

    @property
    def screen_text(self) -> str:
        """What a person would read, line by line."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join("".join(segment.text for segment in strip) for strip in strips)

    @property
    def told(self) -> list[str]:
        """The sentences that were told, the oldest first."""
        return [notice.message for notice in self.app._notifications]

    async def until(self, condition: Callable[[], Any], what: str = "it", seconds: float = 20.0) -> None:
        """Wait until something is so."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"{what} did not come about:\n{self.screen_text}\n{self.told}"
            await self.pilot.pause(0.02)
        await self.pilot.pause()

    async def until_shown(self, text: str) -> None:
        """Wait until a text is on the screen."""
        await self.until(lambda: text in self.screen_text, repr(text))

    async def say(self, text: str) -> None:
        """Type a message, or a command, and send it."""
        self.app.composer.load(text)
        self.app.composer.focus()
        await self.pilot.press("enter")
        await self.pilot.pause()

    async def ask(self, text: str) -> Turn:
        """Say something and wait for the whole answer."""
        count = len(self.app.session.conversation.turns)
        await self.say(text)
        await self.until(lambda: len(self.app.session.conversation.turns) > count, "an answer")
        await self.idle()
        return self.path[-1]

    async def idle(self) -> None:
        """Wait until nothing is written or loaded."""
        await self.until(lambda: self.app.session.answer is None and not self.app.engine.busy, "the end of it")


@contextmanager
def chat_app(folder: Path, load: Callable[..., Any], start: Start, settings: Settings) -> Iterator[ChatApp]:
    """The app with its database and its settings in a folder, not begun yet; what it holds is let go of."""
    store = Store.open(folder / "conversations.db")
    app = ChatApp(
        store,
        settings,
        start,
        begin(start, settings, store),
        settings_path=folder / "settings.toml",
        engine=partial(Engine, load=load),
    )
    try:
        yield app
    finally:
        app.session.finish()
        app.engine.close()
        store.close()


@asynccontextmanager
async def chatting(
    folder: Path,
    llm: FakeLLM | None = None,
    *,
    start: Start | None = None,
    settings: Settings | None = None,
    size: tuple[int, int] = (100, 30),
    load: Callable[..., Any] | None = None,
    wait: bool = True,
) -> AsyncIterator[Chatting]:
    """The chat, on the screen and ready.

    Args:
        folder: where the database and the settings are.
        llm: what is loaded, under any name but "missing".
        wait: until the model is loaded.
    """
    model = llm or FakeLLM()

    def loaded(name: str, *, progress: Any, loading: Any, **options: Any) -> FakeLLM:
        if name == "missing":
            raise InputError("There is no model 'missing' on this machine.", "Choose another.")
        loading(1, 2)
        loading(2, 2)
        return model

    chosen, begun = settings or Settings(theme=THEME), start or Start(model="fake")
    with chat_app(folder, load or loaded, begun, chosen) as app:
        async with app.run_test(size=size) as pilot:
            chat = Chatting(app, pilot)
            await pilot.pause()
            if wait and (start is None or start.model):
                await chat.until(lambda: app.engine.model, "the model")
            yield chat
