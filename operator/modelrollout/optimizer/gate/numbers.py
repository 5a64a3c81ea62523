"""Metrics of numbers: how near the optimized model's answers are to the original's, sample by
sample, without labels. No I/O.

Every value is between 0 and 1. Another shape, and NaN or Inf where the original has a number, is as
far off as can be.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from modelrollout.contract.gate import GateMetric, MetricName
from modelrollout.optimizer.model.agreement import relative_error
from modelrollout.statistics.paired import Estimate

Floats = NDArray[np.float64]
# by output: the answer to each sample, in the shape that the model gives it
Numbers = dict[str, tuple[NDArray[np.floating], ...]]

_ABSOLUTE, _RELATIVE = 1e-3, 1e-2  # tolerances of closeness
NUMBERS: frozenset[MetricName] = frozenset({"relativeError", "cosine", "closeness", "boxIou"})
_PAIRWISE_BOXES = 1024  # more are compared in order: they are anchors, of which none is left out


def numeric_estimate(metric: GateMetric, before: Numbers, after: Numbers) -> Estimate:
    """The mean over the samples, of the output that is farthest off."""
    of = _VALUES[metric.name]
    by_output = [
        np.array([of(metric, a, b) for a, b in zip(before[name], after[name], strict=True)], np.float64)
        for name in sorted(before)
    ]
    smaller = metric.name == "relativeError"
    values = max(by_output, key=lambda v: float(v.mean()) if smaller else -float(v.mean()))
    harm = values if smaller else 1 - values
    mean = float(values.mean()) if len(values) else 0.0
    largest = float(harm.max(initial=0.0))
    return Estimate(
        name=metric.name,
        n=len(values),
        before=0.0 if smaller else 1.0,
        after=mean,
        total=float(harm.sum()),
        squares=float((harm**2).sum()),
        # a sample as bad as the worst that was seen, each way
        added=2 * largest**2,
        pairs=1,
        spread=float(((values - mean) ** 2).sum()),
        smaller_is_better=smaller,
    )


def _relative_error(_: GateMetric, a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    return min(1.0, relative_error(a, b))


def _finite(a: NDArray[np.floating], b: NDArray[np.floating]) -> tuple[Floats, Floats] | None:
    """Both where the original has numbers; None where the other has none there."""
    if a.shape != b.shape:
        return None
    known = np.isfinite(a)
    x, y = a[known].astype(np.float64), b[known].astype(np.float64)
    return (x, y) if np.isfinite(y).all() else None


def _cosine(_: GateMetric, a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    both = _finite(a, b)
    if both is None:
        return 0.0
    x, y = both
    norms = float(np.linalg.norm(x)) * float(np.linalg.norm(y))
    if not norms:
        return float(np.array_equal(x, y))
    return max(0.0, min(1.0, float(x @ y) / norms))


def _closeness(metric: GateMetric, a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    if a.shape != b.shape:
        return 0.0
    if not a.size:
        return 1.0
    absolute = _ABSOLUTE if metric.abs_tolerance is None else metric.abs_tolerance
    relative = _RELATIVE if metric.rel_tolerance is None else metric.rel_tolerance
    with np.errstate(invalid="ignore"):
        near = np.abs(b.astype(np.float64) - a) <= absolute + relative * np.abs(a)
    return float((near | (a == b) | (np.isnan(a) & np.isnan(b))).mean())


def corners(boxes: NDArray[np.floating], box_format: str | None) -> Floats:
    """[k, 4] boxes as x1, y1, x2, y2."""
    flat = boxes.reshape(-1, 4).astype(np.float64)
    if box_format == "Center":
        half = flat[:, 2:] / 2
        flat = np.concatenate([flat[:, :2] - half, flat[:, :2] + half], axis=1)
    return flat


def _overlaps(a: Floats, b: Floats) -> Floats:
    """Intersection by union of boxes that stand opposite each other."""
    size = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.prod(np.clip(size, 0, None), axis=-1)
    areas = [np.prod(np.clip(box[..., 2:] - box[..., :2], 0, None), axis=-1) for box in (a, b)]
    union = areas[0] + areas[1] - common
    same = (a == b).all(axis=-1)  # also where both have no area
    result: Floats = np.where(same, 1.0, common / np.where(union > 0, union, 1))
    return np.nan_to_num(result)


def _box_iou(metric: GateMetric, a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """The mean over the original's boxes of the best overlap with one of the other's; boxes that
    only one of the two has count as 0.
    """
    one, two = corners(a, metric.box_format), corners(b, metric.box_format)
    most = max(len(one), len(two))
    if not most:
        return 1.0
    if not len(one) or not len(two):
        return 0.0
    if most > _PAIRWISE_BOXES:
        shared = min(len(one), len(two))
        return float(_overlaps(one[:shared], two[:shared]).sum() / most)
    return float(_overlaps(one[:, None], two[None]).max(axis=1).sum() / most)


_Value = Callable[[GateMetric, NDArray[np.floating], NDArray[np.floating]], float]
_VALUES: dict[str, _Value] = {
    "relativeError": _relative_error,
    "cosine": _cosine,
    "closeness": _closeness,
    "boxIou": _box_iou,
}


def joined(parts: Sequence[Numbers]) -> Numbers | None:
    """Those of all batches; None: of none."""
    if not parts:
        return None
    return {name: tuple(a for part in parts for a in part[name]) for name in parts[0]}
