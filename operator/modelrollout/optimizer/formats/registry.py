"""The table of all formats besides ONNX: one line each.

The modules import their libraries when a model is loaded, so the table costs nothing where they
are not installed.
"""

from __future__ import annotations

from pathlib import Path

from modelrollout.contract.formats import SourceFormat
from modelrollout.optimizer.formats import (
    keras,
    lightgbm_model,
    pytorch,
    saved_model,
    sklearn_model,
    tflite,
    xgboost_model,
)
from modelrollout.optimizer.formats.source_model import FileStart, Format

# In the order in which a file is tested.
FORMATS: tuple[Format, ...] = (
    lightgbm_model.FORMAT,
    xgboost_model.FORMAT,
    tflite.FORMAT,
    keras.FORMAT,
    sklearn_model.FORMAT,
    pytorch.FORMAT,
    saved_model.FORMAT,
)
BY_NAME: dict[SourceFormat, Format] = {format.name: format for format in FORMATS}


def sniff(path: Path) -> SourceFormat | None:
    """The format by the file's first bytes, or by the names in an archive; None: none of these."""
    start = FileStart.read(path)
    if b".onnx" in start.zip_names:
        return None
    return next((format.name for format in FORMATS if format.sniff(start)), None)
