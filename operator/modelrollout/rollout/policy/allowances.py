"""What a spec uses beyond its own model: images, a service account, Secrets of its namespace, and
nodes that other pods need.

The author of a ModelDeployment can name these without having rights to them, so RolloutPolicies say
which ones may be named. Every message names the field and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from modelrollout.api.v1alpha1 import (
    ApiModel,
    Filters,
    LocalName,
    ModelDeploymentSpec,
    Pod,
    SecretKey,
    Serving,
)
from modelrollout.config import OperatorConfig, PodRules
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.policy.rules import Rules

DEFAULT_ACCOUNT = "default"  # of pods that name no account
DEFAULT_SCHEDULER = "default-scheduler"
_ANTI_AFFINITY = "requiredDuringSchedulingIgnoredDuringExecution"
_POD = "spec.serving.pod"
_CACHE = "spec.serving.accelerator.tensorRT.cache"


class NamedSecret(NamedTuple):
    """A Secret and the field that names it. ``uri``: of the store that it opens, if any."""

    field: str
    name: str
    uri: str | None


def allowance_violation(
    rules: Rules, spec: ModelDeploymentSpec, namespace: str, config: OperatorConfig
) -> Problem | None:
    """The first thing that the spec may not use."""
    return (
        _image(rules, spec, config)
        or _account(rules, spec, config)
        or _secret(rules, spec, config)
        or _secret_of_pods(rules, spec, config)
        or _pod(rules, spec, config)
        or keeps_others_off(spec, namespace)
    )


def filter_violation(rules: Rules, spec: ModelDeploymentSpec, config: OperatorConfig) -> Problem | None:
    """The first filter of the spec's routes that may not be."""
    filters = spec.traffic.filters
    if filters is None:
        return None
    for name, gates in rules.gates:
        if gates.filters == "Forbid":
            return _filter(
                f"spec.traffic.filters: RolloutPolicy {name} (gates.filters) forbids filters; leave them out"
            )
    for i, ref in enumerate(filters.extension_refs or ()):
        if not config.routes.names(ref.group, ref.kind):
            return _filter(
                f"spec.traffic.filters.extensionRefs[{i}]: the operator's configuration does not name"
                f" {ref.kind} of {ref.group} (routes.extensionRefs); leave it out, or have the platform team"
                " add the kind"
            )
    test = spec.rollout.ab_test.headers if spec.rollout.ab_test else []
    chosen_by = {h.name.lower() for h in test}
    for field, header in _changed_headers(filters):
        name = header.lower()
        if name in chosen_by:
            why = "spec.rollout.abTest chooses the version by it"
        elif name in _PROTOCOL or name.startswith(_PROTECTED):
            why = "it belongs to the operator or to the protocol"
        else:
            continue
        return _filter(f"{field}: {header}: {why}; leave it out")
    return None


# Headers that say to whom a request goes, where a message ends, and what became of a call: the
# gateway counts by the last.
_PROTOCOL = frozenset(
    {
        "connection", "content-length", "host", "keep-alive", "proxy-connection", "te", "trailer",
        "transfer-encoding", "upgrade",
    }
)  # fmt: skip
# The servers' key is one of the operator's; Triton reads it from metadata of gRPC by the second.
_PROTECTED = ("x-modelrollout-", "triton-grpc-protocol-", "grpc-")


def _changed_headers(filters: Filters) -> Iterator[tuple[str, str]]:
    """Every header that the filters change, with its field."""
    for part, modifier in (
        ("requestHeaderModifier", filters.request_header_modifier),
        ("responseHeaderModifier", filters.response_header_modifier),
    ):
        if modifier is None:
            continue
        where = f"spec.traffic.filters.{part}"
        for way, headers in (("set", modifier.set_), ("add", modifier.add)):
            yield from ((f"{where}.{way}[{i}]", h.name) for i, h in enumerate(headers or ()))
        yield from ((f"{where}.remove[{i}]", name) for i, name in enumerate(modifier.remove or ()))


def _filter(text: str) -> Problem:
    return Problem(Reason.FILTER_NOT_ALLOWED, text)


def secrets(spec: ModelDeploymentSpec) -> Iterator[NamedSecret]:
    """Every Secret that the spec names, in any field."""
    return _secrets(spec, "spec", None)


def keeps_others_off(spec: ModelDeploymentSpec, namespace: str) -> Problem | None:
    """Required anti-affinity works both ways: the scheduler keeps matching pods off the node for as
    long as this pod is there.
    """
    terms: Any = spec.serving.affinity or {}
    for key in ("podAntiAffinity", _ANTI_AFFINITY):
        terms = terms.get(key) if isinstance(terms, dict) else None
    for index, term in enumerate(terms if isinstance(terms, list) else []):
        if not isinstance(term, dict):
            continue  # stored before the field had a schema; the API server refuses the pods
        named = term.get("namespaces") or []
        others = sorted({str(n) for n in (named if isinstance(named, list) else [named]) if n != namespace})
        if others or term.get("namespaceSelector") is not None:
            field = f"spec.serving.affinity.podAntiAffinity.{_ANTI_AFFINITY}[{index}]"
            which = f"namespaces: {', '.join(others)}" if others else "namespaceSelector"
            return Problem(
                Reason.AFFINITY_NOT_ALLOWED,
                f"{field}.{which}: required anti-affinity would keep pods of other namespaces off the node;"
                " leave namespaces and namespaceSelector out, or write it as"
                " preferredDuringSchedulingIgnoredDuringExecution",
            )
    return None


