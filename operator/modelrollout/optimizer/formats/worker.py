"""``python -m modelrollout.optimizer.formats TASK FORMAT FILE FOLDER``: read a model in its own
library.

``convert``: write FOLDER/converted.onnx; ``predict``: answer FOLDER/questions.npz (arrays
``BATCH/NAME``) in FOLDER/answers.npz (``BATCH/POSITION``).

A process of its own, because these libraries follow what a file says without looking: a crash of
the Job itself would leave no reason. What it refuses is in FOLDER/refusal.json, with exit code 10.
FOLDER/tensors.json, where there is one, says what the model takes and gives.
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.formats import SourceFormat, Tensors
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.formats import (
    ANSWERS,
    CONVERTED,
    OUT_OF_MEMORY,
    QUESTIONS,
    REFUSAL,
    TENSORS,
    keras,
    pytorch,
    saved_model,
    tflite,
    trees,
)
from modelrollout.optimizer.formats.source_model import REMEDY, SourceModel, describe_failure
from modelrollout.optimizer.model.data import Arrays

_LOADERS: dict[SourceFormat, Callable[[Path, Path], SourceModel]] = {
    "SKLearn": trees.load_sklearn,
    "XGBoost": trees.load_xgboost,
    "LightGBM": trees.load_lightgbm,
    "TensorFlow": saved_model.load,
    "Keras": keras.load,
    "TFLite": tflite.load,
}


def load(path: Path, kind: SourceFormat, folder: Path, tensors: Tensors | None = None) -> SourceModel:
    """The model in its own library; ``tensors``: what it takes and gives, for a format that does
    not say it. Raises JobError: ModelInvalid and those of the loaders.
    """
    try:
        return pytorch.load(path, folder, tensors) if kind == "PyTorch" else _LOADERS[kind](path, folder)
    except JobError:
        raise
    except Exception as error:  # libraries with errors of their own, on a file that somebody made
        raise bad_input(
            "ModelInvalid",
            describe_failure(
                kind, "does not read it", error, "save it again with the library's present version"
            ),
        ) from None


def run(task: str, kind: SourceFormat, path: Path, folder: Path) -> None:
    """Do it; raises JobError: those of ``load``, ConversionFailed."""
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
                    "ConversionFailed", describe_failure(kind, "is not converted", error, REMEDY)
                ) from None
        else:
            _answer(original, kind, folder)


def _answer(original: SourceModel, kind: SourceFormat, folder: Path) -> None:
    batches: dict[str, Arrays] = defaultdict(dict)
    with np.load(folder / QUESTIONS) as questions:
        for name in questions.files:
            number, _, tensor = name.partition("/")
            batches[number][tensor] = questions[name]
    answers: dict[str, NDArray[Any]] = {}
    for number, arrays in batches.items():
        try:
            found = original.predict(arrays)
        except Exception as error:  # as in load
            raise bad_input(
                "ModelInvalid", describe_failure(kind, "does not run the model", error, REMEDY)
            ) from None
        answers |= {f"{number}/{position}": array for position, array in enumerate(found)}
    np.savez(folder / ANSWERS, **answers)  # type: ignore[arg-type]


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
