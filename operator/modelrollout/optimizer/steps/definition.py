"""What the pipeline has to know about a kind of step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from modelrollout.contract.steps import StepBase
from modelrollout.optimizer.steps.context import StepContext

S = TypeVar("S", bound=StepBase)


def _no_distributions(_: StepBase) -> tuple[str, ...]:
    return ()


def _reads_weights_from_the_file(_: StepBase) -> float:
    return 0.0


def _any_options(_step: StepBase, _field: str) -> None:
    """Nothing to check."""


def _always(_step: StepBase, _data: str, _present: bool) -> bool:
    return True


@dataclass(frozen=True)
class StepDefinition(Generic[S]):
    """A kind of step.

    ``run`` reads ``StepContext.source``, writes ``StepContext.target`` (or leaves the model as it
    is, and writes nothing), and returns what it did, as JSON for the report. Raises JobError.
    """

    run: Callable[[S, StepContext], dict[str, Any]]
    # Raises JobError where the options of a step (whose field is given) do not fit together; called
    # before anything is fetched.
    check_options: Callable[[S, str], None] = _any_options
    # Distributions that shape the result: their versions take part in the artifact's key. Those of
    # ``distributions`` must be installed (else ToolMissing); of ``optional_distributions`` a step
    # uses what the image has.
    distributions: Callable[[S], tuple[str, ...]] = _no_distributions
    optional_distributions: Callable[[S], tuple[str, ...]] = _no_distributions
    # Memory that the step takes at least, in sizes of the model: what ``python -m bench.large``
    # measured, rounded down. Zero: it reads weights from the file as it needs them.
    memory_factor: Callable[[S], float] = _reads_weights_from_the_file
    # Whether the step uses the labels of its data set (named as in ``StepBase.sources``), given
    # whether the archive has them. Where it does, they are checked.
    uses_labels: Callable[[S, str, bool], bool] = _always
    # Data sets on which the step chooses by the gate's metrics. They are checked like the gate's
    # held-out data, and must not be it.
    selects_on: tuple[str, ...] = ()
