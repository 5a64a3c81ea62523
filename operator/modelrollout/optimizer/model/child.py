"""The environment of a process that opens an untrusted file: none of the Job's own variables, which
may be Secrets.
"""

from __future__ import annotations

import os
import sys


def bare_environment(home: str) -> dict[str, str]:
    """With ``home`` as the folder to write to, and the packages that this process finds."""
    inherited = {name: os.environ[name] for name in ("PATH", "OMP_NUM_THREADS") if name in os.environ}
    packages = os.pathsep.join(path for path in sys.path if path)
    return inherited | {"PYTHONPATH": packages, "HOME": home, "TMPDIR": home}
