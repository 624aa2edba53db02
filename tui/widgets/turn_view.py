"""One entry of the transcript as a column of parts, each drawn by itself and only when it is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Literal

from rich.cells import cell_len, set_cell_size

from tui.markdown import Block, Document, Line, Palette, Span, chrome, draw, height, shape, wrapped
from tui.sanitize import Sanitizer, one_line, visible

Role = Literal["user", "assistant", "tool", "notice", "error"]

MARGIN: list[Span] = [("  ", ())]
SAID: list[Span] = [*MARGIN, ("│ ", ("bar",))]  # before what the user said
FOLD_LINES, FOLD_CHARACTERS = 12, 1500  # more than this of a user's text is folded
PLAIN_LINES, PLAIN_CHARACTERS = 40, 2000  # a part of plain text: lines, and characters of a line


@dataclass
class Entry:
    """What the transcript shows of one turn. All of it is raw: the transcript makes it safe to draw.

    Attributes:
        key: the turn's id; notices have negative numbers.
        badge: right of the title, such as "2/3" for the second of three siblings.
        footer: figures under the answer.
        thinking_title: the line that thinking is folded under, such as "thought 3.1 s · 212 tokens".
        calls: tool calls, each shown on a line.
        folded: None folds thinking, results of tools and long texts of the user.
    """

    key: int
    role: Role
    title: str
    text: str = ""
    thinking: str = ""
    badge: str = ""
    footer: str = ""
    thinking_title: str = ""
    calls: tuple[str, ...] = ()
    folded: bool | None = None


@dataclass(frozen=True, eq=False)
class Canvas:
    """What is drawn on: cells for text, cells in all, and the styles."""

    width: int
    full: int
    palette: Palette


@dataclass(eq=False, slots=True)
class Part:
    """A piece of an entry that is drawn at once: a block of its text, or a line such as its title.

    `height` is exact where `measured` says so for the canvas, and else a guess; `earlier` is how this part of a growing
    text was drawn the last time.
    """

    role: str
    block: Block | None = None
    content: Sequence[Span] = ()
    margin: Sequence[Span] = field(default_factory=lambda: MARGIN)
    base: tuple[str, ...] = ()
    height: int = 1
    earlier: list[Line] | None = None
    _measured: object = None
    _lines: list[Line] | None = None
    _drawn: object = None

    def guess(self, width: int) -> None:
        """Take a height that is about right, where none is known for any width."""
        if self._measured is None:
            length = sum(len(text) for text, _ in self.content)
            self.height = height(self.block, width) if self.block else 1 + length // max(1, width)

    def measured(self, canvas: Canvas) -> bool:
        """Whether the height is that on this canvas."""
        return self._measured is not None and self._measured == self._shape(canvas)

    def measure(self, canvas: Canvas) -> None:
        """Make the height exact, without keeping what was drawn for it."""
        if not self.measured(canvas):
            self.draw(canvas)
            self._lines = None

    def draw(self, canvas: Canvas) -> list[Line]:
        """The lines, as wide as the canvas."""
        shaped = self._shape(canvas)
        if self._lines is None or self._drawn is not canvas or self._measured != shaped:
            room = canvas.width - sum(len(text) for text, _ in self.margin) + len(MARGIN[0][0])
            if self.block is not None:
                lines = draw(self.block, room, canvas.palette, self.margin, self.base)
            elif self.role == "mark":
                lines = [chrome(canvas.palette, [*self.margin, *_dashed(self.content, room)])]
            elif self.content:
                lines = wrapped(canvas.palette, self.content, room, self.margin)
            else:
                lines = [Line(canvas.palette.strip([("  ", ())]), 0, 0)]
            base = canvas.palette.mix(())
            lines = [line._replace(strip=line.strip.adjust_cell_length(canvas.full, base)) for line in lines]
            # What was made of a line on its way to the terminal stays with it where it is drawn the same again.
            same = zip(lines, self.earlier or (), strict=False)
            self._lines = [old if old == new else new for new, old in same]
            self._lines += lines[len(self._lines) :]
            self.earlier = None
            self._drawn, self._measured, self.height = canvas, shaped, len(lines)
        return self._lines

    def _shape(self, canvas: Canvas) -> object:
        return canvas.width, shape(self.block, canvas.width) if self.block is not None else ()


class _Flow:
    """A text in Markdown as parts: those of blocks that are settled are kept while it grows."""

    def __init__(self, role: str, base: tuple[str, ...] = (), margin: Sequence[Span] = MARGIN) -> None:
        self.document = Document()
        self.parts: list[Part] = []
        self._role, self._base, self._margin = role, base, margin
        self.settled = 0

    def sync(self) -> None:
        earlier = [part._lines for part in self.parts[self.settled :]]
        del self.parts[self.settled :]
        settled = self.document.settled
        blocks = [*self.document.blocks[self.settled : settled], *self.document.tail()]
        self.parts += [Part(self._role, block, margin=self._margin, base=self._base) for block in blocks]
        for part, lines in zip(self.parts[self.settled :], earlier, strict=False):
            part.earlier = lines
        self.settled = settled


class TurnView:
    """An entry, read when it is first needed, and the height of it."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.mark = ""
        self._parts: list[Part] | None = None
        self._tops: list[int] | None = None
        self._guess: tuple[int, int] | None = None
        self._body: _Flow | None = None
        self._thinking: _Flow | None = None
        self._clean, self._clean_thinking = Sanitizer(), Sanitizer()
        self._chrome: dict[object, Part] = {}
        self._body_at = 0
        self.live = False
        self.changed_from = 0  # the first part that the last `feed` changed

    @property
    def foldable(self) -> bool:
        """Whether there is something to fold."""
        entry = self.entry
        return bool(entry.thinking) or (entry.role == "tool" and bool(entry.text)) or self._long

    @property
    def folded(self) -> bool:
        """Whether what can be folded is."""
        return self.entry.folded is not False

    @property
    def parts(self) -> list[Part]:
        """The parts from top to bottom."""
        if self._parts is None:
            self._compose()
        assert self._parts is not None
        return self._parts

    def replace(self, entry: Entry) -> None:
        """Show another entry in this place; a fold that the reader chose stays as it is."""
        if entry.folded is None and self.entry.folded is not None:
            entry = replace(entry, folded=self.entry.folded)
        self.entry, self.live = entry, False
        self.reset()

    def finish(self, entry: Entry) -> None:
        """Take the final entry of a live one. Where it says what was fed, what is drawn of it stays."""
        same = entry.text == self.entry.text and entry.thinking == self.entry.thinking
        flows = (self._body, self._thinking)
        self.replace(entry)
        if same:
            self._body, self._thinking = flows
            for flow, held in ((self._body, self._clean), (self._thinking, self._clean_thinking)):
                if flow is not None:
                    flow.document.feed(held.flush())
                    flow.document.finish()
                    flow.sync()

    def reset(self) -> None:
        """Forget what was read from the entry."""
        self._parts = self._tops = self._guess = self._body = self._thinking = None

    def recompose(self) -> None:
        """Put the parts together again, with what was read kept."""
        if self._parts is not None:
            self._compose()

    def begin(self) -> None:
        """Expect `feed`."""
        self.live = True
        self._clean, self._clean_thinking = Sanitizer(), Sanitizer()
        self.reset()

    def feed(self, text: str, thinking: str, calls: tuple[str, ...] | None) -> None:
        """Append to a live entry."""
        if self._parts is None:
            self._compose()
        self.entry.text += text
        self.entry.thinking += thinking
        if calls is not None:
            self.entry.calls = calls
        if self._body is not None:
            self._body.document.feed(self._clean.feed(text))
        if self._thinking is not None:
            self._thinking.document.feed(self._clean_thinking.feed(thinking))
        at, kept = self._body_at, self._body.settled if self._body is not None else 0
        self._compose()
        self.changed_from = at + kept if at == self._body_at and not thinking and calls is None else 0

    def toggle(self) -> None:
        """Fold or unfold."""
        self.entry = replace(self.entry, folded=not self.folded)
        if not self.live:
            self.reset()
            return
        if self._thinking is not None:
            self._thinking = None
        self._compose()

    def touch(self) -> None:
        """Heights of parts have changed."""
        self._tops = None

    def tops(self, width: int) -> list[int]:
        """The lines above each part, and at the end the height of all."""
        if self._tops is None:
            for part in self.parts:
                part.guess(width)
            self._tops = [0, *accumulate(part.height for part in self.parts)]
        return self._tops

    def height(self, width: int) -> int:
        """How many lines the entry takes: a guess while it has not been read."""
        if self._parts is not None:
            return self.tops(width)[-1]
        if self._guess is None or self._guess[0] != width:
            text = self.entry.text
            lines = 0 if self.entry.role == "tool" else text.count("\n") + len(text) // max(1, width)
            if self._long and self.folded:
                lines = FOLD_LINES + 1
            self._guess = (width, lines + 3 + bool(self.entry.footer) + bool(self.entry.thinking))
        return self._guess[1]

    @property
    def _long(self) -> bool:
        text = self.entry.text
        return self.entry.role == "user" and (text.count("\n") > FOLD_LINES or len(text) > FOLD_CHARACTERS)

    def _compose(self) -> None:
        entry = self.entry
        parts: list[Part] = []
        if self.mark:
            parts += [self._frame("mark", [(one_line(self.mark), ("muted",))]), self._frame("gap")]
        if entry.role == "notice":
            parts.append(self._frame("notice", [(one_line(f"{entry.title} {entry.text}"), ("muted",))]))
        else:
            parts += [self._title(), *self._think()]
            self._body_at = len(parts)
            parts += self._said()
        if entry.calls and entry.text:
            parts.append(self._frame("gap"))
        parts += [self._frame("calls", [("● ", ("marker",)), (one_line(call), ("code",))]) for call in entry.calls]
        if entry.footer:
            parts.append(self._frame("footer", [(one_line(entry.footer), ("muted",))]))
        parts.append(self._frame("gap"))
        self._parts, self._tops = parts, None

    def _frame(self, role: str, content: Sequence[Span] = (), margin: Sequence[Span] = MARGIN) -> Part:
        """A part that is no text of the turn; the same one as before where it says the same."""
        key = (role, tuple(content))
        if key not in self._chrome:
            self._chrome[key] = Part(role, content=content, margin=margin)
        return self._chrome[key]

    def _title(self) -> Part:
        entry = self.entry
        content: list[Span] = [(one_line(entry.title), ("error-title",) if entry.role == "error" else ("title",))]
        if entry.badge:
            content.append((f"  {one_line(entry.badge)}", ("muted",)))
        if entry.role != "tool" or not entry.text:
            return self._frame("title", content)
        lines = entry.text.rstrip("\n").count("\n") + 1
        size = f" · {lines:,} line{'s' * (lines != 1)}"
        return self._frame("fold", [(self._sign, ("marker",)), *content, (size, ("muted",))])

    @property
    def _sign(self) -> str:
        return "▸ " if self.folded else "▾ "

    def _think(self) -> list[Part]:
        entry = self.entry
        if not entry.thinking:
            return []
        title = one_line(entry.thinking_title) or ("thinking…" if self.live and not entry.text else "thought")
        fold = self._frame("fold", [(self._sign, ("marker",)), (title, ("muted",))])
        gap = [self._frame("gap")] if entry.text else []
        if self.folded:
            return [fold, *gap]
        if self._thinking is None:
            self._thinking = _Flow("thinking", ("thinking",), [*MARGIN, ("  ", ())])
            self._clean_thinking = Sanitizer()
            self._thinking.document.feed(self._clean_thinking.feed(entry.thinking))
            if not self.live:
                self._thinking.document.feed(self._clean_thinking.flush())
                self._thinking.document.finish()
        self._thinking.sync()
        return [fold, *self._thinking.parts, *gap]

    def _said(self) -> list[Part]:
        entry = self.entry
        if entry.role == "assistant":
            if self._body is None:
                self._body = _Flow("body")
                self._clean = Sanitizer()
                self._body.document.feed(self._clean.feed(entry.text))
                if not self.live:
                    self._body.document.feed(self._clean.flush())
                    self._body.document.finish()
            self._body.sync()
            return self._body.parts
        if not entry.text or (entry.role == "tool" and self.folded):
            return []
        base = {"tool": ("muted",), "error": ("error",)}.get(entry.role, ())
        text = visible(entry.text).rstrip("\n")
        if not self._long:
            return _plain(text, base)
        more: list[Span] = [(self._sign, ("marker",))]
        if self.folded:
            lines = text.split("\n")
            shown = "\n".join(lines[:FOLD_LINES])[:FOLD_CHARACTERS].rstrip("\n")
            rest = len(lines) - shown.count("\n") - 1
            left = f"{rest:,} more line{'s' * (rest != 1)}" if rest else f"{len(text) - len(shown):,} more characters"
            more.append((f"… {left}", ("muted",)))
            text = shown
        else:
            more.append(("show less", ("muted",)))
        return [*_plain(text, base), self._frame("fold", more, SAID)]

    def code_blocks(self) -> list[str]:
        """The source of each code block of an answer, safe to paste."""
        if self.entry.role != "assistant":
            return []
        return Document(visible(self.entry.text)).code_blocks()


def _dashed(label: Sequence[Span], room: int) -> list[Span]:
    """A dashed line with a label in it, as long as there is room for."""
    text, style = label[0]
    text = set_cell_size(text, min(cell_len(text), max(0, room - 4)))
    return [(f"╌╌ {text} {'╌' * max(0, room - 4 - cell_len(text))}", style)]


def _plain(text: str, base: tuple[str, ...]) -> list[Part]:
    """Text as it was written, without Markdown."""
    lines: list[str] = []
    for source in text.split("\n"):
        lines += [source[i : i + PLAIN_CHARACTERS] for i in range(0, max(1, len(source)), PLAIN_CHARACTERS)]
    chunks = (lines[i : i + PLAIN_LINES] for i in range(0, len(lines), PLAIN_LINES))
    return [Part("body", Block("plain", lines=chunk), margin=SAID, base=base) for chunk in chunks]
