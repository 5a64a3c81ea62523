"""The zip of an exported program, in the layouts that PyTorch has written, in the first one's
terms.

Until 2.7: serialized_exported_program.json, and the tensors as files of ``torch.save``. From 2.8:
all in one folder, the program in models/NAME.json, weights and constants in data/, as files of
``torch.save`` (2.8), or each as its bytes (2.9 and later), with a JSON that says what they are. The
first layout is read by every PyTorch, so that is what the program is written in. The JSON's version
is 8 in all of them: later ones have more fields, and those that say nothing new about what is
computed are left out here. Sample inputs are not read: they are not needed, and they may be any
objects.

Sources: torch/export/pt2_archive, torch/_export/serde/schema.py.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.formats.source_model import FIELD, code_refused, invalid
from modelrollout.optimizer.model.archive import check_members
from modelrollout.reasons import Reason

PROGRAM, VERSION, WEIGHTS, CONSTANTS, SAMPLES = (
    "serialized_exported_program.json", "version", "serialized_state_dict.pt", "serialized_constants.pt",
    "serialized_example_inputs.pt",
)  # fmt: skip
MAJOR = 8  # of the JSON's schema
JSON_LIMIT_BYTES = 128 << 20  # takes gigabytes when it is read
REPEATED_LIMIT_BYTES = 64 << 20  # of tensors with strides of 0
RESAVE = "save it again with torch.export.save"

_COMPILED = re.compile(r"data/aotinductor/.*|.*\.(so|dll|dylib|cubin|hsaco|ptx)")
_PAYLOAD = re.compile(r"(weight|tensor)_\d{1,9}")
_SAYS = {"archive_format": "pt2", "archive_version": "0", "byteorder": "little"}
_STRIDED = 7
# gives nothing, and PyTorch 2.6 runs it where there are no devices
_ASSERTION = "torch.ops.aten._assert_tensor_metadata.default"
# Numbers of the schema's ScalarType, with their names in torch and their bytes.
_TYPES = {
    1: ("uint8", 1), 2: ("int8", 1), 3: ("int16", 2), 4: ("int32", 4), 5: ("int64", 8), 6: ("float16", 2),
    7: ("float32", 4), 8: ("float64", 8),
    12: ("bool", 1), 13: ("bfloat16", 2),
}  # fmt: skip


class _Number(BaseModel):
    as_int: Annotated[int, Field(strict=True, ge=0, lt=1 << 62)]


class _Device(BaseModel):
    type: str


class _Meta(BaseModel):
    dtype: int
    sizes: Annotated[list[_Number], Field(max_length=64)]
    strides: Annotated[list[_Number], Field(max_length=64)]
    storage_offset: _Number
    layout: int
    device: _Device
    requires_grad: bool


class _Payload(BaseModel):
    path_name: str
    is_param: bool
    use_pickle: bool
    tensor_meta: _Meta | None


class _Config(BaseModel):
    config: dict[str, _Payload]


@dataclass(frozen=True)
class Stored:
    """A tensor that lies in a file as its bytes; sizes, strides and offset count elements,
    ``width`` the bytes of one.
    """

    file: Path
    dtype: str
    width: int
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    parameter: bool
    requires_grad: bool


@dataclass(frozen=True)
class Parts:
    """The program's JSON, and its tensors: a file of ``torch.save``, or each by its name."""

    program: Path
    weights: Path | dict[str, Stored]
    constants: Path | dict[str, Stored]


def parts(root: Path, names: Sequence[str]) -> Parts:
    """Of the files below ``root``; raises JobError: ModelInvalid, CodeRefused, ArchiveUnsafe,
    TooLarge, and those of ``check_members``.
    """
    inside = {name.partition("/")[2]: root / name for name in names}
    if {PROGRAM, VERSION, WEIGHTS, CONSTANTS} <= set(names):
        _check_major((root / VERSION).read_bytes()[:20].decode(errors="replace").partition(".")[0])
        layout = Parts(root / PROGRAM, _saved(root / WEIGHTS), _saved(root / CONSTANTS))
    elif "archive_format" in inside and len({name.partition("/")[0] for name in names}) == 1:
        layout = _in_one_folder(inside)
    else:
        raise invalid(
            "the archive is not laid out as torch.export.save of PyTorch 2.6 and later does it", RESAVE
        )
    _check_size(layout.program)
    return layout


def in_first_terms(program: Any) -> Any:
    """The JSON without what is there for people, for checks of tensors, or for operators that call
    programs, in place.

    Raises JobError: ModelInvalid.
    """
    try:
        _check_major(str(program["schema_version"]["major"]))
        # Python, which refuses inputs that the program was not made for
        program.pop("guards_code", None)
        module = program["graph_module"]
        for later in ("metadata", "treespec_namedtuple_fields"):
            module.pop(later, None)
        graph = module["graph"]
        graph["nodes"] = [node for node in graph["nodes"] if node["target"] != _ASSERTION]
        for node in graph["nodes"]:
            node["metadata"] = {}
            for later in ("is_hop_single_tensor_return", "name"):
                node.pop(later, None)
            for argument in node["inputs"]:
                # by position or by name, which the operator's schema says, too
                argument.pop("kind", None)
    except (AttributeError, KeyError, TypeError) as error:
        raise invalid(
            f"the program's JSON is not as PyTorch writes it ({type(error).__name__}: {str(error)[:100]})",
            RESAVE,
        ) from None
    return program


