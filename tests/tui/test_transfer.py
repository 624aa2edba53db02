"""Conversations as files: Markdown that reads as a document whatever was said, JSON that comes back as it went."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mistral_mlx.completion import ToolCall
from mistral_mlx.errors import InputError
from tests.tui.test_conversation import forked, say
from tests.tui.test_store import STATS, TEXT, cleaned, conversations
from tui.conversation import Conversation, Turn, new_id
from tui.transfer import from_json, to_json, to_markdown


def plain(c: Conversation) -> tuple[Any, ...]:
    """A conversation without its ids."""
    turns = sorted(c.turns.values(), key=lambda turn: turn.id)
    place: dict[int | None, int | None] = {None: None}

    def number(turn: Turn) -> None:
        place[turn.id] = len(place)
        for child in c.children(turn.id):
            number(child)

    for root in c.children(None):
        number(root)
    facts = {place[t.id]: (place[t.parent], {**vars(t), "id": 0, "parent": 0}) for t in turns}
    own = {k: v for k, v in vars(c).items() if k not in ("id", "tip", "turns", "_children", "_visited")}
    return own, place[c.tip], facts


def talk() -> Conversation:
    c = Conversation(title="Rolling *buffers*", model="mistral-7b-v0.1", system="Be brief.", created=1_800_000_000)
    say(c, "user", "Show me <b>code</b>.")
    say(c, "assistant", "Here:\n\n```python\nprint('<b>')\n```", thinking="They want `<b>`.", stats=STATS)
    say(c, "user", "And the weather?")
    say(c, "assistant", tool_calls=(ToolCall("abcdefghi", "weather_now", '{"city": "Rome"}'),))
    say(c, "tool", "```\nsunny", tool_call_id="abcdefghi")
    say(c, "assistant", "It is\nsunny", finish="cancelled")
    return c


# ---- Markdown --------------------------------------------------------------------------------------------------------


def test_markdown_reads_as_a_document() -> None:
    assert (
        to_markdown(talk(), figures=True)
        == """\
# Rolling \\*buffers\\*

mistral-7b-v0.1 · 2027-01-15

## System prompt

Be brief.

## You

Show me \\<b>code\\</b>.

## Assistant

<details><summary>Thinking</summary>

They want `<b>`.

</details>

Here:

```python
print('<b>')
```

<!-- 3 tokens, 50.0/s, the first after 0.25 s; prompt 10, 8 of it reused -->

## You

And the weather?

## Assistant

Calls the tool weather\\_now:

```json
{"city": "Rome"}
```

## Tool

````
```
sunny
````

## Assistant

It is
sunny

> Stopped before its end.
"""
    )


def test_markdown_of_all_branches_says_what_follows_what() -> None:
    c, _ = forked()
    assert re.findall("## (.*)", to_markdown(c, path_only=False)) == [
        "1. You",
        "2. Assistant, after 1",
        "3. You, after 2",
        "4. Assistant, after 3",
        "5. You, after 2",
        "6. Assistant, after 5",
        "7. Assistant, after 5",
    ]
    assert to_markdown(c).count("## ") == 4


@pytest.mark.parametrize(
    ("finish", "told"),
    [(None, "> This answer is not finished."), ("length", "> Cut: "), ("failed", "> Failed: No \\*memory\\*.")],
)
def test_markdown_says_how_an_answer_ended(finish: str | None, told: str) -> None:
    c = Conversation()
    say(c, "assistant", "So", finish=finish, error="No *memory*.")
    assert told in to_markdown(c)


def test_markdown_holds_nothing_that_a_terminal_obeys() -> None:
    hostile = "a\x1b]52;c;x\x07b\x9b2J\x7f\0c\r\nd\re\x85f\ud800"
    c = Conversation(title=hostile, model=hostile, system=hostile)
    calls = (ToolCall(hostile, hostile, hostile),)
    say(c, "assistant", hostile, thinking=hostile, tool_calls=calls, finish="failed", error=hostile)
    say(c, "tool", hostile, tool_call_id=hostile)
    markdown = to_markdown(c)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", markdown)
    assert "a␛]52;c;x␇b�2J␡␀c\nd\ne\nf�" in markdown
    assert markdown.encode()


# fmt: off
MARKUP = st.lists(st.sampled_from([
    "```", "````", "~~~", "`", "\n", "\n\n", " ", "    ", "\t", "- ", "1. ", "> ", "# ", "===", "---", "|", "[a]: ",
    "\\", "<", "<!--", "-->", "<div>", "</details>", "<script>", "<![CDATA[", "<?", "&lt;", "a", "'", "py", "*",
]), max_size=14).map("".join)
# fmt: on


@given(st.lists(st.tuples(MARKUP, MARKUP), min_size=1, max_size=3), MARKUP)
@example([("```\nnever closed", "<!-- nor this")], "~~~~")
@example([("- a\n  ```\n  b\nc\n```", "    ```\n```")], "")
def test_no_content_can_swallow_what_follows(said: list[tuple[str, str]], title: str) -> None:
    c = Conversation(title=title, system=title)
    for question, answer in said:
        say(c, "user", question)
        say(c, "assistant", answer, thinking=question)
        say(c, "tool", answer, tool_call_id="x")
    tokens = MarkdownIt("commonmark").parse(to_markdown(c))
    headings = [
        tokens[i + 1].content for i, token in enumerate(tokens) if token.type == "heading_open" and token.level == 0
    ]
    wanted = ["You", "Assistant", "Tool"] * len(said)
    found = iter(headings)
    assert all(name in found for name in wanted)  # in this order
    html = [t.content for t in tokens if t.type == "html_block"]
    thoughts = sum(bool(question) for question, _ in said)
    assert len(html) == 2 * thoughts
    assert not [child for t in tokens for child in t.children or () if child.type == "html_inline"]


