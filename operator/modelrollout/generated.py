"""Committed files that a program writes: written, or compared with what it would write."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path


def put(files: Mapping[Path, str], *, check: bool, complaint: str) -> int:
    """Write the files, or with ``check`` say of each that differs the ``complaint``, after its name
    on standard error. The exit code: 1 where one differs.
    """
    if not check:
        for path, text in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return 0
    drifted = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
    for path in drifted:
        sys.stderr.write(f"{path} {complaint}\n")
    return 1 if drifted else 0
