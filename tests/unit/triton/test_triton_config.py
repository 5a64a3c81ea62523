"""config.pbtxt: what Triton's own schema reads from it."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import text_format

from modelrollout.contract.common import ServingConfig
from modelrollout.contract.tasks import Batching
from modelrollout.triton.config import (
    BatchingImpossible,
    Warmup,
    parse,
    pb,
    printed,
    render,
    with_serving,
    with_tensorrt,
    with_warmup,
)
from modelrollout.triton.tensors import NUMPY, TensorSpec

X = TensorSpec("x", "FP32", (-1, 1, 28, 28))
SCORES = TensorSpec("scores", "FP32", (-1, 10))
LABEL = TensorSpec("label", "INT64", (-1,))


def test_batched() -> None:
    config = parse(
        render([X], [LABEL, SCORES], Batching(max_batch_size=32, max_queue_delay_us=2000), "KIND_GPU")
    )
    assert not config.name  # the folder's name is the model's: the artifact is shared
    assert (config.backend, config.max_batch_size, config.default_model_filename) == (
        "onnxruntime",
        32,
        "model.onnx",
    )
    assert [(i.name, i.data_type, list(i.dims)) for i in config.input] == [("x", pb.TYPE_FP32, [1, 28, 28])]
    assert [(o.name, o.data_type, list(o.dims)) for o in config.output] == [
        ("label", pb.TYPE_INT64, [1]),
        ("scores", pb.TYPE_FP32, [10]),
    ]
    assert config.output[0].HasField("reshape")  # [n] is served as [n, 1]: dims must not be empty
    assert not config.output[1].HasField("reshape")
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [(g.count, g.kind) for g in config.instance_group] == [(1, pb.ModelInstanceGroup.KIND_GPU)]
    assert not config.HasField("version_policy")


def test_not_batched() -> None:
    config = parse(render([TensorSpec("x", "FP32", (1, 4))], [SCORES], Batching(), "KIND_AUTO"))
    assert config.max_batch_size == 0
    assert list(config.input[0].dims) == [1, 4]
    assert list(config.output[0].dims) == [-1, 10]
    assert not config.HasField("dynamic_batching")


def test_a_scalar_without_batching_is_one_number() -> None:
    config = parse(render([TensorSpec("rate", "FP32", ())], [SCORES], Batching(), "KIND_AUTO"))
    assert list(config.input[0].dims) == [1] and not config.input[0].HasField("reshape")


@pytest.mark.parametrize("shape", [(1, 4), (8, 4), ()])
def test_fixed_first_dimension_cannot_be_batched(shape: tuple[int, ...]) -> None:
    with pytest.raises(BatchingImpossible, match="x"):
        render([TensorSpec("x", "FP32", shape)], [SCORES], Batching(max_batch_size=4), "KIND_CPU")
    with pytest.raises(BatchingImpossible, match="y"):
        render([X], [TensorSpec("y", "FP32", shape)], Batching(max_batch_size=4), "KIND_CPU")


@pytest.mark.parametrize("datatype", sorted(NUMPY))
def test_every_type_is_known_to_triton(datatype: str) -> None:
    config = parse(render([TensorSpec("x", datatype, (-1, 2))], [SCORES], Batching(), "KIND_CPU"))
    assert pb.DataType.Name(config.input[0].data_type) == (
        "TYPE_STRING" if datatype == "BYTES" else f"TYPE_{datatype}"
    )


def test_unknown_field_is_refused() -> None:
    with pytest.raises(text_format.ParseError):
        parse(render([X], [SCORES], Batching(), "KIND_CPU") + "no_such_field: 1\n")


def warm(config: Any) -> list[tuple[int, dict[str, tuple[int, list[int], bool]]]]:
    return [
        (
            sample.batch_size,
            {name: (t.data_type, list(t.dims), t.zero_data) for name, t in sample.inputs.items()},
        )
        for sample in config.model_warmup
    ]


def test_warm_up_counts_dimensions_as_requests_do() -> None:
    words, number = TensorSpec("words", "BYTES", (-1, -1)), TensorSpec("number", "INT64", (-1,))
    shapes = {"words": (1, 12), "number": (1,)}
    batched = parse(render([words, number], [SCORES], Batching(max_batch_size=8), "KIND_AUTO"))
    one = {"words": (pb.TYPE_STRING, [12], True), "number": (pb.TYPE_INT64, [1], True)}
    config = parse(printed(with_warmup(batched, Warmup(shapes, (1, 8)))))
    assert warm(config) == [(1, one), (8, one)]
    single = parse(render([words, number], [SCORES], Batching(), "KIND_AUTO"))
    whole = {"words": (pb.TYPE_STRING, [1, 12], True), "number": (pb.TYPE_INT64, [1], True)}
    assert warm(with_warmup(single, Warmup(shapes, (1,)))) == [(1, whole)]


def test_a_tuned_batch_is_warmed_up_for_where_the_warm_up_is_ours() -> None:
    config = parse(render([X], [SCORES], Batching(max_batch_size=8), "KIND_AUTO"))
    ours = with_warmup(config, Warmup({"x": (1, 1, 28, 28)}, (1, 8)))

    def sizes(config: Any, batch: int) -> list[int]:
        return [sample.batch_size for sample in with_serving(config, ServingConfig(batch=batch)).model_warmup]

    assert [sizes(ours, batch) for batch in (0, 1, 4, 8)] == [[1, 8], [1, 8], [1, 8, 4], [1, 8]]
    assert sizes(config, 4) == []
    config.model_warmup.add(name="theirs", batch_size=2)
    assert sizes(config, 4) == [2]


def accelerators(config: Any) -> list[tuple[str, dict[str, str]]]:
    written = parse(printed(config)).optimization.execution_accelerators
    assert not written.cpu_execution_accelerator
    return [(a.name, dict(a.parameters)) for a in written.gpu_execution_accelerator]


def test_tensorrt_keeps_its_engines_where_it_is_told_and_has_no_precision_of_its_own() -> None:
    config = parse(render([X], [SCORES], Batching(), "KIND_AUTO"))
    cache = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": "/tmp/engines/ab-0"}
    assert accelerators(with_tensorrt(config, None, "/tmp/engines/ab-0")) == [("tensorrt", cache)]
    assert accelerators(with_tensorrt(config, 1 << 32, "/tmp/engines/ab-0")) == [
        ("tensorrt", cache | {"max_workspace_size_bytes": "4294967296"})
    ]
    assert accelerators(config) == [], "what is given stays as it is"


def test_what_an_author_says_of_tensorrt_and_of_others_stays_beside_it() -> None:
    config = parse(render([X], [SCORES], Batching(), "KIND_AUTO"))
    theirs = config.optimization.execution_accelerators.gpu_execution_accelerator
    theirs.add(name="cuda").parameters["cudnn_conv_use_max_workspace"] = "0"
    theirs.add(name="tensorrt").parameters.update({"precision_mode": "FP16", "trt_engine_cache_enable": "0"})
    assert accelerators(with_tensorrt(config, None, "/e")) == [
        ("cuda", {"cudnn_conv_use_max_workspace": "0"}),
        (
            "tensorrt",
            {"precision_mode": "FP16", "trt_engine_cache_enable": "1", "trt_engine_cache_path": "/e"},
        ),
    ]


def test_text_is_deterministic() -> None:
    assert render([X], [SCORES], Batching(), "KIND_CPU") == render([X], [SCORES], Batching(), "KIND_CPU")
