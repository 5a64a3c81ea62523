"""What every format has in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray
from onnx import ModelProto

from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.model.data import Arrays

FIELD = "spec.model"
REMEDY = "export the model to ONNX where it was trained"


@dataclass(frozen=True)
class SourceModel:
    """A model in its own library.

    ``convert``: the ONNX model, with the original's names and shapes of inputs and outputs.
    ``predict``: answers to one batch, each [n, ...], in the order of the ONNX model's last outputs
    (before them it may have others, as the labels of a classifier).
    """

    convert: Callable[[], ModelProto]
    predict: Callable[[Arrays], list[NDArray[Any]]]


def invalid(message: str, remedy: str = REMEDY) -> JobError:
    """The file is damaged, or holds nothing that can be served."""
    return bad_input("ModelInvalid", f"{FIELD}.uri: {message}; {remedy}")


def describe_failure(kind: str, what: str, error: Exception, remedy: str) -> str:
    """A library's refusal as a message: the first line of its text that is no heading."""
    if isinstance(error, MemoryError):
        raise error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if not line.endswith(":")), type(error).__name__)[:300]
    return f"{FIELD}.uri: {kind} {what}: {line}; {remedy}"


def code_refused(what: str) -> JobError:
    """The program holds what would run while it is read."""
    return bad_input(
        "CodeRefused",
        f"{FIELD}.uri: the program holds {what}; export the model without it, or to ONNX where it was"
        " trained",
    )
