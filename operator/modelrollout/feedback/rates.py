"""Limits of a sender of feedback: memory for bodies in transit, and the error beyond a limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager


class TooManyError(Exception):
    """The caller is over its limit; try again after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class BodyBudget:
    """Memory for bodies that are being read: ``total`` bytes, of which one tenant may hold
    ``per_tenant``.
    """

    def __init__(self, total: int, per_tenant: int) -> None:
        self._total, self._per_tenant = total, per_tenant
        self._reserved_bytes: Counter[str] = Counter()

    @contextmanager
    def room(self, tenant: str, size: int) -> Iterator[None]:
        """Reserve memory for a body of ``size`` bytes. Raises TooManyError when none is left."""
        if self._reserved_bytes[tenant] + size > self._per_tenant:
            raise TooManyError(
                f"{tenant} has sent bodies of {self._reserved_bytes[tenant]} bytes that are still"
                " on their way",
                1.0,
            )
        if self._reserved_bytes.total() + size > self._total:
            raise TooManyError("many bodies are on their way", 1.0)
        self._reserved_bytes[tenant] += size
        try:
            yield
        finally:
            self._reserved_bytes[tenant] -= size
            if not self._reserved_bytes[tenant]:
                del self._reserved_bytes[tenant]
