"""``spec.rollout``: strategies, and how a revision is judged."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from modelrollout.api.v1alpha1.model import Data
from modelrollout.api.v1alpha1.schema import ApiModel, Duration, LateDefault, ListMapKey, Name, Rule
from modelrollout.api.v1alpha1.traffic import Hostnames


class Pause(ApiModel):
    """A wait; without a duration it lasts until a user promotes."""

    duration: Duration | None = Field(None, description="How long; left out: until a user promotes.")


class Step(ApiModel):
    """One step of a canary: a weight or a pause."""

    weight: int | None = Field(
        None, ge=1, le=100, description="Share of the requests for the canary, in percent."
    )
    for_: Duration | None = Field(
        None,
        alias="for",
        description="Stay at least this long; left out: go on as soon as the evidence allows.",
    )
    pause: Pause | None = None
    replicas: int | None = Field(
        None,
        ge=1,
        le=1000,
        description=(
            "Pods of the canary from this step on, behind a gateway; left out: as scale says. Promotion"
            " creates all of them."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.weight) != has(self.pause)", "a step is either weight: N or pause: {}"),
        Rule("!has(self.for) || has(self.weight)", "for: belongs to a weight; a pause has its own duration"),
        Rule("!has(self.replicas) || has(self.weight)", "replicas: belongs to a weight"),
    )


STEPS_RULES: tuple[Rule, ...] = (
    Rule(
        "!has(self.steps) || (self.steps.filter(s, has(s.weight)).map(s, s.weight).isSorted() &&"
        " self.steps.filter(s, has(s.weight)).all(a, self.steps.exists_one(b, has(b.weight) && b.weight =="
        " a.weight)))",
        "weights must grow from step to step, for example 5, 25, 50",
    ),
    Rule("!has(self.steps) || self.steps.exists(s, has(s.weight))", "a canary needs at least one weight"),
)
DEFAULT_STEPS: tuple[Step, ...] = (Step(weight=5), Step(weight=25), Step(weight=50))


class Canary(ApiModel):
    """Traffic in steps, each judged before the next."""

    steps: Annotated[list[Step], Field(min_length=1, max_length=32), LateDefault()] = Field(
        default_factory=lambda: list(DEFAULT_STEPS),
        description=(
            "Weights must grow; the step to 100 is implied. Left out: those of a RolloutPolicy, else 5, 25,"
            " 50."
        ),
    )
    scale: Literal["Full", "Weight"] = Field(
        "Full",
        description=(
            "Pods of the canary behind a gateway. Full: serving.replicas from the start. Weight: its share of"
            " serving.replicas, rounded up; a weight is raised when the pods for it are ready. Without a"
            " gateway the pods are the weight."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = STEPS_RULES


class Preview(ApiModel):
    """Host names of the new revision before it gets any other traffic."""

    http: Hostnames | None = Field(None, description="Host names for HTTP.")
    grpc: Hostnames | None = Field(None, description="Host names for gRPC; they differ from those of HTTP.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.http) || has(self.grpc)",
            "a preview needs http: {hostnames: [...]} or grpc: {hostnames: [...]}; or leave preview out",
        ),
        Rule(
            "!(has(self.http) && has(self.grpc)) || self.http.hostnames.all(h, !(h in self.grpc.hostnames))",
            "HTTP and gRPC need different host names: one name in both kinds of route is not portable between"
            " gateways",
        ),
    )


class BlueGreen(ApiModel):
    """The new revision at full size beside stable, under a name of its own; then all traffic at
    once.
    """

    preview: Preview | None = Field(
        None,
        description=(
            "Host names at the gateway; the Service NAME-preview inside the cluster always exists. "
            "Both lead to stable when nothing is on trial."
        ),
    )
    for_: Duration | None = Field(
        None,
        alias="for",
        description=(
            "Preview for this long, then go on unless something is proven worse or cannot be measured; left"
            " out: go on as soon as the preview's own requests prove it, or when a user promotes."
        ),
    )
    auto_promote: bool = Field(True, description="false: after the preview, wait until a user promotes.")


class HeaderMatch(ApiModel):
    """A header that a request must carry."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$", max_length=256)] = Field(
        description="Name of the header; upper and lower case are one."
    )
    value: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(
        description="Its value, or a regular expression for it."
    )
    type: Literal["Exact", "RegularExpression"] = Field(
        "Exact", description="RegularExpression is not supported by every gateway."
    )


