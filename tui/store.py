"""Conversations on disk, in one SQLite file that survives a crash, a full disk and a second window.

What was saved is committed: killing the program loses nothing of it. Whoever calls keeps what could not be saved (the
disk is full, another window writes) and saves it again later.
"""

from __future__ import annotations

import json
import sqlite3
import time
from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from mistral_mlx.completion import Stats, ToolCall
from mistral_mlx.errors import InputError, MistralError
from tui.conversation import Conversation, Role, Tokens, Turn, well_formed
from tui.schema import MIGRATIONS, statements
from tui.words import query, snippet, spaced

_KEEP_DELETED = 30 * 86_400.0
_BUSY_S = 0.05

_OF_CONVERSATION = "id, title, named, pinned, model, system, options, tip, draft, created, updated, deleted"
_OF_TURN = (
    "id, conversation, parent, role, text, thinking, tool_calls, tool_call_id, tokens, kept, finish, error, stats, "
    "receipt, created"
)


def _upsert(table: str, columns: str, key: str, fixed: str) -> str:
    names = columns.split(", ")
    changed = ", ".join(f"{name} = excluded.{name}" for name in names if name not in (key, *fixed.split(", ")))
    places = ", ".join("?" * len(names))
    return f"INSERT INTO {table} ({columns}) VALUES ({places}) ON CONFLICT ({key}) DO UPDATE SET {changed}"


# Deleting and undoing it are the store's: a late save of a deleted conversation does not bring it back.
_SAVE_CONVERSATION = _upsert("conversations", _OF_CONVERSATION, "id", "created, deleted") + " RETURNING number"
_SAVE_TURN = _upsert("turns", _OF_TURN, "id", "conversation, created")


class StoreError(MistralError):
    """The conversations cannot be read or written now: locked, full, read-only, damaged, too new."""


class _DamagedError(StoreError):
    """The file is no database, or no sound one."""


@dataclass(frozen=True)
class Summary:
    """A conversation in the list.

    Attributes:
        updated: seconds since 1970.
        turns: how many it has, on all of its branches.
    """

    id: str
    title: str
    pinned: bool
    updated: float
    turns: int
    model: str


@dataclass(frozen=True)
class Hit:
    """Where a search found something.

    Attributes:
        turn_id: None where it is the conversation's title.
        snippet: the words around it; what was found stands between `words.MARKS`.
        role: who said it; None for a title.
        created: seconds since 1970.
    """

    conversation_id: str
    turn_id: int | None
    title: str
    snippet: str
    role: Role | None
    created: float


