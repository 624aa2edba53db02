"""The terminal in both directions: nothing pasted becomes keys, nothing native reaches the screen."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from textual import constants, events
from textual.app import App
from textual.drivers.headless_driver import HeadlessDriver
from textual.message import Message

from tests.tui.terminal_session import TerminalSession
from tui import terminal
from tui.terminal import SafeDriver, SafeParser, SafeTerminal

ROOT = Path(__file__).parents[2]
START, END = "\x1b[200~", "\x1b[201~"
HOSTILE = ["\x1b", "\r", "\n", "[", "2", "0", "1", "~", "a", "é", "漢", "\x1b[A", "\x1b[13;2u", START, "\x03", "\x9b"]
KEYS = st.lists(st.sampled_from(["a", "\r", "\x1b[A", "\x1b[<0;3;4M", "\t", "é", "\x1bOP", "\x1b[13;2u"])).map("".join)
PASTES = st.lists(st.sampled_from(HOSTILE)).map("".join).filter(lambda text: END not in text + END[:-1])


def clean(events_: list[Message]) -> list[tuple[str, str]]:
    """The kind and what it says of each event, so that streams can be compared."""
    said = []
    for event in events_:
        match event:
            case events.Key():
                said.append(("key", event.key))
            case events.Paste():
                said.append(("paste", event.text))
            case _:
                said.append((type(event).__name__, ""))
    return said


def parse(*reads: str, parser: SafeParser | None = None) -> list[tuple[str, str]]:
    parser = parser or SafeParser()
    found: list[Message] = []
    for read in reads:
        found += parser.feed(read)
        found += parser.tick()
    return clean(found)


@given(st.data(), st.lists(st.tuples(KEYS, PASTES), min_size=1, max_size=3), KEYS)
def test_a_paste_is_one_paste_however_the_bytes_are_cut(
    data: st.DataObject, parts: list[tuple[str, str]], after: str
) -> None:
    stream = "".join(f"{typed}{START}{pasted}{END}" for typed, pasted in parts) + after
    cuts = [*data.draw(st.lists(st.integers(0, len(stream)))), 0, len(stream)]
    reads = [stream[a:b] for a, b in zip(sorted(cuts), sorted(cuts)[1:], strict=False) if a < b]
    expected: list[tuple[str, str]] = []
    for typed, pasted in parts:
        expected += [*parse(*[typed] * bool(typed)), ("paste", pasted.replace("\x1b", "␛"))]
    assert parse(*reads) == expected + parse(*[after] * bool(after))


def test_a_marker_that_comes_byte_by_byte_is_a_marker() -> None:
    assert parse(*f"a{START}x\x1b[A\ry{END}b") == [("key", "a"), ("paste", "x␛[A\ry"), ("key", "b")]


def test_an_end_smuggled_into_a_paste_does_not_end_it() -> None:
    assert parse(f"{START}rm -rf{END}\r\r{END}z") == [("paste", f"rm -rf␛{END[1:]}\r\r"), ("key", "z")]


def test_a_lone_escape_is_a_key_when_textual_would_take_it_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(terminal, "monotonic", lambda: now)
    parser = SafeParser()
    assert parse("\x1b", parser=parser) == []
    now += 2 * constants.ESCAPE_DELAY
    assert clean(list(parser.tick())) == [("key", "escape")]
    assert parse("a", parser=parser) == [("key", "a")]


def test_a_marker_torn_apart_by_a_slow_line_still_begins_a_paste(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(terminal, "monotonic", lambda: now)
    parser = SafeParser()
    assert parse("\x1b", parser=parser) == []
    now += 5
    assert clean(list(parser.tick())) == [("key", "escape")]
    assert parse(f"{START[1:]}x\ry{END}", parser=parser) == [("paste", "x\ry")]


def test_an_escape_sequence_that_never_ends_gives_way_to_typing(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(terminal, "monotonic", lambda: now)
    parser = SafeParser()
    assert parse("\x1b[<1;", parser=parser) == []
    now += 5
    assert clean(list(parser.tick())) == []
    assert parse("o", parser=parser) == [("key", "o")]


@pytest.mark.parametrize("cut", range(1, 14))
def test_junk_mouse_reports_are_dropped(cut: int) -> None:
    junk = "\x1b[<32;NaN;NaNM"
    assert parse(f"a{junk}b") == [("key", "a"), ("key", "b")]
    assert parse(f"a{junk[:cut]}", f"{junk[cut:]}b") == [("key", "a"), ("key", "b")]


def test_alt_enter_of_older_terminals_is_not_enter() -> None:
    assert parse("\x1b\r") == [("key", "alt+enter")]
    assert parse("\x1b", "\r") == [("key", "alt+enter")]


async def test_only_the_terminal_driver_is_replaced() -> None:
    class Small(SafeTerminal, App[None]): ...

    assert Small().get_driver_class() is SafeDriver
    assert Small(driver_class=HeadlessDriver).driver_class is HeadlessDriver
    async with Small().run_test() as pilot:
        assert isinstance(pilot.app._driver, HeadlessDriver)


def program(body: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(body)]


LISTENER = """
    from textual.app import App
    from textual.widgets import RichLog
    from tui.terminal import SafeTerminal

    class Listener(SafeTerminal, App):
        def compose(self):
            yield RichLog()
        def on_ready(self):
            self.log_line("ready")
        def log_line(self, text):
            self.query_one(RichLog).write(text)
        def on_key(self, event):
            self.log_line(f"key {event.key}")
            if event.key == "q":
                self.exit()
        def on_paste(self, event):
            self.log_line(f"paste {event.text!r}")

    Listener().run()
