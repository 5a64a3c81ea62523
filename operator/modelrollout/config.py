"""The operator's configuration: a YAML file, written by the chart from its values."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel

from modelrollout.api import selectors, uris
from modelrollout.api.v1alpha1.policy import Queries
from modelrollout.contract.formats import Flavour
from modelrollout.gpus import USUAL, GpuResource, GpuTable
from modelrollout.telemetry.redaction import mask_uris


class ConfigError(ValueError):
    """The configuration cannot be used; the text names the field and the remedy."""


class _Config(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
    )


def _plain(instead: str) -> AfterValidator:
    """Refuse a URI that carries more than a place: the configuration is a ConfigMap, and its URIs
    stand in messages and in pods.
    """

    def checked(uri: str) -> str:
        if uris.carries_more(uri):
            raise ValueError(
                f"a URI must not carry a user name, password, query or fragment; leave them out, {instead}"
            )
        return uri

    return AfterValidator(checked)


def _with_host(url: str) -> str:
    """Refuse an address that leads to no host: as a prefix it would hold every host."""
    try:
        uris.origin(url)
    except ValueError:
        raise ValueError(
            f"{url} is no http(s) address of a host; write for example https://models.example.com/"
        ) from None
    return url


StoreUri = Annotated[str, _plain("name a Secret of the user's namespace in secretName")]
PrometheusUrl = Annotated[
    str,
    _plain(
        "and give tokenFile, or usernameFile and passwordFile (in the chart tokenSecret, basicAuthSecret)"
    ),
]
RedirectPrefix = Annotated[
    str,
    Field(pattern=r"^https?://[^/\s]+/"),
    _plain("a prefix is enough, whatever query the redirect carries"),
    AfterValidator(_with_host),
]


def _selector(text: str) -> str:
    selectors.parse(text)
    return text


Selector = Annotated[str, AfterValidator(_selector)]
Namespace = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
LabelName = Annotated[str, Field(pattern=rf"^{selectors.LABEL_NAME}$")]


class StoreConfig(_Config):
    """A place that models and data may come from: URIs that begin with ``uri``. Jobs fetch nothing
    else.
    """

    name: str
    uri: StoreUri = Field(description="Prefix, for example s3://models/ or https://models.example.com/.")
    endpoint: Annotated[StoreUri, AfterValidator(_with_host)] | None = Field(
        None,
        description=(
            "Where requests go: of S3 that is not AWS, of Azure (https://ACCOUNT.blob.core.windows.net),"
            " of Google Cloud Storage behind another name."
        ),
    )
    region: str | None = None
    allow_http: bool = False
    secret_name: str | None = Field(
        None, description="Secret in the user's namespace to use when the ModelDeployment names none."
    )
    redirects_to: list[RedirectPrefix] = Field(
        default_factory=list,
        description=(
            "Prefixes outside of uri that the store may redirect to, for example"
            " https://cdn.example.com/models/."
        ),
    )

    @model_validator(mode="after")
    def _leads_somewhere(self) -> Self:
        kind = uris.STORE_KINDS.get(self.uri.partition("://")[0])
        if kind is None:
            raise ValueError(f"uri: {self.uri} is in no kind of store; write {uris.FORMS}")
        if kind.on_host:
            try:
                uris.origin(f"https://{self.uri.partition('://')[2]}")
            except ValueError:
                raise ValueError(
                    f"uri: {self.uri} names no host, so it would hold every one; write {kind.form}"
                ) from None
        if kind.needs_endpoint and self.endpoint is None:
            raise ValueError(
                f"endpoint: a URI in {kind.name} does not say where it is; write for example"
                f" {kind.needs_endpoint}"
            )
        if self.redirects_to and not kind.follows_redirects:
            raise ValueError(f"redirectsTo: redirects of {kind.name} are never followed; leave it out")
        asks_by_https = self.uri.startswith("https://") or (self.endpoint or "").startswith("https://")
        for prefix in self.redirects_to:
            if prefix.startswith("http://") and (asks_by_https or not self.allow_http):
                raise ValueError(
                    f"redirectsTo: {prefix}: redirects from https to http, and to http without allowHttp,"
                    " are not followed; write https://"
                )
        return self

    @property
    def leads_to(self) -> tuple[str, ...] | None:
        """Prefixes that a redirect may lead to: the store's own, where it is an address, and
        redirectsTo. None where redirects are never followed.
        """
        scheme = self.uri.partition("://")[0]
        if not uris.STORE_KINDS[scheme].follows_redirects:
            return None
        own = (self.uri.rstrip("/") + "/",) if scheme in ("http", "https") else ()
        return (*own, *self.redirects_to)

    def holds(self, uri: str) -> bool:
        """Whether ``uri`` lies in this store."""
        return uris.lies_in(uri, self.uri)


class ArtifactStoreConfig(StoreConfig):
    """Where prepared models are kept: Jobs write there, servers read."""

    read_secret_name: str | None = Field(
        None,
        description=(
            "Secret in the user's namespace that servers read with; left out: secretName, with which Jobs"
            " write."
        ),
    )

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        kind = uris.STORE_KINDS[self.uri.partition("://")[0]]
        if not kind.keeps_artifacts:
            raise ValueError(
                f"uri: {kind.name} is only read; write another kind of store, for example s3://BUCKET/"
            )
        return self

    @property
    def servers_can_write(self) -> bool:
        """Whether a server's pod holds the key that Jobs write with."""
        return self.secret_name is not None and self.read_secret_name in (None, self.secret_name)


