"""Shared by all children: metadata, owners, security contexts, and the location and credentials of
a URI.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelrollout.api import names
from modelrollout.api.v1alpha1 import Credentials
from modelrollout.config import OperatorConfig, StoreConfig
from modelrollout.contract.common import CREDENTIALS_DIR, Location
from modelrollout.quantity import quantity
from modelrollout.telemetry.redaction import mask_uri

Object = dict[str, Any]
# users in pods: of all containers, and of ours beside an untrusted one
NON_ROOT, OURS = 65532, 65533
DISK = "ephemeral-storage"
ARTIFACTS = "artifacts"  # folder of the artifact store's credentials in pods


@dataclass(frozen=True)
class Owner:
    """The object that a child belongs to; the garbage collector removes the child with it."""

    kind: str
    name: str
    namespace: str
    uid: str

    def reference(self) -> Object:
        """The ownerReference; blockOwnerDeletion stays out, so that no permission on finalizers is
        needed.
        """
        return {
            "apiVersion": names.API_VERSION,
            "kind": self.kind,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
        }


def metadata(owner: Owner, name: str, labels: dict[str, str]) -> Object:
    """Metadata of a child. Labels are ours alone: a foreign tracking label would make another tool
    claim and prune the child.
    """
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": labels | {names.LABEL_MANAGED_BY: names.FIELD_MANAGER},
        "ownerReferences": [owner.reference()],
    }


def labels(
    deployment: str, component: str, revision: str | None = None, number: int | None = None
) -> dict[str, str]:
    """Labels by which the operator and Prometheus find a child."""
    own = {names.LABEL_NAME: deployment, names.LABEL_COMPONENT: component}
    if revision:
        own[names.LABEL_REVISION] = revision
    if number:
        own[names.LABEL_NUMBER] = str(number)
    return own


def pod_security(config: OperatorConfig) -> Object:
    """Pod security context of the restricted Pod Security Standard; without users where the
    platform gives them out, for it refuses those that it did not.
    """
    own = {"runAsUser": NON_ROOT, "runAsGroup": NON_ROOT, "fsGroup": NON_ROOT}
    return {
        "runAsNonRoot": True,
        **({} if config.workloads.users == "Platform" else own),
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def our_user(config: OperatorConfig) -> int | None:
    """The user of our containers beside an untrusted one; None: that of the pod, where the platform
    gives a pod one user.
    """
    return None if config.workloads.users == "Platform" else OURS


def container_security(user: int | None = None) -> Object:
    """Container security context of the restricted Pod Security Standard, with a read-only root.
    ``user``: another than the pod's.
    """
    context = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    return context if user is None else context | {"runAsUser": user}


def on_disk(resources: Object, most: str) -> Object:
    """A container's resources with a default limit on the node's disk, which includes the pod's
    volumes.

    The request is 0, because it would default to the limit, and a pod with a request is never
    placed on nodes that do not report their disk.
    """
    limits, requests = dict(resources.get("limits") or {}), dict(resources.get("requests") or {})
    limits.setdefault(DISK, max(most, str(requests.get(DISK, most)), key=quantity))
    requests.setdefault(DISK, "0")
    return resources | {"limits": limits, "requests": requests}


def bounded(volumes: list[Object], most: str) -> list[Object]:
    """The volumes with a default size limit for each emptyDir."""
    return [
        v if v.get("emptyDir") is None else v | {"emptyDir": {"sizeLimit": most} | v["emptyDir"]}
        for v in volumes
    ]


@dataclass(frozen=True)
class Located:
    """A location for a task, and the Secret (if any) to mount for it."""

    location: Location
    secret: str | None

    def volumes(self) -> list[Object]:
        """Secret volume; optional, so that the program reports a missing Secret with a reason
        instead of a pod that hangs.
        """
        if self.secret is None or self.location.credentials is None:
            return []
        return [
            {
                "name": f"credentials-{self.location.credentials}",
                "secret": {"secretName": self.secret, "optional": True, "defaultMode": 0o440},
            }
        ]

    def mounts(self) -> list[Object]:
        """Where the program looks for it."""
        if self.secret is None or self.location.credentials is None:
            return []
        folder = self.location.credentials
        return [
            {"name": f"credentials-{folder}", "mountPath": f"{CREDENTIALS_DIR}/{folder}", "readOnly": True}
        ]


def locate(uri: str, store: StoreConfig, credentials: Credentials | None, folder: str) -> Located:
    """Join a URI with its store; endpoint, region and where redirects may lead come from the store,
    never from a user.
    """
    secret = credentials.secret_ref.name if credentials else store.secret_name
    location = Location(
        uri=uri,
        endpoint=store.endpoint,
        region=store.region,
        allow_http=store.allow_http,
        credentials=folder if secret else None,
        leads_to=store.leads_to,
    )
    return Located(location, secret)


class NotAllowedError(ValueError):
    """A URI that lies in no store of the operator's configuration."""

    def __init__(self, field: str, uri: str) -> None:
        # The message does not list the stores: some belong to other teams.
        super().__init__(
            f"{field}: {mask_uri(uri)} lies in no store that this operator is configured with; ask the"
            " platform team which to use"
        )


def store_for_field(field: str, uri: str, config: OperatorConfig) -> StoreConfig:
    """The store of a URI; raises NotAllowedError with the field's path."""
    store = config.store_for(uri)
    if store is None:
        raise NotAllowedError(field, uri)
    return store


def artifact_location(config: OperatorConfig, uri: str, *, to_read: bool = False) -> Located:
    """A place in the artifact store, with the Secret to write there, or only ``to_read``. Redirects
    are mentioned only if configured: another text of the task would restart pods.
    """
    store = config.artifacts
    reader = store.read_secret_name if to_read else None
    located = locate(
        uri, store.model_copy(update={"secret_name": reader}) if reader else store, None, ARTIFACTS
    )
    if config.artifacts.redirects_to:
        return located
    return Located(located.location.model_copy(update={"leads_to": None}), located.secret)


def tenant_uri(config: OperatorConfig, namespace: str) -> str:
    """The folder of a namespace in the artifact store: caches are per tenant."""
    return f"{config.artifacts.uri.rstrip('/')}/{namespace}"
