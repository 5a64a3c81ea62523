"""What of the upgrade in mid-canary and of the clock can be tried without a cluster."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import yaml

from chaos import clock, versions
from chaos.arena import Arena, Subject
from sandbox import packages

CRDS = Path(__file__).parents[3] / "crds"


def test_the_name_of_an_image_becomes_values_of_the_chart() -> None:
    assert versions.image("localhost:5000/a/b@sha256:1f") == {
        "repository": "localhost:5000/a/b",
        "digest": "sha256:1f",
    }
    assert versions.image("localhost:5000/a/b:dev") == {"repository": "localhost:5000/a/b", "tag": "dev"}


@pytest.mark.parametrize(
    ("resource", "kind", "path"),
    [
        ("modeldeployments", "ModelDeployment", ("rollout", "rollbackWindow")),
        ("rolloutpolicies", "RolloutPolicy", ("gates", "bake")),
    ],
)
def test_the_field_that_a_definition_is_to_lack_is_there(
    resource: str, kind: str, path: tuple[str, ...]
) -> None:
    crd = yaml.safe_load((CRDS / f"modelrollout.dev_{resource}.yaml").read_text())
    node = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for name in path:
        node = node["properties"][name]
    assert crd["spec"]["names"]["kind"] == kind


class FakeOperator:
    def __init__(self) -> None:
        self.environment: dict[str, str] = {"OTHER": "stays"}
        self.restarts = 0

    def restart(self) -> None:
        self.restarts += 1


def test_the_clock_is_set_by_a_file_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "faketime", lambda _: tmp_path / "libfaketime.so.1")
    operator = FakeOperator()
    arena = cast(Arena, SimpleNamespace(folder=tmp_path, operator=operator))
    clock.begin(arena)
    assert operator.environment["LD_PRELOAD"] == str(tmp_path / "libfaketime.so.1")
    file = Path(operator.environment["FAKETIME_TIMESTAMP_FILE"])
    assert file.read_text() == "+0\n"
    for seconds, text in ((clock.FORWARD, "+60\n"), (clock.BACK, "-60\n"), (0, "+0\n")):
        clock.jump(seconds)(arena, cast(Subject, None))
        assert file.read_text() == text
    clock.undo(arena)
    assert operator.environment == {"OTHER": "stays"} and operator.restarts == 2