class ProviderConfig(_Config):
    """A metrics provider that analyses may read; its class says of which kind it is."""

    kind: ClassVar[str]  # for messages

    name: str
    timeout_seconds: float = 5.0


HeaderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]{0,63}$")]
# what the client writes itself
_OWN_HEADERS = ("connection", "content-length", "host", "te", "trailer", "transfer-encoding", "upgrade")


class PrometheusConfig(ProviderConfig):
    """A Prometheus, or what answers as one. Credentials are files (a mounted Secret) in the
    operator's pod.
    """

    kind = "Prometheus"

    url: PrometheusUrl
    token_file: str | None = None
    username_file: str | None = None
    password_file: str | None = None
    header_files: dict[HeaderName, str] = Field(
        default_factory=dict,
        description="Headers to send, each with the file of its value, for example X-Scope-OrgID.",
    )
    ca_file: str | None = Field(
        None, description="Certificates (PEM) to trust instead of the usual public ones."
    )

    @model_validator(mode="after")
    def _headers_are_free(self) -> Self:
        names = [name.lower() for name in self.header_files]
        if own := next((name for name in names if name in _OWN_HEADERS), None):
            raise ValueError(f"headerFiles: {own} is written by the client itself; leave it out")
        if len(set(names)) < len(names):
            raise ValueError("headerFiles: a name is there twice; upper and lower case are one")
        if "authorization" in names and (self.token_file or self.username_file):
            raise ValueError(
                "headerFiles: Authorization is there already, by tokenFile or usernameFile; leave one of them"
                " out"
            )
        if self.ca_file is not None and not self.url.startswith("https://"):
            raise ValueError("caFile: the url has no https://, so nothing is checked by it; leave it out")
        return self


# How a gateway counts the requests of a backend; none: Triton's own counters are used.
Profile = Literal["traefik", "envoy-gateway", "istio", "cilium", "contour", "linkerd", "custom", "none"]


class GatewayQueries(_Config):
    """PromQL for the counters of a gateway without a profile of its own (profile: custom). Each is
    asked for one revision at a time and gives counts since the start of each process, by the label
    instance; matchers of who may count are part of it.
    """

    requests: str = Field(description="All requests of {{revision}} (or {{version}}).")
    errors: str = Field(description="Those that the server failed.")
    client_errors: str = Field(description="Those that the server refused as wrong.")
    refused_requests: str | None = Field(
        None, description="Those that the gateway refused, or that the caller gave up."
    )
    slow: str | None = Field(
        None, description="Those slower than {{objective}} seconds; left out: latency has no source."
    )


