"""The driver: plays the chapters one after the other under load, and holds each against what must
come of it.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from demo import DemoError, audit, chapters, crashes, diagnostics, report, setup
from demo.chapters import Chapter, Ending
from demo.client import Settings
from demo.cluster import FEEDBACK_AUDIENCE, RELEASE, SYSTEM_NAMESPACE, Cluster, Object
from demo.crashes import CrashLog, Failed
from demo.load import TOKEN_SECONDS, ClientEndedError, Load
from demo.setup import CLIENT_ACCOUNT, NAME, NAMESPACE
from demo.train import Models
from demo.view import View
from modelrollout.api import names

REPORT = "report.json"
DETAILS = "details.json"
FEEDBACK_PORT = 8080
UNREACHABLE_SECONDS = 60.0
DRAIN_SECONDS = 120.0

T = TypeVar("T")
MakeLoad = Callable[[Settings, Callable[[], str]], Load]


class StoryDiffersError(DemoError):
    """The operator did something else than the story says."""


@dataclass(frozen=True)
class Options:
    """What a person may change."""

    folder: Path
    chapter_seconds: float = 600.0
    http_rate: float = 60.0
    grpc_rate: float = 20.0
    install: bool = True
    poll_seconds: float = 1.0


class Story:
    """One telling. ``tell`` does everything; what went wrong is in ``wrong`` afterwards."""

    def __init__(
        self,
        cluster: Cluster,
        models: Models,
        options: Options,
        view: View,
        played: Sequence[Chapter] = chapters.CHAPTERS,
        make_load: MakeLoad = Load,
    ) -> None:
        self._cluster = cluster
        self._make_load = make_load
        self._models = models
        self._options = options
        self._view = view
        self._played = played
        self._load: Load | None = None
        self._endings: dict[str, Ending] = {}
        self._windows: dict[str, tuple[datetime, datetime]] = {}
        self._crashes = CrashLog(self._server_pods)
        self.wrong: list[str] = []

    @property
    def endings(self) -> list[Ending]:
        return list(self._endings.values())

    @property
    def _diagnostics(self) -> Path:
        return self._options.folder / "diagnostics"

    def tell(self) -> dict[str, Any] | None:
        """Play all chapters; returns the client's final counts, None when it never began."""
        for old in (REPORT, DETAILS):  # what an earlier telling wrote must not pass for this one's
            (self._options.folder / old).unlink(missing_ok=True)
        shutil.rmtree(self._diagnostics, ignore_errors=True)
        try:
            self._set_the_stage()
            with self._crashes.following():
                for chapter in self._played:
                    self._play(chapter)
                self._wait_for_drain()
        except DemoError as e:
            self._note(str(e))
            diagnostics.dump(self._cluster, self._diagnostics, self._view.say)
        finally:
            counts = self._stop_client()
        if counts:
            self._judge_client(counts)
            self._write(counts)
        return counts

    def _stop_client(self) -> dict[str, Any] | None:
        if self._load is None or not self._load.runs:
            return None
        try:
            return self._load.stop()
        except DemoError as e:
            self._note(str(e))
            return None

    def _note(self, wrong: str) -> None:
        self.wrong.append(wrong)
        self._view.say(f"NOT AS IT SHOULD BE: {wrong}")

    def _set_the_stage(self) -> None:
        cluster = self._cluster
        steps: list[tuple[str, Callable[[], None]]] = [
            ("the namespace is recreated", lambda: setup.prepare_namespace(cluster)),
            ("models and data are uploaded", lambda: setup.upload(cluster, self._models)),
        ]
        if self._options.install:
            steps.insert(
                0,
                ("the operator is installed", lambda: setup.install_operator(cluster, self._options.folder)),
            )
        for what, do in steps:
            started = time.monotonic()
            do()
            self._view.say(f"{what} ({time.monotonic() - started:.1f} s)")

    def _play(self, chapter: Chapter) -> None:
        self._view.begin(chapter)
        began = datetime.now(UTC)
        before = self._endings.get(chapter.back_to) if chapter.back_to else None
        prepared = self._prepare_jobs()
        if chapter.model:
            self._cluster.apply(setup.model_deployment(self._cluster.target, chapter.model))
        else:
            assert before is not None and before.revision is not None
            self._cluster.modelrollout("rollback", NAME, "--to", before.revision, "--namespace", NAMESPACE)
        deployment = self._wait_for_end(chapter, before.revision if before else None)
        ending = self._ending(chapter, deployment)
        self._endings[chapter.name] = ending
        self._windows[chapter.name] = (began, datetime.now(UTC))
        counts = self._counts() or {"versions": {}}
        wrong = chapters.differences(chapter, ending, before, counts["versions"])
        if before and (more := self._prepare_jobs() - prepared):
            wrong.append(f"prepared again: {', '.join(sorted(more))}")
        if (
            not chapter.serves
            and chapter.name == "v6"
            and ending.revision
            and self._server_pods(ending.revision)
        ):
            wrong.append("it has a server")
        self._view.end(chapter, ending, wrong)
        if wrong:
            raise StoryDiffersError(f"{chapter.name}: {'; '.join(wrong)}")
        if self._load is None:
            self._start_client(chapter)

    def _wait_for_end(self, chapter: Chapter, back_to: str | None) -> Object:
        generation = self._until(
            lambda: int(self._deployment()["metadata"]["generation"]), UNREACHABLE_SECONDS, "the object"
        )

        def ended_deployment() -> Object | None:
            deployment = self._deployment()
            self._view.at(chapter, chapters.progress(deployment), self._counts())
            if chapters.has_ended(deployment, generation, back_to):
                return deployment
            # After a rollback by hand Stalled is the normal state, and a refusal of the verb ends
            # in the time limit.
            if back_to is None and (why := chapters.standstill(deployment, generation)):
                raise StoryDiffersError(f"{chapter.name} does not go on: {why}")
            return None

        return self._until(ended_deployment, self._options.chapter_seconds, f"the end of {chapter.name}")

    def _ending(self, chapter: Chapter, deployment: Object) -> Ending:
        name = deployment["status"]["rollout"].get("revision")
        return chapters.ending(
            chapter.name, deployment, self._cluster.revision(NAMESPACE, name) if name else None
        )

    def _start_client(self, chapter: Chapter) -> None:
        """As soon as the first version reports Available, and no earlier: from here on every
        request counts.
        """
        self._until(lambda: chapters.is_available(self._deployment()) or None, 60, "condition Available")
        target, options = self._cluster.target, self._options
        feedback = target.feedback
        if feedback is None:
            feedback = f"http://{self._cluster.service_address(SYSTEM_NAMESPACE, f'{RELEASE}-feedback', FEEDBACK_PORT)}"  # noqa: E501
        settings = Settings(
            folder=str(options.folder),
            live=str(self._models.data("live")),
            namespace=NAMESPACE,
            name=NAME,
            model=NAME,
            http_url=f"http://{target.gateway.http}",
            http_host=setup.HTTP_HOST,
            grpc_target=target.gateway.grpc,
            grpc_authority=setup.GRPC_HOST,
            http_rate=options.http_rate,
            grpc_rate=options.grpc_rate,
            feedback_url=feedback,
            feedback_token=str(options.folder / "feedback-token"),
            run=f"demo-{int(time.time())}",
        )
        self._load = self._make_load(
            settings, lambda: self._cluster.token(NAMESPACE, CLIENT_ACCOUNT, FEEDBACK_AUDIENCE, TOKEN_SECONDS)
        )
        self._load.start()
        self._view.say(
            f"the client sends {options.http_rate:g} requests/s over HTTP and {options.grpc_rate:g} over gRPC"
            f" from here on ({chapter.name})"
        )

    def _wait_for_drain(self) -> None:
        """The client stays until the pods of the versions that have left are gone: their end must
        not cost a request either.
        """

        def drained() -> bool | None:
            self._counts()
            stable = self._deployment()["status"]["stable"]["revision"]
            others = [
                p for p in self._server_pods() if p["metadata"]["labels"].get(names.LABEL_REVISION) != stable
            ]
            return True if not others else None

        self._until(drained, DRAIN_SECONDS, "the end of the former versions' pods")

    def _until(self, poll: Callable[[], T | None], limit: float, what: str) -> T:
        """Look again and again; an API server that is away for a moment is no reason to end."""
        deadline = time.monotonic() + limit
        silent: float | None = None
        while True:
            try:
                if (result := poll()) is not None:
                    return result
                silent = None
            except (StoryDiffersError, ClientEndedError):
                raise
            except DemoError:
                silent = silent or time.monotonic()
                if time.monotonic() - silent > UNREACHABLE_SECONDS:
                    raise
            if time.monotonic() > deadline:
                raise StoryDiffersError(
                    f"{what} has not come within {limit:.0f} s; it is at:"
                    f" {chapters.progress(self._deployment())}"
                )
            time.sleep(self._options.poll_seconds)

    def _deployment(self) -> Object:
        return self._cluster.deployment(NAMESPACE, NAME)

    def _counts(self) -> dict[str, Any] | None:
        return self._load.counts() if self._load else None

    def _prepare_jobs(self) -> set[str]:
        """By uid: a Job that was made again under the same name is another one."""
        jobs = self._cluster.jobs(NAMESPACE, f"{names.LABEL_COMPONENT}={names.COMPONENT_PREPARE}")
        return {f"{job['metadata']['name']} ({job['metadata']['uid']})" for job in jobs}

    def _server_pods(self, revision: str | None = None) -> list[Object]:
        labels = [f"{names.LABEL_NAME}={NAME}", f"{names.LABEL_COMPONENT}={names.COMPONENT_SERVER}"]
        return self._cluster.pods(
            NAMESPACE, ",".join([*labels, *([f"{names.LABEL_REVISION}={revision}"] if revision else [])])
        )

    def _judge_client(self, counts: dict[str, Any]) -> None:
        self._crashes.look()
        excused = self._excused(counts)
        for remark in crashes.remarks(excused, self._crashes.crashes):
            self._view.say(remark)
        if left := counts["failed"] - len(excused):
            kinds = sorted({f["error"] for f in counts["failures"]})
            self._note(
                f"{left} of {counts['sent']} requests failed (client.json lists them):"
                f" {'; '.join(kinds)[:500]}"
            )
        if counts["feedback"]["sent"] < counts["answered"]:
            self._note(
                f"{counts['answered'] - counts['feedback']['sent']} labels were not handed in:"
                f" {counts['feedback']['last_error']}"
            )
        for chapter in self._played:
            ending = self._endings.get(chapter.name)
            if ending and not chapter.serves and str(ending.number) in counts["versions"]:
                self._note(f"{chapter.name} answered a request, and must never have")

    def _excused(self, counts: dict[str, Any]) -> list[Failed]:
        """The failed requests that a crash of Triton explains; the client lists the first few
        hundred.
        """
        listed = [Failed(f["at"], f["ms"] / 1e3, f["error"]) for f in counts["failures"]]
        return crashes.split(listed, self._crashes.crashes)[1]

    def _write(self, counts: dict[str, Any]) -> None:
        folder = self._options.folder
        (folder / REPORT).write_text(json.dumps(report.report(self.endings, counts), indent=1) + "\n")
        details = {
            "wrong": self.wrong,
            "failed_by_crashes": len(self._excused(counts)),
            "crashes": [asdict(crash) for crash in self._crashes.crashes],
            "training_seconds": self._models.trained_seconds,
            "models_from_cache": self._models.cached,
            "seconds_to_rollback": {
                e.name: s for e in self.endings if (s := report.seconds_to_rollback(e, counts)) is not None
            },
            "operator_requests": self._operator_requests(),
            "versions": [asdict(e) for e in self.endings],
            "client": counts,
        }
        (folder / DETAILS).write_text(json.dumps(details, indent=1, default=str) + "\n")

    def _operator_requests(self) -> dict[str, Any]:
        log = self._cluster.target.audit_log
        if log is None or not log.exists():
            return {}
        user = f"system:serviceaccount:{SYSTEM_NAMESPACE}:{RELEASE}"
        return {name: asdict(audit.count(log, *window, user=user)) for name, window in self._windows.items()}
