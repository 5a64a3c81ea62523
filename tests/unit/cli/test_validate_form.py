"""validate refuses what the definitions refuse, field by field of the examples, and takes what they
take; and no file brings it to a traceback or keeps it busy.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import Result

from modelrollout.cli.errors import Refused
from modelrollout.cli.manifests.documents import Document, read
from modelrollout.cli.manifests.form import as_sent, wrong_form
from modelrollout.cli.manifests.rules import schema_of
from modelrollout.cli.manifests.validate import findings
from modelrollout.crdgen.schema import Schema

Cli = Callable[..., Result]
ROOT = Path(__file__).parents[3]
HEAD = "apiVersion: modelrollout.dev/v1alpha1\nkind: ModelDeployment\nmetadata: {name: d}\n"
PLAIN = HEAD + "spec:\n  model: {uri: s3://a/m}\n  serving: {resources: {limits: {nvidia.com/gpu: 1}}}\n"
POLICY = "apiVersion: modelrollout.dev/v1alpha1\nkind: RolloutPolicy\nmetadata: {name: p}\n"

Way = tuple[str | int, ...]


def fields(schema: Schema, value: Any, way: Way = ()) -> Iterator[tuple[Way, Schema, Any]]:
    yield way, schema, value
    if isinstance(value, dict):
        for name, child in value.items():
            inner = (schema.get("properties") or {}).get(name) or schema.get("additionalProperties")
            if isinstance(inner, dict):
                yield from fields(inner, child, (*way, name))
    elif isinstance(value, list):
        for i, child in enumerate(value):
            yield from fields(schema["items"], child, (*way, i))


def every_field() -> dict[tuple[str, ...], tuple[dict[str, Any], Way, Schema, Any]]:
    """Of the examples, each once, by its path without the numbers of items."""
    found: dict[tuple[str, ...], tuple[dict[str, Any], Way, Schema, Any]] = {}
    for file in sorted((ROOT / "examples").glob("*.yaml")):
        for obj in yaml.safe_load_all(file.read_text()):
            if isinstance(obj, dict) and obj.get("kind") in ("ModelDeployment", "RolloutPolicy"):
                schema = schema_of(obj["kind"])["properties"]["spec"]
                for way, inner, value in fields(schema, obj["spec"], ("spec",)):
                    names = (obj["kind"], *("[]" if isinstance(p, int) else p for p in way))
                    found.setdefault(names, (obj, way, inner, value))
    return found


FIELDS = every_field()
WRONG_TYPE: dict[str, list[Any]] = {
    "string": [5, True, [], {}, None],
    "integer": ["5", 1.5, True, [], None, 1 << 63],
    "number": ["0.5", True, {}, None, float("nan"), float("inf"), 10**400],
    "boolean": ["true", 0, None],
    "array": [{}, "x", None],
    "object": [[], "x", None],
}


def wrong(schema: Schema, value: Any) -> Iterator[Any]:
    """Values that the definition refuses."""
    if "x-kubernetes-int-or-string" in schema:
        yield from (True, 1.5, [], "1,5")
    for other in WRONG_TYPE.get(schema.get("type", ""), ()):
        if other is not None or "default" not in schema:
            yield other
    if "enum" in schema:
        yield f"{value}x"
    if "pattern" in schema:
        yield from (f"{value}\n", f" {value}", f"ü{value}")
    if "maxLength" in schema:
        yield "a" * (schema["maxLength"] + 1)
    if "minLength" in schema:
        yield ""
    for bound, further in (("minimum", -1), ("maximum", 1)):
        if bound in schema:
            yield schema[bound] + further
            if f"exclusive{bound.title()}" in schema:
                yield schema[bound]
    if isinstance(value, list) and value:
        if "maxItems" in schema:
            yield value * (schema["maxItems"] + 1)
        if "minItems" in schema:
            yield []
        if schema.get("x-kubernetes-list-type") == "map":
            yield [*value, value[0]]
    if isinstance(value, dict):
        if "maxProperties" in schema:
            yield {f"{i}": next(iter(value.values()), {}) for i in range(schema["maxProperties"] + 1)}
        for name in schema.get("required", ()):
            yield {k: v for k, v in value.items() if k != name}
        if "properties" in schema:
            yield value | {"unheardOf": 1}
        for name in value if "properties" in schema else ():
            snake = re.sub("([A-Z])", lambda m: f"_{m[1].lower()}", name)
            if snake != name:  # as the types call it
                yield {snake if k == name else k: v for k, v in value.items()}


def right(schema: Schema, value: Any) -> Iterator[Any]:
    """Values that the definition takes, alone."""
    yield from schema.get("enum", ())
    for bound in ("minimum", "maximum"):
        if bound in schema and f"exclusive{bound.title()}" not in schema:
            yield schema[bound]
    if schema.get("type") in ("integer", "number"):
        yield float(value) if isinstance(value, int) else value
    if "default" in schema:
        yield None
    if isinstance(value, list) and "minItems" not in schema:
        yield []


def changed(obj: dict[str, Any], way: Way, value: Any) -> dict[str, Any]:
    made = copy.deepcopy(obj)
    target: Any = made
    for part in way[:-1]:
        target = target[part]
    target[way[-1]] = value
    return made


@pytest.mark.parametrize("kind", ["ModelDeployment", "RolloutPolicy"])
def test_what_the_definition_refuses_of_a_field_is_refused_and_named(kind: str) -> None:
    seen = 0
    for names, (obj, way, schema, value) in FIELDS.items():
        for other in wrong(schema, value) if names[0] == kind else ():
            lines = findings([Document("m", changed(obj, way, other))], [])
            path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in way)[1:]
            assert any(f": {path}" in line for line in lines), (path, other, lines)
            seen += 1
    assert seen > 300


def test_what_the_definition_takes_of_a_field_has_the_right_form() -> None:
    for obj, way, schema, value in FIELDS.values():
        whole = schema_of(obj["kind"])
        for other in right(schema, value):
            sent = as_sent(whole, changed(obj, way, other))
            lines = list(wrong_form(whole["properties"]["spec"], sent["spec"], "spec"))
            assert not lines, (way, other, lines)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (PLAIN.replace("gpu: 1", "gpu: '1.5 '"), "must match"),
        (PLAIN + "  rollout: {analysis: {golden: {uri: s3://a/g, maxDrop: '0.1'}}}", "leave out the quotes"),
        (
            PLAIN.replace("m}", "m, lineage: {run: 118}}"),
            "lineage.run: must be a text, not an integer: write",
        ),
        (PLAIN.replace("m}", "m, lineage: {c: 1e5}}"), "lineage.c: must be a text"),
        (PLAIN.replace("m}", "m, lineage: {c: n}}"), "lineage.c: must be a text"),
        (PLAIN.replace("{name: d}", "{name: d, labels: {a: 1}}"), "metadata.labels.a: must be a text"),
        (PLAIN.replace("{name: d}", "{name: [d], labels: x}"), "metadata.labels: must be a mapping"),
        (PLAIN.replace("{name: d}", "[]"), "metadata.name"),
        (PLAIN.replace("modelrollout.dev", "modelrollouts.dev"), "apiVersion: modelrollouts.dev/v1alpha1 is"),
        (PLAIN.replace("apiVersion: modelrollout.dev/v1alpha1\n", ""), "apiVersion: None is not known"),
        (HEAD, "spec: is missing"),
        (HEAD + "spec: [x]\n", "spec: must be a mapping, not a list"),
        (
            POLICY + "spec: {freezeWindows: [{schedule: daily, duration: 5h}]}\n",
            "spec.freezeWindows[0].schedule: 'daily': it needs five parts",
        ),
    ],
)
def test_what_people_write_is_named(tmp_path: Path, cli: Cli, text: str, fault: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(text)
    result = cli("validate", str(file))
    assert result.exit_code == 1 and fault in result.stdout, result.output


@pytest.mark.parametrize("value", ["2026-01-01", "1:30", "12e3456", "v8", "'1'"])
def test_what_the_tools_send_as_text_is_text(tmp_path: Path, cli: Cli, value: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(PLAIN.replace("m}", f"m, lineage: {{a: {value}}}}}"))
    assert cli("validate", str(file)).exit_code == 0


def test_a_merge_over_a_merged_key_is_no_key_that_stands_twice(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text("defs:\n  b: &b {a: 1}\n  x: &x {<<: *b, a: 2}\nz: {<<: *x}\n")
    assert read([file])[1] == [{"defs": {"b": {"a": 1}, "x": {"a": 2}}, "z": {"a": 2}}]


def bomb(form: str) -> str:
    repeated = ", ".join("*l{0}" for _ in range(9))
    lines = (f"  a{i}: &l{i} {form.format(repeated.format(i - 1))}\n" for i in range(1, 40))
    return f"{PLAIN}  x: &l0 {{a: b}}\n{''.join(lines)}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (bomb("[{}]"), "more than 1000000 values"),
        (bomb("{{<<: [{}]}}"), "more than 1000000 values"),
        (PLAIN + "  x: " + "[" * 1000 + "]" * 1000, "nested too deeply"),
        (PLAIN + "  x: &a {b: *a}\n", "nested too deeply, or in itself"),
        (PLAIN + "  ? [a]\n  : b\n", "a key is no text"),
        (PLAIN + "  x: !!int foo\n", "does not fit its tag"),
        (PLAIN + "  x: !!timestamp foo\n", "does not fit its tag"),
        (PLAIN + "  x: " + "9" * 5000, "does not fit its tag"),
        (PLAIN + "#" * (4 << 20), "larger than 4 MiB"),
        ("kind: ConfigMap\n", "the files have no object of modelrollout.dev"),
    ],
)
def test_what_cannot_be_read_is_said_at_once(tmp_path: Path, cli: Cli, text: str, words: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(text)
    begun = time.monotonic()
    result = cli("validate", str(file))
    assert result.exit_code == 1 and words in result.stderr, (result.output, result.exception)
    assert time.monotonic() - begun < 20


def test_what_a_folder_has_beside_manifests_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "chart.yaml").write_text("{{- if .Values.x }}\na: b\n{{- end }}\n")
    (tmp_path / "m.yaml").write_text(PLAIN)
    assert len(read([tmp_path])[0]) == 1
    with pytest.raises(Refused):
        read([tmp_path / "chart.yaml"])


def test_other_objects_of_any_form_do_no_harm(tmp_path: Path, cli: Cli) -> None:
    others = "---\nkind: Namespace\nmetadata: []\n---\nkind: Namespace\nmetadata: {name: [x], labels: [y]}\n"
    policy = f"---\n{POLICY}spec: {{selector: {{namespaceLabels: {{a: b}}}}}}\n"
    (tmp_path / "m.yaml").write_text(f"{PLAIN}{others}{policy}")
    assert cli("validate", str(tmp_path)).exit_code == 0
