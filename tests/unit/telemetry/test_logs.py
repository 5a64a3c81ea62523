"""Logs: fields that machines find, and nothing secret."""

from __future__ import annotations

import asyncio
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from modelrollout.telemetry import logs, redaction

JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQifQ.c2lnbmF0dXJl"
log = logging.getLogger("modelrollout.test")


@pytest.fixture(autouse=True)
def restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def out() -> io.StringIO:
    stream = io.StringIO()
    logs.setup("info", "json", stream)
    return stream


def lines(out: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def test_a_line_is_json_with_the_fields_in_order(out: io.StringIO) -> None:
    with logs.log_context(namespace="ns", name="m", revision="m-1"):
        log.info("step %d", 3, extra={"weight": 25})
    log.debug("not shown")
    [line] = lines(out)
    assert list(line)[:4] == ["ts", "level", "logger", "message"]
    assert line.pop("ts").endswith("Z")
    assert line == {
        "level": "info",
        "logger": "modelrollout.test",
        "message": "step 3",
        "weight": 25,
        "namespace": "ns",
        "name": "m",
        "revision": "m-1",
    }


async def test_each_task_has_its_own_object(out: io.StringIO) -> None:
    async def work(name: str) -> None:
        with logs.log_context(namespace="ns", name=name):
            await asyncio.sleep(0)
            log.info("%s", name)

    await asyncio.gather(*(work(n) for n in "abc"))
    log.info("none")
    assert all(line["name"] == line["message"] for line in lines(out)[:3])
    assert "name" not in lines(out)[3]


SECRETS = [
    f"Authorization: Bearer {JWT}",
    f"headers {{'authorization': 'bearer {JWT}'}}",
    f"token={JWT}",
    '{"password": "hunter2hunter2"}',
    "AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "key AKIAIOSFODNN7EXAMPLE",
    (
        "GET https://s3/x?X-Amz-Credential=AKIAIOSFODNN7EXAMPLE%2F2026&X-Amz-Signature=fe5f80f77d5fa3beca038a248ff027d0445342fe"
    ),
    "postgres://user:hunter2hunter2@host/db",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEowIBAAKCAQEA\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\nMIIEcut off",
    "hf_abcdefghijklmnopqrstuvwxyzABCDEF",
    "Basic dXNlcjpodW50ZXIyaHVudGVyMg== in authorization: Basic dXNlcjpodW50ZXIyaHVudGVyMg==",
]
TELLTALES = ["eyJ", "hunter2", "wJalr", "AKIA", "fe5f80", "MIIE", "hf_abc", "dXNlc"]


@pytest.mark.parametrize("text", SECRETS, ids=[s[:20] for s in SECRETS])
def test_what_looks_secret_is_blotted_out_everywhere_and_the_line_stays_json(
    out: io.StringIO, text: str
) -> None:
    log.info(text)
    log.info("%s", text, extra={"more": text})
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("failed")
    assert len(lines(out)) == 3
    assert not [t for t in TELLTALES if t in out.getvalue()]


def test_a_few_letters_are_no_secret_that_is_removed(out: io.StringIO) -> None:
    for short in ("e", "the", "store"):
        redaction.hide(short)
    redaction.hide("q7w8e9")
    log.info("the store refused q7w8e9")
    assert lines(out)[0]["message"] == "the store refused ***"


def test_a_known_secret_is_removed_whatever_its_characters(out: io.StringIO) -> None:
    secret = redaction.hide('s3"cr\\et-ä')
    log.info("it is %s", secret, extra={"more": secret})
    [line] = lines(out)
    assert (line["message"], line["more"]) == ("it is ***", "***")


@pytest.mark.parametrize(
    "text",
    [
        "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        'secrets "model-credentials" not found',
        "bearer of news",
        "https://models.example.com/a/b.onnx",
        "no answer within 10 s from https://10.0.0.1:443/api",
        "basic settings are wrong",
    ],
)
def test_what_is_not_secret_stays(text: str) -> None:
    assert redaction.redact(text) == text


def test_people_get_a_short_form() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    logs.setup(stream=stream)
    with logs.log_context(namespace="ns", name="m"):
        log.warning("slow, token=%s", JWT)
    assert stream.getvalue()[8:] == " WARNING ns/m: slow, token=***\n"
