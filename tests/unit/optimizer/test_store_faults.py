"""Every scheme names the same fault by the same reason and the same words: the table of
docs/reference/stores.md, against a real HTTP server that stands in for each store.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import urllib3

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.store import backend, http_client
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from modelrollout.optimizer.store.object_store import expect_digest
from modelrollout.optimizer.store.schemes import SCHEMES
from modelrollout.testing.object_store import ObjectStore, object_store
from tests.unit.optimizer.store_kinds import CONTENT, FIELD, KINDS, SECRET, Kind, mounted

ROOT = Path(__file__).parents[3]
NAME = "m.onnx"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    none = timedelta(0)
    monkeypatch.setattr(
        backend,
        "RETRY",
        {"max_retries": 2, "backoff": {"init_backoff": none, "max_backoff": none, "base": 2}},
    )
    monkeypatch.setattr(http_client, "CHUNK_BYTES", 4096)


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, server: ObjectStore) -> Kind:
    kind = KINDS[request.param]
    kind.put(server, NAME, CONTENT)
    return kind


def missing(server: ObjectStore, path: str) -> None:
    del server.objects[path]


def anonymous(server: ObjectStore, path: str) -> None:
    server.statuses[path] = (401, b"")


def forbidden(server: ObjectStore, path: str) -> None:
    server.statuses[path] = (403, b"")


def moved(server: ObjectStore, path: str) -> None:
    server.cuts[path] = 1000
    server.after_cut = lambda: server.marks.update({path: '"2"'})


def removed(server: ObjectStore, path: str) -> None:
    server.cuts[path] = 1000
    server.after_cut = lambda: server.objects.pop(path, None)


def cut_off(server: ObjectStore, path: str) -> None:
    server.truncated.add(path)


def slow(server: ObjectStore, path: str) -> None:
    server.silent.add(path)


def busy(server: ObjectStore, path: str) -> None:
    server.statuses[path] = (503, b"")


def nothing(server: ObjectStore, path: str) -> None:
    pass


Break = Callable[[ObjectStore, str], None]
# fault of the table: how it comes about, whether with a Secret, code and reason, words
FAULTS: dict[str, tuple[Break, bool, ExitCode, str, str]] = {
    "missing": (missing, True, ExitCode.BAD_INPUT, "ObjectMissing", "does not exist"),
    "forbidden, without credentials": (
        anonymous,
        False,
        ExitCode.DENIED,
        "CredentialsMissing",
        "requires credentials and spec names none",
    ),
    "forbidden": (forbidden, True, ExitCode.DENIED, "AccessDenied", "the store refused the credentials"),
    "moved while read": (
        moved,
        True,
        ExitCode.RETRYABLE,
        "ObjectReplaced",
        "was replaced or removed while it was read",
    ),
    "removed while read": (
        removed,
        True,
        ExitCode.RETRYABLE,
        "ObjectReplaced",
        "was replaced or removed while it was read",
    ),
    "cut off": (cut_off, True, ExitCode.RETRYABLE, "StoreUnreachable", "broke the connection"),
    "slow": (slow, True, ExitCode.RETRYABLE, "StoreUnreachable", "does not answer"),
    "busy": (busy, True, ExitCode.RETRYABLE, "StoreUnavailable", "answered with status 503"),
    "too large": (nothing, True, ExitCode.BAD_INPUT, "TooLarge", "is larger than the limit"),
    "wrong digest": (nothing, True, ExitCode.BAD_INPUT, "DigestMismatch", "has sha256"),
    "expired token": (nothing, True, ExitCode.DENIED, "CredentialsExpired", "have expired"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_same_words_for_the_same_fault(
    fault: str, kind: Kind, server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cause, with_secret, code, reason, words = FAULTS[fault]
    cause(server, kind.path(NAME))
    if fault == "expired token":
        server.statuses[kind.path(NAME)] = kind.expired
    if fault == "slow":
        monkeypatch.setattr(http_client, "_TIMEOUT", urllib3.Timeout(connect=5, read=0.2))
    location = kind.location(server, NAME, SECRET if with_secret else None)
    store = Store(location, FIELD, mounted(tmp_path, kind.keys()))
    with pytest.raises(JobError) as error:
        fetched = store.download(tmp_path / "out", max_bytes=len(CONTENT) - (fault == "too large"))
        expect_digest(fetched, "0" * 64, "spec.model", location.uri)
    assert (error.value.code, error.value.reason) == (code, reason)
    told = error.value.message
    assert words in told and told.startswith("spec.model") and location.uri in told
    assert not any(value in told for value in kind.keys().values())


def test_what_breaks_off_goes_on(kind: Kind, server: ObjectStore, tmp_path: Path) -> None:
    server.cuts[kind.path(NAME)] = len(CONTENT) // 2
    store = Store(kind.location(server, NAME, SECRET), FIELD, mounted(tmp_path, kind.keys()))
    fetched = store.download(tmp_path / "out", max_bytes=len(CONTENT))
    assert fetched.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert [h.get("range") for h in server.headers if "range" in h] == [f"bytes={len(CONTENT) // 2}-"]


def test_a_secret_opens_it_and_without_one_nothing_is_sent(
    kind: Kind, server: ObjectStore, tmp_path: Path
) -> None:
    root = mounted(tmp_path, kind.keys())
    Store(kind.location(server, NAME, SECRET), FIELD, root).digest(max_bytes=len(CONTENT))
    assert server.headers[-1]["authorization"]
    server.headers.clear()
    Store(kind.location(server, NAME, None), FIELD, root).digest(max_bytes=len(CONTENT))
    assert all("authorization" not in headers for headers in server.headers)


def test_a_secret_of_another_kind_is_incomplete(kind: Kind, server: ObjectStore, tmp_path: Path) -> None:
    root = mounted(tmp_path, {"something": "else"})
    with pytest.raises(JobError) as error:
        Store(kind.location(server, NAME, SECRET), FIELD, root)
    assert (error.value.code, error.value.reason) == (ExitCode.DENIED, "CredentialsIncomplete")
    assert all(key in error.value.message for key in kind.needs) and not server.requests


# keys of Secrets, each by the scheme that has it
SECRET_KEYS = [
    *((scheme, key) for scheme, kind in KINDS.items() for key in sorted(kind.keys())),
    ("http", "username"),
    ("http", "password"),
    ("az", "AZURE_STORAGE_SAS_TOKEN"),
]
ODD = {
    "two lines": b"hunter2\nhunter2",
    "CRLF": b"hunter2\r\nhunter2",
    "a folded header": b"hunter2\n hunter2",
    "NUL": b"hunter2\0hunter2",
    "DEL": b"hunter2\x7fhunter2",
    "C1": "hunter2\x85hunter2".encode(),
    "not UTF-8": b"hunter2\xff",
}


@pytest.mark.parametrize(("scheme", "key"), SECRET_KEYS)
@pytest.mark.parametrize("content", ODD.values(), ids=ODD)
def test_a_key_that_cannot_be_sent_is_named_and_not_repeated(
    server: ObjectStore, tmp_path: Path, scheme: str, key: str, content: bytes
) -> None:
    """Libraries refuse it in words that have the whole header, or with a panic."""
    kind, basic = KINDS[scheme], {"username": "me-1", "password": "pw-1"}
    root = mounted(tmp_path, basic if key in basic else kind.keys())
    (root / SECRET / key).write_bytes(content)
    with pytest.raises(JobError) as error:
        Store(kind.location(server, NAME, SECRET), FIELD, root).write(NAME, b"")
    assert (error.value.code, error.value.reason) == (ExitCode.DENIED, "CredentialsIncomplete")
    assert key in error.value.message and "hunter2" not in error.value.message and not server.requests


@pytest.mark.parametrize(
    ("scheme", "key"), [entry for entry in SECRET_KEYS if entry[1] not in ("username", "password")]
)
def test_a_key_beyond_ascii_is_named_unless_it_is_encoded(
    server: ObjectStore, tmp_path: Path, scheme: str, key: str
) -> None:
    root = mounted(tmp_path, {**KINDS[scheme].keys(), key: "hunter2\N{GREEK SMALL LETTER ALPHA}"})
    with pytest.raises(JobError) as error:
        Store(KINDS[scheme].location(server, NAME, SECRET), FIELD, root)
    assert (error.value.code, error.value.reason) == (ExitCode.DENIED, "CredentialsIncomplete")
    assert key in error.value.message and "hunter2" not in error.value.message


@pytest.mark.parametrize("scheme", ["http", "oci"])
def test_a_password_may_have_any_letters(server: ObjectStore, tmp_path: Path, scheme: str) -> None:
    kind, password = KINDS[scheme], "pass\N{GREEK SMALL LETTER ALPHA} word"
    kind.put(server, NAME, CONTENT)
    root = mounted(tmp_path, {"username": "m\N{LATIN SMALL LETTER U WITH DIAERESIS}", "password": password})
    Store(kind.location(server, NAME, SECRET), FIELD, root).digest(max_bytes=len(CONTENT))
    sent = server.headers[-1]["authorization"].removeprefix("Basic ")
    assert base64.b64decode(sent).decode().endswith(f":{password}")


def test_the_table_has_every_scheme_and_every_fault() -> None:
    page = (ROOT / "docs/reference/stores.md").read_text()
    assert {KINDS_BY_SCHEME.get(scheme, scheme) for scheme in SCHEMES} == set(KINDS)
    rows = re.findall(r"^\| ([a-z ,]+) \| `(\w+)` \| (\d+) \|", page, re.MULTILINE)
    assert rows == [(fault, reason, str(int(code))) for fault, (_, _, code, reason, _) in FAULTS.items()]


KINDS_BY_SCHEME = {"abfs": "az", "https": "http"}
