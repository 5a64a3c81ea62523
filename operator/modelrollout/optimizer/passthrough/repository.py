"""A source that another backend of Triton serves unchanged: finds its files, checks them without
running them, and writes its configuration.

There is no runtime for these formats in the Job, so what is checked is form: the right file in the
right place, whole, and nothing in it that would run code unless that was allowed. Whether the model
loads and answers well shows on the real server, before it gets any traffic.

Triton looks for a backend's library in the model's folder first (core, backend_model.cc): a file
libtriton_tensorrt.so beside model.plan would be loaded. So only files that the backend is known to
read are served, and libraries and scripts are refused by name.
"""

from __future__ import annotations

import mmap
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from modelrollout.contract.formats import Backend, Served
from modelrollout.contract.tasks import Batching
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.model.archive import extract, is_archive
from modelrollout.optimizer.passthrough import openvino, vllm
from modelrollout.optimizer.passthrough.config import CONFIG_LIMIT_BYTES, Config, label_files, written
from modelrollout.optimizer.passthrough.devices import compared, division
from modelrollout.optimizer.store.artifact import REPORT, is_name
from modelrollout.reasons import Reason
from modelrollout.triton.backends import KINDS
from modelrollout.triton.config import parse
from modelrollout.triton.layout import BESIDE, CONFIG_FILE
from modelrollout.triton.tensors import TensorSpec

FIELD = "spec.model.uri"
MAX_FILES = 2000

_GRAPH_FILE = "saved_model.pb"
_SINGLE: frozenset[Backend] = frozenset({"TensorRT", "TorchScript", "Python", "FIL"})
# FIL's own names of its files, and those that people usually give them.
_FIL_NAMES = frozenset(
    {"xgboost.json", "xgboost.ubj", "model.json", "model.ubj", "model.txt", "checkpoint.tl", "model.trees"}
)
_PLAN_MAGIC = b"ftrt"
_GRAPH_MAGIC = b"\x08\x01\x12"  # saved_model_schema_version: 1, and the first meta graph
# Operators of TensorFlow that read or write files of the server, or run Python.
_REACHING_OPS = (b"ReadFile", b"WriteFile", b"MatchingFiles", b"PyFunc", b"PyFuncStateless", b"EagerPyFunc")
# Files that a backend would run or unpickle.
_CODE = frozenset(
    {
        ".py",
        ".pyc",
        ".pyd",
        ".so",
        ".dll",
        ".dylib",
        ".sh",
        ".exe",
        ".jar",
        ".pkl",
        ".pickle",
        ".joblib",
        ".pt",
        ".pth",
        ".pt2",
        ".ckpt",
    }
)
_OPENVINO_WEIGHTS = "model.bin"


@dataclass(frozen=True)
class PassedThrough:
    """Files by their names in the version's folder, and the configuration beside that."""

    files: dict[str, Path]
    config: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    warnings: tuple[str, ...]


def pass_through(
    source: Path,
    served: Served,
    batching: Batching,
    instance_kind: str,
    folder: Path,
    limit: int,
    *,
    gpu: bool = True,
    gpus: int | None = None,
) -> PassedThrough:
    """Check ``source`` for its backend; what is unpacked of it lies in ``folder``, at most
    ``limit`` bytes. ``gpu``: its pods have one; ``gpus``: as of PrepareTask.

    Raises JobError: those of archives and of the configuration, BackendFileMissing,
    BackendFileInvalid, BackendFileAmbiguous, PickleRefused, CodeRefused, NameRefused,
    TensorUnknown, TooFewGPUs, and those of ``vllm_engine``.
    """
    if served.backend == "Python" and not served.code:
        raise bad_input(
            Reason.CODE_REFUSED,
            "spec.serving.triton.backend: Python runs the model's own code; say code: Allowed, or serve"
            " another format",
        )
    found = archive_files(source, served.backend, folder, limit)
    return checked(found, served, batching, instance_kind, folder, gpu=gpu, gpus=gpus)


