"""Settings of the feedback service: JSON in the environment variable MODELROLLOUT_FEEDBACK, written
by the chart from ``feedback`` in its values.
"""

from __future__ import annotations

import os

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from modelrollout.telemetry.http_guard import HttpLimits

SETTINGS_ENV = "MODELROLLOUT_FEEDBACK"


class SettingsError(OSError):
    """The settings cannot be used; the text names the field. An OSError, as a taken port is: a
    reason not to start.
    """


class _Settings(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class FeedbackLimits(_Settings):
    """Limits of clients. A source is an address, a sender a service account."""

    connections: int = Field(1024, ge=16, description="Open at a time, of all sources.")
    connections_per_source: int = Field(
        256,
        ge=1,
        description="Open at a time from one address; clients behind one gateway or NAT share them.",
    )
    connections_per_second: float = Field(100.0, gt=0, description="New ones from one address.")
    head_seconds: float = Field(10.0, gt=0, description="For the head of a request.")
    idle_seconds: float = Field(95.0, gt=0, description="Between two requests of a connection.")
    request_seconds: float = Field(
        30.0, gt=0, description="From the complete head to the answer, the body included."
    )
    requests_per_second: float = Field(
        100.0, gt=0, description="Of one sender; each 16 KiB of a body count as one more."
    )
    requests_per_second_namespace: float = Field(
        300.0, gt=0, description="Of all senders of one namespace together."
    )
    refused_tokens_per_minute: float = Field(
        30.0, gt=0, description="Tokens from one source that the API server refuses."
    )

    def http(self) -> HttpLimits:
        """The limits of the senders' port."""
        return HttpLimits(
            connections=self.connections,
            connections_per_source=min(self.connections_per_source, self.connections),
            connections_per_second=self.connections_per_second,
            head_seconds=self.head_seconds,
            idle_seconds=self.idle_seconds,
            request_seconds=self.request_seconds,
        )


class FeedbackSettings(_Settings):
    """``metrics_port`` is that of /metrics, /healthz and /readyz."""

    metrics_port: int = Field(8081, ge=0, le=65535)
    limits: FeedbackLimits = FeedbackLimits()

    @classmethod
    def from_environment(cls) -> FeedbackSettings:
        """From the environment; defaults if the variable is not set. Raises SettingsError."""
        try:
            return cls.model_validate_json(os.environ.get(SETTINGS_ENV) or "{}")
        except ValidationError as e:
            problems = "; ".join(
                f"{'.'.join(map(str, p['loc']))}: {p['msg']}" for p in e.errors(include_url=False)
            )
            raise SettingsError(f"{SETTINGS_ENV}: {problems}") from None
