"""PURE: what a soak does and when, from a seed; and what is right at its end."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Object = Mapping[str, Any]
Kind = Literal["change", "fault"]

CHANGE_SECONDS = (8.0, 22.0)  # from one change to the next
FAULT_SECONDS = (25.0, 60.0)
# what a change is, and how often
CHANGES: Mapping[str, int] = {
    "good": 30,  # another version that is right
    "bad": 18,  # one whose answers are all wrong
    "scale-1": 8,
    "scale-2": 8,
    "zero": 5,
    "pause": 6,
    "promote": 6,
    "promote-full": 3,
    "abort": 5,
    "rollback": 4,
    "retry": 4,
    "restart": 4,
}
VERBS = frozenset({"pause", "resume", "promote", "promote-full", "abort", "rollback", "retry", "restart"})
# what must end again, by what, and after how many seconds
PAIRED: Mapping[str, tuple[str, float, float]] = {
    "pause": ("resume", 15.0, 40.0),
    "zero": ("back", 8.0, 20.0),
}
# The operator is killed only at the beginning, so that its last life tells how its memory grows.
ONLY_EARLY = frozenset({"operator-killed"})
EARLY = 0.25  # of the whole time


@dataclass(frozen=True, order=True)
class Event:
    """Something to do, so many seconds after the beginning, to the model with that number."""

    at: float
    kind: Kind
    what: str
    model: int


def schedule(seed: int, seconds: float, models: int, faults: Sequence[str]) -> list[Event]:
    """The events in their order. The same arguments give the same events."""
    rng = random.Random(seed)
    return sorted([*_changes(rng, seconds, models), *_faults(rng, seconds, models, faults)])


def _changes(rng: random.Random, seconds: float, models: int) -> Iterable[Event]:
    is_good = [True] * models  # whether a person may promote what is in flight
    taken = [0.0] * models  # until when: what is paused or at zero is left alone
    at = rng.uniform(*CHANGE_SECONDS)
    while at < seconds:
        free = [model for model in range(models) if taken[model] <= at]
        if free:
            model = rng.choice(free)
            [what] = rng.choices(list(CHANGES), list(CHANGES.values()))
            if what.startswith("promote") and not is_good[model]:
                what = "abort"
            yield Event(at, "change", what, model)
            if what in ("good", "bad"):
                is_good[model] = what == "good"
            if what in PAIRED:
                end, least, most = PAIRED[what]
                taken[model] = at + rng.uniform(least, most)
                yield Event(taken[model], "change", end, model)
        at += rng.uniform(*CHANGE_SECONDS)


def _faults(rng: random.Random, seconds: float, models: int, faults: Sequence[str]) -> Iterable[Event]:
    at = rng.uniform(*FAULT_SECONDS)
    while at < seconds:
        possible = [f for f in faults if f not in ONLY_EARLY or at < EARLY * seconds]
        yield Event(at, "fault", rng.choice(possible), rng.randrange(models))
        at += rng.uniform(*FAULT_SECONDS)


# --- how versions must end


@dataclass
class Version:
    """A version of a model that was applied, and what was done to it."""

    model: str
    sha256: str
    good: bool
    replaced: bool = False  # by another one in spec
    verbs: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class End:
    """An end of a rollout, as the status of the ModelDeployment had it."""

    outcome: str
    reason: str
    message: str

    def __str__(self) -> str:
        return f"{self.outcome} ({self.reason}: {self.message})" if self.reason else self.outcome


_SERVES = frozenset({"Promoted", "Stable"})
_REFUSED = frozenset({"RolledBack", "Rejected"})


def wrong_end(version: Version, ends: Collection[End]) -> str | None:
    """Why these ends of a version are not as they must be; None: they are.

    A good version is promoted and a bad one rolled back, unless a person ended it, or spec named
    another one meanwhile.
    """
    which = f"{version.model}: the {'good' if version.good else 'bad'} version {version.sha256[:12]}"
    allowed = set(_SERVES if version.good else _REFUSED)
    if version.replaced:
        allowed.add("Superseded")
    if version.verbs & {"abort", "rollback"}:
        allowed.add("Aborted")
    for end in ends:
        if end.outcome not in allowed:
            return f"{which} ended as {end}"
    if not ends and not version.replaced:
        return f"{which} has not ended"
    return None


class Ledger:
    """Which versions were applied, and how they ended, from the states of ModelDeployments."""

    def __init__(self) -> None:
        self.versions: list[Version] = []
        self._current: dict[str, Version] = {}
        # by model and sha256: the files of two models may be equal
        self._ends: dict[tuple[str, str], dict[End, None]] = {}
        self._revisions: dict[str, str] = {}  # revision -> sha256

    def applied(self, model: str, sha256: str, *, good: bool) -> None:
        """Spec names another version."""
        if model in self._current:
            self._current[model].replaced = True
        self._current[model] = Version(model, sha256, good)
        self.versions.append(self._current[model])

    def verb(self, model: str, verb: str) -> None:
        """A person asks for something about the version that spec names."""
        if model in self._current:
            self._current[model].verbs.add(verb)

    def seen(self, deployment: Object) -> None:
        """A state of a ModelDeployment."""
        rollout = (deployment.get("status") or {}).get("rollout") or {}
        sha256 = rollout.get("sha256")
        if not sha256:
            return
        if rollout.get("revision"):
            self._revisions[rollout["revision"]] = sha256
        if rollout.get("stage") in ("Done", "Failed") and rollout.get("outcome"):
            end = End(rollout["outcome"], rollout.get("reason") or "", rollout.get("message") or "")
            self._ends.setdefault((deployment["metadata"]["name"], sha256), {})[end] = None

    def wrong(self) -> list[str]:
        """Versions that did not end as they must."""
        found = (
            wrong_end(version, self._ends.get((version.model, version.sha256), {}))
            for version in self.versions
        )
        return [text for text in found if text is not None]

    def too_much(self, splits: Iterable[Mapping[str, int]], most: int) -> list[str]:
        """Bad versions that had more than so many percent of a route. ``splits``: of all versions
        of the routes, weight by revision.
        """
        bad = {version.sha256: version.model for version in self.versions if not version.good}
        found: dict[str, None] = {}
        for split in splits:
            for revision, weight in split.items():
                sha256 = self._revisions.get(revision)
                if sha256 in bad and weight > most:
                    found[f"{bad[sha256]}: the bad revision {revision} had {weight} % of the requests"] = None
        return list(found)


# --- leftovers


def leftovers(objects: Iterable[Object], models: Collection[str], label: str) -> list[str]:
    """Objects in the namespace that belong to none of these models, or that have no owner.

    ``label``: the label with the name of the model.
    """
    found = []
    for o in objects:
        about = o["metadata"]
        if about.get("deletionTimestamp"):
            continue
        name = f"{o['kind']} {about['name']}"
        if (about.get("labels") or {}).get(label) not in models:
            found.append(f"{name} belongs to no model")
        elif not about.get("ownerReferences"):
            found.append(f"{name} has no owner")
    return found


def beyond_history(objects: Sequence[Object], label: str, history: int) -> list[str]:
    """Models with more revisions than their history allows."""
    counts = Counter(
        (o["metadata"].get("labels") or {}).get(label) for o in objects if o["kind"] == "ModelRevision"
    )
    most = 2 * history + SPARE_REVISIONS
    return [f"{model} has {n} revisions, at most {most} may be" for model, n in counts.items() if n > most]


# --- the operator's memory

WARM_SECONDS = 300.0  # of a life of the operator, until its code and its connections are there
TREND_SECONDS = 600.0  # less than this says nothing about a trend
GROWTH_LIMIT = 10.0  # MiB per hour
# beside the history: stable, in flight, rolled back from, and one that drains
SPARE_REVISIONS = 4


@dataclass(frozen=True)
class Sample:
    """Resident memory of the operator's process ``life``, in MiB, so long after the beginning, and
    how many ModelRevisions there were.
    """

    at: float
    life: int
    mib: float
    revisions: int


def memory_line(samples: Sequence[Sample], until: float, full: int) -> str:
    """What the last life of the operator used at its start, middle and end, and how it grew under
    the load of the schedule, which ended at ``until``.

    The operator keeps every object that exists. So the trend begins once there are ``full``
    revisions: until then memory grows with the cluster, and not by what is not forgotten.
    """
    if not samples:
        return "operator memory: not measured"
    last = [s for s in samples if s.life == samples[-1].life]
    start, middle, end = (last[i].mib for i in (0, len(last) // 2, -1))
    minutes = (last[-1].at - last[0].at) / 60
    text = (
        f"operator memory: {start:.0f} MiB at the start, {middle:.0f} in the middle, {end:.0f} at the end of"
        f" its last life of {minutes:.0f} minutes"
    )
    steady = [s for s in last if s.at <= until]
    begin = next((s.at for s in steady if s.revisions >= full), until)
    warm = [s for s in steady if s.at >= max(begin, last[0].at + WARM_SECONDS)]
    judged = warm[-1].at - warm[0].at if warm else 0.0
    if judged < TREND_SECONDS:
        return (
            f"{text}; too short for a trend: {judged / 60:.0f} minutes with full histories, it takes"
            f" {TREND_SECONDS / 60:.0f}"
        )
    growth = _slope([(s.at / 3600, s.mib) for s in warm])
    verdict = "flat" if growth <= GROWTH_LIMIT else "IT GROWS"
    return f"{text}; trend {growth:+.1f} MiB per hour, limit {GROWTH_LIMIT:g}: {verdict}"


def _slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line with the least squares."""
    x_mean = sum(x for x, _ in points) / len(points)
    y_mean = sum(y for _, y in points) / len(points)
    spread = sum((x - x_mean) ** 2 for x, _ in points)
    return sum((x - x_mean) * (y - y_mean) for x, y in points) / spread if spread else 0.0


# --- the last line


@dataclass
class Tally:
    """What a soak counted."""

    seconds: float = 0.0
    changes: int = 0
    faults: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: int = 0
    sent: int = 0
    apart: int = 0

    def __str__(self) -> str:
        return (
            f"soak: {self.seconds / 60:.0f} minutes, {self.changes} changes, {self.faults} faults,"
            f" {len(self.wrong)} wrong outcomes, {self.failed} failed requests of {self.sent},"
            f" {self.apart} counted apart"
        )

    @property
    def is_right(self) -> bool:
        return not self.wrong and not self.failed
