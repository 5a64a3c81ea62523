"""Trees as one operator of ONNX: hostile structures, thresholds in float32, and how answers are
compared.
"""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from modelrollout.jobs.errors import JobError
from modelrollout.optimizer.formats.boosted import Boosted, Objective, to_onnx
from modelrollout.optimizer.formats.forest import Forest, Members, Tree, is_coarse, near, rounded_down
from modelrollout.optimizer.formats.isolated import _differences

EPSILON = np.finfo(np.float32).eps


def tree(left: list[int], right: list[int], feature: int = 0, **more: object) -> Tree:
    n = len(left)
    fields: dict[str, object] = {
        "feature": np.full(n, feature),
        "threshold": np.full(n, 0.5),
        "left": np.array(left),
        "right": np.array(right),
        "missing_left": np.zeros(n, np.bool_),
        "values": np.arange(n, dtype=np.float64)[:, None],
        "targets": (0,),
    }
    return Tree(**(fields | more))  # type: ignore[arg-type]


def forest(*trees: Tree, compares: str = "BRANCH_LEQ") -> Forest:
    return Forest(trees, 2, (0.0,), compares, np.zeros(2, np.bool_))  # type: ignore[arg-type]


def answers(made: Forest, rows: list[list[float]], *, double: bool = False) -> list[float]:
    model = to_onnx(Boosted(made, 2, Objective("Numbers", "Identity"), double=double))
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = np.array(rows, np.float64 if double else np.float32)
    return session.run(None, {"x": x})[0].ravel().tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "bad",
    [
        tree([1, -1], [2, -1]),  # out of it
        tree([0, -1], [1, -1]),  # itself
        tree([1, 0, -1], [2, 2, -1]),  # back
        tree([1, -1, -1], [1, -1, -1]),  # one child twice
        tree([1, -1, -1], [2, -1, -1], feature=7),
        tree([1, -1, -1], [2, -1, -1], feature=-1),
    ],
)
def test_a_tree_that_leads_nowhere_is_refused(bad: Tree) -> None:
    with pytest.raises(JobError) as error:
        answers(forest(bad), [[0, 0]])
    assert error.value.reason == "ModelInvalid"


def test_a_tree_of_one_leaf() -> None:
    assert answers(forest(tree([-1], [-1], values=np.array([[3.5]]))), [[1, 2]]) == [3.5]


def test_a_threshold_between_two_float32_is_met_exactly() -> None:
    at = 1 + float(EPSILON) / 3
    made = forest(tree([1, -1, -1], [2, -1, -1], threshold=np.full(3, at)))
    assert answers(made, [[1, 0], [1 + EPSILON, 0]]) == [1, 2]
    assert answers(made, [[at, 0], [np.nextafter(at, 2), 0]], double=True) == [1, 2]


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("missing", [True, False])
def test_members_of_a_set_lead_to_one_child(left: bool, missing: bool) -> None:
    members = {0: Members(np.array([1, 4, 6]), left=left)}
    made = forest(
        tree([1, -1, -1], [2, -1, -1], members=members, missing_left=np.array([missing, False, False]))
    )
    inside, outside = (1, 2) if left else (2, 1)
    rows = [[1, 0], [4, 0], [6, 0], [0, 0], [5, 0], [-1, 0], [99, 0], [np.nan, 0]]
    expected = [inside] * 3 + [outside] * 4 + [1 if missing else 2]
    assert answers(made, rows) == expected


def test_an_empty_set_has_no_members() -> None:
    made = forest(tree([1, -1, -1], [2, -1, -1], members={0: Members(np.array([], np.int64), left=True)}))
    assert answers(made, [[0, 0], [-1, 0], [3, 0]]) == [2, 2, 2]


@pytest.mark.parametrize(
    ("thresholds", "coarse"),
    [
        ([0.1, 0.2, 0.3], False),
        ([], False),
        ([1.7e9], True),
        ([1e6], False),
        ([1.7e9, 1.7e9 + 500], True),
        ([45.12341, 45.12351, 45.12361], True),
        ([1e39], True),
        ([-1e-35, 1e-35], False),
        ([1000.0, 2000.0, 3000.0], False),
    ],
)
def test_where_float32_is_too_coarse(thresholds: list[float], coarse: bool) -> None:
    assert is_coarse(np.array(thresholds)) is coarse


def test_rounding_down_changes_no_comparison_of_float32() -> None:
    rng = np.random.default_rng(0)
    thresholds = rng.normal(size=1000) * 10.0 ** rng.uniform(-30, 30, 1000)
    for step in (-1, 0, 1):
        x = np.nextafter(thresholds.astype(np.float32), np.float32(step * np.inf)) if step else None
        values = thresholds.astype(np.float32) if x is None else x
        assert ((values <= thresholds) == (values <= rounded_down(thresholds))).all()


def test_probes_lie_on_both_sides_of_a_threshold() -> None:
    values = set(near(np.array([0.1, 0.7]), np.dtype(np.float32)))
    for threshold in (np.float32(0.1), np.float32(0.7)):
        below, above = (np.nextafter(threshold, np.float32(to)) for to in (-9, 9))
        assert {below, threshold, above} <= values
    assert 0 in values


def test_small_outputs_are_compared_by_their_own_scale() -> None:
    want = np.array([[1e-6], [2e-6], [3e-6], [4e-6]])
    apart, largest = _differences([want], [want * np.array([[1], [1], [1], [2]])])
    assert apart.tolist() == [False, False, False, True]
    assert largest == pytest.approx(4e-6)
    large = np.array([[1e6], [-1e6], [10.0]])
    assert not _differences([large], [large + 1e-2])[0].any()


def test_classes_may_differ_only_where_their_scores_tie() -> None:
    scores = np.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])
    want, got = np.array([[0], [0], [1]]), np.array([[1], [1], [1]])
    assert _differences([want, scores], [got, scores])[0].tolist() == [False, True, False]
    words = np.array([["a"], ["b"], ["c"]])
    assert _differences([words], [np.array([["a"], ["x"], ["c"]])])[0].tolist() == [False, True, False]


def test_other_shapes_are_refused() -> None:
    with pytest.raises(JobError) as error:
        _differences([np.zeros((3, 2))], [np.zeros((3, 1))])
    assert error.value.reason == "ConversionUnfaithful"
