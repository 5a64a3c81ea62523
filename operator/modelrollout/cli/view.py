"""PURE: one rollout as text for people, rendered with rich."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from modelrollout.api.v1alpha1 import Counter, MetricStatus, RolloutStatus, Stage, Step, seconds
from modelrollout.cli.cluster import Replicas, Revision, Rollout
from modelrollout.cli.verbs import idle, in_flight

STAGES: tuple[Stage, ...] = ("Resolve", "Prepare", "Provision", "Evaluate", "Canary", "Promote")
EVENTS = 6  # shown, newest last
_DOES: dict[str, str] = {
    "Resolve": "the digest of the source is being pinned; then the model is prepared",
    "Prepare": "the model is being fetched, verified and optimized; then its servers start",
    "Provision": "the model servers are starting; then golden data is sent, if there is any, and the canary begins",
    "Evaluate": "golden data is being sent through the served model; then the canary begins",
    "Promote": "the data plane is taking the revision up as stable; then the old servers go away",
    "Revert": "stable is getting all traffic back; then the rollout has ended",
}
_STYLES = {
    "Successful": "green", "True": "green", "Stable": "green", "Promoted": "green",
    "Failed": "red", "Rejected": "red", "RolledBack": "red", "Aborted": "red", "RollingBack": "red",
    "Error": "magenta", "Inconclusive": "yellow", "Paused": "yellow", "Canary": "cyan",
}  # fmt: skip


def status(rollout: Rollout, now: datetime, *, live: bool = False) -> RenderableType:
    """All that ``modelrollout status`` shows. ``live``: on a screen that cuts off what does not fit, so what matters most comes first."""
    coming = _section("Next", Group(*(Text(line) for line in what_next(rollout, now))))
    parts: list[RenderableType] = [_head(rollout, now), *(coming if live else [])]
    if rollout.status.rollout is not None:
        parts += _section("Stages", _stages(rollout, rollout.status.rollout, now))
        if rollout.spec is not None and (rollout.status.rollout.step is not None or rollout.status.rollout.history):
            parts += _section("Canary", _steps(rollout.status.rollout, rollout.spec.rollout.canary.steps, now))
        if rollout.status.rollout.step is not None and rollout.status.rollout.step.metrics:
            parts += _section("Metrics of this step", _metrics(rollout.status.rollout.step.metrics))
    if rollout.status.conditions:
        parts += _section("Conditions", _conditions(rollout, now))
    if rollout.events:
        parts += _section("Events", _events(rollout, now))
    elif rollout.events is None:
        parts += _section("Events", Text("not allowed to list events", "dim"))
    return Group(*parts, *([] if live else coming))


def history(revisions: Sequence[Revision], stable: str | None, now: datetime) -> Table:
    """The kept revisions, newest first."""
    table = _table("NUMBER", "REVISION", "OUTCOME", "REASON", "ACCURACY", "SIZE", "P99", "AGE")
    for revision in revisions:
        s = revision.status
        name = Text(revision.name, "bold" if revision.name == stable else "")
        cells = (styled(s.outcome), s.reason or "-", s.accuracy or "-", s.size or "-", s.p99 or "-", age(revision.created, now))
        table.add_row(str(revision.spec.number), name, *cells)
    return table


def what_next(rollout: Rollout, now: datetime) -> list[str]:
    """What the operator will do by itself, and what a person can do."""
    s = rollout.status
    if (s.observed_generation or 0) < rollout.generation:
        return [f"the operator has yet to see generation {rollout.generation} of spec; if that lasts, look whether it runs"]
    flying = in_flight(rollout)
    if flying is None:
        return _next_when_idle(rollout)
    if flying.stage != "Canary" or flying.step is None:
        lines = [flying.message or _DOES.get(flying.stage, f"stage {flying.stage}")]
        if flying.stage not in ("Promote", "Revert"):
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


# --- parts ------------------------------------------------------------------------------------------------------------


def _head(rollout: Rollout, now: datetime) -> RenderableType:
    s = rollout.status
    ready = next((c for c in s.conditions if c.type == "Ready"), None)
    grid = _grid()
    grid.add_row(Text(rollout.name, "bold"), Text.assemble(styled(s.phase), (f"  namespace {rollout.namespace}", "dim")))
    if ready:
        grid.add_row("Ready", Text.assemble(styled(ready.status), f"  {ready.reason}: {ready.message}"))
    if s.stable:
        grid.add_row("Stable", _serves(rollout, s.stable.revision, s.stable.number, 100 - (s.weight or 0), f", since {age(s.stable.since, now)}"))
    flying = in_flight(rollout)
    if flying and flying.revision and flying.number and not (s.stable and flying.revision == s.stable.revision):
        grid.add_row("Canary", _serves(rollout, flying.revision, flying.number, s.weight or 0, ""))
    if s.retiring:
        grid.add_row("Retiring", f"{s.retiring.revision}  #{s.retiring.number}{_pods(rollout, s.retiring.revision)}")
    if s.address:
        grid.add_row("Address", f"{s.address.url}  gRPC {s.address.grpc}")
    return grid


def _serves(rollout: Rollout, revision: str, number: int, share: int, more: str) -> str:
    return f"{revision}  #{number}, {share} % of the requests{_pods(rollout, revision)}{more}"


def _pods(rollout: Rollout, revision: str) -> str:
    if rollout.replicas is None:
        stable = rollout.status.stable
        if stable is None or stable.revision != revision:
            return ""
        found = Replicas(rollout.status.ready_replicas, rollout.status.replicas)
    else:
        found = rollout.replicas.get(revision, Replicas())
    return f", {found.ready} of {found.total} pods ready"


def _stages(rollout: Rollout, r: RolloutStatus, now: datetime) -> Table:
    table = _grid()
    reached = r.stage if r.stage in STAGES else next((x for x in reversed(STAGES) if x in r.stages), "Resolve")
    at = len(STAGES) if r.stage == "Done" else STAGES.index(reached)
    over = r.stage in ("Failed", "Revert")
    for i, stage in enumerate(STAGES):
        spent = r.stages.get(stage)
        note = _stage_note(rollout, r, stage)
        if i < at:
            mark, time = (Text("✔", "green"), duration(spent)) if spent is not None else (Text("-", "dim"), "skipped")
        elif i == at and over:
            mark, time, note = Text("✘", "red"), duration(spent or 0), f"{r.reason or 'Failed'}: {r.message or ''}"
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
        words += [f"{m.name} {m.after:.4g} ({m.after - m.before:+.2g})" for m in a.metrics if m.name != "accuracy"]
        if a.reused:
            words.append("done before, reused")
        return ", ".join(words)
    if stage == "Evaluate" and r.evaluation:
        e = r.evaluation
        words = [e.verdict]
        if e.accuracy is not None:
            against = f" against {e.stable_accuracy:.3f} of {e.stable}" if e.stable_accuracy is not None else ""
            words.append(f"accuracy {e.accuracy:.3f}{against} on {e.samples} samples")
        if e.latency_p99_ms is not None:
            words.append(f"p99 {e.latency_p99_ms:.1f} ms")
        return ", ".join(words)
    return r.message or "" if stage == r.stage else ""


def _steps(r: RolloutStatus, steps: Sequence[Step], now: datetime) -> Table:
    table = _grid()
    ended = {e.index: e for e in r.history}
    current = r.step.index if r.step and r.stage in ("Canary", "Failed", "Revert") else None
    for i, step in enumerate(steps):
        what = f"{step.weight} %" if step.weight is not None else "pause"
        if step.weight is not None and step.for_:
            what += f" for {step.for_}"
        elif step.pause is not None:
            what += f" {step.pause.duration}" if step.pause.duration else " until promoted"
        number = f"{i + 1}/{len(steps)}"
        if i == current and r.step is not None and r.stage == "Canary":
            since = r.step.observed_since or r.step.since
            table.add_row(Text("▶", "cyan"), number, what, styled(r.step.phase), age(since, now), r.step.override or "")
        elif i in ended:
            mark = Text("✔", "green") if ended[i].verdict == "Successful" else Text("✘" if ended[i].verdict == "Failed" else "!", "yellow")
            table.add_row(mark, number, what, styled(ended[i].verdict), duration(ended[i].seconds), ended[i].reason)
        elif current is not None and i < current:
            table.add_row(Text("✔", "green"), number, what, "passed", "", "")
        else:
            table.add_row(Text("·", "dim"), number, what, "", "", "")
    return table


def _metrics(metrics: Sequence[MetricStatus]) -> RenderableType:
    table = _table("METRIC", "CANARY", "STABLE", "HARM", "VERDICT")
    why = _grid()
    for m in metrics:
        # A metric by query has one value and no counts.
        canary = _count(m.canary) if m.canary else (f"{m.value:g}" if m.value is not None else "-")
        table.add_row(m.name, canary, _count(m.stable) if m.stable else "-", _interval(m.interval), styled(m.verdict))
        why.add_row(Text(m.name, "dim"), Text(f"{m.reason}: {m.message}" if m.message else m.reason, "dim"))
    return Group(table, why)


def _count(c: Counter) -> str:
    return f"{c.bad:g} of {c.total:g} ({c.bad / c.total:.2%})" if c.total else "none yet"


def _interval(bounds: list[float] | None) -> str:
    if not bounds or len(bounds) != 2:
        return "-"
    low, high = (100 * b for b in bounds)
    return f"{low:+.2f} to {high:+.2f} points"


def _conditions(rollout: Rollout, now: datetime) -> Table:
    table = _table("CONDITION", "STATUS", "REASON", "SINCE", "MESSAGE")
    for c in rollout.status.conditions:
        stalled = c.type == "Stalled" and c.status == "True"
        table.add_row(c.type, Text(c.status, "red") if stalled else styled(c.status), c.reason, age(c.last_transition_time, now), c.message)
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
            f"nothing by itself: somebody rolled back to {s.pinned.revision}, and spec still asks for another version",
            f"change spec, or try its version again: modelrollout retry {rollout.name}",
        ]
    if stalled and last is not None and last.stage == "Failed":
        what = last.revision or "this source"
        return [
            f"nothing by itself: {what} has failed and is not tried again until spec changes"
            + (f"; {s.stable.revision} serves on" if s.stable else ""),
            f"try it again: modelrollout retry {rollout.name}",
        ]
    if stalled:
        return [f"nothing by itself: {stalled.reason}: {stalled.message}"]
    if last is None and s.stable is None:
        return ["the operator begins the first rollout; if that lasts, look whether it runs"]
    return [f"nothing: {idle(rollout)}"]


def _next_in_canary(rollout: Rollout, r: RolloutStatus, now: datetime) -> list[str]:
    assert r.step is not None
    steps = rollout.spec.rollout.canary.steps if rollout.spec else []
    promote = f"go on without waiting: modelrollout promote {rollout.name}"
    abort = f"end it: modelrollout abort {rollout.name}"
    following = steps[r.step.index + 1] if 0 <= r.step.index < len(steps) - 1 else None
    then = "promotion to 100 %" if following is None else f"weight {following.weight} %" if following.weight is not None else "a pause"
    if r.step.phase == "Shifting":
        return [r.message or f"the gateway is taking weight {r.step.weight} % up; then it is judged", abort]
    if r.step.phase == "Paused":
        present = steps[r.step.index] if 0 <= r.step.index < len(steps) else None
        if present and present.pause and present.pause.duration:
            left = seconds(present.pause.duration) - _seconds_since(r.step.since, now)
            return [f"the pause ends in {duration(left)}; then comes {then}", promote, abort]
        why = f": {r.message}" if r.message else ""
        return [f"waits for a person{why}; then comes {then}", f"go on: modelrollout promote {rollout.name}", abort]
    lines = [f"{r.message or 'the canary is being judged on live traffic'}; as soon as the evidence allows comes {then}"]
    if rollout.spec:
        verb = {"Pause": "the rollout pauses", "Rollback": "the canary is taken back"}[rollout.spec.rollout.on_inconclusive]
        lines += _deadline(rollout, r.step.since, now, verb)
    return [*lines, promote, abort]


def _deadline(rollout: Rollout, since: str, now: datetime, then: str) -> list[str]:
    if rollout.spec is None:
        return []
    left = seconds(rollout.spec.rollout.progress_deadline) - _seconds_since(since, now)
    return [f"without a result in {duration(left)} (progressDeadline), {then}"]


# --- small things -----------------------------------------------------------------------------------------------------


def _section(title: str, body: RenderableType) -> list[RenderableType]:
    return [Text(f"\n{title}", "bold"), Padding(body, (0, 0, 0, 2))]


def _table(*headers: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    for header in headers:
        table.add_column(header, overflow="fold", no_wrap=header == headers[0])
    return table


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
    at = datetime.fromisoformat(text)
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _seconds_since(text: str, now: datetime) -> float:
    at = _time(text)
    return max(0.0, (now - at) / timedelta(seconds=1)) if at else 0.0
