"""What the operator hands to its Jobs, and what they hand back: the one contract between the two.

A Job gets its task as JSON in the environment variable ``MODELROLLOUT_TASK`` and its credentials as
files of Secrets mounted under ``/var/run/modelrollout/credentials/<name>/`` (keys
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, optionally ``AWS_SESSION_TOKEN``; for HTTP
``token`` or ``username`` and ``password``). It has no API access. It ends with an exit code and a
``TaskResult`` as JSON of at most 2 KiB in its termination message (DESIGN.md, Artifacts).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import IntEnum
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

TASK_ENV = "MODELROLLOUT_TASK"
# limit for one run; the program ends itself, and can say what took so long
TIMEOUT_ENV = "MODELROLLOUT_TIMEOUT_SECONDS"
# JSON of Served, {} for ONNX: what a server was made for, frozen with its template
SERVES_ENV = "MODELROLLOUT_SERVES"
REPOSITORY = "/models"  # Triton's model repository in a server
CREDENTIALS_DIR = "/var/run/modelrollout/credentials"
RESULT_LIMIT_BYTES = 2048
MAX_MODEL_BYTES = 20 << 30  # fetched, and unpacked
# A larger model is written as graph and weights apart. Protobuf ends at 2 GiB, and to write a
# message takes several times its size in memory.
ONE_FILE_BYTES = 1 << 30


class ExitCode(IntEnum):
    """Exit codes of a Job. ``RETRYABLE`` may be tried again; the others are final for this
    input.
    """

    OK = 0
    RETRYABLE = 1  # store unreachable, server error
    BAD_INPUT = 10  # the user must change something: wrong digest, not ONNX, labels missing
    DENIED = 11  # credentials missing or refused
    GATE_FAILED = 12  # the accuracy budget was exceeded, proven
    GATE_INCONCLUSIVE = 13  # too little held-out data to tell
    OUT_OF_RESOURCES = 14  # memory or disk: with the same limits it would end the same way
    TIMEOUT = 15  # not done within the limit for one run
    # done before: the containers that would follow in the pod must not run, so for Kubernetes it is
    # a failure
    REUSED = 20


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Location(_Model):
    """An object in a named store: where it is and how to get in. Endpoint and region come from the
    operator's configuration, never from a user.
    """

    uri: str
    endpoint: str | None = None
    region: str | None = None
    allow_http: bool = False
    credentials: str | None = None  # name of the folder under CREDENTIALS_DIR; None: anonymous
    # http(s): prefixes that a redirect may lead to, the store's own among them; None: none is
    # followed
    leads_to: tuple[str, ...] | None = None


class DataSet(_Model):
    """An ``.npz`` archive: one array for each model input by its name, and the labels (and slices)
    by theirs.

    Where the model has one input and the archive holds exactly one array that is neither labels nor
    a slice, the names need not agree.
    """

    location: Location
    labels: str = "labels"  # array of shape [n]: integer classes, or numbers for a regression
    slices: tuple[str, ...] = ()


class GateBudget(_Model):
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


class ModelFile(_Model):
    """Another ONNX file that a step needs."""

    location: Location
    sha256: str | None = None  # checked where given


class Training(_Model):
    """Labelled data and how to train on it: Adam, a rate that falls to nothing, batches in an order
    of a fixed seed.
    """

    data: DataSet
    epochs: int = 3
    learning_rate: float = 1e-3
    batch_size: int = 128


class StepBase(_Model):
    """What all steps share. Field names are those of the API's type of the same step."""

    def sources(self) -> dict[str, DataSet | ModelFile]:
        """What has to be fetched for it, by the field's path on the wire below the step."""
        return dict(_sources(self))


def _sources(value: _Model, prefix: str = "") -> Iterator[tuple[str, DataSet | ModelFile]]:
    for name in type(value).model_fields:
        inner, path = getattr(value, name), f"{prefix}{name}"
        if isinstance(inner, DataSet | ModelFile):
            yield path, inner
        elif isinstance(inner, _Model):
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
    """Weights taken away, by channels or one by one, until ``sparsity`` of the model's weights are
    gone; trained afterwards where data is given.
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


class Gate(_Model):
    """Held-out data and the budgets on it."""

    data: DataSet
    metrics: tuple[GateMetric, ...]


class Batching(_Model):
    """Triton's dynamic batching. ``max_queue_delay_us`` in microseconds."""

    max_batch_size: int = 0  # 0: no batching, the model's own shape is the whole shape
    max_queue_delay_us: int = 0


