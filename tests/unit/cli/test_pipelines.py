"""set, validate, diff and wait: what a pipeline from training to production calls."""

from __future__ import annotations

import asyncio
import difflib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.testing import Result

from modelrollout.cli import pipelines
from modelrollout.cli.command import run_locally, until_interrupted
from modelrollout.cli.errors import Refused
from modelrollout.cli.manifests.documents import Document
from modelrollout.cli.manifests.edit import Change, edit
from modelrollout.cli.manifests.validate import findings
from modelrollout.kube.errors import Unavailable
from modelrollout.kube.kinds import MODEL_DEPLOYMENT
from tests.unit.cli.cli_fakes import STABLE, FakeKube, deployment, rollout

Cli = Callable[..., Result]
ROOT = Path(__file__).parents[3]
SHA = "ab" * 32

MANIFEST = """\
# The model of the shop.
apiVersion: modelrollout.dev/v1alpha1
kind: ModelDeployment
metadata:
  name: digits     # never rename
  namespace: ml
spec:
  model:
    uri: "s3://models/digits/v1/model.onnx"   # written by the training job
    lineage: {run: '17'}
  serving:
    replicas: 3
    resources: {limits: {nvidia.com/gpu: 1}}
    tolerations:
    - key: gpu
      operator: Exists
  rollout:
    canary:
      steps: [{weight: 5}, {weight: 50}]
"""


def difference(old: str, new: str) -> tuple[list[str], list[str]]:
    """Lines that are gone, and new ones."""
    lines = list(difflib.ndiff(old.splitlines(), new.splitlines()))
    return [x for x in lines if x.startswith("- ")], [x for x in lines if x.startswith("+ ")]


class TestSet:
    def test_only_the_lines_of_the_model_change(self) -> None:
        text, lines = edit(MANIFEST, Change("s3://models/digits/v2/model.onnx", SHA, lineage={"run": "18"}))
        assert text == MANIFEST.replace("/v1/", "/v2/").replace("'17'", "'18'").replace(
            "job\n", f"job\n    sha256: {SHA}\n"
        )
        assert lines == [
            "spec.model.uri: s3://models/digits/v1/model.onnx -> s3://models/digits/v2/model.onnx",
            f"spec.model.sha256: (none) -> {SHA}",
            "spec.model.lineage.run: 17 -> 18",
        ]
        spec = yaml.safe_load(text)["spec"]["model"]
        assert spec == {"uri": "s3://models/digits/v2/model.onnx", "sha256": SHA, "lineage": {"run": "18"}}

    @pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
    def test_the_rest_of_every_example_stays_as_it_is(self, example: Path) -> None:
        text = example.read_text()
        names = [
            d["metadata"]["name"]
            for d in yaml.safe_load_all(text)
            if isinstance(d, dict) and d["kind"] == "ModelDeployment"
        ]
        for name in names:
            change = Change(
                "s3://models/other.bin", SHA, "s3://models/o.sig" if "signature" in text else None
            )
            made, lines = edit(text, change, name)
            gone, new = difference(text, made)
            assert len(gone) <= len(new) <= len(lines), (gone, new)

    def test_the_same_values_change_nothing(self) -> None:
        assert edit(MANIFEST, Change("s3://models/digits/v1/model.onnx")) == (MANIFEST, [])

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("{uri: s3://a/m}", f"{{uri: s3://a/n, sha256: {SHA}, lineage: {{a: 'x: y', b: '1'}}}}"),
            (
                "\n    uri: s3://a/m",
                f"\n    uri: s3://a/n\n    sha256: {SHA}\n    lineage: {{a: 'x: y', b: '1'}}",
            ),
            (
                "\n    lineage: {}\n    uri: 's3://a/m'  # c",
                f"\n    lineage: {{b: '1', a: 'x: y'}}\n    uri: 's3://a/n'  # c\n    sha256: {SHA}",
            ),
            (
                "\n    uri: s3://a/m\n    lineage:\n      # kept\n      b: 0",
                f"\n    uri: s3://a/n\n    sha256: {SHA}\n    lineage: {{b: '1', a: 'x: y'}}  # kept",
            ),
        ],
    )
    def test_every_form_of_a_mapping(self, old: str, new: str) -> None:
        head = "apiVersion: modelrollout.dev/v1alpha1\nkind: ModelDeployment\nspec:\n  model: "
        made, _ = edit(head + old, Change("s3://a/n", SHA, lineage={"a": "x: y", "b": "1"}))
        assert yaml.safe_load(made)["spec"] == yaml.safe_load(head + new)["spec"]
        assert made.count("#") == old.count("#")

    @pytest.mark.parametrize("uri", ["&m s3://a/m", "!!str s3://a/m"])
    def test_anchors_and_tags_are_left_to_a_person(self, uri: str) -> None:
        head = "apiVersion: modelrollout.dev/v1alpha1\nkind: ModelDeployment\nspec:\n  model:\n    uri: "
        with pytest.raises(Refused, match="by hand"):
            edit(f"{head}{uri}\n", Change("s3://a/n"))

    def test_a_former_digest_and_signature_do_not_stay_beside_another_model(
        self, tmp_path: Path, cli: Cli
    ) -> None:
        file = tmp_path / "model.yaml"
        file.write_text(MANIFEST.replace("    lineage", f"    sha256: {SHA}\n    lineage"))
        result = cli("set", str(file), "--uri", "s3://models/other.onnx")
        assert result.exit_code == 1 and "give --sha256 too" in result.stderr
        assert "v1/model.onnx" in file.read_text()
        file.write_text(
            MANIFEST.replace("    lineage", "    signature: {uri: s3://models/a.sig}\n    lineage")
        )
        result = cli("set", str(file), "--uri", "s3://models/other.onnx")
        assert result.exit_code == 1 and "give --signature too" in result.stderr

    def test_one_of_several_is_named(self, tmp_path: Path, cli: Cli) -> None:
        file = tmp_path / "models.yaml"
        file.write_text(MANIFEST + "---\n" + MANIFEST.replace("name: digits", "name: letters"))
        result = cli("set", str(file), "--uri", "s3://models/l.onnx")
        assert result.exit_code == 1 and "2 ModelDeployments; say which one with --name" in result.stderr
        assert cli("set", str(file), "--uri", "s3://models/l.onnx", "--name", "letters").exit_code == 0
        first, second = yaml.safe_load_all(file.read_text())
        assert first["spec"]["model"]["uri"].endswith("v1/model.onnx")
        assert second["spec"]["model"]["uri"] == "s3://models/l.onnx"

    @pytest.mark.parametrize("text", ["a: [", "kind: Pod", ""])
    def test_a_file_without_a_model_is_left_alone(self, tmp_path: Path, cli: Cli, text: str) -> None:
        file = tmp_path / "x.yaml"
        file.write_text(text)
        result = cli("set", str(file), "--uri", "s3://models/l.onnx")
        assert result.exit_code == 1 and str(file) in result.stderr and file.read_text() == text


