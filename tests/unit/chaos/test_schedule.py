"""What a soak does and when, and what it holds to be right."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from chaos import schedule as plan
from chaos.schedule import (
    End,
    Ledger,
    Sample,
    Tally,
    Version,
    beyond_history,
    leftovers,
    memory_line,
    schedule,
    wrong_end,
)

FAULTS = ["api-409", "operator-killed", "stable-dies"]
HOURS = 2 * 3600.0


def test_a_seed_gives_the_same_events_and_another_seed_others() -> None:
    events = schedule(7, HOURS, 10, FAULTS)
    assert events == schedule(7, HOURS, 10, FAULTS)
    assert events != schedule(8, HOURS, 10, FAULTS)
    assert [e.at for e in events] == sorted(e.at for e in events)
    assert {e.model for e in events} == set(range(10))


def test_two_hours_have_every_change_and_every_fault() -> None:
    events = schedule(7, HOURS, 10, FAULTS)
    changes = Counter(e.what for e in events if e.kind == "change")
    assert set(changes) == {*plan.CHANGES, "resume", "back"}
    assert {e.what for e in events if e.kind == "fault"} == set(FAULTS)
    assert 300 < changes.total() < 700


def test_the_operator_is_killed_early_only_so_that_its_last_life_is_long() -> None:
    kills = [e.at for e in schedule(3, HOURS, 10, FAULTS) if e.what == "operator-killed"]
    assert kills and max(kills) < plan.EARLY * HOURS


@pytest.mark.parametrize("seed", range(20))
def test_no_bad_version_is_promoted_and_what_is_begun_is_ended(seed: int) -> None:
    good: dict[int, bool] = {}
    waits: dict[int, str] = {}
    for event in schedule(seed, HOURS, 3, FAULTS):
        if event.kind == "fault":
            continue
        if event.model in waits:
            assert event.what == waits.pop(event.model), "left alone until then"
            continue
        if event.what in ("good", "bad"):
            good[event.model] = event.what == "good"
        if event.what.startswith("promote"):
            assert good.get(event.model, True)
        if event.what in plan.PAIRED:
            waits[event.model] = plan.PAIRED[event.what][0]
    assert not waits


PROMOTED = End("Promoted", "", "")
ROLLED_BACK = End("RolledBack", "AccuracyLow", "0.1 is worse")
FAILED = End("Failed", "ImagePullFailed", "no such image")


@pytest.mark.parametrize(
    ("good", "replaced", "verbs", "ends", "wrong"),
    [
        (True, False, set(), [PROMOTED], None),
        (True, False, set(), [End("Stable", "", "")], None),
        (True, False, set(), [ROLLED_BACK], "ended as RolledBack (AccuracyLow: 0.1 is worse)"),
        (True, False, set(), [PROMOTED, ROLLED_BACK], "ended as RolledBack"),
        (True, True, set(), [FAILED], "ended as Failed (ImagePullFailed: no such image)"),
        (True, False, set(), [], "has not ended"),
        (True, True, set(), [], None),
        (True, True, set(), [End("Superseded", "Superseded", "")], None),
        (True, False, set(), [End("Superseded", "Superseded", "")], "ended as Superseded"),
        (True, False, {"abort"}, [End("Aborted", "AbortedByUser", "")], None),
        (True, False, {"rollback"}, [End("Aborted", "RolledBackByUser", "")], None),
        (True, False, {"pause"}, [End("Aborted", "AbortedByUser", "")], "ended as Aborted"),
        (False, False, set(), [ROLLED_BACK], None),
        (False, False, set(), [End("Rejected", "AccuracyLow", "")], None),
        (False, False, {"abort"}, [PROMOTED], "ended as Promoted"),
        (False, True, set(), [FAILED], "ended as Failed"),
        (False, False, set(), [], "has not ended"),
    ],
)
def test_how_a_version_must_end(
    good: bool, replaced: bool, verbs: set[str], ends: list[End], wrong: str | None
) -> None:
    said = wrong_end(Version("m", "0123456789abcdef", good, replaced, verbs), ends)
    if wrong is None:
        assert said is None
    else:
        assert said is not None and wrong in said and said.startswith("m: the ") and "0123456789ab" in said


def state(
    sha256: str, stage: str, outcome: str | None = None, revision: str = "m-1", model: str = "m"
) -> dict[str, Any]:
    rollout = {"sha256": sha256, "stage": stage, "revision": revision, "outcome": outcome}
    return {"metadata": {"name": model}, "status": {"rollout": rollout}}


def test_equal_files_of_two_models_end_each_in_its_own_way() -> None:
    ledger = Ledger()
    for model in ("m", "other"):
        ledger.applied(model, "a", good=True)
    ledger.verb("m", "abort")
    ledger.seen(state("a", "Failed", "Aborted"))
    ledger.seen(state("a", "Done", "Promoted", "other-1", "other"))
    assert ledger.wrong() == []
    ledger.applied("m", "b", good=True)
    assert ledger.wrong() == ["m: the good version b has not ended"]


def test_the_ledger_knows_ends_from_states_and_what_was_replaced() -> None:
    ledger = Ledger()
    ledger.applied("m", "a", good=True)
    ledger.applied("m", "b", good=False)
    ledger.applied("other", "c", good=True)
    for seen in (
        {"metadata": {"name": "m"}},
        state("b", "Canary"),
        state("b", "Failed", "RolledBack"),
        state("c", "Done", "Promoted", model="other"),
    ):
        ledger.seen(seen)
    assert ledger.wrong() == [], "a was replaced before it had begun"
    ledger.applied("m", "d", good=True)
    assert ledger.wrong() == ["m: the good version d has not ended"]
    ledger.verb("m", "abort")
    ledger.seen(state("d", "Failed", "Aborted"))
    assert ledger.wrong() == []


def test_a_bad_version_may_have_its_steps_and_no_more() -> None:
    ledger = Ledger()
    ledger.applied("m", "a", good=True)
    ledger.applied("m", "b", good=False)
    ledger.seen(state("a", "Done", "Promoted", "m-a"))
    ledger.seen(state("b", "Canary", None, "m-b"))
    fine = [{"m-a": 100}, {"m-a": 70, "m-b": 30}, {"m-a": 40, "m-b": 60}]
    assert ledger.too_much(fine, 60) == []
    wrong = ["m: the bad revision m-b had 100 % of the requests"]
    assert ledger.too_much([*fine, {"m-b": 100}, {"m-b": 100}], 60) == wrong


def child(kind: str, name: str, model: str | None = "m", **about: Any) -> dict[str, Any]:
    labels = {"modelrollout.dev/name": model} if model else {}
    return {"kind": kind, "metadata": {"name": name, "labels": labels, **about}}


def test_leftovers_are_children_without_an_owner() -> None:
    owned = {"ownerReferences": [{"uid": "1"}]}
    objects = [
        child("Pod", "fine", **owned),
        child("Pod", "ending", deletionTimestamp="2026-11-29T00:00:00Z"),
        child("Service", "orphan"),
        child("HTTPRoute", "stranger", model=None, **owned),
        child("Pod", "of-another", model="gone", **owned),
    ]
    assert leftovers(objects, {"m"}, "modelrollout.dev/name") == [
        "Service orphan has no owner",
        "HTTPRoute stranger belongs to no model",
        "Pod of-another belongs to no model",
    ]


def test_a_history_that_is_not_cut_is_wrong() -> None:
    def revisions(model: str, count: int) -> list[dict[str, Any]]:
        labels = {"modelrollout.dev/name": model}
        return [{"kind": "ModelRevision", "metadata": {"name": "r", "labels": labels}}] * count

    objects = [*revisions("short", 8), *revisions("long", 9), {"kind": "Job", "metadata": {"name": "j"}}]
    assert beyond_history(objects, "modelrollout.dev/name", 2) == ["long has 9 revisions, at most 8 may be"]


def life(number: int, begin: float, minutes: int, first: float, per_hour: float) -> list[Sample]:
    return [Sample(begin + 60 * m, number, first + per_hour * m / 60, FULL) for m in range(minutes + 1)]


FULL = 40  # revisions
UNTIL = 2 * 3600.0


def test_memory_is_that_of_the_last_life_and_growth_is_said() -> None:
    killed = life(1, 0, 10, 300, 0)
    assert memory_line([*killed, *life(2, 700, 60, 140, 2)], UNTIL, FULL) == (
        "operator memory: 140 MiB at the start, 141 in the middle, 142 at the end of its last life of 60"
        " minutes; trend +2.0 MiB per hour, limit 10: flat"
    )
    grows = "trend +30.0 MiB per hour, limit 10: IT GROWS"
    assert memory_line(life(1, 0, 60, 140, 30), UNTIL, FULL).endswith(grows)
    assert memory_line(life(1, 0, 60, 140, -30), UNTIL, FULL).endswith(": flat")
    short = "too short for a trend: 5 minutes with full histories, it takes 10"
    assert memory_line(killed, UNTIL, FULL).endswith(short)
    assert memory_line([], UNTIL, FULL) == "operator memory: not measured"


def test_what_fills_up_after_a_start_is_no_trend() -> None:
    warming = [Sample(s, 1, 100 + s, FULL) for s in range(0, 300, 20)]
    warm = [Sample(300 + s, 1, 400, FULL) for s in range(0, 1200, 20)]
    assert "+0.0 MiB per hour" in memory_line([*warming, *warm], UNTIL, FULL)


def filling(minutes: int, per_hour: float) -> list[Sample]:
    """Memory grows with the revisions for half an hour, when they are FULL, and then by so much."""
    return [
        Sample(60 * m, 1, 100 + min(m, 30) + per_hour * max(0, m - 30) / 60, FULL - 30 + min(m, 30))
        for m in range(minutes + 1)
    ]


def test_memory_that_grows_with_the_histories_is_no_trend() -> None:
    assert memory_line(filling(60, 0), UNTIL, FULL).endswith("trend +0.0 MiB per hour, limit 10: flat")
    for minutes in (21, 30):
        short = "too short for a trend: 0 minutes with full histories, it takes 10"
        assert memory_line(filling(minutes, 0), UNTIL, FULL).endswith(short)


def test_memory_that_grows_although_the_histories_are_full_is_a_trend() -> None:
    grows = "trend +12.0 MiB per hour, limit 10: IT GROWS"
    assert memory_line(filling(60, 12), UNTIL, FULL).endswith(grows)


def test_the_last_versions_of_all_at_once_are_no_trend() -> None:
    burst = [Sample(1800 + 20 * n, 1, 125, FULL) for n in range(1, 20)]
    text = memory_line([*life(1, 0, 30, 110, 0), *burst], 1800, FULL)
    assert "125 at the end" in text and text.endswith("trend +0.0 MiB per hour, limit 10: flat")


def test_the_last_line_and_when_it_is_right() -> None:
    tally = Tally(seconds=7205, changes=481, faults=170, sent=288000, apart=12)
    assert str(tally) == (
        "soak: 120 minutes, 481 changes, 170 faults, 0 wrong outcomes, 0 failed requests of 288000,"
        " 12 counted apart"
    )
    assert tally.is_right
    assert not Tally(failed=1).is_right
    assert not Tally(wrong=["x"]).is_right
