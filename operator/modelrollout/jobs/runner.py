"""The frame of every Job: read the task, run it, log progress, write the result, exit with a code.

The task runs in a thread of its own and the main thread waits: a signal handler in Python runs only
in the main thread and only between two bytecodes, so a task inside a long call of ONNX Runtime
would notice SIGTERM minutes late (and process 1 of a container has no default action for SIGTERM at
all).
"""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from pydantic import TypeAdapter, ValidationError

from modelrollout.contract.common import RESULT_LIMIT_BYTES, TASK_ENV, TIMEOUT_ENV
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import TaskResult
from modelrollout.contract.tasks import (
    AskTask,
    CleanTask,
    EvaluateTask,
    FetchTask,
    PrepareTask,
    ResolveTask,
    Task,
    TuneTask,
)
from modelrollout.jobs import log
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.reasons import Reason
from modelrollout.telemetry.redaction import redact_known

TERMINATION_LOG_ENV = "MODELROLLOUT_TERMINATION_LOG"
TERMINATION_LOG = "/dev/termination-log"

AnyTask = ResolveTask | PrepareTask | FetchTask | CleanTask | EvaluateTask | AskTask | TuneTask
Runner = Callable[[AnyTask, log.Progress], TaskResult]

_MESSAGE_START = 300  # characters of a message that matter more than a metric's numbers
_HEARTBEATS = (2.0, 3.0, 5.0, 10.0)  # seconds between two lines of progress; the last one repeats


def encode(result: TaskResult, limit: int = RESULT_LIMIT_BYTES) -> bytes:
    """The result as JSON of at most ``limit`` bytes, still a valid TaskResult.

    Dropped in this order until it fits: ``extra`` and ``seconds``; points of a search (the last
    ones first) and metrics (those that passed first), as far as the start of the message needs the
    room; the end of the message; everything but reason and message.
    """

    def dump(value: TaskResult) -> bytes:
        return value.model_dump_json(exclude_defaults=True).encode()

    # A name in a tar archive need not be text: Python keeps undecodable bytes as lone surrogates,
    # which JSON cannot hold.
    text = json.dumps(result.model_dump(mode="json"), ensure_ascii=False)
    if not text.isascii():
        result = TaskResult.model_validate_json(text.encode(errors="replace"))
    for whole in (result, result.model_copy(update={"extra": {}, "seconds": {}})):
        if len(dump(whole)) <= limit:
            return dump(whole)

    metrics = tuple(sorted(result.metrics, key=lambda m: m.verdict == "Successful"))
    base = result.model_copy(
        update={"extra": {}, "seconds": {}, "message": result.message[:_MESSAGE_START], "metrics": metrics}
    )
    while len(dump(base)) > limit - 3 and (base.metrics or base.search):
        if base.search:
            search = (
                base.search.model_copy(update={"points": base.search.points[:-1]})
                if base.search.points
                else None
            )
            base = base.model_copy(update={"search": search})
        else:
            base = base.model_copy(update={"metrics": base.metrics[:-1]})
    base = base.model_copy(update={"message": ""})
    if len(dump(base)) > limit:
        base = TaskResult(reason=result.reason[:64])

    def cut(length: int) -> bytes:
        return dump(base.model_copy(update={"message": result.message[:length] + "..." if length else ""}))

    low, high = 0, len(result.message)
    # the longest start that fits; an escaped character takes up to six bytes, so measure
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if len(cut(middle)) <= limit else (low, middle - 1)
    return cut(low)


