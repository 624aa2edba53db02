"""What is said of a copy is what is known of it."""

from __future__ import annotations

import base64
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from textual.app import App

from tui.clipboard import copy


class Terminal:
    """Stands where the driver does, and keeps what is written to the terminal."""

    def __init__(self) -> None:
        self.written = ""

    def write(self, data: str) -> None:
        self.written += data


@pytest.fixture
def app() -> Iterator[App[Any]]:
    app: App[Any] = App()
    app._driver = Terminal()  # type: ignore[assignment]
    yield app
    app._driver = None


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with no clipboard command but those a test puts into the folder."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", f"{tmp_path}")
    for name in ("TMUX", "DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def command(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\nPATH=/bin:/usr/bin\n{script}\n")
    path.chmod(0o755)


def sequence(text: str) -> str:
    return f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\a"


async def test_the_terminal_alone_does_not_say(app: App[Any]) -> None:
    assert await copy(app, "héllo") == "Sent 5 characters to the terminal, which does not say whether it took them."
    assert app._driver.written == sequence("héllo")  # type: ignore[union-attr]
    assert app.clipboard == "héllo"


async def test_a_copy_read_back_is_a_copy(app: App[Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    command(desk, "pbcopy", f"cat > {desk}/board")
    command(desk, "pbpaste", f"cat {desk}/board")
    assert await copy(app, "héllo\n") == "Copied 6 characters."
    assert (desk / "board").read_text() == "héllo\n"
    assert app._driver.written == sequence("héllo\n")  # type: ignore[union-attr]


async def test_a_copy_that_cannot_be_read_back_names_who_took_it(
    app: App[Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    command(desk, "wl-copy", f"cat > {desk}/board")
    assert await copy(app, "x") == "Copied 1 character with wl-copy."


async def test_a_command_that_lies_is_not_believed(app: App[Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    command(desk, "wl-copy", "cat > /dev/null")
    command(desk, "wl-paste", "echo something else")
    assert (await copy(app, "x")).startswith("Sent 1 character to the terminal")


async def test_x11_is_used_only_with_a_display(app: App[Any], desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(desk, "xclip", f'[ "$3" = -o ] && exec cat {desk}/board\ncat > {desk}/board')
    assert (await copy(app, "x")).startswith("Sent")
    monkeypatch.setenv("DISPLAY", ":0")
    assert await copy(app, "x") == "Copied 1 character."


async def test_a_failing_command_makes_way_for_the_next(
    app: App[Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    command(desk, "xclip", "exit 1")
    command(desk, "xsel", f'[ "$2" = --output ] && exec cat {desk}/board\ncat > {desk}/board')
    assert await copy(app, "abc") == "Copied 3 characters."


async def test_the_clipboard_of_another_machine_is_left_alone(
    app: App[Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.2 5000 10.0.0.1 22")
    command(desk, "pbcopy", f"cat > {desk}/board")
    command(desk, "pbpaste", f"cat {desk}/board")
    assert (await copy(app, "x")).startswith("Sent")
    assert not (desk / "board").exists()


async def test_tmux_is_asked_in_both_ways(app: App[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMUX", "/tmp/tmux-0/default,1,0")
    await copy(app, "x")
    wrapped = "\x1bPtmux;" + sequence("x").replace("\x1b", "\x1b\x1b") + "\x1b\\"
    assert app._driver.written == sequence("x") + wrapped  # type: ignore[union-attr]


async def test_a_long_text_is_not_sent_to_the_terminal(
    app: App[Any], desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "é" * 50_001
    assert (await copy(app, text)).startswith("Not copied: 50,001 characters are too many for the terminal.")
    assert app._driver.written == ""  # type: ignore[union-attr]
    assert app.clipboard == text
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    command(desk, "wl-copy", f"cat > {desk}/board")
    command(desk, "wl-paste", f"cat {desk}/board")
    assert await copy(app, text) == "Copied 50,001 characters."
