"""PURE: what every part is started with, and the files it reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sandbox.paths import State
from sandbox.slots import NODES, Slot

LATENCY_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
GPU = "nvidia.com/gpu"
GPU_LABEL = "nvidia.com/gpu.product"
REGION = "us-east-1"
BUCKETS = ("models", "data", "artifacts")
PORTS = {
    "apiserver": 6443,
    "gateway": 8080,
    "dashboard": 8081,
    "traefik-metrics": 8082,
    "prometheus": 9090,
    "objectstore": 9000,
}

# The order in which `up` starts them.
ORDER = (
    "etcd",
    "containerd-gpu",
    "containerd-cpu",
    "apiserver",
    "controller-manager",
    "scheduler",
    "kubelet-gpu",
    "kubelet-cpu",
    "proxy",
)
ADDONS = ("capacity", "dns", "objectstore", "discovery", "prometheus", "gateway")


@dataclass(frozen=True)
class Options:
    """What a person may choose at `up`."""

    gpus: int = 8
    gpu_product: str = "NVIDIA-H100-80GB-HBM3"
    scrape_interval: str = "2s"


@dataclass(frozen=True)
class Config:
    state: State
    slot: Slot
    binaries: Mapping[str, Path]
    python: str
    source: Path
    access_key: str
    secret_key: str
    options: Options = field(default_factory=Options)

    @property
    def server(self) -> str:
        return f"https://{self.slot.infra}:{PORTS['apiserver']}"

    @property
    def targets(self) -> Path:
        return self.state.data / "targets" / "pods.json"

    def address(self, part: str) -> str:
        return f"{self.slot.infra}:{PORTS[part]}"


def node_name(node: str) -> str:
    return f"sandbox-{node}"


def _argv(*program: str, **flags: Any) -> list[str]:
    return [
        *program,
        *(
            f"--{k.replace('_', '-')}={str(v).lower() if isinstance(v, bool) else v}"
            for k, v in flags.items()
        ),
    ]


def parts(c: Config) -> dict[str, dict[str, Any]]:
    """The supervisor's table: argv, environment, the node whose mounts it sees, seconds of grace on
    stop.
    """
    pki, kube, ip = c.state.pki, str(c.binaries["kube"]), c.slot.infra
    table: dict[str, dict[str, Any]] = {}

    def add(name: str, argv: list[str], *, node: str | None = None, grace: float = 10, **env: str) -> None:
        table[name] = {"argv": argv, "env": env, "node": node, "grace": grace}

    etcd = "http://127.0.0.1:2379"
    add(
        "etcd",
        _argv(
            "/usr/bin/etcd",
            "--unsafe-no-fsync",
            data_dir=c.state.data / "etcd",
            listen_client_urls=etcd,
            advertise_client_urls=etcd,
            listen_peer_urls="http://127.0.0.1:2380",
            auto_compaction_retention="10m",
            auto_compaction_mode="periodic",
            log_level="warn",
            logger="zap",
        ),
    )
    add(
        "apiserver",
        _argv(
            kube,
            "kube-apiserver",
            etcd_servers=etcd,
            service_cluster_ip_range=c.slot.services,
            secure_port=PORTS["apiserver"],
            bind_address="0.0.0.0",
            advertise_address=ip,
            tls_cert_file=pki / "apiserver.crt",
            tls_private_key_file=pki / "apiserver.key",
            client_ca_file=pki / "ca.crt",
            authorization_mode="Node,RBAC",
            allow_privileged=True,
            # beta in 1.34: the chart stamps who requests a verb with one
            feature_gates="MutatingAdmissionPolicy=true",
            runtime_config="admissionregistration.k8s.io/v1beta1=true",
            service_account_key_file=pki / "sa.pub",
            service_account_signing_key_file=pki / "sa.key",
            service_account_issuer="https://kubernetes.default.svc",
            kubelet_client_certificate=pki / "apiserver.crt",
            kubelet_client_key=pki / "apiserver.key",
            kubelet_preferred_address_types="InternalIP",
            audit_policy_file=c.state.etc / "audit-policy.yaml",
            audit_log_path=c.state.audit,
            audit_log_maxsize=200,
            audit_log_maxbackup=2,
            profiling=False,
        ),
        grace=5,  # it would wait a minute for watches to end
    )
    add(
        "controller-manager",
        _argv(
            kube,
            "kube-controller-manager",
            kubeconfig=pki / "controller-manager.conf",
            authentication_kubeconfig=pki / "controller-manager.conf",
            authorization_kubeconfig=pki / "controller-manager.conf",
            service_account_private_key_file=pki / "sa.key",
            root_ca_file=pki / "ca.crt",
            cluster_signing_cert_file=pki / "ca.crt",
            cluster_signing_key_file=pki / "ca.key",
            use_service_account_credentials=True,
            leader_elect=False,
            bind_address="127.0.0.1",
            flex_volume_plugin_dir=c.state.data / "flexvolume",
        ),
    )
    add(
        "scheduler",
        _argv(
            kube,
            "kube-scheduler",
            kubeconfig=pki / "scheduler.conf",
            leader_elect=False,
            bind_address="127.0.0.1",
        ),
    )
    add(
        "proxy",
        _argv(
            kube,
            "kube-proxy",
            kubeconfig=pki / "proxy.conf",
            hostname_override=node_name("cpu"),
            cluster_cidr=c.slot.pods,
            proxy_mode="nftables",
            conntrack_max_per_core=0,
            conntrack_tcp_timeout_established="0s",
            conntrack_tcp_timeout_close_wait="0s",
            oom_score_adj=0,
            nodeport_addresses=f"{ip}/32",
            healthz_bind_address="127.0.0.1:10256",
        ),
    )
    for node in NODES:
        home = c.state.node(node)
        labels = (
            f"{GPU_LABEL}={c.options.gpu_product},nvidia.com/gpu.present=true"
            if node == "gpu"
            else "modelrollout.dev/pool=general"
        )
        add(
            f"containerd-{node}",
            ["/usr/bin/containerd", "--config", str(c.state.etc / f"containerd-{node}.toml")],
            node=node,
        )
        add(
            f"kubelet-{node}",
            _argv(
                kube,
                "kubelet",
                config=c.state.etc / f"kubelet-{node}.yaml",
                kubeconfig=pki / f"kubelet-{node_name(node)}.conf",
                hostname_override=node_name(node),
                root_dir=home / "kubelet",
                node_ip=c.slot.node(node),
                node_labels=labels,
                housekeeping_interval="30s",
            ),
            node=node,
        )
    add(
        "capacity",
        [c.python, "-m", "sandbox.capacity", str(c.state.root), node_name("gpu"), str(c.options.gpus)],
        PYTHONPATH=str(c.source),
    )
    add(
        "discovery",
        [c.python, "-m", "sandbox.discovery", str(c.state.root), str(c.targets)],
        PYTHONPATH=str(c.source),
    )
    add("dns", [str(c.binaries["coredns"]), "-conf", str(c.state.etc / "Corefile")])
    store = _argv(
        str(c.binaries["versitygw"]),
        "--quiet",
        "--keep-alive",
        port=c.address("objectstore"),
        region=REGION,
        health="/healthz",
    )
    posix = ["posix", "--sidecar", str(c.state.data / "s3" / "meta"), str(c.state.data / "s3" / "objects")]
    add("objectstore", [*store, *posix], ROOT_ACCESS_KEY=c.access_key, ROOT_SECRET_KEY=c.secret_key)
    flags = {
        "config.file": c.state.etc / "prometheus.yaml",
        "storage.tsdb.path": c.state.data / "prometheus",
        "storage.tsdb.retention.time": "2d",
    }
    add(
        "prometheus",
        _argv(
            "/usr/bin/prometheus",
            "--web.enable-lifecycle",
            **flags,
            **{"web.listen-address": c.address("prometheus")},
        ),
    )
    add("gateway", [str(c.binaries["traefik"]), *traefik_flags(c)], KUBECONFIG=str(pki / "traefik.conf"))
    return table


def traefik_flags(c: Config) -> list[str]:
    return [
        f"--entrypoints.web.address={c.address('gateway')}",
        f"--entrypoints.traefik.address={c.address('dashboard')}",
        f"--entrypoints.metrics.address={c.address('traefik-metrics')}",
        "--api.insecure=true",
        "--ping=true",
        "--providers.kubernetesgateway=true",
        f"--providers.kubernetesgateway.statusaddress.ip={c.slot.infra}",
        "--providers.kubernetescrd=true",  # mirroring is a kind of its own: TraefikService
        "--providers.providersthrottleduration=100ms",
        "--metrics.prometheus=true",
        "--metrics.prometheus.entrypoint=metrics",
        "--metrics.prometheus.addserviceslabels=true",
        "--metrics.prometheus.addentrypointslabels=true",
        f"--metrics.prometheus.buckets={','.join(f'{b:g}' for b in LATENCY_BUCKETS)}",
        "--global.checknewversion=false",
        "--global.sendanonymoususage=false",
        "--log.level=INFO",
        "--log.nocolor=true",
    ]


def kubelet(c: Config, node: str) -> dict[str, Any]:
    pki, home = c.state.pki, c.state.node(node)
    taints = [{"key": GPU, "value": "present", "effect": "NoSchedule"}] if node == "gpu" else []
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "failCgroupV1": False,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{c.state.cgroup}/{node}",
        "failSwapOn": False,
        "address": c.slot.node(node),
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": 10300 + NODES.index(node),
        "readOnlyPort": 0,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": str(pki / "ca.crt")},
        },
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": str(pki / f"kubelet-{node_name(node)}.crt"),
        "tlsPrivateKeyFile": str(pki / f"kubelet-{node_name(node)}.key"),
        "containerRuntimeEndpoint": f"unix://{c.state.containerd(node)}",
        "podLogsDir": str(home / "pod-logs"),
        "volumePluginDir": str(home / "volume-plugins"),
        "clusterDNS": [c.slot.dns_service],
        "clusterDomain": "cluster.local",
        "resolvConf": str(c.state.etc / "resolv.conf"),
        "registerWithTaints": taints,
        "oomScoreAdj": 0,
        "enforceNodeAllocatable": [],
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "localStorageCapacityIsolation": False,
        "serializeImagePulls": False,
        "containerLogMaxSize": "20Mi",
        "containerLogMaxFiles": 2,
        "maxPods": 200,
    }


def containerd(c: Config, node: str) -> str:
    home = c.state.node(node)
    return f"""version = 2
