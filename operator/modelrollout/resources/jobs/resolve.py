"""The Job that pins the digest of a model's source."""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.contract.tasks import Known, ResolveTask
from modelrollout.resources.common import Object, locate, store_for_field
from modelrollout.resources.jobs.common import SMALL_RESOURCES, JobContext, build_job

_DISK_NOTHING = "1Gi"
LOOK_TTL_SECONDS = 300  # of a look: its Jobs are many, and say little


def resolve_job(context: JobContext, *, look: bool = False, known: Known | None = None) -> Object:
    """Belongs to the ModelDeployment, since there is no revision yet. ``look``: at a source that is
    followed, of which ``known`` is known.
    """
    model = context.model
    source = locate(
        model.uri, store_for_field("spec.model.uri", model.uri, context.config), model.credentials, "source"
    )
    job = build_job(
        context,
        names.COMPONENT_RESOLVE,
        "modelrollout.optimizer",
        ResolveTask(source=source.location, follow=model.follow is not None, known=known),
        located=[source],
        resources=SMALL_RESOURCES,
        timeout=3600,
        disk=_DISK_NOTHING,
    )
    if look:
        job["spec"]["ttlSecondsAfterFinished"] = min(LOOK_TTL_SECONDS, context.config.job_ttl_seconds)
    return job
