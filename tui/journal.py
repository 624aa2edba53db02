"""What has changed and is not on disk yet: nothing is forgotten before it is."""

from __future__ import annotations

from tui.conversation import Conversation, Turn
from tui.store import Store, StoreError


class Journal:
    """Keeps what is to be saved, and saves it once it can be.

    Attributes:
        trouble: why something could not be saved, in a sentence; empty if everything is.
    """

    def __init__(self, store: Store) -> None:
        self.trouble = ""
        self._store = store
        self._changed: dict[str, tuple[Conversation, dict[int, Turn]]] = {}
        self._known: set[str] = set()  # what this program has saved

    def mark(self, conversation: Conversation, *turns: Turn) -> None:
        """Note that a conversation has changed, or these turns of it."""
        held = self._changed.setdefault(conversation.id, (conversation, {}))[1]
        held.update((turn.id, turn) for turn in turns)
        self._known.add(conversation.id)

    def known(self, conversation: Conversation) -> bool:
        """Whether a conversation is on disk, or is to be."""
        return conversation.id in self._known

    def held(self, conversation_id: str) -> Conversation | None:
        """A conversation that is newer here than on disk."""
        changed = self._changed.get(conversation_id)
        return changed[0] if changed else None

    @property
    def unsaved(self) -> list[Conversation]:
        """What is not on disk yet."""
        return [conversation for conversation, _ in self._changed.values()]

    def save(self) -> bool:
        """Write what has changed, one conversation at a time; returns whether everything is on disk."""
        try:
            for id, (conversation, turns) in list(self._changed.items()):
                self._store.save(conversation, turns.values())
                del self._changed[id]
        except StoreError as error:
            self.trouble = f"{error.message} {error.hint}".strip()
            return False
        self.trouble = ""
        return True
