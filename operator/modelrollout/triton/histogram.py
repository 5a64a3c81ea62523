"""Triton's own histogram of latencies: how long requests took until their first response
(``--metrics-config histogram_latencies=true``, docs of Triton, "Metrics").

Triton counts whole milliseconds and cuts off the rest, so a bound of 49 holds what took less than
50 ms. Its bounds are part of a model's configuration, in a field that earlier versions refuse to
read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

FAMILY = "nv_inference_first_response_histogram_ms"
FLAG = "--metrics-config=histogram_latencies=true"
# The first versions of the server that have it: for models that stream (its core's pull requests
# 396 and 405), and for all (464).
OF_STREAMS, OF_ALL = (2, 52), (2, 65)
RELEASE_OF_STREAMS, RELEASE_OF_ALL = "24.11", "26.01"
# Milliseconds that are bounds in any case: an objective may be set after its servers were rendered.
LADDER = (
    1, 2, 5, 10, 20, 30, 50, 75, 100, 150, 200, 300, 500, 750, 1000, 1500, 2000, 3000, 5000, 10000, 30000
)  # fmt: skip
_VERSION = re.compile(r"(\d{1,4})\.(\d{1,4})(?:\.\d{1,4})?")
_RELEASE = re.compile(r"[^:@]*triton[^:@/]*:(\d{2})\.(\d{2})(?:-[^:@/]*)?(?:@[^/]*)?")


def objectives(seconds: Iterable[float]) -> tuple[int, ...]:
    """The milliseconds to have as bounds: those of the ladder and these objectives, of which others
    than whole milliseconds cannot be counted.
    """
    wanted = {round(s * 1000) for s in seconds if is_countable(s)}
    return tuple(sorted(wanted | set(LADDER)))


def is_countable(seconds: float) -> bool:
    """Whether the histogram can tell what took less than this."""
    milliseconds = round(seconds * 1000, 6)
    return milliseconds >= 1 and milliseconds == round(milliseconds)


def version_of(text: str) -> tuple[int, int] | None:
    """(2, 65) of ``2.65.0``, as ``GET /v2`` reports it; None for text that is no version."""
    match = _VERSION.fullmatch(text)
    return (int(match[1]), int(match[2])) if match else None


def takes_bounds(image: str, reported: str | None) -> bool:
    """Whether this Triton is known to read bounds in a model's configuration: by the version that a
    server of the image has reported, else by the tag of NVIDIA's images, which is a month.
    """
    version = version_of(reported) if reported is not None else None
    if version is not None:
        return version >= OF_STREAMS
    release = _RELEASE.fullmatch(image.rpartition("/")[2])
    return release is not None and f"{release[1]}.{release[2]}" >= RELEASE_OF_STREAMS
