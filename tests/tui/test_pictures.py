"""Pictures of the screen, compared with those that were looked at when they were made.

They are those of one version of Textual. After a change that is meant, look at the new ones:
`uv run pytest -m slow tests/tui/test_pictures.py --snapshot-update`
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from textual.pilot import Pilot

from tests.tui.chatting import Chatting, chat_app
from tests.tui.fake_llm import FakeLLM
from tui import app as app_module
from tui import session
from tui.catalogue import ModelEntry
from tui.settings import Settings
from tui.start import Start

pytestmark = pytest.mark.slow

GIB = 2**30
MODELS = [
    ModelEntry("demo", None, 94 * 2**20, True, True, "Q4_1"),
    ModelEntry("mlx-community/Mistral-7B-Instruct-v0.3-4bit", "7b", 0, False, None, "", 4 * GIB),
    ModelEntry("mistralai/Mistral-7B-v0.1", "7b-v0.1", 9 * GIB, False, None, "", 5 * GIB),
    ModelEntry("mlx-community/Mistral-Small-24B-Instruct-2501-4bit", "small", 13 * GIB, True, False, "4 bits / 64"),
]
ROLLING = """The rolling buffer keeps the last **W** positions: slot `i % W` holds the newest.

## How it works

1. A new key goes to slot `i % W`.
2. Each query sees W keys, *itself included*.

| tokens | window | all |
|---:|---:|---:|
| 4,096 | 512 MiB | 512 MiB |
| 32,768 | 528 MiB | 4 GiB |

```python
def put(cache, key, value, i, W=4096):
    cache.keys[i % W] = key  # the oldest goes
    cache.values[i % W] = value
```

