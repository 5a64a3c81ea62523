"""The metrics providers, by the class of their configuration. A new provider is one line here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from modelrollout.analysis.providers.base import CountedBy, Doubt, MetricsProvider
from modelrollout.analysis.providers.prometheus.provider import PrometheusProvider
from modelrollout.analysis.providers.prometheus.scrape_rights import doubt
from modelrollout.config import OperatorConfig, PrometheusConfig, ProviderConfig


class Connect(Protocol):
    """Makes a client from its configuration; connects on the first read."""

    def __call__(
        self, provider: Any, config: OperatorConfig | None, patience: float | None
    ) -> MetricsProvider:
        """As of ``connect``."""


PROVIDERS: dict[type[ProviderConfig], Connect] = {PrometheusConfig: PrometheusProvider.connect}


def connect(
    provider: ProviderConfig, config: OperatorConfig | None = None, patience: float | None = None
) -> MetricsProvider:
    """A client of ``provider``.

    ``config``: says who may count; None, as on a command line, trusts every counter. ``patience``:
    seconds that a read waits for a namespace's own queries; None: the provider's default.
    """
    return PROVIDERS[type(provider)](provider, config, patience)


def doubts_without_provider(
    counted_by: Sequence[CountedBy], config: OperatorConfig
) -> Mapping[CountedBy, Doubt]:
    """The doubts where no provider is configured that could say who counts."""
    return {c: d for c in counted_by if (d := doubt(c, None, config))}
