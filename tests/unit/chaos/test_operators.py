"""The supervisor of operator processes, with a process that does nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from chaos import operators
from chaos.operators import OperatorProcess


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> OperatorProcess:
    monkeypatch.setattr(operators, "BACKOFF_SECONDS", 0.05)
    made = OperatorProcess("first", "http://127.0.0.1:1", "token", tmp_path / "config", tmp_path, "system")
    lives = tmp_path / "lives"
    script = f"import time\nwith open({str(lives)!r}, 'a') as f: f.write('x')\n"
    made._command = [sys.executable, "-c", script + "time.sleep(60)"]
    return made


def until(look: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lives(folder: Path) -> int:
    return len((folder / "lives").read_text()) if (folder / "lives").exists() else 0


def test_a_killed_one_lives_again_and_a_stopped_one_does_not(
    process: OperatorProcess, tmp_path: Path
) -> None:
    process.start()
    until(lambda: lives(tmp_path) == 1)
    process.kill()
    until(lambda: lives(tmp_path) == 2)
    process.stop()
    assert (process.kills, process.own_ends, lives(tmp_path)) == (1, [], 2)


def test_an_end_of_its_own_is_counted(process: OperatorProcess, tmp_path: Path) -> None:
    process._command[-1] = process._command[-1].replace(
        "time.sleep(60)", "time.sleep(60 if open(f.name).read() == 'xx' else 0); raise SystemExit(3)"
    )
    process.start()
    until(lambda: lives(tmp_path) == 2)
    process.stop()
    assert [code for _, code in process.own_ends] == [3]
    assert process.kills == 0


def test_a_restart_is_a_next_life_with_its_environment(process: OperatorProcess, tmp_path: Path) -> None:
    process._command[-1] = "import os;" + process._command[-1].replace("'x'", "os.environ.get('CHAOS', 'x')")
    process.start()
    until(lambda: lives(tmp_path) == 1)
    first = process.pid
    process.environment["CHAOS"] = "y"
    process.restart()
    until(lambda: lives(tmp_path) == 2)
    assert process.pid not in (None, first)
    process.stop()
    assert process.pid is None
    assert (tmp_path / "lives").read_text() == "xy"
    assert (process.kills, process.own_ends) == (0, [])


def test_the_credentials_are_for_the_operator_alone(process: OperatorProcess, tmp_path: Path) -> None:
    assert (tmp_path / "kubeconfig-first.json").stat().st_mode & 0o077 == 0
