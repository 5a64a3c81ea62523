"""The metrics providers that ``modelrollout analyze`` may ask, by their options."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from modelrollout.analysis.providers.base import MetricsProvider
from modelrollout.analysis.providers.registry import connect
from modelrollout.api.uris import carries_more
from modelrollout.cli.errors import Refused
from modelrollout.config import PrometheusConfig

TIMEOUT_SECONDS = 30.0
# for messages
OPTIONS = "--prometheus URL (kubectl port-forward reaches one inside the cluster)"

PrometheusUrl = Annotated[
    str | None,
    typer.Option("--prometheus", help="URL of a Prometheus, for example http://localhost:9090."),
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="File with a bearer token for that Prometheus.")
]


def chosen(prometheus: str | None, token_file: Path | None) -> Callable[[], MetricsProvider] | None:
    """Connects to the provider that the options name, and raises Refused; None where they name
    none.
    """
    return partial(_prometheus, prometheus, token_file) if prometheus is not None else None


def _prometheus(url: str, token_file: Path | None) -> MetricsProvider:
    if carries_more(url):  # messages contain it
        raise Refused(
            "--prometheus: a URL must not carry a user name, password, query or fragment; leave them out, and"
            " give a token in --token-file"
        )
    config = PrometheusConfig(
        name=url,
        url=url,
        token_file=str(token_file) if token_file else None,
        timeout_seconds=TIMEOUT_SECONDS,
    )
    return connect(config, patience=TIMEOUT_SECONDS)
