"""The chat in a real terminal: the demo model in tmux, and a model with a script in a terminal of our own."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from benchmarks.terminal import HOSTILE, commands
from tests.tui.terminal_session import TerminalSession
from tui.conversation import Conversation
from tui.store import Store

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
READY = "memory "  # the line below tells the memory, once a model is there
# What stands below an answer that is over.
ENDED = "· first "
PROGRAM = '''
import sys, time
from pathlib import Path
from tests.tui.fake_llm import FakeLLM, loader
from tui import app
from tui.engine import Engine
from tui.start import Start

answer, said, tokens_per_s = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])

class Told(FakeLLM):
    """Writes down each piece before it is handed out."""

    def run(self, *given):
        with said.open("a", buffering=1, encoding="utf-8", newline="") as file:
            for chunk in super().run(*given):
                time.sleep(1 / tokens_per_s)
                file.write(chunk.text)
                file.flush()
                yield chunk

class Chat(app.ChatApp):
    CSS_PATH = Path(app.__file__).with_name("app.tcss")

    def __init__(self, *given, **options):
        text = answer.read_text(encoding="utf-8")
        load = loader(Told(lambda _: text))
        super().__init__(*given, engine=lambda wake: Engine(wake, load=load), **options)

app.ChatApp = Chat
sys.exit(app.run(Start(model="fake")))
'''


def home(folder: Path) -> dict[str, str]:
    """Where a chat keeps its files, by variables."""
    return {f"XDG_{name}_HOME": str(folder / name.lower()) for name in ("CONFIG", "DATA", "STATE")}


def kept(folder: Path) -> list[Conversation]:
    """The conversations on disk."""
    store = Store(folder / "data" / "mistral-mlx" / "conversations.db")
    conversations = [store.load(row.id) for row in store.listing()]
    store.close()
    return conversations


class Tmux:
    """A tmux server with one pane that the program owns."""

    def __init__(self, folder: Path) -> None:
        self._socket = f"chat-{folder.name}-{time.monotonic_ns()}"
        settings = {**home(folder), "COLORTERM": "truecolor", "PYTHONPATH": str(ROOT)}
        self._env = [part for name, value in settings.items() for part in ("-e", f"{name}={value}")]
        self._folder = folder
        # The server hands its environment on, and the size of this terminal is not that of the pane.
        inherited = {name: value for name, value in os.environ.items() if name not in ("TMUX", "COLUMNS", "LINES")}
        self._inherited = {**inherited, "LANG": "C.UTF-8"}

    def _run(self, *arguments: str) -> str:
        command = ["tmux", "-L", self._socket, "-f", "/dev/null", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=self._inherited).stdout

    def start(self, *arguments: str) -> None:
        """Begin the chat, in a new pane or where the last one ended."""
        command = [*self._env, "-c", str(self._folder), sys.executable, "-m", "tui", *arguments]
        try:
            self._run("has-session")
        except subprocess.CalledProcessError:
            self._run("new-session", "-d", "-x", "140", "-y", "40", "sleep 600")
            self._run("set-option", "-g", "remain-on-exit", "on")
        self._run("respawn-pane", "-k", *command)

    def press(self, *keys: str) -> None:
        """Keys by tmux's names."""
        self._run("send-keys", *keys)

    def type(self, text: str) -> None:
        """Text, as it stands."""
        self._run("send-keys", "-l", text)

    @property
    def screen(self) -> str:
        """What the pane shows."""
        return self._run("capture-pane", "-p")

    def until(self, wanted: str | Callable[[str], object], timeout: float = 30.0) -> str:
        """Wait for a text on the screen, or for what a function of it says; returns the screen."""
        give_up = time.monotonic() + timeout
        while True:
            screen = self.screen
            if wanted in screen if isinstance(wanted, str) else wanted(screen):
                return screen
            assert time.monotonic() < give_up, f"{wanted!r} did not come:\n{screen}"
            time.sleep(0.1)

    def say(self, text: str) -> None:
        """Type a message, see it stand in the prompt, and send it."""
        self.type(text)
        self.until(lambda screen: text in screen.splitlines()[-3])
        self.press("Enter")

    def close(self) -> None:
        """End the server."""
        subprocess.run(["tmux", "-L", self._socket, "kill-server"], capture_output=True, check=False)


