"""What whoever runs the server decides about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Limits and defaults of a server.

    Attributes:
        name: what requests call the model.
        keys: any of these opens the API; none at all leaves it open to this machine.
        origins: websites whose pages may use the API.
        loopback: only this machine can reach the server, so without keys only its own names are answered to.
        temperature, max_tokens: what requests get that name none.
        max_answer: the most tokens that an answer may ask for.
        max_n: the most answers to one prompt.
        max_requests: the most answers that one call may ask for in all.
        max_body, body_s: the most bytes of a request's body, and seconds within which it must arrive.
        header_s, idle_s: seconds within which a request's head must arrive, and that an idle connection is kept.
        write_s: seconds within which a client must read on, once more waits for it than the system holds.
        max_connections: the most connections at a time.
        drain_s: seconds that running answers get to finish once the server is told to stop.
        log_prompts: whether the log says what was asked.
    """

    name: str
    keys: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    loopback: bool = True
    temperature: float = 1.0
    max_tokens: int = 4096
    max_answer: int = 32_768
    max_n: int = 16
    max_requests: int = 256
    max_body: int = 4 * 2**20
    body_s: float = 30.0
    header_s: float = 10.0
    idle_s: float = 30.0
    write_s: float = 30.0
    max_connections: int = 256
    drain_s: float = 30.0
    log_prompts: bool = False
