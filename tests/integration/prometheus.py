"""A real Prometheus, and processes that it scrapes; or in its place a VictoriaMetrics, whose
program the environment variable VICTORIA_METRICS names.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

PROMETHEUS = shutil.which("prometheus")
VICTORIA_METRICS = os.environ.get("VICTORIA_METRICS")
LIMIT_SECONDS = 120.0 if VICTORIA_METRICS else 30.0
# until VictoriaMetrics shows a series that it has scraped for the first time
NEW_SERIES_SECONDS = 14.0 if VICTORIA_METRICS else 0.0


class Exporter:
    """A process that is scraped: its metrics as text, or broken."""

    def __init__(self) -> None:
        self.lines: dict[str, float] = {}
        self.broken = False

    def requests(self, revision: str, good: int, bad: int | None = None, protocol: str = "http-8000") -> None:
        self.answers(revision, {"200": good} | ({} if bad is None else {"500": bad}), protocol)

    def answers(self, revision: str, codes: Mapping[str, int], protocol: str = "http-8000") -> None:
        """Requests by status code."""
        for code, value in codes.items():
            labels = f'code="{code}",method="POST",protocol="http",service="a-{revision}-{protocol}@kubernetesgateway"'  # noqa: E501
            self.lines[f"traefik_service_requests_total{{{labels}}}"] = value

    def buckets(self, revision: str, **bounds: int) -> None:
        for le, value in bounds.items():
            labels = f'code="200",method="POST",protocol="http",service="a-{revision}-http-8000@kubernetesgateway",le="{le}"'  # noqa: E501
            self.lines[f"traefik_service_request_duration_seconds_bucket{{{labels}}}"] = value

    def labels(self, name: str, version: int, right: int, wrong: int, part: str = "") -> None:
        for result, value in (("right", right), ("wrong", wrong)):
            labels = f'model_namespace="a",name="{name}",version="{version}",slice="{part}",result="{result}"'
            self.lines[f"modelrollout_feedback_total{{{labels}}}"] = value

    @contextlib.contextmanager
    def listening(self) -> Iterator[str]:
        """The address where it is scraped."""
        exporter = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(500 if exporter.broken else 200)
                self.end_headers()
                self.wfile.write("".join(f"{k} {v}\n" for k, v in list(exporter.lines.items())).encode())

            def log_message(self, *_: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            yield f"127.0.0.1:{server.server_port}"
            server.shutdown()


@contextlib.contextmanager
def running(folder: Path, scrape_configs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        host, port = free.getsockname()
    (folder / "prometheus.yml").write_text(json.dumps({"scrape_configs": list(scrape_configs)}))
    program, options = str(PROMETHEUS), ["config.file", "storage.tsdb.path", "web.listen-address"]
    if VICTORIA_METRICS:
        program, options = VICTORIA_METRICS, ["promscrape.config", "storageDataPath", "httpListenAddr"]
    values = [f"{folder}/prometheus.yml", f"{folder}/data", f"{host}:{port}"]
    arguments = [f"--{option}={value}" for option, value in zip(options, values, strict=True)]
    if VICTORIA_METRICS:
        arguments += ["--search.latencyOffset=0s", "--inmemoryDataFlushInterval=1s"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, *arguments], stdout=log, stderr=log, cwd=folder)
    try:
        _wait_for_port(process, host, port, folder / "log")
        yield f"http://{host}:{port}"
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def new_series_shown() -> None:
    """Until series that were scraped for the first time would be in an answer."""
    await asyncio.sleep(NEW_SERIES_SECONDS)


def _wait_for_port(process: subprocess.Popen[bytes], host: str, port: int, log: Path) -> None:
    deadline = time.monotonic() + LIMIT_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, port), 1):
            return
        time.sleep(0.05)
    pytest.fail(f"prometheus does not start: {log.read_text()[-2000:]}")
