"""From objects as last seen to a Snapshot. Pure but for its input: reads the store, asks nobody."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from modelrollout.analysis.golden import judge_golden
from modelrollout.api import names
from modelrollout.api.uris import lies_below, masked_text
from modelrollout.api.v1alpha1 import (
    ArtifactEvidence,
    EvaluationEvidence,
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ModelRevisionStatus,
    TuningEvidence,
)
from modelrollout.config import OperatorConfig
from modelrollout.contract.results import TaskResult
from modelrollout.controller.observe.job_state import job_state
from modelrollout.controller.observe.pods import last_crash, pod_problem, pods_of_server, server_down
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.client import (
    DEPLOYMENT,
    GRPC_ROUTE,
    HTTP_ROUTE,
    JOB,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    POD,
    Object,
)
from modelrollout.resources.common import NotAllowedError, controller_of, store_for_field, tenant_uri
from modelrollout.resources.hardening import hardening_version, overlay_of
from modelrollout.resources.server import fetch_task, restarted_at
from modelrollout.rollout.desired import (
    split,
    stage_job,
)
from modelrollout.rollout.policy.allowances import allowance_violation
from modelrollout.rollout.policy.mandatory_metrics import is_return
from modelrollout.rollout.policy.requirements import first_violation, gpus_of_spec, query_violation
from modelrollout.rollout.policy.rules import NO_RULES, Rules, spec_in_force
from modelrollout.rollout.recovery import sanitize
from modelrollout.rollout.shared_preparation import Record
from modelrollout.rollout.snapshot import (
    TRAFFIC_REFUSALS,
    JobState,
    MirrorState,
    Problem,
    Revision,
    Server,
    Snapshot,
    Verb,
    artifact_is_unusable,
    baseline,
    in_flight,
)
from modelrollout.rollout.stages.tune import trial_serving
from modelrollout.rollout.transitions import known_version
from modelrollout.traffic.base import Router
from modelrollout.traffic.gateway_api.features import GatewayFacts, route_problem
from modelrollout.traffic.gateway_api.mirror import mirror_method
from modelrollout.traffic.gateway_api.router import overly_open_routes
from modelrollout.traffic.hostnames import (
    NO_NAMES,
    Known,
    Standing,
    holder_of,
    hosts_of_routes,
    route_name,
    standing,
    version_of,
)
from modelrollout.traffic.router import kind_for, live_split, router_for

# characters of a field's path, and of what is wrong with it: keys of maps are the user's, and as
# long as he likes
_FIELD = 500


@dataclass(frozen=True)
class Observation:
    """One ModelDeployment with its objects, as last seen; the raw side of a Snapshot."""

    deployment: Object
    children: dict[tuple[str, str], Object]  # by kind and name
    snapshot: Snapshot
    router: Router | None
    hostnames: Standing = NO_NAMES
    folder: str = ""  # where artifacts of its namespace lie

    @property
    def job(self) -> Object | None:
        """The Job that the present stage waits for."""
        found = stage_job(self.snapshot.status, self.snapshot)
        return self.children.get((JOB.kind, found[1])) if found else None


def observe(
    store: ObjectCache,
    key: Key,
    config: OperatorConfig,
    gateway_kinds: frozenset[str],
    known: Known,
    gateway: GatewayFacts | Problem | None = None,
    rules: Rules = NO_RULES,
    now: datetime | None = None,
) -> Observation | None:
    """The snapshot of a ModelDeployment; None when it is gone or going (the garbage collector takes
    its children).

    ``known``: of host names (``controller.lookups.host_names``). ``gateway``: of its Gateway
    (``controller.lookups.gateways``). ``rules``: of the RolloutPolicies that match it.
    """
    deployment = store.get(MODEL_DEPLOYMENT, *key)
    if deployment is None or deployment["metadata"].get("deletionTimestamp"):
        return None
    children = store.children(key)
    by_name = {
        (o["kind"], o["metadata"]["name"]): o for o in children if not o["metadata"].get("deletionTimestamp")
    }
    by_name = own_children(deployment, by_name)
    pods = [o for o in children if o["kind"] == POD.kind]
    spec, parse_error = _spec(deployment, rules)
    folder = tenant_uri(config, key[0])
    revisions = _revisions(by_name, folder)
    snapshot = Snapshot(
        name=key[1],
        namespace=key[0],
        generation=deployment["metadata"].get("generation", 1),
        spec=spec,
        parse_error=parse_error,
        status=_status(deployment),
        revisions=revisions,
        children=tuple(sorted(o["metadata"]["uid"] for o in by_name.values() if _lasts(deployment, o))),
        servers=_servers(by_name, pods),
        verbs=_verbs(deployment, by_name),
        overly_open=tuple(
            f"{o['kind']} {o['metadata']['name']}" for o in overly_open_routes(by_name, key[1])
        ),
        settle_seconds=config.gateway_metrics.settle_seconds,
        gateway=spec is not None and kind_for(spec.traffic).exact,
        rules=rules,
        templates=rules.templates,
        mandatory=rules.mandatory,
    )
    mine = [o for (kind, _), o in by_name.items() if kind in (HTTP_ROUTE.kind, GRPC_ROUTE.kind)]
    stands = standing(
        holder_of(deployment),
        spec,
        hosts_of_routes(mine),
        known,
        rules,
        *_versions(snapshot),
        routes=frozenset(map(route_name, mine)),
    )
    if spec is None:
        router = router_for(snapshot, by_name, config, withheld=stands.lost)
        traffic = router.programmed(split(snapshot), by_name, snapshot.servers)
        return Observation(deployment, by_name, replace(snapshot, traffic=traffic), router, stands)
    snapshot = replace(snapshot, live_split=live_split(key[1], by_name))
    snapshot = replace(snapshot, mirror=_mirror(spec, gateway, config))
    back = now is not None and is_return(snapshot, known_version(snapshot), now)
    refusal = _refusal(key, spec, config, gateway_kinds, gateway, rules, returns=back)
    as_asked = stands.settled and (refusal is None or refusal.reason not in TRAFFIC_REFUSALS)
    # only a spec that is accepted claims names, but for its own, which nobody else could have
    if refusal is not None:
        stands = replace(stands, free=tuple(h for h in stands.free if h == names.own_name(*key)))
    snapshot = replace(
        snapshot,
        spec_problem=refusal or stands.problem or snapshot.mirror.problem,
        taken=stands.taken,
        names_since=stands.since,
    )
    snapshot = replace(snapshot, work=_work(stage_job(snapshot.status, snapshot), by_name, pods, folder))
    snapshot = replace(snapshot, evaluation=evaluation_of(snapshot))
    router = router_for(snapshot, by_name, config, granted=as_asked, withheld=stands.lost)
    snapshot = replace(snapshot, mirror=replace(snapshot.mirror, tried=router.mirror_accepted(by_name)))
    traffic = router.programmed(split(snapshot), by_name, snapshot.servers)
    if (
        not traffic.programmed
        and traffic.problem is None
        and snapshot.spec_problem
        and snapshot.spec_problem.reason in TRAFFIC_REFUSALS
    ):
        traffic = replace(traffic, problem=snapshot.spec_problem)
    snapshot = replace(snapshot, traffic=traffic)
    return Observation(deployment, by_name, snapshot, router, stands, folder)


def _versions(s: Snapshot) -> tuple[str | None, str | None]:
    """The version that is stable and the one in flight, as claims of names have them."""

    def of(name: str | None) -> str | None:
        revision = s.revision(name)
        return (
            version_of(
                revision.input,
                revision.sha256,
                revision.status.artifact.digest if revision.status.artifact else "",
            )
            if revision
            else None
        )

    flying = (
        s.status.rollout.revision if s.status.rollout is not None and in_flight(s.status.rollout) else None
    )
    return (of(s.status.stable.revision) or "unknown") if s.status.stable else None, of(flying)


def _mirror(
    spec: ModelDeploymentSpec, gateway: GatewayFacts | Problem | None, config: OperatorConfig
) -> MirrorState:
    if spec.rollout.shadow is None:
        return MirrorState()
    way = mirror_method(spec, gateway, config)
    return MirrorState(problem=way) if isinstance(way, Problem) else MirrorState(way)


def own_children(
    deployment: Object, by_name: Mapping[tuple[str, str], Object]
) -> dict[tuple[str, str], Object]:
    """Pods, and what this very ModelDeployment controls, itself or by its revisions. Labels make
    nothing its own: everybody can write them.

    What nothing controls is its own only by a record that nobody but the operator writes: a
    ModelRevision of this name, and what such a one has in status.children. So it is after
    ``--cascade=orphan``; whatever else has that name is a stranger's, and what an earlier
    ModelDeployment of the name still controls is about to be taken away by the garbage collector.
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


