"""What a step is given to work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelrollout.contract.common import ONE_FILE_BYTES
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.steps import StepBase
from modelrollout.optimizer.model.data import Arrays, Data
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
    # requests that the model answers: the user's inputs where there are any, else made-up ones
    probe: tuple[Arrays, ...] = ()
    made_up: bool = True
    batched: bool = False  # the server joins rows of several requests

    @property
    def output(self) -> str | None:
        """The output that the gate's metrics judge; None where they name none, or several."""
        named = {m.output for m in self.gate.metrics} if self.gate else set()
        return named.pop() if len(named) == 1 else None

    @property
    def budgets(self) -> tuple[GateMetric, ...]:
        """The gate's metrics with a maxDrop."""
        return tuple(m for m in self.gate.metrics if m.max_drop is not None) if self.gate else ()
