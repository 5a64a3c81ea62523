"""Whose fields an apply may remove."""

from __future__ import annotations

from typing import Any

from modelrollout.kube.field_ownership import taken_over

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
