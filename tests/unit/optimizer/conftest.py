"""For all tests of Jobs: a store that is away is away at once."""

from __future__ import annotations

import pytest

from modelrollout.optimizer import fetch


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "RETRY", {"max_retries": 0})
