"""The version of Triton, asked of a pod beside the passes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from typing import Any

import pytest
from aiohttp import web

from modelrollout.api import names
from modelrollout.controller.lookups import triton_versions
from modelrollout.controller.lookups.triton_versions import AGAIN_SECONDS, ServerVersions, ask_version
from modelrollout.kube.objects import Object

KEY = ("ml", "digits")


def pod(
    name: str,
    revision: str = "r1",
    *,
    ready: bool = True,
    ip: str | None = "10.0.0.1",
    component: str = "server",
    **metadata: Any,
) -> Object:
    labels = {names.LABEL_REVISION: revision, names.LABEL_COMPONENT: component}
    status: Object = {"conditions": [{"type": "Ready", "status": str(ready)}]} | ({"podIP": ip} if ip else {})
    return {"metadata": {"name": name, "uid": f"uid-{name}", "labels": labels, **metadata}, "status": status}


class World:
    def __init__(self, answers: dict[str, str | None]) -> None:
        self.answers, self.asked, self.woken, self.now = answers, list[str](), list[tuple[str, str]](), 0.0
        self.versions = ServerVersions(lambda key, _: self.woken.append(key), lambda: self.now, self._ask)

    async def _ask(self, host: str) -> str | None:
        self.asked.append(host)
        await asyncio.sleep(0)
        return self.answers.get(host)

    async def look(self, *pods: Object) -> dict[str, str | None]:
        found = self.versions.look_up(KEY, ("r1", "r2"), pods)
        for _ in range(5):
            await asyncio.sleep(0)
        return {name: found.get(name) for name in ("r1", "r2")}


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


def test_one_pod_of_each_revision_is_asked_once_and_the_deployment_is_woken() -> None:
    async def main() -> None:
        world = World({"10.0.0.1": "2.51.0", "10.0.0.2": "2.74.0"})
        pods = (pod("b"), pod("a"), pod("c", "r2", ip="10.0.0.2"))
        assert await world.look(*pods) == {"r1": None, "r2": None}, "no pass waits for an answer"
        assert world.woken == [KEY, KEY]
        assert await world.look(*pods) == {"r1": "2.51.0", "r2": "2.74.0"}
        assert sorted(world.asked) == ["10.0.0.1", "10.0.0.2"]

    run(main())


def test_what_is_no_ready_server_is_not_asked() -> None:
    async def main() -> None:
        world = World({})
        odd = [
            pod("a", ready=False),
            pod("b", ip=None),
            pod("c", component="shadow"),
            pod("d", "another"),
            pod("e", deletionTimestamp="now"),
        ]
        await world.look(*odd)
        assert world.asked == []

    run(main())


def test_who_does_not_answer_is_asked_again_later() -> None:
    async def main() -> None:
        world = World({})
        await world.look(pod("a"))
        await world.look(pod("a"))
        assert world.asked == ["10.0.0.1"] and world.woken == []
        world.now += AGAIN_SECONDS
        world.answers["10.0.0.1"] = "2.74.0"
        await world.look(pod("a"))
        assert await world.look(pod("a")) == {"r1": "2.74.0", "r2": None}

    run(main())


@pytest.mark.parametrize(
    ("body", "status", "version"),
    [
        (json.dumps({"name": "triton", "version": "2.51.0"}), 200, "2.51.0"),
        (json.dumps({"version": "9" * 1000}), 200, "9" * 32),
        (json.dumps({"version": 2}), 200, None),
        (json.dumps(["2.51.0"]), 200, None),
        ("[" * 60_000, 200, None),
        ("x" * 1_000_000, 200, None),
        ("not json", 200, None),
        (json.dumps({"version": "2.51.0"}), 503, None),
    ],
)
def test_whatever_a_pod_answers_is_no_trouble(
    body: str, status: int, version: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(text=body, status=status)

        app = web.Application()
        app.router.add_get("/v2", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
        monkeypatch.setattr(triton_versions.names, "PORT_HTTP", port)
        try:
            assert await ask_version("127.0.0.1") == version
        finally:
            await runner.cleanup()
        assert await ask_version("127.0.0.1") is None, "nothing is there"

    run(main())
