"""The optimizer's table of stores, and the URIs that the API accepts, agree."""

from __future__ import annotations

from modelrollout.api import uris
from modelrollout.optimizer.store.schemes import SCHEMES


def test_every_scheme_of_the_api_is_in_the_table() -> None:
    assert tuple(SCHEMES) == tuple(uris.STORE_KINDS)
