"""A narrow adapter over ``kubernetes.aio``: plain dicts in and out, a timeout on every request, and
typed errors.

Bodies and tokens are never logged; the exceptions of ``kubernetes.aio`` (whose text holds body and
headers) do not leave this module.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import os
import time
import urllib.request
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from urllib.parse import urlencode, urlsplit

import aiohttp
from kubernetes.aio import client as aio
from kubernetes.aio import config as aio_config
from kubernetes.aio.client.exceptions import OpenApiException

from modelrollout.api import names
from modelrollout.kube import decoding
from modelrollout.kube.decoding import NotJsonError, Page, TooLargeError, UnreadableError, UnreadableObject
from modelrollout.kube.errors import (
    Conflict,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    TooManyRequests,
    Unavailable,
    Unreadable,
    error_of,
)
from modelrollout.kube.field_ownership import taken_over
from modelrollout.kube.kinds import Resource
from modelrollout.kube.objects import Object

log = logging.getLogger(__name__)

MERGE_PATCH = "application/merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"  # JSON is YAML
# not every request of a revoked account may run the kubeconfig's exec plugin
CREDENTIALS_RETRY_SECONDS = 10.0
# a pass may need several lists, and its worker counts as stuck after two minutes
PATIENCE_SECONDS = 20.0


TABLE_ROWS = 500
_AS_TABLE = "application/json;as=Table;v=v1;g=meta.k8s.io"


class Row(NamedTuple):
    """A line of ``kubectl get``: ``cells`` by the name of the column, None where it is empty."""

    namespace: str
    name: str
    cells: dict[str, object]


class Listing(NamedTuple):
    """A complete list and the resourceVersion that it shows. ``unread``: those of its objects that
    could not be read.
    """

    items: list[Object]
    resource_version: str
    unread: tuple[UnreadableObject, ...] = ()


class Kube:
    """One API server. Objects are dicts with apiVersion and kind; every method raises KubeError.

    ``on_request(verb, resource, result)`` is called for every HTTP request; result is the status,
    ``timeout`` or ``error``. ``on_unread(resource, unread)`` is called for every object in a list
    that could not be read.
    """

    def __init__(
        self,
        configuration: aio.Configuration,
        load: Callable[[aio.Configuration], Awaitable[None]],
        *,
        user_agent: str,
        timeout: float,
        clock: Callable[[], float],
        on_request: Callable[[str, str, str], None] | None,
        on_unread: Callable[[Resource, UnreadableObject], None] | None = None,
        field_manager: str = names.FIELD_MANAGER,
    ) -> None:
        self._load = load
        self._field_manager = field_manager
        self._client = aio.ApiClient(configuration)
        self._user_agent = user_agent
        self._timeout = timeout
        self._clock = clock
        self._on_request = on_request
        self.on_unread = on_unread
        self._renewing = asyncio.Lock()
        self._credentials = (0, clock())  # how often and when they were read
        self._answered = clock()
        self._kinds: dict[str, tuple[float, frozenset[str]]] = {}

    @classmethod
    async def connect(
        cls,
        kubeconfig: str | None = None,
        context: str | None = None,
        *,
        component: str = "operator",
        field_manager: str = names.FIELD_MANAGER,
        request_timeout: float = 10.0,
        max_connections: int = 32,
        clock: Callable[[], float] = time.monotonic,
        on_request: Callable[[str, str, str], None] | None = None,
    ) -> Self:
        """Connect by ``kubeconfig`` if given, else as a pod, else by $KUBECONFIG or ~/.kube/config.

        ``request_timeout`` (seconds) holds for each request from the wait for a connection to the
        last byte. Raises KubeError when there are no usable credentials.
        """

        async def load(configuration: aio.Configuration) -> None:
            try:
                if kubeconfig is None and context is None and os.environ.get("KUBERNETES_SERVICE_HOST"):
                    aio_config.load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
                    return
                path = kubeconfig or os.environ.get("KUBECONFIG") or "~/.kube/config"
                if not _any_file(path):
                    raise KubeError(
                        0,
                        "NoCredentials",
                        f"no kubeconfig at {path}"
                        + ("" if kubeconfig else ", and this process does not run in a pod"),
                    )
                await aio_config.load_kube_config(  # type: ignore[no-untyped-call]
                    config_file=path,
                    context=context,
                    client_configuration=configuration,
                    persist_config=False,  # the default may write the file
                )
            except (aio_config.ConfigException, OSError, TypeError, ValueError) as e:
                raise KubeError(0, "NoCredentials", str(e)) from e

        configuration = aio.Configuration()
        configuration.connection_pool_maxsize = max_connections
        # With trust_env, the default here, aiohttp enters a thread twice for each request, for
        # .netrc and for the proxy, and refuses every request when .netrc knows the host. So the
        # proxy is found once, here.
        configuration.client_session_kwargs = {"trust_env": False, "cookie_jar": aiohttp.DummyCookieJar()}
        await load(configuration)
        configuration.proxy = configuration.proxy or _proxy(configuration.host)
        agent = f"modelrollout/{_version()} ({component})"
        return cls(
            configuration,
            load,
            user_agent=agent,
            timeout=request_timeout,
            clock=clock,
            on_request=on_request,
            field_manager=field_manager,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def silent_for(self) -> float:
        """Seconds since the API server last answered anything but 5xx; counted from the start at
        first.
        """
        return self._clock() - self._answered

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object:
        """Read one object."""
        return await self._request("get", resource, resource.path(namespace, name))

    async def list(
        self,
        resource: Resource,
        namespace: str | None = None,
        *,
        label_selector: str = "",
        field_selector: str = "",
        limit: int = decoding.PAGE_ITEMS,
        keep: Callable[[Object], Object] = lambda o: o,
        patience: float = PATIENCE_SECONDS,
    ) -> Listing:
        """Read all objects, ``limit`` at a time, with apiVersion and kind filled in. If the
        continue token expires, the list is retried once.

        ``keep``: what the list has of each object, called when its page has been read. Objects that
        cannot be read, or that exceed NAMESPACE_BYTES for one namespace, are left out and reported.
        ``patience``: seconds that its pages may wait in all for an API server that puts them off.
        """
        selectors = {"labelSelector": label_selector, "fieldSelector": field_selector}
        try:
            return await self._list(resource, namespace, selectors, limit, keep, patience)
        except Gone:
            return await self._list(resource, namespace, selectors, limit, keep, patience)

    async def _list(
        self,
        resource: Resource,
        namespace: str | None,
        selectors: Mapping[str, str],
        limit: int,
        keep: Callable[[Object], Object],
        patience: float,
    ) -> Listing:
        items: list[Object] = []
        unread: list[UnreadableObject] = []
        bytes_by_namespace: defaultdict[str, int] = defaultdict(int)  # bytes by namespace
        version = ""
        async for page in self._pages(resource, namespace, selectors, limit, patience):
            version = page.resource_version or version
            unread += page.unread
            for read in page.items:
                # lists of built-in kinds leave these two out of the items
                item = keep({"apiVersion": resource.api_version, "kind": resource.kind, **read})
                where = read["metadata"].get("namespace") or ""
                weight = decoding.weigh(item)
                if bytes_by_namespace[where] + weight > decoding.NAMESPACE_BYTES:
                    unread.append(decoding.omitted(item))
                    continue
                bytes_by_namespace[where] += weight
                items.append(item)
        if self.on_unread:
            for u in unread:
                self.on_unread(resource, u)
        return Listing(items, version, tuple(unread))

    async def _pages(
        self,
        resource: Resource,
        namespace: str | None,
        selectors: Mapping[str, str],
        limit: int,
        patience: float,
    ) -> AsyncIterator[Page]:
        path, token, most = resource.path(namespace), "", limit

        async def fetch(count: int) -> bytes:
            nonlocal patience
            query = {**selectors, "limit": str(count), "continue": token}
            while True:
                try:
                    return await self._request_raw(
                        "list", resource, path, query=query, most=decoding.PAGE_BYTES if count > 1 else None
                    )
                except TooManyRequests as e:
                    # a list that began again would only add to what the API server has to do
                    if e.retry_after is None or e.retry_after > patience:
                        raise
                    patience -= e.retry_after
                    await asyncio.sleep(e.retry_after)

        while True:
            try:
                page, limit = await decoding.read_page(fetch, limit, most)
            except UnreadableError as e:
                raise Unavailable(200, "NoList", f"the list of {resource.plural} {e}") from e
            token = page.token
            yield page
            if not token:
                return

    async def create(self, resource: Resource, obj: Object) -> Object:
        """Create; AlreadyExists when the name is taken."""
        path = resource.path(obj["metadata"].get("namespace"))
        return await self._request(
            "create", resource, path, body=obj, query={"fieldManager": self._field_manager}
        )

    async def apply(
        self, resource: Resource, obj: Object, *, uid: str | None = None, resource_version: str | None = None
    ) -> Object:
        """Server-side apply under our field manager, taking fields over from others; creates what
        is absent.

        With ``uid`` only that very object is changed, with ``resource_version`` as well only that
        state of it: otherwise Conflict, and nothing is created. ValueError for ``resource_version``
        alone: the API server would create an absent object nevertheless.
        """
        if resource_version and not uid:
            raise ValueError("resource_version guards only together with uid")
        guards = {k: v for k, v in (("uid", uid), ("resourceVersion", resource_version)) if v}
        body = {**obj, "metadata": {**obj["metadata"], **guards}} if guards else obj
        path = resource.path(obj["metadata"].get("namespace"), obj["metadata"]["name"])
        query = {"fieldManager": self._field_manager, "force": "true"}
        try:
            return await self._request(
                "apply", resource, path, body=body, query=query, content_type=APPLY_PATCH
            )
        except Invalid as e:
            if uid and "metadata.uid" in e.message:  # the API server answers so for another uid
                raise Conflict(409, "Conflict", e.message) from e
            raise

    async def replace_status(self, resource: Resource, obj: Object) -> Object:
        """Write ``obj["status"]``, if the object is still at its metadata.resourceVersion;
        otherwise Conflict. ValueError without it.

        Sends only what the API server reads for custom resources; built-in kinds would need their
        spec.
        """
        metadata = {
            k: obj["metadata"][k]
            for k in ("namespace", "name", "uid", "resourceVersion")
            if k in obj["metadata"]
        }
        slim = {
            "apiVersion": resource.api_version,
            "kind": resource.kind,
            "metadata": metadata,
            "status": obj["status"],
        }
        return await self._guarded(resource, slim, "/status")

    async def replace(self, resource: Resource, obj: Object) -> Object:
        """Write the whole object, if it is still at its metadata.resourceVersion; otherwise
        Conflict. ValueError without it.
        """
        return await self._guarded(resource, obj, "")

    async def _guarded(self, resource: Resource, obj: Object, suffix: str) -> Object:
        metadata = obj["metadata"]
        if not metadata.get("resourceVersion"):
            raise ValueError(
                f"{resource.kind} {metadata.get('name')}: a replacement without resourceVersion would"
                " overwrite what others wrote"
            )
        path = resource.path(metadata.get("namespace"), metadata["name"]) + suffix
        verb = "replace_status" if suffix else "replace"
        return await self._request(
            verb, resource, path, body=obj, query={"fieldManager": self._field_manager}
        )

    async def merge_patch(
        self, resource: Resource, namespace: str | None, name: str, patch: Object
    ) -> Object:
        """JSON merge patch (None removes a field); metadata.resourceVersion or uid in it are
        guards.
        """
        query = {"fieldManager": self._field_manager}
        return await self._request(
            "patch",
            resource,
            resource.path(namespace, name),
            body=patch,
            query=query,
            content_type=MERGE_PATCH,
        )

    async def own_by_apply(self, resource: Resource, namespace: str | None, name: str, *, uid: str) -> bool:
        """Take over what ``create`` and others set in spec, so that ``apply`` can remove it. False
        if nothing is left to take over, or another object has that name.
        """
        live = await self.get(resource, namespace, name)
        managed = taken_over(live["metadata"].get("managedFields") or [], self._field_manager)
        if managed is None or live["metadata"]["uid"] != uid:
            return False
        guards = {key: live["metadata"][key] for key in ("uid", "resourceVersion")}
        await self.merge_patch(resource, namespace, name, {"metadata": {"managedFields": managed, **guards}})
        return True

    async def delete(
        self,
        resource: Resource,
        namespace: str | None,
        name: str,
        *,
        uid: str | None = None,
        resource_version: str | None = None,
        propagation: str = "Background",
        grace_seconds: int | None = None,
    ) -> None:
        """Delete; only the object with that ``uid`` (or at that state), otherwise Conflict.
        NotFound when it is gone already. ``grace_seconds``: of a pod, instead of its own; of one
        that is being deleted only a shorter one counts.
        """
        guards = {k: v for k, v in (("uid", uid), ("resourceVersion", resource_version)) if v}
        body: Object = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": propagation}
        if guards:
            body["preconditions"] = guards
        if grace_seconds is not None:
            body["gracePeriodSeconds"] = grace_seconds
        await self._request("delete", resource, resource.path(namespace, name), body=body)

    async def has_kind(self, resource: Resource, ttl: float = 60.0) -> bool:
        """Whether the API server serves the kind; remembered for ``ttl`` seconds, also when it does
        not.
        """
        at, plurals = self._kinds.get(resource.root, (float("-inf"), frozenset[str]()))
        if self._clock() - at >= ttl:
            try:
                listed = _parsed(await self._request_raw("discover", resource, resource.root))
            except NotFound:
                listed = {}
            plurals = frozenset(r["name"] for r in listed.get("resources") or [])
            self._kinds[resource.root] = (self._clock(), plurals)
        return resource.plural in plurals

    async def table(
        self, resource: Resource, namespace: str | None = None, limit: int = TABLE_ROWS
    ) -> AsyncIterator[Sequence[Row]]:
        """The columns that ``kubectl get`` shows, page by page: a hundredth of the bytes of the
        objects. Raises Gone if the token of a page has expired.
        """
        token = ""
        while True:
            raw = await self._request_raw(
                "list",
                resource,
                resource.path(namespace),
                query={"limit": str(limit), "continue": token},
                accept=_AS_TABLE,
            )
            page = _parsed(raw)
            try:
                names = [column["name"] for column in page["columnDefinitions"]]
                yield [
                    Row(
                        row["object"]["metadata"].get("namespace", ""),
                        row["object"]["metadata"]["name"],
                        dict(zip(names, row["cells"], strict=False)),
                    )
                    for row in page.get("rows") or ()
                ]
                token = page["metadata"].get("continue", "")
            except (KeyError, TypeError, AttributeError) as e:
                raise Unavailable(200, "NoTable", f"the API server gave no table of {resource.plural}") from e
            if not token:
                return

    async def openapi(self, resource: Resource) -> Object:
        """The OpenAPI v3 document of the resource's group and version: what is served, not what was
        applied. Every account may read it (ClusterRole system:discovery).
        """
        return _parsed(await self._request_raw("discover", resource, f"/openapi/v3{resource.root}"))

    async def _request(
        self,
        verb: str,
        resource: Resource,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Object:
        raw = await self._request_raw(verb, resource, path, body=body, query=query, content_type=content_type)
        if verb == "delete":
            return {}  # the answer is a Status or the former object; either way it is deleted
        try:
            return decoding.object_of(_parsed(raw), len(raw))
        except UnreadableError as e:
            unread = decoding.identify(raw, ("metadata",), str(e))
            raise Unreadable(
                200, "Unreadable", f"{resource.kind} {unread.name or path.partition('?')[0]} {e}"
            ) from e

    async def _request_raw(
        self,
        verb: str,
        resource: Resource,
        path: str,
        *,
        body: Object | None = None,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        most: int | None = None,
        accept: str = "application/json",
    ) -> bytes:
        """The body of the answer; TooLargeError when it is of more than ``most`` bytes."""
        parameters = urlencode({k: v for k, v in (query or {}).items() if v})
        if parameters:
            path += f"?{parameters}"
        credentials = self._credentials
        try:
            return await self._send(verb, resource, path, body, content_type, most, accept)
        except KubeError as e:
            if e.status != 401 or not await self._renew(credentials):
                raise
        # refused before anything was done, so safe for writes
        return await self._send(verb, resource, path, body, content_type, most, accept)

    async def _send(
        self,
        verb: str,
        resource: Resource,
        path: str,
        body: Object | None,
        content_type: str,
        most: int | None,
        accept: str,
    ) -> bytes:
        result = "error"
        try:
            headers = {
                "Accept": accept,
                "Content-Type": content_type,
                "User-Agent": self._user_agent,
            }
            await self._client.update_params_for_auth(headers, [], ["BearerToken"], path, verb, None)
            response = await self._client.call_api(
                _METHODS[verb],
                self._client.configuration.host + path,
                header_params=headers,
                body=body,
                _request_timeout=aiohttp.ClientTimeout(total=self._timeout),
            )
            raw = await _body(response.response, most)
            result = str(response.status)
        except TimeoutError as e:
            result = "timeout"
            raise Unavailable(0, "Timeout", f"no answer within {self._timeout:g} s") from e
        except (aiohttp.ClientError, OSError) as e:
            raise Unavailable(0, "ConnectionError", f"{type(e).__name__}: {e}") from e
        except (aio_config.ConfigException, OpenApiException, ValueError) as e:
            # the token file is empty for a moment, or holds what is no header; the text of
            # ValueError would show the token
            raise Unavailable(0, "CredentialsError", type(e).__name__) from e
        finally:
            if self._on_request:
                self._on_request(verb, resource.plural, result)
        if response.status < 500:
            self._answered = self._clock()
        if 200 <= response.status < 300:
            return raw
        try:
            answer = decoding.parse(raw)
        except UnreadableError:  # a proxy in between may answer with a page
            answer = {}
        raise error_of(
            response.status, response.headers.get("Retry-After"), answer if isinstance(answer, dict) else {}
        )

    async def _renew(self, refused: tuple[int, float]) -> bool:
        """Read the credentials again after a 401 (rotated token file, expired exec credential).
        False when there can be no newer ones yet.
        """
        async with self._renewing:
            times, at = self._credentials
            if times > refused[0]:
                return True  # another request has renewed them meanwhile
            if self._clock() - at < CREDENTIALS_RETRY_SECONDS:
                return False
            self._credentials = (times + 1, self._clock())
            fresh = aio.Configuration()
            await self._load(fresh)
            self._client.configuration.api_key = fresh.api_key
            self._client.configuration.refresh_api_key_hook = fresh.refresh_api_key_hook
            return True


_METHODS = {
    "get": "GET",
    "list": "GET",
    "discover": "GET",
    "create": "POST",
    "apply": "PATCH",
    "patch": "PATCH",
    "replace": "PUT",
    "replace_status": "PUT",
    "delete": "DELETE",
}


def _version() -> str:
    try:
        return importlib.metadata.version("model-rollout-operator")
    except importlib.metadata.PackageNotFoundError:
        return "dev"  # run from a checkout


def _any_file(paths: str) -> bool:
    """kubernetes.aio only warns when there is none, and then fails with an unrelated error."""
    return any(Path(p).expanduser().is_file() for p in paths.split(os.pathsep) if p)


def _proxy(host: str) -> str | None:
    """The proxy of the environment for the API server, as client-go has it: never for this machine
    itself.
    """
    url = urlsplit(host)
    if url.hostname in (None, "localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(
        url.hostname or ""
    ):
        return None
    return urllib.request.getproxies().get(url.scheme)


async def _body(response: aiohttp.ClientResponse, most: int | None) -> bytes:
    if most is None:
        return await response.read()
    chunks: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        chunks.append(chunk)
        size += len(chunk)
        if size > most:
            response.close()
            raise TooLargeError
    return b"".join(chunks)


def _parsed(raw: bytes) -> Object:
    """The JSON object. Unavailable where it is none: the body was cut off, or a proxy in between
    answers with a page of its own.
    """
    try:
        value = decoding.parse(raw)
    except NotJsonError as e:
        raise Unavailable(200, "NoJSON", "the answer is no JSON") from e
    if not isinstance(value, dict):
        raise Unavailable(200, "NoJSON", "the answer is no JSON object")
    return value
