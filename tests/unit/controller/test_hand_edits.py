"""Children that a person edits: the operator puts them back, and says who edited what."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from modelrollout.api import names
from modelrollout.kube.kinds import DEPLOYMENT, HTTP_ROUTE, SERVICE, Resource
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator

TRAFFIC = {"http": {"hostnames": ["digits.example.com"]}, "gateway": {"name": "public"}}
V1 = b.revision_name(1)


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(main())


async def serving() -> tuple[Cluster, Operator]:
    cluster = Cluster()
    cluster.user(b.spec(1, steps=b.STEPS, traffic=TRAFFIC))
    operator = Operator(cluster)
    await operator.live()
    operator.events.clear()
    return cluster, operator


def edits(**spec: Any) -> Callable[[Any], None]:
    """What ``kubectl edit`` leaves."""

    def edit(o: Any) -> None:
        o["spec"].update(spec)
        owned = {"f:spec": {f"f:{field}": {} for field in spec}}
        entry = {"manager": "kubectl-edit", "operation": "Update", "fieldsV1": owned}
        o["metadata"]["managedFields"] = [entry]

    return edit


@pytest.mark.parametrize(
    ("resource", "name", "change"),
    [
        (HTTP_ROUTE, "digits", {"hostnames": ["other.example.com"]}),
        (SERVICE, "digits", {"selector": {names.LABEL_REVISION: "none"}}),
        (DEPLOYMENT, V1, {"replicas": 7}),
    ],
)
def test_a_hand_edit_is_put_back_and_reported(resource: Resource, name: str, change: dict[str, Any]) -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.change(resource, name, edits(**change))
        await operator.settle()
        live, field = cluster.find(resource, name), next(iter(change))
        assert live is not None and live["spec"][field] != change[field]
        [event] = operator.events
        assert (event.reason, event.type) == ("ChildReverted", "Warning")
        assert event.message.startswith(f"{resource.kind} {name}: kubectl-edit changed spec.{field}, which")
        assert "change the ModelDeployment instead" in event.message

    run(main)


def test_what_the_operator_changes_itself_is_no_edit() -> None:
    async def main() -> None:
        cluster, operator = await serving()
        cluster.user(b.spec(2, steps=b.STEPS, traffic=TRAFFIC))
        operator.assessment = b.judged("Successful")
        await operator.live(rounds=20)
        assert cluster.status.stable and cluster.status.stable.number == 2
        assert "ChildReverted" not in [e.reason for e in operator.events]

    run(main)
