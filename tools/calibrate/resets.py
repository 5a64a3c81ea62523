"""Counters that restart, vanish and are not scraped, counted with the operator's own
``counters.fold``, look by look and rollout by rollout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrate.rules import ALPHA, evidence_of
from calibrate.scenarios import IN_TIME, LOOK, Counts
from modelrollout.analysis.counters import Raw, Sample, fold, spread_of
from modelrollout.api.v1alpha1 import Counter
from modelrollout.rollout.stages.judging import REWRITE_SECONDS
from modelrollout.statistics.dispersion import Spread
from modelrollout.statistics.sequential import over_steps

SHARE, WEIGHT = 0.01, 0.2
INSTANCES = ("gateway-a", "gateway-b")
# a look, an instance; an outage of Prometheus begins with a look and lasts a minute
RESTART, UNSCRAPED, OUTAGE = 1 / 100, 1 / 10, 1 / 60
_FIELDS = 16  # bad and total of both sides, spreads of stable and canary


@dataclass
class _Instance:
    """True counters of one gateway instance for canary and stable: [total, bad] each; and what
    Prometheus last scraped.
    """

    true: list[float]
    scraped: list[float]
    at: float = 0.0


def false_rollbacks(rng: np.random.Generator, rate: float, rollouts: int) -> float:
    """The share of harmless rollouts taken back within 15 minutes, errors only."""
    looks = IN_TIME // LOOK
    table = np.zeros((looks, _FIELDS, rollouts))
    for rollout in range(rollouts):
        table[:, :, rollout] = _one(rng, rate, looks)
    back = np.zeros(rollouts, dtype=np.bool_)
    for c in table:
        evidence = evidence_of(Counts(c[0], c[1], c[2], c[3]), Spread(*c[4:10]), Spread(*c[10:16]))
        back |= over_steps(evidence, ()) >= -np.log(ALPHA)
    return float(np.mean(back))


def _one(rng: np.random.Generator, rate: float, looks: int) -> list[list[float]]:
    """Bad and total of canary and stable, and the spreads of stable and canary, at every look of
    one rollout.
    """
    share = np.array([WEIGHT, 1 - WEIGHT]) * rate * LOOK / len(INSTANCES)
    good = rng.poisson(share * (1 - SHARE), (looks, len(INSTANCES), 2)).tolist()
    bad = rng.poisson(share * SHARE, (looks, len(INSTANCES), 2)).tolist()
    chance = rng.random((looks, len(INSTANCES), 2)).tolist()
    outage = (rng.random(looks) < OUTAGE).tolist()
    # they served long before the step
    state = {name: _Instance([1000.0, 10.0] * 2, [1000.0, 10.0] * 2) for name in INSTANCES}
    written: list[Counter | None] = [None, None]
    shown: list[Counter] = [Counter(), Counter()]
    rows, dark = [], 0
    for look in range(looks):
        dark = round(REWRITE_SECONDS) // LOOK if outage[look] else max(0, dark - 1)
        for i, one in enumerate(state.values()):
            if chance[look][i][0] < RESTART:
                one.true = [0.0] * 4
            for side in (0, 1):
                one.true[2 * side] += good[look][i][side] + bad[look][i][side]
                one.true[2 * side + 1] += bad[look][i][side]
            if chance[look][i][1] >= UNSCRAPED:
                one.scraped, one.at = list(one.true), 1.0 + look
        for side in (0, 1):
            if not dark:
                raw = Raw(
                    {
                        name: Sample(one.scraped[2 * side], one.scraped[2 * side + 1], one.at)
                        for name, one in state.items()
                        if one.at
                    }
                )
                shown[side] = fold(written[side], raw)
                if written[side] is None or (look + 1) * LOOK % REWRITE_SECONDS == 0:
                    written[side] = shown[side]
        canary, stable = shown
        rows.append(
            [canary.bad, canary.total, stable.bad, stable.total, *spread_of(stable), *spread_of(canary)]
        )
    return rows
