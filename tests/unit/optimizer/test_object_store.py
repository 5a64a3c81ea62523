"""Fetching: every failure of a store has its own reason, seen through the real client against a
real HTTP server.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelrollout.contract.common import Location
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.tasks import ResolveTask
from modelrollout.jobs import log
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.pipeline.resolve import resolve
from modelrollout.optimizer.store import http_client
from modelrollout.optimizer.store import object_store as fetch
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from modelrollout.optimizer.store.object_store import expect_digest
from modelrollout.telemetry.redaction import redact_known
from modelrollout.testing.object_store import ObjectStore, object_store

CONTENT = bytes(range(256)) * 4096
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        store.objects["/models/a/m.onnx"] = CONTENT
        yield store


def secret(root: Path, name: str, **keys: str) -> Path:
    (root / name).mkdir(parents=True)
    for key, value in keys.items():
        (root / name / key).write_text(value + "\n")
    return root


def error_of(
    location: Location, tmp_path: Path, max_bytes: int = 1 << 30, credentials: Path | None = None
) -> JobError:
    with pytest.raises(JobError) as error:
        Store(location, "spec.model.uri", credentials or tmp_path).download(
            tmp_path / "out", max_bytes=max_bytes
        )
    assert "spec.model.uri" in error.value.message
    return error.value


@pytest.mark.parametrize("kind", ["s3", "http"])
def test_download(server: ObjectStore, tmp_path: Path, kind: str) -> None:
    seen: list[tuple[int, int | None]] = []
    downloaded = Store(getattr(server, kind)("models/a/m.onnx"), "f").download(
        tmp_path / "out", max_bytes=len(CONTENT), advance=lambda *a: seen.append(a)
    )
    assert (downloaded.sha256, downloaded.size) == (SHA, len(CONTENT))
    assert (tmp_path / "out").read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))


def test_resolve_pins_digest_and_size(server: ObjectStore) -> None:
    result = resolve(ResolveTask(source=server.s3("models/a/m.onnx")), log.Progress())
    assert (result.sha256, result.size_bytes) == (SHA, len(CONTENT))


@pytest.mark.parametrize("uri", ["ftp://h/x", "file:///etc/passwd", "acme://b/k", "/models/m.onnx", ""])
def test_unsupported_scheme(uri: str, tmp_path: Path) -> None:
    error = error_of(Location(uri=uri), tmp_path)
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "UnsupportedScheme")


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket",
        "s3:///key",
        "s3://bucket/a//b",
        "s3://bucket/../b",
        "https://host",
        "https://user:hunter2@host/m",
        "https://host/m?sig=hunter2",
    ],
)
def test_uri_that_names_no_object_or_carries_a_secret(uri: str, tmp_path: Path) -> None:
    error = error_of(Location(uri=uri), tmp_path)
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "UriInvalid")
    assert "hunter2" not in error.message


def test_plain_http_needs_leave(server: ObjectStore, tmp_path: Path) -> None:
    for location in (server.http("models/a/m.onnx"), server.s3("models/a/m.onnx")):
        error = error_of(location.model_copy(update={"allow_http": False}), tmp_path)
        assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "InsecureStore")
    assert not server.requests


@pytest.mark.parametrize("kind", ["s3", "http"])
@pytest.mark.parametrize(
    ("status", "body", "code", "reason"),
    [
        (404, b"", ExitCode.BAD_INPUT, "ObjectMissing"),
        (404, b"<Error><Code>NoSuchBucket</Code></Error>", ExitCode.BAD_INPUT, "BucketMissing"),
        (404, b"<Error><Code>XAdminUserNotFound</Code></Error>", ExitCode.DENIED, "AccessDenied"),
        (404, b"<Error><Code>InvalidAccessKeyId</Code></Error>", ExitCode.DENIED, "AccessDenied"),
        (400, b"", ExitCode.BAD_INPUT, "StoreRefused"),
        (400, b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>", ExitCode.BAD_INPUT, "WrongRegion"),
        (401, b"", ExitCode.DENIED, "CredentialsMissing"),
        (403, b"", ExitCode.DENIED, "CredentialsMissing"),
        (429, b"", ExitCode.RETRYABLE, "StoreUnavailable"),
        (500, b"", ExitCode.RETRYABLE, "StoreUnavailable"),
        (503, b"", ExitCode.RETRYABLE, "StoreUnavailable"),
    ],
)
def test_status(
    server: ObjectStore, tmp_path: Path, kind: str, status: int, body: bytes, code: ExitCode, reason: str
) -> None:
    server.statuses["/models/a/m.onnx"] = (status, body)
    error = error_of(getattr(server, kind)("models/a/m.onnx"), tmp_path)
    assert (error.code, error.reason) == (code, reason)


def test_missing_object_is_named(server: ObjectStore, tmp_path: Path) -> None:
    assert "s3://models/none.onnx" in error_of(server.s3("models/none.onnx"), tmp_path).message


def test_refused_with_credentials_is_another_reason(server: ObjectStore, tmp_path: Path) -> None:
    root = secret(tmp_path, "reader", AWS_ACCESS_KEY_ID="AKIA", AWS_SECRET_ACCESS_KEY="wrong", token="wrong")
    server.statuses["/models/a/m.onnx"] = (403, b"")
    for location in (server.s3("models/a/m.onnx", "reader"), server.http("models/a/m.onnx", "reader")):
        error = error_of(location, tmp_path, credentials=root)
        assert (error.code, error.reason) == (ExitCode.DENIED, "AccessDenied")


def test_credentials_are_sent(server: ObjectStore, tmp_path: Path) -> None:
    secret(
        tmp_path, "keys", AWS_ACCESS_KEY_ID="AKIA", AWS_SECRET_ACCESS_KEY="sk-123", AWS_SESSION_TOKEN="st-123"
    )
    secret(tmp_path, "bearer", token="tok-123")
    secret(tmp_path, "basic", username="me", password="pw-123")
    for name, kind, scheme in (
        ("keys", "s3", "AWS4-HMAC-SHA256 Credential=AKIA/"),
        ("bearer", "http", "Bearer tok-123"),
        ("basic", "http", "Basic bWU6cHctMTIz"),
    ):
        server.authorization = scheme
        downloaded = Store(getattr(server, kind)("models/a/m.onnx", name), "f", tmp_path).download(
            tmp_path / "out", max_bytes=1 << 30
        )
        assert downloaded.sha256 == SHA
    assert server.headers[0]["x-amz-security-token"] == "st-123"
    assert redact_known("sk-123 st-123 tok-123 pw-123 bWU6cHctMTIz") == "*** *** *** *** ***"


def test_anonymous_means_no_signature(
    server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "from-the-environment")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "from-the-environment")
    Store(server.s3("models/a/m.onnx"), "f").download(tmp_path / "out", max_bytes=1 << 30)
    assert "authorization" not in server.headers[0]


@pytest.mark.parametrize(
    ("kind", "keys", "missing"),
    [
        ("s3", {"AWS_ACCESS_KEY_ID": "A"}, "AWS_SECRET_ACCESS_KEY"),
        ("s3", {"AWS_SECRET_ACCESS_KEY": "S", "AWS_ACCESS_KEY_ID": ""}, "AWS_ACCESS_KEY_ID"),
        ("s3", {"token": "t"}, "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("http", {"username": "u"}, "password"),
    ],
)
def test_incomplete_secret(
    server: ObjectStore, tmp_path: Path, kind: str, keys: dict[str, str], missing: str
) -> None:
    root = secret(tmp_path, "reader", **keys)
    error = error_of(getattr(server, kind)("models/a/m.onnx", "reader"), tmp_path, credentials=root)
    assert (error.code, error.reason) == (ExitCode.DENIED, "CredentialsIncomplete")
    assert missing in error.message


@pytest.mark.parametrize("name", ["absent", "empty", "../escape", "a/b"])
def test_secret_that_is_not_mounted(server: ObjectStore, tmp_path: Path, name: str) -> None:
    (tmp_path / "escape").mkdir()
    (tmp_path / "escape" / "token").write_text("x")
    # what the kubelet leaves for a Secret that is not there
    (tmp_path / "credentials" / "empty" / "..data").mkdir(parents=True)
    root = tmp_path / "credentials"
    (root / "a" / "b").mkdir(parents=True)
    error = error_of(server.s3("models/a/m.onnx", name), tmp_path, credentials=root)
    assert (error.code, error.reason) == (ExitCode.DENIED, "CredentialsMissing")


def test_store_away(tmp_path: Path) -> None:
    with object_store() as gone:
        pass
    for location in (gone.s3("models/a/m.onnx"), gone.http("models/a/m.onnx")):
        error = error_of(location, tmp_path)
        assert (error.code, error.reason) == (ExitCode.RETRYABLE, "StoreUnreachable")


def test_name_that_does_not_resolve(tmp_path: Path) -> None:
    error = error_of(Location(uri="https://store.invalid/m.onnx"), tmp_path)
    assert (error.code, error.reason) == (ExitCode.RETRYABLE, "StoreNotResolved")


def test_connection_that_breaks(server: ObjectStore, tmp_path: Path) -> None:
    server.truncated.add("/models/a/m.onnx")
    error = error_of(server.s3("models/a/m.onnx"), tmp_path)
    assert (error.code, error.reason) == (ExitCode.RETRYABLE, "StoreUnreachable")


def test_too_large_is_not_read(server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "CHUNK_BYTES", 1)
    error = error_of(server.s3("models/a/m.onnx"), tmp_path, max_bytes=len(CONTENT) - 1)
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "TooLarge")
    assert (tmp_path / "out").stat().st_size == 0


def test_other_bytes_than_pinned() -> None:
    expect_digest(fetch.Fetched(SHA, 1), f"sha256:{SHA}", "spec.model", "s3://b/k")
    with pytest.raises(JobError) as error:
        expect_digest(fetch.Fetched(SHA, 1), "0" * 64, "steps[0].distill.student", "s3://b/k")
    assert (error.value.code, error.value.reason) == (ExitCode.BAD_INPUT, "DigestMismatch")
    assert error.value.message.startswith(f"steps[0].distill.student.uri: s3://b/k has sha256 {SHA}, ")
    assert "correct steps[0].distill.student.sha256" in error.value.message


def test_spaces_and_percent_signs_in_names(server: ObjectStore, tmp_path: Path) -> None:
    server.objects["/models/a%20b.onnx"] = b"1"
    for location in (server.s3("models/a b.onnx"), server.http("models/a%20b.onnx")):
        assert Store(location, "f").download(tmp_path / "out", max_bytes=9).size == 1


@pytest.mark.parametrize("kind", ["s3", "http"])
@pytest.mark.parametrize("conditional", [True, False])
def test_write_once(server: ObjectStore, kind: str, conditional: bool) -> None:
    server.conditional = conditional
    store = Store(getattr(server, kind)("artifacts/key"), "artifacts")
    assert store.read("manifest.json", max_bytes=99) is None
    assert store.size("manifest.json") is None
    assert store.write("manifest.json", b"one", "create")
    again = store.write("manifest.json", b"two", "create")
    # plain HTTP and old stores know no condition: the last one wins, and find() after it tells what
    # is there
    assert again == (not conditional or kind == "http")
    assert store.read("manifest.json", max_bytes=99) == (b"two" if again else b"one")
    assert store.size("manifest.json") == 3
