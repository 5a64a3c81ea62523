"""JSON of the API server, read so that no object can stop the reader: too deep, too large and oddly
shaped ones are recognized, and named.

The API server takes objects of 1.5 MB, nested 10,000 deep. Python's JSON reader ends at about 1,000
levels, and 1.4 MB of ``[[],[],...]`` are 45 MB in memory. Nothing that this module lets through is
deeper than MAX_DEPTH, so that others may walk it by recursion.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from json.decoder import WHITESPACE, JSONDecoder  # type: ignore[attr-defined]
from pathlib import Path
from typing import Any

from modelrollout.kube.objects import Object
from modelrollout.nesting import is_deeper

MAX_BYTES = 256 << 10  # of an object as JSON: an honest one has some 10 kB
MAX_DEPTH = 64  # an affinity is 12 deep, a pod's managed fields 15
# Also where Python's reader ends first: where it does depends on the process.
_TOO_DEEP = f"is nested more than {MAX_DEPTH} deep"
USUAL_MEMORY = 2 << 30  # where the container has no limit: that of the chart
# cgroup v2, v1
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
PAGE_ITEMS = 200  # of a list in one request
# of a page that is taken; from a larger one fewer objects are requested at a time
PAGE_BYTES = 4 << 20


def _share() -> int:
    """A quarter of the container's memory limit."""
    for file in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # v2 says "max" where there is none
            if (limit := int(file.read_text())) < 1 << 50:  # v1 says a number that no machine has
                return min(limit, 8 * USUAL_MEMORY) // 4
    return USUAL_MEMORY // 4