# ---- JSON ------------------------------------------------------------------------------------------------------------


@given(conversations())
def test_json_comes_back_as_it_went(c: Conversation) -> None:
    text = to_json(c)
    assert text.encode()
    back = from_json(text)
    assert back.id != c.id
    assert not back.turns.keys() & c.turns.keys()
    assert plain(back) == plain(json_cleaned(c))


def json_cleaned(c: Conversation) -> Conversation:
    """With half surrogate pairs replaced everywhere."""
    c = cleaned(c)
    c.options = {}  # what is no option does not come back
    for turn in c.turns.values():
        turn.receipt = None  # nor what is no receipt
        turn.tool_calls = tuple(ToolCall(*_cleaned([call.id, call.name, call.arguments])) for call in turn.tool_calls)
    return c


def _cleaned(value: Any) -> Any:
    return json.loads(
        json.dumps(value, ensure_ascii=False).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    )


def test_json_has_one_turn_on_a_line_and_standard_numbers() -> None:
    c = talk()
    c.path()[1].tokens.add([1, 2], [float("nan"), -0.1], 3)
    lines = to_json(c).splitlines()
    assert sum(line.startswith('    {"') for line in lines) == len(c.turns)
    json.loads(to_json(c), parse_constant=pytest.fail)
    assert "-0.1]" in to_json(c).replace("-0.100000001]", "-0.1]")
    assert from_json(to_json(c)).path()[1].tokens.logprobs[1] == c.path()[1].tokens.logprobs[1]


def test_a_deep_conversation_comes_back() -> None:
    turns = {i: Turn(i, i - 1 or None, "user", str(i)) for i in range(1, 5001)}
    back = from_json(to_json(Conversation(tip=5000, turns=turns)))
    assert [turn.text for turn in back.path()] == [str(i) for i in range(1, 5001)]


def test_an_answer_that_was_being_written_is_interrupted() -> None:
    c = Conversation()
    say(c, "assistant", "So", finish=None)
    assert from_json(to_json(c)).path()[0].finish == "interrupted"


