"""Prepare: data and source are fetched and verified, the model is checked, optimized, gated on
held-out data, and published.

The result has the key of everything that it depends on. Where a ModelRevision of the namespace
records an artifact of the same key, and the operator says so, that one is taken; what else lies in
the store is never looked at. The report holds no times and no names of places, so that equal work
gives equal bytes.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime

from modelrollout.api.names import canonical_json
from modelrollout.contract.common import DataSet, ModelFile
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.formats import Served
from modelrollout.contract.results import Interface, MetricResult, Paired, Search, TaskResult
from modelrollout.contract.steps import ContainerStep, Int8Step, Step
from modelrollout.contract.tasks import HANDED_MODEL, IN_DIR, MADE_DIR, WORK_DIR, PrepareTask
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.jobs.log import LOGGER, Progress
from modelrollout.optimizer.formats.isolated import convert, expect_format, expect_tensors, parity, versions
from modelrollout.optimizer.gate.gate import FIELD as FIELD_GATE
from modelrollout.optimizer.gate.gate import Measured, labels_wanted, raise_failure, run_gate
from modelrollout.optimizer.model.archive import is_archive, unpack
from modelrollout.optimizer.model.data import Data, match, read_archive
from modelrollout.optimizer.model.files import files_of, size_of
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.model.runtime import open_session
from modelrollout.optimizer.passthrough.repository import pass_through
from modelrollout.optimizer.pipeline import hand_over
from modelrollout.optimizer.pipeline.hand_over import SOURCE
from modelrollout.optimizer.pipeline.servable import expect_servable
from modelrollout.optimizer.steps.container import lay_out
from modelrollout.optimizer.steps.distributions import versions_of
from modelrollout.optimizer.steps.registry import definition_of
from modelrollout.optimizer.steps.run import Applied, field_of, run_steps
from modelrollout.optimizer.store import artifact
from modelrollout.optimizer.store.object_store import Fetched, ObjectStore, expect_digest
from modelrollout.optimizer.store.signature import load_key, verify
from modelrollout.statistics.paired import drop_interval
from modelrollout.triton.config import BatchingImpossible, render
from modelrollout.triton.layout import CONFIG_FILE
from modelrollout.triton.tensors import TensorSpec

# Part of every artifact's key: raise it when this program makes something else of the same inputs.
RECIPE_VERSION = 4

MAX_INTERFACE_BYTES = 700  # of the 2 KiB of the termination message

FIELD_SOURCE = "spec.model.uri"
_HANDED = "done.json"  # in MADE_DIR


@dataclass(frozen=True)
class _DataFile:
    path: Path
    fetched: Fetched
    field: str


class _Source(NamedTuple):
    """What is fetched for a step (None: for the gate), and what the step calls it."""

    wanted: DataSet | ModelFile
    step: Step | None
    name: str

    @property
    def judges(self) -> bool:
        """Whether it is data that the gate's metrics are computed on."""
        return self.step is None or self.name in definition_of(self.step).selects_on


def _sources(task: PrepareTask) -> dict[str, _Source]:
    """Everything besides the source model that is fetched, by the field that names it; raises
    JobError (CalibrationMissing).
    """
    for index, step in enumerate(task.steps):
        if isinstance(step, Int8Step) and step.method == "Static" and step.calibration is None:
            where = field_of(index, step)
            raise bad_input(
                "CalibrationMissing",
                f"{where}: method Static needs calibration: {{uri: ...}}; or use method Dynamic",
            )
    found = {
        f"{field_of(index, step)}.{name}": _Source(wanted, step, name)
        for index, step in enumerate(task.steps)
        for name, wanted in step.sources().items()
    }
    if task.gate:
        found[FIELD_GATE] = _Source(task.gate.data, None, "data")
    return found


