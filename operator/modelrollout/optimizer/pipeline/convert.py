"""CONVERT: open the source and make the served model from it. Has no Secrets."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from itertools import takewhile
from pathlib import Path

import numpy as np

from modelrollout.contract.common import ModelFile
from modelrollout.contract.formats import Declared
from modelrollout.contract.results import TaskResult
from modelrollout.contract.steps import ContainerStep
from modelrollout.contract.tasks import HANDED_DATA
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.formats import isolated
from modelrollout.optimizer.gate import gate
from modelrollout.optimizer.gate.gate import FIELD as FIELD_GATE
from modelrollout.optimizer.model.archive import is_archive, unpack
from modelrollout.optimizer.model.data import Data, are_whole, match, read_archive, requests
from modelrollout.optimizer.model.files import files_of, size_of
from modelrollout.optimizer.model.inspect import ModelInfo, check
from modelrollout.optimizer.model.runtime import BATCH_ROWS, ask, expect_numbers, open_session
from modelrollout.optimizer.model.tables import Table
from modelrollout.optimizer.model.warmup import WarmupImpossibleError, find_warmup
from modelrollout.optimizer.passthrough.config import (
    CONFIG_LIMIT_BYTES,
    author_of,
    batching_of,
    with_author,
)
from modelrollout.optimizer.passthrough.repository import pass_through, servable_beside
from modelrollout.optimizer.pipeline import hand_over
from modelrollout.optimizer.pipeline.answers import expect_answers
from modelrollout.optimizer.pipeline.fil import serve_fil
from modelrollout.optimizer.pipeline.key import sources_of
from modelrollout.optimizer.pipeline.report import report_of, summary_of
from modelrollout.optimizer.pipeline.state import (
    FIELD_SOURCE,
    DataFile,
    Phase,
    PrepareState,
    run_phases,
)
from modelrollout.optimizer.steps.registry import definition_of
from modelrollout.optimizer.steps.run import run_steps
from modelrollout.reasons import Reason
from modelrollout.triton.config import BatchingImpossible, parse, printed, render, with_warmup
from modelrollout.triton.layout import BESIDE, CONFIG_FILE


def read_fetched(s: PrepareState) -> None:
    """Read the files that the fetching container left."""
    fetched = hand_over.read_fetched(s.work)
    s.source = fetched.source
    s.data_files = {
        field: DataFile(s.work / f"source-{number}", fetched.files[field])
        for number, field in enumerate(sources_of(s.task))
    }


def serve_unchanged(s: PrepareState) -> TaskResult | None:
    """Check a source that a backend of Triton serves unchanged."""
    if not s.task.served:
        return None
    conversion = None
    with s.progress.stage("check"):
        if s.task.served.backend == "FIL":
            checked, conversion = serve_fil(s)
        else:
            checked = pass_through(
                s.source_file,
                s.task.served,
                s.task.batching,
                s.task.instance_kind,
                s.folder,
                s.task.max_bytes,
                gpu=s.task.target_hardware != "any",
                gpus=s.task.gpus,
            )
    size = sum(path.stat().st_size for path in checked.files.values())
    # the size before is that of the files, not of the archive: nothing was made smaller
    report = report_of(
        checked.inputs,
        checked.outputs,
        (size, size),
        checked.warnings,
        conversion=conversion,
        decoupled=parse(checked.config).model_transaction_policy.decoupled,
    )
    return hand_over.write_made(s.work, s.made, checked.files, checked.config, report)


def convert_or_unpack(s: PrepareState) -> None:
    """The source model as ONNX: converted from another format, or out of its archive."""
    s.format = isolated.expect_format(s.source_file, s.task.format)
    s.onnx = s.source_file
    if s.format != "ONNX":
        with s.progress.stage("convert"):
            declared = Declared(
                tensors=s.task.tensors, rounds=s.task.rounds or "Best", missing=s.task.missing
            )
            s.converted = isolated.convert(s.source_file, s.format, s.folder, declared)
            s.onnx = s.converted.path
    elif is_archive(s.source_file):
        with s.progress.stage("unpack"):
            keep = s.task.part != "Whole"
            beside = s.folder / "beside"
            unpacked = unpack(
                s.source_file, s.folder, s.task.max_bytes, s.task.one_file_bytes, keep=keep, beside=beside
            )
            s.onnx = unpacked or s.source_file
            if beside.exists():
                _read_author(s, beside)


def _read_author(s: PrepareState, beside: Path) -> None:
    """The configuration that came with an ONNX model, as in Triton's repository."""
    files = {f"{BESIDE}{path.name}": path for path in beside.iterdir() if path.name != CONFIG_FILE}
    s.author = author_of((beside / CONFIG_FILE).read_bytes(), gpu=s.task.target_hardware != "any")
    s.beside = servable_beside(files, None, s.author)
    s.task = s.task.model_copy(update={"batching": batching_of(s.author, s.task.batching)})


