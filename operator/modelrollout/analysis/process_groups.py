"""Counters of more processes than status has room for.

The first ``FOLLOWED`` processes of a side are followed one by one for the whole step; a process
that vanishes keeps its place, because it may return. All others are followed as the sums of
``GROUPS`` groups, by a hash of the name. A group counts only between two readings of exactly the
same members, when every member has a newer scrape and no sum is smaller; otherwise the reading is a
new baseline. So with very many processes some requests of canary and stable alike are lost, and
none is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from zlib import crc32

from modelrollout.analysis.counters import Cold, Raw, Sample, fold
from modelrollout.api.v1alpha1 import Counter

FOLLOWED = 24
GROUPS = 8
GROUP = "#"  # begins the name of a group in Counter.last
GROUP_FIELDS = 4  # of its entry: total, bad, newest scrape, hash of the members


def fold_all(previous: Counter | None, raw: Raw, cold: Cold | None = None) -> Counter:
    """``fold`` for any number of processes; ``previous`` itself when ``raw`` is not newer.

    What was scraped up to ``cold.since`` counts as ever, what was scraped until ``cold.until`` does
    not. The first scrape after that is a new baseline beside the counts so far.
    """
    if cold is None:
        return _folded(previous, raw)
    if previous is None:
        first = _folded(None, raw)
        # a step sets no baseline while pods are cold: what comes later is warm
        return first if raw.processes else first.model_copy(update={"began": cold.until})
    if not raw.processes:
        return previous
    newest = newest_scrape(raw)
    if newest <= cold.since or (previous.began or 0.0) >= cold.until:
        return _folded(previous, raw)
    return previous if newest < cold.until else counting_again(previous, raw, newest)


def newest_scrape(raw: Raw) -> float:
    """Unix seconds; 0 without processes."""
    return max((s.scraped for s in raw.processes.values()), default=0.0)


def age_of(raws: Iterable[Raw], now: float) -> float | None:
    """Seconds since the newest scrape; None where no time is known."""
    newest = max((newest_scrape(raw) for raw in raws), default=0.0)
    return now - newest if newest else None


def counts_again(previous: Counter | None, raw: Raw, cold: Cold | None) -> bool:
    """Whether this reading is a new baseline: the first after a cold time that began later than the
    counts. The other side then needs one as well, or it would count for longer.
    """
    newest = newest_scrape(raw)
    return (
        cold is not None
        and previous is not None
        and (previous.began or 0.0) < cold.until <= newest
        and newest > cold.since
    )


def counting_again(previous: Counter, raw: Raw, now: float) -> Counter:
    """The counts so far, on a new baseline. Processes that are missing may return."""
    baseline = _folded(None, raw)
    missing = [p for p in previous.last if p not in raw.processes and not p.startswith(GROUP)]
    room = max(0, FOLLOWED - sum(1 for p in baseline.last if not p.startswith(GROUP)))
    return previous.model_copy(
        update={
            "last": {p: previous.last[p] for p in missing[:room]} | baseline.last,
            "scraped": max(now, previous.scraped or 0.0),
            "began": now,
        }
    )


def _folded(previous: Counter | None, raw: Raw) -> Counter:
    known = previous.last if previous else {}
    room = FOLLOWED - sum(1 for p in known if not p.startswith(GROUP))
    followed = {p: s for p, s in raw.processes.items() if p in known}
    others = sorted(p for p in raw.processes if p not in known)
    followed |= {p: raw.processes[p] for p in others[:room]}
    counted = fold(previous, Raw(followed))
    groups: dict[str, dict[str, Sample]] = {}
    for process in others[room:]:
        groups.setdefault(f"{GROUP}{crc32(process.encode()) % GROUPS}", {})[process] = raw.processes[process]
    for name, members in groups.items():
        counted = _with_group(counted, name, members)
    return counted


def _with_group(counted: Counter, name: str, members: Mapping[str, Sample]) -> Counter:
    before = counted.last.get(name)
    oldest, newest = min(s.scraped for s in members.values()), max(s.scraped for s in members.values())
    if before is not None and oldest <= before[2]:
        return counted
    total, bad = sum(s.total for s in members.values()), sum(s.bad for s in members.values())
    who = float(crc32("\n".join(sorted(members)).encode()))
    more = wrong = 0.0
    if (
        before is not None
        and before[3] == who
        and total >= before[0]
        and bad >= before[1]
        and total - bad >= before[0] - before[1]
    ):
        more, wrong = total - before[0], bad - before[1]
    return counted.model_copy(
        update={
            "total": counted.total + more,
            "bad": counted.bad + wrong,
            "last": counted.last | {name: [total, bad, newest, who]},
            "scraped": max(newest, counted.scraped or 0.0) or None,
        }
    )
