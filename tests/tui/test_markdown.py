"""Markdown on its way to the screen: what is read, how it is drawn, and that it does not matter how it came."""

from __future__ import annotations

import random

import pytest
from markdown_it import MarkdownIt
from rich.cells import cell_len
from rich.style import Style

from tests.tui.test_sanitize import HOSTILE, dangerous
from tui.markdown import Document, Line, Palette, draw
from tui.markdown.inline import spans, wrap
from tui.sanitize import visible

PALETTE = Palette({name: Style(bold=True) for name in ("strong", "h1", "h2")} | {"code": Style(reverse=True)})

DOCUMENT = """# Title with `code`

Some **bold** and *em*, [a link](https://example.org/x) and [https://example.org](https://example.org).
Second line of it.

1. one
2. two
   - nested a
   - nested b

     second paragraph of b
3. three
> quote
> - with a list
still quoted

```python
def f(x):
    \"\"\"Text.\"\"\"

    return x  # note
```

| a | longer head | n |
|---|:---:|--:|
| 1 | **bold** | 2 |
| wide cell 日本 | `x` | 30 |

Heading
---

***

- a

  ~~~js
  const x = `1`
  ~~~
-
- [ ] task

    indented code

    more of it
🎉 日本語のテキストはどこでも折り返すことができます。日本語のテキスト。
"""


def drawn(text: str | Document, width: int = 60) -> list[Line]:
    document = text if isinstance(text, Document) else Document(text)
    return [line for block in document.blocks for line in draw(block, width, PALETTE)]


def shown(text: str | Document, width: int = 60) -> list[str]:
    return [line.strip.text.rstrip() for line in drawn(text, width)]


def fed(text: str, seed: int, longest: int = 12) -> Document:
    """The document after it came in pieces, drawn after each as the transcript does."""
    source, document, at = random.Random(seed), Document(), 0
    while at < len(text):
        size = source.randint(1, longest)
        document.feed(text[at : at + size])
        at += size
        before = document.settled
        for block in document.tail():
            draw(block, 60, PALETTE)
        assert document.settled == before, "looking at the tail changes nothing"
    document.finish()
    return document


LONG = {
    "fence": "```python\n" + "\n".join(f"def f{n}():\n    return {n}\n" for n in range(60)) + "\n```\nend",
    "open fence": "```\n" + "x = 1\n" * 130,
    "list": "".join(f"- item **{n}**\n  - nested\n    more\n" for n in range(50)),
    "table": "| n | what |\n|--|--|\n" + "".join(f"| {n} | {'w' * (n % 9)} |\n" for n in range(70)) + "\nafter",
    "paragraph": "It said so, and `more` of *it*. " * 300,
    "no spaces": "x" * 9000 + "\n\n" + "日本" * 4000,
}


@pytest.mark.parametrize("kind", ["mixed", *LONG])
def test_however_it_comes_it_reads_the_same(kind: str) -> None:
    text = LONG.get(kind, DOCUMENT)
    whole = drawn(text)
    for seed in range(30 if kind == "mixed" else 2):
        assert drawn(fed(text, seed, 12 if kind == "mixed" else 400)) == whole


def test_random_texts_read_the_same_however_they_come() -> None:
    parts = [
        "a",
        "**b**",
        "`",
        "```",
        "\n",
        "\n\n",
        "- ",
        "1. ",
        "> ",
        "# ",
        "|",
        "|-|-|\n",
        "    ",
        "---",
        "~~~",
        " ",
        "\t",
    ]
    for seed in range(200):
        source = random.Random(seed)
        text = "".join(source.choice(parts) for _ in range(40))
        assert shown(fed(text, seed)) == shown(text), repr(text)


def test_blocks_are_those_of_commonmark() -> None:
    kinds = {"paragraph_open": "text", "heading_open": "heading", "fence": "code", "code_block": "code", "hr": "rule"}
    kinds["table_open"] = "table"
    parts = ["- a\n", "  - b\n", "1. c\n", "2) d\n", "   e\n", "> q\n", "text\n", "\n", "\n", "# h\n", "```\n", "---\n"]
    parts += ["| a | b |\n", "|--|--|\n", "    code\n", "* x\n", "  y\n", "+ \n"]
    parser = MarkdownIt("commonmark").enable("table")
    for seed in range(600):
        source = random.Random(seed)
        text = DOCUMENT if seed == 0 else "".join(source.choice(parts) for _ in range(9))
        expected = [kinds[token.type] for token in parser.parse(text) if token.type in kinds]
        # An item with nothing in it is a block here, so that its marker is drawn.
        blocks = [block for block in Document(text).blocks if block.lines or block.kind != "text"]
        assert [block.kind for block in blocks] == expected, repr(text)


