"""What an answer came from, exactly enough to ask for it again and to say what the second answer proves."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from mistral_mlx.completion import Stats
    from tui.model import Loaded

Receipt = dict[str, Any]

# What must be the same for two answers to be comparable, and what is said where it is not.
_CONDITIONS = {
    "dtype": "the model computes in another precision",
    "window": "the attention window is another one",
    "kv_bits": "keys and values are kept in other bits",
    "fingerprint": "the model's weights differ",
    "prompt_hash": "the prompt is not the same",
}
# What may move the last bits of the numbers, and what is said where it did.
_SHAPES = {
    "reading": "the prompt was read in other pieces",
    "reused": "another part of it was known before",
    "batch": "another number of answers was decoded together",
    "drafted": "tokens were drafted otherwise",
}


def make(
    loaded: Loaded,
    options: Mapping[str, Any],
    prompt: Sequence[int],
    tokens: Sequence[int],
    finish: str,
    stats: Stats,
) -> Receipt:
    """The receipt of an answer: plain JSON.

    Args:
        options: the sampling that was asked for, its seed among them.
        prompt, tokens: the ids that were read, and those that were sampled.
    """
    seconds = stats.ttft_s + ((stats.completion_tokens - 1) / stats.decode_tps if stats.decode_tps else 0.0)
    return {
        "model": loaded.name,
        "fingerprint": loaded.fingerprint,
        "build": dict(loaded.build),
        "dtype": loaded.dtype,
        "window": loaded.window,
        "kv_bits": loaded.kv_bits,
        "sampling": plain_options(options),
        "prompt_tokens": len(prompt),
        "prompt_hash": hash_ids(prompt),
        "tokens": len(tokens),
        "hash": hash_ids(tokens),
        "reading": list(stats.reading),
        "reused": stats.reused_tokens,
        "batch": stats.batch,
        "drafted": stats.drafted_tokens,
        "finish": finish,
        "seconds": round(seconds, 3),
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def is_whole(receipt: Mapping[str, Any]) -> bool:
    """Whether it has all that `make` writes, each of its kind: one from a file may not."""
    texts = ("model", "fingerprint", "dtype", "prompt_hash", "hash", "finish", "time")
    numbers = ("prompt_tokens", "tokens", "reused", "batch", "drafted")
    return (
        all(isinstance(receipt.get(name), str) for name in texts)
        and all(isinstance(receipt.get(name), int) for name in numbers)
        and all(isinstance(receipt.get(name), dict) for name in ("sampling", "build"))
        and all(isinstance(receipt.get(name, 0), int) for name in ("begun", "left_out", "limit"))
        and {"window", "kv_bits", "reading"} <= receipt.keys()
    )


def is_from(receipt: Receipt | None, loaded: Loaded) -> bool:
    """Whether it is of an answer of that model, whose ids then mean the same to it."""
    return receipt is not None and receipt.get("fingerprint") == loaded.fingerprint


def hash_ids(ids: Sequence[int]) -> str:
    """A short hash of token ids."""
    return hashlib.sha256(array("Q", ids).tobytes()).hexdigest()[:16]


def plain_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Sampling options as JSON can hold them."""
    plain = dict(options)
    if describe := getattr(plain.get("json_schema"), "model_json_schema", None):
        plain["json_schema"] = describe()
    if bias := plain.get("logit_bias"):
        plain["logit_bias"] = {str(token): value for token, value in bias.items()}
    if isinstance(plain.get("stop"), Sequence) and not isinstance(plain["stop"], str):
        plain["stop"] = list(plain["stop"])
    return plain


def options_of(receipt: Receipt) -> dict[str, Any]:
    """The sampling options to ask with for the same answer; one that was stopped is asked for as far as it went."""
    options = dict(receipt["sampling"])
    if bias := options.get("logit_bias"):
        options["logit_bias"] = {int(token): value for token, value in bias.items()}
    if "limit" in receipt or receipt["finish"] not in ("stop", "length", "tool_rounds", "cut"):
        options["max_tokens"] = max(1, receipt["tokens"])
    return options


def joined(old: Receipt | None, new: Receipt, begun: int, ids: Sequence[int]) -> Receipt:
    """The receipt of an answer that was gone on with.

    Args:
        old: that of its beginning, if it has one.
        begun: how many tokens it had then.
        ids: all tokens of the answer.
    """
    if not begun:
        return new
    whole = old is not None and all(old.get(key) == new[key] for key in _CONDITIONS if key != "prompt_hash")
    if old is None or not whole or _drawn(old) != _drawn(new):
        return {**new, "begun": begun}  # that beginning is taken as it is
    given = ids[old.get("begun", 0) :]
    ended = {"tokens": len(given), "hash": hash_ids(given), "finish": new["finish"], "seconds": new["seconds"]}
    return {**old, **ended, "limit": len(given)}  # one run would have had to be as long


