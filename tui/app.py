"""The terminal chat: puts the widgets together, and takes what happens from one to the other."""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from contextvars import Context, copy_context
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from textual.actions import SkipAction
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.screen import Screen

from mistral_mlx.completion import Chunk, ToolCall
from mistral_mlx.errors import InputError, MistralError
from tui import clipboard, commands, entries, settings, status, themes
from tui.actions import Actions
from tui.conversation import Conversation, Turn
from tui.engine import Engine
from tui.model import Forecast, Loaded
from tui.pace import Governor
from tui.sanitize import one_line, visible
from tui.screens.lanes import LanesScreen
from tui.screens.models import WELCOME
from tui.screens.settings import Chosen
from tui.session import CONTEXT, Answer, Session, say
from tui.settings import USUAL_SAMPLING, Settings
from tui.start import Start, begin, model_of
from tui.store import Store
from tui.terminal import SafeTerminal, quiet_stderr
from tui.widgets.bars import Bar
from tui.widgets.chats import Chats
from tui.widgets.composer import Composer
from tui.widgets.transcript import Entry, Transcript

if TYPE_CHECKING:
    from mistral_mlx.worker import Job

# The keys of what is no turn: what an empty conversation shows, and a note.
_GREETING, _NOTE = -1, -2
_HINT = "Say something. / has the commands, @ attaches a file, F1 tells all keys."
# Cells; where there are fewer only the most important is said.
_NARROW = 60
# How long the model's thread or the screen's may keep the interpreter while the other waits for it.
SWITCH_S = 0.0005
# A second key press that leaves must come within this.
_AGAIN_S = 2.0
# Esc twice is meant as one thing within this.
_SAME_PRESS_S = 0.6


class _Transcript(Transcript):
    """With the keys of the commands that are for what was said."""

    BINDINGS: ClassVar[list[BindingType]] = [
        *commands.bindings("transcript"),
        Binding("question_mark", "app.command('help')", "help", show=False),
        Binding("tab", "app.focus('composer')", "to the message", show=False),
    ]


