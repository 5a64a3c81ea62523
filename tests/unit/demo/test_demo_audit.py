from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demo import audit

START, END = datetime(2026, 11, 22, 9, 0, tzinfo=UTC), datetime(2026, 11, 22, 9, 1, tzinfo=UTC)
OPERATOR = "system:serviceaccount:system:operator"


def line(
    user: str = OPERATOR,
    verb: str = "get",
    resource: str = "modelrevisions",
    at: str = "2026-11-22T09:00:30.000000Z",
    **more: Any,
) -> str:
    event = {
        "stage": "ResponseComplete",
        "verb": verb,
        "user": {"username": user},
        "userAgent": "modelrollout/1",
        "requestURI": "/x?y=1",
    }
    return (
        json.dumps({**event, "objectRef": {"resource": resource}, "requestReceivedTimestamp": at, **more})
        + "\n"
    )


def test_requests_of_one_user_in_the_window_are_counted_by_kind(tmp_path: Path) -> None:
    log = tmp_path / "audit.log"
    log.write_text(
        line()
        + line()
        + line(verb="update", objectRef={"resource": "modeldeployments", "subresource": "status"})
        + line(verb="get", objectRef={})
        + line(user="somebody else")
        + line(user=f"{OPERATOR}-feedback")
        + line(verb="update", objectRef={"resource": "leases"})
        + line(at="2026-11-22T08:59:59.999999Z")
        + line(at="2026-11-22T09:01:00.000000Z")
        + line(stage="ResponseStarted")
        + line()[:-20]
    )
    counts = audit.count(log, START, END, user=OPERATOR)
    assert counts.total == 4 and counts.leases == 1
    assert counts.kinds == {"get modelrevisions": 2, "update modeldeployments/status": 1, "get /x": 1}
    assert audit.count(log, START, END, agent="kubectl").total == 0
