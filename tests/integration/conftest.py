"""The API server that the tests talk to."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
import yaml

from modelrollout.kube.client import Kube
from tests.integration.own_group import Kubectl, until_established

ROOT = Path(__file__).parents[2]


@pytest_asyncio.fixture
async def kube() -> AsyncIterator[Kube]:
    kubeconfig = os.environ.get("MODELROLLOUT_KUBECONFIG")
    if not kubeconfig:
        pytest.fail(
            "MODELROLLOUT_KUBECONFIG names no cluster; bring the sandbox up and set it, or deselect with -m"
            " 'not sandbox'"
        )
    async with await Kube.connect(kubeconfig, component="test") as kube:
        yield kube


@pytest.fixture(scope="module")
def kubectl(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubectl]:
    kubeconfig = os.environ.get("MODELROLLOUT_KUBECONFIG")
    if not kubeconfig:
        pytest.fail(
            "MODELROLLOUT_KUBECONFIG names no cluster; bring the sandbox up and set it, or deselect with -m"
            " 'not sandbox'"
        )
    if shutil.which("kubectl") is None:
        pytest.fail("kubectl is not on PATH")
    run = Kubectl(kubeconfig, uuid.uuid4().hex[:8], tmp_path_factory.mktemp("kubectl"))
    try:
        for path in sorted((ROOT / "crds").glob("*.yaml")):
            definition = yaml.safe_load(path.read_text())
            definition["spec"]["group"] = run.group
            definition["metadata"]["name"] = f"{definition['spec']['names']['plural']}.{run.group}"
            run.ok("create", "-f", "-", body=definition)
        until_established(run, run.mdep, run.mrev, run.rpol)
        run.ok("create", "namespace", run.namespace)
        yield run
    finally:
        run("delete", "crd", run.mdep, run.mrev, run.rpol, "--wait=false")
        run("delete", "namespace", run.namespace, "--wait=false")
