"""What happens to the Gateway, and what others write into the status of its routes."""

from __future__ import annotations

import json
import time
from typing import Any

from chaos import ChaosError
from chaos.arena import Arena, Subject
from chaos.by_hand import when_there
from chaos.recorder import GRPC, HTTP
from chaos.traffic import GATEWAYLESS, Window

AWAY_SECONDS = 4.0
PROGRAMMED_SECONDS = 20.0  # a Gateway that is there again is programmed within this long
SERVES_SECONDS = 1.0  # and carries its routes so long after that
FOREIGN = "chaos.example/foreign"
FORMER = "former"  # a Gateway that is no parent of the route
_KINDS = (HTTP, GRPC)


def recreate_gateway(arena: Arena, subject: Subject) -> None:
    """The Gateway is deleted and made again. Its routes lead nowhere until it is programmed, and no
    request can be answered.
    """
    at = arena.cluster.target.gateway
    where = ("gateway", at.name, "-n", at.namespace)
    live = json.loads(arena.cluster.kubectl("get", *where, "-o", "json"))
    metadata = {key: live["metadata"].get(key) or {} for key in ("labels", "annotations")}
    again = {
        **{key: live[key] for key in ("apiVersion", "kind", "spec")},
        "metadata": {"name": at.name, "namespace": at.namespace, **metadata},
    }
    start = time.time()
    try:
        arena.cluster.kubectl("delete", *where)
        time.sleep(AWAY_SECONDS)
    finally:
        arena.cluster.apply(again)
        end = time.time() + PROGRAMMED_SECONDS
        while not (programmed := _is_programmed(arena, where)) and time.time() < end:
            time.sleep(0.2)
        for each in arena.subjects:
            each.windows.append(Window(start, time.time() + SERVES_SECONDS, GATEWAYLESS))
    if not programmed:
        raise ChaosError(f"the Gateway is not programmed {PROGRAMMED_SECONDS:.0f} s after it was made again")


def _is_programmed(arena: Arena, where: tuple[str, ...]) -> bool:
    status = json.loads(arena.cluster.kubectl("get", *where, "-o", "json")).get("status") or {}
    return any(c["type"] == "Programmed" and c["status"] == "True" for c in status.get("conditions") or [])


def add_foreign_parents(arena: Arena, subject: Subject) -> None:
    """Both routes get two answers that are not of their own parent's controller: another controller
    refuses them, and so does their own, for a Gateway that is not their parent any more.
    """
    for kind in _KINDS:
        when_there(lambda kind=kind: _add_parents(arena, kind, subject.name))  # type: ignore[misc]


def _add_parents(arena: Arena, kind: str, name: str) -> None:
    route = json.loads(arena.kubectl("get", kind, name, "-o", "json"))
    own = route["spec"]["parentRefs"][0]
    present = (route.get("status") or {}).get("parents") or []
    controller = present[0]["controllerName"] if present else FOREIGN
    added = [_refusing(own, FOREIGN), _refusing({**own, "name": FORMER}, controller)]
    _write_parents(arena, kind, name, [*(p for p in present if not _is_added(p)), *added])


def remove_foreign_parents(arena: Arena) -> None:
    for subject in arena.subjects:
        for kind in _KINDS:
            route = json.loads(arena.kubectl("get", kind, subject.name, "-o", "json"))
            present = (route.get("status") or {}).get("parents") or []
            _write_parents(arena, kind, subject.name, [p for p in present if not _is_added(p)])


def _is_added(parent: dict[str, Any]) -> bool:
    return bool(parent["controllerName"] == FOREIGN or parent["parentRef"]["name"] == FORMER)


def _refusing(parent: dict[str, Any], controller: str) -> dict[str, Any]:
    conditions = [
        {
            "type": kind,
            "status": "False",
            "reason": "Chaos",
            "message": "not the answer of the route's own Gateway",
            "observedGeneration": 1000,
            "lastTransitionTime": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        for kind in ("Accepted", "ResolvedRefs")
    ]
    return {"parentRef": parent, "controllerName": controller, "conditions": conditions}


def _write_parents(arena: Arena, kind: str, name: str, parents: list[dict[str, Any]]) -> None:
    patch = json.dumps({"status": {"parents": parents}})
    arena.kubectl("patch", kind, name, "--subresource=status", "--type=merge", "-p", patch)
