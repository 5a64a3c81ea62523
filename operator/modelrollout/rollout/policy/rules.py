"""Reads RolloutPolicies, and combines those that match a ModelDeployment: the strictest rule wins,
whatever their order.

A policy that cannot be read fails closed, since it might forbid anything: what it matches starts no
rollout and raises no weight until the policy is corrected. Rollbacks work all the same.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Any
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError
from pydantic import ValidationError

from modelrollout.api.v1alpha1 import Metric, Rollout, seconds
from modelrollout.api.v1alpha1.policy import (
    AllowedPods,
    AllowedSources,
    FreezeWindow,
    PolicyGates,
    PolicySelector,
    Queries,
    RolloutPolicySpec,
)

LOOK_SECONDS = 600.0  # the longest wait for the end of a freeze, since clocks are adjusted
# defaults that bound what a spec may say
_BOUNDS = frozenset({"minProgressDeadline", "maxFirstWeight"})
_DEADLINE: str = Rollout.model_fields["progress_deadline"].default
RESERVED = "720h"  # default of how long a name is reserved
FIRST_WEIGHT = 5  # percent, where metrics are mandatory and no policy says otherwise
_CHAINED = 64  # windows without a gap between them
# bounds of a single window
_FIRST, _LAST = datetime(1970, 1, 1, tzinfo=UTC), datetime(2999, 12, 31, tzinfo=UTC)


@dataclass(frozen=True)
class Policy:
    """A RolloutPolicy. ``error``: why it cannot be read; then only its selector counts (None
    matches everything).
    """

    name: str
    uid: str
    spec: RolloutPolicySpec
    selector: PolicySelector | None
    error: str | None = None

    def matches(
        self, namespace: str, labels: Mapping[str, str], of_namespace: Mapping[str, str] | None
    ) -> bool:
        """Whether it applies to a ModelDeployment of that namespace with these labels.
        ``of_namespace``: the namespace's own labels; if unknown (None) the policy applies.
        """
        if self.selector is None:
            return True
        patterns = self.selector.namespaces
        if patterns is not None and not any(fnmatchcase(namespace, p) for p in patterns):
            return False
        if of_namespace is not None and not _carries(of_namespace, self.selector.namespace_labels):
            return False
        return _carries(labels, self.selector.match_labels)


def _carries(labels: Mapping[str, str], required: Mapping[str, str] | None) -> bool:
    return all(labels.get(key) == value for key, value in (required or {}).items())


@dataclass(frozen=True)
class Limit:
    """A limit of one policy on everything that it matches together."""

    policy: str
    uid: str
    rollouts: int | None
    gpus: int | None
    max_hold: str | None = None  # how long a rollout may hold its slot

    def concerns(self, gpus: Fraction) -> bool:
        """Whether a rollout with so many GPUs needs a slot: where only GPUs are limited, one
        without GPUs needs none.
        """
        return self.rollouts is not None or gpus > 0


@dataclass(frozen=True)
class Rules:
    """The combined rules of all policies that match a ModelDeployment; empty if none does."""

    names: tuple[str, ...] = ()
    broken: tuple[tuple[str, str], ...] = ()  # (policy, why it cannot be read)
    # for spec.rollout, in wire form, with its bounds
    defaults: Mapping[str, Any] = field(default_factory=dict)
    gates: tuple[tuple[str, PolicyGates], ...] = ()
    sources: tuple[tuple[str, AllowedSources], ...] = ()
    hostnames: tuple[tuple[str, tuple[str, ...]], ...] = ()  # (policy, patterns)
    # (policy, patterns); none: host names are shared within a namespace only
    shared_hostnames: tuple[tuple[str, tuple[str, ...]], ...] = ()
    accounts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    secrets: tuple[tuple[str, tuple[str, ...]], ...] = ()
    pods: tuple[tuple[str, AllowedPods], ...] = ()
    freezes: tuple[tuple[str, FreezeWindow], ...] = ()
    # by policy name: slots are taken in this order, so that two rollouts cannot deadlock
    limits: tuple[Limit, ...] = ()
    # (policy, most Jobs that resolve and prepare at one time)
    job_limits: tuple[tuple[str, int], ...] = ()
    templates: Mapping[str, tuple[Metric, ...]] = field(default_factory=dict)
    mandatory: tuple[Metric, ...] = ()
    # how long a released name stays reserved for the version that served last; None: not at all
    reserve_names: str | None = None
    # percent that a version may have before the mandatory metrics prove it; None: there are none
    first_weight: int | None = None
    # every query in these policies: a spec that repeats one has no query of its own
    promql: frozenset[str] = frozenset()

    def queries(self, unless_said: Queries) -> Queries:
        """Whether a spec may have queries of its own."""
        if self.broken:
            return "Templates"
        values = {g.queries for _, g in self.gates if g.queries}
        return "Templates" if "Templates" in values else "Own" if values else unless_said

    @property
    def provider(self) -> str | None:
        """Name of the metrics provider for mandatory metrics; None is the first one configured."""
        name: str | None = (self.defaults.get("analysis") or {}).get("prometheus")
        return name


@dataclass(frozen=True)
class Freeze:
    """No rollout begins and no weight rises until then; None: until the policy is corrected."""

    until: datetime | None
    message: str

    def left(self, now: datetime) -> float:
        """Seconds until the freeze has to be evaluated again."""
        left = LOOK_SECONDS if self.until is None else (self.until - now).total_seconds()
        return min(LOOK_SECONDS, max(1.0, left))


NO_RULES = Rules()


def read(obj: Mapping[str, Any]) -> Policy:
    """The RolloutPolicy of an object."""
    metadata, raw = obj["metadata"], obj.get("spec") or {}
    name, uid = metadata["name"], metadata.get("uid", "")
    try:
        selector: PolicySelector | None = PolicySelector.model_validate(raw.get("selector") or {})
    except ValidationError:
        selector = None
    try:
        spec = RolloutPolicySpec.model_validate(raw)
        for i, window in enumerate(spec.freeze_windows or ()):
            _check(window, f"spec.freezeWindows[{i}]")
    except ValidationError as e:
        error = "; ".join(f"spec.{'.'.join(map(str, err['loc']))}: {err['msg']}" for err in e.errors()[:5])
        return Policy(name, uid, RolloutPolicySpec(), selector, error)
    except ValueError as e:
        return Policy(name, uid, RolloutPolicySpec(), selector, str(e))
    return Policy(name, uid, spec, spec.selector)


def _check(window: FreezeWindow, where: str) -> None:
    """What the schema cannot check. Raises ValueError with the field and the remedy."""
    if window.schedule is not None:
        try:
            zone = ZoneInfo(window.timezone)
        except (KeyError, ValueError, OSError):
            raise ValueError(
                f"{where}.timezone: there is no time zone {window.timezone!r}; write for example"
                " Europe/Berlin"
            ) from None
        try:
            if len(window.schedule.split()) != 5:
                raise CronSimError("it needs five parts")
            next(CronSim(window.schedule, datetime(2024, 1, 1, tzinfo=zone)))
        except (CronSimError, StopIteration) as e:
            why = str(e) or "it never comes"
            raise ValueError(
                f"{where}.schedule: {window.schedule!r}: {why}; write minute hour day month weekday, for"
                " example 0 16 * * FRI"
            ) from None
        if window.duration is None or seconds(window.duration) <= 0:
            raise ValueError(f"{where}.duration: say how long it lasts, for example 63h")
    elif window.start is None or window.end is None:
        raise ValueError(f"{where}: give schedule and duration, or start and end")
    else:
        try:
            start, end = datetime.fromisoformat(window.start), datetime.fromisoformat(window.end)
        except ValueError as e:
            raise ValueError(f"{where}: {e}; write for example 2026-12-20T00:00:00Z") from None
        if end <= start:
            raise ValueError(f"{where}.end: it lies before start; exchange them")


def combine(policies: Iterable[Policy]) -> Rules:
    """The combined rules of policies that all match, in the order of their names."""
    matching = sorted(policies, key=lambda p: p.name)
    if not matching:
        return NO_RULES
    defaults: dict[str, Any] = {}
    templates: dict[str, tuple[Metric, ...]] = {}
    for policy in matching:
        if policy.spec.defaults is not None:
            defaults = with_defaults(defaults, policy.spec.defaults.wire())
        for template in policy.spec.analysis_templates or ():
            templates.setdefault(template.name, tuple(template.metrics))
    gates = tuple((p.name, p.spec.gates) for p in matching if p.spec.gates)
    bake = max((g.bake for _, g in gates if g.bake), key=seconds, default=None)
    if bake is not None:
        defaults["bake"] = bake
    deadline = max(
        (g.min_progress_deadline for _, g in gates if g.min_progress_deadline), key=seconds, default=None
    )
    mandatory = tuple(m for _, g in gates for m in g.metrics or ())
    first = _first_weight(gates) if any(not m.dry_run for m in mandatory) else None
    defaults |= {
        k: v for k, v in (("minProgressDeadline", deadline), ("maxFirstWeight", first)) if v is not None
    }
    return Rules(
        names=tuple(p.name for p in matching),
        broken=tuple((p.name, p.error) for p in matching if p.error),
        defaults=defaults,
        gates=gates,
        sources=tuple((p.name, p.spec.allowed_sources) for p in matching if p.spec.allowed_sources),
        hostnames=tuple(
            (p.name, tuple(p.spec.allowed_hostnames)) for p in matching if p.spec.allowed_hostnames
        ),
        shared_hostnames=tuple(
            (p.name, tuple(p.spec.shared_hostnames)) for p in matching if p.spec.shared_hostnames
        ),
        accounts=tuple(
            (p.name, tuple(p.spec.allowed_service_accounts))
            for p in matching
            if p.spec.allowed_service_accounts
        ),
        secrets=tuple(
            (p.name, tuple(p.spec.allowed_secrets)) for p in matching if p.spec.allowed_secrets is not None
        ),
        pods=tuple((p.name, p.spec.allowed_pods) for p in matching if p.spec.allowed_pods),
        freezes=tuple((p.name, w) for p in matching for w in p.spec.freeze_windows or ()),
        limits=tuple(
            Limit(
                p.name, p.uid, p.spec.limits.concurrent_rollouts, p.spec.limits.gpus, p.spec.limits.max_hold
            )
            for p in matching
            if p.spec.limits and (p.spec.limits.concurrent_rollouts or p.spec.limits.gpus)
        ),
        job_limits=tuple(
            (p.name, p.spec.limits.jobs) for p in matching if p.spec.limits and p.spec.limits.jobs
        ),
        templates=templates,
        mandatory=mandatory,
        reserve_names=(
            None
            if first is None
            else max((g.reserve_names for _, g in gates if g.reserve_names), key=seconds, default=RESERVED)
        ),
        first_weight=first,
        promql=frozenset(m.query for p in matching for m in _metrics(p.spec) if m.query is not None),
    )


def _first_weight(gates: Iterable[tuple[str, PolicyGates]]) -> int:
    return min((g.max_first_weight for _, g in gates if g.max_first_weight is not None), default=FIRST_WEIGHT)


def _metrics(spec: RolloutPolicySpec) -> Iterator[Metric]:
    """All metrics of a policy, in defaults, gates and templates."""
    if spec.defaults is not None and spec.defaults.analysis is not None:
        yield from spec.defaults.analysis.metrics or ()
    if spec.gates is not None:
        yield from spec.gates.metrics or ()
    for template in spec.analysis_templates or ():
        yield from template.metrics


def spec_in_force(spec: Mapping[str, Any], defaults: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec of a ModelDeployment, in wire form, with the policies' defaults in spec.rollout."""
    return {**spec, "rollout": effective(spec.get("rollout") or {}, defaults)} if defaults else spec


