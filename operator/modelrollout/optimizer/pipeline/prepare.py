"""Prepare: fetch and verify data and source, check the model, optimize it, gate it on held-out
data, and publish it.

A prepare Job has containers that share this work, because the source is an untrusted file: those
with Secrets (FETCH, PUBLISH) do not open it, and the one that opens it (CONVERT) has none. Each
container runs its phases in the order below. The artifact goes by the key of everything that it
depends on; an artifact with this key that a ModelRevision of the namespace records is taken again,
and nothing else that lies in the store.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from itertools import takewhile
from pathlib import Path

from modelrollout.contract.common import ModelFile
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import TaskResult
from modelrollout.contract.steps import ContainerStep
from modelrollout.contract.tasks import MADE_DIR, WORK_DIR, PrepareTask
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.jobs.log import LOGGER, Progress
from modelrollout.optimizer.formats import isolated
from modelrollout.optimizer.gate import gate
from modelrollout.optimizer.gate.gate import FIELD as FIELD_GATE
from modelrollout.optimizer.model.archive import is_archive, unpack
from modelrollout.optimizer.model.data import match, read_archive
from modelrollout.optimizer.model.files import files_of, size_of
from modelrollout.optimizer.model.inspect import check
from modelrollout.optimizer.model.runtime import open_session
from modelrollout.optimizer.passthrough.repository import pass_through
from modelrollout.optimizer.pipeline import hand_over
from modelrollout.optimizer.pipeline.key import inputs_of, key_of, sources_of
from modelrollout.optimizer.pipeline.report import report_of, summary_of
from modelrollout.optimizer.pipeline.servable import expect_servable, refused
from modelrollout.optimizer.pipeline.state import DataFile, Phase, PrepareState, run_phases
from modelrollout.optimizer.steps.registry import definition_of
from modelrollout.optimizer.steps.run import run_steps
from modelrollout.optimizer.store import artifact, signature
from modelrollout.optimizer.store.object_store import ObjectStore, expect_digest
from modelrollout.triton.config import BatchingImpossible, render
from modelrollout.triton.layout import CONFIG_FILE

FIELD_SOURCE = "spec.model.uri"


def prepare(task: PrepareTask, progress: Progress) -> TaskResult:
    """Do the part of this container, or all of it; raises JobError. GATE_FAILED and
    GATE_INCONCLUSIVE carry the numbers, and nothing is published.
    """
    if task.part == "Whole":
        with tempfile.TemporaryDirectory() as folder:
            state = PrepareState(task, progress, Path(folder) / "work", Path(folder) / "made")
            state.work.mkdir()
            state.made.mkdir()
            return _expect(run_phases((*FETCH, convert, *PUBLISH), state))
    state = PrepareState(task, progress, Path(WORK_DIR), Path(MADE_DIR))
    match task.part:
        case "Fetch":
            if result := run_phases(FETCH, state):
                # any other exit code than 0 keeps the containers that follow from starting
                raise JobError(ExitCode.REUSED, result.reason, result.message, result)
            return TaskResult(message="fetched and verified")
        case "Publish":
            return _expect(run_phases(PUBLISH, state))
        case _:
            return _expect(_run_convert(state))


def _expect(result: TaskResult | None) -> TaskResult:
    assert result is not None  # the last phase has one
    return result


# --- FETCH: download and verify everything, without opening it


def fetch_data(s: PrepareState) -> None:
    """Data sets and further models. Raises SelectionIsHeldOut for a search that would choose by
    what its choice is judged on.
    """
    sources = sources_of(s.task)
    s.files = {}
    with s.progress.stage("data"):
        for number, (field, source) in enumerate(sources.items()):
            wanted = source.wanted
            s.files[field] = ObjectStore(wanted.location, f"{field}.uri").download(
                s.work / f"source-{number}", max_bytes=s.task.max_bytes, advance=s.progress.update
            )
            if isinstance(wanted, ModelFile) and wanted.sha256:
                expect_digest(s.files[field], wanted.sha256, field, wanted.location.uri)
    held_out = s.files.get(FIELD_GATE)
    for field, source in sources.items():
        if source.step and source.judges and s.files[field] == held_out:
            raise bad_input(
                "SelectionIsHeldOut",
                f"{field}.uri: the file is that of {FIELD_GATE}: a model chosen by its held-out samples would"
                " be judged too well; give auto samples of its own, for example a part of the validation"
                " data",
            )


def compute_key(s: PrepareState) -> None:
    """The key of what will be made."""
    s.signer = signature.load_key(s.task.signature) if s.task.signature else None
    digests = {field: fetched.sha256 for field, fetched in s.files.items()}
    s.inputs = inputs_of(s.task, digests, s.signer[1] if s.signer else None)
    s.key = key_of(s.inputs)


def look_up(s: PrepareState) -> TaskResult | None:
    """An artifact that a revision records under this key, if it is intact: then the Job is done."""
    for recorded in s.task.recorded:
        if artifact.key_in(recorded.uri) != s.key:
            continue
        with s.progress.stage("look-up"):
            report = artifact.find(_store_of(s.task, recorded.uri), recorded.digest)
        if report is None:
            LOGGER.warning(
                "a recorded artifact is missing or was replaced; preparing it again",
                extra={"fields": {"artifact": recorded.uri}},
            )
            continue
        try:
            return summary_of(s.task, report, recorded.uri, recorded.digest, reused=True)
        except (KeyError, TypeError, ValueError):
            LOGGER.warning(
                "the report of a recorded artifact has an unknown form; preparing it again",
                extra={"fields": {"artifact": recorded.uri}},
            )
    return None


def fetch_source(s: PrepareState) -> None:
    """The source model, with the digest that it was pinned to."""
    with s.progress.stage("fetch"):
        s.source = ObjectStore(s.task.source, FIELD_SOURCE).download(
            s.source_file, max_bytes=s.task.max_bytes, advance=s.progress.update
        )
    expect_digest(s.source, s.task.sha256, "spec.model", s.task.source.uri)


def verify_signature(s: PrepareState) -> None:
    """The source's signature, where the task has one."""
    if s.task.signature and s.signer:
        with s.progress.stage("signature"):
            signature.verify(s.task.signature, s.signer[0], s.source.sha256)


