"""The pages: every page, file and module that is named exists, links resolve, prose is wrapped."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from modelrollout.api.v1alpha1 import ModelDeploymentStatus, ModelRevisionStatus
from modelrollout.api.v1alpha1.policy import RolloutPolicyStatus
from modelrollout.api.v1alpha1.status import RolloutStatus
from modelrollout.config import DrainConfig, GatewayMetrics, OperatorConfig

ROOT = Path(__file__).resolve().parents[2]
TEXT = {".md", ".py", ".yaml", ".yml", ".txt", ".tpl", ".toml", ".sh", ".cfg", ""}
# Not ours, though it begins with docs/: pages of Triton and Traefik.
ELSEWHERE = ("docs/protocol", "docs/content/")
# what the pages on adding something call what a reader would write
EXAMPLES = {"acme", "mesh", "envoy"}
# The first column of a table: in a table of moves it names what was.
FIRST_CELL = re.compile(r"^\| [^|]* \|", re.MULTILINE)


def files() -> list[Path]:
    """What belongs to the checkout, whether committed already or not."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a checkout of Git")
    return [p for line in listed.stdout.splitlines() if (p := ROOT / line).is_file()]


def pages() -> Iterator[tuple[str, str]]:
    """Each Markdown page with its text, code blocks left out; templates of pages are left out."""
    for path in files():
        if path.suffix == ".md" and path.parent.parent.name != "reasonsgen":
            yield str(path.relative_to(ROOT)), re.sub(r"^```.*?^```", "", path.read_text(), flags=re.S | re.M)


def anchors(page: Path) -> set[str]:
    """The fragments by which headings of a page are linked, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in plain}


def test_every_page_that_is_named_exists() -> None:
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in files()
        if path.suffix in TEXT
        for name in re.findall(r"(?<![\w./-])docs/[\w./-]+\.(?:md|svg)\b", path.read_text(errors="ignore"))
        if not name.startswith(ELSEWHERE) and not (ROOT / name).is_file()
    ]
    assert missing == []


def test_every_relative_link_resolves() -> None:
    broken = []
    for page, text in pages():
        prose = re.sub(r"`[^`]*`", "", text)
        for target, _, fragment in (t.partition("#") for t in re.findall(r"\]\(\s*([^)\s]+)\s*\)", prose)):
            if re.match(r"[a-z]+:", target):
                continue
            linked = (ROOT / page).parent / target if target else ROOT / page
            if not linked.exists() or (fragment and fragment not in anchors(linked)):
                broken.append(f"{page}: {target}#{fragment}")
    assert broken == []


def test_every_module_that_a_page_names_exists() -> None:
    """Pages name modules from the package, from tools/ or from the project's root."""
    roots = [ROOT, ROOT / "operator", ROOT / "operator" / "modelrollout", ROOT / "tools"]
    missing = [
        f"{page}: {name}"
        for page, text in pages()
        for name in re.findall(r"`([a-z_]\w*(?:/[\w-]+)*/(?:\w+\.py)?)`", FIRST_CELL.sub("", text))
        if page.startswith("docs/")
        and not name.startswith("build/")
        and not EXAMPLES.intersection([*name.split("/"), Path(name).stem])
        and not any((root / name).exists() for root in roots)
    ]
    assert missing == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text() + (
        ROOT / "docs" / "contributing" / "README.md"
    ).read_text()
    linked = set(re.findall(r"\]\((?:[\w-]+/)*([\w-]+\.md)", index))
    for path in files():
        if path.is_relative_to(ROOT / "docs") and path.suffix == ".md" and path.parent.name != "design":
            assert path.name == "README.md" or path.name in linked, path


def test_design_notes_have_no_gaps_and_are_listed() -> None:
    folder = ROOT / "docs" / "design"
    index = (folder / "README.md").read_text()
    numbers = sorted(re.findall(r"^\| (?:\[)?(\d{4})", index, re.MULTILINE))
    assert numbers == [f"{n:04}" for n in range(1, len(numbers) + 1)]
    unlisted = [p.name for p in folder.glob("0*.md") if p.name not in index]
    assert unlisted == []