def test_settled_blocks_are_never_drawn_otherwise() -> None:
    document, seen = Document(), []
    for character in DOCUMENT:
        document.feed(character)
        settled = [block for block in document.blocks[: document.settled] if block.kind != "table"]
        now = [line for block in settled for line in draw(block, 60, PALETTE)]
        assert now[: len(seen)] == seen
        seen = now


def test_a_picture_of_everything() -> None:
    assert shown(DOCUMENT, 44) == PICTURE.strip("\n").split("\n")


PICTURE = r'''
Title with code

Some bold and em, a link
(https://example.org/x) and
https://example.org.
Second line of it.

1. one
2. two
   - nested a
   - nested b

     second paragraph of b
3. three

│ quote
│
│ - with a list
│   still quoted

┌─ python ────────────────────────── copy ─┐
│ def f(x):                                │
│     """Text."""                          │
│                                          │
│     return x  # note                     │
└──────────────────────────────────────────┘

a              │ longer head │  n
───────────────┼─────────────┼───
1              │    bold     │  2
wide cell 日本 │      x      │ 30

Heading

────────────────────────────────────────────

- a
  ┌─ js ──────────────────────────── copy ─┐
  │ const x = `1`                          │
  └────────────────────────────────────────┘
-
- [ ] task

  indented code

  more of it
  🎉 日本語のテキストはどこでも折り返すこと
  ができます。日本語のテキスト。
'''


def test_what_is_half_written_is_drawn_as_if_it_were_whole() -> None:
    assert spans("so **bol", growing=True) == (("so ", ()), ("bol", ("strong",)))
    assert spans("so **bol*", growing=True) == (("so ", ()), ("bol", ("strong",)))
    assert spans("a `cod", growing=True) == (("a ", ()), ("cod", ("code",)))
    assert spans("a **b", growing=False) == (("a **b", ()),)


@pytest.mark.parametrize("partial", ["text\n\n-", "text\n\n```pyt", "text\n\n| a | b", "text\n-", "text\n\n12."])
def test_a_line_that_may_become_anything_waits(partial: str) -> None:
    document = Document()
    document.feed(partial)
    last = [*document.blocks[: document.settled], *document.tail()][-1]
    assert (last.kind, last.lines) == ("text", ["text"])


def test_code_is_copied_as_it_was_written() -> None:
    source = "if a:\n\tb()\n\n    c  \n" * 40
    text = f"- x\n\n```go\n{source}```\n\n    indented\n\n    code\n\n~~~\n```\n~~~"
    assert Document(f"```go\n{source}```").code_blocks() == [source.removesuffix("\n")]
    assert Document(text).code_blocks()[-1] == "```"


def test_a_link_always_tells_where_it_leads() -> None:
    assert "".join(text for text, _ in spans("[my bank](https://evil.example)")) == "my bank (https://evil.example)"
    assert not any(segment.style and segment.style.link for line in drawn("[a](http://b)") for segment in line.strip)


@pytest.mark.parametrize("width", [12, 20, 46, 80])
def test_no_line_is_wider_than_it_may_be(width: int) -> None:
    for text in (DOCUMENT, *LONG.values()):
        for line in drawn(text, width):
            assert line.strip.cell_length <= max(width, 24), line.strip.text


def test_words_stay_whole_and_nothing_is_lost() -> None:
    text = "several words that are wrapped, supercalifragilistic ones too, 日本語も、です。 end"
    for width in (5, 8, 13, 30):
        rows = wrap(((text, ()),), width)
        assert "".join("".join(part for part, _ in row) + joint for row, joint in rows) == text + "\n"
        assert all(cell_len("".join(part for part, _ in row)) <= width for row, _ in rows)
    assert [row[0][0] for row, _ in wrap((("one two", ()),), 5)] == ["one", "two"]


def test_hostile_text_in_every_kind_of_block() -> None:
    bad = visible(HOSTILE.replace("\n", "")).replace("\n", " ") + "&#27;&#x9b;&#x202e;"
    text = f"# {bad}\n\n{bad} **{bad}** `{bad}` [{bad}]({bad} '{bad}') ![{bad}](x)\n\n- {bad}\n\n> {bad}\n\n"
    text += f"```{bad}\n{bad}\n```\n\n| {bad} |\n|-|\n| {bad} |\n\n    {bad}\n"
    for line in drawn(text):
        assert not dangerous(line.strip.text), repr(line.strip.text)
        assert not set("\n\t") & set(line.strip.text)
