"""Run one scenario at one rate: when does each rule take a rollout back, and what has it cost until
then?
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from calibrate import fixed, resets
from calibrate.pods import Episodes, Floats
from calibrate.rules import Rule, rules
from calibrate.scenarios import HOUR, IN_TIME, RATES, RESETS, SCENARIOS, Counts, Scenario, draw, looks

WEIGHT = SCENARIOS[0].steps[0].weight / 100


@dataclass
class Outcome:
    """Of each rollout: seconds from the onset until it is taken back (infinite: never); until then
    the canary's bad requests, and all of them.
    """

    seconds: Floats
    bad: Floats
    samples: Floats


@dataclass(frozen=True)
class Task:
    """A part of a scenario: what one process does in one go."""

    scenario: str
    rate: int
    rollouts: int
    seed: tuple[int, ...]


def run(task: Task) -> dict[str, Outcome] | float:
    """Outcomes by rule; for resets and gaps the share taken back."""
    rng = np.random.default_rng(task.seed)
    if task.scenario == RESETS:
        return resets.false_rollbacks(rng, task.rate, task.rollouts)
    return _stream(next(s for s in SCENARIOS if s.name == task.scenario), task.rate, task.rollouts, rng)


def labelled(task: Task) -> tuple[Task, dict[str, Outcome] | float]:
    """For processes that end in any order."""
    return task, run(task)


def _stream(s: Scenario, rate: int, rollouts: int, rng: np.random.Generator) -> dict[str, Outcome]:
    judges: dict[str, Rule] = rules(s, rollouts)
    outcomes = {name: Outcome(*(np.full(rollouts, v) for v in (np.inf, 0.0, 0.0))) for name in judges}
    past = -60 * s.history
    episodes = Episodes(rng, s.failing, rollouts, past, HOUR) if s.failing else None

    def requests(begin: int, end: int, weight: float) -> list[Counts]:
        failed = episodes.shares(begin, end) if episodes else (0.0, 0.0)
        return [
            draw(rng, stream, s, end, weight, rate * (end - begin), rollouts, failed) for stream in s.streams
        ]

    for minute in range(past, 0, 60):
        news = requests(minute, minute + 60, 0.0)
        for judge in judges.values():
            judge.before(news)
    began = second = 0
    for index, step in enumerate(s.steps):
        for judge in judges.values() if index else ():
            judge.next_step(second)
        for seconds in looks(min(step.seconds, _horizon(s, rate) - began)):
            news = requests(second, began + seconds, step.weight / 100)
            second = began + seconds
            for name, judge in judges.items():
                _note(outcomes[name], judge, second, s.onset, news)
            if all(np.isfinite(o.seconds).all() for o in outcomes.values()):
                return outcomes
        began = second
    return outcomes


def _note(o: Outcome, judge: Rule, second: int, onset: int, news: list[Counts]) -> None:
    going = ~np.isfinite(o.seconds)
    if not going.any():
        return
    if second > onset:
        o.bad += going * sum(n.bad for n in news)
        o.samples += going * news[0].total
    o.seconds = np.where(going & judge.judge(second, news), second - onset, o.seconds)


def _horizon(s: Scenario, rate: int) -> int:
    """Regressions at the highest rate are over in 15 minutes, one way or the other."""
    return IN_TIME if not s.harmless and rate == max(RATES) and not s.onset else HOUR


def figures(
    s: Scenario, rate: int, outcomes: dict[str, Outcome], rng: np.random.Generator
) -> list[tuple[str, float]]:
    """``RULE.SCENARIO.RPS.FIGURE`` and value."""
    rows: list[tuple[str, float]] = []
    for name, o in outcomes.items():
        at = f"{name}.{s.name}.{rate}"
        if s.harmless:
            rows.append((f"{at}.false_rollback_rate", float(np.mean(np.isfinite(o.seconds)))))
            continue
        early = o.seconds <= 0
        if s.onset:
            rows.append((f"{at}.early_rollback_rate", float(np.mean(early))))
            if early.all():
                continue
            o = Outcome(o.seconds[~early], o.bad[~early], o.samples[~early])
        rows.append((f"{at}.missed_rate", float(np.mean(o.seconds > IN_TIME))))
        if _horizon(s, rate) == HOUR and not s.onset:
            rows.append((f"{at}.missed_in_an_hour_rate", float(np.mean(o.seconds > HOUR))))
        rows.append((f"{at}.seconds_to_rollback", float(np.median(o.seconds))))
        caught = np.isfinite(o.seconds)
        rows.append((f"{at}.bad_requests", float(np.median(o.bad))))
        rows.append((f"{at}.samples", float(np.median(np.where(caught, o.samples, np.inf)))))
    if s.plain:
        rows += _fixed(s, rate, rng)
    return rows


def _fixed(s: Scenario, rate: int, rng: np.random.Generator) -> list[tuple[str, float]]:
    stream, at, rollouts = s.streams[0], f"fixed.{s.name}.{rate}", 100_000
    n = fixed.size(stream, WEIGHT)
    return [
        (f"{at}.false_rollback_rate", fixed.rejects(rng, stream.stable, stream.stable, n, WEIGHT, rollouts)),
        (f"{at}.missed_rate", 1 - fixed.rejects(rng, stream.canary, stream.stable, n, WEIGHT, rollouts)),
        (f"{at}.seconds_to_rollback", round(n / (rate * WEIGHT), 1)),
        (f"{at}.bad_requests", round(n * stream.canary)),
        (f"{at}.samples", n),
    ]
