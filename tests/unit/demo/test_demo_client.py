from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demo.client import Client, Record, Settings
from demo.data import CLASSES, PIXELS, Split
from demo.load import ClientEndedError, Load
from tests.unit.demo.demo_fakes import FakeServer, RefusedError


def live(n: int = 50, wrong: int = 0) -> Split:
    """The fake server is right on all but the first ``wrong``."""
    labels = np.arange(n, dtype=np.int64) % CLASSES
    images = np.zeros((n, PIXELS), np.float32)
    images[np.arange(n), labels] = 1
    labels[:wrong] = (labels[:wrong] + 1) % CLASSES
    return Split(images, labels)


def settings(folder: Path, ports: tuple[int, int], **changes: Any) -> Settings:
    http, grpc = ports
    base: dict[str, Any] = {
        "folder": str(folder),
        "live": str(folder / "live.npz"),
        "namespace": "demo",
        "name": "digits",
        "model": "digits",
        "http_url": f"http://127.0.0.1:{http}",
        "http_host": "digits.test",
        "grpc_target": f"127.0.0.1:{grpc}",
        "grpc_authority": "digits-grpc.test",
        "http_rate": 100.0,
        "grpc_rate": 50.0,
        "feedback_url": f"http://127.0.0.1:{http}",
    }
    return Settings(**{**base, **changes})


async def run(
    server: FakeServer, folder: Path, seconds: float, data: Split | None = None, **changes: Any
) -> dict[str, Any]:
    async with server.serve() as ports:
        client = Client(settings(folder, ports, **changes), data or live(), Record(folder))
        asyncio.get_running_loop().call_later(seconds, client.stop)
        await client.run()
    report: dict[str, Any] = json.loads((folder / "client.json").read_text())
    return report


async def test_every_answer_is_counted_by_version_and_protocol(tmp_path: Path) -> None:
    server = FakeServer(choose=lambda n: "2" if n % 4 == 0 else "1")
    result = await run(server, tmp_path, 0.5)
    assert result["done"] and result["failed"] == result["in_flight"] == 0
    assert result["sent"] == result["answered"] == server.seen
    one, two = result["versions"]["1"], result["versions"]["2"]
    assert two["answers"] == server.seen // 4
    http, grpc = (one[protocol] + two[protocol] for protocol in ("http", "grpc"))
    assert http > grpc > 0 and http + grpc == server.seen
    assert (
        one["right"] == one["answers"] and 0 < one["p50_ms"] <= one["p99_ms"] and one["first"] < one["last"]
    )


async def test_the_host_name_of_the_route_is_sent(tmp_path: Path) -> None:
    server = FakeServer()
    await run(server, tmp_path, 0.3)
    assert server.hosts == {"digits.test"}, "a Python gRPC server does not show the authority"


async def test_a_wrong_answer_is_wrong_and_not_failed(tmp_path: Path) -> None:
    result = await run(FakeServer(), tmp_path, 0.5, live(wrong=50))
    assert result["failed"] == 0 and result["versions"]["1"]["right"] == 0


async def test_refused_requests_fail_once_each_and_say_why(tmp_path: Path) -> None:
    def choose(n: int) -> str:
        if n % 10 == 0:
            raise RefusedError("no available server")
        return "1"

    server = FakeServer(choose=choose)
    result = await run(server, tmp_path, 0.5)
    assert result["failed"] == server.seen // 10 and result["sent"] == server.seen, "no retries"
    errors = {failure["protocol"]: failure["error"] for failure in result["failures"]}
    assert errors["http"] == "BadAnswerError: HTTP 503: 'no available server'" and errors["grpc"].startswith(
        "gRPC UNAVAILABLE: no available"
    )


async def test_a_late_answer_is_a_failed_request(tmp_path: Path) -> None:
    result = await run(FakeServer(delay=0.5), tmp_path, 0.2, deadline=0.2)
    assert result["sent"] == result["failed"] > 1 and result["answered"] == 0
    assert {f["error"].split(":")[0] for f in result["failures"]} == {
        "TimeoutError",
        "gRPC DEADLINE_EXCEEDED",
    }


async def test_a_slow_server_slows_nothing_down(tmp_path: Path) -> None:
    result = await run(FakeServer(delay=0.3), tmp_path, 0.5)
    assert result["sent"] > 8, "open loop: a closed one would come to 4, on a busy machine to fewer"
    assert result["answered"] == result["sent"], "what is in flight at the end is waited for"


