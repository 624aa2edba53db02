"""A model's own template, held against Mistral's published ones, transformers' rendering and mistral-common's ids."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from mistral_common.integrations.chat_templates.chat_templates import generate_chat_template
from mistral_common.tokens.tokenizers.base import TokenizerVersion

import mistral_mlx as mm
from mistral_mlx.completion import ToolCall
from mistral_mlx.text.chat import MistralChat
from mistral_mlx.text.export import write_tekken
from mistral_mlx.text.files import find_tokenizer
from mistral_mlx.text.messages import Message
from mistral_mlx.text.template import TemplateChat
from mistral_mlx.text.tokenizer import Tokenizer
from mistral_mlx.text.tools import Tool
from tests.chat_formats import EFFORTS, tekken_of

VERSIONS = ["v3", "v7", "v11", "v13", "v15"]
SIZE = 12_000  # of the vocabulary


def mistrals_template(version: str, **changes: Any) -> str:
    """As Mistral publishes it for a version."""
    thinks, effort = version in ("v13", "v15"), version == "v15"
    given: dict[str, Any] = {
        "spm": False,
        "tokenizer_version": TokenizerVersion(version),
        "image_support": False,
        "audio_support": False,
        "thinking_support": thinks,
        "default_system_prompt": None,
        "plain_thinking_support": False,
        "use_special_token_variables": True,
        "model_settings_fields": frozenset({"reasoning_effort"}) if effort else None,
        "reasoning_effort_values": EFFORTS if effort else None,
        "reasoning_effort_default": EFFORTS[0] if effort else None,
    }
    return generate_chat_template(**given | changes)


TEMPLATES = {version: mistrals_template(version) for version in VERSIONS}


@dataclass(frozen=True)
class Formats:
    """A vocabulary as this library reads it and as the tokenizers library does, and the formats that use it."""

    tokenizer: Tokenizer
    theirs: tokenizers.Tokenizer
    mistral: dict[str, MistralChat]
    chats: dict[str, TemplateChat] = field(default_factory=dict)

    def chat(self, template: str) -> TemplateChat:
        if template not in self.chats:  # Mistral's take long to compile
            self.chats[template] = TemplateChat(template, self.tokenizer, "<s>", "</s>")
        return self.chats[template]

    def text(self, ids: Sequence[int]) -> str:
        """With the names of control tokens."""
        return str(self.theirs.decode(list(ids), skip_special_tokens=False))

    def rendered(
        self, template: str, messages: Sequence[Message], tools: Sequence[Tool] = (), **around: Any
    ) -> list[int]:
        """The ids of what transformers renders."""
        from transformers.utils.chat_template_utils import render_jinja_template

        [text], _ = render_jinja_template(
            [[as_given(message) for message in messages]],
            tools=[tool.definition() for tool in tools] or None,
            chat_template=template,
            continue_final_message=messages[-1].prefix,
            add_generation_prompt=not messages[-1].prefix,
            bos_token="<s>",
            eos_token="</s>",
            **around,
        )
        return list(self.theirs.encode(text, add_special_tokens=False).ids)


def as_given(message: Message) -> dict[str, Any]:
    """As people give it to transformers."""
    given: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:
        given["reasoning_content"] = message.thinking
    if message.tool_calls:
        given["tool_calls"] = [
            {"type": "function", "id": c.id, "function": {"name": c.name, "arguments": json.loads(c.arguments)}}
            for c in message.tool_calls
        ]
    if message.tool_call_id is not None:
        given["tool_call_id"] = message.tool_call_id
    return given


@pytest.fixture(scope="module")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Formats:
    vocabularies = {version: tekken_of(version, tmp_path_factory.mktemp(version), SIZE) for version in VERSIONS}
    folder = tmp_path_factory.mktemp("json")
    assert write_tekken(vocabularies["v13"], folder) == ""
    return Formats(
        find_tokenizer(folder),
        tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")),
        {version: MistralChat(tokenizer) for version, tokenizer in vocabularies.items()},
    )


# ---- conversations ----------------------------------------------------------------------------------------------

WEATHER = Tool(
    "get_weather",
    'The weather of a city, as "°C" or\nas °F; see C:\\weather.',
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "description": "Its name, such as Orléans or 東京."},
            "unit": {"type": "string", "enum": ["°C", "°F", "the city's own"], "default": "°C"},
            "days": {"type": ["integer", "null"], "minimum": 1, "maximum": 9.5},
            "at": {"anyOf": [{"type": "array", "items": {"type": "number"}}, {"const": None}]},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
)
CLOCK = Tool("clock", "What time it is.")
TOOLS = (WEATHER, CLOCK)


def call(arguments: dict[str, Any], name: str = "get_weather", call_id: str = "abcdefghi") -> ToolCall:
    return ToolCall(call_id, name, json.dumps(arguments, ensure_ascii=False))


ASK, ANSWER = Message("user", "How are you?"), Message("assistant", "Fine, thanks!")
SYSTEM = Message("system", "Be brief.\n\nBe kind.")
CALLS = Message("assistant", tool_calls=(call({"city": 'Paris "é" \\ \n\t', "days": 2, "at": [1.5, None, True]}),))
RESULT = Message("tool", '{"sky": "blau \\"und\\" grün", "path": "C:\\\\x"}\nline \\ two 🦙', tool_call_id="abcdefghi")
TWO_CALLS = Message(
    "assistant", tool_calls=(call({"city": "Rome"}, call_id="AAAAAAAA1"), call({}, "clock", "AAAAAAAA2"))
)
RESULTS = [
    Message("tool", "sunny in Rome", tool_call_id="AAAAAAAA1"),
    Message("tool", "noon", tool_call_id="AAAAAAAA2"),
]
PLAIN = {
    "question": [ASK],
    "system": [SYSTEM, ASK],
    "turns": [SYSTEM, ASK, ANSWER, Message("user", "And you?"), Message("assistant", "Well."), Message("user", "Bye.")],
    "scripts": [Message("user", "日本語 naïve 🦙\u200d\n\n  \ttabs "), Message("assistant", " é\\n\"'"), ASK],
    "spaces": [Message("system", " a "), Message("user", "\n b\n"), Message("assistant", "  c  "), ASK],
    "looks like code": [Message("user", "{{ messages }} {% for %} {# #} <b>&amp;</b> \\u00e9 %s %d")],
    "two questions": [ASK, Message("user", "Well?")],
    "two answers": [ASK, ANSWER, Message("assistant", "And you?"), ASK],
}
WITH_TOOLS = {
    "tools": [ASK],
    "tools later": [SYSTEM, ASK, ANSWER, Message("user", "And the weather?")],
    "a call": [ASK, CALLS, RESULT],
    "an answer after it": [SYSTEM, ASK, CALLS, RESULT, Message("assistant", "Blue."), Message("user", "Thanks.")],
    "two calls": [ASK, TWO_CALLS, *RESULTS],
    "a call after a call": [ASK, TWO_CALLS, *RESULTS, CALLS, RESULT],
}
WITH_BOTH = {"words before a call": [ASK, replace(CALLS, content="I look."), RESULT]}
THOUGHTS = {
    "a thought": [ASK, replace(ANSWER, thinking="They ask\n\nhow I am 🦙."), ASK],
    "a thought before a call": [ASK, replace(CALLS, thinking="I must look."), RESULT],
    "a thought, words, a call": [ASK, replace(CALLS, thinking="I must look.", content="I look."), RESULT],
    "a thought alone": [ASK, Message("assistant", thinking="Hm."), ASK],
}
PREFIXES = {
    "prefix": [ASK, Message("assistant", "I am ", prefix=True)],
    "prefix in a later turn": [SYSTEM, ASK, ANSWER, ASK, Message("assistant", " Well,\n", prefix=True)],
}
ALL = PLAIN | WITH_TOOLS | WITH_BOTH | THOUGHTS | PREFIXES


CASES = [
    (version, name)
    for version in VERSIONS
    for name in ALL
    if (name not in WITH_BOTH or version != "v3") and (name not in THOUGHTS or version in ("v13", "v15"))
]


def tools_of(name: str) -> Sequence[Tool]:
    """The tools that go with a conversation."""
    return TOOLS if name in WITH_TOOLS or any(message.tool_calls for message in ALL[name]) else ()


@pytest.mark.parametrize(("version", "name"), CASES)
def test_mistrals_templates_give_the_ids_of_what_transformers_renders(
    version: str, name: str, formats: Formats
) -> None:
    expected = formats.rendered(TEMPLATES[version], ALL[name], tools_of(name))
    assert formats.chat(TEMPLATES[version]).encode(ALL[name], tools=tools_of(name)) == expected


def bare(message: Message) -> Message:
    """As mistral-common takes answers, and its templates do not: without the spaces at their end."""
    return replace(message, content=message.content.rstrip()) if message.role == "assistant" else message


@pytest.mark.parametrize(("version", "name"), CASES)
def test_mistrals_templates_give_the_ids_of_mistral_common(version: str, name: str, formats: Formats) -> None:
    talk = [bare(message) for message in ALL[name]]
    expected = formats.mistral[version].encode(talk, tools=tools_of(name))
    assert formats.chat(TEMPLATES[version]).encode(talk, tools=tools_of(name)) == expected


def test_mistral_common_alone_cuts_the_end_of_answers(formats: Formats) -> None:
    talk = [ASK, Message("assistant", "Fine. "), ASK]
    ids = formats.chat(TEMPLATES["v7"]).encode(talk)
    assert ids == formats.rendered(TEMPLATES["v7"], talk) != formats.mistral["v7"].encode(talk)


@pytest.mark.parametrize("effort", [None, *EFFORTS])
def test_how_much_to_think_is_told_as_mistral_common_tells_it(effort: str | None, formats: Formats) -> None:
    around = {} if effort is None else {"reasoning_effort": effort}
    ids = formats.chat(TEMPLATES["v15"]).encode([ASK], tools=TOOLS, **around)
    assert ids == formats.rendered(TEMPLATES["v15"], [ASK], TOOLS, **around)
    assert ids == formats.mistral["v15"].encode([ASK], tools=TOOLS, **around)


def test_thoughts_that_a_template_writes_as_text(formats: Formats) -> None:
    template = mistrals_template("v11", plain_thinking_support=True)
    for name in set(THOUGHTS) - {"a thought alone"}:
        expected = formats.rendered(template, THOUGHTS[name], TOOLS)
        assert formats.chat(template).encode(THOUGHTS[name], tools=TOOLS) == expected
        assert "<think>" in formats.text(expected)


@pytest.mark.parametrize("version", VERSIONS)
def test_empty_texts_are_as_empty_for_a_template(version: str, formats: Formats) -> None:
    chat = formats.chat(TEMPLATES[version])
    nothing = replace(CALLS, tool_calls=(replace(CALLS.tool_calls[0], arguments="{}"),))
    for talk in (
        [Message("user")],
        [Message("system"), ASK],
        [ASK, CALLS, replace(RESULT, content="")],
        [ASK, nothing, RESULT],
        [ASK, Message("assistant", prefix=True)],
    ):
        assert chat.encode(talk, tools=TOOLS) == formats.rendered(TEMPLATES[version], talk, TOOLS)
    unsaid = replace(CALLS, tool_calls=(replace(CALLS.tool_calls[0], arguments=""),))
    assert chat.encode([ASK, unsaid, RESULT]) == chat.encode([ASK, nothing, RESULT])
    with pytest.raises(mm.RequestError, match="refuses this conversation"):
        chat.encode([ASK, Message("assistant"), ASK])
    sampled = chat.encode([ASK, Message("assistant", ids=()), ASK])
    assert sampled.count(2) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def test_any_arguments_and_results_equal_what_transformers_renders(formats: Formats) -> None:
    @settings(max_examples=60)
    @given(st.sampled_from(["v7", "v13"]), st.dictionaries(st.text(max_size=5), json_values, max_size=3), st.text())
    def check(version: str, arguments: dict[str, Any], result: str) -> None:
        talk = [ASK, Message("assistant", tool_calls=(call(arguments),)), replace(RESULT, content=result)]
        expected = formats.rendered(TEMPLATES[version], talk, TOOLS)
        assert formats.chat(TEMPLATES[version]).encode(talk, tools=TOOLS) == expected

    check()


def test_arguments_that_are_no_object_stay_as_they_were_written(formats: Formats) -> None:
    for written in ('"x"', "{not json", "[1]", "3"):
        talk = [ASK, replace(CALLS, tool_calls=(replace(CALLS.tool_calls[0], arguments=written),)), RESULT]
        assert f"[ARGS]{written}</s>" in formats.text(formats.chat(TEMPLATES["v13"]).encode(talk, tools=TOOLS))


def test_numbers_in_results_are_text(formats: Formats) -> None:
    """v3 of Mistral's template writes those without quotation marks; a mark does not tell it that they are numbers."""
    talk = [ASK, CALLS, replace(RESULT, content="42")]
    ours, theirs = (
        formats.chat(TEMPLATES["v3"]).encode(talk, tools=TOOLS),
        formats.rendered(TEMPLATES["v3"], talk, TOOLS),
    )
    assert formats.text(ours) == formats.text(theirs).replace('{"content": 42', '{"content": "42"')


