"""Objects in YAML files."""

from __future__ import annotations

import difflib
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from modelrollout.api import names
from modelrollout.cli.errors import Refused
from modelrollout.kube.kinds import MODEL_DEPLOYMENT, ROLLOUT_POLICY

_KINDS = (MODEL_DEPLOYMENT.kind, ROLLOUT_POLICY.kind)
SUFFIXES = (".yaml", ".yml", ".json")
_MOST_BYTES = 4 << 20  # the API server takes 3 MiB; a file may have several objects
_MOST_VALUES = 1_000_000
_DEEPEST = 100


@dataclass(frozen=True)
class Document:
    """One object of our API group in a file."""

    file: str
    raw: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.raw.get("kind") or "")

    @property
    def metadata(self) -> dict[str, Any]:
        metadata = self.raw.get("metadata")
        return metadata if isinstance(metadata, dict) else {}

    @property
    def name(self) -> str:
        return str(self.metadata.get("name") or "")

    @property
    def where(self) -> str:
        """``model.yaml: ModelDeployment digits``."""
        return f"{self.file}: {self.kind} {self.name or '(without a name)'}"


class _Loader(yaml.SafeLoader):
    """Reads values as kubectl and GitOps tools do (sigs.k8s.io/yaml): 1e5 and 0o17 are numbers, y
    is a truth value, a date and 1:30 are texts. Refuses a key that stands twice, as the API server
    does with what these tools send.
    """

    def compose_mapping_node(self, anchor: Any) -> MappingNode:
        node: MappingNode = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key is no text", key.start_mark)
            if key.tag != "tag:yaml.org,2002:merge" and key.value in seen:
                raise yaml.composer.ComposerError(
                    None, None, f"the key {key.value!r} stands twice", key.start_mark
                )
            seen.add(key.value)
        return node


def _bool(_: _Loader, node: ScalarNode) -> bool:
    return node.value.lower() in ("y", "yes", "true", "on")


def _int(_: _Loader, node: ScalarNode) -> int:
    text = node.value.replace("_", "")
    return int(text, 8) if re.fullmatch(r"[-+]?0[0-7]+", text) else int(text, 0)


def _float(loader: _Loader, node: ScalarNode) -> float | str:
    value: float = loader.construct_yaml_float(node)
    is_digest = math.isinf(value) and "inf" not in node.value.lower()
    return node.value if is_digest else value  # 12e3456 is no number that a float holds


_READ = {"bool": _bool, "int": _int, "float": _float}
for _kind, _function in _READ.items():
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _function)
_OTHERWISE = {f"tag:yaml.org,2002:{kind}" for kind in (*_READ, "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _OTHERWISE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern, _first in (
    ("bool", r"[yY]|[nN]|[yY]es|YES|[nN]o|NO|[tT]rue|TRUE|[fF]alse|FALSE|[oO]n|ON|[oO]ff|OFF", "yYnNtTfFoO"),
    ("int", r"[-+]?(0[bB][01_]+|0[oO]?[0-7_]+|0[xX][0-9a-fA-F_]+|[1-9][0-9_]*|0)", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", "-+."),
):  # fmt: skip
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), list(_first))


def read(paths: Iterable[Path]) -> tuple[list[Document], list[dict[str, Any]]]:
    """Our objects in files and folders (``-``: standard input), and all other objects; raises
    Refused. In a folder, files that say nothing of us or of a Namespace are passed over.
    """
    ours: list[Document] = []
    others: list[dict[str, Any]] = []
    for file, text in _texts(paths):
        try:
            loaded = list(_loaded(text))
        except yaml.YAMLError as e:
            raise Refused(f"{file}: {e}") from e
        except (ValueError, AttributeError, KeyError) as e:  # !!int x
            raise Refused(f"{file}: a value does not fit its tag ({e})") from e
        except RecursionError:
            raise Refused(f"{file}: is nested too deeply, or in itself") from None
        for raw in _flat(loaded):
            if _is_ours(raw):
                ours.append(Document(file, raw))
            else:
                others.append(raw)
    return ours, others


def _is_ours(raw: dict[str, Any]) -> bool:
    """Also with a group that is meant to be ours: nothing else would say that it is wrong."""
    group = str(raw.get("apiVersion") or "").split("/")[0]
    if raw.get("kind") in _KINDS:
        return not group or bool(difflib.get_close_matches(group, [names.GROUP], 1, 0.75))
    return group == names.GROUP


def _loaded(text: str) -> Iterable[Any]:
    loader = _Loader(spaced(text))
    try:
        while loader.check_node():
            node = loader.get_node()
            assert node is not None  # as check_node says
            expect_shallow(node)
            values, _ = _extent(node, {})
            if values > _MOST_VALUES:
                raise yaml.composer.ComposerError(
                    None, None, f"with its aliases it has more than {_MOST_VALUES} values", node.start_mark
                )
            yield loader.construct_document(node)
    finally:
        loader.dispose()


def spaced(text: str) -> str:
    """JSON may be indented with tabs, YAML not; a text in JSON has none."""
    return text.replace("\t", " ") if text.lstrip("\ufeff \t\r\n").startswith("{") else text


def expect_shallow(node: Node) -> None:
    """Raises RecursionError for what is nested too deeply, or in itself: by a number, since where
    Python would raise it depends on the process.
    """
    _, depth = _extent(node, {})
    if depth > _DEEPEST:
        raise RecursionError


def _extent(node: Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """How many values a node has, each as often as it is repeated, and how deep they are nested."""
    if id(node) not in known:
        inner = node.value if isinstance(node, (MappingNode, SequenceNode)) else ()
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        extents = [_extent(part, known) for part in parts]
        values, depth = sum(v for v, _ in extents), max((d for _, d in extents), default=0)
        known[id(node)] = values + 1, depth + 1
    return known[id(node)]


def labels_of_namespaces(others: Iterable[dict[str, Any]]) -> dict[Any, dict[str, str]]:
    """Labels of the Namespaces among the objects, by name."""
    found = [o.get("metadata") for o in others if o.get("kind") == "Namespace"]
    return {
        str(metadata.get("name")): labels if isinstance(labels := metadata.get("labels"), dict) else {}
        for metadata in found
        if isinstance(metadata, dict)
    }


def _texts(paths: Iterable[Path]) -> Iterable[tuple[str, str]]:
    for path in paths:
        if str(path) == "-":
            yield "standard input", sys.stdin.read()
            continue
        files = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES) if path.is_dir() else [path]
        for file in files:
            try:
                if file.stat().st_size > _MOST_BYTES:
                    raise Refused(f"{file}: is larger than {_MOST_BYTES >> 20} MiB, which no manifest is")
                text = file.read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as e:
                raise Refused(f"{file}: {e}") from e
            if file is path or names.GROUP in text or "Namespace" in text:
                yield str(file), text


def _flat(loaded: Iterable[Any]) -> Iterable[dict[str, Any]]:
    """The objects, those in a List too."""
    for raw in loaded:
        if not isinstance(raw, dict):
            continue
        if raw.get("kind") == "List" and isinstance(raw.get("items"), list):
            yield from _flat(raw["items"])
        else:
            yield raw
