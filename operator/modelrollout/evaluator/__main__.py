"""``python -m modelrollout.evaluator``: the Jobs that send requests to a served model, to judge it
on golden data, to see that it answers, or to tune how it is served.
"""

from __future__ import annotations

import sys

from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import AskTask, EvaluateTask, TuneTask
from modelrollout.jobs.log import Progress
from modelrollout.jobs.runner import AnyTask, main, wrong_program


def run(task: AnyTask, progress: Progress) -> TaskResult:
    """Do the task; raises JobError."""
    match task:
        case EvaluateTask():
            from modelrollout.evaluator.golden import evaluate

            return evaluate(task, progress)
        case AskTask():
            from modelrollout.evaluator.made_up import ask

            return ask(task)
        case TuneTask():
            from modelrollout.evaluator.tuning.run import tune

            return tune(task, progress)
        case _:
            raise wrong_program(task, "modelrollout.optimizer")


if __name__ == "__main__":
    sys.exit(main(run))