def checked(
    found: Found,
    served: Served,
    batching: Batching,
    instance_kind: str,
    folder: Path,
    *,
    gpu: bool,
    gpus: int | None = None,
) -> PassedThrough:
    """``pass_through`` of files that were found already."""
    files = servable(found.version, served)
    beside = {f"{BESIDE}{name}": path for name, path in found.beside.items()}
    config = written(
        served,
        found.config,
        batching,
        instance_kind,
        gpu=gpu,
        version=found.number,
        names=files.keys() | beside.keys(),
    )
    files |= servable_beside(beside, served, parse(config.text))
    left = sorted(
        found.outside
        | (found.version.keys() - files.keys())
        | {f"{found.place}{name}" for name in found.beside if f"{BESIDE}{name}" not in files}
    )
    _check(files, served, config, folder)
    warnings = list(compared(division(served.backend, files, parse(config.text)), gpus))
    if left:
        warnings.append(
            f"files of the archive that {served.backend} does not read are not served:"
            f" {', '.join(left[:5])}{', ...' if left[5:] else ''}"
        )
    code = files.get(KINDS["Python"].file) if served.backend == "Python" else None
    if code and found.number and f"/{found.number}/".encode() in code.read_bytes():
        warnings.append(
            f"{code.name} names a path with /{found.number}/, and each version has a number of its own: use"
            " args['model_version'], or paths relative to __file__"
        )
    return PassedThrough(files, config.text, config.inputs, config.outputs, tuple(warnings))


@dataclass(frozen=True)
class Found:
    """What an archive holds, or a file that came alone. ``version``: the files of the version's
    folder by their names there, ``beside`` those of the model's folder, ``outside`` names of
    others. ``number``: the author's name of the version's folder, if it has one.
    """

    version: dict[str, Path]
    config: bytes | None = None
    beside: dict[str, Path] = field(default_factory=dict)
    outside: frozenset[str] = frozenset()
    number: str = ""
    place: str = ""  # of the model's folder in the archive


def archive_files(source: Path, backend: Backend, folder: Path, limit: int) -> Found:
    kind = KINDS[backend]
    if source.stat().st_size == 0:
        raise bad_input(Reason.MODEL_TRUNCATED, f"{FIELD}: the file is empty; upload it again")
    if not is_archive(source) or (backend == "TorchScript" and _is_torch(source)):
        if backend not in _SINGLE:
            raise bad_input(
                Reason.BACKEND_FILE_MISSING,
                f"{FIELD}: {backend} needs a folder: pack {kind.file} and what belongs to it into a .zip or"
                " .tar",
            )
        return Found({kind.file: source})
    root = folder / "archive"
    names = [
        n
        for n in extract(source, root, limit)
        if not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(n).parts)
    ]
    configs = [n for n in names if PurePosixPath(n).name == CONFIG_FILE]
    if len(configs) > 1:
        raise _ambiguous(f"{len(configs)} files {CONFIG_FILE}", configs)
    entry = _entry(names, backend, PurePosixPath(configs[0]).parent if configs else None)
    top = "" if entry.as_posix() == "." else f"{entry.as_posix()}/"
    prefix = f"{kind.file}/" if backend == "SavedModel" else ""
    files = {
        f"{prefix}{n.removeprefix(top)}": root / n for n in names if n.startswith(top) and n not in configs
    }
    if backend == "FIL":  # under the name that its configuration will say
        chosen = next(n for n in sorted(files) if n in _FIL_NAMES)
        files[kind.file] = files.pop(chosen)
    own = None
    if configs:
        with (root / configs[0]).open("rb") as file:
            own = file.read(CONFIG_LIMIT_BYTES + 1)
    # the folder of the model, where the version has one of its own in it
    number = entry.name if entry.name.isdigit() and entry.parts else ""
    place = f"{entry.parent.as_posix()}/".removeprefix("./") if number else None
    others = {n for n in names if not n.startswith(top)} - set(configs)
    beside = {
        n.removeprefix(place): root / n
        for n in others
        if place is not None and n.startswith(place) and not n.removeprefix(place).split("/")[0].isdigit()
    }
    outside = frozenset(n for n in others if place is None or n.removeprefix(place) not in beside)
    return Found(files, own, beside, outside, number, place or "")


def _entry(names: Sequence[str], backend: Backend, model: PurePosixPath | None) -> PurePosixPath:
    """The folder of the backend's file. ``model``: the folder of config.pbtxt, in or one below
    which it must be, as in Triton's repository.
    """
    file_name = _GRAPH_FILE if backend == "SavedModel" else KINDS[backend].file
    known = _FIL_NAMES if backend == "FIL" else {file_name}
    folders = [PurePosixPath(n).parent for n in names if PurePosixPath(n).name in known]
    if model is not None:
        versions = [p.parent if p.name == KINDS[backend].file else p for p in folders]
        folders = [p for p, v in zip(folders, versions, strict=True) if v == model or v.parent == model]
    elif folders:
        depth = min(len(p.parts) for p in folders)
        folders = [p for p in folders if len(p.parts) == depth]
    if not folders:
        where = f" beside {CONFIG_FILE} or in a folder below it" if model is not None else ""
        raise bad_input(
            Reason.BACKEND_FILE_MISSING,
            f"{FIELD}: {backend} serves {' or '.join(sorted(known))}, which the archive does not"
            f" hold{where}; pack it, or rename it",
        )
    if len(folders) > 1:
        raise _ambiguous(f"{len(folders)} files {file_name}", [p.as_posix() for p in folders])
    return folders[0]


