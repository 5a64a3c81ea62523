"""Trees that Triton's FIL backend serves unconverted: XGBoost's JSON and UBJ, LightGBM's text, and
checkpoints of Treelite, which is what FIL reads all of them with.

FIL itself needs a GPU build of Triton and is not in the Job. Treelite has a reference of what FIL
computes (GTIL): its answers are compared with those of the library that made the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.formats import Declared
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.formats import lightgbm_model, xgboost_model
from modelrollout.optimizer.formats.boosted import unsupported
from modelrollout.optimizer.formats.source_model import (
    FIELD,
    INPUT,
    FileStart,
    SourceModel,
    describe_failure,
    expect_features,
)
from modelrollout.reasons import Reason

FilType = Literal["xgboost_json", "xgboost_ubj", "lightgbm", "treelite_checkpoint"]
FACTS, SERVED = "fil.json", "fil.model"
_ROWS = 1000


class Facts(NamedTuple):
    """What FIL's configuration needs. ``classes``: 0 of numbers, 2 of two classes, whose answer is
    the probability of class 1; ``nan``: a missing value is data.
    """

    model_type: FilType
    features: int
    classes: int
    outputs: int
    apart: float  # largest difference of the answers, relative to their scale
    wrong: int
    rows: int  # that were compared; 0: there is no original
    notes: dict[str, Any]
    warnings: tuple[str, ...]


def type_of(path: Path) -> FilType | None:
    """By the first bytes; None: FIL does not read it."""
    start = FileStart.read(path)
    if lightgbm_model.FORMAT.sniff(start):
        return "lightgbm"
    if xgboost_model.FORMAT.sniff(start):
        return "xgboost_json" if xgboost_model.is_json(start) else "xgboost_ubj"
    version = np.frombuffer(start.head[:12].ljust(12, b"\0"), "<i4")
    if version[0] in (3, 4) and 0 <= version[1] < 100 and 0 <= version[2] < 100:
        return "treelite_checkpoint"
    return None


def describe(path: Path, folder: Path, target: Path, declared: Declared) -> Facts:
    """Read the file as FIL will, and compare. What is to be served is written to ``target`` if that
    is not the file itself: an XGBoost model up to its best round.

    Raises JobError: BackendFileInvalid, ObjectiveUnsupported, ModelInvalid.
    """
    kind = type_of(path)
    if kind is None:
        raise bad_input(
            Reason.BACKEND_FILE_INVALID,
            f"{FIELD}.uri: FIL reads XGBoost's JSON and UBJ, LightGBM's text and checkpoints of Treelite, and"
            " this is none of them; save the model again",
        )
    original: SourceModel | None = None
    served = path
    if kind == "lightgbm":
        original = lightgbm_model.load(path, folder, declared)
    elif kind != "treelite_checkpoint":
        original = xgboost_model.load(path, folder, declared)
        if original.notes["rounds"]["served"] != original.notes["rounds"]["trained"]:
            served = _cut(path, folder, target, kind, original.notes["rounds"]["served"])
    model = _read(served, kind)
    features = int(model.num_feature)
    expect_features("Treelite", features)
    header = model.get_header_accessor()
    targets, classes = (int(np.max(header.get_field(name))) for name in ("num_target", "num_class"))
    if targets > 1:
        raise unsupported("FIL", "several targets")
    postprocessor = str(header.get_field("postprocessor")).strip("[]'")
    two = classes == 1 and postprocessor == "sigmoid"
    facts = Facts(
        kind, features, 2 if two else 0 if classes == 1 else classes, max(1, classes), 0, 0, 0, {}, ()
    )
    if original is None:
        return facts
    rows = original.probes()[INPUT][:_ROWS] if original.probes else np.zeros((1, features), np.float32)
    answers = original.predict({INPUT: rows})
    # of a hinge the class, of everything else the last output
    want = _as_fil(answers[0] if postprocessor == "hinge" else answers[-1], facts.outputs)
    got = _answers(model, rows, facts.outputs)
    scale = max(float(want.std()), 1e-6)
    difference = np.abs(got - want).max(axis=1) / scale
    return facts._replace(
        apart=float(difference.max()),
        wrong=int((difference > 1e-3).sum()),
        rows=len(rows),
        notes=original.notes,
        warnings=original.warnings,
    )


def _cut(path: Path, folder: Path, target: Path, kind: FilType, rounds: int) -> Path:
    import xgboost

    suffix = "json" if kind == "xgboost_json" else "ubj"
    whole, cut = folder / f"whole.{suffix}", folder / f"cut.{suffix}"
    whole.symlink_to(path)
    booster = xgboost.Booster()
    booster.load_model(whole)
    booster[:rounds].save_model(cut)
    target.write_bytes(cut.read_bytes())
    return target


def _read(path: Path, kind: FilType) -> Any:
    import treelite

    try:
        if kind == "treelite_checkpoint":
            return treelite.Model.deserialize(path)
        if kind == "lightgbm":
            return treelite.frontend.load_lightgbm_model(path)
        form = "json" if kind == "xgboost_json" else "ubjson"
        return treelite.frontend.load_xgboost_model(path, format_choice=form)
    except treelite.TreeliteError as error:
        # what failed comes first, after what the parser inside of it said
        lines = [line.partition("] ")[2] or line for line in str(error).splitlines() if line.strip()]
        raise bad_input(
            Reason.BACKEND_FILE_INVALID,
            describe_failure(
                "FIL",
                "reads files by Treelite, which says",
                ValueError(lines[0] if lines else "nothing"),
                "use spec.model.format, which converts the model to ONNX",
            ),
        ) from None


def _as_fil(answers: NDArray[Any], outputs: int) -> NDArray[np.float64]:
    """The original's answers [n, outputs] as FIL gives them: of two classes that of class 1."""
    table = np.asarray(answers, np.float64).reshape(len(answers), -1)
    return table[:, -1:] if outputs == 1 else table


def _answers(model: Any, rows: NDArray[Any], outputs: int) -> NDArray[np.float64]:
    """[n, outputs] by Treelite's reference, of float32 as FIL takes it."""
    import treelite

    data = rows.astype(np.float32).astype(np.dtype(model.input_type))
    answers = treelite.gtil.predict(model, np.ascontiguousarray(data), nthread=1)
    return np.asarray(answers, np.float64).reshape(len(rows), -1)[:, :outputs]


def write(path: Path, folder: Path, scratch: Path, declared: Declared) -> None:
    """The task of the worker: FOLDER/fil.json, and FOLDER/fil.model where the file is not served as
    it is. Raises JobError as ``describe``.
    """
    facts = describe(path, scratch, folder / SERVED, declared)
    (folder / FACTS).write_text(json.dumps(facts._asdict()))
