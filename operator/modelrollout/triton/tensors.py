"""Tensors as Triton names them: the one description that ONNX files, data sets and served models
are compared by.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# Triton's data types (KServe v2) to numpy's. BF16 is absent: numpy has no such type, so that no
# data set could feed it.
NUMPY: dict[str, np.dtype[Any]] = {
    name: np.dtype(kind)
    for name, kind in {
        "BOOL": np.bool_,
        "UINT8": np.uint8,
        "UINT16": np.uint16,
        "UINT32": np.uint32,
        "UINT64": np.uint64,
        "INT8": np.int8,
        "INT16": np.int16,
        "INT32": np.int32,
        "INT64": np.int64,
        "FP16": np.float16,
        "FP32": np.float32,
        "FP64": np.float64,
        "BYTES": np.object_,
    }.items()
}


@dataclass(frozen=True)
class TensorSpec:
    """Name, Triton data type, and shape with the batch first; -1 is a dimension of any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.datatype} [{', '.join('n' if d < 0 else str(d) for d in self.shape)}]"