class GatewayMetrics(_Config):
    """How the gateway's metrics name a backend Service."""

    profile: Profile | Literal["auto"] = Field(
        "auto",
        description="auto: by the controller of the GatewayClass of the Gateway that a spec names.",
    )
    provider: str | None = Field(
        None, description="Metrics provider with the gateway's counters, by name; default the first one."
    )
    settle_seconds: float = Field(
        3.0, description="A weight counts as programmed this long after the gateway accepted it."
    )
    selector: Selector = Field(
        "",
        description=(
            'Matchers of labels that the scrape sets on the gateway alone, for example namespace="gateways".'
        ),
    )
    namespaces: list[Namespace] = Field(
        default_factory=list,
        description="Namespaces of the gateway's pods; empty: the gateway runs outside the cluster.",
    )
    custom: GatewayQueries | None = Field(None, description="Of the profile custom.")

    @model_validator(mode="after")
    def _queries_of_custom(self) -> Self:
        if self.profile == "custom" and self.custom is None:
            raise ValueError(
                "custom: profile is custom, and its queries are missing; give custom.requests, custom.errors"
                " and custom.clientErrors (docs/reference/gateways.md)"
            )
        if self.profile != "custom" and self.custom is not None:
            raise ValueError(
                f"custom: profile is {self.profile}, so these queries would not be used; set profile: custom,"
                " or leave them out"
            )
        return self


class FeedbackMetrics(_Config):
    """Which feedback counters are trusted; fields as in GatewayMetrics."""

    selector: Selector = ""
    namespaces: list[Namespace] = Field(default_factory=list)
    labels_per_row: float = Field(
        1.0, ge=0, description="Labels that one row of an answer may get; 0: no limit is checked."
    )


class Scrape(_Config):
    """Labels that Prometheus sets on the pods that it scrapes."""

    namespace_label: LabelName = "namespace"
    pod_label: LabelName = "pod"
    trusted_namespaces: list[Namespace] = Field(
        default_factory=list,
        description=(
            "Namespaces in which only the platform team runs pods, for example monitoring: those"
            " pods may be scraped with honor_labels."
        ),
    )


class ImagesConfig(_Config):
    """Images of Jobs and servers, preferably by digest."""

    optimizer: str
    trainer: str | None = Field(
        None,
        description=(
            "The optimizer with a framework for training; None: steps that train, and int4, are refused; auto"
            " does without."
        ),
    )
    trees: str | None = Field(
        None,
        description=(
            "Jobs of scikit-learn, XGBoost and LightGBM models; left out: the optimizer's, which refuses"
            " them."
        ),
    )
    tensorflow: str | None = Field(
        None,
        description=(
            "Jobs of TensorFlow, Keras and TFLite models; left out: the optimizer's, which refuses them."
        ),
    )
    pytorch: str | None = Field(
        None, description="Jobs of PyTorch models; left out: the optimizer's, which refuses them."
    )
    triton: str
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"

    def of_flavour(self, flavour: Flavour) -> str | None:
        """The image with the libraries of some formats; each flavour is a field here."""
        image: str | None = getattr(self, flavour)
        return image


class DrainConfig(_Config):
    """How a server stops without losing a request: grace = pre_stop + exit_timeout + margin, all in
    seconds.
    """

    pre_stop_seconds: int = 10
    exit_timeout_seconds: int = 30
    margin_seconds: int = 5


class ShadowConfig(_Config):
    """Limits of the comparer of shadow traffic, and whether Traefik mirrors requests."""

    traefik: bool = Field(
        False,
        description="Traefik runs with providers.kubernetesCRD, and the operator may write TraefikServices.",
    )
    max_body_bytes: int = Field(
        1 << 20,
        ge=1024,
        le=64 << 20,
        description="Larger requests are not mirrored. Traefik reserves this much memory for each request.",
    )
    concurrency: int = Field(
        4, ge=1, le=64, description="Mirrored requests that the comparer sends to both revisions at a time."
    )


class HostnameRules(_Config):
    """Who may claim host names."""

    only_by_policy: bool = Field(
        False, description="A host name may be claimed only if a RolloutPolicy allows it (allowedHostnames)."
    )


class ExtensionKind(_Config):
    """A kind of objects that filters of routes may name."""

    group: Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")] = Field(
        description="For example traefik.io."
    )
    kind: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$")] = Field(
        description="For example Middleware."
    )


