"""``spec.optimization``: steps and the accuracy gate."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints
from pydantic.alias_generators import to_camel

from modelrollout.api.v1alpha1.model import Data, ModelFile
from modelrollout.api.v1alpha1.schema import ApiModel, Argument, Duration, ListMapKey, Resources, Rule
from modelrollout.contract.gate import MetricName

AUTO_TIME_LIMIT = "20m"


class Training(ApiModel):
    """Training on labelled data in the Job, with Adam and a learning rate that falls to zero."""

    data: Data = Field(description="Labelled training data; never the gate's.")
    epochs: int = Field(3, ge=1, le=1000, description="Passes over the data.")
    learning_rate: float = Field(0.001, gt=0, le=1, description="At the start.")
    batch_size: int = Field(128, ge=1, le=65536, description="Samples in a batch.")


class Int8(ApiModel):
    """Quantize weights and activations to 8 bit with ONNX Runtime."""

    method: Literal["Dynamic", "Static"] = Field(
        "Dynamic",
        description="Static measures activations on calibration data and is faster; Dynamic needs no data.",
    )
    calibration: Data | None = Field(
        None,
        description="Calibration data, a few hundred inputs like those of production; required for Static.",
    )
    calibration_method: Literal["MinMax", "Entropy", "Percentile"] = Field(
        "MinMax",
        description=(
            "Static: range of an activation. MinMax: all that was seen; Entropy: the one that keeps most"
            " information; Percentile: 99.999 %, which cuts outliers."
        ),
    )
    per_channel: bool = Field(
        True,
        description=(
            "A scale for each output channel of a weight instead of one for the tensor; more accurate."
        ),
    )
    leave_out: Literal["Never", "BySensitivity"] = Field(
        "Never",
        description=(
            "BySensitivity (Static): while the calibration data shows a larger loss than the gate's maxDrop,"
            " the operators whose quantization disturbs the outputs most stay in float."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.method) || self.method != 'Static' || has(self.calibration)",
            "int8 with method Static needs calibration: {uri: ...}; or use method Dynamic",
        ),
        Rule(
            "(has(self.method) && self.method == 'Static') || !has(self.calibrationMethod) ||"
            " self.calibrationMethod == 'MinMax'",
            "calibrationMethod belongs to method Static",
        ),
        Rule(
            "(has(self.method) && self.method == 'Static') || !has(self.leaveOut) ||"
            " self.leaveOut == 'Never'",
            "leaveOut: BySensitivity measures on calibration data: it belongs to method Static",
        ),
    )


class Prune(ApiModel):
    """Remove the least important weights, and train the rest."""

    sparsity: float = Field(
        gt=0, lt=1, description="Share of the model's weights that is to go, for example 0.5."
    )
    granularity: Literal["Structured", "Unstructured"] = Field(
        "Structured",
        description=(
            "Structured removes whole channels: the file is smaller and the model faster. Unstructured sets"
            " single weights to zero, which makes the file smaller only where it is compressed, and the model"
            " no faster with ONNX Runtime."
        ),
    )
    importance: Literal["Magnitude", "Activation"] = Field(
        "Magnitude",
        description=(
            "What makes a weight important: its size, or that times the activations that it meets on the"
            " training data."
        ),
    )
    training: Training | None = Field(
        None, description="Fine-tuning afterwards; left out: none, and little can be pruned without loss."
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.importance) || self.importance != 'Activation' || has(self.training)",
            "importance: Activation measures on the training data: give training",
        ),
    )


class Distill(ApiModel):
    """Train a smaller model, the student, to answer as the source model does."""

    student: ModelFile | None = Field(
        None,
        description="The student: an ONNX file with the source model's inputs and outputs, and any weights.",
    )
    size: float | None = Field(
        None,
        gt=0,
        lt=1,
        description=(
            "Instead of a student: the source model, evenly narrowed to this share of its weights, for"
            " example 0.1."
        ),
    )
    temperature: float = Field(
        4,
        gt=0,
        le=100,
        description="Softens the teacher's scores, so that it also teaches what it holds for less likely.",
    )
    hard_labels: float = Field(
        0.3,
        ge=0,
        le=1,
        description="Share of the loss that comes from the data's labels; the rest comes from the teacher.",
    )
    training: Training = Field(description="Training data and how long.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.student) != has(self.size)",
            "distill needs either student: {uri: ...} or size, for example 0.1",
        ),
    )


class HalfPrecision(ApiModel):
    """Half the size: store weights in 16 bit; inputs and outputs stay float32."""

    type: Literal["Float16", "BFloat16"] = Field(
        "Float16",
        description=(
            "Float16 also computes in 16 bit, which is faster on GPUs. BFloat16 keeps float32's range with"
            " fewer digits; it computes in float32."
        ),
    )


class Int4(ApiModel):
    """Weights of large matrix products (MatMul) to 4 bit in blocks; activations stay float. For
    models bound by memory, such as language models.
    """

    block_size: Literal[16, 32, 64, 128, 256] = Field(
        32, description="Weights that share a scale; fewer are more accurate and larger."
    )
    min_weights: int = Field(65536, ge=1, description="Smaller matrices stay as they are.")


class Graph(ApiModel):
    """Simplify the graph with the same answers: fold constants, fuse operators, drop what is not
    needed.
    """


class Container(ApiModel):
    """A step of your own: your image reads /in/model.onnx (and /in/data.npz), writes
    /out/model.onnx and ends with code 0.

    It gets no credentials, and what it writes is checked before anything else happens with it.
    """

    image: str = Field(
        max_length=512,
        description="The image with its digest: NAME@sha256:... It is part of the key of the artifact.",
    )
    command: Annotated[list[Argument], Field(max_length=64)] | None = Field(
        None, description="As in a pod; left out: the image's own."
    )
    args: Annotated[list[Argument], Field(max_length=64)] | None = Field(None, description="As in a pod.")
    data: Data | None = Field(
        None, description="A data set that becomes /in/data.npz; labels need not be in it."
    )
    resources: Resources | None = Field(
        None, description="Resources of the container, for example a GPU; left out: those of the Job."
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "self.image.matches('^[^@ ]+@sha256:[0-9a-f]{64}$')",
            "container: image must be named by its digest, NAME@sha256:..., which is part of the key of the"
            " artifact; find it with: docker buildx imagetools inspect NAME",
        ),
        Rule(
            "(!has(self.command) || self.command.map(x, x.size()).sum() <= 16384) && (!has(self.args) ||"
            " self.args.map(x, x.size()).sum() <= 16384)",
            "container: command and args are at most 16384 characters each; put a longer program into the"
            " image",
        ),
    )


class Auto(ApiModel):
    """Search the other steps for the smallest or fastest model that keeps the gate's budgets on
    data of its own; the gate judges the one chosen.
    """

    objective: Literal["Size", "Latency"] = Field(
        "Size",
        description=(
            "Size: the smallest file. Latency: the fastest on the Job's CPU, one request at a time; for a"
            " model that a GPU serves that is no proof, and Size says more."
        ),
    )
    data: Data = Field(
        description=(
            "What candidates are judged on, with labels (and slices) as the gate's data has them; samples of"
            " its own, never the gate's: choosing by those would bend the gate's verdict."
        )
    )
    calibration: Data | None = Field(
        None,
        description=(
            "Calibration data for int8; left out: up to 256 samples of data are set aside for it, and judge"
            " nothing."
        ),
    )
    training: Training | None = Field(
        None,
        description=(
            "Labelled training data and how long; left out: nothing that trains is tried, and little can be"
            " pruned without loss."
        ),
    )
    time_limit: Duration = Field(
        AUTO_TIME_LIMIT,
        description=(
            "How long to search; the best one found by then is taken. Less than the timeout of the Job, which"
            " also fetches and gates."
        ),
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
            "[has(self.graph), has(self.prune), has(self.distill), has(self.halfPrecision), has(self.int8),"
            " has(self.int4), has(self.container), has(self.auto)].exists_one(x, x)",
            "name exactly one step, for example int8: {method: Dynamic}",
        ),
    )

    def chosen(self) -> tuple[str, ApiModel]:
        """(kind as on the wire, the step)."""
        return next(
            (to_camel(name), step)
            for name in type(self).model_fields
            if (step := getattr(self, name)) is not None
        )

    def sources(self) -> dict[str, Data | ModelFile]:
        """What the step reads, by the field's path below it, for example ``int8.calibration``."""
        kind, step = self.chosen()
        return dict(_sources(step, f"{kind}."))

    @property
    def trainer(self) -> Literal["Needed", "Welcome"] | None:
        """Whether the Job needs the trainer's image: for a framework that trains, or for what the 4
        bit quantizer stands on. Welcome: auto leaves out what this image alone can do.
        """
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


