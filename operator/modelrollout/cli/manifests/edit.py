"""Another model in a manifest. Only the characters of the values change: comments, order, quotes
and line ends stay as they are. What cannot be changed so is refused, and the text stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import yaml
from pydantic import TypeAdapter, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from modelrollout.api import names, uris
from modelrollout.api.v1alpha1.model import Lineage
from modelrollout.api.v1alpha1.schema import Sha256, Uri
from modelrollout.cli.errors import Refused
from modelrollout.cli.manifests.documents import expect_shallow, spaced
from modelrollout.kube.kinds import MODEL_DEPLOYMENT

_TAG = "tag:yaml.org,2002:"
_LINE_END = re.compile(r"\r\n|\n|\r")
# What every reader of YAML takes for a text without quotes. Readers differ in what a number, a date
# or a truth value is (1e5, 0o17, y), and a digest of a commit may look like one.
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_./:@%+=~-]*(?<!:)")
_NUMBER = re.compile(r"[0-9][-+0-9_.:TtZzeE]*|0[xXoObB][0-9A-Fa-f_]*")
_WORDS = frozenset(("y", "n", "yes", "no", "true", "false", "on", "off", "null"))
_BY_HAND = "edit the file by hand"


@dataclass(frozen=True)
class Change:
    """What of spec.model changes. None and empty: that stays as it is."""

    uri: str | None = None
    sha256: str | None = None
    signature: str | None = None
    lineage: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Edit:
    """Replaces ``text[start:end]``; ``line``: what is said of it."""

    start: int
    end: int
    text: str
    line: str


def edit(text: str, change: Change, name: str | None = None) -> tuple[str, list[str]]:
    """The text with the change, and a line for each field that changed. ``name``: of the
    ModelDeployment, where the text has several. Raises Refused.
    """
    _check_values(change)
    try:
        documents = _composed(text)
        model = _model(documents, name)
        edits = sorted(_edits(text, model, change), key=lambda e: e.start)
        made, end = "", 0
        for one in edits:
            made += text[end : one.start] + one.text
            end = one.end
        made += text[end:]
        if edits:
            _check_made(made, documents, change, name)
    except yaml.YAMLError as e:
        raise Refused(str(e)) from e
    except RecursionError:
        raise Refused("the file is nested too deeply, or in itself") from None
    return made, [line for one in edits for line in one.line.splitlines()]


def _check_values(change: Change) -> None:
    """As the API server would refuse them: an empty variable of a pipeline is no digest."""
    options: list[tuple[str, Any, Any]] = [
        ("--uri", Annotated[Uri, "uri"], change.uri),
        ("--sha256", Sha256, change.sha256),
        ("--signature", Annotated[Uri, "uri"], change.signature),
        ("--lineage", Lineage, dict(change.lineage)),
    ]
    for option, kind, value in options:
        if value is None:
            continue
        try:
            TypeAdapter(kind).validate_python(value)
        except ValidationError as e:
            raise Refused(f"{option}: {e.errors(include_input=False, include_url=False)[0]['msg']}") from None
        is_uri = option in ("--uri", "--signature")
        if is_uri and not re.search(uris.PATTERN, value):
            raise Refused(f"{option}: {value!r} is no place of a file: write {uris.FORMS}")


def _composed(text: str) -> list[Node]:
    nodes = []
    for node in yaml.compose_all(spaced(text), yaml.SafeLoader):
        expect_shallow(node)
        nodes.append(node)
    return nodes


def _objects(nodes: list[Node], route: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], MappingNode]]:
    """The objects, those in a List too, and how one comes to each."""
    for i, node in enumerate(nodes):
        if not isinstance(node, MappingNode):
            continue
        items = _at(node, "items")
        if _text_at(node, "kind") == "List" and isinstance(items, SequenceNode):
            yield from _objects(items.value, (*route, i, "items"))
        else:
            yield (*route, i), node


def _found(documents: list[Node], name: str | None) -> tuple[tuple[Any, ...], MappingNode]:
    found = [
        (route, node)
        for route, node in _objects(documents)
        if _text_at(node, "apiVersion").startswith(f"{names.GROUP}/")
        and _text_at(node, "kind") == MODEL_DEPLOYMENT.kind
        and name in (None, _text_at(_at(node, "metadata"), "name"))
    ]
    if len(found) != 1:
        which = f" named {name}" if name else ""
        remedy = "" if name or not found else "; say which one with --name"
        raise Refused(f"the file has {len(found)} ModelDeployments{which}{remedy}")
    return found[0]


def _model(documents: list[Node], name: str | None) -> MappingNode:
    _, node = _found(documents, name)
    _check_keys(node, "the object")
    _check_keys(_at(node, "metadata"), "metadata")
    spec = _at(node, "spec")
    _check_keys(spec, "spec")
    model = _at(spec, "model")
    _check_keys(model, "spec.model", merges=False)
    _check_keys(_at(model, "signature"), "spec.model.signature", merges=False)
    _check_keys(_at(model, "lineage"), "spec.model.lineage")
    uri = _at(model, "uri")
    if uri is None:
        raise Refused("spec.model.uri is missing")
    if not isinstance(uri, ScalarNode):
        raise Refused("spec.model.uri is no text; of a template, set the value that it is filled from")
    assert isinstance(model, MappingNode)
    return model


def _check_keys(node: Node | None, path: str, *, merges: bool = True) -> None:
    """Which of two equal keys counts, and what is merged in, is not to be guessed."""
    seen: set[str] = set()
    for key, _ in node.value if isinstance(node, MappingNode) else ():
        if key.tag == f"{_TAG}merge":
            if not merges:
                raise Refused(f"{path} takes over fields with a merge key (<<): {_BY_HAND}")
        elif isinstance(key, ScalarNode):
            if key.value in seen:
                raise Refused(f"{path}: the key {key.value!r} stands twice: remove one")
            seen.add(key.value)


def _at(node: Node | None, key: str) -> Node | None:
    pairs = node.value if isinstance(node, MappingNode) else []
    return next((value for k, value in pairs if k.value == key), None)


def _text_at(node: Node | None, key: str) -> str:
    value = _at(node, key)
    return value.value if isinstance(value, ScalarNode) else ""


def _is_null(node: Node | None) -> bool:
    return node is None or node.tag == f"{_TAG}null"


def _edits(text: str, model: MappingNode, change: Change) -> Iterator[_Edit]:
    other_model = change.uri is not None and change.uri != _text_at(model, "uri")
    if other_model and change.sha256 is None and not _is_null(_at(model, "sha256")):
        raise Refused("spec.model.sha256 pins the bytes of the former model: give --sha256 too")
    signature = _at(model, "signature")
    if other_model and change.signature is None and not _is_null(_at(signature, "uri")):
        raise Refused("spec.model.signature.uri is of the former model: give --signature too")
    if change.signature is not None and not isinstance(signature, MappingNode):
        raise Refused("spec.model.signature is missing: name its key in the file first")
    for key, value in (("uri", change.uri), ("sha256", change.sha256)):
        if value is not None:
            yield from _put(text, model, {key: value}, "spec.model", after=("uri",))
    if change.signature is not None and isinstance(signature, MappingNode):
        yield from _put(text, signature, {"uri": change.signature}, "spec.model.signature")
    lineage = _at(model, "lineage")
    if change.lineage and isinstance(lineage, MappingNode):
        yield from _put(text, lineage, change.lineage, "spec.model.lineage", json_like=_is_json(model))
    elif change.lineage:
        if not _is_null(lineage):
            raise Refused(f"spec.model.lineage is no mapping: {_BY_HAND}")
        as_json = _is_json(model)
        pairs = ", ".join(
            f"{_scalar(k, as_json=as_json)}: {_scalar(v, as_json=as_json)}" for k, v in change.lineage.items()
        )
        line = f"spec.model.lineage: (none) -> {pairs}"
        if lineage is not None:
            yield _replaced(text, lineage, f"{{{pairs}}}", "spec.model.lineage", line)
        else:
            key = _scalar("lineage", as_json=as_json)
            yield _inserted(text, model, [f"{key}: {{{pairs}}}"], line, ("sha256", "uri"))


def _put(
    text: str,
    node: MappingNode,
    values: Mapping[str, str],
    path: str,
    after: tuple[str, ...] = (),
    *,
    json_like: bool = False,
) -> Iterator[_Edit]:
    """Set keys of a mapping; new ones go behind the first key of ``after``, or to the end."""
    as_json = _is_json(node) or (json_like and not node.value)
    new: list[str] = []
    lines: list[str] = []
    for key, value in values.items():
        old = _at(node, key)
        before = old.value if isinstance(old, ScalarNode) and not _is_null(old) else "(none)"
        if isinstance(old, ScalarNode) and old.tag == f"{_TAG}str" and before == value:
            continue
        line = f"{path}.{key}: {before} -> {value}"
        if old is None:
            new.append(f"{_scalar(key, as_json=as_json)}: {_scalar(value, as_json=as_json)}")
            lines.append(line)
        else:
            style = old.style if isinstance(old, ScalarNode) else None
            yield _replaced(
                text, old, _scalar(value, style, as_json=as_json and style == '"'), f"{path}.{key}", line
            )
    if new:
        yield _inserted(text, node, new, "\n".join(lines), after)


def _is_json(node: MappingNode) -> bool:
    """Whether it is written as JSON, and has to stay so."""
    return bool(node.flow_style and node.value and node.value[0][0].style == '"')


def _replaced(text: str, node: Node, value: str, path: str, line: str) -> _Edit:
    start, end = node.start_mark.index, node.end_mark.index
    if text[start : start + 1] in ("&", "!", "*"):
        raise Refused(f"{path} is written with an anchor, an alias or a tag: {_BY_HAND}")
    if start == end:  # nothing is written there
        return _Edit(start, end, f" {value}", line)
    if isinstance(node, ScalarNode) and node.style in ("|", ">"):
        if "#" in _LINE_END.split(text[start:end], maxsplit=1)[0]:
            raise Refused(f"{path} is a block with a comment: {_BY_HAND}")
        end = _end(text, node)
    return _Edit(start, end, value, line)


def _end(text: str, node: Node) -> int:
    """Where a value ends; a block goes on to the next key."""
    start, end = node.start_mark.index, node.end_mark.index
    return start + len(text[start:end].rstrip()) if start < end else end


def _inserted(text: str, node: MappingNode, new: list[str], line: str, after: tuple[str, ...]) -> _Edit:
    pairs = node.value
    wanted = [pair for key in after for pair in pairs if pair[0].value == key]
    here = next(iter(wanted), pairs[-1] if pairs else None)
    if here is None:  # {}
        at = text.index("{", node.start_mark.index) + 1
        return _Edit(at, at, ", ".join(new), line)
    end = _end(text, here[1])
    if node.flow_style:
        return _Edit(end, end, "".join(f", {pair}" for pair in new), line)
    indent = " " * here[0].start_mark.column
    found = _LINE_END.search(text, end)
    if found is None:  # the last line has no end
        first = _LINE_END.search(text)
        line_end = first[0] if first else "\n"
        return _Edit(len(text), len(text), "".join(f"{line_end}{indent}{pair}" for pair in new), line)
    return _Edit(found.end(), found.end(), "".join(f"{indent}{pair}{found[0]}" for pair in new), line)


def _scalar(value: str, style: str | None = None, *, as_json: bool = False) -> str:
    """The value as YAML, in the style of the one that it replaces."""
    if as_json or style == '"' or not value.isprintable():
        return json.dumps(value, ensure_ascii=False)  # which YAML reads as it is meant
    plain = _PLAIN.fullmatch(value) and not _NUMBER.fullmatch(value) and value.lower() not in _WORDS
    if plain and style != "'":
        return value
    return "'" + value.replace("'", "''") + "'"


def _check_made(made: str, before: list[Node], change: Change, name: str | None) -> None:
    """What was meant is what stands there now, and nothing else is different."""
    harm = f"cannot be set without harm to the rest of the file: {_BY_HAND}"
    try:
        after = _composed(made)
        model = _model(after, name)
    except (yaml.YAMLError, Refused):
        raise Refused(f"spec.model {harm}") from None
    asked: list[tuple[Node | None, str, str | None]] = []
    asked += [(model, "uri", change.uri), (model, "sha256", change.sha256)]
    asked += [(_at(model, "signature"), "uri", change.signature)]
    asked += [(_at(model, "lineage"), key, value) for key, value in change.lineage.items()]
    for node, key, value in asked:
        there = _at(node, key)
        if value is not None and (there is None or there.tag != f"{_TAG}str" or there.value != value):
            raise Refused(f"{key} {harm}")
    shapes = _Shapes(change)
    if shapes.of(before, name) != shapes.of(after, name):
        raise Refused(f"spec.model {harm}")


class _Shapes:
    """Numbers for what documents say apart from the change: equal where they say the same. Each
    node is looked at once, however often an alias repeats it.
    """

    def __init__(self, change: Change) -> None:
        self._numbers: dict[Any, int] = {}
        self._changed: dict[tuple[Any, ...], set[str]] = {
            (): {k for k, v in (("uri", change.uri), ("sha256", change.sha256)) if v is not None},
            ("signature",): {"uri"} if change.signature is not None else set(),
            ("lineage",): set(change.lineage),
        }

    def of(self, documents: list[Node], name: str | None) -> list[int]:
        """One number for each document."""
        route = (*_found(documents, name)[0], "spec", "model")
        seen: dict[Any, int] = {}
        return [
            self._of(node, route[1:] if i == route[0] else None, seen) for i, node in enumerate(documents)
        ]

    def _of(self, node: Node, route: tuple[Any, ...] | None, seen: dict[Any, int], inside: Any = None) -> int:
        """``route``: the rest of the way to the model; ``inside``: the way from there."""
        if route == ():
            route, inside = None, ()
        key = (id(node), route, inside)
        if key not in seen:
            seen[key] = self._number(self._said(node, route, seen, inside))
        return seen[key]

    def _said(self, node: Node, route: tuple[Any, ...] | None, seen: dict[Any, int], inside: Any) -> Any:
        if isinstance(node, ScalarNode):
            return (node.tag, node.value)
        if isinstance(node, SequenceNode):
            items = enumerate(node.value)
            return (node.tag, *(self._of(v, self._rest(route, i), seen) for i, v in items))
        changed = self._changed.get(inside, set()) if inside is not None else set()
        said: list[Any] = [node.tag]
        for key, value in node.value:
            name = key.value if isinstance(key, ScalarNode) else None
            if name in changed:
                continue
            is_lineage = inside == () and name == "lineage" and self._changed["lineage",]
            if is_lineage and _is_null(value):
                continue  # as an empty one
            number = self._of(value, self._rest(route, name), seen, (name,) if inside == () else None)
            if is_lineage and number == self._number((f"{_TAG}map",)):
                continue
            said.append((self._of(key, None, seen), number))
        return tuple(said)

    def _number(self, said: Any) -> int:
        return self._numbers.setdefault(said, len(self._numbers))

    @staticmethod
    def _rest(route: tuple[Any, ...] | None, key: Any) -> tuple[Any, ...] | None:
        return route[1:] if route and route[0] == key else None
