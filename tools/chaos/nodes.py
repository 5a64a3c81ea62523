"""Nodes that reboot, and nodes that are emptied one after the other.

The sandbox has two: stable stays on the plain one, and the canary is sent to the GPU node, so that
each side has a node of its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from chaos.arena import METRICS, Arena, Subject
from chaos.traffic import EMPTIED, Outage, Window
from modelrollout.api import names
from sandbox import namespaces
from sandbox.configs import GPU, node_name
from sandbox.paths import State
from sandbox.slots import NODES

REBOOTED = "gpu"
OFF_SECONDS = 4.0
# Until its kubelet is back it is unknown that the pods are gone; else the node controller does
# after 50 s.
UNKNOWN_SECONDS = 60.0
WEIGHED_SECONDS = 5.0  # the operator takes their traffic away within this long
# A canary with one pod has no disruption budget, which could only block drains: it goes at once.
EMPTIED_SECONDS = 5.0
DRAIN_SECONDS = 240
TOLERATED = [{"key": GPU, "operator": "Exists", "effect": "NoSchedule"}]


def send_canaries_away(arena: Arena) -> None:
    """The next versions run on the GPU node. They are not judged by errors, since a node that
    reboots is errors, and a version that fails all its requests is rolled back, as it must be.
    """
    for subject in arena.subjects:
        subject.serving = {
            "nodeSelector": {"kubernetes.io/hostname": node_name(REBOOTED)},
            "tolerations": TOLERATED,
        }
        subject.metrics = ("accuracy",)


def let_run_anywhere(arena: Arena) -> None:
    """Stable and the next versions may run on each node."""
    for subject in arena.subjects:
        subject.serving = {"tolerations": TOLERATED}
        arena.replace_stable(subject)


def as_before(arena: Arena) -> None:
    for subject in arena.subjects:
        subject.serving, subject.metrics = {}, tuple(METRICS)


def reboot(arena: Arena, subject: Subject) -> None:
    """Kubelet, containerd and every process of the node's pods are killed; the former two are
    started again.
    """
    start = time.time()
    for each in arena.subjects:
        revision = arena.candidate(each)
        each.outages.append(Outage(start, revision, False, start, WEIGHED_SECONDS, UNKNOWN_SECONDS))
    state = arena.box.state
    parts = (f"containerd-{REBOOTED}", f"kubelet-{REBOOTED}")  # the kubelet ends without containerd
    try:
        for part in reversed(parts):
            arena.stop_part(part)
        # shims first: what they saw of the ends of their containers a reboot would lose
        for number in (
            *_shims(state, REBOOTED),
            *namespaces.cgroup_processes(f"{state.cgroup}/{REBOOTED}"),
        ):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(OFF_SECONDS)
    finally:
        for part in parts:
            arena.start_part(part)


def _shims(state: State, node: str) -> Iterator[int]:
    """Processes that containerd of that node has started for its containers."""
    socket = str(state.containerd(node)).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if b"containerd-shim" in words[0] and socket in words:
                    yield int(entry.name)


def consolidate(arena: Arena, subject: Subject) -> None:
    """One node after the other is drained of model servers, and may be used again."""
    servers = f"--pod-selector={names.LABEL_COMPONENT}={names.COMPONENT_SERVER}"
    for node in map(node_name, NODES):
        start = time.time()
        for each in arena.subjects:
            each.windows.append(Window(start, start + EMPTIED_SECONDS, EMPTIED))
        drain = ("drain", node, servers, "--delete-emptydir-data", f"--timeout={DRAIN_SECONDS}s")
        try:
            arena.cluster.kubectl(*drain, timeout=DRAIN_SECONDS + 20)
        finally:
            arena.cluster.kubectl("uncordon", node)
