"""The Job that sends golden data through the served candidate."""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Golden
from modelrollout.contract.tasks import EvaluateTask
from modelrollout.resources.common import Object
from modelrollout.resources.jobs.common import SMALL_RESOURCES, JobContext, build_job, locate_data


def evaluate_job(context: JobContext, golden: Golden, stable: tuple[str, int] | None) -> Object:
    """Golden data once through the candidate, paired with stable ((revision, number)) if there is
    one.
    """
    data, located = locate_data(
        "spec.rollout.analysis.golden", golden, context.model.credentials, context.config, "golden"
    )
    candidate = context.version
    host = f"{candidate.revision}.{candidate.namespace}.svc"
    stable_host = f"{stable[0]}.{candidate.namespace}.svc" if stable else None
    task = EvaluateTask(
        data=data,
        model=candidate.deployment,
        candidate_http=f"{host}:{names.PORT_HTTP}",
        candidate_grpc=f"{host}:{names.PORT_GRPC}",
        candidate_number=candidate.number,
        stable_http=f"{stable_host}:{names.PORT_HTTP}" if stable_host else None,
        stable_grpc=f"{stable_host}:{names.PORT_GRPC}" if stable_host else None,
        stable_number=stable[1] if stable else None,
    )
    return build_job(
        context,
        names.COMPONENT_EVALUATE,
        "modelrollout.evaluator",
        task,
        located=[located],
        resources=SMALL_RESOURCES,
        timeout=3600,
    )
