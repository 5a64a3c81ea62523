"""``digits`` in the middle of a canary, and the command line against it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from modelrollout.cli import cluster, main
from modelrollout.kube.kinds import EVENT, MODEL_DEPLOYMENT, MODEL_REVISION, POD
from tests.unit.cli.cli_fakes import NOW, FakeKube, ago, canary_status, deployment, event, pod, revision


@pytest.fixture
def kube() -> FakeKube:
    """``digits`` in the middle of a canary, with three revisions."""
    fake = FakeKube()
    fake.add(MODEL_DEPLOYMENT, deployment(**canary_status()))
    fake.add(
        MODEL_REVISION,
        revision("digits-5aaa", 1, "Retired", sha256="c" * 64, accuracy="0.981", size="1.5Mi", p99="4.0ms"),
    )
    fake.add(
        MODEL_REVISION,
        revision(
            "digits-6c9f",
            2,
            "Stable",
            sha256="d" * 64,
            accuracy="0.983 (-0.001)",
            size="412Ki (-74 %)",
            p99="3.1ms",
        ),
    )
    fake.add(
        MODEL_REVISION,
        revision(
            "digits-8d1b",
            3,
            "Canary",
            sha256="b" * 64,
            accuracy="0.986 (-0.002)",
            size="398Ki (-74 %)",
            p99="2.9ms",
        ),
    )
    for i in (0, 1):
        fake.add(POD, pod(f"s{i}", "digits-6c9f", True))
        fake.add(POD, pod(f"c{i}", "digits-8d1b", i == 0))
    fake.add(POD, pod("leaving", "digits-8d1b", True, deletionTimestamp=ago(seconds=5)))
    fake.add(EVENT, event("StepPassed", "step 1/4 of digits-8d1b passed"))
    fake.add(EVENT, event("Scheduled", "not ours", about="digits", kind="Pod"))
    fake.add(
        EVENT,
        event(
            "CanaryStarted",
            "digits-8d1b gets 5 %",
            about="digits-8d1b",
            kind="ModelRevision",
            lastTimestamp=ago(minutes=3),
        ),
    )
    return fake


@pytest.fixture
def cli(kube: FakeKube, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command against the fake cluster."""

    async def connect(kubeconfig: str | None, context: str | None) -> FakeKube:
        return kube

    monkeypatch.setattr(cluster, "connect", connect)
    monkeypatch.setattr(main, "_now", lambda: NOW)
    monkeypatch.setattr(main, "POLL_SECONDS", 0.01)
    monkeypatch.setenv("KUBECONFIG", "/nowhere")
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*args: str) -> Result:
        return CliRunner().invoke(main.app, args)

    return run
