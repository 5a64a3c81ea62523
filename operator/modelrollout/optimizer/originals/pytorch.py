"""PyTorch: a program of TorchScript or an exported one, told apart by what is in the zip."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

from modelrollout.api.tasks import Tensors
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.archive import holds
from modelrollout.optimizer.originals import exported_program, torch_script
from modelrollout.optimizer.originals.original import Original, invalid


def load(path: Path, folder: Path, tensors: Tensors | None) -> Original:
    """Raises JobError: those of ``torch_script.load`` and ``exported_program.load``."""
    reader = torch_script.load if holds(path, "constants.pkl") else exported_program.load
    try:
        return reader(path, folder, tensors)
    except JobError:
        raise
    except Exception as error:  # of PyTorch, on a file that somebody made
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
        remedy = "save it with that version or an older one, or export the model to ONNX where it was trained"
        raise invalid(f"PyTorch {version('torch')} does not read it: {line}", remedy) from None
