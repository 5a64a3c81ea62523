"""Clean-up of the artifact store: by reference and by age, and never what a Job is about to
use.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from modelrollout.contract.tasks import CleanTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.store import cleanup
from modelrollout.optimizer.store.backend import Listed
from modelrollout.optimizer.store.cleanup import deletable_artifacts
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from modelrollout.testing.object_store import ObjectStore, object_store

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
MONTH = timedelta(days=30)
A, B, C = ("a" * 64, "b" * 64, "c" * 64)
ROOT = "s3://artifacts/all"


def listed(folder: str, age_days: float, *files: str, size: int = 10) -> list[Listed]:
    return [
        Listed(f"{folder}/{file}", size, NOW - timedelta(days=age_days))
        for file in files or ("manifest.json", "model-0.onnx")
    ]


def goes(
    objects: list[Listed], retained: tuple[str, ...] = (), namespaces: tuple[str, ...] = (), root: str = ROOT
) -> set[str]:
    return set(deletable_artifacts(objects, root, frozenset(retained), frozenset(namespaces), NOW - MONTH))


def test_a_namespace_in_which_something_cannot_be_read_stays_as_it_is() -> None:
    objects = [*listed(f"ml/{A}", 40), *listed(f"deep/{A}", 40)]
    assert set(
        deletable_artifacts(objects, ROOT, frozenset(), frozenset(), NOW - MONTH, frozenset({"deep"}))
    ) == {f"ml/{A}"}


def test_what_is_old_and_not_referred_to_goes() -> None:
    objects = listed(f"ml/{A}", 40) + listed(f"ml/{B}", 40) + listed(f"ml/{C}", 20)
    assert goes(objects, (f"{ROOT}/ml/{B}",)) == {f"ml/{A}"}
    assert goes(objects, (f"{ROOT}/ml/{B}",), root=f"{ROOT}/") == {f"ml/{A}"}


def test_the_youngest_file_is_the_age() -> None:
    assert goes(listed(f"ml/{A}", 400) + listed(f"ml/{A}", 1, "used.json")) == set(), (
        "an earlier operator's Job has found it"
    )
    assert goes(listed(f"ml/{A}", 400) + listed(f"ml/{A}", 31, "used.json")) == {f"ml/{A}"}


def test_folders_of_a_run_are_artifacts_too_and_nothing_else_is() -> None:
    run = f"{A}-{'5a17' * 4}-0f0f0f0f"
    assert goes(listed(f"ml/{run}", 40)) == {f"ml/{run}"}
    assert goes(listed(f"ml/{run}", 40), (f"{ROOT}/ml/{run}",)) == set()
    assert goes(listed(f"ml/{run}-x", 40) + listed(f"ml/{A}-", 40) + listed(f"ml/{A}-1", 40)) == set()


def test_a_reference_in_another_namespace_is_another_artifact() -> None:
    assert goes(listed(f"ml/{A}", 40), (f"{ROOT}/other/{A}",)) == {f"ml/{A}"}


def test_only_in_the_namespaces_that_were_asked() -> None:
    assert goes(listed(f"ml/{A}", 40) + listed(f"other/{A}", 40), namespaces=("ml",)) == {f"ml/{A}"}


@pytest.mark.parametrize(
    "name",
    [
        "notes.txt",
        f"{A}/manifest.json",
        f"ml/{A[:-1]}/x",
        f"ml/{A}/deeper/x",
        f"ML/{A}/x",
        f"ml/{A.upper()}/x",
    ],
)
def test_what_is_not_named_like_an_artifact_is_not_ours(name: str) -> None:
    assert goes([Listed(name, 1, NOW - timedelta(days=1000))]) == set()


# --- against a store


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with object_store() as made:
        for key in (A, B):
            for file in ("manifest.json", "model-0.onnx", "claim-1.json"):
                made.objects[f"/artifacts/all/ml/{key}/{file}"] = b"0123456789"
        yield made


@pytest.fixture
def task(server: ObjectStore, tmp_path: Path) -> Callable[..., CleanTask]:
    def make(in_use: object = None, **more: Any) -> CleanTask:
        path = tmp_path / "references.json"
        path.write_text(
            json.dumps({"artifacts": [f"{ROOT}/ml/{B}"], "untouched": []} if in_use is None else in_use)
        )
        return CleanTask(
            artifacts=server.s3("artifacts/all/"),
            references=str(path),
            **({"older_than_seconds": 86400.0} | more),
        )

    return make


def keys(server: ObjectStore) -> set[str]:
    return {path.split("/")[4] for path in server.objects}


def test_it_goes_manifest_first(server: ObjectStore, task: Callable[..., CleanTask]) -> None:
    result = run(task(), Progress())
    assert keys(server) == {B} and result.size_bytes == 30 and "1 artifacts" in result.message
    assert next(path for verb, path in server.requests if verb == "DELETE").endswith(f"{A}/manifest.json")
    assert run(task(), Progress()).size_bytes == 0


def test_a_whole_bucket_may_be_the_store(server: ObjectStore, task: Callable[..., CleanTask]) -> None:
    server.objects = {
        path.replace("/artifacts/all/", "/artifacts/"): body for path, body in server.objects.items()
    }
    desired = task({"artifacts": [f"s3://artifacts/ml/{B}"], "untouched": []}).model_copy(
        update={"artifacts": server.s3("artifacts/")}
    )
    assert "1 artifacts" in run(desired, Progress()).message
    assert {path.split("/")[3] for path in server.objects} == {B}
    with pytest.raises(JobError, match="names no object"):
        Store(server.s3("artifacts/"), "spec.model.uri")


def test_a_dry_run_only_says_so(server: ObjectStore, task: Callable[..., CleanTask]) -> None:
    result = run(task(dry_run=True), Progress())
    assert keys(server) == {A, B} and "would free 30 bytes" in result.message


def test_what_is_found_while_it_lists_stays(
    server: ObjectStore, task: Callable[..., CleanTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = cleanup.deletable_artifacts

    def late(*args: Any) -> Any:
        actual = real(*args)
        server.objects[f"/artifacts/all/ml/{A}/used.json"] = b"{}"
        server.modified[f"/artifacts/all/ml/{A}/used.json"] = datetime.now(UTC)
        return actual

    monkeypatch.setattr(cleanup, "deletable_artifacts", late)
    run(task(), Progress())
    assert keys(server) == {A, B}


@pytest.mark.parametrize("file", ["manifest.json", "claim-1.json", "model-0.onnx"])
def test_what_is_made_anew_while_it_deletes_others_stays(
    server: ObjectStore, task: Callable[..., CleanTask], monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    """An earlier operator's Job makes what is left of an artifact again, under the same names."""
    real = cleanup.deletable_artifacts

    def late(*args: Any) -> Any:
        actual = real(*args)
        server.modified[f"/artifacts/all/ml/{A}/{file}"] = datetime.now(UTC)
        return actual

    monkeypatch.setattr(cleanup, "deletable_artifacts", late)
    assert run(task(), Progress()).size_bytes == 0
    assert {path.rsplit("/", 1)[1] for path in server.objects if A in path} == {
        "manifest.json",
        "model-0.onnx",
        "claim-1.json",
    }