def _lasts(deployment: Object, o: Object) -> bool:
    """Whether ``o`` is the ModelDeployment's own child, and not only for the time of a stage."""
    return (
        o["kind"] not in (MODEL_REVISION.kind, JOB.kind, POD.kind)
        and controller_of(o) == deployment["metadata"]["uid"]
    )


def _spec(deployment: Object, rules: Rules) -> tuple[ModelDeploymentSpec | None, str | None]:
    """The spec, with what policies say where spec.rollout leaves a field out."""
    try:
        return (
            ModelDeploymentSpec.model_validate(spec_in_force(deployment.get("spec") or {}, rules.defaults)),
            None,
        )
    except ValidationError as e:
        told = "; ".join(
            f"spec.{'.'.join(map(str, err['loc']))[:_FIELD]}: {err['msg'][:_FIELD]}" for err in e.errors()[:5]
        )
        # a map's key is part of a field's path, and the user's
        return None, masked_text(f"{told}; correct these fields")


def _status(deployment: Object) -> ModelDeploymentStatus:
    """The status as far as it can be believed; what somebody else damaged is rebuilt from the
    revisions and the route (``rollout.recovery``).
    """
    raw = deployment.get("status") or {}
    try:
        return sanitize(ModelDeploymentStatus.model_validate(raw))
    except ValidationError:
        pass
    kept: dict[str, Any] = {}
    for field, value in raw.items():
        with contextlib.suppress(ValidationError):
            ModelDeploymentStatus.model_validate({field: value})
            kept[field] = value
    return sanitize(ModelDeploymentStatus.model_validate(kept))


