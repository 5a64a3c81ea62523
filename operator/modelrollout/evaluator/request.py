"""One request to a served model: tried again while no server answers, and its failure as a
reason.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from modelrollout.jobs.errors import JobError, bad_input, retryable
from modelrollout.reasons import Reason
from modelrollout.triton.client import TritonError

# of a request while no server answers: one lost pod is no reason to repeat the whole pass
TRIES = 3
_PAUSE_SECONDS = 1.0

T = TypeVar("T")


def sent(request: Callable[[], T]) -> T:
    """Send a request, with a few tries while no server answers; raises TritonError."""
    for attempt in range(1, TRIES + 1):
        try:
            return request()
        except TritonError as error:
            if error.kind != "Unreachable" or attempt == TRIES:
                raise
            time.sleep(_PAUSE_SECONDS * attempt)
    raise AssertionError("unreachable")  # pragma: no cover


def request_with_retries(request: Callable[[], T], who: str) -> T:
    """As ``sent``, but raises JobError."""
    try:
        return sent(request)
    except TritonError as error:
        raise blame(error, who) from None


def blame(error: TritonError, who: str) -> JobError:
    """A failed request as a reason. A failure of stable never counts against the candidate: the Job
    is retried.
    """
    if who == "stable":
        return retryable(
            Reason.STABLE_FAILED,
            f"stable did not answer the golden data ({error.kind}: {error}); the candidate is not judged"
            " without it",
        )
    if error.kind == "Unreachable":
        return retryable(
            Reason.SERVER_UNREACHABLE,
            f"{who}: no server answers ({error}); are its pods ready, and does a network policy let this"
            " Job in?",
        )
    if error.kind == "Timeout":
        return retryable(
            Reason.SERVER_TIMEOUT,
            f"{who}: {error}; is the server overloaded? A smaller batch or more replicas help",
        )
    if error.kind == "NotServed":
        return retryable(
            Reason.MODEL_NOT_SERVED,
            f"{who}: the server does not serve the model ({error}); see the log of its pods",
        )
    return bad_input(
        Reason.INFERENCE_FAILED,
        f"{who}: the server failed on the golden data: {error}; see the log of its pods",
    )


def wrong_version(who: str, number: int, *actual: str) -> JobError:
    """Another version answers at the address of ``who``."""
    return retryable(
        Reason.STABLE_WRONG_VERSION if who == "stable" else Reason.WRONG_VERSION,
        f"{who}: version {', '.join(filter(None, actual)) or 'none'} answers instead of {number}; the address"
        " leads to the wrong pods, or not yet to the right ones",
    )
