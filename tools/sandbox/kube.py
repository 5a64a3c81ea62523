"""The few API calls that the sandbox makes itself, without a client library."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class ApiError(OSError):
    """The API server answered with an error."""


class Api:
    """One identity's access to the API server."""

    def __init__(self, host: str, port: int, pki: Path, identity: str = "sandbox") -> None:
        self.host, self.port = host, port
        self.context = ssl.create_default_context(cafile=str(pki / "ca.crt"))
        self.context.load_cert_chain(str(pki / f"{identity}.crt"), str(pki / f"{identity}.key"))

    @classmethod
    def of(cls, kubeconfig: Path, pki: Path, identity: str) -> Api:
        server = urlsplit(json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]["server"])
        return cls(server.hostname or "", server.port or 443, pki, identity)

    def _open(
        self, method: str, path: str, body: Any, content: str, timeout: float
    ) -> http.client.HTTPResponse:
        connection = http.client.HTTPSConnection(self.host, self.port, context=self.context, timeout=timeout)
        headers = {
            "Accept": "application/json",
            "Content-Type": content,
            "User-Agent": "modelrollout-sandbox",
        }
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        if response.status >= 300:
            raise ApiError(
                f"{method} {path}: {response.status} {response.read(500).decode(errors='replace')}"
            )
        return response

    def text(self, path: str, timeout: float = 5) -> str:
        return self._open("GET", path, None, "application/json", timeout).read().decode()

    def get(self, path: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.text(path))
        return answer

    def patch(self, path: str, body: Any, content: str = "application/merge-patch+json") -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self._open("PATCH", path, body, content, 10).read())
        return answer

    def watch(self, path: str, timeout: float = 300) -> Iterator[dict[str, Any]]:
        for line in self._open("GET", path, None, "application/json", timeout):
            yield json.loads(line)
