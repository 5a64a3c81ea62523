"""The API server that the tests talk to."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from modelrollout.kube.client import Kube


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
