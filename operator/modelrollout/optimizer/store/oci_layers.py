"""Which part of an OCI artifact is the model: a layer as it is, or a file in the tar archives of a
ModelKit, a ModelPack or an image.
"""

from __future__ import annotations

import json
import re
import tarfile
import zlib
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Self

from modelrollout.contract.common import MAX_MODEL_BYTES
from modelrollout.optimizer.store.http_client import CHUNK_BYTES, Fault

# Layers with weights: ModelPack (and by the name that it had before), ModelKit.
_WEIGHTS = re.compile(r"^application/vnd\.((cncf|cnai)\.model\.weight\.v1\.|kitops\.modelkit\.model\.v1\.)")
_TAR = re.compile(r"[.]tar([.+]gzip)?$")
# of a layer's file, as ORAS, ModelPack and its predecessor write it
_NAMES = ("org.opencontainers.image.title", "org.cncf.model.filepath", "org.cnai.model.filepath")
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
# Long names are headers of their own, which tarfile reads into memory whole.
_HEADER_LIMIT_BYTES = 1 << 20
_READ_BYTES = 1 << 20
_BROKEN = (tarfile.TarError, zlib.error, EOFError, ValueError, OverflowError)


@dataclass(frozen=True)
class Layer:
    """A blob: its media type, digest (64 hexadecimal digits), bytes, and the file that it is."""

    media: str
    digest: str
    size: int
    name: str

    @property
    def is_tar(self) -> bool:
        """Whether files can be read from it."""
        return _TAR.search(self.media) is not None

    @property
    def shown(self) -> str:
        """How a message names it."""
        return self.name or self.media


def layers_of(manifest: bytes) -> list[Layer]:
    """The layers of a manifest; Fault Unfit where it has none that can be read."""
    try:
        content = json.loads(manifest)
        if "manifests" in content:
            several = len(content["manifests"])
            raise Fault(
                "Unfit", detail=f"is an index of {several} manifests; write the digest of one of them"
            )
        found = []
        for layer in content["layers"]:
            digest = re.fullmatch(r"sha256:([0-9a-f]{64})", layer["digest"])
            if digest is None:
                raise Fault("Unfit", detail="has a layer without a SHA-256; push it again")
            annotations = layer.get("annotations") or {}
            name = next((annotations[key] for key in _NAMES if key in annotations), "")
            found.append(Layer(str(layer["mediaType"]), digest[1], int(layer["size"]), str(name)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Fault("Unfit", detail="is no manifest with layers; write the digest of an artifact") from None
    return found


def as_it_is(layers: list[Layer], file: str) -> Layer | None:
    """The layer that is the model: the one of that name, or without a name the only one with
    weights, or the only one. None where ``file`` has to be looked for in ``archives``.
    """
    if file:
        return next((layer for layer in layers if layer.name == file and not layer.is_tar), None)
    models = [layer for layer in layers if _WEIGHTS.search(layer.media)] or layers
    if len(models) != 1:
        names = ", ".join(layer.shown for layer in models[:5]) or "none"
        raise Fault(
            "Unfit", detail=f"has {len(models)} layers ({names}); name the file behind the digest: /FILE"
        )
    return models[0]


def archives(layers: list[Layer]) -> Iterator[Layer]:
    """Where a file may be, the last word first: a later layer replaces files of an earlier one."""
    for layer in reversed(layers):
        if layer.is_tar:
            yield layer
        elif "tar" in layer.media and "zstd" in layer.media:
            raise Fault("Unfit", detail="is packed with zstd, which is not read; pack it with gzip")


class _Entry(tarfile.TarInfo):
    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        entry = super().frombuf(buf, encoding, errors)
        if entry.type not in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE) and entry.size > _HEADER_LIMIT_BYTES:
            raise tarfile.ReadError("a header that is too long")
        return entry


class _Stream:
    """What tarfile reads a stream from."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._chunk, self._at = chunks, b"", 0

    def read(self, size: int) -> bytes:
        parts = []
        while size > 0:
            if self._at == len(self._chunk):
                self._chunk, self._at = next(self._chunks, b""), 0
                if not self._chunk:
                    break
            parts.append(self._chunk[self._at : self._at + size])
            self._at += len(parts[-1])
            size -= len(parts[-1])
        return b"".join(parts)


def find(
    layer: Layer, blob: Generator[bytes, None, None], file: str
) -> tuple[int, Generator[bytes, None, None]] | None:
    """(size, content) of a regular file in the archive; None if it is not there. Reads the blob to
    its end, so that whoever checks its digest has seen it all.

    Raises Fault (ObjectMissing), also while it is read, where the layer says that the file is gone.
    """
    wanted = PurePosixPath(file)
    gone = {
        str(folder / name)
        for part in (wanted, *wanted.parents[:-1])
        for folder, name in ((part.parent, _WHITEOUT + part.name), (part.parent, _OPAQUE))
    }
    is_gone = False
    try:
        packed = layer.media.endswith("gzip")
        stream: Any = _Stream(blob)  # reads, and does nothing else that a file does
        archive = tarfile.open(  # noqa: SIM115
            mode="r|gz" if packed else "r|", fileobj=stream, bufsize=_READ_BYTES, tarinfo=_Entry
        )
        for entry in archive:
            # the next look unpacks what lies between
            if archive.offset > MAX_MODEL_BYTES:
                raise Fault("TooLarge", detail=f"unpacks to more than the limit of {MAX_MODEL_BYTES} bytes")
            name = PurePosixPath(entry.name.lstrip("/"))
            if name == wanted and entry.isreg():
                return entry.size, _content(archive, entry, blob)
            is_gone = is_gone or str(name) in gone
        _drain(blob)
    except _BROKEN:
        raise Fault(
            "Unfit", detail=f"has a layer ({layer.shown}) that is no archive; push it again"
        ) from None
    if is_gone:
        raise Fault("ObjectMissing")
    return None


def _content(
    archive: tarfile.TarFile, entry: tarfile.TarInfo, blob: Generator[bytes, None, None]
) -> Generator[bytes, None, None]:
    try:
        file = archive.extractfile(entry)
        assert file is not None  # a regular file
        while chunk := file.read(CHUNK_BYTES):
            yield chunk
        _drain(blob)
    except _BROKEN:
        raise Fault("Unfit", detail="has a layer that is no archive; push it again") from None
    finally:
        blob.close()


def _drain(blob: Iterator[bytes]) -> None:
    for _ in blob:
        pass
