"""Text from a model, a file or a person, made safe to draw: nothing in it is taken as a command by a terminal."""

from __future__ import annotations

import re

# Marks that turn the direction of writing, so that text may read other than it is.
BIDI = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
_LINE_ENDS = (0x0B, 0x0C, 0x85, 0x2028, 0x2029)
_TABLE: dict[int, str] = {
    **{code: chr(0x2400 + code) for code in range(0x20) if chr(code) not in "\n\t"},
    0x7F: "\u2421",
    **dict.fromkeys([*range(0x80, 0xA0), *range(0xD800, 0xE000)], "\ufffd"),
    **dict.fromkeys(_LINE_ENDS, "\n"),
    **{code: f"<U+{code:04X}>" for code in BIDI},
}
_ODD = re.compile("[" + "".join(f"\\u{code:04x}" for code in _TABLE) + "]")


class Sanitizer:
    """`visible` for text that comes in pieces, cut anywhere."""

    def __init__(self) -> None:
        self._carriage_return = False

    def feed(self, text: str) -> str:
        """The next piece, safe to draw; a carriage return at its end is held until what follows it is known."""
        if self._carriage_return:
            text = "\r" + text
        self._carriage_return = text.endswith("\r")
        if self._carriage_return:
            text = text[:-1]
        if _ODD.search(text) is None:
            return text
        return text.replace("\r\n", "\n").replace("\r", "\n").translate(_TABLE)

    def flush(self) -> str:
        """What was still held."""
        held, self._carriage_return = self._carriage_return, False
        return "\n" if held else ""


def visible(text: str, *, keep: str = "\n\t") -> str:
    """Text in which nothing is left that a terminal would take as a command.

    Control characters become their pictures (ESC is drawn as ␛), those above 127 and lone surrogates become �, marks of
    writing direction are spelt out, and every kind of line end becomes a newline.

    Args:
        keep: which of newline and tab stay; one that is left out becomes a picture too.
    """
    sanitizer = Sanitizer()
    text = sanitizer.feed(text) + sanitizer.flush()
    for control in "\n\t":
        if control not in keep:
            text = text.replace(control, chr(0x2400 + ord(control)))
    return text


def one_line(text: str) -> str:
    """Text made safe and put on one line, for titles, labels and notices."""
    return " ".join(visible(text).split())
