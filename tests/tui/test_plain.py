"""The plain chat: what is typed, what is said, and what is kept, with a scripted model."""

from __future__ import annotations

import io
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import pytest

import mistral_mlx as mm
from mistral_mlx.errors import ContextError, InputError, MistralError
from tests.tui import fake_llm
from tui import plain
from tui.conversation import Conversation, Turn
from tui.settings import paths
from tui.start import Start
from tui.store import Store, StoreError

STATS = mm.Stats(5, 0, 3, 0.25, 20.0, 50.0, 1, 1)
BRACKETED_PASTE = re.compile(r"\x1b\[\?2004[hl]")


class FakeChat:
    """Answers by a script: texts, chunks, or errors, one for each answer."""

    def __init__(self, llm: FakeLLM, system: str | None, messages: list[mm.Message]) -> None:
        self.llm = llm
        self.messages = [*([mm.Message("system", system)] if system else []), *messages]

    def stream_reply(
        self, *, cancel: Event, progress: Callable[[int, int], None], **options: Any
    ) -> Iterator[mm.Chunk]:
        self.llm.asked.append((list(self.messages), options))
        answer = self.llm.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return self._answer(answer, cancel)

    def encode(self) -> list[int]:
        return [1]

    def _answer(self, answer: Any, cancel: Event) -> Iterator[mm.Chunk]:
        if not isinstance(answer, str):
            yield from answer(self)
            return
        said = ""
        for word in re.findall(r"\S+\s*", answer):
            if cancel.is_set():
                break
            said += word
            yield mm.Chunk(word, tokens=[len(said)], logprobs=[-0.5])
        ids = tuple(range(len(said)))
        self.messages = [*self.messages, mm.Message("assistant", said, ids)]
        yield mm.Chunk("", finish_reason="stop" if said == answer else "cancelled", stats=STATS)


