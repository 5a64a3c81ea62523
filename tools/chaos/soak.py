"""python -m chaos.soak: hours of random changes and faults on ten ModelDeployments under load."""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from chaos import ChaosError, NotNowError, gateway, truth
from chaos import by_hand as hand
from chaos.arena import NAMESPACE, STEPS, Arena, Subject
from chaos.catalogue import CATALOGUE, STALL_SECONDS
from chaos.moments import Fault
from chaos.recorder import GRPC, HTTP, MDEP
from chaos.schedule import (
    VERBS,
    Event,
    Ledger,
    Sample,
    Tally,
    beyond_history,
    leftovers,
    memory_line,
    schedule,
)
from chaos.traffic import Failure, is_apart
from chaos.truth import is_ready
from demo import DemoError, diagnostics, target
from demo.cluster import Cluster
from demo.crashes import crashes_in, remarks, split
from demo.narrator import Narrator, heed_signals
from modelrollout.api import names
from modelrollout.kube.kinds import MODEL_REVISION
from sandbox.cluster import Sandbox, SandboxError
from sandbox.configs import GPU
from sandbox.control import ControlError
from sandbox.shell import WaitError

CHECKOUT = Path(__file__).resolve().parents[2]
MODELS = 10
HISTORY = 2  # revisions that have served, and as many that never did
# The operator keeps every object that exists, about 130 KiB for each version of a model: its
# revision, and its ended Jobs with their pods, an hour by default. A run that is shorter than it
# takes to fill all this would call growth what the cluster has more of. So ended Jobs go soon, the
# histories are short, and memory is judged once they are full.
ENDED_JOB_SECONDS = 120
FULL = MODELS * 2 * HISTORY  # revisions; with stable there are a few more
GPUS_EACH = 4  # two pods of stable and two of a canary
LOOK_SECONDS = 5.0
HOLD_SECONDS = 15.0  # of a fault between the operator and the API server, or Prometheus
LAST_SECONDS = 900.0  # until the last version of every model is stable
SETTLE_SECONDS = 120.0  # until what is not stable is gone
ANSWER_SECONDS = 10.0  # at the end every model is asked for so long
KINDS = "pods,services,deployments,jobs,pdb,httproutes,grpcroutes,mrev"
FAILURES = (ChaosError, DemoError, SandboxError, ControlError, WaitError)

Deed = Callable[[Arena, Subject], None]


# --- faults


def _held(fault: Fault) -> Deed:
    """A fault of the proxies for a while."""

    def do(arena: Arena, _: Subject) -> None:
        fault.begin(arena)
        try:
            time.sleep(HOLD_SECONDS)
        finally:
            fault.undo(arena)

    return do


def _with_two_pods(deed: Deed) -> Deed:
    """Only where stable has another pod that is ready."""

    def do(arena: Arena, subject: Subject) -> None:
        ready = [p for p in arena.pods(arena.stable(subject)) if is_ready(p)]
        if len(ready) < 2:
            raise NotNowError(f"stable has {len(ready)} ready pods")
        deed(arena, subject)

    return do


def _kill_operator(arena: Arena, _: Subject) -> None:
    arena.operator.kill()


def _add_foreign_parents(arena: Arena, subject: Subject) -> None:
    """They stay for a while."""
    gateway.add_foreign_parents(arena, subject)
    try:
        time.sleep(HOLD_SECONDS)
    finally:
        gateway.remove_foreign_parents(arena)


_PROXIED = ("api-409", "api-429", "api-500", "api-slow", "api-cut", "watch-", "prometheus-")
FAULTS: Mapping[str, Deed] = {
    **{fault.name: _held(fault) for fault in CATALOGUE if fault.name.startswith(_PROXIED)},
    "api-server-killed": hand.restart("apiserver"),
    "etcd-stalls": hand.stall("etcd", STALL_SECONDS),
    "gateway-stalls": hand.stall("gateway", 2.0),
    "gateway-deleted": gateway.recreate_gateway,
    "foreign-parents": _add_foreign_parents,
    "operator-killed": _kill_operator,
    "operator-paused": hand.leader_pauses,
    "pod-killed": _with_two_pods(hand.kill_pod(hand.stable)),
    "pod-evicted": _with_two_pods(hand.evict(hand.stable)),
    "stable-dies": hand.kill_side(hand.stable),
    "deployment-deleted": hand.delete("deployment", hand.stable, "--cascade=orphan"),
    "service-deleted": hand.delete("service", hand.own_name),
    "budget-deleted": hand.delete("pdb", hand.own_name),
    "route-deleted": hand.delete_route,
    "weights-reverted": hand.revert_weights,
    "model-control": hand.try_model_control,
}


