"""What a scikit-learn pipeline takes: one table of numbers, or columns with names and types.

scikit-learn does not record types. They follow from what a transformer has learned from a column:
categories that are words, a word to fill gaps with, a vocabulary. A missing word is the empty one
(Triton has no other), so learned gaps are renamed to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from modelrollout.optimizer.formats.forest import near
from modelrollout.optimizer.formats.source_model import invalid

Kind = Literal["Number", "Whole", "Text"]
_WRAPPED = ("best_estimator_", "estimator_", "regressor_", "classifier_", "estimator")
_LISTS = ("calibrated_classifiers_", "estimators_")
_KEEPS_COLUMNS = ("SimpleImputer", "StandardScaler", "MinMaxScaler", "MaxAbsScaler", "RobustScaler")
_KEEPS_VALUES = (
    "ColumnTransformer",
    "FeatureUnion",
    "FunctionTransformer",
    "OneHotEncoder",
    "OrdinalEncoder",
    "Pipeline",
    "SimpleImputer",
    # parts of estimators: of histograms for training, and of labels
    "_BinMapper",
    "LabelEncoder",
)
MISSING = ""  # of words


@dataclass
class Column:
    """A column of the table that the model was trained on. ``values``: some that it distinguishes.

    ``flat``: a transformer takes it as [n] and not as [n, 1], as those of texts do.
    """

    name: str
    used: bool = False
    kinds: set[Kind] = field(default_factory=set)
    values: list[Any] = field(default_factory=list)
    gaps: bool = False  # a missing value was learned
    unknown: bool = True  # values that were not seen in training are taken

    @property
    def kind(self) -> Kind:
        """Text where anything takes it as such, Whole where it only has categories that are whole
        numbers.
        """
        if "Text" in self.kinds:
            return "Text"
        return "Whole" if self.kinds == {"Whole"} else "Number"


@dataclass(frozen=True)
class Table:
    """The columns of a model, in the order of training. ``apart``: each is an input of its own.
    ``texts``: scikit-learn takes a list of texts instead of a table.
    """

    columns: tuple[Column, ...]
    apart: bool
    texts: bool = False

    @property
    def inputs(self) -> list[Column]:
        """Those that the model uses."""
        return [column for column in self.columns if column.used]

    def joined(self, arrays: dict[str, NDArray[Any]]) -> NDArray[Any]:
        """[n, columns], or [n] texts, from one [n, 1] each; what is not used is empty."""
        n = len(next(iter(arrays.values())))
        texts = any(column.kind == "Text" for column in self.inputs)
        table = np.full((n, len(self.columns)), np.nan, np.object_ if texts else np.float64)
        for position, column in enumerate(self.columns):
            if column.used:
                table[:, position] = arrays[column.name][:, 0]
        return table[:, 0] if self.texts else table


def read_table(model: Any, features: int, *, texts: bool = False) -> Table:
    """What the model takes. Renames words that were missing, and numbers the columns that were
    chosen by name: the table has no names. Raises JobError (ModelInvalid).
    """
    names = [str(name) for name in getattr(model, "feature_names_in_", ())]
    if len(names) != features or len(set(names)) != features:
        names = ["text"] if texts else [f"x{position}" for position in range(features)]
    columns = tuple(Column(name) for name in names)
    reader = _Reader(columns)
    reader.read(model, list(range(features)))
    apart = reader.named or any(column.kind == "Text" for column in columns if column.used)
    return Table(columns, apart, texts)


class _Reader:
    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = columns
        self.named = False  # a column was chosen by its name

    def read(self, estimator: Any, positions: Sequence[int]) -> None:
        """``positions``: of the columns that the estimator takes, in order."""
        kind = type(estimator).__name__
        if estimator is None or estimator == "passthrough":
            self._use(positions, "Number")
        elif estimator == "drop":
            pass
        elif kind == "Pipeline":
            self._pipeline([step for _, step in estimator.steps], positions)
        elif kind == "FeatureUnion":
            for _, part in estimator.transformer_list:
                self.read(part, positions)
        elif kind == "ColumnTransformer":
            self._columns_of(estimator, positions)
        elif hasattr(estimator, "transform"):
            self._transformer(estimator, positions)
        elif inner := list(_inside(estimator)):
            for part in inner:
                self.read(part, positions)
        else:
            self._use(positions, "Number")
            self._thresholds(estimator, positions)

    def _pipeline(self, steps: Sequence[Any], positions: Sequence[int]) -> None:
        for step in steps:
            if step is None or step == "passthrough":
                continue
            self.read(step, positions)
            if type(step).__name__ not in _KEEPS_COLUMNS or getattr(step, "add_indicator", False):
                return
        if not steps or all(s is None or s == "passthrough" for s in steps):
            self._use(positions, "Number")

    def _columns_of(self, transformer: Any, positions: Sequence[int]) -> None:
        own = [str(name) for name in getattr(transformer, "feature_names_in_", ())]
        numbered = []
        for name, part, chosen in transformer.transformers_:
            places, number = self._places(chosen, own, len(positions))
            numbered.append((name, part, number))
            self.read(part, [positions[place] for place in places])
        transformer.transformers_ = numbered

    def _places(self, chosen: Any, names: Sequence[str], total: int) -> tuple[list[int], Any]:
        """(positions, the same as scikit-learn takes it of a table without names)."""
        if isinstance(chosen, str):
            self.named = True
            return [names.index(chosen)], names.index(chosen)
        if isinstance(chosen, slice):
            places = list(range(total))[_numbered(chosen, names)]
            self.named |= isinstance(chosen.start, str) or isinstance(chosen.stop, str)
            return places, places
        if np.ndim(chosen) == 0:
            return [int(chosen)], int(chosen)
        entries = list(chosen)
        if entries and all(isinstance(e, (bool, np.bool_)) for e in entries):
            places = [place for place, on in enumerate(entries) if on]
        elif entries and all(isinstance(e, str) for e in entries):
            self.named = True
            places = [names.index(e) for e in entries]
        else:
            places = [int(e) % total for e in entries]
        return places, places

    def _use(self, positions: Sequence[int], kind: Kind) -> None:
        for position in positions:
            self._columns[position].used = True
            self._columns[position].kinds.add(kind)

    def _transformer(self, transformer: Any, positions: Sequence[int]) -> None:
        categories = getattr(transformer, "categories_", None)
        if categories is not None and len(categories) == len(positions):
            ignores = getattr(transformer, "handle_unknown", "ignore") != "error"
            for at, position in enumerate(positions):
                categories[at] = self._categories(categories[at], self._columns[position])
                self._columns[position].unknown &= ignores
            return
        if hasattr(transformer, "vocabulary_") or type(transformer).__name__ == "HashingVectorizer":
            self._use(positions, "Text")
            for position in positions:
                words = list(getattr(transformer, "vocabulary_", {}))[:200]
                self._columns[position].values += [*words, " ".join(words[:20])]
            return
        statistics = getattr(transformer, "statistics_", None)
        if statistics is not None and np.asarray(statistics).dtype == np.object_:
            for position, fill in zip(positions, statistics, strict=False):
                self._use([position], "Text" if isinstance(fill, str) else "Number")
                self._columns[position].gaps = True
                self._columns[position].values.append(fill)
            if any(isinstance(fill, str) for fill in statistics):
                # the learned gap: pandas' NaN or None, here the empty word
                transformer.missing_values = MISSING
            return
        self._use(positions, "Number")
        self._scale(transformer, positions)
        self._thresholds(transformer, positions)

    def _categories(self, learned: NDArray[Any], column: Column) -> NDArray[Any]:
        """The categories of a column, a missing word renamed."""
        column.used = True
        words = [c for c in learned if isinstance(c, str)]
        if words:
            rest = [c for c in learned if not isinstance(c, str)]
            if not all(c is None or c != c for c in rest) or (rest and MISSING in words):
                raise invalid(
                    f"column {column.name!r} has categories of several types", "make them all words"
                )
            column.gaps |= bool(rest)
            column.kinds.add("Text")
            column.values += words
            return np.array([c if isinstance(c, str) else MISSING for c in learned], np.object_)
        numbers = np.array([np.nan if c is None else c for c in learned], np.float64)
        whole = bool(np.isfinite(numbers).all() and (numbers == np.floor(numbers)).all())
        column.kinds.add("Whole" if whole and learned.dtype.kind != "f" else "Number")
        column.gaps |= bool(np.isnan(numbers).any())
        column.values += numbers[np.isfinite(numbers)].tolist()
        return learned

    def _scale(self, transformer: Any, positions: Sequence[int]) -> None:
        """Values like those of training, where a scaler or imputer has learned where they lie."""
        centre = next(
            (
                np.asarray(value, np.float64)
                for name in ("mean_", "center_", "data_min_", "statistics_")
                if (value := getattr(transformer, name, None)) is not None
            ),
            None,
        )
        if centre is None or centre.shape != (len(positions),):
            return
        width = getattr(transformer, "data_range_", getattr(transformer, "scale_", None))
        widths = np.ones(len(positions)) if width is None else np.asarray(width, np.float64)
        for position, c, w in zip(positions, centre, widths, strict=True):
            if np.isfinite(c) and np.isfinite(w):
                self._columns[position].values += (c + w * np.linspace(-3, 3, 61)).tolist()

    def _thresholds(self, estimator: Any, positions: Sequence[int]) -> None:
        order, categories = tree_features(estimator, len(positions))
        for number, values in tree_thresholds(estimator).items():
            if number < len(order) and order[number] < len(positions):
                finite = values[np.isfinite(values)]
                column = self._columns[positions[order[number]]]
                column.values += near(finite, np.dtype(np.float32)).tolist()
        for feature, learned in categories.items():
            if feature < len(positions) and learned.dtype.kind in "fiu":
                known = learned[np.isfinite(learned)].tolist()
                unknown = max(known, default=0) + 1
                self._columns[positions[feature]].values += [*known, unknown]


def _inside(estimator: Any) -> Iterator[Any]:
    """The estimators that one hands its own columns to."""
    for name in _WRAPPED:
        inner = getattr(estimator, name, None)
        # ``estimator`` is an unfitted one, except in what calibrates
        if hasattr(inner, "get_params") and (hasattr(inner, "n_features_in_") or name != "estimator"):
            yield inner
            return
    for name in _LISTS:
        # of a forest, or of boosting, the parts are trees that take other columns
        parts = getattr(estimator, name, None)
        if isinstance(parts, list) and not hasattr(estimator, "estimators_samples_"):
            yield from (p for p in parts if hasattr(p, "get_params") or hasattr(p, "estimator"))
            return


def tree_features(estimator: Any, features: int) -> tuple[NDArray[np.int64], dict[int, NDArray[Any]]]:
    """(an estimator's features in the order in which its trees number them, the categories of some
    by feature): histograms number features that are categories first.
    """
    preprocessor = getattr(estimator, "_preprocessor", None)
    if preprocessor is None:
        return np.arange(features), {}
    categorical = np.asarray(estimator.is_categorical_)
    learned = preprocessor.named_transformers_["encoder"].categories_
    return (
        np.argsort(~categorical, kind="stable"),
        dict(zip(np.flatnonzero(categorical).tolist(), learned, strict=True)),
    )


def tree_thresholds(estimator: Any) -> dict[int, NDArray[np.float64]]:
    """By feature, of the decision trees that an estimator holds."""
    found: dict[int, list[NDArray[np.float64]]] = {}
    for tree in trees_in(estimator, set()):
        if hasattr(tree, "nodes"):
            inner = tree.nodes[(tree.nodes["is_leaf"] == 0) & (tree.nodes["is_categorical"] == 0)]
            features, thresholds = inner["feature_idx"], inner["num_threshold"]
        else:
            mask = tree.children_left >= 0
            features, thresholds = tree.feature[mask], tree.threshold[mask]
        for feature in np.unique(features):
            found.setdefault(int(feature), []).append(thresholds[features == feature])
    return {feature: np.unique(np.concatenate(parts)) for feature, parts in found.items()}


def computes_before_trees(model: Any) -> bool:
    """Whether trees compare what a scaler or the like has computed: the last bit of it decides, and
    float32 has another one than the float64 of scikit-learn.
    """
    parts = list(estimators_in(model, set()))
    names = [type(part).__name__ for part in parts]
    return any(
        hasattr(part, "transform") and not hasattr(part, "predict") and name not in _KEEPS_VALUES
        for part, name in zip(parts, names, strict=True)
    ) and (
        any(True for _ in trees_in(model, set())) or any(name.startswith(("XGB", "LGBM")) for name in names)
    )


def estimators_in(value: Any, seen: set[int]) -> Iterator[Any]:
    """Every estimator that one holds, and itself."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if hasattr(value, "get_params"):
        yield value
    parts = value if isinstance(value, (list, tuple)) else getattr(value, "__dict__", {}).values()
    for part in parts:
        if isinstance(part, (list, tuple)) or hasattr(part, "get_params") or hasattr(part, "estimator"):
            yield from estimators_in(part, seen)


TREE = "sklearn.tree._tree.Tree"
HISTOGRAM_TREE = "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor"


def trees_in(value: Any, seen: set[int]) -> Iterator[Any]:
    """Every tree that an estimator holds, however deep."""
    if id(value) in seen:
        return
    seen.add(id(value))
    if f"{type(value).__module__}.{type(value).__qualname__}" in (TREE, HISTOGRAM_TREE):
        yield value
        return
    parts: list[Any] = []
    if isinstance(value, dict):
        parts = list(value.values())
    elif isinstance(value, (list, tuple)):
        parts = list(value)
    elif isinstance(value, np.ndarray) and value.dtype == np.object_:
        parts = list(value.ravel())
    elif hasattr(value, "__dict__"):
        parts = list(vars(value).values())
    for part in parts:
        yield from trees_in(part, seen)


def _numbered(chosen: slice, names: Sequence[str]) -> slice:
    """A slice of names includes its end, one of numbers does not."""

    def place(end: Any, more: int) -> Any:
        return names.index(end) + more if isinstance(end, str) else end

    return slice(place(chosen.start, 0), place(chosen.stop, 1), chosen.step)