_SMALLER = "['mae', 'mse', 'relativeError']"  # where more is worse
_NUMBERS = "['relativeError', 'cosine', 'closeness', 'boxIou']"  # against the original, without labels


def _errors_and_scores(of: str, at: str) -> tuple[Rule, ...]:
    """Errors grow when they get worse, others fall: each has its own words. ``of``: CEL of the
    budget, ``at``: what messages put first.
    """
    return (
        Rule(
            f"self.name in {_SMALLER} || !(has({of}.maxIncrease) || has({of}.maxIncreaseRelative) ||"
            f" has({of}.max))",
            f"{at}maxIncrease, maxIncreaseRelative and max belong to mae, mse and relativeError; other"
            " metrics have maxDrop, maxDropRelative and min",
        ),
        Rule(
            f"!(self.name in {_SMALLER}) || !(has({of}.maxDrop) || has({of}.maxDropRelative) ||"
            f" has({of}.min))",
            f"{at}maxDrop, maxDropRelative and min do not belong to mae, mse and relativeError, where more is"
            " worse: use maxIncrease, maxIncreaseRelative or max",
        ),
    )


def _any_budget(of: str) -> str:
    return " || ".join(
        f"has({of}.{field})"
        for field in ("maxDrop", "maxDropRelative", "min", "maxIncrease", "maxIncreaseRelative", "max")
    )


