"""The API as pydantic types; ``modelrollout.crdgen`` writes crds/*.yaml from them.

Field names in Python are snake_case, on the wire camelCase. A docstring or description is what ``kubectl explain`` shows. Rules that the
API server can check are CEL rules here (``Rule``), with messages that say what to change.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from modelrollout.api.tasks import FLAVOURS, Flavour, SourceFormat


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


@dataclass(frozen=True)
class LateDefault:
    """The default stands in the types and not in the schema: the operator fills it in, after those of RolloutPolicies."""


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
Argument = Annotated[str, StringConstraints(max_length=4096)]
Duration = Annotated[str, StringConstraints(pattern=DURATION_RE, max_length=32)]
QUANTITY_RE = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?$"
Quantity = Annotated[int, Field(ge=0)] | Annotated[str, StringConstraints(pattern=QUANTITY_RE, max_length=32)]
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST_SECONDS = 100 * 365.25 * 86400


def seconds(duration: str) -> float:
    """Seconds of a duration such as ``90s``, ``1h30m`` or ``2ms``; a hundred years at most, so that it can be added to any time."""
    if not re.match(DURATION_RE, duration):
        raise ValueError(f"not a duration: {duration!r}; write for example 90s, 10m or 1h30m")
    return min(_LONGEST_SECONDS, sum(float(n) * _UNIT_SECONDS[u] for n, _, u in re.findall(r"([0-9]+(\.[0-9]+)?)(ms|s|m|h)", duration)))


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
    format: SourceFormat | None = Field(
        None,
        description="Format of the file; left out: ONNX. SKLearn (skops), XGBoost (JSON, UBJ), LightGBM (txt), TensorFlow (SavedModel as .zip or "
        ".tar), Keras (.keras, .h5), TFLite (.tflite) and PyTorch (TorchScript .pt, exported programs .pt2) are converted to ONNX in images of their "
        "own. Pickles are never read.",
    )
    credentials: Credentials | None = Field(None, description="How to read the file; left out: the store's default Secret, or anonymous.")
    signature: Signature | None = Field(None, description="Whose signature the file must carry; left out: none is asked for.")
    interface_change: Literal["Refused", "Allowed"] = Field(
        "Refused",
        description="Whether a new version may take or give other tensors (names, data types, shapes) than the one that serves. Refused: it is "
        "Rejected before it serves anything; say Allowed when the clients are ready for it. No part of the version.",
    )
    lineage: dict[str, str] | None = Field(
        None, description="Free text kept with the revision: commit, data set, training run. No part of the version."
    )

    @property
    def flavour(self) -> Flavour | None:
        """The image with the libraries that the format is converted with; None: the usual one."""
        return FLAVOURS.get(self.format or "ONNX")


class Data(ApiModel):
    """A data set: an .npz archive with one array for each model input and one with the labels."""

    uri: Uri = Field(description="The .npz archive: s3://BUCKET/KEY or http(s)://HOST/PATH.")
    labels: str = Field(
        "labels", description="Name of the array with the labels, shape [n]: integer classes, or numbers for mae and mse.", max_length=128
    )
    slices: Annotated[list[str], Field(max_length=16)] | None = Field(None, description="Names of arrays that divide the data into slices.")
    credentials: Credentials | None = Field(None, description="How to read it; left out: those of spec.model.")


class ModelFile(ApiModel):
    """Another ONNX file."""

    uri: Uri = Field(description="Where it is: s3://BUCKET/KEY or http(s)://HOST/PATH, in a store that the operator's configuration names.")
    sha256: Sha256 | None = Field(None, description="SHA-256 of the file, hexadecimal; checked when given.")
    credentials: Credentials | None = Field(None, description="How to read it; left out: those of spec.model.")


class Training(ApiModel):
    """Training on labelled data in the Job, with Adam and a learning rate that falls to nothing."""

    data: Data = Field(description="Labelled training data; never the gate's.")
    epochs: int = Field(3, ge=1, le=1000, description="Passes over the data.")
    learning_rate: float = Field(0.001, gt=0, le=1, description="At the start.")
    batch_size: int = Field(128, ge=1, le=65536, description="Samples in a batch.")


class Int8(ApiModel):
    """Quantize weights and activations to 8 bit with ONNX Runtime."""

    method: Literal["Dynamic", "Static"] = Field(
        "Dynamic", description="Static measures activations on calibration data and is faster; Dynamic needs no data."
    )
    calibration: Data | None = Field(None, description="Calibration data, a few hundred inputs like those of production; required for Static.")
    calibration_method: Literal["MinMax", "Entropy", "Percentile"] = Field(
        "MinMax",
        description="Static: range of an activation. MinMax: all that was seen; Entropy: the one that keeps most information; Percentile: 99.999 %, "
        "which cuts outliers.",
    )
    per_channel: bool = Field(True, description="A scale for each output channel of a weight instead of one for the tensor; more accurate.")
    leave_out: Literal["Never", "BySensitivity"] = Field(
        "Never",
        description="BySensitivity (Static): while the calibration data shows a larger loss than the gate's maxDrop, the operators whose "
        "quantization disturbs the outputs most stay in float.",
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.method != 'Static' || has(self.calibration)", "int8 with method Static needs calibration: {uri: ...}; or use method Dynamic"),
        Rule("self.method == 'Static' || self.calibrationMethod == 'MinMax'", "calibrationMethod belongs to method Static"),
        Rule(
            "self.method == 'Static' || self.leaveOut == 'Never'", "leaveOut: BySensitivity measures on calibration data: it belongs to method Static"
        ),
    )


class Prune(ApiModel):
    """Take the least important weights away, and train what is left."""

    sparsity: float = Field(gt=0, lt=1, description="Share of the model's weights that is to go, for example 0.5.")
    granularity: Literal["Structured", "Unstructured"] = Field(
        "Structured",
        description="Structured removes whole channels: the file is smaller and the model faster. Unstructured sets single weights to zero, which "
        "makes the file smaller only where it is compressed, and the model no faster with ONNX Runtime.",
    )
    importance: Literal["Magnitude", "Activation"] = Field(
        "Magnitude", description="What makes a weight important: its size, or that times the activations that it meets on the training data."
    )
    training: Training | None = Field(None, description="Fine-tuning afterwards; left out: none, and little can be pruned without loss.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("self.importance != 'Activation' || has(self.training)", "importance: Activation measures on the training data: give training"),
    )


class Distill(ApiModel):
    """Train a smaller model, the student, to answer as the source model does."""

    student: ModelFile | None = Field(None, description="The student: an ONNX file with the source model's inputs and outputs, and any weights.")
    size: float | None = Field(
        None, gt=0, lt=1, description="Instead of a student: the source model, evenly narrowed to this share of its weights, for example 0.1."
    )
    temperature: float = Field(4, gt=0, le=100, description="Softens the teacher's scores, so that it also teaches what it holds for less likely.")
    hard_labels: float = Field(0.3, ge=0, le=1, description="Share of the loss that comes from the data's labels; the rest comes from the teacher.")
    training: Training = Field(description="Training data and how long.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.student) != has(self.size)", "distill needs either student: {uri: ...} or size, for example 0.1"),
    )


class HalfPrecision(ApiModel):
    """Half the size: weights of 16 bit; inputs and outputs stay float32."""

    type: Literal["Float16", "BFloat16"] = Field(
        "Float16",
        description="Float16 also computes in 16 bit, which is faster on GPUs. BFloat16 keeps float32's range with fewer digits; it "
        "computes in float32.",
    )


class Int4(ApiModel):
    """Weights of large matrix products (MatMul) to 4 bit in blocks; activations stay float. For models bound by memory, such as language models."""

    block_size: Literal[16, 32, 64, 128, 256] = Field(32, description="Weights that share a scale; fewer are more accurate and larger.")
    min_weights: int = Field(65536, ge=1, description="Smaller matrices stay as they are.")


class Graph(ApiModel):
    """Simplify the graph with the same answers: fold constants, fuse operators, drop what is not needed."""


class Resources(ApiModel):
    """Requests and limits as in a container."""

    limits: dict[str, Quantity] | None = Field(None, description="The most that the container may use; a GPU is asked for here.")
    requests: dict[str, Quantity] | None = Field(None, description="What is set aside for the container; left out: the limits.")


class Container(ApiModel):
    """A step of your own: your image reads /in/model.onnx (and /in/data.npz), writes /out/model.onnx and ends with code 0.

    It gets no credentials, and what it writes is checked before anything else happens with it.
    """

    image: str = Field(max_length=512, description="The image with its digest: NAME@sha256:... The result is kept under what made it.")
    command: Annotated[list[Argument], Field(max_length=64)] | None = Field(None, description="As in a pod; left out: the image's own.")
    args: Annotated[list[Argument], Field(max_length=64)] | None = Field(None, description="As in a pod.")
    data: Data | None = Field(None, description="A data set that becomes /in/data.npz; labels need not be in it.")
    resources: Resources | None = Field(None, description="Resources of the container, for example a GPU; left out: those of the Job.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.image.matches('^[^@ ]+@sha256:[0-9a-f]{64}$')",
            "container: image must be named by its digest, NAME@sha256:..., for what is made is kept by what made it; find it with: "
            "docker buildx imagetools inspect NAME",
        ),
    )


class Auto(ApiModel):
    """Search the other steps for the smallest or fastest model that keeps the gate's budgets on data of its own; the gate judges the one chosen."""

    objective: Literal["Size", "Latency"] = Field(
        "Size",
        description="Size: the smallest file. Latency: the fastest on the Job's CPU, one request at a time; for a model that a GPU serves that is no "
        "proof, and Size says more.",
    )
    data: Data = Field(
        description="What candidates are judged on, with labels (and slices) as the gate's data has them; samples of its own, never the gate's: "
        "choosing by those would bend the gate's verdict."
    )
    calibration: Data | None = Field(
        None, description="Calibration data for int8; left out: up to 256 samples of data are set aside for it, and judge nothing."
    )
    training: Training | None = Field(
        None, description="Labelled training data and how long; left out: nothing that trains is tried, and little can be pruned without loss."
    )
    time_limit: Duration = Field(
        "20m", description="How long to search; the best one found by then is taken. Less than the timeout of the Job, which also fetches and gates."
    )


