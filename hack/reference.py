"""Write the reference pages that follow from the code: the fields of the API, and the commands.

    python -m hack.reference [--check]

``--check`` writes nothing, and ends with 1 if a page differs from what would be written.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from hack.markdown import wrap
from modelrollout.api.v1alpha1 import DURATION_RE
from modelrollout.cli.main import app
from modelrollout.crdgen.kinds import MODEL_DEPLOYMENT, ROLLOUT_POLICY, Kind, crd
from modelrollout.generated import put

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "reference"
HEADER = "<!-- Written by `python -m hack.reference` from {source}; do not edit. -->\n"
WIDTH = 96
PROGRAM = "modelrollout"
# Those that the chart's pods run, not people.
PROCESSES = ("run", "feedback", "references")
# What Kubernetes defines and its own reference explains.
KUBERNETES = ("affinity", "tolerations", "topologySpreadConstraints")

Schema = dict[str, Any]

API = """# {kind}: every field

{description}

{example}

Generated from the types. The API server enforces type, limits and rules; `kubectl explain
{resource}.spec --recursive` shows the same fields. What the operator writes back is on
[status](status.md).

A *duration* is a text such as `90s`, `10m` or `1h30m`. An *object of Kubernetes* is passed
on as it is; the reference of Kubernetes explains it.
"""
EXAMPLES = {
    MODEL_DEPLOYMENT.kind: (
        "The [smallest one](../../examples/smallest.yaml) has a model and resources;"
        " [examples/full.yaml](../../examples/full.yaml) has every field."
    ),
    ROLLOUT_POLICY.kind: "[examples/policy.yaml](../../examples/policy.yaml) has every field.",
}
CLI = """# The command line

