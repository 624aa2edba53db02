"""The transcript: what is seen, where it stays, and what keys and the mouse do."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from rich.cells import cell_len
from textual.app import App, ComposeResult
from textual.geometry import Offset, Region
from textual.pilot import Pilot
from textual.selection import Selection

from tests.tui.test_markdown import DOCUMENT, LONG
from tests.tui.test_sanitize import HOSTILE, dangerous
from tui.markdown import Block, Line, draw
from tui.widgets.transcript import Entry, Transcript


class Screen(App[None]):
    ENABLE_COMMAND_PALETTE = False

    def __init__(self) -> None:
        super().__init__()
        self.posted: list[Any] = []

    def compose(self) -> ComposeResult:
        yield Transcript()

    def on_transcript_entry_clicked(self, message: Transcript.EntryClicked) -> None:
        self.posted.append(("entry", message.key))

    def on_transcript_code_clicked(self, message: Transcript.CodeClicked) -> None:
        self.posted.append(("code", message.key, message.index))

    def on_transcript_selected(self, message: Transcript.Selected) -> None:
        self.posted.append(("selected", message.key))


@asynccontextmanager
async def screen(width: int = 60, height: int = 20) -> AsyncIterator[tuple[Transcript, Pilot[None]]]:
    app = Screen()
    async with app.run_test(size=(width, height)) as pilot:
        view = app.query_one(Transcript)
        view.focus()
        await pilot.pause()
        yield view, pilot


def seen(view: Transcript) -> list[str]:
    """The lines on the screen."""
    return [strip.text.rstrip() for strip in view.render_lines(Region(0, 0, view.size.width, view.size.height))]


def everything(view: Transcript) -> list[str]:
    return [
        line.strip.text.rstrip()
        for turn in view._column.views
        for part in turn.parts
        for line in part.draw(view._column.canvas)
    ]


async def read_ahead(view: Transcript, pilot: Pilot[None]) -> None:
    """Wait until every entry was measured."""
    for _ in range(400):
        if view._read_at < 0:
            return
        await pilot.pause(0.01)
    raise AssertionError("reading ahead does not end")


def chat(count: int, lines: int = 6) -> list[Entry]:
    """Turns whose every line tells where it stands."""
    return [
        Entry(
            n,
            "assistant" if n % 2 else "user",
            "Assistant" if n % 2 else "You",
            "\n".join(f"{n}.{i}" for i in range(lines)),
        )
        for n in range(count)
    ]


ANSWER = Entry(2, "assistant", "Assistant", DOCUMENT, footer="312 tokens · 61 tok/s", badge="2/3")


async def test_turns_read_apart_without_colour() -> None:
    answer = Entry(2, "assistant", "Assistant", "It *is*.", "so", "2/3", "12 tokens", "thought 3 s", ("weather()",))
    async with screen(46, 30) as (view, _):
        view.show([Entry(1, "user", "You", "Why **is**\nthat?"), answer, Entry(3, "tool", "weather", "sunny\nwarm")])
        view.add(Entry(4, "error", "The answer failed", "Out of memory."))
        view.add(Entry(-1, "notice", "Switched to", "another model."))
        view.mark_window(3, "attends directly from here (4,096)")
        assert "\n".join(seen(view)).rstrip("\n") == TURNS.strip("\n")


TURNS = """
  You
  │ Why **is**
  │ that?

  Assistant  2/3
  ▸ thought 3 s

  It is.

  ● weather()
  12 tokens

  ╌╌ attends directly from here (4,096) ╌╌╌╌

  ▸ weather · 2 lines

  The answer failed
  │ Out of memory.

  Switched to another model.
