"""Binaries built from the Go modules under parts/, kept in the cache under a key of everything they
are made of.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

from sandbox import pins
from sandbox.packages import go
from sandbox.paths import SOURCE, cache_root, locked
from sandbox.shell import capture, run

_FLAGS = ("-trimpath", "-buildvcs=false")
_ENVOY_GATEWAY = f"github.com/envoyproxy/gateway@v{pins.ENVOY_GATEWAY}"


def key(part: pins.Part, folder: Path) -> str:
    """Pins, flags and the module's files; two checkouts with the same of these share one binary."""
    h = hashlib.sha256(json.dumps([part.name, part.package, part.ldflags, part.static, *_FLAGS]).encode())
    for file in sorted(folder.iterdir()):
        if file.suffix in {".go", ".mod", ".sum"}:
            h.update(f"\0{file.name}\0".encode() + file.read_bytes())
    return h.hexdigest()[:12]


def module(part: pins.Part) -> Path:
    return SOURCE / "parts" / part.module


def home(part: pins.Part) -> Path:
    return cache_root() / f"{part.name}-{key(part, module(part))}"


def binary(name: str) -> Path:
    part = next(p for p in pins.PARTS if p.name == name)
    return home(part) / name


def cached(part: pins.Part) -> bool:
    return (home(part) / part.name).exists()


def build(part: pins.Part, log: Path) -> None:
    """Built in a folder of its own and renamed: a kill half way leaves nothing that looks
    finished.
    """
    target = home(part)
    with locked(target.name):
        if cached(part):
            return
        temporary = cache_root() / f".building-{target.name}"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        env = {
            "GOFLAGS": "-mod=readonly",
            "GOTOOLCHAIN": "local",
            **({"CGO_ENABLED": "0"} if part.static else {}),
        }
        run(
            [
                go(log, part.go_bin),
                "build",
                *_FLAGS,
                "-ldflags",
                part.ldflags,
                "-o",
                temporary / part.name,
                part.package,
            ],
            log=log,
            env=env,
            cwd=module(part),
        )
        shutil.rmtree(target, ignore_errors=True)
        temporary.rename(target)


def crds(log: Path) -> list[Path]:
    """The definitions that the gateway needs, each as one file: the Gateway API's standard channel,
    and Traefik's own kinds.
    """
    gateway_api = _yaml_of(
        "gateway-api",
        f"sigs.k8s.io/gateway-api@v{pins.GATEWAY_API}",
        "config/crd/standard/gateway.networking*.yaml",
        log,
    )
    # Its provider of these kinds watches all of them, so all have to be there.
    kinds = "docs/content/reference/dynamic-configuration/traefik.io_*.yaml"
    return [
        gateway_api,
        _yaml_of("traefik-crds", f"github.com/traefik/traefik/v3@v{pins.TRAEFIK}", kinds, log),
    ]


def argo_cd_manifests(log: Path) -> tuple[Path, Path]:
    """(its definitions, its ConfigMaps and Secret as they are installed), each as one file."""
    module = f"github.com/argoproj/argo-cd/v3@v{pins.ARGO_CD}"
    return (
        _yaml_of("argo-cd-crds", module, "manifests/crds/*-crd.yaml", log),
        _yaml_of("argo-cd-config", module, "manifests/base/config/argocd-*.yaml", log),
    )


def rollouts_crds(log: Path) -> Path:
    """The definitions of Argo Rollouts."""
    module = f"github.com/argoproj/argo-rollouts@v{pins.ARGO_ROLLOUTS}"
    return _yaml_of("argo-rollouts-crds", module, "manifests/crds/*-crd.yaml", log)


def envoy_gateway_crds(log: Path) -> Path:
    """Those of Envoy Gateway's own chart: its kinds, and the Gateway API's experimental channel."""
    return _yaml_of(
        "envoy-gateway-crds", _ENVOY_GATEWAY, "charts/gateway-helm/charts/crds/crds/**/*.yaml", log
    )


def envoy_gateway_chart(target: Path, log: Path) -> None:
    """Copy Envoy Gateway's chart to `target`. In the module its default values are a template for
    the names of images, which are given when it is installed.
    """
    shutil.copytree(
        _folder_of(_ENVOY_GATEWAY, log) / "charts" / "gateway-helm", target, copy_function=shutil.copyfile
    )
    (target / "values.tmpl.yaml").rename(target / "values.yaml")


def _folder_of(module: str, log: Path) -> Path:
    """Where Go keeps a module's files."""
    download = json.loads(
        capture([go(log), "mod", "download", "-json", module], cwd=SOURCE / "parts" / "pause")
    )
    return Path(download["Dir"])


def _yaml_of(name: str, module: str, pattern: str, log: Path) -> Path:
    """Files out of a Go module, joined and kept in the cache."""
    target = cache_root() / f"{name}-{module.rpartition('@v')[2]}.yaml"
    if not target.exists():
        files = sorted(_folder_of(module, log).glob(pattern))
        temporary = target.with_suffix(f".{os.getpid()}")
        temporary.write_text("\n---\n".join(f.read_text() for f in files))
        temporary.rename(target)
    return target


def prune() -> None:
    """Remove what builds that were killed left behind; a running build holds its lock."""
    for left in cache_root().glob(".building-*"):
        try:
            with locked(left.name.removeprefix(".building-"), wait=False):
                shutil.rmtree(left, ignore_errors=True)
        except BlockingIOError:
            continue


def versions() -> dict[str, str]:
    versions = {p.name: p.version for p in pins.PARTS if p.version}
    for line in (SOURCE / "parts" / "objectstore" / "go.mod").read_text().splitlines():
        words = line.replace("require", "").split()
        if words and words[0] == "github.com/versity/versitygw":
            versions["versitygw"] = words[1].lstrip("v")
    return versions
