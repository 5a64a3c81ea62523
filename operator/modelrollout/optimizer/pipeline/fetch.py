"""FETCH: download and verify everything that a preparation needs, without opening it."""

from __future__ import annotations

from modelrollout.contract.common import ModelFile
from modelrollout.contract.results import TaskResult
from modelrollout.jobs.errors import bad_input
from modelrollout.jobs.log import LOGGER
from modelrollout.optimizer.gate.gate import FIELD as FIELD_GATE
from modelrollout.optimizer.pipeline import hand_over
from modelrollout.optimizer.pipeline.key import inputs_of, key_of, sources_of
from modelrollout.optimizer.pipeline.report import summary_of
from modelrollout.optimizer.pipeline.state import (
    FIELD_SOURCE,
    Phase,
    PrepareState,
    store_of,
)
from modelrollout.optimizer.store import artifact, signature
from modelrollout.optimizer.store.object_store import ObjectStore, expect_digest
from modelrollout.reasons import Reason


def fetch_data(s: PrepareState) -> None:
    """Data sets and further models. Raises SelectionIsHeldOut if a search would choose a model by
    the samples that the gate judges it on.
    """
    sources = sources_of(s.task)
    s.files = {}
    with s.progress.stage("data"):
        for number, (field, source) in enumerate(sources.items()):
            spec = source.spec
            s.files[field] = ObjectStore(spec.location, f"{field}.uri").download(
                s.work / f"source-{number}", max_bytes=s.task.max_bytes, advance=s.progress.update
            )
            if isinstance(spec, ModelFile) and spec.sha256:
                expect_digest(s.files[field], spec.sha256, field, spec.location.uri)
    held_out = s.files.get(FIELD_GATE)
    for field, source in sources.items():
        if source.step and source.judges and s.files[field] == held_out:
            raise bad_input(
                Reason.SELECTION_IS_HELD_OUT,
                f"{field}.uri: this is the file of {FIELD_GATE}, so the search would choose a model by the"
                " samples that the gate judges it on; give auto samples of its own, for example a part of the"
                " validation data",
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
            report = artifact.find(store_of(s.task, recorded.uri), recorded.digest)
        if report is None:
            LOGGER.warning(
                "a recorded artifact is missing or was replaced; preparing it again",
                extra={"artifact": recorded.uri},
            )
            continue
        try:
            return summary_of(s.task, report, recorded.uri, recorded.digest, reused=True)
        except (KeyError, TypeError, ValueError):
            LOGGER.warning(
                "the report of a recorded artifact has an unknown form; preparing it again",
                extra={"artifact": recorded.uri},
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
