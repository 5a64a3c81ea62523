"""OpenVINO's model.xml: read with expat as it comes, without document types and entities, so that
it can refer to nothing and grow into nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from modelrollout.jobs.errors import bad_input
from modelrollout.reasons import Reason
from modelrollout.triton.tensors import TensorSpec

FIELD = "spec.model.uri"
XML_LIMIT_BYTES = 512 << 20
_CHUNK = 1 << 20


@dataclass
class _Network:
    root: str = ""
    layer: str = ""  # type of the one that is open
    inputs: set[str] = field(default_factory=set)
    outputs: set[str] = field(default_factory=set)
    parameters: int = 0
    results: int = 0
    end: int = 0  # of the weights that a layer says it has


def _invalid(what: str) -> NoReturn:
    raise bad_input(
        Reason.BACKEND_FILE_INVALID, f"{FIELD}: model.xml: {what}; save the model with openvino.save_model"
    )


def check(path: Path, weights: int, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
    """A network whose weights lie within ``weights`` bytes, with these tensors; raises JobError:
    BackendFileInvalid, TensorUnknown.
    """
    network = _read(path)
    if network.root != "net" or not network.parameters or not network.results:
        _invalid("this is no OpenVINO model (net, with Parameter and Result layers)")
    if network.end > weights:
        _invalid(
            f"its weights end at byte {network.end} of model.bin, which has {weights}: one of the two files"
            " is cut off, or of another model"
        )
    for what, named, known, count in (
        ("inputs", inputs, network.inputs, network.parameters),
        ("outputs", outputs, network.outputs, network.results),
    ):
        unknown = sorted({t.name for t in named} - known)
        if unknown:
            raise bad_input(
                Reason.TENSOR_UNKNOWN,
                f"spec.serving.triton.{what} (or config.pbtxt): no {unknown[0]!r} in the model; it has"
                f" {', '.join(sorted(known)[:8]) or 'none'}",
            )
        if len(named) != count and what == "inputs":
            raise bad_input(
                Reason.TENSOR_UNKNOWN,
                f"spec.serving.triton.inputs (or config.pbtxt): {len(named)} inputs are named, the model has"
                f" {count}",
            )


def _read(path: Path) -> _Network:
    if path.stat().st_size > XML_LIMIT_BYTES:
        _invalid(f"it has more than {XML_LIMIT_BYTES} bytes")
    network = _Network()
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        network.root = network.root or tag
        if tag == "layer":
            network.layer = attributes.get("type", "")
            network.parameters += network.layer == "Parameter"
            network.results += network.layer == "Result"
            network.outputs |= _names(attributes, "output_names")
        elif tag == "data" and "offset" in attributes:
            network.end = max(
                network.end, _number(attributes["offset"]) + _number(attributes.get("size", "0"))
            )
        elif tag == "port":
            port_names = _names(attributes, "names")
            network.outputs |= port_names
            if network.layer == "Parameter":
                network.inputs |= port_names

    def doctype(*_: object) -> NoReturn:
        _invalid(
            "it has a document type, which a model needs not, and which could make a small file grow"
            " without end"
        )

    parser.StartElementHandler = start
    parser.StartDoctypeDeclHandler = doctype
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                parser.Parse(chunk, False)
            parser.Parse(b"", True)
    except expat.ExpatError as error:
        _invalid(f"it is no whole XML ({error})")
    return network


def _names(attributes: dict[str, str], key: str) -> set[str]:
    return {name for name in attributes.get(key, "").split(",") if name}


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        _invalid(f"{text[:40]!r} is no place in model.bin")
    return int(text)
