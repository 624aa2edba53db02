"""Files in a prompt: which there are to name after `@`, and what is sent where one was named."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from mistral_mlx.errors import InputError

LARGEST = 1_000_000  # bytes of one file
MOST_FILES = 5_000
_SKIPPED = {"node_modules", "__pycache__"}

# Not after a letter (an e-mail address) nor inside a word: at the start, or after a space, a bracket or a quote.
MENTION = re.compile(r"""(?<![^\s(\[{"'])@(?:"(?P<quoted>[^"\n]+)"|(?P<plain>[^\s"]+))""")
_PUNCTUATION = ".,;:!?)]}'"


class Attached(NamedTuple):
    """A file that goes with a prompt, and its length."""

    path: Path
    bytes: int


class Expanded(NamedTuple):
    """A prompt with its files written out, and which files those are."""

    text: str
    attached: list[Attached]


def expand(text: str, folder: Path, chosen: Collection[str] = ()) -> Expanded:
    """The prompt with each file that it names by `@path` written out below it, in a fenced block under its name.

    A path is taken from `folder`, or as it stands when it begins with `/` or `~`. What names no file stays text (an
    address, a decorator), unless it is among the `chosen`, which were picked as files, or can be nothing but a path:
    that there is none is told then. A file that is written out already, in a message that is sent again, stays so.

    Raises InputError for a file that is missing, too large, not text, a folder, or that may not be read.
    """
    attached: dict[Path, Attached] = {}
    blocks = []
    for name in _named(text, folder, chosen):
        path = _path(name, folder)
        if path not in attached and not re.search(rf"^{re.escape(name)}:\n```", text, re.MULTILINE):
            content = _read(path, name)
            attached[path] = Attached(path, len(content.encode()))
            blocks.append(_block(name, path, content))
    return Expanded("\n\n".join([text, *blocks]), list(attached.values()))


def mention(name: str) -> str:
    """How a prompt names the file: with quotes where its name has spaces or ends like a sentence."""
    return f'@"{name}"' if re.search(r"\s", name) or name[-1] in _PUNCTUATION else f"@{name}"


def list_files(folder: Path) -> list[Attached]:
    """The files below `folder` that can be named, nearest first, at most 5,000; hidden ones and packages are left out.

    Paths are relative to `folder`. It reads the disk: call it on a thread.
    """
    found: list[Attached] = []
    folders = [""]
    for below in folders:  # which grows meanwhile: breadth first, so that a deep tree cannot crowd out the top
        try:
            entries = sorted(os.scandir(folder / below), key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            # A name that a terminal would not print as it is could send it commands.
            if entry.name.startswith(".") or entry.name in _SKIPPED or not entry.name.isprintable():
                continue
            path = os.path.join(below, entry.name)  # noqa: PTH118  (thousands of them: Path is slow)
            try:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_file():
                    found.append(Attached(Path(path), entry.stat().st_size))
            except OSError:
                continue
            if len(found) == MOST_FILES:
                return found
    return found


def _named(text: str, folder: Path, chosen: Collection[str]) -> Iterator[str]:
    for match in MENTION.finditer(text):
        name = match["quoted"] or match["plain"]
        while True:
            path = _path(name, folder)
            # A folder only where it cannot be anything else: `@app` may well be a decorator beside the folder "app".
            gone = name.startswith(_SURE) and not _is(path, Path.exists)
            if name in chosen or gone or (name.endswith("/") and _is(path, Path.is_dir)) or _is(path, Path.is_file):
                yield name
                break
            if match["quoted"] or len(name) == 1 or name[-1] not in _PUNCTUATION:
                break
            name = name[:-1]


def _path(name: str, folder: Path) -> Path:
    # Not Path.expanduser, which raises for a user who does not exist.
    return folder / os.path.expanduser(name)  # noqa: PTH111


def _is(path: Path, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(path)
    except (OSError, ValueError):  # a name too long for the disk, a folder that may not be entered
        return False


# With these begins what can be nothing but a path.
_SURE = ("/", "~/", "./", "../")


def _read(path: Path, name: str) -> str:
    shown = name if name.isprintable() else repr(name)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise InputError(f"There is no file {shown}.", f"Take @{shown} out, or put the file there.") from None
    except IsADirectoryError:
        raise InputError(f"{shown} is a folder.", "Name a file in it.") from None
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {(error.strerror or str(error)).lower()}.") from None
    if len(content) > LARGEST:
        size = path.stat().st_size / 1e6
        raise InputError(
            f"{shown} is too large: {size:.1f} MB, where 1 MB is the most.", "Paste the part that matters."
        )
    try:
        text = content.decode()
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise InputError(f"{shown} is not a text file.", "Only text in UTF-8 can be attached.")
    return text


def _block(name: str, path: Path, content: str) -> str:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`{3,}", content)), default=0))
    end = "" if content.endswith("\n") or not content else "\n"
    return f"{name}:\n{fence}{path.suffix[1:] if path.suffix[1:].isalnum() else ''}\n{content}{end}{fence}"
