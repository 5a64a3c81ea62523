"""PURE: one rollout as text for people, rendered with rich."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelrollout.analysis.eta import counted_seconds, initial_delay, paces
from modelrollout.api.v1alpha1 import (
    Counter,
    MetricStatus,
    RolloutStatus,
    Stage,
    Step,
    StepStatus,
    Strategy,
    seconds,
)
from modelrollout.api.v1alpha1 import Rollout as RolloutSpec
from modelrollout.cli.cluster import Replicas, Revision, Rollout
from modelrollout.cli.screen import columns
from modelrollout.cli.verbs import by_hand, idle, in_flight
from modelrollout.reasons import Reason
from modelrollout.rollout.server_crashes import describe
from modelrollout.rollout.stages import STAGES
from modelrollout.rollout.strategy import steps_of, strategy_of

EVENTS = 6  # shown, newest last
_TRIAL: dict[Strategy, str] = {"Canary": "Canary", "BlueGreen": "Preview", "ABTest": "Test by headers"}
_STYLES = {
    "Successful": "green", "True": "green", "Stable": "green", "Promoted": "green",
    "Failed": "red", "Rejected": "red", "RolledBack": "red", "Aborted": "red", "RollingBack": "red",
    "Error": "magenta", "Inconclusive": "yellow", "Paused": "yellow", "Canary": "cyan", "Previewing": "cyan",
    "Testing": "cyan", "Baking": "cyan",
}  # fmt: skip


def status(rollout: Rollout, now: datetime, *, live: bool = False) -> RenderableType:
    """All that ``modelrollout status`` shows. ``live``: on a screen that cuts off what does not
    fit, so what matters most comes first.
    """
    coming = _section("Next", Group(*(Text(line) for line in what_next(rollout, now))))
    parts: list[RenderableType] = [_head(rollout, now), *(coming if live else [])]
    if rollout.status.rollout is not None:
        parts += _section("Stages", _stages(rollout, rollout.status.rollout, now))
        if rollout.spec is not None and (
            rollout.status.rollout.step is not None or rollout.status.rollout.history
        ):
            parts += _section(
                _TRIAL[strategy_of(rollout.spec.rollout)],
                _steps(rollout.status.rollout, _strategy_steps(rollout), now),
            )
        if rollout.status.rollout.step is not None and rollout.status.rollout.step.metrics:
            parts += _section("Metrics of this step", metrics(rollout.status.rollout.step.metrics))
    if rollout.status.conditions:
        parts += _section("Conditions", _conditions(rollout, now))
    if rollout.events:
        parts += _section("Events", _events(rollout, now))
    elif rollout.events is None:
        parts += _section("Events", Text("not allowed to list events", "dim"))
    return Group(*parts, *([] if live else coming))


def _strategy_steps(rollout: Rollout) -> list[Step]:
    """With the first weight that policies demand."""
    return (
        steps_of(rollout.spec.rollout, (rollout.status.defaults or {}).get("maxFirstWeight"))
        if rollout.spec
        else []
    )


def history(revisions: Sequence[Revision], stable: str | None, now: datetime) -> Table:
    """The kept revisions, newest first."""
    table = columns("NUMBER", "REVISION", "OUTCOME", "REASON", "ACCURACY", "SIZE", "P99", "AGE", "VERB")
    for revision in revisions:
        s = revision.status
        name = Text(revision.name, "bold" if revision.name == stable else "")
        cells = (
            styled(s.outcome),
            s.reason or "-",
            s.accuracy or "-",
            s.size or "-",
            s.p99 or "-",
            age(revision.created, now),
            by_hand(s.verbs[-1]) if s.verbs else "-",
        )
        table.add_row(str(revision.spec.number), name, *cells)
    return table


def what_next(rollout: Rollout, now: datetime) -> list[str]:
    """What the operator will do by itself, and what a person can do."""
    s = rollout.status
    if (s.observed_generation or 0) < rollout.generation:
        return [
            f"the operator has yet to see generation {rollout.generation} of spec; if that lasts, look"
            " whether it runs"
        ]
    flying = in_flight(rollout)
    if flying is None:
        return _next_when_idle(rollout)
    if flying.stage == "Shadow" and flying.shadow is not None:
        return _next_in_shadow(rollout, flying, now)
    if flying.stage == "Bake" and flying.step is not None and rollout.spec is not None:
        return _next_in_bake(rollout, flying, now)
    if flying.stage != "Canary" or flying.step is None:
        stage = STAGES[flying.stage]
        lines = [flying.message or (f"{stage.doing}; then {stage.then}" if stage.then else stage.doing)]
        if flying.stage not in ("Promote", "Revert"):
            if flying.queue is None:
                lines += _deadline(rollout, flying.since, now, "the rollout fails, stable stays as it is")
            lines.append(f"end it: modelrollout abort {rollout.name}")
        return lines
    return _next_in_canary(rollout, flying, now)


def age(since: str | None, now: datetime) -> str:
    """Time since a timestamp as kubectl writes ages."""
    at = _time(since)
    return duration((now - at).total_seconds()) if at else "-"


def duration(value: float) -> str:
    """``0.4s``, ``12s``, ``3m20s``, ``2h5m``, ``9d``."""
    if value < 0:
        return "0s"
    if value < 9.95:
        return f"{value:.1f}".removesuffix(".0") + "s"
    whole = round(value)
    days, rest = divmod(whole, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days}d{hours}h" if days < 3 and hours else f"{days}d"
    if hours:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    if minutes:
        return f"{minutes}m{secs}s" if secs else f"{minutes}m"
    return f"{secs}s"


# --- parts


def _head(rollout: Rollout, now: datetime) -> RenderableType:
    s = rollout.status
    ready = next((c for c in s.conditions if c.type == "Ready"), None)
    grid = _grid()
    grid.add_row(
        Text(rollout.name, "bold"),
        Text.assemble(styled(s.phase), (f"  namespace {rollout.namespace}", "dim")),
    )
    if ready:
        grid.add_row("Ready", Text.assemble(styled(ready.status), f"  {ready.reason}: {ready.message}"))
    share = s.weight or 0 if s.share is None else s.share  # without a gateway whole pods decide
    if s.stable:
        grid.add_row(
            "Stable",
            _serves(
                rollout,
                s.stable.revision,
                s.stable.number,
                100 - share,
                f", since {age(s.stable.since, now)}",
            ),
        )
    flying = in_flight(rollout)
    if (
        flying
        and flying.revision
        and flying.number
        and not (s.stable and flying.revision == s.stable.revision)
    ):
        grid.add_row("Canary", _serves(rollout, flying.revision, flying.number, share, _beside(flying)))
    if flying and flying.restarts:
        grid.add_row("Restarts", describe(flying.restarts))
    for gone in s.draining:
        left = -_seconds_since(gone.until, now, signed=True)
        if left > 0:
            grid.add_row(
                "Retiring",
                f"{gone.revision}  #{gone.number}{_pods(rollout, gone.revision)}, for {duration(left)} more",
            )
    if s.address:
        grid.add_row("Address", f"{s.address.url}  gRPC {s.address.grpc}")
    return grid


def _beside(r: RolloutStatus) -> str:
    """What reaches the revision beside its weight."""
    if r.stage != "Canary" or r.step is None:
        return ""
    return {
        "Canary": "",
        "BlueGreen": ", and those of the preview",
        "ABTest": ", and those with the headers of the test",
    }[r.step.strategy]


def _serves(rollout: Rollout, revision: str, number: int, share: int, more: str) -> str:
    return f"{revision}  #{number}, {share} % of the requests{_pods(rollout, revision)}{more}"


def _pods(rollout: Rollout, revision: str) -> str:
    if rollout.replicas is None:
        stable = rollout.status.stable
        if stable is None or stable.revision != revision:
            return ""
        replicas = Replicas(rollout.status.ready_replicas, rollout.status.replicas)
    else:
        replicas = rollout.replicas.get(revision, Replicas())
    return f", {replicas.ready} of {replicas.total} pods ready"


def _stages(rollout: Rollout, r: RolloutStatus, now: datetime) -> Table:
    table = _grid()
    shadowed = r.shadow is not None or (rollout.spec is not None and rollout.spec.rollout.shadow is not None)
    stages = [s for s, spec in STAGES.items() if spec.condition and (s != "Shadow" or shadowed)]
    reached: Stage = (
        r.stage if r.stage in stages else next((x for x in reversed(stages) if x in r.stages), "Resolve")
    )
    at = len(stages) if r.stage == "Done" else stages.index(reached)
    over = r.stage in ("Failed", "Revert")
    for i, stage in enumerate(stages):
        spent = r.stages.get(stage)
        note = _stage_note(rollout, r, stage)
        if i < at:
            mark, time = (
                (Text("✔", "green"), duration(spent)) if spent is not None else (Text("-", "dim"), "skipped")
            )
        elif i == at and over:
            mark, time, note = (
                Text("✘", "red"),
                duration(spent or 0),
                f"{r.reason or 'Failed'}: {r.message or ''}",
            )
        elif i == at:
            mark, time = Text("▶", "cyan"), duration((spent or 0) + _seconds_since(r.since, now))
        else:
            mark, time = Text("·", "dim"), ""
        table.add_row(mark, stage, time, note)
    if r.stage == "Revert":
        table.add_row(Text("▶", "cyan"), "Revert", age(r.since, now), "stable is getting all traffic back")
    return table


def _stage_note(rollout: Rollout, r: RolloutStatus, stage: str) -> str:
    if stage == "Resolve" and r.sha256:
        return f"sha256 {r.sha256[:12]}…"
    if stage == "Prepare" and r.artifact:
        a = r.artifact
        change = f" ({(a.size_after / a.size_before - 1):+.0%})" if a.size_before else ""
        words = [f"{_bytes(a.size_before)} to {_bytes(a.size_after)}{change}"]
        if a.accuracy_before is not None and a.accuracy_after is not None:
            on = f" on {a.samples} samples" if a.samples else ""
            words.append(f"accuracy {a.accuracy_after:.3f} ({a.accuracy_after - a.accuracy_before:+.3f}){on}")
        words += [
            f"{m.name} {m.after:.4g} ({m.after - m.before:+.2g})" for m in a.metrics if m.name != "accuracy"
        ]
        if a.reused:
            words.append("done before, reused")
        return ", ".join(words)
    if stage == "Evaluate" and r.evaluation:
        e = r.evaluation
        words = [e.message if e.is_of_made_up_inputs else e.verdict]
        if e.accuracy is not None:
            against = (
                f" against {e.stable_accuracy:.3f} of {e.stable}" if e.stable_accuracy is not None else ""
            )
            words.append(f"accuracy {e.accuracy:.3f}{against} on {e.samples} samples")
        if e.latency_p99_ms is not None:
            words.append(f"p99 {e.latency_p99_ms:.1f} ms")
        if e.slices:
            worst = max(e.slices, key=lambda part: part.interval[0])
            words.append(f"worst slice {worst.name}: {-worst.drop:+.3f} on {worst.samples}")
        return ", ".join(words)
    if stage == "Shadow" and r.shadow:
        return r.shadow.metric.message if r.shadow.metric else r.message or r.shadow.phase
    return r.message or "" if stage == r.stage else ""


def _steps(r: RolloutStatus, steps: Sequence[Step], now: datetime) -> Table:
    table = _grid()
    ended = {e.index: e for e in r.history}
    current = r.step.index if r.step and r.stage in ("Canary", "Failed", "Revert") else None
    for i, step in enumerate(steps):
        what = "beside" if step.weight == 0 else f"{step.weight} %" if step.weight is not None else "pause"
        if step.weight is not None and step.for_:
            what += f" for {step.for_}"
        elif step.pause is not None:
            what += f" {step.pause.duration}" if step.pause.duration else " until promoted"
        number = f"{i + 1}/{len(steps)}"
        if i == current and r.step is not None and r.stage == "Canary":
            since = r.step.observed_since or r.step.since
            phase = "Paused" if r.paused_by_user else r.step.phase
            table.add_row(
                Text("▶", "cyan"), number, what, styled(phase), age(since, now), r.step.override or ""
            )
        elif i in ended:
            mark = (
                Text("✔", "green")
                if ended[i].verdict == "Successful"
                else Text("✘" if ended[i].verdict == "Failed" else "!", "yellow")
            )
            table.add_row(
                mark, number, what, styled(ended[i].verdict), duration(ended[i].seconds), ended[i].reason
            )
        elif current is not None and i < current:
            table.add_row(Text("✔", "green"), number, what, "passed", "", "")
        else:
            table.add_row(Text("·", "dim"), number, what, "", "", "")
    return table


def metrics(statuses: Sequence[MetricStatus]) -> RenderableType:
    """Counts, interval and verdict of each, and below why."""
    table = columns("METRIC", "CANARY", "STABLE", "HARM", "VERDICT")
    why = _grid()
    for m in statuses:
        # A metric by query has one value and no counts.
        canary = count(m.canary) if m.canary else (f"{m.value:g}" if m.value is not None else "-")
        verdict = Text.assemble(styled(m.verdict), (" (dry run)" if m.dry_run else "", "dim"))
        table.add_row(m.name, canary, count(m.stable) if m.stable else "-", interval(m.interval), verdict)
        why.add_row(Text(m.name, "dim"), Text(f"{m.reason}: {m.message}" if m.message else m.reason, "dim"))
    return Group(table, why)


def count(c: Counter) -> str:
    """Bad ones of all."""
    return f"{c.bad:g} of {c.total:g} ({c.bad / c.total:.2%})" if c.total else "none yet"


def interval(bounds: list[float] | None) -> str:
    """Limits of the harm, in points."""
    if not bounds or len(bounds) != 2:
        return "-"
    low, high = (100 * b for b in bounds)
    return f"{low:+.2f} to {high:+.2f} points"


def _conditions(rollout: Rollout, now: datetime) -> Table:
    table = columns("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE")
    for c in rollout.status.conditions:
        stalled = c.type == "Stalled" and c.status == "True"
        table.add_row(
            c.type,
            Text(c.status, "red") if stalled else styled(c.status),
            c.reason,
            age(c.last_transition_time, now),
            c.message,
        )
    return table


def _events(rollout: Rollout, now: datetime) -> Table:
    table = _grid()
    for e in (rollout.events or ())[-EVENTS:]:
        style = "yellow" if e.type == "Warning" else ""
        times = f" ({e.count} times)" if e.count > 1 else ""
        table.add_row(f"{age(e.at, now)} ago", Text(e.reason, style), e.message + times)
    return table


def _next_when_idle(rollout: Rollout) -> list[str]:
    s = rollout.status
    last = s.rollout
    stalled = next((c for c in s.conditions if c.type == "Stalled" and c.status == "True"), None)
    if s.pinned and s.pinned.generation == rollout.generation:
        return [
            (
                f"nothing by itself: a user rolled back to {s.pinned.revision}, and spec still names"
                " another version"
            ),
            f"change spec, or try its version again: modelrollout retry {rollout.name}",
            *_follow(rollout),
        ]
    if stalled and last is not None and last.stage == "Failed":
        what = last.revision or "this source"
        return [
            f"nothing by itself: {what} has failed and is not tried again until spec changes"
            + (f"; {s.stable.revision} serves on" if s.stable else ""),
            f"try it again: modelrollout retry {rollout.name}",
            *_follow(rollout),
        ]
    if stalled:
        return [f"nothing by itself: {stalled.reason}: {stalled.message}"]
    if last is None and s.stable is None:
        return ["the operator begins the first rollout; if that lasts, look whether it runs"]
    return [f"nothing: {idle(rollout)}"]


def _follow(rollout: Rollout) -> list[str]:
    """What lets the source be followed again, where that has stopped."""
    stopped = any(c.type == "Following" and c.status == "False" for c in rollout.status.conditions)
    return [f"look at the source again: modelrollout follow {rollout.name}"] if stopped else []


def _next_in_shadow(rollout: Rollout, r: RolloutStatus, now: datetime) -> list[str]:
    assert r.shadow is not None
    promote, abort = (
        f"go on: modelrollout promote {rollout.name}",
        f"end it: modelrollout abort {rollout.name}",
    )
    if r.shadow.phase == "Paused":
        return [f"waits for a person: {r.message or r.reason}", promote, abort]
    if r.shadow.phase == "Leaving":
        return ["the gateway is taking the mirror out; then comes the canary", abort]
    lines = [
        r.message
        or "answers to mirrored requests are being compared; as soon as the evidence allows comes the canary"
    ]
    if rollout.spec:
        verb = {
            "Pause": "the rollout pauses",
            "Rollback": "it is rejected",
            "Promote": "the rollout continues unproven",
        }[rollout.spec.rollout.on_inconclusive]
        lines += _deadline(rollout, r.since, now, verb)
    return [*lines, promote, abort]


def _next_in_canary(rollout: Rollout, r: RolloutStatus, now: datetime) -> list[str]:
    assert r.step is not None
    steps = _strategy_steps(rollout)
    promote = f"go on without waiting: modelrollout promote {rollout.name}"
    abort = f"end it: modelrollout abort {rollout.name}"
    following = steps[r.step.index + 1] if 0 <= r.step.index < len(steps) - 1 else None
    if r.paused_by_user is not None:
        resume = f"go on: modelrollout resume {rollout.name}"
        return [
            (
                "nothing by itself: a user paused it; analysis continues, and it is rolled back if it is"
                " proven worse"
            ),
            resume,
            promote,
            abort,
        ]
    then = (
        "promotion to 100 %"
        if following is None
        else f"weight {following.weight} %"
        if following.weight is not None
        else "a pause"
    )
    if r.step.phase == "Shifting":
        return [r.message or f"the gateway is taking weight {r.step.weight} % up; then it is judged", abort]
    if r.step.phase == "Paused":
        present = steps[r.step.index] if 0 <= r.step.index < len(steps) else None
        if present and present.pause and present.pause.duration:
            left = seconds(present.pause.duration) - _seconds_since(r.step.since, now)
            return [f"the pause ends in {duration(left)}; then comes {then}", promote, abort]
        why = f": {r.message}" if r.message and r.reason != Reason.PAUSE_STEP else ""
        return [
            f"waits for a person{why}; then comes {then}",
            f"go on: modelrollout promote {rollout.name}",
            abort,
        ]
    lines = [
        f"{r.message or 'the canary is being judged on live traffic'}; as soon as the evidence allows comes"
        f" {then}"
    ]
    if rollout.spec:
        lines += _pace(r.step, rollout.spec.rollout)
        verb = {
            "Pause": "the rollout pauses",
            "Rollback": "the canary is taken back",
            "Promote": f"comes {then} without proof",
        }[rollout.spec.rollout.on_inconclusive]
        lines += _deadline(rollout, r.step.since, now, verb)
    return [*lines, promote, abort]


def _next_in_bake(rollout: Rollout, r: RolloutStatus, now: datetime) -> list[str]:
    assert r.step is not None and rollout.spec is not None
    former = rollout.status.stable.revision if rollout.status.stable else "the former stable"
    verbs = [
        f"end the bake: modelrollout promote {rollout.name}",
        f"back to {former}: modelrollout abort {rollout.name}",
    ]
    if r.paused_by_user is not None:
        return [
            "nothing by itself: a user paused it; analysis continues",
            f"go on: modelrollout resume {rollout.name}",
            *verbs,
        ]
    if r.step.phase == "Paused":
        return [f"waits for a person: {r.message or r.reason}", *verbs]
    left = seconds(rollout.spec.rollout.bake or "0s") - _seconds_since(r.step.since, now)
    when = f"in {duration(left)}" if left > 0 else "as soon as it can be measured"
    return [
        (
            f"{r.message or 'the revision has all traffic and is watched'}; it stays {when} unless it is"
            f" proven worse, else {former} comes back"
        ),
        *verbs,
    ]


def _pace(step: StepStatus, rollout: RolloutSpec) -> list[str]:
    """What is missing and how long it takes, from what was last written; that of the slowest metric
    decides.
    """
    at = _time(step.measured)
    if at is None:
        delay = (
            f"; counting begins {wait:g}s after the weight was taken up"
            if (wait := initial_delay(rollout))
            else ""
        )
        return [f"nothing has been counted yet{delay}"]
    slowest = next(iter(paces(step.metrics, counted_seconds(step, rollout, at))), None)
    return [slowest.describe()] if slowest else []


def _deadline(rollout: Rollout, since: str, now: datetime, then: str) -> list[str]:
    if rollout.spec is None:
        return []
    left = seconds(rollout.spec.rollout.progress_deadline) - _seconds_since(since, now)
    return [f"without a result in {duration(left)} (progressDeadline), {then}"]


# --- small things


def _section(title: str, body: RenderableType) -> list[RenderableType]:
    return [Text(f"\n{title}", "bold"), Padding(body, (0, 0, 0, 2))]


def _grid() -> Table:
    return Table.grid(padding=(0, 2, 0, 0))


def styled(word: str) -> Text:
    """A word in the colour of what it means."""
    return Text(word, _STYLES.get(word, ""))


def _bytes(size: int) -> str:
    value = float(size)
    for unit in ("B", "Ki", "Mi"):
        if value < 1024:
            return f"{value:.1f}{unit}" if value < 9.95 and unit != "B" else f"{value:.0f}{unit}"
        value /= 1024
    return f"{value:.1f}Gi"


def _time(text: str | None) -> datetime | None:
    if not text:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None  # whoever wrote it, the rest can be shown
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _seconds_since(text: str, now: datetime, *, signed: bool = False) -> float:
    at = _time(text)
    elapsed = (now - at) / timedelta(seconds=1) if at else 0.0
    return elapsed if signed else max(0.0, elapsed)