class OptimizationStep(ApiModel):
    """One step; exactly one field is set."""

    graph: Graph | None = None
    prune: Prune | None = None
    distill: Distill | None = None
    half_precision: HalfPrecision | None = None
    int8: Int8 | None = None
    int4: Int4 | None = None
    container: Container | None = None
    auto: Auto | None = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.graph), has(self.prune), has(self.distill), has(self.halfPrecision), has(self.int8), has(self.int4), has(self.container), "
            "has(self.auto)]"
            ".exists_one(x, x)",
            "name exactly one step, for example int8: {method: Dynamic}",
        ),
    )

    def chosen(self) -> tuple[str, ApiModel]:
        """(kind as on the wire, the step)."""
        return next((to_camel(name), step) for name in type(self).model_fields if (step := getattr(self, name)) is not None)

    def sources(self) -> dict[str, Data | ModelFile]:
        """What the step reads, by the field's path below it, for example ``int8.calibration``."""
        kind, step = self.chosen()
        return dict(_sources(step, f"{kind}."))

    @property
    def trainer(self) -> Literal["Needed", "Welcome"] | None:
        """Whether the Job needs the trainer's image: for a framework that trains, or for what the 4 bit quantizer stands on. Welcome: auto leaves
        out what this image alone can do."""
        kind, step = self.chosen()
        if kind == "int4" or getattr(step, "training", None) is not None:
            return "Welcome" if kind == "auto" else "Needed"
        return None


