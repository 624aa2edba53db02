"""Conversations on disk: nothing that was saved is lost, whatever happens, and all of it is found."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mistral_mlx.completion import Stats, ToolCall
from mistral_mlx.errors import InputError, MistralError
from tests.tui.test_conversation import forked, say
from tui import schema
from tui.conversation import Conversation, Tokens, Turn, new_id, well_formed
from tui.store import Store, StoreError
from tui.words import MARKS

STATS = Stats(10, 8, 3, 0.25, 100.0, 50.0, 4096, 10**9)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "chats.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    store = Store(path)
    yield store
    store.close()


def talk(*said: str, title: str = "") -> Conversation:
    """A conversation of these messages, by turns the user's and the assistant's."""
    c = Conversation(title=title)
    for i, text in enumerate(said):
        say(c, "assistant" if i % 2 else "user", text)
    return c


def keep(store: Store, *said: str, title: str = "") -> Conversation:
    """The same, saved."""
    c = talk(*said, title=title)
    store.save(c, c.turns.values())
    return c


def snippets(store: Store, text: str) -> list[str]:
    """What is found, with the marks as brackets."""
    return [hit.snippet.translate({2: "[", 3: "]"}) for hit in store.search(text)]


# ---- what is saved is what is loaded ---------------------------------------------------------------------------------


def test_a_conversation_comes_back_as_it_was(store: Store, path: Path) -> None:
    c, turns = forked()
    c.title, c.named, c.pinned, c.model, c.system, c.draft = "Fork", True, True, "demo", "Be brief.", "and th"
    c.options = {"temperature": 0.5, "stop": ["."], "seed": None}
    turns[3].tokens.add([1, 2], [-0.5, -1.0], 1)
    turns[3].kept, turns[3].stats, turns[3].receipt = (1, 2), STATS, {"model": {"sha": "ab"}}
    turns[3].tool_calls, turns[3].thinking = (ToolCall("abcdefghi", "f", "{"),), "hm"
    turns[5].finish, turns[5].error = "failed", "The model is gone."
    say(c, "tool", "42", tool_call_id="abcdefghi", parent=turns[3].id)
    store.save(c, c.turns.values())
    store.close()
    again = Store(path)
    assert again.load(c.id) == c
    again.close()


def test_only_what_changed_is_written(store: Store) -> None:
    c = keep(store, "hello", "h")
    c.path()[0].text = "not saved"
    c.path()[1].text = "hi"
    store.save(c, [c.path()[1]])
    assert [turn.text for turn in store.load(c.id).path()] == ["hello", "hi"]


def test_an_answer_that_was_being_written_is_interrupted(store: Store, path: Path) -> None:
    c = keep(store, "hello")
    store.save(c, [say(c, "assistant", "once upon a", finish=None)])
    assert [turn.finish for turn in store.load(c.id).path()] == [None, "interrupted"]
    assert store.search("upon") == []
    again = Store(path)  # the program starts anew, or a second window is opened
    assert len(again.search("upon")) == 1
    again.close()
    c.path()[1].text = "once upon a time"
    store.save(c, [c.path()[1]])
    assert store.search("upon") == []
    c.path()[1].finish = "stop"
    store.save(c, [c.path()[1]])
    assert snippets(store, "time") == ["once upon a [time]"]


def test_stats_of_another_version_are_left_out(store: Store) -> None:
    c = keep(store, "hello", "hi")
    c.path()[1].stats = STATS
    store.save(c, c.path())
    store._db.execute("""UPDATE turns SET stats = '{"of another": "version"}' WHERE stats IS NOT NULL""")
    assert store.load(c.id).path()[1].stats is None


def test_a_turn_whose_parent_was_not_saved_begins_the_conversation(store: Store) -> None:
    c = talk("hello", "hi")
    store.save(c, [c.path()[1]])
    assert [turn.text for turn in store.load(c.id).path()] == ["hi"]
    c.tip = 12345
    store.save(c)
    assert [turn.text for turn in store.load(c.id).path()] == ["hi"]


def test_what_is_not_there_is_told(store: Store) -> None:
    with pytest.raises(InputError, match="no conversation nowhere"):
        store.load("nowhere")


def test_a_session_that_cannot_be_stored_goes_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(":memory:")
    c = keep(store, "hello")
    assert store.load(c.id) == c
    assert list(tmp_path.iterdir()) == []


TEXT = st.text(st.characters(codec=None, categories=None), max_size=40)  # surrogates and NUL among them
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
TIMES = st.floats(0, 4e9)


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Any tree."""
    turns: dict[int, Turn] = {}
    for _ in range(draw(st.integers(0, 6))):
        role = draw(st.sampled_from(["user", "assistant", "tool"]))
        turn = Turn(new_id(), draw(st.sampled_from([None, *turns])), role, draw(TEXT), created=draw(TIMES))
        turns[turn.id] = turn
        if role == "tool":
            turn.tool_call_id = draw(TEXT)
        if role == "assistant":
            turn.thinking, turn.error = draw(TEXT), draw(TEXT)
            turn.finish = draw(st.sampled_from(["stop", "length", "cancelled", "failed", "interrupted"]))
            turn.tool_calls = tuple(
                ToolCall(*draw(st.tuples(TEXT, TEXT, TEXT))) for _ in range(draw(st.integers(0, 2)))
            )
            turn.stats = draw(st.sampled_from([None, STATS]))
            turn.receipt = draw(st.none() | st.dictionaries(TEXT, JSON, max_size=3))
            for token in draw(st.lists(st.integers(0, 2**32 - 1), max_size=4)):
                turn.tokens.add([token], [draw(st.floats(-100, 0, width=32))], draw(st.integers(0, 2**32 - 1)))
            turn.kept = draw(st.sampled_from([None, (), tuple(turn.tokens.ids)]))
    return Conversation(
        title=draw(TEXT),
        named=draw(st.booleans()),
        pinned=draw(st.booleans()),
        model=draw(TEXT),
        system=draw(TEXT),
        options=draw(st.dictionaries(TEXT, JSON, max_size=3)),
        tip=draw(st.sampled_from([None, *turns])),
        draft=draw(TEXT),
        created=draw(TIMES),
        updated=draw(TIMES),
        turns=turns,
    )


