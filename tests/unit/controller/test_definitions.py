"""Definitions that are older than the operator are reported, and RolloutPolicies fail closed."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from modelrollout.controller.lookups.definitions import CHECK_SECONDS, OUTDATED_SECONDS, Definitions
from modelrollout.controller.lookups.policies import Policies
from modelrollout.kube import cache
from modelrollout.kube.errors import Forbidden, KubeError, Unavailable
from modelrollout.kube.kinds import ROLLOUT_POLICY, Resource
from modelrollout.problem import Problem
from modelrollout.rollout.policy.rules import active_freeze, combine
from modelrollout.testing import builders as b
from tests.served_definitions import fields, served


class Server:
    """An API server that answers with ``document``, or fails with it."""

    def __init__(self, document: dict[str, Any] | KubeError) -> None:
        self.document = document

    async def openapi(self, resource: Resource) -> dict[str, Any]:
        if isinstance(self.document, KubeError):
            raise self.document
        return self.document


def definitions(document: dict[str, Any] | KubeError) -> tuple[Server, Definitions]:
    server = Server(document)
    return server, Definitions(server)  # type: ignore[arg-type]


def older() -> dict[str, Any]:
    document = served()
    del fields(document, "RolloutPolicy", "spec", "gates")["bake"]
    return document


def test_an_older_definition_is_a_problem_that_names_the_field_and_the_remedy(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, compared = definitions(older())
    with caplog.at_level(logging.ERROR):
        assert asyncio.run(compared.compare())
    problem = compared.problem("RolloutPolicy")
    assert problem is not None
    assert problem.reason == "DefinitionOutdated"
    assert "spec.gates.bake" in problem.message
    assert "apply crds/" in problem.message
    assert problem.message in caplog.text
    assert compared.problem("ModelDeployment") is None
    assert compared.count()["RolloutPolicy",] == 1


def test_it_is_compared_often_until_it_is_current_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first look, right after a start, found it outdated."""
    clock = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    server, compared = definitions(older())
    asyncio.run(compared.compare())
    assert not compared.is_due()
    clock[0] += OUTDATED_SECONDS
    assert compared.is_due()
    server.document = served()
    assert asyncio.run(compared.compare())
    assert compared.problem("RolloutPolicy") is None
    clock[0] += OUTDATED_SECONDS
    assert not compared.is_due()
    clock[0] += CHECK_SECONDS
    assert compared.is_due() and not asyncio.run(compared.compare())


@pytest.mark.parametrize(
    "answer",
    [
        Forbidden(403, "Forbidden", "no"),
        Unavailable(0, "Timeout", "slow"),
        {},
        {"components": {"schemas": {"x": None}}},
    ],
)
def test_an_api_server_that_does_not_answer_changes_nothing(answer: Any) -> None:
    server, compared = definitions(older())
    asyncio.run(compared.compare())
    server.document = answer
    asyncio.run(compared.compare())
    assert answer == {} or compared.problem("RolloutPolicy") is not None


def test_policies_fail_closed_while_their_definition_is_older_and_hold_again_afterwards() -> None:
    store = cache.ObjectCache()
    store.record_read(
        ROLLOUT_POLICY,
        {
            "apiVersion": "modelrollout.dev/v1alpha1",
            "kind": "RolloutPolicy",
            "metadata": {"name": "p", "uid": "u", "generation": 1, "resourceVersion": "1"},
            "spec": {"limits": {"concurrentRollouts": 1}},
        },
    )
    problem: list[Problem | None] = [Problem("DefinitionOutdated", "it drops spec.gates.bake")]
    policies = Policies(
        None,  # type: ignore[arg-type]
        store,
        lambda key, wait: None,
        lambda: b.START,
        outdated=lambda: problem[0],
    )
    [policy] = policies.all()
    assert policy.error == "it drops spec.gates.bake"
    assert policy.spec.limits is not None, "what is left of the policy holds as well"
    freeze = active_freeze(combine([policy]), b.START)
    assert freeze is not None
    assert freeze.until is None
    problem[0] = None
    [policy] = policies.all()
    assert policy.error is None
