"""Plays the story: commits, waits until Argo CD has synced and the operator has settled, and holds
what Argo CD shows against what the moment calls for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from chaos import models
from chaos.models import ModelFile
from chaos.recorder import MDEP, Recorder
from chaos.traffic import Traffic
from demo import DemoError, diagnostics
from demo.cluster import Cluster
from demo.crashes import crashes_in, remarks, split
from demo.setup import install_operator, prepare_namespace
from gitops import GitopsError, judge, kstatus, story
from gitops.argo import ArgoCD
from gitops.git import GitServer, Repository
from gitops.judge import Object, Tally
from gitops.story import ARGO_NAMESPACE, FLEET, MODELS, NAME, NAMESPACE, Settled, Step
from sandbox.cluster import Sandbox
from sandbox.kube import Api
from sandbox.scope import Scope

APPLICATION = "Application"
REFRESH = "argocd.argoproj.io/refresh=normal"  # what a Git host's webhook would bring about
SYNC_SECONDS = 120.0  # the first time Argo CD also reads the whole cluster
SETTLE_SECONDS = 300.0
FLEET_SECONDS = 1800.0
LAG_SECONDS = 15.0  # until Argo CD shows what the operator has written
LOOK_SECONDS = 0.3
TIMELINE = "timeline.tsv"
RATE = 20.0  # requests per second
Say = Callable[[str], None]


@dataclass
class Told:
    """One commit as it went."""

    commit: str
    revision: str
    seconds_to_sync: float = 0.0
    seconds: float = 0.0
    # (seconds after the commit, health); of the fleet how many models each way of healths was
    path: list[tuple[float, str]] = field(default_factory=list)
    paths: dict[str, int] = field(default_factory=dict)
    syncs: int = 0
    wrong: list[str] = field(default_factory=list)


class Player(Scope):
    """A context manager around one telling; ``tally`` and ``told`` say how it went."""

    def __init__(self, cluster: Cluster, folder: Path, say: Say) -> None:
        super().__init__()
        self._cluster, self._folder, self._say = cluster, folder, say
        box = Sandbox()
        self._kubeconfig = box.state.kubeconfig
        applications = f"/apis/{story.ARGO_API}/namespaces/{ARGO_NAMESPACE}/applications"
        self._recorder = Recorder(
            lambda: Api.of(box.state.kubeconfig, box.state.pki, "sandbox"),
            NAMESPACE,
            {APPLICATION: applications},
        )
        self._commits: list[int] = []  # resourceVersion at each
        self._committed_at = 0.0  # the last one, Unix time
        self._models: dict[str, ModelFile] = {}
        self.tally = Tally()
        self.told: list[Told] = []
        self.remarks: list[str] = []
        self._argo: ArgoCD
        self._repository: Repository
        self._traffic: Traffic | None = None

    def _set_up(self) -> None:
        cluster = self._cluster
        install_operator(cluster, self._folder)
        self._say("the operator is installed by its chart")
        cluster.kubectl("delete", "rpol", NAMESPACE, "--ignore-not-found")
        prepare_namespace(cluster, NAMESPACE)
        self._stack.callback(self._leave)
        self._repository = Repository(self._folder / "git")
        server = self._stack.enter_context(GitServer(self._folder / "git"))
        url = server.url(self._repository.bare)
        self._argo = self._stack.enter_context(
            ArgoCD(cluster, self._kubeconfig, self._folder / "argo-cd", self._say)
        )
        self._recorder.start()
        self._stack.callback(self._recorder.stop)
        cluster.apply(story.project(url))
        self._url = url
        self._say(f"Argo CD runs and reads {url}")

    def _leave(self) -> None:
        """The fleet's servers would take the memory from whatever runs next."""
        with suppress(DemoError):  # the API server is away
            self._cluster.kubectl("delete", "rpol", NAMESPACE, "--ignore-not-found")
            self._cluster.kubectl("delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false")

    # --- the story

    def play(self, *, fleet: bool) -> None:
        """All commits. What is wrong is noted; only what never happens ends it (GitopsError)."""
        began = self._recorder.position()
        try:
            for step in story.STORY:
                self._play(step)
                if self._traffic is None:
                    self._send()
            if fleet:
                for number, (version, path) in enumerate(
                    (("v1", story.FIRST_OF_FLEET), ("v2", story.NEXT_OF_FLEET)), 1
                ):
                    self._play_fleet(number, version, path)
        except (DemoError, GitopsError) as e:
            self._note(f"the story ended early: {e}")
            diagnostics.dump(self._cluster, self._folder / "diagnostics", self._say, NAMESPACE)
        finally:
            self._count(began)

    def _send(self) -> None:
        """From the moment on that the first version serves."""
        self._traffic = Traffic(
            self._cluster, self._folder / "client", NAMESPACE, NAME, story.HOST, RATE, models.live()
        )
        self._traffic.start()
        self._stack.callback(self._traffic.stop)

    def _play(self, step: Step) -> None:
        before = self._recorder.versions(APPLICATION, MODELS)[-1:]
        if step.files is None:
            told = self._committed(step.commit, self._repository.revert)
        else:
            files = story.models_folder(self._cluster.target, step.files, self._model(step.files.version))
            told = self._committed(step.commit, lambda: self._repository.commit(step.commit, files))
        began = time.monotonic()
        position = self._commits[-1]
        if not before:
            self._cluster.apply(story.application(self._url))
        else:
            self._refresh(MODELS)
        self._until(
            f"Argo CD has taken up the commit: {step.commit}",
            lambda: self._is_taken_up(told, step),
            SYNC_SECONDS,
        )
        told.seconds_to_sync = time.monotonic() - began
        if step.settled.refused is None:
            self._until(
                f"{NAME} has settled after: {step.commit}",
                lambda: self._is_settled(NAME, step.settled),
                SETTLE_SECONDS,
            )
        stable = self._stable_digest(NAME)
        self._lag(lambda: self._differing(MODELS, step.health, step.synced))
        told.wrong += self._differing(MODELS, step.health, step.synced)
        if stable != self._model(step.stable).sha256:
            told.wrong.append(f"{step.stable} is not the stable version")
        since = [*before, *self._recorder.versions(APPLICATION, MODELS, position)]
        if unlike := judge.unlike(judge.healths(since), step.path):
            told.wrong.append(unlike)
        told.path = self._timed(MODELS, position)
        told.seconds = time.monotonic() - began
        self._end(told)

    def _play_fleet(self, number: int, version: str, path: str) -> None:
        """Forty models in one commit, by an ApplicationSet."""
        fleet = story.fleet_names()
        before = {name: self._recorder.versions(APPLICATION, name)[-1:] for name in fleet}
        model = self._model(version)
        files = story.fleet_folder(self._cluster.target, model)
        title = f"{len(fleet)} models, {version}"
        told = self._committed(title, lambda: self._repository.commit(title, files))
        began, position = time.monotonic(), self._commits[-1]
        if number == 1:
            self._cluster.apply(story.application_set(self._url))
        else:
            self._refresh("--all")
        self._until(
            f"every Application of {FLEET} has the commit",
            lambda: all(self._has_revision(name, told.revision) for name in fleet),
            SYNC_SECONDS * 5,
        )
        told.seconds_to_sync = time.monotonic() - began
        self._until(
            f"every model of {FLEET} is stable with {version}",
            lambda: all(self._is_settled(name, story.READY) for name in fleet),
            FLEET_SECONDS,
        )
        self._lag(lambda: [line for name in fleet for line in self._differing(name, "Healthy", True)])
        for name in fleet:
            told.wrong += self._differing(name, "Healthy", True)
            if self._stable_digest(name) != model.sha256:
                told.wrong.append(f"{name}: {version} is not the stable version")
            healths = judge.healths([*before[name], *self._recorder.versions(APPLICATION, name, position)])
            told.paths[" ".join(healths)] = told.paths.get(" ".join(healths), 0) + 1
            if unlike := judge.unlike(healths, path):
                told.wrong.append(f"{name}: {unlike}")
        most = judge.at_once(self._versions(MDEP, fleet, position))
        if most > story.AT_ONCE:
            told.wrong.append(f"{most} rollouts at one time, and the policy allows {story.AT_ONCE}")
        self._say(f"at most {most} of the fleet's rollouts at one time")
        told.seconds = time.monotonic() - began
        self._end(told)

    def _committed(self, title: str, commit: Callable[[], str]) -> Told:
        self._argo.check()
        self._commits.append(self._recorder.position())
        self._committed_at = time.time()
        told = Told(title, commit())
        self.told.append(told)
        self.tally.commits += 1
        return told

    def _end(self, told: Told) -> None:
        told.syncs = sum(o.revision == told.revision for o in self._operations())
        path = ", ".join(f"{health} after {seconds:.1f} s" for seconds, health in told.path) or ", ".join(
            f"{path}: {n}" for path, n in told.paths.items()
        )
        self._say(
            f"{told.commit}: taken up in {told.seconds_to_sync:.1f} s, {told.syncs} syncs, over in"
            f" {told.seconds:.1f} s; {path or 'no change of health'}"
        )
        for line in told.wrong:
            self._note(f"{told.commit}: {line}")

    def _note(self, wrong: str) -> None:
        self.tally.wrong.append(wrong)
        self._say(f"WRONG: {wrong}")

    def _model(self, version: str) -> ModelFile:
        if version not in self._models:
            made = story.write_model(self._folder, version)
            self._cluster.upload(self._cluster.target.store.models, {made.key: made.path})
            self._models[version] = made
        return self._models[version]

    def _refresh(self, which: str) -> None:
        self._cluster.kubectl(
            "annotate", "applications.argoproj.io", which, REFRESH, "--overwrite", "-n", ARGO_NAMESPACE
        )

    # --- looking

    def _application(self, name: str) -> Object:
        versions = self._recorder.versions(APPLICATION, name)
        return versions[-1] if versions else {"metadata": {"name": name}}

    def _differing(self, name: str, health: str, synced: bool) -> list[str]:
        return judge.differing(self._application(name), health, synced)

    def _has_revision(self, name: str, revision: str) -> bool:
        """Compared with the commit, and no sync is under way."""
        status = self._application(name).get("status") or {}
        running = (status.get("operationState") or {}).get("phase") == "Running"
        compared = (status.get("sync") or {}).get("revision") == revision
        return compared and not running and (status.get("sync") or {}).get("status") == "Synced"

    def _is_taken_up(self, told: Told, step: Step) -> bool:
        if step.settled.refused is None:
            return self._has_revision(MODELS, told.revision)
        application = self._application(MODELS)
        status = application.get("status") or {}
        return (
            (status.get("sync") or {}).get("revision") == told.revision
            and (status.get("operationState") or {}).get("phase") != "Running"
            and step.settled.refused in judge.complaint(application)
        )

    def _is_settled(self, name: str, wanted: Settled) -> bool:
        deployment = self._recorder.latest(name)
        status = deployment.get("status") or {}
        if status.get("observedGeneration") != deployment.get("metadata", {}).get("generation"):
            return False
        if wanted.weight is not None and (status.get("weight") or 0) < wanted.weight:
            return False
        return any(
            c["type"] == wanted.condition and c["status"] == "True" and wanted.reason in (None, c["reason"])
            for c in status.get("conditions") or []
        )

    def _stable_digest(self, name: str) -> str | None:
        stable = (self._recorder.latest(name).get("status") or {}).get("stable")
        if stable is None:
            return None
        digest: str | None = self._cluster.revision(NAMESPACE, stable["revision"])["spec"].get("sha256")
        return digest

    def _until(self, what: str, condition: Callable[[], object], limit: float) -> None:
        deadline = time.monotonic() + limit
        while not condition():
            self._argo.check()
            if self._traffic is not None:
                self._traffic.sent()  # renews its token, and ends the run if the client has died
            if time.monotonic() > deadline:
                complaint = judge.complaint(self._application(MODELS)).strip()
                raise GitopsError(
                    f"not within {limit:.0f} s: {what}" + (f" ({complaint})" if complaint else "")
                )
            time.sleep(LOOK_SECONDS)

    def _lag(self, differing: Callable[[], list[str]]) -> None:
        """Until nothing differs, or Argo CD has had its time."""
        deadline = time.monotonic() + LAG_SECONDS
        while differing() and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def _timed(self, name: str, position: int) -> list[tuple[float, str]]:
        """Each change of health since the last commit, with the seconds after it."""
        path: list[tuple[float, str]] = []
        for application in self._recorder.versions(APPLICATION, name, position):
            health = judge.shown(application)
            if health is not None and (not path or path[-1][1] != health):
                path.append((round(self._recorder.seen(application) - self._committed_at, 1), health))
        return path

    def _versions(self, kind: str, these: list[str], since: int = 0) -> list[Object]:
        """All versions of these objects, in order."""
        found = [o for name in these for o in self._recorder.versions(kind, name, since)]
        return sorted(found, key=lambda o: int(o["metadata"]["resourceVersion"]))

    def _applications(self) -> list[str]:
        return [MODELS, *story.fleet_names()]

    def _operations(self) -> list[judge.Operation]:
        return judge.operations(self._versions(APPLICATION, self._applications()))

    # --- counting

    def _count(self, began: int) -> None:
        syncs = self._operations()
        self.tally.syncs = len(syncs)
        fights, again = judge.repeated(syncs)
        self.tally.fights += fights
        self.remarks += again
        for name in (NAME, *story.fleet_names()):
            if versions := self._recorder.versions(MDEP, name, began):
                self.tally.fights += judge.rewritten(versions, self._commits)
        self._write()
        seen = [o for n in (NAME, *story.fleet_names()) for o in self._recorder.versions(MDEP, n, began)]
        self.tally.wrong += kstatus.differences(seen)
        self.remarks.append(f"kstatus judged {len(seen)} versions of ModelDeployments")
        if self._traffic is None:
            return
        self._traffic.stop()
        failures = self._traffic.failures()
        crashes = [c for c in crashes_in(self._recorder.pods()) if c.model == NAME]
        left, excused = split(failures, crashes)
        self.tally.sent, self.tally.failed = self._traffic.sent(), len(left)
        self.remarks += [*remarks(excused, crashes), *map(_failed, left[:20])]

    def _write(self) -> None:
        """What was seen of Applications and ModelDeployments over time, a line for each version."""
        lines = [
            (self._recorder.seen(o), kind, o["metadata"]["name"], *words(o))
            for kind, words in ((APPLICATION, judge.words_of_application), (MDEP, judge.words_of_deployment))
            for o in self._versions(kind, [NAME, *self._applications()])
        ]
        with (self._folder / TIMELINE).open("w") as file:
            for at, *words in sorted(lines):
                when = datetime.fromtimestamp(at).astimezone().isoformat(timespec="milliseconds")
                file.write("\t".join((when, *map(str, words))) + "\n")


def _failed(failure: Any) -> str:
    return f"FAILED at {failure.at:.1f}: {failure.protocol} {failure.error}"
