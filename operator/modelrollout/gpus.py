"""Which extended resources are GPUs, and how much of one each is: the one table by which budgets,
tolerations, the look at free GPUs and Jobs go.

Weights are exact: seven slices of a seventh are one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from modelrollout.quantity import quantity

ANY_REST = "*"  # at the end of a name: all that begin like this
_UNLISTED = Fraction(1)


@dataclass(frozen=True)
class GpuResource:
    """A row of the table."""

    weight: Fraction  # GPUs that one of it counts in a policy's budget; 0: it is none
    toleration: str | None = None  # key of the taint that nodes with it usually have
    one_device: bool = False  # one of it is at most one device to a program


def _nvidia(weight: Fraction) -> GpuResource:
    return GpuResource(weight, "nvidia.com/gpu", one_device=True)


def _amd(weight: Fraction) -> GpuResource:
    return GpuResource(weight, "amd.com/gpu", one_device=True)


_WHOLE, _NONE = Fraction(1), Fraction(0)
_NEURON = "aws.amazon.com/neuron"

# What device plugins call what they have. A slice counts its share of a GPU's compute units; where
# several kinds of GPUs have a slice of that name, the largest share.
USUAL: Mapping[str, GpuResource] = {
    "nvidia.com/gpu": _nvidia(_WHOLE),
    "nvidia.com/gpu.shared": _nvidia(_WHOLE),  # how many share one is not in the name
    "nvidia.com/mig-1g.*": _nvidia(Fraction(1, 7)),
    "nvidia.com/mig-2g.*": _nvidia(Fraction(2, 7)),
    "nvidia.com/mig-3g.*": _nvidia(Fraction(3, 7)),
    "nvidia.com/mig-4g.*": _nvidia(Fraction(4, 7)),
    "nvidia.com/mig-7g.*": _nvidia(_WHOLE),
    # of GPUs with four compute slices: A30, RTX PRO 6000
    "nvidia.com/mig-1g.6gb*": _nvidia(Fraction(1, 4)),
    "nvidia.com/mig-2g.12gb*": _nvidia(Fraction(1, 2)),
    "nvidia.com/mig-4g.24gb*": _nvidia(_WHOLE),
    "nvidia.com/mig-1g.24gb*": _nvidia(Fraction(1, 4)),
    "nvidia.com/mig-2g.48gb*": _nvidia(Fraction(1, 2)),
    "nvidia.com/mig-4g.96gb*": _nvidia(_WHOLE),
    "nvidia.com/*": GpuResource(_WHOLE, "nvidia.com/gpu"),
    "amd.com/gpu": _amd(_WHOLE),
    "amd.com/spx_*": _amd(_WHOLE),
    "amd.com/dpx_*": _amd(Fraction(1, 2)),
    "amd.com/tpx_*": _amd(Fraction(1, 3)),
    "amd.com/qpx_*": _amd(Fraction(1, 4)),
    "amd.com/cpx_*": _amd(Fraction(1, 6)),  # of an MI300A; an MI300X has eight
    # One with two tiles may be two devices. The monitoring resources open every GPU of the node.
    "gpu.intel.com/*": GpuResource(_WHOLE, "gpu.intel.com/i915"),
    "gpu.intel.com/xe*": GpuResource(_WHOLE, "gpu.intel.com/xe"),
    # parts of what gpu.intel.com/i915 or xe asks for
    "gpu.intel.com/memory.max": GpuResource(_NONE),
    "gpu.intel.com/millicores": GpuResource(_NONE),
    "gpu.intel.com/tiles": GpuResource(_NONE),
    "habana.ai/gaudi": GpuResource(_WHOLE, "habana.ai/gaudi", one_device=True),
    # A program counts cores, of which a device has two or more.
    _NEURON: GpuResource(_WHOLE, _NEURON),
    "aws.amazon.com/neurondevice": GpuResource(_WHOLE, _NEURON),
    "aws.amazon.com/neuroncore": GpuResource(Fraction(1, 2), _NEURON),
    "google.com/tpu": GpuResource(_WHOLE, "google.com/tpu"),
}


@dataclass(frozen=True)
class GpuTable:
    """The rows by name; a name that ends in * is for all that begin like this."""

    rows: Mapping[str, GpuResource] = field(default_factory=lambda: USUAL)

    def row(self, kind: str) -> GpuResource | None:
        """The row of a resource: that of its own name, else the one with the longest beginning."""
        if kind in self.rows:
            return self.rows[kind]
        fitting = (n for n in self.rows if n.endswith(ANY_REST) and kind.startswith(n.removesuffix(ANY_REST)))
        return self.rows[best] if (best := max(fitting, key=len, default=None)) else None

    def weight(self, kind: str) -> Fraction:
        """What one of it counts in a budget. One whose name has a domain and no row counts as a
        GPU, so that a name that the table does not know slips past no policy.
        """
        row = self.row(kind)
        return row.weight if row is not None else _UNLISTED if "/" in kind else Fraction(0)

    def share(self, limits: Mapping[str, Any] | None) -> Fraction:
        """GPUs that a container with these limits counts in a budget."""
        return sum((self.weight(kind) * n for kind, n in _extended(limits)), Fraction(0))

    def has_gpu(self, limits: Mapping[str, Any] | None) -> bool:
        """Whether a container with these limits gets a GPU, or a part of one."""
        return any(row.weight > 0 for _, row, _ in self._listed(limits))

    def may_have_gpu(self, limits: Mapping[str, Any] | None) -> bool:
        """Whether a container with these limits gets a GPU for all that is known: a resource
        without a row whose name says so may be a share of one.
        """
        return self.has_gpu(limits) or any(
            self.row(kind) is None and "gpu" in kind for kind, _ in _extended(limits)
        )

    def tolerated(self, limits: Mapping[str, Any] | None) -> list[str]:
        """Keys of the taints that nodes with these resources usually have."""
        return list(dict.fromkeys(r.toleration for _, r, _ in self._listed(limits) if r.toleration))

    def devices(self, limits: Mapping[str, Any] | None) -> int | None:
        """The most devices that a program in a container with these limits can see; None where that
        cannot be known, or where it has none.
        """
        gpus = [(row, n) for _, row, n in self._listed(limits) if row.weight > 0]
        unlisted = any(self.row(kind) is None for kind, _ in _extended(limits))
        if unlisted or len(gpus) != 1 or not gpus[0][0].one_device:
            return None
        return gpus[0][1]

    def _listed(self, limits: Mapping[str, Any] | None) -> Iterator[tuple[str, GpuResource, int]]:
        for kind, n in _extended(limits):
            if row := self.row(kind):
                yield kind, row, n


def _extended(limits: Mapping[str, Any] | None) -> Iterator[tuple[str, int]]:
    """Extended resources, whose names have a domain, that are really requested."""
    for kind, value in (limits or {}).items():
        if "/" in kind and (n := math.ceil(quantity(value))) > 0:
            yield kind, n


def rounded_up(gpus: Fraction) -> int:
    """The whole number for those who know no parts."""
    return math.ceil(gpus)


def exact_text(gpus: Fraction) -> str | None:
    """``10/7``; None for a whole number, which needs no text beside it."""
    return None if gpus.denominator == 1 else str(gpus)


def exact(whole: int, text: str | None) -> Fraction:
    """The count of which ``rounded_up`` and ``exact_text`` were written; the whole number where
    that text is of something else.
    """
    try:
        gpus = Fraction(text or whole)
    except (ValueError, ZeroDivisionError):
        return Fraction(whole)
    return gpus if rounded_up(gpus) == whole else Fraction(whole)


def shown(gpus: Fraction) -> str:
    """For messages: ``3``, ``3/7``, ``1 3/7``."""
    whole, rest = divmod(gpus, 1)
    return str(whole) if not rest else f"{whole} {rest}" if whole else str(rest)
