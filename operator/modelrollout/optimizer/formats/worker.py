"""``python -m modelrollout.optimizer.formats.worker TASK FORMAT FILE FOLDER``: reads a model in its
own library.

TASK ``fil`` reads trees as Triton's FIL does (``formats.fil``); FORMAT is then of no account. TASK
``convert`` writes FOLDER/converted.onnx, FOLDER/notes.json and, where the model's structure
says some, inputs that meet its branches to FOLDER/probes.npz. TASK ``predict`` reads
FOLDER/inputs.npz (arrays ``BATCH/NAME``) and writes FOLDER/outputs.npz (``BATCH/POSITION``).
FOLDER/declared.json, if it exists, is what the owner says of the file.

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
from modelrollout.contract.formats import Declared, SourceFormat
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.formats import (
    CONVERTED,
    DECLARED,
    INPUTS,
    NOTES,
    OUT_OF_MEMORY,
    OUTPUTS,
    PROBES,
    REFUSAL,
    fil,
)
from modelrollout.optimizer.formats.registry import BY_NAME
from modelrollout.optimizer.formats.source_model import REMEDY, SourceModel, describe_failure
from modelrollout.optimizer.model.data import Arrays, plain, words_as_objects
from modelrollout.reasons import Reason


def load(path: Path, kind: SourceFormat, folder: Path, declared: Declared) -> SourceModel:
    """The model in its own library. ``declared``: what a format does not record. Raises JobError:
    ModelInvalid and those of the loaders.
    """
    try:
        return BY_NAME[kind].load(path, folder, declared)
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
        said = folder / DECLARED
        declared = Declared.model_validate_json(said.read_bytes()) if said.exists() else Declared()
        if task == "fil":
            fil.write(path, folder, Path(scratch), declared)
            return
        original = load(path, kind, Path(scratch), declared)
        if task == "convert":
            try:
                onnx.save(original.convert(), folder / CONVERTED)
                if original.probes:
                    np.savez(folder / PROBES, **plain(original.probes()))  # type: ignore[arg-type]
                (folder / NOTES).write_text(json.dumps([original.notes, original.warnings, original.wider]))
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
            outputs = original.predict(words_as_objects(arrays))
        except Exception as error:  # as in load
            if any(a.dtype.kind == "f" and np.isinf(a).any() for a in arrays.values()):
                raise bad_input(
                    Reason.DATA_NOT_FINITE,
                    describe_failure(
                        kind,
                        "does not take samples with Inf, as there are in the data of the gate or the steps",
                        error,
                        "remove or fill such samples",
                    ),
                ) from None
            raise bad_input(
                Reason.MODEL_INVALID, describe_failure(kind, "does not run the model", error, REMEDY)
            ) from None
        answers |= plain({f"{number}/{position}": array for position, array in enumerate(outputs)})
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