def check_model(s: PrepareState) -> None:
    """Check that the source model can be run and has the declared tensors, and that the data fits
    it.
    """
    with s.progress.stage("check"):
        s.info = check(s.onnx)
        if s.converted:
            s.info = replace(s.info, nan=s.converted.nan)
        if s.task.tensors:
            isolated.expect_tensors(s.task.tensors, s.info)
        open_session(s.onnx, FIELD_SOURCE)
        _configure(s)
        _check_data(s)
        _expect_masks(s)
        _ask(s, s.onnx, s.info, FIELD_SOURCE)


def _configure(s: PrepareState) -> None:
    try:
        s.config = render(
            s.info.inputs, s.info.outputs, s.task.batching, s.task.instance_kind, nan=s.info.nan
        )
    except BatchingImpossible as error:
        raise bad_input(
            Reason.BATCHING_IMPOSSIBLE,
            f"spec.serving.batching.maxBatchSize: {s.task.batching.max_batch_size}, but the first"
            f" dimension of {error.tensor} is fixed; set maxBatchSize: 0, or export the model with a"
            " dynamic batch dimension",
        ) from None


def _ask(s: PrepareState, model: Path, info: ModelInfo, field: str) -> None:
    """Ask the model as its server will be asked; the configuration says what it then gives."""
    data = list(s.data.values())
    if s.converted and s.converted.rows:  # words and categories that it knows
        data.append(Data(s.converted.rows, None, {}))
    asked = expect_answers(model, info, data, s.task.batching.max_batch_size, field)
    s.warnings += [text for text in asked.warnings if text not in s.warnings]
    if asked.outputs != s.info.outputs:
        s.info = replace(s.info, outputs=asked.outputs)
        _configure(s)


def _check_data(s: PrepareState) -> None:
    """Data sets that fit the source model's inputs, and models that can be run."""
    sources = sources_of(s.task)
    labels = gate.required_labels(s.task.gate) if s.task.gate else None
    s.data, s.models = {}, {}
    for field, source in sources.items():
        spec, path = source.spec, s.data_files[field].path
        if isinstance(spec, ModelFile):
            check(path, f"{field}.uri")
            open_session(path, f"{field}.uri")
            s.models[field] = path
            continue
        arrays = read_archive(path, field)
        if isinstance(arrays, Table) and isinstance(source.step, ContainerStep):
            raise bad_input(
                Reason.DATA_NOT_NPZ,
                f"{field}.uri: the file is a table, and a container finds its data as {HANDED_DATA}: store"
                " it as .npz",
            )
        if source.step is None or source.judges:
            labelled, numbers = labels is not None, labels == "numbers"
        else:
            present = spec.labels in arrays
            labelled = definition_of(source.step).uses_labels(source.step, source.name, present)
            numbers = False
        s.data[field] = match(
            arrays,
            spec,
            s.info.inputs,
            field,
            labelled=labelled,
            numbers=numbers,
            sliced=source.judges or None,
            nan=s.info.nan,
        )
    for field, source in sources.items():
        if source.step and source.judges and (shared := s.data[field].shared(s.data[FIELD_GATE])):
            s.warnings.append(
                f"{field}: {shared} different samples of it are among the held-out ones of {FIELD_GATE} too:"
                " the accuracy after is too optimistic"
            )


