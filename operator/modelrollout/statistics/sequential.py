"""Evidence on two shares of bad requests, valid however often it is read: tests by betting, and
intervals by inverting them.

**One bet.** To test "the canary's share of bad requests exceeds the other's by at most d", choose a
centre (p, q) with p - q = d and a stake s > 0. Every request multiplies the wealth, which starts at
1, by

    1 + s (bad - p) / w       for a request of the canary, which gets the share w of all requests,
    1 - s (bad - q) / (1 - w) for one of the other.

A request is the canary's with probability w, so the expected factor is 1 + s (p' - q' - d) for true
shares p' and q', which is at most 1 while the hypothesis holds, even where both shares change with
time. (Where a balancer deals requests in turns instead, blocks of the ratio w : 1 - w have the same
bound, by the inequality of arithmetic and geometric means.) So the wealth is a test
supermartingale, and by Ville's inequality it ever reaches 1 / alpha with probability alpha at most.
It depends on the four counts only. For d = 0 it is the likelihood ratio of Turner, Ly and Grünwald,
"Generic e-variables for exact sequential k-sample tests that allow for optional stopping" (Journal
of Statistical Planning and Inference 230, 2024); for rare bad requests it becomes the test of
Lindon and Malek, "Anytime-valid inference for multinomial count data" (NeurIPS 2022): whose are the
bad ones?

**The bets.** How much worse the canary is is not known, so the wealth is spread over stakes that
are best for risk ratios of 1.03 to 50 times what the hypothesis allows, most of it around 2: a
mixture of test supermartingales is one. It costs 1 to 2 nats against knowing the ratio.

**What is approximate.** Centre and w are taken from the pooled counts of the moment instead of
being fixed beforehand, so the wealth is exact for constant ones only. ``make calibrate`` and
tests/unit/statistics/test_sequential.py hold the false alarms by simulation
(docs/explanation/calibration.md).

``share_log_evidence`` needs no approximation: there the hypothesis names the centre, and there is
one stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import hypot, log, sqrt
from typing import NamedTuple

from modelrollout.statistics.elementwise import N, functions_of, log_sum_exp

PRECISION = 2e-5  # absolute, of a limit of an interval; limits are rounded outwards
_FIRST = 0.8  # of a rollout's wealth is bet on a regression that begins with the first step
_MOST = 0.95  # of the wealth is lost with one request at most
# nats: about what the mixture has lost against the estimate itself; the search of a limit starts
# from it
_AT_ESTIMATE = 2.0
_FEW = 1e-9  # stands for no request at all: no evidence, and no division by 0


def _bets() -> tuple[tuple[float, float], ...]:
    """(relative excess of the risk ratio, log of the share of the wealth): geometric; weights of
    Student's t with two degrees of freedom in the logarithm, around a doubling.
    """
    excesses = [0.03 * 1.7**j for j in range(15)]
    weights = [(1 + log(g) ** 2) ** -1.5 for g in excesses]
    return tuple((g, log(w / sum(weights))) for g, w in zip(excesses, weights, strict=True))


_BETS = _bets()


class Interval(NamedTuple):
    """Closed interval of a share in [0, 1], or of a difference of shares in [-1, 1]."""

    lower: float
    upper: float


def log_evidence(bad: N, total: N, other_bad: N, other_total: N, difference: float) -> N:
    """Natural logarithm of the e-value against "the share of ``bad`` exceeds the other's by at most
    ``difference``", in (-1, 1).

    Counts of any one shape, or numbers; they need not be whole. At least log(1 / alpha) at any one
    of any number of looks: refuted at level alpha. For "falls short of it by at most" swap the two
    sides and the sign of the difference.
    """
    xp = functions_of(total)
    n, m = xp.maximum(total, _FEW), xp.maximum(other_total, _FEW)
    w = n / (n + m)
    rest = m / (n + m)
    q = xp.minimum(
        xp.maximum((bad + other_bad) / (n + m) - w * difference, max(0.0, -difference)),
        min(1.0, 1.0 - difference),
    )
    p = q + difference
    return _wealth(
        (bad, total - bad, other_bad, other_total - other_bad), ((1 - p) / w, p / w, (1 - q) / rest, q / rest)
    )


def share_log_evidence(bad: N, total: N, share: float) -> N:
    """Natural logarithm of the e-value against "the share of ``bad`` is at most ``share``"; exact.
    For "at least" count the good ones.
    """
    nothing = total * 0.0
    return _wealth(
        (bad, total - bad, nothing, nothing), (nothing + (1 - share), nothing + share, nothing, nothing)
    )


def _wealth(counts: tuple[N, N, N, N], gains: tuple[N, N, N, N]) -> N:
    """Logarithm of the mixture. Gains and losses by a stake of 1: canary bad (+), canary good (-),
    other bad (-), other good (+).
    """
    xp = functions_of(counts[0])
    bad, good, other_bad, other_good = counts
    up, down, other_down, other_up = gains
    most = _MOST / xp.maximum(xp.maximum(down, other_down), _FEW)
    logs = []
    for excess, share in _BETS:
        s = xp.minimum(most, excess / xp.maximum(up + (1 + excess) * other_down, _FEW))
        logs.append(
            share
            + bad * xp.log1p(s * up)
            + good * xp.log1p(-s * down)
            + other_bad * xp.log1p(-s * other_down)
            + other_good * xp.log1p(s * other_up)
        )
    return log_sum_exp(logs)


def over_steps(current: N, carried: Sequence[N]) -> N:
    """Evidence of a rollout against "never worse": log e-value of the present step and of the ones
    before it, in order.

    A regression may begin with any step k, because another weight is another load: the wealth is
    spread over k, each part is invested from step k on, and waits until then at 1. So it is an
    e-process of the whole rollout however many steps there are, and a good step takes nothing from
    the parts that later steps begin. Most regressions show from the start: the first step has 0.8
    of it, which costs 0.2 nats, the others share the rest as 1 / (k (k - 1)).
    """
    k = len(carried) + 1
    # first, what waits for later steps: the rest of the sum
    since, parts = current, [current * 0.0 + log((1 - _FIRST) / k), current + _log_share(k)]
    for k in range(len(carried), 0, -1):
        since = since + carried[k - 1]
        parts.append(since + _log_share(k))
    return log_sum_exp(parts)


def _log_share(k: int) -> float:
    return log(_FIRST if k == 1 else (1 - _FIRST) / (k * (k - 1)))


def difference_interval(
    bad: float, total: float, other_bad: float, other_total: float, alpha: float
) -> Interval:
    """Confidence sequence of the difference of the shares, ``alpha`` on each side; [-1, 1] while
    one of the two has seen nothing.
    """
    _check(bad, total, alpha)
    _check(other_bad, other_total, alpha)
    if total == 0 or other_total == 0:
        return Interval(-1.0, 1.0)
    estimate = bad / total - other_bad / other_total
    reach = hypot(_reach(bad, total, alpha), _reach(other_bad, other_total, alpha))
    lower = _limit(
        lambda d: log_evidence(bad, total, other_bad, other_total, d), alpha, estimate, reach, -1.0
    )
    upper = -_limit(
        lambda d: log_evidence(other_bad, other_total, bad, total, d), alpha, -estimate, reach, -1.0
    )
    return Interval(lower, upper)


def share_interval(bad: float, total: float, alpha: float) -> Interval:
    """Confidence sequence of the share of ``bad`` in ``total``, ``alpha`` on each side; [0, 1]
    before the first trial. Exact.
    """
    _check(bad, total, alpha)
    if total == 0:
        return Interval(0.0, 1.0)
    reach = _reach(bad, total, alpha)
    lower = _limit(lambda p: share_log_evidence(bad, total, p), alpha, bad / total, reach, 0.0)
    upper = 1 - _limit(
        lambda p: share_log_evidence(total - bad, total, p), alpha, 1 - bad / total, reach, 0.0
    )
    return Interval(lower, upper)


def _check(bad: float, total: float, alpha: float) -> None:
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    if not 0 <= bad <= total:
        raise ValueError(f"{bad} bad of {total} is no share")


def _reach(bad: float, total: float, alpha: float) -> float:
    """About how far the limit is from the share: where the search begins."""
    share = (bad + 1) / (total + 2)
    return sqrt(2 * (log(1 / alpha) + 1.5) * share * (1 - share) / total)


def _limit(
    evidence: Callable[[float], float], alpha: float, estimate: float, reach: float, end: float
) -> float:
    """The lower limit: between ``end`` and the estimate, the value against which there is just
    enough evidence, from its refuted side.

    Regula falsi (Illinois) on the root of the evidence, which is nearly linear in the distance from
    the estimate.
    """

    def excess(value: float) -> float:
        return sqrt(max(0.0, evidence(value) + _AT_ESTIMATE)) - sqrt(log(1 / alpha) + _AT_ESTIMATE)

    inside, f_inside = estimate, -sqrt(log(1 / alpha) + _AT_ESTIMATE)
    outside = max(end, estimate - reach)
    while (f_outside := excess(outside)) < 0:
        if outside <= end:
            return end
        inside, f_inside, reach = outside, f_outside, 2 * reach
        outside = max(end, estimate - reach)
    last = 0
    while inside - outside > PRECISION:
        middle = outside + (inside - outside) * f_outside / (f_outside - f_inside)
        middle = min(max(middle, outside + PRECISION / 2), inside - PRECISION / 2)
        f = excess(middle)
        if f >= 0:
            outside, f_outside = middle, f
            f_inside, last = (f_inside / 2 if last == 1 else f_inside), 1
        else:
            inside, f_inside = middle, f
            f_outside, last = (f_outside / 2 if last == -1 else f_outside), -1
    return outside
