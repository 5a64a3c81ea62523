"""The API's types where the API server cannot help: durations, versions, names, what is refused and
what is dropped.
"""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from modelrollout.analysis.providers.prometheus.sources.traefik import service_labels
from modelrollout.api import names
from modelrollout.api.v1alpha1 import (
    DURATION_RE,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    Optimization,
    same_version,
    seconds,
)
from modelrollout.rollout.strategy import steps_of
from modelrollout.testing import builders as b


@pytest.mark.parametrize(
    ("text", "value"),
    [("90s", 90), ("1h30m", 5400), ("2ms", 0.002), ("1.5h", 5400), ("0s", 0), ("1m1m", 120)],
)
def test_durations(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "5", "5 s", "-5s", "s", "5d", "1h 30m", "5S"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        seconds(text)


@given(st.from_regex(DURATION_RE, fullmatch=True))
def test_every_duration_that_the_api_server_takes_has_a_length(text: str) -> None:
    assert timedelta(0) <= timedelta(seconds=seconds(text)) < timedelta(days=36_526), (
        "it can be added to any time"
    )


def test_the_smallest_spec_is_enough() -> None:
    spec = ModelDeploymentSpec.model_validate(
        {"model": {"uri": "s3://models/m.onnx"}, "serving": {"resources": {"limits": {"nvidia.com/gpu": 1}}}}
    )
    assert spec.serving.replicas == 2 and [s.weight for s in steps_of(spec.rollout)] == [5, 25, 50]
    assert (
        spec.rollout.on_failure == "Rollback"
        and spec.rollout.on_inconclusive == "Pause"
        and spec.optimization.steps == []
    )


def test_an_unknown_field_of_spec_is_refused_and_one_of_status_is_dropped() -> None:
    with pytest.raises(ValidationError, match="surprise"):
        ModelDeploymentSpec.model_validate(b.spec(1).wire() | {"surprise": 1})
    assert ModelDeploymentStatus.model_validate({"surprise": 1}) == ModelDeploymentStatus()


def test_a_version_is_what_changes_answers() -> None:
    one = b.spec(1).user_input()
    for same in (
        b.spec(1, pinned=True),
        b.spec(1, replicas=9),
        b.spec(1, golden=True),
        b.spec(1, gateway=False),
    ):
        assert same_version(one, same.user_input()) and same.user_input() == one
    assert not same_version(one, b.spec(2).user_input())


def test_what_a_container_may_use_is_no_part_of_the_version_and_the_present_one_holds() -> None:
    def spec(image: str, **resources: object) -> ModelDeploymentSpec:
        container = {
            "image": f"example/own@sha256:{image * 64}",
            **({"resources": resources} if resources else {}),
        }
        return b.spec(1, optimization={"steps": [{"graph": {}}, {"container": container}], "timeout": "2h"})

    small, large = spec("0", limits={"cpu": "1"}), spec("0", limits={"cpu": "4"})
    assert same_version(small.user_input(), large.user_input()) and same_version(
        small.user_input(), spec("0").user_input()
    )
    assert not same_version(small.user_input(), spec("1").user_input())
    carried = Optimization.model_validate(small.user_input()["optimization"]).carried_out_as(
        large.optimization
    )
    assert carried == large.optimization
    without = carried.carried_out_as(b.spec(1).optimization)
    assert without.container == carried.container and without.timeout == "1h"


def test_a_revisions_name_is_that_of_its_input_and_bytes() -> None:
    one = b.spec(1).user_input()
    name = names.revision_name("ml", "digits", one, b.sha(1))
    assert re.fullmatch(r"digits-[0-9a-f]{8}", name) and name == names.revision_name(
        "ml", "digits", dict(reversed(one.items())), b.sha(1)
    )
    assert name != names.revision_name("ml", "digits", one, b.sha(2)) and name != names.revision_name(
        "ml", "digits", b.spec(2).user_input(), b.sha(1)
    )


def test_names_that_a_gateway_joins_to_one_are_told_apart() -> None:
    one = b.spec(1).user_input()
    labels = [
        service_labels(ns, names.revision_name(ns, name, one, b.sha(1)))
        for ns, name in (("ml", "prod-x"), ("ml-prod", "x"))
    ]
    assert not labels[0].keys() & labels[1].keys()


def test_names_of_jobs_fit_for_the_longest_name() -> None:
    name = "m" * 40
    revision = names.revision_name("ml", name, {}, b.sha(1))
    made = [
        names.resolve_job_name(name, "1f2e"),
        *(names.stage_job_name(revision, c, "1f2e") for c in ("prepare", "evaluate")),
    ]
    assert max(map(len, made)) <= 63
