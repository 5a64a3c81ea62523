"""How a program that is measured is started."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Launch:
    """``folder`` is for its files; ``name``: of this one among several; ``config``: fields of its
    configuration beside those of the fleet.
    """

    folder: Path
    kubeconfig: Path
    prometheus: str  # a URL
    name: str
    config: Mapping[str, object]