def cleaned(c: Conversation) -> Conversation:
    """With what the store replaces replaced."""
    for owner, names in (
        (c, ("title", "model", "system", "draft")),
        *((t, ("text", "thinking", "error")) for t in c.turns.values()),
    ):
        for name in names:
            setattr(owner, name, well_formed(getattr(owner, name)))
    for turn in c.turns.values():
        turn.tool_call_id = None if turn.tool_call_id is None else well_formed(turn.tool_call_id)
    return c


@given(conversations(), TEXT)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
def test_any_tree_comes_back_and_any_text_can_be_searched_for(store: Store, c: Conversation, text: str) -> None:
    store.save(c, c.turns.values())
    assert store.load(c.id) == cleaned(c)
    for said in (text, c.title, *(turn.text for turn in c.turns.values())):
        for hit in store.search(said):
            assert hit.snippet.count(MARKS[0]) == hit.snippet.count(MARKS[1])


# ---- the list --------------------------------------------------------------------------------------------------------


def test_the_list_has_the_pinned_first_and_then_the_newest(store: Store) -> None:
    made = [keep(store, *["hello", "hi"][:n], title=f"{n}") for n in (0, 1, 2)]
    made[0].pinned = True
    for c, updated in zip(made, (1.0, 2.0, 3.0), strict=True):
        c.updated = updated
        store.save(c)
    listed = store.listing()
    assert [(s.title, s.turns, s.pinned) for s in listed] == [("0", 0, True), ("2", 2, False), ("1", 1, False)]
    assert [s.title for s in store.listing(limit=1, offset=1)] == ["2"]
    assert store.newest() == made[2].id


def test_what_is_deleted_comes_back_until_it_is_purged(store: Store) -> None:
    c = keep(store, "hello", "goodbye", title="parting")
    store.delete(c.id)
    store.save(c, c.path())  # an answer that was still running
    assert store.listing() == []
    assert store.newest() is None
    assert store.search("goodbye") == store.search("parting") == []
    store.undelete(c.id)
    assert len(store.listing()) == 1
    assert len(store.search("goodbye")) == 1
    store.delete(c.id)
    assert store.purge() == 0
    assert store.purge(older_than=-1) == 1
    with pytest.raises(InputError):
        store.load(c.id)
    assert store._db.execute("SELECT COUNT(*) FROM turns").fetchone() == (0,)
    store._db.execute("INSERT INTO said_index (said_index) VALUES ('integrity-check')")
    assert store._db.execute("SELECT COUNT(*) FROM said_index WHERE said_index MATCH 'goodbye'").fetchone() == (0,)


