"""What keeps a revision from taking over from a dead stable until a person promotes it.

Freezes hold by themselves (``rollout.policy.freeze``), and a quarantined version never gets here.
"""

from __future__ import annotations

from collections.abc import Iterator

from modelrollout.analysis.judge import has_own_limit
from modelrollout.rollout import strategy
from modelrollout.rollout.policy.mandatory_metrics import first_weight, steps_of
from modelrollout.rollout.views import AtStep


def takeover_problem(s: AtStep) -> str | None:
    """The first demand that cannot be met without stable; None if the revision may take over. Going
    back by hand meets none.
    """
    return None if s.rollout.mode == "Rollback" else next(_demands(s), None)


def _demands(s: AtStep) -> Iterator[str]:
    for name, gates in s.rules.gates:
        if gates.dead_stable == "Forbid":
            yield f"RolloutPolicy {name} (gates.deadStable) forbids to promote without a comparison"
    if first_weight(s) is not None:
        for name, gates in s.rules.gates:
            compared = [m.name for m in gates.metrics or () if not m.dry_run and not has_own_limit(m)]
            if compared:
                text = f"RolloutPolicy {name} (gates.metrics) demands {', '.join(compared)}"
                yield f"{text}, which needs stable to compare with"
    golden, evidence = s.spec.rollout.analysis.golden, s.rollout.evaluation
    if golden is not None and golden.min is None and evidence is not None and evidence.stable is None:
        for name, gates in s.rules.gates:
            if gates.golden or gates.max_drop is not None:
                text = f"RolloutPolicy {name} (gates) demands golden data"
                yield f"{text}, which proves nothing without stable and without a min in spec"
    steps = steps_of(s)
    present = max(0, strategy.locate(steps, s.step).index)
    if any(step.pause is not None and step.pause.duration is None for step in steps[present:]):
        yield "spec.rollout has a pause that only a person ends"
