"""What each command does. The names are those of the table in commands.py."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from textual.screen import ModalScreen

from mistral_mlx.errors import InputError
from tui import receipt, transfer
from tui.conversation import Turn
from tui.screens.help import HelpScreen
from tui.screens.lanes import LanesScreen
from tui.screens.models import ModelsScreen
from tui.screens.search import SearchScreen
from tui.screens.settings import Chosen, SettingsScreen, read_option
from tui.screens.tokens import Fork, TokensScreen
from tui.screens.tree import TreeScreen
from tui.store import Hit

if TYPE_CHECKING:
    from tui.app import ChatApp

_MOST_LANES = 4


class Actions:
    """A method for each command; each takes what was written after its name.

    They raise MistralError for what cannot be done; the app tells it.
    """

    def __init__(self, app: ChatApp) -> None:
        self._app = app
        self._session = app.session

    def run(self, name: str, argument: str = "") -> None:
        """Do what the command of that name does."""
        getattr(self, f"do_{name}")(argument)

    # ---- conversations --------------------------------------------------------------------------------------------

    def do_new(self, _: str) -> None:
        self._app.keep_draft()
        self._session.begin()
        self._app.composer.focus()

    def do_chats(self, _: str) -> None:
        self._app.toggle_chats()

    def do_search(self, words: str) -> None:
        def go(hit: Hit) -> None:
            self._app.keep_draft()
            self._session.open(hit.conversation_id, hit.turn_id)
            self._app.transcript.select(hit.turn_id)
            self._app.transcript.focus()

        self._push(SearchScreen(self._session.store, words), go)

    def do_rename(self, title: str) -> None:
        if not title:
            raise InputError("The title is missing.", "Write it after the command: /rename Trip to Lyon.")
        self._session.rename(title)

    def do_pin(self, _: str) -> None:
        self._session.pin()
        pinned = self._session.conversation.pinned
        self._app.tell("Pinned: it stays at the top of the list." if pinned else "No longer pinned.")

    def do_delete(self, _: str, id: str | None = None) -> None:
        self._app.tell(f"Deleted: {self._session.delete(id)}. /undo brings it back.")

    def do_undo(self, _: str) -> None:
        self._session.undelete()

    def do_export(self, name: str) -> None:
        self._app.tell(f"Written to {transfer.export(self._session.conversation, name)}.")

    def do_import(self, name: str) -> None:
        self._session.adopt(transfer.read(name))

    # ---- the model ------------------------------------------------------------------------------------------------

    def do_models(self, name: str) -> None:
        if name:
            return self._app.load_model(name)
        self.choose_model()
        return None

    def choose_model(self, said: str = "") -> None:
        """The list of models, below what is to be said; what is chosen there is loaded."""
        engine = self._session.engine
        current = engine.model.name if engine.model else ""

        self._push(ModelsScreen(engine, current, said), self._app.load_model)

    def do_settings(self, _: str) -> None:
        session, app = self._session, self._app

        def keep(chosen: Chosen) -> None:
            session.change(system=chosen.system, options=session.conversation.options | chosen.changed)
            app.keep_settings(chosen)

        self._push(SettingsScreen(session.conversation.system, session.settings, app.theme, app.theme_names), keep)

    def do_system(self, text: str) -> None:
        self._session.change(system=text)
        self._app.tell("The system prompt is set." if text else "The conversation has no system prompt.")

    def do_set(self, given: str) -> None:
        name, _, text = given.replace("=", " ", 1).partition(" ")
        if not name:
            now = ", ".join(f"{key} {value}" for key, value in self._session.settings.items())
            raise InputError(
                f"Now: {now or 'nothing is set'}.", "Write a name and a value, none or default: /set temperature 0.2."
            )
        options = dict(self._session.conversation.options)
        if text.strip() == "default":
            read_option(name, "")
            options.pop(name, None)
        else:
            options[name] = read_option(name, text)
        self._session.change(options=options)
        value = self._session.settings.get(name)
        self._app.tell(f"{name} is {value}." if value is not None else f"{name} is not set.")

    def do_theme(self, name: str) -> None:
        if name not in self._app.theme_names:
            raise InputError(f"There is no theme {name!r}.", f"Themes: {', '.join(self._app.theme_names)}.")
        self._app.theme = name
        self._app.keep_theme(name)

    # ---- answers --------------------------------------------------------------------------------------------------

    def do_stop(self, _: str) -> None:
        self._app.action_stop()

    def do_edit(self, _: str) -> None:
        self._app.begin_edit(self._turn("user"))

    def do_regenerate(self, given: str) -> None:
        options = {}
        for part in given.split():
            name, equals, value = part.partition("=")
            if not equals:
                raise InputError(f"{part!r} is no option with a value.", "Write /regenerate temperature=0.8 seed=3.")
            options[name] = read_option(name, value)
        self._session.regenerate(self._turn("assistant", "user"), **options)

    def do_vary(self, _: str) -> None:
        self._app.offer("/regenerate temperature=")

    def do_continue(self, _: str) -> None:
        self._session.proceed(self._turn("assistant"))

    def do_compare(self, given: str) -> None:
        ways = _lanes(given)
        answer = self._session.compare(ways, self._app.transcript_turn())
        screen = LanesScreen([lane.turn for lane in answer.lanes], ways)

        self._app.lanes = screen
        self._push(screen, self._session.choose)

    def do_older(self, _: str) -> None:
        self._beside(-1)

    def do_newer(self, _: str) -> None:
        self._beside(1)

    def _beside(self, by: int) -> None:
        turn = self._app.transcript_turn() or self._turn("assistant", "user")
        conversation = self._session.conversation
        beside = conversation.siblings(turn)
        if len(beside) == 1:  # the last one that has others beside it is meant
            turns = [t for t in reversed(conversation.path()) if len(conversation.siblings(t)) > 1]
            if not turns:
                raise InputError("There is no other branch.", "Change a message (e), or answer again (r).")
            turn = turns[0]
            beside = conversation.siblings(turn)
        place = next(i for i, other in enumerate(beside) if other.id == turn.id)
        other = beside[(place + by) % len(beside)]
        self._session.choose(other.id)
        if self._app.transcript.has_focus:
            self._app.transcript.select(other.id)

    def do_tree(self, _: str) -> None:
        self._push(TreeScreen(self._session.conversation), self._session.choose)

    def do_tokens(self, _: str) -> None:
        session = self._session
        turn = self._turn("assistant")
        if not len(turn.tokens):
            raise InputError("The tokens of this message are not known.", "They are of answers written here.")

        def ask_for(index: int, found: Any, failed: Any) -> None:
            session.alternatives(turn, index, found, failed)

        def fork(chosen: Fork) -> None:
            session.fork(turn, chosen.index, chosen.alternative)

        self._push(TokensScreen(turn, ask_for if session.ready and session.own(turn) else None), fork)

    def do_receipt(self, _: str) -> None:
        made = self._turn("assistant").receipt
        if not made:
            raise InputError("This answer has no receipt.", "Answers that were written here have one.")
        self._app.note(receipt.describe(made))

    def do_replay(self, _: str) -> None:
        self._session.replay(self._turn("assistant"))

    # ---- reading --------------------------------------------------------------------------------------------------

    def do_copy(self, _: str) -> None:
        turn = self._app.transcript_turn() or self._turn("assistant", "user")
        self._app.copy(turn.text)

    def do_code(self, number: str) -> None:
        turn = self._app.transcript_turn() or self._turn("assistant", "user")
        blocks = self._app.transcript.code_blocks(turn.id)
        if not blocks:
            raise InputError("There is no code in this message.", "Choose another: J and K.")
        if number and not (number.isdigit() and 1 <= int(number) <= len(blocks)):
            raise InputError(f"There are {len(blocks)} code blocks.", "Give the number of one.")
        self._app.copy(blocks[int(number) - 1 if number else -1])

    def do_think(self, _: str) -> None:
        turn = self._app.transcript_turn() or self._turn("assistant")
        if turn.role == "assistant" and not turn.thinking:
            raise InputError("The model did not think before this answer.", "")
        self._app.transcript.toggle_fold(turn.id)

    def do_find(self, text: str) -> None:
        if not text:
            return self._app.offer("/find ")
        found = self._app.transcript.find(text)
        more = " n and N go on." if found > 1 else ""
        self._app.tell(f"{found} found.{more}" if found else f"{text!r} does not stand here.")
        if found:
            self._app.transcript.focus()
        return None

    def do_write(self, _: str) -> None:
        self._app.composer.focus()

    def do_perf(self, _: str) -> None:
        self._app.note(self._app.performance())

    def do_help(self, _: str) -> None:
        reading = self._app.transcript.has_focus
        where, other = ("conversation", "message") if reading else ("message", "conversation")
        answering = " An answer is being written: Esc stops it." if self._session.answer else ""
        active = f"The keyboard is on the {where}; Tab goes to the {other}.{answering}"
        self._app.push_screen(HelpScreen(active, where.capitalize()))

    def do_quit(self, _: str) -> None:
        self._app.leave()

    def _push(self, screen: ModalScreen[Any], then: Callable[[Any], object]) -> None:
        """Show a screen; with what was chosen there, if anything, something is done. One lies over the other never."""
        if len(self._app.screen_stack) > 1:
            return

        def done(given: Any) -> None:
            if given is not None:
                self._app.attempt(then, given)

        self._app.push_screen(screen, done)

    def _turn(self, *roles: str) -> Turn:
        """The turn that is chosen in the transcript, or else the last of these roles."""
        chosen = self._app.transcript_turn()
        if chosen and chosen.role in roles:
            return chosen
        path = self._session.conversation.path()
        if chosen:  # the one that answers it, or that it answers
            at = next((i for i, turn in enumerate(path) if turn.id == chosen.id), len(path))
            after = [turn for turn in path[at:] if turn.role in roles] if chosen.role == "user" else []
            before = [turn for turn in reversed(path[:at]) if turn.role in roles]
            if near := [*after, *before]:
                return near[0]
        for turn in reversed(path):
            if turn.role in roles:
                return turn
        raise InputError("There is no such message yet.", "Say something first.")


def _lanes(given: str) -> list[dict[str, Any]]:
    """How each of several answers is sampled: a number of them with seeds of their own, or an option's values."""
    name, equals, values = given.partition("=")
    if not equals:
        number = given or "2"
        if not number.isdigit() or not 2 <= int(number) <= _MOST_LANES:
            raise InputError(f"{given!r} answers cannot be compared.", f"Give a number from 2 to {_MOST_LANES}.")
        start = time.time_ns() % 10_000
        return [{"seed": start + i} for i in range(int(number))]
    texts = [text for text in values.replace(",", " ").split() if text]
    if not 2 <= len(texts) <= _MOST_LANES:
        raise InputError(f"{given!r} is not from 2 to {_MOST_LANES} values.", "Write /compare temperature=0,0.7,1.")
    name = {"t": "temperature"}.get(name.strip(), name.strip())
    return [{name: read_option(name, text)} for text in texts]
