"""The six models of the story, trained here on the real data; the ONNX files are kept in the cache
until this code changes.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from demo import data, export
from demo.data import CLASSES, PIXELS, SIDE, Images, Labels, Split, Splits
from demo.net import Array, Epochs, Net, Recipe, train

SLOW_SECONDS = 0.1
"""CPU time of one inference of v4 on one thread: twice the latency objective, and little enough for
a small share of the traffic.
"""
MINIMUM_PASSES = 12_000

ort: Any = onnxruntime  # it has no types
Say = Callable[[str], None]


@dataclass(frozen=True)
class Models:
    """A folder with v1.onnx to v6.onnx and the data sets beside them."""

    folder: Path
    trained_seconds: float
    cached: bool

    def model(self, version: str) -> Path:
        return self.folder / f"{version}.onnx"

    def data(self, name: str) -> Path:
        return self.folder / f"{name}.npz"


VERSIONS = {
    "v1": "good",
    "v2": "better, on golden and on live data",
    "v3": "as good as v2 on golden data; trained on clean digits only, so wrong more often on live data",
    "v4": "v2's answers, averaged over thousands of passes under dropout: slow",
    "v5": "trained with every label off by one: plainly wrong",
    "v6": "as accurate as v2 in float32; raw moments beside the pixels in one tensor do not survive int8",
}


def models(cache: Path | None = None, say: Say = lambda _: None, *, again: bool = False) -> Models:
    """The trained models and their data, from the cache unless ``again``."""
    root = cache or data.cache_root()
    folder = root / f"models-{_key()}"
    note = folder / "training.json"
    if note.exists() and not again:
        return Models(folder, json.loads(note.read_text())["seconds"], cached=True)
    splits = data.load(root)
    started = time.monotonic()
    partial = root / f"{folder.name}.{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _train_all(splits, partial, say)
        for name, part in (*splits.for_upload().items(), ("live", splits.live)):
            part.save(partial / f"{name}.npz")
        seconds = time.monotonic() - started
        (partial / note.name).write_text(json.dumps({"seconds": round(seconds, 1)}))
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Models(folder, seconds, cached=False)


def _train_all(splits: Splits, folder: Path, say: Say) -> None:
    started = time.monotonic()

    def done(version: str) -> None:
        say(f"{version} trained after {time.monotonic() - started:.0f} s: {VERSIONS[version]}")

    clean, labels = splits.train.images, splits.train.labels
    mixed = mixture(clean, labels, seed=1)

    export.plain(train(Recipe(hidden=(192,), epochs=3, seed=1), mixed, CLASSES), folder / "v1.onnx")
    done("v1")

    better = train(Recipe(hidden=(256, 128), epochs=10, seed=2), mixed, CLASSES)
    export.plain(better, folder / "v2.onnx")
    done("v2")

    clean_only = train(
        Recipe(hidden=(256, 128), epochs=8, seed=3, dropout=0.2), lambda _: (clean, labels), CLASSES
    )
    export.plain(clean_only, folder / "v3.onnx")
    done("v3")

    slow(better, splits.golden, folder / "v4.onnx")
    done("v4")

    off_by_one = (labels + 1) % CLASSES
    export.plain(
        train(Recipe(hidden=(256, 128), epochs=2, seed=5), lambda _: (clean, off_by_one), CLASSES),
        folder / "v5.onnx",
    )
    done("v5")

    features = moments()
    described, folded = standardized(mixed, features)
    export.with_features(
        folded(train(Recipe(hidden=(256, 128), epochs=6, seed=6), described, CLASSES)),
        features,
        folder / "v6.onnx",
    )
    done("v6")


def mixture(images: Images, labels: Labels, seed: int) -> Epochs:
    """A quarter of every epoch is clean, the rest distorted; which quarter changes, and so do the
    distortions.
    """
    rng = np.random.default_rng(seed)
    distorted = [data.as_live(images, 1.0, rng) for _ in range(2)]

    def epoch(number: int) -> tuple[Images, Labels]:
        out = distorted[number % 2].copy()
        clean = np.arange(len(out)) % 4 == number % 4
        out[clean] = images[clean]
        return out, labels

    return epoch


def slow(net: Net, sample: Split, path: Path) -> None:
    """v4: as many passes under dropout as take ``SLOW_SECONDS`` on this machine, so that the story
    is the same on a faster one.
    """
    width = len(net.layers[-1][0])
    rng = np.random.default_rng(4)
    half = np.argsort(rng.random((16, width)), axis=1) < width // 2
    # each unit is kept by one half of the masks: balanced
    masks = np.concatenate([half, ~half]).astype(np.float32) * np.float32(2)

    options = ort.SessionOptions()
    options.intra_op_num_threads = 1

    def seconds(passes: int) -> float:
        export.with_monte_carlo_dropout(net, masks, passes, path)
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        times = []
        for i in range(9):
            started = time.thread_time()
            session.run(None, {data.INPUT: sample.images[i : i + 1]})
            times.append(time.thread_time() - started)
        return min(times)

    probe = 4000
    pass_count = max(MINIMUM_PASSES, round(SLOW_SECONDS / seconds(probe) * probe))
    export.with_monte_carlo_dropout(net, masks, pass_count // len(masks) * len(masks), path)


def moments() -> Array:
    """Linear features [784, 62] in their natural scale: raw moments up to second order, and the
    mass of every row and column.

    Pixels count 255, distances are in pixels: values go up to some ten million, beside pixels from
    0 to 1.
    """
    row, column = np.divmod(np.arange(PIXELS), SIDE)
    raw = [np.ones(PIXELS), column, row, column * column, row * row, column * row]
    lines = [(row == i) for i in range(SIDE)] + [(column == i) for i in range(SIDE)]
    return (np.stack([*raw, *lines], axis=1) * 255).astype(np.float32)


def standardized(epochs: Epochs, features: Array) -> tuple[Epochs, Callable[[Net], Net]]:
    """Training sees the features standardized; the second result folds that into the first layer,
    which then takes them raw.
    """
    raw = epochs(0)[0] @ features
    mean, scale = raw.mean(axis=0), raw.std(axis=0) + np.float32(1)

    def described(number: int) -> tuple[Images, Labels]:
        images, labels = epochs(number)
        return np.concatenate([images, (images @ features - mean) / scale], axis=1), labels

    def folded(net: Net) -> Net:
        (weights, bias), *rest = net.layers
        weights = weights.copy()
        weights[PIXELS:] /= scale[:, None]
        return Net(((weights, bias - mean @ weights[PIXELS:]), *rest))

    return described, folded


def _key() -> str:
    """Changes with the code and with the libraries that make the files."""
    digest = hashlib.sha256()
    for name in ("data", "net", "export", "train"):
        digest.update((Path(__file__).parent / f"{name}.py").read_bytes())
    for library in ("numpy", "onnx"):
        digest.update(importlib.metadata.version(library).encode())
    return digest.hexdigest()[:12]
