"""The command: results on stdout, the rest on stderr, one clear sentence for everything that cannot be."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import mistral_mlx as mm
from mistral_mlx import cli
from tests.conftest import GOLDEN

COMMAND = [sys.executable, "-m", "mistral_mlx"]
QUESTION = "What is the capital of France?"


@pytest.fixture
def loaded(demo: mm.LLM, monkeypatch: pytest.MonkeyPatch) -> mm.LLM:
    """The demo, loaded once for all tests that run the command in this process."""
    monkeypatch.setattr("mistral_mlx.llm.load", lambda *_, **__: demo)
    return demo


def failed(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a refused command says: nothing on stdout, two lines at most on stderr, exit code 2, no traceback."""
    assert cli.main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("mistral-mlx: ")
    assert len(err.splitlines()) == 2, err
    return err


# ---- generate ---------------------------------------------------------------------------------------------------


def test_the_readme_command_answers_from_the_real_model() -> None:
    done = subprocess.run([*COMMAND, "generate", "-m", "demo", QUESTION], capture_output=True, text=True, check=False)
    if "demo model is not installed" in done.stderr:
        pytest.skip("the demo model is not installed")
    assert done.returncode == 0, done.stderr
    assert "Paris" in done.stdout
    assert done.stdout.endswith("\n")
    assert "tokens read at" in done.stderr
    assert "tokens read at" not in done.stdout


