"""What ``metadata.managedFields`` says of a spec that only the operator should write. PURE.

``taken_over``: fields that server-side apply would not remove, because to the API server they are
another manager's: those of our own plain create (same name, operation Update), and foreign edits.
The first half is client-go's util/csaupgrade. ``editors_of``: who made such an edit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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


def foreign_entries(managed: Any, manager: str) -> list[Entry]:
    """The entries of managers other than ``manager`` that own fields of spec (also by the scale
    sub-resource), with nothing but those; of lists only that they own something in them.
    """
    entries = [e for e in managed if isinstance(e, Mapping)] if isinstance(managed, list) else []
    return [
        {"manager": str(entry.get("manager")), "fieldsV1": {_SPEC: _maps_only(spec)}}
        for entry in entries
        if entry.get("manager") != manager
        and isinstance(spec := (entry.get("fieldsV1") or {}).get(_SPEC), Mapping)
    ]


def _maps_only(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _maps_only(v) for k, v in fields.items() if k.startswith("f:") and isinstance(v, Mapping)}


def editors_of(entries: Iterable[Entry], paths: Iterable[tuple[str, ...]]) -> list[str]:
    """Managers that own one of these fields (paths from the object's root), or a part of it."""
    listed = list(paths)
    return sorted({e["manager"] for e in entries if any(_owns(e["fieldsV1"], path) for path in listed)})


def _owns(fields: Mapping[str, Any], path: tuple[str, ...]) -> bool:
    """An owner of a map owns what is inside of it unless its entry names other parts."""
    for name in path:
        if not fields:
            return True
        if f"f:{name}" not in fields:
            return False
        fields = fields[f"f:{name}"]
    return True
