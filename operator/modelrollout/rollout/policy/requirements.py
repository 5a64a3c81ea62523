"""What the policies in force require of a spec before it is rolled out. Every message names the
field and the remedy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from fractions import Fraction
from itertools import chain

from modelrollout.analysis.providers.prometheus.confinement import USE_A_TEMPLATE
from modelrollout.analysis.providers.prometheus.custom_queries import own_query_problem
from modelrollout.api.uris import lies_in
from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.api.v1alpha1.policy import PolicyGates, Queries
from modelrollout.gpus import GpuTable, shown
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.policy.rules import Limit, Rules
from modelrollout.rollout.strategy import strategy_of


def first_violation(
    rules: Rules,
    spec: ModelDeploymentSpec,
    uris: Sequence[tuple[str, str]],
    gpus: Fraction,
    *,
    returns: bool = False,
) -> Problem | None:
    """The first requirement that ``spec`` violates. ``uris``: all URIs in it, with their fields;
    ``gpus``: of a new revision; ``returns``: spec returns to a version within its window, which may
    get all requests at once.
    """
    for name, why in rules.broken:
        return Problem(
            Reason.POLICY_INVALID,
            f"RolloutPolicy {name} cannot be read, so no rollout begins until it is corrected: {why}",
        )
    if problem := source_violation(rules, uris):
        return problem
    if problem := _code(rules, spec) or _unsigned_follow(rules, spec):
        return problem
    for name, gates in rules.gates:
        if missing := next(chain(_golden_missing(gates, spec), _missing(gates, spec)), None):
            return Problem(Reason.GATE_REQUIRED, f"{missing}; RolloutPolicy {name} demands it")
    if not returns and (problem := _undivided(rules, spec)):
        return problem
    for limit in rules.limits:
        if problem := too_small(limit, gpus):
            return problem
    return None


def sources(spec: ModelDeploymentSpec) -> list[tuple[str, str]]:
    """Every URI that Jobs would fetch, each with its field."""
    uris = [("spec.model.uri", spec.model.uri)]
    if spec.model.signature:
        uris.append(("spec.model.signature.uri", spec.model.signature.uri or f"{spec.model.uri}.sig"))
    for i, step in enumerate(spec.optimization.steps):
        uris += [
            (f"spec.optimization.steps[{i}].{path}.uri", source.uri)
            for path, source in step.sources().items()
        ]
    if spec.optimization.gate:
        uris.append(("spec.optimization.gate.data.uri", spec.optimization.gate.data.uri))
    if spec.serving.tune and spec.serving.tune.data:
        uris.append(("spec.serving.tune.data.uri", spec.serving.tune.data.uri))
    if spec.rollout.analysis.golden:
        uris.append(("spec.rollout.analysis.golden.uri", spec.rollout.analysis.golden.uri))
    return uris


def source_violation(rules: Rules, uris: Sequence[tuple[str, str]]) -> Problem | None:
    """The first URI outside the sources that a policy allows."""
    for name, sources in rules.sources:
        for field, uri in uris:
            prefixes = sources.models if field == "spec.model.uri" else sources.data
            if prefixes is not None and not any(lies_in(uri, prefix) for prefix in prefixes):
                return Problem(
                    Reason.SOURCE_NOT_ALLOWED,
                    f"{field}: {uri}: RolloutPolicy {name} allows only {', '.join(prefixes)}; copy it there",
                )
    return None


def _undivided(rules: Rules, spec: ModelDeploymentSpec) -> Problem | None:
    """Why a new version of this spec cannot get as little as the first weight, where metrics are
    mandatory.
    """
    most = rules.first_weight
    if most is None:
        return None
    policy = next(name for name, gates in rules.gates if any(not m.dry_run for m in gates.metrics or ()))
    demand = f"RolloutPolicy {policy} (gates.metrics) gives a new version {most} % at first"
    if spec.rollout.ab_test:
        return Problem(
            Reason.GATE_REQUIRED,
            f"spec.rollout.abTest: a header may choose all requests, and {demand}; use canary",
        )
    pods = max(1, spec.serving.replicas)
    if spec.traffic.gateway is not None or (
        strategy_of(spec.rollout) == "Canary" and most * (pods + 1) >= 100
    ):
        return None
    fewest = -(-100 // most) - 1
    remedy = (
        f"name a gateway, or use canary with at least {fewest} replicas, or have gates.maxFirstWeight raised"
    )
    return Problem(
        Reason.GATE_REQUIRED,
        f"spec.traffic.gateway: without one whole pods are the weight, and {demand}; {remedy}",
    )


def query_violation(
    rules: Rules, spec: ModelDeploymentSpec, namespace: str, name: str, unless_said: Queries, label: str
) -> Problem | None:
    """The first query of the spec's own that the operator will not run: none are allowed, or this
    one cannot be confined to the namespace by ``label``.
    """
    for metric in spec.rollout.analysis.metrics or ():
        if metric.query is None or metric.query in rules.promql:
            continue
        field = f"spec.rollout.analysis.metrics[{metric.name}].query"
        if rules.queries(unless_said) == "Templates":
            strict = (
                f"RolloutPolicy {policy} says gates.queries: Templates"
                for policy, g in rules.gates
                if g.queries == "Templates"
            )
            why = next(strict, "no RolloutPolicy says gates.queries: Own")
            known = ", ".join(sorted(rules.templates)) or "none yet"
            return Problem(
                Reason.QUERY_NOT_ALLOWED,
                f"{field}: PromQL of a spec's own is not allowed here ({why}); {USE_A_TEMPLATE}, of which"
                f" there are: {known}; or have the platform team write one, or allow own queries",
            )
        if problem := own_query_problem(metric.query, namespace, name, label):
            return Problem(problem.reason, f"{field}: {problem.message}")
    return None


def too_small(limit: Limit, gpus: Fraction) -> Problem | None:
    """Why the limit is too small even for this revision alone."""
    if limit.gpus is None or gpus <= limit.gpus:
        return None
    text = (
        f"spec.serving: the pods of a new revision ask for {shown(gpus)} GPUs, RolloutPolicy {limit.policy}"
        f" allows {limit.gpus} to all rollouts"
    )
    return Problem(Reason.LIMIT_TOO_SMALL, f"{text} together: ask for fewer, or have limits.gpus raised")


def _code(rules: Rules, spec: ModelDeploymentSpec) -> Problem | None:
    """Why the model may not run its own code: some policy must allow its source, and every policy
    that names sources must.
    """
    triton = spec.serving.triton
    if triton.code is None and triton.backend != "Python":
        return None
    text = f"spec.serving.triton.code: {spec.model.uri} may run its own code, which "
    return _opened(
        [(name, sources.code) for name, sources in rules.sources],
        spec.model.uri,
        Problem(Reason.CODE_NOT_ALLOWED, text),
        "code",
        "serve a format without code",
    )


def _unsigned_follow(rules: Rules, spec: ModelDeploymentSpec) -> Problem | None:
    """Why the source may not be followed without a signature: whoever may write there deploys, so
    some policy must allow the place, and every policy that names such places must.
    """
    if spec.model.follow is None or spec.model.signature is not None:
        return None
    text = f"spec.model.follow: whoever may write {spec.model.uri} deploys, without a signature, which "
    return _opened(
        [(name, sources.follow_unsigned) for name, sources in rules.sources],
        spec.model.uri,
        Problem(Reason.FOLLOW_UNSIGNED, text),
        "followUnsigned",
        "set spec.model.signature",
    )


def _opened(
    lists: Sequence[tuple[str, Sequence[str] | None]], uri: str, refusal: Problem, field: str, instead: str
) -> Problem | None:
    """``refusal``, completed, unless some policy lists the place of the URI, and every policy that
    lists any does.
    """
    places = [(name, prefixes) for name, prefixes in lists if prefixes is not None]
    if not places:
        remedy = f"have the platform team name its place in allowedSources.{field} of a RolloutPolicy"
        return Problem(refusal.reason, f"{refusal.message}no RolloutPolicy allows; {remedy}, or {instead}")
    for name, prefixes in places:
        if not any(lies_in(uri, prefix) for prefix in prefixes):
            only = f"RolloutPolicy {name} allows only in {', '.join(prefixes)}; copy it there, or {instead}"
            return Problem(refusal.reason, refusal.message + only)
    return None


def golden_violation(rules: Rules, spec: ModelDeploymentSpec) -> Problem | None:
    """What is missing of the golden data that policies require. Evaluate checks it again: a spec
    can be edited during the rollout, and a first version has no other proof.
    """
    for name, gates in rules.gates:
        if missing := next(_golden_missing(gates, spec), None):
            return Problem(Reason.GATE_REQUIRED, f"{missing}; RolloutPolicy {name} demands it")
    return None


def _golden_missing(gates: PolicyGates, spec: ModelDeploymentSpec) -> Iterator[str]:
    golden = spec.rollout.analysis.golden
    if golden is None:
        if gates.golden or gates.min_golden is not None:
            yield "spec.rollout.analysis.golden: give golden data"
        return
    if gates.min_golden is not None and (golden.min is None or golden.min < gates.min_golden):
        shown = "there is none" if golden.min is None else f"{golden.min:g} is less than that"
        yield f"spec.rollout.analysis.golden.min: at least {gates.min_golden:g}, {shown}"
    if gates.max_drop is not None and golden.max_drop > gates.max_drop:
        yield f"spec.rollout.analysis.golden.maxDrop: {golden.max_drop:g} is more than {gates.max_drop:g}"


def _missing(gates: PolicyGates, spec: ModelDeploymentSpec) -> Iterator[str]:
    gate = spec.optimization.gate
    if gates.digest and spec.model.follow is not None:
        yield "spec.model.follow: leave it out, and give the digest of each file in spec.model.sha256"
    elif gates.digest and spec.model.sha256 is None:
        yield "spec.model.sha256: give the digest of the file"
    if gates.held_out and spec.optimization.steps and gate is None:
        yield "spec.optimization.gate: give held-out data and budgets"
    if gates.max_drop is None:
        return
    for metric in gate.metrics if gate is not None and spec.optimization.steps else ():
        if metric.max_drop is None or metric.max_drop > gates.max_drop:
            shown = "it has none" if metric.max_drop is None else f"{metric.max_drop:g} is more than that"
            yield (
                f"spec.optimization.gate.metrics[{metric.name}].maxDrop: at most {gates.max_drop:g}, {shown}"
            )


def gpus_of_spec(spec: ModelDeploymentSpec, table: GpuTable) -> Fraction:
    """GPUs that all pods of a new revision count in a budget."""
    return gpus_of_pod(spec, table) * max(1, spec.serving.replicas)


def gpus_of_pod(spec: ModelDeploymentSpec, table: GpuTable) -> Fraction:
    """GPUs that one pod counts in a budget."""
    return table.share(spec.serving.resources.limits)
