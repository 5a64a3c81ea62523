"""The clock that chaos sets, with the real libfaketime."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from chaos import clock
from chaos.arena import Arena, Subject

pytestmark = pytest.mark.sandbox

LOOK = "import time; print(time.time(), time.monotonic())"


def test_the_wall_clock_alone_jumps(tmp_path: Path) -> None:
    operator = SimpleNamespace(environment=dict[str, str](), restart=lambda: None)
    arena: Any = SimpleNamespace(folder=tmp_path, operator=operator)
    clock.begin(cast(Arena, arena))
    clock.jump(clock.FORWARD)(arena, cast(Subject, None))
    wall, monotonic = (
        float(word)
        for word in subprocess.run(
            [sys.executable, "-c", LOOK],
            env={**os.environ, **operator.environment},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
    )
    assert wall - time.time() == pytest.approx(clock.FORWARD, abs=5)
    assert monotonic == pytest.approx(time.monotonic(), abs=5)