def write_fetched(s: PrepareState) -> None:
    """For the containers that follow."""
    inputs = hand_over.Inputs(key=s.key, inputs=s.inputs, source=s.source, files=s.files)
    hand_over.write_fetched(s.work, inputs)


FETCH: tuple[Phase, ...] = (
    fetch_data,
    compute_key,
    look_up,
    fetch_source,
    verify_signature,
    write_fetched,
)


# --- CONVERT: open the source, and make of it what is served


def read_fetched(s: PrepareState) -> None:
    """What the container that fetched has left."""
    fetched = hand_over.read_fetched(s.work)
    s.source = fetched.source
    s.data_files = {
        field: DataFile(s.work / f"source-{number}", fetched.files[field])
        for number, field in enumerate(sources_of(s.task))
    }


def serve_unchanged(s: PrepareState) -> TaskResult | None:
    """A source that a backend of Triton serves as it is: it is checked, and that is all."""
    if not s.task.served:
        return None
    with s.progress.stage("check"):
        checked = pass_through(
            s.source_file, s.task.served, s.task.batching, s.task.instance_kind, s.folder, s.task.max_bytes
        )
    size = sum(path.stat().st_size for path in checked.files.values())
    # the size before is that of the files, not of the archive: nothing was made smaller
    report = report_of(checked.inputs, checked.outputs, (size, size), checked.warnings)
    return hand_over.write_made(s.work, s.made, checked.files, checked.config, report)


def convert_or_unpack(s: PrepareState) -> None:
    """The source model as ONNX: converted from another format, or out of its archive."""
    s.format = isolated.expect_format(s.source_file, s.task.format)
    s.onnx = s.source_file
    if s.format != "ONNX":
        with s.progress.stage("convert"):
            s.onnx = isolated.convert(s.source_file, s.format, s.folder, s.task.tensors)
    elif is_archive(s.source_file):
        with s.progress.stage("unpack"):
            keep = s.task.part != "Whole"
            unpacked = unpack(s.source_file, s.folder, s.task.max_bytes, s.task.one_file_bytes, keep=keep)
            s.onnx = unpacked or s.source_file


