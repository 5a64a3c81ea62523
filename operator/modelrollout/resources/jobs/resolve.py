"""The Job that pins the digest of a model's source."""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.contract.tasks import ResolveTask
from modelrollout.resources.common import Object, locate, store_for_field
from modelrollout.resources.jobs.common import SMALL_RESOURCES, JobContext, build_job

_DISK_NOTHING = "1Gi"


def resolve_job(context: JobContext) -> Object:
    """Belongs to the ModelDeployment, since there is no revision yet."""
    model = context.model
    source = locate(
        model.uri, store_for_field("spec.model.uri", model.uri, context.config), model.credentials, "source"
    )
    return build_job(
        context,
        names.COMPONENT_RESOLVE,
        "modelrollout.optimizer",
        ResolveTask(source=source.location),
        located=[source],
        resources=SMALL_RESOURCES,
        timeout=3600,
        disk=_DISK_NOTHING,
    )
