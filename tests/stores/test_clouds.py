"""Google's and Azure's protocols by servers that others wrote: fake-gcs-server and Azurite.

Azurite checks signatures. fake-gcs-server does not, and cannot write by the XML API as obstore
does: ``tests/unit/optimizer/test_buckets.py`` has both against a stand-in.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from urllib.parse import quote

import pytest
import urllib3

from modelrollout.contract.common import Location
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.store import azure_store, backend
from modelrollout.optimizer.store.http_client import Client
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from tests.stores.servers import AZURITE, HOME, free_port, installed, node, running, secret
from tests.unit.optimizer.store_kinds import account

FIELD = "spec.model.uri"
# of every Azurite
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
LARGE = bytes(range(256)) * (1 << 16)  # more than obstore sends in one request
NAMES = ("m.json", "a b.json", "a%20b.json", "x/y+z.json", "ü.json")


@dataclass(frozen=True)
class Cloud:
    """A bucket ``models``, and the folder of Secrets of which ``right`` opens it."""

    scheme: str
    endpoint: str
    secrets: Path

    def at(self, path: str, credentials: str | None = "right") -> Location:
        return Location(
            uri=f"{self.scheme}://{path}", endpoint=self.endpoint, allow_http=True, credentials=credentials
        )

    def store(self, path: str, credentials: str | None = "right", *, bucket: bool = False) -> Store:
        return Store(self.at(path, credentials), FIELD, self.secrets, bucket=bucket)


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "RETRY", {"max_retries": 0})


def make_container(endpoint: str, name: str) -> None:
    """obstore has no request for it."""
    headers = {"x-ms-date": format_datetime(datetime.now(UTC), usegmt=True), "x-ms-version": "2022-11-02"}
    lines = ["PUT", *[""] * 11, *(f"{key}:{value}" for key, value in headers.items())]
    lines += [f"/{AZURE_ACCOUNT}/{AZURE_ACCOUNT}/{name}", "restype:container"]
    digest = hmac.new(base64.b64decode(AZURE_KEY), "\n".join(lines).encode(), hashlib.sha256).digest()
    headers["Authorization"] = f"SharedKey {AZURE_ACCOUNT}:{base64.b64encode(digest).decode()}"
    answer = urllib3.request("PUT", f"{endpoint}/{name}?restype=container", headers=headers, body=b"")
    assert answer.status == 201, answer.data


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    root, port = tmp_path_factory.mktemp("azure"), free_port()
    script = installed(AZURITE)
    options = ("--blobPort", str(port), "--inMemoryPersistence", "--disableTelemetry", "--silent")
    with running(node(), script, *options, port=port, log=root / "azurite.log") as url:
        endpoint = f"{url}/{AZURE_ACCOUNT}"
        name = {"AZURE_STORAGE_ACCOUNT_NAME": AZURE_ACCOUNT}
        secret(root, "right", {**name, "AZURE_STORAGE_ACCOUNT_KEY": AZURE_KEY})
        secret(root, "wrong", {**name, "AZURE_STORAGE_ACCOUNT_KEY": "d3Jvbmc="})
        cloud = Cloud("az", endpoint, root)
        assert reason(lambda: cloud.store("absent/a").read("m.json", max_bytes=9)) == "BucketMissing"
        make_container(endpoint, "models")
        yield cloud


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    root, port = tmp_path_factory.mktemp("google"), free_port()
    program = installed(HOME / "fake-gcs-server")
    (root / "data" / "models").mkdir(parents=True)
    options = (
        *("-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory"),
        *("-public-host", f"127.0.0.1:{port}", "-data", str(root / "data")),
    )
    with running(program, *options, port=port, log=root / "gcs.log") as url:
        secret(root, "right", {"GOOGLE_SERVICE_ACCOUNT_KEY": account()})
        yield Cloud("gs", url, root)


def reason(ask: Callable[[], object]) -> str:
    with pytest.raises(JobError) as error:
        ask()
    return str(error.value.reason)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_to_azure_can_be_read_listed_and_removed(azure: Cloud, name: str) -> None:
    store = azure.store("models/a b")
    assert store.read(name, max_bytes=9) is None and store.size(name) is None
    assert store.write(name, b"one", "create")
    assert not store.write(name, b"two", "create")
    assert store.read(name, max_bytes=9) == b"one" and store.size(name) == 3
    whole = azure.store("models", bucket=True)
    assert ("a b/" + name, 3) in [(o.name, o.size) for o in whole.list()]
    store.delete(name)
    store.delete(name)
    assert store.size(name) is None


def test_what_is_large_is_written_in_parts(azure: Cloud, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    store = azure.store("models/large")
    assert store.write("weights", tmp_path / "large", "create")
    fetched = store.download(tmp_path / "out", max_bytes=len(LARGE), name="weights")
    assert fetched.sha256 == hashlib.sha256(LARGE).hexdigest()
    assert reason(lambda: store.read("weights", max_bytes=99)) == "TooLarge"


def upload(google: Cloud, name: str, content: bytes) -> None:
    """By the JSON API."""
    where = f"{google.endpoint}/upload/storage/v1/b/models/o?uploadType=media&name={quote(name, safe='')}"
    assert urllib3.request("POST", where, body=content).status == 200


@pytest.mark.parametrize("credentials", ["right", None])
@pytest.mark.parametrize("name", NAMES)
def test_what_google_has_is_read_and_listed(google: Cloud, name: str, credentials: str | None) -> None:
    upload(google, f"a b/{name}", b"one")
    store = google.store("models/a b", credentials)
    assert store.read(name, max_bytes=9) == b"one" and store.size(name) == 3
    whole = google.store("models", credentials, bucket=True)
    assert ("a b/" + name, 3) in [(o.name, o.size) for o in whole.list()]
    assert reason(lambda: store.digest(max_bytes=9)) == "ObjectMissing"


def test_a_large_object_of_google_goes_on_where_it_broke_off(
    google: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request for the rest is answered as ``Client`` expects it."""
    upload(google, "large", LARGE)
    client = Client(lambda _, path: f"{google.endpoint}/models/{path}", backend.RETRY)
    mark = urllib3.request("HEAD", f"{google.endpoint}/models/large").headers["ETag"]
    with client._answer("GET", "large", {"Range": "bytes=5-", "If-Match": mark}) as answer:
        assert answer.status == 206 and answer.headers["Content-Range"].startswith("bytes 5-")
    google_object = google.store("models/large")
    assert google_object.digest(max_bytes=len(LARGE)).sha256 == hashlib.sha256(LARGE).hexdigest()


