# mypy: ignore-errors
"""The `onnxruntime` backend of this image: Triton's Python backend, wrapped around ONNX Runtime on
the CPU.

It reads the same config.pbtxt as the C++ backend of NVIDIA's image. Parameters it knows:
intra_op_thread_count and inter_op_thread_count (both 1 here: several pods share few cores),
execution_mode.
"""

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils

_TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}
_DEFAULT_MAX_BATCH = 4  # as the C++ backend's


def _parameter(config, name, default):
    value = config.get("parameters", {}).get(name, {}).get("string_value")
    return default if value in (None, "") else value


def _options(config):
    options = ort.SessionOptions()
    options.intra_op_num_threads = int(_parameter(config, "intra_op_thread_count", "1"))
    options.inter_op_num_threads = int(_parameter(config, "inter_op_thread_count", "1"))
    if int(_parameter(config, "execution_mode", "0")) == 1:
        options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
    level = config.get("optimization", {}).get("graph", {}).get("level", 0)
    options.graph_optimization_level = {
        -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
        1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    }.get(level, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def _open(folder, config):
    path = Path(folder, config.get("default_model_filename") or "model.onnx")
    if not path.exists():
        raise pb_utils.TritonModelException(f"{path} does not exist")
    try:
        return ort.InferenceSession(str(path), _options(config), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise pb_utils.TritonModelException(f"{path} cannot be loaded: {error}") from error


def _dims(shape):
    return [d if isinstance(d, int) and d > 0 else -1 for d in shape]


def _type(value):
    try:
        return _TYPES[value.type]
    except KeyError:
        raise pb_utils.TritonModelException(
            f"tensor {value.name} has type {value.type}, which this backend does not know"
        ) from None


def _batchable(values):
    return all(len(v.shape) > 0 and not isinstance(v.shape[0], int) for v in values)


def _complete(config, session):
    """What a missing or partial config.pbtxt leaves open, taken from the model as the C++ backend
    does.
    """
    known = config.as_dict()
    inputs, outputs = session.get_inputs(), session.get_outputs()
    batch = known["max_batch_size"]
    if batch == 0 and not known["input"] and not known["output"] and _batchable([*inputs, *outputs]):
        batch = _DEFAULT_MAX_BATCH
        config.set_max_batch_size(batch)
        config.set_dynamic_batching()
    for values, have, add in (
        (inputs, known["input"], config.add_input),
        (outputs, known["output"], config.add_output),
    ):
        names = {h["name"] for h in have}
        for v in values:
            if v.name not in names:
                dims = _dims(v.shape)
                add({"name": v.name, "data_type": _type(v), "dims": dims[1:] if batch else dims})
    return config


def _check(config, session):
    """Refuse at load what would fail at the first request."""
    for kind, values in (("input", session.get_inputs()), ("output", session.get_outputs())):
        by_name = {v.name: v for v in values}
        for declared in config[kind]:
            value = by_name.get(declared["name"])
            if value is None:
                raise pb_utils.TritonModelException(
                    f"unexpected {kind} '{declared['name']}': the model has {sorted(by_name)}"
                )
            if declared["data_type"] != _type(value):
                raise pb_utils.TritonModelException(
                    f"{kind} '{value.name}' is {_type(value)} in the model, {declared['data_type']} in the"
                    " configuration"
                )
            # an empty reshape is one: [n, 1] of the client is [n] of the model
            reshaped = declared.get("reshape")
            dims = [int(d) for d in (declared["dims"] if reshaped is None else reshaped.get("shape", []))]
            want = ([-1] if config["max_batch_size"] > 0 else []) + dims
            have = _dims(value.shape) or [1]  # a scalar is served as [1]
            if len(want) != len(have) or any(
                w != h and -1 not in (w, h) for w, h in zip(want, have, strict=True)
            ):
                raise pb_utils.TritonModelException(
                    f"{kind} '{value.name}' has shape {have} in the model, {want} in the configuration"
                )
        if kind == "input":
            left = set(by_name) - {t["name"] for t in config[kind]}
            if left:
                raise pb_utils.TritonModelException(
                    f"the configuration does not name the model's inputs {sorted(left)}"
                )


def _decode(array):
    """Triton's strings are bytes, ONNX Runtime's are text."""
    if array.dtype != np.object_:
        return array
    return np.array(
        [x.decode() if isinstance(x, bytes) else str(x) for x in array.reshape(-1)], dtype=np.object_
    ).reshape(array.shape)


def _encode(array):
    if array.dtype.kind not in "OU":
        return np.ascontiguousarray(array)
    return np.array([str(x).encode() for x in array.reshape(-1)], dtype=np.object_).reshape(array.shape)


class TritonPythonModel:
    """One instance: one ONNX Runtime session."""

    @staticmethod
    def auto_complete_config(config):
        known = config.as_dict()
        if known["input"] and known["output"]:
            return config
        return _complete(config, _open(pb_utils.get_model_dir(), known))

    def initialize(self, args):
        self.config = json.loads(args["model_config"])
        self.session = _open(pb_utils.get_model_dir(), self.config)
        _check(self.config, self.session)
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o["name"] for o in self.config["output"]]
        self.scalars = {i.name for i in self.session.get_inputs() if not i.shape}
        self.batching = self.config["max_batch_size"] > 0

    def execute(self, requests):
        """Requests whose shapes agree run as one batch, the rest one by one."""
        feeds = [self._feed(r) for r in requests]
        responses = [None] * len(requests)
        for group in self._groups(feeds):
            try:
                self._run(group, requests, feeds, responses)
            except Exception as error:
                for i in group:
                    responses[i] = pb_utils.InferenceResponse(
                        error=pb_utils.TritonError(f"onnxruntime: {error}")
                    )
        return responses

    def _feed(self, request):
        feed = {}
        for name in self.inputs:
            array = _decode(pb_utils.get_input_tensor_by_name(request, name).as_numpy())
            feed[name] = array.reshape(()) if name in self.scalars else array
        return feed

    def _groups(self, feeds):
        if not self.batching:
            return [[i] for i in range(len(feeds))]
        groups = {}
        for i, feed in enumerate(feeds):
            groups.setdefault(tuple(feed[n].shape[1:] for n in self.inputs), []).append(i)
        return list(groups.values())

    def _run(self, group, requests, feeds, responses):
        alone = len(group) == 1
        merged = (
            feeds[group[0]]
            if alone
            else {n: np.concatenate([feeds[i][n] for i in group]) for n in self.inputs}
        )
        asked = [[n for n in self.outputs if n in set(requests[i].requested_output_names())] for i in group]
        output_names = [n for n in self.outputs if any(n in a for a in asked)] or self.outputs
        results = dict(
            zip(output_names, map(np.atleast_1d, self.session.run(output_names, merged)), strict=True)
        )
        start = 0
        for i, names in zip(group, asked, strict=True):
            rows = 0 if alone else feeds[i][self.inputs[0]].shape[0]
            tensors = [
                pb_utils.Tensor(n, _encode(results[n] if alone else results[n][start : start + rows]))
                for n in names
            ]
            start += rows
            responses[i] = pb_utils.InferenceResponse(output_tensors=tensors)

    def finalize(self):
        self.session = None