class RoutesConfig(_Config):
    """What a spec may put into its routes."""

    extension_refs: list[ExtensionKind] = Field(
        default_factory=list,
        description=(
            "Kinds that spec.traffic.filters.extensionRefs may name. The operator does not read them: such"
            " an object may redirect, rewrite, or hide a canary's failures by retries."
        ),
    )
    backend_traffic_policies: bool = Field(
        False,
        description=(
            "The operator may write BackendTrafficPolicies of Envoy Gateway 1.9 or later, which"
            " spec.traffic.sessionAffinity needs; earlier ones choose the backend by chance all the same."
        ),
    )

    def names(self, group: str, kind: str) -> bool:
        """Whether that kind is listed."""
        return any((k.group, k.kind) == (group, kind) for k in self.extension_refs)


# A name, or the beginning of names with * at its end: the API server's policy says it, too.
_Listed = Annotated[str, Field(pattern=r"^([A-Za-z0-9][-A-Za-z0-9_./]*\*?|\*)$", max_length=317)]


class PodRules(_Config):
    """What spec.serving.pod may say that concerns others. An entry is a name, or the beginning of
    names and a *.
    """

    labels: list[_Listed] = Field(
        default_factory=list,
        description=(
            "Keys of labels that servers' pods may have. Services and NetworkPolicies of others select"
            " pods by labels."
        ),
    )
    annotations: list[_Listed] = Field(
        default_factory=list,
        description=(
            "Keys of annotations that servers' pods may have. By some of them webhooks and container"
            " runtimes attach networks and devices, or inject containers."
        ),
    )
    priority_classes: list[_Listed] = Field(
        default_factory=list,
        description="PriorityClasses that servers' pods may have. A higher one displaces pods of others.",
    )

    @staticmethod
    def lists(entries: Iterable[str], name: str) -> bool:
        """Whether one of the entries is for that name."""
        return any(name.startswith(e[:-1]) if e.endswith("*") else name == e for e in entries)


class WorkloadRules(_Config):
    """Which images, Secrets and service accounts a spec may name, and what its pods may carry."""

    users: Literal["Fixed", "Platform"] = Field(
        "Fixed",
        description=(
            "Fixed: pods run as the users 65532 and 65533. Platform: they name no user and no group, and the"
            " platform gives them one, as OpenShift does."
        ),
    )
    pods: PodRules = Field(
        default_factory=PodRules, description="What spec.serving.pod may say that concerns others."
    )

    only_by_policy: bool = Field(
        False,
        description=(
            "A spec may name an image, a Secret other than a store's own, a service account, a RuntimeClass,"
            " a scheduler, a variable of the environment or a volume claim only if a RolloutPolicy allows it."
        ),
    )


class CapacityConfig(_Config):
    """Whether the operator checks how many GPUs are free."""

    look_at_nodes: bool = Field(
        False, description="List nodes and their pods before creating the pods of a new revision."
    )
    remember_seconds: float = Field(
        10.0, gt=0, description="All ModelDeployments share one listing for this many seconds."
    )


_WEIGHT = re.compile(r"[0-9]{1,4}(\.[0-9]{1,6}|/[1-9][0-9]{0,5})?")


def _weight(value: object) -> object:
    """The exact number: of a float the one that was written."""
    if isinstance(value, Fraction):
        return value
    text = "" if isinstance(value, bool) else str(value)
    if not _WEIGHT.fullmatch(text):
        raise ValueError(f"{value!r} is no weight; write a number from 0 on, for example 1, 0.5 or 1/7")
    return Fraction(text)


_DOMAIN = r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?"
ResourceName = Annotated[
    str, Field(pattern=rf"^{_DOMAIN}/([A-Za-z0-9][-A-Za-z0-9_.]{{0,62}}\*?|\*)$", max_length=317)
]
TaintKey = Annotated[str, Field(pattern=rf"^({_DOMAIN}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{{0,61}}[A-Za-z0-9])?$")]


class GpuConfig(_Config):
    """What a resource of pods is: a GPU, a part of one, or none."""

    weight: Annotated[Fraction, BeforeValidator(_weight)] = Field(
        description=(
            "GPUs that one of it counts in limits.gpus of a RolloutPolicy, for example 1 or 1/7; 0: it is no"
            " GPU."
        )
    )
    toleration: TaintKey | None = Field(
        None, description="Key of the taint (NoSchedule) of its nodes, which pods that request it tolerate."
    )
    one_device: bool = Field(
        False,
        description=(
            "One of it is at most one device to a program, so that what a model says of devices can be"
            " compared."
        ),
    )


