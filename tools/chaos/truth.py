"""PURE: what must hold. The final state in full, and that no weight ever rose without a verdict."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from modelrollout.api import names

Object = Mapping[str, Any]
Outcome = Literal["Promoted", "RolledBack"]


@dataclass(frozen=True)
class Expected:
    """How a rollout must end. ``stable`` and ``tried`` are digests of model files."""

    name: str
    outcome: Outcome
    stable: str
    tried: str
    replicas: int


@dataclass(frozen=True)
class Final:
    """The objects of one ModelDeployment when all has come to rest."""

    deployment: Object
    revisions: Sequence[Object] = ()
    routes: Sequence[Object] = ()
    services: Sequence[Object] = ()
    deployments: Sequence[Object] = ()
    pods: Sequence[Object] = ()
    jobs: Sequence[Object] = ()
    budgets: Sequence[Object] = ()


@dataclass(frozen=True)
class Rise:
    """A weight that rose although nothing allowed it."""

    route: str
    revision: str
    weight: int
    version: int  # resourceVersion of the route
    text: str = field(compare=False, default="")


def ended(deployment: Object, expected: Expected) -> bool:
    """Whether the rollout of the expected version has come to an end, whichever."""
    status = deployment.get("status") or {}
    rollout = status.get("rollout") or {}
    if rollout.get("stage") not in ("Done", "Failed") or rollout.get("outcome") == "Superseded":
        return False
    return bool(
        rollout.get("sha256") == expected.tried
        and status.get("observedGeneration") == deployment["metadata"]["generation"]
    )


def rebuilt(deployment: Object, expected: Expected) -> bool:
    """Whether a recovered status has the expected end, without the rollout's history."""
    status = deployment.get("status") or {}
    ready = next((c["status"] for c in status.get("conditions", []) if c["type"] == "Ready"), None)
    return expected.outcome == "Promoted" and ready == "True" and not status.get("rollout")


def problems(expected: Expected, seen: Final) -> list[str]:
    """Everything in the final state that is not as it must be."""
    status = seen.deployment.get("status") or {}
    by_digest = {r["spec"]["sha256"]: r for r in seen.revisions}
    stable, tried = by_digest.get(expected.stable), by_digest.get(expected.tried)
    if stable is None or tried is None:
        return [f"the revision of {'stable' if stable is None else 'the tried version'} is missing"]
    name = stable["metadata"]["name"]
    problems = _status_problems(expected, status, name)
    problems += _revision_problems(expected, stable, tried)
    for route in seen.routes:
        if (split := weights(route)) != {name: 100}:
            problems.append(f"{route['kind']} sends {split}, expected all to {name}")
    if len(seen.routes) != 2:
        problems.append(f"{len(seen.routes)} routes, expected 2")
    problems += _children_problems(expected, seen, name)
    return problems


def _status_problems(expected: Expected, status: Object, stable: str) -> list[str]:
    problems = []
    if (status.get("stable") or {}).get("revision") != stable:
        problems.append(f"stable is {(status.get('stable') or {}).get('revision')}, expected {stable}")
    rollout = status.get("rollout") or {}
    good = expected.outcome == "Promoted"
    conditions = {c["type"]: c for c in status.get("conditions", [])}
    if rollout.get("outcome") != expected.outcome and not (good and not rollout):
        problems.append(
            f"outcome {rollout.get('outcome')} ({rollout.get('reason')}: {rollout.get('message')}), expected"
            f" {expected.outcome}"
        )
    if not good and rollout.get("reason") not in ("AccuracyLow", "Quarantined"):
        problems.append(f"reason {rollout.get('reason')}, expected AccuracyLow")
    for kind, required in (
        ("Ready", good),
        ("Available", True),
        ("Reconciling", False),
        ("Stalled", not good),
    ):
        condition = conditions.get(kind) or {"status": "missing", "reason": "", "message": ""}
        if condition["status"] != str(required):
            problems.append(
                f"condition {kind} is {condition['status']} ({condition['reason']}: {condition['message']}),"
                f" expected {required}"
            )
    return problems


def _revision_problems(expected: Expected, stable: Object, tried: Object) -> list[str]:
    def outcome(revision: Object) -> tuple[Any, Any]:
        return (revision.get("status") or {}).get("outcome"), (
            revision["metadata"].get("annotations") or {}
        ).get(names.ANNOTATION_OUTCOME)

    allowed = {"Promoted", "Stable"}
    problems = [
        f"revision {stable['metadata']['name']} (stable) has outcome {what}"
        for what in outcome(stable)
        if what not in allowed
    ]
    if expected.outcome == "RolledBack":
        problems += [
            f"revision {tried['metadata']['name']} has outcome {what}, so it is not quarantined"
            for what in outcome(tried)
            if what != "RolledBack"
        ]
    return problems


