"""What a spec uses beyond its own model: images, a service account, Secrets of its namespace, and
nodes that other pods need.

The author of a ModelDeployment can name these without having rights to them, so RolloutPolicies say
which ones may be named. Every message names the field and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from pydantic.alias_generators import to_camel

from modelrollout.api.v1alpha1 import ApiModel, LocalName, ModelDeploymentSpec, SecretKey
from modelrollout.config import OperatorConfig
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.policy.rules import Rules

DEFAULT_ACCOUNT = "default"  # of pods that name no account
_ANTI_AFFINITY = "requiredDuringSchedulingIgnoredDuringExecution"


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
        or keeps_others_off(spec, namespace)
    )


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
    """A store's own Secret is always allowed: the platform configured it."""
    for field, secret, uri in secrets(spec):
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
            for name in type(value).model_fields:
                yield from _secrets(getattr(value, name), f"{path}.{to_camel(name)}", opened)
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
