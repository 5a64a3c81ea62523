"""How many GPUs are free where a revision's pods could run: allocatable of the nodes that fit, less
what pods on them have asked for.

An estimate: the scheduler decides, others take GPUs meanwhile, and only node selector, required
node affinity and taints are considered. The status shows it, and with spec.serving.surge Wait it
holds pods back; nothing is ever evicted because of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from modelrollout.config import OperatorConfig
from modelrollout.controller.observe.pods import has_ended
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import Forbidden
from modelrollout.kube.kinds import NODE, POD
from modelrollout.kube.objects import Object, is_true, labels_of
from modelrollout.kube.projection import node_for_capacity, pod_for_capacity
from modelrollout.quantity import quantity
from modelrollout.rollout.snapshot import Gpus

log = logging.getLogger(__name__)


class Capacity:
    """One look at nodes and pods, shared by all for some seconds. ``clock`` is monotonic, in
    seconds.
    """

    def __init__(self, kube: Kube, config: OperatorConfig, clock: Callable[[], float]) -> None:
        self._kube, self._config, self._clock = kube, config.capacity, clock
        self._table = config.gpu_table
        self._seen: tuple[float, list[Object], dict[str, dict[str, int]]] | None = None
        self._looking = asyncio.Lock()
        self._warned = False

    async def gpus_for(self, pod: Mapping[str, Any], count: int) -> Gpus | None:
        """GPUs for ``count`` more pods with this spec, of several kinds the one that is missing;
        None when they ask for none, or when the operator may not look.
        """
        asked = {kind: n for kind, n in extended_resources(pod).items() if self._table.weight(kind)}
        if not self._config.look_at_nodes or not asked or not count:
            return None
        async with self._looking:
            try:
                nodes, used = await self._nodes()
            except Forbidden as e:
                if not self._warned:
                    log.warning("free GPUs are unknown: %s", e)
                self._warned = True
                return None
        counts = [free_gpus(pod, kind, n, count, nodes, used) for kind, n in sorted(asked.items())]
        return next((gpus for gpus in counts if gpus.free < gpus.needed), counts[0])

    async def _nodes(self) -> tuple[list[Object], dict[str, dict[str, int]]]:
        if self._seen is None or self._clock() - self._seen[0] >= self._config.remember_seconds:
            nodes = (await self._kube.list(NODE, keep=node_for_capacity)).items
            used = gpus_in_use((await self._kube.list(POD, keep=pod_for_capacity)).items)
            self._seen = (self._clock(), nodes, used)
        return self._seen[1], self._seen[2]


def free_gpus(
    pod: Mapping[str, Any],
    kind: str,
    each: int,
    count: int,
    nodes: Iterable[Object],
    used: Mapping[str, Mapping[str, int]],
) -> Gpus:
    """Whole pods count: two nodes with one free GPU each have none for a pod that wants two."""
    free = total = fitting = 0
    for node in nodes:
        allocatable = _count((node.get("status") or {}).get("allocatable") or {}, kind)
        if not allocatable or not fits(node, pod):
            continue
        fitting += 1
        total += allocatable
        free += max(0, allocatable - used.get(node["metadata"]["name"], {}).get(kind, 0)) // each * each
    return Gpus(kind, each * count, free, total, fitting)


def extended_resources(pod: Mapping[str, Any]) -> dict[str, int]:
    """Extended resources that a pod asks for, such as nvidia.com/gpu. Init containers run one after
    the other, sidecars beside the others.
    """
    requested: defaultdict[str, int] = defaultdict(int)
    largest: defaultdict[str, int] = defaultdict(int)
    for container in pod.get("containers") or []:
        for kind, value in _extended_of(container).items():
            requested[kind] += value
    for container in pod.get("initContainers") or []:
        for kind, value in _extended_of(container).items():
            if container.get("restartPolicy") == "Always":
                requested[kind] += value
            else:
                largest[kind] = max(largest[kind], value)
    return {kind: max(requested[kind], largest[kind]) for kind in requested.keys() | largest.keys()}


def _extended_of(container: Mapping[str, Any]) -> dict[str, int]:
    resources = container.get("resources") or {}
    both = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    return {kind: n for kind in both if "/" in kind and (n := _count(both, kind))}


def _count(quantities: Mapping[str, Any], kind: str) -> int:
    try:
        return int(quantity(quantities.get(kind, 0)))
    except ValueError:
        return 0


def gpus_in_use(pods: Iterable[Object]) -> dict[str, dict[str, int]]:
    """Extended resources by node that pods on it hold; those that have ended hold none."""
    in_use: defaultdict[str, defaultdict[str, int]] = defaultdict(lambda: defaultdict(int))
    for pod in pods:
        node = (pod.get("spec") or {}).get("nodeName")
        if node and not has_ended(pod):
            for kind, value in extended_resources(pod["spec"]).items():
                in_use[node][kind] += value
    return {node: dict(kinds) for node, kinds in in_use.items()}


def fits(node: Object, pod: Mapping[str, Any]) -> bool:
    """Whether the scheduler would consider the node: ready, not cordoned, node selector, required
    node affinity, taints.
    """
    spec, labels = node.get("spec") or {}, labels_of(node)
    if not is_true(node, "Ready") or spec.get("unschedulable"):
        return False
    if any(labels.get(k) != v for k, v in (pod.get("nodeSelector") or {}).items()):
        return False
    required = ((pod.get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    )
    if required is not None and not any(
        _term(term, node["metadata"]["name"], labels) for term in required.get("nodeSelectorTerms") or []
    ):
        return False
    tolerations = pod.get("tolerations") or []
    barring = [t for t in spec.get("taints") or [] if t.get("effect") in ("NoSchedule", "NoExecute")]
    return all(any(_tolerates(toleration, taint) for toleration in tolerations) for taint in barring)


def _term(term: Mapping[str, Any], name: str, labels: Mapping[str, str]) -> bool:
    expressions = [(e, labels) for e in term.get("matchExpressions") or []] + [
        (e, {"metadata.name": name}) for e in term.get("matchFields") or []
    ]
    return bool(expressions) and all(_expression(e, values) for e, values in expressions)


def _expression(e: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    value, values = labels.get(e["key"]), e.get("values") or []
    match e.get("operator"):
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
        case "Gt" | "Lt" as operator:
            try:
                return (
                    int(value or "") > int(values[0])
                    if operator == "Gt"
                    else int(value or "") < int(values[0])
                )
            except (ValueError, IndexError):
                return False
    return False


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.get("key"))
    return toleration.get("key") == taint.get("key") and (toleration.get("value") or "") == (
        taint.get("value") or ""
    )
