"""What this process may use. Imports nothing of ours."""

from __future__ import annotations

import resource
from pathlib import Path

_CGROUP = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def memory_limit() -> int | None:
    """Bytes that this process may use: the container's limit (cgroup v2, then v1) or that of its
    address space; None: none is set.
    """
    limits = [resource.getrlimit(resource.RLIMIT_AS)[0]]
    for path in _CGROUP:
        try:
            text = path.read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            limits.append(int(text))
    # v1 writes "no limit" as a number near 2^63.
    return min((limit for limit in limits if 0 < limit < 1 << 60), default=None)
