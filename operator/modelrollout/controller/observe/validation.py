"""Whether a spec, or the Job of a stage, may be carried out here: stores, policies, images, the
gateway. Every message names the field and the remedy.
"""

from __future__ import annotations

from modelrollout.analysis.providers.registry import unknown_provider
from modelrollout.api import names
from modelrollout.api.v1alpha1 import Data, ModelDeploymentSpec
from modelrollout.config import OperatorConfig
from modelrollout.kube.cache import Key
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.resources.common import NotAllowedError, store_for_field
from modelrollout.rollout.policy.allowances import allowance_violation, filter_violation
from modelrollout.rollout.policy.requirements import (
    first_violation,
    gpus_of_spec,
    query_violation,
    source_violation,
    sources,
)
from modelrollout.rollout.policy.rules import Rules
from modelrollout.rollout.snapshot import Observed, in_flight
from modelrollout.traffic.gateway_facts import GatewayFacts
from modelrollout.traffic.registry import kind_for


def spec_violation(
    key: Key,
    spec: ModelDeploymentSpec,
    config: OperatorConfig,
    served_routes: frozenset[str],
    gateway: GatewayFacts | None,
    rules: Rules,
    *,
    returns: bool,
) -> Problem | None:
    """Why this spec cannot be rolled out at all. ``returns``: it goes back to a proven version.

    What concerns routes comes first: no other fault of a spec keeps it from having routes.
    """
    if problem := filter_violation(rules, spec, config):
        return problem
    if problem := kind_for(spec.traffic).spec_problem(spec, served_routes, gateway, config):
        return problem
    try:
        for field, uri in sources(spec):
            store_for_field(field, uri, config)
    except NotAllowedError as e:
        return Problem(Reason.STORE_NOT_ALLOWED, str(e))
    if problem := first_violation(
        rules, spec, sources(spec), gpus_of_spec(spec, config.gpu_table), returns=returns
    ):
        return problem
    if problem := allowance_violation(rules, spec, key[0], config):
        return problem
    if problem := query_violation(rules, spec, *key, config.queries, config.scrape.namespace_label):
        return problem
    if problem := _image_missing(spec, config):
        return problem
    return unknown_provider(spec.rollout.analysis, config)


def _image_missing(spec: ModelDeploymentSpec, config: OperatorConfig) -> Problem | None:
    """A Job has one image. Trainers (and int4) and converters of other formats are in separate
    images, because together they would take a gigabyte.
    """
    heavy = next((i for i, step in enumerate(spec.optimization.steps) if step.trainer == "Needed"), None)
    if heavy is None:
        return None
    field = f"spec.optimization.steps[{heavy}].{spec.optimization.steps[heavy].chosen()[0]}"
    if spec.model.flavour:
        return Problem(
            Reason.IMAGE_FLAVOURS_CLASH,
            f"{field}: the step needs the trainer image, spec.model.format: {spec.model.format} the image"
            f" {spec.model.flavour}, and a Job has one; leave the step out, or export the model to ONNX where"
            " it was trained",
        )
    if config.images.trainer is None:
        return Problem(
            Reason.TRAINER_MISSING,
            f"{field}: this operator has no trainer image, which the step needs; set trainer.image in the"
            " chart's values, or leave it out",
        )
    return None


def job_violation(s: Observed, component: str, config: OperatorConfig) -> Problem | None:
    """Why the Job of this component must not be created. The spec was checked before its rollout
    began, but data that is no part of a version, and policies, may have changed since.

    A return to a version that was prepared already is held up by neither.
    """
    assert s.spec is not None
    rollout = s.status.rollout
    returns = rollout is not None and in_flight(rollout) and rollout.mode == "Rollback"
    if returns and component != names.COMPONENT_EVALUATE:
        return None
    source = {names.COMPONENT_TUNE: tuning_data, names.COMPONENT_EVALUATE: golden_data}.get(component)
    data = source(s.spec) if source else None
    return source_violation(
        s.rules, [(f"{data[0]}.uri", data[1].uri)] if data else []
    ) or allowance_violation(s.rules, s.spec, s.namespace, config)


def golden_data(spec: ModelDeploymentSpec) -> tuple[str, Data] | None:
    """Golden data, and the field that names it."""
    golden = spec.rollout.analysis.golden
    return ("spec.rollout.analysis.golden", golden) if golden is not None else None


def tuning_data(spec: ModelDeploymentSpec) -> tuple[str, Data] | None:
    """The inputs that tuning sends, and the field that names them: its own, else the golden data,
    else the gate's.
    """
    if spec.serving.tune is not None and spec.serving.tune.data is not None:
        return "spec.serving.tune.data", spec.serving.tune.data
    if golden := golden_data(spec):
        return golden
    gate = spec.optimization.gate
    return ("spec.optimization.gate.data", gate.data) if gate is not None else None
