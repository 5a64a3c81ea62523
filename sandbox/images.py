"""Images: made with buildah from real Dockerfiles, kept as archives under a key, imported into this sandbox's containerds."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox import parts, pins
from sandbox.paths import CHECKOUT, SOURCE, State, cache_root, locked
from sandbox.progress import Progress
from sandbox.shell import CommandError, capture, run

PAUSE = "localhost/pause:1"
BASE = "localhost/modelrollout-base:1"
TRITON = f"localhost/tritonserver-cpu:{pins.PYTRITON}"
PROJECT = {"operator": "localhost/modelrollout-operator:dev", "optimizer": "localhost/modelrollout-optimizer:dev"}

BASE_PACKAGES = ("python3", "python3-pip", "python3-venv", "libpython3.11", "ca-certificates")
_CA = "/etc/ssl/certs/ca-certificates.crt"
_state_lock = threading.Lock()


@dataclass(frozen=True)
class Built:
    ref: str
    key: str
    archive: Path


def digest(values: Iterable[str | bytes]) -> str:
    h = hashlib.sha256()
    for value in values:
        data = value.encode() if isinstance(value, str) else value
        h.update(len(data).to_bytes(8, "big") + data)
    return h.hexdigest()[:16]


def folder_key(folder: Path, *more: str) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return digest([*more, *(x for f in files for x in (str(f.relative_to(folder)), f.read_bytes()))])


def archive(ref: str, key: str) -> Path:
    name = re.sub(r"[^a-z0-9.]+", "-", ref.removeprefix("localhost/"))
    return cache_root() / "images" / f"{name}-{key}.tar"


def _finish(built: Built) -> Built:
    """Older archives of the same image go."""
    stem = built.archive.name.removesuffix(f"-{built.key}.tar")
    for old in built.archive.parent.glob(f"{stem}-*.tar"):
        if old != built.archive and len(old.name) == len(built.archive.name):
            old.unlink(missing_ok=True)
    return built


# -- the pause image, without any tool


def single_layer(ref: str, files: dict[str, bytes], config: dict[str, Any]) -> bytes:
    """A docker-archive of one layer of executables."""

    def pack(entries: dict[str, bytes], mode: int) -> bytes:
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, data in entries.items():
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(data), mode
                tar.addfile(info, io.BytesIO(data))
        return out.getvalue()

    layer = pack(files, 0o755)
    layer_digest = hashlib.sha256(layer).hexdigest()
    described = json.dumps(
        {"architecture": "amd64", "os": "linux", "config": config, "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]}}
    ).encode()
    name = f"{hashlib.sha256(described).hexdigest()}.json"
    manifest = json.dumps([{"Config": name, "RepoTags": [ref], "Layers": [f"{layer_digest}.tar"]}]).encode()
    return pack({name: described, f"{layer_digest}.tar": layer, "manifest.json": manifest}, 0o644)


def pause() -> Built:
    binary = parts.binary("pause")
    built = Built(PAUSE, (key := digest([binary.parent.name])), archive(PAUSE, key))
    if not built.archive.exists():
        built.archive.parent.mkdir(parents=True, exist_ok=True)
        temporary = built.archive.with_suffix(f".{os.getpid()}")
        temporary.write_bytes(single_layer(PAUSE, {"pause": binary.read_bytes()}, {"Entrypoint": ["/pause"]}))
        temporary.rename(built.archive)
    return _finish(built)


# -- buildah


def _buildah(*argv: str | Path) -> list[str | Path]:
    home = cache_root() / "buildah"
    return ["buildah", "--root", home / "storage", "--runroot", home / "run", "--storage-driver", "overlay", *argv]


def _mirror() -> str:
    """The machine's own Debian mirror, as apt knows it."""
    targets = capture(["apt-get", "indextargets", "--format", "$(SITE) $(RELEASE)", "Created-By: Packages"])
    for line in targets.splitlines():
        site, _, release = line.rpartition(" ")
        if release == pins.DEBIAN_SUITE:
            return site
    return "http://deb.debian.org/debian"


def pip_settings(listing: str, certificate: str = _CA) -> str:
    """pip.conf for a build, from `pip config list` of this machine; what names local files is left out."""
    kept = {"cert": certificate}
    for line in listing.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in {"index-url", "extra-index-url", "trusted-host", "proxy", "timeout", "default-timeout"}:
            kept[option.removeprefix("default-")] = value.strip().strip("'\"").replace("\\n", "\n    ")
    return "[global]\n" + "".join(f"{k} = {v}\n" for k, v in kept.items())


