"""The API server that the tests talk to."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from modelrollout.kube.client import Kube


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Side by side (``-n 4 --dist loadgroup``) a module's tests stay together, for they share what they stand on; but those of Jobs' ends have a
    namespace each, and mostly wait for the Job controller's next try."""
    for item in items:
        if item.path.parent == Path(__file__).parent and item.path.stem != "test_job_endings":
            item.add_marker(pytest.mark.xdist_group(item.path.stem))


@pytest_asyncio.fixture
async def kube() -> AsyncIterator[Kube]:
    kubeconfig = os.environ.get("MODELROLLOUT_KUBECONFIG")
    if not kubeconfig:
        pytest.fail("MODELROLLOUT_KUBECONFIG names no cluster; bring the sandbox up and set it, or deselect with -m 'not sandbox'")
    async with await Kube.connect(kubeconfig, component="test") as kube:
        yield kube
