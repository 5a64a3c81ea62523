"""Data sets as tables: Parquet and CSV. A column is an array [n] under its name.

Parquet is read by arro3, the Rust implementation of Arrow: memory safe, a quarter of the size
of pyarrow, and without types that run code. CSV is UTF-8, with commas and a line of names
(RFC 4180).
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.reasons import Reason

MAX_COLUMNS = 10_000
_PARQUET = b"PAR1"
_CELL_BYTES = 64  # of a Python object that a cell becomes, about
# Words of CSV that are numbers, and those that pandas and others write for a missing one.
_NUMBERS = {
    **dict.fromkeys(("", "nan", "NaN", "NA", "N/A", "null", "NULL", "None"), np.nan),
    **dict.fromkeys(("true", "True", "TRUE"), 1.0),
    **dict.fromkeys(("false", "False", "FALSE"), 0.0),
}
_NUMERIC = {bool, int, float, type(None)}


class Table(dict[str, NDArray[Any]]):
    """Columns [n] under their names, in their order: numbers, or text and None as objects, which
    may be numbers in words.
    """

    def numbers(self, name: str, field: str, dtype: np.dtype[Any]) -> NDArray[Any]:
        """A column as numbers; what is missing is NaN. Raises JobError (DataTypeMismatch)."""
        column = self[name]
        if column.dtype == np.object_:
            column = self._parsed(name, field)
        if dtype.kind == "f":
            return column.astype(np.float64 if dtype.itemsize > 4 else dtype)
        if dtype.kind == "b":
            return column.astype(np.bool_)
        whole = np.isfinite(column) & (column == np.floor(column))
        if not whole.all():
            row = int(np.argmin(whole))
            raise bad_input(
                Reason.DATA_TYPE_MISMATCH,
                f"{field}.uri: column {name!r} has {column[row]!s} in row {row}, and whole numbers are"
                " needed; correct or remove such rows",
            )
        return column.astype(np.int64)

    def _parsed(self, name: str, field: str) -> NDArray[Any]:
        cells = self[name]
        numbers = np.empty(len(cells), np.float64)
        for row, cell in enumerate(cells):
            text = "" if cell is None else str(cell).strip()
            try:
                numbers[row] = _NUMBERS[text] if text in _NUMBERS else float(text)
            except ValueError:
                raise bad_input(
                    Reason.DATA_TYPE_MISMATCH,
                    f"{field}.uri: column {name!r} has {text[:50]!r} in row {row}, and numbers are needed;"
                    " leave what is missing empty",
                ) from None
        return numbers

    def words(self, name: str) -> NDArray[Any]:
        """A column of words as such, a missing one empty; numbers stay numbers."""
        column = self[name]
        if column.dtype != np.object_:
            return column
        return np.array(["" if cell is None else str(cell) for cell in column], np.str_)


def is_table(path: Path) -> bool:
    """Whether the file is Parquet, or looks like text with commas."""
    with path.open("rb") as file:
        head = file.read(4096)
    if head.startswith(_PARQUET):
        return True
    first = head.partition(b"\n")[0]
    if b"," not in first or b"\0" in head or head[:1] in b"<{\x80\x93":
        return False
    try:
        first.decode()
    except UnicodeDecodeError:
        return False
    return True


def read_table(path: Path, field: str, limit: int) -> Table:
    """All columns; raises JobError: DataNotTable, TooLarge."""
    with path.open("rb") as file:
        parquet = file.read(4) == _PARQUET
    return _parquet(path, field, limit) if parquet else _csv(path, field, limit)


def _broken(field: str, what: str) -> JobError:
    return bad_input(
        Reason.DATA_NOT_TABLE, f"{field}.uri: {what}; write it again as Parquet, as CSV in UTF-8, or as .npz"
    )


def _too_large(field: str, limit: int) -> JobError:
    return bad_input(
        Reason.TOO_LARGE,
        f"{field}.uri: the table needs more than the limit of {limit} bytes (half of the Job's memory);"
        " use fewer samples, or raise spec.optimization.resources.limits.memory",
    )


def _check_names(names: Sequence[str], field: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise _broken(field, f"column {twice[:100]!r} is there twice")
    if len(names) > MAX_COLUMNS:
        raise _broken(field, f"{len(names)} columns are more than {MAX_COLUMNS}")


def _parquet(path: Path, field: str, limit: int) -> Table:
    parts: dict[str, list[NDArray[Any]]] = {}
    try:
        for name, array in _batches(path, field, limit):
            parts.setdefault(name, []).append(array)
    except JobError:
        raise
    except BaseException as error:
        # arro3 panics on damaged files, and pyo3's PanicException is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit, MemoryError)):
            raise
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise _broken(field, f"this is no Parquet file, or a damaged one ({line})") from None
    return Table({name: _column(arrays) for name, arrays in parts.items()})


def _batches(path: Path, field: str, limit: int) -> Iterator[tuple[str, NDArray[Any]]]:
    from arro3.io import read_parquet

    reader = read_parquet(str(path))
    names = list(reader.schema.names)
    _check_names(names, field)
    used = 0
    for batch in reader:
        used += batch.nbytes
        for name in names:
            column = batch.column(name)
            kind = str(column.type)
            plain = not column.null_count and any(word in kind for word in ("Int", "Float", "Boolean"))
            if plain and "Dictionary" not in kind:
                yield name, np.array(column.to_numpy())
                continue
            used += len(column) * _CELL_BYTES
            if used > limit:
                raise _too_large(field, limit)
            cells = column.to_pylist()
            yield name, np.fromiter(cells, np.object_, len(cells))
        if used > limit:
            raise _too_large(field, limit)


def _column(parts: list[NDArray[Any]]) -> NDArray[Any]:
    if all(part.dtype != np.object_ for part in parts):
        return np.concatenate(parts)
    cells = np.concatenate([part.astype(np.object_) for part in parts])
    if not {type(cell) for cell in cells} <= _NUMERIC:
        return cells
    return np.array([np.nan if cell is None else float(cell) for cell in cells])


def _csv(path: Path, field: str, limit: int) -> Table:
    csv.field_size_limit(1 << 20)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            names = next(rows, [])
            _check_names(names, field)
            columns: list[list[str]] = [[] for _ in names]
            used = 0
            for number, row in enumerate(rows, 2):
                if not row:
                    continue
                if len(row) != len(names):
                    raise _broken(field, f"line {number} has {len(row)} values, the first one {len(names)}")
                used += sum(map(len, row)) + len(row) * _CELL_BYTES
                if used > limit:
                    raise _too_large(field, limit)
                for column, cell in zip(columns, row, strict=True):
                    column.append(cell)
    except (csv.Error, UnicodeDecodeError, OSError) as error:
        raise _broken(field, f"this is no CSV file in UTF-8 ({str(error)[:200]})") from None
    return Table({name: np.array(cells, np.object_) for name, cells in zip(names, columns, strict=True)})
