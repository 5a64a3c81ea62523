"""Every endpoint of a Triton server: the table of docs/reference/endpoints.md, the sources
that it is held against, and calls from outside and from inside.
"""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import requests
from tritonclient.grpc import service_pb2

from modelrollout.resources.hardening import KEY_HEADER

ROOT = Path(__file__).parents[2]
# Traefik's and Envoy's body; what Triton does not know it answers in JSON
GATEWAYS_404 = ("404 page not found", "")
SERVICE, HEALTH = "inference.GRPCInferenceService", "grpc.health.v1.Health"
_PLACES = {"NAME", "N", "REGION", "REPOSITORY"}
_X = [0.1] * 16


@dataclass(frozen=True)
class Endpoint:
    """A row of the table; ``path`` with its placeholders, or SERVICE/METHOD."""

    method: str  # empty for gRPC
    path: str
    open: bool  # through the gateway
    inside: str  # free: without the key; key: with it alone; none: the server knows no such path

    def named(self, model: str, version: int) -> str:
        """The path of one model's server."""
        return "/".join(
            {"NAME": model, "N": str(version), "REGION": "r", "REPOSITORY": "repository"}.get(part, part)
            for part in self.path.split("/")
        )


def table() -> list[Endpoint]:
    """Rows of docs/reference/endpoints.md, one for each method."""
    actual: list[Endpoint] = []
    for line in (ROOT / "docs" / "reference" / "endpoints.md").read_text().splitlines():
        cells = [cell.strip(" `") for cell in line.strip("|").split("|")]
        if len(cells) == 5 and cells[0] in ("HTTP", "gRPC"):
            methods = cells[1].split(", ") if cells[1] else [""]
            actual += [Endpoint(method, cells[2], cells[3] == "open", cells[4]) for method in methods]
    return actual


# --- what the table is held against


def of_documents() -> set[tuple[str, str]]:
    """(method, path) by the documents of the protocol, with the table's placeholders."""
    text = Path(__file__).with_name("triton-protocol.txt").read_text()
    lines = [line.split(" ", 1) for line in text.splitlines() if line and not line.startswith("#")]
    return {(method, _placed(path)) for method, grammar in lines for path in _options("/" + grammar)}


def _options(grammar: str) -> Iterator[str]:
    """``a[b]c`` is ``ac`` and ``abc``."""
    actual = re.search(r"\[([^\[\]]*)\]", grammar)
    if actual is None:
        yield grammar
        return
    for part in ("", actual[1]):
        yield from _options(grammar[: actual.start()] + part + grammar[actual.end() :])


def of_program(strings: str) -> set[str]:
    """Paths that the program takes, by the regular expressions that stand in it (``grep -a -o`` of
    the binary).
    """
    return {_placed(path) for pattern in strings.split() for path in _expanded(pattern)}


def _expanded(pattern: str) -> Iterator[str]:
    """Every path that such an expression fits, its [^/]+ and [0-9]+ left as they are."""
    actual = re.search(
        r"\((\?:)?((?:[^()]|\(\[[^)]*\]\+\))*)\)(\?)?",
        pattern.replace("([^/]+)", "{any}").replace("([0-9]+)", "{number}"),
    )
    pattern = pattern.replace("([^/]+)", "{any}").replace("([0-9]+)", "{number}")
    if actual is None:
        yield pattern
        return
    options = [*([""] if actual[3] else []), *_alternatives(actual[2])]
    for option in options:
        yield from _expanded(pattern[: actual.start()] + option + pattern[actual.end() :])


def _alternatives(inner: str) -> list[str]:
    return inner.split("|")


def _placed(path: str) -> str:
    """With the table's placeholders: what follows models is a NAME, what follows versions an N, and
    so on.
    """
    words = {"models": "NAME", "versions": "N", "region": "REGION", "repository": "REPOSITORY"}
    parts = path.split("/")
    return "/".join(words[parts[i - 1]] if "{" in part else part for i, part in enumerate(parts))


def of_proto() -> set[str]:
    """SERVICE/METHOD of every method of the compiled proto, and of the health service that Triton
    also has.
    """
    methods = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    return {f"{SERVICE}/{m.name}" for m in methods} | {f"{HEALTH}/Check"}


# --- calls


@dataclass(frozen=True)
class Answer:
    code: str  # HTTP status, or the name of a gRPC status
    text: str

    @property
    def by_gateway(self) -> bool:
        """Whether it was the gateway that answered, and no server."""
        unrouted = self.code == "404" and self.text.strip() in GATEWAYS_404
        return unrouted or self.code == "UNIMPLEMENTED"

    def __str__(self) -> str:
        return f"{self.code} {' '.join(self.text.split())[:90]}"


