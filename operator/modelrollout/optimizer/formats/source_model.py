"""What every format has in common: how it is recognized, and how a model of it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray
from onnx import ModelProto

from modelrollout.contract.formats import FLAVOUR_BY_FORMAT, Declared, Flavour, SourceFormat
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.model.data import Arrays
from modelrollout.reasons import Reason

FIELD = "spec.model"
REMEDY = "export the model to ONNX where it was trained"
MAX_FEATURES = 100_000
INPUT = "x"  # of tables of numbers: [n, features]


Wider = Literal["No", "IfUnfaithful", "First"]


@dataclass(frozen=True)
class SourceModel:
    """A model in its own library.

    ``convert``: the ONNX model, with the original's names and shapes of inputs and outputs.
    ``predict``: answers to one batch, each [n, ...], in the order of the ONNX model's last outputs,
    or of its first ones if the first answer is classes (integers, words).
    ``probes``: inputs that meet the model's own branches, None where nothing is known of them.
    ``notes``: of it for the report, ``warnings``: for its owner. ``wider``: whether float64
    (``Declared.double``) is better: it is tried first, or if float32 answers otherwise.
    """

    convert: Callable[[], ModelProto]
    predict: Callable[[Arrays], list[NDArray[Any]]]
    probes: Callable[[], Arrays] | None = None
    notes: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    wider: Wider = "No"


@dataclass(frozen=True)
class FileStart:
    """What formats are recognized by: the first bytes of the file at ``path`` and, of a zip, the
    end, which lists the names in it.
    """

    path: Path
    head: bytes
    zip_names: bytes = b""

    @classmethod
    def read(cls, path: Path) -> FileStart:
        with path.open("rb") as file:
            head = file.read(4096)
            if not head.startswith(b"PK\x03\x04"):
                return cls(path, head)
            file.seek(max(0, path.stat().st_size - 65536))
            return cls(path, head, file.read())


@dataclass(frozen=True)
class Format:
    """A format that is converted to ONNX.

    ``load(path, folder, declared)`` reads a model in its own library, in a process of its own;
    ``folder`` is for files of its own, ``declared`` what the owner says of the file.
    Raises JobError; any other exception becomes ModelInvalid.
    """

    name: SourceFormat
    libraries: tuple[str, ...]  # modules that the image must have; their versions shape the result
    saved_as: str  # what is read of it, for messages
    sniff: Callable[[FileStart], bool]
    load: Callable[[Path, Path, Declared], SourceModel]

    @property
    def flavour(self) -> Flavour:
        """The image that has the libraries; the operator chooses it, so the contract says it."""
        return FLAVOUR_BY_FORMAT[self.name]


def invalid(message: str, remedy: str = REMEDY) -> JobError:
    """The file is damaged, or holds nothing that can be served."""
    return bad_input(Reason.MODEL_INVALID, f"{FIELD}.uri: {message}; {remedy}")


def expect_features(library: str, features: int) -> None:
    """Raise JobError (ModelInvalid) for a number that no table of numbers can have."""
    if not 0 < features <= MAX_FEATURES:
        raise invalid(
            f"{library} says that the model takes {features} features; 1 to {MAX_FEATURES} are possible"
        )


def describe_failure(kind: str, what: str, error: Exception, remedy: str) -> str:
    """A library's refusal as a message: the first line of its text that is no heading."""
    if isinstance(error, MemoryError):
        raise error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if not line.endswith(":")), type(error).__name__)[:300]
    return f"{FIELD}.uri: {kind} {what}: {line}; {remedy}"


def code_refused(what: str) -> JobError:
    """The program contains code that would run while it is read."""
    return bad_input(
        Reason.CODE_REFUSED,
        f"{FIELD}.uri: the program holds {what}; export the model without it, or to ONNX where it was"
        " trained",
    )
