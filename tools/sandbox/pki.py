"""Certificates for one sandbox: a CA of its own, one identity for each part, kubeconfigs that embed
them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from sandbox.shell import run


@dataclass(frozen=True)
class Identity:
    """A client (or server) certificate: `user` and `group` are what the API server sees, and what
    the audit log names.
    """

    file: str
    user: str
    group: str


MASTERS = "system:masters"
IDENTITIES = (
    Identity("apiserver", "kube-apiserver", MASTERS),
    Identity("admin", "admin", MASTERS),
    Identity("controller-manager", "system:kube-controller-manager", "sandbox"),
    Identity("scheduler", "system:kube-scheduler", "sandbox"),
    Identity("proxy", "system:kube-proxy", "system:node-proxier"),
    Identity("traefik", "traefik", MASTERS),
    Identity("prometheus", "prometheus", MASTERS),
    Identity("coredns", "coredns", MASTERS),
    Identity("sandbox", "sandbox", MASTERS),
)


def node_identity(node: str) -> Identity:
    return Identity(f"kubelet-{node}", f"system:node:{node}", "system:nodes")


def kubeconfig(server: str, ca: bytes, certificate: bytes, key: bytes, name: str = "sandbox") -> str:
    """JSON is YAML: every client reads it."""

    def text(data: bytes) -> str:
        return base64.b64encode(data).decode()

    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [
                {"name": name, "cluster": {"server": server, "certificate-authority-data": text(ca)}}
            ],
            "users": [
                {
                    "name": name,
                    "user": {"client-certificate-data": text(certificate), "client-key-data": text(key)},
                }
            ],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        },
        indent=1,
    )


def subject_alt_names(addresses: Iterable[str], names: Iterable[str]) -> str:
    return ",".join([*(f"DNS:{n}" for n in names), *(f"IP:{a}" for a in addresses)])


def create(folder: Path, server: str, addresses: Iterable[str], nodes: Iterable[str]) -> None:
    """Everything at once; the CA's certificate is written last and marks the set as whole."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if (folder / "done").exists():
        return
    curve: list[str | Path] = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    ca, ca_key = folder / "ca.crt", folder / "ca.key"
    run(
        [
            "openssl",
            "req",
            "-x509",
            *curve,
            "-keyout",
            ca_key,
            "-out",
            ca,
            "-days",
            "365",
            "-subj",
            "/CN=sandbox-ca",
        ]
    )
    run(["openssl", "genrsa", "-out", folder / "sa.key", "2048"])
    run(["openssl", "rsa", "-in", folder / "sa.key", "-pubout", "-out", folder / "sa.pub"])
    names = [
        "localhost",
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        *nodes,
    ]
    extensions = folder / "extensions"
    extensions.write_text(
        f"subjectAltName={subject_alt_names(addresses, names)}\nextendedKeyUsage=serverAuth,clientAuth\n"
    )
    for identity in [*IDENTITIES, *map(node_identity, nodes)]:
        base = folder / identity.file
        key, request, certificate = (
            base.with_suffix(".key"),
            base.with_suffix(".csr"),
            base.with_suffix(".crt"),
        )
        run(
            [
                "openssl",
                "req",
                *curve,
                "-keyout",
                key,
                "-out",
                request,
                "-subj",
                f"/O={identity.group}/CN={identity.user}",
            ]
        )
        signing: list[str | Path] = [
            "-CA",
            ca,
            "-CAkey",
            ca_key,
            "-CAcreateserial",
            "-days",
            "365",
            "-extfile",
            extensions,
        ]
        run(["openssl", "x509", "-req", "-in", request, *signing, "-out", certificate])
        request.unlink()
        base.with_suffix(".conf").write_text(
            kubeconfig(server, ca.read_bytes(), certificate.read_bytes(), key.read_bytes())
        )
    (folder / "done").touch()
