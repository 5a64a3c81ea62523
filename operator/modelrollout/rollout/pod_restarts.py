"""Restarts of serving revisions: when pods are replaced, whether the new ones are hardened, and
what blocks them.

A revision that an earlier operator rendered is not hardened (``resources.hardening``). Changing its
template would replace its pods, so they stay as they are until a person requests a restart. From
then on, and whenever the revision gets new pods anyway, its frozen template is hardened.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from modelrollout.api.v1alpha1 import ModelDeploymentStatus, RestartStatus
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.plan import Event
from modelrollout.rollout.snapshot import Observed

TOO_OLD = Reason.TRITON_TOO_OLD
TOO_OLD_WHY = (
    "the Triton in its image lacks the flags that restrict its management endpoints"
    " (--http-restricted-api, since 23.11); set spec.serving.triton.image to a later one"
)


def restart_requested_at(s: Observed, revision: str) -> str | None:
    """When a restart of the revision was last requested, for its pod template."""
    record = s.status.restarts.get(revision)
    if record is None:
        return s.server(revision).restarted
    return record.previous_at if record.triton_too_old else record.at


def revisions_to_harden(s: Observed, revisions: Collection[str]) -> dict[str, str | None]:
    """The revisions to render hardened although their frozen template is not, or in an earlier
    version, with the version of the hardening; None is the latest.
    """
    versions: dict[str, str | None] = {}
    for name in revisions:
        revision, live, record = s.revision(name), s.servers.get(name), s.status.restarts.get(name)
        if revision is None or (revision.hardened and revision.outdated is None):
            continue
        if live is None or (record is not None and record.at != live.restarted and not record.triton_too_old):
            versions[name] = None  # their pods are new anyway
        elif record is not None and record.triton_too_old:
            continue
        elif revision.outdated is not None and live.overlay == revision.outdated:
            continue  # its pods have what was frozen
        elif live.overlay is not None or record is not None:
            versions[name] = live.overlay  # also if a person has edited the overlay
    return versions


def unhardened_revisions(s: Observed, status: ModelDeploymentStatus) -> list[str]:
    """Revisions with pods whose servers anyone in the cluster can manage, until the last pod is
    replaced.
    """
    names: list[str] = []
    for revision in s.revisions:
        server, record = s.servers.get(revision.name), status.restarts.get(revision.name)
        replaced = revision.hardened or record is None or record.done
        if server is not None and not (server.hardened and replaced):
            names.append(revision.name)
    return names


def withdraw_incompatible_restart(s: Observed) -> tuple[ModelDeploymentStatus, Event] | None:
    """Withdraw a restart whose image lacks the flags: serving pods stay, and no more new ones are
    created.
    """
    for name, record in s.status.restarts.items():
        revision, server = s.revision(name), s.server(name)
        problem = server.problem if server.problem is not None and server.problem.reason == TOO_OLD else None
        if (
            problem is None
            or revision is None
            or revision.hardened
            or not server.hardened
            or record.triton_too_old
        ):
            continue
        text = f"{name} keeps the pods that it has, which are not hardened: {problem.message}"
        return _recorded(s.status, {name: record.model_copy(update={"triton_too_old": True})}), Event(
            TOO_OLD, text, "Warning"
        )
    return None


def mark_finished(s: Observed, status: ModelDeploymentStatus) -> ModelDeploymentStatus:
    """The status with finished restarts marked, and without those of revisions that have no pods
    any more.
    """
    left = {
        name: (
            record.model_copy(update={"done": True})
            if not record.done and _is_over(s, name, record)
            else record
        )
        for name, record in status.restarts.items()
        if name in s.servers
    }
    return status.model_copy(update={"restarts": left}) if left != status.restarts else status


def waiting_restart(s: Observed, status: ModelDeploymentStatus) -> tuple[str, Problem | None] | None:
    """A revision whose restart is not finished, and what blocks it."""
    for name, record in status.restarts.items():
        if name in s.servers and not (record.done or record.triton_too_old):
            return name, s.server(name).problem
    return None


def restart_without_gpu(s: Observed) -> str | None:
    """The revision whose restart finds no node, so that free GPUs have to be counted."""
    waiting = waiting_restart(s, s.status)
    return (
        waiting[0]
        if waiting is not None and waiting[1] is not None and waiting[1].reason == Reason.UNSCHEDULABLE
        else None
    )


def _is_over(s: Observed, name: str, record: RestartStatus) -> bool:
    server = s.server(name)
    renewed = (
        server.restarted == record.at
        and server.updated is not None
        and server.updated >= server.desired_replicas
    )
    return renewed and server.replicas <= server.desired_replicas <= server.ready


def _recorded(status: ModelDeploymentStatus, records: Mapping[str, RestartStatus]) -> ModelDeploymentStatus:
    return status.model_copy(update={"restarts": status.restarts | dict(records)})