class Store:
    """The conversations in a file. One thread uses it; each call takes a fraction of a frame.

    Every method raises StoreError if the file cannot be used at this moment; nothing is half done then.

    Attributes:
        path: the file; ":memory:" keeps them for as long as the program runs.
        notice: what the user has to be told about the opening; empty if nothing.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.notice = ""
        self._known: dict[str, dict[str, Any]] = {}  # the facts that were loaded or saved last
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if str(path) != ":memory:":
                self.path.touch(mode=0o600)  # what was said is nobody else's business
        except OSError as error:
            raise StoreError(
                f"The conversations cannot be kept in {self.path}: {error.strerror}.",
                "Make room, or change the permissions of the folder.",
            ) from error
        with self._told():
            self._db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
        try:
            with self._told():
                self._prepare()
        except BaseException:
            self._db.close()
            raise

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open the file; a damaged one is kept aside and a fresh one begun, which `notice` tells.

        Raises:
            StoreError: it cannot be used for another reason; it stays as it is.
        """
        try:
            return cls(path)
        except _DamagedError:
            aside = _keep_aside(Path(path))
            store = cls(path)
            store.notice = (
                f"The saved conversations could not be read. That file is kept as {aside}, and a new one was begun."
            )
            return store

    def close(self) -> None:
        """Done; another call is an error."""
        with suppress(sqlite3.Error):  # what was saved is safe without it
            self._db.close()

    # ---- one conversation ------------------------------------------------------------------------------------------

    def save(self, conversation: Conversation, turns: Iterable[Turn] = ()) -> None:
        """Write a conversation's own facts, and those of its turns that are new or have changed: all or nothing.

        Of a conversation that was loaded or saved here before, only the facts that have changed since are written: a
        title that another window has given meanwhile stays.
        """
        facts = _facts_of(conversation)
        before = self._known.get(conversation.id, {})
        changed = [name for name in facts if facts[name] != before.get(name) and name not in ("created", "deleted")]
        with self._told(), self._transaction():
            row = None
            if before and changed:
                setting = ", ".join(f"{name} = ?" for name in changed)
                row = self._db.execute(
                    f"UPDATE conversations SET {setting} WHERE id = ? RETURNING number",
                    [*(facts[name] for name in changed), conversation.id],
                ).fetchone()
            elif before:
                row = self._db.execute("SELECT number FROM conversations WHERE id = ?", [conversation.id]).fetchone()
            [number] = row or self._db.execute(_SAVE_CONVERSATION, list(facts.values())).fetchone()
            # Where another window has purged it, all of it is written anew.
            every = turns if row or not before else conversation.turns.values()
            self._db.executemany(_SAVE_TURN, (_row_of(turn, number) for turn in every))
        self._known[conversation.id] = facts

    def load(self, conversation_id: str) -> Conversation:
        """A conversation with all of its turns. An answer that was not finished when it was saved is "interrupted".

        Raises:
            InputError: there is none of this id.
        """
        with self._told():
            facts = self._db.execute(
                f"SELECT number, {_OF_CONVERSATION} FROM conversations WHERE id = ?", [conversation_id]
            ).fetchone()
            if facts is None:
                raise InputError(f"There is no conversation {conversation_id}.", "It may have been deleted for good.")
            rows = self._db.execute(
                f"SELECT {_OF_TURN} FROM turns WHERE conversation = ? ORDER BY id", facts[:1]
            ).fetchall()
        _, id, title, named, pinned, model, system, options, tip, draft, created, updated, deleted = facts
        try:
            turns = {row[0]: _turn_of(row) for row in rows}
            sampling = json.loads(options)
        except (ValueError, TypeError) as error:
            raise StoreError(
                f"The conversation {id} is damaged in {self.path}: {error}.", "The others can still be opened."
            ) from error
        for turn in turns.values():
            turn.parent = turn.parent if turn.parent in turns else None
        tip = tip if tip is None or tip in turns else max(turns, default=None)
        conversation = Conversation(
            id, title, bool(named), bool(pinned), model, system, sampling, tip, draft, created, updated, deleted, turns
        )
        self._known[id] = _facts_of(conversation)
        return conversation

    def delete(self, conversation_id: str) -> None:
        """Out of the list and of what is searched; `undelete` brings it back within thirty days."""
        self._set_deleted(conversation_id, time.time())

    def undelete(self, conversation_id: str) -> None:
        """Bring a deleted conversation back."""
        self._set_deleted(conversation_id, None)

    def _set_deleted(self, conversation_id: str, when: float | None) -> None:
        with self._told(), self._transaction():
            self._db.execute("UPDATE conversations SET deleted = ? WHERE id = ?", [when, conversation_id])

    def purge(self, older_than: float = _KEEP_DELETED) -> int:
        """Remove for good what was deleted more than `older_than` seconds ago; returns how many conversations."""
        with self._told(), self._transaction():
            done = self._db.execute("DELETE FROM conversations WHERE deleted < ?", [time.time() - older_than])
            return done.rowcount

    # ---- all of them -----------------------------------------------------------------------------------------------

    def listing(self, limit: int = 100, offset: int = 0) -> list[Summary]:
        """The conversations: the pinned ones first, then by when they were last changed, the newest first."""
        with self._told():
            rows = self._db.execute(
                "SELECT id, title, pinned, updated, (SELECT COUNT(*) FROM turns WHERE conversation = number), model"
                " FROM conversations WHERE deleted IS NULL ORDER BY pinned DESC, updated DESC LIMIT ? OFFSET ?",
                [limit, offset],
            )
            return [Summary(id, title, bool(pinned), *rest) for id, title, pinned, *rest in rows]

    def newest(self) -> str | None:
        """The id of the conversation that was changed last; None if there is none."""
        with self._told():
            found = self._db.execute(
                "SELECT id FROM conversations WHERE deleted IS NULL ORDER BY updated DESC LIMIT 1"
            ).fetchone()
            return found[0] if found else None

    def last_model(self) -> str:
        """The name of the model that was talked to last; empty if there is none."""
        with self._told():
            found = self._db.execute(
                "SELECT model FROM conversations WHERE deleted IS NULL AND model <> '' ORDER BY updated DESC LIMIT 1"
            ).fetchone()
            return found[0] if found else ""

    def find(self, beginning: str) -> str:
        """The id of the one conversation whose id begins so.

        Raises:
            InputError: there is none, or several.
        """
        with self._told():
            rows = self._db.execute(
                "SELECT id FROM conversations WHERE deleted IS NULL AND substr(id, 1, ?) = ? ORDER BY updated DESC",
                [len(beginning), well_formed(beginning).lower()],
            )
            ids = [id for (id,) in rows]
        if len(ids) == 1:
            return str(ids[0])
        if not ids:
            raise InputError(
                f"No conversation's id begins with {beginning!r}.",
                "It is told when you leave a chat.",
            )
        raise InputError(
            f"{len(ids)} conversations have ids that begin with {beginning!r}: {', '.join(ids[:5])}"
            f"{', …' if len(ids) > 5 else ''}.",
            "Give more of it.",
        )

    def prompts(self, limit: int = 300) -> list[str]:
        """What the user has said last in all conversations, the newest at the end."""
        with self._told():
            rows = self._db.execute("SELECT text FROM turns WHERE role = 'user' ORDER BY id DESC LIMIT ?", [limit])
            return [text for (text,) in rows][::-1]

    def search(self, text: str, limit: int = 50) -> list[Hit]:
        """Where all of these words are said: first in titles, then in turns, the newest first.

        Case and accents do not matter, the last word may be unfinished, and of Chinese, Japanese, Korean or Thai text
        any part is found. Any text can be searched for; it has no operators.
        """
        wanted = query(text)
        if not wanted:
            return []
        with self._told():
            titles = self._db.execute(
                "SELECT c.id, NULL, c.title, c.title, NULL, c.created"
                " FROM title_index AS i JOIN conversations AS c ON c.number = i.rowid"
                " WHERE title_index MATCH ? AND c.deleted IS NULL ORDER BY c.updated DESC LIMIT ?",
                [wanted, limit],
            ).fetchall()
            turns = self._db.execute(
                "SELECT c.id, t.id, c.title, t.text, t.role, t.created"
                " FROM said_index AS i CROSS JOIN turns AS t ON t.id = i.rowid"
                " CROSS JOIN conversations AS c ON c.number = t.conversation"
                " WHERE said_index MATCH ? AND c.deleted IS NULL ORDER BY i.rowid DESC LIMIT ?",
                [wanted, limit - len(titles)],
            ).fetchall()
        return [
            Hit(id, turn, title, snippet(said, text), role, created)
            for id, turn, title, said, role, created in [*titles, *turns]
        ]

    # ---- the database ----------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        self._db.create_function("spaced", 1, spaced, deterministic=True)
        [(version,)] = self._db.execute("PRAGMA user_version")
        if version > len(MIGRATIONS):
            raise StoreError(
                f"The conversations in {self.path} were written by a newer version of this program.",
                "Update it to open them.",
            )
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "foreign_keys = ON"):
            self._db.execute(f"PRAGMA {pragma}")
        if self._mark.exists():
            self._check()
        while version < len(MIGRATIONS):
            with self._transaction():
                [(version,)] = self._db.execute("PRAGMA user_version")  # another window may have been faster
                if version < len(MIGRATIONS):
                    for statement in statements(MIGRATIONS[version]):
                        self._db.execute(statement)
                    version += 1
                    self._db.execute(f"PRAGMA user_version = {version}")
        try:
            self._tidy()
        except _DamagedError:
            raise
        except StoreError:
            pass  # another window writes, or the disk is full: the next opening does it

    def _tidy(self) -> None:
        """What the last run left. If another window is in fact still writing an answer, its next save says so again."""
        with self._told(), self._transaction():
            self._db.execute("UPDATE turns SET finish = 'interrupted' WHERE role = 'assistant' AND finish IS NULL")
        self.purge()

    @property
    def _mark(self) -> Path:
        """Exists from when damage is met until the file has been checked: checking each time would take too long."""
        return self.path.with_name(self.path.name + ".check")

    def _check(self) -> None:
        [(found,)] = self._db.execute("PRAGMA quick_check(1)")
        if found != "ok":
            raise sqlite3.DatabaseError(found)
        self._db.execute("REINDEX")
        for index in ("said_index", "title_index"):
            self._db.execute(f"INSERT INTO {index} ({index}) VALUES ('rebuild')")
        self._mark.unlink(missing_ok=True)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # some failures have ended it already
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as sentences."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise  # our mistake, and no state of the file
        except sqlite3.Error as error:
            raise self._error(error) from error

    def _error(self, error: sqlite3.Error) -> StoreError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF  # none: our own, or no SQLite's text
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreError(
                f"The conversations in {self.path} are in use by another window just now.",
                "Nothing is lost: it is saved when the other one is done.",
            )
        if code == sqlite3.SQLITE_FULL:
            return StoreError("The disk is full, so the conversation is not saved.", "Make room: it is then saved.")
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
            return StoreError(
                f"The conversations in {self.path} cannot be opened for writing.",
                "Check the permissions of the file and its folder.",
            )
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            with suppress(OSError):
                self._mark.touch()
            return _DamagedError(
                f"The file {self.path} is damaged ({error}).", "Start the program again: it checks and replaces it."
            )
        return StoreError(f"The conversations in {self.path} cannot be used: {error}.", "Try again.")


