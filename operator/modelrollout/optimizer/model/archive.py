"""A model that comes as an archive: one .onnx file with the files that its large tensors lie in, a
SavedModel, or a folder for another backend of Triton. Nothing leaves the folder.

Every member is checked before the first byte is written: names that lead out of the folder,
links, devices and archives larger than the limit are refused by name. External data is read from
the archive's own files only, and put into the model or into one file beside it (``files``).
"""

from __future__ import annotations

import errno
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO, Self

from onnx import ModelProto, TensorProto

from modelrollout.contract.common import ONE_FILE_BYTES
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.inspect import all_tensors, parse, save_as_external
from modelrollout.reasons import Reason
from modelrollout.triton.layout import CONFIG_FILE, MODEL_FILE

MAX_MEMBERS = 10_000
# of what is converted to ONNX: the libraries that do it end at 2 GiB, as protobuf does
UNPACKED_LIMIT_BYTES = 3 << 30
BESIDE_LIMIT_BYTES = 1 << 20  # of a file beside config.pbtxt, such as names of classes
_CHUNK = 1 << 20
_LONG_HEADERS = frozenset(
    {
        tarfile.GNUTYPE_LONGNAME,
        tarfile.GNUTYPE_LONGLINK,
        tarfile.XHDTYPE,
        tarfile.XGLTYPE,
        tarfile.SOLARIS_XHDTYPE,
    }
)
_HEADER_LIMIT_BYTES = 1 << 20
_FIELD = "spec.model.uri"

# What the readers raise for archives that are damaged, encrypted, or packed in a way that they do
# not know.
_BROKEN: tuple[type[Exception], ...] = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, LZMAError, EOFError, OSError, RuntimeError,
    NotImplementedError, ValueError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    plain: bool  # a regular file


