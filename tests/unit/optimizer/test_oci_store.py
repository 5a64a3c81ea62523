"""Registries, by a stand-in that has manifests and layers at their paths; `make test-stores` asks
the registry of the distribution project.
"""

from __future__ import annotations

import base64
import gzip
import io
import json
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelrollout.contract.common import Location
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.store import backend, http_client, oci_layers
from modelrollout.optimizer.store.object_store import ObjectStore as Store
from modelrollout.testing.object_store import ObjectStore, object_store
from tests.unit.optimizer.store_kinds import FIELD, KINDS, SECRET, layer, manifest, mounted, push, sha256

MODELPACK = "application/vnd.cncf.model.weight.v1"
MODELKIT = "application/vnd.kitops.modelkit"
IMAGE = "application/vnd.oci.image.layer.v1.tar"
REPOSITORY = "team/model"
SPARSE = b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n"


@pytest.fixture
def server() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


@pytest.fixture
def other() -> Iterator[ObjectStore]:
    with object_store() as store:
        yield store


def blob(server: ObjectStore, name: str, content: bytes, media: str) -> dict[str, Any]:
    """A layer that is there."""
    server.objects[f"/v2/{REPOSITORY}/blobs/sha256:{sha256(content)}"] = content
    return layer(name, content, media)


