"""The Jobs that count for a limit of Jobs, where several replicas make some: a Lease for each
limit, in the operator's namespace, that lists them.

The Leases alone make this safe, whatever any process remembers:
- a replica makes a Job that a limit counts only once the Job is listed, and adds it only to the
  very list that it has read, if there is room;
- a replica takes a Job from the list only after live reads, made after that of the list, show that
  the Job has ended, or that there is none and its ModelDeployment does not ask for it (any more).
So a crash leaves at most an entry too many, which the next replica that wants the place removes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.v1alpha1 import FollowStatus, RolloutStatus
from modelrollout.kube.cache import ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import AlreadyExists, Conflict, Forbidden, NotFound, Unreadable
from modelrollout.kube.kinds import JOB, LEASE, MODEL_DEPLOYMENT, ROLLOUT_POLICY
from modelrollout.kube.objects import Object, annotations_of, is_deleting, is_over
from modelrollout.rollout.desired.jobs import look_job_name, looks
from modelrollout.rollout.snapshot import rollout_id

REMEMBER_SECONDS = 5.0  # those that wait share one look at the list for this long
TRIES = 4  # another pass, or another replica, may write the list at the same time
_NAME = re.compile("[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")


class Entry(NamedTuple):
    """A Job, or one that is about to be made."""

    namespace: str
    name: str  # of the ModelDeployment
    job: str


class JobRegister:
    """``policy`` is empty for the limit of the configuration. ``clock`` is monotonic, in
    seconds; ``may_write``: whether the ModelDeployment of this pass is this replica's.
    """

    def __init__(
        self,
        kube: Kube,
        cache: ObjectCache,
        namespace: str,
        clock: Callable[[], float],
        may_write: Callable[[], bool],
    ) -> None:
        self._kube, self._cache, self._namespace, self._clock = kube, cache, namespace, clock
        self._may_write = may_write
        self._known: dict[str, tuple[float, frozenset[Entry]]] = {}

    async def listed(self, policy: str) -> frozenset[Entry]:
        """The list as of a moment ago, without what has ended. Raises KubeError."""
        at, entries = self._known.get(policy, (float("-inf"), frozenset()))
        if self._clock() - at < REMEMBER_SECONDS:
            return entries
        lease = await self._read(policy)
        entries = _entries(lease)
        self._known[policy] = (self._clock(), entries)
        ended = [entry for entry in entries if await self._is_over(entry)]
        if ended:
            entries = entries.difference(ended)
            await self._write(policy, lease, entries)
        return entries

    async def add(self, policy: str, most: int, entry: Entry, beside: Iterable[Entry]) -> bool:
        """List the Job if that makes no more than ``most``; ``beside``: Jobs that count although
        they may not be listed, made when there was one shard. Whether it is listed now. Raises
        KubeError.
        """
        beside = frozenset(beside)
        for _ in range(TRIES):
            lease = await self._read(policy)
            entries = _entries(lease)
            if entry in entries:
                self._known[policy] = (self._clock(), entries)
                return True
            if len(entries | beside) >= most:
                return False
            if await self._write(policy, lease, entries | {entry}):
                return True
        return False

    async def remove(self, policy: str, entry: Entry) -> None:
        """Its own replica knows that the Job has ended, or will not be made. Raises KubeError."""
        for _ in range(TRIES):
            lease = await self._read(policy)
            entries = _entries(lease)
            if entry not in entries or await self._write(policy, lease, entries - {entry}):
                return

    async def _read(self, policy: str) -> Object | None:
        try:
            return await self._kube.get(LEASE, self._namespace, names.jobs_lease(policy))
        except NotFound:
            return None

    async def _write(self, policy: str, lease: Object | None, entries: frozenset[Entry]) -> bool:
        """Write the list if it is still as read; False if not."""
        self._known.pop(policy, None)
        if not self._may_write():
            return False
        body = lease or {
            "apiVersion": LEASE.api_version,
            "kind": LEASE.kind,
            "metadata": {
                "name": names.jobs_lease(policy),
                "namespace": self._namespace,
                "labels": {names.LABEL_MANAGED_BY: names.FIELD_MANAGER},
                "ownerReferences": self._owners(policy),
            },
            "spec": {},
        }
        metadata = body["metadata"]
        annotations = {**annotations_of(body), names.ANNOTATION_JOBS: json.dumps(sorted(entries))}
        body = {**body, "metadata": {**metadata, "annotations": annotations}}
        try:
            await (self._kube.replace(LEASE, body) if lease else self._kube.create(LEASE, body))
        except (AlreadyExists, Conflict, NotFound):
            return False
        self._known[policy] = (self._clock(), entries)
        return True

    def _owners(self, policy: str) -> list[Object]:
        """The policy, with which the list goes."""
        obj = self._cache.get(ROLLOUT_POLICY, None, policy) if policy else None
        if obj is None:
            return []
        uid = obj["metadata"]["uid"]
        return [{"apiVersion": names.API_VERSION, "kind": ROLLOUT_POLICY.kind, "name": policy, "uid": uid}]

    async def _is_over(self, entry: Entry) -> bool:
        """By live reads, made where the cache does not show the Job running."""
        cached = self._cache.get(JOB, entry.namespace, entry.job)
        if cached is not None and not is_over(cached):
            return False
        try:
            return is_over(await self._kube.get(JOB, entry.namespace, entry.job))
        except NotFound:
            pass
        except Unreadable:  # it may be running
            return False
        except Forbidden:  # this operator works its namespace no more
            return True
        try:
            owner = await self._kube.get(MODEL_DEPLOYMENT, entry.namespace, entry.name)
        except NotFound:
            return True
        except Unreadable:
            return False
        return not _may_make(owner, entry.job)


def _may_make(deployment: Object, job: str) -> bool:
    """Whether a ModelDeployment's rollout, or its look at a source that it follows, may still make
    this Job, by its status.
    """
    if is_deleting(deployment):
        return False
    name, status = deployment["metadata"]["name"], deployment.get("status")
    status = status if isinstance(status, dict) else {}
    raw_follow, raw_rollout = status.get("follow"), status.get("rollout")
    try:
        follow = FollowStatus.model_validate(raw_follow) if raw_follow else None
        rollout = RolloutStatus.model_validate(raw_rollout) if raw_rollout else None
    except ValidationError:  # not written by an operator
        return True
    if follow is not None and looks(follow, rollout):
        return look_job_name(name, follow) == job
    if rollout is None:
        return False
    if rollout.stage == "Resolve":
        return names.resolve_job_name(name, rollout_id(rollout)) == job
    return (
        rollout.stage == "Prepare"
        and rollout.revision is not None
        and names.stage_job_name(rollout.revision, "prepare", rollout_id(rollout)) == job
    )


def _entries(lease: Object | None) -> frozenset[Entry]:
    """The list; what cannot be read in it counts for nothing."""
    try:
        listed = json.loads(annotations_of(lease).get(names.ANNOTATION_JOBS) or "[]") if lease else []
    except (TypeError, ValueError, RecursionError):
        return frozenset()
    return frozenset(
        Entry(*item)
        for item in (listed if isinstance(listed, list) else ())
        if isinstance(item, list) and len(item) == 3 and all(map(_is_name, item))
    )


def _is_name(value: object) -> bool:
    """Whether an object may have this name; others would ask the API server for something else."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None