def test_opening_purges_what_was_deleted_long_ago(store: Store, path: Path) -> None:
    old, new = keep(store, "old"), keep(store, "new")
    for c, days in ((old, 31), (new, 29)):
        store._set_deleted(c.id, time.time() - days * 86_400)
    Store(path).close()
    store.undelete(new.id)
    store.undelete(old.id)
    assert [s.id for s in store.listing()] == [new.id]


def test_a_conversation_is_found_by_the_beginning_of_its_id(store: Store) -> None:
    assert store.newest() is None
    for id in ("abcd1234", "abzz9999"):
        store.save(Conversation(id=id))
    assert store.find("abc") == store.find("ABCD1234") == "abcd1234"
    with pytest.raises(InputError, match=r"2 conversations .* abcd1234|2 conversations .* abzz9999"):
        store.find("ab")
    with pytest.raises(InputError, match="No conversation's id begins with '%'"):
        store.find("%")


# ---- the search ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "query", "found"),
    [
        ("The rolling buffer cache", "ROLLING", "The [rolling] buffer cache"),
        ("The rolling buffer cache", "buff", "The rolling [buffer] cache"),
        ("The rolling buffer cache", "cache the", "[The] rolling buffer [cache]"),
        ("un café crème", "cafe creme", "un [café] [crème]"),
        ("私は東京都に住んでいる", "京都", "私は東[京都]に住んでいる"),
        ("한국어를 배우다", "국어", "한[국어]를 배우다"),
        ("ภาษาไทย", "ไทย", "ภาษา[ไทย]"),
        ("lift-off🚀🚀now", "🚀", "lift-off[🚀][🚀]now"),
        ("call sliding_window(x)", "sliding_window(", "call [sliding_window](x)"),
        ("a AND b NOT c", "AND NOT", "a [AND] b [NOT] c"),
        ('say "please" now', '"please"', 'say "[please]" now'),
        ("col: umn", "text:col", None),
        ("nul\0in\x02the\x03middle", "middle", "nul in the [middle]"),
        ("nothing", "*", None),
        ("nothing", '" "', None),
        ("nothing", "", None),
        ("nothing to see", "nothing -- here", None),
        ("nothing to see", "nothing -- se", "[nothing] to [see]"),
        ("Ünïcödé", "unicode", "[Ünïcödé]"),
        ("東needle京", "needle", "東[needle]京"),
        ("привет мир", "МИР", "привет [мир]"),
    ],
)
def test_search(store: Store, said: str, query: str, found: str | None) -> None:
    keep(store, said)
    assert snippets(store, query) == ([found] if found else [])


def test_hits_are_titles_and_then_the_newest_turns(store: Store) -> None:
    first = keep(store, "the cache is full", "which cache?", title="Emptying")
    second = keep(store, "hello", title="The cache")
    hits = store.search("cache")
    assert [(hit.conversation_id, hit.turn_id, hit.title, hit.role) for hit in hits] == [
        (second.id, None, "The cache", None),
        (first.id, first.path()[1].id, "Emptying", "assistant"),
        (first.id, first.path()[0].id, "Emptying", "user"),
    ]
    assert store.search("cache", limit=2) == hits[:2]
    assert store.search("cache", limit=1) == hits[:1]
    second.title = "Renamed"
    store.save(second)
    assert len(store.search("cache")) == 2
    assert snippets(store, "renam") == ["[Renamed]"]


def test_a_long_search_and_a_long_turn(store: Store) -> None:
    keep(store, "word " * 4000 + "needle " + "word " * 4000)
    [snippet] = snippets(store, "needle")
    assert "[needle]" in snippet
    assert len(snippet) < 200
    assert len(store.search("word " * 10_000)) == 1


@pytest.mark.parametrize(
    "said", ["needle" * 5000, "a " * 5000 + "needle", "needle " + "東" * 5000, "\u0301" * 500 + "needle"]
)
def test_snippets_are_short(store: Store, said: str) -> None:
    keep(store, said)
    [found] = snippets(store, "needle")
    assert "[needle" in found
    assert len(found) <= 160 + 6 or said.startswith("needleneedle")