def _revisions(by_name: Mapping[tuple[str, str], Object], folder: str) -> tuple[Revision, ...]:
    found: list[Revision] = []
    for (kind, name), o in by_name.items():
        if kind != MODEL_REVISION.kind:
            continue
        spec = o["spec"]
        status = _revision_status(o, by_name.get((DEPLOYMENT.kind, name)), folder)
        hardened = hardening_version(spec["template"], spec["deployment"]) is not None
        found.append(Revision(name, spec["number"], spec["sha256"], spec["input"], status, hardened))
    return tuple(sorted(found, key=lambda r: r.number))


def record(revision: Object) -> Record:
    """What any revision of a namespace says of its preparation; what pods run is no evidence for
    others.
    """
    try:
        status = ModelRevisionStatus.model_validate(revision.get("status") or {})
    except ValidationError:
        status = ModelRevisionStatus()
    return Record(
        revision["spec"]["sha256"],
        revision["spec"]["input"].get("model") or {},
        status.artifact,
        artifact_is_unusable(status),
    )


def _revision_status(revision: Object, server: Object | None, folder: str) -> ModelRevisionStatus:
    """The revision's status. Where it is empty, the outcome is that of its annotations, and the
    artifact the one that its pods run, if it is one of this namespace's ``folder``: anybody may
    have edited the Deployment.
    """
    try:
        status = ModelRevisionStatus.model_validate(revision.get("status") or {})
    except ValidationError:
        status = ModelRevisionStatus()
    if not revision.get("status"):
        annotations = revision["metadata"].get("annotations") or {}
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
        and (found := fetch_task(server))
        and lies_below(found.artifact.uri, folder)
    ):
        artifact = ArtifactEvidence(uri=found.artifact.uri, digest=found.digest, size_before=0, size_after=0)
        tuning = TuningEvidence(chosen=trial_serving(found.serving)) if found.serving else None
        status = status.model_copy(update={"artifact": artifact, "tuning": tuning})
    return status