def _without_removed(rows: object) -> object:
    """Rows without those that are null. Helm itself leaves out what its own values have; of a row
    that they have no longer it passes the null on.
    """
    return {name: row for name, row in rows.items() if row is not None} if isinstance(rows, dict) else rows


def _usual_gpus() -> dict[str, GpuConfig]:
    return {
        name: GpuConfig(weight=row.weight, toleration=row.toleration, one_device=row.one_device)
        for name, row in USUAL.items()
    }


def _block(text: str) -> str:
    """An address range as the API server accepts it; a single address is a range too."""
    try:
        found = ipaddress.ip_network(text)
    except ValueError:
        raise ValueError(
            f"{text!r} is not an address range; write for example 10.20.0.0/24 or fd00:20::/64, with no"
            " bits set beyond the prefix length"
        ) from None
    if isinstance(found, ipaddress.IPv6Network) and found.network_address.ipv4_mapped is not None:
        raise ValueError(
            f"{text!r} is an IPv4-mapped IPv6 address, which no packet carries; write it as IPv4"
        )
    return str(found)


Block = Annotated[str, AfterValidator(_block)]
NamespaceName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
Port = Annotated[int, Field(ge=1, le=65535)]


class Peers(_Config):
    """Pods by namespace; by address, what runs outside the cluster or on its node's network."""

    namespaces: list[NamespaceName] = Field(default_factory=list)
    addresses: list[Block] = Field(
        default_factory=list,
        description="Address ranges, for example 10.20.0.0/24; link-local ones only count if listed.",
    )

    @property
    def is_empty(self) -> bool:
        """Whether no peer is listed. Such a rule must be left out: Kubernetes reads it as "all"."""
        return not self.namespaces and not self.addresses


class PeersAtPorts(Peers):
    """Peers, and the ports that are open on them."""

    ports: Annotated[list[Port], Field(min_length=1)] = Field(default_factory=lambda: [443])

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.is_empty:
            raise ValueError(
                "no peer is listed; give namespaces or addresses (addresses: [0.0.0.0/0, '::/0'] is all but"
                " link-local ones)"
            )
        return self


class NetworkPoliciesConfig(_Config):
    """Who may reach the pods of ModelDeployments, and what those may reach. Without it, the
    operator reads and writes no NetworkPolicy.
    """

    mode: Literal["Write", "Remove"] = Field(
        description="Write: write policies. Remove: delete those that Write created, and write none."
    )
    namespaces: list[NamespaceName] = Field(
        default_factory=list,
        description="Namespaces to write policies in; empty: all that the operator watches.",
    )
    proxies: Peers = Field(default_factory=Peers, description="Where the gateway's proxies run.")
    prometheus: Peers = Field(
        default_factory=Peers,
        description="Where Prometheus runs, which scrapes the servers and the comparer.",
    )
    dns: PeersAtPorts = Field(
        default_factory=lambda: PeersAtPorts(namespaces=["kube-system"], ports=[53]),
        description="Where the DNS servers run.",
    )
    stores: list[PeersAtPorts] = Field(
        default_factory=list, description="Where the stores and the artifact store are."
    )
    operator_namespace: NamespaceName | None = Field(
        None, description="Where the operator runs: it reads the servers' version from them."
    )

    @model_validator(mode="after")
    def _names_what_models_need(self) -> Self:
        missing = [
            name
            for name, is_empty in (
                ("proxies", self.proxies.is_empty),
                ("prometheus", self.prometheus.is_empty),
                ("stores", not self.stores),
            )
            if is_empty
        ]
        if self.mode == "Write" and missing:
            raise ValueError(
                f"{', '.join(missing)}: without an entry every model is cut off from them; give namespaces or"
                " addresses (a NetworkPolicy cannot name hosts)"
            )
        return self

    def written_in(self, namespace: str) -> bool:
        """Whether the pods of this namespace are to have policies."""
        return self.mode == "Write" and (not self.namespaces or namespace in self.namespaces)