class _Composer(Composer):
    """From which Tab goes to what was said, over the list of conversations."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("tab", "app.focus('transcript')", "to the conversation", show=False)
    ]


class ChatApp(SafeTerminal, App[None]):
    """The whole of it. It is the View of its session."""

    CSS_PATH = "app.tcss"
    TITLE = "mistral-mlx"
    ENABLE_COMMAND_PALETTE = True
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (60, "-normal"), (100, "-wide")]  # noqa: RUF012  the base class has them so
    VERTICAL_BREAKPOINTS = [(0, "-low"), (20, "-high")]  # noqa: RUF012  the base class has them so
    BINDINGS: ClassVar[list[BindingType]] = [
        *commands.bindings("anywhere"),
        Binding("escape", "stop", "stop", show=False),
        Binding("ctrl+c", "interrupt", "copy, stop, clear or leave", show=False, priority=True),
        Binding("ctrl+d", "leave('^D')", "leave", show=False),
        Binding("ctrl+q", "leave('^Q')", "leave", show=False, priority=True),
        Binding("pageup", "scroll('page_up')", "scroll", show=False),
        Binding("pagedown", "scroll('page_down')", "scroll", show=False),
        Binding("shift+up", "scroll('up')", "scroll", show=False),
        Binding("shift+down", "scroll('down')", "scroll", show=False),
        Binding("home", "scroll('home')", "to the beginning", show=False),
        Binding("end", "scroll('end')", "to the end", show=False),
    ]

    def __init__(
        self,
        store: Store,
        chosen: Settings,
        start: Start,
        conversation: Conversation,
        *,
        settings_path: Path,
        problems: Sequence[str] = (),
        engine: Callable[[Callable[[], None]], Engine] = Engine,
    ) -> None:
        """Args:
        start: what the command was asked for.
        conversation: where to begin.
        engine: makes the engine from what is called when it has something to hand out.
        """
        super().__init__(ansi_color=True if "NO_COLOR" in os.environ else None)  # its greys are colours too
        self._start = start
        self.settings, self._settings_path = chosen, settings_path
        self._problems = problems
        self.engine = engine(self._wake)
        usual = _defaults(chosen.sampling, chosen.context)
        system = chosen.system if start.system is None else start.system
        self.session = Session(store, self.engine, self, usual, system, start.options, start.tools)
        self.actions = Actions(self)
        self.governor = Governor()
        self.transcript = _Transcript(id="transcript")
        self.composer = _Composer(id="composer")
        self.lanes: LanesScreen | None = None
        self._first = conversation
        self._shown: Conversation | None = None  # whose draft is in the composer
        self._editing: Turn | None = None
        self._forecast: Forecast | None = None
        self._read_tps = 0.0
        self._loading: status.Loading | None = None
        self._load_job: Job | None = None
        self._leaving = self._stopped = 0.0
        self._draining = False
        self._own_context: Context | None = None  # Textual's timers want its own, whatever thread asks for them
        self._ui_cpu = (time.thread_time(), time.monotonic())

    # ---- the screen -----------------------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        """A line above, the conversations, the transcript over the message, a line below."""
        yield Bar("top")
        with Horizontal(id="body"):
            yield Chats(self.session.store, id="chats")
            with Vertical(id="main"):
                yield self.transcript
                yield self.composer
        yield Bar("bottom")

    def on_mount(self) -> None:
        """Paint first; then open what was asked for, and load the model."""
        self._own_context = copy_context()
        for theme in themes.THEMES:
            self.register_theme(theme)
        try:
            self.theme = themes.choose(self._start.theme or self.settings.theme, self.no_color, os.environ)
        except InputError as error:
            self.theme = themes.choose("", self.no_color, os.environ)
            self.tell(say(error), fault=True)
        if unknown := self.settings.keys.keys() - commands.BY_NAME.keys():
            self.tell(f"Keys were given to {', '.join(sorted(unknown))}: there is no such command.", fault=True)
        self.set_keymap({name: keys for name, keys in self.settings.keys.items() if name not in unknown})
        self.screen.set_class(not self.settings.sidebar, "no-chats")
        self.composer.commands = commands.slash_commands()
        self.composer.focus()
        self.set_interval(0.5, self._tick)
        self.call_after_refresh(self._begin)

    @property
    def chats(self) -> Chats:
        """The list of conversations."""
        return self.screen_stack[0].query_one(Chats)

    def _begin(self) -> None:
        start, store = self._start, self.session.store
        for problem in (*self._problems, store.notice):
            if problem:
                self.tell(problem, fault=True)
        if start.continue_newest and store.newest() is None:
            self.tell("There is no conversation yet: this is a new one.")
        self.session.show(self._first)
        with suppress(MistralError):
            self.composer.prompts = store.prompts()
        if start.draft:
            self.composer.load(f"{self.composer.draft}\n\n{start.draft}".strip())
        name = model_of(start, self.settings, store, self.session.conversation)
        if name:
            self.load_model(name)
        else:
            self.actions.choose_model(WELCOME)
        self.show_state()
        gc.collect()
        gc.freeze()  # what is there now stays: later collections need not walk through it

    # ---- the engine -----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        """Something came: from any thread, at most once before it is handed out."""
        with suppress(RuntimeError):  # the loop has ended
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._drain_soon, context=self._own_context)

    def _drain_soon(self) -> None:
        if not self._draining:
            self._draining = True
            self.set_timer(self.governor.interval, self._drain)

    def _drain(self) -> None:
        self._draining = False
        self.governor.beat()
        self.engine.drain()
        self.session.send_waiting()

    def load_model(self, name: str) -> None:
        """Load a model in place of the one there is; an answer that is being written is stopped."""
        self.session.stop()
        self._loading = status.Loading(name)
        self._load_job = self.engine.load(
            name,
            dict(self._start.loading),
            on_progress=partial(self._on_loading, name),
            on_done=self._on_loaded,
            on_error=self._on_load_failed,
            on_cancelled=self._on_load_cancelled,
        )
        self.show_state()

    def _on_loading(self, name: str, phase: str, done: int, total: int) -> None:
        self._loading = status.Loading(name, phase, done, total)
        self.show_state()

    def _on_loaded(self, loaded: Loaded) -> None:
        self._end_loading()
        if self.session.conversation.model != loaded.name:
            self.session.change(model=loaded.name)
        if loaded.notice:
            self.note(loaded.notice)
        self._check_sampling()
        self._mark_window()
        self._ask_forecast(self.composer.draft)

    def _check_sampling(self) -> None:
        """What the settings say of sampling is checked once there is time: it takes the library to do it."""
        usable, problems = settings.check_sampling(self.settings.sampling)
        self.session.defaults = _defaults(usable, self.settings.context)
        for problem in problems:
            self.tell(f"In the settings: {problem}", fault=True)

    def _on_load_failed(self, error: BaseException) -> None:
        self._end_loading()
        said = say(error)
        self.tell(said, fault=True)
        if self.engine.model is None and len(self.screen_stack) == 1:
            self.actions.choose_model(said)

    def _on_load_cancelled(self) -> None:
        self._end_loading()
        self.tell("Stopped. What was fetched is kept.")

    def _end_loading(self) -> None:
        self._loading = self._load_job = None
        self.show_state()

    def _tick(self) -> None:
        self.session.tick()
        self.engine.check()
        if self.session.answer:
            self.show_state()

    # ---- what the session tells -----------------------------------------------------------------------------------

    def show_conversation(self) -> None:
        """Draw all of it anew, and go to its end."""
        session = self.session
        path = session.conversation.path()
        live = session.answer.turn if session.shows(session.answer) and session.answer else None
        done = [entries.entry_of(session.conversation, turn) for turn in path if turn is not live]
        self.transcript.show(done or [Entry(_GREETING, "notice", "", _HINT)])
        if live is not None and live in path:
            self.transcript.begin(entries.entry_of(session.conversation, live, writing=True))
        if session.conversation is not self._shown:
            self._shown, self._editing = session.conversation, None
            self.composer.load(session.conversation.draft)
        self._mark_window()
        self.show_listing()
        self.show_state()

    def show_turn(self, turn: Turn) -> None:
        """Add it, or draw it anew."""
        self.transcript.remove_entry(_GREETING)
        self.transcript.update(entries.entry_of(self.session.conversation, turn))

    def begin_answer(self, turn: Turn) -> None:
        """From now on it is fed."""
        self.transcript.begin(entries.entry_of(self.session.conversation, turn, writing=True))

    def end_turn(self, turn: Turn, results: Sequence[Turn]) -> None:
        """It called tools; the answer to their results follows."""
        conversation = self.session.conversation
        self.transcript.end(entries.entry_of(conversation, turn))
        for result in results:
            self.transcript.add(entries.entry_of(conversation, result))

    def feed_answer(self, text: str, thinking: str, calls: Sequence[ToolCall]) -> None:
        """More of it."""
        self.transcript.feed(text, thinking, tuple(map(entries.call_line, calls)) if calls else None)

    def end_answer(self, answer: Answer) -> None:
        """It is whole: stopped, failed or done."""
        session, turn = self.session, answer.turn
        gone = answer.conversation.id in session.deleted
        if answer.compares:
            if self.lanes:
                self.lanes.end([entries.entry_of(answer.conversation, lane.turn) for lane in answer.lanes])
            self.lanes = None
            if session.shows(answer):
                self.show_conversation()
        elif session.shows(answer):
            self.transcript.end(entries.entry_of(session.conversation, turn))
        elif answer.conversation is not session.conversation and turn.finish != "failed" and not gone:
            ended = "was stopped" if turn.finish == "cancelled" else "is done"
            self.tell(f"The answer in {one_line(answer.conversation.title)!r} {ended}.")
        if turn.stats and turn.stats.prompt_tps:
            self._read_tps = turn.stats.prompt_tps
        if 0 < self.settings.bell < time.monotonic() - answer.start:
            self.bell()
        self._mark_window()
        self._ask_forecast(self.composer.draft)

    def feed_lanes(self, chunks: Sequence[tuple[int, Chunk]]) -> None:
        """More of several answers."""
        if self.lanes:
            said: dict[int, list[str]] = {}
            for lane, chunk in chunks:
                both = said.setdefault(lane, ["", ""])
                both[0] += chunk.text
                both[1] += chunk.thinking
            for lane, (text, thinking) in said.items():
                self.lanes.feed(lane, text, thinking)

    def show_listing(self) -> None:
        """The list of conversations, where it is seen."""
        if self.chats.display:
            self.attempt(self.chats.show, self.session.conversation.id)

    def tell(self, text: str, *, fault: bool = False) -> None:
        """A sentence for a while."""
        if not fault:  # what was said before is done with
            self.clear_notifications()
        severity: Literal["error", "information"] = "error" if fault else "information"
        self.notify(visible(text), severity=severity, timeout=8 if fault else 4, markup=False)

    def note(self, text: str) -> None:
        """Several lines, below the conversation."""
        self.transcript.remove_entry(_NOTE)
        first, *rest = text.splitlines()
        said = "\n".join([first, *(f"- {line}" for line in rest)]) if rest else first
        self.transcript.add(Entry(_NOTE, "assistant" if rest else "notice", "Note", said))

    # ---- the bars -------------------------------------------------------------------------------------------------

    def show_state(self) -> None:
        """Everything that the lines above and below say."""
        if not self.is_running or not self.screen_stack:
            return
        base, narrow = self.screen_stack[0], self.size.width < _NARROW
        base.query_one("#top", Bar).show(*status.top(self.session, self._loading))
        base.query_one("#bottom", Bar).show(*status.bottom(self.session, narrow=narrow))
        waiting = self.session.waiting
        model = "" if self.engine.model or self._loading else "no model: ^O chooses one"
        waits = "what you wrote waits: Esc takes it back" if waiting and waiting[0] is self._shown else ""
        editing = "changing a message of yours: Esc leaves it" if self._editing else ""
        writes = self.composer.text.strip() and not self.session.answer
        ahead = status.ahead(self.session, self._forecast, self._read_tps) if self._forecast and writes else ""
        title = editing or "; ".join(filter(None, (waits, model))) or ahead
        self.composer.frame(title, f"Enter send  ^J new line{'' if narrow else '  / commands  @ file'}")

    def _mark_window(self) -> None:
        model = self.engine.model
        window = model.window if model and isinstance(model.window, int) else 0
        turn = entries.first_in_window(self.session.conversation.path(), window) if window else None
        self.transcript.mark_window(turn.id if turn else None, f"attends directly from here ({window:,} tokens)")

    def performance(self) -> str:
        """What the screen costs."""
        cpu, since = self._ui_cpu
        now = (time.thread_time(), time.monotonic())
        self._ui_cpu = now
        share = (now[0] - cpu) / max(1e-9, now[1] - since)
        return (
            f"The screen took {share:.1%} of one core since the last look; it draws at most every "
            f"{self.governor.interval * 1000:.0f} ms."
        )

    # ---- the message ----------------------------------------------------------------------------------------------

    def on_composer_submitted(self, event: Composer.Submitted) -> None:
        """Send it, or do what it commands."""
        text = event.text
        try:
            command = commands.parse(text)
        except KeyError as unknown:
            self.composer.load(text)
            self.composer.select_all()
            self.tell(f"There is no command /{unknown.args[0]}. F1 lists them all.", fault=True)
            return
        if command:
            if not self.attempt(self.actions.run, command[0].name, command[1]):
                self.composer.load(text)
                self.composer.select_all()  # to be mended, or written over
            return
        text = text[1:] if text.startswith("//") else text
        if self._editing:
            if self.attempt(self.session.edit, self._editing, text):
                self._leave_edit()
            else:
                self.composer.load(text)
        elif not self.attempt(self.session.send, text):
            self.composer.load(text)
        self.composer.prompts = [*self.composer.prompts, text]
        self.transcript.follow = True
        self.show_state()

    def on_composer_draft_changed(self, event: Composer.DraftChanged) -> None:
        """Keep the draft, and see what it would take."""
        if not self._editing and not event.text.startswith("/"):
            self.attempt(self.session.save_draft, self.composer.draft)
        self._ask_forecast(event.text)

    def on_composer_refused(self, event: Composer.Refused) -> None:
        """Something in the message cannot be done."""
        self.tell(say(event.error), fault=True)

    def on_composer_copied(self, event: Composer.Copied) -> None:
        """A part of the message is copied."""
        self.copy(event.text)

    def copy(self, text: str) -> None:
        """Copy text, and say what is known of it."""

        async def copied() -> None:
            self.tell(await clipboard.copy(self, text))

        self.run_worker(copied())

    def on_composer_edit_previous(self) -> None:
        """Esc Esc: the last message of the user; not where the first of them has stopped something."""
        if time.monotonic() - self._stopped > _SAME_PRESS_S:
            self.attempt(self.actions.do_edit, "")

    def _ask_forecast(self, text: str) -> None:
        if not text.strip() or text.startswith("/") or not self.session.ready:
            self._forecast = None
            return self.show_state()
        with suppress(InputError):  # of a file that cannot be attached; it is told when it is sent
            text = self.composer.expanded().text
        ask = self.session.ask_for(text)
        self.engine.forecast(ask, on_done=self._on_forecast, on_error=lambda error: self._on_forecast(None))
        return None

    def _on_forecast(self, forecast: Forecast | None) -> None:
        self._forecast = forecast
        self.show_state()

    def begin_edit(self, turn: Turn) -> None:
        """Have a message of the user's changed."""
        self.keep_draft()
        self._editing = turn
        self.composer.load(turn.text)
        self.composer.focus()
        self.show_state()

    def _leave_edit(self) -> None:
        """Back to the draft from before."""
        self._editing = None
        self.composer.load(self.session.conversation.draft)
        self.show_state()

    def offer(self, text: str) -> None:
        """Put the beginning of a command into the message."""
        self.composer.load(text)
        self.composer.focus()

    def keep_draft(self) -> None:
        """Before another conversation is shown."""
        if not self._editing:
            self.session.save_draft(self.composer.draft)

    # ---- keys -----------------------------------------------------------------------------------------------------

    def attempt(self, do: Callable[..., Any], *arguments: Any, **options: Any) -> bool:
        """Do something; what cannot be done is told. Returns whether it was done."""
        try:
            do(*arguments, **options)
        except MistralError as error:
            self.tell(say(error), fault=True)
            return False
        return True

    def action_command(self, name: str, argument: str = "") -> None:
        """What a key or the palette asks for."""
        self.attempt(self.actions.run, name, argument)

    def action_stop(self) -> None:
        """Esc: stop the answer, or take back what waits, or leave the editing."""
        if self.session.stop():
            self._stopped = time.monotonic()
            return
        if waiting := self.session.take_waiting():
            self.composer.load(f"{waiting}\n\n{self.composer.draft}".strip())
        elif self._editing:
            self._leave_edit()
        elif self._load_job:
            self._load_job.cancel()
        elif self.screen.has_class("chats-open"):
            self.toggle_chats()
        else:
            self.composer.focus()

    def action_interrupt(self) -> None:
        """^C: copy what is selected, else stop, else clear the message, else leave at the second time."""
        if selected := self.screen.get_selected_text():
            self.copy(selected)
            self.screen.clear_selection()
        elif getattr(self.focused, "selected_text", ""):
            raise SkipAction  # the widget's own
        elif len(self.screen_stack) > 1:
            self.simulate_key("escape")
        elif self.session.stop():
            pass
        elif self.composer.text:
            self.composer.clear()
            self.tell("Cleared; ^Z brings it back.")
        else:
            self._leave_at_second("^C")

    def action_leave(self, key: str) -> None:
        """^Q, and ^D where it has nothing to delete."""
        self._leave_at_second(key)

    def _leave_at_second(self, key: str) -> None:
        if time.monotonic() - self._leaving < _AGAIN_S:
            self.leave()
        else:
            self._leaving = time.monotonic()
            self.notify(f"Press {key} again to leave.", timeout=_AGAIN_S)

    def leave(self) -> None:
        """Stop what goes on, save everything, and end."""
        self.session.stop()
        self.keep_draft()
        self.exit()

    def action_scroll(self, way: str) -> None:
        """Scroll while the keyboard stays on the message."""
        getattr(self.transcript, f"action_{'page' if 'page' in way else 'scroll'}_{way.removeprefix('page_')}")()

    def get_system_commands(self, screen: Screen[Any]) -> Any:
        """The palette offers what the table has."""
        for command in commands.COMMANDS:
            if command.slash:
                keys = f"   {command.shown_keys}" if command.keys else ""
                yield SystemCommand(f"{command.name}: {command.help}{keys}", "", partial(self._from_palette, command))

    def _from_palette(self, command: commands.Command) -> None:
        if command.argument and command.name not in _WITHOUT:
            self.offer(f"/{command.name} ")
        else:
            self.action_command(command.name)

    def toggle_chats(self) -> None:
        """The list of conversations beside the transcript, or over it where it is narrow."""
        screen = self.screen_stack[0]
        if not self.chats.display or self.chats.has_focus:
            screen.toggle_class("no-chats" if screen.has_class("-wide") else "chats-open")
        self.call_after_refresh(self._after_toggle)

    def _after_toggle(self) -> None:
        if self.chats.display:
            self.show_listing()
            self.chats.focus()
        else:
            self.composer.focus()

    def on_chats_chosen(self, event: Chats.Chosen) -> None:
        """Show a conversation."""
        self.keep_draft()
        self.attempt(self.session.open, event.id)
        self.screen_stack[0].remove_class("chats-open")
        self.composer.focus()

    def on_chats_asked(self, event: Chats.Asked) -> None:
        """Delete, pin, undo, search."""
        if event.what == "delete" and event.id:
            self.attempt(self.actions.do_delete, "", event.id)
        elif event.what == "pin" and event.id:
            self.attempt(self.session.pin, event.id)
        elif event.what in ("undo", "search"):
            self.action_command(event.what)

    def on_chats_failed(self, event: Chats.Failed) -> None:
        """The list cannot be read."""
        self.tell(say(event.error), fault=True)

    def on_transcript_code_clicked(self, event: Transcript.CodeClicked) -> None:
        """Copy the block."""
        blocks = self.transcript.code_blocks(event.key)
        if event.index < len(blocks):
            self.copy(blocks[event.index])

    def transcript_turn(self) -> Turn | None:
        """The turn that is chosen in the transcript."""
        key = self.transcript.selected
        return self.session.conversation.turns.get(key) if key is not None else None

    # ---- settings -------------------------------------------------------------------------------------------------

    @property
    def theme_names(self) -> list[str]:
        """What there is to choose from: our own before Textual's."""
        ours = [theme.name for theme in themes.THEMES]
        return [*ours, *sorted(self.available_themes.keys() - set(ours))]

    def keep_settings(self, chosen: Chosen) -> None:
        """Take up what was set; write it down if it is to last."""
        if chosen.theme:
            self.keep_theme(chosen.theme)
        if chosen.lasting:
            settled = {**self.settings.sampling, CONTEXT: self.settings.context, **chosen.changed}
            context = settled.pop(CONTEXT) or 0
            sampling = {name: value for name, value in settled.items() if value is not None}
            self.session.defaults = _defaults(sampling, context)
            self.session.system = chosen.system
            self.attempt(self._change_settings, system=chosen.system, sampling=sampling, context=context)

    def keep_theme(self, name: str) -> None:
        """The theme is always meant to last."""
        if name != self.settings.theme:
            self.attempt(self._change_settings, theme=name)

    def _change_settings(self, **changes: Any) -> None:
        before, self.settings = self.settings, replace(self.settings, **changes)
        settings.save(self.settings, before, self._settings_path)


