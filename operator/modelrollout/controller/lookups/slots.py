"""Slots of RolloutPolicies as Leases in the operator's namespace: one for each slot, named after
policy and index.

The Leases alone make this safe, whatever any process remembers:
- a leader takes a slot by creating the Lease, or by replacing exactly the state that it has read;
- a leader takes a slot away from a rollout only after a live read of the ModelDeployment, made
  after it read the Lease, shows that this rollout is over. A rollout takes a slot only after its
  start was written, and one that is over never runs again;
- a rollout continues only after a list, read after it took its slot, shows it within the limit.
So a crash leaves at most an unused slot. The next rollout in line, or the next check of all slots,
releases it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from pydantic import ValidationError

from modelrollout.api import names
from modelrollout.api.v1alpha1 import RolloutStatus
from modelrollout.controller.lookups.policies import Policies
from modelrollout.controller.observe.observation import Observation
from modelrollout.gpus import exact, exact_text, rounded_up, shown
from modelrollout.kube.cache import QUEUED, Key, ObjectCache
from modelrollout.kube.client import Kube
from modelrollout.kube.errors import AlreadyExists, Conflict, KubeError, NotFound, Unreadable
from modelrollout.kube.kinds import LEASE, MODEL_DEPLOYMENT, ROLLOUT_POLICY
from modelrollout.kube.objects import Object, annotations_of, condition
from modelrollout.reasons import Reason
from modelrollout.rollout.policy.rules import Limit
from modelrollout.rollout.policy.slot_limits import counted, gpu_limits, gpus_requested
from modelrollout.rollout.policy.slots import SlotRequest, TakenSlot, standing, standing_enlarged
from modelrollout.rollout.snapshot import Slot, in_flight
from modelrollout.traffic.hostnames import holder_of

log = logging.getLogger(__name__)

REMEMBER_SECONDS = 5.0  # those far back in line share one list for this long
# how many of those in line are woken when a slot is set free: those who may take it, and those
# whose position is published
WOKEN = 12
CONTENDERS = 16  # free slots beyond the present ones to try: others may take some first


class SlotLeases:
    """``clock`` is monotonic, in seconds."""

    def __init__(
        self,
        kube: Kube,
        cache: ObjectCache,
        policies: Policies,
        namespace: str,
        wake: Callable[[Key, float], None],
        clock: Callable[[], float],
    ) -> None:
        self._kube, self._cache, self._policies, self._namespace = kube, cache, policies, namespace
        self._wake, self._clock = wake, clock
        self._lists: dict[str, tuple[float, list[Object]]] = {}
        # policies of which a ModelDeployment holds slots, as far as this process knows
        self._mine: dict[Key, set[str]] = {}

    async def view(self, observation: Observation) -> tuple[Slot, ...]:
        """How a queued rollout stands with each limit, in order, up to the first that it does not
        hold.
        """
        claim = _claim(observation.deployment)
        slots: list[Slot] = []
        for limit in observation.observed.rules.limits:
            if claim is None or not limit.concerns(claim.gpus):
                continue
            taken = [h for _, h in self._taken_slots(await self._list(limit.policy))]
            slot = standing(limit, taken, self._queue(limit), claim)
            slots.append(slot)
            if not slot.held:
                break
            self._mine.setdefault(_key(observation.deployment), set()).add(limit.policy)
        return tuple(slots)

    async def larger(self, observation: Observation) -> tuple[Slot, ...]:
        """How a rollout that asks for more GPUs than its slot has stands with each limit of
        GPUs.
        """
        claim = _larger_claim(observation)
        limits = gpu_limits(observation.observed) if claim is not None else []
        listed = [
            (limit, [h for _, h in self._taken_slots(await self._list(limit.policy))]) for limit in limits
        ]
        return tuple(
            standing_enlarged(limit, taken, self._queue(limit), claim)
            for limit, taken in listed
            if claim is not None
        )

    async def acquire_or_release(self, observation: Observation, slots: Sequence[Slot]) -> bool:
        """Take the slot if it is this rollout's turn, or release what a finished rollout still
        holds; ``slots`` as looked up in this pass. True when something was written.
        """
        rollout = observation.observed.status.rollout
        if not in_flight(rollout) and _key(observation.deployment) in self._mine:
            return await self._release(observation)
        if rollout is not None and rollout.slot is not None and rollout.queue is None:
            return await self._resize(observation, slots, counted(rollout.slot))
        slot = slots[-1] if slots else None
        if slot is None or slot.held or rollout is None or rollout.queue is None:
            return False
        claim = _claim(observation.deployment)
        limit = next((x for x in observation.observed.rules.limits if x.policy == slot.policy), None)
        if claim is None or limit is None:
            return False
        if slot.turn:
            return await self._take(limit, claim)
        return await self._give_up(limit, claim)

    async def release_finished(self) -> None:
        """Release the slots of all rollouts that are over: what a crash left behind."""
        for policy in self._policies.all():
            if policy.spec.limits is None:
                continue
            try:
                if await self._clear_ended(policy.name):
                    self._wake_waiting()
            except KubeError as e:  # only tidying up: the next in line does the same
                log.warning("the slots of %s are checked later: %s", policy.name, e)

    def forget(self, key: Key) -> None:
        """A ModelDeployment is gone; wake those that wait for its slots."""
        if self._mine.pop(key, None):
            self._wake_waiting()

    def let_go(self, of: Callable[[Key], bool]) -> None:
        """Another replica works these keys now, and finds their slots in the Leases."""
        self._mine = {key: policies for key, policies in self._mine.items() if not of(key)}

    # --- the Leases

    async def _list(self, policy: str, *, fresh: bool = False) -> list[Object]:
        at, leases = self._lists.get(policy, (float("-inf"), []))
        if fresh or self._clock() - at >= REMEMBER_SECONDS:
            listed_at = self._clock()
            leases = (
                await self._kube.list(LEASE, self._namespace, label_selector=f"{names.LABEL_POLICY}={policy}")
            ).items
            self._lists[policy] = (listed_at, leases)
        return leases

    def _taken_slots(self, leases: list[Object]) -> list[tuple[Object, TakenSlot]]:
        taken: list[tuple[Object, TakenSlot]] = []
        for lease in leases:
            claim = _holder(lease)
            if claim is not None:
                index = int(lease["metadata"]["name"].rpartition("-")[2])
                taken.append(
                    (
                        lease,
                        TakenSlot(
                            index, claim, int(lease["metadata"]["resourceVersion"]), self._seems_over(claim)
                        ),
                    )
                )
        return taken

    def _seems_over(self, claim: SlotRequest) -> bool:
        namespace, name, uid = claim.holder.split("/")
        return _is_over(self._cache.get(MODEL_DEPLOYMENT, namespace, name), uid, claim.rollout)

    def _queue(self, limit: Limit) -> list[SlotRequest]:
        """The queued rollouts for a slot of this limit, longest wait first. Not among them: frozen
        rollouts, and those that will take no slot because they are being deleted or their spec is
        invalid.
        """
        queued: list[tuple[str, str, SlotRequest]] = []
        for o in self._cache.find_marked(QUEUED):
            rollout, claim = _rollout(o), _claim(o)
            if (
                claim is None
                or rollout is None
                or rollout.queue is None
                or rollout.reason == Reason.FROZEN
                or not limit.concerns(claim.gpus)
            ):
                continue
            if o["metadata"].get("deletionTimestamp") or _is_unreadable(o):
                continue
            if any(x.policy == limit.policy for x in self._policies.rules(o).limits):
                queued.append((rollout.queue.since, claim.holder, claim))
        return [claim for _, _, claim in sorted(queued, key=lambda x: x[:2])]

    async def _take(self, limit: Limit, claim: SlotRequest) -> bool:
        await self._clear_ended(limit.policy)
        leases = {lease["metadata"]["name"]: lease for lease in await self._list(limit.policy, fresh=True)}
        if not standing(
            limit, [h for _, h in self._taken_slots(list(leases.values()))], self._queue(limit), claim
        ).turn:
            return False  # another rollout was faster
        # A limit of GPUs alone has no number of slots; others may take some of them meanwhile.
        for index in range(limit.rollouts or len(leases) + CONTENDERS):
            lease = leases.get(names.slot_name(limit.policy, index))
            if lease is not None and _holder(lease) is not None:
                continue
            try:
                await self._write(limit, index, lease, claim)
            except (AlreadyExists, Conflict, NotFound):
                continue
            finally:
                self._lists.pop(limit.policy, None)
            log.info("took slot %d of %s", index, limit.policy)
            return True
        return False

    async def _resize(self, observation: Observation, slots: Sequence[Slot], granted: Fraction) -> bool:
        """Let the slot count the GPUs requested now, if there is room. If two slots grew beyond the
        limit at the same time, both shrink back.
        """
        claim, limits = (
            _larger_claim(observation),
            {limit.policy: limit for limit in gpu_limits(observation.observed)},
        )
        for slot in slots:
            if (
                claim is None
                or slot.policy not in limits
                or not (slot.turn or (not slot.held and slot.gpus > granted))
            ):
                continue
            limit = limits[slot.policy]
            leases = self._taken_slots(await self._list(limit.policy, fresh=True))
            now = standing_enlarged(limit, [h for _, h in leases], self._queue(limit), claim)
            gpus = claim.gpus if now.turn else granted if not now.held and now.gpus > granted else now.gpus
            own = next(
                (
                    (lease, h)
                    for lease, h in leases
                    if (h.claim.holder, h.claim.rollout) == (claim.holder, claim.rollout)
                ),
                None,
            )
            if own is None or gpus == now.gpus:
                continue
            try:
                await self._write(limit, own[1].index, own[0], SlotRequest(claim.holder, claim.rollout, gpus))
            except (Conflict, NotFound):
                continue
            finally:
                self._lists.pop(limit.policy, None)
            log.info("slot %d of %s counts %s GPUs", own[1].index, limit.policy, shown(gpus))
            return True
        return False

    async def _write(self, limit: Limit, index: int, lease: Object | None, claim: SlotRequest) -> None:
        annotations = {
            names.ANNOTATION_ROLLOUT: claim.rollout,
            names.ANNOTATION_GPUS: str(rounded_up(claim.gpus)),  # an earlier operator counts no less
        }
        if text := exact_text(claim.gpus):
            annotations[names.ANNOTATION_EXACT_GPUS] = text
        spec = {"holderIdentity": claim.holder}
        if lease is not None:
            await self._kube.replace(
                LEASE, {**lease, "metadata": {**lease["metadata"], "annotations": annotations}, "spec": spec}
            )
            return
        owner = {
            "apiVersion": names.API_VERSION,
            "kind": ROLLOUT_POLICY.kind,
            "name": limit.policy,
            "uid": limit.uid,
        }
        labels = {names.LABEL_POLICY: limit.policy, names.LABEL_MANAGED_BY: names.FIELD_MANAGER}
        metadata = {
            "name": names.slot_name(limit.policy, index), "namespace": self._namespace, "labels": labels,
            "annotations": annotations,
            "ownerReferences": [owner],
        }  # fmt: skip
        await self._kube.create(
            LEASE, {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": spec}
        )

    async def _clear(self, policy: str, lease: Object) -> bool:
        """Release a slot, if its Lease is still as it was read."""
        annotations = {k: v for k, v in annotations_of(lease).items() if not k.startswith(names.GROUP)}
        try:
            await self._kube.replace(
                LEASE, {**lease, "metadata": {**lease["metadata"], "annotations": annotations}, "spec": {}}
            )
        except (Conflict, NotFound):
            return False
        finally:
            self._lists.pop(policy, None)
        log.info("set slot %s free", lease["metadata"]["name"])
        return True

    async def _clear_ended(self, policy: str) -> bool:
        cleared = False
        for lease, slot in self._taken_slots(await self._list(policy, fresh=True)):
            if slot.ended and await self._is_over(slot.claim):
                cleared |= await self._clear(policy, lease)
        return cleared

    async def _is_over(self, claim: SlotRequest) -> bool:
        """Decided by a live read made after that of the Lease: what this process remembers may be
        older than the slot.
        """
        namespace, name, uid = claim.holder.split("/")
        try:
            live: Object | None = await self._kube.get(MODEL_DEPLOYMENT, namespace, name)
        except NotFound:
            live = None
        except Unreadable:
            # it may be running: those in line wait as for any other rollout that does not end
            return False
        return _is_over(live, uid, claim.rollout)

    async def _release(self, observation: Observation) -> bool:
        """Release the slots of the rollout that this status shows as over; ``_clear_ended``
        releases those of other rollouts.
        """
        rollout, key, uid = (
            observation.observed.status.rollout,
            _key(observation.deployment),
            observation.deployment["metadata"]["uid"],
        )
        freed = False
        for policy in sorted(self._mine.get(key, ())):
            for lease, slot in self._taken_slots(await self._list(policy, fresh=True)):
                if (
                    rollout is not None
                    and slot.claim.rollout == rollout.started
                    and slot.claim.holder.endswith(f"/{uid}")
                ):
                    freed |= await self._clear(policy, lease)
        self._mine.pop(key, None)
        if freed:
            self._wake_waiting()
        return freed

    async def _give_up(self, limit: Limit, claim: SlotRequest) -> bool:
        """Give up a slot of ours that is beyond the limit."""
        for lease, slot in self._taken_slots(await self._list(limit.policy)):
            if (slot.claim.holder, slot.claim.rollout) == (claim.holder, claim.rollout):
                return await self._clear(limit.policy, lease)
        return False

    def _wake_waiting(self) -> None:
        waiting = [
            (r.queue.since, _key(o))
            for o in self._cache.find_marked(QUEUED)
            if (r := _rollout(o)) and r.queue
        ]
        for _, key in sorted(waiting)[:WOKEN]:
            self._wake(key, 0.0)


def _key(deployment: Object) -> Key:
    return deployment["metadata"]["namespace"], deployment["metadata"]["name"]


def _rollout(deployment: Object) -> RolloutStatus | None:
    status = deployment.get("status")
    raw = status.get("rollout") if isinstance(status, dict) else None
    try:
        return RolloutStatus.model_validate(raw) if raw else None
    except ValidationError:  # not written by an operator
        return None


def _is_unreadable(deployment: Object) -> bool:
    """Whether its spec cannot be read, by its condition: parsing every spec each time would cost
    too much.
    """
    return condition(deployment, "Ready").get("reason") == Reason.INVALID_SPEC


def _claim(deployment: Object) -> SlotRequest | None:
    """The request of a ModelDeployment whose rollout is queued."""
    rollout = _rollout(deployment)
    if rollout is None or rollout.queue is None:
        return None
    return SlotRequest(holder_of(deployment), rollout.started, counted(rollout.queue))


def _larger_claim(observation: Observation) -> SlotRequest | None:
    """The current request of a rollout that holds a slot."""
    rollout = observation.observed.status.rollout
    return (
        SlotRequest(holder_of(observation.deployment), rollout.started, gpus_requested(observation.observed))
        if rollout is not None
        else None
    )


def _holder(lease: Object) -> SlotRequest | None:
    """The holder of the slot; None without a readable one: then it is free."""
    annotations = annotations_of(lease)
    holder, rollout = (
        (lease.get("spec") or {}).get("holderIdentity") or "",
        annotations.get(names.ANNOTATION_ROLLOUT),
    )
    whole = str(annotations.get(names.ANNOTATION_GPUS, "0"))
    rounded = int(whole) if re.fullmatch("[0-9]{1,9}", whole) else 0
    gpus = exact(rounded, annotations.get(names.ANNOTATION_EXACT_GPUS))
    return SlotRequest(holder, rollout, gpus) if holder.count("/") == 2 and rollout else None


def _is_over(deployment: Object | None, uid: str, started: str) -> bool:
    """Whether that rollout of that ModelDeployment does not run (any more)."""
    if deployment is None or deployment["metadata"].get("uid") != uid:
        return True
    rollout = _rollout(deployment)
    return rollout is None or rollout.started != started or not in_flight(rollout)
