"""Why something is blocked or unknown, in the two parts that every condition and event has."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """A CamelCase reason, and a message that names the field, the fact and the remedy."""

    reason: str
    message: str