> Memory stays the same however long the text grows.
"""
CODE = "Here it is:\n\n```python\n" + "\n".join(f"def step_{i}(x):\n    return x + {i}" for i in range(20)) + "\n```\n"

Steps = Callable[[Chatting], Awaitable[None]]
Compare = Callable[..., None]


@pytest.fixture
def compare(snap_compare: Callable[..., bool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """Runs steps in a chat and compares what is then on the screen."""
    for name in ("COLUMNS", "LINES"):  # which the comparison leaves behind, for every program that is started later
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr("tui.widgets.chats.age", lambda then: "2m")
    monkeypatch.setattr("tui.screens.search.age", lambda then: "2m")
    monkeypatch.setattr(session.Answer, "tps", property(lambda self: 61.0))
    monkeypatch.setattr(app_module.Engine, "models", lambda self, *, on_models, **_: on_models(MODELS))

    def run(
        steps: Steps,
        model: FakeLLM | None = None,
        *,
        size: tuple[int, int] = (100, 30),
        theme: str = "mistral-dark",
        start: Start | None = None,
    ) -> None:
        llm = model or FakeLLM(
            lambda text: CODE if "code" in text else ROLLING if "buffer" in text else f"You said: {text}."
        )
        chosen, begun = Settings(theme=theme), start or Start(model="mistral-7b")

        async def before(pilot: Pilot[Any]) -> None:
            chat = Chatting(app, pilot)
            await pilot.pause()
            if start is None:
                await chat.until(lambda: app.engine.model, "the model")
            await steps(chat)
            for widget in app.screen.query("Input, TextArea"):
                widget.cursor_blink = False  # or it is by chance on the picture
            await pilot.pause(0.6)  # what settles does
            app.clear_notifications()
            await pilot.pause()

        with chat_app(tmp_path, lambda *_, **__: llm, begun, chosen) as app:
            assert snap_compare(app, terminal_size=size, run_before=before)

    return run


async def nothing(chat: Chatting) -> None:
    """As it begins."""


async def asked(chat: Chatting) -> None:
    """One question, answered with everything that Markdown has."""
    await chat.ask("Explain the rolling buffer.")


def test_first_run(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.until_shown("Welcome")

    compare(steps, start=Start())


def test_empty(compare: Compare) -> None:
    compare(nothing)


def test_answered(compare: Compare) -> None:
    compare(asked, size=(120, 40))


def test_streaming(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.say("Explain the rolling buffer.")
        await chat.until(lambda: len(chat.path[-1].tokens) == 60, "60 tokens")

    compare(steps, FakeLLM(lambda _: ROLLING, pause_after=60))


def test_reading(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.Answer, "seconds_to_read", property(lambda self: 2.4))

    async def steps(chat: Chatting) -> None:
        await chat.say("Explain the rolling buffer. " * 40)
        answer = chat.app.session.answer
        assert answer
        chat.app.session._on_progress(210, 380)

    compare(steps, FakeLLM(lambda _: ROLLING, prefill_s=1.5))


def test_stopped(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.say("Explain the rolling buffer.")
        await chat.until(lambda: len(chat.path[-1].tokens) == 30, "30 tokens")
        await chat.pilot.press("escape")
        await chat.idle()

    compare(steps, FakeLLM(lambda _: ROLLING, pause_after=30))


def test_error(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.say("Explain the rolling buffer.")
        await chat.idle()

    compare(steps, FakeLLM(lambda _: ROLLING, fail_after=20))


def test_long_code(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.ask("Show me code.")
        chat.app.transcript.focus()
        await chat.pilot.press("pageup")

    compare(steps)


def test_thinking(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.ask("Hello")
        await chat.ask("Hello again")
        await chat.pilot.press("ctrl+t")

    compare(steps, FakeLLM(thinks="They greet me, so I greet them.\n\nShort is best: **one** sentence."))


def test_a_branch_that_is_chosen(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.ask("Hello")
        await chat.say("/regenerate temperature=0.3 seed=1")
        await chat.idle()
        chat.app.transcript.focus()
        await chat.pilot.press("K", "K")

    compare(steps, size=(120, 30))


def test_window(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        for text in ("The first thing that was said", "The second", "The third"):
            await chat.ask(text)

    compare(steps, FakeLLM(window=40))


def test_slash_commands(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.pilot.press("slash", "r", "e")

    compare(steps)


def test_picker(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.pilot.press("ctrl+o")

    compare(steps)


def test_settings(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.pilot.press("f2")

    compare(steps)


def test_search(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.ask("A trip to Lyon in spring")
        await chat.pilot.press("ctrl+n")
        await chat.ask("The springs of a watch")
        await chat.say("/search spri")

    compare(steps)


def test_help(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.pilot.press("f1")

    compare(steps)


def test_tokens(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await asked(chat)
        await chat.say("/tokens")
        await chat.until(lambda: getattr(chat.app.screen, "_alternatives", []), "alternatives")

    compare(steps)


def test_lanes(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await asked(chat)
        await chat.say("/compare temperature=0,0.7,1")
        await chat.until(lambda: chat.app.session.answer is None, "the lanes")

    compare(steps, size=(120, 40))


def test_tree(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await chat.ask("Hello")
        await chat.ask("And more")
        await chat.say("/regenerate seed=1")
        await chat.idle()
        await chat.pilot.press("escape", "escape")
        await chat.say("Something else")
        await chat.idle()
        await chat.say("/tree")

    compare(steps)


@pytest.mark.parametrize(("width", "height"), [(80, 24), (46, 20), (30, 12)])
def test_sizes(compare: Compare, width: int, height: int) -> None:
    compare(asked, size=(width, height))


def test_chats_over_a_narrow_screen(compare: Compare) -> None:
    async def steps(chat: Chatting) -> None:
        await asked(chat)
        await chat.pilot.press("ctrl+l")

    compare(steps, size=(80, 24))


@pytest.mark.parametrize("theme", ["mistral-light", "high-contrast", "ansi-dark"])
def test_themes(compare: Compare, theme: str) -> None:
    compare(asked, theme=theme)


def test_no_color(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")

    async def steps(chat: Chatting) -> None:
        await asked(chat)
        chat.app.transcript.focus()
        await chat.pilot.press("K", "K")

    compare(steps)


def test_wide_characters(compare: Compare) -> None:
    table = "| 名前 | n |\n|---|---:|\n| 東京 | 1 |\n| Oslo 🙂 | 20 |\n"
    text = "日本語のテキスト、한국어, emoji 👩‍👩‍👧 🇫🇷 ✌️, and e\u0301 combined.\n\n"

    async def steps(chat: Chatting) -> None:
        await chat.ask("日本語 👍")

    compare(steps, FakeLLM(lambda _: text + table))


def test_screenshot(compare: Compare) -> None:
    """The one in the README."""

    async def steps(chat: Chatting) -> None:
        for title in ("Regex for ISO dates", "A haiku on Metal", "Three days in Lyon"):
            await chat.ask(title)
            await chat.pilot.press("ctrl+n")
        chat.app.session.rename("A haiku on Metal", chat.app.session.store.listing()[1].id)
        report = "\n".join(f"{i}. Each layer of the network passes on what it has seen." for i in range(250))
        await chat.ask(f"What is a sliding window, by this report?\n\n{report}")
        await chat.ask("Explain the rolling buffer and show code.")
        await chat.say("/regenerate temperature=0.4 seed=42")
        await chat.idle()
        await chat.pilot.press(*"And how is it taken back")
        await chat.pilot.pause(0.4)

    first = (
        "Each token attends to the last **W** tokens only, itself included; layers above carry what is older further.\n"
    )
    script = {"What": first, "Explain": ROLLING}
    model = FakeLLM(lambda text: script.get(text.split()[0], f"{text}, with pleasure."))
    compare(steps, model, size=(112, 38))
