"""Writing a prompt: what each key does to the draft, what is sent, and that nothing is lost."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import ClassVar

import pytest
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.pilot import Pilot
from textual.widgets import Static

from tests.tui.terminal_session import TerminalSession
from tui.widgets.completion import Completion, CompletionList, matching
from tui.widgets.composer import Composer

LONG = "\n".join(f"line {i}" for i in range(412))
CHIP = "[paste 1 · 412 lines]"


class Desk(App[None]):
    """A composer, and what it has told."""

    CSS = "Composer { dock: bottom; } Static { height: 1fr; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding(key, f"note('{key}')", show=False)
        for key in ("escape", "ctrl+c", "ctrl+d", "pageup", "end", "shift+up", "ctrl+t", "ctrl+x")
    ]

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.composer = Composer(folder=folder)
        self.told: list[Message] = []
        self.keys: list[str] = []

    def compose(self) -> ComposeResult:
        yield Static()
        yield self.composer

    def on_mount(self) -> None:
        self.composer.focus()

    def action_note(self, key: str) -> None:
        self.keys.append(key)

    def on_composer_submitted(self, event: Composer.Submitted) -> None:
        self.told.append(event)

    on_composer_refused = on_composer_copied = on_composer_edit_previous = on_composer_submitted  # type: ignore[assignment]
    on_composer_draft_changed = on_composer_submitted  # type: ignore[assignment]

    def sent(self) -> list[str]:
        return [event.text for event in self.told if isinstance(event, Composer.Submitted)]

    def of(self, kind: type[Message]) -> list[Message]:
        return [event for event in self.told if isinstance(event, kind)]

    @property
    def offered(self) -> list[str]:
        found = self.screen.query_one(CompletionList)
        return [item.label for item in found._items] if found.display else []


@asynccontextmanager
async def desk(folder: Path, size: tuple[int, int] = (80, 24)) -> AsyncIterator[tuple[Desk, Composer, Pilot[None]]]:
    app = Desk(folder)
    async with app.run_test(size=size) as pilot:
        yield app, app.composer, pilot


async def write(pilot: Pilot[None], text: str) -> None:
    names = {" ": "space", "@": "at", "/": "slash", ".": "full_stop", "\n": "ctrl+j", "\\": "backslash"}
    await pilot.press(*(names.get(character, character) for character in text))


async def paste(pilot: Pilot[None], text: str) -> None:
    pilot.app.post_message(events.Paste(text))
    await pilot.pause()


async def test_enter_sends_and_the_draft_is_empty(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        await pilot.press("enter")
        await write(pilot, "hello")
        await pilot.press("enter", "enter")
        assert app.sent() == ["hello"]
        assert composer.text == ""
        await pilot.press("ctrl+z")
        assert composer.text == "hello"


@pytest.mark.parametrize("key", ["ctrl+j", "shift+enter", "alt+enter", "shift+\r"])
async def test_keys_that_begin_a_line(key: str, tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, _, pilot):
        await pilot.press("a", key, "b", "enter")
        assert app.sent() == ["a\nb"]


async def test_a_backslash_before_enter_begins_a_line(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, _, pilot):
        await write(pilot, "a\\")
        await pilot.press("enter", "b", "enter")
        assert app.sent() == ["a\nb"]


async def test_blanks_alone_are_not_sent_and_indentation_is_kept(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        await pilot.press("space", "ctrl+j", "enter")
        assert app.sent() == []
        composer.load("\n    indented\n")
        await pilot.press("enter")
        assert app.sent() == ["    indented"]


async def test_a_short_paste_is_text_and_never_sends(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        await paste(pilot, "one\r\ntwo\rthree\n")
        assert composer.text == "one\ntwo\nthree\n"
        assert app.sent() == []


@pytest.mark.parametrize(
    ("text", "chip"),
    [
        (LONG, CHIP),
        ("x" * 2_001, "[paste 1 · 2,001 characters]"),
        ("y\n" * 21, "[paste 1 · 21 lines]"),
    ],
)
async def test_a_long_paste_is_a_chip_until_it_is_sent(text: str, chip: str, tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        await write(pilot, "see ")
        await paste(pilot, text)
        assert composer.text == f"see {chip}"
        assert composer.draft == f"see {text}"
        await write(pilot, "!")
        await pilot.press("enter")
        assert app.sent() == [f"see {text}!"]


@pytest.mark.parametrize("text", ["x" * 2_000, "y\n" * 20])
async def test_a_paste_at_the_limit_is_text(text: str, tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, pilot):
        await paste(pilot, text)
        assert composer.text == text


async def test_each_paste_has_its_own_chip(tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, pilot):
        await paste(pilot, LONG)
        await paste(pilot, LONG.upper())
        assert composer.text == CHIP + "[paste 2 · 412 lines]"
        composer.clear()
        await paste(pilot, LONG.title())
        await pilot.press("ctrl+z", "ctrl+z")
        assert composer.draft == LONG + LONG.upper()


@pytest.mark.parametrize(
    ("moves", "key"),
    [
        ([], "backspace"),
        (["left", "left"], "backspace"),
        (["left", "left"], "delete"),
        (["home"], "delete"),
        ([], "ctrl+w"),
        (["shift+left"], "x"),
    ],
)
async def test_a_chip_goes_as_a_whole_and_undo_brings_it_back(moves: list[str], key: str, tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, pilot):
        await paste(pilot, LONG)
        await pilot.press(*moves, key)
        assert composer.text == ("x" if key == "x" else "")
        await pilot.press("ctrl+z")
        assert composer.draft == LONG


async def test_the_last_line_goes_when_it_is_empty(tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, pilot):
        await pilot.press("ctrl+k", "a", "ctrl+j", "ctrl+k")
        assert composer.text == "a\n"


async def test_typing_inside_a_chip_goes_after_it(tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, pilot):
        await paste(pilot, LONG)
        await pilot.press("left", "left", "x", "y")
        assert composer.text == f"{CHIP}xy"


async def test_a_chip_that_is_only_typed_is_text(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        composer.insert(CHIP)
        await pilot.press("backspace", "enter")
        assert app.sent() == [CHIP[:-1]]


async def test_a_chip_unfolds_where_the_cursor_is(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        await paste(pilot, LONG)
        await pilot.press("ctrl+t")
        assert composer.text == LONG
        await pilot.press("ctrl+t")
        assert app.keys == ["ctrl+t"]
        await pilot.press("ctrl+z")
        assert composer.text == CHIP
        await pilot.click(composer, offset=(5, 1), times=2)
        assert composer.text == LONG


async def test_undoing_a_long_insertion_leaves_the_cursor_on_the_text(tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, pilot):
        composer.insert("\n" * 30, maintain_selection_offset=False)
        await pilot.pause()
        await pilot.press("ctrl+z", "ctrl+y", "ctrl+z")
        assert composer.cursor_location == (0, 0)


async def test_what_a_terminal_would_obey_is_not_drawn(tmp_path: Path) -> None:
    hostile = "a\x1b[2Jb\x9bc\x07d\u202ee\u2066f"
    async with desk(tmp_path) as (_, composer, pilot):
        composer.load(hostile)
        await paste(pilot, hostile)
        composer.insert(hostile)
        await pilot.pause()
        drawn = "".join(segment.text for y in range(3) for segment in composer.render_line(y))
        assert "␛[2J" in drawn
        assert not set(drawn) & set("\x1b\x9b\x07\u202e\u2066")
        assert "\u202e" in composer.draft


async def test_the_arrows_walk_earlier_prompts_and_keep_the_draft(tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, pilot):
        composer.prompts = ["oldest", "two\nlines", "newest"]
        await write(pilot, "draft")
        await pilot.press("up")
        assert composer.text == "newest"
        await pilot.press("up")
        assert composer.text == "two\nlines"
        await pilot.press("up", "up", "up")
        assert composer.text == "oldest"
        await pilot.press("down")
        assert composer.text == "two\nlines"
        await pilot.press("down", "down")
        assert composer.text == "draft"
        await pilot.press("down")
        assert composer.text == "draft"


async def test_the_arrows_move_inside_a_draft_of_many_lines(tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, pilot):
        composer.prompts = ["earlier"]
        await write(pilot, "one\ntwo")
        await pilot.press("up")
        assert composer.text == "one\ntwo"
        assert composer.cursor_location[0] == 0
        await pilot.press("up")
        assert composer.text == "earlier"
        await pilot.press("down")
        assert composer.text == "one\ntwo"


async def test_an_earlier_prompt_that_was_changed_is_a_draft(tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, pilot):
        composer.prompts = ["first", "second"]
        await pilot.press("up", "!", "up")
        assert composer.text == "second"
        await pilot.press("down")
        assert composer.text == "second!"


async def test_a_recalled_command_leaves_the_arrows_to_the_prompts(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        composer.commands = [("/help", "What there is")]
        composer.prompts = ["first", "/help"]
        await pilot.press("up")
        await pilot.pause()
        assert app.offered == []
        await pilot.press("up")
        assert composer.text == "first"


async def test_earlier_prompts_are_searched(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        composer.prompts = ["Fix this regex", "Explain\nthe cache", "cache it", "cache it"]
        await write(pilot, "draft")
        await pilot.press("ctrl+r")
        await pilot.pause()
        assert app.offered == ["cache it", "Explain the cache", "Fix this regex"]
        assert composer.draft == "draft"
        await write(pilot, "the")
        await pilot.pause()
        assert app.offered == ["Explain the cache"]
        await pilot.press("escape")
        assert composer.text == "draft"
        await pilot.press("ctrl+r", "down", "enter")
        assert composer.text == "Explain\nthe cache"
        assert app.sent() == []
        await pilot.press("enter")
        assert app.sent() == ["Explain\nthe cache"]


async def test_a_search_that_finds_nothing_sends_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        composer.prompts = ["one"]
        await pilot.press("ctrl+r")
        await write(pilot, "zzz")
        await pilot.press("enter")
        assert app.sent() == []
        await pilot.press("escape")
        assert composer.text == ""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("notes.txt", "src/app.py", "my file.md", "src/\x1b[2Jbad.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}\n")
    return tmp_path


COMMANDS = [("/help", "What there is"), ("/model", "Switch to another model"), ("/models", "All of them")]


async def test_commands_are_offered_and_completed(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        composer.commands = COMMANDS
        await pilot.press("slash")
        await pilot.pause()
        assert app.offered == ["/help", "/model", "/models"]
        await write(pilot, "mod")
        await pilot.pause()
        assert app.offered == ["/model", "/models"]
        await pilot.press("down", "tab")
        assert composer.text == "/models "
        assert app.offered == []
        await pilot.press("enter")
        assert app.sent() == ["/models"]


async def test_the_chosen_completion_and_a_chip_are_told_without_colour(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        app.theme = "ansi-dark"
        await paste(pilot, LONG)
        assert [part.style.underline for part in composer.render_line(0) if part.style] == [True, None, None]
        composer.clear()
        composer.commands = COMMANDS
        await pilot.press("slash")
        await pilot.pause()
        lines = [app.screen.query_one(CompletionList).render_line(y) for y in (0, 1)]
        assert [next(iter(line)).style.underline for line in lines] == [True, None]  # type: ignore[union-attr]


async def test_a_command_written_out_is_sent_by_one_enter(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        composer.commands = COMMANDS
        await write(pilot, "/model")
        await pilot.press("enter")
        assert app.sent() == ["/model"]


async def test_enter_takes_no_completion_that_was_hardly_meant(folder: Path) -> None:
    async with desk(folder) as (app, composer, pilot):
        await write(pilot, "why @mfile")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert app.offered == ["my file.md"]
        await pilot.press("enter")
        assert app.sent() == ["why @mfile"]
        await write(pilot, "@notes.txt")
        await pilot.press("enter")
        assert app.sent()[1].startswith("@notes.txt\n\nnotes.txt:")
        assert composer.text == ""


async def test_a_slash_that_begins_no_command_offers_nothing(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        composer.commands = COMMANDS
        await write(pilot, "/usr/bin")
        await pilot.pause()
        assert app.offered == []
        composer.load("a ")
        await pilot.press("slash")
        await pilot.pause()
        assert app.offered == []


async def test_escape_closes_the_list_first_and_it_stays_closed(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        composer.commands = COMMANDS
        await pilot.press("slash")
        await pilot.press("escape")
        assert app.offered == []
        assert app.keys == []
        await pilot.press("m")
        await pilot.pause()
        assert app.offered == []
        await pilot.press("backspace", "backspace", "slash")
        await pilot.pause()
        assert app.offered != []


async def test_a_click_takes_a_completion_and_the_keyboard_stays(tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, pilot):
        composer.commands = COMMANDS
        await pilot.press("slash")
        await pilot.pause()
        await pilot.click(CompletionList, offset=(4, 2))
        assert composer.text == "/model "
        assert composer.has_focus


async def test_files_are_offered_and_sent(folder: Path) -> None:
    async with desk(folder) as (app, composer, pilot):
        await write(pilot, "see @")
        await app.workers.wait_for_complete()
        await pilot.pause()
        assert app.offered == ["my file.md", "notes.txt", "src/app.py"]
        await write(pilot, "ap")
        await pilot.pause()
        assert app.offered == ["src/app.py"]
        await pilot.press("tab")
        await write(pilot, "@my")
        await pilot.press("enter")
        assert composer.text == 'see @src/app.py @"my file.md" '
        await pilot.press("enter")
        (sent,) = app.of(Composer.Submitted)
        assert isinstance(sent, Composer.Submitted)
        assert sent.text.endswith("my file.md:\n```md\ncontent of my file.md\n```")
        assert [item.path.name for item in sent.attached] == ["app.py", "my file.md"]


async def test_a_file_that_cannot_be_sent_keeps_the_draft(folder: Path) -> None:
    async with desk(folder) as (app, composer, pilot):
        await write(pilot, "@note")
        await app.workers.wait_for_complete()
        await pilot.pause()
        await pilot.press("tab")
        (folder / "notes.txt").unlink()
        await pilot.press("enter")
        (refused,) = app.of(Composer.Refused)
        assert isinstance(refused, Composer.Refused)
        assert refused.error.message == "There is no file notes.txt."
        assert composer.text == "@notes.txt "
        assert app.sent() == []


async def test_names_inside_a_paste_attach_nothing(folder: Path) -> None:
    async with desk(folder) as (app, _, pilot):
        await paste(pilot, "@notes.txt\n" * 30)
        await pilot.press("enter")
        assert app.sent() == ["@notes.txt\n" * 30]


async def test_escape_twice_on_an_empty_draft_edits_the_previous(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, _, pilot):
        await pilot.press("escape", "escape")
        assert len(app.of(Composer.EditPrevious)) == 1
        assert app.keys == ["escape"]
        await pilot.press("a", "escape", "escape")
        assert len(app.of(Composer.EditPrevious)) == 1
        assert app.keys == ["escape"] * 3


async def test_copying_tells_the_app_and_without_a_selection_is_the_apps(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        await paste(pilot, LONG)
        await pilot.press("ctrl+c", "ctrl+x")
        assert app.keys == ["ctrl+c", "ctrl+x"]
        composer.select_all()
        await pilot.press("ctrl+c", "ctrl+x")
        assert [event.text for event in app.of(Composer.Copied)] == [LONG, LONG]  # type: ignore[attr-defined]
        assert composer.text == ""


async def test_keys_of_the_transcript_pass_through(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, _, pilot):
        await pilot.press("pageup", "end", "shift+up", "ctrl+d")
        assert app.keys == ["pageup", "end", "shift+up", "ctrl+d"]
        await pilot.press("a", "end", "shift+up", "ctrl+d", "pageup")
        assert app.keys[4:] == ["pageup"]


async def test_the_draft_is_told_once_the_keys_rest(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        await write(pilot, "abc")
        await paste(pilot, LONG)
        await pilot.pause(0.4)
        assert [event.text for event in app.of(Composer.DraftChanged)][-1] == f"abc{LONG}"  # type: ignore[attr-defined]
        assert composer.draft == f"abc{LONG}"


async def test_loading_a_draft_of_a_single_huge_line_folds_it(tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, _pilot):
        composer.load("x" * 60_000)
        assert composer.text == "[paste 1 · 60,000 characters]"
        assert composer.draft == "x" * 60_000


@pytest.mark.parametrize(("size", "rows"), [((80, 24), 10), ((120, 40), 10), ((46, 20), 10), ((80, 19), 1)])
async def test_it_grows_with_the_text_within_limits(size: tuple[int, int], rows: int, tmp_path: Path) -> None:
    async with desk(tmp_path, size) as (_, composer, pilot):
        assert composer.content_size.height == 1
        await write(pilot, "a\nb\nc")
        await pilot.pause()
        assert composer.content_size.height == min(3, rows)
        composer.load("\n" * 30)
        await pilot.pause()
        assert composer.content_size.height == rows
        composer.clear()
        await pilot.pause()
        assert composer.content_size.height == 1


async def test_it_shrinks_with_the_screen(tmp_path: Path) -> None:
    async with desk(tmp_path) as (_, composer, pilot):
        composer.load("a\nb\nc")
        await pilot.resize_terminal(80, 15)
        await pilot.pause()
        assert composer.content_size.height == 1


def editor(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder / "editor"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.delenv("VISUAL", raising=False)
    monkeypatch.setenv("EDITOR", f"{path} --wait")


@pytest.fixture
def suspended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The headless driver cannot be suspended; what the editor does to the draft can be seen all the same."""

    @contextmanager
    def suspend(app: App[None]) -> Iterator[None]:
        yield

    monkeypatch.setattr(App, "suspend", suspend)


