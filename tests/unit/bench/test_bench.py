"""`make bench-optimizer` in a small form: the same code on a few made-up digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench import __main__ as program
from bench import baseline, batching, measure, triton
from demo.data import CLASSES, PIXELS, Split


def digits(n: int) -> Split:
    """Images that a model learns at once: each class has bright pixels of its own."""
    rng = np.random.default_rng(n)
    labels = rng.integers(0, CLASSES, n)
    images = 0.2 * rng.random((n, PIXELS), dtype=np.float32)
    for image, label in zip(images, labels, strict=True):
        image[label * 70 : label * 70 + 60] += 0.7
    return Split(images, labels)


@pytest.fixture
def lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the benchmark prints. Its cache is empty, its measurements are short."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(measure, "LATENCY_RUNS", 5)
    monkeypatch.setattr(measure, "THROUGHPUT_RUNS", 2)
    monkeypatch.setitem(baseline.TREES, "iterations", 2)
    printed: list[str] = []
    monkeypatch.setattr(program, "say", printed.append)
    return printed


@pytest.mark.slow
@pytest.mark.parametrize(("model", "step"), [("mlp", "int8_dynamic"), ("trees", "float16")])
def test_a_step_is_measured(lines: list[str], model: str, step: str) -> None:
    program.bench(model, digits(1500), digits(300), step)
    text = "\n".join(lines)
    assert f"{model}.float32.accuracy: 1.0" in text or f"{model}.float32.accuracy: 0.9" in text
    assert f"{model}.{step}.size_ratio" in text or f"{model}.{step} does not apply" in text


def test_without_an_image_of_triton_batching_is_not_measured(lines: list[str], tmp_path: Path) -> None:
    from bench import networks

    networks.mlp(tmp_path / "model.onnx")
    program._report_batching("mlp", tmp_path / "model.onnx")
    assert lines == [
        "# mlp.batching was not measured: the sandbox's Triton image is not built: run `python -m sandbox"
        " up` once (and `down` again)"
    ]


def test_an_image_that_cannot_be_unpacked_says_so(lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from sandbox import build_images

    manifest, contents = build_images.single_layer({"tritonserver": b""}, {})
    for name, data in contents.items():
        build_images.blob(name).parent.mkdir(parents=True, exist_ok=True)
        build_images.blob(name).write_bytes(data)
    layer = build_images.blobs(manifest)[-1]
    build_images.blob(layer).write_bytes(b"neither tar nor zstd")
    build_images.keep(build_images.TRITON, build_images.triton_key(), manifest)
    with pytest.raises(triton.TritonMissing, match="cannot be unpacked"):
        triton.unpacked()


def test_targets_name_steps_that_are_measured() -> None:
    for model, step in program.TARGETS:
        assert step == "batching" or step in program.RECIPES[model]
    for model, step in program.BATCHED.items():
        assert step in program.RECIPES[model]
    assert batching.ALONE not in batching.JOINED
