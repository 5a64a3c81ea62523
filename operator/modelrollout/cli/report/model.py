"""PURE: the evidence on one revision, drawn together from the objects as read. The renderings are
in ``text`` and ``html``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modelrollout.analysis.metrics import NO_CLIENT_ERRORS
from modelrollout.analysis.target import TRITON
from modelrollout.api.v1alpha1 import (
    REQUEST_METRICS,
    ArtifactEvidence,
    Counter,
    EvaluationEvidence,
    GateMetricEvidence,
    Metric,
    MetricStatus,
    ModelDeploymentSpec,
    RolloutStatus,
    SearchEvidence,
    StepEvidence,
    TuningEvidence,
    TuningTrial,
)
from modelrollout.cli.cluster import Revision, Rollout
from modelrollout.cli.errors import Refused
from modelrollout.cli.verbs import by_hand, find_revision, in_flight
from modelrollout.reasons import Reason
from modelrollout.rollout.server_crashes import describe
from modelrollout.rollout.stages.tune import settings
from modelrollout.statistics.paired import drop_interval

NOT_JUDGED = "-"  # in place of a verdict
SOURCE = "source"  # what a search calls the model that it begins from


@dataclass(frozen=True)
class Judged:
    """One metric as it was judged.

    ``interval`` is the 95 % interval of the harm (of canary metrics the anytime-valid one): worse
    is positive, in the metric's units; ``harm`` is the best guess, ``margin`` what is allowed of
    it. ``candidate`` and ``reference`` are values as a person reads them.
    """

    name: str
    verdict: str
    reason: str
    candidate: str
    reference: str
    samples: str = ""
    harm: float | None = None
    interval: tuple[float, float] | None = None
    margin: float | None = None
    message: str = ""


@dataclass(frozen=True)
class StepReport:
    """A canary step that has ended, or the present one (``ended`` False)."""

    number: int  # from 1
    weight: int
    verdict: str
    reason: str
    seconds: float | None
    metrics: tuple[Judged, ...]
    ended: bool = True


@dataclass(frozen=True)
class SearchPoint:
    """One model that the step auto made. ``loss`` of the gate's first metric against the original
    model, ``highest_loss`` the upper end of its 95 % interval; ``gain``: how many times smaller,
    and faster, than what the search began from.
    """

    name: str
    size: int  # bytes
    milliseconds: float
    value: float
    loss: float
    highest_loss: float
    within: bool
    chosen: bool
    smaller: float
    faster: float


@dataclass(frozen=True)
class SearchReport:
    """The result of auto: the frontier, the source, and the chosen one, by size. ``remark``: how it
    ended.
    """

    metric: str
    before: float
    allowed: float | None
    smaller_is_better: bool
    remark: str
    points: tuple[SearchPoint, ...]


@dataclass(frozen=True)
class Report:
    """All that is known of one version. ``facts`` are (name, value) pairs in the order of reading;
    ``stages`` seconds by stage in order of time.
    """

    deployment: str
    namespace: str
    revision: str
    number: int
    outcome: str
    reason: str
    message: str
    facts: tuple[tuple[str, str], ...]
    search: SearchReport | None
    gate: tuple[Judged, ...]
    golden: Judged | None
    steps: tuple[StepReport, ...]
    stages: tuple[tuple[str, float], ...]
    notes: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The same as JSON-able data."""
        return {**asdict(self), "facts": dict(self.facts), "stages": dict(self.stages)}


def revision_to_report(rollout: Rollout, name_or_number: str | None) -> Revision:
    """The revision with this name or number; without one, that of the rollout in flight or ended
    last, else stable, else the newest. Raises Refused if there is none.
    """
    if name_or_number is not None:
        return find_revision(rollout, name_or_number)
    last, stable = rollout.status.rollout, rollout.status.stable
    for name in (last.revision if last else None, stable.revision if stable else None):
        revision = rollout.revision(name)
        if revision is not None:
            return revision
    if not rollout.revisions:
        raise Refused(
            f"{rollout.name} has no revision yet, so there is no evidence to report; see: modelrollout status"
            f" {rollout.name}"
        )
    return rollout.revisions[0]


