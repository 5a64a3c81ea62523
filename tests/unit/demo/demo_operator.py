"""A cluster whose operator plays a script: each ModelDeployment that is applied goes through the
stages of its version.
"""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from demo.client import Settings
from demo.cluster import NotThereError, Object
from demo.target import Gateway, Images, Store, Target

SERVED = ["Resolve", "Prepare", "Provision", "Evaluate", "Canary", "Promote"]
SCRIPT: dict[str, tuple[list[str], str, str]] = {
    "v1": (["Resolve", "Prepare", "Provision", "Evaluate", "Promote"], "Stable", "-"),
    "v2": (SERVED, "Promoted", "-"),
    "v3": ([*SERVED[:-1], "Revert"], "RolledBack", "AccuracyLow"),
    "v4": ([*SERVED[:-1], "Revert"], "RolledBack", "LatencyHigh"),
    "v5": (SERVED[:4], "Rejected", "AccuracyLow"),
    "v6": (SERVED[:2], "Rejected", "AccuracyDrop"),
}
NOW = datetime(2026, 11, 22, 9, 0, tzinfo=UTC)


def target() -> Target:
    return Target(
        gateway=Gateway(name="public", namespace="gateways", http="192.0.2.1:80", grpc="192.0.2.1:80"),
        store=Store(
            endpoint="http://192.0.2.2", endpoint_in_cluster="http://store", access_key="a", secret_key="s"
        ),
        prometheus="http://prometheus",
        images=Images.of("registry.test:5000/models"),
    )


