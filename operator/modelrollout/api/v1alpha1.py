"""The API as pydantic types; ``modelrollout.crdgen`` writes crds/*.yaml from them.

Field names in Python are snake_case, on the wire camelCase. A docstring or description is what ``kubectl explain`` shows. Rules that the
API server can check are CEL rules here (``Rule``), with messages that say what to change.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel


@dataclass(frozen=True)
class Rule:
    """One ``x-kubernetes-validations`` entry."""

    rule: str
    message: str


@dataclass(frozen=True)
class ListMapKey:
    """``x-kubernetes-list-type: map`` with this key."""

    key: str


@dataclass(frozen=True)
class PreserveUnknown:
    """An object whose fields Kubernetes itself defines (tolerations, affinity): carried through unread."""


class ApiModel(BaseModel):
    """Base of all API types: camelCase on the wire, unknown fields refused, immutable."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)
    rules: ClassVar[tuple[Rule, ...]] = ()

    def wire(self) -> dict[str, Any]:
        """The object as JSON-able dict with wire names and without what is unset or None."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class StatusModel(ApiModel):
    """Base of status types: fields of a newer or an older operator are dropped, not refused."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


URI_SCHEMES = ("s3", "http", "https")
_URI_RE = r"^(s3|https?)://[^\\s]+$"
_URI_PATTERN = Rule(
    f"self.matches('{_URI_RE}')",
    "unsupported URI: write s3://BUCKET/KEY or http(s)://HOST/PATH",
)
Uri = Annotated[str, Field(max_length=2048), _URI_PATTERN]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$", max_length=253)]
DURATION_RE = r"^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$"
Duration = Annotated[str, StringConstraints(pattern=DURATION_RE, max_length=32)]
QUANTITY_RE = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
Quantity = Annotated[int, Field(ge=0)] | Annotated[str, StringConstraints(pattern=QUANTITY_RE, max_length=32)]
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(duration: str) -> float:
    """Seconds of a duration such as ``90s``, ``1h30m`` or ``2ms``."""
    if not re.match(DURATION_RE, duration):
        raise ValueError(f"not a duration: {duration!r}; write for example 90s, 10m or 1h30m")
    return sum(float(n) * _UNIT_SECONDS[u] for n, _, u in re.findall(r"([0-9]+(\.[0-9]+)?)(ms|s|m|h)", duration))


class LocalName(ApiModel):
    """A reference to an object in the same namespace."""

    name: Name = Field(description="Name of the object.")


class Credentials(ApiModel):
    """How to read from the store."""

    secret_ref: LocalName = Field(
        description="Secret in this namespace with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (S3), or token, or username and password (HTTP). "
        "It is mounted into Jobs and pods; the operator never reads it."
    )


class SecretKey(ApiModel):
    """A key of a Secret in the same namespace."""

    name: Name = Field(description="Name of the Secret.")
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = Field(description="Key in the Secret.")


class Signature(ApiModel):
    """The model must be signed: verified on its bytes before anything of it is parsed.

    Sign with OpenSSF model signing: model_signing sign key MODEL --private_key KEY --signature MODEL.sig
    """

    key_secret_ref: SecretKey = Field(description="Where the signer's public key is, in PEM form (elliptic curve P-256, P-384 or P-521).")
    uri: Uri | None = Field(None, description="The signature file; left out: the model's URI with .sig at its end.")


class Model(ApiModel):
    """The trained model."""

    uri: Uri = Field(
        description="Where the model file is: s3://BUCKET/KEY or http(s)://HOST/PATH, in a store that the operator's configuration names."
    )
    sha256: Sha256 | None = Field(None, description="SHA-256 of the file, hexadecimal. Left out: pinned at first sight.")
    format: Literal["ONNX", "SKLearn", "XGBoost", "LightGBM"] | None = Field(
        None,
        description="Format of the file; left out: ONNX. SKLearn (skops), XGBoost (JSON, UBJ) and LightGBM (txt) are converted to ONNX in an image "
        "of their own. Pickles are never read.",
    )
    credentials: Credentials | None = Field(None, description="How to read the file; left out: the store's default Secret, or anonymous.")
    signature: Signature | None = Field(None, description="Whose signature the file must carry; left out: none is asked for.")
    lineage: dict[str, str] | None = Field(
        None, description="Free text kept with the revision: commit, data set, training run. No part of the version."
    )