def faults(text: str, *others: str) -> list[str]:
    documents = [Document("m.yaml", yaml.safe_load(t)) for t in (text, *others)]
    ours = [d for d in documents if d.raw["apiVersion"].startswith("modelrollout.dev")]
    return findings(ours, [d.raw for d in documents if d not in ours])


POLICY = """
apiVersion: modelrollout.dev/v1alpha1
kind: RolloutPolicy
metadata: {name: shop}
spec:
  allowedSources: {models: ["s3://approved/"]}
"""


class TestValidate:
    @pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
    def test_the_examples_are_valid(self, cli: Cli, example: Path) -> None:
        result = cli("validate", str(example))
        assert result.exit_code == 0, result.output

    def test_a_valid_manifest_has_no_faults(self) -> None:
        assert faults(MANIFEST) == []

    @pytest.mark.parametrize(
        ("old", "new", "fault"),
        [
            (
                "replicas: 3",
                "replica: 3",
                "spec.serving.replica: the field replica is unknown; do you mean replicas?",
            ),
            ("replicas: 3", "replicas: many", "spec.serving.replicas: must be an integer, not a text"),
            ("{weight: 50}", "{weight: 2}", "spec.rollout.canary: weights must grow from step to step"),
            ("v1alpha1", "v2", "apiVersion: modelrollout.dev/v2 is not known"),
            ("kind: ModelDeployment", "kind: ModelDeploymnt", "kind: ModelDeploymnt: manifests are of"),
            ("name: digits", "name: Digits", "metadata.name: lower-case letters"),
            ("spec:", "sepc:", "the field sepc is unknown; do you mean spec?"),
            ("s3://models", "ftp://models", "spec.model.uri"),
        ],
    )
    def test_a_fault_names_file_object_field_and_remedy(self, old: str, new: str, fault: str) -> None:
        lines = faults(MANIFEST.replace(old, new))
        assert any(line.startswith("m.yaml: ") and fault in line for line in lines), lines

    def test_a_key_that_stands_twice_is_refused_with_its_line(self, tmp_path: Path, cli: Cli) -> None:
        file = tmp_path / "m.yaml"
        file.write_text(MANIFEST + "  rollout: {}\n")
        result = cli("validate", str(file))
        assert (
            result.exit_code == 1 and "'rollout' stands twice" in result.stderr and "line 20" in result.stderr
        )

    def test_policies_among_the_files_hold(self) -> None:
        (line,) = faults(MANIFEST, POLICY)
        assert "m.yaml: ModelDeployment digits: spec.model.uri" in line and "RolloutPolicy shop" in line
        assert faults(MANIFEST.replace("s3://models", "s3://approved"), POLICY) == []

    def test_a_policy_for_other_namespaces_does_not(self) -> None:
        selective = POLICY + "  selector: {namespaces: [other]}\n"
        assert faults(MANIFEST, selective) == []

    def test_a_folder_is_read_and_foreign_objects_are_passed_over(self, tmp_path: Path, cli: Cli) -> None:
        (tmp_path / "a").mkdir()
        (tmp_path / "a" / "m.yaml").write_text(MANIFEST)
        (tmp_path / "b.yaml").write_text("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x}\n")
        result = cli("validate", str(tmp_path))
        assert (result.exit_code, result.stdout) == (0, "1 objects are valid\n")


