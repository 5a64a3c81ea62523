"""The ModelRevisions of a ModelDeployment, and which objects are its own."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.uris import lies_below
from modelrollout.api.v1alpha1 import ArtifactEvidence, ModelRevisionStatus, TuningEvidence
from modelrollout.kube.kinds import DEPLOYMENT, JOB, MODEL_REVISION, POD
from modelrollout.kube.objects import Object, annotations_of, controller_of
from modelrollout.resources.hardening import hardening_version, is_latest
from modelrollout.resources.server import fetch_task, streams
from modelrollout.rollout.shared_preparation import Record
from modelrollout.rollout.snapshot import Revision, artifact_is_unusable
from modelrollout.rollout.stages.tune import trial_serving


def own_children(
    deployment: Object, by_name: Mapping[tuple[str, str], Object]
) -> dict[tuple[str, str], Object]:
    """Pods, and what this ModelDeployment controls by uid, directly or through its revisions.
    Labels are no evidence: anyone can write them.

    An object without a controller, as after ``--cascade=orphan``, is its own only by a record that
    the operator alone writes: a ModelRevision of this name, or an entry in its status.children.
    Whatever an earlier ModelDeployment of the name still controls is left to the garbage collector.
    """
    uid, name = deployment["metadata"]["uid"], deployment["metadata"]["name"]
    revisions = [
        o for (kind, _), o in by_name.items() if kind == MODEL_REVISION.kind and _is_revision_of(o, uid, name)
    ]
    recorded = {child for o in revisions for child in (o.get("status") or {}).get("children") or []}
    controllers = {uid, *(o["metadata"]["uid"] for o in revisions)}

    def is_own(kind: str, o: Object) -> bool:
        if kind == MODEL_REVISION.kind:
            return o["metadata"]["uid"] in controllers
        controller = controller_of(o)
        return (
            kind == POD.kind
            or controller in controllers
            or (controller is None and o["metadata"]["uid"] in recorded)
        )

    return {(kind, n): o for (kind, n), o in by_name.items() if is_own(kind, o)}


def _is_revision_of(revision: Object, uid: str, name: str) -> bool:
    controller = controller_of(revision)
    return controller == uid or (
        controller is None and (revision.get("spec") or {}).get("deployment") == name
    )


def is_lasting_child(deployment: Object, o: Object) -> bool:
    """Whether the ModelDeployment itself controls ``o``, and for longer than a stage."""
    return (
        o["kind"] not in (MODEL_REVISION.kind, JOB.kind, POD.kind)
        and controller_of(o) == deployment["metadata"]["uid"]
    )


def revisions(by_name: Mapping[tuple[str, str], Object], folder: str) -> tuple[Revision, ...]:
    """The ModelRevisions, by number. ``folder``: where the namespace's artifacts lie."""
    read: list[Revision] = []
    for (kind, name), o in by_name.items():
        if kind != MODEL_REVISION.kind:
            continue
        spec = o["spec"]
        status = _revision_status(o, by_name.get((DEPLOYMENT.kind, name)), folder)
        version = hardening_version(spec["template"], spec["deployment"])
        read.append(
            Revision(
                name,
                spec["number"],
                spec["sha256"],
                spec["input"],
                status,
                hardened=version is not None,
                outdated=None if is_latest(version) else version,
            )
        )
    return tuple(sorted(read, key=lambda r: r.number))


def record(revision: Object) -> Record:
    """What a revision's own status says about its preparation, for other ModelDeployments of the
    namespace. What its pods run is no evidence for them.
    """
    status = _stored_status(revision)
    return Record(
        revision["spec"]["sha256"],
        revision["spec"]["input"].get("model") or {},
        status.artifact,
        artifact_is_unusable(status),
    )


def _stored_status(revision: Object) -> ModelRevisionStatus:
    """An unreadable status counts as empty."""
    try:
        return ModelRevisionStatus.model_validate(revision.get("status") or {})
    except ValidationError:
        return ModelRevisionStatus()


def _revision_status(revision: Object, server: Object | None, folder: str) -> ModelRevisionStatus:
    """The revision's status. If it is empty, the outcome comes from its annotations.

    Without an artifact in it, what its pods run counts, provided that it lies in the namespace's
    ``folder``: anyone may have edited the Deployment.
    """
    status = _stored_status(revision)
    if not revision.get("status"):
        annotations = annotations_of(revision)
        with contextlib.suppress(ValidationError):
            status = ModelRevisionStatus.model_validate(
                {
                    "outcome": annotations.get(names.ANNOTATION_OUTCOME, "Pending"),
                    "reason": annotations.get(names.ANNOTATION_REASON, "-"),
                }
            )
    if (
        status.artifact is None
        and server is not None
        and (task := fetch_task(server))
        and lies_below(task.artifact.uri, folder)
    ):
        artifact = ArtifactEvidence(
            uri=task.artifact.uri,
            digest=task.digest,
            size_before=0,
            size_after=0,
            decoupled=streams(server) or None,
        )
        tuning = TuningEvidence(chosen=trial_serving(task.serving)) if task.serving else None
        status = status.model_copy(update={"artifact": artifact, "tuning": tuning})
    return status
