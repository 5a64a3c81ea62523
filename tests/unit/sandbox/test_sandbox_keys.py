"""What is cached is found again when nothing changed, and never when something did."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
from pathlib import Path

import pytest

from sandbox import images, parts, pins
from sandbox.packages import parse_go_version
from sandbox.paths import SOURCE, State, sandbox_id

PART = pins.PARTS[1]


@pytest.fixture
def module(tmp_path: Path) -> Path:
    (tmp_path / "go.mod").write_text("module a\n")
    (tmp_path / "main.go").write_text("package main\n")
    return tmp_path


def test_a_key_is_stable(module: Path) -> None:
    assert parts.key(PART, module) == parts.key(PART, module)


@pytest.mark.parametrize("file", ["go.mod", "main.go", "go.sum"])
def test_every_file_of_the_module_changes_the_key(module: Path, file: str) -> None:
    before = parts.key(PART, module)
    (module / file).write_text("changed\n")
    assert parts.key(PART, module) != before


def test_files_that_are_no_input_do_not_change_the_key(module: Path) -> None:
    before = parts.key(PART, module)
    (module / "README.md").write_text("words\n")
    assert parts.key(PART, module) == before


@pytest.mark.parametrize("change", [{"ldflags": "-s"}, {"package": "./other"}, {"static": True}, {"name": "other"}])
def test_pins_change_the_key(module: Path, change: dict[str, object]) -> None:
    assert parts.key(dataclasses.replace(PART, **change), module) != parts.key(PART, module)  # type: ignore[arg-type]


def test_every_part_has_its_module() -> None:
    for part in pins.PARTS:
        assert (parts.module(part) / "go.mod").exists(), part.name
        if part.module not in {"pause"}:
            assert (parts.module(part) / "go.sum").exists(), part.name


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


def test_versions_names_every_part_but_pause() -> None:
    found = parts.versions()
    assert {"kube", "traefik", "coredns", "versitygw", "helm"} <= set(found)
    assert found["versitygw"][0].isdigit()


def test_two_checkouts_have_two_sandboxes() -> None:
    assert sandbox_id(Path("/a")) != sandbox_id(Path("/b"))
    assert State.of(Path("/a")).root != State.of(Path("/b")).root


def test_a_folder_key_sees_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    one = images.folder_key(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    two = images.folder_key(tmp_path)
    (tmp_path / "b").write_text("2")
    three = images.folder_key(tmp_path)
    assert len({one, two, three}) == 3
    assert images.folder_key(tmp_path, "pin") != three


def test_a_digest_does_not_run_values_together() -> None:
    assert images.digest(["ab", "c"]) != images.digest(["a", "bc"])


def test_an_archive_is_named_after_image_and_key() -> None:
    assert images.archive("localhost/modelrollout-operator:dev", "k1").name == "modelrollout-operator-dev-k1.tar"


def test_the_pause_archive_is_one_that_containerd_reads() -> None:
    data = images.single_layer("localhost/x:1", {"pause": b"binary"}, {"Entrypoint": ["/pause"]})
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        (entry,) = json.load(tar.extractfile("manifest.json"))  # type: ignore[arg-type]
        config = json.load(tar.extractfile(entry["Config"]))  # type: ignore[arg-type]
        layer = tar.extractfile(entry["Layers"][0])
        assert layer is not None
        with tarfile.open(fileobj=layer) as inner:
            member = inner.getmember("pause")
            assert member.mode == 0o755
    assert entry["RepoTags"] == ["localhost/x:1"]
    assert config["rootfs"]["diff_ids"] == [f"sha256:{entry['Layers'][0].removesuffix('.tar')}"]


def test_pip_settings_keep_the_index_and_drop_local_folders() -> None:
    listing = (
        "global.cert='/somewhere/ca.pem'\nglobal.index-url='https://index.example/simple'\n:env:.find-links='/wheels'\n:env:.default-timeout='180'\n"
    )
    text = images.pip_settings(listing, "/ca")
    assert text == "[global]\ncert = /ca\nindex-url = https://index.example/simple\ntimeout = 180\n"


@pytest.mark.parametrize(("text", "want"), [("go version go1.26.8 linux/amd64", (1, 26)), ("go version go1.27rc1 x", (1, 27)), ("nothing", None)])
def test_the_go_version_is_read(text: str, want: tuple[int, int] | None) -> None:
    assert parse_go_version(text) == want
