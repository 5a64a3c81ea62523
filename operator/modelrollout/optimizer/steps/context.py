"""What a step is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelrollout.contract.common import ONE_FILE_BYTES
from modelrollout.contract.gate import Gate
from modelrollout.contract.steps import StepBase
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.model.inspect import ModelInfo
from modelrollout.optimizer.model.runtime import Advance


@dataclass(frozen=True)
class StepContext:
    """One step's inputs, output and surroundings. ``data`` and ``models`` are fetched and checked;
    they go by the field's path below the step (``training.data``).
    """

    field: str  # that messages name: spec.optimization.steps[0].int8
    source: Path  # the model after the step before
    target: Path  # in a folder of its own
    info: ModelInfo  # of ``source``
    original: Path  # the source model, before all steps
    data: Mapping[str, Data]
    models: Mapping[str, Path]
    gate: Gate | None
    symmetric: bool  # activations without a zero point, for TensorRT
    hardware: str  # that the model is made for; "any": no GPU
    advance: Advance
    warn: Callable[[str], None]
    run_step: Callable[[StepBase, StepContext], dict[str, Any]]  # for a step that tries others
    one_file: int = ONE_FILE_BYTES  # a larger result is split (``files``)

    @property
    def max_drop(self) -> float | None:
        """The smallest loss of accuracy that the gate allows; None without a gate, or where it sets
        no maxDrop.
        """
        return (
            min((m.max_drop for m in self.gate.metrics if m.max_drop is not None), default=None)
            if self.gate
            else None
        )
