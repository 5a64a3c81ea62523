"""Data sets, .npz archives or tables (``tables``), whose arrays are matched with a model's inputs.
Arrays of objects (pickles) are never loaded.
"""

from __future__ import annotations

import hashlib
import math
import sys
import zipfile
import zlib
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.common import DataSet
from modelrollout.jobs.errors import JobError, bad_input
from modelrollout.optimizer.model.limits import memory_limit
from modelrollout.optimizer.model.tables import Table, is_table, read_table
from modelrollout.reasons import Reason
from modelrollout.triton.tensors import NUMPY, TensorSpec

Arrays = dict[str, NDArray[Any]]

DATA_LIMIT_BYTES = 8 << 30  # unpacked; a data set is held in memory

MAX_ARRAYS = 1024

# What zipfile, its decompressors and numpy raise for files that are damaged, encrypted or made to
# harm.
_BROKEN: tuple[type[Exception], ...] = (
    zipfile.BadZipFile, zlib.error, LZMAError, EOFError, OSError, RuntimeError, NotImplementedError,
    ValueError, TypeError, OverflowError,
    SyntaxError, TokenError,
)  # fmt: skip

_REMEDY = "write it with numpy.savez(path, <input>=..., labels=...)"


@dataclass(frozen=True)
class Data:
    """``inputs``: by the model's names, each [n, ...] in the model's type (rows, or all of them
    whole requests with one dimension more); ``labels``: [n] int64,
    None if not requested; ``slices``: each [n].

    ``targets``: [n] float64, the labels of a regression.
    """

    inputs: Arrays
    labels: NDArray[np.int64] | None
    slices: Arrays
    targets: NDArray[np.float64] | None = None

    @property
    def n(self) -> int:
        """Number of samples."""
        return len(next(iter(self.inputs.values())))

    def rows(self, chosen: NDArray[np.int64]) -> Data:
        """Some of the samples."""
        return Data(
            {name: array[chosen] for name, array in self.inputs.items()},
            None if self.labels is None else self.labels[chosen],
            {name: array[chosen] for name, array in self.slices.items()},
            None if self.targets is None else self.targets[chosen],
        )

    def _different(self) -> set[Hashable]:
        rows = [np.ascontiguousarray(self.inputs[name]).reshape(self.n, -1) for name in sorted(self.inputs)]
        if any(a.dtype == np.object_ for a in rows):
            return {tuple(map(tuple, (a[i].tolist() for a in rows))) for i in range(self.n)}
        # Digests: the samples themselves may fill half of the memory, and would be there twice.
        return {
            hashlib.blake2b(b"".join(a[i].tobytes() for a in rows), digest_size=16).digest()
            for i in range(self.n)
        }

    def duplicates(self) -> int:
        """Samples that repeat an earlier one in all inputs: they are no new information."""
        return self.n - len(self._different())

    def shared(self, other: Data) -> int:
        """Different samples that are in both, for the same model."""
        return len(self._different() & other._different())


