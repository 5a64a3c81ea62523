"""The operator's own judgement on thousands of rollouts at once, and two rivals' on the same
requests.

A rule sees, at every look, what has come since the last one, metric by metric, and says which
rollouts it takes back now.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calibrate.pods import Floats
from calibrate.scenarios import LOOK, Counts, Scenario, Stream
from modelrollout.analysis.providers.prometheus import history
from modelrollout.analysis.verdict import FALSE_ALARM_BUDGET
from modelrollout.rollout.stages.judging import REWRITE_SECONDS
from modelrollout.statistics.dispersion import Spread, divisor, lasting, widened
from modelrollout.statistics.sequential import log_evidence, over_steps

Flags = NDArray[np.bool_]
# accuracy, errors and latency share the budget, also where only one of them is simulated
METRICS = 3
ALPHA = FALSE_ALARM_BUDGET / METRICS
TOLERANCE = 0.0
CHECK = 60  # seconds between two looks of the rivals, and their window


class Rule(Protocol):
    def before(self, minutes: list[Counts]) -> None: ...
    def next_step(self, second: int) -> None: ...
    def judge(self, second: int, news: list[Counts]) -> Flags: ...


class Ours:
    """What analysis.judge does with one metric's counts, for arrays: dispersion, evidence, the
    steps before, budget.

    As in the operator, a look begins from the counts of the last written status, so a look in the
    sense of the dispersion is a minute long.
    """

    def __init__(self, s: Scenario, rollouts: int) -> None:
        self._s, self._rollouts, self._began = s, rollouts, 0
        self._minutes: list[list[Counts]] = [[] for _ in s.streams]
        self._carried: list[list[Floats]] = [[] for _ in s.streams]
        self._evidence: list[Floats] = [np.zeros(rollouts) for _ in s.streams]
        self._written = [_Written(rollouts) for _ in s.streams]
        self._counts = [_zero(rollouts) for _ in s.streams]

    def before(self, minutes: list[Counts]) -> None:
        """What stable has shown, stream by stream, in a minute before the rollout."""
        for all_minutes, minute in zip(self._minutes, minutes, strict=True):
            all_minutes.append(minute)

    def next_step(self, second: int) -> None:
        """The hour before a step is here all that was seen of stable."""
        for i, evidence in enumerate(self._evidence):
            self._carried[i].append(evidence)
            self._written[i].begin(self._written[i].since(self._counts[i])[0])
            self._counts[i] = _zero(self._rollouts)
        self._began = second

    def judge(self, second: int, news: list[Counts]) -> Flags:
        if self._minutes[0]:
            for written, minutes in zip(self._written, self._minutes, strict=True):
                written.begin(_usual(minutes))
            self._minutes = [[] for _ in self._minutes]
        proven = np.zeros(self._rollouts, dtype=np.bool_)
        seconds = second - self._began
        if self._s.cold is not None and 0 < self._s.cold.since(seconds) <= self._s.delay:
            return proven
        for i, new in enumerate(news):
            c = self._counts[i] = Counts(*(a + b for a, b in zip(self._counts[i], new, strict=True)))
            stable, canary = self._written[i].since(c)
            self._evidence[i] = evidence_of(c, stable, canary)
            enough = over_steps(self._evidence[i], self._carried[i]) >= -np.log(ALPHA)
            if self._s.streams[i].episodic:
                enough &= lasting(stable, canary, c.bad, c.total, float(seconds))
            proven |= enough
            if second % REWRITE_SECONDS == 0:
                self._written[i].write(c, stable, canary)
        return proven


def evidence_of(c: Counts, stable: Spread[Floats], canary: Spread[Floats]) -> Floats:
    """This step's evidence, with the counts divided by their dispersion."""
    apart = divisor(stable, canary)
    return log_evidence(
        c.bad / apart, c.total / apart, c.stable_bad / apart, c.stable_total / apart, TOLERANCE
    )


def _usual(minutes: list[Counts]) -> Spread[Floats]:
    """What the hour before the first step says of stable, rollout by rollout."""
    totals = np.stack([m.stable_total for m in minutes], axis=1).tolist()
    bad = np.stack([m.stable_bad for m in minutes], axis=1).tolist()
    spreads = [history.spread(list(zip(n, b, strict=True))) for n, b in zip(totals, bad, strict=True)]
    return Spread(*(np.array(values) for values in zip(*spreads, strict=True)))


