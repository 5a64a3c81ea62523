"""Which artifacts are in use, for the clean-up of the store: one that is forgotten is deleted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from modelrollout.api import names
from modelrollout.cli import main
from modelrollout.cli.references import in_use
from modelrollout.contract.common import TASK_ENV
from modelrollout.kube.decoding import UnreadableObject
from modelrollout.kube.errors import Forbidden, Unreadable
from modelrollout.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, MODEL_REVISION, Resource
from modelrollout.testing.fake_cluster import Cluster

FETCH = '{"task":"fetch","artifact":{"uri":"s3://artifacts/ml/running"},"digest":"sha256:aa","model":"digits","number":1}'


@pytest.fixture
def cluster() -> Cluster:
    made = Cluster()

    def put(resource: Resource, name: str, namespace: str = "ml", **body: Any) -> None:
        metadata = {
            "name": name,
            "namespace": namespace,
            "labels": {names.LABEL_NAME: "digits"},
            "resourceVersion": "1",
        }
        made.objects[(resource, namespace, name)] = {"kind": resource.kind, "metadata": metadata, **body}

    put(
        MODEL_REVISION,
        "digits-1",
        status={"artifact": {"uri": "s3://artifacts/ml/history", "digest": "sha256:aa"}},
    )
    # its gate was not kept
    put(MODEL_REVISION, "digits-2", status={"artifact": {"uri": "", "digest": ""}})
    put(MODEL_REVISION, "digits-3", spec={})
    put(MODEL_REVISION, "digits-4", status={"artifact": "of another version of the operator"})
    put(
        MODEL_DEPLOYMENT,
        "digits",
        status={"rollout": {"stage": "Provision", "artifact": {"uri": "s3://artifacts/ml/flight"}}},
    )
    put(MODEL_DEPLOYMENT, "new")
    container = {"name": "fetch", "env": [{"name": TASK_ENV, "value": FETCH}]}
    put(
        DEPLOYMENT, "digits-1", spec={"template": {"spec": {"initContainers": [container], "containers": []}}}
    )
    put(
        MODEL_REVISION,
        "other-1",
        "other",
        status={"artifact": {"uri": "s3://artifacts/other/history", "digest": "sha256:aa"}},
    )
    return made


def referenced(cluster: Cluster, *namespaces: str | None) -> list[str]:
    return list(asyncio.run(in_use(cluster, namespaces)).artifacts)  # type: ignore[arg-type]


def test_history_rollouts_in_flight_and_what_runs_are_in_use(cluster: Cluster) -> None:
    mine = ["s3://artifacts/ml/flight", "s3://artifacts/ml/history", "s3://artifacts/ml/running"]
    assert referenced(cluster, None) == [*mine, "s3://artifacts/other/history"]
    assert referenced(cluster, "ml") == mine


def test_where_something_cannot_be_read_nothing_is_deleted(cluster: Cluster) -> None:
    cluster.unread = [UnreadableObject("attacker", "deep", "u", "1", "is nested too deep")]
    actual = asyncio.run(in_use(cluster, [None]))  # type: ignore[arg-type]
    assert actual.untouched == ("attacker",) and "s3://artifacts/ml/flight" in actual.artifacts
    cluster.unread = [UnreadableObject("", "", "", "", "is nested too deep")]
    with pytest.raises(Unreadable, match=r"without a name.* is nested too deep"):
        asyncio.run(in_use(cluster, [None]))  # type: ignore[arg-type]


def test_what_cannot_be_read_is_no_empty_list(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Connected:
        async def __aenter__(self) -> Cluster:
            return cluster

        async def __aexit__(self, *_: object) -> None:
            return None

    async def connect(*_: object, **__: object) -> Connected:
        return Connected()

    monkeypatch.setattr(main.Kube, "connect", connect)
    output = tmp_path / "artifacts.json"
    good = CliRunner().invoke(main.app, ["references", "--output", str(output), "-n", "other"])
    assert good.exit_code == 0 and json.loads(output.read_text()) == {
        "artifacts": ["s3://artifacts/other/history"],
        "untouched": [],
    }
    output.unlink()

    def forbidden(verb: str, resource: Resource, name: str) -> None:
        if resource == DEPLOYMENT:
            raise Forbidden(403, "Forbidden", "deployments is forbidden")

    cluster.before = forbidden
    bad = CliRunner().invoke(main.app, ["references", "--output", str(output)])
    assert bad.exit_code != 0 and not output.exists() and "deployments is forbidden" in bad.output
