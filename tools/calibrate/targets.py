"""What the figures are to be, and whether they are."""

from __future__ import annotations

from collections.abc import Mapping

from calibrate.rules import ALPHA
from calibrate.scenarios import RATES, RESETS, SCENARIOS

# false rollbacks at most, where the budget of the metrics cannot be promised
_FALSE_ROLLBACKS = {
    "failing_pods": 0.02,
    "failing_pods_new": 0.05,
    "clustered_sticky_new": 0.02,
    "cold_pods": 0.01,
}
# samples at most, in those of the test that knows the regression, at the highest rate
_SAMPLES = {"errors_1_to_2": 1.25, "errors_x10": 1.8}
_SHOWN_ONLY = "cold_pods_no_delay"  # what the initial delay is for


def lines(values: Mapping[str, float]) -> list[str]:
    """A line for each target whose figures are there."""
    limits = {s.name: ALPHA * len(s.streams) for s in SCENARIOS if s.harmless and s.name != _SHOWN_ONLY}
    limits |= {RESETS: ALPHA} | _FALSE_ROLLBACKS
    checks = [
        (f"ours.{name}.{rate}.false_rollback_rate", limit) for name, limit in limits.items() for rate in RATES
    ]
    compared = [(f"{name}.{max(RATES)}.samples", most) for name, most in _SAMPLES.items()]
    shown = [(name, values[name], most) for name, most in checks if name in values]
    shown += [
        (f"ours.{name} / best", values[f"ours.{name}"] / values[f"best.{name}"], most)
        for name, most in compared
        if f"best.{name}" in values
    ]
    return [
        f"# {name}: {value:.4g}, at most {most:.3g}: {'reached' if value <= most else 'not reached'}"
        for name, value, most in shown
    ]
