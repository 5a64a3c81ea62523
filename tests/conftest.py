"""Hypothesis tries the same cases every time, so that a red test is the change's fault;
HYPOTHESIS_PROFILE=deep looks for new ones.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# a busy machine is no failure
settings.register_profile("same", derandomize=True, database=None, deadline=None)
settings.register_profile("deep", max_examples=2000, deadline=None)
settings.load_profile("deep" if os.environ.get("HYPOTHESIS_PROFILE") == "deep" else "same")

# processes that tests start import what this one does (pyproject.toml, pythonpath)
_ROOT = Path(__file__).resolve().parents[1]
os.environ["PYTHONPATH"] = os.pathsep.join(str(p) for p in (_ROOT / "operator", _ROOT / "tools", _ROOT))


@pytest.fixture(autouse=True)
def _no_secrets_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process remembers the secrets that it has read, to mask them; a test starts without any."""
    monkeypatch.setattr("modelrollout.telemetry.redaction._KNOWN", set())
