"""The only module that knows kopf, which supplies the watches and the process frame: it finds the
resources, reopens watches, and backs off after errors.

The objects themselves never reach kopf. Its JSON reader ends the process at an object that is
nested 1,000 deep, and it would keep all that it lists. So its requests go through our own session
(kopf.AiohttpSession), which hands every object to ``controller.intake`` and leaves kopf only the
watch's position. No daemons, timers, indices, progress annotations or finalizers.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import kopf
from kubernetes import client as kubernetes_client
from kubernetes import config as kubernetes_config

from modelrollout.controller.intake import LINE_BYTES, OURS, Intake
from modelrollout.kube.errors import KubeError
from modelrollout.kube.kinds import Resource

log = logging.getLogger(__name__)

RELIST_SECONDS = 2.0  # after a list that failed; kopf itself waits a tenth of a second


def registry(
    intake: Intake, resources: Iterable[Resource], kubeconfig: str | None, context: str | None
) -> Any:
    """A kopf registry that makes kopf watch each of the resources."""
    made = kopf.OperatorRegistry()
    for resource in resources:
        kopf.on.event(
            resource.group, resource.version, resource.plural, registry=made, id=f"watch-{resource.plural}"
        )(_nothing)

    @kopf.on.login(registry=made, id="login")
    async def login(**_: Any) -> kopf.AiohttpSession:
        return session(connection(kubeconfig, context), intake)

    @kopf.on.startup(registry=made, id="settings")
    def settings(settings: kopf.OperatorSettings, **_: Any) -> None:
        settings.posting.enabled = False
        settings.scanning.disabled = True
        settings.watching.server_timeout = 300
        settings.watching.connect_timeout = 10
        settings.watching.chunk_size = 1  # what it would list is listed by the intake, page by page
        for resource in resources:
            if not resource.watch_all:
                settings.watching.label_selectors[resource.group, resource.version, resource.plural] = OURS

    return made


async def _nothing(**_: Any) -> None:
    """Never called: no event reaches kopf's handlers."""


def session(info: kopf.ConnectionInfo, intake: Intake) -> kopf.AiohttpSession:
    """kopf's connection to the API server, whose answers are read by the intake."""
    made = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
        headers=info.as_http_headers(),
        proxy=info.proxy_url,
        trust_env=info.trust_env,
        response_class=response_class(intake, urlsplit(info.server).path.rstrip("/")),
    )
    return kopf.AiohttpSession(
        server=info.server,
        default_namespace=info.default_namespace,
        priority=info.priority,
        aiohttp_session=made,
    )


def response_class(intake: Intake, prefix: str) -> type[aiohttp.ClientResponse]:
    """Answers whose watches and lists of watched resources are taken in; all others are as ever.
    ``prefix``: of the API server's paths.
    """

    class Response(aiohttp.ClientResponse):
        def _watched(self) -> tuple[Resource, str | None] | None:
            return (
                intake.watched(self.url.path.removeprefix(prefix))
                if self.status == 200 and self.method == "GET"
                else None
            )

        async def start(self, connection: Any) -> aiohttp.ClientResponse:
            await super().start(connection)
            if self.url.query.get("watch") and (target := self._watched()):
                self.content = Lines(self.content, partial(intake.line, target[0]))  # type: ignore[assignment]
            return self

        async def json(self, **options: Any) -> Any:
            target = self._watched()
            if target is None:
                return await super().json(**options)
            try:
                version = await intake.list(*target)
            except Exception as e:
                if isinstance(e, KubeError):
                    log.warning("the %s cannot be listed, again soon: %s", target[0].plural, e)
                else:
                    log.exception("the %s cannot be listed, again soon", target[0].plural)
                await asyncio.sleep(max(RELIST_SECONDS, getattr(e, "retry_after", None) or 0))
                # kopf treats this as a broken connection and retries
                raise aiohttp.ClientPayloadError(str(e)) from e
            return {
                "apiVersion": target[0].api_version,
                "kind": f"{target[0].kind}List",
                "metadata": {"resourceVersion": version},
                "items": [],
            }

    return Response


class Lines:
    """The content of a watch, of which each line is taken in and replaced by what is left of it.
    Longer lines than LINE_BYTES are never held.
    """

    def __init__(self, content: aiohttp.StreamReader, take: Callable[[bytes, bool], bytes | None]) -> None:
        self._content, self._take = content, take

    def __getattr__(self, name: str) -> Any:
        return getattr(self._content, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """What is left of the lines, each whole."""
        line, cut = bytearray(), False
        async for data in self._content.iter_chunked(size):
            *ends, rest = data.split(b"\n")
            for part in ends:
                room = LINE_BYTES - len(line)
                line += part[:room]
                if line and (left := self._take(bytes(line), cut or len(part) > room)):
                    yield left + b"\n"
                line, cut = bytearray(), False
            room = LINE_BYTES - len(line)
            line += rest[:room]
            cut = cut or len(rest) > room


def connection(kubeconfig: str | None, context: str | None) -> kopf.ConnectionInfo:
    """Credentials for kopf's own client, from the same place as ours."""
    configuration = kubernetes_client.Configuration()
    try:
        if kubeconfig is None and context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
            kubernetes_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            kubernetes_config.load_kube_config(  # type: ignore[no-untyped-call]
                config_file=kubeconfig,
                context=context,
                client_configuration=configuration,
                persist_config=False,
            )
    except kubernetes_config.ConfigException as e:
        raise kopf.PermanentError(f"no usable credentials: {e}") from e
    scheme, _, token = (configuration.get_api_key_with_prefix("BearerToken") or "").rpartition(" ")
    return kopf.ConnectionInfo(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        username=configuration.username or None,
        password=configuration.password or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
        priority=100,
    )


async def run(made: Any, namespaces: list[str], ready: Any, identity: str) -> None:
    """Watch until a signal arrives or a watch fails for good; then the process ends, and a restart
    is cheap.
    """
    # Without an identity kopf asks the system for a user name, which a container with a bare uid
    # has not.
    await kopf.operator(
        registry=made,
        identity=identity,  # type: ignore[arg-type]
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        ready_flag=ready,
    )