def _image(rules: Rules, spec: ModelDeploymentSpec, config: OperatorConfig) -> Problem | None:
    allowed = [(name, sources.images) for name, sources in rules.sources if sources.images is not None]
    for field, image in _images(spec):
        if not allowed and config.workloads.only_by_policy:
            return _needs_policy(Reason.IMAGE_NOT_ALLOWED, f"{field}: {image}", "allowedSources.images")
        for name, prefixes in allowed:
            if not any(_holds(prefix, image) for prefix in prefixes):
                return Problem(
                    Reason.IMAGE_NOT_ALLOWED,
                    f"{field}: {image}: RolloutPolicy {name} allows only {', '.join(prefixes)}; push it"
                    " there",
                )
    return None


def _account(rules: Rules, spec: ModelDeploymentSpec, config: OperatorConfig) -> Problem | None:
    """No token is mounted, but a cloud grants an account's identity to pods by name alone."""
    field, named = "spec.serving.serviceAccountName", spec.serving.service_account_name
    if not rules.accounts and named not in (None, DEFAULT_ACCOUNT) and config.workloads.only_by_policy:
        return _needs_policy(
            Reason.SERVICE_ACCOUNT_NOT_ALLOWED, f"{field}: {named}", "allowedServiceAccounts"
        )
    for name, patterns in rules.accounts:
        if not _fits(named or DEFAULT_ACCOUNT, patterns):
            what = named or f"it is left out, so pods run as {DEFAULT_ACCOUNT}"
            return Problem(
                Reason.SERVICE_ACCOUNT_NOT_ALLOWED,
                f"{field}: {what}: RolloutPolicy {name} allows only {', '.join(patterns)}; name one of them",
            )
    return None


def _secret(rules: Rules, spec: ModelDeploymentSpec, config: OperatorConfig) -> Problem | None:
    """Those that our Jobs and the kubelet read, and no code of a model. A store's own Secret is
    always allowed: the platform configured it.
    """
    if not rules.secrets and not config.workloads.only_by_policy:
        return None  # the spec is not searched for what every pass would allow
    for field, secret, uri in secrets(spec):
        if field.startswith(f"{_POD}."):
            continue
        store = config.store_for(uri) if uri else None
        if store is not None and store.secret_name == secret:
            continue
        if not rules.secrets and config.workloads.only_by_policy:
            return _needs_policy(Reason.SECRET_NOT_ALLOWED, f"{field}: {secret}", "allowedSecrets")
        for name, patterns in rules.secrets:
            if not _fits(secret, patterns):
                known = (
                    [*patterns, "each store's own Secret, which is used when none is named"]
                    if uri
                    else patterns
                )
                violation = (
                    f"{field}: {secret}: RolloutPolicy {name} allows only {', '.join(known) or 'none'}"
                )
                return Problem(
                    Reason.SECRET_NOT_ALLOWED,
                    f"{violation}; name one of them, leave it out, or have it allowed",
                )
    return None


def _secret_of_pods(rules: Rules, spec: ModelDeploymentSpec, config: OperatorConfig) -> Problem | None:
    """Those that code of the model and of its image reads. A policy that lists Secrets for Jobs
    (``allowedSecrets``) hands none of them to servers: that is a list of its own.
    """
    lists: dict[str, Sequence[str]] = {
        **{name: () for name, _ in rules.secrets},
        **{name: pods.secrets for name, pods in rules.pods if pods.secrets is not None},
    }
    stores = {config.artifacts.read_secret_name, *(s.secret_name for s in (*config.stores, config.artifacts))}
    for field, secret, _ in _secrets(spec.serving.pod, _POD, None):
        what = f"{field}: {secret}"
        if secret in stores:
            return Problem(
                Reason.SECRET_NOT_ALLOWED,
                f"{what}: the operator's configuration names it for a store (secretName, readSecretName), so"
                " only Jobs and what fetches models have it; leave it out, or give the server a Secret of"
                " its own",
            )
        if not lists and config.workloads.only_by_policy:
            return _needs_policy(Reason.SECRET_NOT_ALLOWED, what, "allowedPods.secrets")
        for name, patterns in lists.items():
            if not _fits(secret, patterns):
                return Problem(
                    Reason.SECRET_NOT_ALLOWED,
                    f"{what}: RolloutPolicy {name} allows only {', '.join(patterns) or 'none'} to servers"
                    " (allowedPods.secrets; allowedSecrets is for Jobs and to pull images); name one of"
                    " them, leave it out, or have it allowed",
                )
    return None


