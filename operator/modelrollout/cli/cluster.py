"""Reading what the commands need from the API server, with errors that say what to do."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.v1alpha1 import (
    ModelDeploymentSpec,
    ModelDeploymentStatus,
    ModelRevisionSpec,
    ModelRevisionStatus,
)
from modelrollout.cli.errors import NoSuchObject, Refused, Unanswered
from modelrollout.cli.screen import printable
from modelrollout.kube.client import Kube, Listing, Row
from modelrollout.kube.errors import Forbidden, KubeError, NotFound
from modelrollout.kube.kinds import (
    EVENT,
    MODEL_DEPLOYMENT,
    MODEL_REVISION,
    NAMESPACE,
    POD,
    ROLLOUT_POLICY,
    Resource,
)
from modelrollout.kube.objects import Object
from modelrollout.rollout.policy.rules import spec_in_force

FIELD_MANAGER = "modelrollout-cli"  # what a user requests is not the operator's
_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?")
# Which ClusterRole of the chart allows what a command needs.
_ROLES = {
    "read": "modelrollout-view",
    "ask": "modelrollout-operate",
    "ask on the ModelDeployment": "modelrollout-edit",
}


class Api(Protocol):
    """What the commands need of ``Kube``."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object: ...
    async def list(
        self, resource: Resource, namespace: str | None = None, *, label_selector: str = "", limit: int = 500
    ) -> Listing: ...
    async def merge_patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Object
    ) -> Object: ...
    def table(self, resource: Resource, namespace: str | None = None) -> AsyncIterator[Sequence[Row]]: ...
    async def close(self) -> None: ...


async def connect(kubeconfig: str | None, context: str | None) -> Api:
    """The API server that kubectl would talk to."""
    return await Kube.connect(kubeconfig, context, component="cli", field_manager=FIELD_MANAGER)


@dataclass(frozen=True)
class Revision:
    """A ModelRevision as read."""

    name: str
    created: str
    spec: ModelRevisionSpec
    status: ModelRevisionStatus
    raw: Object


@dataclass(frozen=True)
class Replicas:
    """Pods of one revision."""

    ready: int = 0
    total: int = 0


@dataclass(frozen=True)
class Event:
    """A Kubernetes event about the ModelDeployment or one of its revisions."""

    at: str
    type: str
    reason: str
    about: str
    message: str
    count: int = 1


@dataclass(frozen=True)
class Rollout:
    """One ModelDeployment and what belongs to it, as read at one time."""

    name: str
    namespace: str
    generation: int
    # None: another version of the API wrote what this one cannot read
    spec: ModelDeploymentSpec | None
    status: ModelDeploymentStatus
    revisions: tuple[Revision, ...] = ()  # newest first
    unread: tuple[str, ...] = ()  # revisions that another version of the API wrote
    replicas: Mapping[str, Replicas] | None = None  # by revision; None: not allowed to look
    events: tuple[Event, ...] | None = None  # newest last; None: not allowed to look
    raw: Object | None = None

    def revision(self, name: str | None) -> Revision | None:
        """The revision of that name, if it is kept."""
        return next((r for r in self.revisions if r.name == name), None)


