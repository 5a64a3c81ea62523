"""The training loop: Adam with a rate that falls to zero, on labels, on a teacher's scores, or on a
mix of both.

The order of the samples comes from a fixed seed, so that the same inputs give the same weights on
the same kind of machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.model.runtime import Advance, check_label_range
from modelrollout.optimizer.training.network import Network, Parameters
from modelrollout.reasons import Reason

SEED = 0


@dataclass(frozen=True)
class Recipe:
    """How long and how fast."""

    epochs: int
    learning_rate: float
    batch_size: int


@dataclass(frozen=True)
class Soft:
    """What a teacher says: ``scores`` [n, classes], as logits."""

    scores: NDArray[np.float32]
    temperature: float
    hard_share: float


def fit(
    network: Network,
    data: Data,
    recipe: Recipe,
    field: str,
    advance: Advance,
    soft: Soft | None = None,
    masks: Mapping[str, NDArray[np.bool_]] | None = None,
) -> tuple[Parameters, list[float]]:
    """(weights, mean loss of each epoch). ``masks``: weights that stay zero where False. Raises
    JobError: TrainingDataTooSmall, LabelsOutOfRange, TrainingDiverged.
    """
    rows = network.fixed_rows or min(recipe.batch_size, data.n)
    in_epoch = data.n // rows
    if not in_epoch:
        raise bad_input(
            Reason.TRAINING_DATA_TOO_SMALL,
            f"{field}: {data.n} samples, but the model's first dimension is fixed to {rows}; give more",
        )
    if data.labels is not None and (soft is None or soft.hard_share):
        check_label_range(data.labels, network.classes, f"{field}.data")
    total = in_epoch * recipe.epochs
    optimizer = optax.adam(optax.cosine_decay_schedule(recipe.learning_rate, total))
    mask_arrays = {name: jnp.asarray(mask, jnp.float32) for name, mask in (masks or {}).items()}
    weights = {name: jnp.asarray(value) * mask_arrays.get(name, 1) for name, value in network.weights.items()}
    state = optimizer.init(weights)

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(weights: Parameters, state: Any, batch: dict[str, Any]) -> tuple[Parameters, Any, Any]:
        value, gradients = jax.value_and_grad(partial(_loss, network, soft))(weights, batch)
        updates, state = optimizer.update(gradients, state, weights)
        moved: Any = optax.apply_updates(weights, updates)
        return {n: w * mask_arrays[n] if n in mask_arrays else w for n, w in moved.items()}, state, value

    losses: list[float] = []
    rng = np.random.default_rng(SEED)
    for epoch in range(recipe.epochs):
        order = rng.permutation(data.n)
        batch_losses = []
        for at in range(in_epoch):
            chosen = order[at * rows : (at + 1) * rows]
            batch: dict[str, Any] = {"inputs": {name: array[chosen] for name, array in data.inputs.items()}}
            if data.labels is not None:
                batch["labels"] = data.labels[chosen]
            if soft is not None:
                batch["scores"] = soft.scores[chosen]
            weights, state, value = step(weights, state, batch)
            batch_losses.append(value)
            advance(epoch * in_epoch + at + 1, total)
        losses.append(float(f"{float(jnp.mean(jnp.stack(batch_losses))):.4g}"))
    if losses and not np.isfinite(losses[-1]):
        raise bad_input(
            Reason.TRAINING_DIVERGED,
            f"{field}: the loss is no number after {recipe.epochs} epochs; lower training.learningRate",
        )
    return {name: np.asarray(w) for name, w in weights.items()}, losses


def _loss(network: Network, soft: Soft | None, weights: Parameters, batch: dict[str, Any]) -> Any:
    logits = network.run(weights, batch["inputs"])
    loss: Any = 0.0
    hard_share = soft.hard_share if soft else 1.0
    if hard_share:
        loss += hard_share * optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"]).mean()
    if soft and hard_share < 1:
        # T^2 keeps the gradients' size when the temperature changes (Hinton et al. 2015)
        targets = jax.nn.softmax(batch["scores"] / soft.temperature)
        loss += (
            (1 - hard_share)
            * soft.temperature**2
            * optax.softmax_cross_entropy(logits / soft.temperature, targets).mean()
        )
    return loss