def of(rollout: Rollout, revision: Revision) -> Report:
    """The report on ``revision``; for the one in flight with the evidence so far."""
    status, spec = revision.status, rollout.spec
    r = rollout.status.rollout
    now = (
        r
        if r is not None and r.revision == revision.name and (r.mode == "Update" or not status.steps)
        else None
    )
    flying = now is not None and in_flight(rollout) is not None
    artifact = (now.artifact if now else None) or status.artifact
    evaluation = (now.evaluation if now else None) or status.evaluation
    restarts = (now.restarts if now else None) or status.restarts
    steps = [_step(s, spec) for s in (now.history if now else status.steps) or status.steps]
    if (
        now
        and flying
        and now.stage == "Canary"
        and now.step
        and now.step.index not in {s.number - 1 for s in steps}
    ):
        metrics = tuple(_metrics(now.step.metrics, spec))
        steps.append(
            StepReport(
                now.step.index + 1, now.step.weight, "in progress", now.step.phase, None, metrics, ended=False
            )
        )
    stages = dict(now.stages) if now else dict(status.stages)
    gate = tuple(_gate(m) for m in artifact.metrics) if artifact else ()
    notes = []
    if steps and any(m.margin is not None for s in steps for m in s.metrics):
        notes.append(
            "Margins of canary metrics and golden data are those of the present spec; the verdicts were given"
            " under the one of their time."
        )
    if evaluation and evaluation.is_of_made_up_inputs:
        notes.append(f"Before any traffic, without golden data: {evaluation.message}.")
    if counted_by := _counted_by(
        (now.history if now else status.steps) or status.steps, now if flying else None
    ):
        notes.append(f"Requests were counted by {', then by '.join(counted_by)}.")
    if steps and spec is not None and spec.traffic.gateway is None:
        notes.append(f"{NO_CLIENT_ERRORS[0].upper()}{NO_CLIENT_ERRORS[1:]}.")
    if any(s.reason == Reason.STABLE_DEAD for s in steps):
        notes.append(
            f"{Reason.STABLE_DEAD}: no pod of stable was ready, so from then on nothing was compared with it;"
            " only limits of the version's own were judged."
        )
    return Report(
        deployment=rollout.name,
        namespace=rollout.namespace,
        revision=revision.name,
        number=revision.spec.number,
        outcome="in flight" if flying else status.outcome,
        reason=(now.stage if now and flying else status.reason) or "-",
        message=(now.message or "") if now and flying else status.message,
        facts=(
            *_facts(revision, artifact, (now.tuning if now else None) or status.tuning),
            *((("server restarts", describe(restarts)),) if restarts else ()),
        ),
        search=_search(artifact.search) if artifact and artifact.search else None,
        gate=gate,
        golden=_golden(evaluation, spec) if evaluation and not evaluation.is_of_made_up_inputs else None,
        steps=tuple(steps),
        stages=tuple(stages.items()),
        notes=tuple(notes),
    )


def size(count: int) -> str:
    """Bytes as a person reads them, with all digits beside."""
    value, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{count} B" if unit == "B" else f"{value:.1f} {unit} ({count} B)"


