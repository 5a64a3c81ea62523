"""What a namespace has prepared already."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.rollout.fleet import MOST_RECORDS, Record, recorded
from tests.unit.rollout import builders as b

FOLDER = "s3://artifacts/all/ml"
MODEL = {"uri": "s3://models/m.onnx", "format": "ONNX", "signature": {"keySecretRef": {"name": "signers", "key": "a.pub"}}}
KEY = "1" * 64
RUN = f"{KEY}-{'5a17' * 4}-0123abcd"


def record(name: str = RUN, digest: str = "sha256:1", sha256: str = "a" * 64, folder: str = FOLDER, **model: Any) -> Record:
    return Record(sha256, MODEL | model, b.artifact(1).model_copy(update={"uri": f"{folder}/{name}", "digest": digest}))


def taken(*records: Record) -> tuple[tuple[str, str], ...]:
    return recorded(records, "a" * 64, MODEL, FOLDER)


def test_what_a_revision_of_the_same_source_records_may_be_taken_again() -> None:
    assert taken(record(), record()) == ((f"{FOLDER}/{RUN}", "sha256:1"),)
    assert taken(record(KEY)) == ((f"{FOLDER}/{KEY}", "sha256:1"),), "an earlier operator named it so"
    assert taken(record(credentials={"secretRef": {"name": "mine"}})), "who reads it makes nothing else of it"


OTHERS = {
    "another digest of the source": record(sha256="b" * 64),
    "another place, which a policy may not allow": record(uri="s3://models/other.onnx"),
    "another signer": record(signature={"keySecretRef": {"name": "signers", "key": "b.pub"}}),
    "not signed": record(signature=None),
    "another format": record(format="SKLearn"),
    "what a gate refused": record(digest=""),
    "another namespace's folder": record(folder="s3://artifacts/all/other"),
    "another store": record(folder="s3://elsewhere/all/ml"),
    "a folder within": record(folder=f"{FOLDER}/x"),
    "a folder that is no artifact": record("latest"),
    "a name that leads out": record(f"{KEY}/.."),
    "never prepared": Record("a" * 64, MODEL, None),
}


@pytest.mark.parametrize("what", OTHERS)
def test_nothing_else_may(what: str) -> None:
    assert taken(OTHERS[what]) == ()


def test_a_job_is_not_told_of_more_than_it_has_room_for() -> None:
    assert len(taken(*(record(f"{n:064x}") for n in range(50)))) == MOST_RECORDS
