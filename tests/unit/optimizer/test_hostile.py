"""Every broken or hostile file ends the Job with a reason of its own, within limits of memory and
time, and leaves nothing behind.

The cases run one after the other through the Job's entry point in one process, which imports ONNX
Runtime once, under a limit of its address space; a crash of that process fails the test of the case
that it was at. A few run as ``python -m modelrollout.optimizer``.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelrollout.contract.common import RESULT_LIMIT_BYTES
from modelrollout.contract.gate import Gate, GateMetric
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import PrepareTask, Signature
from modelrollout.testing.object_store import SALT, ObjectStore, classifier, dataset, labelled, object_store
from tests.unit.optimizer.hostile import (
    CASES,
    GOOD,
    SIGNER,
    Case,
    changed,
    entry,
    external,
    pem,
    signature,
    tarred,
    zipped,
)
from tests.unit.optimizer.hostile_backends import BACKEND_CASES

OPERATOR = str(Path(__file__).parents[3] / "operator")
MEMORY = 6 << 30  # of address space; the libraries map most of a gigabyte
# VmHWM and not ru_maxrss, which begins with the peak of the process that forked this one
CHILD = """
import json, os, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[1]),) * 2)
from modelrollout.jobs import runner
from modelrollout.optimizer.__main__ import run
for line in sys.stdin:
    case = json.loads(line)
    os.environ |= case["env"]
    code = runner.main(run)
    with open("/proc/self/status") as status:
        peak = int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read())[1])
    print(json.dumps([code, peak]), flush=True)
"""


def task_of(case: Case, store: ObjectStore, folder: Path) -> PrepareTask:
    """The files of the case in the store, and the task about them."""
    name = case.name.replace(" ", "-").replace(",", "")
    store.objects[f"/{name}/model"] = case.model
    fields: dict[str, Any] = {
        "source": store.http(f"{name}/model"),
        "sha256": hashlib.sha256(case.model).hexdigest(),
        "artifacts": store.s3(f"a/{name}"),
        "salt": SALT,
    }
    if case.data is not None:
        store.objects[f"/{name}/data"] = case.data
        fields["gate"] = Gate(
            data=dataset(store.http(f"{name}/data"), slices=case.slices), metrics=(GateMetric(max_drop=0.1),)
        )
    if case.signed:
        key = folder / name
        key.write_bytes(pem(SIGNER) if case.key is None else case.key)
        if case.key == b"":
            key.unlink()
        if case.signature is not None:
            store.objects[f"/{name}/model.sig"] = case.signature
        fields["signature"] = Signature(location=store.http(f"{name}/model.sig"), key_file=str(key))
    return PrepareTask(**(fields | case.changes))


class Child:
    """The Job's program, one task after the other."""

    def __init__(self, store: ObjectStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.process: subprocess.Popen[str] | None = None

    def run(self, case: Case) -> tuple[int, TaskResult, int]:
        """(exit code, result, peak of resident memory in KiB)."""
        if self.process is None or self.process.poll() is not None:
            self.process = subprocess.Popen(
                [sys.executable, "-c", CHILD, str(MEMORY)],
                env={**os.environ, "PYTHONPATH": OPERATOR, "TMPDIR": str(self.folder / "tmp")},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        result = self.folder / "result"
        env = {
            "MODELROLLOUT_TASK": task_of(case, self.store, self.folder).model_dump_json(),
            "MODELROLLOUT_TERMINATION_LOG": str(result),
        }
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"env": env}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        assert line, f"the Job's process ended with code {self.process.wait()}"
        code, peak = json.loads(line)
        return code, TaskResult.model_validate_json(result.read_bytes()), peak

    def close(self) -> None:
        if self.process and self.process.stdin and self.process.stdout:
            self.process.stdin.close()
            self.process.wait(timeout=20)
            self.process.stdout.close()


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Child]:
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "tmp").mkdir()
    with object_store() as store:
        actual = Child(store, folder)
        yield actual
        actual.close()


def test_there_are_many_and_each_is_told_apart() -> None:
    assert len(CASES) >= 100
    assert len({case.name for case in (*CASES, *BACKEND_CASES)}) == len(CASES) + len(BACKEND_CASES)
    assert len({case.reason for case in CASES}) >= 35


@pytest.mark.parametrize("case", [*CASES, *BACKEND_CASES], ids=lambda case: case.name)
def test_ends_with_its_reason(child: Child, case: Case) -> None:
    code, result, peak = child.run(case)
    assert (result.reason, code) == (case.reason, case.code), result.message
    assert result.message.startswith(case.at)
    assert case.says in result.message
    assert len(result.model_dump_json(exclude_defaults=True)) <= RESULT_LIMIT_BYTES
    assert peak < 1 << 20  # KiB
    # ONNX Runtime's own
    assert [path for path in (child.folder / "tmp").iterdir() if path.name != ".ses"] == []
    assert not any(path.startswith("/a/") for path in child.store.objects)
    assert not list(child.folder.glob("**/escaped"))
    assert not Path("/tmp/ran").exists()
    assert not Path("/tmp/escaped").exists()


WEIGHTS = classifier().graph.initializer[0].raw_data


@pytest.mark.parametrize(
    "case",
    [
        Case("plain", "Completed", "", data=labelled(400)),
        Case(
            "zip with external data",
            "Completed",
            "",
            zipped(("v1/m.onnx", changed(external("d/w.bin"))), ("v1/d/w.bin", WEIGHTS)),
            labelled(400),
        ),
        Case(
            "tar with external data",
            "Completed",
            "",
            tarred((entry("m.onnx"), changed(external("w"))), (entry("w"), WEIGHTS), mode="w:gz"),
            labelled(400),
        ),
        Case("signed", "Completed", "", signed=True, signature=signature(hashlib.sha256(GOOD).hexdigest())),
    ],
    ids=lambda case: case.name,
)
def test_the_good_ones_pass_the_same_way(child: Child, case: Case) -> None:
    code, result, _ = child.run(case)
    assert (result.reason, code) == ("Completed", 0), result.message
    name = case.name.replace(" ", "-")
    served = next(
        body
        for path, body in child.store.objects.items()
        if path.startswith(f"/a/{name}/") and "/model-" in path
    )
    assert len(served) == pytest.approx(len(GOOD), abs=200)
    child.store.objects = {
        path: body for path, body in child.store.objects.items() if not path.startswith("/a/")
    }


@pytest.mark.parametrize("name", ["zip slip", "terabytes out of a few bytes"])
def test_as_the_job_starts_it(child: Child, name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    task = task_of(case, child.store, tmp_path).model_dump_json()
    env = {
        **os.environ,
        "PYTHONPATH": OPERATOR,
        "MODELROLLOUT_TASK": task,
        "MODELROLLOUT_TERMINATION_LOG": str(tmp_path / "result"),
    }
    limit = f"import resource, runpy; resource.setrlimit(resource.RLIMIT_AS, ({MEMORY},) * 2)"
    run = f"{limit}; runpy.run_module('modelrollout.optimizer', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", run], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == case.code, done.stderr[-2000:]
    assert TaskResult.model_validate_json((tmp_path / "result").read_bytes()).reason == case.reason
