"""Helm: on PATH, or its path in the environment variable HELM (the sandbox builds one)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

CHART = Path(__file__).parents[2] / "charts" / "model-rollout-operator"
HELM = os.environ.get("HELM") or shutil.which("helm")
# helm's own default is the Kubernetes version that it was built against, or 1.20 when its build
# says nothing.
KUBE_VERSION = "1.34.0"
# A release ``mro`` in namespace ``modelrollout``.
TEMPLATE = ("template", "mro", str(CHART), "-n", "modelrollout", "--kube-version", KUBE_VERSION)


def helm(*args: str, ok: bool = True) -> str:
    """What it prints; unless ``ok``, why it refuses."""
    assert HELM, (
        "no helm: put it on PATH, or set HELM to its path; `make test-integration` takes the sandbox's"
    )
    done = subprocess.run([HELM, *args], capture_output=True, text=True, timeout=60)
    assert (done.returncode == 0) is ok, done.stdout + done.stderr
    return done.stdout if ok else done.stderr
