"""Versions of Triton against NVIDIA's bulletins, what a person reads of it, and a policy that
demands a patched one.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from modelrollout.api.v1alpha1.policy import PolicyGates
from modelrollout.rollout.decide import decide
from modelrollout.rollout.policy.rules import Rules
from modelrollout.rollout.security_bulletins import BULLETINS, known_flaws
from modelrollout.rollout.snapshot import Snapshot
from modelrollout.testing import builders as b

V1, V2 = b.revision_name(1), b.revision_name(2)
VALUES = Path(__file__).parents[3] / "charts" / "model-rollout-operator" / "values.yaml"


@pytest.mark.parametrize(
    ("version", "flaws", "worst", "then"),
    [
        ("2.51.0", 53, 5687, "26.06"),
        ("2.59.0", 52, 5687, "26.06"),
        ("2.59.1", 35, 5691, "26.06"),
        ("2.69.0", 5, 5865, "26.06"),
        ("2.69", 5, 5865, "26.06"),
    ],
)
def test_a_version_has_the_flaws_of_all_bulletins_after_it(
    version: str, flaws: int, worst: int, then: str
) -> None:
    actual = known_flaws(version)
    assert actual and actual.reason == "TritonVulnerable"
    assert (
        f"Triton {version} has {flaws} known flaws" in actual.message
        and f"the worst is {worst}, CVSS 9.8" in actual.message
    )
    assert f"to {then} or later" in actual.message


@pytest.mark.parametrize("version", ["2.70.0", "2.74.0", "3.0.0", "", "nightly", "v2", "1" * 30])
def test_what_no_bulletin_names_is_not_accused(version: str) -> None:
    assert known_flaws(version) is None


def test_releases_and_versions_go_together() -> None:
    """A release of the container each month, with the next minor version of the server; 25.07 alone
    had the version of 25.06 with a patch.
    """
    for bulletin in BULLETINS:
        year, month = (int(part) for part in bulletin.release.split("."))
        months = (year - 25) * 12 + month - 6 - (bulletin.release > "25.06")
        assert bulletin.fixed[:2] == (2, 59 + months), bulletin
    assert [x.fixed for x in BULLETINS] == sorted(x.fixed for x in BULLETINS)


def test_the_charts_own_triton_is_not_accused() -> None:
    release = re.search(r"tritonserver:(\d+\.\d+)", VALUES.read_text())
    assert release and release[1] >= BULLETINS[-1].release


def with_version(s: Snapshot, revision: str, version: str | None) -> Snapshot:
    return replace(s, triton_versions={revision: version} if version else {})


def test_stable_says_it_once_and_says_when_it_is_over() -> None:
    s = b.snapshot(
        b.spec(1), b.status(1), revisions=(b.revision(1, "Stable"),), servers={V1: b.ready()}, traffic=b.TAKEN
    )
    plan = decide(with_version(s, V1, "2.51.0"), b.START)
    assert (
        b.condition(plan, "Patched").reason == "TritonVulnerable"
        and b.condition(plan, "Ready").status == "True"
    ), "it serves all the same"
    assert [(e.type, e.reason) for e in plan.events if e.reason == "TritonVulnerable"] == [
        ("Warning", "TritonVulnerable")
    ]
    after = decide(with_version(replace(s, status=plan.status), V1, "2.51.0"), b.START)
    assert after.status == plan.status and not b.events(after)
    unknown = decide(with_version(replace(s, status=plan.status), V1, None), b.at(60))
    assert unknown.status == plan.status and not b.events(unknown), "a new leader has not asked yet"
    other = replace(s, status=plan.status, servers={V2: b.ready()}, triton_versions={})
    assert all(c.type != "Patched" for c in decide(other, b.START).status.conditions), "of pods that are gone"
    well = decide(with_version(replace(s, status=plan.status), V1, "2.74.0"), b.START)
    assert [e.reason for e in well.events] == ["Patched"] and all(
        c.type != "Patched" for c in well.status.conditions
    )


@pytest.mark.parametrize(
    ("version", "then", "reason"),
    [("2.74.0", "Canary", None), ("2.51.0", "Failed", "TritonVulnerable"), (None, "Provision", None)],
)
def test_a_policy_may_demand_a_patched_server(version: str | None, then: str, reason: str | None) -> None:
    rules = Rules(gates=(("p", PolicyGates(patched_servers=True)),))
    s = with_version(b.second("Provision", rules=rules), V2, version)
    rollout = decide(s, b.START).status.rollout
    assert rollout and (rollout.stage, rollout.reason) == (then, reason)
    if then == "Failed":
        assert rollout.outcome == "Rejected" and "RolloutPolicy p demands it" in (rollout.message or "")
    if then == "Provision":
        late = decide(s, b.at(100_000)).status.rollout
        assert late and late.stage == "Failed" and "GET /v2" in (late.message or "")
    anyway = decide(with_version(b.second("Provision"), V2, version), b.START).status.rollout
    assert anyway and anyway.stage == "Canary", "without such a policy no rollout waits for it"
