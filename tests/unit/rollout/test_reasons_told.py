"""docs/reasons-rollout.md names every reason that the state machine and what feeds it may give."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "operator" / "modelrollout"
SOURCES = [
    *(PACKAGE / "rollout").rglob("*.py"),
    *(PACKAGE / "traffic" / "gateway_api" / f"{m}.py" for m in ("mirror", "features", "router")),
    PACKAGE / "analysis" / "providers" / "prometheus" / "scrape_rights.py",
    *(PACKAGE / "controller" / "observe").rglob("*.py"),
    *(PACKAGE / "controller" / "lookups" / f"{m}.py" for m in ("kueue", "missing_pod", "gateways")),
    PACKAGE / "controller" / "apply" / "actor.py",
    PACKAGE / "controller" / "reconciler.py",
]
REASON = re.compile(r"[A-Z][a-z]+([A-Z]+[a-z]+)+")
NO_REASONS = {
    *("CanaryPassed", "RollingBack"),  # a condition and a phase
    *("PodScheduled", "ResolvedRefs"),  # conditions of others
    # the kubelet's words
    *(
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "ErrImageNeverPull",
        "RegistryUnavailable",
        "CrashLoopBackOff",
    ),
    *("CreateContainerConfigError", "CreateContainerError", "RunContainerError"),
    # a pod's condition; an Event
    *(
        "DisruptionTarget",
        "PreemptionByScheduler",
        "DeletionByTaintManager",
        "DeletionByPodGC",
        "FailedCreate",
    ),
    *(
        "PodFailurePolicy",
        "QuotaReserved",
        "NoMatchingFlavor",
        "ExceedsMaxQuota",
    ),  # why a Job failed; a condition of Kueue's Workload and its reasons
    # features of the Gateway API
    *("HTTPRouteRequestMirror", "HTTPRouteRequestPercentageMirror", "HTTPRouteMethodMatching"),
    *("RequestMirror", "TraefikService"),  # how a gateway mirrors
    "ReplicaSet",  # a kind
    # words of the spec and of routes
    *("BlueGreen", "RegularExpression", "RollingUpdate", "PathPrefix"),
    "OnTime",  # in the timeline of modelrollout analyze
    *("StaleRead", "NotLeading"),  # of passes that are given up; they stand in the log
}


def words(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and REASON.fullmatch(node.value):
            yield node.value


def test_every_reason_is_explained() -> None:
    told = set(re.findall(r"`([A-Za-z]+)`", (ROOT / "docs" / "reasons-rollout.md").read_text()))
    given = {word for source in SOURCES for word in words(source)} - NO_REASONS
    assert len(given) > 20
    assert given - told == set()


def test_nothing_is_explained_that_is_never_given() -> None:
    text = "".join(source.read_text() for source in SOURCES)
    told = {
        word
        for word in re.findall(r"`([A-Za-z]+)`", (ROOT / "docs" / "reasons-rollout.md").read_text())
        if REASON.fullmatch(word)
    }
    known = {"onInconclusive", "progressDeadline", "unscheduledDeadline", "initialDelay", "ShadowDisagrees"}
    assert {word for word in told - known if f'"{word}"' not in text} == set()
