"""Answers held to a form: whatever is chosen among the allowed tokens, what comes out has the form."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator

import mistral_mlx as mm
from mistral_mlx import Tool
from mistral_mlx.completion import join_calls
from mistral_mlx.text.bpe import Bpe
from mistral_mlx.text.grammar import Form, Vocabulary
from mistral_mlx.text.reply import Reply
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tekken import Tekken
from mistral_mlx.text.tokenizer import Tokenizer
from tests.text.test_tokenizer import bpe  # noqa: F401

KINDS = ["v1", "v3", "v7-tekken", "v13-tekken", "demo"]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "é", "🦙"]}, "maxItems": 3},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def vocabularies(
    tokenizers: dict[str, SentencePiece | Tekken],
    bpe: Bpe,  # noqa: F811
) -> dict[str, tuple[Tokenizer, Vocabulary]]:
    """For each kind of tokenizer; the model's vocabulary is a little larger, as they are."""
    every: dict[str, Tokenizer] = {**tokenizers, "demo": bpe}
    return {k: (every[k], Vocabulary(every[k], every[k].vocab_size + 40, every[k].stop_ids)) for k in KINDS}


def write(
    kind: tuple[Tokenizer, Vocabulary], form: Form, rng: np.random.Generator, **options: bool
) -> tuple[str, str, bool]:
    """An answer of tokens drawn at random from those that are allowed; and whether it came to its end."""
    tokenizer, vocabulary = kind
    matcher = form.begin(vocabulary, **options)
    reply = Reply(tokenizer, continues=options.get("continues", False))
    text, thinking, done = "", "", False
    for _ in range(80):
        token = int(rng.choice(np.nonzero(matcher.allowed())[0]))
        matcher.accept(token)
        done = token in tokenizer.stop_ids or matcher.over
        if token not in tokenizer.stop_ids:
            piece = reply.feed(token)
            text, thinking = text + piece.text, thinking + piece.thinking
        if done:
            break
    return text + reply.flush().text, thinking, done


@pytest.mark.parametrize("kind", KINDS)
def test_json_of_a_schema_always_validates(kind: str, vocabularies: dict[str, Any]) -> None:
    rng, ended = np.random.default_rng(0), 0
    for _ in range(40):
        text, _, done = write(vocabularies[kind], Form(json_schema=PERSON), rng)
        if done:
            ended += 1
            Draft202012Validator(PERSON).validate(json.loads(text))
    assert ended >= 38


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "regex", ["[a-c]{2}", " ?[a-c]{2}", " {2}x", "(é|🦙)+!", "a/b", r"\d{3}-\d{4}", "x*", "(?i)yes|no"]
)
@pytest.mark.parametrize("continues", [False, True])
def test_the_whole_answer_matches_an_expression(
    kind: str, regex: str, continues: bool, vocabularies: dict[str, Any]
) -> None:
    """Also where the tokenizer writes a space before an answer that the reader never sees."""
    rng = np.random.default_rng(1)
    texts = [write(vocabularies[kind], Form(regex=regex), rng, continues=continues) for _ in range(8)]
    assert all(re.fullmatch(regex, text) for text, _, done in texts if done)
    assert any(done for *_, done in texts)


@pytest.mark.parametrize("kind", ["v3", "demo"])
def test_json_mode_gives_an_object(kind: str, vocabularies: dict[str, Any]) -> None:
    rng = np.random.default_rng(2)
    texts = [write(vocabularies[kind], Form({"type": "object"}), rng) for _ in range(60)]
    assert any(done for *_, done in texts)
    assert all(isinstance(json.loads(text), dict) for text, _, done in texts if done)
    assert all(text.startswith("{") for text, *_ in texts)


def test_a_model_that_can_may_think_first(vocabularies: dict[str, Any]) -> None:
    tokenizer, vocabulary = vocabularies["v13-tekken"]
    think, end = tokenizer.control["[THINK]"], tokenizer.control["[/THINK]"]
    matcher = Form(regex="ab").begin(vocabulary, thinks=True)
    assert matcher.allowed()[think]
    for token in (think, *tokenizer.encode("hm 🦙\n"), end):
        assert matcher.allowed()[token]
        matcher.accept(token)
    assert not matcher.allowed()[think]
    assert not matcher.allowed()[end]
    assert not matcher.over
    matcher.accept(tokenizer.encode("ab")[0])
    assert matcher.over
    assert not Form(regex="ab").begin(vocabulary).allowed()[think]


