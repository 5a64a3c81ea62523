"""How long a namespace's own queries pause after one of them took too long: the pause doubles up to
a bound. Times are Unix seconds.
"""

from __future__ import annotations

from dataclasses import dataclass

FIRST_SECONDS = 30.0
LONGEST_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Pause:
    """No query runs before ``until``. Trouble within ``seconds`` after that doubles the pause."""

    until: float
    seconds: float

    def holds(self, now: float) -> bool:
        """Whether the pause lasts; a clock that was set back does not lengthen it."""
        return self.until - self.seconds <= now < self.until

    def forgotten(self, now: float) -> bool:
        """Whether the next pause would be a first one."""
        return not self.until - self.seconds <= now < self.until + self.seconds


def after_trouble(before: Pause | None, now: float) -> Pause:
    """The pause that begins now."""
    seconds = (
        FIRST_SECONDS if before is None or before.forgotten(now) else min(2 * before.seconds, LONGEST_SECONDS)
    )
    return Pause(now + seconds, seconds)
