"""``modelrollout analyze``: judges a rollout over a recording, over the history of its metrics, or
at present.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args

from rich.console import Group, RenderableType
from rich.text import Text

from modelrollout.analysis.eta import counted_seconds
from modelrollout.analysis.measurement import counts_of
from modelrollout.analysis.metrics import NO_CLIENT_ERRORS, effective_metrics
from modelrollout.analysis.problem import MeasurementProblem
from modelrollout.analysis.providers.base import MetricsProvider
from modelrollout.analysis.recording import (
    Header,
    RecordingError,
    encode,
    encode_header,
    read_header,
    read_looks,
)
from modelrollout.analysis.target import Target, sources_of
from modelrollout.api.v1alpha1 import DURATION_RE, ModelDeploymentSpec, RevisionRef, seconds
from modelrollout.cli import providers, view
from modelrollout.cli.cluster import Cluster, Rollout
from modelrollout.cli.errors import Refused, Unanswered
from modelrollout.cli.manifests.judged import Manifest, from_cluster, from_file, with_changes
from modelrollout.cli.screen import columns
from modelrollout.cli.verbs import in_flight
from modelrollout.config import Profile
from modelrollout.rollout.assessment import assess, is_decoupled, metrics_due
from modelrollout.rollout.policy.rules import NO_RULES, Rules
from modelrollout.rollout.replay import Moment, Replayed, replay
from modelrollout.rollout.snapshot import Assessment, Observed, baseline
from modelrollout.rollout.strategy import steps_of

_LIMIT_LOOKS = 100_000


Tell = Callable[[RenderableType, dict[str, Any]], None]


@dataclass(frozen=True)
class Options:
    """The options of the command."""

    name: str | None = None
    filename: Path | None = None
    recording: Path | None = None
    connect: Callable[[], MetricsProvider] | None = None  # to the provider that the options name
    profile: Profile | None = None  # of the gateway; None: as the operator counted, else traefik
    start: str | None = None
    end: str | None = None
    canary: str | None = None
    stable: str | None = None
    record: Path | None = None
    changes: Sequence[str] = ()
    steps: str | None = None
    window: float = 60.0

    @property
    def needs_cluster(self) -> bool:
        """Whether the API server has to be asked for the ModelDeployment."""
        return self.filename is None and self.name is not None


async def analyze(w: Options, cluster: Cluster | None, now: datetime, tell: Tell) -> None:
    """Judge as the options say, and give the result to ``tell``. Raises Refused and Unanswered."""
    if w.recording is None and w.connect is None:
        raise Refused(f"say where the readings come from: {providers.OPTIONS}, or --replay FILE")
    if w.recording is not None and w.connect is not None:
        raise Refused("either --replay or a metrics provider, not both")
    rollout = await cluster.rollout(w.name) if cluster is not None and w.name is not None else None
    if cluster is not None and rollout is not None:
        m = from_cluster(rollout, await cluster.policies(), await cluster.namespace_labels())
    elif w.filename is not None:
        m = from_file(w.filename)
    else:
        raise Refused("name a ModelDeployment, or give its file with -f")
    profile = profile_of(m.spec, w.profile or _recorded_profile(rollout))
    spec = with_changes(m, w.changes, w.steps, profile)
    judged_by = replace(m, spec=spec)
    if w.recording is not None:
        header, moments = read_recording(w.recording)
        replayed = run(spec, moments, stable=header.stable is not None)
        tell(render(replayed, judged_by), as_json(replayed, judged_by))
        return
    assert w.connect is not None
    provider = w.connect()
    try:
        if w.start is None:
            if rollout is None:
                raise Refused(
                    "give --start (and --end) to judge history, or the NAME of a rollout in flight to"
                    " judge now"
                )
            assessment = await assess_now(replace(rollout, spec=spec), provider, profile, m.rules, now)
            text = f"{assessment.verdict}: {assessment.reason}: {assessment.message}"
            remarks = notes(judged_by)
            text_now = Group(
                view.metrics(assessment.metrics),
                Text(f"\n{text}", "bold"),
                *(Text(note, "dim") for note in remarks),
            )
            tell(text_now, assessment_json(assessment, remarks))
            return
        canary, stable = _sides(w, rollout)
        target = target_of(m.namespace, m.name, canary, stable, profile, m.rules, w.window)
        history = await past_moments(
            provider, spec, target, times_between(w.start, w.end, spec.rollout.analysis.interval, now)
        )
    finally:
        await provider.close()
    if w.record is not None:
        header = Header(m.namespace, m.name, canary.revision, stable.revision if stable else None)
        try:
            w.record.write_text(recording(header, history))
        except OSError as e:
            raise Refused(f"--record {w.record}: {e.strerror}") from e
    replayed = run(spec, history, stable=stable is not None)
    tell(render(replayed, judged_by), as_json(replayed, judged_by))


def _sides(w: Options, rollout: Rollout | None) -> tuple[RevisionRef, RevisionRef | None]:
    running = rollout.status.rollout if rollout else None
    if w.canary is not None:
        canary = parse_revision(w.canary, "--canary")
    elif running is not None and running.revision is not None and running.number is not None:
        canary = RevisionRef(revision=running.revision, number=running.number)
    else:
        raise Refused("give --canary NAME:NUMBER, the revision to judge (see modelrollout history)")
    if w.stable is not None:
        return canary, None if w.stable == "none" else parse_revision(w.stable, "--stable")
    stable = rollout.status.stable if rollout else None
    if stable is None or stable.revision == canary.revision:
        raise Refused("give --stable NAME:NUMBER, the revision to compare with, or --stable none")
    return canary, stable


# --- where readings come from


def read_recording(path: Path) -> tuple[Header, Iterator[Moment]]:
    """A file that ``--record`` wrote. Raises Refused, also while the moments are read."""
    try:
        first, *rest = path.read_text().splitlines() or [""]
        header = read_header(first)
    except (OSError, UnicodeDecodeError, RecordingError) as e:
        raise Refused(f"{path}: {e}") from e

    def moments() -> Iterator[Moment]:
        try:
            yield from (Moment(at, readings) for at, readings in read_looks(rest))
        except RecordingError as e:
            raise Refused(f"{path}: {e}") from e

    return header, moments()


async def past_moments(
    provider: MetricsProvider, spec: ModelDeploymentSpec, target: Target, times: Sequence[int]
) -> list[Moment]:
    """The readings at these times as the provider has kept them. Raises Unanswered when it gives no
    answer.
    """
    metrics = effective_metrics(spec.rollout.analysis, {}, (), target.profile)
    assert not isinstance(metrics, MeasurementProblem)
    readings = await provider.read_past(target, metrics, times)
    if isinstance(readings, MeasurementProblem):
        raise Unanswered(readings.message)
    return [Moment(datetime.fromtimestamp(t, UTC), at_once) for t, at_once in readings.items()]


def times_between(start: str, end: str | None, interval: str, now: datetime) -> list[int]:
    """The times at which the operator would have judged, Unix seconds. ``start`` and ``end``: RFC
    3339, or how long ago, such as 2h. Raises Refused.
    """
    begin, finish = _parse_time(start, "--start", now), _parse_time(end, "--end", now) if end else now
    step = max(1, round(seconds(interval)))
    times = list(range(int(begin.timestamp()), int(finish.timestamp()) + 1, step))
    if not 2 <= len(times) <= _LIMIT_LOOKS:
        span = f"from {begin:%Y-%m-%d %H:%M:%S} to {finish:%Y-%m-%d %H:%M:%S}"
        raise Refused(f"{span} are {len(times)} looks at interval {interval}: give 2 to {_LIMIT_LOOKS}")
    return times


def _parse_time(text: str, option: str, now: datetime) -> datetime:
    if re.match(DURATION_RE, text):
        return now - timedelta(seconds=seconds(text))
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise Refused(
            f"{option} {text}: write a time such as 2026-11-22T12:00:00Z, or how long ago: 2h"
        ) from None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def parse_revision(text: str, option: str) -> RevisionRef:
    """``digits-8d1b:3``: name and number of a revision; raises Refused."""
    name, _, number = text.rpartition(":")
    if not name or not re.fullmatch("[0-9]{1,9}", number):
        raise Refused(
            f"{option} {text}: write name and number of the revision, for example digits-8d1b:3 (see"
            " modelrollout history)"
        )
    return RevisionRef(revision=name, number=int(number))


def recording(header: Header, moments: Iterable[Moment]) -> str:
    """The file for ``--replay``."""
    return "\n".join([encode_header(header), *(encode(m.at, m.readings) for m in moments)]) + "\n"


def run(spec: ModelDeploymentSpec, moments: Iterable[Moment], *, stable: bool) -> Replayed:
    """``replay``; raises Refused."""
    try:
        return replay(spec, moments, stable=stable)
    except ValueError as e:
        raise Refused(str(e)) from e


async def assess_now(
    rollout: Rollout, provider: MetricsProvider, profile: Profile, rules: Rules | None, now: datetime
) -> Assessment:
    """The present step with one more reading on top of status; writes nothing. Raises Refused when
    no canary is in progress.
    """
    running = in_flight(rollout)
    if (
        rollout.spec is None
        or running is None
        or running.stage != "Canary"
        or running.step is None
        or running.revision is None
        or running.number is None
    ):
        raise Refused(
            f"{rollout.name} is in no canary step, so nothing is being judged; over the past: --start,"
            " --canary and --stable, or --replay"
        )
    s = Observed(
        name=rollout.name,
        namespace=rollout.namespace,
        generation=rollout.generation,
        spec=rollout.spec,
        status=rollout.status,
    )
    metrics = metrics_due(s, now, profile)
    if isinstance(metrics, Assessment):
        return metrics
    window = max(10.0, counted_seconds(running.step, rollout.spec.rollout, now))
    canary = RevisionRef(revision=running.revision, number=running.number)
    target = replace(
        target_of(
            rollout.namespace,
            rollout.name,
            canary,
            baseline(s),
            profile,
            rules,
            window,
            running.step.weight,
        ),
        decoupled=is_decoupled(s),
    )
    return assess(
        s,
        metrics,
        await provider.read(
            target, metrics, counts_of(running.step.metrics, sources_of(metrics, profile)), now.timestamp()
        ),
        now,
        profile=profile,
    )


def profile_of(spec: ModelDeploymentSpec, gateway: Profile) -> Profile:
    """Who counts the requests; ``gateway``: the gateway's profile."""
    return gateway if spec.traffic.gateway is not None else "none"


