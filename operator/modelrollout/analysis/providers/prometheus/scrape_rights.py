"""Checks in Prometheus's list of targets whether only the programs that the configuration trusts
(``target.ScrapeMatchers``) can write the counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.base import CountedBy, Doubt
from modelrollout.api.selectors import fit, parse
from modelrollout.config import OperatorConfig
from modelrollout.reasons import Reason

_NAMED = 10  # targets in a line of the log
_READ = "docs/how-to/install.md, Who may count"


@dataclass(frozen=True, slots=True)
class ScrapeTarget:
    """A scraped target: the labels of its series, and those of its discovery."""

    pool: str  # the job_name of its configuration
    labels: Mapping[str, str]
    discovered: Mapping[str, str]

    @property
    def namespace(self) -> str | None:
        """The namespace in which the target runs, whatever its labels say; None for a target that
        is not a pod, but configured in Prometheus by name.
        """
        return self.discovered.get("__meta_kubernetes_namespace")

    @property
    def pod(self) -> str | None:
        return self.discovered.get("__meta_kubernetes_pod_name")

    @property
    def name(self) -> str:
        return f"{self.namespace}/{self.pod or self.labels.get('instance', '?')} (job {self.pool})"

    def is_mislabelled(self, label: str) -> bool:
        """Whether its series may carry another namespace than its own. Jobs for single services,
        such as the API server's, often set none: that is accepted.
        """
        labelled = self.labels.get(label)
        return labelled != self.namespace and (labelled is not None or self.pod is not None)


@dataclass(frozen=True, slots=True)
class Scrape:
    """All targets. ``honoring``: jobs whose targets may overwrite labels of the scrape."""

    targets: tuple[ScrapeTarget, ...]
    honoring: frozenset[str]


def doubt(
    source: CountedBy, scrape: Scrape | MeasurementProblem | None, config: OperatorConfig
) -> Doubt | None:
    """Why others may count as ``source``. ``scrape``: None where no Prometheus is configured."""
    gateway, feedback = config.gateway_metrics, config.feedback_metrics
    selector, namespaces, field = {
        "gateway": (gateway.selector, gateway.namespaces, "gatewayMetrics.selector"),
        "feedback": (feedback.selector, feedback.namespaces, "feedback.selector"),
        "pods": ("", [], ""),
    }[source]
    if field and not selector:
        return Doubt(
            Reason.UNVERIFIED,
            f"{field} is not set: any process that Prometheus scrapes may write the counters of this"
            f" evidence ({_READ})",
        )
    if scrape is None:
        return Doubt(Reason.UNVERIFIED, "no Prometheus is configured")
    if isinstance(scrape, MeasurementProblem):
        return Doubt(
            Reason.UNVERIFIED,
            f"it is unknown whether others count: {scrape.message} when asked for its targets ({_READ})",
        )
    trusted = {*config.scrape.trusted_namespaces, *gateway.namespaces, *feedback.namespaces}
    label = config.scrape.namespace_label
    free = [
        t
        for t in scrape.targets
        if t.pool in scrape.honoring and t.namespace is not None and t.namespace not in trusted
    ]
    if free:
        remedy = "leave that out, or name their namespaces in scrape.trustedNamespaces"
        return _foreign(free, "are scraped with honor_labels and may write any label", remedy)
    if source == "pods":
        mislabelled = [
            t
            for t in scrape.targets
            if t.namespace is not None and t.namespace not in trusted and t.is_mislabelled(label)
        ]
        return (
            _foreign(
                mislabelled,
                f"do not have their namespace in the label {label}",
                "set it in the scrape, after any labelmap",
            )
            if mislabelled
            else None
        )
    matchers = parse(selector)
    fitting = [t for t in scrape.targets if fit(matchers, t.labels)]
    if not fitting:
        return Doubt(
            Reason.UNVERIFIED,
            f"no target of Prometheus fits {field} {selector}, so nothing is counted: correct it, or have it"
            f" scraped ({_READ})",
        )
    others = [t for t in fitting if t.namespace is not None and t.namespace not in namespaces]
    where = (
        f"run elsewhere than in {', '.join(namespaces) or 'what Prometheus names itself'} and fit {field}"
        f" {selector}"
    )
    return (
        _foreign(others, where, "choose a label that no pod and no monitor of theirs can set")
        if others
        else None
    )


def _foreign(targets: Iterable[ScrapeTarget], what: str, remedy: str) -> Doubt:
    target_names = sorted({t.name for t in targets})
    more = f" and {len(target_names) - _NAMED} more" if len(target_names) > _NAMED else ""
    message = (
        f"targets of Prometheus that {what} ({len(target_names)}, which the operator's log names): {remedy}"
        f" ({_READ})"
    )
    return Doubt(Reason.FOREIGN_TARGETS, message, ", ".join(target_names[:_NAMED]) + more)
