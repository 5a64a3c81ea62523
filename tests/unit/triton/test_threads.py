"""How many threads a server's backend gets: what config.pbtxt says of them."""

from __future__ import annotations

from typing import Any

import pytest

from modelrollout.contract.common import ServingConfig
from modelrollout.contract.tasks import Batching
from modelrollout.triton.backends import KINDS, ONNX
from modelrollout.triton.config import SHARED_CPUS, parse, printed, render, with_serving, with_threads
from modelrollout.triton.tensors import TensorSpec

X = TensorSpec("x", "FP32", (-1, 4))
ONNX_MODEL = parse(render([X], [X], Batching(max_batch_size=8), "KIND_AUTO"))


def parameters(config: Any) -> dict[str, str]:
    """As Triton reads them, by name."""
    return {name: p.string_value for name, p in parse(printed(config)).parameters.items()}


def served_by(backend: str, **given: str) -> Any:
    config = parse(f"backend: {backend!r}")
    for name, value in given.items():
        config.parameters[name].string_value = value
    return config


@pytest.mark.parametrize(
    ("backend", "written"),
    [
        ("pytorch", {"INTRA_OP_THREAD_COUNT": "6"}),
        ("tensorflow", {"TF_NUM_INTRA_THREADS": "6", "TF_NUM_INTER_THREADS": "6"}),
        ("openvino", {"INFERENCE_NUM_THREADS": "6"}),
        ("tensorrt", {}),
        ("python", {}),
        ("vllm", {}),
        ("fil", {}),
        ("of-the-image", {}),
    ],
)
def test_a_backend_gets_them_by_its_own_parameters(backend: str, written: dict[str, str]) -> None:
    assert parameters(with_threads(served_by(backend), 6)) == written


def test_every_backend_is_in_the_cases_above() -> None:
    (mark,) = test_a_backend_gets_them_by_its_own_parameters.pytestmark  # type: ignore[attr-defined]
    assert {k.backend for k in KINDS.values()} == {backend for backend, _ in mark.args[1]} - {"of-the-image"}


@pytest.mark.parametrize(("instances", "threads"), [(1, 6), (2, 3), (4, 1), (64, 1)])
def test_instances_of_onnx_runtime_share_the_cpus(instances: int, threads: int) -> None:
    """Whether tuning tries their number in a loaded model, or the server is made with it."""
    chosen = ServingConfig(instances=instances)
    written = {**dict.fromkeys(ONNX.threads, str(threads)), SHARED_CPUS: "6"}
    assert parameters(with_serving(with_threads(ONNX_MODEL, 6), chosen)) == written
    assert parameters(with_threads(with_serving(ONNX_MODEL, chosen), 6)) == written


def test_a_model_without_a_limit_is_tuned_as_before() -> None:
    assert parameters(with_serving(ONNX_MODEL, ServingConfig(instances=4))) == {}


@pytest.mark.parametrize("name", ONNX.threads)
def test_what_the_author_has_chosen_stays(name: str) -> None:
    config = served_by("onnxruntime", **{name: "16"})
    assert parameters(with_threads(config, 2)) == {name: "16"}
    assert parameters(with_serving(with_threads(config, 2), ServingConfig(instances=2))) == {name: "16"}


@pytest.mark.parametrize("text", ["", "many", "-1", "9" * 5000], ids=["none", "word", "negative", "long"])
def test_a_number_of_cpus_that_is_not_ours_divides_nothing(text: str) -> None:
    theirs = {"intra_op_thread_count": "16", SHARED_CPUS: text}
    config = with_threads(served_by("onnxruntime", **theirs), 2)
    assert parameters(with_serving(config, ServingConfig(instances=2))) == theirs


def test_the_configuration_that_is_given_stays_as_it_is() -> None:
    before = printed(ONNX_MODEL)
    with_threads(ONNX_MODEL, 6)
    assert printed(ONNX_MODEL) == before
