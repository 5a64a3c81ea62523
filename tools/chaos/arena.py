"""What a fault works on: the cluster, two ModelDeployments under load, the operators and the
proxies.
"""

from __future__ import annotations

import json
import signal
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from chaos import ChaosError, NotNowError, models, truth
from chaos.operators import OperatorProcess
from chaos.proxy import FaultProxy, Proxies
from chaos.recorder import MDEP, Recorder
from chaos.traffic import Outage, Traffic, Window
from chaos.truth import Expected, Final, Outcome
from demo import DemoError
from demo.cluster import RELEASE, SYSTEM_NAMESPACE, Cluster, Object
from demo.data import Split
from demo.setup import CHART, chart_values, prepare_namespace
from modelrollout.api import names
from modelrollout.kube.kinds import Resource
from sandbox import control
from sandbox.cluster import Sandbox
from sandbox.kube import Api
from sandbox.scope import Scope

NAMESPACE = "modelrollout-chaos"
REPLICAS = 2
RESYNC_SECONDS = 10.0  # what no event told is found after this long
STEPS = (30, 60)
TEMPLATE = "scraped"
METRICS: Mapping[str, dict[str, Any]] = {
    "accuracy": {"name": "accuracy", "maxDrop": 0.3, "minSamples": 20},
    "errors": {"name": "errors", "maxIncrease": 0.3, "minSamples": 20},
}
Say = Callable[[str], None]


@dataclass
class Subject:
    """A ModelDeployment. ``up`` gets good versions only, ``down`` bad ones only after its first."""

    name: str
    outcome: Outcome
    stable: str = ""  # digest
    tried: str = ""
    number: int = 0
    # resourceVersions of routes and status that the chaos run wrote
    own: set[str] = field(default_factory=set)
    windows: list[Window] = field(default_factory=list)
    outages: list[Outage] = field(default_factory=list)
    # what faults change of the next versions: more of spec.serving, and what they are judged by
    serving: dict[str, Any] = field(default_factory=dict)
    metrics: tuple[str, ...] = tuple(METRICS)
    replicas: int = REPLICAS
    history: int | None = None  # revisionHistoryLimit
    scaled_at: float = 0.0  # Unix time of the last scaling to 0

    @property
    def host(self) -> str:
        return f"{self.name}.chaos.example"

    @property
    def expected(self) -> Expected:
        """How the present rollout must end."""
        return Expected(
            self.name,
            self.outcome,
            self.tried if self.outcome == "Promoted" else self.stable,
            self.tried,
            self.replicas,
        )