# --- the run


def subjects(gpus: int) -> list[Subject]:
    """The ModelDeployments; as many ask for GPUs as there are GPUs for."""
    made = [Subject(f"soak-{number}", "Promoted", history=HISTORY) for number in range(MODELS)]
    for subject in made[: gpus // GPUS_EACH]:
        subject.serving = {
            "resources": {
                "limits": {GPU: 1, "cpu": "2", "memory": "512Mi"},
                # forty pods have room on the one node with GPUs of a machine with two cores
                "requests": {"cpu": "20m", "memory": "128Mi"},
            }
        }
    return made


class Soak:
    """Does the events one after the other, looks at what becomes of them, and counts."""

    def __init__(self, arena: Arena) -> None:
        self._arena, self._ledger, self.tally = arena, Ledger(), Tally()
        self.samples: list[Sample] = []
        self.remarks: list[str] = []
        self.done: Counter[str] = Counter()
        self._promoted: set[str] = set()  # models whose last version a person promoted
        self._began = time.monotonic()
        self._looked = 0.0
        self.scheduled = 0.0  # seconds until the last versions
        self._revisions = 0
        self._seen = dict.fromkeys((s.name for s in arena.subjects), 0)  # resourceVersion
        for subject in arena.subjects:
            self._ledger.applied(subject.name, subject.tried, good=True)

    def run(self, events: Sequence[Event], seconds: float) -> None:
        """All events, and until so many seconds have passed."""
        self.scheduled = seconds
        for event in events:
            self._until(event.at)
            self._do(event)
        self._until(seconds)

    def finish(self) -> None:
        """Every model gets a last good version, which must become stable and answer, with nothing
        left beside it; then all requests are counted.
        """
        arena, wrong = self._arena, self.tally.wrong
        arena.say("the last version of every model")
        for subject in arena.subjects:
            with suppress(DemoError):  # nothing is in flight, or nothing is paused
                arena.cluster.modelrollout("resume", subject.name, "-n", NAMESPACE)
            subject.replicas = 2
            arena.kubectl("scale", "mdep", subject.name, "--replicas=2")
            self._apply(subject, good=True)
        end = time.monotonic() + LAST_SECONDS
        for subject in arena.subjects:
            try:
                arena.until(
                    f"{subject.name} is Ready with its last version",
                    lambda s=subject: self._has_ended(s),  # type: ignore[misc]
                    max(5.0, end - time.monotonic()),
                )
            except FAILURES as e:
                wrong.append(f"{e}; now: {self._state(subject)}")
        self._settle()
        self._answers()
        self._look()
        wrong += self._ledger.wrong()
        for subject in arena.subjects:
            routes = [r for kind in (HTTP, GRPC) for r in arena.recorder.versions(kind, subject.name)]
            foreign = [r for r in routes if r["metadata"]["resourceVersion"] not in subject.own]
            wrong += self._ledger.too_much(map(truth.weights, foreign), STEPS[-1])
        if wrong:
            diagnostics.dump(arena.cluster, arena.folder / "diagnostics", arena.say, NAMESPACE)

    def count(self) -> list[Failure]:
        """What the clients did; the failed requests that nothing excuses."""
        arena, failed = self._arena, []
        pods = arena.recorder.pods()
        recorded = crashes_in(pods)
        for subject in arena.subjects:
            windows = arena.windows(subject, pods)
            crashes = [crash for crash in recorded if crash.model == subject.name]
            failures = arena.traffic[subject.name].failures()
            self.tally.sent += arena.traffic[subject.name].sent()
            apart = [f for f in failures if is_apart(f, windows)]
            others, excused = split([f for f in failures if not is_apart(f, windows)], crashes)
            self.tally.apart += len(apart) + len(excused)
            errors = Counter(f"{f.protocol} {f.error}" for f in apart)
            self.remarks += [
                f"counted apart of {subject.name}: {n} requests with {error}" for error, n in errors.items()
            ]
            self.remarks += remarks(excused, crashes)
            failed += others
        self.tally.failed = len(failed)
        self.tally.seconds = time.monotonic() - self._began
        return failed

    # --- what happens

    def _until(self, at: float) -> None:
        while (left := self._began + at - time.monotonic()) > 0:
            self._arena.recorder.wait(min(left, 1.0))
            self._look()

    def _do(self, event: Event) -> None:
        arena, subject = self._arena, self._arena.subjects[event.model]
        about = "" if event.kind == "fault" and not _concerns_one(event.what) else f" {subject.name}"
        try:
            if event.kind == "fault":
                FAULTS[event.what](arena, subject)
            else:
                self._change(subject, event.what)
        except NotNowError as e:
            arena.say(f"{event.what}{about}: not now: {e}")
            return
        except FAILURES as e:
            if isinstance(e, DemoError) and "not found" in str(e).lower():  # a child that is not there now
                arena.say(f"{event.what}{about}: not now: {e}")
                return
            arena.say(f"{event.what}{about}: WRONG: {e}")
            self.tally.wrong.append(f"{event.what}{about}: {e}")
            return
        finally:
            self._look()
        arena.say(f"{event.what}{about}")
        self.done[f"{event.kind} {event.what}"] += 1
        if event.kind == "fault":
            self.tally.faults += 1
        else:
            self.tally.changes += 1

    def _change(self, subject: Subject, what: str) -> None:
        arena = self._arena
        if what in ("good", "bad"):
            self._apply(subject, good=what == "good")
        elif what == "zero":
            hand.scale_to_zero(arena, subject)
        elif what == "back":
            hand.scale_back(arena, subject)
        elif what.startswith("scale-"):
            replicas = int(what.removeprefix("scale-"))
            arena.kubectl("scale", "mdep", subject.name, f"--replicas={replicas}")
            subject.replicas = replicas
        elif what in VERBS:
            self._say_verb(subject, what)
        else:
            raise ChaosError(f"unknown change {what}")

    def _apply(self, subject: Subject, *, good: bool) -> None:
        self._arena.next_version(subject, good=good)
        self._ledger.applied(subject.name, subject.tried, good=good)

    def _say_verb(self, subject: Subject, verb: str) -> None:
        """A verb that the command line refuses is none."""
        rollout = (self._arena.recorder.latest(subject.name).get("status") or {}).get("rollout") or {}
        if verb.startswith("promote") and rollout.get("sha256") != subject.tried:
            raise NotNowError("the version in flight is not the one in spec")
        command = verb.split("-")[0]
        more = ("--full",) if verb.endswith("-full") else ()
        self._ledger.verb(subject.name, command)
        try:
            self._arena.cluster.modelrollout(command, subject.name, *more, "-n", NAMESPACE)
        except DemoError as e:
            raise NotNowError(str(e).splitlines()[-1]) from e

    # --- looking

    def _look(self) -> None:
        """Take up what happened since the last time, and the operator's memory."""
        arena, now = self._arena, time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        for subject in arena.subjects:
            for state in arena.recorder.versions(MDEP, subject.name, self._seen[subject.name]):
                self._ledger.seen(state)
                self._seen[subject.name] = int(state["metadata"]["resourceVersion"])
            arena.traffic[subject.name].sent()  # renews its token, and ends the run if the client has died
        arena.recorder.forget(MDEP, min(self._seen.values()))
        if (pid := arena.operator.pid) is not None and (used := resident(pid)) is not None:
            counted = arena.count(MODEL_REVISION)
            self._revisions = self._revisions if counted is None else counted
            self.samples.append(Sample(now - self._began, pid, used, self._revisions))

    def _has_ended(self, subject: Subject) -> bool:
        """Or it waits for a person for want of evidence, as after a crash of stable's servers, and
        then one promotes it, which is remarked.
        """
        self._look()
        rollout = (self._arena.recorder.latest(subject.name).get("status") or {}).get("rollout") or {}
        waits = rollout.get("reason") == "Inconclusive" and rollout.get("sha256") == subject.tried
        if waits and subject.name not in self._promoted:
            self._promoted.add(subject.name)
            self.remarks.append(f"{subject.name} was promoted by hand: {rollout.get('message')}")
            self._arena.cluster.modelrollout("promote", subject.name, "--full", "-n", NAMESPACE)
        return self._arena.has_become_stable(subject)

    def _state(self, subject: Subject) -> str:
        status = self._arena.recorder.latest(subject.name).get("status") or {}
        rows = [c for c in status.get("conditions") or [] if c["type"] in ("Ready", "Stalled")]
        words = (f"{c['type']} {c['status']} ({c['reason']}: {c['message']})" for c in rows)
        return ", ".join((str(status.get("phase")), *words))

    def _settle(self) -> None:
        """Until nothing is wrong with the final state; what is wrong in the end is wrong."""
        arena = self._arena
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            wrong = [
                f"{s.name}: {p}" for s in arena.subjects for p in truth.problems(s.expected, arena.final(s))
            ]
            objects = json.loads(arena.kubectl("get", KINDS, "-o", "json"))["items"]
            wrong += leftovers(objects, {s.name for s in arena.subjects}, names.LABEL_NAME)
            wrong += beyond_history(objects, names.LABEL_NAME, HISTORY)
            if not wrong or time.monotonic() > end:
                self.tally.wrong += wrong
                return
            time.sleep(2)

    def _answers(self) -> None:
        """Every model is answered; failed requests are counted as all others are."""
        traffic = self._arena.traffic
        before = {name: (t.sent(), len(t.failures())) for name, t in traffic.items()}
        time.sleep(ANSWER_SECONDS)
        for name, t in traffic.items():
            sent, failed = t.sent() - before[name][0], len(t.failures()) - before[name][1]
            if sent <= failed:
                self.tally.wrong.append(f"{name}: none of {sent} requests at the end was answered")


def _concerns_one(fault: str) -> bool:
    everywhere = ("api-", "watch-", "prometheus-", "etcd-", "gateway-", "operator-")
    return not fault.startswith(everywhere)


def resident(pid: int) -> float | None:
    """Resident memory of a process in MiB; None: it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:")), None)


# --- the command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def main(
    minutes: Annotated[float, typer.Option(help="How long changes and faults go on.", min=1)] = 120.0,
    seed: Annotated[int | None, typer.Option(help="Of the order of events; by default a new one.")] = None,
    rate: Annotated[float, typer.Option(help="Requests per second to each model.", min=1)] = 4.0,
    out: Annotated[Path, typer.Option(help="Folder of soak.json, logs and diagnostics.")] = CHECKOUT
    / ".cache"
    / "soak",
) -> None:
    """Random changes, verbs, scaling and faults on ten ModelDeployments under load. Exit code 1
    when an outcome was wrong or a request failed.
    """
    heed_signals()
    narrator = Narrator()
    console, say = narrator.console, narrator.say
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    out.mkdir(parents=True, exist_ok=True)
    soak: Soak | None = None
    failed: list[Failure] = []
    finished = False
    try:
        where = target.sandbox(None, None)
        gpus = _gpus()
        events = schedule(seed, minutes * 60, MODELS, list(FAULTS))
        say(f"seed {seed}: {len(events)} events in {minutes:g} minutes, {gpus // GPUS_EACH} models with GPUs")
        settings = {"jobTtlSeconds": ENDED_JOB_SECONDS}
        with Arena(Cluster(where), out, say, rate, subjects(gpus), interval="5s", settings=settings) as arena:
            soak = Soak(arena)
            try:
                soak.run(events, minutes * 60)
                soak.finish()
                finished = True
            finally:
                failed = soak.count()
    except KeyboardInterrupt:  # what happened until then is counted
        say("interrupted")
    except FAILURES as e:
        typer.echo(f"soak: {e}", err=True)
    if soak is None:
        raise typer.Exit(1)
    report = _report(soak, seed, failed)
    (out / "soak.json").write_text(json.dumps(report, indent=1))
    for line in (*soak.remarks, *(f"WRONG: {text}" for text in soak.tally.wrong), *report["failed"][:20]):
        console.print(Text(line), soft_wrap=True)
    console.print(Text(report["memory"]))
    console.print(Text(str(soak.tally)))
    if not finished or not soak.tally.is_right:
        raise typer.Exit(1)


def _gpus() -> int:
    """Of the running sandbox."""
    return sum(node["gpus"] for node in Sandbox().status()["nodes"])


def _report(soak: Soak, seed: int, failed: Sequence[Failure]) -> dict[str, Any]:
    return {
        "summary": str(soak.tally),
        "seed": seed,
        "memory": memory_line(soak.samples, soak.scheduled, FULL),
        "samples": [(round(s.at), s.life, round(s.mib, 1), s.revisions) for s in soak.samples],
        "done": dict(sorted(soak.done.items())),
        "wrong": soak.tally.wrong,
        "failed": [f"FAILED at {f.at:.1f}: {f.protocol} {f.error}" for f in failed],
        "counted apart": soak.remarks,
    }


if __name__ == "__main__":
    app()