class GateBudget(ApiModel):
    """What may be lost against the original model, and limits of the value itself. Where several
    are given, each must be kept.
    """

    max_drop: float | None = Field(
        None, ge=0, le=1, description="Largest loss against the original model, absolute: 0.01 is one point."
    )
    max_drop_relative: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Largest loss as a share of the original model's value: 0.01 is one percent of it.",
    )
    min: float | None = Field(None, ge=0, le=1, description="Smallest value allowed.")
    max_increase: float | None = Field(
        None,
        ge=0,
        description="mae, mse, relativeError: largest increase against the original model, in own units.",
    )
    max_increase_relative: float | None = Field(
        None, ge=0, description="mae, mse: largest increase as a share of the original model's value."
    )
    max: float | None = Field(None, ge=0, description="mae, mse, relativeError: largest value allowed.")
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(_any_budget("self"), "name a budget, for example maxDrop: 0.01"),
    )


class GateMetric(GateBudget):
    """A budget for one metric on the held-out data, judged with a 95 % interval on both models'
    answers to the same samples.

    With too little data the result is Inconclusive, and the version is Rejected: TooFewSamples says
    how many samples are missing.
    """

    name: MetricName = Field(
        description=(
            "accuracy; topK (the label is among the k highest scores); precision, recall, f1; auc (area under"
            " the ROC curve; with several classes the mean of one against the rest); agreement (same class as"
            " the original model, needs no labels); mae, mse (mean absolute and squared error of a"
            " regression). Against the original model's numbers, for models of any kind and without labels:"
            " relativeError (norm of the difference by the norm), cosine (of the angle between the two),"
            " closeness (share of numbers within the tolerances), boxIou (how far boxes overlap); each is"
            " the mean over the samples."
        )
    )
    output: str | None = Field(
        None,
        min_length=1,
        max_length=256,
        description=(
            "The output that is judged. Left out: the only one that fits; several are refused"
            " (OutputAmbiguous). relativeError, cosine and closeness then judge all outputs of numbers, and"
            " the worst counts; boxIou needs it."
        ),
    )
    abs_tolerance: float | None = Field(
        None, ge=0, description="closeness: |a - b| <= absTolerance + relTolerance * |b|; default 0.001."
    )
    rel_tolerance: float | None = Field(
        None, ge=0, le=1, description="closeness: b is the original's number; default 0.01."
    )
    box_format: Literal["Corners", "Center"] | None = Field(
        None,
        description=(
            "boxIou: what the four numbers of a box are. Corners: x1, y1, x2, y2; Center: x, y, width,"
            " height. Left out: Corners."
        ),
    )
    k: int | None = Field(None, ge=2, le=1000, description="topK: how many classes count.")
    average: Literal["Macro", "Weighted", "Binary"] | None = Field(
        None,
        description=(
            "precision, recall, f1: Macro (each class counts alike), Weighted (by its samples) or Binary (of"
            " class 1). Left out: Binary with two classes, else Macro."
        ),
    )
    slices: GateBudget | None = Field(
        None,
        description=(
            "What each value of each of data.slices must keep; intervals are widened so that all of them hold"
            " together (Bonferroni)."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            f"{_any_budget('self')} || has(self.slices)",
            "a gate metric needs maxDrop, maxDropRelative or min; mae, mse and relativeError: maxIncrease or"
            " max",
        ),
        *_errors_and_scores("self", ""),
        *(
            Rule(f"!has(self.slices) || ({rule.rule})", rule.message)
            for rule in _errors_and_scores("self.slices", "slices: ")
        ),
        Rule(
            "(self.name == 'topK') == has(self.k)",
            "topK needs k, for example k: 5; k belongs to no other metric",
        ),
        Rule(
            "!has(self.average) || self.name in ['precision', 'recall', 'f1']",
            "average belongs to precision, recall and f1",
        ),
        Rule(
            "(!has(self.absTolerance) && !has(self.relTolerance)) || self.name == 'closeness'",
            "absTolerance and relTolerance belong to closeness",
        ),
        Rule("!has(self.boxFormat) || self.name == 'boxIou'", "boxFormat belongs to boxIou"),
        Rule("self.name != 'boxIou' || has(self.output)", "boxIou needs output: the output of boxes"),
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
            f"self.metrics.all(m, m.name in ['mae', 'mse'] || m.name in {_NUMBERS}) ||"
            " !self.metrics.exists(m, m.name in ['mae', 'mse'])",
            "mae and mse are for models that give numbers, accuracy and its like for classifiers: a gate has"
            " one or the other",
        ),
    )


