"""What an API server with older definitions drops is known by name."""

from __future__ import annotations

from modelrollout.api import names
from modelrollout.crdgen.kinds import KINDS
from modelrollout.crdgen.served import pruned_fields
from tests.served_definitions import fields, served

EVERYTHING = {kind.kind: () for kind in KINDS}


def test_current_definitions_drop_nothing() -> None:
    assert pruned_fields(served()) == EVERYTHING


def test_a_field_that_is_missing_is_named_by_its_path() -> None:
    document = served()
    del fields(document, "RolloutPolicy", "spec", "gates")["bake"]
    del fields(document, "ModelDeployment", "spec", "rollout", "analysis", "metrics", "[]")["dryRun"]
    assert pruned_fields(document) == EVERYTHING | {
        "RolloutPolicy": ("spec.gates.bake",),
        "ModelDeployment": ("spec.rollout.analysis.metrics[].dryRun",),
    }


def test_a_path_stands_for_all_below_it() -> None:
    document = served()
    del fields(document, "RolloutPolicy", "spec")["gates"]
    assert pruned_fields(document)["RolloutPolicy"] == ("spec.gates",)


def test_a_newer_definition_is_no_fault() -> None:
    document = served()
    fields(document, "ModelDeployment", "spec")["quantum"] = {"type": "string"}
    assert pruned_fields(document) == EVERYTHING


def test_where_nothing_is_pruned_nothing_is_missing() -> None:
    document = served()
    schema = document["components"]["schemas"][f"dev.modelrollout.{names.VERSION}.RolloutPolicy"]
    schema["properties"]["spec"] = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    assert pruned_fields(document) == EVERYTHING


def test_a_kind_that_is_not_served_is_left_out() -> None:
    document = served()
    del document["components"]["schemas"][f"dev.modelrollout.{names.VERSION}.RolloutPolicy"]
    assert "RolloutPolicy" not in pruned_fields(document)


def test_kinds_of_others_do_not_count() -> None:
    document = served()
    document["components"]["schemas"]["other"] = {
        "x-kubernetes-group-version-kind": [
            {"group": "example.com", "version": "v1", "kind": "RolloutPolicy"}
        ]
    }
    assert pruned_fields(document) == EVERYTHING
