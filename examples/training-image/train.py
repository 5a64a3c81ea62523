"""``train.py SHARE``: keep that share of a perceptron's hidden units, the strongest, and fit its
output layer again. numpy and onnx are all it needs.

The contract: read /in/model.onnx and /in/data.npz, write /out/model.onnx, end with code 0. The last
line that is written before another code is what the user sees.
"""

from __future__ import annotations

import sys

import numpy as np
import onnx
from onnx import numpy_helper


def shrink(model: onnx.ModelProto, x: np.ndarray, share: float) -> None:
    """Change the model in place; ``x`` [n, features] is what it should still answer well."""
    operators = [node.op_type for node in model.graph.node]
    if operators != ["MatMul", "Relu", "MatMul"]:
        raise SystemExit(f"this trainer knows MatMul, Relu, MatMul and no other graph: {operators}")
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    into, out = (tensors[node.input[1]] for node in model.graph.node if node.op_type == "MatMul")
    first, second = numpy_helper.to_array(into), numpy_helper.to_array(out)
    hidden = np.maximum(x @ first, 0)
    strength = np.linalg.norm(hidden, axis=0) * np.linalg.norm(second, axis=1)
    kept = np.sort(np.argsort(-strength)[: max(1, round(share * len(strength)))])
    fitted, *_ = np.linalg.lstsq(hidden[:, kept], hidden @ second, rcond=None)
    into.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(first[:, kept]), into.name))
    out.CopyFrom(numpy_helper.from_array(fitted.astype(np.float32), out.name))
    print(f"{len(kept)} of {len(strength)} hidden units kept", flush=True)


def main() -> None:
    model = onnx.load("/in/model.onnx")
    shrink(model, np.load("/in/data.npz")["x"], float(sys.argv[1]))
    onnx.save(model, "/out/model.onnx")


if __name__ == "__main__":
    main()
