"""Which function does which task. Imports happen when the task is known: a fetch needs no ONNX Runtime."""

from __future__ import annotations

from modelrollout.api.tasks import CleanTask, EvaluateTask, FetchTask, PrepareTask, ResolveTask, TaskResult, TuneTask
from modelrollout.jobs.frame import AnyTask
from modelrollout.jobs.log import Progress


def run(task: AnyTask, progress: Progress) -> TaskResult:
    """Do the task; raises JobError."""
    match task:
        case ResolveTask():
            from modelrollout.optimizer.resolve import resolve

            return resolve(task, progress)
        case PrepareTask():
            from modelrollout.optimizer.prepare import prepare

            return prepare(task, progress)
        case FetchTask():
            from modelrollout.optimizer.fetch_repository import fetch_repository

            return fetch_repository(task, progress)
        case CleanTask():
            from modelrollout.optimizer.clean import clean

            return clean(task, progress)
        case EvaluateTask():
            from modelrollout.evaluator.golden import evaluate

            return evaluate(task, progress)
        case TuneTask():
            from modelrollout.evaluator.tune import tune

            return tune(task, progress)
