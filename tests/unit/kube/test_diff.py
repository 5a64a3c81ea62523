"""``covers``: is the live object what is wanted, with what the API server added by itself left
aside?
"""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.kube.diff import differing_fields, is_up_to_date


@pytest.mark.parametrize(
    ("live", "desired"),
    [
        ({"a": 1, "default": 2}, {"a": 1}),
        ({"a": {"b": 1, "default": 2}}, {"a": {"b": 1}}),
        ([{"name": "x", "default": 1}], [{"name": "x"}]),
        ({}, {"a": {}}),
        ({}, {"a": []}),
        ({"a": None}, {"a": {}}),
        ({"a": {"default": 1}}, {"a": {}}),
    ],
)
def test_what_the_api_server_adds_does_not_count(live: Any, desired: Any) -> None:
    assert is_up_to_date(live, desired)


@pytest.mark.parametrize(
    ("live", "desired"),
    [
        ({}, {"a": 1}),
        ({"a": 2}, {"a": 1}),
        ({"a": None}, {"a": False}),
        ({}, {"a": False}),
        ({"a": [1, 2]}, {"a": [1]}),
        ({"a": [1]}, {"a": [1, 2]}),
        ({"a": [2, 1]}, {"a": [1, 2]}),
        ({"a": {"b": 1}}, {"a": [1]}),
        ({"a": "text"}, {"a": {"b": 1}}),
        (None, {"a": 1}),
        ({"a": "x"}, {"a": "y"}),
        ({"weight": 25}, {"weight": 0}),
    ],
)
def test_what_differs_is_written(live: Any, desired: Any) -> None:
    assert not is_up_to_date(live, desired)


@pytest.mark.parametrize(
    ("live", "desired"),
    [("1", 1), ("500m", "0.5"), ("1Gi", "1024Mi"), ("1k", 1000), ("100m", "0.1"), (2, "2")],
)
def test_quantities_are_compared_by_value(live: Any, desired: Any) -> None:
    assert is_up_to_date({"limits": {"x": live}}, {"limits": {"x": desired}})


@pytest.mark.parametrize(
    ("live", "desired"),
    [("2", 1), ("1Gi", "1G"), ("1", True), ("abc", 1), ("", 0), ("x", ""), ("nan", "nan2"), (True, "true")],
)
def test_other_quantities_and_what_is_none_are_not(live: Any, desired: Any) -> None:
    assert not is_up_to_date({"limits": {"x": live}}, {"limits": {"x": desired}})


@pytest.mark.parametrize("key", ["selector", "matchLabels"])
def test_a_selector_with_one_label_more_selects_less(key: str) -> None:
    assert is_up_to_date({key: {"a": "1"}}, {key: {"a": "1"}})
    assert not is_up_to_date({key: {"a": "1", "b": "2"}}, {key: {"a": "1"}})
    assert not is_up_to_date({}, {key: {"a": "1"}})


@pytest.mark.parametrize("field", ["filters", "timeouts", "retry", "sessionPersistence"])
def test_what_others_add_to_a_rule_of_a_route_is_taken_out(field: str) -> None:
    """Retries would hide the failures of a version on trial."""
    desired = {"rules": [{"backendRefs": [{"name": "a", "weight": 100}]}]}
    live = {"rules": [{"backendRefs": [{"name": "a", "weight": 100, "group": ""}]}]}
    assert is_up_to_date(live, desired)
    live["rules"][0][field] = {"attempts": 3}
    assert not is_up_to_date(live, desired)
    assert list(differing_fields(live, desired)) == [("rules",)]


def test_the_fields_that_differ_are_named() -> None:
    live = {
        "replicas": 1,
        "selector": {"a": "1", "b": "2"},
        "rules": [{"x": 1}],
        "template": {"spec": {"c": [1]}},
    }
    assert list(differing_fields(live, live, "spec")) == []
    desired = {"replicas": 2, "selector": {"a": "1"}, "rules": [], "template": {"spec": {"c": [2], "d": {}}}}
    assert list(differing_fields(live, desired, "spec")) == [
        ("spec", "replicas"),
        ("spec", "selector"),
        ("spec", "rules"),
        ("spec", "template", "spec", "c"),
    ]
    assert list(differing_fields(None, {"a": 1}, "spec")) == [("spec",)]