class Data(ApiModel):
    """A data set: an .npz archive with one array for each model input and one with the labels."""

    uri: Uri = Field(description="The .npz archive: s3://BUCKET/KEY or http(s)://HOST/PATH.")
    labels: str = Field(
        "labels", description="Name of the array with the labels, shape [n]: integer classes, or numbers for mae and mse.", max_length=128
    )
    slices: Annotated[list[str], Field(max_length=16)] | None = Field(None, description="Names of arrays that divide the data into slices.")
    credentials: Credentials | None = Field(None, description="How to read it; left out: those of spec.model.")


class Int8(ApiModel):
    """Quantize weights and activations to 8 bit with ONNX Runtime."""

    method: Literal["Dynamic", "Static"] = Field(
        "Dynamic", description="Static measures activations on calibration data and is faster; Dynamic needs no data."
    )
    calibration: Data | None = Field(None, description="Calibration data, a few hundred inputs like those of production; required for Static.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.method != 'Static' || has(self.calibration)", "int8 with method Static needs calibration: {uri: ...}; or use method Dynamic"),
    )


class OptimizationStep(ApiModel):
    """One step; exactly one field is set."""

    int8: Int8 | None = None
    rules: ClassVar[tuple[Rule, ...]] = (Rule("has(self.int8)", "name one step, for example int8: {method: Dynamic}"),)


def _errors_and_scores(of: str, at: str) -> tuple[Rule, ...]:
    """mae and mse grow when they get worse, others fall: each has its own words. ``of``: CEL of the budget, ``at``: what messages put first."""
    return (
        Rule(
            f"self.name in ['mae', 'mse'] || !(has({of}.maxIncrease) || has({of}.maxIncreaseRelative) || has({of}.max))",
            f"{at}maxIncrease, maxIncreaseRelative and max belong to mae and mse; other metrics have maxDrop, maxDropRelative and min",
        ),
        Rule(
            f"!(self.name in ['mae', 'mse']) || !(has({of}.maxDrop) || has({of}.maxDropRelative) || has({of}.min))",
            f"{at}maxDrop, maxDropRelative and min do not belong to mae and mse, where more is worse: use maxIncrease, maxIncreaseRelative or max",
        ),
    )


def _any_budget(of: str) -> str:
    return " || ".join(f"has({of}.{field})" for field in ("maxDrop", "maxDropRelative", "min", "maxIncrease", "maxIncreaseRelative", "max"))


class GateBudget(ApiModel):
    """What may be lost against the original model, and limits of the value itself. Where several are given, each must be kept."""

    max_drop: float | None = Field(None, ge=0, le=1, description="Largest loss against the original model, absolute: 0.01 is one point.")
    max_drop_relative: float | None = Field(
        None, ge=0, le=1, description="Largest loss as a share of the original model's value: 0.01 is one percent of it."
    )
    min: float | None = Field(None, ge=0, le=1, description="Smallest value allowed.")
    max_increase: float | None = Field(None, ge=0, description="mae, mse: largest increase against the original model, in their own units.")
    max_increase_relative: float | None = Field(None, ge=0, description="mae, mse: largest increase as a share of the original model's value.")
    max: float | None = Field(None, ge=0, description="mae, mse: largest value allowed.")
    rules: ClassVar[tuple[Rule, ...]] = (Rule(_any_budget("self"), "name a budget, for example maxDrop: 0.01"),)