class AbTest(ApiModel):
    """Requests with these headers go to the new revision, all others to stable. Needs a gateway."""

    headers: Annotated[list[HeaderMatch], Field(min_length=1, max_length=16), ListMapKey("name")] = Field(
        description="A request must carry all of them."
    )
    for_: Duration | None = Field(
        None,
        alias="for",
        description="Test at least this long; left out: go on as soon as the evidence allows.",
    )
    auto_promote: bool = Field(True, description="false: after the test, wait until a user promotes.")


SliceName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.:/=+-]{0,63}$", max_length=64)
]


class Slice(ApiModel):
    """A part of the labelled answers that must not get worse, whatever the result on all."""

    name: SliceName = Field(description="The slice as feedback names it.")
    max_drop: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Margin against stable on this slice, absolute; left out: that of the metric.",
    )


# Shares of the requests by their answers: an answer is bad in one of them at most.
ANSWER_METRICS = ("errors", "clientErrors", "refusedRequests")
REQUEST_METRICS = (*ANSWER_METRICS, "latency")
BUILT_IN_METRICS = ("accuracy", *REQUEST_METRICS)
_ANSWERS, _REQUESTS, _BUILT_IN = (
    str(list(names)) for names in (ANSWER_METRICS, REQUEST_METRICS, BUILT_IN_METRICS)
)  # lists in CEL


LatencyOf = Literal["FirstResponse", "WholeAnswer"]


class Metric(ApiModel):
    """One metric of the analysis. Built in: accuracy, errors, clientErrors, refusedRequests,
    latency; any other name needs a query. Without a gateway accuracy, errors and latency are
    measured: Triton does not count what it refuses.
    """

    name: Annotated[
        str,
        StringConstraints(
            pattern=r"^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?|clientErrors|refusedRequests)$", max_length=63
        ),
    ] = Field(
        description=(
            "accuracy (by labels), errors (HTTP 5xx), clientErrors (HTTP 4xx by which a model refuses a"
            " request), refusedRequests (HTTP 4xx of callers and gateways: 401, 403, 408, 429, 499 and"
            " others), latency; or any other name, with a query."
        )
    )
    max_drop: float | None = Field(
        None, gt=0, le=1, description="accuracy: margin against stable at full traffic, absolute."
    )
    max_increase: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Of built-in metrics but accuracy: margin against stable at full traffic, absolute.",
    )
    objective: Duration | None = Field(
        None,
        description=(
            "latency: a request slower than this counts as slow. Must be a bucket bound of the histogram of"
            " who counts; of Triton's own, whole milliseconds."
        ),
    )
    of: LatencyOf | None = Field(
        None,
        description=(
            "latency: what takes that long. FirstResponse: from a request to the first response to it,"
            " counted by Triton. WholeAnswer: until all of the answer is there, counted by the gateway, and"
            " by Triton without one. Left out: FirstResponse of a model that streams its answers"
            " (decoupled), where the length of an answer says nothing about speed; else WholeAnswer."
        ),
    )
    share: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="latency: the share of requests that must be within the objective, whatever stable does.",
    )
    query: str | None = Field(
        None,
        max_length=4096,
        description=(
            "PromQL that returns one number. A query that no RolloutPolicy in force here has is the spec's"
            " own: gates.queries decides whether it is refused or confined to this namespace. {{revision}},"
            " {{stable}} (names), {{version}}, {{stableVersion}} (numbers), {{weight}} (percent),"
            " {{namespace}}, {{name}} and {{window}} (since counting began, such as 90s) are filled in."
        ),
    )
    min: float | None = Field(
        None,
        description=(
            "Smallest value allowed: of accuracy, a share of the canary itself; of a query its result."
        ),
    )
    max: float | None = Field(
        None,
        description=(
            "Largest value allowed: of errors, clientErrors and refusedRequests a share of the canary's"
            " requests; of a query its result."
        ),
    )
    min_samples: int = Field(
        50, ge=1, le=10_000_000, description="Fewer requests or labels than this are no verdict."
    )
    for_: Duration | None = Field(
        None,
        alias="for",
        description=(
            "query: the value must have been beyond its limits for this long, in every measurement,"
            " before the metric fails; meanwhile the step holds. Left out: one measurement is enough."
        ),
    )
    slices: Annotated[list[Slice], Field(max_length=16), ListMapKey("name")] | None = Field(
        None,
        description=(
            "accuracy: slices that are each compared with stable too. One that is proven worse fails the"
            " metric; one with too little data does not hold the step."
        ),
    )
    dry_run: bool = Field(False, description="Measured, judged and shown, but it decides nothing.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"has(self.query) || self.name in {_BUILT_IN}",
            f"a metric that is not built in ({', '.join(BUILT_IN_METRICS)}) needs query: PROMQL",
        ),
        Rule(
            f"!has(self.query) || !(self.name in {_BUILT_IN})",
            f"{', '.join(BUILT_IN_METRICS)} are built in: give a query another name",
        ),
        Rule("!has(self.query) || has(self.min) || has(self.max)", "a query needs min or max"),
        Rule("self.name != 'latency' || has(self.objective)", "latency needs objective, for example 50ms"),
        Rule(
            "self.name == 'latency' || (!has(self.objective) && !has(self.share) && !has(self.of))",
            "objective, share and of belong to latency",
        ),
        Rule(
            "self.name == 'accuracy' || !has(self.maxDrop)",
            "maxDrop belongs to accuracy; other built-in metrics have maxIncrease",
        ),
        Rule(
            f"self.name in {_REQUESTS} || !has(self.maxIncrease)",
            f"maxIncrease belongs to {', '.join(REQUEST_METRICS)}; accuracy has maxDrop",
        ),
        Rule(
            "self.name != 'accuracy' || has(self.maxDrop) || has(self.min)", "accuracy needs maxDrop or min"
        ),
        Rule(
            f"!(self.name in {_ANSWERS}) || has(self.maxIncrease) || has(self.max)",
            f"each of {', '.join(ANSWER_METRICS)} needs maxIncrease or max",
        ),
        Rule(
            "self.name != 'latency' || has(self.maxIncrease) || has(self.share)",
            "latency needs maxIncrease or share",
        ),
        Rule(
            "has(self.query) || !has(self.min) || (self.name == 'accuracy' && self.min >= 0.0 && self.min <"
            " 1.0)",
            "min is a share of accuracy, from 0 to below 1 (0.95, not 95), or belongs to a query",
        ),
        Rule(
            f"has(self.query) || !has(self.max) || (self.name in {_ANSWERS} && self.max > 0.0 && self.max <="
            " 1.0)",
            f"max is a share of {', '.join(ANSWER_METRICS)}, above 0 and at most 1 (0.02, not 2), or belongs"
            " to a query; latency has share",
        ),
        Rule(
            "has(self.query) || !has(self.for)",
            "for belongs to a query; built-in metrics fail by evidence",
        ),
        Rule("self.name == 'accuracy' || !has(self.slices)", "slices belong to accuracy"),
        Rule(
            "!has(self.slices) || has(self.maxDrop) || self.slices.all(s, has(s.maxDrop))",
            "a slice needs maxDrop, its own or that of the metric",
        ),
    )


