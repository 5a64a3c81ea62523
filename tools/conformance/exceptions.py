"""Faults that are not ours to mend, each with its reason."""

from __future__ import annotations

# (set, name, step): why
EXCEPTIONS: dict[tuple[str, str, str], str] = {}