class Cluster:
    """The objects of one namespace."""

    def __init__(self, api: Api, namespace: str) -> None:
        self._api = api
        self.namespace = namespace

    def within(self, namespace: str) -> Cluster:
        """The objects of another namespace, by the same connections."""
        return Cluster(self._api, namespace)

    async def overview(self, *, everywhere: bool) -> list[Row]:
        """A line for each ModelDeployment, of this namespace or of all."""
        rows: list[Row] = []
        try:
            async for page in self._api.table(MODEL_DEPLOYMENT, None if everywhere else self.namespace):
                rows += page
        except NotFound:
            raise Unanswered(
                f"this cluster does not know {names.GROUP}: install the chart model-rollout-operator first"
                " (docs/how-to/install.md)"
            ) from None
        except KubeError as e:
            raise self._explained(e, "read", "list", "modeldeployments") from e
        return [Row(*map(_printable, row)) for row in rows]

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()

    async def rollout(self, name: str, *, pods: bool = False, events: bool = False) -> Rollout:
        """The ModelDeployment with its revisions, and on demand with its pods and events."""
        if not _NAME.fullmatch(name):  # which another path might be read from
            raise await self._not_found(name)
        try:
            deployment = _printable(await self._api.get(MODEL_DEPLOYMENT, self.namespace, name))
        except NotFound:
            raise await self._not_found(name) from None
        except KubeError as e:
            raise self._explained(e, "read", "get", "modeldeployments") from e
        revisions, unread = await self._revisions(name)
        return Rollout(
            name=name,
            namespace=self.namespace,
            generation=deployment["metadata"].get("generation", 0),
            spec=_spec(deployment),
            status=_read_status(deployment),
            revisions=revisions,
            unread=unread,
            replicas=await self._replicas(name) if pods else None,
            events=await self._events({name, *(r.name for r in revisions)}) if events else None,
            raw=deployment,
        )

    async def policies(self) -> Sequence[Object] | None:
        """The RolloutPolicies of the cluster; None where one may not look beyond one's
        namespace.
        """
        try:
            return (await self._api.list(ROLLOUT_POLICY)).items
        except Forbidden:
            return None
        except KubeError as e:
            raise self._explained(e, "read", "list", "rolloutpolicies") from e

    async def namespace_labels(self) -> Mapping[str, str] | None:
        """Labels of the namespace; None where one may not look at it."""
        try:
            return (await self._api.get(NAMESPACE, None, self.namespace))["metadata"].get("labels") or {}
        except (Forbidden, NotFound):
            return None
        except KubeError as e:
            raise self._explained(e, "read", "get", "namespaces") from e

    async def _revisions(self, name: str) -> tuple[tuple[Revision, ...], tuple[str, ...]]:
        """Kept revisions of a ModelDeployment, newest first, and the names of those that cannot be
        read.
        """
        try:
            listing = await self._api.list(
                MODEL_REVISION, self.namespace, label_selector=f"{names.LABEL_NAME}={name}"
            )
        except KubeError as e:
            raise self._explained(e, "read", "list", "modelrevisions") from e
        read, unread = [], [u.name for u in listing.unread]
        for item in map(_printable, listing.items):
            name_of = item["metadata"]["name"]
            try:
                spec = ModelRevisionSpec.model_validate(item["spec"])
                status = ModelRevisionStatus.model_validate(item.get("status") or {})
            except ValidationError:
                unread.append(name_of)
            else:
                read.append(
                    Revision(name_of, item["metadata"].get("creationTimestamp", ""), spec, status, item)
                )
        return tuple(sorted(read, key=lambda r: r.spec.number, reverse=True)), tuple(unread)

    async def annotate(self, resource: Resource, name: str, annotations: Mapping[str, str | None]) -> None:
        """Set annotations (None: remove it) and nothing else."""
        try:
            await self._api.merge_patch(
                resource, self.namespace, name, {"metadata": {"annotations": dict(annotations)}}
            )
        except NotFound:
            raise Refused(
                f"{resource.kind} {name} is not there (any more); see: modelrollout history"
            ) from None
        except KubeError as e:
            need = "ask" if resource is MODEL_REVISION else "ask on the ModelDeployment"
            raise self._explained(e, need, "patch", resource.plural) from e

    async def _replicas(self, name: str) -> dict[str, Replicas] | None:
        selector = f"{names.LABEL_NAME}={name},{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}"
        try:
            listing = await self._api.list(POD, self.namespace, label_selector=selector)
        except Forbidden:
            return None
        except KubeError as e:
            raise self._explained(e, "read", "list", "pods") from e
        counts: dict[str, Replicas] = {}
        for pod in listing.items:
            if pod["metadata"].get("deletionTimestamp"):
                continue
            revision = pod["metadata"].get("labels", {}).get(names.LABEL_REVISION, "")
            conditions = (pod.get("status") or {}).get("conditions") or []
            ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
            before = counts.get(revision, Replicas())
            counts[revision] = Replicas(before.ready + ready, before.total + 1)
        return counts

    async def _events(self, about: set[str]) -> tuple[Event, ...] | None:
        try:
            listing = await self._api.list(EVENT, self.namespace)
        except Forbidden:
            return None
        except KubeError as e:
            raise self._explained(e, "read", "list", "events") from e
        kinds = {MODEL_DEPLOYMENT.kind, MODEL_REVISION.kind}
        ours = [
            e
            for e in listing.items
            if e["involvedObject"].get("kind") in kinds and e["involvedObject"].get("name") in about
        ]
        read = [
            Event(
                at=e.get("lastTimestamp")
                or e.get("eventTime")
                or e["metadata"].get("creationTimestamp")
                or "",
                type=e.get("type") or "Normal",
                reason=e.get("reason") or "",
                about=e["involvedObject"].get("name") or "",
                message=_printable(e.get("message") or ""),
                count=e.get("count") or 1,
            )
            for e in ours
        ]
        return tuple(sorted(read, key=lambda e: e.at))

    async def _not_found(self, name: str) -> Exception:
        try:
            deployments = await self._api.list(MODEL_DEPLOYMENT, self.namespace)
        except NotFound:
            return Unanswered(
                f"this cluster does not know {names.GROUP}: install the chart model-rollout-operator first"
                " (docs/how-to/install.md)"
            )
        except KubeError as e:
            return self._explained(e, "read", "list", "modeldeployments")
        there = sorted(item["metadata"]["name"] for item in deployments.items)
        listing = (
            f"there are: {', '.join(there)}"
            if there
            else "there is none; another namespace is chosen with -n"
        )
        return NoSuchObject(f"no ModelDeployment {name!r} in namespace {self.namespace}; {listing}")

    def _explained(self, error: KubeError, need: str, verb: str, plural: str) -> Exception:
        if isinstance(error, Forbidden):
            group = f".{names.GROUP}" if plural.startswith("model") else ""
            return Unanswered(
                f"not allowed to {verb} {plural}{group} in namespace {self.namespace}: bind the ClusterRole"
                f" {_ROLES[need]}\n  kubectl -n {self.namespace} create rolebinding NAME"
                f" --clusterrole={_ROLES[need]} --user=YOU\n  ({error.message})"
            )
        if error.status == 401:
            return Unanswered(f"the API server does not accept these credentials ({error.message})")
        return Unanswered(f"the API server does not answer: {error}")


