"""The report of a preparation, and the summary of it that the Job hands back.

The report holds no times and no names of places, so that equal work gives equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from modelrollout.api.names import canonical_json
from modelrollout.contract.results import Interface, MetricResult, Paired, Search, TaskResult
from modelrollout.contract.tasks import PrepareTask
from modelrollout.statistics.paired import drop_interval
from modelrollout.triton.config import Warmup
from modelrollout.triton.tensors import TensorSpec

MAX_INTERFACE_BYTES = 700  # of the 2 KiB of the termination message


def report_of(
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
    sizes: tuple[int, int],
    warnings: Sequence[str],
    *,
    opset: int | None = None,
    conversion: dict[str, Any] | None = None,
    steps: Sequence[dict[str, Any]] = (),
    gate: dict[str, Any] | None = None,
    warmup: Warmup | None = None,
    decoupled: bool = False,
) -> dict[str, Any]:
    """The report. ``sizes``: bytes of the source and of what is served; ``opset`` None: of no ONNX
    model; ``decoupled``: it streams its answers.
    """
    tensors = {"inputs": [str(t) for t in inputs], "outputs": [str(t) for t in outputs]}
    return {
        "model": tensors if opset is None else {**tensors, "opset": opset},
        "sizeBefore": sizes[0],
        "sizeAfter": sizes[1],
        "conversion": conversion,
        "steps": list(steps),
        "gate": gate,
        "warmup": (
            {"batchSizes": list(warmup.batch_sizes), "shapes": {n: list(s) for n, s in warmup.shapes.items()}}
            if warmup
            else None
        ),
        "warnings": list(warnings),
        # where it does not, the report stays as earlier versions of this program wrote it
        **({"decoupled": True} if decoupled else {}),
    }


def summary_of(
    task: PrepareTask, report: dict[str, Any], uri: str | None, digest: str | None, *, reused: bool = False
) -> TaskResult:
    """The summary, from the report alone, so that a reused artifact has the same as a new one."""
    gate = report["gate"]
    paired = Paired.model_validate(gate["paired"]) if gate and gate["paired"] else None
    return TaskResult(
        message="; ".join(report["warnings"]),
        sha256=task.sha256,
        size_bytes=report["sizeBefore"],
        artifact_uri=uri,
        artifact_digest=digest,
        artifact_size_bytes=report["sizeAfter"],
        reused=reused,
        interface=interface_of(report["model"]["inputs"], report["model"]["outputs"]),
        accuracy_before=gate["accuracyBefore"] if gate else None,
        accuracy_after=gate["accuracyAfter"] if gate else None,
        paired=paired,
        drop_interval=(
            drop_interval(paired.n, paired.only_baseline_right, paired.only_candidate_right)
            if paired
            else None
        ),
        samples=gate["samples"] if gate else None,
        decoupled=report.get("decoupled"),
        metrics=tuple(MetricResult.model_validate(m) for m in gate["summary"]) if gate else (),
        search=next(
            (Search.model_validate(step["search"]) for step in report["steps"] if step["kind"] == "auto"),
            None,
        ),
    )


def interface_of(inputs: Sequence[str], outputs: Sequence[str]) -> Interface:
    """What clients rely on, from tensors as the report writes them (``x: FP32 [n, 64]``), in any
    order.
    """
    takes, gives = (dict(sorted(t.rsplit(": ", 1) for t in tensors)) for tensors in (inputs, outputs))
    digest = hashlib.sha256(canonical_json([takes, gives]).encode()).hexdigest()[:32]
    if len(canonical_json([takes, gives])) > MAX_INTERFACE_BYTES:
        return Interface(digest=digest, counts=(len(takes), len(gives)))
    return Interface(digest=digest, inputs=takes, outputs=gives)
