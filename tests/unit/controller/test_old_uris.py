"""ModelDeployments that were stored before URIs with secrets were refused: status is written,
stable serves, and nothing else repeats them.
"""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from modelrollout.api import uris
from modelrollout.cli.cluster import _printable
from modelrollout.config import StoreConfig
from modelrollout.contract.common import Location
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import ResolveTask
from modelrollout.controller.observe.job_state import job_state
from modelrollout.controller.observe.observation import parse_spec
from modelrollout.jobs.log import Progress
from modelrollout.jobs.runner import execute
from modelrollout.kube.events import Events
from modelrollout.kube.kinds import DEPLOYMENT, GATEWAY, GATEWAY_CLASS, MODEL_DEPLOYMENT, MODEL_REVISION
from modelrollout.resources.common import NotAllowedError, store_for_field
from modelrollout.rollout.policy.rules import NO_RULES, read
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import CONFIG, Cluster, Operator
from tests.unit.api.test_uris import CARRYING

FIELDS: dict[str, tuple[str, Any]] = {
    "model": ("spec.model.uri", lambda spec, uri: spec["model"].update(uri=uri)),
    "signature": (
        "spec.model.signature.uri",
        lambda spec, uri: spec["model"].update(
            signature={"keySecretRef": {"name": "k", "key": "k"}, "uri": uri}
        ),
    ),
    "golden": (
        "spec.rollout.analysis.golden.uri",
        lambda spec, uri: spec["rollout"].setdefault("analysis", {}).update(golden={"uri": uri}),
    ),
    "step": (
        "spec.optimization.steps.0.int8.calibration.uri",
        lambda spec, uri: spec.update(optimization={"steps": [{"int8": {"calibration": {"uri": uri}}}]}),
    ),
}


def shown(cluster: Cluster, operator: Operator) -> str:
    """All that anybody can read, but for what the user wrote himself."""
    objects = [
        {k: v for k, v in o.items() if not (resource is MODEL_DEPLOYMENT and k == "spec")}
        for (resource, *_), o in cluster.objects.items()
    ]
    return json.dumps(objects, default=str) + " ".join(f"{e.reason} {e.message}" for e in operator.events)


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("uri", CARRYING[::3])
def test_status_is_written_and_stable_serves(field: str, uri: str, caplog: pytest.LogCaptureFixture) -> None:
    name, put = FIELDS[field]

    async def main() -> None:
        cluster = Cluster()
        cluster.user(b.spec(1))
        operator = Operator(cluster)
        await operator.live()
        assert cluster.status.phase == "Stable"

        def older(o: Any) -> None:
            o["metadata"]["generation"] += 1
            o["spec"] = json.loads(json.dumps(o["spec"]))
            put(o["spec"], uri)

        cluster.change(MODEL_DEPLOYMENT, "digits", older)
        await operator.live()
        ready = next(c for c in cluster.status.conditions if c.type == "Ready")
        assert (ready.status, ready.reason) == ("False", "InvalidSpec")
        assert name in ready.message and uris.INSTEAD in ready.message
        assert cluster.status.stable and set(cluster.all(DEPLOYMENT)) == {b.revision_name(1)}
        assert "hunter2" not in shown(cluster, operator) + caplog.text
        # Corrected, it goes on.
        cluster.user(b.spec(2))
        await operator.live()
        assert len(cluster.all(MODEL_REVISION)) == 2

    with caplog.at_level(logging.DEBUG):
        asyncio.run(main())


def test_the_first_version_of_one_makes_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        cluster = Cluster()
        wire = b.spec(1).wire()
        wire["model"]["uri"] = CARRYING[0]
        cluster.user(wire)
        operator = Operator(cluster)
        await operator.live()
        before = {GATEWAY, GATEWAY_CLASS}
        assert {resource for resource, *_ in cluster.objects} - before == {MODEL_DEPLOYMENT}
        assert "hunter2" not in shown(cluster, operator) + caplog.text

    asyncio.run(main())


def test_a_key_of_a_map_is_part_of_a_path_and_masked_there() -> None:
    wire = b.spec(1).wire()
    wire["serving"]["resources"]["limits"] = {CARRYING[0]: "much"}
    spec, why = parse_spec({"spec": wire}, NO_RULES)
    assert spec is None and why and "hunter2" not in why and "https://***@models.example.com" in why


@pytest.mark.parametrize("uri", CARRYING)
def test_no_message_about_a_store_repeats_it(uri: str) -> None:
    config = CONFIG.model_copy(
        update={"stores": [StoreConfig(name="other", uri="https://other.example.com/")]}
    )
    with pytest.raises(NotAllowedError) as error:
        store_for_field("spec.model.uri", uri, config)
    assert "hunter2" not in str(error.value)


def test_events_are_masked_last(caplog: pytest.LogCaptureFixture) -> None:
    posted: list[dict[str, Any]] = []

    class Api:
        async def create(self, resource: Any, obj: dict[str, Any]) -> dict[str, Any]:
            posted.append(obj)
            return obj

        async def merge_patch(self, *_: Any) -> dict[str, Any]:
            return {}

    about = {"apiVersion": "v1", "kind": "X", "metadata": {"name": "x", "namespace": "n"}}
    for uri in CARRYING:
        asyncio.run(Events(Api(), instance="i").post(about, "Warning", "Said", f"generation 1: {uri}"))
    assert len(posted) == len(CARRYING) and "hunter2" not in json.dumps(posted)


def test_a_policy_with_one_says_what_to_write() -> None:
    obj = {"metadata": {"name": "p"}, "spec": {"allowedSources": {"models": [CARRYING[0]]}}}
    policy = read(obj)
    assert policy.error == f"spec.allowedSources.models.0: {uris.PREFIX_INSTEAD}"


def test_the_last_word_of_an_older_job_is_masked() -> None:
    result = TaskResult(
        reason="ObjectMissing", message=f"spec.model.uri: {CARRYING[0]} does not exist"
    ).model_dump_json()
    terminated = {"exitCode": 10, "message": result, "finishedAt": "2026-01-01T00:00:00Z"}
    status = {"phase": "Failed", "containerStatuses": [{"name": "job", "state": {"terminated": terminated}}]}
    owner = {"kind": "Job", "name": "j", "uid": "j", "controller": True}
    pod = {
        "metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z", "ownerReferences": [owner]},
        "status": status,
    }
    job = {
        "metadata": {"name": "j", "uid": "j"},
        "spec": {},
        "status": {"conditions": [{"type": "Failed", "status": "True", "reason": "X", "message": "m"}]},
    }
    work = job_state(job, [pod], "s3://artifacts/ml")
    assert (
        work.result
        and work.result.message == "spec.model.uri: https://***@models.example.com/m.onnx does not exist"
    )


def test_a_job_that_stumbles_over_one_does_not_repeat_it() -> None:
    def stumble(*_: Any) -> TaskResult:
        raise ValueError(f"cannot read {CARRYING[0]}")

    _, result = execute(
        stumble, ResolveTask(source=Location(uri="s3://models/m.onnx")).model_dump_json(), Progress()
    )
    assert (
        result.reason == "InternalError"
        and "https://***@models.example.com" in result.message
        and "hunter2" not in result.message
    )


def test_the_command_line_shows_objects_of_earlier_versions_masked() -> None:
    for uri in CARRYING:
        assert "hunter2" not in json.dumps(
            _printable(
                {
                    "spec": {"input": {"model": {"uri": uri}}},
                    "status": {"conditions": [{"message": f"{uri}: no"}]},
                }
            )
        )