QueueName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$", max_length=63)]
PriorityClassName = Annotated[
    str, StringConstraints(pattern=r"^[a-z0-9]([-.a-z0-9]{0,61}[a-z0-9])?$", max_length=63)
]

# How the Job is carried out, which is no part of a version. So are the resources of a step's
# container.
NO_PART = ("resources", "timeout", "queue_name", "queue_priority_class")


class Optimization(ApiModel):
    """Make the model smaller and faster before it serves."""

    steps: Annotated[list[OptimizationStep], Field(max_length=8)] = Field(
        default_factory=list, description="Steps in order; none: served as it is."
    )
    gate: Gate | None = Field(None, description="Accuracy gate; strongly advised with any step.")
    resources: Resources | None = Field(None, description="Resources of the Job; default 1 CPU and 2Gi.")
    timeout: Duration = Field(
        "1h",
        description=(
            "Limit for one run of the Job. Time in a queue, without a pod, and of earlier tries does not"
            " count."
        ),
    )
    queue_name: QueueName | None = Field(
        None,
        description=(
            "Kueue's LocalQueue in this namespace that admits the Job; left out: none, or Kueue's own"
            " default. No part of the version."
        ),
    )
    queue_priority_class: PriorityClassName | None = Field(
        None,
        description=(
            "Kueue's WorkloadPriorityClass: the Job's place in the queue, and which others it may preempt. No"
            " part of the version."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "!has(self.steps) || self.steps.filter(s, has(s.container)).size() <= 1",
            "steps: one container at most; let one image do the work of both",
        ),
        Rule(
            "!self.steps.exists(s, has(s.auto)) || (self.steps.exists_one(s, has(s.auto)) &&"
            " has(self.steps[size(self.steps) - 1].auto))",
            "auto is the last step: it searches whatever could follow it, and begins from what the steps"
            " before it made",
        ),
        Rule(
            "!self.steps.exists(s, has(s.auto)) || has(self.gate)",
            "auto needs gate: {data: {uri: ...}, metrics: [...]}: its budgets are what the search keeps",
        ),
        Rule(
            "!has(self.gate) || self.steps.all(s, !has(s.auto) || s.auto.data.uri != self.gate.data.uri)",
            "auto.data must not be the gate's data: a model chosen by its held-out samples would be judged"
            " too well; give it samples of its own",
        ),
        Rule(
            "self.steps.all(s, !has(s.auto) || duration(has(s.auto.timeLimit) ? s.auto.timeLimit :"
            f" '{AUTO_TIME_LIMIT}') < duration(self.timeout))",
            "auto.timeLimit must be less than timeout: the Job also fetches the data and runs the gate",
        ),
    )

    @property
    def container(self) -> Container | None:
        """The step that is the user's own image, if there is one."""
        return next((step.container for step in self.steps if step.container), None)

    def carried_out_as(self, present: Optimization) -> Optimization:
        """This recipe with the resources, the time and the queue that ``present`` gives it: they
        are no part of a version.
        """

        def step_now(step: OptimizationStep) -> OptimizationStep:
            if step.container is None or present.container is None:
                return step
            return step.model_copy(
                update={
                    "container": step.container.model_copy(update={"resources": present.container.resources})
                }
            )

        steps = [step_now(step) for step in self.steps]
        return self.model_copy(
            update={"steps": steps} | {field: getattr(present, field) for field in NO_PART}
        )
