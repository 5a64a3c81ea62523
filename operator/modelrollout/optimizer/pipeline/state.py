"""What the phases of a preparation share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from modelrollout.contract.formats import SourceFormat
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import PrepareTask
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.formats.isolated import Converted
from modelrollout.optimizer.gate.gate import Measured
from modelrollout.optimizer.model.data import Data
from modelrollout.optimizer.model.inspect import ModelInfo
from modelrollout.optimizer.pipeline.hand_over import SOURCE
from modelrollout.optimizer.steps.run import Applied
from modelrollout.optimizer.store.object_store import Fetched, ObjectStore
from modelrollout.triton.config import Warmup

FIELD_SOURCE = "spec.model.uri"


class DataFile(NamedTuple):
    """A fetched file and its digest."""

    path: Path
    fetched: Fetched


@dataclass
class PrepareState:
    """The task, and the results of the phases so far. A field below a phase's name is there from
    that phase on; to read it earlier is an AttributeError.
    """

    task: PrepareTask
    progress: Progress
    work: Path  # folder of the fetched files
    made: Path  # folder of the version made from them
    warnings: list[str] = field(default_factory=list)

    # fetch_data, compute_key
    files: dict[str, Fetched] = field(init=False)  # by field of spec
    inputs: dict[str, Any] = field(init=False)  # everything that the artifact depends on
    key: str = field(init=False)
    signer: tuple[Any, str] | None = field(init=False)  # public key, and its digest
    # fetch_source, or read_fetched in another container
    source: Fetched = field(init=False)
    # read_fetched
    data_files: dict[str, DataFile] = field(init=False)
    # convert
    folder: Path = field(init=False)  # for intermediate files; it is removed afterwards
    # convert_or_unpack
    format: SourceFormat = field(init=False)
    onnx: Path = field(init=False)  # the source model in ONNX
    converted: Converted | None = None  # of another format
    author: Any = None  # the configuration that came with an ONNX model, a ModelConfig
    beside: dict[str, Path] = field(default_factory=dict)  # files that it names
    # check_model
    info: ModelInfo = field(init=False)
    config: str = field(init=False)  # config.pbtxt
    data: dict[str, Data] = field(init=False)
    models: dict[str, Path] = field(init=False)
    # check_parity
    conversion: dict[str, Any] | None = None
    # run_recipe
    applied: Applied = field(init=False)
    # run_gate
    measured: Measured | None = None
    # warm_up
    warmup: Warmup | None = None
    # verify_made
    version: dict[str, Path] = field(init=False)  # what is served, by name
    report: dict[str, Any] = field(init=False)
    result: TaskResult = field(init=False)

    @property
    def source_file(self) -> Path:
        """The source as it was fetched."""
        return self.work / SOURCE


Phase = Callable[[PrepareState], TaskResult | None]


def run_phases(phases: Sequence[Phase], state: PrepareState) -> TaskResult | None:
    """Run phases in order, until one has the result of this container."""
    for phase in phases:
        if (result := phase(state)) is not None:
            return result
    return None


def store_of(task: PrepareTask, uri: str) -> ObjectStore:
    """An artifact's place in the store."""
    return ObjectStore(task.artifacts.model_copy(update={"uri": uri}), "artifacts")
