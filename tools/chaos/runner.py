"""Tries each fault during a promotion and a rollback at the same time, waits for both to end, and
holds the outcome against what is right.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from chaos import ChaosError, truth
from chaos.arena import NAMESPACE, Arena, Subject
from chaos.moments import Act, Fault, observing, says
from chaos.recorder import GRPC, HTTP, MDEP
from chaos.traffic import Failure, is_apart
from chaos.treatments import PassAll
from chaos.truth import Object
from demo import DemoError, diagnostics
from demo.crashes import crashes_in, remarks, split
from sandbox.cluster import SandboxError
from sandbox.control import ControlError
from sandbox.shell import WaitError

HELD_SECONDS = 6.0  # so long nothing may begin once it is said why
SETTLE_SECONDS = 90.0  # until what is not stable is gone
HOLD_SECONDS = 300.0  # a step waits so long after a server of the canary ended


def has_restarted(deployment: Object) -> bool:
    """Whether a server of the canary ended in the present trial."""
    rollout = (deployment.get("status") or {}).get("rollout") or {}
    return bool(((rollout.get("restarts") or {}).get("canary") or {}).get("counts"))


@dataclass
class Trial:
    """What became of one fault."""

    fault: str
    about: str
    began: float = field(default_factory=time.time)
    ended: float = 0.0
    # by subject, until its rollout had ended
    seconds: dict[str, float] = field(default_factory=dict)
    tried: int = 0
    kills: int = 0
    own_ends: int = 0
    wrong: list[str] = field(default_factory=list)
    sent: int = 0
    failures: list[Failure] = field(default_factory=list)
    apart: list[Failure] = field(default_factory=list)  # failed by the fault itself
    excused: list[Failure] = field(default_factory=list)  # failed by a crash of Triton
    crashes: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)  # on requests that crashes of Triton failed
    notes: list[str] = field(default_factory=list)


class Runner:
    """One after the other; a wrong outcome does not end the run."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._counted = {name: traffic.sent() for name, traffic in arena.traffic.items()}
        self._seen = dict.fromkeys(arena.traffic, 0)  # failures

    def run(self, faults: Sequence[Fault]) -> Iterator[Trial]:
        for number, fault in enumerate(faults, 1):
            self._arena.say(f"{number}/{len(faults)} {fault.name}: {fault.about}")
            trial = self._try(fault)
            self._tell(trial)
            yield trial

    def versions(self) -> dict[str, str]:
        """Of the parts of the sandbox."""
        versions: dict[str, str] = self._arena.box.status()["versions"]
        return versions

    def _tell(self, trial: Trial) -> None:
        times = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in trial.seconds.items())
        apart = len(trial.apart) + len(trial.excused)
        requests = f"sent {trial.sent}, failed {len(trial.failures)}, counted apart {apart}"
        self._arena.say(f"    tried {trial.tried} times, ended after {times or '-'}; {requests}")
        for text in (
            *trial.wrong,
            *(f"{f.protocol} {f.error} at {f.at - trial.began:.1f} s" for f in trial.failures[:5]),
        ):
            self._arena.say(f"    WRONG: {text}")
        for text in trial.crashes:
            self._arena.say(f"    ended by itself: {text}")

    def _try(self, fault: Fault) -> Trial:
        arena = self._arena
        trial = Trial(fault.name, fault.about)
        position = arena.recorder.position()
        operators = (arena.operator, arena.second, arena.rival)
        kills, ends = sum(o.kills for o in operators), sum(len(o.own_ends) for o in operators)
        undone = False
        try:
            fault.begin(arena)
            for subject in arena.subjects:
                arena.next_version(subject, thorough=fault.thorough)
            if fault.held:
                self._until_held(fault.held)
                self._undo(fault, trial)
                undone = True
            undone = self._play(fault, trial, undone)
            if not undone:
                self._undo(fault, trial)
                undone = True
            self._rest(trial)
        except (ChaosError, DemoError, SandboxError, ControlError, WaitError) as e:
            trial.wrong.append(str(e))
        finally:
            if not undone:
                self._undo(fault, trial)
        trial.kills = sum(o.kills for o in operators) - kills
        trial.own_ends = sum(len(o.own_ends) for o in operators) - ends
        self._judge(trial, position)
        if trial.wrong:
            diagnostics.dump(arena.cluster, arena.folder / "diagnostics" / fault.name, arena.say, NAMESPACE)
            self._recover()
        trial.crashes = arena.recorder.crashes(position)
        trial.ended = time.time()
        self._count(trial)
        return trial

    def _undo(self, fault: Fault, trial: Trial) -> None:
        """End the fault, and count how often it was tried until then: by the rule of a proxy, by
        acts, or once for each rollout.
        """
        arena = self._arena
        rules = [
            proxy.rule
            for proxy in (arena.proxy, arena.second_proxy, arena.prometheus)
            if not isinstance(proxy.rule, PassAll)
        ]
        trial.tried += sum(rule.tried for rule in rules) if rules or fault.acts else len(arena.subjects)
        for rule in rules:
            trial.notes += rule.seen
        if not trial.tried:
            trial.wrong.append("the fault was never applied")
        fault.undo(arena)

    def _until_held(self, reason: str) -> None:
        """Until each status says that reason; and for a while after that no rollout may begin."""
        arena = self._arena
        for subject in arena.subjects:
            arena.until(
                f"{subject.name} says {reason}",
                lambda s=subject: says(reason)(arena.recorder.latest(s.name).get("status") or {}),  # type: ignore[misc]
                60,
            )
        end = time.monotonic() + HELD_SECONDS
        while time.monotonic() < end:
            for subject in arena.subjects:
                status = arena.recorder.latest(subject.name).get("status") or {}
                if (status.get("rollout") or {}).get("sha256") == subject.tried:
                    raise ChaosError(f"{subject.name} began a rollout although its status says {reason}")
            arena.recorder.wait(0.3)

    def _play(self, fault: Fault, trial: Trial, undone: bool) -> bool:
        """Until both rollouts have ended and all acts are done. Returns whether the fault is
        undone, which it may be before or under way.
        """
        arena = self._arena
        left: dict[str, list[Act]] = {
            s.name: [a for a in fault.acts if s.name in a.on] for s in arena.subjects
        }
        observed: set[str] = set()
        release: float | None = None
        began = time.monotonic()
        while True:
            for subject in arena.subjects:
                latest = arena.recorder.latest(subject.name)
                status = latest.get("status") or {}
                fresh = status.get("rollout", {}).get("sha256") in (subject.tried, None)
                if fresh and observing(0)(status):
                    observed.add(subject.name)
                acts = left[subject.name]
                if (
                    acts
                    and fresh
                    and status.get("rollout")
                    and acts[0].when(status)
                    and self._concerns(subject, status)
                ):
                    acts.pop(0).do(arena, subject)
                    trial.tried += 1
                    trial.seconds.pop(subject.name, None)
                elif subject.name not in trial.seconds and not acts and self._has_ended(subject):
                    trial.seconds[subject.name] = time.monotonic() - began
            if fault.hold is not None and not undone:
                if release is None and len(observed) == len(arena.subjects):
                    release = time.monotonic() + fault.hold
                if release is not None and time.monotonic() >= release:
                    self._undo(fault, trial)
                    undone = True
            if len(trial.seconds) == len(arena.subjects):
                break
            on_hold = any(has_restarted(arena.recorder.latest(s.name)) for s in arena.subjects)
            if time.monotonic() - began > fault.limit + HOLD_SECONDS * on_hold:
                raise ChaosError(self._stuck(fault, trial, left))
            arena.recorder.wait(0.2)
        if any(left.values()) or (fault.hold is not None and not undone):
            trial.wrong.append(
                "not all of the fault was tried: "
                + ", ".join(f"{len(acts)} acts left on {name}" for name, acts in left.items())
            )
        return undone

    def _concerns(self, subject: Subject, status: dict[str, object]) -> bool:
        """Whether the status is about the version that was applied last (before a digest is pinned:
        about its generation).
        """
        rollout = status.get("rollout")
        assert isinstance(rollout, dict)
        if rollout.get("sha256") is not None:
            return bool(rollout["sha256"] == subject.tried)
        latest = self._arena.recorder.latest(subject.name)
        return bool(rollout["generation"] >= latest["metadata"]["generation"])

    def _has_ended(self, subject: Subject) -> bool:
        latest = self._arena.recorder.latest(subject.name)
        return truth.ended(latest, subject.expected) or truth.rebuilt(latest, subject.expected)

    def _stuck(self, fault: Fault, trial: Trial, left: dict[str, list[Act]]) -> str:
        problems = []
        for subject in self._arena.subjects:
            if subject.name not in trial.seconds:
                status = self._arena.recorder.latest(subject.name).get("status") or {}
                rollout = status.get("rollout") or {}
                where = (
                    f"{rollout.get('stage')} {rollout.get('outcome') or ''} {rollout.get('reason') or ''}:"
                    f" {rollout.get('message') or ''}"
                )
                problems.append(
                    f"{subject.name} is at {where} (step {status.get('step')}), {len(left[subject.name])}"
                    " acts to come"
                )
        return f"not ended after {fault.limit:.0f} s: {'; '.join(problems)}"

    def _rest(self, trial: Trial) -> None:
        """Wait until nothing is wrong with the final state, for as long as pods may take to go;
        what is wrong then is wrong.
        """
        deadline = time.monotonic() + SETTLE_SECONDS
        while True:
            wrong = [
                f"{s.name}: {p}"
                for s in self._arena.subjects
                for p in truth.problems(s.expected, self._arena.final(s))
            ]
            if not wrong or time.monotonic() > deadline:
                trial.wrong += wrong
                return
            time.sleep(0.5)

    def _judge(self, trial: Trial, position: int) -> None:
        recorder = self._arena.recorder
        for subject in self._arena.subjects:
            deployments = recorder.versions(MDEP, subject.name)
            for kind in (HTTP, GRPC):
                routes = recorder.versions(kind, subject.name)
                rose = [r for r in truth.rises(deployments, routes, subject.own) if r.version > position]
                trial.wrong += [f"{subject.name}: {r.text}" for r in rose]
            if subject.outcome == "Promoted" and not trial.wrong:
                subject.stable = subject.tried

    def _count(self, trial: Trial) -> None:
        """What the clients did in this time. They report once a second, so the sums are right and
        the borders blurred by that.
        """
        pods = self._arena.recorder.pods()
        recorded = crashes_in(pods)
        for subject in self._arena.subjects:
            windows = self._arena.windows(subject, pods)
            crashes = [crash for crash in recorded if crash.model == subject.name]
            traffic = self._arena.traffic[subject.name]
            sent = traffic.sent()
            trial.sent += sent - self._counted[subject.name]
            self._counted[subject.name] = sent
            failures = traffic.failures()[self._seen[subject.name] :]
            self._seen[subject.name] += len(failures)
            trial.apart += [f for f in failures if is_apart(f, windows)]
            others, excused = split([f for f in failures if not is_apart(f, windows)], crashes)
            trial.failures += others
            trial.excused += excused
            trial.remarks += remarks(excused, crashes)

    def _recover(self) -> None:
        """Back to a state from which the next fault can be tried: what is stable now is what is
        expected next.
        """
        arena = self._arena
        for subject in arena.subjects:
            try:
                arena.replace_stable(subject)
            except (ChaosError, DemoError) as e:
                arena.say(f"    {e}")