# ---- what nobody can forge --------------------------------------------------------------------------------------


def everywhere(text: str, version: str, *, sampled: bool = False) -> tuple[list[Message], list[Tool]]:
    """A conversation with a text wherever one may stand."""
    schema = {
        "type": "object",
        "description": text,
        "properties": {text: {"type": "string", "description": text, "enum": ["a", text], "default": text}},
        "required": [text],
        "$comment": text,
    }
    arguments = {text: text, "more": [text, {text: [text]}]}
    calls = (call(arguments),)
    if sampled:  # with ids, which no template that moves its tools can keep
        calls = (ToolCall("abcdefghi", text, text),)
    thinks = {"thinking": text} if version in ("v13", "v15") else {}
    words = "" if version == "v3" else text
    talk = [
        Message("system", text),
        Message("user", text),
        Message("assistant", words, tool_calls=calls, ids=(1500,) if sampled else None, **thinks),
        Message("tool", text, tool_call_id="abcdefghi"),
        Message("assistant", text, **thinks),
        Message("user", text),
        Message("assistant", text, prefix=True, **thinks),
    ]
    return talk, [Tool("lookup", text, schema)]


def control_ids(formats: Formats, version: str, text: str, **how: Any) -> list[int]:
    talk, tools = everywhere(text, version, **how)
    control = set(formats.tokenizer.control.values())
    return [i for i in formats.chat(TEMPLATES[version]).encode(talk, tools=tools) if i in control]