def tarred(*entries: tuple[str, bytes | None], link: str = "", kind: bytes = tarfile.SYMTYPE) -> bytes:
    """An archive of these files; None is an empty folder. ``link``, of ``kind``, comes last."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(content or b"")
            if content is None:
                entry.type = tarfile.DIRTYPE
            archive.addfile(entry, io.BytesIO(content or b""))
        if link:
            entry = tarfile.TarInfo(link)
            entry.type, entry.linkname = kind, "other.onnx"
            archive.addfile(entry)
    return buffer.getvalue()


def headers(kind: bytes, content: bytes, number: int, *, extended: bool = False) -> bytes:
    """So many headers of headers, and a file; ``extended``: more of the header is to follow."""
    entry, file = tarfile.TarInfo("x"), tarfile.TarInfo("f")
    entry.type, entry.size = kind, len(content)
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    if extended:
        block[482] = 1
        block[148:156] = b"%06o\0 " % (sum(block[:148]) + 8 * 32 + sum(block[156:]))
        return bytes(block)
    padded = content + bytes(-len(content) % 512)
    return (bytes(block) + padded) * number + file.tobuf() + bytes(1024)


def read(location: Location, root: Path = Path("/nowhere")) -> bytes:
    return b"".join(Store(location, FIELD, root).chunks(1 << 20))


def error_of(location: Location, root: Path = Path("/nowhere")) -> JobError:
    with pytest.raises(JobError) as error:
        read(location, root)
    assert error.value.message.startswith(f"{FIELD}: {location.uri}")
    return error.value


def test_one_file_needs_no_name(server: ObjectStore) -> None:
    at = push(server, REPOSITORY, blob(server, "m.onnx", b"model", "application/octet-stream"))
    assert read(server.oci(at)) == read(server.oci(f"{at}/m.onnx")) == b"model"


def test_a_modelpack_is_its_weights(server: ObjectStore) -> None:
    weights = blob(server, "", b"model", f"{MODELPACK}.raw")
    weights["annotations"] = {"org.cncf.model.filepath": "onnx/m.onnx"}
    readme = blob(server, "README.md", b"text", "application/vnd.cncf.model.doc.v1.raw")
    at = push(server, REPOSITORY, readme, weights)
    assert read(server.oci(at)) == read(server.oci(f"{at}/onnx/m.onnx")) == b"model"
    assert read(server.oci(f"{at}/README.md")) == b"text"


def test_a_modelkit_is_the_archive_of_its_model(server: ObjectStore) -> None:
    """The Job takes archives: it looks for the model itself. One file of it can be named."""
    archive = gzip.compress(tarred(("model", None), ("model/m.onnx", b"model")))
    at = push(
        server,
        REPOSITORY,
        blob(server, "", archive, f"{MODELKIT}.model.v1.tar+gzip"),
        blob(server, "", gzip.compress(tarred(("data.csv", b"1"))), f"{MODELKIT}.dataset.v1.tar+gzip"),
    )
    assert read(server.oci(at)) == archive
    assert read(server.oci(f"{at}/model/m.onnx")) == b"model"
    assert read(server.oci(f"{at}/data.csv")) == b"1"


def test_a_file_of_an_image_is_the_one_that_its_container_would_see(server: ObjectStore) -> None:
    below = tarred(("models/m.onnx", b"old"), ("models/gone.onnx", b"x"), ("away/m.onnx", b"x"))
    above = gzip.compress(
        tarred(("./models/m.onnx", b"new"), ("models/.wh.gone.onnx", b""), ("away/.wh..wh..opq", b""))
    )
    at = push(server, REPOSITORY, blob(server, "", below, IMAGE), blob(server, "", above, f"{IMAGE}+gzip"))
    assert read(server.oci(f"{at}/models/m.onnx")) == b"new"
    for gone in ("models/gone.onnx", "away/m.onnx", "models/none.onnx"):
        assert error_of(server.oci(f"{at}/{gone}")).reason == "ObjectMissing"


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
@pytest.mark.parametrize("link", ["models/m.onnx", "models", "./models/../models/m.onnx"])
def test_a_link_is_no_file_and_hides_the_file_of_an_earlier_layer(
    server: ObjectStore, kind: bytes, link: str
) -> None:
    below = blob(server, "", tarred(("models/m.onnx", b"old"), ("other.onnx", b"other")), IMAGE)
    at = push(server, REPOSITORY, below, blob(server, "", tarred(link=link, kind=kind), IMAGE))
    error = error_of(server.oci(f"{at}/models/m.onnx"))
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "UriInvalid") and "link" in error.message
    assert read(server.oci(f"{at}/other.onnx")) == b"other"


def test_what_took_the_place_of_a_file_or_of_its_folder_hides_it(server: ObjectStore) -> None:
    below = blob(server, "", tarred(("models/m.onnx", b"old")), IMAGE)
    for entries in ([("models", b"a file")], [("models/m.onnx", None)]):
        at = push(server, REPOSITORY, below, blob(server, "", tarred(*entries), IMAGE))
        assert error_of(server.oci(f"{at}/models/m.onnx")).reason == "UriInvalid"


@pytest.mark.parametrize("second", ["m.onnx", "./m.onnx", "/m.onnx", "a/../m.onnx"])
def test_two_files_of_one_name_are_no_file(server: ObjectStore, second: str) -> None:
    archive = tarred(("m.onnx", b"first"), ("a", None), (second, b"last"), ("other.onnx", b"other"))
    at = push(server, REPOSITORY, blob(server, "", archive, IMAGE))
    error = error_of(server.oci(f"{at}/m.onnx"))
    assert error.reason == "UriInvalid" and "is several files of this name" in error.message
    assert read(server.oci(f"{at}/other.onnx")) == b"other"
    layers = [blob(server, "m.onnx", content, f"{MODELPACK}.raw") for content in (b"first", b"last")]
    assert (
        "is 2 layers of this name"
        in error_of(server.oci(f"{push(server, REPOSITORY, *layers)}/m.onnx")).message
    )
    assert read(server.oci(f"{push(server, REPOSITORY, layers[0], layers[0])}/m.onnx")) == b"first"


def test_a_link_after_the_file_is_seen_as_well(server: ObjectStore) -> None:
    at = push(server, REPOSITORY, blob(server, "", tarred(("m/m.onnx", b"model"), link="m"), IMAGE))
    assert error_of(server.oci(f"{at}/m/m.onnx")).reason == "UriInvalid"


def test_members_of_gzip_are_one_archive(server: ObjectStore) -> None:
    """As images that can be read lazily are packed."""
    archive = tarred(("a", b"x" * 999), ("m.onnx", b"model"))
    packed = b"".join(gzip.compress(archive[at : at + 512]) for at in range(0, len(archive), 512))
    for padded in (packed, packed + bytes(700)):
        at = push(server, REPOSITORY, blob(server, "", padded, f"{IMAGE}+gzip"))
        assert read(server.oci(f"{at}/m.onnx")) == b"model"


@pytest.mark.parametrize(
    "archive", [tarred(("zeros", bytes(64 << 20))), tarred(*((f"f{i}", b"") for i in range(3000)))]
)
def test_memory_does_not_grow_with_what_a_layer_unpacks_to(archive: bytes) -> None:
    packed = gzip.compress(archive)
    layer = oci_layers.Layer(f"{IMAGE}+gzip", sha256(packed), "")
    tracemalloc.start()
    try:
        assert oci_layers.find(layer, (part for part in [packed]), "m.onnx") is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 5 << 20


def test_the_size_of_a_layer_is_not_believed(server: ObjectStore) -> None:
    content = manifest(blob(server, "m.onnx", b"model", "x")).replace(b'"size": 5', b'"size": 1e999')
    server.objects[f"/v2/{REPOSITORY}/manifests/sha256:{sha256(content)}"] = content
    assert b"1e999" in content
    assert read(server.oci(f"{REPOSITORY}@sha256:{sha256(content)}")) == b"model"


def test_what_has_several_models_needs_a_name(server: ObjectStore) -> None:
    at = push(server, REPOSITORY, *(blob(server, n, n.encode(), f"{MODELPACK}.raw") for n in ("a", "b")))
    error = error_of(server.oci(at))
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "UriInvalid")
    assert "has 2 layers (a, b); name the file" in error.message


def test_other_bytes_than_the_digests_say(server: ObjectStore) -> None:
    model = blob(server, "m.onnx", b"model", "application/octet-stream")
    at = push(server, REPOSITORY, model)
    server.objects[f"/v2/{REPOSITORY}/blobs/{model['digest']}"] = b"anotr"
    error = error_of(server.oci(at))
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "DigestMismatch")
    assert f"has sha256 {sha256(b'anotr')}, not {sha256(b'model')}" in error.message
    server.objects[f"/v2/{at.replace('@', '/manifests/')}"] = b"{}"
    assert error_of(server.oci(at)).reason == "DigestMismatch"


def test_a_file_in_an_archive_is_checked_with_the_whole_archive(server: ObjectStore) -> None:
    archive = tarred(("m.onnx", b"model"), ("other", b"x" * 20000))
    packed = blob(server, "", archive, IMAGE)
    at = push(server, REPOSITORY, packed)
    assert read(server.oci(f"{at}/m.onnx")) == b"model"
    server.objects[f"/v2/{REPOSITORY}/blobs/{packed['digest']}"] = archive.replace(b"x" * 9, b"y" * 9)
    assert error_of(server.oci(f"{at}/m.onnx")).reason == "DigestMismatch"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[]", "is no manifest"),
        (b"{", "is no manifest"),
        (b'{"layers": [{}]}', "is no manifest"),
        (b'{"layers": [{"digest": "md5:0", "mediaType": "x", "size": 1}]}', "without a SHA-256"),
        (b'{"layers": []}', "has 0 layers"),
        (b'{"manifests": [{}, {}]}', "is an index of 2 manifests"),
    ],
)
def test_manifests_that_name_no_model(server: ObjectStore, content: bytes, words: str) -> None:
    server.objects[f"/v2/{REPOSITORY}/manifests/sha256:{sha256(content)}"] = content
    error = error_of(server.oci(f"{REPOSITORY}@sha256:{sha256(content)}"))
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "UriInvalid") and words in error.message


@pytest.mark.parametrize(
    ("content", "media", "words"),
    [
        (b"x" * 2000, IMAGE, "is no archive"),
        (b"x" * 2000, f"{IMAGE}+gzip", "is no archive"),
        (gzip.compress(tarred(("a", b"x" * 9999)))[:60], f"{IMAGE}+gzip", "is no archive"),
        (b"(\xb5/\xfd", f"{IMAGE}+zstd", "packed with zstd"),
        (b"x", f"{IMAGE}+encrypted", "packed with encrypted"),
        (gzip.compress(tarred(("a", b"x"))) + b"more", f"{IMAGE}+gzip", "is no archive"),
        (tarred(("a", b""))[:512] + b"x" * 512 + bytes(1024), IMAGE, "is no archive"),
        (headers(tarfile.XHDTYPE, b"9 a=bcde\n", 2500), IMAGE, "is no archive"),
        (headers(tarfile.XHDTYPE, b"9 a=bcde\n", 51), IMAGE, "is no archive"),
        (headers(tarfile.GNUTYPE_SPARSE, b"", 1, extended=True), IMAGE, "is no archive"),
        (headers(tarfile.XHDTYPE, SPARSE, 1), IMAGE, "is no archive"),
    ],
    ids=[
        *("text", "text as gzip", "cut off", "zstd", "another packing", "more behind it"),
        *("broken header", "very many headers", "many headers", "sparse", "another sparse"),
    ],
)
def test_layers_that_are_no_archives(server: ObjectStore, content: bytes, media: str, words: str) -> None:
    at = push(server, REPOSITORY, blob(server, "", content, media))
    error = error_of(server.oci(f"{at}/m.onnx"))
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "UriInvalid") and words in error.message


def test_a_header_that_would_fill_the_memory(server: ObjectStore) -> None:
    entry = tarfile.TarInfo("long")
    entry.type, entry.size = tarfile.XHDTYPE, 1 << 30
    at = push(server, REPOSITORY, blob(server, "", entry.tobuf() + b"\0" * 2048, IMAGE))
    assert "is no archive" in error_of(server.oci(f"{at}/m.onnx")).message


def test_an_archive_that_unpacks_to_too_much(server: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oci_layers, "MAX_MODEL_BYTES", 1 << 20)
    packed = gzip.compress(tarred(("zeros", bytes(2 << 20)), ("m.onnx", b"model")))
    at = push(server, REPOSITORY, blob(server, "", packed, f"{IMAGE}+gzip"))
    error = error_of(server.oci(f"{at}/m.onnx"))
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "TooLarge")


@pytest.mark.parametrize(
    "path",
    [
        *(f"{REPOSITORY}:latest", f"{REPOSITORY}@sha256:0123", REPOSITORY, f"Team@sha256:{'0' * 64}"),
        *(f"{REPOSITORY}/..@sha256:{'0' * 64}", f"..@sha256:{'0' * 64}/m.onnx"),
    ],
)
def test_only_a_digest_is_taken(server: ObjectStore, path: str) -> None:
    error = error_of(server.oci(path))
    assert (error.code, error.reason) == (ExitCode.BAD_INPUT, "UriInvalid")
    assert not server.requests


def artifact(server: ObjectStore) -> str:
    return push(server, REPOSITORY, blob(server, "m.onnx", b"model", "application/octet-stream"))


@pytest.mark.parametrize("secret", [SECRET, None])
def test_a_token_is_got_where_the_registry_sends_for_it(
    server: ObjectStore, tmp_path: Path, secret: str | None
) -> None:
    """On its own host, with the name and the password if there are any."""
    at = artifact(server)
    place = f"/service/token?service=registry&scope=repository%3A{'team%2Fmodel'}%3Apull"
    server.objects[place] = json.dumps({"token": "tok-1"}).encode()
    server.authorization = "Bearer tok-1"
    server.challenge = f'Bearer realm="{server.url}/service/token",service="registry",scope="x"'
    assert read(server.oci(at, secret), mounted(tmp_path, KINDS["oci"].keys())) == b"model"
    asked = {
        path: headers.get("authorization")
        for (_, path), headers in zip(server.requests, server.headers, strict=True)
    }
    assert asked[place] == (f"Basic {base64.b64encode(b'reader-1:pw-1').decode()}" if secret else None)
    assert [path for _, path in server.requests].count(place) == 1


def test_a_token_is_got_from_another_host_only_if_it_is_named(
    server: ObjectStore, other: ObjectStore, tmp_path: Path
) -> None:
    at, root = artifact(server), mounted(tmp_path, KINDS["oci"].keys())
    server.authorization = "Bearer tok-1"
    server.challenge = f'Bearer realm="{other.url}/auth/token",service="registry"'
    other.objects["/auth/token?service=registry&scope=repository%3Ateam%2Fmodel%3Apull"] = (
        b'{"access_token": "tok-1"}'
    )
    error = error_of(server.oci(at, SECRET, ()), root)
    assert error.reason == "RedirectRefused" and f"sends for a token to {other.url}" in error.message
    assert not other.requests
    assert read(server.oci(at, SECRET, (f"{other.url}/auth/",)), root) == b"model"
    assert other.headers[0]["authorization"].startswith("Basic ")


def test_a_token_that_opens_nothing_is_refused_once(server: ObjectStore, tmp_path: Path) -> None:
    at, root = artifact(server), mounted(tmp_path, KINDS["oci"].keys())
    server.authorization = "Bearer right"
    server.challenge = f'Bearer realm="{server.url}/token"'
    server.objects["/token?service=&scope=repository%3Ateam%2Fmodel%3Apull"] = b'{"token": "wrong"}'
    error = error_of(server.oci(at, SECRET), root)
    assert (error.code, error.reason) == (ExitCode.DENIED, "AccessDenied")
    assert len(server.requests) == 3


def test_a_token_that_expires_while_a_layer_is_read_is_got_again(
    server: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "RETRY", {**backend.RETRY, "max_retries": 1})
    monkeypatch.setattr(http_client.time, "sleep", lambda seconds: None)
    at, root = artifact(server), mounted(tmp_path, KINDS["oci"].keys())
    token = "/token?service=&scope=repository%3Ateam%2Fmodel%3Apull"
    server.authorization, server.objects[token] = "Bearer first", b'{"token": "first"}'
    server.challenge = f'Bearer realm="{server.url}/token"'
    server.cuts[f"/v2/{REPOSITORY}/blobs/sha256:{sha256(b'model')}"] = 3

    def expire() -> None:
        server.authorization, server.objects[token] = "Bearer second", b'{"token": "second"}'

    server.after_cut = expire
    assert read(server.oci(at, SECRET), root) == b"model"
    assert [path for _, path in server.requests].count(token) == 2


@pytest.mark.parametrize(
    "answer",
    [
        *(b"{}", b"[]", b"{", b'{"token": null}', b'{"token": ["right"]}'),
        *(b'{"token": "right\\nX-Other: 1"}', b'{"token": "\\u03b1"}', b'{"token": "\\ud800"}'),
    ],
)
def test_an_answer_without_a_token(server: ObjectStore, tmp_path: Path, answer: bytes) -> None:
    at, root = artifact(server), mounted(tmp_path, KINDS["oci"].keys())
    server.authorization = "Bearer right"
    server.challenge = f'Bearer realm="{server.url}/token"'
    server.objects["/token?service=&scope=repository%3Ateam%2Fmodel%3Apull"] = answer
    assert error_of(server.oci(at, SECRET), root).reason == "AccessDenied"


@pytest.mark.parametrize(("letters", "read_so_far"), [(3900, True), (4100, False)])
def test_of_a_challenge_only_the_start_is_read(server: ObjectStore, letters: int, read_so_far: bool) -> None:
    at = artifact(server)
    server.authorization = "Bearer right"
    server.challenge = f'Bearer {"a" * letters} realm="{server.url}/token"'
    server.objects["/token?service=&scope=repository%3Ateam%2Fmodel%3Apull"] = b'{"token": "right"}'
    if read_so_far:
        assert read(server.oci(at)) == b"model"
    else:
        assert error_of(server.oci(at)).reason == "CredentialsMissing" and len(server.requests) == 1


def test_layers_of_a_content_host_that_is_named(
    server: ObjectStore, other: ObjectStore, tmp_path: Path
) -> None:
    at, root = artifact(server), mounted(tmp_path, KINDS["oci"].keys())
    server.redirects[f"/v2/{REPOSITORY}/blobs/sha256:{sha256(b'model')}"] = f"{other.url}/data/1?sig=2"
    other.objects["/data/1?sig=2"] = b"model"
    error = error_of(server.oci(at, SECRET, ()), root)
    assert error.reason == "RedirectRefused" and "sig=2" not in error.message and not other.requests
    assert read(server.oci(at, SECRET, (f"{other.url}/data/",)), root) == b"model"
    assert all("authorization" not in headers for headers in other.headers)


def test_a_manifest_is_not_got_from_another_repository(server: ObjectStore) -> None:
    at = artifact(server)
    place = f"/v2/{at.replace('@', '/manifests/')}"
    server.redirects[place] = place.replace("team/model", "another/model")
    assert error_of(server.oci(at)).reason == "RedirectRefused"
