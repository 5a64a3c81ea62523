"""The optimization steps of a preparation, as a Job gets them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from modelrollout.contract.common import ContractModel, DataSet, ModelFile


class Training(ContractModel):
    """Labelled data and how to train on it: Adam, a rate that falls to zero, batches in an order of
    a fixed seed.
    """

    data: DataSet
    epochs: int = 3
    learning_rate: float = 1e-3
    batch_size: int = 128


class StepBase(ContractModel):
    """What all steps share. Field names are those of the API's type of the same step; ``kind`` is
    the field of spec.optimization.steps[] that holds it.
    """

    kind: str

    def sources(self) -> dict[str, DataSet | ModelFile]:
        """What has to be fetched for it, by the field's path on the wire below the step."""
        return dict(_sources(self))


def _sources(value: ContractModel, prefix: str = "") -> Iterator[tuple[str, DataSet | ModelFile]]:
    for name in type(value).model_fields:
        inner, path = getattr(value, name), f"{prefix}{name}"
        if isinstance(inner, DataSet | ModelFile):
            yield path, inner
        elif isinstance(inner, ContractModel):
            yield from _sources(inner, f"{path}.")


class Int8Step(StepBase):
    """Quantization of weights and activations to 8 bit. Static needs calibration data."""

    kind: Literal["int8"] = "int8"
    method: Literal["Dynamic", "Static"] = "Dynamic"
    calibration: DataSet | None = None
    calibration_method: Literal["MinMax", "Entropy", "Percentile"] = "MinMax"
    per_channel: bool = True
    leave_out: Literal["Never", "BySensitivity"] = "Never"


class PruneStep(StepBase):
    """Removes weights, by channels or one by one, until ``sparsity`` of the model's weights are
    gone; then trains the rest if there is data.
    """

    kind: Literal["prune"] = "prune"
    sparsity: float
    granularity: Literal["Structured", "Unstructured"] = "Structured"
    importance: Literal["Magnitude", "Activation"] = "Magnitude"
    training: Training | None = None


class DistillStep(StepBase):
    """The source model teaches a smaller one: ``student``, or itself narrowed to ``size`` of its
    weights.
    """

    kind: Literal["distill"] = "distill"
    student: ModelFile | None = None
    size: float | None = None
    temperature: float = 4.0
    hard_labels: float = 0.3  # share of the loss that comes from the labels
    training: Training


class HalfPrecisionStep(StepBase):
    """Weights of 16 bit; inputs and outputs stay as they are."""

    kind: Literal["halfPrecision"] = "halfPrecision"
    type: Literal["Float16", "BFloat16"] = "Float16"


class Int4Step(StepBase):
    """Weights of large matrices in blocks of 4 bit; activations stay float."""

    kind: Literal["int4"] = "int4"
    block_size: Literal[16, 32, 64, 128, 256] = 32
    min_weights: int = 65536


class GraphStep(StepBase):
    """Constants folded, operators fused, what is not needed removed."""

    kind: Literal["graph"] = "graph"


class ContainerStep(StepBase):
    """The user's own image between two containers of ours; it reads IN_DIR and writes OUT_DIR. All
    of this takes part in the artifact's key.
    """

    kind: Literal["container"] = "container"
    image: str
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] | None = None
    data: DataSet | None = None


class AutoStep(StepBase):
    """The other steps searched for the smallest or fastest model within the gate's budgets on
    ``data``.
    """

    kind: Literal["auto"] = "auto"
    objective: Literal["Size", "Latency"] = "Size"
    data: DataSet
    calibration: DataSet | None = None  # None: some of data
    training: Training | None = None
    time_limit: str = "20m"


Step = Annotated[
    Int8Step | PruneStep | DistillStep | HalfPrecisionStep | Int4Step | GraphStep | ContainerStep | AutoStep,
    Field(discriminator="kind"),
]
