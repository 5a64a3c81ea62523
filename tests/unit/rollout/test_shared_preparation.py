"""What a namespace has prepared already, and who prepares for all that ask for the same at once."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.api.v1alpha1 import ArtifactEvidence
from modelrollout.problem import Problem
from modelrollout.rollout.shared_preparation import (
    MOST_RECORDS,
    Member,
    Record,
    outcome,
    preparer,
    recorded,
    work_key,
)
from modelrollout.rollout.snapshot import SharedPreparation
from modelrollout.testing import builders as b

FOLDER = "s3://artifacts/all/ml"
MODEL = {
    "uri": "s3://models/m.onnx",
    "format": "ONNX",
    "signature": {"keySecretRef": {"name": "signers", "key": "a.pub"}},
}
KEY = "1" * 64
RUN = f"{KEY}-{'5a17' * 4}-0123abcd"


def record(
    name: str = RUN, digest: str = "sha256:1", sha256: str = "a" * 64, folder: str = FOLDER, **model: Any
) -> Record:
    return Record(
        sha256, MODEL | model, b.artifact(1).model_copy(update={"uri": f"{folder}/{name}", "digest": digest})
    )


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


def test_what_servers_could_not_load_is_not_taken_whoever_records_it() -> None:
    spoilt = Record("a" * 64, MODEL, record().artifact, lost=True)
    assert taken(record(), spoilt) == () and taken(record(KEY), spoilt) == ((f"{FOLDER}/{KEY}", "sha256:1"),)


def test_a_job_is_not_told_of_more_than_it_has_room_for() -> None:
    assert len(taken(*(record(f"{n:064x}") for n in range(50)))) == MOST_RECORDS


# --- who works for all


NOW = "2026-01-01T00:00:0{}.000Z"


def member(name: str, since: int = 0, **more: Any) -> Member:
    return Member(name, NOW.format(since), **more)


def made(at: int, digest: str = "sha256:1") -> ArtifactEvidence:
    return b.artifact(1).model_copy(update={"prepared": NOW.format(at), "digest": digest})


def test_whose_job_is_there_works_else_who_was_chosen_else_who_came_first() -> None:
    members = [member("c", 1), member("b", 1), member("a", 2)]
    assert preparer(members) == "b"
    assert preparer(members, "a") == "a" and preparer(members, "gone") == "b"
    assert preparer([*members, member("z", 9, works=True)], "a") == "z"
    assert preparer([member("a", waits=False)]) is None and preparer([]) is None


def test_who_was_chosen_and_makes_no_job_gives_way_to_the_next() -> None:
    members = [member(name) for name in "abc"]
    assert [preparer(members, before, idle=True) for before in "abc"] == ["b", "c", "a"]
    assert preparer([*members, member("z", works=True)], "z", idle=True) == "z", "its Job is there"


def test_what_came_of_it_since_is_taken_and_nothing_older() -> None:
    mine = member("me", 5)
    assert outcome(mine, [member("a", 6, waits=False, artifact=made(5))]) == SharedPreparation("a", made(5))
    assert outcome(mine, [member("a", 6, waits=False, artifact=made(4))]) == SharedPreparation(), (
        "what lies at the same place may be another file by now"
    )
    assert outcome(mine, [member("a", 6, artifact=made(6))]) == SharedPreparation(), "it is in Prepare again"
    old = made(6).model_copy(update={"prepared": None})
    assert outcome(mine, [member("a", 6, waits=False, artifact=old)]) == SharedPreparation()


def test_the_gates_verdict_is_shared_and_no_other_failure_is() -> None:
    low = Problem("AccuracyLow", "too low")
    mine, evidence = member("me", 1), made(3, digest="")
    assert outcome(mine, [member("a", waits=False, artifact=evidence, refused=low)]) == SharedPreparation(
        "a", evidence, low
    )
    assert (
        outcome(mine, [member("a", waits=False, artifact=evidence)])
        == SharedPreparation()
        == outcome(mine, [member("a", waits=False)])
    )
    later = member("b", waits=False, artifact=made(4))
    assert outcome(
        mine, [member("a", waits=False, artifact=evidence, refused=low), later]
    ) == SharedPreparation("b", made(4)), "the last word of two"


def test_equal_words_are_equal_work_and_others_are_not() -> None:
    spec = b.spec(1)
    version, how = spec.user_input(), {"timeout": "1h"}
    elsewhere = {**version["model"], "credentials": {"secretRef": {"name": "x"}}}
    key = work_key("a", version, how, warmup=True)
    near = {**version, "serving": {**version["serving"], "affinity": {"podAffinity": {}}}}
    assert key == work_key("a", near, how, warmup=True)
    others = [
        work_key("b", version, how, warmup=True),
        work_key("a", version, {}, warmup=True),
        work_key("a", version, how, warmup=False),
        work_key("a", {**version, "model": elsewhere}, how, warmup=True),
        work_key("a", {**version, "optimization": {"steps": [{"graph": {}}]}}, how, warmup=True),
        work_key(
            "a", {**version, "serving": {**version["serving"], "serviceAccountName": "x"}}, how, warmup=True
        ),
    ]
    assert len({key, *others}) == 7
