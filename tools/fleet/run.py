"""The phases of a run, and their figures."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml

from fleet import FleetError, servers
from fleet.api import Api, ApiError
from fleet.control_plane import OPERATOR, WORLD, ControlPlane
from fleet.controllers import CONTROLLERS, Controller
from fleet.launch import Launch
from fleet.player import Player
from fleet.process import MeasuredProcess, Rest
from fleet.requests import Requests, writes
from modelrollout.kube.kinds import Resource
from modelrollout.kube.objects import Object
from sandbox import build_parts, pins
from sandbox.paths import cache_root

CRD = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition", namespaced=False
)
PHASES = ("create", "idle", "canary", "restart")
_AT_ONCE = 8  # objects that are applied at one time
_LOOK_SECONDS = 0.5
_SAY_SECONDS = 15.0
_PATIENCE_SECONDS, _PATIENCE_EACH = 300.0, 5.0  # until a phase is given up, and more for each object
Say = Callable[[str], None]


@dataclass(frozen=True)
class Figures:
    """What one phase cost. Times are seconds, CPU and requests of what is measured, in the
    phase and in what it does afterwards until it rests.
    """

    count: int  # objects
    wall: float  # until the last object was done
    cpu: float
    kinds: Counter[str]  # of requests
    peak_mb: float
    resident_mb: float

    @property
    def per_object(self) -> dict[str, float]:
        """Requests of each kind for each object."""
        return {kind: n / self.count for kind, n in self.kinds.most_common()}

    def lines(self, who: str, phase: str) -> Iterable[str]:
        """``fleet.WHO.N.PHASE.FIGURE: value``, and a remark on the requests."""
        figures = {
            "wall_s": f"{self.wall:.1f}",
            "cpu_ms": f"{self.cpu / self.count * 1000:.1f}",
            "requests": f"{self.kinds.total() / self.count:.2f}",
            "writes": f"{sum(writes(self.kinds).values()) / self.count:.2f}",
            "peak_mb": f"{self.peak_mb:.0f}",
            "resident_mb": f"{self.resident_mb:.0f}",
        }
        for name, value in figures.items():
            yield f"fleet.{who}.{self.count}.{phase}.{name}: {value}"
        shown = [f"{n:.2f} {kind}" for kind, n in self.per_object.items() if n >= 0.005]
        yield f"# {phase}, for each object: {', '.join(shown) or 'nothing'}"


@dataclass(frozen=True)
class Stage:
    """A control plane and the world, without what is measured."""

    controller: Controller
    plane: ControlPlane
    api: Api
    world: Player
    playing: asyncio.Task[None]
    prometheus: str  # its URL

    def process(self, folder: Path, name: str = "fleet", **config: object) -> MeasuredProcess:
        """A controller that has not started; ``folder`` and ``config`` as in Launch. Its log is
        NAME.log.
        """
        launch = Launch(folder, self.plane.kubeconfig(OPERATOR), self.prometheus, name, config)
        return MeasuredProcess(self.controller.command(launch), folder / f"{name}.log")


class Fleet:
    """N objects, what is measured, and the world; ``fleet`` makes one."""

    def __init__(self, count: int, on: Stage, process: MeasuredProcess, say: Say) -> None:
        self.count = count
        self._controller, self._api, self._world, self._playing = on.controller, on.api, on.world, on.playing
        self._process, self._requests = process, Requests(on.plane.audit, on.controller.lease)
        self._say = say

    async def start(self) -> None:
        """It starts and rests."""
        self._process.start()
        await self._rest("start")
        self._requests.since_last()

    async def create(self) -> Figures:
        """All objects are created, and their first version serves."""

        async def create(i: int) -> None:
            for resource, obj in self._controller.created(i):
                await self._api.create(resource, obj)

        return await self._version(1, create)

    async def canary(self) -> Figures:
        """All get a new version at once, and it is promoted."""

        async def change(i: int) -> None:
            resource, obj = list(self._controller.created(i))[-1]
            await self._api.patch(resource, obj, self._controller.change(i, 2))

        return await self._version(2, change)

    async def idle(self, seconds: float) -> Figures:
        """Nothing happens for so long."""
        began, used = time.monotonic(), self._begin()
        await asyncio.sleep(seconds)
        return self._figures(time.monotonic() - began, used)

    async def restart(self) -> Figures:
        """It is killed and started again, until it rests."""
        self._process.kill()
        began = time.monotonic()
        self._process.start()
        return self._figures(await self._rest("restart") - began, 0.0)

    async def _version(self, version: int, apply: Callable[[int], Awaitable[object]]) -> Figures:
        """Apply every object, and wait until each serves that version."""
        began, used = time.monotonic(), self._begin()
        numbers = iter(range(self.count))

        async def user() -> None:
            for i in numbers:
                await apply(i)

        deadline = began + _PATIENCE_SECONDS + _PATIENCE_EACH * self.count
        await asyncio.gather(self._all_done(version, deadline), *(user() for _ in range(_AT_ONCE)))
        wall = time.monotonic() - began
        await self._rest(f"version {version}")
        return self._figures(wall, used)

    async def _all_done(self, version: int, deadline: float) -> None:
        """Returns with the last one; says how far it is meanwhile."""
        seen, said = self._world.seen, 0.0
        while True:
            waiting = [o for o in seen.values() if not self._controller.is_done(o, version)]
            if len(seen) == self.count and not waiting:
                return
            now = time.monotonic()
            if now > deadline:
                raise FleetError(_stuck(version, self.count, waiting))
            if now - said >= _SAY_SECONDS:
                phases = Counter((o.get("status") or {}).get("phase", "New") for o in waiting)
                said, listed = now, ", ".join(f"{n} {phase}" for phase, n in phases.most_common())
                self._say(f"# version {version}: {len(seen) - len(waiting)} of {self.count} done; {listed}")
            await asyncio.sleep(_LOOK_SECONDS)
            self._process.cpu_seconds()  # fails where it has ended
            if self._playing.done():
                raise FleetError("the world has ended") from self._playing.exception()

    async def _rest(self, what: str) -> float:
        """Wait until it rests; since when."""
        rest, deadline = Rest(self._process), time.monotonic() + _PATIENCE_SECONDS
        while (since := rest.since()) is None:
            if time.monotonic() > deadline + _PATIENCE_EACH * self.count:
                raise FleetError(f"{what}: it does not come to rest; see its log")
            await asyncio.sleep(_LOOK_SECONDS)
        return since

    def _begin(self) -> float:
        self._process.forget_peak()
        self._requests.since_last()
        return self._process.cpu_seconds()

    def _figures(self, wall: float, used: float) -> Figures:
        process = self._process
        return Figures(
            self.count,
            wall,
            process.cpu_seconds() - used,
            self._requests.since_last(),
            process.peak_mb(),
            process.resident_mb(),
        )


@asynccontextmanager
async def stage(who: str, folder: Path, say: Say) -> AsyncIterator[Stage]:
    """For one of ``CONTROLLERS``; ``folder`` takes everything that is written."""
    controller = CONTROLLERS[who]
    if controller.part is not None:
        await asyncio.to_thread(_build, controller.part, say)
    with ControlPlane(folder) as plane:
        say(f"# API server at {plane.server}, logs in {folder}")
        async with AsyncExitStack() as stack:
            url = await stack.enter_async_context(servers.prometheus())
            api = await stack.enter_async_context(Api(plane.server, plane.trust(WORLD)))
            world = await stack.enter_async_context(controller.world(api))
            await world.begin(await _prepare(api, controller, url))
            playing = asyncio.create_task(world.run())
            stack.push_async_callback(_end, playing)
            yield Stage(controller, plane, api, world, playing, url)


@asynccontextmanager
async def fleet(who: str, count: int, folder: Path, say: Say) -> AsyncIterator[Fleet]:
    """On a stage, with what is measured, which has started; ``folder`` takes everything that they
    write.
    """
    async with stage(who, folder, say) as on:
        process = on.process(folder)
        try:
            made = Fleet(count, on, process, say)
            await made.start()
            yield made
        finally:
            process.stop()


def _build(part: pins.Part, say: Say) -> None:
    log = cache_root() / "logs" / f"build-{part.name}.log"
    if not build_parts.cached(part):
        say(f"# {part.name} is built, which takes some {part.cold_seconds} s; log: {log}")
    build_parts.build(part, log)


async def _prepare(api: Api, controller: Controller, prometheus: str) -> dict[Resource, Object]:
    """The definitions, and what the platform team creates, the last one of each kind."""
    definitions = [d for file in controller.definitions() for d in yaml.safe_load_all(file.read_text()) if d]
    for definition in definitions:
        if definition["kind"] == CRD.kind:
            await api.create(CRD, definition)
    platform = list(controller.platform(prometheus))
    for resource in {resource for resource, _ in (*platform, *controller.created(0))}:
        await _served(api, resource)
    return {resource: await api.create(resource, obj) for resource, obj in platform}


async def _served(api: Api, resource: Resource) -> None:
    """Wait until a kind that was just defined is served."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            await api.get(resource.path(None))
            return
        except ApiError as e:
            if e.status != 404 or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.1)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _stuck(version: int, count: int, waiting: Sequence[Object]) -> str:
    text = f"version {version}: {len(waiting)} of {count} are not done in time"
    if not waiting:
        return f"{text}; some were never seen"
    o = waiting[0]
    return f"{text}; {o['metadata']['name']} has the status {json.dumps(o.get('status'))}"
