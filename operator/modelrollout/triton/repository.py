# mypy: disallow_untyped_calls=False
"""Triton's model repository over HTTP: load a model under a configuration of one's own (docs of
Triton, "Model Repository Extension").
"""

from __future__ import annotations

import time
from types import TracebackType
from typing import Any, Self

import tritonclient.http as triton_http
from google.protobuf import json_format  # type: ignore[import-untyped]

from modelrollout.triton.client import TritonError, translated_errors
from modelrollout.triton.tensors import TensorSpec

_CONNECT_SECONDS = 5.0
_LOAD_SECONDS = 600.0
_UNLOAD_SECONDS = 30.0
_PAUSE_SECONDS = 0.1


class Repository:
    """Triton at ``host:port``, started with ``--model-control-mode=explicit``. Used by one thread
    only (gevent).
    """

    def __init__(self, address: str) -> None:
        self._client = triton_http.InferenceServerClient(
            address, connection_timeout=_CONNECT_SECONDS, network_timeout=_LOAD_SECONDS
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def is_live(self) -> bool:
        """Whether a server answers."""
        try:
            with translated_errors():
                return bool(self._client.is_server_live())
        except TritonError:
            return False

    def load(self, model: str, config: Any) -> None:
        """Serve the model under ``config`` and nothing else of it; raises TritonError.

        Unloads it first: a server may lack memory for both at a time.
        """
        with translated_errors():
            if self._client.is_model_ready(model):
                self._client.unload_model(model)
                end = time.monotonic() + _UNLOAD_SECONDS
                while self._client.is_model_ready(model) and time.monotonic() < end:
                    time.sleep(_PAUSE_SECONDS)
            self._client.load_model(
                model, config=json_format.MessageToJson(config, preserving_proto_field_name=True)
            )

    def inputs(self, model: str) -> tuple[TensorSpec, ...]:
        """What the loaded model takes, the batch dimension first; raises TritonError."""
        with translated_errors():
            metadata = self._client.get_model_metadata(model)
        return tuple(
            TensorSpec(i["name"], i["datatype"], tuple(int(d) for d in i["shape"]))
            for i in metadata["inputs"]
        )