def _facts(
    revision: Revision, artifact: ArtifactEvidence | None, tuning: TuningEvidence | None
) -> list[tuple[str, str]]:
    user: Mapping[str, Any] = revision.spec.input
    model = user.get("model") or {}
    steps = (user.get("optimization") or {}).get("steps") or []
    facts = [
        ("model", str(model.get("uri") or "-")),
        ("source sha256", revision.spec.sha256),
        ("optimization", ", ".join(_step_name(step) for step in steps) or "none: served as it is"),
    ]
    if backend := (triton := (user.get("serving") or {}).get("triton") or {}).get("backend"):
        facts.append(("backend", f"{backend}, with code of its own" if triton.get("code") else str(backend)))
    if artifact:
        if artifact.size_before:
            facts.append(("size of the source", size(artifact.size_before)))
        if artifact.size_after:
            change = (
                f", {artifact.size_after / artifact.size_before - 1:+.1%}" if artifact.size_before else ""
            )
            facts.append(("size as served", size(artifact.size_after) + change))
        if artifact.digest:
            facts += [("artifact", artifact.uri), ("artifact digest", artifact.digest)]
        if artifact.reused:
            facts.append(("prepared", "earlier: the same work was in the artifact store"))
    if tuning:
        facts.append(("tuned", tuning.message or settings(tuning.chosen or TuningTrial())))
        asked = f"{100 * tuning.share:g} % of the requests within {tuning.objective}; "
        failed = f", the server failed under {tuning.failed}" if tuning.failed else ""
        facts.append(
            (
                "tuned for",
                (
                    f"{asked if tuning.objective else ''}{tuning.candidates} configurations were"
                    f" measured{failed}"
                ),
            )
        )
        others = [
            f"{settings(t)}: {t.problem or f'{t.throughput:.0f}/s at {t.latency_ms:.1f} ms'}"
            for t in tuning.trials
        ]
        facts += [("tried too", "; ".join(others))] if others else []
    images = [
        c.get("image")
        for c in (revision.spec.template.get("spec") or {}).get("containers") or []
        if c.get("image")
    ]
    facts += [("server image", str(image)) for image in images]
    facts.append(("builder", revision.spec.builder))
    facts += [(f"lineage: {name}", value) for name, value in sorted((revision.spec.lineage or {}).items())]
    status = revision.status
    facts += [
        (name, at)
        for name, at in (
            ("created", revision.created),
            ("started", status.started),
            ("finished", status.finished),
        )
        if at
    ]
    facts += [(f"by hand, {verb.at}", by_hand(verb)) for verb in status.verbs]
    return facts


def _step_name(step: Mapping[str, Any]) -> str:
    """``int8 (method Static)``: the step's kind and its plain settings."""
    (kind, settings), *_ = step.items() or [("?", {})]
    plain = [
        f"{key} {value}" for key, value in (settings or {}).items() if isinstance(value, (str, int, float))
    ]
    return f"{kind} ({', '.join(plain)})" if plain else kind


def _search(evidence: SearchEvidence) -> SearchReport:
    metric = evidence.metric
    errors = metric in ("mae", "mse")
    start = next((p for p in evidence.points if p.name == SOURCE), None)
    points = [
        SearchPoint(
            name=p.name,
            size=p.size,
            milliseconds=p.milliseconds,
            value=p.value,
            loss=p.value - evidence.before if errors else evidence.before - p.value,
            highest_loss=p.highest_loss,
            within=p.within,
            chosen=p.name == evidence.chosen,
            smaller=start.size / p.size if start and p.size else 1.0,
            faster=start.milliseconds / p.milliseconds if start and p.milliseconds else 1.0,
        )
        for p in evidence.points
    ]
    ended = "" if evidence.ended == "Complete" else "; the time limit ended the search"
    allowed = f", at most {evidence.allowed:.4g} may be lost" if evidence.allowed is not None else ""
    return SearchReport(
        metric=metric,
        before=evidence.before,
        allowed=evidence.allowed,
        smaller_is_better=errors,
        remark=(
            f"objective {evidence.objective}: {evidence.chosen} of {evidence.tried} candidates is taken"
            f"{ended}. The original model has {metric} {_number(evidence.before)} on the data of the"
            f" search{allowed}."
            f" Shown is what no other beats in {metric} and size, or in {metric} and latency;"
            " report.json beside the artifact has all."
        ),
        points=tuple(sorted(points, key=lambda p: (p.size, p.milliseconds))),
    )


def _number(value: float) -> str:
    return f"{value:.4g}" if abs(value) >= 10 else f"{value:.4f}"


def _pair(bounds: Sequence[float] | None) -> tuple[float, float] | None:
    return (bounds[0], bounds[1]) if bounds and len(bounds) == 2 else None