class FakeLLM(fake_llm.FakeLLM):
    """Answers by a script."""

    def __init__(self, *answers: Any) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked: list[tuple[list[mm.Message], dict[str, Any]]] = []
        self.loaded: list[str] = []

    def chat(self, system: str | None, messages: list[mm.Message], *, tools: Any) -> FakeChat:  # type: ignore[override]
        return FakeChat(self, system, messages)


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Chats with a model by a script of lines, and gives what was said."""

    def resolve(name: str, **_: Any) -> None:
        if name == "nowhere":
            raise InputError("There is no model 'nowhere'.", "Give another.")

    def run(llm: FakeLLM, *lines: str, start: Start | None = None, stop: Event | None = None) -> str:
        def load(name: str, **_: Any) -> FakeLLM:
            llm.loaded.append(name)
            llm.fingerprint = name
            return llm

        @contextmanager
        def interruptible() -> Iterator[Event]:
            yield stop or Event()

        monkeypatch.setattr("mistral_mlx.load", load)
        monkeypatch.setattr("mistral_mlx.models.resolve", resolve)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert plain.run(start or Start(model="demo"), interruptible) == 0
        return capsys.readouterr().out

    return run


def kept() -> Conversation:
    """The newest conversation on disk."""
    store = Store.open(paths().database)
    newest = store.newest()
    assert newest is not None
    conversation = store.load(newest)
    store.close()
    return conversation


def said(turns: list[Turn]) -> list[tuple[str, str]]:
    return [(turn.role, turn.text) for turn in turns]


def test_a_conversation_reads_from_top_to_bottom(chat: Callable[..., str]) -> None:
    out = chat(FakeLLM("Hello there. How are you?"), "Hi")
    assert out == (
        "The plain chat of mistral-mlx. Type /help for what you can do.\n"
        "Loading demo.\n"
        "demo is ready.\n"
        "You: Hi\n"
        "Assistant:\n"
        "Hello there. How are you?\n"
        "[3 tokens, 50 per second, first after 0.25 seconds, done]\n"
        "You: \n"
        "Goodbye.\n"
    )


def test_what_was_said_is_kept_with_its_tokens(chat: Callable[..., str]) -> None:
    chat(FakeLLM("One two. ", "Three."), "First question", "Second")
    c = kept()
    assert (c.title, c.model) == ("First question", "demo")
    assert said(c.path()) == [
        ("user", "First question"), ("assistant", "One two. "), ("user", "Second"), ("assistant", "Three."),
    ]  # fmt: skip
    answer = c.path()[1]
    assert (answer.finish, answer.stats, answer.kept) == ("stop", STATS, tuple(range(9)))
    assert [answer.tokens.piece(i, answer.said) for i in range(2)] == ["One ", "two. "]


def test_the_model_reads_the_branch_and_the_system_prompt(chat: Callable[..., str]) -> None:
    llm = FakeLLM("a", "b")
    chat(llm, "One", "/system Be brief.", "/set temperature 0.2", "/set top_k 5", "/set top_k default", "Two")
    (first, _), (second, options) = llm.asked
    assert [m.role for m in first] == ["user"]
    assert [(m.role, m.content) for m in second] == [
        ("system", "Be brief."), ("user", "One"), ("assistant", "a"), ("user", "Two"),
    ]  # fmt: skip
    assert options == {"temperature": 0.2, "max_tokens": 4096, "seed": options["seed"]}
    assert kept().options == {"temperature": 0.2}


def test_nothing_is_obeyed_by_the_terminal(chat: Callable[..., str]) -> None:
    out = chat(FakeLLM("\x1b[2Jgone \x9b31m.\r\n"), "\x1b]0;x\x07", "/load \x1b[2J", "/\x1b[2J")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", out)


def test_retry_and_edit_make_branches(chat: Callable[..., str]) -> None:
    llm = FakeLLM("first", "second", "third", "fourth")
    chat(llm, "Question", "/retry 1.5", "/edit Other question", "/edit", "Typed question")
    c = kept()
    roots = c.children(None)
    assert [turn.text for turn in roots] == ["Question", "Other question", "Typed question"]
    assert [turn.text for turn in c.children(roots[0].id)] == ["first", "second"]
    assert llm.asked[1][1]["temperature"] == 1.5
    assert llm.asked[1][1]["seed"] != llm.asked[0][1]["seed"]
    assert said(c.path()) == [("user", "Typed question"), ("assistant", "fourth")]


def test_retry_at_temperature_0_says_that_nothing_would_change(chat: Callable[..., str]) -> None:
    out = chat(FakeLLM("a"), "Hi", "/retry", start=Start(model="demo", options={"temperature": 0.0}))
    assert "The temperature is 0, so the answer would be the same. Type /retry 0.7, say." in out


def test_stopping_keeps_what_was_said(chat: Callable[..., str]) -> None:
    stop = Event()

    class Stopping(FakeLLM):
        def chat(self, *args: Any, **options: Any) -> FakeChat:
            made = super().chat(*args, **options)
            answer = made._answer

            def stopped(text: Any, cancel: Event) -> Iterator[mm.Chunk]:
                for chunk in answer(text, cancel):
                    yield chunk
                    stop.set()

            made._answer = stopped  # type: ignore[method-assign]
            return made

    out = chat(Stopping("one two three four"), "Count", stop=stop)
    assert "Assistant:\none \n[3 tokens, 50 per second, first after 0.25 seconds, stopped]\n" in out
    assert said(kept().path()) == [("user", "Count"), ("assistant", "one ")]
    assert kept().path()[-1].finish == "cancelled"


def test_an_answer_that_fails_is_one_sentence_and_the_question_stays(chat: Callable[..., str]) -> None:
    out = chat(FakeLLM(ContextError("The prompt is too long.", "Shorten it."), "Better now."), "Hi", "/retry")
    assert "Assistant:\nNote: The prompt is too long. Shorten it.\nYou: /retry\nAssistant:\nBetter now.\n" in out
    question = kept().children(None)[0]
    assert [(turn.finish, turn.error) for turn in kept().children(question.id)] == [
        ("failed", "The prompt is too long."), ("stop", ""),
    ]  # fmt: skip


def test_tools_are_told_and_kept(chat: Callable[..., str]) -> None:
    call = mm.ToolCall("abcDE1234", "weather", '{"city": "Rome"}')

    def answer(chat: FakeChat) -> Iterator[mm.Chunk]:
        yield mm.Chunk("Let me look.", tool_calls=[mm.ToolCallDelta(0, call.name, call.arguments, call.id)])
        chat.messages = [*chat.messages, mm.Message("assistant", "Let me look.", (1, 2), tool_calls=(call,))]
        yield mm.Chunk("", finish_reason="stop", stats=STATS)
        chat.messages = [*chat.messages, mm.Message("tool", "sunny", tool_call_id=call.id)]
        yield mm.Chunk("It is sunny.", tokens=[7], logprobs=[-0.1])
        chat.messages = [*chat.messages, mm.Message("assistant", "It is sunny.", (7,))]
        yield mm.Chunk("", finish_reason="stop", stats=STATS)

    out = chat(FakeLLM(answer), "Weather?")
    assert (
        'Assistant:\nLet me look.\nCalls weather with {"city": "Rome"}\nThe tool answers: sunny\nIt is sunny.\n' in out
    )
    turns = kept().path()
    assert [(turn.role, turn.text, turn.kept) for turn in turns[1:]] == [
        ("assistant", "Let me look.", (1, 2)), ("tool", "sunny", None), ("assistant", "It is sunny.", (7,)),
    ]  # fmt: skip
    assert turns[1].tool_calls == (call,)
    assert turns[2].tool_call_id == call.id


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["one\\", "two\\", "three"], "one\ntwo\nthree"),
        (['"""', "one", "", "two", '"""'], "one\n\ntwo"),
        (['"""one', 'two"""'], "one\ntwo"),
        (['"""', "never closed"], "never closed"),
        (["//etc is a folder"], "/etc is a folder"),
    ],
)
def test_messages_of_several_lines(chat: Callable[..., str], lines: list[str], message: str) -> None:
    llm = FakeLLM("ok")
    chat(llm, *lines)
    assert llm.asked[0][0][-1].content == message


