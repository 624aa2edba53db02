"""The conversation on the screen: one widget that draws only the lines in view, and reads only what it draws."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from threading import Thread
from time import perf_counter
from typing import ClassVar

from rich.cells import cell_len
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Offset, Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.selection import Selection
from textual.strip import Strip
from textual.timer import Timer
from textual.widget import Widget

from tui.markdown import COPY, Line, Palette
from tui.markdown.highlight import warm
from tui.sanitize import one_line
from tui.widgets.column import Column
from tui.widgets.transcript_styles import CSS, STYLES, theme_styles
from tui.widgets.turn_view import MARGIN, Canvas, Entry, TurnView

__all__ = ["Entry", "Transcript"]

COLUMN = 100  # cells: longer lines are hard to read
SLICE = 0.005  # seconds of reading ahead at a time
PAUSE, PAUSE_LIVE = 0.015, 0.3  # seconds between slices; an answer that runs goes first


class Transcript(ScrollView, can_focus=True):
    """Shows entries, and one of them as it grows.

    What is seen never moves while things above it are read or change, nor while text comes at the end, unless `follow`
    is on: then the end stays in view.
    """

    COMPONENT_CLASSES: ClassVar[set[str]] = {f"transcript--{name}" for name in STYLES}
    DEFAULT_CSS = CSS
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("j,down", "scroll_down", "Line down", show=False),
        Binding("k,up", "scroll_up", "Line up", show=False),
        Binding("J", "next", "Next message", show=False),
        Binding("K", "previous", "Previous message", show=False),
        Binding("g,home", "scroll_home", "First message", show=False),
        Binding("G,end", "scroll_end", "End", show=False),
        Binding("pageup", "page_up", "Page up", show=False),
        Binding("pagedown", "page_down", "Page down", show=False),
        Binding("space", "fold", "Fold or unfold", show=False),
        Binding("n", "find_next", "Next hit", show=False),
        Binding("N", "find_previous", "Previous hit", show=False),
    ]

    selected: reactive[int | None] = reactive[int | None](None, init=False)

    class Selected(Message):
        """The keyboard or the mouse is on another entry, or on none."""

        def __init__(self, key: int | None) -> None:
            super().__init__()
            self.key = key

    class EntryClicked(Message):
        """An entry was clicked."""

        def __init__(self, key: int) -> None:
            super().__init__()
            self.key = key

    class CodeClicked(Message):
        """The label "copy" of an answer's code block was clicked; `index` is that of `code_blocks`."""

        def __init__(self, key: int, index: int) -> None:
            super().__init__()
            self.key, self.index = key, index

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self.follow = True
        self._column = Column()
        self._placing = False
        self._live: TurnView | None = None
        self._unseen = 0  # lines that came since the reader left the end
        self._reading: Timer | None = None
        self._read_at = -1
        self._bar = (0, 0, 0)  # how the scroll bar looks
        self._needle = ""
        self._hit: tuple[int, int] | None = None  # view and line of the hit that was gone to
        self._pressed: Offset | None = None

    # What is shown

    def show(self, entries: Sequence[Entry]) -> None:
        """Replace everything, and go to the end. The rest is read after the end is on the screen."""
        self._column.show([TurnView(replace(entry)) for entry in entries])
        self._live = self._hit = None
        self.follow, self._unseen, self.selected = True, 0, None
        self._settle()
        self._read_ahead(len(entries) - 1)

    def add(self, entry: Entry) -> None:
        """Append an entry."""
        self._append(TurnView(replace(entry)))

    def begin(self, entry: Entry) -> None:
        """Append an entry that will grow by `feed` until `end`."""
        view = TurnView(replace(entry))
        view.begin()
        self._live = view
        self._append(view)

    def feed(self, text: str = "", thinking: str = "", calls: tuple[str, ...] | None = None) -> None:
        """Append to the entry that was begun; only what is still open of it is read and drawn again."""
        view = self._live
        if view is None:
            return
        width = self._column.canvas.width
        before = view.height(width)
        view.feed(text, thinking, calls)
        self._settle(changed=view)
        self._unseen += 0 if self.follow else max(0, view.height(width) - before)

    def end(self, entry: Entry) -> None:
        """The entry that was begun is finished, and reads so."""
        view, self._live = self._live, None
        if view is None or view.entry.key != entry.key:
            self.update(entry)
            return
        view.finish(replace(entry))
        self._changed(self._column.places[entry.key])

    def update(self, entry: Entry) -> None:
        """Replace the entry of the same key; one that is not there is appended."""
        if (place := self._column.places.get(entry.key)) is None:
            self.add(entry)
            return
        view = self._column.views[place]
        view.replace(replace(entry))
        if view is self._live:  # it goes on growing from here
            view.begin()
        self._changed(place)

    def remove_entry(self, key: int) -> None:
        """Take an entry away."""
        if (place := self._column.places.get(key)) is not None:
            self._cut(place, place + 1)

    def truncate(self, after: int | None) -> None:
        """Take away all that stands after an entry; after None, everything."""
        self._cut(0 if after is None else self._column.places[after] + 1, len(self._column.views))

    def mark_window(self, key: int | None, label: str = "") -> None:
        """Draw a dashed line with a label above an entry; None takes it away."""
        for place, view in enumerate(self._column.views):
            mark = (one_line(label) or " ") if view.entry.key == key else ""
            if view.mark != mark:
                view.mark = mark
                view.recompose()
                self._changed(place)

    def source(self, key: int) -> str:
        """The raw text of an entry, as it was said."""
        return self._column.views[self._column.places[key]].entry.text

    def code_blocks(self, key: int) -> list[str]:
        """The code blocks of an answer, from its first on."""
        return self._column.views[self._column.places[key]].code_blocks()

    def toggle_fold(self, key: int) -> None:
        """Fold or unfold the thinking of an answer, the result of a tool or a long text of the user."""
        view = self._column.views[self._column.places[key]]
        if view.foldable:
            view.toggle()
            self._changed(self._column.places[key])

    # Choosing an entry

    def select(self, key: int | None) -> None:
        """Put the keyboard on an entry, and bring it into view."""
        self.selected = key if key in self._column.places else None
        if key is None or key not in self._column.places:
            return
        place = self._column.places[key]
        top, below = self._column.top(place), self._column.top(place + 1)
        first, rows = self.scroll_offset.y, self.size.height
        if top < first or (below > first + rows and top > first):
            self.scroll_to_entry(key)

    def select_next(self) -> None:
        """Put the keyboard on the next entry."""
        self._step(1)

    def select_previous(self) -> None:
        """Put the keyboard on the entry before."""
        self._step(-1)

    def select_last(self) -> None:
        """Put the keyboard on the last entry."""
        if self._column.views:
            self.select(self._column.views[-1].entry.key)

    def scroll_to_entry(self, key: int) -> None:
        """Bring the top of an entry to the top of the screen, as far as there is text below it."""
        self._hold(self._column.places[key], 0, 0)

    def watch_selected(self, key: int | None) -> None:
        self.refresh()
        self.post_message(self.Selected(key))

    def _step(self, by: int) -> None:
        if not self._column.views:
            return
        if self.selected in self._column.places:
            place = self._column.places[self.selected] + by
        else:
            place = len(self._column.views) - 1 if self.follow else self._column.held[0]
        self.select(self._column.views[min(max(place, 0), len(self._column.views) - 1)].entry.key)

    # Finding

    def find(self, text: str) -> int:
        """Highlight a text wherever it stands, whatever its case; returns how many times the entries say it."""
        self._needle, self._hit = one_line(text).casefold(), None
        self.refresh()
        if not self._needle:
            return 0
        return sum(_said(view.entry).count(self._needle) for view in self._column.views)

    def find_next(self) -> bool:
        """Go to the next hit below; from the last to the first. Whether there is one."""
        return self._go_to_hit(1)

    def find_previous(self) -> bool:
        """Go to the hit before; from the first to the last. Whether there is one."""
        return self._go_to_hit(-1)

    def _go_to_hit(self, way: int) -> bool:
        if not self._needle or not self._column.views:
            return False
        count = len(self._column.views)
        start, row = self._hit if self._hit is not None and self._hit[0] < count else (self._column.held[0], -1)
        for step in range(count + 1):
            place = (start + way * step) % count
            view = self._column.views[place]
            if self._needle not in _said(view.entry):
                continue
            rows = self._hits(view)
            if not rows and view.foldable and view.folded:
                view.toggle()
                self._changed(place)
                rows = self._hits(view)
            rows = rows or [0]  # said across the end of a line, or as markup: the entry is as near as it gets
            if step == 0 and row >= 0:
                rows = [y for y in rows if (y - row) * way > 0]
            if rows:
                self._hit = (place, rows[0] if way > 0 else rows[-1])
                self._show_line(*self._hit)
                return True
        return False

    def _hits(self, view: TurnView) -> list[int]:
        lines = (line for part in view.parts for line in self._column.draw(view, part))
        found = [y for y, line in enumerate(lines) if self._needle in line.strip.text.casefold()]
        self._settle()  # what was drawn for this may be of another height than was thought
        return found

    def _show_line(self, place: int, row: int) -> None:
        y = self._column.top(place) + row
        if not self.scroll_offset.y <= y < self.scroll_offset.y + self.size.height - 1:
            self._scroll(max(0, y - self.size.height // 3))
        self.refresh()

    # Keys

    def action_scroll_down(self) -> None:
        self._scroll(self.scroll_offset.y + 1)

    def action_scroll_up(self) -> None:
        self._scroll(self.scroll_offset.y - 1)

    def action_page_down(self) -> None:
        self._scroll(self.scroll_offset.y + max(1, self.size.height - 2))

    def action_page_up(self) -> None:
        self._scroll(self.scroll_offset.y - max(1, self.size.height - 2))

    def action_scroll_home(self) -> None:
        self._hold(0, 0, 0)

    def action_scroll_end(self) -> None:
        self.follow, self._unseen = True, 0
        self._settle()

    def action_next(self) -> None:
        self.select_next()

    def action_previous(self) -> None:
        self.select_previous()

    def action_find_next(self) -> None:
        self.find_next()

    def action_find_previous(self) -> None:
        self.find_previous()

    def action_fold(self) -> None:
        """Fold or unfold the selected entry, or without one the last in view that can be."""
        if self.selected in self._column.places:
            self.toggle_fold(self.selected)
            return
        if not self._column.views:
            return
        last = self._column.find(self.scroll_offset.y + self.size.height - 1)[0]
        for view in reversed(self._column.views[self._column.held[0] : last + 1]):
            if view.foldable:
                self.toggle_fold(view.entry.key)
                return

    # Where things are

    def _append(self, view: TurnView) -> None:
        self._column.add(view)
        self._settle()
        self._read_ahead(len(self._column.views) - 1)
        self._unseen += 0 if self.follow else view.height(self._column.canvas.width)

    def _cut(self, start: int, stop: int) -> None:
        gone = self._column.views[start:stop]
        if not gone:
            return
        if self._live in gone:
            self._live = None
        if any(view.entry.key == self.selected for view in gone):
            self.selected = None
        self._column.cut(start, stop)
        self._hit = None
        self._settle()

    def _changed(self, place: int) -> None:
        self._column.touch()
        self._settle()
        self._read_ahead(max(place, self._read_at))

    def _hold(self, place: int, part: int, row: int) -> None:
        """Put a line at the top of the screen, and stay there."""
        self.follow = False
        self._column.held = (place, part, row)
        self._settle()
        self._arrived()

    def _scroll(self, y: int) -> None:
        """Scroll to a line of the whole; at the end, follow."""
        if not self._column.views:
            return
        y = min(max(0, y), self.max_scroll_y)
        self._hold(*self._column.find(y))

    def _arrived(self) -> None:
        self.follow = self.scroll_offset.y >= self.max_scroll_y
        if self.follow:
            self._unseen = 0

    def _settle(self, changed: TurnView | None = None) -> None:
        """Read and measure what is in view, and put it where it belongs: the end, or the line that is held."""
        rows = self.size.height
        if not rows:
            return
        if changed is not None:
            changed.touch()
        self._column.touch()
        top = self._column.place(rows, follow=self.follow)
        total = self._column.top(len(self._column.views))
        old_top, old_total = self.scroll_offset.y, self.virtual_size.height
        self._placing = True
        size = Size(self.size.width, total)
        if size != self.virtual_size:
            # Set so that no other widget is laid out again: only the scroll bar depends on it.
            self.set_reactive(Widget.virtual_size, size)
        self.scroll_target_y = self.scroll_y = top
        self._placing = False
        self._move_bar(rows, total, top)
        if self._column.views:
            self._column.held = self._column.find(top)
        if changed is not None and total == old_total and top == old_top:
            self._refresh_from(changed)
        elif changed is not None and not self.follow and top == old_top:
            self._refresh_from(changed)
            self.refresh(Region(0, rows - 1, self.size.width, 1))
        else:
            self.refresh()

    def _move_bar(self, rows: int, total: int, top: int) -> None:
        """Bring the scroll bar up to date, where that can be seen."""
        # It is drawn to an eighth of a cell; while an answer runs, a cell is exact enough.
        scale = (8 if self._live is None else 1) * rows / max(rows, total)
        looks = (rows, round(rows * scale), round(top * scale))
        if looks != self._bar and self.is_attached:
            self._bar = looks
            bar = self.vertical_scrollbar
            bar.window_size, bar.window_virtual_size, bar.position = rows, total, top

    def _refresh_from(self, view: TurnView) -> None:
        """Paint again what the last `feed` changed, as far as it is in view."""
        tops = view.tops(self._column.canvas.width)
        first = self._column.top(self._column.places[view.entry.key]) + tops[min(view.changed_from, len(tops) - 1)]
        y = max(0, first - self.scroll_offset.y)
        if y < self.size.height:
            self.refresh(Region(0, y, self.size.width, self.size.height - y))

    def _read_ahead(self, place: int) -> None:
        """Read and measure the entries up to this one when there is time."""
        self._read_at = place
        if self._reading is None and self.is_attached and place >= 0:
            self._reading = self.set_timer(PAUSE if self._live is None else PAUSE_LIVE, self._read)

    def _read(self) -> None:
        self._reading = None
        until = perf_counter() + SLICE
        canvas, moved = self._column.canvas, False
        self._read_at = min(self._read_at, len(self._column.views) - 1)
        while self._live is None and self._read_at >= 0 and perf_counter() < until:
            view = self._column.views[self._read_at]
            for part in view.parts:
                if not part.measured(canvas):
                    part.measure(canvas)
                    moved = True
                    view.touch()
                    if perf_counter() >= until:
                        break
            else:
                self._read_at -= 1
        if moved:
            self._settle()
        self._read_ahead(self._read_at)

    # Drawing

    def on_mount(self) -> None:
        self._restyle()
        Thread(target=warm, name="highlighting", daemon=True).start()

    def on_resize(self) -> None:
        self._fit(self._column.canvas.palette)

    def notify_style_update(self) -> None:
        super().notify_style_update()
        if self.is_attached:
            self.call_later(self._restyle)

    def _restyle(self) -> None:
        """Take the theme's styles, where they have changed."""
        styles = theme_styles(self)
        if styles != self._column.canvas.palette.styles:
            self._fit(Palette(styles))

    def _fit(self, palette: Palette) -> None:
        full = self.size.width
        width = max(1, min(self.scrollable_content_region.width - len(MARGIN[0][0]) - 1, COLUMN))
        if (width, full, palette) != (self._column.canvas.width, self._column.canvas.full, self._column.canvas.palette):
            if width != self._column.canvas.width:
                for view in self._column.views:
                    view.touch()
            self._column.canvas = Canvas(width, full, palette)
            self._read_ahead(len(self._column.views) - 1)
        self._settle()

    def watch_scroll_y(self, old_value: float, new_value: float) -> None:
        if round(old_value) != round(new_value):
            self.refresh(self.size.region)
        # A resize clamps the position before the text is laid out anew: that is nobody's wish to be elsewhere.
        if not self._placing and self.size.width == self._column.canvas.full:
            self._scroll(round(new_value))

    def render_lines(self, crop: Region) -> list[Strip]:
        # What Textual caches belongs to a line of the screen, so scrolling throws it away; our strips stay with the
        # text, and with them all that was made of them on the way to the terminal.
        if self.styles.gutter.width or self.styles.gutter.height or self.opacity < 1:
            return super().render_lines(crop)
        top, selection = self.scroll_offset.y, self.text_selection
        strips = [self._line(y, top + y, selection) for y in crop.line_range]
        background = self.background_colors[1]
        for line_filter in self.get_line_filters():
            strips = [strip.apply_filter(line_filter, background) for strip in strips]
        start, end = crop.column_span
        return strips if (start, end) == (0, self.size.width) else [strip.crop(start, end) for strip in strips]

    def render_line(self, y: int) -> Strip:
        return self._line(y, self.scroll_offset.y + y, self.text_selection)

    def _line(self, y: int, row: int, selection: Selection | None) -> Strip:
        """The line of the whole that is at a line of the screen."""
        canvas = self._column.canvas
        if not self._column.views or row >= self._column.top(len(self._column.views)):
            return Strip.blank(canvas.full, canvas.palette.mix(()))
        place, index, at = self._column.find(row)
        view = self._column.views[place]
        lines = view.parts[index].draw(canvas)
        line = lines[min(at, len(lines) - 1)]
        strip = line.strip
        if self._needle and self._needle in strip.text.casefold():
            strip = self._marked(strip, (place, view.tops(canvas.width)[index] + at) == self._hit)
        if selection is not None and (span := selection.get_span(row)) is not None:
            start, end = _within(line, span)
            under = self.screen.get_component_rich_style("screen--selection").bgcolor
            strip = _restyled(strip, start, end, Style(bgcolor=under, reverse=self.app.no_color or None))
        if view.entry.key == self.selected and view.parts[index].role != "gap":
            bar = Segment("┃", canvas.palette.mix(("mark",)))
            strip = Strip.join([Strip([bar], 1), strip.crop(1)])
        if not self.follow and y == self.size.height - 1:
            strip = self._overlaid(strip, self.scrollable_content_region.width)
        return strip.apply_offsets(0, row)

    def _marked(self, strip: Strip, current: bool) -> Strip:
        style = self._column.canvas.palette.styles["current" if current else "match"]
        text, at = strip.text.casefold(), 0
        if len(text) != len(strip.text):  # a few letters become two
            text = strip.text.lower()
        while (at := text.find(self._needle, at)) >= 0:
            strip = _restyled(strip, at, at + len(self._needle), style)
            at += len(self._needle)
        return strip

    def _overlaid(self, strip: Strip, width: int) -> Strip:
        lines = f"{self._unseen:,} new line{'s' * (self._unseen != 1)} · " if self._unseen else ""
        label = f" ↓ {lines}End "
        cells = cell_len(label)
        if cells >= width:
            return strip
        palette = self._column.canvas.palette
        over = Strip([Segment(label, palette.mix(("more",)))], cells)
        return Strip.join([strip.crop(0, width - cells), over, strip.crop(width)])

    # The mouse

    def get_selection(self, selection: Selection) -> tuple[str, str] | None:
        """The text that the mouse has drawn over, without frames, margins and titles, wrapped lines joined."""
        first = selection.start.y if selection.start is not None else 0
        last = selection.end.y if selection.end is not None else self.virtual_size.height - 1
        said = ""
        if not self._column.views:
            return None
        place, index, skip = self._column.find(first)
        lines = (line for view, part in self._column.parts_from(place, index) for line in self._column.draw(view, part))
        for row, line in enumerate(lines, first - skip):
            if row > last:
                break
            span = selection.get_span(row) if row >= first else None
            if span is not None and line.start >= 0:
                start, end = _within(line, span)
                text = line.strip.text[start:end]
                said += (text if line.joint == "" else text.rstrip()) + line.joint
        self._settle()  # what was drawn for this may be of another height than was thought
        return (said.strip("\n"), "\n") if said.strip() else None

    def selection_updated(self, selection: Selection | None) -> None:
        self.refresh()

    def on_mouse_down(self, event: events.MouseDown) -> None:
        self._pressed = event.screen_offset

    def on_click(self, event: events.Click) -> None:
        """Fold, copy, or select what was clicked; the end of a drag is no click."""
        event.prevent_default()  # a double click would select everything
        if event.button != 1 or event.screen_offset != self._pressed or not self._column.views:
            return
        if not self.follow and event.y == self.size.height - 1 and event.x >= self.scrollable_content_region.width - 8:
            self.action_scroll_end()
            return
        row = self.scroll_offset.y + event.y
        if row >= self._column.top(len(self._column.views)):
            return
        place, index, at = self._column.find(row)
        view = self._column.views[place]
        part, key = view.parts[index], view.entry.key
        if part.role == "fold":
            self.toggle_fold(key)
        elif (block := part.block) is not None and block.kind == "code" and block.first and at == int(block.gap):
            text = part.draw(self._column.canvas)[at].strip.text
            copy = text.rfind(COPY)
            if copy - 1 <= event.x <= copy + len(COPY):
                self.post_message(self.CodeClicked(key, block.number))
                return
        self.selected = key
        self.post_message(self.EntryClicked(key))


def _said(entry: Entry) -> str:
    """All that an entry says, as it is searched."""
    return f"{entry.thinking}\n{entry.text}".casefold()


def _within(line: Line, span: tuple[int, int]) -> tuple[int, int]:
    """What of a span of characters is content of the line."""
    start, end = span
    end = line.end if end < 0 else min(end, line.end)
    start = max(start, line.start)
    return start, max(start, end)


def _restyled(strip: Strip, start: int, end: int, style: Style) -> Strip:
    """The strip with another style from character to character."""
    if start < 0 or end <= start:
        return strip
    text = strip.text
    left, right = cell_len(text[:start]), cell_len(text[:end])
    middle = strip.crop(left, right)
    middle = Strip([Segment(part.text, (part.style or Style.null()) + style) for part in middle], middle.cell_length)
    return Strip.join([strip.crop(0, left), middle, strip.crop(right)])
