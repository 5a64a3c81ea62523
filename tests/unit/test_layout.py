"""The layout of the repository: a source root that is no package, layers that stay apart,
generated files that are current.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from demo import target
from sandbox import build_images

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "operator" / "modelrollout"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """In the project's root, with the package importable."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "operator")}
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_the_source_root_is_no_package() -> None:
    """With operator/__init__.py the project's root would shadow the standard library's operator:
    pytest and json.tool break.
    """
    assert not (ROOT / "operator" / "__init__.py").exists()
    import operator

    assert operator.__file__ is None or not operator.__file__.startswith(str(ROOT))


def test_the_projects_root_shadows_nothing() -> None:
    """``-c`` puts the working directory first, as ``python -m`` does."""
    told = run("-c", "import operator, json.tool; print(operator.add(1, 2))")
    assert told.stdout.strip() == "3", told.stderr


def test_no_module_is_called_operator() -> None:
    assert [p for p in (ROOT / "operator").rglob("operator*") if p.stem == "operator"] == []


def test_layers_stay_apart() -> None:
    """In a process of its own: import-linter disables all loggers of this one."""
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    checked = run("-c", code)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_state_machine_reads_no_clock_and_does_no_io() -> None:
    forbidden = (
        "import asyncio",
        "import time",
        "datetime.now",
        "utcnow",
        "import random",
        "import os",
        "open(",
        "await ",
    )
    for path in [
        *(PACKAGE / "rollout").rglob("*.py"),
        *(PACKAGE / "resources").rglob("*.py"),
        *(PACKAGE / "traffic").rglob("*.py"),
    ]:
        text = path.read_text()
        assert not [word for word in forbidden if word in text], path


def test_crds_are_what_the_types_say() -> None:
    checked = run("-m", "modelrollout.crdgen", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_pages_on_reasons_are_what_the_enumeration_says() -> None:
    checked = run("-m", "modelrollout.reasonsgen", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_pages_on_fields_and_commands_are_what_the_code_says() -> None:
    checked = run("-m", "hack.reference", "--check")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_a_flavour_of_the_optimizer_has_all_that_every_job_needs() -> None:
    """It mostly stands on the layers of the others, and what is in both must be of one version."""
    flavours = re.findall(
        r"^FROM (?:jobs|\$\{TORCH_BASE\}) AS (\w+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE
    )
    assert {*build_images.FLAVOURS, *target.FLAVOURS} < set(flavours), (
        "the sandbox and the tests ask for targets that there are"
    )
    shared = set((ROOT / "requirements" / "job.txt").read_text().splitlines())
    for flavour in set(flavours) - {"optimizer"}:
        assert shared <= set((ROOT / "requirements" / f"{flavour}.txt").read_text().splitlines()), flavour


@pytest.mark.parametrize("page", ["explanation/failures-elsewhere.md", "explanation/threat-model.md"])
def test_what_is_said_to_be_tested_is(page: str) -> None:
    """Each failure of others, and each boundary, names the tests that hold it."""
    told = re.findall(r"`(test_\w+)`", (ROOT / "docs" / page).read_text())
    sources = "\n".join(p.read_text() for p in (ROOT / "tests").rglob("test_*.py"))
    assert told and [name for name in told if not re.search(rf"def {name}\(", sources)] == []


def test_two_test_files_of_one_name_are_collected_together(tmp_path: Path) -> None:
    """`python -m pytest tests` is one process, and folders of tests mirror each other."""
    for folder in ("unit", "integration"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "test_one_name.py").write_text(f"def test_{folder}() -> None: ...\n")
    options = ("-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--collect-only")
    collected = run("-m", "pytest", *options, str(tmp_path))
    assert collected.returncode == 0 and "2 tests collected" in collected.stdout, collected.stdout


def test_archives_are_unpacked_as_every_python_that_is_asked_for_can() -> None:
    """``extract(filter=...)`` came with 3.11.4, and Debian 12 has 3.11.2: the demo ended there at
    its data.
    """
    sources = [p for package in ("operator", "tools") for p in (ROOT / package).rglob("*.py")]
    assert [p.name for p in sources if re.search(r"\.extract(all)?\([^)]*filter=", p.read_text())] == []
