"""Markdown for a terminal: a growing text is read into blocks, and a block is drawn as lines of cells."""

from tui.markdown.blocks import Block, Document
from tui.markdown.drawing import COPY, Line, Palette, chrome, draw, height, line, shape, wrapped
from tui.markdown.inline import Span

__all__ = [
    "COPY",
    "Block",
    "Document",
    "Line",
    "Palette",
    "Span",
    "chrome",
    "draw",
    "height",
    "line",
    "shape",
    "wrapped",
]
