"""What the generator writes: structural schemas that say what the types say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import yaml
from pydantic import Field

from modelrollout.api.v1alpha1 import (
    ApiModel,
    ListMapKey,
    ModelDeploymentSpec,
    ModelRevisionSpec,
    Quantity,
    Rule,
    Serving,
    ShapeOf,
    StatusModel,
)
from modelrollout.crdgen.__main__ import main
from modelrollout.crdgen.kinds import KINDS, MODEL_DEPLOYMENT, MODEL_REVISION, crd
from modelrollout.crdgen.schema import SchemaError, model_schema, unbounded
from modelrollout.resources.server import Version, template
from modelrollout.testing.fake_cluster import CONFIG

ROOT = Path(__file__).parents[3]
BARE = ("spec.input", "spec.template")  # of a ModelRevision


MADE = {kind.kind: crd(kind) for kind in KINDS}


def version(kind: Any) -> dict[str, Any]:
    actual: dict[str, Any] = MADE[kind.kind]["spec"]["versions"][0]
    return actual


def root(kind: Any) -> dict[str, Any]:
    schema: dict[str, Any] = version(kind)["schema"]["openAPIV3Schema"]
    return schema


def nodes(schema: dict[str, Any], path: str = "") -> list[tuple[str, dict[str, Any]]]:
    """The schema and all schemas inside it, each with its path."""
    actual = [(path, schema)]
    for name, child in schema.get("properties", {}).items():
        actual += nodes(child, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            actual += nodes(schema[key], f"{path}[]")
    return actual


def in_atomic_lists(
    schema: dict[str, Any], path: str, inside: bool = False
) -> list[tuple[str, dict[str, Any]]]:
    """What lies inside a list that has no keys, each with its path."""
    found = [(path, schema)] if inside else []
    for name, child in schema.get("properties", {}).items():
        found += in_atomic_lists(child, f"{path}.{name}", inside)
    if isinstance(values := schema.get("additionalProperties"), dict):
        found += in_atomic_lists(values, f"{path}.*", inside)
    if "items" in schema:
        atomic = schema.get("x-kubernetes-list-type", "atomic") == "atomic"
        found += in_atomic_lists(schema["items"], f"{path}[]", inside or atomic)
    return found


def fill(schema: dict[str, Any], value: Any) -> Any:
    """Defaults as the API server fills them in."""
    if isinstance(value, dict) and "properties" in schema:
        filled = dict(value)
        for name, child in schema["properties"].items():
            if name not in filled and "default" in child:
                filled[name] = child["default"]
            if name in filled:
                filled[name] = fill(child, filled[name])
        return filled
    if isinstance(value, list) and "items" in schema:
        return [fill(schema["items"], v) for v in value]
    return value


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.kind)
class TestEveryKind:
    def test_schema_is_structural(self, kind: Any) -> None:
        for path, schema in nodes(root(kind)):
            assert not {"$ref", "$defs", "anyOf", "oneOf", "allOf", "title", "const", "nullable"} & set(
                schema
            ), path
            assert ("type" in schema) != ("x-kubernetes-int-or-string" in schema), path
            if schema.get("type") == "array":
                assert "items" in schema, path
            assert not ("properties" in schema and "additionalProperties" in schema), path

    def test_nothing_is_open_and_everything_has_a_bound(self, kind: Any) -> None:
        for part in ("spec", "status"):
            assert unbounded(root(kind)["properties"][part]) == []

    def test_keys_of_a_users_map_have_a_bound(self, kind: Any) -> None:
        """No schema bounds them, only a rule does. What is bare the operator alone writes, from
        what was bounded before.
        """
        for path, schema in nodes(root(kind)["properties"]["spec"], "spec"):
            if "additionalProperties" in schema and not path.startswith(BARE):
                assert {
                    "rule": "self.all(k, k.size() <= 317)",
                    "message": "a key is at most 317 characters",
                } in schema["x-kubernetes-validations"], path

    def test_kubectl_can_apply_it(self, kind: Any) -> None:
        """kubectl apply without --server-side keeps the whole definition in an annotation, and all
        of them are at most 256 KiB.
        """
        assert len(json.dumps(crd(kind))) < 200_000

    def test_every_field_of_the_spec_is_explained(self, kind: Any) -> None:
        for path, schema in nodes(root(kind)["properties"]["spec"], "spec"):
            if not path.endswith("[]") and not path.startswith(tuple(f"{bare}." for bare in BARE)):
                assert schema.get("description"), path

    def test_status_has_no_defaults(self, kind: Any) -> None:
        assert [
            path for path, schema in nodes(root(kind)["properties"]["status"]) if "default" in schema
        ] == []

    def test_map_keys_are_required(self, kind: Any) -> None:
        """Or the API server refuses the definition."""
        for path, schema in nodes(root(kind)):
            for key in schema.get("x-kubernetes-list-map-keys", []):
                assert key in schema["items"]["required"], path

    def test_committed_files_have_not_drifted(self, kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(ROOT)
        assert main(["--check"]) == 0, "run: python -m modelrollout.crdgen"

    def test_no_properties_are_empty(self, kind: Any) -> None:
        """The API server drops them, so that Argo CD would show a difference for ever."""
        assert [path for path, schema in nodes(root(kind)) if schema.get("properties") == {}] == []

    def test_no_item_that_is_applied_as_a_whole_has_a_default(self, kind: Any) -> None:
        """Server-side apply owns an atomic list as a whole: what a default fills in there would
        differ from what was applied for ever. So rules on such items need has().
        """
        for path, item in in_atomic_lists(root(kind)["properties"]["spec"], "spec"):
            assert "default" not in item, path
            optional = set(item.get("properties", {})) - set(item.get("required", []))
            for rule in item.get("x-kubernetes-validations", []):
                for name in set(re.findall(r"\bself\.(\w+)", rule["rule"])) & optional:
                    assert f"has(self.{name})" in rule["rule"], f"{path}: {rule['rule']}"

    def test_uninstalling_the_chart_keeps_it(self, kind: Any) -> None:
        assert crd(kind)["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_names_and_columns_are_those_of_the_api_document() -> None:
    names = {k.kind: crd(k)["spec"]["names"] for k in KINDS}
    assert names["ModelDeployment"]["shortNames"] == ["mdep"]
    assert names["ModelRevision"]["shortNames"] == ["mrev"]
    assert all(n["categories"] == ["modelrollout"] for n in names.values())

    def shown(kind: Any) -> list[str]:
        return [c["name"].upper() for c in version(kind)["additionalPrinterColumns"] if not c.get("priority")]

    assert shown(MODEL_DEPLOYMENT) == [
        "READY",
        "PHASE",
        "STABLE",
        "CANARY",
        "WEIGHT",
        "STEP",
        "VERDICT",
        "AGE",
    ]
    assert shown(MODEL_REVISION) == ["OUTCOME", "REASON", "ACCURACY", "SIZE", "P99", "AGE"]


@pytest.mark.parametrize("kind", KINDS, ids=lambda k: k.kind)
def test_columns_and_scale_read_fields_that_exist(kind: Any) -> None:
    spec = version(kind)
    paths = [c["jsonPath"] for c in spec["additionalPrinterColumns"]] + list(
        spec["subresources"].get("scale", {}).values()
    )
    known = {path for path, _ in nodes(root(kind))}
    for path in paths:
        if not path.startswith(".metadata"):
            assert path.split("[")[0] in known, path


def test_the_defaults_in_the_schema_are_those_of_the_types() -> None:
    """What the API server fills in is what the operator would have read anyway, but for what a
    RolloutPolicy may fill in before the types do.
    """
    smallest = yaml.safe_load((ROOT / "examples/smallest.yaml").read_text())["spec"]
    filled = fill(root(MODEL_DEPLOYMENT)["properties"]["spec"], smallest)
    wire = ModelDeploymentSpec.model_validate(smallest).wire()
    assert ModelDeploymentSpec.model_validate(filled).wire() == wire
    rollout = wire["rollout"]
    late = {k: rollout.pop(k) for k in ("onFailure", "onInconclusive", "progressDeadline")}
    assert late == {"onFailure": "Rollback", "onInconclusive": "Pause", "progressDeadline": "1h"}
    assert filled == wire


@pytest.mark.parametrize("example", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda p: p.name)
def test_examples_are_what_the_types_read(example: Path) -> None:
    for document in yaml.safe_load_all(example.read_text()):
        if document["kind"] == "ModelDeployment":
            ModelDeploymentSpec.model_validate(document["spec"])


def test_full_example_names_every_field_of_the_spec() -> None:
    """Together with those of what excludes each other (strategies, backends, formats), of metrics
    of regressions, and of images of one's own.
    """
    files = (
        "full",
        "blue-green",
        "ab-test",
        "regression",
        "detector",
        "tensorrt",
        "onnx-tensorrt",
        "python-backend",
        "training-image",
        "trees",
        "sessions",
        "follow",
    )
    examples = [yaml.safe_load((ROOT / f"examples/{name}.yaml").read_text())["spec"] for name in files]

    def used(value: Any, path: str) -> set[str]:
        actual = {path}
        if isinstance(value, dict):
            actual |= {p for k, v in value.items() for p in used(v, f"{path}.{k}")}
        elif isinstance(value, list):
            actual |= {p for v in value for p in used(v, f"{path}[]")}
        return actual

    schema = root(MODEL_DEPLOYMENT)["properties"]["spec"]
    # the gate's data shows all fields of a data set
    data = re.compile(r"\.(calibration|training\.data|container\.data|tune\.data)\.")
    kubernetes = re.compile(
        r"\.(affinity\.|tolerations\[|topologySpreadConstraints\[)"
    )  # explained by Kubernetes
    skipped = re.compile(rf"{data.pattern}|{kubernetes.pattern}|\.credentials|\[\]$")
    desired = {path for path, _ in nodes(schema, "spec") if not skipped.search(path)}
    assert desired - {path for example in examples for path in used(example, "spec")} == set()


def test_a_revision_is_immutable() -> None:
    assert ModelRevisionSpec.rules[0].rule == "self == oldSelf"
    assert (
        root(MODEL_REVISION)["properties"]["spec"]["x-kubernetes-validations"][0]["rule"] == "self == oldSelf"
    )


class Inner(ApiModel):
    """Inner words."""

    key: str
    count: int = 3


class Checked(ApiModel):
    """Words with rules."""

    word: Literal["One", "Other"] = Field("One", description="A word.")
    text: str = Field(max_length=9)
    rules: ClassVar[tuple[Rule, ...]] = (Rule("self.text != ''", "say something"),)


class Outer(ApiModel):
    """Outer words
    on two lines, with ``code``."""

    items: Annotated[list[Inner], Field(max_length=4), ListMapKey("key")] = Field(
        default_factory=list, description="Field words."
    )
    inner: Inner | None = None
    whole: Inner = Field(default_factory=lambda: Inner(key="a"))
    amount: Quantity
    written: Annotated[dict[str, Any], ShapeOf(f"{__name__}:Inner")] | None = None
    bare: Annotated[dict[str, Any], ShapeOf(f"{__name__}:Checked", bare=True)] | None = None
    labels: dict[str, str] | None = None
    share: float = Field(0.5, gt=0, lt=1)
    weight: int | None = Field(None, ge=1, le=100, alias="w")
    checked: Annotated[str, Field(max_length=9), Rule("self != ''", "say something")] = "x"
    rules: ClassVar[tuple[Rule, ...]] = (Rule("has(self.inner)", "needs inner"),)


def test_each_kind_of_field() -> None:
    schema = model_schema(Outer)
    properties = schema["properties"]
    assert schema["required"] == ["amount"]
    assert schema["description"] == "Outer words on two lines, with code."
    assert schema["x-kubernetes-validations"] == [{"rule": "has(self.inner)", "message": "needs inner"}]
    assert properties["items"]["description"] == "Field words."
    assert properties["items"]["maxItems"] == 4
    assert (
        properties["items"]["x-kubernetes-list-type"],
        properties["items"]["x-kubernetes-list-map-keys"],
    ) == ("map", ["key"])
    assert properties["items"]["default"] == []
    assert properties["inner"]["description"] == "Inner words."
    assert "default" not in properties["inner"]
    assert properties["whole"]["default"] == {"key": "a", "count": 3}, (
        "written out: CEL reads a default before the defaults inside it exist"
    )
    assert properties["amount"]["x-kubernetes-int-or-string"] is True
    assert properties["amount"]["pattern"]
    assert properties["written"] == model_schema(Inner)
    assert properties["bare"] == {
        "type": "object", "properties": {"word": {"type": "string", "maxLength": 64},
            "text": {"type": "string", "maxLength": 9}},
    }  # fmt: skip
    assert properties["labels"]["additionalProperties"] == {"type": "string"}
    assert properties["share"] == {
        "type": "number", "format": "double", "minimum": 0, "exclusiveMinimum": True, "maximum": 1,
        "exclusiveMaximum": True, "default": 0.5,
    }  # fmt: skip
    assert properties["w"] == {"type": "integer", "format": "int64", "minimum": 1, "maximum": 100}
    assert properties["checked"]["maxLength"] == 9
    assert properties["checked"]["x-kubernetes-validations"] == [
        {"rule": "self != ''", "message": "say something"}
    ]


def test_status_types_get_no_defaults_and_one_bound_for_all() -> None:
    class Status(StatusModel):
        """Status words."""

        count: int = 0
        words: dict[str, list[str]] | None = None

    schema = model_schema(Status)
    assert "default" not in schema["properties"]["count"]
    assert schema["properties"]["words"] == {
        "type": "object",
        "additionalProperties": {
            "type": "array",
            "items": {"type": "string", "maxLength": 32768},
            "maxItems": 4096,
        },
        "maxProperties": 4096,
    }


@pytest.mark.parametrize(
    ("schema", "where"),
    [
        ({"type": "string", "pattern": "^a*$"}, ""),
        ({"x-kubernetes-int-or-string": True}, ""),
        ({"type": "array", "items": {"type": "integer"}}, ""),
        ({"type": "object", "additionalProperties": {"type": "integer"}}, ""),
        ({"type": "object"}, ""),
        ({"type": "object", "properties": {}, "x-kubernetes-preserve-unknown-fields": True}, ""),
        (
            {
                "type": "object",
                "properties": {"a": {"type": "array", "maxItems": 1, "items": {"type": "string"}}},
            },
            ".a[]",
        ),
    ],
)
def test_what_has_no_bound_is_found(schema: dict[str, Any], where: str) -> None:
    assert unbounded(schema) == [where]


def test_a_template_of_ours_has_no_field_that_the_schema_would_drop() -> None:
    """What the API server does not know it drops from the revision, and its pods would start
    anew.
    """
    affinity = {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchFields": []}]}
        }
    }
    serving = Serving.model_validate(
        {
            "resources": {"limits": {"nvidia.com/gpu": 1}}, "affinity": affinity,
            "tolerations": [{"key": "a"}], "nodeSelector": {"a": "b"},
            "serviceAccountName": "a", "imagePullSecrets": [{"name": "b"}],
        }
    )  # fmt: skip
    made = template(Version("digits", "digits-1", 1, "ml"), serving, CONFIG, owner_uid="uid")
    assert pruned(root(MODEL_REVISION)["properties"]["spec"]["properties"]["template"], made) == made


def pruned(schema: dict[str, Any], value: Any) -> Any:
    """The value without what the schema does not know, as the API server keeps it."""
    if isinstance(value, dict) and "properties" in schema:
        return {k: pruned(schema["properties"][k], v) for k, v in value.items() if k in schema["properties"]}
    if isinstance(value, list):
        return [pruned(schema["items"], v) for v in value]
    return value


# What Kubernetes does not know never reached a pod, and is dropped.
KNOWN = [
    c
    for c in json.loads((ROOT / "tests/unit/api/recorded_revisions.json").read_text())
    if c["about"] != "unknown fields"
]


@pytest.mark.parametrize("case", KNOWN, ids=lambda c: c["about"])
def test_an_input_comes_back_from_the_api_server_as_it_was_written(case: dict[str, Any]) -> None:
    written = ModelDeploymentSpec.model_validate(case["spec"]).user_input()
    assert pruned(root(MODEL_REVISION)["properties"]["spec"]["properties"]["input"], written) == written
    spec = root(MODEL_DEPLOYMENT)["properties"]["spec"]
    assert pruned(spec, case["spec"]) == case["spec"]


def test_a_type_without_a_structural_schema_is_refused_by_name() -> None:
    class Wrong(ApiModel):
        """Words."""

        either: Inner | str

    with pytest.raises(SchemaError, match=r"Wrong\.either"):
        model_schema(Wrong)


def test_a_type_without_words_is_refused() -> None:
    class Silent(ApiModel):
        key: str

    with pytest.raises(SchemaError, match="Silent has no docstring"):
        model_schema(Silent)


@pytest.mark.heavy
def test_check_finds_drift(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path), "--check"]) == 1
    assert main(["--out", str(tmp_path)]) == 0
    assert main(["--out", str(tmp_path), "--check"]) == 0
    path = tmp_path / MODEL_DEPLOYMENT.file_name
    path.write_text(path.read_text().replace("mdep", "md"))
    capsys.readouterr()
    assert main(["--out", str(tmp_path), "--check"]) == 1
    assert MODEL_DEPLOYMENT.file_name in capsys.readouterr().err
