"""Small real ONNX models, data sets, and an object store in this process that speaks plain HTTP and
enough of S3, of Google's XML API and of Azure (GET, HEAD, PUT, DELETE, list). The Hub of Hugging
Face, and a registry, are files at their paths.
"""

from __future__ import annotations

import io
import re
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from modelrollout.contract.common import DataSet, Location
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import Recorded

SALT = "5a17" * 4  # of a Job
CLASSES = 3
FEATURES = 4
LONG_AGO = datetime(2015, 10, 21, 7, 28, tzinfo=UTC)


class ObjectStore:
    """Objects by path; ``statuses`` answers a path with an error instead, ``authorization`` is what
    requests must carry.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.modified: dict[str, datetime] = {}  # others are of 2015
        self.statuses: dict[str, tuple[int, bytes]] = {}
        self.redirects: dict[str, str] = {}  # where a path leads, for every method
        self.redirect_status = 302
        self.truncated: set[str] = set()  # closes the connection in the middle, and has no ETag
        self.cuts: dict[str, int] = {}  # of each answer only so many bytes come
        self.after_cut: Callable[[], object] = lambda: None
        self.silent: set[str] = set()  # says how much there is, and then nothing
        self.marks: dict[str, str] = {}  # ETags that are not "1"
        self.closed = threading.Event()
        self.authorization: str | None = None
        self.challenge: str | None = None  # of the refusal, which then has status 401
        self.conditional = True  # knows If-None-Match
        self.requests: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.url = ""

    def s3(self, path: str, credentials: str | None = None) -> Location:
        """An object in a bucket."""
        return Location(uri=f"s3://{path}", endpoint=self.url, allow_http=True, credentials=credentials)

    def gs(self, path: str, credentials: str | None = None) -> Location:
        """An object in a bucket of Google Cloud Storage."""
        return Location(uri=f"gs://{path}", endpoint=self.url, allow_http=True, credentials=credentials)

    def az(self, path: str, credentials: str | None = None) -> Location:
        """An object in a container of the account ``account``, whose path begins so."""
        return Location(
            uri=f"az://{path}", endpoint=f"{self.url}/account", allow_http=True, credentials=credentials
        )

    def hf(
        self, path: str, credentials: str | None = None, leads_to: tuple[str, ...] | None = None
    ) -> Location:
        """A file of the Hub: ``ORG/NAME@COMMIT/PATH``."""
        return Location(
            uri=f"hf://{path}",
            endpoint=self.url,
            allow_http=True,
            credentials=credentials,
            leads_to=leads_to,
        )

    def oci(
        self, path: str, credentials: str | None = None, leads_to: tuple[str, ...] | None = None
    ) -> Location:
        """Something in a registry: ``REPOSITORY@sha256:DIGEST/FILE``."""
        return Location(
            uri=f"oci://registry.example.com/{path}",
            endpoint=self.url,
            allow_http=True,
            credentials=credentials,
            leads_to=leads_to,
        )

    def http(
        self, path: str, credentials: str | None = None, leads_to: tuple[str, ...] | None = None
    ) -> Location:
        """An object behind HTTP."""
        return Location(uri=f"{self.url}/{path}", allow_http=True, credentials=credentials, leads_to=leads_to)


@contextmanager
def object_store(tls: ssl.SSLContext | None = None) -> Iterator[ObjectStore]:
    """A running store on a free port of the loopback interface."""
    store = ObjectStore()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header(
                "Last-Modified", format_datetime(store.modified.get(self.path, LONG_AGO), usegmt=True)
            )
            self.send_header("ETag", store.marks.get(self.path, '"1"'))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def refused(self) -> bool:
            name, mark, asked = self.path.partition("?")
            if "%2F" in name:  # so obstore writes names for Google
                self.path = quote(unquote(name)) + mark + asked
            headers = {k.lower(): v for k, v in self.headers.items()}
            signed = urlsplit(self.path)
            query = {k.lower(): v for k, (v, *_) in parse_qs(signed.query).items()}
            for cloud in ("amz", "goog"):
                if f"x-{cloud}-signature" in query:  # what would else stand in headers
                    self.path = signed.path
                    by, whose = query[f"x-{cloud}-algorithm"], query[f"x-{cloud}-credential"]
                    headers |= query | {"authorization": f"{by} Credential={whose}"}
            if {"sig", "sv"} <= query.keys() and "comp" not in query:
                self.path = signed.path
                headers |= {"authorization": f"SAS {query['sig']}"}
            store.requests.append((self.command, self.path))
            store.headers.append(headers)
            status, body = store.statuses.get(self.path, (0, b""))
            if status:
                self.answer(status, body)
            elif self.path in store.redirects:
                self.answer(store.redirect_status, Location=store.redirects[self.path])
            elif store.authorization and not headers.get("authorization", "").startswith(store.authorization):
                refusal = b"<Error><Code>AccessDenied</Code></Error>"
                if store.challenge and urlsplit(self.path).path.startswith("/v2/"):
                    self.answer(401, refusal, **{"WWW-Authenticate": store.challenge})
                elif not store.challenge:
                    self.answer(403, refusal)
                else:
                    return False
            else:
                return False
            return True

        def do_GET(self) -> None:
            if self.refused():
                return
            if "list-type=2" in self.path or "comp=list" in self.path:
                self.list()
                return
            body = store.objects.get(self.path, store.objects.get(unquote(self.path)))
            if body is None:
                self.answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
            elif self.path in store.truncated and self.command == "GET":
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
                self.end_headers()
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            elif self.path in store.silent and self.command == "GET":
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.close_connection = store.closed.wait()
            elif self.path in store.cuts and self.command == "GET":
                self.part(body)
            else:
                self.answer(200, body)

        do_HEAD = do_GET

        def part(self, body: bytes) -> None:
            """As much of the object as comes at a time, from where it was asked for."""
            mark, asked = store.marks.get(self.path, '"1"'), self.headers.get("Range")
            if asked and self.headers.get("If-Match") != mark:
                self.answer(412)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body) - start))
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.send_header("ETag", mark)
            self.end_headers()
            self.wfile.write(body[start : start + store.cuts[self.path]])
            self.close_connection = True
            store.after_cut()

        def list(self) -> None:
            parts = urlsplit(self.path)
            (prefix,) = parse_qs(parts.query).get("prefix", [""])
            bucket = parts.path.rstrip("/") + "/"
            if "comp=list" in parts.query:
                blobs = "".join(
                    f"<Blob><Name>{path.removeprefix(bucket)}</Name><Properties><Last-Modified>"
                    f"{format_datetime(store.modified.get(path, LONG_AGO), usegmt=True)}</Last-Modified>"
                    f"<Content-Length>{len(body)}</Content-Length><Content-Type>x</Content-Type>"
                    "<Etag>1</Etag></Properties></Blob>"
                    for path, body in sorted(store.objects.items())
                    if path.startswith(bucket + prefix)
                )
                self.answer(200, f"<EnumerationResults><Blobs>{blobs}</Blobs></EnumerationResults>".encode())
                return
            items = "".join(
                f"<Contents><Key>{path.removeprefix(bucket)}</Key><Size>{len(body)}</Size><LastModified>"
                f"{store.modified.get(path, LONG_AGO).isoformat()}</LastModified><ETag>1</ETag></Contents>"
                for path, body in sorted(store.objects.items())
                if path.startswith(bucket + prefix)
            )
            self.answer(
                200, f"<ListBucketResult><IsTruncated>false</IsTruncated>{items}</ListBucketResult>".encode()
            )

        def do_POST(self) -> None:
            """DeleteObjects, which obstore also asks for one; of Azure a batch."""
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if "comp=batch" in self.path:
                self.delete_blobs(re.findall(r"^DELETE (\S+) HTTP/1.1\r$", body, re.MULTILINE))
                return
            wanted = re.findall(r"<Key>([^<]+)</Key>", body)
            parts = ""
            for key in wanted:
                path = f"{urlsplit(self.path).path.rstrip('/')}/{key}"
                store.requests.append(("DELETE", path))
                if path in store.statuses:
                    parts += (
                        f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>Access"
                        " Denied</Message></Error>"
                    )
                else:
                    store.objects.pop(path, None)
                    parts += f"<Deleted><Key>{key}</Key></Deleted>"
            self.answer(200, f"<DeleteResult>{parts}</DeleteResult>".encode())

        def delete_blobs(self, wanted: Sequence[str]) -> None:
            parts = ""
            for number, path in enumerate(wanted):
                store.requests.append(("DELETE", path))
                gone = store.objects.pop(path, store.objects.pop(unquote(path), None)) is None
                status = "404 The specified blob does not exist." if gone else "202 Accepted"
                parts += (
                    f"--part\r\nContent-Type: application/http\r\nContent-ID: {number}\r\n\r\n"
                    f"HTTP/1.1 {status}\r\nx-ms-request-id: 1\r\n\r\n"
                )
            body = f"{parts}--part--\r\n".encode()
            self.send_response(202)
            self.send_header("Content-Type", "multipart/mixed; boundary=part")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.refused():
                return
            only_new = self.headers.get("If-None-Match") == "*" or (
                self.headers.get("x-goog-if-generation-match") == "0"
            )
            if only_new and not store.conditional:
                self.answer(501)
            elif only_new and self.path in store.objects:
                self.answer(409 if self.headers.get("x-ms-blob-type") else 412)
            else:
                store.objects[self.path] = body
                self.answer(201 if self.headers.get("x-ms-blob-type") else 200)

        def do_DELETE(self) -> None:
            if not self.refused():
                found = store.objects.pop(self.path, None) is not None
                self.answer((202 if "x-ms-version" in self.headers else 204) if found else 404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    store.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield store
    finally:
        store.closed.set()
        server.shutdown()
        server.server_close()


def centres(seed: int = 0) -> np.ndarray:
    """[CLASSES, FEATURES] float32."""
    return np.random.default_rng(seed).normal(0, 2, (CLASSES, FEATURES)).astype(np.float32)


def classifier(
    batch: int | str = "n",
    *,
    weights: np.ndarray | None = None,
    extra_labels: bool = False,
    hidden: int = 64,
    opset: int = 17,
) -> onnx.ModelProto:
    """x [batch, FEATURES] -> scores [batch, CLASSES], a nearest-centre classifier as two products;
    ``extra_labels``: classes come first.
    """
    rng = np.random.default_rng(1)
    w = centres() if weights is None else weights
    # |x - c|^2 = |x|^2 - 2 x.c + |c|^2: the scores are 2 x.c - |c|^2. A random map into a wider
    # space and back gives the quantizer something to do.
    first = rng.normal(size=(FEATURES, hidden)).astype(np.float32)
    second = (np.linalg.pinv(first) @ (2 * w.T)).astype(np.float32)
    constants = [
        numpy_helper.from_array(first, "w1"),
        numpy_helper.from_array(second, "w2"),
        numpy_helper.from_array(-(w**2).sum(1).astype(np.float32), "b"),
    ]
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["h"]),
        helper.make_node("MatMul", ["h", "w2"], ["s"]),
        helper.make_node("Add", ["s", "b"], ["scores"]),
    ]
    outputs = [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, CLASSES])]
    if extra_labels:
        nodes.append(helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0))
        outputs.insert(0, helper.make_tensor_value_info("label", TensorProto.INT64, [batch]))
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, FEATURES])],
        outputs,
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def samples(n: int, seed: int = 2, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """([n, FEATURES] float32, [n] int64)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    return (centres()[labels] + rng.normal(0, noise, (n, FEATURES))).astype(np.float32), labels


def npz(**arrays: np.ndarray) -> bytes:
    """An archive's bytes."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def labelled(n: int, seed: int = 2, **more: np.ndarray) -> bytes:
    """A data set for ``classifier``."""
    x, y = samples(n, seed)
    return npz(x=x, labels=y, **more)


def save(model: onnx.ModelProto, folder: Path, name: str = "m.onnx") -> Path:
    """Write the model."""
    path = folder / name
    path.write_bytes(model.SerializeToString())
    return path


def dataset(location: Location, **fields: Any) -> DataSet:
    """A data set at that place."""
    return DataSet(location=location, **fields)


def known(*results: TaskResult) -> tuple[Recorded, ...]:
    """The artifacts that revisions record, as an operator hands them to a Job."""
    return tuple(Recorded(uri=r.artifact_uri or "", digest=r.artifact_digest or "") for r in results)
