"""What the API server and the operator would say of manifests, without a cluster."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from modelrollout.analysis.metrics import effective_metrics
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.api import names
from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.api.v1alpha1.policy import RolloutPolicySpec
from modelrollout.cli.manifests.documents import Document, labels_of_namespaces
from modelrollout.cli.manifests.form import as_sent, unknown, wrong_form
from modelrollout.cli.manifests.rules import broken_rules, schema_of
from modelrollout.config import Profile
from modelrollout.crdgen.schema import Schema
from modelrollout.gpus import GpuTable
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, ROLLOUT_POLICY
from modelrollout.rollout.policy.requirements import first_violation, gpus_of_spec, sources
from modelrollout.rollout.policy.rules import Policy, Rules, combine, read, spec_in_force

_SPECS: dict[str, type[BaseModel]] = {
    MODEL_DEPLOYMENT.kind: ModelDeploymentSpec,
    ROLLOUT_POLICY.kind: RolloutPolicySpec,
}
_TOP = ("apiVersion", "kind", "metadata", "spec", "status")
_TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")


def findings(documents: Sequence[Document], others: Iterable[dict[str, Any]]) -> list[str]:
    """One line for each fault: file, object, field, fact, remedy. RolloutPolicies among the
    documents, and labels of Namespaces among the ``others``, hold for the ModelDeployments.
    """
    lines: list[str] = []
    sound: list[Document] = []
    policies: list[Policy] = []
    for document in documents:
        faults = list(_faults(document))
        if not faults and document.kind == ROLLOUT_POLICY.kind:
            policies.append(read({"metadata": {"name": document.name}, "spec": document.raw.get("spec")}))
            faults = [policies[-1].error] if policies[-1].error else []
        lines += [f"{document.where}: {fault}" for fault in faults]
        if not faults and document.kind == MODEL_DEPLOYMENT.kind:
            sound.append(document)
    spaces = labels_of_namespaces(others)
    # without any, those of the cluster are unknown
    for document in sound if policies else ():
        if fault := _refused_by_policies(document, policies, spaces):
            lines.append(f"{document.where}: {fault}")
    return lines


def _faults(document: Document) -> Iterable[str]:
    version = document.raw.get("apiVersion")
    if version != names.API_VERSION:
        yield f"apiVersion: {version} is not known; write {names.API_VERSION}"
        return
    if document.kind not in _SPECS:
        yield f"kind: {document.kind or '(none)'}: manifests are of {' and '.join(_SPECS)}"
        return
    wrong = list(_faults_of_metadata(document))
    for key in document.raw.keys() - set(_TOP):
        wrong.append(unknown(str(key), _TOP))
    schema = schema_of(document.kind)
    sent = as_sent(schema, document.raw)
    if sent.get("spec") is None:
        wrong.append("spec: is missing")
    else:
        wrong += wrong_form(schema["properties"]["spec"], sent["spec"], "spec")
    # what a type says beyond the form, for example of a query, it says after the rules
    wrong = wrong or [f"{path or 'object'}: {message}" for path, message in broken_rules(schema, sent)]
    yield from wrong or _refused_by_types(sent["spec"], _SPECS[document.kind])


def _faults_of_metadata(document: Document) -> Iterable[str]:
    if not _NAME.fullmatch(document.name) or len(document.name) > 63:
        yield "metadata.name: lower-case letters, digits and dashes, at most 63"
    namespace = document.metadata.get("namespace")
    if namespace is not None and not (isinstance(namespace, str) and _NAME.fullmatch(namespace)):
        yield "metadata.namespace: lower-case letters, digits and dashes"
    for field in ("labels", "annotations"):
        values = document.metadata.get(field)
        if values is not None:
            yield from wrong_form(_TEXTS, as_sent(_TEXTS, values), f"metadata.{field}")


def _refused_by_types(sent: Any, model: type[BaseModel]) -> Iterable[str]:
    try:
        model.model_validate(sent)
    except ValidationError as e:
        for error in e.errors(include_input=False, include_url=False):
            where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in error["loc"])
            yield f"spec{where}: {error['msg']}"


def _refused_by_policies(
    document: Document, policies: Iterable[Policy], spaces: dict[Any, dict[str, str]]
) -> str | None:
    """What the operator would say for want of what the policies demand."""
    namespace = str(document.metadata.get("namespace") or "default")
    labels = document.metadata.get("labels") or {}
    rules = combine(p for p in policies if p.matches(namespace, labels, spaces.get(namespace)))
    try:
        spec = ModelDeploymentSpec.model_validate(spec_in_force(document.raw["spec"], rules.defaults))
    except ValidationError as e:
        error = e.errors(include_input=False, include_url=False)[0]
        path = ".".join(map(str, error["loc"]))
        return f"spec.{path}: with the defaults of {', '.join(rules.names)}: {error['msg']}"
    problem = first_violation(rules, spec, sources(spec), gpus_of_spec(spec, GpuTable()))
    return problem.message if problem else _metrics_problem(spec, rules)


def _metrics_problem(spec: ModelDeploymentSpec, rules: Rules) -> str | None:
    analysis = spec.rollout.analysis
    if analysis.templates and not rules.names:
        return None  # the policies that have them were not given
    profile: Profile = "none" if spec.traffic.gateway is None else "traefik"
    metrics = effective_metrics(analysis, rules.templates, rules.mandatory, profile)
    return metrics.message if isinstance(metrics, MeasurementProblem) else None
