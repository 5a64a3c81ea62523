"""The frame of a Job: results that fit, secrets that stay, exceptions and SIGTERM that end well."""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelrollout.contract.common import RESULT_LIMIT_BYTES
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.contract.results import MetricResult, Search, SearchPoint, TaskResult
from modelrollout.jobs import log
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.jobs.runner import encode, execute, parse_task
from modelrollout.telemetry.logs import JsonLines
from modelrollout.telemetry.redaction import hide, redact_known

RESOLVE = json.dumps({"task": "resolve", "source": {"uri": "s3://b/k"}})
OPERATOR = str(Path(__file__).parents[3] / "operator")


@given(
    st.text(min_size=1, max_size=100),
    st.text(max_size=6000),
    st.one_of(st.none(), st.text(max_size=4000)),
    st.dictionaries(st.text(max_size=40), st.one_of(st.text(max_size=500), st.integers()), max_size=20),
)
def test_result_always_fits_and_is_valid(
    reason: str, message: str, uri: str | None, extra: dict[str, object]
) -> None:
    encoded = encode(TaskResult(reason=reason, message=message, artifact_uri=uri, extra=extra))
    assert len(encoded) <= RESULT_LIMIT_BYTES
    assert TaskResult.model_validate_json(encoded).reason.startswith(reason[:64])


def test_evidence_outlives_a_long_message() -> None:
    decoded = TaskResult.model_validate_json(
        encode(TaskResult(reason="X", message="ä" * 5000, sha256="a" * 64, extra={"big": "y" * 3000}))
    )
    assert decoded.sha256 == "a" * 64
    assert decoded.message.startswith("ääää")
    assert decoded.message.endswith("...")
    assert len(decoded.message) > 500


@pytest.mark.parametrize("message", [10, 5000])
def test_points_of_a_search_give_way_before_metrics_and_the_last_ones_first(message: int) -> None:
    points = tuple(
        SearchPoint(f"prune-0.{i}-activation+int8-percentile", 10**9 + i, 0.1234, 0.987654, 0.001234, True)
        for i in range(30)
    )
    search = Search(
        objective="Size",
        metric="accuracy",
        before=0.99,
        allowed=0.01,
        chosen=points[0].name,
        tried=40,
        ended="Complete",
        points=points,
    )
    metric = MetricResult(
        name="f1",
        n=9,
        before=0.9,
        after=0.9,
        interval=(0.0, 0.1),
        allowed=0.2,
        verdict="Successful",
        reason="WithinBudget",
    )
    encoded = encode(
        TaskResult(message="m" * message, metrics=(metric,) * 3, search=search, seconds={"a": 1.0})
    )
    decoded = TaskResult.model_validate_json(encoded)
    assert (
        len(encoded) <= RESULT_LIMIT_BYTES
        and len(decoded.metrics) == 3
        and len(decoded.message) >= min(message, 300)
    )
    assert (
        decoded.search
        and 5 < len(decoded.search.points) < 30
        and decoded.search.points == points[: len(decoded.search.points)]
    )
    assert decoded.search.chosen == points[0].name


def test_small_result_is_unchanged() -> None:
    result = TaskResult(message="m", samples=3, seconds={"a": 1.0}, extra={"k": [1]})
    assert TaskResult.model_validate_json(encode(result)) == result


@pytest.mark.parametrize(
    "text",
    [None, "", "{", '{"task": "no-such"}', '{"task": "resolve"}', RESOLVE.replace("}}", '}, "new": 1}')],
)
def test_task_that_is_none(text: str | None) -> None:
    with pytest.raises(JobError) as error:
        parse_task(text)
    assert (error.value.code, error.value.reason) == (ExitCode.BAD_INPUT, "TaskInvalid")


@pytest.mark.parametrize(
    ("raised", "code", "reason"),
    [
        (bad_input("NotOnnx", "no"), ExitCode.BAD_INPUT, "NotOnnx"),
        (KeyError("surprise"), ExitCode.RETRYABLE, "InternalError"),
        (MemoryError(), ExitCode.OUT_OF_RESOURCES, "OutOfMemory"),
        (OSError(errno.ENOSPC, "full"), ExitCode.OUT_OF_RESOURCES, "OutOfDisk"),
        # a library that exits has not done the task
        (SystemExit(0), ExitCode.RETRYABLE, "InternalError"),
    ],
)
def test_exceptions_become_reasons(raised: BaseException, code: ExitCode, reason: str) -> None:
    def runner(*_: object) -> TaskResult:
        raise raised

    actual, result = execute(runner, RESOLVE, log.Progress())
    assert (actual, result.reason) == (code, reason)
    assert result.message


def test_evidence_of_an_error_is_kept() -> None:
    def runner(*_: object) -> TaskResult:
        raise JobError(
            ExitCode.GATE_FAILED, "AccuracyDrop", "worse", TaskResult(accuracy_before=0.9, accuracy_after=0.1)
        )

    code, result = execute(runner, RESOLVE, log.Progress())
    assert code == ExitCode.GATE_FAILED
    assert (result.accuracy_before, result.accuracy_after, result.reason) == (0.9, 0.1, "AccuracyDrop")


def test_secrets_are_neither_logged_nor_returned(caplog: pytest.LogCaptureFixture) -> None:
    secret = hide("s3cr3t-of-this-test")

    def runner(*_: object) -> TaskResult:
        raise RuntimeError(f"cannot sign with {secret}")

    with caplog.at_level(logging.INFO, "modelrollout.job"):
        _, result = execute(runner, RESOLVE, log.Progress())
    assert secret not in result.message
    assert "cannot sign with ***" in result.message
    lines = [JsonLines(redact_known).format(record) for record in caplog.records]
    assert lines
    assert all(secret not in line for line in lines)
    assert "Traceback" in json.loads(lines[-1])["exc_info"]