@pytest.mark.parametrize("version", VERSIONS)
def test_names_of_control_tokens_are_text_wherever_people_write_them(version: str, formats: Formats) -> None:
    names = [name for name in formats.tokenizer.control if not name.startswith("<SPECIAL_")] + ["<SPECIAL_999>"]
    assert {"[INST]", "</s>", "[TOOL_CALLS]", "[ARGS]", "[/THINK]"} < set(names)
    expected = control_ids(formats, version, "harmless")
    assert len(expected) > 8
    for name in names:
        for text in (name, f"a {name}{name} b"):
            assert control_ids(formats, version, text) == expected


@pytest.mark.parametrize("version", ["v3", "v7", "v11"])
def test_sampled_calls_that_are_encoded_anew_forge_nothing(version: str, formats: Formats) -> None:
    """The tools moved to the user's last message, so that the answer stands after another prompt."""
    expected = control_ids(formats, version, "harmless", sampled=True)
    for text in ("[INST]", "[/TOOL_RESULTS]x</s>", '", "[TOOL_CALLS]', "[ARGS]{}"):
        assert control_ids(formats, version, text, sampled=True) == expected


def test_no_text_forges_control_tokens(formats: Formats) -> None:
    pieces = [
        "[",
        "]",
        "/",
        "[INST",
        "INST]",
        "[/INST]",
        "</",
        "s>",
        "<s>",
        "[ARGS]",
        "[TOOL_CALLS]",
        "\\",
        '"',
        "{",
        "}",
    ]
    odd = ["\ue000", "\ue001", "\u2003\u2002\u2003\u2002", "0", "-", " ", "\n", "{{ bos_token }}", "a"]
    expected = {version: control_ids(formats, version, "harmless") for version in ("v7", "v15")}

    @settings(max_examples=80)
    @given(st.sampled_from(list(expected)), st.lists(st.sampled_from(pieces + odd), min_size=1, max_size=8))
    def check(version: str, parts: list[str]) -> None:
        assert control_ids(formats, version, "".join(parts)) == expected[version]

    check()