def test_commands_that_cannot_be_followed_say_why(chat: Callable[..., str]) -> None:
    out = chat(FakeLLM(), "/nothing", "/retry", "/edit", "/set heat 3", "/set top_p 7", "/load", "/export")
    notes = [line for line in out.splitlines() if line.startswith("Note: ")]
    assert [note.split(".")[0] for note in notes] == [
        "Note: There is no command /nothing",
        "Note: Nothing has been asked yet",
        "Note: Nothing has been asked yet",
        "Note: There is no option 'heat'",
        "Note: top_p is 7",
        "Note: /load needs the name of a model",
        "Note: The name of the file is missing",
    ]


def test_help_names_every_command_and_the_file_of_settings(chat: Callable[..., str]) -> None:
    out = chat(FakeLLM(), "/help", "/quit")
    for command in ("new", "retry", "edit", "system", "set", "models", "load", "export", "quit"):
        assert f"/{command}" in out
    assert str(paths().settings) in out
    assert out.endswith("You: /quit\nGoodbye.\n")


def test_without_a_model_it_says_how_to_get_one(chat: Callable[..., str]) -> None:
    llm = FakeLLM("Hello.")
    out = chat(llm, "Hi", "/load demo", "/retry", start=Start())
    assert "No model is chosen. Type /load demo" in out
    assert "Note: No model is loaded. Type /load demo, or /models for others; then /retry." in out
    assert "Assistant:\nHello.\n" in out
    assert llm.loaded == ["demo"]


def test_a_model_that_is_not_there_leaves_the_one_that_is(chat: Callable[..., str]) -> None:
    out = chat(FakeLLM("Still here."), "/load nowhere", "Hi")
    assert "Note: There is no model 'nowhere'. Give another." in out
    assert "Still here." in out


def test_another_models_answers_are_read_as_text(chat: Callable[..., str]) -> None:
    llm = FakeLLM("from one", "from another", "again")
    chat(llm, "A", "/load 7b", "B", "C")
    assert [m.ids is None for m in llm.asked[1][0] if m.role == "assistant"] == [True]
    assert [m.ids is None for m in llm.asked[2][0] if m.role == "assistant"] == [True, False]
    assert kept().model == "7b"
    chat(llm := FakeLLM("later"), "D", start=Start(continue_newest=True))
    assert [m.ids is None for m in llm.asked[0][0] if m.role == "assistant"] == [True, False, False]


def test_continuing_and_resuming(chat: Callable[..., str]) -> None:
    chat(FakeLLM("Blue."), "What colour?", start=Start(model="demo", options={"seed": 3}))
    first = kept()
    llm = FakeLLM("Because.")
    out = chat(llm, "Why?", start=Start(continue_newest=True))
    assert 'Going on with "What colour?". Its last messages:\nYou: What colour?\nAssistant:\nBlue.\n' in out
    assert [m.content for m in llm.asked[0][0]] == ["What colour?", "Blue.", "Why?"]
    assert llm.asked[0][1]["seed"] == 3
    assert llm.loaded == ["demo"]
    assert kept().id == first.id
    chat(FakeLLM("x"), "y", start=Start(resume=first.id[:5], options={"seed": 4}))
    assert (kept().id, kept().options) == (first.id, {"seed": 4})
    with pytest.raises(MistralError, match="zzz"):
        chat(FakeLLM(), start=Start(resume="zzz"))


def test_new_begins_another_conversation(chat: Callable[..., str]) -> None:
    chat(FakeLLM("a", "b"), "One", "/new", "Two")
    assert said(kept().path()) == [("user", "Two"), ("assistant", "b")]
    store = Store.open(paths().database)
    assert len(store.listing()) == 2


