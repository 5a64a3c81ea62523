"""What a status should be to kstatus, whatever states the operator goes through."""

from __future__ import annotations

from typing import Any

import pytest

from gitops.kstatus import expected


def deployment(ready: str, stalled: str, generation: int = 2, **metadata: Any) -> dict[str, Any]:
    conditions = [{"type": "Ready", "status": ready}, {"type": "Stalled", "status": stalled}]
    return {
        "metadata": {"name": "digits", "generation": generation, "resourceVersion": "7", **metadata},
        "status": {"observedGeneration": 2, "conditions": conditions},
    }


@pytest.mark.parametrize(
    ("obj", "word"),
    [
        (deployment("True", "False"), "Current"),
        (deployment("False", "True"), "Failed"),
        (deployment("False", "False"), "InProgress"),
        (deployment("True", "False", 3), "InProgress"),
        (deployment("True", "False", deletionTimestamp="2026-11-22T12:00:00Z"), "Terminating"),
        ({"metadata": {"name": "new", "generation": 1}}, "Current"),
    ],
)
def test_expected(obj: dict[str, Any], word: str) -> None:
    assert expected(obj) == word
