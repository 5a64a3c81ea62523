"""The models of docs/tutorial/bad-model.md: good, as good, failing and wrong, as the page says."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from modelrollout.contract.tasks import Batching, PrepareTask
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.__main__ import run
from modelrollout.testing.object_store import SALT, object_store

PAGE = Path(__file__).resolve().parents[3] / "docs" / "tutorial" / "bad-model.md"
VERSIONS = ("v1", "v2", "v3", "v4")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which a reader has run the page's script."""
    (script,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.S | re.M)
    monkeypatch.chdir(tmp_path)
    exec(script, {})
    return tmp_path


def accuracy(model: Path) -> float:
    golden = np.load(model.parent / "golden.npz")
    (scores,) = onnxruntime.InferenceSession(str(model)).run(None, {"item": golden["item"]})
    return float(np.mean(np.argmax(scores, axis=1) == golden["labels"]))


def test_golden_data_passes_all_but_the_wrong_one(models: Path) -> None:
    assert [accuracy(models / f"{version}.onnx") for version in VERSIONS] == [1, 1, 1, 0]


def test_only_the_failing_one_fails_and_on_the_last_ten_items(models: Path) -> None:
    failing = []
    for version in VERSIONS:
        session = onnxruntime.InferenceSession(str(models / f"{version}.onnx"))
        for item in range(100):
            try:
                session.run(None, {"item": np.array([[item]], np.int64)})
            except onnxruntime.capi.onnxruntime_pybind11_state.InvalidArgument:
                failing.append((version, item))
    assert failing == [("v3", item) for item in range(90, 100)]


def test_the_prepare_job_takes_each_of_them(models: Path) -> None:
    with object_store() as store:
        for version in VERSIONS:
            model = (models / f"{version}.onnx").read_bytes()
            store.objects[f"/models/shop/{version}/model.onnx"] = model
            task = PrepareTask(
                source=store.s3(f"models/shop/{version}/model.onnx"),
                sha256=hashlib.sha256(model).hexdigest(),
                batching=Batching(max_batch_size=1, max_queue_delay_us=0),
                artifacts=store.s3("artifacts/demo/"),
                salt=SALT,
            )
            done = run(task, Progress())
            assert done.artifact_uri, done
