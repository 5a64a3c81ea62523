"""Objects for the API server: what a Plan desires, made from the observed state. PURE."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from modelrollout.analysis.metrics import effective_metrics
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.api import names
from modelrollout.api.v1alpha1 import (
    ArtifactEvidence,
    Model,
    Optimization,
    Serving,
    TuningEvidence,
    seconds,
)
from modelrollout.config import OperatorConfig
from modelrollout.controller.observe.observation import Observation
from modelrollout.controller.observe.revisions import record
from modelrollout.controller.observe.validation import tuning_data
from modelrollout.kube.kinds import DEPLOYMENT, MODEL_DEPLOYMENT, MODEL_REVISION
from modelrollout.kube.objects import Object
from modelrollout.resources import network_policies, server
from modelrollout.resources.common import Owner, tenant_uri
from modelrollout.resources.hardening import VERSION, harden, is_known
from modelrollout.resources.jobs.common import JobContext
from modelrollout.resources.jobs.evaluate import ask_job, evaluate_job
from modelrollout.resources.jobs.prepare import prepare_job
from modelrollout.resources.jobs.resolve import resolve_job
from modelrollout.resources.jobs.tune import tune_job
from modelrollout.rollout.desired.jobs import is_look, known_source
from modelrollout.rollout.desired.traffic import ALL_REVISIONS
from modelrollout.rollout.plan import Desired, NewRevision
from modelrollout.rollout.shared_preparation import recorded
from modelrollout.rollout.snapshot import Observed, baseline
from modelrollout.rollout.stages.tune import serving_of
from modelrollout.triton import histogram


def owner_of(o: Object, kind: str) -> Owner:
    """The object as owner of its children."""
    m = o["metadata"]
    return Owner(kind, m["name"], m["namespace"], m["uid"])


def render_revision(observation: Observation, new: NewRevision, config: OperatorConfig) -> Object:
    """The ModelRevision, with the pod template that it freezes."""
    s, spec = observation.observed, observation.observed.spec
    assert spec is not None
    version = server.Version(s.name, new.name, new.number, s.namespace)
    objectives = _objectives(observation, new, config)
    body: dict[str, Any] = {
        "number": new.number,
        "deployment": s.name,
        "sha256": new.sha256,
        "input": spec.user_input_as_written(),
        "builder": server.BUILDER,
        "template": server.template(
            version,
            spec.serving,
            config,
            objectives,
            owner_uid=observation.deployment["metadata"]["uid"],
        ),
    }
    if spec.model.lineage:
        body["lineage"] = dict(spec.model.lineage)
    return {
        "apiVersion": names.API_VERSION,
        "kind": MODEL_REVISION.kind,
        "metadata": {
            "name": new.name,
            "namespace": s.namespace,
            "labels": {
                names.LABEL_NAME: s.name,
                names.LABEL_NUMBER: str(new.number),
                names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
            },
            "ownerReferences": [owner_of(observation.deployment, MODEL_DEPLOYMENT.kind).reference()],
        },
        "spec": body,
    }


def _objectives(observation: Observation, new: NewRevision, config: OperatorConfig) -> tuple[int, ...]:
    """The latencies that the histogram of the new servers is to tell, in milliseconds; none where
    their Triton is not known to take them: it would load no model.
    """
    s, spec = observation.observed, observation.observed.spec
    assert spec is not None
    image = server.image(spec.serving, config)
    reported = {
        server.image_of(o["spec"]["template"]): new.triton_versions[name]
        for (kind, name), o in observation.children.items()
        if kind == MODEL_REVISION.kind and name in new.triton_versions
    }
    if not histogram.takes_bounds(image, reported.get(image)):
        return ()
    metrics = effective_metrics(spec.rollout.analysis, s.templates, s.mandatory, s.counting.profile)
    judged = () if isinstance(metrics, MeasurementProblem) else metrics
    return histogram.objectives(seconds(m.objective) for m in judged if m.objective is not None)


def render_children(observation: Observation, desired: Desired, config: OperatorConfig) -> list[Object]:
    """Servers, Services, budget and routes, in the order in which they are written: what carries
    traffic before what sends it there.
    """
    owner = owner_of(observation.deployment, MODEL_DEPLOYMENT.kind)
    objects: list[Object] = []
    for name in desired.servers:
        objects += _render_server(observation, desired, name, config)
    if desired.preview is not None:
        objects.append(server.preview_service(owner, desired.preview))
    if desired.canary_budget is not None:
        objects += _render_canary_budget(observation, desired.canary_budget)
    if desired.budget is not None:
        objects.append(server.disruption_budget(owner, desired.budget))
    return objects + render_traffic(observation, desired)


def _render_server(
    observation: Observation, desired: Desired, name: str, config: OperatorConfig
) -> list[Object]:
    """Deployment and Service of a revision; nothing while its artifact is not known."""
    s, live = observation.observed, observation.children.get((MODEL_REVISION.kind, name))
    revision = s.revision(name)
    artifact, tuning = _evidence(s, name)
    if revision is None or live is None or artifact is None or not artifact.digest:
        return []
    owner, frozen = owner_of(live, MODEL_REVISION.kind), live["spec"]["template"]
    if name in desired.hardened:
        frozen = harden(frozen, s.name, desired.hardened[name] or VERSION)
    if artifact.decoupled:
        frozen = server.for_streams(frozen)
    deployment = server.server_deployment(
        owner,
        server.Version(s.name, name, revision.number, s.namespace),
        frozen,
        server.Artifact(artifact.uri, artifact.digest),
        desired.servers[name],
        config,
        restarted=desired.restarts.get(name),
        serving=serving_of(tuning),
        ends_first=name in desired.ends_first,
    )
    running = observation.children.get((DEPLOYMENT.kind, name))
    # a newer operator hardened its pods: they keep running
    if running is not None and not is_known(desired.hardened.get(name)):
        deployment["spec"]["template"] = running["spec"]["template"]
    return [deployment, server.revision_service(owner, s.name, revision.number)]


def _render_canary_budget(observation: Observation, name: str) -> list[Object]:
    s, live = observation.observed, observation.children.get((MODEL_REVISION.kind, name))
    revision = s.revision(name)
    if revision is None or live is None:
        return []
    return [server.canary_budget(owner_of(live, MODEL_REVISION.kind), s.name, revision.number)]


def _evidence(s: Observed, name: str) -> tuple[ArtifactEvidence | None, TuningEvidence | None]:
    """What is known of a revision's artifact and tuning. The rollout in flight knows it before the
    revision does.
    """
    revision, rollout = s.revision(name), s.status.rollout
    artifact = revision.status.artifact if revision else None
    tuning = revision.status.tuning if revision else None
    if rollout and rollout.revision == name:
        return rollout.artifact or artifact, rollout.tuning or tuning
    return artifact, tuning


def render_traffic(observation: Observation, desired: Desired) -> list[Object]:
    """The stable Service and the routes."""
    assert observation.router is not None
    owner = owner_of(observation.deployment, MODEL_DEPLOYMENT.kind)
    selector = None if desired.selector == ALL_REVISIONS else desired.selector
    service = [server.stable_service(owner, selector)] if desired.selector is not None else []
    return service + observation.router.children(owner, desired.split)


def render_network_policies(observation: Observation, config: OperatorConfig) -> list[Object]:
    """The NetworkPolicies of the ModelDeployment; none where they are not configured."""
    s, configured = observation.observed, config.network_policies
    if s.spec is None or configured is None or not configured.written_in(s.namespace):
        return []
    clients = s.spec.traffic.clients.namespaces if s.spec.traffic.clients else ()
    owner = owner_of(observation.deployment, MODEL_DEPLOYMENT.kind)
    return network_policies.policies(owner, clients, configured)


def render_job(
    observation: Observation,
    component: str,
    name: str,
    config: OperatorConfig,
    *,
    of_same_source: Callable[[str], Iterable[Object]],
    salt: str,
) -> Object | None:
    """The Job of the present stage; None while its revision is missing.

    ``of_same_source``: the namespace's ModelRevisions made from the source with that digest;
    ``salt``: random, kept by the Job for all of its pods. Raises NotAllowedError, and
    ValidationError if another version of the operator wrote the revision.
    """
    s, spec = observation.observed, observation.observed.spec
    assert spec is not None
    if component == names.COMPONENT_RESOLVE:
        owner = owner_of(observation.deployment, MODEL_DEPLOYMENT.kind)
        context = JobContext(owner, s.name, None, name, spec.model, spec.serving, config)
        return resolve_job(context, look=is_look(s), known=known_source(s))
    assert s.status.rollout is not None
    live = observation.children.get((MODEL_REVISION.kind, s.status.rollout.revision or ""))
    if live is None:
        return None
    frozen = live["spec"]["input"]
    context = JobContext(
        owner_of(live, MODEL_REVISION.kind),
        s.name,
        live["spec"]["number"],
        name,
        Model.model_validate(frozen["model"]),
        Serving.model_validate(frozen["serving"]),
        config,
    )
    if component == names.COMPONENT_PREPARE:
        # Resources, time limit and queue of the Job are no part of the version: spec's current ones
        # count.
        optimization = Optimization.model_validate(frozen["optimization"]).carried_out_as(spec.optimization)
        sha256 = live["spec"]["sha256"]
        known = recorded(
            map(record, of_same_source(sha256)), sha256, frozen["model"], tenant_uri(config, s.namespace)
        )
        warmup = server.takes_warmup(live["spec"]["builder"])
        return prepare_job(context, sha256, optimization, salt=salt, recorded=known, warmup=warmup)
    if component == names.COMPONENT_TUNE:
        tune, artifact = spec.serving.tune, s.status.rollout.artifact
        assert tune is not None and artifact is not None
        where = server.Artifact(artifact.uri, artifact.digest)
        return tune_job(context, tune, tuning_data(spec), live["spec"]["template"], where)
    golden, stable = spec.rollout.analysis.golden, baseline(s)
    if golden is None:
        return ask_job(context)
    return evaluate_job(context, golden, (stable.revision, stable.number) if stable else None)
