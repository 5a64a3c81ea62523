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
from modelrollout.optimizer.formats import REFUSAL, isolated
from modelrollout.optimizer.store import backend

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "RETRY", {"max_retries": 0})


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
    """The program of ``originals`` without a process of its own for each task."""

    def ask(task: str, path: Path, kind: SourceFormat, folder: Path) -> None:
        assert formats_worker.stdin and formats_worker.stdout
        formats_worker.stdin.write(json.dumps([task, kind, str(path), str(folder)]) + "\n")
        formats_worker.stdin.flush()
        code = int(formats_worker.stdout.readline())
        if code == ExitCode.BAD_INPUT:
            raise bad_input(*json.loads((folder / REFUSAL).read_text()))
        assert code == ExitCode.OK

    monkeypatch.setattr(isolated, "run_isolated", ask)
