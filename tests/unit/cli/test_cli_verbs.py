"""promote, abort, retry, rollback: which annotation is set, and when none is."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from typer.testing import Result

from modelrollout.cli import cluster, main
from modelrollout.kube.errors import Forbidden, KubeError
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, MODEL_REVISION
from modelrollout.kube.objects import Object
from tests.unit.cli.cli_fakes import STABLE, FakeKube, ago, canary_status, deployment, revision, rollout

Cli = Callable[..., Result]
STOPPED = {"Stalled": "True", "Following": "False"}
NONCE = r"[0-9a-f]{4,}"


def asked(kube: FakeKube) -> tuple[str, str, str, str]:
    """(plural, object, annotation, value) of the one write; it holds nothing but that
    annotation.
    """
    ((plural, _, name, patch),) = kube.patches
    assert list(patch) == ["metadata"]
    assert list(patch["metadata"]) == ["annotations"]
    annotations = dict(patch["metadata"]["annotations"])
    assert annotations.pop(next(k for k in annotations if k.endswith("-reason"))) is None
    ((key, value),) = annotations.items()
    return plural, name, key, value


def with_status(kube: FakeKube, **status: Any) -> None:
    kube.add(MODEL_DEPLOYMENT, deployment(**status))


def idle(kube: FakeKube, **more: Any) -> None:
    with_status(kube, phase="Stable", stable=STABLE, rollout=rollout("Done", "digits-6c9f", number=2), **more)


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.output
    for word in words:
        assert word in result.stderr


def test_a_reason_stands_beside_the_verb_and_an_earlier_one_goes(cli: Cli, kube: FakeKube) -> None:
    cli("promote", "digits", "--reason", "the labels were wrong")
    cli("promote", "digits")
    first, second = (patch["metadata"]["annotations"] for *_, patch in kube.patches)
    assert first["modelrollout.dev/promote-reason"] == "the labels were wrong"
    assert second["modelrollout.dev/promote-reason"] is None


class TestPromote:
    def test_names_the_step_on_the_revision_in_flight(self, cli: Cli, kube: FakeKube) -> None:
        result = cli("promote", "digits")
        assert result.exit_code == 0, result.output
        plural, name, key, value = asked(kube)
        assert (plural, name, key) == ("modelrevisions", "digits-8d1b", "modelrollout.dev/promote")
        assert re.fullmatch(rf"2/4 {NONCE}", value)
        assert "promote digits-8d1b past step 2/4" in result.stdout

    def test_two_requests_differ(self, cli: Cli, kube: FakeKube) -> None:
        cli("promote", "digits")
        cli("promote", "digits")
        values = [p["metadata"]["annotations"]["modelrollout.dev/promote"] for *_, p in kube.patches]
        assert values[0] != values[1]

    @pytest.mark.parametrize("desired", ["digits-8d1b", "3"])
    def test_the_named_revision_if_it_is_the_one_in_flight(
        self, cli: Cli, kube: FakeKube, desired: str
    ) -> None:
        assert cli("promote", "digits", "--revision", desired).exit_code == 0
        assert asked(kube)[1] == "digits-8d1b"

    def test_another_revision_is_not_promoted(self, cli: Cli, kube: FakeKube) -> None:
        refused(
            cli("promote", "digits", "--revision", "digits-6c9f"), "the revision in flight is digits-8d1b"
        )
        assert kube.patches == []

    def test_nothing_in_flight(self, cli: Cli, kube: FakeKube) -> None:
        idle(kube)
        refused(
            cli("promote", "digits"),
            "nothing to promote",
            "digits-6c9f is stable and no rollout is in flight",
        )
        assert kube.patches == []

    def test_not_in_a_canary_yet(self, cli: Cli, kube: FakeKube) -> None:
        with_status(kube, phase="Preparing", stable=STABLE, rollout=rollout("Prepare"))
        refused(cli("promote", "digits"), "cannot promote", "stage Prepare")

    def test_after_a_failure(self, cli: Cli, kube: FakeKube) -> None:
        with_status(
            kube,
            phase="Failed",
            stable=STABLE,
            rollout=rollout("Failed", reason="ErrorsHigh", outcome="RolledBack"),
        )
        refused(cli("promote", "digits"), "the rollout of digits-8d1b has ended (ErrorsHigh)")

    def test_never_begun(self, cli: Cli, kube: FakeKube) -> None:
        kube.add(MODEL_DEPLOYMENT, deployment())
        refused(cli("promote", "digits"), "has not begun")


class TestAbort:
    def test_has_only_a_nonce(self, cli: Cli, kube: FakeKube) -> None:
        assert cli("abort", "digits").exit_code == 0
        plural, name, key, value = asked(kube)
        assert (plural, name, key) == ("modelrevisions", "digits-8d1b", "modelrollout.dev/abort")
        assert re.fullmatch(NONCE, value)

    def test_before_there_is_a_revision_stands_on_the_deployment(self, cli: Cli, kube: FakeKube) -> None:
        with_status(kube, phase="Resolving", rollout=rollout("Resolve", None, stages={}))
        assert cli("abort", "digits").exit_code == 0
        assert asked(kube)[:3] == ("modeldeployments", "digits", "modelrollout.dev/abort")

    def test_nothing_in_flight(self, cli: Cli, kube: FakeKube) -> None:
        idle(kube)
        refused(cli("abort", "digits"), "nothing to abort")

    def test_being_taken_back_already(self, cli: Cli, kube: FakeKube) -> None:
        with_status(kube, phase="RollingBack", stable=STABLE, rollout=rollout("Revert"))
        refused(cli("abort", "digits"), "already going back to stable")


class TestRetry:
    def test_of_the_failed_revision(self, cli: Cli, kube: FakeKube) -> None:
        with_status(kube, phase="Failed", stable=STABLE, rollout=rollout("Failed", outcome="RolledBack"))
        assert cli("retry", "digits").exit_code == 0
        assert asked(kube)[:3] == ("modelrevisions", "digits-8d1b", "modelrollout.dev/retry")

    def test_of_a_failure_before_there_was_a_revision(self, cli: Cli, kube: FakeKube) -> None:
        with_status(
            kube,
            phase="Failed",
            rollout=rollout(
                "Failed", None, stages={"Resolve": 1.0}, outcome="Failed", reason="SourceNotFound"
            ),
        )
        assert cli("retry", "digits").exit_code == 0
        plural, name, key, value = asked(kube)
        assert (plural, name, key) == ("modeldeployments", "digits", "modelrollout.dev/retry")
        assert re.fullmatch(NONCE, value)

    def test_after_a_rollback_by_hand_means_the_version_of_spec(self, cli: Cli, kube: FakeKube) -> None:
        back = rollout("Done", "digits-6c9f", mode="Rollback", number=2)
        mdep = deployment(
            phase="Stable", stable=STABLE, rollout=back, pinned={"revision": "digits-6c9f", "generation": 2}
        )
        mdep["spec"]["model"]["sha256"] = "b" * 64
        kube.add(MODEL_DEPLOYMENT, mdep)
        assert cli("retry", "digits").exit_code == 0
        assert asked(kube)[1] == "digits-8d1b"

    def test_while_in_flight(self, cli: Cli, kube: FakeKube) -> None:
        refused(cli("retry", "digits"), "in flight", "abort it first")

    def test_of_what_is_stable(self, cli: Cli, kube: FakeKube) -> None:
        idle(kube)
        refused(cli("retry", "digits", "--revision", "2"), "digits-6c9f is stable")

    def test_of_what_is_not_kept(self, cli: Cli, kube: FakeKube) -> None:
        idle(kube)
        refused(
            cli("retry", "digits", "--revision", "digits-0000"),
            "no revision 'digits-0000'",
            "digits-8d1b, digits-6c9f, digits-5aaa",
        )


class TestRollback:
    def test_in_flight_means_abort(self, cli: Cli, kube: FakeKube) -> None:
        assert cli("rollback", "digits").exit_code == 0
        assert asked(kube)[1:3] == ("digits-8d1b", "modelrollout.dev/abort")

    def test_otherwise_the_newest_that_served_before_stable(self, cli: Cli, kube: FakeKube) -> None:
        with_status(
            kube, phase="Stable", stable={"revision": "digits-8d1b", "number": 3}, rollout=rollout("Done")
        )
        kube.add(MODEL_REVISION, revision("digits-6c9f", 2, "RolledBack"))
        assert cli("rollback", "digits").exit_code == 0
        plural, name, key, value = asked(kube)
        assert (plural, name, key) == ("modelrevisions", "digits-5aaa", "modelrollout.dev/rollback")
        assert re.fullmatch(NONCE, value)

    def test_what_served_before_may_have_a_higher_number(self, cli: Cli, kube: FakeKube) -> None:
        with_status(
            kube,
            phase="Stable",
            stable={"revision": "digits-5aaa", "number": 1},
            rollout=rollout("Done", "digits-5aaa"),
        )
        assert cli("rollback", "digits").exit_code == 0
        assert asked(kube)[1] == "digits-6c9f"

    def test_the_time_decides_and_not_the_number(self, cli: Cli, kube: FakeKube) -> None:
        """Numbers 4 and 2 took turns: 4 was stable last."""
        with_status(
            kube, phase="Stable", stable={"revision": "digits-8d1b", "number": 3}, rollout=rollout("Done")
        )
        for name, number, retired in (
            ("digits-5aaa", 1, "2026-11-22T10:00:00.000Z"),
            ("digits-6c9f", 2, "2026-11-22T11:00:00.000Z"),
            ("digits-7e3c", 4, "2026-11-22T12:00:00.000Z"),
        ):
            kube.add(MODEL_REVISION, revision(name, number, "Retired", retired=retired))
        kube.add(MODEL_REVISION, revision("digits-9f00", 5, "Retired", finished="2026-11-22T13:00:00.000Z"))
        assert cli("rollback", "digits").exit_code == 0
        assert asked(kube)[1] == "digits-7e3c", "number 5 was rolled back from"

    def test_no_other_has_served(self, cli: Cli, kube: FakeKube) -> None:
        idle(kube)
        kube.add(MODEL_REVISION, revision("digits-5aaa", 1, "RolledBack"))
        refused(cli("rollback", "digits"), "no other revision that has served exists")

    def test_nothing_is_stable(self, cli: Cli, kube: FakeKube) -> None:
        with_status(kube, phase="Failed", rollout=rollout("Failed"))
        refused(cli("rollback", "digits"), "no revision has become stable yet")

    @pytest.mark.parametrize("to", ["digits-5aaa", "1"])
    def test_to_a_revision_by_name_or_number_even_in_flight(self, cli: Cli, kube: FakeKube, to: str) -> None:
        assert cli("rollback", "digits", "--to", to).exit_code == 0
        assert asked(kube)[1:3] == ("digits-5aaa", "modelrollout.dev/rollback")

    def test_to_stable_in_flight_is_abort_and_else_nothing(self, cli: Cli, kube: FakeKube) -> None:
        assert cli("rollback", "digits", "--to", "2").exit_code == 0
        assert asked(kube)[2] == "modelrollout.dev/abort"
        idle(kube)
        refused(cli("rollback", "digits", "--to", "2"), "digits-6c9f is stable already")

    def test_to_a_revision_that_never_served(self, cli: Cli, kube: FakeKube) -> None:
        idle(kube)
        kube.add(MODEL_REVISION, revision("digits-8d1b", 3, "Rejected"))
        refused(
            cli("rollback", "digits", "--to", "digits-8d1b"),
            "never served as stable (outcome Rejected)",
            "possible: digits-5aaa",
        )

    def test_to_nothing(self, cli: Cli, kube: FakeKube) -> None:
        refused(
            cli("rollback", "digits", "--to", "digits-0000"),
            "existing revisions: digits-8d1b, digits-6c9f, digits-5aaa",
        )


class TestWait:
    def handle(self, kube: FakeKube, suffix: str = "") -> None:
        """The operator answers each request at once."""

        def operator(name: str, patch: Object) -> None:
            ((key, value),) = ((k, v) for k, v in patch["metadata"]["annotations"].items() if v is not None)
            entry = f"{key.rsplit('/')[-1]}:{name}:{value.split()[-1]}{suffix}"
            status = canary_status()
            kube.add(
                MODEL_DEPLOYMENT,
                deployment(**status, handledVerbs=["promote:digits-8d1b:0000:refused something else", entry]),
            )

        kube.on_patch = operator

    def test_until_it_is_done(self, cli: Cli, kube: FakeKube) -> None:
        self.handle(kube)
        result = cli("promote", "digits", "--wait")
        assert result.exit_code == 0, result.output
        assert result.stdout.startswith("done: promote digits-8d1b")

    def test_until_it_is_refused_with_the_operators_words(self, cli: Cli, kube: FakeKube) -> None:
        self.handle(kube, ":refused it names step 2/4, but the rollout is at step 3/4: late")
        refused(
            cli("promote", "digits", "--wait"),
            "the operator refused",
            "it names step 2/4, but the rollout is at step 3/4: late",
        )

    def test_no_longer_than_the_timeout(self, cli: Cli) -> None:
        result = cli("abort", "digits", "--wait", "--timeout", "0.1")
        assert result.exit_code == 2
        assert "not answered within 0.1 s" in result.stderr
        assert "Is the operator running?" in result.stderr

    def test_the_timeout_is_a_duration_or_a_number_of_seconds(self, cli: Cli) -> None:
        result = cli("abort", "digits", "--wait", "--timeout", "200ms")
        assert "not answered within 0.2 s" in result.stderr
        for wrong in ("soon", "0", "-1", "nan"):
            result = cli("abort", "digits", "--wait", "--timeout", wrong)
            assert result.exit_code == 2
            assert "for example 90s" in result.stderr


class TestAccess:
    def test_verbs_need_the_operate_role(self, cli: Cli, kube: FakeKube) -> None:
        kube.errors["patch", "modelrevisions"] = Forbidden(403, "Forbidden", "no")
        result = cli("promote", "digits")
        assert result.exit_code == 2
        assert (
            "patch modelrevisions.modelrollout.dev in namespace default: bind the ClusterRole"
            " modelrollout-operate" in result.stderr
        )

    def test_on_the_deployment_they_need_the_edit_role(self, cli: Cli, kube: FakeKube) -> None:
        with_status(kube, phase="Failed", rollout=rollout("Failed", None))
        kube.errors["patch", "modeldeployments"] = Forbidden(403, "Forbidden", "no")
        assert "bind the ClusterRole modelrollout-edit" in cli("retry", "digits").stderr

    def test_a_revision_that_went_away(self, cli: Cli, kube: FakeKube) -> None:
        del kube.objects["modelrevisions", "default", "digits-8d1b"]
        refused(cli("abort", "digits"), "digits-8d1b is not there")

    def test_no_credentials(self, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
        async def connect(kubeconfig: str | None, context: str | None) -> FakeKube:
            raise KubeError(0, "NoCredentials", "no kubeconfig at /nowhere")

        monkeypatch.setattr(cluster, "connect", connect)
        result = cli("status", "digits")
        assert result.exit_code == 2
        assert "no access to a cluster: no kubeconfig at /nowhere" in result.stderr


KUBECONFIG = """
current-context: {current}
contexts:
- {{name: work, context: {{cluster: a, user: b, namespace: models}}}}
- {{name: home, context: {{cluster: a, user: b}}}}
"""


class TestNamespace:
    @pytest.fixture
    def config(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        path = tmp_path / "config"
        path.write_text(KUBECONFIG.format(current="work"))
        return path

    def test_of_the_current_context(self, config: Path) -> None:
        assert cluster.default_namespace(str(config), None) == "models"

    def test_of_the_named_context(self, config: Path) -> None:
        assert cluster.default_namespace(str(config), "home") == "default"

    def test_of_the_first_of_several_files(self, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        second = config.with_name("second")
        second.write_text(KUBECONFIG.format(current="home").replace("models", "other"))
        monkeypatch.setenv("KUBECONFIG", f"{config}:{second}:/nowhere")
        assert cluster.default_namespace(None, None) == "models"

    def test_a_missing_file_is_left_to_connecting(self) -> None:
        assert cluster.default_namespace("/nowhere/config", None) == "default"

    def test_the_option_wins(self, cli: Cli, kube: FakeKube) -> None:
        mdep = deployment(**canary_status())
        mdep["metadata"]["namespace"] = "models"
        kube.add(MODEL_DEPLOYMENT, mdep)
        assert "namespace models" in cli("status", "digits", "-n", "models").stdout


def test_run_hands_over_to_the_controller(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = importlib.import_module("modelrollout.controller.process")
    seen: dict[str, Any] = {}
    monkeypatch.setattr(app, "run", lambda **options: seen.update(options))
    monkeypatch.setenv("POD_NAMESPACE", "operators")
    config = tmp_path / "config.yaml"
    config.write_text("stores: []")
    result = cli("run", "--config", str(config), "--health-port", "9999")
    assert result.exit_code == 0, result.output
    assert seen == {
        "config": config,
        "kubeconfig": None,
        "context": None,
        "health_port": 9999,
        "identity": None,
        "lease_namespace": "operators",
        "verbose": False,
    }


def test_run_says_what_is_wrong_with_the_configuration(cli: Cli, tmp_path: Path) -> None:
    importlib.import_module("modelrollout.controller.process")
    config = tmp_path / "config.yaml"
    config.write_text("stores: []")
    result = cli("run", "--config", str(config))
    assert result.exit_code == 2
    assert "the operator cannot start" in result.stderr
    assert "stores" in result.stderr


def test_feedback_serves_with_the_rights_of_this_pod(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    feedback = pytest.importorskip("modelrollout.feedback.service")
    seen: list[tuple[str, int, str]] = []

    class Connected:
        async def __aenter__(self) -> Connected:
            return self

        async def __aexit__(self, *_: object) -> None: ...

    async def connect(*_: object, component: str) -> Connected:
        assert component == "feedback"
        return Connected()

    async def serve(host: str, port: int, authorizer: object) -> None:
        seen.append((host, port, type(authorizer).__name__))

    monkeypatch.setattr(main.Kube, "connect", connect)
    monkeypatch.setattr(feedback, "serve", serve)
    assert cli("feedback", "--port", "8080").exit_code == 0
    assert seen == [("0.0.0.0", 8080, "KubernetesAuthorizer")]


def test_every_command_explains_itself(cli: Cli) -> None:
    for command in main.app.registered_commands:
        assert command.callback is not None
        result = cli(command.name or command.callback.__name__, "--help")
        assert result.exit_code == 0
        assert command.callback.__doc__


class TestPauseResumeFullRestart:
    @pytest.mark.parametrize(
        ("words", "annotation", "value"),
        [
            (["promote", "digits", "--full"], "promote-full", rf"2/4 {NONCE}"),
            (["pause", "digits"], "pause", NONCE),
        ],
    )
    def test_is_an_annotation_on_the_revision_in_flight(
        self, words: list[str], annotation: str, value: str, cli: Cli, kube: FakeKube
    ) -> None:
        result = cli(*words)
        assert result.exit_code == 0, result.output
        plural, name, key, said = asked(kube)
        assert (plural, name, key) == ("modelrevisions", "digits-8d1b", f"modelrollout.dev/{annotation}")
        assert re.fullmatch(value, said)

    def test_resume_is_for_what_is_paused(self, cli: Cli, kube: FakeKube) -> None:
        refused(cli("resume", "digits"), "digits-8d1b is not paused")
        status = canary_status()
        status["rollout"]["pausedByUser"] = {"since": "2026-11-22T08:59:00.000Z", "by": "n"}
        with_status(kube, **status)
        refused(cli("pause", "digits"), "is paused already")
        assert cli("resume", "digits").exit_code == 0
        assert asked(kube)[2] == "modelrollout.dev/resume"
        shown = cli("status", "digits").stdout
        assert "a user paused it" in shown and "modelrollout resume digits" in shown

    @pytest.mark.parametrize(
        ("words", "annotation"),
        [(["promote", "digits"], "promote"), (["promote", "digits", "--full"], "promote-full")],
    )
    def test_a_shadow_is_promoted_by_its_name(
        self, words: list[str], annotation: str, cli: Cli, kube: FakeKube
    ) -> None:
        with_status(
            kube,
            step="shadow",
            rollout=rollout("Shadow", shadow={"phase": "Observing", "since": ago(seconds=9)}),
        )
        assert cli(*words).exit_code == 0
        assert asked(kube)[2] == f"modelrollout.dev/{annotation}" and asked(kube)[3].startswith("shadow ")

    @pytest.mark.parametrize("verb", ["pause", "resume"])
    def test_a_shadow_cannot_be_held(self, verb: str, cli: Cli, kube: FakeKube) -> None:
        with_status(
            kube,
            step="shadow",
            rollout=rollout("Shadow", shadow={"phase": "Observing", "since": ago(seconds=9)}),
        )
        refused(
            cli(verb, "digits"),
            "is in stage Shadow, where clients get no answers from it; promote or abort it",
        )

    @pytest.mark.parametrize("verb", ["pause", "resume", "promote"])
    def test_at_rest_there_is_nothing_to_hold(self, verb: str, cli: Cli, kube: FakeKube) -> None:
        idle(kube)
        refused(cli(verb, "digits"), f"nothing to {verb}", "is stable")

    def test_restart_means_stable(self, cli: Cli, kube: FakeKube) -> None:
        assert cli("restart", "digits").exit_code == 0
        assert asked(kube)[:3] == ("modelrevisions", "digits-6c9f", "modelrollout.dev/restart")

    def test_restart_of_another_revision_and_with_downtime(self, cli: Cli, kube: FakeKube) -> None:
        assert cli("restart", "digits", "--revision", "digits-8d1b", "--allow-downtime").exit_code == 0
        assert asked(kube)[:3] == ("modelrevisions", "digits-8d1b", "modelrollout.dev/restart-allow-downtime")

    def test_restart_needs_one(self, cli: Cli, kube: FakeKube) -> None:
        with_status(kube, phase="Resolving", rollout=rollout("Resolve", None))
        refused(cli("restart", "digits"), "no revision has become stable yet")

    @pytest.mark.parametrize("verb", ["promote", "pause", "resume", "restart", "abort", "retry", "rollback"])
    def test_each_explains_itself(self, verb: str, cli: Cli) -> None:
        result = cli(verb, "--help")
        assert result.exit_code == 0 and "--wait" in result.stdout

    def test_a_bake_is_shown(self, cli: Cli, kube: FakeKube) -> None:
        status = canary_status()
        status["rollout"] |= {
            "stage": "Bake",
            "step": {"index": 4, "weight": 100, "phase": "Observing", "since": "2026-11-22T08:58:00.000Z"},
        }
        status |= {"phase": "Baking", "step": "bake", "weight": 100}
        mdep = deployment(**status)
        mdep["spec"]["rollout"]["bake"] = "10m"
        kube.add(MODEL_DEPLOYMENT, mdep)
        shown = cli("status", "digits").stdout
        assert "it stays in 8m unless it is proven worse, else digits-6c9f comes back" in shown
        assert cli("promote", "digits").exit_code == 0 and asked(kube)[3].startswith("bake ")
        refused(cli("promote", "digits", "--full"), "promote ends its bake")


class TestFollow:
    FOLLOW: ClassVar[dict[str, Any]] = {"every": "10m"}

    def follows(self, kube: FakeKube, **status: Any) -> None:
        made = deployment(phase="Stable", stable=STABLE, **status)
        made["spec"]["model"] = {"uri": "s3://models/digits/model.onnx", "follow": self.FOLLOW}
        kube.add(MODEL_DEPLOYMENT, made)

    def test_stands_on_stable_which_git_does_not_manage(self, cli: Cli, kube: FakeKube) -> None:
        self.follows(kube, rollout=rollout("Failed", "digits-8d1b", number=3, outcome="Aborted"))
        result = cli("follow", "digits")
        assert result.exit_code == 0, result.output
        plural, name, key, value = asked(kube)
        assert (plural, name, key) == ("modelrevisions", STABLE["revision"], "modelrollout.dev/follow")
        assert re.fullmatch(NONCE, value)

    def test_of_what_does_not_follow(self, cli: Cli, kube: FakeKube) -> None:
        idle(kube)
        refused(cli("follow", "digits"), "spec.model.follow is not set")

    def test_while_in_flight(self, cli: Cli, kube: FakeKube) -> None:
        self.follows(kube, rollout=rollout("Prepare", "digits-8d1b", number=3))
        refused(cli("follow", "digits"), "digits-8d1b is in flight", "it ends first")

    def test_retry_means_the_version_that_is_followed(self, cli: Cli, kube: FakeKube) -> None:
        """And not the newest revision."""
        for name, number, digest in (
            ("digits-6c9f", 2, "a"),
            ("digits-8d1b", 3, "b"),
            ("digits-9e2a", 4, "c"),
        ):
            made = revision(name, number, "Retired", sha256=digest * 64)
            made["spec"]["input"]["model"] = {"uri": "s3://models/digits/model.onnx"}
            kube.add(MODEL_REVISION, made)
        seen = {"uri": "s3://models/digits/model.onnx", "sha256": "b" * 64}
        last = rollout("Done", "digits-6c9f", number=2, mode="Rollback")
        self.follows(kube, rollout=last, follow=seen)
        result = cli("retry", "digits")
        assert result.exit_code == 0, result.output
        assert asked(kube)[1] == "digits-8d1b"

    def test_status_says_how_it_goes_on(self, cli: Cli, kube: FakeKube) -> None:
        why = {"reason": "AccuracyLow", "message": "m", "lastTransitionTime": ago(minutes=1)}
        conditions = [
            {"type": "Stalled", "status": "True", **why},
            {"type": "Following", "status": "False", **why},
        ]
        failed = rollout("Failed", "digits-8d1b", number=3, outcome="RolledBack")
        self.follows(kube, rollout=failed, conditions=conditions)
        assert "modelrollout follow digits" in cli("status", "digits").stdout

    def test_diff_names_no_digest_that_the_manifest_never_had(
        self, cli: Cli, kube: FakeKube, tmp_path: Path
    ) -> None:
        seen = {"uri": "s3://models/digits/model.onnx", "sha256": "a" * 64}
        self.follows(kube, rollout=rollout("Done", STABLE["revision"], number=2), follow=seen)
        live = kube.objects[MODEL_DEPLOYMENT.plural, "default", "digits"]
        manifest = {k: live[k] for k in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "digits"}}
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
        result = cli("diff", str(tmp_path / "m.yaml"))
        assert "sha256" not in result.stdout, result.stdout

    @pytest.mark.parametrize(
        ("model", "expected"),
        [
            ({}, None),
            ({"sha256": "0" * 64}, "leave one of them out"),
            ({"follow": {"every": "299s"}}, "at least 5m"),
            ({"uri": f"oci://r.example.com/m@sha256:{'0' * 64}"}, "behind which nothing changes"),
            ({"uri": f"hf://o/n@{'0' * 40}/m.onnx"}, "behind which nothing changes"),
        ],
        ids=["good", "digest", "short", "oci", "hf"],
    )
    def test_what_the_api_server_refuses(
        self, cli: Cli, tmp_path: Path, model: dict[str, Any], expected: str | None
    ) -> None:
        manifest = deployment()
        manifest = {k: manifest[k] for k in ("apiVersion", "kind", "spec")} | {"metadata": {"name": "digits"}}
        manifest["spec"]["model"] = {"uri": "s3://models/m.onnx", "follow": self.FOLLOW} | model
        (tmp_path / "m.yaml").write_text(yaml.safe_dump(manifest))
        result = cli("validate", str(tmp_path / "m.yaml"))
        assert result.exit_code == (1 if expected else 0) and (expected or "") in result.output
