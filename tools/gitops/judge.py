"""What Argo CD did and showed, from all versions of its Applications, and whether it was right."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Object = dict[str, Any]
MDEP, POLICY = "ModelDeployment", "RolloutPolicy"
ENDED = ("Done", "Failed")
MANAGER = "argocd-controller"  # of Argo CD's server-side apply


@dataclass(frozen=True)
class Operation:
    """A sync, as an Application states it. ``started`` tells two of one Application apart."""

    application: str
    started: str
    revision: str
    phase: str
    self_heal: bool
    retries: int
    message: str


def operations(applications: Iterable[Object]) -> list[Operation]:
    """Every sync, in its last state; ``applications``: all versions of all Applications, in order.

    The revision is that which was asked for: one that is retried with ``refresh`` stays one sync.
    """
    seen: dict[tuple[str, str], Operation] = {}
    for application in applications:
        state = (application.get("status") or {}).get("operationState") or {}
        sync = (state.get("operation") or {}).get("sync")
        if sync is None or "startedAt" not in state:
            continue
        name = application["metadata"]["name"]
        seen[name, state["startedAt"]] = Operation(
            application=name,
            started=state["startedAt"],
            revision=sync.get("revision", ""),
            phase=state.get("phase", ""),
            self_heal=bool(sync.get("autoHealAttemptsCount")),
            retries=state.get("retryCount", 0),
            message=state.get("message", ""),
        )
    return list(seen.values())


def repeated(syncs: Iterable[Operation]) -> tuple[list[str], list[str]]:
    """(fights, remarks): a line for each sync that no new commit asked for.

    One to heal is a remark: right after its own sync Argo CD at times compares with what it has in
    memory from before it. It is a fight where it changed something, which ``rewritten`` sees.
    """
    fights: list[str] = []
    remarks: list[str] = []
    counts: Counter[tuple[str, str]] = Counter()
    for sync in syncs:
        counts[sync.application, sync.revision] += 1
        number = counts[sync.application, sync.revision]
        if number > 1:
            line = f"{sync.application}: sync {number} of the one commit {sync.revision[:8]}"
            (remarks if sync.self_heal else fights).append(f"{line}{' (to heal itself)' * sync.self_heal}")
    return fights, remarks


def rewritten(versions: Sequence[Object], commits: Sequence[int]) -> list[str]:
    """A line for each change of spec, labels or annotations that was not the first after a commit,
    and for each other writer of these.

    ``versions``: of one object, in order; ``commits``: resourceVersions at which a commit was made.
    """
    lines: list[str] = []
    changes: Counter[int] = Counter()
    for before, after in itertools.pairwise([None, *versions]):
        assert after is not None
        if before is not None and _content(before) == _content(after):
            continue
        version = int(after["metadata"]["resourceVersion"])
        commit = sum(at < version for at in commits)
        changes[commit] += 1
        if changes[commit] > 1:
            lines.append(
                f"{after['metadata']['name']}: change {changes[commit]} of spec or metadata after commit"
                f" {commit}"
            )
    strangers = {writer for version in versions for writer in _writers(version)} - {MANAGER}
    return lines + [
        f"{versions[-1]['metadata']['name']}: {writer} wrote more than status" for writer in sorted(strangers)
    ]


def _content(version: Object) -> str:
    about = version["metadata"]
    return json.dumps([version.get("spec"), about.get("labels"), about.get("annotations")], sort_keys=True)


def _writers(version: Object) -> set[str]:
    """Who wrote anything but a sub-resource."""
    return {
        entry.get("manager", "")
        for entry in version["metadata"].get("managedFields") or []
        if not entry.get("subresource")
    }


# --- health


def shown(application: Object, kind: str = MDEP) -> str | None:
    """The health that an Application shows of its (only) object of that kind; None: of none yet."""
    for resource in (application.get("status") or {}).get("resources") or []:
        if resource.get("kind") == kind:
            health: str | None = (resource.get("health") or {}).get("status")
            return health
    return None


def healths(applications: Iterable[Object]) -> list[str]:
    """What was shown, one after the other; ``applications``: versions of one, in order."""
    values = [health for application in applications if (health := shown(application)) is not None]
    return [value for value, _ in itertools.groupby(values)]


def unlike(path: Sequence[str], expected: str) -> str | None:
    """How the healths differ from what the moment called for, a regular expression over their
    words; None: they do not.
    """
    told = " ".join(path)
    return None if re.fullmatch(expected, told) else f"health was {told or 'not shown'}, expected {expected}"


def differing(application: Object, health: str, synced: bool) -> list[str]:
    """What of an Application is not as it must be once things have settled."""
    status = application.get("status") or {}
    resources = status.get("resources") or []
    about = application["metadata"]["name"]
    lines = []
    if shown(application) != health:
        lines.append(f"{about}: the ModelDeployment is shown as {shown(application)}, not {health}")
    overall = (status.get("health") or {}).get("status")
    if overall != health:
        lines.append(f"{about}: the Application is {overall}, not {health}")
    lines += [
        f"{about}: {r['kind']} {r.get('name')} is shown as {(r.get('health') or {}).get('status')}"
        for r in resources
        if r.get("kind") == POLICY and (r.get("health") or {}).get("status") != "Healthy"
    ]
    sync = (status.get("sync") or {}).get("status")
    if (sync == "Synced") != synced:
        lines.append(f"{about}: {sync}, and {'' if synced else 'not '}Synced was expected")
    return lines


def complaint(application: Object) -> str:
    """What an Application says is wrong with its sync or its manifests."""
    status = application.get("status") or {}
    state = status.get("operationState") or {}
    results = (state.get("syncResult") or {}).get("resources") or []
    return "\n".join(
        [
            *(c.get("message", "") for c in status.get("conditions") or []),
            *([state.get("message", "")] if state.get("phase") in ("Failed", "Error", "Running") else []),
            *(r.get("message", "") for r in results if r.get("status") == "SyncFailed"),
        ]
    )


def words_of_application(application: Object) -> list[str]:
    """For people: sync status and revision, the running or last sync, the health, what is wrong."""
    status = application.get("status") or {}
    sync, state = status.get("sync") or {}, status.get("operationState") or {}
    return [
        f"{sync.get('status')} {str(sync.get('revision'))[:8]}",
        str(state.get("phase")),
        f"{(status.get('health') or {}).get('status')} (model {shown(application)})",
        " ".join(complaint(application).split()),
    ]


def words_of_deployment(deployment: Object) -> list[str]:
    """For people: generations, phase, and the conditions that tools wait for."""
    about, status = deployment["metadata"], deployment.get("status") or {}
    return [
        f"generation {about.get('generation')}, seen {status.get('observedGeneration')}",
        str(status.get("phase")),
        *(
            f"{c['type']} {c['status']} {c['reason']}"
            for c in status.get("conditions") or []
            if c["type"] in ("Ready", "Reconciling", "Stalled")
        ),
    ]


def at_once(deployments: Iterable[Object]) -> int:
    """The most rollouts that held pods at one time; ``deployments``: all versions of all
    ModelDeployments, in order.
    """
    trials: set[str] = set()
    most = 0
    for deployment in deployments:
        name = deployment["metadata"]["name"]
        (trials.add if holds_slot(deployment) else trials.discard)(name)
        most = max(most, len(trials))
    return most


def holds_slot(deployment: Mapping[str, Any]) -> bool:
    """Whether its rollout counts for a policy's ``limits.concurrentRollouts``."""
    status = deployment.get("status") or {}
    rollout = status.get("rollout") or {}
    return bool(rollout.get("slot")) and not rollout.get("queue") and rollout.get("stage") not in ENDED


@dataclass
class Tally:
    """All counts of a run; ``str`` is its last line."""

    commits: int = 0
    syncs: int = 0
    fights: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    failed: int = 0
    sent: int = 0

    @property
    def is_right(self) -> bool:
        return not (self.fights or self.wrong or self.failed) and self.sent > 0

    def __str__(self) -> str:
        return (
            f"gitops: {self.commits} commits, {self.syncs} syncs, {len(self.fights)} fights,"
            f" {len(self.wrong)} wrong states, {self.failed} failed requests of {self.sent}"
        )