def _ambiguous(what: str, where: Sequence[str]) -> JobError:
    return bad_input(
        Reason.BACKEND_FILE_AMBIGUOUS,
        f"{FIELD}: the archive holds {what} ({', '.join(sorted(where)[:5])}); keep one model in one version",
    )


def servable(files: dict[str, Path], served: Served) -> dict[str, Path]:
    """What is served; raises JobError: CodeRefused, NameRefused, TooLarge."""
    served_files = {name: path for name, path in files.items() if served.code or _reads(name, served.backend)}
    if code := next(
        (name for name in sorted(files) if not served.code and _is_code(name, served.backend)), None
    ):
        remedy = (
            "say spec.serving.triton.code: Allowed"
            if served.backend == "VLLM"
            else "put libraries into the Triton image"
        )
        raise bad_input(
            Reason.CODE_REFUSED, f"{FIELD}: {code!r} in the archive can run code; leave it out, or {remedy}"
        )
    if odd := next((name for name in sorted(served_files) if not is_name(name) or name == REPORT), None):
        raise bad_input(
            Reason.NAME_REFUSED,
            f"{FIELD}: {odd[:250]!r} in the archive: at most 200 letters, digits and . _ + - are possible,"
            f" and {REPORT} is taken; rename it",
        )
    if len(served_files) > MAX_FILES:
        raise bad_input(
            Reason.TOO_LARGE,
            f"{FIELD}: the archive holds {len(served_files)} files to serve, more than {MAX_FILES}; pack the"
            " model and its data only",
        )
    return served_files


def servable_beside(files: dict[str, Path], served: Served | None, config: Any) -> dict[str, Path]:
    """What is served of the files beside the version's folder: all of a model that may carry code,
    else those with the names of classes. Raises JobError: CodeRefused, NameRefused, TooLarge,
    ConfigMismatch.
    """
    labels = {f"{BESIDE}{label}" for label in label_files(config)}
    if missing := sorted(labels - files.keys()):
        raise bad_input(
            Reason.CONFIG_MISMATCH,
            f"{FIELD}: config.pbtxt: label_filename names {missing[0].removeprefix(BESIDE)[:200]!r}, which is"
            " not beside it; pack it there",
        )
    if code := next(
        (name for name in sorted(labels) if any(s in _CODE for s in PurePosixPath(name).suffixes)), None
    ):
        raise bad_input(
            Reason.CODE_REFUSED,
            f"{FIELD}: label_filename {code.removeprefix(BESIDE)!r} is code; name a text file",
        )
    chosen = {name: path for name, path in files.items() if name in labels or (served and served.code)}
    if odd := next((name for name in sorted(chosen) if not is_name(name)), None):
        raise bad_input(
            Reason.NAME_REFUSED,
            f"{FIELD}: {odd.removeprefix(BESIDE)[:250]!r} in the archive: at most 190 letters, digits and"
            " . _ + - are possible; rename it",
        )
    if len(chosen) > MAX_FILES:
        raise bad_input(
            Reason.TOO_LARGE,
            f"{FIELD}: {len(chosen)} files beside the version's folder are more than {MAX_FILES}; pack them"
            " into one",
        )
    return chosen


def _reads(name: str, backend: Backend) -> bool:
    match backend:
        case "SavedModel":
            return True  # all lies below model.savedmodel
        case "OpenVINO":
            return name in (KINDS[backend].file, _OPENVINO_WEIGHTS)
        case "VLLM":
            return PurePosixPath(name).suffix in vllm.DATA_SUFFIXES
        case _:
            return name == KINDS[backend].file


def _is_code(name: str, backend: Backend) -> bool:
    if name == KINDS[backend].file:
        return False
    suffixes = PurePosixPath(name.lower()).suffixes
    # pickled weights
    return any(s in _CODE for s in suffixes) or (backend == "VLLM" and suffixes[-1:] == [".bin"])


