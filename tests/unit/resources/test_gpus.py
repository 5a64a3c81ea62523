"""The one table of GPUs: what device plugins call them, what one of each counts, who asks it."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from pydantic import ValidationError

from modelrollout.api.v1alpha1 import Optimization, Serving
from modelrollout.config import GpuConfig, OperatorConfig
from modelrollout.gpus import USUAL, GpuResource, GpuTable, exact, exact_text, rounded_up, shown
from tests.unit.resources import objects as o

TABLE = GpuTable()
DEVICE_PLUGINS = [
    ("nvidia.com/gpu", "1", "nvidia.com/gpu"),
    ("nvidia.com/gpu.shared", "1", "nvidia.com/gpu"),
    ("nvidia.com/mig-1g.5gb", "1/7", "nvidia.com/gpu"),
    ("nvidia.com/mig-1g.5gb.shared", "1/7", "nvidia.com/gpu"),
    ("nvidia.com/mig-1g.10gb.me", "1/7", "nvidia.com/gpu"),
    ("nvidia.com/mig-2g.20gb", "2/7", "nvidia.com/gpu"),
    ("nvidia.com/mig-3g.40gb", "3/7", "nvidia.com/gpu"),
    ("nvidia.com/mig-4g.40gb", "4/7", "nvidia.com/gpu"),
    ("nvidia.com/mig-7g.80gb", "1", "nvidia.com/gpu"),
    ("nvidia.com/mig-1g.6gb", "1/4", "nvidia.com/gpu"),
    ("nvidia.com/mig-2g.12gb.me", "1/2", "nvidia.com/gpu"),
    ("nvidia.com/mig-4g.96gb", "1", "nvidia.com/gpu"),
    ("nvidia.com/pgpu", "1", "nvidia.com/gpu"),
    ("amd.com/gpu", "1", "amd.com/gpu"),
    ("amd.com/spx_nps1", "1", "amd.com/gpu"),
    ("amd.com/cpx_nps4", "1/6", "amd.com/gpu"),
    ("gpu.intel.com/i915", "1", "gpu.intel.com/i915"),
    ("gpu.intel.com/xe", "1", "gpu.intel.com/xe"),
    ("gpu.intel.com/xe_monitoring", "1", "gpu.intel.com/xe"),
    ("gpu.intel.com/monitoring", "1", "gpu.intel.com/i915"),
    ("gpu.intel.com/millicores", "0", None),
    ("habana.ai/gaudi", "1", "habana.ai/gaudi"),
    ("aws.amazon.com/neuron", "1", "aws.amazon.com/neuron"),
    ("aws.amazon.com/neuroncore", "1/2", "aws.amazon.com/neuron"),
    ("google.com/tpu", "1", "google.com/tpu"),
]


def config(**row: Any) -> OperatorConfig:
    """The usual table, and a row for example.com/vgpu."""
    rows = o.CONFIG.gpus | {"example.com/vgpu": GpuConfig(**row)}
    return o.CONFIG.model_copy(update={"gpus": rows})


@pytest.mark.parametrize(("kind", "weight", "taint"), DEVICE_PLUGINS)
def test_a_gpu_counts_and_its_nodes_are_tolerated_whatever_its_plugin_calls_it(
    kind: str, weight: str, taint: str | None
) -> None:
    limits = {kind: 2, "cpu": 4, "memory": "1Gi"}
    assert TABLE.weight(kind) == Fraction(weight) and TABLE.share(limits) == 2 * Fraction(weight)
    assert TABLE.has_gpu(limits) is (weight != "0")
    assert TABLE.tolerated(limits) == ([taint] if taint else [])
    pod = o.template(Serving.model_validate({"resources": {"limits": limits}}))["spec"]
    tolerated = [{"key": taint, "operator": "Exists", "effect": "NoSchedule"}] if taint else None
    assert pod.get("tolerations") == tolerated


def test_every_row_is_for_a_name_of_a_device_plugin() -> None:
    used = {id(TABLE.row(kind)) for kind, _, _ in DEVICE_PLUGINS}
    same = {
        "nvidia.com/mig-4g.24gb*",
        "nvidia.com/mig-1g.24gb*",
        "nvidia.com/mig-2g.48gb*",
        "amd.com/dpx_*",
        "amd.com/tpx_*",
        "amd.com/qpx_*",
        "gpu.intel.com/memory.max",
        "gpu.intel.com/tiles",
        "aws.amazon.com/neurondevice",
    }
    assert {name for name, row in USUAL.items() if id(row) not in used} == same


def test_a_name_without_a_row_counts_in_budgets_and_is_no_gpu_otherwise() -> None:
    """A name that the table does not know must slip past no policy."""
    limits = {"example.com/vgpu": 3, "cpu": 64, "hugepages-2Mi": "1Gi", "ephemeral-storage": "1Gi"}
    assert TABLE.share(limits) == 3
    assert not TABLE.has_gpu(limits) and TABLE.tolerated(limits) == []
    assert TABLE.may_have_gpu(limits) and not config(weight=0).gpu_table.may_have_gpu(limits)
    assert config(weight=0).gpu_table.share(limits) == 0


def test_the_longest_beginning_holds_and_a_name_of_its_own_before_all() -> None:
    rows = {
        name: GpuResource(Fraction(n)) for n, name in enumerate(("a.b/*", "a.b/c-*", "a.b/c-d*", "a.b/c-d"))
    }
    for order in (rows, dict(reversed(rows.items()))):
        table = GpuTable(order)
        kinds = ("a.b/x", "a.b/c-x", "a.b/c-dx", "a.b/c-d")
        assert [table.weight(kind) for kind in kinds] == [0, 1, 2, 3]


@settings(max_examples=200, derandomize=True, database=None)
@given(st.lists(st.tuples(st.sampled_from([kind for kind, _, _ in DEVICE_PLUGINS]), st.integers(0, 50))))
def test_sums_are_exact_in_whatever_order_and_survive_being_written(asked: list[tuple[str, int]]) -> None:
    shares = [TABLE.share({kind: n}) for kind, n in asked]
    total = sum(shares, Fraction(0))
    assert total == sum(reversed(shares), Fraction(0)) == sum(TABLE.weight(kind) * n for kind, n in asked)
    assert exact(rounded_up(total), exact_text(total)) == total
    assert Fraction(0) <= rounded_up(total) - total < 1


def test_seven_slices_are_one_gpu() -> None:
    assert sum((TABLE.share({"nvidia.com/mig-1g.5gb": 1}) for _ in range(7)), Fraction(0)) == 1


@pytest.mark.parametrize(
    ("whole", "text", "read"),
    [
        (2, "10/7", Fraction(10, 7)),
        (2, None, Fraction(2)),
        (2, "", Fraction(2)),
        (2, "1/0", Fraction(2)),
        (2, "x", Fraction(2)),
        (2, "1/7", Fraction(2)),  # an earlier operator has written the whole number alone since
        (0, "nan", Fraction(0)),
    ],
)
def test_a_text_that_is_not_that_of_the_number_counts_nothing(
    whole: int, text: str | None, read: Fraction
) -> None:
    assert exact(whole, text) == read


@pytest.mark.parametrize(
    ("gpus", "text"),
    [(Fraction(3), "3"), (Fraction(3, 7), "3/7"), (Fraction(10, 7), "1 3/7"), (Fraction(0), "0")],
)
def test_people_read_whole_gpus_and_the_rest(gpus: Fraction, text: str) -> None:
    assert shown(gpus) == text


@pytest.mark.parametrize(
    ("weight", "read"), [(1, "1"), (0, "0"), ("1/7", "1/7"), (0.1, "1/10"), ("0.25", "1/4")]
)
def test_a_weight_is_the_number_that_was_written(weight: Any, read: str) -> None:
    assert GpuConfig(weight=weight).weight == Fraction(read)


@pytest.mark.parametrize("weight", [-1, "1/0", "a", True, None, "1/7/7", "1e3", float("nan"), [1]])
def test_what_is_no_weight_is_refused_with_an_example(weight: Any) -> None:
    with pytest.raises(
        ValidationError, match=r"is no weight; write a number from 0 on, for example 1, 0\.5 or 1/7"
    ):
        GpuConfig(weight=weight)


@pytest.mark.parametrize("name", ["gpu", "nvidia.com/", "*/gpu", "nvidia.com/g*u", "Nvidia.com/gpu", ""])
def test_a_row_is_for_a_resource_with_a_domain(name: str) -> None:
    raw = o.CONFIG.model_dump(by_alias=True, exclude={"gpus"})
    with pytest.raises(ValidationError, match="gpus"):
        OperatorConfig.model_validate(raw | {"gpus": {name: {"weight": 1}}})


def test_a_row_that_is_null_is_none() -> None:
    raw = o.CONFIG.model_dump(by_alias=True, exclude={"gpus"})
    made = OperatorConfig.model_validate(raw | {"gpus": {"a.b/c": {"weight": 1}, "a.b/d": None}})
    assert list(made.gpus) == ["a.b/c"]


def test_a_toleration_of_the_spec_is_not_repeated_and_kinds_add_theirs() -> None:
    own = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    limits = {"nvidia.com/mig-1g.5gb": 1, "nvidia.com/gpu": 1, "example.com/vgpu": 1}
    serving = Serving.model_validate({"resources": {"limits": limits}, "tolerations": [own]})
    assert o.template(serving)["spec"]["tolerations"] == [own]
    listed = config(weight=1, toleration="example.com/shared")
    other = own | {"key": "example.com/shared"}
    assert o.template(serving, listed)["spec"]["tolerations"] == [own, other]


@pytest.mark.parametrize("kind", ["nvidia.com/mig-1g.5gb", "amd.com/gpu"])
def test_a_job_that_requests_a_gpu_runs_where_those_are(kind: str) -> None:
    steps = {"resources": {"limits": {kind: 1, "memory": "2Gi"}}}
    pod = o.pod(o.prepare(optimization=Optimization.model_validate(steps), serving=Serving(resources={})))
    key = TABLE.tolerated({kind: 1})[0]
    assert pod["tolerations"] == [{"key": key, "operator": "Exists", "effect": "NoSchedule"}]


def test_devices_are_known_where_one_of_a_kind_is_at_most_one() -> None:
    known = {"nvidia.com/gpu": 2, "cpu": 1}
    assert TABLE.devices(known) == 2
    assert TABLE.devices({"nvidia.com/mig-1g.5gb": 3}) == 3
    assert TABLE.devices({"gpu.intel.com/millicores": 500, "habana.ai/gaudi": 4}) == 4
    for unknown in (
        {"cpu": 1},
        {"aws.amazon.com/neuron": 1},
        {"gpu.intel.com/xe": 1},
        {"nvidia.com/pgpu": 1},
        {"example.com/vgpu": 1},
        known | {"example.com/vgpu": 1},
        known | {"amd.com/gpu": 1},
        None,
    ):
        assert TABLE.devices(unknown) is None, unknown
