"""Distributions that a step needs and not every image has, and the versions that shape its
result.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from modelrollout.contract.steps import StepBase
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.steps.registry import definition_of
from modelrollout.reasons import Reason

TRAINING = ("jax", "jaxlib", "optax")
INT4 = ("onnx_ir",)


def installed(*distributions: str) -> bool:
    """Whether this image has all of them."""
    try:
        for name in distributions:
            version(name)
    except PackageNotFoundError:
        return False
    return True


def versions_of(step: StepBase, field: str) -> dict[str, str]:
    """Versions of what shapes this step's result, besides what shapes that of every Job. Raises
    JobError: ToolMissing.
    """
    definition = definition_of(step)
    try:
        needed = {name: version(name) for name in definition.distributions(step)}
    except PackageNotFoundError as error:
        raise bad_input(
            Reason.TOOL_MISSING,
            f"{field}: this image has no {error.name}; the step needs the image that trains (trainer.image in"
            " the chart's values)",
        ) from None
    return needed | {
        name: version(name) for name in definition.optional_distributions(step) if installed(name)
    }
