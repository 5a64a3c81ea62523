"""A model that is divided over several GPUs, against those that a pod requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from modelrollout.contract.formats import Served
from modelrollout.contract.tasks import MAX_MODEL_BYTES, Batching
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.passthrough.repository import pass_through
from tests.unit.optimizer.backend_files import CONFIG, MODEL_PY, engine, packed, vllm

LLM_API = b"from tensorrt_llm import LLM\n" + MODEL_PY
ENGINE_OF_TWO = json.dumps(
    {"pretrained_config": {"mapping": {"world_size": 2, "tp_size": 2, "pp_size": 1}}, "build_config": {}}
).encode()
ENGINE_OF_EIGHT = ENGINE_OF_TWO.replace(b'"tp_size": 2', b'"tp_size": 4').replace(
    b'"pp_size": 1', b'"pp_size": 2'
)


def named(path: str) -> bytes:
    return CONFIG + f'parameters {{ key: "gpt_model_path" value {{ string_value: "{path}" }} }}\n'.encode()


def warnings(tmp_path: Path, model: bytes, backend: Any, gpus: int | None) -> list[str]:
    """What is said of GPUs when the model is prepared."""
    tmp_path.mkdir(exist_ok=True)
    source = tmp_path / "source"
    source.write_bytes(model)
    served = Served(backend=backend, code=True)
    made = pass_through(source, served, Batching(), "KIND_AUTO", tmp_path, MAX_MODEL_BYTES, gpus=gpus)
    return [w for w in made.warnings if "GPU" in w]


def python(*files: tuple[str, bytes], config: bytes = CONFIG, program: bytes = MODEL_PY) -> bytes:
    return packed("model.py", program, *((f"m/1/{name}", body) for name, body in files), config=config)


TWO_ENGINES = (("target/config.json", ENGINE_OF_EIGHT), ("draft/config.json", ENGINE_OF_TWO))
DIVIDED = [
    ("VLLM", vllm(engine(tensor_parallel_size=4)), "model.json", 4),
    ("VLLM", vllm(engine(tensor_parallel_size=4, pipeline_parallel_size=2)), "model.json", 8),
    ("VLLM", vllm(engine(tensor_parallel_size=2, distributed_executor_backend="mp")), "model.json", 2),
    ("Python", python(("engine/config.json", ENGINE_OF_TWO)), "engine/config.json", 2),
    (
        "Python",
        python(("engine/config.json", ENGINE_OF_TWO), config=named("$$TRITON_MODEL_DIRECTORY/1/engine")),
        "engine/config.json",
        2,
    ),
    (
        "Python",
        python(*TWO_ENGINES, config=named("$$TRITON_MODEL_DIRECTORY/1/target")),
        "target/config.json",
        8,
    ),
    ("Python", python(*TWO_ENGINES, config=named("/models/.version/draft")), "draft/config.json", 2),
    (
        "Python",
        python(
            ("model.yaml", b"model: x\ntensor_parallel_size: 2 # GPUs\npipeline_parallel_size: 2\n"),
            program=LLM_API,
        ),
        "model.yaml",
        4,
    ),
    ("Python", python(("model.yaml", b"tensor_parallel_size: 2\n"), program=LLM_API), "model.yaml", 2),
]


@pytest.mark.parametrize(("backend", "model", "where", "devices"), DIVIDED, ids=range(len(DIVIDED)))
def test_too_few_are_refused_and_too_many_are_said(
    tmp_path: Path, backend: str, model: bytes, where: str, devices: int
) -> None:
    with pytest.raises(JobError) as refused:
        warnings(tmp_path / "few", model, backend, devices - 1)
    assert refused.value.reason == "TooFewGPUs"
    message = str(refused.value)
    assert (
        f"spec.serving.resources: a pod requests {devices - 1} GPUs, but {where} (tensor_parallel_size"
        in message
    )
    assert f"request {devices} in limits, or divide it over fewer" in message
    assert warnings(tmp_path / "exact", model, backend, devices) == []
    assert warnings(tmp_path / "unknown", model, backend, None) == []
    [told] = warnings(tmp_path / "many", model, backend, devices + 1)
    assert f"a pod requests {devices + 1} GPUs" in told and "the others stay idle" in told


UNKNOWN = {
    "workers on other nodes": (
        "VLLM",
        vllm(engine(tensor_parallel_size=16, distributed_executor_backend="ray")),
    ),
    "several engines side by side": ("VLLM", vllm(engine(tensor_parallel_size=8, data_parallel_size=2))),
    "a size that is no number": ("VLLM", vllm(engine(tensor_parallel_size="8"))),
    "a size that vLLM refuses itself": ("VLLM", vllm(engine(tensor_parallel_size=0))),
    "a truth value": ("VLLM", vllm(engine(tensor_parallel_size=True, pipeline_parallel_size=True))),
    "any other program": ("Python", python(("model.yaml", b"tensor_parallel_size: 8\n"))),
    "two engines, none named": ("Python", python(*TWO_ENGINES)),
    "an engine of another place": (
        "Python",
        python(("engine/config.json", ENGINE_OF_TWO), config=named("/mnt/engines/big")),
    ),
    "two engines, another named": ("Python", python(*TWO_ENGINES, config=named("/models/.version/other"))),
    "a config of something else": (
        "Python",
        python(
            ("config.json", b'{"hidden_size": 8}'),
            ("a/config.json", b"[1]"),
            ("b/config.json", b"{"),
            ("c/config.json", b'{"pretrained_config": {"mapping": 8}}'),
        ),
    ),
    "workers of Ray": (
        "Python",
        python(("model.yaml", b"tensor_parallel_size: 8\norchestrator_type: ray\n"), program=LLM_API),
    ),
    "a size by another name": (
        "Python",
        python(("model.yaml", b"tensor_parallel_size: *n\n"), program=LLM_API),
    ),
    "a size that stands twice": (
        "Python",
        python(("model.yaml", b"tensor_parallel_size: 1\ntensor_parallel_size: 8\n"), program=LLM_API),
    ),
    "a size of something inside": (
        "Python",
        python(("model.yaml", b"draft:\n  tensor_parallel_size: 8\n"), program=LLM_API),
    ),
}


@pytest.mark.parametrize("why", UNKNOWN)
def test_where_it_cannot_be_known_nothing_is_refused(tmp_path: Path, why: str) -> None:
    backend, model = UNKNOWN[why]
    assert warnings(tmp_path, model, backend, 1) == []
