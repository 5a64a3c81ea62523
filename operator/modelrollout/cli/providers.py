"""The metrics providers that ``modelrollout analyze`` may ask, by their options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

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
HeaderFiles = Annotated[
    list[str] | None,
    typer.Option(
        "--header-file",
        help="NAME=FILE: a header for that Prometheus, and the file of its value: X-Scope-OrgID=tenant.",
    ),
]
CaFile = Annotated[
    Path | None, typer.Option("--ca-file", help="Certificates (PEM) to trust for that Prometheus.")
]


def chosen(
    prometheus: str | None, token_file: Path | None, header_files: Sequence[str], ca_file: Path | None
) -> Callable[[], MetricsProvider] | None:
    """Connects to the provider that the options name, and raises Refused; None where they name
    none.
    """
    return (
        partial(_prometheus, prometheus, token_file, header_files, ca_file)
        if prometheus is not None
        else None
    )


def _prometheus(
    url: str, token_file: Path | None, header_files: Sequence[str], ca_file: Path | None
) -> MetricsProvider:
    if carries_more(url):  # messages contain it
        raise Refused(
            "--prometheus: a URL must not carry a user name, password, query or fragment; leave them out, and"
            " give a token in --token-file"
        )
    headers = [header.partition("=") for header in header_files]
    if wrong := next((name for name, _, file in headers if not file), None):
        raise Refused(f"--header-file {wrong}: write NAME=FILE, for example X-Scope-OrgID=tenant.txt")
    try:
        config = PrometheusConfig(
            name=url,
            url=url,
            token_file=str(token_file) if token_file else None,
            header_files={name: file for name, _, file in headers},
            ca_file=str(ca_file) if ca_file else None,
            timeout_seconds=TIMEOUT_SECONDS,
        )
    except ValidationError as e:
        error = e.errors(include_input=False, include_url=False)[0]
        raise Refused(f"--header-file, --ca-file: {error['msg']}") from None
    return connect(config, patience=TIMEOUT_SECONDS)
