"""Which part of an OCI artifact is the model: a layer as it is, or a file in the tar archives of a
ModelKit, a ModelPack or an image.
"""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Self

from modelrollout.contract.common import MAX_MODEL_BYTES
from modelrollout.optimizer.store.http_client import CHUNK_BYTES, Fault

# Layers with weights: ModelPack (and by the name that it had before), ModelKit.
_WEIGHTS = re.compile(r"^application/vnd\.((cncf|cnai)\.model\.weight\.v1\.|kitops\.modelkit\.model\.v1\.)")
_TAR = re.compile(r"[.]tar([.+]gzip)?$")
_PACKED_TAR = re.compile(r"[.]tar[.+](.+)$")  # and is no _TAR
# of a layer's file, as ORAS, ModelPack and its predecessor write it
_NAMES = ("org.opencontainers.image.title", "org.cncf.model.filepath", "org.cnai.model.filepath")
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
# Of one entry, long names and maps of sparse files included: tarfile has them in memory whole.
_HEADERS_LIMIT_BYTES = 1 << 20
# Of one entry: for each of them tarfile calls itself, and how deep it may is for others to say.
_HEADERS_LIMIT = 50
_READ_BYTES = 16 << 10  # for each header tarfile copies what it has read ahead
_PIECE_BYTES = 1 << 20
_GZIP = zlib.MAX_WBITS | 16
# What tarfile raises for odd archives: it foresees some, and stumbles over others.
_BROKEN = (
    *(tarfile.TarError, zlib.error, EOFError),
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
)


