"""Operators under test: local processes, which a supervisor restarts as the kubelet does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from sandbox.shell import free_ports

BACKOFF_SECONDS = 1.0  # after an end of its own; the kubelet begins at 10 s


class OperatorProcess:
    """``modelrollout run`` against a proxy. A restarted process has the same name in the Lease, so
    that it need not wait for it.
    """

    def __init__(
        self, name: str, server: str, token: str, config: Path, folder: Path, lease_namespace: str
    ) -> None:
        self.name = name
        self.kills = 0
        # Unix time and exit code of the ends that no test caused
        self.own_ends: list[tuple[float, int]] = []
        self._log = folder / f"operator-{name}.log"
        kubeconfig = folder / f"kubeconfig-{name}.json"
        kubeconfig.touch(mode=0o600)
        kubeconfig.write_text(json.dumps(_kubeconfig(server, token)))
        # fmt: off
        self._command = [
            sys.executable, "-m", "modelrollout.cli.main", "run", "--config", str(config), "--kubeconfig",
            str(kubeconfig),
            "--identity", f"chaos-{name}", "--lease-namespace", lease_namespace, "--health-port",
            *map(str, free_ports(1)),
        ]
        # fmt: on
        self.environment: dict[str, str] = {}  # of the next lives, beside the usual one
        self._process: subprocess.Popen[bytes] | None = None
        self._restarts = False
        self._expected = False  # that the present life ends
        self._resume_at = 0.0
        self._lock = threading.Lock()
        self._supervisor: threading.Thread | None = None

    def start(self) -> None:
        """Begin, and begin again after each end until ``stop``."""
        with self._lock:
            self._restarts = True
            self._spawn()
        self._supervisor = threading.Thread(target=self._supervise, name=f"operator-{self.name}", daemon=True)
        self._supervisor.start()

    def kill(self, away: float = 0.0) -> None:
        """SIGKILL now; the next life begins after ``away`` seconds."""
        with self._lock:
            self._resume_at = time.monotonic() + away
            if self._process and self._process.poll() is None:
                self._expected = True
                self.kills += 1
                os.kill(self._process.pid, signal.SIGKILL)

    def restart(self) -> None:
        """SIGTERM, as a rolling update sends it; returns once it has ended, and the next life
        begins at once.
        """
        with self._lock:
            process = self._process
            if process and process.poll() is None:
                self._expected = True
                process.terminate()
        if process:
            process.wait(20)

    @property
    def pid(self) -> int | None:
        """Of the present life."""
        process = self._process
        return process.pid if process and process.poll() is None else None

    def pause(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """SIGTERM, which gives the Lease back, and no further life."""
        with self._lock:
            self._restarts = False
            process = self._process
        if process and process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
        if self._supervisor:
            self._supervisor.join(10)

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            if self._process and self._process.poll() is None:
                os.kill(self._process.pid, number)

    def _spawn(self) -> None:
        self._expected = False
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, **self.environment},
            )

    def _supervise(self) -> None:
        while True:
            process = self._process
            assert process is not None
            code = process.wait()
            with self._lock:
                if not self._restarts:
                    return
                if not self._expected:
                    self.own_ends.append((time.time(), code))
                    self._resume_at = max(self._resume_at, time.monotonic() + BACKOFF_SECONDS)
            while (left := self._resume_at - time.monotonic()) > 0:
                time.sleep(min(left, 0.5))
            with self._lock:
                if not self._restarts:
                    return
                self._spawn()


def _kubeconfig(server: str, token: str) -> dict[str, object]:
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "proxy", "cluster": {"server": server}}],
        "users": [{"name": "operator", "user": {"token": token}}],
        "contexts": [{"name": "chaos", "context": {"cluster": "proxy", "user": "operator"}}],
        "current-context": "chaos",
    }
