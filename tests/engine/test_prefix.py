"""What is kept between requests: never reused wrongly, never more than allowed, and back from disk as it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mistral_mlx as mm
from mistral_mlx.engine.prefix import Prefixes, fingerprint
from mistral_mlx.engine.reading import prefill
from mistral_mlx.model import ring as ring_module
from mistral_mlx.model.cache import cache_bytes
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.text.files import Text
from tests.conftest import TINY, make_model

WINDOWS: dict[str, Any] = {"window": 8, "full": None, "mix": (None, 8), "two windows": (8, 13)}
MODELS = {name: make_model(sliding_window=window) for name, window in WINDOWS.items()}
NO_TEXT = Text(mm.TokenizerError("none", ""), mm.TokenizerError("none", ""), False)
IDS = np.random.default_rng(1).integers(0, TINY.vocab_size, 400).tolist()


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings turn and logs overflow within a short text."""
    monkeypatch.setattr(ring_module, "SMALLEST_CAPACITY", 4)
    monkeypatch.setattr(ring_module, "_LOG_BLOCK", 5)


def ask(prefixes: Prefixes, model: Transformer, ids: list[int], cut: int = 512) -> tuple[np.ndarray, int]:
    """Read ids as a request does; the logits after them, and how many were not read."""
    cache, reused = prefixes.take(ids)
    assert cache.position == reused < len(ids)
    logits = prefill(model, ids[reused:], cache, chunk=cut)
    assert logits is not None
    prefixes.put(ids, cache)
    return np.array(logits), reused


texts = st.lists(st.tuples(st.integers(0, 390), st.lists(st.integers(0, 63), max_size=12), st.integers(1, 60)),
                 min_size=1, max_size=8)  # fmt: skip


@settings(max_examples=60)
@given(st.sampled_from(list(MODELS)), texts, st.sampled_from([0, 3_000, 30_000, 10**7]))
def test_whatever_is_reused_the_logits_are_those_of_a_fresh_reading(
    name: str, texts: list[tuple[int, list[int], int]], max_bytes: int
) -> None:
    """Texts that share beginnings of any length, far beyond the window, under any cap."""
    model, prefixes = MODELS[name], Prefixes(MODELS[name], max_bytes)
    for shared, rest, cut in texts:
        ids = IDS[:shared] + (rest or [5])
        logits, _ = ask(prefixes, model, ids, cut)
        np.testing.assert_allclose(logits, np.array(model(mx.array([ids]))[0, -1]), atol=3e-5)
        assert prefixes.reuse_bytes <= max_bytes


def test_what_goes_on_is_not_read_again() -> None:
    model, prefixes = MODELS["window"], Prefixes(MODELS["window"], 10**6)
    assert ask(prefixes, model, IDS[:200])[1] == 0
    assert ask(prefixes, model, IDS[:300])[1] == 200
    assert ask(prefixes, model, IDS[:300])[1] == 299  # one is read for its logits
    assert ask(prefixes, model, [*IDS[:150], 1, 2])[1] == 150  # two turns back, by the log
    assert ask(prefixes, model, IDS[:301])[1] == 300  # the other branch is still there


@pytest.mark.parametrize("name", MODELS)
def test_an_answer_may_be_left_anywhere(name: str) -> None:
    """Also where the step that was built ahead has grown the ring already."""
    llm = mm.LLM(MODELS[name], NO_TEXT)
    llm.prefixes.max_reuse_bytes = 10**9
    expected = llm.generate([1, 3, 4, 9], max_tokens=3).tokens
    for count in range(1, 40):
        llm.forget()
        stream = llm.stream([1, 3, 4, 5, 6], max_tokens=60, temperature=1.0, seed=1)
        for _ in range(count):
            next(stream, None)
        stream.close()
        assert llm.generate([1, 3, 4, 9], max_tokens=3).tokens == expected


def test_a_short_text_after_a_long_one_takes_a_short_cache() -> None:
    model, prefixes = make_model(sliding_window=2048), Prefixes(make_model(sliding_window=2048))
    ask(prefixes, model, IDS)
    ask(prefixes, model, [*IDS[:3], 1, 2])
    assert prefixes.cache_bytes == cache_bytes(model.config, 5, 4)