class GateMetric(GateBudget):
    """A budget for one metric on the held-out data, judged with a 95 % interval on both models' answers to the same samples.

    Too little data to tell is Inconclusive, and the version is Rejected: TooFewSamples says how much more it takes.
    """

    name: Literal["accuracy", "topK", "precision", "recall", "f1", "auc", "agreement", "mae", "mse"] = Field(
        description="accuracy; topK (the label is among the k highest scores); precision, recall, f1; auc (area under the ROC curve; with several "
        "classes the mean of one against the rest); agreement (same class as the original model, needs no labels); mae, mse (mean absolute and "
        "squared error of a regression)."
    )
    k: int | None = Field(None, ge=2, le=1000, description="topK: how many classes count.")
    average: Literal["Macro", "Weighted", "Binary"] | None = Field(
        None,
        description="precision, recall, f1: Macro (each class counts alike), Weighted (by its samples) or Binary (of class 1). Left out: Binary with "
        "two classes, else Macro.",
    )
    slices: GateBudget | None = Field(
        None, description="What each value of each of data.slices must keep; intervals are widened so that all of them hold together (Bonferroni)."
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(f"{_any_budget('self')} || has(self.slices)", "a gate metric needs maxDrop, maxDropRelative or min; mae and mse: maxIncrease or max"),
        *_errors_and_scores("self", ""),
        *(Rule(f"!has(self.slices) || ({rule.rule})", rule.message) for rule in _errors_and_scores("self.slices", "slices: ")),
        Rule("(self.name == 'topK') == has(self.k)", "topK needs k, for example k: 5; k belongs to no other metric"),
        Rule("!has(self.average) || self.name in ['precision', 'recall', 'f1']", "average belongs to precision, recall and f1"),
    )


class Gate(ApiModel):
    """What the optimized model must keep, or it is Rejected before it serves anything."""

    data: Data = Field(description="Held-out data that training did not see.")
    metrics: Annotated[list[GateMetric], Field(min_length=1, max_length=8), ListMapKey("name")] = Field(
        description="Budgets, each of which must be kept."
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!self.metrics.exists(m, has(m.slices)) || (has(self.data.slices) && size(self.data.slices) > 0)",
            "a metric with slices needs data: {slices: [...]}, the arrays that divide the data",
        ),
        Rule(
            "self.metrics.all(m, m.name in ['mae', 'mse']) || !self.metrics.exists(m, m.name in ['mae', 'mse'])",
            "mae and mse are for models that give numbers, the other metrics for classifiers: a gate has one or the other",
        ),
    )


class Resources(ApiModel):
    """Requests and limits as in a container."""

    limits: dict[str, Quantity] | None = Field(None, description="The most that the container may use; a GPU is asked for here.")
    requests: dict[str, Quantity] | None = Field(None, description="What is set aside for the container; left out: the limits.")


class Optimization(ApiModel):
    """Make the model smaller and faster before it serves."""

    steps: Annotated[list[OptimizationStep], Field(max_length=8)] = Field(default_factory=list, description="Steps in order; none: served as it is.")
    gate: Gate | None = Field(None, description="Accuracy gate; strongly advised with any step.")
    resources: Resources | None = Field(None, description="Resources of the Job; default 1 CPU and 2Gi.")
    timeout: Duration = Field("1h", description="Limit for one run of the Job.")


class Triton(ApiModel):
    """The inference server."""

    image: str | None = Field(None, max_length=512, description="Triton image; left out: the operator's default.")


class Batching(ApiModel):
    """Dynamic batching of Triton."""

    max_batch_size: int = Field(0, ge=0, le=4096, description="Largest batch; 0: no batching, requests carry the model's own shape.")
    max_queue_delay: Duration = Field("0ms", description="How long a request may wait for others.")


JsonObject = Annotated[dict[str, Any], PreserveUnknown()]