def check_model(s: PrepareState) -> None:
    """The source model: it can be run, and has the tensors that it should have; and the data fits
    it.
    """
    with s.progress.stage("check"):
        s.info = check(s.onnx)
        if s.task.tensors:
            isolated.expect_tensors(s.task.tensors, s.info)
        open_session(s.onnx, FIELD_SOURCE)
        try:
            s.config = render(s.info.inputs, s.info.outputs, s.task.batching, s.task.instance_kind)
        except BatchingImpossible as error:
            raise bad_input(
                "BatchingImpossible",
                f"spec.serving.batching.maxBatchSize: {s.task.batching.max_batch_size}, but the first"
                f" dimension of {error.tensor} is fixed; set maxBatchSize: 0, or export the model with a"
                " dynamic batch dimension",
            ) from None
        _check_data(s)


def _check_data(s: PrepareState) -> None:
    """Data sets that fit the source model's inputs, and models that can be run."""
    sources = sources_of(s.task)
    labels = gate.labels_wanted(s.task.gate) if s.task.gate else None
    s.data, s.models = {}, {}
    for field, source in sources.items():
        wanted, path = source.wanted, s.data_files[field].path
        if isinstance(wanted, ModelFile):
            check(path, f"{field}.uri")
            open_session(path, f"{field}.uri")
            s.models[field] = path
            continue
        arrays = read_archive(path, field)
        if source.step is None or source.judges:
            labelled, numbers = labels is not None, labels == "numbers"
        else:
            present = wanted.labels in arrays
            labelled = definition_of(source.step).uses_labels(source.step, source.name, present)
            numbers = False
        s.data[field] = match(
            arrays,
            wanted,
            s.info.inputs,
            field,
            labelled=labelled,
            numbers=numbers,
            sliced=source.judges or None,
        )
    for field, source in sources.items():
        if source.step and source.judges and (shared := s.data[field].shared(s.data[FIELD_GATE])):
            s.warnings.append(
                f"{field}: {shared} different samples of it are among the held-out ones of {FIELD_GATE} too:"
                " the accuracy after is too optimistic"
            )


def check_parity(s: PrepareState) -> None:
    """A converted model answers as the original does."""
    if s.format == "ONNX":
        return
    with s.progress.stage("parity"):
        sample = s.data.get(FIELD_GATE) or next(iter(s.data.values()), None)
        s.conversion = isolated.parity(
            s.source_file, s.format, s.folder, s.onnx, s.info.inputs, sample.inputs if sample else None
        )
    if s.conversion["generated"]:
        s.warnings.append(
            "the conversion was compared on generated inputs; give spec.optimization.gate.data to compare on"
            " real ones"
        )


def run_recipe(s: PrepareState) -> None:
    """The optimization steps: all of them, or those before, or after, the user's own container."""
    recipe = s.task.steps
    if s.task.part == "BeforeContainer":
        recipe = tuple(takewhile(lambda step: not isinstance(step, ContainerStep), recipe))
    with s.progress.stage("optimize"):
        s.applied = run_steps(
            recipe,
            s.onnx,
            s.folder,
            s.data,
            s.models,
            gate=s.task.gate,
            symmetric=s.task.instance_kind == "KIND_GPU",
            hardware=s.task.target_hardware,
            advance=s.progress.update,
            one_file=s.task.one_file_bytes,
            earlier=hand_over.read_partial(s.made) if s.task.part == "AfterContainer" else None,
        )


def give_to_container(s: PrepareState) -> TaskResult | None:
    """Before the user's own container this container's part ends here."""
    if s.task.part != "BeforeContainer":
        return None
    paths = {field: file.path for field, file in s.data_files.items()}
    return hand_over.write_partial(s.made, s.task.steps, s.applied, paths)


def check_optimized(s: PrepareState) -> None:
    """The optimized model can be run; and what its owner should know of it."""
    optimized, before, after = s.applied.path, s.source.size, size_of(s.applied.path)
    s.warnings += s.applied.warnings
    if not s.task.steps:
        return
    open_session(optimized, "the optimized model")
    if not s.task.gate:
        s.warnings.append(
            "optimized without a gate: nothing says that the accuracy is kept; set spec.optimization.gate"
        )
    if optimized != s.onnx and after >= before:
        s.warnings.append(
            f"the optimized model is not smaller ({before} to {after} bytes): its weights are few"
        )
    held_out = s.data_files.get(FIELD_GATE)
    if held_out and any(
        file.fetched == held_out.fetched for field, file in s.data_files.items() if field != FIELD_GATE
    ):
        s.warnings.append(
            "a step's data and held-out data are the same file: the accuracy after is too optimistic; use"
            " different samples"
        )


