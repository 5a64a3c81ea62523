"""The accuracy gate of a preparation: metrics with their budgets."""

from __future__ import annotations

from typing import Literal

from modelrollout.contract.common import ContractModel, DataSet


class GateBudget(ContractModel):
    """What may be lost against the original model, absolute (0.01 is one point of accuracy) or as a
    share of its value; limits of the value itself.

    ``max_increase`` and ``max`` are for errors (mae, mse), where more is worse; the others for all
    other metrics.
    """

    max_drop: float | None = None
    max_drop_relative: float | None = None
    min: float | None = None
    max_increase: float | None = None
    max_increase_relative: float | None = None
    max: float | None = None


MetricName = Literal["accuracy", "topK", "precision", "recall", "f1", "auc", "agreement", "mae", "mse"]


Average = Literal["Macro", "Weighted", "Binary"]


class GateMetric(GateBudget):
    """A budget for one metric; ``slices``: what each value of each slice of the data must keep."""

    name: MetricName = "accuracy"
    k: int | None = None  # topK
    # precision, recall, f1; None: Binary with two classes, else Macro
    average: Average | None = None
    slices: GateBudget | None = None


class Gate(ContractModel):
    """Held-out data and the budgets on it."""

    data: DataSet
    metrics: tuple[GateMetric, ...]