class Serving(ApiModel):
    """How the model is served."""

    triton: Triton = Field(default_factory=Triton)
    replicas: int = Field(2, ge=0, le=1000, description="Pods of the serving revision.")
    resources: Resources = Field(description="Resources of a Triton pod, for example limits: {nvidia.com/gpu: 1}.")
    node_selector: dict[str, str] | None = Field(None, description="Node labels that a pod needs.")
    tolerations: Annotated[list[JsonObject], Field(max_length=32)] | None = Field(
        None, description="As in a pod; the usual toleration of nvidia.com/gpu is added when a GPU is asked for."
    )
    affinity: JsonObject | None = Field(None, description="As in a pod.")
    service_account_name: Name | None = Field(
        None, description="Service account of the pods; left out: the namespace's default one. No token is mounted."
    )
    image_pull_secrets: Annotated[list[LocalName], Field(max_length=8)] | None = Field(None, description="Secrets to pull the images with.")
    batching: Batching = Field(default_factory=Batching)
    startup_timeout: Duration = Field("10m", description="How long a pod may take to fetch and load the model.")


class GatewayRef(ApiModel):
    """A Gateway that carries the traffic."""

    name: Name = Field(description="Name of the Gateway.")
    namespace: Name | None = Field(None, description="Namespace of the Gateway; left out: this one.")


class Hostnames(ApiModel):
    """Host names of one protocol."""

    hostnames: Annotated[
        list[Annotated[str, StringConstraints(pattern=r"^(\*\.)?[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]],
        Field(min_length=1, max_length=16),
    ] = Field(description="Names that clients call, for example digits.models.example.com.")


class Traffic(ApiModel):
    """How requests reach the model. Without a gateway the weights are approximated by replica counts behind one Service."""

    gateway: GatewayRef | None = None
    http: Hostnames | None = Field(None, description="Host names for HTTP.")
    grpc: Hostnames | None = Field(None, description="Host names for gRPC; they differ from those of HTTP, or some gateways drop one of the routes.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("!has(self.gateway) || has(self.http) || has(self.grpc)", "a gateway needs http: {hostnames: [...]} or grpc: {hostnames: [...]}"),
        Rule("has(self.gateway) || !(has(self.http) || has(self.grpc))", "host names need gateway: {name: ..., namespace: ...}"),
        Rule(
            "!(has(self.http) && has(self.grpc)) || self.http.hostnames.all(h, !(h in self.grpc.hostnames))",
            "HTTP and gRPC need different host names: one name in both kinds of route is not portable between gateways",
        ),
    )


class Pause(ApiModel):
    """Wait; without a duration until somebody promotes."""

    duration: Duration | None = Field(None, description="How long; left out: until somebody promotes.")


class Step(ApiModel):
    """One step of a canary: a weight or a pause."""

    weight: int | None = Field(None, ge=1, le=100, description="Share of the requests for the canary, in percent.")
    for_: Duration | None = Field(None, alias="for", description="Stay at least this long; left out: go on as soon as the evidence allows.")
    pause: Pause | None = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.weight) != has(self.pause)", "a step is either weight: N or pause: {}"),
        Rule("!has(self.for) || has(self.weight)", "for: belongs to a weight; a pause has its own duration"),
    )


DEFAULT_STEPS: tuple[Step, ...] = (Step(weight=5), Step(weight=25), Step(weight=50))


class Canary(ApiModel):
    """Traffic in steps, each judged before the next."""

    steps: Annotated[list[Step], Field(min_length=1, max_length=32)] = Field(
        default_factory=lambda: list(DEFAULT_STEPS), description="Weights must grow; 100 comes by itself at the end."
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.steps.filter(s, has(s.weight)).map(s, s.weight).isSorted() && "
            "self.steps.filter(s, has(s.weight)).all(a, self.steps.exists_one(b, has(b.weight) && b.weight == a.weight))",
            "weights must grow from step to step, for example 5, 25, 50",
        ),
        Rule("self.steps.exists(s, has(s.weight))", "a canary needs at least one weight"),
    )