def run_gate(s: PrepareState) -> None:
    """The source model against the optimized one, on held-out data."""
    if not s.task.gate:
        return
    s.measured = gate.run_gate(s.task.gate, s.data[FIELD_GATE], s.onnx, s.applied.path, s.info, s.progress)
    if s.measured.report["duplicates"]:
        s.warnings.append(
            f"{s.measured.report['duplicates']} of {s.measured.report['samples']} held-out samples repeat"
            " others: they add no information"
        )


def write_made(s: PrepareState) -> TaskResult:
    """The version and its report, for the container that publishes; raises what the gate decided
    against.
    """
    report = report_of(
        s.info.inputs,
        s.info.outputs,
        (s.source.size, size_of(s.applied.path)),
        s.warnings,
        opset=s.info.opset,
        conversion=s.conversion,
        steps=s.applied.done,
        gate=s.measured.report if s.measured else None,
    )
    if s.measured:
        gate.raise_failure(s.measured, summary_of(s.task, report, None, None))
    return hand_over.write_made(s.work, s.made, files_of(s.applied.path), s.config, report)


CONVERT: tuple[Phase, ...] = (
    read_fetched,
    serve_unchanged,
    convert_or_unpack,
    check_model,
    check_parity,
    run_recipe,
    give_to_container,
    check_optimized,
    run_gate,
    write_made,
)


def _run_convert(s: PrepareState) -> TaskResult | None:
    # in the folder that the result goes to, so that nothing large is copied
    with tempfile.TemporaryDirectory(dir=s.made) as folder:
        s.folder = Path(folder)
        return run_phases(CONVERT, s)


def convert(s: PrepareState) -> None:
    """CONVERT as one phase of a Job that does all in one container."""
    _run_convert(s)


# --- PUBLISH: put what was made into the store


def verify_made(s: PrepareState) -> None:
    """What was made has the form that was asked for: whoever made it has opened an untrusted file.

    Names, configuration and sizes are checked. The gate's numbers cannot be: they are the word of
    the container that measured them.
    """
    with s.progress.stage("verify"):
        fetched = hand_over.read_fetched(s.work)
        s.key = fetched.key
        s.version, s.config, s.report = hand_over.read_made(s.work, s.made, s.task.max_bytes)
        expect_servable(s.task.served, s.version.keys(), s.config)
        if s.task.gate and not s.report.get("gate"):
            raise refused("it has no gate's numbers")
        size = sum(path.stat().st_size for path in s.version.values())
        s.report |= {"format": 1, "key": fetched.key, "inputs": fetched.inputs, "sizeAfter": size}
        uri = f"{s.task.artifacts.uri.rstrip('/')}/{artifact.folder_of(fetched.key, s.task.salt)}"
        try:
            s.result = summary_of(s.task, s.report, uri, None)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise refused("its report has an unknown form") from None


def publish(s: PrepareState) -> TaskResult:
    """The version, its configuration and its report; the manifest last."""
    uri = str(s.result.artifact_uri)
    with s.progress.stage("publish"):
        entries = {name: _file_entry(path) for name, path in s.version.items()} | {
            CONFIG_FILE: _file_entry(s.config.encode()),
            artifact.REPORT: _file_entry(json.dumps(s.report, indent=1, sort_keys=True).encode()),
        }
        digest = artifact.publish(_store_of(s.task, uri), s.key, entries)
    return s.result.model_copy(update={"artifact_digest": digest})


PUBLISH: tuple[Phase, ...] = (verify_made, publish)


def _store_of(task: PrepareTask, uri: str) -> ObjectStore:
    return ObjectStore(task.artifacts.model_copy(update={"uri": uri}), "artifacts")


def _file_entry(content: bytes | Path) -> tuple[bytes | Path, str, int]:
    if isinstance(content, bytes):
        return content, hashlib.sha256(content).hexdigest(), len(content)
    with content.open("rb") as file:
        return content, hashlib.file_digest(file, "sha256").hexdigest(), content.stat().st_size
