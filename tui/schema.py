"""The tables that conversations are kept in, and the index of their text (see `words`)."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence

# Each brings a database from the version of its index to the next, in a transaction of its own. Once released, a script
# never changes. The indexes take what was said and the titles from views, so that no text is stored twice, and an
# answer when it is finished, not at each of its partial saves.
MIGRATIONS: Sequence[str] = (
    """
    CREATE TABLE conversations (
        number INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        title TEXT NOT NULL,
        named INTEGER NOT NULL,
        pinned INTEGER NOT NULL,
        model TEXT NOT NULL,
        system TEXT NOT NULL,
        options TEXT NOT NULL,
        tip INTEGER,
        draft TEXT NOT NULL,
        created REAL NOT NULL,
        updated REAL NOT NULL,
        deleted REAL
    );
    CREATE TABLE turns (
        id INTEGER PRIMARY KEY,
        conversation INTEGER NOT NULL REFERENCES conversations ON DELETE CASCADE,
        parent INTEGER,
        role TEXT NOT NULL,
        text TEXT NOT NULL,
        thinking TEXT NOT NULL,
        tool_calls TEXT,
        tool_call_id TEXT,
        tokens BLOB,
        kept BLOB,
        finish TEXT,
        error TEXT NOT NULL,
        stats TEXT,
        receipt TEXT,
        created REAL NOT NULL,
        finished INTEGER GENERATED ALWAYS AS (role <> 'assistant' OR finish IS NOT NULL) VIRTUAL
    );
    CREATE INDEX listed ON conversations (pinned DESC, updated DESC) WHERE deleted IS NULL;
    CREATE INDEX turns_of ON turns (conversation);
    CREATE INDEX unfinished ON turns (id) WHERE role = 'assistant' AND finish IS NULL;

    CREATE VIEW said AS SELECT id, spaced(text) AS text FROM turns WHERE finished;
    CREATE VIRTUAL TABLE said_index USING fts5 (
        text, content = 'said', content_rowid = 'id', prefix = '1 2 3',
        tokenize = "unicode61 remove_diacritics 2 categories 'L* N* Co So'"
    );
    CREATE TRIGGER turn_added AFTER INSERT ON turns WHEN new.finished BEGIN
        INSERT INTO said_index (rowid, text) VALUES (new.id, spaced(new.text));
    END;
    CREATE TRIGGER turn_reopened AFTER UPDATE OF text, finish, role ON turns
    WHEN old.finished AND NOT (new.finished AND new.text IS old.text) BEGIN
        INSERT INTO said_index (said_index, rowid, text) VALUES ('delete', old.id, spaced(old.text));
    END;
    CREATE TRIGGER turn_finished AFTER UPDATE OF text, finish, role ON turns
    WHEN new.finished AND NOT (old.finished AND new.text IS old.text) BEGIN
        INSERT INTO said_index (rowid, text) VALUES (new.id, spaced(new.text));
    END;
    CREATE TRIGGER turn_removed AFTER DELETE ON turns WHEN old.finished BEGIN
        INSERT INTO said_index (said_index, rowid, text) VALUES ('delete', old.id, spaced(old.text));
    END;

    CREATE VIEW titles AS SELECT number, spaced(title) AS title FROM conversations;
    CREATE VIRTUAL TABLE title_index USING fts5 (
        title, content = 'titles', content_rowid = 'number',
        tokenize = "unicode61 remove_diacritics 2 categories 'L* N* Co So'"
    );
    CREATE TRIGGER title_added AFTER INSERT ON conversations BEGIN
        INSERT INTO title_index (rowid, title) VALUES (new.number, spaced(new.title));
    END;
    CREATE TRIGGER title_changed AFTER UPDATE OF title ON conversations WHEN new.title IS NOT old.title BEGIN
        INSERT INTO title_index (title_index, rowid, title) VALUES ('delete', old.number, spaced(old.title));
        INSERT INTO title_index (rowid, title) VALUES (new.number, spaced(new.title));
    END;
    CREATE TRIGGER title_removed AFTER DELETE ON conversations BEGIN
        INSERT INTO title_index (title_index, rowid, title) VALUES ('delete', old.number, spaced(old.title));
    END;
    """,
)


def statements(script: str) -> Iterator[str]:
    """A script's statements: SQLite runs whole scripts outside of transactions only."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
