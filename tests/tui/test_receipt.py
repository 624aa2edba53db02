"""What a receipt holds, and what a second answer proves."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from mistral_mlx.completion import Stats
from tui.engine import Loaded
from tui.receipt import compare, make, options_of

LOADED = Loaded(
    "demo", None, "Q4_1", "float32", 4096, 8192, 10**8, 10**10, True, None, "f" * 64, {"mlx": "1", "machine": "Mac"}
)
STATS = Stats(3, 0, 4, 0.5, 6.0, 2.0, 10, 10, reading=(3,))
PROMPT, SAID = [1, 2, 3], [7, 8, 9, 2]


def receipt(
    loaded: Loaded = LOADED, ids: list[int] = SAID, prompt: list[int] = PROMPT, **changes: Any
) -> dict[str, Any]:
    options, finish = changes.pop("options", {"seed": 5, "temperature": 0.7}), changes.pop("finish", "stop")
    return make(loaded, options, prompt, ids, finish, replace(STATS, **changes))


def test_a_receipt_is_plain_json_and_tells_how_the_answer_came() -> None:
    made = receipt(options={"seed": 5, "logit_bias": {3: 1.5}, "stop": ("a", "b")})
    again = json.loads(json.dumps(made))
    assert again == made
    assert (made["prompt_tokens"], made["tokens"], made["reading"], made["finish"]) == (3, 4, [3], "stop")
    assert made["seconds"] == 2.0
    assert options_of(again) == {"seed": 5, "logit_bias": {3: 1.5}, "stop": ["a", "b"]}


def test_an_answer_that_was_stopped_is_asked_for_as_far_as_it_went() -> None:
    assert options_of(receipt(finish="cancelled"))["max_tokens"] == 4
    assert "max_tokens" not in options_of(receipt(finish="stop"))


def test_the_same_tokens_are_identical_whatever_the_shape() -> None:
    other = receipt(replace(LOADED, dtype="bfloat16"), reading=(2, 1), batch=4)
    assert str(compare(receipt(replace(LOADED, dtype="bfloat16")), other, SAID, SAID)) == "identical: all 4 tokens"
    assert str(compare(receipt(ids=[7]), receipt(ids=[7]), [7], [7])) == "identical: all 1 token"


def test_the_first_token_that_differs_is_named() -> None:
    words = {7: " the", 8: " a", 9: " sea", 2: ""}

    def text(ids: Any) -> str:
        return "".join(words[i] for i in ids)

    other = [7, 9, 9, 2]
    verdict = compare(receipt(), receipt(ids=other), SAID, other, text)
    assert str(verdict) == "differs first at token 2: ' a' then, ' sea' now"
    assert (verdict.kind, verdict.at) == ("differs", 1)
    assert str(compare(receipt(), receipt(ids=SAID[:2]), SAID, SAID[:2], text)).endswith("' sea' then, the end now")
    assert "8 then, 9 now" in str(compare(receipt(), receipt(ids=other), SAID, other))


@pytest.mark.parametrize(
    ("new", "words"),
    [
        (receipt(replace(LOADED, fingerprint="0")), "weights differ"),
        (receipt(replace(LOADED, dtype="float16", fingerprint="0")), "another precision"),
        (receipt(replace(LOADED, window=8)), "attention window"),
        (receipt(replace(LOADED, kv_bits=8)), "other bits"),
        (receipt(replace(LOADED, build={"mlx": "2", "machine": "Mac"})), "another build: mlx was 1, and is 2"),
        (receipt(prompt=[1, 2, 4]), "the prompt is not the same"),
        (receipt(options={"seed": 6, "temperature": 0.7}), "the sampling is not the same"),
    ],
)
def test_answers_to_different_questions_are_not_compared(new: dict[str, Any], words: str) -> None:
    verdict = compare(receipt(), new, SAID, SAID)
    assert verdict.kind == "not comparable"
    assert str(verdict).startswith("not comparable: ")
    assert words in str(verdict)


def test_tokens_that_differ_prove_nothing_where_rounding_differed() -> None:
    half, other = replace(LOADED, dtype="bfloat16"), [7, 9, 9, 2]
    for change, words in [
        ({"reading": (2, 1)}, "in other pieces"),
        ({"reused_tokens": 2}, "known before"),
        ({"batch": 3}, "decoded together"),
        ({"drafted_tokens": 3}, "drafted"),
    ]:
        verdict = compare(receipt(half), receipt(half, other, **change), SAID, other)
        assert (verdict.kind, verdict.at) == ("not comparable", 1)
        assert words in str(verdict)
        assert compare(receipt(), receipt(ids=other, **change), SAID, other).kind == "differs"  # float32 keeps its word
    assert compare(receipt(half), receipt(half, other), SAID, other).kind == "differs"


def test_a_receipt_of_another_answer_is_noticed() -> None:
    assert "not the one" in str(compare(receipt(), receipt(), [7, 8], SAID))
