"""The pure part of auto: in what order candidates come, which one is taken, which ones no other
beats.
"""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from modelrollout.contract.common import DataSet, Location
from modelrollout.contract.steps import Int8Step, PruneStep, Training
from modelrollout.optimizer.steps.auto.plan import SOURCE, Candidate, Means, Outcome, next_candidate
from modelrollout.statistics.frontier import OBJECTIVES, WORTH, Objective, Point, choose, cost_of, frontier

DATA = DataSet(location=Location(uri="s3://data/x"))
TRAINING = Training(data=DATA)
BARE = Means(calibration=DATA)
ALL = Means(calibration=DATA, training=TRAINING, int4=True, sensitivity=True)

OUTCOMES: tuple[Outcome, ...] = ("Within", "Beyond", "Refused")
MEANS = st.builds(Means, st.just(DATA), st.sampled_from([None, TRAINING]), st.booleans(), st.booleans())


def played(means: Means, outcome: Callable[[Candidate], Outcome]) -> list[Candidate]:
    """All candidates in order, each with that outcome."""
    actual: list[Candidate] = []
    outcomes: dict[str, Outcome] = {}
    while (candidate := next_candidate(means, outcomes)) is not None:
        assert candidate.name not in outcomes
        assert len(actual) < 100
        actual.append(candidate)
        outcomes[candidate.name] = outcome(candidate)
    return actual


@given(MEANS, st.randoms(use_true_random=False))
def test_a_search_ends_and_every_base_is_there_when_it_is_needed(means: Means, random: st.DataObject) -> None:
    outcomes: dict[str, Outcome] = {}

    def outcome(candidate: Candidate) -> Outcome:
        assert candidate.base == SOURCE or outcomes[candidate.base] == "Within"
        outcomes[candidate.name] = random.choice(OUTCOMES)  # type: ignore[attr-defined]
        return outcomes[candidate.name]

    candidates = played(means, outcome)
    # What builds on a candidate follows it at once: no other candidate of the source lies between,
    # so that no file is kept for later.
    base = SOURCE
    for candidate in candidates:
        assert candidate.base in (SOURCE, base)
        if candidate.base == SOURCE:
            base = candidate.name
    assert means.training or not any(getattr(candidate.step, "training", None) for candidate in candidates)
    assert means.int4 or not any(candidate.step.kind == "int4" for candidate in candidates)


def names(means: Means, *retained: str, refused: tuple[str, ...] = ()) -> list[str]:
    def outcome(candidate: Candidate) -> Outcome:
        return (
            "Within" if candidate.name in retained else "Refused" if candidate.name in refused else "Beyond"
        )

    return [candidate.name for candidate in played(means, outcome)]


def test_what_is_cheap_and_likely_comes_first() -> None:
    tried = names(ALL, "graph", "int8", "int8-dynamic", "float16", "int4")
    assert tried[:6] == ["graph", "int8", "int8-dynamic", "float16", "int4", "int4-128"]
    assert tried[6:9] == ["prune-0.5", "prune-0.5-activation", "prune-0.3"]


def test_other_ways_to_calibrate_are_tried_while_int8_loses_too_much() -> None:
    assert names(ALL)[1:5] == ["int8", "int8-percentile", "int8-entropy", "int8-sensitivity"]
    assert names(ALL, "int8-percentile")[1:4] == ["int8", "int8-percentile", "int8-dynamic"]
    assert names(ALL, refused=("int8",))[1:3] == ["int8", "int8-dynamic"]
    assert "int8-sensitivity" not in names(BARE)


def test_pruning_climbs_while_the_budget_is_kept_and_quantizes_what_keeps_it() -> None:
    tried = names(
        ALL, "int8", "prune-0.5", "prune-0.5+int8", "prune-0.7-activation", "prune-0.7-activation+float16"
    )
    start = tried.index("prune-0.5")
    assert tried[start : start + 9] == [
        "prune-0.5",
        "prune-0.5+int8",
        "prune-0.7",
        "prune-0.7-activation",
        "prune-0.7-activation+int8",
        "prune-0.7-activation+int8-sensitivity",
        "prune-0.7-activation+float16",
        "prune-0.85",
        "prune-0.85-activation",
    ]
    assert "prune-0.3" not in tried  # more was kept


