"""What Flux and other users of kstatus make of ModelDeployments: by kstatus itself."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence

from demo.cluster import Object
from gitops import GitopsError
from sandbox import build_parts, pins
from sandbox.paths import cache_root

SECONDS = 120


def computed(objects: Sequence[Object]) -> list[str]:
    """Current, InProgress, Failed or Terminating for each object."""
    part = pins.KSTATUS_PART
    build_parts.build(part, cache_root() / "logs" / f"build-{part.name}.log")
    done = subprocess.run(
        [build_parts.home(part) / part.name],
        input="".join(json.dumps(o) + "\n" for o in objects),
        capture_output=True,
        text=True,
        timeout=SECONDS,
    )
    words = done.stdout.split()
    if done.returncode or len(words) != len(objects):
        raise GitopsError(f"kstatus judged {len(words)} of {len(objects)} objects: {done.stderr.strip()}")
    return words


def expected(deployment: Object) -> str:
    """What kstatus should make of a ModelDeployment, by its conditions."""
    metadata, status = deployment["metadata"], deployment.get("status") or {}
    if metadata.get("deletionTimestamp"):
        return "Terminating"
    truth = {c["type"]: c["status"] for c in status.get("conditions", [])}
    if not truth:
        return "Current"  # of an object without a status kstatus knows nothing
    if status.get("observedGeneration") != metadata["generation"]:
        return "InProgress"
    return "Current" if truth["Ready"] == "True" else "Failed" if truth["Stalled"] == "True" else "InProgress"


def differences(objects: Sequence[Object]) -> list[str]:
    """Where kstatus sees another state than the conditions mean."""
    return [
        f"kstatus makes {word} of {o['metadata']['name']} at version {o['metadata']['resourceVersion']},"
        f" where its conditions mean {means}"
        for o, word in zip(objects, computed(objects), strict=True)
        if word != (means := expected(o))
    ]