def _expect_masks(s: PrepareState) -> None:
    """Raise DataNotFinite for data whose infinities the source model does not answer."""
    for field, data in s.data.items():
        if not any(array.dtype.kind == "f" and np.isinf(array).any() for array in data.inputs.values()):
            continue
        session, done = open_session(s.onnx, FIELD_SOURCE), 0
        for request in requests(data.inputs, s.info.inputs, BATCH_ROWS, field):
            outputs = ask(session, None, request.arrays, field)
            expect_numbers(request, request.rows(outputs), done, f"{field}.uri")
            done += request.samples


def check_parity(s: PrepareState) -> None:
    """Check that a converted model answers like the original."""
    if s.converted is None:
        return
    s.warnings += s.converted.warnings
    with s.progress.stage("parity"):
        sample = s.data.get(FIELD_GATE) or next(iter(s.data.values()), None)
        rows = sample is not None and not are_whole(sample.inputs, s.info.inputs)
        s.conversion, warnings = isolated.parity(
            s.source_file,
            s.format,
            s.folder,
            s.converted,
            s.info.inputs,
            sample.inputs if sample and rows else None,
        )
    s.warnings += warnings
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
            symmetric=s.task.target_hardware != "any",  # a GPU, whose TensorRT takes no zero point,
            hardware=s.task.target_hardware,
            advance=s.progress.update,
            one_file=s.task.one_file_bytes,
            batched=s.task.batching.max_batch_size > 0,
            earlier=hand_over.read_partial(s.made) if s.task.part == "AfterContainer" else None,
        )


def give_to_container(s: PrepareState) -> TaskResult | None:
    """Hand over to the user's own container; this container's part ends here."""
    if s.task.part != "BeforeContainer":
        return None
    paths = {field: file.path for field, file in s.data_files.items()}
    return hand_over.write_partial(s.made, s.task.steps, s.applied, paths)


def check_optimized(s: PrepareState) -> None:
    """Check that the optimized model can be run, and collect warnings for its owner."""
    optimized, before, after = s.applied.path, s.source.size, size_of(s.applied.path)
    s.warnings += s.applied.warnings
    if not s.task.steps:
        return
    _ask(s, optimized, check(optimized, "the optimized model"), "the optimized model")
    if not s.task.gate:
        s.warnings.append(
            "optimized without a gate, so the accuracy is not checked; set spec.optimization.gate"
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


def warm_up(s: PrepareState) -> None:
    """Requests that every server answers before it is ready, those that the model answers here."""
    if not s.task.warmup:
        return
    sample = s.data.get(FIELD_GATE) or next(iter(s.data.values()), None)
    with s.progress.stage("warm-up"):
        try:
            warmup = find_warmup(
                s.applied.path,
                s.info.inputs,
                s.task.batching.max_batch_size,
                sample.inputs if sample else None,
            )
            config = printed(with_warmup(parse(s.config), warmup))
            if len(config.encode()) > CONFIG_LIMIT_BYTES:
                raise WarmupImpossibleError(f"for {len(s.info.inputs)} inputs config.pbtxt is too large")
        except WarmupImpossibleError as why:
            s.warnings.append(f"servers are ready without a warm-up: {why}")
            return
    s.warmup, s.config = warmup, config


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
        warmup=s.warmup,
    )
    if s.measured:
        gate.raise_failure(s.measured, summary_of(s.task, report, None, None))
    config = s.config if s.author is None else with_author(s.config, s.author)
    files = files_of(s.applied.path) | s.beside
    return hand_over.write_made(s.work, s.made, files, config, report)


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
    warm_up,
    write_made,
)


def convert(s: PrepareState) -> TaskResult | None:
    """Run CONVERT."""
    # in the folder that the result goes to, so that nothing large is copied
    with tempfile.TemporaryDirectory(dir=s.made) as folder:
        s.folder = Path(folder)
        return run_phases(CONVERT, s)
