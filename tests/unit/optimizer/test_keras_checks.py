"""What is checked of a Keras file before Keras opens it. Only h5py is loaded."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest

from modelrollout.contract.formats import Declared
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.formats import keras
from modelrollout.optimizer.formats.registry import sniff

DENSE = {"class_name": "Dense", "module": "keras.layers", "registered_name": None, "config": {"units": 2}}


def layers(*entries: dict[str, Any]) -> dict[str, Any]:
    """A configuration as Keras writes it."""
    return {
        "class_name": "Sequential",
        "module": "keras",
        "registered_name": None,
        "config": {"layers": [DENSE, *entries]},
    }


def weights(
    fill: Callable[[Any], object] = lambda file: file.create_dataset("layers/dense/0", (4, 2)),
) -> bytes:
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        fill(file)
    return content.getvalue()


def zipped(folder: Path, config: Any, hdf5: bytes | None = None) -> Path:
    """A .keras file."""
    path = folder / "m"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", config if isinstance(config, bytes) else json.dumps(config))
        if hdf5 != b"":
            archive.writestr("model.weights.h5", weights() if hdf5 is None else hdf5)
    return path


def hdf5(folder: Path, config: Any) -> Path:
    """An .h5 file."""
    path = folder / "m"
    path.write_bytes(weights(lambda file: file.attrs.update({"model_config": json.dumps(config)})))
    return path


def refusal(path: Path) -> JobError:
    scratch = path.parent / "scratch"
    scratch.mkdir()
    with pytest.raises(JobError) as error:
        keras.load(path, scratch, Declared())
    assert error.value.message.startswith("spec.model.uri: ")
    return error.value


def entry(name: Any, module: str | None = "keras.layers", registered: str | None = None) -> dict[str, Any]:
    return {"class_name": name, "module": module, "registered_name": registered, "config": {}}


@pytest.mark.parametrize(
    ("foreign", "named"),
    [
        (entry("Lambda"), "keras.layers.Lambda"),
        (entry("__lambda__", "builtins"), "builtins.__lambda__"),
        (entry("TFSMLayer"), "keras.layers.TFSMLayer"),
        (entry("StringLookup"), "keras.layers.StringLookup"),
        (entry("system", "os"), "os.system"),
        (entry("Dense", "keras.src.layers"), "keras.src.layers.Dense"),
        (entry("Own", None, "mine>Own"), "mine>Own"),
        (entry("Dense", "keras.layers", "mine>Dense"), "mine>Dense"),
        (entry(["Dense"]), "keras.layers.['Dense']"),
        ({**DENSE, "config": {"activation": [{"deep": entry("eval", "builtins")}]}}, "builtins.eval"),
    ],
)
@pytest.mark.parametrize("form", [zipped, hdf5])
def test_what_is_not_keras_own_is_refused_by_its_name(
    tmp_path: Path, form: Callable[[Path, Any], Path], foreign: dict[str, Any], named: str
) -> None:
    error = refusal(form(tmp_path, layers(foreign)))
    assert error.reason == "KerasUntrusted"
    assert f"the file holds {named}: " in error.message


@pytest.mark.parametrize("form", [zipped, hdf5])
def test_keras_own_is_read(tmp_path: Path, form: Callable[[Path, Any], Path]) -> None:
    own = (
        entry("Functional", "keras.src.models.functional", "Functional"),
        entry("Add", "keras.src.ops.numpy", "Add"),
        entry("relu", "builtins", "function") | {"class_name": "function"},
        entry("__tensor__", "builtins"),
        entry("Dense", None, "keras>Dense"),  # as Keras 2 named them
    )
    path = form(tmp_path, layers(*own))
    assert sniff(path) == "Keras"
    assert list(keras._configuration(path, form is zipped)) == []


def external(file: Any) -> None:
    file.create_dataset("a", (4,), "f4", external=[("/etc/hostname", 0, 16)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "a", (4,))
    file.create_virtual_dataset("a", layout)


def many(file: Any) -> None:
    """Each is within the limit, both are not."""
    for name in ("a", "g/b"):
        file.create_dataset(name, (1 << 29,), "f4", chunks=(1024,))


@pytest.mark.parametrize(
    ("fill", "reason", "says"),
    [
        (lambda file: file.update({"a": h5py.ExternalLink("/etc/x", "/")}), "KerasUntrusted", "a link to"),
        (lambda file: file.update({"g/a": h5py.SoftLink("/elsewhere")}), "KerasUntrusted", "a link to"),
        (external, "KerasUntrusted", "in another file"),
        (virtual, "KerasUntrusted", "in another file"),
        (lambda file: file.create_dataset("g/a", (1 << 38,), "f4", chunks=(1024,)), "TooLarge", "more than"),
        (many, "TooLarge", "more than"),
    ],
)
def test_weights_that_lead_out_of_the_file_or_explode_are_refused(
    tmp_path: Path, fill: Callable[[Any], object], reason: str, says: str
) -> None:
    error = refusal(zipped(tmp_path, layers(), weights(fill)))
    assert (error.reason, says in error.message) == (reason, True)


def test_a_group_that_holds_itself_is_read_once(tmp_path: Path) -> None:
    def ring(file: Any) -> None:
        file.create_group("g")["back"] = file["/"]
        file["again"] = file["g"]

    path = zipped(tmp_path, layers(), weights(ring))
    assert list(keras._configuration(path, True)) == []


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda folder: zipped(folder, b"{"), "Expecting property name"),
        (lambda folder: zipped(folder, layers(), b"noise"), "file signature not found"),
        (lambda folder: zipped(folder, layers(), b""), "model.weights.h5"),
        (lambda folder: written(folder, weights()), "model_config"),
        (lambda folder: written(folder, weights()[:300]), "truncated file"),
    ],
)
def test_what_is_no_whole_model_says_what_is_missing(
    tmp_path: Path, make: Callable[[Path], Path], says: str
) -> None:
    error = refusal(make(tmp_path))
    assert (error.reason, "holds no whole model of Keras" in error.message) == ("ModelInvalid", True)
    assert says.lower() in error.message.lower()


def written(folder: Path, content: bytes) -> Path:
    (folder / "m").write_bytes(content)
    return folder / "m"


def test_a_configuration_too_large_to_parse_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keras, "MAX_CONFIG_BYTES", 100)
    error = refusal(zipped(tmp_path, layers()))
    assert (error.reason, "config.json has more than 100 bytes" in error.message) == ("TooLarge", True)
