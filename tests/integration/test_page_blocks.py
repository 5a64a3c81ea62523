"""What a reader copies from a page is taken: objects and fragments by a real API server, values by
Helm, and what comes of them by the operator. Offline checks are in tests/unit/test_page_blocks.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from modelrollout.config import load_config
from tests.integration.helm import CHART, TEMPLATE, helm
from tests.integration.own_group import Kubectl
from tests.page_blocks import Block, Sort, of_sort


def name(block: Block) -> str:
    return block.name


@pytest.mark.sandbox
@pytest.mark.parametrize("block", of_sort(Sort.OBJECTS, Sort.FRAGMENT), ids=name)
def test_the_api_server_takes_it(kubectl: Kubectl, block: Block) -> None:
    for made in block.objects():
        made["metadata"].pop("namespace", None)
        kubectl.ok("create", "--dry-run=server", "--validate=strict", "-f", "-", body=made)


@pytest.mark.parametrize("block", of_sort(Sort.VALUES), ids=name)
def test_the_chart_and_the_operator_take_it(block: Block, tmp_path: Path) -> None:
    (tmp_path / "values.yaml").write_text(block.text)
    files = (CHART / "ci" / "default-values.yaml", tmp_path / "values.yaml")
    made = yaml.safe_load_all(helm(*TEMPLATE, *(f"--values={file}" for file in files)))
    (configuration,) = (o["data"]["config.yaml"] for o in made if o and "config.yaml" in o.get("data", ()))
    (tmp_path / "config.yaml").write_text(configuration)
    assert load_config(tmp_path / "config.yaml").stores
