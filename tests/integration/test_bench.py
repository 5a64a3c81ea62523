"""The part of `make bench-optimizer` that takes Triton from the sandbox's image."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import baseline, batching, networks

pytestmark = pytest.mark.sandbox


def test_batching_is_measured_on_the_triton_of_the_sandbox(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baseline, "cache", lambda: tmp_path)
    monkeypatch.setattr(batching, "ROUNDS", 1)
    monkeypatch.setattr(batching, "IN_FLIGHT", (4,))
    monkeypatch.setattr(batching, "OBJECTIVE_MS", 5000.0)  # that a busy machine keeps
    networks.mlp(tmp_path / "model.onnx")
    alone, joined = batching.measure_batching(tmp_path / "model.onnx")
    assert alone.requests_per_second > 0 and joined.requests_per_second > 0
