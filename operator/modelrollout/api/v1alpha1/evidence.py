"""Evidence that status and revisions keep: counts, verdicts, gates, searches and measurements."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from modelrollout.api.v1alpha1.schema import StatusModel
from modelrollout.reasons import Reason

VerdictName = Literal["Successful", "Failed", "Inconclusive", "Error"]


class Counter(StatusModel):
    """Counts of one metric for one revision in this step: ``bad`` of ``total``, and the last raw
    counters by process.

    ``last`` maps a process (pod or gateway instance) to [total, bad, Unix time of the scrape] as
    last scraped: a smaller value is a restart, which starts at 0. Processes beyond the first few
    are followed in groups, ``#N``, with a hash of their names as fourth number.
    """

    total: float = 0
    bad: float = 0
    last: dict[str, list[float]] = Field(default_factory=dict)
    scraped: float | None = Field(None, description="Unix time of the newest scrape that is counted.")
    began: float | None = Field(
        None,
        description=(
            "Unix time of the scrape with which counting began, or began again after pods of either side"
            " had changed."
        ),
    )
    spread: list[float] = Field(
        default_factory=list,
        description=(
            "Variation of the bad share from look to look: requests and bad ones of the last, number of"
            " differences, sum of their squares, requests and bad ones of all; of stable with those of the"
            " hour before the step."
        ),
    )


class ServerCounts(StatusModel):
    """What the servers themselves counted of both revisions in the step, from a baseline of their
    own.
    """

    canary: Counter | None = None
    stable: Counter | None = None


class MetricStatus(StatusModel):
    """One metric in the current step, as ``modelrollout status`` shows it."""

    name: str
    verdict: VerdictName
    reason: str
    message: str = ""
    canary: Counter | None = None
    stable: Counter | None = None
    value: float | None = None
    interval: list[float] | None = Field(
        None,
        description=(
            "Confidence interval of the harm: canary minus stable, worse is positive; the canary's bad share"
            " where only that is limited."
        ),
    )
    needed: int | None = Field(
        None,
        description=(
            "Samples that the canary still needs for a verdict, at the present shares; absent: unknown or"
            " none."
        ),
    )
    needed_seconds: int | None = Field(
        None, description="How long those take to come at the present rate; absent: unknown or none."
    )
    next_weight: int | None = Field(
        None, description="Successful by counts: the weight, percent, for which harm was ruled out."
    )
    log_evidence: float | None = Field(
        None,
        description=(
            "Natural logarithm of this step's e-value against 'not worse than stable by more than the"
            " tolerance' (where only a limit is set: 'within the limit'). The counts are those above; later"
            " steps of the rollout build on it."
        ),
    )
    since: str | None = Field(
        None, description="Since when the metric has been in Error, or its query beyond its limits."
    )
    slice: str | None = Field(None, description="The slice that this is about; it decides only by failing.")
    dry_run: bool | None = Field(None, description="It decides nothing.")
    source: str | None = Field(
        None,
        description=(
            "Who counted: the profile of the gateway, triton or feedback. Counts of two sources are never"
            " added up."
        ),
    )
    servers: ServerCounts | None = Field(
        None,
        description=(
            "Of errors that a gateway counts: what Triton counted in the same step, to compare. It decides"
            " nothing."
        ),
    )


class GateMetricEvidence(StatusModel):
    """The gate's result on one metric."""

    name: str
    verdict: VerdictName
    reason: str
    samples: int
    before: float
    after: float
    interval: list[float] = Field(
        description="95 % interval of the loss: worse than the original model is positive."
    )
    allowed: float | None = Field(None, description="Largest loss allowed, in the metric's units.")
    slice: str | None = Field(
        None, description="NAME=VALUE of the slice that decided; the numbers are its own."
    )


class Interface(StatusModel):
    """A model's inputs and outputs: each tensor as ``FP32 [n, 64]`` by its name. For a very large
    model only digest and counts.
    """

    digest: str = Field(
        description="Of all inputs and outputs, whatever their order; equal interfaces have equal digests."
    )
    inputs: dict[str, str] | None = None
    outputs: dict[str, str] | None = None
    counts: list[int] | None = Field(None, description="Inputs and outputs, where they are not listed.")


class SearchPoint(StatusModel):
    """One model that auto made, judged on its own data."""

    name: str = Field(
        description="The steps, for example prune-0.7+int8; source is the model that auto was given."
    )
    size: int = Field(description="Bytes.")
    milliseconds: float = Field(
        description="CPU time of one request on the Job's CPU, median of runs in turns with the source."
    )
    value: float = Field(description="Of the gate's first metric.")
    highest_loss: float = Field(description="Upper end of the 95 % interval of the loss of that metric.")
    within: bool = Field(description="Whether it keeps all budgets.")


