"""The catalogue, and the table and the line at the end."""

from __future__ import annotations

from rich.console import Console

from chaos import report
from chaos.catalogue import CATALOGUE
from chaos.moments import observing, over, says, shifting, stage
from chaos.runner import Trial
from chaos.traffic import Failure


def test_every_fault_has_its_own_name_and_says_what_it_does() -> None:
    assert len({fault.name for fault in CATALOGUE}) == len(CATALOGUE)
    assert all(fault.about and "  " not in fault.about for fault in CATALOGUE)


def test_moments() -> None:
    canary = {"rollout": {"stage": "Canary", "step": {"index": 1, "phase": "Observing"}}}
    assert [m(canary) for m in (stage("Canary"), observing(1), observing(0), shifting(1), over)] == [
        True,
        True,
        False,
        False,
        False,
    ]
    assert over({"rollout": {"stage": "Failed"}})
    assert says("ChildRefused")({"conditions": [{"type": "Ready", "reason": "ChildRefused"}]})
    assert not says("ChildRefused")({"conditions": [{"type": "Ready", "reason": "Stable"}]})
    assert not says("ChildRefused")({})
    assert not any(m({}) for m in (stage("Canary"), observing(0), shifting(0), over))


def test_the_last_line_counts_faults_not_problems() -> None:
    failure = Failure(1.0, 0.1, "http", "HTTP 404")
    trials = [
        Trial("a", "x", sent=100),
        Trial("b", "y", wrong=["p", "q"], sent=50, failures=[failure, failure], apart=[failure]),
    ]
    assert report.summary(trials) == "chaos: 2 faults, 1 wrong outcomes, 2 failed requests of 150"
    assert report.is_right(trials[:1])
    assert not report.is_right(trials)
    assert not report.is_right([Trial("c", "z", failures=[failure])])
    assert report.is_right([Trial("c", "z", apart=[failure])])
    console = Console(width=200)
    with console.capture() as captured:
        console.print(report.table(trials))
    text = captured.get()
    assert report.apart(trials) == ["counted apart in b: 1 requests with http HTTP 404"]
    assert "WRONG: p" in text and "right" in text
