"""The operator's own judgement on thousands of rollouts at once, and two rivals' on the same
requests.

A rule sees, at every look, what has come since the last one, metric by metric, and says which
rollouts it takes back now.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from calibrate.scenarios import LOOK, Counts, Floats, Stream
from modelrollout.analysis.verdict import FALSE_ALARM_BUDGET
from modelrollout.rollout.stages.judging import REWRITE_SECONDS
from modelrollout.statistics.dispersion import Spread, dispersion, widened
from modelrollout.statistics.sequential import log_evidence, over_steps

Flags = NDArray[np.bool_]
# accuracy, errors and latency share the budget, also where only one of them is simulated
METRICS = 3
ALPHA = FALSE_ALARM_BUDGET / METRICS
TOLERANCE = 0.0
CHECK = 60  # seconds between two looks of the rivals, and their window


class Rule(Protocol):
    def before(self, minutes: list[Counts]) -> None: ...
    def next_step(self) -> None: ...
    def judge(self, second: int, news: list[Counts]) -> Flags: ...


class Ours:
    """What analysis.judge does with one metric's counts, for arrays: dispersion, evidence, the
    steps before, budget.

    As in the operator, a look begins from the counts of the last written status, so a look in the
    sense of the dispersion is a minute long.
    """

    def __init__(self, streams: tuple[Stream, ...], rollouts: int) -> None:
        self._rollouts = rollouts
        self._carried: list[list[Floats]] = [[] for _ in streams]
        self._evidence: list[Floats] = [np.zeros(rollouts) for _ in streams]
        self._written = [_Side(rollouts) for _ in streams]
        self._counts = [_zero(rollouts) for _ in streams]

    def before(self, minutes: list[Counts]) -> None:
        """What stable has shown, stream by stream, in a minute before the rollout."""
        for written, minute in zip(self._written, minutes, strict=True):
            written.write(_zero(self._rollouts), written.since(minute))

    def next_step(self) -> None:
        """The hour before a step is here all that was seen of stable."""
        for i, evidence in enumerate(self._evidence):
            self._carried[i].append(evidence)
            self._written[i].write(_zero(self._rollouts), self._written[i].since(self._counts[i]))
            self._counts[i] = _zero(self._rollouts)

    def judge(self, second: int, news: list[Counts]) -> Flags:
        proven = np.zeros(self._rollouts, dtype=np.bool_)
        for i, new in enumerate(news):
            c = self._counts[i] = Counts(*(a + b for a, b in zip(self._counts[i], new, strict=True)))
            stable = self._written[i].since(c)
            self._evidence[i] = evidence_of(c, stable)
            proven |= over_steps(self._evidence[i], self._carried[i]) >= -np.log(ALPHA)
            if second % REWRITE_SECONDS == 0:
                self._written[i].write(c, stable)
        return proven


def evidence_of(c: Counts, stable: Spread[Floats]) -> Floats:
    """This step's evidence, with the counts divided by their dispersion."""
    apart = dispersion(stable)
    return log_evidence(
        c.bad / apart, c.total / apart, c.stable_bad / apart, c.stable_total / apart, TOLERANCE
    )


class _Side:
    """Counts, and the spread of stable's, as last written to the status."""

    def __init__(self, rollouts: int) -> None:
        self._counts = _zero(rollouts)
        nothing = np.zeros(rollouts)
        self._stable = Spread(nothing, nothing, nothing, nothing, nothing, nothing)

    def since(self, c: Counts) -> Spread[Floats]:
        return widened(
            self._stable, c.stable_total - self._counts.stable_total, c.stable_bad - self._counts.stable_bad
        )

    def write(self, c: Counts, stable: Spread[Floats]) -> None:
        self._counts, self._stable = c, stable


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

    def next_step(self) -> None:
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


def rules(streams: tuple[Stream, ...], rollouts: int) -> dict[str, Rule]:
    return {
        "ours": Ours(streams, rollouts),
        "argo": Threshold(streams, rollouts, failures=4, looks_later=0),
        "flagger": Threshold(streams, rollouts, failures=5, looks_later=1),
    }


def _zero(rollouts: int) -> Counts:
    return Counts(*(np.zeros(rollouts) for _ in range(4)))


assert CHECK % LOOK == 0