class SearchEvidence(StatusModel):
    """The result of auto: the chosen model, and those that no other one beats in accuracy and size,
    or in accuracy and latency.
    """

    objective: str
    metric: str
    before: float = Field(description="That metric of the original model, on auto's data.")
    allowed: float | None = Field(None, description="Largest loss allowed, in the metric's units.")
    chosen: str
    tried: int = Field(description="Models that were made; report.json beside the artifact has them all.")
    ended: str = Field(description="Complete, or TimeLimit.")
    points: list[SearchPoint] = Field(default_factory=list)


class ArtifactEvidence(StatusModel):
    """The artifact that prepare made."""

    uri: str
    digest: str
    size_before: int
    size_after: int
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    samples: int | None = None
    drop_interval: list[float] | None = None
    metrics: list[GateMetricEvidence] = Field(
        default_factory=list, description="The gate's metrics, each with its verdict."
    )
    reused: bool = False
    prepared: str | None = Field(
        None, description="When a Job made it, or found it made; absent where an older operator wrote this."
    )
    interface: Interface | None = Field(
        None, description="Inputs and outputs; absent where an older operator prepared it."
    )
    search: SearchEvidence | None = Field(None, description="The frontier that the step auto found.")
    decoupled: bool | None = Field(
        None,
        description=(
            "It streams its answers: several responses to one request; absent where it does not, or an"
            " older operator prepared it."
        ),
    )


class TuningTrial(StatusModel):
    """A serving configuration, and its measured performance in one pod."""

    instances: int = Field(1, description="Executions of the model side by side.")
    batch: int = Field(0, description="Requests are joined up to so many samples; 0: never.")
    queue_delay_microseconds: int = Field(0, description="How long a request may wait for others.")
    throughput: float = Field(
        0, description="Samples a second, with as many requests in flight as the objective allows."
    )
    latency_ms: float = Field(0, description="Latency that the requested share of the requests kept to.")
    in_flight: int = 0
    within: bool = Field(False, description="The objective was kept.")
    problem: str | None = Field(None, description="How the server failed under it.")


class TuningEvidence(StatusModel):
    """The result of tuning; the pods of the revision serve with ``chosen``, or as configured
    without it.
    """

    objective: str = ""
    share: float = 0
    configured: TuningTrial | None = None
    chosen: TuningTrial | None = None
    candidates: int = 0
    failed: int = Field(0, description="Candidates under which the server failed.")
    trials: list[TuningTrial] = Field(default_factory=list, description="The best of the others.")
    message: str = ""


class SliceEvidence(StatusModel):
    """The result on one slice of the golden data: its name as ARRAY=VALUE, and the loss of accuracy
    with an interval for all slices together.
    """

    name: str
    samples: int
    drop: float
    interval: list[float]


class EvaluationEvidence(StatusModel):
    """The result on golden data; without it, whether the served model answers made-up inputs."""

    verdict: VerdictName
    reason: str
    message: str = ""
    samples: int = 0
    accuracy: float | None = None
    stable_accuracy: float | None = None
    stable: str | None = Field(None, description="Revision compared with.")
    only_candidate_right: int | None = None
    only_stable_right: int | None = None
    latency_p50_ms: float | None = None
    latency_p99_ms: float | None = None
    slices: list[SliceEvidence] | None = Field(None, description="The slices that lost most.")

    @property
    def is_of_made_up_inputs(self) -> bool:
        """Whether there was no golden data, and the model was only asked whether it answers."""
        return self.reason in (Reason.ANSWERED, Reason.ANSWERS_UNKNOWN)


class ServerEnds(StatusModel):
    """Ends of a revision's servers, each by a signal, an exit code or for its memory."""

    counts: dict[str, int] = Field(
        default_factory=dict, description="How many, by reason: ServerCrashed or OutOfMemory."
    )
    at: str | None = Field(None, description="When the last one came, as the kubelet says.")
    message: str | None = Field(None, description="How it ended: pod, signal or exit code.")
    pods: dict[str, int] = Field(
        default_factory=dict,
        description="By pod (a hash of its uid): how many ends of its whole life are accounted for.",
    )


class RestartEvidence(StatusModel):
    """Servers that ended by themselves during the trial and were started again."""

    canary: ServerEnds = ServerEnds()
    stable: ServerEnds = Field(ServerEnds(), description="In the same time.")
    accepted: int = Field(
        0, description="How many beyond stable's a person has let pass by promoting the revision."
    )


class VerbRecord(StatusModel):
    """A verb that was carried out."""

    verb: str
    at: str
    by: str | None = Field(
        None, description="User name of who requested it, stamped by the API server; absent: it stamps none."
    )
    reason: str | None = Field(None, description="Why, in his words.")
    step: str | None = Field(None, description="The step that it named.")


class StepEvidence(StatusModel):
    """A step's verdict with its numbers."""

    index: int
    weight: int
    verdict: VerdictName
    reason: str
    seconds: float
    next_weight: int | None = Field(
        None, description="Promoted by a person: the weight, percent, that he gave it by that."
    )
    metrics: list[MetricStatus] = Field(default_factory=list)
