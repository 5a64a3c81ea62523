"""PromQL that policies and specs contain: its placeholders, and who may have it run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.prometheus.confinement import USE_A_TEMPLATE, confine
from modelrollout.analysis.providers.prometheus.sources.base import Query
from modelrollout.analysis.providers.prometheus.target import ScrapedTarget
from modelrollout.analysis.target import Target
from modelrollout.api import names
from modelrollout.api.v1alpha1 import RevisionRef
from modelrollout.reasons import Reason

PLACEHOLDERS = ("revision", "stable", "version", "stableVersion", "weight", "namespace", "name", "window")
# seconds: {{window}} of an own query grows no further, so that a query that was accepted stays so
LONGEST_OWN_WINDOW = 3600.0
_PLACEHOLDER = re.compile(r"\{\{\s*(.*?)\s*\}\}")


def unknown_placeholders(query: str) -> list[str]:
    """Placeholders in a custom query that have no value, as written."""
    return [p for p in _PLACEHOLDER.findall(query) if p not in PLACEHOLDERS]


def own_query_problem(query: str, namespace: str, name: str, label: str) -> MeasurementProblem | None:
    """Why a spec's own query could not run even where own queries are allowed.

    Checked with the longest window and numbers, so that no query outgrows its bounds later.
    """
    if unknown_placeholders(query):
        return None  # the metric's reading says so
    side = RevisionRef(revision=names.revision_name(namespace, name, {}, ""), number=999_999)
    values = _values(Target(namespace, name, side, side, "none", LONGEST_OWN_WINDOW, weight=100))
    confined = confine(_substitute(query, values), namespace, label)
    return confined if isinstance(confined, MeasurementProblem) else None


def custom_query(name: str, query: str, target: ScrapedTarget) -> Query | MeasurementProblem:
    """The query of the metric ``name`` with its placeholders substituted; an own one is confined to
    its namespace.
    """
    own = query not in target.promql
    if own and target.queries == "Templates":
        return MeasurementProblem(
            Reason.QUERY_NOT_ALLOWED,
            f"metric {name}: PromQL of a spec's own is not allowed here; {USE_A_TEMPLATE}",
        )
    unknown = unknown_placeholders(query)
    if unknown:
        known = ", ".join(f"{{{{{p}}}}}" for p in PLACEHOLDERS)
        return MeasurementProblem(
            Reason.UNKNOWN_PLACEHOLDER,
            f"metric {name}: {{{{{unknown[0]}}}}} means nothing in a query; known are {known}",
        )
    values = _values(
        replace(target, window_seconds=min(target.window_seconds, LONGEST_OWN_WINDOW)) if own else target
    )
    without = next((p for p in _PLACEHOLDER.findall(query) if values[p] is None), None)
    if without is not None:
        return MeasurementProblem(
            Reason.NO_STABLE_DATA,
            f"metric {name}: its query names {{{{{without}}}}}, and no stable revision has traffic beside it",
        )
    promql = _substitute(query, values)
    if not own:
        return Query(name, promql)
    confined = confine(promql, target.namespace, target.matchers.namespace)
    if isinstance(confined, MeasurementProblem):
        return MeasurementProblem(confined.reason, f"metric {name}: {confined.message}")
    return Query(name, confined, own=True)


def _values(target: Target) -> dict[str, str | None]:
    """What the placeholders stand for: names of Kubernetes objects, numbers and a duration. None of
    them can end a PromQL string.
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


def _substitute(query: str, values: Mapping[str, str | None]) -> str:
    return _PLACEHOLDER.sub(lambda m: values[m[1]] or "", query)