class Metric(ApiModel):
    """One metric of the analysis. Built in: accuracy, errors, latency; any other name needs a query."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")] = Field(
        description="accuracy, errors or latency; or any other name, with a query."
    )
    max_drop: float | None = Field(None, gt=0, le=1, description="accuracy: margin against stable at full traffic, absolute.")
    max_increase: float | None = Field(None, gt=0, le=1, description="errors, latency: margin against stable at full traffic, absolute.")
    objective: Duration | None = Field(
        None, description="latency: a request slower than this counts as slow. Must be a bucket bound of the gateway's histogram."
    )
    share: float | None = Field(
        None, gt=0, lt=1, description="latency: the share of requests that must be within the objective, whatever stable does."
    )
    query: str | None = Field(
        None,
        max_length=4096,
        description="PromQL that gives one number. {{revision}}, {{stable}}, {{namespace}}, {{name}} and {{window}} are filled in.",
    )
    min: float | None = Field(None, description="Smallest value allowed (accuracy and errors: of the canary itself; query: of its result).")
    max: float | None = Field(None, description="Largest value allowed.")
    min_samples: int = Field(50, ge=1, le=10_000_000, description="Fewer requests or labels than this are no verdict.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.query) || self.name in ['accuracy', 'errors', 'latency']",
            "a metric that is not accuracy, errors or latency needs query: PROMQL",
        ),
        Rule(
            "!has(self.query) || !(self.name in ['accuracy', 'errors', 'latency'])",
            "accuracy, errors and latency are built in: give a query another name",
        ),
        Rule("!has(self.query) || has(self.min) || has(self.max)", "a query needs min or max"),
        Rule("self.name != 'latency' || has(self.objective)", "latency needs objective, for example 50ms"),
        Rule("self.name == 'latency' || (!has(self.objective) && !has(self.share))", "objective and share belong to latency"),
        Rule("self.name == 'accuracy' || !has(self.maxDrop)", "maxDrop belongs to accuracy; errors and latency have maxIncrease"),
        Rule("self.name in ['errors', 'latency'] || !has(self.maxIncrease)", "maxIncrease belongs to errors and latency; accuracy has maxDrop"),
        Rule("self.name != 'accuracy' || has(self.maxDrop) || has(self.min)", "accuracy needs maxDrop or min"),
        Rule("self.name != 'errors' || has(self.maxIncrease) || has(self.max)", "errors needs maxIncrease or max"),
        Rule("self.name != 'latency' || has(self.maxIncrease) || has(self.share)", "latency needs maxIncrease or share"),
    )


class Golden(Data):
    """Golden data, sent once through the served candidate and through stable before any traffic."""

    max_drop: float = Field(0.01, gt=0, le=1, description="Largest loss of accuracy against stable, absolute.")
    min: float | None = Field(None, ge=0, le=1, description="Smallest accuracy allowed; the only criterion where there is no stable.")


class Analysis(ApiModel):
    """How a revision is judged."""

    prometheus: Name | None = Field(None, description="Prometheus by its name in the operator's configuration; left out: the default one.")
    interval: Duration = Field("5s", description="How often to look.")
    golden: Golden | None = None
    metrics: Annotated[list[Metric], Field(max_length=16), ListMapKey("name")] | None = Field(
        None, description="Left out: errors against stable, within half a point."
    )
    rules: ClassVar[tuple[Rule, ...]] = ()


class Rollout(ApiModel):
    """How a new version gets traffic."""

    canary: Canary = Field(default_factory=Canary)
    analysis: Analysis = Field(default_factory=Analysis)
    on_failure: Literal["Rollback", "Pause"] = Field("Rollback", description="What to do when the canary is proven worse.")
    on_inconclusive: Literal["Pause", "Rollback"] = Field(
        "Pause", description="What to do when a step reaches progressDeadline with no verdict: no data, too little of it, Prometheus down."
    )
    progress_deadline: Duration = Field("1h", description="Limit for each stage and each canary step.")


class ModelDeploymentSpec(ApiModel):
    """One model in production: what it is, how it is made small, served, reached and rolled out."""

    model: Model
    optimization: Optimization = Field(default_factory=Optimization)
    serving: Serving
    traffic: Traffic = Field(default_factory=Traffic)
    rollout: Rollout = Field(default_factory=Rollout)
    revision_history_limit: int = Field(5, ge=1, le=50, description="Old revisions kept to roll back to.")

    def user_input(self) -> dict[str, Any]:
        """What makes a version: model, optimization and serving in canonical form, without what changes no answer.

        Two inputs are compared after both went through the present types (``same_version``), so that a field that a newer
        operator adds with a default makes no new version of an old object (DESIGN.md, ModelRevision).
        """
        return user_input(self.model, self.optimization, self.serving)


def user_input(model: Model, optimization: Optimization, serving: Serving) -> dict[str, Any]:
    """Canonical form of the three parts; sha256 is left out because it takes part as the pinned digest."""
    return {
        "model": model.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"lineage", "sha256"}),
        "optimization": optimization.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"resources", "timeout"}),
        "serving": serving.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"replicas"}),
    }


def same_version(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two canonical inputs mean the same version, each read with today's types and defaults."""

    def read(value: dict[str, Any]) -> dict[str, Any]:
        return user_input(
            Model.model_validate(value["model"]), Optimization.model_validate(value["optimization"]), Serving.model_validate(value["serving"])
        )

    return read(a) == read(b)