def manifest_of(kube: FakeKube, tmp_path: Path, **changes: Any) -> str:
    """A file with the cluster's ModelDeployment and other values for some fields of spec."""
    live = next(o for (plural, _, _), o in kube.objects.items() if plural == "modeldeployments")
    spec = {**live["spec"]}
    for path, value in changes.items():
        *parents, last = path.split("__")
        target = spec
        for parent in parents:
            target[parent] = dict(target.get(parent) or {})
            target = target[parent]
        target[last] = value
    file = tmp_path / "m.yaml"
    raw = {"apiVersion": "modelrollout.dev/v1alpha1", "kind": "ModelDeployment"}
    file.write_text(yaml.safe_dump({**raw, "metadata": {"name": live["metadata"]["name"]}, "spec": spec}))
    return str(file)


class TestDiff:
    def test_the_same_spec_goes_on(self, cli: Cli, kube: FakeKube, tmp_path: Path) -> None:
        result = cli("diff", manifest_of(kube, tmp_path))
        assert result.exit_code == 0, result.output
        assert (
            "->" not in result.stdout and "no new version: digits-8d1b is being rolled out" in result.stdout
        )

    def test_another_model_is_a_rollout_and_ends_the_one_in_flight(
        self, cli: Cli, kube: FakeKube, tmp_path: Path
    ) -> None:
        out = cli("diff", manifest_of(kube, tmp_path, model__uri="s3://models/new.onnx")).stdout
        assert "-> s3://models/new.onnx (part of the version)" in out
        assert "the rollout of digits-8d1b ends as Superseded" in out
        assert "a new version is rolled out" in out and "compared with digits-6c9f" in out

    @pytest.mark.parametrize(
        ("changes", "path", "is_part"),
        [
            ({"serving__replicas": 7}, "spec.serving.replicas", False),
            ({"model__lineage": {"run": "9"}}, "spec.model.lineage", False),
            ({"optimization__timeout": "3h"}, "spec.optimization.timeout", False),
            ({"optimization__queueName": "night"}, "spec.optimization.queueName", False),
            ({"optimization__steps": [{"graph": {}}]}, "spec.optimization.steps", True),
            ({"model__sha256": "0" * 64}, "spec.model.sha256", True),
            ({"rollout__progressDeadline": "3h"}, "spec.rollout.progressDeadline", False),
        ],
    )
    def test_a_field_is_part_of_the_version_where_the_operator_says_so(
        self, cli: Cli, kube: FakeKube, tmp_path: Path, changes: dict[str, Any], path: str, is_part: bool
    ) -> None:
        out = cli("diff", manifest_of(kube, tmp_path, **changes)).stdout
        [line] = [line for line in out.splitlines() if f"{path}: " in line]
        assert line.endswith(" (part of the version)") is is_part

    def test_replicas_are_no_new_version(self, cli: Cli, kube: FakeKube, tmp_path: Path) -> None:
        out = cli("diff", manifest_of(kube, tmp_path, serving__replicas=7)).stdout
        assert "spec.serving.replicas: " in out and "-> 7\n" in out
        assert "no new version" in out

    def test_what_is_not_in_the_cluster_is_said(self, cli: Cli, tmp_path: Path) -> None:
        file = tmp_path / "m.yaml"
        file.write_text(MANIFEST.replace("name: digits ", "name: letters"))
        out = cli("diff", str(file)).stdout
        assert "it is not in the cluster: the first version" in out


