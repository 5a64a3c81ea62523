"""Counts of API requests from the API server's audit log."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Requests:
    """Requests of one caller in a window of time: how many, and of what kind (``"get
    modelrevisions"``).

    Those for the Lease go on all the time, whatever is rolled out, and are counted apart.
    """

    total: int
    leases: int
    kinds: dict[str, int]


def count(log: Path, start: datetime, end: datetime, user: str = "", agent: str = "") -> Requests:
    """Finished requests that began in [start, end), of that ``user`` and of agents whose names
    contain ``agent``. Both times carry a zone.
    """
    kinds: Counter[str] = Counter()
    leases = 0
    for event in events(log, user):
        if user in ("", event.get("user", {}).get("username")) and agent in event.get("userAgent", ""):
            at = datetime.fromisoformat(event["requestReceivedTimestamp"])
            about = event.get("objectRef", {})
            if start <= at < end and about.get("resource") == "leases":
                leases += 1
            elif start <= at < end:
                resource = "/".join(filter(None, (about.get("resource"), about.get("subresource"))))
                kinds[f"{event['verb']} {resource or event['requestURI'].partition('?')[0]}"] += 1
    return Requests(sum(kinds.values()), leases, dict(kinds.most_common()))


def events(log: Path, contains: str = "") -> Iterator[dict[str, Any]]:
    """Finished requests in the log; lines without ``contains`` are not parsed, and neither is a
    last line that is still being written.
    """
    with log.open() as lines:
        for line in lines:
            if contains in line and line.endswith("\n"):
                event = json.loads(line)
                if event.get("stage") == "ResponseComplete":
                    yield event