def _unexpected(error: BaseException) -> JobError:
    """An unforeseen exception as a reason; only its first line, without secrets."""
    if isinstance(error, MemoryError):
        return JobError(
            ExitCode.OUT_OF_RESOURCES,
            Reason.OUT_OF_MEMORY,
            "the Job ran out of memory; raise spec.optimization.resources.limits.memory",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return JobError(
            ExitCode.OUT_OF_RESOURCES,
            Reason.OUT_OF_DISK,
            "the Job ran out of disk; raise spec.optimization.resources.limits[ephemeral-storage] or free the"
            " node's disk",
        )
    # before it is cut: part of a secret is not recognized
    first_line = (redact_known(str(error)).splitlines() or [""])[0][:300]
    return JobError(
        ExitCode.RETRYABLE,
        Reason.INTERNAL_ERROR,
        f"{type(error).__name__}: {first_line}; the Job's log has the traceback",
    )


def parse_task(text: str | None) -> AnyTask:
    """The task from the environment; raises JobError (TaskInvalid)."""
    if not text:
        raise bad_input(
            Reason.TASK_INVALID,
            f"the environment variable {TASK_ENV} is empty; Jobs are started by the operator, not by hand",
        )
    try:
        task: AnyTask = TypeAdapter(Task).validate_json(text)
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, e['loc']))}: {e['msg']}"
            for e in error.errors(include_input=False, include_url=False)
        )
        raise bad_input(
            Reason.TASK_INVALID,
            f"{TASK_ENV}: {problems}; are the operator and the Job's image of the same version?",
        ) from None
    return task


def wrong_program(task: AnyTask, program: str) -> JobError:
    """For a program that was given the task of another one."""
    return bad_input(Reason.TASK_INVALID, f"{TASK_ENV}: the task {task.task} belongs to python -m {program}")


def execute(runner: Runner, text: str | None, progress: log.Progress) -> tuple[ExitCode, TaskResult]:
    """Run the task. Every outcome, an exception too, becomes a code and a result."""
    try:
        result, code = runner(parse_task(text), progress), ExitCode.OK
    except JobError as error:
        code, result = error.code, error.result()
        log.LOGGER.error(error.message, extra={"reason": error.reason, "code": int(error.code)})
    except BaseException as error:  # the boundary of the process
        log.LOGGER.exception("unexpected error")
        wrapped = _unexpected(error)
        code, result = wrapped.code, wrapped.result()
    return code, result.model_copy(
        update={"message": redact_known(result.message), "seconds": result.seconds or dict(progress.seconds)}
    )


def write_result(result: TaskResult) -> None:
    """Write the termination message. Where it cannot be written (a run by hand), log that."""
    path = Path(os.environ.get(TERMINATION_LOG_ENV, TERMINATION_LOG))
    encoded = encode(result)
    try:
        path.write_bytes(encoded)
    except OSError as error:
        log.LOGGER.warning(
            "cannot write the termination message", extra={"path": str(path), "error": str(error)}
        )
    log.say("result", result=encoded.decode())


def main(runner: Runner) -> int:
    """Run the task of this process's environment; returns the exit code. SIGTERM ends the process
    within a second, code RETRYABLE; the limit of ``TIMEOUT_ENV`` (seconds) ends it with code
    TIMEOUT.
    """
    log.setup()
    progress = log.Progress()
    outcome: list[tuple[ExitCode, TaskResult]] = []
    done = threading.Event()

    def work() -> None:
        try:
            outcome.append(execute(runner, os.environ.get(TASK_ENV), progress))
        finally:
            done.set()

    def end(code: ExitCode, reason: str, message: str) -> None:
        write_result(TaskResult(reason=reason, message=message, seconds=dict(progress.seconds)))
        os._exit(code)  # not sys.exit: the task's thread may be inside a long native call

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        end(
            ExitCode.RETRYABLE, "Terminated", "the Job received SIGTERM before it was done; it will run again"
        )

    previous = signal.signal(signal.SIGTERM, terminate)
    limit = float(os.environ.get(TIMEOUT_ENV, "inf"))
    threading.Thread(target=work, name="task", daemon=True).start()
    begun = time.monotonic()
    beats = iter(_HEARTBEATS)
    wait = next(beats)
    while not done.wait(max(0.0, min(wait, limit - (time.monotonic() - begun)))):
        if time.monotonic() - begun >= limit:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            text = (
                f"not done within {limit:g} s: {progress.describe()}; raise the limit (of prepare:"
                " spec.optimization.timeout), or ask for less"
            )
            end(ExitCode.TIMEOUT, "DeadlineExceeded", text)
        progress.heartbeat()
        wait = next(beats, _HEARTBEATS[-1])
    # the result is being written: Terminated must not replace it any more
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code, result = outcome[0]
    write_result(result)
    signal.signal(signal.SIGTERM, previous)
    return int(code)
