"""``python -m modelrollout.optimizer.formats.worker TASK FORMAT FILE FOLDER``: reads a model in its
own library.

TASK ``convert`` writes FOLDER/converted.onnx. TASK ``predict`` reads FOLDER/inputs.npz (arrays
``BATCH/NAME``) and writes FOLDER/outputs.npz (``BATCH/POSITION``). FOLDER/tensors.json, if it
exists, declares the inputs and outputs.

It is a process of its own because these libraries trust the file: if one crashes, the Job survives
and can say why. It writes a refusal to FOLDER/refusal.json and exits with code 10.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.formats import SourceFormat, Tensors
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.formats import CONVERTED, INPUTS, OUT_OF_MEMORY, OUTPUTS, REFUSAL, TENSORS
from modelrollout.optimizer.formats.registry import BY_NAME
from modelrollout.optimizer.formats.source_model import REMEDY, SourceModel, describe_failure
from modelrollout.optimizer.model.data import Arrays
from modelrollout.reasons import Reason


def load(path: Path, kind: SourceFormat, folder: Path, tensors: Tensors | None = None) -> SourceModel:
    """The model in its own library. ``tensors``: its inputs and outputs, for a format that does not
    record them. Raises JobError: ModelInvalid and those of the loaders.
    """
    try:
        return BY_NAME[kind].load(path, folder, tensors)
    except JobError:
        raise
    except Exception as error:  # libraries raise errors of their own for a damaged file
        raise bad_input(
            Reason.MODEL_INVALID,
            describe_failure(
                kind, "does not read it", error, "save it again with the library's present version"
            ),
        ) from None


def run(task: str, kind: SourceFormat, path: Path, folder: Path) -> None:
    """Carry out the task; raises JobError: those of ``load``, ConversionFailed."""
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as scratch:
        warnings.simplefilter("ignore")
        said_so = folder / TENSORS
        tensors = Tensors.model_validate_json(said_so.read_bytes()) if said_so.exists() else None
        original = load(path, kind, Path(scratch), tensors)
        if task == "convert":
            try:
                onnx.save(original.convert(), folder / CONVERTED)
            except JobError:
                raise
            except Exception as error:  # as in load
                raise bad_input(
                    Reason.CONVERSION_FAILED, describe_failure(kind, "is not converted", error, REMEDY)
                ) from None
        else:
            _answer(original, kind, folder)


def _answer(original: SourceModel, kind: SourceFormat, folder: Path) -> None:
    batches: dict[str, Arrays] = defaultdict(dict)
    with np.load(folder / INPUTS) as inputs:
        for name in inputs.files:
            number, _, tensor = name.partition("/")
            batches[number][tensor] = inputs[name]
    answers: dict[str, NDArray[Any]] = {}
    for number, arrays in batches.items():
        try:
            outputs = original.predict(arrays)
        except Exception as error:  # as in load
            raise bad_input(
                Reason.MODEL_INVALID, describe_failure(kind, "does not run the model", error, REMEDY)
            ) from None
        answers |= {f"{number}/{position}": array for position, array in enumerate(outputs)}
    np.savez(folder / OUTPUTS, **answers)  # type: ignore[arg-type]


def main(arguments: list[str]) -> int:
    task, kind, path, folder = arguments
    try:
        run(task, kind, Path(path), Path(folder))  # type: ignore[arg-type]
    except JobError as error:
        Path(folder, REFUSAL).write_text(json.dumps([error.reason, error.message]))
        return ExitCode.BAD_INPUT
    except MemoryError:
        return OUT_OF_MEMORY
    return ExitCode.OK


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