def _defaults(sampling: Mapping[str, Any], context: int) -> dict[str, Any]:
    """What holds where a conversation says nothing of its own, by what the settings say."""
    return {**USUAL_SAMPLING, **sampling, CONTEXT: context or None}


# Commands whose argument may be left out.
_WITHOUT = {"search", "models", "regenerate", "compare", "code"}


def run(start: Start) -> int:
    """Chat on the screen until the user leaves; returns the exit code.

    Raises:
        MistralError: the chat cannot begin: there is no such conversation, or no place for any.
    """
    sys.setswitchinterval(SWITCH_S)
    where = settings.paths()
    chosen, problems = settings.read(where.settings)
    with closing(Store.open(where.database)) as store:
        conversation = begin(start, chosen, store)
        app = ChatApp(store, chosen, start, conversation, settings_path=where.settings, problems=problems)
        try:
            with quiet_stderr(where.log):
                app.run(mouse=chosen.mouse)
        finally:
            app.session.finish()
            app.engine.close()
        for path in app.session.rescue(where.database.parent):
            print(f"Not saved, but written to {path}: /import reads it.", file=sys.stderr)
        if app.session.conversation.turns:
            print(f"Go on with it: mistral-mlx chat --resume {app.session.conversation.id}", file=sys.stderr)
    return app.return_code or 0
