"""Gathers what the cache has of one ModelDeployment. Sends no request."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from modelrollout.analysis.target import NOT_BY_GATEWAY
from modelrollout.api import names
from modelrollout.api.v1alpha1 import MirrorMethod, ModelDeploymentSpec, ModelDeploymentStatus
from modelrollout.config import OperatorConfig
from modelrollout.controller.observe.job_state import job_state
from modelrollout.controller.observe.pods import ending_servers
from modelrollout.controller.observe.revisions import is_lasting_child, own_children, revisions
from modelrollout.controller.observe.servers import servers
from modelrollout.controller.observe.validation import spec_violation
from modelrollout.kube.cache import Key, ObjectCache
from modelrollout.kube.kinds import (
    JOB,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    POD,
)
from modelrollout.kube.objects import Object, annotations_of, is_deleting
from modelrollout.problem import Problem
from modelrollout.resources.common import tenant_uri
from modelrollout.rollout.desired.jobs import stage_job
from modelrollout.rollout.desired.traffic import (
    split,
)
from modelrollout.rollout.policy.mandatory_metrics import is_return
from modelrollout.rollout.policy.rules import NO_RULES, Rules, spec_in_force
from modelrollout.rollout.recovery import sanitize
from modelrollout.rollout.snapshot import (
    TRAFFIC_REFUSALS,
    JobState,
    MirrorState,
    Observed,
    Revision,
    Traffic,
    Verb,
    in_flight,
)
from modelrollout.rollout.transitions import known_version
from modelrollout.rollout.views import Specified
from modelrollout.telemetry.redaction import mask_uris
from modelrollout.traffic.base import Router
from modelrollout.traffic.counting import counting
from modelrollout.traffic.gateway_facts import GatewayFacts
from modelrollout.traffic.hostnames import (
    NO_NAMES,
    Known,
    Standing,
    holder_of,
    route_name,
    standing,
    version_of,
)
from modelrollout.traffic.registry import (
    hosts_of,
    kind_for,
    live_split,
    overly_open_routes,
    router_for,
    routes_in,
)

# of a field's path, and of the error in it, since users choose the keys of maps
_MAX_CHARACTERS = 500
_MAX_TOLD = 200  # of what a person says of his verb


@dataclass(frozen=True)
class Observation:
    """One ModelDeployment with its objects, and what they say."""

    deployment: Object
    children: dict[tuple[str, str], Object]  # by kind and name
    observed: Observed
    router: Router | None
    hostnames: Standing = NO_NAMES
    folder: str = ""  # where artifacts of its namespace lie
    # routes that open more than clients may request, as they would be narrowed
    open_routes: tuple[Object, ...] = ()
    ending: tuple[Object, ...] = ()  # pods of its servers that are being deleted
    traffic: Traffic = field(default_factory=Traffic)
    gateway: GatewayFacts | None = None
    # the rest only where spec can be read
    job: Object | None = None  # that the present stage waits for
    work: JobState = field(default_factory=JobState)
    mirror: MirrorState = field(default_factory=MirrorState)
    spec_problem: Problem | None = None


def observe(
    cache: ObjectCache,
    key: Key,
    config: OperatorConfig,
    served_routes: frozenset[str],
    known: Known,
    gateway: GatewayFacts | None = None,
    rules: Rules = NO_RULES,
    now: datetime | None = None,
) -> Observation | None:
    """What is known of a ModelDeployment; None when it is gone or being deleted (the garbage
    collector takes its children).

    ``served_routes``: kinds of routes that the cluster has. ``known``: about host names
    (``controller.lookups.host_names``). ``gateway``: facts on its Gateway
    (``controller.lookups.gateways``). ``rules``: of the RolloutPolicies that match it.
    """
    deployment = cache.get(MODEL_DEPLOYMENT, *key)
    if deployment is None or is_deleting(deployment):
        return None
    labelled = cache.children(key)
    pods = [o for o in labelled if o["kind"] == POD.kind]
    children = own_children(
        deployment, {(o["kind"], o["metadata"]["name"]): o for o in labelled if not is_deleting(o)}
    )
    spec, parse_error = parse_spec(deployment, rules)
    status, folder = parse_status(deployment), tenant_uri(config, key[0])
    in_effect = spec.following(status.follow) if spec is not None else None
    known_revisions = revisions(children, folder)
    open_routes = tuple(overly_open_routes(children, key[1]))
    routes = routes_in(children)
    exact = spec is not None and kind_for(spec.traffic).exact
    stands = standing(
        holder_of(deployment),
        spec,
        hosts_of(routes),
        known,
        rules,
        *_versions(status, known_revisions),
        routes=frozenset(map(route_name, routes)),
    )
    observed = Observed(
        name=key[1],
        namespace=key[0],
        generation=deployment["metadata"].get("generation", 1),
        spec=in_effect,
        parse_error=parse_error,
        status=status,
        revisions=known_revisions,
        children=tuple(
            sorted(o["metadata"]["uid"] for o in children.values() if is_lasting_child(deployment, o))
        ),
        servers=servers(children, pods),
        verbs=_verbs(deployment, children, config.stamped_verbs),
        names_since=stands.since,
        live_split=live_split(key[1], children) if spec is not None else (),
        overly_open=tuple(f"{o['kind']} {o['metadata']['name']}" for o in open_routes),
        settle_seconds=config.gateway_metrics.settle_seconds,
        exact_weights=exact,
        counting=replace(
            counting(config.gateway_metrics, gateway),
            routes=tuple(sorted({o["metadata"]["name"] for o in routes})),
        )
        if exact
        else NOT_BY_GATEWAY,
        rules=rules,
        templates=rules.templates,
        mandatory=rules.mandatory,
        gpu_table=config.gpu_table,
    )
    if spec is None:
        router = router_for(
            observed,
            children,
            config,
            withheld=stands.lost,
            guest_at=stands.guest_at,
            gateway=gateway,
        )
        traffic = router.programmed(split(observed), children, observed.servers)
        return Observation(
            deployment,
            children,
            observed,
            router,
            stands,
            folder,
            open_routes,
            traffic=traffic,
            gateway=gateway,
        )
    returns = now is not None and is_return(observed, known_version(Specified.of(observed)), now)
    violation = spec_violation(key, spec, config, served_routes, gateway, rules, returns=returns)
    if violation is None or violation.reason not in TRAFFIC_REFUSALS:
        violation = kind_for(spec.traffic).refusal(spec, key[1], children) or violation
    granted = stands.settled and (violation is None or violation.reason not in TRAFFIC_REFUSALS)
    # only an accepted spec claims names, except for the one that no other ModelDeployment can have
    if violation is not None:
        stands = replace(stands, free=tuple(h for h in stands.free if h == names.own_name(*key)))
    mirror, no_mirror = _mirror(spec, gateway, config)
    spec_problem = violation or stands.problem or no_mirror
    component_and_name = stage_job(observed)
    job = children.get((JOB.kind, component_and_name[1])) if component_and_name else None
    router = router_for(
        observed,
        children,
        config,
        granted=granted,
        withheld=stands.lost,
        guest_at=stands.guest_at,
        gateway=gateway,
    )
    traffic = router.programmed(split(observed), children, observed.servers)
    if (
        not traffic.programmed
        and traffic.problem is None
        and spec_problem
        and spec_problem.reason in TRAFFIC_REFUSALS
    ):
        traffic = replace(traffic, problem=spec_problem)
    return Observation(
        deployment,
        children,
        observed,
        router,
        stands,
        folder,
        open_routes,
        ending_servers(pods),
        traffic,
        gateway,
        job,
        job_state(job, pods, folder) if job else JobState(),
        MirrorState(mirror, no_mirror, router.mirror_accepted(children)),
        spec_problem,
    )


def _versions(status: ModelDeploymentStatus, known: Iterable[Revision]) -> tuple[str | None, str | None]:
    """The stable version and the one in flight, as claims of host names record them."""

    def of(name: str | None) -> str | None:
        revision = next((r for r in known if r.name == name), None)
        return (
            version_of(
                revision.input,
                revision.sha256,
                revision.status.artifact.digest if revision.status.artifact else "",
            )
            if revision
            else None
        )

    in_flight_revision = (
        status.rollout.revision if status.rollout is not None and in_flight(status.rollout) else None
    )
    return (of(status.stable.revision) or "unknown") if status.stable else None, of(in_flight_revision)


def _mirror(
    spec: ModelDeploymentSpec, gateway: GatewayFacts | None, config: OperatorConfig
) -> tuple[MirrorMethod | None, Problem | None]:
    """How requests are mirrored, if spec asks for it, or why they cannot be."""
    if spec.rollout.shadow is None:
        return None, None
    way = kind_for(spec.traffic).mirror_method(spec, gateway, config)
    return (None, way) if isinstance(way, Problem) else (way, None)


def parse_spec(deployment: Object, rules: Rules) -> tuple[ModelDeploymentSpec | None, str | None]:
    """The spec, with the policies' defaults for fields that spec.rollout leaves out; or why it is
    invalid.
    """
    try:
        return (
            ModelDeploymentSpec.model_validate(spec_in_force(deployment.get("spec") or {}, rules.defaults)),
            None,
        )
    except ValidationError as e:
        problems = "; ".join(
            f"spec.{'.'.join(map(str, err['loc']))[:_MAX_CHARACTERS]}: {err['msg'][:_MAX_CHARACTERS]}"
            for err in e.errors()[:5]
        )
        # a map's key is part of a field's path, and the user's
        return None, mask_uris(f"{problems}; correct these fields")


def parse_status(deployment: Object) -> ModelDeploymentStatus:
    """The valid part of the status. ``rollout.recovery`` restores the rest from the revisions and
    the route.
    """
    raw = deployment.get("status") or {}
    try:
        return sanitize(ModelDeploymentStatus.model_validate(raw))
    except ValidationError:
        pass
    kept: dict[str, Any] = {}
    for name, value in raw.items():
        with contextlib.suppress(ValidationError):
            ModelDeploymentStatus.model_validate({name: value})
            kept[name] = value
    return sanitize(ModelDeploymentStatus.model_validate(kept))


def _verbs(deployment: Object, children: Mapping[tuple[str, str], Object], stamped: bool) -> tuple[Verb, ...]:
    """``stamped``: the API server says who requested them; otherwise anybody could write it."""
    verbs: list[Verb] = []
    for o in (deployment, *(o for (kind, _), o in children.items() if kind == MODEL_REVISION.kind)):
        annotations = annotations_of(o)
        revision = "" if o is deployment else o["metadata"]["name"]
        for verb in names.VERBS if revision else ("retry", "abort"):
            words = str(annotations.get(names.verb_annotation(verb), "")).split()
            if words:
                step = words[0] if len(words) > 1 else None
                by = annotations.get(names.author_annotation(verb)) if stamped else None
                reason = annotations.get(names.reason_annotation(verb))
                verbs.append(Verb(verb, revision, words[-1], step, _told(by), _told(reason)))
    return tuple(verbs)


def _told(value: object) -> str | None:
    """An annotation's text in one line of bounded length; None where there is none."""
    text = " ".join(str(value or "").split())
    return text[:_MAX_TOLD] or None
