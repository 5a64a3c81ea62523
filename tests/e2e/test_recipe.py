"""From training to Git to production, as docs/how-to/gitops.md tells it: train, upload, sign, set,
pull request, merge, apply, wait, report. The apply stands for a GitOps tool.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from sklearn.linear_model import LogisticRegression

from demo.cluster import DemoError, secret
from tests.e2e.conftest import Asking, Stage
from tests.e2e.models import CLASSES, classifier, inputs

pytestmark = [pytest.mark.sandbox, pytest.mark.long]

NAME, HOST, SIGNER = "recipe", "recipe.e2e.example", "recipe-signer"
MANIFEST = """\
# The team's model. The pipeline changes the values of spec.model, people the rest.
apiVersion: modelrollout.dev/v1alpha1
kind: ModelDeployment
metadata: {{name: {name}, namespace: {namespace}}}
spec:
  model:
    uri: {uri}          # by the pipeline
    sha256: {sha256}
    signature: {{keySecretRef: {{name: {signer}, key: public.pem}}, uri: {uri}.sig}}
    lineage: {{run: "1"}}
  serving: {serving}
  traffic: {traffic}
  rollout: {{canary: {{steps: [{{weight: 50}}]}}, analysis: {{interval: 1s, initialDelay: 0s}}}}
"""


class Team:
    """Trains, signs, and has a repository with the manifest."""

    def __init__(self, stage: Stage, folder: Path) -> None:
        self.stage, self.folder = stage, folder
        self.repository, self.file = folder / "models", folder / "models" / "production" / "recipe.yaml"
        self.key = folder / "signer.pem"
        self.run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(self.key))
        public = self.run("openssl", "ec", "-in", str(self.key), "-pubout")
        stage.apply(secret(stage.namespace, SIGNER, {"public.pem": public}))

    def run(self, *command: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=self.folder)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def git(self, *command: str) -> str:
        who = ("-c", "user.name=pipeline", "-c", "user.email=pipeline@example.com")
        return self.run("git", "-C", str(self.repository), *who, *command)

    def train(self, version: int, samples: int) -> tuple[str, str]:
        """A classifier, signed and in the store; returns its URI and digest."""
        x, labels = inputs(samples, 100 + version)
        weights = LogisticRegression(fit_intercept=False, max_iter=500).fit(x, labels).coef_
        assert weights.shape[0] == CLASSES
        model = self.folder / f"v{version}.onnx"
        model.write_bytes(classifier(weights.T.astype(np.float32), f"recipe-{version}"))
        signature = model.with_suffix(".onnx.sig")
        sign = ("--private_key", str(self.key), "--signature", str(signature))
        self.run(sys.executable, "-m", "model_signing", "sign", "key", str(model), *sign)
        folder = f"e2e/recipe/v{version}"
        files = {f"{folder}/model.onnx": model, f"{folder}/model.onnx.sig": signature}
        self.stage.cluster.upload(self.stage.cluster.target.store.models, files)
        return self.stage.uri(f"recipe/v{version}/model.onnx"), hashlib.sha256(model.read_bytes()).hexdigest()

    def modelrollout(self, *arguments: str) -> str:
        return self.stage.cluster.modelrollout(*arguments, timeout=300)

    def sync(self) -> None:
        self.stage.cluster.kubectl("apply", "--server-side", "-f", str(self.file))


def flow(value: Any) -> str:
    """As flow YAML on one line."""
    return yaml.safe_dump(value, default_flow_style=True, width=10_000).strip()


def test_a_trained_model_is_set_reviewed_merged_promoted_and_reported(stage: Stage, tmp_path: Path) -> None:
    team = Team(stage, tmp_path)
    uri, sha256 = team.train(1, 2000)
    team.file.parent.mkdir(parents=True)
    team.git("init", "-q", "-b", "main")
    team.file.write_text(
        MANIFEST.format(
            name=NAME,
            namespace=stage.namespace,
            uri=uri,
            sha256=sha256,
            signer=SIGNER,
            serving=flow(stage.deployment(NAME)["spec"]["serving"]),
            traffic=flow(stage.traffic(HOST)),
        )
    )
    team.git("add", "--all")
    team.git("commit", "-qm", "v1")
    team.sync()
    team.modelrollout("wait", NAME, "-n", stage.namespace, "--for", "promoted", "--timeout", "3m")

    uri, sha256 = team.train(2, 4000)
    file, signature = str(team.file), f"{uri}.sig"
    team.git("switch", "-qc", "v2")
    with pytest.raises(DemoError, match="give --sha256 too"):
        team.modelrollout("set", file, "--uri", uri)
    told = team.modelrollout(
        "set", file, "--uri", uri, "--sha256", sha256, "--signature", signature, "--lineage", "run=2"
    )
    assert f"spec.model.uri: {stage.uri('recipe/v1/model.onnx')} -> {uri}" in told
    changed = [x for x in team.git("diff", "--unified=0").splitlines() if x[:1] == "+" and x[:3] != "+++"]
    assert len(changed) == 4 and "# by the pipeline" in changed[0], changed
    assert "1 objects are valid" in team.modelrollout("validate", str(team.file.parent))
    diff = team.modelrollout("diff", file)
    assert "a new version is rolled out: canary of 50 %" in diff, diff
    team.git("commit", "-qam", "v2")
    team.git("switch", "-q", "main")
    team.git("merge", "-q", "--no-ff", "-m", "Merge v2", "v2")

    url = f"http://{stage.cluster.target.gateway.http}/v2/models/{NAME}"
    stage.until("the gateway serves", lambda: requests.get(url, headers={"Host": HOST}, timeout=10).ok)
    with Asking(stage, NAME) as codes:
        team.sync()
        waited = team.modelrollout(
            "wait", NAME, "-n", stage.namespace, "--for", "promoted", "--uri", uri, "--timeout", "4m"
        )
    assert set(codes) == {"200"}, codes
    assert "serves all traffic" in waited.splitlines()[-1], waited
    report = team.modelrollout("report", NAME, "-n", stage.namespace, "-o", "markdown")
    assert sha256 in report and "lineage: run" in report
    assert "no new version: " in team.modelrollout("diff", file)