def _mounts() -> list[str]:
    """What RUN needs from this machine to install packages; nothing of it stays in the image."""
    certificate = next((v for n in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE") if (v := os.environ.get(n)) and Path(v).is_file()), _CA)
    try:
        listing = capture(["python3", "-m", "pip", "config", "list"])
    except CommandError:
        listing = ""
    settings = cache_root() / "pip.conf"
    temporary = settings.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(pip_settings(listing))
    temporary.rename(settings)
    return ["-v", f"{certificate}:{_CA}:ro", "-v", f"{settings}:/etc/pip.conf:ro"]


def _bud(ref: str, context: Path, log: Path, *, target: str | None = None, layers: bool = False, **arguments: str) -> None:
    argv: list[str | Path] = ["bud", "--isolation", "chroot", "--pull-never", f"--layers={str(layers).lower()}", *_mounts()]
    argv += ["--tag", ref, "--format", "docker", *(["--target", target] if target else [])]
    for name, value in arguments.items():
        argv += ["--build-arg", f"{name}={value}"]
    run(_buildah(*argv, "-f", context / "Dockerfile", context), log=log)


def _push(ref: str, target: Path, log: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_suffix(f".{os.getpid()}")
    temporary.unlink(missing_ok=True)
    run(_buildah("push", "--quiet", ref, f"docker-archive:{temporary}:{ref}"), log=log)
    temporary.rename(target)


def _image_id(ref: str) -> str | None:
    try:
        return capture(_buildah_text("images", "--quiet", "--no-trunc", ref)).strip().removeprefix("sha256:") or None
    except CommandError:
        return None


def _buildah_text(*argv: str) -> list[str | Path]:
    return _buildah(*argv)


# -- each image


def base_key() -> str:
    return digest([pins.DEBIAN_SUITE, *BASE_PACKAGES, "1"])


def triton_key() -> str:
    return folder_key(SOURCE / "images" / "triton", base_key(), pins.PYTRITON)


def ensure_base(log: Path) -> None:
    """A minimal Debian with Python, in buildah's store only: other images stand on it."""
    mark = cache_root() / "buildah" / f"base-{base_key()}"
    with locked("base-image"):
        if mark.exists() and _image_id(BASE):
            return
        root = cache_root() / ".debootstrap"
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        run(["debootstrap", "--variant=minbase", f"--include={','.join(BASE_PACKAGES)}", pins.DEBIAN_SUITE, root, _mirror()], log=log)
        for left in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale", "var/log"):
            shutil.rmtree(root / left, ignore_errors=True)
            (root / left).mkdir(parents=True, exist_ok=True)
        (root / "etc/apt/sources.list").write_text("")
        (root / "etc/resolv.conf").unlink(missing_ok=True)
        (root / "etc/hostname").unlink(missing_ok=True)
        name = capture(_buildah_text("from", "scratch")).strip()
        run(_buildah("add", "--quiet", name, root, "/"), log=log)
        run(_buildah("config", "--cmd", "/bin/bash", "--env", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", name), log=log)
        run(_buildah("commit", "--quiet", "--rm", "--format", "docker", name, BASE), log=log)
        shutil.rmtree(root, ignore_errors=True)
        mark.touch()


def build_triton(log: Path) -> Built:
    key = triton_key()
    built = Built(TRITON, key, archive(TRITON, key))
    if not built.archive.exists():
        _bud(TRITON, SOURCE / "images" / "triton", log, layers=True, BASE=BASE, PYTRITON=pins.PYTRITON)
        _push(TRITON, built.archive, log)
    return _finish(built)


def build_project(target: str, log: Path) -> Built:
    """Always asked of buildah, whose layer cache knows what changed; the image's id is the key."""
    ref = PROJECT[target]
    _bud(ref, CHECKOUT, log, target=target, layers=True, BASE=BASE)
    found = _image_id(ref)
    if not found:
        raise RuntimeError(f"buildah built {ref} but does not list it")
    built = Built(ref, found[:16], archive(ref, found[:16]))
    if not built.archive.exists():
        _push(ref, built.archive, log)
    return _finish(built)


def build_all(progress: Progress, logs: Path) -> list[Built]:
    found: list[Built] = []
    project = (CHECKOUT / "Dockerfile").exists()
    if project or not archive(TRITON, triton_key()).exists():
        with progress.step("base image (debootstrap)", logs / "image-base.log"):
            ensure_base(logs / "image-base.log")
    with progress.step("Triton image", logs / "image-triton.log") as step:
        step.note = "cached" if archive(TRITON, triton_key()).exists() else ""
        found.append(build_triton(logs / "image-triton.log"))
    if project:
        for target in PROJECT:
            with progress.step(f"{target} image", logs / f"image-{target}.log"):
                found.append(build_project(target, logs / f"image-{target}.log"))
    return found


# -- into the cluster


def loaded(state: State) -> dict[str, dict[str, str]]:
    """Node -> image -> key of what was imported."""
    try:
        found: dict[str, dict[str, str]] = json.loads(state.images.read_text())
    except (FileNotFoundError, ValueError):
        found = {}
    return found


def load(state: State, node: str, built: list[Built], progress: Progress, log: Path) -> None:
    for image in built:
        if loaded(state).get(node, {}).get(image.ref) == image.key:
            continue
        with progress.step(f"import {image.ref.removeprefix('localhost/')} on {node}", log):
            run(["ctr", "--address", state.containerd(node), "--namespace", "k8s.io", "images", "import", image.archive], log=log)
            with _state_lock:
                table = loaded(state)
                table.setdefault(node, {})[image.ref] = image.key
                temporary = state.images.with_suffix(".tmp")
                temporary.write_text(json.dumps(table, indent=1))
                temporary.rename(state.images)