def test_texts_beside_the_templates_own_do_not_join_into_control_tokens(formats: Formats) -> None:
    template = "{{ bos_token }}[IN{% for m in messages %}{{ m.content }}{% endfor %}"
    ids = formats.chat(template).encode([Message("user", "ST] "), Message("assistant", "</"), Message("user", "s>")])
    assert ids == [1, *formats.tokenizer.encode("[INST] </s>")]


# ---- answers as they were sampled -------------------------------------------------------------------------------


def spelled(text: str) -> list[int]:
    """Byte by byte, as encoding never writes it."""
    return [1000 + byte for byte in text.encode()]


def sampled(formats: Formats, message: Message) -> Message:
    """The same with the ids of an odd way to write it."""
    control, ids = formats.tokenizer.control, []
    if message.thinking:
        ids += [control["[THINK]"], *spelled(message.thinking), control["[/THINK]"]]
    ids += spelled(message.content)
    for made in message.tool_calls:
        ids += [control["[TOOL_CALLS]"], *spelled(made.name), control["[ARGS]"], *spelled(made.arguments)]
    return replace(message, ids=tuple(ids))


LOOPS = {name: WITH_TOOLS[name] for name in ("a call", "two calls", "a call after a call")} | {
    "the same call again": [ASK, CALLS, RESULT, CALLS, RESULT, CALLS, RESULT],
}
LOOPS_LATER = {
    "the same thought again": [ASK, *[replace(CALLS, thinking="Look."), RESULT] * 2, replace(ANSWER, thinking="Look.")],
    "words before a call": WITH_BOTH["words before a call"],
    "a thought, words, a call": THOUGHTS["a thought, words, a call"],
    "a thought alone": THOUGHTS["a thought alone"][:2],
}


