"""Buckets of Google and containers of Azure: what is written is what the key says, and only where
the configuration says. ``make test-stores`` asks real servers of both.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from modelrollout.contract.common import Location
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from modelrollout.telemetry.redaction import redact_known
from modelrollout.testing.object_store import ObjectStore, object_store
from tests.unit.optimizer.store_kinds import FIELD, KINDS, SECRET, account, mounted, pem, private_key

CLOUDS = ("gs", "az")


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def other() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.mark.parametrize("scheme", CLOUDS)
@pytest.mark.parametrize("secret", [SECRET, None])
def test_what_is_written_can_be_read_listed_and_removed(
    server: ObjectStore, tmp_path: Path, scheme: str, secret: str | None
) -> None:
    kind = KINDS[scheme]
    root = mounted(tmp_path, kind.keys())
    store = Store(kind.location(server, "a b", secret), FIELD, root)
    assert store.read("m.json", max_bytes=9) is None and store.size("m.json") is None
    assert store.write("m.json", b"one", "create")
    assert not store.write("m.json", b"two", "create")
    assert store.read("m.json", max_bytes=9) == b"one" and store.size("m.json") == 3
    assert store.write("m.json", b"three")
    # the stand-in keeps paths as they were asked for
    server.objects = {path.replace("%20", " "): content for path, content in server.objects.items()}
    whole = kind.location(server, "", secret)
    whole = whole.model_copy(update={"uri": whole.uri.rstrip("/")})
    assert [(o.name, o.size) for o in Store(whole, FIELD, root, bucket=True).list()] == [("a b/m.json", 5)]
    server.objects[kind.path("a%20b/m.json")] = server.objects.pop(kind.path("a b/m.json"))
    store.delete("m.json")
    store.delete("m.json")
    assert not server.objects


@pytest.mark.parametrize("scheme", CLOUDS)
@pytest.mark.parametrize("secret", [SECRET, None])
def test_a_percent_sign_is_a_letter(
    server: ObjectStore, tmp_path: Path, scheme: str, secret: str | None
) -> None:
    kind = KINDS[scheme]
    kind.put(server, "a%2520b.onnx", b"this")
    kind.put(server, "a%20b.onnx", b"another")
    store = Store(kind.location(server, "a%20b.onnx", secret), FIELD, mounted(tmp_path, kind.keys()))
    assert b"".join(store.chunks(99)) == b"this"


@pytest.mark.parametrize("name", ["m.onnx", "a b.onnx", "a%20b.onnx", "x+y.onnx", "ü.onnx"])
def test_a_signature_of_google_is_what_google_describes(
    server: ObjectStore, tmp_path: Path, name: str
) -> None:
    """V4 with RSA: of the request in one form, with the path as it is sent."""
    kind = KINDS["gs"]
    kind.put(server, quote(name), b"this")
    Store(kind.location(server, name, SECRET), FIELD, mounted(tmp_path, kind.keys())).digest(max_bytes=9)
    ((_, path),), (headers,) = server.requests, server.headers
    assert path == f"/models/{quote(name)}"
    names = ("Algorithm", "Credential", "Date", "Expires", "SignedHeaders")
    values = {f"X-Goog-{n}": headers[f"x-goog-{n.lower()}"] for n in names}
    query = "&".join(f"{n}={quote(value, safe='')}" for n, value in values.items())
    request = ["GET", path, query, f"host:{headers['host']}", "", "host", "UNSIGNED-PAYLOAD"]
    digest = hashlib.sha256("\n".join(request).encode()).hexdigest()
    scope = values["X-Goog-Credential"].partition("/")[2]
    signed = "\n".join([values["X-Goog-Algorithm"], values["X-Goog-Date"], scope, digest])
    signature = bytes.fromhex(headers["x-goog-signature"])
    private_key().public_key().verify(signature, signed.encode(), padding.PKCS1v15(), hashes.SHA256())


def test_a_key_of_google_does_not_say_where_requests_go(
    server: ObjectStore, other: ObjectStore, tmp_path: Path
) -> None:
    root = mounted(
        tmp_path, {"GOOGLE_SERVICE_ACCOUNT_KEY": account(gcs_base_url=other.url, token_uri=other.url)}
    )
    store = Store(server.gs("models/a", SECRET), FIELD, root)
    assert store.write("m.json", b"one") and store.read("m.json", max_bytes=9) == b"one"
    assert not other.requests and len(server.requests) == 2


@pytest.mark.parametrize("scheme", CLOUDS)
def test_variables_of_the_pod_choose_nothing(
    server: ObjectStore, other: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    for name, value in {
        "GOOGLE_BASE_URL": other.url,
        "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "key.json"),
        "GOOGLE_BUCKET": "elsewhere",
        "AZURE_STORAGE_ENDPOINT": other.url,
        "AZURE_STORAGE_TOKEN": "from-the-environment",
        "AZURE_STORAGE_ACCOUNT_NAME": "elsewhere",
        "AZURE_CONTAINER_NAME": "elsewhere",
        "AZURE_CLIENT_ID": "id",
        "AZURE_TENANT_ID": "id",
        "AZURE_FEDERATED_TOKEN_FILE": str(tmp_path / "token"),
        "AZURE_AUTHORITY_HOST": other.url,
    }.items():
        monkeypatch.setenv(name, value)
    kind = KINDS[scheme]
    for secret in (SECRET, None):
        store = Store(kind.location(server, "a", secret), FIELD, mounted(tmp_path, kind.keys()))
        assert store.write("m.json", b"one") and store.read("m.json", max_bytes=9) == b"one"
    assert {path for _, path in server.requests} == {kind.path("a/m.json")} and not other.requests
    assert all("from-the-environment" not in str(headers) for headers in server.headers)


def test_a_signature_of_azure_goes_along(server: ObjectStore, tmp_path: Path) -> None:
    root = mounted(tmp_path, {"AZURE_STORAGE_SAS_TOKEN": "?sv=2023-11-03&sp=rw&sig=hunter2%2B"})
    store = Store(server.az("models/a", SECRET), FIELD, root)
    server.authorization = "SAS hunter2+"
    assert store.write("m.json", b"one") and store.read("m.json", max_bytes=9) == b"one"
    server.authorization = "SAS another"
    with pytest.raises(JobError) as error:
        store.read("m.json", max_bytes=9)
    assert error.value.reason == "AccessDenied" and "hunter2" not in error.value.message
    assert redact_known("?sv=2023-11-03&sp=rw&sig=hunter2%2B") == "?***"


@pytest.mark.parametrize(
    ("scheme", "keys"),
    [
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": "{"}),
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": "[]"}),
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": account(private_key="hunter2")}),
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": account(client_email="")}),
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": account(client_email="hunter2\ud800")}),
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": account(client_email="hunter2\n")}),
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": account(private_key_id="hunter2\n")}),
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": account(private_key="hunter2\ud800")}),
        ("gs", {"GOOGLE_SERVICE_ACCOUNT_KEY": account(private_key=pem(private_key(1024)))}),
        ("az", {"AZURE_STORAGE_SAS_TOKEN": "hunter2-and-no-pair"}),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "YWJjZB=="}),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": "account"}),
        ("az", {"AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0"}),
        ("az", {"AZURE_STORAGE_ACCOUNT_NAME": "account", "AZURE_STORAGE_ACCOUNT_KEY": "hunter2!"}),
    ],
)
def test_keys_that_cannot_be_used(
    server: ObjectStore, tmp_path: Path, scheme: str, keys: dict[str, str]
) -> None:
    with pytest.raises(JobError) as error:
        Store(KINDS[scheme].location(server, "m.onnx", SECRET), FIELD, mounted(tmp_path, keys))
    assert (error.value.code, error.value.reason) == (ExitCode.DENIED, "CredentialsIncomplete")
    assert "hunter2" not in error.value.message


@pytest.mark.parametrize(
    ("scheme", "code"), [("gs", "NoSuchBucket"), ("az", "ContainerNotFound"), ("s3", "NoSuchBucket")]
)
def test_a_bucket_that_is_not_there(server: ObjectStore, tmp_path: Path, scheme: str, code: str) -> None:
    kind = KINDS[scheme]
    server.statuses[kind.path("m.onnx")] = (404, f"<Error><Code>{code}</Code></Error>".encode())
    with pytest.raises(JobError) as error:
        Store(kind.location(server, "m.onnx", None), FIELD, tmp_path).digest(max_bytes=9)
    assert (error.value.code, error.value.reason) == (ExitCode.BAD_INPUT, "BucketMissing")


def test_an_account_without_public_access_wants_credentials(server: ObjectStore, tmp_path: Path) -> None:
    body = b"<Error><Code>PublicAccessNotPermitted</Code></Error>"
    server.statuses[KINDS["az"].path("m.onnx")] = (409, body)
    with pytest.raises(JobError) as error:
        Store(server.az("models/m.onnx"), FIELD, tmp_path).digest(max_bytes=9)
    assert (error.value.code, error.value.reason) == (ExitCode.DENIED, "CredentialsMissing")


def test_a_slash_behind_the_endpoint_does_not_matter(server: ObjectStore, tmp_path: Path) -> None:
    for scheme in CLOUDS:
        location = KINDS[scheme].location(server, "a", None)
        slashed = location.model_copy(update={"endpoint": f"{location.endpoint}/"})
        store = Store(slashed, FIELD, tmp_path)
        assert store.write("m.json", b"one") and store.read("m.json", max_bytes=9) == b"one"
    assert {path for _, path in server.requests} == {KINDS[s].path("a/m.json") for s in CLOUDS}


@pytest.mark.parametrize("scheme", CLOUDS)
@pytest.mark.parametrize("secret", [SECRET, None])
def test_a_cloud_is_led_nowhere(
    server: ObjectStore, other: ObjectStore, tmp_path: Path, scheme: str, secret: str | None
) -> None:
    kind = KINDS[scheme]
    path = kind.path("a/m.json")
    server.redirects[path] = f"{other.url}{path}"
    other.objects[path] = b"another"
    store = Store(kind.location(server, "a", secret), FIELD, mounted(tmp_path, kind.keys()))
    for ask in (lambda: store.read("m.json", max_bytes=9), lambda: store.write("m.json", b"x")):
        with pytest.raises(JobError) as error:
            ask()
        assert error.value.reason == "RedirectRefused" and "endpoint" in error.value.message
    assert not other.requests


def test_azure_needs_an_endpoint(tmp_path: Path) -> None:
    with pytest.raises(JobError) as error:
        Store(Location(uri="az://models/m.onnx"), FIELD, tmp_path)
    assert "https://ACCOUNT.blob.core.windows.net" in error.value.message


def test_both_names_of_azure_are_one_store(server: ObjectStore, tmp_path: Path) -> None:
    KINDS["az"].put(server, "m.onnx", b"model")
    location = server.az("models/m.onnx")
    abfs = location.model_copy(update={"uri": "abfs://models/m.onnx"})
    assert b"".join(Store(abfs, FIELD, tmp_path).chunks(99)) == b"model"