def _body(endpoint: Endpoint) -> bytes | None:
    if endpoint.method != "POST":
        return None
    last = endpoint.path.rpartition("/")[2]
    if last == "infer":
        return json.dumps(
            {"inputs": [{"name": "x", "shape": [1, 16], "datatype": "FP32", "data": _X}]}
        ).encode()
    if last.startswith("generate"):
        return json.dumps({"x": _X}).encode()
    if last == "load":  # what the attack did: code in a configuration's override
        return json.dumps(
            {"parameters": {"config": json.dumps({"backend": "python", "max_batch_size": 0})}}
        ).encode()
    if last == "register":
        return json.dumps({"key": "/r", "offset": 0, "byte_size": 64}).encode()
    return b"{}"


def http(
    address: str,
    endpoint: Endpoint,
    model: str,
    version: int,
    host: str | None = None,
    key: str | None = None,
) -> Answer:
    headers = ({"Host": host} if host else {}) | ({KEY_HEADER: key} if key else {})
    answer = requests.request(
        endpoint.method,
        f"http://{address}{endpoint.named(model, version)}",
        data=_body(endpoint),
        headers=headers,
        timeout=20,
        allow_redirects=False,
    )
    return Answer(str(answer.status_code), answer.text)


def raw(address: str, method: str, target: str, host: str) -> Answer:
    """A request whose path no client library has put in order."""
    name, _, port = address.rpartition(":")
    with socket.create_connection((name, int(port)), 10) as link:
        body = b"{}" if method not in ("GET", "HEAD") else b""
        link.sendall(
            f"{method} {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length:"
            f" {len(body)}\r\n\r\n".encode()
            + body
        )
        data = b""
        while part := link.recv(65536):
            data += part
    head, _, rest = data.partition(b"\r\n\r\n")
    return Answer(head.split(b" ")[1].decode() if b" " in head else "", rest.decode(errors="replace"))


_REQUESTS: dict[str, Any] = {
    "ModelReady": lambda m: service_pb2.ModelReadyRequest(name=m),
    "ModelMetadata": lambda m: service_pb2.ModelMetadataRequest(name=m),
    "ModelConfig": lambda m: service_pb2.ModelConfigRequest(name=m),
    "ModelStatistics": lambda m: service_pb2.ModelStatisticsRequest(name=m),
    "RepositoryModelLoad": lambda m: service_pb2.RepositoryModelLoadRequest(model_name=m),
    "RepositoryModelUnload": lambda m: service_pb2.RepositoryModelUnloadRequest(model_name=m),
    "TraceSetting": lambda m: service_pb2.TraceSettingRequest(model_name=m),
}


def _infer(model: str) -> Any:
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=[1, 16])
    tensor.contents.fp32_contents.extend(_X)
    return service_pb2.ModelInferRequest(model_name=model, inputs=[tensor])


def grpc_call(
    address: str, endpoint: Endpoint, model: str, host: str | None = None, key: str | None = None
) -> Answer:
    name = endpoint.path.rpartition("/")[2]
    message = _infer(model) if "Infer" in name else _REQUESTS.get(name, lambda _: None)(model)
    payload = message.SerializeToString() if message is not None else b""
    options = [("grpc.default_authority", host)] if host else []
    metadata = [(f"triton-grpc-protocol-{KEY_HEADER}", key)] if key else []
    with grpc.insecure_channel(address, options=options) as channel:
        try:
            if name == "ModelStreamInfer":
                first = next(
                    iter(
                        channel.stream_stream(f"/{endpoint.path}")(
                            iter([payload]), metadata=metadata, timeout=20
                        )
                    )
                )
                return Answer("OK", service_pb2.ModelStreamInferResponse.FromString(first).error_message)
            answer = channel.unary_unary(f"/{endpoint.path}")(payload, metadata=metadata, timeout=20)
            return Answer("OK", repr(answer[:40]))
        except grpc.RpcError as e:
            failed: Any = e
            return Answer(failed.code().name, failed.details() or "")


def called(
    endpoint: Endpoint,
    model: str,
    version: int,
    address: str,
    host: str | None = None,
    key: str | None = None,
) -> Answer:
    """``address`` HOST:PORT of the gateway (with ``host``) or of a pod's port for the endpoint's
    protocol.
    """
    if endpoint.method:
        return http(address, endpoint, model, version, host, key)
    return grpc_call(address, endpoint, model, host, key)
