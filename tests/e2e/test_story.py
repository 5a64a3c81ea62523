"""The main job, as ``make demo`` plays it: seven versions under load, and no failed request."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from demo.cluster import Cluster

pytestmark = [pytest.mark.sandbox, pytest.mark.alone]

ROOT = Path(__file__).resolve().parents[2]
STORY = {
    "v1": "Stable",
    "v2": "Promoted",
    "v3": "RolledBack",
    "v4": "RolledBack",
    "v5": "Rejected",
    "v6": "Rejected",
    "v1-again": "Stable",
}


def test_the_story(operator: Cluster, capfd: pytest.CaptureFixture[str]) -> None:
    chosen = [("--context", "KUBECONTEXT"), ("--target", "TARGET"), ("--registry", "REGISTRY")]
    arguments = [word for option, name in chosen if name in os.environ for word in (option, os.environ[name])]
    with capfd.disabled():  # minutes of it: a person who watches sees how far it is
        ran = subprocess.run([sys.executable, "-m", "demo", *arguments], cwd=ROOT, timeout=2400, check=False)
    assert ran.returncode == 0, "the story went another way; see build/demo/"
    report = json.loads((ROOT / "build" / "demo" / "report.json").read_text())
    details = json.loads((ROOT / "build" / "demo" / "details.json").read_text())
    assert {v["name"]: v["outcome"] for v in report["versions"]} == STORY
    assert report["failed"] == details["failed_by_crashes"], "no request failed but by a crash of Triton"
    assert report["requests"] > 1000
