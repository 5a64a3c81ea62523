"""Gateways that specs name, and their classes: from the watch, or, where the operator may not watch
them, read by name and again every POLL_SECONDS.

A Gateway counts as missing only if the API server says so: that the watch has not brought it may
have many reasons.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Protocol

from modelrollout.kube.cache import Key, ObjectCache, gateways_of
from modelrollout.kube.errors import KubeError, NotFound, TooManyRequests, Unavailable
from modelrollout.kube.kinds import GATEWAY, GATEWAY_CLASS, Resource
from modelrollout.kube.objects import Object
from modelrollout.kube.projection import project
from modelrollout.traffic.gateway_api.gateway import (
    gateway_facts,
    missing_gateway,
    unread_gateway,
    with_class,
)
from modelrollout.traffic.gateway_facts import GatewayFacts

log = logging.getLogger(__name__)

POLL_SECONDS = 15.0
_Id = tuple[Resource, str, str]


class GatewayApi(Protocol):
    """What is needed of ``Kube``."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Object: ...
    async def has_kind(self, resource: Resource) -> bool: ...


class Gateways:
    """What is known of the Gateways of all ModelDeployments."""

    def __init__(self, kube: GatewayApi, cache: ObjectCache, wake: Callable[[Key, float], None]) -> None:
        self._kube, self._cache, self._wake = kube, cache, wake
        # Of objects that no watch brings: the last answer; None: there is none, an error: unknown.
        self._answers: dict[_Id, Object | KubeError | None] = {}
        # by namespace, name, field and ``own``: a Gateway as last seen, and its facts
        self._seen: dict[tuple[str, str, str, bool], tuple[Object, GatewayFacts]] = {}
        # by namespace and name: what keeps a Gateway from carrying routes, as logged
        self._logged: dict[tuple[str, str], str] = {}

    async def of(self, deployment: Object | None) -> GatewayFacts | None:
        """The facts on the Gateways that a spec, as it is stored, names; None where it names none,
        or the cluster has no Gateway API. Never raises KubeError.
        """
        at = gateways_of(deployment) if deployment is not None else []
        if deployment is None or not at:
            return None
        own = deployment["metadata"].get("namespace")
        first, *further = [
            await self._facts(*place, f"spec.traffic.{field}", own=place[0] == own)
            for place, field in zip(at, ("gateway", *_further(len(at) - 1)), strict=True)
        ]
        return replace(first, further=tuple(further))

    async def _facts(self, namespace: str, name: str, field: str, *, own: bool) -> GatewayFacts:
        gateway = await self._object(GATEWAY, namespace, name)
        if isinstance(gateway, KubeError):
            return unread_gateway(namespace, name)
        if gateway is None:
            return missing_gateway(namespace, name, field, own=own)
        facts = self._own_facts(gateway, (namespace, name, field, own))
        if facts.gateway_class:
            gateway_class = await self._object(GATEWAY_CLASS, "", facts.gateway_class)
            facts = facts if isinstance(gateway_class, KubeError) else with_class(facts, gateway_class)
        return facts

    def _own_facts(self, gateway: Object, at: tuple[str, str, str, bool]) -> GatewayFacts:
        """``gateway_facts``, once for each state of the Gateway: thousands may name it."""
        seen = self._seen.get(at)
        if seen is None or seen[0] is not gateway:
            *_, field, own = at
            if not own:
                self._log(at[:2], gateway_facts(gateway, field, own=True))
            self._seen[at] = seen = (gateway, gateway_facts(gateway, field, own=own))
        return seen[1]

    async def refresh(self) -> None:
        """Read again what no watch brings, and wake those whom a change concerns; what is known of
        Gateways that no spec names any more is forgotten.
        """
        named = {place for place in {at[:2] for at in self._seen} if self._users(*place)}
        self._seen = {at: seen for at, seen in self._seen.items() if at[:2] in named}
        self._logged = {place: text for place, text in self._logged.items() if place in named}
        for i in list(self._answers):
            resource, namespace, name = i
            users = self._users(namespace, name, resource)
            before = self._answers[i]
            if not users or self._cache.get(*i) is not None:
                del self._answers[i]
                continue
            after = await self._read(*i)
            if isinstance(after, Unavailable | TooManyRequests):
                continue  # an API server that does not answer changes nothing
            self._answers[i] = after
            if _said(before) != _said(after):
                for key in users:
                    self._wake(key, 0.0)

    async def _object(self, resource: Resource, namespace: str, name: str) -> Object | KubeError | None:
        i = (resource, namespace, name)
        watched = self._cache.get(*i)
        if watched is not None:
            return watched
        if i not in self._answers:
            self._answers[i] = await self._read(*i)
        return self._answers[i]

    async def _read(self, resource: Resource, namespace: str, name: str) -> Object | KubeError | None:
        try:
            live = await self._kube.get(resource, namespace or None, name)
            return project(resource, {"apiVersion": resource.api_version, "kind": resource.kind, **live})
        except NotFound as e:
            return None if await self._has_gateway_api() else e
        except KubeError as e:
            log.warning("%s %s/%s cannot be read: %s", resource.kind, namespace, name, e.message)
            return e

    async def _has_gateway_api(self) -> bool:
        try:
            return await self._kube.has_kind(GATEWAY)
        except KubeError:
            return False

    def _users(self, namespace: str, name: str, resource: Resource = GATEWAY) -> set[Key]:
        return self._cache.concerned(resource, {"metadata": {"namespace": namespace, "name": name}})

    def _log(self, at: tuple[str, str], facts: GatewayFacts) -> None:
        """The whole message, which a tenant of another namespace does not see; once."""
        text = facts.problem.message if facts.problem else ""
        if text != self._logged.get(at, ""):
            log.warning("%s", text or f"Gateway {facts.gateway} carries routes again")
            self._logged[at] = text


def _further(count: int) -> Iterator[str]:
    return (f"furtherGateways[{i}]" for i in range(count))


def _said(answer: Object | KubeError | None) -> object:
    """The part of an answer that counts."""
    if answer is None or isinstance(answer, KubeError):
        return answer is None
    return answer["metadata"].get("uid"), answer.get("spec"), answer.get("status")
