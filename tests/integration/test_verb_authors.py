"""The chart's MutatingAdmissionPolicy on a real API server: it stamps who requests a verb, whatever
stands there.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest
import yaml

from modelrollout.api import names
from tests.integration.helm import CHART, KUBE_VERSION, helm
from tests.integration.own_group import Kubectl
from tests.unit.crdgen.test_crdgen import ROOT

pytestmark = pytest.mark.sandbox

API = "admissionregistration.k8s.io/v1beta1/MutatingAdmissionPolicy"
NAME = "digits"


@pytest.fixture(scope="module")
def stamped(kubectl: Kubectl) -> Iterator[Kubectl]:
    text = helm(
        "template", kubectl.namespace, str(CHART), "-n", kubectl.namespace, "--api-versions", API,
        "--kube-version", KUBE_VERSION,
        "-f", str(CHART / "ci/default-values.yaml"), "--show-only", "templates/verb-authors.yaml",
    )  # fmt: skip
    made = list(yaml.safe_load_all(text.replace(f"[{names.GROUP}]", f"[{kubectl.group}]")))
    model = yaml.safe_load((ROOT / "examples/smallest.yaml").read_text())
    model["metadata"] = {"name": NAME}
    kubectl.ok("create", "-f", "-", body=model)
    try:
        for obj in made:
            kubectl.ok("create", "-f", "-", body=obj)
        end = time.monotonic() + 60  # the API server takes a policy up within moments
        while not probed(kubectl):
            assert time.monotonic() < end, "the policy is not in force"
            time.sleep(0.5)
        yield kubectl
    finally:
        for obj in made:
            kubectl("delete", obj["kind"], obj["metadata"]["name"], "--wait=false")


def probed(kubectl: Kubectl) -> bool:
    """The policy stamps. Until its own discovery knows a new definition, the API server refuses
    every write that it matches ("Resource kind ... not found. There can be a delay ...").
    """
    done = patch(kubectl, "probe", **{"modelrollout.dev/retry": str(time.monotonic())})
    if done.returncode:
        assert "There can be a delay" in done.stderr, done.stderr
        return False
    return "probe" in author(kubectl, "retry")


def annotate(kubectl: Kubectl, user: str, **annotations: str) -> str:
    """As that user; returns the author of the verb retry as it stands then."""
    done = patch(kubectl, user, **annotations)
    assert done.returncode == 0, done.stderr
    return author(kubectl, "retry")


def patch(kubectl: Kubectl, user: str, **annotations: str) -> subprocess.CompletedProcess[str]:
    text = json.dumps({"metadata": {"annotations": annotations}})
    return kubectl(
        "patch", kubectl.mdep, NAME, "--type=merge", "-p", text, "--as", user, "--as-group", "system:masters"
    )


def author(kubectl: Kubectl, verb: str) -> str:
    obj = json.loads(kubectl.ok("get", kubectl.mdep, NAME, "-o", "json"))
    return str(obj["metadata"]["annotations"].get(names.author_annotation(verb), ""))


def test_the_user_of_the_verb_is_stamped_and_of_no_other(stamped: Kubectl) -> None:
    assert annotate(stamped, "alice", **{"modelrollout.dev/retry": "a1a1"}) == "alice"
    assert annotate(stamped, "bob", **{"modelrollout.dev/abort": "b1b1"}) == "alice"
    assert author(stamped, "abort") == "bob"


def test_who_writes_another_name_is_stamped_all_the_same(stamped: Kubectl) -> None:
    claim = {"modelrollout.dev/retry": "c1c1", "modelrollout.dev/retry-by": "alice"}
    assert annotate(stamped, "carol", **claim) == "carol"
    claim = {"modelrollout.dev/retry-by": "alice", "modelrollout.dev/pause-by": "alice"}
    assert annotate(stamped, "mallory", **claim) == "carol"
    assert author(stamped, "pause") == ""


def test_the_same_verb_again_is_no_other_authors(stamped: Kubectl) -> None:
    assert annotate(stamped, "dave", **{"modelrollout.dev/retry": "d1d1"}) == "dave"
    assert annotate(stamped, "eve", **{"modelrollout.dev/retry": "d1d1"}) == "dave"
