"""Looks at a source that is followed: what has not changed costs one request and no download."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from modelrollout.api.uris import FOLLOWED
from modelrollout.contract.common import Location
from modelrollout.contract.tasks import Known, ResolveTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.pipeline.resolve import resolve
from modelrollout.optimizer.store import backend
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from modelrollout.testing.object_store import ObjectStore, object_store
from tests.unit.optimizer.store_kinds import CONTENT, KINDS, SECRET, mounted

SHA, OTHER = hashlib.sha256(CONTENT).hexdigest(), hashlib.sha256(b"other").hexdigest()
MARK = '"v7"'
FAST = {"init_backoff": timedelta(0), "max_backoff": timedelta(0), "base": 1}
SCHEMES = [kind for kind in KINDS if kind in FOLLOWED]


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


def put(server: ObjectStore, kind: str, content: bytes = CONTENT, mark: str = MARK) -> Location:
    KINDS[kind].put(server, "m.onnx", content)
    server.marks[KINDS[kind].path("m.onnx")] = mark
    return KINDS[kind].location(server, "m.onnx", None)


def look(source: Location, etag: str | None = None) -> tuple[str | None, int | None, str | None]:
    known = Known(etag=etag, sha256=SHA) if etag else None
    found = resolve(ResolveTask(source=source, follow=True, known=known), Progress())
    return found.sha256, found.size_bytes, found.etag


def test_each_mutable_scheme_is_tried_here() -> None:
    assert {*SCHEMES, "https", "abfs"} == set(FOLLOWED), "https is http, abfs is az"


@pytest.mark.parametrize("kind", SCHEMES)
def test_the_first_look_reads_all_and_keeps_the_etag(server: ObjectStore, kind: str) -> None:
    assert look(put(server, kind)) == (SHA, len(CONTENT), MARK)


@pytest.mark.parametrize("knows", [True, False], ids=["304", "200"])
@pytest.mark.parametrize("kind", SCHEMES)
def test_the_same_etag_is_one_request_and_no_download(server: ObjectStore, kind: str, knows: bool) -> None:
    """Also where the store knows no If-None-Match: nothing of the answer's body is read."""
    source, path = put(server, kind), KINDS[kind].path("m.onnx")
    if knows:
        server.statuses[path] = (304, b"")
    else:
        server.cuts[path] = 0  # it announces a body that never comes
    assert look(source, MARK) == (SHA, None, MARK)
    assert [method for method, _ in server.requests] == ["GET"]
    assert server.headers[0]["if-none-match"] == MARK


@pytest.mark.parametrize("kind", SCHEMES)
def test_another_etag_is_read(server: ObjectStore, kind: str) -> None:
    assert look(put(server, kind, b"other", '"v8"'), MARK) == (OTHER, 5, '"v8"')


@pytest.mark.parametrize("kind", SCHEMES)
def test_with_credentials_the_condition_is_sent_too(server: ObjectStore, kind: str, tmp_path: Path) -> None:
    put(server, kind)
    root = mounted(tmp_path, KINDS[kind].keys())
    store = Store(KINDS[kind].location(server, "m.onnx", SECRET), "spec.model.uri", root)
    server.statuses[KINDS[kind].path("m.onnx")] = (304, b"")
    assert store.newer(MARK, max_bytes=1 << 20) is None


@pytest.mark.parametrize(
    "mark",
    ['W/"v7"', "v7", '""', '"' + "x" * 300 + '"', '"a b"'],
    ids=["weak", "unquoted", "empty", "long", "with-a-space"],
)
def test_an_etag_that_says_nothing_of_the_bytes_is_not_kept(server: ObjectStore, mark: str) -> None:
    assert look(put(server, "http", mark=mark)) == (SHA, len(CONTENT), None)


@pytest.mark.parametrize(
    "mark",
    ["v7\r\nX-More: 1", "*", '"\u2603"', '"' + "x" * 10_000 + '"'],
    ids=["lines", "any", "no-ascii", "long"],
)
def test_what_is_no_strong_etag_is_not_sent(server: ObjectStore, mark: str) -> None:
    """Of a status that a person edited: each look would fail, or none see other bytes."""
    assert look(put(server, "http", b"other"), mark) == (OTHER, 5, MARK)
    assert "if-none-match" not in server.headers[0]


def test_a_304_that_was_not_asked_for_is_no_answer(server: ObjectStore) -> None:
    source = put(server, "http")
    server.statuses[KINDS["http"].path("m.onnx")] = (304, b"")
    with pytest.raises(JobError) as error:
        look(source)
    assert error.value.reason == "StoreUnavailable"


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [(404, b"<Code>NoSuchKey</Code>", "ObjectMissing"), (403, b"", "CredentialsMissing")],
    ids=["missing", "refused"],
)
def test_faults_have_their_usual_words(server: ObjectStore, status: int, body: bytes, reason: str) -> None:
    source = put(server, "s3")
    server.statuses[KINDS["s3"].path("m.onnx")] = (status, body)
    with pytest.raises(JobError) as error:
        look(source, MARK)
    assert error.value.reason == reason


def test_what_is_replaced_while_it_is_read_is_not_taken(
    server: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ETag and bytes are of one answer."""
    monkeypatch.setattr(backend, "RETRY", {"max_retries": 2, "backoff": FAST})
    source, path = put(server, "http"), KINDS["http"].path("m.onnx")
    server.cuts[path] = len(CONTENT) // 2
    server.after_cut = lambda: server.marks.update({path: '"v8"'})
    with pytest.raises(JobError) as error:
        look(source)
    assert error.value.reason == "ObjectReplaced"


def test_too_large_is_seen_before_it_is_read(server: ObjectStore) -> None:
    source = put(server, "http")
    with pytest.raises(JobError) as error:
        resolve(ResolveTask(source=source, follow=True, max_bytes=10), Progress())
    assert error.value.reason == "TooLarge"


@pytest.mark.parametrize("kind", ["hf", "oci"])
def test_what_a_uri_pins_is_not_followed(server: ObjectStore, kind: str) -> None:
    KINDS[kind].put(server, "m.onnx", CONTENT)
    with pytest.raises(JobError) as error:
        look(KINDS[kind].location(server, "m.onnx", None))
    assert error.value.reason == "UriInvalid" and "leave spec.model.follow out" in error.value.message
