"""Data sets: what fits a model, and the reason for everything that does not."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelrollout.contract.common import DataSet, Location
from modelrollout.contract.exit_codes import ExitCode
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.model.data import Data, batch_rows, batches, match, read_archive
from modelrollout.testing.object_store import npz
from modelrollout.triton.tensors import TensorSpec

X = np.zeros((6, 4), np.float32)
Y = np.arange(6)
SPEC = (TensorSpec("x", "FP32", (-1, 4)),)
TWO = (TensorSpec("a", "FP32", (-1, 2)), TensorSpec("b", "INT32", (-1,)))


def read(
    content: bytes,
    tmp_path: Path,
    specs: tuple[TensorSpec, ...] = SPEC,
    labelled: bool = True,
    **fields: object,
) -> Data:
    (tmp_path / "d.npz").write_bytes(content)
    dataset = DataSet.model_validate({"location": Location(uri="s3://b/k"), **fields})
    return match(read_archive(tmp_path / "d.npz", "spec.f"), dataset, specs, "spec.f", labelled=labelled)


def refusal(
    content: bytes, tmp_path: Path, specs: tuple[TensorSpec, ...] = SPEC, **fields: object
) -> JobError:
    with pytest.raises(JobError) as error:
        read(content, tmp_path, specs, **fields)
    assert error.value.code == ExitCode.BAD_INPUT
    assert error.value.message.startswith("spec.f.")
    return error.value


def test_by_name(tmp_path: Path) -> None:
    data = read(
        npz(a=np.ones((6, 2), np.float32), b=np.arange(6, dtype=np.int32), labels=Y, other=X), tmp_path, TWO
    )
    assert data.n == 6
    assert data.labels is not None
    assert data.labels.dtype == np.int64
    assert set(data.inputs) == {"a", "b"}


def test_single_array_needs_no_name(tmp_path: Path) -> None:
    data = read(npz(images=X, y=Y, writer=Y), tmp_path, labels="y", slices=("writer",))
    assert data.inputs["x"].shape == (6, 4)
    assert list(data.slices["writer"]) == list(Y)


def test_calibration_needs_no_labels(tmp_path: Path) -> None:
    assert read(npz(x=X), tmp_path, labelled=False).labels is None


def test_floats_change_width_and_integers_when_nothing_is_lost(tmp_path: Path) -> None:
    assert (
        read(npz(x=X.astype(np.float64), labels=Y.astype(np.uint8)), tmp_path).inputs["x"].dtype == np.float32
    )
    assert read(npz(a=np.ones((6, 2)), b=np.arange(6), labels=Y), tmp_path, TWO).inputs["b"].dtype == np.int32


def test_strings(tmp_path: Path) -> None:
    data = read(npz(t=np.array(["a", "bb"]), labels=Y[:2]), tmp_path, (TensorSpec("t", "BYTES", (-1,)),))
    assert data.inputs["t"].dtype == np.object_
    assert data.inputs["t"].tolist() == ["a", "bb"]
    assert data.duplicates() == 0


def test_one_dimension_fits_what_triton_serves_with_two(tmp_path: Path) -> None:
    assert read(npz(x=X[:, 0], labels=Y), tmp_path, (TensorSpec("x", "FP32", (-1, 1)),)).inputs[
        "x"
    ].shape == (6, 1)


def bad(value: float) -> np.ndarray:
    x = X.copy()
    x[3, 1] = value
    return x


@pytest.mark.parametrize(
    ("content", "reason", "says"),
    [
        (b"no archive", "DataNotNpz", "savez"),
        (npz(x=X, labels=Y)[:-30], "DataNotNpz", "cut off"),
        (npz(x=np.array([{}, {}], dtype=object), labels=Y[:2]), "DataPickleRefused", "'x'"),
        (npz(labels=Y), "DataInputMissing", "'x'"),
        (npz(a=X, b=X, labels=Y), "DataInputMissing", "['a', 'b']"),
        (npz(x=X), "LabelsMissing", "['x']"),
        (npz(x=X, labels=Y.astype(np.float32)), "LabelsNotInteger", "float32"),
        (npz(x=X, labels=np.array(list("abcdef"))), "LabelsNotInteger", "integers"),
        (npz(x=X, labels=np.eye(6, dtype=np.int64)), "LabelsShape", "[6, 6]"),
        (npz(x=X, labels=Y[:5]), "LabelsLength", "5 labels for 6"),
        (npz(x=X[:0], labels=Y[:0]), "DataEmpty", "no samples"),
        (npz(x=np.float32(1), labels=Y), "DataEmpty", "[]"),
        (npz(x=X[:, :3], labels=Y), "DataShapeMismatch", "[n, 4]"),
        (npz(x=X.reshape(6, 2, 2), labels=Y), "DataShapeMismatch", "[6, 2, 2]"),
        (npz(x=X.astype(np.uint8), labels=Y), "DataTypeMismatch", "float32"),
        (npz(x=np.zeros((6, 4), bool), labels=Y), "DataTypeMismatch", "bool"),
        (npz(x=bad(np.nan), labels=Y), "DataNotFinite", "sample 3"),
    ],
)
def test_bad_data(tmp_path: Path, content: bytes, reason: str, says: str) -> None:
    error = refusal(content, tmp_path)
    assert error.reason == reason
    assert says in error.message


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (npz(a=np.ones((6, 2), np.float32), b=np.arange(5, dtype=np.int32), labels=Y), "DataLengthMismatch"),
        # would overflow
        (npz(a=np.ones((6, 2), np.float32), b=np.full(6, 2**40), labels=Y), "DataTypeMismatch"),
        (npz(a=np.ones((6, 2), np.float32), b=np.ones(6), labels=Y), "DataTypeMismatch"),
        (npz(a=np.ones((6, 2), np.float32), labels=Y), "DataInputMissing"),
    ],
)
def test_bad_data_of_two_inputs(tmp_path: Path, content: bytes, reason: str) -> None:
    assert refusal(content, tmp_path, TWO).reason == reason


def test_slice_that_is_missing_or_too_long(tmp_path: Path) -> None:
    assert refusal(npz(x=X, labels=Y), tmp_path, slices=("writer",)).reason == "SliceInvalid"
    assert (
        refusal(npz(x=X, labels=Y, writer=np.arange(7)), tmp_path, slices=("writer",)).reason
        == "SliceInvalid"
    )


def test_unpacked_size_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelrollout.optimizer.model.data.DATA_LIMIT_BYTES", 50)
    assert refusal(npz(x=X, labels=Y), tmp_path).reason == "TooLarge"


def test_duplicates_are_counted(tmp_path: Path) -> None:
    assert read(npz(x=X, labels=Y), tmp_path).duplicates() == 5
    x = np.arange(24, dtype=np.float32).reshape(6, 4)
    assert read(npz(x=x, labels=Y), tmp_path).duplicates() == 0


@given(st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_batches_bring_every_sample_once_and_in_order(n: int, rows: int, fill: bool) -> None:
    whole = {"x": np.arange(n), "y": np.arange(2 * n).reshape(n, 2)}
    parts = list(batches(whole, rows, fill))
    assert sum(count for count, _ in parts) == n
    for name, array in whole.items():
        assert np.array_equal(np.concatenate([part[name][:count] for count, part in parts]), array)
    assert all(len(part["x"]) == rows for _, part in parts) or not fill


def test_batch_rows() -> None:
    assert batch_rows(SPEC, 32, "f") == (32, False)
    assert batch_rows((TensorSpec("x", "FP32", (8, 4)),), 32, "f") == (8, True)
    with pytest.raises(JobError) as error:
        batch_rows((TensorSpec("x", "FP32", (8, 4)), TensorSpec("y", "FP32", (4, 4))), 32, "f")
    assert error.value.reason == "NoBatchDimension"


def test_repeated_samples_are_counted_without_a_second_copy() -> None:
    """A data set may take half of the Job's memory."""
    x = np.arange(400 * 10_000, dtype=np.float32).reshape(400, 10_000)
    x[7] = x[3]
    data = Data({"x": x}, None, {})
    tracemalloc.start()
    try:
        assert (data.duplicates(), data.shared(data)) == (1, 399)
        assert tracemalloc.get_traced_memory()[1] < x.nbytes / 10
    finally:
        tracemalloc.stop()