@dataclass(frozen=True)
class Layer:
    """A blob: its media type, digest (64 hexadecimal digits), and the file that it is."""

    media: str
    digest: str
    name: str

    @property
    def is_tar(self) -> bool:
        """Whether files can be read from it."""
        return _TAR.search(self.media) is not None

    @property
    def shown(self) -> str:
        """How a message names it."""
        return (self.name or self.media)[:200]


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
            found.append(Layer(str(layer["mediaType"]), digest[1], str(name)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Fault("Unfit", detail="is no manifest with layers; write the digest of an artifact") from None
    return found


def as_it_is(layers: list[Layer], file: str) -> Layer | None:
    """The layer that is the model: the one of that name, or without a name the only one with
    weights, or the only one. None where ``file`` has to be looked for in ``archives``.
    """
    if file:
        named = {layer.digest: layer for layer in layers if layer.name == file and not layer.is_tar}
        if len(named) > 1:
            raise Fault("Unfit", detail=f"is {len(named)} layers of this name; push it again")
        return next(iter(named.values()), None)
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
        elif packed := _PACKED_TAR.search(layer.media):
            raise Fault(
                "Unfit", detail=f"is packed with {packed[1][:50]}, which is not read; pack it with gzip"
            )


class _Tar(tarfile.TarFile):
    headers = 0  # of the entry that is being read


class _Entry(tarfile.TarInfo):
    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> Self:
        assert isinstance(tar, _Tar)
        tar.headers += 1
        if tar.headers > _HEADERS_LIMIT:
            raise tarfile.ReadError("too many headers")
        return super().fromtarfile(tar)

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """tarfile takes a broken header for the end: what comes after it would not be seen."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if any(buf):
                raise tarfile.ReadError("a broken header") from None
            raise


class _Stream:
    """What tarfile reads a stream from. ``most``: no more bytes are read than so many."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._chunk, self._at = chunks, b"", 0
        self._read, self.most = 0, float(_HEADERS_LIMIT_BYTES)

    def read(self, size: int) -> bytes:
        parts = []
        while size > 0:
            if self._at == len(self._chunk):
                self._chunk, self._at = next(self._chunks, b""), 0
                if not self._chunk:
                    break
            parts.append(self._chunk[self._at : self._at + size])
            self._at += len(parts[-1])
            self._read += len(parts[-1])
            size -= len(parts[-1])
        if self._read > self.most:
            raise tarfile.ReadError("headers that are too long")
        return b"".join(parts)


def _unpacked(blob: Iterator[bytes]) -> Iterator[bytes]:
    """What gzip has packed, in one member or several, in pieces that do not grow with how tightly
    it is packed.
    """
    inflate = zlib.decompressobj(_GZIP)
    for chunk in blob:
        # zlib copies what it leaves of its input
        for at in range(0, len(chunk), _READ_BYTES):
            rest = chunk[at : at + _READ_BYTES]
            while rest:
                if inflate.eof:
                    rest = rest.lstrip(b"\0")  # padding
                    if not rest:
                        break
                    inflate = zlib.decompressobj(_GZIP)
                if piece := inflate.decompress(rest, _PIECE_BYTES):
                    yield piece
                rest = inflate.unconsumed_tail or inflate.unused_data
    if not inflate.eof:
        raise EOFError


class _Archive:
    """The files of a layer. What it has in memory does not grow with what is in the layer."""

    def __init__(self, layer: Layer, blob: Iterator[bytes]) -> None:
        """Raises what ``_BROKEN`` lists, as all methods do."""
        self._stream = _Stream(_unpacked(blob) if layer.media.endswith("gzip") else blob)
        stream: Any = self._stream  # reads, and does nothing else that a file does
        # what it remembers of entries is in attributes that its annotations do not have
        self._tar: Any = _Tar.open(mode="r|", fileobj=stream, bufsize=_READ_BYTES, tarinfo=_Entry)

    def entries(self) -> Iterator[tarfile.TarInfo]:
        """The entries that are left; also raises Fault (TooLarge)."""
        while True:
            # the next look unpacks what lies between
            if self._tar.offset > MAX_MODEL_BYTES:
                raise Fault("TooLarge", detail=f"unpacks to more than the limit of {MAX_MODEL_BYTES} bytes")
            self._stream.most = self._tar.offset + _HEADERS_LIMIT_BYTES
            self._tar.headers = 0
            entry = self._tar.next()
            if entry is None:
                return
            self._tar.members.clear()
            self._tar.pax_headers.clear()
            yield entry

    def content(self, entry: tarfile.TarInfo) -> Iterator[bytes]:
        """Of the entry that was seen last."""
        self._stream.most = float("inf")
        file = self._tar.extractfile(entry)
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def find(
    layer: Layer, blob: Generator[bytes, None, None], file: str
) -> tuple[int, Generator[bytes, None, None]] | None:
    """(size, content) of a regular file in the archive; None if it is not there. Reads the blob to
    its end, so that whoever checks its digest has seen it all.

    Raises Fault, also while it is read: ObjectMissing where the layer says that the file is gone;
    Unfit where it is something else than one regular file in folders.
    """
    wanted = _plain(file)
    gone = _whiteouts(wanted)
    is_gone = False
    try:
        with _unfit(layer):
            archive = _Archive(layer, blob)
            for entry in archive.entries():
                if _is_wanted(entry, wanted):
                    return entry.size, _content(layer, archive, entry, blob)
                is_gone = is_gone or _plain(entry.name) in gone
            _drain(blob)
    except Fault:
        blob.close()
        raise
    if is_gone:
        raise Fault("ObjectMissing")
    return None


def _content(
    layer: Layer, archive: _Archive, entry: tarfile.TarInfo, blob: Generator[bytes, None, None]
) -> Generator[bytes, None, None]:
    wanted = _plain(entry.name)
    try:
        with _unfit(layer):
            yield from archive.content(entry)
            if any(_is_wanted(later, wanted) for later in archive.entries()):
                raise Fault(
                    "Unfit", detail=f"is several files of this name in a layer ({layer.shown}); push it again"
                )
            _drain(blob)
    finally:
        blob.close()


def _plain(name: str) -> str:
    """A name as an absolute path without dots, as what unpacks an image reads it."""
    return posixpath.normpath("/" + name.lstrip("/"))


def _whiteouts(wanted: str) -> frozenset[str]:
    """Names of entries which say that the file of lower layers, or a folder that it is in, is
    gone.
    """
    path = PurePosixPath(wanted)
    return frozenset(
        str(part.parent / name)
        for part in (path, *path.parents[:-1])
        for name in (_WHITEOUT + part.name, _OPAQUE)
    )


def _is_wanted(entry: tarfile.TarInfo, wanted: str) -> bool:
    """Whether the entry is the file; Fault Unfit where it hides the file: links are not followed,
    and what an earlier layer has there is not what a container sees.
    """
    name = _plain(entry.name)
    if name == wanted:
        if not entry.isreg():
            raise Fault("Unfit", detail="is a link, a folder or a device there; name the file itself")
        return True
    if wanted.startswith(f"{name}/") and not entry.isdir():
        raise Fault("Unfit", detail=f"lies behind {name}, which is a link or a file; name the file itself")
    return False


@contextmanager
def _unfit(layer: Layer) -> Iterator[None]:
    try:
        yield
    except _BROKEN:
        raise Fault(
            "Unfit", detail=f"has a layer ({layer.shown}) that is no archive; push it again"
        ) from None


def _drain(blob: Iterator[bytes]) -> None:
    for _ in blob:
        pass
