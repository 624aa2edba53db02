"""What a script holds: load, generate, stream, chat; on tiny models, and on the demo."""

from __future__ import annotations

import gc
import json
import logging
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import mistral_common
import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx.utils import tree_flatten

import mistral_mlx as mm
from mistral_mlx.engine.prefix import Prefixes
from mistral_mlx.engine.speculative import LENGTHS, Pace
from mistral_mlx.model.transformer import Transformer
from mistral_mlx.models import info, resolve
from mistral_mlx.text.files import Text
from mistral_mlx.text.tokenizer import decode_whole
from tests.conftest import GOLDEN, TINY, make_model

PROMPT = [5, 6, 7, 8]
SPM = {"v1": "tokenizer.model.v1", "v3": "mistral_instruct_tokenizer_240323.model.v3"}


def bare(model: Transformer) -> mm.LLM:
    """A model that came without a tokenizer."""
    return mm.LLM(model, Text(mm.TokenizerError("none"), mm.TokenizerError("none"), False))


@pytest.fixture(scope="module")
def golden() -> mm.LLM:
    return mm.load(GOLDEN / "window", dtype="float32")


@pytest.fixture(scope="module", params=list(SPM))
def talker(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> mm.LLM:
    """A tiny windowed model with a real Mistral tokenizer, loaded from a folder. It talks nonsense, exactly."""
    version: str = request.param
    folder = tmp_path_factory.mktemp(version)
    vocab = {"v1": 32000, "v3": 32768}[version]
    model = make_model(vocab_size=vocab, sliding_window=(8, None))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = {
        "model_type": "ministral", "hidden_size": TINY.hidden_size, "intermediate_size": TINY.intermediate_size,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "vocab_size": vocab,
        "rms_norm_eps": 1e-5, "rope_theta": 1e4, "sliding_window": 8, "max_position_embeddings": 4096,
        "layer_types": ["sliding_attention", "full_attention"], "tie_word_embeddings": False, "eos_token_id": 2,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "chat_template.jinja").write_text("[INST]")
    shutil.copy(Path(mistral_common.__file__).parent / "data" / SPM[version], folder / "tokenizer.model")
    return mm.load(folder)


# ---- generate and stream ----------------------------------------------------------------------------------------


def test_a_stream_is_the_completion_in_pieces(talker: mm.LLM) -> None:
    options = {"max_tokens": 20, "temperature": 1.0, "seed": 3}
    chunks = list(talker.stream("Hello there", **options))
    whole = talker.generate("Hello there", **options)
    assert "".join(c.text for c in chunks) == whole.text
    assert [i for c in chunks for i in c.tokens] == whole.tokens
    assert [c.finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.finish_reason
    assert len(whole.logprobs) == len(whole.tokens)


def test_plain_text_begins_with_bos_and_is_carried_on_with_its_space(talker: mm.LLM) -> None:
    assert talker.encode("Hello")[0] == 1
    done = talker.generate("Hello", max_tokens=8, temperature=1.0, seed=0)
    ids = talker.encode("Hello") + done.tokens
    assert decode_whole(talker.tokenizer, ids) == "Hello" + done.text


@settings(max_examples=20)
@given(st.integers(0, 2**64 - 1))
def test_the_same_seed_gives_the_same_text(seed: int) -> None:
    llm = bare(make_model())
    options = {"seed": seed, "temperature": 1.0, "max_tokens": 10}
    assert llm.generate(PROMPT, **options).tokens == llm.generate(PROMPT, **options).tokens


def test_stats_tell_what_was_done(golden: mm.LLM) -> None:
    done = golden.generate(PROMPT, max_tokens=6)
    assert done.finish_reason in ("length", "stop")
    assert done.stats.prompt_tokens == 4
    assert done.stats.reused_tokens == 0
    assert done.stats.completion_tokens == len(done.tokens)
    assert 0 < done.stats.ttft_s < 60
    assert done.stats.cache_bytes > 0
    assert done.stats.peak_memory_bytes >= done.stats.cache_bytes


def test_a_stop_token_ends_the_answer_and_is_not_shown() -> None:
    model = make_model()
    free = bare(model).generate(PROMPT, max_tokens=10)
    model.config = replace(model.config, eos_token_ids=(free.tokens[4],))
    stopped = bare(model).generate(PROMPT, max_tokens=10)
    end = free.tokens.index(free.tokens[4])
    assert stopped.tokens == free.tokens[: end + 1]
    assert stopped.finish_reason == "stop"


def test_cancel_ends_within_a_step_and_keeps_what_came(golden: mm.LLM) -> None:
    cancel, chunks = Event(), []
    for chunk in golden.stream(PROMPT, max_tokens=1000, cancel=cancel, temperature=1.0, seed=1):
        chunks.append(chunk)
        if len(chunks) == 5:
            cancel.set()
    assert len(chunks) == 6
    assert chunks[-1].finish_reason == "cancelled"
    assert chunks[-1].stats.completion_tokens == 5


def test_cancelled_before_it_began(golden: mm.LLM) -> None:
    cancel = Event()
    cancel.set()
    done = golden.generate(PROMPT, cancel=cancel)
    assert (done.text, done.tokens, done.finish_reason) == ("", [], "cancelled")


def test_a_windowed_model_has_no_longest_prompt(golden: mm.LLM) -> None:
    ids = [3] * 300  # its config says 256 positions
    assert golden.config.context_length is None
    assert golden.generate(ids, max_tokens=3).stats.cache_bytes <= golden.model.make_cache().max_bytes


def test_full_attention_ends_at_the_context() -> None:
    llm = mm.load(GOLDEN / "full", dtype="float32")
    with pytest.raises(mm.ContextError, match="The prompt has 257 tokens; this model attends to at most 256"):
        llm.generate([3] * 257)
    done = llm.generate([3] * 250, max_tokens=100, temperature=1.0, seed=0)
    assert done.finish_reason == "length"
    assert len(done.tokens) == 7  # the last needs no room: it is not fed
    with pytest.raises(mm.ContextError):
        llm.score([3] * 257)
    assert llm.score([3] * 256).shape == (255,)


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_scores_are_the_log_probabilities_of_the_logits(golden: mm.LLM, chunk: int) -> None:
    ids = mx.load(str(GOLDEN / "window" / "logits.safetensors"))["ids"].tolist()
    logits = golden.logits(ids)
    expected = mx.take_along_axis(
        logits - mx.logsumexp(logits, -1, keepdims=True), mx.array([*ids[1:], 0])[:, None], -1
    )
    np.testing.assert_allclose(golden.score(ids, chunk), expected[:-1, 0], atol=2e-5)


@pytest.mark.parametrize("ids", [[], [96], [-1], [1.5], [True], ["a"], [1, None]])
def test_ids_outside_the_vocabulary_are_refused(golden: mm.LLM, ids: list[object]) -> None:
    for use in (golden.generate, golden.logits, golden.score):
        with pytest.raises(mm.InputError) as error:
            use(ids)
        assert error.value.hint


def test_ids_may_come_as_arrays(golden: mm.LLM) -> None:
    expected = golden.generate(PROMPT, max_tokens=5).tokens
    assert golden.generate(np.array(PROMPT), max_tokens=5).tokens == expected
    assert golden.generate(mx.array(PROMPT), max_tokens=5).tokens == expected


def test_an_option_that_does_not_exist_is_refused_at_once(golden: mm.LLM) -> None:
    with pytest.raises(mm.InputError, match="no option temprature, top_q"):
        golden.stream(PROMPT, top_q=0.3, temprature=1.1)
    with pytest.raises(mm.InputError, match="temperature"):
        golden.stream(PROMPT, temperature=-1)  # when called, not when first read
    for chunk in (0, 1.5, True, "a"):
        with pytest.raises(mm.InputError, match="chunk"):
            golden.score(PROMPT, chunk=chunk)
    with pytest.raises(mm.InputError, match="no prompt"):
        golden.generate(None)


def test_without_a_tokenizer_ids_work_and_text_says_what_is_missing(golden: mm.LLM) -> None:
    assert golden.generate(PROMPT, max_tokens=2).text == ""
    for use in (lambda: golden.generate("text"), golden.chat, lambda: golden.tokenizer):
        with pytest.raises(mm.TokenizerError, match="holds no tokenizer"):
            use()


def test_another_models_tokenizer_is_noticed(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "window", folder)
    shutil.copy(Path(mistral_common.__file__).parent / "data" / SPM["v1"], folder / "tokenizer.model")
    with pytest.raises(mm.TokenizerError, match="The tokenizer has 32000 ids, the model 96"):
        mm.load(folder).generate("text")


@pytest.mark.parametrize("model", ["mistrall", "x" * 300, "~nosuchuser/x", 3, "a\0b"])
def test_an_unknown_model_says_what_there_is(model: object) -> None:
    with pytest.raises(mm.InputError, match="There is no model") as error:
        mm.load(model)
    assert "demo" in error.value.hint


def test_a_cache_larger_than_memory_is_refused_before_it_is_made(
    golden: mm.LLM, talker: mm.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = talker.chat()
    monkeypatch.setattr("mistral_mlx.memory.memory_limit", lambda: 500_000)
    for use in (lambda: golden.generate([3] * 9000), lambda: golden.score([3] * 9000), lambda: chat.send("hello")):
        with pytest.raises(mm.OutOfMemoryError, match="of keys and values"):
            use()


def test_weights_that_give_no_numbers_are_an_error() -> None:
    model = make_model()
    model.model.norm.weight = mx.full(model.model.norm.weight.shape, mx.nan)
    with pytest.raises(mm.WeightsError, match="not a number"):
        bare(model).generate(PROMPT)


def test_on_a_gpu_quantized_weights_stay_packed_and_compute_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    from mistral_mlx import models
    from mistral_mlx.weights import loading
    from mistral_mlx.weights.checkpoint import open_checkpoint

    monkeypatch.setattr("mistral_mlx.backend.on_gpu", lambda: True)
    monkeypatch.setattr(loading, "on_gpu", lambda: True)
    plan = loading.plan_loading(open_checkpoint(resolve("demo")))
    assert (plan.dtype, plan.expand) == (mx.bfloat16, False)
    info = models.info("demo")
    assert info.dtype == "bfloat16"
    assert info.loaded_bytes == plan.nbytes < 100e6


def test_stats_tell_how_the_prompt_was_cut(golden: mm.LLM) -> None:
    golden.forget()
    prompt = [5, 6, 7, 8] * 150
    told: list[tuple[int, int]] = []
    done = golden.generate(prompt, max_tokens=2, progress=lambda *each: told.append(each))
    assert done.stats.reading == (512, 88)
    assert told == [(0, 600), (512, 600), (600, 600)]
    told.clear()
    again = golden.generate([*prompt, 9], max_tokens=1, progress=lambda *each: told.append(each)).stats
    assert again.reused_tokens + sum(again.reading) == 601
    assert told == [(again.reused_tokens, 601), (601, 601)]  # what was known before counts as read
    stopped = Event()
    stopped.set()
    assert golden.generate([3, *prompt], cancel=stopped).stats.reading == ()


def test_a_fingerprint_is_of_weights_precision_and_configuration(golden: mm.LLM) -> None:
    same, packed = mm.load(GOLDEN / "window", dtype="float32"), mm.load(GOLDEN / "window", dtype="float32", kv_bits=8)
    others = [mm.load(GOLDEN / "full", dtype="float32"), mm.load(GOLDEN / "window", dtype="bfloat16"), packed]
    assert same.fingerprint == golden.fingerprint
    assert len({golden.fingerprint, *(other.fingerprint for other in others)}) == 4


def test_a_build_names_what_computes(golden: mm.LLM) -> None:
    assert golden.build["mistral_mlx"] == mm.__version__
    assert (golden.dtype, golden.stored_as, golden.path) == ("float32", "BF16", GOLDEN / "window")
    assert golden.build.keys() == {"mistral_mlx", "mlx", "machine"}
    assert all(golden.build.values())


def test_loading_tells_the_bytes_that_were_read() -> None:
    told: list[tuple[int, int]] = []
    mm.load(GOLDEN / "window", loading=lambda *each: told.append(each))
    assert told[0][0] == 0
    assert told == sorted(told)
    assert told[-1][0] == told[0][1] == info(GOLDEN / "window").stored_bytes
    assert len(told) > 20  # each matrix is told


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_loading_ends_with_what_its_listener_raises(error: type[BaseException]) -> None:
    """Nothing of the model is left, and the next one loads."""
    gc.collect()
    before = mx.get_active_memory()

    def tell(done: int, total: int) -> None:
        if done > total / 2:
            raise error("enough")

    with pytest.raises(error, match="enough") as caught:
        mm.load(GOLDEN / "window", loading=tell)
    caught.value.__traceback__ = None
    del caught
    gc.collect()
    assert mx.get_active_memory() <= before
    mm.load(GOLDEN / "window")


# ---- penalties, stop strings, alternatives ----------------------------------------------------------------------


def test_an_answer_ends_before_a_stop_string_wherever_tokens_end(talker: mm.LLM) -> None:
    options = {"max_tokens": 40, "temperature": 1.0, "seed": 5}
    free = talker.generate("Hello", **options)
    for start, end in [(3, 9), (10, 11), (0, 4), (20, 31)]:
        stop = free.text[start:end]
        cut = talker.generate("Hello", stop=stop, **options)
        assert cut.text == free.text[: free.text.index(stop)]
        assert cut.finish_reason == "stop"
        assert cut.tokens == free.tokens[: len(cut.tokens)]
        prompt = talker.encode("Hello")
        assert stop in talker.decode(prompt + cut.tokens)
        assert stop not in talker.decode(prompt + cut.tokens[:-1])
    missing = talker.generate("Hello", stop=["\0\0never", "\1"], **options)
    assert (missing.text, missing.finish_reason) == (free.text, free.finish_reason)


def test_nothing_of_a_stop_string_is_streamed(talker: mm.LLM) -> None:
    options = {"max_tokens": 40, "temperature": 1.0, "seed": 5}
    text = talker.generate("Hello", **options).text
    stop = text[8:20]
    shown = ""
    for chunk in talker.stream("Hello", stop=[stop], **options):
        shown += chunk.text
        assert text[: text.index(stop)].startswith(shown)


def test_a_chat_goes_on_after_a_stop_string(talker: mm.LLM) -> None:
    chat, options = talker.chat(), {"max_tokens": 30, "temperature": 1.0, "seed": 8}
    free = talker.chat().send("Hello", **options)
    for start, end in [(5, 12), (0, 3)]:
        chat = talker.chat()
        cut = chat.send("Hello", stop=free.text[start:end], **options)
        assert cut.finish_reason == "stop"
        message = chat.messages[-1]
        assert message.content == cut.text == free.text[: free.text.index(free.text[start:end])]
        assert message.ids is not None
        assert talker.decode([1, *message.ids]) == cut.text
        following = chat.send("And?", max_tokens=5)
        talker.forget()
        fresh = talker.generate(talker.chat_format.encode(chat.messages[:-1]), max_tokens=5)
        assert following.tokens == fresh.tokens


def test_any_stop_token_is_left_out_of_the_history(talker: mm.LLM) -> None:
    """Also one that the configuration names and the tokenizer does not."""
    free = talker.chat().send("Hello", max_tokens=8, temperature=1.0, seed=4)
    stop = free.tokens[5]
    config = talker.config
    talker.config = replace(config, eos_token_ids=(2, stop))
    try:
        chat = talker.chat()
        answer = chat.send("Hello", max_tokens=8, temperature=1.0, seed=4)
        assert (answer.finish_reason, answer.tokens[-1]) == ("stop", stop)
        assert chat.messages[-1].ids == tuple(answer.tokens[:-1])
        following = chat.send("And?", max_tokens=3)
        talker.forget()
        fresh = talker.generate(talker.chat_format.encode(chat.messages[:-1]), max_tokens=3)
        assert following.tokens == fresh.tokens
    finally:
        talker.config = config


@pytest.mark.parametrize("nothing", [None, 5, b"x", ["x"]], ids=repr)
def test_what_is_no_text_is_refused(nothing: Any, talker: mm.LLM) -> None:
    for use in (talker.encode, talker.chat().send, talker.generate, lambda text: talker.chat(system=text or 5)):
        with pytest.raises(mm.InputError):
            use(nothing)
    for use in (talker.logits, talker.score, talker.decode):
        with pytest.raises(mm.InputError, match="encode"):
            use("text")
    with pytest.raises(mm.InputError, match="not a message"):
        talker.chat().edit("a", "x")  # type: ignore[arg-type]
    assert talker.decode([]) == ""


def test_alternatives_come_with_each_token_when_asked_for(talker: mm.LLM) -> None:
    found = talker.generate("Hello", max_tokens=5, logprobs=3)
    assert [len(top) for top in found.top_logprobs] == [3] * len(found.tokens)
    assert [next(iter(top)) for top in found.top_logprobs] == found.tokens  # greedy
    assert [next(iter(top.values())) for top in found.top_logprobs] == found.logprobs
    assert talker.generate("Hello", max_tokens=5).top_logprobs == []


def test_what_an_option_needs_is_checked_before_anything_runs(golden: mm.LLM) -> None:
    with pytest.raises(mm.InputError, match="96 is not a token id"):
        golden.stream(PROMPT, logit_bias={96: 1.0})
    with pytest.raises(mm.TokenizerError):
        golden.stream(PROMPT, stop="x")


# ---- chat -------------------------------------------------------------------------------------------------------


def answer_fresh(llm: mm.LLM, messages: list[mm.Message], **options: object) -> list[int]:
    """What a chat says after these messages where nothing has been read before."""
    kept, llm.prefixes = llm.prefixes, Prefixes(llm.model)
    try:
        chat = llm.chat()
        chat.messages = list(messages[:-1])
        done = chat.send(messages[-1].content, **options)
    finally:
        llm.prefixes = kept
    assert done.stats.reused_tokens == 0
    return done.tokens


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_every_turn_equals_a_fresh_reading_of_the_conversation(talker: mm.LLM, system: str | None) -> None:
    """Far beyond the window and its slack, with turns taken back and said anew."""
    chat = talker.chat(system)
    options = {"max_tokens": 40, "temperature": 1.0}
    for turn in range(5):
        before = [*chat.messages, mm.Message("user", f"turn {turn}")]
        done = chat.send(f"turn {turn}", seed=turn, **options)
        assert done.tokens == answer_fresh(talker, before, seed=turn, **options)
        if turn and system is None:
            assert done.stats.reused_tokens > 0
    again = chat.regenerate(seed=77, **options)
    assert again.tokens == answer_fresh(talker, chat.messages[:-1], seed=77, **options)
    edited = chat.edit(len(chat.messages) - 4, "something else", seed=5, **options)
    assert edited.tokens == answer_fresh(talker, chat.messages[:-1], seed=5, **options)
    assert [m.role for m in chat.messages if m.role != "system"] == ["user", "assistant"] * 4


def test_history_keeps_the_ids_that_were_sampled(talker: mm.LLM) -> None:
    chat = talker.chat()
    done = chat.send("hello", max_tokens=20, temperature=1.5, seed=1)
    assert chat.messages[-1] == mm.Message("assistant", done.text, tuple(done.tokens))
    said = done.tokens[:-1] if done.finish_reason == "stop" else done.tokens
    following = talker.chat_format.encode([*chat.messages, mm.Message("user", "and?")])
    assert " ".join(map(str, said)) in " ".join(map(str, following))


def test_a_cancelled_answer_stays_and_the_chat_goes_on(talker: mm.LLM) -> None:
    chat, cancel = talker.chat(), Event()
    text = ""
    for n, chunk in enumerate(chat.stream("hello", cancel=cancel, max_tokens=50, temperature=1.0, seed=2)):
        text += chunk.text
        if n == 4:
            cancel.set()
    assert chat.messages[-1].content == text
    assert len(chat.messages[-1].ids) == 5
    before = [*chat.messages, mm.Message("user", "more")]
    done = chat.send("more", max_tokens=10, seed=3)
    assert done.tokens == answer_fresh(talker, before, max_tokens=10, seed=3)


def test_a_reader_that_stops_listening_loses_nothing(talker: mm.LLM) -> None:
    chat = talker.chat()
    stream = chat.stream("hello", max_tokens=50, temperature=1.0, seed=2)
    heard = [next(stream) for _ in range(3)]
    stream.close()
    assert chat.messages[-1].ids == tuple(i for c in heard for i in c.tokens)


def test_an_interrupt_in_the_middle_of_a_step_leaves_a_chat_that_works(
    talker: mm.LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = talker.chat()
    chat.send("hello", max_tokens=5, seed=0)
    last_layer = talker.model.model.layers[-1]
    monkeypatch.setattr(type(last_layer), "__call__", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        chat.send("broken off", max_tokens=5, seed=0)
    monkeypatch.undo()
    assert len(chat.messages) == 2
    before = [*chat.messages, mm.Message("user", "again")]
    assert chat.send("again", max_tokens=9, seed=1).tokens == answer_fresh(talker, before, max_tokens=9, seed=1)


def test_a_new_message_ends_an_answer_that_is_still_open(talker: mm.LLM) -> None:
    chat = talker.chat()
    stream = chat.stream("hello", max_tokens=30, temperature=1.0, seed=2)
    heard = next(stream)
    unread = chat.stream("never read", max_tokens=5)
    chat.send("second", max_tokens=8, seed=3)
    assert list(stream) == list(unread) == []
    del stream, unread
    assert [m.content for m in chat.messages if m.role == "user"] == ["hello", "second"]
    assert chat.messages[1].ids == tuple(heard.tokens)
    before = [*chat.messages, mm.Message("user", "third")]
    assert chat.send("third", max_tokens=9, seed=4).tokens == answer_fresh(talker, before, max_tokens=9, seed=4)


def test_leaving_a_loop_commits_what_was_said(talker: mm.LLM) -> None:
    chat = talker.chat()
    for _ in chat.stream("hello", max_tokens=30, temperature=1.0, seed=2):
        break
    assert len(chat.messages[-1].ids) == 1


def test_what_a_chat_cannot_do_is_refused_and_changes_nothing(talker: mm.LLM) -> None:
    chat = talker.chat()
    with pytest.raises(mm.InputError, match="no answer to replace"):
        chat.regenerate()
    for nothing in ("", None, 5):
        with pytest.raises(mm.InputError, match=r"message is empty|is no text"):
            chat.send(nothing)
    chat.send("hello", max_tokens=3, seed=0)
    before = list(chat.messages)
    for index in (1, 7, -1):
        with pytest.raises(mm.InputError, match="not a message of the user"):
            chat.edit(index, "x")
    with pytest.raises(mm.InputError, match="top_p"):
        chat.edit(0, "x", top_p=3)
    assert chat.messages == before


# ---- the demo ---------------------------------------------------------------------------------------------------


def test_the_demo_knows_the_capital_of_france(demo: mm.LLM) -> None:
    chat = demo.chat()
    assert "Paris" in chat.send("What is the capital of France?").text
    done = chat.send("And of Italy?")
    assert "Rome" in done.text
    assert done.stats.reused_tokens >= 44  # all but the new turn


def test_packed_weights_give_the_same_answer(demo: mm.LLM, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "mistral_mlx"):
        packed = mm.load("demo", dtype="keep")
    assert not caplog.messages
    ids = demo.encode("The capital of France is")
    np.testing.assert_allclose(packed.logits(ids), demo.logits(ids), atol=2e-2)
    assert packed.generate(ids, max_tokens=3).tokens == demo.generate(ids, max_tokens=3).tokens


def test_expanding_is_said(caplog: pytest.LogCaptureFixture) -> None:
    if mx.default_device().type == mx.DeviceType.gpu:
        pytest.skip("quantized weights stay packed on a GPU")
    with caplog.at_level(logging.WARNING, "mistral_mlx"):
        mm.load("demo")
    assert "expanded to float32 (538 MB instead of 115 MB)" in caplog.text


@pytest.mark.slow
@pytest.mark.torch
def test_the_demo_continues_as_transformers_does(demo: mm.LLM) -> None:
    """Greedy, five prompts, the same file: read and dequantized there by transformers and the gguf package."""
    pytest.importorskip("accelerate")  # transformers wants it for GGUF
    import torch
    from transformers import AutoModelForCausalLM

    path = resolve("demo")
    theirs = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    prompts = [
        "The capital of France is", "Once upon a time, in a small village,", "def fibonacci(n):\n",
        "The three states of matter are", "In 1969, the first",
    ]  # fmt: skip
    for prompt in prompts:
        ids = demo.encode(prompt)
        with torch.no_grad():
            expected = theirs.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :].tolist()
            logits = theirs(torch.tensor([ids])).logits[0].numpy()
        np.testing.assert_allclose(demo.logits(ids), logits, atol=2e-3)
        ours = demo.generate(ids, max_tokens=40).tokens
        assert ours == expected[: len(ours)]


# ---- drafts -----------------------------------------------------------------------------------------------------


class Eager(Pace):
    """Feeds as much as it may, whatever it costs here."""

    def choose(self, room: int) -> tuple[int, int]:
        return max(n for n in LENGTHS if n <= room), 1


one_talker = pytest.mark.parametrize("talker", ["v3"], indirect=True)


@pytest.fixture(params=["ngram", "itself", "another"])
def drafting(request: pytest.FixtureRequest, talker: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[mm.LLM]:
    """The talker with a draft, which it always uses."""
    monkeypatch.setattr("mistral_mlx.llm.Pace", Eager)
    other = bare(make_model(9, vocab_size=talker.config.vocab_size, num_hidden_layers=1))
    talker.draft = {"ngram": "ngram", "itself": talker, "another": other}[request.param]
    yield talker
    talker.draft = None


def without_draft(llm: mm.LLM, prompt: str, **options: Any) -> mm.Completion:
    draft, llm.draft = llm.draft, None
    done = llm.generate(prompt, **options)
    llm.draft = draft
    return done


@one_talker
@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "seed": 3, "logprobs": 2, "repetition_penalty": 1.2}])
def test_a_draft_changes_no_answer(drafting: mm.LLM, options: dict[str, Any]) -> None:
    done = drafting.generate("Hello there", max_tokens=20, **options)
    plain = without_draft(drafting, "Hello there", max_tokens=20, **options)
    assert (done.tokens, done.text, done.finish_reason) == (plain.tokens, plain.text, plain.finish_reason)
    np.testing.assert_allclose(done.logprobs, plain.logprobs, atol=1e-4)
    assert (plain.stats.drafted_tokens, plain.stats.accepted_tokens) == (0, 0)
    assert done.stats.accepted_tokens <= done.stats.drafted_tokens
    if drafting.draft is drafting:
        assert done.stats.accepted_tokens == done.stats.drafted_tokens > 14


@one_talker
def test_a_stop_token_and_a_stop_string_end_a_round(drafting: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = without_draft(drafting, "Hello there", max_tokens=14, temperature=1.0, seed=3)
    options: dict[str, Any] = {"max_tokens": 14, "temperature": 1.0, "seed": 3}
    stop = plain.text[len(plain.text) // 2 :][:3]
    done = drafting.generate("Hello there", stop=stop, **options)
    again = without_draft(drafting, "Hello there", stop=stop, **options)
    assert (done.text, done.tokens, done.finish_reason) == (again.text, again.tokens, "stop")
    assert done.stats.accepted_tokens < done.stats.completion_tokens
    end = plain.tokens[5]
    monkeypatch.setattr(mm.LLM, "stop_ids", frozenset({end}))
    done = drafting.generate("Hello there", **options)
    assert done.tokens == plain.tokens[: plain.tokens.index(end) + 1]
    assert done.finish_reason == "stop"


@one_talker
def test_a_chat_with_drafts_is_the_chat_without(drafting: mm.LLM) -> None:
    """Left in the middle of an answer, cancelled, and answered anew: each turn reads and says what it would have."""

    def talk() -> list[Any]:
        drafting.forget()
        chat, said, cancel = drafting.chat(), [], Event()
        options: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_tokens": 9}
        for turn in ("Hello", "And then?"):
            said.append(chat.send(turn, **options))
        for i, _ in enumerate(chat.stream("Go on", **options)):
            if i == 4:
                break
        for i, _ in enumerate(chat.stream("Go on", **options, cancel=cancel)):
            if i == 6:
                cancel.set()
        said += [chat.regenerate(**{**options, "seed": 6}), chat.send("Bye", **options)]
        return [[(c.tokens, c.text, c.stats.prompt_tokens, c.stats.reused_tokens) for c in said], chat.messages]

    with_drafts = talk()
    drafting.draft = None
    assert with_drafts == talk()


@one_talker
def test_an_answer_that_is_held_to_a_form_comes_without_drafts(drafting: mm.LLM) -> None:
    done = drafting.generate("Hello", regex="(ab)+c", max_tokens=20)
    assert done.stats.drafted_tokens == 0
    assert done.tokens == without_draft(drafting, "Hello", regex="(ab)+c", max_tokens=20).tokens


@one_talker
def test_answers_that_are_read_in_turn_do_not_disturb_each_other(drafting: mm.LLM) -> None:
    """Two streams share the draft model."""
    options: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9}
    streams = [drafting.stream(text, seed=seed, **options) for seed, text in enumerate(("Hello", "Good evening"))]
    tokens: list[list[int]] = [[], []]
    for pair in zip(*streams, strict=False):
        for said, chunk in zip(tokens, pair, strict=True):
            said += chunk.tokens
    for seed, text in enumerate(("Hello", "Good evening")):
        plain = without_draft(drafting, text, seed=seed, **options).tokens
        assert tokens[seed] == plain[: len(tokens[seed])]


def test_a_draft_is_named_when_loading(tmp_path: Path) -> None:
    assert mm.load(GOLDEN / "window").draft is None
    assert mm.load(GOLDEN / "window", draft="ngram").draft == "ngram"
    llm = mm.load(GOLDEN / "window", draft=GOLDEN / "mix")
    assert isinstance(llm.draft, mm.LLM)
    assert (
        llm.generate(PROMPT, max_tokens=30).tokens == mm.load(GOLDEN / "window").generate(PROMPT, max_tokens=30).tokens
    )


def test_what_is_no_draft_is_refused(golden: mm.LLM) -> None:
    for wrong in ("ngrams", 3, True, ""):
        with pytest.raises(mm.InputError, match="draft is") as error:
            golden.draft = wrong  # type: ignore[assignment]
        assert '"ngram"' in error.value.hint
    with pytest.raises(mm.InputError, match="The draft model knows 64 tokens, and the model 96"):
        golden.draft = bare(make_model())
    assert golden.draft is None
    with pytest.raises(mm.InputError, match="There is no model"):
        mm.load(GOLDEN / "window", draft="ngrams")


def test_the_memory_of_a_draft_model_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    model, draft = mm.load(GOLDEN / "window"), mm.load(GOLDEN / "full")
    alone, beside = model.memory(1000), draft.memory(256)  # which is all that the draft model attends to
    model.draft = draft
    both = model.memory(1000)
    assert (both.weights, both.cache) == (alone.weights + beside.weights, alone.cache + beside.cache)
    monkeypatch.setattr("mistral_mlx.memory.memory_limit", lambda: both.weights + both.cache)
    with pytest.raises(mm.OutOfMemoryError, match="1,000 tokens take"):
        model.generate([5] * 999, max_tokens=1)
    model.draft = None
    model.generate([5] * 999, max_tokens=1)
    least = model.memory(256)
    room = least.weights + least.cache
    monkeypatch.setattr("mistral_mlx.memory.memory_limit", lambda: room)
    with pytest.raises(mm.OutOfMemoryError, match="does not fit"):
        mm.load(GOLDEN / "window", draft=GOLDEN / "full")


def test_the_demo_answers_alike_with_a_draft(demo: mm.LLM) -> None:
    text = "one two three four five one two three four five one two"
    plain = demo.generate(text, max_tokens=10)
    demo.draft = "ngram"
    try:
        done = demo.generate(text, max_tokens=10)
    finally:
        demo.draft = None
    assert done.tokens == plain.tokens
    assert done.stats.accepted_tokens > 0


@pytest.mark.parametrize("path", ["", ".", "/", "~nosuchuser/x", "a" * 300, None, 5, b"x", "a\0b"], ids=repr)
def test_what_is_no_file_is_refused(path: Any, talker: mm.LLM) -> None:
    talker.generate([1, 2], max_tokens=1)
    for use in (talker.save_cache, talker.load_cache):
        with pytest.raises(mm.InputError, match="name of a file"):
            use(path)


def test_yesterdays_conversation_is_not_read_again(talker: mm.LLM, tmp_path: Path) -> None:
    talker.forget()
    chat = talker.chat()
    chat.send("Hello", max_tokens=20, seed=1, temperature=1.0)
    assert talker.save_cache(tmp_path / "cache") > 20
    talker.forget()
    assert talker.load_cache(tmp_path / "cache") > 20
    again = talker.chat(messages=chat.messages)
    assert again.send("And?", max_tokens=3).stats.reused_tokens > 20
    (tmp_path / "cache").write_bytes(b"damaged")
    assert talker.load_cache(tmp_path / "cache") == 0