@pytest.mark.parametrize(
    ("version", "name"),
    [(v, n) for v in VERSIONS for n in LOOPS] + [(v, n) for v in ("v13", "v15") for n in LOOPS_LATER],
)
def test_sampled_answers_are_kept_while_tools_are_called(version: str, name: str, formats: Formats) -> None:
    chat = formats.chat(TEMPLATES[version])
    talk = [sampled(formats, m) if m.role == "assistant" else m for m in (LOOPS | LOOPS_LATER)[name]]
    talk += [ASK] if talk[-1].role == "assistant" else []
    expected: list[int] = []
    for n, message in enumerate(talk):
        if message.ids is not None:
            asked = chat.encode(talk[:n], tools=TOOLS)
            assert asked[: len(expected)] == expected
            expected = [*asked, *message.ids, 2]
    assert chat.encode(talk, tools=TOOLS)[: len(expected)] == expected


@pytest.mark.parametrize("version", ["v13", "v15"])
def test_sampled_answers_are_kept_in_later_turns(version: str, formats: Formats) -> None:
    chat = formats.chat(TEMPLATES[version])
    first = [SYSTEM, ASK, sampled(formats, replace(CALLS, thinking="I must look.")), RESULT]
    answer = sampled(formats, replace(ANSWER, thinking="I know it."))
    ids = chat.encode([*first, answer, ASK], tools=TOOLS)
    expected = [*chat.encode(first, tools=TOOLS), *answer.ids, 2, 3, *formats.tokenizer.encode(ASK.content), 4]
    assert ids == expected