def _keep_aside(path: Path) -> Path:
    """Rename a database and what belongs to it; returns its new name."""
    aside = path.with_name(f"{path.name}.corrupt-{datetime.now():%Y-%m-%d-%H%M%S}")
    try:
        for suffix in ("-wal", "-shm", ""):
            with suppress(FileNotFoundError):
                path.with_name(path.name + suffix).rename(aside.with_name(aside.name + suffix))
        path.with_name(path.name + ".check").unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"The file {path} is damaged and cannot be moved: {error.strerror}.", "Move it away, or make it writable."
        ) from error
    return aside


def _facts_of(c: Conversation) -> dict[str, Any]:
    """What a conversation's row holds, by the columns."""
    facts = [c.id, well_formed(c.title), c.named, c.pinned, well_formed(c.model), well_formed(c.system)]
    facts += [json.dumps(c.options), c.tip, well_formed(c.draft), c.created, c.updated, c.deleted]
    return dict(zip(_OF_CONVERSATION.split(", "), facts, strict=True))


def _row_of(turn: Turn, conversation: int) -> tuple[Any, ...]:
    call_id = turn.tool_call_id
    return (
        turn.id,
        conversation,
        turn.parent,
        turn.role,
        well_formed(turn.text),
        well_formed(turn.thinking),
        json.dumps([asdict(call) for call in turn.tool_calls]) if turn.tool_calls else None,
        call_id if call_id is None else well_formed(call_id),
        turn.tokens.to_bytes() if turn.tokens else None,
        None if turn.kept is None else array("I", turn.kept).tobytes(),
        turn.finish,
        well_formed(turn.error),
        json.dumps(asdict(turn.stats)) if turn.stats else None,
        None if turn.receipt is None else json.dumps(turn.receipt),
        turn.created,
    )


def _turn_of(row: tuple[Any, ...]) -> Turn:
    id, _, parent, role, text, thinking, calls, call_id, tokens, kept, finish, error, stats, receipt, created = row
    return Turn(
        id,
        parent,
        role,
        text,
        thinking,
        tuple(ToolCall(**call) for call in json.loads(calls or "[]")),
        call_id,
        Tokens.from_bytes(tokens or b""),
        None if kept is None else tuple(array("I", kept)),
        "interrupted" if role == "assistant" and finish is None else finish,
        error,
        _stats_of(stats),
        None if receipt is None else json.loads(receipt),
        created,
    )


def _stats_of(text: str | None) -> Stats | None:
    """None also for those that another version of the library gave, with other fields."""
    if not text:
        return None
    given = json.loads(text)
    try:
        return Stats(**given | {"reading": tuple(given.get("reading", ()))})
    except TypeError:
        return None
