"""Triton's own histogram of latencies: which servers have it, and its bounds."""

from __future__ import annotations

import pytest

from modelrollout.contract.tasks import Batching
from modelrollout.triton.config import parse, printed, render, with_objectives
from modelrollout.triton.histogram import FAMILY, LADDER, is_countable, objectives, takes_bounds, version_of
from modelrollout.triton.tensors import TensorSpec

X, Y = TensorSpec("x", "FP32", (-1, 4)), TensorSpec("y", "FP32", (-1, 3))


def bounds(text: str) -> dict[str, list[float]]:
    return {
        c.metric_identifier.family: list(c.histogram_options.buckets)
        for c in parse(text).model_metrics.metric_control
    }


def test_an_objective_is_told_by_the_bound_a_millisecond_below_it() -> None:
    """Triton cuts 49.9 ms to 49: what it counts up to 49 took less than 50."""
    config = parse(render([X], [Y], Batching(), "KIND_CPU"))
    assert bounds(printed(with_objectives(config, (50, 200)))) == {FAMILY: [49, 199]}
    assert not config.HasField("model_metrics"), "the given one is left alone"


def test_the_authors_bounds_and_other_metrics_stay() -> None:
    config = parse(render([X], [Y], Batching(), "KIND_CPU"))
    for family, buckets in (("others", [1.5]), (FAMILY, [10, 49])):
        control = config.model_metrics.metric_control.add()
        control.metric_identifier.family = family
        control.histogram_options.buckets.extend(buckets)
    assert bounds(printed(with_objectives(config, (50, 200)))) == {"others": [1.5], FAMILY: [10, 49, 199]}


def test_objectives_join_a_ladder_and_parts_of_milliseconds_are_left_out() -> None:
    told = objectives([0.05, 0.037, 0.0125, 0.0, 2.0])
    assert set(told) == {*LADDER, 37} and list(told) == sorted(told)
    assert [is_countable(s) for s in (0.0, 0.0005, 0.001, 0.0125, 0.037, 60.0)] == [
        False,
        False,
        True,
        False,
        True,
        True,
    ]


@pytest.mark.parametrize(
    ("image", "reported", "takes"),
    [
        ("nvcr.io/nvidia/tritonserver:24.10-py3", None, False),
        ("nvcr.io/nvidia/tritonserver:24.11-py3", None, True),
        ("nvcr.io/nvidia/tritonserver:26.10-vllm-python-py3", None, True),
        ("registry:5000/mirror/tritonserver:26.10-py3@sha256:ab", None, True),
        ("registry:5000/our-triton:26.10", None, True),
        ("registry:5000/our-triton:1.4.2", None, False),
        ("registry/ubuntu:24.04", None, False),
        ("registry/triton@sha256:ab", None, False),
        ("triton", None, False),
        # what a server said counts more than a tag
        ("registry/triton@sha256:ab", "2.52.0", True),
        ("registry/triton:26.10-py3", "2.51.0", False),
        ("registry/triton:1.4.2", "2.65.0", True),
        ("registry/triton:24.11-py3", "odd", True),
    ],
)
def test_bounds_are_for_a_triton_that_is_known_to_read_them(
    image: str, reported: str | None, takes: bool
) -> None:
    """Any other one loads no model whose configuration has them."""
    assert takes_bounds(image, reported) is takes


def test_versions() -> None:
    assert [version_of(v) for v in ("2.65.0", "2.52", "24.11-dev", "")] == [(2, 65), (2, 52), None, None]
