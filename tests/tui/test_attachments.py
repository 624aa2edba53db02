"""Files named in a prompt: which are sent, how, and what is said of those that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from mistral_mlx.errors import InputError
from tui import attachments
from tui.attachments import Attached, expand, list_files, mention


def test_a_named_file_is_written_out_below_the_prompt(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src/add.py").write_text("def add(a, b):\n    return a + b")
    expanded = expand("Explain @src/add.py.", tmp_path)
    assert expanded.text == ("Explain @src/add.py.\n\nsrc/add.py:\n```py\ndef add(a, b):\n    return a + b\n```")
    assert expanded.attached == [Attached(tmp_path / "src/add.py", 31)]


def test_the_fence_is_longer_than_any_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("````\ncode\n````\n")
    assert "\n`````md\n````\ncode\n````\n`````" in expand("@a.md", tmp_path).text


@pytest.mark.parametrize(
    "text", ["me@notes.txt", "@property", "@app.route('/')", "@gone.txt", "@", "a @ b", "@src", "x@", "@" + "y" * 5000]
)
def test_what_names_no_file_stays_as_it_is(text: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "src").mkdir()
    assert expand(text, tmp_path) == (text, [])


@pytest.mark.parametrize(
    "text", ["(@notes.txt)", "see @notes.txt, please", '"@notes.txt"', "@notes.txt?!", "\n@notes.txt"]
)
def test_punctuation_after_a_name_is_not_part_of_it(text: str, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("notes")
    assert [item.path.name for item in expand(text, tmp_path).attached] == ["notes.txt"]


def test_paths_from_the_root_and_from_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "notes.txt").write_text("notes")
    assert len(expand(f"@{tmp_path}/notes.txt", Path("/")).attached) == 1
    assert len(expand("@~/notes.txt", Path("/")).attached) == 1
    assert expand("@~nobody-of-that-name/notes.txt", tmp_path).attached == []


def test_a_name_with_spaces_is_quoted(tmp_path: Path) -> None:
    (tmp_path / "my notes.txt").write_text("notes")
    assert mention("my notes.txt") == '@"my notes.txt"'
    assert mention("notes.txt") == "@notes.txt"
    assert len(expand(mention("my notes.txt"), tmp_path).attached) == 1


def test_a_file_named_twice_is_sent_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert expand("@a.txt and @a.txt", tmp_path).text.count("a.txt:\n") == 1


def refusal(text: str, folder: Path, *chosen: str) -> str:
    with pytest.raises(InputError) as caught:
        expand(text, folder, chosen)
    return caught.value.message


def test_a_chosen_file_that_has_gone_is_told(tmp_path: Path) -> None:
    assert refusal("@gone.txt", tmp_path, "gone.txt") == "There is no file gone.txt."


def test_binary_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "zero").write_bytes(b"a\0b")
    (tmp_path / "latin").write_bytes(b"caf\xe9")
    assert refusal("@zero", tmp_path) == "zero is not a text file."
    assert refusal("@latin", tmp_path) == "latin is not a text file."


def test_a_file_over_one_megabyte_is_refused(tmp_path: Path) -> None:
    (tmp_path / "most.txt").write_bytes(b"x" * 1_000_000)
    (tmp_path / "more.txt").write_bytes(b"x" * 2_500_000)
    assert expand("@most.txt", tmp_path).attached[0].bytes == 1_000_000
    assert refusal("@more.txt", tmp_path) == "more.txt is too large: 2.5 MB, where 1 MB is the most."


def test_a_folder_is_refused_where_it_can_only_be_one(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    assert refusal("@src/", tmp_path) == "src/ is a folder."


def test_a_file_that_may_not_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / "secret.txt").write_text("x")
    monkeypatch.setattr(Path, "open", refuse)
    assert refusal("@secret.txt", tmp_path) == "secret.txt cannot be read: permission denied."


def test_a_device_is_no_file(tmp_path: Path) -> None:
    assert expand("@/dev/zero", tmp_path).attached == []


def test_files_are_listed_nearest_first_without_the_hidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("z.txt", "src/a.py", ".git/config", "node_modules/x.js", ".venv/y.py", "bad\x1b[2Jname", ".hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("12345")
    assert list_files(tmp_path) == [Attached(Path("z.txt"), 5), Attached(Path("src/a.py"), 5)]
    monkeypatch.setattr(attachments, "MOST_FILES", 1)
    assert len(list_files(tmp_path)) == 1
    assert list_files(tmp_path / "gone") == []


def test_a_link_to_a_folder_is_not_walked(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "a.txt").write_text("")
    assert [str(item.path) for item in list_files(tmp_path)] == ["a.txt"]
