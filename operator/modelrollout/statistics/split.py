"""Whether a gateway splits requests as it was told to: evidence that is valid however often it is
read.

Each request goes to the canary with a probability of its weight, or backends are dealt in turns,
which is less random. The hypothesis is that the canary's odds lie within ``TIMES`` those of its
weight, both ways, so that an honest split is well inside of it and only what comes near to all or
nothing is refuted. Each direction is one bet (``sequential.share_log_evidence``), exact and valid
at every look.

**Lag.** A gateway that has accepted a new weight may go on for some seconds with the former one, of
which nothing is known. So as many requests as may come in ``LAG_SECONDS`` are left out, of the side
that would be evidence: their mean, and three standard deviations of a Poisson number.
"""

from __future__ import annotations

from math import log

from modelrollout.statistics.elementwise import N, functions_of
from modelrollout.statistics.sequential import share_log_evidence

TIMES = 3.0
LAG_SECONDS = 5.0
LEAST, MOST = 5, 95  # weights, percent: beyond them honest splits take too long to tell
ENOUGH = -log(1e-3 / 2)  # nats of evidence for a proof; two directions


def split_log_evidence(canary: N, stable: N, weight: int, seconds: N) -> N:
    """Natural logarithm of the e-value against a split by ``weight`` (percent, LEAST to MOST).

    ``canary``, ``stable``: requests that were counted in ``seconds`` at this weight; numbers, or
    arrays of any one shape, as is the answer.
    """
    xp = functions_of(canary)
    odds = weight / (100 - weight)
    lag = LAG_SECONDS * (canary + stable) / xp.maximum(seconds, LAG_SECONDS)
    lag = lag + 3 * xp.sqrt(lag)
    fewer_stable, fewer_canary = xp.maximum(stable - lag, 0.0), xp.maximum(canary - lag, 0.0)
    too_few = share_log_evidence(fewer_stable, canary + fewer_stable, 1 / (1 + odds / TIMES))
    too_many = share_log_evidence(fewer_canary, fewer_canary + stable, TIMES * odds / (1 + TIMES * odds))
    return xp.maximum(too_few, too_many)
