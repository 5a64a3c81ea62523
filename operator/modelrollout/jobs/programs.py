"""Which function does which task. Imports happen when the task is known: a fetch needs no ONNX
Runtime.
"""

from __future__ import annotations

from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import CleanTask, EvaluateTask, FetchTask, PrepareTask, ResolveTask, TuneTask
from modelrollout.jobs.log import Progress
from modelrollout.jobs.runner import AnyTask


def run(task: AnyTask, progress: Progress) -> TaskResult:
    """Do the task; raises JobError."""
    match task:
        case ResolveTask():
            from modelrollout.optimizer.pipeline.resolve import resolve

            return resolve(task, progress)
        case PrepareTask():
            from modelrollout.optimizer.pipeline.prepare import prepare

            return prepare(task, progress)
        case FetchTask():
            from modelrollout.optimizer.store.load_artifact import fetch_repository

            return fetch_repository(task, progress)
        case CleanTask():
            from modelrollout.optimizer.store.cleanup import clean

            return clean(task, progress)
        case EvaluateTask():
            from modelrollout.evaluator.golden import evaluate

            return evaluate(task, progress)
        case TuneTask():
            from modelrollout.evaluator.tuning.run import tune

            return tune(task, progress)
