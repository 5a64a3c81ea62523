"""The sandbox's first process: PID 1 of its own namespaces, parent of every part. When it ends, the
kernel ends the rest.

It obeys commands over a socket and does nothing else: a part that dies stays dead, and `status`
says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox import namespaces
from sandbox.paths import CHECKOUT, State, cache_root

MAX_LOG = 64 * 2**20
KEEP_LOG = 4 * 2**20


@dataclass
class Process:
    """One part as it runs, or as it ended."""

    pid: int = 0
    started: float = 0.0
    starts: int = 0
    exit: int | None = None

    @property
    def running(self) -> bool:
        return self.pid != 0


@dataclass
class Supervisor:
    state: State
    processes: dict[str, Process] = field(default_factory=dict)
    # node -> process that holds its mount namespace
    holders: dict[str, int] = field(default_factory=dict)
    # part being stopped -> when it is killed
    doomed: dict[str, float] = field(default_factory=dict)

    def specs(self) -> dict[str, dict[str, Any]]:
        """Read again on every command, so that `up` can change a part's arguments."""
        parts: dict[str, dict[str, Any]] = json.loads(self.state.parts.read_text())
        return parts

    # -- processes

    def hold(self, node: str) -> int:
        """A process that keeps a node's mount namespace, so that kubelet and containerd share it
        across restarts.
        """
        if node in self.holders:
            return self.holders[node]
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read)
                keep = [self.state.root, cache_root(), CHECKOUT]
                namespaces.private_mounts([k for k in keep if k.exists()], self.state.node(node) / "proc")
                os.write(write, b"ok")
                os.close(write)
                while True:
                    signal.pause()
            except BaseException as error:
                with contextlib.suppress(OSError):
                    os.write(write, str(error).encode())
                os._exit(1)
        os.close(write)
        with os.fdopen(read, "rb") as pipe:
            answer = pipe.read(4096).decode()
        if answer != "ok":
            raise RuntimeError(f"mount namespace of node {node}: {answer or 'no answer'}")
        self.holders[node] = pid
        return pid

    def start(self, name: str) -> None:
        process = self.processes.setdefault(name, Process())
        if process.running:
            return
        spec = self.specs()[name]
        holder = self.hold(spec["node"]) if spec.get("node") else None
        log = os.open(self.state.logs / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.write(log, f"--- start {time.strftime('%H:%M:%S')}: {' '.join(spec['argv'])}\n".encode())
        pid = os.fork()
        if pid == 0:
            try:
                os.setsid()
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
                    signal.signal(number, signal.SIG_DFL)
                null = os.open("/dev/null", os.O_RDONLY)
                os.dup2(null, 0)
                os.dup2(log, 1)
                os.dup2(log, 2)
                if holder is not None:
                    fd = os.open(f"/proc/{holder}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
                    namespaces.setns(fd, namespaces.CLONE_NEWNS)
                os.chdir(self.state.root)
                os.execvpe(spec["argv"][0], spec["argv"], {**os.environ, **spec.get("env", {})})
            except BaseException as error:
                os.write(2, f"cannot start {name}: {error}\n".encode())
                os._exit(127)
        os.close(log)
        process.pid, process.started, process.exit = pid, time.time(), None
        process.starts += 1

    def stop(self, name: str, number: int = signal.SIGTERM) -> None:
        process = self.processes.get(name)
        if process is None or not process.running:
            return
        os.kill(process.pid, number)
        os.kill(process.pid, signal.SIGCONT)
        self.doomed.setdefault(name, time.monotonic() + float(self.specs().get(name, {}).get("grace", 10)))

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for name, process in self.processes.items():
                if process.pid == pid:
                    process.pid, process.exit = 0, os.waitstatus_to_exitcode(status)
                    self.doomed.pop(name, None)
                    self.say(f"{name} ended with {process.exit}")

    def tick(self) -> None:
        now = time.monotonic()
        for name, deadline in list(self.doomed.items()):
            if now > deadline:
                self.say(f"{name} did not end in time: killed")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.processes[name].pid, signal.SIGKILL)
                del self.doomed[name]
        self.bound_logs()

    def bound_logs(self) -> None:
        """Parts append to their logs: the end of a log that grew too big is kept in a file beside
        it.
        """
        for log in self.state.logs.glob("*.log"):
            with contextlib.suppress(OSError):
                if log.stat().st_size > MAX_LOG and not log.name.startswith("audit"):
                    with log.open("rb") as f:
                        f.seek(-KEEP_LOG, os.SEEK_END)
                        log.with_suffix(".log.1").write_bytes(f.read())
                    os.truncate(log, 0)

    # -- commands

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        name = request.get("part", "")
        match request.get("op"):
            case "start":
                self.start(name)
            case "stop":
                self.stop(name, int(request.get("signal", signal.SIGTERM)))
            case "signal":
                if not self.processes[name].running:
                    raise RuntimeError(f"{name} does not run")
                os.kill(self.processes[name].pid, int(request["signal"]))
            case "status":
                return {
                    "ok": True,
                    "parts": {
                        n: {
                            "running": p.running,
                            "pid": p.pid,
                            "starts": p.starts,
                            "exit": p.exit,
                            "started": p.started,
                        }
                        for n, p in self.processes.items()
                    },
                    "nodes": self.holders,
                }
            case other:
                raise RuntimeError(f"unknown operation {other!r}")
        return {"ok": True}

    def serve(self) -> None:
        self.state.socket.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(str(self.state.socket))
        self.state.socket.chmod(0o600)
        server.listen(16)
        server.setblocking(False)
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        select = selectors.DefaultSelector()
        select.register(server, selectors.EVENT_READ)
        select.register(wake_read, selectors.EVENT_READ)
        while True:
            for key, _ in select.select(timeout=1):
                if key.fileobj is server:
                    self.talk(server)
                else:
                    with contextlib.suppress(BlockingIOError):
                        os.read(wake_read, 4096)
            self.reap()
            self.tick()

    def talk(self, server: socket.socket) -> None:
        """One request, one answer, one connection."""
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(5)
                text = connection.makefile().readline()
                try:
                    reply = self.answer(json.loads(text))
                except Exception as error:
                    reply = {"ok": False, "error": f"{type(error).__name__}: {error}"}
                connection.sendall(json.dumps(reply).encode() + b"\n")

    def say(self, line: str) -> None:
        sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
        sys.stderr.flush()


def main() -> None:
    """Join the sandbox's cgroup, take new namespaces, and go on as their first process, detached
    from the caller.
    """
    state = State(Path(sys.argv[1]))
    os.setsid()
    namespaces.join_cgroup(f"{state.cgroup}/host")
    namespaces.unshare(
        namespaces.CLONE_NEWNS | namespaces.CLONE_NEWPID | namespaces.CLONE_NEWNET | namespaces.CLONE_NEWUTS
    )
    pid = os.fork()
    if pid:  # the starter reads the number of the new init in this machine's numbering
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        os._exit(0)
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open(state.logs / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for target, source in ((0, null), (1, log), (2, log)):
        os.dup2(source, target)
    namespaces.mount("none", "/", None, namespaces.MS_REC | namespaces.MS_PRIVATE)
    namespaces.mount(
        "proc", "/proc", "proc", namespaces.MS_NOSUID | namespaces.MS_NODEV | namespaces.MS_NOEXEC
    )
    namespaces.sethostname("modelrollout-sandbox")
    Supervisor(state).serve()


if __name__ == "__main__":
    main()