# --- status -----------------------------------------------------------------------------------------------------------

Stage = Literal["Resolve", "Prepare", "Provision", "Evaluate", "Canary", "Promote", "Revert", "Failed", "Done"]
Phase = Literal["Pending", "Resolving", "Preparing", "Provisioning", "Evaluating", "Canary", "Paused", "Promoting", "RollingBack", "Stable", "Failed"]
Outcome = Literal["Pending", "Canary", "Stable", "Promoted", "RolledBack", "Rejected", "Failed", "Aborted", "Superseded", "Retired"]
VerdictName = Literal["Successful", "Failed", "Inconclusive", "Error"]


class Condition(StatusModel):
    """A Kubernetes condition."""

    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""
    last_transition_time: str
    observed_generation: int | None = None


class RevisionRef(StatusModel):
    """A revision that serves or did."""

    revision: str
    number: int
    since: str | None = None


class Counter(StatusModel):
    """Counts of one metric for one revision in this step: ``good`` of ``total``, and the last raw counters by process.

    ``last`` maps a process (pod or gateway instance) to [total, bad, Unix time of the scrape] as last scraped: a smaller value is a restart,
    which starts at 0.
    """

    total: float = 0
    bad: float = 0
    last: dict[str, list[float]] = Field(default_factory=dict)
    scraped: float | None = Field(None, description="Unix time of the newest scrape that is counted.")


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
        description="Confidence interval of the harm: canary minus stable, worse is positive; the canary's bad share where only that is limited.",
    )
    needed: int | None = Field(None, description="Samples that the canary still needs for a verdict, at the present shares; absent: unknown or none.")


class StepStatus(StatusModel):
    """Where in the canary the rollout is."""

    index: int = Field(description="Step of spec.rollout.canary.steps, from 0.")
    weight: int = Field(description="Weight that the route is to have, percent.")
    phase: Literal["Shifting", "Observing", "Paused"]
    since: str = Field(description="Start of the step.")
    observed_since: str | None = Field(None, description="When the data plane had taken the weight up.")
    measured: str | None = Field(None, description="When the metrics below were written.")
    metrics: list[MetricStatus] = Field(default_factory=list)
    override: str | None = Field(None, description="Who let the rollout go on without a verdict, and from which step.")


class GateMetricEvidence(StatusModel):
    """What the gate found on one metric."""

    name: str
    verdict: VerdictName
    reason: str
    samples: int
    before: float
    after: float
    interval: list[float] = Field(description="95 % interval of the loss: worse than the original model is positive.")
    allowed: float | None = Field(None, description="Largest loss allowed, in the metric's units.")
    slice: str | None = Field(None, description="NAME=VALUE of the slice that decided; the numbers are its own.")


class ArtifactEvidence(StatusModel):
    """What prepare made."""

    uri: str
    digest: str
    size_before: int
    size_after: int
    accuracy_before: float | None = None
    accuracy_after: float | None = None
    samples: int | None = None
    drop_interval: list[float] | None = None
    metrics: list[GateMetricEvidence] = Field(default_factory=list, description="The gate's metrics, each with its verdict.")
    reused: bool = False