def _sources(value: ApiModel, prefix: str) -> Iterator[tuple[str, Data | ModelFile]]:
    for name in type(value).model_fields:
        inner, path = getattr(value, name), f"{prefix}{to_camel(name)}"
        if isinstance(inner, Data | ModelFile):
            yield path, inner
        elif isinstance(inner, ApiModel):
            yield from _sources(inner, f"{path}.")


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


QueueName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", max_length=63)]


class Optimization(ApiModel):
    """Make the model smaller and faster before it serves."""

    steps: Annotated[list[OptimizationStep], Field(max_length=8)] = Field(default_factory=list, description="Steps in order; none: served as it is.")
    gate: Gate | None = Field(None, description="Accuracy gate; strongly advised with any step.")
    resources: Resources | None = Field(None, description="Resources of the Job; default 1 CPU and 2Gi.")
    timeout: Duration = Field("1h", description="Limit for one run of the Job. Time in a queue, without a pod, and of earlier tries does not count.")
    queue_name: QueueName | None = Field(
        None, description="Kueue's LocalQueue in this namespace that admits the Job; left out: none, or Kueue's own default. No part of the version."
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.steps) || self.steps.filter(s, has(s.container)).size() <= 1",
            "steps: one container at most; let one image do the work of both",
        ),
        Rule(
            "!self.steps.exists(s, has(s.auto)) || (self.steps.exists_one(s, has(s.auto)) && has(self.steps[size(self.steps) - 1].auto))",
            "auto is the last step: it searches whatever could follow it, and begins from what the steps before it made",
        ),
        Rule(
            "!self.steps.exists(s, has(s.auto)) || has(self.gate)",
            "auto needs gate: {data: {uri: ...}, metrics: [...]}: its budgets are what the search keeps",
        ),
        Rule(
            "!has(self.gate) || self.steps.all(s, !has(s.auto) || s.auto.data.uri != self.gate.data.uri)",
            "auto.data must not be the gate's data: a model chosen by its held-out samples would be judged too well; give it samples of its own",
        ),
        Rule(
            "self.steps.all(s, !has(s.auto) || duration(s.auto.timeLimit) < duration(self.timeout))",
            "auto.timeLimit must be less than timeout: the Job also fetches the data and runs the gate",
        ),
    )

    @property
    def container(self) -> Container | None:
        """The step that is the user's own image, if there is one."""
        return next((step.container for step in self.steps if step.container), None)

    def carried_out_as(self, present: Optimization) -> Optimization:
        """This recipe with the resources, the time and the queue that ``present`` gives it: they are no part of a version."""

        def step_now(step: OptimizationStep) -> OptimizationStep:
            if step.container is None or present.container is None:
                return step
            return step.model_copy(update={"container": step.container.model_copy(update={"resources": present.container.resources})})

        steps = [step_now(step) for step in self.steps]
        return self.model_copy(update={"steps": steps} | {field: getattr(present, field) for field in ("resources", "timeout", "queue_name")})


DataType = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BF16", "BYTES"
]  # fmt: skip
Backend = Literal["TensorRT", "TorchScript", "SavedModel", "OpenVINO", "Python", "VLLM"]


class Tensor(ApiModel):
    """An input or output, in the words of the KServe v2 protocol."""

    name: str = Field(min_length=1, max_length=256, description="Its name in the model.")
    data_type: DataType = Field(description="Data type; BYTES are strings.")
    shape: Annotated[list[Annotated[int, Field(ge=-1, le=1 << 31)]], Field(min_length=1, max_length=16)] = Field(
        description="Shape with the batch first; -1 is a dimension of any size."
    )


class Triton(ApiModel):
    """The inference server."""

    image: str | None = Field(
        None,
        max_length=512,
        description="Triton image; left out: the operator's default. It must have the backend, of a version that reads the file.",
    )
    backend: Backend | None = Field(
        None,
        description="The file is served as it is by this backend of Triton: TensorRT (.plan), TorchScript (.pt), and, as archives, SavedModel, "
        "OpenVINO, Python (model.py) and VLLM (model.json with the weights). Left out: ONNX Runtime.",
    )
    inputs: Annotated[list[Tensor], Field(min_length=1, max_length=64), ListMapKey("name")] | None = Field(
        None,
        description="What the model takes, for a backend (left out: config.pbtxt in the archive says it) and for TorchScript with model.format: "
        "PyTorch, which does not say it.",
    )
    outputs: Annotated[list[Tensor], Field(min_length=1, max_length=64), ListMapKey("name")] | None = Field(
        None,
        description="What the model gives, for a backend (left out: config.pbtxt in the archive says it) and for TorchScript with model.format: "
        "PyTorch, which does not say it.",
    )
    code: Literal["Allowed"] | None = Field(
        None,
        description="Allowed: the model may carry code that runs in its pods (Python; VLLM with trust_remote_code or pickled weights). It also takes "
        "a RolloutPolicy with the model's place in allowedSources.code. Left out: a model with code is refused.",
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.inputs) == has(self.outputs)", "give inputs and outputs, or neither: then config.pbtxt in the archive has both"),
        Rule(
            "has(self.backend) || !has(self.code)",
            "code belongs to a backend; ONNX Runtime runs none from a model",
        ),
        Rule(
            "!has(self.backend) || self.backend != 'Python' || has(self.code)",
            "backend: Python runs the model's own code: say code: Allowed, and have a RolloutPolicy allow the place in allowedSources.code",
        ),
        Rule(
            "!has(self.backend) || !has(self.code) || self.backend in ['Python', 'VLLM']",
            "code belongs to the backends Python and VLLM; the others run none from a model",
        ),
        Rule("!has(self.backend) || self.backend != 'VLLM' || !has(self.inputs)", "backend: VLLM has inputs and outputs of its own: leave them out"),
    )


