"""Each commit of the story is what it says, by the types of the operator."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from chaos.models import ModelFile
from gitops import story
from gitops.story import STORY, Files, Step
from modelrollout.api.v1alpha1 import ModelDeploymentSpec
from modelrollout.api.v1alpha1.policy import RolloutPolicySpec
from tests.unit.demo.demo_operator import target

WITH_FILES = [step for step in STORY if step.files is not None]


def model(version: str) -> ModelFile:
    return ModelFile(Path(version), version[1:].rjust(64, "0"), f"gitops/{version}.onnx")


def spec(files: Files, name: str = story.NAME) -> dict[str, Any]:
    written = story.models_folder(target(), files, model(files.version))
    o = yaml.safe_load(written[f"{story.MODELS}/{name}.yaml"])
    assert "namespace" not in o["metadata"], "Argo CD's Application says where to"
    found: dict[str, Any] = o["spec"]
    return found


@pytest.mark.parametrize("step", WITH_FILES, ids=lambda step: step.commit)
def test_a_manifest_is_refused_by_the_schema_where_the_story_says_so(step: Step) -> None:
    assert step.files is not None
    if step.settled.refused is None:
        ModelDeploymentSpec.model_validate(spec(step.files))
    else:
        with pytest.raises(ValidationError, match=step.settled.refused):
            ModelDeploymentSpec.model_validate(spec(step.files))


@pytest.mark.parametrize("frozen", [True, False])
def test_the_policy_can_be_read(frozen: bool) -> None:
    read = RolloutPolicySpec.model_validate(story.policy(frozen=frozen)["spec"])
    assert read.limits is not None and read.limits.concurrent_rollouts == story.AT_ONCE
    assert bool(read.freeze_windows) is frozen


def test_versions_differ_in_nothing_but_the_model() -> None:
    one, two = spec(Files("v1")), spec(Files("v2"))
    assert one["model"] != two["model"]
    assert {**one, "model": None} == {**two, "model": None}


def test_replicas_are_no_version() -> None:
    one, two = spec(Files("v1")), spec(Files("v1", 3))
    assert one != two and one["model"] == two["model"] and one["rollout"] == two["rollout"]


def test_each_revert_goes_back_to_the_version_that_its_step_names() -> None:
    """Of two commits in a row the second is undone, so the first says what holds again."""
    before: list[str | None] = []
    for step in STORY:
        version = before[-2] if step.files is None else step.files.version
        before.append(version)
        if step.settled == story.READY:
            assert step.stable == version, step.commit


def test_health_ends_as_each_path_does_and_begins_as_the_one_before_ended() -> None:
    for before, after in itertools.pairwise(STORY):
        assert after.path.startswith(before.health), after.commit
    for step in STORY:
        assert step.path.rstrip(")?").endswith(step.health), step.commit


def test_the_fleet_is_one_folder_for_each_model_under_the_policys_demands() -> None:
    files = story.fleet_folder(target(), model("v1"))
    assert len(files) == story.FLEET_SIZE == 40
    for name in story.fleet_names():
        o = yaml.safe_load(files[f"{story.FLEET}/{name}/model.yaml"])
        read = ModelDeploymentSpec.model_validate(o["spec"])
        assert o["metadata"]["name"] == name and read.model.sha256 is not None


def test_no_manifest_has_aliases() -> None:
    written = story.models_folder(target(), replace(Files("v1"), policy="Frozen"), model("v1"))
    assert not any("&id" in text or "*id" in text for text in written.values())


def test_applications_and_those_of_the_set_are_synced_alike() -> None:
    one = story.application("http://git")
    template = story.application_set("http://git")["spec"]["template"]
    assert one["spec"]["syncPolicy"] == template["spec"]["syncPolicy"]
    assert one["metadata"]["annotations"] == template["metadata"]["annotations"]
    assert one["spec"]["syncPolicy"]["automated"] == {"prune": True, "selfHeal": True}