def _checked(
    task: PrepareTask, files: dict[str, _DataFile], inputs: Sequence[TensorSpec]
) -> tuple[dict[str, Data], dict[str, Path]]:
    """Data sets that fit the source model's ``inputs``, and models that can be run, by their
    fields; raises JobError.
    """
    labels = labels_wanted(task.gate) if task.gate else None
    data: dict[str, Data] = {}
    models: dict[str, Path] = {}
    for field, source in _sources(task).items():
        wanted, step, name = source
        path = files[field].path
        if isinstance(wanted, ModelFile):
            check(path, f"{field}.uri")
            open_session(path, f"{field}.uri")
            models[field] = path
            continue
        arrays = read_archive(path, field)
        if step is None or source.judges:
            data[field] = match(
                arrays,
                wanted,
                inputs,
                field,
                labelled=labels is not None,
                numbers=labels == "numbers",
                sliced=True,
            )
        else:
            data[field] = match(
                arrays,
                wanted,
                inputs,
                field,
                labelled=definition_of(step).uses_labels(step, name, wanted.labels in arrays),
            )
    return data, models


def _expect_own_data(task: PrepareTask, files: dict[str, Fetched]) -> None:
    """Raise SelectionIsHeldOut for a search that would choose by what its choice is judged on."""
    for field, source in _sources(task).items():
        if source.step and source.judges and FIELD_GATE in files and files[field] == files[FIELD_GATE]:
            raise bad_input(
                "SelectionIsHeldOut",
                f"{field}.uri: the file is that of {FIELD_GATE}: a model chosen by its held-out samples would"
                " be judged too well; give auto samples of its own, for example a part of the validation"
                " data",
            )


