"""Requests that fail together (one bad client, one lost node) are less evidence than their number.
The variation between looks says by how much.

Independent requests vary from look to look as a binomial does. With n requests in a look and x of
them bad, the difference of the shares of one look and the one before has the variance p (1 - p)
(1/n + 1/n'). What the differences show more than that is the dispersion (the design effect of
sampling theory, the variance factor of quasi-likelihood; von Neumann 1941 for successive
differences). Counts are divided by it before they are judged. It is measured on stable: a canary
that starts to fail would look like one large cluster. The differences are successive ones, and not
from the mean, because the course of a day is no dispersion. A look is a minute here, so clusters
that last longer stay hidden. A step starts with the spread of stable in the hour before it, because
its own first minutes show next to nothing. Requests that fail together, but that a gateway deals to
the two sides one by one, need none of this: the evidence holds for them (``sequential``). It is for
whole clusters on one side: sticky sessions, gRPC connections, one node.

**Until stable is known** its looks cannot show what happens a few times an hour, a pod that fails
for half a minute. The canary may be the first to have it, with a chance that no number of its
requests tells. So until stable has ``KNOWN_AFTER`` differences of looks, a proof divides the counts
by the larger dispersion of the two sides, and does not come before the canary has been seen in
three looks: a regression lasts, and hardly disperses the canary's looks; an episode does. A canary
that has failed nearly all of its requests since counting began is not waited for (``lasting``), and
from its third look on its own looks alone say how its failures come together: no episode of a pod
lasts for minutes.

**Where stable has episodes**, its dispersion is that of whole minutes, and a canary that fails a
tenth of its requests all the time would hide in it. Its own looks tell the two apart: a proof takes
their dispersion, and waits for the third look as well.
"""

from __future__ import annotations

from typing import Any, Generic, NamedTuple

from modelrollout.statistics.elementwise import N, functions_of

# standard errors above 1; less counts as chance, as dividing by it would only cost evidence
_CLEARLY = 1.5
# differences between minutes: half an hour. What comes to each of five pods every 20 minutes comes
# to the canary's alone in so long a time with probability e^-6 / 5
KNOWN_AFTER = 30
_BEFORE_THE_FIRST = 2.0  # added to the divisor before the first bad request of stable
_LASTS_AFTER = 2  # differences of the canary's looks: the third look has begun
# a dispersion above this shows whole pods that fail for a while, not clients
_EPISODES = 20.0
# times the canary's own dispersion, and at least: an episode between two looks shows half in each
_BETWEEN_EPISODES, _AT_LEAST = 2.0, 4.0
_BROKEN, _BROKEN_SECONDS = 0.9, 20.0  # of all requests since counting began, so long ago at least


class Spread(NamedTuple, Generic[N]):
    """How the bad share of one side varies from look to look: the last look with requests, the
    number of differences, the sum of their squares, and the requests of all looks.

    Each square is divided by 1/n + 1/n', so that one of independent requests is p (1 - p) on
    average.
    """

    total: N
    bad: N
    differences: N
    squares: N
    all_total: N
    all_bad: N


def widened(spread: Spread[N], total: N, bad: N) -> Spread[N]:
    """The spread with one more look of ``total`` requests, ``bad`` of them bad; a look without
    requests changes nothing.
    """
    xp = functions_of(total)
    n, before = xp.maximum(total, 1.0), xp.maximum(spread.total, 1.0)
    change = bad / n - spread.bad / before
    new = total > 0
    both = new & (spread.total > 0)
    return Spread(
        xp.where(new, total, spread.total),
        xp.where(new, bad, spread.bad),
        xp.where(both, spread.differences + 1, spread.differences),
        xp.where(both, spread.squares + change * change * n * before / (n + before), spread.squares),
        spread.all_total + total,
        spread.all_bad + bad,
    )


def dispersion(spread: Spread[N], *, at_once: bool = False) -> N:
    """The divisor of counts, from the looks at one side. At least 1 + 1 / (1 + J)^2 for J
    differences of looks, so that counts weigh half in the first minute, when nothing is known of
    their spread; more where the looks clearly show it, and then a standard error more than they
    show, because too small a divisor is a false alarm. ``at_once``: what they show, clearly or not.

    Only good or only bad requests say nothing. Squared standard error: 3 / J + 1 / bad.
    """
    total, bad = spread.all_total, spread.all_bad
    xp = functions_of(total)
    share = bad / xp.maximum(total, 1.0)
    expected = share * (1 - share)
    looks = spread.differences
    j = xp.maximum(looks, 1.0)
    ratio = spread.squares / xp.maximum(expected, 1e-12) / j
    error = xp.sqrt(3 / j + 1 / xp.maximum(xp.minimum(bad, total - bad), 1.0))
    chance, shown = (1.0, ratio) if at_once else (1 + _CLEARLY * error, ratio * (1 + error))
    return xp.maximum(
        xp.where((expected > 0) & (looks > 0) & (ratio > chance), shown, total * 0.0),
        1 + 1 / ((1 + looks) * (1 + looks)),
    )


def divisor(stable: Spread[N], canary: Spread[N]) -> N:
    """The divisor of the counts of both sides for a proof against the canary: stable's dispersion;
    until stable is known the larger of the two, and more before its first bad requests; where
    stable has episodes, what the canary's own looks show.
    """
    usual, own = dispersion(stable), dispersion(canary, at_once=True)
    xp = functions_of(usual)
    either = xp.maximum(xp.maximum(usual, dispersion(stable, at_once=True)), own)
    unknown = xp.maximum(either, 1 + _BEFORE_THE_FIRST / (1 + stable.all_bad))
    episodes = xp.minimum(usual, xp.maximum(_BETWEEN_EPISODES * own, _AT_LEAST))
    # a short past of stable with one burst in it must not hide a canary that fails all the time
    all_along = (canary.differences >= _LASTS_AFTER) & (canary.all_bad >= _BROKEN * canary.all_total)
    unknown = xp.where(
        all_along, xp.minimum(unknown, xp.maximum(_BETWEEN_EPISODES * own, _AT_LEAST)), unknown
    )
    return xp.where(is_known(stable), xp.where(usual > _EPISODES, episodes, usual), unknown)


def lasting(stable: Spread[N], canary: Spread[N], bad: N, total: N, seconds: float) -> Any:
    """Whether what the canary shows may be more than one episode, so that it can be a proof.
    ``bad`` of ``total`` in so many seconds.
    """
    known = is_known(stable)
    broken = (stable.differences < KNOWN_AFTER) & (bad >= _BROKEN * total) & (seconds >= _BROKEN_SECONDS)
    return (known & (dispersion(stable) <= _EPISODES)) | (canary.differences >= _LASTS_AFTER) | broken


def is_known(stable: Spread[N]) -> Any:
    """Whether the looks at stable show what happens a few times an hour."""
    return stable.differences >= KNOWN_AFTER
