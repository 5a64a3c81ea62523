"""What of a soak can be tried without a cluster."""

from __future__ import annotations

import os

import pytest

from chaos import soak
from chaos.schedule import CHANGES, ONLY_EARLY, PAIRED, VERBS


def test_as_many_models_ask_for_gpus_as_there_are_gpus_for() -> None:
    def asking(gpus: int) -> int:
        limits = [s.serving["resources"]["limits"] for s in soak.subjects(gpus) if s.serving]
        return sum("nvidia.com/gpu" in each for each in limits)

    assert [asking(gpus) for gpus in (0, 3, 8, 40, 400)] == [0, 0, 2, 10, 10]
    assert len({s.name for s in soak.subjects(8)}) == soak.MODELS == 10


def test_every_change_of_a_schedule_is_known() -> None:
    done = {*CHANGES, *(end for end, _, _ in PAIRED.values())} - VERBS
    assert done == {"good", "bad", "scale-1", "scale-2", "zero", "back"}


def test_faults_of_the_proxies_are_among_those_of_a_soak() -> None:
    """They are chosen from the catalogue by the beginnings of their names."""
    assert {"api-500", "api-cut", "watch-stalls", "prometheus-stopped", "prometheus-nan"} <= set(soak.FAULTS)
    assert set(soak.FAULTS) >= ONLY_EARLY
    assert "kill-after-each-write" not in soak.FAULTS, "the operator would never come further"


def test_resident_memory_of_a_process() -> None:
    used = soak.resident(os.getpid())
    assert used is not None and 10 < used < 10_000
    assert soak.resident(2**22 + 1) is None


@pytest.mark.parametrize(
    ("fault", "one"), [("stable-dies", True), ("api-409", False), ("gateway-deleted", False)]
)
def test_what_concerns_all_models_is_not_said_of_one(fault: str, one: bool) -> None:
    assert soak._concerns_one(fault) is one