def tools(recipe: Sequence[Step]) -> dict[str, str]:
    """What shapes the result besides its inputs. Raises JobError (ToolMissing)."""
    always = {
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    return always | {
        name: v for i, step in enumerate(recipe) for name, v in versions_of(step, field_of(i, step)).items()
    }


def inputs_of(task: PrepareTask, data: dict[str, str], signer: str | None = None) -> dict[str, Any]:
    """Everything that the artifact depends on; data sets and source by their digests, never by
    where they lie. ``signer``: digest of the public key that the source was verified with, so that
    what nobody has verified is not taken for what was.
    """

    def told(wanted: DataSet | ModelFile, field: str) -> dict[str, Any]:
        if isinstance(wanted, ModelFile):
            return {"sha256": data[field]}
        return {"sha256": data[field], "labels": wanted.labels, "slices": list(wanted.slices)}

    def recipe(index: int, step: Step) -> dict[str, Any]:
        where = field_of(index, step)
        found = step.model_dump()
        for name, wanted in step.sources().items():
            *outer, last = name.split(".")
            reduce(lambda inside, key: inside[key], outer, found)[last] = told(wanted, f"{where}.{name}")
        return found

    own = ({"signer": signer} if signer else {}) | {
        name: said.model_dump() for name, said in (("served", task.served), ("tensors", task.tensors)) if said
    }
    return own | {
        "recipeVersion": RECIPE_VERSION,
        "source": task.sha256,
        "format": task.format or "ONNX",
        "steps": [recipe(index, step) for index, step in enumerate(task.steps)],
        "gate": (
            {"data": told(task.gate.data, FIELD_GATE), "metrics": [m.model_dump() for m in task.gate.metrics]}
            if task.gate
            else None
        ),
        "batching": task.batching.model_dump(),
        "instanceKind": task.instance_kind,
        "tools": tools(task.steps) | versions(task.format or "ONNX"),
        "targetHardware": task.target_hardware,
    }


def key_of(inputs: dict[str, Any]) -> str:
    """What the artifact's folder is named after."""
    return hashlib.sha256(canonical_json(inputs).encode()).hexdigest()


def _result(
    task: PrepareTask, report: dict[str, Any], uri: str | None, digest: str | None, *, reused: bool = False
) -> TaskResult:
    """The summary, from the report alone: a reused one says the same as the first."""
    gate = report["gate"]
    paired = Paired.model_validate(gate["paired"]) if gate and gate["paired"] else None
    return TaskResult(
        message="; ".join(report["warnings"]),
        sha256=task.sha256,
        size_bytes=report["sizeBefore"],
        artifact_uri=uri,
        artifact_digest=digest,
        artifact_size_bytes=report["sizeAfter"],
        reused=reused,
        interface=interface_of(report["model"]["inputs"], report["model"]["outputs"]),
        accuracy_before=gate["accuracyBefore"] if gate else None,
        accuracy_after=gate["accuracyAfter"] if gate else None,
        paired=paired,
        drop_interval=(
            drop_interval(paired.n, paired.only_baseline_right, paired.only_candidate_right)
            if paired
            else None
        ),
        samples=gate["samples"] if gate else None,
        metrics=tuple(MetricResult.model_validate(m) for m in gate["summary"]) if gate else (),
        search=next(
            (Search.model_validate(step["search"]) for step in report["steps"] if step["kind"] == "auto"),
            None,
        ),
    )


def interface_of(inputs: Sequence[str], outputs: Sequence[str]) -> Interface:
    """What clients rely on, from tensors as the report has them (``x: FP32 [n, 64]``); their order
    is no part of it.
    """
    takes, gives = (dict(sorted(t.rsplit(": ", 1) for t in tensors)) for tensors in (inputs, outputs))
    digest = hashlib.sha256(canonical_json([takes, gives]).encode()).hexdigest()[:32]
    if len(canonical_json([takes, gives])) > MAX_INTERFACE_BYTES:
        return Interface(digest=digest, counts=(len(takes), len(gives)))
    return Interface(digest=digest, inputs=takes, outputs=gives)


def _file_entry(content: bytes | Path) -> tuple[bytes | Path, str, int]:
    if isinstance(content, bytes):
        return content, hashlib.sha256(content).hexdigest(), len(content)
    with content.open("rb") as file:
        return content, hashlib.file_digest(file, "sha256").hexdigest(), content.stat().st_size


def prepare(task: PrepareTask, progress: Progress) -> TaskResult:
    """Do all of it, or this container's part; raises JobError. GATE_FAILED and GATE_INCONCLUSIVE
    carry the numbers and publish nothing.

    What is fetched is a stranger's file: who has Secrets does not open it (``Fetch``, ``Publish``),
    and who opens it has none.
    """
    work, made = Path(WORK_DIR), Path(MADE_DIR)
    match task.part:
        case "Fetch":
            if result := _fetch(task, progress, work):
                # the containers that follow must not start
                raise JobError(ExitCode.REUSED, result.reason, result.message, result)
            return TaskResult(message="fetched and verified")
        case "Publish":
            return _publish(task, progress, work, made)
        case "Whole":
            with tempfile.TemporaryDirectory() as folder:
                work, made = Path(folder) / "work", Path(folder) / "made"
                for path in (work, made):
                    path.mkdir()
                if result := _fetch(task, progress, work):
                    return result
                _convert(task, progress, work, made)
                return _publish(task, progress, work, made)
        case _:
            return _convert(task, progress, work, made)


def _fetch(task: PrepareTask, progress: Progress, work: Path) -> TaskResult | None:
    """Download and verify everything into ``work``; what a revision records of the same work
    instead, and then no model is fetched.
    """
    files: dict[str, Fetched] = {}
    with progress.stage("data"):
        for number, (field, (wanted, _, _)) in enumerate(_sources(task).items()):
            store = ObjectStore(wanted.location, f"{field}.uri")
            files[field] = store.download(
                work / f"source-{number}", max_bytes=task.max_bytes, advance=progress.update
            )
            if isinstance(wanted, ModelFile) and wanted.sha256:
                expect_digest(files[field], wanted.sha256, field, wanted.location.uri)
    _expect_own_data(task, files)
    signer = load_key(task.signature) if task.signature else None
    inputs = inputs_of(
        task, {field: fetched.sha256 for field, fetched in files.items()}, signer[1] if signer else None
    )
    key = key_of(inputs)
    if result := _recorded(task, key, progress):
        return result
    with progress.stage("fetch"):
        source = ObjectStore(task.source, FIELD_SOURCE).download(
            work / SOURCE, max_bytes=task.max_bytes, advance=progress.update
        )
    expect_digest(source, task.sha256, "spec.model", task.source.uri)
    if task.signature and signer:
        with progress.stage("signature"):
            verify(task.signature, signer[0], source.sha256)
    hand_over.write_fetched(work, hand_over.Inputs(key=key, inputs=inputs, source=source, files=files))
    return None


def _hand_over(task: PrepareTask, applied: Applied, files: dict[str, _DataFile], made: Path) -> TaskResult:
    """To the user's container what it reads, to the one after it what was done so far."""
    index, step = next((i, s) for i, s in enumerate(task.steps) if isinstance(s, ContainerStep))
    data = files.get(f"{field_of(index, step)}.data")
    lay_out(applied.path, data.path if data else None)
    (made / _HANDED).write_text(json.dumps({"done": applied.done, "warnings": applied.warnings}))
    return TaskResult(message="handed over to the container of the step")


def _handed(made: Path) -> Applied:
    found = json.loads((made / _HANDED).read_text())
    return Applied(Path(IN_DIR) / HANDED_MODEL, found["done"], found["warnings"])


def _below(task: PrepareTask, uri: str) -> ObjectStore:
    return ObjectStore(task.artifacts.model_copy(update={"uri": uri}), "artifacts")


def _recorded(task: PrepareTask, key: str, progress: Progress) -> TaskResult | None:
    """What a revision records of the same work, if it lies there still."""
    for found in task.recorded:
        if artifact.key_in(found.uri) != key:
            continue
        with progress.stage("look-up"):
            report = artifact.find(_below(task, found.uri), found.digest)
        if report is None:
            LOGGER.warning(
                "a recorded artifact is gone, or another lies there: made anew",
                extra={"fields": {"artifact": found.uri}},
            )
            continue
        try:
            result = _result(task, report, found.uri, found.digest, reused=True)
        except (KeyError, TypeError, ValueError):
            LOGGER.warning(
                "the report of a recorded artifact has an unknown form: made anew",
                extra={"fields": {"artifact": found.uri}},
            )
            continue
        return result
    return None


def _convert(task: PrepareTask, progress: Progress, work: Path, made: Path) -> TaskResult:
    """What is to be served, from what was fetched, into ``made``: for the container that publishes,
    or before that for the user's.
    """
    # where it is to be, so that nothing large is copied
    with tempfile.TemporaryDirectory(dir=made) as folder:
        return _converted(task, progress, Path(folder), work, made)


def _converted(task: PrepareTask, progress: Progress, folder: Path, work: Path, made: Path) -> TaskResult:
    given = hand_over.read_fetched(work)
    files = {
        field: _DataFile(work / f"source-{number}", given.files[field], field)
        for number, field in enumerate(_sources(task))
    }
    source, fetched = work / SOURCE, given.source
    if task.served:
        return hand_over.write_made(work, made, *_pass_through(task, task.served, source, folder, progress))
    kind = expect_format(source, task.format)
    original = source
    if kind != "ONNX":
        with progress.stage("convert"):
            source = convert(original, kind, folder, task.tensors)
    elif is_archive(source):
        with progress.stage("unpack"):
            source = (
                unpack(source, folder, task.max_bytes, task.one_file_bytes, keep=task.part != "Whole")
                or source
            )
    with progress.stage("check"):
        info = check(source)
        if task.tensors:
            expect_tensors(task.tensors, info)
        open_session(source, FIELD_SOURCE)
        try:
            config = render(info.inputs, info.outputs, task.batching, task.instance_kind)
        except BatchingImpossible as error:
            raise bad_input(
                "BatchingImpossible",
                f"spec.serving.batching.maxBatchSize: {task.batching.max_batch_size}, but the first dimension"
                f" of {error.tensor} is fixed; set maxBatchSize: 0, or export the model with a dynamic batch"
                " dimension",
            ) from None
        data, models = _checked(task, files, info.inputs)
    warnings = [
        f"{field}: {shared} different samples of it are among the held-out ones of {FIELD_GATE} too: the"
        " accuracy after is too optimistic"
        for field, found in _sources(task).items()
        if found.step and found.judges and (shared := data[field].shared(data[FIELD_GATE]))
    ]
    conversion: dict[str, Any] | None = None
    if kind != "ONNX":
        with progress.stage("parity"):
            sample = data.get(FIELD_GATE) or next(iter(data.values()), None)
            conversion = parity(
                original, kind, folder, source, info.inputs, sample.inputs if sample else None
            )
        if conversion["generated"]:
            warnings.append(
                "the conversion was compared on generated inputs; give spec.optimization.gate.data to compare"
                " on real ones"
            )
    recipe = task.steps
    if task.part == "BeforeContainer":
        recipe = tuple(takewhile(lambda step: not isinstance(step, ContainerStep), recipe))
    with progress.stage("optimize"):
        applied = run_steps(
            recipe,
            source,
            folder,
            data,
            models,
            gate=task.gate,
            symmetric=task.instance_kind == "KIND_GPU",
            hardware=task.target_hardware,
            advance=progress.update,
            one_file=task.one_file_bytes,
            earlier=_handed(made) if task.part == "AfterContainer" else None,
        )
    if task.part == "BeforeContainer":
        return _hand_over(task, applied, files, made)
    optimized = applied.path
    warnings += applied.warnings
    size_after = size_of(optimized)
    if task.steps:
        open_session(optimized, "the optimized model")
        if not task.gate:
            warnings.append(
                "optimized without a gate: nothing says that the accuracy is kept; set spec.optimization.gate"
            )
        if optimized != source and size_after >= fetched.size:
            warnings.append(
                f"the optimized model is not smaller ({fetched.size} to {size_after} bytes): its weights"
                " are few"
            )
        if FIELD_GATE in files and any(
            file.fetched == files[FIELD_GATE].fetched for field, file in files.items() if field != FIELD_GATE
        ):
            warnings.append(
                "a step's data and held-out data are the same file: the accuracy after is too optimistic; use"
                " different samples"
            )

    measured: Measured | None = None
    if task.gate:
        measured = run_gate(task.gate, data[FIELD_GATE], source, optimized, info, progress)
        if measured.report["duplicates"]:
            warnings.append(
                f"{measured.report['duplicates']} of {measured.report['samples']} held-out samples repeat"
                " others: they add no information"
            )
    report: dict[str, Any] = {
        "model": {
            "inputs": [str(t) for t in info.inputs],
            "outputs": [str(t) for t in info.outputs],
            "opset": info.opset,
        },
        "sizeBefore": fetched.size,
        "sizeAfter": size_after,
        "conversion": conversion,
        "steps": applied.done,
        "gate": measured.report if measured else None,
        "warnings": warnings,
    }
    if measured:
        raise_failure(measured, _result(task, report, None, None))
    return hand_over.write_made(work, made, files_of(optimized), config, report)


def _pass_through(
    task: PrepareTask, served: Served, source: Path, folder: Path, progress: Progress
) -> tuple[dict[str, Path], str, dict[str, Any]]:
    """(files of the version, config.pbtxt, report) of a source that is served as it is."""
    with progress.stage("check"):
        found = pass_through(source, served, task.batching, task.instance_kind, folder, task.max_bytes)
    size = sum(path.stat().st_size for path in found.files.values())
    report = {
        "model": {"inputs": [str(t) for t in found.inputs], "outputs": [str(t) for t in found.outputs]},
        "sizeBefore": size,  # of the files, not of the archive: nothing was made smaller
        "sizeAfter": size,
        "conversion": None,
        "steps": [],
        "gate": None,
        "warnings": list(found.warnings),
    }
    return found.files, found.config, report


def _publish(task: PrepareTask, progress: Progress, work: Path, made: Path) -> TaskResult:
    """Put what was made into the store, once it is seen to be what was asked for: whoever made it
    has read a stranger's file.

    Names, configuration and sizes are looked at; that the gate's numbers are what they say is the
    word of who measured them.
    """
    with progress.stage("verify"):
        given = hand_over.read_fetched(work)
        files, config, report = hand_over.read_made(work, made, task.max_bytes)
        expect_servable(task.served, files.keys(), config)
        if task.gate and not report.get("gate"):
            raise hand_over.refused("it has no gate's numbers")
        size = sum(path.stat().st_size for path in files.values())
        report |= {"format": 1, "key": given.key, "inputs": given.inputs, "sizeAfter": size}
        uri = f"{task.artifacts.uri.rstrip('/')}/{artifact.folder_of(given.key, task.salt)}"
        try:
            result = _result(task, report, uri, None)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise hand_over.refused("its report has an unknown form") from None
    with progress.stage("publish"):
        entries = {name: _file_entry(path) for name, path in files.items()} | {
            CONFIG_FILE: _file_entry(config.encode()),
            artifact.REPORT: _file_entry(json.dumps(report, indent=1, sort_keys=True).encode()),
        }
        return result.model_copy(
            update={"artifact_digest": artifact.publish(_below(task, uri), given.key, entries)}
        )
