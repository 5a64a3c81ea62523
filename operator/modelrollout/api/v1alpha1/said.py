"""What a spec says: empty lists and maps say the same as leaving them out, and tools that render
manifests add and drop them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from modelrollout.api.v1alpha1.placement import (
    Affinity,
    NodeAffinity,
    PodAffinity,
    PodAntiAffinity,
    TopologySpreadConstraint,
)
from modelrollout.api.v1alpha1.pod import Pod, SizeLimits
from modelrollout.api.v1alpha1.schema import ApiModel

# Objects that say nothing when they are empty. Others say something by being there: a step, a
# labelSelector (all objects), resources in the place of the usual ones.
_SILENT = (NodeAffinity, Pod, PodAffinity, PodAntiAffinity, SizeLimits)
# By field: the types of what is carried through as it is written.
AS_WRITTEN: Mapping[str, type[ApiModel]] = {
    "affinity": Affinity,
    "topologySpreadConstraints": TopologySpreadConstraint,
}


def said(part: ApiModel, written: Mapping[str, Any]) -> dict[str, Any]:
    """``written``, a part of a spec as the API server has it, without what says nothing. ``part``:
    the same, read.
    """
    found: dict[str, Any] = {}
    for name, field in type(part).model_fields.items():
        at, value = field.alias or name, getattr(part, name)
        if at not in written:
            continue
        found[at] = _said(value, written[at], AS_WRITTEN.get(at))
        if field.default is None and found[at] in ([], {}) and _is_silent(value):
            del found[at]
    return found


def _is_silent(value: Any) -> bool:
    return not isinstance(value, ApiModel) or isinstance(value, _SILENT)


def _said(value: Any, written: Any, type_: type[ApiModel] | None) -> Any:
    if isinstance(value, ApiModel):
        return said(value, written)
    if isinstance(value, list):
        return [_said(v, w, type_) for v, w in zip(value, written, strict=True)]
    if type_ is None:
        return written
    try:
        return said(type_.model_validate(written), written)
    except ValidationError:  # of a newer Kubernetes
        return written
