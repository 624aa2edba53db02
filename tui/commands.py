"""Everything that can be asked for: one table that the keys, the slash commands, the palette and the help read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from textual.binding import Binding

Where = Literal["anywhere", "transcript"]


@dataclass(frozen=True)
class Command:
    """One thing that can be asked for.

    Attributes:
        name: what follows the slash; the action of the app is called so too.
        help: what it does, in a few words.
        keys: keys that do it, as Textual names them, with commas.
        where: letters work where nothing is written: in the transcript.
        argument: what may follow the name, as it is shown.
        slash: whether it is offered in the composer.
    """

    name: str
    help: str
    keys: str = ""
    where: Where = "anywhere"
    argument: str = ""
    slash: bool = True

    @property
    def shown_keys(self) -> str:
        """The keys as they are read."""
        return ", ".join(shown_key(key) for key in self.keys.split(",")) if self.keys else ""

    @property
    def action(self) -> str:
        """The app's action."""
        return f"command('{self.name}')"


COMMANDS = (
    Command("new", "begin a new conversation", "ctrl+n"),
    Command("chats", "list the conversations", "ctrl+l"),
    Command("search", "search all conversations", argument="WORDS"),
    Command("rename", "give this conversation a title", argument="TITLE"),
    Command("pin", "keep this conversation at the top, or let it go"),
    Command("delete", "delete this conversation; /undo brings it back", "d", "transcript"),
    Command("undo", "bring back what was deleted last", "u", "transcript"),
    Command("models", "choose or fetch a model", "ctrl+o", argument="NAME"),
    Command("settings", "system prompt, sampling, theme", "f2"),
    Command("system", "what the model is told before anything else", argument="TEXT"),
    Command("set", "one sampling option of this conversation", argument="NAME VALUE"),
    Command("theme", "change the colours", argument="NAME"),
    Command("stop", "stop the answer and keep what was said", "escape", slash=False),
    Command("edit", "change a message of yours and send it again", "e", "transcript"),
    Command("regenerate", "answer again, beside the former answer", "r", "transcript", "NAME=VALUE…"),
    Command("vary", "answer again with other settings", "R", "transcript", slash=False),
    Command("continue", "go on with an answer where it ended", "full_stop", "transcript"),
    Command("compare", "several answers side by side", "v", "transcript", "2, or temperature=0,0.7,1"),
    Command("older", "the answer or message before this one in its place", "left_square_bracket", "transcript"),
    Command("newer", "the one after it", "right_square_bracket", "transcript"),
    Command("tree", "all branches of this conversation", "t", "transcript"),
    Command("tokens", "how sure the model was of each token; fork at one", "p", "transcript"),
    Command("receipt", "how an answer was made", "x", "transcript"),
    Command("replay", "make an answer again and compare it token by token", "X", "transcript"),
    Command("copy", "copy a message as it was written", "y", "transcript"),
    Command("code", "copy a code block", "c", "transcript", "NUMBER"),
    Command("think", "show or fold what the model thought", "ctrl+t"),
    Command("find", "find text in this conversation", "slash", "transcript", "TEXT"),
    Command("export", "write this conversation to a file: .md or .json", argument="FILE"),
    Command("import", "read a conversation from a .json file", argument="FILE"),
    Command("perf", "what the screen costs"),
    Command("write", "back to the message", "i", "transcript", slash=False),
    Command("help", "all keys and commands", "f1"),
    Command("quit", "leave; everything is kept"),
)

BY_NAME = {command.name: command for command in COMMANDS}

_NAMES = {
    "full_stop": ".", "left_square_bracket": "[", "right_square_bracket": "]", "slash": "/", "escape": "Esc",
    "question_mark": "?", "enter": "Enter", "space": "Space", "tab": "Tab", "pageup": "PgUp", "pagedown": "PgDn",
    "up": "↑", "down": "↓", "left": "←", "right": "→", "home": "Home", "end": "End",
}  # fmt: skip


def shown_key(key: str) -> str:
    """A key as people write it: ^N for ctrl+n."""
    if key.startswith("ctrl+"):
        return f"^{key.removeprefix('ctrl+').upper()}"
    if key.startswith("shift+"):
        return f"Shift+{shown_key(key.removeprefix('shift+'))}"
    return _NAMES.get(key, key.upper() if key[:1] == "f" and key[1:].isdigit() else key)


def bindings(where: Where) -> list[Binding]:
    """The keys that work there; each can be given others by its id, the command's name."""
    return [
        Binding(command.keys, f"app.{command.action}", command.help, id=command.name, show=False)
        for command in COMMANDS
        if command.keys and command.where == where and command.name != "stop"
    ]


def slash_commands() -> list[tuple[str, str]]:
    """What the composer offers after a slash: each name with it, and what it does."""
    return [
        (f"/{command.name}", f"{command.help}{f'  ({command.shown_keys})' if command.keys else ''}")
        for command in COMMANDS
        if command.slash
    ]


def parse(text: str) -> tuple[Command, str] | None:
    """The command and its argument, if the text is one; a path or a lone slash is none.

    Raises:
        KeyError: it looks like a command, and there is none of that name; holds that name.
    """
    if not text.startswith("/") or text.startswith("//") or "\n" in text:
        return None
    name, _, argument = text[1:].partition(" ")
    if not name.isalpha():
        return None
    return BY_NAME[name], argument.strip()


# What the widgets do by themselves, for the help: where, keys, what.
ELSEWHERE = (
    ("Message", "Enter", "send"),
    ("Message", "^J, Shift+Enter, \\ Enter", "new line"),
    ("Message", "↑ ↓ at the first and last line, ^R", "what you wrote before"),
    ("Message", "@ and a name", "attach a file"),
    ("Message", "^G", "write in $EDITOR"),
    ("Message", "Tab", "take what is offered; else to the conversation"),
    ("Message", "Esc Esc", "change your last message"),
    ("Message", "^C", "copy what is selected; else stop; else clear; twice: leave"),
    ("Message", "^D on an empty message, twice", "leave"),
    ("Anywhere", "Esc", "stop the answer"),
    ("Anywhere", "PgUp PgDn, Shift+↑ Shift+↓", "scroll"),
    ("Anywhere", "^P", "find any command"),
    ("Conversation", "j k, J K", "by line, by message"),
    ("Conversation", "g G, Home End", "to the beginning, to the end"),
    ("Conversation", "Space", "fold or unfold"),
    ("Conversation", "?", "all keys and commands"),
    ("Conversation", "n N", "the next and the last place where it was found"),
)


def help_rows() -> Iterator[tuple[str, str, str]]:
    """Everything for the help: where its key works, key and command, what it does."""
    yield from ELSEWHERE
    for command in COMMANDS:
        where = "Conversation" if command.where == "transcript" else "Anywhere"
        name = f"/{command.name}{' ' + command.argument if command.argument else ''}" if command.slash else ""
        if command.name != "stop":
            yield where, "  ".join(part for part in (command.shown_keys, name) if part), command.help