`modelrollout` is also `kubectl modelrollout`, where `kubectl-modelrollout` is on PATH
([installing it](../how-to/install.md#the-command-line)). This page is what `--help` says; [verbs and
the command line](verbs.md) explains when to use which, and lists the exit codes.

| command | what it does |
|---|---|
{rows}

"""


def escaped(text: str) -> str:
    """A text of the code as a cell of a table."""
    return re.sub(r"([|*<\[])", r"\\\1", " ".join(text.split()))


def described(schema: Schema) -> bool:
    """Whether its fields are ours: those of Kubernetes carry no words."""
    fields = schema.get("properties") or {}
    return any("description" in field for field in fields.values())


def inner(schema: Schema) -> Schema:
    """What a list or a map consists of, down to what is neither."""
    for key in ("items", "additionalProperties"):
        if isinstance(child := schema.get(key), dict):
            return inner(child)
    return schema


def kind_of(schema: Schema) -> str:
    """The type of a field in words, with its limits."""
    if "items" in schema:
        return f"list of {kind_of(schema['items'])}{between(schema, 'Items', 'items')}"
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"map to {kind_of(values)}{between(schema, 'Properties', 'entries')}"
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if "x-kubernetes-int-or-string" in schema:
        return "number or text"
    if schema.get("pattern") == DURATION_RE:
        return "duration"
    kind = {"string": "text", "boolean": "true or false"}.get(schema["type"], schema["type"])
    if kind == "text":
        return kind + between(schema, "Length", "characters")
    if kind in ("integer", "number"):
        return kind + interval(schema)
    return kind


def between(schema: Schema, of: str, what: str) -> str:
    low, high = schema.get(f"min{of}"), schema.get(f"max{of}")
    bounds = [*([f"at least {low}"] if low else []), *([f"at most {high:,}"] if high is not None else [])]
    return f" ({' and '.join(bounds)} {what})" if bounds else ""


def number(value: float) -> str:
    return f"{value:,}" if value == int(value) else f"{value:g}"


def interval(schema: Schema) -> str:
    low, high = schema.get("minimum"), schema.get("maximum")
    bounds = [
        *(
            [f"{'above' if schema.get('exclusiveMinimum') else 'at least'} {number(low)}"]
            if low is not None
            else []
        ),
        *(
            [f"{'below' if schema.get('exclusiveMaximum') else 'at most'} {number(high)}"]
            if high is not None
            else []
        ),
    ]
    return f" ({' and '.join(bounds)})" if bounds else ""


def anchor(path: str) -> str:
    return re.sub(r"[^\w\- ]", "", path.lower())


def same(schema: Schema) -> str:
    """What two fields of one type have in common."""
    return json.dumps({key: schema[key] for key in sorted(schema.keys() - {"description", "default"})})


def row(name: str, schema: Schema, required: bool, section: str | None) -> str:
    """A field; ``section`` is that on its type."""
    kind = kind_of(schema)
    if section:
        kind = kind.replace("object", f"[object](#{anchor(section)})")
    elif name in KUBERNETES:
        kind = kind.replace("object", "object of Kubernetes")
    default = "**required**" if required else ""
    if "default" in schema:
        default = f"`{json.dumps(schema['default'])}`"
    words = escaped(schema.get("description") or "")
    pattern = schema.get("pattern") or inner(schema).get("pattern")
    if pattern and "duration" not in kind:
        words = f"{words} Pattern: `{pattern.replace('|', chr(92) + '|')}`".strip()
    return f"| `{name}` | {kind} | {default} | {words} |"


def rules(schema: Schema) -> Iterator[str]:
    for rule in schema.get("x-kubernetes-validations", ()):
        yield f"- {escaped(rule['message'])}"


def sections(path: str, schema: Schema, known: dict[str, str]) -> Iterator[str]:
    """The section on an object of the API, and those on the objects in it. ``known`` has the
    section of each type: one that stands at several places is explained at the first.
    """
    fields: Schema = schema["properties"]
    lines = [f"{'##' if path.count('.') < 2 else '###'} {path}", ""]
    if path.count(".") and (words := schema.get("description")):
        lines += [escaped(words), ""]
    lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
    new: list[tuple[str, Schema]] = []
    listed = list(rules(schema))
    for name, field in fields.items():
        child, section = inner(field), None
        if described(child) and name not in KUBERNETES:
            section = known.setdefault(same(child), f"{path}.{name}")
            if section == f"{path}.{name}":
                new.append((section, child))
        else:
            listed += rules(field)
        lines.append(row(name, field, name in schema.get("required", ()), section))
    if listed:
        lines += ["", "Rules:", "", *listed]
    yield "\n".join([*lines, ""])
    for section, child in new:
        yield from sections(section, child, known)


def api_page(kind: Kind) -> str:
    root = crd(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    text = API.format(
        kind=kind.kind,
        description="\n\n".join(" ".join(part.split()) for part in root["description"].split("\n\n")),
        example=EXAMPLES[kind.kind],
        resource=kind.kind.lower(),
    )
    top = list(rules(root))
    if top:
        text += "\n" + "\n".join(["Rules of the whole object:", "", *top, ""])
    header = HEADER.format(source="operator/modelrollout/api")
    return header + text + "\n" + "\n".join(sections("spec", root["properties"]["spec"], {}))


def commands() -> list[tuple[str, TyperCommand]]:
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    return [(name, command) for name, command in group.commands.items() if isinstance(command, TyperCommand)]


def help_of(command: TyperCommand, name: str) -> str:
    context = typer.Context(
        command, info_name=f"{PROGRAM} {name}".strip(), max_content_width=WIDTH, terminal_width=WIDTH
    )
    return command.get_help(context).rstrip()


def cli_page() -> str:
    listed = commands()
    table = [
        f"| [`{name}`](#{PROGRAM}-{name}) | {escaped(command.get_short_help_str(limit=200))} |"
        for name, command in listed
    ]
    blocks = []
    for name, command in sorted(listed, key=lambda item: item[0] in PROCESSES):
        note = "Runs in pods of the chart; nothing for people.\n\n" if name in PROCESSES else ""
        blocks.append(f"## {PROGRAM} {name}\n\n{note}```text\n{help_of(command, name)}\n```\n")
    header = HEADER.format(source="operator/modelrollout/cli")
    return header + CLI.format(rows="\n".join(table)) + "\n".join(blocks)


def pages() -> dict[Path, str]:
    """The text of each page."""
    made = {
        "cli.md": cli_page(),
        "api-modeldeployment.md": api_page(MODEL_DEPLOYMENT),
        "api-rolloutpolicy.md": api_page(ROLLOUT_POLICY),
    }
    return {FOLDER / name: wrap(text) for name, text in made.items()}


def main(arguments: Iterable[str]) -> int:
    return put(pages(), check="--check" in arguments, complaint="is not up to date; run: make generate")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
