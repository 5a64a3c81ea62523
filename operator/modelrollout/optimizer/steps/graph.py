"""Graph optimization by ONNX Runtime at its basic level: only standard operators, the same on every
machine.

Later levels fuse into operators of ONNX Runtime's own and of this CPU; it does that by itself when
it loads the model.
"""

from __future__ import annotations

from typing import Any

from modelrollout.contract.steps import GraphStep
from modelrollout.optimizer.model import files
from modelrollout.optimizer.model.inspect import parse
from modelrollout.optimizer.model.runtime import ORT_ERRORS, ort, refused
from modelrollout.optimizer.steps.context import StepContext
from modelrollout.optimizer.steps.definition import StepDefinition
from modelrollout.reasons import Reason
from modelrollout.triton.layout import DATA_FILE


def graph(_: GraphStep, work: StepContext) -> dict[str, Any]:
    """Write the optimized graph; raises JobError (GraphOptimizationFailed)."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(work.target)
    if files.is_split(work.source):
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", DATA_FILE)
        options.add_session_config_entry(
            "session.optimized_model_external_initializers_min_size_in_bytes", str(files.SMALL_BYTES)
        )
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    try:
        ort.InferenceSession(work.source, options, providers=["CPUExecutionProvider"])
    except ORT_ERRORS as error:
        raise refused(Reason.GRAPH_OPTIMIZATION_FAILED, work.field, error, "leave the step out") from None
    before, after = parse(work.source), parse(work.target)
    after.ir_version = before.ir_version
    used = {node.domain for node in after.graph.node}
    imports = [
        o
        for o in after.opset_import
        if o.domain in used | {""} or any(o.domain == b.domain for b in before.opset_import)
    ]
    del after.opset_import[:]
    after.opset_import.extend(imports)
    files.save_graph(after, work.target)
    return {"nodesBefore": len(before.graph.node), "nodesAfter": len(after.graph.node)}


STEP = StepDefinition(graph)
