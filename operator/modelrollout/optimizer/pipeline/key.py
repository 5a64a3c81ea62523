"""What is prepared, as a key: two tasks with equal keys make the same artifact."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Sequence
from functools import reduce
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

from modelrollout.api.names import canonical_json
from modelrollout.contract.common import DataSet, ModelFile
from modelrollout.contract.steps import Step
from modelrollout.contract.tasks import PrepareTask
from modelrollout.optimizer.formats.isolated import fil_versions, versions
from modelrollout.optimizer.gate.gate import FIELD as FIELD_GATE
from modelrollout.optimizer.steps.distributions import versions_of
from modelrollout.optimizer.steps.registry import definition_of
from modelrollout.optimizer.steps.run import field_of

# Part of every artifact's key: raise it when this program makes another artifact from the same
# inputs.
RECIPE_VERSION = 5


class Source(NamedTuple):
    """Something that is fetched for a step (None: for the gate), and the step's name for it."""

    spec: DataSet | ModelFile
    step: Step | None
    name: str

    @property
    def judges(self) -> bool:
        """Whether the gate's metrics are computed on it."""
        return self.step is None or self.name in definition_of(self.step).selects_on


def sources_of(task: PrepareTask) -> dict[str, Source]:
    """Everything besides the source model that is fetched, by the field that names it. Raises
    JobError: that of a step whose options do not fit together.
    """
    for index, step in enumerate(task.steps):
        definition_of(step).check_options(step, field_of(index, step))
    sources = {
        f"{field_of(index, step)}.{name}": Source(spec, step, name)
        for index, step in enumerate(task.steps)
        for name, spec in step.sources().items()
    }
    if task.gate:
        sources[FIELD_GATE] = Source(task.gate.data, None, "data")
    return sources


def tools(recipe: Sequence[Step]) -> dict[str, str]:
    """Versions of what shapes the result besides its inputs. Raises JobError: ToolMissing."""
    always = {
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    return always | {
        name: v for i, step in enumerate(recipe) for name, v in versions_of(step, field_of(i, step)).items()
    }


def inputs_of(task: PrepareTask, data: dict[str, str], signer: str | None = None) -> dict[str, Any]:
    """Everything that the artifact depends on. ``data``: digests of data sets and models, by field:
    the place of a file is no part of the key. ``signer``: digest of the public key that the source
    was verified with, so that an unverified source never gets the key of a verified one.
    """

    def content(spec: DataSet | ModelFile, field: str) -> dict[str, Any]:
        if isinstance(spec, ModelFile):
            return {"sha256": data[field]}
        return {"sha256": data[field], "labels": spec.labels, "slices": list(spec.slices)}

    def recipe(index: int, step: Step) -> dict[str, Any]:
        where = field_of(index, step)
        options = step.model_dump()
        for name, spec in step.sources().items():
            *outer, last = name.split(".")
            reduce(lambda inside, key: inside[key], outer, options)[last] = content(spec, f"{where}.{name}")
        return options

    own = (
        ({"signer": signer} if signer else {})
        | ({"warmup": True} if task.warmup else {})
        # the model was found to fit so many
        | ({"gpus": task.gpus} if task.gpus is not None else {})
        | {
            name: value.model_dump()
            for name, value in (("served", task.served), ("tensors", task.tensors))
            if value
        }
    )
    return own | {
        "recipeVersion": RECIPE_VERSION,
        "source": task.sha256,
        "format": task.format or "ONNX",
        "rounds": task.rounds or "Best",
        "missing": task.missing,
        "steps": [recipe(index, step) for index, step in enumerate(task.steps)],
        "gate": (
            {
                "data": content(task.gate.data, FIELD_GATE),
                "metrics": [m.model_dump() for m in task.gate.metrics],
            }
            if task.gate
            else None
        ),
        "batching": task.batching.model_dump(),
        "instanceKind": task.instance_kind,
        "tools": tools(task.steps)
        | versions(task.format or "ONNX")
        | (fil_versions() if task.served and task.served.backend == "FIL" else {}),
        "targetHardware": task.target_hardware,
    }


def key_of(inputs: dict[str, Any]) -> str:
    """The SHA-256 that the artifact's folder is named after."""
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()