def save(tensors: Mapping[str, Stored], file: IO[bytes]) -> None:
    """As ``torch.save`` writes them; tensors that share a file share memory."""
    import torch

    storages = {
        t.file: torch.UntypedStorage.from_file(str(t.file), False, t.file.stat().st_size)
        for t in tensors.values()
        if t.file.stat().st_size
    }
    parameters = {}
    for name, stored in tensors.items():
        empty = torch.empty(0, dtype=getattr(torch, stored.dtype))
        storage = storages.get(stored.file, empty.untyped_storage())
        tensor = empty.set_(storage, stored.offset, stored.sizes, stored.strides)
        parameters[name] = torch.nn.Parameter(tensor, stored.requires_grad) if stored.parameter else tensor
    torch.save(parameters, file)


def _check_major(version: str) -> None:
    if version != str(MAJOR):
        raise invalid(
            f"the program is of version {version[:20]!r} of PyTorch's schema, and {MAJOR} is read, which"
            " PyTorch 2.6 to 2.15 write",
            "save it with one of these, or export the model to ONNX where it was trained",
        )


def _in_one_folder(files: Mapping[str, Path]) -> Parts:
    if compiled := next((name for name in files if _COMPILED.fullmatch(name)), None):
        raise code_refused(f"compiled code ({compiled[:100]!r})")
    for name, expected in _SAYS.items():
        content = files[name].read_bytes()[:20].decode(errors="replace") if name in files else ""
        if content != expected:
            raise invalid(
                f"the archive says {name} {content!r}, and {expected!r} is read",
                "save it with PyTorch 2.6 to 2.15",
            )
    models = sorted(
        name.removeprefix("models/").removesuffix(".json")
        for name in files
        if re.fullmatch(r"models/[^/]+\.json", name)
    )
    if len(models) != 1:
        raise invalid(
            f"the archive holds {len(models)} programs ({', '.join(models[:5])[:200]})",
            "save one, alone, with torch.export.save",
        )
    [model] = models
    return Parts(
        files[f"models/{model}.json"], _tensors(files, model, "weights"), _tensors(files, model, "constants")
    )


def _tensors(files: Mapping[str, Path], model: str, kind: str) -> Path | dict[str, Stored]:
    saved, described = (
        files.get(f"data/{kind}/{model}.pt"),
        files.get(f"data/{kind}/{model}_{kind}_config.json"),
    )
    if saved is not None:
        return _saved(saved)
    if described is None:
        raise invalid(f"the archive holds no {kind} of {model[:100]!r}", RESAVE)
    _check_size(described)
    try:
        config = _Config.model_validate_json(described.read_bytes()).config
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise invalid(
            f"what it says of its {kind} is not read ({where[:100]}: {first['msg'][:100]})", RESAVE
        ) from None
    stored = {name: _stored(name, payload, files, f"data/{kind}/") for name, payload in config.items()}
    repeated = sum(
        max(0, math.prod(tensor.sizes) * tensor.width - tensor.file.stat().st_size)
        for tensor in stored.values()
    )
    if repeated > REPEATED_LIMIT_BYTES:
        raise bad_input(
            Reason.TOO_LARGE,
            f"{FIELD}.uri: its {kind} repeat {repeated} bytes more than lie in their files; make them"
            " .contiguous() first",
        )
    return stored


def _stored(name: str, payload: _Payload, files: Mapping[str, Path], folder: str) -> Stored:
    """The tensor, which lies in its file whole."""
    tensor, meta = f"tensor {name[:100]!r}", payload.tensor_meta
    if payload.use_pickle or meta is None:
        raise code_refused(f"a pickle as {tensor}, for an object, or for a class of tensors of its own")
    if not _PAYLOAD.fullmatch(payload.path_name):
        raise bad_input(
            Reason.ARCHIVE_UNSAFE,
            f"{FIELD}.uri: {tensor} says that it lies in {payload.path_name[:100]!r}, outside of {folder};"
            f" {RESAVE}",
        )
    path = folder + payload.path_name
    if path not in files:
        raise invalid(f"{tensor} says that it lies in {path}, which the archive does not hold", RESAVE)
    if meta.device.type != "cpu":
        raise invalid(
            f"{tensor} is on {meta.device.type[:20]!r}",
            "export the model on the CPU: model.cpu(), with examples there",
        )
    if meta.dtype not in _TYPES or meta.layout != _STRIDED:
        raise invalid(
            f"{tensor} has data type {meta.dtype} and layout {meta.layout} of PyTorch's schema",
            "make it dense, and of a plain data type",
        )
    if len(meta.sizes) != len(meta.strides):
        raise invalid(f"{tensor} has {len(meta.sizes)} sizes and {len(meta.strides)} strides", RESAVE)
    dtype, width = _TYPES[meta.dtype]
    sizes, strides = (tuple(number.as_int for number in numbers) for numbers in (meta.sizes, meta.strides))
    offset, holds = meta.storage_offset.as_int, files[path].stat().st_size
    end = (
        0
        if 0 in sizes
        else (offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True)) + 1)
        * width
    )
    if end > holds:
        raise invalid(f"{tensor} says that it ends at byte {end} of {path}, which has {holds}", RESAVE)
    return Stored(files[path], dtype, width, sizes, strides, offset, payload.is_param, meta.requires_grad)


def _saved(file: Path) -> Path:
    """A file of torch.save, which is a zip; none are an empty file."""
    if file.stat().st_size:
        check_members(file)
    return file


def _check_size(file: Path) -> None:
    if (size := file.stat().st_size) > JSON_LIMIT_BYTES:
        raise bad_input(
            Reason.TOO_LARGE,
            f"{FIELD}.uri: {file.name[:100]!r} has {size} bytes, more than {JSON_LIMIT_BYTES}; export a"
            " smaller program",
        )
