"""``python -m modelrollout.optimizer``: the Jobs and init containers that make, place and remove
artifacts.
"""

from __future__ import annotations

import sys

from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import CleanTask, FetchTask, PrepareTask, ResolveTask
from modelrollout.jobs.log import Progress
from modelrollout.jobs.runner import AnyTask, main, wrong_program


def run(task: AnyTask, progress: Progress) -> TaskResult:
    """Do the task; raises JobError. Each branch imports what it needs: a fetch starts without ONNX
    Runtime.
    """
    match task:
        case ResolveTask():
            from modelrollout.optimizer.pipeline.resolve import resolve

            return resolve(task, progress)
        case PrepareTask():
            from modelrollout.optimizer.pipeline.prepare import prepare

            return prepare(task, progress)
        case FetchTask():
            from modelrollout.optimizer.pipeline.load_artifact import fetch_repository

            return fetch_repository(task, progress)
        case CleanTask():
            from modelrollout.optimizer.store.cleanup import clean

            return clean(task, progress)
        case _:
            raise wrong_program(task, "modelrollout.evaluator")


if __name__ == "__main__":
    sys.exit(main(run))
