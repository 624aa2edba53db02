"""Markdown read line by line: a growing text becomes blocks, and only the last of them is ever open.

Every line is looked at once, whatever came before it, so reading costs the same at the end of a long answer as at its
start. Long blocks come in parts (a chunk of code, some rows of a table), so that drawing does too. The same text gives
the same blocks however it was cut on its way here.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, field
from typing import Literal

from tui.markdown.table import Table, cells, is_delimiter

Kind = Literal["text", "heading", "code", "table", "rule", "plain"]

CODE_LINES = (8, 48)  # a chunk of code ends after this many lines: at a good place, at the latest
TABLE_ROWS = 16
TEXT = (2000, 3000, 4000)  # a paragraph's part ends after so many characters: at a sentence, at a space, anywhere
_FENCE = re.compile(r"( {0,3})(`{3,}(?=[^`]*$)|~{3,})\s*([^\s`{]*)")
_HEADING = re.compile(r" {0,3}(#{1,6})(?:\s+(.*?))??(?:\s+#+)?\s*$")
_RULE = re.compile(r" {0,3}([-*_])(?:\s*\1){2,}\s*$")
_UNDERLINE = re.compile(r" {0,3}(=+|-+)\s*$")
_QUOTE = re.compile(r" {0,3}> ?")
_ITEM = re.compile(r"( {0,3})([-+*]|(\d{1,9})([.)]))(?=\s|$)")
_SENTENCE = re.compile(r"[.!?…][\"')\]]*\s|[\u3002\uff01\uff1f]")
# What a line that is still being written may turn into is not known yet from these alone.
_UNDECIDED = re.compile(r"[\s>]*(?:(?:[-+*=_#|:\s]|\d{1,9}[.)]?)*|[|].*|`{1,3}[^`]*|~{3}.*)$")
_FENCE_END = re.compile(r"\s*[`~]+\s*$")


@dataclass(frozen=True, eq=False, slots=True)
class Frame:
    """A quote (no marker) or an item of a list, around blocks.

    `indent` is in columns of the source; `group` is the list that an item belongs to.
    """

    marker: str = ""
    indent: int = 0
    group: object = None


@dataclass(eq=False, slots=True)
class Block:
    """A paragraph, a heading, a rule, or a part of a code block or table.

    Attributes:
        frames: what it stands in, outermost first; those from `fresh` on begin with this block.
        gap: whether an empty line stands above it.
        label, number: a code block's language, and which of the document's code blocks this is.
        first, last: whether this is the first and the last part of the code block or table.
        growing: whether it is drawn while its last line is still being written.
    """

    kind: Kind
    frames: tuple[Frame, ...] = ()
    fresh: int = 0
    gap: bool = False
    lines: list[str] = field(default_factory=list)
    level: int = 0
    label: str = ""
    number: int = -1
    table: Table | None = None
    first: bool = True
    last: bool = True
    growing: bool = False
    size: int = 0  # characters


class Document:
    """The blocks of a text that grows."""

    def __init__(self, text: str = "") -> None:
        self.blocks: list[Block] = []
        self._partial = ""
        self._segmented = False  # the start of the line being written is already in a block
        self._frames: list[Frame] = []
        self._lists: list[Frame | None] = [None]  # at each depth, the last item of the list that is open there
        self._leaf: Block | None = None
        self._fence: tuple[str, int] = ("", 0)
        self._blanks = 0  # empty lines within indented code: they count only if more code follows
        self._codes = 0
        if text:
            self.feed(text)
            self.finish()

    @property
    def settled(self) -> int:
        """How many blocks, from the first on, no further text can change."""
        return len(self.blocks) - (self._leaf is not None)

    def feed(self, text: str) -> None:
        """Append text, cut anywhere."""
        *whole, self._partial = (self._partial + text).split("\n")
        for line in whole:
            self._long_line(line, whole=True)
        if len(self._partial) > TEXT[0]:
            self._partial = self._long_line(self._partial, whole=False)

    def finish(self) -> None:
        """Take the last line as complete."""
        if self._partial:
            self._long_line(self._partial, whole=True)
        self._partial = ""
        self._leaf = None

    def tail(self) -> list[Block]:
        """The blocks after the settled ones as they look now, with the line that is still being written."""
        draft = copy.copy(self)
        draft.blocks = self.blocks[-1:]
        draft._frames, draft._lists = self._frames[:], self._lists[:]
        before = 1 if draft.blocks and self._leaf is None else 0
        if self._leaf is not None:
            draft._leaf = copy.copy(self._leaf)
            draft._leaf.lines = self._leaf.lines[:]
            draft._leaf.growing = True
            draft.blocks = [draft._leaf]
        if self._partial and not self._waits():
            draft._line(self._partial)
            for block in draft.blocks[before:]:
                block.growing = True
        return draft.blocks[before:]

    def code_blocks(self) -> list[str]:
        """The source of each code block."""
        sources: dict[int, list[str]] = {}
        for block in self.blocks:
            if block.kind == "code":
                sources.setdefault(block.number, []).extend(block.lines)
        return ["\n".join(lines) for lines in sources.values()]

    def _waits(self) -> bool:
        """Whether the line being written had better not be drawn yet."""
        if self._segmented:
            return False
        if self._leaf is not None and self._leaf.kind == "table":
            return True  # a row appears when it is whole: its cells would else move the columns at each letter
        if self._leaf is not None and self._leaf.kind == "code":
            return _FENCE_END.match(self._partial) is not None
        return _UNDECIDED.match(self._partial) is not None

    def _long_line(self, line: str, *, whole: bool) -> str:
        """Take a line, a very long one in parts; returns what is left of one that is not whole."""
        if self._leaf is None or self._leaf.kind not in ("code", "table"):
            while len(line) > TEXT[0] and (cut := _cut(line, whole=whole)):
                self._part(line[:cut])
                self._segmented, line = True, line[cut:]
        if whole:
            self._part(line)
            self._segmented = False
            return ""
        return line

    def _part(self, line: str) -> None:
        if not self._segmented:
            self._line(line)
        elif line.strip():
            self._leaf = self._add(Block("text", gap=False), follows=True)
            self._write(line.strip())

    def _line(self, line: str) -> None:
        if self._segmented:
            self._part(line)
            return
        line, matched = self._enter(line)
        blank = not line.strip()
        leaf = self._leaf if matched == len(self._frames) else None
        if leaf is not None and leaf.kind == "code" and self._more_code(leaf, line, blank):
            return
        if blank:
            self._close(matched)
            self._leaf = None
            return
        paragraph = self._leaf if self._leaf is not None and self._leaf.kind == "text" else None
        if leaf is not None and leaf is paragraph and self._turn(leaf, line):
            return
        line, opened = self._open(line, matched, leaf is not None and leaf is paragraph)
        if opened:
            paragraph = leaf = None
        if self._begin(line, matched if not opened else len(self._frames), paragraph, leaf):
            return
        if paragraph is not None:  # its next line, also where the quote or item is not marked again
            if paragraph.size > TEXT[0]:
                self._leaf = self._add(Block("text", gap=False), follows=True)
        elif leaf is not None and leaf.kind == "table":
            self._row(leaf, line)
            return
        else:
            if not opened:
                self._close(matched)
            self._leaf = self._add(Block("text"))
        self._write(line.strip())

    def _enter(self, line: str) -> tuple[str, int]:
        """Step into the open frames that the line belongs to; returns what is left of it, and how many they are."""
        if self._frames and "\t" in line:
            line = line.expandtabs(4)
        for depth, frame in enumerate(self._frames):
            if frame.marker:
                last = self.blocks[-1]
                empty = last.frames[-1:] == (frame,) and last.kind == "text" and not last.lines
                blank = not line.strip()
                if (empty and blank) or not (blank or line.startswith(" " * frame.indent)):
                    return line, depth
                line = line[frame.indent :]
            elif mark := _QUOTE.match(line):
                line = line[mark.end() :]
            else:
                return line, depth
        return line, len(self._frames)

    def _open(self, line: str, matched: int, in_paragraph: bool) -> tuple[str, bool]:
        """Step into the frames that begin on this line."""
        opened = False
        while line.strip() and not _RULE.match(line):
            if mark := _QUOTE.match(line):
                frame, rest = Frame(), line[mark.end() :]
            elif mark := _ITEM.match(line):
                rest = line[mark.end() :].expandtabs(4)
                interrupts = in_paragraph and not opened
                if interrupts and (not rest.strip() or mark[3] not in (None, "1")):
                    break
                # Five spaces or more after the marker belong to code within the item, but for one.
                pad = len(rest) - len(rest.lstrip())
                pad = pad if 0 < pad < 5 and rest.strip() else 1
                if not opened:
                    self._close(matched)
                    opened = True
                frame, rest = self._item(mark, pad), rest[pad:]
            else:
                break
            if not opened:
                self._close(matched)
                opened = True
            if not frame.marker:
                self._lists[-1] = None
            self._frames.append(frame)
            self._lists.append(None)
            self._leaf = None
            line = rest
        if opened and not line.strip() and self._frames[-1].marker:
            self._add(Block("text"))  # an empty item shows its marker
        return line, opened

    def _item(self, mark: re.Match[str], pad: int) -> Frame:
        """The next item of the open list at this depth, or the first of a new one."""
        before, sign = self._lists[-1], mark[4] or mark[2]
        same = before is not None and before.marker[-1] == sign
        number = int(before.marker[:-1]) + 1 if same and before and mark[4] else int(mark[3] or 0)
        marker = f"{number}{sign}" if mark[4] else sign
        item = Frame(marker, mark.end() + pad, before.group if same and before else object())
        self._lists[-1] = item
        return item

    def _close(self, depth: int) -> None:
        if depth < len(self._frames):
            del self._frames[depth:], self._lists[depth + 1 :]
            self._leaf = None

    def _turn(self, leaf: Block, line: str) -> bool:
        """Make a paragraph a heading or a table where this line says that it was one."""
        if (mark := _UNDERLINE.match(line)) and leaf.lines:
            leaf.kind, leaf.level = "heading", 1 if mark[1][0] == "=" else 2
            self._leaf = None
            return True
        header = leaf.lines[-1] if leaf.lines else ""
        if not is_delimiter(line) or ("|" not in header and "|" not in line):
            return False
        table = Table(header, line)
        if len(cells(header)) != len(table.aligns):
            return False
        if len(leaf.lines) > 1:
            leaf.lines.pop()
            leaf = self._leaf = self._add(Block("table"))
        leaf.kind, leaf.table, leaf.lines = "table", table, []
        return True

    def _begin(self, line: str, matched: int, paragraph: Block | None, leaf: Block | None) -> bool:
        """Begin a block that a line tells by itself; whether it did."""
        indented = line.startswith(("    ", "\t"))
        if indented:
            if paragraph is not None or not line.strip():
                return False
            block = Block("code")
        elif mark := _FENCE.match(line):
            block = Block("code", label=mark[3])
        elif mark := _HEADING.match(line):
            block = Block("heading", level=len(mark[1]), lines=[mark[2] or ""])
        elif _RULE.match(line):
            block = Block("rule")
        else:
            return not line.strip()
        self._close(matched)
        self._leaf = None
        self._add(block)
        if block.kind == "code":
            block.number, self._codes = self._codes, self._codes + 1
            self._leaf, self._blanks = block, 0
            self._fence = ("", 4) if indented else (mark[2], len(mark[1])) if mark else ("", 0)
            if indented:
                self._code(_unindent(line, 4))
        return True

    def _more_code(self, leaf: Block, line: str, blank: bool) -> bool:
        """Append a line to open code; False where the line ends indented code and is something else."""
        fence, indent = self._fence
        if not fence:
            if blank:
                self._blanks += 1
                return True
            if not line.startswith(("    ", "\t")):
                self._leaf = None
                return False
            for _ in range(self._blanks):
                self._code("")
            self._blanks = 0
        elif re.match(rf" {{0,3}}{re.escape(fence[0])}{{{len(fence)},}}\s*$", line):
            self._leaf = None
            return True
        self._code(_unindent(line, indent))
        return True

    def _code(self, line: str) -> None:
        leaf = self._leaf
        assert leaf is not None
        few, many = CODE_LINES
        count = len(leaf.lines)
        # Each chunk is coloured by itself, so it begins where strings and comments most likely do not reach over.
        good = count >= few and not leaf.lines[-1].strip() and line[:1].strip() and not _reaches_over(leaf.lines)
        if count >= many or good:
            leaf.last = False
            part = Block("code", label=leaf.label, number=leaf.number, first=False)
            leaf = self._leaf = self._add(part, follows=True)
        leaf.lines.append(line)

    def _row(self, leaf: Block, line: str) -> None:
        assert leaf.table is not None
        if len(leaf.lines) >= TABLE_ROWS:
            leaf.last = False
            leaf = self._leaf = self._add(Block("table", table=leaf.table, first=False), follows=True)
        leaf.lines.append(line)
        if not leaf.growing and leaf.table is not None:
            leaf.table.measure(line)

    def _write(self, line: str) -> None:
        assert self._leaf is not None
        self._leaf.lines.append(line)
        self._leaf.size += len(line) + 1

    def _add(self, block: Block, *, follows: bool = False) -> Block:
        """Append a block within the open frames; one that follows on is a part of the block before it."""
        block.frames = tuple(self._frames)
        before = self.blocks[-1] if self.blocks else None
        if before is not None:
            pairs = zip(before.frames, block.frames, strict=False)
            block.fresh = next((i for i, (a, b) in enumerate(pairs) if a is not b), None) or 0
            shared = min(len(before.frames), len(block.frames))
            same = all(a is b for a, b in zip(before.frames, block.frames, strict=False))
            block.fresh = shared if same else block.fresh
            block.gap = not follows and _apart(before, block)
        if not follows:
            self._lists[-1] = None
        self.blocks.append(block)
        return block


def _apart(before: Block, block: Block) -> bool:
    """Whether an empty line stands between two blocks: lists are tight, paragraphs are not."""
    depth = block.fresh
    if depth < len(block.frames) and block.frames[depth].marker:
        group = block.frames[depth].group
        if depth < len(before.frames) and before.frames[depth].group is group:
            return False
        return not any(frame.marker for frame in block.frames[:depth])
    if any(frame.marker for frame in block.frames[:depth]):
        return block.kind == "text" and before.kind == "text" and len(before.frames) == len(block.frames)
    return True


def _cut(line: str, *, whole: bool) -> int:
    """Where a part of a very long line ends; 0 where more must be seen first, or where the rest is one part."""
    sentence, space, anywhere = TEXT
    if match := _SENTENCE.search(line, sentence, space):
        return match.end()
    if len(line) < space:
        return 0
    found = line.find(" ", space, anywhere)
    if found >= 0:
        return found + 1
    return anywhere if len(line) >= anywhere else 0


def _reaches_over(lines: list[str]) -> bool:
    """Whether a string or a comment seems to be open at the end of these lines of code."""
    code = "\n".join(lines)
    odd = code.count('"""') % 2 or code.count("'''") % 2 or code.count("`") % 2
    return bool(odd) or code.rfind("/*") > code.rfind("*/") or code.rfind("<!--") > code.rfind("-->")


def _unindent(line: str, columns: int) -> str:
    """The line without its first columns of indentation, as far as it has them."""
    if "\t" in line[:columns]:
        line = line.expandtabs(4)
    blank = len(line) - len(line.lstrip(" "))
    return line[min(columns, blank) :]
