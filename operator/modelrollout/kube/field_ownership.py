"""Fields that server-side apply would not remove, because to the API server they are another
manager's: those of our own plain create (same name, operation Update), and foreign edits in the
spec of an object that only the operator should write. PURE.

The first half is client-go's util/csaupgrade.
"""

from __future__ import annotations

from typing import Any

Entry = dict[str, Any]
_SPEC = "f:spec"


def taken_over(managed: list[Entry], manager: str) -> list[Entry] | None:
    """``metadata.managedFields`` in which ``manager`` applies these fields too; None if nothing
    changes.

    Sub-resources stay apart: status and scale are written by their own controllers.
    """
    fields: dict[str, Any] = {}
    others: list[Entry] = []
    applied: Entry | None = None
    changed = False
    for entry in managed:
        ours, applies = entry.get("manager") == manager, entry.get("operation") == "Apply"
        if entry.get("subresource"):
            others.append(entry)
        elif ours:
            applied = entry if applied is None or applies else applied
            changed |= not applies
            fields = _union(fields, entry.get("fieldsV1") or {})
        else:
            owned = dict(entry.get("fieldsV1") or {})
            if spec := owned.pop(_SPEC, None):
                changed = True
                fields = _union(fields, {_SPEC: spec})
            if owned:
                others.append({**entry, "fieldsV1": owned})
    if not changed:
        return None
    about = applied or {"apiVersion": managed[0].get("apiVersion"), "time": managed[0].get("time")}
    return [
        {**about, "manager": manager, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields},
        *others,
    ]


def _union(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return a | {key: _union(a.get(key, {}), value) for key, value in b.items()}
