"""Argo CD without pods: its application controller, repository server and ApplicationSet
controller, and Redis, as processes of this machine against the sandbox's API server.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from demo import DemoError
from demo.cluster import RELEASE, Cluster, Object
from demo.setup import CHART
from gitops import GitopsError
from gitops.story import ARGO_NAMESPACE, NAMESPACE, SERVER
from sandbox import build_parts, packages, pins
from sandbox.paths import cache_root
from sandbox.scope import Scope
from sandbox.shell import free_ports, stop, tail, until

START_SECONDS = 60.0
STOP_SECONDS = 20.0
KINDS = ("applications", "applicationsets", "appprojects")
PORTS = ("redis", "repo", "repo-metrics", "controller", "sets", "probe", "hook")
# The one binary is what its name says.
PROGRAMS = (
    "argocd",
    "argocd-application-controller",
    "argocd-repo-server",
    "argocd-applicationset-controller",
)
LOGS = cache_root() / "logs"
# Argo CD talks to this machine alone.
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


def binary(say: Callable[[str], None]) -> Path:
    """Argo CD's program, built the first time."""
    part, log = pins.ARGO_CD_PART, LOGS / f"build-{pins.ARGO_CD_PART.name}.log"
    if not build_parts.cached(part):
        say(f"building Argo CD {pins.ARGO_CD}: about {part.cold_seconds / 60:.0f} minutes (log: {log})")
    build_parts.build(part, log)
    return build_parts.home(part) / part.name


def install_packages() -> None:
    """Redis and Git, where they are missing."""
    missing = packages.missing_packages(pins.GITOPS_PACKAGES)
    if missing:
        packages.install_packages(missing, LOGS / "packages.log", pins.GITOPS_PACKAGES)


class ArgoCD(Scope):
    """A context manager: what it needs in the cluster, and its processes; both are gone afterwards.
    ``folder`` holds logs, sockets and clones; ``namespaces``: those that it looks at, beside what
    has none. Watching all would take the processors from what is measured.
    """

    def __init__(
        self,
        cluster: Cluster,
        kubeconfig: Path,
        folder: Path,
        say: Callable[[str], None],
        namespaces: Sequence[str] = (NAMESPACE,),
    ) -> None:
        super().__init__()
        self._cluster, self._kubeconfig, self._folder = cluster, kubeconfig, folder
        self._say, self._namespaces = say, namespaces
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def _set_up(self) -> None:
        install_packages()
        program = binary(self._say)
        self._install()
        self._start(program)

    def check(self) -> None:
        """Raises GitopsError where one of the processes has ended."""
        for name, process in self._processes.items():
            if process.poll() is not None:
                raise GitopsError(
                    f"{name} ended with exit code {process.returncode}; {self._log(name)} ends with:\n"
                    f"{tail(self._log(name))}"
                )

    # --- in the cluster

    def _install(self) -> None:
        definitions, configuration = build_parts.argo_cd_manifests(LOGS / "argo-cd.log")
        self._stack.callback(self._remove)
        self._remove()  # what a run left that was killed
        self._cluster.kubectl("apply", "--server-side", "-f", str(definitions))
        for kind in KINDS:
            # `kubectl wait` fails on a definition that has no status yet
            until(f"the definition of {kind}", lambda kind=kind: self._is_established(kind))  # type: ignore[misc]
        self._cluster.fresh_namespace(ARGO_NAMESPACE)
        self._cluster.apply(
            *configured(_objects(configuration), self._customizations()),
            cluster_secret(self._namespaces),
        )

    def _is_established(self, kind: str) -> bool:
        path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        conditions = (self._cluster.get(f"{path}/{kind}.argoproj.io").get("status") or {}).get("conditions")
        return any(c["type"] == "Established" and c["status"] == "True" for c in conditions or [])

    def _customizations(self) -> Object:
        """The entries for argocd-cm that the chart renders."""
        text = self._cluster.helm(
            "template",
            RELEASE,
            str(CHART),
            "--kube-version",
            pins.KUBERNETES,  # our build of helm takes 1.20 for granted
            "--values",
            str(CHART / "ci" / "default-values.yaml"),
            "--set",
            "argoCD.customizations=true",
            "--show-only",
            "templates/argo-cd.yaml",
        )
        data: Object = yaml.safe_load(text)["data"]
        return data

    def _remove(self) -> None:
        """Its processes are gone, so that finalizers wait for them in vain: an ApplicationSet gives
        each of its Applications one. Nothing that they applied is deleted with them.
        """
        for kind in KINDS[:2]:
            with suppress(DemoError):  # the definition is not there
                listed = self._cluster.kubectl(
                    "get", f"{kind}.argoproj.io", "-n", ARGO_NAMESPACE, "-o", "name"
                )
                for name in listed.split():
                    free = '{"metadata": {"finalizers": null}}'
                    self._cluster.kubectl("patch", name, "-n", ARGO_NAMESPACE, "--type=merge", "-p", free)
        definitions = [f"crd/{kind}.argoproj.io" for kind in KINDS]
        for what in (definitions, [f"namespace/{ARGO_NAMESPACE}"]):
            with suppress(DemoError):  # the API server is away
                self._cluster.kubectl("delete", *what, "--ignore-not-found")

    # --- processes

    def _start(self, program: Path) -> None:
        ports = dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
        tools = self._folder / "bin"
        tools.mkdir(parents=True, exist_ok=True)
        for name in PROGRAMS:
            (tools / name).unlink(missing_ok=True)
            (tools / name).symlink_to(program)
        (tools / "helm").unlink(missing_ok=True)
        (tools / "helm").symlink_to(self._cluster.target.tool("helm"))
        environment = process_environment(self._folder, self._kubeconfig, tools)
        for name in ("tmp", "home", "tls", "ssh"):
            (self._folder / name).mkdir(exist_ok=True)
        for name, command in commands(ports, tools).items():
            with self._log(name).open("wb") as log:
                self._processes[name] = subprocess.Popen(
                    command, stdout=log, stderr=log, env=environment, cwd=self._folder, start_new_session=True
                )
            self._stack.callback(stop, self._processes[name], STOP_SECONDS)
            until(f"{name} answers", partial(self._answers, *_probe(name, ports)), timeout=START_SECONDS)

    def _answers(self, port: int, path: str | None) -> bool:
        self.check()
        if path is None:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return True
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
        try:
            connection.request("GET", path)
            return connection.getresponse().status == 200
        finally:
            connection.close()

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"