def test_settings_count_and_what_is_wrong_with_them_is_told_once(chat: Callable[..., str]) -> None:
    file = paths().settings
    file.parent.mkdir(parents=True)
    file.write_text("model = '7b'\nsystem = 'Be kind.'\ncolour = 'red'\n[sampling]\ntemperature = -1\ntop_p = 0.5\n")
    llm = FakeLLM("a", "b")
    out = chat(llm, "Hi", "Ho", start=Start())
    assert out.count("Note: settings.toml: there is no setting colour (it is 'red')") == 1
    assert out.count("Note: settings.toml: sampling: temperature is -1.") == 1
    assert llm.loaded == ["7b"]
    messages, options = llm.asked[0]
    assert messages[0] == mm.Message("system", "Be kind.")
    assert options == {"temperature": 0.7, "max_tokens": 4096, "top_p": 0.5, "seed": options["seed"]}


def test_what_could_not_be_saved_is_told_once_and_saved_later(
    chat: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, failures = Store.save, [0]

    def failing(self: Store, *args: Any) -> None:
        failures[0] += 1
        if failures[0] <= 3:
            raise StoreError("The disk is full.", "Make room.")
        save(self, *args)

    monkeypatch.setattr(Store, "save", failing)
    out = chat(FakeLLM("a", "b"), "One", "Two")
    assert out.count("Note: This could not be saved yet. The disk is full. Make room.") == 1
    assert [turn.text for turn in kept().path()] == ["One", "a", "Two", "b"]


def test_what_could_not_be_saved_is_saved_later_though_another_conversation_began(
    chat: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    save, failures = Store.save, [0]

    def failing(self: Store, *args: Any) -> None:
        failures[0] += 1
        if failures[0] <= 2:
            raise StoreError("The disk is full.", "Make room.")
        save(self, *args)

    monkeypatch.setattr(Store, "save", failing)
    chat(FakeLLM("a", "b"), "One", "/new", "Two")
    store = Store.open(paths().database)
    assert sorted(row.title for row in store.listing()) == ["One", "Two"]
    assert [turn.text for turn in kept().path()] == ["Two", "b"]
    store.close()


def test_export_writes_a_new_file_only(chat: Callable[..., str], tmp_path: Path) -> None:
    pytest.importorskip("tui.transfer")
    out = chat(
        FakeLLM("Blue."),
        "Colour?",
        f"/export {tmp_path}/a.md",
        f"/export {tmp_path}/a.md",
        f"/export {tmp_path}/a.json",
    )
    assert "Blue." in (tmp_path / "a.md").read_text()
    assert (tmp_path / "a.json").read_text().lstrip().startswith("{")
    assert "is there already" in out


def test_models_are_listed(chat: Callable[..., str]) -> None:
    out = chat(FakeLLM(), "/models")
    assert re.search(r"^nemo: (mlx-community/\S+, to download|[\d.]+ GiB, here)", out, re.MULTILINE)


def test_in_a_real_terminal_nothing_moves_the_cursor(tmp_path: Path) -> None:
    pty = pytest.importorskip("pty")
    parent, child = pty.openpty()
    argv = [sys.executable, "-m", "tui", "--plain", "-m", "demo", "--max-tokens", "8", "-t", "0"]
    process = subprocess.Popen(
        argv, stdin=child, stdout=child, stderr=subprocess.PIPE, start_new_session=True,
        env=os.environ | {"TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(child)
    shown, seen = "", 0

    def until(text: str) -> None:
        nonlocal shown, seen
        end = time.monotonic() + 100
        while text not in shown[seen:]:
            assert select.select([parent], [], [], max(0, end - time.monotonic()))[0], shown
            try:
                shown += os.read(parent, 65536).decode(errors="replace")
            except OSError:
                pytest.fail(shown)
        seen = shown.index(text, seen) + len(text)

    until("You: ")
    if "not installed" in shown:
        process.kill()
        pytest.skip("the demo model is not installed")
    os.write(parent, b"\x1b[200~What is the capital\nof France?\x1b[201~")
    until("of France?")
    assert "Assistant" not in shown  # a paste does not send itself
    os.write(parent, b"\r")
    until("]\r\n")
    until("You: ")
    os.write(parent, b"\x04")
    until("Goodbye.")
    process.communicate(timeout=60)
    os.close(parent)
    assert process.returncode == 0
    assert "Paris" in shown
    assert "\a" in shown
    assert "\x1b" not in BRACKETED_PASTE.sub("", shown)
