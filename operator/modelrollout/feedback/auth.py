"""Who may send labels: a service account token for this audience, and ``create
modeldeployments/feedback`` on the ModelDeployment.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from modelrollout.api import names
from modelrollout.feedback.rates import TooManyError
from modelrollout.kube.errors import KubeError
from modelrollout.kube.kinds import Resource
from modelrollout.kube.objects import Object
from modelrollout.telemetry.rate import Rate

AUDIENCE = "modelrollout-feedback"
REMEMBER_SECONDS = 60.0
REMEMBER_REFUSAL_SECONDS = 10.0  # short, so that a right that was just granted soon works
REMEMBER_ENTRIES = 5_000  # an identity takes a few kB
REVIEWS_AT_ONCE = 8
REVIEWS_WAITING = 256  # further ones get 503
REFUSED_PER_MINUTE = 30.0
# access reviews that a tenant may cause; it can name ModelDeployments that do not exist
RIGHTS_PER_SECOND = 10.0
RIGHTS_BURST = 256.0
TOKEN_REVIEW = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)
SUBJECT_ACCESS_REVIEW = Resource(
    "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False
)

log = logging.getLogger(__name__)
T = TypeVar("T")


class UnavailableError(Exception):
    """The API server cannot identify the sender now; try again after ``retry_after`` seconds."""

    def __init__(self, message: str, retry_after: float = 2.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


@dataclass(frozen=True)
class Identity:
    """A caller: ``user`` is the name, ``key`` the SHA-256 of the token, ``review`` the fields of a
    SubjectAccessReview.
    """

    user: str
    key: str
    review: dict[str, Any]

    @property
    def tenant(self) -> str:
        """Whose limits apply: the namespace of a service account (one who can create one can create
        a thousand), else the user.
        """
        kind, _, account = self.user.partition("system:serviceaccount:")
        return f"namespace {account.partition(':')[0]}" if account and not kind else self.user


class Authorizer(Protocol):
    """Raises UnavailableError without an answer, TooManyError beyond the sender's limit."""

    async def authenticate(self, token: str, source: str) -> Identity | None: ...

    async def allowed(self, identity: Identity, namespace: str, name: str) -> bool: ...


class Creator(Protocol):
    """The part of ``kube.client.Kube`` that is used here."""

    async def create(self, resource: Resource, obj: Object) -> Object: ...


class KubernetesAuthorizer:
    """Uses the API server: TokenReview, then SubjectAccessReview. Caches the answers for a minute,
    by the SHA-256 of the token.

    A source may cause ``refused_per_minute`` TokenReviews that end in a refusal. Tokens that were
    valid before are exempt, whatever else the same address sends.
    """

    def __init__(
        self,
        kube: Creator,
        *,
        refused_per_minute: float = REFUSED_PER_MINUTE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._kube = kube
        self._identities: _Cache[Identity | None] = _Cache(clock)
        self._rights: _Cache[bool] = _Cache(clock)
        self._reviews = asyncio.Semaphore(REVIEWS_AT_ONCE)
        self._refused = Rate(refused_per_minute / 60, max(1.0, refused_per_minute), clock=clock)
        self._asked = Rate(RIGHTS_PER_SECOND, RIGHTS_BURST, clock=clock)

    async def authenticate(self, token: str, source: str) -> Identity | None:
        """Who the token belongs to; None when it is not valid for this audience. ``source`` is the
        address that sent it.
        """
        key = hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()
        unknown = self._identities.would_ask(key) and not self._identities.last(key)
        if unknown:
            _take(
                self._refused,
                source,
                "the address from which this comes has sent too many tokens that are not valid",
            )
        identity = await self._identities.get(key, lambda: self._who(token, key))
        if unknown and identity:
            self._refused.take(source, -1)
        return identity

    async def allowed(self, identity: Identity, namespace: str, name: str) -> bool:
        """Whether the caller may send labels for this ModelDeployment."""
        key = (identity.key, namespace, name)
        if self._rights.would_ask(key):
            _take(
                self._asked,
                identity.tenant,
                f"{identity.tenant} names many ModelDeployments, each of which the API server has to be asked"
                " about",
            )
        return await self._rights.get(key, lambda: self._may(identity, namespace, name))

    async def _who(self, token: str, key: str) -> Identity | None:
        status = await self._review(TOKEN_REVIEW, {"token": token, "audiences": [AUDIENCE]})
        # An authenticator without audiences leaves them out: the token is not for this service.
        if status.get("authenticated") is not True or AUDIENCE not in (status.get("audiences") or []):
            return None
        user = status.get("user") or {}
        review = {
            "user": user.get("username", ""),
            "uid": user.get("uid", ""),
            "groups": user.get("groups") or [],
            "extra": user.get("extra") or {},
        }
        return Identity(review["user"], key, review) if review["user"] else None

    async def _may(self, identity: Identity, namespace: str, name: str) -> bool:
        attributes = {
            "verb": "create",
            "group": names.GROUP,
            "resource": "modeldeployments",
            "subresource": "feedback",
            "namespace": namespace,
            "name": name,
        }
        status = await self._review(
            SUBJECT_ACCESS_REVIEW, {**identity.review, "resourceAttributes": attributes}
        )
        return status.get("allowed") is True and status.get("denied") is not True

    async def _review(self, resource: Resource, spec: dict[str, Any]) -> dict[str, Any]:
        body = {"apiVersion": resource.api_version, "kind": resource.kind, "metadata": {}, "spec": spec}
        try:
            async with self._reviews:
                answer = await self._kube.create(resource, body)
        except KubeError as e:
            # only the kind and the status: a message could quote what was sent
            log.warning("a %s got no answer", resource.kind, extra={"status": e.status, "reason": e.reason})
            raise UnavailableError(
                "the API server does not answer who is allowed now", e.retry_after or 2.0
            ) from None
        status = answer.get("status")
        return status if isinstance(status, dict) else {}


class _Cache(Generic[T]):
    """A cache with a time limit that drops the longest unused entry first. Concurrent callers with
    the same key share one request; failures are not cached.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: OrderedDict[Hashable, tuple[float, T]] = OrderedDict()
        self._asking: dict[Hashable, asyncio.Task[T]] = {}

    def would_ask(self, key: Hashable) -> bool:
        """Whether ``get`` would send a new request."""
        entry = self._known.get(key)
        return not (entry and entry[0] > self._clock()) and key not in self._asking

    def last(self, key: Hashable) -> T | None:
        """The last answer, however old."""
        entry = self._known.get(key)
        return entry[1] if entry else None

    async def get(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        entry = self._known.get(key)
        if entry and entry[0] > self._clock():
            self._known.move_to_end(key)
            return entry[1]
        task = self._asking.get(key)
        if task is None:
            if len(self._asking) >= REVIEWS_WAITING:
                raise UnavailableError("the API server has too many such questions waiting")
            task = self._asking[key] = asyncio.ensure_future(self._review_once(key, ask))
        return await asyncio.shield(task)  # a caller that disconnects must not cancel the others' answer

    async def _review_once(self, key: Hashable, ask: Callable[[], Awaitable[T]]) -> T:
        try:
            answer = await ask()
        finally:
            del self._asking[key]
        self._known[key] = (
            self._clock() + (REMEMBER_SECONDS if answer else REMEMBER_REFUSAL_SECONDS),
            answer,
        )
        self._known.move_to_end(key)
        if len(self._known) > REMEMBER_ENTRIES:
            self._known.popitem(last=False)
        return answer


def _take(rate: Rate, key: str, reason: str) -> None:
    if wait := rate.wait(key):
        raise TooManyError(reason, wait)
    rate.take(key)
