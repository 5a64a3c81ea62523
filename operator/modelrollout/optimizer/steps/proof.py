"""Every step's result is asked what the model before it was asked, and its answers are compared."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.model.agreement import far_from
from modelrollout.optimizer.model.data import Arrays, Data, requests
from modelrollout.optimizer.model.half import open_judged
from modelrollout.optimizer.model.made_up import made_up_requests
from modelrollout.optimizer.model.runtime import BATCH_ROWS, answer, ask, open_session
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.reasons import Reason
from modelrollout.triton.tensors import TensorSpec

REQUESTS = 2  # of the user's data
# Largest relative error of an output of a step that changes numbers, where no gate decides.
LIMITS = {"int8": 0.2, "int4": 0.2, "halfPrecision": 0.1, "prune": 0.2}


class Probe(NamedTuple):
    """Requests that the model answers; none where nothing was found that it does."""

    requests: tuple[Arrays, ...]
    made_up: bool


def probe_of(model: Path, specs: Sequence[TensorSpec], data: Mapping[str, Data], field: str) -> Probe:
    """Some of the first data set, else made-up inputs."""
    session = open_session(model, field)
    for one in data.values():
        some = tuple(r.arrays for r in islice(requests(one.inputs, specs, BATCH_ROWS, field), REQUESTS))
        if answered := tuple(r for r in some if answer(session, r) is not None):
            return Probe(answered, False)
    for rows in (3, 1):
        if made := tuple(made_up_requests(session, model, rows=rows)):
            return Probe(made, True)
    return Probe((), True)


def agreement_of(kind: str, work: StepContext, *, trained: bool) -> float | None:
    """The largest relative error of an output of the step's result; None where it cannot be said:
    nothing was asked, or the model before gives other answers to the same question.

    Raises JobError: InferenceFailed where the result does not answer, AnswersDiffer where it is too
    far off, and no gate will judge it.
    """
    if not work.probe:
        return None
    # one after the other: each holds the weights
    session = open_judged(work.source, "the model before")
    expected = [(answer(session, request), answer(session, request)) for request in work.probe]
    del session
    session = open_judged(work.target, "it")
    worst = 0.0
    for request, (once, again) in zip(work.probe, expected, strict=True):
        if once is None or again is None:
            continue
        answers = ask(session, None, request, "it")
        if far_from(once, again) > 0:  # it draws random numbers
            return None
        worst = max(worst, far_from(once, answers))
    limit = LIMITS.get(kind)
    if work.gate is None and limit is not None and worst > limit and not trained:
        far = f"up to {worst:.2g} of its size" if math.isfinite(worst) else "by NaN, Inf, or another shape"
        on = "made-up inputs" if work.made_up else "the step's own data"
        raise bad_input(
            Reason.ANSWERS_DIFFER,
            f"{work.field}: on {on} an output differs {far} from the model before (more than {limit:g}); give"
            " spec.optimization.gate: {data: {uri: ...}} with inputs like those of production, and budgets"
            " that decide, or remove the step",
        )
    return worst


def finite_figure(error: float | None) -> float | None:
    """For the report: three digits; None for what is no number in JSON."""
    return float(f"{error:.3g}") if error is not None and math.isfinite(error) else None


def expect_answers(kind: str, work: StepContext, *, trained: bool) -> dict[str, float | None]:
    """The step's entry in the report; raises JobError as ``agreement_of``."""
    return {"relativeError": finite_figure(agreement_of(kind, work, trained=trained))}