# memory for the objects of one namespace; a model with all that belongs to it takes some 350 kB
NAMESPACE_BYTES = _share()
_TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|[{}\[\]:,]|[^\s{}\[\]:,"]++', re.DOTALL)
# that are looked at for the name of an object that cannot be read: a fifth of a second
_MAX_TOKENS = 500_000
_REVIEWS = ("authentication.k8s.io/", "authorization.k8s.io/")  # TokenReview, SubjectAccessReview
_MARKS = ("name", "namespace", "uid", "resourceVersion")
# Where a list says how it goes on: built-in kinds at the beginning, custom ones at the end.
_LIST_HEAD = re.compile(rb'\{"kind":"[^"]*","apiVersion":"[^"]*","metadata":(\{[^{}]*\})')
_ITEM = rb'\{(?:"(?:apiVersion|kind)":"[^"]*",){0,2}"metadata":'
# How answers of the API server begin, up to the metadata of the (first) object, by the path to it.
_BEGIN = {
    ("metadata",): re.compile(_ITEM),
    ("object", "metadata"): re.compile(rb'\{"type":"[A-Z]+","object":' + _ITEM),
    ("items", "", "metadata"): re.compile(
        rb'\{(?:"(?:apiVersion|kind)":"[^"]*",){0,2}(?:"metadata":\{[^{}]*\},)?"items":\[' + _ITEM
    ),
}
_LIST_TAIL = re.compile(rb'"metadata":(\{[^{}]*\})\}\s*$')


class UnreadableError(ValueError):
    """Why something cannot be read, in words that follow its name."""


class NotJsonError(UnreadableError):
    """It is no JSON at all, or not all of it."""


@dataclass(frozen=True)
class UnreadableObject:
    """An object that cannot be read. Unknown fields are empty."""

    namespace: str
    name: str
    uid: str
    version: str
    why: str


def parse(raw: bytes) -> Any:
    """The JSON value. Raises UnreadableError, whatever is wrong with it."""
    try:
        return json.loads(raw)
    except RecursionError:
        raise UnreadableError(_TOO_DEEP) from None
    except ValueError as e:  # no JSON, no UTF-8, a number of more than 4,300 digits
        raise NotJsonError(f"is no JSON: {e}") from None


_CONTAINERS = frozenset({dict, list})


def check_depth(value: Any) -> None:
    """Raises UnreadableError when a value of JSON is nested deeper than MAX_DEPTH."""
    if is_deeper(value, MAX_DEPTH):
        raise UnreadableError(_TOO_DEEP)


def weigh(value: Any) -> int:
    """Bytes of memory, about, of a value that is not too deep."""
    size = sys.getsizeof
    weight = size(value)
    keys: set[str] = set()  # of which the reader makes one for all
    level = [value] if type(value) in _CONTAINERS else []
    while level:
        children: list[Any] = []
        for outer in level:
            if type(outer) is dict:
                keys.update(outer)
                children += outer.values()
            else:
                children += outer
        weight += sum(map(size, children))
        level = [child for child in children if type(child) in _CONTAINERS]
    return weight + sum(map(size, keys))


def object_of(value: Any, size: int) -> Object:
    """The value as an object that every part of the operator can read; ``size`` is that of its JSON
    in bytes. Raises UnreadableError.
    """
    if size > MAX_BYTES:
        raise UnreadableError(f"has {size >> 10} KiB of JSON, more than {MAX_BYTES >> 10}")
    check_depth(value)
    if problem := _odd(value):
        raise UnreadableError(problem)
    return value  # type: ignore[no-any-return]


def _odd(value: Any) -> str | None:
    """What is wrong with the outer shape, which a definition without a schema leaves open."""
    metadata = value.get("metadata") if isinstance(value, dict) else None
    if (
        isinstance(value, dict)
        and str(value.get("apiVersion")).startswith(_REVIEWS)
        and isinstance(metadata, dict)
    ):
        return None  # an answer and no object: it is kept nowhere, and has no name
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        return "has no metadata.name"
    for field in ("namespace", "uid", "resourceVersion"):
        if not isinstance(metadata.get(field), str | None):
            return f"has a metadata.{field} that is no text"
    for field in ("labels", "annotations"):
        of = metadata.get(field)
        if of is not None and not (isinstance(of, dict) and all(isinstance(v, str) for v in of.values())):
            return f"has metadata.{field} that are no map of texts"
    owners = metadata.get("ownerReferences")
    if owners is not None and not (isinstance(owners, list) and all(isinstance(o, dict) for o in owners)):
        return "has metadata.ownerReferences that are no list of maps"
    for field in ("spec", "status"):
        if not isinstance(value.get(field), dict | None):
            return f"has a {field} that is no map"
    return None


@dataclass(frozen=True)
class Page:
    """Objects of a list in the order in which they came, what could not be read among them, and
    where the list goes on (empty: nowhere).
    """

    items: list[Object]
    unread: list[UnreadableObject]
    resource_version: str
    token: str


class TooLargeError(Exception):
    """A page has more than PAGE_BYTES."""


async def read_page(
    fetch: Callable[[int], Awaitable[bytes]], limit: int, most: int = PAGE_ITEMS
) -> tuple[Page, int]:
    """One page of at most ``limit`` objects, and how many to request next: up to ``most``.

    ``fetch`` requests that many objects from the list's current position; it raises TooLargeError
    if several exceed PAGE_BYTES. If a page cannot be read, fewer are requested, down to the one
    unreadable object. Raises UnreadableError when the list has no position to continue from.
    """
    while True:
        try:
            raw = await fetch(limit)
            return _page(raw), min(most, limit * 4)
        except (TooLargeError, UnreadableError) as e:
            if limit > 1:
                limit = max(1, limit // 8)
                continue
            if isinstance(e, TooLargeError):
                raise UnreadableError("is too large even one by one") from None
            head = _LIST_HEAD.match(raw) or _LIST_TAIL.search(raw[-8192:])
            if head is None:
                raise
            metadata = parse(head[1])
            lost = identify(raw, ("items", "", "metadata"), str(e))
            return Page([], [lost], metadata.get("resourceVersion") or "", metadata.get("continue") or ""), 1


def _page(raw: bytes) -> Page:
    """Objects are read one by one, so that of those that are not kept there is never more than one
    in memory.
    """
    text = raw.decode("utf-8", "replace")
    items: list[Object] = []
    unread: list[UnreadableObject] = []
    metadata: Any = {}
    scan = JSONDecoder().raw_decode

    def space(i: int) -> int:
        return int(WHITESPACE.match(text, i).end())

    def expect(i: int, *signs: str) -> tuple[str, int]:
        i = space(i)
        if text[i : i + 1] not in signs or not text[i : i + 1]:
            raise UnreadableError(f"is no list: {' or '.join(signs)} is missing at {i}")
        return text[i], space(i + 1)

    try:
        _, i = expect(0, "{")
        sign = ","
        while sign == "," and text[i : i + 1] != "}":
            key, i = scan(text, i)
            _, i = expect(i, ":")
            if key == "items" and text[i : i + 1] == "[":
                i = space(i + 1)
                while text[i : i + 1] != "]":
                    item, end = scan(text, i)
                    try:
                        items.append(object_of(item, end - i))
                    except UnreadableError as e:
                        unread.append(unreadable_object(item, str(e)))
                    del item
                    i = space(end)
                    if text[i : i + 1] != "]":
                        _, i = expect(i, ",")
                i += 1
            else:
                value, i = scan(text, i)
                metadata = value if key == "metadata" else metadata
            sign, i = expect(i, ",", "}")
    except RecursionError:
        raise UnreadableError(_TOO_DEEP) from None
    except UnreadableError:
        raise
    except (ValueError, StopIteration) as e:
        raise UnreadableError(f"is no JSON: {e}") from None
    if not isinstance(metadata, dict):
        raise UnreadableError("is a list without metadata")
    return Page(
        items, unread, str(metadata.get("resourceVersion") or ""), str(metadata.get("continue") or "")
    )


def unreadable_object(value: Any, why: str) -> UnreadableObject:
    """The identity of an object that was read but is unusable."""
    metadata = value.get("metadata") if isinstance(value, Mapping) else None
    marks = {k: v for k in _MARKS if isinstance(metadata, Mapping) and isinstance(v := metadata.get(k), str)}
    return UnreadableObject(
        marks.get("namespace", ""),
        marks.get("name", ""),
        marks.get("uid", ""),
        marks.get("resourceVersion", ""),
        why,
    )


def omitted(item: Object) -> UnreadableObject:
    """An object that is left out for lack of memory."""
    return unreadable_object(
        item, f"is beyond the {NAMESPACE_BYTES >> 20} MiB of memory for the objects of its namespace"
    )


def identify(raw: bytes, path: tuple[str, ...], why: str) -> UnreadableObject:
    """The identity of an object that cannot be read, from the metadata at ``path`` (a list's items
    have the key ""); the rest may be anything.
    """
    if begin := _BEGIN[path].match(raw):
        try:
            metadata, _ = JSONDecoder().raw_decode(raw[begin.end() :].decode("utf-8", "replace"))
            return unreadable_object({"metadata": metadata}, why)
        except (ValueError, RecursionError):
            pass  # managed fields are as deep as what they are about: token by token, then
    where: list[str] = []  # keys of the maps and lists that are open, from the outermost
    is_map: list[bool] = []
    deeper = 0  # containers inside those
    key, value_next = "", False
    marks: dict[str, str] = {}
    for n, match in enumerate(_TOKEN.finditer(raw)):
        token, sign = match[0], match[0][:1]
        if n > _MAX_TOKENS:
            break
        if sign in b"{[":
            if deeper or len(where) > len(path):
                deeper += 1
            else:
                where.append(key if value_next else "")
                is_map.append(sign == b"{")
            key, value_next = "", False
        elif sign in b"}]":
            if deeper:
                deeper -= 1
            elif where:
                if tuple(where[1:]) == path:
                    break
                where.pop()
                is_map.pop()
            key, value_next = "", False
        elif sign == b":":
            value_next = True
        elif sign == b",":
            key, value_next = "", False
        elif not deeper and is_map and is_map[-1] and len(token) < 1024:
            if not value_next:
                key = token.decode("utf-8", "replace").strip('"')
            elif tuple(where[1:]) == path and key in _MARKS and sign == b'"':
                marks[key] = token.decode("utf-8", "replace").strip('"')
    return UnreadableObject(
        marks.get("namespace", ""),
        marks.get("name", ""),
        marks.get("uid", ""),
        marks.get("resourceVersion", ""),
        why,
    )
