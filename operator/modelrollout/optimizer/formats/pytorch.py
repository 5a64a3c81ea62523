"""PyTorch: a TorchScript program or an exported one, recognized by the names in the zip."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from pickle import UnpicklingError

from modelrollout.contract.formats import Declared
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.formats import exported_program, torch_script
from modelrollout.optimizer.formats.source_model import FIELD, FileStart, Format, SourceModel, invalid
from modelrollout.optimizer.model.archive import holds
from modelrollout.reasons import Reason


def load(path: Path, folder: Path, declared: Declared) -> SourceModel:
    """Raises JobError: PickleRefused, those of ``torch_script.load`` and
    ``exported_program.load``.
    """
    reader = torch_script.load if holds(path, "constants.pkl") else exported_program.load
    try:
        return reader(path, folder, declared.tensors)
    except JobError:
        raise
    except UnpicklingError:
        raise bad_input(
            Reason.PICKLE_REFUSED,
            f"{FIELD}.uri: the weights hold other things than tensors, and making those could run any code;"
            " export it without them",
        ) from None
    except Exception as error:  # PyTorch raises anything for a damaged file
        line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[
            :300
        ]
        remedy = "save it with that version or an older one, or export the model to ONNX where it was trained"
        raise invalid(f"PyTorch {version('torch')} does not read it: {line}", remedy) from None


def _sniff(start: FileStart) -> bool:
    marks = (b"/constants.pkl", b"serialized_exported_program.json", b"archive_format")
    return any(mark in start.zip_names for mark in marks)


FORMAT = Format("PyTorch", ("torch", "onnxscript"), "TorchScript, or an exported program", _sniff, load)
