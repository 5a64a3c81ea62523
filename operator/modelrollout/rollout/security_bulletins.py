"""NVIDIA's security bulletins on Triton (github.com/NVIDIA/product-security, CSAF), and the
versions that they affect.

The list is as of this release of the operator: later flaws are not in it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from modelrollout.problem import Problem
from modelrollout.reasons import Reason

VULNERABLE = Reason.TRITON_VULNERABLE
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.(\d{1,4}))?")


@dataclass(frozen=True)
class Bulletin:
    """``fixed``: the first version of the server without the flaws; ``release``: of its container;
    ``worst``: the highest CVSS base score.
    """

    number: int
    fixed: tuple[int, int, int]
    release: str
    worst: float
    flaws: int


# By the first fixed version. Flaws of the DALI backend, another program, are not counted.
BULLETINS = (
    Bulletin(5509, (2, 40, 0), "23.11", 7.5, 1),
    Bulletin(5535, (2, 45, 0), "24.04", 9.0, 3),
    Bulletin(5546, (2, 46, 0), "24.05", 5.4, 2),
    Bulletin(5565, (2, 50, 0), "24.09", 4.9, 1),
    Bulletin(5612, (2, 53, 0), "24.12", 4.9, 1),
    Bulletin(5687, (2, 59, 1), "25.07", 9.8, 17),
    Bulletin(5691, (2, 60, 0), "25.08", 9.8, 4),
    Bulletin(5723, (2, 61, 0), "25.09", 7.5, 1),
    Bulletin(5734, (2, 62, 0), "25.10", 7.5, 2),
    Bulletin(5790, (2, 65, 0), "26.01", 7.5, 3),
    Bulletin(5816, (2, 66, 0), "26.02", 7.5, 5),
    Bulletin(5828, (2, 67, 0), "26.03", 9.8, 5),
    Bulletin(5860, (2, 67, 0), "26.03", 4.4, 1),
    Bulletin(5848, (2, 68, 0), "26.04", 7.5, 2),
    Bulletin(5853, (2, 69, 0), "26.05", 7.5, 7),
    Bulletin(5865, (2, 70, 0), "26.06", 9.8, 5),
)


def known_flaws(version: str) -> Problem | None:
    """The known flaws of this version of Triton, as ``GET /v2`` reports it; None also for text that
    is no version.
    """
    match = _VERSION.match(version)
    if match is None:
        return None
    at = (int(match[1]), int(match[2]), int(match[3] or 0))
    open_ones = [b for b in BULLETINS if at < b.fixed]
    if not open_ones:
        return None
    worst, last = max(open_ones, key=lambda b: b.worst), max(open_ones, key=lambda b: b.fixed)
    summary = (
        f"{len(open_ones)} security bulletins of NVIDIA, the worst is {worst.number}, CVSS {worst.worst:g}"
    )
    text = f"Triton {version} has {sum(b.flaws for b in open_ones)} known flaws ({summary})"
    return Problem(
        VULNERABLE,
        f"{text}: set spec.serving.triton.image, or triton.image in the chart, to {last.release} or later",
    )