class Batching(ApiModel):
    """Dynamic batching of Triton."""

    max_batch_size: int = Field(0, ge=0, le=4096, description="Largest batch; 0: no batching, requests carry the model's own shape.")
    max_queue_delay: Duration = Field("0ms", description="How long a request may wait for others.")


class Tune(ApiModel):
    """Choose instances and batches by measuring: the highest throughput within a latency objective, on a Triton pod of the new version's own.

    It runs once for a version, before its first pods. No part of the version: what was found is kept with the revision.
    """

    objective: Duration = Field(description="Latency of one request at the server, for example 50ms.")
    share: float = Field(0.99, ge=0.5, le=0.9999, description="Share of the requests that must be within the objective.")
    data: Data | None = Field(
        None,
        description="Inputs like those of production; labels are not needed. Left out: those of rollout.analysis.golden, else of "
        "optimization.gate, else they are made up.",
    )
    instances: Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(min_length=1, max_length=8)] = Field(
        default_factory=lambda: [1, 2, 4], description="Executions of the model side by side in a pod (on each GPU) that may be chosen."
    )
    timeout: Duration = Field("10m", description="Limit for the search; the best found until then is taken.")
    rules: ClassVar[tuple[Rule, ...]] = (Rule("duration(self.objective) > duration('0s')", "objective must be longer than 0, for example 50ms"),)


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
    tune: Tune | None = None
    surge: Literal["Auto", "Wait", "InPlace"] = Field(
        "Auto",
        description="The pods of a new revision run beside those of the stable one until it is promoted. Auto: they are made at once; those that "
        "find no GPU are pending, so that an autoscaler brings one. Wait: they are made once enough GPUs are free, and none is ever pending. "
        "InPlace: when they find no GPU, stable gives up pods for them, down to the floor. No part of the version.",
    )
    floor: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="With surge InPlace: pods that may carry all traffic for a while. Stable keeps that many until the new revision has all "
        "traffic, which it gets once as many of its own are ready. Left out: half of replicas, at least 1. No part of the version.",
    )
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
    replicas: int | None = Field(
        None,
        ge=1,
        le=1000,
        description="Pods of the canary from this step on, behind a gateway; left out: as scale says. Promotion brings all.",
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.weight) != has(self.pause)", "a step is either weight: N or pause: {}"),
        Rule("!has(self.for) || has(self.weight)", "for: belongs to a weight; a pause has its own duration"),
        Rule("!has(self.replicas) || has(self.weight)", "replicas: belongs to a weight"),
    )


STEPS_RULES: tuple[Rule, ...] = (
    Rule(
        "!has(self.steps) || (self.steps.filter(s, has(s.weight)).map(s, s.weight).isSorted() && "
        "self.steps.filter(s, has(s.weight)).all(a, self.steps.exists_one(b, has(b.weight) && b.weight == a.weight)))",
        "weights must grow from step to step, for example 5, 25, 50",
    ),
    Rule("!has(self.steps) || self.steps.exists(s, has(s.weight))", "a canary needs at least one weight"),
)
DEFAULT_STEPS: tuple[Step, ...] = (Step(weight=5), Step(weight=25), Step(weight=50))


class Canary(ApiModel):
    """Traffic in steps, each judged before the next."""

    steps: Annotated[list[Step], Field(min_length=1, max_length=32), LateDefault()] = Field(
        default_factory=lambda: list(DEFAULT_STEPS),
        description="Weights must grow; 100 comes by itself at the end. Left out: those of a RolloutPolicy, else 5, 25, 50.",
    )
    scale: Literal["Full", "Weight"] = Field(
        "Full",
        description="Pods of the canary behind a gateway. Full: serving.replicas from the start. Weight: its share of serving.replicas, rounded up; "
        "a weight is raised when the pods for it are ready. Without a gateway the pods are the weight.",
    )
    rules: ClassVar[tuple[Rule, ...]] = STEPS_RULES


class Preview(ApiModel):
    """Host names of the new revision before it has any traffic of the others."""

    http: Hostnames | None = Field(None, description="Host names for HTTP.")
    grpc: Hostnames | None = Field(None, description="Host names for gRPC; they differ from those of HTTP.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.http) || has(self.grpc)", "a preview needs http: {hostnames: [...]} or grpc: {hostnames: [...]}; or leave preview out"),
        Rule(
            "!(has(self.http) && has(self.grpc)) || self.http.hostnames.all(h, !(h in self.grpc.hostnames))",
            "HTTP and gRPC need different host names: one name in both kinds of route is not portable between gateways",
        ),
    )


class BlueGreen(ApiModel):
    """The new revision at full size beside stable, under a name of its own; then all traffic at once."""

    preview: Preview | None = Field(
        None,
        description="Host names at the gateway; the Service NAME-preview inside the cluster comes always. "
        "Both lead to stable when nothing is on trial.",
    )
    for_: Duration | None = Field(
        None,
        alias="for",
        description="Preview for this long, then go on unless something is proven worse or cannot be measured; left out: go on as soon as the "
        "preview's own requests prove it, or when somebody promotes.",
    )
    auto_promote: bool = Field(True, description="false: after the preview wait until somebody promotes.")


