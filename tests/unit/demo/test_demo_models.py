from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from demo import check, export, train
from demo.data import CLASSES, PIXELS, Split
from demo.net import Array, Net, Recipe
from demo.net import train as train_net
from modelrollout.optimizer.model import inspect


def blobs(n: int, seed: int = 0) -> Split:
    """Ten classes that a net can learn at once: each has its own bright pixels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, n)
    images = rng.random((n, PIXELS), dtype=np.float32) * np.float32(0.3)
    for i in range(20):
        images[np.arange(n), labels * 20 + i] += np.float32(0.5)
    return Split(images.astype(np.float32), labels)


@pytest.fixture(scope="module")
def net() -> Net:
    split = blobs(4000)
    return train_net(
        Recipe(hidden=(32, 16), epochs=5, seed=1), lambda _: (split.images, split.labels), CLASSES
    )


def run(path: Path, images: Array) -> Any:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(
        None, {"image": images}
    )[0]


def test_training_learns(net: Net) -> None:
    split = blobs(500, seed=9)
    assert (net.logits(split.images).argmax(axis=1) == split.labels).mean() > 0.95


def test_training_with_dropout_learns() -> None:
    split = blobs(4000)
    trained = train_net(
        Recipe(hidden=(64,), epochs=5, seed=1, dropout=0.2), lambda _: (split.images, split.labels), CLASSES
    )
    assert (trained.logits(split.images).argmax(axis=1) == split.labels).mean() > 0.95


def test_the_same_seed_gives_the_same_net() -> None:
    split = blobs(300)
    one, two = (
        train_net(Recipe(hidden=(8,), epochs=1, seed=4), lambda _: (split.images, split.labels), CLASSES)
        for _ in range(2)
    )
    assert np.array_equal(one.logits(split.images), two.logits(split.images))


def test_the_file_answers_as_the_net(net: Net, tmp_path: Path) -> None:
    export.plain(net, tmp_path / "model.onnx")
    images = blobs(7).images
    assert np.allclose(run(tmp_path / "model.onnx", images), net.logits(images), atol=1e-4)


def test_the_optimizer_takes_the_file(net: Net, tmp_path: Path) -> None:
    export.plain(net, tmp_path / "model.onnx")
    info = inspect.check(tmp_path / "model.onnx")
    assert [(t.name, t.datatype, tuple(t.shape)) for t in info.inputs] == [("image", "FP32", (-1, PIXELS))]
    assert [t.name for t in info.outputs] == ["logits"]


@pytest.mark.parametrize("batch", [1, 5])
def test_many_passes_under_dropout_give_the_same_answers(net: Net, tmp_path: Path, batch: int) -> None:
    path = tmp_path / "slow.onnx"
    export.with_monte_carlo_dropout(net, masks(16), 64, path)
    images = blobs(batch).images
    assert np.allclose(run(path, images), net.logits(images), atol=1e-3)


def test_many_passes_survive_int8(net: Net, tmp_path: Path) -> None:
    path, small = tmp_path / "slow.onnx", tmp_path / "slow.int8.onnx"
    export.with_monte_carlo_dropout(net, masks(16), 64, path)
    check.quantize(path, small, blobs(64))
    split = blobs(500, seed=9)
    assert (run(small, split.images).argmax(axis=1) == run(path, split.images).argmax(axis=1)).mean() > 0.98


def test_unbalanced_masks_are_refused(net: Net, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="balanced"):
        export.with_monte_carlo_dropout(net, masks(16)[:5], 10, tmp_path / "slow.onnx")


def test_features_that_were_standardized_in_training_are_taken_raw_by_the_file(tmp_path: Path) -> None:
    split, features = blobs(4000), train.moments()
    described, folded = train.standardized(lambda _: (split.images, split.labels), features)
    trained = train_net(Recipe(hidden=(32,), epochs=3, seed=1), described, CLASSES)
    export.with_features(folded(trained), features, tmp_path / "model.onnx")
    expected = trained.logits(described(0)[0][:50])
    assert np.allclose(run(tmp_path / "model.onnx", split.images[:50]), expected, atol=0.05)
    small = tmp_path / "small.onnx"
    check.quantize(tmp_path / "model.onnx", small, split.part(0, 64))
    float32, int8 = (
        (run(path, split.images).argmax(axis=1) == split.labels).mean()
        for path in (tmp_path / "model.onnx", small)
    )
    assert float32 > 0.9 and int8 < float32 - 0.1, "the range of the moments leaves nothing of the pixels"


def test_trained_models_are_kept_until_asked_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {name: blobs(20) for name in ("train", "calibration", "heldout", "golden", "live")}
    monkeypatch.setattr(train.data, "load", lambda root: train.Splits(**small))
    trained: list[Path] = []
    monkeypatch.setattr(train, "_train_all", lambda splits, folder, say: trained.append(folder))
    first, second, third = train.models(tmp_path), train.models(tmp_path), train.models(tmp_path, again=True)
    assert [first.cached, second.cached, third.cached] == [False, True, False] and len(trained) == 2
    assert second.folder == first.folder and second.data("golden").exists() and second.data("live").exists()
    assert [p.name for p in tmp_path.iterdir()] == [first.folder.name], "nothing half-made is left"


def masks(width: int) -> Array:
    half = np.argsort(np.random.default_rng(0).random((4, width)), axis=1) < width // 2
    return np.concatenate([half, ~half]).astype(np.float32) * np.float32(2)