@pytest.mark.parametrize("version", ["v3", "v7", "v11"])
def test_answers_after_a_prompt_that_changed_are_encoded_from_their_text(version: str, formats: Formats) -> None:
    chat = formats.chat(TEMPLATES[version])
    talk = [ASK, CALLS, RESULT, Message("assistant", "Blue."), ASK]
    kept = [ASK, sampled(formats, CALLS), RESULT, Message("assistant", "Blue."), ASK]
    assert chat.encode(kept, tools=TOOLS) == chat.encode(talk, tools=TOOLS)


def test_thoughts_that_a_template_forgets_take_the_sampled_ids_along(formats: Formats) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST]{{ m.content }}[/INST]{% else %}"
        "{% if loop.revindex <= 2 and m.thinking %}<think>{{ m.thinking }}</think>{% endif %}"
        "{{ m.content }}{{ eos_token }}"
        "{% endif %}{% endfor %}"
    )
    chat, answer = formats.chat(template), sampled(formats, replace(ANSWER, thinking="Hm."))
    assert chat.encode([ASK, answer, ASK]) == [*chat.encode([ASK]), *answer.ids, 2, *chat.encode([ASK])[1:]]
    assert chat.encode([ASK, answer, ASK, ASK]) == chat.encode([ASK, ANSWER, ASK, ASK])


def test_a_template_may_know_no_beginning_of_a_conversation(formats: Formats) -> None:
    template = (
        "{{ messages[0].content }}{% if messages | length < 3 %}{{ raise_exception('too short') }}{% endif %}"
        "{% for m in messages[1:] %}[INST]{{ m.thinking }}{{ m.content }}</s>{% endfor %}"
    )
    answer = replace(ANSWER, thinking="Hm.")
    chat = formats.chat(template)
    assert chat.encode([ASK, sampled(formats, answer), ASK]) == chat.encode([ASK, answer, ASK])


# ---- beginnings of answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_prefix_ends_the_prompt(version: str, formats: Formats) -> None:
    chat = formats.chat(TEMPLATES[version])
    before, prefix = [SYSTEM, ASK, CALLS, RESULT], Message("assistant", "So, ", prefix=True)
    begun = [*chat.encode(before, tools=TOOLS), *formats.tokenizer.encode("So, ")]
    assert chat.encode([*before, prefix], tools=TOOLS) == begun
    odd = sampled(formats, prefix)
    assert chat.encode([*before, odd], tools=TOOLS) == [*chat.encode(before, tools=TOOLS), *odd.ids]


@pytest.mark.parametrize("version", VERSIONS)
def test_a_prefix_may_be_thoughts_or_calls(version: str, formats: Formats) -> None:
    chat = formats.chat(TEMPLATES[version])
    nothing = Message("assistant", tool_calls=(call({}, "clock"),))
    answers = [CALLS, nothing]
    if version in ("v13", "v15"):
        answers += [Message("assistant", thinking="Hm"), replace(ANSWER, thinking="Hm"), replace(CALLS, thinking="Hm")]
    for answer in (replace(answer, prefix=True) for answer in answers):
        assert chat.encode([ASK, answer], tools=TOOLS) == formats.mistral[version].encode([ASK, answer], tools=TOOLS)
        odd = sampled(formats, answer)
        assert chat.encode([ASK, odd], tools=TOOLS) == [*chat.encode([ASK], tools=TOOLS), *odd.ids]


def test_what_a_template_writes_after_answers_is_left_out_after_a_prefix(formats: Formats) -> None:
    template = "{% for m in messages %}[INST]{{ m.role }}: {{ m.content }} (end){{ eos_token }}\n{% endfor %}Now:"
    talk = [ASK, Message("assistant", "I am", prefix=True)]
    assert formats.text(formats.chat(template).encode(talk)).endswith("[INST]assistant: I am")


# ---- templates of other shapes ----------------------------------------------------------------------------------