class HeaderMatch(ApiModel):
    """A header that a request must carry."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9-]+$", max_length=256)] = Field(
        description="Name of the header; upper and lower case are one."
    )
    value: Annotated[str, StringConstraints(min_length=1, max_length=1024)] = Field(description="Its value, or a regular expression for it.")
    type: Literal["Exact", "RegularExpression"] = Field("Exact", description="RegularExpression is not supported by every gateway.")


class AbTest(ApiModel):
    """Requests with these headers go to the new revision, all others to stable. Needs a gateway."""

    headers: Annotated[list[HeaderMatch], Field(min_length=1, max_length=16), ListMapKey("name")] = Field(
        description="A request must carry all of them."
    )
    for_: Duration | None = Field(None, alias="for", description="Test at least this long; left out: go on as soon as the evidence allows.")
    auto_promote: bool = Field(True, description="false: after the test wait until somebody promotes.")


SliceName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _.:/=+-]{0,63}$")]


class Slice(ApiModel):
    """A part of the labelled answers that must not get worse, whatever all of them together do."""

    name: SliceName = Field(description="The slice as feedback names it.")
    max_drop: float | None = Field(None, gt=0, le=1, description="Margin against stable on this slice, absolute; left out: that of the metric.")


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
        description="PromQL that gives one number. {{revision}}, {{stable}} (names), {{version}}, {{stableVersion}} (numbers), {{weight}} (percent), "
        "{{namespace}}, {{name}} and {{window}} (since counting began, such as 90s) are filled in.",
    )
    min: float | None = Field(None, description="Smallest value allowed: of accuracy, a share of the canary itself; of a query its result.")
    max: float | None = Field(None, description="Largest value allowed: of errors, a share of the canary's requests; of a query its result.")
    min_samples: int = Field(50, ge=1, le=10_000_000, description="Fewer requests or labels than this are no verdict.")
    for_: Duration | None = Field(
        None,
        alias="for",
        description="query: the value must have been beyond its limits for this long, at every look, before the metric fails; meanwhile the step "
        "holds. Left out: one look is enough.",
    )
    slices: Annotated[list[Slice], Field(max_length=16), ListMapKey("name")] | None = Field(
        None,
        description="accuracy: slices that are each compared with stable too. One that is proven worse fails the metric; one with too little data "
        "does not hold the step.",
    )
    dry_run: bool = Field(False, description="Measured, judged and shown, but it decides nothing.")
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
        Rule(
            "has(self.query) || !has(self.min) || (self.name == 'accuracy' && self.min >= 0.0 && self.min < 1.0)",
            "min is a share of accuracy, from 0 to below 1 (0.95, not 95), or belongs to a query",
        ),
        Rule(
            "has(self.query) || !has(self.max) || (self.name == 'errors' && self.max > 0.0 && self.max <= 1.0)",
            "max is a share of errors, above 0 and at most 1 (0.02, not 2), or belongs to a query; latency has share",
        ),
        Rule("has(self.query) || !has(self.for)", "for belongs to a query; accuracy, errors and latency fail by evidence"),
        Rule("self.name == 'accuracy' || !has(self.slices)", "slices belong to accuracy"),
        Rule(
            "!has(self.slices) || has(self.maxDrop) || self.slices.all(s, has(s.maxDrop))",
            "a slice needs maxDrop, its own or that of the metric",
        ),
    )


class Golden(Data):
    """Golden data, sent once through the served candidate and through stable before any traffic."""

    max_drop: float = Field(0.01, gt=0, le=1, description="Largest loss of accuracy against stable, absolute.")
    min: float | None = Field(None, ge=0, le=1, description="Smallest accuracy allowed; the only criterion where there is no stable.")


class Analysis(ApiModel):
    """How a revision is judged."""

    prometheus: Name | None = Field(None, description="Prometheus by its name in the operator's configuration; left out: the default one.")
    interval: Duration = Field("5s", description="How often to look.")
    initial_delay: Duration | None = Field(
        None, description="Counting begins this long after each weight was taken up: caches warm up, autoscalers react. Part of progressDeadline."
    )
    error_limit: Duration | None = Field(
        None,
        description="A metric that has been in Error (Prometheus down, a broken query) for this long ends the step without a verdict: onInconclusive "
        "holds; left out: the step waits until progressDeadline.",
    )
    golden: Golden | None = None
    templates: Annotated[list[Name], Field(max_length=8)] | None = Field(
        None,
        description="Names of analysisTemplates of a RolloutPolicy in force here, whose metrics are added; a metric of that name here wins.",
    )
    metrics: Annotated[list[Metric], Field(max_length=16), ListMapKey("name")] | None = Field(
        None, description="Left out, and no templates: errors against stable, within half a point."
    )
    rules: ClassVar[tuple[Rule, ...]] = ()


class ShadowOutput(ApiModel):
    """When two answers agree in one output. Unlisted outputs: floats within the default tolerances, everything else exactly."""

    name: str = Field(min_length=1, max_length=256, description="Name of the model's output.")
    abs_tolerance: float | None = Field(
        None, ge=0, description="Floats agree when they differ by at most absTolerance + relTolerance * |stable's|. Default 0.001."
    )
    rel_tolerance: float | None = Field(None, ge=0, le=1, description="Share of stable's value; see absTolerance. Default 0.01.")
    argmax: bool = Field(False, description="Only the position of the largest value along the last axis has to agree: the class of a classifier.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("!self.argmax || (!has(self.absTolerance) && !has(self.relTolerance))", "argmax compares positions: leave the tolerances out"),
    )


class Shadow(ApiModel):
    """Before any traffic: the gateway mirrors HTTP requests to a comparer, which asks both revisions. Clients get stable's answers."""

    percent: int = Field(100, ge=1, le=100, description="Share of the HTTP requests that is mirrored; stable is asked these once more.")
    for_: Duration | None = Field(None, alias="for", description="Compare at least this long; left out: go on as soon as the evidence allows.")
    min_samples: int = Field(500, ge=1, le=10_000_000, description="Fewer compared requests than this are no verdict.")
    min_agreement: float = Field(
        0.99, gt=0, lt=1, description="Share of the requests whose answers must agree. Proven less: Rejected. Proven at least as much: goes on."
    )
    outputs: Annotated[list[ShadowOutput], Field(max_length=32), ListMapKey("name")] | None = Field(
        None, description="How outputs are compared; see outputs of the model in its metadata."
    )


