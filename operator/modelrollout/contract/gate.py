"""The accuracy gate of a preparation: metrics with their budgets."""

from __future__ import annotations

from typing import Literal

from modelrollout.contract.common import ContractModel, DataSet


class GateBudget(ContractModel):
    """What may be lost against the original model, absolute (0.01 is one point of accuracy) or as a
    share of its value; limits of the value itself.

    ``max_increase`` and ``max`` are for errors (mae, mse, relativeError), where more is worse; the
    others for all other metrics.
    """

    max_drop: float | None = None
    max_drop_relative: float | None = None
    min: float | None = None
    max_increase: float | None = None
    max_increase_relative: float | None = None
    max: float | None = None


MetricName = Literal[
    "accuracy",
    "topK",
    "precision",
    "recall",
    "f1",
    "auc",
    "agreement",
    "mae",
    "mse",
    "relativeError",
    "cosine",
    "closeness",
    "boxIou",
]


Average = Literal["Macro", "Weighted", "Binary"]


class GateMetric(GateBudget):
    """A budget for one metric; ``slices``: what each value of each slice of the data must keep."""

    name: MetricName = "accuracy"
    k: int | None = None  # topK
    # precision, recall, f1; None: Binary with two classes, else Macro
    average: Average | None = None
    slices: GateBudget | None = None
    # the output that is judged; None: the only one that fits; of the metrics of numbers, the worst
    output: str | None = None
    # closeness: |a - b| <= abs_tolerance + rel_tolerance * |b|, b the original's; None: 0.001, 0.01
    abs_tolerance: float | None = None
    rel_tolerance: float | None = None
    box_format: Literal["Corners", "Center"] | None = None  # boxIou; None: Corners


class Gate(ContractModel):
    """Held-out data and the budgets on it."""

    data: DataSet
    metrics: tuple[GateMetric, ...]