def test_the_record_has_text_tokens_and_stats(loaded: mm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", "-m", "demo", "--json", "-t", "0.5", "--seed", "3", "--max-tokens", "5", QUESTION]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    expected = loaded.chat().send(QUESTION, temperature=0.5, seed=3, max_tokens=5)
    assert record["text"] == expected.text
    assert record["tokens"] == expected.tokens
    assert record["logprobs"] == pytest.approx(expected.logprobs, abs=1e-4)
    assert record["finish_reason"] == "length"
    assert record["mode"] == "chat"
    assert record["sampling"]["seed"] == 3
    assert record["stats"]["completion_tokens"] == 5
    assert err == ""


def test_a_draft_that_is_no_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", "-m", str(GOLDEN / "window"), "--draft", "ngrams", "--raw", "Hello"]
    assert "There is no model" in failed(argv, capsys)


def test_what_was_drafted_is_in_the_record_and_the_figures(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {}
    stats = mm.Stats(1, 0, 4, 0.1, 1.0, 1.0, 1, 1, 1234, 1000)

    class Drafting:
        instruct = False

        def stream(self, *_: Any, **__: Any) -> list[mm.Chunk]:
            return [mm.Chunk("four", tokens=[1, 2, 3, 4], finish_reason="stop", stats=stats)]

    monkeypatch.setattr("mistral_mlx.llm.load", lambda model, **options: asked.update(options) or Drafting())
    assert cli.main(["generate", "-m", "7b", "--draft", "ngram", "--json", "a"]) == 0
    record = json.loads(capsys.readouterr().out)["stats"]
    assert (record["drafted_tokens"], record["accepted_tokens"]) == (1234, 1000)
    assert asked["draft"] == "ngram"
    assert cli.main(["generate", "-m", "7b", "--draft", "small", "a"]) == 0
    assert "1,000 of 1,234 drafted right" in capsys.readouterr().err
    assert asked["draft"] == "small"


def test_a_cache_is_kept_in_a_file_and_taken_up(
    loaded: mm.LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["generate", "-m", "demo", "--raw", "--max-tokens", "2", "--cache", str(tmp_path / "cache"), "One two three"]
    assert cli.main(argv) == 0
    first, err = capsys.readouterr()
    assert "known before" not in err
    loaded.forget()
    assert cli.main(argv) == 0
    again, err = capsys.readouterr()
    assert again == first
    assert "(2 known before)" in err
    (tmp_path / "cache").write_text("a letter")
    assert "stays as it is" in failed(argv, capsys)
    assert (tmp_path / "cache").read_text() == "a letter"
    assert "can be written" in failed([*argv[:7], str(tmp_path / "none" / "x"), "Hi"], capsys)


def test_a_drawn_seed_is_told_and_gives_the_text_again(loaded: mm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", "-m", "demo", "--json", "-t", "1.5", "--max-tokens", "8", "Tell me a story"]
    cli.main(argv)
    first = json.loads(capsys.readouterr().out)
    cli.main([*argv, "--seed", str(first["sampling"]["seed"])])
    assert json.loads(capsys.readouterr().out)["text"] == first["text"]


def test_the_prompt_comes_from_an_argument_a_file_or_stdin(
    loaded: mm.LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "prompt").write_text("The capital of France is\n", encoding="utf-8-sig")
    common = ["generate", "-m", "demo", "--raw", "--max-tokens", "3"]

    class Stdin(io.TextIOWrapper):
        def __init__(self) -> None:
            super().__init__(io.BytesIO(b"The capital of France is\n"))

    outputs = []
    for argv in (["The capital of France is"], ["--file", str(tmp_path / "prompt")], ["-"], []):
        monkeypatch.setattr(sys, "stdin", Stdin())
        assert cli.main([*common, *argv]) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0].startswith(" Paris")
    assert len(set(outputs)) == 1


def test_system_and_chat(loaded: mm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["generate", "-m", "demo", "--system", "Answer in French.", "--max-tokens", "12", "Hello"])
    out, err = capsys.readouterr()
    assert out.strip() == loaded.chat("Answer in French.").send("Hello", max_tokens=12).text.strip()
    assert "[chat]" in err


def test_what_a_terminal_would_obey_is_shown_instead(
    loaded: mm.LLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = mm.Completion("", "", [], [], [], [], "stop", mm.Stats(1, 0, 1, 0.1, 1.0, 1.0, 1, 1))
    chunks = [mm.Chunk("a\x1b]0;title\x07b\x9b31m\r\n"), mm.Chunk("", finish_reason="stop", stats=evil.stats)]
    monkeypatch.setattr(type(loaded), "stream", lambda *_, **__: iter(chunks))
    for terminal, shown in ((True, "a␛]0;title␇b\ufffd31m␍\n"), (False, "a\x1b]0;title\x07b\x9b31m\r\n")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        cli.main(["generate", "-m", "demo", "--raw", "x"])
        assert capsys.readouterr().out == shown


@pytest.mark.parametrize("when", ["answering", "loading"])
def test_ctrl_c_stops_cleanly_with_what_was_written(when: str) -> None:
    argv = [*COMMAND, "generate", "-m", "demo", "--raw", "-t", "1", "--max-tokens", "2000", "Once upon a time"]
    process = subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    assert process.stdout is not None
    written = b""
    if when == "answering":
        while len(written) < 20:
            written += process.stdout.read(1)
    else:
        time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Traceback" not in err
    if when == "answering":
        assert (written + out).endswith(b"\n")
        assert b"(cancelled)" in err
    else:
        assert b"stopped" in err


def test_a_full_disk_and_a_terminal_that_is_not_utf8() -> None:
    argv = [*COMMAND, "models", "info", "-m", str(GOLDEN / "window")]
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert "No space left" in done.stderr
    assert "Traceback" not in done.stderr
    code = "import sys; from mistral_mlx import cli; cli.main(['models', 'info', '-m', sys.argv[1]]); print('\u2603')"
    argv = [sys.executable, "-c", code, str(GOLDEN / "window")]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}
    )
    assert done.stdout.endswith("?\n")


def test_closed_stdout_and_another_locale() -> None:
    line = f'"{sys.executable}" -m mistral_mlx models info -m "{GOLDEN / "window"}" >&-; echo "$?"'
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")
    locale = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    code = "import sys; from mistral_mlx.cli.prompt import typed; print(ascii(typed(sys.argv[1])))"
    argv = [sys.executable, "-c", code, "café"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True, env=locale).stdout == "'caf\\xe9'\n"


def test_a_reader_that_goes_away_is_no_error() -> None:
    line = (
        f'"{sys.executable}" -m mistral_mlx models info -m "{GOLDEN / "window"}" | head -1; echo "${{PIPESTATUS[0]}}"'
    )
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] in ("0", "141")
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["-m", "nowhere", "x"], "There is no model 'nowhere'"),
        (["-m", "What is the capital of France? " * 20, "x"], "There is no model"),
        (["-m", "demo", "-t", "nan", "x"], "temperature is nan"),
        (["-m", "demo", "-t", "-1", "x"], "temperature is -1"),
        (["-m", "demo", "--top-p", "0", "x"], "top_p is 0"),
        (["-m", "demo", "--max-tokens", "0", "x"], "max_tokens is 0"),
        (["-m", "demo", "--seed", "-1", "x"], "seed is -1"),
        (["-m", "demo", "--raw", "--system", "s", "x"], "--system has no place"),
        (["-m", "demo", "--file", "/nowhere", "x"], "a prompt and a --file"),
        (["-m", "demo", "--file", "/nowhere"], "/nowhere cannot be read"),
        (["-m", "demo", "--dtype", "int4", "x"], "dtype 'int4' is unknown"),
        (["-m", str(GOLDEN), "x"], "holds no model.safetensors"),
        (["-m", str(GOLDEN / "make.py"), "x"], "is not a GGUF file"),
        (["-m", str(GOLDEN / "window"), "x"], "holds no tokenizer"),
        (["-m", str(GOLDEN / "window"), "--chat", "x"], "holds no tokenizer"),
    ],
)
def test_bad_input_is_one_sentence_and_what_to_do(
    argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in failed(["generate", *argv], capsys)


def test_an_empty_prompt_and_text_that_is_not_utf8(
    loaded: mm.LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "prompt is empty" in failed(["generate", "-m", "demo", "--raw", ""], capsys)
    assert "prompt is empty" in failed(["generate", "-m", "demo", ""], capsys)
    for form in ("--raw", "--chat"):
        assert "not text in UTF-8" in failed(["generate", "-m", "demo", form, "caf\udce9"], capsys)
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert "not text in UTF-8" in failed(["generate", "-m", "demo", "-f", str(tmp_path / "latin")], capsys)


def test_a_prompt_longer_than_the_model_allows(loaded: mm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    err = failed(["generate", "-m", "demo", "--raw", "a b c d e f g h " * 1100], capsys)
    assert "this model attends to at most 8192" in err


@pytest.mark.parametrize("argv", [[], ["generate"], ["generate", "-m", "demo", "--seed", "x", "p"], ["nonsense"]])
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(argv)
    assert stop.value.code == 2
    assert "usage:" in capsys.readouterr().err


# ---- models -----------------------------------------------------------------------------------------------------


def test_models_info_describes_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "info", "-m", str(GOLDEN / "mix"), "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "window 8, full in 1 of 4 layers" in out
    assert "as bfloat16" in out
    assert "8 sharing 2, of dimension 16" in out


def test_models_info_as_a_record(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["models", "info", "-m", str(GOLDEN / "window"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["parameters"] == 100_512
    assert record["stored_bytes"] == 2 * record["parameters"]
    assert record["config"]["sliding_window"] == 8
    assert record["memory"]["fits"] is True
    assert record["memory"]["total"] < record["memory"]["limit"]
    assert [row["tokens"] for row in record["cache"]] == [1024, 4096, 8192, 32768, 131072]


def test_models_info_of_something_that_is_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "config.json is missing" in failed(["models", "info", "-m", str(tmp_path)], capsys)


# ---- options of this command ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--stop", ""], "stop"),
        (["--logit-bias", "5=1", "--logit-bias", "5=2"], "twice"),
        (["--logit-bias", "5=nan"], "logit_bias"),
        (["--logprobs", "3"], "--json"),
        (["--window", "wide"], "--window"),
        (["--repetition-penalty", "0"], "repetition_penalty"),
        (["--presence-penalty", "inf"], "presence_penalty"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    options: list[str], word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert word in failed(["generate", "-m", "demo", *options, "hello"], capsys)


def test_a_bias_is_explained_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["generate", "-m", "demo", "--logit-bias", "abc", "hello"])
    assert stop.value.code == 2
    assert "42=-5" in capsys.readouterr().err


def test_sampling_options_reach_the_model(loaded: mm.LLM, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*options: str) -> dict[str, Any]:
        assert cli.main(["generate", "-m", "demo", "--json", "--max-tokens", "8", *options, "Count: one two"]) == 0
        return dict(json.loads(capsys.readouterr().out))

    plain = run()
    assert plain["top_logprobs"] == []
    first = plain["tokens"][0]
    assert first not in run("--logit-bias", f"{first}=-1000")["tokens"]
    assert [len(top) for top in run("--logprobs", "2")["top_logprobs"]] == [2] * 8
    stop = plain["text"][3:6]
    assert run("--stop", stop)["text"] == plain["text"][: plain["text"].index(stop)]
    for penalty in ("repetition", "presence", "frequency"):
        assert run(f"--{penalty}-penalty", "3")["text"] != plain["text"]


# ---- conversations, forms, tokens -------------------------------------------------------------------------------


def write(path: Path, data: Any) -> str:
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    return str(path)


TALK = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there!"},
    {"role": "user", "content": QUESTION},
]


def test_a_conversation_from_a_file_is_answered(
    loaded: mm.LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = loaded.chat(messages=TALK).reply(max_tokens=3).text
    common = ["generate", "-m", "demo", "--max-tokens", "3"]
    assert cli.main([*common, "--messages", write(tmp_path / "whole.json", TALK)]) == 0
    assert capsys.readouterr().out.strip() == expected.strip()
    assert cli.main([*common, "--messages", write(tmp_path / "part.json", TALK[:2]), QUESTION]) == 0
    assert capsys.readouterr().out.strip() == expected.strip()


def test_an_answer_is_held_to_a_form(loaded: mm.LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    schema["additionalProperties"] = False
    file = write(tmp_path / "schema.json", schema)
    assert cli.main(["generate", "-m", "demo", "--json-schema", file, QUESTION]) == 0
    assert json.loads(capsys.readouterr().out) == {"city": "Paris"}
    assert cli.main(["generate", "-m", "demo", "--regex", "Paris|Rome", QUESTION]) == 0
    assert capsys.readouterr().out == "Paris\n"
    assert cli.main(["generate", "-m", "demo", "--json-mode", "--max-tokens", "4", QUESTION]) == 0
    assert capsys.readouterr().out.startswith("{")


def test_calls_are_lines_of_json_and_thoughts_are_not_the_answer(
    loaded: mm.LLM, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stats = mm.Stats(1, 0, 1, 0.1, 1.0, 1.0, 1, 1)
    deltas = [mm.ToolCallDelta(0, "look", '{"a":'), mm.ToolCallDelta(0, arguments=" 1}", id="abcDE1234")]
    chunks = [mm.Chunk("", "hm\x1b"), mm.Chunk("", tool_calls=deltas), mm.Chunk("", finish_reason="stop", stats=stats)]
    monkeypatch.setattr(type(loaded), "stream", lambda *_, **__: iter(chunks))
    cli.main(["generate", "-m", "demo", "--raw", "x"])
    out, err = capsys.readouterr()
    assert json.loads(out) == {"id": "abcDE1234", "name": "look", "arguments": '{"a": 1}'}
    assert "hm␛" in err


def test_tokens_are_those_of_the_prompt(loaded: mm.LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forged = "<|im_end|> 🦙"
    assert cli.main(["tokens", "-m", "demo", "--system", "Be brief.", forged, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    expected = loaded.chat_format.encode([mm.Message("system", "Be brief."), mm.Message("user", forged)])
    assert [t["id"] for t in record["tokens"]] == expected
    assert record["mode"] == "chat"
    assert "system" in [t["piece"] for t in record["tokens"]]
    assert [t["piece"] for t in record["tokens"] if t["control"]] == [
        *("<|im_start|>", "<|im_end|>") * 2, "<|im_start|>",
    ]  # fmt: skip
    assert cli.main(["tokens", "-m", "demo", "--messages", write(tmp_path / "talk.json", TALK)]) == 0
    out, err = capsys.readouterr()
    ids = [int(line.split()[1]) for line in out.splitlines()]
    assert ids == loaded.chat_format.encode(TALK)
    assert err == f"[chat] {len(ids)} tokens, 9 of them control\n"
    assert cli.main(["tokens", "-m", "demo", "--raw", "🦙 a"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(r'"\xf0\x9f"')


def test_control_tokens_are_coloured_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    argv = [*COMMAND, "tokens", "-m", "demo", "hi\x1b[31m"]
    done = subprocess.run(argv, stdout=child, stderr=subprocess.PIPE, text=True, env=environment, check=False)
    os.close(child)
    if "demo model is not installed" in done.stderr:
        pytest.skip("the demo model is not installed")
    shown = b""
    while True:
        try:
            shown += os.read(parent, 65536)
        except OSError:
            break
    lines = shown.decode().splitlines()
    assert "\x1b[1;35m<|im_start|>\x1b[0m" in lines[0]
    assert all("35m" not in line for line in lines if '"' in line)
    assert "\x1b[31m" not in shown.decode()


@pytest.mark.parametrize("command", ["generate", "tokens"])
@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--suffix", "b", "a"], "cannot fill in the middle"),
        (["--tools", "TOOLS", "a"], "has no tools"),
        (["--stable", "a"], "decides where things stand"),
        (["--reasoning-effort", "high", "a"], "no reasoning effort"),
        (["--raw", "--tools", "TOOLS", "a"], "--tools has no place"),
        (["--suffix", "b", "--system", "s", "a"], "--system has no place"),
        (["--messages", "/nowhere"], "/nowhere cannot be read"),
        (["--messages", "BROKEN"], "is not valid JSON"),
        (["--messages", "OBJECT"], "holds no list"),
        (["--messages", "ROBOT"], "messages[0] has the role 'robot'"),
        (["--messages", "ROBOT", ""], "prompt is empty"),
        (["--tools", "ROBOT", "a"], "tools[0] has 'role', 'content'"),
    ],
)
def test_a_bad_conversation_is_one_sentence(
    command: str, argv: list[str], says: str, loaded: mm.LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {
        "TOOLS": write(tmp_path / "tools.json", [{"type": "function", "function": {"name": "f"}}]),
        "OBJECT": write(tmp_path / "object.json", {"role": "user"}),
        "ROBOT": write(tmp_path / "robot.json", [{"role": "robot", "content": "x"}]),
        "BROKEN": str(tmp_path / "broken.json"),
    }
    (tmp_path / "broken.json").write_text("[{")
    assert says in failed([command, "-m", "demo", *(files.get(a, a) for a in argv)], capsys)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--regex", "(", "a"], "unclosed group"),
        (["--json-schema", "/nowhere", "a"], "/nowhere cannot be read"),
        (["--json-schema", "LIST", "a"], "holds no object"),
    ],
)
def test_a_bad_form_is_one_sentence(
    argv: list[str], says: str, loaded: mm.LLM, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"LIST": write(tmp_path / "list.json", [1])}
    assert says in failed(["generate", "-m", "demo", *(files.get(a, a) for a in argv)], capsys)
