"""The models that are compressed, trained once and kept in the cache: by the optimizer's own training, and by scikit-learn."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from bench import networks
from demo import data as digits
from demo.data import Splits
from modelrollout.optimizer.data import Data
from modelrollout.optimizer.training.fit import Recipe, fit
from modelrollout.optimizer.training.network import Network

Say = Callable[[str], None]

RECIPES = {"cnn": Recipe(epochs=2, learning_rate=2e-3, batch_size=128), "mlp": Recipe(epochs=4, learning_rate=1e-3, batch_size=128)}
SHAPES = {"cnn": (1, digits.SIDE, digits.SIDE), "mlp": (digits.PIXELS,)}


def samples(split: digits.Split, model: str) -> Data:
    """The images as the model takes them, with their labels."""
    return Data({networks.INPUT: split.images.reshape(-1, *SHAPES[model])}, split.labels, {})


def trained(model: str, splits: Splits, say: Say) -> Path:
    """The float32 model, from the cache where it is there."""
    folder = digits.cache_root().with_name("modelrollout-bench")
    folder.mkdir(parents=True, exist_ok=True)
    sources = (Path(networks.__file__), Path(__file__))
    key = hashlib.sha256(b"".join(p.read_bytes() for p in sources) + version("jax").encode()).hexdigest()[:12]
    path = folder / f"{model}-{key}.onnx"
    if path.exists():
        return path
    started = time.monotonic()
    partial = path.with_suffix(f".{os.getpid()}")
    getattr(networks, model)(partial)
    sample = samples(splits.train, model)
    network = Network(partial, {networks.INPUT: sample.inputs[networks.INPUT][:64]}, model)
    weights, losses = fit(network, sample, RECIPES[model], model, lambda done, total: None)
    network.save(weights, partial)
    partial.rename(path)
    say(f"{model} trained in {time.monotonic() - started:.0f} s, loss {losses[-1]}")
    return path