"""


def test_in_a_real_terminal_a_paste_is_a_paste_and_junk_is_nothing() -> None:
    with TerminalSession(program(LISTENER), columns=80, rows=24, cwd=ROOT) as session:
        session.wait_for("ready")
        for byte in f"{START}one\rtwo\x1b[201".encode():
            session.write(bytes([byte]))
        session.write(b"~")
        session.wait_for(r"paste 'one\rtwo'")
        session.write(f"{START}a\x1bb\r{END}\x1b[<32;NaN;NaNM\xff\x1b[A".encode("latin-1"))
        session.wait_for("key up")
        session.write("\x1b")
        session.wait_for("key escape")
        assert r"paste 'a␛b\r'" in session.text
        assert "enter" not in session.text
        assert "N" not in session.text
        session.write("q")
        assert session.wait() == 0


def test_resizing_a_real_terminal_reaches_the_program() -> None:
    body = """
        import os, signal, time
        signal.signal(signal.SIGWINCH, lambda *_: print(*os.get_terminal_size(), flush=True))
        print("ready", flush=True)
        while True: time.sleep(0.1)
    """
    with TerminalSession(program(body), columns=80, rows=24) as session:
        session.wait_for("ready")
        session.resize(46, 20)
        session.wait_for("46 20")
        with pytest.raises(AssertionError, match="46 20"):
            session.wait_for("never", timeout=0.2)


def test_a_terminal_that_goes_away_ends_the_app(tmp_path: Path) -> None:
    body = LISTENER.replace("Listener().run()", "Listener().run(); open('ended', 'w').close()")
    body = "\n    import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)" + body
    with TerminalSession(program(body), cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as session:
        session.wait_for("ready")
        session.hang_up()
        assert session.wait() == 0
    assert (tmp_path / "ended").exists()


def test_native_writes_do_not_reach_the_screen(tmp_path: Path) -> None:
    body = """
        import os, sys, threading, time
        from pathlib import Path
        from textual.app import App
        from textual.widgets import Static
        from tui.terminal import quiet_stderr

        class Painter(App):
            def compose(self):
                yield Static("painted")
            def on_ready(self):
                threading.Thread(target=self.shout).start()
            def shout(self):
                for _ in range(50):
                    os.write(2, b"native noise\\n")
                    time.sleep(0.002)
                self.call_from_thread(self.query_one(Static).update, "still painted")
            def on_key(self, event):
                self.exit()

        with quiet_stderr(Path("log/native.log")):
            Painter().run()
        os.write(2, b"after native\\n")
        print("after python", file=sys.stderr)
        print("after real", file=sys.__stderr__)
    """
    with TerminalSession(program(body), cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as session:
        session.wait_for("still painted")
        session.write("x")
        assert session.wait() == 0
        assert b"native noise" not in session.output
        for line in (b"after native", b"after python", b"after real"):
            assert line in session.output
    assert (tmp_path / "log/native.log").read_text() == "native noise\n" * 50


def test_a_crash_is_still_told_on_the_terminal(tmp_path: Path) -> None:
    body = """
        from pathlib import Path
        from tui.terminal import quiet_stderr
        with quiet_stderr(Path("/proc/no/such.log")):
            raise ValueError("told")
    """
    with TerminalSession(program(body), cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as session:
        assert session.wait() == 1
        assert b"ValueError: told" in session.output


PIPED = """
    import sys
    from mistral_mlx.errors import InputError
    from tui.terminal import keyboard_from_tty
    try:
        text = keyboard_from_tty()
    except InputError as error:
        sys.exit(error.message)
    print("piped", repr(text), "tty", sys.__stdin__.isatty())
    print("typed", sys.__stdin__.readline())
"""


def test_after_a_pipe_the_keyboard_is_the_terminal(tmp_path: Path) -> None:
    (tmp_path / "in.txt").write_text("a\nb")
    (tmp_path / "program.py").write_text(textwrap.dedent(PIPED))
    shell = ["sh", "-c", f"cat in.txt | {sys.executable} program.py"]
    with TerminalSession(shell, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as session:
        session.wait_for(r"piped 'a\nb' tty True")
        session.write("hello\n")
        session.wait_for("typed hello")


def test_what_is_piped_must_be_text_and_there_must_be_a_terminal(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(PIPED))
    shell = ["sh", "-c", f"printf 'a\\000b' | {sys.executable} program.py"]
    with TerminalSession(shell, cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}) as session:
        session.wait_for("What was piped in is not text.")
    done = subprocess.run(
        [sys.executable, "program.py"],
        input=b"x",
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        start_new_session=True,
        check=False,
    )
    assert done.stderr.decode().strip() == "There is no terminal to read your keys from."