TURNS = "{{ bos_token }}{%% for m in messages %%}[INST]%s{{ eos_token }}{%% endfor %%}"
ODD_TALK = [
    Message("user", ' "a" \\ b\n'), Message("assistant", "\t</think> c:\\d "), Message("user", 'é "\\"" \u2028 🦙\x7f'),
]  # fmt: skip


@pytest.mark.parametrize(
    "turn",
    [
        "{{ m.content }}",
        "{{ m.content | trim }}",
        "{{ m.content.strip() }}",
        "{{ m.content.rstrip() }}x{{ m.role | upper }}",
        "{{ m.content.split('</s>')[-1].lstrip() }}",
        "{{ m.content | tojson }}",
        "{{ m.content | trim | tojson }}",
        "{{ m.content | tojson | tojson }}",
        "{{ m.content | tojson | tojson | tojson }}",
        "{{ {'role': m.role, 'text': m.content} | tojson(indent=2) }}",
        "{{ {'role': m.role, 'text': [m.content]} | tojson(separators=(',', ':')) }}",
        "{{ '  ' ~ m.content ~ '  ' }}",
        "{% if m.content is string and m.content | length > 0 %}{{ m['content'] }}{% endif %}",
        "{%- set text = m.content -%}{{- text + '\n' -}}",
        "{% if tools is not none or documents is not none %}[AVAILABLE_TOOLS]{% endif %}{{ m.content }}",
        "{% if m.role == 'user' %}{{ m.content }}{% else %} {%- generation -%} {{ m.content }} {% endgeneration %}\n"
        "{% endif %}",
    ],
)
def test_what_templates_do_with_text_is_what_transformers_renders(turn: str, formats: Formats) -> None:
    ids = formats.chat(TURNS % turn).encode(ODD_TALK)
    assert ids == formats.rendered(TURNS % turn, ODD_TALK)


@pytest.mark.parametrize(
    "turn",
    [
        "{{ m.content }}{{ m.content }}",
        "{{ m.content[:5] }}",
        "{{ m.content.split('-')[0] }}",
        "{{ m.content | upper }}",
        "{{ m.content | length }}",
        "{{ m.content | urlencode }}",
        "{{ m.content | reverse }}",
        "{{ m.content | list }}",
        "{{ m.content }}{{ m.content | urlencode }}",
        "{% if m.role == 'user' %}{{ m.content }}{% endif %}",
    ],
)
def test_templates_that_change_or_lose_text_are_refused(turn: str, formats: Formats) -> None:
    with pytest.raises(mm.RequestError, match="leaves out, repeats or cuts"):
        formats.chat(TURNS % turn).encode(ODD_TALK)


CALLING = (
    "{% for tool in tools %}[AVAILABLE_TOOLS]{{ tool.function.name }}: {{ tool | tojson }}[/AVAILABLE_TOOLS]"
    "{% endfor %}{% for m in messages %}[INST]{{ m.content }}"
    "{% for c in m.tool_calls %}[TOOL_CALLS]{{ c.function.name }}"
    "{% for key, value in c.function.arguments.items() %}<{{ key }}>{{ value if value is string else value | tojson }}"
    "</{{ key }}>{% endfor %}{% endfor %}</s>{% endfor %}"
)


