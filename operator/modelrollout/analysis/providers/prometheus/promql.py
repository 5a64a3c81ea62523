"""PromQL for raw counters: one instant query for each metric, answering for canary and stable and
for the times of the scrapes.

One query is one consistent look. Failed and served requests that come from two queries can lie on
two sides of a scrape, and do not belong together. Its series carry a label ``reading``: ``count``
(or ``good`` and ``bad``), and ``scraped`` for the time of the newest scrape of a process.

Whose series count is a matter of labels that the scrape sets (``Sources``): what a series says of
itself, whoever is scraped may write.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.confinement import USE_A_TEMPLATE, confine
from modelrollout.api import names
from modelrollout.api.v1alpha1 import Metric, RevisionRef, seconds
from modelrollout.config import Queries

Profile = Literal["traefik", "none"]
Shape = Literal["codes", "buckets", "outcomes", "labels", "pairs", "value"]

READING = "reading"
PLACEHOLDERS = ("revision", "stable", "version", "stableVersion", "weight", "namespace", "name", "window")
# seconds: {{window}} of an own query grows no further, so that what began well is not refused on
# its way
LONGEST_OWN_WINDOW = 3600.0
# at the baseline a process is still known for this long after its last scrape
BASELINE_WINDOW = "10m"
# What a process itself writes on each counter, without what a scrape adds.
_OWN_LABELS = {
    "traefik_service_requests_total": ("service", "code", "method", "protocol"),
    "traefik_service_request_duration_seconds_bucket": ("service", "code", "method", "protocol", "le"),
    "modelrollout_feedback_total": ("model_namespace", "name", "version", "slice", "result"),
    "modelrollout_shadow_total": ("name", "canary", "stable", "result"),
    "nv_inference_request_success": ("revision", "model", "version"),
    "nv_inference_request_failure": ("revision", "model", "version", "reason"),
}
_POD_BASE = 58
_PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}")


@dataclass(frozen=True, slots=True)
class Sources:
    """Who may count, by labels that the scrape sets. ``gateway`` and ``feedback`` are matchers;
    none: whoever has the metric.

    The comparer and the servers run in the model's namespace, and whoever may make pods there is
    trusted: he could as well make some that the model's Service takes for its servers. So
    ``namespace`` is the bar. ``pod`` keeps a namespace's other pods from being taken for these, and
    the servers of a version from agreeing with themselves; a name's pattern also finds pods that
    are gone, in the history too. A scrape that does not set it may be.
    """

    gateway: str = ""
    feedback: str = ""
    namespace: str = "namespace"
    pod: str = "pod"
    labels_per_row: float = 0.0  # that one row of an answer may get; 0: it is not looked at


@dataclass(frozen=True, slots=True)
class Target:
    """What is compared, and who counts it.

    ``profile`` is ``traefik`` only where a gateway carries the traffic; without one
    (replica-weighted Service) it is ``none``, and Triton's own counters are asked.
    ``window_seconds``: how far a custom query may look back, best the time since the step began to
    be observed. ``promql``: queries that policies have; of any other ``queries`` says whether it is
    asked at all.
    """

    namespace: str
    name: str
    canary: RevisionRef
    stable: RevisionRef | None
    profile: Profile
    window_seconds: float = 60.0
    weight: int = 0  # of the canary, percent
    sources: Sources = Sources()
    # since when all rows of the canary were served, the labels of which may come now; 0: nobody
    # knows
    rows_seconds: float = 0.0
    pods: int = 0  # servers of the canary
    promql: frozenset[str] = frozenset()
    queries: Queries = "Templates"


@dataclass(frozen=True, slots=True)
class Query:
    """A query for a metric and how its answer is read. ``objective`` in seconds, for ``buckets``;
    ``slices``, for ``labels``, are read apart too.

    ``own``: written by the namespace itself, and asked apart from all others.
    """

    metric: str
    promql: str
    shape: Shape
    objective: float | None = None
    slices: tuple[str, ...] = ()
    own: bool = False


def build(metric: Metric, target: Target, *, baseline: bool) -> Query | MeasurementProblem:
    """The query for this metric. ``baseline``: the first look of a step, which has to know every
    process, also one whose last scrape failed.
    """
    if metric.query is not None:
        return _custom(metric.name, metric.query, target)
    if metric.name == "accuracy":
        slices = tuple(part.name for part in metric.slices or ())
        return Query(metric.name, _feedback(target, baseline, bool(slices)), "labels", slices=slices)
    if metric.name == "errors":
        if target.profile == "traefik":
            return Query(
                metric.name,
                _counters(
                    "traefik_service_requests_total", [_services(target)], "service", ("code",), baseline
                ),
                "codes",
            )
        return Query(metric.name, _triton(target, baseline), "outcomes")
    if metric.name == "latency":
        if target.profile != "traefik":
            return MeasurementProblem(
                "NoSource",
                "latency needs a gateway with a request histogram: set spec.traffic.gateway, or leave the"
                " metric out",
            )
        objective = round(seconds(metric.objective or "0s"), 9)
        bounds = "|".join(_bound_forms(objective))
        selector = f'{_services(target)},le=~"{bounds}|\\\\+Inf"'
        return Query(
            metric.name,
            _counters(
                "traefik_service_request_duration_seconds_bucket", [selector], "service", ("le",), baseline
            ),
            "buckets",
            objective,
        )
    return MeasurementProblem(
        "NoSource",
        f"nothing measures {metric.name}: built in are accuracy, errors and latency; any other metric needs"
        " query: PROMQL",
    )


def bounds_query(target: Target) -> str:
    """The bucket bounds that the gateway's histogram has, asked only when the objective is none of
    them.
    """
    return f"count by (le) (traefik_service_request_duration_seconds_bucket{{{_services(target)}}})"


def rows_query(target: Target) -> str:
    """The most rows that the canary's servers can have answered, also those that are gone; how many
    are scraped, and the oldest of their scrapes.

    A counter that was reset had at most its largest value each time. Answers from Triton's cache
    are in the requests, and not among its inferences.
    """
    pods = _pods(target, [target.canary.revision]).removesuffix('|"') + '"'
    window = f"{max(1, round(target.rows_seconds))}s"
    series = [f"{metric}{{{pods}}}" for metric in ("nv_inference_count", "nv_inference_request_success")]
    rows = " + ".join(f"sum(max_over_time({s}[{window}]) * (1 + resets({s}[{window}])))" for s in series)
    found = {
        "count": rows,
        "scraped": f"min(timestamp({series[0]}))",
        "servers": f"count(count by (instance) ({series[0]}))",
    }
    return " or ".join(
        f'label_replace({promql}, "{READING}", "{reading}", "", "")' for reading, promql in found.items()
    )


def service_labels(namespace: str, revision: str) -> dict[str, str]:
    """Traefik's ``service`` labels of a revision's Service, each with its protocol.

    The two kinds of route name it in different ways, and characters other than letters and digits
    become one dash (Traefik 3.6).
    """

    def label(*parts: str) -> str:
        return "-".join(re.findall(r"[^\W_]+", "-".join(parts))) + "@kubernetesgateway"

    return {
        label(namespace, revision, "http", str(names.PORT_HTTP)): "http",
        label(namespace, revision, str(names.PORT_GRPC), "grpc"): "grpc",
    }


def unknown_placeholders(query: str) -> list[str]:
    """Placeholders in a custom query that nothing fills in, as written."""
    return [p for p in _PLACEHOLDER.findall(query) if p not in PLACEHOLDERS]


def own_query_problem(query: str, namespace: str, name: str, label: str) -> MeasurementProblem | None:
    """Why a spec's own query could not be asked even where own ones are allowed; with the longest
    window and numbers, so that none grows out of its bounds.
    """
    if unknown_placeholders(query):
        return None  # told by the look
    side = RevisionRef(revision=names.revision_name(namespace, name, {}, ""), number=999_999)
    values = _values(Target(namespace, name, side, side, "none", LONGEST_OWN_WINDOW, weight=100))
    found = confine(_filled(query, values), namespace, label)
    return found if isinstance(found, MeasurementProblem) else None


def _custom(name: str, query: str, target: Target) -> Query | MeasurementProblem:
    own = query not in target.promql
    if own and target.queries == "Templates":
        return MeasurementProblem(
            "QueryNotAllowed", f"metric {name}: PromQL of a spec's own is not allowed here; {USE_A_TEMPLATE}"
        )
    unknown = unknown_placeholders(query)
    if unknown:
        known = ", ".join(f"{{{{{p}}}}}" for p in PLACEHOLDERS)
        return MeasurementProblem(
            "UnknownPlaceholder",
            f"metric {name}: {{{{{unknown[0]}}}}} means nothing in a query; known are {known}",
        )
    values = _values(
        replace(target, window_seconds=min(target.window_seconds, LONGEST_OWN_WINDOW)) if own else target
    )
    without = next((p for p in _PLACEHOLDER.findall(query) if values[p] is None), None)
    if without is not None:
        return MeasurementProblem(
            "NoStableData",
            f"metric {name}: its query names {{{{{without}}}}}, and no stable revision has traffic beside it",
        )
    if not own:
        return Query(name, _filled(query, values), "value")
    text = confine(_filled(query, values), target.namespace, target.sources.namespace)
    return (
        MeasurementProblem(text.reason, f"metric {name}: {text.message}")
        if isinstance(text, MeasurementProblem)
        else Query(name, text, "value", own=True)
    )


def _values(target: Target) -> dict[str, str | None]:
    """What the placeholders stand for: names of Kubernetes objects, numbers and a duration. Nothing
    in them ends a PromQL string.
    """
    return {
        "revision": target.canary.revision,
        "stable": target.stable.revision if target.stable else None,
        "version": str(target.canary.number),
        "stableVersion": str(target.stable.number) if target.stable else None,
        "weight": str(target.weight),
        "namespace": target.namespace,
        "name": target.name,
        "window": f"{max(1, round(target.window_seconds))}s",
    }


def _filled(query: str, values: Mapping[str, str | None]) -> str:
    return _PLACEHOLDER.sub(lambda m: values[m[1]] or "", query)


def _services(target: Target) -> str:
    sides = [r for r in (target.canary, target.stable) if r]
    services = _any([label for r in sides for label in service_labels(target.namespace, r.revision)])
    return _all(f'service=~"{services}"', target.sources.gateway)


def agreement_query(target: Target, *, baseline: bool) -> Query:
    """The pairs that the comparer counted for the canary against stable."""
    stable = target.stable.number if target.stable else 0
    comparer = _pods(target, [names.shadow_name(target.canary.revision)])
    selector = f'name="{target.name}",canary="{target.canary.number}",stable="{stable}",result=~"agree|disagree|canary_error",{comparer}'  # noqa: E501
    return Query(
        "agreement",
        _counters("modelrollout_shadow_total", [selector], "canary", ("result",), baseline),
        "pairs",
    )


def _feedback(target: Target, baseline: bool, by_slice: bool) -> str:
    versions = _any([str(r.number) for r in (target.canary, target.stable) if r])
    selector = _all(
        f'model_namespace="{target.namespace}",name="{target.name}",version=~"{versions}"',
        target.sources.feedback,
    )
    kinds = ("result", "slice") if by_slice else ("result",)
    return _counters("modelrollout_feedback_total", [selector], "version", kinds, baseline)


def _triton(target: Target, baseline: bool) -> str:
    revisions = [r.revision for r in (target.canary, target.stable) if r]
    selector = f'revision=~"{_any(revisions)}",{_pods(target, revisions)}'
    good = _part("good", "nv_inference_request_success", [selector], ("revision", "instance"), baseline)
    bad = _part(
        "bad",
        "nv_inference_request_failure",
        [f'{selector},reason!="CANCELED"'],
        ("revision", "instance"),
        baseline,
    )
    return f"{good} or {bad} or {_times('nv_inference_request_success', [selector], 'revision')}"


def _pods(target: Target, deployments: Sequence[str]) -> str:
    """Matchers of the pods of these Deployments, and of what the scrape gives no pod. A name ends
    in the template's hash, a dash and five characters; Kubernetes cuts it at 58 before those.
    """
    prefixes = _any([f"{d}-"[:_POD_BASE] for d in deployments])
    return f'{target.sources.namespace}="{target.namespace}",{target.sources.pod}=~"(?:{prefixes})[a-z0-9]*-?[a-z0-9]{{5}}|"'  # noqa: E501


def _counters(metric: str, selectors: Sequence[str], side: str, kinds: Sequence[str], baseline: bool) -> str:
    return (
        f"{_part('count', metric, selectors, (side, 'instance', *kinds), baseline)} or"
        f" {_times(metric, selectors, side)}"
    )


def _part(reading: str, metric: str, selectors: Sequence[str], by: Sequence[str], baseline: bool) -> str:
    """Counters by process, which is a scraped instance."""

    def total(vector: str) -> str:
        # The inner maximum leaves one series where two jobs scrape the same instance, or its
        # requests would count twice.
        return f"sum by ({', '.join(by)}) (max by (instance, {', '.join(_OWN_LABELS[metric])}) ({vector}))"

    counters = " or ".join(total(f"{metric}{{{s}}}") for s in selectors)
    if baseline:
        process = ", ".join(by[:2])
        gone = [
            f"({total(f'last_over_time({metric}{{{s}}}[{BASELINE_WINDOW}])')} unless on ({process})"
            f" {metric}{{{s}}})"
            for s in selectors
        ]
        counters = " or ".join([counters, *gone])
    return f'label_replace({counters}, "{READING}", "{reading}", "", "")'


def _times(metric: str, selectors: Sequence[str], side: str) -> str:
    # timestamp() gives the time of the scrape only for a bare selector, so each gets its own
    times = " or ".join(f"max by ({side}, instance) (timestamp({metric}{{{s}}}))" for s in selectors)
    return f'label_replace({times}, "{READING}", "scraped", "", "")'


def _all(*matchers: str) -> str:
    return ",".join(m for m in matchers if m)


def _any(values: Sequence[str]) -> str:
    """A regular expression in a PromQL string for exactly these values: names of Kubernetes
    objects, where only the dot is special.
    """
    return "|".join(v.replace(".", "\\\\.") for v in values)


def _bound_forms(objective: float) -> list[str]:
    """How ``le`` may write a bound: Prometheus 3 writes whole numbers as 1.0, those before as 1."""
    text = repr(objective)
    forms = [text, text.removesuffix(".0")] if text.endswith(".0") else [text]
    return [f.replace(".", "\\\\.") for f in forms]