def _spec(deployment: Object) -> ModelDeploymentSpec | None:
    """The spec with the defaults of policies, which the operator publishes in status."""
    defaults = (deployment.get("status") or {}).get("defaults") or {}
    try:
        return ModelDeploymentSpec.model_validate(spec_in_force(deployment["spec"], defaults))
    except ValidationError:
        return None


def _printable(value: Any) -> Any:
    """The value with all its texts fit to be shown."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {_printable(key): _printable(inner) for key, inner in value.items()}
    return [_printable(inner) for inner in value] if isinstance(value, list) else value


def _read_status(deployment: Object) -> ModelDeploymentStatus:
    try:
        return ModelDeploymentStatus.model_validate(deployment.get("status") or {})
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise Unanswered(
            f"the status was written by another version of the operator ({where}: {first['msg']}); use the"
            " command line of that version"
        ) from e


def default_namespace(kubeconfig: str | None, context: str | None) -> str:
    """The namespace that kubectl would take: of the context, of the pod, or ``default``."""
    if (
        kubeconfig is None
        and context is None
        and os.environ.get("KUBERNETES_SERVICE_HOST")
        and _POD_NAMESPACE.is_file()
    ):
        return _POD_NAMESPACE.read_text().strip()
    paths = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
    contexts: dict[str, str] = {}
    current = context
    for path in (Path(p).expanduser() for p in paths.split(os.pathsep) if p):
        document = _kubeconfig(path)
        current = current or document.get("current-context")
        # the first file that names a context wins, as in kubectl
        for entry in document.get("contexts") or []:
            contexts.setdefault(entry["name"], (entry.get("context") or {}).get("namespace") or "default")
    return contexts.get(current or "", "default")


def _kubeconfig(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError):
        return {}  # connecting says what is wrong with it
    return document if isinstance(document, dict) else {}