class Rollout(ApiModel):
    """How a new version gets traffic: canary (the default), blueGreen or abTest."""

    shadow: Shadow | None = Field(None, description="Compare the answers on mirrored requests first; needs a gateway that can mirror.")
    canary: Canary | None = Field(None, description="Traffic in steps; left out, and no other strategy: weights 5, 25 and 50.")
    blue_green: BlueGreen | None = None
    ab_test: AbTest | None = None
    bake: Duration | None = Field(
        None,
        description="After promotion the revision is watched for this long with all traffic while the former stable keeps its pods; proven worse, "
        "everything goes back to that. Left out: promotion is final.",
    )
    scale_down_delay: Duration | None = Field(
        None,
        description="How long the former stable keeps its pods after it has lost its traffic: going back to it is instant meanwhile. "
        "Left out (and at least): the operator's settleSeconds.",
    )
    rollback_window: Duration | None = Field(
        None,
        description="A rollback to a revision that was stable within this time skips the analysis that it passed; an older one is judged again. "
        "Left out: any kept revision skips it.",
    )
    analysis: Analysis = Field(default_factory=Analysis)
    on_failure: Annotated[Literal["Rollback", "Pause"], LateDefault()] = Field(
        "Rollback", description="What to do when the canary is proven worse. Left out: as a RolloutPolicy says, else Rollback."
    )
    on_inconclusive: Annotated[Literal["Pause", "Rollback", "Promote"], LateDefault()] = Field(
        "Pause",
        description="What to do when a step reaches progressDeadline (or errorLimit) with no verdict: no data, too little of it, Prometheus down. "
        "Promote goes on to the next step and records that nothing was proven; a canary without traffic or ready pods pauses all the same. "
        "Left out: as a RolloutPolicy says, else Pause.",
    )
    progress_deadline: Annotated[Duration, LateDefault()] = Field(
        "1h", description="Limit for each stage and each canary step. Left out: that of a RolloutPolicy, else 1h."
    )
    unscheduled_deadline: Duration | None = Field(
        None,
        description="How long the pods of a new revision may wait for free GPUs (an autoscaler may bring them). "
        "Left out: that of a RolloutPolicy, else progressDeadline.",
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


_BACKEND = "has(self.serving.triton) && has(self.serving.triton.backend)"


class ModelDeploymentSpec(ApiModel):
    """One model in production: what it is, how it is made small, served, reached and rolled out."""

    model: Model
    optimization: Optimization = Field(default_factory=Optimization)
    serving: Serving
    traffic: Traffic = Field(default_factory=Traffic)
    rollout: Rollout = Field(default_factory=Rollout)
    revision_history_limit: int = Field(5, ge=1, le=50, description="Old revisions kept to roll back to.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.rollout) || !has(self.rollout.shadow) || (has(self.traffic) && has(self.traffic.gateway) && has(self.traffic.http))",
            "rollout.shadow mirrors HTTP requests at a gateway: set traffic.gateway and traffic.http, or leave rollout.shadow out",
        ),
        Rule(
            "!has(self.rollout.abTest) || has(self.traffic.gateway)",
            "rollout.abTest needs traffic.gateway: only a gateway can look at headers",
        ),
        Rule(
            "!has(self.serving.triton) || !has(self.serving.triton.inputs) || has(self.serving.triton.backend) || "
            "(has(self.model.format) && self.model.format == 'PyTorch')",
            "serving.triton.inputs and outputs belong to a backend or to model.format: PyTorch; other files say themselves what they take and give",
        ),
        Rule(
            f"!({_BACKEND}) || !has(self.model.format)",
            "serving.triton.backend serves the file as it is, model.format converts it to ONNX: leave one of them out",
        ),
        Rule(
            f"!({_BACKEND}) || !has(self.optimization) || (size(self.optimization.steps) == 0 && !has(self.optimization.gate))",
            "serving.triton.backend serves the file as it is: leave optimization.steps and gate out; rollout.analysis.golden judges the served model",
        ),
        Rule(
            f"!({_BACKEND} && self.serving.triton.backend == 'VLLM') || !(has(self.rollout.shadow) || (has(self.rollout.analysis) && "
            "has(self.rollout.analysis.golden)))",
            "backend: VLLM streams text, and golden data and shadow compare tensors: leave rollout.analysis.golden and rollout.shadow out",
        ),
        Rule(
            f"!({_BACKEND} && self.serving.triton.backend == 'VLLM') || !has(self.serving.batching) || self.serving.batching.maxBatchSize == 0",
            "backend: VLLM batches by itself: leave serving.batching out",
        ),
        Rule(
            "!has(self.rollout.blueGreen) || !has(self.rollout.blueGreen.preview) || has(self.traffic.gateway)",
            "rollout.blueGreen.preview needs traffic.gateway; without one leave it out: the Service NAME-preview leads to the new revision",
        ),
        *(
            Rule(
                f"!has(self.rollout.blueGreen) || !has(self.rollout.blueGreen.preview) || !has(self.rollout.blueGreen.preview.{mine}) || "
                f"!has(self.traffic.{theirs}) || self.rollout.blueGreen.preview.{mine}.hostnames.all(h, !(h in self.traffic.{theirs}.hostnames))",
                f"rollout.blueGreen.preview.{mine}: its host names must differ from those of traffic.{theirs}",
            )
            for mine in ("http", "grpc")
            for theirs in ("http", "grpc")
        ),
    )

    def user_input(self) -> dict[str, Any]:
        """What makes a version: model, optimization and serving in canonical form, without what changes no answer.

        Two inputs are compared after both went through the present types (``same_version``), so that a field that a newer
        operator adds with a default makes no new version of an old object (DESIGN.md, ModelRevision).
        """
        return user_input(self.model, self.optimization, self.serving)