class _Written:
    """Counts, and the spread of both sides', as last written to the status."""

    def __init__(self, rollouts: int) -> None:
        self._rollouts = rollouts
        self.begin(_nothing(rollouts))

    def begin(self, stable: Spread[Floats]) -> None:
        """A step, with what is known of stable."""
        self._counts, self._stable, self._canary = _zero(self._rollouts), stable, _nothing(self._rollouts)

    def since(self, c: Counts) -> tuple[Spread[Floats], Spread[Floats]]:
        """The spreads of stable and of the canary with what has come since."""
        n, before = c, self._counts
        return (
            widened(self._stable, n.stable_total - before.stable_total, n.stable_bad - before.stable_bad),
            widened(self._canary, n.total - before.total, n.bad - before.bad),
        )

    def write(self, c: Counts, stable: Spread[Floats], canary: Spread[Floats]) -> None:
        self._counts, self._stable, self._canary = c, stable, canary


def _nothing(rollouts: int) -> Spread[Floats]:
    return Spread(*(np.zeros(rollouts) for _ in Spread._fields))


class Best:
    """The sequential test that knows the canary's and stable's shares: their likelihood ratio
    against one share for both, at the same looks and the same alpha (Wald 1945). No test needs
    fewer samples on average.
    """

    def __init__(self, s: Scenario, rollouts: int) -> None:
        [stream], weight = s.streams, s.steps[0].weight / 100
        both = weight * stream.canary + (1 - weight) * stream.stable
        self._gains = tuple(
            np.log(of / over)
            for p in (stream.canary, stream.stable)
            # where all are bad none is good: any finite gain does
            for of, over in ((p, both), (max(1 - p, 1e-9), 1 - both))
        )
        self._evidence = np.zeros(rollouts)

    def before(self, minutes: list[Counts]) -> None:
        """It knows the shares already."""

    def next_step(self, second: int) -> None:
        """It is for one step."""

    def judge(self, second: int, news: list[Counts]) -> Flags:
        [n] = news
        bad, good, stable_bad, stable_good = self._gains
        self._evidence += n.bad * bad + (n.total - n.bad) * good
        self._evidence += n.stable_bad * stable_bad + (n.stable_total - n.stable_bad) * stable_good
        return np.asarray(self._evidence >= -np.log(ALPHA))


class Threshold:
    """Looks every 60 s at the last 60 s; a check fails when any metric's success is below its
    threshold. Failed checks are never reset.

    Argo-like: the fourth failed measurement aborts (failureLimit 3). Flagger-like: five failed
    checks, and the rollback comes one look later. A window without requests is no failure here,
    which is kinder than either of them.
    """

    def __init__(self, streams: tuple[Stream, ...], rollouts: int, failures: int, looks_later: int) -> None:
        self._streams, self._failures, self._later = streams, failures, looks_later
        self._failed = np.zeros(rollouts)
        self._due = np.full(rollouts, np.inf)
        self._window = [_zero(rollouts) for _ in streams]
        self._rollouts = rollouts

    def before(self, minutes: list[Counts]) -> None:
        """Thresholds know nothing of what was usual."""

    def next_step(self, second: int) -> None:
        """Windows do not know of steps."""

    def judge(self, second: int, news: list[Counts]) -> Flags:
        for i, new in enumerate(news):
            self._window[i] = Counts(*(a + b for a, b in zip(self._window[i], new, strict=True)))
        if second % CHECK:
            return np.zeros(self._rollouts, dtype=np.bool_)
        failed = np.zeros(self._rollouts, dtype=np.bool_)
        for stream, w in zip(self._streams, self._window, strict=True):
            failed |= w.bad > stream.threshold * w.total + 1e-9
        self._failed += failed
        self._due = np.where(
            (self._failed >= self._failures) & ~np.isfinite(self._due),
            second + CHECK * self._later,
            self._due,
        )
        self._window = [_zero(self._rollouts) for _ in self._streams]
        return self._due <= second


def rules(s: Scenario, rollouts: int) -> dict[str, Rule]:
    judges: dict[str, Rule] = {
        "ours": Ours(s, rollouts),
        "argo": Threshold(s.streams, rollouts, failures=4, looks_later=0),
        "flagger": Threshold(s.streams, rollouts, failures=5, looks_later=1),
    }
    return judges | ({"best": Best(s, rollouts)} if s.plain else {})


def _zero(rollouts: int) -> Counts:
    return Counts(*(np.zeros(rollouts) for _ in range(4)))


assert CHECK % LOOK == 0
