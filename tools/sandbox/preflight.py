"""What the machine must offer, checked before anything is touched; every refusal says what to
do.
"""

from __future__ import annotations

import os
import platform
import shutil
from pathlib import Path

from sandbox.namespaces import cgroup_hierarchies
from sandbox.paths import State, cache_root, state_root

MIN_FREE_GIB = 10
_CONTROLLERS = {"cpu", "memory", "pids", "cpuset"}


def problems(state: State) -> list[str]:
    """Everything that stands in the way, in words."""
    if platform.system() != "Linux":
        return ["the sandbox needs Linux: on another system, run it in a virtual machine"]
    messages: list[str] = []
    if os.geteuid() != 0:
        messages.append("root is needed (namespaces, mounts, network): run it with sudo -E")
    if not Path("/etc/debian_version").exists():
        messages.append("packages are installed with apt-get: a Debian or Ubuntu machine is needed")
    for name in ("mnt", "net", "pid", "uts"):
        if not Path(f"/proc/self/ns/{name}").exists():
            messages.append(f"the kernel has no {name} namespaces")
    filesystems = Path("/proc/filesystems").read_text().split()
    if "overlay" not in filesystems and not Path("/sys/module/overlay").exists():
        messages.append("the kernel has no overlay file system: modprobe overlay")
    missing = _CONTROLLERS - set(cgroup_hierarchies())
    if missing:
        messages.append(
            f"cgroup controllers are missing: {', '.join(sorted(missing))} (mount /sys/fs/cgroup, or enable"
            " them on the kernel command line)"
        )
    for root in {cache_root(), state_root()}:
        folder = next(p for p in (root, *root.parents) if p.exists())
        free = shutil.disk_usage(folder).free / 2**30
        if free < MIN_FREE_GIB:
            messages.append(
                f"{free:.1f} GiB free at {folder}, {MIN_FREE_GIB} are needed: free some, or set"
                " XDG_CACHE_HOME and XDG_STATE_HOME"
            )
    if len(str(state.socket)) > 100:
        messages.append(
            f"{state.root} is too long for a socket's address: set XDG_STATE_HOME to a shorter path"
        )
    return messages
