"""Bringing one sandbox up, looking at it, and taking it away."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from sandbox import (
    addons,
    build_images,
    build_parts,
    configs,
    control,
    envoy,
    namespaces,
    packages,
    pins,
    pki,
    preflight,
    slots,
)
from sandbox.configs import ADDONS, ORDER, PORTS, Config, Options, node_name
from sandbox.kube import Api
from sandbox.paths import CHECKOUT, SOURCE, State, cache_root, locked, state_root
from sandbox.progress import Progress
from sandbox.shell import capture, run, until
from sandbox.slots import NODES

KUBELET_PORT = 10250
GATEWAY_CRDS = ("gateways.gateway.networking.k8s.io", "traefikservices.traefik.io")


class SandboxError(RuntimeError):
    """Something a person must do or know."""


@dataclass(frozen=True)
class Record:
    """What is known about a sandbox's init; `complete` only after a whole `up`."""

    pid: int
    start_time: int
    slot: int
    complete: bool
    created: float
    options: Options
    checkout: str = ""

    @classmethod
    def read(cls, state: State) -> Record | None:
        try:
            record = json.loads(state.record.read_text())
            return cls(**{**record, "options": Options(**record["options"])})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def write(self, state: State) -> None:
        _write(state.record, json.dumps(asdict(self), indent=1))

    @property
    def alive(self) -> bool:
        return namespaces.start_time(self.pid) == self.start_time