def _children_problems(expected: Expected, seen: Final, stable: str) -> list[str]:
    problems = []
    if (servers := _names(seen.deployments)) != {stable}:
        problems.append(f"Deployments {sorted(servers)}, expected only {stable}")
    if (services := _names(seen.services)) != {stable, expected.name}:
        problems.append(f"Services {sorted(services)}, expected {stable} and {expected.name}")
    for service in seen.services:
        if (
            service["metadata"]["name"] == expected.name
            and (service["spec"].get("selector") or {}).get(names.LABEL_REVISION) != stable
        ):
            problems.append(f"the stable Service selects {service['spec'].get('selector')}")
    budgets = [b["spec"]["selector"]["matchLabels"].get(names.LABEL_REVISION) for b in seen.budgets]
    if budgets != [stable]:
        problems.append(f"PodDisruptionBudgets of {budgets}, expected one of {stable}")
    servers_pods = [
        p
        for p in seen.pods
        if _label(p, names.LABEL_COMPONENT) == names.COMPONENT_SERVER
        and not p["metadata"].get("deletionTimestamp")
    ]
    strangers = [p["metadata"]["name"] for p in servers_pods if _label(p, names.LABEL_REVISION) != stable]
    if strangers:
        problems.append(f"pods of what is not stable: {', '.join(strangers)}")
    ready = [p for p in servers_pods if _label(p, names.LABEL_REVISION) == stable and is_ready(p)]
    if len(ready) != expected.replicas:
        problems.append(f"{len(ready)} ready pods of stable, expected {expected.replicas}")
    running = [j["metadata"]["name"] for j in seen.jobs if not (j.get("status") or {}).get("conditions")]
    if running:
        problems.append(f"Jobs still run: {', '.join(running)}")
    return problems


def weights(route: Object) -> dict[str, int]:
    """Weight in percent by revision; a weight of 0 is none."""
    refs = [ref for rule in route["spec"].get("rules") or [] for ref in rule.get("backendRefs") or []]
    return {ref["name"]: int(ref.get("weight", 1)) for ref in refs if ref.get("weight", 1)}


def rises(deployments: Sequence[Object], routes: Sequence[Object], own: Collection[str]) -> list[Rise]:
    """Weights that rose although the state that the operator had written by then did not allow it.

    ``deployments`` and ``routes`` are all versions of one ModelDeployment and of one of its routes
    in order. ``own``: resourceVersions of both that the chaos run wrote itself: they are no deeds
    of an operator, and a pass that began before a status was emptied cannot know of it. A revision
    may have what its step has, and a step may be entered when each one below it has a Successful
    verdict or an override; all traffic when it is stable, or is being promoted with all steps
    passed or after it has taken over from a dead stable.
    """
    forbidden, before, turn = [], dict[str, int](), 0
    states = [d for d in deployments if _version(d) not in own]
    state: Object = {}
    for route in routes:
        while turn < len(states) and int(_version(states[turn])) < int(_version(route)):
            state = states[turn]
            turn += 1
        now = weights(route)
        if _version(route) not in own:
            for revision, weight in now.items():
                if weight > before.get(revision, 0) and weight > (most := allowed(state, revision)):
                    text = f"{route['kind']} gave {revision} {weight} %, {most} % were allowed"
                    forbidden.append(Rise(route["kind"], revision, weight, int(_version(route)), text))
        before = now
    return forbidden


def _version(o: Object) -> str:
    return str(o["metadata"]["resourceVersion"])


def allowed(deployment: Object, revision: str) -> int:
    """The most traffic in percent that this state allows a revision."""
    status = deployment.get("status") or {}
    rollout, stable = status.get("rollout") or {}, (status.get("stable") or {}).get("revision")
    if revision == stable:
        return 100
    if stable is None:  # the first revision takes traffic from no other
        return 100 if rollout.get("revision") == revision and rollout.get("stage") == "Promote" else 0
    if rollout.get("revision") != revision or rollout.get("stage") not in ("Canary", "Promote"):
        return 0
    passed = {e["index"] for e in rollout.get("history", []) if e["verdict"] == "Successful"}
    steps = deployment["spec"]["rollout"]["canary"]["steps"]
    if rollout["stage"] == "Promote":
        taken_over = (rollout.get("step") or {}).get("weight") == 100
        return (
            100
            if taken_over or passed >= set(range(len(steps)))
            else max((steps[i]["weight"] for i in passed), default=0)
        )
    step = rollout["step"]
    return int(step["weight"]) if passed >= set(range(step["index"])) or step.get("override") else 0


def _names(objects: Sequence[Object]) -> set[str]:
    return {o["metadata"]["name"] for o in objects if not o["metadata"].get("deletionTimestamp")}


def _label(o: Object, label: str) -> str | None:
    value: str | None = (o["metadata"].get("labels") or {}).get(label)
    return value


def is_ready(pod: Object) -> bool:
    return any(
        c["type"] == "Ready" and c["status"] == "True"
        for c in (pod.get("status") or {}).get("conditions") or []
    )
