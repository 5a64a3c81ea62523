"""For all tests of Jobs: a store that is away is away at once; models of other formats are read in
one process for many tests.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.formats import SourceFormat
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.formats import OUT_OF_MEMORY, REFUSAL, isolated, worker
from modelrollout.optimizer.store import backend

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "RETRY", {"max_retries": 0})


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For tests that load libraries of trees: threads of several libraries' OpenMP wait for each
    other on a busy machine.
    """
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield


@pytest.fixture(scope="session")
def formats_worker() -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.unit.optimizer.formats_worker"]
    with subprocess.Popen(
        command, cwd=ROOT, env={"PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}", "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as worker:  # fmt: skip
        yield worker
        worker.communicate(timeout=60)


@pytest.fixture
def together(formats_worker: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of ``worker`` without a process of its own for each task."""

    def ask(task: str, path: Path, kind: SourceFormat, folder: Path) -> None:
        assert formats_worker.stdin and formats_worker.stdout
        formats_worker.stdin.write(json.dumps([task, kind, str(path), str(folder)]) + "\n")
        formats_worker.stdin.flush()
        _expect_done(int(formats_worker.stdout.readline()), folder)

    monkeypatch.setattr(isolated, "run_isolated", ask)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program of ``worker`` called as a function, for formats of a test's own."""

    def call(task: str, path: Path, kind: SourceFormat, folder: Path) -> None:
        _expect_done(worker.main([task, kind, str(path), str(folder)]), folder)

    monkeypatch.setattr(isolated, "run_isolated", call)


def _expect_done(code: int, folder: Path) -> None:
    """Raise what ``run_isolated`` raises for this exit code."""
    if code == ExitCode.BAD_INPUT:
        raise bad_input(*json.loads((folder / REFUSAL).read_text()))
    if code == OUT_OF_MEMORY:
        raise MemoryError
    assert code == ExitCode.OK