def test_less_is_pruned_where_the_first_rung_loses_too_much() -> None:
    tried = names(ALL, "prune-0.15", "prune-0.15+int8", "distill-0.5")
    assert [name for name in tried if name.startswith("prune")] == [
        "prune-0.5",
        "prune-0.5-activation",
        "prune-0.3",
        "prune-0.15",
        "prune-0.15+int8",
    ]
    assert [name for name in tried if name.startswith("distill")][:3] == [
        "distill-0.25",
        "distill-0.5",
        "distill-0.5+int8",
    ]
    assert [name for name in names(ALL, refused=("prune-0.5",)) if name.startswith("prune")] == ["prune-0.5"]


def test_what_kept_the_budget_alone_is_used_on_what_is_pruned() -> None:
    def outcome(candidate: Candidate) -> Outcome:
        return (
            "Within"
            if candidate.name in ("int8-entropy", "prune-0.1", "prune-0.1+int8-entropy")
            else "Beyond"
        )

    actual = {candidate.name: candidate for candidate in played(BARE, outcome)}
    step = actual["prune-0.1+int8-entropy"].step
    assert isinstance(step, Int8Step) and step.calibration_method == "Entropy"
    bare = actual["prune-0.1"].step
    assert isinstance(bare, PruneStep) and bare.training is None


# --- the choice

POINTS = st.lists(
    st.builds(
        Point,
        st.just(""),
        st.integers(1, 40),
        st.integers(1, 40).map(float),
        st.integers(-5, 20).map(float),
        st.booleans(),
    ),
    max_size=12,
).map(lambda points: [p._replace(name=str(i)) for i, p in enumerate(points)])
START = Point(SOURCE, 30, 30.0, 0.0, True)


@given(POINTS, st.sampled_from(OBJECTIVES))
def test_the_choice_keeps_the_budget_and_nothing_within_it_is_cheaper(
    made: list[Point], objective: Objective
) -> None:
    cost = cost_of(objective)
    chosen = choose(START, made, objective)
    assert chosen.within
    assert chosen is START or cost(chosen) <= WORTH * cost(START)
    assert not [p for p in made if p.within and cost(p) < cost(chosen) and cost(p) <= WORTH * cost(START)]


@given(POINTS, st.sampled_from(OBJECTIVES))
def test_the_choice_among_some_and_one_more_is_the_old_one_or_the_new(
    made: list[Point], objective: Objective
) -> None:
    """So only the best file so far has to be kept."""
    for end in range(len(made)):
        assert choose(START, made[: end + 1], objective) in (choose(START, made[:end], objective), made[end])


def test_a_source_beyond_the_budget_gives_way() -> None:
    larger = Point("larger", 50, 50.0, 0.0, True)
    assert choose(START, [larger], "Size") is START
    assert choose(START._replace(within=False), [larger], "Size") is larger
    assert choose(START._replace(within=False), [larger._replace(within=False)], "Size").name == SOURCE


@given(POINTS, st.sampled_from(OBJECTIVES))
def test_the_frontier_is_what_no_other_beats(points: list[Point], objective: Objective) -> None:
    cost = cost_of(objective)
    front = frontier(points, objective)

    def beaten(p: Point) -> bool:
        return any(
            cost(o) <= cost(p) and o.loss <= p.loss and (cost(o), o.loss) != (cost(p), p.loss) for o in points
        )

    assert not any(map(beaten, front))
    assert {(cost(p), p.loss) for p in front} == {(cost(p), p.loss) for p in points if not beaten(p)}
    assert [cost(p) for p in front] == sorted({cost(p) for p in front})