SourceFormat = Literal["ONNX", "SKLearn", "XGBoost", "LightGBM", "TensorFlow", "Keras", "TFLite", "PyTorch"]
Flavour = Literal["trees", "tensorflow", "pytorch"]
# The image, of the operator's configuration, that a model of this format is converted in.
FLAVOURS: dict[str, Flavour] = {
    "SKLearn": "trees",
    "XGBoost": "trees",
    "LightGBM": "trees",
    "TensorFlow": "tensorflow",
    "Keras": "tensorflow",
    "TFLite": "tensorflow",
    "PyTorch": "pytorch",
}


class ServingConfig(_Model):
    """What tuning chooses of a model's config.pbtxt; largest batch, tensors and the kind of device
    stay as they are.
    """

    instances: int = Field(1, ge=1)  # executions of the model side by side
    batch: int = Field(0, ge=0)  # waiting requests are joined up to so many rows; 0: never
    queue_delay_us: int = Field(0, ge=0)  # how long a request may wait for others, microseconds


Backend = Literal["TensorRT", "TorchScript", "SavedModel", "OpenVINO", "Python", "VLLM"]

# Where the containers of a prepare Job hand over: to the user's of a ContainerStep, from it, and
# among ours.
IN_DIR, OUT_DIR = "/in", "/out"
WORK_DIR, MADE_DIR = "/work", "/made"  # what was fetched, and what was made of it
HANDED_MODEL, HANDED_DATA = "model.onnx", "data.npz"
CONTAINER_STEP = "container-step"  # the user's container in the pod
SIGNER_DIR = "/var/run/modelrollout/signer"


class Signature(_Model):
    """A detached signature of the source (OpenSSF model signing), and the file with the signer's
    public key (PEM).
    """

    location: Location
    key_file: str


class Tensor(_Model):
    """An input or output: Triton data type, and shape with the batch first (-1: any size)."""

    name: str
    data_type: str
    shape: tuple[int, ...]