def _recorded_profile(rollout: Rollout | None) -> Profile:
    """Who has counted the present step, as the operator recorded it, which knows the gateway."""
    running = rollout.status.rollout if rollout else None
    metrics = running.step.metrics if running and running.step else []
    # latency may be counted by the servers although a gateway counts the answers
    recorded = {m.source for m in metrics if m.name != "latency"} or {m.source for m in metrics}
    if "triton" in recorded:
        return "none"
    return next((p for p in get_args(Profile) if p in recorded), "traefik")


def target_of(
    namespace: str,
    name: str,
    canary: RevisionRef,
    stable: RevisionRef | None,
    profile: Profile,
    rules: Rules | None,
    window: float,
    weight: int = 0,
) -> Target:
    """The revisions to compare. Own queries run unless a policy says Templates: the operator's
    configuration is unknown here (``notes``).
    """
    known = rules or NO_RULES
    return Target(
        namespace,
        name,
        canary,
        stable,
        profile,
        window,
        weight,
        positions=tuple(r.revision for r in (stable, canary) if r is not None),
        promql=known.promql,
        queries=known.queries("Own"),
    )


def notes(m: Manifest) -> list[str]:
    """What is not judged, and where the operator may judge differently, for reasons that are
    unknown here.
    """
    remarks = []
    rules = m.rules or NO_RULES
    own = [
        metric.name
        for metric in m.spec.rollout.analysis.metrics or ()
        if metric.query is not None and metric.query not in rules.promql
    ]
    if own and not any(gates.queries for _, gates in rules.gates):
        remarks.append(
            f"{', '.join(own)}: PromQL of the spec's own. Unless a RolloutPolicy or the operator's"
            " configuration says queries: Own, the operator refuses it (QueryNotAllowed): use a template"
        )
    if m.spec.traffic.gateway is None:
        remarks.append(NO_CLIENT_ERRORS)
    if m.rules is None:
        remarks.append(
            "policies are not known (you may not list rolloutpolicies): what they demand is not in this"
        )
    return remarks


