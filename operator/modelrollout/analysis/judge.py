"""One metric of one step: from counts to a verdict.

Fail: the canary is proven worse than stable by more than the tolerance, a tenth of the margin, or
proven beyond an absolute limit. Fail wins. The proof is of the whole rollout: the e-values of its
steps are combined (``sequential.over_steps``) and must reach 1 / alpha. The sum of alpha over the
metrics is the chance of a false alarm in the rollout, over all its steps and readings. Where stable
has no past that shows how requests fail by themselves, the excess has to last as well
(``dispersion.lasting``).

Pass: nothing is proven, the canary has the minimum of samples, and a loss that would do too much
harm at the next weight is ruled out: margin * 100 / next weight. An e-value of this step alone that
reaches 1 / alpha refutes it. So a step passes what it should rule out with probability alpha at
most. A canary that is worse by the margin reaches 100 % with that probability at most, because the
last step alone rules it out; the steps before it bound the harm on the way.

Anything else is inconclusive, and the message says what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, log

from modelrollout.analysis.counters import spread_of
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.api.v1alpha1 import Counter, Metric, MetricStatus, VerdictName
from modelrollout.reasons import Reason
from modelrollout.statistics.dispersion import KNOWN_AFTER, dispersion, divisor, is_known, lasting
from modelrollout.statistics.sequential import (
    Interval,
    difference_interval,
    log_evidence,
    over_steps,
    share_interval,
    share_log_evidence,
)

TOLERANCE = 0.1  # of the margin
# What a pod does for a while by itself. It does not answer wrongly, nor refuse what it accepts
# otherwise.
_EPISODIC = ("errors", "refusedRequests", "latency")
# no proof against the canary: stable exceeded the limit at the same time
LIMIT_EXCEEDED = Reason.LIMIT_EXCEEDED
_BAD_AND_FAILURE = {
    "accuracy": ("wrong answers", Reason.ACCURACY_LOW),
    "errors": ("failed requests", Reason.ERRORS_HIGH),
    "clientErrors": ("client errors", Reason.CLIENT_ERRORS_HIGH),
    "refusedRequests": ("refused requests", Reason.REFUSED_REQUESTS_HIGH),
    "latency": ("slow requests", Reason.LATENCY_HIGH),
}
# every other problem is an Error
_INCONCLUSIVE_PROBLEMS = (Reason.NO_DATA, Reason.NO_STABLE_DATA, Reason.STALE_DATA, Reason.QUERY_PENDING)
_BASE_COST_NATS = 2.0  # about what the mixture of bets costs before evidence grows
_LARGEST_PLAN = 10_000_000  # samples; more than this is "never" for a rollout


@dataclass(frozen=True, slots=True)
class _Criterion:
    """A harm to prove or to rule out: the bad share, or its difference to stable's. Evidence is a
    log e-value.
    """

    worse: float  # against "at most fail_above"
    proof: float  # the same with what earlier steps of the rollout carried
    # proof where nothing but what clearly shows of stable is taken into account
    early: float
    lasts: bool  # one episode is no proof while stable is not known
    # against "at least pass_at", with the counts multiplied by the argument
    harmless: Callable[[float], float]
    interval: Interval
    estimate: float
    alpha: float
    fail_above: float
    pass_at: float
    versus_stable: bool

    @property
    def proven(self) -> bool:
        return self.lasts and self.proof >= self._enough

    @property
    def doubtful(self) -> bool:
        """It would be proven if nothing happened to stable by itself."""
        return not self.proven and max(self.early, self.proof) >= self._enough

    @property
    def ruled_out(self) -> bool:
        return self.harmless(1.0) >= self._enough

    @property
    def _enough(self) -> float:
        return -log(self.alpha)

    def needed(self, total: float) -> int | None:
        """Samples that the canary still needs if the shares stay the same, to about 5 %. None: no
        number is enough.
        """
        if self.estimate >= self.pass_at:
            return None
        goal, most = self._enough + _BASE_COST_NATS, max(_LARGEST_PLAN / total, 2.0)
        low, high = 1.0, most
        evidence = self.harmless(low)
        while high > 1.05 * low:  # evidence grows about as the counts do, from a little below 0
            guess = 1.02 * low * goal / max(evidence + _BASE_COST_NATS, 0.02 * goal)
            middle = (
                min(max(guess, 1.03 * low), 0.98 * high) if high < most else min(max(guess, 1.03 * low), most)
            )
            evidence_at_middle = self.harmless(middle)
            if evidence_at_middle >= self._enough:
                high = middle
            elif middle >= most:
                return None
            else:
                low, evidence = middle, evidence_at_middle
        return max(1, ceil((high - 1) * total))


def judge(
    metric: Metric,
    canary: Counter | None,
    stable: Counter | None,
    problem: MeasurementProblem | None,
    value: float | None,
    weight: int,
    next_weight: int,
    alpha: float,
    carried: Sequence[float] = (),
    *,
    simultaneous: bool = True,
) -> MetricStatus:
    """The verdict on one metric. ``weight`` and ``next_weight`` in percent (100 after the last
    step).

    ``alpha`` is the metric's share of the rollout's false-alarm budget; ``carried`` the
    ``log_evidence`` with which its earlier steps ended. ``simultaneous``: stable was counted at the
    same time as the canary.
    """
    if problem is not None:
        verdict: VerdictName = "Inconclusive" if problem.reason in _INCONCLUSIVE_PROBLEMS else "Error"
        return MetricStatus(
            name=metric.name,
            verdict=verdict,
            reason=problem.reason,
            message=problem.message,
            canary=canary,
            stable=stable,
        )
    if metric.query is not None:
        return _judge_value(metric, value)
    return _judge_counts(
        metric, canary or Counter(), stable, weight, next_weight, alpha, carried, simultaneous
    )


def has_own_limit(metric: Metric) -> bool:
    """Whether the metric can be judged without stable: by a query, or by an absolute limit."""
    return metric.query is not None or _limit(metric) is not None


def _judge_value(metric: Metric, value: float | None) -> MetricStatus:
    def status(verdict: VerdictName, reason: str, message: str) -> MetricStatus:
        return MetricStatus(
            name=metric.name, verdict=verdict, reason=reason, message=f"{metric.name}: {message}", value=value
        )

    if value is None:
        return status("Inconclusive", Reason.NO_DATA, "not measured yet")
    if value != value:  # NaN passes and fails every comparison silently
        return status("Error", Reason.NOT_A_NUMBER, "the query gives NaN")
    if metric.max is not None and value > metric.max:
        return status("Failed", Reason.VALUE_TOO_HIGH, f"{value:g} is above max {metric.max:g}")
    if metric.min is not None and value < metric.min:
        return status("Failed", Reason.VALUE_TOO_LOW, f"{value:g} is below min {metric.min:g}")
    return status("Successful", Reason.WITHIN_LIMITS, f"{value:g} is within its limits")


def _judge_counts(
    metric: Metric,
    canary: Counter,
    stable: Counter | None,
    weight: int,
    next_weight: int,
    alpha: float,
    carried: Sequence[float],
    simultaneous: bool,
) -> MetricStatus:
    margin, limit = _margin(metric), _limit(metric)
    compared = stable if margin is not None and stable is not None and stable.total > 0 else None
    criteria = (
        _criteria(
            canary,
            compared,
            margin,
            limit,
            next_weight,
            alpha,
            carried,
            episodic=metric.name in _EPISODIC,
        )
        if canary.total
        else []
    )
    counted = _summary(metric, canary, stable, criteria, weight)
    main = next((c for c in criteria if c.versus_stable or margin is None), None)

    def status(verdict: VerdictName, reason: str, message: str, needed: int | None = None) -> MetricStatus:
        return MetricStatus(
            name=metric.name,
            verdict=verdict,
            reason=reason,
            message=f"{metric.name}: {message}",
            canary=canary,
            stable=stable,
            value=None if canary.total == 0 else _shown(metric, canary.bad / canary.total),
            interval=[round(v, 6) for v in criteria[0].interval] if criteria else None,
            needed=needed,
            log_evidence=None if main is None else round(main.worse, 4),
        )

    if canary.total == 0:
        what = (
            "label for an answer of the canary has come"
            if metric.name == "accuracy"
            else "request to the canary has been counted"
        )
        return status("Inconclusive", Reason.NO_DATA, f"no {what} since the step began", metric.min_samples)
    proven = next((c for c in criteria if c.proven), None)
    if (
        proven is not None
        and not proven.versus_stable
        and (why := _no_proof(proven.fail_above, stable, simultaneous))
    ):
        return status(
            "Failed", LIMIT_EXCEEDED, f"beyond the limit of {_percent(proven.fail_above)}, {why}: {counted}"
        )
    if proven is not None:
        than = (
            f"than stable by more than {_points(proven.fail_above)}"
            if proven.versus_stable
            else f"than the limit of {_percent(proven.fail_above)}"
        )
        earlier = "" if proven.worse >= -log(proven.alpha) else ", with the evidence of earlier steps"
        _, reason = _BAD_AND_FAILURE[metric.name]
        return status("Failed", reason, f"proven worse {than}{earlier}: {counted}")
    if compared is not None and any(c.doubtful for c in criteria):
        return status("Inconclusive", Reason.NOT_YET_PROVEN, f"{_unknown(compared)}: {counted}")
    if canary.total < metric.min_samples:
        missing = ceil(metric.min_samples - canary.total)
        return status(
            "Inconclusive",
            Reason.TOO_FEW_SAMPLES,
            f"{missing} more samples until minSamples {metric.min_samples}: {counted}",
            missing,
        )
    if not criteria:
        return status(
            "Inconclusive",
            Reason.NO_STABLE_DATA,
            f"nothing of stable has been counted to compare with, and no absolute limit is set: {counted}",
        )
    open_ones = [c for c in criteria if not c.ruled_out]
    if not open_ones:
        reason = Reason.PROVEN_NOT_WORSE if compared is not None else Reason.PROVEN_WITHIN_LIMIT
        return status("Successful", reason, f"excess harm ruled out at weight {next_weight}: {counted}")
    needed = [c.needed(canary.total) for c in open_ones]
    more = None if None in needed else max(n for n in needed if n is not None)
    requirements = "; ".join(f"{_percent(c.pass_at)} must be ruled out" for c in open_ones)
    how = (
        f"about {more} more samples at the current rates"
        if more is not None
        else "cannot pass at the current rates, however many samples arrive"
    )
    return status(
        "Inconclusive",
        Reason.NOT_YET_PROVEN,
        f"{how}: {counted}; {requirements} for weight {next_weight}",
        more,
    )


def _criteria(
    canary: Counter,
    stable: Counter | None,
    margin: float | None,
    limit: float | None,
    next_weight: int,
    alpha: float,
    carried: Sequence[float],
    *,
    episodic: bool,
) -> list[_Criterion]:
    """The comparison first. With a limit as well, each takes half of the budget, and ``carried``
    belongs to the comparison.
    """
    share = alpha / max(1, (stable is not None) + (limit is not None))
    scale = 100 / max(1, next_weight)
    # Stable shows how requests fail together here. A canary that starts to fail would look like one
    # large cluster, so its own looks count only until stable is known, and only against a proof.
    own = spread_of(canary)
    usual, doubtful = dispersion(own if stable is None else spread_of(stable)), 1.0
    lasts = True
    if stable is not None:
        doubtful = divisor(spread_of(stable), own) / usual
        lasts = not episodic or lasting(spread_of(stable), own, canary.bad, canary.total, _seconds(canary))
    bad, total = canary.bad / usual, canary.total / usual
    criteria = []
    if stable is not None and margin is not None:
        other_bad, other_total, above, at = (
            stable.bad / usual,
            stable.total / usual,
            TOLERANCE * margin,
            min(1.0, margin * scale),
        )
        early = log_evidence(bad, total, other_bad, other_total, above)
        worse = log_evidence(
            bad / doubtful, total / doubtful, other_bad / doubtful, other_total / doubtful, above
        )
        criteria.append(
            _Criterion(
                worse,
                over_steps(worse, carried),
                over_steps(early, carried),
                lasts,
                lambda k: log_evidence(k * other_bad, k * other_total, k * bad, k * total, -at),
                difference_interval(bad, total, other_bad, other_total, share),
                bad / total - other_bad / other_total,
                share,
                above,
                at,
                True,
            )
        )
    if limit is not None:
        largest = min(1.0, limit * scale)
        worse = share_log_evidence(bad, total, limit)
        proof = over_steps(worse, carried if margin is None else ())
        criteria.append(
            _Criterion(
                worse,
                proof,
                proof,
                lasts,
                lambda k: share_log_evidence(k * (total - bad), k * total, 1 - largest),
                share_interval(bad, total, share),
                bad / total,
                share,
                limit,
                largest,
                False,
            )
        )
    return criteria


def _seconds(counter: Counter) -> float:
    """For how long the requests have been counted."""
    return 0.0 if counter.began is None or counter.scraped is None else counter.scraped - counter.began


def _unknown(stable: Counter) -> str:
    if is_known(spread_of(stable)):
        return "worse so far, as stable is now and then for a while: it has to last until the third minute"
    minutes = spread_of(stable).differences
    return (
        f"worse so far, but stable shows only {minutes:.0f} of the {KNOWN_AFTER} minutes that tell a"
        " regression from what happens by itself now and then; more requests of both sides decide"
    )


def _no_proof(limit: float, stable: Counter | None, simultaneous: bool) -> str | None:
    """Why exceeding an absolute limit is no proof against the canary: what clients send may exceed
    it on both sides.
    """
    if stable is None or not stable.total or not simultaneous:
        return "and nothing of stable was counted at the same time"
    return "which stable exceeds too" if stable.bad / stable.total > limit else None


def _margin(metric: Metric) -> float | None:
    return metric.max_drop if metric.name == "accuracy" else metric.max_increase


def _limit(metric: Metric) -> float | None:
    """The largest bad share allowed whatever stable does."""
    if metric.name == "accuracy":
        return None if metric.min is None else 1 - metric.min
    if metric.name == "latency":
        return None if metric.share is None else round(1 - metric.share, 12)
    return metric.max


def _shown(metric: Metric, bad_share: float) -> float:
    return round(1 - bad_share if metric.name == "accuracy" else bad_share, 6)


def _summary(
    metric: Metric, canary: Counter, stable: Counter | None, criteria: list[_Criterion], weight: int
) -> str:
    bad, _ = _BAD_AND_FAILURE[metric.name]
    text = f"{_count(canary)} {bad} on the canary at weight {weight}"
    if stable is not None and stable.total:
        text += f", {_count(stable)} on stable"
    for c in criteria:
        text += (
            f", {'difference' if c.versus_stable else 'share'} between {_percent(c.interval.lower)} and"
            f" {_percent(c.interval.upper)}"
        )
    return text


def _count(counter: Counter) -> str:
    share = f" ({_percent(counter.bad / counter.total)})" if counter.total else ""
    return f"{counter.bad:.0f} of {counter.total:.0f}{share}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _points(share: float) -> str:
    return f"{100 * share:.2g} percentage points"