class OperatorConfig(_Config):
    """Everything that a platform team decides once for the cluster."""

    stores: Annotated[list[StoreConfig], Field(min_length=1)]
    artifacts: ArtifactStoreConfig
    prometheus: list[PrometheusConfig] = Field(default_factory=list)
    queries: Queries = Field(
        "Templates",
        description=(
            "Whether ModelDeployments may have PromQL of their own where no RolloutPolicy decides it"
            " (gates.queries). Templates: no, only policies have PromQL. Own: yes; the operator adds a"
            " matcher of their namespace to every selector and sends one query at a time for a namespace."
        ),
    )
    gateway_metrics: GatewayMetrics = Field(default_factory=GatewayMetrics)
    feedback_metrics: FeedbackMetrics = Field(default_factory=FeedbackMetrics)
    scrape: Scrape = Field(default_factory=Scrape)
    images: ImagesConfig
    drain: DrainConfig = Field(default_factory=DrainConfig)
    shadow: ShadowConfig = Field(default_factory=ShadowConfig)
    hostnames: HostnameRules = Field(default_factory=HostnameRules)
    routes: RoutesConfig = Field(default_factory=RoutesConfig)
    workloads: WorkloadRules = Field(default_factory=WorkloadRules)
    capacity: CapacityConfig = Field(default_factory=CapacityConfig)
    gpus: Annotated[dict[ResourceName, GpuConfig], BeforeValidator(_without_removed)] = Field(
        default_factory=_usual_gpus,
        description=(
            "The whole table of GPUs: names of resources, or the beginning of names and a *; the longest"
            " that fits holds. Left out: those of the usual device plugins."
        ),
    )
    network_policies: NetworkPoliciesConfig | None = Field(
        None, description="Left out: the operator neither reads nor writes NetworkPolicies."
    )
    stamped_verbs: bool = Field(
        False,
        description=(
            "Whether the API server stamps who requested a verb (the chart's MutatingAdmissionPolicy); if"
            " not, the operator believes no such annotation."
        ),
    )
    namespaces: list[str] = Field(default_factory=list, description="Namespaces to watch; empty: all.")
    workers: int = Field(4, ge=1, le=64)
    shards: int = Field(
        1,
        ge=1,
        le=64,
        description=(
            "Parts in which the ModelDeployments are worked; the replicas share them. 1: one replica works"
            " all, the others stand by."
        ),
    )
    resync_seconds: float = Field(300.0, gt=0)
    job_ttl_seconds: int = 3600
    max_jobs: int | None = Field(
        None, ge=1, description="Jobs that resolve and prepare models at one time; empty: no limit."
    )
    metrics_objects: int = Field(
        1000,
        ge=0,
        description="ModelDeployments that have series of their own in /metrics, some fifteen each; 0: none.",
    )

    def store_for(self, uri: str) -> StoreConfig | None:
        """The store with the longest prefix of ``uri``; None: the URI is not allowed."""
        return max((s for s in self.stores if s.holds(uri)), key=lambda s: len(s.uri), default=None)

    @property
    def gpu_table(self) -> GpuTable:
        """``gpus``, to ask."""
        rows = {n: GpuResource(g.weight, g.toleration, g.one_device) for n, g in self.gpus.items()}
        return GpuTable(rows)

    @property
    def providers(self) -> Sequence[ProviderConfig]:
        """The metrics providers of all kinds; the first one is the default."""
        return self.prometheus

    def provider_for(self, name: str | None) -> ProviderConfig | None:
        """The metrics provider of that name, or the default one; None where there is none."""
        return next((p for p in self.providers if name in (None, p.name)), None)


def load_config(path: Path) -> OperatorConfig:
    """Read the file; raises ConfigError with the field and the remedy."""
    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError, ValueError) as e:
        # ValueError: bytes that are no text, dates that are none
        raise ConfigError(mask_uris(f"{path}: {e}")) from None
    except RecursionError:
        raise ConfigError(f"{path}: the YAML is nested too deeply; flatten it") from None
    try:
        return OperatorConfig.model_validate(raw)
    except RecursionError:
        raise ConfigError(
            f"{path}: a value contains itself through a YAML anchor; remove the anchor"
        ) from None
    except ValidationError as e:
        lines = "; ".join(
            f"{'.'.join(map(str, err['loc']))}: {err['msg']}"
            for err in e.errors(include_input=False, include_url=False)
        )
        raise ConfigError(f"{path}: {lines}") from None
