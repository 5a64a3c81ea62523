"""An image of the layout as a folder of files, for programs that run outside the cluster."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

from sandbox.build_images import Built, blob

_WHITEOUT = ".wh."


def unpack(image: Built, folder: Path) -> None:
    """Write the image's files to `folder`, which must not exist. Owners need root."""
    folder.mkdir(parents=True)
    for layer in json.loads(blob(image.manifest).read_text())["layers"]:
        with _layer(layer["digest"], layer["mediaType"]) as tar:
            for member in tar:
                path = Path(member.name)
                if path.name.startswith(_WHITEOUT):
                    _remove(folder / path.parent / path.name.removeprefix(_WHITEOUT))
                    continue
                if not member.isdir():
                    _remove(folder / path)  # writing through it would change its hard links too
                tar.extract(member, folder)


@contextmanager
def _layer(digest: str, media_type: str) -> Iterator[tarfile.TarFile]:
    """A layer as a stream. tarfile reads zstd from Python 3.14 on."""
    with blob(digest).open("rb") as file:
        zstd = media_type.endswith("+zstd")
        stream = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True) if zstd else file
        with tarfile.open(fileobj=stream, mode="r|*") as tar:
            tar.extraction_filter = lambda member, path: member  # as it is: the layers are ours
            yield tar


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
