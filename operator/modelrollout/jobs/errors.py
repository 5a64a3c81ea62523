"""How a Job fails: an exit code, a reason that the page of reasons lists, and a message that names
the field, the fact and the remedy.
"""

from __future__ import annotations

from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import TaskResult


class JobError(Exception):
    """The end of a task that did not succeed. ``result``: evidence from before the failure."""

    def __init__(self, code: ExitCode, reason: str, message: str, result: TaskResult | None = None) -> None:
        super().__init__(f"{reason}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.evidence = result

    def result(self) -> TaskResult:
        """The evidence with this reason and message."""
        return (self.evidence or TaskResult()).model_copy(
            update={"reason": self.reason, "message": self.message}
        )


def bad_input(reason: str, message: str) -> JobError:
    """The user must change something."""
    return JobError(ExitCode.BAD_INPUT, reason, message)


def denied(reason: str, message: str) -> JobError:
    """Credentials are missing or were refused."""
    return JobError(ExitCode.DENIED, reason, message)


def retryable(reason: str, message: str) -> JobError:
    """The same task may succeed later."""
    return JobError(ExitCode.RETRYABLE, reason, message)
