"""``spec.serving.pod``: what a server's pod carries beyond what serving itself needs."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, StringConstraints

from modelrollout.api.v1alpha1.model import SecretKey
from modelrollout.api.v1alpha1.placement import TopologySpreadAsWritten
from modelrollout.api.v1alpha1.schema import (
    KEYS,
    ApiModel,
    Labels,
    ListMapKey,
    LocalName,
    Name,
    Quantity,
    Resources,
    Rule,
)

_Annotations = Annotated[
    dict[str, Annotated[str, StringConstraints(max_length=4096)]], Field(max_length=32), KEYS
]
_KEY = "^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_VALUE = "^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$"
_OPERATORS = r"^([-a-z0-9.]+\\.)?modelrollout\\.dev/"
# By these Kubernetes and Kueue find pods: a server's pod would be taken for a Job's, or be queued,
# and a queue may preempt it.
_CONTROLLERS = (
    r"^(pod-template-hash|controller-uid|job-name|statefulset\\.kubernetes\\.io/.*"
    r"|batch\\.kubernetes\\.io/.*|([-a-z0-9.]+\\.)?kueue\\.x-k8s\\.io/.*)$"
)
# The operator's own, by which Prometheus finds what is counted, and switches that turn off what
# the Pod Security Standard "restricted" demands.
_OWN_ANNOTATIONS = (
    r"^(prometheus\\.io/.*|container\\.apparmor\\.security\\.beta\\.kubernetes\\.io/.*"
    r"|(container\\.)?seccomp\\.security\\.alpha\\.kubernetes\\.io/.*)$"
)


# The operator's own, those of shells, compilers and loaders, and switches by which a server or a
# runtime becomes another. With a volume in /mnt a path is code: of a library, a plugin, a program,
# a header, or of what a compiler left in a cache. No list of these is complete: policies say which
# names there may be.
_REFUSED_ENV = (
    "^(HOME|PATH|ENV|IFS|SHELLOPTS|PS[0-9]|PROMPT_COMMAND|POD_UID|GCONV_PATH|GLIBC_TUNABLES"
    "|CC|CXX|GCC_EXEC_PREFIX|COMPILER_PATH|LIBRARY_PATH|CPATH|C_INCLUDE_PATH|CPLUS_INCLUDE_PATH"
    "|CUDAHOSTCXX|CUDA_HOME|CUDA_PATH|NVCC_.*|NCCL_CONF_FILE|NCCL_.*PLUGIN.*|VLLM_.*_SO_PATH"
    "|VLLM_CACHE_ROOT|XDG_CACHE_HOME|TORCHINDUCTOR_CACHE_DIR|TORCH_EXTENSIONS_DIR"
    "|(MODELROLLOUT_|LD_|PYTHON|AIP_|SAGEMAKER_|TRITON|NVIDIA_|BASH|OPENSSL_|KUBERNETES_|OMPI_|PMIX_).*"
    "|.*INJECTION.*)$"
)


class ConfigMapKey(ApiModel):
    """A key of a ConfigMap in the same namespace."""

    name: Name = Field(description="Name of the ConfigMap.")
    key: Annotated[str, StringConstraints(pattern=r"^[-._a-zA-Z0-9]+$", max_length=253)] = Field(
        description="Key in the ConfigMap."
    )


class EnvSource(ApiModel):
    """Where the value comes from; it is read when a container starts."""

    secret_key_ref: SecretKey | None = None
    config_map_key_ref: ConfigMapKey | None = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "has(self.secretKeyRef) != has(self.configMapKeyRef)",
            "valueFrom: give either secretKeyRef or configMapKeyRef",
        ),
    )


class EnvVar(ApiModel):
    """A variable in the server's environment."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=253)] = Field(
        description=(
            "Its name. Not one of the operator's own or by which a program loads or becomes another, such as"
            " LD_*, PYTHON*, AIP_*, TRITON*, NVIDIA_*, CC (docs/reference/pods.md lists them)."
        )
    )
    value: Annotated[str, StringConstraints(max_length=4096)] | None = Field(
        None, description="Its value, which everyone reads who may read the object; else valueFrom."
    )
    value_from: EnvSource | None = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule("has(self.value) != has(self.valueFrom)", "env: give either value or valueFrom"),
        Rule(
            f"!self.name.matches('{_REFUSED_ENV}')",
            "env: HOME, PATH, POD_UID, those of shells, compilers and their caches (such as ENV, PS4, CC), of"
            " glibc, and names of MODELROLLOUT_, LD_, PYTHON, AIP_, SAGEMAKER_, TRITON, NVIDIA_, BASH,"
            " OPENSSL_, KUBERNETES_, OMPI_, PMIX_, INJECTION, plugins of NCCL and libraries of vLLM are the"
            " operator's, or decide what a program loads (docs/reference/pods.md lists them); leave it out",
        ),
    )


class ConfigMapName(ApiModel):
    """A ConfigMap in the same namespace."""

    name: Name = Field(description="Name of the ConfigMap.")


class Claim(ApiModel):
    """A PersistentVolumeClaim in the same namespace, mounted to read."""

    claim_name: Name = Field(description="Name of the claim.")