def test_what_would_lose_more_than_it_gives_is_left_alone() -> None:
    model = MODELS["full"]
    prefixes = Prefixes(model, cache_bytes(model.config, 300, 4))
    ask(prefixes, model, IDS[300:400])
    ask(prefixes, model, IDS[:300])
    cache, reused = prefixes.take([IDS[0], 1, 2])
    assert (cache.position, reused) == (0, 0)
    assert prefixes.reach(IDS) == 300
    assert prefixes.take([*IDS[:200], 1])[1] == 200  # worth more than what is lost


def test_under_a_small_cap_only_the_slack_is_left() -> None:
    model, prefixes = MODELS["window"], Prefixes(MODELS["window"], 0)
    ask(prefixes, model, IDS[:300])
    assert prefixes.reuse_bytes == 0
    assert ask(prefixes, model, [*IDS[:100], 7])[1] == 0
    ask(prefixes, model, IDS[:300])
    assert ask(prefixes, model, [*IDS[:200], 7])[1] == 200  # 128 tokens of slack
    assert ask(prefixes, model, [9, 9])[1] == 0
    assert ask(prefixes, model, IDS[:201])[1] == 0  # the last one pushed it out


def test_the_default_cap_is_one_ring() -> None:
    model = make_model(sliding_window=64)
    prefixes = Prefixes(model)
    ring = model.make_cache()
    prefill(model, IDS[:64], ring)
    assert prefixes.max_reuse_bytes == ring.nbytes
    for start in range(0, 100, 10):
        ask(prefixes, model, IDS[start:])
        assert prefixes.reuse_bytes <= prefixes.max_reuse_bytes
        assert prefixes.cache_bytes == model.make_cache().max_bytes


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_cache_is_taken_up_by_another_process(name: str, tmp_path: Path) -> None:
    model, path = MODELS[name], tmp_path / "yesterday"
    prefixes = Prefixes(model)
    ask(prefixes, model, IDS[:250])
    assert prefixes.save(path) == 250
    assert [p.name for p in tmp_path.iterdir()] == ["yesterday"]
    later = Prefixes(make_model(sliding_window=WINDOWS[name]))
    assert later.restore(path) == 250
    logits, reused = ask(later, model, IDS[:260])
    assert reused == 250
    np.testing.assert_allclose(logits, np.array(model(mx.array([IDS[:260]]))[0, -1]), atol=3e-5)


def test_a_bad_file_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    model, path = MODELS["mix"], tmp_path / "cache"
    prefixes = Prefixes(model)
    with pytest.raises(mm.InputError, match="nothing to save"):
        prefixes.save(path)
    ask(prefixes, model, IDS[:50])
    prefixes.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damaged = [whole[: rng.integers(len(whole))] for _ in range(30)] + [b"", b"\xff" * 100, b"{}"]
    for place in rng.integers(len(whole), size=60):
        damaged.append(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    for data in damaged:
        path.write_bytes(data)
        fresh = Prefixes(model)
        with pytest.raises(mm.InputError, match="cache"):
            fresh.restore(path)
        assert fresh.cache_bytes == 0
    path.write_text("letters")
    with pytest.raises(mm.InputError, match="stays as it is"):
        prefixes.save(path)
    assert path.read_text() == "letters"
    with pytest.raises(mm.InputError, match="No such file"):
        prefixes.restore(tmp_path / "none")
    with pytest.raises(mm.InputError, match="cannot be written"):
        prefixes.save(tmp_path / "none" / "cache")
    mx.save_safetensors(str(tmp_path / "other.safetensors"), {"a": mx.zeros(3)}, {"ids": json.dumps([1])})
    with pytest.raises(mm.InputError, match="holds no cache"):
        prefixes.restore(tmp_path / "other.safetensors")


@pytest.mark.parametrize("change", [{"sliding_window": 9}, {"rope_theta": 2e4}, {"seed": 3}])
def test_another_models_file_is_refused(change: dict[str, Any], tmp_path: Path) -> None:
    model, prefixes = make_model(), Prefixes(make_model())
    ask(prefixes, model, IDS[:50])
    prefixes.save(tmp_path / "cache")
    with pytest.raises(mm.InputError, match="another model"):
        Prefixes(make_model(**change)).restore(tmp_path / "cache")


def test_a_fingerprint_sees_any_weight() -> None:
    model = make_model()
    before = fingerprint(model)
    assert before == fingerprint(make_model())
    model.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-3
    assert fingerprint(model) != before
