"""Whose fields an apply may remove."""

from __future__ import annotations

from typing import Any

from modelrollout.kube.field_ownership import editors_of, foreign_entries, taken_over

US = "modelrollout-operator"


def entry(manager: str, operation: str, fields: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "manager": manager,
        "operation": operation,
        "apiVersion": "apps/v1",
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    } | more


def test_what_we_created_becomes_what_we_apply() -> None:
    created = entry(US, "Update", {"f:spec": {"f:a": {}, "f:b": {"f:c": {}}}})
    applied = entry(US, "Apply", {"f:spec": {"f:b": {"f:d": {}}}}, time="t")
    (joined,) = taken_over([created, applied], US) or []
    assert joined == entry(US, "Apply", {"f:spec": {"f:a": {}, "f:b": {"f:c": {}, "f:d": {}}}}, time="t")
    assert taken_over([joined], US) is None, "once"


def test_the_spec_is_ours_and_the_rest_of_others_stays_theirs() -> None:
    status = entry("kube-controller-manager", "Update", {"f:status": {}}, subresource="status")
    scale = entry("kube-controller-manager", "Update", {"f:spec": {"f:replicas": {}}}, subresource="scale")
    edited = entry(
        "kubectl-edit", "Update", {"f:metadata": {"f:annotations": {"f:note": {}}}, "f:spec": {"f:x": {}}}
    )
    entries = taken_over([edited, status, scale], US)
    assert entries == [
        entry(US, "Apply", {"f:spec": {"f:x": {}}}, time=None),
        entry("kubectl-edit", "Update", {"f:metadata": {"f:annotations": {"f:note": {}}}}),
        status,
        scale,
    ]
    assert taken_over([status, scale], US) is None and taken_over([], US) is None


def test_an_edit_is_found_by_the_field_that_it_changed() -> None:
    edited = entry("kubectl-edit", "Update", {"f:spec": {"f:rules": {}}, "f:metadata": {"f:labels": {}}})
    scaled = entry("kubectl", "Update", {"f:spec": {"f:replicas": {}}}, subresource="scale")
    ours = entry(US, "Apply", {"f:spec": {"f:rules": {}, "f:replicas": {}}})
    entries = foreign_entries([ours, edited, scaled, entry("x", "Update", {"f:status": {}})], US)
    assert editors_of(entries, [("spec", "rules")]) == ["kubectl-edit"]
    assert editors_of(entries, [("spec", "replicas"), ("spec", "rules")]) == ["kubectl", "kubectl-edit"]
    assert editors_of(entries, [("spec", "hostnames")]) == editors_of(entries, []) == []
    assert foreign_entries(entries, US) == entries, "once is enough"


def test_who_owns_another_part_of_a_map_has_not_changed_this_one() -> None:
    """kubectl rollout restart annotates the template; the operator changes its containers."""
    annotated = {"f:spec": {"f:template": {"f:metadata": {"f:annotations": {".": {}, "f:restartedAt": {}}}}}}
    image = {"f:spec": {"f:template": {"f:spec": {"f:containers": {'k:{"name":"triton"}': {"f:image": {}}}}}}}
    entries = foreign_entries([entry("restarter", "Update", annotated), entry("setter", "Update", image)], US)
    assert editors_of(entries, [("spec", "template", "spec", "containers")]) == ["setter"]
    assert editors_of(entries, [("spec", "template")]) == ["restarter", "setter"]


def test_odd_entries_have_no_owner() -> None:
    for odd in (None, "x", [None, "x", {"manager": "y"}, {"manager": "y", "fieldsV1": {"f:spec": 3}}]):
        assert foreign_entries(odd, US) == []
