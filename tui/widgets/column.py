"""Entries one below the other, measured where they were drawn and guessed where they were not."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import accumulate

from tui.markdown import Line, Palette
from tui.widgets.turn_view import Canvas, Part, TurnView


class Column:
    """Knows at which line of the whole each entry and each part of it stands.

    Attributes:
        places: where in `views` the entry of a key is.
        held: the view, its part and the line of that which is at the top of the screen.
    """

    def __init__(self) -> None:
        self.views: list[TurnView] = []
        self.places: dict[int, int] = {}
        self.canvas = Canvas(80, 80, Palette({}))
        self.held: tuple[int, int, int] = (0, 0, 0)
        self._tops: list[int] | None = None

    def touch(self) -> None:
        """Heights of entries have changed."""
        self._tops = None

    def show(self, views: list[TurnView]) -> None:
        """Replace everything."""
        self.views, self.held = views, (0, 0, 0)
        self._index(0)

    def add(self, view: TurnView) -> None:
        """Append an entry."""
        self.views.append(view)
        self._index(len(self.views) - 1)

    def cut(self, start: int, stop: int) -> None:
        """Take entries away; what is held stays, or what comes after it is."""
        for view in self.views[start:stop]:
            self.places.pop(view.entry.key, None)
        del self.views[start:stop]
        self._index(start)
        place, part, row = self.held
        if place >= stop:
            self.held = (place - (stop - start), part, row)
        elif place >= start:
            self.held = (start, 0, 0)

    def _index(self, start: int) -> None:
        if start == 0:
            self.places.clear()
        self.places.update((view.entry.key, start + i) for i, view in enumerate(self.views[start:]))
        self._tops = None

    def top(self, place: int) -> int:
        """The lines above an entry; for the number of entries, the height of all."""
        if self._tops is None:
            width = self.canvas.width
            self._tops = [0, *accumulate(view.height(width) for view in self.views)]
        return self._tops[place]

    def find(self, y: int) -> tuple[int, int, int]:
        """The view, its part and the line of that at a line of the whole."""
        if not self.views:
            return 0, 0, 0
        self.top(0)
        assert self._tops is not None
        place = min(max(0, bisect_right(self._tops, y) - 1), len(self.views) - 1)
        view = self.views[place]
        parts = view.parts  # reading it may change a guess, so what is in the view is found within what it is now
        tops = view.tops(self.canvas.width)
        row = min(max(0, y - self._tops[place]), tops[-1] - 1)
        part = min(max(0, bisect_right(tops, row) - 1), len(parts) - 1)
        return place, part, row - tops[part]

    def place(self, rows: int, *, follow: bool) -> int:
        """Draw what is to be in view; returns the line that is then at the top."""
        views = self.views
        if not views:
            return 0
        if not follow:
            place, index, row = self.held
            place = min(place, len(views) - 1)
            index = min(index, len(views[place].parts) - 1)
            part = views[place].parts[index]
            before = max(1, part.height)
            now = len(self.draw(views[place], part))
            if now != before:
                row = row * now // before
            row = min(row, now - 1)
            left = rows + row - now
            for view, other in self.parts_from(place, index + 1):
                if left <= 0:
                    break
                left -= len(self.draw(view, other))
            if left <= 0:
                return self.top(place) + views[place].tops(self.canvas.width)[index] + row
        left = rows
        for view in reversed(views):
            for part in reversed(view.parts):
                left -= len(self.draw(view, part))
                if left <= 0:
                    break
            if left <= 0:
                break
        return max(0, self.top(len(views)) - rows)

    def parts_from(self, place: int, index: int) -> Iterator[tuple[TurnView, Part]]:
        """All parts from one on, to the end of the last entry."""
        for view in self.views[place:]:
            for part in view.parts[index:]:
                yield view, part
            index = 0

    def draw(self, view: TurnView, part: Part) -> list[Line]:
        """The lines of a part, and a note where it is not as high as was thought."""
        before = part.height
        lines = part.draw(self.canvas)
        if len(lines) != before or self._tops is None:
            view.touch()
            self._tops = None
        return lines
