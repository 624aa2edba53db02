"""How a chat is asked to begin: what the command hands to the screen, or to the plain chat."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tui.conversation import Conversation
    from tui.settings import Settings
    from tui.store import Store


@dataclass(frozen=True)
class Start:
    """What was asked for on the command line.

    Attributes:
        model: the model to load; None for that of the settings, or of the newest conversation.
        system: the system prompt; None for that of the settings or the conversation.
        options: how answers are sampled, before what the settings and the conversation say.
        loading: options of `mistral_mlx.load`.
        continue_newest: go on with the newest conversation.
        resume: go on with the conversation whose id begins so.
        draft: what stands in the prompt, unsent.
        theme: the name of a theme; None for that of the settings.
        tools: functions that the model may call.
    """

    model: str | None = None
    system: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    loading: Mapping[str, Any] = field(default_factory=dict)
    continue_newest: bool = False
    resume: str | None = None
    draft: str = ""
    theme: str | None = None
    tools: tuple[Callable[..., Any], ...] = ()


def begin(start: Start, settings: Settings, store: Store) -> Conversation:
    """The conversation to begin with: the one that was asked for, or a new one.

    Raises:
        InputError: no conversation has that id, or several.
        StoreError: the conversations cannot be read now.
    """
    from tui.conversation import Conversation

    wanted = None
    if start.resume is not None:
        wanted = store.find(start.resume)
    elif start.continue_newest:
        wanted = store.newest()
    conversation = store.load(wanted) if wanted else Conversation(system=settings.system)
    if start.system is not None:
        conversation.system = start.system
    conversation.options |= start.options
    return conversation


def model_of(start: Start, settings: Settings, store: Store, conversation: Conversation) -> str:
    """The model to load for a conversation that begins; empty where nothing says which."""
    if name := start.model or conversation.model or settings.model:
        return name
    return store.last_model()
