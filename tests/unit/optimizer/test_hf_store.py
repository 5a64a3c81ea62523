"""The Hub of Hugging Face, by a stand-in that answers and redirects at its paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from modelrollout.contract.common import Location
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from modelrollout.testing.object_store import ObjectStore, object_store
from tests.unit.optimizer.store_kinds import COMMIT, FIELD, KINDS, SECRET, mounted

HF = KINDS["hf"]
REPOSITORY = f"org/model@{COMMIT}"


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        HF.put(server=store, name="m.onnx", content=b"model")
        yield store


@pytest.fixture
def content() -> Iterator[ObjectStore]:
    with object_store() as store:
        store.objects["/repos/1?X-Sig=1"] = b"large"
        yield store


def read(location: Location, root: Path) -> bytes:
    return b"".join(Store(location, FIELD, root).chunks(1 << 20))


def refused(location: Location, root: Path) -> str:
    with pytest.raises(JobError) as error:
        read(location, root)
    assert (error.value.code, error.value.reason) == (ExitCode.BAD_INPUT, "RedirectRefused")
    return error.value.message


def test_a_file_of_a_folder(server: ObjectStore, tmp_path: Path) -> None:
    HF.put(server, "onnx/a%2520b.onnx", b"this")
    assert read(server.hf(f"{REPOSITORY}/onnx/a%20b.onnx"), tmp_path) == b"this"


def test_a_content_host_that_is_named_gets_no_token(
    server: ObjectStore, content: ObjectStore, tmp_path: Path
) -> None:
    root = mounted(tmp_path, HF.keys())
    server.redirects[HF.path("m.onnx")] = f"{content.url}/repos/1?X-Sig=1"
    location = server.hf(f"{REPOSITORY}/m.onnx", SECRET, (f"{content.url}/repos/",))
    assert read(location, root) == b"large"
    assert server.headers[0]["authorization"] == "Bearer hf_1"
    assert all("authorization" not in headers for headers in content.headers)


def test_another_host_is_not_asked(server: ObjectStore, content: ObjectStore, tmp_path: Path) -> None:
    server.redirects[HF.path("m.onnx")] = f"{content.url}/repos/1?X-Sig=1"
    told = refused(server.hf(f"{REPOSITORY}/m.onnx", leads_to=()), tmp_path)
    assert content.url in told and "redirectsTo" in told and "X-Sig" not in told
    assert not content.requests


def test_what_is_small_lies_in_the_cache_of_the_same_repository(server: ObjectStore, tmp_path: Path) -> None:
    cached = f"/api/resolve-cache/models/org/model/{COMMIT}/m.onnx"
    server.objects[cached] = b"cached"
    server.redirects[HF.path("m.onnx")] = cached
    assert read(server.hf(f"{REPOSITORY}/m.onnx"), tmp_path) == b"cached"


@pytest.mark.parametrize(
    "place",
    [
        f"/another/model/resolve/{COMMIT}/m.onnx",
        f"/org/renamed/resolve/{COMMIT}/m.onnx",
        f"/org/model/resolve/{'f' * 40}/m.onnx",
        f"/api/resolve-cache/models/another/model/{COMMIT}/m.onnx",
        f"/org/model/resolve/{COMMIT}/../../../../another/m.onnx",
    ],
)
def test_a_repository_that_was_renamed_is_not_followed(
    server: ObjectStore, tmp_path: Path, place: str
) -> None:
    server.objects[place] = b"another"
    server.redirects[HF.path("m.onnx")] = place
    refused(server.hf(f"{REPOSITORY}/m.onnx"), tmp_path)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "path",
    [
        "org/model/m.onnx",
        "org/model@main/m.onnx",
        f"org/model@{COMMIT[:12]}/m.onnx",
        f"org/model@{COMMIT.upper()}/m.onnx",
        f"org/model@{COMMIT}",
        f"org:443/model@{COMMIT}/m.onnx",
        f"org/-model@{COMMIT}/m.onnx",
    ],
)
def test_only_a_commit_is_taken(server: ObjectStore, tmp_path: Path, path: str) -> None:
    with pytest.raises(JobError) as error:
        read(server.hf(path), tmp_path)
    assert (error.value.code, error.value.reason) == (ExitCode.BAD_INPUT, "UriInvalid")
    assert not server.requests


def test_nothing_is_written(server: ObjectStore, tmp_path: Path) -> None:
    store = Store(server.hf(f"{REPOSITORY}/folder"), FIELD, tmp_path)
    with pytest.raises(JobError) as error:
        store.write("manifest.json", b"{}")
    assert (error.value.code, error.value.reason) == (ExitCode.BAD_INPUT, "TaskInvalid")
    assert not server.requests
