"""The table of all steps: one line each.

The module is imported when the step is used, and its ``STEP`` is the StepDefinition: most steps
need none of the heavy libraries, and each image has only its own.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from modelrollout.contract.steps import StepBase
from modelrollout.optimizer.steps.definition import StepDefinition

_PACKAGE = "modelrollout.optimizer.steps"

MODULES: dict[str, str] = {  # by the field of spec.optimization.steps[], which is Step.kind
    "int8": f"{_PACKAGE}.int8",
    "prune": f"{_PACKAGE}.prune",
    "distill": f"{_PACKAGE}.distill",
    "halfPrecision": f"{_PACKAGE}.half_precision",
    "int4": f"{_PACKAGE}.int4",
    "graph": f"{_PACKAGE}.graph",
    "container": f"{_PACKAGE}.container",
    "auto": f"{_PACKAGE}.auto.auto",
}


def definition_of(step: StepBase) -> StepDefinition[Any]:
    """How the pipeline carries out ``step``."""
    step_definition: StepDefinition[Any] = import_module(MODULES[step.kind]).STEP
    return step_definition
