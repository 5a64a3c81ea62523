"""Times as they stand in status."""

from __future__ import annotations

from datetime import UTC, datetime


def stamp(now: datetime) -> str:
    """Timestamp as it stands in status: UTC, milliseconds."""
    return now.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def since(text: str, now: datetime) -> float:
    """Seconds from a timestamp of status to ``now``; never negative, clocks differ between
    replicas.
    """
    return max(0.0, (now - datetime.fromisoformat(text)).total_seconds())
