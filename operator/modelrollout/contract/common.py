"""What tasks and results share: the environment of a Job, and places in an object store."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

TASK_ENV = "MODELROLLOUT_TASK"
# limit for one run; the program ends itself, and can say what took so long
TIMEOUT_ENV = "MODELROLLOUT_TIMEOUT_SECONDS"
# JSON of Served, {} for ONNX: what a server was made for, frozen with its template
SERVES_ENV = "MODELROLLOUT_SERVES"
# JSON list of milliseconds: latencies that the server's own histogram is to tell, frozen with its
# template
OBJECTIVES_ENV = "MODELROLLOUT_OBJECTIVES_MS"
# how many CPUs a server may use, whole ones: its backend gets as many threads; frozen with its
# template
CPUS_ENV = "MODELROLLOUT_CPUS"
# JSON of TensorRT: what is to compute a model of ONNX Runtime, frozen with the template
TENSORRT_ENV = "MODELROLLOUT_TENSORRT"
ENGINES = "/tmp/engines"  # where a server has TensorRT's engines, by model and settings
REPOSITORY = "/models"  # Triton's model repository in a server
CREDENTIALS_DIR = "/var/run/modelrollout/credentials"
RESULT_LIMIT_BYTES = 2048
MAX_MODEL_BYTES = 20 << 30  # fetched, and unpacked
# A larger model is written as graph and weights apart. Protobuf ends at 2 GiB, and to write a
# message takes several times its size in memory.
ONE_FILE_BYTES = 1 << 30


class ContractModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class Location(ContractModel):
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


class DataSet(ContractModel):
    """An ``.npz`` archive, or a table (Parquet, CSV): one array or column for each model input by
    its name, and the labels (and slices) by theirs.

    Where the model has one input and the archive holds exactly one array that is neither labels nor
    a slice, the names need not agree. Of a table all other columns are that input, side by side.
    """

    location: Location
    labels: str = "labels"  # array of shape [n]: integer classes, or numbers for a regression
    slices: tuple[str, ...] = ()


class ModelFile(ContractModel):
    """Another ONNX file that a step needs."""

    location: Location
    sha256: str | None = None  # checked where given


class ServingConfig(ContractModel):
    """What tuning chooses of a model's config.pbtxt; largest batch, tensors and the kind of device
    stay as they are.
    """

    instances: int = Field(1, ge=1)  # executions of the model side by side
    batch: int = Field(0, ge=0)  # waiting requests are joined up to so many rows; 0: never
    queue_delay_us: int = Field(0, ge=0)  # how long a request may wait for others, microseconds


class TensorRT(ContractModel):
    """How ONNX Runtime uses TensorRT in a server."""

    workspace_bytes: int | None = Field(None, ge=1)


CONTAINER_STEP = "container-step"  # the user's container in the pod
SIGNER_DIR = "/var/run/modelrollout/signer"