# --- output


def render(replayed: Replayed, judged_by: Manifest) -> RenderableType:
    """The timeline as text: when each step began, passed, failed or stayed inconclusive, with the
    intervals of that moment.
    """
    table = columns("AFTER", "STEP", "WEIGHT", "WHAT", "METRIC", "CANARY", "STABLE", "HARM", "VERDICT")
    for entry in replayed.timeline:
        head = (view.duration(entry.seconds), entry.step, f"{entry.weight} %", entry.what)
        if entry.what == "Counting" or not entry.metrics:
            table.add_row(*head, "", "", "", "", "")
            continue
        for m in entry.metrics:
            value = f"{m.value:g}" if m.value is not None else "-"
            verdict = f"{m.verdict}{' (dry run)' if m.dry_run else ''}: {m.reason}"
            canary, stable = (
                view.count(m.canary) if m.canary else value,
                (view.count(m.stable) if m.stable else "-"),
            )
            table.add_row(*head, m.name, canary, stable, view.interval(m.interval), verdict)
            head = ("", "", "", "")
    parts: list[RenderableType] = [table, Text(f"\n{replayed.outcome}: {replayed.message}", "bold")]
    if any(s.pause is not None and not s.pause.duration for s in steps_of(judged_by.spec.rollout)):
        parts.append(Text("pauses that wait for a promote are left out", "dim"))
    return Group(*parts, *(Text(note, "dim") for note in notes(judged_by)))


def as_json(replayed: Replayed, judged_by: Manifest) -> dict[str, Any]:
    """The same for programs."""
    return {
        "outcome": replayed.outcome,
        "reason": replayed.reason,
        "message": replayed.message,
        "notes": notes(judged_by),
        "timeline": [
            {
                "at": e.at.isoformat(),
                "seconds": e.seconds,
                "step": e.step,
                "weight": e.weight,
                "what": e.what,
                "message": e.message,
                "metrics": [_bare(m.wire()) for m in e.metrics],
            }
            for e in replayed.timeline
        ],
    }


def assessment_json(assessment: Assessment, remarks: Sequence[str]) -> dict[str, Any]:
    """The present assessment for programs."""
    return {
        "verdict": assessment.verdict,
        "reason": assessment.reason,
        "message": assessment.message,
        "notes": list(remarks),
        "metrics": [_bare(m.wire()) for m in assessment.metrics],
    }


def _bare(metric: dict[str, Any]) -> dict[str, Any]:
    """Without the raw counters of each process."""
    return {
        k: {f: n for f, n in v.items() if f in ("total", "bad")} if isinstance(v, Mapping) else v
        for k, v in metric.items()
    }
