"""The registry of the distribution project: what ORAS, kit and builders of images push is read from
it, and its refusals are named.
"""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import pytest
import urllib3

from modelrollout.contract.common import Location
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.store import backend
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from tests.stores.servers import HOME, free_port, installed, running, secret
from tests.unit.optimizer.store_kinds import layer, manifest, sha256

USER = urllib3.make_headers(basic_auth="reader:pw-1")
# the password by bcrypt
HTPASSWD = "reader:$2b$05$abcdefghijklmnopqrstuuBWpxjtcvvT6OCpJ0nBRrHHzydCdOOaO\n"
CONTENT = bytes(range(256)) * (1 << 14)


@dataclass(frozen=True)
class Registry:
    url: str
    secrets: Path

    def push_blob(self, content: bytes) -> None:
        begin = urllib3.request("POST", f"{self.url}/v2/team/model/blobs/uploads/", headers=USER)
        assert begin.status == 202
        place = urljoin(self.url, begin.headers["Location"])
        end = urllib3.request("PUT", f"{place}&digest=sha256:{sha256(content)}", headers=USER, body=content)
        assert end.status == 201, end.data

    def push(self, *layers: dict[str, Any]) -> str:
        self.push_blob(b"{}")
        content = manifest(*layers)
        digest = f"sha256:{sha256(content)}"
        headers = {**USER, "Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        answer = urllib3.request(
            "PUT", f"{self.url}/v2/team/model/manifests/{digest}", headers=headers, body=content
        )
        assert answer.status == 201, answer.data
        return f"team/model@{digest}"

    def store(self, path: str, credentials: str | None = "right") -> Store:
        location = Location(
            uri=f"oci://registry.example.com/{path}",
            endpoint=self.url,
            allow_http=True,
            credentials=credentials,
        )
        return Store(location, "spec.model.uri", self.secrets)


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "RETRY", {"max_retries": 0})


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    root, port = tmp_path_factory.mktemp("registry"), free_port()
    (root / "htpasswd").write_text(HTPASSWD)
    (root / "config.yml").write_text(
        "version: 0.1\n"
        "log: {level: warn}\n"
        "storage: {inmemory: {}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
        f"auth: {{htpasswd: {{realm: models, path: {root / 'htpasswd'}}}}}\n"
    )
    program = installed(HOME / "registry")
    with running(
        program, "serve", str(root / "config.yml"), port=port, log=root / "log", OTEL_TRACES_EXPORTER="none"
    ) as url:
        secret(root, "right", {"username": "reader", "password": "pw-1"})
        secret(root, "wrong", {"username": "reader", "password": "pw-2"})
        yield Registry(url, root)


def reason(store: Store) -> str:
    with pytest.raises(JobError) as error:
        store.digest(max_bytes=len(CONTENT))
    return str(error.value.reason)


def test_an_artifact_is_read(registry: Registry) -> None:
    registry.push_blob(CONTENT)
    at = registry.push(layer("m.onnx", CONTENT))
    for path in (at, f"{at}/m.onnx"):
        assert registry.store(path).digest(max_bytes=len(CONTENT)).sha256 == sha256(CONTENT)
    assert reason(registry.store(f"{at}/none.onnx")) == "ObjectMissing"


def test_a_file_of_an_image_is_read(registry: Registry) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("models/m.onnx")
        entry.size = len(CONTENT)
        archive.addfile(entry, io.BytesIO(CONTENT))
    packed = gzip.compress(buffer.getvalue())
    registry.push_blob(packed)
    at = registry.push(layer("", packed, "application/vnd.oci.image.layer.v1.tar+gzip"))
    fetched = registry.store(f"{at}/models/m.onnx").digest(max_bytes=len(CONTENT))
    assert fetched.sha256 == sha256(CONTENT)


def test_refusals_have_their_reasons(registry: Registry) -> None:
    registry.push_blob(CONTENT)
    at = registry.push(layer("m.onnx", CONTENT))
    assert reason(registry.store(at, "wrong")) == "AccessDenied"
    assert reason(registry.store(at, None)) == "CredentialsMissing"
    assert reason(registry.store(f"team/model@sha256:{'0' * 64}")) == "ObjectMissing"
    assert reason(registry.store(f"team/none@sha256:{'0' * 64}")) == "ObjectMissing"
