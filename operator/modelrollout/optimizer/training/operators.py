"""The ONNX operators (as of opset 13 to 22) that can be trained through, in JAX.

Each takes the node's attributes and its inputs (None where left out), and gives its first output.
What is known before training, such as the shape for a Reshape, is numpy and stays numpy: JAX traces
only what depends on inputs or weights.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from onnx import helper

Attributes = dict[str, Any]
Operator = Callable[..., Any]

OPERATORS: dict[str, Operator] = {}


class UnsupportedError(Exception):
    """A use of an operator that is not implemented; the text says which."""


def _operator(*names: str) -> Callable[[Operator], Operator]:
    def keep(function: Operator) -> Operator:
        OPERATORS.update(dict.fromkeys(names, function))
        return function

    return keep


def _lib(*values: Any) -> ModuleType:
    """numpy while everything is known, else JAX."""
    return np if all(v is None or isinstance(v, np.ndarray | np.generic) for v in values) else jnp


# -- products


def _spatial_padding(
    a: Attributes, shape: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> list[tuple[int, int]]:
    """(before, after) of each spatial dimension; ``window`` with its dilation."""
    auto, n = a.get("auto_pad", b"NOTSET").decode(), len(window)
    if auto == "VALID":
        return [(0, 0)] * n
    if auto.startswith("SAME"):
        total = [
            max(0, (-(-size // stride) - 1) * stride + w - size)
            for size, w, stride in zip(shape, window, strides, strict=True)
        ]
        return [(t // 2, t - t // 2) if auto == "SAME_UPPER" else (t - t // 2, t // 2) for t in total]
    pads = a.get("pads", [0] * 2 * n)
    return list(zip(pads[:n], pads[n:], strict=True))


@_operator("Conv")
def _conv(a: Attributes, x: Any, w: Any, b: Any = None) -> Any:
    n = w.ndim - 2
    strides, dilations = a.get("strides", [1] * n), a.get("dilations", [1] * n)
    window = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilations, strict=True)]
    space = "DHW"[-n:]
    y = lax.conv_general_dilated(
        x,
        w,
        strides,
        _spatial_padding(a, x.shape[2:], window, strides),
        rhs_dilation=dilations,
        dimension_numbers=("NC" + space, "OI" + space, "NC" + space),
        feature_group_count=a.get("group", 1),
    )
    return y if b is None else y + b.reshape((1, -1) + (1,) * n)


@_operator("Gemm")
def _gemm(a: Attributes, x: Any, w: Any, c: Any = None) -> Any:
    y = a.get("alpha", 1.0) * ((x.T if a.get("transA") else x) @ (w.T if a.get("transB") else w))
    return y if c is None else y + a.get("beta", 1.0) * c


@_operator("MatMul")
def _matmul(_: Attributes, x: Any, y: Any) -> Any:
    return x @ y


# -- normalization


@_operator("BatchNormalization")
def _batch_normalization(a: Attributes, x: Any, scale: Any, bias: Any, mean: Any, variance: Any) -> Any:
    if a.get("training_mode"):
        raise UnsupportedError("BatchNormalization in training mode")
    shape = (1, -1) + (1,) * (x.ndim - 2)
    factor = scale / jnp.sqrt(variance + a.get("epsilon", 1e-5))
    return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)


@_operator("LayerNormalization")
def _layer_normalization(a: Attributes, x: Any, scale: Any, bias: Any = None) -> Any:
    axes = tuple(range(a.get("axis", -1) % x.ndim, x.ndim))
    centred = x - x.mean(axes, keepdims=True)
    y = centred / jnp.sqrt((centred**2).mean(axes, keepdims=True) + a.get("epsilon", 1e-5)) * scale
    return y if bias is None else y + bias


# -- element by element

_UNARY: dict[str, Callable[[Any], Any]] = {
    "Abs": jnp.abs,
    "Erf": jax.scipy.special.erf,
    "Exp": jnp.exp,
    "Log": jnp.log,
    "Neg": jnp.negative,
    "Reciprocal": lambda x: 1 / x,
    "Relu": jax.nn.relu,
    "Sigmoid": jax.nn.sigmoid,
    "Softplus": jax.nn.softplus,
    "Softsign": jax.nn.soft_sign,
    "HardSwish": jax.nn.hard_swish,
    "Mish": jax.nn.mish,
    "Sqrt": jnp.sqrt,
    "Tanh": jnp.tanh,
}


def _unary(function: Callable[[Any], Any]) -> Operator:
    return lambda _, x: function(x)


OPERATORS |= {name: _unary(function) for name, function in _UNARY.items()}


def _same(_: Attributes, x: Any, *rest: Any) -> Any:
    return x


OPERATORS |= {"Identity": _same, "Dropout": _same}  # as in inference: fine-tuning is short


def _elementwise(name: str) -> Operator:
    return lambda _, x, y: getattr(_lib(x, y), name)(x, y)


OPERATORS |= {
    onnx_name: _elementwise(name)
    for onnx_name, name in (
        ("Add", "add"),
        ("Sub", "subtract"),
        ("Mul", "multiply"),
        ("Pow", "power"),
        ("Equal", "equal"),
        ("Greater", "greater"),
    )
}


@_operator("Div")
def _div(_: Attributes, x: Any, y: Any) -> Any:
    return x // y if _lib(x, y) is np and x.dtype.kind in "iu" else x / y


def _fold(function: Callable[[Any, Any], Any]) -> Operator:
    def folded(_: Attributes, first: Any, *rest: Any) -> Any:
        for value in rest:
            first = function(first, value)
        return first

    return folded


OPERATORS |= {"Max": _fold(jnp.maximum), "Min": _fold(jnp.minimum), "Sum": _fold(jnp.add)}


@_operator("Clip")
def _clip(_: Attributes, x: Any, low: Any = None, high: Any = None) -> Any:
    return jnp.clip(x, low, high)


@_operator("LeakyRelu")
def _leaky_relu(a: Attributes, x: Any) -> Any:
    return jnp.where(x < 0, a.get("alpha", 0.01) * x, x)


@_operator("PRelu")
def _prelu(_: Attributes, x: Any, slope: Any) -> Any:
    return jnp.where(x < 0, slope * x, x)


@_operator("Elu")
def _elu(a: Attributes, x: Any) -> Any:
    return jax.nn.elu(x, a.get("alpha", 1.0))


@_operator("Selu")
def _selu(a: Attributes, x: Any) -> Any:
    return a.get("gamma", 1.0507009873554805) * jax.nn.elu(x, a.get("alpha", 1.6732632423543772))


@_operator("HardSigmoid")
def _hard_sigmoid(a: Attributes, x: Any) -> Any:
    return jnp.clip(a.get("alpha", 0.2) * x + a.get("beta", 0.5), 0, 1)


@_operator("Gelu")
def _gelu(a: Attributes, x: Any) -> Any:
    return jax.nn.gelu(x, approximate=a.get("approximate", b"none") == b"tanh")


@_operator("Softmax")
def _softmax(a: Attributes, x: Any) -> Any:
    return jax.nn.softmax(x, a.get("axis", -1))


@_operator("LogSoftmax")
def _log_softmax(a: Attributes, x: Any) -> Any:
    return jax.nn.log_softmax(x, a.get("axis", -1))


@_operator("Where")
def _where(_: Attributes, condition: Any, x: Any, y: Any) -> Any:
    return _lib(condition, x, y).where(condition, x, y)


@_operator("Cast")
def _cast(a: Attributes, x: Any) -> Any:
    return x.astype(helper.tensor_dtype_to_np_dtype(a["to"]))


# -- pooling and reductions


def _pool_window(a: Attributes, x: Any) -> tuple[tuple[int, ...], tuple[int, ...], list[tuple[int, int]]]:
    if a.get("ceil_mode") or any(d != 1 for d in a.get("dilations", [])):
        raise UnsupportedError("pooling with ceil_mode or dilations")
    kernel = a["kernel_shape"]
    strides = a.get("strides", [1] * len(kernel))
    return (
        (1, 1, *kernel),
        (1, 1, *strides),
        [(0, 0), (0, 0), *_spatial_padding(a, x.shape[2:], kernel, strides)],
    )


@_operator("MaxPool")
def _max_pool(a: Attributes, x: Any) -> Any:
    return lax.reduce_window(x, -jnp.inf, lax.max, *_pool_window(a, x))


@_operator("AveragePool")
def _average_pool(a: Attributes, x: Any) -> Any:
    window = _pool_window(a, x)
    total = lax.reduce_window(x, 0.0, lax.add, *window)
    if a.get("count_include_pad"):
        return total / float(np.prod(a["kernel_shape"]))
    return total / lax.reduce_window(jnp.ones_like(x), 0.0, lax.add, *window)


@_operator("GlobalAveragePool")
def _global_average_pool(_: Attributes, x: Any) -> Any:
    return x.mean(tuple(range(2, x.ndim)), keepdims=True)


@_operator("GlobalMaxPool")
def _global_max_pool(_: Attributes, x: Any) -> Any:
    return x.max(tuple(range(2, x.ndim)), keepdims=True)


def _reduction(name: str) -> Operator:
    def reduced(a: Attributes, x: Any, axes: Any = None) -> Any:
        # an attribute before opset 18 (13 for ReduceSum), then an input
        dims = a.get("axes") if axes is None else [int(i) for i in axes]
        if not dims and a.get("noop_with_empty_axes"):
            return x
        return getattr(_lib(x), name)(
            x, axis=tuple(dims) if dims else None, keepdims=bool(a.get("keepdims", 1))
        )

    return reduced


OPERATORS |= {
    f"Reduce{onnx_name}": _reduction(name)
    for onnx_name, name in (("Mean", "mean"), ("Sum", "sum"), ("Max", "max"), ("Prod", "prod"))
}


# -- shapes


@_operator("Flatten")
def _flatten(a: Attributes, x: Any) -> Any:
    axis = a.get("axis", 1)
    return x.reshape((int(np.prod(x.shape[:axis])), -1))


@_operator("Reshape")
def _reshape(a: Attributes, x: Any, shape: Any) -> Any:
    dims = [int(d) for d in shape]
    return x.reshape([x.shape[i] if d == 0 and not a.get("allowzero") else d for i, d in enumerate(dims)])


@_operator("Transpose")
def _transpose(a: Attributes, x: Any) -> Any:
    return x.transpose(a.get("perm"))


@_operator("Squeeze")
def _squeeze(_: Attributes, x: Any, axes: Any = None) -> Any:
    return x.squeeze(None if axes is None else tuple(int(i) for i in axes))


@_operator("Unsqueeze")
def _unsqueeze(_: Attributes, x: Any, axes: Any) -> Any:
    return _lib(x).expand_dims(x, tuple(int(i) for i in axes))


@_operator("Concat")
def _concat(a: Attributes, *values: Any) -> Any:
    return _lib(*values).concatenate(values, axis=a["axis"])


@_operator("Slice")
def _slice(_: Attributes, x: Any, starts: Any, ends: Any, axes: Any = None, steps: Any = None) -> Any:
    cut = [slice(None)] * x.ndim
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        cut[int(axes[i]) if axes is not None else i] = slice(
            int(start), int(end), int(steps[i]) if steps is not None else 1
        )
    return x[tuple(cut)]


@_operator("Expand")
def _expand(_: Attributes, x: Any, shape: Any) -> Any:
    return x * _lib(x).ones([int(d) for d in shape], x.dtype)


@_operator("Gather")
def _gather(a: Attributes, x: Any, indices: Any) -> Any:
    return _lib(x, indices).take(x, indices, axis=a.get("axis", 0))


@_operator("Shape")
def _shape(a: Attributes, x: Any) -> Any:
    return np.array(x.shape[a.get("start", 0) : a.get("end", x.ndim)], np.int64)
