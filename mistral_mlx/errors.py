"""The errors a user can meet: what is wrong in one sentence, what to do next in another.

Every fault that comes from outside (a file, an option, a prompt) is raised as one of these, so a front end
prints `message` and `hint` and never a traceback.
"""

from __future__ import annotations

from typing import Any


class MistralError(Exception):
    """Something the user gave cannot be used.

    Attributes:
        message: what is wrong, naming the file, key or option at fault.
        hint: what to do next; may be empty.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\n{hint}" if hint else message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[MistralError], tuple[Any, ...]]:
        # Exception's own reduce would pass the joined text as `message`.
        return type(self), (self.message, self.hint)


class ConfigError(MistralError):
    """A model's configuration is broken, or asks for something this library does not compute."""


class WeightsError(MistralError):
    """A weight file is missing, damaged, or does not hold what its configuration promises."""


class TokenizerError(MistralError):
    """Text cannot be turned into ids, or the model came without what that needs."""


class InputError(MistralError, ValueError):
    """An option, a prompt or a token id is outside what the model or the function accepts."""


class RequestError(InputError):
    """A conversation, a tool or a format of the answer that cannot be expressed; names the message by its index."""


class ContextError(InputError):
    """A sequence is longer than the model's full-attention layers can hold."""


class OutOfMemoryError(MistralError):
    """The model or its cache would not fit this machine; raised before anything is allocated."""


class HubError(MistralError):
    """A model cannot be fetched from the hub: network, licence, token, name or disk."""


class BusyError(MistralError):
    """There is no room for another request now, though there may be soon.

    Attributes:
        retry_after: seconds after which to ask again.
    """

    def __init__(self, message: str, hint: str = "", retry_after: float = 1.0) -> None:
        super().__init__(message, hint)
        self.retry_after = retry_after

    def __reduce__(self) -> tuple[type[MistralError], tuple[Any, ...]]:
        return type(self), (self.message, self.hint, self.retry_after)