NUMBER = {"type": "object", "properties": {"n": {"enum": [1, 22]}}, "required": ["n"], "additionalProperties": False}
LOOK = Tool("look", parameters=NUMBER, strict=True)
PING = Tool("ping", parameters={"type": "object", "properties": {}, "additionalProperties": False}, strict=True)


@pytest.mark.parametrize("kind", ["v3", "v7-tekken", "v13-tekken"])
def test_a_model_with_tools_may_call_them_instead(kind: str, vocabularies: dict[str, Any]) -> None:
    """And nothing else than them, with arguments as they have them."""
    tokenizer, vocabulary = vocabularies[kind]
    calls, rng = tokenizer.control["[TOOL_CALLS]"], np.random.default_rng(3)
    assert not Form(json_schema=PERSON).begin(vocabulary).allowed()[calls]
    for _ in range(10):
        matcher = Form(json_schema=PERSON, tools=[LOOK, PING]).begin(vocabulary, thinks=True)
        reply, token, deltas = Reply(tokenizer), calls, []
        for _ in range(2000):
            assert matcher.allowed()[token]
            matcher.accept(token)
            deltas += reply.feed(token).tool_calls
            allowed = np.nonzero(matcher.allowed())[0]
            token = 2 if 2 in allowed else int(rng.choice(allowed))
            if token == 2:
                break
        assert token == 2
        made = join_calls(deltas + reply.flush().tool_calls)
        assert made
        for call in made:
            tool = {"look": LOOK, "ping": PING}[call.name]
            Draft202012Validator(tool.parameters).validate(json.loads(call.arguments))
            assert len(call.id) == 9


def test_strict_tools_leave_the_answer_free(vocabularies: dict[str, Any]) -> None:
    tokenizer, vocabulary = vocabularies["v13-tekken"]
    matcher = Form(tools=[PING]).begin(vocabulary, thinks=True)
    for token in tokenizer.encode('Anything { 🦙 ["'):
        assert matcher.allowed()[token]
        matcher.accept(token)
    assert matcher.allowed()[2]
    begun = [tokenizer.control["[TOOL_CALLS]"], *tokenizer.encode("ping"), tokenizer.control["[ARGS]"]]
    for token in begun:
        assert matcher.allowed()[token]
        matcher.accept(token)
    assert {tokenizer.token_bytes(int(i)) for i in np.nonzero(matcher.allowed())[0]} <= {b"{", b"{}"}


@pytest.mark.parametrize("kind", KINDS)
def test_no_control_token_is_allowed_within_an_answer(kind: str, vocabularies: dict[str, Any]) -> None:
    tokenizer, vocabulary = vocabularies[kind]
    matcher = Form(regex="(.|\n)+").begin(vocabulary)
    allowed = set(np.nonzero(matcher.allowed())[0].tolist())
    assert not allowed & set(tokenizer.control.values())
    assert max(allowed) < tokenizer.vocab_size
    assert len(allowed) > 0.8 * tokenizer.vocab_size - 1100


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        (Form(regex="(a"), "regex \\(a cannot be followed: unclosed group"),
        (Form(regex="a(?=b)"), "look-around"),
        (Form(json_schema={"not": {"type": "string"}}), 'Unimplemented keys: \\["not"\\]'),
        (Form(json_schema={"type": "strin"}), "json_schema is no JSON schema"),
        (Form(json_schema={"type": "object", "properties": 5}), "json_schema is no JSON schema"),
        (Form(json_schema={"$ref": "#/$defs/none"}), "json_schema cannot be followed"),
        (Form(json_schema={"$ref": "http://example.com/x"}), "json_schema cannot be followed"),
        (Form(json_schema={"allOf": [{"type": "string"}, {"type": "integer"}]}), "cannot be followed"),
        (Form(json_schema={"enum": []}), "cannot be followed|no JSON schema"),
    ],
    ids=str,
)
def test_a_form_that_cannot_be_followed_is_refused(form: Form, reason: str, vocabularies: dict[str, Any]) -> None:
    def hold() -> None:
        form.check()
        form.begin(vocabularies["v3"][1])

    with pytest.raises(mm.RequestError, match=reason):
        hold()


def test_a_model_without_a_stop_token_cannot_be_held_to_a_form(tokenizers: dict[str, SentencePiece | Tekken]) -> None:
    with pytest.raises(mm.TokenizerError, match="no token that ends an answer"):
        Vocabulary(tokenizers["v3"], 32768, [])