def followed(store: Store) -> str | None:
    """The ETag of what is there, once it was not read again."""
    found = store.newer(None, max_bytes=len(LARGE))
    assert found is not None and found[0].sha256 == hashlib.sha256(b"one").hexdigest()
    assert store.newer(found[1], max_bytes=1) is None, "not even its size is looked at"
    return found[1]


def test_what_has_not_changed_in_azure_is_not_read_again(azure: Cloud) -> None:
    folder = azure.store("models/followed")
    folder.write("m.json", b"one")
    store = azure.store("models/followed/m.json")
    before = followed(store)
    folder.write("m.json", b"two")
    found = store.newer(before, max_bytes=9)
    assert found is not None and found[0].size == 3 and found[1] not in (None, before)


def test_what_has_not_changed_at_google_is_not_read_again(google: Cloud) -> None:
    upload(google, "followed", b"one")
    store = google.store("models/followed")
    before = followed(store)
    upload(google, "followed", b"two")
    found = store.newer(before, max_bytes=9)
    assert found is not None and found[0].size == 3 and found[1] != before


def test_keys_that_azure_refuses(azure: Cloud) -> None:
    azure.store("models/a").write("m.json", b"one")
    for name, told in (("wrong", "AccessDenied"), (None, "CredentialsMissing")):
        store = azure.store("models/a", name)
        asks: tuple[Callable[[], object], ...] = (
            partial(store.read, "m.json", max_bytes=9),
            partial(store.write, "m.json", b"two"),
            partial(store.delete, "m.json"),
            lambda store=store: list(store.list()),
        )
        assert [reason(ask) for ask in asks] == [told] * len(asks)


@pytest.mark.parametrize(
    ("since", "told"), [(timedelta(0), None), (timedelta(hours=1), "CredentialsExpired")]
)
def test_a_signature_of_azure_that_is_old(azure: Cloud, since: timedelta, told: str | None) -> None:
    azure.store("models/a").write("m.json", b"one")
    query = azure_store._signature(
        AZURE_ACCOUNT, azure_store._decoded(AZURE_KEY), "models/a/m.json", datetime.now(UTC) - since
    )
    name = secret(azure.secrets, f"sas-{told}", {"AZURE_STORAGE_SAS_TOKEN": query})
    store = azure.store("models/a/m.json", name)
    if told:
        assert reason(lambda: store.digest(max_bytes=9)) == told
    else:
        assert store.digest(max_bytes=9).size == 3
