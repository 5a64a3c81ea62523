"""The model of a cluster follows the product where it does not assert about it."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.testing import builders as b
from modelrollout.testing.model_cluster import ModelCluster
from modelrollout.traffic import registry
from modelrollout.traffic.base import Router
from modelrollout.traffic.replicas import Replicas


def test_a_router_that_is_added_to_the_table_divides_the_models_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mesh(Replicas):
        made = 0

        def router(self, *args: Any, **more: Any) -> Router:
            self.made += 1
            return super().router(*args, **more)

    mesh = Mesh()
    monkeypatch.setattr(registry, "ROUTERS", [mesh, *registry.ROUTERS])
    cluster = ModelCluster(b.spec(1, gateway=False))
    cluster.serve()
    assert mesh.made > 0 and cluster.service == b.revision_name(1)