class Tensors(_Model):
    """What a source takes and gives, where its owner says so."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Served(_Model):
    """A source that is served as it is by a backend of Triton; without ``inputs`` and ``outputs``
    its own config.pbtxt says them.
    """

    backend: Backend
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    code: bool = False  # whether it may carry code


class ResolveTask(_Model):
    """Find the sha256 and the size of the source."""

    task: Literal["resolve"] = "resolve"
    source: Location
    max_bytes: int = MAX_MODEL_BYTES


class Recorded(_Model):
    """An artifact that a ModelRevision of the namespace records for the same source, signed alike:
    what may be taken again.
    """

    uri: str
    digest: str  # sha256:<hex> of its manifest.json


class PrepareTask(_Model):
    """Fetch, verify, optimize, gate, publish. ``target_hardware`` takes part in the key of the
    artifact.
    """

    task: Literal["prepare"] = "prepare"
    source: Location
    sha256: str
    signature: Signature | None = None
    # None: told from the file; all but ONNX need an image of their own and must be said
    format: SourceFormat | None = None
    tensors: Tensors | None = None  # of a PyTorch model: TorchScript does not say them
    served: Served | None = None  # as it is; then there are no steps and no gate
    steps: tuple[Step, ...] = ()
    gate: Gate | None = None
    batching: Batching = Batching()
    instance_kind: Literal["KIND_GPU", "KIND_CPU", "KIND_AUTO"] = "KIND_AUTO"
    # the folder of this tenant in the artifact store; the result goes to <uri>/<key>-<salt>-<try>/
    artifacts: Location
    # random, of the operator's, for this Job: nobody knows beforehand where its result will lie
    salt: str = Field(pattern=r"^[0-9a-f]{16}$")
    recorded: tuple[Recorded, ...] = ()  # what lies in the store is taken from here only
    target_hardware: str = "any"
    max_bytes: int = MAX_MODEL_BYTES
    one_file_bytes: int = ONE_FILE_BYTES  # a larger model is written as graph and weights apart
    # The containers of the Job share the work; each has the whole task. Convert, or with a
    # ContainerStep the two around the user's, reads the files.
    part: Literal["Whole", "Fetch", "Convert", "BeforeContainer", "AfterContainer", "Publish"] = "Whole"

    def may_answer(self, uri: str, digest: str) -> bool:
        """Whether the Job of this task can have made that artifact, or taken it: its folder carries
        the Job's salt, or it is among the recorded.
        """
        own = re.fullmatch(
            rf"{re.escape(self.artifacts.uri.rstrip('/'))}/[0-9a-f]{{64}}-{self.salt}-[0-9a-f]{{8}}", uri
        )
        return own is not None or Recorded(uri=uri, digest=digest) in self.recorded


class FetchTask(_Model):
    """The init container of a server: place a prepared repository under
    ``<target>/<model>/<number>/`` after checking its digest.
    """

    task: Literal["fetch"] = "fetch"
    artifact: Location  # <artifacts>/<key>/
    digest: str  # sha256 of manifest.json
    model: str
    number: int
    target: str = REPOSITORY
    # written into config.pbtxt after its digest was checked; None: as it was stored
    serving: ServingConfig | None = None


class CleanTask(_Model):
    """Remove what nobody refers to from the artifact store; a CronJob of the chart runs it
    (docs/safety.md).
    """

    task: Literal["clean"] = "clean"
    artifacts: Location  # the whole store, without a namespace
    references: str  # file that ``modelrollout references`` wrote
    namespaces: tuple[str, ...] = ()  # whose artifacts may go; empty: all
    # less would race with Jobs that have just found something
    older_than_seconds: float = Field(ge=3600)
    dry_run: bool = False


class EvaluateTask(_Model):
    """Golden data once through the served candidate and, where there is one, through stable; over
    HTTP and gRPC.
    """

    task: Literal["evaluate"] = "evaluate"
    data: DataSet
    model: str
    candidate_http: str  # host:port
    candidate_grpc: str
    candidate_number: int
    stable_http: str | None = None
    stable_grpc: str | None = None
    stable_number: int | None = None
    parity_samples: int = 64  # asked over both protocols, the answers must agree
    batch: int = 32
    timeout_seconds: float = 30.0


class TuneTask(_Model):
    """Find the serving configuration with the highest throughput whose latency keeps to the
    objective, on a Triton beside the program.
    """

    task: Literal["tune"] = "tune"
    http: str  # host:port of a Triton that loads models only when told to
    repository: str  # its model repository as this program sees it
    model: str
    data: DataSet | None = None  # None: inputs are made up
    field: str = ""  # where the data was named
    objective_ms: float
    share: float = 0.99  # of the requests that are to be within the objective
    instances: tuple[int, ...] = (1, 2, 4)
    timeout_seconds: float = 600.0  # of the search; what is found until then counts
    window_seconds: float = 1.5  # of one measurement, at least; prolonged where requests are few


Task = Annotated[
    ResolveTask | PrepareTask | FetchTask | CleanTask | EvaluateTask | TuneTask, Field(discriminator="task")
]


class OutputTolerance(_Model):
    """When two answers agree in an output: ``|a - b| <= abs_tolerance + rel_tolerance * |b|``, b
    stable's; or only the argmax of the last axis.
    """

    name: str
    abs_tolerance: float = 1e-3
    rel_tolerance: float = 1e-2
    argmax: bool = False


class CompareTask(_Model):
    """What the comparer of shadow traffic does (``python -m modelrollout.comparer.server``): it is
    a server and hands nothing back.
    """

    task: Literal["compare"] = "compare"
    namespace: str
    model: str
    candidate_http: str  # host:port
    candidate_number: int
    stable_http: str
    stable_number: int
    # others: floats within the default tolerances, everything else exactly
    outputs: tuple[OutputTolerance, ...] = ()
    port: int = 8080
    max_body_bytes: int = 1 << 20
    concurrency: int = 4
    queue: int = 64
    timeout_seconds: float = 10.0


class Paired(_Model):
    """Counts of a paired comparison on the same ``n`` inputs."""

    n: int
    both_right: int
    only_candidate_right: int
    only_baseline_right: int
    both_wrong: int


class MetricResult(_Model):
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


class Interface(_Model):
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


class Search(_Model):
    """What the step auto found. ``points``: the chosen one and the source first, then the frontier;
    as many as the message has room for.
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


class TrialResult(_Model):
    """A serving configuration as measured: single samples a second and latency at the best number
    of requests in flight.
    """

    serving: ServingConfig
    throughput: float = 0.0
    latency_ms: float = 0.0  # that the asked share of the requests kept to
    in_flight: int = 0
    within: bool = False  # the objective was kept
    problem: str | None = None  # the server failed under it


class TuneResult(_Model):
    """What tuning found. ``chosen`` None: nothing kept to the objective, or nothing was better than
    what is configured.
    """

    configured: TrialResult
    chosen: TrialResult | None = None
    candidates: int = 0
    failed: int = 0
    trials: tuple[TrialResult, ...] = ()  # the best others, as far as the message has room


class TaskResult(_Model):
    """The summary in the termination message. ``reason`` is CamelCase and documented in
    docs/reasons.md; ``message`` says what to do.
    """

    reason: str = "Completed"
    message: str = ""
    # resolve, prepare
    sha256: str | None = None
    size_bytes: int | None = None  # of the source file
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
    seconds: dict[str, float] = {}
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
    extra: dict[str, Any] = {}
