"""What network, hub and disk do to us, as one kind of error."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from mistral_mlx.errors import HubError, MistralError
from mistral_mlx.hub.names import cache_folder

KEPT = "What was fetched is kept, and the next pull goes on there."


@contextmanager
def faults(repo: str) -> Iterator[None]:
    """Say what network, hub and disk do to us as a HubError."""
    from huggingface_hub.errors import HTTPError

    try:
        yield
    except MistralError:
        raise
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise _fault(repo, error) from error


def _fault(repo: str, error: BaseException) -> HubError:
    # An HTTP error's own words are never shown: they can quote a header with the token in it.
    from huggingface_hub.errors import (
        FileMetadataError,
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OfflineModeIsEnabled):
        return HubError(
            f"{repo} cannot be fetched: HF_HUB_OFFLINE is set, so the network is not to be used.",
            "Unset it, or choose a model that is on this machine.",
        )
    if isinstance(error, HfHubHTTPError):
        return _refusal(repo, error.response.status_code, gated=isinstance(error, GatedRepoError))
    if isinstance(error, FileMetadataError):
        return not_a_hub(repo)
    number = getattr(error, "errno", None)
    short = isinstance(error, OSError) and number is None  # how the library says that less came than was announced
    if short or isinstance(error, (HTTPError, ConnectionError, TimeoutError, LocalEntryNotFoundError)):
        return HubError(
            f"{repo} cannot be fetched: the network is not reachable, or the connection was cut.",
            f"Check the connection. {KEPT}",
        )
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return HubError(
            f"The disk is full, or holds no file of that size, so {repo} was not fetched to its end.",
            f"Make room for {cache_folder()}. {KEPT}",
        )
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HubError(
            f"The cache, {cache_folder()}, may not be written to.",
            "Change its owner, or set HF_HOME to a folder of yours.",
        )
    return HubError(f"{repo} cannot be fetched: {error}.", KEPT)


def _refusal(repo: str, status: int, *, gated: bool) -> HubError:
    """What the hub says by its status code."""
    from huggingface_hub import constants

    page = f"{constants.ENDPOINT}/{repo}"
    said = {
        401: (
            f"The hub does not show {repo} without a valid token: it is private, or there is no such model.",
            "Check the spelling; if it is right, run `hf auth login`, or set HF_TOKEN to a valid token.",
        ),
        403: (f"The hub refuses access to {repo}.", f"Your token may lack the right to read it; look at {page}."),
        404: (f"There is no model {repo} on the hub.", f"Check the spelling: {page} should open."),
        429: (
            f"The hub has had too many requests from here, so it does not give {repo} now.",
            "Wait some minutes; with `hf auth login` the limit is higher. What was fetched is kept.",
        ),
    }
    if gated:
        return HubError(
            f"{repo} is given only to those who have accepted its licence.",
            f"Accept it on {page}, then run `hf auth login` or set HF_TOKEN to a token of that account.",
        )
    return HubError(
        *said.get(status, (f"The hub answered with error {status}, not with {repo}.", f"Try later. {KEPT}"))
    )


def not_a_hub(repo: str) -> HubError:
    return HubError(
        f"What answered for {repo} is not a Hugging Face hub.",
        "A proxy or a login page may stand in between, or HF_ENDPOINT may be wrong.",
    )