@pytest.mark.parametrize("write", [str, repr, str.encode, json.dumps])
@pytest.mark.parametrize("secret", ["hunter\nhunter", "hunter's\t\\hunter", 'hunter"hunter', "hunter\xe4s"])
def test_a_secret_is_recognized_however_an_exception_writes_it(
    caplog: pytest.LogCaptureFixture, secret: str, write: Callable[[str], object]
) -> None:
    hide(secret)

    def runner(*_: object) -> TaskResult:
        raise ValueError(f"Invalid header value {write(secret)}")

    with caplog.at_level(logging.INFO, "modelrollout.job"):
        _, result = execute(runner, RESOLVE, log.Progress())
    assert "***" in result.message
    told = [result.message, *(JsonLines(redact_known).format(record) for record in caplog.records)]
    assert not [line for line in told if "hunter" in line]


@pytest.mark.parametrize("text", ["x" * 290 + "s3cr3t-of-this-test-", "first\nsecond-of-this-test"])
def test_no_part_of_a_secret_is_left_where_a_message_is_cut(text: str) -> None:
    hide(text.lstrip("x"))

    def runner(*_: object) -> TaskResult:
        raise ValueError(text)

    _, result = execute(runner, RESOLVE, log.Progress())
    assert "***" in result.message and not re.search("s3cr|first", result.message)


def run_child(body: str, tmp_path: Path, **env: str) -> subprocess.Popen[str]:
    """A Job in a process of its own, whose runner is ``body``."""
    imports = (
        "import sys, time\nfrom modelrollout.jobs.runner import main\n"
        "from modelrollout.contract.results import TaskResult\n"
    )
    code = f"{imports}def run(task, progress):\n{body}\nsys.exit(main(run))"
    variables = {
        **os.environ,
        "PYTHONPATH": OPERATOR,
        "MODELROLLOUT_TASK": RESOLVE,
        "MODELROLLOUT_TERMINATION_LOG": str(tmp_path / "termination"),
        **env,
    }
    return subprocess.Popen([sys.executable, "-c", code], env=variables, stderr=subprocess.PIPE, text=True)


def test_process_writes_result_and_ends_with_the_code(tmp_path: Path) -> None:
    child = run_child("    return TaskResult(sha256='ab')", tmp_path)
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == 0
    assert TaskResult.model_validate_json((tmp_path / "termination").read_bytes()).sha256 == "ab"
    lines = [json.loads(line) for line in stderr.splitlines()]
    assert all(list(line)[:4] == ["ts", "level", "logger", "message"] for line in lines), "as the operator's"


def test_sigterm_ends_a_native_call_at_once(tmp_path: Path) -> None:
    # hashlib's C code holds no bytecode boundary for seconds, as ONNX Runtime does
    body = (
        "    with progress.stage('hash'):\n        import hashlib\n        hashlib.pbkdf2_hmac('sha256',"
        " b'x', b'y', 10**9)\n    return TaskResult()"
    )
    child = run_child(body, tmp_path)
    assert child.stderr is not None
    assert json.loads(child.stderr.readline())["stage"] == "hash"
    time.sleep(0.2)
    begun = time.monotonic()
    child.send_signal(signal.SIGTERM)
    child.wait(timeout=10)
    assert time.monotonic() - begun < 2
    assert child.returncode == ExitCode.RETRYABLE
    assert TaskResult.model_validate_json((tmp_path / "termination").read_bytes()).reason == "Terminated"
    child.stderr.close()


def test_the_limit_for_a_run_ends_a_native_call_and_says_what_took_so_long(tmp_path: Path) -> None:
    body = (
        "    with progress.stage('hash'):\n        import hashlib\n        hashlib.pbkdf2_hmac('sha256',"
        " b'x', b'y', 10**9)\n    return TaskResult()"
    )
    child = run_child(body, tmp_path, MODELROLLOUT_TIMEOUT_SECONDS="1")
    child.communicate(timeout=20)
    assert child.returncode == ExitCode.TIMEOUT
    result = TaskResult.model_validate_json((tmp_path / "termination").read_bytes())
    assert (
        result.reason == "DeadlineExceeded"
        and "stage hash has run for 1 s" in result.message
        and "spec.optimization.timeout" in result.message
    )


def test_long_stage_is_heard_of(tmp_path: Path) -> None:
    child = run_child(
        "    with progress.stage('slow'):\n        progress.update(3, 10)\n        time.sleep(2.4)\n   "
        " return TaskResult()",
        tmp_path,
    )
    _, stderr = child.communicate(timeout=20)
    running = [line for line in map(json.loads, stderr.splitlines()) if line["message"] == "running"]
    assert running
    assert (running[0]["stage"], running[0]["done"], running[0]["total"]) == ("slow", 3, 10)
    result = TaskResult.model_validate_json((tmp_path / "termination").read_bytes())
    assert result.seconds["slow"] >= 2.4


def test_nowhere_to_write_is_only_said(tmp_path: Path) -> None:
    child = run_child(
        "    return TaskResult()", tmp_path, MODELROLLOUT_TERMINATION_LOG=str(tmp_path / "no" / "such")
    )
    _, stderr = child.communicate(timeout=20)
    assert child.returncode == 0
    assert "cannot write the termination message" in stderr