class TestWait:
    @pytest.fixture(autouse=True)
    def quick(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(pipelines, "POLL_SECONDS", 0.01)

    def told(self, kube: FakeKube, ready: str, stalled: str = "False", **more: Any) -> None:
        truth = {"Ready": ready, "Stalled": stalled, "Reconciling": "False"}
        conditions = [
            {
                "type": kind, "status": status, "reason": "AccuracyLow", "message": f"{kind} text",
                "lastTransitionTime": "2026-11-22T09:00:00Z", "observedGeneration": 4,
            }
            for kind, status in truth.items()
        ]  # fmt: skip
        obj = deployment(conditions=conditions, stable=STABLE, observedGeneration=4, **more)
        obj["metadata"]["generation"] = 4
        kube.add(MODEL_DEPLOYMENT, obj)

    def test_promoted_is_exit_code_0(self, cli: Cli, kube: FakeKube) -> None:
        self.told(kube, "True", rollout=rollout("Done", "digits-6c9f"))
        result = cli("wait", "digits", "--for", "promoted")
        assert (result.exit_code, result.stdout) == (0, "digits: Ready text\n")

    def test_what_waits_for_a_person_is_exit_code_1(self, cli: Cli, kube: FakeKube) -> None:
        self.told(kube, "False", "True", rollout=rollout("Failed", "digits-8d1b"))
        result = cli("wait", "digits")
        assert result.exit_code == 1 and "AccuracyLow: Stalled text" in result.stderr
        assert cli("wait", "digits", "--for", "ended").exit_code == 0

    def test_not_within_the_time_is_exit_code_2(self, cli: Cli, kube: FakeKube) -> None:
        result = cli("wait", "digits", "--timeout", "0.05s")
        assert result.exit_code == 2 and "not promoted within" in result.stderr

    def test_a_spec_that_has_not_been_applied_yet_is_waited_for(self, cli: Cli, kube: FakeKube) -> None:
        self.told(kube, "True", rollout=rollout("Done", "digits-6c9f"))
        result = cli("wait", "digits", "--uri", "s3://models/next.onnx", "--timeout", "0.05s")
        assert result.exit_code == 2 and "yet" in result.stdout

    def test_an_api_server_that_goes_away_meanwhile_is_waited_for(
        self, cli: Cli, kube: FakeKube, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.told(kube, "False", rollout=rollout("Canary", "digits-8d1b"))
        looks = iter(range(100))
        get = kube.get

        async def sometimes(*args: Any) -> Any:
            look = next(looks)
            if 1 <= look <= 3:
                raise Unavailable(503, "ServiceUnavailable", "starting")
            if look == 4:
                self.told(kube, "True", rollout=rollout("Done", "digits-8d1b"))
            return await get(*args)

        monkeypatch.setattr(kube, "get", sometimes)
        result = cli("wait", "digits")
        assert result.exit_code == 0, result.output
        assert result.stdout.count("the API server does not answer") == 1 and result.stderr == ""

    def test_no_answer_at_the_beginning_is_exit_code_2_at_once(self, cli: Cli, kube: FakeKube) -> None:
        kube.errors["get", "modeldeployments"] = Unavailable(503, "ServiceUnavailable", "x")
        assert cli("wait", "digits").exit_code == 2

    def test_a_model_that_does_not_exist_yet_is_waited_for_where_its_uri_is_known(
        self, cli: Cli, kube: FakeKube
    ) -> None:
        assert cli("wait", "letters").exit_code == 1
        result = cli("wait", "letters", "--uri", "s3://models/l.onnx", "--timeout", "0.05s")
        assert result.exit_code == 2 and "no ModelDeployment 'letters'" in result.stdout


class TestInterrupted:
    """Exit code 0 of a wait that was broken off would pass for a promotion."""

    @pytest.fixture(autouse=True)
    def heeded(self) -> Iterator[None]:
        """A shell starts what runs in the background with SIGINT ignored."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield
        signal.signal(signal.SIGINT, before)

    @staticmethod
    async def interrupted() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(5)

    def test_what_waits_has_not_reached_its_goal(self) -> None:
        with pytest.raises(typer.Exit) as ended:
            run_locally(self.interrupted())
        assert ended.value.exit_code == 130

    def test_what_is_shown_until_ctrl_c_ends_well(self) -> None:
        async def watch() -> None:
            with until_interrupted():
                await self.interrupted()

        run_locally(watch())
