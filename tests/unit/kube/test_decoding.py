"""Whatever the API server sends, the reader goes on, and says which object it could not read."""

from __future__ import annotations

import contextlib
import json
import random
from typing import Any

import pytest

from modelrollout.kube import decoding
from modelrollout.kube.decoding import (
    MAX_BYTES,
    MAX_DEPTH,
    NotJsonError,
    TooLargeError,
    UnreadableError,
    check_depth,
    identify,
    object_of,
    parse,
    read_page,
    weigh,
)


def nested(depth: int) -> str:
    return '{"a":' * depth + "{}" + "}" * depth


def metadata(name: str, **more: Any) -> dict[str, Any]:
    return {
        "annotations": {"say": '"name":"liar","metadata":{"name":"liar"}'},
        "managedFields": [{"fieldsV1": {"f:name": {}, "f:uid": {}}}],
        "name": name,
        "namespace": "ml",
        "resourceVersion": "7",
        "uid": f"u-{name}",
        **more,
    }


def raw_object(name: str, spec: str = "{}") -> str:
    return f'{{"apiVersion":"v1","kind":"X","metadata":{json.dumps(metadata(name))},"spec":{spec}}}'


def raw_list(*items: str, token: str = "", custom: bool = True) -> bytes:
    about = json.dumps({"continue": token, "resourceVersion": "99"}, separators=(",", ":"))
    body = ",".join(items)
    if custom:
        return f'{{"apiVersion":"v1","items":[{body}],"kind":"XList","metadata":{about}}}\n'.encode()
    return f'{{"kind":"XList","apiVersion":"v1","metadata":{about},"items":[{body}]}}\n'.encode()


DEEP, WIDE = nested(5000), '{"a":[' + ",".join(["[]"] * 100_000) + "]}"


@pytest.mark.parametrize(
    "raw",
    [
        nested(100_000).encode(),
        b"[" * 100_000,
        b"{",
        b"",
        b"\xff\xfe",
        b'"\xff"',
        b"<html>",
        b"1" * 5000,
        b'{"a":}',
        b"[1,]",
        b"NaN,",
        b"\x00",
    ],
    ids=lambda raw: repr(raw[:8]),
)
def test_no_bytes_end_the_reader(raw: bytes) -> None:
    with pytest.raises(UnreadableError):
        parse(raw)


def test_depth_is_bounded_without_recursion() -> None:
    value: Any = "x"
    for _ in range(100_000):
        value = [value]
    with pytest.raises(UnreadableError, match="nested more than 64 deep"):
        check_depth(value)
    while isinstance(value, list):  # or freeing it would be what ends us
        value = value.pop()
    check_depth(parse(nested(MAX_DEPTH - 1).encode()))
    with pytest.raises(UnreadableError):
        check_depth(parse(nested(MAX_DEPTH).encode()))


def test_the_weight_is_that_of_memory_and_not_of_the_text() -> None:
    assert weigh([[] for _ in range(1000)]) > 50_000
    assert weigh({"a": "x" * 1000}) < 2000


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (None, "metadata.name"), ([], "metadata.name"), ({}, "metadata.name"),
        ({"metadata": None}, "metadata.name"),
        ({"metadata": {"name": 3}}, "metadata.name"), ({"metadata": {"name": "a", "namespace": []}},
            "namespace"),
        ({"metadata": {"name": "a", "labels": []}}, "labels"),
        ({"metadata": {"name": "a", "labels": {"a": {}}}}, "labels"),
        ({"metadata": {"name": "a", "annotations": "x"}}, "annotations"),
        ({"metadata": {"name": "a", "ownerReferences": {}}}, "ownerReferences"),
        ({"metadata": {"name": "a", "ownerReferences": [3]}}, "ownerReferences"),
        ({"metadata": {"name": "a"}, "spec": [1]}, "spec"),
        ({"metadata": {"name": "a"}, "status": "x"}, "status"),
    ],
)  # fmt: skip
def test_odd_shapes_are_told(value: Any, why: str) -> None:
    with pytest.raises(UnreadableError, match=why):
        object_of(value, 10)


def test_nothing_is_asked_of_what_may_be_left_out() -> None:
    for value in (
        {"metadata": {"name": "a"}},
        {"metadata": {"name": "a", "labels": None, "ownerReferences": None}, "spec": None, "status": None},
    ):
        assert object_of(value, 10) == value
    with pytest.raises(UnreadableError, match="257 KiB of JSON, more than 256"):
        object_of({"metadata": {"name": "a"}}, MAX_BYTES + 1024)


@pytest.mark.parametrize("spec", [DEEP, WIDE, "[" * 50_000], ids=["deep", "wide", "cut off"])
def test_an_object_is_named_whatever_it_holds(spec: str) -> None:
    unreadable = identify(raw_object("culprit", spec).encode(), ("metadata",), "why")
    assert (unreadable.namespace, unreadable.name, unreadable.uid, unreadable.version, unreadable.why) == (
        "ml",
        "culprit",
        "u-culprit",
        "7",
        "why",
    )
    line = f'{{"type":"MODIFIED","object":{raw_object("culprit", spec)}}}'.encode()
    assert identify(line, ("object", "metadata"), "why") == unreadable
    for custom in (True, False):
        assert (
            identify(raw_list(raw_object("culprit", spec), custom=custom), ("items", "", "metadata"), "why")
            == unreadable
        )


