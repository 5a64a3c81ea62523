"""What is empty makes no version: of every list, map and object that a spec may leave out in model,
optimization and serving.
"""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import pytest
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from modelrollout.api.v1alpha1 import Model, ModelDeploymentSpec, Optimization, Serving, same_version
from modelrollout.api.v1alpha1.said import AS_WRITTEN
from modelrollout.api.v1alpha1.schema import ApiModel, ShapeOf

PARTS: dict[str, type[ApiModel]] = {"model": Model, "optimization": Optimization, "serving": Serving}
SECRET = {"secretRef": {"name": "s"}}
DATA = {"uri": "s3://data/x.npz", "slices": ["site"], "credentials": SECRET}
TRAINING = {"data": DATA}
STUDENT = {"uri": "s3://models/s.onnx", "credentials": SECRET}
EXPRESSIONS = [{"key": "zone", "operator": "In", "values": ["a"]}]
SELECTOR = {"matchLabels": {"app": "x"}, "matchExpressions": EXPRESSIONS}
NODES = {"matchExpressions": EXPRESSIONS, "matchFields": EXPRESSIONS}
PODS = {
    "labelSelector": SELECTOR,
    "namespaces": ["x"],
    "namespaceSelector": SELECTOR,
    "topologyKey": "zone",
    "matchLabelKeys": ["app"],
    "mismatchLabelKeys": ["app"],
}
BY_PODS = {
    "requiredDuringSchedulingIgnoredDuringExecution": [PODS],
    "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "podAffinityTerm": PODS}],
}
RESOURCES = {"limits": {"cpu": "1"}, "requests": {"cpu": "1"}}
# Each field that there is, once; a step has one kind.
FULL: dict[str, Any] = {
    "model": {
        "uri": "s3://models/m.onnx",
        "credentials": SECRET,
        "signature": {"keySecretRef": {"name": "s", "key": "k"}},
        "lineage": {"run": "1"},
    },
    "optimization": {
        "steps": [
            {"graph": {}},
            {"prune": {"sparsity": 0.5, "training": TRAINING}},
            {"distill": {"student": STUDENT, "training": TRAINING}},
            {"halfPrecision": {}},
            {"int8": {"calibration": DATA}},
            {"int4": {}},
            {
                "container": {
                    "image": f"example/own@sha256:{'0' * 64}",
                    "command": ["run"],
                    "args": ["-v"],
                    "data": DATA,
                    "resources": RESOURCES,
                }
            },
            {"auto": {"data": DATA, "calibration": DATA, "training": TRAINING}},
        ],
        "gate": {"data": DATA, "metrics": [{"name": "accuracy", "slices": {"maxDrop": 0.1}}]},
        "resources": RESOURCES,
    },
    "serving": {
        "triton": {
            "inputs": [{"name": "x", "dataType": "FP32", "shape": [-1, 4]}],
            "outputs": [{"name": "y", "dataType": "FP32", "shape": [-1, 1]}],
        },
        "resources": RESOURCES,
        "nodeSelector": {"zone": "a"},
        "tolerations": [{"operator": "Exists"}],
        "affinity": {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [NODES]},
                "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 1, "preference": NODES}],
            },
            "podAffinity": BY_PODS,
            "podAntiAffinity": BY_PODS,
        },
        "imagePullSecrets": [{"name": "s"}],
        "pod": {
            "labels": {"team": "x"},
            "annotations": {"team": "x"},
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "zone",
                    "whenUnsatisfiable": "DoNotSchedule",
                    "labelSelector": SELECTOR,
                    "matchLabelKeys": ["app"],
                }
            ],
            "env": [
                {"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "s", "key": "k"}}},
            ],
            "volumes": [
                {"name": "a", "secret": {"name": "s"}},
                {"name": "b", "configMap": {"name": "c"}},
                {"name": "c", "persistentVolumeClaim": {"claimName": "c"}},
            ],
            "sizeLimits": {"shm": "1Gi"},
            "fetchResources": RESOURCES,
        },
        "batching": {"maxBatchSize": 8},
        "tune": {"objective": "50ms", "data": DATA},
        "drain": {"preStop": "20s"},
    },
}
# Objects that say something by being there. All other ones that may be left out say nothing.
SPEAKING = {
    ("EnvVar", "valueFrom"),  # not either of both is refused by the API server
    ("GateMetric", "slices"),  # so is one without a budget
    ("OptimizationStep", "graph"),
    ("OptimizationStep", "halfPrecision"),
    ("OptimizationStep", "int4"),
    ("OptimizationStep", "int8"),
    ("Pod", "fetchResources"),  # in the place of the usual ones
    ("PodAffinityTerm", "labelSelector"),  # all pods; left out: none
    ("PodAffinityTerm", "namespaceSelector"),  # all namespaces; left out: this one
    ("TopologySpreadConstraint", "labelSelector"),  # all pods; left out: those of the revision
}
Place = tuple[Any, ...]
Type = type[ApiModel]