class Volume(ApiModel):
    """Files that the server reads in /mnt/NAME; nothing can be written there."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=40)] = (
        Field(description="Its name, and that of the folder in /mnt.")
    )
    secret: LocalName | None = Field(None, description="A Secret in the same namespace.")
    config_map: ConfigMapName | None = None
    persistent_volume_claim: Claim | None = None
    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "[has(self.secret), has(self.configMap), has(self.persistentVolumeClaim)].filter(x, x).size()"
            " == 1",
            "volumes: give one of secret, configMap and persistentVolumeClaim",
        ),
    )


class SizeLimits(ApiModel):
    """The most that volumes of a pod may hold; a pod that exceeds one is evicted."""

    models: Quantity | None = Field(
        None,
        description=(
            "The fetched model, for a moment twice where a lost container is replaced. Left out: 42Gi."
        ),
    )
    tmp: Quantity | None = Field(None, description="/tmp, what the server unpacks. Left out: 20Gi.")
    shm: Quantity | None = Field(
        None, description="/dev/shm, part of the memory that the pod uses. Left out: 1Gi."
    )


_FETCHING = "['cpu', 'memory', 'ephemeral-storage']"


class Pod(ApiModel):
    """What the pods of the server carry besides.

    Each field is part of the version: another value makes a new revision, and returning to an
    earlier revision brings its value back. docs/reference/pods.md has a table.
    """

    labels: Labels | None = Field(
        None,
        description=(
            "Labels of the pods, of the keys that the operator's configuration lists"
            " (workloads.pods.labels): a label is what Services and NetworkPolicies of others select."
        ),
    )
    annotations: _Annotations | None = Field(
        None,
        description=(
            "Annotations of the pods, of the keys that the operator's configuration lists"
            " (workloads.pods.annotations): an annotation may attach networks or inject containers."
        ),
    )
    runtime_class_name: Name | None = Field(
        None, description="RuntimeClass of the pods, for example nvidia; left out: the node's default."
    )
    priority_class_name: Name | None = Field(
        None,
        description=(
            "PriorityClass of the pods, one that the operator's configuration lists"
            " (workloads.pods.priorityClasses): a higher priority displaces pods of others."
        ),
    )
    scheduler_name: Name | None = Field(
        None, description="Scheduler that places the pods; left out: default-scheduler."
    )
    topology_spread_constraints: (
        Annotated[list[TopologySpreadAsWritten], Field(min_length=1, max_length=8)] | None
    ) = Field(
        None,
        description=(
            "As in a pod; without labelSelector a constraint is about the pods of the same revision. Left"
            " out: they are spread over nodes where that is possible."
        ),
    )
    env: Annotated[list[EnvVar], Field(min_length=1, max_length=32), ListMapKey("name")] | None = Field(
        None,
        description=(
            "Environment of the server, such as HF_TOKEN by secretKeyRef; code of the model and of the image"
            " reads it. A Secret that changes restarts no pod."
        ),
    )
    volumes: Annotated[list[Volume], Field(min_length=1, max_length=16), ListMapKey("name")] | None = Field(
        None,
        description=(
            "Secrets, ConfigMaps and claims that the server reads in /mnt/NAME; code of the model and of the"
            " image reads them, too."
        ),
    )
    size_limits: SizeLimits | None = None
    fetch_resources: Resources | None = Field(
        None,
        description=(
            "Resources of the init container that fetches the model, in place of 50m of cpu and 128Mi to 1Gi"
            " of memory. A pod keeps the largest request of its containers for its whole life."
        ),
    )
    rules: ClassVar[tuple[Rule, ...]] = (
        *(
            Rule(
                f"!has(self.fetchResources) || !has(self.fetchResources.{part}) ||"
                f" self.fetchResources.{part}.all(k, k in {_FETCHING})",
                f"fetchResources.{part}: what fetches a model takes cpu, memory and ephemeral-storage; ask"
                " for GPUs in serving.resources",
            )
            for part in ("limits", "requests")
        ),
        *(
            rule
            for field in ("labels", "annotations")
            for rule in (
                Rule(
                    f"!has(self.{field}) || self.{field}.all(k, k.matches('{_KEY}'))",
                    f"{field}: a key is a name of letters, digits, '-', '_' and '.', at most 63 characters,"
                    " perhaps after a domain and '/', for example example.com/team",
                ),
                Rule(
                    f"!has(self.{field}) || self.{field}.all(k, !k.matches('{_OPERATORS}'))",
                    f"{field}: keys of modelrollout.dev are the operator's: its Services select pods by"
                    " them; leave them out",
                ),
            )
        ),
        Rule(
            f"!has(self.labels) || self.labels.all(k, self.labels[k].matches('{_VALUE}'))",
            "labels: a value has letters, digits, '-', '_' and '.', and begins and ends with a letter or"
            " digit; write anything else as an annotation",
        ),
        Rule(
            f"!has(self.labels) || self.labels.all(k, !k.matches('{_CONTROLLERS}'))",
            "labels: Kubernetes and Kueue manage pods by pod-template-hash, controller-uid, job-name and"
            " labels of batch.kubernetes.io, statefulset.kubernetes.io and kueue.x-k8s.io; leave them out"
            " (servers are not queued)",
        ),
        Rule(
            f"!has(self.annotations) || self.annotations.all(k, !k.matches('{_OWN_ANNOTATIONS}'))",
            "annotations: those of prometheus.io are the operator's, and those of AppArmor and seccomp"
            " would loosen what every pod has; leave them out",
        ),
        Rule(
            "!has(self.priorityClassName) || !self.priorityClassName.startsWith('system-')",
            "priorityClassName: classes of the name system-... are the cluster's own: name another",
        ),
    )
