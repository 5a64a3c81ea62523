"""The Job that sends golden data through the served candidate, or made-up inputs where there is
none.
"""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Golden
from modelrollout.contract.tasks import AskTask, EvaluateTask
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
    http, grpc = _addresses(candidate.revision, candidate.namespace)
    stable_http, stable_grpc = _addresses(stable[0], candidate.namespace) if stable else (None, None)
    task = EvaluateTask(
        data=data,
        model=candidate.deployment,
        candidate_http=http,
        candidate_grpc=grpc,
        candidate_number=candidate.number,
        stable_http=stable_http,
        stable_grpc=stable_grpc,
        stable_number=stable[1] if stable else None,
        output=golden.output,
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


def ask_job(context: JobContext) -> Object:
    """A few requests with made-up inputs to the candidate alone."""
    candidate = context.version
    http, grpc = _addresses(candidate.revision, candidate.namespace)
    task = AskTask(model=candidate.deployment, http=http, grpc=grpc, number=candidate.number)
    return build_job(
        context,
        names.COMPONENT_EVALUATE,
        "modelrollout.evaluator",
        task,
        located=[],
        resources=SMALL_RESOURCES,
        timeout=900,
    )


def _addresses(revision: str, namespace: str) -> tuple[str, str]:
    """host:port of a revision's servers, for HTTP and gRPC."""
    host = f"{revision}.{namespace}.svc"
    return f"{host}:{names.PORT_HTTP}", f"{host}:{names.PORT_GRPC}"