def test_managed_fields_as_large_as_the_object_hide_no_name() -> None:
    fields = [{"fieldsV1": {f"f:k{i}": {} for i in range(150_000)}}]
    about = json.dumps(metadata("culprit", managedFields=fields), separators=(",", ":"))
    # in the order of the API server
    about = about.replace('"name":"culprit",', "").removesuffix("}") + ',"name":"culprit"}'
    for raw in (
        f'{{"type":"ADDED","object":{{"apiVersion":"v1","kind":"X","metadata":{about},"spec":[[',
        f'{{"object":{{"metadata":{about}',
    ):
        unreadable = identify(raw.encode(), ("object", "metadata"), "why")
        assert unreadable.name == ("culprit" if "type" in raw else ""), (
            "what does not begin like an answer is searched only so far"
        )


@pytest.mark.parametrize(
    "raw",
    [b"", b"}}}}", b"[[[]]]", b'{"metadata":3}', b'{"metadata":{"name":{"name":"x"}}}', b'"', b"\xff" * 100],
)
def test_what_has_no_name_has_none(raw: bytes) -> None:
    assert identify(raw, ("metadata",), "why").name == ""


@pytest.mark.heavy
def test_the_search_for_a_name_ends() -> None:
    assert identify(b'{"metadata":{"x":[' + b"[]," * 1_000_000, ("metadata",), "why").name == ""


class Server:
    """Lists ``objects`` as the API server does; counts what is asked for."""

    def __init__(self, objects: list[str], custom: bool = True) -> None:
        self.objects, self.custom, self.asked = objects, custom, []  # type: ignore[var-annotated]
        self.at = 0

    async def fetch(self, count: int) -> bytes:
        self.asked.append(count)
        part = self.objects[self.at : self.at + count]
        token = str(self.at + count) if self.at + count < len(self.objects) else ""
        raw = raw_list(*part, token=token, custom=self.custom)
        if count > 1 and len(raw) > decoding.PAGE_BYTES:
            raise TooLargeError
        return raw

    async def all(self) -> tuple[list[str], dict[str, str]]:
        limit, names, lost = decoding.PAGE_ITEMS, [], {}
        while True:
            page, limit = await read_page(self.fetch, limit)
            names += [o["metadata"]["name"] for o in page.items]
            lost |= {u.name: u.why for u in page.unread}
            assert page.resource_version == "99"
            if not page.token:
                return names, lost
            self.at = int(page.token)


@pytest.mark.parametrize("custom", [True, False])
async def test_one_bad_object_does_not_lose_the_list(custom: bool) -> None:
    huge = json.dumps({"a": "x" * MAX_BYTES})
    bad = {100: DEEP, 101: DEEP, 300: nested(200), 444: huge, 500: "[]", 999: DEEP}
    server = Server([raw_object(f"o{i}", bad.get(i, '{"a":[1,{}]}')) for i in range(1000)], custom)
    names, lost = await server.all()
    assert names == [f"o{i}" for i in range(1000) if i not in bad]
    assert {name: why.split(",")[0] for name, why in lost.items()} == {
        "o100": "is nested more than 64 deep", "o101": "is nested more than 64 deep",
        "o300": "is nested more than 64 deep",
        "o444": "has 256 KiB of JSON", "o500": "has a spec that is no map",
        "o999": "is nested more than 64 deep",
    }  # fmt: skip
    assert len(server.asked) < 40


async def test_large_pages_are_asked_for_in_smaller_ones() -> None:
    large = json.dumps({"a": "x" * 1_400_000})
    server = Server([raw_object(f"o{i}", large if i < 20 else "{}") for i in range(300)])
    names, lost = await server.all()
    assert len(lost) == 20 and len(names) == 280
    assert max(server.asked) == decoding.PAGE_ITEMS and len(server.asked) < 60


async def test_an_honest_list_costs_one_request_a_page() -> None:
    server = Server([raw_object(f"o{i}") for i in range(1000)])
    assert len((await server.all())[0]) == 1000
    assert server.asked == [decoding.PAGE_ITEMS] * 5


@pytest.mark.parametrize(
    "raw",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"items":3}',
        b'{"items":null}',
        b'{"metadata":[]}',
        b'{"items":[{}',
        b"",
        b"\xff",
    ],
)
async def test_what_is_no_list_is_said_or_is_empty(raw: bytes) -> None:
    async def fetch(count: int) -> bytes:
        return raw

    try:
        page, _ = await read_page(fetch, 200)
    except UnreadableError:
        return
    assert page.items == [] and page.token == ""


def test_random_bytes_in_a_list_are_an_error_or_a_list() -> None:
    rng = random.Random(7)
    good = raw_list(raw_object("a"), raw_object("b"))
    for _ in range(3000):
        raw = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        with contextlib.suppress(UnreadableError):
            decoding._page(bytes(raw))
        identify(bytes(raw), ("items", "", "metadata"), "why")


def test_no_json_is_told_apart() -> None:
    with pytest.raises(NotJsonError):
        parse(b"<html>")
    with pytest.raises(UnreadableError) as actual:
        parse(nested(100_000).encode())
    assert not isinstance(actual.value, NotJsonError)