def test_openai_messages_are_read() -> None:
    call = {"id": "abcdefghi", "type": "function", "function": {"name": "f", "arguments": {"é": 1}}}
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "developer", "content": [{"type": "text", "text": "In French."}]},
        {"role": "user", "content": [{"type": "text", "text": "One"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"},
        {"role": "tool", "content": "3", "tool_call_id": "abcdefghi"},
        {"role": "assistant", "content": "Trois."},
    ]
    for data in (messages, {"model": "x", "messages": messages}):
        c = from_json("\ufeff" + json.dumps(data))
        assert (c.title, c.system) == ("One", "Be brief.\n\nIn French.")
        assert [(t.role, t.text, t.finish) for t in c.path()] == [
            ("user", "One\n\ntwo", None),
            ("assistant", "", "stop"),
            ("tool", "3", None),
            ("assistant", "Trois.", "stop"),
        ]
        assert c.path()[1].tool_calls == (ToolCall("abcdefghi", "f", '{"é": 1}'),)
        assert c.path()[1].thinking == "hm"


def test_the_least_that_is_a_conversation() -> None:
    assert from_json("[]").path() == []
    c = from_json('{"format": "mistral-mlx conversation", "turns": [{"role": "user"}]}')
    assert [turn.role for turn in c.path()] == ["user"]


FILE = '{"format": "mistral-mlx conversation", '
TURN = FILE + '"turns": [{"role": "user"}, {"role": "assistant", '


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("no JSON", "no JSON: Expecting value"),
        ("[" * 100_000, "no JSON"),
        ("1" * 5000, "no JSON"),
        ('"text"', "file is 'text', not an object"),
        ("{}", "no conversation"),
        (FILE + '"version": 2}', "newer version"),
        (FILE + '"version": "1"}', "file.version is '1', not a whole number"),
        (FILE + '"title": 5}', "file.title is 5, not a text"),
        (FILE + '"pinned": 1}', "file.pinned is 1, not true or false"),
        (FILE + '"options": []}', r"file.options is \[\], not an object"),
        (FILE + '"tip": 0}', "file.tip is 0, and the file has 0 turns"),
        (FILE + '"created": 1e300}', "file.created is 1e"),
        (FILE + '"created": NaN}', "file.created is nan"),
        (FILE + '"turns": {}}', "file.turns is {}, not a list"),
        (FILE + '"turns": [7]}', r"turns\[0\] is 7, not an object"),
        (FILE + '"turns": [{"role": "system"}]}', r"turns\[0\].role is 'system', and not one of user, assistant, tool"),
        (FILE + '"turns": [{"role": "user", "parent": 0}]}', r"turns\[0\].parent is 0, and no turn before it"),
        (TURN + '"parent": true}]}', r"turns\[1\].parent is True, not a whole number"),
        (TURN + '"tool_calls": [{"id": 3}]}]}', r"turns\[1\].tool_calls\[0\].id is 3, not a text"),
        (TURN + '"kept": [-1]}]}', r"turns\[1\].kept is \[-1\], not a list of token ids"),
        (TURN + '"tokens": {"ids": ["1"]}}]}', r"turns\[1\].tokens.ids is \['1'\], not a list of token ids"),
        (TURN + '"tokens": {"ids": [1]}}]}', r"turns\[1\].tokens.ends is None, not as long as"),
        (
            TURN + '"tokens": {"ids": [1], "ends": [1], "logprobs": ["x"]}}]}',
            r"tokens.logprobs .* not a list of numbers",
        ),
        (TURN + '"stats": {"ttft_s": 1}}]}', r"turns\[1\].stats.prompt_tokens is None, not a number"),
        ('[{"role": "wizard"}]', r"messages\[0\].role is 'wizard'"),
        ('[{"role": "user"}, {"role": "system"}]', r"messages\[1\].role is 'system'"),
        ('[{"role": "user", "content": [{"type": "image_url"}]}]', r"messages\[0\].content is .* not only text"),
        ('[{"role": "user", "content": 5}]', r"messages\[0\].content is 5, not only text"),
        ('[{"role": "assistant", "tool_calls": [5]}]', r"messages\[0\].tool_calls\[0\] is 5, not an object"),
        ('{"messages": "hi"}', "file.messages is 'hi', not a list"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told) as error:
        from_json(text)
    assert error.value.hint


JSON_LIKE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from([*vars(Turn(1, None, "user")), *vars(Conversation()), "messages", "content", "format"]),
            inner,
        )
    ),
)


@given(JSON_LIKE)
def test_any_json_is_read_or_refused(data: Any) -> None:
    if isinstance(data, dict) and "format" in data:
        data["format"] = "mistral-mlx conversation"
    with suppress(InputError):
        to_markdown(from_json(json.dumps(data)))


def test_options_and_receipts_come_back_and_what_is_none_does_not() -> None:
    made = {
        "model": "m", "fingerprint": "f", "build": {"mlx": "1"}, "dtype": "float32", "window": None, "kv_bits": None,
        "sampling": {"seed": 1}, "prompt_tokens": 2, "prompt_hash": "p", "tokens": 1, "hash": "h", "reading": [2],
        "reused": 0, "batch": 1, "drafted": 0, "finish": "stop", "seconds": 0.5, "time": "now",
    }  # fmt: skip
    c = Conversation(
        options={"temperature": 0.5, "frequency_penalty": -1.5, "stop": ["."], "seed": None, "context": 900}
    )
    turn = c.add(Turn(new_id(), None, "assistant", "said", finish="stop", receipt=made))
    back = from_json(to_json(c))
    assert back.options == c.options
    assert back.path()[0].receipt == made
    turn.receipt = {"model": "m"}
    assert from_json(to_json(c)).path()[0].receipt is None
    c.options = {"temperature": "warm"}
    with pytest.raises(InputError, match=r"file.options.temperature is 'warm'"):
        from_json(to_json(c))