# As the first templates of 7B v0.3 and Nemo do.
BY_HAND = (
    "{% for m in messages %}{% if loop.last and tools is not none %}[AVAILABLE_TOOLS][{% for tool in tools %}"
    "{% for key, value in tool.function.items() if key != 'return' %}"
    """{{ '"' + key + '": "' + value + '"' if value is string else '"' + key + '": ' + value | tojson }}"""
    "{% if not loop.last %}, {% endif %}{% endfor %}{% endfor %}][/AVAILABLE_TOOLS]{% endif %}"
    "{% if m.tool_calls is defined and m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}"
    """{% set out = c.function | tojson %}{{ out[:-1] + ', "id": "' + c.id + '"}' }}{% endfor %}]</s>"""
    "{% elif m.role == 'tool' %}[TOOL_RESULTS]{% if m.content.content is defined %}?{% endif %}"
    """{{ '{"content": ' + m.content | string + ', "call_id": "' + m.tool_call_id + '"}' }}[/TOOL_RESULTS]"""
    "{% else %}[INST]{{ m.content }}[/INST]{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [CALLING, BY_HAND], ids=["apart", "by hand"])
@pytest.mark.parametrize("name", WITH_TOOLS)
def test_a_template_may_take_tools_and_arguments_apart(template: str, name: str, formats: Formats) -> None:
    talk = WITH_TOOLS[name]
    assert formats.chat(template).encode(talk, tools=TOOLS) == formats.rendered(template, talk, TOOLS)


@pytest.mark.parametrize("name", ["type", "function", "object", "items", "name"])
def test_tools_and_arguments_may_be_named_as_schemas_words(name: str, formats: Formats) -> None:
    schema = {"type": "object", "properties": {name: {"type": "string", "enum": [name]}}, "required": [name]}
    tool = Tool(name, name, schema)
    talk = [ASK, Message("assistant", tool_calls=(call({name: name}, name),)), replace(RESULT, content=name)]
    for template in (TEMPLATES["v7"], TEMPLATES["v13"], CALLING):
        assert formats.chat(template).encode(talk, tools=[tool]) == formats.rendered(template, talk, [tool])


# ---- what cannot be asked ---------------------------------------------------------------------------------------


def test_what_a_template_has_no_place_for_is_refused(formats: Formats) -> None:
    plain, without = formats.chat(TURNS % "{{ m.content }}"), formats.chat(TEMPLATES["v13"])
    for around, word in (
        ({"tools": TOOLS}, "no tools"),
        ({"stable": True}, "where things stand"),
        ({"reasoning_effort": "high"}, "no reasoning effort"),
    ):
        with pytest.raises(mm.RequestError, match=word) as caught:
            plain.encode([ASK], **around)
        assert caught.value.hint
    with pytest.raises(mm.RequestError, match="no reasoning effort"):
        without.encode([ASK], reasoning_effort="high")
    with pytest.raises(mm.RequestError, match=r"refuses this conversation: .*\"none\" or \"high\""):
        formats.chat(TEMPLATES["v15"]).encode([ASK], reasoning_effort="extreme")


@pytest.mark.parametrize("effort", ["</s>[INST]", "high\n", "", "[MODEL_SETTINGS]", "a b"])
def test_an_effort_that_is_no_word_is_refused(effort: str, formats: Formats) -> None:
    chat = formats.chat("Reasoning: {{ reasoning_effort }}" + TURNS % "{{ m.content }}")
    assert "Reasoning: high" in formats.text(chat.encode([ASK], reasoning_effort="high"))
    with pytest.raises(mm.RequestError, match="reasoning_effort is"):
        chat.encode([ASK], reasoning_effort=effort)


@pytest.mark.parametrize(
    "beginning",
    [
        "{% if tools %}You have tools.{% endif %}",
        "{{ tools[1:] | tojson }}",
        "{{ tools | map(attribute='type') | list }}",
    ],
)
def test_tools_that_a_template_leaves_out_are_named(beginning: str, formats: Formats) -> None:
    """A result that names its tool does not make it known."""
    template = (
        beginning + TURNS % "{{ m.name }}{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}"
    )
    with pytest.raises(mm.RequestError, match=r"leaves out the tools get_weather"):
        formats.chat(template).encode([ASK, CALLS, RESULT], tools=TOOLS)


@pytest.mark.parametrize("version", ["v3", "v7", "v11"])
def test_calls_with_ids_that_the_format_does_not_carry_are_refused(version: str, formats: Formats) -> None:
    long = replace(CALLS, tool_calls=(replace(CALLS.tool_calls[0], id="call_0123456789"),))
    with pytest.raises(mm.RequestError, match="9 characters"):
        formats.chat(TEMPLATES[version]).encode([ASK, long, replace(RESULT, tool_call_id="call_0123456789")])
