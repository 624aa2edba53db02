"""Settings: a broken line costs that line only, and saving leaves alone what the reader wrote."""

from __future__ import annotations

import os
import stat
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mistral_mlx as mm
from tests.test_architecture import run
from tui import settings
from tui.settings import SAMPLING, Settings, SettingsError, check_sampling, parse_option, paths, read, save

WRITTEN = """\
# mine
theme = "nord"  # blue
model = "7b"

[sampling]
# warm
temperature = 0.7
top_k = 40

[keys]
new = "ctrl+n"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "settings.toml"
    path.write_text(WRITTEN)
    return path


def test_what_the_file_says_counts(file: Path) -> None:
    expected = Settings(model="7b", theme="nord", sampling={"temperature": 0.7, "top_k": 40}, keys={"new": "ctrl+n"})
    assert read(file) == (expected, [])


def test_no_file_is_no_problem(tmp_path: Path) -> None:
    assert read(tmp_path / "none.toml") == (Settings(), [])


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("theme = 3", "theme is 3; it must be text"),
        ("colour = 'red'", "no setting colour (it is 'red'); known here: model, system, theme"),
        ("sidebar = 'no'", "sidebar is 'no'; it must be true or false"),
        ("bell = true", "bell is True; it must be a number"),
        ("sampling = 3", "sampling is 3; it must be a table"),
        ("sampling.heat = 1", "no setting sampling.heat (it is 1); known here: temperature"),
        ("sampling.top_k = 0.5", "sampling.top_k is 0.5; it must be a whole number"),
        ("keys.new = ['a', 'b']", "keys.new is ['a', 'b']; it must be text"),
    ],
)
def test_a_line_that_cannot_be_used_is_told_and_the_rest_counts(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(f"model = 'demo'\n{line}\n")
    found, problems = read(path)
    assert found == Settings(model="demo")
    assert len(problems) == 1
    assert says in problems[0]
    assert problems[0].startswith("settings.toml: ")
    assert "\n" not in problems[0]


@pytest.mark.parametrize("content", [b"model = \n", b"model = 'caf\xe9'", b"a = 1\na = 2"])
def test_a_broken_file_is_told_and_never_written_over(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "settings.toml"
    path.write_bytes(content)
    found, problems = read(path)
    assert found == Settings()
    assert len(problems) == 1
    assert "is not valid TOML" in problems[0]
    with pytest.raises(SettingsError, match="is not valid TOML"):
        save(Settings(model="7b"), Settings(), path)
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert "cannot be read (Is a directory)" in read(tmp_path)[1][0]


def test_saving_changes_the_lines_that_differ_and_no_other(file: Path) -> None:
    before = read(file)[0]
    after = replace(
        before,
        theme="mistral-light",
        mouse=False,
        sampling={"temperature": 0.2, "seed": 7},
        keys={**before.keys, "quit": "ctrl+q"},
    )
    save(after, before, file)
    assert read(file) == (after, [])
    text = file.read_text()
    assert text.startswith('# mine\ntheme = "mistral-light"  # blue\nmodel = "7b"\n')
    assert "# warm\ntemperature = 0.2\n" in text
    assert "top_k" not in text
    assert "sidebar" not in text


def test_what_was_not_understood_or_was_changed_meanwhile_stays(file: Path) -> None:
    before = read(file)[0]
    file.write_text(WRITTEN.replace('"7b"', '"demo"') + "\n[later]\nx = 1\n")
    save(replace(before, system="Be brief."), before, file)
    table = tomllib.loads(file.read_text())
    assert (table["model"], table["later"], table["system"]) == ("demo", {"x": 1}, "Be brief.")


def test_the_first_save_makes_folder_and_file(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "settings.toml"
    after = Settings(system='Say "yes"\nor no.', sampling={"top_p": 0.9})
    save(after, Settings(), path)
    assert read(path) == (after, [])
    assert set(tomllib.loads(path.read_text())) == {"system", "sampling"}


def test_a_link_and_the_files_mode_stay(file: Path, tmp_path: Path) -> None:
    file.chmod(0o644)
    link = tmp_path / "link.toml"
    link.symlink_to(file)
    save(Settings(mouse=False), Settings(), link)
    assert link.is_symlink()
    assert read(file)[0].mouse is False
    assert stat.S_IMODE(file.stat().st_mode) == 0o644


def test_a_disk_that_takes_nothing_is_one_sentence_and_loses_nothing(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SettingsError, match=r"cannot be written to .*settings.toml: No space left on device\."):
        save(Settings(model="x"), Settings(), file)
    assert file.read_text() == WRITTEN
    assert [path.name for path in file.parent.iterdir()] == ["settings.toml"]


def test_options_are_those_of_the_engine_and_checked_by_it() -> None:
    assert set(SAMPLING) <= set(mm.SamplingParams.names())
    usable, problems = check_sampling({"temperature": -1, "top_p": 0.5, "seed": 3})
    assert usable == {"top_p": 0.5, "seed": 3}
    assert problems == ["temperature is -1. It must be a finite number from 0."]


def test_an_option_is_read_as_it_is_typed() -> None:
    assert parse_option("temperature", "0.7") == 0.7
    assert parse_option("top_k", "40") == 40
    for name, text, says in (
        ("heat", "1", "There is no option 'heat'"),
        ("top_k", "0.5", "top_k is '0.5'"),
        ("top_p", "2", "top_p is 2"),
    ):
        with pytest.raises(mm.InputError, match=says):
            parse_option(name, text)


def test_the_files_follow_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    assert paths().settings == tmp_path / "config" / "mistral-mlx" / "settings.toml"
    assert paths().database == tmp_path / "data" / "mistral-mlx" / "conversations.db"
    assert not (tmp_path / "config").exists()


def test_reading_settings_loads_nothing_slow() -> None:
    code = (
        f"import sys\nfrom pathlib import Path\nfrom tui import settings\nsettings.read(Path({settings.__file__!r}))\n"
    )
    code += "print('loaded:', *[m for m in ('mlx', 'numpy', 'textual', 'tomlkit') if m in sys.modules])"
    assert run(code).strip() == "loaded:"
