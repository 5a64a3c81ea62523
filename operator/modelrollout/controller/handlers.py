"""The only place that knows kopf: watch events become keys on the queue, and nothing else happens here.

kopf is the watch source and the process frame. No daemons, timers, indices, progress annotations or finalizers (DESIGN.md, The loop).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any

import kopf
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from modelrollout.api import names
from modelrollout.kube.cache import Key, Store, owner
from modelrollout.kube.client import MODEL_DEPLOYMENT, MODEL_REVISION, ROLLOUT_POLICY, Resource

OURS = f"{names.LABEL_NAME}"  # children carry this label; the watch asks the API server for nothing else
UNLABELLED = (ROLLOUT_POLICY, MODEL_DEPLOYMENT, MODEL_REVISION)  # our own kinds are watched whole


def registry(store: Store, resources: Iterable[Resource], wake: Callable[[Key], None], kubeconfig: str | None, context: str | None) -> Any:
    """A kopf registry with one event handler for each watched resource."""
    made = kopf.OperatorRegistry()
    for resource in resources:
        kopf.on.event(resource.group, resource.version, resource.plural, registry=made, id=f"watch-{resource.plural}")(
            _handler(store, resource, wake)
        )

    @kopf.on.login(registry=made, id="login")
    def login(**_: Any) -> kopf.ConnectionInfo:
        return connection(kubeconfig, context)

    @kopf.on.startup(registry=made, id="settings")
    def settings(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.server_timeout = 300
        settings.watching.connect_timeout = 10
        for resource in resources:
            if resource not in UNLABELLED:
                settings.watching.label_selectors[resource.group, resource.version, resource.plural] = OURS

    return made


def _handler(store: Store, resource: Resource, wake: Callable[[Key], None]) -> Any:
    async def watch(event: Any, **_: Any) -> None:
        body = dict(event["object"])
        body.setdefault("apiVersion", resource.api_version)
        body.setdefault("kind", resource.kind)
        if store.observe(resource, {"type": event["type"], "object": body}):
            key = owner(resource, body)
            if key is not None:
                wake(key)

    return watch


def connection(kubeconfig: str | None, context: str | None) -> kopf.ConnectionInfo:
    """Credentials for kopf's own client, from the same place as ours."""
    found = kubernetes_client.Configuration()
    try:
        if kubeconfig is None and context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
            kubernetes_config.load_incluster_config(client_configuration=found)  # type: ignore[no-untyped-call]
        else:
            kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig, context=context, client_configuration=found, persist_config=False
            )
    except kubernetes_config.ConfigException as e:
        raise kopf.PermanentError(f"no usable credentials: {e}") from e
    scheme, _, token = (found.get_api_key_with_prefix("BearerToken") or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=found.host,
        ca_path=found.ssl_ca_cert,
        insecure=not found.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        username=found.username or None,
        password=found.password or None,
        certificate_path=found.cert_file,
        private_key_path=found.key_file,
        priority=100,
    )


async def run(made: Any, namespaces: list[str], ready: Any, identity: str) -> None:
    """Watch until a signal comes or a watch fails for good; then the process ends and is started anew, which is cheap."""
    # Without an identity kopf asks the system for a user name, which a container with a bare uid has not.
    await kopf.operator(
        registry=made,
        identity=identity,  # type: ignore[arg-type]
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        ready_flag=ready,
    )
