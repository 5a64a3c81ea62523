"""The operator under measurement: ``modelrollout run`` as a process, and what Linux says of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from fleet import FleetError
from fleet.objects import OPERATORS
from sandbox.shell import stop, tail

STOP_SECONDS = 15.0
_TICKS = os.sysconf("SC_CLK_TCK")


def operator(config: Path, kubeconfig: Path, health_port: int, identity: str = "fleet") -> list[str]:
    """Its command. A second life has the same identity, and so need not wait for the Lease."""
    return [
        *(sys.executable, "-m", "modelrollout.cli.main", "run"),
        *("--config", str(config), "--kubeconfig", str(kubeconfig), "--health-port", str(health_port)),
        *("--identity", identity, "--lease-namespace", OPERATORS),
    ]


class MeasuredProcess:
    """One program, started and ended by us."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command, self._log = list(command), log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin a life."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """SIGTERM, or SIGKILL where that does not end it."""
        if self._process is not None:
            stop(self._process, STOP_SECONDS)

    def cpu_seconds(self) -> float:
        """Of the present life, user and system time. Raises FleetError where it has ended."""
        fields = self._read("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def resident_mb(self) -> float:
        """Memory now, in MB."""
        return self._memory("VmRSS")

    def peak_mb(self) -> float:
        """The most memory since ``forget_peak``, or since its start, in MB."""
        return self._memory("VmHWM")

    def forget_peak(self) -> None:
        """Let ``peak_mb`` begin anew."""
        (self._folder() / "clear_refs").write_text("5")

    def _memory(self, field: str) -> float:
        lines = self._read("status").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:")) * 1024 / 1e6

    def _read(self, name: str) -> str:
        return (self._folder() / name).read_text()

    def _folder(self) -> Path:
        if self._process is None or self._process.poll() is not None:
            code = None if self._process is None else self._process.returncode
            raise FleetError(
                f"the operator ended with code {code}; {self._log} ends with:\n{tail(self._log)}"
            )
        return Path("/proc") / str(self._process.pid)


class Rest:
    """Tells when a process has come to rest: it takes less than SHARE of a processor for
    SECONDS.
    """

    SHARE, SECONDS = 0.05, 8.0

    def __init__(self, process: MeasuredProcess) -> None:
        self._process = process
        self._looks = [(time.monotonic(), process.cpu_seconds())]

    def since(self) -> float | None:
        """Look again. Since when it has rested (monotonic time), None while it does not."""
        now, used = time.monotonic(), self._process.cpu_seconds()
        self._looks.append((now, used))
        earlier = [look for look in self._looks if look[0] <= now - self.SECONDS]
        if not earlier:
            return None
        at, before = earlier[-1]
        self._looks = [look for look in self._looks if look[0] >= at]
        return at if used - before <= self.SHARE * (now - at) else None