"""


@pytest.mark.parametrize("kind", ["mixed", *LONG])
async def test_a_stream_ends_as_if_it_had_been_shown_whole(kind: str) -> None:
    text = LONG.get(kind, DOCUMENT)
    async with screen() as (view, _):
        view.show([Entry(2, "assistant", "Assistant", text, thinking=text, footer="done", folded=False)])
        whole = [part.draw(view._column.canvas) for part in view._column.views[0].parts]
        for seed in range(2):
            source, at = random.Random(seed), 0
            view.show([])
            view.begin(Entry(2, "assistant", "Assistant", folded=False))
            for name in ("thinking", "text"):
                at = 0
                while at < len(text):
                    size = source.randint(1, 40 if kind == "mixed" else 900)
                    view.feed(**{name: text[at : at + size]})
                    at += size
            view.end(Entry(2, "assistant", "Assistant", text, thinking=text, footer="done"))
            assert [part.draw(view._column.canvas) for part in view._column.views[0].parts] == whole


@pytest.mark.parametrize("kind", [kind for kind in LONG if kind != "no spaces"])
async def test_a_flush_draws_no_more_late_than_early(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []

    def counted(block: Block, *arguments: Any) -> list[Line]:
        drawn[-1] += len(lines := draw(block, *arguments))
        return lines

    monkeypatch.setattr("tui.widgets.turn_view.draw", counted)
    async with screen() as (view, _):
        view.begin(Entry(2, "assistant", "Assistant"))
        for at in range(0, len(LONG[kind]), 40):
            drawn.append(0)
            view.feed(LONG[kind][at : at + 40])
        assert max(drawn) < 130, "what is open, and a screen of what is in view"
        assert sum(drawn[-50:]) < 50 * 60


async def test_an_update_of_the_running_answer_lets_it_go_on() -> None:
    async with screen() as (view, _):
        view.begin(Entry(2, "assistant", "Assistant"))
        view.feed("so **far")
        view.update(Entry(2, "assistant", "Assistant", "so **far", badge="1/2"))
        view.feed("** and on")
        assert seen(view)[:2] == ["  Assistant  1/2", "  so far and on"]


async def test_another_text_at_the_end_is_the_one_that_counts() -> None:
    async with screen() as (view, _):
        view.begin(Entry(2, "assistant", "Assistant"))
        view.feed("something **half")
        view.end(Entry(2, "assistant", "Assistant", "else", footer="stopped"))
        assert seen(view)[:3] == ["  Assistant", "  else", "  stopped"]


async def test_the_end_stays_in_view_while_text_comes() -> None:
    async with screen() as (view, _):
        view.show(chat(10))
        view.begin(Entry(99, "assistant", "Assistant"))
        for n in range(40):
            view.feed(f"line {n}\n")
            assert f"  line {n}" in seen(view)[-3:]
        assert view.follow


async def test_the_reader_who_scrolls_up_is_left_alone() -> None:
    async with screen() as (view, pilot):
        view.show(chat(10))
        view.begin(Entry(99, "assistant", "Assistant"))
        await pilot.press("k", "k", "pageup")
        before = seen(view)
        for n in range(40):
            view.feed(f"line {n}\n\n" if n % 3 else f"| {n} |\n|-|\n")
            assert seen(view)[:-1] == before[:-1]
        assert "new lines · End" in seen(view)[-1]
        await pilot.press("end")
        assert view.follow
        assert "End" not in seen(view)[-1]
        view._on_mouse_scroll_up(mouse_wheel(view))
        await pilot.pause()
        assert not view.follow
        for _ in range(9):
            await pilot.press("j")
        assert view.follow, "scrolling to the bottom follows again"


def mouse_wheel(view: Transcript) -> Any:
    from textual import events

    return events.MouseScrollUp(view, 1, 1, 0, -1, 0, False, False, False)


async def test_a_long_chat_opens_at_its_end_and_is_read_behind_it() -> None:
    entries = [Entry(n, "assistant", f"Answer {n}", DOCUMENT * 2) for n in range(60)]
    async with screen() as (view, pilot):
        view.show(entries)
        read = sum(turn._parts is not None for turn in view._column.views)
        assert read <= 2, "only what is in view was read"
        before = seen(view)
        guess = view.virtual_size.height
        await read_ahead(view, pilot)
        assert seen(view) == before
        assert view.virtual_size.height == len(everything(view)) != guess
        assert view.scroll_offset.y == view.max_scroll_y


async def test_a_jump_to_the_top_is_right_at_once_and_holds() -> None:
    entries = [Entry(n, "assistant", f"Answer {n}", DOCUMENT) for n in range(60)]
    async with screen() as (view, pilot):
        view.show(entries)
        await pilot.press("g")
        assert seen(view)[0] == "  Answer 0"
        view.scroll_to_entry(30)
        before = seen(view)
        assert before[0] == "  Answer 30"
        await read_ahead(view, pilot)
        assert seen(view) == before
        for turn in range(3):
            view.update(Entry(turn, "assistant", f"Answer {turn}", "short now"))
            assert seen(view) == before
        view.remove_entry(5)
        assert seen(view) == before


@pytest.mark.parametrize("follow", [True, False])
async def test_another_width_keeps_the_place(follow: bool) -> None:
    entries = [Entry(n, "assistant", f"Answer {n}", DOCUMENT) for n in range(20)]
    async with screen() as (view, pilot):
        view.show(entries)
        if not follow:
            view.scroll_to_entry(9)
        for width, height in ((46, 20), (80, 24), (60, 12), (20, 8), (60, 20)):
            await pilot.resize_terminal(width, height)
            await pilot.pause()
            assert all(cell_len(line) <= width for line in seen(view))
            if follow:
                assert view.scroll_offset.y == view.max_scroll_y
            else:
                assert seen(view)[0] == "  Answer 9"
            assert view.follow is follow


async def test_no_control_character_is_ever_drawn() -> None:
    fence = f"```{HOSTILE[:30]}\n{HOSTILE}\n```\n\n| {HOSTILE} |\n|-|\n| x |\n\n- {HOSTILE}\n> {HOSTILE}&#27;"
    async with screen(100, 40) as (view, _):
        for role in ("user", "assistant", "tool", "notice", "error"):
            for folded in (True, False):
                call = (HOSTILE,)
                entry = Entry(1, role, HOSTILE, fence, fence, HOSTILE, HOSTILE, HOSTILE, call, folded)
                view.show([entry])
                view.mark_window(1, HOSTILE)
                assert not dangerous("".join(everything(view) + seen(view)))
                assert not {"\n", "\t"} & set("".join(everything(view)))
        view.begin(Entry(2, "assistant", HOSTILE, folded=False))
        for character in fence:
            view.feed(character, character)
        assert not dangerous("".join(everything(view)))


async def test_thinking_and_long_texts_are_folded() -> None:
    async with screen(60, 40) as (view, pilot):
        view.show(
            [
                Entry(1, "user", "You", "\n".join(f"line {n}" for n in range(412))),
                Entry(2, "assistant", "Assistant", "yes", thinking="deep", thinking_title="thought 3.1 s · 212 tokens"),
            ]
        )
        assert "  │ ▸ … 400 more lines" in seen(view)
        assert "  ▸ thought 3.1 s · 212 tokens" in seen(view)
        await pilot.press("space")
        assert "  ▾ thought 3.1 s · 212 tokens" in seen(view)
        assert "    deep" in seen(view)
        view.toggle_fold(1)
        assert "  │ line 411" in seen(view)
        view.update(Entry(2, "assistant", "Assistant", "no", thinking="deep"))
        assert "    deep" in seen(view), "an update keeps the fold that the reader chose"


async def test_thinking_can_be_unfolded_while_it_comes() -> None:
    async with screen() as (view, _):
        view.begin(Entry(2, "assistant", "Assistant"))
        view.feed(thinking="first *thought*")
        assert "  ▸ thinking…" in seen(view)
        view.toggle_fold(2)
        view.feed(thinking=" and second")
        assert "    first thought and second" in seen(view)
        view.toggle_fold(2)
        view.feed(thinking=" and third", text="so")
        assert seen(view)[:5] == ["  Assistant", "  ▸ thought", "", "  so", ""]


async def test_keys_walk_from_message_to_message() -> None:
    async with screen() as (view, pilot):
        view.show(chat(8))
        await pilot.press("K")
        assert view.selected == 7
        await pilot.press("K", "K", "K")
        assert view.selected == 4
        assert any(line.startswith("┃") and line.endswith("4.0") for line in seen(view))
        await pilot.press("J")
        assert view.selected == 5
        assert ("selected", 5) in pilot.app.posted  # type: ignore[attr-defined]
        view.select_last()
        assert view.selected == 7
        view.truncate(6)
        assert view.selected is None
        assert everything(view)[-2].endswith("6.5")
        view.truncate(None)
        assert not "".join(seen(view))


async def test_find_goes_from_hit_to_hit() -> None:
    async with screen() as (view, pilot):
        view.show([*chat(20), Entry(50, "assistant", "Assistant", "x", thinking="the needle in thought")])
        assert view.find("8.3") == 2
        assert view.find_next()
        assert any(line.endswith("18.3") for line in seen(view)), "the first from what is in view"
        await pilot.press("n")
        assert any(line.endswith(" 8.3") for line in seen(view)), "then from the top again"
        await pilot.press("N")
        assert any(line.endswith("18.3") for line in seen(view))
        assert view.find("NEEDLE") == 1
        assert view.find_next()
        assert "    the needle in thought" in seen(view), "a hit in what is folded unfolds it"
        assert view.find("nowhere") == 0
        assert not view.find_next()


async def test_what_is_drawn_over_is_copied_without_frames() -> None:
    text = "A paragraph that is long enough to be wrapped somewhere in it.\n\n- item"
    code = "def f():\n    pass"
    async with screen(46, 30) as (view, _):
        view.show([Entry(1, "user", "You", "asked")])
        view.add(Entry(2, "assistant", "Assistant", f"{text}\n\n```py\n{code}\n```\n\n> so", footer="12 tokens"))
        copied = view.get_selection(Selection(None, None))
        assert copied is not None
        assert copied[0] == f"asked\n\n{text}\n\n{code}\n\nso"
        row = seen(view).index("  │ asked")
        part = view.get_selection(Selection(Offset(0, row), Offset(6, row)))
        assert part == ("as", "\n")


async def test_the_mouse_folds_copies_and_selects() -> None:
    async with screen() as (view, pilot):
        view.show(
            [Entry(1, "user", "You", "hi"), Entry(2, "assistant", "Assistant", "```\na\n```\n\n```\nb\n```", "hm")]
        )
        posted = pilot.app.posted  # type: ignore[attr-defined]
        lines = seen(view)
        frame = max(y for y, line in enumerate(lines) if "copy" in line)
        await pilot.click(Transcript, offset=(lines[frame].index("copy") + 1, frame))
        assert posted == [("code", 2, 1)]
        assert view.code_blocks(2)[1] == "b"
        await pilot.click(Transcript, offset=(4, 1))
        assert ("entry", 1) in posted
        assert view.selected == 1
        await pilot.click(Transcript, offset=(4, lines.index("  ▸ thought")))
        assert "┃   hm" in seen(view)
        posted.clear()
        await pilot.mouse_down(Transcript, offset=(4, 1))
        await pilot.hover(Transcript, offset=(9, 4))
        await pilot.mouse_up(Transcript, offset=(9, 4))
        await pilot.pause()
        assert not posted, "a drag is no click"


async def test_another_theme_changes_colours_and_nothing_else() -> None:
    async with screen() as (view, pilot):
        view.show([Entry(n, "assistant", f"Answer {n}", DOCUMENT) for n in range(9)])
        view.scroll_to_entry(4)
        before, canvas = seen(view), view._column.canvas
        for theme in (
            "textual-light",
            "nord",
            "ansi-dark" if "ansi-dark" in pilot.app.available_themes else "textual-ansi",
        ):
            pilot.app.theme = theme
            await pilot.pause(0.1)
            assert seen(view) == before
            assert view._column.canvas is not canvas
            canvas = view._column.canvas


async def test_source_is_raw_and_code_is_listed() -> None:
    async with screen() as (view, _):
        view.show([Entry(1, "assistant", "Assistant", "a\x1b[2J\n\n```py\nx\n```\n")])
        assert view.source(1) == "a\x1b[2J\n\n```py\nx\n```\n"
        assert view.code_blocks(1) == ["x"]


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_done_every_line_has_its_place(seed: int) -> None:
    source, key = random.Random(seed), 100
    async with screen(source.choice([30, 60, 100]), source.choice([8, 20])) as (view, pilot):
        view.show([Entry(n, "assistant", "Assistant", DOCUMENT) for n in range(8)])
        view.begin(Entry(key, "assistant", "Assistant"))
        for _ in range(120):
            said = DOCUMENT[(at := source.randrange(len(DOCUMENT))) : at + 60]
            turn = source.choice([turn.entry.key for turn in view._column.views])
            match source.randrange(12):
                case 0 | 1 | 2:
                    view.feed(said)
                case 3:
                    view.feed(thinking=said)
                case 4:
                    view.toggle_fold(turn)
                case 5:
                    view._scroll(source.randrange(view.virtual_size.height))
                case 6:
                    view.action_scroll_end()
                case 7:
                    await pilot.resize_terminal(source.choice([20, 46, 80]), source.choice([5, 30]))
                case 8:
                    view.find(source.choice(["quote", "text", ""]))
                    view.find_next()
                case 9:
                    view.mark_window(turn, "from here")
                case 10 if turn != key and len(view._column.views) > 3:
                    view.remove_entry(turn)
                case 10 | 11:
                    view.update(Entry(turn, "assistant", "Assistant", said))
            assert view.virtual_size.height == view._column.top(len(view._column.views))
            assert not view.follow or view.scroll_offset.y == view.max_scroll_y
            assert len(seen(view)) == view.size.height