async def test_a_closed_port_is_a_failed_request(tmp_path: Path) -> None:
    client = Client(settings(tmp_path, (1, 1), feedback_url=None), live(), Record(tmp_path))
    asyncio.get_running_loop().call_later(0.2, client.stop)
    await client.run()
    report = json.loads((tmp_path / "client.json").read_text())
    assert report["failed"] == report["sent"] > 5


async def test_every_answer_is_handed_in_as_feedback_with_its_version(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    server = FakeServer(choose=lambda n: "2" if n % 4 == 0 else "1")
    result = await run(
        server, tmp_path, 0.5, live(wrong=25), feedback_token=str(tmp_path / "token"), run="r1"
    )
    assert server.tokens == {"Bearer secret"}
    assert result["feedback"] == {"sent": result["answered"], "errors": 0, "last_error": None}
    assert len({item["id"] for item in server.feedback}) == result["answered"] and all(
        i["id"].startswith("r1-") for i in server.feedback
    )
    for version, counts in result["versions"].items():
        mine = [
            i
            for i in server.feedback
            if i["version"] == version and (i["namespace"], i["name"]) == ("demo", "digits")
        ]
        assert (
            len(mine) == counts["answers"]
            and sum(i["prediction"] == i["label"] for i in mine) == counts["right"]
        )


async def test_refused_feedback_is_sent_again(tmp_path: Path) -> None:
    server = FakeServer(feedback_refusals=2)
    async with server.serve() as ports:
        client = Client(settings(tmp_path, ports), live(), Record(tmp_path))
        running = asyncio.create_task(client.run())
        async with asyncio.timeout(60):
            while not server.feedback:  # noqa: ASYNC110  taken at the third time
                await asyncio.sleep(0.05)
        client.stop()
        await running
    report: dict[str, Any] = json.loads((tmp_path / "client.json").read_text())
    assert report["feedback"]["errors"] == 2 and report["failed"] == 0
    assert report["feedback"]["sent"] == report["answered"] == len(server.feedback)


async def test_each_request_has_its_line(tmp_path: Path) -> None:
    result = await run(FakeServer(), tmp_path, 0.3)
    lines = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    assert len(lines) == result["sent"] and set(lines[0]) == {
        "at",
        "protocol",
        "id",
        "version",
        "ms",
        "right",
    }


async def test_the_process_stops_on_the_drivers_word(tmp_path: Path) -> None:
    live().save(tmp_path / "live.npz")
    async with FakeServer().serve() as ports:
        load = Load(settings(tmp_path, ports, feedback_token=str(tmp_path / "token")), lambda: "secret")
        await asyncio.to_thread(load.start)
        await asyncio.sleep(1.0)
        assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600
        actual = await asyncio.to_thread(load.stop)
    assert actual["done"] and actual["sent"] == actual["answered"] > 20 and not load.runs


async def test_a_dead_client_is_noticed(tmp_path: Path) -> None:
    live().save(tmp_path / "live.npz")
    async with FakeServer().serve() as ports:
        load = Load(settings(tmp_path, ports), None)
        await asyncio.to_thread(load.start)
        assert load._process is not None
        load._process.kill()
        load._process.wait()
        with pytest.raises(ClientEndedError, match="-9"):
            load.counts()


async def test_the_client_does_not_outlive_a_killed_driver(tmp_path: Path) -> None:
    live().save(tmp_path / "live.npz")
    async with FakeServer().serve() as ports:
        settings(tmp_path, ports).save(tmp_path / "settings.json")
        program = f"import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-m', 'demo.client', {str(tmp_path / 'settings.json')!r}]); print(p.pid, flush=True); time.sleep(60)"  # noqa: E501
        driver = await asyncio.to_thread(
            subprocess.Popen, [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True
        )
        assert driver.stdout is not None
        pid = int(await asyncio.to_thread(driver.stdout.readline))
        await wait_for(lambda: (tmp_path / "client.json").exists())
        driver.send_signal(signal.SIGKILL)
        await asyncio.to_thread(driver.wait)
        await wait_for(lambda: json.loads((tmp_path / "client.json").read_text())["done"])
        assert pid > 0


async def wait_for(true: Any, limit: float = 15.0) -> None:
    deadline = time.monotonic() + limit
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)