def is_archive(path: Path) -> bool:
    """Whether the file is a zip or (packed) tar archive, by its first bytes."""
    with path.open("rb") as file:
        head = file.read(512)
    return (
        head.startswith((b"PK\x03\x04", b"PK\x05\x06", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"))
        or head[257:262] == b"ustar"
    )


def holds(path: Path, name: str) -> bool:
    """Whether a file of this name is in the archive, in whatever folder; False for what is no
    archive that can be read.
    """
    try:
        with _reader(path) as reader:
            return any(
                member.plain and PurePosixPath(member.name).name == name for member in reader.members()
            )
    except JobError:  # too large: ``unpack`` reports that
        return False
    except _BROKEN:
        return False


def check_members(path: Path, limit: int = UNPACKED_LIMIT_BYTES) -> None:
    """Raise JobError (ArchiveBroken, ArchiveUnsafe, TooLarge) for an archive that another library
    will unpack.
    """
    with _damage_reported(), _reader(path) as reader:
        _check(list(reader.members()), limit)


def unpack(
    path: Path,
    folder: Path,
    limit: int,
    one_file: int = ONE_FILE_BYTES,
    *,
    keep: bool = True,
    beside: Path | None = None,
) -> Path | None:
    """The model of an archive of at most ``limit`` bytes unpacked, alone in a folder below
    ``folder`` and split where one file would have more than ``one_file`` bytes; None where the
    archive holds no .onnx file. Unless it is to be kept the archive is deleted as soon as it is
    unpacked. In ``beside`` lie afterwards config.pbtxt and the small files beside it, if the
    model's folder or the one above has it.

    Raises JobError: ArchiveBroken, ArchiveUnsafe, ArchiveAmbiguous, TooLarge, and those of
    ``model.parse`` and ``gather``.
    """
    root = folder / "archive"
    with _damage_reported():
        model = _unpack_around(path, root, ".onnx", limit)
        if model is None:
            return None
        if not keep:
            path.unlink()
        target = folder / "unpacked" / MODEL_FILE
        target.parent.mkdir()
        gather(parse(model), model.parent, root, target, limit, one_file)
        if beside is not None:
            _keep_beside(model, root, beside)
    shutil.rmtree(root)
    return target


def _keep_beside(model: Path, root: Path, target: Path) -> None:
    for place in (model.parent, model.parent.parent):
        if place.is_relative_to(root) and (place / CONFIG_FILE).is_file():
            target.mkdir()
            for file in place.iterdir():
                if file.is_file() and file != model and file.stat().st_size <= BESIDE_LIMIT_BYTES:
                    shutil.move(file, target / file.name)
            return


def unpack_folder(path: Path, folder: Path, marker: str) -> Path:
    """The folder in an archive that holds the one file named ``marker``; raises JobError as
    ``unpack`` does.
    """
    with _damage_reported():
        marker_file = _unpack_around(path, folder / "archive", f"/{marker}", UNPACKED_LIMIT_BYTES)
    if marker_file is None:
        raise bad_input(
            Reason.MODEL_INVALID,
            f"{_FIELD}: the archive holds no file {marker!r}; pack the model's folder whole",
        )
    return marker_file.parent


def _unpack_around(path: Path, root: Path, ending: str, limit: int) -> Path | None:
    """Everything in the archive written below ``root``; the one file whose name ends so, None where
    there is none: nothing is written then.
    """
    with _reader(path, limit) as reader:
        members = list(reader.members())
        models = [m.name for m in members if m.plain and f"/{m.name}".endswith(ending)]
        if not models:
            return None
        _check(members, limit)
        if len(models) > 1:
            named = ", ".join(sorted(models)[:5])
            what = ending.removeprefix("/")
            raise bad_input(
                Reason.ARCHIVE_AMBIGUOUS,
                f"{_FIELD}: the archive holds {len(models)} {what} files ({named}); keep one",
            )
        for member in members:
            if member.plain:
                _write(reader, member, root / member.name)
    return root / models[0]


def extract(path: Path, root: Path, limit: int) -> tuple[str, ...]:
    """All files of an archive, in ``root``; their names. Raises JobError: ArchiveBroken,
    ArchiveUnsafe, TooLarge.
    """
    with _damage_reported(), _reader(path, limit) as reader:
        members = list(reader.members())
        _check(members, limit)
        for member in members:
            _write(reader, member, root / member.name)
    return tuple(PurePosixPath(member.name).as_posix() for member in members)


@contextmanager
def _damage_reported() -> Iterator[None]:
    """Raises JobError (ArchiveBroken) for errors of the readers."""
    try:
        yield
    except JobError:
        raise
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise  # the disk's, not the archive's
        line = (str(error).splitlines() or [""])[0][:200]
        raise bad_input(
            Reason.ARCHIVE_BROKEN,
            f"{_FIELD}: the archive cannot be read ({type(error).__name__}: {line}); pack it again, without a"
            " password",
        ) from None


class _Zip:
    def __init__(self, path: Path) -> None:
        self._zip = zipfile.ZipFile(path)

    def close(self) -> None:
        self._zip.close()

    def members(self) -> Iterator[_Member]:
        for entry in self._zip.infolist():
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if not entry.is_dir():
                yield _Member(entry.filename, entry.file_size, kind in (0, stat.S_IFREG))

    def open(self, name: str) -> IO[bytes]:
        return self._zip.open(name)


class _Entry(tarfile.TarInfo):
    """A member's header. Long names and attributes are headers before it, which tarfile reads into
    memory whole.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        member = super().frombuf(buf, encoding, errors)
        if member.type in _LONG_HEADERS and member.size > _HEADER_LIMIT_BYTES:
            raise bad_input(
                Reason.TOO_LARGE,
                f"{_FIELD}: a header in the archive has {member.size} bytes, more than {_HEADER_LIMIT_BYTES};"
                " pack it again",
            )
        return member


class _Tar:
    def __init__(self, path: Path, limit: int) -> None:
        self._tar = tarfile.open(path, "r:*", tarinfo=_Entry)  # noqa: SIM115
        self._limit = limit
        self._entries: dict[str, tarfile.TarInfo] = {}

    def close(self) -> None:
        self._tar.close()

    def members(self) -> Iterator[_Member]:
        total = 0
        for entry in self._tar:
            total += entry.size
            # every look at the next one unpacks what lies between
            if len(self._entries) > MAX_MEMBERS or total > self._limit:
                raise _too_large(total, self._limit)
            self._entries.setdefault(entry.name, entry)
            if not entry.isdir():
                yield _Member(entry.name, entry.size, entry.isreg())

    def open(self, name: str) -> IO[bytes]:
        file = self._tar.extractfile(self._entries[name])
        assert file is not None  # a regular file
        return file


@contextmanager
def _reader(path: Path, limit: int = UNPACKED_LIMIT_BYTES) -> Iterator[_Zip | _Tar]:
    with path.open("rb") as file:
        zipped = file.read(2) == b"PK"
    reader = _Zip(path) if zipped else _Tar(path, limit)
    try:
        yield reader
    finally:
        reader.close()


def _check(members: list[_Member], limit: int) -> None:
    if len(members) > MAX_MEMBERS:
        raise bad_input(
            Reason.TOO_LARGE,
            f"{_FIELD}: the archive holds {len(members)} files, more than {MAX_MEMBERS}; pack the model and"
            " its data only",
        )
    seen: set[str] = set()
    for member in members:
        parts = PurePosixPath(member.name)
        if not member.plain:
            raise bad_input(
                Reason.ARCHIVE_UNSAFE,
                f"{_FIELD}: {member.name!r} in the archive is a link or a device; pack plain files only",
            )
        if (
            parts.is_absolute()
            or ".." in parts.parts
            or "\\" in member.name
            or "\0" in member.name
            or ":" in member.name
            or not parts.parts
        ):
            raise bad_input(
                Reason.ARCHIVE_UNSAFE,
                f"{_FIELD}: {member.name!r} in the archive leads out of its folder; pack it with relative"
                " names",
            )
        if str(parts) in seen:
            raise bad_input(
                Reason.ARCHIVE_UNSAFE,
                f"{_FIELD}: {member.name!r} is in the archive twice, so that it is not clear what was meant;"
                " pack it once",
            )
        seen.add(str(parts))
    total = sum(member.size for member in members)
    if total > limit:
        raise _too_large(total, limit)


def _too_large(total: int, limit: int) -> JobError:
    return bad_input(
        Reason.TOO_LARGE,
        f"{_FIELD}: {total} bytes or more unpacked, more than the limit of {limit}; pack the model and its"
        " data only",
    )


def _write(reader: _Zip | _Tar, member: _Member, target: Path) -> None:
    """The member's bytes; a member with more bytes than its header announces is refused."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with reader.open(member.name) as source, target.open("xb") as file:
            done = 0
            while chunk := source.read(_CHUNK):
                done += len(chunk)
                if done > member.size:
                    raise bad_input(
                        Reason.ARCHIVE_BROKEN,
                        f"{_FIELD}: {member.name!r} in the archive is larger than it says; pack it again",
                    )
                file.write(chunk)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise bad_input(
            Reason.ARCHIVE_UNSAFE,
            f"{_FIELD}: {member.name!r} in the archive is a file and a folder at once; pack it again",
        ) from None


def gather(
    model: ModelProto, folder: Path, root: Path, target: Path, limit: int, one_file: int = ONE_FILE_BYTES
) -> None:
    """Write the model with its external data inside it, or split. ``folder``: where locations
    begin; files must lie in ``root``.

    Raises JobError: ExternalDataUnsafe, ExternalDataMissing, ModelTooLarge, TooLarge (tensors may
    share bytes, and be more than the files).
    """
    root = root.resolve()
    external = [
        (tensor, _part(tensor, folder, root)) for tensor in all_tensors(model) if files.is_external(tensor)
    ]
    if (total := sum(part.length for _, part in external)) > limit:
        raise _too_large(total, limit)
    outside = {tensor.name: part for tensor, part in external}
    movable = {tensor.name for tensor in model.graph.initializer}
    inside = [(tensor, part) for tensor, part in external if total <= one_file or tensor.name not in movable]
    if sum(part.length for _, part in inside) > files.PROTOBUF_LIMIT:
        raise files.graph_too_large()
    for tensor, part in inside:
        files.put_inside(tensor, part)
    files.save(model, target, one_file, lambda tensor: outside[tensor.name])


def _part(tensor: TensorProto, folder: Path, root: Path) -> files.Part:
    where = {entry.key: entry.value for entry in tensor.external_data}
    location = where.get("location", "")
    path = PurePosixPath(location)
    if not location or path.is_absolute() or ".." in path.parts or "\\" in location or "\0" in location:
        raise bad_input(
            Reason.EXTERNAL_DATA_UNSAFE,
            f"{_FIELD}: tensor {tensor.name!r} says that it lies in {location!r}, outside the archive;"
            f" {save_as_external}",
        )
    file = folder / path
    if not file.is_file() or not file.resolve().is_relative_to(root):
        raise bad_input(
            Reason.EXTERNAL_DATA_MISSING,
            f"{_FIELD}: tensor {tensor.name!r} lies in {location!r}, which the archive does not hold; pack"
            " it too",
        )
    size = file.stat().st_size
    try:
        offset = int(where.get("offset", "0"))
        length = int(where.get("length", size - offset))
    except ValueError:
        offset = length = -1
    if offset < 0 or length < 0 or offset + length > size:
        raise bad_input(
            Reason.EXTERNAL_DATA_MISSING,
            f"{_FIELD}: tensor {tensor.name!r} says that it is bytes {where.get('offset', '0')} and"
            f" {where.get('length', 'all')} more of {location!r}, which has {size}; {save_as_external}",
        )
    return files.Part(file, offset, length)
