"""The models that are compressed, trained once and kept in the cache: networks by the optimizer's
own training, trees by scikit-learn.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import networks
from demo import data as digits
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.training.fit import Recipe, fit
from modelrollout.optimizer.training.network import Network

Say = Callable[[str], None]
Inputs = NDArray[np.float32]

CALIBRATION = 256  # the last training images, which no training sees
RECIPES = {
    "cnn": Recipe(epochs=2, learning_rate=2e-3, batch_size=128),
    "mlp": Recipe(epochs=4, learning_rate=1e-3, batch_size=128),
}
TREES = {"samples": 20_000, "iterations": 40, "leaves": 31}


def cache() -> Path:
    """Where trained and compressed models are kept, outside the checkout."""
    folder = digits.cache_root().with_name("modelrollout-bench")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def shaped(images: Inputs, model: str) -> Inputs:
    """[n, 784] images as the model takes them: the trees see means of 2 x 2 pixels."""
    square = images.reshape(-1, 1, digits.SIDE, digits.SIDE)
    if model == "cnn":
        return square
    if model == "mlp":
        return images
    half = digits.SIDE // 2
    pooled: Inputs = square.reshape(-1, half, 2, half, 2).mean(axis=(2, 4)).reshape(len(images), -1)
    return pooled


def samples(split: digits.Split, model: str) -> Data:
    """Images and labels as a data set of the optimizer."""
    return Data({networks.INPUT: shaped(split.images, model)}, split.labels, {})


def trained(model: str, training: digits.Split, say: Say) -> Path:
    """The float32 model, from the cache where it is there."""
    recipe = f"{RECIPES.get(model, TREES)} {version('jax')} {version('scikit-learn')}"
    key = hashlib.sha256(Path(networks.__file__).read_bytes() + recipe.encode()).hexdigest()[:12]
    path = cache() / f"{model}-{key}.onnx"
    if path.exists():
        return path
    say(f"# {model}: training")
    started = time.monotonic()
    partial = path.with_suffix(f".{os.getpid()}")
    if model == "trees":
        partial.write_bytes(_trees(training))
    else:
        getattr(networks, model)(partial)
        data = samples(training, model)
        network = Network(partial, data.inputs, model)
        weights, _ = fit(network, data, RECIPES[model], model, lambda done, total: None)
        network.save(weights, partial)
    partial.rename(path)
    say(f"# {model}: trained in {time.monotonic() - started:.0f} s")
    return path


def _trees(training: digits.Split) -> bytes:
    import skl2onnx
    import sklearn.ensemble

    ensemble: Any = sklearn.ensemble
    converter: Any = skl2onnx  # they have no types

    part = training.part(0, TREES["samples"])
    x = shaped(part.images, "trees")
    model = ensemble.HistGradientBoostingClassifier(
        max_iter=TREES["iterations"], max_leaf_nodes=TREES["leaves"], early_stopping=False, random_state=0
    )
    model.fit(x, part.labels)
    converted = converter.to_onnx(
        model,
        initial_types=networks.tree_inputs(x.shape[1]),
        options={"zipmap": False},
        target_opset=networks.OPSET,
    )
    content: bytes = converted.SerializeToString()
    return content
