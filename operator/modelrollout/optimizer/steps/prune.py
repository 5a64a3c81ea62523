"""Pruning: whole channels, or weights one by one, the least important first; then training, so that
the others take over.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto, numpy_helper

from modelrollout.contract.steps import PruneStep, Training
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.data import Data, requests
from modelrollout.optimizer.model.runtime import BATCH_ROWS, ORT_ERRORS, ort, refused, session_options
from modelrollout.optimizer.steps.channels import Channels
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition
from modelrollout.optimizer.steps.distributions import TRAINING
from modelrollout.reasons import Reason

ACTIVATION_SAMPLES = 512
# kept channels are a multiple of this where there are many: vector units work on that many at once
LANES = 8
_STEPS = 256  # how finely the share of removed channels is searched

# by weight: mean size of what meets each of its input channels
Activations = dict[str, NDArray[np.float64]]


def prune(step: PruneStep, work: StepContext) -> dict[str, Any]:
    """Prune and, with training data, fine-tune.

    Raises JobError: AlreadyQuantized, NothingToPrune, SparsityTooHigh, and those of training.
    """
    if work.info.quantized:
        raise bad_input(
            Reason.ALREADY_QUANTIZED,
            f"{work.field}: the model is quantized already; put this step before int8 and int4",
        )
    channels = Channels(files.inferred(work.source))
    data = work.data.get("training.data")
    activations = _activations(channels, data, work) if step.importance == "Activation" and data else {}
    masks: dict[str, NDArray[np.bool_]] = {}
    if step.granularity == "Structured":
        model, done = narrowed(channels, step.sparsity, work.field, activations)
    else:
        model, masks = _zeroed(channels, step.sparsity, work.field, activations)
        remaining = sum(int(mask.sum()) for mask in masks.values())
        done = {"weightsBefore": sum(mask.size for mask in masks.values()), "weightsAfter": remaining}
        work.warn(
            f"{work.field}: unstructured pruning makes the model no faster with ONNX Runtime, and its file"
            " smaller only where it is compressed"
        )
    files.save(model, work.target, work.one_file)
    if step.training and data:
        done |= trained(work.target, work.target, step.training, data, work, masks)
    elif step.granularity == "Structured":
        work.warn(f"{work.field}: no training data, so nothing makes up for what was removed; set training")
    return {"granularity": step.granularity, "importance": step.importance, "sparsity": step.sparsity} | done


def trained(
    path: Path,
    target: Path,
    training: Training,
    data: Data,
    work: StepContext,
    masks: dict[str, NDArray[np.bool_]],
) -> dict[str, Any]:
    """Fine-tune the model at ``path`` on labels; returns the losses."""
    from modelrollout.optimizer.training.fit import Recipe, fit
    from modelrollout.optimizer.training.network import Network

    where = f"{work.field}.training"
    network = Network(path, data.inputs, where, work.output)
    recipe = Recipe(training.epochs, training.learning_rate, training.batch_size)
    weights, losses = fit(network, data, recipe, where, work.advance, masks=masks)
    network.save(weights, target, work.one_file)
    return {"losses": losses}


def narrowed(
    channels: Channels, sparsity: float, field: str, activations: Activations
) -> tuple[ModelProto, dict[str, Any]]:
    """(the model with the same share of channels removed everywhere, so that ``sparsity`` of all
    weights are gone; what was done).
    """
    free = channels.free()
    total = channels.weights_left({})
    if not free:
        raise bad_input(
            Reason.NOTHING_TO_PRUNE,
            f"{field}: the model has no channels that can be removed; leave the step out",
        )

    def counts(share: float) -> dict[int, int]:
        left = {space: max(1, math.ceil(size * (1 - share))) for space, size in free.items()}
        return {
            s: min(free[s], math.ceil(n / LANES) * LANES) if free[s] >= 4 * LANES else n
            for s, n in left.items()
        }

    for step in range(1, _STEPS):
        chosen = counts(step / _STEPS)
        if channels.weights_left(chosen) <= (1 - sparsity) * total:
            break
    else:
        most = 1 - channels.weights_left(chosen) / total
        raise bad_input(
            Reason.SPARSITY_TOO_HIGH,
            f"{field}: at most {most:.2f} of the weights lie in channels that can be removed, not {sparsity};"
            " ask for less",
        )
    importance = _importance(channels, activations)
    keep = {
        space: np.sort(np.argsort(-importance[space], kind="stable")[:count])
        for space, count in chosen.items()
    }
    done = {
        "weightsBefore": total,
        "weightsAfter": channels.weights_left(chosen),
        "channels": {
            p.weight: [free[s], chosen[s]]
            for p in channels.products
            if (s := channels.root(p.space)) in chosen and s is not None
        },
    }
    return channels.cut(keep), done


def _importance(channels: Channels, activations: Activations) -> dict[int, NDArray[np.float64]]:
    """By space: of each channel. Its filter's norm; or, with activations, what it sends times the
    norm of the weights that take it.
    """
    importance: dict[int, NDArray[np.float64]] = defaultdict(lambda: np.zeros(1))
    for product in channels.products:
        weight = channels.weights[product.weight].astype(np.float64)
        if activations:
            taken = _norms(weight, product.inputs_axis) * activations[product.weight]
            at = 0
            for space, block in product.parts:
                root = channels.root(space)
                size = channels.size(space)
                if root is not None:
                    part = taken[at : at + size * block].reshape(size, block).sum(axis=1)
                    importance[root] = importance[root] + part / (part.mean() or 1)
                at += size * block
        elif (root := channels.root(product.space)) is not None:
            norms = _norms(weight, product.outputs_axis)
            importance[root] = importance[root] + norms / (norms.mean() or 1)
    return {space: importance[space] + np.zeros(size) for space, size in channels.free().items()}


def _norms(weight: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
    others = tuple(a for a in range(weight.ndim) if a != axis)
    return np.asarray(np.sqrt((weight**2).sum(axis=others)))


def _zeroed(
    channels: Channels, sparsity: float, field: str, activations: Activations
) -> tuple[ModelProto, dict[str, NDArray[np.bool_]]]:
    """(the model with ``sparsity`` of each weight zero, which ones are kept)."""
    masks: dict[str, NDArray[np.bool_]] = {}
    for product in channels.products:
        score = np.abs(channels.weights[product.weight]).astype(np.float64)
        if activations:
            shape = [1] * score.ndim
            shape[product.inputs_axis] = -1
            score = score * activations[product.weight].reshape(shape)
        order = np.argsort(score, axis=None, kind="stable")
        mask = np.ones(score.size, bool)
        mask[order[: round(sparsity * score.size)]] = False
        masks[product.weight] = mask.reshape(score.shape)
    if not masks:
        raise bad_input(
            Reason.NOTHING_TO_PRUNE,
            f"{field}: the model has no Conv, Gemm or MatMul with weights of its own; leave the step out",
        )
    model = ModelProto()
    model.CopyFrom(channels.model)
    for tensor in model.graph.initializer:
        if tensor.name in masks:
            tensor.CopyFrom(
                numpy_helper.from_array(channels.weights[tensor.name] * masks[tensor.name], tensor.name)
            )
    return model, masks


def _activations(channels: Channels, data: Data, work: StepContext) -> Activations:
    """Mean absolute value of each channel that comes into each product, on the first samples of the
    training data.
    """
    model = ModelProto()
    model.CopyFrom(channels.model)
    inputs = {spec.name for spec in work.info.inputs}
    tensors = sorted({product.tensor for product in channels.products} - inputs)
    present = {output.name for output in model.graph.output}
    known = {value.name: value for value in model.graph.value_info}
    model.graph.output.extend(
        known.get(name, onnx.ValueInfoProto(name=name)) for name in tensors if name not in present
    )
    watched = work.target.parent / "activations" / work.target.name
    watched.parent.mkdir(exist_ok=True)
    files.save(model, watched, work.one_file)
    del model
    try:
        session = ort.InferenceSession(watched, session_options(), providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise refused(Reason.PRUNING_FAILED, work.field, error, "use importance: Magnitude") from None
    finally:
        files.remove(watched)
    sample = {name: array[:ACTIVATION_SAMPLES] for name, array in data.inputs.items()}
    sums: dict[str, Any] = defaultdict(float)
    for count, part, whole in requests(sample, work.info.inputs, BATCH_ROWS, work.field):
        values = dict(zip(tensors, session.run(tensors, part), strict=True)) | part
        for product in channels.products:
            array = values[product.tensor]
            array = np.abs((array if whole else array[:count]).astype(np.float64))
            others = tuple(a for a in range(array.ndim) if a != product.tensor_axis)
            sums[product.weight] = sums[product.weight] + array.mean(axis=others) * count
    return {name: np.asarray(total) for name, total in sums.items()}


STEP = StepDefinition(
    prune,
    distributions=lambda step: TRAINING if step.training else (),
    memory_factor=lambda step: 5.0 if step.training else 3.5,
)