def read_archive(path: Path, field: str) -> Arrays:
    """All arrays of the archive, or columns of the table; raises JobError: DataNotNpz,
    DataPickleRefused, DataNotTable, TooLarge.

    Allocates nothing that the file does not hold: it checks sizes before it unpacks a byte.
    """
    memory = memory_limit()
    limit = min(DATA_LIMIT_BYTES, memory // 2) if memory else DATA_LIMIT_BYTES
    if is_table(path):
        return read_table(path, field, limit)
    arrays: Arrays = {}
    what = "the file"
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            size = sum(entry.file_size for entry in entries)
            if size > limit or len(entries) > MAX_ARRAYS:
                raise bad_input(
                    Reason.TOO_LARGE,
                    f"{field}.uri: {size} bytes unpacked in {len(entries)} arrays, more than the limit of"
                    f" {limit} (half of the Job's memory, at most {DATA_LIMIT_BYTES}) or of {MAX_ARRAYS}"
                    " arrays; use fewer samples, or raise spec.optimization.resources.limits.memory",
                )
            for entry in entries:
                what = f"array {entry.filename.removesuffix('.npy')!r}"
                if not entry.filename.endswith(".npy"):
                    continue
                if entry.filename.removesuffix(".npy") in arrays:
                    raise bad_input(Reason.DATA_NOT_NPZ, f"{field}.uri: {what} is there twice; {_REMEDY}")
                with archive.open(entry) as file:
                    arrays[entry.filename.removesuffix(".npy")] = _read_array(
                        file, entry.file_size, what, field
                    )
    except _BROKEN:
        raise bad_input(
            Reason.DATA_NOT_NPZ,
            f"{field}.uri: {what} is no .npz archive or part of one (nor Parquet or CSV), is cut off, damaged"
            f" or encrypted; {_REMEDY}",
        ) from None
    return arrays


def _read_array(file: IO[bytes], size: int, what: str, field: str) -> NDArray[Any]:
    """One .npy file of ``size`` bytes; raises JobError (DataPickleRefused, DataNotNpz) or one of
    _BROKEN.
    """
    version = np.lib.format.read_magic(file)
    # 3.0 is for names of fields in other alphabets, and no input of a model has fields
    if version not in ((1, 0), (2, 0)):
        raise bad_input(
            Reason.DATA_NOT_NPZ,
            f"{field}.uri: {what} has format version {version}; store plain numbers or fixed-width strings",
        )
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, by_columns, dtype = header(file)
    if dtype.hasobject:
        raise bad_input(
            Reason.DATA_PICKLE_REFUSED,
            f"{field}.uri: {what} holds Python objects, which are pickled and never loaded; store numbers or"
            " fixed-width strings",
        )
    expected = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or expected != size - file.tell():
        raise bad_input(
            Reason.DATA_NOT_NPZ,
            f"{field}.uri: {what} says that it has shape {list(shape)}, {expected} bytes, but holds"
            f" {size - file.tell()}; {_REMEDY}",
        )
    plain = np.frombuffer(bytearray(file.read(expected)), np.uint8)
    if dtype.kind == "U" and expected:
        letters = plain.view(np.dtype(np.uint32).newbyteorder(dtype.byteorder))
        # Python refuses code points beyond Unicode, and text with surrogates cannot be written.
        if ((letters > sys.maxunicode) | ((letters >= 0xD800) & (letters < 0xE000))).any():
            raise bad_input(
                Reason.DATA_NOT_NPZ,
                f"{field}.uri: {what} holds words with letters that do not exist; {_REMEDY}",
            )
    return (
        plain.view(dtype).reshape(shape, order="F" if by_columns else "C")
        if expected
        else np.empty(shape, dtype)
    )


def _shape_text(shape: Sequence[int]) -> str:
    return "[" + ", ".join("n" if d < 0 else str(d) for d in shape) + "]"


def is_whole(array: NDArray[Any], spec: TensorSpec) -> bool:
    """Whether each sample of the array is a whole request: the input's full shape, its first
    dimension among it. So samples of models without a batch dimension are kept.
    """
    if array.ndim == 1 and spec.shape == (1,):  # a scalar, as Triton serves it
        return True
    return array.ndim == len(spec.shape) + 1 and all(
        want in (-1, have) for want, have in zip(spec.shape, array.shape[1:], strict=True)
    )


def are_whole(inputs: Mapping[str, NDArray[Any]], specs: Sequence[TensorSpec]) -> bool:
    """Whether every sample is a whole request."""
    return all(is_whole(inputs[spec.name], spec) for spec in specs)


def _fit(
    array: NDArray[Any], name: str, spec: TensorSpec, field: str, *, whole: bool, nan: bool
) -> NDArray[Any]:
    """The array in the model's type and shape; ``whole``: with the samples' dimension in
    front; ``nan``: a missing value is data. Whether infinity is, as in an additive mask, only the
    model's answer shows (``runtime.expect_numbers``).
    Raises JobError: DataShapeMismatch, DataTypeMismatch, DataNotFinite, DataEmpty.
    """
    where = f"{field}.uri: array {name!r}"
    want = NUMPY[spec.datatype]
    if whole:
        spec = TensorSpec(spec.name, spec.datatype, (-1, *spec.shape))
    if array.ndim == 0 or len(array) == 0:
        raise bad_input(
            Reason.DATA_EMPTY,
            f"{where} has shape {list(array.shape)}: no samples; the first dimension counts them",
        )
    if spec.shape[1:] == (1,) and array.ndim == 1:
        array = array[:, None]  # Triton serves [n] as [n, 1]
    if array.ndim != len(spec.shape) or any(
        w >= 0 and w != h for w, h in zip(spec.shape[1:], array.shape[1:], strict=True)
    ):
        raise bad_input(
            Reason.DATA_SHAPE_MISMATCH,
            f"{where} has shape {list(array.shape)}, the model's input {spec.name!r} wants"
            f" {_shape_text((-1, *spec.shape[1:]))} (or whole requests, {_shape_text((-1, *spec.shape))});"
            " reshape the data as in training",
        )
    if want == np.object_:
        if array.dtype.kind not in "US":
            raise bad_input(
                Reason.DATA_TYPE_MISMATCH,
                f"{where} is {array.dtype}, the model's input {spec.name!r} takes strings; store them as"
                " such",
            )
        return array.astype(np.str_).astype(np.object_)
    if array.dtype.kind == "f" and not nan and (missing := np.isnan(array)).any():
        bad = int(np.argmax(missing.reshape(len(array), -1).any(axis=1)))
        raise bad_input(
            Reason.DATA_NOT_FINITE, f"{where} has NaN (first in sample {bad}); remove or fill such samples"
        )
    if array.dtype != want:
        # Floats may change width. Integers may when no value changes; they never become floats:
        # whole numbers where a model wants floats are mostly pixels that were not scaled, and would
        # be answered with garbage and no error.
        same = array.dtype.kind == want.kind == "f" or (
            array.dtype.kind in "iu" and want.kind in "iu" and bool(np.all(array.astype(want) == array))
        )
        if not same:
            raise bad_input(
                Reason.DATA_TYPE_MISMATCH,
                f"{where} is {array.dtype}, the model's input {spec.name!r} takes {want}; preprocess it as in"
                f" training and store {want}",
            )
        array = array.astype(want)
    return array


def _labels(arrays: Arrays, dataset: DataSet, n: int, field: str, *, numbers: bool) -> NDArray[Any]:
    """[n] integer classes, or finite ``numbers``; raises JobError: LabelsMissing, LabelsNotInteger,
    LabelsNotNumbers, LabelsShape, LabelsLength.
    """
    labels = arrays.get(dataset.labels)
    if labels is None:
        raise bad_input(
            Reason.LABELS_MISSING,
            f"{field}.labels: the archive has no array {dataset.labels!r}, only {sorted(arrays)}; name the"
            " array of labels or add it",
        )
    if numbers and (labels.dtype.kind not in "iuf" or not np.isfinite(labels).all()):
        raise bad_input(
            Reason.LABELS_NOT_NUMBERS,
            f"{field}.labels: array {dataset.labels!r} ({labels.dtype}) does not hold finite numbers, which"
            " mae and mse need",
        )
    if not numbers and labels.dtype.kind not in "iu":
        raise bad_input(
            Reason.LABELS_NOT_INTEGER,
            f"{field}.labels: array {dataset.labels!r} is {labels.dtype}; store class numbers as integers"
            " from 0",
        )
    if labels.ndim != 1:
        raise bad_input(
            Reason.LABELS_SHAPE,
            f"{field}.labels: array {dataset.labels!r} has shape {list(labels.shape)}; store one label a"
            " sample, shape [n]",
        )
    if len(labels) != n:
        raise bad_input(
            Reason.LABELS_LENGTH,
            f"{field}.labels: {len(labels)} labels for {n} samples; each sample needs one",
        )
    return labels.astype(np.float64 if numbers else np.int64)


def _aside(dataset: DataSet, inputs: Sequence[TensorSpec]) -> set[str]:
    """Names of what is no input; an input may also be a slice."""
    return {dataset.labels} | (set(dataset.slices) - {spec.name for spec in inputs})


def _of_columns(
    table: Table, dataset: DataSet, inputs: Sequence[TensorSpec], field: str, *, numbers: bool
) -> Arrays:
    """The table as an archive would hold it: a column for each input by its name, or all columns
    side by side, in their order, where the model has one input of that many numbers.
    """
    aside = _aside(dataset, inputs)
    arrays: Arrays = {name: table.words(name) for name in table if name in aside}
    if dataset.labels in table:
        column = table[dataset.labels]
        with suppress(JobError):  # words are refused as labels, with their reason
            kind = np.dtype(np.float64 if numbers else np.int64)
            arrays[dataset.labels] = table.numbers(dataset.labels, f"{field}", kind)
        if column.dtype.kind in "iu":
            arrays[dataset.labels] = column
    features = [name for name in table if name not in aside]
    if len(inputs) == 1 and inputs[0].name not in table and len(inputs[0].shape) == 2:
        (spec,) = inputs
        width = spec.shape[1]
        if width >= 0 and width != len(features):
            raise bad_input(
                Reason.DATA_SHAPE_MISMATCH,
                f"{field}.uri: the table has {len(features)} columns besides labels and slices"
                f" ({', '.join(features)[:200]}), the model's input {spec.name!r} takes {width}; leave others"
                " out, and keep the order of training",
            )
        columns = [table.numbers(name, field, NUMPY[spec.datatype]) for name in features]
        return {**arrays, spec.name: np.column_stack(columns) if columns else np.empty((0, 0))}
    for spec in inputs:
        if spec.name in features:
            words = spec.datatype == "BYTES"
            arrays[spec.name] = (
                table.words(spec.name) if words else table.numbers(spec.name, field, NUMPY[spec.datatype])
            )
    return {name: table[name] for name in features if name not in arrays} | arrays


def match(
    arrays: Arrays,
    dataset: DataSet,
    inputs: Sequence[TensorSpec],
    field: str,
    *,
    labelled: bool,
    numbers: bool = False,
    sliced: bool | None = None,
    nan: bool = False,
) -> Data:
    """Match arrays with model inputs: by name, or the only array that is neither labels nor a slice
    with the only input.

    ``numbers``: labels are those of a regression; ``sliced``: whether slices are read, left out:
    where there are labels; ``nan``: a missing value (NaN) is data for the model.
    """
    if isinstance(arrays, Table):
        arrays = _of_columns(arrays, dataset, inputs, field, numbers=numbers)
    aside = _aside(dataset, inputs)
    candidates = [name for name in arrays if name not in aside]
    names = {spec.name: spec.name for spec in inputs}
    if len(inputs) == 1 and inputs[0].name not in candidates and len(candidates) == 1:
        names = {inputs[0].name: candidates[0]}
    missing = [spec.name for spec in inputs if names[spec.name] not in candidates]
    if missing:
        raise bad_input(
            Reason.DATA_INPUT_MISSING,
            f"{field}.uri: the archive has no array for the model's inputs {missing}, only"
            f" {sorted(candidates)}; {_REMEDY}, one for each input",
        )
    whole = all(is_whole(arrays[names[spec.name]], spec) for spec in inputs)
    fitted = {
        spec.name: _fit(arrays[names[spec.name]], names[spec.name], spec, field, whole=whole, nan=nan)
        for spec in inputs
    }
    lengths = {name: len(array) for name, array in fitted.items()}
    n = next(iter(lengths.values()))
    if len(set(lengths.values())) > 1:
        raise bad_input(
            Reason.DATA_LENGTH_MISMATCH,
            f"{field}.uri: the arrays have different numbers of samples {lengths}; they must agree",
        )
    labels = _labels(arrays, dataset, n, field, numbers=numbers) if labelled else None
    slices = dataset.slices if (labelled if sliced is None else sliced) else ()
    for name in slices:
        if name not in arrays or arrays[name].shape != (n,):
            problem = f"has shape {list(arrays[name].shape)}" if name in arrays else "is missing"
            raise bad_input(
                Reason.SLICE_INVALID,
                f"{field}.slices: array {name!r} {problem}; it needs shape [{n}], one value a sample",
            )
        if arrays[name].dtype.kind == "f" and np.isnan(arrays[name]).any():
            raise bad_input(
                Reason.SLICE_INVALID,
                f"{field}.slices: array {name!r} has NaN, which is equal to no value; write a value of its"
                " own for it",
            )
    return Data(
        fitted,
        None if numbers else labels,
        {name: arrays[name] for name in slices},
        labels if numbers else None,
    )


def plain(arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """Words as fixed-width ones, to be stored: arrays of objects would be pickled."""
    return {name: a.astype(np.str_) if a.dtype == np.object_ else a for name, a in arrays.items()}


def words_as_objects(arrays: Mapping[str, NDArray[Any]]) -> Arrays:
    """Words as models take them."""
    return {name: a.astype(np.object_) if a.dtype.kind == "U" else a for name, a in arrays.items()}


class Request(NamedTuple):
    """What is sent at once: ``samples`` of them, as rows or, with ``whole``, one that is all of
    it.
    """

    samples: int
    arrays: Arrays
    whole: bool

    def rows(self, outputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Its answers with the samples in front."""
        return [np.asarray(a)[None] if self.whole else a for a in outputs]


def requests(inputs: Arrays, specs: Sequence[TensorSpec], preferred: int, field: str) -> Iterator[Request]:
    """All samples, in order; raises JobError: NoBatchDimension."""
    if are_whole(inputs, specs):
        for number in range(len(next(iter(inputs.values())))):
            # of a scalar's array an element would be no array
            one = {name: a[number : number + 1].reshape(a.shape[1:]) for name, a in inputs.items()}
            yield Request(1, one, whole=True)
        return
    for count, part in batches(inputs, *batch_rows(specs, preferred, field)):
        yield Request(count, part, whole=False)


def expect_rows(inputs: Mapping[str, NDArray[Any]], specs: Sequence[TensorSpec], field: str) -> None:
    """Raise NoBatchDimension for whole requests, which nothing is trained on."""
    if are_whole(inputs, specs):
        raise bad_input(
            Reason.NO_BATCH_DIMENSION,
            f"{field}: its samples are whole requests, and training needs rows of a batch; export the model"
            " with a batch dimension",
        )


def batch_rows(inputs: Sequence[TensorSpec], preferred: int, field: str) -> tuple[int, bool]:
    """Rows of a request and whether the last one must be filled up to it: a fixed first dimension
    leaves no choice.
    """
    fixed = {spec.shape[0] if spec.shape else 0 for spec in inputs}
    fixed = {first for first in fixed if first >= 0}
    if len(fixed) > 1 or 0 in fixed:
        raise bad_input(
            Reason.NO_BATCH_DIMENSION,
            f"{field}: the model's inputs have different fixed first dimensions {sorted(fixed)}; give samples"
            " as whole requests (one dimension more in front), or export it with a batch dimension",
        )
    return (fixed.pop(), True) if fixed else (preferred, False)


def batches(inputs: Mapping[str, NDArray[Any]], rows: int, fill: bool) -> Iterator[tuple[int, Arrays]]:
    """(samples, arrays) in order; with ``fill`` a short last batch repeats its last sample, whose
    answers are to be dropped.
    """
    n = len(next(iter(inputs.values())))
    for start in range(0, n, rows):
        part = {name: array[start : start + rows] for name, array in inputs.items()}
        count = min(rows, n - start)
        if fill and count < rows:
            part = {
                name: np.concatenate([array, np.repeat(array[-1:], rows - count, axis=0)])
                for name, array in part.items()
            }
        yield count, part
