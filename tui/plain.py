"""The chat for screen readers and simple terminals: lines that are written once, in whole sentences, never redrawn.

No other screen, no colour, no moving cursor. It keeps the same conversations as the other chat. The model runs on the
thread that reads the keyboard: there is nothing else to do while it answers.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing
from io import TextIOWrapper
from threading import Event
from typing import TYPE_CHECKING, Any

from mistral_mlx.errors import InputError, MistralError
from tui.conversation import Conversation, Turn, make_title, new_id
from tui.journal import Journal
from tui.lines import line_editor, read_message, typed_so_far
from tui.model import Ask, Loaded, describe, recorded, seeded
from tui.receipt import is_from
from tui.recording import Recording
from tui.sanitize import one_line, visible
from tui.settings import USUAL_SAMPLING, Settings, check_sampling, parse_option, paths, read
from tui.speech import Speech, figures, percent, write
from tui.start import Start, begin, model_of
from tui.store import Store

if TYPE_CHECKING:
    from mistral_mlx import LLM

# Gives an event that Ctrl-C sets while the context lasts.
Interruptible = Callable[[], AbstractContextManager[Event]]

_SAVE_S = 0.5
_HELP = """\
/new: begin another conversation.
/retry: answer the last message anew; /retry 1.2 does it at that temperature.
/edit: write the last message anew. The old one is kept.
/system: say the system prompt; /system TEXT sets it; /system none takes it away.
/set: say how answers are sampled; /set temperature 0.7 sets it; /set temperature default takes that back.
/models: list the models; /load NAME loads one.
/export FILE: write the conversation to a new file, in Markdown; in JSON with all branches if it ends in .json.
/quit: leave. Everything is saved. Ctrl-D does the same.
A message of several lines: end a line with a backslash, or begin and end the message with three quotes.
A message that begins with a slash: type two.
Ctrl-C stops an answer and keeps what was said.
The settings are in {settings}
"""


def run(start: Start, interruptible: Interruptible) -> int:
    """Chat until the user leaves; returns the exit code.

    Raises:
        MistralError: the chat cannot begin: there is no such conversation, or no place for any.
    """
    if sys.stdin is None:
        raise InputError("There is no keyboard: stdin is closed.", "Start the chat in a terminal.")
    if isinstance(sys.stdin, TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    where = paths()
    settings, problems = read(where.settings)
    with closing(Store.open(where.database)) as store:
        chat = PlainChat(start, settings, store, interruptible)
        for problem in (*problems, store.notice):
            chat.note(problem)
        chat.run()
    return 0


class _LeaveError(Exception):
    """The user wants to leave."""


class PlainChat:
    """One conversation at a time, line by line."""

    def __init__(self, start: Start, settings: Settings, store: Store, interruptible: Interruptible) -> None:
        self.conversation = begin(start, settings, store)
        self._start = start
        self._settings = settings
        self._store = store
        self._interruptible = interruptible
        self._model: tuple[LLM, Loaded] | None = None
        self._sampling: dict[str, Any] | None = None
        self._journal = Journal(store)
        self._commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "new": self._new,
            "retry": self._retry,
            "edit": self._edit,
            "system": self._system,
            "set": self._set,
            "models": self._models,
            "load": self._load,
            "export": self._export,
            "quit": self._quit,
        }

    def run(self) -> None:
        """Chat until the user leaves."""
        step: Callable[[], None] = self._greet
        interrupted = False
        while True:
            try:
                step()
                step = self._turn
                interrupted = False
            except EOFError:
                write("\n")
                break
            except _LeaveError:
                break
            except KeyboardInterrupt:
                step = self._turn
                write("\n")
                if typed_so_far():  # as in a shell, it takes the line away
                    continue
                if interrupted:
                    break
                interrupted = True
                self.note("Press Ctrl-C again to leave, or go on.")
        if self._journal.trouble:
            self._save()
        write("Goodbye.\n")

    def note(self, text: str) -> None:
        """Say something that is neither the user's nor the model's; nothing if it is empty."""
        if text:
            write(f"Note: {visible(text)}\n")

    def _greet(self) -> None:
        c = self.conversation
        write("The plain chat of mistral-mlx. Type /help for what you can do.\n")
        if c.turns:
            write(f'Going on with "{one_line(c.title)}". Its last messages:\n')
            for turn in c.path()[-2:]:
                write({"user": "You: ", "tool": "Tool: "}.get(turn.role, "Assistant:\n") + f"{visible(turn.text)}\n")
        if readline := line_editor():
            for turn in c.path():
                if turn.role == "user":
                    readline.add_history(turn.text)
        if name := model_of(self._start, self._settings, self._store, c):
            self._guarded(self._load, name)
        else:
            self.note("No model is chosen. Type /load demo for a small one, or /models for others.")

    def _turn(self) -> None:
        """One line of the user's, and what comes of it."""
        text = read_message("You: ")
        if text.startswith("/") and not text.startswith("//"):
            self._guarded(self._command, text)
        elif text.strip():
            self._guarded(self._ask, text.removeprefix("/") if text.startswith("//") else text)

    def _guarded(self, do: Callable[[str], None], text: str) -> None:
        try:
            do(text)
        except MistralError as error:
            self.note(f"{error.message} {error.hint}".strip())

    def _command(self, line: str) -> None:
        name, _, rest = line[1:].strip().partition(" ")
        if name not in self._commands:
            raise InputError(f"There is no command /{name}.", "Type /help for those there are.")
        self._commands[name](rest.strip())

    # ---- answers -----------------------------------------------------------------------------------------------------

    def _ask(self, text: str) -> None:
        self._say(text, self.conversation.tip)

    def _say(self, text: str, after: int | None) -> None:
        """Say something and have it answered; it is saved first, so that nothing can lose it."""
        c = self.conversation
        turn = c.add(Turn(new_id(), after, "user", text))
        c.title = c.title or make_title(text)
        self._save(turn)
        self._answer({})

    def _answer(self, options: Mapping[str, Any]) -> None:
        """Answer the conversation where it stands."""
        c = self.conversation
        if self._model is None:
            raise InputError("No model is loaded.", "Type /load demo, or /models for others; then /retry.")
        llm, loaded = self._model
        sampling = {**self._usual(), **c.options, **options}
        ask = seeded(Ask(c.system, c.messages(own=self._is_own), sampling, self._start.tools))
        recording, speech = Recording(c, c.add(Turn(new_id(), c.tip, "assistant"))), Speech()
        otherwise, reason, saved = "interrupted", "", time.monotonic()
        write("Assistant:\n")
        with self._interruptible() as cancel:
            try:
                progress = percent("Reading the prompt")
                for chunk, kept, made in recorded(llm, loaded, ask, cancel=cancel, progress=progress):
                    recording.take(chunk)
                    speech.say(chunk.text, thinking=bool(chunk.thinking))
                    if chunk.stats:
                        speech.end()
                        for call in recording.turn.calls:
                            write(f"Calls {visible(call.name)} with {visible(call.arguments)}\n")
                        for result in recording.keep(kept):
                            write(f"The tool answers: {visible(result.text)}\n")
                    if made:
                        recording.certify(made)
                    if time.monotonic() - saved > _SAVE_S:
                        self._save(*recording.turns)
                        saved = time.monotonic()
            except MistralError as error:
                otherwise, reason = "failed", error.message
                raise
            finally:
                speech.end()
                recording.end(otherwise, reason)
                self._save(*recording.turns)
        write(f"[{figures(recording.turn)}]\n")
        if self._settings.bell > 0 and sys.stdout.isatty():
            write("\a")

    def _is_own(self, turn: Turn) -> bool:
        """Whether the model that is loaded gave an answer: its token ids mean nothing to another."""
        return self._model is not None and is_from(turn.receipt, self._model[1])

    def _usual(self) -> dict[str, Any]:
        """How answers are sampled where the conversation does not say; what the settings have wrong is said once."""
        if self._sampling is None:
            usable, problems = check_sampling(self._settings.sampling)
            for problem in problems:
                self.note(f"settings.toml: sampling: {problem}")
            self._sampling = USUAL_SAMPLING | usable
        return self._sampling

    def _save(self, *turns: Turn) -> None:
        """Save what has changed; where that fails it is said once, and tried again with the next."""
        before = self._journal.trouble
        self._journal.mark(self.conversation, *turns)
        if not self._journal.save() and self._journal.trouble != before:
            self.note(f"This could not be saved yet. {self._journal.trouble}")

    # ---- commands ----------------------------------------------------------------------------------------------------

    def _help(self, _: str) -> None:
        write(_HELP.format(settings=visible(str(paths().settings))))

    def _new(self, _: str) -> None:
        model = self.conversation.model
        self.conversation = Conversation(model=model, system=self._start.system or self._settings.system)
        self.conversation.options |= self._start.options
        write("A new conversation.\n")

    def _retry(self, text: str) -> None:
        options: dict[str, Any] = {"seed": None}  # drawn anew
        if text:
            options["temperature"] = parse_option("temperature", text)
        elif ({**self._usual(), **self.conversation.options})["temperature"] == 0:
            raise InputError("The temperature is 0, so the answer would be the same.", "Type /retry 0.7, say.")
        self.conversation.tip = self._asked().id
        self._answer(options)

    def _edit(self, text: str) -> None:
        old = self._asked()
        new = text or read_message("Edit: ", old.text)
        if new.strip():
            self._say(new, old.parent)

    def _asked(self) -> Turn:
        """The user's last message on this branch."""
        for turn in reversed(self.conversation.path()):
            if turn.role == "user":
                return turn
        raise InputError("Nothing has been asked yet.", "Type a message first.")

    def _system(self, text: str) -> None:
        c = self.conversation
        if text:
            c.system = "" if text == "none" else text
            self._save_facts()
        write(f"The system prompt is: {visible(c.system)}\n" if c.system else "There is no system prompt.\n")

    def _set(self, text: str) -> None:
        options = self.conversation.options
        name, _, value = text.partition(" ")
        if value.strip() == "default":
            options.pop(name, None)
        elif name:
            options[name] = parse_option(name, value.strip())
        self._save_facts()
        for option, value in {**self._usual(), **options}.items():
            write(f"{option} {value}\n")

    def _save_facts(self) -> None:
        if self.conversation.turns:  # one in which nothing was said is not kept
            self._save()

    def _models(self, _: str) -> None:
        from mistral_mlx.models import ALIASES, on_disk

        entries = on_disk()
        for entry in entries:
            loaded = ", loaded" if self._model and self.conversation.model in (entry.name, entry.alias) else ""
            state = "" if entry.complete else ", unfinished: loading goes on with the download"
            write(f"{visible(entry.alias or entry.name)}: {entry.nbytes / 2**30:.1f} GiB, here{state}{loaded}\n")
        there = {entry.name for entry in entries}
        for alias, name in ALIASES.items():
            if name not in there:
                write(f"{alias}: {name}, to download\n")

    def _load(self, name: str) -> None:
        if not name:
            raise InputError("/load needs the name of a model.", "Type /models for those there are.")
        write(f"Loading {visible(name)}.\n")
        from mistral_mlx import load
        from mistral_mlx.models import resolve

        c = self.conversation
        resolve(name, progress=percent(f"Fetching {visible(name)}"))
        self._model = None  # two models may not fit at a time
        llm = load(name, **self._start.loading)
        loaded = describe(name, llm, self._start.loading)
        self._model = llm, loaded
        c.model = name
        self._save_facts()
        write(f"{visible(name)} is ready.\n")
        self.note(loaded.notice)

    def _export(self, text: str) -> None:
        from tui.transfer import export

        write(f"Written to {visible(str(export(self.conversation, text)))}\n")

    def _quit(self, _: str) -> None:
        raise _LeaveError