@pytest.fixture
def tmux(tmp_path: Path) -> Iterator[Tmux]:
    if shutil.which("tmux") is None:
        pytest.skip("tmux is not installed")
    server = Tmux(tmp_path)
    yield server
    server.close()


def last_answer(screen: str) -> str:
    """What stands below the last answer's title, as far as it is there."""
    lines = screen[: screen.rfind("╭")].splitlines()
    titled = [(i, line.index("Assistant")) for i, line in enumerate(lines) if "Assistant" in line]
    return "".join(line[titled[-1][1] :].strip() for line in lines[titled[-1][0] + 1 : -1]) if titled else ""


def test_a_conversation_with_the_demo_model(tmux: Tmux, tmp_path: Path) -> None:
    tmux.start("-m", "demo", "--max-tokens", "12", "-t", "0.7")
    tmux.until(READY)
    tmux.say("Name a colour.")
    tmux.until(ENDED)

    # an answer that is stopped in the middle
    tmux.say("/set max_tokens 500")
    tmux.until(lambda screen: "/set" not in screen)
    tmux.say("Tell me a long story.")
    tmux.until(lambda screen: screen.count("Assistant") == 2 and len(last_answer(screen)) > 9)
    tmux.press("Escape")
    tmux.until("stopped")

    # the question is changed, and answered again
    tmux.say("/set max_tokens 8")
    tmux.until(lambda screen: "/set" not in screen)
    time.sleep(1)  # the first press is not to be taken for the one that stopped
    tmux.press("Escape", "Escape")
    tmux.until("changing a message of yours")
    tmux.type(" Please.")
    tmux.until(lambda screen: "story. Please." in screen)
    tmux.press("Enter")
    tmux.until(lambda screen: "stopped" not in screen and screen.count(ENDED) == 2)
    assert "2/2" in tmux.screen

    # the answer is made again
    tmux.press("Tab")
    tmux.press("r")
    tmux.until(lambda screen: screen.count("2/2") == 2 and screen.count(ENDED) == 2)

    tmux.press("C-c", "C-c")
    screen = tmux.until("chat --resume")
    found = re.search(r"chat --resume (\w+)", screen)
    assert found
    [conversation] = kept(tmp_path)
    assert conversation.id == found[1]
    assert len(conversation.turns) == 7
    stopped = [turn for turn in conversation.turns.values() if turn.finish == "cancelled"]
    assert len(stopped) == 1
    assert stopped[0].text.strip()

    for arguments in (["--continue"], ["--resume", found[1][:6]]):
        tmux.start(*arguments)
        screen = tmux.until(lambda screen: "Please." in screen and READY in screen)
        assert "2/2" in screen
        assert "demo" in screen.splitlines()[0]
        tmux.say("/quit")
        tmux.until("chat --resume")


class Chat(TerminalSession):
    """The chat with a model that says what is in a file."""

    def __init__(self, folder: Path, answer: str, tokens_per_s: float, more: Sequence[str] = ()) -> None:
        self.said = folder / "said.txt"
        (folder / "answer.md").write_text(answer, encoding="utf-8")
        (folder / "program.py").write_text(PROGRAM, encoding="utf-8")
        command = [sys.executable, str(folder / "program.py"), str(folder / "answer.md"), str(self.said)]
        super().__init__(
            [*command, str(tokens_per_s), *more], env={**home(folder), "PYTHONPATH": str(ROOT)}, timeout=60
        )
        self.wait_for(READY)

    def say(self, text: str) -> None:
        """Send a message."""
        self.write(text)
        self.wait_for(lambda _: text in self.text.splitlines()[-3])
        self.write("\r")

    def leave(self) -> None:
        """^C twice; the program must end well."""
        self.write("\x03")
        self.wait_for("again to leave")
        self.write("\x03")
        assert self.wait() == 0
        assert b"Traceback" not in self.output


