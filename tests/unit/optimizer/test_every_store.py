"""A model is pinned, prepared and fetched for a server, whatever stores it and its artifact lie
in.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelrollout.api.uris import STORE_KINDS
from modelrollout.contract.common import Location
from modelrollout.contract.tasks import Batching, CleanTask, FetchTask, PrepareTask, ResolveTask
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.optimizer.store.cleanup import clean
from modelrollout.optimizer.store.schemes import SCHEMES
from modelrollout.testing.object_store import SALT, ObjectStore, classifier, object_store
from tests.unit.optimizer.store_kinds import KINDS, layer, push, sha256

MODEL = classifier(hidden=4).SerializeToString()
DIGEST = hashlib.sha256(MODEL).hexdigest()
WRITTEN = [scheme for scheme in KINDS if STORE_KINDS[scheme].keeps_artifacts]


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


def source(server: ObjectStore, scheme: str) -> Location:
    """The model in a store of that kind."""
    if scheme == "oci":
        server.objects[f"/v2/team/model/blobs/sha256:{sha256(MODEL)}"] = MODEL
        return server.oci(push(server, "team/model", layer("m.onnx", MODEL)))
    KINDS[scheme].put(server, "m.onnx", MODEL)
    return KINDS[scheme].location(server, "m.onnx", None)


def task(server: ObjectStore, source_scheme: str, artifacts_scheme: str) -> PrepareTask:
    return PrepareTask(
        source=source(server, source_scheme),
        sha256=DIGEST,
        steps=(),
        gate=None,
        batching=Batching(max_batch_size=16, max_queue_delay_us=500),
        artifacts=KINDS[artifacts_scheme].location(server, "team-a/", None),
        salt=SALT,
    )


@pytest.mark.parametrize("scheme", KINDS)
def test_a_model_is_pinned_and_prepared(server: ObjectStore, scheme: str) -> None:
    made = task(server, scheme, "s3")
    resolved = run(ResolveTask(source=made.source), Progress())
    assert (resolved.sha256, resolved.size_bytes) == (DIGEST, len(MODEL))
    assert run(made, Progress()).artifact_size_bytes == len(MODEL)


@pytest.mark.parametrize("scheme", WRITTEN)
def test_a_server_fetches_what_was_prepared_and_clean_up_removes_it(
    server: ObjectStore, tmp_path: Path, scheme: str
) -> None:
    made = task(server, "s3", scheme)
    result = run(made, Progress())
    assert result.artifact_uri and result.artifact_digest
    artifact = made.artifacts.model_copy(update={"uri": result.artifact_uri})
    target = tmp_path / "models"
    target.mkdir()
    run(
        FetchTask(
            artifact=artifact, digest=result.artifact_digest, model="digits", number=7, target=str(target)
        ),
        Progress(),
    )
    assert (target / "digits" / "7" / "model.onnx").read_bytes() == MODEL
    if SCHEMES[scheme].lists:
        (tmp_path / "references.json").write_text('{"artifacts": [], "untouched": []}')
        whole = made.artifacts.uri.removesuffix("team-a/")
        clean(
            CleanTask(
                artifacts=made.artifacts.model_copy(update={"uri": whole}),
                references=str(tmp_path / "references.json"),
                older_than_seconds=3600,
            ),
            Progress(),
        )
        assert not [path for path in server.objects if "/team-a/" in path]
