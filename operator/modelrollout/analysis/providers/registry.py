"""The metrics providers, by the class of their configuration. A new provider is one line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.base import CountedBy, Doubt, MetricsProvider
from modelrollout.analysis.providers.prometheus.provider import PrometheusProvider
from modelrollout.analysis.providers.prometheus.scrape_rights import doubt
from modelrollout.analysis.providers.prometheus.sources import custom
from modelrollout.api.v1alpha1 import Analysis
from modelrollout.config import OperatorConfig, PrometheusConfig, ProviderConfig
from modelrollout.problem import Problem
from modelrollout.reasons import Reason


class Connect(Protocol):
    """Makes a client from its configuration; connects on the first read."""

    def __call__(
        self, provider: Any, config: OperatorConfig | None, patience: float | None
    ) -> MetricsProvider:
        """As of ``connect``."""


PROVIDERS: dict[type[ProviderConfig], Connect] = {PrometheusConfig: PrometheusProvider.connect}
NO_PROVIDER = MeasurementProblem(
    Reason.NO_SOURCE,
    "the operator's configuration names no such metrics provider"
    f" ({' or '.join(config.kind for config in PROVIDERS)}): add it there, or promote by hand",
)


def connect(
    provider: ProviderConfig, config: OperatorConfig | None = None, patience: float | None = None
) -> MetricsProvider:
    """A client of ``provider``.

    ``config``: says who may count; None, as on a command line, trusts every counter. ``patience``:
    seconds that a read waits for a namespace's own queries; None: the provider's default.
    """
    return PROVIDERS[type(provider)](provider, config, patience)


def check_config(config: OperatorConfig) -> None:
    """Raises ConfigError for queries of the configuration that no provider could answer."""
    if config.gateway_metrics.custom is not None:
        custom.check(config.gateway_metrics.custom)


def unknown_provider(analysis: Analysis, config: OperatorConfig) -> Problem | None:
    """Why a spec may not be judged by the provider that it names."""
    if analysis.provider is None or config.provider_for(analysis.provider) is not None:
        return None
    known = ", ".join(p.name for p in config.providers) or "none"
    return Problem(
        Reason.PROMETHEUS_NOT_ALLOWED,
        f"spec.rollout.analysis.prometheus: {analysis.provider} is not in the operator's configuration"
        f" (known: {known}); use one of them or leave it out",
    )


def doubts_without_provider(
    counted_by: Sequence[CountedBy], config: OperatorConfig
) -> Mapping[CountedBy, Doubt]:
    """The doubts where no provider is configured that could say who counts."""
    return {c: d for c in counted_by if (d := doubt(c, None, config))}
