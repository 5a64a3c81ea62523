"""Running other programs: output goes to a log, failure is one exception that knows that log."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path


class CommandError(RuntimeError):
    """A program failed; `log` holds what it said."""

    def __init__(self, argv: Sequence[str], code: int, output: str, log: Path | None) -> None:
        super().__init__(f"{shlex.join(argv[:6])}{' ...' if len(argv) > 6 else ''} ended with code {code}")
        self.output = output
        self.log = log


class WaitError(RuntimeError):
    """Something did not become true in time."""


def run(
    argv: Sequence[str | Path],
    *,
    log: Path | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run to the end; output is appended to `log` or, without one, kept for the error."""
    words = [str(a) for a in argv]
    full = {**os.environ, **(env or {})}
    if log is None:
        done = subprocess.run(
            words,
            env=full,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            raise CommandError(words, done.returncode, done.stdout, None)
        return
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a") as out:
        out.write(f"$ {shlex.join(words)}\n")
        out.flush()
        code = subprocess.run(
            words, env=full, cwd=cwd, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
        ).returncode
    if code:
        raise CommandError(words, code, tail(log), log)


def capture(
    argv: Sequence[str | Path],
    *,
    stdin: str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> str:
    """Run and return standard output."""
    words = [str(a) for a in argv]
    done = subprocess.run(
        words, input=stdin, env={**os.environ, **(env or {})}, cwd=cwd, capture_output=True, text=True
    )
    if done.returncode:
        raise CommandError(words, done.returncode, done.stderr or done.stdout, None)
    return done.stdout


def stop(process: subprocess.Popen[bytes], seconds: float) -> None:
    """SIGTERM, or SIGKILL where that has not ended it after so long; then it has ended."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def free_ports(count: int) -> list[int]:
    """Of loopback, for TCP. All are held until all are found, so that none comes twice."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for s in sockets:
            s.bind(("127.0.0.1", 0))
        return [int(s.getsockname()[1]) for s in sockets]


def tail(path: Path, lines: int = 15) -> str:
    if not path.exists():
        return ""
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - 64 * 1024))
        return "\n".join(f.read().decode(errors="replace").splitlines()[-lines:])


def until(what: str, check: Callable[[], bool], *, timeout: float = 60, interval: float = 0.1) -> None:
    """Wait until `check` is true; connection errors count as not yet."""
    deadline = time.monotonic() + timeout
    last: Exception | None = None
    while time.monotonic() < deadline:
        try:
            if check():
                return
        except (OSError, ValueError, KeyError, CommandError) as error:
            last = error
        time.sleep(interval)
    raise WaitError(f"{what}: not within {timeout:.0f} s" + (f" (last: {last})" if last else ""))