class EvaluationEvidence(StatusModel):
    """What the golden data said."""

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


class StepEvidence(StatusModel):
    """A step's verdict with its numbers."""

    index: int
    weight: int
    verdict: VerdictName
    reason: str
    seconds: float
    metrics: list[MetricStatus] = Field(default_factory=list)


class RolloutStatus(StatusModel):
    """The revision in flight, or the one that failed last."""

    stage: Stage
    since: str = Field(description="Start of the stage.")
    started: str = Field(description="Start of the rollout.")
    generation: int
    input_hash: str
    attempt: int = 0
    mode: Literal["Update", "Rollback"] = "Update"
    sha256: str | None = None
    revision: str | None = None
    number: int | None = None
    step: StepStatus | None = None
    reason: str | None = None
    message: str | None = None
    outcome: Outcome | None = None
    artifact: ArtifactEvidence | None = None
    evaluation: EvaluationEvidence | None = None
    history: list[StepEvidence] = Field(default_factory=list, description="Verdicts of the steps that have ended.")
    stages: dict[str, float] = Field(default_factory=dict, description="Seconds spent in each stage that has ended.")


class Pinned(StatusModel):
    """Somebody rolled back: the version that spec asked for then is not tried again until spec asks for another or somebody says retry."""

    revision: str = Field(description="Revision that was gone back to.")
    generation: int
    against: str | None = Field(None, description="Revision of the version that spec asked for, if it had one.")
    input_hash: str = ""


class Address(StatusModel):
    """Where clients inside the cluster reach the model."""

    url: str
    grpc: str


class ModelDeploymentStatus(StatusModel):
    """The only state machine; everything else is made to match it."""

    observed_generation: int | None = None
    phase: Phase = "Pending"
    conditions: Annotated[list[Condition], ListMapKey("type")] = Field(default_factory=list)
    stable: RevisionRef | None = None
    retiring: RevisionRef | None = Field(None, description="Takes no traffic any more; its pods go when the data plane has surely taken that up.")
    rollout: RolloutStatus | None = None
    pinned: Pinned | None = None
    last_number: int = 0
    handled_verbs: list[str] = Field(default_factory=list, description="The last verbs that were carried out or refused.")
    address: Address | None = None
    replicas: int = 0
    ready_replicas: int = 0
    selector: str = ""
    # what the columns of kubectl get show
    canary: str | None = None
    weight: int | None = None
    step: str | None = None
    verdict: str | None = None


class ModelRevisionStatus(StatusModel):
    """Evidence on one version."""

    outcome: Outcome = "Pending"
    reason: str = "-"
    message: str = ""
    artifact: ArtifactEvidence | None = None
    evaluation: EvaluationEvidence | None = None
    steps: list[StepEvidence] = Field(default_factory=list)
    stages: dict[str, float] = Field(default_factory=dict)
    started: str | None = None
    finished: str | None = None
    # columns
    accuracy: str | None = None
    size: str | None = None
    p99: str | None = None


class ModelRevisionSpec(ApiModel):
    """An immutable snapshot of one version; only the operator creates it."""

    number: int = Field(ge=1, description="Grows by one; it is the model's version in Triton, so every answer names its revision.")
    deployment: str = Field(description="Name of the ModelDeployment.")
    sha256: Sha256 = Field(description="Pinned digest of the source.")
    input: JsonObject = Field(description="The user's input in canonical form.")
    builder: str = Field(description="Version of the builder that rendered the template.")
    template: JsonObject = Field(description="Rendered pod template and Triton settings: an upgrade of the operator does not change it.")
    lineage: dict[str, str] | None = Field(None, description="Where the model comes from, as the ModelDeployment said.")
    rules: ClassVar[tuple[Rule, ...]] = (Rule("self == oldSelf", "a ModelRevision is immutable; change the ModelDeployment instead"),)
