"""What is cached is found again when nothing changed, and never when something did."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from sandbox import build_images, build_parts, pins
from sandbox.packages import parse_go_version
from sandbox.paths import SOURCE, State, sandbox_id

PART = pins.PARTS[1]


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "go.mod").write_text("module a\n")
    (tmp_path / "main.go").write_text("package main\n")
    return tmp_path


def test_a_key_is_stable(module: Path) -> None:
    assert build_parts.key(PART, module) == build_parts.key(PART, module)


@pytest.mark.parametrize("file", ["go.mod", "main.go", "go.sum"])
def test_every_file_of_the_module_changes_the_key(module: Path, file: str) -> None:
    before = build_parts.key(PART, module)
    (module / file).write_text("changed\n")
    assert build_parts.key(PART, module) != before


def test_files_that_are_no_input_do_not_change_the_key(module: Path) -> None:
    before = build_parts.key(PART, module)
    (module / "README.md").write_text("words\n")
    assert build_parts.key(PART, module) == before


@pytest.mark.parametrize(
    "change", [{"ldflags": "-s"}, {"package": "./other"}, {"static": True}, {"name": "other"}]
)
def test_pins_change_the_key(module: Path, change: dict[str, object]) -> None:
    assert build_parts.key(dataclasses.replace(PART, **change), module) != build_parts.key(PART, module)  # type: ignore[arg-type]


def test_every_part_has_its_module() -> None:
    for part in (*pins.PARTS, pins.ARGO_CD_PART, pins.ENVOY_GATEWAY_PART):
        assert (build_parts.module(part) / "go.mod").exists(), part.name
        if part.module not in {"pause"}:
            assert (build_parts.module(part) / "go.sum").exists(), part.name


def test_pins_agree_with_the_modules() -> None:
    def required(part: str, path: str) -> str:
        text = (SOURCE / "parts" / part / "go.mod").read_text()
        return next(
            line.split()[1]
            for line in text.splitlines()
            if line.strip().removeprefix("require ").startswith(f"{path} ")
            for line in [line.strip().removeprefix("require ")]
        )

    assert required("controlplane", "k8s.io/kubernetes") == f"v{pins.KUBERNETES}"
    assert required("gateway", "github.com/traefik/traefik/v3") == f"v{pins.TRAEFIK}"
    assert required("helm", "helm.sh/helm/v3") == f"v{pins.HELM}"
    assert required("envoygateway", "github.com/envoyproxy/gateway") == f"v{pins.ENVOY_GATEWAY}"
    assert required("argocd", "github.com/argoproj/argo-cd/v3") == f"v{pins.ARGO_CD}"


def test_versions_names_every_part_but_pause() -> None:
    pinned = build_parts.versions()
    assert {"kube", "traefik", "coredns", "versitygw", "helm"} <= set(pinned)
    assert pinned["versitygw"][0].isdigit()


def test_two_checkouts_have_two_sandboxes() -> None:
    assert sandbox_id(Path("/a")) != sandbox_id(Path("/b"))
    assert State.of(Path("/a")).root != State.of(Path("/b")).root


def test_a_folder_key_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    one = build_images.folder_key(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    two = build_images.folder_key(tmp_path)
    (tmp_path / "b").write_text("2")
    three = build_images.folder_key(tmp_path)
    assert len({one, two, three}) == 3
    assert build_images.folder_key(tmp_path, "pin") != three


def test_a_digest_does_not_run_values_together() -> None:
    assert build_images.digest(["ab", "c"]) != build_images.digest(["a", "bc"])


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return build_images.layout()


def stored(ref: str, key: str, content: bytes) -> build_images.Built:
    manifest, contents = build_images.single_layer({"program": content}, {"Entrypoint": ["/program"]})
    for name, data in contents.items():
        build_images.blob(name).parent.mkdir(parents=True, exist_ok=True)
        build_images.blob(name).write_bytes(data)
    return build_images.keep(ref, key, manifest)


def test_an_image_is_found_only_whole(layout: Path) -> None:
    built = stored("localhost/x:1", "k1", b"one")
    assert build_images.find("localhost/x:1", "k1") == built
    assert build_images.find("localhost/x:1", "k2") is None
    build_images.blob(build_images.blobs(built.manifest)[-1]).unlink()
    assert build_images.find("localhost/x:1", "k1") is None


def test_an_import_carries_only_layers_that_are_not_there(layout: Path) -> None:
    built = stored("localhost/x:1", "k1", b"one")
    manifest, config, layer = build_images.blobs(built.manifest)
    full, slim = io.BytesIO(), io.BytesIO()
    assert build_images.sparse(built, lambda _: False, full) == [layer]
    assert build_images.sparse(built, lambda _: True, slim) == []
    for data, want in ((full, {manifest, config, layer}), (slim, {manifest, config})):
        data.seek(0)
        with tarfile.open(fileobj=data) as tar:
            members = {m.name: m for m in tar}
            index = json.load(tar.extractfile(members["index.json"]))  # type: ignore[arg-type]
        assert {n.removeprefix("blobs/").replace("/", ":") for n in members if n.startswith("blobs/")} == want
        assert index["manifests"][0]["digest"] == manifest
        assert index["manifests"][0]["annotations"] == {"io.containerd.image.name": "localhost/x:1"}


def test_the_newest_of_each_image_stay_and_lost_layers_go(layout: Path) -> None:
    built = [stored("localhost/x:1", f"k{i}", f"{i}".encode()) for i in range(4)]
    for age, b in enumerate(reversed(built)):
        os.utime(layout / "built" / f"x-1-{b.key}", (1000 - age, 1000 - age))
    other = stored("localhost/y:1", "k", b"y")
    build_images.prune(newest=2)
    assert [build_images.find("localhost/x:1", b.key) is not None for b in built] == [
        False,
        False,
        True,
        True,
    ]
    assert build_images.find("localhost/y:1", "k") == other
    assert len(list((layout / "blobs" / "sha256").iterdir())) == 9


def test_a_layer_is_executable_and_named_by_what_it_holds() -> None:
    manifest, contents = build_images.single_layer({"pause": b"binary"}, {"Entrypoint": ["/pause"]})
    assert all(name == f"sha256:{hashlib.sha256(data).hexdigest()}" for name, data in contents.items())
    described = json.loads(contents[manifest])
    layer = described["layers"][0]["digest"]
    assert json.loads(contents[described["config"]["digest"]])["rootfs"]["diff_ids"] == [layer]
    with tarfile.open(fileobj=io.BytesIO(contents[layer])) as tar:
        assert tar.getmember("pause").mode == 0o755


def test_pip_settings_keep_the_index_and_drop_local_folders() -> None:
    listing = "global.cert='/somewhere/ca.pem'\nglobal.index-url='https://index.example/simple'\n:env:.find-links='/wheels'\n:env:.default-timeout='180'\n"
    text = build_images.pip_settings(listing, "/ca")
    assert text == "[global]\ncert = /ca\nindex-url = https://index.example/simple\ntimeout = 180\n"


@pytest.mark.parametrize(
    ("text", "want"),
    [("go version go1.26.8 linux/amd64", (1, 26)), ("go version go1.27rc1 x", (1, 27)), ("nothing", None)],
)
def test_the_go_version_is_read(text: str, want: tuple[int, int] | None) -> None:
    assert parse_go_version(text) == want