class Arena(Scope):
    """A context manager: sets everything up, and takes down the processes of its own (the sandbox
    stays).
    """

    def __init__(
        self,
        cluster: Cluster,
        folder: Path,
        say: Say,
        rate: float,
        subjects: Sequence[Subject] | None = None,
        interval: str = "1s",
        earlier: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """``rate``: requests per second to each subject, ``interval``: of the analysis,
        ``earlier``: the commit from which an upgrade begins, ``settings``: of the operator's
        configuration, instead of the chart's.
        """
        super().__init__()
        self.cluster, self.folder, self.say = cluster, folder, say
        self.subjects = subjects or (Subject("up", "Promoted"), Subject("down", "RolledBack"))
        self.earlier = earlier
        self._interval = interval
        self._settings = settings or {}
        self.box = Sandbox()
        self._rate = rate
        self.recorder = Recorder(self._api, NAMESPACE)
        trust = ssl.create_default_context(cafile=str(self.box.state.pki / "ca.crt"))
        server = json.loads(self.box.state.kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
        self.proxy, self.second_proxy = FaultProxy(server, trust), FaultProxy(server, trust)
        self.prometheus = FaultProxy(f"http://{self._prometheus_address()}")
        self.traffic: dict[str, Traffic] = {}
        self.operator: OperatorProcess
        self.second: OperatorProcess

    def _api(self) -> Api:
        return Api.of(self.box.state.kubeconfig, self.box.state.pki, "sandbox")

    def _prometheus_address(self) -> str:
        url = urlsplit(self.cluster.target.prometheus)
        name, namespace, *_ = (url.hostname or "").split(".")
        return self.cluster.service_address(namespace, name, url.port or 80)

    # --- set-up ---

    def _set_up(self) -> None:
        self.install()
        self._namespace()
        live = models.live()
        live.save(self.folder / "live.npz")
        self._upload(self.folder / "live.npz", self.cluster.target.store.data, "chaos/live.npz")
        self._stack.enter_context(Proxies(self.proxy, self.second_proxy, self.prometheus))
        self.recorder.start()
        self._stack.callback(self.recorder.stop)
        config = self.write_config()
        token = self.cluster.kubectl(
            "create", "token", RELEASE, "-n", SYSTEM_NAMESPACE, "--duration=6h"
        ).strip()
        self.operator = OperatorProcess("first", self.proxy.url, token, config, self.folder, SYSTEM_NAMESPACE)
        self.second = OperatorProcess(
            "second", self.second_proxy.url, token, config, self.folder, SYSTEM_NAMESPACE
        )
        self.rival = OperatorProcess("rival", self.second_proxy.url, token, config, self.folder, NAMESPACE)
        self._stack.callback(self.operator.stop)
        self.operator.start()
        for subject in self.subjects:
            self.next_version(subject, good=True)
            subject.stable = subject.tried
        for subject in self.subjects:
            self.until(
                f"the first version of {subject.name} is stable",
                lambda s=subject: self.is_ready(s),  # type: ignore[misc]
                max(180, 60 * len(self.subjects)),
            )
        for subject in self.subjects:
            self._send(subject, live)
        count = len(self.subjects)
        self.say(f"{count} ModelDeployments serve under {count * self._rate:g} requests/s")

    def install(self, chart: Path = CHART, images: Mapping[str, Any] | None = None) -> None:
        """CRDs, rights and the feedback service by the chart; its operator has no replica, for ours
        are processes. ``images``: values of the chart that name others than the present ones.
        """
        values = self.folder / "chart-values.yaml"
        values.write_text(
            yaml.safe_dump({**chart_values(self.cluster.target), "replicas": 0, **(images or {})})
        )
        where = ["--namespace", SYSTEM_NAMESPACE, "--create-namespace"]
        self.cluster.helm(
            "upgrade",
            "--install",
            RELEASE,
            str(chart),
            *where,
            "--values",
            str(values),
            "--wait",
            "--timeout",
            "3m",
        )
        self.say(f"the chart is installed: definitions, rights, feedback service ({chart})")

    def _namespace(self) -> None:
        prepare_namespace(self.cluster, NAMESPACE)
        self._stack.callback(self.cluster.kubectl, "delete", "rpol", NAMESPACE, "--ignore-not-found")
        rbac = "rbac.authorization.k8s.io"
        lease = {"name": "rival-lease", "namespace": NAMESPACE}
        self.cluster.apply(
            # PromQL over other namespaces is the platform's alone.
            {
                "apiVersion": names.API_VERSION,
                "kind": "RolloutPolicy",
                "metadata": {"name": NAMESPACE},
                "spec": {
                    "selector": {"namespaces": [NAMESPACE]},
                    "analysisTemplates": [
                        {
                            "name": TEMPLATE,
                            "metrics": [{"name": "scraped", "query": 'count(up{job=~".+"} == 1)', "min": 1}],
                        }
                    ],
                },
            },
            # A Lease of its own, for an operator that leads beside the first.
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "Role",
                "metadata": lease,
                "rules": [
                    {
                        "apiGroups": ["coordination.k8s.io"],
                        "resources": ["leases"],
                        "verbs": ["get", "create", "update", "patch"],
                    }
                ],
            },
            {
                "apiVersion": f"{rbac}/v1",
                "kind": "RoleBinding",
                "metadata": lease,
                "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "rival-lease"},
                "subjects": [{"kind": "ServiceAccount", "name": RELEASE, "namespace": SYSTEM_NAMESPACE}],
            },
        )

    def write_config(self) -> Path:
        """What the chart wrote for its operator, with the fault proxy for Prometheus, and a resync
        that a test can wait for.
        """
        config_map = json.loads(
            self.cluster.kubectl("get", "configmap", RELEASE, "-n", SYSTEM_NAMESPACE, "-o", "json")
        )
        config = yaml.safe_load(config_map["data"]["config.yaml"])
        for provider in config["prometheus"]:
            provider["url"] = self.prometheus.url
        config |= {"resyncSeconds": RESYNC_SECONDS, **self._settings}
        path = self.folder / "operator.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    def _upload(self, path: Path, bucket: str, key: str) -> None:
        self.cluster.upload(bucket, {key: path})

    def _send(self, subject: Subject, live: Split) -> None:
        traffic = Traffic(
            self.cluster,
            self.folder / f"client-{subject.name}",
            NAMESPACE,
            subject.name,
            subject.host,
            self._rate,
            live,
        )
        self.traffic[subject.name] = traffic
        traffic.start()
        self._stack.callback(traffic.stop)

    # --- what faults do ---

    def next_version(self, subject: Subject, *, good: bool | None = None, thorough: bool = False) -> None:
        """Another version of the kind that this subject gets; ``thorough``: the digest is resolved,
        and golden data asked where it can pass.
        """
        subject.number += 1
        good = subject.outcome == "Promoted" if good is None else good
        made = models.write(self.folder, subject.name, subject.number, good=good)
        self._upload(made.path, self.cluster.target.store.models, made.key)
        subject.tried = made.sha256
        self.cluster.apply(self._object(subject, made, golden=thorough and good, pinned=not thorough))

    def _object(self, subject: Subject, model: models.ModelFile, *, golden: bool, pinned: bool) -> Object:
        store, gateway = self.cluster.target.store, self.cluster.target.gateway
        analysis: dict[str, Any] = {
            "interval": self._interval,
            "initialDelay": "2s",  # the faults kill pods: counting begins again each time
            "metrics": [METRICS[name] for name in subject.metrics],
            "templates": [TEMPLATE],
        }
        if golden:
            analysis["golden"] = {"uri": f"s3://{store.data}/chaos/live.npz", "maxDrop": 0.1}
        return {
            "apiVersion": names.API_VERSION,
            "kind": MDEP,
            "metadata": {"name": subject.name, "namespace": NAMESPACE},
            "spec": {
                **({"revisionHistoryLimit": subject.history} if subject.history is not None else {}),
                "model": {
                    "uri": f"s3://{store.models}/{model.key}",
                    **({"sha256": model.sha256} if pinned else {}),
                },
                "serving": {
                    "replicas": subject.replicas,
                    "resources": {
                        "limits": {"cpu": "2", "memory": "512Mi"},
                        "requests": {"cpu": "100m", "memory": "128Mi"},
                    },
                    **subject.serving,
                },
                "traffic": {
                    "gateway": {"name": gateway.name, "namespace": gateway.namespace},
                    "http": {"hostnames": [subject.host]},
                    "grpc": {"hostnames": [f"grpc-{subject.host}"]},
                },
                "rollout": {
                    "canary": {"steps": [{"weight": w} for w in STEPS]},
                    "analysis": analysis,
                    "progressDeadline": "10m",
                },
            },
        }

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """In the chaos namespace; tried again while the API server is away."""
        deadline = time.monotonic() + 30
        while True:
            try:
                return self.cluster.kubectl("-n", NAMESPACE, *arguments, stdin=stdin)
            except DemoError as e:
                away = any(
                    word in str(e)
                    for word in (
                        "refused",
                        "EOF",
                        "timeout",
                        "unable to handle",
                        "etcdserver",
                        "not ready",
                        "ServiceUnavailable",
                    )
                )
                if not away or time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    def candidate(self, subject: Subject) -> str:
        """The revision in flight, or that of the last rollout."""
        return self._revision(subject, "rollout")

    def stable(self, subject: Subject) -> str:
        return self._revision(subject, "stable")

    def _revision(self, subject: Subject, which: str) -> str:
        status = self.recorder.latest(subject.name).get("status") or {}
        revision = (status.get(which) or {}).get("revision")
        if revision is None:
            raise NotNowError(f"status.{which} of {subject.name} names no revision")
        return str(revision)

    def pods(self, revision: str) -> list[Object]:
        """Its server pods that are not on their way out, ready ones first."""
        pods = self.cluster.pods(
            NAMESPACE, f"{names.LABEL_REVISION}={revision},{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}"
        )
        return sorted(
            (p for p in pods if not p["metadata"].get("deletionTimestamp")),
            key=lambda p: not truth.is_ready(p),
        )

    def count(self, resource: Resource) -> int | None:
        """How many there are in the namespace; None while the API server does not answer."""
        try:
            listed = self._api().get(f"{resource.path(NAMESPACE)}?limit=1")
        except (OSError, ValueError, HTTPException):
            return None
        return len(listed["items"]) + int(listed["metadata"].get("remainingItemCount", 0))

    def windows(self, subject: Subject, pods: Sequence[Object]) -> list[Window]:
        """All that the faults excuse for it so far. ``pods``: all versions of pods."""
        return [*subject.windows, *(outage.window(pods) for outage in subject.outages)]

    def stop_part(self, part: str) -> None:
        control.stop(self.box.state, part, signal.SIGKILL)

    def start_part(self, part: str) -> None:
        _, config = self.box.running()
        control.start(self.box.state, part)
        self.box.wait_part(config, part)

    def signal_part(self, part: str, number: signal.Signals) -> None:
        control.ask(self.box.state, op="signal", part=part, signal=int(number))

    # --- looking ---

    def until(self, what: str, condition: Callable[[], object], limit: float) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            if time.monotonic() > deadline:
                raise ChaosError(f"not within {limit:.0f} s: {what}")
            self.recorder.wait(0.3)

    def is_ready(self, subject: Subject) -> bool:
        status = self.recorder.latest(subject.name).get("status") or {}
        return any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", []))

    def has_become_stable(self, subject: Subject) -> bool:
        """Whether the version that was applied last is stable, and Ready."""
        stable = (self.recorder.latest(subject.name).get("status") or {}).get("stable")
        return (
            self.is_ready(subject)
            and stable is not None
            and bool(self.cluster.revision(NAMESPACE, stable["revision"])["spec"]["sha256"] == subject.tried)
        )

    def replace_stable(self, subject: Subject) -> None:
        """A good version becomes stable, with what the subject's next versions are to be like."""
        self.next_version(subject, good=True)
        self.until(f"{subject.name} is well again", lambda: self.has_become_stable(subject), 180)
        subject.stable = subject.tried

    def final(self, subject: Subject) -> Final:
        """Everything that belongs to it, read from the API server now."""
        kinds = "mrev,httproutes,grpcroutes,services,deployments,pods,jobs,pdb"
        items = json.loads(
            self.kubectl("get", kinds, "-l", f"{names.LABEL_NAME}={subject.name}", "-o", "json")
        )["items"]

        def of(*of_kinds: str) -> list[Object]:
            return [o for o in items if o["kind"] in of_kinds]

        return Final(
            deployment=self.cluster.deployment(NAMESPACE, subject.name),
            revisions=of("ModelRevision"),
            routes=of("HTTPRoute", "GRPCRoute"),
            services=of("Service"),
            deployments=of("Deployment"),
            pods=of("Pod"),
            jobs=of("Job"),
            budgets=of("PodDisruptionBudget"),
        )
