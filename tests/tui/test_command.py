"""The command's doors: what `mistral-mlx chat` refuses, and what it hands to the chat it starts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from mistral_mlx import cli
from mistral_mlx.errors import InputError
from tests.test_architecture import run as run_python
from tests.test_cli import failed
from tui.start import Start

TOOLS = '''
import math
from math import hypot
SECRET = 3
def _hidden(x: int) -> int: return x
def area(radius: float) -> float:
    """The area of a circle."""
    return math.pi * radius**2
def name() -> str:
    return "circle"
'''


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CONFIG", "DATA", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal for output that can draw, and a keyboard."""
    monkeypatch.setattr("mistral_mlx.cli.chat._has_screen", lambda: True)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("tui.terminal.keyboard_from_tty", lambda: "")


@pytest.fixture
def started(terminal: None, monkeypatch: pytest.MonkeyPatch) -> list[Start]:
    """What the screens are started with."""
    starts: list[Start] = []

    def run(start: Start) -> int:
        starts.append(start)
        return 0

    app = ModuleType("tui.app")
    app.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tui.app", app)
    monkeypatch.setattr("tui.app", app, raising=False)
    return starts


def test_without_a_terminal_it_says_what_to_use(capsys: pytest.CaptureFixture[str]) -> None:
    err = failed(["chat", "-m", "demo"], capsys)
    assert "needs a terminal" in err
    assert "`mistral-mlx generate`" in err
    assert "--plain" in err


def test_a_pipe_behind_it_is_refused_as_well() -> None:
    argv = [sys.executable, "-m", "tui"]
    done = subprocess.run(argv, capture_output=True, input="Hi", text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr


def test_a_terminal_that_cannot_draw_gets_the_plain_chat(
    terminal: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    starts: list[Start] = []
    monkeypatch.setattr("tui.plain.run", lambda start, interruptible: starts.append(start) or 0)
    monkeypatch.setenv("TERM", "dumb")
    assert cli.main(["chat", "-m", "demo"]) == 0
    assert starts == [Start(model="demo", loading=starts[0].loading)]
    assert "cannot draw a screen" in capsys.readouterr().err


def test_the_options_reach_the_chat(started: list[Start], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tui.terminal.keyboard_from_tty", lambda: "piped in")
    argv = ["chat", "-m", "7b", "--system", "Be brief.", "-t", "0.5", "--seed", "3", "--max-tokens", "9"]
    assert cli.main([*argv, "--resume", "ab", "--theme", "nord", "--window", "4096", "--kv-bits", "8"]) == 0
    (start,) = started
    assert (start.model, start.system, start.resume, start.theme) == ("7b", "Be brief.", "ab", "nord")
    assert start.options == {"temperature": 0.5, "seed": 3, "max_tokens": 9}
    assert start.draft == "piped in"
    assert (start.loading["window"], start.loading["kv_bits"]) == (4096, 8)
    assert "progress" not in start.loading
    assert cli.main(["chat", "--continue"]) == 0
    assert (started[1].model, started[1].continue_newest, started[1].options) == (None, True, {})


def test_the_public_functions_of_a_file_become_tools(started: list[Start], tmp_path: Path) -> None:
    (tmp_path / "tools.py").write_text(TOOLS)
    assert cli.main(["chat", "--tools", str(tmp_path / "tools.py")]) == 0
    tools = {tool.__name__: tool for tool in started[0].tools}
    assert list(tools) == ["area", "name"]
    assert tools["area"](1.0) == pytest.approx(3.14159, abs=1e-4)
    assert not (tmp_path / "__pycache__").exists()


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (None, "cannot be read: No such file"),
        ("def f(:\n", "cannot be run: SyntaxError"),
        ("1 / 0", "cannot be run: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "cannot be run: SystemExit: 3"),
        ("from math import pi\n_f = lambda: 1\n", "defines no function"),
        ("def f(x): return x\n", "f does not say what x is"),
        ("async def f() -> int: return 1\n", "is asynchronous"),
    ],
)
def test_a_file_of_tools_that_cannot_be_used(
    started: list[Start], source: str | None, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "tools.py"
    if source is not None:
        path.write_text(source)
    err = failed(["chat", "--tools", str(path)], capsys)
    assert says in err
    assert str(path) in err
    assert not started


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--theme", "pink"], "There is no theme 'pink'"),
        (["--plain", "--theme", "nord"], "--theme has no place"),
        (["-t", "nan"], "temperature is nan"),
        (["--max-tokens", "0"], "max_tokens is 0"),
        (["--plain", "--resume", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_drawn(
    started: list[Start], argv: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in failed(["chat", *argv], capsys)
    assert not started


def test_a_keyboard_that_cannot_be_had(
    started: list[Start], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none() -> str:
        raise InputError("There is no terminal to read your keys from.", "Use `mistral-mlx generate`.")

    monkeypatch.setattr("tui.terminal.keyboard_from_tty", none)
    assert "no terminal to read your keys from" in failed(["chat"], capsys)


def test_a_broken_file_of_settings_stops_nothing(tmp_path: Path) -> None:
    file = tmp_path / "config" / "mistral-mlx" / "settings.toml"
    file.parent.mkdir(parents=True)
    file.write_text("model = \n")
    argv = [sys.executable, "-m", "mistral_mlx", "chat", "--plain"]
    done = subprocess.run(argv, capture_output=True, input="/quit\n", text=True, check=False, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    assert f"Note: {file} is not valid TOML, so the usual settings count" in done.stdout
    assert "Goodbye." in done.stdout


def test_help_needs_no_screen_and_no_model() -> None:
    code = "import sys\nfrom mistral_mlx.cli import main\ntry: main(['chat', '--help'])\nexcept SystemExit: pass\n"
    code += "print('loaded:', *[m for m in ('mlx', 'textual', 'tui', 'platformdirs') if m in sys.modules])"
    out = run_python(code)
    assert out.splitlines()[-1] == "loaded:"
    for option in ("--continue", "--resume", "--plain", "--tools", "--theme"):
        assert option in out