def types_in(annotation: Any, shape: Type | None = None) -> Iterator[tuple[type, Type | None]]:
    """(list, dict or type of an object; type of what is in it)."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        for mark in args[1:]:
            if isinstance(mark, ShapeOf):
                module, _, name = mark.type.partition(":")
                shape = getattr(importlib.import_module(module), name)
        yield from types_in(args[0], shape)
    elif origin in (Union, UnionType):
        for arg in args:
            yield from types_in(arg, shape)
    elif origin is list:
        yield list, next((of for _, of in types_in(args[0], shape)), None)
    elif origin is dict:
        yield dict, shape
    elif isinstance(annotation, type) and issubclass(annotation, ApiModel):
        yield annotation, annotation


def parts_of(type_: Type, value: dict[str, Any], place: Place) -> Iterator[tuple[Type, Place]]:
    """Every object in a part of a spec, by its type and place."""
    yield type_, place
    for name, field in type_.model_fields.items():
        at = field.alias or name
        for _, of in types_in(field.annotation):
            if of is None or at not in value:
                continue
            if isinstance(value[at], dict):
                yield from parts_of(of, value[at], (*place, at))
            for i, item in enumerate(value[at] if isinstance(value[at], list) else []):
                yield from parts_of(of, item, (*place, at, i))


def types_below(type_: Type, seen: set[Type]) -> set[Type]:
    if type_ not in seen:
        seen.add(type_)
        for field in type_.model_fields.values():
            for _, of in types_in(field.annotation):
                if of is not None:
                    types_below(of, seen)
    return seen


def may_be_empty(field: FieldInfo) -> Iterator[Any]:
    """Empty values of a field that may be left out."""
    for kind, _ in types_in(field.annotation):
        empty: Any = [] if kind is list else {}
        bounded: Any = Annotated[field.annotation, None, *field.metadata]
        try:
            TypeAdapter(bounded).validate_python(empty)
        except ValidationError:
            continue
        if not field.is_required():
            yield empty


def emptied(place: Place, empty: Any) -> dict[str, Any]:
    """FULL with that in this place; None: left out."""
    spec = copy.deepcopy(FULL)
    within: Any = spec
    for step in place[:-1]:
        within = within[step]
    within.pop(place[-1], None)
    if empty is not None:
        within[place[-1]] = empty
    return spec


def cases() -> Iterator[tuple[Type, Place, Any]]:
    """Type, place and empty value of each field that may be empty."""
    for part, of in PARTS.items():
        for type_, place in parts_of(of, FULL[part], (part,)):
            for name, field in type_.model_fields.items():
                for empty in may_be_empty(field):
                    yield type_, (*place, field.alias or name), empty


CASES = {".".join(map(str, case[1])): case for case in cases()}


def test_every_field_that_can_be_empty_has_a_case() -> None:
    types = set().union(*(types_below(part, set()) for part in PARTS.values()))
    can = {
        (t.__name__, field.alias or name)
        for t in types
        for name, field in t.model_fields.items()
        if list(may_be_empty(field))
    }
    assert {(type_.__name__, place[-1]) for type_, place, _ in CASES.values()} == can
    assert can >= SPEAKING


def test_the_types_of_what_is_written_through_are_known() -> None:
    found = {
        field.alias or name: of
        for part in types_below(Serving, set())
        for name, field in part.model_fields.items()
        for kind, of in types_in(field.annotation)
        if of is not None and "dict[str, typing.Any]" in str(field.annotation)
    }
    flat = {
        at for at, of in found.items() if not any(list(may_be_empty(f)) for f in of.model_fields.values())
    }
    assert flat == {"tolerations"}, "nothing in it can be empty"
    assert {at: of for at, of in found.items() if at not in flat} == AS_WRITTEN


@pytest.mark.parametrize("case", CASES)
def test_what_is_empty_is_the_same_version_as_what_is_left_out(case: str) -> None:
    type_, place, empty = CASES[case]
    out, there = (
        ModelDeploymentSpec.model_validate(emptied(place, value)).user_input() for value in (None, empty)
    )
    same = (type_.__name__, place[-1]) not in SPEAKING
    assert (out == there) is same, "the name of a revision is made of it"
    assert same_version(out, there) is same


@pytest.mark.parametrize("case", CASES)
def test_a_revision_that_recorded_what_is_empty_is_not_rolled_out_again(case: str) -> None:
    """As operators did that did not leave it out."""
    type_, place, empty = CASES[case]
    spec, without = (ModelDeploymentSpec.model_validate(emptied(place, value)) for value in (empty, None))
    recorded = spec.user_input_as_written()
    assert same_version(recorded, spec.user_input())
    assert same_version(recorded, without.user_input()) is ((type_.__name__, place[-1]) not in SPEAKING)