root = "{home}/containerd"
state = "{home}/containerd-state"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{c.state.containerd(node)}"
[plugins."io.containerd.internal.v1.opt"]
path = "{home}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:1"
# Without CAP_SYS_RESOURCE a container's OOM score cannot be lowered, and every pod would fail.
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{home}/cni"
"""


def cni(c: Config, node: str) -> dict[str, Any]:
    """Every pod on a routed link of its own: no bridge, so nothing depends on how bridged packets
    meet the packet filter.
    """
    addresses = {
        "type": "host-local",
        "dataDir": str(c.state.node(node) / "cni-leases"),
        "ranges": [[{"subnet": c.slot.node_pods(node)}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    return {
        "cniVersion": "1.0.0",
        "name": f"pods-{node}",
        "plugins": [
            {"type": "ptp", "ipMasq": False, "ipam": addresses},
            {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        ],
    }


def audit_policy() -> dict[str, Any]:
    return {
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        "omitStages": ["RequestReceived"],
        "rules": [{"level": "Metadata"}],
    }


def corefile(c: Config) -> str:
    return f"""cluster.local:53 in-addr.arpa:53 {{
  bind {c.slot.infra}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {c.state.pki / "coredns.conf"}
    pods insecure
    ttl 5
  }}
  cache 5
}}
"""


def prometheus(c: Config) -> dict[str, Any]:
    def copy(source: str, target: str) -> dict[str, Any]:
        return {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": target}

    def annotation(name: str) -> str:
        return f"__meta_kubernetes_pod_annotation_prometheus_io_{name}"

    return {
        "global": {
            "scrape_interval": c.options.scrape_interval,
            "scrape_timeout": c.options.scrape_interval,
            "evaluation_interval": c.options.scrape_interval,
        },
        "scrape_configs": [
            {"job_name": "prometheus", "static_configs": [{"targets": [c.address("prometheus")]}]},
            {"job_name": "traefik", "static_configs": [{"targets": [c.address("traefik-metrics")]}]},
            {
                "job_name": "pods",
                "file_sd_configs": [{"files": [str(c.targets)], "refresh_interval": "1m"}],
                "relabel_configs": [
                    {"source_labels": [annotation("scrape")], "action": "keep", "regex": "true"},
                    {
                        "source_labels": ["__meta_kubernetes_pod_phase"],
                        "action": "drop",
                        "regex": "Pending|Succeeded|Failed",
                    },
                    {
                        "source_labels": ["__meta_kubernetes_pod_container_init"],
                        "action": "drop",
                        "regex": "true",
                    },
                    {
                        "source_labels": [annotation("path")],
                        "target_label": "__metrics_path__",
                        "regex": "(.+)",
                    },
                    {
                        "source_labels": [annotation("scheme")],
                        "target_label": "__scheme__",
                        "regex": "(https?)",
                    },
                    {
                        "source_labels": ["__meta_kubernetes_pod_ip", annotation("port")],
                        "separator": ":",
                        "regex": r"(.+:\d+)",
                        "target_label": "__address__",
                    },
                    copy("namespace", "namespace"),
                    copy("pod_name", "pod"),
                    copy("pod_node_name", "node"),
                    copy("pod_label_modelrollout_dev_name", "modeldeployment"),
                    copy("pod_label_modelrollout_dev_revision", "revision"),
                ],
            },
        ],
    }


def files(c: Config) -> dict[Path, str]:
    """Every file a part reads, except certificates."""
    etc = c.state.etc
    contents: dict[Path, str] = {
        c.state.parts: json.dumps(parts(c), indent=1),
        etc / "audit-policy.yaml": yaml.safe_dump(audit_policy()),
        etc / "Corefile": corefile(c),
        etc / "prometheus.yaml": yaml.safe_dump(prometheus(c), sort_keys=False),
        etc / "resolv.conf": "",
    }
    for node in NODES:
        contents[etc / f"kubelet-{node}.yaml"] = yaml.safe_dump(kubelet(c, node), sort_keys=False)
        contents[etc / f"containerd-{node}.toml"] = containerd(c, node)
        contents[c.state.node(node) / "cni" / "10-pods.conflist"] = json.dumps(cni(c, node), indent=1)
    return contents
