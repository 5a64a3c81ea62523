"""Servers of models that stream their answers get the time that streams take to end."""

from __future__ import annotations

import asyncio
import copy
from typing import Any

import pytest

from modelrollout.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, MODEL_REVISION
from modelrollout.resources.server import drain_of
from modelrollout.testing import builders as b
from modelrollout.testing.fake_cluster import Cluster, Operator

V1 = b.revision_name(1)


@pytest.fixture
def streaming(monkeypatch: pytest.MonkeyPatch) -> None:
    """What preparing finds."""
    result = b.job_result
    monkeypatch.setattr(b, "job_result", lambda *args: result(*args).model_copy(update={"decoupled": True}))


def template(cluster: Cluster) -> Any:
    found = cluster.find(DEPLOYMENT, V1)
    assert found is not None
    return copy.deepcopy(found["spec"]["template"])


async def served(**serving: Any) -> tuple[Cluster, Operator]:
    cluster, wanted = Cluster(), b.spec(1).wire()
    cluster.user(wanted | {"serving": wanted["serving"] | serving})
    operator = Operator(cluster)
    await operator.live()
    return cluster, operator


def test_preparing_finds_that_a_model_streams_and_its_servers_may_end_what_they_answer(
    streaming: None,
) -> None:
    async def main() -> None:
        cluster, operator = await served()
        before = template(cluster)
        assert drain_of(before) == (10, 900)
        revision = cluster.find(MODEL_REVISION, V1)
        assert revision is not None and drain_of(revision["spec"]["template"]) == (10, 30), "as it was frozen"
        # what is known of the artifact is lost: it is read from the pods that run
        cluster.change(MODEL_REVISION, V1, lambda o: o.pop("status"))
        cluster.change(MODEL_DEPLOYMENT, b.NAME, lambda o: o["status"].pop("rollout"))
        await operator.live(rounds=3)
        assert template(cluster) == before, "no pod is replaced"

    asyncio.run(main())


def test_what_spec_says_holds_for_them_too(streaming: None) -> None:
    async def main() -> None:
        cluster, _ = await served(drain={"exitTimeout": "60s"})
        assert drain_of(template(cluster)) == (10, 60)

    asyncio.run(main())


def test_all_others_end_as_the_operator_is_configured() -> None:
    async def main() -> None:
        cluster, _ = await served()
        assert drain_of(template(cluster)) == (10, 30)

    asyncio.run(main())
