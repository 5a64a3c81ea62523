"""The committed definitions under a group of the test's own: an operator that runs in the cluster
neither sees nor changes such objects, and what is installed there stays as it is.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import yaml


class Kubectl:
    """kubectl in one namespace of the cluster under test; objects are put into the test's own
    group.
    """

    def __init__(self, kubeconfig: str, mark: str, cache: Path) -> None:
        self.kubeconfig = kubeconfig
        # apart: for minutes, other kubectls would take our short names for those of this group
        self.cache = cache
        self.namespace = f"crds-{mark}"
        self.group = f"crds-{mark}.example.com"
        self.mdep = f"modeldeployments.{self.group}"
        self.mrev = f"modelrevisions.{self.group}"
        self.rpol = f"rolloutpolicies.{self.group}"

    def __call__(self, *args: str, body: Any = None) -> subprocess.CompletedProcess[str]:
        if body is not None and body["kind"] in ("ModelDeployment", "ModelRevision", "RolloutPolicy"):
            body = {**body, "apiVersion": f"{self.group}/v1alpha1"}
        return subprocess.run(
            [
                "kubectl",
                "--kubeconfig",
                self.kubeconfig,
                "--cache-dir",
                str(self.cache),
                "-n",
                self.namespace,
                *args,
            ],
            input=None if body is None else json.dumps(body),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def ok(self, *args: str, body: Any = None) -> str:
        done = self(*args, body=body)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self, body: Any) -> str:
        """The API server's words for refusing this object."""
        done = self("create", "--dry-run=server", "--validate=strict", "-f", "-", body=body)
        assert done.returncode != 0, f"accepted: {yaml.safe_dump(body)}"
        return done.stderr


def until_established(run: Kubectl, *crds: str) -> None:
    """Wait for the API server to serve the CRDs. ``kubectl wait`` fails on one without a status."""
    end = time.monotonic() + 60
    while True:
        waited = run("wait", "--for=condition=Established", "--timeout=30s", *(f"crd/{c}" for c in crds))
        if waited.returncode == 0:
            return
        assert "conditions accessor error" in waited.stderr and time.monotonic() < end, waited.stderr
        time.sleep(0.2)