def user_input(model: Model, optimization: Optimization, serving: Serving) -> dict[str, Any]:
    """Canonical form of the three parts; sha256 is left out because it takes part as the pinned digest."""
    return {
        "model": model.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"lineage", "sha256", "interface_change"}),
        "optimization": optimization.model_dump(
            mode="json",
            by_alias=True,
            exclude_none=True,
            exclude={"resources": True, "timeout": True, "queue_name": True, "steps": {"__all__": {"container": {"resources"}}}},
        ),
        "serving": serving.model_dump(mode="json", by_alias=True, exclude_none=True, exclude={"replicas", "surge", "floor", "tune"}),
    }


def same_version(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two canonical inputs mean the same version, each read with today's types and defaults."""

    def read(value: dict[str, Any]) -> dict[str, Any]:
        return user_input(
            Model.model_validate(value["model"]), Optimization.model_validate(value["optimization"]), Serving.model_validate(value["serving"])
        )

    return read(a) == read(b)


# --- status -----------------------------------------------------------------------------------------------------------

Stage = Literal["Resolve", "Prepare", "Tune", "Provision", "Evaluate", "Shadow", "Canary", "Promote", "Bake", "Revert", "Failed", "Done"]
Phase = Literal[
    "Pending", "Resolving", "Preparing", "Tuning", "Provisioning", "Evaluating", "Shadowing", "Canary", "Previewing", "Testing", "Paused",
    "Promoting", "Baking", "RollingBack", "Stable", "Failed",
]  # fmt: skip
Strategy = Literal["Canary", "BlueGreen", "ABTest"]
Outcome = Literal["Pending", "Canary", "Stable", "Promoted", "RolledBack", "Rejected", "Failed", "Aborted", "Superseded", "Retired"]
MirrorWay = Literal["RequestMirror", "TraefikService"]
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


class Draining(StatusModel):
    """A revision that has lost its traffic and keeps its pods for a while."""

    revision: str
    number: int
    until: str = Field(description="Its pods go at this time; an entry whose time is over means nothing and goes with a later write.")


class Held(StatusModel):
    """Somebody said pause."""

    since: str
    by: str = Field(description="The nonce of the request.")


class Counter(StatusModel):
    """Counts of one metric for one revision in this step: ``bad`` of ``total``, and the last raw counters by process.

    ``last`` maps a process (pod or gateway instance) to [total, bad, Unix time of the scrape] as last scraped: a smaller value is a restart,
    which starts at 0. Processes beyond the first few are followed in groups, ``#N``, with a hash of their names as fourth number.
    """

    total: float = 0
    bad: float = 0
    last: dict[str, list[float]] = Field(default_factory=dict)
    scraped: float | None = Field(None, description="Unix time of the newest scrape that is counted.")
    spread: list[float] = Field(
        default_factory=list,
        description="Variation of the bad share from look to look: requests and bad ones of the last, number of differences, sum of their squares, "
        "requests and bad ones of all; of stable with those of the hour before the step.",
    )


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
    needed_seconds: int | None = Field(None, description="How long those take to come at the present rate; absent: unknown or none.")
    log_evidence: float | None = Field(
        None,
        description=(
            "Natural logarithm of this step's e-value against 'not worse than stable by more than the tolerance' (where only a limit is set: "
            "'within the limit'). The counts are those above; later steps of the rollout build on it."
        ),
    )
    since: str | None = Field(None, description="Since when the metric has been in Error, or its query beyond its limits.")
    slice: str | None = Field(None, description="The slice that this is about; it decides only by failing.")
    dry_run: bool | None = Field(None, description="It decides nothing.")


class StepStatus(StatusModel):
    """Where in the canary the rollout is."""

    index: int = Field(description="Step of the strategy, from 0; past the last one in Bake.")
    weight: int = Field(description="Weight that the route is to have, percent; 0 in a preview and in a test by headers.")
    strategy: Strategy = "Canary"
    former: int = Field(0, description="Weight of the step before; it stays until there are pods for the new one.")
    phase: Literal["Shifting", "Observing", "Paused"]
    since: str = Field(description="Start of the step.")
    observed_since: str | None = Field(None, description="When the data plane had taken the weight up.")
    measured: str | None = Field(None, description="When the metrics below were written.")
    metrics: list[MetricStatus] = Field(default_factory=list)
    override: str | None = Field(None, description="Who let the rollout go on without a verdict, and from which step.")


class ShadowStatus(StatusModel):
    """Where in the shadow the rollout is, and what it has shown."""

    phase: Literal["Starting", "Accepted", "Mirroring", "Observing", "Paused", "Leaving"]
    since: str = Field(description="Start of the phase.")
    mirror: MirrorWay | None = Field(None, description="How the gateway mirrors; kept for as long as it does.")
    outputs: str = Field("", description="Hash of the tolerances: evidence under others is no evidence.")
    observed_since: str | None = Field(None, description="When the data plane had taken the mirror up.")
    measured: str | None = Field(None, description="When the metric was written.")
    metric: MetricStatus | None = Field(None, description="Agreement with stable; its canary's counter counts requests, bad are those that disagree.")
    override: str | None = Field(None, description="Who let the rollout go on without a verdict.")
    promoted: Literal["Step", "Full"] | None = Field(None, description="What somebody said by hand: on to the first step, or past all of them.")


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


class Interface(StatusModel):
    """What a model takes and gives: each tensor as ``FP32 [n, 64]`` by its name. Of a very large one only digest and counts are kept."""

    digest: str = Field(description="Of all inputs and outputs, whatever their order; equal interfaces have equal digests.")
    inputs: dict[str, str] | None = None
    outputs: dict[str, str] | None = None
    counts: list[int] | None = Field(None, description="Inputs and outputs, where they are not listed.")


class SearchPoint(StatusModel):
    """One model that auto made, judged on its own data."""

    name: str = Field(description="The steps, for example prune-0.7+int8; source is the model that auto was given.")
    size: int = Field(description="Bytes.")
    milliseconds: float = Field(description="CPU time of one request on the Job's CPU, median of runs in turns with the source.")
    value: float = Field(description="Of the gate's first metric.")
    highest_loss: float = Field(description="Upper end of the 95 % interval of the loss of that metric.")
    within: bool = Field(description="Whether it keeps all budgets.")


class SearchEvidence(StatusModel):
    """What auto found: the chosen model, and those that no other one beats in accuracy and size, or in accuracy and latency."""

    objective: str
    metric: str
    before: float = Field(description="That metric of the original model, on auto's data.")
    allowed: float | None = Field(None, description="Largest loss allowed, in the metric's units.")
    chosen: str
    tried: int = Field(description="Models that were made; report.json beside the artifact has them all.")
    ended: str = Field(description="Complete, or TimeLimit.")
    points: list[SearchPoint] = Field(default_factory=list)


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
    interface: Interface | None = Field(None, description="Inputs and outputs; absent where an older operator prepared it.")
    search: SearchEvidence | None = Field(None, description="The frontier that the step auto found.")


class TuningTrial(StatusModel):
    """A serving configuration, and what it was measured to do in one pod."""

    instances: int = Field(1, description="Executions of the model side by side.")
    batch: int = Field(0, description="Requests are joined up to so many samples; 0: never.")
    queue_delay_microseconds: int = Field(0, description="How long a request may wait for others.")
    throughput: float = Field(0, description="Samples a second, with as many requests in flight as the objective allows.")
    latency_ms: float = Field(0, description="What the asked share of the requests kept to.")
    in_flight: int = 0
    within: bool = Field(False, description="The objective was kept.")
    problem: str | None = Field(None, description="How the server failed under it.")


class TuningEvidence(StatusModel):
    """What tuning found; the pods of the revision serve with ``chosen``, or as configured where there is none."""

    objective: str = ""
    share: float = 0
    configured: TuningTrial | None = None
    chosen: TuningTrial | None = None
    candidates: int = 0
    failed: int = Field(0, description="Candidates under which the server failed.")
    trials: list[TuningTrial] = Field(default_factory=list, description="The best of the others.")
    message: str = ""


class SliceEvidence(StatusModel):
    """What the golden data said of one slice: its name as ARRAY=VALUE, and the loss of accuracy with an interval for all slices together."""

    name: str
    samples: int
    drop: float
    interval: list[float]


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
    slices: list[SliceEvidence] | None = Field(None, description="The slices that lost most.")


class StepEvidence(StatusModel):
    """A step's verdict with its numbers."""

    index: int
    weight: int
    verdict: VerdictName
    reason: str
    seconds: float
    metrics: list[MetricStatus] = Field(default_factory=list)


class QueueStatus(StatusModel):
    """The rollout waits to be given GPUs; it has no pods yet."""

    since: str = Field(description="Since when it waits: who came first goes first.")
    gpus: int = Field(0, description="GPUs that its pods will ask for.")
    position: int | None = Field(None, description="Place in the queue for a slot, from 1, as told last.")
    short_since: str | None = Field(None, description="Since when it has all but free GPUs.")


class InPlaceStatus(StatusModel):
    """No GPU was free for the new revision, so stable makes room for it (surge InPlace)."""

    of: int = Field(description="Pods that stable had.")
    keeps: int = Field(description="Pods that it keeps until the rollout ends.")


class RolloutStatus(StatusModel):
    """The revision in flight, or the one that failed last."""

    stage: Stage
    since: str = Field(description="Start of the stage.")
    started: str = Field(description="Start of the rollout.")
    generation: int
    input_hash: str
    attempt: int = 0
    mode: Literal["Update", "Rollback"] = "Update"
    proven: bool = Field(True, description="Rollback: what was proven of the revision still counts (rollbackWindow).")
    held: Held | None = Field(None, description="Somebody said pause: the weight stays, deadlines wait.")
    sha256: str | None = None
    revision: str | None = None
    number: int | None = None
    queue: QueueStatus | None = None
    in_place: InPlaceStatus | None = None
    step: StepStatus | None = None
    reason: str | None = None
    message: str | None = None
    outcome: Outcome | None = None
    artifact: ArtifactEvidence | None = None
    tuning: TuningEvidence | None = None
    evaluation: EvaluationEvidence | None = None
    shadow: ShadowStatus | None = None
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
    draining: Annotated[list[Draining], ListMapKey("revision")] = Field(
        default_factory=list, description="Revisions that have lost their traffic and keep their pods for a while."
    )
    retiring: RevisionRef | None = Field(None, description="What an earlier operator wrote instead of draining; read, never written.")
    restarted: dict[str, str] = Field(default_factory=dict, description="When somebody last asked for new pods of a revision.")
    rollout: RolloutStatus | None = None
    pinned: Pinned | None = None
    last_number: int = 0
    handled_verbs: list[str] = Field(default_factory=list, description="The last verbs that were carried out or refused.")
    policies: list[str] | None = Field(None, description="RolloutPolicies that match.")
    defaults: JsonObject | None = Field(None, description="What they fill in where spec.rollout leaves a field out.")
    address: Address | None = None
    replicas: int = 0
    ready_replicas: int = 0
    selector: str = ""
    # what the columns of kubectl get show
    canary: str | None = None
    weight: int | None = None
    share: int | None = Field(None, description="Without a gateway: percent of the ready pods that are the revision's, its real share.")
    step: str | None = None
    verdict: str | None = None


class ModelRevisionStatus(StatusModel):
    """Evidence on one version."""

    outcome: Outcome = "Pending"
    reason: str = "-"
    message: str = ""
    artifact: ArtifactEvidence | None = None
    tuning: TuningEvidence | None = None
    evaluation: EvaluationEvidence | None = None
    shadow: MetricStatus | None = Field(None, description="Agreement with stable on mirrored requests.")
    steps: list[StepEvidence] = Field(default_factory=list)
    stages: dict[str, float] = Field(default_factory=dict)
    started: str | None = None
    finished: str | None = None
    retired: str | None = Field(None, description="When it ceased to be stable.")
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
