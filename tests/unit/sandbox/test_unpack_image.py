"""Images of the layout become folders, whichever way their layers are compressed."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import zstandard

from sandbox import build_images
from sandbox.unpack_image import unpack

COMPRESSIONS = {"": bytes, "+gzip": gzip.compress, "+zstd": zstandard.compress}


def tar(files: dict[str, str], links: dict[str, str] | None = None) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, text in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(text), 0o750
            archive.addfile(info, io.BytesIO(text.encode()))
        for name, target in (links or {}).items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = tarfile.LNKTYPE, target
            archive.addfile(info)
    return out.getvalue()


def image(layers: list[bytes], compression: str) -> build_images.Built:
    def put(data: bytes) -> str:
        name = f"sha256:{hashlib.sha256(data).hexdigest()}"
        build_images.blob(name).parent.mkdir(parents=True, exist_ok=True)
        build_images.blob(name).write_bytes(data)
        return name

    media_type = f"application/vnd.oci.image.layer.v1.tar{compression}"
    described = [
        {"mediaType": media_type, "digest": put(COMPRESSIONS[compression](layer))} for layer in layers
    ]
    manifest = json.dumps({"config": {"digest": put(b"{}")}, "layers": described})
    return build_images.keep("localhost/x:1", "k", put(manifest.encode()))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_layers_are_laid_over_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    built = image(
        [
            tar({"bin/a": "one", "bin/b": "gone", "etc/c": "gone", "etc/d/e": "gone"}, {"bin/link": "bin/a"}),
            tar({"bin/a": "two", "bin/.wh.b": "", ".wh.etc": ""}),
        ],
        compression,
    )
    unpack(built, tmp_path / "root")
    files = {p.relative_to(tmp_path / "root").as_posix(): p.read_text() for p in tmp_path.glob("root/bin/*")}
    assert files == {"bin/a": "two", "bin/link": "one"}
    assert not (tmp_path / "root" / "etc").exists()
    assert (tmp_path / "root" / "bin" / "a").stat().st_mode & 0o777 == 0o750