def commands(ports: Mapping[str, int], tools: Path) -> dict[str, list[str]]:
    """The command line of each process, in the order in which they start."""
    redis, repository = f"127.0.0.1:{ports['redis']}", f"127.0.0.1:{ports['repo']}"
    # fmt: off
    lines = {
        "redis-server": [
            "/usr/bin/redis-server", "--port", ports["redis"], "--bind", "127.0.0.1", "--save", "",
            "--appendonly", "no",
        ],
        "argocd-repo-server": [
            tools / "argocd-repo-server", "--address", "127.0.0.1", "--port", ports["repo"],
            "--metrics-address", "127.0.0.1", "--metrics-port", ports["repo-metrics"],
            "--redis", redis, "--disable-tls",
        ],
        "argocd-application-controller": [
            tools / "argocd-application-controller", "--namespace", ARGO_NAMESPACE,
            "--metrics-port", ports["controller"], "--redis", redis,
            "--repo-server", repository, "--repo-server-plaintext",
            "--persist-resource-health",  # into status.resources, where it can be read
        ],
        "argocd-applicationset-controller": [
            tools / "argocd-applicationset-controller", "--namespace", ARGO_NAMESPACE,
            "--metrics-addr", f"127.0.0.1:{ports['sets']}", "--probe-addr", f"127.0.0.1:{ports['probe']}",
            "--webhook-addr", f"127.0.0.1:{ports['hook']}",
            "--argocd-repo-server", repository, "--repo-server-plaintext",
        ],
    }
    # fmt: on
    return {name: [str(word) for word in line] for name, line in lines.items()}


def _probe(name: str, ports: Mapping[str, int]) -> tuple[int, str | None]:
    """(port, path of HTTP); without a path a connection is enough."""
    return {
        "redis-server": (ports["redis"], None),
        "argocd-repo-server": (ports["repo-metrics"], "/healthz"),
        "argocd-application-controller": (ports["controller"], "/healthz"),
        "argocd-applicationset-controller": (ports["probe"], None),  # it registers no check
    }[name]


def process_environment(folder: Path, kubeconfig: Path, tools: Path) -> dict[str, str]:
    """Of all processes: everything that Argo CD keeps below / is in the folder."""
    kept = {key: value for key, value in os.environ.items() if key.lower() not in _PROXIES}
    return kept | {
        "PATH": f"{tools}:{os.environ.get('PATH', '')}",
        "HOME": str(folder / "home"),
        "TMPDIR": str(folder / "tmp"),
        "HOSTNAME": "argocd-application-controller-0",
        "KUBECONFIG": str(kubeconfig),
        "ARGOCD_FAKE_IN_CLUSTER": "true",  # https://kubernetes.default.svc is that of KUBECONFIG
        "ARGOCD_GPG_ENABLED": "false",
        "ARGOCD_TLS_DATA_PATH": str(folder / "tls"),
        "ARGOCD_SSH_DATA_PATH": str(folder / "ssh"),
        "ARGOCD_ASK_PASS_SOCK": str(folder / "ask-pass.sock"),
    }


def configured(objects: Sequence[Object], customizations: Mapping[str, Any]) -> list[Object]:
    """Argo CD's ConfigMaps and Secret in its namespace, with the operator's customizations merged
    into argocd-cm as the documentation says.
    """
    made = []
    for o in objects:
        more: Object = {}
        if o["kind"] == "ConfigMap" and o["metadata"]["name"] == "argocd-cm":
            more = {"data": {**(o.get("data") or {}), **customizations}}
        if o["kind"] == "Secret" and o["metadata"]["name"] == "argocd-secret":
            # its server, which does not run here, would make one
            more = {"stringData": {"server.secretkey": secrets.token_urlsafe(32)}}
        made.append({**o, **more, "metadata": {**o["metadata"], "namespace": ARGO_NAMESPACE}})
    return made


def cluster_secret(namespaces: Sequence[str]) -> Object:
    """The cluster as Argo CD sees it: these namespaces, and what has none."""
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": "in-cluster",
            "namespace": ARGO_NAMESPACE,
            "labels": {"argocd.argoproj.io/secret-type": "cluster"},
        },
        "stringData": {
            "name": "in-cluster",
            "server": SERVER,
            "namespaces": ",".join(namespaces),
            "clusterResources": "true",
            "config": json.dumps({"tlsClientConfig": {"insecure": False}}),
        },
    }


def _objects(file: Path) -> list[Object]:
    return [o for o in yaml.safe_load_all(file.read_text()) if o]
