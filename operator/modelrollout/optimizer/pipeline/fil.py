"""Trees for Triton's FIL backend: its configuration written, or the author's checked, and what it
will answer compared with the original (``formats.fil``).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from modelrollout.contract.formats import Declared, Served, Tensor
from modelrollout.jobs.errors import bad_input
from modelrollout.optimizer.formats import isolated
from modelrollout.optimizer.formats.fil import Facts
from modelrollout.optimizer.passthrough.config import FIELD
from modelrollout.optimizer.passthrough.repository import Found, PassedThrough, archive_files, checked
from modelrollout.optimizer.pipeline.state import PrepareState
from modelrollout.reasons import Reason
from modelrollout.triton.backends import KINDS
from modelrollout.triton.config import MISSING_VALUES, NAN, parse, printed

_MOST = 4096  # the largest of spec: FIL has no models without a batch dimension
_INPUT, _OUTPUT = "input__0", "output__0"


def serve_fil(s: PrepareState) -> tuple[PassedThrough, dict[str, Any]]:
    """The files with their configuration, and figures for the report. Raises JobError: those of
    ``archive_files``, ``isolated.fil_facts`` and ``checked``, and ConfigMismatch.
    """
    assert s.task.served is not None
    found = archive_files(s.source_file, "FIL", s.folder, s.task.max_bytes)
    file = KINDS["FIL"].file
    facts, served_file = isolated.fil_facts(
        found.version[file], s.folder, Declared(rounds=s.task.rounds or "Best")
    )
    found = replace(found, version={**found.version, file: served_file})
    tensors = Served(
        backend="FIL",
        inputs=(Tensor(name=_INPUT, data_type="FP32", shape=(-1, facts.features)),),
        outputs=(Tensor(name=_OUTPUT, data_type="FP32", shape=(-1, facts.outputs)),),
    )
    made = _configured(s, found, tensors, facts)
    warnings = (
        *made.warnings,
        *facts.warnings,
        "FIL itself is not in the Job: its answers are those of Treelite's reference; whether they are"
        " right in the server shows with golden data (spec.rollout.analysis.golden)",
    )
    conversion = {
        "from": "FIL",
        **facts.notes,
        "modelType": facts.model_type,
        "samples": facts.rows,
        "generated": True,
        "apart": facts.wrong,
        "largestDifference": facts.apart,
    }
    return replace(made, warnings=warnings), conversion


def _configured(s: PrepareState, found: Found, tensors: Served, facts: Facts) -> PassedThrough:
    gpu = s.task.target_hardware != "any"
    batching = s.task.batching
    if found.config is None and not batching.max_batch_size:
        batching = batching.model_copy(update={"max_batch_size": _MOST})
    served = tensors if found.config is None else Served(backend="FIL")
    made = checked(found, served, batching, s.task.instance_kind, s.folder, gpu=gpu)
    config = parse(made.config)
    parameters = {"model_type": facts.model_type, MISSING_VALUES: NAN}
    if facts.classes > 2:
        parameters |= {"output_class": "true", "predict_proba": "true"}
    elif found.config is None:
        # the number itself, of two classes the probability of class 1: with predict_proba the shape
        # of that depends on FIL's version
        parameters |= {"output_class": "false"}
    if facts.model_type == "xgboost_json":  # of a later XGBoost than FIL's Treelite knows
        parameters |= {"xgboost_allow_unknown_field": "true"}
    if found.config is not None:
        _expect(config, facts)
    for key, value in parameters.items():
        if key not in config.parameters:
            config.parameters[key].string_value = value
    return replace(made, config=printed(config))


def _expect(config: Any, facts: Facts) -> None:
    """Raise ConfigMismatch where the author's configuration is not that of the file."""

    def wrong(what: str, fact: str) -> None:
        raise bad_input(Reason.CONFIG_MISMATCH, f"{FIELD}: config.pbtxt: {what}, but {fact}; correct it")

    kind = config.parameters["model_type"].string_value if "model_type" in config.parameters else ""
    if kind not in ("", facts.model_type):
        wrong(f"model_type: {kind[:50]!r}", f"the file is of type {facts.model_type}")
    given = [(t.name, list(t.dims)) for t in config.input]
    if given != [(_INPUT, [facts.features])]:
        wrong(f"input {given!s:.200}", f"the model takes {_INPUT} with dims: [{facts.features}]")
    if [t.name for t in config.output][:1] != [_OUTPUT]:
        wrong("it names another output", f"FIL's is {_OUTPUT}")
    if not config.max_batch_size:
        wrong("max_batch_size: 0", f"FIL needs one, for example {_MOST}")