class ScriptedCluster:
    """Stands in for ``demo.cluster.Cluster``; ``script`` may be changed to let the story go
    wrong.
    """

    def __init__(self) -> None:
        self.target = target()
        self.script = copy.deepcopy(SCRIPT)
        self.done: list[str] = []
        self.jobs_made: list[str] = []
        self.servers: set[str] = set()
        self.crashed: Object = {}  # what the kubelet says of the servers' containers
        self.revisions: dict[str, Object] = {}
        self.reads_until_next_stage = 1
        self.prepare_again = False
        self.answered: dict[str, dict[str, float]] = {}
        self._object: Object | None = None
        self._ahead: list[str] = []
        self._reads = 0

    # --- what the story does ---

    def fresh_namespace(self, name: str) -> None:
        self.done.append("namespace")

    def upload(self, bucket: str, files: dict[str, Path]) -> None:
        self.done.append(f"upload {bucket} {len(files)}")

    def helm(self, *arguments: str) -> str:
        self.done.append("helm")
        return ""

    def kubectl(self, *arguments: str, timeout: float = 0) -> str:
        return ""

    def apply(self, *objects: Object) -> None:
        for actual in objects:
            if actual["kind"] == "ModelDeployment":
                self._begin(actual)

    def modelrollout(self, *arguments: str) -> str:
        verb, _, _, revision = arguments[:4]
        assert verb == "rollback" and self._object is not None
        self.done.append(f"rollback {revision}")
        if self.prepare_again:
            self.jobs_made.append(f"{revision}-prepare-again")
        self._rollout("Rollback", revision, self.revisions[revision]["spec"]["number"])
        self._ahead = ["Provision", "Promote", "Done:Stable:-"]
        return ""

    # --- what it reads ---

    def deployment(self, namespace: str, name: str) -> Object:
        if self._object is None:
            raise NotThereError("not there")
        self._reads += 1
        if self._ahead and self._reads % self.reads_until_next_stage == 0:
            self._advance(self._ahead.pop(0))
        return copy.deepcopy(self._object)

    def revision(self, namespace: str, name: str) -> Object:
        return self.revisions[name]

    def pods(self, namespace: str, selector: str) -> list[Object]:
        desired = dict(pair.split("=") for pair in selector.split(",")).get("modelrollout.dev/revision")
        return [
            {"metadata": {"name": r, "labels": {"modelrollout.dev/revision": r}}, "status": self.crashed}
            for r in sorted(self.servers)
            if desired in (None, r)
        ]

    def jobs(self, namespace: str, selector: str) -> list[Object]:
        return [{"metadata": {"name": name, "uid": name}} for name in self.jobs_made]

    def service_address(self, namespace: str, name: str, port: int) -> str:
        return f"192.0.2.3:{port}"

    # --- the operator ---

    def _begin(self, actual: Object) -> None:
        version = actual["spec"]["model"]["uri"].split("/")[-2]
        generation = self._object["metadata"]["generation"] + 1 if self._object else 1
        status = self._object["status"] if self._object else {}
        self._object = {**copy.deepcopy(actual), "status": status}
        self._object["metadata"]["generation"] = generation
        number = len(self.revisions) + 1
        name = f"digits-{version}"
        self.revisions[name] = {
            "metadata": {"name": name},
            "spec": {"number": number},
            "status": {
                "artifact": {
                    "sizeBefore": 900_000,
                    "sizeAfter": 240_000,
                    "accuracyBefore": 0.98,
                    "accuracyAfter": 0.979,
                }
            },
        }
        self._rollout("Update", name, number)
        stages, outcome, reason = self.script[version]
        self._ahead = [*stages[1:], f"{'Done' if reason == '-' else 'Failed'}:{outcome}:{reason}"]

    def _rollout(self, mode: str, revision: str, number: int) -> None:
        assert self._object is not None
        stage = "Resolve" if mode == "Update" else "Provision"
        self._object["status"] = {
            **self._object["status"],
            "observedGeneration": self._object["metadata"]["generation"],
            "conditions": self._conditions(stalled=False),
            "rollout": {
                "stage": stage,
                "since": NOW.isoformat(),
                "started": NOW.isoformat(),
                "generation": self._object["metadata"]["generation"],
                "mode": mode,
                "revision": revision,
                "number": number,
                "stages": {},
            },
        }

    def _advance(self, to: str) -> None:
        assert self._object is not None
        stage, _, end = to.partition(":")
        outcome, _, reason = end.partition(":")
        status, rollout = self._object["status"], self._object["status"]["rollout"]
        rollout["stages"][rollout["stage"]] = 2.0
        rollout["stage"] = stage
        rollout["since"] = (NOW + timedelta(seconds=30)).isoformat()
        name, number = rollout["revision"], str(rollout["number"])
        if stage == "Prepare":
            self.jobs_made.append(f"{name}-prepare")
        if stage == "Provision":
            self.servers.add(name)
        if stage in ("Canary", "Promote"):
            self.answered.setdefault(
                number,
                {
                    "answers": 100,
                    "right": 90,
                    "p99_ms": 7.0,
                    "first": (NOW + timedelta(seconds=10)).timestamp(),
                },
            )
        if stage == "Paused":
            rollout["stage"] = "Canary"
            rollout["reason"] = "NotYetProven"
            status["conditions"] = self._conditions(stalled=True)
        if stage in ("Done", "Failed"):
            rollout["outcome"] = outcome
            if reason != "-":
                rollout |= {"reason": reason, "message": f"because of {reason}"}
            keep = name if stage == "Done" else status.get("stable", {}).get("revision")
            self.servers &= {keep}
            status["conditions"] = self._conditions(stalled=stage == "Failed")
            if stage == "Done":
                status["stable"] = {"revision": name, "number": rollout["number"]}

    @staticmethod
    def _conditions(*, stalled: bool) -> list[Object]:
        return [
            {"type": "Available", "status": "True", "reason": "Serving"},
            {
                "type": "Stalled",
                "status": str(stalled),
                "reason": "NotYetProven",
                "message": "waiting for promote or abort",
            },
        ]


class ScriptedLoad:
    """Stands in for ``demo.load.Load``."""

    failed = 0

    def __init__(self, cluster: ScriptedCluster, settings: Settings) -> None:
        self.settings = settings
        self.runs = False
        self._cluster = cluster

    def start(self) -> None:
        self.runs = True

    def counts(self) -> dict[str, Any]:
        failures = [{"at": NOW.timestamp(), "ms": 3.0, "error": "HTTP 503"}] * self.failed
        return {
            "started": 0.0,
            "now": 100.0,
            "done": not self.runs,
            "sent": 1000,
            "answered": 1000 - self.failed,
            "failed": self.failed,
            "in_flight": 0,
            "cpu_seconds": 5.0,
            "versions": copy.deepcopy(self._cluster.answered),
            "failures": failures,
            "feedback": {"sent": 1000 - self.failed, "errors": 0, "last_error": None},
        }

    def stop(self) -> dict[str, Any]:
        self.runs = False
        return self.counts()