def _gate(m: GateMetricEvidence) -> Judged:
    harm = m.after - m.before if m.name in ("mae", "mse") else m.before - m.after
    return Judged(
        name=f"{m.name}, {m.slice}" if m.slice else m.name,
        verdict=m.verdict,
        reason=m.reason,
        candidate=_number(m.after),
        reference=_number(m.before),
        samples=str(m.samples),
        harm=harm,
        interval=_pair(m.interval),
        margin=m.allowed,
    )


def _golden(e: EvaluationEvidence, spec: ModelDeploymentSpec | None) -> Judged:
    golden = spec.rollout.analysis.golden if spec else None
    interval = None
    if e.samples and e.only_candidate_right is not None and e.only_stable_right is not None:
        interval = drop_interval(e.samples, e.only_stable_right, e.only_candidate_right)
    harm = (
        e.stable_accuracy - e.accuracy if e.stable_accuracy is not None and e.accuracy is not None else None
    )
    return Judged(
        name="accuracy",
        verdict=e.verdict,
        reason=e.reason,
        candidate="-" if e.accuracy is None else _number(e.accuracy),
        reference="-" if e.stable_accuracy is None else f"{_number(e.stable_accuracy)} ({e.stable})",
        samples=str(e.samples),
        harm=harm,
        interval=interval,
        margin=golden.max_drop if golden and harm is not None else None,
        message="; ".join(
            x
            for x in (
                e.message,
                *(
                    f"{q} {v:.1f} ms"
                    for q, v in (("p50", e.latency_p50_ms), ("p99", e.latency_p99_ms))
                    if v is not None
                ),
            )
            if x
        ),
    )


def _step(s: StepEvidence, spec: ModelDeploymentSpec | None) -> StepReport:
    return StepReport(s.index + 1, s.weight, s.verdict, s.reason, s.seconds, tuple(_metrics(s.metrics, spec)))


def _metrics(metrics: Iterable[MetricStatus], spec: ModelDeploymentSpec | None) -> Iterator[Judged]:
    """Each as it was judged; after errors that a gateway counted what the servers counted."""
    for m in metrics:
        yield _metric(m, spec)
        if m.servers is not None and m.servers.canary is not None:
            yield Judged(
                name=f"{m.name}, by {TRITON}",
                verdict=NOT_JUDGED,
                reason="decides nothing",
                candidate=_count(m.servers.canary),
                reference=_count(m.servers.stable) if m.servers.stable else "-",
                samples=f"{m.servers.canary.total:g}",
                message=f"what the servers counted in the same step, where {m.source} decides",
            )


def _metric(m: MetricStatus, spec: ModelDeploymentSpec | None) -> Judged:
    asked: dict[str, Metric] = {x.name: x for x in spec.rollout.analysis.metrics or []} if spec else {}
    metric = asked.get(m.name)
    share = (_share(m.canary), _share(m.stable))
    return Judged(
        name=m.name,
        verdict=m.verdict,
        reason=m.reason,
        candidate=_count(m.canary) if m.canary else ("-" if m.value is None else f"{m.value:g}"),
        reference=_count(m.stable) if m.stable else "-",
        samples=f"{m.canary.total:g}" if m.canary else "",
        harm=share[0] - share[1] if share[0] is not None and share[1] is not None else None,
        interval=_pair(m.interval),
        margin=(metric.max_drop or metric.max_increase) if metric else None,
        message=f"decides nothing (dryRun): {m.message}" if m.dry_run else m.message,
    )


def _counted_by(ended: Sequence[StepEvidence], now: RolloutStatus | None) -> list[str]:
    """Who counted the requests (profiles of gateways, or triton), in the order of the steps."""
    metrics = [m for step in ended for m in step.metrics]
    metrics += now.step.metrics if now is not None and now.step is not None else []
    return list(dict.fromkeys(m.source for m in metrics if m.source and m.name in REQUEST_METRICS))


def _share(c: Counter | None) -> float | None:
    return c.bad / c.total if c and c.total else None


def _count(c: Counter) -> str:
    return f"{c.bad:g} bad of {c.total:g} ({c.bad / c.total:.2%})" if c.total else "none"
