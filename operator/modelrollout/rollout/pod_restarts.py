"""New pods of revisions that serve: when they are made, whether they are hardened, and what keeps
them from coming.

A revision that an earlier operator rendered is not hardened (``resources.hardening``), and a
template that changes means new pods: so the pods that run stay as they are until somebody says
restart. From then on, and where a revision comes up anew, the frozen template gets what it lacks.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from modelrollout.api.v1alpha1 import ModelDeploymentStatus, RestartStatus
from modelrollout.rollout.plan import Event
from modelrollout.rollout.snapshot import Problem, Snapshot

TOO_OLD = "TritonTooOld"
TOO_OLD_WHY = (
    "its image has a Triton that does not know the flags which keep strangers from managing it"
    " (--http-restricted-api, since 23.11); set spec.serving.triton.image to a later one"
)


def restart_requested_at(s: Snapshot, revision: str) -> str | None:
    """When new pods of the revision were last asked for, as its pod template is to say."""
    record = s.status.restarts.get(revision)
    if record is None:
        return s.server(revision).restarted
    return record.previous_at if record.triton_too_old else record.at


def revisions_to_harden(s: Snapshot, revisions: Collection[str]) -> dict[str, str | None]:
    """Those of the revisions whose frozen template lacks it and whose pods are to have it: in the
    version that they have, None for the latest.
    """
    found: dict[str, str | None] = {}
    for name in revisions:
        revision, live, record = s.revision(name), s.servers.get(name), s.status.restarts.get(name)
        if revision is None or revision.hardened:
            continue
        if live is None or (record is not None and record.at != live.restarted and not record.triton_too_old):
            found[name] = None  # they come up anew
        elif record is not None and record.triton_too_old:
            continue
        elif live.overlay is not None or record is not None:
            found[name] = live.overlay  # also where somebody has edited what is laid over it
    return found


def unhardened_revisions(s: Snapshot, status: ModelDeploymentStatus) -> list[str]:
    """Revisions with pods that whoever reaches them inside the cluster can manage: also while the
    last of them are being replaced.
    """
    found: list[str] = []
    for revision in s.revisions:
        server, record = s.servers.get(revision.name), status.restarts.get(revision.name)
        replaced = revision.hardened or record is None or record.done
        if server is not None and not (server.hardened and replaced):
            found.append(revision.name)
    return found


def withdraw_incompatible_restart(s: Snapshot) -> tuple[ModelDeploymentStatus, Event] | None:
    """An image that is too old for the flags: the pods that serve stay as they were, and no more of
    the others are made.
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


def mark_finished(s: Snapshot, status: ModelDeploymentStatus) -> ModelDeploymentStatus:
    """The status with the restarts marked that are over, for what happens to a revision's pods
    later is another matter; without those of pods that are gone: what comes up anew is made anew.
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


def waiting_restart(s: Snapshot, status: ModelDeploymentStatus) -> tuple[str, Problem | None] | None:
    """A revision whose restart is not done yet, and what stands in its way."""
    for name, record in status.restarts.items():
        if name in s.servers and not (record.done or record.triton_too_old):
            return name, s.server(name).problem
    return None


def restart_without_gpu(s: Snapshot) -> str | None:
    """The revision whose restart finds no place, so that a look at free GPUs is worth it."""
    found = waiting_restart(s, s.status)
    return (
        found[0]
        if found is not None and found[1] is not None and found[1].reason == "Unschedulable"
        else None
    )


def _is_over(s: Snapshot, name: str, record: RestartStatus) -> bool:
    server = s.server(name)
    renewed = (
        server.restarted == record.at
        and server.updated is not None
        and server.updated >= server.desired_replicas
    )
    return renewed and server.replicas <= server.desired_replicas <= server.ready


def _recorded(status: ModelDeploymentStatus, records: Mapping[str, RestartStatus]) -> ModelDeploymentStatus:
    return status.model_copy(update={"restarts": status.restarts | dict(records)})