@pytest.mark.parametrize(
    "in_use",
    [
        [],
        {},
        {"artifacts": None},
        {"artifacts": 5},
        {"artifacts": []},
        {"artifacts": [], "untouched": None},
        "x",
    ],
)
def test_a_list_that_cannot_be_read_is_no_empty_list(
    server: ObjectStore, task: Callable[..., CleanTask], in_use: object
) -> None:
    with pytest.raises(JobError) as error:
        run(task(in_use), Progress())
    assert error.value.reason == "ReferencesInvalid" and keys(server) == {A, B}


def test_no_list_at_all(server: ObjectStore, task: Callable[..., CleanTask]) -> None:
    with pytest.raises(JobError):
        run(task().model_copy(update={"references": "/no/such"}), Progress())
    assert keys(server) == {A, B}


def test_an_age_that_would_race_is_refused(task: Callable[..., CleanTask]) -> None:
    with pytest.raises(ValueError, match="3600"):
        task(older_than_seconds=60)


def test_a_store_that_refuses_to_list_or_delete_says_so(
    server: ObjectStore, task: Callable[..., CleanTask]
) -> None:
    server.statuses[f"/artifacts/all/ml/{A}/manifest.json"] = (
        403,
        b"<Error><Code>AccessDenied</Code></Error>",
    )
    with pytest.raises(JobError) as error:
        run(task(), Progress())
    assert error.value.reason in ("AccessDenied", "CredentialsMissing") and keys(server) == {A, B}, (
        "the manifest is the first to go, or nothing goes"
    )


def test_what_is_gone_already_is_well(server: ObjectStore) -> None:
    store = Store(server.s3("artifacts/all"), "artifacts")
    store.delete(f"ml/{A}/manifest.json")
    store.delete(f"ml/{A}/manifest.json")
    assert store.size(f"ml/{A}/manifest.json") is None and store.size(f"ml/{B}/manifest.json") is not None
