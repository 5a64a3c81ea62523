"""What a step gets. A step is one function: it reads ``source``, writes ``target``, and returns
what it did, for the report.

A step that writes no ``target`` leaves the model as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from modelrollout.contract.common import ONE_FILE_BYTES
from modelrollout.contract.gate import Gate
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.model.inspect import ModelInfo
from modelrollout.optimizer.model.runtime import Advance


@dataclass(frozen=True)
class StepContext:
    """One step's work. ``data`` and ``models`` are fetched and checked, by the field's path below
    the step (``training.data``).
    """

    field: str  # what messages call the step: spec.optimization.steps[0].int8
    source: Path  # what the step before made
    target: Path  # in a folder of its own
    info: ModelInfo  # of ``source``
    original: Path  # the model as it was given
    data: Mapping[str, Data]
    models: Mapping[str, Path]
    gate: Gate | None
    symmetric: bool  # activations without a zero point, for TensorRT
    hardware: str  # that the model is made for; "any": no GPU
    advance: Advance
    warn: Callable[[str], None]
    one_file: int = ONE_FILE_BYTES  # a larger result is split (``files``)

    @property
    def max_drop(self) -> float | None:
        """The smallest loss of accuracy that the gate allows; None: no gate, or none against the
        original.
        """
        return (
            min((m.max_drop for m in self.gate.metrics if m.max_drop is not None), default=None)
            if self.gate
            else None
        )