def _servers(by_name: Mapping[tuple[str, str], Object], pods: Iterable[Object]) -> dict[str, Server]:
    """Replicas and ready ones by revision. A Deployment's counts are believed only for the
    generation that its controller has seen.
    """
    found: dict[str, Server] = {}
    for (kind, name), o in by_name.items():
        if kind != DEPLOYMENT.kind:
            continue
        status = o.get("status") or {}
        fresh = status.get("observedGeneration", 0) >= o["metadata"].get("generation", 1)
        ready = (
            status.get("availableReplicas", 0)
            if fresh
            else min(status.get("availableReplicas", 0), o["spec"].get("replicas", 1))
        )
        # A revision's servers, or the comparer of its shadow.
        part, revision = (
            _label(o, names.LABEL_COMPONENT) or names.COMPONENT_SERVER,
            _label(o, names.LABEL_REVISION) or name,
        )
        labelled = (
            p
            for p in pods
            if _label(p, names.LABEL_REVISION) == revision and _label(p, names.LABEL_COMPONENT) == part
        )
        server_pods = pods_of_server(labelled, o)
        found[name] = Server(
            status.get("replicas", 0),
            ready,
            pod_problem(server_pods),
            o["spec"].get("replicas", 1),
            restarted_at(o),
            hardened=hardening_version(o["spec"]["template"], _label(o, names.LABEL_NAME) or ""),
            overlay=overlay_of(o["spec"]["template"]),
            updated=status.get("updatedReplicas", 0) if fresh else None,
            down=server_down(server_pods),
            crash=last_crash(server_pods),
        )
    return found


def _label(o: Object, label: str) -> str | None:
    return (o["metadata"].get("labels") or {}).get(label)


def _verbs(deployment: Object, by_name: Mapping[tuple[str, str], Object]) -> tuple[Verb, ...]:
    found: list[Verb] = []
    for o in (deployment, *(o for (kind, _), o in by_name.items() if kind == MODEL_REVISION.kind)):
        annotations = o["metadata"].get("annotations") or {}
        revision = "" if o is deployment else o["metadata"]["name"]
        for verb in names.VERBS if revision else ("retry", "abort"):
            words = str(annotations.get(names.verb_annotation(verb), "")).split()
            if words:
                found.append(Verb(verb, revision, words[-1], words[0] if len(words) > 1 else None))
    return tuple(found)


def _work(
    job: tuple[str, str] | None,
    by_name: Mapping[tuple[str, str], Object],
    pods: Iterable[Object],
    folder: str,
) -> JobState:
    found = by_name.get((JOB.kind, job[1])) if job else None
    if found is None:
        return JobState()
    return job_state(found, pods, folder)


def evaluation_of(s: Snapshot) -> EvaluationEvidence | None:
    """The verdict on golden data, once its Job has counted."""
    rollout = s.status.rollout
    if (
        rollout is None
        or rollout.stage != "Evaluate"
        or s.spec is None
        or s.spec.rollout.analysis.golden is None
    ):
        return None
    result: TaskResult | None = s.work.result
    if s.work.state != "Succeeded" or result is None:
        return None
    stable = baseline(s)
    return judge_golden(s.spec.rollout.analysis.golden, result, stable.revision if stable else None)


