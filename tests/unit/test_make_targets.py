"""The programs behind `make`, in a small form. More are in bench, calibrate, chaos, demo and
sandbox.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from hack import all_targets, phases, pins

ROOT = Path(__file__).resolve().parents[2]


def make(*arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MAKE")}
    return subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_help_lists_every_target_and_each_can_be_run() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (\S+)$", makefile, re.MULTILINE)
    listed = re.findall(r"\x1b\[1m(\S+)", make("help"))
    targets = all_targets.targets(makefile)
    assert sorted(phony) == sorted(listed) == sorted(targets)
    assert "$(MAKE)" not in makefile, "a dry run would run it"
    for target in targets:
        assert make("--dry-run", target), target
    assert set(targets) >= {*all_targets.ROOT_NEEDED, *all_targets.LAST}


def test_the_sandbox_ends_last() -> None:
    order = all_targets.targets((ROOT / "Makefile").read_text())
    assert order[-len(all_targets.LAST) :] == list(all_targets.LAST)
    assert order.index("demo") < order.index("sandbox-down")


def test_a_target_that_fails_is_named_with_its_log(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text("good:\n\t@echo fine\nbad:\n\t@echo broken; false\n")
    assert all_targets.run_target("good", tmp_path, tmp_path)[1] == "ok"
    _, result = all_targets.run_target("bad", tmp_path, tmp_path)
    assert result.startswith("FAILED") and str(tmp_path / "bad.log") in result
    assert "broken" in (tmp_path / "bad.log").read_text()


def test_the_table_shows_phases_and_long_steps() -> None:
    done = phases.Phase("sandbox up", 600, True, [("build kube", 400.0), ("start etcd", 0.5)])
    failed = phases.run_phase("static checks", lambda: 1)
    lines = phases.table([failed, done], "cold", 660).splitlines()
    assert "cold" in lines[1]
    assert [line.split()[-1] for line in lines[2:4]] == ["FAILED", "ok"]
    assert lines[4].split() == ["build", "kube", "6.7"]
    assert lines[-1].split() == ["in", "all", "11.0"]


def test_the_cache_is_cold_where_nothing_was_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert phases.cache_state() == "cold"


def test_pins_are_written_for_every_image_and_for_development(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a pip that resolves to one package."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "requirements").mkdir()
    report = '{"install": [{"metadata": {"name": "Numpy", "version": "2.4.0"}}]}'
    monkeypatch.setattr(pins, "ROOT", tmp_path)
    monkeypatch.setattr(
        pins.subprocess, "run", lambda *a, **k: subprocess.CompletedProcess(a, 0, stdout=report)
    )
    pins.main()
    written = {path.name: path.read_text() for path in (tmp_path / "requirements").iterdir()}
    assert written == dict.fromkeys(
        (path.name for path in (ROOT / "requirements").glob("*.txt")), "numpy==2.4.0\n"
    )


CHART = Path("charts", "model-rollout-operator", "Chart.yaml")
BUILDER = """#!/bin/sh
[ ! -e "$(dirname "$0")/broken" ] || { echo "no space left" >&2; exit 3; }
echo "localhost/$6@sha256:0 from $5 of $(cat "$7/CHART")"
""".replace("CHART", str(CHART))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A repository of two commits, the first with a tag, with the script, and a builder that says
    what it would build.
    """
    repository = tmp_path / "repository"
    (repository / "hack").mkdir(parents=True)
    shutil.copy(ROOT / "hack" / "at-commit.sh", repository / "hack")
    (tmp_path / "python").write_text(BUILDER)
    (tmp_path / "python").chmod(0o755)
    git(repository, "init", "--quiet")
    (repository / CHART).parent.mkdir(parents=True)
    for version in ("1", "2"):
        (repository / CHART).write_text(version)
        git(repository, "add", "-A")
        git(repository, "commit", "--quiet", "-m", version)
        git(repository, "tag", f"v{version}")
    return repository


def git(repository: Path, *arguments: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.invalid")
    return subprocess.run(
        ["git", *identity, *arguments], cwd=repository, capture_output=True, text=True, check=True
    ).stdout.strip()


def at_commit(repository: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script in the folder beside the clone."""
    python = repository.parent / "python"
    return subprocess.run(
        [repository / "hack" / "at-commit.sh", *arguments],
        cwd=repository.parent,
        env=os.environ | {"PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("commit", ["HEAD~1", "v1"])
@pytest.mark.parametrize("absolute", [True, False])
def test_an_earlier_commit_is_checked_out_and_built(
    clone: Path, tmp_path: Path, commit: str, absolute: bool
) -> None:
    first = git(clone, "rev-parse", "HEAD~1")
    done = at_commit(clone, commit, str(tmp_path / "old") if absolute else "old")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"chart {tmp_path / 'old' / CHART.parent}",
        *(
            f"{target} localhost/modelrollout-{target}-{first[:12]}@sha256:0 from {target} of 1"
            for target in ("operator", "optimizer")
        ),
    ]
    assert (tmp_path / "old" / CHART).read_text() == "1" and (clone / CHART).read_text() == "2"


@pytest.mark.parametrize("arguments", [(), ("v1",), ("v1", "old", "more")])
def test_too_few_or_too_many_arguments_are_told_the_usage(clone: Path, arguments: tuple[str, ...]) -> None:
    done = at_commit(clone, *arguments)
    assert (done.returncode, "usage:" in done.stderr, done.stdout) == (2, True, "")


def test_what_cannot_be_checked_out_says_the_remedy(clone: Path, tmp_path: Path) -> None:
    shallow, archive = tmp_path / "shallow", tmp_path / "archive"
    git(tmp_path, "clone", "--quiet", "--depth=1", f"file://{clone}", str(shallow))
    shutil.copytree(clone, archive, ignore=shutil.ignore_patterns(".git"))
    (tmp_path / "there").mkdir()
    for repository, commit, folder, remedy in (
        (shallow, git(clone, "rev-parse", "v1"), "old", "git fetch --unshallow --tags"),
        (clone, "v0.1.0", "old", "git fetch --tags"),
        (clone, "0123456789", "old", "git fetch --tags"),
        (archive, "v1", "old", "clone the repository"),
        (clone, "v1", "there", "git worktree remove"),
    ):
        refused = at_commit(repository, commit, folder)
        assert (refused.returncode, refused.stdout) == (1, "") and remedy in refused.stderr, refused.stderr
        assert refused.stderr.startswith("at-commit: ") and refused.stderr.count("\n") == 1
    (tmp_path / "python").unlink()
    without_environment = at_commit(clone, "v1", "old")
    assert without_environment.returncode == 1 and "make venv" in without_environment.stderr
    assert not (tmp_path / "old").exists() and len(git(clone, "worktree", "list").splitlines()) == 1


def test_after_a_build_that_failed_the_same_command_works(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "broken").touch()
    failed = at_commit(clone, "v1", "old")
    assert failed.returncode != 0 and "no space left" in failed.stderr and not (tmp_path / "old").exists()
    (tmp_path / "broken").unlink()
    assert at_commit(clone, "v1", "old").returncode == 0


def test_coverage_counts_the_product_and_has_a_floor(tmp_path: Path) -> None:
    """What `make coverage` reads from pyproject.toml, on one small test."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--cov=operator/modelrollout",
            "tests/unit/api/test_wildcards.py",
        ],
        cwd=ROOT,
        env=os.environ | {"COVERAGE_FILE": str(tmp_path / "coverage")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0 and "operator/modelrollout/api/v1alpha1" in done.stdout
    assert re.search(r"Required test coverage of 9\d(\.\d+)?% not reached", done.stdout + done.stderr)
