"""Series of single ModelDeployments: what they say, their limit, and that no status breaks a
scrape.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
from hypothesis import given
from prometheus_client import CollectorRegistry, generate_latest

from modelrollout.rollout.status import derive_status
from modelrollout.telemetry.fleet import FleetCollector, facts
from modelrollout.testing import builders as b

V1, V2 = b.revision_name(1), b.revision_name(2)


def of(s: Any) -> dict[str, Any]:
    status = derive_status(s, s.status, b.START).model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"metadata": {"namespace": "ml", "name": "digits"}, "status": status}


def told(obj: dict[str, Any]) -> dict[tuple[str, ...], float]:
    return {(f.metric, *f.labels): f.value for f in facts(obj)}


def test_a_canary_has_its_step_weight_and_both_revisions() -> None:
    made = told(of(b.second("Canary", changes={"step": b.step(0, 5)})))
    assert made["phase", "Canary"] == made["stage", "Canary"] == made["step", "1/3"] == 1
    assert made["revision", "stable", V1, "1"] == made["revision", "canary", V2, "2"] == 1
    assert made[("weight_percent",)] == 5 and made[("ready",)] == 0 and made[("available",)] == 1
    assert made[("step_started_seconds",)] == b.START.timestamp() - 10


def test_a_pause_for_a_cause_is_stalled_with_its_reason_and_an_end_leaves_nothing_of_the_trial() -> None:
    paused = b.second("Canary", changes={"step": b.step(0, 5, "Paused"), "reason": "Inconclusive"})
    assert told(of(paused))["stalled", "Inconclusive"] == 1
    ended = b.second("Failed", changes={"outcome": "RolledBack", "reason": "AccuracyLow"})
    kinds = {name for name, *_ in told(of(ended))}
    assert not kinds & {"step", "stage", "weight_percent", "step_started_seconds"}


def scrape(objects: list[dict[str, Any]], most: int) -> str:
    registry = CollectorRegistry()
    registry.register(FleetCollector(lambda: objects, most))
    return generate_latest(registry).decode()


def test_beyond_the_limit_objects_are_left_out_in_order_and_counted() -> None:
    objects = [{"metadata": {"namespace": "ml", "name": f"m{i}"}, "status": {}} for i in (3, 1, 2)]
    text = scrape(objects, 2)
    assert 'name="m1"' in text and 'name="m2"' in text and 'name="m3"' not in text
    assert "modelrollout_deployments_without_series 1.0" in text
    assert 'name="' not in scrape(objects, 0)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([10**400, -(10**400), 1 << 63])
    | st.floats()
    | st.text(st.characters(), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "status", "reason", "stage", "since", "revision", "number", "step"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)


@given(
    st.dictionaries(
        st.sampled_from(
            [
                "phase",
                "conditions",
                "stable",
                "rollout",
                "canary",
                "weight",
                "step",
                "replicas",
                "readyReplicas",
            ]
        ),
        values,
    )
)
def test_no_status_breaks_a_scrape(status: dict[str, Any]) -> None:
    text = scrape([{"metadata": {"namespace": "a", "name": "b"}, "status": status}], 10)
    assert text.count("modelrollout_deployment_phase{") == 1
    assert not {"NaN", "+Inf", "-Inf"} & {line.rsplit(" ", 1)[-1] for line in text.split("\n")}
