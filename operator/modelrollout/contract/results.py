"""What a Job hands back: JSON in its pod's termination message."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

from pydantic import Field

from modelrollout.contract.common import ContractModel, ServingConfig


class Paired(ContractModel):
    """Counts of a paired comparison on the same ``n`` inputs."""

    n: int
    both_right: int
    only_candidate_right: int
    only_baseline_right: int
    both_wrong: int


class MetricResult(ContractModel):
    """One metric of the gate: both models' values, the 95 % interval of the loss, the verdict on
    all that the metric asks, slices included.

    ``slice``: the slice's value that decided, as NAME=VALUE, where one did; the numbers are then
    that slice's.
    """

    name: str
    n: int
    before: float
    after: float
    interval: tuple[float, float]
    allowed: float | None = None  # largest loss, in the metric's units
    verdict: Literal["Successful", "Failed", "Inconclusive"]
    reason: str
    slice: str | None = None


class Interface(ContractModel):
    """Inputs and outputs of a model, each as ``FP32 [n, 64]`` by its name; of a very large one
    digest and counts only.
    """

    digest: str
    inputs: dict[str, str] | None = None
    outputs: dict[str, str] | None = None
    counts: tuple[int, int] | None = None


class SearchPoint(NamedTuple):
    """One model of a search: bytes, CPU milliseconds of a request, value of the gate's first metric
    and upper end of its loss's 95 % interval.
    """

    name: str
    size: int
    milliseconds: float
    value: float
    highest_loss: float
    within: bool


class Search(ContractModel):
    """The result of the step auto. ``points``: the chosen one and the source first, then the
    frontier; as many as the message has room for.
    """

    objective: Literal["Size", "Latency"]
    metric: str
    before: float  # of the original model, on the data of the search
    allowed: float | None = None
    chosen: str
    tried: int
    ended: Literal["Complete", "TimeLimit"]
    points: tuple[SearchPoint, ...] = ()


class SlicePairs(NamedTuple):
    """Paired counts of one slice; ``name`` is ARRAY=VALUE, cut to 40 characters."""

    name: str
    n: int
    only_candidate_right: int
    only_baseline_right: int


class TrialResult(ContractModel):
    """A serving configuration as measured: single samples a second and latency at the best number
    of requests in flight.
    """

    serving: ServingConfig
    throughput: float = 0.0
    latency_ms: float = 0.0  # at the quantile that the task names
    in_flight: int = 0
    within: bool = False  # the objective was kept
    problem: str | None = None  # the server failed under it


class TuneResult(ContractModel):
    """The result of tuning. ``chosen`` None: no setting met the objective, or none was better than
    the configured one.
    """

    configured: TrialResult
    chosen: TrialResult | None = None
    candidates: int = 0
    failed: int = 0
    trials: tuple[TrialResult, ...] = ()  # the best others, as far as the message has room


class TaskResult(ContractModel):
    """The summary in the termination message. ``reason`` is CamelCase and documented in
    docs/reference/reasons.md; ``message`` says what to do.
    """

    reason: str = "Completed"
    message: str = ""
    # resolve, prepare
    sha256: str | None = None
    size_bytes: int | None = None  # of the source file
    etag: str | None = None  # resolve: strong, of these bytes
    # prepare
    artifact_uri: str | None = None
    artifact_digest: str | None = None  # sha256:<hex> of manifest.json
    artifact_size_bytes: int | None = None  # of the served model file
    reused: bool = False  # an earlier run had published the same work
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    # prepare: optimized against original; evaluate: candidate against stable
    paired: Paired | None = None
    interface: Interface | None = None
    drop_interval: tuple[float, float] | None = None  # of accuracy_before - accuracy_after, 95 %
    metrics: tuple[MetricResult, ...] = ()  # the gate's
    search: Search | None = None
    decoupled: bool | None = None  # whether it streams its answers; None: it does not
    seconds: dict[str, float] = Field(default_factory=dict)
    # evaluate
    samples: int | None = None
    accuracy: float | None = None
    stable_accuracy: float | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    protocols_agree: bool | None = None
    # candidate against stable: those that lost most, as far as the message has room
    slices: tuple[SlicePairs, ...] = ()
    slices_compared: int = 0
    # tune
    tuned: TuneResult | None = None
    extra: dict[str, Any] = Field(default_factory=dict)