# ---- faults ----------------------------------------------------------------------------------------------------------

CHILD = """
import sys, time
from tui.conversation import Conversation, Turn, new_id
from tui.store import Store

store = Store(sys.argv[1])
c = Conversation(id="diesoon1")
c.add(Turn(new_id(), None, "user", "Tell me a long story."))
answer = c.add(Turn(new_id(), c.tip, "assistant"))
saved = 0
while True:
    for _ in range(10):
        answer.text += f"word{saved} "
        answer.tokens.add([saved], [-1.0], len(answer.text))
        saved += 1
    store.save(c, c.path())
    print(saved, flush=True)
    time.sleep(0.1)
"""


def test_killing_the_program_loses_nothing_that_was_saved(path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", CHILD, path], stdout=subprocess.PIPE, text=True)
    assert child.stdout
    told = [child.stdout.readline() for _ in range(5)]
    child.send_signal(signal.SIGKILL)
    told += child.stdout.readlines()
    child.wait()
    saved = int(told[-1])
    store = Store(path)
    assert store.notice == ""
    answer = store.load("diesoon1").path()[1]
    assert answer.text.split()[:saved] == [f"word{i}" for i in range(saved)]
    assert len(answer.tokens) == len(answer.text.split())
    assert answer.finish == "interrupted"
    assert store._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert snippets(store, "word3 word4")  # it is searched as soon as it is known to be over
    store.close()


@pytest.mark.parametrize("kind", ["IMMEDIATE", "EXCLUSIVE"])
def test_a_lock_is_told_and_saving_again_works(store: Store, path: Path, kind: str) -> None:
    c = keep(store, "hello")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(f"BEGIN {kind}")
    turn = say(c, "assistant", "hi")
    for act in (lambda: store.save(c, [turn]), lambda: store.delete(c.id), store.purge):
        with pytest.raises(StoreError, match="in use by another window"):
            act()
    assert len(store.load(c.id).path()) == 1  # reading goes on
    second = Store(path)  # and so does opening
    assert len(second.listing()) == 1
    second.close()
    other.execute("COMMIT")
    store.save(c, [turn])
    assert store.load(c.id) == c
    other.close()


def test_a_file_that_another_has_for_itself_is_told(path: Path) -> None:
    Store(path).close()
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreError, match="in use by another window"):
        Store.open(path)
    other.close()
    Store.open(path).close()


def test_two_windows_write_in_turns(store: Store, path: Path) -> None:
    other = Store(path)
    for i in range(5):
        keep(store, f"first {i}")
        keep(other, f"second {i}")
    assert len(store.listing()) == len(other.listing()) == 10
    other.close()


def test_a_full_disk_is_told_and_saving_again_works(store: Store) -> None:
    c = keep(store, "hello")
    [(pages,)] = store._db.execute("PRAGMA page_count")
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    turn = say(c, "assistant", "long " * 10_000)
    with pytest.raises(StoreError, match="disk is full"):
        store.save(c, [turn])
    assert len(store.load(c.id).path()) == 1
    store._db.execute("PRAGMA max_page_count = 1000000")
    store.save(c, [turn])
    assert store.load(c.id) == c


def test_what_cannot_be_written_is_told(store: Store) -> None:
    store._db.execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="cannot be opened for writing"):
        keep(store, "hello")