def _check(files: dict[str, Path], served: Served, config: Config, folder: Path) -> None:
    """Check the content of the served files, as far as that works without running them."""
    path = files.get(KINDS[served.backend].file, Path())
    match served.backend:
        case "TensorRT":
            _check_plan(path)
        case "TorchScript":
            _check_torchscript(path)
        case "SavedModel":
            _check_graph(files[f"{KINDS['SavedModel'].file}/{_GRAPH_FILE}"])
        case "OpenVINO":
            weights = files.get(_OPENVINO_WEIGHTS)
            if weights is None:
                raise bad_input(
                    Reason.BACKEND_FILE_MISSING,
                    f"{FIELD}: OpenVINO needs {_OPENVINO_WEIGHTS} beside model.xml; pack both",
                )
            openvino.check(path, weights.stat().st_size, config.inputs, config.outputs)
        case "Python":
            if b"TritonPythonModel" not in path.read_bytes():
                raise _invalid(
                    "model.py has no class TritonPythonModel, which Triton's Python backend looks for"
                )
        case "VLLM":
            files[KINDS["VLLM"].file] = vllm.resolved(
                path, files.keys(), folder / "engine.json", code=served.code
            )


def _invalid(what: str) -> JobError:
    return bad_input(Reason.BACKEND_FILE_INVALID, f"{FIELD}: {what}")


def _check_plan(path: Path) -> None:
    with path.open("rb") as file:
        head = file.read(64)
        if head.startswith(_PLAN_MAGIC) and len(head) == 64:
            return
        if head[4:5] == b"{":  # what Ultralytics writes: length, JSON, plan
            start = 4 + int.from_bytes(head[:4], "little")
            file.seek(start)
            if file.read(4) == _PLAN_MAGIC:
                raise _invalid(
                    "the plan has a header of another tool in front, which TensorRT does not read; cut off"
                    f" its first {start} bytes"
                )
    _refuse_pickle(head)
    raise _invalid(
        f"this is no TensorRT plan (it begins with {head[:8]!r}, not {_PLAN_MAGIC!r}); upload what trtexec"
        " --saveEngine wrote"
    )


def _refuse_pickle(head: bytes) -> None:
    if len(head) > 1 and head[0] == 0x80 and 2 <= head[1] <= 5:
        raise bad_input(
            Reason.PICKLE_REFUSED,
            f"{FIELD}: the file is a Python pickle: loading it could run any code, so it is never opened"
            " here",
        )


def _torch_names(path: Path) -> list[str]:
    """Names in a zip archive, below the one folder that torch writes; none where it is no zip."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.partition("/")[2] for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return []


def _is_torch(path: Path) -> bool:
    """Whether a zip archive is itself what torch writes, not something that a model was packed
    into.
    """
    return any(name in ("data.pkl", "constants.pkl") for name in _torch_names(path))


def _check_torchscript(path: Path) -> None:
    """A program in TorchScript has its code and constants; libtorch reads its pickles with a reader
    of its own, which calls nothing of Python.
    """
    names = _torch_names(path)
    if "constants.pkl" in names and "data.pkl" in names and any(name.startswith("code/") for name in names):
        return
    with path.open("rb") as file:
        head = file.read(64)
    _refuse_pickle(head)
    if "data.pkl" in names:
        raise bad_input(
            Reason.PICKLE_REFUSED,
            f"{FIELD}: the file is a PyTorch checkpoint, a pickle, and no TorchScript; save it with"
            " torch.jit.script(model).save(path)",
        )
    raise _invalid(
        f"this is no TorchScript file (it begins with {head[:8]!r}); save it with"
        " torch.jit.script(model).save(path)"
    )


def _check_graph(path: Path) -> None:
    """saved_model.pb: its beginning, and the operators that it names (NodeDef.op, field 2)."""
    with path.open("rb") as file:
        if file.read(len(_GRAPH_MAGIC)) != _GRAPH_MAGIC:
            raise _invalid(f"{_GRAPH_FILE} is no SavedModel; save it with tf.saved_model.save")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for op in _REACHING_OPS:
                if content.find(bytes([0x12, len(op)]) + op) >= 0:
                    raise bad_input(
                        Reason.CODE_REFUSED,
                        f"{FIELD}: {_GRAPH_FILE} uses {op.decode()}, which reaches outside the model; export"
                        " it without that operator",
                    )
