"""The processes that hold a lease together, as they write it into the lease: a count for each,
which it raises with every renewal.

Nothing is safe because of it: it only says how many there are, so that they can share work evenly.
As with the lease itself no other process's clock counts: a process lives for as long as its count
was seen to change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class _Seen:
    count: int
    at: float  # when it was last seen to change


class Members:
    """``lifetime``: seconds for which a process counts after the last change of its count."""

    def __init__(self, me: str, lifetime: float, clock: Callable[[], float]) -> None:
        self._me, self._lifetime, self._clock = me, lifetime, clock
        self._seen: dict[str, _Seen] = {}
        self._count = 0
        self._takes_part = False

    def join(self) -> None:
        """Take part from the next renewal on."""
        self._takes_part = True

    def leave(self) -> None:
        """Take part no more, from the next renewal on."""
        self._takes_part = False

    def beat(self) -> str:
        """What to write with a renewal; those that have died are left out."""
        self._count += 1
        mine = {self._me: self._count} if self._takes_part else {}
        return json.dumps({i: self._seen[i].count for i in self._others()} | mine)

    def saw(self, written: object) -> None:
        """The lease has this; whatever cannot be read counts for nothing."""
        try:
            listed = json.loads(written) if isinstance(written, str) else {}
        except (ValueError, RecursionError):
            listed = {}
        now, counts = self._clock(), listed if isinstance(listed, dict) else {}
        self._seen = {
            i: before if (before := self._seen.get(i)) and before.count == count else _Seen(count, now)
            for i, count in counts.items()
            if isinstance(count, int)
        }

    def share(self, of: int) -> range:
        """Which of ``of`` parts are this process's where all agree who takes part: as many as any
        other has, or one more or less.
        """
        everyone = sorted({*self._others(), self._me})
        each, more = divmod(of, len(everyone))
        rank = everyone.index(self._me)
        first = rank * each + min(rank, more)
        return range(first, first + each + (rank < more))

    def _others(self) -> list[str]:
        now = self._clock()
        return [i for i, seen in self._seen.items() if i != self._me and now - seen.at < self._lifetime]
