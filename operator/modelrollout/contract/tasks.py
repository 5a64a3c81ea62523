"""What the operator hands to its Jobs, and what they hand back: the one contract between the two.

A Job gets its task as JSON in the environment variable ``MODELROLLOUT_TASK`` and its credentials as
files of Secrets mounted under ``/var/run/modelrollout/credentials/<name>/`` (keys
``AWS_ACCESS_KEY_ID``, ``AWS_SECRET_ACCESS_KEY``, optionally ``AWS_SESSION_TOKEN``; for HTTP
``token`` or ``username`` and ``password``). It has no API access. It ends with an exit code and a
``TaskResult`` as JSON of at most 2 KiB in its termination message.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field

from modelrollout.contract.common import (
    MAX_MODEL_BYTES,
    ONE_FILE_BYTES,
    REPOSITORY,
    ContractModel,
    DataSet,
    Location,
    ServingConfig,
)
from modelrollout.contract.formats import Rounds, Served, SourceFormat, Tensors
from modelrollout.contract.gate import Gate
from modelrollout.contract.steps import Step


class Batching(ContractModel):
    """Triton's dynamic batching. ``max_queue_delay_us`` in microseconds."""

    max_batch_size: int = 0  # 0: no batching, the model's own shape is the whole shape
    max_queue_delay_us: int = 0


# Where the containers of a prepare Job hand over: to the user's of a ContainerStep, from it, and
# among ours.
IN_DIR, OUT_DIR = "/in", "/out"
WORK_DIR, MADE_DIR = "/work", "/made"  # what was fetched, and what was made of it
HANDED_MODEL, HANDED_DATA = "model.onnx", "data.npz"


class Signature(ContractModel):
    """A detached signature of the source (OpenSSF model signing), and the file with the signer's
    public key (PEM).
    """

    location: Location
    key_file: str


class Known(ContractModel):
    """What the source was the last time: the bytes with this (strong) ETag have this digest."""

    etag: str
    sha256: str


class ResolveTask(ContractModel):
    """Find the sha256 and the size of the source. ``follow``: also the ETag of these bytes, and
    nothing is read where it is still that of ``known``.
    """

    task: Literal["resolve"] = "resolve"
    source: Location
    follow: bool = False
    known: Known | None = None
    max_bytes: int = MAX_MODEL_BYTES


class Recorded(ContractModel):
    """An artifact that a ModelRevision of the namespace records for the same source, signed alike:
    what may be taken again.
    """

    uri: str
    digest: str  # sha256:<hex> of its manifest.json


class PrepareTask(ContractModel):
    """Fetch, verify, optimize, gate, publish. ``target_hardware`` takes part in the key of the
    artifact.
    """

    task: Literal["prepare"] = "prepare"
    source: Location
    sha256: str
    signature: Signature | None = None
    # None: ONNX. Every other format needs an image of its own, so the spec must name it.
    format: SourceFormat | None = None
    tensors: Tensors | None = None  # of a PyTorch model: TorchScript does not say them
    rounds: Rounds | None = None  # of a boosted model that was trained with early stopping; None: Best
    missing: float | None = None  # of XGBoost: a value that was missing in training, besides NaN
    served: Served | None = None  # as it is; then there are no steps and no gate
    steps: tuple[Step, ...] = ()
    gate: Gate | None = None
    batching: Batching = Batching()
    instance_kind: Literal["KIND_GPU", "KIND_CPU", "KIND_AUTO"] = "KIND_AUTO"
    # whether config.pbtxt may have warm-up requests: the servers' loader must know them
    warmup: bool = False
    # the folder of this tenant in the artifact store; the result goes to <uri>/<key>-<salt>-<try>/
    artifacts: Location
    # random, chosen by the operator for this Job: others cannot predict the folder of its result
    salt: str = Field(pattern=r"^[0-9a-f]{16}$")
    recorded: tuple[Recorded, ...] = ()  # the only artifacts of the store that the Job may reuse
    target_hardware: str = "any"
    # the most devices that a server of it can see, where the model may be divided over several;
    # None: not known, or no matter
    gpus: int | None = None
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


class FetchTask(ContractModel):
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


class CleanTask(ContractModel):
    """Remove unreferenced artifacts from the store; a CronJob of the chart runs it
    (docs/explanation/safety.md).
    """

    task: Literal["clean"] = "clean"
    artifacts: Location  # the whole store, without a namespace
    references: str  # file that ``modelrollout references`` wrote
    namespaces: tuple[str, ...] = ()  # whose artifacts may go; empty: all
    # less would race with Jobs that are about to reuse an artifact
    older_than_seconds: float = Field(ge=3600)
    dry_run: bool = False


class EvaluateTask(ContractModel):
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
    output: str | None = None  # that is judged; None: the only one that fits
    parity_samples: int = 64  # sent over both protocols; the answers must agree
    batch: int = 32
    timeout_seconds: float = 30.0


class AskTask(ContractModel):
    """Made-up inputs to the served candidate, over HTTP and gRPC, where no Job has run the model
    and no golden data will.
    """

    task: Literal["ask"] = "ask"
    model: str
    http: str  # host:port
    grpc: str
    number: int
    timeout_seconds: float = 60.0


class TuneTask(ContractModel):
    """Find the serving configuration with the highest throughput whose latency keeps to the
    objective, on a Triton beside the program.
    """

    task: Literal["tune"] = "tune"
    http: str  # host:port of a Triton that loads models only on request
    repository: str  # its model repository as this program sees it
    model: str
    data: DataSet | None = None  # None: inputs are made up
    field: str = ""  # where the data was named
    objective_ms: float
    share: float = 0.99  # of the requests that are to be within the objective
    instances: tuple[int, ...] = (1, 2, 4)
    timeout_seconds: float = 600.0  # of the search; the best result until then counts
    window_seconds: float = 1.5  # of one measurement, at least; prolonged where requests are few


Task = Annotated[
    ResolveTask | PrepareTask | FetchTask | CleanTask | EvaluateTask | AskTask | TuneTask,
    Field(discriminator="task"),
]


class OutputTolerance(ContractModel):
    """When two answers agree in an output: ``|a - b| <= abs_tolerance + rel_tolerance * |b|``, b
    stable's; or only the argmax of the last axis.
    """

    name: str
    abs_tolerance: float = 1e-3
    rel_tolerance: float = 1e-2
    argmax: bool = False


class CompareTask(ContractModel):
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
