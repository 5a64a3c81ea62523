"""A target as Prometheus sees it: with the labels by which the scrape says who counts."""

from __future__ import annotations

from dataclasses import dataclass, fields

from modelrollout.analysis.target import Target
from modelrollout.api.selectors import promql
from modelrollout.config import GatewayQueries, OperatorConfig


@dataclass(frozen=True, slots=True)
class ScrapeMatchers:
    """The targets whose counters count, by labels that the scrape sets: a scraped process can write
    any other label itself.

    ``gateway`` and ``feedback`` are matchers; without one, every target that has the metric counts.

    The comparer and the servers run in the model's namespace. People who may create pods there are
    trusted, as such a pod could also join the model's Service. So the label ``namespace`` decides.
    The label ``pod`` keeps other pods of the namespace from counting as these; a scrape may leave
    it out. Matching by name's pattern also finds pods that are gone.
    """

    gateway: str = ""
    feedback: str = ""
    namespace: str = "namespace"
    pod: str = "pod"
    labels_per_row: float = 0.0  # the most that one row of an answer may get; 0: not checked
    queries: GatewayQueries | None = None  # of the profile custom

    @classmethod
    def of(cls, config: OperatorConfig) -> ScrapeMatchers:
        """As the operator's configuration says."""
        return cls(
            promql(config.gateway_metrics.selector),
            promql(config.feedback_metrics.selector),
            config.scrape.namespace_label,
            config.scrape.pod_label,
            config.feedback_metrics.labels_per_row,
            config.gateway_metrics.custom,
        )


@dataclass(frozen=True, slots=True)
class ScrapedTarget(Target):
    """A target with the matchers of this Prometheus."""

    matchers: ScrapeMatchers = ScrapeMatchers()

    @classmethod
    def of(cls, target: Target, matchers: ScrapeMatchers) -> ScrapedTarget:
        """``target`` with ``matchers``."""
        return cls(**{f.name: getattr(target, f.name) for f in fields(Target)}, matchers=matchers)
