"""A model whose pipeline writes to one path: what lies there is rolled out, judged, and no longer
followed once it was refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from demo.cluster import DemoError
from tests.e2e import models
from tests.e2e.conftest import Stage

pytestmark = pytest.mark.sandbox

NAME = "nightly"
PATH = f"{NAME}/model.onnx"


@pytest.fixture(scope="module")
def place(stage: Stage) -> Iterator[str]:
    """The folder that the pipeline writes to, which a policy trusts."""
    folder = stage.uri(f"{NAME}/")
    stage.apply(
        {
            "apiVersion": "modelrollout.dev/v1alpha1",
            "kind": "RolloutPolicy",
            "metadata": {"name": stage.namespace},
            "spec": {
                "selector": {"namespaces": [stage.namespace]},
                "allowedSources": {"followUnsigned": [folder]},
            },
        }
    )
    yield folder
    stage.cluster.kubectl("delete", "rpol", stage.namespace, "--ignore-not-found")


class Pipeline:
    """Writes models to the path, and has the operator look at once: five minutes are long."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage = stage
        self.files = {path.name: path for path in models.write_models(folder)}

    def write(self, file: str) -> None:
        self.stage.cluster.upload(self.stage.cluster.target.store.models, {f"e2e/{PATH}": self.files[file]})

    def look(self) -> dict[str, Any]:
        """What status says of the source after one more look."""
        before = self.follow().get("checked")
        self.stage.cluster.modelrollout("follow", NAME, "-n", self.stage.namespace)
        return self.stage.until("the look has ended", lambda: self.looked_since(before))

    def looked_since(self, before: str | None) -> dict[str, Any] | None:
        follow = self.follow()
        return follow if follow.get("checked") not in (None, before) else None

    def follow(self) -> dict[str, Any]:
        return dict((self.stage.get(NAME).get("status") or {}).get("follow") or {})

    def stable(self) -> str:
        return str(self.stage.get(NAME)["status"]["stable"]["revision"])

    def until_served(self, sha256: str) -> None:
        """Until the version with this digest is stable."""

        def look() -> bool:
            revision = self.stage.cluster.revision(self.stage.namespace, self.stable())
            ready = self.stage.condition(NAME, "Ready")["status"] == "True"
            return bool(ready and revision["spec"]["sha256"] == sha256)

        self.stage.until(f"{sha256} is stable", look, 180)


@pytest.fixture(scope="module")
def pipeline(stage: Stage, place: str, tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    made = Pipeline(stage, tmp_path_factory.mktemp("nightly"))
    made.write("good.onnx")
    golden = {"uri": stage.data("good.npz"), "min": 0.9}
    rollout = {"analysis": {"golden": golden}, "canary": {"steps": [{"weight": 100}]}}
    follow = {"uri": stage.uri(PATH), "follow": {"every": "1h"}}
    stage.apply(stage.deployment(NAME, model=follow, rollout=rollout))
    stage.until_ready(NAME)
    return made


def test_unsigned_and_elsewhere_nothing_begins(stage: Stage, pipeline: Pipeline) -> None:
    elsewhere = {"uri": stage.uri("good.onnx"), "follow": {"every": "10m"}}
    stage.apply(stage.deployment("untrusted", model=elsewhere))
    assert "spec.model.follow" in stage.until_stalled("untrusted", "FollowUnsigned")


def test_the_api_server_refuses_a_digest_beside_it_and_what_a_uri_pins(stage: Stage) -> None:
    for model, expected in (
        ({"uri": stage.uri(PATH), "sha256": "0" * 64}, "leave one of them out"),
        ({"uri": f"oci://r.example.com/m@sha256:{'0' * 64}"}, "behind which nothing changes"),
    ):
        with pytest.raises(DemoError, match=expected):
            stage.apply(stage.deployment("refused", model=model | {"follow": {"every": "10m"}}))
    with pytest.raises(DemoError, match="at least 5m"):
        short = {"uri": stage.uri(PATH), "follow": {"every": "4m"}}
        stage.apply(stage.deployment("refused", model=short))


def test_what_has_not_changed_is_not_read_and_starts_nothing(stage: Stage, pipeline: Pipeline) -> None:
    before = pipeline.stable()
    first = pipeline.look()
    assert first["etag"].startswith('"'), "the store gives strong ETags"
    again = pipeline.look()
    assert (again["sha256"], again["etag"], pipeline.stable()) == (first["sha256"], first["etag"], before)
    assert stage.condition(NAME, "Ready")["status"] == "True"


def test_new_bytes_are_rolled_out_without_a_change_of_spec(stage: Stage, pipeline: Pipeline) -> None:
    generation = stage.get(NAME)["metadata"]["generation"]
    pipeline.write("better.onnx")
    pipeline.until_served(pipeline.look()["sha256"])
    now = stage.get(NAME)
    assert now["metadata"]["generation"] == generation == now["status"]["observedGeneration"]
    assert "SourceChanged" in stage.events(NAME)


def test_what_is_refused_stops_it_until_a_person_says_follow(stage: Stage, pipeline: Pipeline) -> None:
    before = pipeline.stable()
    pipeline.write("wrong.onnx")
    wrong = pipeline.look()["sha256"]
    stage.until("it is refused", lambda: stage.condition(NAME, "Stalled")["status"] == "True", 180)
    assert stage.condition(NAME, "Following")["status"] == "False"
    assert pipeline.stable() == before and stage.condition(NAME, "Available")["status"] == "True"

    pipeline.write("third.onnx")
    third = pipeline.look()["sha256"]
    assert third != wrong
    pipeline.until_served(third)
    assert stage.condition(NAME, "Following")["status"] == "True"