def kept(ids: Sequence[int], finish: str | None, sampling: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The ids that stand for an answer in the history: all but a stop token; None where a stop string cut its text."""
    if sampling.get("stop"):
        return None
    return tuple(ids[:-1] if finish == "stop" else ids)


def _drawn(receipt: Receipt) -> dict[str, Any]:
    """The options that a token is drawn with."""
    return {key: value for key, value in receipt["sampling"].items() if key != "max_tokens"}


def describe(receipt: Receipt) -> str:
    """A receipt for people, a line for each thing."""
    sampling = ", ".join(f"{name} {value}" for name, value in receipt["sampling"].items())
    build = ", ".join(f"{name} {version}" for name, version in receipt["build"].items())
    window = f", window {receipt['window']}" if receipt["window"] else ""
    bits = f", keys and values in {receipt['kv_bits']} bits" if receipt["kv_bits"] else ""
    shape = f"{receipt['reused']:,} tokens known before, {receipt['batch']} answered together"
    return "\n".join(
        [
            f"{receipt['model']} ({receipt['fingerprint'][:16]}), {receipt['dtype']}{window}{bits}",
            sampling,
            f"prompt of {receipt['prompt_tokens']:,} tokens ({receipt['prompt_hash']}), {shape}",
            f"answer of {receipt['tokens']:,} tokens ({receipt['hash']}), ended by {receipt['finish']}",
            f"{build}; {receipt['time']}",
        ]
    )


@dataclass(frozen=True)
class Verdict:
    """What asking again has shown; as text, a sentence for the user.

    Attributes:
        kind: whether the same answer came, another one, or nothing can be said.
        at: the first token that differs, from 0; None if none does.
    """

    kind: Literal["identical", "differs", "not comparable"]
    why: str
    at: int | None = None

    def __str__(self) -> str:
        return f"{self.kind}{self.why if self.kind == 'differs' else f': {self.why}'}"


def compare(
    old: Receipt,
    new: Receipt,
    old_ids: Sequence[int],
    new_ids: Sequence[int],
    text: Callable[[Sequence[int]], str] | None = None,
) -> Verdict:
    """Hold a second answer against the first.

    Args:
        text: what the ids of a token say, to name the tokens that differ.
    """
    if reason := _incomparable(old, new, old_ids):
        return Verdict("not comparable", reason)
    if list(old_ids) == list(new_ids):
        return Verdict("identical", f"all {len(old_ids):,} token{'' if len(old_ids) == 1 else 's'}")
    shorter = min(len(old_ids), len(new_ids))
    at = next((i for i in range(shorter) if old_ids[i] != new_ids[i]), shorter)
    moved = [words for key, words in _SHAPES.items() if old.get(key) != new.get(key)]
    if moved and new["dtype"] != "float32":
        return Verdict(
            "not comparable",
            f"{' and '.join(moved)}, which rounds otherwise in {new['dtype']}; token {at + 1} differs",
            at,
        )
    then, now = (_named(ids, at, text) for ids in (old_ids, new_ids))
    return Verdict("differs", f" first at token {at + 1:,}: {then} then, {now} now", at)


def _incomparable(old: Receipt, new: Receipt, old_ids: Sequence[int]) -> str:
    """Why the two say nothing about each other; empty if they do."""
    if old.get("hash") != hash_ids(old_ids):
        return "the kept answer is not the one that its receipt is of"
    for key, words in _CONDITIONS.items():
        if old.get(key) != new.get(key):
            return words
    for part in sorted({*old["build"], *new["build"]}):
        then, now = old["build"].get(part, "none"), new["build"].get(part, "none")
        if then != now:
            return f"another build: {part} was {then}, and is {now}"
    return "" if _drawn(old) == _drawn(new) else "the sampling is not the same"


def _named(ids: Sequence[int], at: int, text: Callable[[Sequence[int]], str] | None) -> str:
    """A token in quotes, as it stands after those before it; its id without a decoder."""
    if at >= len(ids):
        return "the end"
    if text is None:
        return str(ids[at])
    return repr(text(ids[: at + 1])[len(text(ids[:at])) :])
