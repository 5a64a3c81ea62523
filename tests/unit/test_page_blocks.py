"""What a reader copies from a page works: each YAML block is checked as what it is. The API server
and Helm check them in tests/integration.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from demo import target
from modelrollout.cli.manifests.documents import Document
from modelrollout.cli.manifests.form import as_sent, wrong_form
from modelrollout.cli.manifests.validate import findings
from tests import page_blocks
from tests.page_blocks import (
    CHART,
    OTHERS,
    ROOT,
    Block,
    Sort,
    blocks,
    chart_schema,
    laid_over,
    of_sort,
    pages,
)


def name(block: Block) -> str:
    return block.name


def structural(schema: dict[str, Any]) -> dict[str, Any]:
    """The chart's schema in the form that definitions have: of a type or nothing, the type. What
    may be of several types is left to Helm (tests/integration/test_page_blocks.py).
    """
    made = {key: structural(value) if isinstance(value, dict) else value for key, value in schema.items()}
    if isinstance(kinds := schema.get("type"), list):
        made["type"], *others = (kind for kind in kinds if kind != "null")
        if others:
            return {"description": made["description"]}
    return made


def given(values: dict[str, Any]) -> dict[str, Any]:
    """Without what is null, which for Helm is not there."""
    return {k: given(v) if isinstance(v, dict) else v for k, v in values.items() if v is not None}


def test_every_block_is_something_that_is_checked_or_listed_with_a_reason() -> None:
    found = blocks()
    assert {block.page for block in found} >= {"README.md", "docs/tutorial/first-rollout.md"}
    assert [block.name for block in found if block.sort is None] == []
    assert {block.key for block in found if block.sort is Sort.OTHER} == set(OTHERS)
    assert all(OTHERS.values()) and len(OTHERS) < len(found) / 7, "the list is short"


@pytest.mark.parametrize("block", of_sort(Sort.OBJECTS, Sort.FRAGMENT), ids=name)
def test_objects_and_fragments_are_valid(block: Block) -> None:
    documents = [Document(block.name, made) for made in block.objects()]
    assert findings(documents, []) == []


@pytest.mark.parametrize("block", of_sort(Sort.VALUES), ids=name)
def test_values_are_what_the_schema_of_the_chart_takes(block: Block) -> None:
    schema = structural(chart_schema())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    for more in (yaml.safe_load((CHART / "ci" / "default-values.yaml").read_text()), block.documents[0]):
        values = laid_over(values, more)
    values = as_sent(schema, given(values))
    assert list(wrong_form(schema, values, "values")) == []


def test_the_target_file_of_the_demo_is_one(tmp_path: Path) -> None:
    (block,) = (b for b in of_sort(Sort.OTHER) if b.page == "docs/how-to/demo.md")
    (tmp_path / "target.yaml").write_text(block.text)
    read = target.from_file(tmp_path / "target.yaml", None, None, "registry.example.com/models")
    assert read.gateway.name == "public"


def test_what_looks_like_yaml_is_marked_as_yaml() -> None:
    """Otherwise no test would see it."""
    unmarked = [
        f"{page}: {text.splitlines()[0]}"
        for page in pages()
        for language, text in re.findall(
            r"^```(\w*)\n(.*?)^```", (ROOT / page).read_text(), flags=re.S | re.M
        )
        if not language and re.match(r"(apiVersion|kind|spec|rollout|serving|traffic):", text)
    ]
    assert unmarked == []


@pytest.mark.parametrize(
    ("text", "sort"),
    [
        ("rollout: {bake: 10m}\n", Sort.FRAGMENT),
        ("spec: {limits: {gpus: 3}}\n", Sort.FRAGMENT),
        ("stores: []\n", Sort.VALUES),
        ("kind: RolloutPolicy\nmetadata: {name: all}\n", None),
        ("steps: []\n", None),
        ("- a\n", None),
    ],
)
def test_a_block_is_what_its_fields_say(text: str, sort: Sort | None) -> None:
    assert Block("README.md", 1, text).sort is sort


def test_a_wrong_fragment_is_found() -> None:
    block = Block("README.md", 1, "rollout: {canary: {steps: [{weigth: 5}]}}\n")
    (line,) = findings([Document(block.name, made) for made in block.objects()], [])
    assert "weigth" in line and page_blocks.smallest("ModelDeployment")["kind"] == "ModelDeployment"