class Golden(Data):
    """Golden data, sent once through the served candidate and through stable before any traffic."""

    max_drop: float = Field(
        0.01, gt=0, le=1, description="Largest loss of accuracy against stable, absolute."
    )
    min: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Smallest accuracy allowed; the only criterion where there is no stable.",
    )
    output: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description=(
            "The output whose classes or scores are judged. Left out: the only one that fits; several are"
            " refused (OutputAmbiguous)."
        ),
    )


class Analysis(ApiModel):
    """How a revision is judged."""

    prometheus: Name | None = Field(
        None,
        description=(
            "Metrics provider by its name in the operator's configuration; left out: the default one. Not for"
            " metrics that a policy demands."
        ),
    )
    interval: Duration = Field("5s", description="How often to measure.")
    initial_delay: Duration | None = Field(
        None,
        description=(
            "Counting begins this long after each weight was programmed, and again after a pod of either side"
            " became ready: caches warm up, autoscalers react. Part of progressDeadline. Left out: 30s, or a"
            " tenth of progressDeadline where that is shorter."
        ),
    )
    error_limit: Duration | None = Field(
        None,
        description=(
            "A metric that has been in Error (Prometheus down, a broken query) for this long ends the step"
            " without a verdict: onInconclusive holds; left out: the step waits until progressDeadline."
        ),
    )
    golden: Golden | None = None
    templates: Annotated[list[Name], Field(max_length=8)] | None = Field(
        None,
        description=(
            "Names of analysisTemplates of a RolloutPolicy in force here, whose metrics are added; a metric"
            " of that name here wins."
        ),
    )
    metrics: Annotated[list[Metric], Field(max_length=16), ListMapKey("name")] | None = Field(
        None,
        description=(
            "Left out, and no templates: errors against stable, within half a point; behind a gateway also"
            " clientErrors, within two points, and refusedRequests as a dry run."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @property
    def provider(self) -> str | None:
        """Name of the metrics provider, of whatever kind; None is the first one configured."""
        return self.prometheus


class ShadowOutput(ApiModel):
    """When two answers agree in one output. Unlisted outputs: floats within the default tolerances,
    everything else exactly.
    """

    name: str = Field(min_length=1, max_length=256, description="Name of the model's output.")
    abs_tolerance: float | None = Field(
        None,
        ge=0,
        description=(
            "Floats agree when they differ by at most absTolerance + relTolerance * |stable's|. Default"
            " 0.001."
        ),
    )
    rel_tolerance: float | None = Field(
        None, ge=0, le=1, description="Share of stable's value; see absTolerance. Default 0.01."
    )
    argmax: bool = Field(
        False,
        description=(
            "Only the position of the largest value along the last axis has to agree: the class of a"
            " classifier."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!self.argmax || (!has(self.absTolerance) && !has(self.relTolerance))",
            "argmax compares positions: leave the tolerances out",
        ),
    )


class Shadow(ApiModel):
    """Before any traffic: the gateway mirrors HTTP requests to a comparer, which asks both
    revisions. Clients get stable's answers.
    """

    percent: int = Field(
        100,
        ge=1,
        le=100,
        description="Share of the HTTP requests that is mirrored; stable answers these twice.",
    )
    for_: Duration | None = Field(
        None,
        alias="for",
        description="Compare at least this long; left out: go on as soon as the evidence allows.",
    )
    min_samples: int = Field(
        500, ge=1, le=10_000_000, description="Fewer compared requests than this are no verdict."
    )
    min_agreement: float = Field(
        0.99,
        gt=0,
        lt=1,
        description=(
            "Share of the requests whose answers must agree. If a lower share is proven, the revision"
            " is Rejected; if at least this share is proven, the rollout continues."
        ),
    )
    outputs: Annotated[list[ShadowOutput], Field(max_length=32), ListMapKey("name")] | None = Field(
        None, description="How outputs are compared; see outputs of the model in its metadata."
    )


class Rollout(ApiModel):
    """How a new version gets traffic: canary (the default), blueGreen or abTest."""

    shadow: Shadow | None = Field(
        None, description="Compare the answers on mirrored requests first; needs a gateway that can mirror."
    )
    canary: Canary | None = Field(
        None, description="Traffic in steps; left out, and no other strategy: weights 5, 25 and 50."
    )
    blue_green: BlueGreen | None = None
    ab_test: AbTest | None = None
    bake: Duration | None = Field(
        None,
        description=(
            "After promotion the revision is watched for this long with all traffic while the former stable"
            " keeps its pods; proven worse, everything goes back to that. Left out: promotion is final."
        ),
    )
    scale_down_delay: Duration | None = Field(
        None,
        description=(
            "How long the former stable keeps its pods after it has lost its traffic: going back to it is"
            " instant meanwhile. Left out (and at least): the operator's settleSeconds."
        ),
    )
    rollback_window: Duration | None = Field(
        None,
        description=(
            "A rollback, by the verb or by a spec that requests the earlier version again (a revert in Git),"
            " to a revision that was stable within this time skips the analysis that it passed; an older one"
            " is judged again. Left out: the verb skips it for any kept revision, and a spec that requests an"
            " earlier version is a rollout like any other."
        ),
    )
    analysis: Analysis = Field(default_factory=Analysis)
    on_failure: Annotated[Literal["Rollback", "Pause"], LateDefault()] = Field(
        "Rollback",
        description=(
            "What to do when the canary is proven worse. Left out: as a RolloutPolicy says, else Rollback."
        ),
    )
    on_inconclusive: Annotated[Literal["Pause", "Rollback", "Promote"], LateDefault()] = Field(
        "Pause",
        description=(
            "What to do when a step reaches progressDeadline (or errorLimit) with no verdict: no data, too"
            " little of it, Prometheus down. Promote goes on to the next step and records that nothing was"
            " proven; a canary without traffic or ready pods pauses all the same. Left out: as a"
            " RolloutPolicy says, else Pause."
        ),
    )
    progress_deadline: Annotated[Duration, LateDefault()] = Field(
        "1h",
        description="Limit for each stage and each canary step. Left out: that of a RolloutPolicy, else 1h.",
    )
    unscheduled_deadline: Duration | None = Field(
        None,
        description=(
            "How long the pods of a new revision may wait for free GPUs (an autoscaler may bring them). "
            "Left out: that of a RolloutPolicy, else progressDeadline."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.canary), has(self.blueGreen), has(self.abTest)].filter(x, x).size() <= 1",
            "canary, blueGreen and abTest exclude each other: name one of them",
        ),
        Rule(
            "!has(self.analysis.initialDelay) || !has(self.progressDeadline) || "
            "duration(self.analysis.initialDelay) < duration(self.progressDeadline)",
            "analysis.initialDelay must be shorter than progressDeadline, or no step would ever be judged",
        ),
    )
