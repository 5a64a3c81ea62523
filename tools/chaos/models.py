"""Tiny classifiers of the demo's shape, so that its client can ask them: good ones that are all
right, bad ones that are all wrong.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from demo import export
from demo.data import CLASSES, PIXELS, Split
from demo.net import Net

_WEIGHTS = np.random.default_rng(11).normal(size=(PIXELS, CLASSES)).astype(np.float32)


@dataclass(frozen=True)
class ModelFile:
    """A model on disk. ``key`` is its name in the store."""

    path: Path
    sha256: str
    key: str


def write(folder: Path, name: str, number: int, *, good: bool) -> ModelFile:
    """``logits = image @ weights + number``: the number changes the bytes and no answer; a bad one
    has the weights' sign turned.
    """
    path = folder / f"{name}-{number}.onnx"
    weights = _WEIGHTS if good else -_WEIGHTS
    export.plain(Net(((weights, np.full(CLASSES, number, np.float32)),)), path)
    return ModelFile(path, hashlib.sha256(path.read_bytes()).hexdigest(), f"chaos/{path.name}")


def live(count: int = 500) -> Split:
    """Inputs with the classes that every good model gives them."""
    images = np.random.default_rng(12).standard_normal((count, PIXELS), np.float32)
    return Split(images, np.argmax(images @ _WEIGHTS, axis=1).astype(np.int64))
