"""Decision trees as one operator of ONNX (ai.onnx.ml TreeEnsembleRegressor), and rows of inputs
that meet every branch of them.

The operator compares as the libraries do: XGBoost ``value < threshold``, LightGBM ``value <=
threshold``, and a missing value (NaN) goes where the node says. A category that is in a node's set
becomes a chain of comparisons (BRANCH_EQ) that lead to one child.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from onnx import NodeProto, helper

from modelrollout.optimizer.formats.source_model import invalid

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

ROWS = 2000
_NO_VALUE = 1e-30
_NO_CATEGORY = -12345.0
_AGAIN = "save the model again"
_COARSE = 1e-3  # of the distance between thresholds: what float32 may move a value by


class Members(NamedTuple):
    """The categories that lead to one child; all other values lead to the other."""

    values: NDArray[Any]
    left: bool  # the child


@dataclass(frozen=True)
class Tree:
    """Node 0 is the root; a node is a leaf if ``left`` is negative. All arrays are [nodes].

    ``values``: [nodes, k] of leaves, added to the targets ``targets`` [k]. ``missing_left``: where
    NaN goes. ``members``: of nodes that ask for categories.
    """

    feature: Ints
    threshold: Floats
    left: Ints
    right: Ints
    missing_left: NDArray[np.bool_]
    values: Floats
    targets: tuple[int, ...]
    members: Mapping[int, Members] = field(default_factory=dict)

    def order(self, features: int) -> list[int]:
        """The nodes that the root leads to, each before its children; raises JobError
        (ModelInvalid)."""
        found: list[int] = []
        seen: set[int] = set()
        waiting = [0]
        while waiting:
            node = waiting.pop()
            if not 0 <= node < len(self.left) or node in seen:
                raise invalid("a tree in the file has nodes that lead out of it, or back", _AGAIN)
            seen.add(node)
            found.append(node)
            if self.left[node] >= 0:
                if not 0 <= self.feature[node] < features:
                    raise invalid("a tree asks for a feature that the model does not have", _AGAIN)
                waiting += [int(self.right[node]), int(self.left[node])]
        return found


@dataclass(frozen=True)
class Forest:
    """Trees whose leaves are added up, target by target, to ``base``.

    ``compares``: how a value is compared with a threshold to go left. ``zero_missing``: features
    [features] of which 0 is a missing value. ``whole``: which category 2.7 and -0.5 are: 2 and -1
    (Floor), 2 and 0 (CutOff), or none (Exact).
    """

    trees: tuple[Tree, ...]
    features: int
    base: tuple[float, ...]
    compares: Literal["BRANCH_LT", "BRANCH_LEQ"]
    zero_missing: NDArray[np.bool_]
    whole: Literal["Floor", "CutOff", "Exact"] = "Exact"

    def categorical(self) -> list[int]:
        """The features that are categories."""
        return sorted({int(tree.feature[node]) for tree in self.trees for node in tree.members})

    def node(self, name: str, inputs: Sequence[str], outputs: Sequence[str], *, double: bool) -> NodeProto:
        """The operator: [n, features] of float32, or ``double`` of float64, to [n, targets]
        float32. Raises JobError (ModelInvalid).
        """
        made = _Attributes(self, double=double)
        for number, tree in enumerate(self.trees):
            made.add(number, tree)
        return helper.make_node(
            "TreeEnsembleRegressor", inputs, outputs, name, domain="ai.onnx.ml", **made.attributes()
        )

    def thresholds(self) -> dict[int, Floats]:
        """Sorted, by feature."""
        by_feature: dict[int, set[float]] = defaultdict(set)
        for tree in self.trees:
            for node in np.flatnonzero(tree.left >= 0):
                if node not in tree.members:
                    by_feature[int(tree.feature[node])].add(float(tree.threshold[node]))
        return {feature: np.array(sorted(values)) for feature, values in by_feature.items()}

    def needs_double(self) -> bool:
        """Whether float32 would carry inputs over a threshold: where thresholds lie about as dense
        as its numbers do, as with times in seconds (1.7e9).
        """
        return any(is_coarse(values) for values in self.thresholds().values())

    def probes(self, *, double: bool) -> NDArray[Any]:
        """[ROWS, features]: values at, just below and just above thresholds, zeros, NaN, and
        categories (known, unknown, in between), each row of another mixture.
        """
        rng = np.random.default_rng(0)
        thresholds = self.thresholds()
        known: dict[int, set[float]] = defaultdict(set)
        for tree in self.trees:
            for node, members in tree.members.items():
                known[int(tree.feature[node])].update(members.values.tolist())
        dtype = np.dtype(np.float64 if double else np.float32)
        table = np.empty((ROWS, self.features), dtype)
        for feature in range(self.features):
            if feature in known:
                most = int(max(known[feature], default=0))
                candidates = np.array([*range(min(most + 2, ROWS)), most + 50, -1, 0.5], dtype)
            else:
                candidates = near(thresholds.get(feature, np.empty(0)), dtype)
            table[:, feature] = rng.choice(candidates, ROWS)
        table[rng.random(table.shape) < 0.05] = np.nan
        table[rng.random(table.shape) < 0.05] = 0
        return table


def is_coarse(thresholds: Floats) -> bool:
    """Whether float32 is too coarse for values that are compared with these (sorted)."""
    finite = thresholds[np.isfinite(thresholds)]
    if not len(finite):
        return False
    largest = float(np.abs(finite).max())
    if largest > float(np.finfo(np.float32).max):
        return True
    step = float(np.spacing(np.float32(largest)))
    if len(finite) == 1:
        return step >= 1  # whole numbers are no longer exact
    return step > _COARSE * float(np.median(np.diff(finite)))


def near(thresholds: Floats, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Values about thresholds, between them and beyond, and some others."""
    finite = thresholds[np.isfinite(thresholds) & (np.abs(thresholds) <= np.finfo(dtype).max)]
    # what lies this close to 0 is 0 for LightGBM, and no value of a table
    finite = np.unique(np.where(np.abs(finite) < _NO_VALUE, 0.0, finite))
    if len(finite) > ROWS // 8:
        finite = finite[np.linspace(0, len(finite) - 1, ROWS // 8).astype(np.int64)]
    at = finite.astype(dtype)
    width = max(2 * float(np.abs(finite).max(initial=0.0)), 1.0)
    far = [0.0, 1.0, -1.0, *(finite[:1] - width), *(finite[-1:] + width)]
    return np.concatenate(
        [
            at,
            np.nextafter(at[at != 0], dtype.type(-np.inf)),
            np.nextafter(at[at != 0], dtype.type(np.inf)),
            ((finite[1:] + finite[:-1]) / 2).astype(dtype),
            np.array(far).astype(dtype),
        ]
    )


class _Attributes:
    """Collects the attributes of the operator, node by node."""

    def __init__(self, forest: Forest, *, double: bool) -> None:
        self._forest, self._double = forest, double
        self._columns: dict[str, list[Any]] = {
            f"nodes_{name}": []
            for name in (
                "treeids", "nodeids", "featureids", "modes", "values", "truenodeids", "falsenodeids",
                "missing_value_tracks_true",
            )
        } | {f"target_{name}": [] for name in ("treeids", "nodeids", "ids", "weights")}  # fmt: skip

    def add(self, number: int, tree: Tree) -> None:
        """One tree."""
        order = tree.order(self._forest.features)
        extra = len(tree.left)  # ids of the chains of comparisons follow those of the nodes
        for node in order:
            if tree.left[node] < 0:
                self._node(number, node, 0, "LEAF", 0.0, 0, 0, False)
                for target, value in zip(tree.targets, tree.values[node], strict=True):
                    self._leaf(number, node, target, float(value))
                continue
            feature, left, right = (int(a[node]) for a in (tree.feature, tree.left, tree.right))
            missing = bool(tree.missing_left[node])
            if node not in tree.members:
                value = float(tree.threshold[node])
                self._node(number, node, feature, self._forest.compares, value, left, right, missing)
                continue
            members = tree.members[node]
            hit, miss = (left, right) if members.left else (right, left)
            # of an empty set: nothing is equal to it
            chain = [float(m) for m in members.values] or [_NO_CATEGORY]
            at = node
            for position, value in enumerate(chain):
                last = position == len(chain) - 1
                after = miss if last else extra
                tracks = missing == members.left  # NaN goes to the members' child
                self._node(number, at, feature, "BRANCH_EQ", value, hit, after, tracks)
                if not last:
                    at, extra = extra, extra + 1

    def _node(
        self,
        tree: int,
        node: int,
        feature: int,
        mode: str,
        value: float,
        true: int,
        false: int,
        missing: bool,
    ) -> None:
        row = (tree, node, feature, mode, value, true, false, int(missing))
        for column, entry in zip(list(self._columns.values())[:8], row, strict=True):
            column.append(entry)

    def _leaf(self, tree: int, node: int, target: int, value: float) -> None:
        for column, entry in zip(list(self._columns.values())[8:], (tree, node, target, value), strict=True):
            column.append(entry)

    def attributes(self) -> dict[str, Any]:
        """By name."""
        columns = dict(self._columns)
        base = list(self._forest.base)
        if self._double:
            for name, values in (
                ("nodes_values", columns.pop("nodes_values")),
                ("target_weights", columns.pop("target_weights")),
                ("base_values", base),
            ):
                columns[f"{name}_as_tensor"] = helper.make_tensor(name, 11, [len(values)], values)
        else:
            thresholds = np.array(columns["nodes_values"], np.float64)
            columns["nodes_values"] = (
                rounded_down(thresholds) if self._forest.compares == "BRANCH_LEQ" else thresholds
            ).tolist()
            columns["base_values"] = base
        return {**columns, "n_targets": len(base), "aggregate_function": "SUM", "post_transform": "NONE"}


def rounded_down(thresholds: Floats) -> NDArray[np.float32]:
    """The largest float32 that is not above: a float32 is at most the one exactly if it is at most
    the other.
    """
    with np.errstate(over="ignore"):
        rounded = thresholds.astype(np.float32)
    return np.where(rounded > thresholds, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def bits_of(words: Sequence[int]) -> Ints:
    """The numbers of the bits that are set in words of 32."""
    return np.array(
        [32 * place + bit for place, word in enumerate(words) for bit in range(32) if word >> bit & 1],
        np.int64,
    )