class _PodField(NamedTuple):
    """What the spec names in one field of its pods. ``listed``: what the configuration lists for
    it, None where it lists nothing.
    """

    field: str
    names: tuple[str, ...]
    allowed: str  # list of allowedPods, and of workloads.pods
    listed: Sequence[str] | None


def _pod_fields(serving: Serving, config: OperatorConfig) -> Iterator[_PodField]:
    rules, pod = config.workloads.pods, serving.pod or Pod()
    scheduler = None if pod.scheduler_name == DEFAULT_SCHEDULER else pod.scheduler_name
    yield _PodField(f"{_POD}.labels", tuple(pod.labels or ()), "labels", rules.labels)
    yield _PodField(f"{_POD}.annotations", tuple(pod.annotations or ()), "annotations", rules.annotations)
    yield _PodField(
        f"{_POD}.priorityClassName", _one(pod.priority_class_name), "priorityClasses", rules.priority_classes
    )
    yield _PodField(f"{_POD}.runtimeClassName", _one(pod.runtime_class_name), "runtimeClasses", None)
    yield _PodField(f"{_POD}.schedulerName", _one(scheduler), "schedulers", None)
    yield _PodField(f"{_POD}.env", tuple(e.name for e in pod.env or ()), "env", None)
    claims = tuple(
        v.persistent_volume_claim.claim_name for v in pod.volumes or () if v.persistent_volume_claim
    )
    yield _PodField(f"{_POD}.volumes", claims, "volumeClaims", None)
    cache = serving.accelerator.tensor_rt.cache if serving.accelerator is not None else None
    if cache is not None:
        claim = cache.persistent_volume_claim.claim_name
        yield _PodField(_CACHE, (claim,), "volumeClaims", None)


def _pod(rules: Rules, spec: ModelDeploymentSpec, config: OperatorConfig) -> Problem | None:
    """A pod's label is what others select by, a priority displaces their pods, and a class or a
    scheduler may lead around what the platform demands.
    """
    for part in _pod_fields(spec.serving, config):
        policies = [
            (name, patterns)
            for name, pods in rules.pods
            if (patterns := pods.wire().get(part.allowed)) is not None
        ]
        for named in part.names:
            what = f"{part.field}: {named}"
            if part.listed is not None and not PodRules.lists(part.listed, named):
                return Problem(
                    Reason.POD_FIELD_NOT_ALLOWED,
                    f"{what}: the operator's configuration does not list it (workloads.pods.{part.allowed}:"
                    f" {', '.join(part.listed) or 'none'}); leave it out, or have the platform team add it",
                )
            if part.listed is None and not policies and config.workloads.only_by_policy:
                return _needs_policy(Reason.POD_FIELD_NOT_ALLOWED, what, f"allowedPods.{part.allowed}")
            for policy, patterns in policies:
                if not _fits(named, patterns):
                    return Problem(
                        Reason.POD_FIELD_NOT_ALLOWED,
                        f"{what}: RolloutPolicy {policy} (allowedPods.{part.allowed}) allows only"
                        f" {', '.join(patterns) or 'none'}; leave it out, or have it allowed",
                    )
    return None


def _one(name: str | None) -> tuple[str, ...]:
    return () if name is None else (name,)


def _needs_policy(reason: str, what: str, field: str) -> Problem:
    return Problem(
        reason,
        f"{what}: no RolloutPolicy allows any ({field}), and the operator's configuration says"
        " workloads.onlyByPolicy; leave it out, or have the platform team allow it",
    )


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns)


def _secrets(value: object, path: str, uri: str | None) -> Iterator[NamedSecret]:
    match value:
        case LocalName() | SecretKey():
            yield NamedSecret(f"{path}.name", value.name, uri)
        case ApiModel():
            opened = getattr(value, "uri", uri)
            for name, field in type(value).model_fields.items():
                inner = getattr(value, name)
                if isinstance(inner, ApiModel | list | tuple):
                    yield from _secrets(inner, f"{path}.{field.alias}", opened)
        case list() | tuple():
            for index, item in enumerate(value):
                yield from _secrets(item, f"{path}[{index}]", uri)


def _images(spec: ModelDeploymentSpec) -> Iterator[tuple[str, str]]:
    """Images that the spec names, with their fields."""
    if spec.serving.triton.image:
        yield "spec.serving.triton.image", spec.serving.triton.image
    for index, step in enumerate(spec.optimization.steps):
        if step.container:
            yield f"spec.optimization.steps[{index}].container.image", step.container.image


def _holds(prefix: str, image: str) -> bool:
    """Whether the image is in that registry or folder, or of that repository. After a registry's
    name, a colon begins a port and not a tag.
    """
    place = prefix.rstrip("/")
    return image.startswith(f"{place}/") or ("/" in place and image.startswith((f"{place}:", f"{place}@")))
