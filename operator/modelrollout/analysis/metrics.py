"""The metrics that a rollout is judged by: those of its spec, of templates, and of policies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.api.v1alpha1 import Analysis, Metric, Slice, seconds
from modelrollout.config import Profile
from modelrollout.reasons import Reason

MAX_METRICS = 32  # the limit of status
DEFAULT_WITHOUT_GATEWAY = (Metric(name="errors", max_increase=0.005),)
DEFAULT_METRICS = (
    *DEFAULT_WITHOUT_GATEWAY,
    # with 5 % of client errors on both sides a step takes as many requests as errors with 0.2 %
    Metric(name="clientErrors", max_increase=0.02),
    Metric(name="refusedRequests", max_increase=0.02, dry_run=True),
)
# for reports
NO_CLIENT_ERRORS = (
    "client errors are not judged: without a gateway (spec.traffic.gateway) nothing counts the requests that"
    " a model refuses"
)


def effective_metrics(
    analysis: Analysis,
    templates: Mapping[str, Sequence[Metric]],
    mandatory: Sequence[Metric],
    profile: Profile,
) -> list[Metric] | MeasurementProblem:
    """The metrics in force. Of two metrics with one name, spec wins over a template, and an earlier
    template over a later one. The default is what those who count (``profile``) can measure.

    A spec cannot weaken a mandatory metric: of the same name, the stricter margin and limit hold.
    Where the two measure different things (another query, another objective, another latency) only
    the mandatory one counts. Problem ``UnknownTemplate`` or ``TooManyMetrics``.
    """
    requested = analysis.templates or []
    unknown = [name for name in requested if name not in templates]
    if unknown:
        known = ", ".join(sorted(templates)) or "none"
        return MeasurementProblem(
            Reason.UNKNOWN_TEMPLATE,
            f"spec.rollout.analysis.templates: no RolloutPolicy in force here has {unknown[0]!r}; there are:"
            f" {known}",
        )
    default = DEFAULT_WITHOUT_GATEWAY if profile == "none" else DEFAULT_METRICS
    own = analysis.metrics if analysis.metrics is not None else () if requested else default
    metrics: dict[str, Metric] = {m.name: m for m in own}
    for name in requested:
        for metric in templates[name]:
            metrics.setdefault(metric.name, metric)
    for metric in mandatory:
        metrics[metric.name] = stricter(metrics[metric.name], metric) if metric.name in metrics else metric
    if len(metrics) > MAX_METRICS:
        return MeasurementProblem(
            Reason.TOO_MANY_METRICS,
            f"{len(metrics)} metrics with those of templates and policies; at most {MAX_METRICS}: name fewer"
            " templates",
        )
    return list(metrics.values())


def with_latency_of(metrics: Iterable[Metric], *, decoupled: bool) -> list[Metric]:
    """The metrics, in which latency says what is meant. ``decoupled``: the canary streams its
    answers, and the length of an answer says nothing about speed.
    """
    usual = "FirstResponse" if decoupled else "WholeAnswer"
    return [m.model_copy(update={"of": m.of or usual}) if m.name == "latency" else m for m in metrics]


def stricter(own: Metric, mandatory: Metric) -> Metric:
    """A metric that passes only what ``mandatory`` passes."""
    if (
        own.query != mandatory.query
        or _seconds(own.objective) != _seconds(mandatory.objective)
        or own.of != mandatory.of
    ):
        return mandatory
    return mandatory.model_copy(
        update={
            "max_drop": _least(own.max_drop, mandatory.max_drop),
            "max_increase": _least(own.max_increase, mandatory.max_increase),
            "max": _least(own.max, mandatory.max),
            "min": _most(own.min, mandatory.min),
            "share": _most(own.share, mandatory.share),
            "min_samples": max(own.min_samples, mandatory.min_samples),
            "for_": min(own.for_ or "0s", mandatory.for_ or "0s", key=seconds) if mandatory.for_ else None,
            "slices": _slices(own, mandatory),
        }
    )


def _slices(own: Metric, mandatory: Metric) -> list[Slice] | None:
    """Every slice of either; for a slice in both, the smaller margin. A slice without a margin has
    its metric's.
    """
    slices: dict[str, Slice] = {}
    for metric in (mandatory, own):
        for part in metric.slices or ():
            margin = _least(
                part.max_drop or metric.max_drop, slices[part.name].max_drop if part.name in slices else None
            )
            slices[part.name] = Slice(name=part.name, max_drop=margin)
    return list(slices.values())[:16] or None


def _seconds(duration: str | None) -> float | None:
    return None if duration is None else seconds(duration)


def _least(*values: float | None) -> float | None:
    return min((v for v in values if v is not None), default=None)


def _most(*values: float | None) -> float | None:
    return max((v for v in values if v is not None), default=None)
