"""Small files as other backends of Triton read them, good ones."""

from __future__ import annotations

import json

from tests.unit.optimizer.hostile import zipped

PLAN = b"ftrt" + bytes(200)
TORCHSCRIPT = zipped(
    ("m/data.pkl", b"x"),
    ("m/constants.pkl", b"x"),
    ("m/code/__torch__.py", b"def forward"),
    ("m/version", b"3"),
)
# SavedModel: schema version 1, a meta graph with one node: name and operator.
GRAPH = b"\x08\x01\x12\x0f\x12\x0d\x0a\x0b\x0a\x01y\x12\x06MatMul"
MODEL_PY = b"class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"
# As openvino.save_model writes a matrix product of x [n, 4] and weights of 48 bytes, without the
# inner ports.
IR = b"""<?xml version="1.0"?>
<net name="m" version="11">
 <layers>
  <layer id="0" name="x" type="Parameter" version="opset1"><data shape="?,4" element_type="f32"/>
   <output><port id="0" precision="FP32" names="x"><dim>-1</dim><dim>4</dim></port></output></layer>
  <layer id="1" name="w" type="Const" version="opset1"><data element_type="f32" shape="3, 4" offset="0" size="48"/>
   <output><port id="0" precision="FP32"><dim>3</dim><dim>4</dim></port></output></layer>
  <layer id="2" name="scores" type="MatMul" version="opset1"><data transpose_a="false" transpose_b="true"/>
   <output><port id="2" precision="FP32" names="scores"><dim>-1</dim><dim>3</dim></port></output></layer>
  <layer id="3" name="r" type="Result" version="opset1" output_names="scores"><input><port id="0" precision="FP32"/></input></layer>
 </layers>
</net>
"""  # noqa: E501
ENGINE = {"model": "weights", "max_model_len": 512}
CONFIG = b"""input { name: "x" data_type: TYPE_FP32 dims: [-1, 4] }
output { name: "scores" data_type: TYPE_FP32 dims: [-1, 3] }
"""


def engine(**changes: object) -> bytes:
    return json.dumps(ENGINE | changes).encode()


def vllm(model_json: bytes | None = None, *more: tuple[str, bytes]) -> bytes:
    files = (
        ("model.json", engine() if model_json is None else model_json),
        ("weights/config.json", b"{}"),
        ("weights/tokenizer.json", b"{}"),
        ("weights/model.safetensors", b"w"),
    )
    return zipped(*files, *more)


def packed(name: str, content: bytes, *more: tuple[str, bytes], config: bytes = CONFIG) -> bytes:
    """A model's folder as in Triton's repository."""
    return zipped(("m/config.pbtxt", config), (f"m/1/{name}", content), *more)


SAVED_MODEL = packed(
    "model.savedmodel/saved_model.pb",
    GRAPH,
    ("m/1/model.savedmodel/variables/variables.data-00000-of-00001", b"v"),
)
OPENVINO = packed("model.xml", IR, ("m/1/model.bin", bytes(48)))
