"""What a person does in the chat, key by key, before a fake model: asking, stopping, branching, finding, keeping."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mistral_mlx.completion import ToolCall
from tests.tui.chatting import chatting
from tests.tui.fake_llm import FakeLLM
from tui import commands
from tui.screens.lanes import LanesScreen
from tui.screens.models import ModelsScreen
from tui.settings import Settings, read
from tui.start import Start
from tui.store import Store

SLOW = {"tokens_per_s": 60.0}


def talker(**changes: object) -> FakeLLM:
    """Says what was said, and more, in many tokens."""
    return FakeLLM(lambda text: f"You said: {text}. " + "And so on. " * 30, **changes)  # type: ignore[arg-type]


async def test_a_question_is_answered_and_both_are_kept(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.pilot.press(*"Hello")
        await chat.pilot.press("enter")
        await chat.until_shown("You said: Hello")
        await chat.idle()
        answer = chat.path[-1]
        assert answer.finish == "stop"
        assert answer.receipt
        assert answer.kept == tuple(answer.tokens.ids[:-1])
        await chat.until_shown("tokens · ")
    store = Store.open(tmp_path / "conversations.db")
    (row,) = store.listing()
    kept = store.load(row.id)
    assert [turn.text for turn in kept.path()] == ["Hello", "You said: Hello"]
    assert kept.title == "Hello"
    store.close()


async def test_escape_stops_at_once_and_keeps_what_was_said(tmp_path: Path) -> None:
    async with chatting(tmp_path, talker(**SLOW)) as chat:
        await chat.say("Tell me")
        await chat.until(lambda: chat.path[-1].text, "a beginning")
        await chat.pilot.press("escape")
        assert chat.app.session.answer is None or chat.app.session.answer.stopping
        await chat.idle()
        turn = chat.path[-1]
        assert turn.finish == "cancelled"
        assert "You said"[: len(turn.text)] in turn.text
        await chat.until_shown("stopped")


async def test_a_stopped_answer_is_gone_on_with_as_if_it_had_not_been_stopped(tmp_path: Path) -> None:
    model = talker(**SLOW)
    async with chatting(tmp_path, model) as chat:
        await chat.say("Tell me")
        await chat.until(lambda: len(chat.path[-1].tokens) > 5, "some tokens")
        await chat.pilot.press("escape")
        await chat.idle()
        stopped = chat.path[-1].id
        model.tokens_per_s = 0
        chat.app.transcript.focus()
        await chat.pilot.press("full_stop")
        await chat.idle()
        assert chat.path[-1].id == stopped
        assert chat.path[-1].text == model.script("Tell me")
        assert chat.path[-1].finish == "stop"
        assert len(chat.path[-1].tokens) == len(model.tokenizer.encode(model.script("Tell me"))) + 1
        await chat.say("/replay")
        await chat.until(lambda: any("identical" in told for told in chat.told), "a verdict")


async def test_a_failed_answer_says_why_and_can_be_asked_again(tmp_path: Path) -> None:
    model = talker(fail_after=4)
    async with chatting(tmp_path, model) as chat:
        await chat.say("Tell me")
        await chat.idle()
        assert chat.path[-1].finish == "failed"
        await chat.until_shown("the fake model broke")
        model.fail_after = None
        await chat.say("/regenerate")
        await chat.idle()
        assert chat.path[-1].text == model.script("Tell me")


async def test_editing_makes_a_branch_and_the_former_one_stays(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.ask("first")
        await chat.ask("second")
        chat.app.composer.load("a draft")
        chat.app.transcript.focus()
        await chat.pilot.press("K", "K", "e")  # the last answer, then its question
        await chat.until_shown("changing a message")
        assert chat.app.composer.text == "second"
        await chat.pilot.press("escape")
        assert chat.app.composer.text == "a draft"
        chat.app.composer.clear()
        await chat.pilot.press("escape", "escape")
        await chat.until(lambda: chat.app.composer.text == "second")
        await chat.say("another")
        await chat.idle()
        assert [turn.text for turn in chat.path] == ["first", "You said: first", "another", "You said: another"]
        await chat.until_shown("2/2")
        chat.app.transcript.focus()
        await chat.pilot.press("left_square_bracket")
        await chat.until_shown("You said: second")
        assert [turn.text for turn in chat.path][2] == "second"
        assert len(chat.app.session.conversation.turns) == 6


async def test_answering_again_takes_another_seed_and_the_answers_stand_beside_each_other(tmp_path: Path) -> None:
    async with chatting(tmp_path, FakeLLM(varies=True)) as chat:
        first = await chat.ask("Hello")
        chat.app.transcript.focus()
        await chat.pilot.press("r")
        await chat.idle()
        second = chat.path[-1]
        assert first.parent == second.parent
        assert first.text != second.text
        await chat.say("/set temperature 0")
        await chat.say("/regenerate")
        assert any("At temperature 0" in told for told in chat.told)
        await chat.say("/regenerate temperature=0.5 seed=7")
        await chat.idle()
        assert chat.path[-1].text.startswith("[7]")
        assert len(chat.app.session.conversation.siblings(first)) == 3


async def test_lanes_are_written_together_and_one_is_kept(tmp_path: Path) -> None:
    async with chatting(tmp_path, FakeLLM(varies=True)) as chat:
        await chat.ask("Hello")
        await chat.say("/compare seed=1,2,3")
        await chat.until(lambda: isinstance(chat.app.screen, LanesScreen), "the lanes")
        await chat.idle()
        await chat.until_shown("[3] You said: Hello")
        assert "[1] You said: Hello" in chat.screen_text
        await chat.pilot.press("right", "enter")
        await chat.until(lambda: not isinstance(chat.app.screen, LanesScreen), "the conversation")
        assert chat.path[-1].text == "[2] You said: Hello"
        assert [turn.finish for turn in chat.app.session.conversation.siblings(chat.path[-1])] == ["stop"] * 4
        await chat.ask("And now")
        assert [turn.role for turn in chat.path] == ["user", "assistant"] * 2


@pytest.mark.parametrize("given", ["5", "1", "seed=1", "temperature=x,1", "nothing=1,2"])
async def test_lanes_that_cannot_be_are_refused(tmp_path: Path, given: str) -> None:
    async with chatting(tmp_path) as chat:
        await chat.ask("Hello")
        await chat.say(f"/compare {given}")
        assert chat.told
        assert chat.app.session.answer is None
        assert chat.app.composer.text == f"/compare {given}"


async def test_an_answer_is_forked_at_a_token(tmp_path: Path) -> None:
    async with chatting(tmp_path, size=(120, 36)) as chat:
        answer = await chat.ask("Hello")
        chat.app.transcript.focus()
        await chat.pilot.press("p")
        await chat.until_shown("token 1 of")
        await chat.pilot.press("right")
        await chat.until(lambda: getattr(chat.app.screen, "_alternatives", []), "alternatives")
        other = chat.app.screen._alternatives[1]  # type: ignore[attr-defined]
        await chat.pilot.press("enter", "enter")
        await chat.idle()
        forked = chat.path[-1]
        assert forked.id != answer.id
        assert forked.parent == answer.parent
        assert list(forked.tokens.ids[:2]) == [answer.tokens.ids[0], other.id]
        assert forked.text.startswith(answer.text[:3] + other.text)
        assert forked.finish == "stop"


async def test_what_is_sent_while_an_answer_runs_waits_and_can_be_taken_back(tmp_path: Path) -> None:
    model = talker(**SLOW)
    async with chatting(tmp_path, model) as chat:
        await chat.say("one")
        await chat.until(lambda: chat.path[-1].text)
        await chat.say("two")
        await chat.until_shown("what you wrote waits")
        await chat.pilot.press("escape")  # stops the answer; then what waits is sent
        await chat.until(lambda: [t.text for t in chat.path if t.role == "user"] == ["one", "two"], "the second")
        await chat.until(lambda: chat.path[-1].role == "assistant" and chat.path[-1].text)
        await chat.say("three")
        assert chat.app.session.take_waiting() == "three"
        model.tokens_per_s = 0
        await chat.idle()
        assert len(chat.path) == 4


async def test_an_answer_goes_on_while_another_conversation_is_shown(tmp_path: Path) -> None:
    model = talker(**SLOW)
    async with chatting(tmp_path, model) as chat:
        await chat.say("Tell me")
        await chat.until(lambda: chat.path[-1].text)
        first = chat.app.session.conversation
        await chat.pilot.press("ctrl+n")
        await chat.pilot.pause(0.2)
        assert chat.path == []
        assert "And so on" not in chat.screen_text
        chat.app.session.open(first.id)
        await chat.until_shown("You said: Tell me")
        assert chat.app.session.conversation is first
        await chat.pilot.press("ctrl+n")
        model.tokens_per_s = 0
        await chat.idle()
        assert any("is done" in told for told in chat.told)
        assert first.path()[-1].text == model.script("Tell me")


async def test_conversations_are_listed_renamed_pinned_deleted_and_brought_back(tmp_path: Path) -> None:
    async with chatting(tmp_path, size=(120, 36)) as chat:
        await chat.ask("apples")
        await chat.pilot.press("ctrl+n")
        await chat.ask("pears")
        await chat.say("/rename Fruit of all kinds")
        await chat.until(lambda: chat.screen_text.count("Fruit of all kinds") == 2, "the title, twice")
        await chat.say("/pin")
        listed = chat.app.session.store.listing()
        assert [(row.title, row.pinned) for row in listed] == [("Fruit of all kinds", True), ("apples", False)]
        chat.app.chats.focus()
        chat.app.chats.highlighted = 1
        await chat.pilot.press("d")
        assert [row.title for row in chat.app.session.store.listing()] == ["Fruit of all kinds"]
        await chat.pilot.press("u")
        await chat.until_shown("You said: apples")
        assert len(chat.app.session.store.listing()) == 2
        chat.app.chats.focus()
        chat.app.chats.highlighted = 0
        await chat.pilot.press("enter")
        await chat.until_shown("You said: pears")


async def test_a_search_opens_the_place_on_its_branch(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.ask("the river Rhône")
        await chat.pilot.press("escape", "escape")
        await chat.say("the hill")
        await chat.idle()
        await chat.pilot.press("ctrl+n")
        await chat.say("/search rhone")
        await chat.until_shown("3 found")
        await chat.pilot.press("down", "enter")
        await chat.until_shown("You said: the river Rhône")
        assert chat.path[0].text == "the river Rhône"


async def test_export_and_import_bring_back_the_whole_tree(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.ask("Hello")
        await chat.say("/regenerate")
        await chat.idle()
        await chat.say(f"/export {tmp_path / 'talk.json'}")
        await chat.say(f"/export {tmp_path / 'talk.md'}")
        assert "You said: Hello" in (tmp_path / "talk.md").read_text()
        await chat.say(f"/export {tmp_path / 'talk.md'}")
        assert "is there already" in chat.told[-1]
        for name in ("~nobody-has-this-name/x.md", "n" * 300, str(tmp_path / "no" / "folder.md"), ""):
            await chat.say(f"/export {name}")
            assert chat.told[-1]
        before = chat.app.session.conversation
        await chat.say(f"/import {tmp_path / 'talk.json'}")
        after = chat.app.session.conversation
        assert after.id != before.id
        assert [turn.text for turn in after.path()] == [turn.text for turn in before.path()]
        assert len(after.turns) == 3
        (tmp_path / "bad.json").write_text("{")
        await chat.say(f"/import {tmp_path / 'bad.json'}")
        assert chat.app.session.conversation is after
        await chat.say(f"/import {tmp_path / 'none.json'}")
        assert "cannot be read" in chat.told[-1]


async def test_what_a_draft_would_take_is_forecast(tmp_path: Path) -> None:
    async with chatting(tmp_path, FakeLLM(window=None)) as chat:
        await chat.ask("Hello there")
        await chat.pilot.press(*"How are you")
        await chat.until_shown("tokens to read")
        assert "% known" in chat.screen_text
        chat.app.composer.load("x" * 120_000)
        await chat.until_shown("attends to at most")


async def test_the_window_is_marked_and_metered(tmp_path: Path) -> None:
    async with chatting(tmp_path, FakeLLM(window=20), size=(120, 40)) as chat:
        await chat.ask("Hello there, this is longer than that")
        await chat.ask("And more of it")
        await chat.until_shown("behind it")
        await chat.until_shown("attends directly from here (20 tokens)")


async def test_settings_of_a_conversation_and_of_those_to_come(tmp_path: Path) -> None:
    async with chatting(tmp_path, size=(100, 36)) as chat:
        await chat.pilot.press("f2")
        await chat.until_shown("System prompt")
        field = chat.app.screen.query_one("#temperature")
        field.value = "nonsense"  # type: ignore[attr-defined]
        await chat.until_shown("temperature is 'nonsense'")
        field.value = "0.2"  # type: ignore[attr-defined]
        chat.app.screen.query_one("#system").load_text("Be brief.")  # type: ignore[attr-defined]
        await chat.until(lambda: "nonsense" not in chat.screen_text, "the form without a fault")
        await chat.pilot.click("#lasting")
        await chat.until(lambda: chat.app.session.options["temperature"] == 0.2, "the option")
        assert chat.app.session.conversation.system == "Be brief."
        kept, problems = read(tmp_path / "settings.toml")
        assert not problems
        assert (kept.system, kept.sampling["temperature"]) == ("Be brief.", 0.2)
        await chat.pilot.press("ctrl+n")
        assert chat.app.session.conversation.system == "Be brief."


async def test_themes_change_at_once_and_last(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.say("/theme mistral-light")
        assert chat.app.theme == "mistral-light"
        assert read(tmp_path / "settings.toml")[0].theme == "mistral-light"
        await chat.say("/theme no-such")
        assert "There is no theme" in chat.told[-1]


async def test_the_first_run_offers_the_demo_and_a_download(tmp_path: Path) -> None:
    async with chatting(tmp_path, start=Start()) as chat:
        await chat.until(lambda: isinstance(chat.app.screen, ModelsScreen), "the models")
        await chat.until_shown("7b")
        assert "Welcome" in chat.screen_text
        assert "mlx-community/Mistral-7B" in chat.screen_text
        await chat.pilot.press("enter")
        await chat.until(lambda: chat.app.engine.model, "the model")
        assert chat.app.engine.model
        assert chat.app.engine.model.name == "demo"
        assert (await chat.ask("Hello")).text == "You said: Hello"


async def test_a_model_that_cannot_be_loaded_is_told_and_another_can_be_chosen(tmp_path: Path) -> None:
    async with chatting(tmp_path, start=Start(model="missing"), wait=False) as chat:
        await chat.until(lambda: any("There is no model 'missing'" in told for told in chat.told), "the fault")
        await chat.until(lambda: isinstance(chat.app.screen, ModelsScreen), "the models")
        await chat.pilot.press("escape")
        await chat.say("Hello")
        await chat.until_shown("what you wrote waits")
        await chat.say("/models fake")
        await chat.until_shown("You said: Hello")
        await chat.say("/models missing")
        await chat.until(lambda: sum("'missing'" in told for told in chat.told) > 1, "the fault again")
        await chat.idle()
        assert chat.app.engine.model
        assert (await chat.ask("Still here")).text == "You said: Still here"


async def test_a_dead_thread_is_noticed_and_the_model_can_be_loaded_again(tmp_path: Path) -> None:
    model = talker(**SLOW, fail_after=12)
    async with chatting(tmp_path, model) as chat:
        (worker,) = chat.app.engine._threads._workers.values()

        def die(job: object) -> None:
            worker._queue.put("not a job")  # type: ignore[arg-type]  # what no thread survives

        worker.submit(die)
        await chat.until(lambda: not worker.alive, "the end of the thread")
        chat.app.engine.check()
        assert chat.app.engine.model is None
        await chat.say("Hello")
        await chat.until_shown("what you wrote waits")
        model.fail_after = None
        await chat.say("/models fake")
        await chat.until_shown("You said: Hello")


async def test_a_locked_database_is_told_and_saved_to_later(tmp_path: Path) -> None:
    import sqlite3

    async with chatting(tmp_path) as chat:
        await chat.ask("one")
        other = sqlite3.connect(tmp_path / "conversations.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await chat.ask("two")
        await chat.until_shown("not saved")
        assert any("Not saved yet" in told for told in chat.told)
        other.execute("ROLLBACK")
        await chat.until(lambda: not chat.app.session.journal.trouble, "the saving")
        assert [turn.text for turn in chat.app.session.store.load(chat.app.session.conversation.id).path()] == [
            turn.text for turn in chat.path
        ]
        other.close()


async def test_a_draft_outlives_the_program(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.ask("one")
        await chat.pilot.press(*"half a th")
        await chat.pilot.pause(0.5)
        id = chat.app.session.conversation.id
    async with chatting(tmp_path, start=Start(model="fake", continue_newest=True)) as chat:
        assert chat.app.session.conversation.id == id
        assert chat.app.composer.text == "half a th"
        assert "You said: one" in chat.screen_text


async def test_resuming_by_the_beginning_of_an_id(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.ask("one")
        id = chat.app.session.conversation.id
    async with chatting(tmp_path, start=Start(model="fake", resume=id[:5])) as chat:
        assert chat.path[-1].text == "You said: one"
        assert (await chat.ask("two")).text == "You said: two"
        assert len(chat.path) == 4


async def test_leaving_takes_two_presses_and_stops_nothing_by_accident(tmp_path: Path) -> None:
    async with chatting(tmp_path, talker(**SLOW)) as chat:
        await chat.pilot.press(*"words")
        await chat.pilot.press("ctrl+c")
        assert chat.app.composer.text == ""
        await chat.pilot.press("ctrl+z")
        assert chat.app.composer.text == "words"
        await chat.pilot.press("enter")
        await chat.until(lambda: chat.path and chat.path[-1].text)
        await chat.pilot.press("ctrl+c")
        await chat.idle()
        assert chat.path[-1].finish == "cancelled"
        assert chat.app.is_running
        await chat.pilot.press("ctrl+c")
        assert any("again to leave" in told for told in chat.told)
        await chat.pilot.press("ctrl+c")
        await chat.pilot.pause()
        assert chat.app._exit


async def test_unknown_commands_are_told_and_stay_in_the_message(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.say("/nonsense here")
        assert "There is no command /nonsense" in chat.told[-1]
        assert chat.app.composer.text == "/nonsense here"
        assert (await chat.ask("/usr/bin is a path")).text == "You said: /usr/bin is a path"


async def test_every_command_can_be_called_before_anything_was_said(tmp_path: Path) -> None:
    """Each does something or says why not; none breaks the chat."""
    async with chatting(tmp_path) as chat:
        for command in commands.COMMANDS:
            if command.name in ("quit", "stop"):
                continue
            chat.app.action_command(command.name)
            await chat.pilot.pause(0.05)
            assert chat.app.is_running
            while len(chat.app.screen_stack) > 1:
                await chat.pilot.press("escape")
            assert chat.app._exception is None


def test_every_command_has_a_method_and_no_key_is_given_twice() -> None:
    from tui.actions import Actions

    keys: dict[tuple[str, str], str] = {}
    for command in commands.COMMANDS:
        assert callable(getattr(Actions, f"do_{command.name}")), command.name
        for key in filter(None, command.keys.split(",")):
            assert (command.where, key) not in keys, (command.name, keys)
            keys[command.where, key] = command.name


async def test_keys_can_be_given_to_other_commands(tmp_path: Path) -> None:
    settings = Settings(theme="mistral-dark", keys={"new": "f5"})
    async with chatting(tmp_path, settings=settings) as chat:
        await chat.ask("Hello")
        await chat.pilot.press("ctrl+n")
        assert chat.path
        await chat.pilot.press("f5")
        assert not chat.path


async def test_a_model_that_does_not_chat_says_so(tmp_path: Path) -> None:
    async with chatting(tmp_path, FakeLLM(instruct=False)) as chat:
        await chat.until_shown("is a base model")


async def test_the_receipt_of_an_answer_is_shown(tmp_path: Path) -> None:
    async with chatting(tmp_path, size=(120, 40)) as chat:
        turn = await chat.ask("Hello")
        await chat.say("/receipt")
        assert turn.receipt
        await chat.until_shown(turn.receipt["hash"])
        changed = dict(turn.receipt, fingerprint="0" * 64)
        chat.app.session.conversation.turns[turn.id] = replace(turn, receipt=changed)
        await chat.say("/replay")
        await chat.until(lambda: any("not comparable" in told for told in chat.told), "a verdict")
        assert json.dumps(turn.receipt)


async def test_tools_are_run_and_shown_and_the_answer_to_their_results_follows(tmp_path: Path) -> None:
    def weather(city: str) -> str:
        """The weather of a city."""
        return f"rain in {city}"

    model = FakeLLM(calls=(ToolCall("abc123def", "weather", '{"city": "Rome"}'),))
    async with chatting(tmp_path, model, start=Start(model="fake", tools=(weather,)), size=(100, 40)) as chat:
        await chat.ask("How is Rome?")
        assert [turn.role for turn in chat.path] == ["user", "assistant", "tool", "assistant"]
        assert chat.path[1].calls == model.calls
        assert chat.path[2].text == "rain in Rome"
        assert chat.path[3].text == "You said: How is Rome?"
        await chat.until_shown("weather(city='Rome')")
        id = chat.app.session.conversation.id
        kept = chat.app.session.store.load(id).path()
        assert [turn.role for turn in kept] == ["user", "assistant", "tool", "assistant"]
        assert [turn.parent for turn in kept[1:]] == [turn.id for turn in kept[:-1]]
        await chat.ask("And Paris?")
        assert len(chat.path) == 8


async def test_thoughts_are_folded_and_can_be_opened(tmp_path: Path) -> None:
    model = FakeLLM(thinks="First I consider the question from every side.")
    async with chatting(tmp_path, model) as chat:
        turn = await chat.ask("Hello")
        assert turn.thinking == model.thinks
        assert turn.text == "You said: Hello"
        await chat.until_shown("thought, 16 tokens")
        assert "every side" not in chat.screen_text
        await chat.pilot.press("ctrl+t")
        await chat.until_shown("every side")


async def test_a_corrupted_database_is_kept_aside_and_told(tmp_path: Path) -> None:
    (tmp_path / "conversations.db").write_bytes(b"no database at all" * 500)
    async with chatting(tmp_path) as chat:
        assert any("That file is kept as" in told for told in chat.told)
        await chat.ask("Hello")
    assert list(tmp_path.glob("conversations.db.corrupt-*"))


async def test_a_full_disk_is_told_and_the_conversation_goes_on(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.ask("one")
        database = chat.app.session.store._db
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages}")
        await chat.ask("two " * 5000)
        await chat.until_shown("not saved")
        assert any("The disk is full" in told for told in chat.told)
        assert chat.path[-1].text.startswith("You said: two")
        database.execute("PRAGMA max_page_count = 1000000")
        await chat.until(lambda: not chat.app.session.journal.trouble, "the saving")
        assert len(chat.app.session.store.load(chat.app.session.conversation.id).turns) == 4


async def test_settings_that_cannot_be_are_told_and_the_chat_begins(tmp_path: Path) -> None:
    settings = Settings(theme="no-such", keys={"fly": "f9"}, sampling={"temperature": -1.0})
    async with chatting(tmp_path, settings=settings) as chat:
        await chat.until(lambda: any("temperature" in told for told in chat.told), "the fault")
        assert any("There is no theme" in told for told in chat.told)
        assert any("there is no such command" in told for told in chat.told)
        assert (await chat.ask("Hello")).finish == "stop"


async def test_tab_goes_between_the_message_and_the_conversation(tmp_path: Path) -> None:
    async with chatting(tmp_path, size=(140, 30)) as chat:
        await chat.ask("Hello")
        assert chat.app.chats.display
        await chat.pilot.press("tab")
        assert chat.app.focused is chat.app.transcript
        await chat.pilot.press("tab")
        assert chat.app.focused is chat.app.composer
        await chat.pilot.press("shift+tab", "shift+tab")
        assert chat.app.focused is chat.app.chats


async def test_a_context_leaves_out_the_oldest_turns_and_says_so(tmp_path: Path) -> None:
    async with chatting(tmp_path, FakeLLM(window=None), size=(170, 40)) as chat:
        await chat.say("/set context 100")
        assert "whole number from 256" in chat.told[-1]
        await chat.say("/set context 400")
        await chat.say("/set max_tokens 100")
        for text in ("first " * 40, "second " * 40, "third " * 40):
            turn = await chat.ask(text)
        assert turn.stats
        assert turn.stats.prompt_tokens <= 300
        assert turn.receipt
        assert turn.receipt["left_out"] == 2
        await chat.until_shown("2 older messages left out")
        await chat.say("/replay")
        await chat.until(lambda: any("identical" in told for told in chat.told), "a verdict")
        await chat.say("/set context none")
        turn = await chat.ask("short")
        assert turn.stats
        assert turn.stats.prompt_tokens > 300


async def test_an_edit_is_left_with_its_conversation(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.ask("one")
        await chat.pilot.press("escape", "escape")
        await chat.until_shown("changing a message")
        await chat.pilot.press("ctrl+n")
        assert chat.app.composer.text == ""
        assert (await chat.ask("two")).text == "You said: two"
        assert len(chat.path) == 2


async def test_lanes_that_are_left_while_they_are_written_are_stopped_and_shown_so(tmp_path: Path) -> None:
    async with chatting(tmp_path, talker(tokens_per_s=40)) as chat:
        chat.app.settings = replace(chat.app.settings)
        await chat.say("Hello")
        await chat.pilot.press("escape")
        await chat.idle()
        await chat.say("/compare 3")
        await chat.until(lambda: isinstance(chat.app.screen, LanesScreen), "the lanes")
        await chat.until(lambda: chat.app.session.answer and chat.app.session.answer.count > 9, "some tokens")
        await chat.pilot.press("right", "enter")
        await chat.idle()
        assert not isinstance(chat.app.screen, LanesScreen)
        beside = chat.app.session.conversation.siblings(chat.path[-1])
        assert [turn.finish for turn in beside[1:]] == ["cancelled"] * 3
        assert chat.path[-1].id == beside[2].id
        await chat.until_shown("stopped")


async def test_a_branch_chosen_while_an_answer_is_written_stays_chosen(tmp_path: Path) -> None:
    model = talker()
    async with chatting(tmp_path, model) as chat:
        first = await chat.ask("Hello")
        model.tokens_per_s = 60
        await chat.say("/regenerate")
        await chat.until(lambda: chat.path[-1].text)
        second = chat.path[-1]
        chat.app.action_command("older")
        assert chat.path[-1].id == first.id
        model.tokens_per_s = 0
        await chat.idle()
        assert chat.path[-1].id == first.id
        assert second.finish == "stop"
        assert chat.screen_text.count("Assistant") == 1
        chat.app.action_command("newer")
        assert chat.path[-1].id == second.id


async def test_what_waits_is_said_where_it_was_written(tmp_path: Path) -> None:
    model = talker(**SLOW)
    async with chatting(tmp_path, model) as chat:
        await chat.say("one")
        await chat.until(lambda: chat.path[-1].text)
        first = chat.app.session.conversation
        await chat.say("two")
        await chat.pilot.press("ctrl+n")
        await chat.pilot.press(*"other")
        model.tokens_per_s = 0
        await chat.until(lambda: len(first.turns) == 4 and not chat.app.session.answer, "the second answer")
        assert not chat.app.session.conversation.turns
        assert chat.app.composer.text == "other"
        assert [turn.text for turn in first.path() if turn.role == "user"] == ["one", "two"]


async def test_what_was_written_in_a_new_conversation_is_kept(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.ask("one")
        await chat.pilot.press("ctrl+n")
        await chat.pilot.press(*"a thought")
        await chat.pilot.press("ctrl+n")
        assert chat.app.composer.text == ""
        assert len(chat.app.session.store.listing()) == 2
        id = next(row.id for row in chat.app.session.store.listing() if not row.turns)
        chat.app.session.open(id)
        assert chat.app.composer.text == "a thought"
        chat.app.composer.clear()
        await chat.pilot.pause(0.5)
        await chat.pilot.press("ctrl+n")
        assert len(chat.app.session.store.listing()) == 1


async def test_going_on_in_the_middle_leaves_what_followed_as_it_is(tmp_path: Path) -> None:
    async with chatting(tmp_path, talker(), start=Start(model="fake", options={"max_tokens": 9})) as chat:
        cut = await chat.ask("one")
        text = cut.text
        await chat.ask("two")
        chat.app.transcript.focus()
        await chat.pilot.press("K", "K", "K", "full_stop")
        await chat.idle()
        assert cut.text == text
        assert chat.path[0].text == "one"
        assert len(chat.path) == 2
        assert chat.path[1].text.startswith(text)
        assert len(chat.path[1].tokens) == 18
        assert len(chat.app.session.conversation.turns) == 5


async def test_ids_of_another_model_are_not_gone_on_with(tmp_path: Path) -> None:
    models = {"a": talker(name="a"), "b": talker(name="b")}

    def load(name: str, *, loading: object, progress: object, **options: object) -> FakeLLM:
        return models[name]

    start = Start(model="a", options={"max_tokens": 9})
    async with chatting(tmp_path, load=load, start=start) as chat:
        await chat.ask("one")
        await chat.say("/models b")
        await chat.until(lambda: chat.app.engine.model and chat.app.engine.model.name == "b")
        await chat.say("/continue")
        assert any("begun by another model" in told for told in chat.told)
        messages = chat.app.session.ask_for("two").messages
        assert messages[1].ids is None
        assert messages[1].content == chat.path[1].text


async def test_two_windows_keep_what_each_has_changed(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.ask("one")
        id = chat.app.session.conversation.id
        other = Store.open(tmp_path / "conversations.db")
        there = other.load(id)
        there.title, there.named = "Renamed elsewhere", True
        other.save(there)
        await chat.ask("two")
        assert other.load(id).title == "Renamed elsewhere"
        assert len(other.load(id).turns) == 4
        other.close()


async def test_what_cannot_be_saved_at_the_end_is_written_to_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    monkeypatch.setattr("tui.session._PATIENCE_S", 0.2)
    async with chatting(tmp_path) as chat:
        other = sqlite3.connect(tmp_path / "conversations.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        await chat.ask("important")
        chat.app.session.finish()
        (file,) = chat.app.session.rescue(tmp_path)
        other.close()
    async with chatting(tmp_path) as chat:
        await chat.say(f"/import {file}")
        assert chat.path[0].text == "important"


async def test_options_of_the_command_hold_for_new_conversations_too(tmp_path: Path) -> None:
    start = Start(model="fake", options={"temperature": 0.0}, system="Be brief.")
    async with chatting(tmp_path, start=start) as chat:
        await chat.ask("one")
        await chat.pilot.press("ctrl+n")
        assert chat.app.session.options["temperature"] == 0
        assert chat.app.session.conversation.system == "Be brief."


async def test_a_failed_round_after_tools_keeps_what_the_tools_gave(tmp_path: Path) -> None:
    model = FakeLLM(calls=(ToolCall("abc123def", "now", "{}"),), fail_after=0)

    def now() -> str:
        """The time."""
        return "noon"

    async with chatting(tmp_path, model, start=Start(model="fake", tools=(now,))) as chat:
        await chat.say("When?")
        await chat.idle()
        assert [turn.role for turn in chat.path][:3] == ["user", "assistant", "tool"]
        assert chat.path[1].finish == "stop"
        assert chat.path[1].calls
        assert chat.path[1].receipt
        assert chat.path[2].text == "noon"


async def test_the_palette_finds_every_command(tmp_path: Path) -> None:
    async with chatting(tmp_path) as chat:
        await chat.pilot.press("ctrl+p")
        await chat.until_shown("chats: list")
        await chat.pilot.press(*"receipt")
        await chat.until_shown("receipt: how an answer was made")
        await chat.pilot.press("escape")
        assert (await chat.ask("Hello")).finish == "stop"