def effective(specified: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """spec.rollout with the policies' defaults; a bake or deadline shorter than theirs is raised to
    theirs.
    """
    filled = with_defaults(specified, {k: v for k, v in defaults.items() if k not in _BOUNDS})
    for key, bound, unless_said in (
        ("bake", "bake", None),
        ("progressDeadline", "minProgressDeadline", _DEADLINE),
    ):
        own, least = filled.get(key, unless_said), defaults.get(bound)
        # the API's own validation reports an invalid duration
        with contextlib.suppress(ValueError):
            if isinstance(own, str) and least is not None and seconds(own) < seconds(least):
                filled[key] = least
    return filled


def with_defaults(specified: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``specified`` with the fields that it leaves out taken from ``defaults``, object by object;
    lists are taken whole.
    """
    filled = dict(specified)
    for key, value in defaults.items():
        if isinstance(value, Mapping) and isinstance(filled.get(key, {}), Mapping):
            filled[key] = with_defaults(filled.get(key) or {}, value)
        elif filled.get(key) is None:
            filled[key] = value
    return filled


def active_freeze(rules: Rules, now: datetime) -> Freeze | None:
    """The freeze in force, until the end of the last window of an unbroken chain; None if there is
    none.
    """
    if rules.broken:
        name, why = rules.broken[0]
        return Freeze(
            None, f"RolloutPolicy {name} cannot be read, so no weight rises until it is corrected: {why}"
        )
    until, policy, reason = now, "", ""
    for _ in range(_CHAINED):
        ends = [
            (end, name, w.reason or "") for name, w in rules.freezes if (end := _end(w, until)) is not None
        ]
        later = max(ends, default=None)
        if later is None or later[0] <= until:
            break
        until, policy, reason = later
    if not policy:
        return None
    why = f" ({reason})" if reason else ""
    return Freeze(
        until, f"RolloutPolicy {policy} freezes rollouts until {_utc(until)}{why}; rollbacks and aborts work"
    )


def _moment(text: str) -> datetime:
    """The time, bounded so that any zone and duration can be added: a year 9999 means for ever."""
    return min(max(datetime.fromisoformat(text), _FIRST), _LAST)


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _end(window: FreezeWindow, now: datetime) -> datetime | None:
    """When the window ends, if ``now`` lies in it."""
    if window.schedule is None:
        assert window.start is not None and window.end is not None
        first, last = _moment(window.start), _moment(window.end)
        return last if first <= now < last else None
    assert window.duration is not None
    begun: datetime | None = _last(
        window.schedule, window.timezone, now.astimezone(UTC).replace(second=0, microsecond=0)
    )
    # In UTC: the difference of two local times ignores a change to or from summer time.
    end = begun + timedelta(seconds=seconds(window.duration)) if begun else None
    return end if end is not None and now < end else None


# every pass of every rollout needs it, and it changes once a minute
@functools.lru_cache(maxsize=1024)
def _last(schedule: str, timezone: str, minute: datetime) -> datetime | None:
    """The latest time of the schedule up to and including that minute."""
    local = (minute + timedelta(seconds=1)).astimezone(ZoneInfo(timezone))
    latest: datetime | None = next(CronSim(schedule, local, reverse=True), None)
    if latest is None:
        return None
    # Backwards, CronSim merges the hour that the end of summer time repeats: go forwards again to
    # the times that it skipped.
    later: datetime
    for later in CronSim(schedule, latest):
        # in UTC: local times of one zone compare without regard to the repeated hour
        if later.astimezone(UTC) > minute:
            break
        latest = later
    return latest.astimezone(UTC)
