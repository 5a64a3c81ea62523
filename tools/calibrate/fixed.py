"""The best test of a size fixed beforehand: one look, at the number of samples that finds the
difference with 99 % at our error rate.

One-sided score test of two shares with pooled variance, alpha that of one metric of ours; the size
by the usual formula,

    n = ((z_a sqrt(V0) + z_b sqrt(V1)) / (p - q))^2,   V0 = r (1 - r) (1 + 1/k),   V1 = p (1 - p) +
    q (1 - q) / k,

with k samples of stable for each of the canary, r the share of both together. Its error rates are
then simulated like the others'.
"""

from __future__ import annotations

from math import ceil, sqrt
from statistics import NormalDist

import numpy as np

from calibrate.rules import ALPHA
from calibrate.scenarios import Stream

POWER = 0.99


def size(stream: Stream, weight: float) -> int:
    """Samples of the canary."""
    p, q, k = stream.canary, stream.stable, (1 - weight) / weight
    r = (p + k * q) / (1 + k)
    z = NormalDist().inv_cdf
    null, alternative = sqrt(r * (1 - r) * (1 + 1 / k)), sqrt(p * (1 - p) + q * (1 - q) / k)
    return ceil(((z(1 - ALPHA) * null + z(POWER) * alternative) / (p - q)) ** 2)


def rejects(
    rng: np.random.Generator, canary: float, stable: float, n: int, weight: float, rollouts: int
) -> float:
    """The share of rollouts that the test of this size takes back."""
    m = round(n * (1 - weight) / weight)
    bad, stable_bad = rng.binomial(n, canary, rollouts), rng.binomial(m, stable, rollouts)
    pooled = (bad + stable_bad) / (n + m)
    deviation = np.sqrt(np.maximum(pooled * (1 - pooled) * (1 / n + 1 / m), 1e-300))
    return float(np.mean((bad / n - stable_bad / m) / deviation > NormalDist().inv_cdf(1 - ALPHA)))
