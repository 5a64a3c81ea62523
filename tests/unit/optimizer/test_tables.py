"""Data sets as Parquet and CSV: columns in the types of the model, or a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import arro3.core as arro3
import numpy as np
import pytest
from arro3.io import write_parquet

from modelrollout.contract.common import DataSet, Location
from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.model import tables
from modelrollout.optimizer.model.data import Data, match, read_archive
from modelrollout.triton.tensors import TensorSpec

AGE, CITY, PLAN = (
    TensorSpec("age", "FP32", (-1, 1)),
    TensorSpec("city", "BYTES", (-1, 1)),
    TensorSpec("plan", "INT64", (-1, 1)),
)
X = TensorSpec("x", "FP64", (-1, 2))
CSV = 'age,city,plan,labels,note\n41,Köln,1,0,\n,,2,1,free\n1.5e1,"a, b",003,1,NA\n'


def parquet(path: Path, **columns: Any) -> Path:
    types = {int: arro3.DataType.int64(), float: arro3.DataType.float64(), str: arro3.DataType.utf8()}
    arrays = {
        name: arro3.Array(cells, types[next(type(c) for c in cells if c is not None)])
        for name, cells in columns.items()
    }
    write_parquet(arro3.Table.from_pydict(arrays), str(path))
    return path


def read(path: Path, *specs: TensorSpec, slices: tuple[str, ...] = (), nan: bool = True) -> Data:
    dataset = DataSet(location=Location(uri="s3://a/d"), slices=slices)
    return match(read_archive(path, "spec.f"), dataset, specs, "spec.f", labelled=True, nan=nan)


def refusal(path: Path, *specs: TensorSpec, **more: Any) -> JobError:
    with pytest.raises(JobError) as error:
        read(path, *specs, **more)
    assert error.value.message.startswith("spec.f")
    return error.value


@pytest.fixture(params=["csv", "parquet"])
def table(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "d"
    if request.param == "csv":
        path.write_text(CSV, encoding="utf-8-sig")
        return path
    return parquet(
        path, age=[41.0, None, 15.0], city=["Köln", None, "a, b"], plan=[1, 2, 3], labels=[0, 1, 1],
        note=[None, "free", "NA"],
    )  # fmt: skip


def test_columns_have_the_types_of_the_inputs(table: Path) -> None:
    data = read(table, AGE, CITY, PLAN, slices=("plan",))
    assert data.inputs["age"].dtype == np.float32
    assert np.array_equal(data.inputs["age"][:, 0], [41, np.nan, 15], equal_nan=True)
    assert data.inputs["city"].tolist() == [["Köln"], [""], ["a, b"]]
    assert data.inputs["plan"].tolist() == [[1], [2], [3]]
    assert data.labels is not None and data.labels.tolist() == [0, 1, 1]


def test_words_keep_their_zeros(tmp_path: Path) -> None:
    (tmp_path / "d").write_text(CSV)
    assert read(tmp_path / "d", TensorSpec("plan", "BYTES", (-1, 1))).inputs["plan"].tolist()[2] == ["003"]


def test_one_input_of_numbers_is_all_columns_in_their_order(tmp_path: Path) -> None:
    path = parquet(tmp_path / "d", b=[1.5, None], a=[3, 4], labels=[0, 1], night=["y", "n"])
    data = read(path, X, slices=("night",))
    assert np.array_equal(data.inputs["x"], [[1.5, 3], [np.nan, 4]], equal_nan=True)
    assert data.slices["night"].tolist() == ["y", "n"]
    error = refusal(path, TensorSpec("x", "FP32", (-1, 3)), slices=("night",))
    assert (error.reason, "b, a" in error.message) == ("DataShapeMismatch", True)


def test_gaps_are_refused_where_they_are_no_data(table: Path) -> None:
    assert refusal(table, AGE, nan=False).reason == "DataNotFinite"


@pytest.mark.parametrize(
    ("spec", "reason", "says"),
    [
        (TensorSpec("city", "FP32", (-1, 1)), "DataTypeMismatch", "'Köln' in row 0"),
        (TensorSpec("age", "INT64", (-1, 1)), "DataTypeMismatch", "row 1"),
        (TensorSpec("height", "FP32", (-1, 1)), "DataInputMissing", "height"),
    ],
)
def test_columns_that_do_not_fit(table: Path, spec: TensorSpec, reason: str, says: str) -> None:
    error = refusal(table, spec, CITY)
    assert (error.reason, says in error.message) == (reason, True)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"PAR1" + bytes(100) + b"PAR1", "Parquet"),
        (b"PAR1", "Parquet"),
        (b"a,b\n1,2,3\n", "line 2"),
        (b"a,a\n1,2\n", "twice"),
        (b'a,b\n"1,2\n', "CSV"),
        (b"a,b\n1,\xff\n", "CSV"),
    ],
)
def test_damaged_tables(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "d").write_bytes(content)
    error = refusal(tmp_path / "d", AGE)
    assert (error.reason, says in error.message) == ("DataNotTable", True)


@pytest.mark.parametrize(
    "content", [b"<html>a,b\n</html>", b'{"a": 1, "b": 2}', b"\x80\x04,pickle", b"words\n"]
)
def test_other_files_are_no_tables(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "d").write_bytes(content)
    assert refusal(tmp_path / "d", AGE).reason == "DataNotNpz"


def test_a_table_that_fills_the_memory(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(tables.read_table(table, "spec.f", 10_000)) == 5
    with pytest.raises(JobError) as error:
        tables.read_table(table, "spec.f", 100)
    assert error.value.reason == "TooLarge"
