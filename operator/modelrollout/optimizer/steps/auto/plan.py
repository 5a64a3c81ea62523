"""PURE: which candidate a search tries next, by what came of those before. Cheap and likely ones
come first, so that a short limit finds something.

The order depends on outcomes alone, never on a clock. Calibration methods are tried while int8
loses too much; pruning and distillation climb a ladder while the budget is kept, and what keeps it
is quantized as well. Unstructured pruning is not tried: the file stays as large and the model as
slow with ONNX Runtime, so that it could never be chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from modelrollout.contract.common import DataSet
from modelrollout.contract.steps import (
    DistillStep,
    GraphStep,
    HalfPrecisionStep,
    Int4Step,
    Int8Step,
    PruneStep,
    Step,
    Training,
)

Outcome = Literal["Within", "Beyond", "Refused"]  # keeps the budget, does not, could not be made

SOURCE = "source"  # the model that the search begins from

BARE_SPARSITIES = (0.1, 0.25, 0.5)  # without training, by which little can be pruned
SPARSITIES = (0.5, 0.7, 0.85, 0.95)
LOWER_SPARSITIES = (0.3, 0.15)
SIZES = (0.25, 0.1, 0.04)  # of students, as shares of the source's weights
LARGER_SIZES = (0.5,)


@dataclass(frozen=True)
class Means:
    """What there is to search with. ``training`` None: nothing that trains; ``sensitivity``: there
    is a maxDrop to leave operators out by.
    """

    calibration: DataSet
    training: Training | None = None
    int4: bool = False
    sensitivity: bool = False


@dataclass(frozen=True)
class Candidate:
    """One more ``step`` on the result of ``base``."""

    name: str
    step: Step
    base: str = SOURCE


def next_candidate(means: Means, outcomes: Mapping[str, Outcome]) -> Candidate | None:
    """The first that has no outcome yet; None: all is tried. The base of what is returned is the
    source or has the outcome Within.
    """
    return next(
        (candidate for candidate in _in_order(means, outcomes) if candidate.name not in outcomes), None
    )


def _in_order(means: Means, outcomes: Mapping[str, Outcome]) -> Iterator[Candidate]:
    """All candidates that the outcomes so far call for; what follows one without an outcome is not
    meant yet.
    """
    yield Candidate("graph", GraphStep())
    int8 = {
        "int8": Int8Step(method="Static", calibration=means.calibration),
        "int8-percentile": Int8Step(
            method="Static", calibration=means.calibration, calibration_method="Percentile"
        ),
        "int8-entropy": Int8Step(
            method="Static", calibration=means.calibration, calibration_method="Entropy"
        ),
    }
    if means.sensitivity:
        int8["int8-sensitivity"] = Int8Step(
            method="Static", calibration=means.calibration, leave_out="BySensitivity"
        )
    for name, step in int8.items():
        yield Candidate(name, step)
        if outcomes.get(name) != "Beyond":
            break
    int8["int8-dynamic"] = Int8Step(method="Dynamic")
    yield Candidate("int8-dynamic", int8["int8-dynamic"])
    yield Candidate("float16", HalfPrecisionStep())
    if outcomes.get("float16") != "Within":
        yield Candidate("bfloat16", HalfPrecisionStep(type="BFloat16"))
    if means.int4:
        yield Candidate("int4", Int4Step())
        if outcomes.get("int4") == "Within":
            yield Candidate("int4-128", Int4Step(block_size=128))
    best = next((name for name in int8 if outcomes.get(name) == "Within"), "int8")
    # On top of what has fewer weights: the next where the one before does not keep the budget.
    smaller: dict[str, Step] = {name: int8[name] for name in (best, "int8-sensitivity") if name in int8}
    smaller["float16"] = HalfPrecisionStep()

    def quantized(base: str) -> Iterator[Candidate]:
        for name, step in smaller.items():
            yield Candidate(f"{base}+{name}", step, base)
            if outcomes.get(f"{base}+{name}") == "Within":
                return

    def pruned(sparsity: float, importance: Literal["Magnitude", "Activation"] = "Magnitude") -> Candidate:
        name = f"prune-{sparsity:g}{'' if importance == 'Magnitude' else '-activation'}"
        return Candidate(name, PruneStep(sparsity=sparsity, importance=importance, training=means.training))

    def ladder(rungs: list[list[Candidate]]) -> Iterator[Candidate]:
        """Up to the first rung none of whose candidates keeps the budget; of a rung, the next where
        the one before loses too much.
        """
        for rung in rungs:
            for candidate in rung:
                yield candidate
                if outcomes.get(candidate.name) != "Beyond":
                    break
            passed = next((c.name for c in rung if outcomes.get(c.name) == "Within"), None)
            if passed is None:
                return
            yield from quantized(passed)

    def fallback(first: list[Candidate], easier: list[Candidate]) -> Iterator[Candidate]:
        """Easier ones, until one keeps the budget, where the first rung lost too much."""
        results = [outcomes.get(c.name) for c in first]
        if "Beyond" in results and "Within" not in results:
            for candidate in easier:
                yield candidate
                if outcomes.get(candidate.name) == "Within":
                    yield from quantized(candidate.name)
                    return

    if means.training is None:
        yield from ladder([[pruned(s)] for s in BARE_SPARSITIES])
        return
    rungs = [[pruned(s), pruned(s, "Activation")] for s in SPARSITIES]
    yield from ladder(rungs)
    yield from fallback(rungs[0], [pruned(s) for s in LOWER_SPARSITIES])
    students = [[_student(size, means.training)] for size in SIZES]
    yield from ladder(students)
    yield from fallback(students[0], [_student(size, means.training) for size in LARGER_SIZES])


def _student(size: float, training: Training) -> Candidate:
    return Candidate(f"distill-{size:g}", DistillStep(size=size, training=training))
