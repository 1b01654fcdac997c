# SPDX-License-Identifier: Apache-2.0
"""The Hub's answers: which ones are worth another try, and the rest as one sentence each, without the token."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from json import JSONDecodeError
from typing import Any, TypeVar

from httpx2 import (
    ConnectError,
    HTTPError,
    TransportError,
    UnsupportedProtocol,
)  # huggingface_hub's own client: its errors pass through
from huggingface_hub import get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

__all__ = ["check_login", "checked_token", "one_sentence_errors", "patiently", "redacted"]

logger = logging.getLogger(__name__)

_WAITS = (1, 2, 4)  # seconds
_PASSING = (408, 429, 500, 502, 503, 504)
_Answer = TypeVar("_Answer")


def checked_token(token: str | None) -> str | None:
    """
    The token given, or that of `HF_TOKEN` or of the login; `None` if there is none.

    Raises:
        ValueError: if it can be no token: the HTTP client would quote it in its error.
    """
    token = get_token() if token is None else token.strip()
    if token and not re.fullmatch(r"[!-~]+", token):
        raise ValueError("The token for the Hub holds a blank or a letter that no token has.")
    return token or None


def check_login(token: str | None = None) -> str:
    """
    The token, as for [`checked_token`], for what can't be done without one.

    Raises:
        ValueError: if there is none, or if it can be no token.
    """
    found = checked_token(token)
    if found is None:
        raise ValueError(
            "Pushing to the Hub needs a token: please log in with `hf auth login`, or set HF_TOKEN to a token that may "
            "write."
        )
    return found


def patiently(call: Callable[..., _Answer], *arguments: Any, unreachable: bool = True, **options: Any) -> _Answer:
    """
    Calls the Hub, and again after a while if it is out of order for the moment. Only for what may be done twice.

    Args:
        call: a method of the client, with its arguments and options.
        unreachable: try again as well if nobody answers at all.
    """
    for wait in _WAITS:
        try:
            return call(*arguments, **options)
        except (HTTPError, RuntimeError) as error:
            trouble = _passing_trouble(_underlying(error), unreachable)
            if trouble is None:
                raise
            logger.warning("The Hub %s; trying again in %d s.", trouble, wait)
        time.sleep(wait)
    return call(*arguments, **options)


def _underlying(error: BaseException) -> BaseException:
    """An upload of a large file wraps its error."""
    return error.__cause__ if isinstance(error, RuntimeError) and isinstance(error.__cause__, HTTPError) else error


def _passing_trouble(error: BaseException, unreachable: bool) -> str | None:
    if isinstance(error, HfHubHTTPError) and error.response.status_code in _PASSING:
        return f"answered {error.response.status_code}"
    if isinstance(error, UnsupportedProtocol):  # in an address: it stays wrong
        return None
    if isinstance(error, TransportError) and (unreachable or not isinstance(error, ConnectError)):
        return "can't be reached or broke off"
    return None


def redacted(text: str, token: str | None) -> str:
    """On one line, without the token."""
    text = " ".join(text.split())
    return text.replace(token, "[token]") if token else text


@contextmanager
def one_sentence_errors(
    repo_id: str, endpoint: str, token: str | None, done: str, ending: str, revision: str | None = None
) -> Iterator[None]:
    """
    Errors of the Hub's client as one sentence each. They drop their cause: its requests carry the token.

    Args:
        repo_id: what is pushed to or pulled from.
        endpoint: the Hub's address.
        token: what must not be shown.
        done: `"pushed"` or `"pulled"`.
        ending: what the user can rely on.
        revision: of the repository, if one was asked for.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError) as error:
        reason = _reason(_underlying(error), repo_id, endpoint, done, revision)
    except JSONDecodeError:  # a page in HTML
        reason = f"{repo_id} could not be {done}: {endpoint} doesn't answer as the Hub does (HF_ENDPOINT)"
    except ValueError as error:  # such as a card whose metadata the Hub doesn't like
        raise ValueError(redacted(str(error), token)) from None
    else:
        return
    raise OSError(redacted(f"{reason}{ending}.", token)) from None


def _reason(error: BaseException, repo_id: str, endpoint: str, done: str, revision: str | None) -> str:
    if isinstance(error, OfflineModeIsEnabled):
        return f"{repo_id} can't be {done} while HF_HUB_OFFLINE is set"
    if isinstance(error, LocalEntryNotFoundError):
        return (
            f"{repo_id} can't be {done}: the Hub ({endpoint}) can't be asked, and "
            f"{'revision ' + revision if revision else 'it'} was not downloaded completely before"
        )
    if isinstance(error, UnsupportedProtocol):
        return f"{repo_id} can't be {done}: HF_ENDPOINT must begin with https://, got {endpoint}"
    if not isinstance(error, HfHubHTTPError):
        why = f", since the Hub ({endpoint}) can't be reached or broke off" if isinstance(error, HTTPError) else ""
        return f"{repo_id} could not be {done}{why} ({str(error).strip().rstrip('.')})"
    status = error.response.status_code
    said = (error.server_message or error.response.reason_phrase).strip().rstrip(".")
    if isinstance(error, GatedRepoError):
        return (
            f"{repo_id} is gated ({status}, {said}): please accept its conditions at {endpoint}/{repo_id}, and log in "
            f"with `hf auth login`"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{repo_id} has no such branch, tag or commit as {revision or 'main'} ({status}, {said})"
    if isinstance(error, RepositoryNotFoundError):
        return f"The repository {repo_id} is not there, or the token may not see it ({status}, {said})"
    if status == 401:
        return f"The Hub refuses the token ({status}, {said}): please log in again, or set HF_TOKEN to a valid one"
    if status == 403:
        return f"The token may not {'write to' if done == 'pushed' else 'read'} {repo_id} ({status}, {said})"
    if status in (409, 412):
        return f"Somebody else changed {repo_id} meanwhile ({status}, {said})"
    return f"{repo_id} could not be {done}: the Hub answered {status} ({said})"
