"""Whether a new version has the same input and output tensors as stable, whose clients it gets."""

from __future__ import annotations

from modelrollout.api.v1alpha1 import Interface
from modelrollout.problem import Problem
from modelrollout.reasons import Reason
from modelrollout.rollout.snapshot import Observed, baseline

REASON = Reason.SIGNATURE_CHANGED
_SHOWN = 8  # changes that a message lists


def interface_change(s: Observed, new: Interface | None) -> Problem | None:
    """Why clients of stable cannot use the new interface; None if it is the same, if spec allows
    the change, or if either one is unknown.
    """
    old = served_interface(s)
    if old is None or new is None or old.digest == new.digest or is_declared(s, REASON):
        return None
    differences = changes(old, new)
    shown = "; ".join(differences[:_SHOWN])
    if len(differences) > _SHOWN:
        shown += f"; and {len(differences) - _SHOWN} more"
    text = (
        f"{shown}. Clients of the stable revision would fail: keep inputs and outputs, or set"
        " spec.model.interfaceChange: Allowed"
    )
    return Problem(REASON, text)


def served_interface(s: Observed) -> Interface | None:
    """Interface of the stable revision; None if there is none, or if an operator that recorded no
    interfaces prepared it.
    """
    stable = baseline(s)
    revision = s.revision(stable.revision) if stable else None
    return revision.status.artifact.interface if revision and revision.status.artifact else None


def is_declared(s: Observed, reason: str | None) -> bool:
    """Whether spec now allows the change that a version was refused for."""
    return reason == REASON and s.spec is not None and s.spec.model.interface_change == "Allowed"


def changes(old: Interface, new: Interface) -> list[str]:
    """The differences, tensor by tensor; only numbers of tensors if an interface is too large to be
    recorded. A dynamic dimension (n) that becomes fixed is a difference.
    """
    if old.inputs is None or old.outputs is None or new.inputs is None or new.outputs is None:
        return [f"inputs or outputs changed: {_counts(old)} before, {_counts(new)} now"]
    differences: list[str] = []
    for what, before, after in (("input", old.inputs, new.inputs), ("output", old.outputs, new.outputs)):
        differences += [
            f"{what} {name} ({before[name]}) is gone" for name in sorted(before.keys() - after.keys())
        ]
        differences += [
            f"{what} {name} ({after[name]}) is new" for name in sorted(after.keys() - before.keys())
        ]
        differences += [
            f"{what} {n} was {before[n]} and is {after[n]}"
            for n in sorted(before.keys() & after.keys())
            if before[n] != after[n]
        ]
    return differences


def _counts(interface: Interface) -> str:
    inputs, outputs = interface.counts or [len(interface.inputs or ()), len(interface.outputs or ())]
    return f"{inputs} inputs and {outputs} outputs"