def test_a_hundred_sizes_while_an_answer_comes(tmp_path: Path) -> None:
    chance = random.Random(1)
    answer = (
        "".join(f"- item **{n}** 字 of a list\n" for n in range(150))
        + "\n| a | b |\n|---|---|\n| one | two |\n\nthe end"
    )
    with Chat(tmp_path, answer, 400) as chat:
        chat.say("Go on.")
        for _ in range(100):
            chat.resize(chance.randint(8, 200), chance.randint(4, 60))
            time.sleep(0.02)
        chat.resize(100, 30)
        chat.wait_for("/s · first")
        chat.wait_for("the end")
        rows = chat.text.splitlines()
        assert rows[0].startswith(" fake")
        assert rows[29].rstrip().endswith("F1 help")
        assert any("149 字 of a list" in row for row in rows)
        chat.leave()
    [conversation] = kept(tmp_path)
    assert [turn.text for turn in conversation.path()] == ["Go on.", answer]


def test_no_content_commands_the_terminal_and_no_paste_is_sent(tmp_path: Path) -> None:
    blocks = (HOSTILE, f"```\n{HOSTILE}\n```", f"- {HOSTILE}", f"| {HOSTILE} | b |\n|---|---|")
    answer = "\n\n".join(["שלום עולם, مرحبا.", *blocks, "the end"])
    with Chat(tmp_path, answer, 400) as chat:
        chat.write(f"\x1b[200~a paste {HOSTILE[:30]}\r\n{HOSTILE}\r\r\x1b[27u\x1b\rits end\x1b[201~")
        chat.wait_for("its end")
        time.sleep(0.5)
        assert not chat.said.exists()
        chat.write("\r")
        chat.wait_for("/s · first")
        chat.wait_for("the end")
        chat.leave()
        assert commands(chat.output) == set()
    [conversation] = kept(tmp_path)
    asked, answered = conversation.path()
    assert asked.text.startswith("a paste")
    assert asked.text.endswith("its end")
    assert answered.text == answer


def test_what_is_killed_in_the_middle_of_an_answer_loses_less_than_a_second(tmp_path: Path) -> None:
    with Chat(tmp_path, "".join(f"word {n} and " for n in range(2000)), 50) as chat:
        chat.say("Go on.")
        chat.wait_for("word 20 and")
        for _ in range(3):
            time.sleep(0.37)
        chat.process.kill()
        chat.process.wait()
    said = chat.said.read_text(encoding="utf-8")
    [conversation] = kept(tmp_path)
    asked, answered = conversation.path()
    assert (asked.text, answered.finish) == ("Go on.", "interrupted")
    assert said.startswith(answered.text)
    tokens = (len(said) - len(answered.text)) / 3
    assert tokens <= 50
    assert len(answered.tokens) == len(answered.text) / 3


def test_two_windows_on_one_database(tmp_path: Path) -> None:
    with Chat(tmp_path, "One says this. " * 60, 200) as one, Chat(tmp_path, "One says this. " * 60, 200) as two:
        one.say("The first asks.")
        two.say("The second asks.")
        for chat in (one, two):
            chat.wait_for("/s · first")
        one.say("And again.")
        one.wait_for(lambda chat: chat.text.count("/s · first") == 2)
        for chat in (one, two):
            assert "not saved" not in chat.text
            chat.leave()
    said = {tuple(turn.text[:9] for turn in conversation.path()) for conversation in kept(tmp_path)}
    assert said == {("The first", "One says ", "And again", "One says "), ("The secon", "One says ")}
    assert {turn.finish for one in kept(tmp_path) for turn in one.turns.values() if turn.role == "assistant"} == {
        "stop"
    }