def _write(path: Path, text: str) -> None:
    """In one step: a reader or a kill never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    temporary.rename(path)


def _get(address: str, path: str, timeout: float = 2) -> int:
    connection = http.client.HTTPConnection(address, timeout=timeout)
    try:
        connection.request("GET", path)
        return connection.getresponse().status
    finally:
        connection.close()


def _listens(address: str | tuple[str, int]) -> bool:
    """Does something accept connections there (a socket file, or host and port)?"""
    with socket.socket(
        socket.AF_UNIX if isinstance(address, str) else socket.AF_INET, socket.SOCK_STREAM
    ) as s:
        s.settimeout(1)
        s.connect(address)
    return True


def dns_answers(server: str, name: str) -> bool:
    """One A question over UDP: is there an answer?"""
    question = b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0\0\1\0\1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.settimeout(1)
        s.sendto(b"\x12\x34\x01\x00\0\1\0\0\0\0\0\0" + question, (server, 53))
        reply = s.recv(512)
    return reply[3] & 15 == 0 and int.from_bytes(reply[6:8], "big") > 0


class Sandbox:
    def __init__(self, state: State | None = None) -> None:
        self.state = state or State.of()

    # -- what it is made of

    def config(self, slot: slots.Slot, options: Options) -> Config:
        keys = self._keys()
        return Config(
            state=self.state,
            slot=slot,
            binaries={p.name: build_parts.home(p) / p.name for p in pins.PARTS},
            python=sys.executable,
            source=SOURCE.parent,
            access_key=keys["access_key"],
            secret_key=keys["secret_key"],
            options=options,
        )

    def _keys(self) -> dict[str, str]:
        try:
            keys: dict[str, str] = json.loads(self.state.objectstore.read_text())
        except (FileNotFoundError, ValueError):
            keys = {
                "access_key": "SANDBOX" + secrets.token_hex(6).upper(),
                "secret_key": secrets.token_urlsafe(30),
            }
        return keys

    def api(self, c: Config) -> Api:
        return Api(c.slot.infra, PORTS["apiserver"], self.state.pki)

    # -- up

    def up(
        self, progress: Progress, options: Options, *, with_images: bool = True, with_envoy: bool = False
    ) -> dict[str, Any]:
        bad = preflight.problems(self.state)
        if bad:
            raise SandboxError("this machine cannot run the sandbox:\n" + "\n".join(f"- {b}" for b in bad))
        try:
            with locked(self.state.id, wait=False):
                status = self._up(progress, options, with_images)
                if with_envoy:
                    self._add_envoy(progress)
                    status = self.status()
                return status
        except BlockingIOError as error:
            raise SandboxError("another command is bringing this sandbox up or down: wait for it") from error

    def _up(self, progress: Progress, options: Options, with_images: bool) -> dict[str, Any]:
        record = Record.read(self.state)
        if record and record.alive and record.complete:
            if record.options != options:
                raise SandboxError(f"the sandbox runs with other options ({record.options}): down first")
            return self._again(progress, record, with_images)
        if record or self.state.root.exists() or namespaces.cgroup_processes(self.state.cgroup):
            with progress.step("remove what an earlier run left"):
                self._down()
        with ThreadPoolExecutor(4) as pool:
            # Logs of what does not belong to one sandbox lie in the cache: they survive a `down`.
            logs = cache_root() / "logs"
            logs.mkdir(parents=True, exist_ok=True)
            self._packages(progress, logs)
            image_builds = pool.submit(self._build_images, progress, logs) if with_images else None
            self._parts(progress, logs)
            c = self._boot(progress, options)
            self._control_plane(progress, c)
            loads = [pool.submit(self._load_images, progress, c, node, image_builds) for node in NODES]
            self._nodes(progress, c)
            self._addons(progress, c)
            for load in loads:
                load.result()
        record = Record.read(self.state)
        assert record
        Record(**{**record.__dict__, "complete": True}).write(self.state)
        return self.status()

    def _again(self, progress: Progress, record: Record, with_images: bool) -> dict[str, Any]:
        """The sandbox runs: start what was stopped, look at everything, load what changed."""
        c = self.config(slots.Slot(record.slot), record.options)
        logs = cache_root() / "logs"
        with progress.step("start what does not run") as step:
            running = control.parts(self.state)
            stopped = [p for p in (*ORDER, *ADDONS) if not running.get(p, {}).get("running")]
            for part in stopped:
                control.start(self.state, part)
            step.note = ", ".join(stopped) or "nothing"
        with progress.step("check health"):
            self.healthy(c)
        if with_images:
            with ThreadPoolExecutor(2) as pool:
                built = pool.submit(self._build_images, progress, logs)
                built.result()
                for load in [pool.submit(self._load_images, progress, c, node, built) for node in NODES]:
                    load.result()
        return self.status()

    def _packages(self, progress: Progress, logs: Path) -> None:
        names = packages.missing_packages()
        if names:
            with progress.step(f"install Debian packages: {' '.join(names)}", logs / "packages.log"):
                packages.install_packages(names, logs / "packages.log")

    def _parts(self, progress: Progress, logs: Path) -> None:
        build_parts.prune()
        missing = [p for p in pins.PARTS if not build_parts.cached(p)]
        for part in missing:
            note = f"about {part.cold_seconds} s when nothing is cached" if part.cold_seconds else ""
            with progress.step(f"build {part.name}", logs / f"build-{part.name}.log", note):
                build_parts.build(part, logs / f"build-{part.name}.log")
        build_parts.crds(logs / "gateway-api.log")
        packages.kubectl(logs / "kubectl.log")

    def _boot(self, progress: Progress, options: Options) -> Config:
        with progress.step("namespaces, network and certificates", self.state.logs / "supervisor.log"):
            slot = slots.acquire(self.state.id, namespaces.host_routes())
            for folder in self.state.folders():
                folder.mkdir(parents=True, exist_ok=True)
            self.state.root.chmod(0o711)
            c = self.config(slot, options)
            addresses = ["127.0.0.1", slot.infra, slot.api_service, *map(slot.node, NODES)]
            certificates = threading.Thread(
                target=pki.create, args=(self.state.pki, c.server, addresses, list(map(node_name, NODES)))
            )
            certificates.start()
            self._init(c)
            for path, text in configs.files(c).items():
                _write(path, text)
            for name in ("etcd", "prometheus", "s3/meta", *(f"s3/objects/{b}" for b in configs.BUCKETS)):
                (self.state.data / name).mkdir(parents=True, exist_ok=True)
            (self.state.data / "etcd").chmod(0o700)
            _write(self.state.objectstore, json.dumps(self.objectstore(c), indent=1))
            self.state.objectstore.chmod(0o600)
            certificates.join()
            if not (self.state.pki / "done").exists():
                raise SandboxError("certificates could not be made")
            _write(self.state.kubeconfig, (self.state.pki / "admin.conf").read_text())
            self.state.kubeconfig.chmod(0o600)
        return c

    def _init(self, c: Config) -> None:
        """Start the supervisor; its cgroup is made first, so that it can be found whatever happens
        next.
        """
        for name in ("host", *NODES):
            namespaces.make_cgroup(f"{self.state.cgroup}/{name}")
        env = {**os.environ, "PYTHONPATH": str(SOURCE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "sandbox.supervisor", self.state.root],
            env=env,
            capture_output=True,
            text=True,
        )
        if done.returncode or not done.stdout.strip():
            raise SandboxError(f"the supervisor did not start: {done.stderr[-2000:]}")
        pid = int(done.stdout)
        born = namespaces.start_time(pid)
        if born is None:
            raise SandboxError("the supervisor ended at once: see its log")
        Record(pid, born, c.slot.number, False, time.time(), c.options, str(CHECKOUT)).write(self.state)
        inside = [c.slot.infra, *map(c.slot.node, NODES)]
        namespaces.connect(pid, c.slot.veth, c.slot.host, inside, [c.slot.pods, c.slot.services])
        # Local senders need a route before the packet filter sees them; there is no default route.
        run(
            [
                "nsenter",
                "--net",
                "--target",
                str(pid),
                "ip",
                "route",
                "replace",
                c.slot.services,
                "dev",
                "host0",
                "src",
                c.slot.infra,
            ]
        )
        until("the supervisor's socket", lambda: control.parts(self.state) is not None or True, timeout=10)

    def _start(self, *names: str) -> None:
        for name in names:
            control.start(self.state, name)

    def _alive(self, *names: str) -> None:
        """Fail early when a part that was started has ended."""
        parts = control.parts(self.state)
        for name in names:
            if not parts.get(name, {}).get("running"):
                error = SandboxError(f"{name} ended with code {parts.get(name, {}).get('exit')}")
                error.log = self.state.logs / f"{name}.log"  # type: ignore[attr-defined]
                raise error

    def _until(self, what: str, check: Callable[[], bool], *names: str, timeout: float = 60) -> None:
        def is_reached() -> bool:
            self._alive(*names)
            return check()

        until(what, is_reached, timeout=timeout)

    def _control_plane(self, progress: Progress, c: Config) -> None:
        with progress.step("control plane", self.state.logs / "apiserver.log"):
            self._start("etcd", *(f"containerd-{n}" for n in NODES))
            self._until(
                "etcd", lambda: _connects("127.0.0.1", 2379, Record.read(self.state)), "etcd", timeout=30
            )
            self._start("apiserver")
            api = self.api(c)
            self._until(
                "the API server", lambda: api.text("/readyz") == "ok", "etcd", "apiserver", timeout=90
            )

    def _are_established(self, c: Config, *crds: str) -> bool:
        """Whether the API server serves these CRDs.

        ``kubectl wait`` cannot be used: it fails on a CRD that has no status yet
        (``conditions accessor error``), as a new one on a busy machine has.
        """
        listed = json.loads(self.kubectl(c, "get", "crd", "-o", "json", *crds))["items"]
        return all(
            any(
                condition["type"] == "Established" and condition["status"] == "True"
                for condition in (crd.get("status") or {}).get("conditions") or []
            )
            for crd in listed
        )

    def _apply(self, c: Config, what: Path | list[addons.Object]) -> None:
        """A file of manifests, or objects."""
        file, text = (str(what), None) if isinstance(what, Path) else ("-", yaml.safe_dump_all(what))
        self.kubectl(c, "apply", "--server-side", "--force-conflicts", "-f", file, stdin=text)

    def _nodes(self, progress: Progress, c: Config) -> None:
        with progress.step("nodes", self.state.logs / "kubelet-gpu.log"):
            self._start(
                "controller-manager", "scheduler", "proxy", "dns", "objectstore", "discovery", "prometheus"
            )
            for node in NODES:
                self._until(
                    "containerd's socket",
                    lambda node=node: _listens(str(self.state.containerd(node))),  # type: ignore[misc]
                    f"containerd-{node}",
                )
            self._start(*(f"kubelet-{n}" for n in NODES), "capacity")
            self._apply(c, addons.base(c))
            self._until(
                "the nodes",
                lambda: self.nodes_ready(c),
                "controller-manager",
                *(f"kubelet-{n}" for n in NODES),
                timeout=90,
            )

    def _addons(self, progress: Progress, c: Config) -> None:
        with progress.step("gateway, Prometheus, object store, DNS", self.state.logs / "gateway.log"):
            for crds in build_parts.crds(self.state.logs / "gateway-api.log"):
                self._apply(c, crds)
            self._until("the gateway's CRDs", lambda: self._are_established(c, *GATEWAY_CRDS))
            self._apply(c, addons.gateway())
            self._start("gateway")
            self.healthy(c)

    def _add_envoy(self, progress: Progress) -> None:
        """Envoy Gateway beside Traefik; it stays until `down`."""
        _, c = self.running()
        part, logs = pins.ENVOY_GATEWAY_PART, cache_root() / "logs"
        log = logs / f"build-{part.name}.log"
        if not build_parts.cached(part):
            note = f"about {part.cold_seconds} s when nothing is cached"
            with progress.step(f"build {part.name}", log, note):
                build_parts.build(part, log)
        with progress.step("Envoy image", logs / "image-envoy.log"):
            image = build_images.build_envoy(logs / "image-envoy.log")
        # its pods do not tolerate the GPU node's taint
        build_images.load(self.state, "cpu", [image], progress, self.state.logs / "images-cpu.log")
        with progress.step("Envoy Gateway", log):
            crds = build_parts.envoy_gateway_crds(log)
            self._apply(c, crds)
            self._until("Envoy Gateway's CRDs", lambda: self._are_established(c, *envoy.CRDS))
            with tempfile.TemporaryDirectory() as folder:
                chart = Path(folder) / "chart"
                build_parts.envoy_gateway_chart(chart, log)
                self._install_envoy(chart)
            self._apply(c, envoy.gateway())
            self._until("Envoy", lambda: self.gateway_programmed(c, envoy.GATEWAY), timeout=120)

    def _install_envoy(self, chart: Path) -> None:
        capture(
            [
                build_parts.binary("helm"),
                "upgrade",
                "--install",
                envoy.RELEASE,
                chart,
                *("--namespace", envoy.NAMESPACE, "--create-namespace", "--skip-crds"),
                *("--values", "-", "--wait", "--timeout", "3m"),
            ],
            stdin=yaml.safe_dump(envoy.chart_values()),
            env={"KUBECONFIG": str(self.state.kubeconfig)},
        )

    # -- health

    def nodes_ready(self, c: Config) -> bool:
        nodes = {n["metadata"]["name"]: n for n in self.api(c).get("/api/v1/nodes")["items"]}
        for node in NODES:
            item = nodes.get(node_name(node), {"status": {}, "spec": {}})
            ready = any(
                x["type"] == "Ready" and x["status"] == "True" for x in item["status"].get("conditions", [])
            )
            waiting = any(
                t["key"].startswith("node.kubernetes.io/not-ready") for t in item["spec"].get("taints", [])
            )
            if not ready or waiting:
                return False
        gpus = nodes[node_name("gpu")]["status"]["allocatable"].get(configs.GPU)
        return bool(gpus == str(c.options.gpus))

    def gateway(self, c: Config, which: tuple[str, str]) -> dict[str, Any]:
        space, name = which
        return self.api(c).get(f"/apis/gateway.networking.k8s.io/v1/namespaces/{space}/gateways/{name}")

    def gateway_programmed(self, c: Config, which: tuple[str, str] = addons.GATEWAY) -> bool:
        return any(
            x["type"] == "Programmed" and x["status"] == "True"
            for x in self.gateway(c, which)["status"].get("conditions", [])
        )

    def checks(self, c: Config) -> dict[str, Callable[[], bool]]:
        return {
            "apiserver": lambda: self.api(c).text("/readyz") == "ok",
            "nodes": lambda: self.nodes_ready(c),
            "prometheus": lambda: _get(c.address("prometheus"), "/-/ready") == 200,
            "objectstore": lambda: _get(c.address("objectstore"), "/healthz") == 200,
            "dns": lambda: dns_answers(c.slot.infra, "kubernetes.default.svc.cluster.local"),
            "gateway": lambda: _get(c.address("dashboard"), "/ping") == 200 and self.gateway_programmed(c),
        }

    def healthy(self, c: Config, timeout: float = 60) -> None:
        for name, check in self.checks(c).items():
            part = name if name in (*ORDER, *ADDONS) else "apiserver"
            self._until(name, check, part, timeout=timeout)

    # -- images

    def _build_images(
        self, progress: Progress, logs: Path, flavours: Iterable[str] = ()
    ) -> list[build_images.Built]:
        return build_images.build_all(
            progress, logs, sorted({*flavours, *build_images.loaded_flavours(self.state)})
        )

    def _load_images(
        self, progress: Progress, c: Config, node: str, built: Future[list[build_images.Built]] | None
    ) -> None:
        until("containerd's socket", lambda: _listens(str(self.state.containerd(node))), timeout=30)
        build_images.load(
            self.state, node, [build_images.pause()], progress, self.state.logs / f"images-{node}.log"
        )
        if built is not None:
            build_images.load(
                self.state, node, built.result(), progress, self.state.logs / f"images-{node}.log"
            )

    def load_images(self, progress: Progress, flavours: Iterable[str] = ()) -> None:
        _, c = self.running()
        logs = cache_root() / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(3) as pool:
            built = pool.submit(self._build_images, progress, logs, flavours)
            built.result()
            for load in [pool.submit(self._load_images, progress, c, node, built) for node in NODES]:
                load.result()

    def load_own_image(self, progress: Progress, name: str, folder: Path, target: str | None = None) -> str:
        """Build and load one image that is not the project's; returns its name by digest."""
        self.running()
        log = self.state.logs / f"image-{build_images.slug(name)}.log"
        with progress.step(f"{name} image", log):
            built = build_images.build_own(name, folder, log, target)
        for node in NODES:
            build_images.load(self.state, node, [built], progress, self.state.logs / f"images-{node}.log")
        return built.by_digest

    # -- parts

    def running(self) -> tuple[Record, Config]:
        record = Record.read(self.state)
        if record is None or not record.alive:
            raise SandboxError("no sandbox runs for this checkout: `python -m sandbox up`")
        return record, self.config(slots.Slot(record.slot), record.options)

    def wait_part(self, c: Config, part: str) -> None:
        """Until a part that was started does its work again."""
        kind, _, node = part.partition("-")
        if kind == "kubelet":
            self._until(part, lambda: _listens((c.slot.node(node), KUBELET_PORT)), part)
        if kind == "containerd":
            self._until(part, lambda: _listens(str(self.state.containerd(node))), part)
        check = self.checks(c).get(
            {"etcd": "apiserver", "kubelet": "nodes", "capacity": "nodes"}.get(kind, part)
        )
        if check:
            self._until(part, check, part)
        else:
            time.sleep(0.5)
            self._alive(part)

    # -- down

    def down(self) -> None:
        try:
            with locked(self.state.id, wait=False):
                self._down()
        except BlockingIOError as error:
            raise SandboxError("another command is bringing this sandbox up or down: wait for it") from error

    def _down(self) -> None:
        """By what was started: the init (its end ends everything inside), the cgroup, the link, the
        folder, the slot.
        """
        record = Record.read(self.state)
        if record and record.alive:
            with contextlib.suppress(ProcessLookupError):
                os.kill(record.pid, signal.SIGKILL)
        namespaces.kill_cgroup(self.state.cgroup)
        slot = slots.slot_of(self.state.id)
        if slot:
            namespaces.disconnect(slot.veth)
        if self.state.root.exists():
            namespaces.unmount_below(self.state.root)
            shutil.rmtree(self.state.root)
        slots.release(self.state.id)
        with contextlib.suppress(OSError):
            state_root().rmdir()

    # -- looking

    def _envoy(self, c: Config) -> dict[str, Any] | None:
        """Where Envoy Gateway was asked for."""
        try:
            return envoy.described(self.gateway(c, envoy.GATEWAY))
        except (OSError, ValueError):
            return None

    def objectstore(self, c: Config) -> dict[str, Any]:
        return {
            "endpoint": f"http://{c.address('objectstore')}",
            "endpoint_in_cluster": f"http://objectstore.storage.svc:{PORTS['objectstore']}",
            "access_key": c.access_key,
            "secret_key": c.secret_key,
            "region": configs.REGION,
            "buckets": list(configs.BUCKETS),
        }

    def kubectl(self, c: Config, *argv: str, stdin: str | None = None) -> str:
        return capture([packages.kubectl(), "--kubeconfig", self.state.kubeconfig, *argv], stdin=stdin)

    def status(self) -> dict[str, Any]:
        record = Record.read(self.state)
        base: dict[str, Any] = {
            "id": self.state.id,
            "checkout": str(CHECKOUT),
            "state_dir": str(self.state.root),
            "cache_dir": str(cache_root()),
        }
        if record is None or not record.alive:
            return {**base, "running": False}
        c = self.config(slots.Slot(record.slot), record.options)
        health: dict[str, str] = {}
        for name, check in self.checks(c).items():
            try:
                health[name] = "ok" if check() else "not ready"
            except Exception as error:
                health[name] = f"{type(error).__name__}: {error}"
        nodes: list[dict[str, Any]] = []
        with contextlib.suppress(OSError, ValueError):
            nodes = [_node(n) for n in self.api(c).get("/api/v1/nodes")["items"]]
        try:
            running = control.parts(self.state)
        except control.ControlError as error:
            running = {}
            health["supervisor"] = str(error)
        return {
            **base,
            "running": True,
            "complete": record.complete,
            "healthy": all(v == "ok" for v in health.values()),
            "health": health,
            "init_pid": record.pid,
            "kubeconfig": str(self.state.kubeconfig),
            "apiserver": c.server,
            "gateway": {
                "address": c.address("gateway"),
                "in_cluster": f"traefik.gateways.svc:{PORTS['gateway']}",
                "class": addons.GATEWAY_CLASS,
                "namespace": addons.GATEWAY[0],
                "name": addons.GATEWAY[1],
                "dashboard": f"http://{c.address('dashboard')}/dashboard/",
                "metrics": f"http://{c.address('traefik-metrics')}/metrics",
                "latency_buckets": list(configs.LATENCY_BUCKETS),
            },
            "envoy": self._envoy(c),
            "prometheus": {
                "url": f"http://{c.address('prometheus')}",
                "in_cluster": f"http://prometheus.monitoring.svc:{PORTS['prometheus']}",
                "scrape_interval": c.options.scrape_interval,
            },
            "objectstore": {
                "endpoint": f"http://{c.address('objectstore')}",
                "endpoint_in_cluster": f"http://objectstore.storage.svc:{PORTS['objectstore']}",
                "keys_file": str(self.state.objectstore),
                "buckets": list(configs.BUCKETS),
                "region": configs.REGION,
            },
            "network": {
                "host": c.slot.host,
                "infra": c.slot.infra,
                "pods": c.slot.pods,
                "services": c.slot.services,
                "dns": c.slot.dns_service,
            },
            "audit_log": str(self.state.audit),
            "logs": str(self.state.logs),
            "nodes": nodes,
            "parts": running,
            "images": build_images.loaded(self.state),
            "versions": {
                **build_parts.versions(),
                "gateway-api": pins.GATEWAY_API,
                "triton": pins.TRITON,
                **packages.package_versions(),
            },
        }


def _node(item: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": item["metadata"]["name"],
        "ready": any(
            x["type"] == "Ready" and x["status"] == "True" for x in item["status"].get("conditions", [])
        ),
        "gpus": int(item["status"].get("allocatable", {}).get(configs.GPU, "0")),
        "product": item["metadata"].get("labels", {}).get(configs.GPU_LABEL),
        "taints": [f"{t['key']}={t.get('value', '')}:{t['effect']}" for t in item["spec"].get("taints", [])],
        "address": next(
            (a["address"] for a in item["status"].get("addresses", []) if a["type"] == "InternalIP"), None
        ),
    }


def _connects(host: str, port: int, record: Record | None) -> bool:
    """A TCP port inside the sandbox, seen in its own table of sockets."""
    if record is None:
        return False
    address = f"{int.from_bytes(socket.inet_aton(host)[::-1], 'big'):08X}:{port:04X}"
    for line in Path(f"/proc/{record.pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1] == address and fields[3] == "0A":
            return True
    return False