@pytest.mark.usefixtures("suspended")
async def test_the_editor_gets_the_whole_draft_and_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, f'cp "$2" {tmp_path}/seen; printf "written\\nthere\\n" > "$2"', monkeypatch)
    async with desk(tmp_path) as (_, composer, pilot):
        await write(pilot, "see ")
        await paste(pilot, LONG)
        await pilot.press("ctrl+g")
        assert (tmp_path / "seen").read_text() == f"see {LONG}"
        assert composer.text == "written\nthere"
        await pilot.press("ctrl+z")
        assert composer.draft == f"see {LONG}"


@pytest.mark.usefixtures("suspended")
@pytest.mark.parametrize("script", ["exit 3", 'printf "\\377" > "$2"'])
async def test_an_editor_that_fails_keeps_the_draft(
    script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor(tmp_path, script, monkeypatch)
    async with desk(tmp_path) as (app, composer, pilot):
        await pilot.press("a", "ctrl+g")
        assert composer.text == "a"
        assert len(app.of(Composer.Refused)) == 1
        monkeypatch.setenv("EDITOR", os.fspath(tmp_path / "none"))
        await pilot.press("ctrl+g")
        assert len(app.of(Composer.Refused)) == 2


async def test_where_the_app_cannot_step_aside_the_editor_is_refused(tmp_path: Path) -> None:
    async with desk(tmp_path) as (app, composer, pilot):
        await pilot.press("a", "ctrl+g")
        assert composer.text == "a"
        assert len(app.of(Composer.Refused)) == 1


PROGRAM = """
from pathlib import Path
from textual.app import App
from tui.terminal import SafeTerminal, quiet_stderr
from tui.widgets.composer import Composer

class Small(SafeTerminal, App):
    ENABLE_COMMAND_PALETTE = False
    def compose(self):
        yield Composer()
    def on_ready(self):
        self.query_one(Composer).border_title = "ready"
        self.query_one(Composer).focus()
    def on_composer_submitted(self, event):
        with open("sent", "a") as file:
            file.write(repr(event.text) + chr(10))
        self.query_one(Composer).border_title = "sent"

with quiet_stderr(Path("native.log")):
    Small().run()
"""
ROOT = Path(__file__).parents[2]


def test_in_a_real_terminal_only_the_enter_key_sends(tmp_path: Path) -> None:
    hostile = "rm -rf\r\x1b[13u\x1b]0;owned\x07\x1b\r\x1b[2J\r\n\x03"
    command = [sys.executable, "-c", PROGRAM]
    with TerminalSession(command, columns=80, rows=24, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as session:
        session.wait_for("ready")
        for byte in f"\x1b[200~{hostile}\x1b[201~":
            session.write(byte)
        session.wait_for("␛]0;owned␇")
        session.write("\x1b[27;2;13~a\x1b[13;2ub\x1b\rc\nd")
        session.wait_for(lambda session: "c\n│ d" in "\n".join(row.rstrip(" │") for row in session.text.splitlines()))
        assert not (tmp_path / "sent").exists()
        session.write("\r")
        session.wait_for("sent")
        assert b"\x1b]0;owned" not in session.output
        sent = "rm -rf\n␛[13u␛]0;owned␇␛\n␛[2J\n␃\na\nb\nc\nd"
        assert (tmp_path / "sent").read_text() == f"{sent!r}\n"


def test_in_a_real_terminal_the_editor_has_the_screen(tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\necho "editing here" >&2\nread line\nprintf "%s" "$line" > "$1"\n')
    editor.chmod(0o755)
    command = [sys.executable, "-c", PROGRAM]
    env = {"PYTHONPATH": str(ROOT), "VISUAL": str(editor)}
    with TerminalSession(command, columns=80, rows=24, cwd=tmp_path, env=env) as session:
        session.wait_for("ready")
        session.write("\x07")
        session.wait_for("editing here")
        session.write("from the editor\n")
        session.wait_for("│ from the editor")
        session.write("!\r")
        session.wait_for("sent")
        assert (tmp_path / "sent").read_text() == "'from the editor!'\n"


def test_candidates_are_ranked_by_where_they_fit() -> None:
    labels = ["src/deep/compose_all.py", "docs/recompose.md", "compose/x.py", "src/c_o_m_p.py", "other.txt"]
    found = matching("comp", [Completion(label, "", label) for label in labels])
    assert [item.label for item in found] == labels[:4]
