"""Who can write to the artifact store stops a version at most: what he lays there is never
served.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import obstore
import pytest

from modelrollout.optimizer.pipeline.key import key_of
from modelrollout.optimizer.store import artifact
from tests.e2e import models
from tests.e2e.conftest import Stage

pytestmark = pytest.mark.sandbox

GRAPH = {"steps": [{"graph": {}}]}
NO_FILE = hashlib.sha256(b"no file has these bytes").hexdigest()


class Attacker:
    """Has the namespace's key to the store, from a Secret or a Job that a hostile file took
    over.
    """

    def __init__(self, stage: Stage) -> None:
        self.bucket, self.stage = stage.cluster.target.store.artifacts, stage
        self.store = stage.cluster.bucket(self.bucket)

    def report_of(self, uri: str) -> dict[str, Any]:
        folder = uri.removeprefix(f"s3://{self.bucket}/")
        manifest = json.loads(bytes(obstore.get(self.store, f"{folder}/manifest.json").bytes()))
        return dict(
            json.loads(
                bytes(obstore.get(self.store, f"{folder}/{manifest['files']['report.json']['path']}").bytes())
            )
        )

    def lay(self, folder: str, key: str, report: dict[str, Any]) -> None:
        """A whole artifact with a program of his own."""
        files = {
            "model.py": b"raise SystemExit",
            "config.pbtxt": b'backend: "python"',
            "report.json": json.dumps(report).encode(),
        }
        entries = {
            name: artifact.entry_for(name, hashlib.sha256(body).hexdigest(), len(body))
            for name, body in files.items()
        }
        for name, entry in entries.items():
            obstore.put(self.store, f"{folder}/{entry.path}", files[name])
        obstore.put(
            self.store, f"{folder}/manifest.json", artifact.Manifest(key=key, files=entries).encoded()
        )


def evidence(stage: Stage, name: str) -> dict[str, Any]:
    revision = stage.get(name)["status"]["stable"]["revision"]
    return dict(stage.cluster.revision(stage.namespace, revision)["status"]["artifact"])


def right(stage: Stage, name: str) -> bool:
    x, labels = models.inputs(100, 43)
    return bool(np.mean(stage.answers(name, x)["logits"].argmax(1) == labels) > 0.9)


def test_what_a_stranger_lays_in_the_store_is_not_served(stage: Stage) -> None:
    stage.apply(stage.deployment("honest", optimization=GRAPH))
    stage.until_ready("honest")
    attacker, made = Attacker(stage), evidence(stage, "honest")
    report = attacker.report_of(made["uri"])
    # The audit's attack: the key is that of the inputs, which a report tells, with the digest of a
    # source that is nowhere.
    inputs = report["inputs"] | {"source": NO_FILE}
    attacker.lay(f"{stage.namespace}/{key_of(inputs)}", key_of(inputs), report | {"inputs": inputs})
    nowhere = {"uri": stage.uri("is-not-there.onnx"), "sha256": NO_FILE}
    brief = {"progressDeadline": "15s"}
    stage.apply(stage.deployment("forged", model=nowhere, optimization=GRAPH, rollout=brief))
    message = stage.until_stalled("forged", "ObjectMissing")
    assert "is-not-there.onnx" in message
    assert not stage.cluster.pods(
        stage.namespace, "modelrollout.dev/name=forged,modelrollout.dev/component=server"
    )

    # What a revision records is replaced at its very place: its digest is not that any more, and
    # nothing of it is taken.
    attacker.lay(made["uri"].removeprefix(f"s3://{attacker.bucket}/"), report["key"], report)
    stage.apply(stage.deployment("second", optimization=GRAPH))
    stage.until_ready("second")
    again = evidence(stage, "second")
    assert (
        again["uri"] != made["uri"]
        and again["digest"] == made["digest"]
        and not again.get("reused")
        and right(stage, "second")
    )

    # And what is recorded and whole is taken again.
    stage.apply(stage.deployment("third", optimization=GRAPH))
    stage.until_ready("third")
    taken = evidence(stage, "third")
    assert (taken["uri"], taken["digest"], taken["reused"]) == (
        again["uri"],
        again["digest"],
        True,
    ) and right(stage, "third")
