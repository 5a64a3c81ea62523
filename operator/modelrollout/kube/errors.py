"""Errors of requests to the API server, by status."""

from __future__ import annotations

import re

from modelrollout.kube.objects import Object


class KubeError(Exception):
    """A request failed. ``status`` is the HTTP status, 0 when there was no answer; ``retry_after``
    is in seconds.
    """

    def __init__(self, status: int, reason: str, message: str, retry_after: float | None = None) -> None:
        super().__init__(f"{reason} ({status}): {message}" if status else f"{reason}: {message}")
        self.status, self.reason, self.message, self.retry_after = status, reason, message, retry_after


class NotFound(KubeError):
    """404: the object or its kind is not there."""


class AlreadyExists(KubeError):
    """409 on create: the name is taken."""


class Conflict(KubeError):
    """409: resourceVersion, uid or a field owner is not the one expected."""


class Gone(KubeError):
    """410: the resourceVersion or the continue token is too old."""


class Forbidden(KubeError):
    """403: RBAC, admission, quota, or the namespace is going away."""


class Invalid(KubeError):
    """422: the API server refuses the object; the message names the field."""


class TooManyRequests(KubeError):
    """429: come back after ``retry_after``."""


class Unavailable(KubeError):
    """5xx, no connection, or no answer in time. A write may have been done nevertheless."""


class Unreadable(KubeError):
    """The object is there and cannot be read: too deep, too large, oddly shaped. A write may have
    been done nevertheless.
    """


_BY_STATUS: dict[int, type[KubeError]] = {
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Invalid,
    429: TooManyRequests,
}


def error_of(status: int, retry_after: str | None, answer: Object) -> KubeError:
    """The error that an answer of the API server stands for."""
    reason = str(answer.get("reason") or f"HTTP{status}")
    message = str(answer.get("message") or "no explanation given")[:1024]
    seconds = (answer.get("details") or {}).get("retryAfterSeconds")
    if retry_after and re.fullmatch("[0-9]{1,9}", retry_after):
        seconds = int(retry_after)
    after = float(seconds) if seconds else None
    if reason == "AlreadyExists":
        return AlreadyExists(status, reason, message, after)
    if status >= 500:
        return Unavailable(status, reason, message, after)
    return _BY_STATUS.get(status, KubeError)(status, reason, message, after)
