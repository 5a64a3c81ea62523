"""A small multi-layer perceptron and its training, in plain numpy: no framework to install for a
few seconds of work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from demo.data import Images, Labels

Array = Images
Layer = tuple[Array, Array]
"""Weights [inputs, outputs] and bias [outputs]."""


@dataclass(frozen=True)
class Net:
    """Fully connected layers with ReLU between them; the last one gives logits."""

    layers: tuple[Layer, ...]

    def logits(self, x: Array) -> Array:
        for weights, bias in self.layers[:-1]:
            x = np.maximum(x @ weights + bias, 0)
        weights, bias = self.layers[-1]
        return x @ weights + bias

    @property
    def size(self) -> int:
        return sum(w.size + b.size for w, b in self.layers)


@dataclass(frozen=True)
class Recipe:
    """How a net is trained."""

    hidden: tuple[int, ...]
    epochs: int
    seed: int
    batch: int = 256
    rate: float = 2e-3
    decay: float = 1e-4
    dropout: float = 0.0


Epochs = Callable[[int], tuple[Array, Labels]]
"""The training data of the epoch with that number."""


def train(recipe: Recipe, epochs: Epochs, classes: int) -> Net:
    """Adam with decoupled weight decay and a rate that falls to nothing; the loss is cross entropy.
    The same seed gives the same net.
    """
    rng = np.random.default_rng(recipe.seed)
    first, labels = epochs(0)
    sizes = (first.shape[1], *recipe.hidden, classes)
    parameters: list[Array] = []
    for n_in, n_out in pairwise(sizes):
        parameters.append(
            rng.standard_normal((n_in, n_out), dtype=np.float32) * np.float32((2 / n_in) ** 0.5)
        )
        parameters.append(np.zeros(n_out, np.float32))
    moments = [(np.zeros_like(p), np.zeros_like(p)) for p in parameters]
    steps = recipe.epochs * -(-len(labels) // recipe.batch)
    step = 0
    for epoch in range(recipe.epochs):
        images, labels = epochs(epoch)
        for rows in _batches(len(labels), recipe.batch, rng):
            gradients = _gradients(parameters, images[rows], labels[rows], recipe.dropout, rng)
            step += 1
            rate = recipe.rate * 0.5 * (1 + np.cos(np.pi * step / steps))
            _adam(parameters, gradients, moments, step, rate, recipe.decay)
    return Net(tuple(zip(parameters[::2], parameters[1::2], strict=True)))


def _batches(n: int, size: int, rng: np.random.Generator) -> Iterator[Labels]:
    order = rng.permutation(n)
    for start in range(0, n, size):
        yield order[start : start + size]


def _gradients(
    parameters: list[Array], x: Array, labels: Labels, dropout: float, rng: np.random.Generator
) -> list[Array]:
    inputs = [x]
    depth = len(parameters) // 2
    for i in range(depth - 1):
        hidden = np.maximum(inputs[-1] @ parameters[2 * i] + parameters[2 * i + 1], 0)
        if dropout:
            # Bytes are drawn several times faster than floats.
            hidden *= (rng.integers(0, 256, hidden.shape, np.uint8) >= 256 * dropout) * np.float32(
                1 / (1 - dropout)
            )
        inputs.append(hidden)
    logits = inputs[-1] @ parameters[-2] + parameters[-1]
    delta = np.exp(logits - logits.max(axis=1, keepdims=True))
    delta /= delta.sum(axis=1, keepdims=True)
    delta[np.arange(len(labels)), labels] -= 1
    delta /= np.float32(len(labels))
    gradients: list[Array] = []
    for i in reversed(range(depth)):
        gradients[:0] = [inputs[i].T @ delta, delta.sum(axis=0)]
        if i:
            # A unit that dropout or ReLU switched off is exactly zero; one that dropout kept has
            # its factor in the activation.
            delta = (delta @ parameters[2 * i].T) * (inputs[i] > 0)
            if dropout:
                delta *= np.float32(1 / (1 - dropout))
    return gradients


def _adam(
    parameters: list[Array],
    gradients: list[Array],
    moments: list[tuple[Array, Array]],
    step: int,
    rate: float,
    decay: float,
) -> None:
    b1, b2 = np.float32(0.9), np.float32(0.999)
    size = np.float32(rate * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step))
    for p, g, (m, v) in zip(parameters, gradients, moments, strict=True):
        m += (1 - b1) * (g - m)
        v += (1 - b2) * (g * g - v)
        if p.ndim == 2:
            p *= np.float32(1 - rate * decay)
        p -= size * m / (np.sqrt(v) + np.float32(1e-8))
