"""The simulation judges as the operator does, its rivals follow their rules, and its lines have the
names that are promised.
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from calibrate import fixed, picture, resets, targets
from calibrate.rules import ALPHA, Ours, Threshold
from calibrate.scenarios import LOOK, SCENARIOS, Counts, Stream, draw
from calibrate.simulate import Task, figures, run
from modelrollout.analysis.counters import Raw, Sample, fold
from modelrollout.analysis.judge import judge
from modelrollout.api.v1alpha1 import Counter, Metric
from modelrollout.rollout.stages.judging import REWRITE_SECONDS

BY_NAME = {s.name: s for s in SCENARIOS}


@pytest.mark.parametrize("name", ["errors_1_to_2", "errors_x10", "errors_all_new"])
def test_arrays_are_judged_as_the_operator_judges_one_rollout(name: str) -> None:
    """Two steps, look by look, with the counts in a status that is written once a minute. The
    margin is so small that its tolerance is none.
    """
    metric, scenario, rollouts = Metric(name="errors", max_increase=1e-9), BY_NAME[name], 3
    rng, rule = np.random.default_rng(5), Ours(scenario, rollouts)
    raw = np.zeros((rollouts, 2, 2))
    carried: list[list[float]] = [[] for _ in range(rollouts)]
    seen = set()
    # what is known of stable when a step begins
    usual: list[list[float]] = [[] for _ in range(rollouts)]
    for step in range(2):
        written = [
            [fold(None, Raw({"g": Sample(*raw[i, side], 1.0 + 1000 * step)})) for side in (0, 1)]
            for i in range(rollouts)
        ]
        written = [
            [canary, stable.model_copy(update={"spread": known})]
            for (canary, stable), known in zip(written, usual, strict=True)
        ]
        last: list[float | None] = [None] * rollouts
        for second in range(LOOK, 151, LOOK):
            new = draw(rng, scenario.streams[0], scenario, second, 0.2, 300.0, rollouts)
            proven = rule.judge(second, [new])
            raw += np.stack(
                [np.stack([new.total, new.bad], 1), np.stack([new.stable_total, new.stable_bad], 1)], 1
            )
            for i in range(rollouts):
                now: list[Counter] = [
                    fold(written[i][side], Raw({"g": Sample(*raw[i, side], 1.0 + second + 1000 * step)}))
                    for side in (0, 1)
                ]
                status = judge(metric, now[0], now[1], None, None, 20, 50, ALPHA, carried[i])
                assert (status.verdict == "Failed") == proven[i], (step, second, i)
                seen.add(status.verdict)
                last[i], usual[i] = status.log_evidence, now[1].spread
                if second % REWRITE_SECONDS == 0:
                    written[i] = now
        rule.next_step(0)
        for retained, evidence in zip(carried, last, strict=True):
            assert evidence is not None
            retained.append(evidence)
    assert "Failed" in seen and len(seen) > 1


@pytest.mark.parametrize(("failures", "later", "at"), [(4, 0, 240), (5, 1, 360)])
def test_the_rivals_take_back_when_their_rules_say(failures: int, later: int, at: int) -> None:
    rule = Threshold((Stream(0.01, 0.1, 0.01),), 2, failures, later)
    bad, total = np.array([1.0, 0.0]), np.array([10.0, 10.0])
    back = [s for s in range(LOOK, 601, LOOK) if rule.judge(s, [Counts(bad, total, bad, total)])[0]]
    assert back[0] == at
    assert not rule.judge(605, [Counts(bad, total, bad, total)])[1]


def test_the_fixed_test_has_its_power() -> None:
    stream, rng = Stream(0.10, 0.12, 0.11), np.random.default_rng(6)
    n = fixed.size(stream, 0.2)
    assert fixed.rejects(rng, 0.12, 0.10, n, 0.2, 20_000) == pytest.approx(0.99, abs=0.003)
    assert fixed.rejects(rng, 0.10, 0.10, n, 0.2, 20_000) < 2 * ALPHA


def test_lines_have_the_promised_names() -> None:
    rng = np.random.default_rng(7)
    names = []
    for scenario in ("errors_x10", "stable_half_of_threshold"):
        result = run(Task(scenario, 100, 20, (7,)))
        assert isinstance(result, dict)
        lines = figures(BY_NAME[scenario], 100, result, rng)
        assert all(
            re.fullmatch(r"(ours|argo|flagger|fixed|best)\.[a-z0-9_]+\.(1|10|100)\.[a-z_]+", name)
            for name, _ in lines
        )
        names += [name for name, _ in lines]
    assert {
        f"ours.errors_x10.100.{f}" for f in ("missed_rate", "seconds_to_rollback", "bad_requests", "samples")
    } <= set(names)
    assert {
        "fixed.errors_x10.100.samples",
        "flagger.stable_half_of_threshold.100.false_rollback_rate",
    } <= set(names)


def test_400_to_everyone_is_caught_at_once_and_a_usual_share_of_client_errors_is_no_alarm() -> None:
    for scenario, latest in (("client_errors_all", 15.0), ("client_errors_5_percent", np.inf)):
        outcomes = run(Task(scenario, 10, 20, (9,)))
        assert isinstance(outcomes, dict)
        seconds = outcomes["ours"].seconds
        assert (seconds <= latest).all() and np.isfinite(seconds).any() == np.isfinite(latest)


def test_restarts_and_gaps_invent_no_errors() -> None:
    assert resets.false_rollbacks(np.random.default_rng(8), 100, 20) == 0


def test_the_picture_is_drawn_from_the_figures() -> None:
    rates = (1, 10, 100)
    values = {
        f"{r}.{s}.{rate}.false_rollback_rate": 0.5
        for r in picture.RULES
        for s in picture.HEALTHY
        for rate in rates
    }
    for figure, value in (("bad_requests", 123.0), ("seconds_to_rollback", 45.0)):
        values |= {f"{r}.{s}.100.{figure}": value for r in picture.RULES for s in picture.REGRESSIONS}
    text = picture.draw(values, 100)
    ElementTree.fromstring(text)
    assert text.count("123 in 45 s") == len(picture.RULES) * len(picture.REGRESSIONS)
    with pytest.raises(KeyError):
        picture.draw({}, 100)


def test_a_target_is_reached_or_it_is_not() -> None:
    shown = targets.lines(
        {
            "ours.failing_pods.10.false_rollback_rate": 0.03,
            "ours.cold_pods.10.false_rollback_rate": 0.01,
            "ours.cold_pods_no_delay.10.false_rollback_rate": 1.0,
            "ours.errors_x10.100.samples": 100.0,
            "best.errors_x10.100.samples": 80.0,
        }
    )
    assert shown == [
        "# ours.failing_pods.10.false_rollback_rate: 0.03, at most 0.02: not reached",
        "# ours.cold_pods.10.false_rollback_rate: 0.01, at most 0.01: reached",
        "# ours.errors_x10.100.samples / best: 1.25, at most 1.8: reached",
    ]


@pytest.mark.parametrize(("name", "most"), [("failing_pods", 0.03), ("failing_pods_new", 0.07)])
def test_pods_that_fail_by_themselves_seldom_take_a_canary_back(name: str, most: float) -> None:
    """Without what is known of stable it is one in five: the chance that the canary's pod is the
    first.
    """
    outcomes = run(Task(name, 10, 300, (9,)))
    assert isinstance(outcomes, dict)
    assert np.isfinite(outcomes["ours"].seconds).mean() <= most


def test_a_cold_canary_is_taken_back_unless_counting_waits() -> None:
    taken = {}
    for name in ("cold_pods", "cold_pods_no_delay"):
        outcomes = run(Task(name, 100, 100, (10,)))
        assert isinstance(outcomes, dict)
        taken[name] = float(np.isfinite(outcomes["ours"].seconds).mean())
    assert taken["cold_pods"] <= 0.01 and taken["cold_pods_no_delay"] == 1


def test_the_best_test_needs_the_fewest_samples() -> None:
    outcomes = run(Task("errors_1_to_2", 100, 300, (11,)))
    assert isinstance(outcomes, dict)
    ours, best = (float(np.median(outcomes[rule].samples)) for rule in ("ours", "best"))
    assert best < ours < 1.4 * best
