"""An etcd and an API server of their own, from what the sandbox has built: their ports are free
ones, and everything they write is in one folder.
"""

from __future__ import annotations

import json
import ssl
import subprocess
from pathlib import Path
from typing import Any

from fleet import FleetError
from sandbox import build_parts, pins, pki
from sandbox.kube import Api
from sandbox.packages import missing_packages
from sandbox.paths import cache_root
from sandbox.scope import Scope
from sandbox.shell import free_ports, stop, until

OPERATOR, WORLD = "admin", "sandbox"  # identities of ``sandbox.pki``: who asks is in the audit log
START_SECONDS = 60.0
STOP_SECONDS = 10.0
_HOST = "127.0.0.1"
_NEEDED = {name: pins.PACKAGES[name] for name in ("etcd-server", "openssl")}


class ControlPlane(Scope):
    """A context manager: both processes run within it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.pki, self.audit = folder / "pki", folder / "audit.log"
        self._etcd, self._peer, self._port = free_ports(3)

    @property
    def server(self) -> str:
        """Its URL."""
        return f"https://{_HOST}:{self._port}"

    def kubeconfig(self, identity: str) -> Path:
        """The kubeconfig of an identity."""
        return self.pki / f"{identity}.conf"

    def trust(self, identity: str) -> ssl.SSLContext:
        """For clients that are this identity."""
        return self._api(identity).context

    def _set_up(self) -> None:
        if missing := missing_packages(_NEEDED):
            raise FleetError(
                f"missing here: {', '.join(missing)}; install them, or run `make sandbox-up` once"
            )
        part = next(p for p in pins.PARTS if p.name == "kube")
        build_parts.build(part, cache_root() / "logs" / f"build-{part.name}.log")
        program = build_parts.home(part) / part.name
        pki.create(self.pki, self.server, [_HOST], [])
        self._start("etcd", _etcd(self._folder, self._etcd, self._peer))
        self._start(
            "apiserver", _apiserver(program, self._folder, self.pki, self.audit, self._etcd, self._port)
        )
        api = self._api(WORLD)
        until("the API server", lambda: api.text("/readyz") == "ok", timeout=START_SECONDS)

    def _api(self, identity: str) -> Api:
        return Api(_HOST, self._port, self.pki, identity)

    def _start(self, name: str, argv: list[str]) -> None:
        log = self._stack.enter_context((self._folder / f"{name}.log").open("ab"))
        process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True)
        self._stack.callback(stop, process, STOP_SECONDS)


def _etcd(folder: Path, port: int, peer: int) -> list[str]:
    client = f"http://{_HOST}:{port}"
    return _argv(
        Path(pins.PACKAGES["etcd-server"]),
        "--unsafe-no-fsync",
        data_dir=folder / "etcd",
        listen_client_urls=client,
        advertise_client_urls=client,
        listen_peer_urls=f"http://{_HOST}:{peer}",
        quota_backend_bytes=6 << 30,
        log_level="warn",
        logger="zap",
    )


def _apiserver(program: Path, folder: Path, keys: Path, audit: Path, etcd: int, port: int) -> list[str]:
    policy = folder / "audit-policy.json"
    policy.write_text(json.dumps(audit_policy()))
    return _argv(
        program,
        "kube-apiserver",
        etcd_servers=f"http://{_HOST}:{etcd}",
        service_cluster_ip_range="10.96.0.0/12",
        secure_port=port,
        bind_address=_HOST,
        advertise_address=_HOST,
        tls_cert_file=keys / "apiserver.crt",
        tls_private_key_file=keys / "apiserver.key",
        client_ca_file=keys / "ca.crt",
        service_account_key_file=keys / "sa.pub",
        service_account_signing_key_file=keys / "sa.key",
        service_account_issuer="https://kubernetes.default.svc",
        disable_admission_plugins="ServiceAccount",  # nothing makes the accounts that pods would need
        audit_policy_file=policy,
        audit_log_path=audit,
        profiling="false",
    )


def audit_policy() -> dict[str, Any]:
    """One line for each request of what is measured."""
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived", "ResponseStarted"],
        "rules": [{"level": "Metadata", "users": [OPERATOR]}, {"level": "None"}],
    }


def _argv(program: Path, *words: str, **flags: object) -> list[str]:
    return [str(program), *words, *(f"--{name.replace('_', '-')}={value}" for name, value in flags.items())]