def test_a_folder_that_cannot_be_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be kept in"):
        Store.open(tmp_path / "file" / "chats.db")
    with pytest.raises(StoreError, match="cannot be opened"):
        Store.open(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_told(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StoreError, match="Permission denied"):
        Store.open(tmp_path / "chats.db")
    tmp_path.chmod(0o700)


def test_the_file_is_the_users_alone(store: Store, path: Path) -> None:
    keep(store, "hello")
    assert {file.stat().st_mode & 0o077 for file in path.parent.iterdir()} == {0}


def _random(data: bytes) -> bytes:
    return bytes(range(256)) * (len(data) // 256)


def _truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def _wrong_header(data: bytes) -> bytes:
    return b"Not a database\0\0" + data[16:]


def _bad_schema(data: bytes) -> bytes:
    return data[:100] + bytes(4000) + data[4100:]


@pytest.mark.parametrize("damage", [_random, _truncated, _wrong_header, _bad_schema])
def test_a_damaged_file_is_kept_aside_and_a_fresh_one_begun(path: Path, damage: object) -> None:
    store = Store(path)
    keep(store, *["hello " * 500] * 20)
    store.close()
    broken = damage(path.read_bytes())  # type: ignore[operator]
    path.write_bytes(broken)
    with pytest.raises(StoreError):
        Store(path)
    store = Store.open(path)
    [aside] = path.parent.glob("chats.db.corrupt-*")
    assert aside.read_bytes() == broken
    assert str(aside) in store.notice
    keep(store, "a new beginning")
    assert len(store.listing()) == 1
    store.close()
    store = Store.open(path)
    assert store.notice == ""
    store.close()


def test_damage_that_is_met_later_is_told_and_mended_at_the_next_start(path: Path) -> None:
    store = Store(path)
    for i in range(20):
        keep(store, f"hello {i} " * 500)
    store.close()
    data = path.read_bytes()
    path.write_bytes(data[: 4096 * 30] + os.urandom(4096 * 20) + data[4096 * 50 :])
    store = Store.open(path)
    with pytest.raises(StoreError, match="Start the program again"):
        _ = [store.load(summary.id) for summary in store.listing()]
    store.close()
    store = Store.open(path)
    assert "could not be read" in store.notice
    assert store.listing() == []
    store.close()


def test_a_false_alarm_only_costs_a_check(path: Path) -> None:
    store = Store(path)
    c = keep(store, "hello")
    store._mark.touch()
    store.close()
    store = Store.open(path)
    assert store.notice == ""
    assert store.load(c.id) == c
    assert len(store.search("hello")) == 1
    assert not store._mark.exists()
    store.close()


def test_a_conversation_that_cannot_be_read_leaves_the_others(store: Store) -> None:
    bad, good = keep(store, "bad"), keep(store, "good")
    store._db.execute("UPDATE conversations SET options = 'no JSON' WHERE id = ?", [bad.id])
    with pytest.raises(StoreError, match=f"{bad.id} is damaged"):
        store.load(bad.id)
    assert store.load(good.id) == good


def test_a_newer_file_is_left_alone(path: Path) -> None:
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    with pytest.raises(StoreError) as told:
        Store.open(path)
    assert "newer version" in told.value.message
    assert "Update" in told.value.hint
    assert isinstance(told.value, MistralError)
    assert not list(path.parent.glob("*corrupt*"))


# ---- migrations ------------------------------------------------------------------------------------------------------

LATER = """
ALTER TABLE conversations ADD COLUMN colour TEXT NOT NULL DEFAULT 'grey';
CREATE TRIGGER greyed AFTER UPDATE OF colour ON conversations BEGIN
    UPDATE conversations SET pinned = 0 WHERE number = new.number;
END;
"""


def test_a_file_of_version_1_opens(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(path)
    c = keep(store, "hello", "hi")
    store.close()
    monkeypatch.setattr("tui.store.MIGRATIONS", (*schema.MIGRATIONS, LATER))
    store = Store(path)
    assert store.load(c.id) == c
    assert store._db.execute("SELECT colour FROM conversations").fetchall() == [("grey",)]
    assert store._db.execute("PRAGMA user_version").fetchone() == (len(schema.MIGRATIONS) + 1,)
    store.close()


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Store(path).close()
    before = shutil.copy(path, path.with_name("before.db"))
    monkeypatch.setattr("tui.store.MIGRATIONS", (*schema.MIGRATIONS, LATER + "INSERT INTO nowhere VALUES (1);"))
    with pytest.raises(StoreError, match="no such table: nowhere"):
        Store.open(path)
    dumps = [list(sqlite3.connect(file).execute("SELECT * FROM sqlite_schema")) for file in (path, before)]
    assert dumps[0] == dumps[1]
    monkeypatch.undo()
    Store(path).close()


def test_tokens_are_compact(store: Store) -> None:
    c = keep(store, "hello", "hi")
    c.path()[1].tokens = Tokens.from_bytes(bytes(12 * 100))
    store.save(c, c.path())
    assert store._db.execute("SELECT MAX(length(tokens)) FROM turns").fetchone() == (1200,)