def _refusal(
    key: Key,
    spec: ModelDeploymentSpec,
    config: OperatorConfig,
    gateway_kinds: frozenset[str],
    gateway: GatewayFacts | Problem | None,
    rules: Rules,
    *,
    returns: bool,
) -> Problem | None:
    """Why this spec cannot be rolled out at all; every message names the field and the remedy."""
    try:
        for field, uri in _uris(spec):
            store_for_field(field, uri, config)
    except NotAllowedError as e:
        return Problem("StoreNotAllowed", str(e))
    if problem := first_violation(
        rules, spec, _uris(spec), sum(gpus_of_spec(spec).values()), returns=returns
    ):
        return problem
    if problem := allowance_violation(rules, spec, key[0], config):
        return problem
    if problem := query_violation(rules, spec, *key, config.queries, config.scrape.namespace_label):
        return problem
    if problem := _image_missing(spec, config):
        return problem
    provider = spec.rollout.analysis.prometheus
    if provider is not None and config.provider_for(provider) is None:
        known = ", ".join(p.name for p in config.providers) or "none"
        return Problem(
            "PrometheusNotAllowed",
            f"spec.rollout.analysis.prometheus: {provider} is not in the operator's configuration (known:"
            f" {known}); use one of them or leave it out",
        )
    for kind, part in ((HTTP_ROUTE.kind, spec.traffic.http), (GRPC_ROUTE.kind, spec.traffic.grpc)):
        if part is not None and kind not in gateway_kinds:
            return Problem(
                "GatewayAPIMissing",
                f"spec.traffic.gateway: this cluster has no {kind} (Gateway API CRDs); install them, or leave"
                " spec.traffic out: the weights are then approximated by replica counts",
            )
    if spec.rollout.ab_test is not None and spec.traffic.gateway is None:
        return Problem(
            "GatewayRequired",
            "spec.rollout.abTest: only a gateway can look at headers; set spec.traffic.gateway, or take"
            " canary or blueGreen",
        )
    return route_problem(spec, gateway)


def _image_missing(spec: ModelDeploymentSpec, config: OperatorConfig) -> Problem | None:
    """A Job has one image: what trains (and int4) and what converts other formats are in two,
    because together they would be a gigabyte.
    """
    heavy = next((i for i, step in enumerate(spec.optimization.steps) if step.trainer == "Needed"), None)
    if heavy is None:
        return None
    field = f"spec.optimization.steps[{heavy}].{spec.optimization.steps[heavy].chosen()[0]}"
    if spec.model.flavour:
        return Problem(
            "ImageFlavoursClash",
            f"{field}: the step needs the trainer image, spec.model.format: {spec.model.format} the image"
            f" {spec.model.flavour}, and a Job has one; leave the step out, or export the model to ONNX where"
            " it was trained",
        )
    if config.images.trainer is None:
        return Problem(
            "TrainerMissing",
            f"{field}: this operator has no trainer image, which the step needs; set trainer.image in the"
            " chart's values, or leave it out",
        )
    return None


def _uris(spec: ModelDeploymentSpec) -> list[tuple[str, str]]:
    found = [("spec.model.uri", spec.model.uri)]
    if spec.model.signature:
        found.append(("spec.model.signature.uri", spec.model.signature.uri or f"{spec.model.uri}.sig"))
    for i, step in enumerate(spec.optimization.steps):
        found += [
            (f"spec.optimization.steps[{i}].{path}.uri", source.uri)
            for path, source in step.sources().items()
        ]
    if spec.optimization.gate:
        found.append(("spec.optimization.gate.data.uri", spec.optimization.gate.data.uri))
    if spec.serving.tune and spec.serving.tune.data:
        found.append(("spec.serving.tune.data.uri", spec.serving.tune.data.uri))
    if spec.rollout.analysis.golden:
        found.append(("spec.rollout.analysis.golden.uri", spec.rollout.analysis.golden.uri))
    return found
