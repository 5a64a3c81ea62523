"""The requests of what is measured, from the API server's audit log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from demo.audit import events
from fleet.control_plane import OPERATOR

WRITES = frozenset({"create", "update", "patch", "delete"})


class Requests:
    """Counts by verb and resource (``"create jobs"``, ``"update modeldeployments/status"``),
    without watches and without Leases of leaders, which go on whatever happens; ``lease``: how
    their names begin.
    """

    def __init__(self, audit: Path, lease: str) -> None:
        self._audit, self._lease, self._seen = audit, lease, 0

    def since_last(self) -> Counter[str]:
        """Those that were answered since the last call, or since the start."""
        kinds: Counter[str] = Counter()
        for n, event in enumerate(events(self._audit, OPERATOR)):
            if n < self._seen:
                continue
            self._seen = n + 1
            about = event.get("objectRef") or {}
            if event["verb"] == "watch" or str(about.get("name")).startswith(self._lease):
                continue
            resource = "/".join(filter(None, (about.get("resource"), about.get("subresource"))))
            kinds[f"{event['verb']} {resource or event['requestURI'].partition('?')[0]}"] += 1
        return kinds


def writes(kinds: Mapping[str, int]) -> dict[str, int]:
    """Those that change something."""
    return {kind: n for kind, n in kinds.items() if kind.partition(" ")[0] in WRITES}
