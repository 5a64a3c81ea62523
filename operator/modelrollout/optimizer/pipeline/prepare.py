"""Prepare: fetch and verify data and source, check the model, optimize it, gate it on held-out
data, and publish it.

The containers of a prepare Job share this work because the source is an untrusted file: those with
Secrets (FETCH, PUBLISH) do not open it, and the one that opens it (CONVERT) has none. Each
container runs its phases in the order of its list. An artifact's key is a hash of everything that
the artifact depends on. The Job reuses an artifact only if a ModelRevision of the namespace records
it under this key; it ignores everything else in the store.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import MADE_DIR, WORK_DIR, PrepareTask
from modelrollout.jobs.errors import JobError
from modelrollout.jobs.log import Progress
from modelrollout.optimizer.pipeline.convert import convert
from modelrollout.optimizer.pipeline.fetch import FETCH
from modelrollout.optimizer.pipeline.publish import PUBLISH
from modelrollout.optimizer.pipeline.state import PrepareState, run_phases


def prepare(task: PrepareTask, progress: Progress) -> TaskResult:
    """Run the phases of this container, or of all. Raises JobError; that of a gate that did not
    pass (GATE_FAILED, GATE_INCONCLUSIVE) carries its numbers, and nothing is published.
    """
    if task.part == "Whole":
        with tempfile.TemporaryDirectory() as folder:
            state = PrepareState(task, progress, Path(folder) / "work", Path(folder) / "made")
            state.work.mkdir()
            state.made.mkdir()
            if result := run_phases(FETCH, state):
                return result
            convert(state)
            return _expect(run_phases(PUBLISH, state))
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
            return _expect(convert(state))


def _expect(result: TaskResult | None) -> TaskResult:
    assert result is not None  # the last phase has one
    return result