def test_the_examples_of_tests_run() -> None:
    """Those on the page about testing that need nothing from their author."""
    page = (ROOT / "docs" / "contributing" / "testing.md").read_text()
    tests: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, flags=re.S | re.M):
        if "async def" not in block:
            exec(block, tests)
    examples = [function for name, function in tests.items() if name.startswith("test_")]
    assert len(examples) == 2
    for example in examples:
        example()


def test_the_first_change_begins_with_what_the_code_has() -> None:
    """Lines that CONTRIBUTING.md tells a reader to replace."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    replaced = re.findall(r"^   -(?!-)(.*)$", page, re.MULTILINE)
    files_named = ("operator/modelrollout/feedback/items.py", "tests/unit/feedback/test_feedback.py")
    lines = {line for name in files_named for line in (ROOT / name).read_text().splitlines()}
    assert replaced and set(replaced) <= lines


def test_prose_is_wrapped() -> None:
    checked = subprocess.run(
        [sys.executable, "hack/markdown.py", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, f"run python hack/markdown.py:\n{checked.stdout}{checked.stderr}"


@pytest.mark.parametrize(
    ("page", "model"),
    [
        ("status.md", ModelDeploymentStatus),
        ("status.md", RolloutStatus),
        ("status.md", ModelRevisionStatus),
        ("status.md", RolloutPolicyStatus),
        ("configuration.md", OperatorConfig),
    ],
)
def test_every_field_has_its_row(page: str, model: type[BaseModel]) -> None:
    text = (ROOT / "docs" / "reference" / page).read_text()
    names = [field.alias or name for name, field in model.model_fields.items()]
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize(
    ("heading", "model"),
    [
        ("### Fields", ModelDeploymentStatus),
        ("### status.rollout", RolloutStatus),
        ("## ModelRevision", ModelRevisionStatus),
        ("## RolloutPolicy", RolloutPolicyStatus),
    ],
)
def test_no_row_is_of_a_field_that_is_not_there(heading: str, model: type[BaseModel]) -> None:
    text = (ROOT / "docs" / "reference" / "status.md").read_text()
    section = re.split(r"^##", text.split(f"\n{heading}\n", 1)[1], flags=re.M)[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    known = {field.alias or name for name, field in model.model_fields.items()}
    assert named and named <= known, named - known


def test_the_times_of_open_streams_are_those_of_the_configuration() -> None:
    page = " ".join((ROOT / "docs/reference/endpoints.md").read_text().split())
    drain, settle = DrainConfig(), GatewayMetrics().settle_seconds
    signal = drain.pre_stop_seconds
    last = signal + drain.exit_timeout_seconds
    killed = last + drain.margin_seconds
    for words in (
        f"{settle:g} s (`gatewayMetrics.settleSeconds`)",
        f"ends {settle + killed:g} s after it at the latest",
        f"| 0 to {signal} (`drain.preStopSeconds`) |",
        f"| to {last} at most (`drain.exitTimeoutSeconds`: {drain.exit_timeout_seconds}) |",
        f"| to {killed} at most (`drain.marginSeconds`: {drain.margin_seconds}) |",
        f"| {killed} | the pod is killed",
        f"errors begin after {signal} s",
        f"complete within {last} s is not cut off",
    ):
        assert words in page
    values = yaml.safe_load((ROOT / "charts/model-rollout-operator/values.yaml").read_text())
    assert DrainConfig.model_validate(values["drain"]) == drain
    assert values["gatewayMetrics"]["settleSeconds"] == settle


def test_every_metric_of_the_operator_has_its_row() -> None:
    text = (ROOT / "docs" / "reference" / "metrics.md").read_text()
    sources = (ROOT / "operator" / "modelrollout").rglob("*.py")
    names = {n for p in sources for n in re.findall(r'"(modelrollout_[a-z_]+?)(?:_total)?"', p.read_text())}
    assert [name for name in sorted(names) if name not in text] == []


def test_no_page_is_named_that_is_not_in_the_repository() -> None:
    """Notes that only the authors have are no help to a reader."""
    private = re.compile("|".join(f"{name}[.]md" for name in ("DESIGN", "PEERS", "REVIEW", "AUDIT")))
    named = [
        f"{path.relative_to(ROOT)}"
        for path in files()
        if path.suffix in (".py", ".md", ".yaml", ".toml", ".sh") and private.search(path.read_text())
    ]
    assert named == []
