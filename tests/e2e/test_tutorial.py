"""docs/tutorial/bad-model.md, followed with the page's own script, object and requests: a good
version is promoted, one that fails goes back, and one that is wrong gets no request.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from tests.e2e.conftest import Stage

pytestmark = [pytest.mark.sandbox, pytest.mark.long]

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial" / "bad-model.md").read_text()
NAME, VERSIONS = "shop", ("v1", "v2", "v3", "v4")
FOLDER = "e2e/shop"
# An initial delay, two scrapes, and the requests that a proof takes.
JUDGED = 300


def block(language: str) -> str:
    (text,) = re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.S | re.M)
    return str(text)


def wanted(stage: Stage, version: str) -> dict[str, Any]:
    """The page's object, with this stage's namespace and store, and pods as small as the sandbox's
    nodes.
    """
    made: dict[str, Any] = yaml.safe_load(block("yaml"))
    bucket = f"s3://{stage.cluster.target.store.models}/{FOLDER}"
    made["metadata"]["namespace"] = stage.namespace
    spec = made["spec"]
    assert spec["model"]["uri"] == "s3://models/shop/v1/model.onnx"
    spec["model"]["uri"] = f"{bucket}/{version}/model.onnx"
    spec["rollout"]["analysis"]["golden"]["uri"] = f"{bucket}/golden.npz"
    spec["serving"]["resources"] = {
        "requests": {"cpu": "50m", "memory": "128Mi"},
        "limits": {"memory": "512Mi"},
    }
    return made


@pytest.fixture(scope="module")
def shop(stage: Stage, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """The models are in the store, and v1 serves."""
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(block("python"), {})
    models = {f"{FOLDER}/{v}/model.onnx": folder / f"{v}.onnx" for v in VERSIONS}
    stage.cluster.upload(
        stage.cluster.target.store.models, {**models, f"{FOLDER}/golden.npz": folder / "golden.npz"}
    )
    stage.apply(wanted(stage, "v1"))
    stage.until_ready(NAME)
    yield stage


@contextmanager
def clients(stage: Stage) -> Iterator[None]:
    """The page's requests: each a connection of its own, so that the Service divides them."""
    end = threading.Event()
    url = f"http://{stage.cluster.service_address(stage.namespace, NAME, 8000)}/v2/models/{NAME}/infer"

    def ask() -> None:
        item = 0
        while not end.wait(0.02):
            item = (item + 37) % 100
            tensor = {"name": "item", "datatype": "INT64", "shape": [1, 1], "data": [item]}
            try:
                requests.post(url, json={"inputs": [tensor]}, timeout=10)
            except requests.RequestException:
                continue  # the operator counts, not this client

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


def revision_of(stage: Stage, version: str) -> dict[str, Any]:
    """The revision of a version, once there is one."""
    uri = wanted(stage, version)["spec"]["model"]["uri"]

    def look() -> dict[str, Any] | None:
        listed = json.loads(stage.cluster.kubectl("get", "mrev", "-n", stage.namespace, "-o", "json"))
        return next((r for r in listed["items"] if uri in json.dumps(r["spec"])), None)

    return stage.until(f"{version} has a revision", look)


def outcome(stage: Stage, version: str) -> tuple[str, str]:
    """How a version ended, and for which reason."""
    name = revision_of(stage, version)["metadata"]["name"]

    def look() -> tuple[str, str] | None:
        status = stage.cluster.revision(stage.namespace, name).get("status") or {}
        return (status["outcome"], status.get("reason", "")) if status.get("outcome") else None

    return stage.until(f"{version} has ended", look, JUDGED)


def test_a_good_version_is_promoted(shop: Stage) -> None:
    with clients(shop):
        shop.apply(wanted(shop, "v2"))
        status = shop.until_ready(NAME, 2 * JUDGED)["status"]
    assert status["stable"]["number"] == 2


def test_a_version_that_fails_goes_back(shop: Stage) -> None:
    with clients(shop):
        shop.apply(wanted(shop, "v3"))
        assert outcome(shop, "v3") == ("RolledBack", "ErrorsHigh")
    assert shop.condition(NAME, "Available")["status"] == "True"
    assert shop.get(NAME)["status"]["stable"]["number"] == 2


def test_a_version_that_is_wrong_gets_no_request(shop: Stage) -> None:
    shop.apply(wanted(shop, "v4"))
    assert outcome(shop, "v4") == ("Rejected", "AccuracyLow")
    assert shop.get(NAME)["status"]["stable"]["number"] == 2
